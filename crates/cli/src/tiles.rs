//! Tiles and entry bundles as they lie in a store.
//!
//! Owns which file to take for a tile of some width, the check of its length, and the way back from tiles to a tree.
//! Promises that what it returns has exactly the hashes or entries asked for. It does not judge the hashes: compare the
//! tree's root with a checkpoint.

use agd_core::tile::{TILE_HEIGHT, partial_width};
use agd_core::{BundleError, HASH_SIZE, Hash, MerkleError, TILE_WIDTH, TileCoord, TiledTree, bundle};
use thiserror::Error;

use crate::store::{Kind, Reader, StoreError};

/// The longest entry bundle, in bytes: 256 entries of 65,535 bytes, each after its length.
pub const MAX_BUNDLE: u64 = TILE_WIDTH * (2 + bundle::MAX_ENTRY_LEN as u64);

/// The length of a full tile in bytes.
pub const FULL_TILE: u64 = TILE_WIDTH * HASH_SIZE as u64;

/// Why a tile could not be taken from the store.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TileError {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Neither the tile nor a wider one is there.
    #[error("{path} is missing")]
    Missing {
        /// The tile, relative to the store.
        path: String,
    },
    /// The file is not as long as its width says.
    #[error("{path} has {got} bytes, its width asks for {expected}")]
    Length {
        /// The tile, relative to the store.
        path: String,
        /// Bytes expected.
        expected: usize,
        /// Bytes found.
        got: usize,
    },
    /// The bundle's framing is broken.
    #[error("{path}: {source}")]
    Bundle {
        /// The bundle, relative to the store.
        path: String,
        /// What is wrong.
        source: BundleError,
    },
    /// The tiles do not fit together.
    #[error("{origin}: {source}")]
    Tree {
        /// The log.
        origin: String,
        /// What is wrong.
        source: MerkleError,
    },
}

/// A tile's hashes or a bundle's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// The hashes of a tile level, 0 for leaf hashes.
    Hashes(u8),
    /// The entries beside level 0.
    Entries,
}

impl Piece {
    /// Where it lies, relative to the store.
    pub fn path(self, origin: &str, index: u64, width: u16) -> String {
        let coord = |level| TileCoord { level, index, width };
        match self {
            Self::Hashes(level) => format!("{origin}/{}", coord(level).path()),
            Self::Entries => format!("{origin}/{}", coord(0).entries_path()),
        }
    }

    /// The most bytes a file of this kind can have.
    pub fn limit(self) -> u64 {
        match self {
            Self::Hashes(_) => FULL_TILE,
            Self::Entries => MAX_BUNDLE,
        }
    }

    /// The folder of its partial files, relative to the store.
    fn partials(self, origin: &str, index: u64) -> String {
        let mut path = self.path(origin, index, TILE_WIDTH as u16);
        path.push_str(".p");
        path
    }
}

/// A file that holds at least what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Relative to the store.
    pub path: String,
    /// How many hashes or entries its name says it holds.
    pub width: u16,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// The widths of the partial files of a tile, ascending.
///
/// # Errors
/// [`StoreError::Io`].
pub fn partial_widths(reader: &Reader, origin: &str, piece: Piece, index: u64) -> Result<Vec<u16>, StoreError> {
    let names = reader.list(&piece.partials(origin, index))?;
    let mut widths: Vec<u16> = names
        .unwrap_or_default()
        .iter()
        .filter(|listed| listed.kind == Kind::File)
        .filter_map(|listed| {
            let width: u16 = listed.name.parse().ok()?;
            let partial = (1..TILE_WIDTH as u16).contains(&width);
            (partial && width.to_string() == listed.name).then_some(width)
        })
        .collect();
    widths.sort_unstable();
    Ok(widths)
}

/// The file for a piece of this width: its own, else the full one, else the next wider partial one.
///
/// A wider file serves because tiles only grow: what a tree of some size has, every later tree has as a prefix.
///
/// # Errors
/// [`StoreError`] other than absence.
pub fn find(reader: &Reader, origin: &str, piece: Piece, index: u64, width: u16) -> Result<Option<Found>, StoreError> {
    let read = |width| {
        let path = piece.path(origin, index, width);
        let bytes = reader.read(&path, piece.limit())?;
        Ok::<_, StoreError>(bytes.map(|bytes| Found { path, width, bytes }))
    };
    let full = TILE_WIDTH as u16;
    if let Some(found) = read(width)? {
        return Ok(Some(found));
    }
    if width == full {
        return Ok(None);
    }
    if let Some(found) = read(full)? {
        return Ok(Some(found));
    }
    for wider in partial_widths(reader, origin, piece, index)? {
        if wider > width
            && let Some(found) = read(wider)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The first `width` hashes of a tile file.
///
/// # Errors
/// [`TileError::Length`] unless the file is exactly as long as its own width says.
pub fn hashes(found: &Found, width: u16) -> Result<Vec<Hash>, TileError> {
    let expected = usize::from(found.width) * HASH_SIZE;
    if found.bytes.len() != expected {
        return Err(TileError::Length { path: found.path.clone(), expected, got: found.bytes.len() });
    }
    let (hashes, _) = found.bytes.as_chunks::<HASH_SIZE>();
    Ok(hashes.iter().take(usize::from(width)).copied().collect())
}

/// The first `width` entries of a bundle file.
///
/// # Errors
/// [`TileError::Bundle`] unless the file holds exactly as many entries as its own width says.
pub fn entries(found: &Found, width: u16) -> Result<Vec<&[u8]>, TileError> {
    let parsed = bundle::parse(&found.bytes, found.width);
    let mut entries = parsed.map_err(|source| TileError::Bundle { path: found.path.clone(), source })?;
    entries.truncate(usize::from(width));
    Ok(entries)
}

/// Takes up the tree of a log at a size from the right edge of its tiles.
///
/// # Errors
/// [`TileError`]. The root must still be compared with a checkpoint.
pub fn load_tree(reader: &Reader, origin: &str, size: u64) -> Result<TiledTree, TileError> {
    let mut open = Vec::new();
    for level in 0..u64::BITS / TILE_HEIGHT {
        let count = size >> (TILE_HEIGHT * level);
        if count == 0 {
            break;
        }
        let width = partial_width(size, level) as u16;
        open.push(match width {
            0 => Vec::new(),
            width => {
                let (piece, index) = (Piece::Hashes(level as u8), count / TILE_WIDTH);
                let found = find(reader, origin, piece, index, width)?;
                hashes(&needed(found, piece, origin, index, width)?, width)?
            }
        });
    }
    TiledTree::from_open_tiles(size, open).map_err(|source| TileError::Tree { origin: origin.to_owned(), source })
}

/// The entries of a log at a size that are not in a full bundle yet.
///
/// # Errors
/// [`TileError`]. The entries must still be compared with the leaf hashes.
pub fn load_open_entries(reader: &Reader, origin: &str, size: u64) -> Result<Vec<Vec<u8>>, TileError> {
    let width = partial_width(size, 0) as u16;
    if width == 0 {
        return Ok(Vec::new());
    }
    let index = size / TILE_WIDTH;
    let found = find(reader, origin, Piece::Entries, index, width)?;
    let found = needed(found, Piece::Entries, origin, index, width)?;
    Ok(entries(&found, width)?.into_iter().map(<[u8]>::to_vec).collect())
}

fn needed(found: Option<Found>, piece: Piece, origin: &str, index: u64, width: u16) -> Result<Found, TileError> {
    found.ok_or_else(|| TileError::Missing { path: piece.path(origin, index, width) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_wider_file_serves_and_a_narrower_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/tile/0/000.p");
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = |n: u8| (0..n).flat_map(|i| [i; 32]).collect::<Vec<u8>>();
        for width in [3_u8, 9] {
            std::fs::write(folder.join(width.to_string()), bytes(width)).unwrap();
        }
        for stray in ["0", "05", "256", "x"] {
            std::fs::write(folder.join(stray), b"").unwrap();
        }
        let reader = Reader::open(dir.path()).unwrap();
        let find = |width| find(&reader, "a", Piece::Hashes(0), 0, width).unwrap();
        assert_eq!(find(3).unwrap().width, 3);
        let wider = find(5).unwrap();
        assert_eq!(wider.width, 9);
        assert_eq!(hashes(&wider, 5).unwrap(), (0..5).map(|i| [i; 32]).collect::<Vec<_>>());
        assert!(find(10).is_none());
        assert!(find(256).is_none());
    }

    #[test]
    fn a_tile_of_another_length_is_refused() {
        for len in [0, 31, 33, 64, 8192] {
            let found = Found { path: "a/tile/0/000.p/1".to_owned(), width: 1, bytes: vec![0; len] };
            assert!(matches!(hashes(&found, 1), Err(TileError::Length { got, .. }) if got == len));
        }
    }
}
