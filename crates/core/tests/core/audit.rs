use std::collections::BTreeMap;
use std::convert::Infallible;

use agd_core::audit::{Audit, Span, UpperTile, Verdict};
use agd_core::merkle::Hash;
use agd_core::tile::{FullTile, TILE_WIDTH, TiledTree};

use crate::{leaf, leaves};

/// A log as a database stores it; tests change it and see what is said.
struct Stored {
    events: Vec<Option<Hash>>,
    leaves: Vec<Hash>,
    /// Level 1: the root of each full tile.
    level_1: Vec<Hash>,
    anchors: BTreeMap<u64, Hash>,
    /// Tiles of level 0 that are gone.
    lost: Vec<u64>,
}

impl Stored {
    /// With anchors at every multiple of 256, at the end, and at some sizes between.
    fn new(size: u64) -> Self {
        let mut tree = TiledTree::new();
        let (mut level_1, mut anchors) = (Vec::new(), BTreeMap::new());
        for index in 0..size {
            let mut full = |tile: FullTile<'_>| {
                if tile.level == 1 {
                    level_1.extend_from_slice(tile.hashes);
                }
                Ok::<(), Infallible>(())
            };
            tree.push(leaf(index), &mut full).unwrap();
            let size_now = tree.size();
            if size_now.is_multiple_of(TILE_WIDTH) || size_now == size || [100, 300, 301, 700].contains(&size_now) {
                anchors.insert(size_now, tree.root());
            }
        }
        level_1.extend(tree.open_tiles().get(1).into_iter().flatten());
        let leaves = leaves(size);
        Self { events: leaves.iter().copied().map(Some).collect(), leaves, level_1, anchors, lost: Vec::new() }
    }

    /// The verdicts of all tiles from a start on, and the audit.
    fn audit_from(&self, mut audit: Audit) -> (Verdict, Audit) {
        let mut all = Verdict::default();
        let size = self.leaves.len() as u64;
        while audit.tree().size() < size {
            let first = audit.tree().size();
            let end = size.min(first - first % TILE_WIDTH + TILE_WIDTH);
            let anchors: Vec<_> = self.anchors.range(first + 1..=end).map(|(size, root)| (*size, *root)).collect();
            let full = end.is_multiple_of(TILE_WIDTH);
            let above = self.level_1.get((first / TILE_WIDTH) as usize).filter(|_| full);
            let range = first as usize..end as usize;
            let verdict = if self.lost.contains(&(first / TILE_WIDTH)) {
                let Some(verdict) = audit.lost_tile(above, &anchors) else { break };
                verdict
            } else {
                let (stored, computed) = (&self.leaves[range.clone()], &self.events[range]);
                audit.span(&Span { stored, computed, above, anchors: &anchors })
            };
            all.events.extend(verdict.events);
            all.leaves.extend(verdict.leaves);
            all.tile |= verdict.tile;
            all.above |= verdict.above;
            all.anchors.extend(verdict.anchors);
            all.completed.extend(verdict.completed);
        }
        (all, audit)
    }

    /// What is said of the whole log, which must be read to its end and come to the right root.
    fn verdict(&self) -> Verdict {
        let (mut verdict, audit) = self.audit_from(Audit::new());
        let right = Stored::new(self.leaves.len() as u64);
        assert_eq!(audit.tree().size(), self.leaves.len() as u64);
        assert_eq!(Some(&audit.tree().root()), right.anchors.values().last(), "the audit went on with something wrong");
        verdict.completed.clear();
        verdict
    }
}

fn other() -> Hash {
    leaf(999_999_999)
}

#[test]
fn what_holds_passes_and_gives_the_tiles_above() {
    for size in [0, 1, 99, 100, 255, 256, 257, 300, 512, 1000, 66_000] {
        let (verdict, audit) = Stored::new(size).audit_from(Audit::new());
        assert!(verdict.holds(), "{size}: {verdict:?}");
        assert_eq!(audit.tree().size(), size);
        let expected: &[(u8, u64)] = if size > 65_536 { &[(1, 0)] } else { &[] };
        let completed: Vec<_> = verdict.completed.iter().map(|tile| (tile.level, tile.index)).collect();
        assert_eq!(completed, expected);
        for UpperTile { hashes, .. } in verdict.completed {
            assert_eq!(hashes, Stored::new(size).level_1[..256]);
        }
    }
}

#[test]
fn each_single_damage_is_blamed_on_what_was_damaged() {
    for size in [256, 300, 301, 512, 1000] {
        let whole = || Stored::new(size);
        for index in [0, 99, 100, 255, 299, size - 1].into_iter().filter(|index| *index < size) {
            let only = |verdict: Verdict, expected: Verdict| assert_eq!(verdict, expected, "leaf {index} of {size}");
            let at = index as usize;

            let mut log = whole();
            log.events[at] = Some(other());
            only(log.verdict(), Verdict { events: vec![index], ..Verdict::default() });

            let mut log = whole();
            log.events[at] = None;
            only(log.verdict(), Verdict { events: vec![index], ..Verdict::default() });

            let mut log = whole();
            log.leaves[at] = other();
            only(log.verdict(), Verdict { leaves: vec![index], ..Verdict::default() });

            // The leaf and its event alike, in a full tile: the tile above and the anchor at its end agree against them.
            if index < size - size % TILE_WIDTH {
                let mut log = whole();
                (log.events[at], log.leaves[at]) = (Some(other()), other());
                only(log.verdict(), Verdict { tile: true, ..Verdict::default() });
            }
        }
        for anchor in whole().anchors.into_keys() {
            let mut log = whole();
            log.anchors.insert(anchor, other());
            assert_eq!(log.verdict(), Verdict { anchors: vec![anchor], ..Verdict::default() }, "{anchor} of {size}");
        }
        for tile in 0..size / TILE_WIDTH {
            let mut log = whole();
            log.level_1[tile as usize] = other();
            assert_eq!(log.verdict(), Verdict { above: true, ..Verdict::default() }, "tile {tile} of {size}");

            let mut log = whole();
            log.lost.push(tile);
            assert_eq!(log.verdict(), Verdict::default(), "a lost tile can be passed over");
        }
    }
}

#[test]
fn leaves_in_another_order_are_the_tiles_fault() {
    let mut log = Stored::new(600);
    log.leaves.swap(300, 301);
    log.events.swap(300, 301);
    assert_eq!(log.verdict(), Verdict { tile: true, ..Verdict::default() });
    // A tile of its own, and an event: each is named.
    log.events[20] = Some(other());
    assert_eq!(log.verdict(), Verdict { tile: true, events: vec![20], ..Verdict::default() });
}

#[test]
fn events_and_leaves_of_one_tile_are_told_apart() {
    let mut log = Stored::new(1000);
    for index in [600, 603, 605] {
        log.events[index] = Some(other());
    }
    log.events[601] = None;
    for index in [604, 609] {
        log.leaves[index] = other();
    }
    let expected = Verdict { events: vec![600, 601, 603, 605], leaves: vec![604, 609], ..Verdict::default() };
    assert_eq!(log.verdict(), expected);
    // Seven are too many to be told apart. The tile above is asked then: the tile is wrong, and so are events.
    log.leaves[610] = other();
    let verdict = log.verdict();
    assert!(verdict.tile && verdict.anchors.is_empty() && verdict.leaves.is_empty(), "{verdict:?}");
    assert_eq!(verdict.events, [600, 601, 603, 604, 605, 609, 610]);
    // A hundred events are not, when the tile is right.
    let mut log = Stored::new(1000);
    log.events[520..620].fill(Some(other()));
    assert_eq!(log.verdict(), Verdict { events: (520..620).collect(), ..Verdict::default() });
    let mut log = Stored::new(1000);
    log.leaves[520..620].fill(other());
    assert_eq!(log.verdict(), Verdict { leaves: (520..620).collect(), ..Verdict::default() });
}

#[test]
fn damage_at_the_end_of_a_level_1_tile() {
    let mut log = Stored::new(65_536 + 10);
    let last = 65_535;
    (log.events[last], log.leaves[last]) = (Some(other()), other());
    let (verdict, audit) = log.audit_from(Audit::new());
    assert!(verdict.tile && verdict.events.is_empty() && verdict.anchors.is_empty(), "{verdict:?}");
    assert_eq!(audit.tree().size(), 65_546);
    assert_eq!(verdict.completed, [UpperTile { level: 1, index: 0, hashes: log.level_1[..256].to_vec() }]);

    let mut log = Stored::new(65_536 + 10);
    log.level_1[255] = other();
    let (verdict, _) = log.audit_from(Audit::new());
    assert!(verdict.above && !verdict.tile && verdict.anchors.is_empty(), "{verdict:?}");
}

#[test]
fn when_only_the_anchors_are_left_they_stand_against_the_rest() {
    // Event, leaf and the tile above: whoever changes all three has every later anchor against him.
    let mut log = Stored::new(1000);
    (log.events[300], log.leaves[300]) = (Some(other()), other());
    let mut tree = TiledTree::new();
    for leaf in &log.leaves[..512] {
        tree.push(*leaf, &mut |_| Ok::<(), Infallible>(())).unwrap();
    }
    log.level_1[1] = tree.open_tiles()[1][1];
    let (verdict, _) = log.audit_from(Audit::new());
    assert_eq!(verdict.anchors, [301, 512, 700, 768, 1000]);
    assert!(verdict.events.is_empty() && verdict.leaves.is_empty() && !verdict.tile && !verdict.above);
}

#[test]
fn an_audit_goes_on_where_another_one_ended() {
    let log = Stored::new(1000);
    for size in [0, 1, 100, 255, 256, 257, 511, 512, 1000] {
        let mut first = Stored::new(1000);
        first.leaves.truncate(size as usize);
        let (verdict, audit) = first.audit_from(Audit::new());
        assert!(verdict.holds());
        let (nodes, open) = (audit.tree().range().nodes().to_vec(), audit.tree().open_tiles().to_vec());
        let resumed = Audit::resume(size, &nodes, open.clone()).unwrap().expect("these are its tiles");
        let (verdict, end) = log.audit_from(resumed.clone());
        assert!(verdict.holds(), "from {size}: {verdict:?}");
        assert_eq!(Some(&end.tree().root()), log.anchors.get(&1000));

        // Damage in the tile that the first one ended in, behind it.
        let mut damaged = Stored::new(1000);
        let index = (size as usize + 1).min(999);
        (damaged.events[index], damaged.leaves[index]) = (Some(other()), other());
        if size < 768 {
            let (verdict, _) = damaged.audit_from(resumed);
            assert_eq!(verdict, Verdict { tile: true, completed: vec![], ..Verdict::default() }, "from {size}");
        }
        // Open tiles that were changed since.
        for (level, tile) in open.iter().enumerate() {
            for position in 0..tile.len() {
                let mut open = open.clone();
                open[level][position] = other();
                assert!(Audit::resume(size, &nodes, open).unwrap().is_none(), "level {level}, hash {position}");
            }
        }
        assert!(Audit::resume(size + 1, &nodes, open).is_err(), "tiles of another size");
    }
}

#[test]
fn lists_of_any_length_are_taken() {
    let log = Stored::new(600);
    let mut audit = Audit::new();
    let span = Span { stored: &log.leaves, computed: &log.events[..400], above: None, anchors: &[(9_999, other())] };
    assert!(audit.span(&span).holds());
    assert_eq!(audit.tree().size(), 256, "to the end of the tile");
    assert_eq!(audit.lost_tile(None, &[]), None);
    assert_eq!(audit.lost_tile(Some(&other()), &[(512, other())]), None);
    assert_eq!(audit.tree().size(), 256);
}
