//! Event dumps: what `agd export` hands out, so that the events of a database can be held against its published log offline.
//!
//! Owns the lines of a dump: the first says which leaves of which logs follow and whether with their row images, each other
//! one is an event with its entry, its images and the salt of their digests. Promises that one dump has one byte string,
//! that what parses prints the same bytes again, and that each field of a line is bound to the log: by the entry that it is
//! part of, by a digest in that entry, or by the leaf that it names. Never does I/O; what lies at a leaf its caller knows.

use std::borrow::Cow;

use thiserror::Error;

use crate::bundle::MAX_ENTRY_LEN;
use crate::entry::parse::{At, Reader};
use crate::entry::{self, ImageKind, OwnedEntry, decimal, escape, image_digest};

/// The version of the format, in the first line.
pub const VERSION: u32 = 1;

/// The images of a row in the order of their keys in a line.
pub const KINDS: [ImageKind; 3] = [ImageKind::Key, ImageKind::New, ImageKind::Old];

/// Why a line is not one of a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DumpError {
    /// Not UTF-8.
    #[error("it is not UTF-8 at byte {offset}")]
    Utf8 {
        /// Where it stops being UTF-8.
        offset: usize,
    },
    /// Not the canonical form: another key, order, spelling or type, or a missing field.
    #[error("it is not a canonical line of a version {VERSION} dump at byte {offset}")]
    NotCanonical {
        /// Where it departs from the canonical form.
        offset: usize,
    },
}

/// Which leaves of one log a dump has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRange {
    /// The log.
    pub origin: String,
    /// The first leaf.
    pub first: u64,
    /// One past the last leaf.
    pub last: u64,
    /// Whether row images (or that they were erased) and salts are there.
    pub images: bool,
}

/// The first line of a dump, without its line end.
pub fn write_header(logs: &[LogRange], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"agd_export\":");
    decimal(out, u64::from(VERSION));
    out.extend_from_slice(b",\"logs\":[");
    for (position, log) in logs.iter().enumerate() {
        out.extend_from_slice(if position == 0 { b"{\"first\":\"" } else { b",{\"first\":\"" });
        decimal(out, log.first);
        out.extend_from_slice(if log.images { b"\",\"images\":true" } else { b"\",\"images\":false" });
        out.extend_from_slice(b",\"last\":\"");
        decimal(out, log.last);
        out.extend_from_slice(b"\",\"origin\":\"");
        escape(out, log.origin.as_bytes());
        out.extend_from_slice(b"\"}");
    }
    out.extend_from_slice(b"]}");
}

/// Reads the first line of a dump.
///
/// # Errors
/// [`DumpError`]; of a dump in another version, too.
pub fn parse_header(line: &[u8]) -> Result<Vec<LogRange>, DumpError> {
    let mut reader = Reader::new(utf8(line)?);
    let logs = read_header(&mut reader).map_err(|At(offset)| DumpError::NotCanonical { offset })?;
    let mut again = Vec::with_capacity(line.len());
    write_header(&logs, &mut again);
    same(&again, line)?;
    Ok(logs)
}

fn read_header(reader: &mut Reader<'_>) -> Result<Vec<LogRange>, At> {
    reader.expect("{\"agd_export\":1,\"logs\":[")?;
    let mut logs = Vec::new();
    while reader.skip(if logs.is_empty() { "{\"first\":\"" } else { ",{\"first\":\"" }) {
        let first = reader.number(b'"')?;
        let images = reader.skip(",\"images\":true");
        if !images {
            reader.expect(",\"images\":false")?;
        }
        reader.expect(",\"last\":\"")?;
        let last = reader.number(b'"')?;
        let origin = reader.text(",\"origin\":\"")?.value().into_owned();
        reader.expect("}")?;
        logs.push(LogRange { origin, first, last, images });
    }
    reader.expect("]}")?;
    reader.end()?;
    Ok(logs)
}

/// An image in a dump.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Image<'a> {
    /// The line has none: the event has none, or the dump is one without images.
    #[default]
    None,
    /// The event had one, and the database has it no more.
    Erased,
    /// As it was recorded.
    Text(Cow<'a, str>),
}

/// One event of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpedEvent<'a> {
    /// The log.
    pub origin: Cow<'a, str>,
    /// The event's leaf in it, from 0.
    pub index: u64,
    /// The entry's bytes. Not checked to be an entry.
    pub entry: Cow<'a, [u8]>,
    /// What the images' digests are salted with; there with every image.
    pub salt: Option<[u8; 16]>,
    /// The row's key.
    pub key: Image<'a>,
    /// The row after.
    pub new: Image<'a>,
    /// The row before.
    pub old: Image<'a>,
}

/// What is wrong with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ImageProblem {
    /// It does not give the digest that the entry has.
    #[error("does not give the digest in the log")]
    Differs,
    /// The entry has no digest of such an image.
    #[error("is none of the event's: the log has no digest of one")]
    Unknown,
    /// The entry has a digest, the dump is one with images, and the line says nothing.
    #[error("is left out, and not said to be erased")]
    LeftOut,
    /// The dump is said to be one without images.
    #[error("is there, in a dump that is said to have none")]
    Unexpected,
}

impl<'a> DumpedEvent<'a> {
    /// An image by its kind.
    pub fn image(&self, kind: ImageKind) -> &Image<'a> {
        match kind {
            ImageKind::Key => &self.key,
            ImageKind::New => &self.new,
            ImageKind::Old => &self.old,
        }
    }

    /// Holds the images against the entry's digests. `images`: what the first line says of this log.
    pub fn check_images(&self, entry: &OwnedEntry, images: bool) -> Vec<(ImageKind, ImageProblem)> {
        let problem = |kind| {
            let digest = match kind {
                ImageKind::Key => entry.row_key,
                ImageKind::New => entry.new,
                ImageKind::Old => entry.old,
            };
            match (self.image(kind), digest) {
                (Image::None, None) => None,
                (Image::None, Some(_)) => images.then_some(ImageProblem::LeftOut),
                _ if !images => Some(ImageProblem::Unexpected),
                (_, None) => Some(ImageProblem::Unknown),
                (Image::Erased, Some(_)) => None,
                (Image::Text(text), Some(digest)) => {
                    let given = self.salt.map(|salt| image_digest(kind, &salt, text));
                    (given != Some(digest)).then_some(ImageProblem::Differs)
                }
            }
        };
        KINDS.into_iter().filter_map(|kind| Some((kind, problem(kind)?))).collect()
    }

    /// The images that were erased.
    pub fn erased(&self) -> impl Iterator<Item = ImageKind> {
        KINDS.into_iter().filter(|kind| *self.image(*kind) == Image::Erased)
    }

    /// Appends the line, without its line end.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"entry\":");
        out.extend_from_slice(&self.entry);
        if self.erased().next().is_some() {
            out.extend_from_slice(b",\"erased\":true");
        }
        out.extend_from_slice(b",\"index\":\"");
        decimal(out, self.index);
        out.push(b'"');
        for kind in KINDS {
            let name = kind.name().as_bytes();
            match self.image(kind) {
                Image::None => {}
                Image::Erased => out.extend_from_slice(&[b",\"", name, b"\":null"].concat()),
                Image::Text(text) => {
                    out.extend_from_slice(&[b",\"", name, b"\":\""].concat());
                    escape(out, text.as_bytes());
                    out.push(b'"');
                }
            }
        }
        out.extend_from_slice(b",\"origin\":\"");
        escape(out, self.origin.as_bytes());
        out.push(b'"');
        if let Some(salt) = self.salt {
            out.extend_from_slice(b",\"salt\":\"");
            for byte in salt {
                out.extend_from_slice(&entry::hex(byte));
            }
            out.push(b'"');
        }
        out.push(b'}');
    }

    /// Reads a line. Whether the entry is one, and the right one, is not looked at.
    ///
    /// # Errors
    /// [`DumpError`].
    pub fn parse(line: &'a [u8]) -> Result<Self, DumpError> {
        let mut reader = Reader::new(utf8(line)?);
        let event = read_event(&mut reader).map_err(|At(offset)| DumpError::NotCanonical { offset })?;
        let mut again = Vec::with_capacity(line.len());
        event.encode_into(&mut again);
        same(&again, line)?;
        Ok(event)
    }
}

fn read_event<'a>(reader: &mut Reader<'a>) -> Result<DumpedEvent<'a>, At> {
    reader.expect("{\"entry\":")?;
    // In canonical JSON no string holds a quote without a backslash before it: this is the entry's last field.
    const LAST: &[u8] = b",\"v\":1}";
    let rest = reader.rest();
    let length = rest.windows(LAST.len()).position(|bytes| bytes == LAST).ok_or(At(reader.at()))? + LAST.len();
    if length > MAX_ENTRY_LEN {
        return Err(At(reader.at()));
    }
    let entry = Cow::Borrowed(&rest[..length]);
    reader.pass(length);
    // Says what the images say; that the two agree shows when the line is written again.
    reader.skip(",\"erased\":true");
    reader.expect(",\"index\":\"")?;
    let index = reader.number(b'"')?;
    let mut image = |null: &str, text: &str| -> Result<Image<'a>, At> {
        if reader.skip(null) {
            return Ok(Image::Erased);
        }
        Ok(reader.optional_text(text)?.map_or(Image::None, |text| Image::Text(text.value())))
    };
    let key = image(",\"key\":null", ",\"key\":\"")?;
    let new = image(",\"new\":null", ",\"new\":\"")?;
    let old = image(",\"old\":null", ",\"old\":\"")?;
    let origin = reader.text(",\"origin\":\"")?.value();
    let salt_at = reader.at();
    let salt = match reader.optional_text(",\"salt\":\"")? {
        Some(text) => Some(parse_salt(&text.value()).ok_or(At(salt_at))?),
        None => None,
    };
    reader.expect("}")?;
    reader.end()?;
    let event = DumpedEvent { origin, index, entry, salt, key, new, old };
    let salted = KINDS.into_iter().any(|kind| matches!(event.image(kind), Image::Text(_)));
    // A salt without an image would be bound to nothing.
    if salted == salt.is_some() { Ok(event) } else { Err(At(salt_at)) }
}

fn parse_salt(raw: &str) -> Option<[u8; 16]> {
    let raw: &[u8; 32] = raw.as_bytes().try_into().ok()?;
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|value| value as u8);
    let mut salt = [0; 16];
    for (byte, pair) in salt.iter_mut().zip(raw.as_chunks::<2>().0) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(salt)
}

/// The keys of the fields in which two entries differ.
pub fn differing_fields(a: &OwnedEntry, b: &OwnedEntry) -> Vec<&'static str> {
    let fields = [
        ("action", a.action == b.action),
        ("application_name", a.application_name == b.application_name),
        ("at", a.at == b.at),
        ("binding", a.binding == b.binding),
        ("body", a.body == b.body),
        ("cause", a.cause == b.cause),
        ("client_addr", a.client_addr == b.client_addr),
        ("committed_at", a.committed_at == b.committed_at),
        ("event_id", a.event_id == b.event_id),
        ("fleet_id", a.fleet_id == b.fleet_id),
        ("guard_id", a.guard_id == b.guard_id),
        ("new", a.new == b.new),
        ("old", a.old == b.old),
        ("principal", a.principal == b.principal),
        ("relation", a.relation == b.relation),
        ("role_name", a.role_name == b.role_name),
        ("row_key", a.row_key == b.row_key),
        ("session_user_name", a.session_user_name == b.session_user_name),
        ("tenant", a.tenant == b.tenant),
    ];
    fields.into_iter().filter(|(_, same)| !same).map(|(name, _)| name).collect()
}

fn utf8(line: &[u8]) -> Result<&str, DumpError> {
    std::str::from_utf8(line).map_err(|error| DumpError::Utf8 { offset: error.valid_up_to() })
}

fn same(again: &[u8], line: &[u8]) -> Result<(), DumpError> {
    if again == line {
        return Ok(());
    }
    let offset = again.iter().zip(line).take_while(|(a, b)| a == b).count();
    Err(DumpError::NotCanonical { offset })
}
