//! Writes at the last moment: whatever runs in the commit itself is recorded before the transaction's record is closed, and
//! prepared transactions stand in the log in the order in which others waited for them.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, Watch, eventually};
use std::sync::OnceLock;
use std::time::Duration;

fn simple(stem: &str) -> Watch {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    let start = || Cluster::builder().setting("max_prepared_transactions", "10").start().unwrap();
    Watch::simple(CLUSTER.get_or_init(start), stem).unwrap()
}

/// The transaction record of every transaction counts the events there are; and each has one.
fn expect_whole_records(g: &mut Watch) {
    let wrong = "SELECT count(*) FROM agd.transaction t FULL JOIN (SELECT xact_id, count(*) FROM agd.event GROUP BY 1) e USING (xact_id)
                  WHERE t.events IS DISTINCT FROM e.count";
    assert_eq!(g.one::<i64>(wrong), 0);
}

/// Trap: a write to a guarded table in the commit itself. All that PostgreSQL runs at a commit on behalf of SQL comes
/// before the pre-commit callbacks, and so before the record is closed: deferred triggers, the rows of a cursor WITH HOLD
/// whose function writes, what these set off in turn, and a COMMIT in a procedure.
#[test]
fn writes_in_the_commit_itself_are_recorded() {
    let mut g = simple("commit");
    g.run(
        "CREATE FUNCTION put(i int) RETURNS int LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO t VALUES (i, 'at the commit') ON CONFLICT DO NOTHING; RETURN i; END $$;
         CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM put(NEW.id + 1000); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER late AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
           FOR EACH ROW WHEN (NEW.id < 2000) EXECUTE FUNCTION late();
         CREATE TEMP TABLE bag (id int) ON COMMIT DELETE ROWS; CREATE TEMP TABLE gone (id int) ON COMMIT DROP",
    );
    // A cursor WITH HOLD runs to its end at the commit. Nothing else is written by this transaction.
    g.records(
        "t",
        "BEGIN; DECLARE held CURSOR WITH HOLD FOR SELECT put(i) FROM generate_series(2001, 2003) i; COMMIT",
        &["INSERT 2001", "INSERT 2002", "INSERT 2003"],
    );
    assert_eq!(g.column::<i32>("FETCH ALL FROM held"), [2001, 2002, 2003]);
    // The cursor's rows set off the deferred trigger, which is fired in a second round, and that writes again.
    g.records(
        "t",
        "BEGIN; INSERT INTO bag VALUES (1); INSERT INTO t VALUES (500, 'before');
         DECLARE more CURSOR WITH HOLD FOR SELECT put(i) FROM generate_series(501, 502) i; COMMIT",
        &[
            "INSERT 500",
            "INSERT 1500",
            "INSERT 2500",
            "INSERT 501",
            "INSERT 502",
            "INSERT 1501",
            "INSERT 1502",
            "INSERT 2501",
            "INSERT 2502",
        ],
    );
    // One that fails there takes all of the transaction with it.
    g.refuses(
        "t",
        "BEGIN; INSERT INTO t VALUES (3000, 'lost');
         DECLARE bad CURSOR WITH HOLD FOR SELECT 1 / (3002 - put(i)) FROM generate_series(3001, 3002) i; COMMIT",
        "22012",
    );
    // A loop over a cursor that a procedure commits under: what is left of the cursor is run in that commit.
    g.run(
        "CREATE PROCEDURE each() LANGUAGE plpgsql AS $$
         DECLARE r record;
         BEGIN
           FOR r IN SELECT put(i) AS i FROM generate_series(4001, 4120) i LOOP
             UPDATE t SET v = 'seen' WHERE id = r.i;
             IF r.i % 60 = 0 THEN COMMIT; END IF;
           END LOOP;
         END $$",
    );
    g.run("CALL each()");
    assert_eq!(g.tally("t"), (120, 120, 0));
    // The same at PREPARE TRANSACTION, which has its own callback.
    g.run("BEGIN; INSERT INTO t VALUES (600, 'prepared'); PREPARE TRANSACTION 'order'");
    g.run("COMMIT PREPARED 'order'");
    assert_eq!(g.briefs("t"), ["INSERT 600", "INSERT 1600", "INSERT 2600"]);
    expect_whole_records(&mut g);
    reconcile(&mut g, "t", &["id"]);
    anchor(&mut g);
    expect_each_event_in_one_leaf(&mut g);
    expect_verified(&mut g);
}

/// Trap: order through two-phase commit. An insert fires BEFORE, is recorded, and waits for the unique check while a
/// prepared transaction has deleted the key; an update waits for a row lock that it holds; a delete of the parent waits for
/// its child's foreign key. All of them have lower numbers than the transaction that commits them free.
#[test]
fn whoever_waits_for_a_prepared_transaction_comes_after_it() {
    let mut g = simple("prepared");
    g.run(
        "CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t); SELECT agd.guard('child');
         INSERT INTO child VALUES (1, 3)",
    );
    let mut waiters = Vec::new();
    for sql in [
        "INSERT INTO t VALUES (1, 'again')",
        "UPDATE t SET v = v || ', then this' WHERE id = 2",
        "DELETE FROM t WHERE id = 3",
    ] {
        let mut waiter = g.database().connect().unwrap();
        // Takes its number before the prepared transaction takes its own.
        waiter.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
        waiters.push((waiter, sql));
    }
    g.run(
        "BEGIN; DELETE FROM t WHERE id = 1; UPDATE t SET v = 'first this' WHERE id = 2; DELETE FROM child WHERE id = 1;
         PREPARE TRANSACTION 'first'",
    );
    let waiting: Vec<_> = waiters
        .into_iter()
        .map(|(mut waiter, sql)| {
            std::thread::spawn(move || {
                waiter.batch_execute(&format!("{sql}; COMMIT")).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
            })
        })
        .collect();
    // The foreign key's check of the parent's DELETE waits for the child's row, which is deleted and not yet committed.
    eventually("all three wait", Duration::from_secs(30), || {
        g.one(
            "SELECT count(*) = 3 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()",
        )
    });
    anchor(&mut g);
    g.run("COMMIT PREPARED 'first'");
    for waiter in waiting {
        waiter.join().unwrap();
    }
    anchor(&mut g);
    let mut history = |relation: &str, key: i32| -> Vec<String> {
        g.column(&format!(
            "SELECT concat_ws(' ', action, coalesce(new, old)->>'v') FROM agd.events
              WHERE relation = 'public.{relation}' AND row_key->>'id' = '{key}' ORDER BY leaf_index"
        ))
    };
    assert_eq!(history("t", 1), ["INSERT a", "DELETE a", "INSERT again"]);
    assert_eq!(history("t", 2), ["INSERT b", "UPDATE first this", "UPDATE first this, then this"]);
    let across = "SELECT string_agg(relation || ' ' || action, ', ' ORDER BY leaf_index) FROM agd.events
                   WHERE action = 'DELETE' AND (relation = 'public.child' OR row_key->>'id' = '3')";
    assert_eq!(g.one::<String>(across), "public.child DELETE, public.t DELETE");
    reconcile(&mut g, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut g);
    expect_verified(&mut g);
}

/// Trap: a pass that takes up many transactions reads them in the order of their numbers, and must enter them in the order
/// of their commits: with rows between them that were rolled back, that are still in progress, and of large transactions.
#[test]
fn many_transactions_in_one_pass_come_in_the_order_of_their_commits() {
    const WRITERS: usize = 12;
    let mut g = simple("pass");
    g.run("DELETE FROM t");
    anchor(&mut g);
    let before: i64 = g.one("SELECT count(*) FROM agd.events WHERE leaf_index IS NOT NULL");
    let begin = |g: &mut Watch, sql: &str| {
        let mut writer = g.database().connect().unwrap();
        writer.batch_execute(&format!("BEGIN; {sql}")).unwrap();
        writer
    };
    let mut next = 0;
    // What is over before the second pass, but in progress at the first.
    let mut long = begin(&mut g, "INSERT INTO t VALUES (-1, 'long')");
    let mut expected = Vec::new();
    for pass in 0..2 {
        let mut hold = g.database().connect().unwrap();
        hold.batch_execute("BEGIN; LOCK TABLE agd.sequencer IN ACCESS EXCLUSIVE MODE").unwrap();
        let mut open: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let rows = if writer == 5 { 300 } else { 1 + writer % 3 };
                let ids = next..next + rows as i32;
                next += rows as i32;
                let sql = format!("INSERT INTO t SELECT g, 'x' FROM generate_series({}, {}) g", ids.start, ids.end - 1);
                Some((begin(&mut g, &sql), ids))
            })
            .collect();
        // 5 and 12 have no common divisor: each once, now later ones first, now earlier ones.
        for turn in 0..WRITERS {
            let place = (turn * 5 + 3) % WRITERS;
            let (mut writer, ids) = open[place].take().unwrap();
            if place % 4 == 2 {
                writer.batch_execute("ROLLBACK").unwrap();
            } else {
                writer.batch_execute("COMMIT").unwrap();
                expected.extend(ids);
            }
            if pass == 1 && turn == WRITERS / 2 {
                long.batch_execute("COMMIT").unwrap();
                expected.push(-1);
            }
        }
        hold.batch_execute("COMMIT").unwrap();
        anchor(&mut g);
        let order: Vec<i32> = g.column(&format!(
            "SELECT (row_key ->> 'id')::int FROM agd.events WHERE leaf_index >= {before} AND relation = 'public.t' ORDER BY leaf_index"
        ));
        assert_eq!(order, expected);
    }
    expect_each_event_in_one_leaf(&mut g);
    expect_verified(&mut g);
}
