use agd_core::guard_state::{History, body, parse};
use agd_core::merkle::Hash;
use proptest::prelude::*;

fn state(number: u8) -> Hash {
    [number; 32]
}

#[test]
fn no_history_allows_nothing() {
    let history = History::new();
    assert!(!history.allows(u64::MAX, &state(0)) && !history.may_end_with(&state(0)));
    assert_eq!(history.first_misplaced([(256, &state(0))]), Some(256));
}

#[test]
fn bodies_are_read_back_and_nothing_else_is() {
    for open in [None, Some("public.t: it has the rule \"r\""), Some("a open: b"), Some("")] {
        assert_eq!(parse(&body(&state(0xab), open)), Some((state(0xab), open)));
    }
    let good = body(&state(0xab), None);
    for bad in
        ["", "sha256:", &good[1..], &good[..70], &format!("{good}0"), &good.to_uppercase(), &good.replace('a', "é")]
    {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

/// A sequencer at work: what its passes leave in the platform log.
#[derive(Default)]
struct Log {
    size: u64,
    /// (leaf, transaction, state)
    states: Vec<(Option<u64>, u64, Hash)>,
    /// Of the platform log: size, state.
    anchors: Vec<(u64, Hash)>,
    /// Of a tenant's log: transaction, state.
    tenant: Vec<(u64, Hash)>,
}

impl Log {
    /// A pass: so many events before and after the one that the pass before recorded; anchors at some of the sizes.
    fn pass(&mut self, xact_id: u64, now: Hash, before: u64, after: u64, every: u64) {
        let waiting = self.states.iter().position(|(leaf, ..)| leaf.is_none());
        if self.states.last().is_none_or(|(.., last)| *last != now) {
            self.states.push((None, xact_id, now));
        }
        let own_place = self.size + before;
        let end = own_place + after + u64::from(waiting.is_some());
        if let Some(waiting) = waiting {
            self.states[waiting].0 = Some(own_place);
        }
        for size in self.size + 1..=end {
            if size.is_multiple_of(every) {
                self.anchors.push((size, now));
            }
        }
        self.size = end;
        self.tenant.push((xact_id, now));
    }

    fn history(&self) -> History {
        let mut history = History::new();
        for (leaf, xact_id, digest) in self.states.iter().rev() {
            history.add(*leaf, *xact_id, *digest);
        }
        history.sort();
        history
    }

    fn misplaced(&self, anchors: &[(u64, Hash)]) -> Option<u64> {
        self.history().first_misplaced(anchors.iter().map(|(size, digest)| (*size, digest)))
    }
}

proptest! {
    #[test]
    fn no_fault_is_found_with_a_sequencer(
        passes in prop::collection::vec((0u8..4, 0u64..9, 0u64..9), 1..40), every in 1u64..6, cut in 0usize..40
    ) {
        let mut log = Log::default();
        for (number, (now, before, after)) in passes.iter().enumerate() {
            log.pass(100 + 7 * number as u64, state(*now), *before, *after, every);
        }
        prop_assert_eq!(log.misplaced(&log.anchors), None);
        let history = log.history();
        prop_assert!(history.may_end_with(&state(passes[passes.len() - 1].0)));
        prop_assert!(!history.may_end_with(&state(99)));
        for (xact_id, digest) in &log.tenant {
            prop_assert!(history.allows(*xact_id, digest));
            prop_assert!(!history.allows(*xact_id, &state(99)));
        }
        // The same from the end of some pass on, knowing only what was in force then.
        let cut = cut.min(passes.len() - 1);
        let mut part = Log::default();
        for (number, (now, before, after)) in passes[..=cut].iter().enumerate() {
            part.pass(100 + 7 * number as u64, state(*now), *before, *after, every);
        }
        let mut history = History::since(state(passes[cut].0));
        for (leaf, xact_id, digest) in &log.states {
            if leaf.is_none_or(|leaf| leaf >= part.size) {
                history.add(*leaf, *xact_id, *digest);
            }
        }
        history.sort();
        let later = log.anchors.iter().filter(|(size, _)| *size > part.size).map(|(size, digest)| (*size, digest));
        prop_assert_eq!(history.first_misplaced(later), None);
        for (xact_id, digest) in &log.tenant[cut + 1..] {
            prop_assert!(history.allows(*xact_id, digest));
        }
    }
}

/// States 1, 2 and 1 again, each for a while.
fn there_and_back() -> Log {
    let mut log = Log::default();
    for (number, now) in [1, 1, 1, 2, 2, 2, 1, 1, 1].into_iter().enumerate() {
        log.pass(100 + number as u64, state(now), 5, 5, 5);
    }
    log
}

#[test]
fn a_state_out_of_its_time_is_found() {
    let log = there_and_back();
    let history = log.history();
    // Tenants' anchors: exactly one state is right.
    for (xact_id, right) in &log.tenant {
        for other in 0..4 {
            assert_eq!(history.allows(*xact_id, &state(other)), state(other) == *right, "{xact_id} {other}");
        }
    }
    assert!(!history.allows(99, &state(1)), "before the first one");
    // The platform's: a state that was never, and each that was, where it was not.
    for (place, (size, right)) in log.anchors.iter().enumerate() {
        let mut anchors = log.anchors.clone();
        anchors[place].1 = state(3);
        assert_eq!(log.misplaced(&anchors), Some(*size));
        anchors[place].1 = if *right == state(1) { state(2) } else { state(1) };
        // Near the border between two states either side could be right.
        let around = place.saturating_sub(2)..(place + 3).min(log.anchors.len());
        let inside = around.len() == 5 && log.anchors[around].iter().all(|(_, other)| other == right);
        assert!(!inside || log.misplaced(&anchors) == Some(*size), "size {size}");
    }
}

#[test]
fn an_unknown_state_excuses_anchors_and_no_more() {
    let log = there_and_back();
    let mut history = log.history();
    let (leaf, xact_id) = (log.states[1].0.unwrap(), log.states[1].1);
    history.add_unknown(leaf, xact_id);
    history.sort();
    assert!(history.allows(xact_id, &state(9)));
    assert!(!history.allows(xact_id - 1, &state(9)));
    assert_eq!(history.first_misplaced(log.anchors.iter().map(|(size, digest)| (*size, digest))), None);
}
