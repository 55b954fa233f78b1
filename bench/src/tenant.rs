//! Reading through the policy that `agd.guard(…, tenant_column => …)` makes, next to one written by hand; and what it costs
//! to bind a transaction.

use crate::report::Section;
use crate::server::{self, Session, pgbench};
use crate::stats::{figure, grouped, median, ratios, raw, spread};
use crate::{Bench, Result};
use agd_live_tests::Cluster;
use agd_live_tests::token::Issuer;
use std::collections::HashMap;
use std::time::Instant;

const TENANTS: u32 = 10;
/// The login role of tenant t1.
const ROLE: &str = "bench_tenant";

const BY_HAND: &str = "by_hand";
const GUARDED: &str = "guarded";

pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let rows: u32 = bench.options.pick(200_000, 50_000);
    let seconds: u32 = bench.options.pick(8, 1);
    let rounds = bench.options.rounds();
    let cluster = server::start("agd")?;
    Session::open(&cluster, "postgres")?.run(&format!("CREATE ROLE {ROLE} LOGIN"))?;
    server::create_database(&cluster, BY_HAND, None)?;
    let mut session = Session::open(&cluster, BY_HAND)?;
    session.run(&format!(
        "CREATE TABLE orders (id int PRIMARY KEY, tenant text NOT NULL, customer int, amount numeric(12,2), note text);
         INSERT INTO orders SELECT g, 't' || g % {TENANTS}, g % 1000, g / 100.0, 'order ' || g FROM generate_series(1, {rows}) g;
         CREATE INDEX ON orders (tenant, id);
         GRANT SELECT ON orders TO {ROLE}"
    ))?;
    drop(session);
    server::create_database(&cluster, GUARDED, Some(BY_HAND))?;

    // The sub-select is what one is advised to write: the setting is then read once a query, not once a row.
    Session::open(&cluster, BY_HAND)?.run(&format!(
        "ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
         CREATE POLICY wall ON orders USING (tenant = (SELECT current_setting('app.tenant')));
         ALTER ROLE {ROLE} SET app.tenant = 't1'"
    ))?;
    let mut session = Session::open(&cluster, GUARDED)?;
    session.run("CREATE EXTENSION agd")?;
    for tenant in 0..TENANTS {
        session.run(&format!("SELECT agd.create_tenant('t{tenant}')"))?;
    }
    session.run(&format!(
        "SELECT agd.map_role('{ROLE}', 't1');
         GRANT agd_tenant TO {ROLE};
         SELECT agd.guard('orders', tenant_column => 'tenant', baseline => false)"
    ))?;
    session.anchor()?;
    for database in [BY_HAND, GUARDED] {
        let mut session = Session::open(&cluster, database)?;
        session.run("VACUUM ANALYZE orders")?;
        session.run("CHECKPOINT")?;
        // Both must show the same rows, or they do not do the same work.
        let mut client = cluster.client(ROLE, database)?;
        let seen: i64 = client.query_one("SELECT count(*) FROM orders", &[])?.try_get(0)?;
        if seen != i64::from(rows / TENANTS) {
            return Err(format!("{database}: the tenant sees {seen} rows, not {}", rows / TENANTS).into());
        }
    }

    let queries = [
        (
            "one row by its key",
            format!("\\set n random(1, {}) * {TENANTS} + 1\nSELECT * FROM orders WHERE id = :n;\n", rows / TENANTS - 1),
        ),
        ("the newest 50 rows", "SELECT * FROM orders ORDER BY id DESC LIMIT 50;\n".to_owned()),
        ("a sum over all of the tenant's rows", "SELECT count(*), sum(amount) FROM orders;\n".to_owned()),
    ];
    let mut tps: HashMap<(&str, &str), Vec<f64>> = HashMap::new();
    for (number, (name, script)) in queries.iter().enumerate() {
        let file = bench.scratch.write(&format!("select{number}.sql"), script)?;
        for round in 0..=rounds {
            let turns = if round % 2 == 0 { [BY_HAND, GUARDED] } else { [GUARDED, BY_HAND] };
            for database in turns {
                let seed = format!("--random-seed={}", round + 1);
                let found =
                    pgbench(&cluster, database, 1, seconds, &["-U", ROLE, "-M", "prepared", &seed, "-f", &file])?;
                if round > 0 {
                    tps.entry((name, database)).or_default().push(found);
                }
            }
        }
        bench.progress(&format!("tenant: {name}"));
    }

    let mut section = Section::new(
        "tenant",
        "A tenant's SELECT, queries a second",
        &["", "policy by hand", "agd", "of the one by hand", "goal"],
    );
    for (name, _) in &queries {
        let (by_hand, guarded) = (&tps[&(*name, BY_HAND)], &tps[&(*name, GUARDED)]);
        section.rows.push(vec![
            (*name).to_owned(),
            figure(median(by_hand)),
            figure(median(guarded)),
            spread(&ratios(guarded, by_hand)),
            "≥ 0.98".into(),
        ]);
        section.raw[format!("{name} / by_hand / tps")] = raw(by_hand);
        section.raw[format!("{name} / agd / tps")] = raw(guarded);
    }
    section.notes.push(format!(
        "{} rows of {TENANTS} tenants, index on (tenant, id), one client, prepared statements, {rounds} rounds of {seconds} s. \
         By hand: `USING (tenant = (SELECT current_setting('app.tenant')))`.",
        grouped(u64::from(rows))
    ));
    Ok(vec![section, binding(bench, &cluster)?])
}

/// `agd.bind()` and `agd.enter()` at the beginning of a transaction, next to a query that does nothing.
fn binding(bench: &Bench, cluster: &Cluster) -> Result<Section> {
    let times: usize = bench.options.pick(2_000, 200);
    let mut session = Session::open(cluster, GUARDED)?;
    session.run(
        "CREATE ROLE bench_token LOGIN IN ROLE agd_tenant; CREATE ROLE bench_word LOGIN IN ROLE agd_tenant;
         SELECT agd.map_role('bench_token', NULL, 'token'), agd.map_role('bench_word', NULL, 'asserted')",
    )?;
    let issuer = Issuer::new(&mut cluster.client("postgres", GUARDED)?, "t1", "bench");
    let mut measured: Vec<(&str, Vec<f64>)> = Vec::new();
    for (name, role, query) in [
        ("a query that does nothing", "bench_token", "SELECT length($1)::text"),
        ("agd.bind(token)", "bench_token", "SELECT agd.bind($1)"),
        ("agd.enter(tenant)", "bench_word", "SELECT agd.enter($1)"),
    ] {
        let mut client = cluster.client(role, GUARDED)?;
        let statement = client.prepare(query)?;
        let mut took = Vec::new();
        for number in 0..times + times / 10 {
            let argument = if role == "bench_word" { "t1".to_owned() } else { issuer.token(role, "bench") };
            client.batch_execute("BEGIN")?;
            let began = Instant::now();
            client.query_one(&statement, &[&argument])?;
            let microseconds = began.elapsed().as_secs_f64() * 1e6;
            client.batch_execute("COMMIT")?;
            if number >= times / 10 {
                took.push(microseconds);
            }
        }
        bench.progress(&format!("tenant: {name}"));
        measured.push((name, took));
    }
    let base = median(&measured[0].1);
    let mut section = Section::new(
        "tenant_binding",
        "Binding a transaction, microseconds a call",
        &["", "median, with its round trip", "more than a query that does nothing", "goal"],
    );
    for (name, took) in &measured {
        let more = median(took) - base;
        section.rows.push(vec![
            (*name).to_owned(),
            figure(median(took)),
            if *name == measured[0].0 { String::new() } else { figure(more) },
            if *name == "agd.bind(token)" { "≤ 150".into() } else { String::new() },
        ]);
        section.raw[format!("{name} / us")] = raw(took);
    }
    section.notes.push(format!("{times} transactions each, a new token for each, prepared statements, unix socket."));
    Ok(section)
}
