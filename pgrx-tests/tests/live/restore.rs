//! The record survives dump and restore, upgrade, promotion and recovery to a point in time: the same bytes, the same
//! roots, and it goes on only where it was found whole.

use crate::command_line::agd;
use agd_core::leaf_hash;
use agd_live_tests::proof::expect_events_proven;
use agd_live_tests::publishing;
use agd_live_tests::record::{anchor, expect_each_event_in_one_leaf, expect_verified, reconcile};
use agd_live_tests::{Cluster, Stop, TestDb, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

/// Events wait for an anchor as long as a test runs: what is integrated is what a test asked for.
const PATIENT: (&str, &str) = ("agd.anchor_max_age", "1h");

/// Tables of every kind that a guard knows, with names, types and policies that a dump writes in its own way.
const SCHEMA: &str = r#"
    SELECT agd.create_tenant('acme', 'Acme'), agd.create_tenant('zeta');
    SELECT agd.map_role('restore_acme', 'acme');
    CREATE TABLE orders (id int PRIMARY KEY, tenant text NOT NULL, note text, at timestamptz, price numeric, bytes bytea);
    CREATE INDEX ON orders (tenant);
    GRANT ALL ON orders TO restore_acme;
    SELECT agd.guard('orders', 'tenant');
    CREATE TABLE items (id int PRIMARY KEY, owner varchar(20) NOT NULL, v jsonb);
    ALTER TABLE items ENABLE ROW LEVEL SECURITY;
    CREATE POLICY "their own" ON items TO restore_acme
      USING (v IS NULL OR v->>'n' NOT IN ('-1', '-2') AND NOT v ? 'hidden' AND id::bigint > -1)
      WITH CHECK (char_length(owner) BETWEEN 1 AND 9);
    GRANT ALL ON items TO restore_acme;
    SELECT agd.guard('items', 'owner');
    CREATE TABLE parts (k int PRIMARY KEY, v text) PARTITION BY RANGE (k);
    CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
    CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (1000) PARTITION BY RANGE (k);
    CREATE TABLE parts_high_1 PARTITION OF parts_high FOR VALUES FROM (100) TO (500);
    SELECT agd.guard('parts', require_cause => true);
    CREATE SCHEMA "Odd ""one";
    CREATE TABLE "Odd ""one"."a.b" (id int PRIMARY KEY, v text, "select" date GENERATED ALWAYS AS ('2000-01-01') STORED);
    INSERT INTO "Odd ""one"."a.b" VALUES (1, 'there before the guard');
    SELECT agd.guard('"Odd ""one"."a.b"', on_truncate => 'record');
"#;

const ROWS: &str = r#"
    INSERT INTO orders SELECT i, CASE WHEN i % 3 = 0 THEN 'zeta' ELSE 'acme' END, E'tab\t nl\n "q" \\ é😀' || i,
                              '2026-01-01'::timestamptz + i * interval '1 second', i / 7.0, '\x00ff'
      FROM generate_series(1, 900) i;
    UPDATE orders SET note = NULL WHERE id % 50 = 0;
    DELETE FROM orders WHERE id % 60 = 0;
    INSERT INTO items SELECT i, 'acme', jsonb_build_object('n', i) FROM generate_series(1, 20) i;
    UPDATE "Odd ""one"."a.b" SET v = 'later';
"#;

/// A database with a record: several tiles, tails, tenants, and events that nobody has integrated yet.
fn fill(client: &mut Client) {
    client.batch_execute(SCHEMA).unwrap();
    client.batch_execute(ROWS).unwrap();
    client.batch_execute("BEGIN; SELECT agd.set_cause('stock'); INSERT INTO parts SELECT i, 'p' FROM generate_series(0, 499) i; COMMIT").unwrap();
    anchor(client);
    publish(client);
    client.batch_execute("UPDATE orders SET price = price + 1 WHERE id < 30; DELETE FROM items WHERE id = 20").unwrap();
}

fn origin_cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = Cluster::builder().setting(PATIENT.0, PATIENT.1).start().unwrap();
        cluster.create_role("restore_acme", "").unwrap();
        // Transaction ids beyond those that a new cluster has.
        cluster
            .superuser()
            .unwrap()
            .batch_execute("DO $$ BEGIN FOR i IN 1..3000 LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
            .unwrap();
        cluster
    })
}

/// Another server, with the roles of the first.
fn other_cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = Cluster::builder()
            .own_initdb(&[])
            .setting(PATIENT.0, PATIENT.1)
            .setting("max_prepared_transactions", "5")
            .start()
            .unwrap();
        cluster.create_role("restore_acme", "").unwrap();
        cluster
    })
}

/// The receipts that `agd publish` leaves.
fn publish(client: &mut Client) {
    publishing::register(client);
    anchor(client);
    let receipts = publishing::receipts(client, "true", "file:///elsewhere");
    client.batch_execute(&receipts).unwrap();
}

/// `agd publish --once`: its exit code and what it said.
fn carry_out(
    cluster: &Cluster,
    database: &str,
    store: &Path,
    key: &Path,
    option: Option<&str>,
) -> (Option<i32>, String) {
    let output = agd()
        .args(["publish", "--once", "--database"])
        .arg(format!("host={} user=postgres dbname={database}", cluster.socket_dir().display()))
        .arg("--store")
        .arg(store)
        .arg("--key")
        .arg(key)
        .args(option)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// A store and the key of a database's logs, which is registered since it was filled.
fn store_and_key(client: &mut Client, folder: &Path) -> (PathBuf, PathBuf) {
    let (store, key) = (folder.join("store"), folder.join("log.key"));
    std::fs::create_dir(&store).unwrap();
    publishing::key_file(&publishing::log_name(client), &key);
    (store, key)
}

fn one<T: for<'a> postgres::types::FromSql<'a>>(client: &mut Client, sql: &str) -> T {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// What must be the same bytes wherever the record is.
#[derive(Debug, PartialEq, Eq, Clone)]
struct Evidence {
    guard_state: Vec<u8>,
    /// origin, size, root, guard state
    anchors: Vec<(String, i64, Vec<u8>, Vec<u8>)>,
    /// origin, entries
    entries: Vec<(String, Vec<Vec<u8>>)>,
}

impl Evidence {
    fn of(client: &mut Client) -> Evidence {
        let guard_state = one(client, "SELECT agd.guard_state()");
        let anchors = client
            .query("SELECT origin, tree_size, root_hash, guard_state FROM agd.anchors ORDER BY 1, 2", &[])
            .unwrap()
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3)))
            .collect::<Vec<(String, i64, Vec<u8>, Vec<u8>)>>();
        let mut entries: Vec<(String, Vec<Vec<u8>>)> = Vec::new();
        for row in client.query("SELECT origin, max(tree_size) FROM agd.anchors GROUP BY 1 ORDER BY 1", &[]).unwrap() {
            let (origin, size): (String, i64) = (row.get(0), row.get(1));
            let rows = client.query("SELECT entry FROM agd.entries($1, 0, $2)", &[&origin, &size]).unwrap();
            entries.push((origin, rows.iter().map(|row| row.get(0)).collect()));
        }
        Evidence { guard_state, anchors, entries }
    }

    fn is_a_beginning_of(&self, later: &Evidence) -> bool {
        self.anchors.iter().all(|anchor| later.anchors.contains(anchor))
    }

    /// Everything here stands at the same place in that database now, and every event there has its inclusion proof: those
    /// from here for the very leaf that they were. Returns what there is now.
    fn is_continued_by(&self, client: &mut Client) -> Evidence {
        let later = Evidence::of(client);
        for anchor in &self.anchors {
            assert!(later.anchors.contains(anchor), "an anchor of {} is gone", anchor.0);
        }
        let proofs = expect_events_proven(client, "true");
        assert!(!self.entries.is_empty());
        for (origin, entries) in &self.entries {
            let (_, after) = later.entries.iter().find(|(other, _)| other == origin).unwrap();
            assert!(after.starts_with(entries), "{origin}: entries are not the same bytes");
            let mut proven = vec![None; after.len()];
            for (_, proof) in proofs.iter().filter(|(_, proof)| proof.origin == *origin) {
                proven[usize::try_from(proof.index).unwrap()] = Some(proof.leaf);
            }
            assert!(proven.into_iter().eq(after.iter().map(|entry| Some(leaf_hash(entry)))), "{origin}: other leaves");
        }
        later
    }
}

/// How a whole database is dumped and restored.
#[derive(Clone, Copy, Debug)]
enum Way {
    Custom,
    Parallel,
    OneTransaction,
    Plain,
}

/// Dumps `from` and restores it into a new database of `cluster`.
fn carry<'c>(from: &TestDb<'_>, cluster: &'c Cluster, way: Way) -> TestDb<'c> {
    let target = cluster.database("restored").unwrap();
    let file = from.cluster().scratch_file(&format!("{}.dump", target.name()));
    let path = file.to_str().unwrap();
    match way {
        Way::Plain => {
            let script = from.cluster().dump(&["-Fp", from.name()]).unwrap();
            let output = target.psql(&script).unwrap();
            assert!(output.success, "{}", output.stderr);
        }
        _ => {
            from.cluster().dump(&["-Fc", "-f", path, from.name()]).unwrap();
            let mut arguments = vec!["-d", target.name()];
            match way {
                Way::Parallel => arguments.extend(["-j", "2"]),
                Way::OneTransaction => arguments.push("-1"),
                _ => {}
            }
            arguments.push(path);
            cluster.restore(&arguments).unwrap();
        }
    }
    target
}

/// The gate, the log and the worker do nothing with a record that was not resumed.
fn expect_closed(client: &mut Client) {
    let state = "SELECT (SELECT count(*) FROM agd.event), (SELECT count(*) FROM agd.checkpoint), (SELECT integrated::text FROM agd.sequencer)";
    let read = |client: &mut Client| {
        let row = client.query_one(state, &[]).unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, String>(2))
    };
    let before = read(client);
    for sql in [
        "INSERT INTO orders VALUES (-1, 'acme')",
        "UPDATE orders SET note = 'x' WHERE id = 1",
        "DELETE FROM orders WHERE id = 1",
        "SELECT * FROM agd.anchor()",
        "CREATE TABLE another (id int PRIMARY KEY); SELECT agd.guard('another')",
        "CREATE TABLE parts_more PARTITION OF parts FOR VALUES FROM (1000) TO (2000)",
        "SELECT agd.unguard('orders', 'to get rid of it')",
    ] {
        let error = expect_sqlstate(client.batch_execute(sql), "55000");
        expect_hint(&error, "agd.resume()");
    }
    assert_eq!(read(client), before);
}

/// Resumed, the record goes on: new numbers are beyond the old ones, everything verifies.
fn expect_resumed(client: &mut Client, before: &Evidence) {
    let newest: i64 = one(client, "SELECT max(xact_id::text::bigint) FROM agd.event");
    let last_stamp: String = one(client, "SELECT max(stamp)::text FROM agd.transaction");
    // Rolled back, nothing has changed.
    client
        .batch_execute(
            "BEGIN; SELECT agd.resume(); INSERT INTO orders VALUES (-1, 'acme', 'in the same transaction'); ROLLBACK",
        )
        .unwrap();
    expect_sqlstate(client.batch_execute("INSERT INTO orders VALUES (-1, 'acme', 'too early')"), "55000");
    client.batch_execute("SET ROLE agd_platform; SELECT agd.resume(); RESET ROLE").unwrap();
    client
        .batch_execute("INSERT INTO orders VALUES (-1, 'acme', 'after'); UPDATE orders SET note = 'after' WHERE id = 7")
        .unwrap();
    let new: Vec<i64> = client
        .query(
            "SELECT e.xact_id::text::bigint FROM agd.event e JOIN agd.transaction t USING (xact_id)
              WHERE t.stamp > $1::text::timestamptz ORDER BY t.stamp, e.n",
            &[&last_stamp],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(new.len(), 3, "RESUME, INSERT, UPDATE");
    assert!(new.iter().all(|xact_id| *xact_id > newest), "{new:?} are not beyond {newest}");
    anchor(client);
    for (table, key) in [("orders", "id"), ("items", "id"), ("parts", "k")] {
        reconcile(client, table, &[key]);
    }
    expect_each_event_in_one_leaf(client);
    expect_verified(client);
    before.is_continued_by(client);
    let open: Vec<String> = client
        .query("SELECT relation::text || ': ' || detail FROM agd.coverage() WHERE guarded AND NOT intact", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(open.is_empty(), "{open:?}");
    // Once resumed, there is nothing more to resume and nothing more to load.
    client.batch_execute("SELECT agd.resume()").unwrap();
    expect_not_loadable(client);
}

/// Nobody adds to a record that is in use.
fn expect_not_loadable(client: &mut Client) {
    for sql in [
        "INSERT INTO agd.event (xact_id, n, at, action, salt) VALUES ('1', 1, now(), 'INSERT', 'x')",
        "COPY agd.event FROM PROGRAM 'true'",
        "COPY agd.transaction FROM PROGRAM 'true'",
        "COPY agd.log FROM PROGRAM 'true'",
        "COPY agd.tile FROM PROGRAM 'true'",
        "COPY agd.checkpoint FROM PROGRAM 'true'",
        "COPY agd.sequencer FROM PROGRAM 'true'",
    ] {
        expect_sqlstate(client.batch_execute(sql), "AG002");
    }
}

/// A folder of the present user's, gone at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("agd-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn source(stem: &str) -> (TestDb<'static>, Client, Evidence) {
    let database = origin_cluster().agd_database(stem).unwrap();
    let mut client = database.connect().unwrap();
    fill(&mut client);
    let evidence = Evidence::of(&mut client);
    (database, client, evidence)
}

fn goes_to_another_cluster(way: Way) {
    let (database, _client, evidence) = source("source");
    let target = carry(&database, other_cluster(), way);
    let mut client = target.connect().unwrap();
    assert_eq!(Evidence::of(&mut client), evidence, "{way:?}");
    expect_verified(&mut client);
    expect_closed(&mut client);
    expect_resumed(&mut client, &evidence);
    // The tenant is who it was, behind the same wall.
    let mut tenant = target.connect_as("restore_acme").unwrap();
    tenant.batch_execute("UPDATE orders SET note = 'mine' WHERE id = 1").unwrap();
    assert_eq!(one::<i64>(&mut tenant, "SELECT count(*) FROM orders WHERE tenant <> 'acme'"), 0);
    expect_sqlstate(tenant.batch_execute("INSERT INTO orders VALUES (-2, 'zeta')"), "42501");
}

#[test]
fn a_custom_dump_goes_to_another_cluster() {
    goes_to_another_cluster(Way::Custom);
}

#[test]
fn a_custom_dump_is_restored_by_two_jobs() {
    goes_to_another_cluster(Way::Parallel);
}

#[test]
fn a_custom_dump_is_restored_in_one_transaction() {
    goes_to_another_cluster(Way::OneTransaction);
}

#[test]
fn a_plain_dump_goes_to_another_cluster() {
    goes_to_another_cluster(Way::Plain);
}

#[test]
fn a_dump_goes_to_another_database_of_its_cluster_and_on_from_there() {
    let (database, mut original, evidence) = source("here");
    let target = carry(&database, origin_cluster(), Way::Custom);
    let mut client = target.connect().unwrap();
    assert_eq!(Evidence::of(&mut client), evidence);
    expect_closed(&mut client);
    expect_resumed(&mut client, &evidence);
    // It goes on where the original was published.
    let folder = Folder::new("continued");
    let (store, key) = store_and_key(&mut original, &folder.0);
    // There are receipts of what was published elsewhere.
    let (code, said) = carry_out(origin_cluster(), database.name(), &store, &key, Some("--new-store"));
    assert_eq!(code, Some(0), "{said}");
    // Not before somebody says that it has taken the other's place.
    let (code, said) = carry_out(origin_cluster(), target.name(), &store, &key, None);
    assert!(code == Some(1) && said.contains("--moved-here"), "{said}");
    let (code, said) = carry_out(origin_cluster(), target.name(), &store, &key, Some("--moved-here"));
    assert_eq!(code, Some(0), "{said}");
    // The original knows nothing of it, and what it records now is another history, which is not published any more.
    original.batch_execute("INSERT INTO orders VALUES (-5, 'acme')").unwrap();
    anchor(&mut original);
    let (code, said) = carry_out(origin_cluster(), database.name(), &store, &key, None);
    assert!(code == Some(1) && said.contains("--moved-here"), "{said}");
    expect_each_event_in_one_leaf(&mut original);
    expect_verified(&mut original);

    // A restored database is dumped and restored like any other, and there again.
    let evidence = Evidence::of(&mut client);
    let next = carry(&target, other_cluster(), Way::Custom);
    client.batch_execute("DELETE FROM orders WHERE id = -1").unwrap();
    let mut client = next.connect().unwrap();
    assert_eq!(Evidence::of(&mut client), evidence);
    client.batch_execute("SELECT agd.resume(); DELETE FROM orders WHERE id = -1").unwrap();
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
    let resumed: Vec<String> = client
        .query("SELECT body FROM agd.events WHERE action = 'RESUME' ORDER BY leaf_index", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let here: String = one(&mut original, "SELECT system_identifier::text FROM pg_control_system()");
    let there: String = one(&mut client, "SELECT system_identifier::text FROM pg_control_system()");
    assert!(resumed[0].starts_with(&format!("system_identifier={here} previous={here} ")), "{resumed:?}");
    assert!(resumed[1].starts_with(&format!("system_identifier={there} previous={here} ")), "{resumed:?}");
}

/// A database copied as a template has the rows of its template, and is another database.
#[test]
fn a_copied_database_is_closed_until_it_is_resumed() {
    let (database, client, evidence) = source("template");
    drop(client);
    let mut admin = origin_cluster().superuser().unwrap();
    eventually("nobody is connected to the template", Duration::from_secs(20), || {
        admin
            .query(
                "SELECT FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'",
                &[&database.name()],
            )
            .unwrap()
            .is_empty()
    });
    let copy = format!("{}_copy", database.name());
    admin.batch_execute(&format!("CREATE DATABASE \"{copy}\" TEMPLATE \"{}\"", database.name())).unwrap();
    let mut client = origin_cluster().client("postgres", &copy).unwrap();
    expect_closed(&mut client);
    expect_resumed(&mut client, &evidence);
    drop(client);
    admin.batch_execute(&format!("DROP DATABASE \"{copy}\" WITH (FORCE)")).unwrap();
}

/// A transaction that got its id before the record was resumed writes after it: its number too is a new one.
#[test]
fn an_older_transaction_writes_after_the_record_was_resumed() {
    let (database, _client, _) = source("older");
    let target = carry(&database, other_cluster(), Way::Custom);
    let mut older = target.connect().unwrap();
    older.batch_execute("BEGIN; SELECT pg_current_xact_id()").unwrap();
    let mut client = target.connect().unwrap();
    let newest: i64 = one(&mut client, "SELECT max(xact_id::text::bigint) FROM agd.event");
    client.batch_execute("SELECT agd.resume()").unwrap();
    older.batch_execute("INSERT INTO orders VALUES (-1, 'acme'); COMMIT").unwrap();
    let least: i64 = one(
        &mut client,
        &format!("SELECT min(xact_id::text::bigint) FROM agd.event WHERE xact_id::text::bigint > {newest}"),
    );
    let older_id: i64 =
        one(&mut client, "SELECT split_part(event_id, '-', 1)::bigint FROM agd.events WHERE row_key = '{\"id\": -1}'");
    assert_eq!(older_id, least, "the older transaction has the lower number, beyond all that were loaded");
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

/// The clock of the server that the record comes from was ahead, and this one's floor was already restored.
#[test]
fn stamps_go_on_beyond_the_restored_ones() {
    let (database, _client, _) = source("ahead");
    let script = origin_cluster().dump(&["-Fp", database.name()]).unwrap();
    let (before, rest) = script.split_once("COPY agd.sequencer").unwrap();
    let (columns, rest) = rest.split_once('\n').unwrap();
    let (row, rest) = rest.split_once('\n').unwrap();
    let mut fields: Vec<&str> = row.split('\t').collect();
    assert!(columns.starts_with(" (only_row, integrated, last_stamp,"), "{columns}");
    fields[2] = "2100-01-01 00:00:00+00";
    let script = format!("{before}COPY agd.sequencer{columns}\n{}\n{rest}", fields.join("\t"));

    let target = other_cluster().agd_database("ahead").unwrap();
    let mut client = target.connect().unwrap();
    // A stamp is drawn, and nothing stays.
    client
        .batch_execute(
            "BEGIN; CREATE TABLE gone (id int PRIMARY KEY); SELECT agd.guard('gone'); PREPARE TRANSACTION 'gone'",
        )
        .unwrap();
    client.batch_execute("ROLLBACK PREPARED 'gone'").unwrap();
    let output = target.psql(&script).unwrap();
    assert!(output.success, "{}", output.stderr);
    client.batch_execute("SELECT agd.resume(); INSERT INTO orders VALUES (-1, 'acme')").unwrap();
    assert!(one::<bool>(
        &mut client,
        "SELECT committed_at > '2100-01-01' FROM agd.events WHERE row_key = '{\"id\": -1}'"
    ));
}

#[test]
fn only_a_restore_loads_and_only_into_an_empty_record() {
    let cluster = other_cluster();
    cluster.create_role("restore_loader", "").unwrap();
    let database = cluster.agd_database("load").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute(
            "GRANT ALL ON ALL TABLES IN SCHEMA agd TO restore_loader;
             CREATE FUNCTION load_it() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$
               INSERT INTO agd.event (xact_id, n, at, action, salt) VALUES ('1', 0, now(), 'FORGED', '0123456789abcdef') $$",
        )
        .unwrap();
    // Not by somebody who is no superuser, granted or not, through a function of a superuser's or not.
    let mut loader = database.connect_as("restore_loader").unwrap();
    for sql in [
        "INSERT INTO agd.event (xact_id, n, at, action, salt) VALUES ('1', 0, now(), 'FORGED', '0123456789abcdef')",
        "SELECT load_it()",
        "INSERT INTO agd.log (log_id, origin) VALUES (1, 'x')",
    ] {
        expect_sqlstate(loader.batch_execute(sql), "AG002");
    }
    // Not otherwise than by inserting, and never the home itself.
    for sql in [
        "UPDATE agd.event SET n = 1",
        "DELETE FROM agd.event",
        "TRUNCATE agd.event",
        "INSERT INTO agd.event (xact_id, n, at, action, salt) VALUES ('1', 0, now(), 'FORGED', 'x')
           ON CONFLICT (xact_id, n) DO UPDATE SET action = 'X'",
        "UPDATE agd.home SET system_identifier = '1'",
        "DELETE FROM agd.home",
        "INSERT INTO agd.home (log_name) VALUES ('x')",
        "COPY agd.home FROM PROGRAM 'true'",
    ] {
        expect_sqlstate(client.batch_execute(sql), "AG002");
    }
    // The first event closes it, even where it is the same session's.
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); INSERT INTO t VALUES (1)")
        .unwrap();
    expect_not_loadable(&mut client);
    anchor(&mut client);
    expect_not_loadable(&mut client);
    expect_verified(&mut client);
    let events: i64 = one(&mut client, "SELECT count(*) FROM agd.event WHERE action = 'FORGED'");
    assert_eq!(events, 0);

    // What was loaded opens nothing: no event is recorded beside it.
    let database = cluster.agd_database("load").unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute(
            "INSERT INTO agd.event (xact_id, n, at, action, salt) VALUES ('1', 0, now(), 'FORGED', '0123456789abcdef');
             CREATE TABLE t (id int PRIMARY KEY)",
        )
        .unwrap();
    expect_sqlstate(client.batch_execute("SELECT agd.guard('t')"), "55000");
    expect_sqlstate(client.batch_execute("SELECT agd.resume()"), "55000");
}

/// While rows are being loaded, nobody else's first event makes the database the record's home; and the other way round.
#[test]
fn a_load_and_a_first_event_wait_for_each_other() {
    let load =
        "INSERT INTO agd.event (xact_id, n, at, action, salt) VALUES ('1', 0, now(), 'LOADED', '0123456789abcdef')";
    for (first, second, state) in [(load, "SELECT agd.guard('t')", "55000"), ("SELECT agd.guard('t')", load, "AG002")] {
        let database = other_cluster().agd_database("wait").unwrap();
        let mut holder = database.connect().unwrap();
        holder.batch_execute("CREATE TABLE t (id int PRIMARY KEY)").unwrap();
        holder.batch_execute(&format!("BEGIN; {first}")).unwrap();
        let mut waiter = database.connect().unwrap();
        let pid: i32 = one(&mut waiter, "SELECT pg_backend_pid()");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(move || waiter.batch_execute(second));
            let mut observer = database.connect().unwrap();
            eventually("the second waits", Duration::from_secs(20), || {
                !observer.query("SELECT FROM pg_locks WHERE pid = $1 AND NOT granted", &[&pid]).unwrap().is_empty()
            });
            holder.batch_execute("COMMIT").unwrap();
            expect_sqlstate(waiting.join().unwrap(), state);
        });
    }
}

/// The rows of a COPY in a plain dump.
fn without_last_rows(script: &str, table: &str, count: usize) -> String {
    let start = script.find(&format!("COPY {table} ")).unwrap();
    let end = start + script[start..].find("\n\\.\n").unwrap();
    let mut lines: Vec<&str> = script[start..end].lines().collect();
    assert!(lines.len() > count);
    lines.truncate(lines.len() - count);
    format!("{}{}{}", &script[..start], lines.join("\n"), &script[end..])
}

#[test]
fn a_record_that_lost_something_stays_closed() {
    let (database, _client, _) = source("lost");
    let script = origin_cluster().dump(&["-Fp", database.name()]).unwrap();
    for (table, state) in [
        ("agd.event", "AG003"),
        ("agd.transaction", "AG003"),
        ("agd.tile", "AG003"),
        ("agd.sequencer", "55000"),
        ("agd.guarded_table", "55000"),
        ("agd.tenant", "55000"),
        ("agd.checkpoint", "AG003"),
    ] {
        let target = other_cluster().database("lost").unwrap();
        let output = target.psql(&without_last_rows(&script, table, 1)).unwrap();
        assert!(output.success, "{table}: {}", output.stderr);
        let mut client = target.connect().unwrap();
        expect_sqlstate(client.batch_execute("SELECT agd.resume()"), state);
        expect_sqlstate(client.batch_execute("INSERT INTO orders VALUES (-1, 'acme')"), "55000");
        expect_sqlstate(client.batch_execute("SELECT agd.anchor()"), "55000");
    }
    // An older log under newer receipts and anchors: history that was published is missing.
    let target = other_cluster().database("lost").unwrap();
    let log = script.split("COPY agd.log ").nth(1).unwrap();
    let platform = log.lines().find(|line| line.split('\t').nth(2) == Some("\\N")).unwrap();
    let mut fields: Vec<&str> = platform.split('\t').collect();
    fields[3..=8].copy_from_slice(&["0", "\\\\x", "\\\\x", "\\N", "\\N", "\\N"]);
    let output = target.psql(&script.replacen(platform, &fields.join("\t"), 1)).unwrap();
    assert!(output.success, "{}", output.stderr);
    let mut client = target.connect().unwrap();
    let error = expect_sqlstate(client.batch_execute("SELECT agd.resume()"), "AG003");
    assert!(error.message().contains("beyond the log's leaves"), "{}", error.message());
    expect_sqlstate(client.batch_execute("INSERT INTO orders VALUES (-1, 'acme')"), "55000");
}

#[test]
fn a_restore_that_is_half_done_stays_closed() {
    let (database, _client, evidence) = source("half");
    let target = other_cluster().database("half").unwrap();
    let file = origin_cluster().scratch_file("half.dump");
    let path = file.to_str().unwrap();
    origin_cluster().dump(&["-Fc", "-f", path, database.name()]).unwrap();
    let restore = |section: &str| other_cluster().restore(&["--section", section, "-d", target.name(), path]).unwrap();
    restore("pre-data");
    restore("data");
    let mut client = target.connect().unwrap();
    let error = expect_sqlstate(client.batch_execute("SELECT agd.resume()"), "55000");
    assert!(error.message().contains("orders") && error.message().contains("parts_low"), "{}", error.message());
    expect_hint(&error, "post-data");
    restore("post-data");
    expect_closed(&mut client);
    expect_resumed(&mut client, &evidence);
}

/// Data alone: every row of a guarded table goes through the gate, and agd's own rows are not carried.
#[test]
fn rows_of_a_table_are_loaded_through_the_gate() {
    let (database, _client, _) = source("rows");
    let script = origin_cluster().dump(&["-Fp", "-a", "-t", "orders", "-t", "items", database.name()]).unwrap();
    assert!(!script.contains("agd."), "agd's rows in a dump of other tables");
    let target = other_cluster().agd_database("rows").unwrap();
    let mut client = target.connect().unwrap();
    client.batch_execute(SCHEMA).unwrap();
    let output = target.psql(&script).unwrap();
    assert!(output.success, "{}", output.stderr);
    let orders = reconcile(&mut client, "orders", &["id"]);
    let items = reconcile(&mut client, "items", &["id"]);
    assert_eq!((orders.len(), items.len()), (885, 19));
    assert!(orders.iter().all(|event| event.action == "INSERT"));
    anchor(&mut client);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

/// What a dump leaves behind is a decision, for each table of agd's.
#[test]
fn a_dump_carries_every_table_but_two() {
    let database = other_cluster().agd_database("marks").unwrap();
    let mut client = database.connect().unwrap();
    let left: Vec<String> = client
        .query(
            "SELECT c.relname::text FROM pg_class c JOIN pg_extension x ON x.extname = 'agd'
              WHERE c.relnamespace = 'agd'::regnamespace AND c.relkind IN ('r', 'p', 'S') AND NOT c.oid = ANY (x.extconfig)
              ORDER BY 1",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(left, ["home", "verified"]);
}

/// The transaction ids pass 2^32 while a transaction from before is still open.
#[test]
fn numbers_go_on_across_an_epoch() {
    let cluster = Cluster::builder().setting(PATIENT.0, PATIENT.1).start().unwrap();
    cluster.create_role("restore_acme", "").unwrap();
    let mut client = cluster.superuser().unwrap();
    client.batch_execute("CREATE EXTENSION agd").unwrap();
    fill(&mut client);
    anchor(&mut client);
    let evidence = Evidence::of(&mut client);
    drop(client);
    // In two steps: a table may not be older than 2^31 transactions.
    for next in [1_400_000_000, 2_800_000_000, u32::MAX - 20] {
        let mut client = cluster.superuser().unwrap();
        let names: Vec<String> =
            client.query("SELECT datname::text FROM pg_database", &[]).unwrap().iter().map(|row| row.get(0)).collect();
        client.batch_execute("ALTER DATABASE template0 ALLOW_CONNECTIONS true").unwrap();
        for name in names {
            cluster.client("postgres", &name).unwrap().batch_execute("VACUUM FREEZE").unwrap();
        }
        drop(client);
        cluster.stop(Stop::Fast).unwrap();
        cluster.jump_to_xid(next).unwrap();
        cluster.start().unwrap();
    }
    let mut old = cluster.superuser().unwrap();
    old.batch_execute("BEGIN; INSERT INTO orders VALUES (-1, 'acme', 'the epoch before')").unwrap();
    let mut client = cluster.superuser().unwrap();
    for id in 1000..1040 {
        client.batch_execute(&format!("INSERT INTO orders VALUES ({id}, 'acme', 'across')")).unwrap();
        if id % 10 == 0 {
            anchor(&mut client);
        }
    }
    old.batch_execute("COMMIT").unwrap();
    anchor(&mut client);
    let ids: Vec<i64> = client
        .query(
            "SELECT DISTINCT xact_id::text::bigint FROM agd.event WHERE xact_id::text::bigint > 4000000000 ORDER BY 1",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert!(ids[0] < 1 << 32 && *ids.last().unwrap() > 1 << 32, "{ids:?}");
    reconcile(&mut client, "orders", &["id"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
    evidence.is_continued_by(&mut client);

    // And a new server, whose ids are far behind, goes on beyond them.
    let evidence = Evidence::of(&mut client);
    let script = cluster.dump(&["-Fp", "postgres"]).unwrap();
    let target = other_cluster().database("epoch").unwrap();
    assert!(target.psql(&script).unwrap().success);
    let mut client = target.connect().unwrap();
    let stale = client.batch_execute("DELETE FROM orders WHERE id = -1");
    expect_sqlstate(stale, "55000");
    expect_resumed_after(&mut client, &evidence, "DELETE FROM orders WHERE id = -1");
}

fn expect_resumed_after(client: &mut Client, before: &Evidence, write: &str) {
    let newest: i64 = one(client, "SELECT max(xact_id::text::bigint) FROM agd.event");
    client.batch_execute("SELECT agd.resume()").unwrap();
    client.batch_execute(write).unwrap();
    anchor(client);
    let resumed: i64 = one(client, "SELECT min(xact_id::text::bigint) FROM agd.event WHERE action = 'RESUME'");
    assert!(resumed > newest);
    expect_each_event_in_one_leaf(client);
    expect_verified(client);
    before.is_continued_by(client);
}

/// A standby that is promoted goes on with the log, which says so.
#[test]
fn a_promoted_standby_goes_on_and_says_so() {
    let primary = Cluster::builder().setting(PATIENT.0, PATIENT.1).start().unwrap();
    primary.create_role("restore_acme", "").unwrap();
    let mut client = primary.superuser().unwrap();
    client.batch_execute("CREATE EXTENSION agd").unwrap();
    fill(&mut client);
    let evidence = Evidence::of(&mut client);
    let standby = primary.standby().unwrap();
    primary.stop(Stop::Fast).unwrap();
    standby.promote().unwrap();
    let mut client = standby.superuser().unwrap();
    client.batch_execute("INSERT INTO orders VALUES (-1, 'acme', 'promoted')").unwrap();
    anchor(&mut client);
    let timelines = "SELECT body FROM agd.events WHERE action = 'TIMELINE' ORDER BY leaf_index";
    assert_eq!(one::<String>(&mut client, timelines), "timeline=2 previous=1");
    reconcile(&mut client, "orders", &["id"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
    evidence.is_continued_by(&mut client);
    // Said once.
    standby.restart().unwrap();
    let mut client = standby.superuser().unwrap();
    client.batch_execute("INSERT INTO orders VALUES (-2, 'acme', 'again'); SELECT agd.resume()").unwrap();
    anchor(&mut client);
    assert_eq!(client.query(timelines, &[]).unwrap().len(), 1);
    expect_verified(&mut client);
}

/// Recovered to an earlier point, the record ends there: what came after is gone from every table alike.
#[test]
fn recovery_to_a_point_in_time_loses_whole_transactions() {
    let primary = Cluster::builder().setting(PATIENT.0, PATIENT.1).setting("wal_keep_size", "512MB").start().unwrap();
    primary.create_role("restore_acme", "").unwrap();
    let mut client = primary.superuser().unwrap();
    client.batch_execute("CREATE EXTENSION agd").unwrap();
    fill(&mut client);
    let backup = primary.base_backup(&[]).unwrap();
    client.batch_execute("INSERT INTO orders SELECT i, 'acme', 'kept' FROM generate_series(2000, 2600) i").unwrap();
    anchor(&mut client);
    let evidence = Evidence::of(&mut client);
    client.batch_execute("UPDATE orders SET note = 'kept too' WHERE id = 2000").unwrap();
    let kept = reconcile(&mut client, "orders", &["id"]).len();
    let folder = Folder::new("recovered");
    let (store, key) = store_and_key(&mut client, &folder.0);
    client.batch_execute("SELECT pg_create_restore_point('here')").unwrap();
    client.batch_execute("INSERT INTO orders SELECT i, 'acme', 'lost' FROM generate_series(3000, 3600) i").unwrap();
    anchor(&mut client);
    let (code, said) = carry_out(&primary, "postgres", &store, &key, Some("--new-store"));
    assert_eq!(code, Some(0), "{said}");
    client.batch_execute("SELECT pg_switch_wal()").unwrap();
    let lost = Evidence::of(&mut client);
    drop(client);
    primary.stop(Stop::Fast).unwrap();

    backup.recover_to(&primary, "here").unwrap();
    let mut client = backup.superuser().unwrap();
    eventually("recovery ends", Duration::from_secs(60), || !one::<bool>(&mut client, "SELECT pg_is_in_recovery()"));
    assert_eq!(Evidence::of(&mut client), evidence);
    assert_eq!(reconcile(&mut client, "orders", &["id"]).len(), kept);
    expect_verified(&mut client);
    client.batch_execute("INSERT INTO orders VALUES (-1, 'acme', 'after the recovery')").unwrap();
    anchor(&mut client);
    reconcile(&mut client, "orders", &["id"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
    let after = evidence.is_continued_by(&mut client);
    // What was published in between is another history: nothing is signed that contradicts it.
    let (code, said) = carry_out(&backup, "postgres", &store, &key, None);
    assert_eq!(code, Some(1), "{said}");
    assert!(!lost.is_a_beginning_of(&after));
}

/// pg_upgrade makes a new server of the same files. Needs an older PostgreSQL with the extension beside the one under
/// test: the runner names its programs, and leaves this test out, saying so, where there is none.
#[test]
fn pg_upgrade_carries_the_record() {
    let older = std::env::var_os("AGD_PG_OLDER_BIN").expect("AGD_PG_OLDER_BIN names an older PostgreSQL's programs");
    let old = Cluster::builder().bin(older.into()).setting(PATIENT.0, PATIENT.1).start().unwrap();
    old.create_role("restore_acme", "").unwrap();
    old.superuser().unwrap().batch_execute("CREATE DATABASE app").unwrap();
    let mut client = old.client("postgres", "app").unwrap();
    client.batch_execute("CREATE EXTENSION agd").unwrap();
    fill(&mut client);
    let evidence = Evidence::of(&mut client);
    let newest: i64 = one(&mut client, "SELECT max(xact_id::text::bigint) FROM agd.event");
    drop(client);
    old.stop(Stop::Fast).unwrap();

    let new = old.upgraded(&bin_under_test()).unwrap();
    new.configure([PATIENT]).unwrap();
    new.restart().unwrap();
    let mut client = new.client("postgres", "app").unwrap();
    let arrived = Evidence::of(&mut client);
    assert_eq!((&arrived.anchors, &arrived.entries), (&evidence.anchors, &evidence.entries));
    expect_verified(&mut client);
    expect_closed(&mut client);
    expect_resumed(&mut client, &evidence);
    // Transaction ids went along: nothing needed to be added.
    let resumed: String = one(&mut client, "SELECT body FROM agd.events WHERE action = 'RESUME'");
    assert!(resumed.ends_with(" xact_id_base=0"), "{resumed}");
    assert!(one::<i64>(&mut client, "SELECT max(xact_id::text::bigint) FROM agd.event") > newest);
}

fn bin_under_test() -> std::path::PathBuf {
    std::fs::canonicalize(std::env::var_os("AGD_PG_BIN").unwrap()).unwrap()
}

/// A dump is one moment of a busy database: what was in progress then is gone whole, what was committed and not yet
/// integrated is integrated later, in its place.
#[test]
fn a_dump_of_a_database_at_work() {
    let cluster = Cluster::builder().setting("agd.anchor_max_age", "100ms").start().unwrap();
    let database = cluster.agd_database("busy").unwrap();
    database
        .connect()
        .unwrap()
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int NOT NULL); SELECT agd.guard('t'); INSERT INTO t SELECT i, 0 FROM generate_series(1, 200) i")
        .unwrap();
    let (stop, written) = (AtomicBool::new(false), AtomicU32::new(0));
    let script = std::thread::scope(|scope| {
        for writer in 0..4 {
            let mut client = database.connect().unwrap();
            let (stop, written) = (&stop, &written);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(writer);
                while !stop.load(Ordering::Relaxed) {
                    let (first, second) = (random.i32(1..200), random.i32(1..200));
                    let end = if random.u8(0..4) == 0 { "ROLLBACK" } else { "COMMIT" };
                    // A deadlock or a lost race is the other's good luck.
                    let _ = client.batch_execute(&format!(
                        "BEGIN; UPDATE t SET v = v + 1 WHERE id = {first}; SAVEPOINT s; UPDATE t SET v = v + 1 WHERE id = {second};
                         ROLLBACK TO s; UPDATE t SET v = v - 1 WHERE id = {second}; {end}"
                    ));
                    let _ = client.batch_execute("ROLLBACK");
                    written.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let some = |more: u32| {
            let until = written.load(Ordering::Relaxed) + more;
            eventually("the writers write", Duration::from_secs(60), || written.load(Ordering::Relaxed) >= until);
        };
        some(400);
        let script = cluster.dump(&["-Fp", database.name()]).unwrap();
        some(100);
        stop.store(true, Ordering::Relaxed);
        script
    });
    let target = other_cluster().database("busy").unwrap();
    let output = target.psql(&script).unwrap();
    assert!(output.success, "{}", output.stderr);
    let mut client = target.connect().unwrap();
    client.batch_execute("SELECT agd.resume()").unwrap();
    client.batch_execute("UPDATE t SET v = 1000 WHERE id <= 20").unwrap();
    anchor(&mut client);
    reconcile(&mut client, "t", &["id"]);
    expect_each_event_in_one_leaf(&mut client);
    expect_verified(&mut client);
}

/// Databases made from a template that has the extension, and no record, each have a record and a log of their own.
#[test]
fn a_template_with_the_extension_has_no_record_to_resume() {
    let template = other_cluster().agd_database("empty").unwrap();
    let name = format!("{}_made", template.name());
    let mut admin = other_cluster().superuser().unwrap();
    eventually("the template is at rest", Duration::from_secs(20), || {
        admin.batch_execute(&format!("CREATE DATABASE \"{name}\" TEMPLATE \"{}\"", template.name())).is_ok()
    });
    let mut client = other_cluster().client("postgres", &name).unwrap();
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY); SELECT agd.guard('t'); INSERT INTO t VALUES (1)")
        .unwrap();
    anchor(&mut client);
    expect_verified(&mut client);
    let origin: String = one(&mut client, "SELECT DISTINCT origin FROM agd.anchors");
    let server: String = one(&mut client, "SELECT system_identifier::text FROM pg_control_system()");
    assert_eq!(origin, agd_core::name::default_log_name(server.parse().unwrap(), &name));
    drop(client);
    admin.batch_execute(&format!("DROP DATABASE \"{name}\" WITH (FORCE)")).unwrap();
}

/// Two databases of one server that are restored at the same time do not meet.
#[test]
fn two_restores_at_once() {
    let (database, _client, evidence) = source("twice");
    let gate = Mutex::new(());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let target = {
                    let _one_at_a_time = gate.lock().unwrap();
                    other_cluster().database("twice").unwrap()
                };
                let script = origin_cluster().dump(&["-Fp", database.name()]).unwrap();
                assert!(target.psql(&script).unwrap().success);
                let mut client = target.connect().unwrap();
                expect_resumed(&mut client, &evidence);
            });
        }
    });
}
