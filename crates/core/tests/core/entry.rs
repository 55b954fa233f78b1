use std::collections::BTreeMap;

use agd_core::entry::{self, Entry, EntryError, EventId, ImageKind, OwnedEntry, image_digest, parse};
use agd_core::merkle::Hash;
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const MINIMAL: Entry<'static> = Entry {
    event_id: EventId { xact_id: 7431, n: 2 },
    action: "INSERT",
    at: 1_795_210_265_000_001,
    committed_at: 1_795_210_265_000_002,
    tenant: None,
    relation: None,
    guard_id: None,
    row_key: None,
    old: None,
    new: None,
    body: None,
    session_user_name: "app",
    role_name: "app",
    principal: None,
    fleet_id: None,
    cause: None,
    binding: "role",
    application_name: None,
    client_addr: None,
};

fn encode(entry: &Entry<'_>) -> String {
    let mut bytes = Vec::new();
    entry.encode_into(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn the_smallest_entry() {
    assert_eq!(
        encode(&MINIMAL),
        r#"{"action":"INSERT","at":"2026-11-20T21:31:05.000001Z","binding":"role","#.to_owned()
            + r#""committed_at":"2026-11-20T21:31:05.000002Z","event_id":"7431-2","#
            + r#""role_name":"app","session_user_name":"app","v":1}"#
    );
}

#[test]
fn encoding_appends() {
    let mut out = b"before".to_vec();
    MINIMAL.encode_into(&mut out);
    assert_eq!(out, format!("before{}", encode(&MINIMAL)).into_bytes());
}

#[test]
fn strings_are_escaped_as_rfc_8785_says() {
    let cause: String = (0..=0x7f).map(char::from).collect::<String>() + "\u{80}\u{2028}€\u{fffd}😀";
    let entry = encode(&Entry { cause: Some(&cause), ..MINIMAL });
    let expected = concat!(
        r#""cause":"\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f"#,
        r"\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f",
        r##" !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`"##,
        "abcdefghijklmnopqrstuvwxyz{|}~\u{7f}\u{80}\u{2028}€\u{fffd}😀\","
    );
    assert!(entry.contains(expected), "{entry}");
}

#[test]
fn times_at_the_edges() {
    let day = 86_400_000_000;
    for (micros, time) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
        (951_782_400_000_000 + day, "2000-03-01T00:00:00.000000Z"),
        (-2_203_977_600_000_000, "1900-02-28T00:00:00.000000Z"),
        (-2_203_977_600_000_000 + day, "1900-03-01T00:00:00.000000Z"),
        (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
        (253_402_300_800_000_000, "+010000-01-01T00:00:00.000000Z"),
        (-62_167_219_200_000_000, "0000-01-01T00:00:00.000000Z"),
        (-62_167_219_200_000_001, "-000001-12-31T23:59:59.999999Z"),
        (i64::MAX, "+294247-01-10T04:00:54.775807Z"),
        (i64::MIN, "-290308-12-21T19:59:05.224192Z"),
    ] {
        let entry = Entry { at: micros, committed_at: micros, ..MINIMAL };
        let bytes = encode(&entry);
        assert!(bytes.contains(&format!("\"at\":\"{time}\",")), "{bytes}");
        assert!(bytes.contains(&format!("\"committed_at\":\"{time}\",")), "{bytes}");
        assert_eq!(parse(bytes.as_bytes()).unwrap().as_entry(), entry);
    }
}

#[test]
fn other_spellings_are_refused() {
    let good = encode(&Entry { cause: Some("a/b"), old: Some([0xAB; 32]), ..MINIMAL });
    assert!(parse(good.as_bytes()).is_ok());
    let swap = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    for bad in [
        String::new(),
        "{}".to_owned(),
        "null".to_owned(),
        format!(" {good}"),
        format!("{good} "),
        format!("{good}\n"),
        format!("{good}{good}"),
        swap("\"v\":1", "\"v\":2"),
        swap("\"v\":1", "\"v\":1.0"),
        swap("\"v\":1", "\"v\":\"1\""),
        swap(",\"v\":1", ""),
        swap("\"v\":1", "\"v\":1,\"v\":1"),
        swap("\"v\":1", "\"v\":1,\"w\":1"),
        swap("\"action\"", "\"Action\""),
        swap("{\"action\":\"INSERT\",", "{"),
        swap("\"INSERT\"", "null"),
        swap("\"INSERT\",", "\"INSERT\", "),
        swap("\"INSERT\",", "\"INSERT\",\"action\":\"INSERT\","),
        swap("INSERT", "\\u0049NSERT"),
        swap("a/b", "a\\/b"),
        swap("a/b", "\\u000A"),
        swap("a/b", "\\u0009"),
        swap("a/b", "\\x"),
        swap("a/b", "\\u00"),
        swap("a/b", "\\u+001"),
        swap("a/b", "\\u00+1"),
        swap("a/b", "\\ud83d\\ude00"),
        swap("a/b", "\t"),
        swap("a/b\"", "a/b\\\""),
        swap("7431-2", "07431-2"),
        swap("7431-2", "7431-+2"),
        swap("7431-2", "7431"),
        swap("sha256:ab", "sha256:AB"),
        swap("sha256:ab", "sha512:ab"),
        swap("sha256:abab", "sha256:ab"),
        swap("2026-11-20T21:31:05.000001Z", "2026-11-20T21:31:05.00001Z"),
        swap("2026-11-20T21:31:05.000001Z", "2026-11-20 21:31:05.000001Z"),
        swap("2026-11-20T21:31:05.000001Z", "2026-11-20T21:31:05.000001z"),
        swap("2026-11-20T21:31:05.000001Z", "2026-11-20T21:31:05.000001+00:00"),
        swap("2026-11-20T21:31:05.000001Z", "2026-02-30T21:31:05.000001Z"),
        swap("2026-11-20T21:31:05.000001Z", "2026-11-20T24:00:00.000000Z"),
        swap("2026-11-20T21:31:05.000001Z", "2026-11-20T21:31:60.000000Z"),
        swap("2026-11-20T21:31:05.000001Z", "2026-13-20T21:31:05.000001Z"),
        swap("2026-11-20T21:31:05.000001Z", "2026-00-20T21:31:05.000001Z"),
        swap("2026-11-20T21:31:05.000001Z", "+002026-11-20T21:31:05.000001Z"),
        swap("2026-11-20T21:31:05.000001Z", "-000000-11-20T21:31:05.000001Z"),
        swap("2026-11-20T21:31:05.000001Z", "+294247-01-10T04:00:54.775808Z"),
        swap("2026-11-20T21:31:05.000001Z", "+999999-12-31T23:59:59.999999Z"),
        swap("2026-11-20T21:31:05.000001Z", "-290308-12-21T19:59:05.224191Z"),
        swap("2026-11-20T21:31:05.000001Z", ""),
        swap("2026-11-20T21:31:05.000001Z", "éé"),
    ] {
        assert!(matches!(parse(bad.as_bytes()), Err(EntryError::NotCanonical { .. })), "{bad}");
    }
}

#[test]
fn errors_say_where() {
    let good = encode(&MINIMAL);
    let at = good.find(",\"committed_at\"").unwrap();
    let bad = good.replace("05.000002Z", "05.000002X");
    let offset = at + ",\"committed_at\":\"2026-11-20T21:31:05.000002".len();
    assert_eq!(parse(bad.as_bytes()), Err(EntryError::NotCanonical { offset }));
    let bad = good.replace("committed_at", "committed_on");
    assert_eq!(parse(bad.as_bytes()), Err(EntryError::NotCanonical { offset: at }));
    let mut bad = good.into_bytes();
    bad[12] = 0xFF;
    assert_eq!(parse(&bad), Err(EntryError::Utf8 { offset: 12 }));
}

#[test]
fn an_entry_fits_into_a_bundle_or_is_refused() {
    let room = 65_535 - encode(&Entry { cause: Some(""), ..MINIMAL }).len();
    for (len, fits) in [(room, true), (room + 1, false), (5_000_000, false)] {
        let cause = "x".repeat(len);
        let entry = Entry { cause: Some(&cause), ..MINIMAL };
        let bytes = encode(&entry);
        let mut out = b"before".to_vec();
        let too_long = EntryError::TooLong { len: bytes.len() };
        if fits {
            assert_eq!(entry.try_encode_into(&mut out), Ok(()));
            assert_eq!(out[6..], *bytes.as_bytes());
            assert_eq!(parse(bytes.as_bytes()).unwrap().as_entry(), entry);
        } else {
            assert_eq!(entry.try_encode_into(&mut out), Err(too_long));
            assert_eq!(out, b"before");
            assert_eq!(parse(bytes.as_bytes()), Err(too_long));
        }
    }
}

#[test]
fn event_ids() {
    for (text, xact_id, n) in
        [("0-0", 0, 0), ("7431-2", 7431, 2), ("18446744073709551615-4294967295", u64::MAX, u32::MAX)]
    {
        let id = EventId { xact_id, n };
        assert_eq!(text.parse(), Ok(id));
        assert_eq!(id.to_string(), text);
    }
    for bad in [
        "",
        "-",
        "1",
        "1-",
        "-1",
        "1--1",
        "+1-1",
        "1-+1",
        "01-1",
        "1-01",
        "00-0",
        "1-1-1",
        " 1-1",
        "1-1 ",
        "1_1",
        "a-1",
        "\u{661}-1",
        "18446744073709551616-0",
        "0-4294967296",
    ] {
        assert!(bad.parse::<EventId>().is_err(), "{bad:?}");
    }
}

#[test]
fn images_of_one_text_differ_by_kind_and_salt() {
    let digests = [
        image_digest(ImageKind::Key, &[0; 16], "{}"),
        image_digest(ImageKind::Old, &[0; 16], "{}"),
        image_digest(ImageKind::New, &[0; 16], "{}"),
        image_digest(ImageKind::New, &[1; 16], "{}"),
        image_digest(ImageKind::New, &[1; 16], "{ }"),
    ];
    let distinct: std::collections::BTreeSet<_> = digests.iter().collect();
    assert_eq!(distinct.len(), digests.len());
    let preimage = [b"agd-image-v1\0old\0".as_slice(), &[0; 16], b"{}"].concat();
    assert_eq!(digests[1], <Hash>::from(Sha256::digest(preimage)));
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[\\x00-\\x1f\"\\\\/a-c\u{7f}é😀]{0,20}", "[a-z]{0,70}"]
}

fn maybe_text() -> impl Strategy<Value = Option<String>> {
    prop::option::of(text())
}

fn entries() -> impl Strategy<Value = OwnedEntry> {
    let header = (any::<(u64, u32)>(), text(), any::<i64>(), any::<i64>(), any::<bool>());
    let what = (maybe_text(), maybe_text(), maybe_text(), any::<[Option<Hash>; 3]>(), maybe_text());
    let who = (text(), text(), maybe_text(), maybe_text(), maybe_text(), text(), maybe_text(), maybe_text());
    (header, what, who).prop_map(|((id, action, at, committed_at, recent), what, who)| {
        // Every other time within the years that occur.
        let near = |micros: i64| {
            if recent { micros % 4_000_000_000_000_000 } else { micros }
        };
        OwnedEntry {
            event_id: EventId { xact_id: id.0, n: id.1 },
            action,
            at: near(at),
            committed_at: near(committed_at),
            tenant: what.0,
            relation: what.1,
            guard_id: what.2,
            row_key: what.3[0],
            old: what.3[1],
            new: what.3[2],
            body: what.4,
            session_user_name: who.0,
            role_name: who.1,
            principal: who.2,
            fleet_id: who.3,
            cause: who.4,
            binding: who.5,
            application_name: who.6,
            client_addr: who.7,
        }
    })
}

/// As many texts, of characters that are escaped and such that are not, about as long together as the limit and often just
/// that.
fn texts(number: usize, limit: usize) -> impl Strategy<Value = Vec<String>> {
    let kinds = prop::collection::vec(prop::sample::select(vec!["a", "\u{1}", "\"", "\n", "é", "\u{10ffff}"]), number);
    let shares = prop::collection::vec(1..1000_usize, number);
    let spare = prop_oneof![Just(0_usize), 0..50_usize, Just(usize::MAX)];
    (kinds, shares, spare, 0..3_usize).prop_map(move |(kinds, shares, spare, over)| {
        let all: usize = shares.iter().sum();
        let budget = if spare == usize::MAX { limit / 7 } else { limit - spare };
        let mut left = budget + over;
        let last = kinds.len() - 1;
        kinds
            .iter()
            .zip(&shares)
            .enumerate()
            .map(|(index, (kind, share))| {
                let mut out = Vec::new();
                entry::escape(&mut out, kind.as_bytes());
                let room = if index == last { left } else { budget * share / all };
                let count = room.min(left) / out.len();
                left -= count * out.len();
                // What one kind leaves over, the last fills with single bytes.
                let rest = if index == last { left } else { 0 };
                kind.repeat(count) + &"x".repeat(rest)
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn round_trip(entry in entries()) {
        let bytes = encode(&entry.as_entry());
        prop_assert_eq!(parse(bytes.as_bytes()), Ok(entry));
    }

    #[test]
    fn serde_json_reads_the_same_and_writes_the_same(entry in entries()) {
        let bytes = encode(&entry.as_entry());
        let read: BTreeMap<String, Value> = serde_json::from_str(&bytes).unwrap();
        let field = |name: &str| read.get(name).map(|value| value.as_str().unwrap().to_owned());
        let digest = |hash: Option<Hash>| hash.map(|hash| format!("sha256:{}", hex::encode(hash)));
        prop_assert_eq!(field("event_id"), Some(format!("{}-{}", entry.event_id.xact_id, entry.event_id.n)));
        prop_assert_eq!(field("action"), Some(entry.action));
        prop_assert_eq!(field("tenant"), entry.tenant);
        prop_assert_eq!(field("relation"), entry.relation);
        prop_assert_eq!(field("guard_id"), entry.guard_id);
        prop_assert_eq!(field("row_key"), digest(entry.row_key));
        prop_assert_eq!(field("old"), digest(entry.old));
        prop_assert_eq!(field("new"), digest(entry.new));
        prop_assert_eq!(field("body"), entry.body);
        prop_assert_eq!(field("session_user_name"), Some(entry.session_user_name));
        prop_assert_eq!(field("role_name"), Some(entry.role_name));
        prop_assert_eq!(field("principal"), entry.principal);
        prop_assert_eq!(field("fleet_id"), entry.fleet_id);
        prop_assert_eq!(field("cause"), entry.cause);
        prop_assert_eq!(field("binding"), Some(entry.binding));
        prop_assert_eq!(field("application_name"), entry.application_name);
        prop_assert_eq!(field("client_addr"), entry.client_addr);
        prop_assert_eq!(&read["v"], &Value::from(1));
        // Sorted keys, no spaces, the shortest escapes: the canonical form, found by another writer.
        prop_assert_eq!(serde_json::to_string(&read).unwrap(), bytes);
    }

    /// What a recorder accepts has an entry: the two budgets, whatever the texts are made of, and the rest of an entry at its
    /// longest.
    #[test]
    fn what_keeps_to_its_budgets_has_an_entry(
        event in texts(5, entry::MAX_EVENT_TEXTS),
        context in texts(8, entry::MAX_CONTEXT_TEXTS),
        at in prop_oneof![Just(i64::MIN), Just(i64::MAX), any::<i64>()],
    ) {
        let given = |texts: &[String]| texts.iter().map(|text| Some(text.clone())).collect::<Vec<_>>();
        let (event_texts, context_texts) = (given(&event), given(&context));
        let within = |texts: &[Option<String>], max| entry::texts_within(texts.iter().map(Option::as_deref), max);
        let taken = |texts: &[String]| texts.iter().map(|text| {
            let mut out = Vec::new();
            entry::escape(&mut out, text.as_bytes());
            out.len()
        }).sum::<usize>();
        // The judgement is exact.
        for (texts, given, max) in
            [(&event, &event_texts, entry::MAX_EVENT_TEXTS), (&context, &context_texts, entry::MAX_CONTEXT_TEXTS)]
        {
            let taken = taken(texts);
            prop_assert_eq!(within(given, max), if taken <= max { Ok(()) } else { Err(taken) });
        }
        let fits = within(&event_texts, entry::MAX_EVENT_TEXTS).is_ok()
            && within(&context_texts, entry::MAX_CONTEXT_TEXTS).is_ok();
        let entry = Entry {
            event_id: EventId { xact_id: u64::MAX, n: u32::MAX },
            action: &event[0],
            tenant: Some(&event[1]),
            relation: Some(&event[2]),
            body: Some(&event[3]),
            // An event's own role stands in the place of its transaction's: both are counted.
            role_name: if event[4].len() > context[1].len() { &event[4] } else { &context[1] },
            at,
            committed_at: at,
            guard_id: Some("00000000-0000-0000-0000-000000000000"),
            row_key: Some([0xff; 32]),
            old: Some([0xff; 32]),
            new: Some([0xff; 32]),
            session_user_name: &context[0],
            principal: Some(&context[2]),
            fleet_id: Some(&context[3]),
            cause: Some(&context[4]),
            binding: &context[5],
            application_name: Some(&context[6]),
            client_addr: Some(&context[7]),
        };
        let mut out = Vec::new();
        let encoded = entry.try_encode_into(&mut out);
        prop_assert!(!fits || encoded.is_ok(), "{:?}", encoded);
        if fits {
            prop_assert!(parse(&out).is_ok());
        }
    }

    #[test]
    fn later_times_sort_later(a in -62_167_219_200_000_000..253_402_300_800_000_000_i64, step in 1..100_000_000_000_000_i64) {
        let time = |micros: i64| {
            let entry = encode(&Entry { at: micros, ..MINIMAL });
            entry.split('"').nth(7).unwrap().to_owned()
        };
        let b = (a + step).min(253_402_300_799_999_999);
        prop_assert_eq!(time(a) < time(b), a < b);
        prop_assert_eq!(time(a).len(), 27);
    }

    #[test]
    fn a_changed_byte_changes_the_entry_or_is_refused(entry in entries(), at in any::<usize>(), byte in any::<u8>()) {
        let mut bytes = encode(&entry.as_entry()).into_bytes();
        let at = at % bytes.len();
        let same = bytes[at] == byte;
        bytes[at] = byte;
        if let Ok(read) = parse(&bytes) {
            prop_assert_eq!(encode(&read.as_entry()).into_bytes(), bytes);
            prop_assert_eq!(read == entry, same);
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300), cut in any::<usize>(), insert in any::<String>()
    ) {
        prop_assert!(parse(&bytes).is_err());
        let good = encode(&Entry { cause: Some("é\n\u{1}"), old: Some([7; 32]), ..MINIMAL });
        prop_assert!(parse(&good.as_bytes()[..cut % good.len()]).is_err());
        let mut text = good.into_bytes();
        let cut = cut % text.len();
        text.splice(cut..cut, insert.into_bytes());
        if let Ok(read) = parse(&text) {
            prop_assert_eq!(encode(&read.as_entry()).into_bytes(), text);
        }
    }
}
