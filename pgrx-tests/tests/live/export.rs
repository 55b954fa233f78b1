//! Evidence from a real database: what `agd export` takes out is what was anchored, for whoever may read it; what was changed
//! in the database shows; proofs and their check.

use crate::command_line::{self, answer};
use agd_live_tests::publishing;
use agd_live_tests::record::anchor;
use agd_live_tests::{Cluster, TestDb, expect_sqlstate};
use postgres::Client;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Events are anchored when a test says so.
const PATIENT: (&str, &str) = ("agd.anchor_max_age", "1h");

const SETUP: &str = r#"
    SELECT agd.create_tenant('acme'), agd.create_tenant('zeta');
    SELECT agd.map_role('export_acme', 'acme');
    CREATE TABLE mine (tenant text, id int, v text, at timestamptz DEFAULT now(), PRIMARY KEY (tenant, id));
    CREATE TABLE open (id int PRIMARY KEY, v text);
    SELECT agd.guard('mine', tenant_column => 'tenant'), agd.guard('open');
    INSERT INTO mine SELECT CASE WHEN i % 3 = 0 THEN 'zeta' ELSE 'acme' END, i, E'tab\t nl\n "q" \\ é😀' || i
      FROM generate_series(1, 1500) i;
    BEGIN; SELECT agd.set_cause('ticket 4711'); UPDATE mine SET v = NULL WHERE id % 50 = 0; COMMIT;
    DELETE FROM mine WHERE id % 60 = 0;
    INSERT INTO open VALUES (1, repeat('long ', 300000)), (2, NULL);
"#;

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let cluster = Cluster::builder().setting(PATIENT.0, PATIENT.1).start().unwrap();
        drop(cluster.agd_database("roles").unwrap());
        for (role, group) in
            [("export_acme", "agd_tenant"), ("export_auditor", "agd_auditor"), ("export_publisher", "agd_publisher")]
        {
            cluster.create_role(role, &format!("IN ROLE {group}")).unwrap();
        }
        cluster.create_role("export_nobody", "").unwrap();
        cluster
    })
}

/// A database with a record, published.
struct Scene {
    database: TestDb<'static>,
    client: Client,
    folder: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Scene {
    fn new(stem: &str) -> Self {
        let database = cluster().agd_database(stem).unwrap();
        let mut client = database.connect().unwrap();
        client.batch_execute(SETUP).unwrap();
        let folder = std::env::temp_dir().join(format!("agd-export-{}-{stem}", std::process::id()));
        std::fs::create_dir_all(folder.join("store")).unwrap();
        let mut scene = Self { database, client, folder };
        let name: String =
            scene.client.query_one("SELECT origin FROM agd.log WHERE tenant IS NULL", &[]).unwrap().get(0);
        let (code, vkey) = scene.agd(&["keygen", "--name", &name, "--out", "log.key"]);
        assert_eq!(code, Some(0), "{vkey}");
        std::fs::write(scene.folder.join("policy.txt"), format!("log {vkey}quorum none\n")).unwrap();
        publishing::register_vkey(&mut scene.client, &vkey);
        anchor(&mut scene.client);
        scene.publish();
        scene
    }

    fn publish(&self) {
        let (code, said) = self.agd(&[
            "publish",
            "--once",
            "--store",
            "store",
            "--key",
            "log.key",
            "--database",
            &self.url("postgres"),
        ]);
        assert_eq!(code, Some(0), "{said}");
    }

    fn url(&self, role: &str) -> String {
        format!("host={} user={role} dbname={}", cluster().socket_dir().display(), self.database.name())
    }

    /// Runs `agd` in the scene's folder: its exit code and what it said.
    fn agd(&self, arguments: &[&str]) -> (Option<i32>, String) {
        answer(command_line::agd().args(arguments).current_dir(&self.folder))
    }

    fn export(&self, role: &str, out: &str, more: &[&str]) -> (Option<i32>, String) {
        let _ = std::fs::remove_file(self.folder.join(out));
        let url = self.url(role);
        self.agd(&[&["export", "--database", &url, "--out", out], more].concat())
    }

    /// The verdict on a dump, in JSON.
    fn verify(&self, events: &str) -> (Option<i32>, serde_json::Value) {
        let (code, said) = self.agd(&["verify", "store", "--policy", "policy.txt", "--json", "--events", events]);
        (code, serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}")))
    }

    fn lines(&self, out: &str) -> Vec<String> {
        std::fs::read_to_string(self.folder.join(out)).unwrap().lines().map(str::to_owned).collect()
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_is_exported_is_what_was_anchored() {
    let mut scene = Scene::new("export_all");
    let (code, said) = scene.export("postgres", "all.jsonl", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(mode(&scene.folder.join("all.jsonl")), 0o600);
    let (code, json) = scene.verify("all.jsonl");
    assert_eq!(code, Some(0), "{json}");
    let anchored: i64 = scene
        .client
        .query_one("SELECT sum(s)::bigint FROM (SELECT max(tree_size) s FROM agd.anchors GROUP BY origin) a", &[])
        .unwrap()
        .get(0);
    let logs = json["events"]["logs"].as_array().unwrap();
    assert_eq!(logs.len(), 3);
    let sum = |field: &str| logs.iter().map(|log| log[field].as_i64().unwrap()).sum::<i64>();
    assert_eq!((sum("proven"), sum("missing"), sum("images_erased")), (anchored, 0, 0));
    let images: i64 = scene
        .client
        .query_one("SELECT sum(num_nonnulls(row_key, old, new))::bigint FROM agd.event", &[])
        .unwrap()
        .get(0);
    assert_eq!(sum("images_proven"), images);
    // The images are the bytes that the database has.
    let lines = scene.lines("all.jsonl");
    let long = lines.iter().find(|line| line.contains("long long")).unwrap();
    let line: serde_json::Value = serde_json::from_str(long).unwrap();
    assert_eq!(line.to_string(), *long, "canonical JSON");
    let stored: String = scene
        .client
        .query_one("SELECT new::text FROM agd.event WHERE length(new::text) > 1000000", &[])
        .unwrap()
        .get(0);
    assert_eq!(line["new"], stored);
    // A file is never overwritten.
    let url = scene.url("postgres");
    assert_eq!(scene.agd(&["export", "--database", &url, "--out", "all.jsonl"]).0, Some(2));
    // The same on standard output.
    let (code, said) = scene.export("postgres", "-", &["--json"]);
    assert_eq!(code, Some(0));
    assert!(said.starts_with(&lines.join("\n")), "{}", said.len());
}

#[test]
fn who_may_read_what() {
    let mut scene = Scene::new("export_roles");
    let (code, said) = scene.export("export_auditor", "auditor.jsonl", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("row images are for superusers and the tenant itself"), "{said}");
    let (code, json) = scene.verify("auditor.jsonl");
    assert_eq!((code, json["events"]["logs"].as_array().unwrap().len()), (Some(0), 3), "{json}");
    let text = scene.lines("auditor.jsonl").join("\n");
    assert!(!text.contains("\"salt\"") && !text.contains("long") && text.contains("ticket 4711"));

    let (code, said) = scene.export("export_acme", "acme.jsonl", &[]);
    assert_eq!(code, Some(0), "{said}");
    let (code, json) = scene.verify("acme.jsonl");
    let logs = json["events"]["logs"].as_array().unwrap();
    assert_eq!((code, logs.len()), (Some(0), 1), "{json}");
    assert!(logs[0]["images_proven"].as_i64().unwrap() > 2000, "{json}");
    assert!(!scene.lines("acme.jsonl").join("\n").contains("zeta"));
    let (code, _) = scene.export("export_acme", "acme-bare.jsonl", &["--without-images"]);
    assert_eq!(code, Some(0));
    assert!(!scene.lines("acme-bare.jsonl").join("\n").contains("\"salt\""));

    for (role, what) in [("export_nobody", "permission denied"), ("export_publisher", "permission denied")] {
        let (code, said) = scene.export(role, "none.jsonl", &[]);
        assert_eq!(code, Some(2), "{role}: {said}");
        assert!(said.contains(what), "{said}");
        assert!(!scene.folder.join("none.jsonl").exists(), "no half file");
    }
    // Another tenant's log is no log at all, and images never come without the right to them.
    let zeta: String = scene.client.query_one("SELECT origin FROM agd.log WHERE tenant = 'zeta'", &[]).unwrap().get(0);
    let mut acme = scene.database.connect_as("export_acme").unwrap();
    expect_sqlstate(acme.query("SELECT * FROM agd.export_events($1, 0, 1)", &[&zeta]), "22023");
    let mut auditor = scene.database.connect_as("export_auditor").unwrap();
    let row = auditor
        .query_one(
            "SELECT images, salt, row_key, old, new, entry IS NOT NULL FROM agd.export_events($1, 0, 1)",
            &[&zeta],
        )
        .unwrap();
    let hidden = [1, 2, 3, 4].map(|column| row.get::<_, Option<Vec<u8>>>(column));
    assert_eq!((row.get::<_, bool>(0), hidden, row.get::<_, bool>(5)), (false, [None, None, None, None], true));
    for (first, last) in [(-1_i64, 1_i64), (1, 0), (0, 1 << 40)] {
        expect_sqlstate(auditor.query("SELECT * FROM agd.export_events($1, $2, $3)", &[&zeta, &first, &last]), "22023");
    }
    expect_sqlstate(auditor.query("SELECT * FROM agd.export_events(NULL, 0, 1)", &[]), "22023");
}

#[test]
fn a_time_and_a_tenant_choose_a_part() {
    let mut scene = Scene::new("export_part");
    let now: String = scene.client.query_one("SELECT clock_timestamp()::text", &[]).unwrap().get(0);
    scene
        .client
        .batch_execute("INSERT INTO mine SELECT 'acme', i, 'later' FROM generate_series(5001, 5010) i")
        .unwrap();
    anchor(&mut scene.client);
    let before = scene.export("postgres", "before.jsonl", &["--until", &now, "--tenant", "acme"]);
    assert_eq!(before.0, Some(0), "{}", before.1);
    assert_eq!(scene.verify("before.jsonl").0, Some(0));
    let after = scene.export("postgres", "after.jsonl", &["--since", &now, "--tenant", "acme"]);
    assert_eq!((after.0, scene.lines("after.jsonl").len()), (Some(0), 11), "{}", after.1);
    // Not published yet: that cannot be checked.
    assert_eq!(scene.verify("after.jsonl").0, Some(2));
    scene.publish();
    let (code, json) = scene.verify("after.jsonl");
    assert_eq!((code, json["events"]["logs"][0]["proven"].as_i64()), (Some(0), Some(10)), "{json}");
    assert_eq!(scene.export("postgres", "none.jsonl", &["--tenant", "nobody"]).0, Some(2));
    assert_eq!(scene.export("postgres", "none.jsonl", &["--since", "yesteryear"]).0, Some(2));
}

#[test]
fn what_was_changed_in_the_database_shows() {
    let mut scene = Scene::new("export_tamper");
    let ids: Vec<String> = scene
        .client
        .query(
            "SELECT event_id FROM agd.events WHERE tenant = 'acme' AND leaf_index IN (5, 300, 600) ORDER BY leaf_index",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    let of = |id: &str| {
        let (xact_id, n) = id.split_once('-').unwrap();
        format!("xact_id::text = '{xact_id}' AND n = {n}")
    };
    let mut tamperer = scene.database.tamperer().unwrap();
    for change in [
        format!("UPDATE agd.event SET new = '{{\"v\": 1}}' WHERE {}", of(&ids[0])),
        format!("UPDATE agd.event SET relation = 'public.other' WHERE {}", of(&ids[1])),
        format!("DELETE FROM agd.event WHERE {}", of(&ids[2])),
    ] {
        tamperer.batch_execute(&change).unwrap();
    }
    tamperer.commit().unwrap();
    let (code, said) = scene.export("postgres", "all.jsonl", &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&format!("MISSING in the database: event {}, entry 600", ids[2])), "{said}");
    let (code, json) = scene.verify("all.jsonl");
    assert_eq!(code, Some(1));
    let findings: Vec<&str> = json["events"]["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["message"].as_str().unwrap())
        .collect();
    assert_eq!(findings.len(), 3, "{findings:?}");
    assert!(findings[0].contains(&ids[0]) && findings[0].contains("was changed: new is not"), "{findings:?}");
    assert!(findings[1].contains(&ids[1]) && findings[1].contains("was changed: relation is not"), "{findings:?}");
    assert!(findings[2].contains(&ids[2]) && findings[2].contains("is missing"), "{findings:?}");
}

#[test]
fn proofs_from_the_database_and_from_the_store_are_one() {
    let mut scene = Scene::new("export_prove");
    let row = scene
        .client
        .query_one("SELECT event_id, leaf_index FROM agd.events WHERE tenant = 'acme' AND leaf_index = 400", &[])
        .unwrap();
    let event_id: String = row.get(0);
    let url = scene.url("export_acme");
    let by_database = scene.agd(&["prove", &event_id, "--database", &url, "--out", "a.tlog-proof"]);
    assert_eq!(by_database.0, Some(0), "{}", by_database.1);
    assert_eq!(scene.agd(&["prove", &event_id, "--store", "store", "--out", "b.tlog-proof"]).0, Some(0));
    assert_eq!(scene.lines("a.tlog-proof"), scene.lines("b.tlog-proof"));
    assert_eq!(scene.export("export_acme", "acme.jsonl", &[]).0, Some(0));
    let (code, said) = scene.agd(&["verify-proof", "a.tlog-proof", "--policy", "policy.txt", "--event", "acme.jsonl"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("event        {event_id}\n")) && said.contains("\nkey          {"), "{said}");
    // Of others' events nothing is learned.
    let other: String =
        scene.client.query_one("SELECT event_id FROM agd.events WHERE tenant = 'zeta' LIMIT 1", &[]).unwrap().get(0);
    let (code, said) = scene.agd(&["prove", &other, "--database", &url]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("there is no event"), "{said}");
}
