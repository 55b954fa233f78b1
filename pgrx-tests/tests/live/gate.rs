//! The gate: one record for one write, exactly, whatever kind of statement writes.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, Watch, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

fn simple(stem: &str) -> Watch {
    Watch::simple(cluster(), stem).unwrap()
}

fn set_up(stem: &str, setup: &str) -> Watch {
    Watch::new(cluster(), stem, setup).unwrap()
}

fn copy_in(g: &mut Watch, sql: &str, data: &str) -> Result<u64, postgres::Error> {
    let mut copy = g.copy_in(sql)?;
    copy.write_all(data.as_bytes()).unwrap();
    copy.finish()
}

#[test]
fn one_record_for_one_write() {
    let mut g = simple("plain");
    g.records("t", "INSERT INTO t VALUES (4, 'd'), (5, 'e')", &["INSERT 4", "INSERT 5"]);
    g.records("t", "UPDATE t SET v = 'A' WHERE id IN (1, 4)", &["UPDATE 1", "UPDATE 4"]);
    g.records("t", "UPDATE t SET v = v WHERE id = 2", &["UPDATE 2"]);
    g.records("t", "UPDATE t SET id = 50 WHERE id = 5", &["UPDATE 5"]);
    g.records("t", "DELETE FROM t WHERE id = 50", &["DELETE 50"]);
    g.records("t", "INSERT INTO t SELECT 9, 'x' WHERE false", &[]);
    g.records("t", "UPDATE t SET v = 'x' WHERE id = 99", &[]);
    g.records("t", "DELETE FROM t WHERE false", &[]);
    // The joined row comes twice and is updated once.
    g.records("t", "UPDATE t SET v = u.v FROM (VALUES ('p'), ('q')) u(v) WHERE id = 3", &["UPDATE 3"]);
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn returning_gives_the_rows_and_one_record_each() {
    let mut g = simple("returning");
    let ids: Vec<i32> = g.column("INSERT INTO t VALUES (4, 'd'), (5, 'e') RETURNING id");
    assert_eq!(ids, [4, 5]);
    assert_eq!(g.briefs("t"), ["INSERT 4", "INSERT 5"]);
    // Through a portal that the client does not read to its end: the statement is complete all the same.
    let mut transaction = g.transaction().unwrap();
    let portal = transaction.bind("UPDATE t SET v = 'z' RETURNING id", &[]).unwrap();
    assert_eq!(transaction.query_portal(&portal, 2).unwrap().len(), 2);
    transaction.commit().unwrap();
    assert_eq!(g.tally("t"), (0, 5, 0));
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn on_conflict_records_what_happened_and_nothing_else() {
    let mut g = simple("conflict");
    g.records("t", "INSERT INTO t VALUES (1, 'x'), (4, 'd'), (2, 'y') ON CONFLICT DO NOTHING", &["INSERT 4"]);
    g.records("t", "INSERT INTO t VALUES (1, 'x') ON CONFLICT DO NOTHING", &[]);
    // The same row twice in one statement: the second conflicts with the first.
    g.records("t", "INSERT INTO t VALUES (5, 'e'), (5, 'e') ON CONFLICT (id) DO NOTHING", &["INSERT 5"]);
    g.records(
        "t",
        "INSERT INTO t VALUES (1, 'x'), (6, 'f') ON CONFLICT (id) DO UPDATE SET v = excluded.v",
        &["UPDATE 1", "INSERT 6"],
    );
    g.records(
        "t",
        "INSERT INTO t VALUES (1, 'w') ON CONFLICT (id) DO UPDATE SET v = excluded.v WHERE t.v = 'not so'",
        &[],
    );
    g.records(
        "t",
        "INSERT INTO t SELECT i, 'many' FROM generate_series(1, 9) i
         ON CONFLICT (id) DO UPDATE SET v = excluded.v WHERE t.id % 2 = 0",
        &["UPDATE 2", "UPDATE 4", "UPDATE 6", "INSERT 7", "INSERT 8", "INSERT 9"],
    );
    g.refuses("t", "INSERT INTO t VALUES (20, 'a'), (20, 'b') ON CONFLICT (id) DO UPDATE SET v = excluded.v", "21000");
    g.refuses("t", "INSERT INTO t VALUES (21, 'a'), (1, 'duplicate')", "23505");
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn merge_records_each_branch() {
    let mut g = simple("merge");
    g.run(
        "MERGE INTO t USING (VALUES (1, 'new'), (2, NULL), (3, 'c'), (4, 'd'), (5, NULL)) s(id, v) ON t.id = s.id
         WHEN MATCHED AND s.v IS NULL THEN DELETE
         WHEN MATCHED AND s.v = t.v THEN DO NOTHING
         WHEN MATCHED THEN UPDATE SET v = s.v
         WHEN NOT MATCHED AND s.v IS NOT NULL THEN INSERT VALUES (s.id, s.v)",
    );
    let mut briefs = g.briefs("t");
    briefs.sort();
    assert_eq!(briefs, ["DELETE 2", "INSERT 4", "UPDATE 1"]);
    if g.version() >= 170_000 {
        let actions: Vec<String> = g.column(
            "MERGE INTO t USING (VALUES (4), (7)) s(id) ON t.id = s.id WHEN MATCHED THEN UPDATE SET v = 'r'
             WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'r') WHEN NOT MATCHED BY SOURCE THEN DELETE RETURNING merge_action()",
        );
        assert_eq!(actions.len(), 4);
        assert_eq!(g.tally("t"), (1, 1, 2));
    }
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn copy_records_each_row() {
    let mut g = simple("copy");
    let rows: String = (100..2100).map(|id| format!("{id}\tcopied {id}\n")).collect();
    assert_eq!(copy_in(&mut g, "COPY t FROM STDIN", &rows).unwrap(), 2000);
    assert_eq!(g.tally("t"), (2000, 0, 0));
    let filtered = "COPY t FROM STDIN (FORMAT csv) WHERE id % 2 = 0";
    assert_eq!(copy_in(&mut g, filtered, "3001,odd\n3002,even\n").unwrap(), 1);
    assert_eq!(g.briefs("t"), ["INSERT 3002"]);
    // One bad row at the end: no row, no record.
    expect_sqlstate(copy_in(&mut g, "COPY t FROM STDIN", "4000\tgood\n1\tduplicate\n"), "23505");
    assert_eq!(g.briefs("t"), [""; 0]);
    // FREEZE needs a table made in the same transaction.
    g.run("BEGIN; CREATE TABLE f (id int PRIMARY KEY); SELECT agd.guard('f')");
    copy_in(&mut g, "COPY f FROM STDIN (FREEZE)", "1\n2\n").unwrap();
    g.run("COMMIT");
    assert_eq!(g.briefs("f"), ["INSERT 1", "INSERT 2"]);
    reconcile(&mut g, "t", &["id"]);
    reconcile(&mut g, "f", &["id"]);
}

const PARTITIONED: &str = "
    CREATE TABLE p (k int, id int, v text, PRIMARY KEY (k, id)) PARTITION BY LIST (k);
    CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
    CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2) PARTITION BY RANGE (id);
    CREATE TABLE p2a PARTITION OF p2 FOR VALUES FROM (0) TO (100);
    CREATE TABLE p2b PARTITION OF p2 FOR VALUES FROM (100) TO (200);
    SELECT agd.guard('p');";

#[test]
fn partitions_are_guarded_through_the_root_and_directly() {
    let mut g = set_up("parts", PARTITIONED);
    g.run("INSERT INTO p VALUES (1, 1, 'a'), (2, 2, 'b'), (2, 150, 'c')");
    assert_eq!(g.tally("p"), (3, 0, 0));
    g.run("INSERT INTO p1 VALUES (1, 3, 'd'); INSERT INTO p2a VALUES (2, 4, 'e'); UPDATE p2 SET v = 'x'");
    assert_eq!(g.tally("p"), (2, 3, 0));
    g.run("DELETE FROM p2b");
    assert_eq!(g.tally("p"), (0, 0, 1));
    // A partition made later is guarded too.
    g.run("CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3); INSERT INTO p VALUES (3, 1, 'f'); INSERT INTO p3 VALUES (3, 2, 'g')");
    assert_eq!(g.tally("p"), (2, 0, 0));
    // Moves: a DELETE here and an INSERT there. On the root, across levels, with rows that stay.
    g.run("UPDATE p SET k = 2 WHERE k = 1");
    assert_eq!(g.tally("p"), (2, 0, 2));
    g.run("UPDATE p SET id = CASE WHEN id = 4 THEN 104 ELSE id END WHERE k = 2");
    assert_eq!(g.tally("p"), (1, 3, 1));
    g.run("INSERT INTO p VALUES (3, 1, 'again'), (3, 9, 'new') ON CONFLICT (k, id) DO NOTHING");
    assert_eq!(g.tally("p"), (1, 0, 0));
    g.run("INSERT INTO p VALUES (3, 1, 'again') ON CONFLICT (k, id) DO UPDATE SET v = excluded.v");
    assert_eq!(g.tally("p"), (0, 1, 0));
    g.run(
        "MERGE INTO p USING (VALUES (3, 1), (1, 77)) s(k, id) ON p.k = s.k AND p.id = s.id
         WHEN MATCHED THEN UPDATE SET k = 1 WHEN NOT MATCHED THEN INSERT VALUES (s.k, s.id, 'merged')",
    );
    assert_eq!(g.tally("p"), (2, 0, 1));
    copy_in(&mut g, "COPY p FROM STDIN", "1\t500\tx\n2\t5\ty\n3\t500\tz\n").unwrap();
    assert_eq!(g.tally("p"), (3, 0, 0));
    reconcile(&mut g, "p", &["k", "id"]);
    let open: Vec<String> = g.column("SELECT relation::text FROM agd.coverage() WHERE NOT intact");
    assert_eq!(open, [""; 0]);
}

#[test]
fn attached_tables_bring_their_rows_into_the_log() {
    let mut g = set_up("attach", PARTITIONED);
    g.run("CREATE TABLE late (LIKE p INCLUDING ALL); INSERT INTO late VALUES (5, 1, 'a'), (5, 2, 'b')");
    g.run("ALTER TABLE p ATTACH PARTITION late FOR VALUES IN (5)");
    let events = g.news("p");
    assert!(events.len() == 2 && events.iter().all(|event| event.action == "BASELINE"), "{events:?}");
    g.run("INSERT INTO late VALUES (5, 3, 'c'); UPDATE p SET v = 'x' WHERE k = 5; DELETE FROM late WHERE id = 1");
    assert_eq!(g.tally("p"), (1, 3, 1));
    g.refuses("p", "TRUNCATE late", "AG002");
    let error = g.refuses(
        "p",
        "CREATE UNLOGGED TABLE fast (LIKE p INCLUDING ALL); ALTER TABLE p ATTACH PARTITION fast FOR VALUES IN (6)",
        "0A000",
    );
    expect_hint(&error, "SET LOGGED");
    // A partition made by the table's owner, who is nobody special.
    let owner = format!("{}_owner", g.database().name());
    cluster().create_role(&owner, "").unwrap();
    g.run(&format!("ALTER TABLE p OWNER TO {owner}; GRANT CREATE ON SCHEMA public TO {owner}"));
    let mut owned = g.database().connect_as(&owner).unwrap();
    owned
        .batch_execute(
            "CREATE TABLE own PARTITION OF p FOR VALUES IN (7) PARTITION BY RANGE (id);
             CREATE TABLE own1 PARTITION OF own FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (7, 1, 'o'); INSERT INTO own1 VALUES (7, 2, 'o')",
        )
        .unwrap();
    assert_eq!(g.tally("p"), (2, 0, 0));
    expect_sqlstate(owned.batch_execute("TRUNCATE own1"), "AG002");
    reconcile(&mut g, "p", &["k", "id"]);
    let open: Vec<String> = g.column("SELECT relation::text FROM agd.coverage() WHERE guarded AND NOT intact");
    assert_eq!(open, [""; 0]);
}

/// The AFTER triggers of one part of such a statement run when another part has recorded and not yet confirmed.
#[test]
fn writable_ctes_that_write_one_table_twice() {
    let mut g = set_up("cte", PARTITIONED);
    g.run("INSERT INTO p SELECT 1, i, 'v' FROM generate_series(1, 10) i");
    g.news("p");
    g.run(
        "WITH i AS (INSERT INTO p SELECT 1, i, 'v' FROM generate_series(11, 20) i RETURNING id)
         UPDATE p SET k = 2 WHERE id IN (SELECT id - 10 FROM i)",
    );
    assert_eq!(g.tally("p"), (20, 0, 10));
    g.run(
        "WITH d AS (DELETE FROM p WHERE k = 2 AND id < 4 RETURNING *),
              u AS (UPDATE p SET v = 'u' WHERE k = 1 RETURNING *),
              n AS (INSERT INTO p VALUES (1, 11, 'conflicts'), (1, 30, 'does not') ON CONFLICT DO NOTHING RETURNING *)
         INSERT INTO p SELECT 1, 100 + d.id, d.v FROM d",
    );
    assert_eq!(g.tally("p"), (4, 10, 3));
    // The same rows in both parts, images equal: the conflicting twin is the one without a record.
    g.run(
        "WITH a AS (INSERT INTO p VALUES (1, 60, 'twin') ON CONFLICT DO NOTHING RETURNING *)
         INSERT INTO p VALUES (1, 60, 'twin') ON CONFLICT DO NOTHING",
    );
    assert_eq!(g.tally("p"), (1, 0, 0));
    // A part that moves rows while another inserts into the leaves they leave, with conflicts between.
    g.run(
        "WITH m AS (UPDATE p SET k = 2 WHERE k = 1 AND id BETWEEN 11 AND 15 RETURNING *)
         INSERT INTO p SELECT 1, i, 'n' FROM generate_series(16, 25) i ON CONFLICT DO NOTHING",
    );
    assert_eq!(g.tally("p"), (10, 0, 5));
    reconcile(&mut g, "p", &["k", "id"]);
}

#[test]
fn foreign_keys_that_cascade() {
    let tables = ["parent", "gone", "loose", "fallback", "late", "below"];
    let mut g = set_up(
        "fk",
        "CREATE TABLE parent (id int PRIMARY KEY, v text);
         CREATE TABLE gone (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE loose (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE SET NULL ON UPDATE CASCADE);
         CREATE TABLE fallback (id int PRIMARY KEY, parent int DEFAULT 0 REFERENCES parent ON DELETE SET DEFAULT);
         CREATE TABLE late (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);
         CREATE TABLE below (id int PRIMARY KEY, gone int REFERENCES gone ON DELETE CASCADE);
         SELECT agd.guard(c) FROM unnest('{parent,gone,loose,fallback,late,below}'::regclass[]) c;
         INSERT INTO parent VALUES (0, 'default'), (1, 'a'), (2, 'b'), (3, 'c');
         INSERT INTO gone SELECT i, i FROM generate_series(1, 3) i;
         INSERT INTO loose SELECT i, i FROM generate_series(1, 3) i;
         INSERT INTO fallback SELECT i, i FROM generate_series(1, 2) i;
         INSERT INTO late SELECT i, 1 FROM generate_series(1, 2) i;
         INSERT INTO below SELECT i, 1 FROM generate_series(1, 2) i",
    );
    for table in tables {
        g.news(table);
    }
    g.run("DELETE FROM parent WHERE id = 1");
    let expected: [&[&str]; 6] = [
        &["DELETE 1"],
        &["DELETE 1"],
        &["UPDATE 1"],
        &["UPDATE 1"],
        &["DELETE 1", "DELETE 2"],
        &["DELETE 1", "DELETE 2"],
    ];
    for (table, expected) in tables.iter().zip(expected) {
        assert_eq!(g.briefs(table), expected, "{table} when the parent's row was deleted");
    }
    g.run("UPDATE parent SET id = 30 WHERE id = 3");
    let expected: [&[&str]; 6] = [&["UPDATE 3"], &["UPDATE 3"], &["UPDATE 3"], &[], &[], &[]];
    for (table, expected) in tables.iter().zip(expected) {
        assert_eq!(g.briefs(table), expected, "{table} when the parent's key was changed");
    }
    // The parent need not be guarded for the child's rows to be recorded.
    g.run("SELECT agd.unguard('parent', 'test'); DELETE FROM fallback; DELETE FROM parent WHERE id = 2");
    assert_eq!(g.briefs("gone"), ["DELETE 2"]);
    assert_eq!(g.briefs("loose"), ["UPDATE 2"]);
    g.refuses("gone", "BEGIN; INSERT INTO gone VALUES (9, 999); COMMIT", "23503");
    for table in &tables[1..] {
        reconcile(&mut g, table, &["id"]);
    }
}

/// Makes the trigger `slipped` fire after the gate, as only somebody can who writes PostgreSQL's catalogs; the second UPDATE
/// has sessions read the triggers afresh.
fn slip_behind_the_gate(g: &mut Watch) {
    g.run(
        "SET allow_system_table_mods = on;
         UPDATE pg_trigger SET tgname = '~later' WHERE tgrelid = 't'::regclass AND tgname = 'slipped';
         UPDATE pg_class SET relhastriggers = relhastriggers WHERE oid = 't'::regclass;
         RESET allow_system_table_mods",
    );
    g.news("t");
}

#[test]
fn no_trigger_comes_between_the_gate_and_the_write() {
    let mut g = set_up(
        "between",
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
         CREATE TABLE t (id int PRIMARY KEY, v text);
         CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
         CREATE TABLE p2 (LIKE p INCLUDING ALL)",
    );
    let on = |g: &mut Watch, name: &str, table: &str| {
        g.run(&format!(
            "CREATE TRIGGER {name} BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION meddle()"
        ));
    };
    // A table that has one is not guarded, nor one of whose partitions has one.
    on(&mut g, "\"überprüft\"", "t");
    on(&mut g, "\"~b\"", "p1");
    for (table, trigger, relation) in [("t", "überprüft", "t"), ("p", "~b", "p1")] {
        let error = g.refuses(table, &format!("SELECT agd.guard('{table}')"), "0A000");
        assert_eq!(
            error.message(),
            format!(
                "public.{table} cannot be guarded: the trigger \"{trigger}\" of public.{relation} would fire after the gate"
            )
        );
        expect_hint(&error, &format!("ALTER TRIGGER \"{trigger}\" ON public.{relation} RENAME TO"));
    }
    // One that is switched off fires never; under another name, or after the write, it may be there.
    g.run(
        "ALTER TABLE t DISABLE TRIGGER \"überprüft\";
         ALTER TRIGGER \"~b\" ON p1 RENAME TO b;
         CREATE TRIGGER \"~~after\" AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION meddle();
         CREATE TRIGGER \"~~statement\" BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION meddle();
         SELECT agd.guard('t'), agd.guard('p')",
    );
    on(&mut g, "\"überprüft\"", "p2");
    // Nor does one come afterwards.
    for (statement, table, trigger) in [
        ("ALTER TABLE t ENABLE TRIGGER \"überprüft\"", "t", "überprüft"),
        ("ALTER TABLE t ENABLE REPLICA TRIGGER \"überprüft\"", "t", "überprüft"),
        (
            "CREATE TRIGGER \"~z\" BEFORE DELETE ON t FOR EACH ROW WHEN (OLD.id < 0) EXECUTE FUNCTION meddle()",
            "t",
            "~z",
        ),
        ("CREATE TRIGGER \"~z\" BEFORE UPDATE OF v ON p FOR EACH ROW EXECUTE FUNCTION meddle()", "p", "~z"),
        ("CREATE TRIGGER \"~z\" BEFORE UPDATE ON p1 FOR EACH ROW EXECUTE FUNCTION meddle()", "p", "~z"),
        ("ALTER TRIGGER b ON p1 RENAME TO \"~b\"", "p", "~b"),
        ("ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)", "p", "überprüft"),
    ] {
        let error = g.refuses(table, statement, "AG002");
        let said = error.message();
        assert!(said.contains(&format!("on the guarded table public.{table} is refused: ")), "{said}");
        assert!(said.contains(&format!("the trigger \"{trigger}\" fires after the gate: it needs a name")), "{said}");
    }
    g.news("t");
    g.news("p");
    assert_eq!(g.column::<String>("SELECT relation::text FROM agd.coverage() WHERE guarded AND NOT intact"), [""; 0]);
    g.records("t", "INSERT INTO t VALUES (1, 'a')", &["INSERT 1"]);
    g.records("p", "INSERT INTO p VALUES (1, 'a')", &["INSERT 1"]);
}

#[test]
fn a_later_trigger_that_changes_the_row_is_an_error() {
    let mut g = simple("later");
    g.run(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := NEW.v || '!'; RETURN NEW; END $$;
         CREATE TRIGGER aaa BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION meddle()",
    );
    // One that fires before the gate is in order: the final row is recorded.
    g.records("t", "INSERT INTO t VALUES (4, 'd')", &["INSERT 4"]);
    reconcile(&mut g, "t", &["id"]);
    g.run(
        "DROP TRIGGER aaa ON t;
         CREATE TRIGGER slipped BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION meddle()",
    );
    slip_behind_the_gate(&mut g);
    let problem: String = g.one("SELECT detail FROM agd.coverage() WHERE relation = 't'::regclass AND NOT intact");
    assert_eq!(
        problem,
        "the trigger \"~later\" fires after the gate: it needs a name that sorts before \"~agd_record\""
    );
    for sql in [
        "INSERT INTO t VALUES (5, 'e')",
        "UPDATE t SET v = 'x'",
        "INSERT INTO t VALUES (1, 'e') ON CONFLICT (id) DO UPDATE SET v = 'x'",
        "MERGE INTO t USING (VALUES (1)) s(id) ON t.id = s.id WHEN MATCHED THEN UPDATE SET v = 'm'",
        "WITH w AS (INSERT INTO t VALUES (6, 'f') RETURNING *) SELECT * FROM w",
    ] {
        let error = g.refuses("t", sql, "AG001");
        expect_hint(&error, "trigger");
    }
    g.records("t", "DELETE FROM t WHERE id = 4", &["DELETE 4"]);
    // The error can be caught, as any error; then it takes the row and the record with it.
    let caught = "DO $$ BEGIN INSERT INTO t VALUES (5, 'e'); EXCEPTION WHEN SQLSTATE 'AG001' THEN NULL; END $$";
    g.records("t", caught, &[]);
    assert_eq!(g.column::<i32>("SELECT id FROM t ORDER BY id"), [1, 2, 3]);
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn a_later_trigger_that_drops_the_row_leaves_no_record() {
    let mut g = simple("dropper");
    g.run(
        "CREATE FUNCTION drop_even() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF COALESCE(NEW.id, OLD.id) % 2 = 0 THEN RETURN NULL; END IF; RETURN COALESCE(NEW, OLD); END $$;
         CREATE TRIGGER slipped BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION drop_even()",
    );
    slip_behind_the_gate(&mut g);
    g.records("t", "INSERT INTO t SELECT i, 'x' FROM generate_series(4, 8) i", &["INSERT 5", "INSERT 7"]);
    g.records("t", "UPDATE t SET v = 'y'", &["UPDATE 1", "UPDATE 3", "UPDATE 5", "UPDATE 7"]);
    g.records("t", "DELETE FROM t WHERE id < 4", &["DELETE 1", "DELETE 3"]);
    g.records("t", "UPDATE t SET v = 'z' WHERE id = 2", &[]);
    copy_in(&mut g, "COPY t FROM STDIN", "10\ta\n11\tb\n12\tc\n").unwrap();
    assert_eq!(g.briefs("t"), ["INSERT 11"]);
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn nested_writes_into_the_same_table() {
    let mut g = simple("nested");
    g.run(
        "CREATE FUNCTION put(i int) RETURNS int LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO t VALUES (i, 'put') ON CONFLICT DO NOTHING; RETURN i; END $$;
         CREATE FUNCTION put_sql(i int) RETURNS SETOF int LANGUAGE sql AS $$
         INSERT INTO t VALUES (i, 'sql'), (i + 1, 'sql') ON CONFLICT DO NOTHING RETURNING id $$",
    );
    g.records("t", "SELECT put(i) FROM generate_series(2, 5) i", &["INSERT 4", "INSERT 5"]);
    // Rows that come from a function that inserts: the inner statement ends before the outer row is written.
    g.run("INSERT INTO t SELECT 100 + put(i), 'outer' FROM generate_series(5, 8) i ON CONFLICT DO NOTHING");
    assert_eq!(g.tally("t"), (7, 0, 0));
    // A set-returning SQL function of which the caller takes one row only.
    g.run("SELECT put_sql(20) LIMIT 1; SELECT * FROM t, LATERAL put_sql(t.id + 30) WHERE t.id < 3");
    g.news("t");
    reconcile(&mut g, "t", &["id"]);

    // A trigger of the table that writes the table: before and after each row, and after the statement.
    g.run(
        "CREATE FUNCTION echo() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
           IF pg_trigger_depth() = 1 THEN
             INSERT INTO t VALUES (1000 * TG_ARGV[0]::int + (SELECT count(*) FROM t), TG_WHEN || TG_LEVEL);
             UPDATE t SET v = v || '.' WHERE id = 1;
           END IF;
           RETURN NEW;
         END $$;
         CREATE TRIGGER b BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION echo(1);
         CREATE TRIGGER c AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION echo(2);
         CREATE TRIGGER \"~~d\" AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION echo(3);
         INSERT INTO t VALUES (200, 'x'), (201, 'y'), (2, 'conflict') ON CONFLICT DO NOTHING",
    );
    // Rows: 2 by the statement, 3 from BEFORE (the conflicting row's trigger writes too), 2 from AFTER ROW, 1 from AFTER
    // STATEMENT; and one UPDATE with each of the last six.
    assert_eq!(g.tally("t"), (8, 6, 0));
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn triggers_that_write_other_guarded_tables_and_defaults_that_write() {
    let mut g = set_up(
        "others",
        "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int);
         CREATE FUNCTION next_b() RETURNS int LANGUAGE sql AS $$ INSERT INTO b SELECT count(*), 0 FROM b RETURNING id $$;
         CREATE TABLE c (id int PRIMARY KEY, n int DEFAULT next_b());
         SELECT agd.guard(t) FROM unnest('{a,b,c}'::regclass[]) t;
         CREATE FUNCTION mirror() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO b VALUES (NEW.id + 100, NEW.n) ON CONFLICT (id) DO UPDATE SET n = b.n + 1; RETURN NEW; END $$;
         CREATE TRIGGER m BEFORE INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION mirror();
         CREATE TRIGGER n AFTER INSERT OR UPDATE ON a FOR EACH ROW EXECUTE FUNCTION mirror();
         INSERT INTO a VALUES (1, 1), (2, 2); UPDATE a SET n = n + 1; INSERT INTO c (id) VALUES (1), (2)",
    );
    assert_eq!(g.tally("a"), (2, 2, 0));
    assert_eq!(g.tally("b"), (4, 6, 0));
    assert_eq!(g.tally("c"), (2, 0, 0));
    for table in ["a", "b", "c"] {
        reconcile(&mut g, table, &["id"]);
    }
}

#[test]
fn savepoints_and_exception_blocks() {
    let mut g = simple("savepoints");
    g.records(
        "t",
        "BEGIN; INSERT INTO t VALUES (10, 'kept'); SAVEPOINT a; INSERT INTO t VALUES (11, 'lost'); SAVEPOINT b;
         INSERT INTO t VALUES (12, 'lost'); RELEASE b; UPDATE t SET v = 'lost' WHERE id = 10; ROLLBACK TO a;
         INSERT INTO t VALUES (11, 'kept'); SAVEPOINT c; DELETE FROM t WHERE id = 11; RELEASE c; COMMIT",
        &["INSERT 10", "INSERT 11", "DELETE 11"],
    );
    g.records("t", "BEGIN; INSERT INTO t VALUES (20, 'lost'); ROLLBACK", &[]);
    // All that was recorded is rolled back; the transaction commits all the same.
    g.records("t", "BEGIN; SAVEPOINT a; INSERT INTO t VALUES (20, 'lost'); ROLLBACK TO a; COMMIT", &[]);
    g.records(
        "t",
        "DO $$
         BEGIN
           INSERT INTO t VALUES (20, 'kept');
           FOR i IN 1..3 LOOP
             BEGIN
               INSERT INTO t VALUES (20 + i, 'lost or kept');
               IF i = 2 THEN INSERT INTO t VALUES (20, 'duplicate'); END IF;
             EXCEPTION WHEN unique_violation THEN
               INSERT INTO t VALUES (30 + i, 'from the handler');
             END;
           END LOOP;
         END $$",
        &["INSERT 20", "INSERT 21", "INSERT 32", "INSERT 23"],
    );
    // A statement that fails half-way inside a block, with conflicts before the error.
    g.records(
        "t",
        "DO $$ BEGIN INSERT INTO t SELECT i, (1 / (25 - i))::text FROM generate_series(19, 30) i ON CONFLICT DO NOTHING;
         EXCEPTION WHEN division_by_zero THEN INSERT INTO t VALUES (40, 'handled'); END $$",
        &["INSERT 40"],
    );
    // A block that fails in a function that a row of an outer INSERT calls: the outer rows' records stand.
    g.run(
        "CREATE FUNCTION try_put(i int) RETURNS int LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO t VALUES (i, 'inner'); IF i % 2 = 0 THEN RAISE EXCEPTION 'no'; END IF; RETURN i;
         EXCEPTION WHEN raise_exception THEN RETURN i; END $$;
         INSERT INTO t SELECT 300 + try_put(i), 'outer' FROM generate_series(200, 203) i",
    );
    assert_eq!(g.tally("t"), (6, 0, 0));
    // A procedure that commits in its middle: a transaction record for each part.
    g.run(
        "CREATE PROCEDURE twice() LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO t VALUES (60, 'a'); COMMIT; INSERT INTO t VALUES (61, 'b'); ROLLBACK; INSERT INTO t VALUES (62, 'c'); END $$",
    );
    g.records("t", "CALL twice()", &["INSERT 60", "INSERT 62"]);
    // More subtransactions than a backend keeps in shared memory.
    g.run(
        "DO $$ BEGIN FOR i IN 1..200 LOOP
           BEGIN INSERT INTO t VALUES (10000 + i, 'x'); IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
           EXCEPTION WHEN raise_exception THEN NULL; END;
         END LOOP; END $$",
    );
    assert_eq!(g.tally("t"), (134, 0, 0));
    reconcile(&mut g, "t", &["id"]);
    anchor(&mut g);
    expect_each_event_in_one_leaf(&mut g);
    expect_verified(&mut g);
}

#[test]
fn the_transaction_record_counts_what_stands() {
    let mut g = simple("counts");
    g.run(
        "BEGIN; INSERT INTO t VALUES (1, 'x'), (4, 'd') ON CONFLICT DO NOTHING; SAVEPOINT a; INSERT INTO t VALUES (5, 'e');
         ROLLBACK TO a; UPDATE t SET v = 'x'; COMMIT",
    );
    let wrong: i64 = g.one(
        "SELECT count(*) FROM agd.transaction t FULL JOIN (SELECT xact_id, count(*) FROM agd.event GROUP BY 1) e USING (xact_id)
          WHERE t.events IS DISTINCT FROM e.count",
    );
    assert_eq!(wrong, 0);
    assert_eq!(g.one::<i64>("SELECT events_voided FROM agd.stat"), 1);
}

#[test]
fn two_phase_commit_from_another_session_after_a_restart() {
    let cluster = Cluster::builder().setting("max_prepared_transactions", "10").start().unwrap();
    let database = cluster.agd_database("twophase").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute(
            "BEGIN; CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t'); INSERT INTO t VALUES (1, 'a'), (2, 'b'); COMMIT;
             BEGIN; SELECT agd.set_cause('prepared'); UPDATE t SET v = 'prepared' WHERE id = 1;
             INSERT INTO t VALUES (3, 'c'), (1, '-') ON CONFLICT DO NOTHING; PREPARE TRANSACTION 'kept';
             BEGIN; DELETE FROM t WHERE id = 2; PREPARE TRANSACTION 'lost';
             INSERT INTO t VALUES (4, 'after')",
        )
        .unwrap();
    anchor(&mut client);
    let leaves = |client: &mut Client| -> i64 {
        let sql = "SELECT count(leaf_index) FROM agd.events WHERE relation = 'public.t' AND action IN ('INSERT', 'UPDATE', 'DELETE')";
        client.query_one(sql, &[]).unwrap().get(0)
    };
    assert_eq!(leaves(&mut client), 3, "a prepared transaction is not in the log");
    cluster.restart().unwrap();
    let mut client = database.connect().unwrap();
    anchor(&mut client);
    assert_eq!(leaves(&mut client), 3, "nor is it after a restart");
    let mut other = database.connect().unwrap();
    // One at a time: COMMIT PREPARED cannot run inside the implicit transaction of several statements.
    for sql in ["INSERT INTO t VALUES (5, 'between')", "COMMIT PREPARED 'kept'", "ROLLBACK PREPARED 'lost'"] {
        other.batch_execute(sql).unwrap();
    }
    anchor(&mut other);
    assert_eq!(leaves(&mut client), 6);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
    let events = reconcile(&mut client, "t", &["id"]);
    assert!(!events.iter().any(|event| event.action == "DELETE"));
    let sql = "SELECT string_agg(DISTINCT action || ' ' || cause, ', ' ORDER BY action || ' ' || cause) FROM agd.events WHERE cause IS NOT NULL";
    let causes: String = client.query_one(sql, &[]).unwrap().get(0);
    assert_eq!(causes, "INSERT prepared, UPDATE prepared");
}

/// An index that somebody makes for reports, in a transaction that has recorded something already: the open table is let go
/// of, and every kind of index gets its entries from then on.
#[test]
fn further_indexes_on_the_record_are_kept() {
    let mut g = simple("indexes");
    g.run(
        "BEGIN;
         INSERT INTO t VALUES (4, 'x');
         CREATE INDEX by_value ON agd.event ((new ->> 'v')) WHERE action = 'INSERT';
         CREATE INDEX by_tenant ON agd.event (tenant, at);
         INSERT INTO t VALUES (5, 'x'), (6, 'y');
         COMMIT;
         DELETE FROM t WHERE id = 1;
         SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_sort = off",
    );
    let by_value = "FROM agd.event WHERE new ->> 'v' = 'x' AND action = 'INSERT'";
    let plan: Vec<String> = g.column(&format!("EXPLAIN SELECT 1 {by_value}"));
    assert!(plan[0].contains("using by_value"), "{plan:?}");
    assert_eq!(g.one::<i64>(&format!("SELECT count(*) {by_value}")), 2);
    let newest: Vec<String> =
        g.column("SELECT action FROM agd.event WHERE tenant IS NULL ORDER BY tenant, at DESC LIMIT 1");
    assert_eq!(newest, ["DELETE"]);
    g.run("RESET ALL");
    assert_eq!(g.tally("t"), (3, 0, 1));
    reconcile(&mut g, "t", &["id"]);
}

/// Rows are laid out for the columns that the record's tables have; a table that has others is not written at all. (DDL on
/// it is refused; this is somebody who goes past DDL, straight to the catalog.)
#[test]
fn a_record_table_that_somebody_altered_closes_the_gate() {
    let mut g = simple("altered");
    g.run("SET allow_system_table_mods = on");
    for (table, column) in [("event", "body"), ("transaction", "client_addr")] {
        let drop = |dropped: bool| {
            format!(
                "UPDATE pg_attribute SET attisdropped = {dropped} WHERE attrelid = 'agd.{table}'::regclass AND attname = '{column}'"
            )
        };
        g.run(&drop(true));
        let error = g.database().connect().unwrap().batch_execute("INSERT INTO t VALUES (9, 'x')");
        let error = expect_sqlstate(error, "55000");
        assert!(error.hint().unwrap().contains("ALTER EXTENSION agd UPDATE"), "{error:?}");
        g.run(&drop(false));
        assert_eq!(g.one::<i64>("SELECT count(*) FROM t"), 3);
        g.records("t", "UPDATE t SET v = v || v WHERE id = 1", &["UPDATE 1"]);
    }
}

#[test]
fn sql_cannot_write_the_record() {
    let mut g = simple("immutable");
    let count = "SELECT count(*) FROM agd.event WHERE action NOT LIKE 'DENIED%'";
    let before: i64 = g.one(count);
    for role in ["origin", "replica"] {
        g.run(&format!("SET session_replication_role = {role}"));
        for sql in [
            "INSERT INTO agd.event (xact_id, n, at, action, salt) VALUES (pg_current_xact_id(), 99, now(), 'INSERT', 'x')",
            "INSERT INTO agd.event SELECT * FROM agd.event WHERE false",
            "UPDATE agd.event SET tenant = 'x'",
            "UPDATE agd.event SET tenant = 'x' WHERE false",
            "DELETE FROM agd.event",
            "TRUNCATE agd.event",
            "COPY agd.event FROM PROGRAM 'true'",
            "MERGE INTO agd.event e USING (VALUES (1)) v(i) ON e.n = v.i WHEN MATCHED THEN DELETE",
            "WITH d AS (DELETE FROM agd.event RETURNING *) SELECT count(*) FROM d",
            "INSERT INTO agd.transaction SELECT * FROM agd.transaction",
            "UPDATE agd.transaction SET cause = 'another'",
            "DELETE FROM agd.transaction",
            "TRUNCATE agd.transaction",
            "TRUNCATE agd.event, agd.transaction CASCADE",
            "UPDATE agd.log SET size = size + 1",
            "DELETE FROM agd.tile",
            "TRUNCATE agd.checkpoint CASCADE",
            "UPDATE agd.sequencer SET integrated = pg_current_snapshot()",
        ] {
            let error = expect_sqlstate(g.batch_execute(sql), "AG002");
            assert!(error.hint().is_some(), "{sql}");
        }
    }
    g.run("RESET session_replication_role");
    assert_eq!(g.one::<i64>(count), before);
}

#[test]
fn the_replica_role_does_not_open_the_gate() {
    let mut g = simple("replica");
    g.records(
        "t",
        "SET session_replication_role = replica; INSERT INTO t VALUES (4, 'd'); UPDATE t SET v = 'x' WHERE id = 1; DELETE FROM t WHERE id = 2",
        &["INSERT 4", "UPDATE 1", "DELETE 2"],
    );
    g.refuses("t", "TRUNCATE t", "AG002");
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn truncate_is_refused_or_recorded() {
    let mut g = simple("truncate");
    let error = g.refuses("t", "TRUNCATE t", "AG002");
    expect_hint(&error, "on_truncate");
    g.run("CREATE TABLE top (id int PRIMARY KEY); ALTER TABLE t ADD FOREIGN KEY (id) REFERENCES top NOT VALID");
    g.refuses("t", "TRUNCATE top CASCADE", "AG002");
    assert_eq!(g.one::<i64>("SELECT count(*) FROM t"), 3);

    g.run("CREATE TABLE r (id int PRIMARY KEY); SELECT agd.guard('r', on_truncate => 'record'); INSERT INTO r VALUES (1), (2)");
    g.news("r");
    g.records("r", "TRUNCATE r", &["TRUNCATE"]);
    g.records("r", "INSERT INTO r VALUES (1)", &["INSERT 1"]);
    g.records("r", "BEGIN; TRUNCATE r; ROLLBACK", &[]);
    g.records(
        "r",
        "BEGIN; INSERT INTO r VALUES (2); TRUNCATE r; INSERT INTO r VALUES (1), (3); COMMIT",
        &["INSERT 2", "TRUNCATE", "INSERT 1", "INSERT 3"],
    );
    reconcile(&mut g, "r", &["id"]);

    g.run(PARTITIONED);
    g.run("INSERT INTO p VALUES (1, 1, 'a')");
    g.news("p");
    g.refuses("p", "TRUNCATE p", "AG002");
    g.refuses("p", "TRUNCATE p1", "AG002");
}

#[test]
fn errors_at_commit_leave_nothing() {
    let mut g = set_up(
        "atcommit",
        "CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED); SELECT agd.guard('t');
         INSERT INTO t VALUES (1, 1);
         CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF NEW.u = 13 THEN RAISE EXCEPTION 'no 13'; END IF; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER deferred AFTER INSERT OR UPDATE ON t DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW EXECUTE FUNCTION no()",
    );
    g.news("t");
    g.refuses("t", "BEGIN; INSERT INTO t VALUES (2, 1); COMMIT", "23505");
    g.refuses("t", "BEGIN; INSERT INTO t VALUES (2, 13); COMMIT", "P0001");
    g.records(
        "t",
        "BEGIN; INSERT INTO t VALUES (2, 1); UPDATE t SET u = 3 WHERE id = 1; COMMIT",
        &["INSERT 2", "UPDATE 1"],
    );
    // A deferred trigger that writes at commit: still before the transaction's record is closed.
    g.run(
        "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO t VALUES (NEW.id + 100, NEW.u + 100); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW WHEN (NEW.id < 100) EXECUTE FUNCTION late()",
    );
    g.records("t", "BEGIN; INSERT INTO t VALUES (5, 5); COMMIT", &["INSERT 5", "INSERT 105"]);
    g.refuses(
        "t",
        "BEGIN; SET LOCAL statement_timeout = '50ms'; WITH i AS (INSERT INTO t VALUES (6, 6) RETURNING id) SELECT pg_sleep(10) FROM i",
        "57014",
    );
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn views_rules_cursors_and_plans() {
    let mut g = simple("views");
    g.run(
        "CREATE VIEW w AS SELECT * FROM t WHERE id < 1000;
         CREATE VIEW x AS SELECT id, v, 1 AS one FROM t GROUP BY id;
         CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO t VALUES (NEW.id, NEW.v); RETURN NEW; END $$;
         CREATE TRIGGER i INSTEAD OF INSERT ON x FOR EACH ROW EXECUTE FUNCTION instead();
         CREATE TABLE front (id int, v text);
         CREATE RULE r AS ON INSERT TO front DO INSTEAD INSERT INTO t VALUES (NEW.id, NEW.v)",
    );
    g.records(
        "t",
        "INSERT INTO w VALUES (10, 'by a view'); UPDATE w SET v = 'x' WHERE id = 10",
        &["INSERT 10", "UPDATE 10"],
    );
    g.records("t", "INSERT INTO x VALUES (11, 'instead of')", &["INSERT 11"]);
    g.records("t", "INSERT INTO front VALUES (12, 'by a rule')", &["INSERT 12"]);
    g.records(
        "t",
        "BEGIN; DECLARE c CURSOR FOR SELECT * FROM t WHERE id < 3 ORDER BY id FOR UPDATE; FETCH c;
         UPDATE t SET v = 'current' WHERE CURRENT OF c; FETCH c; DELETE FROM t WHERE CURRENT OF c; COMMIT",
        &["UPDATE 1", "DELETE 2"],
    );
    g.records(
        "t",
        "EXPLAIN INSERT INTO t VALUES (20, 'explained'); EXPLAIN ANALYZE INSERT INTO t VALUES (20, 'analyzed')",
        &["INSERT 20"],
    );
    g.records(
        "t",
        "PREPARE q(int) AS UPDATE t SET v = 'prepared' WHERE id = $1; EXECUTE q(1); EXECUTE q(3); EXECUTE q(99)",
        &["UPDATE 1", "UPDATE 3"],
    );
    g.records(
        "t",
        "CREATE TABLE copy_of AS SELECT * FROM t; CREATE TABLE alike (LIKE t INCLUDING ALL); INSERT INTO alike VALUES (1, 'unguarded')",
        &[],
    );
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn concurrent_updates_of_one_row_record_once() {
    let mut g = simple("epq");
    let mut first = g.database().connect().unwrap();
    let mut second = g.database().connect().unwrap();
    first
        .batch_execute("BEGIN; UPDATE t SET v = 'first' WHERE id = 1; DELETE FROM t WHERE id = 2; UPDATE t SET id = 4 WHERE id = 3")
        .unwrap();
    // Waits for the first session; then row 1 has a new version, row 2 is gone and row 3 no longer matches.
    let waiter = std::thread::spawn(move || {
        second.batch_execute("UPDATE t SET v = v || ' and second' WHERE id IN (1, 2, 3)").unwrap();
    });
    eventually("the second session waits", Duration::from_secs(10), || {
        g.one(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
        )
    });
    first.batch_execute("COMMIT").unwrap();
    waiter.join().unwrap();
    assert_eq!(g.briefs("t"), ["UPDATE 1", "DELETE 2", "UPDATE 3", "UPDATE 1"]);
    let mut serial = g.database().connect().unwrap();
    serial.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT * FROM t").unwrap();
    g.records("t", "UPDATE t SET v = 'meanwhile' WHERE id = 1", &["UPDATE 1"]);
    expect_sqlstate(serial.batch_execute("UPDATE t SET v = 'too late' WHERE id = 1"), "40001");
    serial.batch_execute("ROLLBACK").unwrap();
    assert_eq!(g.briefs("t"), [""; 0]);
    reconcile(&mut g, "t", &["id"]);
}

/// Events of a transaction that is still open are never integrated, wherever in it `agd.anchor()` is called.
#[test]
fn anchor_inside_a_transaction_that_writes() {
    let mut g = simple("inside");
    anchor(&mut g);
    for (id, isolation) in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"].iter().enumerate() {
        let id = id + 100;
        g.run(&format!(
            "BEGIN ISOLATION LEVEL {isolation}; INSERT INTO t VALUES ({id}, 'before'); SELECT agd.anchor(); SAVEPOINT a;
             SELECT agd.anchor(); UPDATE t SET v = 'after' WHERE id = {id}; SELECT agd.anchor(); ROLLBACK TO a;
             UPDATE t SET v = 'kept' WHERE id = {id}"
        ));
        let integrated: i64 =
            g.one(&format!("SELECT count(*) FROM agd.events WHERE row_key->>'id' = '{id}' AND leaf_index IS NOT NULL"));
        assert_eq!(integrated, 0, "under {isolation} an uncommitted event was integrated");
        g.run("COMMIT");
        anchor(&mut g);
        assert_eq!(g.briefs("t"), [format!("INSERT {id}"), format!("UPDATE {id}")]);
        expect_each_event_in_one_leaf(&mut g);
    }
    // Nothing new, nothing anchored.
    assert_eq!(g.query("SELECT * FROM agd.anchor()", &[]).unwrap().len(), 0);
    expect_verified(&mut g);
}

#[test]
fn history_tells_a_rows_life() {
    let mut g = simple("history");
    for sql in [
        "UPDATE t SET v = 'b2' WHERE id = 2",
        "UPDATE t SET id = 20 WHERE id = 2",
        "DELETE FROM t WHERE id = 20",
        "INSERT INTO t VALUES (2, 'again')",
    ] {
        g.run(sql);
    }
    let mut tell = |key: &str| -> Vec<String> {
        g.column(&format!("SELECT concat_ws(' ', action, old->>'v', '>', new->>'v') FROM agd.history('t', '{key}')"))
    };
    assert_eq!(tell(r#"{"id": 2}"#), ["INSERT > b", "UPDATE b > b2", "UPDATE b2 > b2", "INSERT > again"]);
    assert_eq!(tell(r#"{"id": 20}"#), ["UPDATE b2 > b2", "DELETE b2 >"]);
    assert_eq!(tell(r#"{"id": 99}"#), [""; 0]);
}
