//! Fleets: what a mint costs, how many a second, and what it takes to countersign a thousand.

use crate::report::Section;
use crate::server::{self, Session, pgbench};
use crate::stats::{raw, spread};
use crate::{Bench, Result};
use agd_live_tests::fleet::{countersign, register_signers, sign};
use std::time::Instant;

const DATABASE: &str = "fleet";
const TENANTS: u32 = 10;
const CLIENTS: usize = 8;
const BATCH: usize = 1000;

pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let seconds: u32 = bench.options.pick(8, 1);
    let rounds = bench.options.rounds();
    let mints: usize = bench.options.pick(500, 100);
    let cluster = server::start("agd")?;
    server::create_database(&cluster, DATABASE, None)?;
    let mut session = Session::open(&cluster, DATABASE)?;
    session.run("CREATE EXTENSION agd")?;
    for tenant in 0..TENANTS {
        session.run(&format!("SELECT agd.create_tenant('t{tenant}')"))?;
    }
    let mut client = cluster.client("postgres", DATABASE)?;
    register_signers(&mut client)?;
    session.run("SELECT agd.mint_tenant_fleet('t0', 'the first of all')")?;

    let statement = client.prepare("SELECT agd.mint_tenant_fleet($1, $2)")?;
    let mut latencies = Vec::new();
    for mint in 0..mints {
        let (tenant, cause) = (format!("t{}", mint % TENANTS as usize), format!("latency {mint}"));
        let began = Instant::now();
        client.query_one(&statement, &[&tenant, &cause])?;
        latencies.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    bench.progress("fleet: mints one after the other");

    let script = format!(
        "\\set tenant random(0, {})\n\\set cause random(1, 9000000000000000000)\n\
         SELECT agd.mint_tenant_fleet('t' || :tenant, 'throughput ' || :cause);\n",
        TENANTS - 1
    );
    let file = bench.scratch.write("mint.sql", &script)?;
    let mut rates = Vec::new();
    for round in 0..=rounds {
        let found =
            pgbench(&cluster, DATABASE, CLIENTS, seconds, &["-f", &file, &format!("--random-seed={}", round + 1)])?;
        session.anchor()?;
        if round > 0 {
            rates.push(found);
        }
    }
    bench.progress("fleet: mints by 8 clients");

    let mut batches = Vec::new();
    for round in 0..rounds {
        let mut fleets: Vec<String> = Vec::with_capacity(BATCH);
        client.batch_execute("BEGIN")?;
        for number in 0..BATCH {
            let tenant = format!("t{}", number % TENANTS as usize);
            let cause = format!("batch {round} {number}");
            let fleet: String = client.query_one(&statement, &[&tenant, &cause])?.try_get(0)?;
            sign(&mut client, &fleet)?;
            fleets.push(fleet);
        }
        client.batch_execute("COMMIT")?;
        let fleets: Vec<&str> = fleets.iter().map(String::as_str).collect();
        let began = Instant::now();
        let states = countersign(&mut client, &fleets)?;
        batches.push(began.elapsed().as_secs_f64() * 1000.0);
        if states.len() != BATCH {
            return Err(format!("{} fleets countersigned, not {BATCH}", states.len()).into());
        }
        session.anchor()?;
    }
    bench.progress("fleet: batches of 1,000 countersigned");

    let mut section = Section::new("fleet", "Fleets", &["", "median (lowest–highest)", "goal"]);
    for (key, name, values, goal) in [
        ("mint_ms", "one mint, ms", &latencies, "≤ 3"),
        ("mints_a_second", "mints a second, 8 clients", &rates, "≥ 500"),
        ("countersign_1000_ms", "countersigning a batch of 1,000, ms", &batches, "≤ 1,000"),
    ] {
        section.rows.push(vec![name.to_owned(), spread(values), goal.into()]);
        section.raw[key] = raw(values);
    }
    section.notes.push(format!(
        "{TENANTS} tenants, the standard template with four agents: six guarded rows a mint, in a transaction of its own. {mints} mints \
         one after the other; {rounds} rounds of {seconds} s with {CLIENTS} clients, each mint another cause; {rounds} batches, three \
         guarded rows a fleet, one transaction, with the batch's statement and its signature in the time."
    ));
    Ok(vec![section])
}
