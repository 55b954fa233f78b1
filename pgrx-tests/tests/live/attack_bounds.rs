//! What somebody makes large so that a server, a log or a session of others suffers: definitions, names, reasons, causes, and
//! memory. Whatever it is, it ends in an error of the one who asked for it.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, TestDb, Watch, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

/// A database whose guarded table `t` belongs to an ordinary role.
fn owned(stem: &str) -> (Watch, Client) {
    let mut g = Watch::new(cluster(), stem, "CREATE TABLE t (id int PRIMARY KEY, v text)").unwrap();
    let owner = format!("{}_owner", g.database().name());
    cluster().create_role(&owner, "").unwrap();
    g.run(&format!("GRANT CREATE ON SCHEMA public TO {owner}; ALTER TABLE t OWNER TO {owner}; SELECT agd.guard('t')"));
    let client = g.database().connect_as(&owner).unwrap();
    (g, client)
}

/// Everything that is committed is in a log and verified: nobody's log stands still.
fn expect_all_in_the_log(client: &mut Client) {
    anchor(client);
    expect_each_event_in_one_leaf(client);
    expect_verified(client);
}

const LARGE: &str = "repeat('x', 2 << 20)";

#[test]
fn definitions_too_large_for_the_guards_digest_are_refused() {
    let (mut g, mut owner) = owned("bounds_definitions");
    let state: Vec<u8> = g.one("SELECT agd.guard_state()");
    owner
        .batch_execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; CREATE POLICY small ON t USING (v <> 'x')")
        .unwrap();
    for ddl in [
        "CREATE POLICY large ON t USING (v <> %L)",
        "CREATE POLICY large ON t WITH CHECK (v <> %L)",
        "ALTER POLICY small ON t USING (v <> %L)",
        "CREATE TRIGGER large AFTER INSERT ON t FOR EACH ROW WHEN (NEW.v <> %L) EXECUTE FUNCTION f()",
        "CREATE TRIGGER \"~agd_large\" AFTER INSERT ON t FOR EACH ROW WHEN (NEW.v <> %L) EXECUTE FUNCTION f()",
        "CREATE TRIGGER large AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(%L)",
    ] {
        let ddl = format!("DO $do$ BEGIN EXECUTE format('{ddl}', {LARGE}); END $do$", ddl = ddl.replace('\'', "''"));
        let error = expect_sqlstate(owner.batch_execute(&ddl), "AG002");
        assert!(error.message().contains("more than 1 MB"), "{}", error.message());
    }
    owner.batch_execute("DROP POLICY small ON t; INSERT INTO t VALUES (1, 'a')").unwrap();
    assert_eq!(g.one::<Vec<u8>>("SELECT agd.guard_state()"), state);
    // Many that are just not too large: the digest is of any size.
    owner
        .batch_execute(
            "DO $do$ BEGIN FOR i IN 1..20 LOOP EXECUTE format('CREATE POLICY p%s ON t USING (v <> %L)', i, repeat('x', 150000)); END LOOP; END $do$"
        )
        .unwrap();
    assert_ne!(g.one::<Vec<u8>>("SELECT agd.guard_state()"), state);
    // What was made before the table was guarded: it is not guarded with it.
    owner
        .batch_execute(&format!(
            "CREATE TABLE later (id int PRIMARY KEY, v text);
             DO $do$ BEGIN EXECUTE format('CREATE POLICY large ON later USING (v <> %L)', {LARGE}); END $do$"
        ))
        .unwrap();
    expect_sqlstate(g.batch_execute("SELECT agd.guard('later')"), "55000");
    expect_all_in_the_log(&mut g);
}

/// An expression as deep as its owner's stack allows: the worker's, which must look at it, is no deeper.
#[test]
fn a_condition_as_deep_as_the_stack_stops_no_log() {
    let (mut g, mut owner) = owned("bounds_depth");
    owner.batch_execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$").unwrap();
    let (mut made, mut depth) = (0, 64);
    let mut step = 64;
    // The deepest that PostgreSQL takes, within a few.
    while step > 0 && depth < 40_000 {
        let condition = format!("NEW.id{} > 0", " + 1".repeat(depth));
        let outcome = owner.batch_execute(&format!(
            "CREATE TRIGGER \"~agd_deep_{depth}\" AFTER INSERT ON t FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION f()"
        ));
        match outcome {
            Ok(()) => {
                made = depth;
                step *= 2;
            }
            Err(error) => {
                // Deeper than the stack, or larger than what the digest takes in.
                assert!(["54001", "AG002"].contains(&error.as_db_error().unwrap().code().code()), "{error:?}");
                depth = made;
                step /= 4;
            }
        }
        depth += step;
    }
    assert!(made > 100);
    println!("{made} deep");
    expect_all_in_the_log(&mut g);
    assert!(g.one::<bool>("SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname LIKE '~agd_deep%')"));
}

#[test]
fn a_guard_whose_event_would_fit_into_no_entry_is_not_made() {
    let mut g = Watch::simple(cluster(), "bounds_redact").unwrap();
    let name = |number: usize| format!("{}{number:04}", "n".repeat(59));
    let columns: Vec<String> = (0..1100).map(|number| format!("{} text", name(number))).collect();
    g.run(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", ")));
    let names = |count: usize| (0..count).map(name).collect::<Vec<_>>().join(",");
    let error = expect_sqlstate(
        g.batch_execute(&format!("SELECT agd.guard('wide', redact => '{{{}}}')", names(1100))),
        "54000",
    );
    expect_hint(&error, "Name fewer columns");
    assert!(!g.one::<bool>("SELECT guarded FROM agd.coverage() WHERE relation = 'wide'::regclass"));
    g.run(&format!("SELECT agd.guard('wide', redact => '{{{}}}'); INSERT INTO wide (id) VALUES (1)", names(400)));
    g.run("INSERT INTO t VALUES (77, 'x')");
    expect_all_in_the_log(&mut g);
}

/// The longest texts that are allowed, of the characters that take most in an entry, together in one event.
#[test]
fn the_longest_texts_together_have_an_entry() {
    let mut g = Watch::simple(cluster(), "bounds_texts").unwrap();
    let worst = "\u{1}".repeat(4094);
    let odd = "\u{2}".repeat(63);
    g.run(&format!(
        "CREATE TABLE \"{odd}\" (id int PRIMARY KEY); SELECT agd.guard('\"{odd}\"'); CREATE ROLE \"{odd}\";
         SET application_name = 'back\\slash\"quote'"
    ));
    g.run(&format!(
        "BEGIN; SELECT agd.set_cause('a{worst}z'); INSERT INTO \"{odd}\" VALUES (1);
         SELECT agd.unguard('\"{odd}\"', 'a{worst}z'); COMMIT; DROP ROLE \"{odd}\""
    ));
    let body: i32 = g.one("SELECT max(length(body)) FROM agd.event WHERE action = 'UNGUARD'");
    assert_eq!(body, 4096);
    expect_sqlstate(g.batch_execute(&format!("SELECT agd.set_cause('{}')", "c".repeat(4097))), "22023");
    // A refused attempt is told in as many escapes.
    expect_sqlstate(g.batch_execute(&format!("DROP TRIGGER \"~agd_record\" ON t; -- {worst}")), "AG002");
    assert!(g.batch_execute(&format!("SELECT agd.bind('{}')", "\u{1}".repeat(4000))).is_err());
    expect_all_in_the_log(&mut g);
}

fn resident(client: &mut Client) -> u64 {
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn causes_and_savepoints_take_no_more_memory_than_they_are_deep() {
    let mut g = Watch::simple(cluster(), "bounds_causes").unwrap();
    let mut client = g.database().connect().unwrap();
    client.batch_execute("BEGIN; SELECT agd.set_cause(repeat('a', 4000))").unwrap();
    let before = resident(&mut client);
    client
        .batch_execute(
            "DO $$ BEGIN FOR i IN 1..20000 LOOP PERFORM agd.set_cause(repeat('a', 4000) || i); END LOOP; END $$",
        )
        .unwrap();
    let after = resident(&mut client);
    assert!(after < before + 16_000, "{before} kB, then {after} kB"); // 80 MB if each were kept
    // Savepoints that are released, with a cause each; the last one counts.
    client
        .batch_execute(
            "DO $$ BEGIN FOR i IN 1..2000 LOOP BEGIN PERFORM agd.set_cause(repeat('b', 4000) || i); EXCEPTION WHEN others THEN RAISE; END; END LOOP; END $$;
             SAVEPOINT a; SELECT agd.set_cause('undone'); ROLLBACK TO a; SAVEPOINT b; SELECT agd.set_cause('kept'); RELEASE b;
             INSERT INTO t VALUES (50, 'x'); COMMIT",
        )
        .unwrap();
    let cause: String = g.one("SELECT cause FROM agd.events WHERE relation = 'public.t' AND new->>'id' = '50'");
    assert_eq!(cause, "kept");
    // As deep as somebody goes: at a megabyte it ends.
    let nested: String =
        (0..300).map(|n| format!("SAVEPOINT s{n}; SELECT agd.set_cause(repeat('c', 4000) || '{n}');")).collect();
    expect_sqlstate(client.batch_execute(&format!("BEGIN; {nested}")), "54000");
    client.batch_execute("ROLLBACK").unwrap();
    // The number of events is right, whichever subtransactions they were in and whether they were written or not.
    client
        .batch_execute(
            "BEGIN;
             DO $$ BEGIN FOR i IN 100..600 LOOP BEGIN INSERT INTO t VALUES (i, 'x'); INSERT INTO t VALUES (1, 'y') ON CONFLICT DO NOTHING;
               IF i % 3 = 0 THEN RAISE EXCEPTION 'undo'; END IF; EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$;
             SAVEPOINT a; INSERT INTO t VALUES (1000, 'x'); SAVEPOINT b; INSERT INTO t VALUES (1001, 'x'); RELEASE b;
             INSERT INTO t VALUES (1002, 'x'); ROLLBACK TO a; INSERT INTO t VALUES (1003, 'x'); COMMIT",
        )
        .unwrap();
    expect_all_in_the_log(&mut g);
    let wrong: i64 = g.one(
        "SELECT count(*) FROM agd.transaction t WHERE t.events <> (SELECT count(*) FROM agd.event e WHERE e.xact_id = t.xact_id)",
    );
    assert_eq!(wrong, 0);
}

/// Bounds the address space of a session's process to what it has now and so many bytes.
fn limit(client: &mut Client, bytes: u64) -> i32 {
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = statm.split_whitespace().next().unwrap().parse().unwrap();
    let limit = pages * 4096 + bytes;
    // By a child of the process: whoever runs the test may not do it to a process of the server's user.
    client
        .batch_execute(&format!(
            "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; prlimit --pid $PPID --as={limit}:{limit}'"
        ))
        .unwrap();
    pid
}

fn checkpointer(database: &TestDb<'_>) -> i32 {
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
    database.connect().unwrap().query_one(sql, &[]).unwrap().get(0)
}

/// Under a memory limit Rust would end the process by a signal, and PostgreSQL the whole server.
#[test]
fn a_session_without_memory_ends_alone() {
    let mut g = Watch::simple(cluster(), "bounds_memory").unwrap();
    let server = checkpointer(g.database());
    for (what, statements) in [
        ("a copy of an argument", "SELECT agd.unguard('t', repeat('x', (SELECT 300 << 20)))"),
        (
            "in a transaction that wrote, in a savepoint",
            "BEGIN; INSERT INTO t VALUES (9, 'x'); SAVEPOINT a; INSERT INTO t VALUES (10, 'x'); SELECT agd.unguard('t', repeat('x', (SELECT 300 << 20)))",
        ),
        (
            "in an exception block",
            "DO $$ BEGIN INSERT INTO t VALUES (9, 'x'); PERFORM agd.unguard('t', repeat('x', (SELECT 300 << 20))); EXCEPTION WHEN others THEN NULL; END $$",
        ),
        (
            "in a trigger of a guarded table",
            "CREATE TEMP TABLE none (); INSERT INTO t SELECT 11, 'x' WHERE agd.unguard('t', repeat('x', (SELECT 300 << 20))) IS NULL",
        ),
    ] {
        let mut other = g.database().connect().unwrap();
        other.batch_execute("BEGIN; INSERT INTO t VALUES (200, 'other')").unwrap();
        let mut client = g.database().connect().unwrap();
        client.batch_execute("SELECT 1 FROM t; SELECT agd.set_cause('warm')").unwrap();
        limit(&mut client, 450 << 20);
        let error = client.batch_execute(statements).expect_err(what);
        match error.as_db_error() {
            Some(error) => assert_eq!((error.code().code(), error.severity()), ("53200", "FATAL"), "{what}: {error:?}"),
            None => panic!("{what}: {error:?}: {}", cluster().log_tail()),
        }
        // Nobody else noticed, its locks are free, and nothing of it is there.
        other.batch_execute("INSERT INTO t VALUES (201, 'other'); ROLLBACK").unwrap();
        g.run("SET lock_timeout = '20s'; BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; COMMIT");
        assert_eq!(g.one::<i64>("SELECT count(*) FROM t WHERE id IN (9, 10, 11)"), 0, "{what}");
        assert_eq!(checkpointer(g.database()), server, "{what}: the server was restarted");
    }
    g.news("t");
    g.records("t", "INSERT INTO t VALUES (77, 'x')", &["INSERT 77"]);
    expect_all_in_the_log(&mut g);
}

/// What grows with what somebody writes is an error of the statement, and the session goes on.
#[test]
fn a_statement_without_memory_is_an_error() {
    let mut g = Watch::simple(cluster(), "bounds_rows").unwrap();
    g.run("CREATE TABLE wide (id int PRIMARY KEY, v text); SELECT agd.guard('wide')");
    let server = checkpointer(g.database());
    let mut client = g.database().connect().unwrap();
    client.batch_execute("INSERT INTO wide VALUES (0, 'x')").unwrap();
    limit(&mut client, 300 << 20);
    // An image of 200 MB, beside the value itself.
    let error = expect_sqlstate(client.batch_execute("INSERT INTO wide VALUES (1, repeat('x', 200 << 20))"), "53200");
    assert_eq!(error.severity(), "ERROR");
    client.batch_execute("INSERT INTO wide VALUES (2, 'x')").unwrap();
    assert_eq!(checkpointer(g.database()), server);
    assert_eq!(g.one::<i64>("SELECT count(*) FROM wide"), 2);
    expect_all_in_the_log(&mut g);
}

/// With as little as nothing, and with a little more each time: wherever the memory ends, in PostgreSQL or in agd, in the gate,
/// in a savepoint or at the commit, the session is told or ends, and no other one notices.
#[test]
fn wherever_memory_ends_the_server_stands() {
    let mut g = Watch::simple(cluster(), "bounds_anywhere").unwrap();
    g.run("CREATE TABLE wide (id int PRIMARY KEY, v text, w text); SELECT agd.guard('wide', redact => '{w}')");
    let server = checkpointer(g.database());
    let (mut ended, mut failed) = (0, 0);
    for step in 0..16_u64 {
        let mut client = g.database().connect().unwrap();
        // Neither what agd keeps nor what PostgreSQL keeps of the table is there yet.
        limit(&mut client, (step * step * 360) << 10);
        for statement in [
            "BEGIN",
            "SELECT agd.set_cause(repeat('c', 4000))",
            "INSERT INTO wide SELECT i, repeat('v', 100), 'w' FROM generate_series(1, 20000) i",
            "SAVEPOINT a",
            "UPDATE wide SET v = repeat('x', 3000000) WHERE id = 1",
            "RELEASE a",
            "DO $$ BEGIN INSERT INTO wide VALUES (-1, 'x', 'y'); EXCEPTION WHEN others THEN NULL; END $$",
            "COMMIT",
            "ROLLBACK",
            "DELETE FROM wide",
        ] {
            let Err(error) = client.batch_execute(statement) else { continue };
            let Some(error) = error.as_db_error() else {
                assert!(client.is_closed(), "{statement}: {error:?}");
                break;
            };
            let state = error.code().code();
            assert!(["53200", "25P02", "3B001"].contains(&state), "{statement}: {error:?}");
            failed += usize::from(error.severity() == "ERROR");
            ended += usize::from(error.severity() == "FATAL");
        }
        assert_eq!(checkpointer(g.database()), server, "the server was restarted at step {step}");
    }
    println!("{ended} sessions ended, {failed} statements failed");
    assert!(failed > 0);
    g.run("SET lock_timeout = '20s'; BEGIN; LOCK TABLE wide IN ACCESS EXCLUSIVE MODE; COMMIT; DELETE FROM wide");
    expect_all_in_the_log(&mut g);
}
