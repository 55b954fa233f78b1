//! The record: rows of agd.event and agd.transaction.
//!
//! Owns how a row gets there: straight into heap and index, without SQL, so that no trigger, rule, policy or privilege of
//! the writing user stands between a write and its record. Promises that a row exists when [`insert`] returns, or an
//! error was raised. Never updates a row; deletes only records of this very transaction whose write did not happen.
#![allow(unsafe_code)] // heap and index inserts

use crate::append::{KeptOpen, Row, Stored, Table};
use crate::catalog::{Columns, Relation, catalog};
use crate::error::{Error, Result};
use crate::guard::image::RowFormat;
use crate::{backend, home, transaction};
use agd_core::entry;
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
const EVENT_STORED: [Stored; EVENT_COLUMNS] = {
    let mut columns = [Stored::Bytes; EVENT_COLUMNS];
    columns[EVENT_XACT_ID] = Stored::Eight;
    columns[EVENT_N] = Stored::Four;
    columns[EVENT_AT] = Stored::Eight;
    columns[EVENT_GUARD_ID] = Stored::Uuid;
    columns
};

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
const TRANSACTION_STORED: [Stored; TRANSACTION_COLUMNS] = {
    let mut columns = [Stored::Bytes; TRANSACTION_COLUMNS];
    columns[TRANSACTION_XACT_ID] = Stored::Eight;
    columns[TRANSACTION_STAMP] = Stored::Eight;
    columns[TRANSACTION_EVENTS] = Stored::Four;
    columns
};

/// The largest image of a row: what jsonb holds, less a bit for its own structure, so that what is recorded can be read and
/// verified. Three of them fit into one tuple.
pub const MAX_IMAGE_BYTES: usize = 250 << 20;

/// 54000 for an image that is too large.
pub fn check_image_size(bytes: usize) {
    if bytes > MAX_IMAGE_BYTES {
        Error::LimitExceeded {
            message: format!("a row whose image has {bytes} bytes or more cannot be recorded"),
            hint: format!(
                "At most {} MB: text with its escapes, bytea as two digits a byte. Keep such values in large objects or \
                 outside of the database, and their digest in the row.",
                MAX_IMAGE_BYTES >> 20
            ),
        }
        .raise();
    }
}

/// The longest cause: it stands in every entry of its transaction, and an entry has at most 65,535 bytes.
pub const MAX_CAUSE_BYTES: usize = 4096;

/// A row image, written when its event is.
#[derive(Clone, Copy)]
pub enum Image<'a> {
    /// Every column.
    Row(&'a RowFormat, &'a Columns),
    /// The primary key's columns.
    Key(&'a RowFormat, &'a Columns),
    /// Something that is no row, as JSON.
    Json(&'a [u8]),
}

impl Image<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Image::Row(format, row) => format.write_image(row, out),
            Image::Key(format, row) => format.write_key(row, out),
            Image::Json(json) => out.extend_from_slice(json),
        }
    }
}

/// What happened, as it is recorded.
pub struct Record<'a> {
    /// INSERT, UPDATE, DELETE, TRUNCATE, BASELINE, GUARD, UNGUARD, UNMAP, DDL, CHECKPOINT, GUARD.STATE, DENIED, DENIED.OVERFLOW,
    /// RESUME, TIMELINE, INCARNATION, LOG.CLOSE
    pub action: &'a str,
    /// None: the platform log.
    pub tenant: Option<&'a str>,
    /// Schema-qualified name of the guarded table.
    pub relation: Option<&'a str>,
    /// The guard's own id.
    pub guard_id: Option<[u8; 16]>,
    /// The row's key, before the write.
    pub row_key: Option<Image<'a>>,
    /// The row before.
    pub old: Option<Image<'a>>,
    /// The row after.
    pub new: Option<Image<'a>>,
    /// Text that goes into the log as it is.
    pub body: Option<&'a str>,
}

impl<'a> Record<'a> {
    /// A record with nothing but its action.
    pub fn of(action: &'a str) -> Self {
        Record { action, tenant: None, relation: None, guard_id: None, row_key: None, old: None, new: None, body: None }
    }
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

/// The number this transaction is recorded under. 55000 where the record is not at home.
fn xact_id() -> Result<i64> {
    thread_local! {
        /// The last transaction's id, and the number it is recorded under.
        static LAST: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
    }
    let (last, recorded) = LAST.get();
    if backend::transaction_id_if_any().is_some_and(|present| present == last) {
        return Ok(recorded.cast_signed());
    }
    let id = backend::transaction_id();
    let (recorded, for_good) = home::recorded_id(id)?;
    if for_good {
        LAST.set((id, recorded));
    }
    Ok(recorded.cast_signed())
}

thread_local! {
    /// agd.event, open from a transaction's first event on.
    static EVENTS: KeptOpen = const { KeptOpen::new() };
}

/// Is agd.event kept open? (The cheap question before every utility statement.)
pub fn is_kept_open() -> bool {
    EVENTS.with(KeptOpen::is_open)
}

/// Closes it: DDL may be about to change it, or the transaction ends.
pub fn close() {
    EVENTS.with(KeptOpen::close);
}

/// The transaction was rolled back.
pub fn rolled_back() {
    EVENTS.with(KeptOpen::forget);
}

/// Inserts an event of this transaction. Returns where it lies.
pub fn insert(record: &Record<'_>) -> Result<(u32, u16)> {
    insert_as(record, None)
}

/// The same about what another role did, or tried to do. None: the role that acts now.
///
/// 54000 for an event that would have no entry: the sequencer could never put it into a log, nor anything after it.
pub fn insert_as(record: &Record<'_>, role: Option<&str>) -> Result<(u32, u16)> {
    let (n, other_role) = transaction::next_event()?;
    let texts = [Some(record.action), record.tenant, record.relation, record.body, role.or(other_role.as_deref())];
    entry::texts_within(texts, entry::MAX_EVENT_TEXTS).map_err(|bytes| Error::LimitExceeded {
        message: format!("what is recorded of this {} takes {bytes} bytes of its entry in the log", record.action),
        hint: format!(
            "At most {}, with each control character counted as six. Name fewer columns, or give a shorter reason.",
            entry::MAX_EVENT_TEXTS
        ),
    })?;
    let mut row = Row::<EVENT_COLUMNS>::new();
    row.set_eight(EVENT_XACT_ID, xact_id()?);
    row.set_four(EVENT_N, n);
    row.set_eight(EVENT_AT, backend::now());
    if let Some(guard_id) = &record.guard_id {
        row.set_uuid(EVENT_GUARD_ID, guard_id);
    }
    row.set_text(EVENT_TENANT, record.tenant);
    row.set_text(EVENT_ACTION, Some(record.action));
    row.set_text(EVENT_RELATION, record.relation);
    row.set_bytes(EVENT_SALT, &salt());
    for (column, image) in [(EVENT_ROW_KEY, &record.row_key), (EVENT_OLD, &record.old), (EVENT_NEW, &record.new)] {
        if let Some(image) = image {
            row.write(column, |out| image.write(out));
        }
    }
    row.set_text(EVENT_BODY, record.body);
    row.set_text(EVENT_ROLE, role.or(other_role.as_deref()));
    let table = EVENTS.with(|events| {
        events.table(|| {
            let catalog = catalog()?;
            Table::open(catalog.event, catalog.event_pkey, &EVENT_STORED)
        })
    })?;
    let place = table.append(&row)?;
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
    /// The fleet that it acts for.
    pub fleet_id: Option<String>,
    /// Why.
    pub cause: Option<String>,
    /// How the tenant was bound.
    pub binding: &'static str,
    /// application_name, if set.
    pub application_name: Option<String>,
    /// The client's address, if it came over the network.
    pub client_addr: Option<String>,
}

/// Inserts the transaction's record. 54000 where its texts leave no room for an entry.
pub fn insert_transaction(record: &TransactionRecord) -> Result<()> {
    let texts = [
        Some(record.session_user_name.as_str()),
        Some(&record.role_name),
        record.principal.as_deref(),
        record.fleet_id.as_deref(),
        record.cause.as_deref(),
        Some(record.binding),
        record.application_name.as_deref(),
        record.client_addr.as_deref(),
    ];
    entry::texts_within(texts, entry::MAX_CONTEXT_TEXTS).map_err(|bytes| Error::LimitExceeded {
        message: format!("what is recorded of this transaction takes {bytes} bytes of each entry in the log"),
        hint: format!(
            "At most {}, with each control character counted as six: a shorter cause, principal or application_name.",
            entry::MAX_CONTEXT_TEXTS
        ),
    })?;
    let mut row = Row::<TRANSACTION_COLUMNS>::new();
    row.set_eight(TRANSACTION_XACT_ID, xact_id()?);
    row.set_eight(TRANSACTION_STAMP, record.stamp);
    row.set_four(TRANSACTION_EVENTS, record.events);
    row.set_text(TRANSACTION_SESSION_USER, Some(&record.session_user_name));
    row.set_text(TRANSACTION_ROLE, Some(&record.role_name));
    row.set_text(TRANSACTION_PRINCIPAL, record.principal.as_deref());
    row.set_text(TRANSACTION_FLEET, record.fleet_id.as_deref());
    row.set_text(TRANSACTION_CAUSE, record.cause.as_deref());
    row.set_text(TRANSACTION_BINDING, Some(record.binding));
    row.set_text(TRANSACTION_APPLICATION, record.application_name.as_deref());
    row.set_text(TRANSACTION_CLIENT, record.client_addr.as_deref());
    let catalog = catalog()?;
    let table = Table::open(catalog.transaction, catalog.transaction_pkey, &TRANSACTION_STORED)?;
    table.append(&row)?;
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
