//! Stopped at any point: two-phase commit, asynchronous commit, cancelled statements, dead backends, dead servers. What
//! was committed has its record, what was not has none, and the log never holds an event that is not on disk.

use agd_live_tests::record::{anchor, events, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, TestDb, eventually, expect_sqlstate};
use postgres::Client;
use std::collections::BTreeMap;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);
const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t')";

/// WAL is written when somebody asks for it, and otherwise late: what no commit has flushed is lost with the server.
fn start() -> Cluster {
    Cluster::builder()
        .setting("max_prepared_transactions", "10")
        .setting("wal_writer_delay", "10s")
        .setting("wal_writer_flush_after", "1GB")
        .start()
        .unwrap()
}

fn run(client: &mut Client, statements: &[&str]) {
    for sql in statements {
        client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
}

/// Every anchor there is: (origin, size) and root.
fn anchors(client: &mut Client) -> BTreeMap<(String, i64), Vec<u8>> {
    let rows = client.query("SELECT origin, tree_size, root_hash FROM agd.anchors", &[]).unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// Kills the server, starts it, and checks that the table is what its log says and that no anchor was lost or changed.
fn crash(database: &TestDb<'_>, known: &BTreeMap<(String, i64), Vec<u8>>) -> Client {
    database.cluster().kill9_server().unwrap();
    database.cluster().start().unwrap();
    let mut client = database.connect().unwrap();
    let after = anchors(&mut client);
    for (anchor, root) in known {
        assert_eq!(after.get(anchor), Some(root), "{anchor:?} before the crash");
    }
    reconcile(&mut client, "t", &["id"]);
    expect_verified(&mut client);
    client
}

fn ids(client: &mut Client) -> Vec<i32> {
    client.query("SELECT id FROM t ORDER BY id", &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn leaves(client: &mut Client, id: i32) -> i64 {
    let sql = "SELECT count(leaf_index) FROM agd.events WHERE relation = 'public.t' AND row_key->>'id' = $1::int::text";
    client.query_one(sql, &[&id]).unwrap().get(0)
}

/// Trap: PREPARE TRANSACTION, a crash at each stage, COMMIT PREPARED from another session; prepared transactions that
/// stay open while the log goes on; ROLLBACK PREPARED leaves nothing.
#[test]
fn two_phase_commit_with_a_crash_at_each_stage() {
    let cluster = start();
    let database = cluster.agd_database("stages").unwrap();
    let mut client = database.connect().unwrap();
    run(&mut client, &[TABLE, "INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')"]);
    anchor(&mut client);
    let known = anchors(&mut client);

    // Before PREPARE: nothing is left.
    run(&mut client, &["BEGIN", "INSERT INTO t VALUES (10, 'open')", "UPDATE t SET v = 'open' WHERE id = 1"]);
    let mut client = crash(&database, &known);
    assert_eq!(ids(&mut client), [1, 2, 3]);

    // After PREPARE: it survives, and is not in the log while it is not committed.
    run(
        &mut client,
        &[
            "BEGIN; UPDATE t SET v = 'prepared' WHERE id = 1; INSERT INTO t VALUES (11, 'prepared'); PREPARE TRANSACTION 'commits'",
        ],
    );
    run(
        &mut client,
        &["BEGIN; DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (12, 'never'); PREPARE TRANSACTION 'rolls back'"],
    );
    let mut client = crash(&database, &known);
    anchor(&mut client);
    assert_eq!((leaves(&mut client, 11), leaves(&mut client, 12)), (0, 0));
    // The log goes on over an anchor while they are open, and a crash later they are still to come.
    run(&mut client, &["INSERT INTO t SELECT i, 'meanwhile' FROM generate_series(1000, 1599) i"]);
    anchor(&mut client);
    assert_eq!(leaves(&mut client, 1599), 1);
    let known = anchors(&mut client);
    let mut client = crash(&database, &known);
    // Row 1 is locked by the prepared transaction. Whoever waits for it comes after it in the log.
    let mut waiter = database.connect().unwrap();
    let waiting =
        std::thread::spawn(move || waiter.batch_execute("UPDATE t SET v = v || ', then this' WHERE id = 1").unwrap());
    let blocked =
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("the update waits", PATIENCE, || client.query_one(blocked, &[]).unwrap().get(0));
    run(&mut client, &["COMMIT PREPARED 'commits'"]);
    waiting.join().unwrap();
    let mut client = crash(&database, &known);
    // The server was killed right after COMMIT PREPARED: it is committed, and integrated now.
    run(&mut client, &["ROLLBACK PREPARED 'rolls back'"]);
    let mut client = crash(&database, &known);
    anchor(&mut client);
    assert_eq!((leaves(&mut client, 11), leaves(&mut client, 12), leaves(&mut client, 2)), (1, 0, 1));
    let history = "SELECT action || ' ' || (new->>'v') FROM agd.events WHERE row_key->>'id' = '1' ORDER BY leaf_index";
    let history: Vec<String> = client.query(history, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(history, ["INSERT a", "UPDATE prepared", "UPDATE prepared, then this"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
    let held: i64 = client.query_one("SELECT count(*) FROM pg_prepared_xacts", &[]).unwrap().get(0);
    assert_eq!(held, 0);
}

/// Trap: synchronous_commit = off, then a crash. What is anchored is on disk, its events with it, although nobody waited
/// for the disk when they were committed; what is lost is lost with its record.
#[test]
fn asynchronous_commits_are_on_disk_before_they_are_in_the_log() {
    let cluster = start();
    let database = cluster.agd_database("async").unwrap();
    let mut client = database.connect().unwrap();
    run(&mut client, &[TABLE]);
    for round in 0..3 {
        run(&mut client, &["SET synchronous_commit = off"]);
        for i in 0..300 {
            run(&mut client, &[&format!("INSERT INTO t VALUES ({}, 'async')", round * 1000 + i)]);
        }
        let before = ids(&mut client);
        anchor(&mut client);
        let known = anchors(&mut client);
        // Not anchored, not waited for: nothing of it needs to survive.
        run(
            &mut client,
            &[&format!("INSERT INTO t SELECT i, 'late' FROM generate_series({0} + 500, {0} + 520) i", round * 1000)],
        );
        client = crash(&database, &known);
        let after = ids(&mut client);
        assert!(before.iter().all(|id| after.contains(id)), "anchored rows were lost");
        anchor(&mut client);
        expect_each_event_in_one_leaf(&mut client);
    }
}

/// Trap: statement_timeout, lock_timeout, cancel, terminate and kill -9 in the middle of a large guarded statement. No row,
/// no record; and a session that lives on records what it writes next, in the same transaction too.
#[test]
fn a_large_statement_stopped_in_the_middle() {
    let cluster = start();
    let database = cluster.agd_database("stopped").unwrap();
    let mut client = database.connect().unwrap();
    run(
        &mut client,
        &[
            TABLE,
            "INSERT INTO t VALUES (0, 'seed')",
            // Waits at one row for a lock that somebody else has.
            "CREATE FUNCTION at(i int, stop int) RETURNS text LANGUAGE plpgsql AS $$
             BEGIN IF i = stop THEN PERFORM pg_advisory_xact_lock(1); END IF; RETURN 'large'; END $$",
            "SELECT pg_advisory_lock(1)",
        ],
    );
    let large = "INSERT INTO t SELECT i, at(i, 1500) FROM generate_series(0, 3000) i ON CONFLICT DO NOTHING";
    let blocked = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'advisory' AND datname = current_database()";
    for (how, state) in [
        ("SELECT pg_cancel_backend($1)", "57014"),
        ("SELECT pg_terminate_backend($1)", "57P01"),
        ("SET statement_timeout = '300ms'", "57014"),
        ("SET lock_timeout = '300ms'", "55P03"),
    ] {
        for inside in [false, true] {
            let mut writer = database.connect().unwrap();
            if inside {
                run(&mut writer, &["BEGIN", "UPDATE t SET v = v || '.' WHERE id = 0", "SAVEPOINT a"]);
            }
            if how.starts_with("SET") {
                run(&mut writer, &[how]);
            }
            let statement = std::thread::spawn(move || {
                let outcome = writer.batch_execute(large);
                (writer, outcome)
            });
            if !how.starts_with("SET") {
                let mut pid: Option<i32> = None;
                eventually("the statement waits in its middle", PATIENCE, || {
                    pid = client.query_opt(blocked, &[]).unwrap().map(|row| row.get(0));
                    pid.is_some()
                });
                client.query(how, &[&pid]).unwrap();
            }
            let (mut writer, outcome) = statement.join().unwrap();
            if state == "57P01" {
                // The connection may be gone before the client has read why.
                assert!(outcome.is_err());
            } else {
                expect_sqlstate(outcome, state);
            }
            let before = events(&mut client, "t").len();
            if state != "57P01" {
                if inside {
                    run(&mut writer, &["ROLLBACK TO a"]);
                }
                run(&mut writer, &["RESET ALL", "UPDATE t SET v = v || ',' WHERE id = 0"]);
                if inside {
                    run(&mut writer, &["COMMIT"]);
                }
                assert_eq!(
                    events(&mut client, "t").len(),
                    before + if inside { 2 } else { 1 },
                    "{how}, in a block: {inside}"
                );
            }
            assert_eq!(ids(&mut client), [0], "{how}");
            reconcile(&mut client, "t", &["id"]);
        }
    }
    // A backend that dies takes the whole server through recovery.
    let mut writer = database.connect().unwrap();
    let statement = std::thread::spawn(move || writer.batch_execute(large).is_err());
    let mut pid: Option<i32> = None;
    eventually("the statement waits in its middle", PATIENCE, || {
        pid = client.query_opt(blocked, &[]).unwrap().map(|row| row.get(0));
        pid.is_some()
    });
    cluster.kill_backend9(pid.unwrap()).unwrap();
    assert!(statement.join().unwrap());
    let mut client = database.connect().unwrap();
    assert_eq!(ids(&mut client), [0]);
    anchor(&mut client);
    reconcile(&mut client, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

/// Trap: `INSERT … SELECT` of very many rows, rolled back, and cut short by its last row. Not one record stays, and the
/// memory of the backend does not either.
#[test]
fn very_many_rows_and_a_rollback() {
    let cluster = start();
    let database = cluster.agd_database("many").unwrap();
    let mut client = database.connect().unwrap();
    run(&mut client, &[TABLE, "INSERT INTO t VALUES (200000, 'in the way')"]);
    run(
        &mut client,
        &["BEGIN", "INSERT INTO t SELECT i, 'v' FROM generate_series(1, 200000) i ON CONFLICT DO NOTHING", "ROLLBACK"],
    );
    expect_sqlstate(
        client.batch_execute("INSERT INTO t SELECT i, 'v' FROM generate_series(100001, 200000) i"),
        "23505",
    );
    assert_eq!(events(&mut client, "t").len(), 1);
    run(&mut client, &["INSERT INTO t SELECT i, 'v' FROM generate_series(1, 50000) i"]);
    let kept: i64 = client
        .query_one("SELECT sum(total_bytes)::bigint FROM pg_backend_memory_contexts WHERE name LIKE 'agd%'", &[])
        .unwrap()
        .get::<_, Option<i64>>(0)
        .unwrap_or(0);
    assert!(kept < 1 << 20, "{kept} bytes are kept");
    anchor(&mut client);
    let counts = client
        .query_one(
            "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM agd.event WHERE relation = 'public.t' AND action = 'INSERT'),
                    (SELECT count(*) FROM agd.transaction t WHERE NOT EXISTS (SELECT FROM agd.event e WHERE e.xact_id = t.xact_id)),
                    (SELECT size FROM agd.log) = (SELECT count(*) FROM agd.event)",
            &[],
        )
        .unwrap();
    assert_eq!((counts.get::<_, i64>(0), counts.get::<_, i64>(1), counts.get::<_, i64>(2)), (50_001, 50_001, 0));
    assert!(counts.get::<_, bool>(3), "every event is a leaf");
    expect_verified(&mut client);
}

/// Trap: xid8 across epochs. 32-bit transaction numbers wrap while a transaction is open and another is prepared: numbers,
/// order and the list of what is still to come go on.
#[test]
fn transaction_numbers_wrap_into_the_next_epoch() {
    let cluster = start();
    let database = cluster.agd_database("epochs").unwrap();
    let mut client = database.connect().unwrap();
    run(&mut client, &[TABLE, "INSERT INTO t VALUES (1, 'epoch 0')"]);
    anchor(&mut client);
    // Straight to the end of the epoch. Every row must be frozen, and the page of the commit log be there.
    for name in ["postgres", "template1", database.name()] {
        cluster.client("postgres", name).unwrap().batch_execute("VACUUM (FREEZE)").unwrap();
    }
    drop(client);
    cluster.stop(agd_live_tests::Stop::Fast).unwrap();
    cluster.server_program("pg_resetwal", &["-x", "4294967040"]).unwrap();
    let page = cluster.data_dir().join("pg_xact/0FFF");
    std::fs::write(&page, vec![0; 32 * 8192]).unwrap();
    std::os::unix::fs::chown(&page, Some(owner(&cluster)), None).unwrap();
    cluster.start().unwrap();

    let mut client = database.connect().unwrap();
    let number = "SELECT pg_current_xact_id()::text::numeric >= 4294967296";
    assert!(!client.query_one(number, &[]).unwrap().get::<_, bool>(0), "still in epoch 0");
    let mut open = database.connect().unwrap();
    run(&mut open, &["BEGIN", "INSERT INTO t VALUES (2, 'open across')"]);
    run(&mut client, &["BEGIN; INSERT INTO t VALUES (3, 'prepared across'); PREPARE TRANSACTION 'across'"]);
    for i in 0..300 {
        run(&mut client, &[&format!("INSERT INTO t VALUES ({}, 'v')", 1000 + i)]);
        if i % 50 == 0 {
            anchor(&mut client);
        }
    }
    assert!(client.query_one(number, &[]).unwrap().get::<_, bool>(0), "in epoch 1");
    run(&mut open, &["UPDATE t SET v = v || ', still' WHERE id = 1000", "COMMIT"]);
    run(&mut client, &["COMMIT PREPARED 'across'", "UPDATE t SET v = 'epoch 1' WHERE id IN (1, 2, 3)"]);
    anchor(&mut client);
    reconcile(&mut client, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
    let known = anchors(&mut client);
    let mut client = crash(&database, &known);
    run(&mut client, &["INSERT INTO t VALUES (5000, 'after')"]);
    anchor(&mut client);
    reconcile(&mut client, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

fn owner(cluster: &Cluster) -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(cluster.data_dir()).unwrap().uid()
}
