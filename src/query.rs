//! Reading agd's own tables through SQL.
//!
//! Owns the ways to ask for a single value, for rows as of a given moment, and for many rows one by one. Promises not to assign a transaction id, so
//! that reads work on a standby and leave no trace on a primary (pgrx's `Spi::get_one` assigns one).

use crate::catalog;
use crate::error::{Error, Result};
use crate::fault;
use pgrx::datum::{DatumWithOid, FromDatum, IntoDatum};
use pgrx::pg_sys;
use pgrx::spi::{OwnedPreparedStatement, PreparedStatement, Spi, SpiTupleTable};
use std::cell::RefCell;
use std::collections::HashMap;

/// The first column of the first row; None for NULL or no row.
pub fn one<T: FromDatum + IntoDatum>(query: &str, arguments: &[DatumWithOid<'_>]) -> Result<Option<T>> {
    Spi::connect(|client| {
        let rows = client.select(query, Some(1), arguments)?;
        if rows.is_empty() { Ok(None) } else { Ok(rows.first().get_one::<T>()?) }
    })
}

/// A query that comes again and again: it is parsed and planned once in the life of this process. Its text must be one of a
/// few. `rows` gets the result.
pub fn kept<T>(
    query: &str,
    arguments: &[DatumWithOid<'_>],
    rows: impl FnOnce(SpiTupleTable<'_>) -> Result<T>,
) -> Result<T> {
    Spi::connect(|client| {
        rows(client.select(plan(query, arguments, |types| client.prepare(query, types))?, None, arguments)?)
    })
}

/// The first column of the first row of such a query; None for NULL or no row.
pub fn one_kept<T: FromDatum + IntoDatum>(query: &str) -> Result<Option<T>> {
    kept(query, &[], |rows| if rows.is_empty() { Ok(None) } else { Ok(rows.first().get_one::<T>()?) })
}

/// The same for a statement that writes.
pub fn run_kept(statement: &str, arguments: &[DatumWithOid<'_>]) -> Result<()> {
    Spi::connect_mut(|client| {
        let plan = plan(statement, arguments, |types| client.prepare_mut(statement, types))?;
        fault::point()?;
        client.update(plan, None, arguments)?;
        fault::point()
    })
}

/// The same for a statement that writes or locks rows; `rows` gets what it returns. It sees what is committed when it begins.
pub fn write_kept<T>(
    statement: &str,
    arguments: &[DatumWithOid<'_>],
    rows: impl FnOnce(SpiTupleTable<'_>) -> Result<T>,
) -> Result<T> {
    Spi::connect_mut(|client| {
        let plan = plan(statement, arguments, |types| client.prepare_mut(statement, types))?;
        rows(client.update(plan, None, arguments)?)
    })
}

/// The same for one without RETURNING: how many rows it wrote.
pub fn count_kept(statement: &str, arguments: &[DatumWithOid<'_>]) -> Result<usize> {
    write_kept(statement, arguments, |rows| Ok(rows.len()))
}

fn plan<'conn>(
    text: &str,
    arguments: &[DatumWithOid<'_>],
    prepare: impl FnOnce(&[pg_sys::PgOid]) -> pgrx::spi::SpiResult<PreparedStatement<'conn>>,
) -> Result<&'static OwnedPreparedStatement> {
    thread_local! {
        /// Never dropped: PostgreSQL may be gone when thread-local values are.
        static KEPT: RefCell<HashMap<String, &'static OwnedPreparedStatement>> = RefCell::default();
    }
    if let Some(plan) = KEPT.with_borrow(|kept| kept.get(text).copied()) {
        return Ok(plan);
    }
    let types: Vec<_> = arguments.iter().map(|argument| pg_sys::PgOid::from(argument.oid())).collect();
    let plan: &'static _ = Box::leak(Box::new(prepare(&types)?.keep()));
    KEPT.with_borrow_mut(|kept| kept.insert(text.to_owned(), plan));
    Ok(plan)
}

/// Which state of the catalogs a query sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// What is committed now, and what this transaction did so far. (A query of a REPEATABLE READ transaction would see
    /// what was committed when the transaction began: too old to tell what is guarded.)
    Now,
    /// The same without what this transaction did from the command with this number on: what was before a statement.
    Before(pg_sys::CommandId),
    /// What the active snapshot sees.
    Active,
}

impl At {
    /// A registered snapshot of that state.
    #[allow(unsafe_code)] // snapshots are raw backend structures
    pub fn snapshot(self) -> pg_sys::Snapshot {
        // SAFETY: inside a transaction; the registered snapshot is a copy of its own.
        unsafe {
            let snapshot = pg_sys::RegisterSnapshot(match self {
                At::Active => pg_sys::GetActiveSnapshot(),
                At::Now | At::Before(_) => pg_sys::GetLatestSnapshot(),
            });
            if let At::Before(command) = self {
                (*snapshot).curcid = command;
            }
            snapshot
        }
    }
}

/// Every row of a query, each column as text, as of the given state. The query must have no parameters.
#[allow(unsafe_code)] // SPI's own interface: pgrx's chooses the snapshot by itself
pub fn rows(at: At, query: &str) -> Result<Vec<Vec<Option<String>>>> {
    let query = std::ffi::CString::new(query).map_err(|_| Error::Internal("agd: a query holds NUL".into()))?;
    Spi::connect(|_| {
        let mut found = Vec::new();
        // SAFETY: the snapshot is copied for the time of the query, which is read-only and so uses it; its result is
        // SPI's until SPI is left. On an error both go with the (sub)transaction.
        unsafe {
            let snapshot = at.snapshot();
            pg_sys::PushActiveSnapshot(snapshot);
            let code = pg_sys::SPI_execute(query.as_ptr(), true, 0);
            if code < 0 {
                return Err(Error::Internal(format!("agd: reading its own tables failed: SPI code {code}")));
            }
            let table = pg_sys::SPI_tuptable;
            if !table.is_null() {
                let columns = (*(*table).tupdesc).natts;
                for row in 0..(*table).numvals as usize {
                    let tuple = *(*table).vals.add(row);
                    found.push((1..=columns).map(|column| value(tuple, (*table).tupdesc, column)).collect());
                }
                pg_sys::SPI_freetuptable(table);
            }
            pg_sys::PopActiveSnapshot();
            pg_sys::UnregisterSnapshot(snapshot);
        }
        Ok(found)
    })
}

/// One row of [`each`].
pub struct Row {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

#[allow(unsafe_code)] // reads a result of SPI's
impl Row {
    fn datum(&self, column: usize) -> Option<pg_sys::Datum> {
        let mut is_null = true;
        // SAFETY: a tuple of SPI's and its row type; a column that is not there is NULL.
        let value = unsafe { pg_sys::SPI_getbinval(self.tuple, self.descriptor, column as i32 + 1, &mut is_null) };
        (!is_null).then_some(value)
    }

    /// A column, from 0, that is text or json; None: NULL. Valid until the next row.
    pub fn text(&self, column: usize) -> Result<Option<&str>> {
        // SAFETY: the caller asks for a column of such a type.
        self.datum(column).map(|value| unsafe { catalog::text(value) }).transpose()
    }

    /// A column that is int; None: NULL.
    pub fn int(&self, column: usize) -> Option<i32> {
        self.datum(column).map(|value| value.value() as i32)
    }

    /// A column that is bigint or timestamptz; None: NULL.
    pub fn long(&self, column: usize) -> Option<i64> {
        self.datum(column).map(|value| value.value() as i64)
    }
}

/// Hands on a query's rows one by one, as the active snapshot sees them; only a few are in memory. The query must have no
/// parameters.
#[allow(unsafe_code)] // SPI's own interface: pgrx keeps every row that was fetched until the end
pub fn each(query: &str, mut row: impl FnMut(&Row) -> Result<()>) -> Result<()> {
    /// Rows fetched in one go: each may be large.
    const BATCH: std::ffi::c_long = 16;
    let query = std::ffi::CString::new(query).map_err(|_| Error::Internal("agd: a query holds NUL".into()))?;
    Spi::connect(|_| {
        let scratch = catalog::Scratch::new();
        // SAFETY: a read-only cursor sees the active snapshot; its rows are SPI's until they are freed, which is after their
        // use. On an error all goes with the (sub)transaction.
        unsafe {
            let none = std::ptr::null();
            let portal = pg_sys::SPI_cursor_open_with_args(
                none,
                query.as_ptr(),
                0,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                none,
                true,
                0,
            );
            loop {
                pg_sys::SPI_cursor_fetch(portal, true, BATCH);
                let table = pg_sys::SPI_tuptable;
                let count = if table.is_null() { 0 } else { (*table).numvals as usize };
                for at in 0..count {
                    pgrx::check_for_interrupts!();
                    let found = Row { tuple: *(*table).vals.add(at), descriptor: (*table).tupdesc };
                    scratch.with(|| row(&found))?;
                }
                pg_sys::SPI_freetuptable(table);
                if count == 0 {
                    break;
                }
            }
            pg_sys::SPI_cursor_close(portal);
        }
        Ok(())
    })
}

/// # Safety
/// The tuple belongs to the descriptor and has the column.
#[allow(unsafe_code)] // reads a result of SPI's
unsafe fn value(tuple: pg_sys::HeapTuple, descriptor: pg_sys::TupleDesc, column: i32) -> Option<String> {
    // SAFETY: as promised by the caller; the value is a C string in SPI's memory, or NULL.
    unsafe {
        let text = pg_sys::SPI_getvalue(tuple, descriptor, column);
        (!text.is_null()).then(|| std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}

/// The oids in a column of such rows, counted from 0.
pub fn oids(rows: &[Vec<Option<String>>], column: usize) -> Vec<pg_sys::Oid> {
    rows.iter().filter_map(|row| row.get(column)?.as_deref()?.parse().ok().map(pg_sys::Oid::from_u32)).collect()
}
