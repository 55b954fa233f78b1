//! What the log says was done to a table, and whether that is what was done.
#![allow(clippy::panic)]

use crate::eventually;
use postgres::Client;
use std::collections::BTreeMap;
use std::time::Duration;

/// One row of `agd.events` about a guarded table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `<xact_id>-<n>`
    pub id: String,
    /// INSERT, UPDATE, DELETE, BASELINE, TRUNCATE
    pub action: String,
    /// The tenant's log the event belongs to; None: the platform's.
    pub tenant: Option<String>,
    /// The row's key before the write, as jsonb text.
    pub key: Option<String>,
    /// The row before, as jsonb text.
    pub old: Option<String>,
    /// The row after, as jsonb text.
    pub new: Option<String>,
    /// Where the event stands in its log, once it is integrated.
    pub leaf: Option<i64>,
}

impl Event {
    /// The action and the value of the key's only column, as in `INSERT 7`.
    #[must_use]
    pub fn brief(&self) -> String {
        match self.key.as_deref().and_then(|key| key.rsplit_once(": ")) {
            Some((_, value)) => format!("{} {}", self.action, value.trim_end_matches('}').trim_matches('"')),
            None => self.action.clone(),
        }
    }
}

/// All events about the guarded table `table`, in the order of the commit stamps and, within a transaction, of the writes.
/// The caller must be allowed to see payloads.
#[track_caller]
pub fn events(client: &mut Client, table: &str) -> Vec<Event> {
    let rows = client.query(
        "SELECT event_id, action, tenant, row_key::text, old::text, new::text, leaf_index
           FROM agd.events
          WHERE guard_id = agd.guard_id($1::text::regclass) AND action IN ('INSERT', 'UPDATE', 'DELETE', 'BASELINE', 'TRUNCATE')
          ORDER BY committed_at NULLS LAST, split_part(event_id, '-', 1)::numeric, split_part(event_id, '-', 2)::int",
        &[&table],
    );
    let rows = rows.unwrap_or_else(|error| panic!("reading the events of {table}: {error:?}"));
    rows.iter()
        .map(|row| Event {
            id: row.get(0),
            action: row.get(1),
            tenant: row.get(2),
            key: row.get(3),
            old: row.get(4),
            new: row.get(5),
            leaf: row.get(6),
        })
        .collect()
}

/// Replays `events` in the order given: every image before a write must be the image after the one before it. Returns the
/// rows that stand at the end, as jsonb texts, sorted.
///
/// `key_columns` are the columns of the primary key.
#[track_caller]
pub fn replay(client: &mut Client, events: &[Event], key_columns: &[&str]) -> Vec<String> {
    // The key of an image: asked of the server in one go, so that nothing here parses what it checks.
    let images: Vec<Option<String>> = events.iter().map(|event| event.new.clone()).collect();
    let columns: Vec<String> = key_columns.iter().map(|column| (*column).to_owned()).collect();
    let rows = client.query(
        "SELECT (SELECT jsonb_object_agg(c, image::jsonb -> c) FROM unnest($2::text[]) c)::text
           FROM unnest($1::text[]) WITH ORDINALITY AS i(image, at) ORDER BY at",
        &[&images, &columns],
    );
    let rows = rows.unwrap_or_else(|error| panic!("keys of the images: {error:?}"));
    let mut standing: BTreeMap<String, String> = BTreeMap::new();
    for (event, row) in events.iter().zip(&rows) {
        if event.action == "TRUNCATE" {
            standing.clear();
            continue;
        }
        let before = event.key.as_ref().and_then(|key| match event.action.as_str() {
            "INSERT" | "BASELINE" => standing.get(key).cloned(),
            _ => standing.remove(key),
        });
        assert_eq!(before, event.old, "the row before {event:?} is not what the log left there");
        if let Some(new) = &event.new {
            let key: Option<String> = row.get(0);
            let key = key.unwrap_or_else(|| panic!("{event:?} has no key"));
            let present = standing.insert(key, new.clone());
            assert_eq!(present, None, "{event:?} writes over a row that the log left there");
        }
    }
    standing.into_values().collect()
}

/// Asserts that the log of `table` replays, in commit order, to exactly the rows the table has, and that
/// `agd.verify_table` agrees. Returns the events. Columns need types that can be compared.
#[track_caller]
pub fn reconcile(client: &mut Client, table: &str, key_columns: &[&str]) -> Vec<Event> {
    let events = events(client, table);
    let standing = replay(client, &events, key_columns);
    let differences = client.query(
        &format!(
            "WITH log AS (SELECT r.* FROM unnest($1::text[]) AS i(image), jsonb_populate_record(NULL::{table}, image::jsonb) r)
             SELECT 'only in the table: ' || d::text FROM (SELECT * FROM {table} EXCEPT ALL SELECT * FROM log) d
             UNION ALL
             SELECT 'only in the log: ' || d::text FROM (SELECT * FROM log EXCEPT ALL SELECT * FROM {table}) d"
        ),
        &[&standing],
    );
    let differences = differences.unwrap_or_else(|error| panic!("comparing {table} with its log: {error:?}"));
    let differences: Vec<String> = differences.iter().map(|row| row.get(0)).collect();
    assert!(differences.is_empty(), "{table} is not what its log says: {differences:#?}");
    let problems =
        client.query("SELECT row_key::text, problem, event_id FROM agd.verify_table($1::text::regclass)", &[&table]);
    let problems = problems.unwrap_or_else(|error| panic!("agd.verify_table('{table}'): {error:?}"));
    let problems: Vec<(String, String)> = problems.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert!(problems.is_empty(), "agd.verify_table('{table}') found {problems:#?}");
    events
}

/// The process id of the database's worker, waiting for one to run.
#[track_caller]
pub fn worker_pid(client: &mut Client) -> i32 {
    let mut pid = None;
    eventually("a worker runs", Duration::from_secs(30), || {
        pid = client.query_one("SELECT worker_pid FROM agd.stat", &[]).ok().and_then(|row| row.get(0));
        pid.is_some()
    });
    pid.unwrap_or_default()
}

/// Integrates and anchors everything that is committed, and returns how many anchors that wrote. In a transaction of its own:
/// several statements sent at once are one transaction, whose own events are not committed yet.
#[track_caller]
pub fn anchor(client: &mut Client) -> usize {
    match client.query("SELECT * FROM agd.anchor()", &[]) {
        Ok(rows) => rows.len(),
        Err(error) => panic!("agd.anchor(): {error:?}"),
    }
}

/// The checks of `agd.verify(full_scan => true)` that failed, as `check on origin: detail`; and the number of checks.
///
/// # Errors
/// When `agd.verify()` raised an error instead of reporting.
pub fn failed_checks(client: &mut Client) -> Result<(Vec<String>, usize), postgres::Error> {
    let rows = client.query("SELECT origin, check_name, ok, detail FROM agd.verify(full_scan => true)", &[])?;
    let failed = rows
        .iter()
        .filter(|row| !row.get::<_, bool>(2))
        .map(|row| {
            let detail: Option<String> = row.get(3);
            format!("{} on {}: {}", row.get::<_, String>(1), row.get::<_, String>(0), detail.unwrap_or_default())
        })
        .collect();
    Ok((failed, rows.len()))
}

/// Asserts that `agd.verify(full_scan => true)` checked something and found everything in order.
#[track_caller]
pub fn expect_verified(client: &mut Client) {
    let (failed, checks) = failed_checks(client).unwrap_or_else(|error| panic!("agd.verify(): {error:?}"));
    assert!(failed.is_empty(), "agd.verify() found {failed:#?}");
    assert!(checks > 0, "agd.verify() checked nothing");
}

/// Asserts that each log's leaves are numbered without a gap or a repetition, that every committed event has one, and
/// that the newest anchor of each log covers them all. Call it after `agd.anchor()`, with nobody writing.
#[track_caller]
pub fn expect_each_event_in_one_leaf(client: &mut Client) {
    let rows = client.query(
        "SELECT coalesce(tenant, '(platform)'), count(*), count(leaf_index), count(DISTINCT leaf_index), min(leaf_index), max(leaf_index),
                (SELECT max(a.tree_size) FROM agd.anchors a WHERE a.tenant IS NOT DISTINCT FROM e.tenant)
           FROM agd.events e GROUP BY tenant",
        &[],
    );
    let rows = rows.unwrap_or_else(|error| panic!("counting leaves: {error:?}"));
    assert!(!rows.is_empty(), "there are no events");
    for row in rows {
        let (log, events, leaves, distinct): (String, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
        let bounds: (Option<i64>, Option<i64>, Option<i64>) = (row.get(4), row.get(5), row.get(6));
        assert_eq!((leaves, distinct), (events, events), "log {log}: events without a leaf, or two in one");
        assert_eq!(
            bounds,
            (Some(0), Some(events - 1), Some(events)),
            "log {log}: first leaf, last leaf, anchored size"
        );
    }
}
