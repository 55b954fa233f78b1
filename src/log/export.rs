//! What the log hands out to be held against its published copy: entries with their images.
//!
//! Owns `agd.export_events()`. Promises entries made afresh from the events' rows, under the snapshot of the query that
//! asks: in a REPEATABLE READ transaction all calls tell of one moment. Row images, and the salts without which a digest tells
//! nothing of its image, are for those alone who may read them in `agd.events`. Never writes; never stops at an event that
//! is missing or broken: whoever compares is to see the others.
#![allow(unsafe_code)] // is called by the function manager as it is

use crate::catalog::{self, Snapshot};
use crate::error::{Error, Result};
use crate::event;
use crate::fmgr::{Rows, argument, c_function, text};
use crate::log::events::{Events, Found};
use crate::log::record::EventKey;
use crate::log::storage::{self, corrupted};
use crate::log::stored::{Head, Stored};
use crate::tenant;
use agd_core::TILE_WIDTH;
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
    let (first, last) = match (u64::try_from(first), u64::try_from(last)) {
        (Ok(first), Ok(last)) if first <= last && last <= head.size => (first, last),
        _ => {
            return Err(Error::BadArgument {
                message: format!("the log has {} leaves: [{first}, {last}) is not a range of them", head.size),
                hint: "Indexes begin at 0; last_index is not included.".into(),
            });
        }
    };
    let images = tenant::may_read_payload(head.tenant.as_deref())?;
    // SAFETY: this is the call.
    let rows = unsafe { Rows::begin(call) }?;
    let snapshot = Snapshot::active();
    // SAFETY: reads a process global: what is current here outlives the reader.
    let events = Events::open(unsafe { pg_sys::CurrentMemoryContext }, snapshot.raw())?;
    Export { stored, head, images, events, rows }.run(first, last)?;
    Ok(pg_sys::Datum::from(0))
}

struct Export {
    stored: Stored,
    head: Head,
    images: bool,
    events: Events,
    rows: Rows,
}

impl Export {
    fn run(&mut self, first: u64, last: u64) -> Result<()> {
        let mut tile = first - first % TILE_WIDTH;
        while tile < last {
            pgrx::check_for_interrupts!();
            let keys = self.keys(tile)?;
            let leaves = (tile..last).zip(&keys).enumerate().skip(first.saturating_sub(tile) as usize);
            for (position, (index, &key)) in leaves {
                self.event(index, key, &keys[position + 1..])?;
            }
            tile += TILE_WIDTH;
        }
        Ok(())
    }

    fn keys(&self, first: u64) -> Result<Vec<EventKey>> {
        if first == self.head.size - self.head.size % TILE_WIDTH {
            return Ok(self.head.open_keys.clone());
        }
        let index = first / TILE_WIDTH;
        self.stored
            .keys(self.head.log_id, index)?
            .ok_or_else(|| corrupted(format!("log {}: tile {index} of level 0 is missing", self.head.origin)))
    }

    fn event(&mut self, index: u64, key: EventKey, next: &[EventKey]) -> Result<()> {
        let Export { events, rows, images, .. } = self;
        let images = *images;
        events.find(key, next, |found| {
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
        })
    }
}
