//! A fleet that acts: transactions whose token names a fleet, what is recorded of them, and its seal.

use agd_core::token::Claims;
use agd_live_tests::fleet::{countersign, mint, mint_for, register_signers, seal, sign, state};
use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::wall::{Wall, column, run};
use agd_live_tests::{Cluster, FORCE_PARALLEL, eventually, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().setting("max_prepared_transactions", "5").start().unwrap())
}

/// A wall whose tenants have signers for their fleets.
fn wall(prefix: &'static str) -> Wall {
    let wall = Wall::new(cluster(), prefix, "");
    register_signers(&mut wall.superuser()).unwrap();
    wall
}

fn active(client: &mut Client, tenant: &str, cause: &str) -> String {
    let fleet = mint(client, tenant, cause).unwrap();
    sign(client, &fleet).unwrap();
    assert_eq!(countersign(client, &[&fleet]).unwrap(), ["active"]);
    fleet
}

/// A token of acme's that names a fleet.
fn token(wall: &Wall, fleet: &str) -> String {
    let issuer = wall.issuer("acme");
    let claims = issuer.claims(&format!("{}_app", wall.prefix), "writer-1");
    issuer.sign(&Claims { fleet: Some(fleet.to_owned()), ..claims })
}

/// Begins a transaction for a fleet.
fn begin(client: &mut Client, wall: &Wall, fleet: &str) -> Result<(), postgres::Error> {
    client.batch_execute(&format!("ROLLBACK; BEGIN; SELECT agd.bind('{}')", token(wall, fleet)))
}

const ACTS: &str = "SELECT concat_ws(' ', action, row_key->>'id', principal, binding, fleet_id) FROM agd.events
                     WHERE relation = 'public.plain' AND tenant = 'acme' AND (row_key->>'id')::int > 10 AND action <> 'DENIED'
                     ORDER BY committed_at, split_part(event_id, '-', 2)::int";

#[test]
fn an_active_fleet_acts_and_stands_in_the_log() {
    let wall = wall("acts");
    let (mut superuser, mut app) = (wall.superuser(), wall.login("app"));
    let fleet = active(&mut superuser, "acme", "it acts");
    begin(&mut app, &wall, &fleet).unwrap();
    assert_eq!(column(&mut app, "SELECT agd.current_fleet()"), std::slice::from_ref(&fleet));
    run(&mut app, "INSERT INTO plain VALUES ('acme', 11, 'x'); COMMIT");
    assert_eq!(column(&mut app, "SELECT agd.current_fleet()"), ["NULL"], "it ends with the transaction");
    // Without the claim nobody's fleet acts.
    run(
        &mut app,
        &format!("BEGIN; SELECT agd.bind('{}'); INSERT INTO plain VALUES ('acme', 12, 'x')", wall.token("acme")),
    );
    assert_eq!(column(&mut app, "SELECT agd.current_fleet()"), ["NULL"]);
    run(&mut app, "COMMIT");
    // In a savepoint that is kept. Prepared, it would keep the fleet from being sealed.
    begin(&mut app, &wall, &fleet).unwrap();
    run(&mut app, "SAVEPOINT s; INSERT INTO plain VALUES ('acme', 14, 'x'); RELEASE s");
    expect_sqlstate(app.batch_execute("PREPARE TRANSACTION 'acts'"), "0A000");
    begin(&mut app, &wall, &fleet).unwrap();
    run(&mut app, "SAVEPOINT s; INSERT INTO plain VALUES ('acme', 13, 'x'); RELEASE s; COMMIT");
    let by = |id: u32, fleet: &str| format!("INSERT {id} writer-1 token{fleet}");
    let named = format!(" {fleet}");
    let expected = [by(11, &named), by(12, ""), by(13, &named)];
    assert_eq!(column(&mut superuser, ACTS), expected);
    // The tenant sees it; so does whoever reads the log.
    let mut acme = wall.login("r0");
    let seen = "SELECT DISTINCT fleet_id FROM agd.events WHERE fleet_id IS NOT NULL";
    assert_eq!(column(&mut acme, seen), std::slice::from_ref(&fleet));
    assert_eq!(column(&mut wall.login("r1"), seen), [""; 0]);
    anchor(&mut superuser);
    let entries = column(
        &mut superuser,
        "SELECT convert_from(entry, 'UTF8')::json->>'fleet_id' FROM agd.log l
           CROSS JOIN LATERAL agd.entries(l.origin, 0, l.size) WHERE l.tenant = 'acme' AND convert_from(entry, 'UTF8') LIKE '%\"fleet_id\"%'",
    );
    assert_eq!(entries, [fleet.clone(), fleet]);
    expect_each_event_in_one_leaf(&mut superuser);
    expect_verified(&mut superuser);
}

/// A parallel worker does not ask for the fleet, and the tenant's rows are the tenant's there as well.
#[test]
fn parallel_workers_serve_it() {
    let wall = wall("acts_parallel");
    let (mut superuser, mut app) = (wall.superuser(), wall.login("app"));
    let fleet = active(&mut superuser, "acme", "many hands");
    begin(&mut app, &wall, &fleet).unwrap();
    run(&mut app, FORCE_PARALLEL);
    let counted = column(
        &mut app,
        "SELECT count(*)::text || ' ' || min(agd.current_fleet()) FROM plain WHERE agd.current_tenant() = tenant",
    );
    assert_eq!(counted, [format!("3 {fleet}")]);
    run(&mut app, "COMMIT");
}

#[test]
fn what_is_not_an_active_fleet_of_the_tenant_does_not_bind() {
    let wall = wall("acts_not");
    let (mut superuser, mut app) = (wall.superuser(), wall.login("app"));
    let pending = mint(&mut superuser, "acme", "pending").unwrap();
    let signed = mint(&mut superuser, "acme", "signed").unwrap();
    sign(&mut superuser, &signed).unwrap();
    let missed = mint_for(&mut superuser, "acme", "missed", 1.0).unwrap();
    eventually("the window passes", SOON, || state(&mut superuser, &missed) == "cancelled");
    let cancelled = mint(&mut superuser, "acme", "cancelled").unwrap();
    seal(&mut superuser, &cancelled).unwrap();
    let sealed = active(&mut superuser, "acme", "sealed");
    seal(&mut superuser, &sealed).unwrap();
    let theirs = active(&mut superuser, "globex", "theirs");
    let stranger = "names no fleet of its tenant";
    let cases = [
        (pending.as_str(), "is not active"),
        (&signed, "is not active"),
        (&missed, "is not active"),
        (&cancelled, "is not active"),
        (&sealed, "is sealed"),
        // Another tenant's, none at all, and what cannot be one: the same answer.
        (&theirs, stranger),
        ("0123456789abcdef", stranger),
        ("0123456789ABCDEF", stranger),
        ("acme", stranger),
        ("' OR true", stranger),
    ];
    for (fleet, wanted) in &cases {
        let error = expect_sqlstate(begin(&mut app, &wall, fleet), "AG004");
        assert!(error.message().contains(wanted) && error.hint().is_some(), "{fleet}: {error:?}");
        run(&mut app, "ROLLBACK");
        assert_eq!(column(&mut app, "SELECT agd.current_tenant()"), ["NULL"], "{fleet}");
    }
    anchor(&mut superuser);
    let denied = column(
        &mut superuser,
        "SELECT concat_ws(' ', tenant, b->>'attempted', b->>'sqlstate', count(*)) FROM agd.events, LATERAL (SELECT body::json) AS j(b)
          WHERE action = 'DENIED' GROUP BY tenant, b->>'attempted', b->>'sqlstate'",
    );
    assert_eq!(denied, [format!("acme BIND AG004 {}", cases.len())]);
    // What is countersigned from then on acts.
    countersign(&mut superuser, &[&signed]).unwrap();
    begin(&mut app, &wall, &signed).unwrap();
    run(&mut app, "COMMIT");
}

/// A fleet that is sealed while its transactions are open reads and writes nothing more, and what was not committed is not.
#[test]
fn a_seal_ends_what_is_open() {
    let wall = wall("acts_sealed");
    let (mut superuser, mut app, mut idle) = (wall.superuser(), wall.login("app"), wall.login("app"));
    let fleet = active(&mut superuser, "acme", "it ends");
    begin(&mut app, &wall, &fleet).unwrap();
    run(&mut app, "INSERT INTO plain VALUES ('acme', 11, 'x')");
    begin(&mut idle, &wall, &fleet).unwrap();
    // Nobody waits for whoever has bound and does nothing.
    run(&mut superuser, "SET lock_timeout = '5s'");
    seal(&mut superuser, &fleet).unwrap();
    // A statement that reads, one that writes, and the commit alone.
    let sealed = |error: &postgres::error::DbError| error.message().contains("is sealed");
    assert!(sealed(&expect_sqlstate(idle.batch_execute("SELECT * FROM plain"), "AG004")));
    assert!(sealed(&expect_sqlstate(app.batch_execute("COMMIT"), "AG004")));
    assert_eq!(column(&mut superuser, ACTS), [""; 0]);
    assert_eq!(column(&mut superuser, "SELECT 1::text FROM plain WHERE id = 11"), [""; 0]);
    let fleet = active(&mut superuser, "acme", "it ends, too");
    begin(&mut app, &wall, &fleet).unwrap();
    run(&mut app, "INSERT INTO plain VALUES ('acme', 12, 'x')");
    // A seal that comes to nothing ends nothing.
    run(&mut superuser, &format!("BEGIN; SELECT agd.seal_tenant_fleet('{fleet}', 'no'); ROLLBACK"));
    run(&mut app, "INSERT INTO plain VALUES ('acme', 13, 'x')");
    seal(&mut superuser, &fleet).unwrap();
    assert!(sealed(&expect_sqlstate(app.batch_execute("INSERT INTO plain VALUES ('acme', 14, 'x')"), "AG004")));
    run(&mut app, "ROLLBACK");
    // Who has written nothing has nothing to commit.
    let fleet = active(&mut superuser, "acme", "it reads");
    begin(&mut app, &wall, &fleet).unwrap();
    run(&mut app, "SELECT * FROM plain");
    seal(&mut superuser, &fleet).unwrap();
    run(&mut app, "COMMIT");
    assert_eq!(column(&mut superuser, ACTS), [""; 0]);
    anchor(&mut superuser);
    let denied = "SELECT string_agg(body::json->>'attempted', ' ' ORDER BY body::json->>'at') FROM agd.events WHERE action = 'DENIED' AND tenant = 'acme'";
    assert_eq!(column(&mut superuser, denied), ["COMMIT INSERT"]);
    expect_verified(&mut superuser);
}

/// Commits and seals meet in one order or the other; nobody prepares what a seal would have to wait for.
#[test]
fn a_seal_waits_for_what_is_being_committed() {
    let wall = wall("acts_waits");
    let (mut superuser, mut app) = (wall.superuser(), wall.login("app"));
    // A commit waits for a seal that is under way, and goes through when that is rolled back.
    let fleet = active(&mut superuser, "acme", "sealing");
    for (end, committed) in [("ROLLBACK", true), ("COMMIT", false)] {
        begin(&mut app, &wall, &fleet).unwrap();
        run(&mut app, "INSERT INTO plain VALUES ('acme', 12, 'x') ON CONFLICT (tenant, id) DO UPDATE SET v = 'y'");
        let pid: i32 = app.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
        run(&mut superuser, &format!("BEGIN; SELECT agd.seal_tenant_fleet('{fleet}', 'over')"));
        let mut watcher = wall.superuser();
        std::thread::scope(|scope| {
            let commit = scope.spawn(|| app.batch_execute("COMMIT"));
            eventually("the commit waits", SOON, || {
                let waiting =
                    format!("SELECT wait_event FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock'");
                column(&mut watcher, &waiting) == ["object"]
            });
            run(&mut superuser, end);
            assert_eq!(commit.join().unwrap().is_ok(), committed, "{end}");
        });
    }
    anchor(&mut superuser);
    expect_verified(&mut superuser);
}

/// Many transactions of a fleet against its seal: in the log, nothing of the fleet stands behind the seal.
#[test]
fn nothing_of_a_fleet_stands_behind_its_seal() {
    let wall = wall("acts_race");
    let mut superuser = wall.superuser();
    for round in 0..4 {
        let fleet = active(&mut superuser, "acme", &format!("round {round}"));
        let (next, committed, over) = (AtomicI32::new(1000 * (round + 1)), AtomicI32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let mut app = wall.login("app");
                    loop {
                        let id = next.fetch_add(1, Ordering::Relaxed);
                        let insert = format!("INSERT INTO plain VALUES ('acme', {id}, 'x'); COMMIT");
                        let done = begin(&mut app, &wall, &fleet).and_then(|()| app.batch_execute(&insert));
                        if let Err(error) = done {
                            assert_eq!(error.code().map(postgres::error::SqlState::code), Some("AG004"), "{error:?}");
                            assert!(over.load(Ordering::SeqCst), "refused before it was sealed: {error:?}");
                            return;
                        }
                        committed.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            eventually("they write", SOON, || committed.load(Ordering::SeqCst) > 0);
            std::thread::sleep(Duration::from_millis(100));
            over.store(true, Ordering::SeqCst);
            seal(&mut superuser, &fleet).unwrap();
        });
        anchor(&mut superuser);
        let order = column(
            &mut superuser,
            &format!(
                "SELECT concat_ws(' ', count(*) > 0, max(a.leaf_index) < min(s.leaf_index))
                   FROM (SELECT leaf_index FROM agd.events WHERE fleet_id = '{fleet}') a,
                        (SELECT leaf_index FROM agd.events WHERE relation = 'agd.tenant_agent_fleet'
                            AND row_key->>'fleet_id' = '{fleet}' AND new->>'state' = 'sealed') s"
            ),
        );
        assert_eq!(order, ["t t"], "round {round}");
    }
    expect_each_event_in_one_leaf(&mut superuser);
    expect_verified(&mut superuser);
}

/// The rest of what a binding promises holds for one that names a fleet.
#[test]
fn it_is_a_binding_like_any_other() {
    let wall = wall("acts_bound");
    let (mut superuser, mut app) = (wall.superuser(), wall.login("app"));
    let (fleet, other) = (active(&mut superuser, "acme", "one"), active(&mut superuser, "acme", "another"));
    // Rolled back with its savepoint: the transaction is nobody's any more.
    let named = token(&wall, &fleet);
    run(&mut app, &format!("BEGIN; SAVEPOINT s; SELECT agd.bind('{named}'); ROLLBACK TO s"));
    expect_sqlstate(app.batch_execute("SELECT agd.current_fleet()"), "55000");
    run(&mut app, "ROLLBACK");
    expect_sqlstate(app.batch_execute(&format!("BEGIN; SELECT agd.bind('{named}')")), "AG004");
    // One fleet a transaction.
    begin(&mut app, &wall, &fleet).unwrap();
    expect_sqlstate(app.batch_execute(&format!("SELECT agd.bind('{}')", token(&wall, &other))), "42501");
    // A fleet does not seal itself: its own transaction could not be committed.
    begin(&mut app, &wall, &fleet).unwrap();
    let error =
        expect_sqlstate(app.batch_execute(&format!("SELECT agd.seal_tenant_fleet('{fleet}', 'I quit')")), "55000");
    assert!(error.hint().is_some_and(|hint| hint.contains("without the claim")), "{error:?}");
    // But it may end another of its tenant's.
    begin(&mut app, &wall, &fleet).unwrap();
    run(&mut app, &format!("SELECT agd.seal_tenant_fleet('{other}', 'done'); COMMIT"));
    assert_eq!(state(&mut superuser, &other), "sealed");
    assert_eq!(state(&mut superuser, &fleet), "active");
    let by = "SELECT DISTINCT fleet_id FROM agd.events WHERE relation = 'agd.tenant_agent_fleet' AND new->>'state' = 'sealed'";
    assert_eq!(column(&mut superuser, by), [fleet]);
}
