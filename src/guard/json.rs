//! Which values of type json may stand inside an image as they are.
//!
//! An image is read back as jsonb. The type json takes more than jsonb can hold: `\u0000`, half a surrogate pair, a number
//! of a million digits, any depth. Such a value, recorded as it is, would make its whole image unreadable, and with it the
//! history and the verification of its table. Promises to say no to all of those; saying no is always safe, since the
//! value then stands there as a string of its text.

/// Larger than this: not looked through.
const MAX_BYTES: usize = 16 << 20;
/// jsonb recurses; far below what its stack allows.
const MAX_DEPTH: usize = 256;
/// Digits of a number, and its exponent: far below what numeric can hold.
const MAX_DIGITS: usize = 1000;

/// Can jsonb hold this? `text` is valid JSON: PostgreSQL has checked it.
pub fn fits_jsonb(text: &[u8]) -> bool {
    if text.len() > MAX_BYTES {
        return false;
    }
    let mut depth = 0;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return false;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => match end_of_string(text, at) {
                Some(end) => at = end,
                None => return false,
            },
            b'-' | b'0'..=b'9' => {
                let length = text[at..]
                    .iter()
                    .take_while(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'))
                    .count();
                if !is_small(&text[at - 1..at + length]) {
                    return false;
                }
                at += length;
            }
            _ => {}
        }
    }
    true
}

/// The place after a string's closing quote. None: it holds an escape that jsonb refuses.
fn end_of_string(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match (text.get(at)?, text.get(at + 1)) {
            (b'"', _) => return Some(at + 1),
            (b'\\', Some(b'u')) => match code_unit(text, at)? {
                0 | 0xDC00..=0xDFFF => return None,
                0xD800..=0xDBFF => {
                    if !matches!(code_unit(text, at + 6)?, 0xDC00..=0xDFFF) {
                        return None;
                    }
                    at += 12;
                }
                _ => at += 6,
            },
            (b'\\', _) => at += 2,
            _ => at += 1,
        }
    }
}

/// The value of `\uXXXX` at this place.
fn code_unit(text: &[u8], at: usize) -> Option<u32> {
    let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn is_small(number: &[u8]) -> bool {
    let mut parts = number.splitn(2, |byte| matches!(byte, b'e' | b'E'));
    let mantissa = parts.next().unwrap_or_default();
    let exponent = parts.next().unwrap_or_default();
    mantissa.len() <= MAX_DIGITS && exponent.len() <= 4 // a sign and three digits
}
