//! Recomputing a stored log, and who is wrong where it contradicts itself: an event, a tile, the tile above, or an anchor.
//!
//! Owns the judgement. A log is stored four times over: the events give the leaves, tiles hold the leaves, the tiles above
//! hold the roots of tiles, anchors hold the roots of everything. The one that stands alone against the others is wrong,
//! and the audit goes on with what the others say. So one damage is named as one, and what lies behind it is still looked
//! at. Promises that nothing passes which does not give the anchors' roots, or is not named in a [`Verdict`]. It never
//! reads anything: whoever calls brings the rows.

use std::convert::Infallible;

use crate::merkle::{Hash, MerkleError};
use crate::tile::{FullTile, TILE_WIDTH, TiledTree};

/// Up to so many leaves of a span are judged one by one where neither their tile nor their events are right as a whole.
const JUDGED: usize = 6;

/// A run of leaves of one tile, as they are stored and as they should be.
#[derive(Debug, Clone, Copy)]
pub struct Span<'a> {
    /// The hashes that the tile holds, from the audit's size on.
    pub stored: &'a [Hash],
    /// The hashes that the events give, as many; `None`: there is no such event.
    pub computed: &'a [Option<Hash>],
    /// What the tile above holds for this tile, where the span ends a full tile. `None`: nothing is known of it.
    pub above: Option<&'a Hash>,
    /// The anchors within the span, its end included: size and root, sizes growing.
    pub anchors: &'a [(u64, Hash)],
}

/// A full tile above level 0, as the leaves give it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpperTile {
    /// 1 or more.
    pub level: u8,
    /// Position among the tiles of that level.
    pub index: u64,
    /// Its 256 hashes.
    pub hashes: Vec<Hash>,
}

/// What is wrong with a span. All empty: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Leaves whose event is missing, or is not what the log holds.
    pub events: Vec<u64>,
    /// Leaves whose hash in the tile is not that of their event, which is the one that was anchored.
    pub leaves: Vec<u64>,
    /// The tile as a whole is not what the tile above and the anchor hold: its leaves were changed together with their
    /// events, or put into another order.
    pub tile: bool,
    /// The tile above does not hold this tile's root.
    pub above: bool,
    /// Sizes of anchors that have another root than the leaves.
    pub anchors: Vec<u64>,
    /// The full tiles above level 0 that the span completed, to be compared with what is stored.
    pub completed: Vec<UpperTile>,
}

impl Verdict {
    /// Nothing is wrong with the span itself.
    pub fn holds(&self) -> bool {
        self.events.is_empty() && self.leaves.is_empty() && !self.tile && !self.above && self.anchors.is_empty()
    }
}

/// A log that is being recomputed, span by span.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    tree: TiledTree,
}

impl Audit {
    /// From the first leaf on.
    pub fn new() -> Self {
        Self::default()
    }

    /// From where an earlier audit ended: its size and compact range, and the open tiles of that size, read anew. `false`
    /// when these do not give that range.
    ///
    /// # Errors
    /// As [`TiledTree::from_open_tiles`].
    pub fn resume(size: u64, nodes: &[Hash], open: Vec<Vec<Hash>>) -> Result<Option<Self>, MerkleError> {
        let tree = TiledTree::from_open_tiles(size, open)?;
        Ok((tree.range().nodes() == nodes).then_some(Self { tree }))
    }

    /// The tree so far.
    pub fn tree(&self) -> &TiledTree {
        &self.tree
    }

    /// Goes on over the next leaves of one tile. The lists of a span are cut to the shorter one, and to the tile's end.
    pub fn span(&mut self, span: &Span<'_>) -> Verdict {
        let first = self.tree.size();
        let room = (TILE_WIDTH - first % TILE_WIDTH) as usize;
        let length = span.stored.len().min(span.computed.len()).min(room);
        let before = self.tree.clone();
        let mut verdict = Verdict::default();
        let mut at = 0;
        let stops = span.anchors.iter().map(|(size, root)| (size.saturating_sub(first) as usize, Some(root)));
        for (stop, root) in stops.chain([(length, None)]) {
            if stop < at || stop > length {
                continue;
            }
            self.part(&mut verdict, at as u64 + first, &span.stored[at..stop], &span.computed[at..stop], root);
            at = stop;
        }
        if length > 0
            && self.tree.size().is_multiple_of(TILE_WIDTH)
            && let Some(above) = span.above
            && self.last_root(&verdict.completed) != Some(above)
        {
            self.doubt_tile(&mut verdict, before, above, span.anchors.last());
        }
        verdict
    }

    /// Goes on behind a tile whose leaves are lost, if its root can be told: the tile above holds it, and the anchor at its
    /// end agrees. `None` when it cannot: the audit then stays where it is.
    pub fn lost_tile(&mut self, above: Option<&Hash>, anchors: &[(u64, Hash)]) -> Option<Verdict> {
        let (tree, completed) = with_whole_tile(&self.tree, above?)?;
        anchored(&tree, anchors.last()).then(|| {
            self.tree = tree;
            Verdict { completed, ..Verdict::default() }
        })
    }

    /// Leaves up to the next anchor, or to the end of the span.
    fn part(
        &mut self,
        verdict: &mut Verdict,
        first: u64,
        stored: &[Hash],
        computed: &[Option<Hash>],
        root: Option<&Hash>,
    ) {
        let odd: Vec<usize> = (0..stored.len()).filter(|i| computed[*i].as_ref() != Some(&stored[*i])).collect();
        if odd.is_empty() {
            push_all(&mut self.tree, stored.iter().copied(), &mut verdict.completed);
        } else {
            // For each of them the tile is right or the event is. First all tiles, then all events, then one by one.
            let everywhere = u64::MAX;
            let one_by_one = if odd.len() <= JUDGED { 1..1 << odd.len() } else { 0..0 };
            let mut choices = [0, everywhere].into_iter().chain(one_by_one);
            let chosen = choices.find_map(|events| {
                let (mut tree, mut completed, mut next) = (self.tree.clone(), Vec::new(), 0);
                let leaves = computed.iter().zip(stored).map(|(computed, stored)| match computed {
                    Some(computed) if computed == stored => *stored,
                    _ => {
                        next += 1;
                        if by_event(events, next - 1) { computed.unwrap_or(*stored) } else { *stored }
                    }
                });
                push_all(&mut tree, leaves, &mut completed);
                (root.is_none_or(|root| tree.root() == *root)).then_some((events, tree, completed))
            });
            let (events, tree, completed) = chosen.unwrap_or_else(|| {
                let (mut tree, mut completed) = (self.tree.clone(), Vec::new());
                push_all(&mut tree, stored.iter().copied(), &mut completed);
                (0, tree, completed)
            });
            for (rank, position) in odd.into_iter().enumerate() {
                let blamed = match computed[position] {
                    Some(_) if by_event(events, rank) => &mut verdict.leaves,
                    _ => &mut verdict.events,
                };
                blamed.push(first + position as u64);
            }
            self.tree = tree;
            verdict.completed.extend(completed);
        }
        if let Some(root) = root
            && self.tree.root() != *root
        {
            verdict.anchors.push(self.tree.size());
        }
    }

    /// The tile above holds another root than this tile's: one of the two is wrong, and the anchor tells which.
    fn doubt_tile(&mut self, verdict: &mut Verdict, before: TiledTree, above: &Hash, anchor: Option<&(u64, Hash)>) {
        let by_above = at_tile_start(before).and_then(|tree| with_whole_tile(&tree, above));
        match by_above {
            Some((tree, completed)) if !anchored(&self.tree, anchor) && anchored(&tree, anchor) => {
                self.tree = tree;
                // Anchors within the tile cannot be judged without its leaves.
                *verdict = Verdict { tile: true, events: std::mem::take(&mut verdict.events), ..Verdict::default() };
                verdict.completed = completed;
            }
            _ => verdict.above = true,
        }
    }

    /// The root of the tile that has just become full.
    fn last_root<'a>(&'a self, completed: &'a [UpperTile]) -> Option<&'a Hash> {
        let full = completed.iter().find(|tile| tile.level == 1).map(|tile| &tile.hashes);
        full.or(self.tree.open_tiles().get(1)).and_then(|hashes| hashes.last())
    }
}

/// Is the odd leaf of this rank what its event says? (Beyond the bits that there are, all are alike.)
fn by_event(events: u64, rank: usize) -> bool {
    events >> rank.min(63) & 1 == 1
}

/// Is there an anchor of exactly this tree?
fn anchored(tree: &TiledTree, anchor: Option<&(u64, Hash)>) -> bool {
    anchor.is_some_and(|(size, root)| *size == tree.size() && *root == tree.root())
}

fn push_all(tree: &mut TiledTree, leaves: impl Iterator<Item = Hash>, completed: &mut Vec<UpperTile>) {
    let mut keep = keeping(completed);
    for leaf in leaves {
        let Ok(()) = tree.push(leaf, &mut keep);
    }
}

fn keeping(completed: &mut Vec<UpperTile>) -> impl FnMut(FullTile<'_>) -> Result<(), Infallible> {
    |tile| {
        if tile.level > 0 {
            completed.push(UpperTile { level: tile.level, index: tile.index, hashes: tile.hashes.to_vec() });
        }
        Ok(())
    }
}

/// The tree without the leaves of its open tile.
fn at_tile_start(tree: TiledTree) -> Option<TiledTree> {
    let start = tree.size() - tree.size() % TILE_WIDTH;
    if start == tree.size() {
        return Some(tree);
    }
    let mut open = tree.open_tiles().to_vec();
    open.first_mut()?.clear();
    TiledTree::from_open_tiles(start, open).ok()
}

fn with_whole_tile(tree: &TiledTree, root: &Hash) -> Option<(TiledTree, Vec<UpperTile>)> {
    if !tree.size().is_multiple_of(TILE_WIDTH) {
        return None;
    }
    let (mut tree, mut completed) = (tree.clone(), Vec::new());
    let Ok(()) = tree.push_tile(*root, &mut keeping(&mut completed));
    Some((tree, completed))
}
