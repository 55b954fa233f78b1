//! Verification while everything goes on: no false alarm under load, in any kind of transaction, beside another one; and it
//! can be watched.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified};
use agd_live_tests::{Cluster, TestDb, eventually, expect_sqlstate};
use fastrand::Rng;
use postgres::{Client, NoTls};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        Cluster::builder()
            .setting("max_prepared_transactions", "20")
            .setting("shared_buffers", "256MB")
            .start()
            .unwrap()
    })
}

/// Every check that failed, as text.
fn complaints(client: &mut Client, arguments: &str) -> Result<Vec<String>, postgres::Error> {
    let sql = format!("SELECT origin, check_name, detail FROM agd.verify({arguments}) WHERE NOT ok");
    let rows = client.query(&sql, &[])?;
    let text = |row: &postgres::Row, column| row.get::<_, Option<String>>(column).unwrap_or_default();
    Ok(rows.iter().map(|row| format!("{} on {}: {}", text(row, 1), text(row, 0), text(row, 2))).collect())
}

#[track_caller]
fn expect_no_complaint(client: &mut Client, arguments: &str) {
    match complaints(client, arguments) {
        Ok(found) => assert!(found.is_empty(), "agd.verify({arguments}) found {found:#?}"),
        Err(error) => panic!("agd.verify({arguments}): {error:?}"),
    }
}

// ------------------------------------------------------------------------------------------------------------ the load

/// How many events the load writes: 30,000, or what AGD_VERIFY_EVENTS says. For a million, on a release build:
///
/// ```text
/// AGD_PG_BIN=…/.tools/pg/15-release/bin AGD_VERIFY_EVENTS=1000000 cargo test -p agd-live-tests --test verify load -- --nocapture
/// ```
fn events_wanted() -> i64 {
    std::env::var("AGD_VERIFY_EVENTS").map_or(30_000, |number| number.parse().expect("AGD_VERIFY_EVENTS is a number"))
}

const SCHEMA: &str = "
    CREATE TABLE hot (id int PRIMARY KEY, hits bigint NOT NULL, note text);
    CREATE TABLE work (tenant text, id bigint, note text, PRIMARY KEY (tenant, id));
    CREATE TABLE side (id int PRIMARY KEY, note text);
    SELECT agd.create_tenant(tenant) FROM unnest('{red,blue}'::text[]) tenant;
    SELECT agd.create_tenant('tenant' || i) FROM generate_series(1, 20) i;
    SELECT agd.guard('hot'); SELECT agd.guard('work', tenant_column => 'tenant'); SELECT agd.guard('side');
    INSERT INTO hot SELECT i, 0, NULL FROM generate_series(1, 8) i;
    GRANT SELECT, INSERT, UPDATE, DELETE ON hot, work TO PUBLIC";

/// What ends the load: enough events, or somebody who found something.
struct Load<'a> {
    database: &'a TestDb<'a>,
    over: AtomicBool,
    complaints: Mutex<Vec<String>>,
    verifications: AtomicU64,
}

impl Load<'_> {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn complain(&self, who: &str, what: impl std::fmt::Display) {
        self.complaints.lock().unwrap().push(format!("{who}: {what}"));
        self.over.store(true, Ordering::Relaxed);
    }

    /// An application: transactions of all kinds, some rolled back, some prepared.
    fn write(&self, number: u64, role: Option<&str>) {
        let mut random = Rng::with_seed(number);
        let mut client = self.database.connect_as(role.unwrap_or("postgres")).unwrap();
        let mut next = number * 1_000_000_000;
        while self.goes_on() {
            let mut statements = vec![match random.u8(0..8) {
                0 => "BEGIN ISOLATION LEVEL REPEATABLE READ".to_owned(),
                1 => "BEGIN ISOLATION LEVEL SERIALIZABLE".to_owned(),
                _ => "BEGIN".to_owned(),
            }];
            for part in 0..random.u8(1..4) {
                let nested = random.u8(0..3) == 0;
                if nested {
                    statements.push(format!("SAVEPOINT s{part}"));
                }
                let rows = [1, 3, 20, 200][random.usize(0..4)];
                let tenant = role.map_or_else(|| format!("tenant{}", random.u8(1..=20)), str::to_owned);
                next += rows;
                statements.push(match random.u8(0..6) {
                    0 if role.is_none() => {
                        format!("UPDATE hot SET hits = hits + 1, note = 'w{number}' WHERE id = {}", random.u8(1..=8))
                    }
                    1 => format!("DELETE FROM work WHERE tenant = '{tenant}' AND id % 97 = {}", random.u8(0..97)),
                    2 => format!("UPDATE work SET note = note || '.' WHERE tenant = '{tenant}' AND id % 53 = {}", random.u8(0..53)),
                    // Some of them are there already.
                    3 => format!(
                        "INSERT INTO work SELECT '{tenant}', {next} - i * 2, 'again' FROM generate_series(1, {rows}) i ON CONFLICT DO NOTHING"
                    ),
                    // Spread over tenants, where that is allowed.
                    4 if role.is_none() => format!(
                        "INSERT INTO work SELECT 'tenant' || (1 + i % 20), {next} - i, 'spread' FROM generate_series(1, {rows}) i ON CONFLICT DO NOTHING"
                    ),
                    _ => format!(
                        "INSERT INTO work SELECT '{tenant}', {next} - i, repeat('x', {}) FROM generate_series(1, {rows}) i ON CONFLICT DO NOTHING",
                        [1, 10, 3000][random.usize(0..3)]
                    ),
                });
                if nested {
                    statements.push(format!("{} s{part}", if random.bool() { "RELEASE" } else { "ROLLBACK TO" }));
                }
            }
            let prepared = (random.u8(0..12) == 0).then(|| format!("p{number}_{next}"));
            statements.push(match (&prepared, random.u8(0..6)) {
                (Some(name), _) => format!("PREPARE TRANSACTION '{name}'"),
                (None, 0) => "ROLLBACK".to_owned(),
                (None, _) => "COMMIT".to_owned(),
            });
            // What fails is rolled back, as an application does it: 40001, a deadlock.
            let failed = statements.iter().any(|statement| client.batch_execute(statement).is_err());
            if failed {
                client.batch_execute("ROLLBACK").unwrap();
            } else if let Some(name) = prepared {
                std::thread::sleep(Duration::from_millis(random.u64(0..150)));
                let end = if random.u8(0..3) == 0 { "ROLLBACK" } else { "COMMIT" };
                client.batch_execute(&format!("{end} PREPARED '{name}'")).unwrap();
            }
            // Refused, and recorded as that.
            if role.is_some() && random.u8(0..20) == 0 {
                let other = format!("INSERT INTO work VALUES ('tenant1', {next}, 'not mine')");
                expect_sqlstate(client.batch_execute(&other), "42501");
            }
        }
    }

    /// A DBA: guards that come and go, tenants, anchors at odd times, a transaction that stays open.
    fn administer(&self) {
        let mut client = self.database.connect().unwrap();
        let mut random = Rng::with_seed(4711);
        let mut round = 0;
        while self.goes_on() {
            round += 1;
            let statements = match random.u8(0..6) {
                0 => vec![
                    "SELECT agd.unguard('side', 'for a while')".to_owned(),
                    "SELECT count(*) FROM agd.anchor()".to_owned(),
                    "SELECT agd.guard('side')".to_owned(),
                ],
                1 => vec![format!("SELECT agd.create_tenant('new{round}')")],
                2 => vec![
                    "BEGIN".to_owned(),
                    format!("INSERT INTO side VALUES ({round}, 'a transaction that stays open')"),
                    "SELECT pg_sleep(1)".to_owned(),
                    "COMMIT".to_owned(),
                ],
                3 => vec![
                    format!("ALTER TABLE side ADD COLUMN c{round} int"),
                    format!("ALTER TABLE side DROP COLUMN c{round}"),
                ],
                _ => vec!["SELECT count(*) FROM agd.anchor()".to_owned()],
            };
            for statement in statements {
                if let Err(error) = client.batch_execute(&statement) {
                    self.complain("the DBA", format!("{statement}: {error:?}"));
                }
            }
            std::thread::sleep(Duration::from_millis(random.u64(0..200)));
        }
    }

    /// An auditor: verifies again and again.
    fn verify(&self, kind: &str) {
        let mut client = self.database.connect().unwrap();
        let mut random = Rng::with_seed(kind.len() as u64);
        while self.goes_on() {
            let found = match kind {
                "incremental" => complaints(&mut client, ""),
                "full" => complaints(&mut client, "full_scan => true"),
                "one log" => client
                    .query("SELECT origin FROM agd.log", &[])
                    .map(|rows| rows[random.usize(0..rows.len())].get::<_, String>(0))
                    .and_then(|origin| {
                        complaints(&mut client, &format!("'{origin}', full_scan => {}", random.u8(0..4) == 0))
                    }),
                table => client
                    .query(&format!("SELECT row_key::text, problem FROM agd.verify_table('{table}')"), &[])
                    .map(|rows| {
                        rows.iter()
                            .map(|row| format!("{:?} {:?}", row.get::<_, Option<String>>(0), row.get::<_, String>(1)))
                            .collect()
                    }),
            };
            match found {
                Ok(found) if found.is_empty() => self.verifications.fetch_add(1, Ordering::Relaxed),
                Ok(found) => return self.complain(kind, format!("{found:#?}")),
                Err(error) => return self.complain(kind, format!("{error:?}")),
            };
        }
    }
}

/// Writers, tenants' roles, prepared transactions, rollbacks, refusals, guards that come and go: and whoever verifies
/// meanwhile, in whatever way, finds nothing.
#[test]
fn no_false_alarm_under_load() {
    let database = cluster().agd_database("load").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SCHEMA).unwrap();
    for role in ["red", "blue"] {
        database.cluster().create_role(role, "IN ROLE agd_tenant").unwrap();
        client.execute("SELECT agd.map_role($1::text::name, $1::text)", &[&role]).unwrap();
    }
    let load = Load {
        database: &database,
        over: AtomicBool::new(false),
        complaints: Mutex::new(Vec::new()),
        verifications: AtomicU64::new(0),
    };
    let began = Instant::now();
    let mut events = 0i64;
    std::thread::scope(|scope| {
        for (number, role) in [None, None, None, Some("red"), Some("blue")].into_iter().enumerate() {
            let load = &load;
            scope.spawn(move || load.write(number as u64 + 1, role));
        }
        scope.spawn(|| load.administer());
        for kind in ["incremental", "full", "one log", "work", "hot"] {
            let load = &load;
            scope.spawn(move || load.verify(kind));
        }
        // A failure here must not leave the others running.
        while load.goes_on() {
            match client.query_one("SELECT COALESCE(sum(size), 0)::bigint FROM agd.log", &[]) {
                Ok(row) => events = row.get(0),
                Err(error) => load.complain("counting", format!("{error:?}")),
            }
            if events >= events_wanted() {
                load.over.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    let (complaints, verifications) = (load.complaints.into_inner().unwrap(), load.verifications.into_inner());
    assert!(complaints.is_empty(), "after {events} events: {complaints:#?}");
    assert!(verifications >= 5, "only {verifications} verifications");
    println!("{events} events, {verifications} verifications, {:.0} s", began.elapsed().as_secs_f64());
    anchor(&mut client);
    expect_no_complaint(&mut client, "");
    expect_verified(&mut client);
    expect_each_event_in_one_leaf(&mut client);
}

// ---------------------------------------------------------------------------------------- whatever transaction it is in

const SMALL: &str = "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT agd.create_tenant('acme');
    CREATE TABLE mine (tenant text, id int, PRIMARY KEY (tenant, id));
    SELECT agd.guard('t'); SELECT agd.guard('mine', tenant_column => 'tenant');
    INSERT INTO t SELECT i, 'v' FROM generate_series(1, 600) i; INSERT INTO mine SELECT 'acme', i FROM generate_series(1, 300) i";

fn small(stem: &str) -> (TestDb<'static>, Client) {
    let database = cluster().agd_database(stem).unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SMALL).unwrap();
    anchor(&mut client);
    (database, client)
}

#[test]
fn in_every_kind_of_transaction() {
    let (database, mut client) = small("kinds");
    let mut other = database.connect().unwrap();
    let remembered = |client: &mut Client| -> Option<String> {
        client.query_one("SELECT string_agg(v::text, ' ' ORDER BY log_id) FROM agd.verified v", &[]).unwrap().get(0)
    };
    // Nothing is remembered where nothing can be written.
    client.batch_execute("BEGIN READ ONLY").unwrap();
    for arguments in ["", "full_scan => true", "NULL, NULL"] {
        expect_no_complaint(&mut client, arguments);
    }
    client.batch_execute("COMMIT").unwrap();
    assert_eq!(remembered(&mut client), None);
    expect_no_complaint(&mut client, "");
    assert!(remembered(&mut client).is_some());

    // With writes of its own, in subtransactions too, that nobody else sees.
    client
        .batch_execute("BEGIN; INSERT INTO t VALUES (1001, 'own'); SAVEPOINT s; INSERT INTO mine VALUES ('acme', 1001)")
        .unwrap();
    expect_no_complaint(&mut client, "");
    expect_no_complaint(&mut client, "full_scan => true");
    client.batch_execute("ROLLBACK TO s; DELETE FROM t WHERE id = 5").unwrap();
    expect_no_complaint(&mut client, "full_scan => true");
    // Others go on meanwhile.
    other.batch_execute("INSERT INTO t SELECT i, 'other' FROM generate_series(2001, 2600) i").unwrap();
    anchor(&mut other);
    expect_no_complaint(&mut client, "");
    expect_no_complaint(&mut client, "full_scan => true");
    client.batch_execute("COMMIT").unwrap();

    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM t")).unwrap();
        other.batch_execute("UPDATE t SET v = 'changed' WHERE id <= 300").unwrap();
        anchor(&mut other);
        expect_no_complaint(&mut other, "");
        for arguments in ["", "full_scan => true"] {
            expect_no_complaint(&mut client, arguments);
        }
        client.batch_execute("COMMIT").unwrap();
    }

    // Prepared transactions, before and after their end.
    other.batch_execute("BEGIN; INSERT INTO t VALUES (3001, 'prepared'); PREPARE TRANSACTION 'kept'").unwrap();
    other.batch_execute("INSERT INTO t SELECT i, 'after' FROM generate_series(4001, 4600) i").unwrap();
    anchor(&mut other);
    expect_no_complaint(&mut client, "");
    other.batch_execute("COMMIT PREPARED 'kept'").unwrap();
    expect_no_complaint(&mut client, "");
    anchor(&mut other);
    expect_no_complaint(&mut client, "");
    expect_verified(&mut client);
}

#[test]
fn two_at_once_do_not_wait_for_each_other() {
    let (database, mut first) = small("twoatonce");
    let mut second = database.connect().unwrap();
    second.batch_execute("SET statement_timeout = '20s'").unwrap();
    first.batch_execute("BEGIN").unwrap();
    expect_no_complaint(&mut first, "");
    // The first has remembered, and its transaction stays open.
    for arguments in ["", "full_scan => true"] {
        expect_no_complaint(&mut second, arguments);
    }
    let seen = "SELECT count(*) FROM agd.verified";
    assert_eq!(second.query_one(seen, &[]).unwrap().get::<_, i64>(0), 0, "the second remembered nothing");
    first.batch_execute("COMMIT").unwrap();
    assert_eq!(second.query_one(seen, &[]).unwrap().get::<_, i64>(0), 2);
    expect_no_complaint(&mut second, "");
}

#[test]
fn bad_arguments() {
    let (_database, mut client) = small("badarguments");
    for sql in ["SELECT agd.verify('no such log')", "SELECT * FROM agd.verify('', true)"] {
        expect_sqlstate(client.batch_execute(sql), "22023");
        expect_sqlstate(client.batch_execute(&format!("BEGIN READ ONLY; {sql}")), "22023");
        client.batch_execute("ROLLBACK").unwrap();
    }
    // Wherever a function that returns rows can stand.
    for sql in [
        "SELECT agd.verify()",
        "SELECT (agd.verify()).detail",
        "SELECT count(*) FROM generate_series(1, 3), LATERAL agd.verify()",
        "WITH v AS (SELECT * FROM agd.verify() WITH ORDINALITY) SELECT * FROM v WHERE ordinality = 1",
    ] {
        client.batch_execute(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }
    client
        .batch_execute(
            "BEGIN; DECLARE c SCROLL CURSOR FOR SELECT * FROM agd.verify(); FETCH 3 c; FETCH BACKWARD 2 c; COMMIT",
        )
        .unwrap();
}

// ------------------------------------------------------------------------------------------------------------ progress

/// A session that verifies everything, over and over until it is told to stop, or fails.
struct Verifier {
    stop: Arc<AtomicBool>,
    notices: Arc<Mutex<Vec<String>>>,
    thread: std::thread::JoinHandle<Option<postgres::Error>>,
}

impl Verifier {
    fn start(database: &TestDb<'_>) -> Self {
        let (stop, notices) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, heard) = (stop.clone(), notices.clone());
        let mut config = database.cluster().config("postgres", database.name());
        config.application_name("verifier");
        config.notice_callback(move |notice| heard.lock().unwrap().push(notice.message().to_owned()));
        let thread = std::thread::spawn(move || {
            let mut client = config.connect(NoTls).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = client.query("SELECT * FROM agd.verify(full_scan => true)", &[]) {
                    return Some(error);
                }
            }
            None
        });
        Self { stop, notices, thread }
    }

    fn end(self) -> Option<postgres::Error> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Waits until a verification is seen in the middle of its work, and stops its process there.
fn freeze_in_the_middle(watcher: &mut Client, cluster: &Cluster) -> (i32, impl Sized + use<>) {
    let mut pid = 0;
    eventually("a verification is seen", Duration::from_secs(60), || {
        let rows = watcher
            .query("SELECT pid FROM agd.verify_progress WHERE leaves_done BETWEEN 1 AND leaves_total - 1", &[])
            .unwrap();
        pid = rows.first().map_or(0, |row| row.get(0));
        pid != 0
    });
    (pid, cluster.freeze(pid).unwrap())
}

#[test]
fn a_verification_can_be_watched() {
    // A cluster of its own: one of its backends is killed.
    let cluster = Cluster::builder().start().unwrap();
    let database = cluster.agd_database("watched").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SMALL).unwrap();
    client.batch_execute("INSERT INTO t SELECT i, 'v' FROM generate_series(1001, 80000) i").unwrap();
    anchor(&mut client);
    let total: i64 = client.query_one("SELECT sum(size)::bigint FROM agd.log", &[]).unwrap().get(0);
    cluster.create_role("auditor", "IN ROLE agd_auditor").unwrap();
    cluster.create_role("anybody", "").unwrap();
    let mut watcher = database.connect_as("auditor").unwrap();
    let nobody_verifies = "SELECT count(*) FROM agd.verify_progress";
    assert_eq!(watcher.query_one(nobody_verifies, &[]).unwrap().get::<_, i64>(0), 0);
    expect_sqlstate(database.connect_as("anybody").unwrap().batch_execute(nobody_verifies), "42501");
    let elsewhere = cluster.agd_database("elsewhere").unwrap();

    // Seen from other sessions, not from other databases; told every few seconds.
    let verifier = Verifier::start(&database);
    let (pid, frozen) = freeze_in_the_middle(&mut watcher, &cluster);
    let row = client
        .query_one(
            "SELECT p.pid = a.pid, p.role::text, p.started_at BETWEEN a.query_start AND now(), p.full_scan, p.phase,
                    l.tenant IS NULL OR l.tenant = 'acme', p.leaves_done, p.leaves_total, p.percent::float8
               FROM agd.verify_progress p JOIN pg_stat_activity a ON a.application_name = 'verifier'
                    JOIN (SELECT DISTINCT origin, tenant FROM agd.anchors) l USING (origin)",
            &[],
        )
        .unwrap();
    let shown: (bool, String, bool, bool, String, bool) =
        (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4), row.get(5));
    assert_eq!(shown, (true, "postgres".into(), true, true, "recomputing leaves".into(), true));
    let (done, all, percent): (i64, i64, f64) = (row.get(6), row.get(7), row.get(8));
    assert_eq!(all, total);
    assert!((percent - 100.0 * done as f64 / all as f64).abs() < 0.1, "{done} of {all} are {percent} %");
    let mut stranger = elsewhere.connect().unwrap();
    assert_eq!(stranger.query_one(nobody_verifies, &[]).unwrap().get::<_, i64>(0), 0);
    std::thread::sleep(Duration::from_millis(5200));
    drop(frozen);
    eventually("a notice tells how far it is", Duration::from_secs(20), || {
        let notices = verifier.notices.lock().unwrap();
        notices.iter().any(|notice| {
            notice.starts_with("agd.verify: recomputing leaves: ") && notice.contains(&format!(" of {total} leaves ("))
        })
    });
    assert!(verifier.end().is_none());
    assert_eq!(watcher.query_one(nobody_verifies, &[]).unwrap().get::<_, i64>(0), 0, "it ended");
    assert_ne!(pid, 0);

    // Cancelled, terminated, killed.
    for (how, state) in [("pg_cancel_backend", "57014"), ("pg_terminate_backend", "57P01")] {
        let verifier = Verifier::start(&database);
        let (pid, frozen) = freeze_in_the_middle(&mut watcher, &cluster);
        client.execute(&format!("SELECT {how}($1)"), &[&pid]).unwrap();
        drop(frozen);
        let error = verifier.thread.join().unwrap().expect("it was told to end");
        // Who is terminated may find the connection closed before the message that says so was read.
        let code = error.code().map(postgres::error::SqlState::code);
        assert!(code == Some(state) || how == "pg_terminate_backend" && error.is_closed(), "{error:?}");
        eventually("it is shown no more", Duration::from_secs(20), || {
            watcher.query_one(nobody_verifies, &[]).unwrap().get::<_, i64>(0) == 0
        });
    }
    let verifier = Verifier::start(&database);
    let (pid, frozen) = freeze_in_the_middle(&mut watcher, &cluster);
    drop(frozen);
    cluster.kill_backend9(pid).unwrap();
    verifier.end();
    let mut watcher = database.connect_as("auditor").unwrap();
    assert_eq!(watcher.query_one(nobody_verifies, &[]).unwrap().get::<_, i64>(0), 0, "shared memory was made anew");
    expect_verified(&mut database.connect().unwrap());
}
