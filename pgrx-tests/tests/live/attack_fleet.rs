//! Attacks by staying in a transaction: open or prepared, it keeps nobody from sealing a fleet, revoking a signer or minting.
//! And names that people read otherwise than they are.

use agd_core::token::Claims;
use agd_live_tests::fleet::{
    Stage, batch_statement, coordinator, countersign, countersigner, expect_sound, mint, seal, sign, state, statement,
};
use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::wall::Wall;
use agd_live_tests::{Cluster, eventually, expect_hint, expect_sqlstate};
use ed25519_dalek::Signer as _;
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().setting("max_prepared_transactions", "5").start().unwrap())
}

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

fn active(client: &mut Client, cause: &str) -> String {
    let fleet = mint(client, "acme", cause).unwrap();
    sign(client, &fleet).unwrap();
    countersign(client, &[&fleet]).unwrap();
    fleet
}

/// A session of the platform's that is kept waiting for a short time only.
fn hurried(stage: &Stage) -> Client {
    let mut ops = stage.login("ops");
    run(&mut ops, "SET lock_timeout = '5s'; SET statement_timeout = '20s'");
    ops
}

#[test]
fn a_mint_that_finds_its_fleet_keeps_nobody_from_sealing_it() {
    let stage = Stage::new(cluster(), "hold_mint");
    let mut ops = hurried(&stage);
    run(&mut ops, "SET lock_timeout = '300ms'");
    let fleet = active(&mut ops, "kept");
    let mut acme = stage.login("acme");
    run(&mut acme, "BEGIN");
    assert_eq!(mint(&mut acme, "acme", "kept").unwrap(), fleet);
    // Nor does one that makes another fleet of the same tenant, or seals one.
    mint(&mut acme, "acme", "another").unwrap();
    seal(&mut ops, &fleet).unwrap();
    assert_eq!(state(&mut ops, &fleet), "sealed");
    run(&mut acme, "COMMIT");
    let (one, two) = (active(&mut ops, "one"), active(&mut ops, "two"));
    run(&mut acme, "BEGIN");
    seal(&mut acme, &one).unwrap();
    seal(&mut ops, &two).unwrap();
    run(&mut acme, "COMMIT");
    anchor(&mut stage.superuser());
    expect_sound(&mut stage.superuser());
    expect_verified(&mut stage.superuser());
}

/// What a tenant has begun to do to its fleet's row, PostgreSQL lets nobody pass by: the platform waits a moment, then the
/// session in its way is ended.
#[test]
fn an_open_transaction_of_a_tenant_does_not_keep_its_fleet_from_being_sealed() {
    let stage = Stage::new(cluster(), "hold_row");
    let mut ops = hurried(&stage);
    let mut superuser = stage.superuser();
    for what in ["signs", "amends", "countersigns", "seals", "in a savepoint"] {
        let fleet = mint(&mut ops, "acme", what).unwrap();
        if matches!(what, "countersigns" | "seals") {
            sign(&mut ops, &fleet).unwrap();
        }
        if what == "seals" {
            countersign(&mut ops, &[&fleet]).unwrap();
        }
        let mut acme = stage.login("acme");
        run(&mut acme, "BEGIN");
        match what {
            "signs" => sign(&mut acme, &fleet).unwrap(),
            "countersigns" => drop(countersign(&mut acme, &[&fleet]).unwrap()),
            "seals" => seal(&mut acme, &fleet).unwrap(),
            "amends" => run(&mut acme, &format!("SELECT agd.set_agent_context('{fleet}', 'writer', '[1]')")),
            _ => run(
                &mut acme,
                &format!(
                    "SAVEPOINT s; SELECT agd.set_agent_context('{fleet}', 'writer', '[1]'); SAVEPOINT t; SELECT agd.set_agent_context('{fleet}', 'writer', '[2]')"
                ),
            ),
        }
        seal(&mut ops, &fleet).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(matches!(state(&mut ops, &fleet).as_str(), "sealed" | "cancelled"), "{what}");
        assert!(acme.batch_execute("COMMIT").is_err(), "{what}: the session that was in the way is gone");
    }
    expect_sound(&mut superuser);
    // Another session of the platform's is waited for, not ended.
    let fleet = active(&mut ops, "by two of the platform");
    let mut other = stage.login("ops");
    run(&mut other, "BEGIN");
    seal(&mut other, &fleet).unwrap();
    run(&mut ops, "SET lock_timeout = '1500ms'");
    expect_sqlstate(seal(&mut ops, &fleet), "55P03");
    run(&mut other, "COMMIT");
    // A tenant ends nobody's session.
    let fleet = active(&mut other, "by the tenant");
    run(&mut other, "BEGIN");
    seal(&mut other, &fleet).unwrap();
    let mut acme = stage.login("acme");
    run(&mut acme, "SET lock_timeout = '1500ms'");
    expect_sqlstate(seal(&mut acme, &fleet), "55P03");
    run(&mut other, "COMMIT");
    anchor(&mut superuser);
    expect_verified(&mut superuser);
}

#[test]
fn an_open_transaction_does_not_keep_a_signer_from_being_revoked() {
    let stage = Stage::new(cluster(), "hold_signer");
    let mut ops = hurried(&stage);
    run(&mut ops, "SET lock_timeout = '300ms'");
    let fleet = mint(&mut ops, "acme", "signed too late").unwrap();
    let mut acme = stage.login("acme");
    run(&mut acme, "BEGIN");
    sign(&mut acme, &fleet).unwrap();
    run(&mut ops, "SELECT agd.revoke_signer('Loom_sos_001', 'key lost')");
    // What it signed is not taken any more.
    let error = expect_sqlstate(acme.batch_execute("COMMIT"), "AG004");
    assert!(error.message().contains("revoked"), "{}", error.message());
    assert_eq!(state(&mut ops, &fleet), "pending");
    let signed = "SELECT count(*) FROM agd.fleet_signature";
    assert_eq!(stage.superuser().query_one(signed, &[]).unwrap().get::<_, i64>(0), 0);
    // One who countersigns, the same; a savepoint that is rolled back asks for nothing.
    let key = agd_live_tests::fleet::key(7);
    agd_live_tests::fleet::register(&mut ops, "Loom_2", "coordinator", &key).unwrap();
    let bytes = statement(&mut ops, &fleet).unwrap();
    let signature = key.sign(&bytes).to_bytes();
    ops.execute("SELECT agd.sign_fleet($1, 'Loom_2', $2)", &[&fleet, &signature.as_slice()]).unwrap();
    let batch = countersigner().sign(&batch_statement(&mut ops, &[&fleet]).unwrap()).to_bytes();
    run(&mut acme, "ROLLBACK; BEGIN; SAVEPOINT s");
    acme.query("SELECT * FROM agd.countersign_fleets($1, 'River', $2)", &[&[&fleet].as_slice(), &batch.as_slice()])
        .unwrap();
    run(&mut acme, "ROLLBACK TO s");
    run(&mut ops, "SELECT agd.revoke_signer('River', 'key lost')");
    run(&mut acme, "COMMIT");
    expect_sqlstate(
        acme.query("SELECT * FROM agd.countersign_fleets($1, 'River', $2)", &[&[&fleet].as_slice(), &batch.as_slice()]),
        "AG004",
    );
    // Signed and revoked in one transaction: it signed before it was revoked.
    let third = agd_live_tests::fleet::key(8);
    agd_live_tests::fleet::register(&mut ops, "Loom_3", "coordinator", &third).unwrap();
    let fleet = mint(&mut ops, "acme", "and revoked").unwrap();
    let signature = third.sign(&statement(&mut ops, &fleet).unwrap()).to_bytes();
    run(&mut ops, "BEGIN");
    ops.execute("SELECT agd.sign_fleet($1, 'Loom_3', $2)", &[&fleet, &signature.as_slice()]).unwrap();
    run(&mut ops, "SELECT agd.revoke_signer('Loom_3', 'its last'); COMMIT");
    expect_sound(&mut stage.superuser());
    let _ = coordinator();
}

/// Prepared, a transaction would keep what it holds for as long as its owner likes.
#[test]
fn what_concerns_fleets_cannot_be_prepared() {
    let stage = Stage::new(cluster(), "hold_prepared");
    let mut ops = hurried(&stage);
    let fleet = mint(&mut ops, "acme", "first").unwrap();
    let mut acme = stage.login("acme");
    for (number, what) in ["mint", "sign", "amend", "seal"].into_iter().enumerate() {
        run(&mut acme, "BEGIN");
        match what {
            "mint" => drop(mint(&mut acme, "acme", "never").unwrap()),
            "sign" => sign(&mut acme, &fleet).unwrap(),
            "amend" => run(&mut acme, &format!("SELECT agd.set_agent_context('{fleet}', 'writer', '[1]')")),
            _ => seal(&mut acme, &fleet).unwrap(),
        }
        let error = expect_sqlstate(acme.batch_execute(&format!("PREPARE TRANSACTION 'hold {number}'")), "0A000");
        expect_hint(&error, "COMMIT");
        run(&mut acme, "ROLLBACK");
    }
    // One that only finds its fleet holds nothing.
    run(&mut acme, "BEGIN");
    mint(&mut acme, "acme", "first").unwrap();
    run(&mut acme, "PREPARE TRANSACTION 'holds nothing'");
    seal(&mut ops, &fleet).unwrap();
    run(&mut acme, "ROLLBACK PREPARED 'holds nothing'");
    // Who acts for a fleet by a token, neither.
    let wall = Wall::new(cluster(), "hold_acts", "");
    agd_live_tests::fleet::register_signers(&mut wall.superuser()).unwrap();
    let fleet = active(&mut wall.superuser(), "it acts");
    let mut app = wall.login("app");
    let issuer = wall.issuer("acme");
    let claims = issuer.claims("hold_acts_app", "writer-1");
    let token = issuer.sign(&Claims { fleet: Some(fleet.clone()), ..claims });
    run(&mut app, &format!("BEGIN; SELECT agd.bind('{token}'); INSERT INTO plain VALUES ('acme', 11, 'x')"));
    expect_sqlstate(app.batch_execute("PREPARE TRANSACTION 'acts'"), "0A000");
    let mut superuser = wall.superuser();
    run(&mut superuser, "SET lock_timeout = '1s'");
    seal(&mut superuser, &fleet).unwrap();
}

/// The standard template is recorded with the first fleet of it. Whoever mints that one and stays in the transaction keeps nobody
/// from minting, and takes nothing away by rolling back.
#[test]
fn the_first_mint_keeps_nobody_from_minting() {
    let stage = Stage::new(cluster(), "first_mint");
    let mut acme = stage.login("acme");
    run(&mut acme, "BEGIN");
    mint(&mut acme, "acme", "first of all").unwrap();
    let mut globex = stage.login("globex");
    run(&mut globex, "SET lock_timeout = '300ms'");
    let theirs = mint(&mut globex, "globex", "and the others").unwrap();
    run(&mut acme, "ROLLBACK");
    let mut superuser = stage.superuser();
    let templates = "SELECT string_agg(template || version, ' ') FROM agd.fleet_template";
    assert_eq!(superuser.query_one(templates, &[]).unwrap().get::<_, String>(0), "standard1");
    assert_eq!(state(&mut globex, &theirs), "pending");
    // Both at once, and REPEATABLE READ.
    let stage = Stage::new(cluster(), "first_mints");
    let (mut acme, mut globex) = (stage.login("acme"), stage.login("globex"));
    run(&mut acme, "BEGIN ISOLATION LEVEL REPEATABLE READ");
    mint(&mut acme, "acme", "first of all").unwrap();
    mint(&mut globex, "globex", "and the others").unwrap();
    run(&mut acme, "COMMIT");
    // A version of its own is another version.
    let mut ops = stage.login("ops");
    let version: i32 = ops.query_one("SELECT agd.create_template('standard', '{\"writer\": {}}')", &[]).unwrap().get(0);
    assert_eq!(version, 2);
    mint(&mut ops, "acme", "of two").unwrap();
    let mut superuser = stage.superuser();
    expect_sound(&mut superuser);
    anchor(&mut superuser);
    expect_verified(&mut superuser);
    let stage = Stage::new(cluster(), "first_version");
    let version: i32 =
        stage.login("ops").query_one("SELECT agd.create_template('standard', '{\"writer\": {}}')", &[]).unwrap().get(0);
    assert_eq!(version, 2, "the first is the one that is there without anybody's making it");
    let mut superuser = stage.superuser();
    mint(&mut superuser, "acme", "of two").unwrap();
    let templates = "SELECT string_agg(template || version, ' ' ORDER BY version) FROM agd.fleet_template";
    assert_eq!(superuser.query_one(templates, &[]).unwrap().get::<_, String>(0), "standard1 standard2");
    expect_sound(&mut superuser);
}

/// A log is closed with its tenant's last fleet, whoever ends what at the same time.
#[test]
fn of_fleets_that_end_together_the_last_closes_the_log() {
    let stage = Stage::new(cluster(), "hold_last");
    let mut ops = hurried(&stage);
    let (one, two) = (active(&mut ops, "one"), active(&mut ops, "two"));
    let mut other = stage.login("ops");
    run(&mut ops, "BEGIN");
    run(&mut other, "BEGIN");
    seal(&mut ops, &one).unwrap();
    seal(&mut other, &two).unwrap();
    run(&mut ops, "COMMIT");
    run(&mut other, "COMMIT");
    let mut superuser = stage.superuser();
    let closes = "SELECT count(*) FROM agd.event WHERE action = 'LOG.CLOSE'";
    let count = |client: &mut Client| client.query_one(closes, &[]).unwrap().get::<_, i64>(0);
    assert_eq!(count(&mut superuser), 1);
    // Both in one transaction, and one that was rolled back to a savepoint.
    let (one, two) = (active(&mut ops, "three"), active(&mut ops, "four"));
    run(&mut ops, "BEGIN");
    seal(&mut ops, &one).unwrap();
    run(&mut ops, "SAVEPOINT s");
    seal(&mut ops, &two).unwrap();
    run(&mut ops, "ROLLBACK TO s; COMMIT");
    assert_eq!(count(&mut superuser), 1);
    seal(&mut ops, &two).unwrap();
    assert_eq!(count(&mut superuser), 2);
    anchor(&mut superuser);
    eventually("the final checkpoint", SOON, || {
        let last = "SELECT final_by IS NOT NULL FROM agd.anchors WHERE tenant = 'acme' ORDER BY tree_size DESC LIMIT 1";
        superuser.query_one(last, &[]).unwrap().get(0)
    });
    expect_verified(&mut superuser);
}

/// A principal is read by people: what it is and what it looks like are one.
#[test]
fn a_principal_is_what_it_looks_like() {
    let wall = Wall::new(cluster(), "looks", "");
    let mut agent = wall.login("agent");
    let issuer = wall.issuer("acme");
    let mut app = wall.login("app");
    for principal in [
        "pay\u{202e}roll",
        "pay\u{2066}roll",
        "a\u{200b}b",
        "a\u{200d}b",
        "a\u{feff}b",
        "a\u{ad}b",
        "\u{378}",
        "\u{e000}",
        "a\u{2028}b",
        "a\u{a0}b",
        "\u{3000}",
        "\u{e0041}",
        "a\nb",
        " ",
        "",
    ] {
        expect_sqlstate(agent.execute("SELECT agd.enter('acme', $1)", &[&principal]), "22023");
        // Whoever signs tokens himself may put in what he likes.
        if let Ok(token) =
            issuer.claims("looks_app", principal).sign(&agd_core::token::TokenSigner::from_seed("x", &[1; 32]).unwrap())
        {
            panic!("{principal:?} was signed: {token}");
        }
    }
    for principal in ["Zo\u{eb} \u{20ac} \u{1f600}", "writer-1", "a b"] {
        agent.execute("SELECT agd.enter('acme', $1)", &[&principal]).unwrap();
        run(
            &mut app,
            &format!("BEGIN; SELECT agd.bind('{}'); COMMIT", issuer.sign(&issuer.claims("looks_app", principal))),
        );
    }
    // A role's name is its principal.
    let mut superuser = wall.superuser();
    run(&mut superuser, "CREATE ROLE \"look\u{202e}s\" LOGIN");
    expect_sqlstate(superuser.batch_execute("SELECT agd.map_role('look\u{202e}s', 'acme')"), "22023");
    run(&mut superuser, "DROP ROLE \"look\u{202e}s\"");
}

#[test]
fn a_released_savepoint_hides_nobody_from_the_platform() {
    let stage = Stage::new(cluster(), "hold_savepoint");
    let mut ops = hurried(&stage);
    let fleet = mint(&mut ops, "acme", "held").unwrap();
    let role: String =
        ops.query_one("SELECT role FROM agd.fleet_agents WHERE fleet_id = $1 LIMIT 1", &[&fleet]).unwrap().get(0);
    let mut acme = stage.login("acme");
    run(
        &mut acme,
        &format!("BEGIN; SAVEPOINT s; SELECT agd.set_agent_context('{fleet}', '{role}', '[\"x\"]'); RELEASE s"),
    );
    seal(&mut ops, &fleet).unwrap();
    assert_eq!(state(&mut ops, &fleet), "cancelled");
    assert!(acme.batch_execute("COMMIT").is_err(), "its session was ended");
}
