//! Statements over many rows of eight columns.

use crate::report::Section;
use crate::server::{self, Session};
use crate::stats::{figure, grouped, median, ratios, raw, spread};
use crate::variant::{Variant, per_row, turns};
use crate::{Bench, Result};
use agd_live_tests::Cluster;
use std::collections::HashMap;

/// One statement to be timed, in every variant.
pub struct Statement {
    /// What the report calls it.
    pub name: &'static str,
    /// The goal beside it, or nothing.
    pub goal: &'static str,
    /// How many rows it writes.
    pub rows: u64,
    /// The statement; `{t}` stands for the table.
    pub sql: String,
}

/// Tables of one kind and what is done to them, in this order, in a fresh table each round.
pub struct Work {
    /// CREATE TABLE and what belongs to it; `{t}` stands for the table.
    pub table: String,
    /// What is timed.
    pub statements: Vec<Statement>,
}

/// Microseconds a row, by statement and variant, round by round.
pub type Times = HashMap<(&'static str, &'static str), Vec<f64>>;

const EIGHT_COLUMNS: &str = "CREATE TABLE {t} (
  id bigint PRIMARY KEY, customer int NOT NULL, status text NOT NULL, amount numeric(12,2) NOT NULL,
  quantity int NOT NULL, placed timestamptz NOT NULL, note text, open boolean NOT NULL)";

fn eight_columns(rows: u64) -> String {
    format!(
        "SELECT g, g % 1000, (ARRAY['new', 'paid', 'sent', 'done'])[g % 4 + 1], (g % 100000) / 100.0, g % 10,
                timestamptz '2026-01-01' + g * interval '1 second', 'order number ' || g, g % 2 = 0
           FROM generate_series(1, {rows}) g"
    )
}

pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let rows: u64 = bench.options.pick(200_000, 20_000);
    let cluster = server::start("agd")?;
    databases(bench, &cluster)?;
    // Read by the server itself, so that no client's time is in it.
    let file = cluster.socket_dir().join("rows.copy").to_string_lossy().replace('\'', "''");
    Session::open(&cluster, Variant::Unguarded.key())?.run(&format!("COPY ({}) TO '{file}'", eight_columns(rows)))?;

    let statement = |name, goal, sql: String| Statement { name, goal, rows, sql };
    let work = [
        Work {
            table: EIGHT_COLUMNS.into(),
            statements: vec![
                statement("INSERT … SELECT", "≤ 2.2", format!("INSERT INTO {{t}} {}", eight_columns(rows))),
                statement("UPDATE of all", "", "UPDATE {t} SET amount = amount + 1, status = 'paid'".into()),
                statement("DELETE of all", "", "DELETE FROM {t}".into()),
            ],
        },
        Work {
            table: EIGHT_COLUMNS.into(),
            statements: vec![statement("COPY FROM", "", format!("COPY {{t}} FROM '{file}'"))],
        },
    ];
    let times = rounds(bench, &cluster, "bulk", &work)?;
    let mut section = table(bench, "bulk", format!("{} rows of 8 columns, µs a row", grouped(rows)), &work, &times);
    section.notes.push(
        "Time of the writer, commit included; each statement is one transaction. agd's worker had nothing left to do when \
         a statement began: what integration costs is in the table of the log."
            .into(),
    );
    if bench.options.supa_audit.is_some() {
        section.notes.push("supa_audit: its INSERT … SELECT is to take at least 12 times as long as agd's.".into());
    }
    Ok(vec![section])
}

/// A database for each variant.
pub fn databases(bench: &Bench, cluster: &Cluster) -> Result<()> {
    for variant in per_row(bench) {
        server::create_database(cluster, variant.key(), None)?;
        variant.install(bench, cluster)?;
    }
    Ok(())
}

/// Does all the work, variants by turns.
pub fn rounds(bench: &Bench, cluster: &Cluster, group: &str, work: &[Work]) -> Result<Times> {
    let mut times = Times::new();
    let rounds = bench.options.rounds();
    // Round 0 does not count: it fills caches and grows files.
    for round in 0..=rounds {
        for variant in turns(&per_row(bench), round) {
            let mut session = Session::open(cluster, variant.key())?;
            session.run("CHECKPOINT")?;
            for (number, work) in work.iter().enumerate() {
                let table = format!("t{number}_{round}");
                session.run(&work.table.replace("{t}", &table))?;
                variant.guard(&mut session, &table)?;
                for statement in &work.statements {
                    variant.settle(&mut session)?;
                    let took = session.time(&statement.sql.replace("{t}", &table))?;
                    if round > 0 {
                        let times = times.entry((statement.name, variant.key())).or_default();
                        times.push(took.as_secs_f64() * 1e6 / statement.rows as f64);
                    }
                }
            }
            variant.settle(&mut session)?;
            let counted = if round == 0 { "warm-up".into() } else { format!("round {round} of {rounds}") };
            bench.progress(&format!("{group}: {counted}, {}", variant.label()));
        }
    }
    Ok(times)
}

/// What a variant is compared with, and the heading for it: what agd costs, and how much faster it is than supa_audit.
fn base_of(variant: Variant) -> (Variant, &'static str) {
    if variant == Variant::SupaAudit { (Variant::Agd, "× agd") } else { (Variant::Unguarded, "× unguarded") }
}

/// A row for each statement, variants side by side.
pub fn table(bench: &Bench, key: &'static str, title: String, work: &[Work], times: &Times) -> Section {
    let mut columns = vec!["µs a row"];
    let variants = per_row(bench);
    for variant in &variants {
        columns.push(variant.label());
        if *variant != Variant::Unguarded {
            columns.push(base_of(*variant).1);
        }
    }
    columns.push("goal for agd");
    let mut section = Section::new(key, title, &columns);
    for statement in work.iter().flat_map(|work| &work.statements) {
        let mut cells = vec![statement.name.to_owned()];
        for variant in &variants {
            let values = &times[&(statement.name, variant.key())];
            cells.push(figure(median(values)));
            if *variant != Variant::Unguarded {
                cells.push(spread(&ratios(values, &times[&(statement.name, base_of(*variant).0.key())])));
            }
            section.raw[format!("{} / {} / us_per_row", statement.name, variant.key())] = raw(values);
        }
        cells.push(statement.goal.to_owned());
        section.rows.push(cells);
    }
    section
}
