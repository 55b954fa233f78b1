//! The worker survives: whatever stops it, every committed event ends in exactly one leaf, no anchor contradicts an
//! earlier one, and it catches up without help.

use agd_live_tests::record::{expect_each_event_in_one_leaf, expect_verified, worker_pid};
use agd_live_tests::{Cluster, eventually, expect_sqlstate};
use postgres::Client;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(60);

const SETUP: &str = "
    CREATE TABLE t (tenant text, id int, v text, PRIMARY KEY (tenant, id));
    CREATE TABLE p (id int PRIMARY KEY);
    SELECT agd.create_tenant('acme'), agd.create_tenant('globex');
    SELECT agd.guard('t', tenant_column => 'tenant'), agd.guard('p')";

type Anchors = BTreeMap<(String, i64), Vec<u8>>;

fn anchors(client: &mut Client) -> Anchors {
    let rows = client.query("SELECT origin, tree_size, root_hash FROM agd.anchors", &[]).unwrap();
    rows.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect()
}

/// Everything is in the log, once, and what was anchored before still is.
#[track_caller]
fn expect_whole(client: &mut Client, known: &mut Anchors) {
    let now = anchors(client);
    for (anchor, root) in known.iter() {
        assert_eq!(now.get(anchor), Some(root), "the anchor {anchor:?} was there before");
    }
    *known = now;
    expect_each_event_in_one_leaf(client);
    expect_verified(client);
}

fn number(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// A folder in which both the test and the server can remove files.
fn shared_folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("agd-{}-{name}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
    folder
}

/// Stops a worker at the given points, one after the other, until there are no more; in how many it was stopped.
fn stop_at_each_point(name: &str, what: &str, first: u64, step: usize) -> u64 {
    let folder = shared_folder(name);
    let order = folder.join("order");
    let cluster =
        Cluster::builder().setting("agd.anchor_max_age", "1h").environment("AGD_FAULT", &order).start().unwrap();
    let database = cluster.agd_database("points").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SETUP).unwrap();
    let (mut known, mut stopped, mut killed, mut missed) = (Anchors::new(), 0, 0, 0);
    agd_live_tests::record::anchor(&mut client);
    for (round, point) in (first..).step_by(step).enumerate() {
        let id = round * 1000;
        // A refused attempt, for the worker to tell.
        expect_sqlstate(client.batch_execute("TRUNCATE p"), "AG002");
        std::fs::write(&order, format!("{what} {point}")).unwrap();
        // Tiles of two logs are filled, of the third not. Asked for again and again, as its users would: each time it may be
        // the one that meets the point.
        let write = format!(
            "BEGIN;
             INSERT INTO t SELECT 'acme', {id} + g, 'x' FROM generate_series(1, 300) g ON CONFLICT DO NOTHING;
             INSERT INTO t SELECT 'globex', {id} + g, 'x' FROM generate_series(1, 20) g ON CONFLICT DO NOTHING;
             INSERT INTO p SELECT {id} + g FROM generate_series(1, 260) g ON CONFLICT DO NOTHING;
             COMMIT"
        );
        eventually("it is written, and nothing waits", SOON, || {
            if client.is_closed() {
                let Ok(new) = database.connect() else { return false };
                client = new;
            }
            client.batch_execute(&write).is_ok()
                && client.query("SELECT agd.anchor()", &[]).is_ok_and(|anchors| anchors.is_empty())
        });
        let met = !order.exists();
        if met && what == "kill" {
            killed += 1;
            eventually("the server is back", SOON, || {
                let log = cluster.log();
                log.matches("was terminated by signal 9").count() == killed
                    && log.matches("ready to accept connections").count() == killed + 1
            });
            client = database.connect().unwrap();
        }
        expect_whole(&mut client, &mut known);
        assert_eq!(number(&mut client, "SELECT count(*) FROM t"), (round as i64 + 1) * 320);
        let told = "SELECT count(*) FROM agd.events WHERE relation IN ('public.t', 'public.p') AND action = 'INSERT'";
        assert_eq!(number(&mut client, told), (round as i64 + 1) * 580);
        // A pass may have a point less than the one before. Two that are not met in a row are behind the last.
        missed = if met { 0 } else { missed + 1 };
        if missed == 2 {
            break;
        }
        stopped += u64::from(met);
    }
    std::fs::remove_dir_all(&folder).unwrap();
    stopped
}

fn stop_everywhere(what: &'static str) {
    const LANES: usize = 4;
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            std::thread::spawn(move || stop_at_each_point(&format!("{what}-{lane}"), what, lane as u64 + 1, LANES))
        })
        .collect();
    let stopped: u64 = lanes.into_iter().map(|lane| lane.join().unwrap()).sum();
    assert!(stopped > 40, "only {stopped} points: has the pass become a toy, or is this a release build?");
    println!("stopped at {stopped} points ({what})");
}

/// Killed between any two of its writes, it takes the whole server down, and finds its place again.
#[test]
fn a_worker_that_is_killed_at_any_point_loses_nothing() {
    stop_everywhere("kill");
}

/// An error between any two of its writes ends the worker alone.
#[test]
fn a_worker_that_fails_at_any_point_loses_nothing() {
    stop_everywhere("error");
}

/// The disk is full for the worker: writers go on and are recorded, and once there is room everything is in the log.
#[test]
fn a_full_disk_stops_the_worker_and_nobody_else() {
    let cluster = Cluster::builder()
        .own_initdb(&["--wal-segsize=1"])
        .setting("agd.anchor_max_age", "1h")
        .setting("shared_buffers", "64MB")
        .start()
        .unwrap();
    let database = cluster.agd_database("full").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SETUP).unwrap();
    agd_live_tests::record::anchor(&mut client);
    let mut known = anchors(&mut client);
    // A limit on the size of files is what a full disk is to the one process that has it: the write fails, with an error
    // of the operating system's. Tiles pass 4 MB well before the end, and no file of the write-ahead log does.
    // (Without a row: a program that reads none may be gone before it is written.)
    let pid = worker_pid(&mut client);
    client
        .batch_execute(&format!("COPY (SELECT WHERE false) TO PROGRAM 'prlimit --pid {pid} --fsize=4194304'"))
        .unwrap();
    for from in (0..160_000).step_by(40_000) {
        client
            .batch_execute(&format!("INSERT INTO p SELECT g FROM generate_series({from} + 1, {from} + 40000) g"))
            .unwrap();
    }
    eventually("the worker failed", SOON, || number(&mut client, "SELECT worker_failures FROM agd.stat") > 0);
    let why: String = client.query_one("SELECT worker_last_failure FROM agd.stat", &[]).unwrap().get(0);
    assert!(why.contains("could not"), "{why}");
    // Its successor has no limit.
    eventually("it catches up", SOON, || {
        client.query("SELECT agd.anchor()", &[]).is_ok_and(|anchors| anchors.is_empty())
    });
    expect_whole(&mut client, &mut known);
}

/// Thousands of transactions in progress: what is beside them is integrated, and each of them when it is over.
#[test]
fn thousands_of_open_transactions() {
    const OPEN: usize = 3000;
    let cluster = Cluster::builder()
        .setting("agd.anchor_max_age", "1h")
        .setting("max_prepared_transactions", &(OPEN + 10).to_string())
        .setting("max_locks_per_transaction", "64")
        .start()
        .unwrap();
    let database = cluster.agd_database("open").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SETUP).unwrap();
    for id in 0..OPEN {
        client.batch_execute(&format!("BEGIN; INSERT INTO p VALUES ({id}); PREPARE TRANSACTION 'open {id}'")).unwrap();
        if id % 100 == 0 {
            client.batch_execute(&format!("INSERT INTO t VALUES ('acme', {id}, 'beside')")).unwrap();
        }
    }
    let mut known = Anchors::new();
    let in_log = "SELECT count(*) FROM agd.events WHERE action = 'INSERT' AND relation IN ('public.t', 'public.p') \
                  AND leaf_index IS NOT NULL";
    agd_live_tests::record::anchor(&mut client);
    assert_eq!(number(&mut client, in_log), (OPEN / 100) as i64);
    expect_whole(&mut client, &mut known);
    // They end in another order than they began: some now, some after a crash, some never.
    for id in (0..OPEN).rev().step_by(2) {
        client.batch_execute(&format!("COMMIT PREPARED 'open {id}'")).unwrap();
    }
    agd_live_tests::record::anchor(&mut client);
    assert_eq!(number(&mut client, in_log), (OPEN / 100 + OPEN / 2) as i64);
    cluster.kill9_server().unwrap();
    cluster.start().unwrap();
    let mut client = database.connect().unwrap();
    for (turn, id) in (0..OPEN).step_by(2).enumerate() {
        let how = if turn % 3 == 0 { "ROLLBACK" } else { "COMMIT" };
        client.batch_execute(&format!("{how} PREPARED 'open {id}'")).unwrap();
    }
    agd_live_tests::record::anchor(&mut client);
    assert_eq!(number(&mut client, in_log), (OPEN / 100 + OPEN / 2 + OPEN / 2 - OPEN / 2 / 3) as i64);
    expect_whole(&mut client, &mut known);
}

/// Thousands of tenants, each with a log and a tail of its own. `AGD_TENANTS` says how many.
#[test]
fn thousands_of_tenants() {
    let tenants: i64 = std::env::var("AGD_TENANTS").map_or(1000, |number| number.parse().unwrap());
    let cluster = Cluster::builder().setting("agd.anchor_max_age", "1h").start().unwrap();
    let database = cluster.agd_database("tenants").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SETUP).unwrap();
    client
        .batch_execute(&format!(
            "DO $$ BEGIN FOR i IN 1..{tenants} LOOP PERFORM agd.create_tenant('t' || i); END LOOP; END $$;
             INSERT INTO t SELECT 't' || g, 1, 'x' FROM generate_series(1, {tenants}) g"
        ))
        .unwrap();
    let began = Instant::now();
    agd_live_tests::record::anchor(&mut client);
    println!("{tenants} new logs integrated and anchored in {:.1} s", began.elapsed().as_secs_f64());
    let mut known = Anchors::new();
    assert_eq!(number(&mut client, "SELECT count(DISTINCT origin) FROM agd.anchors"), tenants + 1);
    // One of them writes: the others cost nothing.
    client.batch_execute("INSERT INTO t VALUES ('t7', 2, 'x')").unwrap();
    let began = Instant::now();
    assert!(agd_live_tests::record::anchor(&mut client) <= 3);
    println!("one more event in {:.3} s", began.elapsed().as_secs_f64());
    let began = Instant::now();
    expect_whole(&mut client, &mut known);
    println!("verified in {:.1} s", began.elapsed().as_secs_f64());
}

/// One transaction of very many events. `AGD_EVENTS` says how many.
#[test]
fn one_very_large_transaction() {
    let events: i64 = std::env::var("AGD_EVENTS").map_or(100_000, |number| number.parse().unwrap());
    let cluster = Cluster::builder().setting("agd.anchor_max_age", "1h").start().unwrap();
    let database = cluster.agd_database("large").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SETUP).unwrap();
    client.batch_execute(&format!("INSERT INTO p SELECT g FROM generate_series(1, {events}) g")).unwrap();
    let began = Instant::now();
    agd_live_tests::record::anchor(&mut client);
    println!("{events} events integrated in {:.1} s", began.elapsed().as_secs_f64());
    let leaves = number(&mut client, "SELECT max(tree_size) FROM agd.anchors WHERE tenant IS NULL");
    assert!(leaves > events, "{leaves}");
    let full = "SELECT count(*) FROM agd.anchors WHERE tenant IS NULL AND tree_size % 256 = 0";
    assert_eq!(number(&mut client, full), leaves / 256);
    expect_verified(&mut client);
}

/// A quiet database costs nothing: once everything is anchored, launcher and worker sleep until somebody writes.
#[test]
fn a_quiet_database_wakes_nobody() {
    // Nothing of PostgreSQL's own may wake them: autovacuum and the statistics of others send invalidations.
    let cluster =
        Cluster::builder().setting("autovacuum", "off").setting("agd.anchor_max_age", "300ms").start().unwrap();
    let database = cluster.agd_database("quiet").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SETUP).unwrap();
    client.batch_execute("INSERT INTO p SELECT generate_series(1, 1000)").unwrap();
    let open = "SELECT count(*) FROM agd.log WHERE open_since IS NOT NULL";
    eventually("everything is anchored by age", SOON, || {
        number(&mut client, open) == 0 && number(&mut client, "SELECT events_waiting FROM agd.stat") == 0
    });
    let launcher = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'agd launcher'";
    let launcher: i32 = client.query_one(launcher, &[]).unwrap().get(0);
    let worker = worker_pid(&mut client);
    // How often a process went to sleep: as often as it woke.
    let sleeps = || {
        [launcher, worker].map(|pid| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
            line.split_whitespace().last().unwrap().parse::<u64>().unwrap()
        })
    };
    // Settled when two looks agree.
    let mut before = sleeps();
    eventually("both are asleep", SOON, || {
        std::thread::sleep(Duration::from_millis(500));
        let now = sleeps();
        std::mem::replace(&mut before, now) == now
    });
    // Whoever looks once a second would wake five times, always. A page that has to be read counts as a sleep, too: on a busy
    // machine one stretch may hold several of them.
    eventually("launcher and worker sleep for five seconds", SOON, || {
        let before = sleeps();
        std::thread::sleep(Duration::from_secs(5));
        let woke: Vec<u64> = sleeps().iter().zip(before).map(|(now, before)| now - before).collect();
        println!("launcher and worker woke so often in 5 s: {woke:?}");
        woke.iter().all(|times| *times <= 2)
    });
    let before = sleeps();
    client.batch_execute("INSERT INTO p VALUES (0)").unwrap();
    eventually("one write wakes the worker", SOON, || sleeps()[1] > before[1]);
}
