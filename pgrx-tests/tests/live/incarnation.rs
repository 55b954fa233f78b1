//! Published history that was lost: the record closes, says why, and goes on in logs that commit to what was lost.

use crate::command_line::{self, answer, text};
use agd_core::{Checkpoint, Incarnation, entry};
use agd_live_tests::proof::{anchors, expect_events_proven, inclusion};
use agd_live_tests::publishing::{self, report};
use agd_live_tests::record::{anchor, expect_verified, reconcile};
use agd_live_tests::{Cluster, Stop, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Events wait for an anchor as long as a test runs: what is integrated is what a test asked for.
const PATIENT: (&str, &str) = ("agd.anchor_max_age", "1h");

const SCHEMA: &str = "
    CREATE EXTENSION agd;
    GRANT agd_publisher TO inc_publisher;
    GRANT agd_platform TO inc_platform;
    GRANT agd_tenant TO inc_acme;
    SELECT agd.create_tenant('acme'), agd.create_tenant('zeta');
    SELECT agd.map_role('inc_acme', 'acme');
    CREATE TABLE orders (id int PRIMARY KEY, tenant text NOT NULL, note text);
    SELECT agd.guard('orders', 'tenant');
    CREATE TABLE parts (id int PRIMARY KEY, note text);
    SELECT agd.guard('parts');
    GRANT ALL ON orders, parts TO inc_acme, inc_platform;
";

/// A server whose record is published, and where.
struct Scene {
    cluster: Cluster,
    store: PathBuf,
    key: PathBuf,
    policy: PathBuf,
    /// Those that were lost before; the first has the store in its directory.
    lost: Vec<Cluster>,
}

fn orders(client: &mut Client, tenant: &str, ids: std::ops::Range<i32>) {
    let sql = "INSERT INTO orders SELECT i, $1::text, 'v' FROM generate_series($2::int, $3::int) i";
    client.execute(sql, &[&tenant, &ids.start, &(ids.end - 1)]).unwrap();
}

fn parts(client: &mut Client, ids: std::ops::Range<i32>) {
    let sql = "INSERT INTO parts SELECT i, 'v' FROM generate_series($1::int, $2::int) i";
    client.execute(sql, &[&ids.start, &(ids.end - 1)]).unwrap();
}

fn one<T: for<'a> postgres::types::FromSql<'a>>(client: &mut Client, sql: &str) -> T {
    client.query_one(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

/// The platform log that is open.
fn platform(client: &mut Client) -> String {
    one(client, "SELECT origin FROM agd.log WHERE tenant IS NULL ORDER BY incarnation DESC LIMIT 1")
}

fn agd(arguments: &[&str]) -> (Option<i32>, String) {
    answer(command_line::agd().args(arguments))
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::builder().setting(PATIENT.0, PATIENT.1).start().unwrap();
        for role in ["inc_publisher", "inc_platform", "inc_acme", "inc_other"] {
            cluster.create_role(role, "").unwrap();
        }
        let mut client = cluster.superuser().unwrap();
        client.batch_execute(SCHEMA).unwrap();
        orders(&mut client, "acme", 0..300);
        parts(&mut client, 0..300);
        let folder = cluster.scratch_file("published");
        let (store, key, policy) = (folder.join("store"), folder.join("log.key"), folder.join("policy"));
        std::fs::create_dir_all(&store).unwrap();
        let (code, vkey) = agd(&["keygen", "--name", &platform(&mut client), "--out", text(&key)]);
        assert_eq!(code, Some(0), "{vkey}");
        std::fs::write(&policy, format!("log {}\nquorum none\n", vkey.trim())).unwrap();
        // The publisher's, and the one that tests report with.
        publishing::register_vkey(&mut client, &vkey);
        publishing::register(&mut client);
        anchor(&mut client);
        let scene = Scene { cluster, store, key, policy, lost: Vec::new() };
        scene.expect_published();
        scene
    }

    fn superuser(&self) -> Client {
        self.cluster.superuser().unwrap()
    }

    fn publish(&self) -> (Option<i32>, String) {
        let database = format!("host={} user=inc_publisher dbname=postgres", self.cluster.socket_dir().display());
        agd(&["publish", "--once", "--database", &database, "--store", text(&self.store), "--key", text(&self.key)])
    }

    #[track_caller]
    fn expect_published(&self) {
        let (code, said) = self.publish();
        assert_eq!(code, Some(0), "{said}");
        let (code, said) = agd(&["verify", text(&self.store), "--policy", text(&self.policy)]);
        assert_eq!(code, Some(0), "{said}");
    }

    /// The server is lost, and `backup` started in its place.
    fn put_back(&mut self, backup: Cluster) {
        self.cluster.stop(Stop::Immediate).unwrap();
        backup.start().unwrap();
        self.lost.push(std::mem::replace(&mut self.cluster, backup));
    }
}

/// What an ordinary role, the owner of the database and the publisher find: nothing is added to the record.
#[track_caller]
fn expect_closed(scene: &Scene) {
    let mut client = scene.superuser();
    let state = "SELECT (SELECT count(*) FROM agd.event), (SELECT count(*) FROM agd.checkpoint), (SELECT integrated::text FROM agd.sequencer)";
    let read = |client: &mut Client| {
        let row = client.query_one(state, &[]).unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, String>(2))
    };
    let before = read(&mut client);
    let mut ordinary = scene.cluster.client("inc_acme", "postgres").unwrap();
    for sql in [
        "INSERT INTO orders VALUES (-1, 'acme')",
        "UPDATE orders SET note = 'x' WHERE id = 1",
        "DELETE FROM orders WHERE id = 1",
        "INSERT INTO parts VALUES (-1)",
    ] {
        let error = expect_sqlstate(ordinary.batch_execute(sql), "AG003");
        expect_hint(&error, "agd.new_incarnation");
    }
    for sql in [
        "INSERT INTO parts VALUES (-1)",
        "SELECT * FROM agd.anchor()",
        "SELECT agd.create_tenant('more')",
        "SELECT agd.map_role('inc_other', 'acme')",
        "CREATE TABLE another (id int PRIMARY KEY); SELECT agd.guard('another')",
        "SELECT agd.unguard('orders', 'to get rid of it')",
    ] {
        let error = expect_sqlstate(client.batch_execute(sql), "AG003");
        expect_hint(&error, "agd.new_incarnation");
    }
    assert_eq!(read(&mut client), before);
    // Reading works, and what is there still holds together.
    assert!(one::<i64>(&mut ordinary, "SELECT count(*) FROM orders") > 0);
    expect_verified(&mut client);
}

/// The body of the event that begins an incarnation's platform log; it must be leaf 0.
fn beginning(client: &mut Client, origin: &str) -> Incarnation {
    let bytes: Vec<u8> = client.query_one("SELECT entry FROM agd.entries($1, 0, 1)", &[&origin]).unwrap().get(0);
    let entry = entry::parse(&bytes).unwrap();
    assert_eq!(entry.as_entry().action, "INCARNATION");
    Incarnation::parse(entry.as_entry().body.unwrap()).unwrap()
}

fn newest_published(scene: &Scene, origin: &str) -> Checkpoint {
    let note = std::fs::read_to_string(scene.store.join(origin).join("checkpoint")).unwrap();
    Checkpoint::parse(&note[..=note.find("\n\n").unwrap()]).unwrap()
}

/// Everything that a log row and its tree say.
fn closed_log(client: &mut Client, origin: &str) -> Checkpoint {
    let size: i64 = client.query_one("SELECT size FROM agd.log WHERE origin = $1", &[&origin]).unwrap().get(0);
    let root: Vec<u8> = client
        .query_one("SELECT root_hash FROM agd.anchors WHERE origin = $1 AND tree_size = $2", &[&origin, &size])
        .unwrap()
        .get(0);
    Checkpoint { origin: origin.to_owned(), size: size.cast_unsigned(), root: root.try_into().unwrap() }
}

#[track_caller]
fn expect_whole(client: &mut Client) {
    anchor(client);
    expect_verified(client);
    // Each log alone, from where it was verified last and in full.
    for full_scan in [false, true] {
        let alone = "SELECT l.origin, v.check_name, v.detail
                       FROM agd.log l CROSS JOIN LATERAL agd.verify(l.origin, $1) v WHERE NOT v.ok";
        let failed = client.query(alone, &[&full_scan]).unwrap();
        let failed: Vec<(String, String, String)> =
            failed.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        assert!(failed.is_empty(), "{full_scan}: {failed:#?}");
    }
    let proven = expect_events_proven(client, "true");
    assert_eq!(proven.len() as i64, one::<i64>(client, "SELECT count(*) FROM agd.events"));
    // Every leaf of every log is an event, and every event one leaf.
    let mut leaves: BTreeMap<(String, u64), Vec<u64>> = BTreeMap::new();
    for (_, proof) in proven {
        leaves.entry((proof.origin, proof.size)).or_default().push(proof.index);
    }
    for ((origin, size), mut leaves) in leaves {
        leaves.sort_unstable();
        assert!(leaves.into_iter().eq(0..size), "{origin}");
    }
    reconcile(client, "orders", &["id"]);
    reconcile(client, "parts", &["id"]);
}

#[test]
fn a_record_that_was_put_back_closes_and_goes_on_in_a_new_incarnation() {
    let mut scene = Scene::new();
    let backup = scene.cluster.base_backup(&[]).unwrap();
    let mut client = scene.superuser();
    orders(&mut client, "acme", 1000..1600);
    orders(&mut client, "zeta", 2000..2010);
    parts(&mut client, 1000..1600);
    anchor(&mut client);
    scene.expect_published();
    let first = platform(&mut client);
    drop(client);
    scene.put_back(backup);

    // What was put back is sound by itself, and nobody knows better yet. Some of it is not anchored when it closes.
    let mut client = scene.superuser();
    expect_verified(&mut client);
    orders(&mut client, "acme", 3000..3010);
    anchor(&mut client);
    orders(&mut client, "acme", 3100..3110);
    orders(&mut client, "zeta", 3200..3210);
    let lost = newest_published(&scene, &first);
    let (code, said) = scene.publish();
    assert_eq!(code, Some(1), "{said}");
    expect_closed(&scene);
    let (code, said) = scene.publish();
    assert_eq!(code, Some(1), "{said}");
    drop(client);
    scene.cluster.restart().unwrap();
    expect_closed(&scene);

    let mut client = scene.superuser();
    let before = anchors(&mut client);
    let old: Vec<String> = client
        .query("SELECT event_id FROM agd.events WHERE leaf_index IS NOT NULL", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let mut operator = scene.cluster.client("inc_platform", "postgres").unwrap();
    operator.batch_execute("SELECT agd.new_incarnation(' the disk was lost ')").unwrap();
    let second = platform(&mut client);
    assert_eq!(second, format!("{first}/i2"));
    let mut ordinary = scene.cluster.client("inc_acme", "postgres").unwrap();
    ordinary.batch_execute("INSERT INTO orders VALUES (4000, 'acme', 'after')").unwrap();
    expect_whole(&mut client);

    let body = beginning(&mut client, &second);
    assert_eq!(body.published, lost);
    assert_eq!(body.closed, closed_log(&mut client, &first));
    assert_eq!(body.reason, "the disk was lost");
    // What waited for integration came behind it, into the new logs; old leaves stayed where they were.
    let mine: String = one(&mut client, "SELECT event_id FROM agd.events WHERE new->>'id' = '3105'");
    assert_eq!(inclusion(&mut client, &mine).unwrap().origin, format!("{second}/t/acme"));
    let mut now = anchors(&mut client);
    for event in old {
        let proof = inclusion(&mut client, &event).unwrap();
        assert!(proof.origin == first || proof.origin.starts_with(&format!("{first}/t/")), "{}", proof.origin);
        proof.expect_holds(&now);
    }
    now.retain(|anchor, _| before.contains_key(anchor));
    assert_eq!(now, before);

    // Incremental, and twice.
    orders(&mut client, "acme", 5000..5600);
    expect_whole(&mut client);
    client.query("SELECT * FROM agd.verify()", &[]).unwrap();
    orders(&mut client, "acme", 6000..6010);
    expect_whole(&mut client);

    // The publisher goes on, beside what is there, which stays as it is.
    scene.expect_published();
    assert_eq!(newest_published(&scene, &first), lost);
    assert_eq!(
        newest_published(&scene, &second).size,
        one::<i64>(&mut client, "SELECT size FROM agd.log WHERE tenant IS NULL AND incarnation = 2") as u64
    );
    let proof: String = one(&mut ordinary, "SELECT agd.tlog_proof(event_id) FROM agd.events WHERE new->>'id' = '4000'");
    assert!(proof.contains(&format!("\n{second}/t/acme\n")), "{proof}");
}

#[test]
fn who_may_close_and_open_an_incarnation() {
    let scene = Scene::new();
    let mut client = scene.superuser();
    let origin = platform(&mut client);
    let known = "tree_size > 1";
    let known =
        client.query(&format!("SELECT origin, tree_size, root_hash FROM agd.anchors WHERE {known}"), &[]).unwrap();
    let known: Vec<String> = known
        .iter()
        .map(|row| report(row.get(0), row.get::<_, i64>(1) as u64, row.get::<_, Vec<u8>>(2).try_into().unwrap()))
        .collect();
    for (role, sql) in [
        ("inc_acme", "SELECT agd.report_divergence('x', 1, '\\x00', 'x')"),
        ("inc_platform", "SELECT agd.report_divergence('x', 1, '\\x00', 'x')"),
        ("inc_acme", "SELECT agd.new_incarnation('why')"),
        ("inc_publisher", "SELECT agd.new_incarnation('why')"),
        ("inc_other", "SELECT agd.new_incarnation('why')"),
    ] {
        let mut client = scene.cluster.client(role, "postgres").unwrap();
        expect_sqlstate(client.batch_execute(sql), "42501");
    }
    let mut publisher = scene.cluster.client("inc_publisher", "postgres").unwrap();
    // What the logs have closes nothing, whatever size it is of.
    for known in &known {
        let error = expect_sqlstate(publisher.batch_execute(known), "22023");
        expect_hint(&error, "agd publish");
    }
    // That somebody would not publish is told all the same.
    let told = |client: &mut Client, sqlstate: &str| -> Vec<Option<String>> {
        let sql = "SELECT tenant FROM agd.events WHERE action = 'DENIED' AND body::json->>'attempted' = 'PUBLISH' AND body::json->>'sqlstate' = $1";
        client.query(sql, &[&sqlstate]).unwrap().iter().map(|row| row.get(0)).collect()
    };
    eventually("a refused publication is told", Duration::from_secs(30), || !told(&mut client, "22023").is_empty());
    let size: i64 = one(&mut client, "SELECT size FROM agd.log WHERE tenant IS NULL");
    let zeros = [0; 32];
    let size = size.cast_unsigned();
    for sql in [
        report("elsewhere/app", size, zeros),
        report(&format!("{origin}/t/No-body"), size, zeros),
        report(&origin, 0, zeros),
        report(&origin, size, zeros).replacen(&"00".repeat(32), &"00".repeat(31), 1),
        "SELECT agd.report_divergence(NULL, 1, decode(repeat('00', 32), 'hex'), 'x')".to_owned(),
        format!("SELECT agd.report_divergence('{origin}', NULL, decode(repeat('00', 32), 'hex'), 'x')"),
        format!("SELECT agd.report_divergence('{origin}', -1, decode(repeat('00', 32), 'hex'), 'x')"),
        format!("SELECT agd.report_divergence('{origin}', {size}, NULL, 'x')"),
    ] {
        let error = publisher.batch_execute(&sql).unwrap_err();
        let code = error.code().unwrap().code();
        assert!(["22023", "AG004"].contains(&code), "{sql}: {error:?}");
    }
    for (sql, sqlstate) in [
        ("SELECT agd.new_incarnation('why')", "55000"),
        ("SELECT agd.new_incarnation(' ')", "22023"),
        ("SELECT agd.new_incarnation(NULL)", "22023"),
        ("SELECT agd.new_incarnation(repeat('x', 5000))", "22023"),
    ] {
        expect_sqlstate(client.batch_execute(sql), sqlstate);
    }
    // Nothing of all this closed it.
    parts(&mut client, 5000..5001);
    expect_whole(&mut client);

    // A tenant's log closes it as well; then only the platform's says more.
    let closed = |client: &mut Client| one::<Option<String>>(client, "SELECT diverged FROM agd.home");
    let acme = format!("{origin}/t/acme");
    publisher.batch_execute(&report(&acme, 100_000, zeros)).unwrap();
    expect_closed(&scene);
    let first = closed(&mut client);
    assert!(first.as_deref().unwrap().starts_with(&format!("{acme}\n100000\n")), "{first:?}");
    publisher.batch_execute(&report(&acme, 200_000, zeros)).unwrap();
    assert!(told(&mut client, "AG003").is_empty(), "nothing is written to a closed record");
    assert_eq!(closed(&mut client), first);
    publisher.batch_execute(&report(&origin, 100_000, zeros)).unwrap();
    let second = closed(&mut client);
    assert!(second.as_deref().unwrap().starts_with(&format!("{origin}\n100000\n")), "{second:?}");
    publisher.batch_execute(&report(&origin, 100_000, zeros)).unwrap();
    publisher.batch_execute(&report(&origin, 90_000, zeros)).unwrap();
    publisher.batch_execute(&report(&acme, 300_000, zeros)).unwrap();
    assert_eq!(closed(&mut client), second);
    publisher.batch_execute(&report(&origin, 110_000, zeros)).unwrap();
    assert_ne!(closed(&mut client), second);
    for known in &known {
        expect_sqlstate(publisher.batch_execute(known), "22023");
    }

    // Alone in its transaction, and undone with it.
    for sql in [
        "BEGIN; SELECT pg_current_xact_id(); SELECT agd.new_incarnation('why')",
        "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT agd.new_incarnation('why')",
    ] {
        expect_sqlstate(client.batch_execute(sql), "55000");
        client.batch_execute("ROLLBACK").unwrap();
    }
    client.batch_execute("BEGIN; SELECT agd.new_incarnation('why'); INSERT INTO parts VALUES (-2); ROLLBACK").unwrap();
    expect_closed(&scene);
    client.batch_execute("BEGIN; SELECT agd.new_incarnation('why'); INSERT INTO parts VALUES (-2); COMMIT").unwrap();
    expect_whole(&mut client);
    let second = format!("{origin}/i2");
    assert_eq!(beginning(&mut client, &second).published.size, 110_000);
    eventually("what closed the record is told in the new logs", Duration::from_secs(30), || {
        let told = told(&mut client, "AG003");
        told.contains(&None) && told.contains(&Some("acme".into()))
    });
    // The closed one can be reported no more, the open one can.
    expect_sqlstate(publisher.batch_execute(&report(&origin, 120_000, zeros)), "22023");
    expect_sqlstate(client.batch_execute("SELECT agd.new_incarnation('why')"), "55000");
    expect_sqlstate(publisher.batch_execute(&report(&acme, 120_000, zeros)), "22023");
    orders(&mut client, "acme", 7000..7001);
    anchor(&mut client);
    publisher.batch_execute(&report(&format!("{second}/t/acme"), 120_000, zeros)).unwrap();
    expect_closed(&scene);
    client.batch_execute("SELECT agd.new_incarnation('again')").unwrap();
    expect_whole(&mut client);
    let body = beginning(&mut client, &format!("{origin}/i3"));
    assert_eq!(body.published.origin, format!("{second}/t/acme"));
    assert_eq!(body.closed, closed_log(&mut client, &second));
}

#[test]
fn what_is_in_flight_when_an_incarnation_closes_is_refused() {
    let scene = Scene::new();
    let mut client = scene.superuser();
    let origin = platform(&mut client);
    let mut writing = scene.cluster.client("inc_acme", "postgres").unwrap();
    writing.batch_execute("BEGIN; INSERT INTO parts VALUES (9000)").unwrap();
    let mut publisher = scene.cluster.client("inc_publisher", "postgres").unwrap();
    let report = report(&origin, 100_000, [0; 32]);
    publisher.batch_execute("BEGIN").unwrap();
    publisher.batch_execute(&report).unwrap();
    parts(&mut client, 9099..9100);
    publisher.batch_execute("ROLLBACK").unwrap();
    parts(&mut client, 9100..9101);
    publisher.batch_execute(&report).unwrap();
    writing.batch_execute("INSERT INTO parts VALUES (9001)").unwrap();
    expect_sqlstate(writing.batch_execute("COMMIT"), "AG003");
    assert_eq!(one::<i64>(&mut client, "SELECT count(*) FROM parts WHERE id IN (9000, 9001)"), 0);
    expect_closed(&scene);
    client.batch_execute("SELECT agd.new_incarnation('why')").unwrap();
    writing.batch_execute("INSERT INTO parts VALUES (9000)").unwrap();
    expect_whole(&mut client);
}

#[test]
fn a_fork_closes_the_record_and_two_incarnations_follow_each_other() {
    let mut scene = Scene::new();
    let backup = scene.cluster.base_backup(&[]).unwrap();
    let mut client = scene.superuser();
    let first = platform(&mut client);
    parts(&mut client, 1000..1100);
    anchor(&mut client);
    scene.expect_published();
    drop(client);
    scene.put_back(backup);
    let mut client = scene.superuser();
    // As many events and more: sizes agree, roots do not.
    parts(&mut client, 2000..2400);
    orders(&mut client, "acme", 2000..2001);
    anchor(&mut client);
    let lost = newest_published(&scene, &first);
    assert!(one::<i64>(&mut client, "SELECT size FROM agd.log WHERE tenant IS NULL") > lost.size as i64);
    let (code, said) = scene.publish();
    assert_eq!(code, Some(1), "{said}");
    expect_closed(&scene);
    client.batch_execute("SELECT agd.new_incarnation('one')").unwrap();
    parts(&mut client, 3000..3300);
    expect_whole(&mut client);
    let second = format!("{first}/i2");
    assert_eq!(beginning(&mut client, &second).published, lost);
    scene.expect_published();

    let backup = scene.cluster.base_backup(&[]).unwrap();
    parts(&mut client, 4000..4300);
    orders(&mut client, "acme", 4000..4300);
    anchor(&mut client);
    scene.expect_published();
    let lost_again = newest_published(&scene, &second);
    drop(client);
    scene.put_back(backup);
    let (code, said) = scene.publish();
    assert_eq!(code, Some(1), "{said}");
    expect_closed(&scene);
    let mut client = scene.superuser();
    client.batch_execute("SELECT agd.new_incarnation('two')").unwrap();
    parts(&mut client, 5000..5300);
    expect_whole(&mut client);
    let body = beginning(&mut client, &format!("{first}/i3"));
    assert_eq!((&body.published, &body.closed), (&lost_again, &closed_log(&mut client, &second)));
    scene.expect_published();
    assert_eq!(newest_published(&scene, &first), lost);
    assert_eq!(newest_published(&scene, &second), lost_again);
}

#[test]
fn a_record_that_was_put_back_before_its_incarnation_began_begins_the_next() {
    let mut scene = Scene::new();
    let (backup, older) = (scene.cluster.base_backup(&[]).unwrap(), scene.cluster.base_backup(&[]).unwrap());
    let mut client = scene.superuser();
    let first = platform(&mut client);
    parts(&mut client, 1000..1010);
    anchor(&mut client);
    scene.expect_published();
    drop(client);
    scene.put_back(backup);
    assert_eq!(scene.publish().0, Some(1));
    let mut client = scene.superuser();
    client.batch_execute("SELECT agd.new_incarnation('one')").unwrap();
    parts(&mut client, 2000..2300);
    anchor(&mut client);
    scene.expect_published();
    let (second, third) = (format!("{first}/i2"), format!("{first}/i3"));
    let lost = newest_published(&scene, &second);
    drop(client);
    scene.put_back(older);
    // It does not know of the second incarnation, and begins another one of that name.
    assert_eq!(scene.publish().0, Some(1));
    expect_closed(&scene);
    let mut client = scene.superuser();
    client.batch_execute("SELECT agd.new_incarnation('two')").unwrap();
    parts(&mut client, 3000..3010);
    expect_whole(&mut client);
    let (code, said) = scene.publish();
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(newest_published(&scene, &second), lost);
    expect_closed(&scene);
    client.batch_execute("SELECT agd.new_incarnation('three')").unwrap();
    expect_whole(&mut client);
    scene.expect_published();
    let body = beginning(&mut client, &third);
    assert_eq!((&body.published, &body.closed), (&lost, &closed_log(&mut client, &second)));
}

#[test]
fn a_tenants_log_that_vanished_closes_the_record() {
    let mut scene = Scene::new();
    let backup = scene.cluster.base_backup(&[]).unwrap();
    let mut client = scene.superuser();
    let first = platform(&mut client);
    // A publisher that died between the tenants and the platform log has neither signed nor written what comes here.
    let platform_files = ["checkpoint", "checkpoints", "tile"].map(|name| scene.store.join(&first).join(name));
    let state = scene.key.with_file_name("log.key.state");
    let aside = scene.store.with_file_name("aside");
    std::fs::create_dir(&aside).unwrap();
    for file in platform_files.iter().chain([&state]) {
        copy(file, &aside.join(file.file_name().unwrap()));
    }
    orders(&mut client, "zeta", 2000..2010);
    anchor(&mut client);
    scene.expect_published();
    drop(client);
    scene.put_back(backup);
    for file in platform_files.iter().chain([&state]) {
        let removed = if file.is_dir() { std::fs::remove_dir_all(file) } else { std::fs::remove_file(file) };
        removed.unwrap();
        copy(&aside.join(file.file_name().unwrap()), file);
    }
    let zeta = format!("{first}/t/zeta");
    let lost = newest_published(&scene, &zeta);
    let (code, said) = scene.publish();
    assert_eq!(code, Some(1), "{said}");
    expect_closed(&scene);
    let mut client = scene.superuser();
    client.batch_execute("SELECT agd.new_incarnation('why')").unwrap();
    orders(&mut client, "zeta", 3000..3010);
    expect_whole(&mut client);
    assert_eq!(beginning(&mut client, &format!("{first}/i2")).published, lost);
    scene.expect_published();
}

/// A file, or a folder with all in it.
fn copy(from: &Path, to: &Path) {
    if !from.is_dir() {
        std::fs::copy(from, to).unwrap();
        return;
    }
    std::fs::create_dir(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        copy(&item.path(), &to.join(item.file_name()));
    }
}

/// The server that was lost comes back when the record has gone on elsewhere: it signs nothing, and its record closes.
#[test]
fn an_old_server_that_comes_back_signs_nothing_and_is_closed() {
    let mut scene = Scene::new();
    let backup = scene.cluster.base_backup(&[]).unwrap();
    let mut client = scene.superuser();
    let first = platform(&mut client);
    parts(&mut client, 1000..1100);
    anchor(&mut client);
    scene.expect_published();
    drop(client);
    scene.put_back(backup);
    assert_eq!(scene.publish().0, Some(1));
    let mut client = scene.superuser();
    client.batch_execute("SELECT agd.new_incarnation('why')").unwrap();
    parts(&mut client, 2000..2300);
    anchor(&mut client);
    scene.expect_published();
    drop(client);
    // What was lost continues what was published of it, by thousands of entries.
    let old = scene.lost.pop().unwrap();
    old.start().unwrap();
    let new = std::mem::replace(&mut scene.cluster, old);
    let mut client = scene.superuser();
    parts(&mut client, 5000..7000);
    orders(&mut client, "zeta", 5000..5600);
    anchor(&mut client);
    let before = files(&scene.store);
    for _ in 0..2 {
        let (code, said) = scene.publish();
        assert!(code == Some(1) && said.contains("/i2: the log is published"), "{said}");
        assert_eq!(files(&scene.store), before);
    }
    expect_closed(&scene);
    let second = format!("{first}/i2");
    let diverged: String = one(&mut client, "SELECT diverged FROM agd.home");
    assert_eq!(Checkpoint::parse(&diverged).unwrap(), newest_published(&scene, &second));
    drop(client);
    scene.lost.push(std::mem::replace(&mut scene.cluster, new));
    let mut client = scene.superuser();
    parts(&mut client, 3000..3010);
    anchor(&mut client);
    scene.expect_published();
}

fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            drop(found.insert(path.clone(), std::fs::read(path).unwrap()))
        }
    }
    found
}

#[test]
fn incarnations_survive_dump_and_copy_and_a_closed_copy_stays_closed() {
    let scene = Scene::new();
    let cluster = &scene.cluster;
    let mut client = scene.superuser();
    let origin = platform(&mut client);
    client.batch_execute(&report(&origin, 100_000, [0; 32])).unwrap();
    drop(client);
    let mut maintenance = cluster.client("postgres", "template1").unwrap();
    maintenance.batch_execute("CREATE DATABASE copied TEMPLATE postgres").unwrap();
    let mut copied = cluster.client("postgres", "copied").unwrap();
    expect_sqlstate(copied.batch_execute("INSERT INTO parts VALUES (-1)"), "55000");
    expect_sqlstate(copied.batch_execute("SELECT agd.new_incarnation('why')"), "55000");
    copied.batch_execute("SELECT agd.resume()").unwrap();
    expect_sqlstate(copied.batch_execute("INSERT INTO parts VALUES (-1)"), "AG003");
    copied.batch_execute("SELECT agd.new_incarnation('why')").unwrap();
    expect_whole(&mut copied);

    let mut client = scene.superuser();
    client.batch_execute("SELECT agd.new_incarnation('why')").unwrap();
    parts(&mut client, 5000..5300);
    orders(&mut client, "acme", 5000..5300);
    anchor(&mut client);
    orders(&mut client, "zeta", 6000..6010);
    let before = anchors(&mut client);
    let file = cluster.scratch_file("dump");
    cluster.dump(&["-Fc", "-f", text(&file), "postgres"]).unwrap();
    maintenance.batch_execute("CREATE DATABASE restored").unwrap();
    cluster.restore(&["-d", "restored", text(&file)]).unwrap();
    let mut restored = cluster.client("postgres", "restored").unwrap();
    expect_sqlstate(restored.batch_execute("INSERT INTO parts VALUES (-1)"), "55000");
    restored.batch_execute("SELECT agd.resume()").unwrap();
    assert_eq!(anchors(&mut restored), before);
    parts(&mut restored, 7000..7001);
    expect_whole(&mut restored);
    assert_eq!(platform(&mut restored), format!("{origin}/i2"));
    restored.batch_execute(&report(&format!("{origin}/i2"), 100_000, [0; 32])).unwrap();
    restored.batch_execute("SELECT agd.new_incarnation('again')").unwrap();
    expect_whole(&mut restored);
}

/// What agd.verify() says of a record whose incarnations do not follow each other.
#[test]
fn an_incarnation_that_does_not_continue_the_one_before_is_found() {
    let cluster = Cluster::builder().setting(PATIENT.0, PATIENT.1).start().unwrap();
    let database = cluster.agd_database("inc_tampered").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute("CREATE TABLE parts (id int PRIMARY KEY, note text); SELECT agd.guard('parts')").unwrap();
    parts(&mut client, 0..300);
    anchor(&mut client);
    let origin = platform(&mut client);
    publishing::register(&mut client);
    client.batch_execute(&report(&origin, 100_000, [0; 32])).unwrap();
    client.batch_execute("SELECT agd.new_incarnation('why')").unwrap();
    parts(&mut client, 1000..1300);
    anchor(&mut client);
    expect_verified(&mut client);
    client.query("SELECT * FROM agd.verify()", &[]).unwrap();
    let (second, closed) = (format!("{origin}/i2"), closed_log(&mut client, &origin));
    let (size, more) = (closed.size, closed.size + 1);
    let body = |what: &str| format!("UPDATE agd.event SET body = {what} WHERE action = 'INCARNATION'");
    for (sql, says) in [
        (body(&format!("replace(body, E'\\n{size}\\n', E'\\n{more}\\n')")), format!("ended at size {more}, and")),
        (body("replace(body, 'A', 'B')"), format!("begins {second} cannot be read")),
        (
            body(&format!("regexp_replace(body, E'(\\n{size}\\n)[^\\n]*', E'\\\\1{}=')", "A".repeat(43))),
            format!("{origin} ended with another root"),
        ),
        ("DELETE FROM agd.event WHERE action = 'INCARNATION'".to_owned(), format!("begins {second} is missing")),
        (
            "UPDATE agd.log SET opened_by = (SELECT max(xact_id) FROM agd.event) WHERE opened_by IS NOT NULL"
                .to_owned(),
            format!("begins {second} is missing"),
        ),
        (
            format!("DELETE FROM agd.verified; DELETE FROM agd.log WHERE origin = '{origin}'"),
            "the platform log of incarnation 1 is gone".to_owned(),
        ),
    ] {
        // Of what was verified before, no more is read again than this.
        for full_scan in [true, false] {
            let mut tamperer = database.tamperer().unwrap();
            tamperer.batch_execute(&format!("DELETE FROM agd.verified WHERE {full_scan}; {sql}")).unwrap();
            let query = format!("SELECT detail FROM agd.verify(full_scan => {full_scan}) WHERE NOT ok");
            let failed = tamperer.query(&query, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
            let failed: Vec<String> = failed.iter().map(|row| row.get(0)).collect();
            assert!(failed.iter().any(|detail| detail.contains(&says)), "{sql}, {full_scan}: {failed:#?}");
        }
    }
    expect_verified(&mut client);
}

#[test]
fn anchors_of_an_incarnation_that_is_closed_count_for_no_ceiling() {
    let scene = Scene::new();
    let mut client = scene.superuser();
    let origin = platform(&mut client);
    for round in 0..5 {
        parts(&mut client, 1000 * (round + 1)..1000 * (round + 1) + 1);
        anchor(&mut client);
    }
    client.batch_execute("ALTER SYSTEM SET agd.max_unpublished_anchors = 3").unwrap();
    client.batch_execute("ALTER SYSTEM SET agd.ceiling_wait = 0").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually("the ceiling holds", Duration::from_secs(30), || {
        client.batch_execute("INSERT INTO parts VALUES (9000); DELETE FROM parts WHERE id = 9000").is_err()
    });
    expect_sqlstate(client.batch_execute("INSERT INTO parts VALUES (9000)"), "53400");
    client.batch_execute(&report(&origin, 100_000, [0; 32])).unwrap();
    client.batch_execute("SELECT agd.new_incarnation('why')").unwrap();
    assert_eq!(one::<i64>(&mut client, "SELECT anchors_unpublished FROM agd.stat"), 0);
    client.batch_execute("INSERT INTO parts VALUES (9000)").unwrap();
    anchor(&mut client);
    assert!(one::<i64>(&mut client, "SELECT anchors_unpublished FROM agd.stat") > 0);
    for round in 0..5 {
        client.execute("INSERT INTO parts VALUES ($1)", &[&(9001 + round)]).ok();
        anchor(&mut client);
    }
    expect_sqlstate(client.batch_execute("INSERT INTO parts VALUES (9100)"), "53400");
}
