//! The second look at what is not clean: which file, which entry, which byte.
//!
//! Owns the words for a wrong tile or bundle. Where an entry bundle and a tile disagree, the next checkpoint decides which of
//! them is wrong. Promises that a wrong file is named with the entry and byte at which it is wrong, as far as one file tells,
//! and that what can be read all the same is checked. It runs on the thread that takes results, in order.

use agd_core::{EntryError, HASH_SIZE, Hash, TILE_WIDTH, entry};

use super::event_ids;
use super::findings::Finding;
use super::log::{Check, Claim};
use super::note::Noted;
use super::tile::{self, Bundle};
use crate::store::StoreError;
use crate::tiles::{self, Found, Piece, TileError};

/// Entries or hashes of one file that are named one by one; the rest is counted.
const NAMED_IN_TILE: usize = 8;

impl Check<'_> {
    /// Checks a bundle, its leaf tile, and what the leaves complete. `false`: there is nothing to go on with.
    pub(super) fn tile(&mut self, index: u64, width: u16) -> bool {
        let bundle = self.bundle(index, width);
        let tile = self.leaf_tile(index, width);
        let leaves = bundle.as_ref().map(Bundle::leaves);
        // The entries that are not the logged ones, as their positions in the bundle.
        let mut false_entries = Vec::new();
        let leaves = match (leaves, tile) {
            (None, None) => return false,
            (Some(leaves), None) => leaves,
            (None, Some((_, tile))) => tile,
            (Some(leaves), Some((_, tile))) if leaves == tile => leaves,
            (Some(leaves), Some((path, tile))) => {
                let differ: Vec<usize> = (0..usize::from(width)).filter(|i| leaves.get(*i) != tile.get(*i)).collect();
                if self.holds(&leaves) {
                    self.wrong_hash(path, index, &differ, "is not that of its entry");
                    leaves
                } else if self.holds(&tile) {
                    if let Some(bundle) = &bundle {
                        self.wrong_entries(bundle, index, &differ);
                    }
                    false_entries = differ;
                    tile
                } else {
                    let text = "is not that of its entry, and neither gives the published root";
                    self.wrong_hash(path, index, &differ, text);
                    leaves
                }
            }
        };
        if let Some(bundle) = &bundle {
            self.entries(bundle, index, &false_entries);
            if false_entries.is_empty() {
                self.partial_bundles(bundle, index);
            }
        }
        self.partial_tiles(0, index, &leaves);
        self.result.tiles.push(tile::root_of(&leaves));
        for leaf in leaves {
            self.push(leaf);
        }
        true
    }

    /// Whether these leaves lead to the last root that is known inside their tile.
    fn holds(&self, leaves: &[Hash]) -> bool {
        let reach = self.tree.size() + leaves.len() as u64;
        let ahead = self.expected.get(self.next..).unwrap_or_default();
        let Some(last) = ahead.iter().take_while(|e| e.size <= reach).last() else {
            return false;
        };
        let mut range = self.tree.range().clone();
        let count = (last.size - self.tree.size()) as usize;
        leaves.iter().take(count).for_each(|leaf| range.push(*leaf));
        range.root() == last.root
    }

    fn bundle(&mut self, index: u64, width: u16) -> Option<Bundle> {
        let found = self.find(Piece::Entries, index, width)?;
        match Bundle::split(found, width) {
            Ok(bundle) => Some(bundle),
            Err(error) => {
                self.bad_tile(error);
                None
            }
        }
    }

    fn leaf_tile(&mut self, index: u64, width: u16) -> Option<(String, Vec<Hash>)> {
        let found = self.find(Piece::Hashes(0), index, width)?;
        match tiles::hashes(&found, width) {
            Ok(hashes) => Some((found.path, hashes)),
            Err(error) => {
                self.bad_tile(error);
                None
            }
        }
    }

    fn find(&mut self, piece: Piece, index: u64, width: u16) -> Option<Found> {
        match tiles::find(self.reader, self.job.origin, piece, index, width) {
            Ok(Some(found)) => Some(found),
            Ok(None) => {
                let path = piece.path(self.job.origin, index, width);
                self.result.findings.file(path, "is missing");
                None
            }
            Err(error) => {
                self.unreadable(&error);
                None
            }
        }
    }

    pub(super) fn unreadable(&mut self, error: &StoreError) {
        let mut noted = Noted::default();
        noted.unreadable(error);
        self.tell(noted);
    }

    fn bad_tile(&mut self, error: TileError) {
        match error {
            TileError::Store(error) => self.unreadable(&error),
            TileError::Bundle { path, source } => {
                let offset = match source {
                    agd_core::BundleError::Truncated { offset, .. }
                    | agd_core::BundleError::TooManyEntries { offset } => Some(offset as u64),
                    _ => None,
                };
                self.result.findings.add(Finding { file: path, index: None, offset, message: source.to_string() });
            }
            TileError::Length { path, expected, got } => {
                self.result.findings.add(Finding {
                    file: path,
                    index: None,
                    offset: Some(expected.min(got) as u64),
                    message: format!("has {got} bytes, its width asks for {expected}"),
                });
            }
            TileError::Missing { path } => self.result.findings.file(path, "is missing"),
            TileError::Tree { origin, source } => {
                self.result.findings.file(origin, source.to_string());
            }
        }
    }

    fn wrong_hash(&mut self, file: String, tile: u64, positions: &[usize], message: &str) {
        for position in positions.iter().take(NAMED_IN_TILE) {
            let index = tile * TILE_WIDTH + *position as u64;
            self.result.findings.add(Finding {
                file: file.clone(),
                index: Some(index),
                offset: Some((position * HASH_SIZE) as u64),
                message: format!("the hash of entry {index} {message}"),
            });
        }
        self.more(file, positions, "hashes are wrong");
    }

    fn wrong_entries(&mut self, bundle: &Bundle, tile: u64, positions: &[usize]) {
        for position in positions.iter().take(NAMED_IN_TILE) {
            let index = tile * TILE_WIDTH + *position as u64;
            let offset = bundle.ranges.get(*position).map(|(start, _)| *start as u64);
            self.result.findings.add(Finding {
                file: bundle.found.path.clone(),
                index: Some(index),
                offset,
                message: format!("entry {index} is not the one that was logged"),
            });
        }
        let text = "entries are not the ones that were logged";
        self.more(bundle.found.path.clone(), positions, text);
    }

    fn more(&mut self, file: String, positions: &[usize], text: &str) {
        if let Some(more) = positions.len().checked_sub(NAMED_IN_TILE).filter(|more| *more > 0) {
            self.result.findings.file(file, format!("{more} more {text}"));
        }
    }

    /// What the entries say, but those that are known to be false.
    fn entries(&mut self, bundle: &Bundle, tile: u64, false_entries: &[usize]) {
        for (position, (start, _)) in bundle.ranges.iter().enumerate() {
            if false_entries.contains(&position) {
                continue;
            }
            let index = tile * TILE_WIDTH + position as u64;
            let at = |offset| (&bundle.found.path, index, (start + offset) as u64);
            match entry::read(bundle.entry(position)) {
                Ok(entry) => self.entry(&entry, at(0)),
                Err(error) => {
                    let offset = match error {
                        EntryError::Utf8 { offset } | EntryError::NotCanonical { offset } => offset,
                        _ => 0,
                    };
                    self.wrong_entry(at(offset), &error.to_string());
                }
            }
            self.result.entries += 1;
        }
    }

    fn wrong_entry(&mut self, (file, index, offset): (&String, u64, u64), message: &str) {
        self.result.findings.add(Finding {
            file: file.clone(),
            index: Some(index),
            offset: Some(offset),
            message: format!("entry {index}: {message}"),
        });
    }

    fn entry(&mut self, entry: &entry::ParsedEntry<'_>, place: (&String, u64, u64)) {
        let mut runs = Vec::new();
        event_ids::extend(&mut runs, entry.event_id);
        runs.into_iter().for_each(|run| self.ids.push(run));
        tile::widen(&mut self.result.times, entry.committed_at);
        let size = place.1 + 1;
        if let Some((_, latest)) = self.result.times.filter(|_| self.job.stamped.binary_search(&size).is_ok()) {
            self.result.latest_at.insert(size, latest);
        }
        let said = tile::examine(self.job, place.1, entry);
        if let Some((origin, claim)) = said.claim.map(|checkpoint| Claim::new(place.1, checkpoint)) {
            self.result.claims.entry(origin).or_default().push(claim);
        }
        self.result.continues = self.result.continues.take().or(said.continues);
        self.result.closed = said.closes;
        for wrong in said.wrong {
            self.wrong_entry(place, &wrong);
        }
    }

    /// Every partial bundle that is still there must be the beginning of the wider one.
    fn partial_bundles(&mut self, bundle: &Bundle, index: u64) {
        for partial in self.partials(Piece::Entries, index, &bundle.found.path) {
            if !tile::is_beginning(bundle, &partial) {
                self.result.findings.add(Finding {
                    offset: Some(first_difference(&bundle.found.bytes, &partial.bytes)),
                    file: partial.path,
                    index: None,
                    message: "is not the beginning of the wider bundle".to_owned(),
                });
            }
        }
    }

    /// Every partial tile that is still there must hold the first of these hashes.
    fn partial_tiles(&mut self, level: u8, index: u64, hashes: &[Hash]) {
        for Found { path, width, bytes } in self.partials(Piece::Hashes(level), index, "") {
            if usize::from(width) <= hashes.len() {
                self.compare_tile(path, level, index, &bytes, &hashes[..usize::from(width)]);
            }
        }
    }

    /// The partial files of a tile that can be read, but `known`.
    fn partials(&mut self, piece: Piece, index: u64, known: &str) -> Vec<Found> {
        if let Ok(found) = self.looker.partials(piece, index, known) {
            return found;
        }
        // Something cannot be read: which, and what can be all the same.
        let origin = self.job.origin;
        let widths = tiles::partial_widths(self.reader, origin, piece, index).unwrap_or_else(|error| {
            self.unreadable(&error);
            Vec::new()
        });
        let mut files = Vec::new();
        for width in widths {
            let path = piece.path(origin, index, width);
            if path == known {
                continue;
            }
            match self.reader.read(&path, piece.limit()) {
                Ok(bytes) => files.extend(bytes.map(|bytes| Found { path, width, bytes })),
                Err(error) => self.unreadable(&error),
            }
        }
        files
    }

    fn compare_tile(&mut self, file: String, level: u8, tile: u64, bytes: &[u8], hashes: &[Hash]) {
        let expected = hashes.as_flattened();
        if bytes == expected {
            return;
        }
        let offset = first_difference(expected, bytes);
        let message = if bytes.len() == expected.len() {
            let position = offset / HASH_SIZE as u64;
            let index = tile * TILE_WIDTH + position;
            format!("hash {index} of level {level} is not the one the entries give")
        } else {
            let (got, need) = (bytes.len(), expected.len());
            format!("has {got} bytes, its width asks for {need}")
        };
        self.result.findings.add(Finding { file, index: None, offset: Some(offset), message });
    }

    pub(super) fn upper_tile(&mut self, level: u8, index: u64, hashes: &[Hash]) {
        let width = hashes.len() as u16;
        if let Some(found) = self.find(Piece::Hashes(level), index, width) {
            match tiles::hashes(&found, width) {
                Ok(there) => {
                    self.compare_tile(found.path, level, index, there.as_flattened(), hashes);
                }
                Err(error) => self.bad_tile(error),
            }
        }
        self.partial_tiles(level, index, hashes);
    }

    /// The partial tiles above level 0 at the end of the log.
    pub(super) fn upper_edge(&mut self) {
        let open: Vec<Vec<Hash>> = self.tree.open_tiles().iter().skip(1).cloned().collect();
        for (hashes, level) in open.iter().zip(1_u8..) {
            if !hashes.is_empty() {
                let index = self.tree.size() >> (8 * (u32::from(level) + 1));
                self.upper_tile(level, index, hashes);
            }
        }
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() as u64
}
