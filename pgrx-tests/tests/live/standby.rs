//! A standby reads and verifies what the primary recorded; promoted, it goes on with the same log.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, Stop, eventually, expect_hint, expect_sqlstate};
use std::time::Duration;

#[test]
fn read_verified_and_promoted() {
    let primary = Cluster::builder().start().unwrap();
    let mut client = primary.superuser().unwrap();
    client.batch_execute("CREATE EXTENSION agd").unwrap();
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t');
             INSERT INTO t SELECT i, 'v' FROM generate_series(1, 300) i",
        )
        .unwrap();
    anchor(&mut client);
    let standby = primary.standby().unwrap();
    client.batch_execute("UPDATE t SET v = 'w' WHERE id <= 10").unwrap();
    anchor(&mut client);

    let mut reader = standby.superuser().unwrap();
    let events = "SELECT count(*) FROM agd.events";
    let expected: i64 = client.query_one(events, &[]).unwrap().get(0);
    eventually("the standby has all of the events", Duration::from_secs(20), || {
        reader.query_one(events, &[]).unwrap().get::<_, i64>(0) == expected
    });
    reconcile(&mut reader, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut reader);
    expect_verified(&mut reader);
    // Nothing is remembered here: each time from the first leaf, or from where the primary ended.
    let entries = "SELECT sum(entries)::bigint, bool_and(ok) FROM agd.verify() WHERE check_name = 'events'";
    let all: i64 = reader.query_one("SELECT sum(size)::bigint FROM agd.log", &[]).unwrap().get(0);
    for _ in 0..2 {
        let row = reader.query_one(entries, &[]).unwrap();
        assert_eq!((row.get(0), row.get(1)), (Some(all), Some(true)));
    }
    client.batch_execute("SELECT * FROM agd.verify()").unwrap();
    eventually("the standby has what the primary remembers", Duration::from_secs(20), || {
        reader.query_one(entries, &[]).unwrap().get::<_, i64>(0) == 0
    });
    expect_sqlstate(reader.batch_execute("SELECT * FROM agd.verify('no such log')"), "22023");
    assert_eq!(reader.query_one("SELECT count(*) FROM agd.verify_progress", &[]).unwrap().get::<_, i64>(0), 0);
    let error = expect_sqlstate(reader.query("SELECT * FROM agd.anchor()", &[]), "55000");
    expect_hint(&error, "primary");
    expect_sqlstate(reader.batch_execute("INSERT INTO t VALUES (1000, 'no')"), "25006");
    expect_sqlstate(reader.batch_execute("SELECT agd.create_tenant('acme')"), "25006");
    let anchors = "SELECT string_agg(origin || ' ' || tree_size || ' ' || encode(root_hash, 'hex'), ',' ORDER BY origin, tree_size) FROM agd.anchors";
    let before: String = reader.query_one(anchors, &[]).unwrap().get(0);

    primary.stop(Stop::Fast).unwrap();
    standby.promote().unwrap();
    reader.batch_execute("INSERT INTO t VALUES (1000, 'as a primary'); DELETE FROM t WHERE id = 1").unwrap();
    anchor(&mut reader);
    let after: String = reader.query_one(anchors, &[]).unwrap().get(0);
    assert!(after.starts_with(&before) && after.len() > before.len(), "the log goes on where it was");
    reconcile(&mut reader, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut reader);
    expect_verified(&mut reader);
}
