//! Names: tenants, logs and the origins made from them.
//!
//! Owns which names are allowed and how an origin is put together. Promises that a valid origin is also a safe relative
//! path (no empty, `.` or `..` segment) and a valid signed-note key name, and that no log's name can be taken for another
//! log's tenant, incarnation or store folder. It never looks anything up.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The longest log name, in bytes. An origin is at most a tenant and two incarnation marks longer.
pub const MAX_LOG_NAME_LEN: usize = 128;

/// The longest tenant name, in bytes.
pub const MAX_TENANT_LEN: usize = 63;

/// Why a name was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not `[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?`.
    #[error(
        "a tenant name has 1 to {MAX_TENANT_LEN} characters of a-z, 0-9, _ and -, and begins and ends with a letter or digit"
    )]
    Tenant,
    /// A tenant's name that is read as a number or a uuid, and is not its own spelling of it.
    #[error(
        "a tenant name that is a number or a uuid is written in the one usual way: 7, not 007; lower case, 8-4-4-4-12"
    )]
    Ambiguous,
    /// Empty or above [`MAX_LOG_NAME_LEN`] bytes.
    #[error("a log name has 1 to {MAX_LOG_NAME_LEN} characters")]
    Length,
    /// A character that is not allowed.
    #[error("a log name has characters of a-z, 0-9, ., - and / only")]
    Character,
    /// An empty segment, or one of dots only.
    #[error("a log name has segments between its slashes, none empty, none of dots only")]
    Segment,
    /// A later segment that agd itself puts into origins or store paths.
    #[error(
        "t, tile, checkpoint, checkpoints, timestamps and i<number> are reserved after the first slash of a log name"
    )]
    Reserved,
}

/// Checks a tenant's name: `[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?`.
///
/// A policy on a column of numbers or uuids casts the name, so what PostgreSQL reads as one must be its only name: `007`,
/// `0x7` and `1_000` would be other tenants' numbers, 32 hexadecimal digits without hyphens another tenant's uuid.
///
/// # Errors
/// [`NameError::Tenant`], [`NameError::Ambiguous`].
pub fn validate_tenant(tenant: &str) -> Result<(), NameError> {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
    let bytes = tenant.as_bytes();
    if !(bytes.len() <= MAX_TENANT_LEN && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)) {
        return Err(NameError::Tenant);
    }
    if is_other_number(tenant) || is_other_uuid(bytes) {
        return Err(NameError::Ambiguous);
    }
    Ok(())
}

/// What PostgreSQL's integer types read (16 and later: with underscores, and in base 2, 8 and 16) and would not write.
fn is_other_number(name: &str) -> bool {
    let all = |digits: &str, is: fn(&u8) -> bool| !digits.is_empty() && digits.bytes().all(|b| b == b'_' || is(&b));
    let based = [
        ("0x", u8::is_ascii_hexdigit as fn(&u8) -> bool),
        ("0o", |b| (b'0'..b'8').contains(b)),
        ("0b", |b| matches!(b, b'0' | b'1')),
    ];
    if based.iter().any(|(prefix, is)| name.strip_prefix(prefix).is_some_and(|digits| all(digits, *is))) {
        return true;
    }
    all(name, u8::is_ascii_digit) && (name.contains('_') || name.len() > 1 && name.starts_with('0'))
}

/// 32 hexadecimal digits with hyphens anywhere but in the four usual places.
fn is_other_uuid(name: &[u8]) -> bool {
    let digits = name.iter().filter(|b| **b != b'-');
    if digits.clone().count() != 32 || !digits.clone().all(u8::is_ascii_hexdigit) {
        return false;
    }
    let hyphens: Vec<usize> = (0..name.len()).filter(|&at| name[at] == b'-').collect();
    hyphens != [8, 13, 18, 23]
}

/// Checks a log's name, the platform log's origin: segments of `[a-z0-9.-]` between slashes.
///
/// Segments after the first must not be `t`, `tile`, `checkpoint`, `checkpoints`, `timestamps` or `i<digits>`: tenant
/// origins, incarnations and store folders are made of those.
///
/// # Errors
/// [`NameError::Length`], [`NameError::Character`], [`NameError::Segment`], [`NameError::Reserved`].
pub fn validate_log_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.len() > MAX_LOG_NAME_LEN {
        return Err(NameError::Length);
    }
    if !name.bytes().all(|b| b == b'/' || is_segment_byte(b)) {
        return Err(NameError::Character);
    }
    if name.split('/').any(is_empty_or_dots) {
        return Err(NameError::Segment);
    }
    if name.split('/').skip(1).any(is_reserved) {
        return Err(NameError::Reserved);
    }
    Ok(())
}

/// Checks any origin, whoever made it, before it is used as a relative path: the characters of log and tenant names, no
/// empty segment, none of dots only.
///
/// # Errors
/// [`NameError::Length`] above 255 bytes, [`NameError::Character`], [`NameError::Segment`].
pub fn validate_origin(origin: &str) -> Result<(), NameError> {
    if origin.is_empty() || origin.len() > 255 {
        return Err(NameError::Length);
    }
    if !origin.bytes().all(|b| matches!(b, b'/' | b'_') || is_segment_byte(b)) {
        return Err(NameError::Character);
    }
    if origin.split('/').any(is_empty_or_dots) {
        return Err(NameError::Segment);
    }
    Ok(())
}

/// The name a log gets when nobody chose one: `agd-<system identifier>/<database>`.
///
/// The database name is lower-cased (ASCII) and every byte outside `[a-z0-9.-]` becomes `-`. What would not be a valid
/// segment is made one: a segment of dots only has its dots replaced by `-`, a reserved one and an empty one get a `-`
/// at the end. A name that is not as it was gets `-` and eight hexadecimal digits of its SHA-256, so that the databases
/// `a_b` and `A-b` of one cluster have different logs. Always valid.
pub fn default_log_name(system_identifier: u64, database: &str) -> String {
    let byte = |b: u8| {
        if is_segment_byte(b) { char::from(b) } else { '-' }
    };
    let mut segment: String = database.bytes().map(|b| byte(b.to_ascii_lowercase())).take(80).collect();
    if is_reserved(&segment) || segment.is_empty() {
        segment.push('-');
    }
    if is_empty_or_dots(&segment) {
        segment = segment.replace('.', "-");
    }
    if segment != database {
        segment.push('-');
        for byte in &Sha256::digest(database.as_bytes())[..4] {
            let _ = write!(segment, "{byte:02x}");
        }
    }
    format!("agd-{system_identifier}/{segment}")
}

/// The origin of a tenant's log: `<log name>/t/<tenant>`.
pub fn tenant_origin(log_name: &str, tenant: &str) -> String {
    format!("{log_name}/t/{tenant}")
}

/// The origin of a log's n-th incarnation: the origin itself for the first, then `<origin>/i2`, `<origin>/i3` and so on.
pub fn incarnation_origin(origin: &str, incarnation: u32) -> String {
    if incarnation < 2 { origin.to_owned() } else { format!("{origin}/i{incarnation}") }
}

/// Reads a platform log's origin: its log name, and which incarnation it is.
///
/// What [`incarnation_origin`] does not write (`/i1`, `/i02`) is part of a name that [`validate_log_name`] refuses.
pub fn split_incarnation(origin: &str) -> (&str, u32) {
    let marked = origin.rsplit_once("/i").and_then(|(log_name, digits)| {
        let number: u32 = crate::checkpoint::parse_decimal(digits)?;
        (number >= 2).then_some((log_name, number))
    });
    marked.unwrap_or((origin, 1))
}

fn is_segment_byte(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-')
}

fn is_empty_or_dots(segment: &str) -> bool {
    segment.bytes().all(|b| b == b'.')
}

fn is_reserved(segment: &str) -> bool {
    let numbered = segment.strip_prefix('i');
    matches!(segment, "t" | "tile" | "checkpoint" | "checkpoints" | "timestamps")
        || numbered.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}
