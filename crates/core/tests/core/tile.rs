use std::collections::BTreeMap;
use std::convert::Infallible;

use agd_core::merkle::{CompactRange, Hash, MAX_TREE_SIZE, MerkleError, root_of};
use agd_core::tile::{FullTile, TILE_WIDTH, TileCoord, TiledTree, partial_width, tiles_between, tiles_for_size};
use proptest::prelude::*;

use crate::{leaf, leaves};

type Tiles = BTreeMap<(u8, u64), Vec<Hash>>;

/// Pushes the leaves and keeps what comes out, checking that no tile comes twice.
fn grow(tree: &mut TiledTree, leaves: &[Hash], tiles: &mut Tiles) {
    for leaf in leaves {
        let mut keep = |tile: FullTile<'_>| {
            assert_eq!(tile.hashes.len(), 256);
            let old = tiles.insert((tile.level, tile.index), tile.hashes.to_vec());
            assert_eq!(old, None, "tile {}/{} came twice", tile.level, tile.index);
            Ok::<(), Infallible>(())
        };
        tree.push(*leaf, &mut keep).unwrap();
    }
}

/// Tile(level, index)[i] = MTH(D[(256·index + i)·256^level : (256·index + i + 1)·256^level]), literally.
fn tile_by_definition(leaves: &[Hash], coord: TileCoord) -> Vec<Hash> {
    let span = 256_usize.pow(u32::from(coord.level));
    (0..usize::from(coord.width))
        .map(|i| {
            let start = (256 * coord.index as usize + i) * span;
            root_of(&leaves[start..start + span])
        })
        .collect()
}

/// Every tile of a tree is where the specification puts it, full ones emitted, partial ones open.
fn check_against_definition(tree: &TiledTree, tiles: &Tiles, leaves: &[Hash]) {
    let size = leaves.len() as u64;
    let mut full = 0;
    for coord in tiles_for_size(size) {
        let expected = tile_by_definition(leaves, coord);
        if coord.is_full() {
            full += 1;
            assert_eq!(tiles[&(coord.level, coord.index)], expected, "{}", coord.path());
        } else {
            assert_eq!(tree.open_tiles()[usize::from(coord.level)], expected, "{}", coord.path());
        }
    }
    assert_eq!(tiles.len(), full, "no other tile is emitted");
    let open: usize = tree.open_tiles().iter().filter(|tile| !tile.is_empty()).count();
    assert_eq!(open, tiles_for_size(size).filter(|coord| !coord.is_full()).count());
    assert_eq!(tree.root(), root_of(leaves));
    assert_eq!(tree.size(), size);
}

#[test]
fn seventy_thousand_leaves_give_the_tiles_of_the_specification() {
    let leaves = leaves(70_000);
    let (mut tree, mut tiles) = (TiledTree::new(), Tiles::new());
    grow(&mut tree, &leaves, &mut tiles);
    check_against_definition(&tree, &tiles, &leaves);

    let shape: Vec<_> = tiles_for_size(70_000).map(|t| (t.level, t.index, t.width)).collect();
    let level_0 = (0..273).map(|index| (0, index, 256)).chain([(0, 273, 112)]);
    let above = [(1, 0, 256), (1, 1, 17), (2, 0, 1)];
    assert_eq!(shape, level_0.chain(above).collect::<Vec<_>>());
}

#[test]
fn two_hundred_and_fifty_six_leaves_fill_one_tile() {
    let (mut tree, mut tiles) = (TiledTree::new(), Tiles::new());
    grow(&mut tree, &leaves(256), &mut tiles);
    assert_eq!(tiles.keys().collect::<Vec<_>>(), [&(0, 0)]);
    assert_eq!(tree.open_tiles(), [vec![], vec![tree.root()]]);
    let shape: Vec<_> = tiles_for_size(256).map(|tile| tile.path()).collect();
    assert_eq!(shape, ["tile/0/000", "tile/1/000.p/1"]);
    assert_eq!(tiles_for_size(0).count(), 0);
}

#[test]
fn a_failing_store_leaves_the_tree_as_it_was() {
    // The leaf 65,535 fills a tile at level 0 and one at level 1; fail at either.
    let (mut tree, mut tiles) = (TiledTree::new(), Tiles::new());
    grow(&mut tree, &leaves(65_535), &mut tiles);
    let before = tree.clone();
    for fail_at in [0, 1] {
        let mut offered = Vec::new();
        let mut fail = |tile: FullTile<'_>| {
            offered.push((tile.level, tile.index));
            if tile.level == fail_at { Err("disk full") } else { Ok(()) }
        };
        assert_eq!(tree.push(leaf(65_535), &mut fail), Err("disk full"));
        assert_eq!(tree, before);
        assert_eq!(offered, [(0, 255), (1, 0)][..=usize::from(fail_at)]);
    }
    grow(&mut tree, &[leaf(65_535)], &mut tiles);
    check_against_definition(&tree, &tiles, &leaves(65_536));
}

#[test]
fn open_tiles_of_the_wrong_shape_are_refused() {
    let hash: Hash = [7; 32];
    let refused = |size, open: Vec<Vec<Hash>>| TiledTree::from_open_tiles(size, open).unwrap_err();
    assert_eq!(
        refused(256, vec![vec![], vec![hash; 2]]),
        MerkleError::TileWidth { size: 256, level: 1, expected: 1, got: 2 }
    );
    assert_eq!(refused(256, vec![]), MerkleError::TileWidth { size: 256, level: 1, expected: 1, got: 0 });
    assert_eq!(refused(3, vec![vec![hash; 2]]), MerkleError::TileWidth { size: 3, level: 0, expected: 3, got: 2 });
    assert_eq!(refused(0, vec![vec![], vec![hash]]), MerkleError::TileWidth { size: 0, level: 1, expected: 0, got: 1 });
    assert_eq!(refused(MAX_TREE_SIZE + 1, vec![]), MerkleError::SizeOutOfRange { size: MAX_TREE_SIZE + 1 });
    let empty_level_above = TiledTree::from_open_tiles(1, vec![vec![hash], vec![]]).unwrap();
    assert_eq!(empty_level_above.open_tiles(), [vec![hash]]);
}

#[test]
fn the_largest_tree_takes_a_leaf() {
    let open = (0..8).map(|level| vec![[level as u8; 32]; partial_width(MAX_TREE_SIZE, level) as usize]).collect();
    let mut tree = TiledTree::from_open_tiles(MAX_TREE_SIZE, open).unwrap();
    let mut full = Vec::new();
    let mut keep = |tile: FullTile<'_>| {
        full.push((tile.level, tile.index));
        Ok::<(), Infallible>(())
    };
    tree.push([9; 32], &mut keep).unwrap();
    let expected: Vec<_> = (0..7).map(|level| (level, (1 << (55 - 8 * level)) - 1)).collect();
    assert_eq!(full, expected);
    assert_eq!((tree.size(), tree.range().nodes().len()), (1 << 63, 1));
}

#[test]
fn the_published_path() {
    let coord = TileCoord::full(0, 1_234_067);
    assert_eq!(coord.path(), "tile/0/x001/x234/067");
    assert_eq!(coord.entries_path(), "tile/entries/x001/x234/067");
    assert_eq!(TileCoord::parse("tile/0/x001/x234/067"), Ok(coord));
    assert_eq!(TileCoord::parse_entries("tile/entries/x001/x234/067"), Ok(coord));
    let partial = TileCoord { level: 63, index: 5, width: 8 };
    assert_eq!(partial.path(), "tile/63/005.p/8");
    assert_eq!(TileCoord::full(0, u64::MAX).path(), "tile/0/x018/x446/x744/x073/x709/x551/615");
}

#[test]
fn other_paths_are_refused() {
    for path in [
        "",
        "tile",
        "tile/0",
        "tile/0/",
        "tile/0/1",
        "tile/0/0001",
        "tile/0/x001",
        "tile/0/001/067",
        "tile/0/x000/067",
        "tile/0/xx01/067",
        "tile/0/x001/067/",
        "tile/0/x001//067",
        "tile/0/+01",
        "tile/00/001",
        "tile/64/001",
        "tile/-1/001",
        "tile/0/001.p/0",
        "tile/0/001.p/256",
        "tile/0/001.p/01",
        "tile/0/001.p/",
        "tile/0/001.p/1.p/1",
        "tile/0/001.p",
        "/tile/0/001",
        "tile/0/x018/x446/x744/x073/x709/x551/616",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
        "tile/entries/001",
        "tile/8/0/001",
    ] {
        assert_eq!(TileCoord::parse(path).map_err(|error| error.path), Err(path.to_owned()));
    }
    assert!(TileCoord::parse_entries("tile/0/001").is_err());
    assert!(TileCoord::parse_entries("tile/entries/001.p/256").is_err());
    let long = format!("tile/0/{}", "x000/".repeat(1_000));
    assert_eq!(TileCoord::parse(&long).unwrap_err().path.len(), 100);
}

/// tlog_tiles writes the tile height into the path and calls entries data.
fn their_path(coord: TileCoord, entries: bool) -> String {
    let tile = tlog_tiles::Tile::new(8, coord.level, coord.index, u32::from(coord.width), entries);
    tile.path().replace("tile/8/data/", "tile/entries/").replace("tile/8/", "tile/")
}

proptest! {
    #[test]
    fn tiles_are_those_of_the_definition(size in 0_u64..2_000) {
        let leaves = leaves(size);
        let (mut tree, mut tiles) = (TiledTree::new(), Tiles::new());
        grow(&mut tree, &leaves, &mut tiles);
        check_against_definition(&tree, &tiles, &leaves);
    }

    #[test]
    fn a_stored_tree_goes_on_where_it_stopped(size in 0_u64..1_000, more in 0_u64..600) {
        let all = leaves(size + more);
        let (before, after) = all.split_at(size as usize);
        let (mut tree, mut tiles) = (TiledTree::new(), Tiles::new());
        grow(&mut tree, before, &mut tiles);
        let mut taken_up = TiledTree::from_open_tiles(size, tree.open_tiles().to_vec()).unwrap();
        prop_assert_eq!(&taken_up, &tree);
        grow(&mut taken_up, after, &mut tiles);
        check_against_definition(&taken_up, &tiles, &all);
    }

    #[test]
    fn a_range_rebuilt_from_open_tiles_has_the_right_shape(size in 0..=MAX_TREE_SIZE) {
        let open = (0..8).map(|l| vec![[l as u8; 32]; partial_width(size, l) as usize]).collect();
        let tree = TiledTree::from_open_tiles(size, open).unwrap();
        let range = tree.range().clone();
        prop_assert_eq!(CompactRange::from_parts(size, range.nodes().to_vec()), Ok(range));
    }

    #[test]
    fn paths_agree_with_tlog_tiles_and_parse_again(
        level in 0_u8..64, index in any::<u64>(), width in 1_u16..=256, small in any::<bool>()
    ) {
        let index = if small { index % 2_000_000 } else { index };
        let coord = TileCoord { level, index, width };
        prop_assert_eq!(coord.path(), their_path(coord, false));
        prop_assert_eq!(TileCoord::parse(&coord.path()), Ok(coord));
        prop_assert!(TileCoord::parse_entries(&coord.path()).is_err());
        let bundle = TileCoord { level: 0, ..coord };
        prop_assert_eq!(bundle.entries_path(), their_path(bundle, true));
        prop_assert_eq!(TileCoord::parse_entries(&bundle.entries_path()), Ok(bundle));
        prop_assert!(TileCoord::parse(&bundle.entries_path()).is_err());
    }

    #[test]
    fn new_tiles_agree_with_tlog_tiles(from in 0_u64..1 << 40, more in 0_u64..200_000) {
        let ours: Vec<_> = tiles_between(from, from + more).collect();
        let theirs: Vec<_> = tlog_tiles::Tile::new_tiles(8, from, from + more)
            .iter()
            .map(|t| TileCoord { level: t.level(), index: t.level_index(), width: t.width() as u16 })
            .collect();
        prop_assert_eq!(ours, theirs);
        prop_assert_eq!(tiles_between(from + more, from).count(), 0);
    }

    #[test]
    fn a_tile_is_as_wide_as_its_tree(level in any::<u8>(), index in any::<u64>(), size in any::<u64>()) {
        let hashes = 256_u128.checked_pow(u32::from(level)).map_or(0, |span| u128::from(size) / span);
        let width = hashes.saturating_sub(u128::from(index) * u128::from(TILE_WIDTH)).min(256);
        let expected = (width > 0).then_some(TileCoord { level, index, width: width as u16 });
        prop_assert_eq!(TileCoord::in_tree(level, index, size), expected);
    }

    #[test]
    fn no_path_panics(path in ".{0,60}", near in "(tile|entries|[x0-9]{1,4}|\\.p|/|-|é){0,12}") {
        for path in [path, near] {
            if let Ok(coord) = TileCoord::parse(&path) {
                prop_assert_eq!(coord.path(), path);
            } else if let Ok(coord) = TileCoord::parse_entries(&path) {
                prop_assert_eq!(coord.entries_path(), path);
            }
        }
    }
}
