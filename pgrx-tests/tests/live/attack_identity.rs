//! Whose identity counts where PostgreSQL runs somebody else's code: a tenant's function in an index, in statistics, in a
//! materialized view, which autovacuum, a superuser, another tenant or the tenant itself then runs; and functions with
//! somebody else's rights. Each attack is run as the role that has it.

use agd_live_tests::record::expect_verified;
use agd_live_tests::{Cluster, FORCE_PARALLEL, TestDb, eventually, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        Cluster::builder()
            .setting("autovacuum_naptime", "1s")
            .setting("autovacuum_vacuum_threshold", "10")
            .setting("autovacuum_analyze_threshold", "10")
            .setting("agd.anchor_max_age", "200ms")
            .start()
            .unwrap()
    })
}

#[track_caller]
fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[track_caller]
fn column(client: &mut Client, sql: &str) -> Vec<String> {
    let rows = client.query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    rows.iter().map(|row| row.get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".into())).collect()
}

/// Every way in, and what somebody who is nobody finds there: a value as text, or an SQLSTATE.
const NOBODY: &[(&str, &str, &str)] = &[
    ("who", "SELECT coalesce(agd.current_tenant(), 'nobody')", "nobody"),
    ("principal", "SELECT coalesce(agd.current_principal(), 'nobody')", "nobody"),
    ("fleet", "SELECT coalesce(agd.current_fleet(), 'none')", "none"),
    ("scopes", "SELECT coalesce(agd.current_scopes()::text, 'none')", "none"),
    ("events", "SELECT count(*)::text FROM agd.events", "0"),
    ("anchors", "SELECT count(*)::text FROM agd.anchors", "0"),
    ("fleets", "SELECT count(*)::text FROM agd.fleets", "0"),
    ("agents", "SELECT count(*)::text FROM agd.fleet_agents", "0"),
    ("requests", "SELECT count(*)::text FROM agd.countersign_requests", "0"),
    ("pending", "SELECT count(*)::text FROM agd.fleet_pending_cancel", "0"),
    ("history", "SELECT count(*)::text FROM agd.history('public.orders', '{}')", "0"),
    ("may read", "SELECT agd.may_read('acme')::text", "false"),
    ("may read the platform's", "SELECT agd.may_read(NULL)::text", "false"),
    ("may read payload", "SELECT agd.may_read_payload('acme')::text", "false"),
    ("may read the other's payload", "SELECT agd.may_read_payload('globex')::text", "false"),
    ("is publisher", "SELECT agd.is_publisher()::text", "false"),
    ("proof", "SELECT agd.inclusion_proof(event)::text FROM {0}_acme.known", "02000"),
    ("tlog proof", "SELECT agd.tlog_proof(event) FROM {0}_acme.known", "02000"),
    ("export", "SELECT count(*)::text FROM agd.export_events((SELECT origin FROM {0}_acme.known), 0, 1)", "22023"),
    ("statement", "SELECT agd.fleet_statement(fleet)::text FROM {0}_acme.known", "42501"),
    ("batch", "SELECT agd.batch_statement(ARRAY[fleet])::text FROM {0}_acme.known", "42501"),
    ("verify fleet", "SELECT agd.verify_fleet(fleet)::text FROM {0}_acme.known", "42501"),
    ("rows", "SELECT count(*)::text FROM public.orders", "0"),
    ("own row", "INSERT INTO public.orders VALUES ('acme', 1000, 'planted')", "42501"),
    ("other's row", "INSERT INTO public.orders VALUES ('globex', 1000, 'planted')", "42501"),
    ("a table without tenants", "INSERT INTO public.notes VALUES (1000, 'planted')", "42501"),
    ("an update", "UPDATE public.notes SET v = 'planted'", "42501"),
    ("a delete", "DELETE FROM public.notes", "42501"),
    ("a truncate", "TRUNCATE public.plain", "42501"),
    ("mint own", "SELECT agd.mint_tenant_fleet('acme', 'planted')", "42501"),
    ("mint other's", "SELECT agd.mint_tenant_fleet('globex', 'planted')", "42501"),
    ("context", "SELECT agd.set_agent_context(fleet, 'writer', '[]')::text FROM {0}_acme.known", "42501"),
    ("seal", "SELECT agd.seal_tenant_fleet(fleet, 'planted')::text FROM {0}_acme.known", "42501"),
    ("sign", "SELECT agd.sign_fleet(fleet, 'Loom', '\\x00')::text FROM {0}_acme.known", "42501"),
    ("countersign", "SELECT agd.countersign_fleets(ARRAY[fleet], 'River', '\\x00')::text FROM {0}_acme.known", "42501"),
    ("cause", "SELECT agd.set_cause('planted')::text", "42501"),
    ("enter", "SELECT agd.enter('globex')", "42501"),
    ("bind", "SELECT agd.bind('planted')", "42501"),
    // Through a superuser's SECURITY DEFINER function, current and outer user are the same in a superuser's session.
    ("superuser reads events", "SELECT {0}_lend.run('SELECT count(*)::text FROM agd.events')", "0"),
    (
        "superuser reads history",
        "SELECT {0}_lend.run($$SELECT count(*)::text FROM agd.history('public.orders', '{}')$$)",
        "0",
    ),
    ("superuser's payload", "SELECT {0}_lend.run($$SELECT agd.may_read_payload('globex')::text$$)", "false"),
    ("superuser writes", "SELECT {0}_lend.run($$INSERT INTO public.notes VALUES (1001, 'planted')$$)", "42501"),
    (
        "superuser writes a tenant's",
        "SELECT {0}_lend.run($$INSERT INTO public.orders VALUES ('globex', 1001, 'planted')$$)",
        "42501",
    ),
    (
        "superuser writes agd's own",
        "SELECT {0}_lend.run($$INSERT INTO agd.role_map VALUES ('{0}_stranger'::regrole, 'globex', 'role')$$)",
        "42501",
    ),
    ("superuser maps", "SELECT {0}_lend.run($$SELECT agd.map_role('{0}_stranger', 'globex')::text$$)", "42501"),
    ("superuser makes a tenant", "SELECT {0}_lend.run($$SELECT agd.create_tenant('planted')::text$$)", "42501"),
    ("superuser guards", "SELECT {0}_lend.run($$SELECT agd.guard('public.unguarded')::text$$)", "42501"),
    ("superuser unguards", "SELECT {0}_lend.run($$SELECT agd.unguard('public.notes', 'planted')::text$$)", "42501"),
    ("superuser mints", "SELECT {0}_lend.run($$SELECT agd.mint_tenant_fleet('globex', 'planted')$$)", "42501"),
    (
        "superuser reads entries",
        "SELECT {0}_lend.run($$SELECT count(*)::text FROM agd.entries((SELECT origin FROM {0}_acme.known), 0, 1)$$)",
        "42501",
    ),
    (
        "superuser registers",
        "SELECT {0}_lend.run($$SELECT agd.register_signer('Planted', 'coordinator', '\\x00')::text$$)",
        "42501",
    ),
    (
        "superuser publishes",
        "SELECT {0}_lend.run($$SELECT agd.record_publication('x', 1, '\\x00', 'x', 'x')::text$$)",
        "42501",
    ),
    ("superuser verifies", "SELECT {0}_lend.run($$SELECT count(*)::text FROM agd.verify()$$)", "42501"),
];

struct Stage {
    database: TestDb<'static>,
    prefix: &'static str,
}

impl Stage {
    /// Two tenants with rows, fleets and a schema of their own each; `notes` and `plain` are guarded and nobody's.
    fn new(prefix: &'static str) -> Self {
        let database = cluster().agd_database(prefix).unwrap();
        for (role, options) in [
            ("owner", ""),
            ("acme", "IN ROLE agd_tenant"),
            ("globex", "IN ROLE agd_tenant"),
            ("plat", "IN ROLE agd_platform"),
            ("aud", "IN ROLE agd_auditor"),
            ("pub", "IN ROLE agd_publisher"),
            ("app", "IN ROLE agd_tenant"),
            ("stranger", ""),
        ] {
            cluster().create_role(&format!("{prefix}_{role}"), options).unwrap();
        }
        let stage = Self { database, prefix };
        let mut superuser = stage.superuser();
        let setup = "
            CREATE TABLE orders (tenant text, id int, v text, PRIMARY KEY (tenant, id));
            CREATE TABLE notes (id int PRIMARY KEY, v text); CREATE TABLE plain (id int PRIMARY KEY);
            CREATE TABLE unguarded (id int PRIMARY KEY);
            ALTER TABLE orders OWNER TO {0}_owner; ALTER TABLE notes OWNER TO {0}_owner; ALTER TABLE plain OWNER TO {0}_owner;
            SELECT agd.create_tenant('acme'), agd.create_tenant('globex');
            SELECT agd.map_role('{0}_acme', 'acme'), agd.map_role('{0}_globex', 'globex');
            SELECT agd.guard('orders', tenant_column => 'tenant'), agd.guard('notes'), agd.guard('plain', on_truncate => 'record');
            GRANT ALL ON orders, notes, plain TO PUBLIC;
            INSERT INTO orders SELECT t, i, 'of ' || t FROM unnest('{acme,globex}'::text[]) t, generate_series(1, 3) i;
            INSERT INTO notes VALUES (1, 'one');
            SELECT agd.mint_tenant_fleet('acme', 'first'), agd.mint_tenant_fleet('globex', 'first');
            CREATE SCHEMA {0}_acme AUTHORIZATION {0}_acme; CREATE SCHEMA {0}_globex AUTHORIZATION {0}_globex;
            CREATE SCHEMA {0}_lend; GRANT USAGE ON SCHEMA {0}_lend TO PUBLIC;
            CREATE FUNCTION {0}_lend.run(sql text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
              DECLARE outcome text; BEGIN EXECUTE sql INTO outcome; RETURN outcome;
              EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$";
        run(&mut superuser, &stage.sql(setup));
        run(&mut superuser, "SELECT * FROM agd.anchor()");
        // What an attacker may have come to know.
        run(
            &mut superuser,
            &stage.sql(
                "CREATE TABLE {0}_acme.known AS
                   SELECT (SELECT event_id FROM agd.events WHERE tenant = 'globex' ORDER BY leaf_index LIMIT 1) AS event,
                          (SELECT min(origin) FROM agd.anchors WHERE tenant = 'globex') AS origin,
                          (SELECT fleet_id FROM agd.fleets WHERE tenant = 'globex') AS fleet;
                 ALTER TABLE {0}_acme.known OWNER TO {0}_acme",
            ),
        );
        let mut acme = stage.login("acme");
        run(
            &mut acme,
            &stage.sql(
                "CREATE TABLE {0}_acme.loot (probe text, outcome text); CREATE TABLE {0}_acme.probes (n int, probe text, sql text);
                 CREATE FUNCTION {0}_acme.probe() RETURNS void LANGUAGE plpgsql AS $$
                 DECLARE p record; outcome text;
                 BEGIN
                   FOR p IN SELECT * FROM {0}_acme.probes ORDER BY n LOOP
                     BEGIN
                       EXECUTE p.sql INTO outcome;
                     EXCEPTION WHEN OTHERS THEN outcome := SQLSTATE;
                     END;
                     INSERT INTO {0}_acme.loot VALUES (p.probe, coalesce(outcome, 'done'));
                   END LOOP;
                 END $$;
                 CREATE FUNCTION {0}_acme.steal(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
                 BEGIN IF i = 1 THEN PERFORM {0}_acme.probe(); END IF; RETURN i; END $$",
            ),
        );
        for (n, (probe, sql, _)) in NOBODY.iter().enumerate() {
            let insert = stage.sql("INSERT INTO {0}_acme.probes VALUES ($1, $2, $3)");
            acme.execute(&insert, &[&(n as i32), probe, &stage.sql(sql)]).unwrap();
        }
        stage
    }

    fn sql(&self, text: &str) -> String {
        text.replace("{0}", self.prefix)
    }

    fn superuser(&self) -> Client {
        self.database.connect().unwrap()
    }

    fn login(&self, role: &str) -> Client {
        self.database.connect_as(&format!("{}_{role}", self.prefix)).unwrap()
    }

    /// The probes ran, once or more often, as nobody.
    #[track_caller]
    fn expect_nobody(&self, reader: &mut Client, by: &str) {
        let loot = column(
            reader,
            &self.sql("SELECT l.probe || ': ' || l.outcome FROM {0}_acme.loot l JOIN {0}_acme.probes p USING (probe) GROUP BY p.n, l.probe, l.outcome ORDER BY p.n"),
        );
        let expected: Vec<String> = NOBODY.iter().map(|(probe, _, outcome)| format!("{probe}: {outcome}")).collect();
        assert_eq!(loot, expected, "by {by}");
        run(reader, &self.sql("DELETE FROM {0}_acme.loot"));
    }

    /// Nothing was planted, and everything in the record is as it should be.
    #[track_caller]
    fn expect_nothing_planted(&self) {
        let mut superuser = self.superuser();
        let planted =
            "SELECT v FROM orders WHERE v = 'planted' UNION ALL SELECT v FROM notes WHERE v = 'planted' OR id <> 1
            UNION ALL SELECT tenant FROM agd.tenant WHERE tenant = 'planted'
            UNION ALL SELECT cause FROM agd.fleets WHERE cause = 'planted'
            UNION ALL SELECT role::text FROM agd.role_map WHERE role::text LIKE '%stranger'
            UNION ALL SELECT cause FROM agd.events WHERE cause = 'planted'
            UNION ALL SELECT 'notes has gone' WHERE NOT EXISTS (SELECT FROM notes)";
        assert_eq!(column(&mut superuser, planted), [""; 0]);
        expect_verified(&mut superuser);
    }
}

/// The attack as it was found: an index on a function, rows, and autovacuum.
#[test]
fn what_autovacuum_runs_is_nobodys() {
    let stage = Stage::new("autovac");
    let mut acme = stage.login("acme");
    run(
        &mut acme,
        &stage.sql(
            "CREATE TABLE {0}_acme.trap (i int); CREATE INDEX ON {0}_acme.trap ({0}_acme.steal(i));
             ALTER TABLE {0}_acme.trap SET (autovacuum_analyze_threshold = 1, autovacuum_analyze_scale_factor = 0);
             CREATE TABLE {0}_acme.told (i int);
             CREATE STATISTICS {0}_acme.told_stats ON ({0}_acme.steal(i)) FROM {0}_acme.told;
             INSERT INTO {0}_acme.told SELECT generate_series(1, 200)",
        ),
    );
    // The insert itself runs the function as acme: that is not autovacuum's.
    run(&mut acme, &stage.sql("INSERT INTO {0}_acme.trap SELECT generate_series(2, 201)"));
    run(&mut acme, &stage.sql("DELETE FROM {0}_acme.loot"));
    let mut superuser = stage.superuser();
    eventually("autovacuum has analyzed both", Duration::from_secs(60), || {
        column(&mut superuser, &stage.sql("SELECT relname::text FROM pg_stat_user_tables WHERE schemaname = '{0}_acme' AND autoanalyze_count > 0 AND relname IN ('trap', 'told')")).len() == 2
    });
    // 'told' has the row that probes. In 'trap' the insert of one would have.
    stage.expect_nobody(&mut superuser, "autovacuum");
    eventually("refusals are recorded", Duration::from_secs(20), || {
        column(&mut superuser, "SELECT body FROM agd.events WHERE action = 'DENIED' AND relation = 'public.notes' AND body LIKE '%security-restricted%'").len() >= 3
    });
    // Under both names: whose session it was, and whose function.
    let who =
        "SELECT DISTINCT role_name FROM agd.events WHERE action = 'DENIED' AND relation = 'public.notes' ORDER BY 1";
    let who = column(&mut superuser, who);
    assert!(who.contains(&"postgres as autovac_acme".to_owned()), "{who:?}");
    stage.expect_nothing_planted();
}

/// Maintenance by a superuser, by the tenant itself, and (from PostgreSQL 17 on) by another tenant.
#[test]
fn what_maintenance_runs_is_nobodys() {
    let stage = Stage::new("maintain");
    let mut superuser = stage.superuser();
    let major: i32 =
        superuser.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).unwrap().get(0);
    let mut acme = stage.login("acme");
    let mut globex = stage.login("globex");
    run(
        &mut acme,
        &stage.sql(
            "CREATE TABLE {0}_acme.trap (i int PRIMARY KEY) WITH (autovacuum_enabled = false);
             INSERT INTO {0}_acme.trap SELECT generate_series(1, 200);
             CREATE MATERIALIZED VIEW {0}_acme.view AS SELECT {0}_acme.steal(i) AS i FROM {0}_acme.trap WITH NO DATA;
             CREATE UNIQUE INDEX ON {0}_acme.view (i);
             CREATE TABLE {0}_acme.told (i int) WITH (autovacuum_enabled = false);
             INSERT INTO {0}_acme.told SELECT generate_series(1, 200);
             CREATE STATISTICS {0}_acme.told_stats ON ({0}_acme.steal(i)) FROM {0}_acme.told;
             DELETE FROM {0}_acme.loot;
             GRANT USAGE ON SCHEMA {0}_acme TO {0}_globex",
        ),
    );
    let by_superuser = [
        "CREATE INDEX trap_f ON {0}_acme.trap ({0}_acme.steal(i))",
        "CREATE INDEX CONCURRENTLY trap_c ON {0}_acme.trap ({0}_acme.steal(i))",
        "REINDEX TABLE {0}_acme.trap",
        "REINDEX INDEX CONCURRENTLY {0}_acme.trap_f",
        "ANALYZE {0}_acme.trap",
        "ANALYZE {0}_acme.told",
        "VACUUM FULL {0}_acme.trap",
        "VACUUM (ANALYZE) {0}_acme.trap",
        "CLUSTER {0}_acme.trap USING trap_pkey",
        "REFRESH MATERIALIZED VIEW {0}_acme.view",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY {0}_acme.view",
        "REINDEX SCHEMA {0}_acme",
    ];
    for sql in by_superuser {
        run(&mut superuser, &stage.sql(sql));
        stage.expect_nobody(&mut superuser, sql);
        // With workers it is no different.
        if sql.starts_with("REINDEX TABLE") || sql.starts_with("REFRESH MATERIALIZED VIEW {0}") {
            run(&mut superuser, &format!("{FORCE_PARALLEL}; SET min_parallel_index_scan_size = 0"));
            run(&mut superuser, &stage.sql(sql));
            stage.expect_nobody(&mut superuser, sql);
            run(&mut superuser, "RESET ALL");
        }
    }
    // In its own maintenance the tenant is nobody either: the flag alone tells.
    for sql in ["REINDEX TABLE {0}_acme.trap", "ANALYZE {0}_acme.trap", "CLUSTER {0}_acme.trap USING trap_pkey"] {
        run(&mut acme, &stage.sql(sql));
        stage.expect_nobody(&mut acme, sql);
    }
    if major >= 17 {
        run(&mut acme, &stage.sql("GRANT MAINTAIN ON {0}_acme.trap, {0}_acme.view TO {0}_globex, {0}_plat; GRANT USAGE ON SCHEMA {0}_acme TO {0}_plat"));
        let mut plat = stage.login("plat");
        for sql in ["REINDEX TABLE {0}_acme.trap", "ANALYZE {0}_acme.trap", "REFRESH MATERIALIZED VIEW {0}_acme.view"] {
            run(&mut globex, &stage.sql(sql));
            stage.expect_nobody(&mut acme, "globex");
            run(&mut plat, &stage.sql(sql));
            stage.expect_nobody(&mut acme, "plat");
        }
    }
    stage.expect_nothing_planted();
}

/// A tenant's own materialized view holds its own rows, made and refreshed by itself, in workers too; what is restricted
/// within it is nobody's all the same.
#[test]
fn a_tenants_own_materialized_view_is_its_own_query() {
    let stage = Stage::new("ownview");
    let mut acme = stage.login("acme");
    let mut superuser = stage.superuser();
    for parallel in [false, true] {
        if parallel {
            run(&mut superuser, "ALTER TABLE orders SET (parallel_workers = 2)");
            run(&mut acme, FORCE_PARALLEL);
        }
        run(
            &mut acme,
            &stage.sql(
                "DROP MATERIALIZED VIEW IF EXISTS {0}_acme.mine;
                 CREATE MATERIALIZED VIEW {0}_acme.mine AS SELECT tenant, count(*) AS n, agd.current_tenant() AS who FROM public.orders GROUP BY tenant",
            ),
        );
        let mine = stage.sql("SELECT format('%s %s %s', tenant, n, who) FROM {0}_acme.mine");
        assert_eq!(column(&mut acme, &mine), ["acme 3 acme"]);
        run(&mut acme, &stage.sql("REFRESH MATERIALIZED VIEW {0}_acme.mine"));
        assert_eq!(column(&mut acme, &mine), ["acme 3 acme"]);
        run(&mut acme, &stage.sql("BEGIN; REFRESH MATERIALIZED VIEW {0}_acme.mine; ROLLBACK"));
        // By somebody else it holds nothing.
        run(&mut superuser, &stage.sql("REFRESH MATERIALIZED VIEW {0}_acme.mine"));
        assert_eq!(column(&mut acme, &mine), [""; 0]);
        // Nor when it is the tenant's own, in a function of somebody else's.
        run(
            &mut superuser,
            &stage.sql(
                "CREATE OR REPLACE FUNCTION {0}_lend.refresh() RETURNS void LANGUAGE sql SECURITY DEFINER AS
                   $$ REFRESH MATERIALIZED VIEW {0}_acme.mine $$",
            ),
        );
        run(&mut acme, &stage.sql("SELECT {0}_lend.refresh()"));
        assert_eq!(column(&mut acme, &mine), [""; 0]);
    }
    // A maintenance command within it is restricted again, and after it, the view's query is not; an error in between too.
    run(
        &mut acme,
        &stage.sql(
            "CREATE TABLE {0}_acme.inner_table (i int); INSERT INTO {0}_acme.inner_table VALUES (5);
             CREATE TABLE {0}_acme.seen (who text);
             CREATE FUNCTION {0}_acme.see(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
               $$ BEGIN PERFORM {0}_acme.note(i); RETURN i; END $$;
             CREATE FUNCTION {0}_acme.note(i int) RETURNS void LANGUAGE plpgsql AS $$
               BEGIN
                 INSERT INTO {0}_acme.seen VALUES (i || ' ' || coalesce(agd.current_tenant(), 'nobody'));
                 IF i = 6 THEN RAISE EXCEPTION 'no'; END IF;
               END $$;
             CREATE FUNCTION {0}_acme.nested() RETURNS int LANGUAGE plpgsql AS $$
             BEGIN
               PERFORM {0}_acme.note(1);
               CREATE INDEX inner_index ON {0}_acme.inner_table ({0}_acme.see(i));
               PERFORM {0}_acme.note(2);
               DROP INDEX {0}_acme.inner_index;
               BEGIN
                 CREATE INDEX inner_index ON {0}_acme.inner_table ({0}_acme.see(i + 1));
               EXCEPTION WHEN raise_exception THEN NULL;
               END;
               PERFORM {0}_acme.note(3);
               RETURN 0;
             END $$;
             CREATE MATERIALIZED VIEW {0}_acme.nests AS SELECT {0}_acme.nested() AS i",
        ),
    );
    assert_eq!(
        column(&mut acme, &stage.sql("SELECT who FROM {0}_acme.seen ORDER BY ctid")),
        ["1 acme", "5 nobody", "2 acme", "3 acme"]
    );
    // What fails in it leaves nothing behind: the next restricted operation is nobody's.
    expect_sqlstate(
        acme.batch_execute(
            &stage.sql("CREATE MATERIALIZED VIEW {0}_acme.fails AS SELECT 1 / (count(*) - 3) FROM public.orders"),
        ),
        "22012",
    );
    run(
        &mut acme,
        &stage.sql("DELETE FROM {0}_acme.seen; CREATE INDEX inner_index ON {0}_acme.inner_table ({0}_acme.see(i))"),
    );
    assert_eq!(column(&mut acme, &stage.sql("SELECT who FROM {0}_acme.seen")), ["5 nobody"]);
    stage.expect_nothing_planted();
}

/// SECURITY DEFINER: reading the record and acting for a tenant need both, who calls and whose function it is.
#[test]
fn within_somebodys_function_both_must_be_allowed() {
    let stage = Stage::new("both");
    let mut superuser = stage.superuser();
    let roles = ["postgres", "acme", "globex", "plat", "aud", "pub", "app"];
    let name = |role: &str| if role == "postgres" { role.to_owned() } else { stage.sql(&format!("{{0}}_{role}")) };
    for role in roles {
        run(
            &mut superuser,
            &stage.sql(&format!(
                "CREATE FUNCTION {{0}}_lend.run_as_{role}(sql text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
                   DECLARE outcome text; BEGIN EXECUTE sql INTO outcome; RETURN outcome;
                   EXCEPTION WHEN insufficient_privilege THEN RETURN 'refused'; END $$;
                 ALTER FUNCTION {{0}}_lend.run_as_{role} OWNER TO {};",
                name(role)
            )),
        );
    }
    // Whose events each may read, and whose fleets each acts for.
    let headers = |role: &str| match role {
        "postgres" | "plat" | "aud" => vec!["acme", "globex", "platform"],
        "acme" => vec!["acme"],
        "globex" => vec!["globex"],
        _ => vec![],
    };
    let payload = |role: &str| match role {
        "postgres" => vec!["acme", "globex", "platform"],
        "acme" => vec!["acme"],
        "globex" => vec!["globex"],
        _ => vec![],
    };
    let acts = |role: &str| match role {
        "postgres" | "plat" => vec!["acme", "globex"],
        "acme" => vec!["acme"],
        "globex" => vec!["globex"],
        _ => vec![],
    };
    let common = |outer: Vec<&'static str>, inner: Vec<&'static str>| -> String {
        let both: Vec<&str> = outer.into_iter().filter(|tenant| inner.contains(tenant)).collect();
        if both.is_empty() { "NULL".into() } else { both.join(",") }
    };
    let called_by = |client: &mut Client, definer: &str, sql: &str| -> String {
        let call = stage.sql(&format!("SELECT {{0}}_lend.run_as_{definer}($1)"));
        client.query_one(&call, &[&sql]).unwrap().get::<_, Option<String>>(0).unwrap_or_else(|| "NULL".into())
    };
    let origin = column(&mut superuser, "SELECT min(origin) FROM agd.anchors WHERE tenant IS NULL").remove(0);
    for caller in roles {
        let mut client = if caller == "postgres" { stage.superuser() } else { stage.login(caller) };
        for definer in roles {
            let at = format!("{caller} calls {definer}'s function");
            // Who may not even look at the view is refused by PostgreSQL.
            let may_look = definer != "pub";
            if may_look {
                let seen = "SELECT string_agg(DISTINCT coalesce(tenant, 'platform'), ',' ORDER BY coalesce(tenant, 'platform')) FROM agd.events";
                assert_eq!(called_by(&mut client, definer, seen), common(headers(caller), headers(definer)), "{at}");
                let seen = "SELECT string_agg(DISTINCT coalesce(tenant, 'platform'), ',' ORDER BY coalesce(tenant, 'platform')) FROM agd.events
                             WHERE row_key IS NOT NULL";
                assert_eq!(called_by(&mut client, definer, seen), common(payload(caller), payload(definer)), "{at}");
                let seen = "SELECT string_agg(DISTINCT tenant, ',' ORDER BY tenant) FROM agd.fleets";
                let tenants = |role| headers(role).into_iter().filter(|tenant| *tenant != "platform").collect();
                assert_eq!(called_by(&mut client, definer, seen), common(tenants(caller), tenants(definer)), "{at}");
            }
            for tenant in ["acme", "globex"] {
                let both = acts(caller).contains(&tenant) && acts(definer).contains(&tenant);
                let minted =
                    called_by(&mut client, definer, &format!("SELECT agd.mint_tenant_fleet('{tenant}', 'first')"));
                assert_eq!(minted != "refused", both, "{at} to mint for {tenant}: {minted}");
                let both = headers(caller).contains(&tenant) && headers(definer).contains(&tenant);
                let fleet =
                    column(&mut superuser, &format!("SELECT fleet_id FROM agd.fleets WHERE tenant = '{tenant}'"))
                        .remove(0);
                for sql in [
                    format!("SELECT agd.fleet_statement('{fleet}')::text"),
                    format!("SELECT count(*)::text FROM agd.verify_fleet('{fleet}')"),
                ] {
                    let told = called_by(&mut client, definer, &sql);
                    assert_eq!(told != "refused", both, "{at}: {sql}: {told}");
                }
            }
            let publishes = |role: &str| matches!(role, "postgres" | "pub");
            let both = publishes(caller) && publishes(definer);
            let entries =
                called_by(&mut client, definer, &format!("SELECT count(*)::text FROM agd.entries('{origin}', 0, 1)"));
            assert_eq!(entries != "refused", both, "{at} to read entries: {entries}");
            // The wall: the session's binding stands in anybody's function, but for another tenant's.
            let bound = if matches!(caller, "acme" | "globex") { caller } else { "NULL" };
            let others = matches!(definer, "acme" | "globex") && definer != caller;
            let expected = if others { "NULL" } else { bound };
            assert_eq!(called_by(&mut client, definer, "SELECT agd.current_tenant()"), expected, "{at}");
            if others || bound == "NULL" && definer != "postgres" {
                let rows = called_by(&mut client, definer, "SELECT count(*)::text FROM public.orders");
                assert_eq!(rows, "0", "{at}");
                for tenant in ["acme", "globex"] {
                    let sql =
                        format!("INSERT INTO public.orders VALUES ('{tenant}', 77, 'planted') RETURNING id::text");
                    assert_eq!(called_by(&mut client, definer, &sql), "refused", "{at}");
                }
            }
        }
    }
    // Above the wall is who is so himself, and in nobody else's function.
    let insert = "INSERT INTO public.orders VALUES ('globex', 78, 'by owner') RETURNING id::text";
    let mut owner = stage.login("owner");
    run(&mut superuser, &stage.sql("GRANT USAGE ON SCHEMA {0}_lend TO PUBLIC"));
    assert_eq!(called_by(&mut superuser, "postgres", insert), "78");
    assert_eq!(called_by(&mut superuser, "app", &insert.replace("78", "79")), "refused");
    assert_eq!(called_by(&mut owner, "acme", &insert.replace("78", "80")), "refused");
    stage.expect_nothing_planted();
}

/// What PostgreSQL runs as whoever runs the statement is his own: a check that a superuser validates, a generated column. The
/// wall and the record do not stand between a superuser and himself; between tenants they do.
#[test]
fn what_runs_as_the_one_who_runs_it_is_his() {
    let stage = Stage::new("hisown");
    let mut acme = stage.login("acme");
    let mut globex = stage.login("globex");
    run(
        &mut acme,
        &stage.sql(
            "GRANT USAGE ON SCHEMA {0}_acme TO {0}_globex;
             CREATE TABLE {0}_acme.seen (who text); GRANT INSERT ON {0}_acme.seen TO {0}_globex;
             CREATE FUNCTION {0}_acme.note() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
               INSERT INTO {0}_acme.seen SELECT concat_ws(' ', current_user, agd.current_tenant(), (SELECT string_agg(DISTINCT tenant, ',') FROM public.orders));
             END $$;
             CREATE FUNCTION {0}_acme.see(i int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM {0}_acme.note(); RETURN i; END $$;
             CREATE FUNCTION {0}_acme.see_as_acme() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN PERFORM {0}_acme.note(); END $$;
             CREATE TABLE {0}_acme.gift (i int, g int GENERATED ALWAYS AS ({0}_acme.see(i)) STORED); GRANT INSERT ON {0}_acme.gift TO {0}_globex",
        ),
    );
    run(&mut globex, &stage.sql("INSERT INTO {0}_acme.gift VALUES (1)"));
    run(&mut globex, &stage.sql("SELECT {0}_acme.see_as_acme()"));
    assert_eq!(
        column(&mut acme, &stage.sql("SELECT replace(who, '{0}', '') FROM {0}_acme.seen ORDER BY ctid")),
        ["_globex globex globex", "_acme"]
    );
    stage.expect_nothing_planted();
}
