//! Refused attempts: each leaves one event that survives its transaction, says who tried what, and holds no value of a row.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, worker_pid};
use agd_live_tests::{Cluster, TestDb, eventually, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().start().unwrap())
}

/// Two tenants, each with a login role, an outsider, and tables of all kinds. `{0}` stands for the prefix of the roles.
const SETUP: &str = "
    CREATE TABLE orders (tenant text, id int CHECK (id < 1000), v text, PRIMARY KEY (tenant, id));
    CREATE TABLE cases (tenant text, id int, PRIMARY KEY (tenant, id));
    CREATE TABLE plain (id int PRIMARY KEY, v text);
    SELECT agd.create_tenant('acme'); SELECT agd.create_tenant('globex');
    SELECT agd.guard('orders', tenant_column => 'tenant');
    SELECT agd.guard('cases', tenant_column => 'tenant', require_cause => true);
    SELECT agd.guard('plain');
    SELECT agd.map_role('{0}_acme', 'acme'); SELECT agd.map_role('{0}_globex', 'globex');
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON orders, cases, plain TO {0}_acme, {0}_globex, {0}_outsider, {0}_hat;
    GRANT {0}_hat TO {0}_acme;
    INSERT INTO orders VALUES ('acme', 1, 'a'), ('globex', 1, 'g')";

struct Stage {
    database: TestDb<'static>,
    prefix: String,
}

impl Stage {
    fn new(prefix: &str) -> Self {
        let stage = Self { database: cluster().agd_database(prefix).unwrap(), prefix: prefix.to_owned() };
        for (role, options) in
            [("acme", "IN ROLE agd_tenant"), ("globex", "IN ROLE agd_tenant"), ("outsider", ""), ("hat", "")]
        {
            cluster().create_role(&format!("{prefix}_{role}"), options).unwrap();
        }
        stage.superuser().batch_execute(&SETUP.replace("{0}", prefix)).unwrap();
        stage
    }

    fn superuser(&self) -> Client {
        self.database.connect().unwrap()
    }

    fn login(&self, role: &str) -> Client {
        self.database.connect_as(&format!("{}_{role}", self.prefix)).unwrap()
    }

    fn sql(&self, text: &str) -> String {
        text.replace("{0}", &self.prefix)
    }
}

fn column(client: &mut Client, sql: &str) -> Vec<String> {
    match client.query(sql, &[]) {
        Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
        Err(error) => panic!("{sql}: {error:?}"),
    }
}

fn number(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// What the log tells of refused attempts, in the order of the attempts. Integrates first: whoever asks for an anchor finds
/// what was refused before.
fn told(client: &mut Client) -> Vec<String> {
    anchor(client);
    column(
        client,
        "SELECT concat_ws(' ', coalesce(tenant, '-'), coalesce(relation, '-'), coalesce(b->>'attempted', '-'), b->>'sqlstate',
                          b->>'session_user_name', role_name, coalesce(b->>'bound_tenant', '-'))
           FROM agd.events, LATERAL (SELECT body::json) AS j(b)
          WHERE action = 'DENIED' ORDER BY b->>'at', split_part(event_id, '-', 1)::bigint, split_part(event_id, '-', 2)::int",
    )
}

#[test]
fn each_refusal_is_told_once_and_rightly() {
    let stage = Stage::new("told");
    let mut superuser = stage.superuser();
    let (mut acme, mut outsider) = (stage.login("acme"), stage.login("outsider"));
    let mut expected: Vec<String> = Vec::new();
    let mut attempts = 0;
    let mut refuse = |client: &mut Client, sql: &str, state: &str, events: &str| {
        expect_sqlstate(client.batch_execute(&stage.sql(sql)), state);
        client.batch_execute("ROLLBACK; RESET ROLE").unwrap();
        expected.extend(events.lines().map(|event| stage.sql(event)));
        attempts += 1;
    };
    // Of another tenant: it stands in one's own log, and in the platform's, never in the other's.
    let other =
        "acme public.orders INSERT 42501 {0}_acme {0}_acme acme\n- public.orders INSERT 42501 {0}_acme {0}_acme acme";
    refuse(&mut acme, "INSERT INTO orders VALUES ('globex', 10, 'x')", "42501", other);
    refuse(&mut acme, "BEGIN; INSERT INTO orders VALUES ('globex', 10, 'x'); COMMIT", "42501", other);
    refuse(
        &mut acme,
        "BEGIN; INSERT INTO orders VALUES ('acme', 10, 'x'); SAVEPOINT s; INSERT INTO orders VALUES ('globex', 10, 'x')",
        "42501",
        other,
    );
    refuse(
        &mut acme,
        "UPDATE orders SET tenant = 'globex'",
        "42501",
        "acme public.orders UPDATE 42501 {0}_acme {0}_acme acme",
    );
    // SET ROLE changes who acts, not who logged in.
    refuse(
        &mut acme,
        "SET ROLE {0}_hat; INSERT INTO orders VALUES ('globex', 10, 'x')",
        "42501",
        "acme public.orders INSERT 42501 {0}_acme {0}_hat acme\n- public.orders INSERT 42501 {0}_acme {0}_hat acme",
    );
    // Of a tenant that does not exist: the same. Of none: the bound tenant is told.
    refuse(&mut acme, "INSERT INTO orders VALUES ('secret-7391', 10, 'x')", "42501", other);
    let own = "acme public.orders INSERT 42501 {0}_acme {0}_acme acme";
    refuse(&mut acme, "INSERT INTO orders VALUES (NULL, 10, 'x')", "22023", &own.replace("42501", "22023"));
    // By somebody who is bound to none.
    let outside = "INSERT INTO orders VALUES ('acme', 10, 'x')";
    refuse(&mut outsider, outside, "42501", "- public.orders INSERT 42501 {0}_outsider {0}_outsider -");
    refuse(
        &mut superuser,
        "INSERT INTO orders VALUES ('secret-7391', 10, 'x')",
        "42501",
        "- public.orders INSERT 42501 postgres postgres -",
    );
    // Without a cause.
    refuse(
        &mut acme,
        "INSERT INTO cases VALUES ('acme', 10)",
        "AG005",
        "acme public.cases INSERT AG005 {0}_acme {0}_acme acme",
    );
    refuse(
        &mut superuser,
        "INSERT INTO cases VALUES ('globex', 10)",
        "AG005",
        "- public.cases INSERT AG005 postgres postgres -",
    );
    // What would leave no record, or would change it.
    refuse(&mut outsider, "TRUNCATE plain", "AG002", "- public.plain TRUNCATE AG002 {0}_outsider {0}_outsider -");
    refuse(&mut acme, "TRUNCATE orders", "AG002", "acme public.orders TRUNCATE AG002 {0}_acme {0}_acme acme");
    for (sql, event) in [
        ("DELETE FROM agd.event", "agd.event DELETE"),
        ("INSERT INTO agd.event SELECT * FROM agd.event", "agd.event INSERT"),
        ("UPDATE agd.transaction SET cause = 'x'", "agd.transaction UPDATE"),
        ("TRUNCATE agd.tile", "agd.tile TRUNCATE"),
    ] {
        refuse(&mut superuser, sql, "AG002", &format!("- {event} AG002 postgres postgres -"));
    }
    // A transaction that changes its session user in between.
    refuse(
        &mut superuser,
        "BEGIN; INSERT INTO plain VALUES (10); SET SESSION AUTHORIZATION {0}_outsider; INSERT INTO plain VALUES (11)",
        "55000",
        "- public.plain INSERT 55000 {0}_outsider {0}_outsider -",
    );
    superuser.batch_execute("RESET SESSION AUTHORIZATION").unwrap();
    // A transaction whose record cannot be written.
    refuse(
        &mut superuser,
        "BEGIN; INSERT INTO plain VALUES (10); SET LOCAL allow_system_table_mods = on;
         UPDATE pg_class SET relname = 'gone' WHERE oid = 'agd.transaction'::regclass; COMMIT",
        "55000",
        "- - COMMIT 55000 postgres postgres -",
    );
    assert_eq!(told(&mut superuser), expected);
    assert_eq!(number(&mut superuser, "SELECT events_denied FROM agd.stat"), attempts);
    assert_eq!(number(&mut superuser, "SELECT denied_overflow FROM agd.stat"), 0);
    // What may be any text of a row stands nowhere in the log.
    let with_values = "SELECT body FROM agd.events WHERE body LIKE '%secret-%'";
    assert_eq!(column(&mut superuser, with_values), [""; 0]);
    // Of each, its guard's id, if a guard refused it.
    assert_eq!(
        column(
            &mut superuser,
            "SELECT DISTINCT relation FROM agd.events WHERE action = 'DENIED' AND guard_id IS DISTINCT FROM agd.guard_id(relation::regclass)"
        ),
        [""; 0]
    );
    // A tenant sees its own, others see none of it, the platform's people see all.
    let seen = "SELECT count(*) || ' ' || count(DISTINCT tenant) FROM agd.events WHERE action = 'DENIED'";
    let of = |tenant: &str| expected.iter().filter(|event| event.starts_with(tenant)).count();
    assert_eq!(column(&mut acme, seen), [format!("{} 1", of("acme "))]);
    assert_eq!(column(&mut stage.login("globex"), seen), ["0 0"]);
    // The platform's people see against whom, where there is such a tenant.
    let against = "SELECT coalesce(body::json->>'concerned_tenant', '-') || ' ' || count(*) FROM agd.events
                    WHERE action = 'DENIED' AND tenant IS NULL AND body::json->>'bound_tenant' = 'acme' GROUP BY body::json->>'concerned_tenant' ORDER BY 1";
    assert_eq!(column(&mut superuser, against), ["- 1", "globex 4"]);
    superuser.batch_execute(&stage.sql("GRANT agd_auditor TO {0}_outsider")).unwrap();
    assert_eq!(column(&mut outsider, seen), [format!("{} 1", expected.len())]);
    expect_each_event_in_one_leaf(&mut superuser);
    expect_verified(&mut superuser);
}

/// Somebody who writes PostgreSQL's catalogs can put a trigger behind the gate.
#[test]
fn a_row_that_is_changed_behind_the_gate_is_told() {
    let stage = Stage::new("twisted");
    let mut superuser = stage.superuser();
    superuser
        .batch_execute(&stage.sql(
            "CREATE TABLE twisted (id int PRIMARY KEY, v text);
             CREATE FUNCTION twist() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := 'twisted'; RETURN NEW; END $$;
             CREATE TRIGGER twist BEFORE INSERT ON twisted FOR EACH ROW WHEN (NEW.id < 0) EXECUTE FUNCTION twist();
             SELECT agd.guard('twisted');
             GRANT INSERT ON twisted TO {0}_outsider;
             SET allow_system_table_mods = on;
             UPDATE pg_trigger SET tgname = '~twist' WHERE tgname = 'twist';
             RESET allow_system_table_mods",
        ))
        .unwrap();
    let mut outsider = stage.login("outsider");
    expect_sqlstate(outsider.batch_execute("INSERT INTO twisted VALUES (-1, 'x')"), "AG001");
    outsider.batch_execute("INSERT INTO twisted VALUES (1, 'x')").unwrap();
    let expected = stage.sql("- public.twisted INSERT AG001 {0}_outsider {0}_outsider -");
    assert_eq!(told(&mut superuser), [expected]);
    let found =
        column(&mut superuser, "SELECT detail FROM agd.verify() WHERE NOT ok AND detail LIKE '%fires after the gate%'");
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn a_refusal_that_is_caught_was_refused_all_the_same() {
    let stage = Stage::new("caught");
    let mut acme = stage.login("acme");
    acme.batch_execute(
        "DO $$ BEGIN
           FOR i IN 1..5 LOOP
             BEGIN INSERT INTO orders VALUES ('globex', 10 + i, 'x'); EXCEPTION WHEN insufficient_privilege THEN NULL; END;
             INSERT INTO orders VALUES ('acme', 10 + i, 'x');
           END LOOP;
         END $$",
    )
    .unwrap();
    acme.batch_execute("BEGIN; SAVEPOINT s").unwrap();
    expect_sqlstate(acme.batch_execute("TRUNCATE orders"), "AG002");
    acme.batch_execute("ROLLBACK TO s; INSERT INTO orders VALUES ('acme', 20, 'x'); COMMIT").unwrap();
    let mut superuser = stage.superuser();
    let told = told(&mut superuser);
    assert_eq!(told.len(), 11, "{told:#?}");
    for log in ["acme", "-"] {
        let begins = format!("{log} public.orders INSERT 42501");
        assert_eq!(told.iter().filter(|event| event.starts_with(&begins)).count(), 5);
    }
    assert_eq!(number(&mut superuser, "SELECT count(*) FROM orders WHERE tenant = 'acme'"), 7);
    expect_each_event_in_one_leaf(&mut superuser);
}

#[test]
fn what_agd_does_not_refuse_leaves_no_such_event() {
    let stage = Stage::new("quiet");
    let mut superuser = stage.superuser();
    let mut acme = stage.login("acme");
    acme.batch_execute(
        "INSERT INTO orders VALUES ('acme', 2, 'b'); UPDATE orders SET v = 'c'; DELETE FROM orders WHERE id = 2;
         BEGIN; INSERT INTO orders VALUES ('acme', 3, 'c'); ROLLBACK;
         INSERT INTO orders VALUES ('acme', 1, 'again') ON CONFLICT DO NOTHING;
         BEGIN; SELECT agd.set_cause('because'); INSERT INTO cases VALUES ('acme', 1); COMMIT",
    )
    .unwrap();
    for (sql, state) in [
        ("INSERT INTO orders VALUES ('acme', 1, 'again')", "23505"),
        ("INSERT INTO orders VALUES ('acme', 5000, 'check')", "23514"),
        ("INSERT INTO orders VALUES ('acme', 1 / 0, 'x')", "22012"),
        ("SELECT * FROM agd.event", "42501"),
        ("SELECT agd.guard('orders')", "42501"),
        ("SELECT agd.set_cause('')", "22023"),
        ("SET statement_timeout = '1ms'; SELECT pg_sleep(10)", "57014"),
    ] {
        expect_sqlstate(acme.batch_execute(sql), state);
    }
    for (sql, state) in [
        ("SELECT agd.guard('no_such_table')", "42P01"),
        ("SELECT agd.guard('orders')", "23505"),
        ("SELECT agd.guard('pg_class')", "0A000"),
        ("SELECT agd.unguard('plain', '')", "22023"),
        ("SELECT agd.create_tenant('Not a name')", "22023"),
        ("SELECT * FROM agd.entries('nowhere', 0, 1)", "22023"),
    ] {
        expect_sqlstate(superuser.batch_execute(sql), state);
    }
    assert_eq!(told(&mut superuser), [""; 0]);
    assert_eq!(number(&mut superuser, "SELECT events_denied + denied_overflow FROM agd.stat"), 0);
}

#[test]
fn no_attempt_is_lost_uncounted() {
    const SESSIONS: usize = 4;
    const EACH: i64 = 700;
    let stage = Stage::new("many");
    let mut superuser = stage.superuser();
    let worker = worker_pid(&mut superuser);
    let storm = |how_often: i64| {
        std::thread::scope(|scope| {
            for _ in 0..SESSIONS {
                scope.spawn(|| {
                    let refused = format!(
                        "DO $$ BEGIN
                           FOR i IN 1..{how_often} LOOP
                             BEGIN INSERT INTO orders VALUES ('globex', i, 'x'); EXCEPTION WHEN insufficient_privilege THEN NULL; END;
                           END LOOP;
                         END $$"
                    );
                    stage.login("acme").batch_execute(&refused).unwrap();
                });
            }
        });
    };
    let balance = "SELECT (SELECT count(*) FROM agd.events WHERE action = 'DENIED' AND tenant IS NULL)
                        + (SELECT coalesce(sum((body::json->>'lost')::bigint), 0) FROM agd.events WHERE action = 'DENIED.OVERFLOW' AND tenant IS NULL)::bigint";
    // While the worker stands still, the ring fills; what does not fit is counted.
    let frozen = cluster().freeze(worker).unwrap();
    storm(EACH);
    let lost = number(&mut superuser, "SELECT denied_overflow FROM agd.stat");
    assert!(lost > 0);
    assert_eq!(number(&mut superuser, "SELECT events_denied FROM agd.stat"), 0);
    drop(frozen);
    anchor(&mut superuser);
    let attempts = SESSIONS as i64 * EACH;
    assert_eq!(number(&mut superuser, balance), attempts);
    assert_eq!(number(&mut superuser, "SELECT events_denied FROM agd.stat"), attempts - lost);
    // While it works, too.
    storm(EACH);
    anchor(&mut superuser);
    assert_eq!(number(&mut superuser, balance), 2 * attempts);
    assert_eq!(number(&mut superuser, "SELECT events_denied + denied_overflow FROM agd.stat"), 2 * attempts);
    expect_each_event_in_one_leaf(&mut superuser);
    expect_verified(&mut superuser);
}

#[test]
fn databases_do_not_crowd_each_other_out() {
    let (noisy, calm) = (Stage::new("noisy"), Stage::new("calm"));
    let (mut noisy_superuser, mut calm_superuser) = (noisy.superuser(), calm.superuser());
    let workers = [worker_pid(&mut noisy_superuser), worker_pid(&mut calm_superuser)];
    let frozen = workers.map(|worker| cluster().freeze(worker).unwrap());
    let mut acme = noisy.login("acme");
    for _ in 0..300 {
        expect_sqlstate(acme.batch_execute("TRUNCATE orders"), "AG002");
    }
    expect_sqlstate(calm.login("outsider").batch_execute("TRUNCATE plain"), "AG002");
    drop(frozen);
    assert_eq!(told(&mut calm_superuser), ["- public.plain TRUNCATE AG002 calm_outsider calm_outsider -"]);
    assert_eq!(number(&mut calm_superuser, "SELECT denied_overflow FROM agd.stat"), 0);
    let noise = told(&mut noisy_superuser);
    assert!(
        noise.iter().all(|event| event == "acme public.orders TRUNCATE AG002 noisy_acme noisy_acme acme"),
        "{noise:#?}"
    );
    let lost = number(&mut noisy_superuser, "SELECT denied_overflow FROM agd.stat");
    assert_eq!(noise.len() as i64 + lost, 300);
    assert!(lost > 0);
}

#[test]
fn a_ring_survives_what_happens_to_its_database() {
    let stage = Stage::new("reborn");
    let mut superuser = stage.superuser();
    // What was refused before the extension was dropped is nothing that a new one could tell of.
    let worker = worker_pid(&mut superuser);
    let frozen = cluster().freeze(worker).unwrap();
    expect_sqlstate(superuser.batch_execute("TRUNCATE plain"), "AG002");
    // The extension goes only when nothing is guarded any more.
    expect_sqlstate(superuser.batch_execute("DROP EXTENSION agd CASCADE"), "AG002");
    superuser
        .batch_execute(
            "SELECT agd.unguard(relation, 'the end of the test') FROM agd.guarded_table; DROP EXTENSION agd CASCADE",
        )
        .unwrap();
    drop(frozen);
    eventually("the worker has left", SOON, || {
        number(
            &mut superuser,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'agd%'",
        ) == 0
    });
    superuser.batch_execute("TRUNCATE plain; CREATE EXTENSION agd; SELECT agd.guard('plain')").unwrap();
    expect_sqlstate(superuser.batch_execute("DELETE FROM agd.event"), "AG002");
    assert_eq!(told(&mut superuser), ["- agd.event DELETE AG002 postgres postgres -"]);
    drop(superuser);
    // A database dropped with refusals in its ring leaves the slot to the next one.
    for round in 0..3 {
        let name = format!("short_lived_{round}");
        let mut maintenance = cluster().superuser().unwrap();
        maintenance.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        let mut client = cluster().client("postgres", &name).unwrap();
        client
            .batch_execute("CREATE EXTENSION agd; CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t')")
            .unwrap();
        for _ in 0..200 {
            expect_sqlstate(client.batch_execute("TRUNCATE t"), "AG002");
        }
        drop(client);
        maintenance.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
    }
    let mut superuser = stage.superuser();
    expect_sqlstate(superuser.batch_execute("TRUNCATE plain"), "AG002");
    assert_eq!(told(&mut superuser).len(), 2);
    assert_eq!(number(&mut superuser, "SELECT denied_overflow FROM agd.stat"), 0);
}

#[test]
fn the_server_dies_with_refusals_in_the_ring() {
    let cluster = Cluster::builder().start().unwrap();
    let database = cluster.agd_database("crash").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute("CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t')").unwrap();
    expect_sqlstate(client.batch_execute("TRUNCATE t"), "AG002");
    assert_eq!(told(&mut client), ["- public.t TRUNCATE AG002 postgres postgres -"]);
    let worker = worker_pid(&mut client);
    let _frozen = cluster.freeze(worker).unwrap();
    for _ in 0..200 {
        expect_sqlstate(client.batch_execute("TRUNCATE t"), "AG002");
    }
    drop(client);
    cluster.kill9_server().unwrap();
    cluster.start().unwrap();
    // Shared memory is gone and with it what was in the ring; what was told stays, and the ring is as new.
    let mut client = database.connect().unwrap();
    assert_eq!(number(&mut client, "SELECT events_denied + denied_overflow FROM agd.stat"), 0);
    expect_sqlstate(client.batch_execute("DELETE FROM agd.event"), "AG002");
    assert_eq!(
        told(&mut client),
        ["- public.t TRUNCATE AG002 postgres postgres -", "- agd.event DELETE AG002 postgres postgres -"]
    );
    expect_verified(&mut client);
}

#[test]
fn long_and_strange_names_are_told_in_full() {
    let long = |first: &str| format!("{first}{}", "\u{e9}\"".repeat(20)); // quoted twice as long
    let database = cluster().agd_database("strange").unwrap();
    let mut superuser = database.connect().unwrap();
    let role = format!("strange_{}", "r".repeat(55));
    cluster().create_role(&role, "IN ROLE agd_tenant").unwrap();
    let (schema, table) = (long("s").replace('"', "\"\""), long("t").replace('"', "\"\""));
    let tenant = format!("t{}", "0".repeat(62));
    superuser
        .batch_execute(&format!(
            "CREATE SCHEMA \"{schema}\"; CREATE TABLE \"{schema}\".\"{table}\" (tenant text, id int, PRIMARY KEY (tenant, id));
             SELECT agd.create_tenant('{tenant}'); SELECT agd.create_tenant('other'); SELECT agd.map_role('{role}', '{tenant}');
             SELECT agd.guard('\"{schema}\".\"{table}\"', tenant_column => 'tenant');
             GRANT USAGE ON SCHEMA \"{schema}\" TO {role}; GRANT INSERT ON \"{schema}\".\"{table}\" TO {role}"
        ))
        .unwrap();
    let mut client = database.connect_as(&role).unwrap();
    let application = "a\\\"\u{7}".repeat(15);
    client.execute("SELECT set_config('application_name', $1, false)", &[&application]).unwrap();
    let application: String = client.query_one("SELECT current_setting('application_name')", &[]).unwrap().get(0);
    let insert = format!("INSERT INTO \"{schema}\".\"{table}\" VALUES ('other', 1)");
    let error = expect_sqlstate(client.batch_execute(&insert), "42501");
    // A tenant column can hold what is longer than any slot.
    let huge = format!("INSERT INTO \"{schema}\".\"{table}\" SELECT repeat('x', 2000), 1");
    expect_sqlstate(client.batch_execute(&huge), "42501");
    // Nor does what merely begins like a tenant's name count as that tenant's.
    let longer = format!("INSERT INTO \"{schema}\".\"{table}\" VALUES ('{tenant}x', 1)");
    expect_sqlstate(superuser.batch_execute(&longer), "42501");
    anchor(&mut superuser);
    let rows = superuser
        .query(
            "SELECT tenant, relation, body::json->>'session_user_name', role_name, body::json->>'application_name',
                    body::json->>'message'
               FROM agd.events WHERE action = 'DENIED' ORDER BY body::json->>'at', split_part(event_id, '-', 2)::int",
            &[],
        )
        .unwrap();
    assert_eq!(rows.len(), 5);
    for platforms in [1, 3, 4] {
        assert_eq!(rows[platforms].get::<_, Option<String>>(0), None);
    }
    let texts = |row: usize| (0..6).map(|column| rows[row].get::<_, String>(column)).collect::<Vec<_>>();
    let name = format!("\"{schema}\".\"{table}\"");
    let message = format!("a row of another tenant in {name} is not for tenant \"{tenant}\" to write");
    for own in [0, 2] {
        assert_eq!(texts(own), [tenant.as_str(), &name, &role, &role, &application, &message]);
    }
    // The client was told whose row it was.
    assert!(error.message().contains("a row of tenant \"other\""), "{}", error.message());
    expect_verified(&mut superuser);
}
