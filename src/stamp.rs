//! Commit stamps: the order of transactions in the log.
//!
//! Owns when the shared clock may be used. Promises that a stamp is larger than every stamp ever stored in this
//! database, across restarts and clocks that step back. The stamp is drawn when the transaction's locks and checks are
//! all behind it, so for two transactions that touched the same row, stamp order is the order in which they did.
#![allow(unsafe_code)] // scans with SnapshotAny

use crate::catalog::{Columns, Relation, catalog, scan, scan_key};
use crate::error::Result;
use crate::{event, log, shmem};
use pgrx::pg_sys;
use std::sync::atomic::Ordering;

/// Draws the next commit stamp: microseconds since PostgreSQL's epoch.
pub fn draw() -> Result<i64> {
    let database = shmem::this_database()?;
    if !database.clock_restored.load(Ordering::Acquire) {
        shmem::raise_clock(stored_floor()?)?;
        database.clock_restored.store(true, Ordering::Release);
    }
    shmem::next_stamp()
}

/// The largest stamp that this database has stored: of what is integrated, the sequencer knows it; of the rest, every
/// row counts, also of transactions that are prepared, still running or rolled back.
fn stored_floor() -> Result<i64> {
    let (mut floor, oldest) = log::sequencer::stamp_floor()?;
    let catalog = catalog()?;
    let relation = Relation::open(catalog.transaction, pg_sys::AccessShareLock);
    let mut columns = Columns::default();
    let mut keys = [scan_key(
        event::TRANSACTION_XACT_ID as i16 + 1,
        pg_sys::BTGreaterEqualStrategyNumber,
        pg_sys::F_XID8GE,
        pg_sys::Datum::from(oldest),
    )];
    // SAFETY: SnapshotAny is a static snapshot.
    let any = &raw mut pg_sys::SnapshotAnyData;
    scan(&relation, Some(catalog.transaction_pkey), any, &mut keys, |tuple| {
        columns.deform(tuple, relation.descriptor());
        if let Some(stamp) = columns.get(event::TRANSACTION_STAMP) {
            floor = floor.max(stamp.value() as i64);
        }
        Ok(())
    })?;
    Ok(floor)
}
