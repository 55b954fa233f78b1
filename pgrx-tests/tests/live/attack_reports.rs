//! What a member of `agd_publisher` can do to a database with its word alone: nothing. Reports count with a note by a key that
//! the platform registered, and not before their transaction commits.

use agd_core::{Checkpoint, SignedNote, SigningKey};
use agd_live_tests::publishing::{self, receipts, report};
use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Builder, Cluster, TestDb, eventually, expect_hint, expect_sqlstate};
use postgres::Client;
use std::sync::OnceLock;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// What waits longer than this waits for an open transaction.
const IMPATIENT: &str = "SET statement_timeout = '20s'; SET lock_timeout = '20s'";

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| start(Cluster::builder().setting("max_prepared_transactions", "5")))
}

fn start(builder: Builder) -> Cluster {
    let cluster = builder.setting("agd.anchor_max_age", "1h").start().unwrap();
    drop(cluster.agd_database("roles").unwrap());
    for (role, group) in [
        ("reports_pub", "agd_publisher"),
        ("reports_pub2", "agd_publisher"),
        ("reports_plat", "agd_platform"),
        ("reports_aud", "agd_auditor"),
    ] {
        cluster.create_role(role, &format!("IN ROLE {group}")).unwrap();
    }
    cluster.create_role("reports_stranger", "").unwrap();
    cluster
}

/// A database with a guarded table that anybody may write, an anchored record, and the key of tests registered.
fn scene(stem: &str) -> (TestDb<'static>, Client, String) {
    scene_in(cluster(), stem)
}

fn scene_in<'a>(cluster: &'a Cluster, stem: &str) -> (TestDb<'a>, Client, String) {
    let database = cluster.agd_database(stem).unwrap();
    let mut client = database.connect().unwrap();
    client
        .batch_execute(
            "CREATE TABLE t (id serial PRIMARY KEY, v text); SELECT agd.guard('t');
             GRANT ALL ON t TO PUBLIC; GRANT USAGE ON SEQUENCE t_id_seq TO PUBLIC",
        )
        .unwrap();
    publishing::register(&mut client);
    client.batch_execute("INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 300)").unwrap();
    anchor(&mut client);
    let origin = client.query_one("SELECT origin FROM agd.log WHERE tenant IS NULL", &[]).unwrap().get(0);
    (database, client, origin)
}

fn connect(database: &TestDb<'_>, role: &str) -> Client {
    let mut client = database.connect_as(role).unwrap();
    client.batch_execute(IMPATIENT).unwrap();
    client
}

fn is_closed(client: &mut Client) -> bool {
    client.query_one("SELECT diverged IS NOT NULL FROM agd.home", &[]).unwrap().get(0)
}

#[track_caller]
fn expect_open(database: &TestDb<'_>, client: &mut Client) {
    assert!(!is_closed(client));
    connect(database, "reports_stranger").batch_execute("INSERT INTO t (v) VALUES ('goes on')").unwrap();
}

/// A report of a checkpoint whose note is whatever is given.
fn report_with(
    client: &mut Client,
    origin: &str,
    size: i64,
    root: &[u8],
    note: Option<&str>,
) -> Result<(), postgres::Error> {
    client.execute("SELECT agd.report_divergence($1, $2, $3, $4)", &[&origin, &size, &root, &note]).map(drop)
}

#[test]
fn a_report_without_a_registered_signature_closes_nothing() {
    let (database, mut client, origin) = scene("unsigned");
    let mut publisher = connect(&database, "reports_pub");
    let text = |origin: &str, size: u64, root| Checkpoint { origin: origin.to_owned(), size, root }.to_string();
    let (zero, one) = ([0; 32], [1; 32]);
    let right = publishing::note(&origin, 100_000, zero);
    let by = |name: &str, seed: [u8; 32], text: &str| {
        SignedNote::sign(text, &SigningKey::from_seed(name, &seed).unwrap()).unwrap().to_string()
    };
    let checkpoint = text(&origin, 100_000, zero);
    // By a stranger's key under the log's name; by the key under another name; by nobody.
    let foreign = by(&origin, [8; 32], &checkpoint);
    let forged = {
        let ours = right.lines().last().unwrap();
        let mut line = ours.to_owned();
        let flipped = if line.ends_with("A==") { "B" } else { "A" };
        line.replace_range(line.len() - 6..line.len() - 5, flipped);
        right.replace(ours, &line)
    };
    let long = format!("{right}{}", right.lines().last().unwrap().to_owned().repeat(200));
    let notes = [
        None,
        Some(""),
        Some("not a note"),
        Some(checkpoint.as_str()),
        Some(foreign.as_str()),
        Some(forged.as_str()),
        Some(long.as_str()),
    ];
    for note in notes {
        let error = expect_sqlstate(report_with(&mut publisher, &origin, 100_000, &zero, note), "AG004");
        assert!(error.hint().is_some());
    }
    for note in [
        by("somebody/else", [7; 32], &checkpoint),
        by(&format!("{origin}/t/acme"), [7; 32], &checkpoint),
        // A genuine signature under something else: another size, another root, another log, an extension.
        publishing::note(&origin, 100_001, zero),
        publishing::note(&origin, 100_000, one),
        publishing::note(&format!("{origin}/i2"), 100_000, zero),
        by(&origin, [7; 32], &format!("{checkpoint}extension\n")),
    ] {
        expect_sqlstate(report_with(&mut publisher, &origin, 100_000, &zero, Some(&note)), "AG004");
    }
    // What the log has is not lost, whoever has signed it.
    let anchors = client.query("SELECT tree_size, root_hash FROM agd.anchors", &[]).unwrap();
    for row in anchors {
        let (size, root): (i64, Vec<u8>) = (row.get(0), row.get(1));
        let report = report(&origin, size.cast_unsigned(), root.try_into().unwrap());
        expect_sqlstate(publisher.batch_execute(&report), "22023");
    }
    expect_open(&database, &mut client);
    eventually("each attempt is an event", SOON, || {
        let told = "SELECT count(*) FROM agd.events WHERE action = 'DENIED' AND body::json->>'attempted' = 'PUBLISH'
                      AND body::json->>'sqlstate' = 'AG004' AND body::json->>'session_user_name' = 'reports_pub'";
        client.query_one(told, &[]).unwrap().get::<_, i64>(0) == 13
    });
    anchor(&mut client);
    expect_verified(&mut client);
    // The genuine one does, for good.
    publisher.batch_execute(&report(&origin, 100_000, zero)).unwrap();
    assert!(is_closed(&mut client));
    expect_sqlstate(client.batch_execute("INSERT INTO t (v) VALUES ('no')"), "AG003");
}

#[test]
fn an_open_report_keeps_nobody_from_writing() {
    let (database, mut client, origin) = scene("open");
    let report = report(&origin, 100_000, [0; 32]);
    let mut publisher = connect(&database, "reports_pub");
    let mut goes_on = |what: &str| {
        let mut writer = connect(&database, "reports_stranger");
        writer.batch_execute("INSERT INTO t (v) VALUES ('a')").unwrap_or_else(|error| panic!("{what}: {error:?}"));
        writer.batch_execute("BEGIN; INSERT INTO t (v) VALUES ('b'); INSERT INTO t (v) VALUES ('c'); COMMIT").unwrap();
        client.batch_execute(IMPATIENT).unwrap();
        anchor(&mut client);
        client.batch_execute("SELECT agd.create_tenant('t' || (SELECT count(*) FROM agd.tenant))").unwrap();
        client
            .batch_execute("BEGIN; LOCK TABLE agd.home, agd.publication IN SHARE ROW EXCLUSIVE MODE; ROLLBACK")
            .unwrap();
        expect_sqlstate(client.batch_execute("SELECT agd.new_incarnation('why')"), "55000");
        assert!(!is_closed(&mut client), "{what}");
    };
    publisher.batch_execute(&format!("BEGIN; {report}")).unwrap();
    goes_on("reported in an open transaction");
    publisher.batch_execute("ROLLBACK").unwrap();
    goes_on("rolled back");
    publisher.batch_execute(&format!("BEGIN; SAVEPOINT s; {report}; ROLLBACK TO s")).unwrap();
    goes_on("rolled back to a savepoint");
    publisher.batch_execute("COMMIT").unwrap();
    goes_on("committed without it");
    // Prepared, it would stay for good.
    publisher.batch_execute(&format!("BEGIN; {report}")).unwrap();
    expect_sqlstate(publisher.batch_execute("PREPARE TRANSACTION 'held'"), "0A000");
    goes_on("not prepared");
    // In a statement that does not end.
    let waiting = publisher.cancel_token();
    std::thread::scope(|scope| {
        let statement = format!("{report}, pg_sleep(600)");
        let publisher = &mut publisher;
        let running = scope.spawn(move || publisher.batch_execute(&statement));
        eventually("it sleeps", SOON, || {
            let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            database.connect().unwrap().query_one(sleeps, &[]).unwrap().get::<_, i64>(0) == 1
        });
        goes_on("in a long statement");
        waiting.cancel_query(postgres::NoTls).unwrap();
        running.join().unwrap().unwrap_err();
    });
    goes_on("cancelled");
    // Released, and committed: from then on it is closed, for who had begun before, too.
    let mut writing = connect(&database, "reports_stranger");
    writing.batch_execute("BEGIN; INSERT INTO t (v) VALUES ('in flight')").unwrap();
    publisher.batch_execute(&format!("BEGIN; SAVEPOINT s; {report}; RELEASE s")).unwrap();
    goes_on("released");
    publisher.batch_execute("COMMIT").unwrap();
    assert!(is_closed(&mut client));
    expect_sqlstate(writing.batch_execute("COMMIT"), "AG003");
    client.batch_execute("SELECT agd.new_incarnation('why')").unwrap();
    anchor(&mut client);
    expect_verified(&mut client);
}

#[test]
fn an_open_receipt_keeps_no_other_publisher_waiting() {
    let (database, mut client, _) = scene("receipts");
    let all = receipts(&mut client, "true", "file:///there");
    let (mut first, mut second) = (connect(&database, "reports_pub"), connect(&database, "reports_pub2"));
    let stamp = "SELECT agd.record_timestamp(origin, tree_size, root_hash, '2026-01-01') FROM agd.anchors";
    first.batch_execute(&format!("BEGIN; {all}; {stamp}")).unwrap();
    let count = "SELECT (SELECT count(*) FROM agd.publication), (SELECT count(*) FROM agd.timestamped)";
    let mut counts = || -> (i64, i64) {
        let row = client.query_one(count, &[]).unwrap();
        (row.get(0), row.get(1))
    };
    assert_eq!(counts(), (0, 0));
    second.batch_execute(&all).unwrap();
    second.batch_execute(stamp).unwrap();
    let told = counts();
    assert!(told.0 > 1 && told.1 > 1);
    first.batch_execute("COMMIT").unwrap();
    assert_eq!(counts(), told);
    first.batch_execute(&format!("BEGIN; {}", all.replace("there", "elsewhere"))).unwrap();
    expect_sqlstate(first.batch_execute("PREPARE TRANSACTION 'held'"), "0A000");
    assert_eq!(counts(), told);
    // Within a procedure's transactions, each for itself.
    let place = "SELECT count(*) FROM agd.publication WHERE published_to LIKE '%by-block%'";
    let block = all.replace("there", "by-block").replace("SELECT agd.", "PERFORM agd.").replace("; ", "; COMMIT; ");
    first.batch_execute(&format!("DO $do$ BEGIN {block}; COMMIT; END $do$")).unwrap();
    assert_eq!(second_count(&database, place), all.matches("SELECT").count() as i64);
    // What one transaction may keep is bounded.
    let one = all.split("; ").next().unwrap().to_owned();
    let many = one.replacen("SELECT ", "SELECT count(", 1) + ") FROM generate_series(1, 20000)";
    expect_sqlstate(second.batch_execute(&many), "54000");
}

fn second_count(database: &TestDb<'_>, sql: &str) -> i64 {
    database.connect().unwrap().query_one(sql, &[]).unwrap().get(0)
}

/// Writes under a ceiling go on when somebody holds a signature, not when somebody says so.
#[test]
fn a_ceiling_rests_on_signatures() {
    // In force once the scene is set: a ceiling holds writes.
    let cluster = start(Cluster::builder().setting("agd.ceiling_wait", "0"));
    let (database, mut client, origin) = scene_in(&cluster, "ceiling");
    client.batch_execute("ALTER SYSTEM SET agd.max_unpublished_anchors = 1").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    let mut writer = connect(&database, "reports_stranger");
    let write = "INSERT INTO t (v) VALUES ('x')";
    eventually("the ceiling holds", SOON, || writer.batch_execute(write).is_err());
    let mut publisher = connect(&database, "reports_pub");
    let rows = client.query("SELECT tree_size, root_hash, checkpoint FROM agd.anchors", &[]).unwrap();
    for row in &rows {
        let (size, root, text): (i64, Vec<u8>, String) = (row.get(0), row.get(1), row.get(2));
        let foreign = SigningKey::from_seed(&origin, &[8; 32]).unwrap();
        let foreign = SignedNote::sign(&text, &foreign).unwrap().to_string();
        for note in [None, Some(foreign.as_str())] {
            let record = "SELECT agd.record_publication($1, $2, $3, 'file:///nowhere', $4)";
            expect_sqlstate(publisher.execute(record, &[&origin, &size, &root, &note]), "AG004");
        }
    }
    expect_sqlstate(writer.batch_execute(write), "53400");
    let genuine = receipts(&mut client, "true", "file:///there");
    publisher.batch_execute(&genuine).unwrap();
    writer.batch_execute(write).unwrap();
}

#[test]
fn log_keys_are_the_platforms_and_a_revoked_one_is_believed_no_more() {
    let (database, mut client, origin) = scene("keys");
    let vkey = publishing::key(&origin).verifier_key().to_string();
    let another = SigningKey::from_seed(&origin, &[9; 32]).unwrap().verifier_key().to_string();
    for role in ["reports_pub", "reports_aud", "reports_stranger"] {
        let mut client = connect(&database, role);
        for sql in [
            format!("SELECT agd.register_log_key('{another}')"),
            format!("SELECT agd.revoke_log_key('{vkey}', 'why')"),
            format!("INSERT INTO agd.log_key (vkey) VALUES ('{another}')"),
            "DELETE FROM agd.log_key".to_owned(),
        ] {
            expect_sqlstate(client.batch_execute(&sql), "42501");
        }
    }
    let mut platform = connect(&database, "reports_plat");
    let elsewhere = SigningKey::from_seed("else/where", &[9; 32]).unwrap().verifier_key().to_string();
    let of_tenant = SigningKey::from_seed(&format!("{origin}/t/acme"), &[9; 32]).unwrap().verifier_key().to_string();
    let witness = agd_core::CosigningKey::from_seed(&origin, &[9; 32]).unwrap().verifier_key().to_string();
    let wrong_id = another.replacen('+', "+0", 1);
    for bad in ["", "x", "a+b+c", &elsewhere, &of_tenant, &witness, &wrong_id] {
        let error = expect_sqlstate(platform.execute("SELECT agd.register_log_key($1)", &[&bad]), "22023");
        expect_hint(&error, &format!("agd keygen --name {origin}"));
    }
    expect_sqlstate(platform.batch_execute("SELECT agd.register_log_key(NULL)"), "22023");
    expect_sqlstate(platform.execute("SELECT agd.register_log_key($1)", &[&vkey]), "23505");
    platform.execute("SELECT agd.register_log_key($1)", &[&another]).unwrap();
    // A decision like others: recorded, and never taken back by hand.
    for sql in ["DELETE FROM agd.log_key", "UPDATE agd.log_key SET vkey = vkey || 'x'", "TRUNCATE agd.log_key"] {
        expect_sqlstate(client.batch_execute(sql), "AG002");
    }
    for bad in ["", " "] {
        expect_sqlstate(platform.execute("SELECT agd.revoke_log_key($1, $2)", &[&vkey, &bad]), "22023");
    }
    // Reported before the key was revoked, committed after; and under a snapshot of before.
    let report = report(&origin, 100_000, [0; 32]);
    let (mut open, mut old) = (connect(&database, "reports_pub"), connect(&database, "reports_pub2"));
    open.batch_execute(&format!("BEGIN; {report}")).unwrap();
    old.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM agd.anchors").unwrap();
    platform.execute("SELECT agd.revoke_log_key($1, 'lost')", &[&vkey]).unwrap();
    expect_sqlstate(open.batch_execute("COMMIT"), "AG004");
    expect_sqlstate(old.batch_execute(&report), "AG004");
    old.batch_execute("ROLLBACK").unwrap();
    expect_sqlstate(open.batch_execute(&report), "AG004");
    let receipts = receipts(&mut client, "true", "file:///there");
    expect_sqlstate(open.batch_execute(&receipts), "AG004");
    expect_sqlstate(platform.execute("SELECT agd.revoke_log_key($1, 'again')", &[&vkey]), "55000");
    expect_sqlstate(platform.execute("SELECT agd.register_log_key($1)", &[&vkey]), "23505");
    expect_sqlstate(client.batch_execute("UPDATE agd.log_key SET revoked_at = NULL, revoke_reason = NULL"), "AG002");
    expect_open(&database, &mut client);
    anchor(&mut client);
    expect_verified(&mut client);
    let problems = client.query("SELECT problem FROM agd.verify_table('agd.log_key')", &[]).unwrap();
    assert!(problems.is_empty());
    let events: Vec<String> = client
        .query("SELECT action FROM agd.events WHERE relation = 'agd.log_key' ORDER BY committed_at", &[])
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .filter(|action| action != "DENIED")
        .collect();
    assert_eq!(events, ["INSERT", "INSERT", "UPDATE"]);
}
