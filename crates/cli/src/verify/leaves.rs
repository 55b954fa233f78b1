//! Single entries of a published log.
//!
//! Owns the way from a leaf's index to its bytes in the store's bundles. Promises to hold one bundle in memory, that what is
//! asked for in order is read once, and that nothing is handed out but what [`super::log`] has verified: a bundle that is read
//! again must give the leaves that it gave then.

use agd_core::{Hash, TILE_WIDTH, leaf_hash};

use super::tile::root_of;
use crate::store::Reader;
use crate::tiles::{self, Piece};

/// Reads one log's entries. Keeps the last bundle.
#[derive(Debug)]
pub struct Leaves<'a> {
    reader: &'a Reader,
    origin: String,
    size: u64,
    /// The root of each tile's leaves when the log was verified.
    roots: &'a [Hash],
    /// Its index, and its entries one after the other with the end of each.
    tile: Option<(u64, Vec<u8>, Vec<usize>)>,
}

impl<'a> Leaves<'a> {
    /// Of the log at a size, whose tiles were read before and had these roots.
    pub fn new(reader: &'a Reader, origin: &str, size: u64, roots: &'a [Hash]) -> Self {
        Self { reader, origin: origin.to_owned(), size, roots, tile: None }
    }

    /// The entry at a leaf.
    ///
    /// # Errors
    /// A sentence that says why it cannot be had.
    pub fn get(&mut self, index: u64) -> Result<&[u8], String> {
        let (tile, position) = (index / TILE_WIDTH, (index % TILE_WIDTH) as usize);
        if self.tile.as_ref().is_none_or(|(kept, _, _)| *kept != tile) {
            self.tile = Some(self.read(tile)?);
        }
        let (bytes, ends) = self.tile.as_ref().map_or((&[][..], &[][..]), |(_, bytes, ends)| (bytes, ends));
        let start = position.checked_sub(1).map_or(Some(0), |before| ends.get(before).copied());
        let entry = start.zip(ends.get(position)).and_then(|(start, end)| bytes.get(start..*end));
        entry.ok_or_else(|| format!("{}: entry {index} could not be read", self.origin))
    }

    fn read(&self, tile: u64) -> Result<(u64, Vec<u8>, Vec<usize>), String> {
        let width = self.size.saturating_sub(tile * TILE_WIDTH).min(TILE_WIDTH) as u16;
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", self.origin);
        let found =
            tiles::find(self.reader, &self.origin, Piece::Entries, tile, width).map_err(|error| named(&error))?;
        let path = || Piece::Entries.path(&self.origin, tile, width);
        let found = found.ok_or_else(|| named(&format!("{} is missing", path())))?;
        let (mut bytes, mut ends) = (Vec::with_capacity(found.bytes.len()), Vec::new());
        let mut leaves = Vec::with_capacity(usize::from(width));
        for entry in tiles::entries(&found, width).map_err(|error| named(&error))? {
            bytes.extend_from_slice(entry);
            ends.push(bytes.len());
            leaves.push(leaf_hash(entry));
        }
        let verified = usize::try_from(tile).ok().and_then(|tile| self.roots.get(tile));
        if verified != Some(&root_of(&leaves)) {
            return Err(named(&format!("{} is not the bundle that was verified", found.path)));
        }
        Ok((tile, bytes, ends))
    }
}
