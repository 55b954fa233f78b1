//! Leaf hashes recomputed from the rows of agd.event and agd.transaction.
//!
//! Owns what verification makes of events that it reads by their keys, in key order: of each key whether its event is
//! there, and what it hashes to. Never believes a tile.
#![allow(unsafe_code)] // tuples are raw backend structures

use crate::catalog::{Columns, Relation, Scratch, catalog, text};
use crate::error::Result;
use crate::event;
use crate::log::events::{Event, EventHead, Events, Found, head};
use crate::log::record::EventKey;
use crate::log::verify::complete::{Integrated, each_unseen};
use crate::log::verify::rows::View;
use agd_core::{Hash, leaf_hash};
use pgrx::pg_sys;

/// What a key leads to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Leaf {
    /// An event, and its leaf hash.
    Is(Hash),
    /// There is no such event.
    NoEvent,
    /// There is the event, but no record of its transaction.
    NoTransaction,
    /// There is a row, but it has no canonical form.
    Unreadable,
}

impl Leaf {
    /// The hash, where there is one.
    pub fn hash(self) -> Option<Hash> {
        match self {
            Leaf::Is(hash) => Some(hash),
            _ => None,
        }
    }
}

/// Reads events by their keys.
pub struct Leaves {
    events: Events,
    order: Vec<usize>,
    sorted: Vec<EventKey>,
}

impl Leaves {
    /// A reader under the view's snapshot.
    pub fn open(view: &View) -> Result<Self> {
        let events = Events::open(view.memory(), view.snapshot())?;
        Ok(Leaves { events, order: Vec::new(), sorted: Vec::new() })
    }

    /// What each key leads to, in the order given. `each` is told of every event that was read, in key order: where its key
    /// stands in `keys`, its leaf hash, and the event.
    pub fn of(&mut self, keys: &[EventKey], mut each: impl FnMut(usize, &Hash, &Event<'_>)) -> Result<Vec<Leaf>> {
        let mut leaves = vec![Leaf::NoEvent; keys.len()];
        let Leaves { events, order, sorted } = self;
        order.clear();
        order.extend(0..keys.len());
        if !keys.is_sorted() {
            order.sort_unstable_by_key(|position| keys[*position]);
        }
        sorted.clear();
        sorted.extend(order.iter().map(|position| keys[*position]));
        for (rank, &position) in order.iter().enumerate() {
            leaves[position] = events.find(sorted[rank], &sorted[rank + 1..], |found| match found {
                Found::Event(event) => {
                    let hash = leaf_hash(event.entry);
                    each(position, &hash, &event);
                    Ok(Leaf::Is(hash))
                }
                Found::NoEvent => Ok(Leaf::NoEvent),
                Found::NoTransaction => Ok(Leaf::NoTransaction),
                Found::Unreadable(_) => Ok(Leaf::Unreadable),
            })?;
        }
        Ok(leaves)
    }
}

/// Calls `each` with key, tenant, action and body of every event that waits for integration.
pub fn each_waiting(
    view: &View,
    integrated: &Integrated,
    mut each: impl FnMut(EventKey, Option<&str>, &str, &str),
) -> Result<()> {
    let catalog = catalog()?;
    let relation = Relation::open(catalog.event, pg_sys::AccessShareLock);
    let (mut row, scratch) = (Columns::default(), Scratch::new());
    each_unseen(view, integrated, catalog.event, catalog.event_pkey, |tuple| {
        scratch.with(|| {
            row.deform(tuple, relation.descriptor());
            // SAFETY: only asked for columns that are text; a tuple of agd.event, whose first columns these are
            // (sql/20_event.sql).
            let (string, EventHead { xact_id, n }) =
                unsafe { (|index| row.get(index).and_then(|value| text(value).ok()), head(tuple)) };
            each(
                EventKey { xact_id, n: n.cast_unsigned() },
                string(event::EVENT_TENANT),
                string(event::EVENT_ACTION).unwrap_or_default(),
                string(event::EVENT_BODY).unwrap_or_default(),
            );
        });
    });
    Ok(())
}
