//! Do the events of each row follow from each other? What `agd verify --events` asks of proven events with images.
//!
//! Owns which events of a dump belong to which guard and row, and what can be said where a dump does not have everything; the
//! rule is [`agd_core::chain`]'s. Promises memory bounded by what `super::sorted` keeps, by the events about whole tables, and
//! by a few images of one row. Where images are withheld, or the events that tell how a table's columns changed are not there, it
//! says that rows were not checked, and never that they hold or are false.

use std::collections::{BTreeMap, HashMap};
use std::io;

use agd_core::chain::{self, Chain, Guard, Place, Problem, Step};
use agd_core::{EventId, OwnedEntry, name};
use serde::Deserialize;

use super::sorted::{BUDGET, Sorter};
use crate::report::{counted, grouped};

/// What was found out about rows.
#[derive(Debug, Default)]
pub struct Rows {
    /// Rows that were followed.
    pub followed: u64,
    /// Their events.
    pub steps: u64,
    /// Tables that they are of.
    pub tables: u64,
    /// Which rows were not, and why.
    pub left_out: Vec<String>,
}

/// Something that does not fit.
#[derive(Debug)]
pub struct Break {
    /// The entry at which it shows.
    pub index: u64,
    /// What it is.
    pub message: String,
    /// Why it may be no fault; `None`: it is one.
    pub doubt: Option<String>,
}

/// What the dump has of a log, as far as it matters here.
#[derive(Debug)]
pub struct Extent {
    /// The log.
    pub origin: String,
    /// From its first event on, with images.
    pub is_from_the_beginning: bool,
    /// Every event of the range was there, as it was anchored.
    pub is_whole: bool,
}

/// What is known of a guard.
#[derive(Debug, Default)]
struct Facts {
    relation: String,
    guard: Guard,
    /// Its GUARD event was there.
    begun: bool,
    /// The logs that have events of its rows.
    logs: Vec<u32>,
    /// Events of rows whose images the dump does not have.
    withheld: u64,
    /// Something of it was erased that a row's way cannot be told without.
    erased: bool,
}

/// Takes proven events, in any order.
#[derive(Debug)]
pub struct Chains {
    guards: BTreeMap<[u8; 16], Facts>,
    sorter: Option<Sorter>,
    broken: Option<io::Error>,
    /// The latest commit time of a proven event of each log.
    reach: HashMap<u32, i64>,
}

impl Default for Chains {
    fn default() -> Self {
        let (guards, reach) = (BTreeMap::new(), HashMap::new());
        Self { guards, sorter: Some(Sorter::new(BUDGET)), broken: None, reach }
    }
}

/// The payload of a GUARD event.
#[derive(Deserialize)]
struct Guarded {
    baseline: bool,
}

/// The payload of a DDL event.
#[derive(Deserialize)]
struct Changed<'a> {
    #[serde(borrow)]
    columns: Option<&'a serde_json::value::RawValue>,
}

/// The images of a proven event; `None`: there is none, or it was erased.
#[derive(Debug, Clone, Copy, Default)]
pub struct Images<'a> {
    /// The key.
    pub key: Option<&'a str>,
    /// The row before.
    pub old: Option<&'a str>,
    /// The row after.
    pub new: Option<&'a str>,
}

const BASELINE: u8 = 0;
const AGAIN: u8 = 1;
const BEGIN: u8 = 2;
const END: u8 = 3;
const CHANGE: u8 = 4;

/// The row that is being followed: its guard, its key, the last event (index in the dump, stamp), its chain.
type Followed<'g> = ([u8; 16], Vec<u8>, (u64, i64), Chain<'g>);

impl Chains {
    /// A proven event, the entry `index` of the log with this number. `with_images`: the dump has those of this log.
    pub fn add(&mut self, log: u32, index: u64, entry: &OwnedEntry, with_images: bool, images: Images<'_>) {
        let reach = self.reach.entry(log).or_insert(i64::MIN);
        *reach = (*reach).max(entry.committed_at);
        let Some(id) = entry.guard_id.as_deref().and_then(uuid) else { return };
        let facts = self.guards.entry(id).or_default();
        let place = Place { stamp: entry.committed_at, event_id: entry.event_id };
        let again = entry.body.as_deref() == Some(chain::RECORDED_AGAIN);
        let (kind, moved) = match entry.action.as_str() {
            "GUARD" | "DDL" | "TRUNCATE" => return facts.table(place, entry, with_images, images.new),
            "BASELINE" if again => (AGAIN, None),
            "BASELINE" => (BASELINE, None),
            "INSERT" => (BEGIN, None),
            "DELETE" => (END, None),
            "UPDATE" => (CHANGE, images.key.zip(images.new).and_then(|(key, new)| chain::moved_key(key, new))),
            _ => return,
        };
        if facts.relation.is_empty() {
            facts.relation = entry.relation.clone().unwrap_or_default();
        }
        if !facts.logs.contains(&log) {
            facts.logs.push(log);
        }
        if !with_images {
            facts.withheld += 1;
            return;
        }
        let Some(key) = images.key else {
            facts.erased = true;
            return;
        };
        // Whether the key stayed is not known without the image.
        facts.erased |= kind == CHANGE && images.new.is_none();
        match moved {
            None => self.push(id, key, 0, kind, place, (log, index), images.old, images.new),
            Some(moved) => {
                self.push(id, key, 1, END, place, (log, index), images.old, None);
                self.push(id, &moved, 2, BEGIN, place, (log, index), None, images.new);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one record, named where it is written")]
    fn push(
        &mut self,
        guard: [u8; 16],
        key: &str,
        part: u8,
        kind: u8,
        place: Place,
        (log, index): (u32, u64),
        old: Option<&str>,
        new: Option<&str>,
    ) {
        // Keys stand together; each one's events in the order of the log.
        let mut sorted = Vec::with_capacity(key.len() + 48);
        sorted.extend_from_slice(&guard);
        sorted.extend_from_slice(&(key.len() as u64).to_be_bytes());
        sorted.extend_from_slice(key.as_bytes());
        sorted.extend_from_slice(&(place.stamp.cast_unsigned() ^ (1 << 63)).to_be_bytes());
        sorted.extend_from_slice(&place.event_id.xact_id.to_be_bytes());
        sorted.extend_from_slice(&place.event_id.n.to_be_bytes());
        sorted.push(part);
        let flags = kind | u8::from(old.is_some()) << 6 | u8::from(new.is_some()) << 7;
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        let head = [&[flags][..], &log.to_le_bytes(), &index.to_le_bytes(), &(old.len() as u64).to_le_bytes()].concat();
        let Some(sorter) = &mut self.sorter else { return };
        if let Err(error) = sorter.push(&sorted, &[&head, old.as_bytes(), new.as_bytes()]) {
            // Without room nothing can be followed; everything else can still be proven.
            self.broken = Some(error);
            self.sorter = None;
        }
    }

    /// Everything was there: follows every row. `logs`: what the dump has of each.
    pub fn judge(mut self, logs: &[Extent], mut each: impl FnMut(Break)) -> Rows {
        let mut rows = Rows::default();
        for facts in self.guards.values_mut() {
            // A table that is renamed is still the one that is guarded.
            if facts.relation == "agd.guarded_table" {
                facts.guard.holds_names("relation");
            }
            facts.guard.settle();
            if !facts.begins_here(logs) {
                facts.guard.had_rows_before();
            }
            if facts.withheld > 0 {
                let (relation, events) = (&facts.relation, counted(facts.withheld, "event"));
                rows.left_out.push(format!("rows of {relation}: the dump does not have the images of {events}"));
            }
        }
        let known = |facts: &Facts, stamp: i64| facts.doubt(logs, &self.reach, stamp);
        let Some(sorter) = self.sorter.take() else {
            let why = self.broken.map_or_else(String::new, |error| error.to_string());
            rows.left_out
                .push(format!("all rows: what is needed to put their events in order cannot be written: {why}"));
            return rows;
        };
        let mut at: Option<Followed<'_>> = None;
        let mut problems: Vec<Problem> = Vec::new();
        let guards = &self.guards;
        let mut tell = |guard: &[u8; 16], key: &[u8], (index, stamp): (u64, i64), problems: &mut Vec<Problem>| {
            let Some(facts) = guards.get(guard) else { return };
            for problem in problems.drain(..) {
                let key = String::from_utf8_lossy(key);
                let message = format!("row {key} of {}: {}", facts.relation, problem.tell(true));
                each(Break { index, message, doubt: known(facts, stamp) });
            }
        };
        let mut last_guard = None;
        let outcome = sorter.finish(|sorted, payload| {
            let Some(record) = Record::read(sorted, payload) else { return Err(io::ErrorKind::InvalidData.into()) };
            if at.as_ref().is_none_or(|(guard, key, ..)| *guard != record.guard || *key != record.key) {
                if let Some((guard, key, last, mut chain)) = at.take() {
                    chain.finish(&mut problems);
                    tell(&guard, &key, last, &mut problems);
                }
                let Some(facts) = guards.get(&record.guard) else { return Ok(()) };
                if last_guard.replace(record.guard) != Some(record.guard) {
                    rows.tables += 1;
                }
                rows.followed += 1;
                at = Some((record.guard, record.key.to_vec(), (record.index, i64::MIN), Chain::new(&facts.guard)));
            }
            if let Some((guard, key, last, chain)) = &mut at {
                rows.steps += 1;
                chain.step(record.place, record.action(), record.step(), &mut problems);
                *last = (record.index, record.place.stamp);
                tell(guard, key, *last, &mut problems);
            }
            Ok(())
        });
        if let Some((guard, key, last, mut chain)) = at {
            chain.finish(&mut problems);
            tell(&guard, &key, last, &mut problems);
        }
        if let Err(error) = outcome {
            rows.left_out
                .push(format!("rows: what was put aside to put their events in order cannot be read: {error}"));
        }
        rows
    }
}

impl Facts {
    /// An event about the table as a whole.
    fn table(&mut self, place: Place, entry: &OwnedEntry, with_images: bool, payload: Option<&str>) {
        match entry.action.as_str() {
            "TRUNCATE" => self.guard.truncated(place),
            "GUARD" => {
                self.begun = true;
                let payload = payload.and_then(|payload| serde_json::from_str::<Guarded>(payload).ok());
                if !payload.is_some_and(|payload| payload.baseline) {
                    self.guard.had_rows_before();
                }
            }
            _ => {
                let payload = payload.and_then(|payload| serde_json::from_str::<Changed<'_>>(payload).ok());
                match payload.map(|payload| payload.columns.map(|columns| chain::parse_changes(columns.get()))) {
                    Some(Some(Some(changes))) => self.guard.changed(place, changes),
                    Some(None) => {}
                    _ => self.erased |= with_images,
                }
            }
        }
    }

    /// One of agd's own tables: guarded from the beginning, and changed by its upgrades alone.
    fn is_own(&self) -> bool {
        self.relation.starts_with("agd.")
    }

    /// Whether the dump has the events of its rows from the first one on.
    fn begins_here(&self, logs: &[Extent]) -> bool {
        let whole = |origin: &str| logs.iter().any(|log| log.origin == origin && log.is_from_the_beginning);
        (self.begun || self.is_own())
            && self.logs.iter().all(|log| {
                let Some(log) = logs.get(*log as usize) else { return false };
                let (platform, tenant) = log
                    .origin
                    .rsplit_once("/t/")
                    .map_or((log.origin.as_str(), None), |(platform, tenant)| (platform, Some(tenant)));
                let (log_name, incarnation) = name::split_incarnation(platform);
                // A row's way may have begun in an earlier incarnation of its log.
                let first = tenant.map_or_else(|| log_name.to_owned(), |tenant| format!("{log_name}/t/{tenant}"));
                log.is_from_the_beginning && (incarnation < 2 || whole(&first))
            })
    }

    /// Why a break at a commit time may be none.
    fn doubt(&self, logs: &[Extent], reach: &HashMap<u32, i64>, stamp: i64) -> Option<String> {
        if self.erased {
            return Some("something of this table was erased".to_owned());
        }
        if self.withheld > 0 {
            return Some("the dump does not have the images of all its events".to_owned());
        }
        for log in &self.logs {
            let Some(log) = logs.get(*log as usize) else { continue };
            if !log.is_whole {
                return Some(format!("not every event of {} is there as it was anchored", log.origin));
            }
        }
        if self.relation == "agd.role_map" {
            return Some("a role that was renamed is recorded under the name that it has".to_owned());
        }
        if self.is_own() {
            return None;
        }
        // The events that tell of a table's columns are in the platform's log.
        let platform = |log: &u32| {
            let origin = &logs.get(*log as usize)?.origin;
            let platform = origin.rsplit_once("/t/").map_or(origin.as_str(), |(platform, _)| platform);
            let at = logs.iter().position(|log| log.origin == platform)?;
            let extent = logs.get(at).filter(|log| log.is_from_the_beginning && log.is_whole)?;
            (reach.get(&(at as u32)).is_some_and(|reach| *reach >= stamp)).then_some(extent)
        };
        if !self.begun || self.logs.iter().any(|log| platform(log).is_none()) {
            return Some(
                "the dump does not have all that the platform's log says of this table, which may explain it"
                    .to_owned(),
            );
        }
        None
    }
}

/// A record as it was sorted.
struct Record<'a> {
    guard: [u8; 16],
    key: &'a [u8],
    place: Place,
    part: u8,
    kind: u8,
    index: u64,
    old: Option<&'a str>,
    new: Option<&'a str>,
}

impl<'a> Record<'a> {
    fn read(sorted: &'a [u8], payload: &'a [u8]) -> Option<Self> {
        let (guard, rest) = sorted.split_first_chunk::<16>()?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let (key, rest) = rest.split_at_checked(usize::try_from(u64::from_be_bytes(*length)).ok()?)?;
        let (stamp, rest) = rest.split_first_chunk::<8>()?;
        let (xact_id, rest) = rest.split_first_chunk::<8>()?;
        let (n, rest) = rest.split_first_chunk::<4>()?;
        let stamp = (u64::from_be_bytes(*stamp) ^ (1 << 63)).cast_signed();
        let event_id = EventId { xact_id: u64::from_be_bytes(*xact_id), n: u32::from_be_bytes(*n) };
        let (flags, body) = payload.split_first()?;
        let (_log, body) = body.split_first_chunk::<4>()?;
        let (index, body) = body.split_first_chunk::<8>()?;
        let (length, body) = body.split_first_chunk::<8>()?;
        let (old, new) = body.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let image = |bytes, bit: u8| {
            let text: Option<&str> = std::str::from_utf8(bytes).ok();
            text.filter(|_| flags & bit != 0)
        };
        Some(Self {
            guard: *guard,
            key,
            place: Place { stamp, event_id },
            part: *rest.first()?,
            kind: flags & 0x3f,
            index: u64::from_le_bytes(*index),
            old: image(old, 1 << 6),
            new: image(new, 1 << 7),
        })
    }

    fn action(&self) -> &'static str {
        match (self.kind, self.part) {
            (BASELINE | AGAIN, _) => "BASELINE",
            (BEGIN, 0) => "INSERT",
            (END, 0) => "DELETE",
            _ => "UPDATE",
        }
    }

    fn step(&self) -> Step<'a> {
        match self.kind {
            BASELINE => Step::State { image: self.new, again: false },
            AGAIN => Step::State { image: self.new, again: true },
            BEGIN => Step::Begin(self.new),
            END => Step::End(self.old),
            _ => Step::Change { old: self.old, new: self.new },
        }
    }
}

impl Rows {
    /// In words, for a person.
    pub fn line(&self) -> String {
        format!(
            "{} of {} followed over {}",
            counted(self.followed, "row"),
            counted(self.tables, "table"),
            if self.steps == 1 { "1 event".to_owned() } else { format!("{} events", grouped(self.steps)) }
        )
    }
}

/// The 16 bytes of `8-4-4-4-12` hex digits.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    hex::decode(digits).ok()?.try_into().ok()
}
