//! What can be guarded and how: refusals that say why, baseline, unguard, causes.

use agd_live_tests::record::{anchor, expect_verified, reconcile};
use agd_live_tests::{Cluster, Watch, expect_hint, expect_sqlstate};
use std::sync::OnceLock;

fn set_up(stem: &str, setup: &str) -> Watch {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Watch::new(CLUSTER.get_or_init(|| Cluster::builder().start().unwrap()), stem, setup).unwrap()
}

#[test]
fn what_cannot_be_guarded_says_why_and_is_unchanged() {
    let mut g = set_up(
        "refused",
        "CREATE TABLE good (id int PRIMARY KEY, tenant text); SELECT agd.guard('good');
         CREATE TEMP TABLE tempo (id int PRIMARY KEY); CREATE UNLOGGED TABLE quick (id int PRIMARY KEY);
         CREATE TABLE keyless (id int); CREATE VIEW seen AS SELECT * FROM good; CREATE MATERIALIZED VIEW mv AS SELECT 1 AS id;
         CREATE SEQUENCE seq; CREATE TABLE root (id int PRIMARY KEY) PARTITION BY LIST (id);
         CREATE TABLE leaf PARTITION OF root FOR VALUES IN (1);
         CREATE FOREIGN DATA WRAPPER fdw; CREATE SERVER srv FOREIGN DATA WRAPPER fdw; CREATE FOREIGN TABLE far (id int) SERVER srv;
         CREATE TABLE mixed (id int) PARTITION BY LIST (id); CREATE FOREIGN TABLE mixed1 PARTITION OF mixed FOR VALUES IN (1) SERVER srv;
         CREATE TABLE ancestor (id int PRIMARY KEY); CREATE TABLE heir (PRIMARY KEY (id)) INHERITS (ancestor);
         CREATE TABLE ruled (id int PRIMARY KEY); CREATE RULE r AS ON DELETE TO ruled DO INSTEAD NOTHING;
         CREATE TABLE fresh (id int PRIMARY KEY, tenant text, made text GENERATED ALWAYS AS (id::text) STORED, kind jsonb);
         CREATE TABLE filled (id int PRIMARY KEY, tenant text); INSERT INTO filled VALUES (1, NULL);
         CREATE TABLE elsewhere (id int PRIMARY KEY, tenant text); INSERT INTO elsewhere VALUES (1, 'nosuch')",
    );
    let definitions = "SELECT (SELECT string_agg(format('%s %s %s', tgrelid::regclass, tgname, tgenabled), E'\\n' ORDER BY tgrelid, tgname)
                                 FROM pg_trigger)
                           || (SELECT string_agg(format('%s %s %s', oid::regclass, relrowsecurity, relforcerowsecurity), E'\\n' ORDER BY oid)
                                 FROM pg_class)";
    let before: String = g.one(definitions);
    for (call, state, hint) in [
        ("agd.guard('tempo')", "0A000", "permanent"),
        ("agd.guard('quick')", "0A000", "SET LOGGED"),
        ("agd.guard('keyless')", "55000", "PRIMARY KEY"),
        ("agd.guard('seen')", "0A000", "tables under the view"),
        ("agd.guard('mv')", "0A000", "tables it is made from"),
        ("agd.guard('seq')", "0A000", "table"),
        ("agd.guard('far')", "0A000", "where it lives"),
        ("agd.guard('good_pkey')", "0A000", "table"),
        ("agd.guard('leaf')", "0A000", "agd.guard('public.root')"),
        ("agd.guard('mixed')", "0A000", "Detach"),
        ("agd.guard('heir')", "0A000", "partitioning"),
        ("agd.guard('ancestor')", "0A000", "partitioning"),
        ("agd.guard('ruled')", "0A000", "rules"),
        ("agd.guard('pg_catalog.pg_class')", "0A000", "users"),
        ("agd.guard('agd.event')", "0A000", "own"),
        ("agd.guard('agd.tenant')", "0A000", "own"),
        ("agd.guard('good')", "23505", "agd.unguard"),
        ("agd.guard('fresh', tenant_column => 'nosuch')", "22023", "column"),
        ("agd.guard('fresh', tenant_column => 'made')", "22023", "plain column"),
        ("agd.guard('fresh', tenant_column => 'kind')", "22023", "text"),
        ("agd.guard('fresh', tenant_column => 'tenant', on_truncate => 'record')", "0A000", "refuse"),
        ("agd.guard('root', on_truncate => 'record')", "0A000", "refuse"),
        ("agd.guard('fresh', on_truncate => 'ignore')", "22023", "record"),
        ("agd.guard('filled', tenant_column => 'tenant')", "22023", "tenant"),
        ("agd.guard('elsewhere', tenant_column => 'tenant')", "42501", "agd.create_tenant"),
        ("agd.guard(NULL)", "22023", ""),
        ("agd.guard(4000000000)", "22023", ""),
        ("agd.unguard('fresh', 'why not')", "55000", "agd.coverage()"),
        ("agd.unguard('good', '')", "22023", "recorded"),
        ("agd.unguard('good', '  ')", "22023", "recorded"),
        ("agd.unguard('good', NULL)", "22023", "recorded"),
        ("agd.unguard('good', repeat('x', 100000))", "22023", "4096"),
    ] {
        let outcome = g.batch_execute(&format!("SELECT {call}"));
        assert!(outcome.is_err(), "{call} is allowed");
        let error = expect_sqlstate(outcome, state);
        assert!(error.hint().is_some(), "{call} has no hint: {}", error.message());
        expect_hint(&error, hint);
        assert_eq!(g.one::<String>(definitions), before, "{call} was refused and left something");
    }
    assert_eq!(
        g.column::<String>(
            "SELECT relation::text FROM agd.coverage() WHERE guarded AND relation::text NOT LIKE 'agd.%'"
        ),
        ["good"]
    );
}

#[test]
fn coverage_shows_every_table() {
    let mut g = set_up(
        "coverage",
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int); SELECT agd.guard('a');
         CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); SELECT agd.guard('p')",
    );
    // agd's own tables that carry decisions are guarded like any other.
    let own = "SELECT format('%s %s %s', relation, guarded, intact) FROM agd.coverage() WHERE relation::text LIKE 'agd.%' ORDER BY relation::text";
    let tables = [
        "countersign_request",
        "fleet_agent",
        "fleet_signature",
        "fleet_template",
        "guarded_table",
        "log_key",
        "role_map",
        "signer",
        "tenant",
        "tenant_agent_fleet",
        "tenant_key",
    ];
    assert_eq!(g.column::<String>(own), tables.map(|table| format!("agd.{table} t t")));
    let shown = "SELECT format('%s %s %s', relation, guarded, intact) FROM agd.coverage()
                  WHERE relation::text NOT LIKE 'agd.%' ORDER BY relation::text";
    assert_eq!(g.column::<String>(shown), ["a t t", "b f f", "p t t", "p1 t t"]);
    let pristine: Vec<u8> = g.one("SELECT agd.guard_state()");
    // A superuser who goes past DDL, straight to the catalog.
    g.run("SET allow_system_table_mods = on; UPDATE pg_trigger SET tgenabled = 'D' WHERE tgrelid = 'p1'::regclass AND tgname = '~agd_record'");
    assert_eq!(g.column::<String>(shown), ["a t t", "b f f", "p t t", "p1 t f"]);
    let detail: String = g.one("SELECT detail FROM agd.coverage() WHERE relation = 'p1'::regclass");
    assert!(detail.contains("~agd_record"), "{detail}");
    assert_ne!(g.one::<Vec<u8>>("SELECT agd.guard_state()"), pristine);
    // The shortest way: a table that is told to have no triggers fires none.
    let one_off: Vec<u8> = g.one("SELECT agd.guard_state()");
    g.run("UPDATE pg_class SET relhastriggers = false WHERE oid = 'a'::regclass");
    assert_eq!(g.column::<String>(shown), ["a t f", "b f f", "p t t", "p1 t f"]);
    assert_ne!(g.one::<Vec<u8>>("SELECT agd.guard_state()"), one_off);
    // The change is in the log, and on the anchors from there on.
    anchor(&mut g);
    let states: Vec<Vec<u8>> =
        g.column("SELECT guard_state FROM agd.anchors WHERE tenant IS NULL ORDER BY tree_size DESC LIMIT 1");
    assert_eq!(states, [g.one::<Vec<u8>>("SELECT agd.guard_state()")]);
    let entries: i64 = g.one("SELECT count(*) FROM agd.events WHERE action = 'GUARD.STATE' AND body LIKE '%' || encode(agd.guard_state(), 'hex') || '%'");
    assert_eq!(entries, 1);
}

#[test]
fn baseline_and_unguard_are_recorded() {
    let mut g = set_up(
        "baseline",
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 500) i; SELECT agd.guard('t')",
    );
    let baseline = g.news("t");
    assert!(baseline.len() == 500 && baseline.iter().all(|event| event.action == "BASELINE" && event.old.is_none()));
    reconcile(&mut g, "t", &["id"]);
    g.run("SELECT agd.unguard('t', 'moved to the archive')");
    let row =
        g.query_one("SELECT relation, body, session_user_name FROM agd.events WHERE action = 'UNGUARD'", &[]).unwrap();
    let texts: Vec<String> = (0..3).map(|column| row.get(column)).collect();
    assert!(texts[0] == "public.t" && texts[1].contains("moved to the archive") && texts[2] == "postgres", "{texts:?}");
    let count = "SELECT count(*) FROM agd.event WHERE relation = 'public.t'";
    let before: i64 = g.one(count);
    g.run("DELETE FROM t WHERE id <= 100; TRUNCATE t; INSERT INTO t VALUES (1, 'x')");
    assert_eq!(g.one::<i64>(count), before, "an unguarded table is a plain table");
    assert_eq!(g.one::<i64>("SELECT count(*) FROM pg_trigger WHERE tgrelid = 't'::regclass"), 0);
    g.run("SELECT agd.guard('t', baseline => false); INSERT INTO t VALUES (2, 'y')");
    assert_eq!(g.briefs("t"), ["INSERT 2"]);
    anchor(&mut g);
    expect_verified(&mut g);
}

#[test]
fn a_rolled_back_guard_is_no_guard() {
    let mut g = set_up("rollback", "CREATE TABLE t (id int PRIMARY KEY)");
    g.run("BEGIN; SELECT agd.guard('t'); INSERT INTO t VALUES (1); ROLLBACK");
    assert_eq!(g.one::<i64>("SELECT count(*) FROM agd.events WHERE relation = 'public.t'"), 0);
    g.run("INSERT INTO t VALUES (2); BEGIN; SELECT agd.guard('t'); SAVEPOINT a; SELECT agd.unguard('t', 'no'); ROLLBACK TO a; INSERT INTO t VALUES (3); COMMIT");
    assert_eq!(g.briefs("t"), ["BASELINE 2", "INSERT 3"]);
    g.run("BEGIN; SELECT agd.unguard('t', 'for one transaction'); INSERT INTO t VALUES (4); ROLLBACK; INSERT INTO t VALUES (5)");
    assert_eq!(g.briefs("t"), ["INSERT 5"]);
    reconcile(&mut g, "t", &["id"]);
}

#[test]
fn an_unguarded_table_can_be_dropped_and_made_again() {
    let mut g =
        set_up("dropped", "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); INSERT INTO t VALUES (1)");
    g.run("SELECT agd.unguard('t', 'no longer needed'); DROP TABLE t");
    assert_eq!(
        g.column::<String>(
            "SELECT relation::text FROM agd.coverage() WHERE guarded AND relation::text NOT LIKE 'agd.%'"
        ),
        [""; 0]
    );
    assert_eq!(g.one::<i64>("SELECT count(*) FROM agd.events WHERE relation = 'public.t' AND action = 'INSERT'"), 1);
    g.run("CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); INSERT INTO t VALUES (1)");
    assert_eq!(g.briefs("t"), ["INSERT 1"]);
    reconcile(&mut g, "t", &["id"]);
    anchor(&mut g);
    expect_verified(&mut g);
}

#[test]
fn a_cause_is_required_where_the_guard_says_so() {
    let mut g = set_up("cause", "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t', require_cause => true)");
    let error = g.refuses("t", "INSERT INTO t VALUES (1)", "AG005");
    expect_hint(&error, "agd.set_cause");
    g.records("t", "BEGIN; SELECT agd.set_cause('ticket 4711'); INSERT INTO t VALUES (1); COMMIT", &["INSERT 1"]);
    // It does not outlive its transaction, nor the savepoint it was set in.
    g.refuses("t", "INSERT INTO t VALUES (2)", "AG005");
    g.refuses("t", "BEGIN; SAVEPOINT a; SELECT agd.set_cause('x'); ROLLBACK TO a; INSERT INTO t VALUES (2)", "AG005");
    let kept = "BEGIN; SAVEPOINT a; SELECT agd.set_cause('kept'); RELEASE a; INSERT INTO t VALUES (2); COMMIT";
    g.records("t", kept, &["INSERT 2"]);
    let causes: Vec<String> = g.column(
        "SELECT cause FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT' ORDER BY committed_at",
    );
    assert_eq!(causes, ["ticket 4711", "kept"]);
    g.refuses("t", "SELECT agd.set_cause('')", "22023");
    g.refuses("t", "SELECT agd.set_cause(NULL)", "22023");
    g.refuses("t", "SELECT agd.set_cause(repeat('x', 100000))", "22023");
    g.refuses("t", "BEGIN; SELECT agd.set_cause('one'); DELETE FROM t; SELECT agd.set_cause('two')", "55000");
}

/// Making a partition looks at the guards, and must not wait for a lock on a guarded table that it has nothing to do with.
#[test]
fn a_new_partition_waits_for_no_other_table() {
    let mut g = set_up(
        "waits",
        "CREATE TABLE busy (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE busy1 PARTITION OF busy FOR VALUES IN (1);
         CREATE TABLE calm (id int PRIMARY KEY) PARTITION BY LIST (id);
         SELECT agd.guard('busy'), agd.guard('calm')",
    );
    let mut other = g.database().connect().unwrap();
    let mut holding = other.transaction().unwrap();
    holding.batch_execute("LOCK TABLE busy, busy1 IN ACCESS EXCLUSIVE MODE").unwrap();
    g.run("SET lock_timeout = '2s'; CREATE TABLE calm1 PARTITION OF calm FOR VALUES IN (1)");
    holding.rollback().unwrap();
    assert_eq!(g.one::<i64>("SELECT count(*) FROM agd.coverage() WHERE relation = 'calm1'::regclass AND intact"), 1);
}
