//! Tiles: the C2SP tlog-tiles geometry and a tree that emits full tiles.
//!
//! Owns which hash lies in which tile, the path of a tile, and [`TiledTree`], the state a sequencer keeps between
//! batches. Promises that every emitted tile is the one the specification defines, and one node hash per pushed leaf: a
//! completed tile's root comes from the compact range and is never hashed twice. It never stores a full tile and never
//! reads one back.

use std::fmt::Write as _;

use thiserror::Error;

use crate::merkle::{CompactRange, Hash, MAX_TREE_SIZE, MerkleError, perfect_root};

/// Hashes in a full tile.
pub const TILE_WIDTH: u64 = 256;

/// log2 of [`TILE_WIDTH`]: tree levels that one tile level spans.
pub const TILE_HEIGHT: u32 = 8;

/// A tile that has just become full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullTile<'a> {
    /// Tile level: 0 holds leaf hashes, level l holds roots of 256^l leaves.
    pub level: u8,
    /// Position among the tiles of that level.
    pub index: u64,
    /// Exactly 256 hashes, in order.
    pub hashes: &'a [Hash],
}

/// A Merkle tree with its partial tiles open, one per level.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TiledTree {
    range: CompactRange,
    /// `open[l]` holds floor(size / 256^l) mod 256 hashes; the highest level is never empty.
    open: Vec<Vec<Hash>>,
}

impl TiledTree {
    /// The empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up a tree of `size` leaves from its open tiles, level 0 first. Empty levels above the highest are allowed.
    ///
    /// The compact range is rebuilt from the open tiles.
    ///
    /// # Errors
    /// [`MerkleError::SizeOutOfRange`], or [`MerkleError::TileWidth`] when a level does not hold
    /// floor(size / 256^level) mod 256 hashes.
    pub fn from_open_tiles(size: u64, mut open: Vec<Vec<Hash>>) -> Result<Self, MerkleError> {
        if size > MAX_TREE_SIZE {
            return Err(MerkleError::SizeOutOfRange { size });
        }
        let levels = level_count(size);
        for level in 0..open.len().max(levels) {
            let expected = partial_width(size, level as u32);
            let got = open.get(level).map_or(0, Vec::len);
            if got as u64 != expected {
                return Err(MerkleError::TileWidth { size, level, expected, got });
            }
        }
        open.truncate(levels);
        // An open tile of width w is as many perfect subtrees as w has one bits, the largest first.
        let mut nodes = Vec::with_capacity(size.count_ones() as usize);
        for tile in open.iter().rev() {
            let mut rest = tile.as_slice();
            while !rest.is_empty() {
                let (subtree, tail) = rest.split_at(1 << rest.len().ilog2());
                nodes.extend(perfect_root(subtree));
                rest = tail;
            }
        }
        Ok(Self { range: CompactRange::from_parts(size, nodes)?, open })
    }

    /// Appends one leaf hash and hands every tile that it fills to `full`, lowest level first.
    ///
    /// # Errors
    /// Whatever `full` returned; the tree is then as it was before the call, so that the same leaf can be pushed again.
    /// Tiles that `full` took before it failed will be handed to it again, with the same bytes.
    pub fn push<E>(&mut self, leaf: Hash, full: &mut impl FnMut(FullTile<'_>) -> Result<(), E>) -> Result<(), E> {
        self.insert(0, leaf, full)
    }

    /// Appends 256 leaves of which only their tile's root is known; the size must be a multiple of 256. That tile itself
    /// is not handed to `full`.
    ///
    /// # Errors
    /// As [`TiledTree::push`].
    pub fn push_tile<E>(&mut self, root: Hash, full: &mut impl FnMut(FullTile<'_>) -> Result<(), E>) -> Result<(), E> {
        self.insert(1, root, full)
    }

    /// Appends one hash of a tile level.
    fn insert<E>(
        &mut self,
        bottom: usize,
        hash: Hash,
        full: &mut impl FnMut(FullTile<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { range, open } = self;
        let bottom_height = TILE_HEIGHT * bottom as u32;
        let mut top = bottom;
        append(open, bottom, hash);
        let (kept, merged) = range.merge(bottom_height, hash, |height, root| {
            if height % TILE_HEIGHT == 0 {
                top = (height / TILE_HEIGHT) as usize;
                append(open, top, *root);
            }
        });
        // A hash arrived at level l + 1 because the tile at level l became full: all tiles below `top` are full.
        for (level, hashes) in open.iter().enumerate().take(top).skip(bottom) {
            let index = range.size() >> (TILE_HEIGHT * (level as u32 + 1));
            if let Err(error) = full(FullTile { level: level as u8, index, hashes }) {
                for tile in open.iter_mut().take(top + 1).skip(bottom) {
                    tile.pop();
                }
                open.truncate(level_count(range.size()));
                return Err(error);
            }
        }
        for tile in open.iter_mut().take(top).skip(bottom) {
            tile.clear();
        }
        range.commit(bottom_height, kept, merged);
        Ok(())
    }

    /// The Merkle tree hash of all leaves so far.
    pub fn root(&self) -> Hash {
        self.range.root()
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.range.size()
    }

    /// The partial tile of each level, level 0 first; a level between can be empty, the highest never is.
    pub fn open_tiles(&self) -> &[Vec<Hash>] {
        &self.open
    }

    /// The compact range of the whole tree.
    pub fn range(&self) -> &CompactRange {
        &self.range
    }
}

fn append(open: &mut Vec<Vec<Hash>>, level: usize, hash: Hash) {
    while open.len() <= level {
        open.push(Vec::with_capacity(TILE_WIDTH as usize));
    }
    open[level].push(hash);
}

/// The root of a full tile's hashes; `None` unless there are 256 of them.
pub fn full_root(hashes: &[Hash]) -> Option<Hash> {
    if hashes.len() as u64 == TILE_WIDTH { perfect_root(hashes) } else { None }
}

/// floor(size / 256^level): how many hashes a tile level holds in a tree of `size` leaves.
fn hashes_at_level(size: u64, level: u32) -> u64 {
    size.checked_shr(TILE_HEIGHT.saturating_mul(level)).unwrap_or(0)
}

/// The width of the partial tile at `level` of a tree of `size` leaves: floor(size / 256^level) mod 256. Zero means
/// that there is no partial tile.
pub fn partial_width(size: u64, level: u32) -> u64 {
    hashes_at_level(size, level) % TILE_WIDTH
}

/// How many tile levels a tree of `size` leaves has.
fn level_count(size: u64) -> usize {
    (u64::BITS - size.leading_zeros()).div_ceil(TILE_HEIGHT) as usize
}

/// Why a path is not the path of a tile.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("not a tlog-tiles path: {path:?}")]
pub struct TilePathError {
    /// The path that was given, cut to 100 characters.
    pub path: String,
}

/// Which tile: level, position and how many hashes it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TileCoord {
    /// Tile level, 0 to 63. Entry bundles are counted as level 0.
    pub level: u8,
    /// Position among the tiles of that level.
    pub index: u64,
    /// Hashes (or entries) in it, 1 to 256; 256 is a full tile.
    pub width: u16,
}

impl TileCoord {
    /// A full tile.
    pub fn full(level: u8, index: u64) -> Self {
        Self { level, index, width: TILE_WIDTH as u16 }
    }

    /// The tile at this position in a tree of `size` leaves, as wide as that tree makes it. `None` when it is empty.
    pub fn in_tree(level: u8, index: u64, size: u64) -> Option<Self> {
        let hashes = hashes_at_level(size, u32::from(level));
        let before = index.checked_mul(TILE_WIDTH)?;
        let width = hashes.checked_sub(before)?.min(TILE_WIDTH);
        (width > 0).then_some(Self { level, index, width: width as u16 })
    }

    /// Whether it holds 256 hashes.
    pub fn is_full(&self) -> bool {
        u64::from(self.width) == TILE_WIDTH
    }

    /// The path of the hashes below a log's prefix: `tile/0/x001/x234/067`, with `.p/<width>` when partial.
    pub fn path(&self) -> String {
        self.path_under(&format!("tile/{}", self.level))
    }

    /// The path of the entry bundle that stands beside this level 0 tile: `tile/entries/x001/x234/067[.p/<width>]`.
    pub fn entries_path(&self) -> String {
        self.path_under("tile/entries")
    }

    fn path_under(&self, prefix: &str) -> String {
        let mut path = prefix.to_owned();
        // Groups of three digits, the highest first; a u64 has at most seven.
        let groups = self.index.checked_ilog10().unwrap_or(0) / 3;
        for group in (0..=groups).rev() {
            let digits = self.index / 1000_u64.pow(group) % 1000;
            let mark = if group == 0 { "" } else { "x" };
            let _ = write!(path, "/{mark}{digits:03}");
        }
        if !self.is_full() {
            let _ = write!(path, ".p/{}", self.width);
        }
        path
    }

    /// Reads what [`TileCoord::path`] writes, and nothing else.
    ///
    /// # Errors
    /// [`TilePathError`] for every other string: extra zeroes, a width of 0 or 256, a level above 63, an index above
    /// `u64::MAX`, a path of an entry bundle.
    pub fn parse(path: &str) -> Result<Self, TilePathError> {
        Self::parse_as(path, false)
    }

    /// Reads what [`TileCoord::entries_path`] writes, and nothing else. The level is 0.
    ///
    /// # Errors
    /// [`TilePathError`] as for [`TileCoord::parse`].
    pub fn parse_entries(path: &str) -> Result<Self, TilePathError> {
        Self::parse_as(path, true)
    }

    fn parse_as(path: &str, entries: bool) -> Result<Self, TilePathError> {
        let coord = Self::parse_loosely(path, entries).filter(|coord| {
            // Writing it again settles every question of leading zeroes and marks.
            path == if entries { coord.entries_path() } else { coord.path() }
        });
        coord.ok_or_else(|| TilePathError { path: path.chars().take(100).collect() })
    }

    fn parse_loosely(path: &str, entries: bool) -> Option<Self> {
        let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let level = match entries {
            true => (level == "entries").then_some(0)?,
            false => level.parse().ok().filter(|level| *level <= 63)?,
        };
        let (number, width) = match rest.split_once(".p/") {
            Some((number, width)) => (number, width.parse().ok().filter(|w| (1..TILE_WIDTH as u16).contains(w))?),
            None => (rest, TILE_WIDTH as u16),
        };
        let mut index = 0_u64;
        for group in number.split('/') {
            let digits: u16 = group.trim_start_matches('x').parse().ok().filter(|digits| *digits < 1000)?;
            index = index.checked_mul(1000)?.checked_add(u64::from(digits))?;
        }
        Some(Self { level, index, width })
    }
}

/// Every tile of a tree of `size` leaves, level by level from 0, left to right, the partial tile of a level last.
pub fn tiles_for_size(size: u64) -> impl Iterator<Item = TileCoord> {
    tiles_between(0, size)
}

/// Every tile that a tree of `to` leaves has and a tree of `from` leaves has not, or has narrower; in the order of
/// [`tiles_for_size`]. Nothing when `to` ≤ `from`.
pub fn tiles_between(from: u64, to: u64) -> impl Iterator<Item = TileCoord> {
    let levels = if to > from { level_count(to) } else { 0 };
    (0..levels as u32).flat_map(move |level| {
        let (old, new) = (hashes_at_level(from, level), hashes_at_level(to, level));
        let range = if old == new { 0..0 } else { old / TILE_WIDTH..new.div_ceil(TILE_WIDTH) };
        range.filter_map(move |index| TileCoord::in_tree(level as u8, index, to))
    })
}
