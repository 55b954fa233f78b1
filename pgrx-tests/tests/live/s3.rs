//! A real database published into a real S3 server with Object Lock: locked, proved from the bucket alone, and refused once
//! the database says something else.

use crate::command_line::{self, answer, text};
use crate::s3_server::S3Server;
use agd_live_tests::publishing;
use agd_live_tests::record::{anchor, expect_verified};
use agd_live_tests::{Cluster, Tamperer, eventually};
use postgres::Client;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

const SCHEMA: &str = "
    CREATE EXTENSION agd;
    GRANT agd_publisher TO bucket_publisher;
    SELECT agd.create_tenant('acme');
    CREATE TABLE orders (id int PRIMARY KEY, tenant text NOT NULL);
    SELECT agd.guard('orders', 'tenant');
";

/// Where the tests publish: the bucket, and the prefix in it.
const STORE: &str = "s3://worm/evidence/db1";

struct Scene {
    cluster: Cluster,
    server: S3Server,
    key: PathBuf,
    policy: PathBuf,
}

fn orders(client: &mut Client, ids: std::ops::Range<i32>) {
    let sql = "INSERT INTO orders SELECT i, 'acme' FROM generate_series($1::int, $2::int) i";
    client.execute(sql, &[&ids.start, &(ids.end - 1)]).unwrap();
    anchor(client);
}

impl Scene {
    /// None where there is no S3 server to be had, which is said.
    fn new() -> Option<Self> {
        let server = S3Server::start()?;
        server.locked_bucket("worm", "COMPLIANCE");
        let cluster = Cluster::builder().setting("agd.anchor_max_age", "1h").start().unwrap();
        cluster.create_role("bucket_publisher", "").unwrap();
        let mut client = cluster.superuser().unwrap();
        client.batch_execute(SCHEMA).unwrap();
        orders(&mut client, 0..300);
        let folder = cluster.scratch_file("keys");
        std::fs::create_dir_all(&folder).unwrap();
        let (key, policy) = (folder.join("log.key"), folder.join("policy.txt"));
        let scene = Self { cluster, server, key, policy };
        let platform: String = client.query_one("SELECT origin FROM agd.log WHERE tenant IS NULL", &[]).unwrap().get(0);
        let (code, vkey) = scene.agd(&["keygen", "--name", &platform, "--out", text(&scene.key)]);
        assert_eq!(code, Some(0), "{vkey}");
        std::fs::write(&scene.policy, format!("log {}\nquorum none\n", vkey.trim())).unwrap();
        publishing::register_vkey(&mut client, &vkey);
        Some(scene)
    }

    fn superuser(&self) -> Client {
        self.cluster.superuser().unwrap()
    }

    /// Runs `agd` with the server's address and keys in its environment.
    fn agd(&self, arguments: &[&str]) -> (Option<i32>, String) {
        answer(command_line::agd().args(arguments).envs(self.server.environment()))
    }

    fn publish(&self) -> (Option<i32>, String) {
        let database = format!("host={} user=bucket_publisher dbname=postgres", self.cluster.socket_dir().display());
        let to = ["--store", STORE, "--key", text(&self.key), "--require-object-lock"];
        self.agd(&[&["publish", "--once", "--database", &database][..], &to].concat())
    }

    /// What `agd verify` says of the bucket, which must hold.
    #[track_caller]
    fn verify(&self) -> Value {
        let (code, said) = self.agd(&["verify", STORE, "--policy", text(&self.policy), "--json"]);
        assert_eq!(code, Some(0), "{said}");
        serde_json::from_str(&said).unwrap()
    }

    /// Changes the record behind every guard, in a session of its own.
    fn tamper(&self, sql: &str) {
        let mut tamperer = Tamperer::new(self.superuser()).unwrap();
        let changed = tamperer.execute(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        assert!(changed > 0, "changed nothing: {sql}");
        tamperer.commit().unwrap();
    }

    /// A round that refuses acme's log at this size, with exit code 1 and nothing more in the bucket under that log's name.
    #[track_caller]
    fn expect_refused(&self, size: u64) -> String {
        let of_acme = |objects: std::collections::BTreeMap<String, String>| -> Vec<_> {
            objects.into_iter().filter(|(name, _)| name.contains("/t/acme/")).collect()
        };
        let before = of_acme(self.server.objects("worm"));
        let (code, said) = self.publish();
        assert_eq!(code, Some(1), "{said}");
        let (log, at) = ("/t/acme: not a continuation", format!("at size {size}: "));
        assert!(said.contains(log) && said.contains(&at) && said.contains("nothing was signed"), "{said}");
        assert_eq!(of_acme(self.server.objects("worm")), before);
        said
    }
}

#[test]
fn a_database_is_published_into_a_bucket_that_locks_it() {
    let Some(scene) = Scene::new() else { return };
    let (code, said) = scene.publish();
    assert_eq!(code, Some(0), "{said}");
    let report = scene.verify();
    let size = |report: &Value, tenant: &str| {
        let logs = report["logs"].as_array().unwrap().clone();
        logs.into_iter().find(|log| log["tenant"] == tenant).unwrap()["size"].as_u64().unwrap()
    };
    assert_eq!(size(&report, "acme"), 300);
    let mut client = scene.superuser();
    let places = "SELECT DISTINCT published_to FROM agd.anchors";
    let places: Vec<Option<String>> = client.query(places, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(places, [Some(STORE.to_owned())], "every anchor is told to be there");

    // Something new: what is there stays, and each version of each object is locked for its time, whoever asks.
    let before = scene.server.objects("worm");
    orders(&mut client, 300..520);
    assert_eq!(scene.publish().0, Some(0));
    assert_eq!(size(&scene.verify(), "acme"), 520);
    let after = scene.server.objects("worm");
    for (name, bytes) in before.iter().filter(|(name, _)| !name.ends_with("/checkpoint")) {
        assert_eq!(after.get(name), Some(bytes), "{name}");
    }
    let (now, mut locked) = (client.query_one("SELECT now()::text", &[]).unwrap().get::<_, String>(0), 0);
    for name in after.keys() {
        for version in scene.server.versions("worm", name) {
            let which = json!({ "Bucket": "worm", "Key": name, "VersionId": version });
            let head = scene.server.call("head_object", which.clone()).unwrap();
            assert_eq!(head["ObjectLockMode"], "COMPLIANCE", "{name}");
            // Both begin with the date, and the lock is for a day.
            let until = head["ObjectLockRetainUntilDate"].as_str().unwrap();
            assert!(until[..10] > now[..10], "{name} is locked until {until}, it is {now}");
            assert_eq!(scene.server.call("delete_object", which), Err("AccessDenied".to_owned()), "{name}");
            locked += 1;
        }
    }
    assert!(locked > after.len(), "each checkpoint has two versions");
}

#[test]
fn a_database_that_says_something_else_is_refused() {
    let Some(scene) = Scene::new() else { return };
    assert_eq!(scene.publish().0, Some(0));
    let mut client = scene.superuser();
    orders(&mut client, 300..520);

    // An event that is anchored and not published yet is changed: its anchor says something else than its entries.
    let event = "tenant = 'acme' AND new->>'id' = '310'";
    scene.tamper(&format!("UPDATE agd.event SET row_key = '{{\"id\":311}}' WHERE {event}"));
    scene.expect_refused(512);
    let denied = "SELECT count(*) FROM agd.events WHERE action = 'DENIED' AND tenant = 'acme' AND body::json->>'attempted' = 'PUBLISH'";
    eventually("the refusal is told in the tenant's log", Duration::from_secs(30), || {
        scene.superuser().query_one(denied, &[]).unwrap().get::<_, i64>(0) > 0
    });
    // The platform log says how far acme's log should go: whoever has nothing but the bucket sees that it does not.
    let (code, said) = scene.agd(&["verify", STORE, "--policy", text(&scene.policy)]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/t/acme") && said.contains("the log ends at size 300"), "{said}");
    let found = "SELECT origin FROM agd.verify(full_scan => true) WHERE NOT ok AND origin LIKE '%/t/acme'";
    assert!(!client.query(found, &[]).unwrap().is_empty(), "and agd.verify() finds it");
    scene.tamper(&format!("UPDATE agd.event SET row_key = '{{\"id\":310}}' WHERE {event}"));
    expect_verified(&mut scene.superuser());
    let (code, said) = scene.publish();
    assert_eq!(code, Some(0), "what was put back is published: {said}");

    // A published anchor is rewritten: the bucket has the one that was signed.
    let acme = "log_id = (SELECT log_id FROM agd.log WHERE tenant = 'acme') AND tree_size = 512";
    scene.tamper(&format!("UPDATE agd.checkpoint SET root_hash = sha256('x') WHERE {acme}"));
    let said = scene.expect_refused(512);
    let rewritten = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881";
    assert!(said.contains(rewritten), "both roots are named: {said}");
    scene.verify();
}
