//! Dumps of events against a published store: what was anchored holds, and whatever else a dump says is found and named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;

use crate::common::*;
use agd_cli::report;
use agd_cli::store::Reader;
use agd_cli::verify::events::{self, DumpFileError};
use agd_cli::verify::findings::Finding;
use agd_cli::verify::{self, Report};
use agd_core::dump::{self, KINDS};
use agd_core::{DumpedEvent, Image, LogRange, entry};
use proptest::prelude::*;

/// A published store of two logs, and its database.
fn sample() -> (tempfile::TempDir, FakeDatabase) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    database.write(Some("acme"), 300);
    assert_eq!(publish(&store, &mut database).exit_code(), 0);
    (dir, database)
}

/// Everything the database has, in logs' order.
fn ranges(database: &FakeDatabase) -> Vec<LogRange> {
    let range = |(origin, log): (&String, &FakeLog)| LogRange {
        origin: origin.clone(),
        first: 0,
        last: log.entries.len() as u64,
        images: true,
    };
    database.logs.iter().map(range).collect()
}

/// The lines of a dump, the first one first, as `agd export` writes them.
fn lines(database: &FakeDatabase, ranges: &[LogRange]) -> Vec<Vec<u8>> {
    let mut lines = vec![header(ranges)];
    for range in ranges {
        for index in range.first..range.last {
            let bytes = &database.logs[&range.origin].entries[index as usize];
            lines.push(line(&event(&range.origin, index, bytes, range.images)));
        }
    }
    lines
}

fn header(ranges: &[LogRange]) -> Vec<u8> {
    let mut line = Vec::new();
    dump::write_header(ranges, &mut line);
    line
}

fn line(event: &DumpedEvent<'_>) -> Vec<u8> {
    let mut line = Vec::new();
    event.encode_into(&mut line);
    line
}

/// What the tests' database has beside an entry: see `common::entry`.
fn event<'a>(origin: &str, index: u64, bytes: &'a [u8], images: bool) -> DumpedEvent<'a> {
    let entry = entry::parse(bytes).unwrap();
    let images = images && entry.row_key.is_some();
    // Each event is of a row of its own.
    let image = |text: String| if images { Image::Text(text.into()) } else { Image::None };
    DumpedEvent {
        origin: origin.to_owned().into(),
        index,
        entry: bytes.into(),
        salt: images.then_some([entry.event_id.xact_id as u8; 16]),
        key: image(entry.event_id.xact_id.to_string()),
        new: image("2".to_owned()),
        old: Image::None,
    }
}

fn save(dir: &Path, lines: &[Vec<u8>]) -> PathBuf {
    let path = dir.join("dump.jsonl");
    let mut bytes = lines.join(&b'\n');
    bytes.push(b'\n');
    std::fs::write(&path, bytes).unwrap();
    path
}

fn check_file(dir: &Path, path: &Path) -> Result<Report, DumpFileError> {
    let reader = Reader::open(&dir.join("store")).unwrap();
    let mut report = verify::run(&reader, Some(&policy()), &AtomicU64::new(0)).unwrap();
    report.events = Some(events::verify(&reader, &report, path, &AtomicU64::new(0))?);
    Ok(report)
}

fn check(dir: &Path, lines: &[Vec<u8>]) -> Report {
    check_file(dir, &save(dir, lines)).unwrap()
}

fn of_dump(report: &Report) -> &[Finding] {
    report.events.as_ref().unwrap().findings.list()
}

/// The verdict is "false", and the findings about the dump say these things, in this order.
#[track_caller]
fn says(report: &Report, what: &[&str]) {
    let findings = of_dump(report);
    assert_eq!((report.exit_code(), findings.len()), (1, what.len()), "{findings:?}");
    for (finding, what) in findings.iter().zip(what) {
        assert!(finding.message.contains(what), "{} does not say {what}", finding.message);
    }
}

#[test]
fn the_events_that_were_anchored_hold() {
    let (dir, database) = sample();
    let all = lines(&database, &ranges(&database));
    let report = check(dir.path(), &all);
    assert_eq!(report.exit_code(), 0, "{:?}", of_dump(&report));
    let events = report.events.as_ref().unwrap();
    let counts: Vec<_> = events.logs.iter().map(|log| (log.proven, log.missing, log.images_proven)).collect();
    // The platform log's checkpoints of the tenant have no images.
    assert_eq!(counts, [(5, 0, 6), (300, 0, 600)]);

    let mut text = Vec::new();
    report::verify_text(&mut text, &report, false).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("300 events as anchored, 600 images with their digests"), "{text}");
    let last = "OK: 2 logs, 305 entries, 4 checkpoints, 305 events of a dump: all holds";
    assert_eq!(text.lines().last().unwrap(), last);
    let json = report::verify_json(&report, "store");
    assert_eq!(json["events"]["logs"][1]["proven"], 300);
    assert_eq!(json["exit_code"], 0);

    // In whatever order they stand.
    let mut turned = all.clone();
    turned[1..].reverse();
    assert_eq!(check(dir.path(), &turned).exit_code(), 0);
}

#[test]
fn a_part_of_a_log_and_a_dump_without_images_hold() {
    let (dir, database) = sample();
    let part = |first, last, images| [LogRange { origin: tenant_origin("acme"), first, last, images }];
    for (first, last, images) in [(0, 300, false), (256, 300, true), (10, 20, true), (7, 7, true)] {
        let report = check(dir.path(), &lines(&database, &part(first, last, images)));
        assert_eq!(report.exit_code(), 0, "{:?}", of_dump(&report));
        let log = &report.events.as_ref().unwrap().logs[0];
        assert_eq!(log.proven, last - first);
        assert_eq!(log.images_proven, if images { 2 * (last - first) } else { 0 });
    }
}

#[test]
fn erased_images_are_counted_and_named_and_nothing_is_false() {
    let (dir, database) = sample();
    let origin = tenant_origin("acme");
    let mut all = lines(&database, &ranges(&database));
    let mut ids = Vec::new();
    for index in [0, 3, 8, 100, 200, 299] {
        let bytes = &database.logs[&origin].entries[index as usize];
        let whole = event(&origin, index, bytes, true);
        let erased = if index == 3 {
            DumpedEvent { new: Image::Erased, ..whole }
        } else {
            DumpedEvent { new: Image::Erased, key: Image::Erased, salt: None, ..whole }
        };
        all[1 + 5 + index as usize] = line(&erased);
        ids.push(entry::parse(bytes).unwrap().event_id.to_string());
    }
    let report = check(dir.path(), &all);
    assert_eq!(report.exit_code(), 0, "{:?}", of_dump(&report));
    let json = report::verify_json(&report, "store");
    let log = &json["events"]["logs"][1];
    assert_eq!((log["images_erased"].as_u64(), log["images_proven"].as_u64()), (Some(11), Some(589)));
    assert_eq!(log["erased"], serde_json::json!(ids));
    let mut text = Vec::new();
    report::verify_text(&mut text, &report, false).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains(&format!("11 images of 6 events: {}, {}", ids[0], ids[1])), "{text}");
    assert!(text.contains("and 1 more"), "{text}");
}

#[test]
fn missing_added_and_repeated_events_are_named() {
    let (dir, database) = sample();
    let good = lines(&database, &ranges(&database));
    let origin = tenant_origin("acme");
    let id = |index: usize| entry::parse(&database.logs[&origin].entries[index]).unwrap().event_id.to_string();

    let mut some = good.clone();
    some.remove(1 + 5 + 7);
    says(&check(dir.path(), &some), &[&format!("event {}, entry 7 of {origin}, is missing in the dump", id(7))]);

    let mut many = good.clone();
    many.drain(6 + 10..6 + 110);
    let report = check(dir.path(), &many);
    assert_eq!(of_dump(&report).len(), 9);
    assert!(of_dump(&report)[8].message.starts_with("92 more events"), "{:?}", of_dump(&report)[8]);
    assert_eq!(report.events.as_ref().unwrap().logs[1].missing, 100);

    let mut twice = good.clone();
    twice.push(good[6 + 7].clone());
    says(&check(dir.path(), &twice), &[&format!("line 307: event {}, entry 7 of {origin}, is there twice", id(7))]);

    // One that was never recorded: in place of another, beyond the range, in a log that the dump does not name.
    let fake = entry(999, 1, Some("acme"), "INSERT", None);
    let mut added = good.clone();
    added[6 + 7] = line(&event(&origin, 7, &fake, true));
    let of = format!("is not in the log there: that entry is event {}", id(7));
    says(&check(dir.path(), &added), &[&of, "is missing"]);
    let mut added = good.clone();
    added.push(line(&event(&origin, 300, &fake, true)));
    says(&check(dir.path(), &added), &["outside of the range"]);
    let mut added = good.clone();
    added.push(line(&event(&tenant_origin("zeta"), 0, &fake, true)));
    says(&check(dir.path(), &added), &["which the first line does not name"]);

    // Two that took each other's place.
    let bytes = |index: usize| &database.logs[&origin].entries[index][..];
    let mut moved = good;
    moved[6 + 7] = line(&event(&origin, 7, bytes(8), true));
    moved[6 + 8] = line(&event(&origin, 8, bytes(7), true));
    let report = check(dir.path(), &moved);
    assert_eq!(of_dump(&report).len(), 4, "{:?}", of_dump(&report));
}

/// Every string of every kind of line, changed in a way that is still a well-formed line where there is one.
#[test]
fn every_field_that_is_changed_is_found() {
    let (dir, database) = sample();
    let good = lines(&database, &ranges(&database));
    let mut fields = BTreeSet::new();
    for at in [0, 2, 5, 6 + 7] {
        let value: serde_json::Value = serde_json::from_slice(&good[at]).unwrap();
        let mut changes = Vec::new();
        walk(&value, "", &mut changes);
        for (path, changed) in changes {
            let mut other = value.clone();
            *other.pointer_mut(&path).unwrap() = changed.clone();
            let mut wrong = good.clone();
            wrong[at] = other.to_string().into_bytes();
            match check_file(dir.path(), &save(dir.path(), &wrong)) {
                Ok(report) => assert_ne!(report.exit_code(), 0, "line {at}: {path} as {changed} goes unseen"),
                Err(DumpFileError::NotADump { .. }) => assert_eq!(at, 0, "{path} as {changed}"),
                Err(error) => panic!("{error}"),
            }
            // And the field left out.
            let (parent, name) = path.rsplit_once('/').unwrap();
            let mut other = value.clone();
            if let Some(object) = other.pointer_mut(parent).unwrap().as_object_mut() {
                object.remove(name);
                wrong[at] = other.to_string().into_bytes();
                if let Ok(report) = check_file(dir.path(), &save(dir.path(), &wrong)) {
                    assert_ne!(report.exit_code(), 0, "line {at}: without {path} all is well");
                }
            }
            fields.insert(path);
        }
    }
    for field in [
        "/entry/cause",
        "/entry/row_key",
        "/entry/body",
        "/index",
        "/origin",
        "/salt",
        "/key",
        "/new",
        "/logs/0/images",
    ] {
        assert!(fields.contains(field), "{field} in {fields:?}");
    }
}

fn walk(value: &serde_json::Value, path: &str, changes: &mut Vec<(String, serde_json::Value)>) {
    use serde_json::{Value, json};
    let mut change = |to: Value| changes.push((path.to_owned(), to));
    match value {
        Value::Object(members) => {
            members.iter().for_each(|(name, value)| walk(value, &format!("{path}/{name}"), changes));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| walk(value, &format!("{path}/{at}"), changes));
        }
        Value::Bool(value) => change(json!(!value)),
        Value::Number(_) => change(json!(7)),
        Value::String(text) => {
            change(json!(format!("{text}x")));
            // Another value of the same shape.
            let other: String = text
                .chars()
                .map(|c| match c {
                    '1' => '2',
                    '0' | '2'..='9' => '1',
                    'a'..='e' => 'f',
                    'o' | 'p' => 'q',
                    c => c,
                })
                .collect();
            if other != *text {
                change(json!(other));
            }
        }
        Value::Null => {}
    }
}

#[test]
fn images_must_be_the_ones_that_were_recorded() {
    let (dir, database) = sample();
    let good = lines(&database, &ranges(&database));
    let origin = tenant_origin("acme");
    let whole = || event(&origin, 7, &database.logs[&origin].entries[7], true);
    for (event, what) in [
        (DumpedEvent { new: Image::Text("3".into()), ..whole() }, "its image \"new\" does not give the digest"),
        (DumpedEvent { new: Image::None, ..whole() }, "its image \"new\" is left out, and not said to be erased"),
        (DumpedEvent { old: Image::Text("0".into()), ..whole() }, "its image \"old\" is none of the event's"),
        (DumpedEvent { old: Image::Erased, ..whole() }, "its image \"old\" is none of the event's"),
    ] {
        let mut wrong = good.clone();
        wrong[6 + 7] = line(&event);
        says(&check(dir.path(), &wrong), &[what]);
    }
    let mut salted = good.clone();
    salted[6 + 7] = line(&DumpedEvent { salt: Some([9; 16]), ..whole() });
    says(&check(dir.path(), &salted), &["\"key\" does not", "\"new\" does not"]);
    // A dump that says it has none.
    let mut ranges = ranges(&database);
    ranges[1].images = false;
    let mut wrong = good;
    wrong[0] = header(&ranges);
    let report = check(dir.path(), &wrong);
    assert_eq!(report.events.as_ref().unwrap().findings.count(), 600);
    assert!(of_dump(&report)[0].message.contains("said to have none"));
    assert_eq!(KINDS.len(), 3);
}

#[test]
fn what_the_store_does_not_have_could_not_be_checked() {
    let (dir, mut database) = sample();
    database.write(Some("acme"), 4);
    database.write(Some("late"), 2);
    let report = check(dir.path(), &lines(&database, &ranges(&database)));
    assert_eq!(report.exit_code(), 2, "{:?}", of_dump(&report));
    let unchecked = &report.events.as_ref().unwrap().unchecked;
    assert_eq!(unchecked.len(), 3, "{unchecked:?}");
    assert!(unchecked[1].contains("/t/acme from entry 300 on"), "{unchecked:?}");
    assert!(unchecked[2].contains("no such log"), "{unchecked:?}");
    // What the store has is proven all the same, and a lie there is one.
    assert_eq!(report.events.as_ref().unwrap().logs[1].proven, 300);
}

#[test]
fn a_dump_that_is_none_or_is_cut_off() {
    let (dir, database) = sample();
    let good = lines(&database, &ranges(&database));
    for wrong in [&good[1..], &[][..], &[b"{}".to_vec()]] {
        assert!(matches!(check_file(dir.path(), &save(dir.path(), wrong)), Err(DumpFileError::NotADump { .. })));
    }
    assert!(matches!(check_file(dir.path(), &dir.path().join("none")), Err(DumpFileError::Io { .. })));
    let path = save(dir.path(), &good);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    says(&check_file(dir.path(), &path).unwrap(), &["the line has no end", "entry 299"]);
    let mut twice = good;
    let both = [ranges(&database), ranges(&database)].concat();
    twice[0] = header(&both);
    says(&check(dir.path(), &twice), &["twice", "twice"]);
    // A length that no memory has.
    let huge = vec![LogRange { origin: tenant_origin("acme"), first: 0, last: u64::MAX, images: true }];
    assert_eq!(check(dir.path(), &[header(&huge)]).exit_code(), 1);
}

#[test]
fn a_store_that_is_false_is_not_made_true_by_a_dump_that_agrees() {
    let (dir, mut database) = sample();
    let origin = tenant_origin("acme");
    let changed = entry(4, 1, Some("acme"), "DELETE", None);
    let before = database.logs[&origin].entries[0].clone();
    database.log(&origin).entries[0] = changed.clone();
    let path = format!("{origin}/tile/entries/000");
    let mut bundle = std::fs::read(dir.path().join("store").join(&path)).unwrap();
    assert_eq!(changed.len(), before.len());
    bundle[2..2 + changed.len()].copy_from_slice(&changed);
    overwrite(&dir.path().join("store"), &path, &bundle);
    let report = check(dir.path(), &lines(&database, &ranges(&database)));
    assert_eq!(report.exit_code(), 1);
    assert!(report::verify_json(&report, "x")["verdict"].as_str().unwrap().starts_with("FALSE"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn any_byte_that_is_changed_is_found(at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
        let (dir, database) = sample();
        let path = save(dir.path(), &lines(&database, &ranges(&database)[..1]));
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        std::fs::write(&path, &bytes).unwrap();
        match check_file(dir.path(), &path) {
            Ok(report) => prop_assert_ne!(report.exit_code(), 0),
            Err(DumpFileError::NotADump { .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}
