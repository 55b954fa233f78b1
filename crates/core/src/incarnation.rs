//! Incarnations: how the logs of a database go on after they lost what was published.
//!
//! Owns the body of an INCARNATION event, the first leaf of a new incarnation's platform log. Promises that a body has one
//! spelling only: what parses, prints the same bytes again. It never tells whether what a body says is true.
//!
//! The body is two checkpoints, each in its three lines ([`Checkpoint`]), and the reason: first the newest checkpoint that
//! was published and is no part of the record any more, then the platform log that is closed, as it was when it was closed.

use std::fmt;

use thiserror::Error;

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::name;

/// What the first leaf of a new incarnation commits to.
///
/// ```
/// use agd_core::{Checkpoint, Incarnation};
/// let published = Checkpoint { origin: "agd-7/app".into(), size: 900, root: [1; 32] };
/// let closed = Checkpoint { origin: "agd-7/app".into(), size: 512, root: [2; 32] };
/// let body = Incarnation { published, closed, reason: "disk lost".into() };
/// assert!(body.to_string().ends_with("\ndisk lost"));
/// assert_eq!(Incarnation::parse(&body.to_string()), Ok(body));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Incarnation {
    /// The newest checkpoint that was published and that the record does not have: of the platform log, or of a tenant's.
    pub published: Checkpoint,
    /// The platform log of the incarnation before: every leaf that it ever had in this database.
    pub closed: Checkpoint,
    /// Why, in the words of whoever opened the record again; not empty.
    pub reason: String,
}

/// Why a text is not the body of an INCARNATION event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum IncarnationError {
    /// The first three lines are not a checkpoint.
    #[error("the published checkpoint: {0}")]
    Published(CheckpointError),
    /// The next three lines are not a checkpoint.
    #[error("the closed log: {0}")]
    Closed(CheckpointError),
    /// Nothing follows them.
    #[error("there is no reason")]
    Reason,
    /// The published checkpoint is of another log than the closed one or a tenant's under it.
    #[error("the published checkpoint is of another database than the closed log")]
    Origins,
}

impl Incarnation {
    /// Reads a body.
    ///
    /// # Errors
    /// [`IncarnationError`] names what is wrong.
    pub fn parse(body: &str) -> Result<Self, IncarnationError> {
        let (published, rest) = three_lines(body);
        let (closed, reason) = three_lines(rest);
        let published = Checkpoint::parse(published).map_err(IncarnationError::Published)?;
        let closed = Checkpoint::parse(closed).map_err(IncarnationError::Closed)?;
        if reason.is_empty() {
            return Err(IncarnationError::Reason);
        }
        let parsed = Self { published, closed, reason: reason.to_owned() };
        if parsed.is_of_one_database() { Ok(parsed) } else { Err(IncarnationError::Origins) }
    }

    fn is_of_one_database(&self) -> bool {
        let tenant = self.published.origin.strip_prefix(&self.closed.origin);
        tenant.is_some_and(|rest| {
            rest.is_empty() || rest.strip_prefix("/t/").is_some_and(|tenant| name::validate_tenant(tenant).is_ok())
        })
    }
}

/// A text up to the end of its third line, and the rest.
fn three_lines(text: &str) -> (&str, &str) {
    let end = text.match_indices('\n').nth(2).map_or(text.len(), |(at, _)| at + 1);
    text.split_at(end)
}

/// Both checkpoints' three lines, and the reason.
impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.published, self.closed, self.reason)
    }
}
