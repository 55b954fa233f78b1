//! The sweeper: writes down which fleets have missed their window.
//!
//! Owns when that is due and how much of it is done in one transaction. Promises that each transaction cancels whole fleets,
//! never waits for whoever is at one of them, and is the only one that the worker makes for fleets. Nothing that is read
//! depends on it: a fleet whose window has passed is cancelled from that instant on.

use super::seal::cancel_all_missed;
use crate::backend;
use crate::error::Result;
use crate::query;
use pgrx::datum::TimestampWithTimeZone;
use std::time::Duration;

/// Fleets of one transaction.
const BATCH: usize = 1000;

/// How long until the next window ends; None: nothing is pending.
pub fn due_in() -> Result<Option<Duration>> {
    let deadline = query::one_kept::<TimestampWithTimeZone>(
        "SELECT f.countersign_deadline FROM agd.tenant_agent_fleet f WHERE f.state = 'pending'
          ORDER BY f.countersign_deadline LIMIT 1",
    )?;
    let left = deadline.map(|deadline| deadline.into_inner().saturating_sub(backend::now()).max(0));
    Ok(left.map(|left| Duration::from_micros(left.cast_unsigned())))
}

/// Cancels fleets that have missed their window. True: there may be more.
pub fn sweep() -> Result<bool> {
    Ok(cancel_all_missed(BATCH)? == BATCH)
}
