//! What the log hands out to be held against its published copy: entries with their images.
//!
//! Owns `agd.export_events()`. Promises entries made afresh from the events' rows, under the snapshot of the query that
//! asks: in a REPEATABLE READ transaction all calls tell of one moment. Row images, and the salts without which a digest tells
//! nothing of its image, are for those alone who may read them in `agd.events`. Never writes; never stops at an event that
//! is missing or broken: whoever compares is to see the others.
#![allow(unsafe_code)] // is called by the function manager as it is

use crate::catalog;
use crate::error::{Error, Result};
use crate::event;
use crate::fmgr::{Rows, argument, c_function, text};
use crate::log::events::{Found, each_leaf};
use crate::log::storage;
use crate::log::stored::Stored;
use crate::tenant;
use pgrx::datum::IntoDatum;
use pgrx::pg_sys;

c_function!(agd_export_events, pg_finfo_agd_export_events, answer_export);

/// `agd.export_events(origin, first_index, last_index)`
fn answer_export(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.export_events(origin text, first_index bigint, last_index bigint).
    let (origin, first, last) =
        unsafe { (argument::<String>(call, 0), argument::<i64>(call, 1), argument::<i64>(call, 2)) };
    let (Some(origin), Some(first), Some(last)) = (origin, first, last) else {
        return Err(Error::BadArgument {
            message: "origin, first_index and last_index must be given".into(),
            hint: "SELECT * FROM agd.export_events('the origin', 0, 256).".into(),
        });
    };
    let stored = Stored::active()?;
    let head = stored.head_by_origin(&origin)?;
    let head =
        head.filter(|head| tenant::may_read(head.tenant.as_deref())).ok_or_else(|| storage::no_such_log(&origin))?;
    let leaves = head.leaves(first, last)?;
    let images = tenant::may_read_payload(head.tenant.as_deref())?;
    // SAFETY: this is the call.
    let mut rows = unsafe { Rows::begin(call) }?;
    each_leaf(&stored, &head, leaves, |index, key, found| {
        // A row that was changed so that it has no entry is as good as missing.
        let event = if let Found::Event(event) = found { Some(event) } else { None };
        rows.put(|| {
            let image = |column| {
                let value = event.as_ref().filter(|_| images)?.row.get(column)?;
                // SAFETY: only asked for columns that are json or bytea: one as text, the other as it is.
                Some(catalog::to_varlena(unsafe { catalog::varlena(value) }))
            };
            [
                index.cast_signed().into_datum(),
                text(&key.to_string()),
                event.as_ref().and_then(|event| event.entry.into_datum()),
                images.into_datum(),
                image(event::EVENT_SALT),
                image(event::EVENT_ROW_KEY),
                image(event::EVENT_OLD),
                image(event::EVENT_NEW),
            ]
        });
        Ok(())
    })?;
    Ok(pg_sys::Datum::from(0))
}
