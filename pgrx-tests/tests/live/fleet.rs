//! Fleets, one step after the other: what a fleet goes through, who may, what is refused, and what the log says of it.

use agd_live_tests::fleet::{
    COORDINATOR, COUNTERSIGNER, Stage, batch_statement, coordinator, countersign, countersigner, expect_sound,
    false_checks, key, mint, mint_for, register, register_signers, seal, sign, state, statement,
};
use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, Stop, eventually, expect_hint, expect_sqlstate};
use ed25519_dalek::Signer as _;
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(&format!("SELECT count(*) FROM {sql}"), &[]).unwrap().get(0)
}

fn strings(client: &mut Client, sql: &str) -> Vec<String> {
    client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// All events of fleets, but the refused.
fn recorded(client: &mut Client) -> i64 {
    count(
        client,
        "agd.event WHERE action <> 'DENIED' AND relation IN ('agd.signer', 'agd.fleet_template', 'agd.tenant_agent_fleet',
           'agd.fleet_agent', 'agd.countersign_request', 'agd.fleet_signature')",
    )
}

#[test]
fn from_the_mint_to_the_seal() {
    let stage = Stage::new(cluster(), "fleet_life");
    let (mut ops, mut superuser) = (stage.login("ops"), stage.superuser());
    let fleet = mint(&mut ops, "acme", "onboarding of cafe\u{301} acme").unwrap();
    assert_eq!(state(&mut ops, &fleet), "pending");
    let agents = strings(&mut ops, "SELECT role || ' ' || state FROM agd.fleet_agents ORDER BY role");
    assert_eq!(agents, ["coordinator pending", "engineer pending", "gate-keeper pending", "writer pending"]);
    // Anybody recomputes the id from what the view shows.
    let recomputed = strings(
        &mut ops,
        "SELECT left(encode(sha256(convert_to('agd-fleet-v1:acme:standard@1:'
                  || encode(sha256(convert_to(cause, 'UTF8')), 'hex') || ':1', 'UTF8')), 'hex'), 16) FROM agd.fleets",
    );
    assert_eq!(recomputed, std::slice::from_ref(&fleet));
    assert_eq!(strings(&mut ops, "SELECT cause FROM agd.fleets"), ["onboarding of caf\u{e9} acme"]);
    let window: f64 = ops
        .query_one("SELECT extract(epoch FROM countersign_deadline - minted_at)::float8 FROM agd.fleets", &[])
        .unwrap()
        .get(0);
    assert_eq!(window, 86_400.0);

    assert_eq!(false_checks(&mut superuser), [""; 0]);
    expect_sqlstate(countersign(&mut ops, &[&fleet]), "55000");
    sign(&mut ops, &fleet).unwrap();
    assert_eq!(state(&mut ops, &fleet), "pending");
    assert_eq!(countersign(&mut ops, &[&fleet]).unwrap(), ["active"]);
    assert_eq!(strings(&mut ops, "SELECT DISTINCT state FROM agd.fleet_agents"), ["active"]);
    assert_eq!(strings(&mut ops, "SELECT state FROM agd.countersign_requests"), ["granted"]);
    let signers = strings(&mut ops, "SELECT coordinator || ' ' || countersigner FROM agd.fleets");
    assert_eq!(signers, [format!("{COORDINATOR} {COUNTERSIGNER}")]);
    expect_sound(&mut superuser);
    seal(&mut ops, &fleet).unwrap();
    assert_eq!(state(&mut ops, &fleet), "sealed");
    assert_eq!(strings(&mut ops, "SELECT DISTINCT state FROM agd.fleet_agents"), ["archived"]);
    expect_sqlstate(seal(&mut ops, &fleet), "55000");
    expect_sqlstate(sign(&mut ops, &fleet), "55000");
    expect_sqlstate(countersign(&mut ops, &[&fleet]), "55000");
    expect_sound(&mut superuser);

    // All of it is in the tenant's log, but the signers and the template; who did it, too.
    anchor(&mut superuser);
    let told = strings(
        &mut superuser,
        "SELECT format('%s %s %s %s', coalesce(tenant, '-'), relation, action, count(*)) FROM agd.events
          WHERE guard_id IN (SELECT agd.guard_id(r) FROM unnest('{agd.signer,agd.fleet_template,agd.tenant_agent_fleet,
            agd.fleet_agent,agd.countersign_request,agd.fleet_signature}'::regclass[]) r) AND action <> 'DENIED'
          GROUP BY tenant, relation, action ORDER BY 1",
    );
    assert_eq!(
        told,
        [
            "- agd.fleet_template INSERT 1",
            "- agd.signer INSERT 2",
            "acme agd.countersign_request INSERT 1",
            "acme agd.countersign_request UPDATE 1",
            "acme agd.fleet_agent INSERT 4",
            "acme agd.fleet_agent UPDATE 4",
            "acme agd.fleet_signature INSERT 2",
            "acme agd.tenant_agent_fleet INSERT 1",
            "acme agd.tenant_agent_fleet UPDATE 3",
        ]
    );
    let states = strings(
        &mut superuser,
        "SELECT new->>'state' FROM agd.history('agd.tenant_agent_fleet', jsonb_build_object('fleet_id', (SELECT fleet_id FROM agd.fleets)))",
    );
    assert_eq!(states, ["pending", "pending", "active", "sealed"]);
    let who = strings(
        &mut superuser,
        "SELECT DISTINCT session_user_name FROM agd.events WHERE relation = 'agd.tenant_agent_fleet' AND action <> 'DENIED'",
    );
    assert_eq!(who, ["fleet_life_ops"]);
    expect_each_event_in_one_leaf(&mut superuser);
    expect_verified(&mut superuser);
}

#[test]
fn the_same_mint_again_is_the_same_fleet() {
    let stage = Stage::new(cluster(), "fleet_again");
    let (mut ops, mut superuser) = (stage.login("ops"), stage.superuser());
    let first = mint(&mut ops, "acme", "cafe\u{301}").unwrap();
    let events = recorded(&mut superuser);
    for cause in ["caf\u{e9}", "cafe\u{301}"] {
        assert_eq!(mint(&mut ops, "acme", cause).unwrap(), first, "{cause:?}");
    }
    assert_eq!(mint_for(&mut ops, "acme", "caf\u{e9}", 50.0).unwrap(), first, "another window is no other fleet");
    assert_eq!(recorded(&mut superuser), events, "it leaves no event");
    sign(&mut ops, &first).unwrap();
    countersign(&mut ops, &[&first]).unwrap();
    assert_eq!(mint(&mut ops, "acme", "caf\u{e9}").unwrap(), first, "an active fleet, too");
    let others = [
        mint(&mut ops, "globex", "caf\u{e9}").unwrap(),
        mint(&mut ops, "acme", "cafe").unwrap(),
        mint(&mut ops, "acme", "caf\u{e9} ").unwrap(),
    ];
    assert!(!others.contains(&first));

    // After its end the same cause begins the next generation, which has to be signed anew.
    let (old_statement, old_batch) =
        (statement(&mut ops, &first).unwrap(), batch_statement(&mut ops, &[&first]).unwrap());
    seal(&mut ops, &first).unwrap();
    let second = mint(&mut ops, "acme", "caf\u{e9}").unwrap();
    assert_ne!(second, first);
    let generation: i32 =
        ops.query_one("SELECT generation FROM agd.fleets WHERE fleet_id = $1", &[&second]).unwrap().get(0);
    assert_eq!(generation, 2);
    let replayed = coordinator().sign(&old_statement).to_bytes();
    let sql = "SELECT agd.sign_fleet($1, $2, $3)";
    expect_sqlstate(ops.execute(sql, &[&second, &COORDINATOR, &replayed.as_slice()]), "AG004");
    sign(&mut ops, &second).unwrap();
    let replayed = countersigner().sign(&old_batch).to_bytes();
    let sql = "SELECT * FROM agd.countersign_fleets($1, $2, $3)";
    expect_sqlstate(ops.query(sql, &[&[second.as_str()].as_slice(), &COUNTERSIGNER, &replayed.as_slice()]), "AG004");
    countersign(&mut ops, &[&second]).unwrap();

    // A new version of the template is another vector.
    let version: i32 = superuser
        .query_one("SELECT agd.create_template('standard', '{\"coordinator\": {}, \"reader\": {\"goals\": [1.50, 1e400], \"memory_scope\": {\"area\": \"books\"}}}')", &[])
        .unwrap()
        .get(0);
    assert_eq!(version, 2);
    let third = mint(&mut ops, "acme", "caf\u{e9}").unwrap();
    assert!(third != first && third != second);
    let scope: Vec<String> = strings(
        &mut superuser,
        &format!("SELECT memory_scope::text FROM agd.fleet_agents WHERE fleet_id = '{third}' AND role = 'reader'"),
    );
    assert_eq!(scope, [format!(r#"{{"area": "books", "role": "reader", "fleet": "{third}", "tenant": "acme"}}"#)]);
    // Numbers keep their digits, whatever other languages make of them.
    let goals: Vec<String> = strings(
        &mut superuser,
        &format!("SELECT goals::text FROM agd.fleet_agents WHERE fleet_id = '{third}' AND role = 'reader'"),
    );
    assert_eq!(goals, [format!("[1.50, 1{}]", "0".repeat(400))]);
    expect_sound(&mut superuser);
}

/// Each of these is refused with its SQLSTATE, and leaves a DENIED event and nothing else.
#[test]
fn what_is_refused_says_why_and_writes_nothing() {
    let stage = Stage::new(cluster(), "fleet_bad");
    let (mut ops, mut superuser) = (stage.login("ops"), stage.superuser());
    let unsigned = mint(&mut ops, "acme", "unsigned").unwrap();
    let signed = mint(&mut ops, "acme", "signed").unwrap();
    sign(&mut ops, &signed).unwrap();
    let active = mint(&mut ops, "acme", "active").unwrap();
    sign(&mut ops, &active).unwrap();
    countersign(&mut ops, &[&active]).unwrap();
    register(&mut ops, "Gone", "coordinator", &key(5)).unwrap();
    ops.batch_execute("SELECT agd.revoke_signer('Gone', 'left')").unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let by = |fill: u8, bytes: &[u8]| hex(&key(fill).sign(bytes).to_bytes());
    let of_unsigned = statement(&mut ops, &unsigned).unwrap();
    let of_signed = statement(&mut ops, &signed).unwrap();
    let batch = batch_statement(&mut ops, &[&signed]).unwrap();
    let public = |fill: u8| hex(key(fill).verifying_key().as_bytes());
    let long = "x".repeat(10 << 20);

    let mint_of = |tenant: &str, cause: &str| format!("SELECT agd.mint_tenant_fleet('{tenant}', '{cause}')");
    let sign_of = |fleet: &str, signer: &str, signature: &str| {
        format!("SELECT agd.sign_fleet('{fleet}', '{signer}', '\\x{signature}')")
    };
    let counter_of = |fleets: &str, signer: &str, signature: &str| {
        format!("SELECT * FROM agd.countersign_fleets('{{{fleets}}}', '{signer}', '\\x{signature}')")
    };
    let register_of = |signer: &str, duty: &str, public: &str| {
        format!("SELECT agd.register_signer('{signer}', '{duty}', '\\x{public}')")
    };
    let template_of = |name: &str, roles: &str| format!("SELECT agd.create_template('{name}', '{roles}')");
    let mut cases: Vec<(String, &str)> = vec![
        // Causes.
        (mint_of("acme", ""), "22023"),
        (mint_of("acme", " \t\n "), "22023"),
        (mint_of("acme", &long), "22023"),
        (mint_of("acme", "zero\u{200b}width"), "22023"),
        (mint_of("acme", "left \u{202e}right"), "22023"),
        (mint_of("acme", "isolate\u{2067}"), "22023"),
        (mint_of("acme", "unassigned \u{378}"), "22023"),
        (mint_of("acme", "private \u{e000}"), "22023"),
        (mint_of("acme", "escape \u{1b}[2K"), "22023"),
        (mint_of("acme", "return\r"), "22023"),
        ("SELECT agd.mint_tenant_fleet('acme', NULL)".into(), "22023"),
        // Tenants.
        (mint_of("initech", "why"), "22023"),
        (mint_of("ac:me", "why"), "22023"),
        (mint_of("ac''me", "why"), "22023"),
        (mint_of("acme ", "why"), "22023"),
        (mint_of("\u{430}cme", "why"), "22023"),
        ("SELECT agd.mint_tenant_fleet(NULL, 'why')".into(), "22023"),
        // Templates and windows.
        ("SELECT agd.mint_tenant_fleet('acme', 'why', 'none')".into(), "22023"),
        ("SELECT agd.mint_tenant_fleet('acme', 'why', 'a@1')".into(), "22023"),
        ("SELECT agd.mint_tenant_fleet('acme', 'why', countersign_window => '0')".into(), "22023"),
        ("SELECT agd.mint_tenant_fleet('acme', 'why', countersign_window => '-1 day')".into(), "22023"),
        ("SELECT agd.mint_tenant_fleet('acme', 'why', countersign_window => '400 days')".into(), "22023"),
        (template_of("research", "{}"), "22023"),
        (template_of("research", "[]"), "22023"),
        (template_of("re:search", r#"{"a": {}}"#), "22023"),
        (template_of("research", r#"{"a:b": {}}"#), "22023"),
        (template_of("research", r#"{"a": 1}"#), "22023"),
        (template_of("research", r#"{"a": {"tools": []}}"#), "22023"),
        (template_of("research", r#"{"a": {"memory_scope": {"tenant": "globex"}}}"#), "22023"),
        // Signers.
        (register_of(COORDINATOR, "coordinator", &public(9)), "23505"),
        (register_of("Another", "countersigner", &public(1)), "23505"),
        (register_of("a b", "coordinator", &public(9)), "22023"),
        (register_of("Judge", "judge", &public(9)), "22023"),
        (register_of("Short", "coordinator", &public(9)[..62]), "22023"),
        (register_of("Weak", "coordinator", &format!("01{}", "00".repeat(31))), "22023"),
        ("SELECT agd.revoke_signer('River', ' ')".into(), "22023"),
        ("SELECT agd.revoke_signer('Nobody', 'why')".into(), "22023"),
        ("SELECT agd.revoke_signer('Gone', 'again')".into(), "55000"),
        // Signatures.
        (sign_of(&unsigned, COORDINATOR, &by(2, &of_unsigned)), "AG004"),
        (sign_of(&unsigned, COORDINATOR, &by(1, &of_signed)), "AG004"),
        (sign_of(&unsigned, COORDINATOR, &by(1, b"")), "AG004"),
        (sign_of(&unsigned, COORDINATOR, "00"), "AG004"),
        (sign_of(&unsigned, COUNTERSIGNER, &by(2, &of_unsigned)), "AG004"),
        (sign_of(&unsigned, "Nobody", &by(1, &of_unsigned)), "AG004"),
        (sign_of(&unsigned, "Gone", &by(5, &of_unsigned)), "AG004"),
        (sign_of(&signed, COORDINATOR, &by(1, &of_signed)), "55000"),
        (sign_of(&active, COORDINATOR, &by(1, &of_signed)), "55000"),
        (sign_of("0123456789abcdef", COORDINATOR, &by(1, b"")), "22023"),
        (sign_of("no id", COORDINATOR, &by(1, b"")), "22023"),
        (counter_of(&signed, COORDINATOR, &by(1, &batch)), "AG004"),
        (counter_of(&signed, COUNTERSIGNER, &by(1, &batch)), "AG004"),
        (counter_of(&signed, COUNTERSIGNER, &by(2, &of_signed)), "AG004"),
        (counter_of(&unsigned, COUNTERSIGNER, &by(2, &batch)), "55000"),
        (counter_of(&active, COUNTERSIGNER, &by(2, &batch)), "55000"),
        (counter_of(&format!("{signed},{active}"), COUNTERSIGNER, &by(2, &batch)), "55000"),
        (counter_of("", COUNTERSIGNER, &by(2, &batch)), "22023"),
        (counter_of(&format!("{signed},{signed}"), COUNTERSIGNER, &by(2, &batch)), "22023"),
        (counter_of(&format!("{signed},NULL"), COUNTERSIGNER, &by(2, &batch)), "22023"),
        (counter_of(&format!("{signed},0123456789abcdef"), COUNTERSIGNER, &by(2, &batch)), "22023"),
        // Seals.
        (format!("SELECT agd.seal_tenant_fleet('{active}', '')"), "22023"),
        (format!("SELECT agd.seal_tenant_fleet('{active}', NULL)"), "22023"),
        ("SELECT agd.seal_tenant_fleet('0123456789abcdef', 'why')".into(), "22023"),
    ];
    // What is in PostgreSQL's own hands: NUL is in no text.
    expect_sqlstate(ops.query("SELECT agd.mint_tenant_fleet('acme', $1)", &[&"nul\0"]), "22021");
    let everything = "SELECT md5(string_agg(t, '|' ORDER BY t)) FROM (
        SELECT f::text FROM agd.tenant_agent_fleet f UNION ALL SELECT s::text FROM agd.fleet_signature s
        UNION ALL SELECT r::text FROM agd.countersign_request r UNION ALL SELECT a::text FROM agd.fleet_agent a
        UNION ALL SELECT s::text FROM agd.signer s UNION ALL SELECT t::text FROM agd.fleet_template t) x (t)";
    let (before, events) = (strings(&mut superuser, everything), recorded(&mut superuser));
    let denied = "SELECT events_denied FROM agd.stat";
    let mut refused: i64 = superuser.query_one(denied, &[]).unwrap().get(0);
    // The two refusals of Stage and of this test's beginning may not be drained yet.
    anchor(&mut superuser);
    refused = refused.max(superuser.query_one(denied, &[]).unwrap().get(0));
    for (sql, sqlstate) in cases.drain(..) {
        let error = expect_sqlstate(ops.batch_execute(&sql), sqlstate);
        assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{} has no hint", &sql[..sql.len().min(200)]);
        refused += 1;
        if refused % 50 == 0 {
            // The ring has room for 128 that wait.
            anchor(&mut superuser);
        }
    }
    anchor(&mut superuser);
    assert_eq!(
        (strings(&mut superuser, everything), recorded(&mut superuser)),
        (before, events),
        "nothing was written"
    );
    assert_eq!(superuser.query_one(denied, &[]).unwrap().get::<_, i64>(0), refused, "each is a DENIED event");
    let told = strings(
        &mut superuser,
        "SELECT DISTINCT body::json->>'attempted' FROM agd.events WHERE action = 'DENIED' AND relation = 'agd.tenant_agent_fleet' ORDER BY 1",
    );
    assert_eq!(
        told,
        [
            "COUNTERSIGN FLEETS",
            "CREATE TEMPLATE",
            "MINT FLEET",
            "REGISTER SIGNER",
            "REVOKE SIGNER",
            "SEAL FLEET",
            "SIGN FLEET"
        ]
    );
    // None of them tells what the refused call was given.
    for value in ["left", "ac:me", "zero", "\u{430}cme", "research"] {
        assert_eq!(
            count(&mut superuser, &format!("agd.event WHERE action = 'DENIED' AND body LIKE '%{value}%'")),
            0,
            "{value}"
        );
    }
    expect_sound(&mut superuser);
    expect_verified(&mut superuser);
}

#[test]
fn a_missed_window_cancels_whether_or_not_anybody_sweeps() {
    let stage = Stage::new(cluster(), "fleet_window");
    let (mut ops, mut superuser) = (stage.login("ops"), stage.superuser());
    let worker = agd_live_tests::record::worker_pid(&mut superuser);
    let in_time = mint(&mut ops, "acme", "in time").unwrap();
    sign(&mut ops, &in_time).unwrap();
    anchor(&mut superuser);
    let frozen = cluster().freeze(worker).unwrap();
    let late = mint_for(&mut ops, "acme", "late", 400.0).unwrap();
    sign(&mut ops, &late).unwrap();
    assert_eq!(state(&mut ops, &late), "pending");
    let both = [in_time.as_str(), late.as_str()];
    eventually("the window passes", SOON, || state(&mut ops, &late) == "cancelled");
    let shown = "SELECT format('%s %s %s %s %s', fleet_id, state, cancelled_at = countersign_deadline, sealed_at, reason) FROM agd.fleets ORDER BY minted_at";
    let requests = "SELECT state || ' ' || coalesce((closed_at = deadline)::text, '-') FROM agd.countersign_requests ORDER BY requested_at";
    let agents = "SELECT DISTINCT fleet_id || state FROM agd.fleet_agents ORDER BY 1";
    let before = [strings(&mut ops, shown), strings(&mut ops, requests), strings(&mut ops, agents)];
    assert_eq!(before[1], ["open -", "cancelled true"]);
    assert_eq!(
        strings(&mut superuser, "SELECT DISTINCT state FROM agd.tenant_agent_fleet"),
        ["pending"],
        "nobody has swept"
    );
    let overdue = "SELECT fleet_id FROM agd.fleet_pending_cancel WHERE overdue";
    assert_eq!(strings(&mut ops, overdue), std::slice::from_ref(&late));
    // Nothing is possible any more, and a batch with it is refused whole, naming it.
    let error = expect_sqlstate(countersign(&mut ops, &both), "55000");
    assert!(error.message().contains(&late) && error.message().contains("none of the 2"), "{}", error.message());
    expect_hint(&error, "Leave it out");
    expect_sqlstate(sign(&mut ops, &late), "55000");
    expect_sqlstate(seal(&mut ops, &late), "55000");
    assert_eq!(state(&mut ops, &in_time), "pending");
    assert_eq!(false_checks(&mut superuser), [""; 0]);

    // The sweeper writes down what everybody has seen already.
    drop(frozen);
    eventually("the worker sweeps", SOON, || strings(&mut superuser, overdue).is_empty());
    assert_eq!([strings(&mut ops, shown), strings(&mut ops, requests), strings(&mut ops, agents)], before);
    assert_eq!(
        strings(&mut superuser, "SELECT state FROM agd.tenant_agent_fleet ORDER BY minted_at"),
        ["pending", "cancelled"]
    );
    assert_eq!(countersign(&mut ops, &[&in_time]).unwrap(), ["active"]);
    expect_sound(&mut superuser);

    // Where nobody has swept, the next mint of the same vector does.
    let frozen = cluster().freeze(worker).unwrap();
    let first = mint_for(&mut ops, "acme", "again", 1.0).unwrap();
    eventually("the window passes", SOON, || state(&mut ops, &first) == "cancelled");
    let second = mint(&mut ops, "acme", "again").unwrap();
    assert_ne!(first, second);
    assert_eq!(strings(&mut superuser, overdue), [""; 0]);
    drop(frozen);
    // To seal a fleet that is pending cancels it.
    seal(&mut ops, &second).unwrap();
    assert_eq!(
        strings(&mut ops, "SELECT state || ' ' || reason FROM agd.fleets ORDER BY minted_at DESC LIMIT 1"),
        ["cancelled it is over"]
    );
    anchor(&mut superuser);
    expect_sound(&mut superuser);
    expect_verified(&mut superuser);
}

#[test]
fn tenants_act_on_their_own_fleets_only() {
    let stage = Stage::new(cluster(), "fleet_wall");
    let (mut acme, mut globex, mut ops) = (stage.login("acme"), stage.login("globex"), stage.login("ops"));
    let mut superuser = stage.superuser();
    let own = mint(&mut acme, "acme", "mine").unwrap();
    let theirs = mint(&mut ops, "globex", "theirs").unwrap();
    sign(&mut globex, &theirs).unwrap();
    sign(&mut acme, &own).unwrap();
    for view in ["fleets", "fleet_agents", "countersign_requests", "fleet_pending_cancel"] {
        assert_eq!(strings(&mut acme, &format!("SELECT DISTINCT tenant FROM agd.{view}")), ["acme"], "{view}");
        assert_eq!(
            strings(&mut ops, &format!("SELECT DISTINCT tenant FROM agd.{view} ORDER BY 1")),
            ["acme", "globex"],
            "{view}"
        );
    }
    // Context is for the tenant itself.
    assert_eq!(count(&mut acme, "agd.fleet_agents WHERE goals IS NOT NULL AND memory_scope IS NOT NULL"), 4);
    assert_eq!(count(&mut ops, "agd.fleet_agents WHERE goals IS NOT NULL OR memory_scope IS NOT NULL"), 0);
    let before = recorded(&mut superuser);
    let unknown = "0123456789abcdef";
    let both = format!("'{{{own},{theirs}}}'");
    for fleet in [theirs.as_str(), unknown] {
        for call in [
            format!("agd.sign_fleet('{fleet}', 'x', '')"),
            format!("agd.countersign_fleets('{{{fleet}}}', 'x', '')"),
            format!("agd.seal_tenant_fleet('{fleet}', 'because')"),
            format!("agd.fleet_statement('{fleet}')"),
            format!("agd.batch_statement('{{{fleet}}}')"),
            format!("agd.verify_fleet('{fleet}')"),
        ] {
            let error = expect_sqlstate(acme.batch_execute(&format!("SELECT {call}")), "42501");
            // Whether there is such a fleet, it does not tell.
            assert_eq!(error.message(), "this session may not act for that tenant's fleets", "{call}");
        }
    }
    for call in [
        "agd.mint_tenant_fleet('globex', 'why')".to_owned(),
        "agd.mint_tenant_fleet('initech', 'why')".to_owned(),
        format!("agd.countersign_fleets({both}, 'x', '')"),
        format!("agd.batch_statement({both})"),
        "agd.register_signer('Mine', 'countersigner', '')".to_owned(),
        "agd.revoke_signer('River', 'mine now')".to_owned(),
        "agd.create_template('mine', '{\"a\": {}}')".to_owned(),
    ] {
        expect_sqlstate(acme.batch_execute(&format!("SELECT {call}")), "42501");
    }
    for role in ["nobody", "audit"] {
        let mut client = stage.login(role);
        for call in
            ["agd.mint_tenant_fleet('acme', 'why')".to_owned(), format!("agd.seal_tenant_fleet('{own}', 'why')")]
        {
            expect_sqlstate(client.batch_execute(&format!("SELECT {call}")), "42501");
        }
    }
    let mut auditor = stage.login("audit");
    assert_eq!(count(&mut auditor, &format!("agd.verify_fleet('{own}') WHERE ok")), 8);
    assert_eq!(strings(&mut auditor, "SELECT agd.cause_normalised('cafe' || U&'\\0301')"), ["caf\u{e9}"]);
    for role in ["acme", "ops", "audit", "nobody"] {
        let mut client = stage.login(role);
        for table in ["tenant_agent_fleet", "fleet_agent", "countersign_request", "fleet_signature"] {
            expect_sqlstate(client.batch_execute(&format!("SELECT 1 FROM agd.{table}")), "42501");
            expect_sqlstate(client.batch_execute(&format!("DELETE FROM agd.{table}")), "42501");
        }
    }
    assert_eq!(recorded(&mut superuser), before);
    // The platform learns whom it was about; in the log of the tenant that was reached for nobody else writes.
    anchor(&mut superuser);
    let reached = "agd.events WHERE action = 'DENIED' AND tenant IS NULL AND role_name = 'fleet_wall_acme'
                   AND body::json->>'concerned_tenant' = 'globex'";
    assert!(count(&mut superuser, reached) >= 7);
    assert_eq!(count(&mut globex, "agd.events WHERE action = 'DENIED' AND role_name = 'fleet_wall_acme'"), 0);
    // What a tenant does about its own fleets, the others do not notice.
    let globex_log = "SELECT tree_size::text FROM agd.anchors WHERE tenant = 'globex' ORDER BY tree_size DESC LIMIT 1";
    let size = strings(&mut superuser, globex_log);
    assert_eq!(countersign(&mut acme, &[&own]).unwrap(), ["active"]);
    seal(&mut acme, &own).unwrap();
    anchor(&mut superuser);
    assert_eq!(strings(&mut superuser, globex_log), size);
    assert_eq!(strings(&mut globex, "SELECT state FROM agd.fleets"), ["pending"]);
    let roles = strings(
        &mut superuser,
        "SELECT DISTINCT binding FROM agd.events WHERE tenant = 'acme' AND relation LIKE 'agd.%' AND action <> 'DENIED'",
    );
    assert_eq!(roles, ["role"]);
    expect_sound(&mut superuser);
    expect_verified(&mut superuser);
}

/// A superuser's own SQL is refused, and what goes past the gate is found, by the log and by the fleet's own evidence.
#[test]
fn a_forged_fleet_is_found() {
    let stage = Stage::new(cluster(), "fleet_forged");
    let mut superuser = stage.superuser();
    let fleet = mint(&mut superuser, "acme", "honest").unwrap();
    sign(&mut superuser, &fleet).unwrap();
    for sql in [
        "UPDATE agd.tenant_agent_fleet SET state = 'active', activated_at = signed_at",
        "UPDATE agd.tenant_agent_fleet SET countersign_deadline = 'infinity'",
        "DELETE FROM agd.tenant_agent_fleet",
        "INSERT INTO agd.fleet_signature SELECT fleet_id, 'countersigner', tenant, 'River', signature, signed_at, 1, 0, '' FROM agd.fleet_signature",
        "DELETE FROM agd.fleet_agent",
        "UPDATE agd.countersign_request SET deadline = 'infinity'",
        "UPDATE agd.signer SET public_key = '\\x00'",
        "UPDATE agd.fleet_template SET roles = '{\"a\": {}}'",
        "TRUNCATE agd.tenant_agent_fleet",
        "SET session_replication_role = replica; DELETE FROM agd.fleet_signature",
    ] {
        expect_sqlstate(superuser.batch_execute(sql), "AG002");
        superuser.batch_execute("RESET session_replication_role").unwrap();
    }
    expect_sound(&mut superuser);
    // Past the triggers, the constraints still hold the row to its cause and its times.
    let mut tamperer = stage.database.tamperer().unwrap();
    for sql in [
        "UPDATE agd.tenant_agent_fleet SET cause_snapshot = 'forged'",
        "UPDATE agd.tenant_agent_fleet SET tenant = 'globex'",
        "UPDATE agd.tenant_agent_fleet SET generation = 2",
        "UPDATE agd.tenant_agent_fleet SET state = 'active'",
        "UPDATE agd.tenant_agent_fleet SET state = 'expired'",
        "UPDATE agd.tenant_agent_fleet SET state = 'active', activated_at = countersign_deadline",
        "INSERT INTO agd.signer VALUES ('Twin', 'countersigner', (SELECT public_key FROM agd.signer WHERE duty = 'coordinator'), now())",
    ] {
        tamperer.batch_execute("SAVEPOINT s").unwrap();
        let error = tamperer.batch_execute(sql).unwrap_err();
        assert!(error.as_db_error().is_some_and(|e| ["23514", "23505"].contains(&e.code().code())), "{sql}: {error:?}");
        tamperer.batch_execute("ROLLBACK TO s").unwrap();
    }
    tamperer
        .batch_execute(
            "UPDATE agd.tenant_agent_fleet SET state = 'active', activated_at = signed_at;
             INSERT INTO agd.fleet_signature SELECT fleet_id, 'countersigner', tenant, 'River', signature, signed_at, 1, 0, '' FROM agd.fleet_signature",
        )
        .unwrap();
    tamperer.commit().unwrap();
    let problems = false_checks(&mut superuser);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].contains("countersigner: the signature is not \"River\"'s"), "{problems:?}");
    assert!(problems[1].contains("rows: its countersign request"), "{problems:?}");
    let found = strings(&mut superuser, "SELECT problem FROM agd.verify_table('agd.tenant_agent_fleet')");
    assert!(found.len() == 1 && found[0].contains("state: recorded \"pending\", found \"active\""), "{found:?}");
    assert_eq!(count(&mut superuser, "agd.verify_table('agd.fleet_signature')"), 1);
}

/// A dump carries fleets, signers and what they signed; a restart and a crash lose nothing.
#[test]
fn fleets_survive_a_restart_a_crash_and_a_restore() {
    let cluster = Cluster::builder().start().unwrap();
    let database = cluster.agd_database("kept").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute("SELECT agd.create_tenant('acme')").unwrap();
    register_signers(&mut client).unwrap();
    let sealed = mint(&mut client, "acme", "sealed").unwrap();
    let active = mint(&mut client, "acme", "active").unwrap();
    for fleet in [&sealed, &active] {
        sign(&mut client, fleet).unwrap();
    }
    countersign(&mut client, &[&sealed, &active]).unwrap();
    seal(&mut client, &sealed).unwrap();
    let pending = mint(&mut client, "acme", "pending").unwrap();
    sign(&mut client, &pending).unwrap();
    let missed = mint_for(&mut client, "acme", "missed", 1.0).unwrap();
    cluster.stop(Stop::Immediate).unwrap();
    cluster.start().unwrap();
    let mut client = database.connect().unwrap();
    eventually("the worker sweeps what it finds at its start", SOON, || {
        count(&mut client, "agd.tenant_agent_fleet WHERE state = 'cancelled'") == 1
    });
    anchor(&mut client);
    let all = "SELECT fleet_id || state FROM agd.fleets ORDER BY minted_at";
    let before = strings(&mut client, all);
    assert_eq!(
        before,
        [
            format!("{sealed}sealed"),
            format!("{active}active"),
            format!("{pending}pending"),
            format!("{missed}cancelled")
        ]
    );
    expect_sound(&mut client);

    let file = cluster.scratch_file("fleets.dump");
    let path = file.to_string_lossy();
    cluster.dump(&["-Fc", "-f", &path, database.name()]).unwrap();
    let restored = cluster.database("restored").unwrap();
    cluster.restore(&["-d", restored.name(), "--exit-on-error", &path]).unwrap();
    let mut client = restored.connect().unwrap();
    expect_sqlstate(mint(&mut client, "acme", "too early"), "55000");
    client.batch_execute("SELECT agd.resume()").unwrap();
    assert_eq!(strings(&mut client, all), before);
    expect_sound(&mut client);
    // What was signed before is countersigned here: the statement is the same.
    assert_eq!(countersign(&mut client, &[&pending]).unwrap(), ["active"]);
    assert_eq!(mint(&mut client, "acme", "active").unwrap(), active);
    seal(&mut client, &active).unwrap();
    anchor(&mut client);
    expect_sound(&mut client);
    expect_verified(&mut client);
}

/// No signature is good in another database, whatever else is the same.
#[test]
fn a_signature_of_another_database_is_refused() {
    let (one, two) = (Stage::new(cluster(), "fleet_here"), Stage::new(cluster(), "fleet_there"));
    let (mut here, mut there) = (one.superuser(), two.superuser());
    let fleet = mint(&mut here, "acme", "same").unwrap();
    assert_eq!(mint(&mut there, "acme", "same").unwrap(), fleet, "the same vector has the same id everywhere");
    let signature = coordinator().sign(&statement(&mut there, &fleet).unwrap()).to_bytes();
    let sql = "SELECT agd.sign_fleet($1, $2, $3)";
    expect_sqlstate(here.execute(sql, &[&fleet, &COORDINATOR, &signature.as_slice()]), "AG004");
    sign(&mut here, &fleet).unwrap();
    sign(&mut there, &fleet).unwrap();
    let signature = countersigner().sign(&batch_statement(&mut there, &[&fleet]).unwrap()).to_bytes();
    let sql = "SELECT * FROM agd.countersign_fleets($1, $2, $3)";
    expect_sqlstate(here.query(sql, &[&[fleet.as_str()].as_slice(), &COUNTERSIGNER, &signature.as_slice()]), "AG004");
}
