//! What publishers report, kept until their transaction commits.
//!
//! Owns the way from a report (a receipt, a timestamp, published history that the record does not have) to its effect, and
//! agd.publication and agd.timestamped. Promises that nothing a publisher reports is in force before its transaction commits,
//! and that until then it holds no lock that a writer, the worker, the platform or another publisher could wait for: an open
//! transaction of a publisher stops nobody, and a prepared one cannot have reported anything. What a transaction may report is
//! bounded. It decides once more, at the commit, whatever was decided when the report came. Never believes a report: who
//! calls [`keep`] has checked it.
#![allow(unsafe_code)] // pushes and pops a snapshot

use crate::error::{Error, Result};
use crate::log::{key, storage};
use crate::{backend, catalog, home, identity, incarnation, query};
use agd_core::Checkpoint;
use pgrx::prelude::*;
use std::cell::{Cell, RefCell};

/// What one transaction may report, and the bytes that it may keep here until it commits.
const MAX_REPORTS: usize = 10_000;
const MAX_BYTES: usize = 32 << 20;

/// Places that one checkpoint may be reported to be in, and times it may be reported to be stamped at.
const MAX_PLACES: i64 = 64;

/// A report that was checked.
#[derive(Clone, Debug)]
pub enum Report {
    /// A checkpoint lies somewhere, signed by the key of this vkey.
    Published { log_id: i32, tree_size: i64, place: String, note: String, vkey: String },
    /// A checkpoint was stamped.
    Stamped { log_id: i32, tree_size: i64, at: TimestampWithTimeZone },
    /// A checkpoint was published, signed by the key of this vkey, and the record does not have it.
    Diverged { checkpoint: Checkpoint, vkey: String },
}

impl Report {
    fn bytes(&self) -> usize {
        size_of::<Self>()
            + match self {
                Report::Published { place, note, vkey, .. } => place.len() + note.len() + vkey.len(),
                Report::Stamped { .. } => 0,
                Report::Diverged { checkpoint, vkey } => checkpoint.origin.len() + vkey.len(),
            }
    }
}

struct Pending {
    subtransaction: u32,
    report: Report,
}

thread_local! {
    static PENDING: RefCell<Vec<Pending>> = const { RefCell::new(Vec::new()) };
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

/// Keeps a report for the commit. 54000 when there are too many.
pub fn keep(report: Report) -> Result<()> {
    let bytes = BYTES.get() + report.bytes();
    let full = PENDING.with_borrow(Vec::len) >= MAX_REPORTS || bytes > MAX_BYTES;
    if full {
        return Err(Error::LimitExceeded {
            message: format!("one transaction reports no more than {MAX_REPORTS} publications"),
            hint: "COMMIT, then report the others.".into(),
        });
    }
    BYTES.set(bytes);
    PENDING.with_borrow_mut(|pending| pending.push(Pending { subtransaction: backend::subtransaction(), report }));
    Ok(())
}

/// A subtransaction was rolled back, and what it reported with it.
pub fn subtransaction_rolled_back(subtransaction: u32) {
    PENDING.with_borrow_mut(|pending| pending.retain(|kept| kept.subtransaction < subtransaction));
}

/// The transaction is over.
pub fn transaction_ended() {
    BYTES.set(0);
    PENDING.take();
}

/// 0A000 for a transaction that reported something: prepared, it would hold for good what a commit holds for a moment.
pub fn before_prepare() -> Result<()> {
    if PENDING.with_borrow(Vec::is_empty) {
        return Ok(());
    }
    Err(Error::Unsupported {
        message: "a transaction that reports publications cannot be prepared".into(),
        hint: "COMMIT it.".into(),
    })
}

/// The transaction is about to commit: puts into force what it reported.
pub fn before_commit() -> Result<()> {
    // What DROP EXTENSION took away needs no reports.
    if PENDING.with_borrow(Vec::is_empty) || !catalog::is_installed() {
        return Ok(());
    }
    let pending = PENDING.take();
    BYTES.set(0);
    // SAFETY: the transaction can still fail; the snapshot is popped below, or by PostgreSQL after an error.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
    let settled = identity::always_as_owner(|| settle(pending));
    // SAFETY: pushed above.
    unsafe {
        pg_sys::PopActiveSnapshot();
        pg_sys::CommandCounterIncrement();
    }
    settled
}

fn settle(pending: Vec<Pending>) -> Result<()> {
    let keys = key::in_force()?;
    let signed = |vkey: &String| {
        if keys.contains(vkey) {
            return Ok(());
        }
        Err(Error::SignatureRefused {
            message: "the key that has signed what this transaction reports was revoked meanwhile".into(),
            hint: "SELECT * FROM agd.log_key shows since when, and why.".into(),
        })
    };
    let here = home::identity();
    let mut diverged = Vec::new();
    for Pending { report, .. } in pending {
        match report {
            Report::Published { log_id, tree_size, place, note, vkey } => {
                signed(&vkey)?;
                // What was reported once without its note may be completed; nothing else of a receipt changes.
                storage::writing(|| {
                    query::run_kept(
                        "INSERT INTO agd.publication AS p (log_id, tree_size, published_to, note, published_from)
                         SELECT $1, $2, $3, $4, $5
                          WHERE (SELECT pg_catalog.count(*) FROM agd.publication o
                                  WHERE o.log_id = $1 AND o.tree_size = $2 AND o.published_to <> $3) < $6
                         ON CONFLICT (log_id, tree_size, published_to) DO UPDATE SET note = EXCLUDED.note
                          WHERE p.note IS NULL",
                        &[
                            log_id.into(),
                            tree_size.into(),
                            place.into(),
                            note.into(),
                            here.as_str().into(),
                            MAX_PLACES.into(),
                        ],
                    )
                })?;
            }
            Report::Stamped { log_id, tree_size, at } => storage::writing(|| {
                query::run_kept(
                    "INSERT INTO agd.timestamped (log_id, tree_size, stamped_at)
                     SELECT $1, $2, $3
                      WHERE (SELECT pg_catalog.count(*) FROM agd.timestamped o
                              WHERE o.log_id = $1 AND o.tree_size = $2) < $4
                     ON CONFLICT DO NOTHING",
                    &[log_id.into(), tree_size.into(), at.into(), MAX_PLACES.into()],
                )
            })?,
            Report::Diverged { checkpoint, vkey } => {
                signed(&vkey)?;
                diverged.push(checkpoint);
            }
        }
    }
    // Last: from here to the end of the commit everybody waits who would add to the record.
    for checkpoint in &diverged {
        incarnation::close(checkpoint)?;
    }
    Ok(())
}
