//! Tile paths: what parses is the path of what it says.
#![no_main]

use agd_core::TileCoord;

libfuzzer_sys::fuzz_target!(|path: &str| {
    if let Ok(tile) = TileCoord::parse(path) {
        assert_eq!(tile.path(), path);
    }
    if let Ok(tile) = TileCoord::parse_entries(path) {
        assert_eq!(tile.entries_path(), path);
    }
});
