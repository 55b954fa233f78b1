//! Fleets from their logs alone: what the events of agd's own tables tell of each fleet, and whether it is true.
//!
//! Owns the collection of what concerns fleets from the events of one or more databases, in whatever order they come, and the
//! verdict on it ([`History::judge`]): each fleet's life is lived again from its mint on, event by event, and what it has
//! become is then checked as [`verify`](super::verify::verify) checks it. Promises that a fleet holds only if its events explain every
//! state it was in, each row before is what the event before left, its name follows from its cause, its signatures stand
//! under its own statement with the keys that the platform log has, and nothing was done in its name while it was not active.
//! Says by name what it could not check. Never asks whether the events are those of the log: its caller has.

mod replay;
mod row;

use std::collections::BTreeMap;

use super::verify::Check;
use crate::entry::{self, EventId, OwnedEntry};
use crate::name;
use row::Row;

/// One of the tables of fleets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Table {
    Signer,
    Template,
    Fleet,
    Agent,
    Request,
    Signature,
}

impl Table {
    const ALL: [(Table, &'static str); 6] = [
        (Table::Signer, "agd.signer"),
        (Table::Template, "agd.fleet_template"),
        (Table::Fleet, "agd.tenant_agent_fleet"),
        (Table::Agent, "agd.fleet_agent"),
        (Table::Request, "agd.countersign_request"),
        (Table::Signature, "agd.fleet_signature"),
    ];

    fn of(relation: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == relation).map(|(table, _)| *table)
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(table, _)| *table == self).map_or("", |(_, name)| name)
    }
}

/// Where an event stands, in the order of its log and of the logs that continue it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Leaf {
    incarnation: u32,
    index: u64,
    event_id: EventId,
}

/// An event that concerns fleets.
struct Told {
    leaf: Leaf,
    /// When it was recorded.
    at: i64,
    what: What,
}

enum What {
    Row { table: Table, action: String, old: Option<Row>, new: Option<Row> },
    Close { body: String },
}

/// What is known of one log and of those that it continues.
#[derive(Default)]
struct Stream {
    told: Vec<Told>,
    /// The first and the last event in the name of each fleet.
    acts: BTreeMap<String, (Leaf, Leaf)>,
    /// Its events are here from the first on, with their images.
    from_start: bool,
    /// Rows of fleets whose images are not here.
    unread: u64,
}

#[derive(Default)]
struct Database {
    platform: Stream,
    tenants: BTreeMap<String, Stream>,
}

/// What the events of logs tell of fleets.
#[derive(Default)]
pub struct History {
    databases: BTreeMap<String, Database>,
}

/// Something about fleets that is false.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetFinding {
    /// The log.
    pub origin: String,
    /// The leaf of the event that is wrong, or after which something is.
    pub index: u64,
    /// That event.
    pub event_id: EventId,
    /// The fleet, where it is one's.
    pub fleet_id: Option<String>,
    /// What is wrong.
    pub message: String,
}

/// What was found about one fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JudgedFleet {
    /// Its id.
    pub fleet_id: String,
    /// Whose it is.
    pub tenant: String,
    /// What it has become: pending, active, sealed or cancelled.
    pub state: String,
    /// The checks that were made.
    pub checks: Vec<Check>,
    /// Nothing about it is false.
    pub ok: bool,
}

/// The verdict.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Each fleet whose mint is here, by tenant and id.
    pub fleets: Vec<JudgedFleet>,
    /// What is false.
    pub findings: Vec<FleetFinding>,
    /// What could not be checked.
    pub unchecked: Vec<String>,
}

/// A log's origin, taken apart: the database's name, the incarnation, the tenant.
fn parts(origin: &str) -> (&str, u32, Option<&str>) {
    let (platform, tenant) =
        origin.rsplit_once("/t/").map_or((origin, None), |(platform, tenant)| (platform, Some(tenant)));
    let (log_name, incarnation) = name::split_incarnation(platform);
    (log_name, incarnation, tenant)
}

impl History {
    fn stream(&mut self, origin: &str) -> (&mut Stream, u32) {
        let (log_name, incarnation, tenant) = parts(origin);
        let database = self.databases.entry(log_name.to_owned()).or_default();
        let stream = match tenant {
            Some(tenant) => database.tenants.entry(tenant.to_owned()).or_default(),
            None => &mut database.platform,
        };
        (stream, incarnation)
    }

    /// Events of a log will come. `from_start`: from its first on, with their images.
    pub fn expect(&mut self, origin: &str, from_start: bool) {
        let (stream, incarnation) = self.stream(origin);
        stream.from_start |= from_start && incarnation == 1;
    }

    /// Takes up an event, if it concerns fleets. The images are those of the row before and after, as they are recorded; `None`
    /// for one that the event does not have, or that is not to be had.
    pub fn add(&mut self, origin: &str, index: u64, entry: &OwnedEntry, old: Option<&str>, new: Option<&str>) {
        let table = entry.relation.as_deref().and_then(Table::of);
        let closes = entry.action == entry::LOG_CLOSE;
        if table.is_none() && !closes && entry.fleet_id.is_none() {
            return;
        }
        let (stream, incarnation) = self.stream(origin);
        let leaf = Leaf { incarnation, index, event_id: entry.event_id };
        if let Some(fleet_id) = &entry.fleet_id {
            let (first, last) = stream.acts.entry(fleet_id.clone()).or_insert((leaf, leaf));
            (*first, *last) = ((*first).min(leaf), (*last).max(leaf));
        }
        let what = match table {
            None if closes => What::Close { body: entry.body.clone().unwrap_or_default() },
            Some(table)
                if matches!(entry.action.as_str(), "INSERT" | "UPDATE" | "DELETE" | "BASELINE" | "TRUNCATE") =>
            {
                let here = |digest: bool, image: Option<&str>| match (digest, image.and_then(Row::parse)) {
                    (false, _) => Some(None),
                    (true, Some(row)) => Some(Some(row)),
                    (true, None) => None,
                };
                let (Some(old), Some(new)) = (here(entry.old.is_some(), old), here(entry.new.is_some(), new)) else {
                    stream.unread += 1;
                    return;
                };
                What::Row { table, action: entry.action.clone(), old, new }
            }
            _ => return,
        };
        stream.told.push(Told { leaf, at: entry.at, what });
    }

    /// Lives every fleet's life again, and says what is true of it.
    pub fn judge(self) -> Judgement {
        let mut judgement = Judgement::default();
        for (log_name, database) in self.databases {
            replay::judge(&log_name, database, &mut judgement);
        }
        judgement
    }
}
