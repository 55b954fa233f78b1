//! The Merkle tree of RFC 6962 §2.1 (the same as RFC 9162 §2.1) with SHA-256.
//!
//! Owns the three hashes (empty tree, leaf, node) and the compact range that carries a tree's root forward one leaf at
//! a time. Promises one node hash per pushed leaf on average and the same root as the recursive definition. It never
//! stores leaves, never duplicates an odd leaf and never sees an entry's meaning.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// A SHA-256 digest: a leaf hash, a node hash, a root or an image digest.
pub type Hash = [u8; 32];

/// Bytes in a [`type@Hash`].
pub const HASH_SIZE: usize = 32;

/// The largest tree this crate accepts, in leaves: what a PostgreSQL `bigint` can count.
pub const MAX_TREE_SIZE: u64 = i64::MAX as u64;

/// Why a tree, a tile or a proof was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MerkleError {
    /// A tree of more than [`MAX_TREE_SIZE`] leaves.
    #[error("tree size {size} is above the largest supported size {MAX_TREE_SIZE}")]
    SizeOutOfRange {
        /// The size that was given.
        size: u64,
    },
    /// A compact range of this size has another number of nodes.
    #[error("a compact range of {size} leaves has {expected} nodes, not {got}")]
    NodeCount {
        /// Leaves in the tree.
        size: u64,
        /// The number of one bits in `size`.
        expected: u32,
        /// Nodes that were given.
        got: usize,
    },
    /// An open tile does not hold floor(size / 256^level) mod 256 hashes.
    #[error("the open tile at level {level} of a tree of {size} leaves holds {expected} hashes, not {got}")]
    TileWidth {
        /// Leaves in the tree.
        size: u64,
        /// Tile level, 0 for leaf hashes.
        level: usize,
        /// The width the size asks for.
        expected: u64,
        /// Hashes that were given.
        got: usize,
    },
    /// A leaf or subtree that is not in the tree.
    #[error("index {index} at height {level} is outside a tree of {size} leaves")]
    IndexOutOfRange {
        /// Height of the subtree, 0 for a leaf.
        level: u8,
        /// Position among the subtrees of that height.
        index: u64,
        /// Leaves in the tree.
        size: u64,
    },
    /// A consistency proof from a larger tree to a smaller one.
    #[error("no consistency proof leads from size {from} to the smaller size {to}")]
    SizesNotOrdered {
        /// The older size.
        from: u64,
        /// The newer size.
        to: u64,
    },
    /// A proof with more or fewer hashes than its index and size ask for.
    #[error("the proof has a wrong number of hashes")]
    PathLength,
    /// The proof leads to another root than the one given.
    #[error("the proof does not lead to the given root")]
    RootMismatch,
}

/// The root of the tree with no leaves: SHA-256 of the empty string.
pub fn empty_root() -> Hash {
    Sha256::new().finalize().into()
}

/// The hash of a leaf: SHA-256(0x00 ‖ entry).
pub fn leaf_hash(entry: &[u8]) -> Hash {
    Sha256::new().chain_update([0x00]).chain_update(entry).finalize().into()
}

/// The hash of an inner node: SHA-256(0x01 ‖ left ‖ right).
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut preimage = [0x01; 1 + 2 * HASH_SIZE];
    preimage[1..=HASH_SIZE].copy_from_slice(left);
    preimage[1 + HASH_SIZE..].copy_from_slice(right);
    Sha256::digest(preimage).into()
}

/// The root of the tree over these leaf hashes, by the recursive definition of RFC 6962 §2.1.
///
/// The reference that everything incremental is tested against; it hashes the whole tree each time.
pub fn root_of(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split_point(leaves.len() as u64) as usize);
            node_hash(&root_of(left), &root_of(right))
        }
    }
}

/// The largest power of two strictly below `n`, for `n` ≥ 2.
pub(crate) fn split_point(n: u64) -> u64 {
    debug_assert!(n >= 2);
    1 << (63 - (n - 1).leading_zeros())
}

/// The roots of the perfect subtrees that a tree is made of, left to right: as many as there are one bits in its size,
/// the largest first.
///
/// This is all that is needed to append leaves and to know the root. At 2^63 leaves it is 63 hashes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CompactRange {
    size: u64,
    nodes: Vec<Hash>,
}

impl CompactRange {
    /// The empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up a tree of `size` leaves from its stored nodes (as [`CompactRange::nodes`] gave them).
    ///
    /// # Errors
    /// [`MerkleError::SizeOutOfRange`] and [`MerkleError::NodeCount`]. The hashes themselves cannot be checked here:
    /// compare [`CompactRange::root`] with a root you trust.
    pub fn from_parts(size: u64, nodes: Vec<Hash>) -> Result<Self, MerkleError> {
        if size > MAX_TREE_SIZE {
            return Err(MerkleError::SizeOutOfRange { size });
        }
        if nodes.len() != size.count_ones() as usize {
            return Err(MerkleError::NodeCount { size, expected: size.count_ones(), got: nodes.len() });
        }
        Ok(Self { size, nodes })
    }

    /// Appends one leaf hash.
    pub fn push(&mut self, leaf: Hash) {
        let (kept, merged) = self.merge(0, leaf, |_, _| {});
        self.commit(0, kept, merged);
    }

    /// The Merkle tree hash of all leaves so far.
    pub fn root(&self) -> Hash {
        fold_right(&self.nodes)
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The perfect subtree roots, left to right.
    pub fn nodes(&self) -> &[Hash] {
        &self.nodes
    }

    /// What appending a perfect subtree of 2^`height` leaves would do, without doing it: how many nodes stay, and the node
    /// that follows them. The size must be a multiple of 2^`height` (a leaf is a subtree of height 0). `completed` is told
    /// the height and root of every larger perfect subtree that this completes, lowest first.
    pub(crate) fn merge(&self, height: u32, root: Hash, mut completed: impl FnMut(u32, &Hash)) -> (usize, Hash) {
        debug_assert!(self.size.is_multiple_of(1 << height));
        // It completes one subtree for each trailing one bit of the size, as a binary counter carries.
        let kept = self.nodes.len() - (self.size >> height).trailing_ones() as usize;
        let mut hash = root;
        for (height, left) in (height + 1..).zip(self.nodes[kept..].iter().rev()) {
            hash = node_hash(left, &hash);
            completed(height, &hash);
        }
        (kept, hash)
    }

    /// Does what [`CompactRange::merge`] computed.
    pub(crate) fn commit(&mut self, height: u32, kept: usize, merged: Hash) {
        self.nodes.truncate(kept);
        self.nodes.push(merged);
        self.size += 1 << height;
    }
}

/// The root over perfect subtrees listed left to right, the largest first.
pub(crate) fn fold_right(nodes: &[Hash]) -> Hash {
    match nodes.split_last() {
        None => empty_root(),
        Some((last, rest)) => rest.iter().rev().fold(*last, |right, left| node_hash(left, &right)),
    }
}

/// The root of a perfect subtree from its 2^k equally high children. `None` when their number is not a power of two.
pub(crate) fn perfect_root(children: &[Hash]) -> Option<Hash> {
    if !children.len().is_power_of_two() {
        return None;
    }
    let mut row = children.to_vec();
    let mut width = row.len();
    while width > 1 {
        width /= 2;
        for i in 0..width {
            row[i] = node_hash(&row[2 * i], &row[2 * i + 1]);
        }
    }
    row.first().copied()
}
