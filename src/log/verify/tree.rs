//! One log: its events against its leaves, its tiles against each other, its anchors against their roots.
//!
//! Owns the walk over a log's tiles, and what is said of each. Who is to blame where they contradict each other, the audit
//! of agd-core decides. Promises that no leaf, tile or anchor between where it begins and the log's end goes unlooked at
//! without a word. Never looks at another log.

use crate::error::Result;
use crate::log::events::Event;
use crate::log::record::EventKey;
use crate::log::verify::complete::{NAMED, Tally};
use crate::log::verify::leaves::{Leaf, Leaves};
use crate::log::verify::platform::Recorded;
use crate::log::verify::progress::Progress;
use crate::log::verify::rows::{Anchor, Anchors, LogRow, TileRow, Tiles, View};
use agd_core::audit::{Audit, Span, UpperTile};
use agd_core::{CompactRange, Hash, TILE_WIDTH, entry, tile};
use std::collections::BTreeMap;
use std::ops::Range;

/// What all logs are read with.
pub struct Tools {
    /// agd.tile
    pub tiles: Tiles,
    /// agd.checkpoint
    pub anchors: Anchors,
    /// agd.event and agd.transaction
    pub leaves: Leaves,
}

impl Tools {
    /// Readers under the view's snapshot.
    pub fn open(view: &View) -> Result<Self> {
        Ok(Tools { tiles: Tiles::open(view)?, anchors: Anchors::open(view)?, leaves: Leaves::open(view)? })
    }
}

/// What is wrong with one thing: the first in words, and how many more.
#[derive(Default)]
pub struct Problems {
    first: Option<String>,
    more: u64,
}

impl Problems {
    /// One problem more.
    pub fn add(&mut self, problem: String) {
        if self.first.is_none() {
            self.first = Some(problem);
        } else {
            self.more += 1;
        }
    }

    /// So many problems more, for whose words there is no room.
    pub fn add_silent(&mut self, number: u64) {
        self.more += number;
    }

    /// Nothing is wrong.
    pub fn none(&self) -> bool {
        self.first.is_none()
    }

    /// In words; None: nothing is wrong.
    pub fn text(&self) -> Option<String> {
        let first = self.first.clone()?;
        Some(if self.more == 0 { first } else { format!("{first} (and {} more)", self.more) })
    }
}

/// A leaf whose event is not what the log holds, as far as one log can tell.
pub struct Suspect {
    /// Which leaf.
    pub leaf: u64,
    /// The event that its tile names.
    pub key: EventKey,
    /// The leaf's hash, which its anchors confirm.
    pub hash: Hash,
    /// What the key leads to.
    pub found: Leaf,
    /// An anchor covers the leaf.
    pub anchored: bool,
}

impl Suspect {
    /// In words, when nothing else explains it.
    pub fn text(&self) -> String {
        let Suspect { leaf, key, .. } = self;
        match self.found {
            Leaf::NoEvent => format!("event {key} is missing: it was leaf {leaf}"),
            Leaf::NoTransaction => {
                format!("the record of transaction {} is missing: its event {key} was leaf {leaf}", key.xact_id)
            }
            Leaf::Unreadable => {
                format!("event {key} was changed: it has no canonical form any more, and was leaf {leaf}")
            }
            Leaf::Is(_) if self.anchored => format!("event {key} was changed: it does not hash to its leaf {leaf}"),
            Leaf::Is(_) => format!(
                "event {key} does not hash to its leaf {leaf}: it was changed, or the leaf was, which no anchor covers yet"
            ),
        }
    }
}

/// How far an earlier verification got with a log.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Reached {
    /// Leaves.
    pub size: u64,
    /// Their compact range.
    pub nodes: Vec<Hash>,
}

impl Reached {
    /// The root over them; None where the range is not one of so many leaves.
    pub fn root(&self) -> Option<Hash> {
        CompactRange::from_parts(self.size, self.nodes.clone()).ok().map(|range| range.root())
    }
}

/// Who else wants to know of a log's leaves and anchors, from one of them on.
pub struct Listeners<'a> {
    /// The first leaf they want to know of.
    pub from: u64,
    /// The newest anchor that they know.
    pub anchored: u64,
    /// Counts them.
    pub tally: Option<&'a mut Tally>,
    /// Reads them, where it is the platform log.
    pub recorded: Option<&'a mut Recorded>,
}

/// What was found in one log.
#[derive(Default)]
pub struct Findings {
    /// The row of agd.log contradicts itself: nothing else was verified.
    pub log: Option<String>,
    /// The first leaf that was looked at.
    pub from: u64,
    /// Leaves looked at.
    pub scanned: u64,
    /// Events that are not what the log holds.
    pub events: Problems,
    /// Such events that may have another explanation.
    pub suspects: Vec<Suspect>,
    /// How many more there are.
    pub more_suspects: u64,
    /// Tiles.
    pub tiles: Problems,
    /// Anchors.
    pub anchors: Problems,
    /// How many of them were looked at.
    pub anchor_count: u64,
    /// All anchors from those on that the listeners want to know of, or from those looked at, if these are more.
    pub new_anchors: Vec<Anchor>,
    /// The newest anchor's size; 0: there is none.
    pub newest_anchor: u64,
    /// The whole log, to go on from the next time.
    pub end: Reached,
}

impl Findings {
    /// Nothing is wrong with the log itself.
    pub fn hold(&self) -> bool {
        self.log.is_none() && self.events.none() && self.suspects.is_empty() && self.tiles.none() && self.anchors.none()
    }

    fn suspect(&mut self, suspect: Suspect) {
        if self.suspects.len() < NAMED {
            self.suspects.push(suspect);
        } else {
            self.more_suspects += 1;
        }
    }
}

/// How a tile of level 0 is called.
pub fn tile_name(size: u64, index: u64) -> String {
    if index == size / TILE_WIDTH { "the open tile in agd.log".into() } else { format!("tile {index}") }
}

/// A log's tiles of level 0, one after the other, the open one last.
struct Walk<'a> {
    row: &'a LogRow,
    open: &'a [Vec<Hash>],
    ahead: Option<TileRow>,
}

impl<'a> Walk<'a> {
    fn begin(tiles: &mut Tiles, row: &'a LogRow, open: &'a [Vec<Hash>], leaf: u64) -> Self {
        tiles.begin(row.log_id, leaf / TILE_WIDTH);
        Walk { row, open, ahead: tiles.next() }
    }

    /// None: there is no such tile. Indexes must grow.
    fn tile(&mut self, tiles: &mut Tiles, index: u64) -> Option<TileRow> {
        if index == self.row.size / TILE_WIDTH {
            let hashes = self.open.first().cloned().unwrap_or_default();
            return Some(TileRow { index, hashes, keys: self.row.open_keys(), stamps: self.row.open_stamps });
        }
        while self.ahead.as_ref().is_some_and(|ahead| ahead.index < index) {
            self.ahead = tiles.next();
        }
        let found = self.ahead.take_if(|ahead| ahead.index == index);
        if found.is_some() {
            self.ahead = tiles.next();
        }
        found
    }
}

/// The stored tiles of level 1, which say what the tiles below them should be.
struct Above<'a> {
    row: &'a LogRow,
    open: &'a [Vec<Hash>],
    present: Option<(u64, Option<Vec<Hash>>)>,
}

impl Above<'_> {
    fn is_open(&self, index: u64) -> bool {
        index >> 8 == self.row.size >> 16
    }

    fn name(&self, index: u64) -> String {
        if self.is_open(index) {
            "the open tile of level 1 in agd.log".into()
        } else {
            format!("tile {} of level 1", index >> 8)
        }
    }

    /// What is held for a full tile of level 0.
    fn hash(&mut self, tiles: &mut Tiles, index: u64, problems: &mut Problems) -> Option<Hash> {
        let position = (index % TILE_WIDTH) as usize;
        if self.is_open(index) {
            return self.open.get(1)?.get(position).copied();
        }
        if self.present.as_ref().is_none_or(|(parent, _)| *parent != index >> 8) {
            let hashes = tiles.hashes(self.row.log_id, 1, index >> 8);
            match &hashes {
                None => problems.add(format!("{} is missing", self.name(index))),
                Some(hashes) if hashes.len() as u64 != TILE_WIDTH => {
                    problems.add(format!("{} holds {} hashes, not 256", self.name(index), hashes.len()));
                }
                Some(_) => {}
            }
            self.present = Some((index >> 8, hashes));
        }
        self.present.as_ref()?.1.as_ref()?.get(position).copied()
    }
}

/// Verifies one log. `verified`: where an earlier verification got to, if it is believed.
pub fn verify_log(
    tools: &mut Tools,
    row: &LogRow,
    verified: Option<&Reached>,
    mut listeners: Listeners<'_>,
    progress: &mut Progress,
) -> Result<Findings> {
    progress.log(row.log_id);
    let mut found = Findings { log: row.problem(), ..Findings::default() };
    if found.log.is_some() {
        found.new_anchors = tools.anchors.above(row.log_id, listeners.anchored);
        glance_at_all(tools, row, &mut listeners)?;
        return Ok(found);
    }
    let open = row.open();
    let (mut audit, remembered) = begin(tools, row, &open, verified, &mut found);
    let from = audit.tree().size();
    found.from = from;
    glance(tools, row, &open, from, &mut listeners)?;

    // The last one looked at may have come after that, at the very size where the earlier verification ended.
    found.new_anchors = tools.anchors.above(row.log_id, from.saturating_sub(1).min(listeners.anchored));
    let present = &found.new_anchors[..found.new_anchors.partition_point(|anchor| anchor.size <= row.size)];
    found.newest_anchor = present.last().map_or(listeners.anchored, |anchor| anchor.size);
    let skipped = present.partition_point(|anchor| anchor.size <= from);
    found.anchor_count = (present.len() - skipped) as u64;
    let mut roots: Vec<(u64, Hash)> = present[skipped..].iter().map(|anchor| (anchor.size, anchor.root)).collect();
    let anchored = found.newest_anchor;
    if let Some(wrong) = present.iter().find(|anchor| anchor.size == from && anchor.root != audit.tree().root()) {
        found.anchors.add(another_root(wrong.size));
    }
    judge_sizes(&mut found, row, from, &roots);
    // What an earlier verification ended with is one more witness, where it is not the beginning of this one.
    let witness = remembered.filter(|(size, _)| !roots.iter().any(|(anchor, _)| anchor == size));
    if let Some(witness) = witness {
        roots.push(witness);
        roots.sort_unstable_by_key(|(size, _)| *size);
    }

    let mut ends = Ends::default();
    let mut walk = Walk::begin(&mut tools.tiles, row, &open, from);
    let mut above = Above { row, open: &open, present: None };
    let mut at = from;
    while at < row.size {
        let index = at / TILE_WIDTH;
        let start = index * TILE_WIDTH;
        let end = row.size.min(start + TILE_WIDTH);
        let full = end == start + TILE_WIDTH;
        let name = tile_name(row.size, index);
        let roots = &roots[roots.partition_point(|(size, _)| *size <= at)..];
        let roots = &roots[..roots.partition_point(|(size, _)| *size <= end)];
        let held = if full { above.hash(&mut tools.tiles, index, &mut found.tiles) } else { None };
        let tile = match walk.tile(&mut tools.tiles, index) {
            Some(tile) if tile.hashes.len() as u64 == end - start && tile.keys.len() as u64 == end - start => tile,
            lost => {
                let what = lost.map_or("is missing".into(), |tile| {
                    format!("holds {} hashes and {} keys, not {}", tile.hashes.len(), tile.keys.len(), end - start)
                });
                let Some(verdict) = audit.lost_tile(held.as_ref(), roots) else {
                    found
                        .tiles
                        .add(format!("{name} {what}, and nothing tells its root: nothing behind it was verified"));
                    break;
                };
                found.tiles.add(format!("{name} {what}"));
                ends.unread.push(at..end);
                compare_completed(tools, row, &verdict.completed, &mut found);
                progress.step(end - at);
                at = end;
                continue;
            }
        };
        let part = (at - start) as usize..(end - start) as usize;
        let (stored, keys) = (&tile.hashes[part.clone()], &tile.keys[part]);
        let mut stamps: Option<(i64, i64)> = None;
        listeners.count(row.log_id, at, keys);
        let leaves = read_leaves(&mut tools.leaves, &mut listeners, at, keys, stored, |position, hash, event| {
            let (low, high) = stamps.unwrap_or((event.stamp, event.stamp));
            stamps = Some((low.min(event.stamp), high.max(event.stamp)));
            if row.tenant.is_some() && event.action() == entry::LOG_CLOSE {
                ends.closed.insert(at + position as u64 + 1, keys[position]);
            }
            if event.tenant != row.tenant.as_deref() && *hash == stored[position] {
                let (key, leaf) = (keys[position], at + position as u64);
                found
                    .tiles
                    .add(format!("{name} was changed: its leaf {leaf} is event {key}, which is not of this log"));
            }
        })?;
        let computed: Vec<Option<Hash>> = leaves.iter().map(|leaf| leaf.hash()).collect();
        let verdict = audit.span(&Span { stored, computed: &computed, above: held.as_ref(), anchors: roots });
        for leaf in &verdict.events {
            let position = (leaf - at) as usize;
            found.suspect(Suspect {
                leaf: *leaf,
                key: keys[position],
                hash: stored[position],
                found: leaves[position],
                anchored: *leaf < anchored,
            });
        }
        for leaf in &verdict.leaves {
            let key = keys[(leaf - at) as usize];
            found.tiles.add(format!("{name} was changed: its hash of leaf {leaf} is not that of event {key}"));
        }
        if verdict.tile {
            found.tiles.add(format!(
                "{name} does not have the root that the tile above it and the anchor at size {end} hold: its leaves were \
                 changed together with their events, or put into another order"
            ));
        }
        if verdict.above {
            found.tiles.add(format!("{} was changed: it does not hold the root of tile {index}", above.name(index)));
        }
        for size in &verdict.anchors {
            found.anchors.add(match witness {
                Some((remembered, _)) if remembered == *size => {
                    format!("agd.verified holds another root at size {size} than the leaves have")
                }
                _ => another_root(*size),
            });
        }
        if verdict.holds() && !stamps_fit(tile.stamps, stamps, at == start) {
            found.tiles.add(format!("{name} was changed: it has other commit stamps than its events"));
        }
        compare_completed(tools, row, &verdict.completed, &mut found);
        progress.step(end - at);
        at = end;
    }
    found.scanned = at - from;
    ends.judge(&found.new_anchors, from, at, &mut found.anchors);
    if at == row.size {
        for (level, hashes) in audit.tree().open_tiles().iter().enumerate().skip(2) {
            if open.get(level) != Some(hashes) {
                found.tiles.add(format!("the open tile of level {level} in agd.log was changed"));
            }
        }
        let range = audit.tree().range();
        found.end = Reached { size: range.size(), nodes: range.nodes().to_vec() };
    }
    tiles_beyond(tools, row, &mut found);
    Ok(found)
}

/// Where the audit begins: the end of an earlier one, if what it ended with is still there. Else the first leaf; the earlier
/// end's size and root are then something to compare with.
fn begin(
    tools: &mut Tools,
    row: &LogRow,
    open: &[Vec<Hash>],
    verified: Option<&Reached>,
    found: &mut Findings,
) -> (Audit, Option<(u64, Hash)>) {
    let Some(Reached { size, nodes }) = verified.filter(|verified| verified.size > 0) else {
        return (Audit::new(), None);
    };
    // What cannot be read is not believed.
    let Ok(range) = CompactRange::from_parts(*size, nodes.clone()) else { return (Audit::new(), None) };
    if *size > row.size {
        found.tiles.add(format!("the log has {} leaves, and {size} were verified before", row.size));
        return (Audit::new(), None);
    }
    let mut earlier = Vec::new();
    for level in 0..8 {
        let width = tile::partial_width(*size, level) as usize;
        let index = size.checked_shr(8 * (level + 1)).unwrap_or(0);
        let hashes = if width == 0 {
            Some(Vec::new())
        } else if index == row.size.checked_shr(8 * (level + 1)).unwrap_or(0) {
            open.get(level as usize).cloned()
        } else {
            tools.tiles.hashes(row.log_id, level as u8, index)
        };
        earlier.extend(hashes.and_then(|hashes| hashes.get(..width).map(<[Hash]>::to_vec)));
    }
    match Audit::resume(*size, nodes, earlier) {
        Ok(Some(audit)) => (audit, None),
        _ => (Audit::new(), Some((*size, range.root()))),
    }
}

/// The sizes at which anchors stand, and do not.
fn judge_sizes(found: &mut Findings, row: &LogRow, from: u64, roots: &[(u64, Hash)]) {
    if let Some(beyond) = found.new_anchors.iter().map(|anchor| anchor.size).find(|size| *size > row.size) {
        found.anchors.add(format!("there is an anchor at size {beyond}, beyond the log's leaves"));
    }
    let mut sizes = roots.iter().map(|(size, _)| *size).filter(|size| size.is_multiple_of(TILE_WIDTH));
    let mut next = sizes.next();
    let mut due = (from / TILE_WIDTH + 1) * TILE_WIDTH;
    while due <= row.size {
        if next == Some(due) {
            next = sizes.next();
        } else {
            found.anchors.add(format!("the anchor at size {due} is missing"));
        }
        due += TILE_WIDTH;
    }
    // Whether a tail waits is known where the newest anchor is.
    let newest = found.newest_anchor;
    if newest < row.size && !row.is_open && (newest > 0 || from == 0) {
        found.anchors.add(format!(
            "no anchor covers the leaves from {newest} on, and agd.log says that none is due: there was one at size {}",
            row.size
        ));
    } else if newest == row.size && row.is_open {
        found
            .anchors
            .add(format!("agd.log says that an anchor is due, but the one at size {newest} covers all leaves"));
    }
}

/// Where the log's events close it.
#[derive(Default)]
struct Ends {
    /// By the size of the log that ends with them.
    closed: BTreeMap<u64, EventKey>,
    /// Leaves whose events nobody knows.
    unread: Vec<Range<u64>>,
}

impl Ends {
    /// Those of the anchors at sizes above `from` and up to `to` that are final, and no others, say so.
    fn judge(mut self, anchors: &[Anchor], from: u64, to: u64, found: &mut Problems) {
        let unread = |size: u64| self.unread.iter().any(|leaves| leaves.contains(&(size - 1)));
        for anchor in anchors.iter().filter(|anchor| from < anchor.size && anchor.size <= to && !unread(anchor.size)) {
            let size = anchor.size;
            match (&anchor.final_by, self.closed.remove(&size)) {
                (Some(said), None) => {
                    found.add(format!(
                        "the anchor at size {size} is said to be final by {said}, which does not close the log"
                    ));
                }
                (said, Some(key)) if said.as_deref() != Some(&key.to_string()) => {
                    found.add(format!("the anchor at size {size} is final by event {key}, and does not say so"));
                }
                _ => {}
            }
        }
        for (size, key) in self.closed {
            found.add(format!("event {key} closes the log, and there is no anchor at size {size}"));
        }
    }
}

fn another_root(size: u64) -> String {
    format!("the anchor at size {size} has another root than the leaves")
}

fn stamps_fit(tile: (Option<i64>, Option<i64>), events: Option<(i64, i64)>, all: bool) -> bool {
    match (tile, events) {
        (_, None) => true,
        ((Some(first), Some(last)), Some((low, high))) if all => first == low && last == high,
        ((Some(first), Some(last)), Some((low, high))) => first <= low && last >= high,
        _ => false,
    }
}

/// Full tiles above level 1 against what is stored. (Those of level 1 are looked at hash by hash, from below.)
fn compare_completed(tools: &mut Tools, row: &LogRow, completed: &[UpperTile], found: &mut Findings) {
    for UpperTile { level, index, hashes } in completed.iter().filter(|tile| tile.level > 1) {
        match tools.tiles.hashes(row.log_id, *level, *index) {
            None => found.tiles.add(format!("tile {index} of level {level} is missing")),
            Some(stored) if stored != *hashes => found.tiles.add(format!("tile {index} of level {level} was changed")),
            Some(_) => {}
        }
    }
}

/// A tile that the log has no leaves for.
fn tiles_beyond(tools: &mut Tools, row: &LogRow, found: &mut Findings) {
    for level in 0..8u8 {
        let first = row.size.checked_shr(8 * (u32::from(level) + 1)).unwrap_or(0);
        if let Some(index) = tools.tiles.first_from(row.log_id, level, first) {
            found.tiles.add(format!("there is a tile {index} of level {level}, beyond the log's leaves"));
        }
    }
}

/// Reads the events of leaves, `each` and the listeners listening. What each key leads to.
fn read_leaves(
    reader: &mut Leaves,
    listeners: &mut Listeners<'_>,
    at: u64,
    keys: &[EventKey],
    stored: &[Hash],
    mut each: impl FnMut(usize, &Hash, &Event<'_>),
) -> Result<Vec<Leaf>> {
    let (from, recorded) = (listeners.from, &mut listeners.recorded);
    let leaves = reader.of(keys, |position, hash, event| {
        each(position, hash, event);
        let leaf = at + position as u64;
        if let Some(recorded) = recorded
            && leaf >= from
            && stored.get(position) == Some(hash)
        {
            recorded.see(Some(leaf), keys[position], event.action(), event.body());
        }
    })?;
    for (position, key) in keys.iter().enumerate() {
        let leaf = at + position as u64;
        if let Some(recorded) = recorded
            && leaf >= from
            && (leaves[position].hash().is_none() || leaves[position].hash().as_ref() != stored.get(position))
        {
            recorded.damaged(leaf, *key);
        }
    }
    Ok(leaves)
}

impl Listeners<'_> {
    fn count(&mut self, log_id: i32, at: u64, keys: &[EventKey]) {
        if let Some(tally) = &mut self.tally {
            for (leaf, key) in (at..).zip(keys).filter(|(leaf, _)| *leaf >= self.from) {
                tally.leaf(log_id, leaf, *key);
            }
        }
    }
}

/// Tells the listeners of leaves that are not verified again.
fn glance(tools: &mut Tools, row: &LogRow, open: &[Vec<Hash>], to: u64, listeners: &mut Listeners<'_>) -> Result<()> {
    let mut at = listeners.from;
    let mut walk = (at < to).then(|| Walk::begin(&mut tools.tiles, row, open, at));
    while let Some(walk) = walk.as_mut().filter(|_| at < to) {
        pgrx::check_for_interrupts!();
        let start = at - at % TILE_WIDTH;
        let end = to.min(start + TILE_WIDTH);
        if let Some(tile) = walk.tile(&mut tools.tiles, at / TILE_WIDTH) {
            let part = (at - start) as usize..(end - start) as usize;
            if let (Some(keys), Some(stored)) = (tile.keys.get(part.clone()), tile.hashes.get(part)) {
                listeners.count(row.log_id, at, keys);
                if listeners.recorded.is_some() {
                    read_leaves(&mut tools.leaves, listeners, at, keys, stored, |_, _, _| {})?;
                }
            }
        }
        at = end;
    }
    Ok(())
}

/// Tells the listeners of every leaf that is stored for a log whose row contradicts itself.
fn glance_at_all(tools: &mut Tools, row: &LogRow, listeners: &mut Listeners<'_>) -> Result<()> {
    let mut at = listeners.from - listeners.from % TILE_WIDTH;
    tools.tiles.begin(row.log_id, at / TILE_WIDTH);
    let open = row.open_hashes();
    let mut more = true;
    while more {
        pgrx::check_for_interrupts!();
        let tile = tools.tiles.next();
        more = tile.is_some();
        let (keys, stored) = tile.map_or_else(|| (row.open_keys(), open.clone()), |tile| (tile.keys, tile.hashes));
        listeners.count(row.log_id, at, &keys);
        if listeners.recorded.is_some() {
            read_leaves(&mut tools.leaves, listeners, at, &keys, &stored, |_, _, _| {})?;
        }
        at += TILE_WIDTH;
    }
    Ok(())
}

/// Tells the listeners of a whole log, verifying nothing.
pub fn listen(tools: &mut Tools, row: &LogRow, mut listeners: Listeners<'_>) -> Result<()> {
    if row.problem().is_some() {
        return glance_at_all(tools, row, &mut listeners);
    }
    glance(tools, row, &row.open(), row.size, &mut listeners)
}
