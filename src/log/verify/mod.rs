//! Verification inside the database: leaves, tiles, roots, anchors, recomputed from the events themselves.
//!
//! Owns `agd.verify()`: what is looked at, in which order, and what the report says. Follow it through its files: [`rows`]
//! reads what is stored, of one moment; [`leaves`] recomputes leaf hashes from events; [`tree`] holds them against tiles and
//! anchors, log by log; [`platform`] holds anchors against the platform log; [`complete`] holds all events against all
//! leaves, [`list`] the logs against their tenants and incarnations; [`report`] says it; [`memory`] keeps how far it got, [`progress`] shows how far it is.
//!
//! Promises to name the first event, tile or anchor of each log that does not hold, to blame what is wrong and not what
//! follows from it, and never to say ok to what it did not look at. One log that contradicts itself hides nothing about the
//! others. What commits meanwhile is not looked at, so it raises no alarm.
//!
//! A full scan believes nothing but the rows it compares. Otherwise agd.verified is believed: that leaves up to the
//! remembered size have the remembered compact range, that their events, tiles and anchors were in order, and that every
//! event of the remembered sequencer's snapshot was one leaf. So what is changed in that part afterwards is seen by a full
//! scan alone; what the verification costs is proportional to the rest. One log verified alone goes on from where it ended
//! itself, but is held against the platform log from where all logs were verified together. Nobody else's word is taken for
//! anything: a database under suspicion is verified from outside, `agd verify STORE`.
//!
//! Not verified, because nothing is committed to them: the times in agd.checkpoint, agd.publication and agd.timestamped.
#![allow(unsafe_code)] // is called by the function manager as it is

mod complete;
mod leaves;
mod list;
mod memory;
mod platform;
pub mod progress;
mod report;
mod rows;
mod tree;

use crate::error::{Error, Result};
use crate::fmgr::{Rows, argument, definer_function, text};
use crate::home;
use crate::log::record::EventKey;
use agd_core::Hash;
use complete::{Integrated, Sums, Tally};
use memory::{Complete, Counted, Known, Memory, News};
use pgrx::pg_sys;
use platform::Recorded;
use progress::{Phase, Progress};
use report::Check;
use rows::{LogName, Logs, View};
use std::collections::HashMap;
use tree::{Findings, Listeners, Problems, Tools};

definer_function!(agd_verify, pg_finfo_agd_verify, answer);

/// `agd.verify(origin, full_scan)`
fn answer(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.verify(origin text, full_scan boolean).
    let (origin, full_scan) = unsafe { (argument::<String>(call, 0), argument::<bool>(call, 1)) };
    let checks = verify_logs(origin.as_deref(), full_scan.unwrap_or(false))?;
    // SAFETY: as above.
    let mut rows = unsafe { Rows::begin(call) }?;
    for Check { origin, name, ok, entries, detail } in &checks {
        rows.put(|| [text(origin), text(name), Some((*ok).into()), Some((*entries).into()), text(detail)]);
    }
    Ok(pg_sys::Datum::from(0))
}

/// What is wrong with the whole record, if anything is. Guards are not part of it: that one was open once is no reason not to
/// go on, and whether they are intact now is asked where that matters. What is wrong with a log itself comes before what it
/// fails to say of another.
pub fn first_problem(full_scan: bool) -> Result<Option<String>> {
    let checks = verify_logs(None, full_scan)?;
    let failed = checks.into_iter().filter(|check| !check.ok && check.name != "guards");
    let first = failed.min_by_key(|check| check.name == "platform");
    Ok(first.map(|check| format!("{}: {}", check.origin, check.detail)))
}

fn verify_logs(origin: Option<&str>, full_scan: bool) -> Result<Vec<Check>> {
    Verification::begin(origin, full_scan)?.run()
}

/// A row of agd.sequencer.
struct Sequencer {
    integrated: Option<Integrated>,
    last_stamp: i64,
    guard_state: Option<Hash>,
}

impl Sequencer {
    fn read(view: &View) -> Result<Option<Self>> {
        let rows = view.rows(
            "SELECT s.integrated, (extract(epoch FROM s.last_stamp - '2000-01-01 00:00:00+00') * 1000000)::bigint,
                    pg_catalog.encode(s.guard_state, 'hex')
               FROM agd.sequencer s",
        )?;
        let Some([integrated, last_stamp, guard_state]) = rows.first().map(Vec::as_slice) else { return Ok(None) };
        Ok(Some(Sequencer {
            integrated: integrated.as_deref().and_then(Integrated::parse),
            last_stamp: last_stamp.as_deref().and_then(|text| text.parse().ok()).unwrap_or_default(),
            guard_state: guard_state.as_deref().and_then(|hex| Hash::try_from(hex::decode(hex).ok()?).ok()),
        }))
    }
}

/// A verified log, and what else is said of it.
struct Verified {
    log: LogName,
    found: Findings,
    /// Against the platform log; None: it is the platform log.
    platform: Option<(u64, Option<String>)>,
    /// Guards; None: it is not the platform log.
    guards: Option<(u64, Option<String>)>,
}

struct Verification {
    full_scan: bool,
    /// All logs are verified.
    whole: bool,
    /// The logs to be verified.
    logs: Vec<LogName>,
    /// The platform logs, one an incarnation, the newest last.
    platforms: Vec<LogName>,
    /// The origin that the platform log should have.
    platform_origin: Option<String>,
    memory: Memory,
    sequencer: Option<Sequencer>,
    progress: Progress,
    view: View,
}

impl Verification {
    fn begin(origin: Option<&str>, full_scan: bool) -> Result<Self> {
        let view = View::open();
        let all = Logs::open(&view)?.all()?;
        let platforms: Vec<LogName> = all.iter().filter(|log| log.tenant.is_none()).cloned().collect();
        let logs: Vec<LogName> = match origin {
            None => all,
            Some(origin) => all.into_iter().filter(|log| log.origin == origin).collect(),
        };
        if let (Some(origin), []) = (origin, logs.as_slice()) {
            return Err(Error::BadArgument {
                message: format!("there is no log with the origin \"{origin}\""),
                hint: "SELECT DISTINCT origin FROM agd.anchors shows them.".into(),
            });
        }
        // Where the record is not at home yet, the home knows nothing of its name.
        let home = view.rows("SELECT h.log_name FROM agd.home h WHERE h.system_identifier IS NOT NULL")?;
        let platform_origin = home.into_iter().next().and_then(|row| row.into_iter().next().flatten());
        let memory = Memory::read(&view)?;
        let verified = |log: &LogName| memory.verified(log.log_id).map_or(0, |verified| verified.size);
        let leaves = logs.iter().map(|log| log.size.saturating_sub(if full_scan { 0 } else { verified(log) })).sum();
        Ok(Verification {
            progress: Progress::begin(full_scan, leaves),
            sequencer: Sequencer::read(&view)?,
            platform_origin: platform_origin.or_else(|| platforms.last().map(|log| log.origin.clone())),
            full_scan,
            whole: origin.is_none(),
            logs,
            platforms,
            memory,
            view,
        })
    }

    fn run(mut self) -> Result<Vec<Check>> {
        let before = self.memory.complete.clone().filter(|_| !self.full_scan);
        let now = self.sequencer.as_ref().and_then(|sequencer| sequencer.integrated.clone());
        let mut tally = Tally::new(now, before.as_ref().map(|before| before.integrated.clone()), home::snapshot_end()?);
        let mut tools = Tools::open(&self.view)?;
        let mut rows = Logs::open(&self.view)?;
        let only = self.logs.first().filter(|log| !self.whole && log.tenant.is_some()).cloned();
        let mut recorded = Recorded::new(
            only.as_ref().map(|log| log.origin.as_str()),
            before.as_ref().map(|before| before.guard_state),
        );

        // The platform logs first: the others are held against them, and each of them against what follows it.
        let logs = std::mem::take(&mut self.logs);
        let receipts = self.receipts_without_anchor(&logs)?;
        let (platforms, tenants): (Vec<_>, Vec<_>) = logs.into_iter().partition(|log| log.tenant.is_none());
        let mut verified = Vec::with_capacity(platforms.len() + tenants.len());
        for log in self.platforms.clone() {
            recorded.begin_log(self.leaves_before(&log));
            if platforms.iter().any(|wanted| wanted.log_id == log.log_id) {
                verified.extend(self.verify_one(
                    log,
                    &receipts,
                    &mut rows,
                    &mut tools,
                    &mut tally,
                    Some(&mut recorded),
                )?);
            } else if let Some(row) = rows.row(log.log_id)? {
                let Counted { size: from, anchored } = self.counted(log.log_id);
                let listeners = Listeners { from, anchored, tally: None, recorded: Some(&mut recorded) };
                tree::listen(&mut tools, &row, listeners)?;
            }
        }
        if !self.platforms.is_empty() {
            self.hear_waiting(&mut recorded)?;
        }
        for this in &mut verified {
            self.judge_platform(this, &recorded)?;
            this.found.new_anchors = Vec::new();
        }
        for log in tenants {
            if let Some(mut this) = self.verify_one(log, &receipts, &mut rows, &mut tools, &mut tally, None)? {
                self.judge_tenant(&mut this, &recorded, &mut tools);
                this.found.new_anchors = Vec::new();
                verified.push(this);
            }
        }
        let complete = self.judge_events(&mut verified, &mut tally, &mut tools, &recorded)?;
        let logs_problem = if self.whole { self.problem_of_logs(&verified, &recorded)? } else { None };
        drop((tools, rows));

        self.remember(&verified, &logs_problem, complete.as_ref())?;
        Ok(self.report(verified, logs_problem, complete))
    }

    /// One log by itself. None: it has no row any more.
    fn verify_one(
        &mut self,
        log: LogName,
        receipts: &HashMap<i32, String>,
        rows: &mut Logs,
        tools: &mut Tools,
        tally: &mut Tally,
        recorded: Option<&mut Recorded>,
    ) -> Result<Option<Verified>> {
        let Some(row) = rows.row(log.log_id)? else { return Ok(None) };
        let Counted { size: from, anchored } = self.counted(log.log_id);
        let listeners = Listeners { from, anchored, tally: self.whole.then_some(tally), recorded };
        let start = self.memory.verified(log.log_id).filter(|_| !self.full_scan).cloned();
        let mut found = tree::verify_log(tools, &row, start.as_ref(), listeners, &mut self.progress)?;
        if let Some(size) = receipts.get(&log.log_id) {
            found.anchors.add(format!("the anchor at size {size} was published, and is missing"));
        }
        Ok(Some(Verified { log, found, platform: None, guards: None }))
    }

    /// Leaves of the platform logs of earlier incarnations.
    fn leaves_before(&self, log: &LogName) -> u64 {
        let before = self.platforms.iter().filter(|platform| platform.incarnation < log.incarnation);
        before.fold(0, |leaves, platform| leaves.saturating_add(platform.size))
    }

    /// Up to where a log is not held against everything else again.
    fn counted(&self, log_id: i32) -> Counted {
        if self.full_scan { Counted::default() } else { self.memory.counted(log_id) }
    }

    /// Events of the platform log that wait for integration.
    fn hear_waiting(&self, recorded: &mut Recorded) -> Result<()> {
        let Some(now) = self.sequencer.as_ref().and_then(|sequencer| sequencer.integrated.as_ref()) else {
            return Ok(());
        };
        leaves::each_waiting(&self.view, now, |key, tenant, action, body| {
            if tenant.is_none() {
                recorded.see(None, key, action, body);
            }
        })?;
        recorded.sort();
        Ok(())
    }

    /// The smallest published anchor that is missing, of each log that has one.
    fn receipts_without_anchor(&self, logs: &[LogName]) -> Result<HashMap<i32, String>> {
        let only = match logs {
            [log] if !self.whole => format!("WHERE l.log_id = {}", log.log_id),
            _ => String::new(),
        };
        let from = if self.full_scan { "0" } else { "COALESCE(v.tree_size, 0)" };
        let rows = self.view.rows(&format!(
            "SELECT l.log_id, lost.tree_size
               FROM agd.log l LEFT JOIN agd.verified v USING (log_id)
                    CROSS JOIN LATERAL (
                      SELECT p.tree_size FROM agd.publication p
                       WHERE p.log_id = l.log_id AND p.tree_size > {from}
                         AND NOT EXISTS (SELECT FROM agd.checkpoint c
                                          WHERE c.log_id = p.log_id AND c.tree_size = p.tree_size)
                       ORDER BY p.tree_size LIMIT 1) lost {only}"
        ))?;
        let row = |row: Vec<Option<String>>| match <[Option<String>; 2]>::try_from(row) {
            Ok([Some(log_id), Some(size)]) => Some((log_id.parse().ok()?, size)),
            _ => None,
        };
        Ok(rows.into_iter().filter_map(row).collect())
    }

    /// A tenant's anchors against the platform log.
    fn judge_tenant(&self, this: &mut Verified, recorded: &Recorded, tools: &mut Tools) {
        let Verified { log, found, .. } = this;
        let known = self.counted(log.log_id).anchored;
        let anchors = &found.new_anchors[found.new_anchors.partition_point(|anchor| anchor.size <= known)..];
        // Where the row has another origin than its tenant's, that is another finding.
        let expected = self.expected_origin(log);
        let origin = expected.filter(|expected| recorded.knows(expected)).unwrap_or_else(|| log.origin.clone());
        let judgement = recorded.judge_tenant(&origin, anchors, |size| tools.anchors.at(log.log_id, size));
        this.platform = Some((anchors.len() as u64, judgement.checkpoints));
        if let Some(size) = judgement.guard_state {
            found.anchors.add(not_in_force(size));
        }
    }

    /// The platform log's anchors against its guard states, and the guards.
    fn judge_platform(&self, this: &mut Verified, recorded: &Recorded) -> Result<()> {
        let Verified { log, found, .. } = this;
        let known = self.counted(log.log_id).anchored;
        let anchors = &found.new_anchors[found.new_anchors.partition_point(|anchor| anchor.size <= known)..];
        if let Some(size) = recorded.judge_platform(self.leaves_before(log), anchors) {
            found.anchors.add(not_in_force(size));
        }
        if self.platforms.last().is_some_and(|newest| newest.log_id != log.log_id) {
            return Ok(());
        }
        let mut open = Problems::default();
        for (event, what) in &recorded.open {
            open.add(format!("a guard was open, says event {event}: {what}"));
        }
        // As they are now.
        for row in self.view.rows(
            "SELECT w.relation, w.problem
               FROM agd.every_guard g CROSS JOIN LATERAL agd.guard_problems(g.relation) w ORDER BY 1, 2",
        )? {
            if let [Some(relation), Some(problem)] = row.as_slice() {
                open.add(format!("a guard is open now: {relation}: {problem}"));
            }
        }
        this.guards = Some((recorded.seen_states, open.text()));
        Ok(())
    }

    /// Finds out what the suspects are, and holds all events against all leaves where all logs are verified.
    fn judge_events(
        &mut self,
        verified: &mut [Verified],
        tally: &mut Tally,
        tools: &mut Tools,
        recorded: &Recorded,
    ) -> Result<Option<(complete::Outcome, Option<String>)>> {
        let counted = if self.whole { Some(tally.count_events(&self.view, &mut self.progress)?) } else { None };
        let suspicious = verified.iter().any(|this| !this.found.suspects.is_empty());
        let mut orphans = (Vec::new(), 0);
        if suspicious || counted.as_ref().is_some_and(|counted| !tally.agrees(counted)) {
            self.progress.phase(Phase::Naming);
            orphans = tally.orphans(&self.view)?;
        }
        for this in verified.iter_mut().filter(|this| !this.found.suspects.is_empty()) {
            explain(this, &mut orphans, tally, tools)?;
        }
        let Some(counted) = counted else { return Ok(None) };
        let names: HashMap<i32, &str> =
            verified.iter().map(|this| (this.log.log_id, this.log.origin.as_str())).collect();
        let name_of =
            |log_id| names.get(&log_id).map_or_else(|| format!("log {log_id}"), |origin| (*origin).to_owned());
        let mut problem = tally.problem(&self.view, &counted, (&orphans.0, orphans.1), name_of)?;
        if problem.is_none() {
            problem = self.problem_of_sequencer(&counted, recorded, !verified.is_empty());
        }
        Ok(Some((tally.outcome(&counted), problem)))
    }

    fn problem_of_sequencer(&self, counted: &Sums, recorded: &Recorded, any_log: bool) -> Option<String> {
        match &self.sequencer {
            None if any_log => Some("the sequencer's row is gone".into()),
            Some(sequencer) if sequencer.integrated.is_none() => Some("the sequencer's snapshot cannot be read".into()),
            Some(sequencer) if sequencer.last_stamp < counted.last_stamp => {
                Some("the sequencer's last stamp is smaller than one that it has integrated".into())
            }
            // Before the first pass there is none.
            Some(Sequencer { guard_state: Some(state), .. }) if !recorded.may_end_with(state) => {
                Some("the sequencer's guard state is not the last one that was recorded".into())
            }
            Some(Sequencer { guard_state: None, .. }) if recorded.seen_states > 0 => {
                Some("the sequencer's guard state is gone".into())
            }
            _ => None,
        }
    }

    /// Leaves word for the next verification.
    fn remember(
        &self,
        verified: &[Verified],
        logs_problem: &Option<String>,
        complete: Option<&(complete::Outcome, Option<String>)>,
    ) -> Result<()> {
        let holds = |this: &Verified| {
            let fine =
                |check: &Option<(u64, Option<String>)>| check.as_ref().is_none_or(|(_, problem)| problem.is_none());
            this.found.hold() && fine(&this.platform) && fine(&this.guards)
        };
        let all_counted = logs_problem.is_none()
            && complete.is_some_and(|(_, problem)| problem.is_none())
            && verified.iter().all(holds);
        let complete = self
            .sequencer
            .as_ref()
            .zip(self.platforms.last())
            .and_then(|(sequencer, platform)| {
                let complete =
                    Complete { integrated: sequencer.integrated.clone()?, guard_state: sequencer.guard_state? };
                Some((platform.log_id, complete))
            })
            .filter(|_| all_counted);
        let news = verified.iter().filter_map(|this| {
            let log_id = this.log.log_id;
            let (known, counted) = match self.memory.logs.get(&log_id) {
                Some(Known { verified, counted }) => (Some(verified), *counted),
                None => (None, Counted::default()),
            };
            let end = &this.found.end;
            // A log that has become shorter is not what was verified, unless nothing at all is wrong with it.
            let shorter = known.is_some_and(|known| end.size < known.size);
            let new = end.size > 0 && Some(end) != known && (!shorter || holds(this));
            let verified = (this.found.hold() && new).then(|| end.clone());
            let now = Counted { size: this.log.size, anchored: this.found.newest_anchor };
            let counted = (complete.is_some() && now != counted).then_some(now);
            (verified.is_some() || counted.is_some()).then_some(News { log_id, verified, counted })
        });
        memory::remember(
            &self.memory,
            news.collect(),
            complete.as_ref().map(|(platform, complete)| (*platform, complete)),
        )
    }
}

fn not_in_force(size: u64) -> String {
    format!("the anchor at size {size} has a guard state that was not in force")
}

/// An event that is where it should not be, or nowhere, may be what a leaf should have named: then the tile's key was
/// changed, and no event. `orphans`: events in no leaf; those that are explained are taken out.
fn explain(
    this: &mut Verified,
    orphans: &mut (Vec<EventKey>, u64),
    tally: &mut Tally,
    tools: &mut Tools,
) -> Result<()> {
    let found = &mut this.found;
    let mut known: HashMap<Hash, EventKey> =
        found.suspects.iter().filter_map(|suspect| Some((suspect.found.hash()?, suspect.key))).collect();
    for (leaf, key) in tools.leaves.of(&orphans.0, |_, _, _| ())?.iter().zip(&orphans.0) {
        known.extend(leaf.hash().map(|hash| (hash, *key)));
    }
    found.events.add_silent(found.more_suspects);
    let mut changed = std::mem::take(&mut found.suspects);
    changed.retain(|suspect| {
        let Some(right) = known.get(&suspect.hash) else { return true };
        let tree::Suspect { leaf, key, .. } = suspect;
        let tile = tree::tile_name(this.log.size, leaf / agd_core::TILE_WIDTH);
        found.tiles.add(format!("{tile} was changed: it names event {key} as leaf {leaf}, which is event {right}"));
        tally.correct(this.log.log_id, *leaf, *key, *right);
        let before = orphans.0.len();
        orphans.0.retain(|orphan| orphan != right);
        orphans.1 = orphans.1.saturating_sub((before - orphans.0.len()) as u64);
        false
    });
    for suspect in changed {
        found.events.add(suspect.text());
    }
    Ok(())
}
