//! What somebody did past the gate stays visible, however the rows are written after; and honest writes are never accused.
//! Each test goes past the gate as a superuser, and then writes as the owner of the tables does.

use agd_live_tests::{Cluster, Watch};
use postgres::Client;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

struct Scene {
    g: Watch,
    owner: Client,
}

impl Scene {
    /// `setup` is run by the owner, `guards` by the superuser.
    fn new(stem: &str, setup: &str, guards: &str) -> Self {
        let mut g = Watch::new(cluster(), stem, "").unwrap();
        let owner_name = format!("{}_owner1", g.database().name());
        cluster().create_role(&owner_name, "").unwrap();
        g.run(&format!("GRANT CREATE ON SCHEMA public TO {owner_name}; GRANT agd_platform TO {owner_name}"));
        let mut owner = g.database().connect_as(&owner_name).unwrap();
        owner.batch_execute(setup).unwrap();
        g.run(guards);
        Self { g, owner }
    }

    /// A superuser, past every trigger.
    fn past(&mut self, sql: &str) {
        let mut tamperer = self.g.database().tamperer().unwrap();
        tamperer.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        tamperer.commit().unwrap();
    }

    fn own(&mut self, sql: &str) {
        self.owner.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Key and problem, without the events' numbers.
    fn problems(&mut self, table: &str) -> Vec<String> {
        self.g.column(&format!(
            "SELECT concat_ws(' ', row_key, regexp_replace(problem, '[0-9]+-[0-9]+', '#', 'g')) FROM agd.verify_table('{table}')"
        ))
    }

    #[track_caller]
    fn is_clean(&mut self, table: &str) {
        assert_eq!(self.problems(table), [""; 0], "{table}");
    }

    /// There is one problem, which says these things, and names an event.
    #[track_caller]
    fn says(&mut self, table: &str, what: &[&str]) {
        let found = self.problems(table);
        assert_eq!(found.len(), 1, "{found:?}");
        what.iter().for_each(|what| assert!(found[0].contains(what), "{found:?} does not say {what}"));
    }
}

const T: &str =
    "CREATE TABLE t (id int PRIMARY KEY, amount numeric, note text); INSERT INTO t VALUES (1, 12, 'a'), (2, 20, 'b')";

#[test]
fn a_value_changed_past_the_gate_stays_visible_after_the_owners_next_write() {
    for (number, write) in [
        "UPDATE t SET amount = amount",
        "UPDATE t SET amount = 12 WHERE id = 1",
        "UPDATE t SET note = 'x'; UPDATE t SET amount = 5; UPDATE t SET amount = 12",
        "DELETE FROM t WHERE id = 1",
        "UPDATE t SET id = 100 WHERE id = 1",
        "UPDATE t SET id = 100 WHERE id = 1; UPDATE t SET id = 1 WHERE id = 100",
        "ALTER TABLE t ALTER note TYPE varchar USING note || '!'",
        "ALTER TABLE t ALTER note TYPE varchar USING note; ALTER TABLE t RENAME amount TO price; UPDATE t SET price = 9",
        "BEGIN; UPDATE t SET amount = 1; DELETE FROM t; INSERT INTO t VALUES (1, 12, 'a'); COMMIT",
        "INSERT INTO t VALUES (1, 0, 'x') ON CONFLICT (id) DO UPDATE SET note = excluded.note",
        "MERGE INTO t USING (VALUES (1)) s(i) ON t.id = s.i WHEN MATCHED THEN UPDATE SET note = 'm'",
        "WITH d AS (DELETE FROM t WHERE id = 1 RETURNING *) SELECT * FROM d",
    ]
    .into_iter()
    .enumerate()
    {
        let mut s = Scene::new(&format!("value{number}"), T, "SELECT agd.guard('t')");
        s.past("UPDATE t SET amount = 2 WHERE id = 1");
        s.says("t", &["{\"id\": 1} row differs from its last record in amount: recorded 12, found 2"]);
        s.own(write);
        s.says("t", &["{\"id\": 1}", "no record left", ": recorded 12, it found 2"]);
        // And for good.
        s.own("UPDATE t SET note = note; UPDATE t SET note = note");
        s.says("t", &[": recorded 12, it found 2"]);
    }
}

#[test]
fn a_row_removed_past_the_gate_stays_visible_after_its_key_was_used_again() {
    for (number, write) in [
        "INSERT INTO t VALUES (1, 12, 'a')",
        "INSERT INTO t VALUES (1, 12, 'a'); DELETE FROM t WHERE id = 1",
        "BEGIN; INSERT INTO t VALUES (1, 12, 'a'); DELETE FROM t WHERE id = 1; COMMIT",
        "INSERT INTO t VALUES (1, 7, 'other'); UPDATE t SET amount = 12 WHERE id = 1; DELETE FROM t WHERE id = 1",
        "UPDATE t SET id = 1 WHERE id = 2; UPDATE t SET id = 2 WHERE id = 1",
    ]
    .into_iter()
    .enumerate()
    {
        let mut s = Scene::new(&format!("removed{number}"), T, "SELECT agd.guard('t')");
        s.past("DELETE FROM t WHERE id = 1");
        s.says("t", &["{\"id\": 1} row is missing: it was deleted outside the gate"]);
        s.own(write);
        s.says("t", &["{\"id\": 1}", "deleted outside the gate"]);
    }
}

#[test]
fn a_row_added_past_the_gate_stays_visible_after_it_was_written_or_recorded_again() {
    for (number, write) in [
        "UPDATE t SET amount = amount",
        "DELETE FROM t WHERE id = 3",
        "UPDATE t SET id = 4 WHERE id = 3; DELETE FROM t WHERE id = 4",
        "ALTER TABLE t ALTER amount TYPE text USING amount::text",
        "BEGIN; ALTER TABLE t ALTER amount TYPE text USING amount::text; DELETE FROM t WHERE id = 3; COMMIT",
    ]
    .into_iter()
    .enumerate()
    {
        let mut s = Scene::new(&format!("added{number}"), T, "SELECT agd.guard('t')");
        s.past("INSERT INTO t VALUES (3, 1000, 'never')");
        s.says("t", &["{\"id\": 3} row is there without a record"]);
        s.own(write);
        s.says("t", &["{\"id\": 3}", "added outside the gate"]);
    }
    // One that was deleted by right, and is back.
    let mut s = Scene::new("back", T, "SELECT agd.guard('t')");
    s.own("DELETE FROM t WHERE id = 1");
    s.past("INSERT INTO t VALUES (1, 12, 'a')");
    s.own("UPDATE t SET note = 'z'");
    s.says("t", &["{\"id\": 1}", "added outside the gate"]);
}

#[test]
fn partitions_tenants_and_redacted_columns_are_followed_alike() {
    let mut s = Scene::new(
        "kinds",
        "CREATE TABLE p (k int, id int, v text, secret text, PRIMARY KEY (k, id)) PARTITION BY LIST (k);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
         CREATE TABLE p2 (secret text, gone int, v text, id int NOT NULL, k int NOT NULL, PRIMARY KEY (k, id));
         ALTER TABLE p2 DROP COLUMN gone; ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2);
         INSERT INTO p VALUES (1, 1, 'a', 's1'), (1, 2, 'b', 's2'), (2, 3, 'c', 's3');
         CREATE TABLE o (tenant text, id int, v text, PRIMARY KEY (tenant, id))",
        "SELECT agd.create_tenant('acme'); SELECT agd.guard('p', redact => '{secret}');
         SELECT agd.guard('o', tenant_column => 'tenant'); INSERT INTO o VALUES ('acme', 1, 'a'), ('acme', 2, 'b')",
    );
    // To and fro between partitions whose columns stand in another order.
    s.own("UPDATE p SET k = 2 WHERE id = 1; UPDATE p SET v = v; UPDATE p SET k = 1 WHERE id = 1; UPDATE p SET secret = 'new'");
    s.g.run("UPDATE o SET v = v");
    s.is_clean("p");
    s.is_clean("o");
    s.past(
        "UPDATE p SET secret = 'x' WHERE id = 3; UPDATE p SET v = 'x' WHERE id = 2; UPDATE o SET v = 'x' WHERE id = 1",
    );
    s.own("UPDATE p SET k = 3 - k");
    s.g.run("UPDATE o SET v = v");
    let found = s.problems("p");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("v: recorded \"b\", it found \"x\""), "{found:?}");
    assert!(found[1].contains("secret: recorded \"hmac-sha256:"), "{found:?}");
    s.says("o", &["{\"id\": 1, \"tenant\": \"acme\"}", "v: recorded \"a\", it found \"x\""]);
    // Who may not see values is told the columns.
    let found: Vec<String> =
        s.owner.query("SELECT problem FROM agd.verify_table('o')", &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert!(found.len() == 1 && found[0].ends_with("): v"), "{found:?}");
}

#[test]
fn rows_that_leave_and_come_back_with_a_partition_are_followed() {
    let mut s = Scene::new(
        "partition",
        "CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 'a'), (2, 'b')",
        "SELECT agd.guard('p')",
    );
    s.own("ALTER TABLE p DETACH PARTITION p1; UPDATE p1 SET v = 'free' WHERE id = 1; DELETE FROM p1 WHERE id = 2");
    s.is_clean("p");
    s.own("ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10); UPDATE p SET v = v");
    s.is_clean("p");
    s.own(
        "BEGIN; ALTER TABLE p ALTER v TYPE varchar USING v || '1'; ALTER TABLE p DETACH PARTITION p1;
         ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10); COMMIT",
    );
    s.is_clean("p");
    s.past("UPDATE p SET v = 'x'");
    s.own("ALTER TABLE p DETACH PARTITION p1; ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10)");
    s.says("p", &["DELETE # starts from an image that no record left", "v: recorded \"free1\", it found \"x\""]);
}

#[test]
fn values_are_compared_as_they_were_recorded() {
    let mut s = Scene::new(
        "exact",
        "CREATE TABLE e (id int PRIMARY KEY, j json, n numeric, f float8, a jsonb, t text);
         INSERT INTO e SELECT i, '{\"role\":\"user\"}', 1.5, 0, '[1]', NULL FROM generate_series(1, 8) i",
        "SELECT agd.guard('e')",
    );
    s.own("UPDATE e SET t = NULL; UPDATE e SET n = n");
    s.is_clean("e");
    s.past(
        "UPDATE e SET j = '{\"role\":\"admin\",\"role\":\"user\"}' WHERE id = 1; UPDATE e SET j = '{\"role\": \"user\"}' WHERE id = 2;
         UPDATE e SET n = 1.50 WHERE id = 3; UPDATE e SET f = '-0' WHERE id = 4; UPDATE e SET a = '[1.0]' WHERE id = 5;
         UPDATE e SET t = 'null' WHERE id = 6; UPDATE e SET t = '' WHERE id = 7",
    );
    let ends = |found: Vec<String>, word: &str| -> Vec<String> {
        found.iter().map(|text| text.rsplit(&format!(", {word} ")).next().unwrap_or_default().to_owned()).collect()
    };
    let expected =
        ["{\"role\":\"admin\",\"role\":\"user\"}", "{\"role\": \"user\"}", "1.50", "-0.0", "[1.0]", "\"null\"", "\"\""];
    let found = ends(s.problems("e"), "found");
    assert_eq!(found, expected);
    s.own("UPDATE e SET id = id");
    let found = ends(s.problems("e"), "it found");
    assert_eq!(found, expected);
}

#[test]
fn keys_that_are_swapped_shifted_or_grow_are_no_alarm_and_hide_none() {
    let mut s = Scene::new(
        "keys",
        "CREATE TABLE d (id int PRIMARY KEY DEFERRABLE, v text); INSERT INTO d SELECT i, 'v' || i FROM generate_series(1, 30) i;
         CREATE TABLE j (k jsonb, a int[], r int4range, v text, PRIMARY KEY (k, a, r));
         INSERT INTO j VALUES ('{\"a\": 1}', '{1}', '[1,2)', 'x'), ('{\"a\": 1, \"b\": 2}', '{1}', '[1,2)', 'y')",
        "SELECT agd.guard('d'); SELECT agd.guard('j')",
    );
    s.own("UPDATE d SET id = 31 - id; UPDATE d SET id = id + 1; UPDATE d SET id = id - 1");
    s.own(
        "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE d SET id = 5 WHERE id = 6; UPDATE d SET v = 'new' WHERE v = 'v25';
         INSERT INTO d VALUES (5, 'third'); DELETE FROM d WHERE v = 'v26'; UPDATE d SET id = 6 WHERE v = 'third'; COMMIT",
    );
    s.is_clean("d");
    s.own(
        "UPDATE j SET k = '{\"a\": 1, \"b\": 2, \"c\": 3}' WHERE v = 'x'; UPDATE j SET a = '{1,2}' WHERE v = 'y';
         UPDATE j SET r = '[1,9)'; UPDATE j SET v = v",
    );
    s.is_clean("j");
    s.past("UPDATE d SET v = 'x' WHERE id = 10");
    s.own("UPDATE d SET id = 31 - id; UPDATE d SET id = 31 - id");
    s.says("d", &["{\"id\": 10}", "v: recorded \"v21\", it found \"x\""]);
    // A key is this key, and not one that holds it.
    let count =
        |s: &mut Scene, key: &str| -> i64 { s.g.one(&format!("SELECT count(*) FROM agd.history('j', '{key}')")) };
    let whole = r#"{"k": {"a": 1}, "a": [1], "r": "[1,2)"}"#.replace("[1],", "\"{1}\",");
    assert_eq!(count(&mut s, &whole), 2);
    assert_eq!(count(&mut s, r#"{"k": {"a": 1}}"#), 2);
    assert_eq!(count(&mut s, r#"{"k": {}}"#), 0);
    assert_eq!(count(&mut s, "{}"), 0);
}

#[test]
fn columns_are_known_by_their_numbers_and_not_by_their_names() {
    let mut s = Scene::new(
        "columns",
        "CREATE TABLE c (id int PRIMARY KEY, a text, b text); INSERT INTO c SELECT i, 'a' || i, 'b' || i FROM generate_series(1, 6) i;
         CREATE TABLE p (id int PRIMARY KEY, a text, b text) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); INSERT INTO p SELECT * FROM c",
        "SELECT agd.guard('c'); SELECT agd.guard('p')",
    );
    for table in ["c", "p"] {
        for (number, ddl) in [
            "DROP COLUMN a, ADD COLUMN a text",
            "RENAME b TO a2",
            "DROP COLUMN a",
            "RENAME a2 TO a",
            "RENAME a TO was_a",
            "ADD COLUMN a text",
            "ALTER was_a TYPE varchar(30)",
            "ALTER was_a TYPE int USING length(was_a)",
            "RENAME was_a TO b",
            "ADD COLUMN z int, ALTER b TYPE bigint",
        ]
        .into_iter()
        .enumerate()
        {
            s.own(&format!("ALTER TABLE {table} {ddl}"));
            s.is_clean(table);
            // One row is written, the others stand as they were recorded.
            s.own(&format!("UPDATE {table} SET id = id WHERE id = {}", number % 6 + 1));
            s.is_clean(table);
        }
        s.past(&format!("UPDATE {table} SET a = 'a5' WHERE id = 5; UPDATE {table} SET b = 7 WHERE id = 4"));
        s.own(&format!("UPDATE {table} SET id = id"));
        let found = s.problems(table);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("b: recorded 2, it found 7"), "{found:?}");
        assert!(found[1].contains("a: recorded null, it found \"a5\""), "{found:?}");
    }
    let columns: Vec<String> = s.g.column(
        "SELECT new->>'columns' FROM agd.events WHERE action = 'DDL' AND relation = 'public.c' ORDER BY committed_at",
    );
    assert_eq!(columns[..2], [r#"[[2, "a", null], [4, null, "a"]]"#, r#"[[3, "b", "a2"]]"#]);
    let first: String = s.g.one("SELECT new::text FROM agd.events WHERE action = 'GUARD' AND relation = 'public.c'");
    assert_eq!(first, r#"{"columns": [[1, null, "id"], [2, null, "a"], [3, null, "b"]], "baseline": true}"#);
}

#[test]
fn rows_from_before_a_guard_without_baseline_are_called_so() {
    let mut s = Scene::new("before", T, "SELECT agd.guard('t', baseline => false)");
    let before = "row is from before the guard: no record says what it was";
    assert_eq!(s.problems("t"), [format!("{{\"id\": 1}} {before}"), format!("{{\"id\": 2}} {before}")]);
    s.own("UPDATE t SET amount = 1 WHERE id = 1; INSERT INTO t VALUES (3, 3, 'c'); DELETE FROM t WHERE id = 2");
    s.is_clean("t");
    s.past("UPDATE t SET amount = 2");
    s.own("UPDATE t SET note = 'x'");
    let found = s.problems("t");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("amount: recorded 1, it found 2"), "{found:?}");
    // What is recorded again is recorded.
    let mut s = Scene::new("beforeagain", T, "SELECT agd.guard('t', baseline => false)");
    s.own("ALTER TABLE t ALTER amount TYPE text USING amount::text");
    s.is_clean("t");
}

/// agd's own list of guarded tables names them, and a name may change.
#[test]
fn a_guarded_table_that_is_renamed_is_no_alarm() {
    let mut s = Scene::new("renamed", T, "SELECT agd.guard('t')");
    s.own("ALTER TABLE t RENAME TO u; UPDATE u SET note = 'n'");
    s.is_clean("u");
    s.is_clean("agd.guarded_table");
    s.g.run("SELECT agd.unguard('u', 'why')");
    s.is_clean("agd.guarded_table");
}

#[test]
fn after_truncate_every_key_begins_anew() {
    let mut s = Scene::new("truncate", T, "SELECT agd.guard('t', on_truncate => 'record')");
    s.own("TRUNCATE t; INSERT INTO t VALUES (1, 1, 'new')");
    s.is_clean("t");
    s.own("BEGIN; UPDATE t SET amount = 3; TRUNCATE t; INSERT INTO t VALUES (1, 4, 'z'), (5, 5, 'y'); UPDATE t SET amount = 6; COMMIT");
    s.is_clean("t");
    s.own("TRUNCATE t");
    s.past("INSERT INTO t VALUES (1, 4, 'z')");
    s.own("UPDATE t SET note = 'q'");
    s.says("t", &["{\"id\": 1}", "added outside the gate"]);
}

#[test]
fn a_change_of_type_washes_nothing_off() {
    let mut s = Scene::new(
        "retype",
        "CREATE TABLE r (id int PRIMARY KEY, v int, tx varchar(5)); INSERT INTO r SELECT i, i, 'c' FROM generate_series(1, 4) i",
        "SELECT agd.guard('r')",
    );
    s.past("UPDATE r SET v = 100, tx = 'evil' WHERE id = 3");
    s.own("ALTER TABLE r ALTER v TYPE bigint, ALTER tx TYPE text");
    s.says("r", &["{\"id\": 3}", "v: recorded 3, it found 100", "tx: recorded \"c\", it found \"evil\""]);
    // Honest rows are not accused, whichever way the type goes.
    let mut honest = Scene::new(
        "retype_honest",
        "CREATE TABLE r (id int PRIMARY KEY, v bigint, tx text, n numeric(9, 2));
         INSERT INTO r SELECT i, i, 'c ' || i || '  ', i FROM generate_series(1, 4) i",
        "SELECT agd.guard('r')",
    );
    for sql in [
        "ALTER TABLE r ALTER v TYPE smallint, ALTER tx TYPE varchar(20)",
        "ALTER TABLE r ALTER tx TYPE varchar(4)",
        "ALTER TABLE r ALTER tx TYPE varchar(9), ALTER v TYPE int, ALTER n TYPE numeric(12, 4)",
        "ALTER TABLE r ALTER v TYPE text, ALTER n TYPE int",
        "ALTER TABLE r ALTER v TYPE int USING v::int",
    ] {
        honest.own(sql);
        honest.is_clean("r");
        honest.own("UPDATE r SET id = id WHERE id = 2");
        honest.is_clean("r");
    }
}
