//! Verification inside the database: leaves, tiles, roots, anchors, recomputed from the events themselves.
//!
//! Owns `agd.verify()`. Promises to name the first event, tile or anchor of each log that does not hold, and never to say
//! ok to what it did not look at. It believes nothing but the events' rows and the anchors; where it goes on from an
//! earlier verification it believes the compact range stored then, which `full_scan` ignores. A database under suspicion
//! is verified from outside: `agd verify STORE`.

use crate::error::{Error, OrRaise, Result};
use crate::log::read::keys_of_tile;
use crate::log::record::{Context, EventKey, Reader};
use crate::log::storage::{self, Log};
use crate::log::stored::{Stored, Tree};
use crate::{home, query};
use agd_core::{Checkpoint, CompactRange, Hash, TILE_WIDTH, leaf_hash};
use pgrx::prelude::*;

/// One line of the report.
struct Check {
    origin: String,
    name: &'static str,
    ok: bool,
    entries: u64,
    detail: String,
}

/// `agd.verify(origin, full_scan)`
#[allow(clippy::type_complexity)] // the shape of the SQL function
#[pg_extern(sql = false)]
fn verify(
    origin: Option<&str>,
    full_scan: Option<bool>,
) -> TableIterator<
    'static,
    (
        name!(origin, String),
        name!(check_name, String),
        name!(ok, bool),
        name!(entries, i64),
        name!(detail, Option<String>),
    ),
> {
    let checks = verify_logs(origin, full_scan.unwrap_or(false)).or_raise();
    TableIterator::new(
        checks
            .into_iter()
            .map(|check| (check.origin, check.name.to_owned(), check.ok, check.entries as i64, Some(check.detail))),
    )
}

fn verify_logs(origin: Option<&str>, full_scan: bool) -> Result<Vec<Check>> {
    let origins = match origin {
        Some(origin) => vec![origin.to_owned()],
        None => storage::origins()?,
    };
    let mut progress = Progress { done: 0, told: std::time::Instant::now() };
    let mut checks = Vec::new();
    for origin in origins {
        match verify_one(&origin, full_scan, &mut progress) {
            Ok(found) => checks.extend(found),
            // One log that cannot be read hides nothing about the others.
            Err(Error::Corrupted { message, .. }) => {
                checks.push(Check { origin, name: "log", ok: false, entries: 0, detail: message });
            }
            Err(error) => return Err(error),
        }
    }
    if origin.is_none() {
        checks.push(every_event_once()?);
    }
    Ok(checks)
}

/// What is wrong with the whole record, if anything is.
pub fn first_problem(full_scan: bool) -> Result<Option<String>> {
    let checks = verify_logs(None, full_scan)?;
    Ok(checks.into_iter().find(|check| !check.ok).map(|check| format!("{}: {}", check.origin, check.detail)))
}

fn verify_one(origin: &str, full_scan: bool, progress: &mut Progress) -> Result<Vec<Check>> {
    let log = storage::log_by_origin(origin)?;
    let mut checks = verify_log(&log, full_scan, progress)?;
    if log.tenant.is_some() {
        checks.push(checkpoints_in_platform_log(&log)?);
    }
    Ok(checks)
}

struct Progress {
    done: u64,
    told: std::time::Instant,
}

impl Progress {
    fn step(&mut self, entries: u64) {
        self.done += entries;
        if self.told.elapsed().as_secs() >= 5 {
            notice!("agd.verify: {} entries verified so far", self.done);
            self.told = std::time::Instant::now();
        }
    }
}

/// Where an earlier verification got to.
fn verified_range(log: &Log) -> Result<CompactRange> {
    let found = Spi::connect(|client| {
        client
            .select("SELECT tree_size, nodes FROM agd.verified WHERE log_id = $1", Some(1), &[log.log_id.into()])?
            .next()
            .map(|row| {
                Ok::<_, pgrx::spi::Error>((
                    row.get::<i64>(1)?.unwrap_or_default(),
                    row.get::<Vec<u8>>(2)?.unwrap_or_default(),
                ))
            })
            .transpose()
    })?;
    let Some((size, nodes)) = found else { return Ok(CompactRange::new()) };
    // What cannot be read is not believed: the scan begins at the first leaf.
    Ok(storage::hashes(&nodes)
        .ok()
        .and_then(|nodes| CompactRange::from_parts(size as u64, nodes).ok())
        .filter(|range| range.size() <= log.tree.size())
        .unwrap_or_default())
}

#[allow(unsafe_code)] // asks whether writing is possible at all
fn remember(log: &Log, range: &CompactRange) -> Result<()> {
    // SAFETY: reads the transaction's state. On a standby or in a read-only transaction nothing is remembered.
    if unsafe { pg_sys::RecoveryInProgress() || pg_sys::XactReadOnly } {
        return Ok(());
    }
    let nodes: Vec<u8> = range.nodes().iter().flatten().copied().collect();
    Spi::run_with_args(
        "INSERT INTO agd.verified (log_id, tree_size, nodes, verified_at)
         VALUES ($1, $2, $3, pg_catalog.clock_timestamp())
         ON CONFLICT (log_id) DO UPDATE
           SET tree_size = EXCLUDED.tree_size, nodes = EXCLUDED.nodes, verified_at = EXCLUDED.verified_at",
        &[log.log_id.into(), (range.size() as i64).into(), nodes.into()],
    )?;
    Ok(())
}

/// The anchors of a log above a size, smallest first; not those of a size that the log has reached meanwhile.
fn anchors_after(log: &Log, size: u64) -> Result<Vec<(u64, Vec<u8>)>> {
    Spi::connect(|client| {
        client
            .select(
                "SELECT tree_size, root_hash FROM agd.checkpoint
                  WHERE log_id = $1 AND tree_size > $2 AND tree_size <= $3 ORDER BY tree_size",
                None,
                &[log.log_id.into(), (size as i64).into(), (log.tree.size() as i64).into()],
            )?
            .map(|row| Ok((row.get::<i64>(1)?.unwrap_or_default() as u64, row.get::<Vec<u8>>(2)?.unwrap_or_default())))
            .collect()
    })
}

/// Recomputes one log from its events.
fn verify_log(log: &Log, full_scan: bool, progress: &mut Progress) -> Result<Vec<Check>> {
    let size = log.tree.size();
    let mut range = if full_scan { CompactRange::new() } else { verified_range(log)? };
    let from = range.size();
    let check = |name, ok, entries, detail: String| Check { origin: log.origin.clone(), name, ok, entries, detail };
    let scope = if from == 0 { "from the first leaf".to_owned() } else { format!("from leaf {from}, verified before") };

    let mut anchors = anchors_after(log, from)?.into_iter().peekable();
    let anchor_count = anchors.len();
    let mut first_bad_anchor = None;
    let mut first_bad_tile = None;
    let mut first_bad_event = None;
    // Newer than the log's row, which may itself be newer than what the calling query sees: it has every tile of it.
    let stored = Stored::latest()?;
    let tree = Tree {
        stored: &stored,
        log_id: log.log_id,
        origin: log.origin.clone(),
        size,
        open: log.tree.open_tiles().to_vec(),
    };
    let mut events = Events::new()?;
    let mut next = from;
    let mut widest = None;

    'tiles: while next < size {
        pgrx::check_for_interrupts!();
        let tile_start = next - next % TILE_WIDTH;
        let keys = match keys_of_tile(&stored, log, tile_start) {
            Ok(keys) => keys,
            Err(error) => {
                first_bad_tile.get_or_insert(error.message());
                break;
            }
        };
        let kept = tree.tile(0, tile_start / TILE_WIDTH)?;
        let end = size.min(tile_start + TILE_WIDTH);
        if (keys.len() as u64) < end - tile_start || (kept.len() as u64) < end - tile_start {
            first_bad_tile.get_or_insert(format!("tile {} is cut short", tile_start / TILE_WIDTH));
            break;
        }
        while next < end {
            let position = (next - tile_start) as usize;
            match events.leaf(keys[position])? {
                Some(leaf) if leaf == kept[position] => range.push(leaf),
                // The stored leaf stands in, so that what comes after is still compared with its anchors. That the tile
                // itself is genuine shows at the next anchor.
                Some(_) => {
                    first_bad_event.get_or_insert((
                        next,
                        format!("event {} was changed: it does not hash to its leaf {next}", keys[position]),
                    ));
                    range.push(kept[position]);
                }
                None => {
                    first_bad_event
                        .get_or_insert((next, format!("event {} is missing: it was leaf {next}", keys[position])));
                    range.push(kept[position]);
                }
            }
            next += 1;
            while let Some((anchor_size, root)) = anchors.peek() {
                if *anchor_size > next {
                    break;
                }
                if *anchor_size < next || root.as_slice() != range.root().as_slice() {
                    first_bad_anchor
                        .get_or_insert(format!("the anchor at size {anchor_size} has another root than the leaves"));
                }
                anchors.next();
                if first_bad_anchor.is_none() && first_bad_event.is_none() {
                    widest = Some(range.clone());
                }
            }
        }
        progress.step(end - tile_start);
        if first_bad_tile.is_none()
            && let Some(problem) = upper_tile_problem(&tree, tile_start, kept)?
        {
            first_bad_tile = Some(problem);
            continue 'tiles;
        }
    }
    if let Some(beyond) = anchor_beyond_log(log)? {
        first_bad_anchor.get_or_insert(format!("there is an anchor at size {beyond}, beyond the log's leaves"));
    }
    if let Some(published) = receipt_without_anchor(log)? {
        first_bad_anchor.get_or_insert(format!("the anchor at size {published} was published, and is missing"));
    }
    if first_bad_tile.is_none() && range.size() == size && range.root() != log.tree.root() {
        first_bad_tile = Some("the log's open tiles do not give the root of its leaves".into());
    }
    if let Some(unknown) = anchor_of_unknown_guard_state(log)? {
        first_bad_anchor.get_or_insert(format!(
            "the anchor at size {unknown} has a guard state that the platform log does not know"
        ));
    }
    if let Some(missing) = missing_full_anchor(log, from, size)? {
        first_bad_anchor.get_or_insert(missing);
    }

    let scanned = next - from;
    let checks = vec![
        check(
            "events",
            first_bad_event.is_none(),
            scanned,
            first_bad_event.map_or(format!("every event hashes to its leaf, {scope}"), |(_, problem)| problem),
        ),
        check("tiles", first_bad_tile.is_none(), scanned, first_bad_tile.unwrap_or_else(|| "every tile holds".into())),
        check(
            "anchors",
            first_bad_anchor.is_none(),
            anchor_count as u64,
            first_bad_anchor
                .unwrap_or_else(|| format!("every anchor has the root of its leaves, {anchor_count} of them")),
        ),
    ];
    if checks.iter().all(|check| check.ok)
        && let Some(range) = widest
    {
        remember(log, &range)?;
    }
    Ok(checks)
}

/// A full tile's root must be the hash that the tile above holds for it.
fn upper_tile_problem(tree: &Tree<'_>, tile_start: u64, leaves: Vec<Hash>) -> Result<Option<String>> {
    let (mut level, mut index, mut hashes) = (0, tile_start / TILE_WIDTH, leaves);
    while hashes.len() as u64 == TILE_WIDTH {
        if let Some(problem) = tree.problem_above(level, index, &hashes)? {
            return Ok(Some(problem));
        }
        // Only the last child completes the look at its parent.
        if index % TILE_WIDTH != TILE_WIDTH - 1 {
            break;
        }
        (level, index) = (level + 1, index / TILE_WIDTH);
        hashes = tree.tile(level, index)?;
    }
    Ok(None)
}

/// An anchor of a size that the log does not have. One query, so that a growing log raises no alarm.
fn anchor_beyond_log(log: &Log) -> Result<Option<i64>> {
    query::one::<i64>(
        "SELECT pg_catalog.min(c.tree_size) FROM agd.checkpoint c JOIN agd.log l USING (log_id)
          WHERE c.log_id = $1 AND c.tree_size > l.size",
        &[log.log_id.into()],
    )
}

/// A receipt of an anchor that is not here.
fn receipt_without_anchor(log: &Log) -> Result<Option<i64>> {
    query::one::<i64>(
        "SELECT pg_catalog.min(p.tree_size) FROM agd.publication p
          WHERE p.log_id = $1
            AND NOT EXISTS (SELECT FROM agd.checkpoint c WHERE c.log_id = p.log_id AND c.tree_size = p.tree_size)",
        &[log.log_id.into()],
    )
}

/// An anchor must stand at every multiple of 256.
fn missing_full_anchor(log: &Log, from: u64, size: u64) -> Result<Option<String>> {
    let missing = query::one::<i64>(
        "SELECT pg_catalog.min(s) FROM pg_catalog.generate_series($2::bigint, $3::bigint, 256) AS s
          WHERE NOT EXISTS (SELECT FROM agd.checkpoint c WHERE c.log_id = $1 AND c.tree_size = s)",
        &[
            log.log_id.into(),
            ((from / TILE_WIDTH + 1) * TILE_WIDTH).cast_signed().into(),
            (size / TILE_WIDTH * TILE_WIDTH).cast_signed().into(),
        ],
    )?;
    Ok(missing.map(|size| format!("the anchor at size {size} is missing")))
}

/// Leaves recomputed from events, one transaction's context at a time.
struct Events {
    reader: Reader,
    context: Option<Context>,
    entry: Vec<u8>,
}

impl Events {
    fn new() -> Result<Self> {
        Ok(Events { reader: Reader::latest()?, context: None, entry: Vec::new() })
    }

    fn leaf(&mut self, key: EventKey) -> Result<Option<Hash>> {
        if self.context.as_ref().is_none_or(|context| context.xact_id != key.xact_id) {
            self.context = self.reader.context(key.xact_id)?;
        }
        let Some(context) = &self.context else { return Ok(None) };
        match self.reader.entry(context, key.n, &mut self.entry) {
            Ok(true) => Ok(Some(leaf_hash(&self.entry))),
            Ok(false) => Ok(None),
            // No canonical form: it hashes to nothing, and certainly not to its leaf.
            Err(Error::Corrupted { .. }) => Ok(Some([0; 32])),
            Err(error) => Err(error),
        }
    }
}

/// Every anchor of a tenant's log is an entry of the platform log, byte for byte (the newest may still be on its way).
fn checkpoints_in_platform_log(log: &Log) -> Result<Check> {
    let (mut entries, mut problem) = (0u64, None);
    let anchors = anchors_after(log, 0)?;
    let recorded: std::collections::HashSet<String> = Spi::connect(|client| {
        client
            .select(
                "SELECT body FROM agd.event WHERE action = 'CHECKPOINT' AND pg_catalog.split_part(body, E'\\n', 1) = $1",
                None,
                &[log.origin.as_str().into()],
            )?
            .map(|row| Ok(row.get::<String>(1)?.unwrap_or_default()))
            .collect::<Result<_>>()
    })?;
    for (size, root) in anchors {
        entries += 1;
        let Ok(root) = Hash::try_from(root) else { continue };
        let checkpoint = Checkpoint { origin: log.origin.clone(), size, root };
        if !recorded.contains(&checkpoint.to_string()) {
            problem.get_or_insert(format!("the anchor at size {size} is not in the platform log"));
        }
    }
    if let Some(lost) = anchor_only_in_platform_log(log)? {
        problem.get_or_insert(format!("the platform log holds an anchor at size {lost} that the log has lost"));
    }
    Ok(Check {
        origin: log.origin.clone(),
        name: "platform",
        ok: problem.is_none(),
        entries,
        detail: problem.unwrap_or_else(|| format!("every anchor stands in the platform log, {entries} of them")),
    })
}

/// A checkpoint of this log that stands in the platform log, and that the log itself does not have (any more). One query,
/// so that a growing log raises no alarm.
fn anchor_only_in_platform_log(log: &Log) -> Result<Option<i64>> {
    query::one::<i64>(
        "SELECT pg_catalog.min(pg_catalog.split_part(e.body, E'\\n', 2)::bigint)
           FROM agd.event e
          WHERE e.action = 'CHECKPOINT' AND pg_catalog.split_part(e.body, E'\\n', 1) = $2
            AND NOT EXISTS (SELECT FROM agd.checkpoint c
                             WHERE c.log_id = $1 AND c.tree_size::text = pg_catalog.split_part(e.body, E'\\n', 2))",
        &[log.log_id.into(), log.origin.as_str().into()],
    )
}

/// An anchor whose guard state was never entered into the platform log.
fn anchor_of_unknown_guard_state(log: &Log) -> Result<Option<i64>> {
    query::one::<i64>(
        "SELECT pg_catalog.min(c.tree_size)
           FROM agd.checkpoint c
          WHERE c.log_id = $1
            AND NOT EXISTS (SELECT FROM agd.event e
                             WHERE e.action = 'GUARD.STATE'
                               AND e.body = 'sha256:' || pg_catalog.encode(c.guard_state, 'hex'))",
        &[log.log_id.into()],
    )
}

/// An event that the sequencer's snapshot sees and that no tile holds: it was put there outside the gate.
fn event_without_leaf() -> Result<Option<String>> {
    query::one::<String>(
        "WITH keys AS MATERIALIZED (
           SELECT pg_catalog.substring(t.event_keys, i * 12 + 1, 12) AS key
             FROM agd.tile t CROSS JOIN pg_catalog.generate_series(0, 255) i WHERE t.level = 0
           UNION ALL
           SELECT pg_catalog.substring(l.open_keys, i * 12 + 1, 12)
             FROM agd.log l CROSS JOIN LATERAL
                  pg_catalog.generate_series(0, pg_catalog.octet_length(l.open_keys) / 12 - 1) i
         )
         SELECT pg_catalog.min(e.xact_id::text || '-' || e.n)
           FROM agd.event e CROSS JOIN agd.sequencer s
          WHERE pg_catalog.pg_visible_in_snapshot(e.xact_id, s.integrated)
            AND NOT EXISTS (SELECT FROM keys k
                             WHERE k.key = pg_catalog.int8send(e.xact_id::text::bigint) || pg_catalog.int4send(e.n))",
        &[],
    )
}

/// Every event that the sequencer's snapshot sees is in exactly one leaf, and every transaction has as many events as
/// its record says.
fn every_event_once() -> Result<Check> {
    // One query, so that all three numbers are of one moment.
    let (integrated, waiting, leaves) = Spi::connect(|client| {
        client
            .select(
                "SELECT pg_catalog.count(*) FILTER (WHERE pg_catalog.pg_visible_in_snapshot(e.xact_id, s.integrated)),
                        pg_catalog.count(*) FILTER (WHERE NOT pg_catalog.pg_visible_in_snapshot(e.xact_id, s.integrated)),
                        (SELECT pg_catalog.sum(l.size)::bigint FROM agd.log l)
                   FROM agd.event e CROSS JOIN agd.sequencer s",
                None,
                &[],
            )?
            .first()
            .get_three::<i64, i64, i64>()
    })?;
    let (integrated, waiting, leaves) =
        (integrated.unwrap_or_default(), waiting.unwrap_or_default(), leaves.unwrap_or_default());
    let mut problem = None;
    let present = home::present_id()?.map(|id| id.to_string());
    let miscounted = Spi::connect(|client| {
        client
            .select(
                "SELECT COALESCE(t.xact_id, e.xact_id)::text, COALESCE(t.events, 0)::bigint, COALESCE(e.events, 0)
                   FROM agd.transaction t
                        FULL JOIN (SELECT xact_id, pg_catalog.count(*) AS events FROM agd.event GROUP BY xact_id) e
                          USING (xact_id)
                  WHERE t.events IS DISTINCT FROM e.events
                    AND COALESCE(t.xact_id, e.xact_id) IS DISTINCT FROM $1::text::pg_catalog.xid8
                  ORDER BY 1 LIMIT 1",
                Some(1),
                &[present.into()],
            )?
            .next()
            .map(|row| {
                Ok::<_, pgrx::spi::Error>((
                    row.get::<String>(1)?.unwrap_or_default(),
                    row.get::<i64>(2)?.unwrap_or_default(),
                    row.get::<i64>(3)?.unwrap_or_default(),
                ))
            })
            .transpose()
    })?;
    let forged = if miscounted.is_some() || integrated != leaves { event_without_leaf()? } else { None };
    if let Some(event_id) = forged {
        problem = Some(format!("event {event_id} is in no leaf: it was added outside the gate"));
    } else if let Some((xact_id, recorded, found)) = miscounted {
        problem =
            Some(format!("transaction {xact_id} does not have all its events: recorded {recorded}, found {found}"));
    } else if integrated != leaves {
        problem = Some(format!("{integrated} integrated events, but {leaves} leaves"));
    }
    Ok(Check {
        origin: "(database)".into(),
        name: "complete",
        ok: problem.is_none(),
        entries: leaves as u64,
        detail: problem.unwrap_or_else(|| format!("every event is one leaf; {waiting} wait for integration")),
    })
}
