//! Tampering is found, and blamed on what was tampered with. The tamperer is a superuser who goes past every trigger, straight
//! to the catalog. Each case says exactly which checks of `agd.verify()` fail and what they name; all others must hold.

use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Cluster, TestDb};
use postgres::Client;
use std::collections::BTreeSet;
use std::sync::OnceLock;

/// Each its own transaction. In the platform log two guards, 700 inserts, 100 updates and 50 deletes, and the tenants'
/// checkpoints; in acme's 300 inserts, in zeta's 20.
const SETUP: [&str; 6] = [
    "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric);
     CREATE TABLE mine (tenant text, id int, v text, PRIMARY KEY (tenant, id));
     SELECT agd.create_tenant('acme'); SELECT agd.create_tenant('zeta')",
    "SELECT agd.guard('t'); SELECT agd.guard('mine', tenant_column => 'tenant')",
    "INSERT INTO mine SELECT 'acme', i, 'v' FROM generate_series(1, 300) i",
    "INSERT INTO mine SELECT 'zeta', i, 'v' FROM generate_series(1, 20) i",
    "INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 700) i",
    "SELECT agd.set_cause('spring cleaning'); UPDATE t SET v = 'w' WHERE id <= 100; DELETE FROM t WHERE id BETWEEN 51 AND 100",
];

/// Switches every trigger off that could be in the way (not by ALTER TABLE, which agd refuses), within the transaction.
const TRIGGERS_OFF: &str = "SET LOCAL allow_system_table_mods = on;
    UPDATE pg_class SET relhastriggers = false
     WHERE relkind = 'r' AND relhastriggers AND relnamespace IN ('agd'::regnamespace, 'public'::regnamespace)";
const TRIGGERS_ON: &str = "UPDATE pg_class c SET relhastriggers = true
     WHERE relkind = 'r' AND NOT relhastriggers AND relnamespace IN ('agd'::regnamespace, 'public'::regnamespace)
       AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid)";

/// A check that failed: `check@log`, where the log is `platform`, a tenant's name or `database`; and what it said.
type Failure = (String, String);

fn failures(client: &mut Client, arguments: &str) -> Vec<Failure> {
    let sql = format!("SELECT origin, check_name, ok, detail FROM agd.verify({arguments})");
    let rows = client.query(&sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    assert!(!rows.is_empty());
    rows.iter()
        .filter(|row| !row.get::<_, bool>(2))
        .map(|row| {
            let (origin, check): (String, String) = (row.get(0), row.get(1));
            let log = match origin.rsplit_once("/t/") {
                Some((_, tenant)) => tenant,
                None if origin == "(database)" => "database",
                None => "platform",
            };
            (format!("{check}@{log}"), row.get(3))
        })
        .collect()
}

/// The failures must be these, each saying something that contains the text after the colon.
fn compare(found: &[Failure], expected: &[&str]) -> Result<(), String> {
    let expected: Vec<(&str, &str)> =
        expected.iter().map(|line| line.split_once(": ").unwrap_or_else(|| panic!("no colon: {line}"))).collect();
    let fits = found.len() == expected.len()
        && expected.iter().all(|(check, text)| found.iter().any(|(name, said)| name == check && said.contains(text)));
    if fits { Ok(()) } else { Err(format!("expected {expected:#?}\n    found {found:#?}")) }
}

struct Scene {
    client: Client,
    database: TestDb<'static>,
    /// Placeholders in the cases, and what they stand for.
    names: Vec<(&'static str, String)>,
}

impl Scene {
    /// Everything anchored and verified.
    fn new(stem: &str) -> Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        let database = CLUSTER.get_or_init(|| Cluster::builder().start().unwrap()).agd_database(stem).unwrap();
        Self::in_database(database)
    }

    fn in_database(database: TestDb<'static>) -> Self {
        let mut client = database.connect().unwrap();
        for sql in SETUP {
            client.batch_execute(sql).unwrap();
        }
        anchor(&mut client);
        expect_verified(&mut client);
        let mut scene = Self { client, database, names: Vec::new() };
        // The event that inserted row 300 of t, and its neighbour; events of acme and of the platform log's own.
        for (placeholder, condition) in [
            ("{id}", "relation = 'public.t' AND action = 'INSERT' AND new->>'v' = 'v300'"),
            ("{next}", "relation = 'public.t' AND action = 'INSERT' AND new->>'v' = 'v301'"),
            ("{acme_id}", "tenant = 'acme' AND (new->>'id')::int = 77"),
            ("{sent}", "action = 'CHECKPOINT' AND body LIKE '%/t/acme' || E'\\n256\\n%'"),
            ("{state}", "action = 'GUARD.STATE'"),
        ] {
            let sql = format!("SELECT event_id FROM agd.events WHERE {condition} ORDER BY leaf_index LIMIT 1");
            let id = scene.text(&sql);
            scene.names.push((placeholder, id));
        }
        let leaf = scene.fill("SELECT leaf_index::text FROM agd.events WHERE event_id = '{id}'");
        let leaf = scene.text(&leaf);
        scene.names.push(("{leaf}", leaf));
        for (placeholder, of) in [("{xact}", "{id}"), ("{acme_xact}", "{acme_id}")] {
            let id = scene.fill(of);
            scene.names.push((placeholder, id.split('-').next().unwrap().to_owned()));
        }
        scene
    }

    /// Puts names in the place of placeholders. `{event}`, `{acme_event}`: conditions for agd.event; `{platform}`, `{acme}`,
    /// `{zeta}`: conditions for tables with a log_id.
    fn fill(&self, text: &str) -> String {
        let mut text = text
            .replace("{event}", "xact_id || '-' || n = '{id}'")
            .replace("{acme_event}", "xact_id || '-' || n = '{acme_id}'")
            .replace("{platform}", "log_id = (SELECT log_id FROM agd.log WHERE tenant IS NULL)")
            .replace("{acme}", "log_id = (SELECT log_id FROM agd.log WHERE tenant = 'acme')")
            .replace("{zeta}", "log_id = (SELECT log_id FROM agd.log WHERE tenant = 'zeta')");
        for (placeholder, name) in &self.names {
            text = text.replace(placeholder, name);
        }
        text
    }

    fn text(&mut self, sql: &str) -> String {
        self.client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// Tampers and commits, in a session of its own that has not read any trigger yet.
    fn tamper(&mut self, sql: &str) {
        let sql = self.fill(sql);
        let mut tamperer = self.database.connect().unwrap();
        tamperer.batch_execute("BEGIN").unwrap();
        tamperer.batch_execute(TRIGGERS_OFF).unwrap();
        let changed = tamperer.execute(sql.as_str(), &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        assert!(changed > 0, "changed nothing: {sql}");
        tamperer.batch_execute(&format!("{TRIGGERS_ON}; COMMIT")).unwrap();
        self.client = self.database.connect().unwrap();
    }

    /// What a full verification finds after the tampering, which is rolled back again. Statements are separated by `;;`.
    fn failures_after(&mut self, sql: &str) -> Vec<Failure> {
        self.failures_after_tampering(sql, "full_scan => true")
    }

    fn failures_after_tampering(&mut self, sql: &str, arguments: &str) -> Vec<Failure> {
        let sql = self.fill(sql);
        let mut tamperer = self.database.connect().unwrap();
        tamperer.batch_execute("BEGIN").unwrap();
        tamperer.batch_execute(TRIGGERS_OFF).unwrap();
        for statement in sql.split(";;") {
            let changed = tamperer.execute(statement, &[]).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
            assert!(changed > 0, "changed nothing: {statement}");
        }
        tamperer.batch_execute(TRIGGERS_ON).unwrap();
        let found = failures(&mut tamperer, arguments);
        tamperer.batch_execute("ROLLBACK").unwrap();
        found
    }

    /// Each case: what the tamperer does, and exactly which checks fail, naming what.
    #[track_caller]
    fn each(&mut self, cases: &[(&str, &[&str])]) {
        let mut wrong = Vec::new();
        for (sql, expected) in cases {
            let expected: Vec<String> = expected.iter().map(|line| self.fill(line)).collect();
            let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
            let found = self.failures_after(sql);
            if let Err(problem) = compare(&found, &expected) {
                wrong.push(format!("{sql}\n    {problem}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        // It was the tampering.
        expect_verified(&mut self.client);
    }

    /// After tampering that is committed: the same is found again when all was anchored anew, by a session of its own, and
    /// without a full scan too where nothing was remembered of it.
    #[track_caller]
    fn stays_found(&mut self, expected: &[&str]) {
        let expected: Vec<String> = expected.iter().map(|line| self.fill(line)).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        for time in ["first", "second"] {
            let found = failures(&mut self.client, "full_scan => true");
            compare(&found, &expected).unwrap_or_else(|problem| panic!("the {time} time: {problem}"));
            // It may refuse to go on from a log that is broken; it must not mend it.
            self.client.batch_execute("SELECT agd.anchor()").ok();
        }
    }

    #[track_caller]
    fn expect_row_found(&mut self, key: &str, problem: &str) {
        let rows =
            self.client.query("SELECT row_key::text, problem, event_id FROM agd.verify_table('t')", &[]).unwrap();
        let found: Vec<(String, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 == key && found[0].1.contains(problem), "{found:?}");
    }
}

// --------------------------------------------------------------------------------------------------------------- rows

#[test]
fn a_row_changed_behind_the_gate() {
    let mut s = Scene::new("rowchanged");
    s.tamper("UPDATE t SET n = n + 0.01 WHERE id = 577");
    s.expect_row_found(r#"{"id": 577}"#, "n: recorded 577, found 577.01");
    // The log itself is whole: nothing was done to it.
    expect_verified(&mut s.client);
}

#[test]
fn a_row_deleted_behind_the_gate() {
    let mut s = Scene::new("rowdeleted");
    s.tamper("DELETE FROM t WHERE id = 577");
    s.expect_row_found(r#"{"id": 577}"#, "missing");
}

#[test]
fn a_row_added_behind_the_gate() {
    let mut s = Scene::new("rowadded");
    s.tamper("INSERT INTO t VALUES (7777, 'never recorded', 0)");
    s.expect_row_found(r#"{"id": 7777}"#, "without a record");
}

#[test]
fn a_deleted_row_brought_back_behind_the_gate() {
    let mut s = Scene::new("rowback");
    s.tamper("INSERT INTO t VALUES (60, 'w', 60)");
    s.expect_row_found(r#"{"id": 60}"#, "without a record");
}

#[test]
fn a_row_and_its_record_changed_alike() {
    let mut s = Scene::new("rowalike");
    s.tamper(
        "WITH r AS (UPDATE t SET v = 'v3OO' WHERE id = 300)
         UPDATE agd.event SET new = replace(new::text, 'v300', 'v3OO')::json WHERE {event}",
    );
    let problems: i64 = s.client.query_one("SELECT count(*) FROM agd.verify_table('t')", &[]).unwrap().get(0);
    assert_eq!(problems, 0, "the table is what the event says now");
    s.stays_found(&["events@platform: event {id} was changed: it does not hash to its leaf {leaf}"]);
}

// ------------------------------------------------------------------------------------------------------------- events

/// Each column of a table, and a case that changes it.
#[track_caller]
fn each_column(table: &str, cases: &[(&str, &str, &[&str])]) {
    let mut s = Scene::new(&format!("column{}", &table[4..6]));
    let sql = "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped";
    let columns: BTreeSet<String> = s.client.query(sql, &[&table]).unwrap().iter().map(|row| row.get(0)).collect();
    let covered: BTreeSet<String> = cases.iter().map(|(column, ..)| (*column).to_owned()).collect();
    assert_eq!(columns, covered, "every column of {table} has a case, and no other");
    let cases: Vec<(&str, &[&str])> = cases.iter().map(|(_, sql, expected)| (*sql, *expected)).collect();
    s.each(&cases);
}

#[test]
fn every_column_of_an_event() {
    const CHANGED: &[&str] = &["events@platform: event {id} was changed: it does not hash to its leaf {leaf}"];
    const ACME: &[&str] = &["events@acme: event {acme_id} was changed: it does not hash to its leaf 76"];
    each_column(
        "agd.event",
        &[
            (
                "xact_id",
                "UPDATE agd.event SET xact_id = '5' WHERE {event}",
                &["events@platform: event {id} is missing: it was leaf {leaf}", "complete@database: event 5-"],
            ),
            (
                "n",
                "UPDATE agd.event SET n = n + 100000 WHERE {event}",
                &[
                    "events@platform: event {id} is missing: it was leaf {leaf}",
                    "complete@database: event {xact}-100299 is in no leaf, though the sequencer is past it",
                ],
            ),
            ("at", "UPDATE agd.event SET at = at + interval '1 microsecond' WHERE {event}", CHANGED),
            ("guard_id", "UPDATE agd.event SET guard_id = gen_random_uuid() WHERE {event}", CHANGED),
            ("guard_id", "UPDATE agd.event SET guard_id = NULL WHERE {event}", CHANGED),
            // To another tenant's log, to one that is not there, to the platform's.
            ("tenant", "UPDATE agd.event SET tenant = 'acme' WHERE {event}", CHANGED),
            ("tenant", "UPDATE agd.event SET tenant = 'nosuch' WHERE {event}", CHANGED),
            ("tenant", "UPDATE agd.event SET tenant = 'zeta' WHERE {acme_event}", ACME),
            ("tenant", "UPDATE agd.event SET tenant = NULL WHERE {acme_event}", ACME),
            ("action", "UPDATE agd.event SET action = 'DELETE' WHERE {event}", CHANGED),
            ("relation", "UPDATE agd.event SET relation = 'public.other' WHERE {event}", CHANGED),
            ("salt", r"UPDATE agd.event SET salt = '\x00112233445566778899aabbccddeeff' WHERE {event}", CHANGED),
            (
                "salt",
                r"UPDATE agd.event SET salt = '\x00' WHERE {event}",
                &["events@platform: event {id} was changed: it has no canonical form any more, and was leaf {leaf}"],
            ),
            ("row_key", r#"UPDATE agd.event SET row_key = '{"id":301}' WHERE {event}"#, CHANGED),
            ("old", "UPDATE agd.event SET old = '{}' WHERE {event}", CHANGED),
            ("new", "UPDATE agd.event SET new = replace(new::text, 'v300', 'v3OO')::json WHERE {event}", CHANGED),
            ("new", "UPDATE agd.event SET new = (new::text || ' ')::json WHERE {event}", CHANGED),
            ("new", "UPDATE agd.event SET new = NULL WHERE {event}", CHANGED),
            ("new", "UPDATE agd.event SET new = '{}' WHERE {acme_event}", ACME),
            ("body", "UPDATE agd.event SET body = 'a word' WHERE {event}", CHANGED),
            ("role_name", "UPDATE agd.event SET role_name = 'somebody' WHERE {event}", CHANGED),
        ],
    );
}

#[test]
fn every_column_of_a_transaction() {
    // All 700 events of it.
    const CHANGED: &[&str] = &["events@platform: event {xact}-0 was changed"];
    each_column(
        "agd.transaction",
        &[
            (
                "xact_id",
                "UPDATE agd.transaction SET xact_id = '5' WHERE xact_id = '{xact}'",
                &[
                    "events@platform: the record of transaction {xact} is missing: its event {xact}-0 was leaf",
                    "complete@database: transaction 5 does not have all its events: recorded 700, found 0 (and 1 more",
                ],
            ),
            (
                "events",
                "UPDATE agd.transaction SET events = events + 1 WHERE xact_id = '{xact}'",
                &["complete@database: transaction {xact} does not have all its events: recorded 701, found 700"],
            ),
            (
                "stamp",
                "UPDATE agd.transaction SET stamp = stamp + interval '1 microsecond' WHERE xact_id = '{xact}'",
                CHANGED,
            ),
            (
                "session_user_name",
                "UPDATE agd.transaction SET session_user_name = 'somebody' WHERE xact_id = '{xact}'",
                CHANGED,
            ),
            ("role_name", "UPDATE agd.transaction SET role_name = 'somebody' WHERE xact_id = '{xact}'", CHANGED),
            ("principal", "UPDATE agd.transaction SET principal = 'nobody' WHERE xact_id = '{xact}'", CHANGED),
            ("fleet_id", "UPDATE agd.transaction SET fleet_id = '0011223344556677' WHERE xact_id = '{xact}'", CHANGED),
            ("cause", "UPDATE agd.transaction SET cause = 'another' WHERE xact_id = '{xact}'", CHANGED),
            ("binding", "UPDATE agd.transaction SET binding = 'role' WHERE xact_id = '{xact}'", CHANGED),
            ("application_name", "UPDATE agd.transaction SET application_name = 'x' WHERE xact_id = '{xact}'", CHANGED),
            ("client_addr", "UPDATE agd.transaction SET client_addr = '10.0.0.1' WHERE xact_id = '{xact}'", CHANGED),
            (
                "client_addr",
                "UPDATE agd.transaction SET client_addr = '10.0.0.1' WHERE xact_id = '{acme_xact}'",
                &["events@acme: event {acme_xact}-0 was changed: it does not hash to its leaf 0 (and 299 more)"],
            ),
        ],
    );
}

#[test]
fn events_and_transactions_removed() {
    Scene::new("removed").each(&[
        (
            "DELETE FROM agd.event WHERE {event}",
            &[
                "events@platform: event {id} is missing: it was leaf {leaf}",
                "complete@database: transaction {xact} does not have all its events: recorded 700, found 699",
            ],
        ),
        (
            "DELETE FROM agd.event WHERE {acme_event}",
            &[
                "events@acme: event {acme_id} is missing: it was leaf 76",
                "complete@database: transaction {acme_xact} does not have all its events: recorded 300, found 299",
            ],
        ),
        // Its count with it.
        (
            "WITH t AS (UPDATE agd.transaction SET events = events - 1 WHERE xact_id = '{xact}') DELETE FROM agd.event WHERE {event}",
            &["events@platform: event {id} is missing", "complete@database: integrated events, but"],
        ),
        (
            "DELETE FROM agd.transaction WHERE xact_id = '{xact}'",
            &[
                "events@platform: the record of transaction {xact} is missing: its event {xact}-0 was leaf",
                "complete@database: transaction {xact} has no record: found 700 events of it",
            ],
        ),
        (
            "DELETE FROM agd.event WHERE xact_id = '{xact}'",
            &[
                "events@platform: event {xact}-0 is missing",
                "complete@database: transaction {xact} does not have all its events: recorded 700, found 0",
            ],
        ),
        (
            "WITH t AS (DELETE FROM agd.transaction WHERE xact_id = '{xact}') DELETE FROM agd.event WHERE xact_id = '{xact}'",
            &["events@platform: event {xact}-0 is missing", "complete@database: integrated events, but"],
        ),
    ]);
}

#[test]
fn two_events_swapped() {
    let others = "at, guard_id, tenant, action, relation, salt, row_key, old, new, body, role_name";
    let from_other = others.split(", ").map(|column| format!("o.{column}")).collect::<Vec<_>>().join(", ");
    let whole = format!(
        "UPDATE agd.event e SET ({others}) = ROW({from_other}) FROM agd.event o
          WHERE e.xact_id = o.xact_id AND o.n <> e.n
            AND e.xact_id || '-' || e.n IN ('{{id}}', '{{next}}') AND o.xact_id || '-' || o.n IN ('{{id}}', '{{next}}')"
    );
    let found: &[&str] = &["events@platform: event {id} was changed: it does not hash to its leaf {leaf} (and 1 more)"];
    Scene::new("swapped").each(&[
        // Their keys, everything else, what they say happened.
        (
            "UPDATE agd.event SET n = -1 WHERE {event};;
             UPDATE agd.event SET n = split_part('{id}', '-', 2)::int WHERE xact_id || '-' || n = '{next}';;
             UPDATE agd.event SET n = split_part('{next}', '-', 2)::int WHERE xact_id = '{xact}' AND n = -1",
            found,
        ),
        (&whole, found),
        (
            "UPDATE agd.event e SET row_key = o.row_key, new = o.new FROM agd.event o
              WHERE e.new->>'v' IN ('v300', 'v301') AND o.new->>'v' IN ('v300', 'v301') AND o.n <> e.n",
            found,
        ),
        // One of the platform's with one of a tenant's.
        (
            "UPDATE agd.event SET xact_id = '5', n = 0 WHERE {event};;
             UPDATE agd.event SET xact_id = '{xact}', n = split_part('{id}', '-', 2)::int WHERE {acme_event};;
             UPDATE agd.event SET xact_id = '{acme_xact}', n = split_part('{acme_id}', '-', 2)::int WHERE xact_id = '5'",
            &["events@platform: event {id} was changed", "events@acme: event {acme_id} was changed"],
        ),
    ]);
}

#[test]
fn a_forged_event() {
    let columns = "at, guard_id, tenant, action, relation, salt, row_key, old, new, body";
    let forged = |key: &str| {
        format!("INSERT INTO agd.event (xact_id, n, {columns}) SELECT {key}, {columns} FROM agd.event WHERE {{event}}")
    };
    let with_record = |xact_id: &str| {
        format!(
            "INSERT INTO agd.transaction
             SELECT '{xact_id}', stamp, 1, session_user_name, role_name, principal, fleet_id, cause, binding, application_name, client_addr
               FROM agd.transaction WHERE xact_id = '{{xact}}';; {}",
            forged(&format!("'{xact_id}', 0"))
        )
    };
    let counted = format!(
        "UPDATE agd.transaction SET events = events + 1 WHERE xact_id = '{{xact}}';; {}",
        forged("xact_id, 900000")
    );
    Scene::new("forged").each(&[
        // As it is; with the transaction's own count set right; in a transaction from before the first event, complete; in one
        // that has not begun, where the sequencer would find it one day.
        (
            &forged("xact_id, 900000"),
            &["complete@database: event {xact}-900000 is in no leaf, though the sequencer is past it: it was added outside the gate"],
        ),
        (
            &counted,
            &["complete@database: event {xact}-900000 is in no leaf, though the sequencer is past it: it was added outside the gate"],
        ),
        (&with_record("5"), &["complete@database: event 5-0 is in no leaf"]),
        (&with_record("900000000"), &["complete@database: event 900000000-0 is of a transaction that has not begun"]),
        (
            "INSERT INTO agd.transaction
             SELECT '5', stamp, 1, session_user_name, role_name, principal, fleet_id, cause, binding, application_name, client_addr
               FROM agd.transaction WHERE xact_id = '{xact}'",
            &["complete@database: transaction 5 does not have all its events: recorded 1, found 0"],
        ),
    ]);
}

// -------------------------------------------------------------------------------------------------------------- tiles

#[test]
fn every_column_of_a_tile() {
    let gone = "complete@database: integrated events, but";
    each_column(
        "agd.tile",
        &[
            (
                "log_id",
                "UPDATE agd.tile SET log_id = (SELECT log_id FROM agd.log WHERE tenant = 'zeta') WHERE tile_index = 1 AND {platform}",
                &[
                    "tiles@platform: tile 1 is missing",
                    "tiles@zeta: there is a tile 1 of level 0, beyond the log's leaves",
                    gone,
                ],
            ),
            (
                "log_id",
                "UPDATE agd.tile SET log_id = 4711 WHERE tile_index = 1 AND {platform}",
                &["tiles@platform: tile 1 is missing", "logs@database: agd.tile has rows of a log 4711", gone],
            ),
            (
                "level",
                "INSERT INTO agd.tile SELECT log_id, 3, 0, hashes, NULL FROM agd.tile WHERE tile_index = 1 AND {platform}",
                &["tiles@platform: there is a tile 0 of level 3, beyond the log's leaves"],
            ),
            (
                "level",
                "INSERT INTO agd.tile SELECT log_id, 30, 0, hashes, NULL FROM agd.tile WHERE tile_index = 1 AND {platform}",
                &["logs@database: a tile 0 of level 30"],
            ),
            (
                "tile_index",
                "UPDATE agd.tile SET tile_index = 1000 WHERE tile_index = 1 AND {platform}",
                &["tiles@platform: tile 1 is missing (and 1 more)", gone],
            ),
            (
                "tile_index",
                "INSERT INTO agd.tile SELECT log_id, 0, -1, hashes, event_keys, first_stamp, last_stamp FROM agd.tile WHERE tile_index = 1 AND {platform}",
                &["logs@database: a tile -1 of level 0"],
            ),
            (
                "hashes",
                "UPDATE agd.tile SET hashes = set_byte(hashes, 1000, 255 - get_byte(hashes, 1000)) WHERE tile_index = 1 AND {platform}",
                &["tiles@platform: tile 1 was changed: its hash of leaf 287 is not that of event"],
            ),
            (
                "event_keys",
                "UPDATE agd.tile SET event_keys = set_byte(event_keys, 12 * 7 + 3, 1) WHERE tile_index = 1 AND {platform}",
                &["tiles@platform: tile 1 was changed: it names event"],
            ),
            (
                "event_keys",
                "UPDATE agd.tile SET event_keys = set_byte(event_keys, 12 * 7 + 11, 255 - get_byte(event_keys, 12 * 7 + 11)) WHERE tile_index = 0 AND {acme}",
                &[
                    "tiles@acme: tile 0 was changed: it names event {acme_xact}-248 as leaf 7, which is event {acme_xact}-7",
                ],
            ),
            (
                "first_stamp",
                "UPDATE agd.tile SET first_stamp = first_stamp - 1 WHERE tile_index = 1 AND {platform}",
                &["tiles@platform: tile 1 was changed: it has other commit stamps than its events"],
            ),
            (
                "last_stamp",
                "UPDATE agd.tile SET last_stamp = NULL WHERE tile_index = 0 AND {acme}",
                &["tiles@acme: tile 0 was changed: it has other commit stamps than its events"],
            ),
        ],
    );
}

/// Copies the hash or the key of one leaf of tile 1 of the platform log, or both, over another's; or swaps them.
fn tile_copy(hash: bool, key: bool, from: usize, to: usize) -> String {
    let part = |column: &str, width: usize| {
        format!(
            "{column} = overlay({column} PLACING substr({column}, {from} * {width} + 1, {width}) FROM {to} * {width} + 1)"
        )
    };
    let set: Vec<String> =
        [hash.then(|| part("hashes", 32)), key.then(|| part("event_keys", 12))].into_iter().flatten().collect();
    format!("UPDATE agd.tile SET {} WHERE level = 0 AND tile_index = 1 AND {{platform}}", set.join(", "))
}

fn tile_swap(hash: bool, key: bool) -> String {
    let part = |column: &str, width: usize| {
        format!(
            "{column} = overlay(overlay({column} PLACING substr({column}, 50 * {width} + 1, {width}) FROM 40 * {width} + 1)
                                PLACING substr({column}, 40 * {width} + 1, {width}) FROM 50 * {width} + 1)"
        )
    };
    let set: Vec<String> =
        [hash.then(|| part("hashes", 32)), key.then(|| part("event_keys", 12))].into_iter().flatten().collect();
    format!("UPDATE agd.tile SET {} WHERE level = 0 AND tile_index = 1 AND {{platform}}", set.join(", "))
}

#[test]
fn leaves_of_a_tile_swapped_repeated_and_lost() {
    let order = "tiles@platform: tile 1 does not have the root that the tile above it and the anchor at size 512 hold";
    let mut s = Scene::new("leaves");
    let leaf_is = |s: &mut Scene, leaf: u64| {
        s.text(&format!("SELECT event_id FROM agd.events WHERE tenant IS NULL AND leaf_index = {leaf}"))
    };
    let (forty, fifty) = (leaf_is(&mut s, 296), leaf_is(&mut s, 306));
    s.names.extend([("{40}", forty), ("{50}", fifty)]);
    s.each(&[
        (
            &tile_swap(true, false),
            &["tiles@platform: tile 1 was changed: its hash of leaf 296 is not that of event {40} (and 1 more)"],
        ),
        (
            &tile_swap(false, true),
            &["tiles@platform: tile 1 was changed: it names event {50} as leaf 296, which is event {40} (and 1 more)"],
        ),
        (&tile_swap(true, true), &[order]),
        (
            &tile_copy(true, false, 40, 50),
            &["tiles@platform: tile 1 was changed: its hash of leaf 306 is not that of event {50}"],
        ),
        (
            &tile_copy(false, true, 40, 50),
            &["tiles@platform: tile 1 was changed: it names event {40} as leaf 306, which is event {50}"],
        ),
        (&tile_copy(true, true, 40, 50), &[order, "complete@database: event {50} is in no leaf"]),
        // An event and its leaf changed alike, and a tile that is gone, with what its leaves lead to.
        (
            "DELETE FROM agd.tile WHERE level = 0 AND tile_index = 1 AND {platform}",
            &[
                "tiles@platform: tile 1 is missing",
                "complete@database: 256 events are in no leaf, though the sequencer is past them, the first is",
            ],
        ),
        (
            "DELETE FROM pg_constraint WHERE conname = 'tile_hashes_check';;
             UPDATE pg_class SET relchecks = relchecks - 1 WHERE oid = 'agd.tile'::regclass;;
             UPDATE agd.tile SET hashes = substr(hashes, 33) WHERE level = 0 AND tile_index = 1 AND {platform}",
            &["tiles@platform: tile 1 holds 255 hashes and 256 keys, not 256", "complete@database: "],
        ),
    ]);
}

/// 70,000 leaves: a full tile of level 1.
#[test]
fn tiles_of_level_1() {
    let mut s = Scene::new("level1");
    s.client.batch_execute("INSERT INTO t SELECT i, 'more', 0 FROM generate_series(1001, 70000) i").unwrap();
    anchor(&mut s.client);
    let flip = |position: usize, condition: &str| {
        format!(
            "UPDATE agd.tile SET hashes = set_byte(hashes, {position}, 255 - get_byte(hashes, {position})) WHERE {condition} AND {{platform}}"
        )
    };
    s.each(&[
        (
            &flip(100 * 32 + 5, "level = 1 AND tile_index = 0"),
            &["tiles@platform: tile 0 of level 1 was changed: it does not hold the root of tile 100"],
        ),
        (
            &flip(255 * 32 + 5, "level = 1 AND tile_index = 0"),
            &["tiles@platform: tile 0 of level 1 was changed: it does not hold the root of tile 255"],
        ),
        (
            "DELETE FROM agd.tile WHERE level = 1 AND {platform}",
            &["tiles@platform: tile 0 of level 1 is missing"],
        ),
        (&flip(8000, "level = 0 AND tile_index = 255"), &["tiles@platform: tile 255 was changed: its hash of leaf 65530"]),
        (
            "DELETE FROM agd.tile WHERE level = 0 AND tile_index = 255 AND {platform}",
            &["tiles@platform: tile 255 is missing", "complete@database: 256 events are in no leaf"],
        ),
        // The level 2 tile, in agd.log: 1 hash, the last.
        (
            "UPDATE agd.log SET open_tiles = set_byte(open_tiles, octet_length(open_tiles) - 1, 255 - get_byte(open_tiles, octet_length(open_tiles) - 1)) WHERE {platform}",
            &["tiles@platform: the open tile of level 2 in agd.log was changed"],
        ),
    ]);
    // From where a verification ended, in the middle of a tile, and across the end of a tile of level 1.
    assert_eq!(failures(&mut s.client, ""), []);
    s.client.batch_execute("INSERT INTO t SELECT i, 'yet more', 0 FROM generate_series(70001, 70300) i").unwrap();
    anchor(&mut s.client);
    assert_eq!(failures(&mut s.client, ""), []);
    let looked_at: i64 = s
        .client
        .query_one("SELECT sum(entries)::bigint FROM agd.verify() WHERE check_name = 'events'", &[])
        .unwrap()
        .get(0);
    assert_eq!(looked_at, 0, "all of it was verified by now");
}

// ------------------------------------------------------------------------------------------------------------ anchors

#[test]
fn every_column_of_an_anchor() {
    each_column(
        "agd.checkpoint",
        &[
            (
                "log_id",
                "UPDATE agd.checkpoint SET log_id = (SELECT log_id FROM agd.log WHERE tenant = 'zeta') WHERE tree_size = 256 AND {acme}",
                &[
                    "anchors@acme: the anchor at size 256 is missing",
                    "platform@acme: the platform log holds an anchor at size 256 that the log has lost",
                    "anchors@zeta: there is an anchor at size 256, beyond the log's leaves",
                    "platform@zeta: the anchor at size 256 is not in the platform log",
                ],
            ),
            (
                "tree_size",
                "UPDATE agd.checkpoint SET tree_size = 257 WHERE tree_size = 256 AND {platform}",
                &["anchors@platform: the anchor at size 256 is missing (and 1 more)"],
            ),
            (
                "tree_size",
                "UPDATE agd.checkpoint SET tree_size = 100000 WHERE tree_size = 300 AND {acme}",
                &[
                    "anchors@acme: there is an anchor at size 100000, beyond the log's leaves",
                    "platform@acme: the anchor at size 100000 is not in the platform log",
                ],
            ),
            (
                "root_hash",
                "UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 256 AND {platform}",
                &["anchors@platform: the anchor at size 256 has another root than the leaves"],
            ),
            (
                "root_hash",
                "UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 256 AND {acme}",
                &[
                    "anchors@acme: the anchor at size 256 has another root than the leaves",
                    "platform@acme: the platform log holds another root for the anchor at size 256",
                ],
            ),
            (
                "root_hash",
                "UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 300 AND {acme}",
                &[
                    "anchors@acme: the anchor at size 300 has another root than the leaves",
                    "platform@acme: the platform log holds another root for the anchor at size 300",
                ],
            ),
            (
                "guard_state",
                "UPDATE agd.checkpoint SET guard_state = sha256('x') WHERE tree_size = 256 AND {platform}",
                &["anchors@platform: the anchor at size 256 has a guard state that was not in force"],
            ),
            (
                "guard_state",
                "UPDATE agd.checkpoint SET guard_state = '' WHERE tree_size = 300 AND {acme}",
                &["anchors@acme: the anchor at size 300 has a guard state that was not in force"],
            ),
            (
                "final_by",
                "UPDATE agd.checkpoint SET final_by = '1-0' WHERE tree_size = 256 AND {platform}",
                &["anchors@platform: the anchor at size 256 is said to be final by 1-0, which does not close the log"],
            ),
            (
                "final_by",
                "UPDATE agd.checkpoint SET final_by = '1-0' WHERE tree_size = 300 AND {acme}",
                &["anchors@acme: the anchor at size 300 is said to be final by 1-0, which does not close the log"],
            ),
            // Nothing is committed to the time of an anchor: agd.verify() says so in its description, and a timestamp
            // authority's word stands in the store.
            ("anchored_at", "UPDATE agd.checkpoint SET anchored_at = anchored_at - interval '1 day'", &[]),
        ],
    );
}

#[test]
fn anchors_removed_and_added() {
    let mut s = Scene::new("anchors");
    let (size, newest) = (
        s.text("SELECT size::text FROM agd.log WHERE tenant IS NULL"),
        s.text("SELECT max(tree_size)::text FROM agd.anchors WHERE tenant IS NULL"),
    );
    assert_eq!(size, newest);
    let before = s.text("SELECT max(tree_size)::text FROM agd.anchors a WHERE tenant IS NULL AND tree_size < (SELECT max(tree_size) FROM agd.anchors WHERE tenant IS NULL)");
    s.names.extend([("{size}", size), ("{before}", before)]);
    s.each(&[
        (
            "DELETE FROM agd.checkpoint WHERE tree_size = 256 AND {platform}",
            &["anchors@platform: the anchor at size 256 is missing"],
        ),
        (
            "DELETE FROM agd.checkpoint WHERE tree_size = {size} AND {platform}",
            &["anchors@platform: no anchor covers the leaves from {before} on, and agd.log says that none is due: there was one at size {size}"],
        ),
        (
            "DELETE FROM agd.checkpoint WHERE tree_size = 256 AND {acme}",
            &[
                "anchors@acme: the anchor at size 256 is missing",
                "platform@acme: the platform log holds an anchor at size 256 that the log has lost",
            ],
        ),
        (
            "DELETE FROM agd.checkpoint WHERE {zeta}",
            &[
                "anchors@zeta: no anchor covers the leaves from 0 on, and agd.log says that none is due: there was one at size 20",
                "platform@zeta: the platform log holds an anchor at size 20 that the log has lost",
            ],
        ),
        (
            "INSERT INTO agd.checkpoint SELECT log_id, 100, sha256('x'), guard_state, anchored_at FROM agd.checkpoint WHERE tree_size = 256 AND {acme}",
            &[
                "anchors@acme: the anchor at size 100 has another root than the leaves",
                "platform@acme: the anchor at size 100 is not in the platform log",
            ],
        ),
        (
            "INSERT INTO agd.checkpoint SELECT 4711, 256, root_hash, guard_state, anchored_at FROM agd.checkpoint WHERE tree_size = 256 AND {acme}",
            &["logs@database: agd.checkpoint has rows of a log 4711"],
        ),
        (
            "INSERT INTO agd.publication SELECT log_id, 257, 'file:///worm' FROM agd.log WHERE {acme}",
            &["anchors@acme: the anchor at size 257 was published, and is missing"],
        ),
    ]);
}

/// What the platform log holds of a tenant's: its anchors, as events.
#[test]
fn tenants_checkpoints_in_the_platform_log() {
    Scene::new("checkpoints").each(&[
        (
            "UPDATE agd.event SET body = replace(body, '256', '255') WHERE xact_id || '-' || n = '{sent}'",
            &[
                "events@platform: event {sent} was changed",
                "platform@acme: the anchor at size 256 is not in the platform log",
            ],
        ),
        (
            "DELETE FROM agd.event WHERE xact_id || '-' || n = '{sent}'",
            &[
                "events@platform: event {sent} is missing",
                "platform@acme: the anchor at size 256 is not in the platform log",
                "complete@database: transaction ",
            ],
        ),
        // The event of a guard state: what anchors carry then cannot be told, and is not held against them.
        (
            "UPDATE agd.event SET body = 'sha256:' || encode(sha256('x'), 'hex') WHERE xact_id || '-' || n = '{state}'",
            &["events@platform: event {state} was changed"],
        ),
        (
            "DELETE FROM agd.event WHERE xact_id || '-' || n = '{state}'",
            &["events@platform: event {state} is missing", "complete@database: transaction "],
        ),
    ]);
}

/// A tenant's log is cut back to an older anchor, its events, leaves and counts with it: it agrees with itself, but the
/// platform log holds a later checkpoint of it.
#[test]
fn a_tenants_log_cut_back_consistently() {
    let mut s = Scene::new("cutback");
    s.tamper(
        "WITH c AS (DELETE FROM agd.checkpoint WHERE tree_size = 300 AND {acme}),
              l AS (UPDATE agd.log SET size = 256, open_tiles = substr(open_tiles, 44 * 32 + 1), open_keys = '',
                           open_first_stamp = NULL, open_last_stamp = NULL
                     WHERE tenant = 'acme'),
              x AS (UPDATE agd.transaction SET events = events - 44 WHERE xact_id = '{acme_xact}')
         DELETE FROM agd.event WHERE tenant = 'acme' AND (new->>'id')::int > 256",
    );
    let unrecorded: i64 = s.client.query_one("SELECT count(*) FROM agd.verify_table('mine')", &[]).unwrap().get(0);
    assert_eq!(unrecorded, 44, "rows whose records are gone");
    s.stays_found(&["platform@acme: the platform log holds an anchor at size 300 that the log has lost"]);
    // Who goes on from where he ended sees it too.
    let found = failures(&mut s.client, "");
    assert!(found.iter().any(|(check, _)| check == "tiles@acme"), "{found:?}");
}

// --------------------------------------------------------------------------------------------------------------- logs

#[test]
fn every_column_of_a_log() {
    let flip = "UPDATE agd.log SET {c} = set_byte({c}, {at}, 255 - get_byte({c}, {at})) WHERE {acme}";
    let flip = |column: &str, at: usize| flip.replace("{c}", column).replace("{at}", &at.to_string());
    each_column(
        "agd.log",
        &[
            (
                "log_id",
                "UPDATE agd.log SET log_id = 99 WHERE {zeta}",
                &[
                    "logs@database: agd.checkpoint has rows of a log",
                    "anchors@zeta: no anchor covers the leaves from 0 on",
                    "platform@zeta: the platform log holds an anchor at size 20 that the log has lost",
                ],
            ),
            (
                "origin",
                "UPDATE agd.log SET origin = origin || 'x' WHERE {acme}",
                &["logs@database: the log of tenant acme has the origin"],
            ),
            (
                "origin",
                "UPDATE agd.log SET origin = 'elsewhere' WHERE {platform}",
                &["logs@database: the platform log has the origin elsewhere, not agd-"],
            ),
            (
                "tenant",
                "UPDATE agd.log SET tenant = 'beta' WHERE {zeta}",
                &[
                    "logs@database: the log of tenant beta has the origin",
                    // Its events say so too.
                    "tiles@zeta: the open tile in agd.log was changed: its leaf 0 is event",
                ],
            ),
            (
                "size",
                "UPDATE agd.log SET size = size - 1 WHERE {acme}",
                &["log@acme: /t/acme: its open tiles do not fit its size 299"],
            ),
            (
                "size",
                "UPDATE agd.log SET size = size + 1 WHERE {platform}",
                &["log@platform: its open tiles do not fit its size"],
            ),
            (
                "size",
                "UPDATE agd.log SET size = size + 256 WHERE {acme}",
                &["log@acme: /t/acme: its open tiles do not fit its size 556"],
            ),
            (
                "open_tiles",
                &flip("open_tiles", 3),
                &["tiles@acme: the open tile in agd.log was changed: its hash of leaf 256 is not that of event"],
            ),
            (
                "open_tiles",
                &flip("open_tiles", 44 * 32 + 3),
                &["tiles@acme: the open tile of level 1 in agd.log was changed: it does not hold the root of tile 0"],
            ),
            (
                "open_tiles",
                "UPDATE agd.log SET open_tiles = substr(open_tiles, 33) WHERE {acme}",
                &["log@acme: /t/acme: its open tiles do not fit its size 300"],
            ),
            ("open_keys", &flip("open_keys", 3), &["tiles@acme: the open tile in agd.log was changed: it names event"]),
            (
                "open_keys",
                "UPDATE agd.log SET open_keys = substr(open_keys, 13) WHERE {acme}",
                &[
                    "log@acme: /t/acme: the keys of its open tile do not fit its size 300",
                    "complete@database: event {acme_xact}-256 is in no leaf",
                ],
            ),
            (
                "open_first_stamp",
                "UPDATE agd.log SET open_first_stamp = NULL WHERE {acme}",
                &["tiles@acme: the open tile in agd.log was changed: it has other commit stamps than its events"],
            ),
            (
                "open_last_stamp",
                "UPDATE agd.log SET open_last_stamp = open_last_stamp + 86400000000 WHERE {acme}",
                &["tiles@acme: the open tile in agd.log was changed: it has other commit stamps than its events"],
            ),
            (
                "incarnation",
                "UPDATE agd.log SET incarnation = 2 WHERE {acme}",
                &["logs@database: the platform log of incarnation 2 is gone"],
            ),
            (
                "incarnation",
                "UPDATE agd.log SET incarnation = 2147483647 WHERE {acme}",
                &["logs@database: the platform log of incarnation 2147483647 is gone"],
            ),
            (
                "opened_by",
                "UPDATE pg_class SET relchecks = 0 WHERE oid = 'agd.log'::regclass;;
                 UPDATE agd.log SET opened_by = '5' WHERE {platform}",
                &["logs@database: agd.log names an event that begins"],
            ),
            (
                "open_since",
                "UPDATE agd.log SET open_since = now() WHERE {acme}",
                &["anchors@acme: agd.log says that an anchor is due, but the one at size 300 covers all leaves"],
            ),
        ],
    );
}

#[test]
fn logs_and_the_sequencer() {
    Scene::new("sequencer").each(&[
        (
            "DELETE FROM agd.log WHERE {zeta}",
            &["logs@database: the platform log holds checkpoints of", "complete@database: 20 events are in no leaf"],
        ),
        (
            "UPDATE agd.sequencer SET integrated = '5:5:'",
            &["complete@database: leaf 0 of agd-"],
        ),
        (
            "UPDATE agd.sequencer SET integrated = ('{xact}:' || pg_snapshot_xmax(integrated) || ':{xact}')::pg_snapshot",
            &["complete@database: is event {xact}-0, which the sequencer has not integrated yet"],
        ),
        (
            "UPDATE agd.sequencer SET last_stamp = last_stamp - interval '1 hour'",
            &["complete@database: the sequencer's last stamp is smaller than one that it has integrated"],
        ),
        (
            "UPDATE agd.sequencer SET guard_state = sha256('x')",
            &["complete@database: the sequencer's guard state is not the last one that was recorded"],
        ),
        ("UPDATE agd.sequencer SET guard_state = NULL", &["complete@database: the sequencer's guard state is gone"]),
        ("DELETE FROM agd.sequencer", &["complete@database: "]),
    ]);
}

/// One log whose row contradicts itself hides nothing about the others, and nothing of what is left of itself.
#[test]
fn damage_in_several_logs_is_found_in_each() {
    Scene::new("several").each(&[(
        "UPDATE agd.log SET size = size + 1 WHERE {zeta};;
         UPDATE agd.event SET new = '{}' WHERE {acme_event};;
         DELETE FROM agd.event WHERE {event};;
         UPDATE agd.tile SET hashes = set_byte(hashes, 1000, 255 - get_byte(hashes, 1000)) WHERE tile_index = 0 AND {acme};;
         UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 512 AND {platform}",
        &[
            "log@zeta: its open tiles do not fit its size 21",
            "events@acme: event {acme_id} was changed",
            "tiles@acme: tile 0 was changed: its hash of leaf 31 is not that of event {acme_xact}-31",
            "events@platform: event {id} is missing",
            "anchors@platform: the anchor at size 512 has another root than the leaves",
            "complete@database: transaction {xact} does not have all its events",
        ],
    )]);
}

// ---------------------------------------------------------------------------------------------- the open part of a log

/// 188 leaves of acme's log are open, all is verified.
fn with_open_leaves(stem: &str) -> Scene {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| Cluster::builder().setting("agd.anchor_max_age", "1h").start().unwrap());
    let mut s = Scene::in_database(cluster.agd_database(stem).unwrap());
    // More than a tile: the worker integrates it at once, and anchors no tail.
    s.client.batch_execute("INSERT INTO mine SELECT 'acme', i, 'open' FROM generate_series(1001, 1400) i").unwrap();
    agd_live_tests::eventually("400 more leaves", std::time::Duration::from_secs(20), || {
        let size: i64 = s.client.query_one("SELECT size FROM agd.log WHERE tenant = 'acme'", &[]).unwrap().get(0);
        size == 700
    });
    let anchored: i64 =
        s.client.query_one("SELECT max(tree_size) FROM agd.anchors WHERE tenant = 'acme'", &[]).unwrap().get(0);
    assert_eq!(anchored, 512, "188 leaves are open");
    expect_verified(&mut s.client);
    s
}

/// Leaves that no anchor covers yet: nobody but the log itself speaks for them.
#[test]
fn leaves_that_no_anchor_covers() {
    let mut s = with_open_leaves("openpart");
    let open = s.text("SELECT event_id FROM agd.events WHERE tenant = 'acme' AND leaf_index = 600");
    s.names.push(("{open}", open));
    let doubt: &[&str] = &[
        "events@acme: event {open} does not hash to its leaf 600: it was changed, or the leaf was, which no anchor covers yet",
    ];
    s.each(&[
        ("UPDATE agd.event SET action = 'DELETE' WHERE xact_id || '-' || n = '{open}'", doubt),
        ("UPDATE agd.log SET open_tiles = set_byte(open_tiles, 88 * 32, 255 - get_byte(open_tiles, 88 * 32)) WHERE {acme}", doubt),
        (
            "DELETE FROM agd.event WHERE xact_id || '-' || n = '{open}'",
            &["events@acme: event {open} is missing: it was leaf 600", "complete@database: transaction "],
        ),
        (
            "UPDATE agd.log SET open_keys = set_byte(open_keys, 88 * 12 + 3, 7) WHERE {acme}",
            &["tiles@acme: the open tile in agd.log was changed: it names event"],
        ),
        // One leaf twice, everything else set right.
        (
            "UPDATE agd.log SET size = 701, open_keys = open_keys || substr(open_keys, 88 * 12 + 1, 12),
                    open_tiles = substr(open_tiles, 1, 188 * 32) || substr(open_tiles, 88 * 32 + 1, 32) || substr(open_tiles, 188 * 32 + 1)
              WHERE {acme}",
            &["complete@database: event {open} is more than one leaf: leaf 600 of "],
        ),
        // The newest leaf taken away again, and its event; with the count of its transaction, it was never there.
        (
            "UPDATE agd.log SET size = 699, open_keys = substr(open_keys, 1, 187 * 12),
                    open_tiles = substr(open_tiles, 1, 187 * 32) || substr(open_tiles, 188 * 32 + 1)
              WHERE {acme}",
            &["complete@database: is in no leaf, though the sequencer is past it"],
        ),
        (
            "UPDATE agd.log SET open_since = NULL WHERE {acme}",
            &["anchors@acme: no anchor covers the leaves from 512 on, and agd.log says that none is due"],
        ),
    ]);
    // What a verification ended with speaks for it too: which of the two was changed can be told then.
    assert_eq!(failures(&mut s.client, ""), []);
    let found = s.failures_after_tampering(
        "UPDATE agd.verified SET nodes = overlay(nodes PLACING sha256('x') FROM 1) WHERE {acme}",
        "",
    );
    compare(&found, &["anchors@acme: agd.verified holds another root at size 700 than the leaves have"]).unwrap();
    s.tamper("UPDATE agd.log SET open_tiles = set_byte(open_tiles, 88 * 32, 255 - get_byte(open_tiles, 88 * 32)) WHERE {acme}");
    let expected =
        s.fill("tiles@acme: the open tile in agd.log was changed: its hash of leaf 600 is not that of event {open}");
    compare(&failures(&mut s.client, ""), &[&expected]).unwrap();
}

/// An anchor at the very size where a verification ended is new all the same.
#[test]
fn an_anchor_that_comes_after_its_leaves_were_verified() {
    let mut s = with_open_leaves("lateanchor");
    anchor(&mut s.client);
    let sent =
        s.text("SELECT event_id FROM agd.events WHERE action = 'CHECKPOINT' AND body LIKE '%/t/acme' || E'\\n700\\n%'");
    s.names.push(("{late}", sent));
    let root = "platform@acme: the platform log holds another root for the anchor at size 700";
    for (sql, expected) in [
        (
            "UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 700 AND {acme}",
            &["anchors@acme: the anchor at size 700 has another root than the leaves", root][..],
        ),
        (
            "UPDATE agd.checkpoint SET guard_state = sha256('x') WHERE tree_size = 700 AND {acme}",
            &["anchors@acme: the anchor at size 700 has a guard state that was not in force"],
        ),
        (
            "DELETE FROM agd.checkpoint WHERE tree_size = 700 AND {acme}",
            &[
                "anchors@acme: no anchor covers the leaves from 512 on",
                "platform@acme: the platform log holds an anchor at size 700 that the log has lost",
            ],
        ),
        (
            "UPDATE agd.event SET body = replace(body, '700', '701') WHERE xact_id || '-' || n = '{late}'",
            &[
                "events@platform: event {late} was changed",
                "platform@acme: the anchor at size 700 is not in the platform log",
            ],
        ),
    ] {
        let expected: Vec<String> = expected.iter().map(|line| s.fill(line)).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        let found = s.failures_after_tampering(sql, "");
        compare(&found, &expected).unwrap_or_else(|problem| panic!("{sql}: {problem}"));
    }
    assert_eq!(failures(&mut s.client, ""), []);
    assert_eq!(failures(&mut s.client, ""), []);
}

// ------------------------------------------------------------------------------------------------------------- guards

/// A guard is dropped and put back: a pass of the worker's in between sees it, whether there is anything to anchor or not.
#[test]
fn a_guard_dropped_and_put_back_between_two_anchors() {
    let mut s = Scene::new("guards");
    // As a superuser does it: with no DDL on the table, which agd refuses.
    let mut tamperer = s.database.connect().unwrap();
    let gate = "tgrelid = 't'::regclass AND tgname IN ('~agd_record', '~agd_confirm')";
    tamperer
        .batch_execute(&format!(
            "SET allow_system_table_mods = on; CREATE TABLE kept AS SELECT * FROM pg_trigger WHERE {gate}"
        ))
        .unwrap();
    let drop = &format!("DELETE FROM pg_trigger WHERE {gate}");
    let put_back = "INSERT INTO pg_trigger SELECT * FROM kept";

    // In one go nobody sees it but agd.verify_table(), if it was used.
    let mut quick = s.database.connect().unwrap();
    quick.batch_execute(&format!("SET allow_system_table_mods = on; BEGIN; {drop}; UPDATE t SET v = 'unseen' WHERE id = 9; {put_back}; COMMIT")).unwrap();
    s.expect_row_found(r#"{"id": 9}"#, "v: recorded \"w\", found \"unseen\"");
    expect_verified(&mut s.client);

    tamperer.batch_execute(drop).unwrap();
    // Now it is open, and that is said at once.
    let now = "guards@platform: a guard is open now: public.t: trigger \"~agd_confirm\" is missing, changed or not ENABLE ALWAYS (and 1 more)";
    compare(&failures(&mut s.client, ""), &[now]).unwrap();
    assert_eq!(anchor(&mut s.client), 1, "somebody looked, and there was nothing but that");
    let opened = s.text("SELECT event_id FROM agd.events WHERE action = 'GUARD.STATE' AND body LIKE '% open: %'");
    tamperer.batch_execute(put_back).unwrap();
    s.client = s.database.connect().unwrap();
    s.client.batch_execute("INSERT INTO t VALUES (5000, 'back again', 0)").unwrap();
    anchor(&mut s.client);
    let then = format!(
        "guards@platform: a guard was open, says event {opened}: public.t: trigger \"~agd_confirm\" is missing"
    );
    compare(&failures(&mut s.client, ""), &[&then]).unwrap();
    // It is history: it stays so, with every scan.
    s.stays_found(&[&then]);
    compare(&failures(&mut s.client, ""), &[&then]).unwrap();

    // An anchor cannot carry the state of another time. The first state was in force before and after, the open one between.
    let states = "SELECT DISTINCT ON (first) encode(guard_state, 'hex'), min(anchored_at) OVER (PARTITION BY guard_state) AS first FROM agd.anchors ORDER BY first";
    let states: Vec<String> = s.client.query(states, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(states.len(), 2, "{states:?}");
    s.names.push(("{open}", states[1].clone()));
    let acme = "anchors@acme: the anchor at size 256 has a guard state that was not in force";
    let platform = "anchors@platform: the anchor at size 256 has a guard state that was not in force";
    for (sql, expected) in [
        (r"UPDATE agd.checkpoint SET guard_state = '\x{open}' WHERE tree_size = 256 AND {acme}", acme),
        (r"UPDATE agd.checkpoint SET guard_state = '\x{open}' WHERE tree_size = 256 AND {platform}", platform),
    ] {
        let found = s.failures_after(sql);
        compare(&found, &[expected, &then]).unwrap();
    }
}

/// What DBAs do with guards is no finding.
#[test]
fn guards_that_come_and_go_as_they_should() {
    let mut s = Scene::new("honest");
    for sql in [
        "ALTER TABLE t ADD COLUMN more text",
        "INSERT INTO t SELECT i, 'more', 0 FROM generate_series(1001, 1300) i",
        "SELECT agd.unguard('t', 'to be rebuilt')",
        "ALTER TABLE t RENAME TO u",
        "SELECT agd.guard('u', require_cause => true)",
        "CREATE TABLE p (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at)",
        "SELECT agd.guard('p')",
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM ('2026-01-01') TO ('2027-01-01')",
        "SELECT agd.set_cause('audit'); INSERT INTO u SELECT i, 'more', 0 FROM generate_series(2001, 2300) i",
    ] {
        s.client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        if sql.starts_with("SELECT") || sql.starts_with("CREATE TABLE p1") {
            anchor(&mut s.client);
        }
        assert_eq!(failures(&mut s.client, ""), [], "{sql}");
    }
    anchor(&mut s.client);
    expect_verified(&mut s.client);
}

// -------------------------------------------------------------------------------------------------------- incremental

/// Where an earlier verification ended is where the next one begins: damage behind it is found at once, damage before it by a
/// full scan alone. That is what an incremental verification believes.
#[test]
fn what_an_incremental_verification_sees() {
    let mut s = Scene::new("incremental");
    assert_eq!(failures(&mut s.client, ""), []);
    s.client.batch_execute("INSERT INTO t SELECT i, 'more', 0 FROM generate_series(1001, 1600) i").unwrap();
    s.client.batch_execute("INSERT INTO mine SELECT 'acme', i, 'more' FROM generate_series(1001, 1010) i").unwrap();
    anchor(&mut s.client);
    let new = s.text("SELECT event_id FROM agd.events WHERE action = 'INSERT' AND row_key->>'id' = '1500'");
    let xact = new.split('-').next().unwrap().to_owned();
    s.names.extend([("{new}", new), ("{new_xact}", xact)]);
    for (sql, expected) in [
        (
            "UPDATE agd.event SET action = 'UPDATE' WHERE xact_id || '-' || n = '{new}'",
            &["events@platform: event {new} was changed"][..],
        ),
        (
            "DELETE FROM agd.event WHERE xact_id || '-' || n = '{new}'",
            &[
                "events@platform: event {new} is missing",
                "complete@database: transaction {new_xact} does not have all its events: recorded 600, found 599",
            ],
        ),
        (
            "INSERT INTO agd.event (xact_id, n, at, action, salt) SELECT xact_id, 900000, at, action, salt FROM agd.event WHERE xact_id || '-' || n = '{new}'",
            &["complete@database: event {new_xact}-900000 is in no leaf"],
        ),
        (
            "DELETE FROM agd.checkpoint WHERE tree_size = 1024 AND {platform}",
            &["anchors@platform: the anchor at size 1024 is missing"],
        ),
        (
            "UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 310 AND {acme}",
            &[
                "anchors@acme: the anchor at size 310 has another root",
                "platform@acme: the platform log holds another root for the anchor at size 310",
            ],
        ),
        (
            "UPDATE agd.tile SET event_keys = overlay(event_keys PLACING substr(event_keys, 1, 12) FROM 13) WHERE tile_index = 4 AND {platform}",
            &["tiles@platform: tile 4 was changed: it names event"],
        ),
        (
            "UPDATE agd.verified SET tree_size = 100000, nodes = (SELECT string_agg(sha256('x'), '') FROM generate_series(1, 6)) WHERE {acme}",
            &["tiles@acme: the log has 310 leaves, and 100000 were verified before"],
        ),
        // What was verified before is believed to be as it was.
        ("UPDATE agd.event SET new = '{}' WHERE {event}", &[]),
        ("DELETE FROM agd.event WHERE {event}", &[]),
        ("UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 256 AND {acme}", &[]),
    ] {
        let found = s.failures_after_tampering(sql, "");
        let expected: Vec<String> = expected.iter().map(|line| s.fill(line)).collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        compare(&found, &expected).unwrap_or_else(|problem| panic!("{sql}: {problem}"));
    }
    // One log alone: its own part of it.
    let acme = s.text("SELECT origin FROM agd.log WHERE tenant = 'acme'");
    let lines = s.client.query("SELECT check_name, ok, entries FROM agd.verify($1)", &[&acme]).unwrap();
    let lines: Vec<(String, bool, i64)> = lines.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    let line = |name: &str, entries| (name.to_owned(), true, entries);
    assert_eq!(lines, [line("events", 10), line("tiles", 10), line("anchors", 1), line("platform", 1)]);
    // Then it was verified, but not counted with the others.
    let lines = s
        .client
        .query("SELECT check_name, entries FROM agd.verify() WHERE origin IN ($1, '(database)')", &[&acme])
        .unwrap();
    let lines: Vec<(String, i64)> = lines.iter().map(|row| (row.get(0), row.get(1))).collect();
    let line = |name: &str, entries| (name.to_owned(), entries);
    assert_eq!(
        lines[..5],
        [line("events", 0), line("tiles", 0), line("anchors", 0), line("platform", 1), line("logs", 3)]
    );
    // Everything was seen by now.
    let new: i64 = s.client.query_one("SELECT sum(entries)::bigint FROM agd.verify() WHERE check_name IN ('events', 'tiles', 'anchors', 'platform', 'complete')", &[]).unwrap().get(0);
    assert_eq!(new, 0);
    expect_verified(&mut s.client);
}
