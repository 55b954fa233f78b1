//! Events read back by their keys.
//!
//! Owns the reading of many events whose keys are known: by scans that go on from where they are when the next row is near,
//! and are aimed anew when it is not. So a tile whose events lie together is read in one go, and one whose events lie
//! among thousands of others costs a look-up each. Promises to say of each key whether its event is there, and what its
//! entry is. Never believes a tile, and never writes.
#![allow(unsafe_code)] // tuples are raw backend structures

use crate::catalog::{Columns, Scratch, Seek, catalog, scan_key, text};
use crate::error::{Error, Result};
use crate::event;
use crate::log::record::{Context, EventKey, write_entry};
use crate::log::stored::{Head, Stored};
use agd_core::TILE_WIDTH;
use pgrx::pg_sys;
use std::ops::Range;

/// Keys that are no further away are reached row by row.
const NEAR: u128 = 8;

/// What a key leads to.
pub enum Found<'a> {
    /// An event.
    Event(Event<'a>),
    /// There is no such event.
    NoEvent,
    /// There is the event, but no record of its transaction.
    NoTransaction,
    /// There is a row, but it has no canonical form.
    Unreadable(Error),
}

/// An event that was read.
pub struct Event<'a> {
    /// Its canonical bytes.
    pub entry: &'a [u8],
    /// When its transaction was committed, microseconds since 2000-01-01.
    pub stamp: i64,
    /// Whose log it belongs to.
    pub tenant: Option<&'a str>,
    /// Its row of agd.event.
    pub row: &'a Columns,
}

impl Event<'_> {
    /// What happened.
    pub fn action(&self) -> &str {
        // SAFETY: action is text; that it is UTF-8 was seen when the entry was made.
        self.row.get(event::EVENT_ACTION).and_then(|value| unsafe { text(value) }.ok()).unwrap_or_default()
    }

    /// The text that stands in the log as it is.
    pub fn body(&self) -> &str {
        // SAFETY: body is text; that it is UTF-8 was seen when the entry was made.
        self.row.get(event::EVENT_BODY).and_then(|value| unsafe { text(value) }.ok()).unwrap_or_default()
    }
}

/// Reads rows by their keys, fastest when they grow.
struct Cursor {
    /// From a key on, row by row. To aim it costs as much as the rows of an index page.
    run: Seek,
    /// One row.
    point: Seek,
    read_key: fn(pg_sys::HeapTuple) -> u128,
    /// The values to aim with, and the first key that a run cannot come to from there.
    aim_at: fn(u128) -> (Vec<pg_sys::Datum>, u128),
    /// No row has a key from here up to the present row of the run.
    from: u128,
    limit: u128,
    present: Option<(u128, pg_sys::HeapTuple)>,
}

impl Cursor {
    fn new(
        run: Seek,
        point: Seek,
        read_key: fn(pg_sys::HeapTuple) -> u128,
        aim_at: fn(u128) -> (Vec<pg_sys::Datum>, u128),
    ) -> Self {
        Cursor { run, point, read_key, aim_at, from: u128::MAX, limit: 0, present: None }
    }

    fn advance(&mut self) {
        self.present = self.run.next().map(|tuple| ((self.read_key)(tuple), tuple));
    }

    /// The row with this key, valid until the next call. `next`: the key that is asked for after it.
    fn find(&mut self, key: u128, next: Option<u128>) -> Option<pg_sys::HeapTuple> {
        // At most as many rows lie between two keys as their distance.
        let near = |from: u128, to: u128| to.checked_sub(from).is_some_and(|distance| distance <= NEAR);
        let on_the_way = key >= self.from
            && key < self.limit
            && self.present.is_none_or(|(present, _)| present > key || near(present, key));
        if !on_the_way {
            let (values, limit) = (self.aim_at)(key);
            if !next.is_some_and(|next| near(key, next)) {
                self.point.aim(&values);
                return self.point.next();
            }
            self.run.aim(&values);
            (self.from, self.limit) = (key, limit);
            self.advance();
        }
        while let Some((present, tuple)) = self.present {
            match present.cmp(&key) {
                std::cmp::Ordering::Equal => return Some(tuple),
                std::cmp::Ordering::Greater => break,
                std::cmp::Ordering::Less => {
                    self.from = present + 1;
                    self.advance();
                }
            }
        }
        None
    }
}

/// The first columns of a tuple that begins with columns of fixed length which are never NULL.
///
/// # Safety
/// The tuple is alive and of such a table; `T` has its first columns, as C would lay them out.
pub unsafe fn head<T: Copy>(tuple: pg_sys::HeapTuple) -> T {
    // SAFETY: as promised by the caller; PostgreSQL aligns the data as C does.
    unsafe { *pg_sys::GETSTRUCT(tuple).cast::<T>() }
}

/// The first columns of agd.event.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EventHead {
    /// Full transaction id.
    pub xact_id: u64,
    /// Number within the transaction.
    pub n: i32,
}

/// The first columns of agd.transaction.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct TransactionHead {
    /// Full transaction id.
    pub xact_id: u64,
    /// Commit stamp, microseconds since 2000-01-01.
    pub stamp: i64,
    /// How many events it has.
    pub events: i32,
}

fn event_key(xact_id: u64, n: u32) -> u128 {
    u128::from(xact_id) << 32 | u128::from(n)
}

fn key_of_event(tuple: pg_sys::HeapTuple) -> u128 {
    // SAFETY: a tuple of agd.event, whose first columns these are (sql/20_event.sql).
    let head: EventHead = unsafe { head(tuple) };
    event_key(head.xact_id, head.n.cast_unsigned())
}

fn key_of_transaction(tuple: pg_sys::HeapTuple) -> u128 {
    // SAFETY: a tuple of agd.transaction, whose first columns these are (sql/20_event.sql).
    let head: TransactionHead = unsafe { head(tuple) };
    u128::from(head.xact_id)
}

/// Reads events by their keys, fastest when they are asked for in ascending order.
pub struct Events {
    events: Cursor,
    transactions: Cursor,
    /// Of the transaction that was read last; None in it: there is no record of it.
    context: Option<(u64, Option<Context>)>,
    event: Columns,
    transaction: Columns,
    entry: Vec<u8>,
    scratch: Scratch,
}

impl Events {
    /// A reader under a snapshot, which outlives it, as `memory` does.
    pub fn open(memory: pg_sys::MemoryContext, snapshot: pg_sys::Snapshot) -> Result<Self> {
        let catalog = catalog()?;
        let nothing = pg_sys::Datum::from(0);
        let key = |column, strategy, function| scan_key(column, strategy, function, nothing);
        let (equal, from) = (pg_sys::BTEqualStrategyNumber, pg_sys::BTGreaterEqualStrategyNumber);
        let events = |keys| Seek::new(memory, catalog.event, catalog.event_pkey, snapshot, keys);
        let transactions = |keys| Seek::new(memory, catalog.transaction, catalog.transaction_pkey, snapshot, keys);
        Ok(Events {
            // A run of events is within one transaction.
            events: Cursor::new(
                events(vec![key(1, equal, pg_sys::F_XID8EQ), key(2, from, pg_sys::F_INT4GE)]),
                events(vec![key(1, equal, pg_sys::F_XID8EQ), key(2, equal, pg_sys::F_INT4EQ)]),
                key_of_event,
                |key| {
                    let (xact_id, n) = ((key >> 32) as u64, (key as u32).cast_signed());
                    (vec![xact_id.into(), n.into()], event_key(xact_id, u32::MAX) + 1)
                },
            ),
            transactions: Cursor::new(
                transactions(vec![key(1, from, pg_sys::F_XID8GE)]),
                transactions(vec![key(1, equal, pg_sys::F_XID8EQ)]),
                key_of_transaction,
                |key| (vec![(key as u64).into()], u128::MAX),
            ),
            context: None,
            event: Columns::default(),
            transaction: Columns::default(),
            entry: Vec::with_capacity(1024),
            scratch: Scratch::new(),
        })
    }

    /// Hands to `each` what a key leads to. `next`: the keys that are asked for after it.
    pub fn find<T>(
        &mut self,
        key: EventKey,
        next: &[EventKey],
        each: impl FnOnce(Found<'_>) -> Result<T>,
    ) -> Result<T> {
        if self.context.as_ref().is_none_or(|(xact_id, _)| *xact_id != key.xact_id) {
            let next = next.iter().map(|key| key.xact_id).find(|xact_id| *xact_id != key.xact_id);
            self.context = Some((key.xact_id, self.read_context(key.xact_id, next)?));
        }
        let next = next.first().map(|next| event_key(next.xact_id, next.n));
        let Some(tuple) = self.events.find(event_key(key.xact_id, key.n), next) else { return each(Found::NoEvent) };
        let Some((_, Some(context))) = &self.context else { return each(Found::NoTransaction) };
        let (row, entry, descriptor) = (&mut self.event, &mut self.entry, self.events.run.descriptor());
        self.scratch.with(|| {
            row.deform(tuple, descriptor);
            match write_entry(context, row, entry) {
                Ok((_, tenant)) => each(Found::Event(Event { entry, stamp: context.stamp, tenant, row })),
                Err(error @ (Error::Corrupted { .. } | Error::Internal(_))) => each(Found::Unreadable(error)),
                Err(error) => Err(error),
            }
        })
    }

    fn read_context(&mut self, xact_id: u64, next: Option<u64>) -> Result<Option<Context>> {
        let Some(tuple) = self.transactions.find(xact_id.into(), next.map(u128::from)) else { return Ok(None) };
        let (row, descriptor) = (&mut self.transaction, self.transactions.run.descriptor());
        self.scratch.with(|| {
            row.deform(tuple, descriptor);
            // What is not even text stands for nothing.
            Ok(Context::read(row).ok())
        })
    }
}

/// Hands to `each`, in order, the leaves of a log: the index, the event's key, and what that leads to at the moment of
/// `stored`.
pub fn each_leaf(
    stored: &Stored,
    head: &Head,
    leaves: Range<u64>,
    mut each: impl FnMut(u64, EventKey, Found<'_>) -> Result<()>,
) -> Result<()> {
    // SAFETY: reads a process global: what is current here outlives the reader.
    let memory = unsafe { pg_sys::CurrentMemoryContext };
    let mut events = Events::open(memory, stored.snapshot())?;
    let mut tile = leaves.start - leaves.start % TILE_WIDTH;
    while tile < leaves.end {
        pgrx::check_for_interrupts!();
        let keys = stored.keys_from(head, tile)?;
        for (position, (index, &key)) in (tile..leaves.end).zip(&keys).enumerate() {
            if index >= leaves.start {
                events.find(key, &keys[position + 1..], |found| each(index, key, found))?;
            }
        }
        tile += TILE_WIDTH;
    }
    Ok(())
}
