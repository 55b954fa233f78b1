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

mod anchors;
mod append;
mod outcome;
mod state;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};

use agd_core::{Hash, Incarnation, TILE_WIDTH, entry, name};

pub(crate) use outcome::hex;
pub use outcome::{Failure, Progress, Published, Refusal, Round};

use crate::key::LogKey;
use crate::origin::{Kind, speaks_for};
use crate::source::{LogHead, Receipt, Source};
use crate::stamp::Stamper;
use crate::store::{self, StoreError, Writer};
use crate::succession::{self, Succession};
use crate::witness::Witness;
use anchors::next_batch;
use append::append;
use outcome::{LogError, malformed};
use state::Stored;

/// Entries asked for in one statement, and the most that are held in memory: 64 full tiles.
pub const CHUNK: u64 = 64 * TILE_WIDTH;

/// Anchors asked for in one statement.
const ANCHOR_PAGE: i64 = 1024;

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
}
