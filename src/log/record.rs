//! Reading the record back: events, the context of their transactions, and the entry that goes into the log.
//!
//! Owns the one way from table rows to an entry's canonical bytes, used by sequencer, publisher and verification alike,
//! so that they cannot differ. Never writes.
#![allow(unsafe_code)] // tuples are taken apart by column type

use crate::catalog::{Columns, Relation, Scratch, Seek, Snapshot, catalog, scan, scan_key, text, varlena};
use crate::error::{Error, Result};
use crate::event;
use agd_core::{Entry, EventId, ImageKind, image_digest};
use pgrx::pg_sys;

/// Microseconds between 1970-01-01 and PostgreSQL's epoch, 2000-01-01.
pub const EPOCH_DIFFERENCE: i64 = 946_684_800_000_000;

/// The key of an event, as tiles keep it: 12 bytes, big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventKey {
    /// Full transaction id.
    pub xact_id: u64,
    /// Number within the transaction.
    pub n: u32,
}

impl EventKey {
    /// Bytes a key takes.
    pub const SIZE: usize = 12;

    /// Appends the key's bytes.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.xact_id.to_be_bytes());
        out.extend_from_slice(&self.n.to_be_bytes());
    }

    /// All keys in a row of 12-byte keys. A rest that is no whole key is dropped.
    pub fn read_all(bytes: &[u8]) -> impl Iterator<Item = EventKey> {
        bytes.chunks_exact(Self::SIZE).map(|chunk| {
            let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            EventKey { xact_id: number(&chunk[..8]), n: number(&chunk[8..]) as u32 }
        })
    }
}

impl std::fmt::Display for EventKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.xact_id, self.n)
    }
}

/// The record of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// Full transaction id.
    pub xact_id: u64,
    /// Commit stamp, microseconds since 2000-01-01.
    pub stamp: i64,
    /// How many events stand.
    pub events: i32,
    session_user_name: String,
    role_name: String,
    principal: Option<String>,
    fleet_id: Option<String>,
    cause: Option<String>,
    binding: String,
    application_name: Option<String>,
    client_addr: Option<String>,
}

impl Context {
    /// The memory that it takes, in bytes: about as much as it holds.
    pub fn bytes(&self) -> usize {
        let optional = [&self.principal, &self.fleet_id, &self.cause, &self.application_name, &self.client_addr];
        let strings =
            [&self.session_user_name, &self.role_name, &self.binding].into_iter().chain(optional.into_iter().flatten());
        // An allocation is rounded up.
        size_of::<Self>() + strings.map(|string| string.len() + 16).sum::<usize>()
    }

    /// From a row of agd.transaction.
    pub fn read(row: &Columns) -> Result<Self> {
        let string = |index| -> Result<Option<String>> {
            // SAFETY: only asked for columns that are text (sql/20_event.sql).
            row.get(index).map(|value| unsafe { text(value) }.map(str::to_owned)).transpose()
        };
        let number = |index| row.get(index).map_or(0, |value: pg_sys::Datum| value.value());
        Ok(Context {
            xact_id: number(event::TRANSACTION_XACT_ID) as u64,
            stamp: number(event::TRANSACTION_STAMP) as i64,
            events: number(event::TRANSACTION_EVENTS) as i32,
            session_user_name: string(event::TRANSACTION_SESSION_USER)?.unwrap_or_default(),
            role_name: string(event::TRANSACTION_ROLE)?.unwrap_or_default(),
            principal: string(event::TRANSACTION_PRINCIPAL)?,
            fleet_id: string(event::TRANSACTION_FLEET)?,
            cause: string(event::TRANSACTION_CAUSE)?,
            binding: string(event::TRANSACTION_BINDING)?.unwrap_or_default(),
            application_name: string(event::TRANSACTION_APPLICATION)?,
            client_addr: string(event::TRANSACTION_CLIENT)?,
        })
    }
}

/// Reads events and their contexts under one snapshot.
pub struct Reader {
    /// A scan of agd.event by transaction, kept from one to the next; closed before the table is.
    events_in_order: Option<Seek>,
    event: pg_sys::Oid,
    transactions: Relation,
    event_pkey: pg_sys::Oid,
    transaction_pkey: pg_sys::Oid,
    snapshot: Snapshot,
    columns: Columns,
    memory: pg_sys::MemoryContext,
    /// What one row's values need to be read.
    scratch: Scratch,
}

impl Reader {
    /// A reader under the active snapshot.
    pub fn active() -> Result<Self> {
        let catalog = catalog()?;
        Ok(Reader {
            events_in_order: None,
            event: catalog.event,
            transactions: Relation::open(catalog.transaction, pg_sys::AccessShareLock),
            event_pkey: catalog.event_pkey,
            transaction_pkey: catalog.transaction_pkey,
            snapshot: Snapshot::active(),
            columns: Columns::default(),
            // SAFETY: reads a process global; the context that is current here outlives its reader.
            memory: unsafe { pg_sys::CurrentMemoryContext },
            scratch: Scratch::new(),
        })
    }

    /// Calls `each` with every visible transaction record in `[from, to)`.
    pub fn contexts_between(&self, from: u64, to: u64, mut each: impl FnMut(Context)) -> Result<()> {
        let mut keys = [
            scan_key(1, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_XID8GE, pg_sys::Datum::from(from)),
            scan_key(1, pg_sys::BTLessStrategyNumber, pg_sys::F_XID8LT, pg_sys::Datum::from(to)),
        ];
        let mut columns = Columns::default();
        scan(&self.transactions, Some(self.transaction_pkey), self.snapshot.raw(), &mut keys, |tuple| {
            columns.deform(tuple, self.transactions.descriptor());
            each(Context::read(&columns)?);
            Ok(())
        })
    }

    /// The record of one transaction, if it is visible.
    pub fn context(&self, xact_id: u64) -> Result<Option<Context>> {
        let mut found = None;
        self.contexts_between(xact_id, xact_id.saturating_add(1), |context| found = Some(context))?;
        Ok(found)
    }

    /// Calls `each` with the transaction's place in `contexts`, and key, tenant and entry bytes, for every event of
    /// these transactions, which are in ascending order of their ids. One walk along the index: what other transactions
    /// left between them is read and passed over.
    pub fn events_of(
        &mut self,
        contexts: &[&Context],
        entry: &mut Vec<u8>,
        mut each: impl FnMut(usize, EventKey, Option<&str>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let ([first, ..], [.., last]) = (contexts, contexts) else { return Ok(()) };
        let (event, event_pkey, snapshot) = (self.event, self.event_pkey, self.snapshot.raw());
        let open = || {
            let from = scan_key(1, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_XID8GE, pg_sys::Datum::from(0));
            let to = scan_key(1, pg_sys::BTLessEqualStrategyNumber, pg_sys::F_XID8LE, pg_sys::Datum::from(0));
            Seek::new(self.memory, event, event_pkey, snapshot, vec![from, to])
        };
        let events = self.events_in_order.get_or_insert_with(open);
        events.aim(&[first.xact_id.into(), last.xact_id.into()]);
        let mut place = 0;
        while let Some(tuple) = events.next() {
            pgrx::check_for_interrupts!();
            self.columns.deform(tuple, events.descriptor());
            let xact_id = self.columns.get(event::EVENT_XACT_ID).map_or(0, |value| value.value() as u64);
            while contexts.get(place).is_some_and(|context| context.xact_id < xact_id) {
                place += 1;
            }
            let Some(context) = contexts.get(place) else { break };
            if context.xact_id == xact_id {
                let columns = &self.columns;
                self.scratch.with(|| {
                    let (key, tenant) = write_entry(context, columns, entry)?;
                    each(place, key, tenant, entry)
                })?;
            }
        }
        Ok(())
    }

    /// Whose one event is; None: there is no such event.
    pub fn tenant_of(&mut self, key: EventKey) -> Result<Option<Option<String>>> {
        let mut tenant = None;
        self.event(key, |columns| {
            // SAFETY: tenant is text.
            let name = columns.get(event::EVENT_TENANT).map(|value| unsafe { text(value) }).transpose()?;
            tenant = Some(name.map(str::to_owned));
            Ok(())
        })?;
        Ok(tenant)
    }

    /// Writes the entry of one event. False: there is no such event.
    pub fn entry(&mut self, context: &Context, n: u32, entry: &mut Vec<u8>) -> Result<bool> {
        let mut found = false;
        self.event(EventKey { xact_id: context.xact_id, n }, |columns| {
            write_entry(context, columns, entry)?;
            found = true;
            Ok(())
        })?;
        Ok(found)
    }

    fn event(&mut self, key: EventKey, mut each: impl FnMut(&Columns) -> Result<()>) -> Result<()> {
        let mut keys = [
            scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_XID8EQ, pg_sys::Datum::from(key.xact_id)),
            scan_key(2, pg_sys::BTEqualStrategyNumber, pg_sys::F_INT4EQ, pg_sys::Datum::from(key.n as i32)),
        ];
        let columns = &mut self.columns;
        let events = Relation::open(self.event, pg_sys::AccessShareLock);
        let descriptor = events.descriptor();
        scan(&events, Some(self.event_pkey), self.snapshot.raw(), &mut keys, |tuple| {
            columns.deform(tuple, descriptor);
            each(columns)
        })
    }
}

/// The canonical bytes of an event's entry, into `out` (cleared first). Returns its key and tenant.
pub fn write_entry<'a>(context: &Context, row: &'a Columns, out: &mut Vec<u8>) -> Result<(EventKey, Option<&'a str>)> {
    let number = |index: usize| row.get(index).map_or(0, |value| value.value());
    let string = |index: usize| -> Result<Option<&'a str>> {
        // SAFETY: only asked for columns that are text or json (sql/20_event.sql).
        row.get(index).map(|value| unsafe { text(value) }).transpose()
    };
    let key = EventKey { xact_id: number(event::EVENT_XACT_ID) as u64, n: number(event::EVENT_N) as u32 };
    // SAFETY: salt is bytea.
    let salt: [u8; 16] = row
        .get(event::EVENT_SALT)
        .and_then(|value| unsafe { varlena(value) }.try_into().ok())
        .ok_or_else(|| Error::Corrupted {
            message: format!("event {key} has no 16-byte salt"),
            hint: "The row was changed outside of agd. SELECT * FROM agd.verify() names what is wrong.".into(),
        })?;
    let digest = |kind, index| -> Result<_> { Ok(string(index)?.map(|image| image_digest(kind, &salt, image))) };
    let guard_id = row.get(event::EVENT_GUARD_ID).map(|value| {
        // SAFETY: a uuid is 16 bytes by reference.
        uuid_text(unsafe { &*value.cast_mut_ptr::<[u8; 16]>() })
    });
    let tenant = string(event::EVENT_TENANT)?;
    out.clear();
    Entry {
        event_id: EventId { xact_id: key.xact_id, n: key.n },
        action: string(event::EVENT_ACTION)?.unwrap_or_default(),
        at: (number(event::EVENT_AT) as i64).saturating_add(EPOCH_DIFFERENCE),
        committed_at: context.stamp.saturating_add(EPOCH_DIFFERENCE),
        tenant,
        relation: string(event::EVENT_RELATION)?,
        guard_id: guard_id.as_ref().and_then(|text| std::str::from_utf8(text).ok()),
        row_key: digest(ImageKind::Key, event::EVENT_ROW_KEY)?,
        old: digest(ImageKind::Old, event::EVENT_OLD)?,
        new: digest(ImageKind::New, event::EVENT_NEW)?,
        body: string(event::EVENT_BODY)?,
        session_user_name: &context.session_user_name,
        role_name: string(event::EVENT_ROLE)?.unwrap_or(&context.role_name),
        principal: context.principal.as_deref(),
        fleet_id: context.fleet_id.as_deref(),
        cause: context.cause.as_deref(),
        binding: &context.binding,
        application_name: context.application_name.as_deref(),
        client_addr: context.client_addr.as_deref(),
    }
    .try_encode_into(out)
    .map_err(|problem| Error::Corrupted {
        message: format!("event {key} has no canonical form: {problem}"),
        hint: "The row was changed outside of agd. SELECT * FROM agd.verify() names what is wrong.".into(),
    })?;
    Ok((key, tenant))
}

/// The text of a uuid, without an allocation: this runs for every event.
fn uuid_text(bytes: &[u8; 16]) -> [u8; 36] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut at = 0;
    for (index, byte) in bytes.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            at += 1;
        }
        text[at] = HEX[usize::from(byte >> 4)];
        text[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    text
}
