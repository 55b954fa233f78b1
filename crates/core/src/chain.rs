//! The chain of a row: what the record says of it, event by event.
//!
//! Owns the rule that the events of one row must follow from each other: an INSERT finds no living row of its key, an UPDATE
//! and a DELETE start from exactly the image that the event before them left, a BASELINE begins a row or says again what is
//! known of it. So a row that was changed past the gate stays visible after the next honest write. One mechanism for the
//! database and for dumps: it is fed the steps of one key in the order of the log, (commit stamp, number), and knows what the
//! events about the whole guard say: how columns were renamed, dropped and added, when the table was emptied, and whether
//! there were rows before it was guarded.
//!
//! Promises to compare values as they were recorded, byte by byte, and columns by their history, not by their present name;
//! that keys which are swapped or shifted within one transaction, as a deferrable constraint permits, are followed; that each
//! break is named once, and memory is bounded by a few images of one key. What it cannot know (an erased image) it never
//! calls false. Never orders events, never decides who may see values.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha2::{Digest as _, Sha256};

use crate::entry::{EventId, escape};

/// The body of a BASELINE that says again what DDL may have changed of a row that was recorded before.
pub const RECORDED_AGAIN: &str = "recorded again";

/// Rows of one key that are kept with their images while a transaction shifts keys; of more, digests.
const NEAR: usize = 8;

/// The longest piece of a value that a message shows, in bytes.
const SHOWN: usize = 256;

/// Columns that a message names.
const NAMED: usize = 32;

/// Where an event stands: in the order of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its transaction's commit stamp; the largest number for what is not committed yet.
    pub stamp: i64,
    /// The event.
    pub event_id: EventId,
}

/// What a statement did to one column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnChange {
    /// The column's number.
    pub number: i16,
    /// Its name before; `None`: it was added.
    pub before: Option<String>,
    /// Its name after; `None`: it was dropped. The same name: its values may read otherwise.
    pub after: Option<String>,
}

impl ColumnChange {
    /// Whether the statement may have given the column other values.
    fn has_new_values(&self) -> bool {
        self.before.is_none() || self.before == self.after
    }
}

/// Appends the member "columns" of a DDL event's payload: `[[2,"a","b"],[3,null,"c"]]`.
pub fn write_changes(changes: &[ColumnChange], out: &mut Vec<u8>) {
    let name = |out: &mut Vec<u8>, name: &Option<String>| match name {
        None => out.extend_from_slice(b"null"),
        Some(name) => {
            out.push(b'"');
            escape(out, name.as_bytes());
            out.push(b'"');
        }
    };
    out.push(b'[');
    for (position, change) in changes.iter().enumerate() {
        out.extend_from_slice(if position == 0 { b"[" } else { b",[" });
        out.extend_from_slice(change.number.to_string().as_bytes());
        out.push(b',');
        name(out, &change.before);
        out.push(b',');
        name(out, &change.after);
        out.push(b']');
    }
    out.push(b']');
}

/// Reads what [`write_changes`] wrote. `None`: it is something else.
pub fn parse_changes(json: &str) -> Option<Vec<ColumnChange>> {
    let changes: Vec<(i16, Option<String>, Option<String>)> = serde_json::from_str(json).ok()?;
    Some(changes.into_iter().map(|(number, before, after)| ColumnChange { number, before, after }).collect())
}

/// What the events about a guard as a whole say.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    changes: Vec<(Place, Vec<ColumnChange>)>,
    truncated: Vec<Place>,
    rows_before: bool,
    /// Columns that are not compared.
    unsteady: BTreeSet<String>,
}

impl Guard {
    /// A DDL event changed columns.
    pub fn changed(&mut self, place: Place, changes: Vec<ColumnChange>) {
        if !changes.is_empty() {
            self.changes.push((place, changes));
        }
    }

    /// A TRUNCATE.
    pub fn truncated(&mut self, place: Place) {
        self.truncated.push(place);
    }

    /// There may be rows of which no event tells: the table was guarded without a baseline, or the record at hand does not
    /// begin at the beginning.
    pub fn had_rows_before(&mut self) {
        self.rows_before = true;
    }

    /// A column holds the name of something that may get another name without a write of the row: it is not compared.
    pub fn holds_names(&mut self, column: &str) {
        self.unsteady.insert(column.to_owned());
    }

    /// Everything is said: from here on chains can be followed.
    pub fn settle(&mut self) {
        self.changes.sort_by_key(|(place, _)| *place);
        self.truncated.sort_unstable();
    }

    /// How many changes of columns came before an event.
    fn epoch(&self, place: &Place) -> usize {
        self.changes.partition_point(|(change, _)| change < place)
    }

    /// The first and the last TRUNCATE between two events.
    fn truncated_between(&self, after: Option<&Place>, before: &Place) -> Option<(Place, Place)> {
        let first = after.map_or(0, |after| self.truncated.partition_point(|place| place <= after));
        let end = self.truncated.partition_point(|place| place < before);
        let between = self.truncated.get(first..end)?;
        Some((*between.first()?, *between.last()?))
    }
}

/// What a step says of a row; `None`: it was erased.
pub type Seen<'a> = Option<&'a str>;

/// What an event does to the rows of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// BASELINE: the row is this. `again`: it was recorded before, and DDL may have changed some columns.
    State {
        /// The row.
        image: Seen<'a>,
        /// See [`RECORDED_AGAIN`].
        again: bool,
    },
    /// INSERT, and an UPDATE that gives a row this key.
    Begin(Seen<'a>),
    /// DELETE, and an UPDATE that takes this key from a row.
    End(Seen<'a>),
    /// An UPDATE that leaves the key as it is.
    Change {
        /// The row before.
        old: Seen<'a>,
        /// The row after.
        new: Seen<'a>,
    },
}

/// A column in which what was found is not what was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name when it was found.
    pub column: String,
    /// What was recorded, JSON.
    pub recorded: String,
    /// What was found, JSON.
    pub found: String,
}

/// Something that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The event that shows it, or, for a row as it is now, the last one of it.
    pub event_id: Option<EventId>,
    /// What it is.
    message: String,
    /// What "found" is called.
    found: &'static str,
    differences: Vec<Difference>,
    more: usize,
}

impl Problem {
    fn of(event_id: Option<EventId>, message: String) -> Self {
        Self { event_id, message, found: "found", differences: Vec::new(), more: 0 }
    }

    fn differs(event_id: Option<EventId>, message: String, found: &'static str, all: Vec<Difference>) -> Self {
        let more = all.len().saturating_sub(NAMED);
        let differences = all.into_iter().take(NAMED).collect();
        Self { event_id, message, found, differences, more }
    }

    /// The columns that differ.
    pub fn differences(&self) -> &[Difference] {
        &self.differences
    }

    /// In words. `values`: whether the reader may see values of the row.
    pub fn tell(&self, values: bool) -> String {
        let mut text = self.message.clone();
        for (position, difference) in self.differences.iter().enumerate() {
            text.push_str(if position == 0 { " " } else { ", " });
            text.push_str(&difference.column);
            if values {
                let (recorded, found) = (shown(&difference.recorded), shown(&difference.found));
                text.push_str(&format!(": recorded {recorded}, {} {found}", self.found));
            }
        }
        if self.more > 0 {
            text.push_str(&format!(", and {} columns more", self.more));
        }
        text
    }
}

fn shown(value: &str) -> Cow<'_, str> {
    if value.len() <= SHOWN {
        return Cow::Borrowed(value);
    }
    Cow::Owned(format!("{}… ({} bytes)", &value[..value.floor_char_boundary(SHOWN)], value.len()))
}

/// A row that lives, as the record has it.
#[derive(Debug)]
struct Living {
    /// `None`: erased.
    image: Option<String>,
    place: Place,
}

/// Follows the rows of one key.
#[derive(Debug)]
pub struct Chain<'g> {
    guard: &'g Guard,
    living: Vec<Living>,
    /// Digests of the images of further living rows, and how many there are of each.
    crowd: HashMap<[u8; 32], u64>,
    crowded: u64,
    /// There may be a row of which no event tells.
    maybe: bool,
    last: Option<Place>,
}

impl<'g> Chain<'g> {
    /// Of a key of which nothing is known yet.
    pub fn new(guard: &'g Guard) -> Self {
        let maybe = guard.rows_before;
        Self { guard, living: Vec::new(), crowd: HashMap::new(), crowded: 0, maybe, last: None }
    }

    /// The next step of this key. `action`: what the event is, for messages.
    pub fn step(&mut self, place: Place, action: &str, step: Step<'_>, problems: &mut Vec<Problem>) {
        self.advance(&place, problems);
        match step {
            Step::State { image, again } => self.state(place, action, image, again, problems),
            Step::Begin(new) => self.begin(place, new),
            Step::End(old) => self.end(place, action, old, problems),
            Step::Change { old, new } => {
                self.end(place, action, old, problems);
                self.begin(place, new);
            }
        }
        self.last = Some(place);
    }

    /// There are no more steps.
    pub fn finish(&mut self, problems: &mut Vec<Problem>) {
        let end = Place { stamp: i64::MAX, event_id: EventId { xact_id: u64::MAX, n: u32::MAX } };
        self.advance(&end, problems);
        self.last = Some(end);
    }

    /// After [`Chain::finish`]: holds the row that is there now against its chain. `now`: the moment of that.
    pub fn compare(&self, present: Option<&str>, now: Place) -> Option<Problem> {
        let last = self.living.last();
        let event_id = last.map(|living| living.place.event_id);
        match (last, present) {
            (None, None) => None,
            (Some(_), None) => {
                Some(Problem::of(event_id, "row is missing: it was deleted outside the gate".to_owned()))
            }
            (None, Some(_)) if self.maybe => {
                Some(Problem::of(None, "row is from before the guard: no record says what it was".to_owned()))
            }
            (None, Some(_)) => Some(unrecorded(None)),
            (Some(living), Some(found)) => {
                let differences = self.differences(living, found, &now, &BTreeSet::new());
                let message = "row differs from its last record in".to_owned();
                (!differences.is_empty()).then(|| Problem::differs(event_id, message, "found", differences))
            }
        }
    }

    /// The last event that tells of the row as it lives.
    pub fn living_since(&self) -> Option<EventId> {
        self.living.last().map(|living| living.place.event_id)
    }

    /// What lies between the last step and an event: the end of a transaction, a TRUNCATE.
    fn advance(&mut self, next: &Place, problems: &mut Vec<Problem>) {
        let transaction = |place: &Place| place.event_id.xact_id;
        if let Some((first, last)) = self.guard.truncated_between(self.last.as_ref(), next) {
            if self.last.is_some_and(|before| transaction(&before) != transaction(&first)) {
                self.transaction_ends(problems);
            }
            self.living.clear();
            self.crowd.clear();
            self.crowded = 0;
            self.maybe = false;
            self.last = Some(last);
        }
        if self.last.is_some_and(|before| transaction(&before) != transaction(next)) {
            self.transaction_ends(problems);
        }
    }

    /// Of each key one row lives at most.
    fn transaction_ends(&mut self, problems: &mut Vec<Problem>) {
        self.maybe = false;
        if self.living.len() as u64 + self.crowded < 2 {
            return;
        }
        let (first, last) = (self.living.first().map(|first| first.place), self.last);
        if let (Some(first), Some(last)) = (first, self.living.last().map(|last| last.place).or(last)) {
            let message = format!(
                "event {} puts a row where the record has one since event {}: that one was deleted outside the gate",
                last.event_id, first.event_id
            );
            problems.push(Problem::of(Some(last.event_id), message));
        }
        let newest = self.living.pop();
        self.living.clear();
        self.living
            .extend(newest.map(|newest| if self.crowded > 0 { Living { image: None, ..newest } } else { newest }));
        self.crowd.clear();
        self.crowded = 0;
    }

    fn begin(&mut self, place: Place, new: Seen<'_>) {
        match new {
            Some(image) if self.living.len() >= NEAR => {
                *self.crowd.entry(digest(image)).or_default() += 1;
                self.crowded += 1;
            }
            _ if self.living.len() < NEAR => self.living.push(Living { image: new.map(str::to_owned), place }),
            _ => {}
        }
    }

    fn end(&mut self, place: Place, action: &str, old: Seen<'_>, problems: &mut Vec<Problem>) {
        let Some(image) = old else {
            // Which of them it was is not known.
            if self.living.len() > 1 {
                self.living.iter_mut().for_each(|living| living.image = None);
            }
            if self.living.pop().is_none() {
                self.maybe = false;
            }
            return;
        };
        if let Some(at) = self.find(image, &place) {
            self.living.remove(at);
            return;
        }
        if self.crowded > 0 {
            let digest = digest(image);
            if let Some(count) = self.crowd.get_mut(&digest).filter(|count| **count > 0) {
                *count -= 1;
                self.crowded -= 1;
                if *count == 0 {
                    self.crowd.remove(&digest);
                }
                return;
            }
        }
        if std::mem::take(&mut self.maybe) {
            return;
        }
        let event = place.event_id;
        // Of several the one that did not come with this very transaction is the likelier.
        let older = self.living.iter().position(|living| living.place.event_id.xact_id != event.xact_id);
        let at = older.or(self.living.len().checked_sub(1));
        match at.map(|at| self.living.remove(at)) {
            None => {
                let message =
                    format!("{action} {event} is of a row that no record left: it was added outside the gate");
                problems.push(Problem::of(Some(event), message));
            }
            Some(living) => {
                let differences = self.differences(&living, image, &place, &BTreeSet::new());
                let message = format!(
                    "{action} {event} starts from an image that no record left (the last one is of event {}):",
                    living.place.event_id
                );
                problems.push(Problem::differs(Some(event), message, "it found", differences));
            }
        }
    }

    fn state(&mut self, place: Place, action: &str, image: Seen<'_>, again: bool, problems: &mut Vec<Problem>) {
        let free = if again { self.free(&place) } else { BTreeSet::new() };
        let maybe = std::mem::take(&mut self.maybe);
        match (self.living.pop(), image) {
            (Some(living), Some(image)) => {
                let differences = self.differences(&living, image, &place, &free);
                if !differences.is_empty() {
                    let message = format!(
                        "{action} {} finds what no record left (the last one is of event {}):",
                        place.event_id, living.place.event_id
                    );
                    problems.push(Problem::differs(Some(place.event_id), message, "it found", differences));
                }
            }
            (None, _) if again && !maybe => {
                let message = format!(
                    "{action} {} finds a row that no record left: it was added outside the gate",
                    place.event_id
                );
                problems.push(Problem::of(Some(place.event_id), message));
            }
            _ => {}
        }
        self.begin(place, image);
    }

    /// The living row whose image this is, the newest first; one whose image is not known is any.
    fn find(&self, image: &str, place: &Place) -> Option<usize> {
        let nothing = BTreeSet::new();
        let known = self
            .living
            .iter()
            .rposition(|living| living.image.is_some() && self.differences(living, image, place, &nothing).is_empty());
        known.or_else(|| self.living.iter().rposition(|living| living.image.is_none()))
    }

    /// The columns that got new values in this very transaction, by their names at `place`.
    fn free(&self, place: &Place) -> BTreeSet<String> {
        let before = self.guard.changes.get(..self.guard.epoch(place)).unwrap_or_default();
        let same = |(change, _): &&(Place, _)| change.event_id.xact_id == place.event_id.xact_id;
        let count = before.iter().rev().take_while(same).count();
        let mut free: BTreeSet<String> = BTreeSet::new();
        for (_, changes) in before.iter().skip(before.len() - count) {
            let mut next: BTreeSet<String> = BTreeSet::new();
            for name in free {
                next.extend(renamed(&name, changes).map(Cow::into_owned));
            }
            next.extend(changes.iter().filter(|change| change.has_new_values()).filter_map(|c| c.after.clone()));
            free = next;
        }
        free
    }

    /// The columns in which an image differs from what was recorded. A column that the record does not have yet was NULL.
    /// One that the image does not have is not there any more, and not compared.
    fn differences(&self, living: &Living, found: &str, place: &Place, free: &BTreeSet<String>) -> Vec<Difference> {
        let Some(recorded) = &living.image else { return Vec::new() };
        let (from, to) = (self.guard.epoch(&living.place), self.guard.epoch(place));
        if from == to && recorded == found {
            return Vec::new();
        }
        let (Some(before), Some(after)) = (members(recorded), members(found)) else {
            let whole = || Difference { column: "the row".into(), recorded: recorded.clone(), found: found.into() };
            return if recorded == found { Vec::new() } else { vec![whole()] };
        };
        let between = self.guard.changes.get(from..to).unwrap_or_default();
        let mut known: BTreeMap<Cow<'_, str>, &str> = BTreeMap::new();
        'column: for (name, value) in before {
            let mut name = name;
            for (_, changes) in between {
                match renamed(&name, changes) {
                    Some(Cow::Borrowed(_)) => {}
                    Some(Cow::Owned(after)) => name = Cow::Owned(after),
                    None => continue 'column,
                }
            }
            known.insert(name, value);
        }
        let mut differences = Vec::new();
        for (name, value) in after {
            let recorded = known.get(&name).copied().unwrap_or("null");
            let is_compared = !free.contains(name.as_ref()) && !self.guard.unsteady.contains(name.as_ref());
            if recorded != value && is_compared {
                let (recorded, found) = (recorded.to_owned(), value.to_owned());
                differences.push(Difference { column: name.into_owned(), recorded, found });
            }
        }
        differences
    }
}

/// A row that is there and was never recorded.
pub fn unrecorded(event_id: Option<EventId>) -> Problem {
    Problem::of(event_id, "row is there without a record: it was added outside the gate".to_owned())
}

/// What a column is called after a statement: borrowed where the name stays. `None`: it is gone.
fn renamed<'a>(name: &'a str, changes: &'a [ColumnChange]) -> Option<Cow<'a, str>> {
    match changes.iter().find(|change| change.before.as_deref() == Some(name)) {
        None => Some(Cow::Borrowed(name)),
        Some(ColumnChange { after: None, .. }) => None,
        Some(ColumnChange { after: Some(after), .. }) if after == name => Some(Cow::Borrowed(name)),
        Some(ColumnChange { after: Some(after), .. }) => Some(Cow::Owned(after.clone())),
    }
}

fn digest(image: &str) -> [u8; 32] {
    Sha256::digest(image.as_bytes()).into()
}

/// The key that an UPDATE gave the row, where it is not the one that it had: the same columns, out of the image after it.
pub fn moved_key(key: &str, new: &str) -> Option<String> {
    let (columns, values) = (raw_members(key)?, raw_members(new)?);
    let mut moved = String::with_capacity(key.len() + 16);
    moved.push('{');
    for (position, (name, _)) in columns.iter().enumerate() {
        let (_, value) = values.iter().find(|(other, _)| other == name)?;
        if position > 0 {
            moved.push(',');
        }
        moved.push_str(name);
        moved.push(':');
        moved.push_str(value);
    }
    moved.push('}');
    (moved != key).then_some(moved)
}

/// The members of a JSON object with their values as they stand. `None`: it is none.
pub fn members(json: &str) -> Option<Vec<(Cow<'_, str>, &str)>> {
    let unescaped = |(name, value)| {
        let name: &str = name;
        let plain = name.strip_prefix('"')?.strip_suffix('"')?;
        let name =
            if plain.contains('\\') { Cow::Owned(serde_json::from_str(name).ok()?) } else { Cow::Borrowed(plain) };
        Some((name, value))
    };
    raw_members(json)?.into_iter().map(unescaped).collect()
}

/// The same with names as they stand, quotes included.
fn raw_members(json: &str) -> Option<Vec<(&str, &str)>> {
    let bytes = json.as_bytes();
    let space = |mut at: usize| {
        while matches!(bytes.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            at += 1;
        }
        at
    };
    let mut found = Vec::new();
    let mut at = space(0);
    if bytes.get(at) != Some(&b'{') {
        return None;
    }
    at = space(at + 1);
    if bytes.get(at) == Some(&b'}') {
        return (space(at + 1) == bytes.len()).then_some(found);
    }
    loop {
        let name = at..end_of_string(bytes, at)?;
        at = space(name.end);
        if bytes.get(at) != Some(&b':') {
            return None;
        }
        let start = space(at + 1);
        let end = end_of_value(bytes, start)?;
        found.push((json.get(name)?, json.get(start..end)?));
        at = space(end);
        match bytes.get(at)? {
            b',' => at = space(at + 1),
            b'}' => return (space(at + 1) == bytes.len()).then_some(found),
            _ => return None,
        }
    }
}

/// One past a string's closing quote.
fn end_of_string(bytes: &[u8], start: usize) -> Option<usize> {
    if bytes.get(start) != Some(&b'"') {
        return None;
    }
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// One past a value's end. A container may be as deep as it likes.
fn end_of_value(bytes: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = start;
    loop {
        match bytes.get(at)? {
            b'"' => at = end_of_string(bytes, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
                continue;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth > 0 => {
                at += 1;
                continue;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => return None,
            _ => {
                while bytes.get(at).is_some_and(|byte| !b",:{}[]\" \t\n\r".contains(byte)) {
                    at += 1;
                }
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}
