//! DDL on a guarded table that is permitted, as an event.
//!
//! Owns what such an event says: the command and the object in `body`, which stands in the log as it is; the statement's
//! text in `new`, of which the log has a salted digest alone, because text may hold data; and there too what became of the
//! columns, by their numbers, from which a verifier knows each in images that were recorded under other names.

use crate::error::Result;
use crate::event::{self, Image, Record};
use crate::guard::place::Guard;
use crate::guard::relation::qualified_name;
use crate::guard::touched::Frame;
use crate::guard::write_string;
use crate::query::{self, At};
use agd_core::chain::{self, ColumnChange};
use pgrx::pg_sys;
use std::collections::BTreeMap;

/// A longer statement is recorded up to here.
const MAX_STATEMENT_BYTES: usize = 64 * 1024;
/// Entries are small: the first few objects tell what was done.
const MAX_BODY_BYTES: usize = 1000;

/// Records what a statement did to one guarded table. `columns`: what became of these.
pub fn record(frame: &Frame, guard: &Guard, columns: &[ColumnChange]) -> Result<()> {
    let name = qualified_name(guard.root);
    event::insert(&Record {
        relation: Some(&name),
        guard_id: Some(guard.id),
        new: Some(Image::Json(&payload(frame, columns))),
        body: Some(&body(frame, guard.root.to_u32(), &name)),
        ..Record::of("DDL")
    })?;
    Ok(())
}

/// The command and what it was done to: `ALTER TABLE public.orders`.
fn body(frame: &Frame, root: u32, name: &str) -> String {
    let mut done: Vec<String> = Vec::new();
    let mut add = |what: String| {
        if !done.contains(&what) {
            done.push(what);
        }
    };
    for (_, what) in frame.named.iter().filter(|(of, _)| *of == root) {
        add(what.clone());
    }
    if frame.named.iter().all(|(of, _)| *of != root) {
        for (_, what) in frame.dropped.iter().filter(|(of, _)| *of == root) {
            add(format!("{} {what}", frame.tag_name()));
        }
    }
    if done.is_empty() {
        return format!("{} {name}", frame.tag_name());
    }
    let mut body = String::new();
    for (index, what) in done.iter().enumerate() {
        if index > 0 && body.len() + what.len() > MAX_BODY_BYTES {
            body.push_str(&format!("; and {} more", done.len() - index));
            break;
        }
        if index > 0 {
            body.push_str("; ");
        }
        // One name alone may be longer: that of a function with a hundred arguments.
        let cut = what.floor_char_boundary(MAX_BODY_BYTES);
        body.push_str(&what[..cut]);
        if cut < what.len() {
            body.push('…');
        }
    }
    body
}

/// `{"statement":"…"}`; where the text is cut, `"length"` tells how many bytes it had. What became of columns stands in
/// `"columns"`.
fn payload(frame: &Frame, columns: &[ColumnChange]) -> Vec<u8> {
    let (statement, length) = frame.statement(MAX_STATEMENT_BYTES);
    let mut json = b"{\"statement\":".to_vec();
    write_string(&mut json, statement.as_bytes());
    if statement.len() < length {
        json.extend_from_slice(format!(",\"length\":{length}").as_bytes());
    }
    if !columns.is_empty() {
        json.extend_from_slice(b",\"columns\":");
        chain::write_changes(columns, &mut json);
    }
    json.push(b'}');
    json
}

/// A column as it is in one state of the catalogs.
#[derive(PartialEq, Eq)]
struct Column {
    name: String,
    /// Type, its modifier, and whether and how it is generated: where one of them is another, values may read otherwise.
    kind: [Option<String>; 3],
}

/// The columns of a table by their numbers.
fn columns_at(root: pg_sys::Oid, at: At) -> Result<BTreeMap<i16, Column>> {
    let query = format!(
        "SELECT a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated FROM pg_catalog.pg_attribute a
          WHERE a.attrelid = '{}'::oid AND a.attnum > 0 AND NOT a.attisdropped",
        root.to_u32()
    );
    let column = |row: Vec<Option<String>>| {
        let [number, name, kind @ ..]: [Option<String>; 5] = row.try_into().ok()?;
        Some((number?.parse().ok()?, Column { name: name?, kind }))
    };
    Ok(query::rows(at, &query)?.into_iter().filter_map(column).collect())
}

/// Is the text of every value the same in both types? Between integers, and between text and varchar that is not shorter.
fn reads_as_before([old, old_modifier, old_generated]: &[Option<String>; 3], new: &[Option<String>; 3]) -> bool {
    let [new, new_modifier, new_generated] = new;
    let both = |types: &[&str]| [old, new].iter().all(|one| one.as_deref().is_some_and(|one| types.contains(&one)));
    let number = |modifier: &Option<String>| modifier.as_deref().and_then(|modifier| modifier.parse::<i32>().ok());
    let is_no_shorter = match (number(old_modifier), number(new_modifier)) {
        (_, Some(-1)) => true,
        (Some(old), Some(new)) => old >= 0 && new >= old,
        _ => false,
    };
    old_generated == new_generated && (both(&["20", "21", "23"]) || both(&["25", "1043"]) && is_no_shorter)
}

/// What a statement did to the columns of a guarded table.
pub fn columns(frame: &Frame, root: pg_sys::Oid) -> Result<Vec<ColumnChange>> {
    if frame.columns_told {
        return Ok(Vec::new());
    }
    let (mut before, after) = (columns_at(root, frame.before())?, columns_at(root, At::Now)?);
    let mut changes = Vec::new();
    for (number, now) in after {
        let was = before.remove(&number);
        let retyped = frame.retyped.iter().find(|(of, name, _)| *of == root.to_u32() && *name == now.name);
        // What must read as before is not let off being compared.
        let reads_as_before = retyped.is_none_or(|(.., by_expression)| !by_expression)
            && was.as_ref().is_some_and(|was| was.name == now.name && reads_as_before(&was.kind, &now.kind));
        if (was.as_ref() != Some(&now) || retyped.is_some()) && !reads_as_before {
            changes.push(ColumnChange { number, before: was.map(|was| was.name), after: Some(now.name) });
        }
    }
    let gone = before.into_iter().map(|(number, was)| ColumnChange { number, before: Some(was.name), after: None });
    changes.extend(gone);
    changes.sort_by_key(|change| change.number);
    Ok(changes)
}

/// The columns that a table has when it is guarded, as they stand in the payload of that event.
pub fn first_columns(root: pg_sys::Oid) -> Result<Vec<ColumnChange>> {
    let columns = columns_at(root, At::Now)?;
    Ok(columns.into_iter().map(|(number, now)| ColumnChange { number, before: None, after: Some(now.name) }).collect())
}
