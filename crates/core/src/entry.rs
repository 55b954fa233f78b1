//! Entries: the canonical bytes of one event, the preimage of its leaf in the log.
//!
//! Owns the entry's fields, their order and spelling (RFC 8785 canonical JSON), event ids, times and the salted digests of
//! row images. Promises that one event has one byte string, that [`parse`] accepts that string only, and that an entry
//! holds no row data: images enter as digests, so that erasing them leaves every proof intact. It never allocates while
//! encoding beyond the buffer it is given, and never reads a clock.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::bundle::MAX_ENTRY_LEN;
use crate::checkpoint::parse_decimal;
use crate::merkle::Hash;

/// The value of the `v` field: the version of this format.
pub const VERSION: u32 = 1;

/// The action of an entry whose body is a tenant's checkpoint text; only a platform log has such entries.
pub const CHECKPOINT: &str = "CHECKPOINT";

/// The action of the entry that begins a later incarnation's platform log; its body is an [`Incarnation`](crate::Incarnation).
pub const INCARNATION: &str = "INCARNATION";

/// Which event: the transaction's 64-bit id and the event's number in it. Prints as `7431-2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// The transaction id with its epoch (PostgreSQL's `xid8`).
    pub xact_id: u64,
    /// The event's number within the transaction.
    pub n: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.xact_id, self.n)
    }
}

/// Not an event id: two decimal numbers, without sign or leading zeroes, with a hyphen between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not an event id of the form <xact_id>-<n>")]
pub struct EventIdError;

impl FromStr for EventId {
    type Err = EventIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (xact_id, n) = text.split_once('-').ok_or(EventIdError)?;
        Ok(Self { xact_id: parse_decimal(xact_id).ok_or(EventIdError)?, n: parse_decimal(n).ok_or(EventIdError)? })
    }
}

/// Why bytes are not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EntryError {
    /// More bytes than an entry bundle can hold.
    #[error("the entry has {len} bytes, at most {MAX_ENTRY_LEN} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// Not UTF-8.
    #[error("the entry is not UTF-8 at byte {offset}")]
    Utf8 {
        /// Where it stops being UTF-8.
        offset: usize,
    },
    /// Not the canonical form of version 1: another key, order, spelling or type, or a missing field.
    #[error("the entry is not a canonical version {VERSION} entry at byte {offset}")]
    NotCanonical {
        /// Where it departs from the canonical form.
        offset: usize,
    },
}

/// One event, borrowed. Optional fields that are `None` do not appear in the entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Which event.
    pub event_id: EventId,
    /// What happened: `INSERT`, `UPDATE`, `DELETE`, `TRUNCATE`, `BASELINE`, `DENIED`, `DDL`, …
    pub action: &'a str,
    /// When it was recorded: microseconds since the Unix epoch, UTC.
    pub at: i64,
    /// The transaction's commit stamp: microseconds since the Unix epoch, UTC.
    pub committed_at: i64,
    /// Whose log it belongs to; none for the platform log.
    pub tenant: Option<&'a str>,
    /// The table, schema-qualified.
    pub relation: Option<&'a str>,
    /// The guard's stable id, a uuid in lower-case text.
    pub guard_id: Option<&'a str>,
    /// [`image_digest`] of the row's key.
    pub row_key: Option<Hash>,
    /// [`image_digest`] of the row before.
    pub old: Option<Hash>,
    /// [`image_digest`] of the row after.
    pub new: Option<Hash>,
    /// A tenant's checkpoint text, or the guard state. Never personal data.
    pub body: Option<&'a str>,
    /// The role that logged in.
    pub session_user_name: &'a str,
    /// The role in force.
    pub role_name: &'a str,
    /// Who acted, as the binding says.
    pub principal: Option<&'a str>,
    /// The fleet that acted.
    pub fleet_id: Option<&'a str>,
    /// Why, as the application said.
    pub cause: Option<&'a str>,
    /// How strongly the tenant was bound: `role`, `token`, `asserted`, …
    pub binding: &'a str,
    /// The client's `application_name`.
    pub application_name: Option<&'a str>,
    /// The client's address.
    pub client_addr: Option<&'a str>,
}

/// One event, owned: what [`parse`] returns. The fields are those of [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "each field is documented in Entry")]
pub struct OwnedEntry {
    pub event_id: EventId,
    pub action: String,
    pub at: i64,
    pub committed_at: i64,
    pub tenant: Option<String>,
    pub relation: Option<String>,
    pub guard_id: Option<String>,
    pub row_key: Option<Hash>,
    pub old: Option<Hash>,
    pub new: Option<Hash>,
    pub body: Option<String>,
    pub session_user_name: String,
    pub role_name: String,
    pub principal: Option<String>,
    pub fleet_id: Option<String>,
    pub cause: Option<String>,
    pub binding: String,
    pub application_name: Option<String>,
    pub client_addr: Option<String>,
}

impl OwnedEntry {
    /// The same event, borrowed.
    pub fn as_entry(&self) -> Entry<'_> {
        Entry {
            event_id: self.event_id,
            action: &self.action,
            at: self.at,
            committed_at: self.committed_at,
            tenant: self.tenant.as_deref(),
            relation: self.relation.as_deref(),
            guard_id: self.guard_id.as_deref(),
            row_key: self.row_key,
            old: self.old,
            new: self.new,
            body: self.body.as_deref(),
            session_user_name: &self.session_user_name,
            role_name: &self.role_name,
            principal: self.principal.as_deref(),
            fleet_id: self.fleet_id.as_deref(),
            cause: self.cause.as_deref(),
            binding: &self.binding,
            application_name: self.application_name.as_deref(),
            client_addr: self.client_addr.as_deref(),
        }
    }
}

impl Entry<'_> {
    /// Appends the entry's canonical bytes to `out`.
    ///
    /// Times in the years 0000 to 9999 are RFC 3339. Any other `i64` of microseconds is written too, with ECMA-262's
    /// expanded years: a sign and six digits. The length is not limited here; see [`Entry::try_encode_into`].
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        // RFC 8785 sorts keys by UTF-16 code units; these are ASCII, so it is byte order.
        text(out, b"{\"action\":\"", self.action);
        optional_text(out, b",\"application_name\":\"", self.application_name);
        time(out, b",\"at\":\"", self.at);
        text(out, b",\"binding\":\"", self.binding);
        optional_text(out, b",\"body\":\"", self.body);
        optional_text(out, b",\"cause\":\"", self.cause);
        optional_text(out, b",\"client_addr\":\"", self.client_addr);
        time(out, b",\"committed_at\":\"", self.committed_at);
        out.extend_from_slice(b",\"event_id\":\"");
        decimal(out, self.event_id.xact_id);
        out.push(b'-');
        decimal(out, u64::from(self.event_id.n));
        out.push(b'"');
        optional_text(out, b",\"fleet_id\":\"", self.fleet_id);
        optional_text(out, b",\"guard_id\":\"", self.guard_id);
        digest(out, b",\"new\":\"sha256:", self.new);
        digest(out, b",\"old\":\"sha256:", self.old);
        optional_text(out, b",\"principal\":\"", self.principal);
        optional_text(out, b",\"relation\":\"", self.relation);
        text(out, b",\"role_name\":\"", self.role_name);
        digest(out, b",\"row_key\":\"sha256:", self.row_key);
        text(out, b",\"session_user_name\":\"", self.session_user_name);
        optional_text(out, b",\"tenant\":\"", self.tenant);
        out.extend_from_slice(b",\"v\":1}");
    }

    /// As [`Entry::encode_into`], but refuses an entry that no bundle can hold.
    ///
    /// # Errors
    /// [`EntryError::TooLong`] above [`MAX_ENTRY_LEN`] bytes; `out` is then as it was.
    pub fn try_encode_into(&self, out: &mut Vec<u8>) -> Result<(), EntryError> {
        let start = out.len();
        self.encode_into(out);
        let len = out.len() - start;
        if len > MAX_ENTRY_LEN {
            out.truncate(start);
            return Err(EntryError::TooLong { len });
        }
        Ok(())
    }
}

fn optional_text(out: &mut Vec<u8>, key: &[u8], value: Option<&str>) {
    if let Some(value) = value {
        text(out, key, value);
    }
}

/// `key` ends with the opening quote.
fn text(out: &mut Vec<u8>, key: &[u8], value: &str) {
    out.extend_from_slice(key);
    escape(out, value.as_bytes());
    out.push(b'"');
}

/// What a byte of UTF-8 becomes in an RFC 8785 string: 0 itself, `u` a `\u00xx`, else a backslash and that byte.
const ESCAPES: [u8; 256] = {
    let mut escapes = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        escapes[byte] = b'u';
        byte += 1;
    }
    escapes[0x08] = b'b';
    escapes[b'\t' as usize] = b't';
    escapes[b'\n' as usize] = b'n';
    escapes[0x0C] = b'f';
    escapes[b'\r' as usize] = b'r';
    escapes[b'"' as usize] = b'"';
    escapes[b'\\' as usize] = b'\\';
    escapes
};

const HEX: &[u8; 16] = b"0123456789abcdef";

fn escape(out: &mut Vec<u8>, mut value: &[u8]) {
    while let Some(plain) = value.iter().position(|byte| ESCAPES[usize::from(*byte)] != 0) {
        let byte = value[plain];
        out.extend_from_slice(&value[..plain]);
        match ESCAPES[usize::from(byte)] {
            b'u' => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&hex(byte));
            }
            short => out.extend_from_slice(&[b'\\', short]),
        }
        value = &value[plain + 1..];
    }
    out.extend_from_slice(value);
}

fn hex(byte: u8) -> [u8; 2] {
    [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]
}

/// `key` ends with `sha256:`.
fn digest(out: &mut Vec<u8>, key: &[u8], digest: Option<Hash>) {
    let Some(digest) = digest else { return };
    let mut quoted = [b'"'; 65];
    for (pair, byte) in quoted.as_chunks_mut::<2>().0.iter_mut().zip(digest) {
        *pair = hex(byte);
    }
    out.extend_from_slice(key);
    out.extend_from_slice(&quoted);
}

fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [b'0'; 20];
    let mut first = digits.len() - 1;
    loop {
        digits[first] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
        first -= 1;
    }
    out.extend_from_slice(&digits[first..]);
}

/// The digits of `value`, with leading zeroes, in `place`.
fn padded(place: &mut [u8], mut value: u32) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// `key` ends with the opening quote.
fn time(out: &mut Vec<u8>, key: &[u8], micros: i64) {
    let (year, month, day) = civil_from_days(micros.div_euclid(DAY));
    let of_day = micros.rem_euclid(DAY);
    let second = (of_day / SECOND) as u32;
    let mut rest = *b"-00-00T00:00:00.000000Z\"";
    padded(&mut rest[1..3], month);
    padded(&mut rest[4..6], day);
    padded(&mut rest[7..9], second / 3600);
    padded(&mut rest[10..12], second / 60 % 60);
    padded(&mut rest[13..15], second % 60);
    padded(&mut rest[16..22], (of_day % SECOND) as u32);
    out.extend_from_slice(key);
    if (0..=9999).contains(&year) {
        let mut digits = [0; 4];
        padded(&mut digits, year.unsigned_abs());
        out.extend_from_slice(&digits);
    } else {
        let mut digits = [if year < 0 { b'-' } else { b'+' }; 7];
        padded(&mut digits[1..], year.unsigned_abs());
        out.extend_from_slice(&digits);
    }
    out.extend_from_slice(&rest);
}

/// A time as entries write it, from microseconds since 1970-01-01T00:00:00Z.
pub fn time_text(micros: i64) -> String {
    let mut out = Vec::with_capacity(28);
    time(&mut out, b"", micros);
    out.pop(); // the closing quote
    String::from_utf8_lossy(&out).into_owned()
}

/// The proleptic Gregorian date of a day counted from 1970-01-01. Years count astronomically: 0 is 1 BC.
///
/// The calendar repeats every 400 years (146,097 days); counted from 1 March, the leap day comes last in the year.
fn civil_from_days(days: i64) -> (i32, u32, u32) {
    let from_march_0000 = days + 719_468;
    let era = from_march_0000.div_euclid(146_097);
    let day_of_era = from_march_0000.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year as i32, month as u32, day as u32)
}

/// The inverse of [`civil_from_days`] for months 1 to 12 and days 1 to 31.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month_from_march = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let year_of_era = year.rem_euclid(400);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    year.div_euclid(400) * 146_097 + day_of_era - 719_468
}

/// Reads an entry: exactly the bytes that [`Entry::encode_into`] writes for some event.
///
/// # Errors
/// [`EntryError::TooLong`], [`EntryError::Utf8`], [`EntryError::NotCanonical`] with the first byte that is not as
/// expected.
pub fn parse(bytes: &[u8]) -> Result<OwnedEntry, EntryError> {
    if bytes.len() > MAX_ENTRY_LEN {
        return Err(EntryError::TooLong { len: bytes.len() });
    }
    let input = std::str::from_utf8(bytes).map_err(|error| EntryError::Utf8 { offset: error.valid_up_to() })?;
    let mut reader = Reader { input, at: 0 };
    let entry = reader.entry().map_err(|NotCanonical| EntryError::NotCanonical { offset: reader.at })?;
    // Whatever the reader was lenient about (a 30th of February, a needless escape) shows here.
    let mut again = Vec::with_capacity(bytes.len());
    entry.as_entry().encode_into(&mut again);
    if again != bytes {
        let same = again.iter().zip(bytes).take_while(|(a, b)| a == b).count();
        return Err(EntryError::NotCanonical { offset: same });
    }
    Ok(entry)
}

struct NotCanonical;

/// Reads the fields in their canonical order. `at` is always on a character boundary and, after an error, where the
/// field that failed begins.
struct Reader<'a> {
    input: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn entry(&mut self) -> Result<OwnedEntry, NotCanonical> {
        // Fields in a struct expression are evaluated in the order written: the order of the bytes.
        let entry = OwnedEntry {
            action: self.text("{\"action\":\"")?,
            application_name: self.optional_text(",\"application_name\":\"")?,
            at: self.time(",\"at\":\"")?,
            binding: self.text(",\"binding\":\"")?,
            body: self.optional_text(",\"body\":\"")?,
            cause: self.optional_text(",\"cause\":\"")?,
            client_addr: self.optional_text(",\"client_addr\":\"")?,
            committed_at: self.time(",\"committed_at\":\"")?,
            event_id: self.parsed(",\"event_id\":\"", |id| id.parse().ok())?,
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
        if &self.input[self.at..] == ",\"v\":1}" { Ok(entry) } else { Err(NotCanonical) }
    }

    /// The raw text between `key`, which ends inside the string, and the closing quote; `None` when `key` is not next.
    fn raw(&mut self, key: &str) -> Result<Option<&'a str>, NotCanonical> {
        let Some(rest) = self.input[self.at..].strip_prefix(key) else {
            return Ok(None);
        };
        // A quote ends the string unless an odd number of backslashes stands before it.
        let mut end = rest.find('"').ok_or(NotCanonical)?;
        while rest[..end].bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 1 {
            end += 1 + rest[end + 1..].find('"').ok_or(NotCanonical)?;
        }
        self.at += key.len() + end + 1;
        Ok(Some(&rest[..end]))
    }

    fn optional<T>(&mut self, key: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, NotCanonical> {
        let start = self.at;
        let Some(raw) = self.raw(key)? else {
            return Ok(None);
        };
        let value = read(raw);
        if value.is_none() {
            self.at = start;
        }
        value.map(Some).ok_or(NotCanonical)
    }

    fn parsed<T>(&mut self, key: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<T, NotCanonical> {
        self.optional(key, read)?.ok_or(NotCanonical)
    }

    fn text(&mut self, key: &str) -> Result<String, NotCanonical> {
        self.parsed(key, unescape)
    }

    fn optional_text(&mut self, key: &str) -> Result<Option<String>, NotCanonical> {
        self.optional(key, unescape)
    }

    fn time(&mut self, key: &str) -> Result<i64, NotCanonical> {
        self.parsed(key, parse_time)
    }

    fn digest(&mut self, key: &str) -> Result<Option<Hash>, NotCanonical> {
        self.optional(key, parse_digest)
    }
}

/// 64 hex digits.
fn parse_digest(raw: &str) -> Option<Hash> {
    let raw: &[u8; 64] = raw.as_bytes().try_into().ok()?;
    let mut digest = [0; 32];
    let mut all = 0;
    for (byte, pair) in digest.iter_mut().zip(raw.as_chunks::<2>().0) {
        let (high, low) = (NIBBLES[usize::from(pair[0])], NIBBLES[usize::from(pair[1])]);
        all |= high | low;
        *byte = high << 4 | low;
    }
    (all < 16).then_some(digest)
}

/// The value of a lower-case hex digit; 16 for every other byte.
const NIBBLES: [u8; 256] = {
    let mut nibbles = [16; 256];
    let mut value = 0;
    while value < 16 {
        nibbles[HEX[value as usize] as usize] = value;
        value += 1;
    }
    nibbles
};

fn unescape(raw: &str) -> Option<String> {
    let mut value = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(plain) = rest.find('\\') {
        value.push_str(&rest[..plain]);
        rest = &rest[plain + 1..];
        let (kind, tail) = rest.split_at_checked(1)?;
        rest = tail;
        value.push(match kind {
            "\"" => '"',
            "\\" => '\\',
            "b" => '\u{8}',
            "t" => '\t',
            "n" => '\n',
            "f" => '\u{C}',
            "r" => '\r',
            "u" => {
                let (digits, tail) = rest.split_at_checked(4)?;
                rest = tail;
                char::from(u8::from_str_radix(digits.strip_prefix("00")?, 16).ok()?)
            }
            _ => return None,
        });
    }
    value.push_str(rest);
    Some(value)
}

/// Microseconds since the Unix epoch of `2026-11-20T21:31:05.000001Z`, or the same with a signed six-digit year.
fn parse_time(raw: &str) -> Option<i64> {
    let signed = raw.starts_with(['+', '-']);
    let (year, rest) = raw.split_at_checked(if signed { 7 } else { 4 })?;
    let field = |start: usize, len: usize| -> Option<i64> {
        let digits = rest.get(start..start + len)?;
        if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
    };
    let year: i64 = year.parse().ok()?;
    let (month, day) = (field(1, 2)?, field(4, 2)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || rest.len() != 23 {
        return None;
    }
    let second = field(7, 2)? * 3600 + field(10, 2)? * 60 + field(13, 2)?;
    let of_day = second * SECOND + field(16, 6)?;
    // i128: the first day that an i64 reaches begins before the i64 does.
    let micros = i128::from(days_from_civil(year, month, day)) * i128::from(DAY) + i128::from(of_day);
    i64::try_from(micros).ok()
}

/// Which image of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// The primary key.
    Key,
    /// The row before.
    Old,
    /// The row after.
    New,
}

impl ImageKind {
    /// Its name in the digest's preimage: `key`, `old` or `new`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Old => "old",
            Self::New => "new",
        }
    }
}

/// The digest of a row image: SHA-256(`agd-image-v1` ‖ 0x00 ‖ kind name ‖ 0x00 ‖ salt ‖ text).
///
/// The salt is drawn per event and stored with the image: once both are erased, the digest says nothing about the row.
pub fn image_digest(kind: ImageKind, salt: &[u8; 16], text: &str) -> Hash {
    Sha256::new()
        .chain_update(b"agd-image-v1\0")
        .chain_update(kind.name())
        .chain_update([0x00])
        .chain_update(salt)
        .chain_update(text)
        .finalize()
        .into()
}
