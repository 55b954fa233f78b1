//! Rows in a dump: events that do not follow from each other are found offline, and what a dump cannot tell is not judged. And
//! what was verified of a store is what a dump is held against, whatever lies there by now.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::atomic::AtomicU64;

use crate::common::*;
use agd_cli::report;
use agd_cli::store::Reader;
use agd_cli::verify::{self, Report, events};
use agd_core::dump;
use agd_core::{DumpedEvent, Entry, EventId, Image, ImageKind, LogRange, entry, image_digest};

const GUARD: &str = "0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c11";

/// An event: log, action, body, key, old, new.
type Event<'a> = (Option<&'a str>, &'a str, Option<&'a str>, Option<&'a str>, Option<&'a str>, Option<&'a str>);

/// A published store of such events, each a transaction of its own, and the lines of its dump.
struct Scene {
    dir: tempfile::TempDir,
    database: FakeDatabase,
    lines: Vec<(String, Vec<u8>)>,
}

impl Scene {
    fn new(events: &[Event<'_>]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        let mut scene = Self { dir, database: FakeDatabase::new(), lines: Vec::new() };
        events.iter().for_each(|event| scene.add(*event));
        for tenant in [Some("acme"), None] {
            let origin = tenant.map_or(PLATFORM.to_owned(), tenant_origin);
            if scene.database.logs.contains_key(&origin) {
                // One more, so that there is something to anchor and the platform's log is the latest.
                scene.database.write(tenant, 1);
            }
        }
        assert_eq!(publish(&scene.dir.path().join("store"), &mut scene.database).exit_code(), 0);
        scene
    }

    fn add(&mut self, (tenant, action, body, key, old, new): Event<'_>) {
        self.database.xact += 1;
        let xact_id = self.database.xact;
        let salt = [xact_id as u8; 16];
        let at = START + xact_id as i64 * 1_000_003;
        let digest = |kind, image: Option<&str>| image.map(|image| image_digest(kind, &salt, image));
        let entry = Entry {
            event_id: EventId { xact_id, n: 1 },
            action,
            at,
            committed_at: at + 7,
            tenant,
            relation: Some("public.orders"),
            guard_id: Some(GUARD),
            row_key: digest(ImageKind::Key, key),
            old: digest(ImageKind::Old, old),
            new: digest(ImageKind::New, new),
            body,
            session_user_name: "app",
            role_name: "app",
            principal: None,
            fleet_id: None,
            cause: None,
            binding: "role",
            application_name: None,
            client_addr: None,
        };
        let mut bytes = Vec::new();
        entry.encode_into(&mut bytes);
        let origin = tenant.map_or(PLATFORM.to_owned(), tenant_origin);
        let log = self.database.logs.entry(origin.clone()).or_default();
        log.tenant = tenant.map(str::to_owned);
        let image = |image: Option<&str>| image.map_or(Image::None, |image| Image::Text(image.to_owned().into()));
        let salted = key.or(old).or(new).is_some();
        let event = DumpedEvent {
            origin: origin.clone().into(),
            index: log.entries.len() as u64,
            entry: bytes.clone().into(),
            salt: salted.then_some(salt),
            key: image(key),
            new: image(new),
            old: image(old),
        };
        let mut line = Vec::new();
        event.encode_into(&mut line);
        log.entries.push(bytes);
        self.lines.push((origin, line));
    }

    /// The dump of these logs, from these leaves on.
    fn dump(&self, logs: &[(&str, u64, bool)]) -> Vec<u8> {
        let ranges: Vec<LogRange> = logs
            .iter()
            .map(|(origin, first, images)| LogRange {
                origin: (*origin).to_owned(),
                first: *first,
                last: self.database.logs[*origin].entries.len() as u64,
                images: *images,
            })
            .collect();
        let mut bytes = Vec::new();
        dump::write_header(&ranges, &mut bytes);
        for range in &ranges {
            for (index, entry_bytes) in self.database.logs[&range.origin].entries.iter().enumerate() {
                if (index as u64) < range.first {
                    continue;
                }
                bytes.push(b'\n');
                let id = entry::parse(entry_bytes).unwrap();
                let mine = self
                    .lines
                    .iter()
                    .find(|(_, line)| DumpedEvent::parse(line).unwrap().entry.as_ref() == entry_bytes.as_slice());
                match mine {
                    Some((_, line)) if range.images => bytes.extend_from_slice(line),
                    _ => DumpedEvent {
                        origin: range.origin.clone().into(),
                        index: index as u64,
                        entry: entry_bytes.into(),
                        salt: (range.images && id.row_key.is_some()).then_some([id.event_id.xact_id as u8; 16]),
                        key: if range.images && id.row_key.is_some() {
                            Image::Text(id.event_id.xact_id.to_string().into())
                        } else {
                            Image::None
                        },
                        new: if range.images && id.row_key.is_some() { Image::Text("2".into()) } else { Image::None },
                        old: Image::None,
                    }
                    .encode_into(&mut bytes),
                }
            }
        }
        bytes.push(b'\n');
        bytes
    }

    fn check(&self, dump: &[u8]) -> Report {
        let path = self.dir.path().join("dump");
        std::fs::write(&path, dump).unwrap();
        check(self.dir.path(), &path)
    }

    fn check_logs(&self, logs: &[(&str, u64, bool)]) -> Report {
        self.check(&self.dump(logs))
    }
}

fn check(dir: &Path, path: &Path) -> Report {
    let reader = Reader::open(&dir.join("store")).unwrap();
    let mut report = verify::run(&reader, Some(&policy()), &AtomicU64::new(0)).unwrap();
    report.events = Some(events::verify(&reader, &report, path, &AtomicU64::new(0)).unwrap());
    report
}

fn findings_of(report: &Report) -> Vec<String> {
    report.events.as_ref().unwrap().findings.list().iter().map(|finding| finding.message.clone()).collect()
}

const KEY: Option<&str> = Some(r#"{"id":1}"#);
const TWELVE: Option<&str> = Some(r#"{"id":1,"amount":12}"#);
const TWO: Option<&str> = Some(r#"{"id":1,"amount":2}"#);
const BASELINE: Option<&str> = Some(r#"{"baseline":true,"columns":[]}"#);
const PLATFORM_ONLY: [(&str, u64, bool); 1] = [(PLATFORM, 0, true)];

#[test]
fn a_row_that_was_changed_past_the_gate_is_found_offline() {
    let guard = (None, "GUARD", None, None, None, BASELINE);
    let honest = [
        guard,
        (None, "INSERT", None, KEY, None, TWELVE),
        (None, "UPDATE", None, KEY, TWELVE, TWO),
        (None, "UPDATE", None, KEY, TWO, Some(r#"{"id":7,"amount":2}"#)),
        (None, "DELETE", None, Some(r#"{"id":7}"#), Some(r#"{"id":7,"amount":2}"#), None),
        (None, "INSERT", None, KEY, None, TWO),
    ];
    let scene = Scene::new(&honest);
    let report = scene.check_logs(&PLATFORM_ONLY);
    assert_eq!(report.exit_code(), 0, "{:?}", findings_of(&report));
    let mut text = Vec::new();
    report::verify_text(&mut text, &report, false).unwrap();
    let text = String::from_utf8(text).unwrap();
    // Two keys, and the row of the last event.
    assert!(text.contains("3 rows of 1 table followed over 7 events"), "{text}");
    let json = report::verify_json(&report, "store");
    assert_eq!(json["events"]["rows"], serde_json::json!({ "followed": 3, "tables": 1, "events": 7, "left_out": [] }));

    for (laundered, what) in [
        (
            vec![(None, "INSERT", None, KEY, None, TWELVE), (None, "UPDATE", None, KEY, TWO, TWO)],
            "row {\"id\":1} of public.orders: UPDATE 3-1 starts from an image that no record left (the last one is of event 2-1): \
             amount: recorded 12, it found 2",
        ),
        (
            vec![(None, "INSERT", None, KEY, None, TWELVE), (None, "DELETE", None, KEY, TWO, None)],
            "DELETE 3-1 starts from an image that no record left",
        ),
        (
            vec![(None, "INSERT", None, KEY, None, TWO), (None, "INSERT", None, KEY, None, TWO)],
            "event 3-1 puts a row where the record has one since event 2-1",
        ),
        (vec![(None, "UPDATE", None, KEY, TWO, TWO)], "UPDATE 2-1 is of a row that no record left"),
        (
            vec![(None, "BASELINE", Some("recorded again"), KEY, None, TWO)],
            "BASELINE 2-1 finds a row that no record left",
        ),
    ] {
        let scene = Scene::new(&[vec![guard], laundered].concat());
        let report = scene.check_logs(&PLATFORM_ONLY);
        let found = findings_of(&report);
        assert_eq!((report.exit_code(), found.len()), (1, 1), "{found:?}");
        assert!(found[0].contains(what), "{found:?}");
    }
}

#[test]
fn columns_that_were_renamed_dropped_and_added_are_known_offline() {
    let ddl = |columns| (None, "DDL", Some("ALTER TABLE public.orders"), None, None, Some(columns));
    let scene = Scene::new(&[
        (None, "GUARD", None, None, None, BASELINE),
        (None, "INSERT", None, KEY, None, TWELVE),
        ddl(r#"{"statement":"x","columns":[[2,"amount",null],[3,null,"amount"]]}"#),
        (None, "UPDATE", None, KEY, Some(r#"{"id":1,"amount":null}"#), TWO),
        ddl(r#"{"statement":"comment"}"#),
        ddl(r#"{"statement":"x","columns":[[3,"amount","price"]]}"#),
        (None, "DELETE", None, KEY, Some(r#"{"id":1,"price":2}"#), None),
    ]);
    let report = scene.check_logs(&PLATFORM_ONLY);
    assert_eq!(report.exit_code(), 0, "{:?}", findings_of(&report));
}

#[test]
fn what_a_dump_cannot_tell_is_not_judged() {
    let acme = Some("acme");
    let origin = tenant_origin("acme");
    let scene = Scene::new(&[
        (None, "GUARD", None, None, None, BASELINE),
        (acme, "INSERT", None, KEY, None, TWELVE),
        (acme, "UPDATE", None, KEY, TWO, TWO),
    ]);
    let both = [(PLATFORM, 0, true), (origin.as_str(), 0, true)];
    let report = scene.check_logs(&both);
    assert_eq!((report.exit_code(), findings_of(&report).len()), (1, 1), "{:?}", findings_of(&report));
    // Alone, a column may have been dropped and added anew for all that one knows.
    let report = scene.check_logs(&[(&origin, 0, true)]);
    assert_eq!(report.exit_code(), 2, "{:?}", findings_of(&report));
    let unchecked = &report.events.as_ref().unwrap().unchecked;
    assert!(unchecked[0].contains("amount: recorded 12, it found 2") && unchecked[0].contains("the platform's log"));
    // From the middle on nobody knows what was before.
    let report = scene.check_logs(&[(PLATFORM, 0, true), (&origin, 1, true)]);
    assert_eq!(report.exit_code(), 0, "{:?}", findings_of(&report));
    // Without images.
    let report = scene.check_logs(&[(PLATFORM, 0, false), (&origin, 0, false)]);
    assert_eq!(report.exit_code(), 0);
    let rows = &report.events.as_ref().unwrap().rows;
    assert_eq!((rows.followed, rows.left_out.len()), (0, 1));
    let mut text = Vec::new();
    report::verify_text(&mut text, &report, false).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.contains("rows of public.orders: the dump does not have the images of 4 events; not checked"),
        "{text}"
    );
}

#[test]
fn rows_from_before_a_guard_without_baseline_are_no_fault() {
    let scene = Scene::new(&[
        (None, "GUARD", None, None, None, Some(r#"{"baseline":false,"columns":[]}"#)),
        (None, "UPDATE", None, KEY, TWO, TWELVE),
        (None, "DELETE", None, KEY, TWELVE, None),
        (None, "DELETE", None, Some(r#"{"id":2}"#), Some(r#"{"id":2}"#), None),
    ]);
    let report = scene.check_logs(&PLATFORM_ONLY);
    assert_eq!(report.exit_code(), 0, "{:?}", findings_of(&report));
}

/// Between the pass over the store and the look at the dump somebody puts another bundle there, which agrees with the dump.
#[test]
fn a_bundle_that_is_swapped_after_it_was_verified_is_not_believed() {
    let guard = (None, "GUARD", None, None, None, BASELINE);
    let mut scene = Scene::new(&[guard, (None, "INSERT", None, KEY, None, TWELVE)]);
    let reader = Reader::open(&scene.dir.path().join("store")).unwrap();
    let mut report = verify::run(&reader, Some(&policy()), &AtomicU64::new(0)).unwrap();
    assert_eq!(report.exit_code(), 0);
    // The forged event has the same length, a digest of its own, and stands in bundle and dump alike.
    let forged = Scene::new(&[guard, (None, "INSERT", None, KEY, None, TWO)]);
    let bundle = format!("{PLATFORM}/tile/entries/000.p/3");
    let bytes = std::fs::read(forged.dir.path().join("store").join(&bundle)).unwrap();
    overwrite(&scene.dir.path().join("store"), &bundle, &bytes);
    let path = scene.dir.path().join("dump");
    std::fs::write(&path, forged.dump(&PLATFORM_ONLY)).unwrap();
    report.events = Some(events::verify(&reader, &report, &path, &AtomicU64::new(0)).unwrap());
    let told = report.events.as_ref().unwrap();
    assert_eq!((report.exit_code(), told.logs[0].proven), (2, 0), "{:?}", findings_of(&report));
    assert!(told.unchecked[0].contains("is not the bundle that was verified"), "{:?}", told.unchecked);
    // With the right one back, the forged dump is false.
    let again = Scene::new(&[guard, (None, "INSERT", None, KEY, None, TWELVE)]);
    scene.dir = again.dir;
    assert_eq!(scene.check(&forged.dump(&PLATFORM_ONLY)).exit_code(), 1);
}

/// Lines without end are passed over, and nothing of them is kept; what they may have held is not called missing.
#[test]
fn a_line_that_is_too_long_is_not_checked_and_the_others_are() {
    let guard = (None, "GUARD", None, None, None, BASELINE);
    let scene = Scene::new(&[guard, (None, "INSERT", None, KEY, None, TWELVE)]);
    let whole = scene.dump(&PLATFORM_ONLY);
    let lines: Vec<&[u8]> = whole.split(|byte| *byte == b'\n').collect();
    let path = scene.dir.path().join("dump");
    let reader = Reader::open(&scene.dir.path().join("store")).unwrap();
    let mut report = verify::run(&reader, Some(&policy()), &AtomicU64::new(0)).unwrap();
    let limit = whole.len() as u64;
    let long = vec![b'x'; whole.len() + 1];
    for at in [1, 2, 3] {
        let mut some = lines.clone();
        some[at] = &long;
        std::fs::write(&path, some.join(&b'\n')).unwrap();
        let counter = AtomicU64::new(0);
        report.events = Some(events::verify_within(&reader, &report, &path, limit, &counter).unwrap());
        let told = report.events.as_ref().unwrap();
        assert_eq!((report.exit_code(), told.logs[0].proven), (2, 2), "{:?}", findings_of(&report));
        assert!(told.unchecked[0].starts_with(&format!("line {}, at byte", at + 1)), "{:?}", told.unchecked);
    }
    // Four gibibytes of nothing, which take no room on disk and must take none in memory.
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&[lines[0], b"\n"].concat()).unwrap();
    file.seek(SeekFrom::Current(4 << 30)).unwrap();
    file.write_all(&[b"\n", lines[1], b"\n", lines[2], b"\n", lines[3], b"\n"].concat()).unwrap();
    drop(file);
    let counter = AtomicU64::new(0);
    report.events = Some(events::verify_within(&reader, &report, &path, 1 << 20, &counter).unwrap());
    let told = report.events.as_ref().unwrap();
    assert_eq!((report.exit_code(), told.logs[0].proven), (2, 3), "{:?}", findings_of(&report));
}
