use agd_core::cause::{CauseError, MAX_CAUSE_BYTES, is_normalised, normalised, unicode_version};
use proptest::prelude::*;

#[test]
fn canonically_equivalent_texts_are_one_cause() {
    for (written, meant) in [
        ("onboarding of acme", "onboarding of acme"),
        ("cafe\u{301}", "caf\u{e9}"),
        ("A\u{30a}ngstro\u{308}m", "\u{c5}ngstr\u{f6}m"),
        ("\u{212b}", "\u{c5}"),                   // the Angstrom sign is the letter
        ("q\u{307}\u{323}", "q\u{323}\u{307}"),   // marks in canonical order
        ("\u{1112}\u{1161}\u{11ab}", "\u{d55c}"), // a Hangul syllable
        ("\u{958}", "\u{915}\u{93c}"),            // a composition exclusion
        ("line one\n\tline two ", "line one\n\tline two "),
    ] {
        assert_eq!(normalised(written).as_deref(), Ok(meant), "{written:?}");
        assert!(is_normalised(meant), "{meant:?}");
        assert_eq!(is_normalised(written), written == meant, "{written:?}");
    }
}

/// Normal form C, and not KC: what its author wrote as a ligature stays one.
#[test]
fn compatibility_characters_stay() {
    for text in ["\u{fb01}le", "x\u{b2}", "\u{ff21}", "\u{2460}", "\u{3392}"] {
        assert_eq!(normalised(text).as_deref(), Ok(text));
    }
}

#[test]
fn what_cannot_be_read_is_refused() {
    let bidirectional = |code_point| CauseError::Bidirectional { place: 3, code_point };
    let invisible = |code_point| CauseError::Invisible { place: 3, code_point };
    let control = |code_point| CauseError::Control { place: 3, code_point };
    let unassigned = |code_point| CauseError::Unassigned { place: 3, code_point };
    for (character, error) in [
        ('\u{202e}', bidirectional(0x202e)),
        ('\u{2066}', bidirectional(0x2066)),
        ('\u{200f}', bidirectional(0x200f)),
        ('\u{61c}', bidirectional(0x61c)),
        ('\u{200b}', invisible(0x200b)),
        ('\u{200d}', invisible(0x200d)),
        ('\u{2060}', invisible(0x2060)),
        ('\u{feff}', invisible(0xfeff)),
        ('\u{ad}', invisible(0xad)),
        ('\u{34f}', invisible(0x34f)),
        ('\u{3164}', invisible(0x3164)),
        ('\u{fe0f}', invisible(0xfe0f)),
        ('\u{e0041}', invisible(0xe0041)),
        ('\u{e0100}', invisible(0xe0100)),
        ('\0', control(0)),
        ('\r', control(0xd)),
        ('\u{1b}', control(0x1b)),
        ('\u{7f}', control(0x7f)),
        ('\u{85}', control(0x85)),
        ('\u{2028}', control(0x2028)),
        ('\u{378}', unassigned(0x378)),
        ('\u{e000}', unassigned(0xe000)),
        ('\u{ffff}', unassigned(0xffff)),
        ('\u{10ffff}', unassigned(0x10ffff)),
    ] {
        let text = format!("ab{character}c");
        assert_eq!(normalised(&text), Err(error), "{text:?}");
        assert!(error.to_string().contains(&format!("U+{:04X}", u32::from(character))), "{error}");
    }
}

#[test]
fn sizes_at_their_limits() {
    let longest = "x".repeat(MAX_CAUSE_BYTES);
    assert_eq!(normalised(&longest).as_deref(), Ok(longest.as_str()));
    assert_eq!(normalised(&format!("{longest}x")), Err(CauseError::TooLong));
    // Longer as it is written, and not as it is kept.
    let decomposed = "e\u{301}".repeat(MAX_CAUSE_BYTES / 2);
    assert_eq!(normalised(&decomposed), Ok("\u{e9}".repeat(MAX_CAUSE_BYTES / 2)));
    assert_eq!(normalised(&"x".repeat(10 << 20)), Err(CauseError::TooLong));
    for empty in ["", " ", "\n\t \u{3000}"] {
        assert_eq!(normalised(empty), Err(CauseError::Empty), "{empty:?}");
    }
    assert_eq!(unicode_version().split('.').count(), 3);
}

/// Every assigned character that a cause may hold keeps its meaning under a second normalisation, alone and after a mark.
#[test]
fn every_character_is_settled_by_one_normalisation() {
    for character in (0..=0x10_ffff).filter_map(char::from_u32) {
        let text = format!("a\u{323}{character}\u{301}");
        if let Ok(once) = normalised(&text) {
            assert_eq!(normalised(&once).as_deref(), Ok(once.as_str()), "U+{:04X}", u32::from(character));
        }
    }
}

proptest! {
    #[test]
    fn normalised_once_is_normalised(text in "(?s:.{0,200})") {
        if let Ok(once) = normalised(&text) {
            prop_assert!(is_normalised(&once));
            prop_assert!(once.chars().all(|c| c == '\n' || c == '\t' || !c.is_control()));
        }
    }

    #[test]
    fn accents_in_any_order_give_one_cause(letters in "[a-z]{1,8}", mut marks in prop::collection::vec(0x300u32..0x315, 1..4)) {
        // Marks above keep their order among themselves; those below may stand anywhere between.
        let below = "\u{323}";
        marks.retain(|mark| *mark != 0x315);
        let above: String = marks.iter().filter_map(|mark| char::from_u32(*mark)).collect();
        prop_assert_eq!(normalised(&format!("{letters}{below}{above}")), normalised(&format!("{letters}{above}{below}")));
    }
}
