//! What was recorded against what was written.
//!
//! Owns the comparison at a program's end: the events of the guarded table, transaction by transaction, are the rows that
//! a trigger saw being written on the twin, neither more nor fewer; the events replay to the table; agd's own check
//! agrees; each transaction's record counts its events. Images are compared as typed rows: each column is cast back from
//! the event's text to its type, so that agd's way of writing a value is not compared with itself.

use super::side::{Row, ask};
use super::value::quote;
use crate::{Error, Result};
use postgres::Client;
use std::collections::BTreeMap;

/// In every database of a campaign: watches a table of the twin, writing down what each row trigger sees.
pub const WATCHER: &str = r#"
CREATE SCHEMA seen;
CREATE FUNCTION public.no_change() RETURNS trigger LANGUAGE plpgsql AS $$
  BEGIN IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW; END $$;
-- "before": with a BEFORE trigger that does nothing.
CREATE FUNCTION public.watch(watched regclass, before boolean, truncates boolean) RETURNS void LANGUAGE plpgsql AS $watch$
DECLARE
  name text := (SELECT relname FROM pg_class WHERE oid = watched);
  definitions text;
  olds text;
  news text;
BEGIN
  SELECT string_agg(format('o_%s %s, n_%1$s %2$s', attnum, format_type(atttypid, atttypmod)), ', ' ORDER BY attnum),
         string_agg(format('OLD.%I', attname), ', ' ORDER BY attnum),
         string_agg(format('OLD.%I, NEW.%1$I', attname), ', ' ORDER BY attnum)
    INTO definitions, olds, news
    FROM pg_attribute WHERE attrelid = watched AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
  EXECUTE format('CREATE TABLE seen.%I (seq bigint GENERATED ALWAYS AS IDENTITY, xact xid8, action text, %s)', name, definitions);
  EXECUTE format('CREATE FUNCTION seen.%I() RETURNS trigger LANGUAGE plpgsql AS $f$
    BEGIN
      IF TG_LEVEL = ''ROW'' THEN
        INSERT INTO seen.%1$I OVERRIDING USER VALUE VALUES (DEFAULT, pg_current_xact_id(), TG_OP, %s);
      ELSE
        INSERT INTO seen.%1$I (xact, action) VALUES (pg_current_xact_id(), TG_OP);
      END IF;
      RETURN NULL;
    END $f$', name, news);
  EXECUTE format('CREATE TRIGGER seen AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION seen.%I()', watched, name);
  EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER seen', watched);
  IF truncates THEN
    EXECUTE format('CREATE TRIGGER seen_truncate AFTER TRUNCATE ON %s FOR EACH STATEMENT EXECUTE FUNCTION seen.%I()', watched, name);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER seen_truncate', watched);
  END IF;
  IF before THEN
    EXECUTE format('CREATE TRIGGER "~no_change" BEFORE INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION public.no_change()', watched);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER "~no_change"', watched);
  END IF;
END
$watch$;
"#;

/// A table of the guarded side.
#[derive(Debug)]
pub struct Table {
    /// Quoted where needed.
    pub name: String,
    guard_id: Option<String>,
    /// (attribute number, name, type), generated ones left out.
    columns: Vec<(String, String, String)>,
    /// Indexes into `columns`, in the primary key's order.
    key: Vec<usize>,
}

/// The tables of schema `g`, partitions left out.
pub fn tables(client: &mut Client) -> Result<Vec<Table>> {
    let sets = ask(
        client,
        "SELECT quote_ident(c.relname), g.guard_id, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
                array_position(i.indkey::int2[], a.attnum)
           FROM pg_class c
                JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
                LEFT JOIN agd.guarded_table g ON g.relation = c.oid
          WHERE c.relnamespace = 'g'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          ORDER BY c.relname, a.attnum",
    )?;
    let mut tables: Vec<Table> = Vec::new();
    let mut keys: Vec<(String, usize)> = Vec::new();
    for row in sets.into_iter().flatten() {
        let [Some(name), guard_id, Some(number), Some(column), Some(kind), key] = <[_; 6]>::try_from(row)
            .map_err(|row| Error::new(format!("a column's description has {} parts", row.len())))?
        else {
            return Err(Error::new("a column's description is not complete"));
        };
        if tables.last().is_none_or(|table| table.name != name) {
            tables.push(Table { name, guard_id, columns: Vec::new(), key: Vec::new() });
            keys.clear();
        }
        if let Some(table) = tables.last_mut() {
            if let Some(position) = key {
                keys.push((position, table.columns.len()));
                keys.sort();
                table.key = keys.iter().map(|(_, column)| *column).collect();
            }
            table.columns.push((number, column, kind));
        }
    }
    Ok(tables)
}

/// One write, recorded or seen: action, key, row before, row after. Rows are typed rows as text.
type Entry = (String, Option<String>, Option<String>, Option<String>);

impl Table {
    fn of_image(&self, image: &str, columns: &[usize]) -> String {
        let values: Vec<String> = columns
            .iter()
            .map(|&column| {
                let (_, name, kind) = &self.columns[column];
                format!("({image}->>{})::{kind}", quote(name))
            })
            .collect();
        format!("CASE WHEN {image} IS NOT NULL THEN ROW({})::text END", values.join(", "))
    }

    fn of_seen(&self, prefix: &str, columns: &[usize]) -> String {
        let values: Vec<String> =
            columns.iter().map(|&column| format!("{prefix}_{}", self.columns[column].0)).collect();
        format!("ROW({})::text", values.join(", "))
    }

    fn all(&self) -> Vec<usize> {
        (0..self.columns.len()).collect()
    }

    fn recorded_sql(&self, guard_id: &str, since: &str) -> String {
        format!(
            "SELECT e.action, {}, {}, {}, e.xact_id, {}, t.xact_id IS NOT NULL
               FROM agd.event e LEFT JOIN agd.transaction t ON t.xact_id = e.xact_id
              WHERE e.guard_id = '{guard_id}' AND e.xact_id >= '{since}'
                AND e.action IN ('BASELINE', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
              ORDER BY t.stamp, e.n",
            self.of_image("e.row_key", &self.key),
            self.of_image("e.old", &self.all()),
            self.of_image("e.new", &self.all()),
            self.of_image("e.new", &self.key),
        )
    }

    fn seen_sql(&self) -> String {
        format!(
            "SELECT action, CASE action WHEN 'TRUNCATE' THEN NULL WHEN 'INSERT' THEN {} ELSE {} END,
                    CASE WHEN action IN ('UPDATE', 'DELETE') THEN {} END, CASE WHEN action IN ('INSERT', 'UPDATE') THEN {} END, xact
               FROM seen.{} ORDER BY seq",
            self.of_seen("n", &self.key),
            self.of_seen("o", &self.key),
            self.of_seen("o", &self.all()),
            self.of_seen("n", &self.all()),
            self.name
        )
    }

    fn rows_sql(&self) -> String {
        let columns: Vec<String> =
            self.columns.iter().map(|(_, name, _)| format!("\"{}\"", name.replace('"', "\"\""))).collect();
        format!("SELECT ROW({})::text FROM g.{}", columns.join(", "), self.name)
    }
}

/// The first thing that is not as it must be, if there is one. `since`: a transaction id before the program's first.
pub fn differences(client: &mut Client, tables: &[Table], since: &str) -> Result<Option<String>> {
    let guarded: Vec<(&Table, &str)> =
        tables.iter().filter_map(|table| table.guard_id.as_deref().map(|guard_id| (table, guard_id))).collect();
    let mut sql = format!(
        "SELECT xact_id, t.events, e.events
           FROM (SELECT xact_id, events FROM agd.transaction WHERE xact_id >= '{since}') t
                FULL JOIN (SELECT xact_id, count(*) AS events FROM agd.event WHERE xact_id >= '{since}' GROUP BY 1) e USING (xact_id)
          WHERE t.events IS DISTINCT FROM e.events;"
    );
    for (table, guard_id) in &guarded {
        sql += &format!(
            "{}; {}; {}; SELECT row_key, problem, event_id FROM agd.verify_table('g.{}');",
            table.recorded_sql(guard_id, since),
            table.seen_sql(),
            table.rows_sql(),
            table.name.replace('\'', "''")
        );
    }
    let mut sets = ask(client, &sql)?.into_iter();
    let mut next = || sets.next().ok_or_else(|| Error::new("the server gave fewer results than there were questions"));
    let counts = next()?;
    if !counts.is_empty() {
        return Ok(Some(format!(
            "transaction records that do not count their events (xact_id, recorded, there are): {counts:?}"
        )));
    }
    let mut recorded: BTreeMap<u64, Vec<(usize, Entry)>> = BTreeMap::new();
    let mut seen: BTreeMap<u64, Vec<(usize, Entry)>> = BTreeMap::new();
    for (index, (table, _)) in guarded.iter().enumerate() {
        let (events, watched, rows, problems) = (next()?, next()?, next()?, next()?);
        let name = &table.name;
        if let Some(open) = events.iter().find(|event| event[6].as_deref() != Some("t")) {
            return Ok(Some(format!("{name}: an event without a transaction record: {open:?}")));
        }
        if let Err(difference) = replay(&events, &rows) {
            return Ok(Some(format!("{name}: {difference}")));
        }
        if !problems.is_empty() {
            return Ok(Some(format!("agd.verify_table('{name}') found {problems:?}")));
        }
        for event in events.iter().filter(|event| event[0].as_deref() != Some("BASELINE")) {
            recorded.entry(transaction(event)?).or_default().push((index, entry(event)));
        }
        for row in &watched {
            seen.entry(transaction(row)?).or_default().push((index, entry(row)));
        }
    }
    // Numbers of transactions differ between the sides, their order does not.
    let mut recorded = recorded.into_values();
    let mut seen = seen.into_values();
    for number in 1.. {
        let (mut left, mut right) = match (recorded.next(), seen.next()) {
            (None, None) => break,
            (left, right) => (left.unwrap_or_default(), right.unwrap_or_default()),
        };
        left.sort();
        right.sort();
        if left != right {
            let told = |entries: Vec<(usize, Entry)>| -> Vec<String> {
                entries.into_iter().map(|(index, entry)| format!("{} {entry:?}", guarded[index].0.name)).collect()
            };
            let (only_recorded, only_seen) = (minus(&left, &right), minus(&right, &left));
            return Ok(Some(format!(
                "in transaction {number} that writes, recorded and not written: {:#?}; written and not recorded: {:#?}",
                told(only_recorded),
                told(only_seen)
            )));
        }
    }
    Ok(None)
}

fn transaction(row: &Row) -> Result<u64> {
    row.get(4)
        .and_then(|id| id.as_deref())
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| Error::new(format!("a write without a transaction: {row:?}")))
}

fn entry(row: &Row) -> Entry {
    (row[0].clone().unwrap_or_default(), row[1].clone(), row[2].clone(), row[3].clone())
}

/// What sorted `left` has and sorted `right` has not, each as often as it is more often there.
fn minus<T: Ord + Clone>(left: &[T], right: &[T]) -> Vec<T> {
    let mut rest = right.iter().peekable();
    left.iter()
        .filter(|item| {
            while rest.next_if(|other| other < item).is_some() {}
            rest.next_if(|other| other == item).is_none()
        })
        .cloned()
        .collect()
}

/// Replays events in their order: the image before each write must stand there, and at the end the table's rows.
///
/// A key can be there twice for a while, where the primary key is deferrable.
fn replay(events: &[Row], rows: &[Row]) -> std::result::Result<(), String> {
    let mut standing: Vec<(Option<String>, Option<String>)> = Vec::new();
    for event in events {
        let (action, key, old, new, new_key) = (event[0].as_deref(), &event[1], &event[2], &event[3], &event[5]);
        match action {
            Some("TRUNCATE") => standing.clear(),
            Some("INSERT" | "BASELINE") if old.is_some() => return Err(format!("a row before {event:?}")),
            Some("INSERT" | "BASELINE") if key != new_key => {
                return Err(format!("the key is not the row's: {event:?}"));
            }
            Some("UPDATE" | "DELETE") => {
                let place = standing.iter().position(|(there, row)| there == key && row == old);
                match place {
                    Some(place) => drop(standing.swap_remove(place)),
                    None => {
                        let there: Vec<_> = standing.iter().filter(|(there, _)| there == key).collect();
                        return Err(format!("the row before {event:?} is not what the log left there: {there:?}"));
                    }
                }
            }
            _ => {}
        }
        if new.is_some() {
            standing.push((new_key.clone(), new.clone()));
        }
    }
    let mut standing: Vec<Option<String>> = standing.into_iter().map(|(_, row)| row).collect();
    let mut rows: Vec<Option<String>> = rows.iter().map(|row| row[0].clone()).collect();
    standing.sort();
    rows.sort();
    if standing == rows {
        return Ok(());
    }
    Err(format!(
        "its events do not replay to its rows; only in the log: {:?}; only in the table: {:?}",
        minus(&standing, &rows),
        minus(&rows, &standing)
    ))
}
