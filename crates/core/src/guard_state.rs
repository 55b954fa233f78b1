//! Guard states: what the platform log says about them, and which one an anchor may carry.
//!
//! Owns the body of a GUARD.STATE event and the order of states against anchors. A pass of the sequencer that finds another
//! state than the one before records a GUARD.STATE event first of all, and every anchor that it writes carries that state;
//! the next pass makes the event a leaf. Passes come one after the other, and their transactions' numbers grow. So:
//!
//! - an anchor of a tenant's log, which transaction X recorded in the platform log, carries the state of the last
//!   GUARD.STATE event that a transaction up to X recorded, and no other;
//! - an anchor of the platform log is recorded nowhere but by itself. The GUARD.STATE events below its size were recorded
//!   before its pass. Of those at or above, at most two can have been: its own pass's, and that of the pass before, which
//!   its own pass may integrate behind the anchor. So it carries the state of the last event below its size or of one of the
//!   next two, and from anchor to anchor the states never go back.
//!
//! Promises to find no fault with what a sequencer writes that keeps to this. It never computes a state.

use crate::merkle::Hash;

/// Follows the digest where guards were not intact.
const OPEN: &str = " open: ";

/// The body of a GUARD.STATE event: the digest, and which guards were open.
///
/// ```
/// use agd_core::guard_state;
/// let body = guard_state::body(&[7; 32], None);
/// assert_eq!(guard_state::parse(&body), Some(([7; 32], None)));
/// let body = guard_state::body(&[7; 32], Some("public.t: it is unlogged"));
/// assert_eq!(guard_state::parse(&body), Some(([7; 32], Some("public.t: it is unlogged"))));
/// ```
pub fn body(digest: &Hash, open: Option<&str>) -> String {
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}{}{}", open.map_or("", |_| OPEN), open.unwrap_or_default())
}

/// Reads what [`body`] writes. `None` for anything else.
pub fn parse(body: &str) -> Option<(Hash, Option<&str>)> {
    let (digest, open) = match body.split_once(OPEN) {
        Some((digest, open)) => (digest, Some(open)),
        None => (body, None),
    };
    let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64 && hex.is_ascii())?;
    let mut hash = Hash::default();
    for (byte, digits) in hash.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some((hash, open))
}

#[derive(Debug, Clone, Copy)]
struct State {
    leaf: u64,
    xact_id: u64,
    /// `None`: it could have been any.
    digest: Option<Hash>,
}

impl State {
    fn fits(&self, digest: &Hash) -> bool {
        self.digest.is_none_or(|own| own == *digest)
    }
}

/// The GUARD.STATE events of a platform log, or of a part of it.
#[derive(Debug, Clone, Default)]
pub struct History {
    states: Vec<State>,
}

impl History {
    /// The whole log's.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those from some leaf on. This state was in force when the part before ended.
    pub fn since(digest: Hash) -> Self {
        Self { states: vec![State { leaf: 0, xact_id: 0, digest: Some(digest) }] }
    }

    /// A GUARD.STATE event: its leaf (`None`: it waits for integration) and the transaction that recorded it.
    pub fn add(&mut self, leaf: Option<u64>, xact_id: u64, digest: Hash) {
        self.states.push(State { leaf: leaf.unwrap_or(u64::MAX), xact_id, digest: Some(digest) });
    }

    /// A leaf whose event is lost or was changed, so that it may have been any state.
    pub fn add_unknown(&mut self, leaf: u64, xact_id: u64) {
        self.states.push(State { leaf, xact_id, digest: None });
    }

    /// To be called when everything was added, in whatever order.
    pub fn sort(&mut self) {
        // Stable: what was in force before stays first.
        self.states.sort_by_key(|state| (state.leaf, state.xact_id));
    }

    /// May this be the state of the sequencer's newest pass?
    pub fn may_end_with(&self, digest: &Hash) -> bool {
        self.states.last().is_some_and(|state| state.fits(digest))
    }

    /// May an anchor that this transaction recorded in the platform log carry this state?
    pub fn allows(&self, xact_id: u64, digest: &Hash) -> bool {
        self.states.iter().rfind(|state| state.xact_id <= xact_id).is_some_and(|state| state.fits(digest))
    }

    /// The first of the platform log's anchors (size and state, sizes growing) that carries a state which was not in force.
    ///
    /// Where anchors contradict each other in this, those are right that the most others agree with.
    pub fn first_misplaced<'a>(&self, anchors: impl IntoIterator<Item = (u64, &'a Hash)>) -> Option<u64> {
        // The longest row of anchors whose states do not go back, built as such rows are: for each length the one that ends
        // with the earliest state. Each link knows its anchor and the link before it.
        let mut links: Vec<(usize, Option<usize>)> = Vec::new();
        let mut rows: Vec<(usize, usize)> = Vec::new();
        let mut sizes = Vec::new();
        for (number, (size, digest)) in anchors.into_iter().enumerate() {
            sizes.push(size);
            // The latest first: an anchor must not follow itself.
            for state in self.at_size(size).rev().filter(|state| self.states[*state].fits(digest)) {
                let length = rows.partition_point(|(last, _)| *last <= state);
                let before = length.checked_sub(1).map(|shorter| rows[shorter].1);
                links.push((number, before));
                let row = (state, links.len() - 1);
                if length == rows.len() { rows.push(row) } else { rows[length] = row }
            }
        }
        let mut placed = vec![false; sizes.len()];
        let mut link = rows.last().map(|(_, link)| *link);
        while let Some((number, before)) = link.map(|link| links[link]) {
            placed[number] = true;
            link = before;
        }
        placed.iter().position(|placed| !placed).map(|number| sizes[number])
    }

    /// The states that an anchor of the platform log may carry: the last one below its size, and two more.
    fn at_size(&self, size: u64) -> std::ops::Range<usize> {
        let below = self.states.partition_point(|state| state.leaf < size);
        let known = self.states.iter().enumerate().skip(below).filter(|(_, state)| state.digest.is_some());
        let end = known.map(|(index, _)| index + 1).take(2).last().unwrap_or(self.states.len());
        below.saturating_sub(1)..end
    }
}
