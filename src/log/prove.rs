//! Proofs: that an event is in its log, and that a log has only grown.
//!
//! Owns `agd.inclusion_proof()`, `agd.consistency_proof()` and `agd.tlog_proof()`. Promises that a proof which is handed
//! out holds: its leaf is made afresh from the event's row, and its path leads to the root that the anchor has. Where it does
//! not, the error names the event, the tile or the anchor that was changed. Tells nobody anything of an event that he may
//! not read, not even that it exists. Never writes, and reads all under the snapshot of the query that asks: so it works on
//! a standby, and while the log grows.

use crate::error::{Error, OrRaise, Result};
use crate::home;
use crate::log::position::{leaf_of, parse_event_id};
use crate::log::record::{EventKey, Reader};
use crate::log::storage::{self, corrupted};
use crate::log::stored::{Anchor, Head, Stored, Tree};
use crate::tenant;
use agd_core::merkle::empty_root;
use agd_core::proof::{self, HashReader, ProofError, TileHashReader, TileReadError};
use agd_core::{Checkpoint, Hash, SignedNote, TILE_WIDTH, TileCoord, TlogProof, leaf_hash};
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// An event in its log.
struct Leaf {
    event: EventKey,
    head: Head,
    index: u64,
    /// Its canonical bytes and their hash, made from its row.
    entry: Vec<u8>,
    hash: Hash,
}

impl Leaf {
    /// Finds an event's leaf.
    fn find(stored: &Stored, event_id: Option<&str>) -> Result<Self> {
        let event_id = event_id.ok_or_else(|| Error::BadArgument {
            message: "event_id must be given".into(),
            hint: "An event's id is its transaction and its number, like 7431-2.".into(),
        })?;
        let event = parse_event_id(event_id)?;
        let mut reader = Reader::active()?;
        let tenant = match reader.tenant_of(event)? {
            Some(tenant) if tenant::may_read(tenant.as_deref()) => tenant,
            _ => return Err(not_there(stored, &reader, event)?),
        };
        let Some(context) = reader.context(event.xact_id)? else {
            return Err(without_context(event)?);
        };
        let mut entry = Vec::new();
        reader.entry(&context, event.n, &mut entry)?;
        let hash = leaf_hash(&entry);
        let heads = stored.heads_of(tenant.as_deref())?;
        for head in &heads {
            if let Some(index) = leaf_of(stored, head, event, context.stamp)? {
                return Ok(Leaf { event, head: head.clone(), index, entry, hash });
            }
        }
        if stored.integrated()?.sees(event.xact_id) {
            return Err(lost(stored, &heads, event, &hash)?);
        }
        Err(Error::NotFound {
            message: format!("event {event} is not in the log yet"),
            hint: "The worker takes it up within agd.anchor_max_age; SELECT * FROM agd.anchor() does so at once."
                .into(),
        })
    }

    /// The path from the leaf to an anchor's root, checked.
    fn path_to(&self, tree: &Tree<'_>, anchor: &Anchor) -> Result<Vec<Hash>> {
        let used = Used::default();
        let reader = used.reader(tree, anchor.size)?;
        let path = proof::inclusion_proof(&reader, self.index, anchor.size).map_err(|error| unreadable(tree, error))?;
        let holds = |hash: &Hash| proof::verify_inclusion(hash, self.index, anchor.size, &path, &anchor.root).is_ok();
        let kept = reader.subtree(0, self.index).map_err(|error| unreadable(tree, ProofError::Read(error)))?;
        match (kept == self.hash, holds(&self.hash)) {
            (true, true) => Ok(path),
            (false, false) if holds(&kept) => Err(self.event_changed()),
            (false, true) => Err(corrupted(format!(
                "log {}: {} was changed: it does not hold the hash of event {}, its leaf {}",
                tree.origin,
                named(tree, 0, self.index / TILE_WIDTH),
                self.event,
                self.index
            ))),
            _ => Err(used.problem(tree, &[anchor])?),
        }
    }

    fn event_changed(&self) -> Error {
        Error::Corrupted {
            message: format!("event {} was changed: it does not hash to its leaf {}", self.event, self.index),
            hint:
                "There is no proof of it any more. SELECT * FROM agd.verify() tells more; what was published is as it \
                   was."
                    .into(),
        }
    }

    /// What to say where nothing covers the leaf yet.
    fn uncovered(&self, tree: &Tree<'_>, what: &str, hint: &str) -> Result<Error> {
        let (tile, position) = (self.index / TILE_WIDTH, (self.index % TILE_WIDTH) as usize);
        if tree.tile(0, tile)?.get(position) != Some(&self.hash) {
            return Ok(self.event_changed());
        }
        Ok(Error::NotFound { message: format!("no {what} covers event {} yet", self.event), hint: hint.to_owned() })
    }
}

/// There is no such event that the caller may see. Where a log of his own has a leaf of it, there was one.
fn not_there(stored: &Stored, reader: &Reader, event: EventKey) -> Result<Error> {
    if let Some(context) = reader.context(event.xact_id)? {
        for head in stored.heads(tenant::may_read)? {
            if let Some(leaf) = leaf_of(stored, &head, event, context.stamp)? {
                return Ok(Error::Corrupted {
                    message: format!("event {event} is missing: it was leaf {leaf} of {}", head.origin),
                    hint:
                        "It was deleted outside of agd. SELECT * FROM agd.verify() tells more; what was published is \
                           as it was."
                            .into(),
                });
            }
        }
    }
    Ok(Error::NotFound {
        message: format!("there is no event {event}"),
        hint: "SELECT event_id FROM agd.events shows those that you may read.".into(),
    })
}

/// An event without the record of its transaction, which is written when that commits.
fn without_context(event: EventKey) -> Result<Error> {
    if home::present_id()? == Some(event.xact_id) {
        return Ok(Error::NotFound {
            message: format!("event {event} is not in the log yet: its transaction is this one"),
            hint: "COMMIT; then the worker takes it up within agd.anchor_max_age.".into(),
        });
    }
    Ok(Error::Corrupted {
        message: format!(
            "the record of transaction {} is missing, and event {event} is not whole without",
            event.xact_id
        ),
        hint: "It was deleted outside of agd. SELECT * FROM agd.verify() tells more; what was published is as it was."
            .into(),
    })
}

/// An event that was integrated, and that no tile's keys name.
fn lost(stored: &Stored, heads: &[Head], event: EventKey, hash: &Hash) -> Result<Error> {
    let Some(newest) = heads.first() else {
        return Ok(corrupted(format!("event {event} was integrated, and its log is missing")));
    };
    for head in heads {
        let tree = stored.tree(head)?;
        for tile in 0..head.size.div_ceil(TILE_WIDTH) {
            pgrx::check_for_interrupts!();
            let hashes = tree.tile(0, tile)?;
            if hashes.is_empty() {
                return Ok(missing(&tree, 0, tile));
            }
            if let Some(position) = hashes.iter().position(|kept| kept == hash) {
                let leaf = tile * TILE_WIDTH + position as u64;
                return Ok(corrupted(format!(
                    "log {}: {} was changed: it does not say that its leaf {leaf} is event {event}",
                    tree.origin,
                    named(&tree, 0, tile)
                )));
            }
        }
    }
    Ok(corrupted(format!(
        "event {event} is in no leaf of {}: it was added or changed outside of agd, or its tile was",
        newest.origin
    )))
}

// --------------------------------------------------------------------------------------------------- tiles as hashes

/// The tiles that a proof was made from.
#[derive(Default)]
struct Used(RefCell<BTreeSet<(u8, u64)>>);

impl Used {
    /// Reads the tree at an anchor's size, as it was, out of a log's tiles as they are.
    fn reader<'a>(
        &'a self,
        tree: &'a Tree<'_>,
        size: u64,
    ) -> Result<TileHashReader<impl Fn(TileCoord) -> Result<Vec<u8>>>> {
        if size > tree.size {
            return Err(corrupted(format!(
                "log {}: there is an anchor at size {size}, beyond the log's leaves",
                tree.origin
            )));
        }
        Ok(TileHashReader::new(size, |coord: TileCoord| {
            self.0.borrow_mut().insert((coord.level, coord.index));
            tree.bytes(coord.level, coord.index)?.ok_or_else(|| missing(tree, coord.level, coord.index))
        }))
    }

    /// Why no proof leads to these anchors: which of the tiles does not agree with those above and below it, or, where they
    /// all do, which of the anchors.
    fn problem(&self, tree: &Tree<'_>, anchors: &[&Anchor]) -> Result<Error> {
        let mut upwards = self.0.borrow().clone();
        while let Some((level, index)) = upwards.pop_first() {
            let hashes = tree.tile(level, index)?;
            if let Some(problem) = problem_below(tree, level, index, &hashes)? {
                return Ok(problem);
            }
            if tree.is_full(level, index) {
                if let Some(problem) = tree.problem_above(level, index, &hashes)? {
                    return Ok(corrupted(format!("log {}: {problem}", tree.origin)));
                }
                upwards.insert((level + 1, index / TILE_WIDTH));
            }
        }
        for anchor in anchors {
            let reader = self.reader(tree, anchor.size)?;
            if proof::tree_root(&reader, anchor.size).map_err(|error| unreadable(tree, error))? != anchor.root {
                let size = anchor.size;
                return Ok(corrupted(format!(
                    "log {}: the anchor at size {size} has another root than the leaves",
                    tree.origin
                )));
            }
        }
        Ok(Error::Internal(format!("agd: log {} agrees with itself, and yet its proof does not hold", tree.origin)))
    }
}

/// Compares the hashes of a tile with the tiles below it, and those of the open level-0 tile with the events.
fn problem_below(tree: &Tree<'_>, level: u8, index: u64, hashes: &[Hash]) -> Result<Option<Error>> {
    if level > 0 {
        for below in (index * TILE_WIDTH..).take(hashes.len()) {
            pgrx::check_for_interrupts!();
            if let Some(problem) = tree.problem_above(level - 1, below, &tree.tile(level - 1, below)?)? {
                return Ok(Some(corrupted(format!("log {}: {problem}", tree.origin))));
            }
        }
    } else if !tree.is_full(level, index) {
        let (mut reader, mut entry) = (Reader::active()?, Vec::new());
        let Some(head) = tree.stored.head_by_origin(&tree.origin)? else { return Ok(None) };
        for ((key, kept), leaf) in head.open_keys.iter().zip(hashes).zip(index * TILE_WIDTH..) {
            let context = reader.context(key.xact_id)?;
            let whole = match context {
                Some(context) => reader.entry(&context, key.n, &mut entry)? && leaf_hash(&entry) == *kept,
                None => false,
            };
            if !whole {
                let tile = named(tree, level, index);
                return Ok(Some(corrupted(format!(
                    "log {}: leaf {leaf} in {tile} is not the hash of event {key}: one of them was changed",
                    tree.origin
                ))));
            }
        }
    }
    Ok(None)
}

fn named(tree: &Tree<'_>, level: u8, index: u64) -> String {
    let open = if tree.is_full(level, index) { "" } else { "the open " };
    format!("{open}tile {index} of level {level}")
}

fn missing(tree: &Tree<'_>, level: u8, index: u64) -> Error {
    corrupted(format!("log {}: {} is missing", tree.origin, named(tree, level, index)))
}

fn unreadable(tree: &Tree<'_>, error: ProofError<TileReadError<Error>>) -> Error {
    match error {
        ProofError::Read(TileReadError::Fetch { error, .. }) => error,
        ProofError::Read(TileReadError::Length { coord, got }) => {
            corrupted(format!("log {}: {} has {got} bytes", tree.origin, named(tree, coord.level, coord.index)))
        }
        ProofError::Read(TileReadError::Merkle(problem)) | ProofError::Merkle(problem) => {
            corrupted(format!("log {}: {problem}", tree.origin))
        }
        _ => corrupted(format!("log {}: its tiles cannot be read", tree.origin)),
    }
}

fn bytes(hashes: Vec<Hash>) -> Vec<Vec<u8>> {
    hashes.into_iter().map(Vec::from).collect()
}

// ----------------------------------------------------------------------------------------------------------- inclusion

/// `agd.inclusion_proof(event_id)`
#[allow(clippy::type_complexity)] // the shape of the SQL function
#[pg_extern(sql = false)]
fn inclusion_proof(
    event_id: Option<&str>,
) -> TableIterator<
    'static,
    (
        name!(origin, String),
        name!(leaf_index, i64),
        name!(tree_size, i64),
        name!(leaf_hash, Vec<u8>),
        name!(path, Vec<Vec<u8>>),
    ),
> {
    let (leaf, anchor, path) = prove_inclusion(event_id).or_raise();
    TableIterator::once((
        leaf.head.origin,
        leaf.index.cast_signed(),
        anchor.size.cast_signed(),
        leaf.hash.to_vec(),
        bytes(path),
    ))
}

/// To the log's newest anchor.
fn prove_inclusion(event_id: Option<&str>) -> Result<(Leaf, Anchor, Vec<Hash>)> {
    let stored = Stored::active()?;
    let leaf = Leaf::find(&stored, event_id)?;
    let tree = stored.tree(&leaf.head)?;
    match stored.newest_anchor(&leaf.head)?.filter(|anchor| anchor.size > leaf.index) {
        Some(anchor) => {
            let path = leaf.path_to(&tree, &anchor)?;
            Ok((leaf, anchor, path))
        }
        None => Err(leaf.uncovered(
            &tree,
            "anchor",
            "The worker makes one within agd.anchor_max_age; SELECT * FROM agd.anchor() does so at once.",
        )?),
    }
}

/// `agd.tlog_proof(event_id)`
#[pg_extern(sql = false)]
fn tlog_proof(event_id: Option<&str>) -> String {
    prove_to_note(event_id).or_raise().to_string()
}

/// To the newest signed checkpoint of the log that was published.
fn prove_to_note(event_id: Option<&str>) -> Result<TlogProof> {
    let stored = Stored::active()?;
    let leaf = Leaf::find(&stored, event_id)?;
    let tree = stored.tree(&leaf.head)?;
    let Some((size, note)) = stored.newest_note(&leaf.head, leaf.index)? else {
        return Err(leaf.uncovered(
            &tree,
            "published checkpoint",
            "This proof ends in a signed checkpoint: run agd publish, then ask again. agd.inclusion_proof() needs none.",
        )?);
    };
    let origin = &leaf.head.origin;
    let anchor = stored
        .anchor_at(&leaf.head, size)?
        .ok_or_else(|| corrupted(format!("log {origin}: the anchor at size {size} was published, and is missing")))?;
    let note = signed_checkpoint(&note, origin, &anchor).ok_or_else(|| {
        corrupted(format!("log {origin}: the anchor at size {size} is not what agd.publication has as signed there"))
    })?;
    let path = leaf.path_to(&tree, &anchor)?;
    TlogProof::new(leaf.entry, leaf.index, path, note).map_err(|problem| corrupted(format!("log {origin}: {problem}")))
}

/// A signed note, if it is one over exactly this anchor's checkpoint.
pub fn signed_checkpoint(note: &str, origin: &str, anchor: &Anchor) -> Option<SignedNote> {
    let checkpoint = Checkpoint { origin: origin.to_owned(), size: anchor.size, root: anchor.root };
    SignedNote::parse(note).ok().filter(|note| note.text() == checkpoint.to_string())
}

// --------------------------------------------------------------------------------------------------------- consistency

/// `agd.consistency_proof(origin, from_size, to_size)`
#[pg_extern(sql = false)]
fn consistency_proof(origin: Option<&str>, from_size: Option<i64>, to_size: Option<i64>) -> Vec<Vec<u8>> {
    bytes(prove_consistency(origin, from_size, to_size).or_raise())
}

fn prove_consistency(origin: Option<&str>, from: Option<i64>, to: Option<i64>) -> Result<Vec<Hash>> {
    let (Some(origin), Some(from), Some(to)) = (origin, from, to) else {
        return Err(Error::BadArgument {
            message: "origin, from_size and to_size must be given".into(),
            hint: "SELECT agd.consistency_proof('the origin', 256, 512).".into(),
        });
    };
    let stored = Stored::active()?;
    let head = stored.head_by_origin(origin)?;
    let head = head
        .filter(|head| tenant::may_read(head.tenant.as_deref()) || tenant::is_publisher())
        .ok_or_else(|| storage::no_such_log(origin))?;
    let (from, to) = match (u64::try_from(from), u64::try_from(to)) {
        (Ok(from), Ok(to)) if from <= to && to <= head.size => (from, to),
        _ => {
            return Err(Error::BadArgument {
                message: format!("the log has {} leaves: there is no proof from size {from} to size {to}", head.size),
                hint: "Sizes are those of anchors, the smaller one first: SELECT tree_size FROM agd.anchors.".into(),
            });
        }
    };
    let tree = stored.tree(&head)?;
    let used = Used::default();
    let (old, new) = (anchored(&head, &tree, &used, from)?, anchored(&head, &tree, &used, to)?);
    let reader = used.reader(&tree, to)?;
    let path = proof::consistency_proof(&reader, from, to).map_err(|error| unreadable(&tree, error))?;
    match proof::verify_consistency(from, &old.root, to, &new.root, &path) {
        Ok(()) => Ok(path),
        Err(_) => Err(used.problem(&tree, &[&old, &new])?),
    }
}

/// The root that a log's tiles give at a size, at most its own.
pub fn root_at(stored: &Stored, head: &Head, size: u64) -> Result<Hash> {
    let tree = stored.tree(head)?;
    let used = Used::default();
    let reader = used.reader(&tree, size)?;
    proof::tree_root(&reader, size).map_err(|error| unreadable(&tree, error))
}

/// The root at a size: the anchor's, or, where no anchor stands there, the tiles', which the next anchor must continue.
fn anchored(head: &Head, tree: &Tree<'_>, used: &Used, size: u64) -> Result<Anchor> {
    if size == 0 {
        return Ok(Anchor { size, root: empty_root() });
    }
    if let Some(anchor) = tree.stored.anchor_at(head, size)? {
        return Ok(anchor);
    }
    let reader = used.reader(tree, size)?;
    let root = proof::tree_root(&reader, size).map_err(|error| unreadable(tree, error))?;
    if let Some(next) = tree.stored.anchor_above(head, size)? {
        let reader = used.reader(tree, next.size)?;
        let path = proof::consistency_proof(&reader, size, next.size).map_err(|error| unreadable(tree, error))?;
        if proof::verify_consistency(size, &root, next.size, &next.root, &path).is_err() {
            return Err(used.problem(tree, &[&next])?);
        }
    }
    Ok(Anchor { size, root })
}
