//! The cause of a fleet, in the one spelling that is hashed: `causeNormalised`.
//!
//! Owns which texts can be a cause and how they are written. Promises that a normalised cause normalises to itself, under
//! this version of Unicode and every later one; that two texts which Unicode calls canonically equivalent give the same
//! bytes; and that nothing in a cause is hidden from whoever reads it before signing. Never trims and never folds case or
//! compatibility characters: the cause stays what its author wrote.
//!
//! A cause is in Normalization Form C (UAX #15). Refused, and not silently removed, since what a signer reads and what he
//! signs must be the same:
//!
//! - code points that this version of Unicode does not assign, and those for private use: their normal form, or what they
//!   look like, is nobody's promise;
//! - controls other than TAB and LF, U+2028 and U+2029: terminals act on them, and CR hides the line before it;
//! - bidirectional controls, which show a text in another order than it is hashed;
//! - everything that has no shape of its own (Default_Ignorable_Code_Point, interlinear annotation): zero-width characters,
//!   joiners, soft hyphens, variation selectors, tags, fillers. Two causes that look alike would have two fleets. This costs
//!   joined emoji and the non-joiners of some scripts; a cause can be worded without them.

use thiserror::Error;
use unicode_normalization::char::is_public_assigned;
use unicode_normalization::{UNICODE_VERSION, UnicodeNormalization as _};

/// The longest cause in bytes, once normalised.
pub const MAX_CAUSE_BYTES: usize = 64 << 10;

/// The longest text that is normalised at all. No text of the permitted length has more bytes in another form.
const MAX_INPUT_BYTES: usize = 4 * MAX_CAUSE_BYTES;

/// Why a text cannot be a cause. Places are counted in characters, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CauseError {
    /// Nothing, or white space alone.
    #[error("a cause cannot be empty")]
    Empty,
    /// More than [`MAX_CAUSE_BYTES`].
    #[error("a cause of more than {MAX_CAUSE_BYTES} bytes is too long")]
    TooLong,
    /// A control character.
    #[error(
        "character {place} is the control character U+{code_point:04X}; of these only TAB and line feed may stand in a cause"
    )]
    Control {
        /// Where.
        place: usize,
        /// Which.
        code_point: u32,
    },
    /// A character that changes the order in which others are shown.
    #[error(
        "character {place} is U+{code_point:04X}, which changes the direction of text: it would be read in another order than it is signed"
    )]
    Bidirectional {
        /// Where.
        place: usize,
        /// Which.
        code_point: u32,
    },
    /// A character without a shape.
    #[error("character {place} is U+{code_point:04X}, which cannot be seen: a cause is what can be read")]
    Invisible {
        /// Where.
        place: usize,
        /// Which.
        code_point: u32,
    },
    /// A code point without a meaning that Unicode defines.
    #[error("character {place} is U+{code_point:04X}, which Unicode {}.{} does not assign", UNICODE_VERSION.0, UNICODE_VERSION.1)]
    Unassigned {
        /// Where.
        place: usize,
        /// Which.
        code_point: u32,
    },
}

/// The version of Unicode that causes are normalised by, as `18.0.0`.
pub fn unicode_version() -> String {
    let (major, minor, update) = UNICODE_VERSION;
    format!("{major}.{minor}.{update}")
}

/// A text as a cause, in Normalization Form C.
///
/// ```
/// use agd_core::cause::{normalised, CauseError};
/// assert_eq!(normalised("cafe\u{301}").as_deref(), Ok("caf\u{e9}"));
/// assert_eq!(normalised(" \n"), Err(CauseError::Empty));
/// ```
///
/// # Errors
/// [`CauseError`] names the first thing that is wrong.
pub fn normalised(cause: &str) -> Result<String, CauseError> {
    if cause.chars().all(char::is_whitespace) {
        return Err(CauseError::Empty);
    }
    if cause.len() > MAX_INPUT_BYTES {
        return Err(CauseError::TooLong);
    }
    for (at, character) in cause.chars().enumerate() {
        check(at + 1, character)?;
    }
    let cause: String = cause.nfc().collect();
    if cause.len() > MAX_CAUSE_BYTES { Err(CauseError::TooLong) } else { Ok(cause) }
}

/// Is this text a cause as it stands?
pub fn is_normalised(cause: &str) -> bool {
    normalised(cause).as_deref() == Ok(cause)
}

/// Is a character one that is seen as what it is, wherever it stands? Neither white space but the space, nor a control, nor
/// anything that has no shape, turns text round or means nothing. For names that are shown to people.
pub(crate) fn is_plain(character: char) -> bool {
    (character == ' ' || !character.is_whitespace()) && check(1, character).is_ok()
}

fn check(place: usize, character: char) -> Result<(), CauseError> {
    let code_point = u32::from(character);
    if matches!(character, '\t' | '\n' | ' '..='~') {
        return Ok(());
    }
    if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
        return Err(CauseError::Control { place, code_point });
    }
    if matches!(character, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}') {
        return Err(CauseError::Bidirectional { place, code_point });
    }
    if is_invisible(character) {
        return Err(CauseError::Invisible { place, code_point });
    }
    if !is_public_assigned(character) {
        return Err(CauseError::Unassigned { place, code_point });
    }
    Ok(())
}

/// Default_Ignorable_Code_Point of DerivedCoreProperties.txt (less the bidirectional controls among them), and the controls
/// of interlinear annotation and of Egyptian, shorthand and musical layout, all General_Category Cf.
fn is_invisible(character: char) -> bool {
    matches!(
        character,
        '\u{00AD}'
            | '\u{034F}'
            | '\u{115F}'..='\u{1160}'
            | '\u{17B4}'..='\u{17B5}'
            | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200D}'
            | '\u{2060}'..='\u{2065}'
            | '\u{206A}'..='\u{206F}'
            | '\u{3164}'
            | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}'
            | '\u{FFA0}'
            | '\u{FFF0}'..='\u{FFFB}'
            | '\u{13430}'..='\u{1343F}'
            | '\u{1BCA0}'..='\u{1BCA3}'
            | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E0FFF}'
    )
}
