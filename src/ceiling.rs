//! Ceilings that fail closed: a guarded write waits, then is refused (53400), while too much of what was written is not yet
//! out of reach of whoever owns the database.
//!
//! Owns the two questions before a transaction's first guarded write: do more committed events wait for integration than
//! `agd.max_unsequenced_events`, and are more anchors unpublished than `agd.max_unpublished_anchors`? An anchor counts as
//! unpublished when it is one of the platform log's (these cover the tenants') and newer than the newest of them that a
//! publisher has reported. Promises that reads, what agd itself decides (in its own tables) or records, and transactions that
//! have passed are never held up; that what the worker records of itself, refusals above all, counts towards no ceiling, so
//! that nobody stops others' writes by being refused; that a restart forgets neither count; and that with both ceilings off (0, the default) a write pays two loads.
//!
//! Each count is an atomic in shared memory that is never below the truth for longer than a commit takes: what it allows is
//! allowed, what it forbids is looked up before anybody is refused.

use crate::catalog::{Columns, Relation, catalog, has_rows, named, scan, scan_directed, scan_key};
use crate::error::{Error, Result};
use crate::log::storage;
use crate::shmem::{self, Database};
use crate::{event, home, settings};
use pgrx::pg_sys;
use pgrx::pg_sys::ScanDirection::BackwardScanDirection;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// How often a waiting write looks again, if nothing wakes it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

thread_local! {
    /// This transaction has passed.
    static PASSED: Cell<bool> = const { Cell::new(false) };
}

/// The gate asks before it records a write.
pub fn check() -> Result<()> {
    let (events, anchors) = (settings::max_unsequenced_events(), settings::max_unpublished_anchors());
    if events == 0 && anchors == 0 || PASSED.get() {
        return Ok(());
    }
    pass(events, anchors)?;
    PASSED.set(true);
    Ok(())
}

/// The transaction is over: the next one asks again.
pub fn transaction_ended() {
    PASSED.set(false);
}

fn pass(max_events: i64, max_anchors: i64) -> Result<()> {
    let database = match shmem::this_database_if_any() {
        Some(database) => database,
        None => {
            // Nothing is counted for a record that is not at home here.
            home::check()?;
            shmem::this_database()?
        }
    };
    if database.is_worker() {
        return Ok(());
    }
    let began = Instant::now();
    loop {
        pgrx::check_for_interrupts!();
        let problem =
            if too_many_events(database, max_events)? {
                database.hurry_worker();
                Error::OverCeiling {
                message: format!("more than {max_events} events wait to be integrated (agd.max_unsequenced_events)"),
                hint: "Writes go on when the agd worker of this database has caught up. Does it run, and does it fail? \
                       SELECT worker, worker_failures, worker_last_failure FROM agd.stat; the server's log tells more."
                    .into(),
            }
            } else if too_many_anchors(database, max_anchors)? {
                Error::OverCeiling {
                message: format!("more than {max_anchors} anchors are not published (agd.max_unpublished_anchors)"),
                hint: "Writes go on when agd publish has carried the newest anchor out. Does it run, and does it reach \
                       its store? SELECT * FROM agd.anchors WHERE published_at IS NULL shows what waits."
                    .into(),
            }
            } else {
                return Ok(());
            };
        let Some(left) = settings::ceiling_wait().checked_sub(began.elapsed()).filter(|left| !left.is_zero()) else {
            return Err(problem);
        };
        database.wait_for_answer_within(left.min(LOOK_AGAIN), || false);
    }
}

fn too_many_events(database: &Database, max: i64) -> Result<bool> {
    // What was committed before a restart and is not integrated yet was counted by nobody who is still there.
    Ok(max > 0 && (!database.restore_waiting(unsequenced_events)? || database.waiting_of_others() > max))
}

/// Committed events that the sequencer has not integrated, by the tables.
fn unsequenced_events() -> Result<i64> {
    let catalog = catalog()?;
    if !has_rows(catalog.sequencer)? {
        return Ok(0); // nothing was ever recorded
    }
    let integrated = storage::integrated()?;
    let relation = Relation::open(catalog.transaction, pg_sys::AccessShareLock);
    let mut row = Columns::default();
    let mut events = 0;
    let mut count = |strategy, function, xact_id: u64| {
        let mut keys = [scan_key(1, strategy, function, pg_sys::Datum::from(xact_id))];
        scan(&relation, Some(catalog.transaction_pkey), std::ptr::null_mut(), &mut keys, |tuple| {
            row.deform(tuple, relation.descriptor());
            events += row.get(event::TRANSACTION_EVENTS).map_or(0, |value| i64::from(value.value() as i32));
            Ok(())
        })
    };
    for &xact_id in &integrated.in_progress {
        count(pg_sys::BTEqualStrategyNumber, pg_sys::F_XID8EQ, xact_id)?;
    }
    count(pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_XID8GE, integrated.xmax)?;
    Ok(events)
}

fn too_many_anchors(database: &Database, max: i64) -> Result<bool> {
    let Some(seen) = database.unpublished_above(max) else { return Ok(false) };
    // The worker counted what it anchored; what was published since, and after a restart everything, only the tables know.
    let found = unpublished_anchors(max)?;
    if found <= max {
        database.set_unpublished(seen, found);
    }
    Ok(found > max)
}

/// The platform log's anchors beyond the newest published one; counts one more than `max` at most.
fn unpublished_anchors(max: i64) -> Result<i64> {
    let Some(platform) = platform_log()? else { return Ok(0) };
    let newest = |table: &std::ffi::CStr, index: &std::ffi::CStr, each: &mut dyn FnMut(i64) -> bool| {
        let relation = Relation::open(named(table)?, pg_sys::AccessShareLock);
        let mut keys = [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT4EQ, pg_sys::Datum::from(platform))];
        let mut row = Columns::default();
        scan_directed(&relation, named(index)?, std::ptr::null_mut(), &mut keys, BackwardScanDirection, |tuple| {
            row.deform(tuple, relation.descriptor());
            Ok(each(row.get(1).map_or(0, |value| value.value() as i64)))
        })
    };
    let mut published = 0;
    newest(c"publication", c"publication_pkey", &mut |tree_size| {
        published = tree_size;
        false
    })?;
    let mut count = 0;
    newest(c"checkpoint", c"checkpoint_pkey", &mut |tree_size| {
        let unpublished = tree_size > published;
        count += i64::from(unpublished);
        unpublished && count <= max
    })?;
    Ok(count)
}

/// The number of the newest incarnation's. None: nothing was ever recorded.
fn platform_log() -> Result<Option<i32>> {
    let catalog = catalog()?;
    let relation = Relation::open(catalog.log, pg_sys::AccessShareLock);
    let mut row = Columns::default();
    let mut platform = None;
    let (index, newest_first) = (catalog.log_platform, BackwardScanDirection);
    scan_directed(&relation, index, std::ptr::null_mut(), &mut [], newest_first, |tuple| {
        row.deform(tuple, relation.descriptor());
        platform = row.get(0).map(|value| value.value() as i32);
        Ok(false)
    })?;
    Ok(platform)
}
