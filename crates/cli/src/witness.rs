//! The witness: a second key that says of each checkpoint that it continues what was cosigned before.
//!
//! Owns the time of a cosignature and the rule that it never goes back. What the witness has seen is the store: the
//! publisher takes it up from there, compares every anchor with it, and only then asks for a cosignature. Promises that the
//! witness has a name and a key of its own. It never cosigns a checkpoint that is smaller than one it has cosigned: a
//! cosignature states the largest tree that was observed.

use agd_core::{CosigningKey, NoteError, NoteSignature, SignedNote, VerifierKey};
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;

use crate::key::{KeyError, LogKey, WitnessKey};

/// Why a key cannot be the witness's.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum WitnessError {
    /// The key could not be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The log would be its own witness.
    #[error("the witness has the {0} of the log: a witness has a name and a key of its own (agd keygen --witness)")]
    SameAsLog(&'static str),
}

/// When a witness cosigned a note, in seconds; 0 when it did not. The note's signatures were checked.
pub(crate) fn time_of(own: &VerifierKey, note: &SignedNote) -> u64 {
    let lines = note.signatures().iter().filter(|line| line.id() == own.id() && line.name() == own.name());
    lines.filter_map(NoteSignature::cosignature_time).max().unwrap_or_default()
}

/// Cosigns checkpoints.
pub struct Witness {
    key: CosigningKey,
    /// POSIX time in seconds.
    clock: Box<dyn Fn() -> u64>,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Witness({:?})", self.key)
    }
}

impl Witness {
    /// A witness beside a log, by the system's clock.
    ///
    /// # Errors
    /// [`WitnessError`].
    pub fn new(key: &WitnessKey, log: &LogKey) -> Result<Self, WitnessError> {
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self::with_clock(key, log, Box::new(clock))
    }

    /// A witness with a clock of the caller's: POSIX time in seconds.
    ///
    /// # Errors
    /// [`WitnessError`].
    pub fn with_clock(key: &WitnessKey, log: &LogKey, clock: Box<dyn Fn() -> u64>) -> Result<Self, WitnessError> {
        if key.verifier().public_key() == log.verifier().public_key() {
            return Err(WitnessError::SameAsLog("key"));
        }
        if key.verifier().name() == log.name() {
            return Err(WitnessError::SameAsLog("name"));
        }
        Ok(Self { key: key.cosigner()?, clock })
    }

    /// The public half.
    pub fn verifier(&self) -> &VerifierKey {
        self.key.verifier_key()
    }

    /// Cosigns the body of a checkpoint now, but not before the last cosignature for this log, whatever the clock says.
    pub(crate) fn cosign(&self, text: &str, last: u64) -> Result<NoteSignature, NoteError> {
        self.key.cosign(text, (self.clock)().max(last).max(1))
    }
}
