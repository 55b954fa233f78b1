//! pgbench's TPC-B: the load of many small transactions.

use crate::report::Section;
use crate::server::{self, Session, pgbench};
use crate::stats::{figure, median, ratios, raw, spread};
use crate::variant::{Variant, per_row, turns};
use crate::{Bench, Result, machine};
use agd_live_tests::Cluster;
use serde_json::json;
use std::collections::HashMap;

const TABLES: [&str; 4] = ["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"];
const CLIENTS: [usize; 2] = [1, 8];

pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let scale: u32 = bench.options.pick(20, 5);
    let seconds: u32 = bench.options.pick(15, 1);
    let rounds = bench.options.rounds();

    bench.progress(&format!("tpcb: filling pgbench's tables at scale {scale}"));
    let main = server::start("agd")?;
    let mut variants = per_row(bench);
    fill(bench, &main, scale, &variants)?;
    // pgaudit hooks every statement of every database of its server, so it gets a server of its own.
    let audited = pgaudit_server(bench, scale)?;
    if audited.is_some() {
        variants.push(Variant::Pgaudit);
    }
    let server_of = |variant: Variant| match (&audited, variant) {
        (Some(audited), Variant::Pgaudit) => audited,
        _ => &main,
    };

    let mut tps: HashMap<(usize, &str), Vec<f64>> = HashMap::new();
    // The server's processor time, microseconds a transaction.
    let mut work: HashMap<(usize, &str), Vec<f64>> = HashMap::new();
    let mut most_waiting = 0;
    for clients in CLIENTS {
        for cluster in [Some(&main), audited.as_ref()].into_iter().flatten() {
            Session::open(cluster, "postgres")?.run("CHECKPOINT")?;
        }
        // Round 0 warms the caches and takes the first change of most pages after the checkpoint; it does not count.
        for round in 0..=rounds {
            for variant in turns(&variants, round) {
                let cluster = server_of(variant);
                let mut session = Session::open(cluster, variant.key())?;
                session.run("VACUUM pgbench_branches, pgbench_tellers")?;
                let seed = format!("--random-seed={}", round + 1);
                let processor = || machine::processor_seconds_of_server(&cluster.data_dir());
                let had = processor();
                let found = pgbench(cluster, variant.key(), clients, seconds, &[&seed])?;
                if variant == Variant::Agd {
                    let waiting: i64 = session.one("SELECT events_waiting FROM agd.stat")?;
                    most_waiting = most_waiting.max(waiting);
                }
                // Nobody's turn begins with another's work still to be done.
                variant.settle(&mut session)?;
                let took = had.zip(processor()).map(|(had, has)| (has - had) * 1e6 / (found * f64::from(seconds)));
                let counted = if round == 0 { "warm-up" } else { &format!("round {round} of {rounds}") };
                bench.progress(&format!(
                    "tpcb: {clients} client(s), {counted}, {}: {} tps",
                    variant.label(),
                    figure(found)
                ));
                if round > 0 {
                    tps.entry((clients, variant.key())).or_default().push(found);
                    work.entry((clients, variant.key())).or_default().extend(took);
                }
            }
        }
    }

    let mut section = Section::new(
        "tpcb",
        format!("pgbench TPC-B, scale {scale}"),
        &["", "1 client, tps", "of unguarded", "8 clients, tps", "of unguarded", "goal"],
    );
    for variant in &variants {
        let mut cells = vec![match variant {
            Variant::Agd => "agd, all four tables".to_owned(),
            other => other.label().to_owned(),
        }];
        for clients in CLIENTS {
            let values = &tps[&(clients, variant.key())];
            let of_base = ratios(values, &tps[&(clients, Variant::Unguarded.key())]);
            cells.push(figure(median(values)));
            cells.push(if *variant == Variant::Unguarded { String::new() } else { spread(&of_base) });
            section.raw[format!("{}_clients_{clients}_tps", variant.key())] = raw(values);
        }
        cells.push(if *variant == Variant::Agd { "≥ 0.92".into() } else { String::new() });
        section.rows.push(cells);
    }
    let mut processor = Section::new(
        "tpcb_processor",
        "The server's processor time in these rounds, µs a transaction",
        &["", "1 client", "× unguarded", "8 clients", "× unguarded"],
    );
    for variant in &variants {
        let mut cells = vec![variant.label().to_owned()];
        for clients in CLIENTS {
            let values = &work[&(clients, variant.key())];
            let of_base = ratios(values, &work[&(clients, Variant::Unguarded.key())]);
            cells.push(figure(median(values)));
            cells.push(if *variant == Variant::Unguarded { String::new() } else { spread(&of_base) });
            processor.raw[format!("{}_clients_{clients}_us", variant.key())] = raw(values);
        }
        processor.rows.push(cells);
    }
    processor.notes.push(
        "All of the server's processes together, agd's worker among them until it had nothing left to do. Neither pgbench, \
         nor the disk, nor other guests of the machine are in it."
            .into(),
    );
    section.raw["most_events_waiting"] = json!(most_waiting);
    section.notes.push(format!(
        "{rounds} rounds of {seconds} s for each, by turns, after one that does not count: `pgbench --no-vacuum -T \
         {seconds} -c N`. pgbench_history has an identity primary key in all of them."
    ));
    section.notes.push(format!(
        "agd's worker integrated and anchored throughout; when a round ended, at most {most_waiting} events waited for it."
    ));
    section.notes.push("unguarded, agd and the trigger are databases of one server, which has agd loaded.".into());
    section.notes.push(if audited.is_some() {
        "pgaudit: session log, class write, with parameters, in a server of its own; it promises no record for a commit."
            .into()
    } else {
        "pgaudit: not installed in this PostgreSQL.".into()
    });
    Ok(vec![section, processor])
}

/// pgbench's tables once, then a copy for each variant: all begin with the same bytes.
fn fill(bench: &Bench, cluster: &Cluster, scale: u32, variants: &[Variant]) -> Result<()> {
    server::create_database(cluster, "filled", None)?;
    let output = cluster.pgbench("filled", &["-i", "-q", "-s", &scale.to_string()])?;
    if !output.success {
        return Err(format!("pgbench -i: {}", output.stderr).into());
    }
    Session::open(cluster, "filled")?
        .run("ALTER TABLE pgbench_history ADD COLUMN id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY")?;
    for variant in variants {
        server::create_database(cluster, variant.key(), Some("filled"))?;
        variant.install(bench, cluster)?;
        let mut session = Session::open(cluster, variant.key())?;
        for table in TABLES {
            variant.guard(&mut session, table)?;
        }
    }
    Ok(())
}

/// None: this PostgreSQL has no pgaudit.
fn pgaudit_server(bench: &Bench, scale: u32) -> Result<Option<Cluster>> {
    let plain = server::start("")?;
    let known: bool = Session::open(&plain, "postgres")?
        .one("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pgaudit')")?;
    drop(plain);
    if !known {
        return Ok(None);
    }
    let cluster = server::start("pgaudit")?;
    fill(bench, &cluster, scale, &[Variant::Pgaudit])?;
    Ok(Some(cluster))
}
