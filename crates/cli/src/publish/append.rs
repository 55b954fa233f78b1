//! Entries into tiles, every root compared on the way.
//!
//! Owns the step that makes the publisher independent of the database: entries are hashed here, and the tree they give must have
//! the root that every anchor, and every checkpoint signed before, says. Promises that nothing is handed out to be written
//! unless all of them agree. It writes nothing itself.

use std::collections::BTreeMap;
use std::convert::Infallible;

use agd_core::bundle::MAX_ENTRY_LEN;
use agd_core::{FullTile, Hash, TILE_WIDTH, TiledTree, bundle, leaf_hash};

use super::CHUNK;
use super::anchors::ValidAnchor;
use super::outcome::{LogError, Refusal, hex, malformed};
use super::state::State;
use crate::source::Source;
use crate::tiles::Piece;

/// Appends the database's entries up to `end` to the tree and compares the root at every anchor and at every size that
/// was signed before. Returns the objects to write.
pub(super) fn append(
    source: &mut dyn Source,
    origin: &str,
    state: &mut State,
    batch: &[ValidAnchor],
    end: u64,
) -> Result<Vec<(String, Vec<u8>)>, LogError> {
    let start = state.tree.size();
    let mut expected: BTreeMap<u64, Vec<Hash>> = BTreeMap::new();
    let anchors = batch.iter().map(|anchor| (anchor.tree_size, anchor.root));
    let ahead = state.signed_ahead.iter().map(|(size, stored)| (*size, stored.checkpoint.root));
    for (size, root) in anchors.chain(ahead) {
        expected.entry(size).or_default().push(root);
    }
    let check = |tree: &TiledTree| {
        let Some(roots) = expected.get(&tree.size()) else {
            return Ok(());
        };
        let ours = tree.root();
        roots.iter().try_for_each(|root| compare(origin, tree.size(), root, &ours))
    };
    check(&state.tree)?;
    let mut objects = Vec::new();
    let mut first = start;
    while first < end {
        let last = end.min(first.saturating_add(CHUNK));
        let rows = source.entries(origin, first as i64, last as i64)?;
        if rows.len() as u64 != last - first {
            let reason = format!("the database gives {} of the {} entries from {first} on", rows.len(), last - first);
            return Err(malformed(origin, reason));
        }
        for ((index, entry), expected_index) in rows.into_iter().zip(first..) {
            if index as u64 != expected_index || entry.len() > MAX_ENTRY_LEN {
                let reason = format!("entry {expected_index} is given as number {index} with {} bytes", entry.len());
                return Err(malformed(origin, reason));
            }
            let leaf = leaf_hash(&entry);
            state.open_entries.push(entry);
            let Ok(()) = state.tree.push(leaf, &mut |tile: FullTile<'_>| {
                let path = Piece::Hashes(tile.level).path(origin, tile.index, TILE_WIDTH as u16);
                objects.push((path, tile.hashes.concat()));
                Ok::<(), Infallible>(())
            });
            if state.open_entries.len() as u64 == TILE_WIDTH {
                objects.push(bundle_object(origin, index as u64, &state.open_entries)?);
                state.open_entries.clear();
            }
            check(&state.tree)?;
        }
        first = last;
    }
    for (hashes, level) in state.tree.open_tiles().iter().zip(0_u8..) {
        if !hashes.is_empty() {
            let index = end >> (8 * (u32::from(level) + 1));
            let path = Piece::Hashes(level).path(origin, index, hashes.len() as u16);
            objects.push((path, hashes.concat()));
        }
    }
    if !state.open_entries.is_empty() {
        objects.push(bundle_object(origin, end, &state.open_entries)?);
    }
    Ok(objects)
}

/// The bundle that holds the entry at `index`.
fn bundle_object(origin: &str, index: u64, entries: &[Vec<u8>]) -> Result<(String, Vec<u8>), LogError> {
    let bytes = bundle::encode(entries).map_err(|error| malformed(origin, error.to_string()))?;
    let path = Piece::Entries.path(origin, index / TILE_WIDTH, entries.len() as u16);
    Ok((path, bytes))
}

pub(super) fn compare(origin: &str, size: u64, database: &Hash, ours: &Hash) -> Result<(), LogError> {
    if database == ours {
        return Ok(());
    }
    Err(Refusal::NotAContinuation { origin: origin.to_owned(), size, database: hex(database), ours: hex(ours) }.into())
}
