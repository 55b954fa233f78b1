//! The record: rows of agd.event and agd.transaction.
//!
//! Owns how a row gets there: straight into heap and index, without SQL, so that no trigger, rule, policy or privilege of
//! the writing user stands between a write and its record. Promises that a row exists when [`insert`] returns, or an
//! error was raised. Never updates a row; deletes only records of this very transaction whose write did not happen.
#![allow(unsafe_code)] // heap and index inserts

use crate::catalog::{Relation, catalog, to_varlena};
use crate::error::{Error, Result};
use crate::{nesting, transaction};
use agd_core::intent::Void;
use pgrx::pg_sys;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};

// Attributes of agd.event, from 0. sql/20_event.sql has the same order.
/// xact_id xid8
pub const EVENT_XACT_ID: usize = 0;
/// n int4
pub const EVENT_N: usize = 1;
/// at timestamptz
pub const EVENT_AT: usize = 2;
/// guard_id uuid
pub const EVENT_GUARD_ID: usize = 3;
/// tenant text
pub const EVENT_TENANT: usize = 4;
/// action text
pub const EVENT_ACTION: usize = 5;
/// relation text
pub const EVENT_RELATION: usize = 6;
/// salt bytea
pub const EVENT_SALT: usize = 7;
/// row_key json
pub const EVENT_ROW_KEY: usize = 8;
/// old json
pub const EVENT_OLD: usize = 9;
/// new json
pub const EVENT_NEW: usize = 10;
/// body text
pub const EVENT_BODY: usize = 11;
/// role_name text
pub const EVENT_ROLE: usize = 12;
const EVENT_COLUMNS: usize = 13;

// Attributes of agd.transaction, from 0.
/// xact_id xid8
pub const TRANSACTION_XACT_ID: usize = 0;
/// stamp timestamptz
pub const TRANSACTION_STAMP: usize = 1;
/// events int4
pub const TRANSACTION_EVENTS: usize = 2;
/// session_user_name text
pub const TRANSACTION_SESSION_USER: usize = 3;
/// role_name text
pub const TRANSACTION_ROLE: usize = 4;
/// principal text
pub const TRANSACTION_PRINCIPAL: usize = 5;
/// fleet_id text
pub const TRANSACTION_FLEET: usize = 6;
/// cause text
pub const TRANSACTION_CAUSE: usize = 7;
/// binding text
pub const TRANSACTION_BINDING: usize = 8;
/// application_name text
pub const TRANSACTION_APPLICATION: usize = 9;
/// client_addr text
pub const TRANSACTION_CLIENT: usize = 10;
const TRANSACTION_COLUMNS: usize = 11;

/// The longest cause: it stands in every entry of its transaction, and an entry has at most 65,535 bytes.
pub const MAX_CAUSE_BYTES: usize = 4096;

/// What happened, as it is recorded.
pub struct Record<'a> {
    /// INSERT, UPDATE, DELETE, TRUNCATE, BASELINE, GUARD, UNGUARD, CHECKPOINT, GUARD.STATE
    pub action: &'a str,
    /// None: the platform log.
    pub tenant: Option<&'a str>,
    /// Schema-qualified name of the guarded table.
    pub relation: Option<&'a str>,
    /// The guard's own id.
    pub guard_id: Option<[u8; 16]>,
    /// Images as varlena datums of type json.
    pub row_key: Option<pg_sys::Datum>,
    /// The row before.
    pub old: Option<pg_sys::Datum>,
    /// The row after.
    pub new: Option<pg_sys::Datum>,
    /// Text that goes into the log as it is.
    pub body: Option<&'a str>,
}

thread_local! {
    /// Salts: a generator of this backend, seeded from the operating system at its first use after the fork.
    static SALTS: RefCell<Option<ChaCha12Rng>> = const { RefCell::new(None) };
}

fn salt() -> [u8; 16] {
    let mut salt = [0; 16];
    SALTS.with_borrow_mut(|generator| generator.get_or_insert_with(seeded).fill_bytes(&mut salt));
    salt
}

fn seeded() -> ChaCha12Rng {
    let mut seed = [0u8; 32];
    // SAFETY: fills the buffer; false means that the operating system has no randomness to give.
    if !unsafe { pg_sys::pg_strong_random(seed.as_mut_ptr().cast(), seed.len()) } {
        Error::Internal("agd: no random numbers to be had from the operating system".into()).raise();
    }
    ChaCha12Rng::from_seed(seed)
}

fn xact_id() -> pg_sys::Datum {
    // SAFETY: assigns this transaction's id if it has none. Raises on a standby.
    pg_sys::Datum::from(unsafe { pg_sys::GetTopFullTransactionId() }.value)
}

/// An array of values and null marks for one tuple.
struct Tuple<const N: usize> {
    values: [pg_sys::Datum; N],
    nulls: [bool; N],
}

impl<const N: usize> Tuple<N> {
    fn new() -> Self {
        Tuple { values: [pg_sys::Datum::from(0); N], nulls: [true; N] }
    }

    fn set(&mut self, column: usize, value: impl Into<pg_sys::Datum>) {
        self.values[column] = value.into();
        self.nulls[column] = false;
    }

    fn set_text(&mut self, column: usize, value: Option<&str>) {
        if let Some(value) = value {
            self.set(column, to_varlena(value.as_bytes()));
        }
    }

    /// Inserts into heap and indexes. Returns where the tuple lies.
    fn insert(mut self, table: &OpenTable) -> (u32, u16) {
        // SAFETY: the tuple is formed with the relation's own descriptor, whose columns the constants above mirror;
        // the CatalogTuple functions are PostgreSQL's path for heap insert plus index inserts without an executor.
        unsafe {
            let descriptor = (*table.relation).rd_att;
            debug_assert_eq!((*descriptor).natts as usize, N);
            let tuple = pg_sys::heap_form_tuple(descriptor, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
            pg_sys::CatalogTupleInsertWithInfo(table.relation, tuple, table.indexes);
            let place = (*tuple).t_self;
            pg_sys::heap_freetuple(tuple);
            let block = (u32::from(place.ip_blkid.bi_hi) << 16) | u32::from(place.ip_blkid.bi_lo);
            (block, place.ip_posid)
        }
    }
}

/// A table of the record with its indexes, open for inserts.
#[derive(Clone, Copy)]
struct OpenTable {
    relation: pg_sys::Relation,
    indexes: pg_sys::CatalogIndexState,
}

impl OpenTable {
    fn open(oid: pg_sys::Oid) -> Self {
        // SAFETY: both are closed by close(), or by the resource owner on an error.
        unsafe {
            let relation = pg_sys::table_open(oid, pg_sys::RowExclusiveLock as pg_sys::LOCKMODE);
            OpenTable { relation, indexes: pg_sys::CatalogOpenIndexes(relation) }
        }
    }

    fn close(self) {
        // SAFETY: opened by open(), under the resource owner that is current again.
        unsafe {
            pg_sys::CatalogCloseIndexes(self.indexes);
            pg_sys::table_close(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }
}

/// agd.event kept open from the second event of a query to the query's end: opening it costs a fifth of recording a row.
#[derive(Clone, Copy)]
struct Kept {
    table: OpenTable,
    /// What `table.indexes` was allocated in.
    memory: pg_sys::MemoryContext,
    /// Which query keeps it.
    level: u32,
    subtransaction: u32,
    owner: pg_sys::ResourceOwner,
}

thread_local! {
    static KEPT: Cell<Option<Kept>> = const { Cell::new(None) };
    /// An event was recorded since a query began: this query records more than one row.
    static RECORDED_BEFORE: Cell<bool> = const { Cell::new(false) };
}

/// A query begins. One that records a single row is not worth keeping the table open for.
pub fn query_began() {
    RECORDED_BEFORE.set(false);
}

/// Does a query keep agd.event open? (The cheap question at the end of every query.)
pub fn is_kept_open() -> bool {
    KEPT.get().is_some()
}

/// A query of this level ended: what it kept open is closed.
pub fn query_ended(level: u32) {
    if let Some(kept) = KEPT.get()
        && kept.level >= level
    {
        KEPT.set(None);
        // SAFETY: the query's resource owner and the memory context made by insert_event() are both still there.
        unsafe {
            let owner = pg_sys::CurrentResourceOwner;
            pg_sys::CurrentResourceOwner = kept.owner;
            kept.table.close();
            pg_sys::CurrentResourceOwner = owner;
            pg_sys::MemoryContextDelete(kept.memory);
        }
    }
}

/// A subtransaction, or the transaction (0), was rolled back: its resource owner has closed what it kept open.
pub fn rolled_back(subtransaction: u32) {
    if let Some(kept) = KEPT.get()
        && kept.subtransaction >= subtransaction
    {
        KEPT.set(None);
        // SAFETY: made by insert_event(), not current: it is only while the table is being opened.
        unsafe { pg_sys::MemoryContextDelete(kept.memory) };
    }
}

fn insert_event(tuple: Tuple<EVENT_COLUMNS>) -> Result<(u32, u16)> {
    let (level, subtransaction) = (nesting::level(), transaction::subtransaction());
    // SAFETY: reads a process global.
    let owner = unsafe { pg_sys::CurrentResourceOwner };
    if let Some(kept) = KEPT.get()
        && (kept.level, kept.subtransaction, kept.owner) == (level, subtransaction, owner)
    {
        return Ok(tuple.insert(&kept.table));
    }
    let again = RECORDED_BEFORE.replace(true);
    // Level 0 has no end that would be told; and one query at a time keeps it.
    if again && level > 0 && KEPT.get().is_none() {
        // SAFETY: a memory context that outlives the row's; the transaction's end frees it at the latest.
        let (table, memory) = unsafe {
            let memory = pg_sys::AllocSetContextCreateExtended(
                pg_sys::TopTransactionContext,
                c"agd.event kept open".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            );
            let outer = pg_sys::MemoryContextSwitchTo(memory);
            let table = OpenTable::open(catalog()?.event);
            pg_sys::MemoryContextSwitchTo(outer);
            (table, memory)
        };
        KEPT.set(Some(Kept { table, memory, level, subtransaction, owner }));
        return Ok(tuple.insert(&table));
    }
    let table = OpenTable::open(catalog()?.event);
    let place = tuple.insert(&table);
    table.close();
    Ok(place)
}

/// Inserts an event of this transaction. Returns where it lies.
pub fn insert(record: &Record<'_>) -> Result<(u32, u16)> {
    let (n, other_role) = transaction::next_event()?;
    let mut tuple = Tuple::<EVENT_COLUMNS>::new();
    tuple.set(EVENT_XACT_ID, xact_id());
    tuple.set(EVENT_N, pg_sys::Datum::from(n));
    // SAFETY: reads the clock.
    tuple.set(EVENT_AT, pg_sys::Datum::from(unsafe { pg_sys::GetCurrentTimestamp() }));
    if let Some(guard_id) = &record.guard_id {
        tuple.set(EVENT_GUARD_ID, pg_sys::Datum::from(guard_id.as_ptr()));
    }
    tuple.set_text(EVENT_TENANT, record.tenant);
    tuple.set_text(EVENT_ACTION, Some(record.action));
    tuple.set_text(EVENT_RELATION, record.relation);
    tuple.set(EVENT_SALT, to_varlena(&salt()));
    for (column, image) in [(EVENT_ROW_KEY, record.row_key), (EVENT_OLD, record.old), (EVENT_NEW, record.new)] {
        if let Some(image) = image {
            tuple.set(column, image);
        }
    }
    tuple.set_text(EVENT_BODY, record.body);
    tuple.set_text(EVENT_ROLE, other_role.as_deref());
    let place = insert_event(tuple)?;
    transaction::event_recorded();
    Ok(place)
}

/// Withdraws records of this transaction whose write did not happen.
pub fn delete(voids: &[Void]) {
    let catalog = match catalog() {
        Ok(catalog) => catalog,
        Err(error) => error.raise(),
    };
    // SAFETY: the tuples were inserted by this transaction and nobody else can see them. The command counter is
    // advanced so that they are visible to the delete; detoasting them for it needs an active snapshot, which a
    // pre-commit callback does not have.
    unsafe {
        pg_sys::CommandCounterIncrement();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let relation = Relation::open(catalog.event, pg_sys::RowExclusiveLock);
        for void in voids {
            let mut place = pg_sys::ItemPointerData {
                ip_blkid: pg_sys::BlockIdData { bi_hi: (void.block >> 16) as u16, bi_lo: void.block as u16 },
                ip_posid: void.offset,
            };
            pg_sys::simple_heap_delete(relation.0, &mut place);
        }
        drop(relation);
        pg_sys::PopActiveSnapshot();
        pg_sys::CommandCounterIncrement();
    }
}

/// The row that closes a transaction.
pub struct TransactionRecord {
    /// Commit stamp, microseconds since PostgreSQL's epoch.
    pub stamp: i64,
    /// Number of events that stand.
    pub events: i32,
    /// Who authenticated.
    pub session_user_name: String,
    /// The role at the first event (SET ROLE).
    pub role_name: String,
    /// The principal a tenant binding names.
    pub principal: Option<String>,
    /// Why.
    pub cause: Option<String>,
    /// How the tenant was bound.
    pub binding: &'static str,
    /// application_name, if set.
    pub application_name: Option<String>,
    /// The client's address, if it came over the network.
    pub client_addr: Option<String>,
}

/// Inserts the transaction's record.
pub fn insert_transaction(record: &TransactionRecord) -> Result<()> {
    let mut tuple = Tuple::<TRANSACTION_COLUMNS>::new();
    tuple.set(TRANSACTION_XACT_ID, xact_id());
    tuple.set(TRANSACTION_STAMP, pg_sys::Datum::from(record.stamp));
    tuple.set(TRANSACTION_EVENTS, pg_sys::Datum::from(record.events));
    tuple.set_text(TRANSACTION_SESSION_USER, Some(&record.session_user_name));
    tuple.set_text(TRANSACTION_ROLE, Some(&record.role_name));
    tuple.set_text(TRANSACTION_PRINCIPAL, record.principal.as_deref());
    tuple.set_text(TRANSACTION_FLEET, None);
    tuple.set_text(TRANSACTION_CAUSE, record.cause.as_deref());
    tuple.set_text(TRANSACTION_BINDING, Some(record.binding));
    tuple.set_text(TRANSACTION_APPLICATION, record.application_name.as_deref());
    tuple.set_text(TRANSACTION_CLIENT, record.client_addr.as_deref());
    let table = OpenTable::open(catalog()?.transaction);
    tuple.insert(&table);
    table.close();
    Ok(())
}

/// application_name of this session, None when empty.
pub fn application_name() -> Option<String> {
    // SAFETY: the GUC's C string lives until it is set again.
    unsafe {
        if pg_sys::application_name.is_null() {
            return None;
        }
        let name = std::ffi::CStr::from_ptr(pg_sys::application_name).to_string_lossy();
        (!name.is_empty()).then(|| name.into_owned())
    }
}

/// The client's network address, None for a unix socket or a background process. Fixed for the life of a backend.
pub fn client_address() -> Option<String> {
    thread_local! {
        static ADDRESS: std::cell::OnceCell<Option<String>> = const { std::cell::OnceCell::new() };
    }
    ADDRESS.with(|address| {
        address
            .get_or_init(|| {
                // SAFETY: a built-in function without arguments; None when there is no client or no network.
                unsafe { pgrx::direct_function_call::<pgrx::datum::Inet>(pg_sys::inet_client_addr, &[]) }
                    .map(|address| address.to_string())
            })
            .clone()
    })
}
