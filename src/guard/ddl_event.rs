//! DDL on a guarded table that is permitted, as an event.
//!
//! Owns what such an event says: the command and the object in `body`, which stands in the log as it is; the statement's
//! text in `new`, of which the log has a salted digest alone, because text may hold data.

use crate::error::Result;
use crate::event::{self, Image, Record};
use crate::guard::place::Guard;
use crate::guard::relation::qualified_name;
use crate::guard::touched::Frame;
use crate::guard::write_string;

/// A longer statement is recorded up to here.
const MAX_STATEMENT_BYTES: usize = 64 * 1024;
/// Entries are small: the first few objects tell what was done.
const MAX_BODY_BYTES: usize = 1000;

/// Records what a statement did to one guarded table.
pub fn record(frame: &Frame, guard: &Guard) -> Result<()> {
    let name = qualified_name(guard.root);
    event::insert(&Record {
        relation: Some(&name),
        guard_id: Some(guard.id),
        new: Some(Image::Json(&payload(frame, guard.root.to_u32()))),
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

/// `{"statement":"…"}`; where the text is cut, `"length"` tells how many bytes it had. Columns that were renamed stand
/// in `"renamed"`, each with both names, from which `agd.verify_table()` knows it in older images.
fn payload(frame: &Frame, root: u32) -> Vec<u8> {
    let (statement, length) = frame.statement(MAX_STATEMENT_BYTES);
    let mut json = b"{\"statement\":".to_vec();
    write_string(&mut json, statement.as_bytes());
    if statement.len() < length {
        json.extend_from_slice(format!(",\"length\":{length}").as_bytes());
    }
    let renamed = frame.renamed.iter().filter(|(of, ..)| *of == root);
    for (number, (_, before, after)) in renamed.clone().enumerate() {
        json.extend_from_slice(if number == 0 { b",\"renamed\":[[" } else { b",[" });
        write_string(&mut json, before.as_bytes());
        json.push(b',');
        write_string(&mut json, after.as_bytes());
        json.push(b']');
    }
    if renamed.count() > 0 {
        json.push(b']');
    }
    json.push(b'}');
    json
}
