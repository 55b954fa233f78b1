//! Lines of dumps: one byte string for one event, and every field bound to the log.

use agd_core::dump::{ImageProblem, VERSION, differing_fields, parse_header, write_header};
use agd_core::{DumpError, DumpedEvent, Entry, EventId, Image, ImageKind, LogRange, entry, image_digest};
use proptest::prelude::*;
use std::borrow::Cow;

const SALT: [u8; 16] = [0xA5; 16];

fn entry_of(key: Option<&str>, old: Option<&str>, new: Option<&str>, cause: &str) -> Vec<u8> {
    let digest = |kind, text: Option<&str>| text.map(|text| image_digest(kind, &SALT, text));
    let entry = Entry {
        event_id: EventId { xact_id: 7431, n: 2 },
        action: "UPDATE",
        at: 1_795_210_265_000_001,
        committed_at: 1_795_210_265_000_002,
        tenant: Some("acme"),
        relation: Some("public.orders"),
        guard_id: None,
        row_key: digest(ImageKind::Key, key),
        old: digest(ImageKind::Old, old),
        new: digest(ImageKind::New, new),
        body: None,
        session_user_name: "app",
        role_name: "app",
        principal: None,
        fleet_id: None,
        cause: Some(cause),
        binding: "role",
        application_name: None,
        client_addr: None,
    };
    let mut bytes = Vec::new();
    entry.encode_into(&mut bytes);
    bytes
}

fn text(text: &str) -> Image<'_> {
    Image::Text(Cow::Borrowed(text))
}

fn event(entry: &[u8]) -> DumpedEvent<'_> {
    DumpedEvent {
        origin: "agd-7/app/t/acme".into(),
        index: 12,
        entry: entry.into(),
        salt: Some(SALT),
        key: text("{\"id\": 1}"),
        new: text("{\"id\": 1, \"v\": \"ü\\n\"}"),
        old: Image::Erased,
    }
}

fn line(event: &DumpedEvent<'_>) -> Vec<u8> {
    let mut line = Vec::new();
    event.encode_into(&mut line);
    line
}

#[test]
fn a_line_is_canonical_json_with_the_entry_in_it() {
    let entry = entry_of(Some("{\"id\": 1}"), Some("{}"), Some("{\"id\": 1, \"v\": \"ü\\n\"}"), "x,");
    let line = line(&event(&entry));
    let shown = String::from_utf8(line.clone()).unwrap();
    let rest = shown.strip_prefix("{\"entry\":").unwrap();
    let rest = rest.strip_prefix(std::str::from_utf8(&entry).unwrap()).unwrap();
    assert_eq!(
        rest,
        ",\"erased\":true,\"index\":\"12\",\"key\":\"{\\\"id\\\": 1}\",\"new\":\"{\\\"id\\\": 1, \\\"v\\\": \\\"ü\\\\n\\\"}\",\
         \"old\":null,\"origin\":\"agd-7/app/t/acme\",\"salt\":\"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5\"}"
    );
    // Canonical: any JSON library with sorted keys writes the same.
    let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(value.to_string(), shown);
    let again = DumpedEvent::parse(&line).unwrap();
    assert_eq!(again, event(&entry));
    let parsed = entry::parse(&again.entry).unwrap();
    assert_eq!(again.check_images(&parsed, true), []);
    assert_eq!(again.erased().collect::<Vec<_>>(), [ImageKind::Old]);
}

#[test]
fn each_image_must_be_the_one_in_the_log() {
    let bytes = entry_of(Some("k"), None, Some("n"), "why");
    let logged = entry::parse(&bytes).unwrap();
    let good = DumpedEvent { key: text("k"), new: text("n"), old: Image::None, ..event(&bytes) };
    assert_eq!(good.check_images(&logged, true), []);
    let check = |event: DumpedEvent<'_>, images| event.check_images(&logged, images);
    let key = |problem| vec![(ImageKind::Key, problem)];
    assert_eq!(check(DumpedEvent { key: text("K"), ..good.clone() }, true), key(ImageProblem::Differs));
    assert_eq!(check(DumpedEvent { key: Image::None, ..good.clone() }, true), key(ImageProblem::LeftOut));
    assert_eq!(check(DumpedEvent { key: Image::Erased, ..good.clone() }, true), []);
    let old = DumpedEvent { old: text("o"), ..good.clone() };
    assert_eq!(check(old, true), [(ImageKind::Old, ImageProblem::Unknown)]);
    let old = DumpedEvent { old: Image::Erased, ..good.clone() };
    assert_eq!(check(old, true), [(ImageKind::Old, ImageProblem::Unknown)]);
    // One image cannot stand for another, and every image depends on the salt.
    let swapped = DumpedEvent { key: text("n"), new: text("k"), ..good.clone() };
    assert_eq!(check(swapped, true).len(), 2);
    let salted = DumpedEvent { salt: Some([0; 16]), ..good.clone() };
    assert_eq!(check(salted, true).len(), 2);
    // A dump without images has none.
    let none = DumpedEvent { salt: None, key: Image::None, new: Image::None, ..good.clone() };
    assert_eq!(check(none, false), []);
    assert_eq!(check(good, false).len(), 2);
}

#[test]
fn what_is_not_canonical_is_refused() {
    let bytes = entry_of(Some("k"), None, None, "why");
    let good = line(&DumpedEvent { key: text("k"), new: Image::None, old: Image::None, ..event(&bytes) });
    let good = String::from_utf8(good).unwrap();
    assert!(DumpedEvent::parse(good.as_bytes()).is_ok());
    for (from, to) in [
        ("{\"entry\":", "{ \"entry\":"),
        ("\"index\":\"12\"", "\"index\":12"),
        ("\"index\":\"12\"", "\"index\":\"012\""),
        ("\"index\":\"12\"", "\"erased\":true,\"index\":\"12\""),
        ("\"index\":\"12\"", "\"erased\":false,\"index\":\"12\""),
        ("\"key\":\"k\"", "\"key\":\"\\u006b\""),
        ("\"key\":\"k\"", "\"key\":null"),
        (",\"key\":\"k\"", ""),
        (",\"salt\":\"a5", ",\"salt\":\"A5"),
        ("a5\"}", "\"}"),
        (",\"salt\":\"a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5\"", ""),
        (",\"v\":1}", ",\"v\":2}"),
        (",\"origin\":", ",\"more\":1,\"origin\":"),
    ] {
        let wrong = good.replace(from, to);
        assert_ne!(wrong, good, "{from}");
        let error = DumpedEvent::parse(wrong.as_bytes()).unwrap_err();
        assert!(matches!(error, DumpError::NotCanonical { .. }), "{wrong}");
    }
    assert!(DumpedEvent::parse(format!("{good}\n").as_bytes()).is_err());
    assert_eq!(DumpedEvent::parse(b"{\xff").unwrap_err(), DumpError::Utf8 { offset: 1 });
}

#[test]
fn the_first_line() {
    let log = |origin: &str, first, last, images| LogRange { origin: origin.to_owned(), first, last, images };
    for logs in [vec![], vec![log("a", 0, 0, true)], vec![log("a", 0, 300, true), log("a/t/\"x", 256, 1 << 40, false)]]
    {
        let mut line = Vec::new();
        write_header(&logs, &mut line);
        assert_eq!(parse_header(&line).unwrap(), logs);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value.to_string().as_bytes(), line);
        assert_eq!(value["agd_export"], VERSION);
    }
    for wrong in ["", "{}", "{\"agd_export\":2,\"logs\":[]}", "{\"agd_export\":1,\"logs\":[]} "] {
        assert!(parse_header(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn fields_that_differ_have_their_names() {
    let a = entry::parse(&entry_of(Some("k"), None, None, "why")).unwrap();
    let mut b = a.clone();
    assert!(differing_fields(&a, &b).is_empty());
    b.cause = None;
    b.new = Some([0; 32]);
    assert_eq!(differing_fields(&a, &b), ["cause", "new"]);
}

proptest! {
    #[test]
    fn every_event_reads_back(
        cause in "\\PC*", index in any::<u64>(), origin in "\\PC*",
        images in proptest::collection::vec(proptest::option::of(proptest::option::of(any::<String>())), 3),
    ) {
        let bytes = entry_of(None, None, None, &cause);
        prop_assume!(bytes.len() <= 65_535);
        let image = |at: usize| match &images[at] {
            None => Image::None,
            Some(None) => Image::Erased,
            Some(Some(text)) => Image::Text(text.into()),
        };
        let salt = images.iter().any(|image| matches!(image, Some(Some(_)))).then_some(SALT);
        let (key, new, old) = (image(0), image(1), image(2));
        let event = DumpedEvent { origin: origin.into(), index, entry: (&bytes).into(), salt, key, new, old };
        let line = line(&event);
        prop_assert_eq!(DumpedEvent::parse(&line).unwrap(), event);
        prop_assert!(!line.contains(&b'\n'));
    }

    /// Whatever single byte is changed, the line is refused or says something else.
    #[test]
    fn no_byte_is_idle(at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
        let bytes = entry_of(Some("k"), Some("o"), Some("n"), "why");
        let event = DumpedEvent { key: text("k"), new: text("n"), old: Image::Erased, ..event(&bytes) };
        let mut line = line(&event);
        let at = at.index(line.len());
        line[at] ^= flip;
        if let Ok(other) = DumpedEvent::parse(&line) {
            prop_assert_ne!(other, event);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = DumpedEvent::parse(&line);
        let _ = parse_header(&line);
        let _ = DumpedEvent::parse(&[b"{\"entry\":", &line[..], b",\"v\":1}", &line[..]].concat());
    }
}

#[test]
fn the_example_in_the_documentation_holds() {
    let formats = include_str!("../../../../docs/formats.md");
    let section = &formats[formats.find("## 10. Event dump").unwrap()..];
    let header = section.lines().find(|line| line.starts_with("{\"agd_export\"")).unwrap();
    assert_eq!(parse_header(header.as_bytes()).unwrap().len(), 1);
    let line = section.lines().find(|line| line.starts_with("{\"entry\"")).unwrap();
    let event = DumpedEvent::parse(line.as_bytes()).unwrap();
    let entry = entry::parse(&event.entry).unwrap();
    assert_eq!(event.check_images(&entry, true), []);
    assert_eq!(event.key, text("{}"));
}
