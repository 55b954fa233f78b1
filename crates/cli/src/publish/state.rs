//! The published state of a log, as the store has it.
//!
//! Owns how the publisher takes up where it stopped: the newest checkpoint, the tree under it, the last unfinished bundle, and
//! what was signed just before a crash. Promises that every checkpoint it goes on from has this key's signature, and that the
//! tiles give its root. It reads the store alone, never the database, and writes nothing.

use std::collections::BTreeMap;

use agd_core::note::MAX_NOTE_LEN;
use agd_core::{Checkpoint, Hash, NoteError, SignedNote, SigningKey, TiledTree, VerifierKey, leaf_hash};

use super::Publisher;
use super::outcome::{Failure, LogError, hex, refused_store, store_error};
use crate::store::{self, Reader};
use crate::tiles;
use crate::witness::{self, Witness};

/// A published checkpoint, as it lies in the store.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) checkpoint: Checkpoint,
    pub(super) note: String,
    /// When the witness cosigned it, in seconds; 0: not.
    pub(super) cosigned_at: u64,
}

/// The published state of a log.
pub(super) struct State {
    /// Whether the log has a newest checkpoint at all.
    pub(super) published: bool,
    pub(super) tree: TiledTree,
    /// The entries of the last, unfinished bundle.
    pub(super) open_entries: Vec<Vec<u8>>,
    /// Checkpoints that were signed just before a crash: they bind us although `checkpoint` does not show them yet.
    pub(super) signed_ahead: BTreeMap<u64, Stored>,
    /// The time of the witness's last cosignature for this log, in seconds.
    pub(super) cosigned_at: u64,
}

impl State {
    /// The largest size we have ever signed, and its root.
    pub(super) fn bound(&self) -> (u64, Hash) {
        match self.signed_ahead.last_key_value() {
            Some((size, stored)) => (*size, stored.checkpoint.root),
            None => (self.tree.size(), self.tree.root()),
        }
    }
}

impl Publisher {
    /// The newest checkpoint of a log that was ever written, however far its publication came.
    pub(super) fn newest_stored(&self, origin: &str, signer: &SigningKey) -> Result<Option<Stored>, LogError> {
        let names = self.store.reader().list(&format!("{origin}/{}", store::CHECKPOINTS));
        let names = names.map_err(|error| LogError::Failed(Failure::Store(error)))?;
        let newest = names.iter().flatten().filter_map(|listed| store::parse_checkpoint_name(&listed.name)).max();
        newest.map_or(Ok(None), |size| self.checkpoints(origin, signer).at(size))
    }

    /// Takes up the published state from the store: never from the database.
    pub(super) fn load_state(&self, origin: &str, signer: &SigningKey) -> Result<State, LogError> {
        let reader = self.store.reader();
        let checkpoints = self.checkpoints(origin, signer);
        let stored = checkpoints.newest()?;
        let tree = match &stored {
            None => TiledTree::new(),
            Some(Stored { checkpoint, note, .. }) => {
                let path = store::checkpoint_path(origin, checkpoint.size);
                let limit = MAX_NOTE_LEN as u64;
                let immutable = reader.read(&path, limit);
                match immutable.map_err(|error| store_error(origin, error.into()))? {
                    Some(immutable) if immutable == note.as_bytes() => {}
                    Some(_) => {
                        let reason = format!("{path} differs from the newest checkpoint");
                        return Err(refused_store(origin, reason));
                    }
                    None => return Err(refused_store(origin, format!("{path} is missing"))),
                }
                let tree =
                    tiles::load_tree(reader, origin, checkpoint.size).map_err(|error| store_error(origin, error))?;
                if tree.root() != checkpoint.root {
                    let reason = format!(
                        "its tiles give root {} at size {}, its checkpoint says {}",
                        hex(&tree.root()),
                        checkpoint.size,
                        hex(&checkpoint.root)
                    );
                    return Err(refused_store(origin, reason));
                }
                tree
            }
        };
        let open_entries =
            tiles::load_open_entries(reader, origin, tree.size()).map_err(|error| store_error(origin, error))?;
        let leaves = tree.open_tiles().first().map_or(&[][..], Vec::as_slice);
        if !open_entries.iter().map(|e| leaf_hash(e)).eq(leaves.iter().copied()) {
            let reason = "the last entry bundle does not give the leaf hashes of its tile";
            return Err(refused_store(origin, reason.to_owned()));
        }
        let after = stored.as_ref().map(|stored| store::checkpoint_name(stored.checkpoint.size)).unwrap_or_default();
        let names = reader
            .list_after(&format!("{origin}/{}", store::CHECKPOINTS), &after)
            .map_err(|error| LogError::Failed(Failure::Store(error)))?;
        let mut signed_ahead = BTreeMap::new();
        for listed in names {
            if let Some(size) = store::parse_checkpoint_name(&listed.name) {
                let stored = checkpoints.at(size)?;
                signed_ahead.extend(stored.map(|stored| (size, stored)));
            }
        }
        let cosigned = stored.iter().chain(signed_ahead.values()).map(|stored| stored.cosigned_at);
        let cosigned_at = cosigned.max().unwrap_or_default();
        Ok(State { published: stored.is_some(), tree, open_entries, signed_ahead, cosigned_at })
    }

    /// The checkpoints of a log in the store, read with the keys that must have signed them.
    pub(super) fn checkpoints<'a>(&'a self, origin: &'a str, signer: &'a SigningKey) -> Checkpoints<'a> {
        let witness = self.witness.as_ref().map(Witness::verifier);
        Checkpoints { reader: self.store.reader(), origin, key: signer.verifier_key(), witness }
    }
}

/// One log's published checkpoints. Many threads may read them.
pub(super) struct Checkpoints<'a> {
    pub(super) reader: &'a Reader,
    pub(super) origin: &'a str,
    key: &'a VerifierKey,
    witness: Option<&'a VerifierKey>,
}

impl Checkpoints<'_> {
    /// What was published at a size: its immutable checkpoint.
    pub(super) fn at(&self, size: u64) -> Result<Option<Stored>, LogError> {
        let path = store::checkpoint_path(self.origin, size);
        match self.read(&path)? {
            Some(stored) if stored.checkpoint.size != size => {
                let reason = format!("{path} is for size {}", stored.checkpoint.size);
                Err(refused_store(self.origin, reason))
            }
            stored => Ok(stored),
        }
    }

    /// The newest, as `checkpoint` has it.
    fn newest(&self) -> Result<Option<Stored>, LogError> {
        self.read(&store::newest_path(self.origin))
    }

    /// Reads a checkpoint that the log's key must have signed; a line of the witness must hold too.
    fn read(&self, path: &str) -> Result<Option<Stored>, LogError> {
        let bytes = self.reader.read(path, MAX_NOTE_LEN as u64);
        let Some(bytes) = bytes.map_err(|error| store_error(self.origin, error.into()))? else {
            return Ok(None);
        };
        let wrong = |reason: String| refused_store(self.origin, format!("{path}: {reason}"));
        let unsigned = |error: NoteError| wrong(format!("{error}, with the key that was given"));
        let note = SignedNote::parse(&bytes).map_err(|error| wrong(error.to_string()))?;
        note.verify(std::slice::from_ref(self.key)).map_err(unsigned)?;
        let mut cosigned_at = 0;
        if let Some(witness) = self.witness {
            note.verify(&[self.key.clone(), witness.clone()]).map_err(unsigned)?;
            cosigned_at = witness::time_of(witness, &note);
        }
        let checkpoint = Checkpoint::parse(note.text()).map_err(|error| wrong(error.to_string()))?;
        if checkpoint.origin != self.origin {
            return Err(wrong(format!("it is of {}", checkpoint.origin)));
        }
        Ok(Some(Stored { checkpoint, note: note.to_string(), cosigned_at }))
    }
}
