//! What came of a round: what was published, what was refused and why, what could not be done.
//!
//! Owns the words of every refusal, and the line between the two kinds of error: something is false, or something could not be
//! found out. It decides nothing: the modules beside it do.

use agd_core::Hash;
use thiserror::Error;

use super::memory::MemoryError;
use crate::source::SourceError;
use crate::stamp::Stamped;
use crate::store::StoreError;
use crate::tiles::TileError;
use crate::{EXIT_FALSE, EXIT_OK, EXIT_UNCHECKED};

/// Why a log was not signed: something is false.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The database's history has another root at a size than the published one, or than its own entries.
    #[error(
        "{origin}: not a continuation at size {size}: the database says root {database}, the entries give {ours}; nothing was signed"
    )]
    NotAContinuation {
        /// The log.
        origin: String,
        /// Leaves.
        size: u64,
        /// The root in the database (or, after a crash, in an already signed checkpoint), in hex.
        database: String,
        /// The root of the published entries with the database's entries appended, in hex.
        ours: String,
    },
    /// The database has fewer entries than were published.
    #[error(
        "{origin}: the log has shrunk: size {published} is published with root {root}, the database ends at {database}; nothing was signed"
    )]
    Shrunk {
        /// The log.
        origin: String,
        /// The newest published size.
        published: u64,
        /// The root published at that size, in hex.
        root: String,
        /// The newest size in the database.
        database: i64,
    },
    /// A published log is not in the database any more.
    #[error("{origin}: the log is published at size {published} but gone from the database")]
    Vanished {
        /// The log.
        origin: String,
        /// The newest published size.
        published: u64,
    },
    /// The database holds a log that this key does not speak for.
    #[error("{origin}: the key is for {key} and its tenants; is this the right database or the right key?")]
    ForeignOrigin {
        /// The log.
        origin: String,
        /// The key's name.
        key: String,
    },
    /// What the store holds is not what was published.
    #[error("{origin}: the store does not hold what was published: {reason}; nothing was signed")]
    Store {
        /// The log.
        origin: String,
        /// What is wrong, with the file's name.
        reason: String,
    },
    /// The database is a copy of another one, and was not resumed.
    #[error(
        "{origin}: this database is a copy: its record is at home on another server or in another database, and was not \
         resumed (agd.resume()); nothing was signed or reported"
    )]
    Copy {
        /// The key's log.
        origin: String,
    },
    /// The key signs for another database.
    #[error(
        "{origin}: the key signs for the database {signs_for} (system identifier/oid), and this one is {this}. Where this \
         one has taken the other's place for good, and the other will never be published again, say so once: --moved-here. \
         Nothing was signed or reported"
    )]
    AnotherDatabase {
        /// The key's log.
        origin: String,
        /// Which one, by the key's state file or the receipts that came along.
        signs_for: String,
        /// This one.
        this: String,
    },
    /// The store has less than what was signed there.
    #[error(
        "{origin}: the store is older than what was signed: {reason}. Put back the store that has it; or begin a new one \
         deliberately, in an empty place: --new-store. Nothing was signed"
    )]
    StoreBehind {
        /// The log.
        origin: String,
        /// What was signed, and what the store has.
        reason: String,
    },
    /// A later incarnation does not continue what the store holds of the one before.
    #[error("{origin}: does not continue what is published: {reason}; nothing was signed")]
    Succession {
        /// The platform log of the later incarnation.
        origin: String,
        /// What its first entry says, and what the store holds.
        reason: String,
    },
    /// The database's answer cannot be part of a log.
    #[error("{origin}: {reason}; nothing was signed")]
    Malformed {
        /// The log.
        origin: String,
        /// What is wrong.
        reason: String,
    },
}

impl Refusal {
    /// Whether the database's log is not what was published: it is told so.
    pub(super) fn is_divergence(&self) -> bool {
        matches!(self, Self::NotAContinuation { .. } | Self::Shrunk { .. })
    }

    /// The log that was refused.
    pub fn origin(&self) -> &str {
        match self {
            Self::NotAContinuation { origin, .. }
            | Self::Shrunk { origin, .. }
            | Self::Vanished { origin, .. }
            | Self::ForeignOrigin { origin, .. }
            | Self::Store { origin, .. }
            | Self::Succession { origin, .. }
            | Self::Copy { origin }
            | Self::AnotherDatabase { origin, .. }
            | Self::StoreBehind { origin, .. }
            | Self::Malformed { origin, .. } => origin,
        }
    }
}

/// What could not be done, without anything being false.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The database could not be read or told.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// The store could not be read or written.
    #[error("the store: {0}")]
    Store(StoreError),
    /// The key could not sign.
    #[error("the key: {0}")]
    Key(String),
    /// The key is none that the database believes.
    #[error(
        "the key is not registered in the database, which believes no publisher's word without; nothing was signed \
         (a member of agd_platform: SELECT agd.register_log_key('{0}'))"
    )]
    Unregistered(String),
    /// What the key has signed could not be read or kept.
    #[error("the key's state: {0}")]
    Memory(#[from] MemoryError),
    /// An option that says something else than what is.
    #[error("{0}")]
    Option(String),
    /// A timestamp that is required and due could not be had.
    #[error("the timestamp: {0}")]
    Timestamp(String),
}

/// One log that got new checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The log.
    pub origin: String,
    /// Its tenant, none for the platform log.
    pub tenant: Option<String>,
    /// The published size before.
    pub from: u64,
    /// The published size after.
    pub to: u64,
    /// Checkpoints signed.
    pub anchors: u64,
    /// The root at `to`.
    pub root: Hash,
}

/// What one round did.
#[derive(Debug, Default)]
pub struct Round {
    /// Logs that got new checkpoints.
    pub published: Vec<Published>,
    /// Logs that were refused.
    pub refusals: Vec<Refusal>,
    /// What could not be done, with the log where it concerns one.
    pub failures: Vec<(Option<String>, Failure)>,
    /// Timestamps that are in the store now.
    pub stamped: Vec<Stamped>,
    /// What could not be done and need not be, with the log.
    pub warnings: Vec<(String, String)>,
    /// Logs the database has.
    pub logs: usize,
}

impl Round {
    /// 1 when a log was refused, else 2 when something could not be done, else 0.
    pub fn exit_code(&self) -> u8 {
        if !self.refusals.is_empty() {
            EXIT_FALSE
        } else if !self.failures.is_empty() {
            EXIT_UNCHECKED
        } else {
            EXIT_OK
        }
    }
}

/// How far a log has come, told while it is being published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The log.
    pub origin: &'a str,
    /// Leaves published.
    pub size: u64,
    /// Leaves to publish in this round.
    pub target: u64,
}

pub(super) enum LogError {
    Refused(Refusal),
    Failed(Failure),
}

impl From<Refusal> for LogError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<SourceError> for LogError {
    fn from(error: SourceError) -> Self {
        Self::Failed(Failure::Source(error))
    }
}

/// An object that cannot be read as what it should be is false; a disk or a server that does not answer is not.
pub(super) fn store_error(origin: &str, error: TileError) -> LogError {
    match error {
        TileError::Store(error) if error.is_unavailable() => LogError::Failed(Failure::Store(error)),
        other => refused_store(origin, other.to_string()),
    }
}

pub(super) fn refused_store(origin: &str, reason: String) -> LogError {
    LogError::Refused(Refusal::Store { origin: origin.to_owned(), reason })
}

pub(super) fn malformed(origin: &str, reason: String) -> LogError {
    LogError::Refused(Refusal::Malformed { origin: origin.to_owned(), reason })
}

/// A hash in lower-case hex, as psql prints it after `\x`.
pub(crate) fn hex(hash: &Hash) -> String {
    use std::fmt::Write as _;
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
