//! Many sessions at once, with rollbacks, crashes and anchors in between: every committed event in exactly one leaf, none
//! missing, and every row's events in their real order.

use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, reconcile, replay};
use agd_live_tests::{Cluster, Stop, TestDb};
use fastrand::Rng;
use postgres::Client;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const WRITERS: usize = 12;
const HOT_ROWS: i64 = 6;

/// `hot`: few rows that everybody updates; events go to the platform log. `work`: inserted, moved, deleted; two tenants, a
/// log each. `book`: what the application itself knows of its writes, kept in the same transactions. Every write leaves a
/// token in its row that no other write leaves, so that an event is known by its token.
const SCHEMA: &str = "
    CREATE TABLE hot (id bigint PRIMARY KEY, hits bigint NOT NULL, token text NOT NULL);
    CREATE TABLE work (tenant text, id bigint, token text NOT NULL, PRIMARY KEY (tenant, id));
    CREATE TABLE book (action text NOT NULL, token text NOT NULL);
    SELECT agd.create_tenant('red'); SELECT agd.create_tenant('blue');
    SELECT agd.guard('hot'); SELECT agd.guard('work', tenant_column => 'tenant');
    GRANT SELECT, INSERT, UPDATE, DELETE ON hot, work, book TO PUBLIC;";

fn set_up(database: &TestDb<'_>) {
    let mut client = database.connect().unwrap();
    client.batch_execute(SCHEMA).unwrap();
    for role in ["red", "blue"] {
        database.cluster().create_role(role, "IN ROLE agd_tenant").unwrap();
        client.execute("SELECT agd.map_role($1::text::name, $1::text)", &[&role]).unwrap();
    }
    client
        .batch_execute(&format!(
            "WITH w AS (INSERT INTO hot SELECT i, 0, 'hot-' || i FROM generate_series(1, {HOT_ROWS}) i RETURNING token)
             INSERT INTO book SELECT 'INSERT', token FROM w"
        ))
        .unwrap();
}

struct Writer<'c> {
    database: &'c TestDb<'c>,
    number: usize,
    random: Rng,
    tokens: u64,
}

impl<'c> Writer<'c> {
    fn new(database: &'c TestDb<'c>, number: usize, seed: u64) -> Self {
        Self { database, number, random: Rng::with_seed(seed + number as u64), tokens: 0 }
    }

    fn tenant(&self) -> &'static str {
        if self.number.is_multiple_of(2) { "red" } else { "blue" }
    }

    /// None while the server is down or recovering.
    fn connect(&mut self) -> Option<Client> {
        let mut client =
            self.database.cluster().config(self.tenant(), self.database.name()).connect(postgres::NoTls).ok()?;
        let commit = if self.random.bool() { "on" } else { "off" };
        client.batch_execute(&format!("SET synchronous_commit = {commit}; SET lock_timeout = '2s'")).ok()?;
        Some(client)
    }

    fn token(&mut self) -> String {
        self.tokens += 1;
        format!("{}-{}-{}", self.number, self.tokens, self.random.u32(..))
    }

    /// One statement that writes, and books what it did.
    fn statement(&mut self) -> String {
        let token = self.token();
        let tenant = self.tenant();
        let id = self.random.i64(1..=40);
        let fresh = (self.number as i64 * 100_000 + self.tokens as i64) * 20;
        let hot = self.random.i64(1..=HOT_ROWS);
        let booked =
            |write: String, action: &str| format!("WITH w AS ({write}) INSERT INTO book SELECT {action}, token FROM w");
        match self.random.u8(0..10) {
            0..=2 => booked(
                format!("UPDATE hot SET hits = hits + 1, token = '{token}' WHERE id = {hot} RETURNING token"),
                "'UPDATE'",
            ),
            3 => booked(
                format!("INSERT INTO work VALUES ('{tenant}', {id}, '{token}') ON CONFLICT DO NOTHING RETURNING token"),
                "'INSERT'",
            ),
            4 | 5 => booked(
                format!(
                    "INSERT INTO work VALUES ('{tenant}', {id}, '{token}') ON CONFLICT (tenant, id)
                     DO UPDATE SET token = excluded.token RETURNING token, xmax = 0 AS fresh"
                ),
                "CASE WHEN fresh THEN 'INSERT' ELSE 'UPDATE' END",
            ),
            6 | 7 => booked(format!("DELETE FROM work WHERE id = {id} RETURNING token"), "'DELETE'"),
            8 => booked(
                format!(
                    "INSERT INTO work SELECT '{tenant}', {fresh} + i, '{token}-' || i FROM generate_series(-2, 20) i
                     ON CONFLICT DO NOTHING RETURNING token"
                ),
                "'INSERT'",
            ),
            _ => booked(
                format!(
                    "UPDATE work SET id = id + 5000, token = '{token}-' || id WHERE id BETWEEN {id} AND {id} + 3 RETURNING token"
                ),
                "'UPDATE'",
            ),
        }
    }

    /// One transaction. A server's error rolls it back, as an application would; `Err` only when the session is gone.
    fn transaction(&mut self, client: &mut Client) -> Result<(), ()> {
        let isolation = if self.random.u8(0..6) == 0 { "REPEATABLE READ" } else { "READ COMMITTED" };
        let mut statements = vec![format!("BEGIN ISOLATION LEVEL {isolation}")];
        for part in 0..self.random.u8(1..5) {
            let nested = self.random.u8(0..3) == 0;
            if nested {
                statements.push(format!("SAVEPOINT s{part}"));
            }
            for _ in 0..self.random.u8(1..4) {
                statements.push(self.statement());
            }
            if nested {
                let end = if self.random.bool() { "ROLLBACK TO" } else { "RELEASE" };
                statements.push(format!("{end} s{part}"));
            }
            if self.random.u8(0..40) == 0 {
                // A transaction that sleeps while others with higher numbers commit.
                statements.push("SELECT pg_sleep(0.02 + random() * 0.1)".to_owned());
            }
        }
        statements.push(if self.random.u8(0..8) == 0 { "ROLLBACK" } else { "COMMIT" }.to_owned());
        for statement in statements {
            if let Err(error) = client.batch_execute(&statement) {
                let Some(server) = error.as_db_error() else { return Err(()) };
                // Deadlock, lock timeout, serialization failure, a move onto a key that is taken: ordinary for such a load.
                // The server going down ends the session.
                match server.code().code() {
                    "40P01" | "55P03" | "40001" | "23505" => {}
                    "57P01" | "57P02" | "57P03" => return Err(()),
                    other => panic!("{statement}: {other} {}", server.message()),
                }
                client.batch_execute("ROLLBACK").map_err(drop)?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// Writes until told to stop; connects again when the session is lost. Returns the number of transactions.
    fn work(mut self, stop: &AtomicBool) -> usize {
        let mut transactions = 0;
        let mut client = None;
        while !stop.load(Ordering::Relaxed) {
            match client.take().or_else(|| self.connect()) {
                Some(mut session) => {
                    if self.transaction(&mut session).is_ok() {
                        client = Some(session);
                        transactions += 1;
                    }
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        transactions
    }
}

/// (origin, tree_size) and the root that `agd.anchor()` gave for it.
type Anchors = BTreeMap<(String, i64), Vec<u8>>;

/// Calls `agd.anchor()` at random, now and then in the middle of a transaction that writes. Collects what it returned.
fn keep_anchoring(database: &TestDb<'_>, seed: u64, stop: &AtomicBool, anchors: &Mutex<Anchors>) {
    let mut random = Rng::with_seed(seed);
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(random.u64(0..60)));
        let Some(mut session) = client.take().or_else(|| database.connect().ok()) else { continue };
        let inside = random.u8(0..4) == 0;
        if inside {
            let write = "BEGIN; SET LOCAL lock_timeout = '1s'; INSERT INTO hot VALUES (-1, 0, 'never committed') ON CONFLICT DO NOTHING";
            if session.batch_execute(write).is_err() {
                continue;
            }
        }
        let Ok(rows) = session.query("SELECT origin, tree_size, root_hash FROM agd.anchor()", &[]) else { continue };
        {
            let mut anchors = anchors.lock().unwrap();
            for row in rows {
                let root: Vec<u8> = row.get(2);
                let before = anchors.insert((row.get(0), row.get(1)), root.clone());
                assert!(
                    before.is_none_or(|before| before == root),
                    "two roots for one size of {}",
                    row.get::<_, String>(0)
                );
            }
        }
        if inside && session.batch_execute("ROLLBACK").is_err() {
            continue;
        }
        client = Some(session);
    }
}

/// Runs writers and two anchorers while `meanwhile` does what it does, then checks everything.
fn run(cluster: &Cluster, database: &TestDb<'_>, name: &str, anchors: &Mutex<Anchors>, meanwhile: impl FnOnce()) {
    let seed = fastrand::u64(..1 << 48);
    println!("{name}: seed {seed}");
    let stop = AtomicBool::new(false);
    let transactions = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..WRITERS {
            let (stop, transactions) = (&stop, &transactions);
            let writer = Writer::new(database, number, seed);
            scope.spawn(move || transactions.fetch_add(writer.work(stop), Ordering::Relaxed));
        }
        for number in 0..2 {
            let stop = &stop;
            scope.spawn(move || keep_anchoring(database, seed + 1000 + number, stop, anchors));
        }
        // Whatever happens in `meanwhile`, the writers must be told to stop, or the scope never ends.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    let transactions = transactions.into_inner();
    assert!(
        transactions > 5 * WRITERS,
        "{transactions} transactions are too few to tell anything\n{}",
        cluster.log_tail()
    );
    println!("{name}: {transactions} transactions, {} anchors by request", anchors.lock().unwrap().len());
    check(database, anchors);
}

fn check(database: &TestDb<'_>, anchors: &Mutex<Anchors>) {
    let mut client = database.connect().unwrap();
    anchor(&mut client);
    let recorded = "SELECT action, CASE action WHEN 'DELETE' THEN old ELSE new END->>'token' FROM agd.events
                     WHERE relation IN ('public.hot', 'public.work') AND action IN ('INSERT', 'UPDATE', 'DELETE')";
    let difference = client
        .query(
            &format!(
                "SELECT 'booked, not recorded', d.* FROM (SELECT action, token FROM book EXCEPT ALL {recorded}) d
                 UNION ALL SELECT 'recorded, not booked', d.* FROM ({recorded} EXCEPT ALL SELECT action, token FROM book) d"
            ),
            &[],
        )
        .unwrap();
    let difference: Vec<[String; 3]> = difference.iter().map(|row| [row.get(0), row.get(1), row.get(2)]).collect();
    assert!(difference.is_empty(), "{difference:#?}");
    expect_each_event_in_one_leaf(&mut client);
    let twice = "SELECT count(*) - count(DISTINCT stamp) FROM agd.transaction";
    assert_eq!(client.query_one(twice, &[]).unwrap().get::<_, i64>(0), 0, "two transactions have one commit stamp");
    // Each row's history is unbroken and ends with the table as it is: in the order of the commit stamps, and in the order
    // of the leaves. The two orders need not be the same for transactions that had no row in common.
    for (table, key) in [("hot", ["id"].as_slice()), ("work", &["tenant", "id"])] {
        let mut events = reconcile(&mut client, table, key);
        let by_stamp = replay(&mut client, &events, key);
        events.sort_by(|a, b| (&a.tenant, a.leaf).cmp(&(&b.tenant, b.leaf)));
        assert_eq!(replay(&mut client, &events, key), by_stamp);
    }
    let published: Anchors = client
        .query("SELECT origin, tree_size, root_hash FROM agd.anchors", &[])
        .unwrap()
        .iter()
        .map(|row| ((row.get(0), row.get(1)), row.get(2)))
        .collect();
    for (anchor, root) in anchors.lock().unwrap().iter() {
        assert_eq!(published.get(anchor), Some(root), "agd.anchor() had returned {anchor:?}");
    }
    // Each log has an anchor at every multiple of 256.
    let missing: i64 = client
        .query_one(
            "SELECT count(*) FROM (SELECT origin, max(tree_size) AS size FROM agd.anchors GROUP BY origin) l,
                    generate_series(256, l.size, 256) s
              WHERE NOT EXISTS (SELECT FROM agd.anchors a WHERE a.origin = l.origin AND a.tree_size = s)",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(missing, 0);
    expect_verified(&mut client);
    let events: i64 = client.query_one("SELECT count(*) FROM agd.events", &[]).unwrap().get(0);
    println!("{}: {events} events", database.name());
}

fn start(name: &str) -> Cluster {
    let cluster = Cluster::builder().setting("deadlock_timeout", "100ms").start().unwrap();
    println!("{name}: {}", cluster.socket_dir().display());
    cluster
}

#[test]
fn writers_and_anchors_at_once() {
    let cluster = start("at once");
    let database = cluster.agd_database("atonce").unwrap();
    set_up(&database);
    let anchors = Mutex::default();
    run(&cluster, &database, "at once", &anchors, || {
        // A transaction that is open from before the first write to after the last must hold nobody up, and is not missed.
        let mut long = database.connect().unwrap();
        long.batch_execute(
            "BEGIN; WITH w AS (INSERT INTO work VALUES ('red', 9000000, 'long') RETURNING token) INSERT INTO book SELECT 'INSERT', token FROM w",
        )
        .unwrap();
        std::thread::sleep(Duration::from_secs(6));
        long.batch_execute("COMMIT").unwrap();
    });
    assert!(anchors.lock().unwrap().len() > 10);
}

#[test]
fn backends_killed_in_the_middle() {
    let cluster = start("kill backend");
    let database = cluster.agd_database("killed").unwrap();
    set_up(&database);
    let anchors = Mutex::default();
    run(&cluster, &database, "kill backend", &anchors, || {
        for kill_worker in [false, true, false] {
            std::thread::sleep(Duration::from_millis(1200));
            let deadline = Instant::now() + Duration::from_secs(10);
            let kind = if kill_worker { "backend_type LIKE 'agd%'" } else { "usename IN ('red', 'blue')" };
            let sql =
                format!("SELECT pid FROM pg_stat_activity WHERE datname = $1 AND {kind} ORDER BY xact_start LIMIT 1");
            // The writers may just be connecting again.
            let pid = loop {
                let found = cluster.superuser().unwrap().query_opt(&sql, &[&database.name()]).unwrap();
                match found {
                    Some(row) => break row.get(0),
                    None => assert!(Instant::now() < deadline, "nothing to kill: {sql}"),
                }
                std::thread::sleep(Duration::from_millis(10));
            };
            cluster.kill_backend9(pid).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1200));
    });
}

#[test]
fn the_server_killed_in_the_middle() {
    let cluster = start("kill server");
    cluster.configure([("wal_writer_delay", "2s"), ("checkpoint_timeout", "30s")]).unwrap();
    cluster.restart().unwrap();
    let database = cluster.agd_database("crashed").unwrap();
    set_up(&database);
    let anchors = Mutex::default();
    run(&cluster, &database, "kill server", &anchors, || {
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(1500));
            cluster.kill9_server().unwrap();
            cluster.start().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1000));
    });
    // Once more with nobody writing: what is there is there.
    cluster.stop(Stop::Immediate).unwrap();
    cluster.start().unwrap();
    check(&database, &anchors);
}
