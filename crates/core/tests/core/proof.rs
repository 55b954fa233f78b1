use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;

use agd_core::merkle::{Hash, MAX_TREE_SIZE, MerkleError, empty_root, node_hash, root_of};
use agd_core::proof::{
    HashReader, ProofError, TileHashReader, TileReadError, consistency_proof, inclusion_proof, tree_root,
    verify_consistency, verify_inclusion,
};
use agd_core::tile::{FullTile, TileCoord, TiledTree};
use ct_merkle::{ConsistencyProof, InclusionProof, RootHash, mem_backed_tree::MemoryBackedTree};
use proptest::prelude::*;
use sha2::Sha256;

use crate::leaves;

/// Reads straight from the leaf hashes, by definition.
struct Leaves(Vec<Hash>);

impl HashReader for Leaves {
    type Error = String;

    fn subtree(&self, level: u8, index: u64) -> Result<Hash, String> {
        let (start, end) = (index << level, (index + 1) << level);
        let leaves = self.0.get(start as usize..end as usize);
        leaves.map(root_of).ok_or_else(|| format!("{level}/{index} is not in the tree"))
    }
}

/// A tree of `size` equal leaves, too large to build.
struct Vast {
    size: u64,
    by_level: Vec<Hash>,
}

impl Vast {
    fn new(size: u64) -> Self {
        let mut by_level = vec![crate::leaf(0)];
        for level in 0..63 {
            by_level.push(node_hash(&by_level[level], &by_level[level]));
        }
        Self { size, by_level }
    }
}

impl HashReader for Vast {
    type Error = ();

    fn subtree(&self, level: u8, index: u64) -> Result<Hash, ()> {
        let inside = index < self.size >> level;
        if inside { Ok(self.by_level[usize::from(level)]) } else { Err(()) }
    }
}

/// RFC 6962 §2.1.1 word by word.
fn path_by_definition(index: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return vec![];
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    let (mut path, sibling) = if index < left.len() {
        (path_by_definition(index, left), root_of(right))
    } else {
        (path_by_definition(index - left.len(), right), root_of(left))
    };
    path.push(sibling);
    path
}

/// RFC 6962 §2.1.2 word by word.
fn subproof_by_definition(from: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if from == leaves.len() {
        return if whole { vec![] } else { vec![root_of(leaves)] };
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    let (mut path, sibling) = if from <= left.len() {
        (subproof_by_definition(from, left, whole), root_of(right))
    } else {
        (subproof_by_definition(from - left.len(), right, false), root_of(left))
    };
    path.push(sibling);
    path
}

fn flip(hash: &Hash, bit: usize) -> Hash {
    let mut flipped = *hash;
    flipped[bit / 8 % 32] ^= 1 << (bit % 8);
    flipped
}

/// Every path that differs from `path` by one changed, missing, extra or exchanged hash.
fn mutated_paths(path: &[Hash]) -> Vec<Vec<Hash>> {
    let mut mutants = Vec::new();
    for i in 0..path.len() {
        let mut changed = path.to_vec();
        changed[i] = flip(&path[i], i * 37);
        let mut missing = path.to_vec();
        missing.remove(i);
        mutants.extend([changed, missing]);
        if i > 0 {
            let mut exchanged = path.to_vec();
            exchanged.swap(i - 1, i);
            mutants.push(exchanged);
        }
    }
    for i in 0..=path.len() {
        let mut extra = path.to_vec();
        extra.insert(i, *path.get(i).unwrap_or(&[0; 32]));
        mutants.push(extra);
    }
    mutants
}

const SIZES: u64 = 40;

#[test]
fn inclusion_proofs_hold_and_mutants_fail() {
    let leaves = leaves(SIZES);
    for size in 1..=SIZES {
        let tree = &leaves[..size as usize];
        let root = root_of(tree);
        let reader = Leaves(tree.to_vec());
        for index in 0..size {
            let leaf = &tree[index as usize];
            let path = inclusion_proof(&reader, index, size).unwrap();
            assert_eq!(path, path_by_definition(index as usize, tree), "{index} in {size}");
            assert_eq!(verify_inclusion(leaf, index, size, &path, &root), Ok(()));

            for mutant in mutated_paths(&path) {
                assert!(verify_inclusion(leaf, index, size, &mutant, &root).is_err());
            }
            let mismatch = Err(MerkleError::RootMismatch);
            let wrong_leaf = flip(leaf, 9);
            assert_eq!(verify_inclusion(&wrong_leaf, index, size, &path, &root), mismatch);
            let wrong_root = flip(&root, 200);
            assert_eq!(verify_inclusion(leaf, index, size, &path, &wrong_root), mismatch);
            for other in (0..size + 3).filter(|other| *other != index) {
                assert!(verify_inclusion(leaf, other, size, &path, &root).is_err());
            }
        }
    }
}

#[test]
fn consistency_proofs_hold_and_mutants_fail() {
    let leaves = leaves(SIZES);
    let root = |size: u64| root_of(&leaves[..size as usize]);
    for to in 0..=SIZES {
        let reader = Leaves(leaves[..to as usize].to_vec());
        for from in 0..=to {
            let path = consistency_proof(&reader, from, to).unwrap();
            let (old, new) = (root(from), root(to));
            if from > 0 {
                let expected = subproof_by_definition(from as usize, &reader.0, true);
                assert_eq!(path, expected, "{from} to {to}");
            }
            assert_eq!(verify_consistency(from, &old, to, &new, &path), Ok(()), "{from} to {to}");

            for mutant in mutated_paths(&path) {
                let verdict = verify_consistency(from, &old, to, &new, &mutant);
                assert!(verdict.is_err(), "{from} to {to}");
            }
            let wrong = flip(&old, 77);
            let mismatch = Err(MerkleError::RootMismatch);
            assert_eq!(verify_consistency(from, &wrong, to, &new, &path), mismatch);
            // The empty tree says nothing about what follows: there is no proof that the new root could fail.
            if from > 0 || to == 0 {
                let wrong = flip(&new, 77);
                assert_eq!(verify_consistency(from, &old, to, &wrong, &path), mismatch);
            }
        }
    }
}

#[test]
fn impossible_proofs_are_refused() {
    let reader = Leaves(leaves(4));
    let outside = |index, size| MerkleError::IndexOutOfRange { level: 0, index, size };
    assert_eq!(inclusion_proof(&reader, 4, 4), Err(ProofError::Merkle(outside(4, 4))));
    assert_eq!(inclusion_proof(&reader, 0, 0), Err(ProofError::Merkle(outside(0, 0))));
    assert_eq!(
        consistency_proof(&reader, 4, 3),
        Err(ProofError::Merkle(MerkleError::SizesNotOrdered { from: 4, to: 3 }))
    );
    let size = MAX_TREE_SIZE + 1;
    let too_large = Err(ProofError::Merkle(MerkleError::SizeOutOfRange { size }));
    assert_eq!(inclusion_proof(&reader, 0, size), too_large);
    assert_eq!(consistency_proof(&reader, 1, size), too_large);
    let past_the_end = Err(ProofError::Read("2/1 is not in the tree".to_owned()));
    assert_eq!(inclusion_proof(&reader, 0, 8), past_the_end);

    let hash = [1; 32];
    assert_eq!(verify_inclusion(&hash, 0, 0, &[], &hash), Err(outside(0, 0)));
    assert_eq!(verify_consistency(2, &hash, 1, &hash, &[]), Err(MerkleError::SizesNotOrdered { from: 2, to: 1 }));
    // A power of two needs a path too.
    assert_eq!(verify_consistency(2, &hash, 3, &hash, &[]), Err(MerkleError::PathLength));
}

#[test]
fn the_empty_tree_has_one_root() {
    let (empty, other) = (empty_root(), [1; 32]);
    assert_eq!(verify_consistency(0, &empty, 0, &empty, &[]), Ok(()));
    assert_eq!(verify_consistency(0, &empty, 9, &other, &[]), Ok(()));
    let mismatch = Err(MerkleError::RootMismatch);
    assert_eq!(verify_consistency(0, &other, 9, &other, &[]), mismatch);
    assert_eq!(verify_consistency(0, &other, 0, &other, &[]), mismatch);
    assert_eq!(verify_consistency(0, &empty, 9, &other, &[other]), Err(MerkleError::PathLength));
}

fn ct_root(hash: &Hash, size: u64) -> RootHash<Sha256> {
    RootHash::new((*hash).into(), size)
}

#[test]
fn ct_merkle_makes_and_accepts_the_same_proofs() {
    let mut theirs = MemoryBackedTree::<Sha256, String>::new();
    let leaves = leaves(300);
    for size in 1..=300_u64 {
        theirs.push((size - 1).to_string());
        if size > 70 && size % 37 != 0 && !size.is_power_of_two() {
            continue;
        }
        let ours = Leaves(leaves[..size as usize].to_vec());
        for index in 0..size {
            let path = inclusion_proof(&ours, index, size).unwrap();
            assert_eq!(theirs.prove_inclusion(index as usize).as_bytes(), path.as_flattened());
        }
        for from in 1..size {
            let path = consistency_proof(&ours, from, size).unwrap();
            let proof = theirs.prove_consistency((size - from) as usize);
            assert_eq!(proof.as_bytes(), path.as_flattened());
        }
    }
}

#[test]
fn ct_merkle_and_tlog_tiles_judge_wrong_sizes_alike() {
    // Some wrong sizes verify: a path binds the shape of the tree, not its size. What matters is that no verifier is
    // more lenient than another.
    let leaves = leaves(20);
    let root = |size: u64| root_of(&leaves[..size as usize]);
    let hashes = |path: &[Hash]| path.iter().map(|h| tlog_tiles::Hash(*h)).collect::<Vec<_>>();
    let mut lenient = 0;
    for size in 1..=20_u64 {
        let reader = Leaves(leaves[..size as usize].to_vec());
        for index in 0..size {
            let path = inclusion_proof(&reader, index, size).unwrap();
            for claimed in 1..=24 {
                let verdict = verify_inclusion(&leaves[index as usize], index, claimed, &path, &root(size));
                let proof = InclusionProof::try_from_bytes(path.as_flattened().to_vec()).unwrap();
                let ct = ct_root(&root(size), claimed).verify_inclusion(&index.to_string(), index, &proof);
                assert_eq!(verdict.is_ok(), ct.is_ok(), "{index} in {size} as {claimed}");
                let go = tlog_tiles::check_record(
                    &hashes(&path),
                    claimed,
                    tlog_tiles::Hash(root(size)),
                    index,
                    tlog_tiles::Hash(leaves[index as usize]),
                );
                assert_eq!(verdict.is_ok(), go.is_ok(), "{index} in {size} as {claimed}");
                lenient += u32::from(verdict.is_ok() && claimed != size);
            }
        }
        for from in 1..size {
            let path = consistency_proof(&reader, from, size).unwrap();
            for (old, new) in (1..=22_u64).flat_map(|old| (old + 1..=24).map(move |new| (old, new))) {
                let verdict = verify_consistency(old, &root(from), new, &root(size), &path);
                let proof = ConsistencyProof::try_from_bytes(path.as_flattened().to_vec()).unwrap();
                let ct = ct_root(&root(size), new).verify_consistency(&ct_root(&root(from), old), &proof);
                assert_eq!(verdict.is_ok(), ct.is_ok(), "{from} to {size} as {old} to {new}");
                let go = tlog_tiles::check_tree(
                    &hashes(&path),
                    new,
                    tlog_tiles::Hash(root(size)),
                    old,
                    tlog_tiles::Hash(root(from)),
                );
                assert_eq!(verdict.is_ok(), go.is_ok(), "{from} to {size} as {old} to {new}");
            }
        }
    }
    assert!(lenient > 0, "the remark above would be wrong");
}

/// All tiles of a tree of these leaves, as the bytes of their files.
fn files(leaves: &[Hash]) -> BTreeMap<String, Vec<u8>> {
    let (mut tree, mut files) = (TiledTree::new(), BTreeMap::new());
    for leaf in leaves {
        let mut keep = |tile: FullTile<'_>| {
            let path = TileCoord::full(tile.level, tile.index).path();
            files.insert(path, tile.hashes.as_flattened().to_vec());
            Ok::<(), Infallible>(())
        };
        tree.push(*leaf, &mut keep).unwrap();
    }
    for (level, tile) in tree.open_tiles().iter().enumerate() {
        if let Some(coord) = TileCoord::in_tree(level as u8, tree.size() >> (8 * (level + 1)), tree.size()) {
            files.insert(coord.path(), tile.as_flattened().to_vec());
        }
    }
    files
}

#[test]
fn tiles_answer_as_the_leaves_do() {
    let size = 66_000;
    let leaves = leaves(size);
    let files = files(&leaves);
    let fetched = RefCell::new(Vec::new());
    let fetch = |coord: TileCoord| {
        fetched.borrow_mut().push(coord);
        files.get(&coord.path()).cloned().ok_or("no such file")
    };
    let root = root_of(&leaves);
    assert_eq!(tree_root(&TileHashReader::new(size, fetch), size), Ok(root));
    for index in [0, 1, 255, 256, 65_535, 65_536, 65_791, 65_792, 65_999] {
        fetched.borrow_mut().clear();
        let path = inclusion_proof(&TileHashReader::new(size, fetch), index, size).unwrap();
        let leaf = &leaves[index as usize];
        assert_eq!(verify_inclusion(leaf, index, size, &path, &root), Ok(()));
        let mut tiles = fetched.borrow().clone();
        let count = tiles.len();
        tiles.sort();
        tiles.dedup();
        assert_eq!(tiles.len(), count, "no tile is fetched twice");
        assert!(count <= 6, "{count} tiles for one proof");
    }
    for from in [1, 255, 256, 257, 65_535, 65_536, 65_537, 65_999, 66_000] {
        let path = consistency_proof(&TileHashReader::new(size, fetch), from, size).unwrap();
        let old = root_of(&leaves[..from as usize]);
        assert_eq!(verify_consistency(from, &old, size, &root, &path), Ok(()), "from {from}");
    }
    for (level, index) in [(0, size), (16, 1), (63, 0), (64, 0), (255, 0), (0, u64::MAX)] {
        assert_eq!(
            TileHashReader::new(size, fetch).subtree(level, index),
            Err(TileReadError::Merkle(MerkleError::IndexOutOfRange { level, index, size }))
        );
    }
}

#[test]
fn a_wider_tile_serves_where_the_partial_one_is_gone() {
    let all = leaves(256);
    let full: Vec<u8> = all.as_flattened().to_vec();
    let reader = TileHashReader::new(100, |_| Ok::<_, ()>(full.clone()));
    assert_eq!(tree_root(&reader, 100), Ok(root_of(&all[..100])));
    // Leaves that the full tile holds but the tree does not are not read.
    assert!(reader.subtree(0, 100).is_err());
}

#[test]
fn a_broken_tile_is_named() {
    for got in [0, 31, 99 * 32, 100 * 32 + 1, 257 * 32] {
        let reader = TileHashReader::new(100, |_| Ok::<_, ()>(vec![0; got]));
        let coord = TileCoord { level: 0, index: 0, width: 100 };
        assert_eq!(reader.subtree(0, 0), Err(TileReadError::Length { coord, got }));
    }
    let reader = TileHashReader::new(100, |_| Err::<Vec<u8>, _>("gone"));
    let error = reader.subtree(0, 0).unwrap_err();
    assert_eq!(error.to_string(), "tile tile/0/000.p/100: gone");
}

proptest! {
    #[test]
    fn proofs_hold_in_vast_trees(size in 2..=MAX_TREE_SIZE, at in any::<u64>()) {
        let reader = Vast::new(size);
        let root = tree_root(&reader, size).unwrap();
        let index = at % size;
        let path = inclusion_proof(&reader, index, size).unwrap();
        prop_assert!(path.len() <= 63);
        prop_assert_eq!(verify_inclusion(&crate::leaf(0), index, size, &path, &root), Ok(()));

        let from = 1 + at % (size - 1);
        let old = tree_root(&reader, from).unwrap();
        let path = consistency_proof(&reader, from, size).unwrap();
        // A witness takes 63 hashes at most.
        let most = if size > 1 << 62 { 64 } else { 63 };
        prop_assert!(path.len() <= most);
        prop_assert_eq!(verify_consistency(from, &old, size, &root, &path), Ok(()));
        prop_assert!(verify_consistency(from, &flip(&old, 3), size, &root, &path).is_err());
        prop_assert!(verify_consistency(from, &old, size, &flip(&root, 3), &path).is_err());
    }

    #[test]
    fn tiles_give_the_same_proofs_as_leaves(size in 1_u64..3_000, a in any::<u64>(), b in any::<u64>()) {
        let leaves = leaves(size);
        let files = files(&leaves);
        let tiles = TileHashReader::new(size, |coord| files.get(&coord.path()).cloned().ok_or(coord));
        let plain = Leaves(leaves);
        let (index, from) = (a % size, b % (size + 1));
        prop_assert_eq!(
            inclusion_proof(&tiles, index, size).unwrap(),
            inclusion_proof(&plain, index, size).unwrap()
        );
        prop_assert_eq!(
            consistency_proof(&tiles, from, size).unwrap(),
            consistency_proof(&plain, from, size).unwrap()
        );
    }

    #[test]
    fn no_input_to_a_verifier_panics(
        a in any::<u64>(), b in any::<u64>(),
        path in prop::collection::vec(any::<Hash>(), 0..70), hash in any::<Hash>()
    ) {
        prop_assert!(verify_inclusion(&hash, a, b, &path, &[0; 32]).is_err());
        prop_assert!(verify_consistency(a.max(1), &hash, b, &[0; 32], &path).is_err());
    }
}
