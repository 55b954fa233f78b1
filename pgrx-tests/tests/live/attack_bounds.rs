//! What somebody makes large so that a server, a log or a session of others suffers: definitions, names, reasons, causes, and
//! memory. Whatever it is, it ends in an error of the one who asked for it.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, Watch, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

/// A database whose guarded table `t` belongs to an ordinary role.
fn owned(stem: &str) -> (Watch, Client) {
    let mut g = Watch::new(cluster(), stem, "CREATE TABLE t (id int PRIMARY KEY, v text)").unwrap();
    let owner = format!("{}_owner", g.database().name());
    cluster().create_role(&owner, "").unwrap();
    g.run(&format!("GRANT CREATE ON SCHEMA public TO {owner}; ALTER TABLE t OWNER TO {owner}; SELECT agd.guard('t')"));
    let client = g.database().connect_as(&owner).unwrap();
    (g, client)
}

/// Everything that is committed is in a log and verified: nobody's log stands still.
fn expect_all_in_the_log(client: &mut Client) {
    anchor(client);
    expect_each_event_in_one_leaf(client);
    expect_verified(client);
}

const LARGE: &str = "repeat('x', 2 << 20)";

#[test]
fn definitions_too_large_for_the_guards_digest_are_refused() {
    let (mut g, mut owner) = owned("bounds_definitions");
    let state: Vec<u8> = g.one("SELECT agd.guard_state()");
    owner
        .batch_execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; CREATE POLICY small ON t USING (v <> 'x')")
        .unwrap();
    for ddl in [
        "CREATE POLICY large ON t USING (v <> %L)",
        "CREATE POLICY large ON t WITH CHECK (v <> %L)",
        "ALTER POLICY small ON t USING (v <> %L)",
        "CREATE TRIGGER large AFTER INSERT ON t FOR EACH ROW WHEN (NEW.v <> %L) EXECUTE FUNCTION f()",
        "CREATE TRIGGER \"~agd_large\" AFTER INSERT ON t FOR EACH ROW WHEN (NEW.v <> %L) EXECUTE FUNCTION f()",
        "CREATE TRIGGER large AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(%L)",
    ] {
        let ddl = format!("DO $do$ BEGIN EXECUTE format('{ddl}', {LARGE}); END $do$", ddl = ddl.replace('\'', "''"));
        let error = expect_sqlstate(owner.batch_execute(&ddl), "AG002");
        assert!(error.message().contains("more than 1 MB"), "{}", error.message());
    }
    owner.batch_execute("DROP POLICY small ON t; INSERT INTO t VALUES (1, 'a')").unwrap();
    assert_eq!(g.one::<Vec<u8>>("SELECT agd.guard_state()"), state);
    // Many that are just not too large: the digest is of any size.
    owner
        .batch_execute(&format!(
            "DO $do$ BEGIN FOR i IN 1..20 LOOP EXECUTE format('CREATE POLICY p%s ON t USING (v <> %L)', i, repeat('x', 150000)); END LOOP; END $do$"
        ))
        .unwrap();
    assert_ne!(g.one::<Vec<u8>>("SELECT agd.guard_state()"), state);
    // What was made before the table was guarded: it is not guarded with it.
    owner
        .batch_execute(&format!(
            "CREATE TABLE later (id int PRIMARY KEY, v text);
             DO $do$ BEGIN EXECUTE format('CREATE POLICY large ON later USING (v <> %L)', {LARGE}); END $do$"
        ))
        .unwrap();
    expect_sqlstate(g.batch_execute("SELECT agd.guard('later')"), "55000");
    expect_all_in_the_log(&mut g);
}

#[test]
fn a_guard_whose_event_would_fit_into_no_entry_is_not_made() {
    let mut g = Watch::simple(cluster(), "bounds_redact").unwrap();
    let name = |number: usize| format!("{}{number:04}", "n".repeat(59));
    let columns: Vec<String> = (0..1100).map(|number| format!("{} text", name(number))).collect();
    g.run(&format!("CREATE TABLE wide (id int PRIMARY KEY, {})", columns.join(", ")));
    let names = |count: usize| (0..count).map(name).collect::<Vec<_>>().join(",");
    let error = expect_sqlstate(
        g.batch_execute(&format!("SELECT agd.guard('wide', redact => '{{{}}}')", names(1100))),
        "54000",
    );
    expect_hint(&error, "Name fewer columns");
    assert!(!g.one::<bool>("SELECT guarded FROM agd.coverage() WHERE relation = 'wide'::regclass"));
    g.run(&format!("SELECT agd.guard('wide', redact => '{{{}}}'); INSERT INTO wide (id) VALUES (1)", names(400)));
    g.run("INSERT INTO t VALUES (77, 'x')");
    expect_all_in_the_log(&mut g);
}

/// The longest texts that are allowed, of the characters that take most in an entry, together in one event.
#[test]
fn the_longest_texts_together_have_an_entry() {
    let mut g = Watch::simple(cluster(), "bounds_texts").unwrap();
    let worst = "\u{1}".repeat(4094);
    let odd = "\u{2}".repeat(63);
    g.run(&format!(
        "CREATE TABLE \"{odd}\" (id int PRIMARY KEY); SELECT agd.guard('\"{odd}\"'); CREATE ROLE \"{odd}\";
         SET application_name = 'back\\slash\"quote'"
    ));
    g.run(&format!(
        "BEGIN; SELECT agd.set_cause('a{worst}z'); INSERT INTO \"{odd}\" VALUES (1);
         SELECT agd.unguard('\"{odd}\"', 'a{worst}z'); COMMIT; DROP ROLE \"{odd}\""
    ));
    let body: i32 = g.one("SELECT max(length(body)) FROM agd.event WHERE action = 'UNGUARD'");
    assert_eq!(body, 4096);
    expect_sqlstate(g.batch_execute(&format!("SELECT agd.set_cause('{}')", "c".repeat(4097))), "22023");
    // A refused attempt is told in as many escapes.
    expect_sqlstate(g.batch_execute(&format!("DROP TRIGGER \"~agd_record\" ON t; -- {worst}")), "AG002");
    assert!(g.batch_execute(&format!("SELECT agd.bind('{}')", "\u{1}".repeat(4000))).is_err());
    expect_all_in_the_log(&mut g);
}
