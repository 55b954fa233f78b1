//! What the publisher needs of a database, behind a small trait.
//!
//! Owns the shapes that cross the boundary. Everything that comes through it is a claim to be checked: sizes are signed
//! and roots are byte strings, as the database gives them.

use agd_core::Hash;
use thiserror::Error;

use crate::publish::memory::Home;

/// Why the database could not be read or told.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what}: {message}{}", hint.as_deref().map(|h| format!(" ({h})")).unwrap_or_default())]
pub struct SourceError {
    /// What was being done.
    pub what: &'static str,
    /// What the server or the connection said. Never holds the connection string.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// One log as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogHead {
    /// The log's identity.
    pub origin: String,
    /// Its tenant, none for the platform log.
    pub tenant: Option<String>,
    /// Size of its newest anchor, in leaves.
    pub tree_size: i64,
    /// It belongs to an earlier incarnation of the database's logs: nothing continues it.
    pub closed: bool,
    /// The largest size that the database has a receipt for, whatever the place; None: it has none, or was not asked.
    pub received: Option<i64>,
    /// The same for the place that was asked about.
    pub received_here: Option<i64>,
}

/// Where a database says that its record is at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtHome {
    /// On this server, in this database.
    Here,
    /// Nothing was recorded yet.
    New,
    /// Elsewhere: this is a copy that was not resumed.
    Copy,
}

/// Who the database is, and what it knows of publishing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The server's system identifier and the database's oid.
    pub home: Home,
    /// Whether its record is at home there.
    pub at_home: AtHome,
    /// The server and database that made the newest receipt, as `system identifier/oid`.
    pub received_from: Option<String>,
    /// The registered vkeys.
    pub keys: Vec<String>,
}

/// One anchor of a log as the database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Leaves.
    pub tree_size: i64,
    /// The root over them; 32 bytes when all is well.
    pub root_hash: Vec<u8>,
    /// The unsigned checkpoint text.
    pub checkpoint: String,
    /// Where the database knows it to be published: the places, with a comma and a space between them.
    pub published_to: Option<String>,
}

/// A checkpoint that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// Leaves.
    pub tree_size: i64,
    /// The root over them.
    pub root: Hash,
    /// The signed note, as it is in the store.
    pub note: String,
}

/// A database's logs.
pub trait Source {
    /// Who it is.
    ///
    /// # Errors
    /// [`SourceError`].
    fn identity(&mut self) -> Result<Identity, SourceError>;

    /// Every log that has an anchor, with the size of its newest one; and, where a place is asked about, the sizes that there
    /// are receipts for.
    ///
    /// # Errors
    /// [`SourceError`].
    fn logs(&mut self, place: Option<&str>) -> Result<Vec<LogHead>, SourceError>;

    /// Up to `limit` anchors of a log with a size of `from` or more, by ascending size.
    ///
    /// # Errors
    /// [`SourceError`].
    fn anchors(&mut self, origin: &str, from: i64, limit: i64) -> Result<Vec<Anchor>, SourceError>;

    /// The entries of a log with indexes in `[first, last)`, each with its index, in order.
    ///
    /// # Errors
    /// [`SourceError`].
    fn entries(&mut self, origin: &str, first: i64, last: i64) -> Result<Vec<(i64, Vec<u8>)>, SourceError>;

    /// Tells the database that these checkpoints of a log are in the store.
    ///
    /// # Errors
    /// [`SourceError`].
    fn record_publication(
        &mut self,
        origin: &str,
        published: &[Receipt],
        published_to: &str,
    ) -> Result<(), SourceError>;

    /// Tells the database that a checkpoint of a log was timestamped, at a time in microseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`SourceError`].
    fn record_timestamp(&mut self, origin: &str, tree_size: i64, root: &Hash, at: i64) -> Result<(), SourceError>;

    /// Tells the database that this checkpoint of a log was published and that the log does not continue it.
    ///
    /// # Errors
    /// [`SourceError`]; also when the database finds that the log does.
    fn report_divergence(&mut self, origin: &str, newest: &Receipt) -> Result<(), SourceError>;

    /// Whether the connection is lost, so that nothing more can be asked.
    fn is_closed(&self) -> bool {
        false
    }
}

/// A database that cannot be reached: every call says why.
#[derive(Debug)]
pub struct Unreachable(pub SourceError);

impl Source for Unreachable {
    fn identity(&mut self) -> Result<Identity, SourceError> {
        Err(self.0.clone())
    }

    fn logs(&mut self, _: Option<&str>) -> Result<Vec<LogHead>, SourceError> {
        Err(self.0.clone())
    }

    fn anchors(&mut self, _: &str, _: i64, _: i64) -> Result<Vec<Anchor>, SourceError> {
        Err(self.0.clone())
    }

    fn entries(&mut self, _: &str, _: i64, _: i64) -> Result<Vec<(i64, Vec<u8>)>, SourceError> {
        Err(self.0.clone())
    }

    fn record_publication(&mut self, _: &str, _: &[Receipt], _: &str) -> Result<(), SourceError> {
        Err(self.0.clone())
    }

    fn record_timestamp(&mut self, _: &str, _: i64, _: &Hash, _: i64) -> Result<(), SourceError> {
        Err(self.0.clone())
    }

    fn report_divergence(&mut self, _: &str, _: &Receipt) -> Result<(), SourceError> {
        Err(self.0.clone())
    }

    fn is_closed(&self) -> bool {
        true
    }
}
