//! `agd publish`: carries a database's logs into a store, and signs only what continues what was signed before.
//!
//! Owns the order of work for one log: take up the last published state from the store, check the database's anchors
//! against it, fetch the entries beyond, hash them here, compare the root at every anchor, and only then write tiles,
//! bundles, immutable checkpoints and, last, the newest one. Promises that no two checkpoints of a log that it signed
//! contradict each other, whatever the database says and wherever the process dies; that a refused log gets nothing
//! written in that piece of work; and that a run after a crash ends with the same files as a run without one. It never takes
//! the published state from the database; but it tells the database where its log is not what was published, so that
//! nothing more is written there until somebody has decided how to go on.
//!
//! Tenants go first and the platform log last, at the size it had when the logs were listed: so every tenant checkpoint
//! that the published platform log holds is backed by published tiles.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;

use agd_core::bundle::MAX_ENTRY_LEN;
use agd_core::note::MAX_NOTE_LEN;
use agd_core::{
    Checkpoint, FullTile, Hash, Incarnation, NoteError, SignedNote, SigningKey, TILE_WIDTH, TiledTree, bundle, entry,
    leaf_hash, name,
};
use thiserror::Error;

use crate::key::LogKey;
use crate::origin::{Kind, speaks_for};
use crate::source::{Anchor, LogHead, Receipt, Source, SourceError};
use crate::stamp::{Stamped, Stamper};
use crate::store::{self, StoreError, Writer};
use crate::succession::{self, Succession};
use crate::tiles::{self, Piece, TileError};
use crate::witness::Witness;
use crate::{EXIT_FALSE, EXIT_OK, EXIT_UNCHECKED};

/// Entries asked for in one statement, and the most that are held in memory: 64 full tiles.
pub const CHUNK: u64 = 64 * TILE_WIDTH;

/// Anchors asked for in one statement.
const ANCHOR_PAGE: i64 = 1024;

/// Why a log was not signed: something is false.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The database's history has another root at a size than the published one, or than its own entries.
    #[error(
        "{origin}: not a continuation at size {size}: the database says root {database}, the entries give {ours}; nothing was signed"
    )]
    NotAContinuation {
        /// The log.
        origin: String,
        /// Leaves.
        size: u64,
        /// The root in the database (or, after a crash, in an already signed checkpoint), in hex.
        database: String,
        /// The root of the published entries with the database's entries appended, in hex.
        ours: String,
    },
    /// The database has fewer entries than were published.
    #[error(
        "{origin}: the log has shrunk: size {published} is published with root {root}, the database ends at {database}; nothing was signed"
    )]
    Shrunk {
        /// The log.
        origin: String,
        /// The newest published size.
        published: u64,
        /// The root published at that size, in hex.
        root: String,
        /// The newest size in the database.
        database: i64,
    },
    /// A published log is not in the database any more.
    #[error("{origin}: the log is published at size {published} but gone from the database")]
    Vanished {
        /// The log.
        origin: String,
        /// The newest published size.
        published: u64,
    },
    /// The database holds a log that this key does not speak for.
    #[error("{origin}: the key is for {key} and its tenants; is this the right database or the right key?")]
    ForeignOrigin {
        /// The log.
        origin: String,
        /// The key's name.
        key: String,
    },
    /// What the store holds is not what was published.
    #[error("{origin}: the store does not hold what was published: {reason}; nothing was signed")]
    Store {
        /// The log.
        origin: String,
        /// What is wrong, with the file's name.
        reason: String,
    },
    /// A later incarnation does not continue what the store holds of the one before.
    #[error("{origin}: does not continue what is published: {reason}; nothing was signed")]
    Succession {
        /// The platform log of the later incarnation.
        origin: String,
        /// What its first entry says, and what the store holds.
        reason: String,
    },
    /// The database's answer cannot be part of a log.
    #[error("{origin}: {reason}; nothing was signed")]
    Malformed {
        /// The log.
        origin: String,
        /// What is wrong.
        reason: String,
    },
}

impl Refusal {
    /// Whether the database's log is not what was published: it is told so.
    fn is_divergence(&self) -> bool {
        matches!(self, Self::NotAContinuation { .. } | Self::Shrunk { .. })
    }

    /// The log that was refused.
    pub fn origin(&self) -> &str {
        match self {
            Self::NotAContinuation { origin, .. }
            | Self::Shrunk { origin, .. }
            | Self::Vanished { origin, .. }
            | Self::ForeignOrigin { origin, .. }
            | Self::Store { origin, .. }
            | Self::Succession { origin, .. }
            | Self::Malformed { origin, .. } => origin,
        }
    }
}

/// What could not be done, without anything being false.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The database could not be read or told.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// The store could not be read or written.
    #[error("the store: {0}")]
    Store(StoreError),
    /// The key could not sign.
    #[error("the key: {0}")]
    Key(String),
    /// A timestamp that is required and due could not be had.
    #[error("the timestamp: {0}")]
    Timestamp(String),
}

/// One log that got new checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The log.
    pub origin: String,
    /// Its tenant, none for the platform log.
    pub tenant: Option<String>,
    /// The published size before.
    pub from: u64,
    /// The published size after.
    pub to: u64,
    /// Checkpoints signed.
    pub anchors: u64,
    /// The root at `to`.
    pub root: Hash,
}

/// What one round did.
#[derive(Debug, Default)]
pub struct Round {
    /// Logs that got new checkpoints.
    pub published: Vec<Published>,
    /// Logs that were refused.
    pub refusals: Vec<Refusal>,
    /// What could not be done, with the log where it concerns one.
    pub failures: Vec<(Option<String>, Failure)>,
    /// Timestamps that are in the store now.
    pub stamped: Vec<Stamped>,
    /// What could not be done and need not be, with the log.
    pub warnings: Vec<(String, String)>,
    /// Logs the database has.
    pub logs: usize,
}

impl Round {
    /// 1 when a log was refused, else 2 when something could not be done, else 0.
    pub fn exit_code(&self) -> u8 {
        if !self.refusals.is_empty() {
            EXIT_FALSE
        } else if !self.failures.is_empty() {
            EXIT_UNCHECKED
        } else {
            EXIT_OK
        }
    }
}

/// How far a log has come, told while it is being published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The log.
    pub origin: &'a str,
    /// Leaves published.
    pub size: u64,
    /// Leaves to publish in this round.
    pub target: u64,
}

enum LogError {
    Refused(Refusal),
    Failed(Failure),
}

impl From<Refusal> for LogError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<SourceError> for LogError {
    fn from(error: SourceError) -> Self {
        Self::Failed(Failure::Source(error))
    }
}

/// An object that cannot be read as what it should be is false; a disk or a server that does not answer is not.
fn store_error(origin: &str, error: TileError) -> LogError {
    match error {
        TileError::Store(error) if error.is_unavailable() => LogError::Failed(Failure::Store(error)),
        other => refused_store(origin, other.to_string()),
    }
}

fn refused_store(origin: &str, reason: String) -> LogError {
    LogError::Refused(Refusal::Store { origin: origin.to_owned(), reason })
}

fn malformed(origin: &str, reason: String) -> LogError {
    LogError::Refused(Refusal::Malformed { origin: origin.to_owned(), reason })
}

/// A published checkpoint, as it lies in the store.
#[derive(Clone)]
struct Stored {
    checkpoint: Checkpoint,
    note: String,
    /// When the witness cosigned it, in seconds; 0: not.
    cosigned_at: u64,
}

/// The published state of a log.
struct State {
    /// Whether the log has a newest checkpoint at all.
    published: bool,
    tree: TiledTree,
    /// The entries of the last, unfinished bundle.
    open_entries: Vec<Vec<u8>>,
    /// Checkpoints that were signed just before a crash: they bind us although `checkpoint` does not show them yet.
    signed_ahead: BTreeMap<u64, Stored>,
    /// The time of the witness's last cosignature for this log, in seconds.
    cosigned_at: u64,
}

impl State {
    /// The largest size we have ever signed, and its root.
    fn bound(&self) -> (u64, Hash) {
        match self.signed_ahead.last_key_value() {
            Some((size, stored)) => (*size, stored.checkpoint.root),
            None => (self.tree.size(), self.tree.root()),
        }
    }
}

/// Publishes the logs of one database into one store.
#[derive(Debug)]
pub struct Publisher {
    store: Writer,
    key: LogKey,
    published_to: String,
    /// Logs whose state in the store was checked by this process, with the size it left them at.
    known: HashMap<String, u64>,
    witness: Option<Witness>,
    stamper: Option<Stamper>,
    /// The platform log that was published last.
    platform: Option<String>,
    /// Receipts of the platform log that wait for a timestamp, by size.
    withheld: BTreeMap<i64, Receipt>,
}

/// The most receipts that are kept waiting; beyond, the anchors are compared with the store again when it is time.
const MAX_WITHHELD: usize = 10_000;

impl Publisher {
    /// A publisher for an opened store. `published_to` is what the database is told about where the logs went.
    pub fn new(store: Writer, key: LogKey, published_to: String) -> Self {
        Self {
            store,
            key,
            published_to,
            known: HashMap::new(),
            witness: None,
            stamper: None,
            platform: None,
            withheld: BTreeMap::new(),
        }
    }

    /// Has every checkpoint cosigned by this witness.
    #[must_use]
    pub fn with_witness(mut self, witness: Witness) -> Self {
        self.witness = Some(witness);
        self
    }

    /// Has the platform log's checkpoints timestamped.
    #[must_use]
    pub fn with_stamper(mut self, stamper: Stamper) -> Self {
        self.stamper = Some(stamper);
        self
    }

    /// Gets the timestamps that are due for the newest platform checkpoint; with `last`, whenever the last ones were got. It
    /// is called after a round, so that no log waits for a TSA. What was withheld until a timestamp was there is told then.
    pub fn stamp(&mut self, source: &mut dyn Source, last: bool, round: &mut Round) {
        let Some(stamper) = &mut self.stamper else { return };
        let Some(origin) = self.platform.clone() else { return };
        let Some(size) = self.known.get(&origin).copied() else { return };
        stamper.run(&mut self.store, source, &origin, size, last, round);
        let covered = stamper.covered(&origin).and_then(|size| i64::try_from(size).ok());
        let Some(covered) = covered.filter(|_| !self.withheld.is_empty()) else { return };
        let overflown = self.withheld.len() >= MAX_WITHHELD;
        let later = self.withheld.split_off(&covered.saturating_add(1));
        let ready: Vec<Receipt> = std::mem::replace(&mut self.withheld, later).into_values().collect();
        if let Err(LogError::Failed(failure)) = self.record(source, &origin, ready) {
            round.failures.push((Some(origin.clone()), failure));
            self.known.remove(&origin);
        } else if overflown {
            // Some were not kept: the next round looks at every anchor again.
            self.known.remove(&origin);
        }
    }

    /// Does one round over every log. Errors of one log are reported in the round and do not hold up the others; but
    /// when the database or the store fails for a tenant, the platform log waits for the next round.
    pub fn round(&mut self, source: &mut dyn Source, progress: &mut dyn FnMut(Progress<'_>)) -> Round {
        let mut round = Round::default();
        let mut heads = match source.logs() {
            Ok(heads) => heads,
            Err(error) => {
                round.failures.push((None, error.into()));
                return round;
            }
        };
        round.logs = heads.len();
        heads.sort_by(|a, b| {
            let platform_last = a.tenant.is_none().cmp(&b.tenant.is_none());
            platform_last.then_with(|| a.origin.cmp(&b.origin))
        });
        let mut unreported = Vec::new();
        for head in heads.iter().filter(|head| !head.closed) {
            if head.tenant.is_none() && !round.failures.is_empty() {
                break;
            }
            match self.publish_log(source, head, progress) {
                Ok(published) => {
                    round.published.extend(published);
                    if head.tenant.is_none() {
                        self.platform_is(&head.origin);
                    }
                }
                Err(error) => {
                    self.known.remove(&head.origin);
                    // What this log had under way is no other log's matter.
                    let _ = self.store.sync();
                    match error {
                        LogError::Refused(refusal) => {
                            if refusal.is_divergence()
                                && let Err(failure) = self.report(source, &head.origin)
                            {
                                unreported.push((Some(head.origin.clone()), failure));
                            }
                            round.refusals.push(refusal);
                        }
                        LogError::Failed(failure) => {
                            let lost = matches!(failure, Failure::Source(_)) && source.is_closed();
                            round.failures.push((Some(head.origin.clone()), failure));
                            if lost {
                                break;
                            }
                        }
                    }
                }
            }
        }
        match self.vanished(&heads) {
            Ok(vanished) => {
                for refusal in vanished {
                    if let Err(failure) = self.report(source, refusal.origin()) {
                        unreported.push((Some(refusal.origin().to_owned()), failure));
                    }
                    round.refusals.push(refusal);
                }
            }
            Err(error) => round.failures.push((None, Failure::Store(error))),
        }
        round.failures.append(&mut unreported);
        round
    }

    /// The platform log of the newest incarnation: what waits for a timestamp of another one waits no more.
    fn platform_is(&mut self, origin: &str) {
        if self.platform.as_deref() != Some(origin) {
            self.platform = Some(origin.to_owned());
            self.withheld.clear();
        }
    }

    /// Tells the database what the newest checkpoint of a log is, however far its publication came.
    fn report(&self, source: &mut dyn Source, origin: &str) -> Result<(), Failure> {
        let signer = self.key.signer(origin).map_err(|error| Failure::Key(error.to_string()))?;
        match self.newest_stored(origin, &signer) {
            Ok(Some(Stored { checkpoint, note, .. })) => {
                let tree_size = i64::try_from(checkpoint.size).unwrap_or(i64::MAX);
                Ok(source.report_divergence(origin, &Receipt { tree_size, root: checkpoint.root, note })?)
            }
            Err(LogError::Failed(failure)) => Err(failure),
            // What cannot be read as a checkpoint is no evidence of anything, and another refusal.
            Ok(None) | Err(LogError::Refused(_)) => Ok(()),
        }
    }

    /// Published logs of this key that the database does not have; where it has begun a new incarnation, those of the ones
    /// before do not matter any more.
    fn vanished(&self, heads: &[LogHead]) -> Result<Vec<Refusal>, StoreError> {
        let present: HashSet<&str> = heads.iter().map(|head| head.origin.as_str()).collect();
        let closed = heads.iter().filter(|head| head.closed && head.tenant.is_none());
        let closed = closed.map(|head| name::split_incarnation(&head.origin).1).max().unwrap_or_default();
        let (log_name, own) = name::split_incarnation(self.key.name());
        let reader = self.store.reader();
        let later = reader.list(log_name)?.unwrap_or_default();
        let later = later.iter().map(|listed| format!("{log_name}/{}", listed.name));
        let mut vanished = Vec::new();
        for platform in std::iter::once(log_name.to_owned()).chain(later) {
            let (name_of_log, incarnation) = name::split_incarnation(&platform);
            if name_of_log != log_name || incarnation <= closed || incarnation < own {
                continue;
            }
            let tenants = reader.list(&format!("{platform}/t"))?.unwrap_or_default();
            let tenants = tenants.iter().map(|listed| name::tenant_origin(&platform, &listed.name));
            for origin in std::iter::once(platform.clone()).chain(tenants) {
                if present.contains(origin.as_str()) || !speaks_for(self.key.name(), &origin) {
                    continue;
                }
                let names = reader.list(&format!("{origin}/{}", store::CHECKPOINTS))?;
                let sizes = names.iter().flatten();
                let newest = sizes.filter_map(|listed| store::parse_checkpoint_name(&listed.name)).max();
                if let Some(published) = newest {
                    vanished.push(Refusal::Vanished { origin, published });
                }
            }
        }
        Ok(vanished)
    }

    fn publish_log(
        &mut self,
        source: &mut dyn Source,
        head: &LogHead,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<Published>, LogError> {
        let origin = head.origin.as_str();
        self.check_identity(head)?;
        let newest = u64::try_from(head.tree_size)
            .map_err(|_| malformed(origin, format!("the database says size {}", head.tree_size)))?;
        let known = self.known.get(origin).copied();
        if known == Some(newest) {
            return Ok(None);
        }
        let signer = self.key.signer(origin).map_err(|error| LogError::Failed(Failure::Key(error.to_string())))?;
        let mut state = self.load_state(origin, &signer)?;
        let (bound, bound_root) = state.bound();
        if newest < bound {
            return Err(Refusal::Shrunk {
                origin: origin.to_owned(),
                published: bound,
                root: hex(&bound_root),
                database: head.tree_size,
            }
            .into());
        }
        if head.tenant.is_none() && !state.published && newest > 0 {
            self.check_beginning(source, origin)?;
        }
        // Every anchor at or below the published size once per process, then only the one at that size.
        let from = state.tree.size();
        let first = if known.is_none() { 0 } else { from };
        let mut anchors = self.check_published(source, origin, &signer, &state, first)?;
        loop {
            let batch = next_batch(source, origin, &state, newest)?;
            let Some(end) = batch.last().map(|anchor| anchor.tree_size) else {
                break;
            };
            if end < state.bound().0 {
                // Nothing may be signed before it was compared with everything that was signed already.
                break;
            }
            let objects = append(source, origin, &mut state, &batch, end)?;
            let receipts = self.write(origin, &signer, &objects, &batch, &mut state)?;
            state.published = true;
            state.signed_ahead.clear();
            anchors += batch.len() as u64;
            self.record(source, origin, receipts)?;
            progress(Progress { origin, size: end, target: newest });
        }
        let to = state.tree.size();
        self.known.insert(origin.to_owned(), to);
        if to < newest {
            return Err(malformed(origin, format!("the database lists size {newest} but has no anchor there")));
        }
        Ok((anchors > 0).then(|| Published {
            origin: origin.to_owned(),
            tenant: head.tenant.clone(),
            from,
            to,
            anchors,
            root: state.tree.root(),
        }))
    }

    /// The first entry of a later incarnation's platform log must continue what the store holds of the one before, as far as
    /// the store has it.
    fn check_beginning(&self, source: &mut dyn Source, origin: &str) -> Result<(), LogError> {
        if name::split_incarnation(origin).1 < 2 {
            return Ok(());
        }
        let wrong = |reason: String| LogError::from(Refusal::Succession { origin: origin.to_owned(), reason });
        let first = source.entries(origin, 0, 1)?;
        let first = first.first().ok_or_else(|| malformed(origin, "the database gives no first entry".to_owned()))?;
        let entry = entry::parse(&first.1).map_err(|error| wrong(format!("entry 0: {error}")))?;
        if entry.action != entry::INCARNATION {
            return Err(wrong(format!("entry 0 is {}, and not what says which log this one continues", entry.action)));
        }
        let beginning = Incarnation::parse(entry.body.as_deref().unwrap_or_default())
            .map_err(|error| wrong(format!("entry 0 does not say what the log continues: {error}")))?;
        let newest = |log: &str| -> Result<Option<(u64, Hash)>, LogError> {
            let signer = self.key.signer(log).map_err(|error| LogError::Failed(Failure::Key(error.to_string())))?;
            let stored = self.newest_stored(log, &signer)?;
            Ok(stored.map(|Stored { checkpoint, .. }| (checkpoint.size, checkpoint.root)))
        };
        match succession::judge(origin, &beginning, newest)? {
            Succession::Broken(reason) => Err(wrong(reason)),
            Succession::Holds | Succession::Unknown(_) => Ok(()),
        }
    }

    /// The newest checkpoint of a log that was ever written, however far its publication came.
    fn newest_stored(&self, origin: &str, signer: &SigningKey) -> Result<Option<Stored>, LogError> {
        let names = self.store.reader().list(&format!("{origin}/{}", store::CHECKPOINTS));
        let names = names.map_err(|error| LogError::Failed(Failure::Store(error)))?;
        let newest = names.iter().flatten().filter_map(|listed| store::parse_checkpoint_name(&listed.name)).max();
        newest.map_or(Ok(None), |size| self.stored_at(origin, size, signer))
    }

    /// The origin must be one this key speaks for, and the tenant the one the origin names.
    fn check_identity(&self, head: &LogHead) -> Result<(), LogError> {
        if !speaks_for(self.key.name(), &head.origin) {
            return Err(Refusal::ForeignOrigin { origin: head.origin.clone(), key: self.key.name().to_owned() }.into());
        }
        let named = Kind::of(&head.origin).and_then(Kind::tenant);
        if named != head.tenant.as_deref() {
            let tenant = head.tenant.as_deref().unwrap_or("no tenant");
            return Err(malformed(&head.origin, format!("the database gives this log to {tenant}")));
        }
        Ok(())
    }

    /// Takes up the published state from the store: never from the database.
    fn load_state(&self, origin: &str, signer: &SigningKey) -> Result<State, LogError> {
        let reader = self.store.reader();
        let stored = self.read_checkpoint(origin, &store::newest_path(origin), signer)?;
        let tree = match &stored {
            None => TiledTree::new(),
            Some(Stored { checkpoint, note, .. }) => {
                let path = store::checkpoint_path(origin, checkpoint.size);
                let limit = MAX_NOTE_LEN as u64;
                let immutable = reader.read(&path, limit);
                match immutable.map_err(|error| store_error(origin, error.into()))? {
                    Some(immutable) if immutable == note.as_bytes() => {}
                    Some(_) => {
                        let reason = format!("{path} differs from the newest checkpoint");
                        return Err(refused_store(origin, reason));
                    }
                    None => return Err(refused_store(origin, format!("{path} is missing"))),
                }
                let tree =
                    tiles::load_tree(reader, origin, checkpoint.size).map_err(|error| store_error(origin, error))?;
                if tree.root() != checkpoint.root {
                    let reason = format!(
                        "its tiles give root {} at size {}, its checkpoint says {}",
                        hex(&tree.root()),
                        checkpoint.size,
                        hex(&checkpoint.root)
                    );
                    return Err(refused_store(origin, reason));
                }
                tree
            }
        };
        let open_entries =
            tiles::load_open_entries(reader, origin, tree.size()).map_err(|error| store_error(origin, error))?;
        let leaves = tree.open_tiles().first().map_or(&[][..], Vec::as_slice);
        if !open_entries.iter().map(|e| leaf_hash(e)).eq(leaves.iter().copied()) {
            let reason = "the last entry bundle does not give the leaf hashes of its tile";
            return Err(refused_store(origin, reason.to_owned()));
        }
        let after = stored.as_ref().map(|stored| store::checkpoint_name(stored.checkpoint.size)).unwrap_or_default();
        let names = reader
            .list_after(&format!("{origin}/{}", store::CHECKPOINTS), &after)
            .map_err(|error| LogError::Failed(Failure::Store(error)))?;
        let mut signed_ahead = BTreeMap::new();
        for listed in names {
            if let Some(size) = store::parse_checkpoint_name(&listed.name) {
                let stored = self.stored_at(origin, size, signer)?;
                signed_ahead.extend(stored.map(|stored| (size, stored)));
            }
        }
        let cosigned = stored.iter().chain(signed_ahead.values()).map(|stored| stored.cosigned_at);
        let cosigned_at = cosigned.max().unwrap_or_default();
        Ok(State { published: stored.is_some(), tree, open_entries, signed_ahead, cosigned_at })
    }

    /// What was published at a size: its immutable checkpoint.
    fn stored_at(&self, origin: &str, size: u64, signer: &SigningKey) -> Result<Option<Stored>, LogError> {
        let path = store::checkpoint_path(origin, size);
        let stored = self.read_checkpoint(origin, &path, signer)?;
        match stored {
            Some(stored) if stored.checkpoint.size != size => {
                let reason = format!("{path} is for size {}", stored.checkpoint.size);
                Err(refused_store(origin, reason))
            }
            stored => Ok(stored),
        }
    }

    /// Compares the database's anchors from `first` up to the published size with what was published.
    ///
    /// Signs an anchor that the store does not have yet when it has the published tree's root, and tells the database
    /// of those it does not know to be published. Returns how many were signed.
    fn check_published(
        &mut self,
        source: &mut dyn Source,
        origin: &str,
        signer: &SigningKey,
        state: &State,
        first: u64,
    ) -> Result<u64, LogError> {
        let size = state.tree.size();
        let mut from = first;
        // Anchors to be signed, to be told of, or both, each with the note that is in the store.
        let mut behind: Vec<(ValidAnchor, Option<String>, bool)> = Vec::new();
        let mut more = state.published;
        while more {
            let page = fetch_anchors(source, origin, from)?;
            more = page.len() as i64 == ANCHOR_PAGE;
            for anchor in page {
                if anchor.tree_size > size {
                    more = false;
                    break;
                }
                let (ours, note) = match self.stored_at(origin, anchor.tree_size, signer)? {
                    Some(stored) => (stored.checkpoint.root, Some(stored.note)),
                    None => {
                        let tree = tiles::load_tree(self.store.reader(), origin, anchor.tree_size)
                            .map_err(|error| store_error(origin, error))?;
                        (tree.root(), None)
                    }
                };
                compare(origin, anchor.tree_size, &anchor.root, &ours)?;
                // A place whose name has the separator in it is told again each time: that does no harm.
                let places = anchor.published_to.as_deref().unwrap_or_default();
                let unrecorded = !places.split(", ").any(|place| place == self.published_to);
                from = anchor.tree_size.saturating_add(1);
                if unrecorded || note.is_none() {
                    behind.push((anchor, note, unrecorded));
                }
            }
        }
        let (mut signed, mut receipts) = (0, Vec::new());
        for (anchor, note, unrecorded) in behind {
            let note = match note {
                Some(note) => note,
                None => {
                    signed += 1;
                    // A larger one is cosigned already: the witness could not say that this is the largest.
                    self.put_checkpoint(origin, signer, &anchor, None)?
                }
            };
            if unrecorded {
                receipts.push(anchor.receipt(note));
            }
        }
        self.sync(origin)?;
        self.record(source, origin, receipts)?;
        Ok(signed)
    }

    /// Writes what a batch needs, in the order that leaves a readable store wherever it stops. Returns the receipts.
    fn write(
        &mut self,
        origin: &str,
        signer: &SigningKey,
        objects: &[(String, Vec<u8>)],
        batch: &[ValidAnchor],
        state: &mut State,
    ) -> Result<Vec<Receipt>, LogError> {
        for (path, bytes) in objects {
            self.store.put(path, bytes).map_err(|error| store_error(origin, error.into()))?;
        }
        self.sync(origin)?;
        let mut receipts = Vec::with_capacity(batch.len());
        for anchor in batch {
            let note = match state.signed_ahead.get(&anchor.tree_size) {
                // Signed before a crash, and compared by now: a cosignature made anew would have another time.
                Some(stored) => self.put_again(origin, anchor.tree_size, &stored.note)?,
                None => {
                    let largest = state.signed_ahead.last_key_value().is_none_or(|(size, _)| *size < anchor.tree_size);
                    let cosigned_at = largest.then_some(&mut state.cosigned_at);
                    self.put_checkpoint(origin, signer, anchor, cosigned_at)?
                }
            };
            receipts.push(anchor.receipt(note));
        }
        self.sync(origin)?;
        let newest = receipts.last().map(|receipt| receipt.note.as_bytes()).unwrap_or_default();
        let replaced = self.store.replace(&store::newest_path(origin), newest);
        replaced.map_err(|error| store_error(origin, error.into()))?;
        Ok(receipts)
    }

    /// Signs an anchor and writes its immutable checkpoint, cosigned unless `cosigned_at`, the time of the witness's last
    /// cosignature, is missing.
    fn put_checkpoint(
        &mut self,
        origin: &str,
        signer: &SigningKey,
        anchor: &ValidAnchor,
        cosigned_at: Option<&mut u64>,
    ) -> Result<String, LogError> {
        let failed = |error: NoteError| LogError::Failed(Failure::Key(error.to_string()));
        let mut lines = vec![signer.sign(&anchor.text).map_err(failed)?];
        if let (Some(witness), Some(last)) = (&self.witness, cosigned_at) {
            let line = witness.cosign(&anchor.text, *last).map_err(failed)?;
            *last = line.cosignature_time().unwrap_or(*last);
            lines.push(line);
        }
        let note = SignedNote::new(&anchor.text, lines).map_err(failed)?.to_string();
        self.put_again(origin, anchor.tree_size, &note)
    }

    fn put_again(&mut self, origin: &str, size: u64, note: &str) -> Result<String, LogError> {
        let path = store::checkpoint_path(origin, size);
        self.store.put(&path, note.as_bytes()).map_err(|error| store_error(origin, error.into()))?;
        Ok(note.to_owned())
    }

    /// Everything that was put is durable after this, or this log is not gone on with.
    fn sync(&mut self, origin: &str) -> Result<(), LogError> {
        self.store.sync().map_err(|error| store_error(origin, error.into()))
    }

    /// Tells the database what is in the store. Where timestamps are required, what none covers yet is told later.
    fn record(&mut self, source: &mut dyn Source, origin: &str, receipts: Vec<Receipt>) -> Result<(), LogError> {
        let mut receipts = receipts;
        let required = self.stamper.as_ref().filter(|stamper| stamper.is_required());
        if let Some(stamper) = required
            && Kind::of(origin) == Some(Kind::Platform)
        {
            let covered = stamper.covered(origin).and_then(|size| i64::try_from(size).ok()).unwrap_or(-1);
            let (now, later): (Vec<_>, Vec<_>) = receipts.into_iter().partition(|receipt| receipt.tree_size <= covered);
            receipts = now;
            self.platform_is(origin);
            let room = MAX_WITHHELD.saturating_sub(self.withheld.len());
            self.withheld.extend(later.into_iter().take(room).map(|receipt| (receipt.tree_size, receipt)));
        }
        for receipts in receipts.chunks(ANCHOR_PAGE as usize) {
            source.record_publication(origin, receipts, &self.published_to)?;
        }
        Ok(())
    }

    /// Reads a checkpoint that this key must have signed; a line of the witness must hold too.
    fn read_checkpoint(&self, origin: &str, path: &str, signer: &SigningKey) -> Result<Option<Stored>, LogError> {
        let bytes = self.store.reader().read(path, MAX_NOTE_LEN as u64);
        let Some(bytes) = bytes.map_err(|error| store_error(origin, error.into()))? else {
            return Ok(None);
        };
        let wrong = |reason: String| refused_store(origin, format!("{path}: {reason}"));
        let unsigned = |error: NoteError| wrong(format!("{error}, with the key that was given"));
        let note = SignedNote::parse(&bytes).map_err(|error| wrong(error.to_string()))?;
        note.verify(std::slice::from_ref(signer.verifier_key())).map_err(unsigned)?;
        let mut cosigned_at = 0;
        if let Some(witness) = &self.witness {
            note.verify(&[signer.verifier_key().clone(), witness.verifier().clone()]).map_err(unsigned)?;
            cosigned_at = witness.time_of(&note);
        }
        let checkpoint = Checkpoint::parse(note.text()).map_err(|error| wrong(error.to_string()))?;
        if checkpoint.origin != origin {
            return Err(wrong(format!("it is of {}", checkpoint.origin)));
        }
        Ok(Some(Stored { checkpoint, note: note.to_string(), cosigned_at }))
    }
}

/// An anchor whose shape was checked, with the checkpoint text that will be signed.
#[derive(Debug, Clone)]
struct ValidAnchor {
    tree_size: u64,
    root: Hash,
    text: String,
    published_to: Option<String>,
}

impl ValidAnchor {
    fn receipt(&self, note: String) -> Receipt {
        // The size came from the database as bigint, so that it is not cut here.
        let tree_size = i64::try_from(self.tree_size).unwrap_or(i64::MAX);
        Receipt { tree_size, root: self.root, note }
    }
}

fn fetch_anchors(source: &mut dyn Source, origin: &str, from: u64) -> Result<Vec<ValidAnchor>, LogError> {
    let from = i64::try_from(from).unwrap_or(i64::MAX);
    let page = source.anchors(origin, from, ANCHOR_PAGE)?;
    let mut last = None;
    let mut anchors = Vec::with_capacity(page.len());
    for anchor in page {
        let anchor = validate(origin, anchor)?;
        if last >= Some(anchor.tree_size) || (anchor.tree_size as i64) < from {
            let reason = format!("the database lists size {} out of order", anchor.tree_size);
            return Err(malformed(origin, reason));
        }
        last = Some(anchor.tree_size);
        anchors.push(anchor);
    }
    Ok(anchors)
}

fn validate(origin: &str, anchor: Anchor) -> Result<ValidAnchor, LogError> {
    let size = anchor.tree_size;
    let wrong = |reason: &str| malformed(origin, format!("the anchor at size {size} {reason}"));
    let tree_size = u64::try_from(size).map_err(|_| wrong("has a negative size"))?;
    let root =
        Hash::try_from(anchor.root_hash.as_slice()).map_err(|_| wrong("has a root hash that is not of 32 bytes"))?;
    let checkpoint = Checkpoint { origin: origin.to_owned(), size: tree_size, root };
    let text = checkpoint.to_string();
    if text != anchor.checkpoint {
        return Err(wrong("has a checkpoint text that is not its own"));
    }
    Ok(ValidAnchor { tree_size, root, text, published_to: anchor.published_to })
}

/// The next anchors to publish, at most [`CHUNK`] entries away: but at least one, and as far as we have signed already.
fn next_batch(source: &mut dyn Source, origin: &str, state: &State, newest: u64) -> Result<Vec<ValidAnchor>, LogError> {
    let start = state.tree.size();
    let (bound, _) = state.bound();
    // An empty log's anchor at size 0 is published once.
    let unpublished_zero = !state.published && newest == 0;
    let mut from = if unpublished_zero { 0 } else { start + 1 };
    let mut batch: Vec<ValidAnchor> = Vec::new();
    loop {
        let page = fetch_anchors(source, origin, from)?;
        let full = page.len() as i64 == ANCHOR_PAGE;
        for anchor in page {
            let reached = batch.last().is_some_and(|last| last.tree_size >= bound);
            let far = anchor.tree_size > start.saturating_add(CHUNK);
            if anchor.tree_size > newest || (reached && far) {
                return Ok(batch);
            }
            from = anchor.tree_size.saturating_add(1);
            batch.push(anchor);
        }
        let reached = batch.last().is_some_and(|last| last.tree_size >= bound);
        if reached || !full {
            return Ok(batch);
        }
    }
}

/// Appends the database's entries up to `end` to the tree and compares the root at every anchor and at every size that
/// was signed before. Returns the objects to write.
fn append(
    source: &mut dyn Source,
    origin: &str,
    state: &mut State,
    batch: &[ValidAnchor],
    end: u64,
) -> Result<Vec<(String, Vec<u8>)>, LogError> {
    let start = state.tree.size();
    let mut expected: BTreeMap<u64, Vec<Hash>> = BTreeMap::new();
    let anchors = batch.iter().map(|anchor| (anchor.tree_size, anchor.root));
    let ahead = state.signed_ahead.iter().map(|(size, stored)| (*size, stored.checkpoint.root));
    for (size, root) in anchors.chain(ahead) {
        expected.entry(size).or_default().push(root);
    }
    let check = |tree: &TiledTree| {
        let Some(roots) = expected.get(&tree.size()) else {
            return Ok(());
        };
        let ours = tree.root();
        roots.iter().try_for_each(|root| compare(origin, tree.size(), root, &ours))
    };
    check(&state.tree)?;
    let mut objects = Vec::new();
    let mut first = start;
    while first < end {
        let last = end.min(first.saturating_add(CHUNK));
        let rows = source.entries(origin, first as i64, last as i64)?;
        if rows.len() as u64 != last - first {
            let reason = format!("the database gives {} of the {} entries from {first} on", rows.len(), last - first);
            return Err(malformed(origin, reason));
        }
        for ((index, entry), expected_index) in rows.into_iter().zip(first..) {
            if index as u64 != expected_index || entry.len() > MAX_ENTRY_LEN {
                let reason = format!("entry {expected_index} is given as number {index} with {} bytes", entry.len());
                return Err(malformed(origin, reason));
            }
            let leaf = leaf_hash(&entry);
            state.open_entries.push(entry);
            let Ok(()) = state.tree.push(leaf, &mut |tile: FullTile<'_>| {
                let path = Piece::Hashes(tile.level).path(origin, tile.index, TILE_WIDTH as u16);
                objects.push((path, tile.hashes.concat()));
                Ok::<(), Infallible>(())
            });
            if state.open_entries.len() as u64 == TILE_WIDTH {
                objects.push(bundle_object(origin, index as u64, &state.open_entries)?);
                state.open_entries.clear();
            }
            check(&state.tree)?;
        }
        first = last;
    }
    for (hashes, level) in state.tree.open_tiles().iter().zip(0_u8..) {
        if !hashes.is_empty() {
            let index = end >> (8 * (u32::from(level) + 1));
            let path = Piece::Hashes(level).path(origin, index, hashes.len() as u16);
            objects.push((path, hashes.concat()));
        }
    }
    if !state.open_entries.is_empty() {
        objects.push(bundle_object(origin, end, &state.open_entries)?);
    }
    Ok(objects)
}

/// The bundle that holds the entry at `index`.
fn bundle_object(origin: &str, index: u64, entries: &[Vec<u8>]) -> Result<(String, Vec<u8>), LogError> {
    let bytes = bundle::encode(entries).map_err(|error| malformed(origin, error.to_string()))?;
    let path = Piece::Entries.path(origin, index / TILE_WIDTH, entries.len() as u16);
    Ok((path, bytes))
}

fn compare(origin: &str, size: u64, database: &Hash, ours: &Hash) -> Result<(), LogError> {
    if database == ours {
        return Ok(());
    }
    Err(Refusal::NotAContinuation { origin: origin.to_owned(), size, database: hex(database), ours: hex(ours) }.into())
}

/// A hash in lower-case hex, as psql prints it after `\x`.
pub(crate) fn hex(hash: &Hash) -> String {
    use std::fmt::Write as _;
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
