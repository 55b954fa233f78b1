//! One log: everything its folder says must follow from its entries.
//!
//! Owns the pass over a log: bundle by bundle entries, leaf hashes, tiles of every level, and the root at every published
//! size. Tiles are looked at on several threads (in `tile`); what one alone cannot tell, and whatever is not clean, is
//! settled here, in order. Promises that memory is bounded by a few bundles and the open tiles (and a few bytes a
//! checkpoint), and that a wrong file is named with the entry and byte at which it is wrong. Where an entry bundle and a
//! tile disagree, the next checkpoint decides which of them is wrong.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use agd_core::{
    Checkpoint, EntryError, FullTile, HASH_SIZE, Hash, Incarnation, TILE_WIDTH, TiledTree, VerifierKey, entry,
};

use super::checkpoints::Listing;
use super::event_ids::{self, EventIds};
use super::findings::{Finding, Findings};
use super::note::Noted;
use super::pipeline::{Threads, ordered};
use super::tile::{self, Bundle, Clean, Looker, Seen};
use crate::origin::Kind;
use crate::policy::Policy;
use crate::publish::hex;
use crate::store::{self, Reader, StoreError};
use crate::tiles::{self, Found, Piece, TileError};

/// Checkpoints with a wrong root that are named one by one; the rest is counted.
const NAMED_ROOTS: u64 = 3;

/// Entries or hashes of one file that are named one by one; the rest is counted.
const NAMED_IN_TILE: usize = 8;

/// What is to be verified.
#[derive(Debug)]
pub struct Job<'a> {
    /// The log.
    pub origin: &'a str,
    /// Whose log it is.
    pub kind: Kind<'a>,
    /// The keys of which one must have signed every checkpoint; `None` without a policy.
    pub keys: Option<Vec<VerifierKey>>,
    /// What the platform log says about this log.
    pub claims: &'a [Claim],
    /// The policy whose quorum every checkpoint must reach; `None` where nobody asks for one.
    pub quorum: Option<&'a Policy>,
    /// Sizes of checkpoints with a timestamp, ascending.
    pub stamped: &'a [u64],
}

/// A tenant's checkpoint, as an entry of the platform log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The entry's index in the platform log.
    pub index: u64,
    /// The tenant's size.
    pub size: u64,
    /// The tenant's root at that size.
    pub root: Hash,
}

impl Claim {
    /// What an entry says, and of which log.
    pub fn new(index: u64, checkpoint: Checkpoint) -> (String, Self) {
        let Checkpoint { origin, size, root } = checkpoint;
        (origin, Self { index, size, root })
    }
}

/// What one log's files say.
#[derive(Debug, Default)]
pub struct LogResult {
    /// Leaves under the newest checkpoint.
    pub size: u64,
    /// The root at that size.
    pub root: Option<Hash>,
    /// The root that the newest checkpoint says, whatever the entries give.
    pub signed_root: Option<Hash>,
    /// What a later incarnation's platform log says that it continues.
    pub continues: Option<Incarnation>,
    /// Entries that were read and checked.
    pub entries: u64,
    /// The sizes of all published checkpoints, ascending.
    pub published: Vec<u64>,
    /// Checkpoints with a signature of a trusted key.
    pub signed: u64,
    /// Checkpoints that reach the policy's quorum of witnesses; none where it asks for none.
    pub cosigned: Option<u64>,
    /// For each size with a timestamp, the latest commit time of the entries below it, microseconds since the Unix epoch.
    pub latest_at: BTreeMap<u64, i64>,
    /// The earliest and the latest commit time, microseconds since the Unix epoch.
    pub times: Option<(i64, i64)>,
    /// Tenants' checkpoints found as entries, by the tenant's origin, each tenant's in order.
    pub claims: BTreeMap<String, Vec<Claim>>,
    /// What is false.
    pub findings: Findings,
    /// What could not be checked.
    pub unchecked: Vec<String>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// Verifies one log, with the help of what threads are idle. `progress` counts entries.
pub fn verify(reader: &Reader, job: &Job<'_>, threads: &Threads, progress: &AtomicU64) -> LogResult {
    let looker = Looker::new(reader, job);
    let mut check = Check {
        reader,
        job,
        threads,
        progress,
        looker: &looker,
        tree: TiledTree::new(),
        claims: job.claims.to_vec(),
        claimed: 0,
        expected: Vec::new(),
        next: 0,
        wrong_roots: 0,
        ids: EventIds::default(),
        result: LogResult { cosigned: job.quorum.map(|_| 0), ..LogResult::default() },
    };
    check.run();
    check.result
}

/// A root that the tree must have at a size.
#[derive(Debug, Clone, Copy)]
struct Expected {
    size: u64,
    root: Hash,
    /// The platform log's entry that says so; none for a published checkpoint.
    claim: Option<u64>,
}

pub(super) struct Check<'a> {
    pub(super) reader: &'a Reader,
    pub(super) job: &'a Job<'a>,
    threads: &'a Threads,
    progress: &'a AtomicU64,
    pub(super) looker: &'a Looker<'a>,
    tree: TiledTree,
    /// What the platform log says, by ascending size.
    claims: Vec<Claim>,
    /// The first of `claims` that the tree has not reached.
    claimed: usize,
    /// The roots within the tile at hand, by ascending size.
    expected: Vec<Expected>,
    /// The first of `expected` that the tree has not reached.
    next: usize,
    wrong_roots: u64,
    ids: EventIds,
    pub(super) result: LogResult,
}

impl Check<'_> {
    fn run(&mut self) {
        let listing = self.list();
        let Some((end, signed_root)) = listing.end else {
            self.nothing_published();
            return;
        };
        self.result.signed_root = Some(signed_root);
        self.result.size = end;
        self.all_published(&listing, end);
        self.expect(end);
        if let Some(newest) = &listing.newest {
            self.newest_is_readable(newest.size);
        }
        self.empty_tree(&listing);
        let tiles = end.div_ceil(TILE_WIDTH);
        let (looker, threads) = (self.looker, self.threads);
        let look = |index| looker.look(index, width(end, index), listing.within(index));
        let stopped =
            ordered(threads, 0..tiles, look, |index, seen| self.take(&listing, index, width(end, index), seen));
        if let Some(index) = stopped {
            let first = index * TILE_WIDTH;
            let text = format!("nothing could be checked from entry {first} on");
            self.result.unchecked.push(text);
            // The checkpoints can still be read.
            let look = |index| looker.checkpoints(listing.within(index));
            ordered(threads, index + 1..tiles, look, |index, seen| {
                self.roots(&listing, index, seen);
                ControlFlow::Continue(())
            });
        }
        if self.tree.size() == end {
            self.upper_edge();
            self.result.root = Some(self.tree.root());
        }
        if self.wrong_roots > NAMED_ROOTS {
            let more = self.wrong_roots - NAMED_ROOTS;
            self.result.findings.file(
                format!("{}/{}", self.job.origin, store::CHECKPOINTS),
                format!("{more} more roots are not the ones the entries give"),
            );
        }
        self.duplicates(end);
        self.strays(end);
    }

    pub(super) fn tell(&mut self, noted: Noted) {
        noted.tell(&mut self.result.findings, &mut self.result.unchecked);
    }

    /// Counts checkpoints with a trusted signature, and those that reach the quorum.
    pub(super) fn count(&mut self, signed: u64, cosigned: u64) {
        self.result.signed += signed;
        self.result.cosigned = self.result.cosigned.map(|before| before + cosigned);
    }

    /// Whether a file is there. What cannot be found out is not called missing.
    pub(super) fn has(&mut self, path: &str) -> bool {
        self.reader.has(path).unwrap_or_else(|error| {
            self.unreadable(&error);
            true
        })
    }

    /// Looks at what the platform log says: nothing of it may be ahead of the log.
    fn expect(&mut self, end: u64) {
        for claim in self.claims.iter().filter(|claim| claim.size > end) {
            self.result.findings.file(
                store::newest_path(self.job.origin),
                format!(
                    "the log ends at size {end}, but entry {} of the platform log has it at size {}",
                    claim.index, claim.size
                ),
            );
        }
        self.claims.retain(|claim| claim.size <= end);
        self.claims.sort_by_key(|claim| claim.size);
    }

    /// Whoever published a log with no entries has said what its root is.
    fn empty_tree(&mut self, listing: &Listing) {
        let seen = match listing.sizes.first() {
            Some(0) => self.looker.checkpoints(&[0]),
            _ => Seen::default(),
        };
        self.reach(0, listing, seen);
        self.at_size();
    }

    /// Takes up what is said about the roots up to a size.
    fn reach(&mut self, to: u64, listing: &Listing, seen: Seen) {
        self.tell(seen.noted);
        self.count(seen.signed, seen.cosigned);
        let mut own = seen.roots;
        if let Some(newest) = &listing.newest {
            let from = self.result.published.last().map_or(0, |last| last + 1);
            if (from..=to).contains(&newest.size) && !own.iter().any(|(size, _)| *size == newest.size) {
                own.push((newest.size, newest.root));
                own.sort_unstable_by_key(|(size, _)| *size);
            }
        }
        self.result.published.extend(own.iter().map(|(size, _)| *size));
        self.expected.clear();
        self.next = 0;
        self.expected.extend(own.into_iter().map(|(size, root)| Expected { size, root, claim: None }));
        while let Some(Claim { index, size, root }) = self.claims.get(self.claimed).copied().filter(|c| c.size <= to) {
            self.expected.push(Expected { size, root, claim: Some(index) });
            self.claimed += 1;
        }
        self.expected.sort_by_key(|expected| expected.size);
    }

    /// As [`Check::reach`], for a tile.
    fn roots(&mut self, listing: &Listing, index: u64, seen: Seen) {
        self.reach((index + 1).saturating_mul(TILE_WIDTH), listing, seen);
    }

    /// Takes the next tile: as it was seen when it is clean, else with a second look.
    fn take(&mut self, listing: &Listing, index: u64, width: u16, mut seen: Seen) -> ControlFlow<()> {
        let clean = seen.clean.take();
        self.roots(listing, index, seen);
        let held = match clean {
            Some(clean) => {
                self.clean(clean);
                true
            }
            None => self.tile(index, width),
        };
        if !held {
            return ControlFlow::Break(());
        }
        self.progress.fetch_add(u64::from(width), Ordering::Relaxed);
        ControlFlow::Continue(())
    }

    fn clean(&mut self, clean: Clean) {
        let Clean { leaves, root, runs, times, latest_at, claims, continues } = clean;
        runs.into_iter().for_each(|run| self.ids.push(run));
        let before = self.result.times.map(|(_, last)| last);
        self.result
            .latest_at
            .extend(latest_at.into_iter().map(|(size, last)| (size, before.unwrap_or(last).max(last))));
        for time in times.into_iter().flat_map(|(first, last)| [first, last]) {
            tile::widen(&mut self.result.times, time);
        }
        for (origin, claim) in claims {
            self.result.claims.entry(origin).or_default().push(claim);
        }
        self.result.continues = self.result.continues.take().or(continues);
        self.result.entries += leaves.len() as u64;
        let reach = self.tree.size() + leaves.len() as u64;
        match root.filter(|_| self.expected.iter().all(|expected| expected.size == reach)) {
            // Nobody has said what the root is in the middle of this tile.
            Some(root) => self.grow(|tree, mut full| tree.push_tile(root, &mut full)),
            None => leaves.into_iter().for_each(|leaf| self.push(leaf)),
        }
    }

    /// Checks a bundle, its leaf tile, and what the leaves complete. `false`: there is nothing to go on with.
    fn tile(&mut self, index: u64, width: u16) -> bool {
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

    fn push(&mut self, leaf: Hash) {
        self.grow(|tree, mut full| tree.push(leaf, &mut full));
    }

    /// Lets the tree grow, and looks at the tiles above the leaves that this fills and at what is said about its root.
    fn grow(&mut self, by: impl FnOnce(&mut TiledTree, &mut Full<'_>) -> Result<(), Infallible>) {
        let mut full: Vec<(u8, u64, Vec<Hash>)> = Vec::new();
        let Ok(()) = by(&mut self.tree, &mut |tile: FullTile<'_>| {
            // Level 0 was compared with the entries already.
            if tile.level > 0 {
                full.push((tile.level, tile.index, tile.hashes.to_vec()));
            }
            Ok(())
        });
        for (level, index, hashes) in full {
            self.upper_tile(level, index, &hashes);
        }
        self.at_size();
    }

    fn upper_tile(&mut self, level: u8, index: u64, hashes: &[Hash]) {
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
    fn upper_edge(&mut self) {
        let open: Vec<Vec<Hash>> = self.tree.open_tiles().iter().skip(1).cloned().collect();
        for (hashes, level) in open.iter().zip(1_u8..) {
            if !hashes.is_empty() {
                let index = self.tree.size() >> (8 * (u32::from(level) + 1));
                self.upper_tile(level, index, hashes);
            }
        }
    }

    /// Compares the root wherever somebody has said what it is.
    fn at_size(&mut self) {
        while let Some(expected) = self.expected.get(self.next).copied() {
            if expected.size != self.tree.size() {
                return;
            }
            self.next += 1;
            let root = self.tree.root();
            if root == expected.root {
                continue;
            }
            self.wrong_roots += 1;
            if self.wrong_roots > NAMED_ROOTS {
                continue;
            }
            let (size, says) = (expected.size, hex(&expected.root));
            let file = store::checkpoint_path(self.job.origin, size);
            let who = match expected.claim {
                None => "it says".to_owned(),
                Some(index) => format!("entry {index} of the platform log says"),
            };
            let ours = hex(&root);
            let text = format!("root at size {size}: {who} {says}, the entries give {ours}");
            self.result.findings.file(file, text);
        }
    }

    /// Looks once more at the transactions that turned up in more than one place.
    fn duplicates(&mut self, end: u64) {
        let mut ids = std::mem::take(&mut self.ids);
        let (looker, tiles) = (self.looker, 0..end.div_ceil(TILE_WIDTH));
        while ids.next_pass() {
            let look = |index| looker.ids(index, width(end, index));
            ordered(self.threads, tiles.clone(), look, |_, runs| {
                runs.into_iter().for_each(|run| ids.push(run));
                ControlFlow::Continue(())
            });
        }
        let mut suspects = ids.suspects();
        if suspects.is_empty() {
            return;
        }
        for index in tiles {
            let mut twice = Vec::new();
            let path = looker.each_id(index, width(end, index), |id, at| {
                if suspects.has(id)
                    && let Some(first) = suspects.push(id, at)
                {
                    twice.push((id, first, at));
                }
            });
            for (id, first, at) in twice {
                self.result.findings.add(Finding {
                    file: path.clone().unwrap_or_default(),
                    index: Some(at),
                    offset: None,
                    message: format!("event {id} is entry {first} and entry {at}"),
                });
            }
        }
        if suspects.too_many() {
            let text = "the event ids of all transactions: too many are not in one piece";
            self.result.unchecked.push(text.to_owned());
        }
    }
}

/// What a growing tree hands its full tiles to.
type Full<'a> = dyn FnMut(FullTile<'_>) -> Result<(), Infallible> + 'a;

/// How many entries a tile has in a log of this size.
fn width(end: u64, index: u64) -> u16 {
    (end - index * TILE_WIDTH).min(TILE_WIDTH) as u16
}

fn first_difference(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() as u64
}
