//! What a fleet's agents are told, what becomes of its tenant's log when the last fleet has ended, and all of it offline.

use crate::command_line::{self, answer};
use agd_live_tests::fleet::{
    COORDINATOR, Stage, coordinator, countersign, expect_sound, false_checks, mint, mint_for, seal, sign, state,
    statement,
};
use agd_live_tests::publishing;
use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, eventually, expect_sqlstate};
use ed25519_dalek::Signer as _;
use postgres::Client;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// Tails are anchored when a test says so, and nothing else is.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().setting("agd.anchor_max_age", "1h").start().unwrap())
}

fn strings(client: &mut Client, sql: &str) -> Vec<String> {
    client.query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).iter().map(|row| row.get(0)).collect()
}

#[test]
fn agents_of_one_fleet_are_told_what_is_signed() {
    let stage = Stage::new(cluster(), "story_told");
    let (mut ops, mut acme, mut superuser) = (stage.login("ops"), stage.login("acme"), stage.superuser());
    let fleet = mint(&mut ops, "acme", "told").unwrap();
    let other = mint(&mut ops, "acme", "told as the template says").unwrap();
    let before = statement(&mut ops, &fleet).unwrap();
    // The tenant itself, and the platform: each of the two or both; what is not given stays.
    acme.execute(
        "SELECT agd.set_agent_context($1, 'writer', goals => '[\"writes invoices\", 1.50, \"é\\n\"]')",
        &[&fleet],
    )
    .unwrap();
    ops.execute(
        "SELECT agd.set_agent_context($1, 'writer', memory_scope => '{\"namespace\": \"invoices\"}')",
        &[&fleet],
    )
    .unwrap();
    let told = "SELECT goals::text || ' ' || memory_scope::text FROM agd.fleet_agents WHERE fleet_id = '{}' AND role = 'writer'";
    assert_eq!(
        strings(&mut acme, &told.replace("{}", &fleet)),
        [format!(
            r#"["writes invoices", 1.50, "é\n"] {{"role": "writer", "fleet": "{fleet}", "tenant": "acme", "namespace": "invoices"}}"#
        )]
    );
    assert_eq!(
        strings(&mut acme, &told.replace("{}", &other)),
        [format!(r#"["writes on the tenant's behalf"] {{"role": "writer", "fleet": "{other}", "tenant": "acme"}}"#)]
    );
    // Anybody who may see it recomputes the last line of what is signed.
    let recomputed = strings(
        &mut acme,
        &format!(
            "SELECT encode(sha256(convert_to(E'agd-fleet-context-v1\\n'
                      || string_agg(role || E'\\n' || goals || E'\\n' || memory_scope || E'\\n', '' ORDER BY role COLLATE \"C\"), 'UTF8')), 'hex')
               FROM agd.fleet_agents WHERE fleet_id = '{fleet}'"
        ),
    );
    let after = String::from_utf8(statement(&mut ops, &fleet).unwrap()).unwrap();
    assert_eq!(after.lines().last(), Some(recomputed[0].as_str()));
    assert_eq!(
        strings(&mut ops, &format!("SELECT encode(context_digest, 'hex') FROM agd.fleets WHERE fleet_id = '{fleet}'")),
        recomputed
    );
    expect_sound(&mut superuser);

    // A signature over what they were told before is none.
    let stale = coordinator().sign(&before).to_bytes();
    let sql = "SELECT agd.sign_fleet($1, $2, $3)";
    expect_sqlstate(ops.execute(sql, &[&fleet, &COORDINATOR, &stale.as_slice()]), "AG004");
    sign(&mut ops, &fleet).unwrap();
    let set = format!("SELECT agd.set_agent_context('{fleet}', 'writer', '[]')");
    expect_sqlstate(acme.batch_execute(&set), "55000");
    countersign(&mut ops, &[&fleet]).unwrap();
    expect_sqlstate(acme.batch_execute(&set), "55000");
    seal(&mut ops, &fleet).unwrap();
    expect_sqlstate(ops.batch_execute(&set), "55000");
    let missed = mint_for(&mut ops, "acme", "too late", 1.0).unwrap();
    eventually("the window passes", SOON, || state(&mut ops, &missed) == "cancelled");
    expect_sqlstate(ops.batch_execute(&format!("SELECT agd.set_agent_context('{missed}', 'writer', '[]')")), "55000");

    // Bad arguments, and other tenants; each is refused and told.
    for (arguments, sqlstate) in [
        (format!("'{other}', 'writer'"), "22023"),
        (format!("'{other}', NULL, '[]'"), "22023"),
        (format!("'{other}', 'reader', '[]'"), "22023"),
        (format!("'{other}', 'a:b', '[]'"), "22023"),
        (format!("'{other}', 'writer', NULL, '[]'"), "22023"),
        (format!("'{other}', 'writer', NULL, '{{\"tenant\": \"globex\"}}'"), "22023"),
        (format!("'{other}', 'writer', to_jsonb(repeat('x', 70000))"), "22023"),
        ("'0123456789abcdef', 'writer', '[]'".to_owned(), "22023"),
    ] {
        let error = expect_sqlstate(ops.batch_execute(&format!("SELECT agd.set_agent_context({arguments})")), sqlstate);
        assert!(error.hint().is_some(), "{arguments}");
    }
    let own = format!("SELECT agd.set_agent_context('{other}', 'writer', '[]')");
    for role in ["globex", "audit", "nobody"] {
        expect_sqlstate(stage.login(role).batch_execute(&own), "42501");
    }
    anchor(&mut superuser);
    let denied = "SELECT count(*)::text FROM agd.events WHERE action = 'DENIED' AND body::json->>'attempted' = 'SET AGENT CONTEXT'";
    // globex's, about a fleet of acme's, stands in its own log and in the platform's.
    assert_eq!(strings(&mut superuser, denied), ["14"]);
    expect_sound(&mut superuser);

    // Two at once, and one against the signature: whoever comes second sees what the first has left.
    let mut both = stage.login("ops");
    ops.batch_execute(&format!("BEGIN; SELECT agd.set_agent_context('{other}', 'writer', '[\"one\"]')")).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope
            .spawn(|| both.batch_execute(&format!("SELECT agd.set_agent_context('{other}', 'engineer', '[\"two\"]')")));
        std::thread::sleep(Duration::from_millis(100));
        ops.batch_execute("COMMIT").unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(false_checks(&mut superuser), [""; 0]);
    ops.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").unwrap();
    acme.batch_execute(&own).unwrap();
    expect_sqlstate(ops.batch_execute(&format!("SELECT agd.set_agent_context('{other}', 'engineer', '[]')")), "40001");
    ops.batch_execute("ROLLBACK").unwrap();
    sign(&mut ops, &other).unwrap();
    countersign(&mut ops, &[&other]).unwrap();
    expect_sound(&mut superuser);

    // Past every trigger: what was signed is not what they are told.
    let mut tamperer = stage.database.tamperer().unwrap();
    tamperer.batch_execute("UPDATE agd.fleet_agent SET goals = '[\"whatever\"]' WHERE role = 'writer'").unwrap();
    tamperer.commit().unwrap();
    let problems = false_checks(&mut superuser);
    assert!(problems.iter().any(|problem| problem.starts_with(&format!("{other} context: "))), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.starts_with(&format!("{other} coordinator: "))), "{problems:?}");
}

const ANCHORS: &str =
    "SELECT concat_ws(' ', tree_size, final_by) FROM agd.anchors WHERE tenant = '{}' ORDER BY tree_size";

fn anchors(client: &mut Client, tenant: &str) -> Vec<String> {
    strings(client, &ANCHORS.replace("{}", tenant))
}

#[test]
fn the_end_of_the_last_fleet_closes_the_log() {
    let stage = Stage::new(cluster(), "story_close");
    let (mut ops, mut superuser) = (stage.login("ops"), stage.superuser());
    let mut globex = stage.login("globex");
    let active = |ops: &mut Client, cause: &str| {
        let fleet = mint(ops, "acme", cause).unwrap();
        sign(ops, &fleet).unwrap();
        countersign(ops, &[&fleet]).unwrap();
        fleet
    };
    let (first, last) = (active(&mut ops, "first"), active(&mut ops, "last"));
    let pending = mint(&mut ops, "acme", "pending").unwrap();
    let theirs = mint(&mut globex, "globex", "theirs").unwrap();
    // While another is active or pending, nothing is closed.
    seal(&mut ops, &first).unwrap();
    seal(&mut ops, &last).unwrap();
    assert_eq!(anchors(&mut superuser, "acme"), [""; 0]);
    // Rolled back: neither.
    ops.batch_execute(&format!("BEGIN; SELECT agd.seal_tenant_fleet('{pending}', 'no'); ROLLBACK")).unwrap();
    seal(&mut ops, &pending).unwrap();
    // Nobody asks for an anchor, and tails are an hour from theirs: it is the event that closes the log which is anchored.
    eventually("the log is closed", SOON, || !anchors(&mut superuser, "acme").is_empty());
    let closed = anchors(&mut superuser, "acme");
    let told = "SELECT concat_ws(' ', leaf_index + 1, event_id) FROM agd.events WHERE action = 'LOG.CLOSE' AND tenant = 'acme' ORDER BY committed_at";
    assert_eq!(closed, strings(&mut superuser, told));
    assert_eq!(closed.len(), 1);
    let why = "SELECT concat_ws(' ', e.body::json->>'fleet_id', s.new->>'state') FROM agd.events e
                 JOIN agd.events s ON split_part(s.event_id, '-', 1) = split_part(e.event_id, '-', 1) AND s.relation = 'agd.tenant_agent_fleet'
                WHERE e.action = 'LOG.CLOSE' AND s.leaf_index < e.leaf_index";
    assert_eq!(strings(&mut superuser, why), [format!("{pending} cancelled")]);
    // The platform log covers it at once, too.
    let covered = format!("SELECT tree_size::text FROM agd.anchors WHERE tenant IS NULL AND tree_size >
        (SELECT leaf_index FROM agd.events WHERE action = 'CHECKPOINT' AND body LIKE '%/t/acme' || E'\\n' || '{}' || E'\\n%')", closed[0].split_once(' ').unwrap().0);
    eventually("the platform covers it", SOON, || !strings(&mut superuser, &covered).is_empty());
    // The other tenant has noticed nothing.
    assert_eq!(anchors(&mut globex, "globex"), [""; 0]);
    assert_eq!(strings(&mut globex, "SELECT state FROM agd.fleets"), ["pending"]);
    assert_eq!(strings(&mut globex, "SELECT event_id FROM agd.events WHERE action = 'LOG.CLOSE'"), [""; 0]);
    anchor(&mut superuser);
    assert_eq!(anchors(&mut superuser, "acme"), closed, "a closed log has no tail");

    // A later event opens it again; the next end closes it again.
    let again = active(&mut ops, "again");
    anchor(&mut superuser);
    let opened = anchors(&mut superuser, "acme");
    assert_eq!((opened.len(), opened[0] == closed[0], opened[1].contains(' ')), (2, true, false), "{opened:?}");
    seal(&mut ops, &again).unwrap();
    eventually("the log is closed again", SOON, || anchors(&mut superuser, "acme").len() == 3);
    assert_eq!(strings(&mut superuser, told), [closed[0].clone(), anchors(&mut superuser, "acme")[2].clone()]);
    // A fleet whose window has passed is over, whether anybody has written that down or not; what is minted in the same
    // transaction is not, and counts: the log is closed over no fleet that lives when the transaction commits.
    let missed = mint_for(&mut ops, "globex", "missed", 1.0).unwrap();
    eventually("the window passes", SOON, || state(&mut ops, &missed) == "cancelled");
    ops.batch_execute(&format!(
        "BEGIN; SELECT agd.seal_tenant_fleet('{theirs}', 'over'), agd.mint_tenant_fleet('globex', 'a new one'); COMMIT"
    ))
    .unwrap();
    anchor(&mut superuser);
    let finals = |client: &mut Client| -> Vec<bool> {
        anchors(client, "globex").iter().map(|anchor| anchor.contains(' ')).collect()
    };
    assert_eq!(finals(&mut superuser), [false, false]);
    let new: Vec<String> = strings(&mut globex, "SELECT fleet_id FROM agd.fleets WHERE state = 'pending'");
    seal(&mut ops, &new[0]).unwrap();
    eventually("the log is closed", SOON, || finals(&mut superuser) == [false, false, true]);
    // That a window was missed may be written down behind that.
    anchor(&mut superuser);
    expect_each_event_in_one_leaf(&mut superuser);
    expect_sound(&mut superuser);
    expect_verified(&mut superuser);
}

/// Of two that end a tenant's last fleets at once exactly one closes the log, and never over a fleet that is minted meanwhile.
#[test]
fn ends_at_once_close_the_log_once() {
    let stage = Stage::new(cluster(), "story_races");
    let mut superuser = stage.superuser();
    for round in 0..12 {
        let fleets: Vec<String> =
            (0..3).map(|n| mint(&mut superuser, "acme", &format!("round {round} fleet {n}")).unwrap()).collect();
        let barrier = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for fleet in &fleets {
                let (stage, barrier) = (&stage, &barrier);
                scope.spawn(move || {
                    let mut ops = stage.login("ops");
                    barrier.wait();
                    seal(&mut ops, fleet).unwrap();
                });
            }
            scope.spawn(|| {
                let mut ops = stage.login("ops");
                barrier.wait();
                if round % 2 == 1 {
                    mint(&mut ops, "acme", &format!("round {round} late")).unwrap();
                }
            });
        });
        if round % 2 == 1 {
            let late = strings(&mut superuser, "SELECT fleet_id FROM agd.fleets WHERE state = 'pending'");
            assert_eq!(late.len(), 1);
            seal(&mut superuser, &late[0]).unwrap();
        }
        anchor(&mut superuser);
        // Whenever the log is closed no fleet is live; and it is closed now.
        let live = strings(
            &mut superuser,
            "SELECT e.event_id FROM agd.events e WHERE e.action = 'LOG.CLOSE' AND e.tenant = 'acme' AND (
               SELECT count(*) FILTER (WHERE f.action = 'INSERT') - count(*) FILTER (WHERE f.new->>'state' IN ('sealed', 'cancelled'))
                 FROM agd.events f WHERE f.tenant = 'acme' AND f.relation = 'agd.tenant_agent_fleet' AND f.leaf_index < e.leaf_index) <> 0",
        );
        assert_eq!(live, [""; 0], "round {round}");
        let closed = strings(
            &mut superuser,
            "SELECT (final_by IS NOT NULL)::text FROM agd.anchors WHERE tenant = 'acme' ORDER BY tree_size DESC LIMIT 1",
        );
        assert_eq!(closed, ["true"], "round {round}");
    }
    expect_verified(&mut superuser);
    // Which anchor is final, the events say.
    let newest = "log_id = (SELECT log_id FROM agd.log WHERE tenant = 'acme') AND tree_size = (SELECT size FROM agd.log WHERE tenant = 'acme')";
    for (set, says) in [("NULL", ", and does not say so"), ("'1-0'", ", and does not say so")] {
        let mut tamperer = stage.database.tamperer().unwrap();
        let sql = format!("UPDATE agd.checkpoint SET final_by = {set} WHERE {newest}");
        assert_eq!(tamperer.execute(&sql, &[]).unwrap(), 1, "{sql}");
        tamperer.commit().unwrap();
        let found = strings(
            &mut superuser,
            "SELECT detail FROM agd.verify(full_scan => true) WHERE NOT ok AND check_name = 'anchors' AND origin LIKE '%/t/acme'",
        );
        assert!(found.len() == 1 && found[0].ends_with(says), "{sql}: {found:?}");
    }
}

/// A folder with a key and a store, removed at its end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn agd(&self, arguments: &[&str]) -> (Option<i32>, String) {
        answer(command_line::agd().args(arguments).current_dir(&self.0))
    }
}

/// Every kind of fleet, its life and the log's end, from files alone.
#[test]
fn fleets_are_verified_from_files_alone() {
    let stage = Stage::new(cluster(), "story_files");
    let (mut ops, mut superuser) = (stage.login("ops"), stage.superuser());
    superuser
        .execute(
            "SELECT agd.create_template('research', '{\"reader\": {\"goals\": \"reads\"}, \"writer\": {\"memory_scope\": {\"n\": 1}}}')",
            &[],
        )
        .unwrap();
    let sealed = mint(&mut ops, "acme", "cafe\u{301}\n\tsealed").unwrap();
    ops.execute("SELECT agd.set_agent_context($1, 'writer', '{\"b\": null, \"aa\": [1.0, \"\\u0022\"]}')", &[&sealed])
        .unwrap();
    let active: String =
        ops.query_one("SELECT agd.mint_tenant_fleet('globex', 'active', 'research')", &[]).unwrap().get(0);
    let pending = mint(&mut ops, "globex", "pending").unwrap();
    let missed = mint_for(&mut ops, "globex", "missed", 1.0).unwrap();
    for fleet in [&sealed, &active, &pending] {
        sign(&mut ops, fleet).unwrap();
    }
    countersign(&mut ops, &[&active, &sealed]).unwrap();
    seal(&mut ops, &sealed).unwrap();
    let second = mint(&mut ops, "acme", "cafe\u{301}\n\tsealed").unwrap();
    seal(&mut ops, &second).unwrap();
    ops.batch_execute("SELECT agd.revoke_signer('River', 'has left')").unwrap();
    eventually("the worker sweeps", SOON, || {
        strings(&mut superuser, "SELECT fleet_id FROM agd.fleet_pending_cancel WHERE overdue").is_empty()
    });
    let folder = Folder(std::env::temp_dir().join(format!("agd-story-{}", std::process::id())));
    std::fs::create_dir_all(folder.0.join("store")).unwrap();
    let name = strings(&mut superuser, "SELECT origin FROM agd.log WHERE tenant IS NULL").remove(0);
    let (code, vkey) = folder.agd(&["keygen", "--name", &name, "--out", "log.key"]);
    assert_eq!(code, Some(0), "{vkey}");
    std::fs::write(folder.0.join("policy.txt"), format!("log {vkey}quorum none\n")).unwrap();
    publishing::register_vkey(&mut superuser, &vkey);
    anchor(&mut superuser);
    let url = |role: &str| {
        format!("host={} user={role} dbname={}", stage.cluster().socket_dir().display(), stage.database.name())
    };
    let (code, said) =
        folder.agd(&["publish", "--once", "--store", "store", "--key", "log.key", "--database", &url("postgres")]);
    assert_eq!(code, Some(0), "{said}");
    let check = |role: &str, dump: &str| -> (Option<i32>, serde_json::Value, String) {
        let (code, said) = folder.agd(&["export", "--database", &url(role), "--out", dump]);
        assert_eq!(code, Some(0), "{said}");
        let verify = ["verify", "store", "--policy", "policy.txt", "--events", dump];
        let (_, text) = folder.agd(&verify);
        let (code, said) = folder.agd(&[&verify[..], &["--json"]].concat());
        (code, serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}")), text)
    };
    let (code, verdict, text) = check("postgres", "all.jsonl");
    assert_eq!(code, Some(0), "{text}");
    let fleets: Vec<(String, String, bool)> = verdict["events"]["fleets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fleet| {
            let text = |name: &str| fleet[name].as_str().unwrap().to_owned();
            (text("fleet_id"), text("state"), fleet["ok"].as_bool().unwrap())
        })
        .collect();
    for (fleet, state) in [
        (&sealed, "sealed"),
        (&second, "cancelled"),
        (&active, "active"),
        (&pending, "pending"),
        (&missed, "cancelled"),
    ] {
        assert!(fleets.contains(&(fleet.clone(), state.to_owned(), true)), "{fleet} {state}: {fleets:?}");
    }
    assert_eq!(fleets.len(), 5);
    let checks = &verdict["events"]["fleets"][0]["checks"];
    assert_eq!(checks.as_array().unwrap().len(), 8, "{checks}");
    assert_eq!(verdict["events"]["fleets_left_out"].as_array().unwrap().len(), 0, "{text}");
    assert!(text.contains("fleets       5 hold: 1 active, 2 cancelled, 1 pending, 1 sealed"), "{text}");
    // That acme's log is closed, its last entry says, without a dump.
    let closed: Vec<&str> = verdict["logs"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|log| log["closed"] == true)
        .map(|log| log["tenant"].as_str().unwrap())
        .collect();
    assert_eq!(closed, ["acme"]);
    assert!(text.contains("  closed       by its last entry: the tenant's last fleet has ended\n"), "{text}");

    // A tenant has its own: all but the signers' keys.
    let (code, verdict, text) = check(&stage.role("globex"), "globex.jsonl");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(verdict["events"]["fleets"].as_array().unwrap().len(), 3);
    assert!(text.contains("left out     signatures under fleets of tenant globex"), "{text}");
    // The auditor has none of it: digests alone.
    let (code, verdict, text) = check(&stage.role("audit"), "audit.jsonl");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(verdict["events"]["fleets"].as_array().unwrap().len(), 0);
    assert!(text.contains("their row images are not in the dump"), "{text}");
    expect_verified(&mut superuser);
}
