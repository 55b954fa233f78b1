//! What verification reads: logs, tiles and anchors, all under one snapshot.
//!
//! Owns that snapshot and the way from rows to what they say. Promises that everything read through it is of one moment:
//! the sequencer commits a pass as one, so a log that grows meanwhile contradicts nothing. Never believes that rows fit
//! together: that is what is being verified.
#![allow(unsafe_code)] // snapshots and tuples are raw backend structures

use crate::catalog::{Columns, Scratch, Seek, Snapshot, column, named, scan_key, text, varlena};
use crate::error::Result;
use crate::log::record::EventKey;
use crate::query::{self, At};
use agd_core::{HASH_SIZE, Hash, TILE_WIDTH, tile};
use pgrx::pg_sys;

/// The moment that is verified.
pub struct View {
    snapshot: Snapshot,
    memory: pg_sys::MemoryContext,
}

impl View {
    /// What is committed now, and what this transaction did so far.
    pub fn open() -> Self {
        let snapshot = Snapshot::latest();
        // SAFETY: pushed here, popped on drop; a process global.
        unsafe {
            pg_sys::PushActiveSnapshot(snapshot.raw());
            View { snapshot, memory: pg_sys::CurrentMemoryContext }
        }
    }

    /// For what does not outlive this.
    pub fn memory(&self) -> pg_sys::MemoryContext {
        self.memory
    }

    /// For scans that do not outlive this.
    pub fn snapshot(&self) -> pg_sys::Snapshot {
        self.snapshot.raw()
    }

    /// Every row of a query without parameters, each column as text.
    pub fn rows(&self, query: &str) -> Result<Vec<Vec<Option<String>>>> {
        query::rows(At::Active, query)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // After an error PostgreSQL does that.
        if !std::thread::panicking() {
            // SAFETY: as pushed in open(); whatever was pushed after it is popped.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
    }
}

/// The hashes in a run of bytes. A rest that is no whole hash is dropped.
pub fn hashes(bytes: &[u8]) -> Vec<Hash> {
    bytes.as_chunks::<HASH_SIZE>().0.to_vec()
}

/// A copy of a bytea column; what is needed to read it is freed.
///
/// # Safety
/// The column is bytea.
unsafe fn bytes(row: &Columns, column: usize, scratch: &Scratch) -> Vec<u8> {
    // SAFETY: passed on to the caller.
    scratch.with(|| row.get(column).map(|value| unsafe { varlena(value) }.to_vec()).unwrap_or_default())
}

fn number(row: &Columns, column: usize) -> i64 {
    row.get(column).map_or(0, |value| value.value() as i64)
}

// --------------------------------------------------------------------------------------------------------------- logs

/// A row of agd.log.
pub struct LogRow {
    /// Number of the log in this database.
    pub log_id: i32,
    /// Its origin.
    pub origin: String,
    /// Whose it is; None: the platform's.
    pub tenant: Option<String>,
    /// Leaves.
    pub size: u64,
    open_tiles: Vec<u8>,
    open_keys: Vec<u8>,
    /// Smallest and largest commit stamp of the open tile's events.
    pub open_stamps: (Option<i64>, Option<i64>),
    /// Leaves wait for an anchor, as the row says.
    pub is_open: bool,
}

impl LogRow {
    /// What in this row contradicts itself.
    pub fn problem(&self) -> Option<String> {
        let widths: u64 = (0..8).map(|level| tile::partial_width(self.size, level)).sum();
        if self.open_tiles.len() as u64 != widths * HASH_SIZE as u64 {
            return Some(format!("log {}: its open tiles do not fit its size {}", self.origin, self.size));
        }
        if self.open_keys.len() as u64 != self.size % TILE_WIDTH * EventKey::SIZE as u64 {
            return Some(format!("log {}: the keys of its open tile do not fit its size {}", self.origin, self.size));
        }
        None
    }

    /// The open tiles, level 0 first.
    pub fn open(&self) -> Vec<Vec<Hash>> {
        let flat = hashes(&self.open_tiles);
        let mut rest = flat.as_slice();
        (0..8)
            .map_while(|level| {
                let (this, higher) = rest.split_at_checked(tile::partial_width(self.size, level) as usize)?;
                rest = higher;
                Some(this.to_vec())
            })
            .collect()
    }

    /// The hashes of the open tile of level 0, in a row that contradicts itself: as many as there are keys.
    pub fn open_hashes(&self) -> Vec<Hash> {
        let mut hashes = hashes(&self.open_tiles);
        hashes.truncate(self.open_keys().len());
        hashes
    }

    /// The event keys of the open tile of level 0.
    pub fn open_keys(&self) -> Vec<EventKey> {
        EventKey::read_all(&self.open_keys).collect()
    }
}

/// A log as the list of logs shows it.
#[derive(Clone)]
pub struct LogName {
    /// Number of the log in this database.
    pub log_id: i32,
    /// Its origin.
    pub origin: String,
    /// Whose it is; None: the platform's.
    pub tenant: Option<String>,
    /// Leaves.
    pub size: u64,
    /// Which incarnation of the database's logs it belongs to.
    pub incarnation: u32,
}

struct LogColumns {
    log_id: usize,
    origin: usize,
    tenant: usize,
    size: usize,
    open_tiles: usize,
    open_keys: usize,
    open_first_stamp: usize,
    open_last_stamp: usize,
    open_since: usize,
    incarnation: usize,
}

/// Reads agd.log.
pub struct Logs {
    by_tenant: Seek,
    by_id: Seek,
    at: LogColumns,
    row: Columns,
    scratch: Scratch,
}

impl Logs {
    /// A reader under the view's snapshot.
    pub fn open(view: &View) -> Result<Self> {
        let table = named(c"log")?;
        let by_id = vec![scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT4EQ, pg_sys::Datum::from(0))];
        Ok(Logs {
            by_tenant: Seek::new(view.memory(), table, named(c"log_tenant_key")?, view.snapshot(), vec![]),
            by_id: Seek::new(view.memory(), table, named(c"log_pkey")?, view.snapshot(), by_id),
            at: LogColumns {
                log_id: column(table, c"log_id")?,
                origin: column(table, c"origin")?,
                tenant: column(table, c"tenant")?,
                size: column(table, c"size")?,
                open_tiles: column(table, c"open_tiles")?,
                open_keys: column(table, c"open_keys")?,
                open_first_stamp: column(table, c"open_first_stamp")?,
                open_last_stamp: column(table, c"open_last_stamp")?,
                open_since: column(table, c"open_since")?,
                incarnation: column(table, c"incarnation")?,
            },
            row: Columns::default(),
            scratch: Scratch::new(),
        })
    }

    fn name(&self) -> Result<LogName> {
        let string = |column| -> Result<Option<String>> {
            // SAFETY: origin and tenant are text.
            self.row.get(column).map(|value| unsafe { text(value) }.map(str::to_owned)).transpose()
        };
        Ok(LogName {
            log_id: number(&self.row, self.at.log_id) as i32,
            origin: string(self.at.origin)?.unwrap_or_default(),
            tenant: string(self.at.tenant)?,
            size: number(&self.row, self.at.size) as u64,
            incarnation: number(&self.row, self.at.incarnation) as u32,
        })
    }

    /// All logs; tenants' first, by name, then the platform's; each by incarnation.
    pub fn all(&mut self) -> Result<Vec<LogName>> {
        let mut names = Vec::new();
        while let Some(tuple) = self.by_tenant.next() {
            self.row.deform(tuple, self.by_tenant.descriptor());
            names.push(self.name()?);
        }
        Ok(names)
    }

    /// One log's row; there is one for every log that [`Logs::all`] gave.
    pub fn row(&mut self, log_id: i32) -> Result<Option<LogRow>> {
        self.by_id.aim(&[pg_sys::Datum::from(log_id)]);
        let Some(tuple) = self.by_id.next() else { return Ok(None) };
        self.row.deform(tuple, self.by_id.descriptor());
        let LogName { log_id, origin, tenant, size, .. } = self.name()?;
        let stamp = |column| self.row.get(column).map(|value| value.value() as i64);
        // SAFETY: both columns are bytea.
        let (open_tiles, open_keys) = unsafe {
            (bytes(&self.row, self.at.open_tiles, &self.scratch), bytes(&self.row, self.at.open_keys, &self.scratch))
        };
        Ok(Some(LogRow {
            log_id,
            origin,
            tenant,
            size,
            open_tiles,
            open_keys,
            open_stamps: (stamp(self.at.open_first_stamp), stamp(self.at.open_last_stamp)),
            is_open: self.row.get(self.at.open_since).is_some(),
        }))
    }
}

// -------------------------------------------------------------------------------------------------------------- tiles

/// A row of agd.tile.
pub struct TileRow {
    /// Position among the tiles of its level.
    pub index: u64,
    /// Its hashes: 256, if nobody changed the row.
    pub hashes: Vec<Hash>,
    /// On level 0 the keys of its events: 256.
    pub keys: Vec<EventKey>,
    /// On level 0 the smallest and largest commit stamp of its events.
    pub stamps: (Option<i64>, Option<i64>),
}

struct TileColumns {
    tile_index: usize,
    hashes: usize,
    event_keys: usize,
    first_stamp: usize,
    last_stamp: usize,
}

/// Reads agd.tile.
pub struct Tiles {
    /// Level 0 of one log, tile by tile.
    sequence: Seek,
    /// A single tile.
    single: Seek,
    at: TileColumns,
    row: Columns,
    scratch: Scratch,
}

impl Tiles {
    /// A reader under the view's snapshot.
    pub fn open(view: &View) -> Result<Self> {
        let (table, index) = (named(c"tile")?, named(c"tile_pkey")?);
        let nothing = pg_sys::Datum::from(0);
        let keys = vec![
            scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT4EQ, nothing),
            scan_key(2, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT2EQ, nothing),
            scan_key(3, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_INT8GE, nothing),
        ];
        Ok(Tiles {
            sequence: Seek::new(view.memory(), table, index, view.snapshot(), keys.clone()),
            single: Seek::new(view.memory(), table, index, view.snapshot(), keys),
            at: TileColumns {
                tile_index: column(table, c"tile_index")?,
                hashes: column(table, c"hashes")?,
                event_keys: column(table, c"event_keys")?,
                first_stamp: column(table, c"first_stamp")?,
                last_stamp: column(table, c"last_stamp")?,
            },
            row: Columns::default(),
            scratch: Scratch::new(),
        })
    }

    fn read(row: &mut Columns, at: &TileColumns, scan: &mut Seek, scratch: &Scratch) -> Option<TileRow> {
        let tuple = scan.next()?;
        row.deform(tuple, scan.descriptor());
        let stamp = |column| row.get(column).map(|value| value.value() as i64);
        // SAFETY: both columns are bytea.
        let (leaves, keys) = unsafe { (bytes(row, at.hashes, scratch), bytes(row, at.event_keys, scratch)) };
        Some(TileRow {
            index: number(row, at.tile_index) as u64,
            hashes: hashes(&leaves),
            keys: EventKey::read_all(&keys).collect(),
            stamps: (stamp(at.first_stamp), stamp(at.last_stamp)),
        })
    }

    /// Begins with the first tile of level 0 that is not before `index`.
    pub fn begin(&mut self, log_id: i32, index: u64) {
        self.sequence.aim(&[log_id.into(), 0.into(), index.into()]);
    }

    /// The next tile since [`Tiles::begin`].
    pub fn next(&mut self) -> Option<TileRow> {
        Self::read(&mut self.row, &self.at, &mut self.sequence, &self.scratch)
    }

    /// The first tile of a level that is not before `index`.
    pub fn first_from(&mut self, log_id: i32, level: u8, index: u64) -> Option<u64> {
        self.single.aim(&[log_id.into(), i16::from(level).into(), index.into()]);
        let tuple = self.single.next()?;
        self.row.deform(tuple, self.single.descriptor());
        Some(number(&self.row, self.at.tile_index) as u64)
    }

    /// The hashes of one tile.
    pub fn hashes(&mut self, log_id: i32, level: u8, index: u64) -> Option<Vec<Hash>> {
        self.single.aim(&[log_id.into(), i16::from(level).into(), index.into()]);
        Self::read(&mut self.row, &self.at, &mut self.single, &self.scratch)
            .filter(|tile| tile.index == index)
            .map(|tile| tile.hashes)
    }
}

// ------------------------------------------------------------------------------------------------------------ anchors

/// A row of agd.checkpoint.
pub struct Anchor {
    /// Leaves that it covers.
    pub size: u64,
    /// Their root.
    pub root: Hash,
    /// The guard state that it carries.
    pub guard_state: Hash,
    /// The event that closes the log here, as the row says.
    pub final_by: Option<String>,
}

struct AnchorColumns {
    tree_size: usize,
    root_hash: usize,
    guard_state: usize,
    final_by: usize,
}

/// Reads agd.checkpoint.
pub struct Anchors {
    scan: Seek,
    at: AnchorColumns,
    row: Columns,
    scratch: Scratch,
}

impl Anchors {
    /// A reader under the view's snapshot.
    pub fn open(view: &View) -> Result<Self> {
        let table = named(c"checkpoint")?;
        let nothing = pg_sys::Datum::from(0);
        let keys = vec![
            scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT4EQ, nothing),
            scan_key(2, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_INT8GE, nothing),
        ];
        Ok(Anchors {
            scan: Seek::new(view.memory(), table, named(c"checkpoint_pkey")?, view.snapshot(), keys),
            at: AnchorColumns {
                tree_size: column(table, c"tree_size")?,
                root_hash: column(table, c"root_hash")?,
                guard_state: column(table, c"guard_state")?,
                final_by: column(table, c"final_by")?,
            },
            row: Columns::default(),
            scratch: Scratch::new(),
        })
    }

    fn next(&mut self) -> Option<Anchor> {
        let tuple = self.scan.next()?;
        self.row.deform(tuple, self.scan.descriptor());
        // SAFETY: the columns are bytea, and text, which is kept as bytea is.
        let (root, guard_state, final_by) = unsafe {
            (
                bytes(&self.row, self.at.root_hash, &self.scratch),
                bytes(&self.row, self.at.guard_state, &self.scratch),
                bytes(&self.row, self.at.final_by, &self.scratch),
            )
        };
        let final_by = self.row.get(self.at.final_by).map(|_| String::from_utf8_lossy(&final_by).into_owned());
        let size = number(&self.row, self.at.tree_size) as u64;
        // What is no hash is none that anything has.
        let hash = |bytes: Vec<u8>| Hash::try_from(bytes).unwrap_or_default();
        Some(Anchor { size, root: hash(root), guard_state: hash(guard_state), final_by })
    }

    /// The anchors of a log at sizes above `size`, smallest first.
    pub fn above(&mut self, log_id: i32, size: u64) -> Vec<Anchor> {
        self.scan.aim(&[log_id.into(), (size + 1).into()]);
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The anchor at exactly this size.
    pub fn at(&mut self, log_id: i32, size: u64) -> Option<Anchor> {
        self.scan.aim(&[log_id.into(), size.into()]);
        self.next().filter(|anchor| anchor.size == size)
    }
}
