//! `agd verify`: everything a store says, proved from its files alone.
//!
//! Owns the order of work: find the logs, verify the platform logs, then the tenants' logs against what the platform logs
//! say about them, then that each later incarnation continues what is here of the one before. Promises that nothing is
//! called good that was not checked: without a policy, or with anything left unread, the verdict is "could not check". It
//! never opens a database or a network connection of its own, and nothing that lies in the store can make it panic.

pub mod chains;
mod checkpoints;
pub mod discover;
mod event_ids;
pub mod events;
pub mod findings;
pub mod leaves;
pub mod log;
mod note;
mod second_look;
mod sorted;
mod strays;
mod tile;
mod timestamps;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use agd_core::note::MAX_NOTE_LEN;
use agd_core::{Checkpoint, SignedNote, name};
use agd_tsp::Authorities;

use crate::origin::Kind;
use crate::pipeline::{self, Threads};
use crate::policy::Policy;
use crate::store::{Reader, StoreError};
use crate::succession::{self, Succession};
use crate::{EXIT_FALSE, EXIT_OK, EXIT_UNCHECKED};
use events::EventsReport;
use findings::Finding;
use log::{Claim, Job, LogResult};
use timestamps::Stamps;

/// How much of a tenant's log the platform log covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// The largest size that the platform log has as an entry.
    pub size: u64,
    /// That entry's index in the platform log.
    pub index: u64,
    /// Published checkpoints beyond it.
    pub newer: u64,
}

/// One log's part of the report.
#[derive(Debug)]
pub struct LogReport {
    /// The log.
    pub origin: String,
    /// Its tenant, none for a platform log.
    pub tenant: Option<String>,
    /// What was found.
    pub result: LogResult,
    /// For a tenant's log whose platform log is in the store and covers it.
    pub coverage: Option<Coverage>,
    /// For a platform log, where a CA was given to check them with.
    pub timestamps: Option<Timestamps>,
}

/// The timestamps of one platform log that hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timestamps {
    /// Each, by ascending size.
    pub held: Vec<Held>,
    /// Their signers: the subjects of the certificates.
    pub signers: Vec<String>,
}

/// One timestamp that holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Leaves under the checkpoint.
    pub size: u64,
    /// The time that it says, microseconds since the Unix epoch.
    pub at: i64,
    /// Who signed it, as a position in [`Timestamps::signers`].
    pub by: usize,
}

impl Timestamps {
    /// The newest of them.
    pub fn newest(&self) -> Option<&Held> {
        self.held.iter().max_by_key(|held| (held.at, held.size))
    }
}

/// The whole report.
#[derive(Debug)]
pub struct Report {
    /// Every log, each platform log before its tenants' logs.
    pub logs: Vec<LogReport>,
    /// What could not be checked and belongs to no log.
    pub unchecked: Vec<String>,
    /// Whether signatures were checked.
    pub with_policy: bool,
    /// The events of a dump that was held against the logs.
    pub events: Option<EventsReport>,
}

impl Report {
    /// How many things are false.
    pub fn findings(&self) -> u64 {
        let events = self.events.as_ref().map_or(0, |events| events.findings.count());
        self.logs.iter().map(|log| log.result.findings.count()).sum::<u64>() + events
    }

    /// 1 when something is false, else 2 when something was not checked, else 0.
    pub fn exit_code(&self) -> u8 {
        let checked = |log: &LogReport| log.result.unchecked.is_empty();
        let events = self.events.as_ref().is_none_or(|events| events.unchecked.is_empty());
        if self.findings() > 0 {
            EXIT_FALSE
        } else if !self.with_policy || !self.unchecked.is_empty() || !self.logs.iter().all(checked) || !events {
            EXIT_UNCHECKED
        } else {
            EXIT_OK
        }
    }
}

/// How many entries the newest checkpoints of all logs say there are, nothing of it checked; 0 where that cannot be read.
pub fn published_entries(reader: &Reader) -> u64 {
    let origins = discover::discover(reader).map(|found| found.origins).unwrap_or_default();
    let size = |number: u64| {
        let origin = usize::try_from(number).ok().and_then(|number| origins.get(number))?;
        let bytes = reader.read(&crate::store::newest_path(origin), MAX_NOTE_LEN as u64).ok()??;
        Some(Checkpoint::parse(SignedNote::parse(&bytes).ok()?.text()).ok()?.size)
    };
    let mut entries = 0_u64;
    let threads = Threads::new(reader.parallel().saturating_sub(1));
    pipeline::ordered(&threads, 0..origins.len() as u64, size, |_, size| {
        entries = entries.saturating_add(size.unwrap_or(0));
        ControlFlow::Continue(())
    });
    entries
}

/// Verifies a store. `progress` counts entries while it runs.
///
/// # Errors
/// [`StoreError`] when the store cannot be walked.
pub fn run(reader: &Reader, policy: Option<&Policy>, progress: &AtomicU64) -> Result<Report, StoreError> {
    run_with(reader, policy, None, progress)
}

/// Verifies a store, its timestamps with it: each must lead to one of these CAs.
///
/// # Errors
/// [`StoreError`] when the store cannot be walked.
pub fn run_with(
    reader: &Reader,
    policy: Option<&Policy>,
    authorities: Option<&Authorities>,
    progress: &AtomicU64,
) -> Result<Report, StoreError> {
    let found = discover::discover(reader)?;
    let mut report =
        Report { logs: Vec::new(), unchecked: found.unchecked, with_policy: policy.is_some(), events: None };
    if found.origins.is_empty() {
        report.unchecked.push("there is no log in this store".to_owned());
    }
    let mut platforms = Vec::new();
    let mut tenants = Vec::new();
    for origin in &found.origins {
        match Kind::of(origin) {
            Some(kind @ Kind::Platform) => platforms.push((origin.as_str(), kind)),
            Some(kind @ Kind::Tenant { .. }) => tenants.push((origin.as_str(), kind)),
            None => {
                let text = format!("{origin}: this version does not know logs with such an origin");
                report.unchecked.push(text);
            }
        }
    }
    for key in policy.map_or(&[][..], Policy::logs) {
        if !found.origins.iter().any(|origin| origin == key.name()) {
            let text = format!("{}: the policy lists this log, the store does not have it", key.name());
            report.unchecked.push(text);
        }
    }

    let keys = |origin: &str| policy.map(|policy| policy.keys_for(origin));
    let quorum = policy.filter(|policy| policy.has_quorum());
    let stamps: Vec<Stamps> = platforms.iter().map(|(origin, _)| Stamps::find(reader, origin)).collect();
    let platform_jobs = platforms
        .iter()
        .zip(&stamps)
        .map(|((origin, kind), stamps)| Job {
            origin,
            kind: *kind,
            keys: keys(origin),
            claims: &[],
            quorum,
            stamped: &stamps.sizes,
        })
        .collect();
    let mut platform_results: Vec<LogResult> = run_all(reader, platform_jobs, progress);
    let timestamps: Vec<Option<Timestamps>> = stamps
        .iter()
        .zip(&platforms)
        .zip(&mut platform_results)
        .map(|((stamps, (origin, _)), result)| stamps.check(reader, origin, authorities, result))
        .collect();

    // What each platform log says about each tenant's log, in order.
    let mut claims: BTreeMap<String, Vec<Claim>> = BTreeMap::new();
    for ((origin, _), result) in platforms.iter().zip(&mut platform_results) {
        let known: BTreeSet<&str> = tenants.iter().map(|(origin, _)| *origin).collect();
        for (tenant, found) in std::mem::take(&mut result.claims) {
            if !known.contains(tenant.as_str()) {
                for claim in &found {
                    let (index, size) = (claim.index, claim.size);
                    let text = format!("the log is missing, but entry {index} of {origin} has it at size {size}");
                    result.findings.file(&tenant, text);
                }
            }
            claims.entry(tenant).or_default().extend(found);
        }
    }

    let none = Vec::new();
    let present: BTreeSet<&str> = platforms.iter().map(|(origin, _)| *origin).collect();
    // A tenant's log that its platform log covers is covered by the platform log's witnesses; one that was handed out
    // alone has its own cosignatures.
    let alone = |kind: &Kind<'_>| !matches!(kind, Kind::Tenant { platform, .. } if present.contains(platform));
    let tenant_jobs = tenants
        .iter()
        .map(|(origin, kind)| Job {
            origin,
            kind: *kind,
            keys: keys(origin),
            claims: claims.get(*origin).unwrap_or(&none),
            quorum: quorum.filter(|_| alone(kind)),
            stamped: &[],
        })
        .collect();
    let tenant_results: Vec<LogResult> = run_all(reader, tenant_jobs, progress);

    let mut by_platform: HashMap<&str, Vec<LogReport>> = HashMap::new();
    for ((origin, kind), mut result) in tenants.iter().zip(tenant_results) {
        let Kind::Tenant { platform, tenant } = *kind else {
            continue;
        };
        let coverage = if present.contains(platform) {
            cover(origin, claims.get(*origin).unwrap_or(&none), &mut result)
        } else {
            let text = format!("{platform}, the platform log, is not in this store: it is not known what it covers");
            result.notes.push(text);
            None
        };
        by_platform.entry(platform).or_default().push(LogReport {
            origin: (*origin).to_owned(),
            tenant: Some(tenant.to_owned()),
            result,
            coverage,
            timestamps: None,
        });
    }
    for at in 0..platforms.len() {
        let (origin, _) = platforms[at];
        let judged = judge_succession(origin, &platform_results[at], |log| {
            let platform = platforms.iter().position(|(origin, _)| *origin == log).map(|at| &platform_results[at]);
            platform.or_else(|| newest_of_tenant(&by_platform, log))
        });
        match judged {
            Succession::Holds => {}
            Succession::Unknown(what) => platform_results[at].unchecked.push(what),
            Succession::Broken(message) => {
                let file = crate::store::newest_path(origin);
                platform_results[at].findings.add(Finding { file, index: Some(0), offset: None, message });
            }
        }
    }
    for (((origin, _), result), timestamps) in platforms.iter().zip(platform_results).zip(timestamps) {
        report.logs.push(LogReport { origin: (*origin).to_owned(), tenant: None, result, coverage: None, timestamps });
        report.logs.extend(by_platform.remove(origin).unwrap_or_default());
    }
    let mut alone: Vec<LogReport> = by_platform.into_values().flatten().collect();
    alone.sort_by(|a, b| a.origin.cmp(&b.origin));
    report.logs.extend(alone);

    if let Some(policy) = policy {
        for log in &mut report.logs {
            if policy.keys_for(&log.origin).is_empty() {
                let text = "its signatures: the policy lists no key for this log";
                log.result.unchecked.push(text.to_owned());
            }
        }
    }
    Ok(report)
}

fn newest_of_tenant<'a>(by_platform: &'a HashMap<&str, Vec<LogReport>>, log: &str) -> Option<&'a LogResult> {
    by_platform.values().flatten().find(|report| report.origin == log).map(|report| &report.result)
}

/// Whether a later incarnation's platform log continues what is published of the incarnation before it. A first one has nothing
/// to continue, and of one whose beginning could not be read that is reported already.
fn judge_succession<'a>(
    origin: &str,
    result: &LogResult,
    result_of: impl Fn(&str) -> Option<&'a LogResult>,
) -> Succession {
    if name::split_incarnation(origin).1 < 2 {
        return Succession::Holds;
    }
    let Some(beginning) = &result.continues else {
        if result.findings.count() > 0 || !result.unchecked.is_empty() {
            return Succession::Holds;
        }
        return Succession::Broken("the log has no first entry that says which log it continues".to_owned());
    };
    let newest = |log: &str| {
        let newest = result_of(log).and_then(|result| result.signed_root.map(|root| (result.size, root)));
        Ok::<_, Infallible>(newest)
    };
    let Ok(succession) = succession::judge(origin, beginning, newest);
    succession
}

/// Compares the published checkpoints of a tenant's log with the platform log's entries about it.
///
/// Every published checkpoint up to the latest covered size must be there. Newer ones are only on their way.
fn cover(origin: &str, claims: &[Claim], result: &mut LogResult) -> Option<Coverage> {
    let mut previous = 0;
    for claim in claims {
        let size = claim.size;
        if size < previous {
            let text = format!("entry {} of the platform log has it at size {size}, after {previous}", claim.index);
            result.findings.file(origin, text);
        }
        previous = previous.max(size);
    }
    let latest = claims.iter().max_by_key(|claim| claim.size)?;
    let mut covered: Vec<u64> = claims.iter().map(|claim| claim.size).collect();
    covered.sort_unstable();
    let size = latest.size;
    for published in result.published.iter().filter(|published| **published < size) {
        // The empty tree says nothing that could be covered.
        if *published > 0 && covered.binary_search(published).is_err() {
            let file = crate::store::checkpoint_path(origin, *published);
            let text = format!("is not in the platform log, which has size {size} already");
            result.findings.file(file, text);
        }
    }
    let newer = result.published.iter().filter(|published| **published > size);
    Some(Coverage { size, index: latest.index, newer: newer.count() as u64 })
}

/// Runs jobs on as many threads as the store is worth, and returns the results in order. A thread that finds no more jobs
/// helps with the logs that are still under way.
fn run_all(reader: &Reader, jobs: Vec<Job<'_>>, progress: &AtomicU64) -> Vec<LogResult> {
    let count = reader.parallel();
    let runners = count.min(jobs.len());
    let threads = Threads::new(count - runners);
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<LogResult>> = jobs.iter().map(|_| Mutex::default()).collect();
    std::thread::scope(|scope| {
        for _ in 0..runners {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(job), Some(slot)) = (jobs.get(at), results.get(at)) else {
                        threads.give(1);
                        return;
                    };
                    let result = log::verify(reader, job, &threads, progress);
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = result;
                }
            });
        }
    });
    let result = |slot: Mutex<LogResult>| slot.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(result).collect()
}
