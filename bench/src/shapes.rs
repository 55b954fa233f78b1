//! Tables that are unlike others: wide rows, large values, many partitions.

use crate::bulk::{Statement, Work, databases, rounds, table};
use crate::report::Section;
use crate::server::{self, Session};
use crate::stats::grouped;
use crate::variant::per_row;
use crate::{Bench, Result};

const WIDE_COLUMNS: usize = 60;
const PARTITIONS: usize = 64;
/// Random enough not to be compressed: 3,125 × 32 hex digits.
const LARGE_VALUE: usize = 100_000;

pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let wide: u64 = bench.options.pick(20_000, 2_000);
    let large: u64 = bench.options.pick(500, 50);
    let spread: u64 = bench.options.pick(100_000, 10_000);
    let cluster = server::start("agd")?;
    databases(bench, &cluster)?;
    for variant in per_row(bench) {
        // Made once: only the writing is to be timed, not the making of the values.
        Session::open(&cluster, variant.key())?.run(&format!(
            "CREATE TABLE large_values AS
               SELECT g AS id, 'kept' AS note,
                      (SELECT string_agg(md5((g * 10000 + i)::text), '') FROM generate_series(1, {}) i) AS value
                 FROM generate_series(1, {large}) g",
            LARGE_VALUE / 32
        ))?;
    }

    let work = [wide_rows(wide), large_values(large), partitions(spread)];
    let times = rounds(bench, &cluster, "shapes", &work)?;
    let mut section = table(bench, "shapes", "Unusual tables, µs a row".into(), &work, &times);
    section.notes.push(format!(
        "Wide: {WIDE_COLUMNS} columns of five types, {} rows. Large: {} rows with a TOASTed value of {} bytes, which \
         the UPDATE leaves as it is. Partitions: {} rows over {PARTITIONS} hash partitions, the root guarded.",
        grouped(wide),
        grouped(large),
        grouped(LARGE_VALUE as u64),
        grouped(spread)
    ));
    Ok(vec![section])
}

fn wide_rows(rows: u64) -> Work {
    let types = ["int", "text", "numeric", "timestamptz", "boolean"];
    let values =
        ["g + {}", "'text of column {}'", "g / 7.0", "timestamptz '2026-01-01' + g * interval '1 s'", "g % 2 = 0"];
    let columns: Vec<String> = (1..WIDE_COLUMNS).map(|n| format!("c{n} {}", types[n % types.len()])).collect();
    let values: Vec<String> =
        (1..WIDE_COLUMNS).map(|n| values[n % values.len()].replace("{}", &n.to_string())).collect();
    Work {
        table: format!("CREATE TABLE {{t}} (id int PRIMARY KEY, {})", columns.join(", ")),
        statements: vec![
            Statement {
                name: "INSERT, 60 columns",
                goal: "",
                rows,
                sql: format!("INSERT INTO {{t}} SELECT g, {} FROM generate_series(1, {rows}) g", values.join(", ")),
            },
            Statement { name: "UPDATE, 60 columns", goal: "", rows, sql: "UPDATE {t} SET c5 = c5 + 1".into() },
        ],
    }
}

fn large_values(rows: u64) -> Work {
    Work {
        table: "CREATE TABLE {t} (id int PRIMARY KEY, note text, value text)".into(),
        statements: vec![
            Statement {
                name: "INSERT, 100 kB value",
                goal: "",
                rows,
                sql: "INSERT INTO {t} SELECT id, note, value FROM large_values".into(),
            },
            Statement {
                name: "UPDATE beside a 100 kB value",
                goal: "",
                rows,
                sql: "UPDATE {t} SET note = 'changed'".into(),
            },
        ],
    }
}

fn partitions(rows: u64) -> Work {
    Work {
        table: format!(
            "CREATE TABLE {{t}} (id int PRIMARY KEY, customer int, amount numeric(12,2), note text) PARTITION BY HASH (id);
             DO $$ BEGIN FOR i IN 0 .. {} LOOP
               EXECUTE format('CREATE TABLE {{t}}_p%s PARTITION OF {{t}} FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER %s)', i, i);
             END LOOP; END $$",
            PARTITIONS - 1
        ),
        statements: vec![
            Statement {
                name: "INSERT, 64 partitions",
                goal: "",
                rows,
                sql: format!("INSERT INTO {{t}} SELECT g, g % 1000, g / 100.0, 'row ' || g FROM generate_series(1, {rows}) g"),
            },
            Statement { name: "UPDATE, 64 partitions", goal: "", rows, sql: "UPDATE {t} SET amount = amount + 1".into() },
        ],
    }
}
