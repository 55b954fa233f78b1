//! Transactions, and what takes more than one plain statement: COPY, WITH, cursors, prepared statements, blocks.

use super::random::Random;
use super::schema::{Column, Identity, Model, Role, k_for};
use super::script::{End, Mode, SENT_TOGETHER, Statement, Step, Text, Transaction};
use super::trigger::small_write;
use super::write::{Place, any_table, condition, row, some_id, write, write_in_with, write_to};

/// The program's transactions.
pub fn transactions(random: &mut Random, model: &Model) -> Vec<Transaction> {
    (0..random.between(2, 5)).map(|_| transaction(random, model)).collect()
}

fn transaction(random: &mut Random, model: &Model) -> Transaction {
    let mode = *random.weighted(&[(4, Mode::Autocommit), (3, Mode::Block), (4, Mode::KeepGoing)]);
    let end = *random.weighted(&[
        (10, End::Commit),
        (1, End::CommitAndChain),
        (3, End::Rollback),
        (2, End::CommitPrepared),
        (1, End::RollbackPrepared),
    ]);
    let begin = *random.weighted(&[
        (7, "BEGIN"),
        (1, "BEGIN ISOLATION LEVEL REPEATABLE READ"),
        (1, "BEGIN ISOLATION LEVEL SERIALIZABLE"),
    ]);
    let mut statements = Vec::new();
    if mode != Mode::Autocommit && random.chance(20) {
        let setting = *random.pick(&[
            "SET LOCAL DateStyle = 'German'",
            "SET LOCAL TimeZone = 'Asia/Kathmandu'",
            "SET LOCAL extra_float_digits = -15",
            "SET LOCAL bytea_output = 'escape'",
            "SET LOCAL IntervalStyle = 'iso_8601'",
            "SET LOCAL session_replication_role = 'replica'",
            "SET CONSTRAINTS ALL DEFERRED",
            "SET CONSTRAINTS ALL IMMEDIATE",
        ]);
        statements.push(plain("SET", setting.into()));
    }
    // Names of savepoints that are open, as far as can be told.
    let mut savepoints: Vec<&str> = Vec::new();
    for _ in 0..random.between(1, 5) {
        if mode != Mode::Autocommit && random.chance(22) {
            statements.push(savepoint(random, &mut savepoints));
        }
        statements.push(statement(random, model, mode));
    }
    if let Some(last) = savepoints.last()
        && random.chance(50)
    {
        statements.push(plain("ROLLBACK TO", format!("ROLLBACK TO {last}").into()));
        statements.push(statement(random, model, mode));
    }
    Transaction { mode, begin: begin.to_owned(), statements, end }
}

fn plain(kind: &'static str, sql: Text) -> Statement {
    Statement { kind, steps: vec![Step::Sql(sql)] }
}

fn savepoint(random: &mut Random, open: &mut Vec<&'static str>) -> Statement {
    if open.is_empty() || random.chance(45) {
        let name = *random.pick(&["s1", "s2", "s3"]);
        open.push(name);
        return plain("SAVEPOINT", format!("SAVEPOINT {name}").into());
    }
    let position = random.below(open.len());
    let name = open[position];
    if random.chance(40) {
        open.truncate(position);
        plain("RELEASE", format!("RELEASE {name}").into())
    } else {
        open.truncate(position + 1);
        plain("ROLLBACK TO", format!("ROLLBACK TO {name}").into())
    }
}

fn statement(random: &mut Random, model: &Model, mode: Mode) -> Statement {
    match random.below(100) {
        0..=61 => {
            let (kind, sql) = write(random, model, Place::Top);
            plain(kind, sql)
        }
        62..=68 => copy(random, model),
        69..=76 => with(random, model),
        77..=82 => block(random, model, mode),
        83..=85 => prepared(random, model),
        86..=89 if mode != Mode::Autocommit => cursor(random, model),
        86..=89 => sent_together(random, model),
        90..=94 => calls(random, model),
        95..=96 => truncate(random, model),
        _ => fails(random, model),
    }
}

/// The text of a value in COPY's text format.
fn copy_text(value: &str) -> String {
    let mut out = String::new();
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            other => out.push(other),
        }
    }
    out
}

fn copy(random: &mut Random, model: &Model) -> Statement {
    let table = any_table(random, model);
    // With `id`: where rows fail, PostgreSQL takes sequence numbers for a batch or for one row, by the triggers there are.
    let columns: Vec<&Column> = table.writable().collect();
    let csv = random.chance(45);
    let into = if !table.leaves.is_empty() && random.chance(15) { random.pick(&table.leaves) } else { &table.name };
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let filter = if random.chance(20) { " WHERE id % 2 = 0" } else { "" };
    let format = if csv { "(FORMAT csv, NULL '~')" } else { "(FORMAT text)" };
    let sql = format!("COPY {into} ({}) FROM STDIN {format}{filter}", names.join(", "));
    let lines: Vec<String> = (0..*random.weighted(&[(2, 1), (4, 3), (2, 6), (1, 30)]))
        .map(|_| {
            let id = if random.chance(90) { random.between(8, 2500) } else { some_id(random) };
            let parent = random.between(1, 5);
            let values: Vec<String> = columns
                .iter()
                .map(|column| {
                    let value = match column.role {
                        Role::Id => Some(id.to_string()),
                        Role::K => Some(k_for(random, id).to_string()),
                        Role::RefId => Some(parent.to_string()),
                        Role::RefK => Some((parent % 3 + 1).to_string()),
                        _ if !column.not_null && random.chance(10) => None,
                        _ if random.chance(1) => Some("?".into()),
                        _ => Some(column.kind.value(random)),
                    };
                    match (value, csv) {
                        (None, true) => "~".to_owned(),
                        (None, false) => "\\N".to_owned(),
                        (Some(value), true) => format!("\"{}\"", value.replace('"', "\"\"")),
                        (Some(value), false) => copy_text(&value),
                    }
                })
                .collect();
            values.join(if csv { "," } else { "\t" }) + "\n"
        })
        .collect();
    Statement {
        kind: if csv { "COPY csv" } else { "COPY" },
        steps: vec![Step::Copy(sql, Text::default().list("", lines))],
    }
}

/// WITH parts that write, one table twice as often as not.
fn with(random: &mut Random, model: &Model) -> Statement {
    let table = any_table(random, model);
    let mut parts = Vec::new();
    for number in 0..random.between(1, 3) {
        let part_table = if random.chance(65) { table } else { any_table(random, model) };
        let (_, sql) = write_in_with(random, model, part_table);
        // "w" where the table has an alias.
        parts.push(Text::from(format!("p{number} AS (")).with(sql).then(" RETURNING 1 AS one)"));
    }
    let head = Text::from("WITH ").list(", ", parts);
    let sql = if random.chance(35) {
        head.then(" SELECT count(*) FROM p0")
    } else {
        let (_, last) = write_to(random, model, table, Place::Inside);
        head.then(" ").with(last)
    };
    plain("WITH that writes", sql)
}

/// DO, with a part whose failure is caught; outside of a block now and then with COMMIT and ROLLBACK in its middle.
fn block(random: &mut Random, model: &Model, mode: Mode) -> Statement {
    let inside = |random: &mut Random| write(random, model, Place::Inside).1.then(";");
    if mode == Mode::Autocommit && random.chance(35) {
        let mut items = Vec::new();
        for _ in 0..random.between(2, 4) {
            items.push(inside(random));
            if random.chance(60) {
                items.push((*random.pick(&["COMMIT;", "ROLLBACK;"])).into());
            }
        }
        let sql = Text::from("DO $agd$ BEGIN ").list("\n", items).then(" END $agd$");
        return plain("DO with COMMIT", sql);
    }
    let before = inside(random);
    let mut tried: Vec<Text> = (0..random.between(1, 3)).map(|_| inside(random)).collect();
    if random.chance(40) {
        tried.push("PERFORM 1 / 0;".into());
    }
    let handler = inside(random);
    let sql = match random.below(3) {
        0 => Text::from("DO $agd$ BEGIN ")
            .optional(before)
            .then("\nBEGIN ")
            .list("\n", tried)
            .then("\nEXCEPTION WHEN OTHERS THEN ")
            .optional(handler)
            .then(" NULL; END; END $agd$"),
        1 => {
            let table = any_table(random, model);
            let write = small_write(random, table, "n");
            Text::from(format!(
                "DO $agd$ BEGIN FOR n IN 1..{} LOOP BEGIN {write}; IF n % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
                 EXCEPTION WHEN raise_exception THEN ",
                random.between(2, 8)
            ))
            .optional(handler)
            .then(" NULL; END; END LOOP; END $agd$")
        }
        _ => Text::from("DO $agd$ BEGIN ").list("\n", tried).then("\nEND $agd$"),
    };
    plain("DO", sql)
}

fn prepared(random: &mut Random, model: &Model) -> Statement {
    let table = any_table(random, model);
    let data: Vec<&Column> = table.with_role(Role::Data).collect();
    let column = random.pick(&data);
    let body = match random.below(3) {
        0 => format!(
            "UPDATE {} SET {} = {} WHERE id = $1",
            table.name,
            column.name,
            column.kind.touched(random, &column.name)
        ),
        1 => format!("DELETE FROM {} WHERE id = $1", table.name),
        _ => small_write(random, table, "$1"),
    };
    let mut steps = vec![Step::Sql(format!("PREPARE p (int) AS {body}").into())];
    // More often than it takes until the plan is made once for all.
    for _ in 0..random.between(1, 8) {
        steps.push(Step::Sql(format!("EXECUTE p ({})", random.between(1, 12)).into()));
    }
    steps.push(Step::Sql("DEALLOCATE p".into()));
    Statement { kind: "PREPARE and EXECUTE", steps }
}

fn cursor(random: &mut Random, model: &Model) -> Statement {
    let table = any_table(random, model);
    let data: Vec<&Column> = table.with_role(Role::Data).collect();
    let lock = random.pick(&["", " FOR UPDATE"]);
    let sql = format!("DECLARE c CURSOR FOR SELECT * FROM {} WHERE {}{lock}", table.name, condition(random, table, ""));
    let mut steps = vec![Step::Sql(sql.into())];
    for _ in 0..random.between(1, 3) {
        steps.push(Step::Sql("FETCH 1 FROM c".into()));
        let column = random.pick(&data);
        steps.push(Step::Sql(
            match random.below(4) {
                0 => format!("DELETE FROM {} WHERE CURRENT OF c", table.name),
                1 => format!("UPDATE {} SET id = id + 40 WHERE CURRENT OF c", table.name),
                _ => format!(
                    "UPDATE {} SET {} = {} WHERE CURRENT OF c",
                    table.name,
                    column.name,
                    column.kind.touched(random, &column.name)
                ),
            }
            .into(),
        ));
    }
    if random.chance(30) {
        let (_, sql) = write_to(random, model, table, Place::Top);
        steps.push(Step::Sql(sql));
        steps.push(Step::Sql("FETCH ALL FROM c".into()));
    }
    steps.push(Step::Sql("CLOSE c".into()));
    Statement { kind: "cursor", steps }
}

/// Several statements in one message: one transaction, without BEGIN.
fn sent_together(random: &mut Random, model: &Model) -> Statement {
    let statements: Vec<Text> = (0..random.between(2, 4)).map(|_| write(random, model, Place::Top).1).collect();
    plain("sent together", Text::default().list(SENT_TOGETHER, statements))
}

/// Functions that write, in queries that write or read.
fn calls(random: &mut Random, model: &Model) -> Statement {
    let table = any_table(random, model);
    let data: Vec<&Column> = table.with_role(Role::Data).collect();
    let column = random.pick(&data);
    let columns: Vec<&Column> = table.writable().collect();
    let function = random.pick(&["nest", "try_nest"]);
    let sql = match random.below(6) {
        0 => format!("SELECT {function}(i) FROM generate_series(1, {}) i", random.between(1, 6)),
        1 => format!("SELECT nest_rows({}) LIMIT 1", some_id(random)),
        2 => format!(
            "SELECT x FROM {} t, LATERAL nest_rows(t.id + 1) x WHERE {}",
            table.name,
            condition(random, table, "t.")
        ),
        3 => format!(
            "UPDATE {} SET {} = {} WHERE {function}(id) < {}",
            table.name,
            column.name,
            column.kind.touched(random, &column.name),
            random.between(2, 8)
        ),
        4 => format!("DELETE FROM {} WHERE id IN (SELECT nest_rows({}))", table.name, some_id(random)),
        _ => {
            let id = random.between(20, 90);
            let overriding = if table.identity == Identity::Always { " OVERRIDING SYSTEM VALUE" } else { "" };
            let values: Vec<String> = row(random, &columns, id)
                .into_iter()
                .zip(&columns)
                .map(|(value, column)| if column.role == Role::Id { format!("{function}({id})") } else { value })
                .collect();
            let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
            format!(
                "INSERT INTO {} ({}){overriding} VALUES ({}) ON CONFLICT DO NOTHING",
                table.name,
                names.join(", "),
                values.join(", ")
            )
        }
    };
    plain("functions that write", sql.into())
}

fn truncate(random: &mut Random, model: &Model) -> Statement {
    match model.tables.iter().find(|table| table.record_truncate) {
        Some(table) => {
            let restart = random.pick(&["", " RESTART IDENTITY", " CASCADE"]);
            plain("TRUNCATE", format!("TRUNCATE {}{restart}", table.name).into())
        }
        None => {
            let (kind, sql) = write(random, model, Place::Top);
            plain(kind, sql)
        }
    }
}

/// Statements that cannot succeed, or only where nothing is hit.
fn fails(random: &mut Random, model: &Model) -> Statement {
    let table = any_table(random, model);
    let data: Vec<&Column> = table.with_role(Role::Data).collect();
    let column = random.pick(&data);
    let (kind, sql) = match random.below(4) {
        0 => ("division by zero", format!("UPDATE {} SET id = id + 0 / (id - {})", table.name, random.between(1, 5))),
        1 => ("NULL key", format!("UPDATE {} SET id = NULL WHERE {}", table.name, condition(random, table, ""))),
        2 => ("no such column", format!("UPDATE {} SET nothing = 1", table.name)),
        _ => (
            "UPDATE from a failing query",
            format!(
                "UPDATE {} SET {} = {} WHERE id > 1 / (SELECT count(*) - 3 FROM {})",
                table.name,
                column.name,
                column.kind.touched(random, &column.name),
                table.name
            ),
        ),
    };
    plain(kind, sql.into())
}
