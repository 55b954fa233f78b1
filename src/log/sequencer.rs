//! The sequencer: from committed events to leaves and anchors, without ever making a writer wait.
//!
//! Owns which events are integrated, when, and in what order. Promises: every event that became visible between two of
//! its snapshots becomes exactly one leaf; inside a pass the order is (commit stamp, number), so a row's history in the
//! log is its real history; a log is anchored at every multiple of 256 and behind each event that closes it; what begins
//! an incarnation is leaf 0 of its platform log. Never looks at an event that its snapshot does not see, and never adds to
//! a log of an earlier incarnation.
//!
//! How: two snapshots, the one up to which everything is integrated and a new one. What became visible between them is
//! either a transaction that the old one had in progress, or one in `[old.xmax, new.xmax)`. Point look-ups and one index
//! range under the new snapshot find them all; what is still in progress stays on the new snapshot's list.

use crate::error::{Error, Result};
use crate::event::{self, Record};
use crate::log::record::{Context, EventKey, Reader};
use crate::log::storage::{self, Log};
use crate::{backend, fault, home, query};
use agd_core::{Checkpoint, Hash, TILE_WIDTH, entry, leaf_hash, name};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Which tails (leaves beyond the last multiple of 256) a pass anchors.
#[derive(Clone, Copy, Debug)]
pub struct Tails {
    /// Those of all logs.
    pub all: bool,
    /// The platform log's.
    pub platform: bool,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Events integrated.
    pub events: u64,
    /// Anchors written.
    pub anchors: u64,
    /// Those of them that are the platform log's.
    pub platform_anchors: u64,
    /// The pass recorded events of its own (tenants' checkpoints, a new guard state): another pass takes them up.
    pub recorded: bool,
    /// One of them is a tail's checkpoint, or a final one: the platform log should cover it without waiting for its own age.
    pub anchored_tail: bool,
}

/// The clock's floor: the largest stamp integrated, and the oldest transaction that may not be.
pub fn stamp_floor() -> Result<(i64, u64)> {
    let integrated = storage::integrated()?;
    Ok((integrated.last_stamp, integrated.xmin))
}

/// A transaction whose events are to be integrated.
struct Due {
    stamp: i64,
    xact_id: u64,
    /// None: read again when its turn comes.
    context: Option<Box<Context>>,
    /// Which of the leaves read ahead are its own. None: they are read when its turn comes.
    leaves: Option<Range<usize>>,
}

/// So many bytes of transactions' records are kept in memory from the first look at them; the others are read again.
const CONTEXTS_KEPT: usize = 64 << 20;

/// An event on its way into a log.
struct Leaf {
    /// Index into [`Pass::tenants`]; None: the platform's.
    tenant: Option<u32>,
    n: u32,
    /// It closes the log: the checkpoint behind it is final.
    closes: bool,
    hash: Hash,
}

/// A pass reads at most so many leaves ahead, of 48 bytes each …
const READ_AHEAD: usize = 1 << 20;
/// … of transactions with at most so many events: in larger ones the descent for each does not count.
const SMALL_TRANSACTION: i32 = 256;
/// So many transactions are read in one walk.
const RUN: usize = 4096;

struct Pass {
    platform: Log,
    tenants: Vec<Log>,
    tenants_by_name: HashMap<String, u32>,
    guard_state: Vec<u8>,
    now: i64,
    outcome: Outcome,
}

/// Integrates what became visible and anchors what is due. Runs in a REPEATABLE READ transaction of the worker's, under
/// its snapshot, and is the only writer of the log.
pub fn pass(tails: Tails) -> Result<Outcome> {
    let Some(residence) = home::residence()? else { return Ok(Outcome::default()) };
    let old = storage::integrated()?;
    let snapshot = query::one_kept::<String>("SELECT pg_catalog.pg_current_snapshot()::text")?
        .ok_or_else(|| Error::Internal("agd: no snapshot".into()))?;
    let new = Progress::in_recorded_ids(&snapshot, residence.base)
        .ok_or_else(|| Error::Internal(format!("agd: cannot read the snapshot {snapshot}")))?;

    let mut reader = Reader::active()?;
    let mut due: Vec<Due> = Vec::new();
    let mut kept = 0;
    let ranges = old.in_progress.iter().map(|&xact_id| (xact_id, xact_id + 1)).chain([(old.xmax, new.xmax)]);
    for (from, to) in ranges {
        reader.contexts_between(from, to, |context| {
            let (stamp, xact_id) = (context.stamp, context.xact_id);
            kept += context.bytes();
            let context = (kept < CONTEXTS_KEPT).then(|| Box::new(context));
            due.push(Due { stamp, xact_id, context, leaves: None });
        })?;
    }
    let waiting_tails = if tails.all { storage::open_logs()? } else { Vec::new() };
    let idle = due.is_empty() && waiting_tails.is_empty() && !tails.platform;
    if idle && !tails.all {
        return Ok(Outcome::default());
    }
    let guard_state = guard_state(tails)?;
    // Whoever asks for an anchor asks for a look at the guards too, whether there is anything to anchor or not.
    if idle && old.guard_state.as_ref() == Some(&guard_state) {
        return Ok(Outcome::default());
    }
    storage::lock_sequencer()?;
    let platform = storage::platform_log()?;
    // The pass that sees a new incarnation's log for the first time sees the transaction that made it, too: that one first.
    let opened_by = platform.opened_by.filter(|_| platform.tree.size() == 0);
    if let Some(opened_by) = opened_by
        && !due.iter().any(|due| due.xact_id == opened_by)
    {
        return Err(storage::corrupted(format!("the event that begins the log {} is missing", platform.origin)));
    }

    let mut pass = Pass {
        platform,
        tenants: Vec::new(),
        tenants_by_name: HashMap::new(),
        guard_state,
        // A transaction's start is fixed; the clock is what "now" means for ages.
        now: backend::now(),
        outcome: Outcome::default(),
    };
    if old.guard_state.as_ref() != Some(&pass.guard_state) {
        record("GUARD.STATE", &guard_state_body(&pass.guard_state)?)?;
        pass.outcome.recorded = true;
    }

    if let Some(earlier) = residence.earlier_timeline {
        record("TIMELINE", &home::change_timeline(earlier)?)?;
        pass.outcome.recorded = true;
    }

    let ahead = pass.read_ahead(&mut reader, &mut due, |from, to| from >= old.xmax && new.nothing_between(from, to))?;
    due.sort_unstable_by_key(|due| (Some(due.xact_id) != opened_by, due.stamp, due.xact_id));
    let mut last_stamp = old.last_stamp;
    let mut entry = Vec::with_capacity(1024);
    for Due { stamp, xact_id, context, leaves } in due {
        last_stamp = last_stamp.max(stamp);
        if let Some(leaves) = leaves {
            for leaf in &ahead[leaves] {
                pass.integrate(xact_id, stamp, leaf)?;
            }
            continue;
        }
        let context = match context {
            Some(context) => *context,
            None => reader
                .context(xact_id)?
                .ok_or_else(|| Error::Internal(format!("agd: transaction {xact_id} vanished from its snapshot")))?,
        };
        reader.events_of(&[&context], &mut entry, |_, key, tenant, entry| {
            let leaf = pass.leaf(key, tenant, entry)?;
            pass.integrate(xact_id, stamp, &leaf)
        })?;
    }

    for log in waiting_tails {
        if let Some(tenant) = log.tenant.clone()
            && !pass.tenants_by_name.contains_key(&tenant)
        {
            pass.add(tenant, log);
        }
    }
    pass.anchor_tails(tails)?;
    for log in &mut pass.tenants {
        log.save()?;
    }
    pass.platform.save()?;
    storage::save_integrated(&new.snapshot, last_stamp, &pass.guard_state)?;
    Ok(pass.outcome)
}

thread_local! {
    /// The guard state, and when it was computed. None: something changed since.
    static GUARD_STATE: RefCell<Option<(Vec<u8>, Instant)>> = const { RefCell::new(None) };
    /// How often something changed.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// A guard state that no invalidation has reached is computed anew after this long: who changes the catalogs by hand may
/// send none.
const GUARD_STATE_AGE: Duration = Duration::from_secs(1);

/// Some relation changed: the guards may have, too.
pub fn forget_guard_state() {
    GUARD_STATE.set(None);
    CHANGES.set(CHANGES.get().wrapping_add(1));
}

/// The guards' present state. A pass by age or on request always computes it; under load, where one pass follows the other, a
/// fresh one is used again.
fn guard_state(tails: Tails) -> Result<Vec<u8>> {
    let fresh = GUARD_STATE.with_borrow(|known| {
        known.as_ref().filter(|(_, at)| !tails.all && at.elapsed() < GUARD_STATE_AGE).map(|(state, _)| state.clone())
    });
    if let Some(state) = fresh {
        return Ok(state);
    }
    let (changes, began) = (CHANGES.get(), Instant::now());
    let state = query::one_kept::<Vec<u8>>("SELECT digest FROM agd.guard_digest")?.unwrap_or_default();
    if CHANGES.get() == changes {
        GUARD_STATE.set(Some((state.clone(), began)));
    }
    Ok(state)
}

/// A snapshot with the numbers that its transactions are recorded under.
struct Progress {
    /// As PostgreSQL writes a pg_snapshot: `xmin:xmax:xip,xip`.
    snapshot: String,
    xmax: u64,
    /// Ascending.
    in_progress: Vec<u64>,
}

impl Progress {
    fn in_recorded_ids(snapshot: &str, base: u64) -> Option<Self> {
        let raised = |id: &str| id.parse::<u64>().ok()?.checked_add(base);
        let mut parts = snapshot.split(':');
        let (xmin, xmax, list) = (raised(parts.next()?)?, raised(parts.next()?)?, parts.next()?);
        let list = list.split(',').filter(|id| !id.is_empty());
        let in_progress = list.map(raised).collect::<Option<Vec<_>>>()?;
        let list: Vec<_> = in_progress.iter().map(u64::to_string).collect();
        Some(Progress { snapshot: format!("{xmin}:{xmax}:{}", list.join(",")), xmax, in_progress })
    }

    /// Is no transaction between these two in progress?
    fn nothing_between(&self, from: u64, to: u64) -> bool {
        let at = self.in_progress.partition_point(|&xact_id| xact_id <= from);
        self.in_progress.get(at).is_none_or(|&xact_id| xact_id >= to)
    }
}

/// What the log says of a new guard state: its digest, and which guards are not intact.
fn guard_state_body(digest: &[u8]) -> Result<String> {
    let digest = Hash::try_from(digest).map_err(|_| Error::Internal("agd: the guard state is no digest".into()))?;
    // From catalog rows alone, as the digest: nothing here waits for a lock on a guarded table.
    let open = query::one::<String>(
        // The first hundred: what is aggregated is bounded before it is cut.
        "SELECT pg_catalog.left(pg_catalog.string_agg(pg_catalog.format('%s: %s', w.relation, w.problem), '; '
                                                      ORDER BY w.relation::text COLLATE \"C\", w.problem), 4000)
           FROM (SELECT p.relation, p.problem
                   FROM agd.every_guard g CROSS JOIN LATERAL agd.guard_problems(g.relation) p
                  ORDER BY p.relation::text COLLATE \"C\", p.problem LIMIT 100) w",
        &[],
    )?;
    Ok(agd_core::guard_state::body(&digest, open.as_deref()))
}

/// An event of the worker's own.
fn record(action: &str, body: &str) -> Result<()> {
    fault::point()?;
    event::insert(&Record { body: Some(body), ..Record::of(action) })?;
    fault::point()
}

impl Pass {
    /// Computes the leaves of small transactions whose events lie beside each other, before their turn comes: one walk
    /// along the index for many of them, where the order of their stamps would need a descent for each. `due` is in the order of
    /// transaction ids; `beside` says of two neighbours in it that the table has no more than dead rows between them.
    fn read_ahead(
        &mut self,
        reader: &mut Reader,
        due: &mut [Due],
        beside: impl Fn(u64, u64) -> bool,
    ) -> Result<Vec<Leaf>> {
        let small = |due: &Due| due.context.as_ref().is_some_and(|context| context.events <= SMALL_TRANSACTION);
        let mut leaves = Vec::new();
        let mut entry = Vec::with_capacity(1024);
        for run in due.chunk_by_mut(|a, b| small(a) && small(b) && beside(a.xact_id, b.xact_id)) {
            for run in run.chunks_mut(RUN) {
                if run.len() < 2 || leaves.len() >= READ_AHEAD {
                    continue;
                }
                let contexts: Vec<&Context> = run.iter().filter_map(|due| due.context.as_deref()).collect();
                let mut ends = vec![0; contexts.len()];
                let begin = leaves.len();
                reader.events_of(&contexts, &mut entry, |place, key, tenant, entry| {
                    leaves.push(self.leaf(key, tenant, entry)?);
                    ends[place] = leaves.len();
                    Ok(())
                })?;
                let mut begin = begin;
                for (due, end) in run.iter_mut().zip(ends) {
                    // One without events leaves the zero.
                    due.leaves = Some(begin..end.max(begin));
                    begin = end.max(begin);
                }
            }
        }
        Ok(leaves)
    }

    /// An event's leaf, and whose log it belongs to; a tenant's first event makes its log.
    fn leaf(&mut self, key: EventKey, tenant: Option<&str>, entry: &[u8]) -> Result<Leaf> {
        let closes = tenant.is_some() && entry::is_action(entry, entry::LOG_CLOSE);
        let tenant = tenant.map(|tenant| self.tenant(tenant)).transpose()?;
        Ok(Leaf { tenant, n: key.n, closes, hash: leaf_hash(entry) })
    }

    fn tenant(&mut self, tenant: &str) -> Result<u32> {
        if let Some(&index) = self.tenants_by_name.get(tenant) {
            return Ok(index);
        }
        let incarnation = self.platform.incarnation;
        let log = match storage::tenant_log(tenant, incarnation)? {
            Some(log) => log,
            None => {
                let origin = name::tenant_origin(&self.platform.origin, tenant);
                storage::create_log(&origin, Some(tenant), incarnation, None)?
            }
        };
        Ok(self.add(tenant.to_owned(), log))
    }

    fn add(&mut self, tenant: String, log: Log) -> u32 {
        let index = self.tenants.len() as u32;
        self.tenants.push(log);
        self.tenants_by_name.insert(tenant, index);
        index
    }

    fn integrate(&mut self, xact_id: u64, stamp: i64, leaf: &Leaf) -> Result<()> {
        let log = match leaf.tenant {
            None => &mut self.platform,
            Some(tenant) => &mut self.tenants[tenant as usize],
        };
        let key = EventKey { xact_id, n: leaf.n };
        log.append(leaf.hash, key, stamp, self.now)?;
        self.outcome.events += 1;
        if leaf.closes || log.tree.size().is_multiple_of(TILE_WIDTH) {
            pgrx::check_for_interrupts!();
            anchor(log, &self.guard_state, self.now, leaf.closes.then_some(key), &mut self.outcome)?;
            // The platform log covers a final checkpoint without waiting for its own age.
            self.outcome.anchored_tail |= leaf.closes;
        }
        Ok(())
    }

    fn anchor_tails(&mut self, tails: Tails) -> Result<()> {
        for log in self.tenants.iter_mut().chain([&mut self.platform]) {
            if log.open_since.is_some() && (tails.all || tails.platform && log.tenant.is_none()) {
                anchor(log, &self.guard_state, self.now, None, &mut self.outcome)?;
                self.outcome.anchored_tail |= log.tenant.is_some();
            }
        }
        Ok(())
    }
}

/// Anchors a log; a tenant's checkpoint becomes an event of the platform's. `closed_by`: the event that makes it final.
fn anchor(
    log: &mut Log,
    guard_state: &[u8],
    now: i64,
    closed_by: Option<EventKey>,
    outcome: &mut Outcome,
) -> Result<()> {
    let root = log.anchor(guard_state, now, closed_by)?;
    outcome.anchors += 1;
    if log.tenant.is_none() {
        outcome.platform_anchors += 1;
    } else {
        let checkpoint = Checkpoint { origin: log.origin.clone(), size: log.tree.size(), root };
        record(entry::CHECKPOINT, &checkpoint.to_string())?;
        outcome.recorded = true;
    }
    Ok(())
}
