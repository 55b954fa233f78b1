//! Are a log's event ids unique?
//!
//! Owns a small exact check. A transaction's events normally stand together and in order, so that one bit per
//! transaction is enough; only a transaction that turns up a second time is looked at again, event by event, in a second
//! pass over the log.

use std::collections::{HashMap, HashSet};

use agd_core::EventId;

/// Bits in one block of the set.
const BLOCK: u64 = 512;

/// What has been seen so far.
#[derive(Debug, Default)]
pub struct EventIds {
    seen: HashMap<u64, [u64; (BLOCK / 64) as usize]>,
    last: Option<EventId>,
    again: HashSet<u64>,
}

impl EventIds {
    /// Takes the next entry's id.
    pub fn push(&mut self, id: EventId) {
        let before = self.last.replace(id);
        let same = before.filter(|last| last.xact_id == id.xact_id);
        let fits = match same {
            Some(last) => id.n > last.n,
            None => self.insert(id.xact_id),
        };
        if !fits {
            self.again.insert(id.xact_id);
        }
    }

    /// Transactions whose events must be compared one by one. Empty: every id was unique.
    pub fn suspects(self) -> HashSet<u64> {
        self.again
    }

    /// Whether it was new.
    fn insert(&mut self, xact_id: u64) -> bool {
        let block = self.seen.entry(xact_id / BLOCK).or_default();
        let (word, bit) = ((xact_id % BLOCK / 64) as usize, 1 << (xact_id % 64));
        let new = block[word] & bit == 0;
        block[word] |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whoever has a duplicate is a suspect; and ascending runs are not.
        #[test]
        fn every_duplicate_is_suspected(ids in proptest::collection::vec((0_u64..40, 0_u32..4), 0..60)) {
            let mut check = EventIds::default();
            let mut seen = HashSet::new();
            let mut duplicates = HashSet::new();
            for (xact_id, n) in ids {
                let xact_id = xact_id * 100;
                check.push(EventId { xact_id, n });
                if !seen.insert((xact_id, n)) {
                    duplicates.insert(xact_id);
                }
            }
            prop_assert!(duplicates.is_subset(&check.suspects()));
        }

        #[test]
        fn runs_in_order_are_no_suspects(xacts in proptest::collection::hash_set(any::<u64>(), 0..50)) {
            let mut check = EventIds::default();
            for xact_id in xacts {
                for n in [1, 2, 7] {
                    check.push(EventId { xact_id, n });
                }
            }
            prop_assert!(check.suspects().is_empty());
        }
    }
}
