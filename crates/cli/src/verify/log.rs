//! One log: everything its folder says must follow from its entries.
//!
//! Owns the pass over a log: checkpoints and their signatures, then bundle by bundle entries, leaf hashes, tiles of every
//! level and the root at every published size. Promises that memory is bounded by one bundle and the open tiles (and a
//! few bytes a checkpoint and a transaction), and that a wrong file is named with the entry and byte at which it is
//! wrong. Where an entry bundle and a tile disagree, the next checkpoint decides which of them is wrong.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use agd_core::tile::partial_width;
use agd_core::{
    Checkpoint, EntryError, EventId, FullTile, HASH_SIZE, Hash, Incarnation, OwnedEntry, SignedNote, TILE_WIDTH,
    TileCoord, TiledTree, VerifierKey, entry, leaf_hash, name, note,
};

use super::event_ids::EventIds;
use super::findings::{Finding, Findings};
use crate::origin::Kind;
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
}

/// A tenant's checkpoint, as an entry of the platform log has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The entry's index in the platform log.
    pub index: u64,
    /// The tenant's checkpoint.
    pub checkpoint: Checkpoint,
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
    /// The earliest and the latest commit time, microseconds since the Unix epoch.
    pub times: Option<(i64, i64)>,
    /// Tenants' checkpoints found as entries, in order.
    pub claims: Vec<Claim>,
    /// What is false.
    pub findings: Findings,
    /// What could not be checked.
    pub unchecked: Vec<String>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// Verifies one log. `progress` counts entries.
pub fn verify(reader: &Reader, job: &Job<'_>, progress: &AtomicU64) -> LogResult {
    let mut check = Check {
        reader,
        job,
        progress,
        tree: TiledTree::new(),
        expected: Vec::new(),
        next: 0,
        wrong_roots: 0,
        ids: EventIds::default(),
        result: LogResult::default(),
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

struct Check<'a> {
    reader: &'a Reader,
    job: &'a Job<'a>,
    progress: &'a AtomicU64,
    tree: TiledTree,
    /// By ascending size.
    expected: Vec<Expected>,
    /// The first of `expected` that the tree has not reached.
    next: usize,
    wrong_roots: u64,
    ids: EventIds,
    result: LogResult,
}

/// An entry bundle, split, with the byte at which each entry begins.
struct Bundle {
    found: Found,
    /// Start and end of each entry in the file.
    ranges: Vec<(usize, usize)>,
}

impl Bundle {
    fn entry(&self, position: usize) -> &[u8] {
        let range = self.ranges.get(position).copied().unwrap_or_default();
        self.found.bytes.get(range.0..range.1).unwrap_or_default()
    }

    fn leaves(&self) -> Vec<Hash> {
        let entries = (0..self.ranges.len()).map(|position| self.entry(position));
        entries.map(leaf_hash).collect()
    }
}

impl Check<'_> {
    fn run(&mut self) {
        let (published, newest) = self.checkpoints();
        let Some((&end, signed_root)) = published.last_key_value() else {
            self.nothing_published();
            return;
        };
        self.result.signed_root = Some(*signed_root);
        self.result.published = published.keys().copied().collect();
        self.result.size = end;
        self.all_published(&published, end);
        self.expect(&published, end);
        if let Some(newest) = newest {
            self.newest_is_readable(newest);
        }
        self.at_size();
        let mut index = 0;
        while index < end.div_ceil(TILE_WIDTH) {
            let width = (end - index * TILE_WIDTH).min(TILE_WIDTH) as u16;
            if !self.tile(index, width) {
                let first = index * TILE_WIDTH;
                let text = format!("nothing could be checked from entry {first} on");
                self.result.unchecked.push(text);
                break;
            }
            index += 1;
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

    /// A log of which no checkpoint can be read.
    fn nothing_published(&mut self) {
        let path = store::newest_path(self.job.origin);
        for claim in self.job.claims {
            let (index, size) = (claim.index, claim.checkpoint.size);
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
    fn all_published(&mut self, published: &BTreeMap<u64, Hash>, end: u64) {
        let claims = self.job.claims.iter().map(|claim| claim.checkpoint.size);
        let multiples = (1..=end / TILE_WIDTH).map(|count| count * TILE_WIDTH);
        for size in multiples.chain(claims.filter(|size| *size <= end)) {
            let path = store::checkpoint_path(self.job.origin, size);
            // One that is there but not right was reported already.
            if !published.contains_key(&size) && !self.reader.has(&path) {
                self.result.findings.file(path, "is missing");
            }
        }
    }

    /// Reads every checkpoint. Returns the published sizes with their roots and the size of the newest one.
    fn checkpoints(&mut self) -> (BTreeMap<u64, Hash>, Option<u64>) {
        let origin = self.job.origin;
        let newest_path = store::newest_path(origin);
        // Read first: what a publisher at work adds meanwhile is then ahead of it, never behind.
        let newest = self.checkpoint(&newest_path);
        let mut published = BTreeMap::new();
        let mut newest_again = None;
        let folder = format!("{origin}/{}", store::CHECKPOINTS);
        let names = self.reader.list(&folder).unwrap_or_else(|error| {
            self.result.unchecked.push(error.to_string());
            None
        });
        if newest.is_none() && names.as_ref().is_some_and(|names| !names.is_empty()) && !self.reader.has(&newest_path) {
            self.result.findings.file(&newest_path, "is missing");
        }
        for listed in names.unwrap_or_default() {
            let path = format!("{folder}/{}", listed.name);
            let Some(size) = store::parse_checkpoint_name(&listed.name) else {
                let text = format!("{path} is not the name of a checkpoint; ignored");
                self.result.notes.push(text);
                continue;
            };
            let Some((checkpoint, bytes)) = self.checkpoint(&path) else {
                continue;
            };
            if checkpoint.size != size {
                let text = format!("its name says size {size}, its text {}", checkpoint.size);
                self.result.findings.file(path, text);
                continue;
            }
            if newest.as_ref().is_some_and(|(newest, _)| newest.size == size) {
                newest_again = Some(bytes);
            }
            published.insert(size, checkpoint.root);
        }
        let Some((newest, bytes)) = newest else {
            return (published, None);
        };
        let path = store::checkpoint_path(origin, newest.size);
        match newest_again {
            Some(again) if again == bytes => {}
            Some(_) => {
                let text = format!("differs from {path}, which must be the same bytes");
                self.result.findings.file(&newest_path, text);
            }
            // A file that is there but unreadable was reported already.
            None if self.reader.has(&path) => {}
            None => self.result.findings.file(path, "is missing, the newest checkpoint says this size"),
        }
        published.entry(newest.size).or_insert(newest.root);
        if let Some((&end, _)) = published.last_key_value()
            && end > newest.size
        {
            self.result.notes.push(format!(
                "{newest_path} is at size {}, behind the published size {end}: a publication is under way or was \
                 interrupted, or it was put back; all of {end} is checked",
                newest.size
            ));
        }
        (published, Some(newest.size))
    }

    /// Reads and checks one checkpoint file, but its size.
    fn checkpoint(&mut self, path: &str) -> Option<(Checkpoint, Vec<u8>)> {
        let bytes = match self.reader.read(path, note::MAX_NOTE_LEN as u64) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return None,
            Err(error) => {
                self.unreadable(error);
                return None;
            }
        };
        let mut wrong = |text: String| self.result.findings.file(path, text);
        let note = match SignedNote::parse(&bytes) {
            Ok(note) => note,
            Err(error) => {
                wrong(error.to_string());
                return None;
            }
        };
        let checkpoint = match Checkpoint::parse(note.text()) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                wrong(error.to_string());
                return None;
            }
        };
        if checkpoint.origin != self.job.origin {
            wrong(format!("is of another log: {}", checkpoint.origin));
            return None;
        }
        if let Some(keys) = self.job.keys.as_deref().filter(|keys| !keys.is_empty()) {
            match note.verify(keys) {
                // The newest checkpoint is one of the immutable ones again: counted there.
                Ok(_) if path == store::newest_path(self.job.origin) => {}
                Ok(_) => self.result.signed += 1,
                Err(error) => wrong(error.to_string()),
            }
        }
        Some((checkpoint, bytes))
    }

    fn expect(&mut self, published: &BTreeMap<u64, Hash>, end: u64) {
        let own = published.iter().map(|(&size, &root)| Expected { size, root, claim: None });
        self.expected.extend(own);
        for claim in self.job.claims {
            let Checkpoint { size, root, .. } = claim.checkpoint;
            if size > end {
                self.result.findings.file(
                    store::newest_path(self.job.origin),
                    format!(
                        "the log ends at size {end}, but entry {} of the platform log has it at size {size}",
                        claim.index
                    ),
                );
                continue;
            }
            self.expected.push(Expected { size, root, claim: Some(claim.index) });
        }
        self.expected.sort_by_key(|expected| expected.size);
    }

    /// Clients take the partial tiles of exactly the newest checkpoint's size, or the full ones.
    fn newest_is_readable(&mut self, newest: u64) {
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
            if !self.reader.has(&path) && !self.reader.has(&full) {
                self.result.findings.file(path, "is missing");
            }
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
        self.progress.fetch_add(u64::from(width), Ordering::Relaxed);
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
        match tiles::entries(&found, width) {
            Ok(entries) => {
                let mut at = 0;
                let ranges = entries
                    .iter()
                    .map(|entry| {
                        let start = at + 2;
                        at = start + entry.len();
                        (start, at)
                    })
                    .collect();
                Some(Bundle { found, ranges })
            }
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
                self.unreadable(error);
                None
            }
        }
    }

    /// What cannot be the object it should be is false; what the system does not give could not be checked.
    fn unreadable(&mut self, error: StoreError) {
        match &error {
            StoreError::NotRegular { path } | StoreError::TooLarge { path, .. } => {
                self.result.findings.file(path.clone(), error.to_string());
            }
            _ => self.result.unchecked.push(error.to_string()),
        }
    }

    fn bad_tile(&mut self, error: TileError) {
        match error {
            TileError::Store(error) => self.unreadable(error),
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
            match entry::parse(bundle.entry(position)) {
                Ok(entry) => self.entry(&entry, at(0)),
                Err(error) => {
                    let offset = match error {
                        EntryError::Utf8 { offset } | EntryError::NotCanonical { offset } => offset,
                        _ => 0,
                    };
                    self.wrong_entry(at(offset), error.to_string());
                }
            }
            self.result.entries += 1;
        }
    }

    fn wrong_entry(&mut self, (file, index, offset): (&String, u64, u64), message: String) {
        self.result.findings.add(Finding {
            file: file.clone(),
            index: Some(index),
            offset: Some(offset),
            message: format!("entry {index}: {message}"),
        });
    }

    fn entry(&mut self, entry: &OwnedEntry, place: (&String, u64, u64)) {
        self.ids.push(entry.event_id);
        let (first, last) = self.result.times.unwrap_or((entry.committed_at, entry.committed_at));
        self.result.times = Some((first.min(entry.committed_at), last.max(entry.committed_at)));
        match self.job.kind {
            Kind::Tenant { tenant, .. } if entry.tenant.as_deref() != Some(tenant) => {
                let other = entry.tenant.as_deref().unwrap_or("no tenant");
                self.wrong_entry(place, format!("is of {other}, in the log of {tenant}"));
            }
            Kind::Platform if entry.action == entry::CHECKPOINT => self.claim(entry, place),
            _ => {}
        }
        if self.job.kind == Kind::Platform {
            self.beginning(entry, place);
        }
    }

    /// The first entry of a later incarnation's platform log, and no other one, says what the log continues.
    fn beginning(&mut self, entry: &OwnedEntry, place: (&String, u64, u64)) {
        let begins = place.1 == 0 && name::split_incarnation(self.job.origin).1 > 1;
        match (begins, entry.action == entry::INCARNATION) {
            (true, true) => match Incarnation::parse(entry.body.as_deref().unwrap_or_default()) {
                Ok(continues) => self.result.continues = Some(continues),
                Err(error) => self.wrong_entry(place, format!("does not say what the log continues: {error}")),
            },
            (true, false) => {
                let text = format!("is {}, and not what says which log this one continues", entry.action);
                self.wrong_entry(place, text);
            }
            (false, true) => self.wrong_entry(place, "begins an incarnation where none begins".to_owned()),
            (false, false) => {}
        }
    }

    fn claim(&mut self, entry: &OwnedEntry, place: (&String, u64, u64)) {
        let body = entry.body.as_deref().unwrap_or_default();
        let checkpoint = match Checkpoint::parse(body) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                let text = format!("its body is not a tenant's checkpoint: {error}");
                return self.wrong_entry(place, text);
            }
        };
        match Kind::of(&checkpoint.origin) {
            Some(Kind::Tenant { platform, .. }) if platform == self.job.origin => {
                self.result.claims.push(Claim { index: place.1, checkpoint });
            }
            // What the database closed, which may be another history than what is published: nothing that is to be here.
            Some(Kind::Tenant { platform, .. }) if is_earlier(platform, self.job.origin) => {}
            _ => {
                let text = format!("{} is no tenant's log of this one", checkpoint.origin);
                self.wrong_entry(place, text);
            }
        }
    }

    /// Every partial bundle that is still there must be the beginning of the wider one.
    fn partial_bundles(&mut self, bundle: &Bundle, index: u64) {
        for (width, path, bytes) in self.partials(Piece::Entries, index, &bundle.found.path) {
            let Some((_, end)) = bundle.ranges.get(usize::from(width) - 1) else {
                continue;
            };
            if bundle.found.bytes.get(..*end) != Some(&bytes) {
                let offset = first_difference(&bundle.found.bytes, &bytes);
                self.result.findings.add(Finding {
                    file: path,
                    index: None,
                    offset: Some(offset),
                    message: "is not the beginning of the wider bundle".to_owned(),
                });
            }
        }
    }

    /// Every partial tile that is still there must hold the first of these hashes.
    fn partial_tiles(&mut self, level: u8, index: u64, hashes: &[Hash]) {
        for (width, path, bytes) in self.partials(Piece::Hashes(level), index, "") {
            if usize::from(width) <= hashes.len() {
                self.compare_tile(path, level, index, &bytes, &hashes[..usize::from(width)]);
            }
        }
    }

    /// The partial files of a tile, but `known`.
    fn partials(&mut self, piece: Piece, index: u64, known: &str) -> Vec<(u16, String, Vec<u8>)> {
        let origin = self.job.origin;
        let widths = tiles::partial_widths(self.reader, origin, piece, index);
        let mut files = Vec::new();
        match widths {
            Ok(widths) => {
                for width in widths {
                    let path = piece.path(origin, index, width);
                    if path == known {
                        continue;
                    }
                    match self.reader.read(&path, piece.limit()) {
                        Ok(bytes) => files.extend(bytes.map(|bytes| (width, path, bytes))),
                        Err(error) => self.unreadable(error),
                    }
                }
            }
            Err(error) => self.unreadable(error),
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
        let mut full: Vec<(u8, u64, Vec<Hash>)> = Vec::new();
        let Ok(()) = self.tree.push(leaf, &mut |tile: FullTile<'_>| {
            // Level 0 was compared with the entries already.
            if tile.level > 0 {
                full.push((tile.level, tile.index, tile.hashes.to_vec()));
            }
            Ok::<(), Infallible>(())
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
        let suspects = std::mem::take(&mut self.ids).suspects();
        if suspects.is_empty() {
            return;
        }
        let mut seen: HashMap<EventId, u64> = HashMap::new();
        for index in 0..end.div_ceil(TILE_WIDTH) {
            let width = (end - index * TILE_WIDTH).min(TILE_WIDTH) as u16;
            let found = tiles::find(self.reader, self.job.origin, Piece::Entries, index, width);
            // What cannot be read was reported in the first pass.
            let Ok(Some(found)) = found else { continue };
            let Ok(entries) = tiles::entries(&found, width) else {
                continue;
            };
            for (bytes, at) in entries.iter().zip(index * TILE_WIDTH..) {
                let Ok(entry) = entry::parse(bytes) else {
                    continue;
                };
                let id = entry.event_id;
                if !suspects.contains(&id.xact_id) {
                    continue;
                }
                if let Some(first) = seen.insert(id, at) {
                    self.result.findings.add(Finding {
                        file: found.path.clone(),
                        index: Some(at),
                        offset: None,
                        message: format!("event {id} is entry {first} and entry {at}"),
                    });
                }
            }
        }
    }

    /// Counts what lies in `tile/` beyond the newest checkpoint, or is no tile at all.
    fn strays(&mut self, end: u64) {
        let origin = self.job.origin;
        let (mut beyond, mut foreign) = (0_u64, 0_u64);
        let mut waiting = vec!["tile".to_owned()];
        while let Some(folder) = waiting.pop() {
            let names = match self.reader.list(&format!("{origin}/{folder}")) {
                Ok(names) => names.unwrap_or_default(),
                Err(error) => {
                    self.unreadable(error);
                    continue;
                }
            };
            // Tile paths are at most 11 folders deep; below that there is nothing of ours.
            let deep = folder.split('/').count() > 12;
            for listed in names {
                let path = format!("{folder}/{}", listed.name);
                if listed.kind == store::Kind::Folder && !deep {
                    waiting.push(path);
                    continue;
                }
                let coord = TileCoord::parse(&path).or_else(|_| TileCoord::parse_entries(&path));
                match coord {
                    Ok(coord) if listed.kind == store::Kind::File => {
                        let there = TileCoord::in_tree(coord.level, coord.index, end);
                        let within = there.is_some_and(|there| coord.width <= there.width);
                        beyond += u64::from(!within);
                    }
                    _ => foreign += 1,
                }
            }
        }
        let mut note = |count: u64, text: &str| {
            if count > 0 {
                self.result.notes.push(format!("{count} {text}"));
            }
        };
        note(beyond, "tile files beyond the newest checkpoint, not checked (a publication under way or interrupted)");
        note(foreign, "files in tile/ that are no tiles; ignored");
        if self.reader.list(&format!("{origin}/timestamps")).is_ok_and(|names| names.is_some()) {
            let text = "timestamps are there; this version does not check them";
            self.result.notes.push(text.to_owned());
        }
    }
}

/// Is a platform log one of an earlier incarnation of another?
fn is_earlier(platform: &str, than: &str) -> bool {
    let ((log_name, incarnation), (other_name, other)) =
        (name::split_incarnation(platform), name::split_incarnation(than));
    log_name == other_name && incarnation < other
}

fn first_difference(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() as u64
}
