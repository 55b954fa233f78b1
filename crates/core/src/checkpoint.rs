//! Checkpoints: the body of C2SP tlog-checkpoint v1.0.0, which names a log, its size and its root.
//!
//! Owns the three lines. Promises that a body has one spelling only: what parses, prints the same bytes again. It never
//! signs and never checks a signature (see [`crate::note`]).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use crate::merkle::Hash;

/// A log's state at one size.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Checkpoint {
    /// The log's identity: one non-empty line.
    pub origin: String,
    /// Leaves in the tree.
    pub size: u64,
    /// The Merkle tree hash of those leaves.
    pub root: Hash,
}

/// Why a text is not a checkpoint body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The origin line is missing, empty, or holds a control character.
    #[error("the first line is not an origin")]
    Origin,
    /// The second line is not a decimal number without leading zeroes, or is above 2^64 − 1.
    #[error("the second line is not a tree size")]
    Size,
    /// The third line is not 32 bytes in canonical base64.
    #[error("the third line is not a root hash")]
    Root,
    /// The body does not end after the newline of the third line.
    ///
    /// Extension lines are allowed by the specification but discouraged, as no monitor can audit what they say. Nothing
    /// here writes them, and to drop one silently would break the signature over it: so they are refused.
    #[error("extension lines are not accepted")]
    Extension,
}

impl Checkpoint {
    /// Reads a checkpoint body: exactly three lines, each ended by a newline.
    ///
    /// # Errors
    /// [`CheckpointError`] names the first line that is wrong.
    pub fn parse(body: &str) -> Result<Self, CheckpointError> {
        let (origin, rest) = body.split_once('\n').ok_or(CheckpointError::Origin)?;
        if origin.is_empty() || origin.chars().any(char::is_control) {
            return Err(CheckpointError::Origin);
        }
        let (digits, rest) = rest.split_once('\n').ok_or(CheckpointError::Size)?;
        let size = parse_decimal(digits).ok_or(CheckpointError::Size)?;
        let (root, rest) = rest.split_once('\n').ok_or(CheckpointError::Root)?;
        let root = STANDARD.decode(root).ok().and_then(|root| root.try_into().ok());
        let root = root.ok_or(CheckpointError::Root)?;
        if !rest.is_empty() {
            return Err(CheckpointError::Extension);
        }
        Ok(Self { origin: origin.to_owned(), size, root })
    }
}

impl std::str::FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(body: &str) -> Result<Self, Self::Err> {
        Self::parse(body)
    }
}

/// The unsigned body: origin, size in decimal, root in base64, each with its newline.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, STANDARD.encode(self.root))
    }
}

/// A decimal number as it prints: digits only, no sign, no leading zero but in "0" itself.
pub(crate) fn parse_decimal<T: std::str::FromStr>(digits: &str) -> Option<T> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let padded = digits.len() > 1 && digits.starts_with('0');
    if plain && !padded { digits.parse().ok() } else { None }
}
