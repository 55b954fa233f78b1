//! Triggers of one's own on agd's functions: refused when they are made, and without effect where one stands already,
//! whatever it is called with. Nothing of it reaches memory that is not there.

use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Cluster, TestDb, Watch, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

/// Tables of an ordinary owner, some of them guarded, and a role that has no more than TRIGGER and the right to write them.
const SCENE: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE plain (id int PRIMARY KEY, v text);
    CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000);
    CREATE TABLE loose (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE loose1 PARTITION OF loose FOR VALUES FROM (0) TO (1000);
    CREATE VIEW seen AS SELECT * FROM plain;
    INSERT INTO t VALUES (1, 'a'); INSERT INTO plain VALUES (1, 'a'); INSERT INTO p VALUES (1, 'a'); INSERT INTO loose VALUES (1, 'a');
    CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
    CREATE FOREIGN DATA WRAPPER away; CREATE SERVER away FOREIGN DATA WRAPPER away;
    CREATE FOREIGN TABLE far (id int, v text) SERVER away;
    SELECT agd.guard('t'), agd.guard('p')";

const FUNCTIONS: [&str; 5] = ["record_write", "confirm_write", "refuse_truncate", "refuse_write", "refuse_replicated"];
const TABLES: [&str; 8] = ["t", "plain", "p", "p1", "loose", "loose1", "seen", "far"];
const KINDS: [(&str, &str); 6] = [
    ("BEFORE", "ROW"),
    ("BEFORE", "STATEMENT"),
    ("AFTER", "ROW"),
    ("AFTER", "STATEMENT"),
    ("INSTEAD OF", "ROW"),
    ("INSTEAD OF", "STATEMENT"),
];
const EVENTS: [&str; 6] = ["INSERT", "UPDATE", "DELETE", "TRUNCATE", "INSERT OR UPDATE OR DELETE", "UPDATE OF v"];

fn scene(stem: &str) -> (TestDb<'static>, Client, String) {
    let database = cluster().agd_database(stem).unwrap();
    let mut superuser = database.connect().unwrap();
    superuser.batch_execute(SCENE).unwrap();
    let intruder = format!("{stem}_intruder");
    cluster().create_role(&intruder, "").unwrap();
    superuser
        .batch_execute(&format!(
            "GRANT INSERT, UPDATE, DELETE, SELECT, TRUNCATE, TRIGGER ON t, plain, p, p1, loose, loose1, seen, far TO {intruder};
             GRANT EXECUTE ON FUNCTION agd.refuse_write(), agd.refuse_replicated() TO {intruder}"
        ))
        .unwrap();
    (database, superuser, intruder)
}

/// The guard's id, as anybody reads it.
fn guard_id(client: &mut Client, table: &str) -> String {
    let sql = "SELECT split_part(encode(tgargs, 'escape'), '\\000', 1) FROM pg_trigger
                WHERE tgrelid = $1::text::regclass AND tgname = '~agd_truncate'";
    client.query_one(sql, &[&table]).unwrap().get(0)
}

const RECORDED: &str = "SELECT count(*) FROM agd.event WHERE action IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')";
const STRANGE: &str = "SELECT count(*) FROM pg_trigger g JOIN pg_proc f ON f.oid = g.tgfoid
     JOIN pg_class c ON c.oid = g.tgrelid
    WHERE f.pronamespace = 'agd'::regnamespace AND c.relnamespace <> 'agd'::regnamespace";

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap().get(0)
}

#[test]
fn whoever_has_trigger_makes_none_on_agds_functions() {
    let (database, mut superuser, intruder) = scene("trig_ddl");
    let guard = guard_id(&mut superuser, "t");
    let (before, strange) = (count(&mut superuser, RECORDED), count(&mut superuser, STRANGE));
    let mut client = database.connect_as(&intruder).unwrap();
    client.batch_execute("CREATE TEMP TABLE mine (id int PRIMARY KEY, v text)").unwrap();
    let mut refused = 0;
    for table in TABLES.into_iter().chain(["mine"]) {
        for function in FUNCTIONS {
            for (when, level) in KINDS {
                for event in EVENTS {
                    let sql = format!(
                        "CREATE TRIGGER aaa {when} {event} ON {table} FOR EACH {level} EXECUTE FUNCTION agd.{function}('{guard}')"
                    );
                    let error = client.batch_execute(&sql).expect_err(&sql);
                    let state =
                        error.as_db_error().unwrap_or_else(|| panic!("{sql}: {error}")).code().code().to_owned();
                    // What PostgreSQL itself does not have: INSTEAD OF on tables, TRUNCATE of rows, …
                    assert!(
                        ["AG002", "42809", "0A000", "42P17", "42601"].contains(&state.as_str()),
                        "{sql}: {error:?}"
                    );
                    refused += usize::from(state == "AG002");
                }
            }
        }
    }
    assert!(refused > 400, "{refused}");
    // As the owner, under the gate's own names, in every way to come by a trigger; and it says what to do.
    for sql in [
        "CREATE TRIGGER \"~agd_record\" BEFORE INSERT OR UPDATE OR DELETE ON plain FOR EACH ROW EXECUTE FUNCTION agd.record_write('G')",
        "CREATE TRIGGER \"~agd_truncate\" BEFORE TRUNCATE ON plain FOR EACH STATEMENT EXECUTE FUNCTION agd.refuse_truncate('G')",
        "CREATE TRIGGER \"~agd_truncate\" BEFORE TRUNCATE ON loose1 FOR EACH STATEMENT EXECUTE FUNCTION agd.refuse_truncate('G')",
        "CREATE TRIGGER zzz AFTER INSERT ON t FOR EACH ROW WHEN (NEW.id > 0) EXECUTE FUNCTION agd.confirm_write('G')",
        "CREATE TRIGGER a AFTER UPDATE ON t REFERENCING OLD TABLE AS o FOR EACH STATEMENT EXECUTE FUNCTION agd.confirm_write('G')",
        "CREATE CONSTRAINT TRIGGER a AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION agd.confirm_write('G')",
        "CREATE CONSTRAINT TRIGGER a AFTER INSERT ON plain DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION agd.confirm_write('G')",
        "CREATE TRIGGER a BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION agd.record_write()",
        "CREATE TRIGGER a BEFORE INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION agd.record_write('G', 'G')",
        "CREATE TRIGGER a BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION agd.current_tenant_of()",
        "DO $$ BEGIN EXECUTE 'CREATE TRIGGER a BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION agd.record_write()'; END $$",
        "CREATE SCHEMA own CREATE TABLE x (id int PRIMARY KEY) CREATE TRIGGER a BEFORE INSERT ON x FOR EACH ROW EXECUTE FUNCTION agd.record_write('G')",
        "CREATE TRIGGER a BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION nothing();
         CREATE OR REPLACE TRIGGER a BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION agd.record_write('G')",
        "ALTER TRIGGER \"~agd_record\" ON t RENAME TO \"~agd_record2\"",
        "ALTER TRIGGER \"~agd_record\" ON p RENAME TO aaa",
    ] {
        let sql = sql.replace("'G'", &format!("'{guard}'"));
        let error = superuser.batch_execute(&sql).expect_err(&sql);
        superuser.batch_execute("ROLLBACK").unwrap();
        let error = error.as_db_error().unwrap().clone();
        if error.code().code() != "42883" {
            assert_eq!(error.code().code(), "AG002", "{sql}: {error:?}");
        }
    }
    let error = expect_sqlstate(
        superuser.batch_execute("CREATE TRIGGER a BEFORE INSERT ON plain EXECUTE FUNCTION agd.record_write('x')"),
        "AG002",
    );
    expect_hint(&error, "agd.guard('schema.table')");
    assert_eq!(count(&mut superuser, RECORDED), before);
    assert_eq!(count(&mut superuser, STRANGE), strange);
    // And what is agd's own to make, it makes: new partitions, tables that come and go.
    superuser
        .batch_execute(
            "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (1000) TO (2000); CREATE TABLE p3 (LIKE p INCLUDING ALL);
             ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (2000) TO (3000); ALTER TABLE p DETACH PARTITION p2;
             INSERT INTO p VALUES (2500, 'x'); SELECT agd.guard('plain'); SELECT agd.unguard('plain', 'no more')",
        )
        .unwrap();
    anchor(&mut superuser);
    expect_verified(&mut superuser);
}

/// Turns the trigger `aaa`, made on a function of somebody's own, into one on a function of agd's, past all of agd: as if it
/// had been made before agd refused it.
fn turn(superuser: &mut Client, table: &str, name: &str, function: &str, guard: &str) {
    superuser
        .batch_execute(&format!(
            "BEGIN; SET LOCAL allow_system_table_mods = on;
             UPDATE pg_trigger SET tgfoid = 'agd.{function}()'::regprocedure, tgnargs = 1, tgname = '{name}', tgenabled = 'A',
                    tgargs = convert_to('{guard}', 'UTF8') || '\\x00'::bytea
              WHERE tgrelid = '{table}'::regclass AND tgname = 'aaa';
             COMMIT"
        ))
        .unwrap();
}

#[test]
fn one_that_stands_already_records_nothing_and_crashes_nothing() {
    let (database, mut superuser, intruder) = scene("trig_old");
    superuser.batch_execute("CREATE TABLE spare (id int PRIMARY KEY, v text)").unwrap();
    let guard = guard_id(&mut superuser, "t");
    let of_p = guard_id(&mut superuser, "p1");
    let started: String = superuser.query_one("SELECT pg_postmaster_start_time()::text", &[]).unwrap().get(0);
    let reached = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    let before = count(&mut superuser, RECORDED);
    let checkpointer: i32 = superuser
        .query_one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'", &[])
        .unwrap()
        .get(0);
    let mut fired = 0;
    for (table, guard) in [("t", &guard), ("plain", &guard), ("p1", &of_p), ("loose1", &of_p), ("seen", &guard)] {
        for function in FUNCTIONS {
            for (when, level) in KINDS {
                for event in ["INSERT", "UPDATE", "DELETE", "TRUNCATE"] {
                    let made = superuser.batch_execute(&format!(
                        "CREATE TRIGGER aaa {when} {event} ON {table} FOR EACH {level} EXECUTE FUNCTION nothing()"
                    ));
                    if made.is_err() {
                        continue;
                    }
                    turn(&mut superuser, table, "aaa", function, guard);
                    let write = match event {
                        "INSERT" => format!("INSERT INTO {table} VALUES (7, 'forged')"),
                        "UPDATE" => format!("UPDATE {table} SET v = 'forged'"),
                        "DELETE" => format!("DELETE FROM {table}"),
                        _ => format!("TRUNCATE {table}"),
                    };
                    // A session that reads the table's triggers for the first time.
                    let mut client = database.connect_as(&intruder).unwrap();
                    let outcome = client.batch_execute(&format!("BEGIN; {write}; ROLLBACK"));
                    superuser.batch_execute(&format!("DROP TRIGGER aaa ON {table}")).unwrap();
                    if table == "seen" && level == "STATEMENT" && outcome.is_ok() {
                        // A write through a view becomes one of the table under it: this trigger did not fire.
                        continue;
                    }
                    let error = outcome.expect_err(&write);
                    let state =
                        error.as_db_error().unwrap_or_else(|| panic!("{write} of {function} {when} {level}: {error}"));
                    assert_eq!(state.code().code(), "AG002", "{write} of {function} {when} {level}: {error:?}");
                    fired += 1;
                }
            }
        }
    }
    assert!(fired > 200, "{fired}");
    assert_eq!(count(&mut superuser, reached), 1);
    let now: i32 = superuser
        .query_one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'", &[])
        .unwrap()
        .get(0);
    assert_eq!(now, checkpointer, "the server was restarted");
    assert_eq!(
        superuser.query_one("SELECT pg_postmaster_start_time()::text", &[]).unwrap().get::<_, String>(0),
        started
    );
    assert_eq!(count(&mut superuser, RECORDED), before, "events without writes");
}

#[test]
fn one_that_stands_beside_a_guard_is_a_problem_of_the_guard() {
    let mut g = Watch::simple(cluster(), "trig_beside").unwrap();
    g.run(
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
           CREATE TRIGGER aaa AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION nothing();
           CREATE TABLE plain (id int PRIMARY KEY, v text);
           CREATE TRIGGER aaa BEFORE TRUNCATE ON plain EXECUTE FUNCTION nothing()",
    );
    g.news("t");
    let state: Vec<u8> = g.one("SELECT agd.guard_state()");
    let guard = guard_id(&mut g, "t");
    turn(&mut g, "t", "aaa", "confirm_write", &guard);
    let detail: String = g.one("SELECT detail FROM agd.coverage() WHERE relation = 't'::regclass AND NOT intact");
    assert!(detail.contains("\"aaa\""), "{detail}");
    assert_ne!(g.one::<Vec<u8>>("SELECT agd.guard_state()"), state);
    // It can be taken away, and then all is well.
    g.run("DROP TRIGGER aaa ON t");
    assert_eq!(g.one::<Vec<u8>>("SELECT agd.guard_state()"), state);
    g.records("t", "INSERT INTO t VALUES (77, 'x')", &["INSERT 77"]);
    // A table that has one is not guarded, and a partition that has one is not attached.
    turn(&mut g, "plain", "~agd_truncate", "refuse_truncate", &guard);
    let error = g.refuses("t", "SELECT agd.guard('plain')", "55000");
    expect_hint(&error, "DROP TRIGGER");
    g.run("DROP TRIGGER \"~agd_truncate\" ON plain; SELECT agd.guard('plain')");
}

/// What a superuser may do to the gate's own triggers in PostgreSQL's catalogs: whatever it is, a write is refused, and the
/// server stands.
#[test]
fn the_gates_own_triggers_changed_in_the_catalog_let_nothing_pass() {
    let mut g = Watch::simple(cluster(), "trig_catalog").unwrap();
    g.run("INSERT INTO t VALUES (10, 'x')");
    g.news("t");
    let checkpointer: i32 = g.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'");
    let mut changes: Vec<(&str, String)> = Vec::new();
    for trigger in ["~agd_record", "~agd_confirm"] {
        // Not INSTEAD OF (64): on a table PostgreSQL itself does not survive it, before it calls anybody.
        for kind in 0..64 {
            changes.push((trigger, format!("tgtype = {kind}")));
        }
        for change in [
            "tgenabled = 'O'",
            "tgname = '~agd_other'",
            "tgdeferrable = true",
            "tgnargs = 0",
            "tgattr = '1'",
            "tgconstraint = 1",
            "tgoldtable = 'o'",
            "tgnewtable = 'n'",
            "tgfoid = 'agd.confirm_write()'::regprocedure",
            "tgfoid = 'agd.record_write()'::regprocedure",
            "tgfoid = 'agd.refuse_truncate()'::regprocedure",
            "tgfoid = 'agd.refuse_replicated()'::regprocedure",
            "tgargs = convert_to('6a6fc3f1-0000-0000-0000-000000000000', 'UTF8') || '\\x00'::bytea",
            "tgargs = '\\x00'::bytea",
        ] {
            changes.push((trigger, change.to_owned()));
        }
    }
    for (trigger, change) in changes {
        let kept = "tgtype, tgenabled, tgname, tgdeferrable, tgnargs, tgattr, tgconstraint, tgoldtable, tgnewtable, tgfoid, tgargs";
        g.run(&format!(
            "CREATE TABLE IF NOT EXISTS kept AS SELECT oid AS trigger, {kept} FROM pg_trigger WHERE tgrelid = 't'::regclass;
             SET allow_system_table_mods = on;
             UPDATE pg_trigger SET {change} WHERE tgrelid = 't'::regclass AND tgname = '{trigger}'"
        ));
        let same: bool = g.one(&format!(
            "SELECT NOT EXISTS (SELECT oid, {kept} FROM pg_trigger WHERE tgrelid = 't'::regclass
                                EXCEPT SELECT trigger, {kept} FROM kept)"
        ));
        for (write, bit) in [
            ("INSERT INTO t VALUES (99, 'x')", 4),
            ("UPDATE t SET v = 'y' WHERE id = 10", 16),
            ("DELETE FROM t WHERE id = 10", 8),
        ] {
            let mut client = g.database().connect().unwrap();
            let outcome = client.batch_execute(&format!("BEGIN; {write}; ROLLBACK"));
            if same {
                outcome.unwrap();
                continue;
            }
            // A confirmation that is not asked says nothing: what a superuser switches off in the catalogs shows in
            // agd.coverage() and in agd.verify_table().
            if outcome.is_ok() && trigger == "~agd_confirm" {
                let kind = change.strip_prefix("tgtype = ").map(|kind| kind.parse::<i32>().unwrap());
                let asked = kind.is_some_and(|kind| kind & bit != 0 && kind & 2 == 0 && kind & 1 != 0);
                assert!(!asked && (kind.is_some() || change.starts_with("tgattr")), "{change}: {write} passed");
                continue;
            }
            let error = outcome.expect_err(&format!("{trigger} {change}: {write}"));
            let error = error.as_db_error().unwrap_or_else(|| panic!("{trigger} {change}: {write}: {error}"));
            assert!(
                ["AG001", "AG002", "55000", "XX000"].contains(&error.code().code()),
                "{trigger} {change}: {write}: {error:?}"
            );
        }
        g.run(&format!(
            "UPDATE pg_trigger SET ({kept}) = (SELECT {kept} FROM kept WHERE trigger = pg_trigger.oid) WHERE tgrelid = 't'::regclass"
        ));
    }
    assert_eq!(g.one::<i32>("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'"), checkpointer);
    let mut client = g.database().connect().unwrap();
    client.batch_execute("INSERT INTO t VALUES (11, 'y')").unwrap();
    assert_eq!(g.briefs("t"), ["INSERT 11"]);
}
