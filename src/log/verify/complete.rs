//! Is every event one leaf, exactly, and has every transaction all its events?
//!
//! Owns the count of events against leaves. What was integrated is known by the sequencer's snapshot: every event that it
//! sees must be one leaf of one log, and every leaf must be such an event; every transaction must have as many events as
//! its record says, integrated or not. Both sides are added up as keyed hashes, drawn anew for each verification: two
//! sums that are equal are of the same events, and no memory is needed however many there are. Only when they differ are
//! the keys themselves compared, to name what is wrong. Never says which log's fault it is.
#![allow(unsafe_code)] // reads the heads of tuples

use crate::catalog::{Relation, Seek, catalog, scan, scan_key};
use crate::error::Result;
use crate::home;
use crate::log::events::{EventHead, TransactionHead, head};
use crate::log::record::EventKey;
use crate::log::verify::progress::{Phase, Progress};
use crate::log::verify::rows::View;
use pgrx::pg_sys;
use std::hash::{BuildHasher, RandomState};

/// As many events, or leaves that lead nowhere, are named at most.
pub const NAMED: usize = 1000;

/// A snapshot as agd.sequencer stores it: which transactions are integrated.
#[derive(Clone, PartialEq, Eq)]
pub struct Integrated {
    /// As it is stored.
    pub text: String,
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

impl Integrated {
    /// From a pg_snapshot's text, `xmin:xmax:xip,xip`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let list = parts.next()?.split(',').filter(|id| !id.is_empty());
        let mut in_progress = list.map(|id| id.parse().ok()).collect::<Option<Vec<u64>>>()?;
        in_progress.sort_unstable();
        Some(Integrated { text: text.to_owned(), xmin, xmax, in_progress })
    }

    /// Is it integrated?
    pub fn sees(&self, xact_id: u64) -> bool {
        xact_id < self.xmin || xact_id < self.xmax && self.in_progress.binary_search(&xact_id).is_err()
    }

    /// Does it see all that the other one sees?
    fn covers(&self, other: &Integrated) -> bool {
        // What this one does not see of the other's: beyond its end, or on its list.
        other.xmax <= self.xmax && self.in_progress.iter().all(|id| !other.sees(*id))
    }
}

/// A leaf whose event should not be one.
struct Strange {
    log_id: i32,
    leaf: u64,
    what: String,
}

/// Every row of a table, whose index begins with the transaction's number, that the sequencer's snapshot does not see.
pub fn each_unseen(
    view: &View,
    integrated: &Integrated,
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    mut row: impl FnMut(pg_sys::HeapTuple),
) {
    let bound = |strategy, function| vec![scan_key(1, strategy, function, pg_sys::Datum::from(0))];
    let mut single =
        Seek::new(view.memory(), table, index, view.snapshot(), bound(pg_sys::BTEqualStrategyNumber, pg_sys::F_XID8EQ));
    for xact_id in &integrated.in_progress {
        single.aim(&[(*xact_id).into()]);
        while let Some(tuple) = single.next() {
            row(tuple);
        }
    }
    let mut rest = Seek::new(
        view.memory(),
        table,
        index,
        view.snapshot(),
        bound(pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_XID8GE),
    );
    rest.aim(&[integrated.xmax.into()]);
    while let Some(tuple) = rest.next() {
        row(tuple);
    }
}

/// Leaves, added up.
pub struct Tally {
    now: Option<Integrated>,
    /// Transactions from here on have not begun; None: not known where the record is not at home.
    end: Option<u64>,
    /// What an earlier verification found complete.
    before: Option<Integrated>,
    by_key: RandomState,
    by_transaction: RandomState,
    keys: u64,
    transactions: u64,
    leaves: u64,
    strange: Vec<Strange>,
    last: Option<Last>,
}

/// What is known of the transaction that was looked at last.
struct Last {
    xact_id: u64,
    hash: u64,
    strange: Option<&'static str>,
}

/// What was counted.
pub struct Outcome {
    /// Leaves counted.
    pub leaves: u64,
    /// Events that wait for integration.
    pub waiting: u64,
    /// Only what is newer than an earlier verification was counted.
    pub since_earlier: bool,
}

impl Tally {
    /// Nothing counted yet. `now`: what the sequencer has integrated; `before`: what need not be counted again; `end`: the
    /// first transaction that had not begun.
    pub fn new(now: Option<Integrated>, before: Option<Integrated>, end: Option<u64>) -> Self {
        Tally {
            now,
            end,
            before,
            by_key: RandomState::new(),
            by_transaction: RandomState::new(),
            keys: 0,
            transactions: 0,
            leaves: 0,
            strange: Vec::new(),
            last: None,
        }
    }

    /// Counts a leaf.
    pub fn leaf(&mut self, log_id: i32, leaf: u64, key: EventKey) {
        if self.last.as_ref().is_none_or(|last| last.xact_id != key.xact_id) {
            let hash = self.by_transaction.hash_one(key.xact_id);
            self.last = Some(Last { xact_id: key.xact_id, hash, strange: self.strangeness(key.xact_id) });
        }
        let Some(last) = &self.last else { return };
        self.leaves += 1;
        self.keys = self.keys.wrapping_add(self.by_key.hash_one(key));
        self.transactions = self.transactions.wrapping_add(last.hash);
        if let Some(why) = last.strange
            && self.strange.len() < NAMED
        {
            self.strange.push(Strange { log_id, leaf, what: format!("event {key}, {why}") });
        }
    }

    fn strangeness(&self, xact_id: u64) -> Option<&'static str> {
        if !self.now.as_ref().is_some_and(|now| now.sees(xact_id)) {
            Some("which the sequencer has not integrated yet")
        } else if self.before.as_ref().is_some_and(|before| before.sees(xact_id)) {
            Some("which was another leaf before")
        } else {
            None
        }
    }

    /// A leaf's key was changed in its tile; it should be this one.
    pub fn correct(&mut self, log_id: i32, leaf: u64, wrong: EventKey, right: EventKey) {
        for (key, add) in [(wrong, false), (right, true)] {
            let (by_key, by_transaction) = (self.by_key.hash_one(key), self.by_transaction.hash_one(key.xact_id));
            let apply = |sum: u64, value: u64| if add { sum.wrapping_add(value) } else { sum.wrapping_sub(value) };
            self.keys = apply(self.keys, by_key);
            self.transactions = apply(self.transactions, by_transaction);
        }
        self.strange.retain(|strange| (strange.log_id, strange.leaf) != (log_id, leaf));
    }

    /// Adds up the events and transactions that should be these leaves.
    pub fn count_events(&self, view: &View, progress: &mut Progress) -> Result<Sums> {
        progress.phase(Phase::Completeness);
        let mut counted = Sums { own: home::present_id()?, ..Sums::default() };
        let catalog = catalog()?;
        let mut rows = 0u32;
        let mut busy = |progress: &mut Progress| {
            rows = rows.wrapping_add(1);
            if rows.is_multiple_of(4096) {
                progress.still_busy();
            }
        };
        self.each(view, catalog.event, catalog.event_pkey, |tuple| {
            busy(progress);
            // SAFETY: a tuple of agd.event, whose first columns these are (sql/20_event.sql).
            let EventHead { xact_id, n } = unsafe { head(tuple) };
            if self.is_new(xact_id) {
                self.count_event(&mut counted, EventKey { xact_id, n: n.cast_unsigned() });
            }
        })?;
        self.each(view, catalog.transaction, catalog.transaction_pkey, |tuple| {
            busy(progress);
            // SAFETY: a tuple of agd.transaction, whose first columns these are (sql/20_event.sql).
            let TransactionHead { xact_id, stamp, events } = unsafe { head(tuple) };
            if self.is_new(xact_id) {
                let sum = self.by_transaction.hash_one(xact_id).wrapping_mul(u64::from(events.cast_unsigned()));
                if self.is_integrated(xact_id) {
                    counted.recorded = counted.recorded.wrapping_add(sum);
                    counted.last_stamp = counted.last_stamp.max(stamp);
                } else {
                    counted.recorded_waiting = counted.recorded_waiting.wrapping_add(sum);
                }
            }
        })?;
        Ok(counted)
    }

    fn count_event(&self, counted: &mut Sums, key: EventKey) {
        if self.is_integrated(key.xact_id) {
            counted.integrated += 1;
            counted.keys = counted.keys.wrapping_add(self.by_key.hash_one(key));
        } else if counted.own != Some(key.xact_id) {
            counted.waiting += 1;
            if self.end.is_some_and(|end| key.xact_id >= end) {
                counted.early.get_or_insert(key);
            }
            counted.found_waiting = counted.found_waiting.wrapping_add(self.by_transaction.hash_one(key.xact_id));
        }
    }

    fn is_integrated(&self, xact_id: u64) -> bool {
        self.now.as_ref().is_some_and(|now| now.sees(xact_id))
    }

    fn is_new(&self, xact_id: u64) -> bool {
        !self.before.as_ref().is_some_and(|before| before.sees(xact_id))
    }

    /// Every row of a table that may be new: all of them, or those of transactions that the earlier snapshot did not see.
    fn each(
        &self,
        view: &View,
        table: pg_sys::Oid,
        index: pg_sys::Oid,
        mut row: impl FnMut(pg_sys::HeapTuple),
    ) -> Result<()> {
        let Some(before) = &self.before else {
            let relation = Relation::open(table, pg_sys::AccessShareLock);
            return scan(&relation, None, view.snapshot(), &mut [], |tuple| {
                row(tuple);
                Ok(())
            });
        };
        each_unseen(view, before, table, index, row);
        Ok(())
    }

    /// Are events and leaves the same?
    pub fn agrees(&self, counted: &Sums) -> bool {
        self.strange.is_empty()
            && counted.early.is_none()
            && self.keys == counted.keys
            && self.transactions == counted.recorded
            && counted.found_waiting == counted.recorded_waiting
    }

    /// Events that are in no leaf, though the sequencer is past them; at most [`NAMED`], and how many there are.
    pub fn orphans(&self, view: &View) -> Result<(Vec<EventKey>, u64)> {
        let Some(scope) = self.scope("e.xact_id") else { return Ok((vec![], 0)) };
        let rows = view.rows(&format!(
            "WITH {KEYS}
             SELECT e.xact_id, e.n, pg_catalog.count(*) OVER ()
               FROM agd.event e
              WHERE {scope}
                AND NOT EXISTS (SELECT FROM keys k
                                 WHERE k.key = pg_catalog.int8send(e.xact_id::text::bigint) || pg_catalog.int4send(e.n))
              ORDER BY e.xact_id, e.n LIMIT {NAMED}"
        ))?;
        let all = rows.first().and_then(|row| number(row, 2)).unwrap_or_default();
        let keys = rows.iter().filter_map(|row| Some(EventKey { xact_id: number(row, 0)?, n: number(row, 1)? as u32 }));
        Ok((keys.collect(), all))
    }

    /// The part of the record that is counted, as a condition. None: nothing was integrated yet.
    fn scope(&self, xact_id: &str) -> Option<String> {
        let now = self.now.as_ref()?;
        let old = self.before.as_ref().map_or(String::new(), |before| {
            format!(" AND NOT pg_catalog.pg_visible_in_snapshot({xact_id}, '{}')", before.text)
        });
        Some(format!("pg_catalog.pg_visible_in_snapshot({xact_id}, '{}'){old}", now.text))
    }

    /// What is wrong, in words; None: nothing. `orphans`: those that no damaged tile accounts for, and how many there are.
    pub fn problem(
        &self,
        view: &View,
        counted: &Sums,
        orphans: (&[EventKey], u64),
        name_of: impl Fn(i32) -> String,
    ) -> Result<Option<String>> {
        if let (Some(now), Some(before)) = (&self.now, &self.before)
            && !now.covers(before)
        {
            return Ok(Some("the sequencer's snapshot is older than the one that was verified before".into()));
        }
        if self.agrees(counted) {
            return Ok(None);
        }
        match orphans {
            ([], _) => {}
            ([event, ..], 0 | 1) => {
                return Ok(Some(format!(
                    "event {event} is in no leaf, though the sequencer is past it: it was added outside the gate, or its \
                     leaf is gone"
                )));
            }
            ([first, ..], all) => {
                return Ok(Some(format!(
                    "{all} events are in no leaf, though the sequencer is past them, the first is {first}: they were added \
                     outside the gate, or their leaves are gone"
                )));
            }
        }
        if let Some(event) = counted.early {
            return Ok(Some(format!(
                "event {event} is of a transaction that has not begun: it was added outside the gate"
            )));
        }
        if let Some(strange) = self.strange.first() {
            return Ok(Some(format!("leaf {} of {} is {}", strange.leaf, name_of(strange.log_id), strange.what)));
        }
        if let Some(twice) = self.twice(view, &name_of)? {
            return Ok(Some(twice));
        }
        if let Some(miscounted) = self.miscounted(view, counted.own)? {
            return Ok(Some(miscounted));
        }
        Ok(Some(format!("{} integrated events, but {} leaves", counted.integrated, self.leaves)))
    }

    /// An event that is more than one leaf.
    fn twice(&self, view: &View, name_of: &impl Fn(i32) -> String) -> Result<Option<String>> {
        let rows = view.rows(&format!(
            "WITH {KEYS}
             SELECT pg_catalog.encode(k.key, 'hex'), pg_catalog.string_agg(k.log_id || ':' || k.leaf, ' ' ORDER BY k.log_id, k.leaf)
               FROM keys k GROUP BY k.key HAVING pg_catalog.count(*) > 1 ORDER BY k.key LIMIT 1"
        ))?;
        let Some([Some(key), Some(places)]) = rows.first().map(Vec::as_slice) else { return Ok(None) };
        let key = hex::decode(key).unwrap_or_default();
        let Some(key) = EventKey::read_all(&key).next() else { return Ok(None) };
        let places: Vec<String> = places
            .split(' ')
            .filter_map(|place| place.split_once(':'))
            .map(|(log_id, leaf)| format!("leaf {leaf} of {}", name_of(log_id.parse().unwrap_or_default())))
            .collect();
        Ok(Some(format!("event {key} is more than one leaf: {}", places.join(", "))))
    }

    /// A transaction that has more or fewer events than its record says.
    fn miscounted(&self, view: &View, own: Option<u64>) -> Result<Option<String>> {
        let new = self.before.as_ref().map_or("true".into(), |before| {
            let from = before.in_progress.first().map_or(before.xmax, |first| before.xmax.min(*first));
            format!("xact_id >= '{from}' AND NOT pg_catalog.pg_visible_in_snapshot(xact_id, '{}')", before.text)
        });
        let own = own.map_or(String::new(), |own| format!("AND COALESCE(t.xact_id, e.xact_id) <> '{own}'"));
        let rows = view.rows(&format!(
            "SELECT COALESCE(t.xact_id, e.xact_id), t.events, e.events, pg_catalog.count(*) OVER ()
               FROM (SELECT xact_id, events FROM agd.transaction WHERE {new}) t
                    FULL JOIN (SELECT xact_id, pg_catalog.count(*) AS events FROM agd.event WHERE {new} GROUP BY xact_id) e
                      USING (xact_id)
              WHERE t.events IS DISTINCT FROM e.events {own}
              ORDER BY 1 LIMIT 1"
        ))?;
        let Some([Some(xact_id), recorded, found, all]) = rows.first().map(Vec::as_slice) else { return Ok(None) };
        let more = match all.as_deref() {
            None | Some("1") => String::new(),
            Some(all) => format!(" (and {} more transactions)", all.parse::<u64>().unwrap_or(1).saturating_sub(1)),
        };
        Ok(Some(
            match (recorded, found) {
                (None, found) => {
                    format!(
                        "transaction {xact_id} has no record: found {} events of it",
                        found.as_deref().unwrap_or("0")
                    )
                }
                (Some(recorded), found) => format!(
                    "transaction {xact_id} does not have all its events: recorded {recorded}, found {}",
                    found.as_deref().unwrap_or("0")
                ),
            } + &more,
        ))
    }

    /// For the report.
    pub fn outcome(&self, counted: &Sums) -> Outcome {
        Outcome { leaves: self.leaves, waiting: counted.waiting, since_earlier: self.before.is_some() }
    }
}

fn number(row: &[Option<String>], column: usize) -> Option<u64> {
    row.get(column)?.as_deref()?.parse().ok()
}

/// Every key in every tile, whatever the logs' sizes say.
const KEYS: &str = "keys AS MATERIALIZED (
   SELECT t.log_id, t.tile_index * 256 + i AS leaf, pg_catalog.substring(t.event_keys, i * 12 + 1, 12) AS key
     FROM agd.tile t CROSS JOIN pg_catalog.generate_series(0, 255) i WHERE t.level = 0
   UNION ALL
   SELECT l.log_id, l.size / 256 * 256 + i, pg_catalog.substring(l.open_keys, i * 12 + 1, 12)
     FROM agd.log l CROSS JOIN LATERAL
          pg_catalog.generate_series(0, pg_catalog.octet_length(l.open_keys) / 12 - 1) i
 )";

/// Events and transactions, added up.
#[derive(Default)]
pub struct Sums {
    own: Option<u64>,
    keys: u64,
    /// Events that the sequencer's snapshot sees.
    integrated: u64,
    /// Others, but for this transaction's own.
    waiting: u64,
    found_waiting: u64,
    /// An event of a transaction that has not begun.
    early: Option<EventKey>,
    recorded: u64,
    recorded_waiting: u64,
    /// The largest commit stamp that is integrated.
    pub last_stamp: i64,
}
