//! `agd publish`: carries a database's logs into a store, and signs only what continues what was signed before.
//!
//! Owns the order of work. Before anything is signed: is this the database that the key signs for, and not a copy; has the
//! store what the key has signed there and what the database has receipts for; does every log of the database continue what
//! the store has of it, and has the database every log that the store has (`admission`). Then, for each log: take up the
//! last published state from the store, check the database's anchors against it, fetch the entries beyond, hash them here, compare the root at every anchor, and only then write tiles,
//! bundles, immutable checkpoints and, last, the newest one. Promises that no two checkpoints of a log that it signed
//! contradict each other, whatever the database says and wherever the process dies; that a refused log gets nothing
//! written in that piece of work; and that a run after a crash ends with the same files as a run without one. It never takes
//! the published state from the database; but it tells the database where its log is not what was published, so that
//! nothing more is written there until somebody has decided how to go on.
//!
//! Tenants go first and the platform log last, at the size it had when the logs were listed: so every tenant checkpoint
//! that the published platform log holds is backed by published tiles.

mod admission;
mod anchors;
mod append;
pub mod memory;
mod outcome;
mod state;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};

use agd_core::{Hash, Incarnation, TILE_WIDTH, entry, name};

pub(crate) use outcome::hex;
pub use outcome::{Failure, Progress, Published, Refusal, Round};

use crate::key::LogKey;
use crate::origin::{Kind, speaks_for};
use crate::source::{AtHome, LogHead, Receipt, Source};
use crate::stamp::Stamper;
use crate::store::{self, StoreError, Writer};
use crate::succession::{self, Succession};
use crate::witness::Witness;
use admission::Inspected;
use anchors::{Behind, next_batch};
use append::append;
use memory::Memory;
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
    /// What the key has signed, here and elsewhere.
    memory: Memory,
    /// A new store is begun, as somebody said.
    new_store: bool,
    /// The key signs for this database from now on, as somebody said.
    moved_here: bool,
    /// The store and the database's receipts were held against what the key has signed.
    admitted: bool,
    /// What the database could not be told in this round: no reason to hold a log up.
    unreported: Vec<(Option<String>, Failure)>,
}

/// The most receipts that are kept waiting; beyond, the anchors are compared with the store again when it is time.
const MAX_WITHHELD: usize = 10_000;

impl Publisher {
    /// A publisher for an opened store. `published_to` is what the database is told about where the logs went; `memory`,
    /// what the key has signed.
    pub fn new(store: Writer, key: LogKey, published_to: String, memory: Memory) -> Self {
        Self {
            store,
            key,
            published_to,
            known: HashMap::new(),
            witness: None,
            stamper: None,
            platform: None,
            withheld: BTreeMap::new(),
            memory,
            new_store: false,
            moved_here: false,
            admitted: false,
            unreported: Vec::new(),
        }
    }

    /// Begins a new store, which must be empty, although the key has signed in another one, or has lost what it signed here.
    #[must_use]
    pub fn beginning_a_new_store(mut self, new_store: bool) -> Self {
        self.new_store = new_store;
        self
    }

    /// Lets the key sign for this database from now on, although it signed for another one.
    #[must_use]
    pub fn moved_here(mut self, moved_here: bool) -> Self {
        self.moved_here = moved_here;
        self
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
    /// nothing is signed when this is not the database or the store that it must be, or when the platform log is refused; and
    /// when the database or the store fails for a tenant, the platform log waits for the next round.
    pub fn round(&mut self, source: &mut dyn Source, progress: &mut dyn FnMut(Progress<'_>)) -> Round {
        let mut round = Round::default();
        match self.try_round(source, progress, &mut round) {
            Ok(()) => {}
            Err(LogError::Refused(refusal)) => round.refusals.push(refusal),
            Err(LogError::Failed(failure)) => round.failures.push((None, failure)),
        }
        round.failures.append(&mut self.unreported);
        if let Err(error) = self.memory.save(&self.published_to) {
            round.failures.push((None, error.into()));
        }
        round
    }

    fn try_round(
        &mut self,
        source: &mut dyn Source,
        progress: &mut dyn FnMut(Progress<'_>),
        round: &mut Round,
    ) -> Result<(), LogError> {
        let identity = source.identity()?;
        let place = (!self.admitted).then(|| self.published_to.clone());
        let mut heads = source.logs(place.as_deref())?;
        round.logs = heads.len();
        heads.sort_by(|a, b| {
            let platform_last = a.tenant.is_none().cmp(&b.tenant.is_none());
            platform_last.then_with(|| a.origin.cmp(&b.origin))
        });
        self.check_database(&identity, &heads)?;
        let vanished = self.vanished(&heads).map_err(|error| LogError::Failed(Failure::Store(error)))?;
        let mut stop = identity.at_home == AtHome::New;
        for refusal in vanished {
            stop |= Kind::of(refusal.origin()) == Some(Kind::Platform);
            let origin = refusal.origin().to_owned();
            round.refusals.push(refusal);
            // A database without a record has nothing that could be closed.
            if identity.at_home == AtHome::Here {
                self.tell(source, &origin);
            }
        }
        if stop {
            return Ok(());
        }
        self.check_store(&heads)?;
        let open: Vec<&LogHead> = heads.iter().filter(|head| !head.closed).collect();
        let (mut refused, mut looked_at) = (HashSet::new(), HashMap::new());
        for head in &open {
            if self.known.contains_key(&head.origin) {
                continue;
            }
            match self.look_at(source, head, true) {
                Ok(Inspected { behind, .. }) => {
                    looked_at.insert(head.origin.as_str(), behind);
                }
                Err(error) => {
                    refused.insert(head.origin.as_str());
                    if self.note_error(source, head, error, round) || head.tenant.is_none() {
                        return Ok(());
                    }
                }
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        // Which database the key signs for is on disk before it signs the first checkpoint.
        self.memory.bind(identity.home);
        self.memory.save(&self.published_to).map_err(|error| LogError::Failed(error.into()))?;
        for head in open {
            if refused.contains(head.origin.as_str()) {
                continue;
            }
            if head.tenant.is_none() && !round.failures.is_empty() {
                break;
            }
            let behind = looked_at.remove(head.origin.as_str());
            match self.publish_log(source, head, behind, progress) {
                Ok(published) => {
                    round.published.extend(published);
                    if head.tenant.is_none() {
                        self.platform_is(&head.origin);
                    }
                }
                Err(error) => {
                    if self.note_error(source, head, error, round) {
                        break;
                    }
                }
            }
        }
        if round.failures.is_empty() {
            // It was said once, and done.
            (self.admitted, self.new_store, self.moved_here) = (true, false, false);
        }
        Ok(())
    }

    /// Takes up what went wrong with a log. True: the connection is lost, so that there is no use in going on.
    fn note_error(&mut self, source: &mut dyn Source, head: &LogHead, error: LogError, round: &mut Round) -> bool {
        self.known.remove(&head.origin);
        // What this log had under way is no other log's matter.
        let _ = self.store.sync();
        match error {
            LogError::Refused(refusal) => {
                let diverged = refusal.is_divergence();
                round.refusals.push(refusal);
                if diverged {
                    self.tell(source, &head.origin);
                }
                false
            }
            LogError::Failed(failure) => {
                let lost = matches!(failure, Failure::Source(_)) && source.is_closed();
                round.failures.push((Some(head.origin.clone()), failure));
                lost
            }
        }
    }

    /// Tells the database that a log was published and is not continued.
    fn tell(&mut self, source: &mut dyn Source, origin: &str) {
        if let Err(failure) = self.report(source, origin) {
            self.unreported.push((Some(origin.to_owned()), failure));
        }
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
        // A later incarnation that the key has signed is there, whatever became of the store.
        let newest = |platform: &str| Kind::of(platform).map_or(0, |kind| kind.incarnation(platform));
        let present = heads.iter().map(|head| newest(&head.origin)).max().unwrap_or_default();
        let later = self.memory.origins().filter(|(origin, _)| newest(origin) > present && present > 0);
        for (origin, (published, _)) in later {
            let known = |refusal: &Refusal| refusal.origin() == origin;
            if Kind::of(origin) == Some(Kind::Platform) && !vanished.iter().any(known) {
                vanished.push(Refusal::Vanished { origin: origin.to_owned(), published });
            }
        }
        Ok(vanished)
    }

    fn publish_log(
        &mut self,
        source: &mut dyn Source,
        head: &LogHead,
        looked_at: Option<Vec<Behind>>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Option<Published>, LogError> {
        let origin = head.origin.as_str();
        let known = self.known.get(origin).copied();
        if known == u64::try_from(head.tree_size).ok() && known.is_some() {
            return Ok(None);
        }
        // States of many logs are not kept: it is taken up once more. All anchors were compared in this round or before.
        let Inspected { signer, mut state, newest, behind } = self.look_at(source, head, false)?;
        let from = state.tree.size();
        let mut anchors = self.catch_up(source, origin, &signer, looked_at.unwrap_or(behind))?;
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
            self.memory.signed(&self.published_to, origin, (end, state.tree.root()));
            state.published = true;
            state.signed_ahead.clear();
            anchors += batch.len() as u64;
            self.record(source, origin, receipts)?;
            progress(Progress { origin, size: end, target: newest });
        }
        let to = state.tree.size();
        self.known.insert(origin.to_owned(), to);
        if state.published {
            self.memory.signed(&self.published_to, origin, (to, state.tree.root()));
        }
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
