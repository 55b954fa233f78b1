//! Proofs as files: C2SP tlog-proof v1, an inclusion proof together with the signed checkpoint that it leads to.
//!
//! Owns the text. Promises that what parses prints the same bytes again, and that the checkpoint in it is a signed note
//! over a checkpoint body. Never checks a signature or a hash: see [`crate::note`] and [`crate::proof`].

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError, parse_decimal};
use crate::merkle::Hash;
use crate::note::{NoteError, SignedNote};

/// The longest path: no tree has more than 2^63 leaves.
pub const MAX_PATH: usize = 63;

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";

/// An inclusion proof with its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlogProof {
    extra: Vec<u8>,
    index: u64,
    path: Vec<Hash>,
    note: SignedNote,
    checkpoint: Checkpoint,
}

/// Why a text is not a proof.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TlogProofError {
    /// The text begins with something other than the format's name and version.
    #[error("the first line is not {FIRST_LINE}")]
    FirstLine,
    /// No empty line parts the path from a checkpoint.
    #[error("there is no empty line before a checkpoint")]
    NoCheckpoint,
    /// The extra data are not canonical base64, or there are none after the word.
    #[error("the extra data are not base64")]
    Extra,
    /// The index line is missing, or not a decimal number without leading zeroes below 2^64.
    #[error("there is no index")]
    Index,
    /// A line of the path is not 32 bytes in canonical base64.
    #[error("line {line} of the path is not a hash")]
    Path {
        /// Which line of the path, from 1.
        line: usize,
    },
    /// A path of more than [`MAX_PATH`] hashes.
    #[error("the path is longer than that of any tree")]
    PathLength,
    /// What stands for the checkpoint is no signed note.
    #[error("the checkpoint: {0}")]
    Note(#[from] NoteError),
    /// What is signed is no checkpoint.
    #[error("the checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
}

impl TlogProof {
    /// Puts a proof together.
    ///
    /// `extra` are bytes that the application adds (agd: the entry whose leaf this proves), empty for none. Nothing
    /// vouches for them before they are compared with the leaf.
    ///
    /// # Errors
    /// [`TlogProofError::PathLength`]; [`TlogProofError::Checkpoint`] when the note's text is no checkpoint.
    pub fn new(extra: Vec<u8>, index: u64, path: Vec<Hash>, note: SignedNote) -> Result<Self, TlogProofError> {
        if path.len() > MAX_PATH {
            return Err(TlogProofError::PathLength);
        }
        let checkpoint = Checkpoint::parse(note.text())?;
        Ok(Self { extra, index, path, note, checkpoint })
    }

    /// Reads a proof, as strictly as the specification allows: what parses prints the same bytes again.
    ///
    /// # Errors
    /// [`TlogProofError`] names the first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, TlogProofError> {
        let rest = text.strip_prefix(FIRST_LINE).ok_or(TlogProofError::FirstLine)?;
        let rest = rest.strip_prefix('\n').ok_or(TlogProofError::FirstLine)?;
        // No line before the checkpoint is empty: the first empty line parts them.
        let (head, checkpoint) = rest.split_once("\n\n").ok_or(TlogProofError::NoCheckpoint)?;
        let mut lines = head.split('\n').peekable();
        let extra = match lines.next_if(|line| line.starts_with("extra")) {
            None => Vec::new(),
            Some(line) => line
                .strip_prefix("extra ")
                .and_then(|base64| STANDARD.decode(base64).ok())
                .filter(|extra| !extra.is_empty())
                .ok_or(TlogProofError::Extra)?,
        };
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).ok_or(TlogProofError::Index)?;
        let index = parse_decimal(index).ok_or(TlogProofError::Index)?;
        let mut path = Vec::new();
        for (line, number) in lines.zip(1..) {
            if number > MAX_PATH {
                return Err(TlogProofError::PathLength);
            }
            let hash = STANDARD.decode(line).ok().and_then(|hash| hash.try_into().ok());
            path.push(hash.ok_or(TlogProofError::Path { line: number })?);
        }
        Self::new(extra, index, path, SignedNote::parse(checkpoint)?)
    }

    /// The bytes that the application added; empty: none. Not authenticated by themselves.
    pub fn extra(&self) -> &[u8] {
        &self.extra
    }

    /// The leaf's index, from 0.
    pub fn index(&self) -> u64 {
        self.index
    }

    /// `PATH(index, D[size])` of RFC 6962 §2.1.1: from the leaf's sibling to the root's child.
    pub fn path(&self) -> &[Hash] {
        &self.path
    }

    /// The signed checkpoint, to check its signatures.
    pub fn note(&self) -> &SignedNote {
        &self.note
    }

    /// What the note says: origin, size and root that the path leads to.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }
}

impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}")?;
        if !self.extra.is_empty() {
            writeln!(f, "extra {}", STANDARD.encode(&self.extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        self.path.iter().try_for_each(|hash| writeln!(f, "{}", STANDARD.encode(hash)))?;
        write!(f, "\n{}", self.note)
    }
}

impl FromStr for TlogProof {
    type Err = TlogProofError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}
