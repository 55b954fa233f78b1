//! Timestamps and cosignatures of a real database: carried out, told, and proved from the files alone.

use crate::command_line::{self, answer, text};
use crate::openssl::server::{Answer, Server};
use crate::openssl::{Kind, Tsa};
use agd_live_tests::publishing;
use agd_live_tests::record::anchor;
use agd_live_tests::{Cluster, eventually, expect_sqlstate};
use postgres::Client;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const SCHEMA: &str = "
    CREATE EXTENSION agd;
    GRANT agd_publisher TO stamp_publisher;
    GRANT agd_auditor TO stamp_auditor;
    SELECT agd.create_tenant('acme');
    CREATE TABLE orders (id int PRIMARY KEY, tenant text NOT NULL);
    SELECT agd.guard('orders', 'tenant');
";

fn agd(arguments: &[&str]) -> (Option<i32>, String) {
    answer(command_line::agd().args(arguments))
}

#[track_caller]
fn good(arguments: &[&str]) -> String {
    let (code, said) = agd(arguments);
    assert_eq!(code, Some(0), "agd {arguments:?}: {said}");
    said
}

fn orders(client: &mut Client, ids: std::ops::Range<i32>) {
    let sql = "INSERT INTO orders SELECT i, 'acme' FROM generate_series($1::int, $2::int) i";
    client.execute(sql, &[&ids.start, &(ids.end - 1)]).unwrap();
    anchor(client);
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|item| item.unwrap().path()).collect();
    found.sort();
    found
}

#[test]
fn timestamps_and_cosignatures_of_a_real_database() {
    let cluster = Cluster::builder().setting("agd.anchor_max_age", "1h").start().unwrap();
    for role in ["stamp_publisher", "stamp_auditor"] {
        cluster.create_role(role, "").unwrap();
    }
    let database = cluster.database("stamp").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SCHEMA).unwrap();
    orders(&mut client, 1..301);

    let folder = cluster.scratch_file("stamp");
    std::fs::create_dir_all(folder.join("store")).unwrap();
    let tsa = Arc::new(Tsa::new(&folder.join("tsa"), Kind::default()));
    let server = Server::start(Arc::clone(&tsa));
    let [store, key, witness, policy] = ["store", "log.key", "witness.key", "policy.txt"].map(|name| folder.join(name));
    let platform: String = client.query_one("SELECT origin FROM agd.log WHERE tenant IS NULL", &[]).unwrap().get(0);
    let log = good(&["keygen", "--name", &platform, "--out", text(&key)]);
    let cosigner = good(&["keygen", "--witness", "--name", "witness.example/w1", "--out", text(&witness)]);
    publishing::register_vkey(&mut client, &log);
    std::fs::write(&policy, format!("log {log}witness w1 {cosigner}quorum w1\n")).unwrap();

    let connect = format!("host={} user=stamp_publisher dbname={}", cluster.socket_dir().display(), database.name());
    let (url, root) = (server.url(), tsa.root());
    let once = ["publish", "--once", "--database", &connect, "--store", text(&store), "--key", text(&key)];
    let stamped = ["--witness-key", text(&witness), "--tsa", &url, "--tsa-ca", text(&root), "--tsa-mode", "required"];
    let publish = [&once[..], &stamped].concat();
    let verify = ["verify", text(&store), "--policy", text(&policy), "--tsa-ca", text(&root)];

    // While the TSA is down the database hears nothing of the platform log.
    server.set(Answer::Status(503, "x: y"));
    let (code, said) = agd(&publish);
    assert!(code == Some(2) && said.contains("HTTP status 503"), "{said}");
    let unpublished = "SELECT count(*) FROM agd.anchors WHERE tenant IS NULL AND published_at IS NULL";
    let count = |client: &mut Client, sql: &str| -> i64 { client.query_one(sql, &[]).unwrap().get(0) };
    assert_eq!(
        count(&mut client, unpublished),
        count(&mut client, "SELECT count(*) FROM agd.anchors WHERE tenant IS NULL")
    );
    assert_eq!(count(&mut client, "SELECT count(*) FROM agd.anchors WHERE timestamped_at IS NOT NULL"), 0);

    server.set(Answer::Good);
    let said = good(&publish);
    assert!(said.contains(&format!("by {url}")), "{said}");
    assert_eq!(count(&mut client, unpublished), 0);
    // Every anchor of the platform log is covered by the one timestamp; tenants' anchors have none of their own.
    let platform_anchors = "SELECT count(*) FROM agd.anchors WHERE tenant IS NULL
                             AND timestamped_at BETWEEN clock_timestamp() - interval '10 minutes'
                                                    AND clock_timestamp() + interval '10 minutes'";
    let mut auditor = database.connect_as("stamp_auditor").unwrap();
    assert_eq!(
        count(&mut auditor, platform_anchors),
        count(&mut auditor, "SELECT count(*) FROM agd.anchors WHERE tenant IS NULL")
    );
    assert_eq!(
        count(&mut auditor, "SELECT count(*) FROM agd.anchors WHERE tenant IS NOT NULL AND timestamped_at IS NOT NULL"),
        0
    );
    let said = good(&verify);
    assert!(said.contains("cosigned by its quorum") && said.contains("timestamps   1"), "{said}");

    // Once more with nothing new: nobody is asked. Then with something new.
    let asked = server.asked();
    good(&publish);
    assert_eq!(server.asked(), asked);
    orders(&mut client, 301..310);
    assert!(count(&mut client, "SELECT count(*) FROM agd.anchors WHERE tenant IS NULL AND timestamped_at IS NULL") > 0);
    good(&publish);
    assert_eq!(
        count(&mut client, "SELECT count(*) FROM agd.anchors WHERE tenant IS NULL AND timestamped_at IS NULL"),
        0
    );
    good(&verify);

    // In a loop none is due within the interval, which a stored one has begun; told to stop, it gets one for the newest.
    let asked = server.asked();
    let looped =
        [&publish[..1], &publish[2..publish.len() - 2], &["--tsa-interval", "60m", "--interval", "100ms"]].concat();
    let mut child = command_line::agd().args(&looped).stdout(std::process::Stdio::null()).spawn().unwrap();
    orders(&mut client, 310..320);
    eventually("every anchor is published", Duration::from_secs(30), || count(&mut client, unpublished) == 0);
    let unstamped = "SELECT count(*) FROM agd.anchors WHERE tenant IS NULL AND timestamped_at IS NULL";
    assert!(count(&mut client, unstamped) > 0);
    assert_eq!(server.asked(), asked);
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!((count(&mut client, unstamped), server.asked()), (0, asked + 1));
    good(&verify);

    let stamps = files_in(&store.join(&platform).join("timestamps"));
    assert_eq!(stamps.len(), 3);
    for stamp in &stamps {
        let size = stamp.file_name().unwrap().to_str().unwrap().split_once('.').unwrap().0;
        let checkpoint = std::fs::read(store.join(&platform).join("checkpoints").join(size)).unwrap();
        assert_eq!(tsa.openssl_verifies(&std::fs::read(stamp).unwrap(), &checkpoint), Ok(()));
    }
    // The notes that the database keeps have both lines.
    let kept = "SELECT count(*) FROM agd.publication WHERE note NOT LIKE '%witness.example/w1 %'";
    assert_eq!(count(&mut client, kept), 0);

    // Somebody changes a stored timestamp.
    let (name, bytes) = (&stamps[0], std::fs::read(&stamps[0]).unwrap());
    std::fs::remove_file(name).unwrap();
    std::fs::write(name, std::fs::read(&stamps[1]).unwrap()).unwrap();
    let (code, said) = agd(&verify);
    let file = name.file_name().unwrap().to_str().unwrap();
    assert!(code == Some(1) && said.contains(file) && said.contains("other bytes"), "{said}");
    std::fs::write(name, bytes).unwrap();
    good(&verify);

    // The witness's line is taken off a checkpoint.
    let newest = store.join(&platform).join("checkpoint");
    let note = std::fs::read_to_string(&newest).unwrap();
    let stripped: String =
        note.lines().filter(|line| !line.contains("witness.example")).map(|line| format!("{line}\n")).collect();
    std::fs::remove_file(&newest).unwrap();
    std::fs::write(&newest, stripped).unwrap();
    let (code, said) = agd(&verify);
    assert!(code == Some(1) && said.contains("quorum of witnesses is not reached"), "{said}");
}

#[test]
fn only_an_anchor_that_is_there_is_said_to_be_stamped() {
    let cluster = Cluster::builder().setting("agd.anchor_max_age", "1h").start().unwrap();
    for role in ["stamp_publisher", "stamp_auditor"] {
        cluster.create_role(role, "").unwrap();
    }
    let database = cluster.database("stamp").unwrap();
    let mut client = database.connect().unwrap();
    client.batch_execute(SCHEMA).unwrap();
    orders(&mut client, 1..4);
    let mut publisher = database.connect_as("stamp_publisher").unwrap();
    let tell = "SELECT agd.record_timestamp(origin, tree_size, root_hash, '2026-01-01 00:00:01.5+00') FROM agd.anchors";
    for _ in 0..2 {
        publisher.batch_execute(tell).unwrap();
    }
    let rows = "SELECT count(*) = (SELECT count(*) FROM agd.anchors), min(stamped_at) = '2026-01-01 00:00:01.5+00' FROM agd.timestamped";
    let row = client.query_one(rows, &[]).unwrap();
    assert!(row.get::<_, bool>(0) && row.get::<_, bool>(1));
    for (arguments, sqlstate) in [
        ("origin, tree_size + 1, root_hash, clock_timestamp()", "22023"),
        ("origin, tree_size, sha256(root_hash), clock_timestamp()", "22023"),
        ("origin, tree_size, root_hash, 'infinity'", "22023"),
        ("origin, tree_size, root_hash, NULL", "22023"),
        ("origin || 'x', tree_size, root_hash, clock_timestamp()", "22023"),
    ] {
        let sql = format!("SELECT agd.record_timestamp({arguments}) FROM agd.anchors LIMIT 1");
        expect_sqlstate(publisher.batch_execute(&sql), sqlstate);
    }
    let mut auditor = database.connect_as("stamp_auditor").unwrap();
    expect_sqlstate(auditor.batch_execute(tell), "42501");
    // agd.verify() has nothing against it.
    let wrong: i64 = auditor.query_one("SELECT count(*) FROM agd.verify() WHERE NOT ok", &[]).unwrap().get(0);
    assert_eq!(wrong, 0);
}
