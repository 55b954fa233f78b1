//! The harness itself: what every other test here stands on. These tests need no extension.

use agd_live_tests::{Cluster, Stop, expect_sqlstate};

fn bare() -> agd_live_tests::Builder {
    Cluster::builder().setting("shared_preload_libraries", "")
}

#[test]
fn a_cluster_starts_stops_restarts_and_leaves_nothing() {
    let cluster = bare().setting("max_prepared_transactions", "3").start().unwrap();
    let row =
        cluster.superuser().unwrap().query_one("SELECT current_setting('max_prepared_transactions')", &[]).unwrap();
    assert_eq!(row.get::<_, String>(0), "3");

    cluster.superuser().unwrap().batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").unwrap();
    cluster.restart().unwrap();
    cluster.stop(Stop::Immediate).unwrap();
    assert!(cluster.superuser().is_err());
    cluster.start().unwrap();
    assert_eq!(cluster.superuser().unwrap().query("SELECT FROM t", &[]).unwrap().len(), 1);

    let directory = cluster.socket_dir().to_owned();
    drop(cluster);
    assert!(!directory.exists());
}

#[test]
fn the_directory_is_removed_after_a_panic() {
    let directory = std::sync::Mutex::new(None);
    let outcome = std::panic::catch_unwind(|| {
        let cluster = bare().start().unwrap();
        *directory.lock().unwrap() = Some(cluster.socket_dir().to_owned());
        panic!("on purpose");
    });
    assert!(outcome.is_err());
    assert!(!directory.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).unwrap().exists());
}

#[test]
fn a_server_that_cannot_start_shows_its_log() {
    let error = bare().setting("shared_buffers", "nonsense").start().err().unwrap();
    assert!(error.to_string().contains("shared_buffers"), "{error}");
}

#[test]
fn crashes_are_survived() {
    let cluster = bare().start().unwrap();
    let mut victim = cluster.superuser().unwrap();
    let pid = victim.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    victim.batch_execute("CREATE TABLE t (i int)").unwrap();
    cluster.kill_backend9(pid).unwrap();
    assert!(victim.batch_execute("SELECT 1").is_err());
    cluster.superuser().unwrap().batch_execute("INSERT INTO t VALUES (1)").unwrap();
    cluster.kill9_server().unwrap();
    cluster.start().unwrap();
    assert_eq!(cluster.superuser().unwrap().query("SELECT FROM t", &[]).unwrap().len(), 1);
    assert!(cluster.log().contains("redo starts"), "{}", cluster.log_tail());
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let primary = bare().start().unwrap();
    let standby = primary.standby().unwrap();
    let mut client = standby.superuser().unwrap();
    expect_sqlstate(client.batch_execute("CREATE TABLE t (i int)"), "25006");
    primary.stop(Stop::Fast).unwrap();
    standby.promote().unwrap();
    client.batch_execute("CREATE TABLE t (i int)").unwrap();
}

#[test]
fn client_programs_run() {
    let cluster = bare().start().unwrap();
    cluster.create_role("app", "NOSUPERUSER").unwrap();
    let database = cluster.database("programs").unwrap();
    let good = cluster.psql(database.name(), "app", "SELECT current_user;\nSELECT current_database();\n").unwrap();
    assert!(good.success, "{}", good.stderr);
    assert_eq!(good.stdout, format!("app\n{}\n", database.name()));
    let bad = database.psql("SELECT 1/0; SELECT 'not reached';").unwrap();
    assert!(!bad.success && bad.stdout.is_empty() && bad.stderr.contains("division by zero"));
    let bench = cluster.pgbench(database.name(), &["-i", "-s", "1", "-q"]).unwrap();
    assert!(bench.success, "{}", bench.stderr);
}
