//! Are a log's event ids unique?
//!
//! Owns a small exact check. A transaction's events normally stand together and in order, so that one bit per
//! transaction is enough; only a transaction that turns up a second time is looked at again, event by event, in another
//! pass over the log. Promises that memory is bounded whatever the ids are: transactions that do not fit are left to a
//! further pass, and what no pass can hold is said to be unchecked.

use std::collections::{BTreeSet, HashMap};

use agd_core::EventId;
use roaring::RoaringTreemap;

/// Bytes that the set of transactions may take. Dense ids take a bit each, sparse ones two bytes.
const BUDGET: u64 = 48 << 20;

/// New transactions after which the set is measured.
const MEASURE: u64 = 1 << 18;

/// Transactions in pieces that are looked at again. A log that agd wrote has none.
const MAX_SUSPECTS: usize = 1 << 16;

/// Events of such transactions that are compared one by one.
const MAX_EVENTS: usize = 1 << 20;

/// Events of one transaction that stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    xact_id: u64,
    first: u32,
    last: u32,
    ascending: bool,
}

/// Adds the next entry's id to the runs before it.
pub fn extend(runs: &mut Vec<Run>, id: EventId) {
    match runs.last_mut() {
        Some(run) if run.xact_id == id.xact_id => {
            run.ascending &= id.n > run.last;
            run.last = id.n;
        }
        _ => runs.push(Run { xact_id: id.xact_id, first: id.n, last: id.n, ascending: true }),
    }
}

/// What has been seen so far, of the transactions that this pass looks at.
#[derive(Debug)]
pub struct EventIds {
    from: u64,
    to: u64,
    seen: RoaringTreemap,
    unmeasured: u64,
    budget: u64,
    last: Option<(u64, u32)>,
    again: BTreeSet<u64>,
    too_many: bool,
}

impl Default for EventIds {
    fn default() -> Self {
        Self::within(BUDGET)
    }
}

impl EventIds {
    fn within(budget: u64) -> Self {
        Self {
            from: 0,
            to: u64::MAX,
            seen: RoaringTreemap::new(),
            unmeasured: 0,
            budget,
            last: None,
            again: BTreeSet::new(),
            too_many: false,
        }
    }

    /// Takes the next entries' ids.
    pub fn push(&mut self, run: Run) {
        let before = self.last.replace((run.xact_id, run.last));
        if !(self.from..=self.to).contains(&run.xact_id) {
            return;
        }
        let new = match before.filter(|(xact_id, _)| *xact_id == run.xact_id) {
            Some((_, last)) => run.first > last,
            None => self.insert(run.xact_id),
        };
        if !(new && run.ascending) {
            self.again.insert(run.xact_id);
            if self.again.len() > MAX_SUSPECTS {
                self.again.pop_last();
                self.too_many = true;
            }
        }
    }

    /// Makes ready for a pass over the transactions that this one left out; `false` when there are none.
    pub fn next_pass(&mut self) -> bool {
        if self.to == u64::MAX {
            return false;
        }
        (self.from, self.to) = (self.to + 1, u64::MAX);
        self.seen.clear();
        (self.unmeasured, self.last) = (0, None);
        true
    }

    /// The transactions whose events must be compared one by one. Nothing there: every id was unique.
    pub fn suspects(self) -> Suspects {
        Suspects { transactions: self.again, too_many: self.too_many, seen: HashMap::new() }
    }

    /// Whether it was new.
    fn insert(&mut self, xact_id: u64) -> bool {
        let new = self.seen.insert(xact_id);
        self.unmeasured += u64::from(new);
        if self.unmeasured >= MEASURE.min(self.budget / 64) {
            self.unmeasured = 0;
            while self.size() > self.budget && self.leave_out() {}
        }
        new
    }

    /// Leaves the upper half to a later pass; `false` when there is no half to leave.
    fn leave_out(&mut self) -> bool {
        let Some(middle) = self.seen.select(self.seen.len() / 2) else { return false };
        if middle == self.from || self.seen.len() < 2 {
            return false;
        }
        self.seen.remove_range(middle..);
        self.to = middle - 1;
        true
    }

    /// About what the set takes, in bytes.
    fn size(&self) -> u64 {
        /// What a container takes beside its values, and a bitmap beside its containers.
        const OVERHEAD: u64 = 64;
        let bitmaps = self.seen.bitmaps().map(|(_, bitmap)| bitmap.statistics());
        bitmaps
            .map(|found| {
                let values =
                    found.n_bytes_array_containers + found.n_bytes_bitset_containers + found.n_bytes_run_containers;
                values + OVERHEAD * (1 + u64::from(found.n_containers))
            })
            .sum()
    }
}

/// Transactions that turned up in more than one place, or whose events are not in order.
#[derive(Debug)]
pub struct Suspects {
    transactions: BTreeSet<u64>,
    too_many: bool,
    seen: HashMap<EventId, u64>,
}

impl Suspects {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// Whether this is one of their events.
    pub fn has(&self, id: EventId) -> bool {
        self.transactions.contains(&id.xact_id)
    }

    /// Takes one of their events; returns the entry that has the same id.
    pub fn push(&mut self, id: EventId, index: u64) -> Option<u64> {
        if self.seen.len() >= MAX_EVENTS && !self.seen.contains_key(&id) {
            self.too_many = true;
            return None;
        }
        self.seen.insert(id, index)
    }

    /// Whether some of them could not be looked at.
    pub fn too_many(&self) -> bool {
        self.too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// Every pass there is, over the ids as they stand; returns the suspects and the number of passes.
    fn check(budget: u64, ids: &[EventId]) -> (BTreeSet<u64>, u32) {
        let mut check = EventIds::within(budget);
        let mut passes = 0;
        loop {
            passes += 1;
            // In pieces, as tiles cut them.
            for piece in ids.chunks(3) {
                let mut runs = Vec::new();
                piece.iter().for_each(|id| extend(&mut runs, *id));
                runs.into_iter().for_each(|run| check.push(run));
            }
            if !check.next_pass() {
                return (check.suspects().transactions, passes);
            }
        }
    }

    proptest! {
        /// Whoever has a duplicate is a suspect; however little memory there is.
        #[test]
        fn every_duplicate_is_suspected(
            ids in proptest::collection::vec((0_u64..40, 0_u32..4), 0..60), budget in 8_u64..3000, far in any::<bool>(),
        ) {
            let mut seen = HashSet::new();
            let mut duplicates = BTreeSet::new();
            let spread = if far { u64::MAX / 40 } else { 100 };
            let ids: Vec<EventId> = ids.iter().map(|(xact_id, n)| EventId { xact_id: xact_id * spread, n: *n }).collect();
            for id in &ids {
                if !seen.insert(*id) {
                    duplicates.insert(id.xact_id);
                }
            }
            prop_assert!(duplicates.is_subset(&check(budget, &ids).0));
        }

        #[test]
        fn runs_in_order_are_no_suspects(xacts in proptest::collection::hash_set(any::<u64>(), 0..50), budget in 8_u64..3000) {
            let ids: Vec<EventId> =
                xacts.into_iter().flat_map(|xact_id| [1, 2, 7].map(|n| EventId { xact_id, n })).collect();
            prop_assert!(check(budget, &ids).0.is_empty());
        }
    }

    #[test]
    fn what_does_not_fit_is_left_to_further_passes() {
        let mut ids: Vec<EventId> = (0..5_000).map(|i| EventId { xact_id: i * 1_000_003, n: 0 }).collect();
        ids.push(EventId { xact_id: 4_321 * 1_000_003, n: 0 });
        let (suspects, passes) = check(64 * 1024, &ids);
        assert_eq!(suspects, BTreeSet::from([4_321 * 1_000_003]));
        assert!((2..50).contains(&passes), "{passes}");
        assert_eq!(check(BUDGET, &ids), (suspects, 1));
    }

    #[test]
    fn more_pieces_than_can_be_held_are_not_called_unique() {
        let mut ids = EventIds::default();
        for round in 0..2 {
            for xact_id in 0..=MAX_SUSPECTS as u64 {
                let mut runs = Vec::new();
                extend(&mut runs, EventId { xact_id, n: round });
                runs.into_iter().for_each(|run| ids.push(run));
            }
        }
        let mut suspects = ids.suspects();
        assert!(suspects.too_many() && suspects.transactions.len() == MAX_SUSPECTS);
        let id = EventId { xact_id: 1, n: 1 };
        assert!(suspects.has(id));
        assert_eq!((suspects.push(id, 3), suspects.push(id, 9)), (None, Some(3)));
    }
}
