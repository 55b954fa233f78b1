//! Reading an entry: one pass over its bytes, nothing copied.
//!
//! Owns the check that bytes are an entry's canonical form, field by field in their order, and names the first byte that is
//! not. Promises that [`read`] accepts exactly what [`Entry::encode_into`](super::Entry::encode_into) writes, and that it
//! allocates nothing: a verifier reads hundreds of millions of entries of which it looks at a few fields.

use std::borrow::Cow;

use super::{DAY, ESCAPES, EntryError, EventId, HEX, OwnedEntry, SECOND};
use crate::bundle::MAX_ENTRY_LEN;
use crate::checkpoint::parse_decimal;
use crate::merkle::Hash;

/// Reads an entry: exactly the bytes that [`Entry::encode_into`](super::Entry::encode_into) writes for some event.
///
/// # Errors
/// As [`read`].
pub fn parse(bytes: &[u8]) -> Result<OwnedEntry, EntryError> {
    read(bytes).map(|entry| entry.to_owned())
}

/// Reads an entry as [`parse`] does, borrowing what it says.
///
/// # Errors
/// [`EntryError::TooLong`], [`EntryError::Utf8`], [`EntryError::NotCanonical`] with the first byte that is not as
/// expected, or where the field begins that is.
pub fn read(bytes: &[u8]) -> Result<ParsedEntry<'_>, EntryError> {
    if bytes.len() > MAX_ENTRY_LEN {
        return Err(EntryError::TooLong { len: bytes.len() });
    }
    let input = std::str::from_utf8(bytes).map_err(|error| EntryError::Utf8 { offset: error.valid_up_to() })?;
    Reader::new(input).entry().map_err(|At(offset)| EntryError::NotCanonical { offset })
}

/// A text as it stands in an entry, with its escapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'a> {
    raw: &'a str,
    escaped: bool,
}

impl<'a> Text<'a> {
    /// What it says.
    pub fn value(self) -> Cow<'a, str> {
        if self.escaped { Cow::Owned(unescape(self.raw)) } else { Cow::Borrowed(self.raw) }
    }

    /// Whether it says this.
    pub fn is(self, text: &str) -> bool {
        if self.escaped { unescape(self.raw) == text } else { self.raw == text }
    }
}

/// A digest as it stands in an entry: 64 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest<'a>(&'a [u8; 64]);

impl Digest<'_> {
    /// Its 32 bytes.
    pub fn value(self) -> Hash {
        let nibble = |digit: u8| if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 };
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(self.0.as_chunks::<2>().0) {
            *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
        }
        digest
    }
}

/// One event as it stands in its entry's bytes. The fields are those of [`Entry`](super::Entry).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is documented in Entry")]
pub struct ParsedEntry<'a> {
    pub event_id: EventId,
    pub action: Text<'a>,
    pub at: i64,
    pub committed_at: i64,
    pub tenant: Option<Text<'a>>,
    pub relation: Option<Text<'a>>,
    pub guard_id: Option<Text<'a>>,
    pub row_key: Option<Digest<'a>>,
    pub old: Option<Digest<'a>>,
    pub new: Option<Digest<'a>>,
    pub body: Option<Text<'a>>,
    pub session_user_name: Text<'a>,
    pub role_name: Text<'a>,
    pub principal: Option<Text<'a>>,
    pub fleet_id: Option<Text<'a>>,
    pub cause: Option<Text<'a>>,
    pub binding: Text<'a>,
    pub application_name: Option<Text<'a>>,
    pub client_addr: Option<Text<'a>>,
}

impl ParsedEntry<'_> {
    /// The same event, on its own.
    pub fn to_owned(&self) -> OwnedEntry {
        let text = |text: Text<'_>| text.value().into_owned();
        let digest = |digest: Option<Digest<'_>>| digest.map(Digest::value);
        OwnedEntry {
            event_id: self.event_id,
            action: text(self.action),
            at: self.at,
            committed_at: self.committed_at,
            tenant: self.tenant.map(text),
            relation: self.relation.map(text),
            guard_id: self.guard_id.map(text),
            row_key: digest(self.row_key),
            old: digest(self.old),
            new: digest(self.new),
            body: self.body.map(text),
            session_user_name: text(self.session_user_name),
            role_name: text(self.role_name),
            principal: self.principal.map(text),
            fleet_id: self.fleet_id.map(text),
            cause: self.cause.map(text),
            binding: text(self.binding),
            application_name: self.application_name.map(text),
            client_addr: self.client_addr.map(text),
        }
    }
}

/// The byte at which a text is not canonical.
pub(crate) struct At(pub(crate) usize);

/// Reads fields in their canonical order. `at` is on a character boundary whenever a field begins.
pub(crate) struct Reader<'a> {
    input: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the beginning of a text.
    pub(crate) fn new(input: &'a str) -> Self {
        Self { input, at: 0 }
    }

    /// Where it is.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Goes past so many bytes, which the caller has looked at and which end on a character boundary.
    pub(crate) fn pass(&mut self, bytes: usize) {
        self.at += bytes;
    }

    /// Nothing more.
    pub(crate) fn end(&self) -> Result<(), At> {
        if self.rest().is_empty() { Ok(()) } else { Err(At(self.at)) }
    }

    fn entry(&mut self) -> Result<ParsedEntry<'a>, At> {
        // Fields in a struct expression are evaluated in the order written: the order of the bytes.
        let entry = ParsedEntry {
            action: self.text("{\"action\":\"")?,
            application_name: self.optional_text(",\"application_name\":\"")?,
            at: self.time(",\"at\":\"")?,
            binding: self.text(",\"binding\":\"")?,
            body: self.optional_text(",\"body\":\"")?,
            cause: self.optional_text(",\"cause\":\"")?,
            client_addr: self.optional_text(",\"client_addr\":\"")?,
            committed_at: self.time(",\"committed_at\":\"")?,
            event_id: self.event_id(",\"event_id\":\"")?,
            fleet_id: self.optional_text(",\"fleet_id\":\"")?,
            guard_id: self.optional_text(",\"guard_id\":\"")?,
            new: self.digest(",\"new\":\"sha256:")?,
            old: self.digest(",\"old\":\"sha256:")?,
            principal: self.optional_text(",\"principal\":\"")?,
            relation: self.optional_text(",\"relation\":\"")?,
            role_name: self.text(",\"role_name\":\"")?,
            row_key: self.digest(",\"row_key\":\"sha256:")?,
            session_user_name: self.text(",\"session_user_name\":\"")?,
            tenant: self.optional_text(",\"tenant\":\"")?,
        };
        if self.rest() == b",\"v\":1}" { Ok(entry) } else { Err(At(self.at)) }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.input.as_bytes().get(self.at..).unwrap_or_default()
    }

    /// Goes past `key` when it is next. Always part of its caller: compared with a known text, that is two or three
    /// instructions.
    #[inline(always)]
    pub(crate) fn skip(&mut self, key: &str) -> bool {
        let next = self.rest().starts_with(key.as_bytes());
        if next {
            self.at += key.len();
        }
        next
    }

    #[inline(always)]
    pub(crate) fn expect(&mut self, key: &str) -> Result<(), At> {
        if self.skip(key) { Ok(()) } else { Err(At(self.at)) }
    }

    #[inline(always)]
    pub(crate) fn text(&mut self, key: &str) -> Result<Text<'a>, At> {
        self.expect(key)?;
        self.value()
    }

    #[inline(always)]
    pub(crate) fn optional_text(&mut self, key: &str) -> Result<Option<Text<'a>>, At> {
        if self.skip(key) { self.value().map(Some) } else { Ok(None) }
    }

    /// A string up to and with its closing quote.
    fn value(&mut self) -> Result<Text<'a>, At> {
        let start = self.at;
        let bytes = self.input.as_bytes();
        let mut escaped = false;
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let plain = plain_len(rest);
            let end = self.at + plain;
            match *rest.get(plain).ok_or(At(bytes.len()))? {
                b'"' => {
                    self.at = end + 1;
                    // Both ends are beside a quote, so that they are on character boundaries.
                    let raw = self.input.get(start..end).ok_or(At(start))?;
                    return Ok(Text { raw, escaped });
                }
                b'\\' => {
                    escaped = true;
                    self.at = end + escape_len(&rest[plain..]).ok_or(At(end))?;
                }
                _ => return Err(At(end)),
            }
        }
    }

    fn digest(&mut self, key: &str) -> Result<Option<Digest<'a>>, At> {
        if !self.skip(key) {
            return Ok(None);
        }
        let Some((digits, after)) = self.rest().split_first_chunk::<64>() else {
            return Err(At(self.at + self.rest().iter().take_while(|byte| is_hex(**byte)).count()));
        };
        // All of them, with no way out between: this becomes a few wide instructions.
        if !digits.iter().fold(true, |all, byte| all & is_hex(*byte)) || after.first() != Some(&b'"') {
            return Err(At(self.at + digits.iter().take_while(|byte| is_hex(**byte)).count()));
        }
        self.at += digits.len() + 1;
        Ok(Some(Digest(digits)))
    }

    fn event_id(&mut self, key: &str) -> Result<EventId, At> {
        self.expect(key)?;
        Ok(EventId { xact_id: self.number(b'-')?, n: self.number(b'"')? })
    }

    /// A decimal number up to and with the byte that follows it.
    pub(crate) fn number<T: std::str::FromStr>(&mut self, end: u8) -> Result<T, At> {
        let len = self.rest().iter().position(|byte| *byte == end).ok_or(At(self.at))?;
        let digits = self.input.get(self.at..self.at + len).ok_or(At(self.at))?;
        let number = parse_decimal(digits).ok_or(At(self.at))?;
        self.at += len + 1;
        Ok(number)
    }

    /// Microseconds since the Unix epoch of `2026-11-20T21:31:05.000001Z`, or of a signed year of six digits where four do
    /// not reach.
    pub(crate) fn time(&mut self, key: &str) -> Result<i64, At> {
        self.expect(key)?;
        if let Some(micros) = self.rest().first_chunk().and_then(usual_time) {
            self.at += USUAL;
            return Ok(micros);
        }
        self.any_time()
    }

    /// A time of any year, and where it goes wrong.
    fn any_time(&mut self) -> Result<i64, At> {
        const REST: &[u8; 24] = b"-00-00T00:00:00.000000Z\"";
        let start = self.at;
        let signed = matches!(self.rest().first(), Some(b'+' | b'-'));
        let digits = if signed { 6 } else { 4 };
        self.at += usize::from(signed);
        let year_at = self.at;
        let matching = |bytes: &[u8], pattern: &[u8]| {
            let fits = |(byte, want): &(&u8, &u8)| if **want == b'0' { byte.is_ascii_digit() } else { byte == want };
            bytes.iter().zip(pattern).take_while(fits).count()
        };
        let fits = matching(self.rest(), &b"000000"[..digits]);
        if fits < digits {
            return Err(At(year_at + fits));
        }
        self.at += digits;
        let after = self.at;
        let fits = matching(self.rest(), REST);
        let Some(rest) = self.rest().first_chunk::<24>().filter(|rest| fits == rest.len()) else {
            return Err(At(after + fits));
        };
        let number = |digits: &[u8]| digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
        let year = number(&self.input.as_bytes()[year_at..after]);
        let year = if self.input.as_bytes()[start] == b'-' { -year } else { year };
        // The years of four digits have that form and no other.
        if signed && (0..=9999).contains(&year) {
            return Err(At(start));
        }
        let (month, day) = (number(&rest[1..3]), number(&rest[4..6]));
        let (hour, minute, second) = (number(&rest[7..9]), number(&rest[10..12]), number(&rest[13..15]));
        let within = [
            ((1..=12).contains(&month), 1),
            ((1..=days_in_month(year, month)).contains(&day), 4),
            (hour < 24, 7),
            (minute < 60, 10),
            (second < 60, 13),
        ];
        if let Some((_, offset)) = within.iter().find(|(within, _)| !within) {
            return Err(At(after + offset));
        }
        let of_day = ((hour * 60 + minute) * 60 + second) * SECOND + number(&rest[16..22]);
        let days = days_from_civil(year, month, day);
        // i128: the first day that an i64 reaches begins before the i64 does.
        let micros = match days.checked_mul(DAY).and_then(|micros| micros.checked_add(of_day)) {
            Some(micros) => micros,
            None => {
                let micros = i128::from(days) * i128::from(DAY) + i128::from(of_day);
                i64::try_from(micros).map_err(|_| At(start))?
            }
        };
        self.at = after + rest.len();
        Ok(micros)
    }
}

/// How many bytes a string has as they are, up to a quote, a backslash or a control character.
pub(super) fn plain_len(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let special = special(u64::from_le_bytes(*word));
        if special != 0 {
            return 8 * number + special.trailing_zeros() as usize / 8;
        }
    }
    let plain = rest.iter().position(|byte| ESCAPES[usize::from(*byte)] != 0).unwrap_or(rest.len());
    8 * words.len() + plain
}

/// The high bit of the first of eight bytes that is a quote, a backslash or a control character, and of others behind it
/// perhaps. 0: there is none.
fn special(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    // Below: a byte that is smaller than another one borrows from its high bit, unless it has that itself.
    let below = |word: u64, limit: u64| word.wrapping_sub(EACH * limit) & !word;
    let is = |byte: u8| below(word ^ (EACH * u64::from(byte)), 1);
    (is(b'"') | is(b'\\') | below(word, 0x20)) & (EACH << 7)
}

/// The length of a time whose year has four digits, with the closing quote.
const USUAL: usize = 28;

/// A time whose year has four digits, as nearly all are: two of them stand in every entry. `None`: any other, or none at all.
fn usual_time(text: &[u8; USUAL]) -> Option<i64> {
    const LOWEST: &[u8; USUAL] = b"0000-00-00T00:00:00.000000Z\"";
    const HIGHEST: &[u8; USUAL] = b"9999-99-99T99:99:99.999999Z\"";
    // All of them, with no way out between: this becomes a few wide instructions.
    let within = text.iter().zip(LOWEST.iter().zip(HIGHEST));
    if !within.fold(true, |all, (byte, (low, high))| all & (low <= byte) & (byte <= high)) {
        return None;
    }
    let two = |at: usize| u32::from(text[at] - b'0') * 10 + u32::from(text[at + 1] - b'0');
    let (year, month, day) = (two(0) * 100 + two(2), two(5), two(8));
    let (hour, minute, second) = (two(11), two(14), two(17));
    let within = (month.wrapping_sub(1) < 12) & (day > 0) & (hour < 24) & (minute < 60) & (second < 60);
    if !within || day > 28 && i64::from(day) > days_in_month(i64::from(year), i64::from(month)) {
        return None;
    }
    // Counted from 1 March of a year that is a multiple of 400 and before all of these, as the leap day comes last then.
    let (years, months) = if month > 2 { (year + 400, month - 3) } else { (year + 399, month + 9) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (153 * months + 2) / 5 + day - 1;
    let seconds = i64::from(days) * 86_400 + i64::from(hour * 3600 + minute * 60 + second);
    let micros = i64::from((two(20) * 100 + two(22)) * 100 + two(24));
    Some((seconds - (719_468 + 146_097) * 86_400) * SECOND + micros)
}

fn is_hex(byte: u8) -> bool {
    (byte.wrapping_sub(b'0') < 10) | (byte.wrapping_sub(b'a') < 6)
}

/// The length of the escape that these bytes begin with, when RFC 8785 writes this character so.
fn escape_len(bytes: &[u8]) -> Option<usize> {
    match bytes.get(1)? {
        b'"' | b'\\' | b'b' | b't' | b'n' | b'f' | b'r' => Some(2),
        b'u' => {
            let [b'0', b'0', high @ (b'0' | b'1'), low] = bytes.get(2..6)? else { return None };
            let low = HEX.iter().position(|digit| digit == low)?;
            let value = usize::from(high - b'0') << 4 | low;
            (ESCAPES[value] == b'u').then_some(6)
        }
        _ => None,
    }
}

/// What a string with escapes says. The escapes were checked when the entry was read.
fn unescape(raw: &str) -> String {
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((plain, escape)) = rest.split_once('\\') {
        value.push_str(plain);
        let len = if escape.starts_with('u') { 5 } else { 1 };
        let (escape, tail) = escape.split_at_checked(len).unwrap_or((escape, ""));
        rest = tail;
        value.push(match escape {
            "b" => '\u{8}',
            "t" => '\t',
            "n" => '\n',
            "f" => '\u{C}',
            "r" => '\r',
            "\"" => '"',
            "\\" => '\\',
            _ => char::from(u8::from_str_radix(escape.trim_start_matches('u'), 16).unwrap_or_default()),
        });
    }
    value.push_str(rest);
    value
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

/// The day counted from 1970-01-01 of a proleptic Gregorian date; years count astronomically.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let year_of_era = year.rem_euclid(400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year.div_euclid(400) * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
#[allow(clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_time(text: &[u8; USUAL]) -> Option<i64> {
        let mut reader = Reader::new(std::str::from_utf8(text).ok()?);
        reader.any_time().ok().filter(|_| reader.at() == USUAL)
    }

    proptest! {
        /// Every day of four-digit years, one byte of it perhaps another.
        #[test]
        fn the_usual_time_is_the_time(
            micros in -62_167_219_200_000_000..253_402_300_800_000_000_i64,
            at in 0..USUAL,
            byte in prop_oneof![Just(None), (0x20..0x7F_u8).prop_map(Some), (b'0'..=b'9').prop_map(Some)],
        ) {
            let text = format!("{}\"", super::super::time_text(micros));
            let Ok(mut text) = <[u8; USUAL]>::try_from(text.as_bytes()) else { panic!("{text}") };
            prop_assert_eq!(usual_time(&text), Some(micros));
            text[at] = byte.unwrap_or(text[at]);
            prop_assert_eq!(usual_time(&text), any_time(&text));
        }

        #[test]
        fn a_plain_text_ends_where_a_byte_is_escaped(bytes in prop::collection::vec(prop_oneof![8 => 0x20..=0x7F_u8, 1 => any::<u8>()], 0..40)) {
            let plain = bytes.iter().position(|byte| ESCAPES[usize::from(*byte)] != 0);
            prop_assert_eq!(plain_len(&bytes), plain.unwrap_or(bytes.len()));
        }

        #[test]
        fn the_ends_of_months(year in 0..=9999_u32, month in 0..=13_u32, day in 27..=32_u32) {
            let text = format!("{year:04}-{month:02}-{day:02}T23:59:59.999999Z\"");
            let Ok(text) = <[u8; USUAL]>::try_from(text.as_bytes()) else { panic!("{text}") };
            prop_assert_eq!(usual_time(&text), any_time(&text));
        }
    }
}
