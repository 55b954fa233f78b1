//! Entries: the canonical bytes of one event, the preimage of its leaf in the log.
//!
//! Owns the entry's fields, their order and spelling (RFC 8785 canonical JSON), event ids, times and the salted digests of
//! row images. Promises that one event has one byte string, that [`parse`] accepts that string only, and that an entry
//! holds no row data: images enter as digests, so that erasing them leaves every proof intact. It never allocates while
//! encoding beyond the buffer it is given, and never reads a clock.

pub(crate) mod parse;

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::bundle::MAX_ENTRY_LEN;
use crate::checkpoint::parse_decimal;
use crate::merkle::Hash;

pub use parse::{Digest, ParsedEntry, Text, parse, read};

/// The value of the `v` field: the version of this format.
pub const VERSION: u32 = 1;

/// The action of an entry whose body is a tenant's checkpoint text; only a platform log has such entries.
pub const CHECKPOINT: &str = "CHECKPOINT";

/// The action of the entry that begins a later incarnation's platform log; its body is an [`Incarnation`](crate::Incarnation).
pub const INCARNATION: &str = "INCARNATION";

/// The action of the entry that closes a tenant's log: the checkpoint of which it is the last leaf is final. What follows opens
/// the log again. Its body names the fleet whose end it was ([`close_body`](crate::fleet::close_body)).
pub const LOG_CLOSE: &str = "LOG.CLOSE";

/// Has an entry this action? For canonical bytes ([`Entry::encode_into`]) and actions of ASCII letters, digits and dots.
pub fn is_action(entry: &[u8], action: &str) -> bool {
    let rest = entry.strip_prefix(b"{\"action\":\"").and_then(|rest| rest.strip_prefix(action.as_bytes()));
    rest.is_some_and(|rest| rest.starts_with(b"\""))
}

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

/// The most bytes that an event's own texts (action, tenant, relation, body, role) take in its entry, their escapes included.
pub const MAX_EVENT_TEXTS: usize = 35 << 10;

/// The most that the texts of its transaction take (session user, role, principal, fleet, cause, binding, application name,
/// address).
///
/// What is within both has an entry: the rest of one, keys, digests, numbers and times, takes no more than what is left of
/// [`MAX_ENTRY_LEN`]. So an event that keeps to the first when it is recorded, in a transaction that keeps to the second when
/// it is closed, has a canonical form for certain.
pub const MAX_CONTEXT_TEXTS: usize = 28 << 10;

/// How many bytes these texts take in an entry, their escapes included, if it is at most `max`; the number otherwise, as an
/// error.
///
/// # Errors
/// How many they take, when that is more than `max`.
pub fn texts_within<'a>(texts: impl IntoIterator<Item = Option<&'a str>> + Clone, max: usize) -> Result<(), usize> {
    // One byte becomes six at most. Nearly all events are decided here.
    let plain: usize = texts.clone().into_iter().flatten().map(str::len).sum();
    if plain <= max / 6 {
        return Ok(());
    }
    let escaped = |text: &str| text.bytes().map(escaped_len).sum::<usize>();
    let taken: usize = texts.into_iter().flatten().map(escaped).sum();
    if taken <= max { Ok(()) } else { Err(taken) }
}

fn escaped_len(byte: u8) -> usize {
    match ESCAPES[usize::from(byte)] {
        0 => 1,
        b'u' => 6,
        _ => 2,
    }
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

/// Appends a text as it stands inside the quotes of an RFC 8785 string.
pub fn escape(out: &mut Vec<u8>, mut value: &[u8]) {
    loop {
        let plain = parse::plain_len(value);
        out.extend_from_slice(&value[..plain]);
        let Some(&byte) = value.get(plain) else { return };
        match ESCAPES[usize::from(byte)] {
            b'u' => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&hex(byte));
            }
            short => out.extend_from_slice(&[b'\\', short]),
        }
        value = &value[plain + 1..];
    }
}

pub(crate) fn hex(byte: u8) -> [u8; 2] {
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

pub(crate) fn decimal(out: &mut Vec<u8>, mut value: u64) {
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
