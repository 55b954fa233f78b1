//! A binding is for one transaction, stands to its end, and nothing that SQL can do makes it another's.

use agd_core::token::Claims;
use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::token::now;
use agd_live_tests::wall::{By, Wall, column, run};
use agd_live_tests::{Cluster, FORCE_PARALLEL, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().setting("max_prepared_transactions", "5").start().unwrap())
}

const WHO: &str = "SELECT concat_ws(' ', agd.current_tenant(), agd.current_principal())";

#[track_caller]
fn expect_unbound(client: &mut Client, after: &str) {
    assert_eq!(column(client, WHO), [""], "bound after {after}");
    assert_eq!(column(client, "SELECT tenant FROM plain"), [""; 0], "rows after {after}");
}

#[test]
fn it_ends_with_the_transaction() {
    let wall = Wall::new(
        cluster(),
        "ends",
        "CREATE PROCEDURE commits(OUT seen text) LANGUAGE plpgsql AS $$ BEGIN COMMIT; seen := coalesce(agd.current_tenant(), 'nobody'); END $$",
    );
    for by in [By::Token, By::Asserted] {
        let mut session = wall.session(by, "acme");
        for end in [
            "COMMIT",
            "ROLLBACK",
            "COMMIT AND CHAIN",
            "ROLLBACK AND CHAIN",
            "PREPARE TRANSACTION 'ends'",
            "DO $$ BEGIN COMMIT; END $$",
        ] {
            // A procedure that commits needs a transaction of its own.
            if end.starts_with("DO") {
                let binding = session.binding().replace('\'', "''");
                run(&mut session, "ROLLBACK");
                run(&mut session, &format!("DO $$ BEGIN EXECUTE '{binding}'; COMMIT; END $$"));
                expect_unbound(&mut session, end);
                continue;
            }
            session.begin();
            assert_eq!(column(&mut session, WHO), ["acme writer-1"]);
            run(&mut session, "INSERT INTO plain VALUES ('acme', 100, 'x'); DELETE FROM plain WHERE id = 100");
            run(&mut session, end);
            expect_unbound(&mut session, end);
            run(&mut session, "ROLLBACK");
            if end.starts_with("PREPARE") {
                run(&mut session, "ROLLBACK PREPARED 'ends'");
            }
        }
        // An error ends the transaction, and what it was bound to.
        session.begin();
        expect_sqlstate(session.batch_execute("SELECT 1/0"), "22012");
        run(&mut session, "ROLLBACK");
        expect_unbound(&mut session, "an error");
        // Without BEGIN, the statement is the transaction.
        let binding = session.binding();
        run(&mut session, &binding);
        expect_unbound(&mut session, "a statement of its own");
    }
    let mut superuser = wall.superuser();
    let bindings = column(
        &mut superuser,
        "SELECT DISTINCT concat_ws(' ', session_user_name, principal, binding) FROM agd.events WHERE action = 'INSERT' AND relation = 'public.plain' AND binding <> 'bypass' ORDER BY 1",
    );
    assert_eq!(bindings, ["ends_agent writer-1 asserted", "ends_app writer-1 token"]);
    anchor(&mut superuser);
    expect_verified(&mut superuser);
}

#[test]
fn it_cannot_be_changed_while_it_stands() {
    let wall = Wall::new(cluster(), "stands", "");
    let mut app = wall.login("app");
    let token = wall.token("acme");
    run(&mut app, &format!("BEGIN; SELECT agd.bind('{token}')"));
    // The same again is the same.
    assert_eq!(column(&mut app, &format!("SELECT agd.bind('{token}')")), ["acme"]);
    for (sql, state) in [
        (format!("SELECT agd.bind('{}')", wall.token("globex")), "42501"),
        (format!("SELECT agd.bind('{}')", wall.token("acme")), "42501"),
        ("SELECT agd.enter('globex')".to_owned(), "42501"),
        ("SELECT agd.enter('acme', 'writer-1')".to_owned(), "42501"),
    ] {
        run(&mut app, "SAVEPOINT s");
        expect_sqlstate(app.batch_execute(&sql), state);
        run(&mut app, "ROLLBACK TO s");
        assert_eq!(column(&mut app, WHO), ["acme writer-1"], "{sql}");
    }
    // Nor by anything that can be set.
    for sql in [
        "SELECT set_config('agd.tenant', 'globex', false)",
        "SELECT set_config('agd.current_tenant', 'globex', true)",
        "SET agd.tenant = 'globex'",
    ] {
        run(&mut app, "SAVEPOINT s");
        expect_sqlstate(app.batch_execute(sql), "42602");
        run(&mut app, "ROLLBACK TO s");
    }
    run(&mut app, "RESET ROLE; RESET ALL; SET LOCAL application_name = 'globex'; SET LOCAL search_path = pg_temp");
    assert_eq!(column(&mut app, WHO), ["acme writer-1"]);
    run(&mut app, "COMMIT");
    run(&mut app, "DISCARD ALL");
    expect_unbound(&mut app, "DISCARD ALL");

    let mut agent = wall.login("agent");
    run(&mut agent, "BEGIN; SELECT agd.enter('acme', 'a'), agd.enter('acme', 'a')");
    for sql in ["SELECT agd.enter('globex', 'a')", "SELECT agd.enter('acme', 'b')", "SELECT agd.enter('acme')"] {
        run(&mut agent, "SAVEPOINT s");
        expect_sqlstate(agent.batch_execute(sql), "42501");
        run(&mut agent, "ROLLBACK TO s");
    }
    assert_eq!(column(&mut agent, WHO), ["acme a"]);
    run(&mut agent, "COMMIT");
}

/// Bound inside a savepoint that is rolled back: the transaction is nobody's any more, and says so.
#[test]
fn a_binding_that_is_rolled_back_closes_the_transaction() {
    let wall = Wall::new(
        cluster(),
        "poison",
        "CREATE TABLE untenanted (id int PRIMARY KEY); SELECT agd.guard('untenanted'); GRANT ALL ON untenanted TO PUBLIC",
    );
    for by in [By::Token, By::Asserted] {
        let mut session = wall.session(by, "acme");
        // A token binds once: each time another.
        let caught = |binding: &str| {
            let call = binding.trim_start_matches("SELECT ");
            format!("DO $$ BEGIN PERFORM {call}; RAISE 'undone'; EXCEPTION WHEN raise_exception THEN NULL; END $$")
        };
        let saved = |binding: &str| format!("SAVEPOINT s; {binding}; ROLLBACK TO s");
        let inner = |binding: &str| format!("SAVEPOINT s; SAVEPOINT t; {binding}; RELEASE t; ROLLBACK TO s");
        for way in [&caught as &dyn Fn(&str) -> String, &saved, &inner] {
            for sql in [
                "SELECT * FROM plain",
                "SELECT agd.current_tenant()",
                "SELECT agd.current_principal()",
                "SELECT * FROM agd.events",
                "INSERT INTO plain VALUES ('acme', 9, 'x')",
                "INSERT INTO untenanted VALUES (1)",
                "SELECT plain_put('acme', 9)",
                "SELECT agd.enter('acme', 'writer-1')",
            ] {
                let lost = format!("ROLLBACK; BEGIN; {}", way(&session.binding()));
                run(&mut session, &lost);
                let error = expect_sqlstate(session.batch_execute(sql), "55000");
                expect_hint(&error, "ROLLBACK");
            }
            let lost = format!("ROLLBACK; BEGIN; {}", way(&session.binding()));
            run(&mut session, &lost);
            let again = format!("{};", session.binding());
            expect_sqlstate(session.batch_execute(&again), "55000");
            run(&mut session, "ROLLBACK");
            expect_unbound(&mut session, "a rolled-back binding");
        }
        // Rolled back to a savepoint behind it, it stands; released into the transaction, it stands.
        session.begin();
        run(
            &mut session,
            "SAVEPOINT s; INSERT INTO plain VALUES ('acme', 9, 'x'); ROLLBACK TO s; INSERT INTO plain VALUES ('acme', 10, 'x')",
        );
        run(&mut session, "DELETE FROM plain WHERE id = 10; COMMIT");
        let released = format!("BEGIN; SAVEPOINT s; {}; RELEASE s; SAVEPOINT t; ROLLBACK TO t", session.binding());
        run(&mut session, &released);
        assert_eq!(column(&mut session, WHO), ["acme writer-1"]);
        run(&mut session, "COMMIT");
    }
}

#[test]
fn it_comes_before_anything_is_recorded() {
    let wall = Wall::new(
        cluster(),
        "first",
        "CREATE TABLE untenanted (id int PRIMARY KEY); SELECT agd.guard('untenanted'); GRANT ALL ON untenanted TO PUBLIC",
    );
    for by in [By::Token, By::Asserted] {
        let mut session = wall.session(by, "acme");
        run(&mut session, "BEGIN; INSERT INTO untenanted VALUES (1)");
        let binding = session.binding();
        let error = expect_sqlstate(session.batch_execute(&binding), "55000");
        expect_hint(&error, "beginning");
        run(&mut session, "ROLLBACK");
        // In the middle of a statement: what was read before is nobody's, what is read after is the tenant's, and never
        // another's.
        let call = binding.trim_start_matches("SELECT ").to_owned();
        let call = if by == By::Token { format!("agd.bind('{}')", wall.token("acme")) } else { call };
        let seen = column(
            &mut session,
            &format!(
                "WITH b AS MATERIALIZED (SELECT {call} AS t) SELECT coalesce(p.tenant, '-') FROM b LEFT JOIN plain p ON true WHERE b.t IS NOT NULL"
            ),
        );
        assert!(seen.iter().all(|tenant| tenant == "acme" || tenant == "-"), "{seen:?}");
        expect_unbound(&mut session, "a statement that bound");
    }
}

/// Whose sessions serve one tenant after the other leave no rows behind.
#[test]
fn nothing_that_holds_rows_outlives_it() {
    let wall = Wall::new(cluster(), "leftover", "");
    for by in [By::Token, By::Asserted] {
        let mut session = wall.session(by, "acme");
        // Cursors end with the transaction, and those that would not are refused, before and after binding.
        session.within("DECLARE c CURSOR FOR SELECT * FROM plain").unwrap();
        expect_sqlstate(session.batch_execute("FETCH ALL FROM c"), "34000");
        for sql in [
            "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM plain",
            "DO $$ BEGIN EXECUTE 'DECLARE c CURSOR WITH HOLD FOR SELECT * FROM plain'; END $$",
        ] {
            let error = expect_sqlstate(session.within(sql), "0A000");
            expect_hint(&error, "Fetch");
            run(&mut session, "ROLLBACK");
            expect_sqlstate(session.batch_execute(sql), "0A000");
        }
        let before = format!("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM plain; {}", session.binding());
        expect_sqlstate(session.batch_execute(&before), "0A000");
        run(&mut session, "ROLLBACK");

        // Temporary tables, in each of the ways to make one, are gone at the commit.
        for make in [
            "CREATE TEMP TABLE kept AS SELECT * FROM plain",
            "SELECT * INTO TEMP kept FROM plain",
            "SET LOCAL search_path = pg_temp, public; CREATE TABLE kept AS SELECT * FROM public.plain",
            "CREATE TABLE pg_temp.kept AS SELECT * FROM plain",
            "CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM plain",
            "CREATE TEMP TABLE kept ON COMMIT DELETE ROWS AS SELECT * FROM plain",
            "CREATE TEMP TABLE p (LIKE plain) PARTITION BY LIST (tenant); CREATE TEMP TABLE kept PARTITION OF p DEFAULT; INSERT INTO p SELECT * FROM plain",
            "CREATE TEMP VIEW kept AS SELECT * FROM plain",
        ] {
            session.within(&format!("{make}; SELECT * FROM kept")).unwrap();
            expect_sqlstate(session.batch_execute("SELECT * FROM pg_temp.kept"), "42P01");
        }
        // Made before the binding, in a transaction of its own: gone before the next.
        run(&mut session, "CREATE TEMP TABLE plain (tenant text, id int, v text)");
        assert_eq!(
            session.column("SELECT DISTINCT tenant FROM plain"),
            ["acme"],
            "the table itself, nothing in front of it"
        );
        let left = column(&mut session, "SELECT relname::text FROM pg_class WHERE relpersistence = 't'");
        assert_eq!(left, [""; 0]);
    }
    // A login role that is one tenant's may keep what it likes, and so may everybody else.
    let mut role = wall.session(By::Role, "acme");
    role.within("CREATE TEMP TABLE kept AS SELECT * FROM plain; DECLARE c CURSOR WITH HOLD FOR TABLE plain").unwrap();
    assert_eq!(column(&mut role, "SELECT count(*)::text FROM kept"), ["3"]);
    run(&mut role, "FETCH ALL FROM c");
    let mut superuser = wall.superuser();
    run(&mut superuser, "CREATE TEMP TABLE kept (a int); INSERT INTO kept VALUES (1); TABLE kept; DROP TABLE kept");
}

/// A token that ends in the middle of a transaction ends it at the next statement; but what was done while it stood may be
/// committed when it does not.
#[test]
fn it_ends_with_its_token() {
    let wall = Wall::new(cluster(), "expires", "");
    let issuer = wall.issuer("acme");
    let end = now() + 8;
    let mut sessions: Vec<_> = (50..54)
        .map(|id| {
            let token = issuer.sign(&Claims { expires_at: end, ..issuer.claims("expires_app", "writer-1") });
            let mut app = wall.login("app");
            run(&mut app, &format!("BEGIN; SELECT agd.bind('{token}'); INSERT INTO plain VALUES ('acme', {id}, 'x')"));
            app
        })
        .collect();
    assert!(now() < end, "all of that took less than seven seconds");
    std::thread::sleep(Duration::from_secs(end - now()) + Duration::from_millis(100));
    let mut app = sessions.pop().unwrap();
    run(&mut app, "COMMIT");
    for (app, sql) in sessions.iter_mut().zip([
        "SELECT * FROM plain",
        "INSERT INTO plain VALUES ('acme', 61, 'x')",
        "SELECT plain_put('acme', 61)",
    ]) {
        let error = expect_sqlstate(app.batch_execute(sql), "AG004");
        assert!(error.message().contains("expired"), "{error:?}");
        run(app, "ROLLBACK");
    }
    let told = column(
        &mut wall.superuser(),
        "SELECT concat_ws(' ', row_key->>'id', principal, binding) FROM agd.events WHERE row_key->>'id' IN ('50', '51', '52', '53', '61')",
    );
    assert_eq!(told, ["53 writer-1 token"]);
}

/// A parallel worker has no binding of its own: it reads its leader's.
#[test]
fn parallel_workers_see_it() {
    let wall = Wall::new(
        cluster(),
        "workers",
        "INSERT INTO plain SELECT t, i, 'more' FROM unnest('{acme,globex}'::text[]) t, generate_series(10, 4000) i; ANALYZE plain",
    );
    let settings = format!("{FORCE_PARALLEL}; SET parallel_leader_participation = off");
    for by in By::ALL {
        for tenant in ["acme", "globex"] {
            let mut session = wall.session(by, tenant);
            run(&mut session, &settings);
            let query =
                "SELECT DISTINCT concat_ws(' ', agd.current_tenant(), agd.current_principal(), tenant) FROM plain";
            let plan = session.column(&format!("EXPLAIN (COSTS off) {query}")).join("\n");
            assert!(plan.contains("Gather"), "{plan}");
            let principal =
                if by == By::Role { format!("workers_{}", wall.role(by, tenant)) } else { "writer-1".into() };
            assert_eq!(session.column(query), [format!("{tenant} {principal} {tenant}")], "{by:?}");
            let bare = session.column("SELECT DISTINCT agd.current_tenant() FROM generate_series(1, 10)");
            assert_eq!(bare, [tenant], "{by:?}");
            if by != By::Role {
                run(&mut session, "ROLLBACK");
                expect_unbound(&mut session, "a parallel query");
                // Rolled back with a savepoint: the workers are told as well.
                let lost = format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s", session.binding());
                run(&mut session, &lost);
                expect_sqlstate(session.batch_execute(query), "55000");
                run(&mut session, "ROLLBACK");
            }
        }
    }
    // By turns in one session, and two sessions at once: nobody meets another's.
    let (mut one, mut two) = (wall.session(By::Asserted, "acme"), wall.session(By::Asserted, "globex"));
    run(&mut one, &settings);
    run(&mut two, &settings);
    one.begin();
    two.begin();
    for _ in 0..5 {
        assert_eq!(column(&mut one, "SELECT DISTINCT agd.current_tenant() || tenant FROM plain"), ["acmeacme"]);
        assert_eq!(column(&mut two, "SELECT DISTINCT agd.current_tenant() || tenant FROM plain"), ["globexglobex"]);
    }
}

/// Who acts is the login role, whatever role it takes on; a binding is for one of them.
#[test]
fn it_is_for_one_session_user() {
    let wall = Wall::new(
        cluster(),
        "users",
        "GRANT {0}_owner TO {0}_app;
         CREATE FUNCTION who() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT agd.current_tenant() $$;
         CREATE FUNCTION binds(t text) RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT agd.bind(t) $$",
    );
    let mut app = wall.login("app");
    // SET ROLE and SECURITY DEFINER change nothing: neither before nor after.
    run(&mut app, &wall.sql(&format!("BEGIN; SET LOCAL ROLE {{0}}_owner; SELECT binds('{}')", wall.token("acme"))));
    assert_eq!(column(&mut app, "SELECT who()"), ["acme"]);
    assert_eq!(column(&mut app, "SELECT DISTINCT tenant FROM plain"), ["acme"], "the table's owner");
    expect_sqlstate(app.batch_execute("SELECT plain_put('globex', 5)"), "42501");
    run(&mut app, "ROLLBACK");
    // A superuser can become another session user; a binding does not come along.
    let mut superuser = wall.superuser();
    run(&mut superuser, &wall.sql("SET SESSION AUTHORIZATION {0}_agent"));
    run(&mut superuser, "BEGIN; SELECT agd.enter('acme', 'x'), set_config('session_authorization', 'postgres', true)");
    expect_sqlstate(superuser.batch_execute("SELECT agd.current_tenant()"), "55000");
    run(&mut superuser, "ROLLBACK; RESET SESSION AUTHORIZATION");
    // Superusers, tenants' own roles and strangers do not bind.
    let token = wall.token("acme");
    for mut client in [wall.superuser(), wall.login("owner"), wall.login("r0"), wall.login("agent")] {
        expect_sqlstate(client.batch_execute(&format!("SELECT agd.bind('{token}')")), "42501");
    }
    for mut client in [wall.superuser(), wall.login("owner"), wall.login("r0"), wall.login("app")] {
        expect_sqlstate(client.batch_execute("SELECT agd.enter('acme')"), "42501");
    }
    // None of these used the token up.
    run(&mut app, &format!("SELECT agd.bind('{token}')"));
}

#[test]
fn scopes_are_for_policies_of_ones_own() {
    let wall = Wall::new(
        cluster(),
        "scopes",
        "CREATE POLICY readers ON plain AS RESTRICTIVE FOR UPDATE USING ('write' = ANY (agd.current_scopes()))",
    );
    let issuer = wall.issuer("acme");
    let mut app = wall.login("app");
    for (scopes, shown, updated) in [
        (None, "NULL", 0),
        (Some(vec![]), "{}", 0),
        (Some(vec!["read".to_owned()]), "{read}", 0),
        (Some(vec!["read".to_owned(), "write".to_owned()]), "{read,write}", 3),
    ] {
        let mut claims = issuer.claims("scopes_app", "writer-1");
        claims.scopes = scopes;
        run(&mut app, &format!("BEGIN; SELECT agd.bind('{}')", issuer.sign(&claims)));
        assert_eq!(column(&mut app, "SELECT agd.current_scopes()::text"), [shown]);
        assert_eq!(app.execute("UPDATE plain SET v = v", &[]).unwrap(), updated, "{shown}");
        run(&mut app, "ROLLBACK");
        assert_eq!(column(&mut app, "SELECT agd.current_scopes()::text"), ["NULL"]);
    }
}

/// agd's own views: a tenant its own, in full; the platform headers; the auditor verifies and reads no payload.
#[test]
fn agds_own_views_have_the_same_wall() {
    let wall = Wall::new(cluster(), "views", "");
    wall.database.cluster().create_role("views_platform", "IN ROLE agd_platform").unwrap();
    wall.database.cluster().create_role("views_auditor", "IN ROLE agd_auditor").unwrap();
    for tenant in ["acme", "globex"] {
        for by in By::ALL {
            wall.session(by, tenant)
                .within(&format!(
                    "INSERT INTO plain VALUES ('{tenant}', 60, 'secret'); DELETE FROM plain WHERE id = 60"
                ))
                .unwrap();
        }
    }
    anchor(&mut wall.superuser());
    for by in By::ALL {
        let mut session = wall.session(by, "acme");
        assert_eq!(session.column("SELECT DISTINCT tenant FROM agd.events"), ["acme"]);
        assert_eq!(session.column("SELECT DISTINCT tenant FROM agd.anchors"), ["acme"]);
        assert_eq!(session.column("SELECT DISTINCT new->>'v' FROM agd.events WHERE new->>'id' = '60'"), ["secret"]);
        assert_eq!(session.column("SELECT DISTINCT tenant FROM agd.history('plain', '{\"id\": 60}')"), ["acme"]);
        let proofs = session.column("SELECT DISTINCT p.origin FROM agd.events e, agd.inclusion_proof(e.event_id) p WHERE e.leaf_index IS NOT NULL");
        assert!(proofs.len() == 1 && proofs[0].ends_with("/t/acme"), "{proofs:?}");
        let others = column(&mut wall.superuser(), "SELECT event_id FROM agd.events WHERE tenant = 'globex' LIMIT 1");
        expect_sqlstate(session.within(&format!("SELECT * FROM agd.inclusion_proof('{}')", others[0])), "02000");
    }
    for role in ["platform", "auditor"] {
        let mut client = wall.login(role);
        let seen = column(
            &mut client,
            "SELECT DISTINCT tenant FROM agd.events WHERE relation = 'public.plain' AND binding IN ('role', 'token', 'asserted') ORDER BY 1",
        );
        assert_eq!(seen, ["acme", "globex"], "{role}");
        let payload =
            column(&mut client, "SELECT count(*)::text FROM agd.events WHERE coalesce(old, new, row_key) IS NOT NULL");
        assert_eq!(payload, ["0"], "{role}");
        expect_verified(&mut client);
        assert_eq!(column(&mut client, "SELECT v FROM plain"), [""; 0], "{role}: granted, and still nobody's");
    }
}
