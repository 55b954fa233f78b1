//! One tile's files, looked at on their own: the entry bundle, the leaf hashes, older partial files, and the checkpoints
//! within.
//!
//! Owns what can be found out about 256 entries without knowing what comes before them, so that tiles can be looked at on
//! many threads. Promises to call a tile clean only when its bundle gives its hashes and every entry is as it should be; of
//! any other it says no more than that, and the pass over the log looks again and names what is wrong.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use agd_core::entry::{self, ParsedEntry};
use agd_core::{Checkpoint, CompactRange, HASH_SIZE, Hash, Incarnation, TILE_WIDTH, leaf_hash, name, tile};
use sha2::{Digest as _, Sha256};

use super::event_ids::{self, Run};
use super::log::{Claim, Job};
use super::note::{self, Noted};
use crate::origin::Kind;
use crate::store::{self, Reader, StoreError};
use crate::tiles::{self, Found, Piece};

/// Folders of tiles whose partial files are kept in mind: a few for each thread.
const FOLDERS: usize = 64;

/// An entry bundle, split.
pub struct Bundle {
    /// The file.
    pub found: Found,
    /// Start and end of each entry in the file.
    pub ranges: Vec<(usize, usize)>,
}

impl Bundle {
    /// Splits a bundle file.
    ///
    /// # Errors
    /// As [`tiles::entries`].
    pub fn split(found: Found, width: u16) -> Result<Self, tiles::TileError> {
        let mut at = 0;
        let ranges = tiles::entries(&found, width)?
            .iter()
            .map(|entry| {
                let start = at + 2;
                at = start + entry.len();
                (start, at)
            })
            .collect();
        Ok(Self { found, ranges })
    }

    /// The bytes of one entry.
    pub fn entry(&self, position: usize) -> &[u8] {
        let range = self.ranges.get(position).copied().unwrap_or_default();
        self.found.bytes.get(range.0..range.1).unwrap_or_default()
    }

    /// The hashes that the entries give.
    pub fn leaves(&self) -> Vec<Hash> {
        let entries = (0..self.ranges.len()).map(|position| self.entry(position));
        entries.map(leaf_hash).collect()
    }
}

/// What an entry says that matters beyond itself.
#[derive(Debug, Default)]
pub struct Said {
    /// A tenant's checkpoint, in an entry of the platform log.
    pub claim: Option<Checkpoint>,
    /// What the log continues.
    pub continues: Option<Incarnation>,
    /// It closes the tenant's log: whatever follows opens it again.
    pub closes: bool,
    /// What is wrong with it.
    pub wrong: Vec<String>,
}

/// What an entry says in the log it is in.
pub fn examine(job: &Job<'_>, index: u64, entry: &ParsedEntry<'_>) -> Said {
    let mut said = Said::default();
    match job.kind {
        Kind::Tenant { tenant, .. } => {
            if !entry.tenant.is_some_and(|text| text.is(tenant)) {
                let other = entry.tenant.map(entry::Text::value);
                let other = other.as_deref().unwrap_or("no tenant");
                said.wrong.push(format!("is of {other}, in the log of {tenant}"));
            }
            said.closes = entry.action.is(entry::LOG_CLOSE);
        }
        Kind::Platform => {
            if entry.action.is(entry::CHECKPOINT) {
                claim(job, entry, &mut said);
            }
            beginning(job, index, entry, &mut said);
        }
    }
    said
}

fn claim(job: &Job<'_>, entry: &ParsedEntry<'_>, said: &mut Said) {
    let body = entry.body.map(entry::Text::value);
    let checkpoint = match Checkpoint::parse(body.as_deref().unwrap_or_default()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            said.wrong.push(format!("its body is not a tenant's checkpoint: {error}"));
            return;
        }
    };
    match Kind::of(&checkpoint.origin) {
        Some(Kind::Tenant { platform, .. }) if platform == job.origin => said.claim = Some(checkpoint),
        // What the database closed, which may be another history than what is published: nothing that is to be here.
        Some(Kind::Tenant { platform, .. }) if is_earlier(platform, job.origin) => {}
        _ => said.wrong.push(format!("{} is no tenant's log of this one", checkpoint.origin)),
    }
}

/// The first entry of a later incarnation's platform log, and no other one, says what the log continues.
fn beginning(job: &Job<'_>, index: u64, entry: &ParsedEntry<'_>, said: &mut Said) {
    let begins = index == 0 && name::split_incarnation(job.origin).1 > 1;
    match (begins, entry.action.is(entry::INCARNATION)) {
        (true, true) => match Incarnation::parse(entry.body.map(entry::Text::value).as_deref().unwrap_or_default()) {
            Ok(continues) => said.continues = Some(continues),
            Err(error) => said.wrong.push(format!("does not say what the log continues: {error}")),
        },
        (true, false) => {
            let action = entry.action.value();
            said.wrong.push(format!("is {action}, and not what says which log this one continues"));
        }
        (false, true) => said.wrong.push("begins an incarnation where none begins".to_owned()),
        (false, false) => {}
    }
}

/// Is a platform log one of an earlier incarnation of another?
fn is_earlier(platform: &str, than: &str) -> bool {
    let ((log_name, incarnation), (other_name, other)) =
        (name::split_incarnation(platform), name::split_incarnation(than));
    log_name == other_name && incarnation < other
}

/// A tile of which all holds.
#[derive(Debug, Default)]
pub struct Clean {
    /// The leaf hashes.
    pub leaves: Vec<Hash>,
    /// Their root, when there are 256.
    pub root: Option<Hash>,
    /// The event ids.
    pub runs: Vec<Run>,
    /// The earliest and the latest commit time.
    pub times: Option<(i64, i64)>,
    /// For each size with a timestamp, the latest commit time of the tile's entries below it.
    pub latest_at: Vec<(u64, i64)>,
    /// Tenants' checkpoints, by the tenant's origin.
    pub claims: Vec<(String, Claim)>,
    /// What the log continues.
    pub continues: Option<Incarnation>,
    /// The last entry closes the log.
    pub closed: bool,
}

/// What was found out about a tile.
#[derive(Debug, Default)]
pub struct Seen {
    /// `None`: something is wrong, or could not be read.
    pub clean: Option<Clean>,
    /// The published checkpoints that end within it, by ascending size.
    pub roots: Vec<(u64, Hash)>,
    /// The SHA-256 of each of them that has a timestamp.
    pub stamped: Vec<(u64, Hash)>,
    /// How many of them a key of the policy signed.
    pub signed: u64,
    /// How many of them reach the quorum of witnesses.
    pub cosigned: u64,
    /// What is wrong with the checkpoints.
    pub noted: Noted,
}

/// Looks at tiles of one log.
pub struct Looker<'a> {
    reader: &'a Reader,
    job: &'a Job<'a>,
    partials: Mutex<VecDeque<(String, Arc<HashSet<String>>)>>,
}

impl<'a> Looker<'a> {
    /// For a log.
    pub fn new(reader: &'a Reader, job: &'a Job<'a>) -> Self {
        Self { reader, job, partials: Mutex::default() }
    }

    /// Looks at a tile and at the checkpoints of these sizes.
    pub fn look(&self, index: u64, width: u16, sizes: &[u64]) -> Seen {
        let mut seen = self.checkpoints(sizes);
        seen.clean = self.clean(index, width);
        seen
    }

    /// Reads the checkpoints of these sizes.
    pub fn checkpoints(&self, sizes: &[u64]) -> Seen {
        let mut seen = Seen::default();
        for size in sizes {
            let path = store::checkpoint_path(self.job.origin, *size);
            let Some(found) = note::read(self.reader, self.job, &path, &mut seen.noted) else { continue };
            seen.signed += u64::from(found.signed);
            seen.cosigned += u64::from(found.cosigned);
            if found.checkpoint.size == *size {
                seen.roots.push((*size, found.checkpoint.root));
                if self.job.stamped.binary_search(size).is_ok() {
                    seen.stamped.push((*size, Sha256::digest(&found.bytes).into()));
                }
            } else {
                seen.noted.file(path, format!("its name says size {size}, its text {}", found.checkpoint.size));
            }
        }
        seen
    }

    fn clean(&self, index: u64, width: u16) -> Option<Clean> {
        let find = |piece| tiles::find(self.reader, self.job.origin, piece, index, width).ok().flatten();
        let bundle = Bundle::split(find(Piece::Entries)?, width).ok()?;
        let leaves = bundle.leaves();
        let tile = find(Piece::Hashes(0))?;
        if tile.bytes.len() != usize::from(tile.width) * HASH_SIZE || !tile.bytes.starts_with(leaves.as_flattened()) {
            return None;
        }
        let mut clean = Clean { root: tile::full_root(&leaves), leaves, ..Clean::default() };
        let (first, stamped) = (index * TILE_WIDTH, self.job.stamped);
        let mut stamped = stamped.get(stamped.partition_point(|size| *size <= first)..).unwrap_or_default().iter();
        let mut stamp = stamped.next();
        for position in 0..bundle.ranges.len() {
            let entry = entry::read(bundle.entry(position)).ok()?;
            let index = index * TILE_WIDTH + position as u64;
            let said = examine(self.job, index, &entry);
            if !said.wrong.is_empty() {
                return None;
            }
            event_ids::extend(&mut clean.runs, entry.event_id);
            widen(&mut clean.times, entry.committed_at);
            if let Some(size) = stamp.filter(|size| **size == index + 1) {
                clean.latest_at.extend(clean.times.map(|(_, last)| (*size, last)));
                stamp = stamped.next();
            }
            clean.claims.extend(said.claim.map(|checkpoint| Claim::new(index, checkpoint)));
            clean.continues = clean.continues.or(said.continues);
            clean.closed = said.closes;
        }
        let bundles = self.partials(Piece::Entries, index, &bundle.found.path).ok()?;
        let tiles = self.partials(Piece::Hashes(0), index, &tile.path).ok()?;
        let begins = bundles.iter().all(|partial| is_beginning(&bundle, partial))
            && tiles.iter().all(|partial| {
                let width = usize::from(partial.width);
                width > clean.leaves.len() || partial.bytes == clean.leaves[..width].as_flattened()
            });
        begins.then_some(clean)
    }

    /// The event ids of a tile that was read before, when `root` was the root of its leaves. `None`: it is another one now.
    pub fn ids(&self, index: u64, width: u16, root: Option<Hash>) -> Option<Vec<Run>> {
        let mut runs = Vec::new();
        self.each_id(index, width, root, |id, _| event_ids::extend(&mut runs, id))?;
        Some(runs)
    }

    /// Goes through the event ids of such a tile, with the entry of each; returns the bundle's path.
    pub fn each_id(
        &self,
        index: u64,
        width: u16,
        root: Option<Hash>,
        mut each: impl FnMut(agd_core::EventId, u64),
    ) -> Option<String> {
        // What cannot be read was reported in the first pass.
        let found = tiles::find(self.reader, self.job.origin, Piece::Entries, index, width).ok()??;
        let entries = tiles::entries(&found, width).ok()?;
        let leaves: Vec<Hash> = entries.iter().map(|entry| leaf_hash(entry)).collect();
        if root != Some(root_of(&leaves)) {
            return None;
        }
        for (bytes, at) in entries.iter().zip(index * TILE_WIDTH..) {
            if let Ok(entry) = entry::read(bytes) {
                each(entry.event_id, at);
            }
        }
        Some(found.path)
    }

    /// The partial files of a tile, but `known`.
    ///
    /// # Errors
    /// [`StoreError`] of the first that cannot be read.
    pub fn partials(&self, piece: Piece, index: u64, known: &str) -> Result<Vec<Found>, StoreError> {
        let origin = self.job.origin;
        let mut found = Vec::new();
        if !self.has_partials(piece, index)? {
            return Ok(found);
        }
        for width in tiles::partial_widths(self.reader, origin, piece, index)? {
            let path = piece.path(origin, index, width);
            if path != known {
                let bytes = self.reader.read(&path, piece.limit())?;
                found.extend(bytes.map(|bytes| Found { path, width, bytes }));
            }
        }
        Ok(found)
    }

    /// Whether a tile has partial files: what its folder says, which is asked once for a thousand tiles.
    fn has_partials(&self, piece: Piece, index: u64) -> Result<bool, StoreError> {
        let full = piece.path(self.job.origin, index, TILE_WIDTH as u16);
        let (folder, name) = full.rsplit_once('/').unwrap_or_default();
        let name = format!("{name}.p");
        let known = |partials: &VecDeque<(String, Arc<HashSet<String>>)>| {
            partials.iter().find(|(known, _)| known == folder).map(|(_, names)| Arc::clone(names))
        };
        let lock = || self.partials.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(names) = known(&lock()) {
            return Ok(names.contains(&name));
        }
        // Not under the lock: the others go on meanwhile, and at worst ask the same.
        let listed = self.reader.list(folder)?.unwrap_or_default();
        let folders = listed.into_iter().filter(|listed| listed.kind != store::Kind::File);
        let names: Arc<HashSet<String>> = Arc::new(folders.map(|listed| listed.name).collect());
        let has = names.contains(&name);
        let mut partials = lock();
        partials.push_back((folder.to_owned(), names));
        if partials.len() > FOLDERS {
            partials.pop_front();
        }
        Ok(has)
    }
}

/// The root of a tile's leaves, however many there are.
pub fn root_of(leaves: &[Hash]) -> Hash {
    tile::full_root(leaves).unwrap_or_else(|| {
        let mut range = CompactRange::new();
        leaves.iter().for_each(|leaf| range.push(*leaf));
        range.root()
    })
}

/// Whether a partial bundle is the beginning of the wider one; one that is wider still says nothing.
pub fn is_beginning(bundle: &Bundle, partial: &Found) -> bool {
    let last = usize::from(partial.width).checked_sub(1).and_then(|last| bundle.ranges.get(last));
    last.is_none_or(|(_, end)| bundle.found.bytes.get(..*end) == Some(&partial.bytes))
}

/// Takes a time into a span of times.
pub fn widen(times: &mut Option<(i64, i64)>, time: i64) {
    let (first, last) = times.unwrap_or((time, time));
    *times = Some((first.min(time), last.max(time)));
}
