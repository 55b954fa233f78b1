//! Who is recorded: the role that logged in and the role that acts, whoever's rights a write runs with, whoever's
//! connection it came through, and whatever happens to the role meanwhile.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, FORCE_PARALLEL, TestDb, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

/// A database with the extension after `setup`; roles belong to the cluster, so each test has names of its own.
fn set_up(stem: &str, roles: &[(&str, &str)], setup: &str) -> (TestDb<'static>, Client) {
    let database = cluster().agd_database(stem).unwrap();
    for (role, options) in roles {
        cluster().create_role(role, options).unwrap();
    }
    let mut client = database.connect().unwrap();
    client.batch_execute(setup).unwrap_or_else(|error| panic!("{setup}: {error:?}"));
    (database, client)
}

fn run(client: &mut Client, sql: &str) {
    client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

fn column(client: &mut Client, sql: &str) -> Vec<String> {
    client.query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).iter().map(|row| row.get(0)).collect()
}

/// `table key action: session user, role, principal, binding` of every row's event, in the order of the log.
fn who(client: &mut Client) -> Vec<String> {
    anchor(client);
    column(
        client,
        "SELECT format('%s %s %s: %s %s %s %s', split_part(relation, '.', 2), row_key->>'id', action, session_user_name, role_name,
                       coalesce(principal, '-'), binding)
           FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action IN ('INSERT', 'UPDATE', 'DELETE') ORDER BY leaf_index",
    )
}

/// Trap: referential actions run as the table's owner. CASCADE, SET NULL and SET DEFAULT are recorded as done by who
/// deleted or changed the parent, as the owner, through a SECURITY DEFINER function too, at once and deferred to the commit.
#[test]
fn referential_actions_are_the_writers() {
    let (database, mut client) = set_up(
        "fkactors",
        &[("fk_owner", ""), ("fk_app", ""), ("fk_other", "")],
        "GRANT CREATE ON SCHEMA public TO fk_owner; GRANT fk_other TO fk_app; SET ROLE fk_owner;
         CREATE TABLE p (id int PRIMARY KEY);
         CREATE TABLE a (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE ON UPDATE CASCADE);
         CREATE TABLE b (id int PRIMARY KEY, p int REFERENCES p ON DELETE SET NULL ON UPDATE SET NULL);
         CREATE TABLE c (id int PRIMARY KEY, p int DEFAULT 0 REFERENCES p ON DELETE SET DEFAULT ON UPDATE SET DEFAULT);
         CREATE TABLE d (id int PRIMARY KEY, a int REFERENCES a ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED);
         CREATE FUNCTION gone(i int) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = public AS $$ DELETE FROM p WHERE id = i $$;
         INSERT INTO p VALUES (0), (1), (2), (3); INSERT INTO a SELECT i, i FROM generate_series(1, 3) i;
         INSERT INTO b SELECT i, i FROM generate_series(1, 3) i; INSERT INTO c SELECT i, i FROM generate_series(1, 3) i;
         INSERT INTO d SELECT i, i FROM generate_series(1, 3) i;
         GRANT SELECT, UPDATE, DELETE ON p TO fk_app, fk_other; SET CONSTRAINTS ALL IMMEDIATE; RESET ROLE;
         SELECT agd.guard(t) FROM unnest('{p,a,b,c,d}'::regclass[]) t",
    );
    let mut app = database.connect_as("fk_app").unwrap();
    run(&mut app, "DELETE FROM p WHERE id = 1");
    run(&mut app, "SELECT gone(2)");
    run(&mut app, "SET ROLE fk_other; UPDATE p SET id = 30 WHERE id = 3; RESET ROLE");
    let mut recorded = who(&mut client);
    recorded.sort();
    assert_eq!(
        recorded,
        [
            "a 1 DELETE: fk_app fk_app as fk_owner - none",
            "a 2 DELETE: fk_app fk_app as fk_owner - none",
            "a 3 UPDATE: fk_app fk_other as fk_owner - none",
            "b 1 UPDATE: fk_app fk_app as fk_owner - none",
            "b 2 UPDATE: fk_app fk_app as fk_owner - none",
            "b 3 UPDATE: fk_app fk_other as fk_owner - none",
            "c 1 UPDATE: fk_app fk_app as fk_owner - none",
            "c 2 UPDATE: fk_app fk_app as fk_owner - none",
            "c 3 UPDATE: fk_app fk_other as fk_owner - none",
            "d 1 DELETE: fk_app fk_app as fk_owner - none",
            "d 2 DELETE: fk_app fk_app as fk_owner - none",
            "p 1 DELETE: fk_app fk_app - none",
            "p 2 DELETE: fk_app fk_app as fk_owner - none",
            "p 3 UPDATE: fk_app fk_other - none",
        ]
    );
    for table in ["p", "a", "b", "c", "d"] {
        reconcile(&mut client, table, &["id"]);
    }
}

/// Trap: SECURITY DEFINER within SECURITY DEFINER, triggers, rules, views of another owner, SET ROLE inside a function,
/// session_replication_role: the session user and what SET ROLE chose, never the definer alone.
#[test]
fn other_peoples_rights_are_not_other_people() {
    let (database, mut client) = set_up(
        "definers",
        &[("def_owner", ""), ("def_inner", ""), ("def_app", ""), ("def_role", "")],
        "GRANT CREATE ON SCHEMA public TO def_owner, def_inner; GRANT def_role TO def_app;
         CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO def_inner; SELECT agd.guard('t');
         SET ROLE def_inner;
         CREATE FUNCTION inner_put(i int) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$ BEGIN INSERT INTO t VALUES (i); END $$;
         CREATE VIEW v AS SELECT * FROM t; GRANT INSERT ON v TO def_owner, def_app;
         SET ROLE def_owner;
         CREATE FUNCTION outer_put(i int) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$ BEGIN PERFORM inner_put(i); INSERT INTO v VALUES (i + 1); END $$;
         CREATE TABLE front (id int); GRANT INSERT ON front TO def_app, def_role;
         CREATE FUNCTION pass_on() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public AS $$ BEGIN INSERT INTO v VALUES (NEW.id); RETURN NULL; END $$;
         CREATE TRIGGER pass BEFORE INSERT ON front FOR EACH ROW EXECUTE FUNCTION pass_on();
         RESET ROLE; GRANT INSERT ON t TO def_role",
    );
    let mut app = database.connect_as("def_app").unwrap();
    run(&mut app, "SELECT outer_put(1)");
    run(&mut app, "INSERT INTO front VALUES (3)");
    run(&mut app, "INSERT INTO v VALUES (4)");
    run(&mut app, "SET ROLE def_role; INSERT INTO front VALUES (5); INSERT INTO t VALUES (6); RESET ROLE");
    // SET ROLE in a function of one's own, undone at its end; and in a block that is rolled back.
    run(
        &mut app,
        "CREATE FUNCTION pg_temp.as_role() RETURNS void LANGUAGE plpgsql SET role = def_role AS $$ BEGIN INSERT INTO t VALUES (7); END $$;
         SELECT pg_temp.as_role(); SELECT outer_put(8);
         DO $$ BEGIN SET LOCAL ROLE def_role; INSERT INTO t VALUES (10); RAISE EXCEPTION 'no'; EXCEPTION WHEN raise_exception THEN INSERT INTO v VALUES (11); END $$",
    );
    run(
        &mut client,
        "SET session_replication_role = replica; INSERT INTO t VALUES (12); RESET session_replication_role",
    );
    let app_as = |id: u32, role: &str| format!("t {id} INSERT: def_app {role} - none");
    let mut expected = vec![
        app_as(1, "def_app as def_inner"),
        app_as(2, "def_app as def_owner"),
        app_as(3, "def_app as def_owner"),
        app_as(4, "def_app"),
        app_as(5, "def_role as def_owner"),
        app_as(6, "def_role"),
        app_as(7, "def_role"),
        app_as(8, "def_app as def_inner"),
        app_as(9, "def_app as def_owner"),
        app_as(11, "def_app"),
    ];
    expected.push("t 12 INSERT: postgres postgres - none".to_owned());
    assert_eq!(who(&mut client), expected);
    reconcile(&mut client, "t", &["id"]);
}

/// Trap: SET SESSION AUTHORIZATION. The record names whom the session became and, as its principal, who logged in; a
/// transaction has one session user.
#[test]
fn who_logged_in_stands_behind_whom_the_session_became() {
    let (database, mut client) = set_up(
        "authorization",
        &[("auth_app", ""), ("auth_tenant", "IN ROLE agd_tenant"), ("auth_boss", "SUPERUSER")],
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE o (tenant text, id int, PRIMARY KEY (tenant, id));
         SELECT agd.create_tenant('acme'), agd.guard('t'), agd.guard('o', tenant_column => 'tenant'), agd.map_role('auth_tenant', 'acme');
         GRANT INSERT ON t, o TO auth_app, auth_tenant",
    );
    let mut boss = database.connect_as("auth_boss").unwrap();
    run(&mut boss, "INSERT INTO t VALUES (1)");
    run(&mut boss, "SET SESSION AUTHORIZATION auth_app; INSERT INTO t VALUES (2)");
    run(&mut boss, "SET SESSION AUTHORIZATION auth_tenant; INSERT INTO o VALUES ('acme', 3)");
    run(&mut boss, "RESET SESSION AUTHORIZATION; INSERT INTO o VALUES ('acme', 4)");
    run(&mut database.connect_as("auth_tenant").unwrap(), "INSERT INTO o VALUES ('acme', 5)");
    let error = expect_sqlstate(
        boss.batch_execute(
            "BEGIN; INSERT INTO t VALUES (6); SET SESSION AUTHORIZATION auth_app; INSERT INTO t VALUES (7)",
        ),
        "55000",
    );
    expect_hint(&error, "Commit");
    run(&mut boss, "ROLLBACK");
    // Before the first event, and back before the next transaction, is in order.
    run(
        &mut boss,
        "BEGIN; SET LOCAL SESSION AUTHORIZATION auth_app; INSERT INTO t VALUES (8); COMMIT; INSERT INTO t VALUES (9)",
    );
    let mut recorded = who(&mut client);
    recorded.sort();
    assert_eq!(
        recorded,
        [
            "o 3 INSERT: auth_tenant auth_tenant auth_boss role",
            "o 4 INSERT: auth_boss auth_boss - bypass",
            "o 5 INSERT: auth_tenant auth_tenant auth_tenant role",
            "t 1 INSERT: auth_boss auth_boss - none",
            "t 2 INSERT: auth_app auth_app auth_boss none",
            "t 8 INSERT: auth_app auth_app auth_boss none",
            "t 9 INSERT: auth_boss auth_boss - none",
        ]
    );
    expect_verified(&mut client);
}

/// Trap: roles renamed or dropped in the middle. A record keeps the name that was true when it was made; a session whose
/// role is gone is still told apart.
#[test]
fn roles_renamed_and_dropped_meanwhile() {
    let (database, mut client) = set_up(
        "renamed",
        &[("ren_before", ""), ("ren_dropped", ""), ("ren_worker", "")],
        "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); GRANT INSERT ON t TO PUBLIC; GRANT ren_worker TO ren_before",
    );
    let mut renamed = database.connect_as("ren_before").unwrap();
    let mut dropped = database.connect_as("ren_dropped").unwrap();
    run(&mut renamed, "INSERT INTO t VALUES (1)");
    run(&mut renamed, "BEGIN; INSERT INTO t VALUES (2); SET LOCAL ROLE ren_worker");
    let oid = column(&mut client, "SELECT oid::text FROM pg_roles WHERE rolname = 'ren_dropped'").remove(0);
    run(
        &mut client,
        "ALTER ROLE ren_before RENAME TO ren_after; ALTER ROLE ren_worker RENAME TO ren_hand; DROP ROLE ren_dropped",
    );
    run(&mut renamed, "INSERT INTO t VALUES (3); COMMIT; INSERT INTO t VALUES (4)");
    run(&mut dropped, "INSERT INTO t VALUES (5)");
    assert_eq!(
        who(&mut client),
        [
            "t 1 INSERT: ren_before ren_before - none".to_owned(),
            "t 2 INSERT: ren_before ren_before - none".to_owned(),
            "t 3 INSERT: ren_before ren_hand - none".to_owned(),
            "t 4 INSERT: ren_after ren_after - none".to_owned(),
            format!("t 5 INSERT: (dropped role {oid}) (dropped role {oid}) - none"),
        ]
    );
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

/// Trap: a session that is handed from one application user to the next, as a pooler in session mode does it: nothing of the
/// one is found with the other, cause included.
#[test]
fn a_session_handed_on_with_discard_all() {
    let (database, mut client) = set_up(
        "handed",
        &[("hand_app", ""), ("hand_one", ""), ("hand_two", "")],
        "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); GRANT INSERT ON t TO PUBLIC; GRANT hand_one, hand_two TO hand_app",
    );
    let mut pooled = database.connect_as("hand_app").unwrap();
    run(&mut pooled, "SET ROLE hand_one; SET application_name = 'one'");
    run(&mut pooled, "BEGIN; SELECT agd.set_cause('of one'); INSERT INTO t VALUES (1); COMMIT");
    run(&mut pooled, "DISCARD ALL");
    run(&mut pooled, "INSERT INTO t VALUES (2)");
    run(&mut pooled, "SET ROLE hand_two; PREPARE put(int) AS INSERT INTO t VALUES ($1); EXECUTE put(3)");
    run(&mut pooled, "RESET ROLE; EXECUTE put(4)");
    // A cause that was set in a transaction that failed or wrote nothing does not wait for the next.
    run(&mut pooled, "BEGIN; SELECT agd.set_cause('rolled back'); ROLLBACK; SELECT agd.set_cause('wrote nothing')");
    run(&mut pooled, "INSERT INTO t VALUES (5)");
    let recorded = column(
        &mut client,
        "SELECT format('%s %s %s %s', row_key->>'id', role_name, coalesce(cause, '-'), coalesce(application_name, '-'))
           FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT' ORDER BY committed_at",
    );
    assert_eq!(
        recorded,
        ["1 hand_one of one one", "2 hand_app - -", "3 hand_two - -", "4 hand_app - -", "5 hand_app - -"]
    );
}

struct PgBouncer(Child);

impl Drop for PgBouncer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Trap: a pooler in transaction mode: one server connection, many clients by turns. Each transaction is recorded with its
/// own role, cause and application; a tenant's login stays that tenant's.
#[test]
fn one_connection_shared_by_a_pooler_in_transaction_mode() {
    // Where there is none, the same statements by turns in sessions of their own.
    let program = std::env::var_os("AGD_PGBOUNCER");
    by_turns(|database| program.map(|program| start_pgbouncer(&program, database)));
}

fn start_pgbouncer(program: &OsStr, database: &TestDb<'_>) -> (PgBouncer, postgres::Config) {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::process::CommandExt;
    let folder = cluster().socket_dir().join("pooler");
    std::fs::create_dir(&folder).unwrap();
    let settings = format!(
        "[databases]\n{name} = host={host} port=5432 dbname={name}\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\nunix_socket_dir = {folder}\n\
         auth_type = trust\nauth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = 1\nlogfile = {folder}/log\npidfile = {folder}/pid\n",
        name = database.name(),
        host = cluster().socket_dir().display(),
        folder = folder.display(),
    );
    std::fs::write(folder.join("settings"), settings).unwrap();
    std::fs::write(folder.join("users"), "\"pool_app\" \"\"\n\"pool_tenant\" \"\"\n").unwrap();
    let owner = std::fs::metadata(cluster().data_dir()).unwrap();
    let (uid, gid) = (owner.uid(), owner.gid());
    for path in [folder.clone(), folder.join("settings"), folder.join("users")] {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
    let mut command = Command::new(program);
    command.arg("-q").arg(folder.join("settings")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // PgBouncer refuses to run as root.
    if rustix::process::geteuid().is_root() {
        command.uid(uid).gid(gid);
    }
    let pooler = PgBouncer(command.spawn().unwrap());
    let mut config = postgres::Config::new();
    config.host_path(&folder).port(6432).dbname(database.name());
    eventually("the pooler takes connections", Duration::from_secs(20), || {
        config.clone().user("pool_app").connect(postgres::NoTls).is_ok()
    });
    (pooler, config)
}

fn by_turns(start: impl FnOnce(&TestDb<'static>) -> Option<(PgBouncer, postgres::Config)>) {
    let (database, mut client) = set_up(
        "pooler",
        &[("pool_app", ""), ("pool_tenant", "IN ROLE agd_tenant"), ("pool_one", ""), ("pool_two", "")],
        "CREATE TABLE t (id int PRIMARY KEY, pid int DEFAULT pg_backend_pid()); CREATE TABLE o (tenant text, id int, PRIMARY KEY (tenant, id));
         SELECT agd.create_tenant('acme'), agd.create_tenant('globex');
         SELECT agd.guard('t'), agd.guard('o', tenant_column => 'tenant'), agd.map_role('pool_tenant', 'acme');
         GRANT INSERT ON t, o TO PUBLIC; GRANT pool_one, pool_two TO pool_app",
    );
    let pooler = start(&database);
    let connect = |role: &str| match &pooler {
        Some((_, config)) => config.clone().user(role).connect(postgres::NoTls).unwrap(),
        None => database.connect_as(role).unwrap(),
    };
    let shared = pooler.is_some();
    let (mut one, mut two, mut tenant) = (connect("pool_app"), connect("pool_app"), connect("pool_tenant"));
    for id in 0..20 {
        // What SET LOCAL and the transaction set is gone when the connection is handed on.
        run(
            &mut one,
            &format!(
                "BEGIN; SET LOCAL ROLE pool_one; SELECT agd.set_cause('of one'); INSERT INTO t VALUES ({}); COMMIT",
                100 + id
            ),
        );
        run(&mut two, &format!("BEGIN; SET LOCAL ROLE pool_two; INSERT INTO t VALUES ({}); COMMIT", 200 + id));
        run(
            &mut one,
            &format!("BEGIN; SELECT agd.set_cause('given up'); INSERT INTO t VALUES ({}); ROLLBACK", 300 + id),
        );
        run(&mut two, &format!("INSERT INTO t VALUES ({})", 400 + id));
        run(&mut tenant, &format!("INSERT INTO o VALUES ('acme', {id})"));
        expect_sqlstate(tenant.batch_execute(&format!("INSERT INTO o VALUES ('globex', {id})")), "42501");
    }
    let recorded = column(
        &mut client,
        "SELECT format('%s %s %s %s %s %s', count(*), session_user_name, role_name, coalesce(principal, '-'), binding, coalesce(cause, '-'))
           FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT' GROUP BY session_user_name, role_name, principal, binding, cause ORDER BY role_name, cause",
    );
    assert_eq!(
        recorded,
        [
            "20 pool_app pool_app - none -",
            "20 pool_app pool_one - none of one",
            "20 pool_tenant pool_tenant pool_tenant role -",
            "20 pool_app pool_two - none -",
        ]
    );
    if shared {
        assert_eq!(
            column(&mut client, "SELECT count(DISTINCT pid)::text FROM t"),
            ["1"],
            "one server connection for all"
        );
    }
    drop((one, two, tenant));
    reconcile(&mut client, "o", &["tenant", "id"]);
    anchor(&mut client);
    expect_verified(&mut client);
}

/// Trap: parallel workers. They write no rows, but they ask who is bound: what a parallel plan under a guarded write sees
/// is what its leader sees.
#[test]
fn parallel_workers_see_their_leaders_identity() {
    let (database, mut client) = set_up(
        "parallel",
        &[("par_tenant", "IN ROLE agd_tenant"), ("par_role", "")],
        "CREATE TABLE o (tenant text, id int, v text, PRIMARY KEY (tenant, id)); SELECT agd.create_tenant('acme'), agd.create_tenant('globex');
         INSERT INTO o SELECT t, i, 'v' FROM unnest('{acme,globex}'::text[]) t, generate_series(1, 3000) i;
         SELECT agd.guard('o', tenant_column => 'tenant', baseline => false), agd.map_role('par_tenant', 'acme');
         CREATE TABLE copied (tenant text, principal text, id int PRIMARY KEY); SELECT agd.guard('copied');
         GRANT SELECT ON o TO par_tenant; GRANT INSERT ON copied TO par_tenant; ANALYZE o",
    );
    let mut tenant = database.connect_as("par_tenant").unwrap();
    run(&mut tenant, FORCE_PARALLEL);
    let plan =
        column(&mut tenant, "EXPLAIN (COSTS off) SELECT agd.current_tenant(), agd.current_principal(), id FROM o")
            .join("\n");
    assert!(plan.contains("Gather"), "{plan}");
    // INSERT itself is not parallel; what it reads from is, where the version plans it so.
    let seen = column(
        &mut tenant,
        "SELECT DISTINCT concat_ws(' ', agd.current_tenant(), agd.current_principal(), tenant) FROM o",
    );
    assert_eq!(seen, ["acme par_tenant acme"]);
    run(&mut tenant, "INSERT INTO copied SELECT agd.current_tenant(), agd.current_principal(), id FROM o");
    let recorded = column(
        &mut client,
        "SELECT DISTINCT concat_ws(' ', session_user_name, new->>'tenant', new->>'principal') || count(*) OVER () FROM agd.events WHERE relation NOT LIKE 'agd.%' AND action = 'INSERT'",
    );
    assert_eq!(recorded, ["par_tenant acme par_tenant3000"]);
}
