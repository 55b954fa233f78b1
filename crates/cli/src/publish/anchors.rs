//! The database's anchors: claims about roots, to be compared and signed.
//!
//! Owns how they are fetched, which of them the next piece of work takes, and how those of a log that is published already are
//! held against the store. Promises that an anchor goes further only with a size, a root and a text that fit each other. It
//! believes none of them: the entries decide (in `append`).

use std::ops::ControlFlow;

use agd_core::{Checkpoint, Hash, SigningKey, TILE_WIDTH};

use super::append::compare;
use super::outcome::{LogError, malformed, store_error};
use super::state::{Checkpoints, State};
use super::{ANCHOR_PAGE, CHUNK, Publisher};
use crate::pipeline::{Threads, ordered};
use crate::source::{Anchor, Receipt, Source};
use crate::tiles;

/// An anchor whose shape was checked, with the checkpoint text that will be signed.
#[derive(Debug, Clone)]
pub(super) struct ValidAnchor {
    pub(super) tree_size: u64,
    pub(super) root: Hash,
    pub(super) text: String,
    pub(super) published_to: Option<String>,
}

impl ValidAnchor {
    pub(super) fn receipt(&self, note: String) -> Receipt {
        // The size came from the database as bigint, so that it is not cut here.
        let tree_size = i64::try_from(self.tree_size).unwrap_or(i64::MAX);
        Receipt { tree_size, root: self.root, note }
    }
}

fn fetch_anchors(source: &mut dyn Source, origin: &str, from: u64, limit: i64) -> Result<Vec<ValidAnchor>, LogError> {
    let from = i64::try_from(from).unwrap_or(i64::MAX);
    let page = source.anchors(origin, from, limit)?;
    let mut last = None;
    let mut anchors = Vec::with_capacity(page.len());
    for anchor in page {
        let anchor = validate(origin, anchor)?;
        if last >= Some(anchor.tree_size) || (anchor.tree_size as i64) < from {
            let reason = format!("the database lists size {} out of order", anchor.tree_size);
            return Err(malformed(origin, reason));
        }
        last = Some(anchor.tree_size);
        anchors.push(anchor);
    }
    Ok(anchors)
}

fn validate(origin: &str, anchor: Anchor) -> Result<ValidAnchor, LogError> {
    let size = anchor.tree_size;
    let wrong = |reason: &str| malformed(origin, format!("the anchor at size {size} {reason}"));
    let tree_size = u64::try_from(size).map_err(|_| wrong("has a negative size"))?;
    let root =
        Hash::try_from(anchor.root_hash.as_slice()).map_err(|_| wrong("has a root hash that is not of 32 bytes"))?;
    let checkpoint = Checkpoint { origin: origin.to_owned(), size: tree_size, root };
    let text = checkpoint.to_string();
    if text != anchor.checkpoint {
        return Err(wrong("has a checkpoint text that is not its own"));
    }
    Ok(ValidAnchor { tree_size, root, text, published_to: anchor.published_to })
}

/// The next anchors to publish, at most [`CHUNK`] entries away: but at least one, and as far as we have signed already.
pub(super) fn next_batch(
    source: &mut dyn Source,
    origin: &str,
    state: &State,
    newest: u64,
) -> Result<Vec<ValidAnchor>, LogError> {
    let start = state.tree.size();
    let (bound, _) = state.bound();
    // An empty log's anchor at size 0 is published once.
    let unpublished_zero = !state.published && newest == 0;
    let mut from = if unpublished_zero { 0 } else { start + 1 };
    let mut batch: Vec<ValidAnchor> = Vec::new();
    // Of a log that is anchored at each full tile, as many as will be taken and one more.
    let mut limit = (CHUNK / TILE_WIDTH) as i64 + 1;
    loop {
        let page = fetch_anchors(source, origin, from, limit)?;
        let full = page.len() as i64 == limit;
        limit = ANCHOR_PAGE;
        for anchor in page {
            let reached = batch.last().is_some_and(|last| last.tree_size >= bound);
            let far = anchor.tree_size > start.saturating_add(CHUNK);
            if anchor.tree_size > newest || (reached && far) {
                return Ok(batch);
            }
            from = anchor.tree_size.saturating_add(1);
            batch.push(anchor);
        }
        let reached = batch.last().is_some_and(|last| last.tree_size >= bound);
        if reached || !full {
            return Ok(batch);
        }
    }
}

/// Compares anchors, by ascending size, with what was published at their sizes. Gives each with its checkpoint's note, where
/// there is one. Of a server it is asked for many at once: each answer takes its time.
fn compare_all(
    checkpoints: &Checkpoints<'_>,
    anchors: Vec<ValidAnchor>,
) -> Result<Vec<(ValidAnchor, Option<String>)>, LogError> {
    let (reader, origin) = (checkpoints.reader, checkpoints.origin);
    let published = |anchor: &ValidAnchor| -> Result<(Hash, Option<String>), LogError> {
        if let Some(stored) = checkpoints.at(anchor.tree_size)? {
            return Ok((stored.checkpoint.root, Some(stored.note)));
        }
        let tree = tiles::load_tree(reader, origin, anchor.tree_size);
        Ok((tree.map_err(|error| store_error(origin, error))?.root(), None))
    };
    let threads = Threads::new(reader.parallel().saturating_sub(1));
    let (mut notes, mut wrong) = (Vec::with_capacity(anchors.len()), None);
    let look = |at: u64| anchors.get(at as usize).map(published);
    ordered(&threads, 0..anchors.len() as u64, look, |at, published| {
        let compared = anchors.get(at as usize).zip(published).map(|(anchor, published)| {
            let (ours, note) = published?;
            compare(origin, anchor.tree_size, &anchor.root, &ours).map(|()| note)
        });
        match compared {
            Some(Ok(note)) => notes.push(note),
            Some(Err(error)) => wrong = Some(error),
            None => {}
        }
        if wrong.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match wrong {
        Some(error) => Err(error),
        None => Ok(anchors.into_iter().zip(notes).collect()),
    }
}

/// A checkpoint that must be looked after below the published size.
pub(super) struct Behind {
    anchor: ValidAnchor,
    /// Its note, where the store has it.
    note: Option<String>,
    /// The database does not know that it is published here.
    unrecorded: bool,
}

impl Publisher {
    /// Compares the database's anchors from `first` up to the published size with what was published. Gives those that the
    /// store does not have yet, with the published tree's root, and those that the database does not know to be published.
    /// Signs nothing.
    pub(super) fn compare_published(
        &self,
        source: &mut dyn Source,
        origin: &str,
        signer: &SigningKey,
        state: &State,
        first: u64,
    ) -> Result<Vec<Behind>, LogError> {
        let size = state.tree.size();
        let mut from = first;
        let mut behind = Vec::new();
        let mut more = state.published;
        while more {
            let page = fetch_anchors(source, origin, from, ANCHOR_PAGE)?;
            let within = page.partition_point(|anchor| anchor.tree_size <= size);
            more = page.len() as i64 == ANCHOR_PAGE && within == page.len();
            let checkpoints = self.checkpoints(origin, signer);
            for (anchor, note) in compare_all(&checkpoints, page.into_iter().take(within).collect())? {
                // A place whose name has the separator in it is told again each time: that does no harm.
                let places = anchor.published_to.as_deref().unwrap_or_default();
                let unrecorded = !places.split(", ").any(|place| place == self.published_to);
                from = anchor.tree_size.saturating_add(1);
                if unrecorded || note.is_none() {
                    behind.push(Behind { anchor, note, unrecorded });
                }
            }
        }
        Ok(behind)
    }

    /// Signs what the store does not have, and tells the database of what it does not know. Returns how many were signed.
    pub(super) fn catch_up(
        &mut self,
        source: &mut dyn Source,
        origin: &str,
        signer: &SigningKey,
        behind: Vec<Behind>,
    ) -> Result<u64, LogError> {
        let (mut signed, mut receipts) = (0, Vec::new());
        for Behind { anchor, note, unrecorded } in behind {
            let note = match note {
                Some(note) => note,
                None => {
                    signed += 1;
                    // A larger one is cosigned already: the witness could not say that this is the largest.
                    self.put_checkpoint(origin, signer, &anchor, None)?
                }
            };
            if unrecorded {
                receipts.push(anchor.receipt(note));
            }
        }
        self.sync(origin)?;
        self.record(source, origin, receipts)?;
        Ok(signed)
    }
}

/// Compares what the key has signed of a log in another store with the database's anchor there.
pub(super) fn compare_signed_elsewhere(
    source: &mut dyn Source,
    origin: &str,
    (size, root): (u64, Hash),
) -> Result<(), LogError> {
    let page = fetch_anchors(source, origin, size, 1)?;
    match page.first().filter(|anchor| anchor.tree_size == size) {
        Some(anchor) => compare(origin, size, &anchor.root, &root),
        None => Err(malformed(origin, format!("the key has signed size {size}, and the database has no anchor there"))),
    }
}
