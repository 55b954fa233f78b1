//! Tampering is found and named. The tamperer is a superuser who goes past every trigger, straight to the catalog.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agd_live_tests::record::{anchor, expect_verified, failed_checks};
use agd_live_tests::{Cluster, TestDb};
use postgres::Client;
use std::sync::OnceLock;

/// In the platform log two guards, 700 inserts, 100 updates and 50 deletes; in a tenant's 300 inserts.
const SETUP: [&str; 2] = [
    "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric);
     CREATE TABLE mine (tenant text, id int, v text, PRIMARY KEY (tenant, id));
     SELECT agd.create_tenant('acme'); SELECT agd.guard('t'); SELECT agd.guard('mine', tenant_column => 'tenant');
     INSERT INTO t SELECT i, 'v' || i, i FROM generate_series(1, 700) i;
     INSERT INTO mine SELECT 'acme', i, 'v' FROM generate_series(1, 300) i",
    "SELECT agd.set_cause('spring cleaning'); UPDATE t SET v = 'w' WHERE id <= 100; DELETE FROM t WHERE id BETWEEN 51 AND 100",
];

struct Scene {
    client: Client,
    database: TestDb<'static>,
}

impl Scene {
    /// Everything anchored and verified.
    fn new(stem: &str) -> Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        let database = CLUSTER.get_or_init(|| Cluster::builder().start().unwrap()).agd_database(stem).unwrap();
        let mut client = database.connect().unwrap();
        for sql in SETUP {
            client.batch_execute(sql).unwrap();
        }
        anchor(&mut client);
        expect_verified(&mut client);
        Self { client, database }
    }

    /// Tampers with every trigger off that could be in the way.
    fn tamper(&mut self, sql: &str) {
        let mut tamperer = self.database.tamperer().unwrap();
        let changed = tamperer.execute(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        assert!(changed > 0, "changed nothing: {sql}");
        tamperer.commit().unwrap();
        self.client = self.database.connect().unwrap();
    }

    fn text(&mut self, sql: &str) -> String {
        self.client.query_one(sql, &[]).unwrap().get(0)
    }

    /// `agd.verify()` must fail, and one of its failures must name `needle`; again after everything was anchored anew.
    fn found(&mut self, needle: &str) -> Result<(), String> {
        for time in ["first", "second"] {
            let (failed, _) = failed_checks(&mut self.client)
                .map_err(|error| format!("the {time} time agd.verify() raised an error: {error:?}"))?;
            if !failed.iter().any(|failure| failure.contains(needle)) {
                return Err(format!("the {time} time nothing names {needle}: {failed:#?}"));
            }
            // It may refuse to go on from a log that is broken; it must not mend it.
            self.client.batch_execute("SELECT agd.anchor()").ok();
        }
        Ok(())
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

/// Each case in a database of its own: (what the tamperer does, what the finding must name). `{event}` stands for the id of
/// the event that inserted row 300 of `t`, `{xact}` for its transaction, `{platform}` for the platform log.
#[track_caller]
fn each(stem: &str, cases: &[(&str, &str)]) {
    let mut missed = Vec::new();
    for (sql, needle) in cases {
        let mut s = Scene::new(stem);
        let event = s.text(
            "SELECT event_id FROM agd.events WHERE relation = 'public.t' AND action = 'INSERT' AND new->>'v' = 'v300'",
        );
        let xact = event.split('-').next().unwrap();
        let fill = |text: &str| {
            text.replace("{event}", &format!("xact_id || '-' || n = '{event}'"))
                .replace("{id}", &event)
                .replace("{xact}", xact)
                .replace("{platform}", "log_id = (SELECT log_id FROM agd.log WHERE tenant IS NULL)")
                .replace("{acme}", "log_id = (SELECT log_id FROM agd.log WHERE tenant = 'acme')")
        };
        s.tamper(&fill(sql));
        if let Err(problem) = s.found(&fill(needle)) {
            missed.push(format!("{sql}\n    {problem}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

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
fn an_event_deleted() {
    each("evdel", &[("DELETE FROM agd.event WHERE {event}", "{id}")]);
}

#[test]
fn the_last_event_deleted() {
    let mut s = Scene::new("evlast");
    let id = s.text(
        "SELECT event_id FROM agd.events WHERE tenant IS NULL AND action = 'DELETE' ORDER BY leaf_index DESC LIMIT 1",
    );
    s.tamper(&format!("DELETE FROM agd.event WHERE xact_id || '-' || n = '{id}'"));
    s.found(&id).unwrap();
}

#[test]
fn a_whole_transaction_deleted() {
    each(
        "xactdel",
        &[
            ("DELETE FROM agd.transaction WHERE xact_id = '{xact}'", "{xact}-"),
            (
                "WITH t AS (DELETE FROM agd.transaction WHERE xact_id = '{xact}') DELETE FROM agd.event WHERE xact_id = '{xact}'",
                "{xact}-",
            ),
        ],
    );
}

#[test]
fn an_image_changed() {
    each(
        "image",
        &[
            ("UPDATE agd.event SET new = (replace(new::text, 'v300', 'v3OO'))::json WHERE {event}", "{id}"),
            ("UPDATE agd.event SET new = (new::text || ' ')::json WHERE {event}", "{id}"),
            ("UPDATE agd.event SET new = NULL WHERE {event}", "{id}"),
            ("UPDATE agd.event SET old = '{}' WHERE {event}", "{id}"),
            (r#"UPDATE agd.event SET row_key = '{"id":301}' WHERE {event}"#, "{id}"),
            (r"UPDATE agd.event SET salt = '\x00112233445566778899aabbccddeeff' WHERE {event}", "{id}"),
            (
                "UPDATE agd.event e SET row_key = o.row_key, new = o.new FROM agd.event o
                  WHERE e.new->>'v' IN ('v300', 'v301') AND o.new->>'v' IN ('v300', 'v301') AND o.n <> e.n",
                "{id}",
            ),
        ],
    );
}

#[test]
fn a_header_changed() {
    each(
        "header",
        &[
            ("UPDATE agd.event SET action = 'DELETE' WHERE {event}", "{id}"),
            ("UPDATE agd.event SET at = at + interval '1 microsecond' WHERE {event}", "{id}"),
            ("UPDATE agd.event SET relation = 'public.other' WHERE {event}", "{id}"),
            ("UPDATE agd.event SET guard_id = gen_random_uuid() WHERE {event}", "{id}"),
            ("UPDATE agd.event SET body = 'a word' WHERE {event}", "{id}"),
            ("UPDATE agd.event SET role_name = 'somebody' WHERE {event}", "{id}"),
            ("UPDATE agd.event SET n = n + 100000 WHERE {event}", "{id}"),
            ("UPDATE agd.event SET tenant = 'acme' WHERE {event}", "{id}"),
            ("UPDATE agd.event SET tenant = 'nosuch' WHERE {event}", "{id}"),
        ],
    );
}

#[test]
fn the_context_of_a_transaction_changed() {
    each(
        "context",
        &[
            ("UPDATE agd.transaction SET session_user_name = 'somebody' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET role_name = 'somebody' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET principal = 'nobody' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET fleet_id = '0011223344556677' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET cause = 'another' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET binding = 'none' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET application_name = 'x' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET client_addr = '10.0.0.1' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET stamp = stamp + interval '1 microsecond' WHERE xact_id = '{xact}'", "{xact}-"),
            ("UPDATE agd.transaction SET events = events + 1 WHERE xact_id = '{xact}'", "{xact}"),
        ],
    );
}

const FORGED: &str = "INSERT INTO agd.event
    SELECT xact_id, 900000, at, guard_id, tenant, action, relation, salt, row_key, old, new, body FROM agd.event WHERE {event}";

#[test]
fn a_forged_event() {
    // As it is; with the transaction's own count set right; and in a transaction from before the first event, complete.
    let counted =
        format!("WITH x AS (UPDATE agd.transaction SET events = events + 1 WHERE xact_id = '{{xact}}') {FORGED}");
    let ancient = "WITH x AS (INSERT INTO agd.transaction
                              SELECT '5', stamp, 1, session_user_name, role_name, principal, fleet_id, cause, binding, application_name, client_addr
                                FROM agd.transaction WHERE xact_id = '{xact}')
                   INSERT INTO agd.event
                   SELECT '5', 0, at, guard_id, tenant, action, relation, salt, row_key, old, new, body FROM agd.event WHERE {event}";
    each("forged", &[(FORGED, "{xact}-900000"), (&counted, "{xact}-900000"), (ancient, "5-0")]);
}

#[test]
fn an_anchor_changed_or_removed() {
    each(
        "anchor",
        &[
            ("UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 256 AND {platform}", "size 256"),
            ("UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 256 AND {acme}", "size 256"),
            ("UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 300 AND {acme}", "size 300"),
            ("UPDATE agd.checkpoint SET tree_size = 257 WHERE tree_size = 256 AND {platform}", "size 25"),
            ("UPDATE agd.checkpoint SET tree_size = 100000 WHERE tree_size = 300 AND {acme}", "size 100000"),
            ("DELETE FROM agd.checkpoint WHERE tree_size = 256 AND {platform}", "size 256"),
            ("DELETE FROM agd.checkpoint WHERE tree_size = 256 AND {acme}", "size 256"),
            ("UPDATE agd.checkpoint SET guard_state = sha256('x') WHERE tree_size = 256 AND {platform}", "size 256"),
        ],
    );
}

#[test]
fn a_tile_changed_or_removed() {
    each(
        "tile",
        &[
            (
                "UPDATE agd.tile SET hashes = set_byte(hashes, 1000, 255 - get_byte(hashes, 1000)) WHERE level = 0 AND tile_index = 1 AND {platform}",
                "",
            ),
            (
                "UPDATE agd.tile SET event_keys = set_byte(event_keys, 500, 255 - get_byte(event_keys, 500)) WHERE level = 0 AND tile_index = 1 AND {platform}",
                "",
            ),
            ("DELETE FROM agd.tile WHERE level = 0 AND tile_index = 1 AND {platform}", "tile 1"),
        ],
    );
}

#[test]
fn a_log_changed() {
    each(
        "logrow",
        &[
            ("UPDATE agd.log SET size = size - 1 WHERE {platform}", ""),
            ("UPDATE agd.log SET size = size + 1 WHERE {platform}", ""),
            ("UPDATE agd.log SET size = size + 256 WHERE {acme}", "/t/acme"),
            (
                "UPDATE agd.log SET open_tiles = set_byte(open_tiles, 3, 255 - get_byte(open_tiles, 3)) WHERE {acme}",
                "/t/acme",
            ),
            ("UPDATE agd.log SET open_tiles = substr(open_tiles, 33) WHERE {acme}", "/t/acme"),
            (
                "UPDATE agd.log SET open_keys = set_byte(open_keys, 3, 255 - get_byte(open_keys, 3)) WHERE {acme}",
                "/t/acme",
            ),
            ("UPDATE agd.log SET open_keys = substr(open_keys, 13) WHERE {acme}", "/t/acme"),
            ("UPDATE agd.log SET origin = origin || 'x' WHERE {acme}", "/t/acme"),
        ],
    );
}

/// A tenant's log is cut back to an older anchor, its events, leaves and counts with it: it agrees with itself, but the
/// platform log holds a later checkpoint of it.
#[test]
fn a_tenants_log_cut_back_consistently() {
    let mut s = Scene::new("cutback");
    s.tamper(
        "WITH c AS (DELETE FROM agd.checkpoint WHERE tree_size = 300 AND log_id = (SELECT log_id FROM agd.log WHERE tenant = 'acme')),
              l AS (UPDATE agd.log SET size = 256, open_tiles = substr(open_tiles, 44 * 32 + 1), open_keys = '',
                           open_first_stamp = NULL, open_last_stamp = NULL
                     WHERE tenant = 'acme'),
              x AS (UPDATE agd.transaction SET events = events - 44 WHERE xact_id = (SELECT min(xact_id::text)::xid8 FROM agd.event WHERE tenant = 'acme'))
         DELETE FROM agd.event WHERE tenant = 'acme' AND (new->>'id')::int > 256",
    );
    let unrecorded: i64 = s.client.query_one("SELECT count(*) FROM agd.verify_table('mine')", &[]).unwrap().get(0);
    assert_eq!(unrecorded, 44, "rows whose records are gone");
    s.found("300").unwrap();
}

/// Where an earlier verification ended is where the next one begins: what was damaged after it is found without a full scan.
#[test]
fn an_incremental_check_sees_new_damage() {
    let mut s = Scene::new("incremental");
    s.client.batch_execute("INSERT INTO t SELECT i, 'more', 0 FROM generate_series(1001, 1600) i").unwrap();
    anchor(&mut s.client);
    let id = s.text("SELECT event_id FROM agd.events WHERE action = 'INSERT' AND row_key->>'id' = '1500'");
    s.tamper(&format!("UPDATE agd.event SET action = 'UPDATE' WHERE xact_id || '-' || n = '{id}'"));
    let rows = s.client.query("SELECT detail FROM agd.verify() WHERE NOT ok", &[]).unwrap();
    let details: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert!(details.iter().any(|detail| detail.contains(&id)), "{details:?}");
}
