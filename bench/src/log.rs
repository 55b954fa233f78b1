//! What happens after the commit: integration, proofs, verification inside the database and from files alone.

use crate::plot::Plot;
use crate::report::Section;
use crate::scratch::Scratch;
use crate::server::{self, Session};
use crate::stats::{figure, grouped, median, raw};
use crate::{Bench, Result, machine};
use agd_live_tests::Cluster;
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const DATABASE: &str = "log";
const LOG_NAME: &str = "bench.example/log";
/// The log grows by at most so many events in one transaction.
const GROWTH: u64 = 1_000_000;
/// So many events are integrated while the time is taken: enough to be measured, few beside those that are there.
fn batch(size: u64) -> u64 {
    (size / 2).clamp(10_000, 100_000)
}
/// Rows that one of the small transactions writes.
const SMALL: u64 = 4;
/// So many proofs are asked for.
const PROOFS: i64 = 300;

pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let cluster = server::start("agd")?;
    server::create_database(&cluster, DATABASE, None)?;
    let mut session = Session::open(&cluster, DATABASE)?;
    session.run(&format!(
        "SET agd.log_name = '{LOG_NAME}';
         CREATE EXTENSION agd;
         CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int, amount numeric(12,2), note text);
         SELECT agd.guard('t')"
    ))?;
    let growth = growth(bench, &cluster, &mut session)?;
    let verification = verification(bench, &cluster, &mut session)?;
    Ok(vec![growth, verification])
}

// ------------------------------------------------------------------------------------------------ integration, proofs

fn growth(bench: &Bench, cluster: &Cluster, session: &mut Session) -> Result<Section> {
    let last = bench.options.events();
    let mut sizes: Vec<u64> =
        std::iter::successors(Some(10_000), |size| Some(size * 10)).take_while(|n| *n < last).collect();
    sizes.push(last);

    let mut section = Section::new(
        "log",
        "The log as it grows: integration (sequencer and anchors), inclusion proofs",
        &[
            "log size, events",
            "events/s, one transaction",
            "a processor second",
            "events/s, small transactions",
            "a processor second",
            "goal",
            "proof, ms",
            "goal",
            "log, bytes an event",
            "goal",
        ],
    );
    let (mut one, mut several, mut proving) = (Vec::new(), Vec::new(), Vec::new());
    for size in sizes {
        let now = grow(bench, session, size)?;
        let batch = batch(size);
        let (mut large, mut small) = (Rates::default(), Rates::default());
        for _ in 0..bench.options.pick(3, 1) {
            integrate(cluster, session, &rows(batch), &mut large)?;
            // Written as fast as possible: what is measured is the reading of their records.
            let many =
                format!("DO $$ BEGIN FOR i IN 1 .. {} LOOP {}; COMMIT; END LOOP; END $$", batch / SMALL, rows(SMALL));
            integrate(cluster, session, &many, &mut small)?;
        }
        let proofs = proof_times(session)?;
        bench.progress(&format!(
            "log: at {} events, integration {} and {} events/s; proof, ms: {}",
            grouped(now),
            figure(median(&large.by_the_clock)),
            figure(median(&small.by_the_clock)),
            milliseconds(&proofs)
        ));
        section.rows.push(vec![
            grouped(now),
            figure(median(&large.by_the_clock)),
            figure(median(&large.a_processor_second)),
            figure(median(&small.by_the_clock)),
            figure(median(&small.a_processor_second)),
            "≥ 250,000".into(),
            milliseconds(&proofs),
            "≤ 1".into(),
            format!("{:.1}", bytes_per_event(session)?),
            "≤ 60".into(),
        ]);
        one.push((now as f64, median(&large.by_the_clock)));
        several.push((now as f64, median(&small.by_the_clock)));
        if !proofs.is_empty() {
            proving.push((now as f64, median(&proofs)));
        }
        for (name, rates) in [("one_transaction", &large), ("small_transactions", &small)] {
            section.raw[format!("at {now} / {name} / events_per_s")] = raw(&rates.by_the_clock);
            section.raw[format!("at {now} / {name} / events_per_processor_s")] = raw(&rates.a_processor_second);
        }
        section.raw[format!("at {now} / inclusion_proof_ms")] = raw(&proofs);
    }
    section.plots = vec![
        Plot {
            name: "integration".into(),
            title: "Integration as the log grows".into(),
            unit: "events/s".into(),
            goal: Some(250_000.0),
            curves: vec![("one transaction".into(), one), (format!("transactions of {SMALL} events"), several)],
        },
        Plot {
            name: "proof".into(),
            title: "agd.inclusion_proof() as the log grows".into(),
            unit: "milliseconds".into(),
            goal: Some(1.0),
            curves: vec![("median".into(), proving)],
        },
    ];
    section.notes.push(format!(
        "At each size {} to {} events wait while a lock holds the worker back; timed is from the lock's release until \
         agd.anchor() returns, with all of them in leaves, tiles and anchors, and on disk. Small transactions: {SMALL} \
         events each. A processor second is one of the worker's: neither the disk nor other guests of the machine are in it.",
        grouped(batch(0)),
        grouped(batch(u64::MAX))
    ));
    section.notes.push(format!(
        "Proof: median of {PROOFS} calls of agd.inclusion_proof() for events of any age, half of them of large \
         transactions and half of small ones, the way to the client included. The goal is for 10 M events (--events \
         10000000); integration should be as fast there as at 10 k."
    ));
    Ok(section)
}

fn rows(number: u64) -> String {
    format!(
        "INSERT INTO t (customer, amount, note) SELECT g % 1000, g / 100.0, 'row ' || g FROM generate_series(1, {number}) g"
    )
}

fn milliseconds(times: &[f64]) -> String {
    format!("{:.2}", median(times))
}

/// What the log takes on disk beyond the events and their transactions.
fn bytes_per_event(session: &mut Session) -> Result<f64> {
    session.one(
        "SELECT (pg_catalog.sum(pg_catalog.pg_total_relation_size(c.oid))
                   / (SELECT pg_catalog.sum(l.size) FROM agd.log l))::float8
           FROM pg_catalog.pg_class c
          WHERE c.oid IN ('agd.log'::regclass, 'agd.tile'::regclass, 'agd.checkpoint'::regclass, 'agd.sequencer'::regclass)",
    )
}

/// Leaves of all logs together.
fn size(session: &mut Session) -> Result<u64> {
    let size: i64 = session.one("SELECT pg_catalog.sum(size)::bigint FROM agd.log")?;
    Ok(size.unsigned_abs())
}

/// Lets the log grow to `wanted` events or a little more; returns its size.
fn grow(bench: &Bench, session: &mut Session, wanted: u64) -> Result<u64> {
    session.anchor()?;
    let mut now = size(session)?;
    while now < wanted {
        session.run(&rows((wanted - now).min(GROWTH)))?;
        session.anchor()?;
        now = size(session)?;
        bench.progress(&format!("log: {} of {} events", grouped(now), grouped(wanted)));
    }
    // Hint bits and the map of visible pages, as autovacuum would have set them by then.
    session.run("VACUUM agd.event, agd.transaction, agd.tile")?;
    session.run("CHECKPOINT")?;
    Ok(now)
}

/// Events integrated a second, one figure a round.
#[derive(Default)]
struct Rates {
    by_the_clock: Vec<f64>,
    a_processor_second: Vec<f64>,
}

/// Measures one round: `write` is done while the worker is held back, then the worker is let go.
fn integrate(cluster: &Cluster, session: &mut Session, write: &str, rates: &mut Rates) -> Result<()> {
    session.anchor()?;
    let before = size(session)?;
    let mut gate = Session::open(cluster, DATABASE)?;
    gate.run("BEGIN; LOCK TABLE agd.sequencer IN ACCESS EXCLUSIVE MODE")?;
    session.run("SET synchronous_commit = off")?;
    session.run(write)?;
    session.run("RESET synchronous_commit")?;
    let worker: i32 = session.one(
        "SELECT pid FROM pg_catalog.pg_stat_activity WHERE backend_type = 'agd worker' AND datname = current_database()",
    )?;
    let processor = || machine::processor_seconds(worker.unsigned_abs());
    let (start, had) = (Instant::now(), processor());
    gate.run("COMMIT")?;
    session.anchor()?;
    let (seconds, took) = (start.elapsed().as_secs_f64(), had.zip(processor()).map(|(had, has)| has - had));
    let events = (size(session)? - before) as f64;
    rates.by_the_clock.push(events / seconds);
    rates.a_processor_second.extend(took.map(|took| events / took));
    Ok(())
}

/// Milliseconds for each of some proofs.
fn proof_times(session: &mut Session) -> Result<Vec<f64>> {
    // Of large transactions and of small ones: their events are found in different ways.
    let events: Vec<String> = session.column(
        "SELECT event FROM (
           (SELECT t.xact_id::text || '-' || pg_catalog.floor(pg_catalog.random() * t.events)::int AS event
              FROM agd.transaction t CROSS JOIN LATERAL pg_catalog.generate_series(1, $1::bigint)
             WHERE t.events >= 1000 ORDER BY pg_catalog.random() LIMIT $1 / 2)
           UNION ALL
           (SELECT t.xact_id::text || '-' || pg_catalog.floor(pg_catalog.random() * t.events)::int
              FROM agd.transaction t WHERE t.events = $2 ORDER BY pg_catalog.random() LIMIT $1 / 2)) e
          ORDER BY pg_catalog.random()",
        &[&PROOFS, &(SMALL as i32)],
    )?;
    let mut times = Vec::new();
    for event in &events {
        let start = Instant::now();
        let origins: Vec<String> = session.column("SELECT origin FROM agd.inclusion_proof($1)", &[event])?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
        if origins.len() != 1 {
            return Err(format!("no inclusion proof for event {event}").into());
        }
    }
    if times.is_empty() { Err("there is no event to prove".into()) } else { Ok(times) }
}

// -------------------------------------------------------------------------------------------------------- verification

fn verification(bench: &Bench, cluster: &Cluster, session: &mut Session) -> Result<Section> {
    let store = bench.cli.as_deref().map(|cli| Store::prepare(bench, cli, session)).transpose()?;
    session.anchor()?;
    let entries = size(session)?;
    let mut section = Section::new(
        "verification",
        format!("Verification of {} events", grouped(entries)),
        &["", "seconds", "events/s", "events a processor second", "goal"],
    );
    let mut add = |key: &str, name: &str, took: &Took, goal: &str| {
        let rates = |seconds: &[f64]| seconds.iter().map(|seconds| entries as f64 / seconds).collect::<Vec<f64>>();
        let (clock, processor) = (rates(&took.seconds), rates(&took.processor));
        section.rows.push(vec![
            name.to_owned(),
            figure(median(&took.seconds)),
            figure(median(&clock)),
            figure(median(&processor)),
            goal.to_owned(),
        ]);
        section.raw[key] = json!({
            "entries": entries, "seconds": raw(&took.seconds), "per_s": raw(&clock), "per_processor_s": raw(&processor),
        });
        bench.progress(&format!("log: {name}: {:.1} s", median(&took.seconds)));
    };

    let backend: i32 = session.one("SELECT pg_catalog.pg_backend_pid()")?;
    let processor = || machine::processor_seconds(backend.unsigned_abs());
    let mut inside = Took::default();
    let (start, had) = (Instant::now(), processor());
    let wrong: Vec<String> = session.column(
        "SELECT check_name || ': ' || coalesce(detail, '') FROM agd.verify(full_scan => true) WHERE NOT ok",
        &[],
    )?;
    inside.push(start.elapsed().as_secs_f64(), had.zip(processor()));
    add("agd_verify_sql", "agd.verify(full_scan => true)", &inside, "≥ 300,000");

    let mut notes = Vec::new();
    if !wrong.is_empty() {
        return Err(format!("agd.verify() found something wrong: {}", wrong.join("; ")).into());
    }
    match store {
        None => notes.push("`agd publish` and `agd verify` were not measured: AGD_CLI names no program.".into()),
        Some(store) => {
            let (mut published, mut all, mut one) = (Took::default(), Took::default(), Took::default());
            store.publish(cluster, &mut published)?;
            add("agd_publish", "agd publish --once", &published, "≥ 50,000");
            for _ in 0..bench.options.pick(3, 1) {
                store.verify(entries, false, &mut all)?;
                store.verify(entries, true, &mut one)?;
            }
            add("agd_verify_all_cores", &format!("agd verify, {} cores", machine::cores()), &all, "");
            add("agd_verify_one_core", "agd verify, one core", &one, "≥ 1,000,000");
            notes.push(
                "agd publish and agd verify: the whole process, files in the page cache; flushing the store is in publish. \
                 A processor second is one of the backend's or the process's."
                    .into(),
            );
        }
    }
    section.notes = notes;
    Ok(section)
}

/// What something took, one figure a round: seconds by the clock, and of a processor where the system tells them.
#[derive(Default)]
struct Took {
    seconds: Vec<f64>,
    processor: Vec<f64>,
}

impl Took {
    /// `processor`: what it had had before, and what it has had now.
    fn push(&mut self, seconds: f64, processor: Option<(f64, f64)>) {
        self.seconds.push(seconds);
        self.processor.extend(processor.map(|(had, has)| has - had));
    }
}

/// The command line with a key, a policy and a store.
struct Store<'b> {
    scratch: &'b Scratch,
    cli: &'b Path,
}

impl<'b> Store<'b> {
    /// With its key registered.
    fn prepare(bench: &'b Bench, cli: &'b Path, session: &mut Session) -> Result<Self> {
        let store = Self { scratch: &bench.scratch, cli };
        let vkey = store.run(&["keygen", "--out", "log.key", "--name", LOG_NAME])?;
        session.run(&format!("SELECT agd.register_log_key('{}')", vkey.trim()))?;
        bench.scratch.write("policy.txt", &format!("log {}\nquorum none\n", vkey.trim()))?;
        std::fs::create_dir(bench.scratch.path("store"))?;
        Ok(store)
    }

    /// Publishes everything into the empty store.
    fn publish(&self, cluster: &Cluster, took: &mut Took) -> Result<()> {
        let database = format!("host={} user=postgres dbname={DATABASE}", cluster.socket_dir().display());
        self.timed(&["publish", "--once", "--database", &database, "--store", "store", "--key", "log.key"], took)?;
        Ok(())
    }

    /// Verifies the store, in which it must find every entry.
    fn verify(&self, entries: u64, one_core: bool, took: &mut Took) -> Result<()> {
        let mut verify = || self.timed(&["verify", "store", "--policy", "policy.txt", "--json"], took);
        let said = if one_core { machine::on_one_core(verify)?? } else { verify()? };
        let report: Value = serde_json::from_str(&said)?;
        let found: u64 = report["logs"].as_array().into_iter().flatten().filter_map(|log| log["size"].as_u64()).sum();
        if found != entries {
            return Err(format!("agd verify found {found} entries, not {entries}").into());
        }
        Ok(())
    }

    fn timed(&self, arguments: &[&str], took: &mut Took) -> Result<String> {
        let (start, had) = (Instant::now(), machine::processor_seconds_of_children());
        let said = self.run(arguments)?;
        took.push(start.elapsed().as_secs_f64(), had.zip(machine::processor_seconds_of_children()));
        Ok(said)
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output =
            Command::new(self.cli).args(arguments).current_dir(self.scratch.path("")).stdin(Stdio::null()).output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("agd {}: {}", arguments.join(" "), said.trim()).into());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
