//! One log: everything its folder says must follow from its entries.
//!
//! Owns the pass over a log: bundle by bundle entries, leaf hashes, tiles of every level, and the root at every published
//! size. Tiles are looked at on several threads (in `tile`); what one alone cannot tell is settled here, in order. Promises
//! that memory is bounded by a few bundles and the open tiles (and a few bytes a checkpoint). It never names what is wrong
//! in a tile that is not clean: `second_look` does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use agd_core::{Checkpoint, FullTile, Hash, Incarnation, TILE_WIDTH, TiledTree, VerifierKey};

use super::checkpoints::Listing;
use super::event_ids::EventIds;
use super::findings::{Finding, Findings};
use super::note::Noted;
use super::tile::{self, Clean, Looker, Seen};
use crate::origin::Kind;
use crate::pipeline::{Threads, ordered};
use crate::policy::Policy;
use crate::publish::hex;
use crate::report::counted;
use crate::store::{self, Reader};

/// Checkpoints with a wrong root that are named one by one; the rest is counted.
const NAMED_ROOTS: u64 = 3;

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
    /// The last entry closes the tenant's log: its last fleet has ended.
    pub closed: bool,
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
    /// For each tile of entries that was read, the root of its leaves: whoever reads a bundle again holds it against this.
    pub tiles: Vec<Hash>,
    /// For each size with a timestamp, the SHA-256 of the checkpoint file that was read.
    pub stamped: BTreeMap<u64, Hash>,
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
pub(super) struct Expected {
    pub(super) size: u64,
    pub(super) root: Hash,
    /// The platform log's entry that says so; none for a published checkpoint.
    pub(super) claim: Option<u64>,
}

pub(super) struct Check<'a> {
    pub(super) reader: &'a Reader,
    pub(super) job: &'a Job<'a>,
    threads: &'a Threads,
    progress: &'a AtomicU64,
    pub(super) looker: &'a Looker<'a>,
    pub(super) tree: TiledTree,
    /// What the platform log says, by ascending size.
    claims: Vec<Claim>,
    /// The first of `claims` that the tree has not reached.
    claimed: usize,
    /// The roots within the tile at hand, by ascending size.
    pub(super) expected: Vec<Expected>,
    /// The first of `expected` that the tree has not reached.
    pub(super) next: usize,
    wrong_roots: u64,
    pub(super) ids: EventIds,
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
            let root = self.tree.root();
            self.result.root = Some(root);
            // What was read of the newest checkpoint first is what others go by.
            if root != signed_root && self.wrong_roots == 0 {
                let text = format!("the checkpoint of size {end} changed while it was read");
                self.result.findings.file(store::checkpoint_path(self.job.origin, end), text);
            }
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
        self.result.stamped.extend(seen.stamped);
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
        let Clean { leaves, root, runs, times, latest_at, claims, continues, closed } = clean;
        self.result.tiles.push(root.unwrap_or_else(|| tile::root_of(&leaves)));
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
        self.result.closed = closed;
        self.result.entries += leaves.len() as u64;
        let reach = self.tree.size() + leaves.len() as u64;
        match root.filter(|_| self.expected.iter().all(|expected| expected.size == reach)) {
            // Nobody has said what the root is in the middle of this tile.
            Some(root) => self.grow(|tree, mut full| tree.push_tile(root, &mut full)),
            None => leaves.into_iter().for_each(|leaf| self.push(leaf)),
        }
    }

    pub(super) fn push(&mut self, leaf: Hash) {
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
        // A pass looks at what the first one looked at, or not at all.
        let known = std::mem::take(&mut self.result.tiles);
        let read = |index: u64| usize::try_from(index).ok().and_then(|index| known.get(index).copied());
        let mut changed = 0_u64;
        while ids.next_pass() {
            let look = |index| looker.ids(index, width(end, index), read(index));
            ordered(self.threads, tiles.clone(), look, |_, runs| {
                changed += u64::from(runs.is_none());
                runs.into_iter().flatten().for_each(|run| ids.push(run));
                ControlFlow::Continue(())
            });
        }
        let mut suspects = ids.suspects();
        if suspects.is_empty() {
            self.passed_again(known, changed);
            return;
        }
        for index in tiles {
            let mut twice = Vec::new();
            let path = looker.each_id(index, width(end, index), read(index), |id, at| {
                if suspects.has(id)
                    && let Some(first) = suspects.push(id, at)
                {
                    twice.push((id, first, at));
                }
            });
            changed += u64::from(path.is_none());
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
        self.passed_again(known, changed);
    }

    /// After further passes: `changed` bundles were not what the first pass had read.
    fn passed_again(&mut self, known: Vec<Hash>, changed: u64) {
        self.result.tiles = known;
        if changed > 0 && self.result.findings.count() == 0 {
            self.result.unchecked.push(format!(
                "the event ids of all transactions: {} that were read again are not what they were",
                counted(changed, "bundle")
            ));
        }
    }
}

/// What a growing tree hands its full tiles to.
type Full<'a> = dyn FnMut(FullTile<'_>) -> Result<(), Infallible> + 'a;

/// How many entries a tile has in a log of this size.
fn width(end: u64, index: u64) -> u16 {
    (end - index * TILE_WIDTH).min(TILE_WIDTH) as u16
}
