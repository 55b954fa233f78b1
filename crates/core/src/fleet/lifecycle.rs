//! The states of a fleet.
//!
//! ```text
//!   pending ──sign──▶ pending (signed) ──countersign──▶ active ──seal──▶ sealed
//!      └────────────── window passes, or seal ──▶ cancelled
//! ```
//!
//! Owns which change follows on which, as functions of the stored state and the time. Promises that a fleet whose window
//! has passed is cancelled from that very microsecond on, whether or not anybody has written it down ([`at`]); that a window
//! is half open, so an instant is either in it or past it; and that sealed and cancelled are final. Time is a number of
//! microseconds, the same for every argument; where it comes from is the caller's business.
//!
//! What the agents of a fleet are told may change until the coordinator signs, since that is signed; afterwards, never.
//!
//! To seal a fleet that is still pending cancels it, together with its countersign request: it was never active, so there is
//! nothing that could be sealed. CHECK constraints of `agd.tenant_agent_fleet` say the same of each stored row.

use std::fmt;

use thiserror::Error;

/// Where a fleet stands, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Minted; waits for its signatures.
    Pending {
        /// Has the coordinator signed?
        signed: bool,
        /// The first instant at which it is too late to sign or countersign.
        deadline: i64,
    },
    /// Signed and countersigned in time.
    Active,
    /// Over, after it was active.
    Sealed,
    /// Over, and it never was active.
    Cancelled,
}

/// What happens to a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// What one of its agents is told is changed.
    Amend,
    /// The coordinator signs.
    Sign,
    /// The countersigner countersigns.
    Countersign,
    /// It is to end now.
    Seal,
    /// It is written down that its window has passed.
    Expire,
}

/// Why a change is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Error)]
pub enum Denied {
    /// The coordinator has to sign first.
    #[error("its coordinator has not signed it yet")]
    NotSigned,
    /// A fleet is signed once.
    #[error("its coordinator has signed it already")]
    AlreadySigned,
    /// The window has passed: it is cancelled.
    #[error("its countersign window has passed")]
    TooLate,
    /// The window has not passed yet.
    #[error("its countersign window has not passed yet")]
    TooEarly,
    /// It is active already.
    #[error("it is active already")]
    Active,
    /// It is sealed.
    #[error("it is sealed")]
    Sealed,
    /// It is cancelled.
    #[error("it is cancelled")]
    Cancelled,
}

impl State {
    /// The name under which it is stored.
    pub fn name(self) -> &'static str {
        match self {
            State::Pending { .. } => "pending",
            State::Active => "active",
            State::Sealed => "sealed",
            State::Cancelled => "cancelled",
        }
    }

    /// Is it over?
    pub fn is_final(self) -> bool {
        matches!(self, State::Sealed | State::Cancelled)
    }
}

/// The state's name.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fleet's state at an instant: a pending one whose window has passed is cancelled.
pub fn at(stored: State, now: i64) -> State {
    match stored {
        State::Pending { deadline, .. } if now >= deadline => State::Cancelled,
        other => other,
    }
}

/// The state after an event at an instant.
///
/// # Errors
/// [`Denied`] says why the event cannot happen; the state is then what it was.
pub fn step(stored: State, event: Event, now: i64) -> Result<State, Denied> {
    let State::Pending { signed, deadline } = stored else {
        return match (stored, event) {
            (State::Active, Event::Seal) => Ok(State::Sealed),
            (State::Active, _) => Err(Denied::Active),
            (State::Sealed, _) => Err(Denied::Sealed),
            _ => Err(Denied::Cancelled),
        };
    };
    match (event, now >= deadline) {
        (Event::Expire, true) | (Event::Seal, false) => Ok(State::Cancelled),
        (Event::Expire, false) => Err(Denied::TooEarly),
        (_, true) => Err(Denied::TooLate),
        (Event::Amend | Event::Sign, false) if signed => Err(Denied::AlreadySigned),
        (Event::Amend, false) => Ok(stored),
        (Event::Sign, false) => Ok(State::Pending { signed: true, deadline }),
        (Event::Countersign, false) if !signed => Err(Denied::NotSigned),
        (Event::Countersign, false) => Ok(State::Active),
    }
}

/// May a stored row go from one state to another, by their names? What a row says of itself, times and all, is for CHECK
/// constraints.
pub fn may_follow(from: &str, to: &str) -> bool {
    matches!((from, to), ("pending", "pending" | "active" | "cancelled") | ("active", "sealed"))
}
