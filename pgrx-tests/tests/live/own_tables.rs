//! agd's own tables that carry decisions (tenants, roles, guards) are behind the gate like any other.

use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Cluster, Watch, expect_sqlstate};
use std::sync::OnceLock;

fn set_up(stem: &str, setup: &str) -> Watch {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Watch::new(CLUSTER.get_or_init(|| Cluster::builder().start().unwrap()), stem, setup).unwrap()
}

const OWN: &str = "SELECT format('%s %s %s', relation, action, coalesce(row_key->>'tenant', row_key->>'role', new->>'relation', old->>'relation', ''))
                     FROM agd.events WHERE relation LIKE 'agd.%' AND action <> 'DENIED' ORDER BY split_part(event_id, '-', 1)::numeric, split_part(event_id, '-', 2)::int";

const TABLES: [&str; 11] = [
    "agd.tenant",
    "agd.role_map",
    "agd.tenant_key",
    "agd.log_key",
    "agd.guarded_table",
    "agd.signer",
    "agd.fleet_template",
    "agd.tenant_agent_fleet",
    "agd.fleet_agent",
    "agd.countersign_request",
    "agd.fleet_signature",
];

#[track_caller]
fn expect_reconciled(g: &mut Watch) {
    for table in TABLES {
        assert_eq!(g.column::<String>(&format!("SELECT problem FROM agd.verify_table('{table}')")), [""; 0], "{table}");
    }
    anchor(g);
    expect_verified(g);
}

#[test]
fn what_agds_functions_decide_is_recorded() {
    let mut g = set_up("decides", "CREATE TABLE t (id int PRIMARY KEY)");
    g.run("DROP ROLE IF EXISTS own_app; CREATE ROLE own_app LOGIN");
    g.run("SELECT agd.create_tenant('acme')");
    g.run("SELECT agd.map_role('own_app', 'acme'); SELECT agd.guard('t'); SELECT agd.unguard('t', 'tried')");
    assert_eq!(
        g.column::<String>(OWN),
        [
            "agd.tenant INSERT acme",
            "agd.role_map INSERT own_app",
            "agd.guarded_table INSERT public.t",
            "agd.guarded_table DELETE public.t"
        ]
    );
    let who: Vec<String> = g.column("SELECT DISTINCT session_user_name FROM agd.events WHERE relation LIKE 'agd.%'");
    assert_eq!(who, ["postgres"]);
    // A call that fails, or does nothing, leaves nothing.
    expect_sqlstate(g.batch_execute("SELECT agd.create_tenant('acme')"), "23505");
    g.run("BEGIN; SELECT agd.create_tenant('globex'); ROLLBACK");
    assert_eq!(g.column::<String>(OWN).len(), 4);
    expect_reconciled(&mut g);
    // PostgreSQL refuses to drop a role that is mapped.
    expect_sqlstate(g.batch_execute("DROP ROLE own_app"), "2BP01");
    g.run("SELECT agd.unmap_role('own_app', 'the end of the test'); DROP ROLE own_app");
}

#[test]
fn a_superusers_own_sql_is_recorded_and_known_at_once() {
    let mut g = set_up(
        "by_hand",
        "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); SELECT agd.create_tenant('acme'); SELECT agd.create_tenant('globex')",
    );
    let mut other = g.database().connect().unwrap();
    other.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    // A superuser's too: a row less would take a table out without a word.
    for sql in [
        "UPDATE agd.guarded_table SET require_cause = true",
        "DELETE FROM agd.guarded_table",
        "INSERT INTO agd.guarded_table SELECT gen_random_uuid(), 'pg_class', tenant_column, require_cause, on_truncate FROM agd.guarded_table",
        "MERGE INTO agd.guarded_table g USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
        "SET session_replication_role = replica; DELETE FROM agd.guarded_table",
    ] {
        expect_sqlstate(g.batch_execute(sql), "AG002");
    }
    g.run("RESET session_replication_role");
    g.run("SELECT agd.unguard('t', 'to guard it anew'); SELECT agd.guard('t', require_cause => true)");
    // A session that has the guard in its cache obeys the changed one.
    expect_sqlstate(other.batch_execute("INSERT INTO t VALUES (2)"), "AG005");
    g.run("UPDATE agd.tenant SET display_name = 'Globex Ltd' WHERE tenant = 'globex'");
    g.run("SELECT agd.unguard('t', 'to guard it anew'); SELECT agd.guard('t')");
    other.batch_execute("INSERT INTO t VALUES (2)").unwrap();
    let updates: Vec<String> = g.column(
        "SELECT relation FROM agd.events WHERE relation LIKE 'agd.%' AND action = 'UPDATE' ORDER BY committed_at",
    );
    assert_eq!(updates, ["agd.tenant"]);
    expect_reconciled(&mut g);
}

#[test]
fn they_cannot_be_emptied_or_taken_out() {
    let mut g = set_up("stay", "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t')");
    for table in TABLES {
        expect_sqlstate(g.batch_execute(&format!("TRUNCATE {table} CASCADE")), "AG002");
        expect_sqlstate(g.batch_execute(&format!("ALTER TABLE {table} DISABLE TRIGGER ALL")), "AG002");
        expect_sqlstate(g.batch_execute(&format!("DROP TRIGGER \"~agd_record\" ON {table}")), "AG002");
        expect_sqlstate(g.batch_execute(&format!("SELECT agd.unguard('{table}', 'why not')")), "55000");
        expect_sqlstate(g.batch_execute(&format!("SELECT agd.guard('{table}')")), "0A000");
        let intact: bool = g.one(&format!("SELECT intact FROM agd.coverage() WHERE relation = '{table}'::regclass"));
        assert!(intact, "{table}");
    }
    // A tenant stays, under its name: the records speak of it. So does its key, for it, and revoked is revoked.
    g.run("SELECT agd.create_tenant('acme')");
    let key = format!("'\\x58{}'", "66".repeat(31));
    g.run(&format!("SELECT agd.add_tenant_key('acme', 'k1', {key}); SELECT agd.revoke_tenant_key('k1', 'tried')"));
    for sql in [
        "DELETE FROM agd.tenant",
        "UPDATE agd.tenant SET tenant = 'globex'",
        "DELETE FROM agd.tenant_key",
        "UPDATE agd.tenant_key SET tenant = 'globex'",
        "UPDATE agd.tenant_key SET kid = 'k2'",
        "UPDATE agd.tenant_key SET public_key = sha256('x')",
        "UPDATE agd.tenant_key SET revoked_at = NULL, revoke_reason = NULL",
    ] {
        expect_sqlstate(g.batch_execute(sql), "AG002");
    }
    g.run("SET session_replication_role = replica; UPDATE agd.tenant SET display_name = 'Acme'; RESET session_replication_role");
    assert_eq!(
        g.column::<String>(OWN),
        [
            "agd.guarded_table INSERT public.t",
            "agd.tenant INSERT acme",
            "agd.tenant_key INSERT ",
            "agd.tenant_key UPDATE ",
            "agd.tenant UPDATE acme"
        ]
    );
}

/// A change that goes past the gate is found, as in any guarded table.
#[test]
fn a_role_mapped_behind_the_gate_is_found() {
    let mut g = set_up("behind", "SELECT agd.create_tenant('acme')");
    g.run(
        "SET allow_system_table_mods = on;
         UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 'agd.role_map'::regclass AND tgname LIKE '~agd%'",
    );
    let mut forger = g.database().connect().unwrap();
    forger.batch_execute("INSERT INTO agd.role_map VALUES ('pg_monitor', 'acme', 'role')").unwrap();
    let problems: Vec<String> = g.column("SELECT problem FROM agd.verify_table('agd.role_map')");
    assert!(problems.len() == 1 && problems[0].contains("without a record"), "{problems:?}");
    let detail: String = g.one("SELECT detail FROM agd.coverage() WHERE relation = 'agd.role_map'::regclass");
    assert!(detail.contains("~agd_record"), "{detail}");
}

/// Before the first event a database looks like one that is being restored. What was put there by hand is told with that
/// event.
#[test]
fn rows_from_before_the_first_event_are_in_the_record() {
    let mut g = set_up("before", "INSERT INTO agd.tenant (tenant) VALUES ('early')");
    assert_eq!(g.one::<i64>("SELECT count(*) FROM agd.event"), 0);
    g.run("SELECT agd.create_tenant('acme')");
    let recorded: Vec<String> = g.column(
        "SELECT action || ' ' || (row_key->>'tenant') FROM agd.events WHERE relation = 'agd.tenant' ORDER BY 1",
    );
    assert_eq!(recorded, ["BASELINE early", "INSERT acme"]);
    // From then on nothing passes for a restore.
    g.run("INSERT INTO agd.tenant (tenant) VALUES ('late')");
    assert_eq!(g.one::<i64>("SELECT count(*) FROM agd.events WHERE relation = 'agd.tenant'"), 3);
    expect_reconciled(&mut g);
}

#[test]
fn a_record_table_with_other_columns_closes_the_gate() {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    let cluster = CLUSTER.get_or_init(|| Cluster::builder().start().unwrap());
    let mut g = Watch::new(cluster, "altered", "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t')").unwrap();
    let align = |to: &str| {
        format!(
            "SET allow_system_table_mods = on;
             UPDATE pg_attribute SET attalign = '{to}' WHERE attrelid = 'agd.event'::regclass AND attname = 'body';
             RESET allow_system_table_mods"
        )
    };
    g.run(&align("d"));
    expect_sqlstate(g.batch_execute("INSERT INTO t VALUES (1)"), "55000");
    // Caught, and the transaction goes on: nothing may stay open in its hands.
    g.run(
        "DO $$ BEGIN
             INSERT INTO t VALUES (2); RAISE 'not refused';
         EXCEPTION WHEN object_not_in_prerequisite_state THEN NULL; END $$",
    );
    g.run(&align("i"));
    g.run("INSERT INTO t VALUES (3)");
    assert_eq!(g.column::<i32>("SELECT id FROM t"), [3]);
    let log = cluster.log();
    assert!(!log.contains("leak"), "{log}");
    expect_reconciled(&mut g);
}
