//! Is a table what its record says? `agd.verify_table()`: each row's chain of events, and the row that is there now.
//!
//! Owns the order in which events and rows come (by key, then as in the log) and what a caller is shown of them; the rule
//! itself is `agd_core::chain`. Promises one row for each thing that does not fit, none for a table that is reconciled, all as
//! of the snapshot of the query that asks; and memory bounded by a few rows: PostgreSQL sorts, on disk if need be. Values are
//! shown to whom the platform's payloads are shown. Never writes.
#![allow(unsafe_code)] // is called by the function manager as it is

use crate::catalog::{self, Relation};
use crate::error::{Error, Result};
use crate::fmgr::{Rows, answer, argument, c_function, definer_function, text};
use crate::guard::relation::qualified_name;
use crate::query::{self, At, Row};
use crate::tenant;
use agd_core::EventId;
use agd_core::chain::{self, Chain, Guard, Place, Problem, Step};
use pgrx::pg_sys;

definer_function!(agd_verify_table, pg_finfo_agd_verify_table, answer_verify_table);
c_function!(agd_moved_key, pg_finfo_agd_moved_key, answer_moved_key);

/// Where a row stands that is there now: behind every event.
const NOW: Place = Place { stamp: i64::MAX, event_id: EventId { xact_id: u64::MAX, n: u32::MAX } };

/// `agd.moved_key(row_key, new)`, STRICT.
fn answer_moved_key(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.moved_key(row_key json, new json) is STRICT.
    let (key, new) = unsafe {
        let arguments = (*call).args.as_slice(2);
        (catalog::text(arguments[0].value)?, catalog::text(arguments[1].value)?)
    };
    let moved = chain::moved_key(key, new).map(|key| catalog::to_varlena(key.as_bytes()));
    // SAFETY: this is the call.
    Ok(unsafe { answer(call, moved) })
}

/// `agd.verify_table(relation)`
fn answer_verify_table(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.verify_table(relation regclass).
    let relation = unsafe { argument::<pg_sys::Oid>(call, 0) };
    let name = relation.map_or_else(|| "NULL".to_owned(), qualified_name);
    let guard_id = match relation {
        Some(relation) => guard_of(relation)?,
        None => None,
    };
    let (Some(relation), Some(guard_id)) = (relation, guard_id) else {
        return Err(Error::BadArgument {
            message: format!("{name} is not guarded"),
            hint: "SELECT * FROM agd.coverage() shows what is. For a partition, name the partitioned table.".into(),
        });
    };
    let show_values = tenant::may_read_payload(None)?;
    // SAFETY: this is the call.
    let mut rows = unsafe { Rows::begin(call) }?;
    // Held until the transaction ends: the table stays the one whose name is asked for.
    drop(Relation::open(relation, pg_sys::AccessShareLock));
    let mut guard = read_guard(&guard_id)?;
    // A table that is renamed is still the one that is guarded.
    if relation == catalog::catalog()?.guarded_table {
        guard.holds_names("relation");
    }
    let mut found = Vec::new();
    let mut follower = Follower::default();
    let mut at: Option<(String, Chain<'_>)> = None;
    let mut tell = |key: &str, found: &mut Vec<Problem>| {
        for problem in found.drain(..) {
            rows.put(|| {
                [jsonb(key), text(&problem.tell(show_values)), problem.event_id.and_then(|id| text(&id.to_string()))]
            });
        }
    };
    query::each(&steps(&guard_id, relation), |row| {
        let Some(key) = row.text(0)? else { return Ok(()) };
        if at.as_ref().is_none_or(|(known, _)| known != key) {
            if let Some((key, chain)) = at.take() {
                follower.ends(chain, &mut found);
                tell(&key, &mut found);
            }
            at = Some((key.to_owned(), Chain::new(&guard)));
        }
        if let Some((key, chain)) = &mut at {
            follower.row(chain, row, &mut found)?;
            tell(key, &mut found);
        }
        Ok(())
    })?;
    if let Some((key, chain)) = at {
        follower.ends(chain, &mut found);
        tell(&key, &mut found);
    }
    Ok(pg_sys::Datum::from(0))
}

fn jsonb(text: &str) -> Option<pg_sys::Datum> {
    let text = std::ffi::CString::new(text).ok()?;
    // SAFETY: jsonb's input function and its only argument that counts.
    Some(unsafe {
        let function = pg_sys::Oid::from(pg_sys::F_JSONB_IN);
        pg_sys::OidInputFunctionCall(function, text.as_ptr().cast_mut(), pg_sys::JSONBOID, -1)
    })
}

fn guard_of(relation: pg_sys::Oid) -> Result<Option<String>> {
    let query = format!("SELECT g.guard_id FROM agd.every_guard g WHERE g.relation = '{}'::oid", relation.to_u32());
    Ok(query::rows(At::Active, &query)?.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
}

fn place(row: &Row, stamp: usize) -> Result<Place> {
    let xact_id = row.text(stamp + 1)?.and_then(|text| text.parse().ok());
    let n = row.int(stamp + 2);
    let (Some(xact_id), Some(n)) = (xact_id, n) else {
        return Err(Error::Internal("agd: an event has no number".into()));
    };
    Ok(Place { stamp: row.long(stamp).unwrap_or(i64::MAX), event_id: EventId { xact_id, n: n.cast_unsigned() } })
}

/// What the events about the whole table say.
fn read_guard(guard_id: &str) -> Result<Guard> {
    let mut guard = Guard::default();
    let query = format!(
        "SELECT t.stamp, e.xact_id::text, e.n, e.action, (e.new -> 'columns')::text, e.new ->> 'baseline'
           FROM agd.event e LEFT JOIN agd.transaction t ON t.xact_id = e.xact_id
          WHERE e.guard_id = '{guard_id}' AND e.action IN ('GUARD', 'DDL', 'TRUNCATE')"
    );
    query::each(&query, |row| {
        let place = place(row, 0)?;
        match row.text(3)? {
            Some("GUARD") if row.text(5)? == Some("false") => guard.had_rows_before(),
            Some("DDL") => {
                if let Some(changes) = row.text(4)?.and_then(chain::parse_changes) {
                    guard.changed(place, changes);
                }
            }
            Some("TRUNCATE") => guard.truncated(place),
            _ => {}
        }
        Ok(())
    })?;
    guard.settle();
    Ok(guard)
}

/// The events of each row, and behind them the row that is there: by key, each key's in the order of the log. An UPDATE that
/// changes the key is two steps: one of each key. What is not committed yet has no stamp, and comes last. Only what is
/// computed here is in memory: values that are stored out of line are sorted by where they are.
///
/// The table itself is read by agd.present_rows(), never planned: its owner's functions (in indexes, statistics, generated
/// columns) would run with the rights of agd's owner.
fn steps(guard_id: &str, table: pg_sys::Oid) -> String {
    format!(
        "SELECT s.* FROM (
           SELECT v.k, false AS present, t.stamp, e.xact_id::text AS xact_id, e.n, v.part, e.action,
                  CASE WHEN v.part <> 2 THEN e.old END AS old, CASE WHEN v.part <> 1 THEN e.new END AS new, e.body
             FROM agd.event e
                  LEFT JOIN agd.transaction t ON t.xact_id = e.xact_id
                  CROSS JOIN LATERAL (
                    SELECT CASE WHEN e.action = 'UPDATE' THEN agd.moved_key(e.row_key, e.new) END AS k OFFSET 0) moved
                  CROSS JOIN LATERAL (
                    VALUES (CASE WHEN moved.k IS NULL THEN 0 ELSE 1 END, e.row_key::text), (2, moved.k::text)) v(part, k)
            WHERE e.guard_id = '{guard_id}' AND e.action IN ('BASELINE', 'INSERT', 'UPDATE', 'DELETE') AND v.k IS NOT NULL
           UNION ALL
           SELECT p.row_key::text, true, NULL, NULL, NULL, 3, 'PRESENT', NULL, p.image, NULL FROM agd.present_rows('{}'::oid) p
         ) s ORDER BY s.k COLLATE \"C\", s.present, s.stamp NULLS LAST, s.n, s.part",
        table.to_u32()
    )
}

/// Takes the rows of [`steps`].
#[derive(Default)]
struct Follower {
    /// The row that is there was seen; its chain is finished.
    is_finished: bool,
}

impl Follower {
    fn row(&mut self, chain: &mut Chain<'_>, row: &Row, found: &mut Vec<Problem>) -> Result<()> {
        let action = row.text(6)?.unwrap_or_default();
        let (old, new) = (row.text(7)?, row.text(8)?);
        let step = match (action, row.int(5)) {
            ("PRESENT", _) if self.is_finished => {
                // A second row of one key: the index has lost one of them.
                found.push(chain::unrecorded(None));
                return Ok(());
            }
            ("PRESENT", _) => {
                chain.finish(found);
                found.extend(chain.compare(new, NOW));
                self.is_finished = true;
                return Ok(());
            }
            ("BASELINE", _) => Step::State { image: new, again: row.text(9)? == Some(chain::RECORDED_AGAIN) },
            ("INSERT", _) | ("UPDATE", Some(2)) => Step::Begin(new),
            ("DELETE", _) | ("UPDATE", Some(1)) => Step::End(old),
            _ => Step::Change { old, new },
        };
        chain.step(place(row, 2)?, action, step, found);
        Ok(())
    }

    /// There is no more of this key.
    fn ends(&mut self, mut chain: Chain<'_>, found: &mut Vec<Problem>) {
        if !std::mem::take(&mut self.is_finished) {
            chain.finish(found);
            found.extend(chain.compare(None, NOW));
        }
    }
}
