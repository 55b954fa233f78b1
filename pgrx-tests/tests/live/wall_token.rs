//! Tokens: what binds, what does not, and what each refusal leaves behind.

use agd_core::token::Claims;
use agd_live_tests::record::anchor;
use agd_live_tests::token::{Issuer, now, wait_for_tokens};
use agd_live_tests::wall::{By, Wall, column, run};
use agd_live_tests::{Cluster, Stop, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use postgres::error::{DbError, SqlState};
use std::sync::{Barrier, OnceLock};
use std::time::Duration;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().setting("log_statement", "none").start().unwrap())
}

fn bind(client: &mut Client, token: &str) -> Result<String, postgres::Error> {
    client.query_one("SELECT agd.bind($1)", &[&token]).map(|row| row.get(0))
}

#[track_caller]
fn refused(client: &mut Client, token: &str) -> DbError {
    let error = expect_sqlstate(bind(client, token), "AG004");
    assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error:?}");
    error
}

/// What is recorded of refused attempts, oldest first. Integrates first, so that what was refused before is in it.
fn told(client: &mut Client) -> Vec<String> {
    anchor(client);
    column(
        client,
        "SELECT concat_ws(' ', coalesce(tenant, '-'), b->>'attempted', b->>'sqlstate', b->>'session_user_name', coalesce(b->>'bound_tenant', '-')) || ': ' || (b->>'message')
           FROM agd.events, LATERAL (SELECT body::json) AS j(b)
          WHERE action = 'DENIED' ORDER BY b->>'at', split_part(event_id, '-', 1)::bigint, split_part(event_id, '-', 2)::int",
    )
}

#[test]
fn what_is_not_just_so_does_not_bind() {
    let wall = Wall::new(cluster(), "strict", "");
    let mut superuser = wall.superuser();
    let issuer = wall.issuer("acme");
    let mut app = wall.login("app");
    let good = issuer.claims("strict_app", "writer-1");
    let with = |change: &dyn Fn(&mut Claims)| {
        let mut claims = Claims { token_id: format!("{:032x}", fastrand::u128(..)), ..good.clone() };
        change(&mut claims);
        issuer.sign(&claims)
    };
    let right = with(&|_| ());
    let (header, rest) = right.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let stranger = Issuer::unknown(&mut superuser, "acme", "strict-nobodys", &[9; 32]);
    let forger = Issuer::unknown(&mut superuser, "acme", "strict-0", &[9; 32]);
    // The key of one tenant, the claims of another.
    let other = Claims { tenant: "globex".into(), ..good.clone() };
    let cases: Vec<(&str, String, &str)> = vec![
        ("another audience", with(&|claims| claims.audience += "x"), "audience"),
        ("an incarnation", with(&|claims| claims.audience += "/i2"), "audience"),
        ("another login role", with(&|claims| claims.role = "strict_agent".into()), "login role"),
        ("a longer name", with(&|claims| claims.role += "x"), "login role"),
        ("expired", with(&|claims| (claims.issued_at, claims.expires_at) = (now() - 1, now())), ""),
        ("not yet valid", with(&|claims| claims.not_before = Some(now() + 20)), "not valid yet"),
        ("from the future", with(&|claims| claims.issued_at = now() + 20), "not valid yet"),
        ("from before the server", with(&|claims| claims.issued_at = now() - 1000), "remember"),
        ("no fleet of its own", with(&|claims| claims.fleet = Some("9f86d081884c7d65".into())), "fleet of its tenant"),
        ("of another tenant", issuer.sign(&other), "another tenant"),
        ("an unknown key", stranger.token("strict_app", "writer-1"), "signature does not hold"),
        ("a forged signature", forger.token("strict_app", "writer-1"), "signature does not hold"),
        ("truncated", right[..right.len() - 1].to_owned(), "base64url"),
        ("without a signature", format!("{header}.{claims}."), "signature"),
        (
            "a false signature",
            format!("{header}.{claims}.{}{}", if signature.starts_with('A') { 'B' } else { 'A' }, &signature[1..]),
            "signature",
        ),
        ("padded", format!("{right}=="), "base64url"),
        ("alg none", format!("eyJhbGciOiJub25lIiwia2lkIjoic3RyaWN0LWEifQ.{claims}."), "algorithm"),
        ("alg HS256", format!("eyJhbGciOiJIUzI1NiIsImtpZCI6InN0cmljdC1hIn0.{claims}.{signature}"), "algorithm"),
        ("nothing", String::new(), "header.claims.signature"),
        ("text", "acme".into(), "header.claims.signature"),
        ("too long", "e".repeat(5000), "4096"),
    ];
    let names: Vec<_> = cases.iter().map(|(name, ..)| *name).collect();
    for (name, token, wanted) in &cases {
        let error = refused(&mut app, token);
        assert!(error.message().contains(wanted), "{name}: {}", error.message());
        assert_eq!(column(&mut app, "SELECT agd.current_tenant()"), ["NULL"], "{name}");
    }
    expect_sqlstate(app.batch_execute("SELECT agd.bind(NULL)"), "22023");
    // Every one of these left an event, for the tenant whose key it names if that is known; none shows the token.
    let events = told(&mut superuser);
    assert_eq!(events.len(), cases.len(), "{names:?} {events:#?}");
    assert!(
        events
            .iter()
            .all(|event| event.contains(" BIND AG004 strict_app - ") || event.contains(" BIND AG004 strict_app -: ")),
        "{events:#?}"
    );
    let concerned = events.iter().filter(|event| event.starts_with("acme ")).count();
    // All that named acme's key and could be parsed.
    assert_eq!(concerned, 12, "{events:#?}");
    assert!(events.iter().any(|event| event.starts_with("- ") && event.contains("no key has the id")), "{events:#?}");
    let everything =
        column(&mut superuser, "SELECT body FROM agd.event WHERE action = 'DENIED'").join("\n") + &cluster().log();
    for (name, token, _) in &cases {
        for part in token.split('.').filter(|part| part.len() > 8) {
            assert!(!everything.contains(&part[..8.max(part.len() / 2)]) || *name == "text", "{name} is shown");
        }
    }
    // The tenant sees those that concern it, the other tenant none.
    let mut acme = wall.session(By::Role, "acme");
    assert_eq!(acme.column("SELECT count(*)::text FROM agd.events WHERE action = 'DENIED'"), ["12"]);
    let mut globex = wall.session(By::Role, "globex");
    assert_eq!(globex.column("SELECT event_id FROM agd.events WHERE action = 'DENIED'"), [""; 0]);
    // And the right one binds, once.
    assert_eq!(bind(&mut app, &right).unwrap(), "acme");
    assert!(refused(&mut app, &right).message().contains("used already"));
}

#[test]
fn a_token_binds_once_whatever_becomes_of_the_transaction() {
    let wall = Wall::new(cluster(), "once", "");
    let mut app = wall.login("app");
    for end in ["ROLLBACK", "COMMIT", "SELECT 1/0"] {
        let token = wall.token("acme");
        run(&mut app, &format!("BEGIN; SELECT agd.bind('{token}')"));
        app.batch_execute(end).ok();
        run(&mut app, "ROLLBACK");
        refused(&mut app, &token);
        refused(&mut wall.login("app"), &token);
    }
    // Bound in a savepoint that was rolled back: used as well.
    let token = wall.token("acme");
    run(&mut app, &format!("BEGIN; SAVEPOINT s; SELECT agd.bind('{token}'); ROLLBACK"));
    refused(&mut app, &token);
    // A connection that is killed, another database of the server: the same.
    let token = wall.token("acme");
    let mut killed = wall.login("app");
    run(&mut killed, &format!("BEGIN; SELECT agd.bind('{token}')"));
    let pid: i32 = killed.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    wall.superuser().execute("SELECT pg_terminate_backend($1)", &[&pid]).unwrap();
    eventually("the session is gone", Duration::from_secs(20), || {
        killed.is_closed() || killed.simple_query("").is_err()
    });
    refused(&mut app, &token);
}

/// However many try at once: one.
#[test]
fn of_many_at_once_one_binds() {
    let wall = Wall::new(cluster(), "race", "");
    const MANY: usize = 12;
    for _ in 0..5 {
        let token = wall.token("acme");
        let barrier = Barrier::new(MANY);
        let bound: usize = std::thread::scope(|scope| {
            let sessions: Vec<_> = (0..MANY)
                .map(|_| {
                    let mut client = wall.login("app");
                    let (barrier, token) = (&barrier, &token);
                    scope.spawn(move || {
                        barrier.wait();
                        usize::from(bind(&mut client, token).is_ok())
                    })
                })
                .collect();
            sessions.into_iter().map(|session| session.join().unwrap()).sum()
        });
        assert_eq!(bound, 1);
    }
}

#[test]
fn keys_are_one_tenants_and_can_be_revoked() {
    let wall = Wall::new(cluster(), "keys", "GRANT agd_platform TO {0}_owner");
    let mut superuser = wall.superuser();
    let mut app = wall.login("app");
    let second = Issuer::new(&mut superuser, "acme", "keys-second");
    assert_eq!(bind(&mut app, &second.token("keys_app", "w")).unwrap(), "acme");
    // An id and a key are given once.
    let key = second.public_key();
    let another = Issuer::unknown(&mut superuser, "acme", "x", &[9; 32]).public_key();
    for (tenant, kid, key, state) in [
        ("acme", "keys-second", &another[..], "23505"),
        ("globex", "keys-second", &another[..], "23505"),
        ("globex", "keys-third", &key[..], "23505"),
        ("acme", "keys-second", &key[..], "23505"),
        ("nosuch", "keys-third", &key[..], "22023"),
        ("acme", "", &key[..], "22023"),
        ("acme", "a b", &key[..], "22023"),
        ("acme", "keys-third", &key[..31], "22023"),
        ("acme", "keys-third", &[0; 32][..], "22023"),
        ("acme", "keys-third", &[255; 32][..], "22023"),
    ] {
        let sql = "SELECT agd.add_tenant_key($1, $2, $3)";
        expect_sqlstate(superuser.execute(sql, &[&tenant, &kid, &key]), state);
    }
    expect_sqlstate(superuser.batch_execute("SELECT agd.revoke_tenant_key('nosuch', 'x')"), "55000");
    expect_sqlstate(superuser.batch_execute("SELECT agd.revoke_tenant_key('keys-second', ' ')"), "22023");
    expect_sqlstate(wall.login("app").batch_execute("SELECT agd.revoke_tenant_key('keys-second', 'x')"), "42501");
    expect_sqlstate(wall.login("r0").batch_execute("SELECT * FROM agd.tenant_key"), "42501");

    // Revoked: no token of it binds any more, and transactions that it bound go no further.
    let token = second.token("keys_app", "w");
    second.begin(&mut app, "keys_app", "w");
    run(&mut app, "INSERT INTO plain VALUES ('acme', 70, 'before')");
    let mut reader = wall.login("app");
    second.begin(&mut reader, "keys_app", "w");
    let mut first = wall.login("app");
    wall.issuer("acme").begin(&mut first, "keys_app", "w");
    run(&mut wall.login("owner"), "SELECT agd.revoke_tenant_key('keys-second', 'a laptop was lost')");
    let error = expect_sqlstate(app.batch_execute("INSERT INTO plain VALUES ('acme', 71, 'after')"), "AG004");
    assert!(error.message().contains("revoked"), "{error:?}");
    run(&mut app, "ROLLBACK");
    expect_sqlstate(reader.batch_execute("SELECT * FROM plain"), "AG004");
    run(&mut reader, "ROLLBACK");
    run(&mut first, "INSERT INTO plain VALUES ('acme', 72, 'of another key'); COMMIT");
    let error = refused(&mut app, &token);
    // Whoever presents it is not told more than of a key that never was.
    assert!(error.message().ends_with("its signature does not hold"), "{error:?}");
    expect_sqlstate(superuser.batch_execute("SELECT agd.revoke_tenant_key('keys-second', 'again')"), "55000");
    let events = told(&mut superuser);
    assert!(events.last().unwrap().contains("a key that was revoked"), "{events:#?}");
    // Whoever decided that is on record.
    let decided = column(
        &mut superuser,
        "SELECT concat_ws(' ', action, session_user_name, new->>'kid', new->>'revoke_reason') FROM agd.events
          WHERE relation = 'agd.tenant_key' AND coalesce(new->>'kid', '') = 'keys-second' AND action <> 'DENIED' ORDER BY committed_at",
    );
    assert_eq!(decided, ["INSERT postgres keys-second", "UPDATE keys_owner keys-second a laptop was lost"]);
}

#[test]
fn a_role_binds_as_it_is_mapped() {
    let wall = Wall::new(cluster(), "modes", "");
    let cluster = wall.database.cluster();
    for role in ["modes_one", "modes_word", "modes_new"] {
        cluster.create_role(role, "IN ROLE agd_tenant").unwrap();
    }
    let mut superuser = wall.superuser();
    for (sql, state) in [
        ("SELECT agd.map_role('modes_new', 'acme', 'maybe')", "22023"),
        ("SELECT agd.map_role('modes_new', NULL)", "22023"),
        ("SELECT agd.map_role('modes_new', 'nosuch', 'token')", "22023"),
        ("SELECT agd.map_role('modes_new', 'acme', NULL)", "22023"),
        ("SELECT agd.map_role('postgres', NULL, 'token')", "22023"),
        ("SELECT agd.map_role('modes_app', 'acme', 'token')", "23505"),
        ("INSERT INTO agd.role_map VALUES ('modes_new', NULL, 'role')", "23514"),
    ] {
        expect_sqlstate(superuser.batch_execute(sql), state);
    }
    run(
        &mut superuser,
        "SELECT agd.map_role('modes_one', 'acme', 'token'), agd.map_role('modes_word', 'acme', 'asserted')",
    );
    // Limited to one tenant.
    let mut one = wall.login("one");
    let of = |tenant: &str| wall.issuer(tenant).token("modes_one", "w");
    assert_eq!(bind(&mut one, &of("acme")).unwrap(), "acme");
    let error = expect_sqlstate(bind(&mut one, &of("globex")), "42501");
    assert!(!error.message().contains("globex"), "{error:?}");
    let mut word = wall.login("word");
    run(&mut word, "SELECT agd.enter('acme')");
    expect_sqlstate(word.batch_execute("SELECT agd.enter('globex')"), "42501");
    // Whether there is such a tenant, one who may not enter it does not learn.
    let there = expect_sqlstate(word.batch_execute("SELECT agd.enter('globex')"), "42501");
    let not_there = expect_sqlstate(word.batch_execute("SELECT agd.enter('nosuch')"), "42501");
    assert_eq!((there.message(), there.hint()), (not_there.message(), not_there.hint()));
    // Who may enter any is told.
    let mut agent = wall.login("agent");
    expect_sqlstate(agent.batch_execute("SELECT agd.enter('nosuch')"), "42501");
    for principal in ["''", "E'a\\nb'", "repeat('p', 129)"] {
        expect_sqlstate(agent.batch_execute(&format!("SELECT agd.enter('acme', {principal})")), "22023");
    }
    expect_sqlstate(agent.batch_execute("SELECT agd.enter(NULL)"), "22023");
    run(&mut agent, "BEGIN; SELECT agd.enter('acme')");
    assert_eq!(column(&mut agent, "SELECT agd.current_principal()"), ["modes_agent"]);
    run(&mut agent, "COMMIT");
    // Each refusal is the platform's: none of these sessions was bound, and none may write into the log of a tenant by naming it.
    let events = told(&mut superuser);
    let brief: Vec<_> = events.iter().map(|event| event.split(':').next().unwrap()).collect();
    assert_eq!(
        brief,
        [
            "- BIND 42501 modes_one -",
            "- ENTER 42501 modes_word -",
            "- ENTER 42501 modes_word -",
            "- ENTER 42501 modes_word -",
            "- ENTER 42501 modes_agent -",
            "- ENTER 22023 modes_agent -",
            "- ENTER 22023 modes_agent -",
            "- ENTER 22023 modes_agent -",
        ]
    );
    assert!(!events.iter().any(|event| event.contains("nosuch")), "{events:#?}");
}

/// A server that was restarted, or that recovered from a crash, does not know what was used before: it takes nothing that
/// was issued before.
#[test]
fn what_was_used_before_a_restart_is_not_used_again() {
    let cluster: &'static Cluster = Box::leak(Box::new(Cluster::builder().start().unwrap()));
    let wall = Wall::new(cluster, "restart", "");
    for crash in [false, true] {
        let (used, kept) = (wall.token("acme"), wall.token("acme"));
        assert_eq!(bind(&mut wall.login("app"), &used).unwrap(), "acme");
        // Dated as late as can be: the restart has to come later than that.
        std::thread::sleep(Duration::from_millis(if crash { 0 } else { 2100 }));
        if crash {
            let mut victim = wall.login("app");
            let pid: i32 = victim.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
            cluster.kill_backend9(pid).unwrap();
        } else {
            cluster.restart().unwrap();
        }
        let mut app = wall.login("app");
        // The server takes sessions a moment before agd's launcher notes since when: until then it takes no token at all.
        eventually("agd's launcher has started", Duration::from_secs(20), || {
            bind(&mut app, &used).unwrap_err().code() != Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
        });
        for token in [&used, &kept] {
            let error = refused(&mut app, token);
            assert!(error.message().contains("began to remember"), "{error:?}");
            expect_hint(&error, "issue a new one");
        }
        let mut superuser = wall.superuser();
        wait_for_tokens(&mut superuser);
        eventually("a new token binds", Duration::from_secs(20), || bind(&mut app, &wall.token("acme")).is_ok());
        refused(&mut app, &used);
    }
}

/// A standby remembers for itself, and lets read. What may have been used there or on the primary is not taken once it is one.
#[test]
fn a_standby_lets_read_and_a_promoted_one_begins_anew() {
    let primary: &'static Cluster = Box::leak(Box::new(Cluster::builder().start().unwrap()));
    let wall = Wall::new(primary, "nodes", "");
    let standby = primary.standby().unwrap();
    let mut reader = standby.client("nodes_app", wall.database.name()).unwrap();
    wait_for_tokens(&mut standby.superuser().unwrap());
    let token = wall.token("acme");
    bind(&mut wall.login("app"), &token).unwrap();
    run(&mut reader, &format!("BEGIN; SELECT agd.bind('{token}')"));
    assert_eq!(column(&mut reader, "SELECT DISTINCT tenant FROM plain"), ["acme"]);
    expect_sqlstate(reader.batch_execute("INSERT INTO plain VALUES ('acme', 1000, 'x')"), "25006");
    run(&mut reader, "ROLLBACK");
    assert!(refused(&mut reader, &token).message().contains("used already"));
    let unused = wall.token("acme");
    // Dated as late as can be: the promotion has to come later than that.
    std::thread::sleep(Duration::from_millis(2100));
    primary.stop(Stop::Fast).unwrap();
    standby.promote().unwrap();
    for token in [&token, &unused] {
        eventually("promoted", Duration::from_secs(20), || {
            bind(&mut reader, token).unwrap_err().as_db_error().unwrap().message().contains("began to remember")
        });
    }
    eventually("a new token binds", Duration::from_secs(20), || bind(&mut reader, &wall.token("acme")).is_ok());
    run(
        &mut reader,
        &format!(
            "BEGIN; SELECT agd.bind('{}'); INSERT INTO plain VALUES ('acme', 1000, 'x'); COMMIT",
            wall.token("acme")
        ),
    );
}

/// Full is refused, not forgotten; there is room again when tokens have expired; and other tenants notice nothing.
#[test]
fn when_no_more_can_be_remembered_none_is_accepted() {
    const PLACES: usize = 4096;
    let cluster: &'static Cluster =
        Box::leak(Box::new(Cluster::builder().setting("agd.max_live_tokens", &PLACES.to_string()).start().unwrap()));
    let wall = Wall::new(cluster, "full", "");
    let mut app = wall.login("app");
    let issuer = wall.issuer("acme");
    let end = now() + 30;
    let token = || {
        let mut claims = issuer.claims("full_app", "w");
        claims.expires_at = end;
        issuer.sign(&claims)
    };
    let first = token();
    bind(&mut app, &first).unwrap();
    let (mut accepted, mut refusals) = (1, 0);
    // A token may stand in some places only: full is when none finds one any more.
    let error = loop {
        match bind(&mut app, &token()) {
            Ok(_) => (accepted, refusals) = (accepted + 1, 0),
            Err(error) => {
                refusals += 1;
                if refusals == 100 {
                    break error;
                }
            }
        }
    };
    let most = PLACES / 4;
    assert!((most * 9 / 10..=most).contains(&accepted), "{accepted}");
    let error = expect_sqlstate(Err::<(), _>(error), "53400");
    expect_hint(&error, "agd.max_live_tokens");
    refused(&mut app, &first);
    for number in 0..100 {
        bind(&mut app, &wall.token("globex")).unwrap_or_else(|error| panic!("globex, {number}: {error:?}"));
    }
    assert!(now() < end, "acme's tokens are still remembered");
    eventually("room again", Duration::from_secs(60), || bind(&mut app, &wall.token("acme")).is_ok());
    assert!(now() >= end, "only when they have expired");
}

/// A stricter limit than the format's own.
#[test]
fn the_server_may_ask_for_shorter_tokens() {
    let wall = Wall::new(cluster(), "shorter", "");
    let mut app = wall.login("app");
    let issuer = wall.issuer("acme");
    let lives = |seconds: u64| {
        let mut claims = issuer.claims("shorter_app", "w");
        (claims.issued_at, claims.expires_at) = (now() + 1, now() + 1 + seconds);
        issuer.sign(&claims)
    };
    bind(&mut app, &lives(3600)).unwrap();
    expect_sqlstate(app.batch_execute("SET agd.token_max_lifetime = '2h'"), "55P02");
    let mut superuser = wall.superuser();
    run(&mut superuser, "ALTER SYSTEM SET agd.token_max_lifetime = '90s'");
    run(&mut superuser, "SELECT pg_reload_conf()");
    eventually("the setting is read", Duration::from_secs(20), || {
        column(&mut app, "SHOW agd.token_max_lifetime") == ["90s"]
    });
    assert!(refused(&mut app, &lives(91)).message().contains("lifetime"));
    bind(&mut app, &lives(90)).unwrap();
    run(&mut superuser, "ALTER SYSTEM RESET agd.token_max_lifetime");
    run(&mut superuser, "SELECT pg_reload_conf()");
}
