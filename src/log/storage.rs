//! Where the logs' trees are kept: agd.log, agd.tile, agd.checkpoint, agd.sequencer.
//!
//! Owns every write to these tables and the way back from rows to trees that grow; [`crate::log::stored`] reads them as
//! they are. Promises that no SQL of anybody else's writes them: their triggers let pass only what runs inside [`writing`].
//! Never hashes an event itself.

use crate::catalog::{Columns, Relation, catalog, scan, varlena};
use crate::error::{Error, Result};
use crate::log::record::EventKey;
use crate::query;
use agd_core::{HASH_SIZE, Hash, TILE_WIDTH, TiledTree, tile};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use pgrx::spi::{Spi, SpiHeapTupleData};
use std::cell::Cell;

thread_local! {
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

/// May the present statement write the log's tables?
pub fn may_write() -> bool {
    WRITING.get()
}

/// Runs statements of agd's own on the log's tables.
pub fn writing<T>(body: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            WRITING.set(false);
        }
    }
    WRITING.set(true);
    let _reset = Reset;
    body()
}

/// One log with its tree.
pub struct Log {
    /// Number of the log in this database.
    pub log_id: i32,
    /// Its origin.
    pub origin: String,
    /// Whose it is; None: the platform's.
    pub tenant: Option<String>,
    /// The tree, with its partial tiles.
    pub tree: TiledTree,
    /// The event keys of the open level-0 tile.
    pub open_keys: Vec<u8>,
    /// Smallest and largest stamp of the open tile's events.
    pub open_stamps: Option<(i64, i64)>,
    /// Since when leaves wait for a checkpoint, microseconds since 2000-01-01.
    pub open_since: Option<i64>,
    /// Which incarnation of the database's logs it belongs to: 1, 2, …
    pub incarnation: i32,
    /// The transaction whose first event is leaf 0, in a platform log that begins an incarnation.
    pub opened_by: Option<u64>,
    /// Something changed since it was read.
    pub changed: bool,
}

fn timestamp(micros: i64) -> Result<TimestampWithTimeZone> {
    TimestampWithTimeZone::try_from(micros).map_err(|_| Error::Internal(format!("agd: {micros} is no time")))
}

/// XX001 about the log's tables.
pub fn corrupted(what: impl Into<String>) -> Error {
    Error::Corrupted {
        message: what.into(),
        hint:
            "The log's tables were changed outside of agd. Keep this database as it is, and verify what was published: \
               agd verify STORE."
                .into(),
    }
}

/// The hashes in a run of bytes.
pub fn hashes(bytes: &[u8]) -> Result<Vec<Hash>> {
    if !bytes.len().is_multiple_of(HASH_SIZE) {
        return Err(corrupted(format!("{} bytes are no whole number of hashes", bytes.len())));
    }
    Ok(bytes
        .chunks_exact(HASH_SIZE)
        .map(|chunk| {
            let mut hash = [0; HASH_SIZE];
            hash.copy_from_slice(chunk);
            hash
        })
        .collect())
}

/// The partial tiles of a log of this size, level 0 first, from the bytes that agd.log keeps.
pub fn split_open_tiles(origin: &str, size: u64, bytes: &[u8]) -> Result<Vec<Vec<Hash>>> {
    let flat = hashes(bytes)?;
    let misfit = || corrupted(format!("log {origin}: its open tiles do not fit its size {size}"));
    let mut open = Vec::new();
    let mut rest = flat.as_slice();
    for level in (0..8).take_while(|level| size >> (tile::TILE_HEIGHT * level) > 0) {
        let Some((this, higher)) = rest.split_at_checked(tile::partial_width(size, level) as usize) else {
            return Err(misfit());
        };
        open.push(this.to_vec());
        rest = higher;
    }
    if !rest.is_empty() {
        return Err(misfit());
    }
    Ok(open)
}

const COLUMNS: &str =
    "log_id, origin, tenant, size, open_tiles, open_keys, open_first_stamp, open_last_stamp, open_since, incarnation,
     opened_by::text::bigint";

fn read_log(row: &SpiHeapTupleData<'_>) -> Result<Log> {
    let origin: String = row.get(2)?.unwrap_or_default();
    let size = row.get::<i64>(4)?.unwrap_or_default() as u64;
    let open_keys: Vec<u8> = row.get(6)?.unwrap_or_default();
    let open = split_open_tiles(&origin, size, &row.get::<Vec<u8>>(5)?.unwrap_or_default())?;
    let tree =
        TiledTree::from_open_tiles(size, open).map_err(|problem| corrupted(format!("log {origin}: {problem}")))?;
    if open_keys.len() as u64 != size % TILE_WIDTH * EventKey::SIZE as u64 {
        return Err(corrupted(format!("log {origin}: the keys of its open tile do not fit its size {size}")));
    }
    Ok(Log {
        log_id: row.get(1)?.unwrap_or_default(),
        tenant: row.get(3)?,
        open_stamps: row.get(7)?.zip(row.get(8)?),
        open_since: row.get::<TimestampWithTimeZone>(9)?.map(TimestampWithTimeZone::into_inner),
        incarnation: row.get(10)?.unwrap_or(1),
        opened_by: row.get::<i64>(11)?.map(i64::cast_unsigned),
        changed: false,
        origin,
        tree,
        open_keys,
    })
}

fn read_logs(condition: &str, arguments: &[pgrx::datum::DatumWithOid<'_>]) -> Result<Vec<Log>> {
    let query = format!("SELECT {COLUMNS} FROM agd.log WHERE {condition} ORDER BY tenant NULLS LAST, incarnation");
    query::kept(&query, arguments, |rows| rows.map(|row| read_log(&row)).collect())
}

/// The log of a tenant in an incarnation, if there is one.
pub fn tenant_log(tenant: &str, incarnation: i32) -> Result<Option<Log>> {
    Ok(read_logs("tenant = $1 AND incarnation = $2", &[tenant.into(), incarnation.into()])?.pop())
}

/// The platform log of the newest incarnation, if anything was ever recorded.
pub fn newest_platform_log() -> Result<Option<Log>> {
    Ok(read_logs(
        "tenant IS NULL AND incarnation = (SELECT pg_catalog.max(n.incarnation) FROM agd.log n WHERE n.tenant IS NULL)",
        &[],
    )?
    .pop())
}

/// The same, where there must be one.
pub fn platform_log() -> Result<Log> {
    newest_platform_log()?.ok_or_else(|| corrupted("the platform log is gone"))
}

/// 22023 for an origin that is no log's.
pub fn no_such_log(origin: &str) -> Error {
    Error::BadArgument {
        message: format!("there is no log with the origin \"{origin}\""),
        hint: "SELECT DISTINCT origin FROM agd.anchors shows them.".into(),
    }
}

/// Logs with leaves that no anchor covers yet; tenants' first, by name, then the platform's. Closed logs have none.
pub fn open_logs() -> Result<Vec<Log>> {
    read_logs("open_since IS NOT NULL", &[])
}

/// Creates a log, empty. `opened_by`: see [`Log::opened_by`].
pub fn create_log(origin: &str, tenant: Option<&str>, incarnation: i32, opened_by: Option<u64>) -> Result<Log> {
    let log_id = writing(|| {
        Spi::get_one_with_args::<i32>(
            "INSERT INTO agd.log (log_id, origin, tenant, incarnation, opened_by)
             SELECT COALESCE(pg_catalog.max(log_id), 0) + 1, $1, $2, $3, $4::text::xid8 FROM agd.log RETURNING log_id",
            &[origin.into(), tenant.into(), incarnation.into(), opened_by.map(|xact_id| xact_id.to_string()).into()],
        )
    })?
    .ok_or_else(|| Error::Internal("agd: a new log got no number".into()))?;
    Ok(Log {
        log_id,
        origin: origin.to_owned(),
        tenant: tenant.map(str::to_owned),
        tree: TiledTree::new(),
        open_keys: Vec::new(),
        open_stamps: None,
        open_since: None,
        incarnation,
        opened_by,
        changed: false,
    })
}

impl Log {
    /// Appends a leaf. Stores the tiles it fills.
    pub fn append(&mut self, leaf: Hash, key: EventKey, stamp: i64, now: i64) -> Result<()> {
        key.write(&mut self.open_keys);
        let (first, last) =
            self.open_stamps.map_or((stamp, stamp), |(first, last)| (first.min(stamp), last.max(stamp)));
        self.open_stamps = Some((first, last));
        self.open_since.get_or_insert(now);
        self.changed = true;
        let (log_id, keys) = (self.log_id, &self.open_keys);
        self.tree.push(leaf, &mut |full| {
            let level_0 = full.level == 0;
            store_tile(
                log_id,
                full.level,
                full.index,
                full.hashes.as_flattened(),
                level_0.then_some(keys.as_slice()),
                level_0.then_some((first, last)),
            )
        })?;
        if self.tree.size().is_multiple_of(TILE_WIDTH) {
            self.open_keys.clear();
            self.open_stamps = None;
        }
        Ok(())
    }

    /// Anchors the log at its present size. `closed_by`: the event that makes this checkpoint final. Returns the root.
    pub fn anchor(&mut self, guard_state: &[u8], now: i64, closed_by: Option<EventKey>) -> Result<Hash> {
        let root = self.tree.root();
        writing(|| {
            query::run_kept(
                "INSERT INTO agd.checkpoint (log_id, tree_size, root_hash, guard_state, anchored_at, final_by)
                 VALUES ($1, $2, $3, $4, $5, $6)",
                &[
                    self.log_id.into(),
                    (self.tree.size() as i64).into(),
                    root.as_slice().into(),
                    guard_state.into(),
                    timestamp(now)?.into(),
                    closed_by.map(|key| key.to_string()).into(),
                ],
            )
        })?;
        self.open_since = None;
        self.changed = true;
        Ok(root)
    }

    /// Stores the tree's open part.
    pub fn save(&mut self) -> Result<()> {
        if !self.changed {
            return Ok(());
        }
        let open: Vec<u8> = self.tree.open_tiles().iter().flatten().flatten().copied().collect();
        writing(|| {
            query::run_kept(
                "UPDATE agd.log SET size = $2, open_tiles = $3, open_keys = $4, open_first_stamp = $5,
                        open_last_stamp = $6, open_since = $7 WHERE log_id = $1",
                &[
                    self.log_id.into(),
                    (self.tree.size() as i64).into(),
                    open.into(),
                    self.open_keys.as_slice().into(),
                    self.open_stamps.map(|stamps| stamps.0).into(),
                    self.open_stamps.map(|stamps| stamps.1).into(),
                    self.open_since.map(timestamp).transpose()?.into(),
                ],
            )
        })?;
        self.changed = false;
        Ok(())
    }
}

fn store_tile(
    log_id: i32,
    level: u8,
    index: u64,
    hashes: &[u8],
    keys: Option<&[u8]>,
    stamps: Option<(i64, i64)>,
) -> Result<()> {
    writing(|| {
        query::run_kept(
            "INSERT INTO agd.tile (log_id, level, tile_index, hashes, event_keys, first_stamp, last_stamp)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            &[
                log_id.into(),
                i16::from(level).into(),
                (index as i64).into(),
                hashes.into(),
                keys.into(),
                stamps.map(|stamps| stamps.0).into(),
                stamps.map(|stamps| stamps.1).into(),
            ],
        )
    })
}

/// What the sequencer has integrated.
pub struct Integrated {
    /// Every transaction below is over.
    pub xmin: u64,
    /// No transaction at or above was visible.
    pub xmax: u64,
    /// Those between that were still in progress.
    pub in_progress: Vec<u64>,
    /// The largest stamp integrated, microseconds since 2000-01-01.
    pub last_stamp: i64,
    /// The guard state last seen.
    pub guard_state: Option<Vec<u8>>,
}

impl Integrated {
    /// Is a transaction integrated, with all its events?
    pub fn sees(&self, xact_id: u64) -> bool {
        xact_id < self.xmax && !self.in_progress.contains(&xact_id)
    }
}

/// Reads the sequencer's row as it is now, without SQL: any writer's commit may need it.
pub fn integrated() -> Result<Integrated> {
    integrated_under(std::ptr::null_mut())
}

/// The same under a snapshot; null: the latest committed state.
#[allow(unsafe_code)] // takes a pg_snapshot apart
pub fn integrated_under(snapshot: pg_sys::Snapshot) -> Result<Integrated> {
    let relation = Relation::open(catalog()?.sequencer, pg_sys::AccessShareLock);
    let mut columns = Columns::default();
    let mut found = None;
    scan(&relation, None, snapshot, &mut [], |tuple| {
        columns.deform(tuple, relation.descriptor());
        // A pg_snapshot is a varlena of nxip (4 bytes), xmin, xmax and nxip transaction ids (8 bytes each).
        // SAFETY: the column types of agd.sequencer (sql/40_log.sql).
        let stored = columns.get(1).map(|value| unsafe { varlena(value) }).unwrap_or_default();
        let number = |at: usize| -> Result<u64> {
            let bytes = stored
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or_else(|| corrupted("the sequencer's snapshot is cut short"))?;
            Ok(u64::from_ne_bytes(bytes))
        };
        found = Some(Integrated {
            xmin: number(4)?,
            xmax: number(12)?,
            in_progress: (20..stored.len()).step_by(8).map(number).collect::<Result<_>>()?,
            last_stamp: columns.get(2).map_or(0, |value| value.value() as i64),
            // SAFETY: guard_state is bytea.
            guard_state: columns.get(3).map(|value| unsafe { varlena(value) }.to_vec()),
        });
        Ok(())
    })?;
    found.ok_or_else(|| corrupted("the sequencer's row is gone"))
}

/// Keeps every other sequencer out until this transaction ends.
pub fn lock_sequencer() -> Result<()> {
    writing(|| query::run_kept("SELECT FROM agd.sequencer FOR UPDATE", &[]))
}

/// Stores what is integrated now.
pub fn save_integrated(snapshot: &str, last_stamp: i64, guard_state: &[u8]) -> Result<()> {
    writing(|| {
        query::run_kept(
            "UPDATE agd.sequencer SET integrated = $1::pg_catalog.pg_snapshot, last_stamp = $2, guard_state = $3",
            &[snapshot.into(), timestamp(last_stamp)?.into(), guard_state.into()],
        )
    })
}
