//! `agd verify --events`: are the events of a dump those that were anchored?
//!
//! Owns the pass over a dump: each line's entry must be the bytes at its leaf in the store, its images must give the digests
//! in that entry, and every leaf that the dump says it has must have its event, once. What proven events tell of fleets is handed
//! to [`agd_core::fleet::History`], and what they tell of rows to [`super::chains`], which judge them. The store's entries are
//! those that were verified: [`Leaves`] sees to that. Promises memory bounded by one line of at most [`MAX_LINE`] bytes, one bit
//! a leaf, the rows of fleets and what is kept to put events in order (and what it reports), in whatever order the lines stand. The store's own files are judged by
//! [`super::log`]; whether an image was erased by right is not to be seen in a dump, so erased ones are counted and named.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use agd_core::dump::{self, differing_fields};
use agd_core::fleet::{FleetFinding, History, JudgedFleet};
use agd_core::{DumpedEvent, EventId, Image, ImageKind, LogRange, OwnedEntry, entry};
use thiserror::Error;

use super::Report;
use super::chains::{Chains, Extent, Images, Rows};
use super::findings::{Finding, Findings};
use super::leaves::Leaves;
use crate::store::Reader;

/// The longest line that is read, in bytes. PostgreSQL has no event of more than a gigabyte.
pub const MAX_LINE: u64 = 1 << 30;

/// Missing events of a log that are named one by one; the rest is counted.
const NAMED: u64 = 8;

/// Why a dump could not be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DumpFileError {
    /// The system.
    #[error("{file}: {source}")]
    Io {
        /// The dump.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// It does not begin like one.
    #[error("{file} is not a dump of agd export: its first line is not one of a version {} dump", dump::VERSION)]
    NotADump {
        /// The dump.
        file: String,
    },
}

/// What was found about one log's events.
#[derive(Debug, Default)]
pub struct LogEvents {
    /// The log.
    pub origin: String,
    /// The first leaf of which the dump says that it has the event.
    pub first: u64,
    /// One past the last.
    pub last: u64,
    /// Whether it is said to have row images.
    pub images: bool,
    /// Events that are those at their leaves.
    pub proven: u64,
    /// Leaves whose event the dump does not have.
    pub missing: u64,
    /// Images that give the digest in the log.
    pub images_proven: u64,
    /// Images that were erased.
    pub images_erased: u64,
    /// Events that have lost images.
    pub erased: Vec<EventId>,
}

/// What was found about a dump.
#[derive(Debug, Default)]
pub struct EventsReport {
    /// The dump.
    pub file: String,
    /// Each log in it.
    pub logs: Vec<LogEvents>,
    /// What is false.
    pub findings: Findings,
    /// What could not be checked.
    pub unchecked: Vec<String>,
    /// Each fleet whose mint is in the dump.
    pub fleets: Vec<JudgedFleet>,
    /// What the dump does not have of fleets, and need not have.
    pub fleets_left_out: Vec<String>,
    /// The rows whose events were held against each other.
    pub rows: Rows,
}

/// Checks a dump against the store that `report` is about. `progress` counts events.
///
/// # Errors
/// [`DumpFileError`] when it cannot be read, or is none.
pub fn verify(
    reader: &Reader,
    report: &Report,
    path: &Path,
    progress: &AtomicU64,
) -> Result<EventsReport, DumpFileError> {
    verify_within(reader, report, path, MAX_LINE, progress)
}

/// The same with another limit for the length of a line.
///
/// # Errors
/// As [`verify`].
pub fn verify_within(
    reader: &Reader,
    report: &Report,
    path: &Path,
    max_line: u64,
    progress: &AtomicU64,
) -> Result<EventsReport, DumpFileError> {
    let file = path.display().to_string();
    let io = |source| DumpFileError::Io { file: file.clone(), source };
    let from = BufReader::with_capacity(1 << 18, File::open(path).map_err(io)?);
    let mut lines = Lines { from, offset: 0, max_line };
    let mut line = Vec::new();
    let header = match lines.next(&mut line).map_err(io)? {
        Some(Ended::Whole) => dump::parse_header(&line).ok(),
        _ => None,
    };
    let Some(ranges) = header else {
        return Err(DumpFileError::NotADump { file });
    };
    let mut check = Check {
        logs: Vec::new(),
        by_origin: HashMap::new(),
        fleets: History::default(),
        chains: Chains::default(),
        too_long: 0,
        result: EventsReport { file: file.clone(), ..EventsReport::default() },
    };
    ranges.into_iter().for_each(|range| check.log(reader, report, range));
    for number in 2.. {
        let offset = lines.offset;
        let place = Place { number, offset };
        match lines.next(&mut line).map_err(io)? {
            None => break,
            Some(Ended::Whole) => check.line(&line, place),
            Some(Ended::Cut) => check.wrong(place, None, "the line has no end: the dump was cut off".to_owned()),
            Some(Ended::TooLong) => check.too_long(place, max_line),
        }
        progress.fetch_add(1, Ordering::Relaxed);
    }
    check.missing();
    check.judge_fleets();
    check.judge_rows();
    Ok(check.result)
}

/// How a line ended.
enum Ended {
    Whole,
    /// Without a line end: it is the last.
    Cut,
    TooLong,
}

struct Lines {
    from: BufReader<File>,
    offset: u64,
    max_line: u64,
}

impl Lines {
    /// The next line. Of one that is too long nothing is kept, and the next one follows it.
    fn next(&mut self, line: &mut Vec<u8>) -> io::Result<Option<Ended>> {
        line.clear();
        line.shrink_to(KEPT);
        let read = (&mut self.from).take(self.max_line + 1).read_until(b'\n', line)? as u64;
        self.offset += read;
        Ok(match (read, line.last()) {
            (0, _) => None,
            (_, Some(b'\n')) => {
                line.pop();
                Some(Ended::Whole)
            }
            (read, _) if read > self.max_line => {
                *line = Vec::new();
                self.offset += self.from.skip_until(b'\n')? as u64;
                Some(Ended::TooLong)
            }
            _ => Some(Ended::Cut),
        })
    }
}

/// Room for a line that is kept for the next one.
const KEPT: usize = 1 << 20;

/// A line of the dump.
#[derive(Clone, Copy)]
struct Place {
    number: u64,
    offset: u64,
}

/// One log while the dump is read.
struct Log<'a> {
    leaves: Leaves<'a>,
    /// One bit for each leaf of the range that the store has.
    seen: Vec<u64>,
    /// One past the last leaf that can be compared.
    reach: u64,
    /// There are lines beyond, or there ought to be.
    tells: LogEvents,
    /// The store has it.
    there: bool,
    /// An event was there that is not what was anchored.
    wrong: bool,
}

impl Log<'_> {
    /// Whether the leaf's event was not seen before. The leaf is one of those that can be compared.
    fn see(&mut self, index: u64) -> bool {
        let bit = index - self.tells.first;
        let Some(word) = self.seen.get_mut((bit / 64) as usize) else {
            return false;
        };
        let new = *word & (1 << (bit % 64)) == 0;
        *word |= 1 << (bit % 64);
        new
    }

    fn is_seen(&self, index: u64) -> bool {
        let bit = index - self.tells.first;
        self.seen.get((bit / 64) as usize).is_some_and(|word| word & (1 << (bit % 64)) != 0)
    }
}

struct Check<'a> {
    logs: Vec<Log<'a>>,
    by_origin: HashMap<String, usize>,
    fleets: History,
    chains: Chains,
    /// Lines that were too long to be read.
    too_long: u64,
    result: EventsReport,
}

impl<'a> Check<'a> {
    /// Takes up a log of the first line.
    fn log(&mut self, reader: &'a Reader, report: &'a Report, range: LogRange) {
        let LogRange { origin, first, last, images } = range;
        let place = Place { number: 1, offset: 0 };
        if first > last || self.by_origin.contains_key(&origin) {
            return self.wrong(
                place,
                None,
                format!("names {origin} twice, or with a range that ends before it begins"),
            );
        }
        let there = report.logs.iter().find(|log| log.origin == origin).map(|log| &log.result);
        // Of a log that could not be read to its end no more is compared than was read: its size is only said.
        let size = there.map_or(0, |log| if log.root.is_some() { log.size } else { log.entries });
        if there.is_none() {
            self.result.unchecked.push(format!("events of {origin}: this store has no such log"));
        } else if last > size {
            self.result.unchecked.push(format!(
                "events of {origin} from entry {} on: the store has the log up to size {size} (publish what is newer, or \
                 export with --until)",
                size.max(first)
            ));
        }
        let reach = last.min(size).max(first);
        self.fleets.expect(&origin, images && first == 0 && there.is_some());
        let seen = vec![0; (reach - first).div_ceil(64) as usize];
        self.by_origin.insert(origin.clone(), self.logs.len());
        let roots = there.map_or(&[][..], |log| &log.tiles);
        let leaves = Leaves::new(reader, &origin, size, roots);
        let there = there.is_some();
        let tells = LogEvents { origin, first, last, images, ..LogEvents::default() };
        self.logs.push(Log { leaves, seen, reach, tells, there, wrong: false });
    }

    fn wrong(&mut self, place: Place, index: Option<u64>, message: String) {
        let Place { number, offset } = place;
        let message = format!("line {number}: {message}");
        let finding = Finding { file: self.result.file.clone(), index, offset: Some(offset), message };
        self.result.findings.add(finding);
    }

    fn line(&mut self, line: &[u8], place: Place) {
        let event = match DumpedEvent::parse(line) {
            Ok(event) => event,
            Err(error) => return self.wrong(place, None, error.to_string()),
        };
        let entry = match entry::parse(&event.entry) {
            Ok(entry) => entry,
            Err(error) => return self.wrong(place, Some(event.index), format!("its entry: {error}")),
        };
        let (index, id) = (event.index, entry.event_id);
        let Some(at) = self.by_origin.get(event.origin.as_ref()).copied() else {
            let text = format!("event {id} is of {}, which the first line does not name", event.origin);
            return self.wrong(place, Some(index), text);
        };
        let Some(log) = self.logs.get_mut(at) else { return };
        let images = log.tells.images;
        let origin = log.tells.origin.clone();
        let verdict = log.judge(&event, &entry);
        // Images are bound to the entry that stands beside them, whatever that is worth.
        let problems = event.check_images(&entry, images);
        log.wrong |= !problems.is_empty() || matches!(verdict, Err(Wrong::False(_)));
        match verdict {
            Ok(()) => {
                let erased = event.erased().count() as u64;
                if erased > 0 {
                    log.tells.erased.push(id);
                }
                let told = dump::KINDS.iter().filter(|kind| matches!(event.image(**kind), Image::Text(_)));
                log.tells.images_erased += erased;
                log.tells.images_proven += (told.count() as u64).saturating_sub(problems.len() as u64);
                if problems.is_empty() {
                    let text = |kind| match event.image(kind) {
                        Image::Text(text) => Some(text.as_ref()),
                        _ => None,
                    };
                    let of = |kind| text(kind);
                    let (key, old, new) = (of(ImageKind::Key), of(ImageKind::Old), of(ImageKind::New));
                    self.fleets.add(&origin, index, &entry, old, new);
                    self.chains.add(at as u32, index, &entry, images, Images { key, old, new });
                }
            }
            Err(Wrong::Unread(what)) => {
                if !self.result.unchecked.contains(&what) {
                    self.result.unchecked.push(what);
                }
            }
            Err(Wrong::Beyond) => {}
            Err(Wrong::False(what)) => {
                self.wrong(place, Some(index), format!("event {id}, entry {index} of {origin}, {what}"))
            }
        }
        for (kind, problem) in problems {
            let text = format!("event {id}, entry {index} of {origin}: its image \"{}\" {problem}", kind.name());
            self.wrong(place, Some(index), text);
        }
    }

    /// A line that nobody can read: what it holds could not be checked.
    fn too_long(&mut self, place: Place, max_line: u64) {
        self.too_long += 1;
        if self.too_long <= NAMED {
            let Place { number, offset } = place;
            let text =
                format!("line {number}, at byte {offset}: it is longer than {max_line} bytes, the most that is read");
            self.result.unchecked.push(text);
        } else if self.too_long == NAMED + 1 {
            self.result.unchecked.push("further lines that are too long".to_owned());
        }
    }

    /// What the proven events tell of rows.
    fn judge_rows(&mut self) {
        let logs: Vec<Extent> = self
            .logs
            .iter()
            .map(|log| Extent {
                origin: log.tells.origin.clone(),
                is_from_the_beginning: log.there && log.tells.images && log.tells.first == 0,
                is_whole: !log.wrong && log.tells.missing == 0,
            })
            .collect();
        let (mut doubts, result) = (0_u64, &mut self.result);
        let rows = std::mem::take(&mut self.chains).judge(&logs, |found| match found.doubt {
            None => {
                let (file, index) = (result.file.clone(), Some(found.index));
                result.findings.add(Finding { file, index, offset: None, message: found.message });
            }
            Some(doubt) => {
                doubts += 1;
                if doubts <= NAMED {
                    result.unchecked.push(format!("{} ({doubt})", found.message));
                }
            }
        });
        if let Some(more) = doubts.checked_sub(NAMED).filter(|more| *more > 0) {
            result
                .unchecked
                .push(format!("{more} more events that do not follow from the one before, for such reasons"));
        }
        result.rows = rows;
        result.logs = std::mem::take(&mut self.logs).into_iter().map(|log| log.tells).collect();
    }

    /// What the proven events tell of fleets.
    fn judge_fleets(&mut self) {
        let judgement = std::mem::take(&mut self.fleets).judge();
        for FleetFinding { origin, index, event_id, fleet_id, message } in judgement.findings {
            let fleet = fleet_id.map_or_else(String::new, |fleet_id| format!("fleet {fleet_id}: "));
            let message = format!("{fleet}event {event_id}, entry {index} of {origin}, {message}");
            let file = self.result.file.clone();
            self.result.findings.add(Finding { file, index: Some(index), offset: None, message });
        }
        self.result.fleets = judgement.fleets;
        self.result.fleets_left_out = judgement.unchecked;
    }

    /// Names the leaves whose events did not come.
    fn missing(&mut self) {
        for at in 0..self.logs.len() {
            let Some(log) = self.logs.get_mut(at) else { return };
            let leaves = (log.tells.first..log.reach).filter(|index| !log.is_seen(*index));
            let missing: Vec<u64> = leaves.clone().take(NAMED as usize).collect();
            log.tells.missing = leaves.count() as u64;
            if log.tells.missing > 0 && self.too_long > 0 {
                // They may stand in the lines that were not read.
                let text =
                    format!("{} events of {}: not in the lines that were read", log.tells.missing, log.tells.origin);
                self.result.unchecked.push(text);
                continue;
            }
            let mut found = Vec::new();
            for index in missing {
                let id = match log.leaves.get(index) {
                    Ok(bytes) => {
                        entry::parse(bytes).map(|entry| format!("event {}, ", entry.event_id)).unwrap_or_default()
                    }
                    Err(_) => String::new(),
                };
                let message = format!("{id}entry {index} of {}, is missing in the dump", log.tells.origin);
                found.push((Some(index), message));
            }
            if let Some(more) = log.tells.missing.checked_sub(NAMED).filter(|more| *more > 0) {
                found.push((None, format!("{more} more events of {} are missing in the dump", log.tells.origin)));
            }
            for (index, message) in found {
                let file = self.result.file.clone();
                self.result.findings.add(Finding { file, index, offset: None, message });
            }
        }
    }
}

/// Why an event is not proven.
enum Wrong {
    /// It is not what was anchored.
    False(String),
    /// The store's entry could not be read.
    Unread(String),
    /// The store does not go so far: said once for the log.
    Beyond,
}

impl Log<'_> {
    fn judge(&mut self, event: &DumpedEvent<'_>, entry: &OwnedEntry) -> Result<(), Wrong> {
        let index = event.index;
        if index < self.tells.first || index >= self.tells.last {
            return Err(Wrong::False("is outside of the range that the first line names".to_owned()));
        }
        if index >= self.reach {
            return Err(Wrong::Beyond);
        }
        let logged = match self.leaves.get(index) {
            Ok(logged) => logged,
            Err(error) => {
                // It is there, whatever it is.
                self.see(index);
                self.wrong = true;
                return Err(Wrong::Unread(format!("events: {error}")));
            }
        };
        if *logged == *event.entry {
            if !self.see(index) {
                return Err(Wrong::False("is there twice".to_owned()));
            }
            self.tells.proven += 1;
            return Ok(());
        }
        Err(Wrong::False(match entry::parse(logged) {
            Ok(logged) if logged.event_id == entry.event_id => {
                let fields = differing_fields(&logged, entry).join(", ");
                let again = if self.see(index) { "" } else { ", and is there twice" };
                format!("was changed: {fields} is not as in the log{again}")
            }
            Ok(logged) => format!("is not in the log there: that entry is event {}", logged.event_id),
            Err(_) => "is not what the log has there".to_owned(),
        }))
    }
}
