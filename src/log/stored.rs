//! The logs as they are stored: heads, tiles, anchors and receipts, read without SQL and under one snapshot.
//!
//! Owns the way from rows to hashes and keys for whoever only reads. Promises that all that one [`Stored`] tells is of one
//! moment. (What SPI reads can be newer with every query: it takes a new snapshot as soon as the transaction has an id.
//! A log that grows meanwhile would look torn.) Never writes, and believes nothing of what it reads: its callers check.
#![allow(unsafe_code)] // rows are taken apart by column type

use crate::catalog::{
    Catalog, Columns, Relation, Scratch, Snapshot, catalog, named, scan, scan_directed, scan_key, scan_ordered, text,
    to_varlena, varlena,
};
use crate::error::{Error, Result};
use crate::log::record::EventKey;
use crate::log::storage::{self, Integrated, corrupted};
use agd_core::{CompactRange, Hash, TILE_WIDTH};
use pgrx::pg_sys;
use pgrx::pg_sys::ScanDirection::{BackwardScanDirection, ForwardScanDirection};
use std::ops::Range;

/// Columns of agd.log, from 0 (sql/40_log.sql).
mod log {
    pub const LOG_ID: usize = 0;
    pub const ORIGIN: usize = 1;
    pub const TENANT: usize = 2;
    pub const SIZE: usize = 3;
    pub const OPEN_TILES: usize = 4;
    pub const OPEN_KEYS: usize = 5;
    pub const INCARNATION: usize = 9;
}

/// Columns of agd.tile, from 0.
mod tile {
    pub const LEVEL: usize = 1;
    pub const TILE_INDEX: usize = 2;
    pub const HASHES: usize = 3;
    pub const EVENT_KEYS: usize = 4;
    pub const FIRST_STAMP: usize = 5;
    pub const LAST_STAMP: usize = 6;
}

/// Columns of agd.checkpoint, from 0; agd.publication begins with the same two.
mod checkpoint {
    pub const TREE_SIZE: usize = 1;
    pub const ROOT_HASH: usize = 2;
}

/// Column of agd.publication, from 0.
const PUBLICATION_NOTE: usize = 4;

/// How far a log is, and the events of its open tile.
#[derive(Clone)]
pub struct Head {
    /// Number of the log in this database.
    pub log_id: i32,
    /// Its origin.
    pub origin: String,
    /// Whose it is; None: the platform's.
    pub tenant: Option<String>,
    /// Leaves.
    pub size: u64,
    /// The events of the open level-0 tile.
    pub open_keys: Vec<EventKey>,
    /// Which incarnation of the database's logs it belongs to.
    pub incarnation: i32,
}

impl Head {
    /// A range of its leaves, as somebody asks for it. 22023 where there are no such leaves.
    pub fn leaves(&self, first: i64, last: i64) -> Result<Range<u64>> {
        match (u64::try_from(first), u64::try_from(last)) {
            (Ok(first), Ok(last)) if first <= last && last <= self.size => Ok(first..last),
            _ => Err(Error::BadArgument {
                message: format!("the log has {} leaves: [{first}, {last}) is not a range of them", self.size),
                hint: "Indexes begin at 0; last_index is not included.".into(),
            }),
        }
    }
}

/// A root at a size.
pub struct Anchor {
    /// Leaves.
    pub size: u64,
    /// The root over them.
    pub root: Hash,
}

/// Reads the logs' tables under one snapshot.
pub struct Stored {
    catalog: Catalog,
    tiles: Relation,
    snapshot: Snapshot,
    scratch: Scratch,
}

fn key(column: usize, strategy: u32, function: u32, value: pg_sys::Datum) -> pg_sys::ScanKeyData {
    scan_key(column as i16 + 1, strategy, function, value)
}

fn is_log(log_id: i32) -> pg_sys::ScanKeyData {
    // The column has the same place in all these tables.
    key(log::LOG_ID, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT4EQ, log_id.into())
}

impl Stored {
    /// What the calling query sees.
    pub fn active() -> Result<Self> {
        Self::under(Snapshot::active())
    }

    /// What is committed now: every tile that a log's row read before can speak of.
    pub fn latest() -> Result<Self> {
        Self::under(Snapshot::latest())
    }

    fn under(snapshot: Snapshot) -> Result<Self> {
        let catalog = catalog()?;
        let tiles = Relation::open(catalog.tile, pg_sys::AccessShareLock);
        Ok(Stored { catalog, tiles, snapshot, scratch: Scratch::new() })
    }

    /// The moment, for whoever reads other tables at the same one.
    pub fn snapshot(&self) -> pg_sys::Snapshot {
        self.snapshot.raw()
    }

    /// What the sequencer had integrated at this moment.
    pub fn integrated(&self) -> Result<Integrated> {
        storage::integrated_under(self.snapshot.raw())
    }

    // --------------------------------------------------------------------------------------------------------- heads

    /// The logs of a tenant (None: of the platform): of the newest incarnation first.
    pub fn heads_of(&self, tenant: Option<&str>) -> Result<Vec<Head>> {
        match tenant {
            Some(tenant) => self.heads_where(self.catalog.log_tenant_key, log::TENANT, tenant),
            // The index holds these rows alone.
            None => self.heads_in(self.catalog.log_platform, &mut []),
        }
    }

    /// The log with an origin, if there is one.
    pub fn head_by_origin(&self, origin: &str) -> Result<Option<Head>> {
        Ok(self.heads_where(self.catalog.log_origin_key, log::ORIGIN, origin)?.pop())
    }

    fn heads_where(&self, index: pg_sys::Oid, column: usize, value: &str) -> Result<Vec<Head>> {
        let value = to_varlena(value.as_bytes());
        let mut keys = [key(column, pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ, value)];
        keys[0].sk_collation = pg_sys::C_COLLATION_OID;
        self.heads_in(index, &mut keys)
    }

    fn heads_in(&self, index: pg_sys::Oid, keys: &mut [pg_sys::ScanKeyData]) -> Result<Vec<Head>> {
        let relation = Relation::open(self.catalog.log, pg_sys::AccessShareLock);
        let (mut columns, mut found) = (Columns::default(), Vec::new());
        self.scratch.with(|| {
            scan_directed(&relation, index, self.snapshot.raw(), keys, BackwardScanDirection, |tuple| {
                columns.deform(tuple, relation.descriptor());
                found.push(read_head(&columns)?);
                Ok(true)
            })
        })?;
        Ok(found)
    }

    /// Every log that `wanted` says yes to, given its tenant.
    pub fn heads(&self, wanted: impl Fn(Option<&str>) -> bool) -> Result<Vec<Head>> {
        let relation = Relation::open(self.catalog.log, pg_sys::AccessShareLock);
        let (mut columns, mut found) = (Columns::default(), Vec::new());
        self.scratch.with(|| {
            scan(&relation, None, self.snapshot.raw(), &mut [], |tuple| {
                columns.deform(tuple, relation.descriptor());
                // SAFETY: tenant is text.
                if wanted(columns.get(log::TENANT).map(|value| unsafe { text(value) }).transpose()?) {
                    found.push(read_head(&columns)?);
                }
                Ok(())
            })
        })?;
        Ok(found)
    }

    /// A log's tree, full tiles and open ones.
    pub fn tree(&self, head: &Head) -> Result<Tree<'_>> {
        let relation = Relation::open(self.catalog.log, pg_sys::AccessShareLock);
        let (mut columns, mut open) = (Columns::default(), Vec::new());
        self.scratch.with(|| {
            scan(&relation, Some(self.catalog.log_pkey), self.snapshot.raw(), &mut [is_log(head.log_id)], |tuple| {
                columns.deform(tuple, relation.descriptor());
                // SAFETY: open_tiles is bytea.
                let bytes = columns.get(log::OPEN_TILES).map(|value| unsafe { varlena(value) });
                open = storage::split_open_tiles(&head.origin, head.size, bytes.unwrap_or_default())?;
                Ok(())
            })
        })?;
        Ok(Tree { stored: self, log_id: head.log_id, origin: head.origin.clone(), size: head.size, open })
    }

    // --------------------------------------------------------------------------------------------------------- tiles

    /// The bytes of a full tile's hashes. None: there is no such tile.
    pub fn hashes(&self, log_id: i32, level: u8, index: u64) -> Result<Option<Vec<u8>>> {
        self.column_of_tile(log_id, level, index, tile::HASHES, <[u8]>::to_vec)
    }

    /// The event keys of a full level-0 tile. None: there is no such tile.
    pub fn keys(&self, log_id: i32, index: u64) -> Result<Option<Vec<EventKey>>> {
        self.column_of_tile(log_id, 0, index, tile::EVENT_KEYS, |bytes| EventKey::read_all(bytes).collect())
    }

    /// The event keys of the level-0 tile that begins with this leaf, be it full or open.
    pub fn keys_from(&self, head: &Head, first: u64) -> Result<Vec<EventKey>> {
        let index = first / TILE_WIDTH;
        let is_open = index == head.size / TILE_WIDTH;
        let keys = if is_open { Some(head.open_keys.clone()) } else { self.keys(head.log_id, index)? };
        let wrong = |how: String| corrupted(format!("log {}: tile {index} of level 0 {how}", head.origin));
        let keys = keys.ok_or_else(|| wrong("is missing".into()))?;
        if keys.len() as u64 != (head.size - first).min(TILE_WIDTH) {
            return Err(wrong(format!("has the keys of {} events", keys.len())));
        }
        Ok(keys)
    }

    fn column_of_tile<T>(
        &self,
        log_id: i32,
        level: u8,
        index: u64,
        column: usize,
        read: impl Fn(&[u8]) -> T,
    ) -> Result<Option<T>> {
        let equal = pg_sys::BTEqualStrategyNumber;
        let mut keys = [
            is_log(log_id),
            key(tile::LEVEL, equal, pg_sys::F_INT2EQ, i16::from(level).into()),
            key(tile::TILE_INDEX, equal, pg_sys::F_INT8EQ, index.into()),
        ];
        let (mut columns, mut found) = (Columns::default(), None);
        self.scratch.with(|| {
            scan(&self.tiles, Some(self.catalog.tile_pkey), self.snapshot.raw(), &mut keys, |tuple| {
                columns.deform(tuple, self.tiles.descriptor());
                // SAFETY: only asked for columns that are bytea.
                found = Some(read(columns.get(column).map(|value| unsafe { varlena(value) }).unwrap_or_default()));
                Ok(())
            })
        })?;
        Ok(found)
    }

    /// The first and the last of the tiles that hold nothing but events with this stamp. None: there are no such tiles.
    pub fn tiles_of_one_transaction(&self, log_id: i32, stamp: i64) -> Result<Option<(u64, u64)>> {
        let edge = |direction| -> Result<Option<u64>> {
            let mut keys =
                [is_log(log_id), key(tile::FIRST_STAMP, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT8EQ, stamp.into())];
            let (mut columns, mut found) = (Columns::default(), None);
            let (index, snapshot) = (self.catalog.tile_of_one, self.snapshot.raw());
            self.scratch.with(|| {
                scan_directed(&self.tiles, index, snapshot, &mut keys, direction, |tuple| {
                    columns.deform(tuple, self.tiles.descriptor());
                    found = Some(number(&columns, tile::TILE_INDEX));
                    Ok(false)
                })
            })?;
            Ok(found)
        };
        let Some(first) = edge(ForwardScanDirection)? else { return Ok(None) };
        Ok(edge(BackwardScanDirection)?.map(|last| (first, last)))
    }

    /// The tiles of several transactions whose stamps span this one; those first that span least.
    pub fn tiles_of_several(&self, log_id: i32, stamp: i64) -> Result<Vec<u64>> {
        let point = pg_sys::Point { x: f64::from(log_id), y: stamp as f64 };
        let mut place = pg_sys::BOX { high: point, low: point };
        // The index is over an expression, and these have attribute number 0 (pg_index.indkey).
        let contains = pg_sys::RTContainsStrategyNumber;
        let mut keys = [scan_key(0, contains, pg_sys::F_BOX_CONTAIN, pg_sys::Datum::from(&raw mut place))];
        let (mut columns, mut found) = (Columns::default(), Vec::new());
        let (index, snapshot) = (self.catalog.tile_of_several, self.snapshot.raw());
        self.scratch.with(|| {
            scan_ordered(&self.tiles, index, snapshot, &mut keys, |tuple| {
                columns.deform(tuple, self.tiles.descriptor());
                let span = number(&columns, tile::LAST_STAMP).wrapping_sub(number(&columns, tile::FIRST_STAMP));
                found.push((span, number(&columns, tile::TILE_INDEX)));
                Ok(())
            })
        })?;
        // The others are wide because somebody committed late, and hold few such events.
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, index)| index).collect())
    }

    // ------------------------------------------------------------------------------------------------------- anchors

    /// The newest anchor of a log.
    pub fn newest_anchor(&self, head: &Head) -> Result<Option<Anchor>> {
        self.anchor(head, None, BackwardScanDirection)
    }

    /// The anchor at a size.
    pub fn anchor_at(&self, head: &Head, size: u64) -> Result<Option<Anchor>> {
        self.anchor(head, Some((pg_sys::BTEqualStrategyNumber, pg_sys::F_INT8EQ, size)), ForwardScanDirection)
    }

    /// The smallest anchor above a size.
    pub fn anchor_above(&self, head: &Head, size: u64) -> Result<Option<Anchor>> {
        self.anchor(head, Some((pg_sys::BTGreaterStrategyNumber, pg_sys::F_INT8GT, size)), ForwardScanDirection)
    }

    fn anchor(
        &self,
        head: &Head,
        size: Option<(u32, u32, u64)>,
        direction: pg_sys::ScanDirection::Type,
    ) -> Result<Option<Anchor>> {
        let relation = Relation::open(self.catalog.checkpoint, pg_sys::AccessShareLock);
        let mut keys = vec![is_log(head.log_id)];
        keys.extend(size.map(|(strategy, function, size)| key(checkpoint::TREE_SIZE, strategy, function, size.into())));
        let (mut columns, mut found) = (Columns::default(), None);
        let (index, snapshot) = (self.catalog.checkpoint_pkey, self.snapshot.raw());
        self.scratch.with(|| {
            scan_directed(&relation, index, snapshot, &mut keys, direction, |tuple| {
                columns.deform(tuple, relation.descriptor());
                let size = number(&columns, checkpoint::TREE_SIZE);
                // SAFETY: root_hash is bytea.
                let root = columns.get(checkpoint::ROOT_HASH).map(|value| unsafe { varlena(value) });
                let root = root.and_then(|root| root.try_into().ok());
                let root = root
                    .ok_or_else(|| corrupted(format!("log {}: the anchor at size {size} has no root", head.origin)))?;
                found = Some(Anchor { size, root });
                Ok(false)
            })
        })?;
        Ok(found)
    }

    /// The newest signed checkpoint that was published of a log, with its size, if it is above a size.
    pub fn newest_note(&self, head: &Head, above: u64) -> Result<Option<(u64, String)>> {
        let relation = Relation::open(named(c"publication")?, pg_sys::AccessShareLock);
        let mut keys = [
            is_log(head.log_id),
            key(checkpoint::TREE_SIZE, pg_sys::BTGreaterStrategyNumber, pg_sys::F_INT8GT, above.into()),
        ];
        let (mut columns, mut found) = (Columns::default(), None);
        let (index, snapshot) = (named(c"publication_pkey")?, self.snapshot.raw());
        self.scratch.with(|| {
            scan_directed(&relation, index, snapshot, &mut keys, BackwardScanDirection, |tuple| {
                columns.deform(tuple, relation.descriptor());
                if let Some(note) = columns.get(PUBLICATION_NOTE) {
                    // SAFETY: note is text.
                    found = Some((number(&columns, checkpoint::TREE_SIZE), unsafe { text(note) }?.to_owned()));
                }
                Ok(found.is_none())
            })
        })?;
        Ok(found)
    }
}

fn number(columns: &Columns, column: usize) -> u64 {
    columns.get(column).map_or(0, |value| value.value() as u64)
}

fn read_head(columns: &Columns) -> Result<Head> {
    // SAFETY: only asked for columns that are text.
    let string = |column| columns.get(column).map(|value| unsafe { text(value) }.map(str::to_owned)).transpose();
    // SAFETY: open_keys is bytea.
    let open_keys = columns.get(log::OPEN_KEYS).map(|value| unsafe { varlena(value) }).unwrap_or_default();
    Ok(Head {
        log_id: columns.get(log::LOG_ID).map_or(0, |value| value.value() as i32),
        origin: string(log::ORIGIN)?.unwrap_or_default(),
        tenant: string(log::TENANT)?,
        size: number(columns, log::SIZE),
        open_keys: EventKey::read_all(open_keys).collect(),
        incarnation: columns.get(log::INCARNATION).map_or(1, |value| value.value() as i32),
    })
}

/// A log's tree as its tiles hold it.
pub struct Tree<'s> {
    /// Where the full tiles are.
    pub stored: &'s Stored,
    /// Number of the log in this database.
    pub log_id: i32,
    /// The log's origin.
    pub origin: String,
    /// Leaves.
    pub size: u64,
    /// The partial tiles, level 0 first.
    pub open: Vec<Vec<Hash>>,
}

impl Tree<'_> {
    /// How many hashes a level has.
    fn hashes_at(&self, level: u8) -> u64 {
        self.size.checked_shr(8 * u32::from(level)).unwrap_or(0)
    }

    /// Is it a full tile?
    pub fn is_full(&self, level: u8, index: u64) -> bool {
        index < self.hashes_at(level) / TILE_WIDTH
    }

    /// The bytes of a tile, full or open. None: there is no such tile.
    pub fn bytes(&self, level: u8, index: u64) -> Result<Option<Vec<u8>>> {
        if self.is_full(level, index) {
            return self.stored.hashes(self.log_id, level, index);
        }
        let open = Some(usize::from(level)).filter(|_| index == self.hashes_at(level) / TILE_WIDTH);
        Ok(open.and_then(|level| self.open.get(level)).map(|hashes| hashes.as_flattened().to_vec()))
    }

    /// The hashes of a tile, full or open; none where there is no such tile.
    pub fn tile(&self, level: u8, index: u64) -> Result<Vec<Hash>> {
        storage::hashes(&self.bytes(level, index)?.unwrap_or_default())
    }

    /// A full tile's root must be the hash that the tile above holds for it. None: it is.
    pub fn problem_above(&self, level: u8, index: u64, hashes: &[Hash]) -> Result<Option<String>> {
        let (parent, position) = (index / TILE_WIDTH, (index % TILE_WIDTH) as usize);
        let above = self.tile(level + 1, parent)?;
        Ok((above.get(position) != Some(&root(hashes)))
            .then(|| format!("tile {parent} of level {} does not hold the root of tile {index} below it", level + 1)))
    }
}

/// The root of a tile.
fn root(hashes: &[Hash]) -> Hash {
    let mut range = CompactRange::new();
    for hash in hashes {
        range.push(*hash);
    }
    range.root()
}
