//! Appending rows to agd's own tables: straight into heap and indexes, without an executor.
//!
//! Owns the open table and the row that is being put together. Promises that a row is in the heap and in every index of
//! its table when [`Table::append`] returns, or an error was raised; a table with no index but its primary key takes the
//! short way. Never checks a privilege, fires a trigger or evaluates a policy: the record does not depend on who writes.
//!
//! Several backend functions are called inside one boundary here, and not one by one through pgrx: each guarded call costs
//! as much as copying a row image.
#![allow(unsafe_code)] // heap and index inserts

mod row;

use crate::error::{Error, Result};
use pgrx::pg_sys;
use pgrx::pg_sys::submodules::ffi::pg_guard_ffi_boundary;
use row::MAX_ROW;
pub use row::{Row, Stored};
use std::cell::Cell;
use std::ffi::c_int;

mod raw {
    //! The backend's own functions, to be called inside [`super::pg_guard_ffi_boundary`] with nothing to drop.
    use super::*;

    unsafe extern "C-unwind" {
        pub fn table_open(relation: pg_sys::Oid, lock: c_int) -> pg_sys::Relation;
        pub fn table_close(relation: pg_sys::Relation, lock: c_int);
        pub fn index_open(relation: pg_sys::Oid, lock: c_int) -> pg_sys::Relation;
        pub fn index_close(relation: pg_sys::Relation, lock: c_int);
        pub fn RelationGetIndexList(relation: pg_sys::Relation) -> *mut pg_sys::List;
        pub fn list_free(list: *mut pg_sys::List);
        pub fn BuildIndexInfo(index: pg_sys::Relation) -> *mut pg_sys::IndexInfo;
        pub fn pfree(pointer: *mut std::ffi::c_void);
        pub fn palloc(size: usize) -> *mut std::ffi::c_void;
        pub fn simple_heap_insert(relation: pg_sys::Relation, tuple: pg_sys::HeapTuple);
        pub fn index_insert(
            index: pg_sys::Relation,
            values: *mut pg_sys::Datum,
            nulls: *mut bool,
            place: pg_sys::ItemPointer,
            heap: pg_sys::Relation,
            check_unique: pg_sys::IndexUniqueCheck::Type,
            unchanged: bool,
            info: *mut pg_sys::IndexInfo,
        ) -> bool;
    }
}

/// What PostgreSQL keeps before a tuple in memory.
const TUPLE: usize = std::mem::size_of::<pg_sys::HeapTupleData>().next_multiple_of(8);

/// A tuple's fixed header, without the bits for NULLs that follow.
const FIXED_HEADER: usize = std::mem::offset_of!(pg_sys::HeapTupleHeaderData, t_bits);

/// An open table of ours.
#[derive(Clone, Copy)]
pub struct Table {
    heap: pg_sys::Relation,
    /// The primary key's index; None: there are others too, and the executor's way is taken.
    primary_key: Option<(pg_sys::Relation, *mut pg_sys::IndexInfo)>,
}

const LOCK: c_int = pg_sys::RowExclusiveLock as c_int;
const NO_LOCK: c_int = pg_sys::NoLock as c_int;

impl Table {
    /// Opens a table; its locks are kept until the transaction ends. 55000 when its columns are not stored as `columns` say.
    pub fn open(heap: pg_sys::Oid, primary_key: pg_sys::Oid, columns: &[Stored]) -> Result<Self> {
        // SAFETY: the resource owner closes what an error leaves open; nothing here is to be dropped.
        let table = unsafe {
            pg_guard_ffi_boundary(|| {
                let heap = raw::table_open(heap, LOCK);
                let indexes = raw::RelationGetIndexList(heap);
                let alone =
                    !indexes.is_null() && (*indexes).length == 1 && (*(*indexes).elements).oid_value == primary_key;
                raw::list_free(indexes);
                let primary_key = alone.then(|| {
                    let index = raw::index_open(primary_key, LOCK);
                    (index, raw::BuildIndexInfo(index))
                });
                Table { heap, primary_key }
            })
        };
        if !table.is_stored_as(columns) {
            // Closed here: whoever catches the error goes on with this resource owner.
            table.close();
            return Err(Error::WrongState {
                message: "a table of agd's record is not as this library made it".into(),
                hint: "Library and extension have different versions: ALTER EXTENSION agd UPDATE. If they have the \
                       same, somebody altered the table."
                    .into(),
            });
        }
        Ok(table)
    }

    fn is_stored_as(&self, columns: &[Stored]) -> bool {
        // SAFETY: an open relation has a descriptor with natts attributes.
        unsafe {
            let descriptor = (*self.heap).rd_att;
            let attributes =
                (0..(*descriptor).natts as usize).map(|index| &*crate::catalog::attribute(descriptor, index));
            // A column that was added and dropped again is of no concern: a tuple may be shorter than its row type.
            let expected = columns.iter().map(Some).chain(std::iter::repeat(None));
            (*descriptor).natts as usize >= columns.len()
                && attributes.zip(expected).all(|(attribute, stored)| {
                    let layout = (attribute.attlen, attribute.attalign as u8);
                    match stored {
                        None => attribute.attisdropped,
                        Some(_) if attribute.attisdropped => false,
                        Some(Stored::Eight) => layout == (8, b'd'),
                        Some(Stored::Four) => layout == (4, b'i'),
                        Some(Stored::Uuid) => layout == (16, b'c'),
                        Some(Stored::Bytes) => layout == (-1, b'i'),
                    }
                })
        }
    }

    /// Closes it; the resource owner that was current when it was opened must be current again.
    pub fn close(self) {
        // SAFETY: opened by open(), closed once.
        unsafe {
            pg_guard_ffi_boundary(|| {
                if let Some((index, info)) = self.primary_key {
                    raw::pfree(info.cast());
                    raw::index_close(index, NO_LOCK);
                }
                raw::table_close(self.heap, NO_LOCK);
            });
        }
    }

    /// Inserts a row into heap and indexes. Returns where the tuple lies: block and offset. 54000 for a row that
    /// PostgreSQL could not store.
    pub fn append<const N: usize>(&self, row: &Row<N>) -> Result<(u32, u16)> {
        if row.data.len() > MAX_ROW {
            return Err(Error::LimitExceeded {
                message: format!("a record of {} bytes is too large", row.data.len()),
                hint: "The images of a row, before and after, must be smaller than 1 GB together.".into(),
            });
        }
        let nulls = row.present.contains(&false);
        let header = FIXED_HEADER + if nulls { N.div_ceil(8) } else { 0 };
        let header = header.next_multiple_of(std::mem::align_of::<u64>());
        let (table, data, mut key, mut no_nulls) = (*self, row.data.as_slice(), row.key, [false; 2]);
        // SAFETY: the tuple gets the layout that open() compared with the relation's. The closure holds nothing to drop;
        // `row` outlives it.
        let place = unsafe {
            pg_guard_ffi_boundary(|| {
                let start = raw::palloc(TUPLE + header + data.len());
                start.cast::<u8>().write_bytes(0, TUPLE + header);
                let tuple = start.cast::<pg_sys::HeapTupleData>();
                let body = start.cast::<u8>().add(TUPLE);
                (*tuple).t_len = (header + data.len()) as u32;
                (*tuple).t_data = body.cast();
                (*tuple).t_self.ip_blkid = pg_sys::BlockIdData { bi_hi: u16::MAX, bi_lo: u16::MAX }; // no place yet
                (*(*tuple).t_data).t_infomask2 = N as u16;
                (*(*tuple).t_data).t_infomask =
                    (pg_sys::HEAP_HASVARWIDTH | (u32::from(nulls) * pg_sys::HEAP_HASNULL)) as u16;
                (*(*tuple).t_data).t_hoff = header as u8;
                if nulls {
                    for (column, _) in row.present.iter().enumerate().filter(|(_, present)| **present) {
                        *body.add(FIXED_HEADER + column / 8) |= 1 << (column % 8);
                    }
                }
                std::ptr::copy_nonoverlapping(data.as_ptr(), body.add(header), data.len());
                raw::simple_heap_insert(table.heap, tuple);
                match table.primary_key {
                    Some((index, info)) => {
                        raw::index_insert(
                            index,
                            key.as_mut_ptr(),
                            no_nulls.as_mut_ptr(),
                            &raw mut (*tuple).t_self,
                            table.heap,
                            pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES,
                            false,
                            info,
                        );
                    }
                    None => insert_into_all_indexes(table.heap, tuple),
                }
                let place = (*tuple).t_self;
                raw::pfree(start);
                place
            })
        };
        Ok(((u32::from(place.ip_blkid.bi_hi) << 16) | u32::from(place.ip_blkid.bi_lo), place.ip_posid))
    }
}

/// The executor's way: for tables to which somebody added an index of their own, whatever kind it is.
///
/// # Safety
/// To be called inside a boundary: it jumps on errors, and the transaction's abort cleans up.
unsafe fn insert_into_all_indexes(heap: pg_sys::Relation, tuple: pg_sys::HeapTuple) {
    unsafe extern "C-unwind" {
        fn CreateExecutorState() -> *mut pg_sys::EState;
        fn FreeExecutorState(state: *mut pg_sys::EState);
        fn InitResultRelInfo(
            result: *mut pg_sys::ResultRelInfo,
            relation: pg_sys::Relation,
            range_table_index: pg_sys::Index,
            partition_root: *mut pg_sys::ResultRelInfo,
            instrument: c_int,
        );
        fn ExecOpenIndices(result: *mut pg_sys::ResultRelInfo, speculative: bool);
        fn ExecCloseIndices(result: *mut pg_sys::ResultRelInfo);
        fn MakeSingleTupleTableSlot(
            descriptor: pg_sys::TupleDesc,
            operations: *const pg_sys::TupleTableSlotOps,
        ) -> *mut pg_sys::TupleTableSlot;
        fn ExecStoreHeapTuple(
            tuple: pg_sys::HeapTuple,
            slot: *mut pg_sys::TupleTableSlot,
            free: bool,
        ) -> *mut pg_sys::TupleTableSlot;
        fn ExecDropSingleTupleTableSlot(slot: *mut pg_sys::TupleTableSlot);
        fn ExecInsertIndexTuples(
            result: *mut pg_sys::ResultRelInfo,
            slot: *mut pg_sys::TupleTableSlot,
            state: *mut pg_sys::EState,
            update: bool,
            no_duplicate_error: bool,
            conflict: *mut bool,
            arbiters: *mut pg_sys::List,
            #[cfg(not(feature = "pg15"))] only_summarizing: bool,
        ) -> *mut pg_sys::List;
        fn PushActiveSnapshot(snapshot: pg_sys::Snapshot);
        fn GetTransactionSnapshot() -> pg_sys::Snapshot;
        fn PopActiveSnapshot();
    }
    // SAFETY: the pattern of PostgreSQL's own logical replication worker; everything is freed before it returns.
    unsafe {
        // An expression or a predicate may call functions that read tables; a pre-commit callback has no snapshot.
        PushActiveSnapshot(GetTransactionSnapshot());
        let state = CreateExecutorState();
        let outer = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = (*state).es_query_cxt;
        let mut result = pg_sys::ResultRelInfo { type_: pg_sys::NodeTag::T_ResultRelInfo, ..Default::default() };
        InitResultRelInfo(&mut result, heap, 0, std::ptr::null_mut(), 0);
        ExecOpenIndices(&mut result, false);
        let slot = MakeSingleTupleTableSlot((*heap).rd_att, &raw const pg_sys::TTSOpsHeapTuple);
        ExecStoreHeapTuple(tuple, slot, false);
        (*slot).tts_tid = (*tuple).t_self;
        (*slot).tts_tableOid = (*heap).rd_id;
        let (conflict, arbiters) = (std::ptr::null_mut(), std::ptr::null_mut());
        #[cfg(feature = "pg15")]
        ExecInsertIndexTuples(&mut result, slot, state, false, false, conflict, arbiters);
        #[cfg(not(feature = "pg15"))]
        ExecInsertIndexTuples(&mut result, slot, state, false, false, conflict, arbiters, false);
        ExecDropSingleTupleTableSlot(slot);
        ExecCloseIndices(&mut result);
        pg_sys::CurrentMemoryContext = outer;
        FreeExecutorState(state);
        PopActiveSnapshot();
    }
}

/// A table kept open from its first row of a transaction to the transaction's end: opening it costs a third of a row.
pub struct KeptOpen(Cell<Option<Table>>);

impl KeptOpen {
    /// Nothing is open.
    pub const fn new() -> Self {
        KeptOpen(Cell::new(None))
    }

    /// The table, opened if need be. It belongs to the whole transaction, also when a subtransaction opens it.
    pub fn table(&self, open: impl FnOnce() -> Result<Table>) -> Result<Table> {
        if let Some(table) = self.0.get() {
            return Ok(table);
        }
        let table = as_transaction(open)?;
        self.0.set(Some(table));
        Ok(table)
    }

    /// Is it open? (The cheap question before every utility statement.)
    pub fn is_open(&self) -> bool {
        self.0.get().is_some()
    }

    /// Closes it, so that DDL on it is possible and the transaction can end.
    pub fn close(&self) {
        if let Some(table) = self.0.take() {
            as_transaction(|| table.close());
        }
    }

    /// The transaction was rolled back, and its resource owner has closed the table.
    pub fn forget(&self) {
        self.0.set(None);
    }
}

/// Runs `body` with the transaction's resource owner and memory current. An error resets both by itself.
fn as_transaction<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: both exist throughout a transaction; put back before anybody can look.
    unsafe {
        let (owner, memory) = (pg_sys::CurrentResourceOwner, pg_sys::CurrentMemoryContext);
        pg_sys::CurrentResourceOwner = pg_sys::TopTransactionResourceOwner;
        pg_sys::CurrentMemoryContext = pg_sys::TopTransactionContext;
        let result = body();
        pg_sys::CurrentResourceOwner = owner;
        pg_sys::CurrentMemoryContext = memory;
        result
    }
}
