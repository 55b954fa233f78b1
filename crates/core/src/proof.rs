//! Inclusion and consistency proofs: RFC 6962 §2.1.1 and §2.1.2 to make them, RFC 9162 §2.1.3.2 and §2.1.4.2 to check
//! them.
//!
//! Owns both directions and the reader that takes tree hashes out of tile bytes. Promises that a proof it makes is
//! accepted by any verifier, and that its own verifiers accept nothing but the exact number of hashes. It never trusts
//! the reader: a wrong tile gives a proof that fails, not a panic.

use std::cell::RefCell;
use std::collections::BTreeMap;

use thiserror::Error;

use crate::merkle::{
    HASH_SIZE, Hash, MAX_TREE_SIZE, MerkleError, empty_root, fold_right, node_hash, perfect_root, split_point,
};
use crate::tile::{TILE_HEIGHT, TILE_WIDTH, TileCoord};

/// Where a proof's hashes come from.
pub trait HashReader {
    /// What can go wrong in a read.
    type Error;

    /// The root of the perfect subtree of height `level` (2^level leaves) at position `index`: leaves
    /// index · 2^level up to (index + 1) · 2^level.
    ///
    /// # Errors
    /// When the subtree cannot be read or is not wholly in the tree.
    fn subtree(&self, level: u8, index: u64) -> Result<Hash, Self::Error>;
}

/// Why a proof could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProofError<E> {
    /// The reader failed.
    #[error("cannot read the tree: {0}")]
    Read(E),
    /// There is no such proof.
    #[error(transparent)]
    Merkle(MerkleError),
}

/// The root of the first `size` leaves.
///
/// # Errors
/// [`ProofError::Read`], or a size above [`MAX_TREE_SIZE`].
pub fn tree_root<R: HashReader>(r: &R, size: u64) -> Result<Hash, ProofError<R::Error>> {
    check_size(size)?;
    range_root(r, 0, size)
}

/// The inclusion proof `PATH(index, D[size])` of RFC 6962 §2.1.1: sibling hashes from the leaf to the root.
///
/// # Errors
/// [`ProofError::Read`], [`MerkleError::IndexOutOfRange`] when `index` ≥ `size`, [`MerkleError::SizeOutOfRange`].
pub fn inclusion_proof<R: HashReader>(r: &R, index: u64, size: u64) -> Result<Vec<Hash>, ProofError<R::Error>> {
    check_size(size)?;
    if index >= size {
        return Err(ProofError::Merkle(MerkleError::IndexOutOfRange { level: 0, index, size }));
    }
    let mut path = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let middle = start + split_point(end - start);
        if index < middle {
            path.push(range_root(r, middle, end)?);
            end = middle;
        } else {
            path.push(range_root(r, start, middle)?);
            start = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// The consistency proof `PROOF(from, D[to])` of RFC 6962 §2.1.2. Empty when `from` is 0 or equals `to`.
///
/// # Errors
/// [`ProofError::Read`], [`MerkleError::SizesNotOrdered`], [`MerkleError::SizeOutOfRange`].
pub fn consistency_proof<R: HashReader>(r: &R, from: u64, to: u64) -> Result<Vec<Hash>, ProofError<R::Error>> {
    check_size(to)?;
    if from > to {
        return Err(ProofError::Merkle(MerkleError::SizesNotOrdered { from, to }));
    }
    let mut path = Vec::new();
    if from == 0 || from == to {
        return Ok(path);
    }
    let (mut start, mut end) = (0, to);
    while end != from {
        let middle = start + split_point(end - start);
        if from <= middle {
            path.push(range_root(r, middle, end)?);
            end = middle;
        } else {
            path.push(range_root(r, start, middle)?);
            start = middle;
        }
    }
    // The verifier knows the old root: it need not be told when the old tree is itself one perfect subtree.
    if start != 0 {
        path.push(range_root(r, start, end)?);
    }
    path.reverse();
    Ok(path)
}

fn check_size<E>(size: u64) -> Result<(), ProofError<E>> {
    if size > MAX_TREE_SIZE {
        return Err(ProofError::Merkle(MerkleError::SizeOutOfRange { size }));
    }
    Ok(())
}

/// `MTH(D[start:end])` where `start` is a multiple of the smallest power of two ≥ end − start, as in every split of
/// RFC 6962.
fn range_root<R: HashReader>(r: &R, start: u64, end: u64) -> Result<Hash, ProofError<R::Error>> {
    let mut nodes = Vec::new();
    let mut at = start;
    while at < end {
        let height = (end - at).ilog2();
        nodes.push(r.subtree(height as u8, at >> height).map_err(ProofError::Read)?);
        at += 1 << height;
    }
    Ok(fold_right(&nodes))
}

/// Checks that `leaf` is leaf number `index` of the tree of `size` leaves with this `root` (RFC 9162 §2.1.3.2).
///
/// The size is bound to the root by the checkpoint that holds both, not by the path: take them from one checkpoint.
///
/// # Errors
/// [`MerkleError::IndexOutOfRange`], [`MerkleError::PathLength`], [`MerkleError::RootMismatch`].
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, path: &[Hash], root: &Hash) -> Result<(), MerkleError> {
    if index >= size {
        return Err(MerkleError::IndexOutOfRange { level: 0, index, size });
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in path {
        if last == 0 {
            return Err(MerkleError::PathLength);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            skip_lone_levels(&mut node, &mut last);
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(MerkleError::PathLength);
    }
    if hash != *root {
        return Err(MerkleError::RootMismatch);
    }
    Ok(())
}

/// Checks that the tree of `to` leaves with root `to_root` is a continuation of the tree of `from` leaves with root
/// `from_root` (RFC 9162 §2.1.4.2).
///
/// Every tree continues the empty tree: for `from` = 0 the path must be empty and `from_root` must be the empty root.
/// For `from` = `to` the path must be empty and the roots equal.
///
/// # Errors
/// [`MerkleError::SizesNotOrdered`], [`MerkleError::PathLength`], [`MerkleError::RootMismatch`].
pub fn verify_consistency(
    from: u64,
    from_root: &Hash,
    to: u64,
    to_root: &Hash,
    path: &[Hash],
) -> Result<(), MerkleError> {
    if from > to {
        return Err(MerkleError::SizesNotOrdered { from, to });
    }
    if from == 0 || from == to {
        if !path.is_empty() {
            return Err(MerkleError::PathLength);
        }
        let expected = if from == 0 { empty_root() } else { *to_root };
        // An empty tree has one root only, on either side.
        if *from_root != expected || (to == 0 && *to_root != expected) {
            return Err(MerkleError::RootMismatch);
        }
        return Ok(());
    }
    let (first, rest) = match from.is_power_of_two() {
        true if path.is_empty() => return Err(MerkleError::PathLength),
        true => (from_root, path),
        false => path.split_first().ok_or(MerkleError::PathLength)?,
    };
    let shift = (from - 1).trailing_ones();
    let (mut node, mut last) = ((from - 1) >> shift, (to - 1) >> shift);
    let (mut old, mut new) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(MerkleError::PathLength);
        }
        if node & 1 == 1 || node == last {
            old = node_hash(sibling, &old);
            new = node_hash(sibling, &new);
            skip_lone_levels(&mut node, &mut last);
        } else {
            new = node_hash(&new, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(MerkleError::PathLength);
    }
    if old != *from_root || new != *to_root {
        return Err(MerkleError::RootMismatch);
    }
    Ok(())
}

/// Climbs to the level below which the right edge has a left sibling: on the levels between, it has none and no hash.
fn skip_lone_levels(node: &mut u64, last: &mut u64) {
    while *node & 1 == 0 && *node != 0 {
        *node >>= 1;
        *last >>= 1;
    }
}

/// Why a subtree could not be taken out of tiles.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TileReadError<E> {
    /// The tile could not be fetched.
    #[error("tile {path}: {error}", path = .coord.path())]
    Fetch {
        /// The tile that was asked for.
        coord: TileCoord,
        /// What the source of tiles said.
        error: E,
    },
    /// The tile has the wrong number of bytes.
    #[error("tile {path} has {got} bytes, expected {expected}", path = .coord.path(), expected = usize::from(.coord.width) * HASH_SIZE)]
    Length {
        /// The tile that was asked for.
        coord: TileCoord,
        /// Bytes that came.
        got: usize,
    },
    /// A subtree that is not wholly in the tree was asked for.
    #[error(transparent)]
    Merkle(MerkleError),
}

/// A [`HashReader`] over the tiles of a tree of known size.
///
/// `fetch` is asked for each tile at most once, with the width that it has in this tree, and answers with its bytes
/// (width · 32). It may answer with a wider tile at the same place, as tlog-tiles lets partial tiles go once the full
/// one exists. The tiles are not checked against a root: verify the proof, or compare [`tree_root`].
pub struct TileHashReader<F> {
    size: u64,
    fetch: F,
    seen: RefCell<BTreeMap<(u8, u64), Vec<Hash>>>,
}

impl<F, E> TileHashReader<F>
where
    F: Fn(TileCoord) -> Result<Vec<u8>, E>,
{
    /// Reads the tree of `size` leaves through `fetch`.
    pub fn new(size: u64, fetch: F) -> Self {
        Self { size, fetch, seen: RefCell::new(BTreeMap::new()) }
    }

    fn load(&self, coord: TileCoord) -> Result<Vec<Hash>, TileReadError<E>> {
        let bytes = (self.fetch)(coord).map_err(|error| TileReadError::Fetch { coord, error })?;
        let (hashes, rest) = bytes.as_chunks::<HASH_SIZE>();
        let widths = usize::from(coord.width)..=TILE_WIDTH as usize;
        if !rest.is_empty() || !widths.contains(&hashes.len()) {
            return Err(TileReadError::Length { coord, got: bytes.len() });
        }
        Ok(hashes[..usize::from(coord.width)].to_vec())
    }
}

impl<F, E> HashReader for TileHashReader<F>
where
    F: Fn(TileCoord) -> Result<Vec<u8>, E>,
{
    type Error = TileReadError<E>;

    fn subtree(&self, level: u8, index: u64) -> Result<Hash, Self::Error> {
        let outside = TileReadError::Merkle(MerkleError::IndexOutOfRange { level, index, size: self.size });
        let whole = self.size.checked_shr(u32::from(level)).unwrap_or(0);
        if index >= whole {
            return Err(outside);
        }
        // The subtree's root, or the row of hashes that it is made from, lies in one tile.
        let within = u32::from(level) % TILE_HEIGHT;
        let tile_level = level / TILE_HEIGHT as u8;
        let first = index << within;
        let Some(coord) = TileCoord::in_tree(tile_level, first / TILE_WIDTH, self.size) else {
            return Err(outside);
        };
        let key = (tile_level, coord.index);
        if !self.seen.borrow().contains_key(&key) {
            let tile = self.load(coord)?;
            self.seen.borrow_mut().insert(key, tile);
        }
        let seen = self.seen.borrow();
        let start = (first % TILE_WIDTH) as usize;
        let row = seen.get(&key).and_then(|tile| tile.get(start..start + (1 << within)));
        row.and_then(perfect_root).ok_or(outside)
    }
}
