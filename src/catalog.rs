//! Where agd's own tables are, and how the backend reads them without SQL.
//!
//! Owns the cached oids of agd's relations, a small index-scan helper, and locks under those oids. Promises that a stale oid is never used: the
//! cache empties on every relation-cache invalidation that touches it. Reads here bypass privileges on purpose: they
//! serve the gate, not the user.
#![allow(unsafe_code)] // relation and scan descriptors are raw backend structures

use crate::error::{Error, Result};
use crate::fleet;
use pgrx::{pg_guard, pg_sys};
use std::cell::Cell;
use std::ffi::CStr;

/// The oids of agd's relations.
#[derive(Clone, Copy, Debug)]
pub struct Catalog {
    /// agd.event
    pub event: pg_sys::Oid,
    /// agd.event_pkey on (xact_id, n)
    pub event_pkey: pg_sys::Oid,
    /// agd.transaction
    pub transaction: pg_sys::Oid,
    /// agd.transaction_pkey on (xact_id)
    pub transaction_pkey: pg_sys::Oid,
    /// agd.guarded_table
    pub guarded_table: pg_sys::Oid,
    /// agd.guarded_table_pkey on (guard_id)
    pub guarded_table_pkey: pg_sys::Oid,
    /// agd.guarded_table_relation_key on (relation)
    pub guarded_table_relation_key: pg_sys::Oid,
    /// agd.tenant
    pub tenant: pg_sys::Oid,
    /// agd.tenant_pkey on (tenant)
    pub tenant_pkey: pg_sys::Oid,
    /// agd.role_map
    pub role_map: pg_sys::Oid,
    /// agd.role_map_pkey on (role)
    pub role_map_pkey: pg_sys::Oid,
    /// agd.tenant_key
    pub tenant_key: pg_sys::Oid,
    /// agd.tenant_key_pkey on (kid)
    pub tenant_key_pkey: pg_sys::Oid,
    /// agd.log_key
    pub log_key: pg_sys::Oid,
    /// agd.tenant_agent_fleet
    pub tenant_agent_fleet: pg_sys::Oid,
    /// agd.tenant_agent_fleet_pkey on (fleet_id)
    pub tenant_agent_fleet_pkey: pg_sys::Oid,
    /// agd.sequencer
    pub sequencer: pg_sys::Oid,
    /// agd.log
    pub log: pg_sys::Oid,
    /// agd.log_pkey on (log_id)
    pub log_pkey: pg_sys::Oid,
    /// agd.log_origin_key on (origin)
    pub log_origin_key: pg_sys::Oid,
    /// agd.log_tenant_key on (tenant)
    pub log_tenant_key: pg_sys::Oid,
    /// agd.log_platform: the platform log alone
    pub log_platform: pg_sys::Oid,
    /// agd.tile
    pub tile: pg_sys::Oid,
    /// agd.tile_pkey on (log_id, level, tile_index)
    pub tile_pkey: pg_sys::Oid,
    /// agd.tile_of_one on (log_id, first_stamp, tile_index)
    pub tile_of_one: pg_sys::Oid,
    /// agd.tile_of_several, an R-tree over the ranges of their stamps
    pub tile_of_several: pg_sys::Oid,
    /// agd.checkpoint
    pub checkpoint: pg_sys::Oid,
    /// agd.checkpoint_pkey on (log_id, tree_size)
    pub checkpoint_pkey: pg_sys::Oid,
    /// agd.home
    pub home: pg_sys::Oid,
}

impl Catalog {
    fn all(&self) -> [pg_sys::Oid; 29] {
        [
            self.event,
            self.event_pkey,
            self.transaction,
            self.transaction_pkey,
            self.guarded_table,
            self.guarded_table_pkey,
            self.guarded_table_relation_key,
            self.tenant,
            self.tenant_pkey,
            self.role_map,
            self.role_map_pkey,
            self.tenant_key,
            self.tenant_key_pkey,
            self.log_key,
            self.tenant_agent_fleet,
            self.tenant_agent_fleet_pkey,
            self.sequencer,
            self.log,
            self.log_pkey,
            self.log_origin_key,
            self.log_tenant_key,
            self.log_platform,
            self.tile,
            self.tile_pkey,
            self.tile_of_one,
            self.tile_of_several,
            self.checkpoint,
            self.checkpoint_pkey,
            self.home,
        ]
    }
}

impl Catalog {
    /// Is it one of agd's own tables that are behind the gate? (The same list: agd.every_guard, sql/30_guard.sql.)
    pub fn has_own_guard(&self, relation: pg_sys::Oid) -> bool {
        [self.tenant, self.role_map, self.tenant_key, self.log_key, self.guarded_table].contains(&relation)
            || fleet::table(relation).is_some()
    }
}

thread_local! {
    static CATALOG: Cell<Option<Catalog>> = const { Cell::new(None) };
}

/// Registers the invalidation callback. Called once from `_PG_init`; backends inherit it through fork.
pub fn init() {
    // SAFETY: a static function and no argument.
    unsafe { pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::from(0)) };
}

#[pg_guard]
unsafe extern "C-unwind" fn relation_changed(_argument: pg_sys::Datum, relation: pg_sys::Oid) {
    if crate::memory::is_ending() {
        return;
    }
    let everything = relation == pg_sys::InvalidOid;
    if let Some(catalog) = CATALOG.get()
        && (everything || catalog.all().contains(&relation))
    {
        CATALOG.set(None);
        crate::tenant::forget_cached();
        // Any of them: once the oids are forgotten, a change to agd.guarded_table that follows is not recognised as one.
        crate::guard::relation::forget(pg_sys::InvalidOid);
    }
    crate::guard::relation::forget(relation);
    crate::log::sequencer::forget_guard_state();
}

/// The oids, looked up once and kept until something changes. 55000 when the extension is not in this database.
pub fn catalog() -> Result<Catalog> {
    if let Some(catalog) = CATALOG.get() {
        return Ok(catalog);
    }
    let found = Catalog {
        event: named(c"event")?,
        event_pkey: named(c"event_pkey")?,
        transaction: named(c"transaction")?,
        transaction_pkey: named(c"transaction_pkey")?,
        guarded_table: named(c"guarded_table")?,
        guarded_table_pkey: named(c"guarded_table_pkey")?,
        guarded_table_relation_key: named(c"guarded_table_relation_key")?,
        tenant: named(c"tenant")?,
        tenant_pkey: named(c"tenant_pkey")?,
        role_map: named(c"role_map")?,
        role_map_pkey: named(c"role_map_pkey")?,
        tenant_key: named(c"tenant_key")?,
        tenant_key_pkey: named(c"tenant_key_pkey")?,
        log_key: named(c"log_key")?,
        tenant_agent_fleet: named(c"tenant_agent_fleet")?,
        tenant_agent_fleet_pkey: named(c"tenant_agent_fleet_pkey")?,
        sequencer: named(c"sequencer")?,
        log: named(c"log")?,
        log_pkey: named(c"log_pkey")?,
        log_origin_key: named(c"log_origin_key")?,
        log_tenant_key: named(c"log_tenant_key")?,
        log_platform: named(c"log_platform")?,
        tile: named(c"tile")?,
        tile_pkey: named(c"tile_pkey")?,
        tile_of_one: named(c"tile_of_one")?,
        tile_of_several: named(c"tile_of_several")?,
        checkpoint: named(c"checkpoint")?,
        checkpoint_pkey: named(c"checkpoint_pkey")?,
        home: named(c"home")?,
    };
    CATALOG.set(Some(found));
    Ok(found)
}

/// Is the extension installed? It is not once DROP EXTENSION ran in this transaction.
pub fn is_installed() -> bool {
    // A drop invalidates what is cached.
    // SAFETY: a catalog look-up.
    CATALOG.get().is_some() || unsafe { pg_sys::get_extension_oid(c"agd".as_ptr(), true) } != pg_sys::InvalidOid
}

/// Where a column stands in a row, from 0. For tables that are not read on the hot path.
pub fn column(table: pg_sys::Oid, name: &CStr) -> Result<usize> {
    // SAFETY: a catalog look-up; 0 for a column that is not there.
    let number = unsafe { pg_sys::get_attnum(table, name.as_ptr()) };
    usize::try_from(i32::from(number) - 1)
        .map_err(|_| Error::Internal(format!("agd: one of its tables has no column {}", name.to_string_lossy())))
}

/// The oid of a relation of agd's by its name, for those that are not needed on the hot path.
pub fn named(name: &CStr) -> Result<pg_sys::Oid> {
    // SAFETY: plain catalog look-ups inside a transaction; an unknown name gives InvalidOid.
    let (schema, oid) = unsafe {
        let schema = pg_sys::get_namespace_oid(c"agd".as_ptr(), true);
        (schema, pg_sys::get_relname_relid(name.as_ptr(), schema))
    };
    if schema == pg_sys::InvalidOid || oid == pg_sys::InvalidOid {
        return Err(Error::WrongState {
            message: "the extension agd is not installed in this database".into(),
            hint: "Run CREATE EXTENSION agd.".into(),
        });
    }
    Ok(oid)
}

/// An open relation; closed on drop, its lock kept until the transaction ends.
pub struct Relation(pub pg_sys::Relation);

impl Relation {
    /// Opens a table under the given lock.
    pub fn open(oid: pg_sys::Oid, lock: u32) -> Self {
        // SAFETY: table_open raises for a relation that is gone.
        Relation(unsafe { pg_sys::table_open(oid, lock as pg_sys::LOCKMODE) })
    }

    /// Its row type.
    pub fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: an open relation has a descriptor.
        unsafe { (*self.0).rd_att }
    }
}

impl Drop for Relation {
    fn drop(&mut self) {
        // On a PostgreSQL error the resource owner closes the relation: unwinding leaves it alone.
        if !std::thread::panicking() {
            // SAFETY: opened by open(), closed once.
            unsafe { pg_sys::table_close(self.0, pg_sys::NoLock as pg_sys::LOCKMODE) };
        }
    }
}

/// What a scan sees; alive as long as this.
pub struct Snapshot {
    raw: pg_sys::Snapshot,
    registered: bool,
}

impl Snapshot {
    /// The active one, which the calling query sees. It outlives every function that the query calls.
    pub fn active() -> Self {
        // SAFETY: PostgreSQL calls no function of ours without one; the worker pushes its own.
        Snapshot { raw: unsafe { pg_sys::GetActiveSnapshot() }, registered: false }
    }

    /// The newest: it sees everything that any row read before can speak of.
    pub fn latest() -> Self {
        // SAFETY: registered here, let go of on drop.
        Snapshot { raw: unsafe { pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot()) }, registered: true }
    }

    /// For [`scan`] and its like.
    pub fn raw(&self) -> pg_sys::Snapshot {
        self.raw
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if self.registered && !std::thread::panicking() {
            // SAFETY: registered by latest(); after an error the resource owner has let go of it.
            unsafe { pg_sys::UnregisterSnapshot(self.raw) };
        }
    }
}

/// Locks a number under one of agd's tables until the transaction ends. 48 bits of it count: who falls on the same ones
/// waits in vain, no more.
pub fn lock_number(table: pg_sys::Oid, number: u64, mode: u32) {
    // SAFETY: a heavyweight lock, inside a transaction. Nothing else locks objects of this class.
    unsafe {
        pg_sys::LockDatabaseObject(
            table,
            pg_sys::Oid::from_u32(number as u32),
            (number >> 32) as u16,
            mode as pg_sys::LOCKMODE,
        );
    }
}

/// Lets go of what [`lock_number`] locked in this transaction.
pub fn unlock_number(table: pg_sys::Oid, number: u64, mode: u32) {
    // SAFETY: as there.
    unsafe {
        pg_sys::UnlockDatabaseObject(
            table,
            pg_sys::Oid::from_u32(number as u32),
            (number >> 32) as u16,
            mode as pg_sys::LOCKMODE,
        );
    }
}

/// A key of an index scan: attribute number (from 1), equality or range strategy, the comparing function, the value.
pub fn scan_key(attribute: i16, strategy: u32, function: u32, value: pg_sys::Datum) -> pg_sys::ScanKeyData {
    let mut key = pg_sys::ScanKeyData::default();
    // SAFETY: fills the key in place; `function` is a built-in comparison.
    unsafe {
        pg_sys::ScanKeyInit(&mut key, attribute, strategy as pg_sys::StrategyNumber, pg_sys::Oid::from(function), value)
    };
    key
}

/// Calls `row` with every tuple that matches, through an index when one is given, else by a full scan.
/// `snapshot` null: the latest committed state.
pub fn scan(
    relation: &Relation,
    index: Option<pg_sys::Oid>,
    snapshot: pg_sys::Snapshot,
    keys: &mut [pg_sys::ScanKeyData],
    mut row: impl FnMut(pg_sys::HeapTuple) -> Result<()>,
) -> Result<()> {
    // SAFETY: the scan lives inside this function; tuples are only lent to `row`.
    unsafe {
        let scan = pg_sys::systable_beginscan(
            relation.0,
            index.unwrap_or(pg_sys::InvalidOid),
            index.is_some(),
            snapshot,
            keys.len() as i32,
            keys.as_mut_ptr(),
        );
        let outcome = walk(|| pg_sys::systable_getnext(scan), |tuple| row(tuple).map(|()| true));
        pg_sys::systable_endscan(scan);
        outcome
    }
}

/// Has a table a row, by its latest committed state and what this transaction did?
pub fn has_rows(table: pg_sys::Oid) -> Result<bool> {
    let relation = Relation::open(table, pg_sys::AccessShareLock);
    let mut found = false;
    // SAFETY: the scan lives inside this block.
    unsafe {
        let (snapshot, keys) = (std::ptr::null_mut(), std::ptr::null_mut());
        let scan = pg_sys::systable_beginscan(relation.0, pg_sys::InvalidOid, false, snapshot, 0, keys);
        let outcome = walk(
            || pg_sys::systable_getnext(scan),
            |_| {
                found = true;
                Ok(false)
            },
        );
        pg_sys::systable_endscan(scan);
        outcome.map(|()| found)
    }
}

/// Like [`scan`], in the index's order.
pub fn scan_ordered(
    relation: &Relation,
    index: pg_sys::Oid,
    snapshot: pg_sys::Snapshot,
    keys: &mut [pg_sys::ScanKeyData],
    mut row: impl FnMut(pg_sys::HeapTuple) -> Result<()>,
) -> Result<()> {
    scan_directed(relation, index, snapshot, keys, pg_sys::ScanDirection::ForwardScanDirection, |tuple| {
        row(tuple).map(|()| true)
    })
}

/// Like [`scan_ordered`], in either direction and until `row` says false.
pub fn scan_directed(
    relation: &Relation,
    index: pg_sys::Oid,
    snapshot: pg_sys::Snapshot,
    keys: &mut [pg_sys::ScanKeyData],
    direction: pg_sys::ScanDirection::Type,
    row: impl FnMut(pg_sys::HeapTuple) -> Result<bool>,
) -> Result<()> {
    // SAFETY: index and scan live inside this function; tuples are only lent to `row`.
    unsafe {
        let index = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let scan =
            pg_sys::systable_beginscan_ordered(relation.0, index, snapshot, keys.len() as i32, keys.as_mut_ptr());
        let outcome = walk(|| pg_sys::systable_getnext_ordered(scan, direction), row);
        pg_sys::systable_endscan_ordered(scan);
        pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        outcome
    }
}

/// An ordered index scan that can be aimed anew again and again: much cheaper than a scan for each look-up.
///
/// For indexes whose columns are the first ones of their table, in this order: agd's primary keys.
pub struct Seek {
    /// Where the scan's own memory is: whoever calls may reset the context that is current then.
    memory: pg_sys::MemoryContext,
    scan: pg_sys::SysScanDesc,
    index: pg_sys::Relation,
    keys: Vec<pg_sys::ScanKeyData>,
    relation: Relation,
}

impl Seek {
    /// A scan under a snapshot, which outlives it, as `memory` does. The values in `keys` are those of [`Seek::aim`]. With no
    /// keys it stands before the first row; else it must be aimed first.
    pub fn new(
        memory: pg_sys::MemoryContext,
        table: pg_sys::Oid,
        index: pg_sys::Oid,
        snapshot: pg_sys::Snapshot,
        keys: Vec<pg_sys::ScanKeyData>,
    ) -> Self {
        let relation = Relation::open(table, pg_sys::AccessShareLock);
        // Some versions of PostgreSQL put the index's column numbers into what they are given.
        let mut given = keys.clone();
        // SAFETY: index and scan are closed on drop, the scan first; the keys' values are not looked at before the first row
        // is asked for.
        within(memory, || unsafe {
            let index = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            let scan =
                pg_sys::systable_beginscan_ordered(relation.0, index, snapshot, given.len() as i32, given.as_mut_ptr());
            Seek { memory, scan, index, keys, relation }
        })
    }

    /// Puts the scan before the first row that fits the keys with these values.
    pub fn aim(&mut self, values: &[pg_sys::Datum]) {
        for (key, value) in self.keys.iter_mut().zip(values) {
            key.sk_argument = *value;
        }
        // SAFETY: an open scan, and as many keys as it was begun with.
        within(self.memory, || unsafe {
            let (keys, none) = (self.keys.as_mut_ptr(), std::ptr::null_mut());
            pg_sys::index_rescan((*self.scan).iscan, keys, self.keys.len() as i32, none, 0);
        });
    }

    /// The next row, in the index's order. It is valid until the scan is used again.
    pub fn next(&mut self) -> Option<pg_sys::HeapTuple> {
        let forward = pg_sys::ScanDirection::ForwardScanDirection;
        // SAFETY: an open scan.
        let tuple = within(self.memory, || unsafe { pg_sys::systable_getnext_ordered(self.scan, forward) });
        (!tuple.is_null()).then_some(tuple)
    }

    /// The table's row type.
    pub fn descriptor(&self) -> pg_sys::TupleDesc {
        self.relation.descriptor()
    }
}

impl Drop for Seek {
    fn drop(&mut self) {
        // On a PostgreSQL error the resource owner lets go of everything.
        if !std::thread::panicking() {
            // SAFETY: opened by new(), closed once; the table is closed after its scan.
            unsafe {
                pg_sys::systable_endscan_ordered(self.scan);
                pg_sys::index_close(self.index, pg_sys::NoLock as pg_sys::LOCKMODE);
            }
        }
    }
}

/// Hands on tuple by tuple, until there is none, `row` says false, or it fails.
fn walk(
    mut next: impl FnMut() -> pg_sys::HeapTuple,
    mut row: impl FnMut(pg_sys::HeapTuple) -> Result<bool>,
) -> Result<()> {
    loop {
        let tuple = next();
        if tuple.is_null() || !row(tuple)? {
            return Ok(());
        }
    }
}

/// Runs `body` with this memory context current. An error resets it by itself.
fn within<T>(memory: pg_sys::MemoryContext, body: impl FnOnce() -> T) -> T {
    // SAFETY: a context that is alive; the outer one is put back.
    unsafe {
        let outer = pg_sys::MemoryContextSwitchTo(memory);
        let result = body();
        pg_sys::MemoryContextSwitchTo(outer);
        result
    }
}

/// A memory context for one row or one transaction at a time.
pub struct Scratch(pg_sys::MemoryContext);

impl Scratch {
    /// A child of the current memory context.
    pub fn new() -> Self {
        // SAFETY: creates a context; it goes with its parent at the latest.
        Scratch(unsafe {
            pg_sys::AllocSetContextCreateExtended(
                pg_sys::CurrentMemoryContext,
                c"agd scratch".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            )
        })
    }

    /// Runs `body` with this context current, then frees all that it allocated.
    pub fn with<T>(&self, body: impl FnOnce() -> T) -> T {
        // SAFETY: the context is alive; nothing allocated in it leaves `body` (results are Rust values). On an error
        // PostgreSQL itself switches back and frees.
        unsafe {
            let outer = pg_sys::MemoryContextSwitchTo(self.0);
            let result = body();
            pg_sys::MemoryContextSwitchTo(outer);
            // Most rows need nothing: then there is nothing to free.
            if !(*self.0).isReset {
                pg_sys::MemoryContextReset(self.0);
            }
            result
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: created by new(), not current any more.
            unsafe { pg_sys::MemoryContextDelete(self.0) };
        }
    }
}

/// One attribute of a row type.
///
/// # Safety
/// The descriptor is alive, and `index` (from 0) is below its natts.
pub unsafe fn attribute(descriptor: pg_sys::TupleDesc, index: usize) -> *const pg_sys::FormData_pg_attribute {
    // SAFETY: the caller vouches for both.
    unsafe {
        #[cfg(feature = "pg18")]
        {
            pg_sys::TupleDescAttr(descriptor, index as i32)
        }
        #[cfg(not(feature = "pg18"))]
        {
            (*descriptor).attrs.as_ptr().add(index)
        }
    }
}

/// Reusable arrays for taking a tuple apart.
#[derive(Default)]
pub struct Columns {
    values: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
}

impl Columns {
    /// Takes a tuple apart. Attributes that were added after the row was stored have their default.
    pub fn deform(&mut self, tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc) {
        // SAFETY: both arrays have one slot per attribute of the descriptor.
        unsafe {
            let count = (*descriptor).natts as usize;
            self.values.resize(count, pg_sys::Datum::from(0));
            self.nulls.resize(count, true);
            pg_sys::heap_deform_tuple(tuple, descriptor, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
    }

    /// Fetches the large values that an UPDATE left alone, once for both rows: those that are stored out of line, in the same
    /// place. Every look at one of them would fetch it again.
    pub fn fetch_unchanged(&mut self, new: &mut Columns, descriptor: pg_sys::TupleDesc) {
        for index in 0..self.values.len().min(new.values.len()) {
            // SAFETY: there are as many attributes as values (`deform`).
            let attribute = unsafe { &*attribute(descriptor, index) };
            if attribute.attlen != -1 || self.nulls[index] || new.nulls[index] {
                continue;
            }
            let (old, new) = (&mut self.values[index], &mut new.values[index]);
            // SAFETY: attlen -1 is a varlena, and one that is stored out of line is a header and a pointer, as long as it says.
            unsafe {
                let pointer = |value: pg_sys::Datum| {
                    let value = value.cast_mut_ptr::<pg_sys::varlena>();
                    pgrx::varatt_is_1b_e(value)
                        .then(|| std::slice::from_raw_parts(value.cast::<u8>(), pgrx::varsize_external(value)))
                };
                if pointer(*old).is_some() && pointer(*old) == pointer(*new) {
                    *old = pg_sys::Datum::from(pg_sys::pg_detoast_datum(old.cast_mut_ptr()));
                    *new = *old;
                }
            }
        }
    }

    /// The value at an index from 0; None: SQL NULL.
    pub fn get(&self, index: usize) -> Option<pg_sys::Datum> {
        (!self.nulls[index]).then(|| self.values[index])
    }
}

/// Bytes of a varlena value (text, json, bytea), detoasted if need be. Valid while the tuple is, and until the memory
/// context is reset.
///
/// # Safety
/// `value` must be a varlena datum.
pub unsafe fn varlena<'a>(value: pg_sys::Datum) -> &'a [u8] {
    // SAFETY: the caller vouches for the type; pg_detoast_datum_packed returns a plain or short varlena.
    unsafe {
        let stored = value.cast_mut_ptr::<pg_sys::varlena>();
        // Most values lie in the tuple as they are: a look at the first byte tells, and a guarded call would cost more.
        let plain = pgrx::varatt_is_4b_u(stored) || pgrx::varatt_is_1b(stored) && !pgrx::varatt_is_1b_e(stored);
        let packed = if plain { stored } else { pg_sys::pg_detoast_datum_packed(stored) };
        let length = pgrx::varsize_any_exhdr(packed);
        std::slice::from_raw_parts(pgrx::vardata_any(packed).cast::<u8>(), length)
    }
}

/// A varlena value that is text.
///
/// # Safety
/// `value` must be a text-like datum of a UTF-8 database.
pub unsafe fn text<'a>(value: pg_sys::Datum) -> Result<&'a str> {
    // SAFETY: passed on to the caller.
    std::str::from_utf8(unsafe { varlena(value) }).map_err(|_| Error::Internal("agd: a text value is not UTF-8".into()))
}

/// Copies bytes into a varlena that lives in the current memory context.
pub fn to_varlena(bytes: &[u8]) -> pg_sys::Datum {
    // SAFETY: palloc gives room for the header and the bytes; sizes over 1 GB are refused by palloc itself.
    unsafe {
        let size = bytes.len() + pg_sys::VARHDRSZ;
        let varlena = pg_sys::palloc(size).cast::<pg_sys::varlena>();
        pgrx::set_varsize_4b(varlena, size as i32);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), varlena.cast::<u8>().add(pg_sys::VARHDRSZ), bytes.len());
        pg_sys::Datum::from(varlena)
    }
}
