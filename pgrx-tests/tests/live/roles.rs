//! Ordinary roles: who is recorded, what a tenant reaches, and what each of agd's roles may do.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, FORCE_PARALLEL, TestDb, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

/// Roles belong to the cluster, so each test has names of its own; `{0}` in SQL stands for the test's prefix.
struct Stage {
    database: TestDb<'static>,
    prefix: &'static str,
}

impl Stage {
    fn new(prefix: &'static str, roles: &[(&str, &str)], setup: &str) -> Self {
        static CLUSTER: OnceLock<Cluster> = OnceLock::new();
        let cluster = CLUSTER.get_or_init(|| Cluster::builder().start().unwrap());
        let stage = Self { database: cluster.agd_database(prefix).unwrap(), prefix };
        for (role, options) in roles {
            cluster.create_role(&format!("{prefix}_{role}"), options).unwrap();
        }
        stage.superuser().batch_execute(&setup.replace("{0}", prefix)).unwrap();
        stage
    }

    fn superuser(&self) -> Client {
        self.database.connect().unwrap()
    }

    fn login(&self, role: &str) -> Client {
        self.database.connect_as(&format!("{}_{role}", self.prefix)).unwrap()
    }

    fn sql(&self, text: &str) -> String {
        text.replace("{0}", self.prefix)
    }
}

#[track_caller]
fn column(client: &mut Client, sql: &str) -> Vec<String> {
    match client.query(sql, &[]) {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

const TENANTS: &str = "
    CREATE TABLE orders (tenant text, id int, v text, PRIMARY KEY (tenant, id));
    SELECT agd.create_tenant('acme', 'Acme Ltd'); SELECT agd.create_tenant('globex');
    SELECT agd.guard('orders', tenant_column => 'tenant');
    SELECT agd.map_role('{0}_acme', 'acme'); SELECT agd.map_role('{0}_globex', 'globex');
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON orders TO {0}_acme, {0}_globex;
    INSERT INTO orders SELECT t, i, 'seed' FROM unnest('{acme,globex}'::text[]) t, generate_series(1, 3) i;";

const LOGINS: [(&str, &str); 2] = [("acme", "IN ROLE agd_tenant"), ("globex", "IN ROLE agd_tenant")];

#[test]
fn who_wrote_is_recorded() {
    let stage = Stage::new(
        "who",
        &[("app", ""), ("worker", ""), ("owner", "")],
        "CREATE TABLE t (id int PRIMARY KEY, via text, other int); CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES t ON DELETE CASCADE);
         ALTER TABLE t OWNER TO {0}_owner; ALTER TABLE child OWNER TO {0}_owner;
         SELECT agd.guard('t'); SELECT agd.guard('child');
         GRANT {0}_worker TO {0}_app; GRANT SELECT, INSERT, DELETE ON t, child TO {0}_app, {0}_worker;
         CREATE FUNCTION put(i int) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public AS $$ INSERT INTO t VALUES (i, 'definer') $$;
         ALTER FUNCTION put(int) OWNER TO {0}_owner; GRANT CREATE ON SCHEMA public TO {0}_owner",
    );
    let mut app = stage.login("app");
    app.batch_execute("SET application_name = 'billing'; INSERT INTO t VALUES (1, 'plain')").unwrap();
    app.batch_execute(&stage.sql("SET ROLE {0}_worker; INSERT INTO t VALUES (2, 'set role'); RESET ROLE")).unwrap();
    app.batch_execute("SELECT put(3)").unwrap();
    app.batch_execute(
        &stage.sql("BEGIN; SET LOCAL ROLE {0}_worker; INSERT INTO t VALUES (4, 'and reset'); RESET ROLE; COMMIT"),
    )
    .unwrap();
    // Each event has the role of its own moment.
    let mixed =
        "BEGIN; INSERT INTO t VALUES (6, 'app'); SET LOCAL ROLE {0}_worker; INSERT INTO t VALUES (7, 'worker'); COMMIT";
    app.batch_execute(&stage.sql(mixed)).unwrap();
    app.batch_execute("INSERT INTO child VALUES (1, 1)").unwrap();
    app.batch_execute("DELETE FROM t WHERE id = 1").unwrap();
    let mut superuser = stage.superuser();
    superuser
        .batch_execute(&stage.sql("SET SESSION AUTHORIZATION {0}_app; INSERT INTO t VALUES (5, 'session authorization'); RESET SESSION AUTHORIZATION"))
        .unwrap();
    let who = column(
        &mut superuser,
        "SELECT format('%s %s %s %s %s %s %s', relation, action, row_key->>'id', session_user_name, role_name, binding, coalesce(tenant, '-'))
           FROM agd.events WHERE action IN ('INSERT', 'DELETE') AND relation LIKE 'public.%' ORDER BY committed_at, event_id",
    );
    assert_eq!(
        who,
        [
            "public.t INSERT 1 who_app who_app none -",
            "public.t INSERT 2 who_app who_worker none -",
            "public.t INSERT 3 who_app who_app as who_owner none -",
            "public.t INSERT 4 who_app who_worker none -",
            "public.t INSERT 6 who_app who_app none -",
            "public.t INSERT 7 who_app who_worker none -",
            "public.child INSERT 1 who_app who_app none -",
            "public.t DELETE 1 who_app who_app none -",
            "public.child DELETE 1 who_app who_app as who_owner none -",
            "public.t INSERT 5 who_app who_app none -",
        ]
    );
    let names = column(
        &mut superuser,
        "SELECT DISTINCT application_name FROM agd.events WHERE session_user_name = 'who_app' AND row_key->>'id' = '2'",
    );
    assert_eq!(names, ["billing"]);
}

#[test]
fn a_tenant_sees_and_writes_only_its_own() {
    let stage = Stage::new("wall", &LOGINS, TENANTS);
    let mut acme = stage.login("acme");
    assert_eq!(column(&mut acme, "SELECT agd.current_tenant()"), ["acme"]);
    assert_eq!(column(&mut acme, "SELECT agd.current_principal()"), ["wall_acme"]);
    assert_eq!(column(&mut acme, "SELECT DISTINCT tenant FROM orders"), ["acme"]);
    acme.batch_execute(
        "INSERT INTO orders VALUES ('acme', 10, 'own'); UPDATE orders SET v = 'mine'; DELETE FROM orders WHERE id = 2",
    )
    .unwrap();
    for sql in [
        "INSERT INTO orders VALUES ('globex', 10, 'not mine')",
        "INSERT INTO orders VALUES ('nobody', 10, 'no such tenant')",
        "UPDATE orders SET tenant = 'globex' WHERE id = 1",
        "INSERT INTO orders VALUES ('globex', 1, 'x') ON CONFLICT (tenant, id) DO NOTHING",
        "INSERT INTO orders VALUES ('globex', 1, 'x') ON CONFLICT (tenant, id) DO UPDATE SET v = 'y'",
        "INSERT INTO orders VALUES (NULL, 10, 'none')",
        "COPY orders FROM PROGRAM 'true'",
        "SELECT agd.create_tenant('mine')",
        "SELECT agd.map_role('wall_acme', 'globex')",
        "SELECT agd.guard('orders')",
        "SELECT agd.unguard('orders', 'because')",
        "SELECT * FROM agd.event",
        "SELECT * FROM agd.transaction",
        "SELECT * FROM agd.role_map",
        "SELECT * FROM agd.anchor()",
        "ALTER TABLE orders DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE orders DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "SET ROLE wall_globex",
        "SET SESSION AUTHORIZATION wall_globex",
    ] {
        let error = match acme.batch_execute(sql) {
            Ok(()) => panic!("{sql} is allowed"),
            Err(error) => error.as_db_error().unwrap().clone(),
        };
        // A null tenant is stopped by the key's own NOT NULL or by the gate: either way it is not written.
        let allowed: &[&str] = if sql.contains("NULL") { &["42501", "23502", "22023"] } else { &["42501"] };
        assert!(allowed.contains(&error.code().code()), "{sql}: {} {}", error.code().code(), error.message());
    }
    // TRUNCATE knows no rows, so privileges and the gate decide.
    expect_sqlstate(acme.batch_execute("TRUNCATE orders"), "AG002");
    // What is not visible is not touched.
    assert_eq!(acme.execute("UPDATE orders SET v = 'x' WHERE tenant = 'globex'", &[]).unwrap(), 0);
    assert_eq!(acme.execute("DELETE FROM orders WHERE tenant = 'globex'", &[]).unwrap(), 0);
    // Nothing that a session can set makes it another's.
    acme.batch_execute(
        "SELECT set_config('agd.tenant', 'globex', false), set_config('agd.current_tenant', 'globex', false)",
    )
    .ok();
    acme.batch_execute("RESET ALL").unwrap();
    acme.batch_execute("DISCARD ALL").unwrap();
    assert_eq!(column(&mut acme, "SELECT agd.current_tenant()"), ["acme"]);
    assert_eq!(column(&mut acme, "SELECT DISTINCT tenant FROM agd.events"), ["acme"]);
    assert!(column(&mut acme, "SELECT new->>'v' FROM agd.events WHERE new IS NOT NULL").contains(&"own".to_owned()));
    assert_eq!(
        column(&mut acme, "SELECT count(*)::text FROM agd.history('orders', '{\"tenant\": \"globex\"}')"),
        ["0"]
    );
    assert_eq!(column(&mut acme, "SELECT count(*)::text FROM agd.anchors WHERE tenant IS DISTINCT FROM 'acme'"), ["0"]);

    let mut superuser = stage.superuser();
    anchor(&mut superuser);
    let rows = column(
        &mut superuser,
        "SELECT concat_ws(' ', tenant, count(*), min(v), max(v)) FROM orders GROUP BY tenant ORDER BY tenant",
    );
    assert_eq!(rows, ["acme 3 mine own", "globex 3 seed seed"].map(|row| row.replace("mine own", "mine mine")));
    let bindings = column(
        &mut superuser,
        "SELECT DISTINCT concat_ws(' ', tenant, session_user_name, principal, binding) FROM agd.events WHERE relation = 'public.orders' AND action NOT IN ('GUARD', 'DDL', 'DENIED') ORDER BY 1",
    );
    assert_eq!(bindings, ["acme postgres bypass", "acme wall_acme wall_acme role", "globex postgres bypass"]);
    expect_each_event_in_one_leaf(&mut superuser);
    expect_verified(&mut superuser);
    assert_eq!(column(&mut superuser, "SELECT problem FROM agd.verify_table('orders')"), [""; 0]);
}

/// Ways around a policy that have worked elsewhere.
#[test]
fn rows_of_others_do_not_leak() {
    let stage = Stage::new(
        "leak",
        &LOGINS,
        &format!(
            "{TENANTS}
             CREATE TABLE parts (tenant text, id int, v text, PRIMARY KEY (tenant, id)) PARTITION BY LIST (tenant);
             CREATE TABLE parts_acme PARTITION OF parts FOR VALUES IN ('acme'); CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
             SELECT agd.guard('parts', tenant_column => 'tenant');
             CREATE TABLE parts_globex PARTITION OF parts FOR VALUES IN ('globex');
             INSERT INTO parts SELECT * FROM orders;
             CREATE VIEW mine WITH (security_invoker) AS SELECT * FROM orders;
             GRANT SELECT, INSERT, UPDATE, DELETE ON parts, parts_acme, parts_globex, parts_rest, mine TO {{0}}_acme;
             CREATE SCHEMA lair; GRANT ALL ON SCHEMA lair TO {{0}}_acme; ANALYZE orders"
        ),
    );
    let mut acme = stage.login("acme");
    // A function that tells what it is given, so cheap that the planner would like to call it first.
    acme.batch_execute(
        "CREATE TABLE lair.seen (v text);
         CREATE FUNCTION lair.tell(v text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN INSERT INTO lair.seen VALUES (v); RETURN true; END $$",
    )
    .unwrap();
    for table in ["orders", "mine", "parts"] {
        assert_eq!(
            column(&mut acme, &format!("SELECT DISTINCT tenant FROM {table} WHERE lair.tell(tenant)")),
            ["acme"]
        );
        let error_if_seen =
            format!("SELECT count(*)::text FROM {table} WHERE 1 / (CASE WHEN tenant = 'globex' THEN 0 ELSE 1 END) = 1");
        assert_eq!(column(&mut acme, &error_if_seen), ["3"]);
    }
    assert_eq!(column(&mut acme, "SELECT DISTINCT v FROM lair.seen"), ["acme"]);
    assert_eq!(column(&mut acme, "SELECT count(*)::text FROM parts_globex"), ["0"], "a partition read directly");
    expect_sqlstate(acme.batch_execute("INSERT INTO parts_globex VALUES ('globex', 50, 'x')"), "42501");
    assert_eq!(acme.execute("UPDATE parts_globex SET v = 'x'", &[]).unwrap(), 0);
    expect_sqlstate(acme.batch_execute("SET row_security = off; SELECT * FROM orders"), "42501");
    let copied = std::io::read_to_string(acme.copy_out("COPY orders TO STDOUT").unwrap()).unwrap();
    assert!(copied.lines().count() == 3 && !copied.contains("globex"), "{copied}");
    let statistics = column(&mut acme, "SELECT most_common_vals::text FROM pg_stats WHERE tablename = 'orders'");
    assert!(!statistics.iter().any(|values| values.contains("globex")), "{statistics:?}");
    // A foreign key or a unique key of one's own is no oracle for rows of others.
    acme.batch_execute("INSERT INTO orders SELECT 'acme', id + 100, v FROM orders").unwrap();
    expect_sqlstate(
        acme.batch_execute("INSERT INTO orders VALUES ('globex', 1, 'taken'), ('globex', 77, 'free')"),
        "42501",
    );
}

/// The gate checks the tenant on its own: getting past row-level security is not getting past the gate.
#[test]
fn the_gate_stands_where_row_security_is_bypassed() {
    let stage = Stage::new(
        "gate2",
        &[LOGINS[0], LOGINS[1], ("stranger", ""), ("rls_free", "BYPASSRLS"), ("owner", "")],
        &format!(
            "{TENANTS}
             GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {{0}}_stranger, {{0}}_rls_free;
             GRANT CREATE ON SCHEMA public TO {{0}}_owner;
             CREATE FUNCTION put(t text, i int) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public
               AS $$ INSERT INTO orders VALUES (t, i, 'definer') $$;
             CREATE VIEW all_orders AS SELECT * FROM orders; GRANT SELECT, INSERT, UPDATE, DELETE ON all_orders TO {{0}}_acme"
        ),
    );
    let mut acme = stage.login("acme");
    // Both run with the rights of a superuser; who writes is still acme.
    for sql in [
        "SELECT put('globex', 20)",
        "UPDATE all_orders SET v = 'x' WHERE tenant = 'globex'",
        "DELETE FROM all_orders WHERE tenant = 'globex'",
    ] {
        let error = expect_sqlstate(acme.batch_execute(sql), "42501");
        expect_hint(&error, "acme");
    }
    acme.batch_execute("SELECT put('acme', 20)").unwrap();
    let error =
        expect_sqlstate(stage.login("stranger").batch_execute("INSERT INTO orders VALUES ('acme', 30, 'x')"), "42501");
    let _ = error;
    assert_eq!(
        column(&mut stage.login("stranger"), "SELECT v FROM orders"),
        [""; 0],
        "a role without a tenant sees nothing"
    );
    // Above the wall: allowed, and the record says so. A tenant that does not exist is not there for them either.
    let mut free = stage.login("rls_free");
    free.batch_execute("INSERT INTO orders VALUES ('acme', 31, 'bypass')").unwrap();
    let error = expect_sqlstate(free.batch_execute("INSERT INTO orders VALUES ('nosuch', 31, 'bypass')"), "42501");
    expect_hint(&error, "create_tenant");
    let mut superuser = stage.superuser();
    expect_sqlstate(superuser.batch_execute("INSERT INTO orders VALUES ('nosuch', 31, 'bypass')"), "42501");
    let bindings = column(
        &mut superuser,
        "SELECT concat_ws(' ', session_user_name, binding) FROM agd.events WHERE row_key->>'id' IN ('20', '31') ORDER BY 1",
    );
    assert_eq!(bindings, ["gate2_acme role", "gate2_rls_free bypass"]);
}

#[test]
fn a_mapping_takes_effect_in_open_sessions() {
    let stage = Stage::new(
        "open",
        &[LOGINS[0], LOGINS[1], ("late", "IN ROLE agd_tenant")],
        &format!("{TENANTS} GRANT SELECT, INSERT ON orders TO {{0}}_late"),
    );
    let mut late = stage.login("late");
    assert_eq!(column(&mut late, "SELECT coalesce(agd.current_tenant(), '(none)')"), ["(none)"]);
    expect_sqlstate(late.batch_execute("INSERT INTO orders VALUES ('acme', 50, 'x')"), "42501");
    let mut superuser = stage.superuser();
    superuser.batch_execute("SELECT agd.map_role('open_late', 'acme')").unwrap();
    late.batch_execute("INSERT INTO orders VALUES ('acme', 50, 'x')").unwrap();
    assert_eq!(column(&mut late, "SELECT DISTINCT tenant FROM orders"), ["acme"]);
    for (sql, state) in [
        ("SELECT agd.map_role('open_late', 'globex')", "23505"),
        ("SELECT agd.map_role('open_nobody', 'globex')", "22023"),
        ("SELECT agd.map_role('open_late', 'nosuch')", "22023"),
        ("SELECT agd.map_role('postgres', 'acme')", "22023"),
        ("SELECT agd.create_tenant('acme')", "23505"),
        ("SELECT agd.create_tenant('Acme')", "22023"),
        ("SELECT agd.create_tenant('a:b')", "22023"),
        ("SELECT agd.create_tenant('acme ')", "22023"),
        ("SELECT agd.create_tenant('')", "22023"),
        ("SELECT agd.create_tenant(NULL)", "22023"),
        ("SELECT agd.create_tenant('аcme')", "22023"),
        ("SELECT agd.create_tenant(repeat('a', 64))", "22023"),
    ] {
        let error = expect_sqlstate(superuser.batch_execute(sql), state);
        assert!(error.hint().is_some(), "{sql} has no hint");
    }
}

#[test]
fn the_wall_keeps_indexes_and_parallel_plans() {
    let stage = Stage::new(
        "plans",
        &LOGINS,
        &format!(
            "{TENANTS} INSERT INTO orders SELECT t, i, 'bulk' FROM unnest('{{acme,globex}}'::text[]) t, generate_series(10, 20000) i; ANALYZE orders"
        ),
    );
    let mut acme = stage.login("acme");
    let plan = column(&mut acme, "EXPLAIN SELECT * FROM orders WHERE id = 77").join("\n");
    assert!(plan.contains("Index") && !plan.contains("Seq Scan"), "{plan}");
    acme.batch_execute("SET min_parallel_table_scan_size = 0; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET enable_indexscan = off; SET enable_bitmapscan = off")
        .unwrap();
    let plan = column(&mut acme, "EXPLAIN SELECT count(*) FROM orders WHERE v LIKE '%ul%'").join("\n");
    assert!(plan.contains("Parallel"), "{plan}");
    assert_eq!(column(&mut acme, "SELECT count(*)::text FROM orders WHERE v LIKE '%ul%'"), ["19991"]);
    acme.batch_execute(FORCE_PARALLEL).unwrap();
    assert_eq!(column(&mut acme, "SELECT agd.current_tenant()"), ["acme"], "a parallel worker has its leader's tenant");
    assert_eq!(column(&mut acme, "SELECT agd.current_principal()"), ["plans_acme"]);
}

/// The gate's functions can be put on any table by whoever makes one. That must not let anybody record a write that is
/// none: not in the name of another's guard, whose id everybody can read in pg_trigger.
#[test]
fn the_gates_functions_on_a_table_of_ones_own_record_nothing() {
    let stage = Stage::new(
        "forger",
        &[("mallory", ""), ("acme", "IN ROLE agd_tenant")],
        "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.guard('t'); INSERT INTO t VALUES (1, 'true');
         CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1, 2, 3);
         SELECT agd.guard('p'); SELECT agd.create_tenant('acme'); SELECT agd.map_role('{0}_acme', 'acme');
         CREATE SCHEMA lair; GRANT ALL ON SCHEMA lair TO {0}_mallory, {0}_acme",
    );
    let mut superuser = stage.superuser();
    let before = column(&mut superuser, "SELECT event_id FROM agd.events WHERE action <> 'DENIED'");
    for (role, tables) in [
        ("mallory", "CREATE TABLE lair.fake (id int PRIMARY KEY, v text)"),
        ("acme", "CREATE TABLE lair.fake (id int PRIMARY KEY, v text)"),
        (
            "mallory",
            "CREATE TABLE lair.root (id int PRIMARY KEY, v text) PARTITION BY LIST (id);
             CREATE TABLE lair.fake PARTITION OF lair.root FOR VALUES IN (7)",
        ),
    ] {
        let mut mallory = stage.login(role);
        mallory.batch_execute(tables).unwrap();
        for guarded in ["t", "p1"] {
            let argument = "SELECT split_part(encode(tgargs, 'escape'), '\\000', 1) FROM pg_trigger WHERE tgrelid = $1::text::regclass AND tgname = '~agd_record'";
            let guard: String = mallory.query_one(argument, &[&format!("public.{guarded}")]).unwrap().get(0);
            let forge = format!(
                "BEGIN;
                 CREATE TRIGGER a BEFORE INSERT OR UPDATE OR DELETE ON lair.fake FOR EACH ROW EXECUTE FUNCTION agd.record_write('{guard}');
                 CREATE TRIGGER b AFTER INSERT OR UPDATE OR DELETE ON lair.fake FOR EACH ROW EXECUTE FUNCTION agd.confirm_write('{guard}');
                 CREATE TRIGGER c BEFORE TRUNCATE ON lair.fake FOR EACH STATEMENT EXECUTE FUNCTION agd.refuse_truncate('{guard}');
                 INSERT INTO lair.fake VALUES (7, 'forged'); UPDATE lair.fake SET v = 'x'; DELETE FROM lair.fake; COMMIT"
            );
            // Either the functions may not be used, or they refuse: whatever it is, nothing comes of it.
            let outcome = mallory.batch_execute(&forge);
            mallory.batch_execute("ROLLBACK").unwrap();
            let after = column(&mut superuser, "SELECT event_id FROM agd.events WHERE action <> 'DENIED'");
            assert_eq!(after, before, "{role} forged a record of {guarded}: {outcome:?}");
            assert!(outcome.is_err(), "{role} used the gate's functions in the name of {guarded}'s guard");
        }
        mallory.batch_execute("DROP TABLE IF EXISTS lair.fake; DROP TABLE IF EXISTS lair.root").unwrap();
    }
    // The attempts are told, but not in the name of the guard they claimed.
    anchor(&mut superuser);
    let told = column(
        &mut superuser,
        "SELECT DISTINCT concat_ws(' ', relation, coalesce(guard_id::text, '-')) FROM agd.events WHERE action = 'DENIED'",
    );
    assert_eq!(told, ["lair.fake -"]);
}

/// What each role may call stands in the allow-list of `tests/regress/sql/surface.sql`; here is what may never change.
#[test]
fn nobody_gets_more_than_needed() {
    let stage = Stage::new("acl", &[("public", "")], "");
    let mut superuser = stage.superuser();
    let granted = |client: &mut Client, role: &str| {
        let sql = format!(
            "SELECT p.proname::text FROM pg_proc p WHERE p.pronamespace = 'agd'::regnamespace AND has_function_privilege('{role}', p.oid, 'EXECUTE') ORDER BY 1"
        );
        column(client, &sql)
    };
    assert_eq!(
        granted(&mut superuser, "acl_public"),
        [
            "bind",
            "cause_normalised",
            "confirm_write",
            "current_fleet",
            "current_principal",
            "current_scopes",
            "current_tenant",
            "enter",
            "record_write",
            "refuse_truncate",
            "set_cause"
        ]
    );
    for role in ["agd_tenant", "agd_auditor", "agd_publisher"] {
        let granted = granted(&mut superuser, role);
        for function in ["add_tenant_key", "create_tenant", "guard", "map_role", "revoke_tenant_key", "unguard"] {
            assert!(!granted.iter().any(|name| name == function), "{role} may call agd.{function}");
        }
    }
    for function in ["verify", "verify_table", "coverage", "anchor"] {
        assert!(!granted(&mut superuser, "agd_tenant").iter().any(|name| name == function));
        assert!(granted(&mut superuser, "agd_auditor").iter().any(|name| name == function));
    }
    // Nobody but the owner writes agd's tables.
    let writable = column(
        &mut superuser,
        "SELECT format('%s %s %s', r.rolname, c.relname, w)
           FROM pg_class c, pg_roles r, unnest('{INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) w
          WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT r.rolsuper AND r.rolname NOT LIKE 'pg\\_%'
            AND has_table_privilege(r.oid, c.oid, w)",
    );
    assert_eq!(writable, [""; 0]);
    assert_eq!(
        column(
            &mut superuser,
            "SELECT rolname::text FROM pg_roles WHERE rolname LIKE 'agd\\_%' AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb)"
        ),
        [""; 0]
    );
    expect_sqlstate(stage.login("public").batch_execute("CREATE TABLE agd.mine (i int)"), "42501");
}

#[test]
fn platform_and_auditor_work_without_seeing_payloads() {
    let stage = Stage::new(
        "duty",
        &[
            LOGINS[0],
            LOGINS[1],
            ("platform", "IN ROLE agd_platform"),
            ("auditor", "IN ROLE agd_auditor"),
            ("publisher", "IN ROLE agd_publisher"),
        ],
        &format!(
            "{TENANTS} CREATE TABLE plain (id int PRIMARY KEY, secret text); GRANT SELECT ON plain TO {{0}}_platform"
        ),
    );
    let mut platform = stage.login("platform");
    platform.batch_execute("SELECT agd.create_tenant('initech'); SELECT agd.anchor(); SELECT * FROM agd.stat; SELECT * FROM agd.coverage()").unwrap();
    let mut superuser = stage.superuser();
    superuser.batch_execute("SELECT agd.guard('plain'); INSERT INTO plain VALUES (1, 'top secret')").unwrap();
    for role in ["platform", "auditor"] {
        let mut client = stage.login(role);
        let headers =
            column(&mut client, "SELECT action FROM agd.events WHERE relation = 'public.plain' ORDER BY committed_at");
        assert_eq!(headers.last().map(String::as_str), Some("INSERT"), "{role}");
        let payloads = column(&mut client, "SELECT event_id FROM agd.events WHERE num_nonnulls(row_key, old, new) > 0");
        assert_eq!(payloads, [""; 0], "{role} sees payloads");
        expect_verified(&mut client);
        assert_eq!(column(&mut client, "SELECT problem FROM agd.verify_table('orders')"), [""; 0]);
        expect_sqlstate(client.batch_execute("SELECT new FROM agd.event"), "42501");
        assert!(!column(&mut client, "SELECT origin FROM agd.anchors").is_empty());
    }
    expect_sqlstate(stage.login("auditor").batch_execute("SELECT agd.create_tenant('x')"), "42501");
    expect_sqlstate(stage.login("auditor").batch_execute("SELECT agd.unguard('plain', 'x')"), "42501");
    let mut publisher = stage.login("publisher");
    assert!(!column(&mut publisher, "SELECT origin FROM agd.anchors").is_empty());
    let entries = column(
        &mut publisher,
        "SELECT convert_from(e.entry, 'UTF8') FROM (SELECT origin, max(tree_size) AS size FROM agd.anchors WHERE tenant IS NULL GROUP BY origin) l,
                LATERAL agd.entries(l.origin, 0, l.size) e",
    );
    assert!(!entries.is_empty() && entries.iter().all(|entry| !entry.contains("top secret")));
    for sql in [
        "SELECT * FROM agd.events",
        "SELECT * FROM agd.event",
        "SELECT agd.guard('plain')",
        "SELECT * FROM agd.verify()",
    ] {
        expect_sqlstate(publisher.batch_execute(sql), "42501");
    }
}
