//! Ceilings: too much that is not integrated, or not published, stops guarded writes and nothing else.

use agd_live_tests::publishing;
use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, worker_pid};
use agd_live_tests::{Builder, Cluster, TestDb, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// A server whose worker integrates when it must and not by age, and whose writers do not wait long.
fn builder() -> Builder {
    Cluster::builder().setting("agd.anchor_max_age", "1h").setting("agd.ceiling_wait", "200ms")
}

fn guarded(cluster: &Cluster) -> (TestDb<'_>, Client) {
    let database = cluster.agd_database("ceiling").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t', on_truncate => 'record')")
        .unwrap();
    (database, client)
}

fn number(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

fn set(client: &mut Client, name: &str, value: &str) {
    client.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually("the setting is in force", SOON, || {
        client.query_one("SELECT setting FROM pg_settings WHERE name = $1", &[&name]).unwrap().get::<_, String>(0)
            == value
    });
}

/// Everything integrated, so that what follows is counted from nothing.
fn at_rest(client: &mut Client) {
    anchor(client);
    eventually("nothing waits", SOON, || number(client, "SELECT events_waiting FROM agd.stat") == 0);
}

#[test]
fn events_that_are_not_integrated_stop_writes() {
    let cluster = builder().setting("agd.max_unsequenced_events", "10").start().unwrap();
    let (database, mut client) = guarded(&cluster);
    at_rest(&mut client);
    let worker = worker_pid(&mut client);
    let frozen = cluster.freeze(worker).unwrap();
    // What began below the ceiling goes through, however much it is.
    let mut before = database.connect().unwrap();
    before.batch_execute("BEGIN; INSERT INTO t VALUES (1000, 'early')").unwrap();
    client.batch_execute("INSERT INTO t SELECT i FROM generate_series(1, 10) i").unwrap();
    client.batch_execute("INSERT INTO t VALUES (11)").unwrap();
    for sql in [
        "INSERT INTO t VALUES (12)",
        "UPDATE t SET v = 'x' WHERE id = 1",
        "DELETE FROM t WHERE id = 1",
        "COPY t FROM PROGRAM 'echo 13,x' (FORMAT csv)",
        "DO $$ BEGIN INSERT INTO t VALUES (14); END $$",
    ] {
        let error = expect_sqlstate(client.batch_execute(sql), "53400");
        expect_hint(&error, "worker");
        assert!(error.message().contains("agd.max_unsequenced_events"), "{}", error.message());
    }
    before.batch_execute("INSERT INTO t VALUES (1001, 'early too'); COMMIT").unwrap();
    expect_sqlstate(client.batch_execute("TRUNCATE t"), "53400");
    // Reads, and writes to what is not guarded, go on.
    assert_eq!(number(&mut client, "SELECT count(*) FROM t"), 13);
    client
        .batch_execute("CREATE TABLE free (id int); INSERT INTO free VALUES (1); UPDATE t SET v = 'x' WHERE false")
        .unwrap();
    assert_eq!(
        number(&mut client, "SELECT count(*) FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'"),
        13
    );
    // A guarded write in a transaction that reads first, too.
    expect_sqlstate(client.batch_execute("BEGIN; SELECT * FROM t; INSERT INTO t VALUES (12)"), "53400");
    client.batch_execute("ROLLBACK").unwrap();
    drop(frozen);
    eventually("writes go on", SOON, || client.batch_execute("INSERT INTO t VALUES (12)").is_ok());
    // Each refusal was told; nothing else was left.
    anchor(&mut client);
    let refused = "SELECT count(*) FROM agd.events WHERE action = 'DENIED' AND body::json->>'sqlstate' = '53400' AND relation = 'public.t'";
    assert!(number(&mut client, refused) >= 7);
    assert_eq!(number(&mut client, "SELECT count(*) FROM t"), 14);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

#[test]
fn a_write_waits_for_a_worker_that_is_behind() {
    let cluster =
        builder().setting("agd.ceiling_wait", "1h").setting("agd.max_unsequenced_events", "1").start().unwrap();
    let (database, mut client) = guarded(&cluster);
    // The worker is in no hurry by itself: age and number are far off. Writers who wait are what hurries it.
    for i in 0..20 {
        client.batch_execute(&format!("INSERT INTO t VALUES ({i})")).unwrap();
    }
    at_rest(&mut client);
    let worker = worker_pid(&mut client);
    let frozen = cluster.freeze(worker).unwrap();
    client.batch_execute("INSERT INTO t VALUES (100), (101)").unwrap();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO t%' AND state = 'active' AND wait_event_type = 'Extension'";
    std::thread::scope(|scope| {
        let mut patient = database.connect().unwrap();
        let mut cancelled = database.connect().unwrap();
        let pid: i32 = cancelled.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
        let patient = scope.spawn(move || patient.batch_execute("INSERT INTO t VALUES (200)"));
        let cancelled = scope.spawn(move || cancelled.batch_execute("INSERT INTO t VALUES (201)"));
        eventually("both wait", SOON, || number(&mut client, waits) == 2);
        client.execute("SELECT pg_cancel_backend($1)", &[&pid]).unwrap();
        expect_sqlstate(cancelled.join().unwrap(), "57014");
        assert_eq!(number(&mut client, waits), 1);
        drop(frozen);
        patient.join().unwrap().unwrap();
    });
    assert_eq!(number(&mut client, "SELECT count(*) FROM t WHERE id >= 100"), 3);
    assert_eq!(number(&mut client, "SELECT count(*) FROM agd.events WHERE action = 'DENIED'"), 0);
}

#[test]
fn a_restart_forgets_no_event_that_waits() {
    let cluster = builder().setting("agd.max_unsequenced_events", "10").start().unwrap();
    let (database, mut client) = guarded(&cluster);
    at_rest(&mut client);
    let worker = worker_pid(&mut client);
    let _frozen = cluster.freeze(worker).unwrap();
    client.batch_execute("INSERT INTO t SELECT i FROM generate_series(1, 10) i").unwrap();
    client.batch_execute("BEGIN; INSERT INTO t SELECT i FROM generate_series(11, 15) i; ROLLBACK").unwrap();
    drop(client);
    cluster.kill9_server().unwrap();
    // No process is left over for a worker.
    let none = [("max_worker_processes", "1"), ("max_logical_replication_workers", "0")];
    cluster.configure(none).unwrap();
    cluster.start().unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute("INSERT INTO t VALUES (11)").unwrap();
    let error = expect_sqlstate(client.batch_execute("INSERT INTO t VALUES (12)"), "53400");
    expect_hint(&error, "worker");
    // A second session counts as the first did, and a ceiling that is raised is obeyed at once.
    expect_sqlstate(database.connect().unwrap().batch_execute("INSERT INTO t VALUES (12)"), "53400");
    set(&mut client, "agd.max_unsequenced_events", "12");
    client.batch_execute("INSERT INTO t VALUES (12)").unwrap();
    client.batch_execute("INSERT INTO t VALUES (13)").unwrap();
    expect_sqlstate(client.batch_execute("INSERT INTO t VALUES (14)"), "53400");
    drop(client);
    cluster.configure([("max_worker_processes", "64")]).unwrap();
    cluster.restart().unwrap();
    let mut client = database.connect().unwrap();
    eventually("writes go on", SOON, || client.batch_execute("INSERT INTO t VALUES (14)").is_ok());
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

/// Reports the platform log's anchor that is `back` places before the newest as published.
fn publish(client: &mut Client, back: i64) -> String {
    let newest_first = "SELECT tree_size FROM agd.anchors WHERE tenant IS NULL ORDER BY tree_size DESC";
    let size = number(client, &format!("{newest_first} OFFSET {back} LIMIT 1"));
    publishing::receipts(client, &format!("tenant IS NULL AND tree_size = {size}"), "file:///there")
}

#[test]
fn anchors_that_are_not_published_stop_writes() {
    let cluster = builder().setting("agd.max_unpublished_anchors", "3").start().unwrap();
    let (database, mut client) = guarded(&cluster);
    client
        .batch_execute(
            "SELECT agd.create_tenant('acme'); CREATE TABLE owned (tenant text, id int, PRIMARY KEY (tenant, id));
             SELECT agd.guard('owned', tenant_column => 'tenant')",
        )
        .unwrap();
    publishing::register(&mut client);
    let unpublished = "SELECT anchors_unpublished FROM agd.stat";
    let mut next = 0;
    let mut anchors = |client: &mut Client, how_many: i64| {
        while number(client, unpublished) < how_many {
            client.batch_execute(&format!("INSERT INTO t VALUES ({next})")).unwrap();
            next += 1;
            anchor(client);
        }
    };
    let write = "INSERT INTO owned VALUES ('acme', (SELECT count(*) FROM owned))";
    anchors(&mut client, 3);
    client.batch_execute(write).unwrap();
    // This one makes it four.
    anchor(&mut client);
    assert_eq!(number(&mut client, unpublished), 4);
    let refused = |client: &mut Client| {
        let error = expect_sqlstate(client.batch_execute(write), "53400");
        expect_hint(&error, "agd publish");
        assert!(error.message().contains("agd.max_unpublished_anchors"), "{}", error.message());
    };
    refused(&mut client);
    refused(&mut database.connect().unwrap());
    assert_eq!(number(&mut client, "SELECT count(*) FROM owned"), 1);
    // A tenant's anchor is not the platform's, one that is rolled back is none, an old one leaves too many.
    let of_acme = publishing::receipts(&mut client, "tenant = 'acme'", "file:///there");
    client.batch_execute(&of_acme).unwrap();
    refused(&mut client);
    let newest = publish(&mut client, 0);
    client.batch_execute(&format!("BEGIN; {newest}; ROLLBACK")).unwrap();
    refused(&mut client);
    // The server forgets its counts; the tables do not.
    drop(client);
    cluster.restart().unwrap();
    let mut client = database.connect().unwrap();
    refused(&mut client);
    // What was refused has been told meanwhile, in events of their own.
    anchor(&mut client);
    let behind = number(&mut client, unpublished);
    let old = publish(&mut client, behind - 1);
    client.batch_execute(&old).unwrap();
    assert_eq!(number(&mut client, unpublished), behind - 1);
    assert!(behind - 1 > 3);
    refused(&mut client);
    // A writer that waits goes on as soon as the publisher has reported.
    set(&mut client, "agd.ceiling_wait", "3600000");
    std::thread::scope(|scope| {
        let mut patient = database.connect().unwrap();
        let patient = scope.spawn(move || patient.batch_execute(write));
        eventually("it waits", SOON, || {
            number(
                &mut client,
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT INTO owned%' AND wait_event_type = 'Extension'",
            ) == 1
        });
        let newest = publish(&mut client, 0);
        client.batch_execute(&newest).unwrap();
        patient.join().unwrap().unwrap();
    });
    assert_eq!(number(&mut client, unpublished), 0);
    // Counted on from there: three more are allowed, the fourth is not.
    set(&mut client, "agd.ceiling_wait", "200");
    anchors(&mut client, 3);
    client.batch_execute(write).unwrap();
    anchor(&mut client);
    refused(&mut client);
    set(&mut client, "agd.max_unpublished_anchors", "0");
    client.batch_execute(write).unwrap();
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

#[test]
fn without_a_ceiling_nothing_is_held_up() {
    let cluster = builder().start().unwrap();
    let (_database, mut client) = guarded(&cluster);
    let worker = worker_pid(&mut client);
    let frozen = cluster.freeze(worker).unwrap();
    for i in 0..50 {
        client
            .batch_execute(&format!("INSERT INTO t SELECT i FROM generate_series({i} * 100, {i} * 100 + 99) i"))
            .unwrap();
    }
    assert!(number(&mut client, "SELECT events_waiting FROM agd.stat") >= 5000);
    drop(frozen);
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
}
