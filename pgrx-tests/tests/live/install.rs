//! Installing and removing: fails cleanly where it must fail, and leaves nothing behind.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, TestDb, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().setting("agd.anchor_max_age", "200ms").start().unwrap())
}

fn schema_exists(client: &mut Client) -> bool {
    client.query_one("SELECT to_regnamespace('agd') IS NOT NULL", &[]).unwrap().get(0)
}

fn worker_pid(client: &mut Client) -> Option<i32> {
    client.query_one("SELECT worker_pid FROM agd.stat", &[]).unwrap().get(0)
}

fn guard_and_write(client: &mut Client) {
    client
        .batch_execute(
            "CREATE TABLE public.t (id int PRIMARY KEY, v text);
             SELECT agd.guard('public.t');
             INSERT INTO public.t SELECT i, 'x' FROM generate_series(1, 300) i",
        )
        .unwrap();
}

fn waiting(client: &mut Client) -> i64 {
    client.query_one("SELECT count(*) FROM agd.events WHERE leaf_index IS NULL", &[]).unwrap().get(0)
}

#[test]
fn without_preload_nothing_is_created() {
    let cluster = Cluster::builder().setting("shared_preload_libraries", "").start().unwrap();
    let mut client = cluster.superuser().unwrap();
    let error = expect_sqlstate(client.batch_execute("CREATE EXTENSION agd"), "55000");
    expect_hint(&error, "shared_preload_libraries");
    assert!(!schema_exists(&mut client));
    let roles: i64 = client.query_one("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'agd%'", &[]).unwrap().get(0);
    assert_eq!(roles, 0);
}

/// A server that is started without the library after the extension was installed: what needs the library says so, and a
/// guarded table cannot be written at all.
#[test]
fn taken_out_of_preload_the_gate_stays_shut() {
    let cluster = Cluster::builder().start().unwrap();
    let mut client = cluster.superuser().unwrap();
    client.batch_execute("CREATE EXTENSION agd").unwrap();
    guard_and_write(&mut client);
    cluster.configure([("shared_preload_libraries", "")]).unwrap();
    cluster.restart().unwrap();
    let mut client = cluster.superuser().unwrap();
    for sql in [
        "INSERT INTO t VALUES (1000, 'y')",
        "UPDATE t SET v = 'y'",
        "DELETE FROM t",
        "TRUNCATE t",
        "SELECT agd.guard('t')",
        "SELECT * FROM agd.anchor()",
        "SELECT * FROM agd.stat",
    ] {
        let error = expect_sqlstate(client.batch_execute(sql), "55000");
        expect_hint(&error, "shared_preload_libraries");
    }
    assert_eq!(client.query("SELECT FROM t", &[]).unwrap().len(), 300);
    cluster.configure([("shared_preload_libraries", "agd")]).unwrap();
    cluster.restart().unwrap();
    let mut client = cluster.superuser().unwrap();
    client.batch_execute("INSERT INTO t VALUES (1000, 'y')").unwrap();
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

#[test]
fn a_squatted_schema_fails_the_installation() {
    let database = cluster().database("squatted").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute("CREATE SCHEMA agd; CREATE TABLE agd.mine (i int)").unwrap();
    expect_sqlstate(client.batch_execute("CREATE EXTENSION agd"), "42P06");
    let relations: Vec<String> = client
        .query("SELECT relname::text FROM pg_class WHERE relnamespace = 'agd'::regnamespace", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(relations, ["mine"]);
    client.batch_execute("DROP SCHEMA agd CASCADE; CREATE EXTENSION agd").unwrap();
}

#[test]
fn a_database_that_is_not_utf8_is_refused() {
    let mut admin = cluster().superuser().unwrap();
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let name = format!("enc_{}", encoding.to_lowercase());
        admin.batch_execute(&format!("CREATE DATABASE {name} ENCODING {encoding} TEMPLATE template0")).unwrap();
        let mut client = cluster().client("postgres", &name).unwrap();
        let error = expect_sqlstate(client.batch_execute("CREATE EXTENSION agd"), "0A000");
        expect_hint(&error, "UTF8");
        assert!(!schema_exists(&mut client));
        drop(client);
        admin.batch_execute(&format!("DROP DATABASE {name}")).unwrap();
    }
}

#[test]
fn only_a_superuser_installs() {
    let database = cluster().database("ordinary").unwrap();
    cluster().create_role("install_nobody", "").unwrap();
    cluster()
        .superuser()
        .unwrap()
        .batch_execute(&format!("GRANT CREATE ON DATABASE \"{}\" TO install_nobody", database.name()))
        .unwrap();
    let mut client = database.connect_as("install_nobody").unwrap();
    expect_sqlstate(client.batch_execute("CREATE EXTENSION agd"), "42501");
}

#[test]
fn the_worker_starts_without_a_restart_and_works_by_itself() {
    let database = cluster().agd_database("worker").unwrap();
    let mut client = database.connect().unwrap();
    eventually("a worker runs", SOON, || worker_pid(&mut client).is_some());
    guard_and_write(&mut client);
    eventually("the worker integrates with nobody asking", SOON, || waiting(&mut client) == 0);
    let anchors: i64 = client.query_one("SELECT count(*) FROM agd.anchors WHERE tree_size = 256", &[]).unwrap().get(0);
    assert_eq!(anchors, 1, "an anchor stands at 256");
    eventually("the tail is anchored by age", SOON, || {
        client
            .query_one("SELECT max(tree_size) = (SELECT count(*) FROM agd.events) FROM agd.anchors", &[])
            .unwrap()
            .get(0)
    });
    expect_verified(&mut client);
}

#[test]
fn a_killed_worker_comes_back() {
    let cluster = Cluster::builder().start().unwrap();
    let database = cluster.agd_database("comeback").unwrap();
    let mut client = database.connect().unwrap();
    eventually("a worker runs", SOON, || worker_pid(&mut client).is_some());
    let first = worker_pid(&mut client).unwrap();
    client.execute("SELECT pg_terminate_backend($1)", &[&first]).unwrap();
    guard_and_write(&mut client);
    anchor(&mut client);
    let second = worker_pid(&mut client);
    assert!(second.is_some() && second != Some(first), "first {first}, then {second:?}");

    cluster.kill_backend9(second.unwrap()).unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute("INSERT INTO t VALUES (1000, 'y')").unwrap();
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

#[test]
fn drop_extension_while_the_worker_runs() {
    let database = cluster().agd_database("dropext").unwrap();
    let mut client = database.connect().unwrap();
    eventually("a worker runs", SOON, || worker_pid(&mut client).is_some());
    let pid = worker_pid(&mut client).unwrap();
    guard_and_write(&mut client);
    for sql in ["DROP EXTENSION agd", "DROP EXTENSION agd CASCADE"] {
        let error = expect_sqlstate(client.batch_execute(sql), "AG002");
        expect_hint(&error, "agd.unguard('public.t'");
    }
    client.batch_execute("SELECT agd.unguard('t', 'the end of the test')").unwrap();
    client.batch_execute("DROP EXTENSION agd").unwrap();
    assert!(!schema_exists(&mut client));
    client.batch_execute("INSERT INTO t VALUES (1000, 'free again')").unwrap();
    eventually("the worker has ended", SOON, || {
        client.query("SELECT FROM pg_stat_activity WHERE pid = $1", &[&pid]).unwrap().is_empty()
    });
    // And again, in the same database.
    client.batch_execute("CREATE EXTENSION agd; SELECT agd.guard('t'); INSERT INTO t VALUES (1001, 'z')").unwrap();
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

/// The worker is held up in the middle of a pass, and DROP EXTENSION comes: it waits for the pass, and neither ends the
/// other with a deadlock.
#[test]
fn drop_extension_in_the_middle_of_a_pass() {
    let database = cluster().agd_database("dropmid").unwrap();
    let mut client = database.connect().unwrap();
    for table in ["agd.log", "agd.tile", "agd.checkpoint"] {
        guard_and_write(&mut client);
        eventually("a worker runs", SOON, || worker_pid(&mut client).is_some());
        let pid = worker_pid(&mut client).unwrap();
        let mut holder = database.connect().unwrap();
        holder.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).unwrap();
        let waits = |client: &mut Client, pid: i32| -> bool {
            let held_up = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)";
            client.query_one(held_up, &[&pid]).unwrap().get(0)
        };
        client.batch_execute("INSERT INTO t SELECT i, 'x' FROM generate_series(1001, 1300) i").unwrap();
        eventually(&format!("the worker is held up by {table}"), SOON, || waits(&mut client, pid));
        client.batch_execute("SELECT agd.unguard('t', 'the end of the test'); DROP TABLE t").unwrap();
        let mut dropper = database.connect().unwrap();
        let dropper_pid: i32 = dropper.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
        let dropped = std::thread::spawn(move || dropper.batch_execute("DROP EXTENSION agd"));
        eventually("DROP EXTENSION waits", SOON, || waits(&mut client, dropper_pid));
        holder.batch_execute("ROLLBACK").unwrap();
        dropped.join().unwrap().unwrap_or_else(|error| panic!("{table}: {error:?}"));
        client.batch_execute("CREATE EXTENSION agd").unwrap();
    }
}

/// A migration runs in one transaction: what it recorded goes with the tables it was recorded in.
#[test]
fn drop_extension_in_the_transaction_that_recorded_something() {
    let database = cluster().agd_database("dropone").unwrap();
    let mut client = database.connect().unwrap();
    guard_and_write(&mut client);
    let drop =
        "BEGIN; DELETE FROM t WHERE id = 1; SELECT agd.unguard('t', 'the end of the test'); DROP EXTENSION agd; COMMIT";
    client.batch_execute(drop).unwrap();
    assert!(!schema_exists(&mut client));
    client.batch_execute("INSERT INTO t VALUES (1, 'free again')").unwrap();
}

#[test]
fn drop_database_while_the_worker_runs() {
    let database = cluster().agd_database("dropdb").unwrap();
    let mut client = database.connect().unwrap();
    eventually("a worker runs", SOON, || worker_pid(&mut client).is_some());
    guard_and_write(&mut client);
    drop(client);
    // Plainly, without FORCE: to the user, nobody is connected.
    let mut admin = cluster().superuser().unwrap();
    let name = database.name();
    eventually("this test's own connection is gone", SOON, || {
        admin
            .query("SELECT FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'", &[&name])
            .unwrap()
            .is_empty()
    });
    admin.batch_execute(&format!("DROP DATABASE \"{name}\"")).unwrap();
    // The name is free, and a database of that name gets a worker of its own.
    admin.batch_execute(&format!("CREATE DATABASE \"{name}\"")).unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute("CREATE EXTENSION agd").unwrap();
    guard_and_write(&mut client);
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
}

#[test]
fn a_rolled_back_installation_leaves_nothing() {
    let database = cluster().database("rolledback").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute(
            "BEGIN; CREATE EXTENSION agd; CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t');
             INSERT INTO t VALUES (1); ROLLBACK",
        )
        .unwrap();
    assert!(!schema_exists(&mut client));
    // Installed, guarded and written in one transaction that commits: the first events stand in the log.
    client
        .batch_execute(
            "BEGIN; CREATE EXTENSION agd; CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t');
             INSERT INTO t VALUES (1); COMMIT",
        )
        .unwrap();
    anchor(&mut client);
    let inserts: i64 = client
        .query_one("SELECT count(*) FROM agd.events WHERE action = 'INSERT' AND relation = 'public.t'", &[])
        .unwrap()
        .get(0);
    assert_eq!(inserts, 1);
    expect_each_event_in_one_leaf(&mut client);
}

/// The roles belong to the server: two installations must not stumble over each other.
#[test]
fn two_installations_at_the_same_moment() {
    let cluster = Cluster::builder().start().unwrap();
    let databases: Vec<TestDb<'_>> = (0..4).map(|_| cluster.database("same").unwrap()).collect();
    let outcomes: Vec<Result<(), postgres::Error>> = std::thread::scope(|scope| {
        let installing: Vec<_> = databases
            .iter()
            .map(|database| {
                let mut client = database.connect().unwrap();
                scope.spawn(move || client.batch_execute("CREATE EXTENSION agd"))
            })
            .collect();
        installing.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

#[test]
fn two_databases_at_once() {
    fn one<'c>(cluster: &'c Cluster, stem: &str) -> (TestDb<'c>, Client) {
        let database = cluster.agd_database(stem).unwrap();
        let mut client = database.connect().unwrap();
        guard_and_write(&mut client);
        (database, client)
    }
    let (_one, mut first) = one(cluster(), "twin");
    let (_two, mut second) = one(cluster(), "twin");
    anchor(&mut first);
    first.batch_execute("INSERT INTO t VALUES (1000, 'only here')").unwrap();
    anchor(&mut second);
    anchor(&mut first);
    for client in [&mut first, &mut second] {
        expect_each_event_in_one_leaf(client);
        expect_verified(client);
    }
    let origin = |client: &mut Client| -> String {
        client.query_one("SELECT DISTINCT origin FROM agd.anchors WHERE tenant IS NULL", &[]).unwrap().get(0)
    };
    assert_ne!(origin(&mut first), origin(&mut second));
    assert_ne!(worker_pid(&mut first), worker_pid(&mut second));
}
