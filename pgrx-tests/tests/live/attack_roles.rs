//! Attacks by what a role was granted elsewhere: predefined roles on agd's own tables, views with functions that tell, and roles
//! that take another's number or name.

use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Cluster, TestDb, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

struct Stage {
    database: TestDb<'static>,
    prefix: &'static str,
}

impl Stage {
    /// Two tenants with a row each, and a fleet of globex's.
    fn new(prefix: &'static str) -> Self {
        let stage = Self { database: cluster().agd_database(prefix).unwrap(), prefix };
        for (role, options) in [
            ("acme", "IN ROLE agd_tenant"),
            ("globex", "IN ROLE agd_tenant"),
            ("plat", "IN ROLE agd_platform"),
            ("aud", "IN ROLE agd_auditor"),
            ("pub", "IN ROLE agd_publisher"),
            ("stranger", ""),
            ("reads", "IN ROLE pg_read_all_data"),
            ("writes", "IN ROLE pg_write_all_data"),
            ("both", "IN ROLE pg_read_all_data, pg_write_all_data"),
        ] {
            cluster().create_role(&format!("{prefix}_{role}"), options).unwrap();
        }
        let setup = "
            CREATE TABLE orders (tenant text, id int, secret text, PRIMARY KEY (tenant, id));
            SELECT agd.create_tenant('acme'), agd.create_tenant('globex');
            SELECT agd.guard('orders', tenant_column => 'tenant', redact => '{secret}');
            SELECT agd.map_role('{0}_acme', 'acme'); SELECT agd.map_role('{0}_globex', 'globex');
            GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {0}_acme, {0}_globex;
            SELECT agd.mint_tenant_fleet('globex', 'globex has reasons'), agd.mint_tenant_fleet('acme', 'acme has some, too');
            INSERT INTO orders VALUES ('acme', 1, 'a secret'), ('globex', 1, 'their secret');
            SELECT agd.add_tenant_key('acme', 'k1', '\\x5866666666666666666666666666666666666666666666666666666666666666');
            SELECT count(*) FROM agd.anchor();
            CREATE SCHEMA lair; GRANT ALL ON SCHEMA lair TO {0}_acme, {0}_both";
        stage.superuser().batch_execute(&setup.replace("{0}", prefix)).unwrap();
        stage
    }

    fn superuser(&self) -> Client {
        self.database.connect().unwrap()
    }

    fn login(&self, role: &str) -> Client {
        self.database.connect_as(&format!("{}_{role}", self.prefix)).unwrap()
    }
}

#[track_caller]
fn column(client: &mut Client, sql: &str) -> Vec<String> {
    match client.query(sql, &[]) {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

const OWN_TABLES: &str = "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'p') ORDER BY 1";

/// Every table of the schema, those that come later included: who is granted everything by PostgreSQL's own roles sees no row of it.
#[test]
fn pg_read_all_data_sees_no_row_of_agds_tables() {
    let stage = Stage::new("reads_all");
    let mut superuser = stage.superuser();
    let tables = column(&mut superuser, OWN_TABLES);
    assert!(tables.len() >= 19, "{tables:?}");
    let open =
        "SELECT c.relname::text FROM pg_class c WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'p')
                  AND NOT (c.relrowsecurity AND c.relforcerowsecurity)";
    assert_eq!(column(&mut superuser, open), [""; 0]);
    for role in ["reads", "both"] {
        let mut client = stage.login(role);
        for table in &tables {
            assert_eq!(column(&mut client, &format!("SELECT count(*)::text FROM {table}")), ["0"], "{role} {table}");
            expect_sqlstate(client.batch_execute(&format!("SET row_security = off; SELECT * FROM {table}")), "42501");
            client.batch_execute("RESET row_security").unwrap();
            let copied = std::io::read_to_string(client.copy_out(&format!("COPY {table} TO STDOUT")).unwrap()).unwrap();
            assert_eq!(copied, "", "{role} {table}");
        }
        // Nor through the views: what these ask who reads them is not granted to such a role.
        for view in ["events", "anchors", "fleets", "fleet_agents", "countersign_requests", "fleet_pending_cancel"] {
            expect_sqlstate(client.batch_execute(&format!("SELECT count(*) FROM agd.{view}")), "42501");
        }
    }
    // Who is granted a table reads it as before, and through the views as before.
    for (role, table) in
        [("plat", "agd.role_map"), ("aud", "agd.tenant"), ("acme", "agd.fleet_template"), ("plat", "agd.guarded_table")]
    {
        assert_ne!(
            column(&mut stage.login(role), &format!("SELECT count(*)::text FROM {table}")),
            ["0"],
            "{role} {table}"
        );
    }
    expect_sqlstate(stage.login("acme").batch_execute("SELECT * FROM agd.role_map"), "42501");
    assert_eq!(column(&mut stage.login("acme"), "SELECT DISTINCT tenant FROM agd.events"), ["acme"]);
    expect_verified(&mut superuser);
}

#[test]
fn pg_write_all_data_writes_no_row_of_agds_tables() {
    let stage = Stage::new("writes_all");
    let mut superuser = stage.superuser();
    let before = column(&mut superuser, "SELECT count(*)::text FROM agd.event WHERE action NOT LIKE 'DENIED%'");
    for role in ["writes", "both"] {
        let mut client = stage.login(role);
        for table in column(&mut superuser, OWN_TABLES) {
            let name = table.trim_start_matches("agd.");
            let row = superuser
                .query_one(
                    "SELECT string_agg(quote_ident(attname), ',' ORDER BY attnum), string_agg('NULL', ',') FROM pg_attribute
                      WHERE attrelid = ('agd.' || $1)::regclass AND attnum > 0 AND NOT attisdropped",
                    &[&name],
                )
                .unwrap();
            let (columns, nulls): (String, String) = (row.get(0), row.get(1));
            let insert = format!("INSERT INTO {table} ({columns}) VALUES ({nulls})");
            let error = client.batch_execute(&insert).unwrap_err();
            let code = error.as_db_error().unwrap().code().code().to_owned();
            assert!(matches!(code.as_str(), "42501" | "AG002"), "{role} {insert}: {error:?}");
            for sql in [
                format!("UPDATE {table} SET {} = NULL", columns.split(',').next().unwrap()),
                format!("DELETE FROM {table}"),
            ] {
                match client.execute(&sql, &[]) {
                    Ok(rows) => assert_eq!(rows, 0, "{role} {sql}"),
                    Err(error) => {
                        let code = error.as_db_error().unwrap().code().code().to_owned();
                        assert!(matches!(code.as_str(), "42501" | "AG002"), "{role} {sql}: {error:?}");
                    }
                }
            }
            expect_sqlstate(client.batch_execute(&format!("TRUNCATE {table}")), "42501");
        }
        expect_sqlstate(
            client.batch_execute(&format!(
                "INSERT INTO agd.role_map (role, tenant, mode) VALUES ('writes_all_{role}', 'globex', 'role')"
            )),
            "AG002",
        );
    }
    assert_eq!(column(&mut superuser, "SELECT count(*)::text FROM agd.event WHERE action NOT LIKE 'DENIED%'"), before);
    // Not by BYPASSRLS either, nor through a superuser's function.
    superuser
        .batch_execute(
            "ALTER ROLE writes_all_both BYPASSRLS;
             CREATE FUNCTION public.put() RETURNS void LANGUAGE sql SECURITY DEFINER AS
               $$ INSERT INTO agd.role_map (role, tenant, mode) VALUES ('writes_all_stranger', 'globex', 'role') $$",
        )
        .unwrap();
    let mut both = stage.login("both");
    for sql in [
        "INSERT INTO agd.role_map (role, tenant, mode) VALUES ('writes_all_both', 'globex', 'role')",
        "UPDATE agd.role_map SET tenant = 'globex'",
        "DELETE FROM agd.role_map",
        "INSERT INTO agd.tenant (tenant) VALUES ('initech')",
        "UPDATE agd.tenant SET display_name = 'x'",
        "INSERT INTO agd.tenant_key (kid, tenant, public_key) VALUES ('k2', 'globex', sha256('x'))",
        "UPDATE agd.tenant_key SET revoked_at = now(), revoke_reason = 'x'",
        "INSERT INTO agd.signer (signer, duty, public_key, registered_at) VALUES ('Me', 'coordinator', sha256('x'), now())",
        "DELETE FROM agd.redaction_key",
        "UPDATE agd.redaction_key SET key = sha256('x')",
        "INSERT INTO agd.publication (log_id, tree_size, published_to) VALUES (1, 1, 'nowhere')",
        "DELETE FROM agd.publication",
        "INSERT INTO agd.timestamped (log_id, tree_size, stamped_at) VALUES (1, 1, now())",
        "DELETE FROM agd.verified",
    ] {
        expect_sqlstate(both.batch_execute(sql), "AG002");
    }
    expect_sqlstate(stage.login("stranger").batch_execute("SELECT public.put()"), "AG002");
    assert_eq!(
        column(&mut superuser, "SELECT role::text FROM agd.role_map ORDER BY 1"),
        ["writes_all_acme", "writes_all_globex"]
    );
    // A superuser's own hand is recorded, as before; receipts are nobody's to write.
    superuser.batch_execute("UPDATE agd.tenant SET display_name = 'Globex Ltd' WHERE tenant = 'globex'").unwrap();
    expect_sqlstate(superuser.batch_execute("DELETE FROM agd.publication"), "AG002");
    expect_sqlstate(superuser.batch_execute("UPDATE agd.redaction_key SET key = sha256('x')"), "AG002");
    superuser.batch_execute("DELETE FROM agd.redaction_key").unwrap();
    anchor(&mut superuser);
    expect_verified(&mut superuser);
}

/// A function that tells what it is given, so cheap that the planner would like to call it first: on every view that a tenant may
/// read, and every column.
#[test]
fn functions_in_where_are_shown_only_what_the_view_shows() {
    let stage = Stage::new("leaky");
    let mut acme = stage.login("acme");
    acme.batch_execute(
        "CREATE TABLE lair.seen (v text);
         CREATE FUNCTION lair.tell(v text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN INSERT INTO lair.seen VALUES (v); RETURN true; END $$",
    )
    .unwrap();
    let views = column(
        &mut acme,
        "SELECT format('%s %s', c.oid::regclass, quote_ident(a.attname)) FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
          WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind = 'v' AND a.attnum > 0 AND has_table_privilege(c.oid, 'SELECT')",
    );
    assert!(views.len() > 60, "{views:?}");
    for view in &views {
        let (view, name) = view.split_once(' ').unwrap();
        for condition in [
            format!("lair.tell({name}::text)"),
            format!("lair.tell({name}::text) AND agd.may_read('acme')"),
            format!("1 / (CASE WHEN {name}::text LIKE '%globex%' THEN 0 ELSE 1 END) = 1"),
        ] {
            column(&mut acme, &format!("SELECT 1::text FROM {view} WHERE {condition}"));
        }
        let barrier = format!("SELECT reloptions::text FROM pg_class WHERE oid = '{view}'::regclass");
        assert_eq!(column(&mut acme, &barrier), ["{security_barrier=true}"], "{view}");
    }
    assert_eq!(column(&mut acme, "SELECT v FROM lair.seen WHERE v LIKE '%globex%'"), [""; 0]);
    assert_ne!(column(&mut acme, "SELECT count(*)::text FROM lair.seen WHERE v LIKE '%acme%'"), ["0"]);
    // What a tenant may call with another's identifiers tells nothing.
    anchor(&mut stage.superuser());
    let theirs: String = stage
        .superuser()
        .query_one("SELECT event_id FROM agd.events WHERE tenant = 'globex' AND leaf_index IS NOT NULL LIMIT 1", &[])
        .unwrap()
        .get(0);
    let origin: String = stage
        .superuser()
        .query_one("SELECT origin FROM agd.anchors WHERE tenant = 'globex' LIMIT 1", &[])
        .unwrap()
        .get(0);
    for (sql, state) in [
        (format!("SELECT * FROM agd.inclusion_proof('{theirs}')"), "02000"),
        ("SELECT * FROM agd.inclusion_proof('1-1')".into(), "02000"),
        (format!("SELECT agd.tlog_proof('{theirs}')"), "02000"),
        (format!("SELECT agd.consistency_proof('{origin}', 0, 1)"), "22023"),
        ("SELECT agd.consistency_proof('nowhere', 0, 1)".into(), "22023"),
        (format!("SELECT * FROM agd.export_events('{origin}', 0, 1)"), "22023"),
        ("SELECT * FROM agd.export_events('nowhere', 0, 1)".into(), "22023"),
    ] {
        expect_sqlstate(acme.batch_execute(&sql), state);
    }
    let index = format!(
        "SELECT coalesce(agd.leaf_index('{theirs}', t, now())::text, '-') FROM unnest('{{acme,globex,initech}}'::text[]) t"
    );
    assert_eq!(column(&mut acme, &index), ["-", "-", "-"]);
    let reads =
        "SELECT concat(agd.may_read(t), agd.may_read_payload(t)) FROM unnest('{acme,globex,initech}'::text[]) t";
    assert_eq!(column(&mut acme, reads), ["tt", "ff", "ff"]);
    assert_eq!(
        column(&mut acme, "SELECT count(*)::text FROM agd.history('orders', '{\"tenant\": \"globex\"}')"),
        ["0"]
    );
}

/// A role's number is nobody else's while it is mapped, whatever is dropped from wherever.
#[test]
fn a_mapped_role_cannot_be_dropped() {
    let stage = Stage::new("dropped");
    let mut superuser = stage.superuser();
    let elsewhere = cluster().database("elsewhere").unwrap();
    for mut client in [stage.superuser(), elsewhere.connect().unwrap()] {
        expect_sqlstate(client.batch_execute("DROP OWNED BY dropped_stranger; DROP ROLE dropped_acme"), "2BP01");
    }
    superuser.batch_execute("REASSIGN OWNED BY dropped_acme TO postgres").unwrap();
    let error = expect_sqlstate(superuser.batch_execute("DROP OWNED BY dropped_stranger, dropped_acme"), "AG002");
    expect_hint(&error, "agd.unmap_role('dropped_acme'");
    // From elsewhere it takes away nothing of this database's.
    elsewhere.connect().unwrap().batch_execute("DROP OWNED BY dropped_acme CASCADE").unwrap();
    expect_sqlstate(superuser.batch_execute("DROP ROLE dropped_acme"), "2BP01");
    expect_sqlstate(stage.login("acme").batch_execute("DROP OWNED BY CURRENT_USER"), "AG002");
    // Who has no business with it learns nothing.
    expect_sqlstate(stage.login("stranger").batch_execute("DROP OWNED BY dropped_acme"), "42501");
    for (role, sql, state) in [
        ("acme", "SELECT agd.unmap_role('dropped_acme', 'why not')", "42501"),
        ("aud", "SELECT agd.unmap_role('dropped_acme', 'why not')", "42501"),
        ("plat", "SELECT agd.unmap_role('dropped_stranger', 'not mapped')", "55000"),
        ("plat", "SELECT agd.unmap_role('dropped_acme', ' ')", "22023"),
        ("plat", "SELECT agd.unmap_role(NULL, 'why')", "22023"),
    ] {
        expect_sqlstate(stage.login(role).batch_execute(sql), state);
    }
    // A session that is open is nobody's from then on.
    let mut acme = stage.login("acme");
    assert_eq!(column(&mut acme, "SELECT tenant FROM orders"), ["acme"]);
    stage.login("plat").batch_execute("SELECT agd.unmap_role('dropped_acme', 'acme has left')").unwrap();
    assert_eq!(column(&mut acme, "SELECT tenant FROM orders"), [""; 0]);
    drop(acme);
    let told = "SELECT concat_ws(' ', action, session_user_name, coalesce(old->>'role_name', body)) FROM agd.events
                 WHERE relation = 'agd.role_map' AND action IN ('DELETE', 'UNMAP') ORDER BY committed_at, split_part(event_id, '-', 2)::int";
    assert_eq!(
        column(&mut superuser, told),
        [
            "DELETE dropped_plat dropped_acme",
            "UNMAP dropped_plat role=dropped_acme tenant=acme mode=role reason=acme has left"
        ]
    );
    superuser.batch_execute("DROP OWNED BY dropped_acme; DROP ROLE dropped_acme").unwrap();
    anchor(&mut superuser);
    expect_verified(&mut superuser);
    assert_eq!(column(&mut superuser, "SELECT problem FROM agd.verify_table('agd.role_map')"), [""; 0]);
}

/// A rename changes nothing in a running cluster, and is written down.
#[test]
fn a_renamed_role_is_the_same_role() {
    let stage = Stage::new("renamed");
    let mut superuser = stage.superuser();
    superuser
        .batch_execute(
            "ALTER ROLE renamed_acme RENAME TO renamed_acme_new; ALTER ROLE renamed_stranger RENAME TO renamed_acme",
        )
        .unwrap();
    let names = "SELECT role::text || ' ' || role_name FROM agd.role_map WHERE tenant = 'acme'";
    assert_eq!(column(&mut superuser, names), ["renamed_acme_new renamed_acme_new"]);
    assert_eq!(column(&mut stage.login("acme_new"), "SELECT agd.current_tenant()"), ["acme"]);
    let current = "SELECT coalesce(agd.current_tenant(), 'NULL')";
    assert_eq!(column(&mut stage.login("acme"), current), ["NULL"]);
    superuser.batch_execute("SELECT agd.unmap_role('renamed_acme_new', 'by its new name'); DROP OWNED BY renamed_acme_new; DROP ROLE renamed_acme_new").unwrap();
    anchor(&mut superuser);
    expect_verified(&mut superuser);
}

/// After a dump and a restore a number is whoever's it is there. What is loaded counts by name, and `agd.resume()` takes no number
/// for a name.
#[test]
fn a_dropped_roles_mapping_does_not_pass_to_a_stranger() {
    let stage = Stage::new("passes");
    let mut superuser = stage.superuser();
    // As it was before agd refused to drop a mapped role, or by somebody who went past that: the row holds a number.
    superuser
        .batch_execute(
            "REVOKE ALL ON TYPE agd.mapped_role FROM passes_acme; SET allow_system_table_mods = on;
             REVOKE ALL ON orders FROM passes_acme; REVOKE ALL ON SCHEMA lair FROM passes_acme; DROP ROLE passes_acme",
        )
        .unwrap();
    let number: String =
        superuser.query_one("SELECT role::text FROM agd.role_map WHERE tenant = 'acme'", &[]).unwrap().get(0);
    number.parse::<u32>().expect("a number");
    let dumped = cluster().dump(&["-Fp", "-d", stage.database.name()]).unwrap();
    let copy = cluster().database("passes_copy").unwrap();
    // There the number is a stranger's.
    let stranger: u32 =
        superuser.query_one("SELECT oid FROM pg_roles WHERE rolname = 'passes_stranger'", &[]).unwrap().get(0);
    let tampered = dumped.replace(&format!("\n{number}\tacme\t"), &format!("\n{stranger}\tacme\t"));
    assert_ne!(tampered, dumped);
    let restored = cluster().psql(copy.name(), "postgres", &tampered).unwrap();
    assert!(restored.success, "{}", restored.stderr);
    let mut there = copy.connect().unwrap();
    let current = "SELECT coalesce(agd.current_tenant(), 'NULL')";
    assert_eq!(column(&mut copy.connect_as("passes_stranger").unwrap(), current), ["NULL"], "before it is resumed");
    assert_eq!(column(&mut copy.connect_as("passes_globex").unwrap(), current), ["globex"]);
    let error = expect_sqlstate(there.batch_execute("SELECT agd.resume()"), "55000");
    assert!(error.message().contains("passes_acme"), "{}", error.message());
    expect_hint(&error, "agd.unmap_role('passes_acme'");
    expect_sqlstate(there.batch_execute("SELECT agd.unmap_role('passes_globex', 'not in the way')"), "55000");
    // What it hints at works, in one transaction and not in two.
    there.batch_execute("SELECT agd.unmap_role('passes_acme', 'its role is gone')").unwrap();
    expect_sqlstate(there.batch_execute("SELECT agd.resume()"), "55000");
    there
        .batch_execute("BEGIN; SELECT agd.unmap_role('passes_acme', 'its role is gone'); SELECT agd.resume(); COMMIT")
        .unwrap();
    assert_eq!(column(&mut copy.connect_as("passes_stranger").unwrap(), current), ["NULL"]);
    assert_eq!(column(&mut there, "SELECT role_name FROM agd.role_map"), ["passes_globex"]);
    // Who is mapped there is tied there.
    superuser.batch_execute("SELECT agd.unmap_role('passes_globex', 'here alone')").unwrap();
    expect_sqlstate(there.batch_execute("DROP ROLE passes_globex"), "2BP01");
    anchor(&mut there);
    expect_verified(&mut there);
}
