//! The checkpoints of a log: which there are, how far they reach, and whether one is missing.
//!
//! Owns the part of a log's pass that comes before its tiles. It keeps no more of a checkpoint than its size: what each says
//! is read again with its tile.

use agd_core::tile::partial_width;
use agd_core::{Checkpoint, Hash, TILE_WIDTH};

use super::log::Check;
use super::note::{self, Noted, Signed};
use super::tile::Seen;
use crate::store;
use crate::tiles::Piece;

/// The checkpoint files of a log.
#[derive(Default)]
pub(super) struct Listing {
    /// The sizes that names below `checkpoints/` stand for, ascending.
    pub(super) sizes: Vec<u64>,
    /// The newest checkpoint, where it can be read.
    pub(super) newest: Option<Checkpoint>,
    /// The largest size with a checkpoint that can be read, and its root.
    pub(super) end: Option<(u64, Hash)>,
}

impl Listing {
    /// The sizes of the checkpoints that end within a tile.
    pub(super) fn within(&self, index: u64) -> &[u64] {
        let before = |size: u64| self.sizes.partition_point(|known| *known <= size);
        let (first, last) = (before(index * TILE_WIDTH), before((index + 1).saturating_mul(TILE_WIDTH)));
        self.sizes.get(first..last).unwrap_or_default()
    }
}

impl Check<'_> {
    /// A log of which no checkpoint can be read.
    pub(super) fn nothing_published(&mut self) {
        let path = store::newest_path(self.job.origin);
        for claim in self.job.claims {
            let (index, size) = (claim.index, claim.size);
            let text = format!("is missing, but entry {index} of the platform log has it at size {size}");
            self.result.findings.file(&path, text);
        }
        if self.result.findings.count() == 0 {
            self.result.unchecked.push(
                "there are tiles and no checkpoint: its first publication is under way, or all were taken away"
                    .to_owned(),
            );
        }
    }

    /// Every multiple of 256 is anchored, and so is every size that the platform log has: all of them are published.
    pub(super) fn all_published(&mut self, listing: &Listing, end: u64) {
        let claims = self.job.claims.iter().map(|claim| claim.size);
        let multiples = (1..=end / TILE_WIDTH).map(|count| count * TILE_WIDTH);
        let newest = listing.newest.as_ref().map(|newest| newest.size);
        for size in multiples.chain(claims.filter(|size| *size <= end)) {
            // One that is there is looked at in its turn, and the newest was.
            if listing.sizes.binary_search(&size).is_ok() || newest == Some(size) {
                continue;
            }
            let path = store::checkpoint_path(self.job.origin, size);
            if !self.has(&path) {
                self.result.findings.file(path, "is missing");
            }
        }
    }

    /// Finds out which checkpoints there are, and how far they reach.
    pub(super) fn list(&mut self) -> Listing {
        let origin = self.job.origin;
        let newest_path = store::newest_path(origin);
        let mut noted = Noted::default();
        // Read first: what a publisher at work adds meanwhile is then ahead of it, never behind.
        let newest = note::read(self.reader, self.job, &newest_path, &mut noted);
        self.tell(noted);
        let mut listing = Listing::default();
        let folder = format!("{origin}/{}", store::CHECKPOINTS);
        let names = self.reader.list(&folder).unwrap_or_else(|error| {
            self.result.unchecked.push(error.to_string());
            None
        });
        let names = names.unwrap_or_default();
        if newest.is_none() && !names.is_empty() && !self.has(&newest_path) {
            self.result.findings.file(&newest_path, "is missing");
        }
        for listed in names {
            match store::parse_checkpoint_name(&listed.name) {
                Some(size) => listing.sizes.push(size),
                None => {
                    let text = format!("{folder}/{} is not the name of a checkpoint; ignored", listed.name);
                    self.result.notes.push(text);
                }
            }
        }
        listing.sizes.sort_unstable();
        listing.end = newest.as_ref().map(|newest| (newest.checkpoint.size, newest.checkpoint.root));
        self.find_end(&mut listing);
        if let Some(newest) = newest {
            self.newest_again(&newest, &listing);
            listing.newest = Some(newest.checkpoint);
        }
        listing
    }

    /// Goes back from the largest size to one whose checkpoint can be read. Those that cannot are told of and left out.
    fn find_end(&mut self, listing: &mut Listing) {
        while let Some(size) = listing.sizes.last().copied() {
            if listing.end.is_some_and(|(end, _)| size <= end) {
                return;
            }
            let Seen { roots, noted, signed, cosigned, .. } = self.looker.checkpoints(&[size]);
            if let Some((size, root)) = roots.first() {
                listing.end = Some((*size, *root));
                return;
            }
            self.count(signed, cosigned);
            self.tell(noted);
            listing.sizes.pop();
        }
    }

    /// The newest checkpoint is one of the immutable ones again.
    fn newest_again(&mut self, newest: &Signed, listing: &Listing) {
        let (origin, size) = (self.job.origin, newest.checkpoint.size);
        let newest_path = store::newest_path(origin);
        let path = store::checkpoint_path(origin, size);
        // What is wrong with it is told of in its turn.
        let again = note::read(self.reader, self.job, &path, &mut Noted::default());
        match again.filter(|again| again.checkpoint.size == size) {
            Some(again) if again.bytes == newest.bytes => {}
            Some(_) => {
                let text = format!("differs from {path}, which must be the same bytes");
                self.result.findings.file(&newest_path, text);
            }
            None if self.has(&path) => {}
            None => self.result.findings.file(path, "is missing, the newest checkpoint says this size"),
        }
        if let Some((end, _)) = listing.end.filter(|(end, _)| *end > size) {
            self.result.notes.push(format!(
                "{newest_path} is at size {size}, behind the published size {end}: a publication is under way or was \
                 interrupted, or it was put back; all of {end} is checked"
            ));
        }
    }

    /// Clients take the partial tiles of exactly the newest checkpoint's size, or the full ones.
    pub(super) fn newest_is_readable(&mut self, newest: u64) {
        let mut need = Vec::new();
        for level in 0..8_u8 {
            let width = partial_width(newest, u32::from(level)) as u16;
            let index = newest.checked_shr(8 * (u32::from(level) + 1)).unwrap_or(0);
            if width > 0 {
                need.push((Piece::Hashes(level), index, width));
                if level == 0 {
                    need.push((Piece::Entries, index, width));
                }
            }
        }
        for (piece, index, width) in need {
            let path = piece.path(self.job.origin, index, width);
            let full = piece.path(self.job.origin, index, TILE_WIDTH as u16);
            if !self.has(&path) && !self.has(&full) {
                self.result.findings.file(path, "is missing");
            }
        }
    }
}
