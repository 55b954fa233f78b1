//! The worker survives: whatever stops it, every committed event ends in exactly one leaf, no anchor contradicts an
//! earlier one, and it catches up without help.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use agd_live_tests::record::{expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, eventually, expect_sqlstate};
use postgres::Client;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

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
    let (mut known, mut stopped, mut killed) = (Anchors::new(), 0, 0);
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
        if !met {
            break;
        }
        stopped += 1;
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
