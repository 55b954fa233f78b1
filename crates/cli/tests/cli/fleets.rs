//! Fleets in a dump, offline: a true story holds, and each falsehood in it is found, named by fleet and event, although whoever
//! told it could write the log before it was anchored: entries, digests, roots and signatures of the log are all in order.

use std::path::Path;
use std::sync::atomic::AtomicU64;

use crate::common::{FakeDatabase, PLATFORM, START, policy, publish, tenant_origin};
use agd_cli::report;
use agd_cli::store::Reader;
use agd_cli::verify::findings::Finding;
use agd_cli::verify::{self, Report, events};
use agd_core::fleet::{Agent, Batch, Statement, Vector, close_body, context_digest};
use agd_core::{DumpedEvent, Entry, EventId, Image, ImageKind, LogRange, dump, image_digest};
use ed25519_dalek::{Signer as _, SigningKey};

/// An event, as somebody wrote it.
#[derive(Clone)]
struct Told {
    tenant: Option<&'static str>,
    relation: Option<&'static str>,
    action: &'static str,
    old: Option<String>,
    new: Option<String>,
    body: Option<String>,
    fleet_id: Option<String>,
}

fn row(tenant: Option<&'static str>, relation: &'static str, old: Option<&str>, new: &str) -> Told {
    Told {
        tenant,
        relation: Some(relation),
        action: if old.is_some() { "UPDATE" } else { "INSERT" },
        old: old.map(str::to_owned),
        new: Some(new.to_owned()),
        body: None,
        fleet_id: None,
    }
}

/// A time as an image has it: so many seconds after the beginning of the story.
fn at(second: i64) -> String {
    assert!((0..60).contains(&second));
    format!("2025-01-01T00:00:{second:02}.5+00:00")
}

fn micros(second: i64) -> i64 {
    START + second * 1_000_000 + 500_000
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

/// What stands in a fleet's row when, and what was signed.
struct Fleet {
    tenant: &'static str,
    cause: &'static str,
    generation: u32,
    minted: i64,
    deadline: i64,
}

impl Fleet {
    fn vector(&self) -> Vector {
        Vector::new(self.tenant, "pair", 1, self.cause, self.generation).unwrap()
    }

    fn id(&self) -> String {
        self.vector().fleet_id()
    }

    fn agents(&self) -> Vec<Agent> {
        let scope =
            |role: &str| format!(r#"{{"role": "{role}", "fleet": "{}", "tenant": "{}"}}"#, self.id(), self.tenant);
        let agent =
            |role: &str, goals: &str| Agent { role: role.into(), goals: goals.into(), memory_scope: scope(role) };
        vec![agent("reader", r#"["reads", 1.50]"#), agent("writer", "[]")]
    }

    fn statement(&self) -> Statement {
        Statement {
            origin: PLATFORM.into(),
            vector: self.vector(),
            minted_at: micros(self.minted),
            deadline: micros(self.deadline),
            context: context_digest(&self.agents()),
        }
    }

    /// Its row in a state.
    fn row(&self, state: &str, times: [Option<i64>; 4], reason: Option<&str>) -> String {
        let vector = self.vector();
        let time = |second: Option<i64>| second.map_or("null".to_owned(), |second| format!("\"{}\"", at(second)));
        let [signed, activated, sealed, cancelled] = times.map(time);
        let reason = reason.map_or("null".to_owned(), |reason| format!("\"{reason}\""));
        format!(
            r#"{{"fleet_id":"{}","digest":"\\x{}","tenant":"{}","template":"pair","template_version":1,"cause_snapshot":"{}","unicode_version":"17.0.0","cause_digest":"\\x{}","generation":{},"origin":"{PLATFORM}","agents":2,"context_digest":"\\x{}","state":"{state}","minted_at":"{}","countersign_deadline":"{}","signed_at":{signed},"activated_at":{activated},"sealed_at":{sealed},"cancelled_at":{cancelled},"reason":{reason}}}"#,
            self.id(),
            hex(&vector.digest()),
            self.tenant,
            self.cause,
            hex(vector.cause_digest()),
            self.generation,
            hex(&context_digest(&self.agents())),
            at(self.minted),
            at(self.deadline),
        )
    }

    fn agent(&self, agent: &Agent, archived: Option<i64>) -> String {
        let archived = archived.map_or("null".to_owned(), |second| format!("\"{}\"", at(second)));
        let Agent { role, goals, memory_scope } = agent;
        format!(
            r#"{{"fleet_id":"{}","role":"{role}","tenant":"{}","goals":{goals},"memory_scope":{memory_scope},"archived_at":{archived}}}"#,
            self.id(),
            self.tenant,
        )
    }

    fn request(&self, state: &str, closed: Option<i64>) -> String {
        let closed = closed.map_or("null".to_owned(), |second| format!("\"{}\"", at(second)));
        format!(
            r#"{{"fleet_id":"{}","tenant":"{}","requested_at":"{}","deadline":"{}","state":"{state}","closed_at":{closed}}}"#,
            self.id(),
            self.tenant,
            at(self.minted),
            at(self.deadline),
        )
    }

    fn signature(&self, duty: &str, second: i64) -> String {
        let batch = Batch::new([&self.statement()]).unwrap();
        let (signer, key, text, place) = if duty == "coordinator" {
            ("Loom", 1, self.statement().to_string(), r#""batch_size":null,"batch_index":null,"batch_path":null"#)
        } else {
            ("River", 2, batch.statement(), r#""batch_size":1,"batch_index":0,"batch_path":"\\x""#)
        };
        format!(
            r#"{{"fleet_id":"{}","duty":"{duty}","tenant":"{}","signer":"{signer}","signature":"\\x{}","signed_at":"{}",{place}}}"#,
            self.id(),
            self.tenant,
            hex(&signing_key(key).sign(text.as_bytes()).to_bytes()),
            at(second),
        )
    }
}

fn signing_key(fill: u8) -> SigningKey {
    SigningKey::from_bytes(&[fill; 32])
}

const FLEET: &str = "agd.tenant_agent_fleet";
const AGENT: &str = "agd.fleet_agent";
const REQUEST: &str = "agd.countersign_request";
const SIGNATURE: &str = "agd.fleet_signature";

fn main_fleet() -> Fleet {
    Fleet { tenant: "acme", cause: "contract 4711", generation: 1, minted: 5, deadline: 40 }
}

/// A fleet from its mint to its seal, what it did, and its log's end; another one whose window passed.
fn story() -> Vec<Told> {
    let signer = |name: &str, duty: &str, fill: u8| {
        let image = format!(
            r#"{{"signer":"{name}","duty":"{duty}","public_key":"\\x{}","registered_at":"{}","revoked_at":null,"revoked_reason":null}}"#,
            hex(signing_key(fill).verifying_key().as_bytes()),
            at(1),
        );
        row(None, "agd.signer", None, &image)
    };
    let template = r#"{"template":"pair","version":1,"roles":{"reader": {}, "writer": {}},"created_at":"2025-01-01T00:00:02+00:00"}"#;
    let mut story = vec![
        signer("Loom", "coordinator", 1),
        signer("River", "countersigner", 2),
        row(None, "agd.fleet_template", None, template),
    ];
    let mint = |fleet: &Fleet, story: &mut Vec<Told>| {
        let acme = Some("acme");
        story.push(row(acme, FLEET, None, &fleet.row("pending", [None; 4], None)));
        story.extend(fleet.agents().iter().map(|agent| row(acme, AGENT, None, &fleet.agent(agent, None))));
        story.push(row(acme, REQUEST, None, &fleet.request("open", None)));
    };
    let acme = Some("acme");
    let missed = Fleet { cause: "nobody came", minted: 3, deadline: 4, ..main_fleet() };
    mint(&missed, &mut story);
    let lost = [None, None, None, Some(4)];
    story.push(row(
        acme,
        FLEET,
        Some(&missed.row("pending", [None; 4], None)),
        &missed.row("cancelled", lost, Some("the countersign window was missed")),
    ));
    story.push(row(acme, REQUEST, Some(&missed.request("open", None)), &missed.request("cancelled", Some(4))));
    for agent in missed.agents() {
        story.push(row(acme, AGENT, Some(&missed.agent(&agent, None)), &missed.agent(&agent, Some(4))));
    }

    let fleet = main_fleet();
    mint(&fleet, &mut story);
    let pending = fleet.row("pending", [None; 4], None);
    let signed = fleet.row("pending", [Some(10), None, None, None], None);
    let active = fleet.row("active", [Some(10), Some(20), None, None], None);
    let sealed = fleet.row("sealed", [Some(10), Some(20), Some(30), None], Some("over"));
    story.push(row(acme, FLEET, Some(&pending), &signed));
    story.push(row(acme, SIGNATURE, None, &fleet.signature("coordinator", 10)));
    story.push(row(acme, FLEET, Some(&signed), &active));
    story.push(row(acme, REQUEST, Some(&fleet.request("open", None)), &fleet.request("granted", Some(20))));
    story.push(row(acme, SIGNATURE, None, &fleet.signature("countersigner", 20)));
    story.push(Told { fleet_id: Some(fleet.id()), ..row(acme, "public.orders", None, r#"{"id":1}"#) });
    story.push(row(acme, FLEET, Some(&active), &sealed));
    for agent in fleet.agents() {
        story.push(row(acme, AGENT, Some(&fleet.agent(&agent, None)), &fleet.agent(&agent, Some(30))));
    }
    story.push(Told {
        tenant: acme,
        relation: None,
        action: "LOG.CLOSE",
        old: None,
        new: None,
        body: Some(close_body(&fleet.id())),
        fleet_id: None,
    });
    story
}

/// Tables, each with its guard and its primary key.
const TABLES: [(&str, &str, &[&str]); 7] = [
    ("agd.signer", "0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c11", &["signer"]),
    ("agd.fleet_template", "0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c12", &["template", "version"]),
    (FLEET, "0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c13", &["fleet_id"]),
    (AGENT, "0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c14", &["fleet_id", "role"]),
    (REQUEST, "0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c15", &["fleet_id"]),
    (SIGNATURE, "0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c16", &["fleet_id", "duty"]),
    ("public.orders", "0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c17", &["id"]),
];

fn guard_of(relation: &str) -> &'static str {
    TABLES.iter().find(|(table, ..)| *table == relation).unwrap().1
}

/// The key of a row as the gate records it.
fn key_of(relation: &str, image: &str) -> String {
    let columns = TABLES.iter().find(|(table, ..)| *table == relation).unwrap().2;
    let image: serde_json::Value = serde_json::from_str(image).unwrap();
    let members: Vec<String> = columns.iter().map(|column| format!("\"{column}\":{}", image[column])).collect();
    format!("{{{}}}", members.join(","))
}

/// The story in a database's logs, published; and its dump, with these logs' images.
fn tell(dir: &Path, story: &[Told], images_of: &[Option<&str>]) -> Report {
    let mut database = FakeDatabase::new();
    let mut lines = Vec::new();
    for told in story {
        database.xact += 1;
        let xact = database.xact;
        let salt = [xact as u8; 16];
        let digest = |kind, image: &Option<String>| image.as_ref().map(|text| image_digest(kind, &salt, text));
        let key = told.relation.map(|relation| key_of(relation, told.old.as_ref().or(told.new.as_ref()).unwrap()));
        let entry = Entry {
            event_id: EventId { xact_id: xact, n: 1 },
            action: told.action,
            at: START + xact as i64 * 1_000_000,
            committed_at: START + xact as i64 * 1_000_000 + 7,
            tenant: told.tenant,
            relation: told.relation,
            guard_id: told.relation.map(guard_of),
            row_key: digest(ImageKind::Key, &key),
            old: digest(ImageKind::Old, &told.old),
            new: digest(ImageKind::New, &told.new),
            body: told.body.as_deref(),
            session_user_name: "app",
            role_name: "app",
            principal: None,
            fleet_id: told.fleet_id.as_deref(),
            cause: None,
            binding: "role",
            application_name: None,
            client_addr: None,
        };
        let mut bytes = Vec::new();
        entry.encode_into(&mut bytes);
        let origin = told.tenant.map_or(PLATFORM.to_owned(), tenant_origin);
        let log = database.logs.entry(origin.clone()).or_default();
        log.tenant = told.tenant.map(str::to_owned);
        let index = log.entries.len() as u64;
        log.entries.push(bytes.clone());
        let images = images_of.contains(&told.tenant) && told.relation.is_some();
        let image = |text: &Option<String>| match text {
            Some(text) if images => Image::Text(text.clone().into()),
            _ => Image::None,
        };
        let event = DumpedEvent {
            origin: origin.into(),
            index,
            entry: bytes.into(),
            salt: images.then_some(salt),
            key: image(&key),
            new: image(&told.new),
            old: image(&told.old),
        };
        let mut line = Vec::new();
        event.encode_into(&mut line);
        lines.push(line);
    }
    // Their checkpoints are events of the platform log, which the dump need not have.
    let ranges: Vec<LogRange> = database
        .logs
        .iter()
        .map(|(origin, log)| LogRange {
            origin: origin.clone(),
            first: 0,
            last: log.entries.len() as u64,
            images: images_of.contains(&log.tenant.as_deref()),
        })
        .collect();
    let tenants: Vec<String> = database.logs.keys().filter(|origin| *origin != PLATFORM).cloned().collect();
    tenants.iter().for_each(|origin| database.anchor(origin));
    database.anchor(PLATFORM);
    let store = dir.join("store");
    std::fs::create_dir(&store).unwrap();
    assert_eq!(publish(&store, &mut database).exit_code(), 0);

    let mut header = Vec::new();
    dump::write_header(&ranges, &mut header);
    lines.insert(0, header);
    let mut bytes = lines.join(&b'\n');
    bytes.push(b'\n');
    let path = dir.join("dump.jsonl");
    std::fs::write(&path, bytes).unwrap();
    let reader = Reader::open(&store).unwrap();
    let mut report = verify::run(&reader, Some(&policy()), &AtomicU64::new(0)).unwrap();
    assert_eq!(report.exit_code(), 0, "the store itself holds");
    report.events = Some(events::verify(&reader, &report, &path, &AtomicU64::new(0)).unwrap());
    report
}

fn told(story: &[Told]) -> Report {
    let dir = tempfile::tempdir().unwrap();
    tell(dir.path(), story, &[None, Some("acme"), Some("globex")])
}

#[test]
fn a_true_story_holds() {
    let report = told(&story());
    let events = report.events.as_ref().unwrap();
    assert_eq!((report.exit_code(), events.findings.list()), (0, &[][..]));
    let mut fleets: Vec<_> =
        events.fleets.iter().map(|fleet| (fleet.state.as_str(), fleet.ok, fleet.checks.len())).collect();
    fleets.sort_unstable();
    assert_eq!(fleets, [("cancelled", true, 8), ("sealed", true, 8)]);
    assert_eq!(events.fleets_left_out, [""; 0]);
    let mut text = Vec::new();
    report::verify_text(&mut text, &report, false).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("  fleets       2 hold: 1 cancelled, 1 sealed\n"), "{text}");
    let json = report::verify_json(&report, "store");
    let sealed = json["events"]["fleets"].as_array().unwrap().iter().find(|fleet| fleet["state"] == "sealed").unwrap();
    assert_eq!(sealed["fleet_id"], main_fleet().id());
    assert!(sealed["checks"].as_array().unwrap().iter().all(|check| check["ok"] == true));
}

/// The report for people has a line for each fleet, what is false before what holds, and says what was not checked.
#[test]
fn the_page_has_a_line_for_each_fleet() {
    let page = |story: &[Told], images_of: &[Option<&str>], code: i32| {
        let dir = tempfile::tempdir().unwrap();
        tell(dir.path(), story, images_of);
        std::fs::write(
            dir.path().join("policy.txt"),
            format!("log {}\nquorum none\n", crate::common::key().verifier()),
        )
        .unwrap();
        let made = std::process::Command::new(env!("CARGO_BIN_EXE_agd"))
            .args(["report", "store", "--policy", "policy.txt", "--events", "dump.jsonl", "--out", "page.html"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert_eq!(made.status.code(), Some(code), "{made:?}");
        std::fs::read_to_string(dir.path().join("page.html")).unwrap()
    };
    let all = [None, Some("acme")];
    let good = page(&story(), &all, 0);
    let table = &good[good.find("<table class=\"fleets\">").unwrap()..];
    assert_eq!(table.matches("<td>holds</td>").count(), 2, "{table}");
    assert!(table.contains(&main_fleet().id()) && table.contains("signed by "), "{table}");
    assert!(good.contains("their names, states and signatures: 2 hold: 1 cancelled, 1 sealed"), "{good}");
    let mut false_story = story();
    everywhere(&mut false_story, Some(SIGNATURE), "River", "Nobody");
    let bad = page(&false_story, &all, 1);
    let table = &bad[bad.find("<table class=\"fleets\">").unwrap()..];
    let (wrong, right) = (table.find("<td>false</td>").unwrap(), table.find("<td>holds</td>").unwrap());
    assert!(wrong < right && table[..wrong].contains(&main_fleet().id()), "{table}");
    assert!(bad.contains("the signer is not registered"), "{bad}");
    let own = page(&story(), &[Some("acme")], 0);
    assert!(own.contains("signatures under fleets of tenant acme") && own.contains("<td>not checked</td>"), "{own}");
}

/// A log is closed by its last entry, and open again with whatever comes behind it.
#[test]
fn a_log_is_closed_by_its_last_entry() {
    let closed = |story: &[Told]| -> Vec<bool> {
        let dir = tempfile::tempdir().unwrap();
        let report = tell(dir.path(), story, &[]);
        assert_eq!(report.exit_code(), 0);
        let page = dir.path().join("page.html");
        let args =
            ["report", dir.path().join("store").to_str().unwrap(), "--out", page.to_str().unwrap()].map(str::to_owned);
        assert_eq!(std::process::Command::new(env!("CARGO_BIN_EXE_agd")).args(args).status().unwrap().code(), Some(2));
        let said = std::fs::read_to_string(page).unwrap().contains("closed: its last fleet has ended");
        let closed: Vec<bool> = report.logs.iter().map(|log| log.result.closed).collect();
        assert_eq!(said, closed.contains(&true));
        closed
    };
    let mut story = story();
    assert_eq!(closed(&story), [false, true], "the platform log, and acme's");
    story.push(row(Some("acme"), "public.orders", None, r#"{"id":2}"#));
    assert_eq!(closed(&story), [false, false]);
    story.truncate(story.len() - 2);
    assert_eq!(closed(&story), [false, false]);
}

#[test]
fn what_the_dump_does_not_have_is_said() {
    let dir = tempfile::tempdir().unwrap();
    // A tenant's own dump: all but the signers.
    let report = tell(dir.path(), &story(), &[Some("acme")]);
    let events = report.events.as_ref().unwrap();
    assert_eq!((report.exit_code(), events.fleets.len()), (0, 2));
    assert!(events.fleets.iter().all(|fleet| fleet.ok && fleet.checks.len() == 5));
    assert!(
        events.fleets_left_out.len() == 1
            && events.fleets_left_out[0].starts_with("signatures under fleets of tenant acme"),
        "{:?}",
        events.fleets_left_out
    );
    // Digests alone.
    let dir = tempfile::tempdir().unwrap();
    let report = tell(dir.path(), &story(), &[]);
    let events = report.events.as_ref().unwrap();
    assert_eq!(
        (report.exit_code(), events.fleets.len(), events.fleets_left_out.len()),
        (0, 0, 1),
        "{:?}",
        events.fleets_left_out
    );
}

/// Replaces a text in every image of a table (or of all), as somebody would who writes the log as he likes.
fn everywhere(story: &mut [Told], relation: Option<&str>, from: &str, to: &str) {
    let mut found = 0;
    for told in story.iter_mut().filter(|told| relation.is_none() || told.relation == relation) {
        for image in [&mut told.old, &mut told.new].into_iter().flatten() {
            found += image.matches(from).count();
            *image = image.replace(from, to);
        }
    }
    assert!(found > 0, "{from} is nowhere");
}

/// The events that change a row so that it holds a text.
fn that(story: &[Told], relation: &str, text: &str) -> usize {
    let wanted =
        |told: &Told| told.relation == Some(relation) && told.new.as_ref().is_some_and(|new| new.contains(text));
    story.iter().rposition(wanted).unwrap()
}

#[test]
fn each_falsehood_is_found_and_named() {
    type Change = fn(&mut Vec<Told>);
    // What is done to the story; what is said of which fleet.
    let cases: &[(&str, Change, &[&str])] = &[
        (
            "another cause",
            |s| everywhere(s, Some(FLEET), "contract 4711", "contract 4712"),
            &["vector: ", "coordinator: "],
        ),
        (
            "another cause, and the id that follows from it",
            |s| {
                let (old, new) = (main_fleet(), Fleet { cause: "contract 4712", ..main_fleet() });
                everywhere(s, Some(FLEET), "contract 4711", "contract 4712");
                everywhere(s, Some(FLEET), &hex(&old.vector().digest()), &hex(&new.vector().digest()));
                everywhere(s, None, &old.id(), &new.id());
                everywhere(s, Some(FLEET), &hex(old.vector().cause_digest()), &hex(new.vector().cause_digest()));
                everywhere(s, Some(FLEET), &hex(&old.statement().context), &hex(&new.statement().context));
            },
            &["coordinator: the signature is not \"Loom\"'s", "countersigner: the signature is not \"River\"'s"],
        ),
        (
            "another signature",
            |s| everywhere(s, Some(SIGNATURE), &main_fleet().signature("coordinator", 10)[120..180], &"0".repeat(60)),
            &["coordinator: the signature is not \"Loom\"'s"],
        ),
        ("a longer window", |s| everywhere(s, None, &at(40), &at(50)), &["coordinator: ", "countersigner: "]),
        ("another mint", |s| everywhere(s, None, &at(5), &at(6)), &["coordinator: ", "countersigner: "]),
        (
            "another generation",
            |s| everywhere(s, Some(FLEET), "\"generation\":1", "\"generation\":2"),
            &["makes generation 2, and 0 came before", "vector: "],
        ),
        ("other goals", |s| everywhere(s, Some(AGENT), "1.50", "1.5"), &["context: ", "coordinator: "]),
        (
            "goals changed after the signature",
            |s| {
                let fleet = main_fleet();
                let old = fleet.agent(&fleet.agents()[1], None);
                let at = that(s, FLEET, "\"state\":\"active\"");
                s.insert(at, row(Some("acme"), AGENT, Some(&old), &old.replace("[]", "[1]")));
                let archived = s.len() - 2;
                s[archived].old = s[archived].old.as_ref().map(|old| old.replace("[]", "[1]"));
                s[archived].new = s[archived].new.as_ref().map(|new| new.replace("[]", "[1]"));
            },
            &["changes an agent's goals after they were signed", "context: "],
        ),
        (
            "no countersignature",
            |s| drop(s.remove(that(s, SIGNATURE, "River"))),
            &["countersigner: the fleet is sealed, and no countersigner has signed it"],
        ),
        (
            "no coordinator's signature",
            |s| drop(s.remove(that(s, SIGNATURE, "Loom"))),
            &["coordinator: the fleet is sealed, and no coordinator has signed it"],
        ),
        (
            "a state that no event explains",
            |s| drop(s.remove(that(s, FLEET, "\"state\":\"active\""))),
            &["is not as the event before left it"],
        ),
        (
            "a jump from pending to sealed",
            |s| {
                let sealed = that(s, FLEET, "\"state\":\"sealed\"");
                let active = that(s, FLEET, "\"state\":\"active\"");
                s[sealed].old = s[active].old.clone();
                s.remove(active);
            },
            &["makes a fleet that is pending sealed"],
        ),
        (
            "no mint",
            |s| drop(s.remove(that(s, FLEET, "\"state\":\"pending\"") - 4)),
            &["no fleet of that id was minted", "that no event made"],
        ),
        (
            "a fleet that begins active",
            |s| {
                let mint = that(s, REQUEST, "\"state\":\"granted\"") - 7;
                assert_eq!((s[mint].relation, s[mint].action), (Some(FLEET), "INSERT"));
                s[mint].new = s[that(s, FLEET, "\"state\":\"active\"")].new.clone();
            },
            &["does not begin pending and unsigned"],
        ),
        (
            "a removed agent",
            |s| {
                let last = s.len() - 2;
                let agent = s[last].old.clone();
                s[last] = Told { action: "DELETE", old: agent, new: None, ..s[last].clone() };
            },
            &["removes from agd.fleet_agent"],
        ),
        (
            "an act before it was active",
            |s| {
                let act = s.iter().position(|told| told.fleet_id.is_some()).unwrap();
                let told = s.remove(act);
                s.insert(that(s, SIGNATURE, "Loom"), told);
            },
            &["is done in the name of a fleet that was not active yet"],
        ),
        (
            "an act after its seal",
            |s| {
                let act = s.iter().position(|told| told.fleet_id.is_some()).unwrap();
                let told = s.remove(act);
                s.push(told);
            },
            &["is done in the name of a fleet that was over"],
        ),
        (
            "an act of a fleet that never was",
            |s| {
                let act = s.iter().position(|told| told.fleet_id.is_some()).unwrap();
                s[act].fleet_id = Some("0123456789abcdef".into());
            },
            &["is done in the name of a fleet that is none of the tenant's"],
        ),
        (
            "a log that is closed over a live fleet",
            |s| {
                let close = s.pop().unwrap();
                s.insert(that(s, FLEET, "\"state\":\"sealed\""), close);
            },
            &["closes the log, and this fleet is not over"],
        ),
        (
            "another tenant's row",
            |s| {
                let close = s.len() - 2;
                s[close].tenant = Some("globex");
            },
            &["another tenant's"],
        ),
        (
            "a signer with another key",
            |s| {
                everywhere(
                    s,
                    Some("agd.signer"),
                    &hex(signing_key(2).verifying_key().as_bytes()),
                    &hex(signing_key(3).verifying_key().as_bytes()),
                )
            },
            &["countersigner: the signature is not \"River\"'s"],
        ),
        (
            "a signer whose key is changed",
            |s| {
                let old = s[1].new.clone().unwrap();
                let new = old.replace(
                    &hex(signing_key(2).verifying_key().as_bytes()),
                    &hex(signing_key(3).verifying_key().as_bytes()),
                );
                s.push(row(None, "agd.signer", Some(&old), &new));
            },
            &["changes public_key, which a signer keeps"],
        ),
        (
            "one signer for both duties",
            |s| {
                everywhere(s, Some(SIGNATURE), "River", "Loom");
            },
            &["countersigner: \"Loom\" is registered as coordinator", "two_signers: "],
        ),
        (
            "a row that was there before any event",
            |s| {
                let mint = that(s, REQUEST, "\"state\":\"granted\"") - 7;
                s[mint].action = "BASELINE";
            },
            &["that no event made"],
        ),
    ];
    for (what, change, expected) in cases {
        let mut story = story();
        change(&mut story);
        let report = told(&story);
        let events = report.events.as_ref().unwrap();
        let said: Vec<&str> = events.findings.list().iter().map(|finding| finding.message.as_str()).collect();
        assert_eq!(report.exit_code(), 1, "{what}");
        for wanted in *expected {
            assert!(said.iter().any(|message| message.contains(wanted)), "{what}: none says {wanted:?}: {said:#?}");
        }
        // What breaks a row's chain is told besides, with the entry as the finding's index.
        let names_its_event = |finding: &Finding| {
            let message = finding.message.as_str();
            message.contains("event ") && message.contains("entry ")
                || message.starts_with("row {") && message.contains(" of agd.") && finding.index.is_some()
        };
        assert!(events.findings.list().iter().all(names_its_event), "{what}: {said:#?}");
        let named = |message: &&&str| message.starts_with("fleet ");
        assert!(said.iter().filter(named).count() > 0 || what.contains("signer whose key"), "{what}: {said:#?}");
        assert!(report::verify_json(&report, "x")["verdict"].as_str().unwrap().contains("in the dump"), "{what}");
    }
}
