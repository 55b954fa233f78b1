//! The worker against who owns the database: it is not sent away in vain, not ended and not blinded by settings, nothing
//! that waits for it is lost, and a database with guarded tables goes only with a superuser's word.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, worker_pid};
use agd_live_tests::{Cluster, TestDb, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// Nothing is anchored by age here.
fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = Cluster::builder()
            .setting("agd.anchor_max_age", "1h")
            .setting("max_prepared_transactions", "20")
            .start()
            .unwrap();
        cluster.create_role("stranger", "").unwrap();
        cluster
    })
}

/// A database of `dbo`'s own, who may create databases and is no superuser, with one guarded table that is its own, too.
struct Stage {
    database: TestDb<'static>,
    dbo: String,
}

impl Stage {
    fn new(name: &str) -> Self {
        let database = cluster().agd_database(name).unwrap();
        let dbo = format!("{name}_dbo");
        cluster().create_role(&dbo, "CREATEDB").unwrap();
        let stage = Self { database, dbo };
        let setup = format!(
            "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO {0};
             SELECT agd.guard('t'); ALTER DATABASE {1} OWNER TO {0}; GRANT CREATE ON SCHEMA public TO {0}",
            stage.dbo,
            stage.name()
        );
        stage.superuser().batch_execute(&setup).unwrap();
        stage
    }

    fn name(&self) -> &str {
        self.database.name()
    }

    fn superuser(&self) -> Client {
        self.database.connect().unwrap()
    }

    fn dbo(&self) -> Client {
        self.database.connect_as(&self.dbo).unwrap()
    }

    /// dbo, connected to another database.
    fn outside(&self) -> Client {
        cluster().client(&self.dbo, "postgres").unwrap()
    }

    fn sql(&self, text: &str) -> String {
        text.replace("{x}", self.name())
    }
}

fn number(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

fn text(client: &mut Client, sql: &str) -> String {
    client
        .query_one(sql, &[])
        .unwrap_or_else(|error| panic!("{sql}: {error:?}"))
        .get::<_, Option<String>>(0)
        .unwrap_or_default()
}

/// The process id of a database's worker, seen from another database.
fn worker_of(name: &str) -> Option<i32> {
    let mut client = cluster().superuser().unwrap();
    client
        .query_opt("SELECT pid FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'agd worker'", &[&name])
        .unwrap()
        .map(|row| row.get(0))
}

/// Nothing waits, nor is any tail without its anchor.
fn expect_complete(client: &mut Client) {
    assert_eq!(number(client, "SELECT count(*) FROM agd.log WHERE open_since IS NOT NULL"), 0);
    assert_eq!(number(client, "SELECT count(*) FROM agd.events WHERE leaf_index IS NULL"), 0);
}

#[test]
fn no_vain_attempt_sends_the_worker_away() {
    let stage = Stage::new("vain");
    let mut connected = stage.dbo();
    let mut outside = stage.outside();
    let pid = worker_pid(&mut stage.superuser());
    let attempts = |outside: &mut Client, attempts: &[(&str, &str)]| {
        for (sql, state) in attempts {
            for _ in 0..2 {
                expect_sqlstate(outside.batch_execute(&stage.sql(sql)), state);
                assert_eq!(worker_of(stage.name()), Some(pid), "{sql}");
            }
        }
    };
    // PostgreSQL's own checks come first.
    attempts(
        &mut outside,
        &[
            ("ALTER DATABASE {x} RENAME TO {x}", "42P04"),
            ("ALTER DATABASE {x} RENAME TO postgres", "42P04"),
            ("CREATE DATABASE postgres TEMPLATE {x}", "42P04"),
            ("ALTER DATABASE {x} SET TABLESPACE nowhere", "42704"),
            ("ALTER DATABASE {x} SET TABLESPACE pg_global", "42501"),
            ("ROLLBACK; BEGIN; DROP DATABASE {x}; COMMIT", "25001"),
            ("ROLLBACK; BEGIN; CREATE DATABASE y TEMPLATE {x}; COMMIT", "25001"),
            ("ROLLBACK; BEGIN READ ONLY; ALTER DATABASE {x} RENAME TO y", "25006"),
        ],
    );
    outside.batch_execute("ROLLBACK").unwrap();
    attempts(
        &mut outside,
        &[
            ("DROP DATABASE {x}", "AG002"),
            ("DROP DATABASE {x} WITH (FORCE)", "AG002"),
            ("DROP DATABASE IF EXISTS {x}", "AG002"),
        ],
    );
    let mut stranger = cluster().client("stranger", "postgres").unwrap();
    attempts(
        &mut stranger,
        &[
            ("ALTER DATABASE {x} RENAME TO y", "42501"),
            ("CREATE DATABASE y TEMPLATE {x}", "42501"),
            ("DROP DATABASE {x}", "42501"),
            ("DROP DATABASE {x} WITH (FORCE)", "42501"),
            ("ALTER DATABASE {x} SET TABLESPACE pg_default", "42501"),
        ],
    );
    // Somebody is connected: the statement waits in vain, and the worker goes on with its work meanwhile.
    for sql in ["ALTER DATABASE {x} RENAME TO y", "CREATE DATABASE y TEMPLATE {x}"] {
        let error = expect_sqlstate(outside.batch_execute(&stage.sql(sql)), "55006");
        assert!(error.message().contains("is being accessed by other users"), "{}", error.message());
        assert_eq!(worker_of(stage.name()), Some(pid), "{sql}");
    }
    let mut watcher = stage.superuser();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            expect_sqlstate(stage.outside().batch_execute(&stage.sql("ALTER DATABASE {x} RENAME TO y")), "55006")
        });
        connected.batch_execute("INSERT INTO t SELECT generate_series(1, 300)").unwrap();
        eventually("what is written meanwhile is integrated", Duration::from_secs(4), || {
            number(&mut watcher, "SELECT count(*) FROM agd.events WHERE leaf_index IS NULL") == 0
        });
    });
    assert_eq!(worker_of(stage.name()), Some(pid));
    drop(watcher);
    // Nobody is, but a prepared transaction is in the way.
    connected.batch_execute("BEGIN; INSERT INTO t VALUES (0); PREPARE TRANSACTION 'in the way'").unwrap();
    drop(connected);
    attempts(&mut outside, &[("ALTER DATABASE {x} RENAME TO y", "55006")]);
    let mut superuser = stage.superuser();
    superuser.batch_execute("COMMIT PREPARED 'in the way'").unwrap();
    anchor(&mut superuser);
    assert_eq!(number(&mut superuser, "SELECT worker_failures FROM agd.stat"), 0);
    assert_eq!(worker_pid(&mut superuser), pid);
    expect_each_event_in_one_leaf(&mut superuser);
    expect_verified(&mut superuser);
}

#[test]
fn before_it_makes_way_it_finishes_its_work_and_it_comes_back() {
    let stage = Stage::new("way");
    let mut outside = stage.outside();
    let name = stage.name().to_owned();
    let mut written = 0;
    let mut write = |name: &str| {
        let mut client = cluster().client(&stage.dbo, name).unwrap();
        written += 1;
        client.batch_execute(&format!("INSERT INTO t VALUES ({written})")).unwrap();
        expect_sqlstate(client.batch_execute("TRUNCATE t"), "AG002");
    };
    let expect_whole = |name: &str| {
        let mut client = cluster().client("postgres", name).unwrap();
        expect_complete(&mut client);
        worker_pid(&mut client);
        assert_eq!(number(&mut client, "SELECT worker_failures FROM agd.stat"), 0);
        expect_verified(&mut client);
    };
    write(&name);
    outside.batch_execute("ALTER DATABASE {x} RENAME TO elsewhere".replace("{x}", &name).as_str()).unwrap();
    expect_whole("elsewhere");
    // A RENAME that is rolled back kept everybody out for a while, and is over.
    write("elsewhere");
    outside.batch_execute("BEGIN; ALTER DATABASE elsewhere RENAME TO nowhere").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(worker_of("elsewhere"), None);
    outside.batch_execute("ROLLBACK").unwrap();
    expect_whole("elsewhere");
    write("elsewhere");
    outside.batch_execute(&format!("ALTER DATABASE elsewhere RENAME TO {name}")).unwrap();
    expect_whole(&name);
    write(&name);
    outside.batch_execute(&format!("CREATE DATABASE way_copy TEMPLATE {name}")).unwrap();
    expect_whole(&name);
    // What PostgreSQL refuses so late that the worker was gone for it.
    for _ in 0..5 {
        write(&name);
        expect_sqlstate(
            outside.batch_execute(&format!("CREATE DATABASE y TEMPLATE {name} ENCODING 'LATIN1'")),
            "22023",
        );
        expect_whole(&name);
    }
    let log = cluster().log();
    assert!(log.contains("needs free of connections"), "{log}");
    // The copy is nobody's record: its owner may drop it, connected or not.
    let mut copy = cluster().client(&stage.dbo, "way_copy").unwrap();
    expect_sqlstate(copy.batch_execute("INSERT INTO t VALUES (1000)"), "55000");
    outside.batch_execute("DROP DATABASE way_copy WITH (FORCE)").unwrap();
}

#[test]
fn settings_of_a_database_neither_end_the_worker_nor_blind_it() {
    let stage = Stage::new("settings");
    let mut dbo = stage.outside();
    let mut settings = vec![
        "statement_timeout = '1ms'",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "idle_session_timeout = '1ms'",
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "search_path = public",
        "quote_all_identifiers = on",
        "transform_null_equals = on",
        "exit_on_error = on",
        "synchronous_commit = off",
        "local_preload_libraries = 'nowhere'",
        "work_mem = '64kB'",
        "enable_indexscan = off",
        "enable_seqscan = off",
        "enable_bitmapscan = off",
        "standard_conforming_strings = off",
        "DateStyle = 'German'",
        "bytea_output = 'escape'",
        "TimeZone = 'Asia/Kathmandu'",
        "default_tablespace = 'nowhere'",
        "client_encoding = 'SJIS'",
        "row_security = off",
        "jit_above_cost = 0",
        "plan_cache_mode = 'force_custom_plan'",
    ];
    let version: i32 = text(&mut dbo, "SHOW server_version_num").parse().unwrap();
    settings.push(if version >= 160_000 { "debug_parallel_query = on" } else { "force_parallel_mode = on" });
    if version >= 170_000 {
        settings.push("transaction_timeout = '1ms'");
    }
    settings.push("restrict_nonsystem_relation_kind = 'view, foreign-table'");
    for setting in settings {
        let done = dbo.batch_execute(&stage.sql(&format!("ALTER DATABASE {{x}} SET {setting}")));
        // Some come with minor releases.
        if let Err(error) = done {
            assert!(error.to_string().contains("unrecognized configuration parameter"), "{setting}: {error:?}");
        }
    }
    // Who may set these is a superuser, or was granted the parameter.
    let mut postgres = cluster().superuser().unwrap();
    for setting in ["role = 'stranger'", "session_authorization = 'stranger'", "session_replication_role = 'replica'"] {
        if let Err(error) = postgres.batch_execute(&stage.sql(&format!("ALTER DATABASE {{x}} SET {setting}"))) {
            println!("{setting}: {error}");
        }
    }
    // A new worker comes up under them.
    let old = worker_of(stage.name()).unwrap();
    assert_eq!(number(&mut postgres, &format!("SELECT pg_terminate_backend({old})::int::bigint")), 1);
    eventually("another worker", SOON, || worker_of(stage.name()).is_some_and(|pid| pid != old));
    postgres.batch_execute(&stage.sql("ALTER DATABASE {x} RESET ALL")).unwrap();
    let worker = worker_of(stage.name()).unwrap();
    let mut dbo = stage.dbo();
    dbo.batch_execute("INSERT INTO t SELECT generate_series(1, 1000)").unwrap();
    expect_sqlstate(dbo.batch_execute("TRUNCATE t"), "AG002");
    let mut superuser = stage.superuser();
    anchor(&mut superuser);
    expect_complete(&mut superuser);
    assert_eq!(worker_pid(&mut superuser), worker, "it was never ended");
    // What ended the first one is told.
    assert_eq!(number(&mut superuser, "SELECT worker_failures FROM agd.stat"), 1);
    let why = text(&mut superuser, "SELECT worker_last_failure FROM agd.stat");
    assert!(why.contains("administrator command"), "{why}");
    assert_eq!(number(&mut superuser, "SELECT events_denied FROM agd.stat"), 1);
    expect_each_event_in_one_leaf(&mut superuser);
    expect_verified(&mut superuser);
}

#[test]
fn a_database_that_takes_no_connections_keeps_its_worker_its_refusals_and_its_counters() {
    let stage = Stage::new("closed");
    let mut outside = stage.outside();
    let mut dbo = stage.dbo();
    dbo.batch_execute("INSERT INTO t VALUES (1)").unwrap();
    anchor(&mut stage.superuser());
    let frozen = cluster().freeze(worker_of(stage.name()).unwrap()).unwrap();
    for _ in 0..3 {
        expect_sqlstate(dbo.batch_execute("TRUNCATE t"), "AG002");
    }
    drop(dbo);
    outside
        .batch_execute(&stage.sql(
            "ALTER DATABASE {x} ALLOW_CONNECTIONS false; ALTER DATABASE {x} CONNECTION LIMIT 0;
             REVOKE ALL ON DATABASE {x} FROM PUBLIC",
        ))
        .unwrap();
    let old = worker_of(stage.name()).unwrap();
    let mut postgres = cluster().superuser().unwrap();
    assert_eq!(number(&mut postgres, &format!("SELECT pg_terminate_backend({old})::int::bigint")), 1);
    drop(frozen);
    eventually("another worker", SOON, || worker_of(stage.name()).is_some_and(|pid| pid != old));
    std::thread::sleep(Duration::from_millis(1500));
    outside.batch_execute(&stage.sql("ALTER DATABASE {x} ALLOW_CONNECTIONS true")).unwrap();
    let mut superuser = stage.superuser();
    anchor(&mut superuser);
    assert_eq!(number(&mut superuser, "SELECT count(*) FROM agd.events WHERE action = 'DENIED'"), 3);
    assert_eq!(number(&mut superuser, "SELECT events_denied FROM agd.stat"), 3);
    assert!(number(&mut superuser, "SELECT events_recorded FROM agd.stat") > 0);
    expect_verified(&mut superuser);
}

#[test]
fn a_database_with_guarded_tables_goes_with_a_superusers_word_only() {
    let stage = Stage::new("dropped");
    let mut outside = stage.outside();
    // Also one that was guarded just now.
    let mut superuser = stage.superuser();
    superuser
        .batch_execute("SELECT agd.unguard('t', 'to be guarded again'); SELECT agd.anchor(); SELECT agd.guard('t')")
        .unwrap();
    drop(superuser);
    let drop_it = stage.sql("DROP DATABASE {x}");
    let error = expect_sqlstate(outside.batch_execute(&drop_it), "AG002");
    expect_hint(&error, "agd.unguard");
    expect_sqlstate(outside.batch_execute(&format!("{drop_it} WITH (FORCE)")), "AG002");
    // Where no worker is there to tell, either.
    outside.batch_execute(&stage.sql("ALTER DATABASE {x} ALLOW_CONNECTIONS false")).unwrap();
    expect_sqlstate(outside.batch_execute(&drop_it), "AG002");
    outside.batch_execute(&stage.sql("ALTER DATABASE {x} ALLOW_CONNECTIONS true")).unwrap();
    let mut superuser = stage.superuser();
    anchor(&mut superuser);
    let told = "SELECT string_agg(DISTINCT session_user_name || ' ' || (body::json->>'attempted') || ' ' || (body::json->>'sqlstate'), ',')
                  FROM (SELECT body, body::json->>'session_user_name' AS session_user_name FROM agd.events WHERE action = 'DENIED') e";
    assert_eq!(text(&mut superuser, told), "dropped_dbo DROP DATABASE AG002");
    superuser.batch_execute("SELECT agd.unguard('t', 'the database goes')").unwrap();
    drop(superuser);
    // Its record was at an end: the owner may.
    let connected = stage.dbo();
    outside.batch_execute(&format!("{drop_it} WITH (FORCE)")).unwrap();
    drop(connected);
    let stage = Stage::new("gone");
    stage.dbo().batch_execute("INSERT INTO t VALUES (1)").unwrap();
    let connected = stage.dbo();
    cluster().superuser().unwrap().batch_execute(&stage.sql("DROP DATABASE {x} WITH (FORCE)")).unwrap();
    drop(connected);
    let log = cluster().log();
    let line = log
        .lines()
        .find(|line| line.contains(&stage.sql("database \"{x}\" was dropped by postgres")))
        .unwrap_or_default();
    for part in ["origin agd-", &stage.sql("/{x}-").replace('_', "-"), "newest checkpoint of the platform log at size"]
    {
        assert!(line.contains(part), "{part}: {line}");
    }
}

#[test]
fn a_database_is_not_dropped_before_it_is_known_what_it_holds() {
    let cluster = Cluster::builder().start().unwrap();
    let database = cluster.agd_database("unknown").unwrap();
    cluster.create_role("dbo", "CREATEDB").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute(&format!(
            "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); ALTER DATABASE {} OWNER TO dbo",
            database.name()
        ))
        .unwrap();
    drop(client);
    let closed = format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", database.name());
    cluster.superuser().unwrap().batch_execute(&closed).unwrap();
    cluster.client("dbo", "postgres").unwrap().batch_execute("CREATE DATABASE empty").unwrap();
    // Right after a restart, and for as long as no worker can look.
    for workers in ["8", "2"] {
        cluster.configure([("max_worker_processes", workers)]).unwrap();
        cluster.restart().unwrap();
        let mut dbo = cluster.client("dbo", "postgres").unwrap();
        let state = if workers == "2" { "55000" } else { "AG002" };
        eventually("it is known", SOON, || {
            let error = dbo.batch_execute(&format!("DROP DATABASE {}", database.name())).unwrap_err();
            let code = error.code().unwrap().code().to_owned();
            assert!(code == "55000" || code == "AG002", "{error:?}");
            code == state
        });
    }
    cluster.configure([("max_worker_processes", "8")]).unwrap();
    cluster.restart().unwrap();
    let mut dbo = cluster.client("dbo", "postgres").unwrap();
    eventually("what has nothing guarded goes", SOON, || dbo.batch_execute("DROP DATABASE IF EXISTS empty").is_ok());
}

#[test]
fn databases_without_a_record_of_their_own_leave_the_slots_to_others() {
    let cluster = Cluster::builder()
        .setting("agd.max_databases", "4")
        .setting("max_prepared_transactions", "10")
        .start()
        .unwrap();
    cluster.create_role("dbo", "CREATEDB").unwrap();
    let first = cluster.agd_database("first").unwrap();
    let setup = "CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); INSERT INTO t VALUES (1)";
    first
        .connect()
        .unwrap()
        .batch_execute(&format!("{setup}; ALTER DATABASE {} OWNER TO dbo; ALTER TABLE t OWNER TO dbo", first.name()))
        .unwrap();
    let mut dbo = cluster.client("dbo", "postgres").unwrap();
    for round in 0..6 {
        dbo.batch_execute(&format!("CREATE DATABASE plain_{round}")).unwrap();
        let mut client = cluster.client("dbo", &format!("plain_{round}")).unwrap();
        client.batch_execute("BEGIN; CREATE TABLE u (id int); PREPARE TRANSACTION 'p'").unwrap();
        client.batch_execute("COMMIT PREPARED 'p'").unwrap();
        expect_sqlstate(client.batch_execute(&format!("DROP DATABASE {}", first.name())), "AG002");
        dbo.batch_execute(&format!("CREATE DATABASE copy_{round} TEMPLATE {}", first.name())).unwrap();
        let mut client = cluster.client("dbo", &format!("copy_{round}")).unwrap();
        expect_sqlstate(client.batch_execute("INSERT INTO t VALUES (2)"), "55000");
        expect_sqlstate(client.batch_execute("TRUNCATE t"), "AG002");
    }
    // Also after a restart, when each is visited.
    cluster.restart().unwrap();
    let second = cluster.agd_database("second").unwrap();
    for database in [&first, &second] {
        let mut client = database.connect().unwrap();
        client
            .batch_execute(if database.name() == second.name() { setup } else { "INSERT INTO t VALUES (3)" })
            .unwrap();
        anchor(&mut client);
        expect_verified(&mut client);
    }
    // There is an end to it, and it says so.
    let third = cluster.agd_database("third");
    let fourth = cluster.agd_database("fourth");
    assert!(third.is_err() || fourth.is_err());
}

#[test]
fn a_worker_that_cannot_be_started_says_why() {
    let cluster = Cluster::builder().setting("max_worker_processes", "2").start().unwrap();
    let database = cluster.agd_database("starved").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); INSERT INTO t VALUES (1)")
        .unwrap();
    eventually("it is told", SOON, || {
        text(&mut client, "SELECT worker_last_failure FROM agd.stat").contains("max_worker_processes")
    });
    assert_eq!(text(&mut client, "SELECT worker FROM agd.stat"), "stopped");
    assert_eq!(number(&mut client, "SELECT count(*) FROM agd.stat WHERE oldest_unanchored_age > '0'"), 1);
    cluster.create_role("watcher", "IN ROLE pg_monitor").unwrap();
    let mut watcher = database.connect_as("watcher").unwrap();
    let ill = "SELECT string_agg(problem || ': ' || detail, ';') FROM agd.health WHERE since < now()";
    eventually("whoever watches the server sees it", SOON, || {
        text(&mut watcher, ill).contains("no worker runs: no background worker")
    });
    assert_eq!(text(&mut watcher, "SELECT worker FROM agd.stat"), "stopped");
    let error = expect_sqlstate(client.batch_execute("SELECT agd.anchor()"), "55000");
    assert!(error.message().contains("max_worker_processes"), "{}", error.message());
    assert!(cluster.log().contains("raise max_worker_processes"));
    cluster.configure([("max_worker_processes", "8")]).unwrap();
    cluster.restart().unwrap();
    anchor(&mut database.connect().unwrap());
    let mut watcher = database.connect_as("watcher").unwrap();
    assert_eq!(number(&mut watcher, "SELECT count(*) FROM agd.health"), 0);
    expect_sqlstate(watcher.batch_execute("SELECT * FROM agd.events"), "42501");
}
