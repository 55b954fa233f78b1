//! What the log tells publishers: entries, and anchors made on request.
//!
//! Owns the read-only SQL functions over the log and the receipts of publishers. Promises that every entry it hands out
//! is made afresh from the event's row: what does not hash to its leaf shows at the publisher, before it is signed.
#![allow(unsafe_code)] // is called by the function manager as it is, pushes and pops a snapshot

use crate::error::{self, Error, Result};
use crate::fmgr::{Rows, argument, definer_function, text};
use crate::log::events::{Found, each_leaf};
use crate::log::reports::{self, Report};
use crate::log::stored::Stored;
use crate::log::{key, storage};
use crate::{home, identity, shmem, worker};
use agd_core::Checkpoint;
use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::SpiHeapTupleData;

definer_function!(agd_entries, pg_finfo_agd_entries, answer_entries);

/// `agd.entries(origin, first_index, last_index)`
fn answer_entries(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.entries(origin text, first_index bigint, last_index bigint).
    let (origin, first, last) =
        unsafe { (argument::<String>(call, 0), argument::<i64>(call, 1), argument::<i64>(call, 2)) };
    let (Some(origin), Some(first), Some(last)) = (origin, first, last) else {
        return Err(Error::BadArgument {
            message: "origin, first_index and last_index must be given".into(),
            hint: "SELECT * FROM agd.entries('the origin', 0, 256).".into(),
        });
    };
    // The right to call it, the current user has.
    if !identity::both(|user| identity::is_member(user, c"agd_publisher")) {
        return Err(Error::NotAllowed {
            message: "entries are for publishers".into(),
            hint: "Log in as a member of agd_publisher: whose function calls agd.entries() does not count alone."
                .into(),
        });
    }
    let stored = Stored::latest()?;
    let head = stored.head_by_origin(&origin)?.ok_or_else(|| storage::no_such_log(&origin))?;
    let leaves = head.leaves(first, last)?;
    // SAFETY: this is the call.
    let mut rows = unsafe { Rows::begin(call) }?;
    each_leaf(&stored, &head, leaves, |index, key, found| match found {
        Found::Event(event) => {
            rows.put(|| [index.cast_signed().into_datum(), event.entry.into_datum()]);
            Ok(())
        }
        Found::Unreadable(error) => Err(error),
        Found::NoEvent | Found::NoTransaction => Err(Error::Corrupted {
            message: format!("event {key}, leaf {index} of {origin}, is missing"),
            hint: "It was deleted outside of agd. SELECT * FROM agd.verify() tells more.".into(),
        }),
    })?;
    Ok(pg_sys::Datum::from(0))
}

definer_function!(agd_record_publication, pg_finfo_agd_record_publication, answer_publication);

/// The longest name of a place: the longest path of a file system, as a URL.
const MAX_PLACE_BYTES: usize = 4200;

/// `agd.record_publication(origin, tree_size, root_hash, published_to, note)`
fn answer_publication(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.record_publication(origin text, tree_size bigint, root_hash bytea, published_to text,
    // note text).
    let (origin, size, root, place, note) = unsafe {
        (
            argument::<String>(call, 0),
            argument::<i64>(call, 1),
            argument::<Vec<u8>>(call, 2),
            argument::<String>(call, 3),
            argument::<String>(call, 4),
        )
    };
    record_publication(origin, size, root, place, note).map(|()| pg_sys::Datum::from(0))
}

fn record_publication(
    origin: Option<String>,
    size: Option<i64>,
    root: Option<Vec<u8>>,
    place: Option<String>,
    note: Option<String>,
) -> Result<()> {
    error::forbid_read_only(c"agd.record_publication()");
    let (Some(origin), Some(tree_size), Some(root), Some(place)) = (origin, size, root, place) else {
        return Err(Error::BadArgument {
            message: "origin, tree_size, root_hash and published_to must be given".into(),
            hint: "agd publish calls this function.".into(),
        });
    };
    if place.len() > MAX_PLACE_BYTES {
        return Err(Error::BadArgument {
            message: format!("a place with a name of {} bytes is none", place.len()),
            hint: format!("At most {MAX_PLACE_BYTES} bytes: s3://bucket/prefix or file:///folder."),
        });
    }
    let stored = Stored::latest()?;
    let head = stored.head_by_origin(&origin)?.ok_or_else(|| storage::no_such_log(&origin))?;
    let anchor = u64::try_from(tree_size).map_or(Ok(None), |size| stored.anchor_at(&head, size))?;
    let Some(anchor) = anchor.filter(|anchor| anchor.root[..] == root[..]) else {
        return Err(Error::BadArgument {
            message: format!("{origin} has no anchor of size {tree_size} with this root"),
            hint: "Publish what agd.anchors shows.".into(),
        });
    };
    // Ceilings rest on receipts: a publisher's word alone is none.
    let checkpoint = Checkpoint { origin, size: anchor.size, root: anchor.root };
    let vkey = key::must_be_signed(note.as_deref(), &checkpoint)?;
    let note = note.unwrap_or_default();
    reports::keep(Report::Published { log_id: head.log_id, tree_size, place, note, vkey })
}

definer_function!(agd_anchor, pg_finfo_agd_anchor, answer_anchor);

/// `agd.anchor()`
///
/// Asks the database's worker and waits. The worker integrates in a transaction of its own, so that an anchor never
/// depends on the caller's transaction: not on its isolation level, not on whether it commits, not on how long it stays
/// open with the log's rows locked.
fn answer_anchor(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    let anchors = make_anchors()?;
    // SAFETY: this is the call.
    let mut rows = unsafe { Rows::begin(call) }?;
    for (origin, size, root) in &anchors {
        rows.put(|| [text(origin), Some((*size).into()), root.as_slice().into_datum()]);
    }
    Ok(pg_sys::Datum::from(0))
}

fn make_anchors() -> Result<Vec<(String, i64, Vec<u8>)>> {
    home::check()?;
    let database = shmem::this_database()?;
    let before = newest_anchors()?;
    worker::integrate_now(database)?;
    anchors_since(before)
}

/// Numbers of logs, and the size of the newest anchor of each.
type Newest = (Vec<i32>, Vec<i64>);

fn newest_anchors() -> Result<Newest> {
    // A look-up for each log: neither this nor the other query grows with the number of anchors.
    let query = "SELECT l.log_id, n.tree_size
                   FROM agd.log l
                        CROSS JOIN LATERAL (SELECT c.tree_size FROM agd.checkpoint c WHERE c.log_id = l.log_id
                                             ORDER BY c.tree_size DESC LIMIT 1) n";
    select_latest(query, &[], |row| {
        Ok((row.get::<i32>(1)?.unwrap_or_default(), row.get::<i64>(2)?.unwrap_or_default()))
    })
    .map(|rows| rows.into_iter().unzip())
}

/// The anchors that were written since.
fn anchors_since((logs, sizes): Newest) -> Result<Vec<(String, i64, Vec<u8>)>> {
    let query = "SELECT l.origin, n.tree_size, n.root_hash
                   FROM agd.log l
                        LEFT JOIN ROWS FROM (pg_catalog.unnest($1::int[]), pg_catalog.unnest($2::bigint[]))
                                  AS b (log_id, tree_size) USING (log_id)
                        CROSS JOIN LATERAL (SELECT c.tree_size, c.root_hash FROM agd.checkpoint c
                                             WHERE c.log_id = l.log_id AND c.tree_size > COALESCE(b.tree_size, 0)
                                            OFFSET 0) n
                  ORDER BY l.tenant NULLS LAST, n.tree_size";
    select_latest(query, &[logs.into(), sizes.into()], |row| {
        Ok((
            row.get::<String>(1)?.unwrap_or_default(),
            row.get::<i64>(2)?.unwrap_or_default(),
            row.get::<Vec<u8>>(3)?.unwrap_or_default(),
        ))
    })
}

/// Reads under the latest snapshot, so that a REPEATABLE READ caller too sees what the worker has just committed.
fn select_latest<T>(
    query: &str,
    arguments: &[DatumWithOid<'_>],
    read: impl Fn(SpiHeapTupleData<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    // SAFETY: pushes a snapshot for the query and pops it after; on an error PostgreSQL drops it.
    unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot()) };
    let rows = Spi::connect(|client| client.select(query, None, arguments)?.map(read).collect());
    // SAFETY: pushed above.
    unsafe { pg_sys::PopActiveSnapshot() };
    rows
}
