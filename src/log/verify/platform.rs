//! What the platform log says of the other logs and of the guards.
//!
//! Owns the comparison of anchors with the platform log's CHECKPOINT and GUARD.STATE events, read in one pass for all logs:
//! each anchor of a tenant's log is a CHECKPOINT event with its origin, size and root, and each CHECKPOINT event is such an
//! anchor; each anchor carries a guard state that was in force (which one, [`agd_core::guard_state`] says). The pass that
//! writes an anchor records the event in the same transaction, and the next pass makes it a leaf: the newest events may still
//! wait for integration.
//!
//! Where there were several incarnations, their platform logs are read as one, each behind the one before: what a pass
//! recorded when a log was closed stands in its successor.
//!
//! A leaf whose event is missing or was changed is its own finding: it could have been any guard state, but it is no
//! checkpoint.

use crate::log::record::EventKey;
use crate::log::verify::rows::Anchor;
use agd_core::guard_state::{self, History};
use agd_core::{Checkpoint, Hash, entry};
use std::collections::HashMap;

/// A checkpoint of a tenant's log in the platform log.
#[derive(Clone, Copy)]
struct Sent {
    root: Hash,
    xact_id: u64,
}

/// What stands in the platform log, from some leaf on.
#[derive(Default)]
pub struct Recorded {
    /// Only this log's checkpoints are kept.
    only: Option<String>,
    /// Leaves of the platform logs before the one that is read.
    before: u64,
    checkpoints: HashMap<String, HashMap<u64, Sent>>,
    states: History,
    /// GUARD.STATE events seen.
    pub seen_states: u64,
    /// Guards that were open when a pass looked: the event that says so; table and problem.
    pub open: Vec<(EventKey, String)>,
}

/// What is wrong with a tenant's anchors.
pub struct Judgement {
    /// Against the checkpoints in the platform log.
    pub checkpoints: Option<String>,
    /// The first anchor whose guard state was not in force.
    pub guard_state: Option<u64>,
}

impl Recorded {
    /// Nothing seen yet. `only`: the one log whose checkpoints matter; `in_force`: the guard state when the part ended that
    /// is not looked at.
    pub fn new(only: Option<&str>, in_force: Option<Hash>) -> Self {
        let states = in_force.map_or_else(History::new, History::since);
        Recorded { only: only.map(str::to_owned), states, ..Self::default() }
    }

    /// The next platform log begins, behind so many leaves of others.
    pub fn begin_log(&mut self, before: u64) {
        self.before = before;
    }

    /// An event of the platform log. `leaf` None: it waits for integration.
    pub fn see(&mut self, leaf: Option<u64>, key: EventKey, action: &str, body: &str) {
        match action {
            entry::CHECKPOINT => {
                if let Ok(Checkpoint { origin, size, root }) = Checkpoint::parse(body)
                    && self.only.as_ref().is_none_or(|only| *only == origin)
                {
                    self.checkpoints.entry(origin).or_default().insert(size, Sent { root, xact_id: key.xact_id });
                }
            }
            "GUARD.STATE" => {
                self.seen_states += 1;
                match guard_state::parse(body) {
                    Some((digest, open)) => {
                        self.states.add(leaf.map(|leaf| leaf.saturating_add(self.before)), key.xact_id, digest);
                        self.open.extend(open.map(|what| (key, what.to_owned())));
                    }
                    None => {
                        let leaf = leaf.map_or(u64::MAX, |leaf| leaf.saturating_add(self.before));
                        self.states.add_unknown(leaf, key.xact_id);
                    }
                }
            }
            _ => {}
        }
    }

    /// A leaf of the platform log whose event is missing or was changed.
    pub fn damaged(&mut self, leaf: u64, key: EventKey) {
        self.states.add_unknown(leaf.saturating_add(self.before), key.xact_id);
    }

    /// Everything was seen.
    pub fn sort(&mut self) {
        self.states.sort();
        self.open.sort_by_key(|(event, _)| *event);
    }

    /// Has this origin checkpoints here?
    pub fn knows(&self, origin: &str) -> bool {
        self.checkpoints.contains_key(origin)
    }

    /// Origins that have checkpoints here.
    pub fn origins(&self) -> impl Iterator<Item = &str> {
        self.checkpoints.keys().map(String::as_str)
    }

    /// A tenant's anchors, sizes growing. `elsewhere` finds one that is not among them.
    pub fn judge_tenant(
        &self,
        origin: &str,
        anchors: &[Anchor],
        mut elsewhere: impl FnMut(u64) -> Option<Anchor>,
    ) -> Judgement {
        let none = HashMap::new();
        let sent = self.checkpoints.get(origin).unwrap_or(&none);
        let mut found = Judgement { checkpoints: None, guard_state: None };
        for Anchor { size, root, guard_state, .. } in anchors {
            let problem = match sent.get(size) {
                None => format!("the anchor at size {size} is not in the platform log"),
                Some(sent) if sent.root != *root => {
                    format!("the platform log holds another root for the anchor at size {size}")
                }
                Some(sent) => {
                    if !self.states.allows(sent.xact_id, guard_state) {
                        found.guard_state.get_or_insert(*size);
                    }
                    continue;
                }
            };
            found.checkpoints.get_or_insert(problem);
        }
        let lost = sent
            .iter()
            .filter(|(size, _)| anchors.binary_search_by_key(*size, |anchor| anchor.size).is_err())
            .filter(|(size, sent)| elsewhere(**size).is_none_or(|anchor| anchor.root != sent.root))
            .map(|(size, _)| *size)
            .min();
        if let Some(size) = lost {
            found
                .checkpoints
                .get_or_insert(format!("the platform log holds an anchor at size {size} that the log has lost"));
        }
        found
    }

    /// Can this be the guard state of the sequencer's newest pass?
    pub fn may_end_with(&self, guard_state: &Hash) -> bool {
        self.states.may_end_with(guard_state)
    }

    /// The first of a platform log's own anchors, sizes growing, whose guard state was not in force. `before`: as in
    /// [`Recorded::begin_log`].
    pub fn judge_platform(&self, before: u64, anchors: &[Anchor]) -> Option<u64> {
        let anchors = anchors.iter().map(|anchor| (anchor.size.saturating_add(before), &anchor.guard_state));
        self.states.first_misplaced(anchors).map(|size| size - before)
    }
}
