//! What the gate knows of one guarded table: its guard's definition and its prepared row format.
//!
//! Owns the per-backend cache of both. Promises that a definition is read afresh after anything about the table, its
//! root, or agd's own tables changed. Never caches what a rolled-back transaction did: that too invalidates.
#![allow(unsafe_code)] // relation descriptors and cache callbacks

use crate::catalog::{Columns, Relation, catalog, scan, scan_key, text};
use crate::error::{Error, Result};
use crate::fleet;
use crate::guard::image::RowFormat;
use crate::guard::redact::Redaction;
use pgrx::{pg_guard, pg_sys};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::rc::Rc;

/// One guarded table, or one partition of one.
pub struct Guarded {
    /// The guard's own id: stable across renames, dumps and restores.
    pub guard_id: [u8; 16],
    /// The guarded (root) table.
    pub root: pg_sys::Oid,
    /// Its schema-qualified name, quoted where SQL needs it.
    pub name: String,
    /// The column that names a row's tenant; None: events go to the platform log.
    pub tenant_column: Option<String>,
    /// Writes need a cause.
    pub require_cause: bool,
    /// TRUNCATE is recorded instead of refused.
    pub record_truncate: bool,
    /// One of agd's own tables.
    pub own: bool,
    /// How this relation's rows are written.
    pub format: Rc<RowFormat>,
    /// The guard's id as its triggers have it.
    pub guard_id_text: CString,
    /// The functions that the triggers of a guard call.
    pub functions: [pg_sys::Oid; 3],
}

thread_local! {
    static CACHE: RefCell<HashMap<u32, Rc<Guarded>>> = RefCell::new(HashMap::new());
    static FORMATS: RefCell<HashMap<u32, Rc<RowFormat>>> = RefCell::new(HashMap::new());
    /// Grows with every invalidation: what was read meanwhile is not kept.
    static GENERATION: Cell<u64> = const { Cell::new(0) };
    /// The one asked for last: a statement writes many rows of one table.
    static LAST: RefCell<Option<(u32, Rc<Guarded>)>> = const { RefCell::new(None) };
}

/// Registers the invalidation of names. Called once from `_PG_init`.
pub fn init() {
    // SAFETY: a static function and no argument.
    unsafe {
        pg_sys::CacheRegisterSyscacheCallback(
            pg_sys::SysCacheIdentifier::NAMESPACEOID as i32,
            Some(schema_changed),
            pg_sys::Datum::from(0),
        );
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn schema_changed(_argument: pg_sys::Datum, _cache: i32, _hash: u32) {
    if crate::memory::is_ending() {
        return;
    }
    GENERATION.set(GENERATION.get().wrapping_add(1));
    LAST.set(None);
    CACHE.with_borrow_mut(HashMap::clear);
}

/// How a relation's rows are written, whether it is guarded or not. 55000 when it has no primary key.
pub fn row_format(relation: pg_sys::Relation) -> Result<Rc<RowFormat>> {
    // SAFETY: an open relation has an oid and a descriptor.
    let (oid, descriptor) = unsafe { ((*relation).rd_id.to_u32(), (*relation).rd_att) };
    if let Some(found) = FORMATS.with_borrow(|formats| formats.get(&oid).cloned()) {
        return Ok(found);
    }
    let generation = GENERATION.get();
    // SAFETY: an open relation has an oid.
    let root = unsafe { partition_root((*relation).rd_id) };
    let format = Rc::new(RowFormat::new(descriptor, &primary_key(relation)?, Redaction::of(root)?)?);
    if GENERATION.get() == generation {
        FORMATS.with_borrow_mut(|formats| keep(formats, oid, &format));
    }
    Ok(format)
}

/// So many relations are remembered. A session that writes more of them (a root with ten thousand partitions) reads them
/// again now and then.
const KEPT: usize = 1024;

fn keep<T>(cache: &mut HashMap<u32, Rc<T>>, oid: u32, value: &Rc<T>) {
    if cache.len() >= KEPT {
        cache.clear();
    }
    cache.insert(oid, Rc::clone(value));
}

/// Forgets a relation and everything that hangs on it; InvalidOid: all.
pub fn forget(relation: pg_sys::Oid) {
    GENERATION.set(GENERATION.get().wrapping_add(1));
    LAST.set(None);
    FORMATS.with_borrow_mut(|formats| {
        if relation == pg_sys::InvalidOid {
            formats.clear();
        } else {
            formats.remove(&relation.to_u32());
        }
    });
    CACHE.with_borrow_mut(|cache| {
        if relation == pg_sys::InvalidOid {
            cache.clear();
        } else if !cache.is_empty() {
            cache.retain(|oid, guarded| *oid != relation.to_u32() && guarded.root != relation);
        }
    });
}

/// The guard of a relation whose trigger fires with the given guard id.
pub fn guarded(relation: pg_sys::Relation, guard_id: &CStr) -> Result<Rc<Guarded>> {
    // SAFETY: an open relation.
    let oid = unsafe { (*relation).rd_id };
    let last = LAST.with_borrow(|last| match last {
        Some((last, guard)) if *last == oid.to_u32() => Some(Rc::clone(guard)),
        _ => None,
    });
    if let Some(guard) = last {
        return Ok(guard);
    }
    let generation = GENERATION.get();
    let guard = remembered(relation, oid, guard_id)?;
    if GENERATION.get() == generation {
        LAST.set(Some((oid.to_u32(), Rc::clone(&guard))));
    }
    Ok(guard)
}

fn remembered(relation: pg_sys::Relation, oid: pg_sys::Oid, guard_id: &CStr) -> Result<Rc<Guarded>> {
    if let Some(found) = CACHE.with_borrow(|cache| cache.get(&oid.to_u32()).cloned()) {
        return Ok(found);
    }
    let generation = GENERATION.get();
    let loaded = Rc::new(load(relation, guard_id)?);
    if GENERATION.get() == generation {
        CACHE.with_borrow_mut(|cache| keep(cache, oid.to_u32(), &loaded));
    }
    Ok(loaded)
}

fn load(relation: pg_sys::Relation, guard_id_text: &CStr) -> Result<Guarded> {
    let guard_id =
        parse_uuid(guard_id_text).ok_or_else(|| Error::Internal("agd: a guard's trigger has no guard id".into()))?;
    let guard_id_text = guard_id_text.to_owned();
    let catalog = catalog()?;
    let functions = [c"record_write", c"confirm_write", c"refuse_truncate"].map(own_function);
    // SAFETY: an open relation has an oid.
    let oid = unsafe { (*relation).rd_id };
    if catalog.has_own_guard(oid) {
        let tenant_column = fleet::table(oid).flatten().map(str::to_owned);
        let (require_cause, record_truncate) = (false, false);
        let (name, format) = (qualified_name(oid), row_format(relation)?);
        return Ok(Guarded {
            guard_id,
            root: oid,
            name,
            tenant_column,
            require_cause,
            record_truncate,
            own: true,
            format,
            guard_id_text,
            functions,
        });
    }
    let table = Relation::open(catalog.guarded_table, pg_sys::AccessShareLock);
    let mut keys =
        [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_UUID_EQ, pg_sys::Datum::from(guard_id.as_ptr()))];
    let mut columns = Columns::default();
    let mut found = None;
    scan(&table, Some(catalog.guarded_table_pkey), std::ptr::null_mut(), &mut keys, |tuple| {
        columns.deform(tuple, table.descriptor());
        // SAFETY: the column types of agd.guarded_table (sql/30_guard.sql).
        unsafe {
            let root = columns.get(1).map_or(pg_sys::InvalidOid, |value| pg_sys::Oid::from(value.value() as u32));
            let tenant_column = columns.get(2).map(|value| text(value).map(str::to_owned)).transpose()?;
            let require_cause = columns.get(3).is_some_and(|value| value.value() & 0xff != 0);
            let on_truncate = columns.get(4).map(|value| text(value).map(str::to_owned)).transpose()?;
            found = Some((root, tenant_column, require_cause, on_truncate.as_deref() == Some("record")));
        }
        Ok(())
    })?;
    // SAFETY: catalog look-ups by oid.
    let partition_root = unsafe { partition_root(oid) };
    let Some((root, tenant_column, require_cause, record_truncate)) =
        found.filter(|(root, ..)| *root == partition_root)
    else {
        return Err(Error::WrongState {
            message: "a guard's trigger stands on a table that is not registered as guarded".into(),
            hint: "Drop the triggers whose names begin with \"~agd\" and call agd.guard() for this table.".into(),
        });
    };
    let format = row_format(relation)?;
    let name = qualified_name(root);
    Ok(Guarded {
        guard_id,
        root,
        name,
        tenant_column,
        require_cause,
        record_truncate,
        own: false,
        format,
        guard_id_text,
        functions,
    })
}

/// A function of agd's without arguments. InvalidOid: there is none.
pub fn own_function(name: &CStr) -> pg_sys::Oid {
    // SAFETY: a catalog look-up of a name in two parts.
    unsafe {
        let mut parts = pgrx::PgList::<pg_sys::Node>::new();
        for part in [c"agd", name] {
            parts.push(pg_sys::makeString(pg_sys::pstrdup(part.as_ptr())).cast());
        }
        pg_sys::LookupFuncName(parts.into_pg(), 0, std::ptr::null(), true)
    }
}

/// The top of a partition's tree; a table that is no partition is its own.
///
/// Trigger functions are open to all, since whoever makes a partition has the root's triggers cloned under its own name;
/// so a trigger's word for which guard it serves counts only on that guard's tree.
unsafe fn partition_root(mut oid: pg_sys::Oid) -> pg_sys::Oid {
    unsafe extern "C-unwind" {
        fn get_partition_parent(relation: pg_sys::Oid, even_if_detached: bool) -> pg_sys::Oid;
    }
    // SAFETY: catalog look-ups; a partition has a parent.
    unsafe {
        while pg_sys::get_rel_relispartition(oid) {
            oid = pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| get_partition_parent(oid, true));
        }
    }
    oid
}

/// The primary key's attribute numbers, in its order. 55000 when there is none.
pub fn primary_key(relation: pg_sys::Relation) -> Result<Vec<i16>> {
    // SAFETY: an open relation; its index, if any, is opened and closed here.
    unsafe {
        #[cfg(not(feature = "pg18"))]
        let index = primary_key_index(relation);
        #[cfg(feature = "pg18")]
        let index = pg_sys::RelationGetPrimaryKeyIndex(relation, true);
        if index == pg_sys::InvalidOid {
            return Err(Error::WrongState {
                message: format!("{} has no primary key", qualified_name((*relation).rd_id)),
                hint: "A record names the row it is about. Add a primary key: ALTER TABLE … ADD PRIMARY KEY (…)."
                    .into(),
            });
        }
        let index = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let definition = (*index).rd_index;
        let count = (*definition).indnkeyatts as usize;
        let numbers = (*definition).indkey.values.as_slice(count).to_vec();
        pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        Ok(numbers)
    }
}

/// The index of the primary key, deferrable or not: before PostgreSQL 18 its own look-up knows the others alone.
///
/// # Safety
/// An open relation.
#[cfg(not(feature = "pg18"))]
unsafe fn primary_key_index(relation: pg_sys::Relation) -> pg_sys::Oid {
    // SAFETY: passed on to the caller; the list is a copy, and each index is opened and closed here.
    unsafe {
        let immediate = pg_sys::RelationGetPrimaryKeyIndex(relation);
        if immediate != pg_sys::InvalidOid {
            return immediate;
        }
        for index in pgrx::PgList::<pg_sys::Oid>::from_pg(pg_sys::RelationGetIndexList(relation)).iter_oid() {
            let opened = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
            let (is_primary, is_valid) = ((*(*opened).rd_index).indisprimary, (*(*opened).rd_index).indisvalid);
            pg_sys::index_close(opened, pg_sys::NoLock as pg_sys::LOCKMODE);
            if is_primary && is_valid {
                return index;
            }
        }
        pg_sys::InvalidOid
    }
}

/// Schema-qualified name of a relation, quoted where needed.
pub fn qualified_name(oid: pg_sys::Oid) -> String {
    // SAFETY: catalog look-ups that give NULL for what is gone; the results are C strings.
    unsafe {
        let name = pg_sys::get_rel_name(oid);
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(oid));
        if name.is_null() || schema.is_null() {
            return format!("(dropped table {})", oid.to_u32());
        }
        let _plain = PlainQuoting::pin();
        let quoted = pg_sys::quote_qualified_identifier(schema, name);
        CStr::from_ptr(quoted).to_string_lossy().into_owned()
    }
}

/// The setting quote_all_identifiers, set aside while this lives: what is recorded must not depend on the session.
struct PlainQuoting(bool);

impl PlainQuoting {
    fn pin() -> Self {
        // SAFETY: the global behind the setting; put back on drop, on errors too.
        unsafe {
            let kept = PlainQuoting(pg_sys::quote_all_identifiers);
            pg_sys::quote_all_identifiers = false;
            kept
        }
    }
}

impl Drop for PlainQuoting {
    fn drop(&mut self) {
        // SAFETY: see pin().
        unsafe { pg_sys::quote_all_identifiers = self.0 };
    }
}

/// `8-4-4-4-12` hex digits to 16 bytes.
pub fn parse_uuid(text: &CStr) -> Option<[u8; 16]> {
    let digits: String = text.to_str().ok()?.chars().filter(|c| *c != '-').collect();
    hex::decode(digits).ok()?.try_into().ok()
}
