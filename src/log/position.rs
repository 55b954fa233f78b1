//! Where an event stands in its log.
//!
//! Owns the way from an event's key to its leaf, without a row for each event: a tile tells which stamps it covers, and
//! within one transaction events stand in the order of their numbers. Promises an answer that the tiles themselves give,
//! under one snapshot. Never looks at more tiles than the transaction can be in.
//!
//! A tile is either of one transaction (both its stamps are that transaction's, which no other has), and then found by
//! bisection; or it holds several, and an R-tree over the ranges of their stamps names the few that can hold the event. So
//! a transaction that drew its stamp and committed hours later costs those who look for others one tile more, and no scan.

use crate::backend::{self, View};
use crate::error::{Error, OrRaise, Result};
use crate::log::record::EventKey;
use crate::log::stored::{Head, Stored};
use crate::tenant;
use agd_core::{EventId, TILE_WIDTH};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;

/// An event's id as people write it. 22023 for anything else.
pub fn parse_event_id(event_id: &str) -> Result<EventKey> {
    let id: EventId = event_id.parse().map_err(|_| Error::BadArgument {
        message: format!("\"{event_id}\" is not an event's id"),
        hint: "An event's id is its transaction and its number, like 7431-2.".into(),
    })?;
    Ok(EventKey { xact_id: id.xact_id, n: id.n })
}

/// The leaf of an event whose transaction has this stamp (microseconds since 2000-01-01). None: it is in no leaf.
pub fn leaf_of(stored: &Stored, head: &Head, wanted: EventKey, stamp: i64) -> Result<Option<u64>> {
    if let Some(position) = head.open_keys.iter().position(|key| *key == wanted) {
        return Ok(Some(open_starts_at(head) + position as u64));
    }
    Ok(leaf_in_tiles(stored, head.log_id, wanted, stamp)?.map(|(leaf, _)| leaf))
}

fn open_starts_at(head: &Head) -> u64 {
    head.size - head.size % TILE_WIDTH
}

/// The leaf, and all keys of its tile.
fn leaf_in_tiles(stored: &Stored, log_id: i32, wanted: EventKey, stamp: i64) -> Result<Option<(u64, Vec<EventKey>)>> {
    let in_tile = |index: u64, keys: Vec<EventKey>| {
        let position = keys.iter().position(|key| *key == wanted)?;
        Some((index * TILE_WIDTH + position as u64, keys))
    };
    if let Some((mut low, mut high)) = stored.tiles_of_one_transaction(log_id, stamp)? {
        // They stand side by side, and the numbers in them ascend.
        while low <= high {
            let middle = low + (high - low) / 2;
            let keys = stored.keys(log_id, middle)?.unwrap_or_default();
            if keys.last().is_some_and(|last| *last < wanted) {
                low = middle + 1;
            } else if keys.first().is_some_and(|first| *first > wanted) && middle > low {
                high = middle - 1;
            } else {
                match in_tile(middle, keys) {
                    None => break,
                    found => return Ok(found),
                }
            }
        }
    }
    for index in stored.tiles_of_several(log_id, stamp)? {
        if let Some(found) = in_tile(index, stored.keys(log_id, index)?.unwrap_or_default()) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

// ------------------------------------------------------------------------------------------------- agd.events.leaf_index

/// So many logs and leaves are kept, for a query that asks for event after event: those often stand side by side.
const LOGS_KEPT: usize = 256;
const LEAVES_KEPT: usize = 64 * TILE_WIDTH as usize;

/// What was read under one snapshot. A later one may see more, and reads it anew.
#[derive(Default)]
struct Seen {
    view: Option<View>,
    /// A tenant's logs, of the newest incarnation first.
    logs: HashMap<Option<String>, Vec<Head>>,
    leaves: HashMap<(i32, EventKey), u64>,
}

impl Seen {
    fn leaf(&mut self, wanted: EventKey, tenant: Option<&str>, stamp: i64) -> Result<Option<u64>> {
        let Seen { logs, leaves, .. } = self;
        let tenant = tenant.map(str::to_owned);
        if !logs.contains_key(&tenant) {
            if logs.len() >= LOGS_KEPT {
                logs.clear();
            }
            let heads = Stored::active()?.heads_of(tenant.as_deref())?;
            for head in &heads {
                keep(leaves, head.log_id, open_starts_at(head), &head.open_keys);
            }
            logs.insert(tenant.clone(), heads);
        }
        let heads = logs.get(&tenant).map_or(&[][..], Vec::as_slice);
        if let Some(leaf) = heads.iter().find_map(|head| leaves.get(&(head.log_id, wanted))) {
            return Ok(Some(*leaf));
        }
        for head in heads {
            if let Some(position) = head.open_keys.iter().position(|key| *key == wanted) {
                return Ok(Some(open_starts_at(head) + position as u64));
            }
            if let Some((leaf, keys)) = leaf_in_tiles(&Stored::active()?, head.log_id, wanted, stamp)? {
                keep(leaves, head.log_id, leaf - leaf % TILE_WIDTH, &keys);
                return Ok(Some(leaf));
            }
        }
        Ok(None)
    }
}

fn keep(leaves: &mut HashMap<(i32, EventKey), u64>, log_id: i32, first: u64, keys: &[EventKey]) {
    if leaves.len() + keys.len() > LEAVES_KEPT {
        leaves.clear();
    }
    leaves.extend(keys.iter().zip(first..).map(|(key, leaf)| ((log_id, *key), leaf)));
}

/// `agd.leaf_index(event_id, tenant, committed_at)`
#[pg_extern(sql = false)]
fn leaf_index(
    event_id: Option<&str>,
    tenant: Option<&str>,
    committed_at: Option<TimestampWithTimeZone>,
) -> Option<i64> {
    find_leaf(event_id?, tenant, committed_at?.into_inner()).or_raise().map(u64::cast_signed)
}

fn find_leaf(event_id: &str, tenant: Option<&str>, stamp: i64) -> Result<Option<u64>> {
    thread_local! {
        static SEEN: RefCell<Seen> = RefCell::new(Seen::default());
    }
    let wanted = parse_event_id(event_id)?;
    if !tenant::may_read(tenant) {
        return Ok(None);
    }
    // Taken, not borrowed: an error leaves nothing behind.
    let mut seen = SEEN.take();
    let view = backend::view();
    if seen.view != view {
        seen = Seen { view, ..Seen::default() };
    }
    let leaf = seen.leaf(wanted, tenant, stamp)?;
    SEEN.set(seen);
    Ok(leaf)
}
