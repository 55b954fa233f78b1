use agd_core::incarnation::IncarnationError;
use agd_core::{Checkpoint, CheckpointError, Incarnation};
use proptest::prelude::*;

fn checkpoint(origin: &str, size: u64, fill: u8) -> Checkpoint {
    Checkpoint { origin: origin.to_owned(), size, root: [fill; 32] }
}

fn body(published: &str, closed: &str, reason: &str) -> Incarnation {
    Incarnation {
        published: checkpoint(published, 900, 1),
        closed: checkpoint(closed, 512, 2),
        reason: reason.to_owned(),
    }
}

#[test]
fn the_bytes_of_a_body() {
    let text = body("agd-7/app", "agd-7/app", "the disk was lost").to_string();
    let expected = "agd-7/app\n900\nAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n\
                    agd-7/app\n512\nAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=\n\
                    the disk was lost";
    assert_eq!(text, expected);
}

#[test]
fn what_is_no_body() {
    let good = body("a", "a", "why").to_string();
    assert!(Incarnation::parse(&good).is_ok());
    let published = IncarnationError::Published;
    let closed = IncarnationError::Closed;
    for (text, error) in [
        (String::new(), published(CheckpointError::Origin)),
        (good.replacen("900", "0900", 1), published(CheckpointError::Size)),
        (good.replacen("AQEB", "", 1), published(CheckpointError::Root)),
        (good.replacen("512", "+512", 1), closed(CheckpointError::Size)),
        (good.replacen("AgIC", "!", 1), closed(CheckpointError::Root)),
        (good.trim_end_matches("why").to_owned(), IncarnationError::Reason),
        (checkpoint("a", 900, 1).to_string(), closed(CheckpointError::Origin)),
    ] {
        assert_eq!(Incarnation::parse(&text), Err(error), "{text:?}");
    }
}

#[test]
fn both_checkpoints_are_of_one_database() {
    for (published, closed, fine) in [
        ("a/b", "a/b", true),
        ("a/b/t/acme", "a/b", true),
        ("a/b/i2/t/acme", "a/b/i2", true),
        ("a/b/i2", "a/b/i2", true),
        ("a/b", "a/c", false),
        ("a/b", "a/b/t/acme", false),
        ("a/bc", "a/b", false),
        ("a/b/i2", "a/b", false),
        ("a/b/t/", "a/b", false),
        ("a/b/t/a/t/b", "a/b", false),
    ] {
        let parsed = Incarnation::parse(&body(published, closed, "why").to_string());
        assert_eq!(parsed.err(), (!fine).then_some(IncarnationError::Origins), "{published} {closed}");
    }
}

proptest! {
    #[test]
    fn what_parses_prints_the_same_bytes(text in "(a(/t/b)?\n[0-9]{1,3}\nA{43}=\n){2}(?s:.{0,20})") {
        if let Ok(parsed) = Incarnation::parse(&text) {
            prop_assert_eq!(parsed.to_string(), text);
        }
    }

    #[test]
    fn every_reason_comes_back(reason in "(?s:.{1,200})", size in any::<u64>(), root in any::<[u8; 32]>()) {
        let mut written = body("a/i3/t/x", "a/i3", &reason);
        written.closed = Checkpoint { origin: "a/i3".into(), size, root };
        prop_assert_eq!(Incarnation::parse(&written.to_string()), Ok(written));
    }

    #[test]
    fn arbitrary_text_never_panics(text in "(?s:.{0,300})") {
        let _ = Incarnation::parse(&text);
    }
}
