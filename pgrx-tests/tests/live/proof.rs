//! Proofs: every event has one, they hold against the anchors, and nobody learns from them what he may not read.

use crate::command_line;
use agd_core::proof::verify_inclusion;
use agd_core::{CompactRange, Hash, SignedNote, SigningKey, TlogProof, VerifierKey, empty_root, leaf_hash};
use agd_live_tests::proof::{anchors, consistency, expect_continuation, expect_events_proven, inclusion, leaves};
use agd_live_tests::publishing;
use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Cluster, TestDb, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use postgres::error::DbError;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Events are anchored when a test says so.
const PATIENT: (&str, &str) = ("agd.anchor_max_age", "1h");

const SETUP: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text);
    CREATE TABLE mine (tenant text, id int, v text, PRIMARY KEY (tenant, id));
    SELECT agd.create_tenant('acme'), agd.create_tenant('zeta');
    SELECT agd.guard('t'), agd.guard('mine', tenant_column => 'tenant')";

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster =
            Cluster::builder().setting(PATIENT.0, PATIENT.1).setting("max_prepared_transactions", "5").start().unwrap();
        // Members of the extension's roles, which come with the first database that has it.
        drop(cluster.agd_database("roles").unwrap());
        for (role, group) in [
            ("proof_acme", "agd_tenant"),
            ("proof_zeta", "agd_tenant"),
            ("proof_auditor", "agd_auditor"),
            ("proof_platform", "agd_platform"),
            ("proof_publisher", "agd_publisher"),
        ] {
            cluster.create_role(role, &format!("IN ROLE {group}")).unwrap();
        }
        cluster.create_role("proof_nobody", "").unwrap();
        cluster
    })
}

fn scene(stem: &str) -> (TestDb<'static>, Client) {
    let database = cluster().agd_database(stem).unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SETUP).unwrap();
    (database, client)
}

fn one<T: for<'a> postgres::types::FromSql<'a>>(client: &mut Client, sql: &str) -> T {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

fn origin(client: &mut Client, tenant: &str) -> String {
    let sql = format!("SELECT origin FROM agd.log WHERE coalesce(tenant, '') = '{tenant}'");
    one(client, &sql)
}

/// `agd.inclusion_proof` must fail.
#[track_caller]
fn refused(client: &mut Client, event_id: &str, state: &str) -> DbError {
    expect_sqlstate(inclusion(client, event_id), state)
}

// ---------------------------------------------------------------------------------------------------------- inclusion

#[test]
fn every_event_has_a_proof_to_the_newest_anchor_of_its_log() {
    let (_database, mut client) = scene("every");
    client.batch_execute("INSERT INTO mine VALUES ('zeta', 1, 'alone')").unwrap();
    let mut rows = 0;
    for size in [1, 2, 255, 256, 257, 511, 512, 700] {
        let insert = format!("INSERT INTO mine SELECT 'acme', i, 'v' FROM generate_series({rows} + 1, {size}) i");
        client.batch_execute(&insert).unwrap();
        rows = size;
        anchor(&mut client);
        let proofs = expect_events_proven(&mut client, "true");
        let mut sizes = BTreeMap::new();
        for (_, proof) in &proofs {
            *sizes.entry(proof.origin.clone()).or_insert(0) += 1;
        }
        for (origin, newest) in anchors(&mut client).into_keys() {
            assert!(newest <= sizes[&origin], "{origin} at {newest}");
        }
        assert_eq!(sizes[&origin(&mut client, "acme")], size);
        assert_eq!(sizes[&origin(&mut client, "zeta")], 1);
        // And it is the entries that are proven.
        for (origin, count) in sizes {
            let leaves = leaves(&mut client, &origin, count);
            for (event_id, proof) in proofs.iter().filter(|(_, proof)| proof.origin == origin) {
                assert_eq!(proof.leaf, leaves[usize::try_from(proof.index).unwrap()], "{event_id}");
            }
        }
    }
}

#[test]
fn proofs_in_logs_of_three_tile_levels() {
    let (_database, mut client) = scene("levels");
    let platform = origin(&mut client, "");
    let mut rows = 0;
    for size in [65_535, 65_536, 65_537, 65_793] {
        anchor(&mut client);
        let there: i64 = one(&mut client, "SELECT size FROM agd.log WHERE tenant IS NULL");
        let more = size - there;
        client
            .batch_execute(&format!("INSERT INTO t SELECT i, 'v' FROM generate_series({rows} + 1, {rows} + {more}) i"))
            .unwrap();
        rows += more;
        anchor(&mut client);
        // In the end every event; before, those in the first and the last tiles and at the ends of the others.
        let some =
            "e.leaf_index < 300 OR e.leaf_index > 65200 OR e.leaf_index % 256 IN (0, 255) OR e.leaf_index % 97 = 0";
        let proofs = expect_events_proven(&mut client, some);
        assert!(proofs.len() > 1000 && proofs.iter().all(|(_, proof)| proof.size == size.cast_unsigned()));
        let leaves = leaves(&mut client, &platform, size.cast_unsigned());
        for (event_id, proof) in proofs {
            assert_eq!(proof.leaf, leaves[usize::try_from(proof.index).unwrap()], "{event_id}");
        }
    }
}

/// One transaction fills many tiles of two logs; the tiles at its ends it shares.
#[test]
fn the_events_of_a_transaction_of_100_000_are_found() {
    let (_database, mut client) = scene("large");
    client.batch_execute("INSERT INTO mine SELECT 'acme', -i, 'before' FROM generate_series(1, 100) i").unwrap();
    client
        .batch_execute(
            "INSERT INTO mine SELECT CASE WHEN i % 3 = 0 THEN 'zeta' ELSE 'acme' END, i, 'v' FROM generate_series(1, 100000) i",
        )
        .unwrap();
    client.batch_execute("INSERT INTO mine SELECT 'acme', -i, 'after' FROM generate_series(101, 200) i").unwrap();
    anchor(&mut client);
    let mut compared = 0;
    for tenant in ["acme", "zeta"] {
        let origin = origin(&mut client, tenant);
        let in_log: Vec<(i64, String)> = client
            .query(
                "SELECT e.leaf_index, convert_from(e.entry, 'UTF8')::json->>'event_id'
                   FROM agd.log l, agd.entries(l.origin, 0, l.size) e WHERE l.origin = $1",
                &[&origin],
            )
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        for (leaf, event_id) in in_log.iter().step_by(997).chain(in_log.last()) {
            let proof = inclusion(&mut client, event_id).unwrap();
            assert_eq!((&proof.origin, proof.index), (&origin, leaf.cast_unsigned()), "{event_id}");
            compared += 1;
        }
        // All at once, as the view asks.
        let in_view: Vec<(i64, String)> = client
            .query("SELECT leaf_index, event_id FROM agd.events WHERE tenant = $1 ORDER BY 1", &[&tenant])
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect();
        assert!(in_view == in_log, "agd.events and agd.entries disagree about {tenant}");
    }
    assert!(compared > 100, "{compared}");
}

// ------------------------------------------------------------------------------------------------------ late committers

/// A stamp is drawn when a transaction is prepared; the event is integrated when that is committed, among later ones.
#[test]
fn prepared_transactions_are_found_where_they_were_integrated() {
    let (_database, mut client) = scene("prepared");
    let insert = |ids: &str, v: &str| format!("INSERT INTO t SELECT i, '{v}' FROM generate_series({ids}) i");
    let mut leaves_of = Vec::new();
    for (number, size) in [3, 600].into_iter().enumerate() {
        let first = 100_000 * (number + 1);
        let late = insert(&format!("{first}, {first} + {size} - 1"), "late");
        client.batch_execute(&format!("BEGIN; {late}; PREPARE TRANSACTION 'proof_{number}'")).unwrap();
        leaves_of.push(size);
    }
    for round in 0..4 {
        // Each a transaction of its own: tiles of many.
        for id in 0..70 {
            client.batch_execute(&insert(&format!("{0}, {0} + 4", round * 1000 + id * 5), "meanwhile")).unwrap();
        }
        anchor(&mut client);
    }
    for number in 0..2 {
        client.batch_execute(&format!("COMMIT PREPARED 'proof_{number}'")).unwrap();
        client.batch_execute(&insert(&format!("{0}, {0} + 300", 50_000 + number * 1000), "after")).unwrap();
        anchor(&mut client);
    }
    expect_late_events_proven(&mut client, 603);
}

/// They stand behind events with later stamps, and each event has its proof.
#[track_caller]
fn expect_late_events_proven(client: &mut Client, number: usize) {
    let late = expect_events_proven(client, "e.action = 'INSERT' AND e.new->>'v' = 'late'");
    assert_eq!(late.len(), number);
    let behind: i64 = one(
        client,
        "WITH e AS MATERIALIZED (SELECT leaf_index, committed_at, new->>'v' AS v FROM agd.events WHERE tenant IS NULL)
         SELECT count(*) FROM e JOIN e late ON late.v = 'late'
          WHERE e.v = 'meanwhile' AND e.leaf_index < late.leaf_index AND e.committed_at > late.committed_at",
    );
    assert!(behind > 0, "nothing was late");
    let events: i64 = one(client, "SELECT size FROM agd.log WHERE tenant IS NULL");
    assert_eq!(expect_events_proven(client, "e.tenant IS NULL").len() as i64, events);
}

/// A commit that waits for a standby has drawn its stamp and is not visible yet. And the standby gives the same proofs.
#[test]
fn late_commits_are_found_and_a_standby_proves_the_same() {
    let primary = Cluster::builder().setting(PATIENT.0, PATIENT.1).start().unwrap();
    let mut client = primary.superuser().unwrap();
    client.batch_execute("CREATE EXTENSION agd").unwrap();
    client.batch_execute(SETUP).unwrap();
    let standby = primary.standby().unwrap();
    let mut reader = standby.superuser().unwrap();
    primary.configure([("synchronous_standby_names", "*")]).unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually("the standby is synchronous", Duration::from_secs(30), || {
        one::<i64>(&mut client, "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == 1
    });
    reader.batch_execute("SELECT pg_wal_replay_pause()").unwrap();
    eventually("replay is paused", Duration::from_secs(30), || {
        one::<String>(&mut reader, "SELECT pg_get_wal_replay_pause_state()") == "paused"
    });
    std::thread::scope(|scope| {
        let late = scope.spawn(|| {
            let mut late = primary.superuser().unwrap();
            late.batch_execute(
                "SET synchronous_commit = remote_apply; SET application_name = 'late';
                 INSERT INTO t SELECT i, 'late' FROM generate_series(100001, 100040) i",
            )
            .unwrap();
        });
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'late' AND wait_event = 'SyncRep'";
        eventually("the late commit waits", Duration::from_secs(30), || one::<i64>(&mut client, waits) == 1);
        for id in 0..120 {
            let insert = format!("INSERT INTO t SELECT i, 'meanwhile' FROM generate_series({id} * 5, {id} * 5 + 4) i");
            client.batch_execute(&insert).unwrap();
            if id % 40 == 39 {
                anchor(&mut client);
            }
        }
        assert_eq!(one::<i64>(&mut client, "SELECT count(*) FROM t WHERE v = 'late'"), 0);
        reader.batch_execute("SELECT pg_wal_replay_resume()").unwrap();
        late.join().unwrap();
    });
    client.batch_execute("INSERT INTO mine SELECT 'acme', i, 'v' FROM generate_series(1, 300) i").unwrap();
    anchor(&mut client);
    expect_late_events_proven(&mut client, 40);

    let proofs = expect_events_proven(&mut client, "true");
    let there = "SELECT sum(size)::bigint FROM agd.log";
    let size: i64 = one(&mut client, there);
    eventually("the standby has it all", Duration::from_secs(30), || one::<i64>(&mut reader, there) == size);
    assert!(expect_events_proven(&mut reader, "true") == proofs, "the standby's proofs are others");
    let acme = origin(&mut client, "acme");
    assert_eq!(consistency(&mut reader, &acme, 256, 300).unwrap(), consistency(&mut client, &acme, 256, 300).unwrap());
    expect_verified(&mut reader);
}

// --------------------------------------------------------------------------------------------------------- consistency

#[test]
fn a_log_is_a_continuation_of_itself_at_every_anchor() {
    let (_database, mut client) = scene("consistent");
    let mut rows = 0;
    for size in [1, 255, 256, 257, 400, 700, 1100] {
        client
            .batch_execute(&format!(
                "INSERT INTO mine SELECT 'acme', i, 'v' FROM generate_series({rows} + 1, {size}) i"
            ))
            .unwrap();
        rows = size;
        anchor(&mut client);
    }
    grow_beyond_an_anchor(&mut client);
    let mut logs: BTreeMap<String, BTreeMap<u64, Hash>> = BTreeMap::new();
    for ((origin, size), root) in anchors(&mut client) {
        logs.entry(origin).or_default().insert(size, root);
    }
    assert!(logs.len() == 2 && logs.values().all(|roots| roots.len() > 5), "{logs:?}");
    for (origin, mut roots) in logs {
        // Sizes without an anchor: their roots from the entries.
        let size = client.query_one("SELECT size FROM agd.log WHERE origin = $1", &[&origin]).unwrap().get::<_, i64>(0);
        let mut range = CompactRange::new();
        roots.insert(0, empty_root());
        for leaf in leaves(&mut client, &origin, size.cast_unsigned()) {
            range.push(leaf);
            let expected = *roots.entry(range.size()).or_insert_with(|| range.root());
            assert_eq!(range.root(), expected, "the anchor of {origin} at {}", range.size());
        }
        let some: Vec<(u64, Hash)> = roots
            .into_iter()
            .filter(|(size, _)| size % 256 < 3 || size % 256 > 253 || size % 85 == 0 || [400, 700, 1100].contains(size))
            .collect();
        for (i, (from, old)) in some.iter().enumerate() {
            for (to, new) in &some[i..] {
                expect_continuation(&mut client, &origin, (*from, old), (*to, new));
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------- while the log grows

/// In a transaction that has written, each query of agd's own would see something newer than the one before. None of what is
/// asked here may look torn by that.
#[test]
fn proofs_and_verification_hold_while_the_log_grows() {
    let (database, mut client) = scene("grows");
    client.batch_execute("INSERT INTO mine SELECT 'acme', i, 'v' FROM generate_series(1, 250) i").unwrap();
    anchor(&mut client);
    let acme = origin(&mut client, "acme");
    let (event_id, first): (String, i64) = {
        let row = client.query_one("SELECT event_id, leaf_index FROM agd.events WHERE tenant = 'acme' LIMIT 1", &[]);
        let row = row.unwrap();
        (row.get(0), row.get(1))
    };
    let mut fixed = database.connect().unwrap();
    fixed.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").unwrap();
    let then = inclusion(&mut fixed, &event_id).unwrap();
    let stop = AtomicBool::new(false);
    let mut sizes = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writer = database.connect().unwrap();
            for i in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let insert =
                    format!("INSERT INTO mine SELECT 'acme', 1000 * {i} + k, 'v' FROM generate_series(1, 50) k");
                writer.batch_execute(&insert).unwrap();
                anchor(&mut writer);
            }
        });
        let mut asking = database.connect().unwrap();
        asking.batch_execute("BEGIN; INSERT INTO t VALUES (1, 'the transaction has an id')").unwrap();
        while sizes.len() < 60 {
            let roots = anchors(&mut asking);
            let proof = inclusion(&mut asking, &event_id).unwrap();
            assert_eq!(proof.index, first.cast_unsigned());
            sizes.push(proof.size);
            // Its anchor may be newer than those that were asked for before.
            proof.expect_holds(&anchors(&mut asking));
            let (from, to) = (*sizes.first().unwrap(), *sizes.last().unwrap());
            consistency(&mut asking, &acme, from, to).unwrap();
            let newest = roots.keys().filter(|(origin, _)| *origin == acme).map(|(_, size)| *size).max().unwrap();
            assert_eq!(leaves(&mut asking, &acme, newest).len() as u64, newest);
            let failed: Vec<String> = asking
                .query("SELECT check_name || ': ' || detail FROM agd.verify($1) WHERE NOT ok", &[&acme])
                .unwrap()
                .iter()
                .map(|row| row.get(0))
                .collect();
            assert!(failed.is_empty(), "{failed:?}");
            let unnumbered: i64 = one(
                &mut asking,
                "SELECT count(*) FROM agd.events WHERE leaf_index IS NULL AND tenant = 'acme' AND (new->>'id')::int <= 250",
            );
            assert_eq!(unnumbered, 0);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        asking.batch_execute("ROLLBACK").unwrap();
    });
    assert!(sizes.first() < sizes.last(), "the log did not grow: {sizes:?}");
    // An old snapshot: the same answer as at its beginning.
    assert_eq!(inclusion(&mut fixed, &event_id).unwrap(), then);
    let newest: String =
        one(&mut client, "SELECT event_id FROM agd.events WHERE tenant = 'acme' ORDER BY leaf_index DESC LIMIT 1");
    refused(&mut fixed, &newest, "02000");
    assert!(inclusion(&mut client, &newest).unwrap().size > then.size);
}

// ----------------------------------------------------------------------------------------------------- what is refused

#[test]
fn bad_arguments_and_what_is_not_there_yet() {
    let (_database, mut client) = scene("refused");
    client.batch_execute("INSERT INTO t VALUES (1, 'a')").unwrap();
    anchor(&mut client);
    for function in ["agd.inclusion_proof", "agd.tlog_proof"] {
        for bad in ["", "7", "7-", "-7", "7-0 ", "07-0", "7-4294967296", "18446744073709551616-0", "x-y", "7-0-0", "'"]
        {
            let sql = format!("SELECT {function}($1)");
            let error = expect_sqlstate(client.query(&sql, &[&bad]), "22023");
            assert_eq!(error.message(), format!("\"{bad}\" is not an event's id"));
            expect_hint(&error, "7431-2");
        }
        let error = expect_sqlstate(client.query(&format!("SELECT {function}(NULL)"), &[]), "22023");
        expect_hint(&error, "7431-2");
        for unknown in ["1-0", "7-4294967295", "18446744073709551615-0"] {
            let error = expect_sqlstate(client.query(&format!("SELECT {function}($1)"), &[&unknown]), "02000");
            assert_eq!(error.message(), format!("there is no event {unknown}"));
            expect_hint(&error, "agd.events");
        }
    }

    let platform = origin(&mut client, "");
    let size: i64 = one(&mut client, "SELECT size FROM agd.log WHERE tenant IS NULL");
    for (from, to) in [(-1, 1), (0, -1), (2, 1), (0, size + 1), (size + 1, size + 1), (i64::MIN, i64::MAX)] {
        let proof = client.query("SELECT agd.consistency_proof($1, $2, $3)", &[&platform, &from, &to]);
        let error = expect_sqlstate(proof, "22023");
        assert_eq!(
            error.message(),
            format!("the log has {size} leaves: there is no proof from size {from} to size {to}")
        );
        expect_hint(&error, "agd.anchors");
    }
    for arguments in
        [format!("NULL, 1, {size}"), format!("'{platform}', NULL, {size}"), format!("'{platform}', 1, NULL")]
    {
        let error = expect_sqlstate(client.query(&format!("SELECT agd.consistency_proof({arguments})"), &[]), "22023");
        expect_hint(&error, "agd.consistency_proof(");
    }
    let error = expect_sqlstate(consistency(&mut client, "no/such/log", 1, 2), "22023");
    expect_hint(&error, "agd.anchors");

    // Not committed, not integrated, not anchored, not published.
    let newest = "SELECT max(xact_id::text::bigint) || '-0' FROM agd.event";
    client.batch_execute("BEGIN; INSERT INTO t VALUES (2, 'b'); SAVEPOINT s").unwrap();
    let own: String = one(&mut client, newest);
    let error = refused(&mut client, &own, "02000");
    expect_hint(&error, "COMMIT");
    client.batch_execute("ROLLBACK TO s; COMMIT").unwrap();
    let error = refused(&mut client, &own, "02000");
    assert_eq!(error.message(), format!("event {own} is not in the log yet"));
    expect_hint(&error, "agd.anchor()");
    grow_beyond_an_anchor(&mut client);
    let tail: String =
        one(&mut client, "SELECT event_id FROM agd.events WHERE tenant IS NULL ORDER BY leaf_index DESC LIMIT 1");
    let error = refused(&mut client, &tail, "02000");
    assert_eq!(error.message(), format!("no anchor covers event {tail} yet"));
    expect_hint(&error, "agd.anchor()");
    inclusion(&mut client, &own).unwrap();
    anchor(&mut client);
    inclusion(&mut client, &tail).unwrap();
    let error = expect_sqlstate(client.query("SELECT agd.tlog_proof($1)", &[&tail]), "02000");
    assert_eq!(error.message(), format!("no published checkpoint covers event {tail} yet"));
    expect_hint(&error, "agd publish");
}

/// So many events that the worker takes them up by itself: then it anchors full tiles, and leaves the rest for later.
fn grow_beyond_an_anchor(client: &mut Client) {
    let size = "SELECT size FROM agd.log WHERE tenant IS NULL";
    let before: i64 = one(client, size);
    client.batch_execute("INSERT INTO t SELECT i, 'tail' FROM generate_series(1000001, 1000300) i").unwrap();
    eventually("the worker integrates 300 events", Duration::from_secs(30), || {
        one::<i64>(client, size) >= before + 300
    });
    let anchored: i64 = one(client, "SELECT max(tree_size) FROM agd.anchors WHERE tenant IS NULL");
    assert!(anchored > before && anchored % 256 == 0, "{anchored}");
}

// ------------------------------------------------------------------------------------------------------- who may know

/// Whoever may not read an event is told exactly what he is told of one that never was.
#[test]
fn nobody_learns_of_events_that_he_may_not_read() {
    let (database, mut client) = scene("readers");
    client
        .batch_execute(
            "SELECT agd.map_role('proof_acme', 'acme'), agd.map_role('proof_zeta', 'zeta');
             INSERT INTO t VALUES (1, 'platform');
             INSERT INTO mine SELECT x, i, 'v' FROM unnest('{acme,zeta}'::text[]) x, generate_series(1, 300) i",
        )
        .unwrap();
    anchor(&mut client);
    client.batch_execute("INSERT INTO mine VALUES ('acme', 1000, 'not integrated yet')").unwrap();
    let event = |client: &mut Client, of: &str| -> (String, i64, String) {
        let sql = format!("SELECT event_id, leaf_index, committed_at::text FROM agd.events WHERE {of} LIMIT 1");
        let row = client.query_one(&sql, &[]).unwrap();
        (row.get(0), row.get::<_, Option<i64>>(1).unwrap_or(-1), row.get(2))
    };
    let acmes = event(&mut client, "tenant = 'acme' AND leaf_index = 280");
    let zetas = event(&mut client, "tenant = 'zeta' AND leaf_index = 7");
    let platforms = event(&mut client, "tenant IS NULL AND leaf_index = 3");
    let waiting = event(&mut client, "leaf_index IS NULL");
    let (acme, zeta, platform) = (origin(&mut client, "acme"), origin(&mut client, "zeta"), origin(&mut client, ""));

    let said = |error: &DbError, id: &str| {
        let text = |text: Option<&str>| text.unwrap_or_default().replace(id, "ID");
        (error.code().code().to_owned(), text(Some(error.message())), text(error.hint()), text(error.detail()))
    };
    for (role, readable, hidden) in [
        ("proof_acme", vec![&acmes], vec![&zetas, &platforms]),
        ("proof_zeta", vec![&zetas], vec![&acmes, &platforms, &waiting]),
        ("proof_publisher", vec![], vec![&acmes, &zetas, &platforms, &waiting]),
        ("proof_auditor", vec![&acmes, &zetas, &platforms], vec![]),
        ("proof_platform", vec![&acmes, &zetas, &platforms], vec![]),
    ] {
        let mut client = database.connect_as(role).unwrap();
        for (event_id, leaf, _) in readable {
            assert_eq!(inclusion(&mut client, event_id).unwrap().index, leaf.cast_unsigned(), "{role}");
            let error = expect_sqlstate(client.query("SELECT agd.tlog_proof($1)", &[event_id]), "02000");
            expect_hint(&error, "agd publish");
        }
        for function in ["agd.inclusion_proof", "agd.tlog_proof"] {
            let sql = format!("SELECT {function}($1)");
            let unknown = expect_sqlstate(client.query(&sql, &[&"999999999-0"]), "02000");
            for (event_id, ..) in &hidden {
                let error = expect_sqlstate(client.query(&sql, &[event_id]), "02000");
                assert_eq!(said(&error, event_id), said(&unknown, "999999999-0"), "{role}, {event_id}");
            }
        }
        for (event_id, _, committed_at) in hidden {
            for tenant in [Some("acme"), Some("zeta"), None] {
                let leaf = client
                    .query_one(
                        "SELECT agd.leaf_index($1, $2, $3::text::timestamptz)",
                        &[event_id, &tenant, committed_at],
                    )
                    .unwrap();
                assert_eq!(leaf.get::<_, Option<i64>>(0), None, "{role}, {event_id}");
            }
        }
    }
    for (role, may, may_not) in [
        ("proof_acme", vec![&acme], vec![&zeta, &platform]),
        ("proof_zeta", vec![&zeta], vec![&acme, &platform]),
        ("proof_publisher", vec![&acme, &zeta, &platform], vec![]),
        ("proof_auditor", vec![&acme, &zeta, &platform], vec![]),
        ("proof_platform", vec![&acme, &zeta, &platform], vec![]),
    ] {
        let mut client = database.connect_as(role).unwrap();
        let unknown = expect_sqlstate(consistency(&mut client, "no/such/log", 1, 2), "22023");
        for origin in may {
            consistency(&mut client, origin, 1, 5).unwrap();
        }
        for origin in may_not {
            for (from, to) in [(1, 2), (0, 1 << 40)] {
                let error = expect_sqlstate(consistency(&mut client, origin, from, to), "22023");
                assert_eq!(said(&error, origin), said(&unknown, "no/such/log"), "{role}");
            }
        }
    }
    let mut nobody = database.connect_as("proof_nobody").unwrap();
    refused(&mut nobody, &acmes.0, "42501");
    expect_sqlstate(consistency(&mut nobody, &acme, 1, 2), "42501");
    expect_sqlstate(nobody.query("SELECT agd.tlog_proof($1)", &[&acmes.0]), "42501");
}

// ------------------------------------------------------------------------------------------------------------ tampering

/// Each in a transaction that is rolled back: (what a superuser does behind every trigger's back, which event is asked for,
/// what the error must name). `{id}` is that event, `{leaf}` its leaf, `{event}` and `{xact}` select its rows.
#[test]
fn what_was_tampered_with_is_named_and_not_proven() {
    let (database, mut client) = scene("tampered");
    client.batch_execute("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 500) i").unwrap();
    client
        .batch_execute("SELECT agd.set_cause('why'); INSERT INTO t SELECT i, 'v' FROM generate_series(501, 900) i")
        .unwrap();
    client.batch_execute("INSERT INTO mine SELECT 'acme', i, 'v' FROM generate_series(1, 300) i").unwrap();
    anchor(&mut client);
    let newest: i64 = one(&mut client, "SELECT max(tree_size) FROM agd.anchors WHERE tenant IS NULL");
    let signed = sign_newest(&mut client, "");
    let platform = "log_id = (SELECT log_id FROM agd.log WHERE tenant IS NULL)";
    let in_tile = |sql: &str| format!("UPDATE agd.tile SET {sql} WHERE level = 0 AND tile_index = 1 AND {platform}");
    let flip = |what: &str, at: usize| format!("{what} = set_byte({what}, {at}, 255 - get_byte({what}, {at}))");
    let flip_open = |at: usize| format!("UPDATE agd.log SET {} WHERE tenant IS NULL", flip("open_tiles", at));
    let open = usize::try_from(newest % 256).unwrap();
    let cases = [
        (300, "UPDATE agd.event SET action = 'DELETE' WHERE {event}".to_owned(), "event {id} was changed"),
        (
            300,
            r"UPDATE agd.event SET salt = '\x00112233445566778899aabbccddeeff' WHERE {event}".into(),
            "event {id} was changed",
        ),
        (300, r"UPDATE agd.event SET salt = '' WHERE {event}".into(), "event {id} has no 16-byte salt"),
        (300, "UPDATE agd.event SET new = NULL WHERE {event}".into(), "event {id} was changed"),
        (700, "UPDATE agd.transaction SET cause = 'another' WHERE {xact}".into(), "event {id} was changed"),
        (300, "DELETE FROM agd.event WHERE {event}".into(), "event {id} is missing: it was leaf {leaf}"),
        (800, "DELETE FROM agd.event WHERE {event}".into(), "event {id} is missing: it was leaf {leaf}"),
        (300, "DELETE FROM agd.transaction WHERE {xact}".into(), "event {id}"),
        (300, "UPDATE agd.event SET tenant = 'acme' WHERE {event}".into(), "event {id} is in no leaf"),
        (
            300,
            "UPDATE agd.event SET tenant = 'zeta' WHERE {event}".into(),
            "event {id} was integrated, and its log is missing",
        ),
        // Another event's name on it: the number is part of the entry.
        (300, "UPDATE agd.event SET n = n + 100000 WHERE {event}".into(), "event {id} is missing: it was leaf {leaf}"),
        // The leaf itself, its sibling, and a leaf on the other side of its tile.
        (300, in_tile(&flip("hashes", (300 - 256) * 32 + 5)), "tile 1 of level 0 was changed"),
        (
            300,
            in_tile(&flip("hashes", (301 - 256) * 32)),
            "tile 0 of level 1 does not hold the root of tile 1 below it",
        ),
        (300, in_tile(&flip("hashes", 8191)), "tile 0 of level 1 does not hold the root of tile 1 below it"),
        (300, in_tile(&flip("event_keys", (300 - 256) * 12 + 11)), "tile 1 of level 0 was changed"),
        (300, in_tile("first_stamp = last_stamp + 1, last_stamp = last_stamp + 1"), "tile 1 of level 0 was changed"),
        (300, in_tile("first_stamp = 0, last_stamp = 1"), "tile 1 of level 0 was changed"),
        (
            300,
            format!("DELETE FROM agd.tile WHERE level = 0 AND tile_index = 1 AND {platform}"),
            "tile 1 of level 0 is missing",
        ),
        // The open tile of level 0, on the way to every leaf, and of level 1, which stands behind it.
        (300, flip_open(0), "the open tile"),
        (800, flip_open(32 * 40), "the open tile"),
        (300, flip_open(32 * open), "of level 1 does not hold the root of tile 0 below it"),
        (300, "UPDATE agd.log SET open_tiles = '' WHERE tenant IS NULL".into(), "open tiles do not fit its size"),
        (300, "UPDATE agd.log SET size = size - 1 WHERE tenant IS NULL".into(), "open tiles do not fit its size"),
        (
            300,
            format!("UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = {newest} AND {platform}"),
            "the anchor at size {newest}",
        ),
        (
            300,
            format!("UPDATE agd.checkpoint SET tree_size = 100000 WHERE tree_size = {newest} AND {platform}"),
            "an anchor at size 100000, beyond|the anchor at size {newest} was published, and is missing",
        ),
    ];
    let mut missed = Vec::new();
    for (leaf, tamper, wanted) in &cases {
        let id: String =
            one(&mut client, &format!("SELECT event_id FROM agd.events WHERE tenant IS NULL AND leaf_index = {leaf}"));
        let fill = |text: &str| {
            text.replace("{event}", &format!("xact_id || '-' || n = '{id}'"))
                .replace("{xact}", &format!("xact_id = '{}'", id.split_once('-').unwrap().0))
                .replace("{id}", &id)
                .replace("{leaf}", &leaf.to_string())
                .replace("{newest}", &newest.to_string())
        };
        for function in ["agd.inclusion_proof", "agd.tlog_proof"] {
            let mut tamperer = database.tamperer().unwrap();
            let tamper = fill(tamper);
            let changed = tamperer.execute(&tamper, &[]).unwrap_or_else(|error| panic!("{tamper}: {error:?}"));
            assert!(changed > 0, "changed nothing: {tamper}");
            let proof = tamperer.query(&format!("SELECT {function}($1)"), &[&id]);
            match proof.as_ref().map_err(|error| error.as_db_error()) {
                Err(Some(error))
                    if error.code().code() == "XX001"
                        && wanted.split('|').any(|wanted| error.message().contains(&fill(wanted))) => {}
                other => missed.push(format!("{function} after {tamper}\n    {other:?}\n    not: {}", fill(wanted))),
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));

    // The rows that only one of the functions reads.
    let id: String = one(&mut client, "SELECT event_id FROM agd.events WHERE tenant IS NULL AND leaf_index = 300");
    for (tamper, wanted) in [
        (
            "UPDATE agd.publication SET note = replace(note, chr(8212) || ' agd', chr(8212) || ' a gd')",
            "agd.publication",
        ),
        ("UPDATE agd.publication SET note = 'x' || note", "agd.publication"),
        (
            "DELETE FROM agd.checkpoint c USING agd.publication p WHERE p.log_id = c.log_id AND p.tree_size = c.tree_size",
            "is missing",
        ),
    ] {
        let mut tamperer = database.tamperer().unwrap();
        assert!(tamperer.execute(tamper, &[]).unwrap() > 0, "{tamper}");
        let error = expect_sqlstate(tamperer.query("SELECT agd.tlog_proof($1)", &[&id]), "XX001");
        assert!(error.message().contains(wanted), "{}", error.message());
    }
    let origin = origin(&mut client, "");
    for (tamper, from, to, wanted) in [
        (in_tile(&flip("hashes", 0)), 300, 512, "of level 1 does not hold the root of tile 1 below it"),
        (in_tile(&flip("hashes", 0)), 300, 400, "of level 1 does not hold the root of tile 1 below it"),
        (flip_open(32 * open + 32), 256, 768, "of level 1 does not hold the root of tile 1 below it"),
        (
            format!("UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 256 AND {platform}"),
            256,
            512,
            "the anchor at size 256",
        ),
        (
            format!("UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE tree_size = 512 AND {platform}"),
            256,
            512,
            "the anchor at size 512",
        ),
        (
            format!("DELETE FROM agd.tile WHERE level = 0 AND tile_index = 1 AND {platform}"),
            300,
            512,
            "tile 1 of level 0 is missing",
        ),
    ] {
        let mut tamperer = database.tamperer().unwrap();
        assert!(tamperer.execute(&tamper, &[]).unwrap() > 0, "{tamper}");
        let error = expect_sqlstate(consistency(&mut tamperer, &origin, from, to), "XX001");
        assert!(error.message().contains(wanted), "{tamper}\n    {}", error.message());
    }

    // Nothing of it was committed. What a tenant is told of another's event is the same as ever.
    TlogProof::parse(&one::<String>(&mut client, &format!("SELECT agd.tlog_proof('{id}')"))).unwrap();
    let checkpoint = SignedNote::parse(signed).unwrap();
    assert!(checkpoint.text().starts_with(&origin));
    expect_verified(&mut client);
}

// ----------------------------------------------------------------------------------------------------------- tlog-proof

/// Records the newest anchor of a log as published, signed by a key of the test's own. Returns the note.
fn sign_newest(client: &mut Client, tenant: &str) -> String {
    let row = client
        .query_one(
            "SELECT origin, tree_size, root_hash, checkpoint FROM agd.anchors
              WHERE coalesce(tenant, '') = $1 ORDER BY tree_size DESC LIMIT 1",
            &[&tenant],
        )
        .unwrap();
    let (origin, size, root, text): (String, i64, Vec<u8>, String) = (row.get(0), row.get(1), row.get(2), row.get(3));
    let key = publishing::key(&origin);
    let note = SignedNote::sign(&text, &key).unwrap().to_string();
    if one::<i64>(client, "SELECT count(*) FROM agd.log_key") == 0 {
        publishing::register(client);
    }
    client
        .execute("SELECT agd.record_publication($1, $2, $3, 'file:///store', $4)", &[&origin, &size, &root, &note])
        .unwrap();
    note
}

#[test]
fn a_receipt_takes_the_signed_checkpoint_and_nothing_else() {
    let (_database, mut client) = scene("receipts");
    client.batch_execute("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 600) i").unwrap();
    anchor(&mut client);
    let row = client
        .query_one("SELECT origin, tree_size, root_hash, checkpoint FROM agd.anchors WHERE tree_size = 512", &[])
        .unwrap();
    let (origin, size, root, text): (String, i64, Vec<u8>, String) = (row.get(0), row.get(1), row.get(2), row.get(3));
    publishing::register(&mut client);
    let key = publishing::key(&origin);
    let note = SignedNote::sign(&text, &key).unwrap().to_string();
    let other: String = one(&mut client, "SELECT checkpoint FROM agd.anchors WHERE tree_size = 256");
    let mut record = |place: &str, note: Option<&str>| {
        client.execute("SELECT agd.record_publication($1, $2, $3, $4, $5)", &[&origin, &size, &root, &place, &note])
    };
    for bad in [
        String::new(),
        text.clone(),
        note.trim_end().to_owned(),
        format!("{note}\n"),
        format!("x{note}"),
        note.replace("512", "513"),
        note.replace('\u{2014}', "-"),
        SignedNote::sign(&other, &key).unwrap().to_string(),
        SignedNote::sign(&format!("{text}extension\n"), &key).unwrap().to_string(),
    ] {
        let error = expect_sqlstate(record("here", Some(&bad)), "AG004");
        expect_hint(&error, "agd.anchors");
    }
    // Without a note, or with one by another key, it is no receipt.
    expect_sqlstate(record("here", None), "AG004");
    for foreign in [("somebody/else", [8; 32]), (origin.as_str(), [8; 32]), ("somebody/else", [7; 32])] {
        let foreign = SigningKey::from_seed(foreign.0, &foreign.1).unwrap();
        let error =
            expect_sqlstate(record("here", Some(&SignedNote::sign(&text, &foreign).unwrap().to_string())), "AG004");
        expect_hint(&error, "agd.register_log_key");
    }
    // Cosigned once more, it changes nothing of the receipt that is there.
    record("here", Some(&note)).unwrap();
    let line = SigningKey::from_seed("a.witness", &[9; 32]).unwrap().sign(&text).unwrap();
    record("here", Some(&format!("{note}{line}\n"))).unwrap();
    let kept = client.query("SELECT published_to, note FROM agd.publication", &[]).unwrap();
    let kept: Vec<(String, Option<String>)> = kept.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(kept, [("here".to_owned(), Some(note))]);
}

#[test]
fn a_tlog_proof_after_agd_publish_is_all_that_a_reader_needs() {
    let (database, mut client) = scene("tlog");
    client.batch_execute("SELECT agd.map_role('proof_acme', 'acme')").unwrap();
    client.batch_execute("INSERT INTO mine SELECT 'acme', i, 'v' FROM generate_series(1, 600) i").unwrap();
    client.batch_execute("INSERT INTO mine VALUES ('zeta', 1, 'alone')").unwrap();
    anchor(&mut client);
    let folder = cluster().scratch_file("tlog");
    let (store, key) = (folder.join("store"), folder.join("log.key"));
    std::fs::create_dir_all(&store).unwrap();
    let vkey = agd(&["keygen", "--name", &origin(&mut client, ""), "--out", key.to_str().unwrap()]);
    publishing::register_vkey(&mut client, &vkey);
    let vkey = VerifierKey::parse(vkey.trim()).unwrap();
    let connect = format!("host={} user=proof_publisher dbname={}", cluster().socket_dir().display(), database.name());
    let publish = [
        "publish",
        "--once",
        "--database",
        &connect,
        "--store",
        store.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
    ];
    agd(&publish);
    client.batch_execute("INSERT INTO mine SELECT 'acme', i, 'later' FROM generate_series(1001, 1100) i").unwrap();
    anchor(&mut client);

    let unpublished = "SELECT agd.tlog_proof(event_id) FROM agd.events WHERE new->>'v' = 'later' LIMIT 1";
    expect_sqlstate(client.query(unpublished, &[]), "02000");
    let covered = "leaf_index < (SELECT max(a.tree_size) FROM agd.anchors a WHERE a.tenant IS NOT DISTINCT FROM e.tenant AND a.published_at IS NOT NULL)";
    let proofs = client
        .query(&format!("SELECT event_id, tenant, agd.tlog_proof(event_id) FROM agd.events e WHERE {covered}"), &[])
        .unwrap();
    assert!(proofs.len() > 610, "{}", proofs.len());
    for row in &proofs {
        let (event_id, tenant, text): (String, Option<String>, String) = (row.get(0), row.get(1), row.get(2));
        let proof = TlogProof::parse(&text).unwrap();
        assert_eq!(proof.to_string(), text);
        // From here on with the text and the key alone.
        let entry = agd_core::entry::parse(proof.extra()).unwrap();
        assert_eq!(entry.as_entry().event_id.to_string(), event_id);
        let log = tenant.map_or(vkey.name().to_owned(), |tenant| format!("{}/t/{tenant}", vkey.name()));
        let key = VerifierKey::new(&log, vkey.public_key()).unwrap();
        assert_eq!(proof.note().verify(std::slice::from_ref(&key)).unwrap(), [&key]);
        let checkpoint = proof.checkpoint();
        assert_eq!(checkpoint.origin, log);
        let leaf = leaf_hash(proof.extra());
        verify_inclusion(&leaf, proof.index(), checkpoint.size, proof.path(), &checkpoint.root).unwrap();
    }
    // Every anchor that was published has its note, byte for byte as in the store.
    let notes = client
        .query("SELECT l.origin, p.tree_size, p.note FROM agd.publication p JOIN agd.log l USING (log_id)", &[])
        .unwrap();
    assert!(!notes.is_empty());
    for row in notes {
        let (origin, size, note): (String, i64, Option<String>) = (row.get(0), row.get(1), row.get(2));
        let file = store.join(&origin).join(format!("checkpoints/{size:020}"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), note.unwrap(), "{}", file.display());
    }

    // A tenant proves its own events, and goes on with the next round.
    agd(&publish);
    let mut acme = database.connect_as("proof_acme").unwrap();
    let later: String =
        one(&mut acme, "SELECT agd.tlog_proof(event_id) FROM agd.events WHERE new->>'v' = 'later' LIMIT 1");
    assert_eq!(TlogProof::parse(&later).unwrap().checkpoint().size, 700);
    std::fs::remove_dir_all(folder).ok();
}

/// Runs the program `agd`, which must succeed: what it printed.
fn agd(arguments: &[&str]) -> String {
    let output = command_line::agd().args(arguments).output().unwrap();
    assert!(output.status.success(), "agd {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
