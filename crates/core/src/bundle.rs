//! Entry bundles of C2SP tlog-tiles: up to 256 entries, each after its length as a big-endian u16.
//!
//! Owns the framing. Promises that parsing gives back exactly what was encoded and says at which byte a malformed bundle
//! goes wrong. It never looks inside an entry.

use thiserror::Error;

use crate::tile::TILE_WIDTH;

/// The longest entry that a bundle can hold, in bytes.
pub const MAX_ENTRY_LEN: usize = u16::MAX as usize;

/// Why a bundle could not be written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BundleError {
    /// An entry is longer than [`MAX_ENTRY_LEN`].
    #[error("entry {position} has {len} bytes, a bundle holds entries of at most {MAX_ENTRY_LEN}")]
    EntryTooLong {
        /// Which entry, from 0.
        position: usize,
        /// Its length in bytes.
        len: usize,
    },
    /// More than 256 entries.
    #[error("more than {TILE_WIDTH} entries at byte {offset}")]
    TooManyEntries {
        /// Where the entry too many begins.
        offset: usize,
    },
    /// The bundle ends in the middle of an entry or of its length.
    #[error("the bundle ends inside the entry that begins at byte {offset}: {need} bytes needed, {have} there")]
    Truncated {
        /// Where the broken entry's length begins.
        offset: usize,
        /// Bytes needed from `offset` on.
        need: usize,
        /// Bytes there from `offset` on.
        have: usize,
    },
    /// Another number of entries than the tile is wide.
    #[error("the bundle holds {got} entries, expected {expected}")]
    WrongCount {
        /// Entries expected.
        expected: usize,
        /// Entries found.
        got: usize,
    },
}

/// Writes a bundle.
///
/// # Errors
/// [`BundleError::EntryTooLong`], [`BundleError::TooManyEntries`].
pub fn encode<I>(entries: I) -> Result<Vec<u8>, BundleError>
where
    I: IntoIterator,
    I::Item: AsRef<[u8]>,
{
    let mut bundle = Vec::new();
    for (position, entry) in entries.into_iter().enumerate() {
        let entry = entry.as_ref();
        if position as u64 >= TILE_WIDTH {
            return Err(BundleError::TooManyEntries { offset: bundle.len() });
        }
        let len = u16::try_from(entry.len()).map_err(|_| BundleError::EntryTooLong { position, len: entry.len() })?;
        bundle.extend_from_slice(&len.to_be_bytes());
        bundle.extend_from_slice(entry);
    }
    Ok(bundle)
}

/// The entries of a bundle, in order. After the first error there are no more.
pub fn entries(bundle: &[u8]) -> Entries<'_> {
    Entries { bundle, offset: 0, position: 0 }
}

/// The entries of a bundle that must hold exactly `width` of them.
///
/// # Errors
/// [`BundleError::WrongCount`], and what [`entries`] finds.
pub fn parse(bundle: &[u8], width: u16) -> Result<Vec<&[u8]>, BundleError> {
    let entries = entries(bundle).collect::<Result<Vec<_>, _>>()?;
    if entries.len() != usize::from(width) {
        return Err(BundleError::WrongCount { expected: usize::from(width), got: entries.len() });
    }
    Ok(entries)
}

/// Iterator made by [`entries`].
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    bundle: &'a [u8],
    offset: usize,
    position: u64,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<&'a [u8], BundleError>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.offset;
        let rest = self.bundle.get(offset..).filter(|rest| !rest.is_empty())?;
        // Nothing follows an error; a good entry moves this back to where the next one begins.
        self.offset = self.bundle.len();
        if self.position >= TILE_WIDTH {
            return Some(Err(BundleError::TooManyEntries { offset }));
        }
        let Some((len, body)) = rest.split_first_chunk::<2>() else {
            return Some(Err(BundleError::Truncated { offset, need: 2, have: rest.len() }));
        };
        let len = usize::from(u16::from_be_bytes(*len));
        let Some(entry) = body.get(..len) else {
            return Some(Err(BundleError::Truncated { offset, need: 2 + len, have: rest.len() }));
        };
        self.position += 1;
        self.offset = offset + 2 + len;
        Some(Ok(entry))
    }
}

impl std::iter::FusedIterator for Entries<'_> {}
