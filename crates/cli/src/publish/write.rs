//! Signing, writing, and telling the database: in the order that leaves a readable store wherever it stops.
//!
//! Owns that order: tiles and bundles are durable before the first checkpoint that needs them is written, checkpoints before
//! `checkpoint` shows the newest, and only then the database is told. A checkpoint that was signed before a crash is taken as it
//! is, never made again.

use agd_core::{NoteError, SignedNote, SigningKey};

use super::anchors::ValidAnchor;
use super::outcome::{Failure, LogError, store_error};
use super::state::State;
use super::{ANCHOR_PAGE, MAX_WITHHELD, Publisher};
use crate::origin::Kind;
use crate::source::{Receipt, Source};
use crate::store;

impl Publisher {
    /// Writes what a batch needs, in the order that leaves a readable store wherever it stops. Returns the receipts.
    pub(super) fn write(
        &mut self,
        origin: &str,
        signer: &SigningKey,
        objects: &[(String, Vec<u8>)],
        batch: &[ValidAnchor],
        state: &mut State,
    ) -> Result<Vec<Receipt>, LogError> {
        for (path, bytes) in objects {
            self.store.put(path, bytes).map_err(|error| store_error(origin, error.into()))?;
        }
        self.sync(origin)?;
        let mut receipts = Vec::with_capacity(batch.len());
        for anchor in batch {
            let note = match state.signed_ahead.get(&anchor.tree_size) {
                // Signed before a crash, and compared by now: a cosignature made anew would have another time.
                Some(stored) => self.put_again(origin, anchor.tree_size, &stored.note)?,
                None => {
                    let largest = state.signed_ahead.last_key_value().is_none_or(|(size, _)| *size < anchor.tree_size);
                    let cosigned_at = largest.then_some(&mut state.cosigned_at);
                    self.put_checkpoint(origin, signer, anchor, cosigned_at)?
                }
            };
            receipts.push(anchor.receipt(note));
        }
        self.sync(origin)?;
        let newest = receipts.last().map(|receipt| receipt.note.as_bytes()).unwrap_or_default();
        let replaced = self.store.replace(&store::newest_path(origin), newest);
        replaced.map_err(|error| store_error(origin, error.into()))?;
        Ok(receipts)
    }

    /// Signs an anchor and writes its immutable checkpoint, cosigned unless `cosigned_at`, the time of the witness's last
    /// cosignature, is missing.
    pub(super) fn put_checkpoint(
        &mut self,
        origin: &str,
        signer: &SigningKey,
        anchor: &ValidAnchor,
        cosigned_at: Option<&mut u64>,
    ) -> Result<String, LogError> {
        let failed = |error: NoteError| LogError::Failed(Failure::Key(error.to_string()));
        let mut lines = vec![signer.sign(&anchor.text).map_err(failed)?];
        if let (Some(witness), Some(last)) = (&self.witness, cosigned_at) {
            let line = witness.cosign(&anchor.text, *last).map_err(failed)?;
            *last = line.cosignature_time().unwrap_or(*last);
            lines.push(line);
        }
        let note = SignedNote::new(&anchor.text, lines).map_err(failed)?.to_string();
        self.put_again(origin, anchor.tree_size, &note)
    }

    fn put_again(&mut self, origin: &str, size: u64, note: &str) -> Result<String, LogError> {
        let path = store::checkpoint_path(origin, size);
        self.store.put(&path, note.as_bytes()).map_err(|error| store_error(origin, error.into()))?;
        Ok(note.to_owned())
    }

    /// Everything that was put is durable after this, or this log is not gone on with.
    pub(super) fn sync(&mut self, origin: &str) -> Result<(), LogError> {
        self.store.sync().map_err(|error| store_error(origin, error.into()))
    }

    /// Tells the database what is in the store. Where timestamps are required, what none covers yet is told later.
    pub(super) fn record(
        &mut self,
        source: &mut dyn Source,
        origin: &str,
        receipts: Vec<Receipt>,
    ) -> Result<(), LogError> {
        let mut receipts = receipts;
        let required = self.stamper.as_ref().filter(|stamper| stamper.is_required());
        if let Some(stamper) = required
            && Kind::of(origin) == Some(Kind::Platform)
        {
            let covered = stamper.covered(origin).and_then(|size| i64::try_from(size).ok()).unwrap_or(-1);
            let (now, later): (Vec<_>, Vec<_>) = receipts.into_iter().partition(|receipt| receipt.tree_size <= covered);
            receipts = now;
            self.platform_is(origin);
            let room = MAX_WITHHELD.saturating_sub(self.withheld.len());
            self.withheld.extend(later.into_iter().take(room).map(|receipt| (receipt.tree_size, receipt)));
        }
        for receipts in receipts.chunks(ANCHOR_PAGE as usize) {
            source.record_publication(origin, receipts, &self.published_to)?;
        }
        Ok(())
    }
}
