//! Attacks by being refused: to learn what others have, to write into their logs, to stop their writes.

use agd_live_tests::record::{anchor, expect_verified, worker_pid};
use agd_live_tests::{Cluster, TestDb, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| Cluster::builder().setting("agd.ceiling_wait", "200ms").start().unwrap())
}

struct Stage {
    database: TestDb<'static>,
    prefix: &'static str,
}

impl Stage {
    fn new(prefix: &'static str) -> Self {
        let stage = Self { database: cluster().agd_database(prefix).unwrap(), prefix };
        for (role, options) in [
            ("acme", "IN ROLE agd_tenant"),
            ("globex", "IN ROLE agd_tenant"),
            ("plat", "IN ROLE agd_platform"),
            ("pool", "IN ROLE agd_tenant"),
            ("stranger", ""),
        ] {
            cluster().create_role(&format!("{prefix}_{role}"), options).unwrap();
        }
        let setup = "
            CREATE TABLE orders (tenant text, id int, PRIMARY KEY (tenant, id));
            SELECT agd.create_tenant('acme'), agd.create_tenant('globex');
            SELECT agd.guard('orders', tenant_column => 'tenant');
            SELECT agd.map_role('{0}_acme', 'acme'); SELECT agd.map_role('{0}_globex', 'globex');
            SELECT agd.map_role('{0}_pool', 'acme', 'token');
            SELECT agd.add_tenant_key('globex', 'globex-1', '\\x5866666666666666666666666666666666666666666666666666666666666666');
            GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {0}_acme, {0}_globex, {0}_stranger";
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

#[track_caller]
fn number(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// Everything of a refusal that the caller sees: the error, and what its own log says, with its place in the worker's transaction.
fn seen(stage: &Stage, client: &mut Client, sql: &str) -> (String, String, Vec<String>) {
    // Each in a transaction of the worker's by itself.
    anchor(&mut stage.superuser());
    let own = "SELECT concat_ws(' ', action, relation, guard_id, role_name, split_part(event_id, '-', 2), b->>'sqlstate', b->>'attempted',
                                     b->>'bound_tenant', b->>'concerned_tenant', b->>'message', (SELECT string_agg(k, ',') FROM jsonb_object_keys(b) k))
                 FROM agd.events, LATERAL (SELECT body::jsonb) j (b) WHERE action LIKE 'DENIED%' ORDER BY committed_at DESC LIMIT 1";
    let count = "SELECT count(*) FROM agd.events WHERE action LIKE 'DENIED%'";
    let before = number(client, count);
    let error = match client.batch_execute(sql) {
        Ok(()) => panic!("{sql} is allowed"),
        Err(error) => error.as_db_error().unwrap().clone(),
    };
    client.batch_execute("ROLLBACK").unwrap();
    anchor(&mut stage.superuser());
    let told = number(client, count) - before;
    let mut last = column(client, own);
    last.push(told.to_string());
    (error.code().code().to_owned(), format!("{} {}", error.message(), error.hint().unwrap_or_default()), last)
}

/// A mapped tenant tries each thing about a tenant that exists and about one that does not: what it sees is the same.
#[test]
fn a_refusal_does_not_tell_whether_another_tenant_exists() {
    let stage = Stage::new("oracle");
    let mut superuser = stage.superuser();
    let mut globex = stage.login("globex");
    let fleet: String = globex.query_one("SELECT agd.mint_tenant_fleet('globex', 'theirs')", &[]).unwrap().get(0);
    let mut acme = stage.login("acme");
    let own: String = acme.query_one("SELECT agd.mint_tenant_fleet('acme', 'ours')", &[]).unwrap().get(0);
    let none = "0123456789abcdef";
    let (there, not_there) = ("globex", "initech");
    for attempt in [
        "INSERT INTO orders VALUES ('{tenant}', 1)",
        "BEGIN; INSERT INTO orders VALUES ('acme', 77); SAVEPOINT s; INSERT INTO orders VALUES ('{tenant}', 1)",
        "SELECT agd.enter('{tenant}')",
        "SELECT agd.mint_tenant_fleet('{tenant}', 'a cause')",
        "SELECT agd.sign_fleet('{fleet}', 'nobody', '\\x00')",
        "SELECT * FROM agd.countersign_fleets(ARRAY['{fleet}'], 'nobody', '\\x00')",
        "SELECT * FROM agd.countersign_fleets(ARRAY['{fleet}', '{own}'], 'nobody', '\\x00')",
        "SELECT agd.set_agent_context('{fleet}', 'writer', '[]')",
        "SELECT agd.seal_tenant_fleet('{fleet}', 'over')",
        "SELECT agd.fleet_statement('{fleet}')",
        "SELECT agd.batch_statement(ARRAY['{own}', '{fleet}'])",
        "SELECT * FROM agd.verify_fleet('{fleet}')",
    ] {
        let of = |tenant: &str, fleet: &str| {
            attempt.replace("{tenant}", tenant).replace("{fleet}", fleet).replace("{own}", &own)
        };
        let blank = |(code, text, told): (String, String, Vec<String>), tenant: &str, fleet: &str| {
            (code, text.replace(tenant, "*").replace(fleet, "*"), told)
        };
        let exists = blank(seen(&stage, &mut acme, &of(there, &fleet)), there, &fleet);
        let does_not = blank(seen(&stage, &mut acme, &of(not_there, none)), not_there, none);
        assert_eq!(exists, does_not, "{attempt}");
        assert!(matches!(exists.0.as_str(), "42501"), "{attempt}: {exists:?}");
        assert_eq!(exists.2.last().map(String::as_str), Some("1"), "{attempt} leaves one event in the caller's log");
    }
    // Of the other tenant's log nothing was written; the platform knows.
    assert_eq!(column(&mut globex, "SELECT action FROM agd.events WHERE action LIKE 'DENIED%'"), [""; 0]);
    let told = column(
        &mut stage.login("plat"),
        "SELECT DISTINCT coalesce(b->>'concerned_tenant', '-') || ' ' || (b->>'bound_tenant') FROM agd.events, LATERAL (SELECT body::jsonb) j (b)
          WHERE action = 'DENIED' AND tenant IS NULL ORDER BY 1",
    );
    assert_eq!(told, ["- acme", "globex acme"]);
    expect_verified(&mut superuser);
}

/// Nor does it tell by waiting: a fleet that its tenant has locked answers as one that is not there.
#[test]
fn another_tenants_locked_fleet_is_not_waited_for() {
    let stage = Stage::new("waits");
    let mut globex = stage.login("globex");
    let fleet: String = globex.query_one("SELECT agd.mint_tenant_fleet('globex', 'theirs')", &[]).unwrap().get(0);
    globex.batch_execute(&format!("BEGIN; SELECT agd.set_agent_context('{fleet}', 'writer', '[1]')")).unwrap();
    let mut acme = stage.login("acme");
    acme.batch_execute("SET statement_timeout = '2s'").unwrap();
    for sql in [
        format!("SELECT agd.sign_fleet('{fleet}', 'x', '\\x00')"),
        format!("SELECT agd.seal_tenant_fleet('{fleet}', 'over')"),
        format!("SELECT agd.set_agent_context('{fleet}', 'writer', '[2]')"),
        format!("SELECT * FROM agd.countersign_fleets(ARRAY['{fleet}'], 'x', '\\x00')"),
    ] {
        expect_sqlstate(acme.batch_execute(&sql), "42501");
    }
    globex.batch_execute("ROLLBACK").unwrap();
}

/// Whoever is bound to nobody, whatever it tries, writes into the platform's log alone.
#[test]
fn attempts_of_sessions_that_are_bound_to_nobody_are_the_platforms() {
    let stage = Stage::new("nobody");
    let mut stranger = stage.login("stranger");
    stranger
        .batch_execute(
            "SET application_name = 'text of my own choice, as long as they let me and then some more of it'",
        )
        .unwrap();
    for sql in [
        "SELECT agd.enter('globex')",
        "SELECT agd.enter('globex', 'text of my choice')",
        "SELECT agd.bind('a.b.c')",
        "INSERT INTO orders VALUES ('globex', 1)",
    ] {
        stranger.batch_execute(sql).unwrap_err();
    }
    let mut pool = stage.login("pool");
    expect_sqlstate(pool.batch_execute("SELECT agd.enter('globex')"), "42501");
    // Names a key of globex's.
    let token = "eyJhbGciOiJFZERTQSIsImtpZCI6Imdsb2JleC0xIn0.e30.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    pool.batch_execute(&format!("SELECT agd.bind('{token}')")).unwrap_err();
    let mut superuser = stage.superuser();
    anchor(&mut superuser);
    let by_log =
        "SELECT coalesce(tenant, '-') || ' ' || count(*) FROM agd.events WHERE action = 'DENIED' GROUP BY tenant";
    assert_eq!(column(&mut superuser, by_log), ["- 6"]);
    assert_eq!(column(&mut stage.login("globex"), by_log), [""; 0]);
    let longest = "SELECT max(octet_length(body)) FROM agd.events WHERE action = 'DENIED'";
    assert!(superuser.query_one(longest, &[]).unwrap().get::<_, i32>(0) < 1024);
    assert_eq!(
        column(
            &mut superuser,
            "SELECT action FROM agd.events WHERE action = 'DENIED' AND body LIKE '%text of my choice%'"
        ),
        [""; 0]
    );
}

/// A loop of refusals: so many of a role and minute are told, the rest is a number, and that number is not told each time.
#[test]
fn a_flood_of_refusals_is_told_as_a_number() {
    const EACH: i64 = 3000;
    let stage = Stage::new("flood");
    let mut superuser = stage.superuser();
    worker_pid(&mut superuser);
    for (role, sql) in
        [("stranger", "PERFORM agd.enter('globex')"), ("acme", "INSERT INTO orders VALUES ('globex', 1)")]
    {
        let flood = format!(
            "DO $$ BEGIN FOR i IN 1..{EACH} LOOP BEGIN {sql}; EXCEPTION WHEN insufficient_privilege THEN NULL; END; END LOOP; END $$"
        );
        stage.login(role).batch_execute(&flood).unwrap();
    }
    // Another role's attempt is told whatever the first has done.
    expect_sqlstate(stage.login("globex").batch_execute("INSERT INTO orders VALUES ('acme', 1)"), "42501");
    anchor(&mut superuser);
    let denied = number(&mut superuser, "SELECT events_denied FROM agd.stat");
    let lost = number(&mut superuser, "SELECT denied_overflow FROM agd.stat");
    assert_eq!(denied + lost, 2 * EACH + 1);
    // Two roles, a minute that may have turned in between.
    assert!((2..=4 * 120 + 1).contains(&denied), "{denied} refusals were told");
    let numbers = "SELECT count(*) FROM agd.events WHERE action = 'DENIED.OVERFLOW'";
    assert!((1..=3).contains(&number(&mut superuser, numbers)));
    let sum = "SELECT sum((body::json->>'lost')::bigint)::bigint FROM agd.events WHERE action = 'DENIED.OVERFLOW'";
    assert_eq!(number(&mut superuser, sum), lost);
    let told =
        "SELECT count(*) FROM agd.events WHERE action = 'DENIED' AND body::json->>'session_user_name' = 'flood_globex'";
    assert_eq!(number(&mut superuser, told), 2);
    assert_eq!(
        column(
            &mut stage.login("globex"),
            "SELECT DISTINCT body::json->>'session_user_name' FROM agd.events WHERE action = 'DENIED'"
        ),
        ["flood_globex"]
    );
    expect_verified(&mut superuser);
}

/// What the worker records of refusals stops nobody's writes.
#[test]
fn refusals_do_not_count_towards_the_ceiling() {
    let cluster = Cluster::builder()
        .setting("agd.ceiling_wait", "200ms")
        .setting("agd.anchor_max_age", "1h")
        .setting("agd.max_unsequenced_events", "20")
        .start()
        .unwrap();
    let database = cluster.agd_database("unmoved").unwrap();
    let mut superuser = database.connect().unwrap();
    cluster.create_role("unmoved_stranger", "").unwrap();
    superuser
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); SELECT agd.create_tenant('globex')")
        .unwrap();
    anchor(&mut superuser);
    let mut stranger = database.connect_as("unmoved_stranger").unwrap();
    for _ in 0..100 {
        expect_sqlstate(stranger.batch_execute("SELECT agd.enter('globex')"), "42501");
    }
    agd_live_tests::eventually("they are told", std::time::Duration::from_secs(30), || {
        number(&mut superuser, "SELECT count(*) FROM agd.event WHERE action = 'DENIED'") == 100
    });
    assert!(number(&mut superuser, "SELECT events_waiting FROM agd.stat") >= 100);
    superuser.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    // What others write does.
    for i in 2..=30 {
        let _ = superuser.batch_execute(&format!("INSERT INTO t VALUES ({i})"));
    }
    anchor(&mut superuser);
    superuser.batch_execute("INSERT INTO t VALUES (100)").unwrap();
    expect_verified(&mut superuser);
}

/// Over a ceiling users' tables wait; what agd itself has to decide does not.
#[test]
fn over_a_ceiling_agds_own_decisions_are_taken() {
    let cluster = Cluster::builder()
        .setting("agd.ceiling_wait", "100ms")
        .setting("agd.anchor_max_age", "1h")
        .setting("agd.max_unsequenced_events", "5")
        .start()
        .unwrap();
    let database = cluster.agd_database("over").unwrap();
    let mut superuser = database.connect().unwrap();
    for (role, options) in
        [("over_plat", "IN ROLE agd_platform"), ("over_acme", "IN ROLE agd_tenant"), ("over_two", "")]
    {
        cluster.create_role(role, options).unwrap();
    }
    let key = |first: &str| format!("'\\x{first}{}'", "66".repeat(31));
    superuser
        .batch_execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); GRANT INSERT ON t TO over_acme; CREATE TABLE u (id int PRIMARY KEY);
             SELECT agd.create_tenant('acme'); SELECT agd.map_role('over_acme', 'acme');
             SELECT agd.add_tenant_key('acme', 'k1', {}); SELECT agd.register_signer('River', 'countersigner', {})",
            key("58"),
            key("58")
        ))
        .unwrap();
    anchor(&mut superuser);
    let fleet: String = superuser.query_one("SELECT agd.mint_tenant_fleet('acme', 'a cause')", &[]).unwrap().get(0);
    anchor(&mut superuser);
    let worker = worker_pid(&mut superuser);
    let frozen = cluster.freeze(worker).unwrap();
    superuser.batch_execute("INSERT INTO t SELECT i FROM generate_series(1, 20) i").unwrap();
    expect_sqlstate(superuser.batch_execute("INSERT INTO t VALUES (100)"), "53400");
    let mut plat = database.connect_as("over_plat").unwrap();
    for sql in [
        "SELECT agd.revoke_tenant_key('k1', 'lost')".to_owned(),
        "SELECT agd.revoke_signer('River', 'lost')".to_owned(),
        format!("SELECT agd.seal_tenant_fleet('{fleet}', 'over')"),
        "SELECT agd.create_tenant('globex')".to_owned(),
        "SELECT agd.map_role('over_two', 'acme')".to_owned(),
        "SELECT agd.guard('u')".to_owned(),
        "SELECT agd.unguard('u', 'tried')".to_owned(),
    ] {
        plat.batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    // A tenant's own growth waits like its rows.
    let mut acme = database.connect_as("over_acme").unwrap();
    for sql in ["INSERT INTO t VALUES (101)", "SELECT agd.mint_tenant_fleet('acme', 'another')"] {
        expect_sqlstate(acme.batch_execute(sql), "53400");
    }
    drop(frozen);
    anchor(&mut superuser);
    superuser.batch_execute("INSERT INTO t VALUES (100)").unwrap();
    expect_verified(&mut superuser);
}
