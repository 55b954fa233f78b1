//! What must hold before anything is signed.
//!
//! Owns three questions. Is this the database that the key signs for, at home where it is, and does it believe the key? Has the
//! store all that the key has signed there, and all that the database has receipts for? Does each log of the database continue
//! what the store has of it, and what the key has signed anywhere? Promises that it signs and writes nothing, and that
//! whoever said --new-store or --moved-here is told when that is not how things are.

use agd_core::{SigningKey, name};

use super::Publisher;
use super::anchors::{Behind, compare_signed_elsewhere};
use super::outcome::{Failure, LogError, Refusal, hex, malformed, store_error};
use super::state::State;
use crate::origin::speaks_for;
use crate::source::{AtHome, Identity, LogHead, Source};
use crate::store;
use crate::tiles;

/// A log that continues what was published.
pub(super) struct Inspected {
    pub(super) signer: SigningKey,
    pub(super) state: State,
    /// The size that the database has.
    pub(super) newest: u64,
    pub(super) behind: Vec<Behind>,
}

impl Publisher {
    /// Whether the key signs for this database, and the database believes the key.
    pub(super) fn check_database(&self, identity: &Identity, heads: &[LogHead]) -> Result<(), LogError> {
        let origin = || self.key.name().to_owned();
        if identity.at_home == AtHome::Copy {
            return Err(Refusal::Copy { origin: origin() }.into());
        }
        // Another database's logs are refused by name, each, before anybody asks whose key it is.
        if heads.iter().any(|head| !speaks_for(self.key.name(), &head.origin)) {
            return Ok(());
        }
        let here = &identity.home;
        let another = |signs_for: String| {
            LogError::from(Refusal::AnotherDatabase { origin: origin(), signs_for, this: here.to_string() })
        };
        // Without a state file, the receipts that a copy brought along tell where it comes from.
        let received = identity.received_from.as_ref().filter(|from| **from != here.to_string());
        match self.memory.home() {
            Some(home) if home != here && !self.moved_here => return Err(another(home.to_string())),
            None if received.is_some() && !self.moved_here => {
                return Err(another(received.cloned().unwrap_or_default()));
            }
            Some(home) if home == here && self.moved_here && !self.admitted => {
                let said = "--moved-here: the key signs for this database already; leave the option out";
                return Err(LogError::Failed(Failure::Option(said.to_owned())));
            }
            _ => {}
        }
        let ours = self.key.verifier();
        if heads.is_empty() || identity.keys.iter().any(|vkey| *vkey == ours.to_string()) {
            return Ok(());
        }
        Err(LogError::Failed(Failure::Unregistered(ours.to_string())))
    }

    /// Whether the store is the one that it was, as far as that shows before any log is looked into.
    pub(super) fn check_store(&mut self, heads: &[LogHead]) -> Result<(), LogError> {
        if self.admitted {
            return Ok(());
        }
        let place = self.published_to.clone();
        let log_name = name::split_incarnation(self.key.name()).0;
        let failed = |error| LogError::Failed(Failure::Store(error));
        let begun = self.store.reader().list(log_name).map_err(failed)?.is_some_and(|names| !names.is_empty());
        let (here, anywhere) = self.memory.knows(&place);
        if begun {
            if self.new_store {
                let said = format!("--new-store: {place} holds this key's logs already; leave the option out");
                return Err(LogError::Failed(Failure::Option(said)));
            }
            // A closed log is looked into no more: its newest checkpoint is still there.
            for head in heads.iter().filter(|head| head.closed) {
                self.check_kept(&head.origin, head.received_here)?;
            }
            return Ok(());
        }
        let received = heads.iter().any(|head| head.received.is_some());
        if (anywhere || received) && !self.new_store {
            let why = match (here, anywhere) {
                (true, _) => "the key has signed in it, and it is empty",
                (false, true) => "it is empty, and the key has signed in another store",
                (false, false) => "it is empty, and the database has receipts of what was published",
            };
            return Err(Refusal::StoreBehind { origin: self.key.name().to_owned(), reason: why.to_owned() }.into());
        }
        if self.new_store {
            self.memory.begin(&place);
        }
        Ok(())
    }

    /// A log that nothing continues: what was signed of it is in the store.
    fn check_kept(&self, origin: &str, received: Option<i64>) -> Result<(), LogError> {
        let Some((size, root)) = self.memory.newest(&self.published_to, origin) else {
            return match received.and_then(|size| u64::try_from(size).ok()) {
                None => Ok(()),
                Some(size) => {
                    let path = store::checkpoint_path(origin, size);
                    let there = self.store.reader().has(&path).map_err(|error| store_error(origin, error.into()))?;
                    if there { Ok(()) } else { Err(behind(origin, format!("the database has a receipt for {path}"))) }
                }
            };
        };
        let signer = self.signer(origin)?;
        match self.checkpoints(origin, &signer).at(size)? {
            Some(stored) if stored.checkpoint.root == root => Ok(()),
            _ => Err(behind(origin, format!("the key has signed size {size} with root {} in it", hex(&root)))),
        }
    }

    pub(super) fn signer(&self, origin: &str) -> Result<SigningKey, LogError> {
        self.key.signer(origin).map_err(|error| LogError::Failed(Failure::Key(error.to_string())))
    }

    /// Compares a log with the store, and with what the key has signed; `whole`: every anchor, not the newest published one
    /// alone.
    pub(super) fn look_at(&self, source: &mut dyn Source, head: &LogHead, whole: bool) -> Result<Inspected, LogError> {
        let origin = head.origin.as_str();
        self.check_identity(head)?;
        let newest = u64::try_from(head.tree_size)
            .map_err(|_| malformed(origin, format!("the database says size {}", head.tree_size)))?;
        let signer = self.signer(origin)?;
        let state = self.load_state(origin, &signer)?;
        self.check_memory(&signer, head, &state)?;
        let (bound, bound_root) = state.bound();
        let shrunk = |published, root| {
            let root = hex(&root);
            LogError::from(Refusal::Shrunk { origin: origin.to_owned(), published, root, database: head.tree_size })
        };
        if newest < bound {
            return Err(shrunk(bound, bound_root));
        }
        if head.tenant.is_none() && !state.published && newest > 0 {
            self.check_beginning(source, origin)?;
        }
        if whole {
            // One key signs one history, wherever it goes.
            for signed in self.memory.elsewhere(&self.published_to, origin) {
                if newest < signed.0 {
                    return Err(shrunk(signed.0, signed.1));
                }
                compare_signed_elsewhere(source, origin, signed)?;
            }
        }
        let first = if whole { 0 } else { state.tree.size() };
        let behind = self.compare_published(source, origin, &signer, &state, first)?;
        Ok(Inspected { signer, state, newest, behind })
    }

    /// The store has what the key has signed of this log, and what the database has receipts for.
    fn check_memory(&self, signer: &SigningKey, head: &LogHead, state: &State) -> Result<(), LogError> {
        let origin = head.origin.as_str();
        let (bound, bound_root) = state.bound();
        if let Some((size, root)) = self.memory.newest(&self.published_to, origin) {
            if bound < size {
                return Err(behind(origin, format!("the key has signed size {size} in it, and it ends at {bound}")));
            }
            let stored = match self.checkpoints(origin, signer).at(size)? {
                _ if size == bound => bound_root,
                Some(stored) => stored.checkpoint.root,
                None => {
                    let tree = tiles::load_tree(self.store.reader(), origin, size);
                    tree.map_err(|error| store_error(origin, error))?.root()
                }
            };
            if stored != root {
                let said =
                    format!("the key has signed root {} at size {size} in it, and it has {}", hex(&root), hex(&stored));
                return Err(behind(origin, said));
            }
        } else if let Some((size, _)) = self.memory.elsewhere(&self.published_to, origin).into_iter().max()
            && state.published
            && !self.memory.knows(&self.published_to).0
            && bound < size
        {
            // A copy of a store, in another place.
            return Err(behind(origin, format!("the key has signed size {size} elsewhere, and it ends at {bound}")));
        }
        let received = head.received_here.and_then(|size| u64::try_from(size).ok()).filter(|_| !self.new_store);
        match received {
            Some(size) if size > bound => {
                Err(behind(origin, format!("the database has a receipt for size {size} in it, and it ends at {bound}")))
            }
            _ => Ok(()),
        }
    }
}

fn behind(origin: &str, reason: String) -> LogError {
    Refusal::StoreBehind { origin: origin.to_owned(), reason }.into()
}
