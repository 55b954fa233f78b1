use agd_core::merkle::{CompactRange, Hash, MAX_TREE_SIZE, MerkleError, empty_root, leaf_hash, node_hash, root_of};
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use sha2::Sha256;

use crate::leaves;

/// The inputs that Certificate Transparency's reference implementation is tested with.
const INPUTS: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

/// Its roots after 0, 1, … 8 of them.
const ROOTS: [&str; 9] = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

#[test]
fn known_roots_of_certificate_transparency() {
    let mut range = CompactRange::new();
    let mut leaves = Vec::new();
    for (size, root) in ROOTS.iter().enumerate() {
        assert_eq!(hex::encode(range.root()), *root, "size {size}");
        assert_eq!(hex::encode(root_of(&leaves)), *root, "size {size}");
        if let Some(input) = INPUTS.get(size) {
            let leaf = leaf_hash(&hex::decode(input).unwrap());
            range.push(leaf);
            leaves.push(leaf);
        }
    }
    assert_eq!(hex::encode(empty_root()), ROOTS[0]);
}

#[test]
fn an_odd_leaf_is_not_duplicated() {
    let [a, b, c] = [[1; 32], [2; 32], [3; 32]];
    assert_eq!(root_of(&[a, b, c]), node_hash(&node_hash(&a, &b), &c));
    assert_ne!(root_of(&[a, b, c]), root_of(&[a, b, c, c]));
}

#[test]
fn ct_merkle_finds_the_same_root_at_every_size() {
    let mut theirs = MemoryBackedTree::<Sha256, String>::new();
    let mut ours = CompactRange::new();
    for i in 0..1_100_u64 {
        theirs.push(i.to_string());
        ours.push(crate::leaf(i));
        assert_eq!(theirs.root().as_bytes().as_slice(), ours.root(), "size {}", i + 1);
    }
}

#[test]
fn parts_of_the_wrong_shape_are_refused() {
    let hash: Hash = [7; 32];
    assert_eq!(
        CompactRange::from_parts(5, vec![hash; 3]),
        Err(MerkleError::NodeCount { size: 5, expected: 2, got: 3 })
    );
    assert_eq!(CompactRange::from_parts(0, vec![hash]), Err(MerkleError::NodeCount { size: 0, expected: 0, got: 1 }));
    let size = MAX_TREE_SIZE + 1;
    assert_eq!(CompactRange::from_parts(size, vec![hash]), Err(MerkleError::SizeOutOfRange { size }));
}

#[test]
fn the_largest_tree_takes_a_leaf() {
    let nodes = vec![[7; 32]; 63];
    let mut range = CompactRange::from_parts(MAX_TREE_SIZE, nodes).unwrap();
    range.push([8; 32]);
    assert_eq!((range.size(), range.nodes().len()), (MAX_TREE_SIZE + 1, 1));
}

proptest! {
    #[test]
    fn incremental_root_is_the_naive_root(size in 0_u64..900) {
        let leaves = leaves(size);
        let mut range = CompactRange::new();
        for leaf in &leaves {
            range.push(*leaf);
        }
        prop_assert_eq!(range.root(), root_of(&leaves));
        prop_assert_eq!(range.size(), size);
        prop_assert_eq!(range.nodes().len(), size.count_ones() as usize);
    }

    #[test]
    fn a_stored_range_goes_on_where_it_stopped(size in 0_u64..300, more in 0_u64..300) {
        let all = leaves(size + more);
        let (before, after) = all.split_at(size as usize);
        let mut first = CompactRange::new();
        before.iter().for_each(|leaf| first.push(*leaf));
        let mut second = CompactRange::from_parts(first.size(), first.nodes().to_vec()).unwrap();
        prop_assert_eq!(&second, &first);
        after.iter().for_each(|leaf| second.push(*leaf));
        prop_assert_eq!(second.root(), root_of(&all));
    }
}
