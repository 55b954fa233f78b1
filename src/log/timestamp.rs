//! What publishers report about RFC 3161 timestamps.
//!
//! Owns what may be said of agd.timestamped: at which time a TSA has stamped which anchor. Promises that only an anchor which
//! is there is said to be stamped. It never checks a timestamp: `agd publish` did before it kept it, and `agd verify --tsa-ca` does from the store.
#![allow(unsafe_code)] // is called by the function manager as it is

use crate::error::{self, Error, Result};
use crate::fmgr::{argument, definer_function};
use crate::log::reports::{self, Report};
use crate::log::storage;
use crate::log::stored::Stored;
use pgrx::prelude::*;

definer_function!(agd_record_timestamp, pg_finfo_agd_record_timestamp, answer_timestamp);

/// `agd.record_timestamp(origin, tree_size, root_hash, at)`
fn answer_timestamp(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.record_timestamp(origin text, tree_size bigint, root_hash bytea, at timestamptz).
    let (origin, size, root, at) = unsafe {
        (
            argument::<String>(call, 0),
            argument::<i64>(call, 1),
            argument::<Vec<u8>>(call, 2),
            argument::<TimestampWithTimeZone>(call, 3),
        )
    };
    record(origin, size, root, at).map(|()| pg_sys::Datum::from(0))
}

fn record(
    origin: Option<String>,
    size: Option<i64>,
    root: Option<Vec<u8>>,
    at: Option<TimestampWithTimeZone>,
) -> Result<()> {
    error::forbid_read_only(c"agd.record_timestamp()");
    let finite = at.filter(|at| !at.is_infinity() && !at.is_neg_infinity());
    let (Some(origin), Some(size), Some(root), Some(at)) = (origin, size, root, finite) else {
        return Err(Error::BadArgument {
            message: "origin, tree_size, root_hash and a finite time must be given".into(),
            hint: "agd publish calls this function.".into(),
        });
    };
    let stored = Stored::latest()?;
    let head = stored.head_by_origin(&origin)?.ok_or_else(|| storage::no_such_log(&origin))?;
    let anchor = u64::try_from(size).map_or(Ok(None), |size| stored.anchor_at(&head, size))?;
    if anchor.is_none_or(|anchor| anchor.root[..] != root[..]) {
        return Err(Error::BadArgument {
            message: format!("{origin} has no anchor of size {size} with this root"),
            hint: "A timestamp is of an anchor that agd.anchors shows.".into(),
        });
    }
    reports::keep(Report::Stamped { log_id: head.log_id, tree_size: size, at })
}
