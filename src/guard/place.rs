//! Where an object belongs: the table it stands on, the guard that table is behind, whether it is agd's own.
//!
//! Owns look-ups in PostgreSQL's catalogs and in agd.guarded_table, in the state of now or of before a statement. Promises to
//! find what is there whoever asks: no privilege and no search path matters. Never changes anything.
#![allow(unsafe_code)] // catalog scans

use crate::catalog::{Columns, Relation, catalog, scan, scan_key, text};
use crate::error::Result;
use crate::query::At;
use pgrx::pg_sys;
use std::collections::BTreeSet;
use std::ffi::{CStr, c_char};

/// Kinds of objects: the oids of their catalogs.
pub mod class {
    use pgrx::pg_sys;

    /// pg_class
    pub const RELATION: u32 = pg_sys::RelationRelationId.to_u32();
    /// pg_trigger
    pub const TRIGGER: u32 = pg_sys::TriggerRelationId.to_u32();
    /// pg_policy
    pub const POLICY: u32 = 3256;
    /// pg_rewrite
    pub const RULE: u32 = 2618;
    /// pg_constraint
    pub const CONSTRAINT: u32 = 2606;
    /// pg_attrdef
    pub const DEFAULT: u32 = 2604;
    /// pg_inherits
    pub const INHERITANCE: u32 = 2611;
    /// pg_proc
    pub const FUNCTION: u32 = pg_sys::ProcedureRelationId.to_u32();
    /// pg_event_trigger
    pub const EVENT_TRIGGER: u32 = pg_sys::EventTriggerRelationId.to_u32();
    /// pg_namespace
    pub const SCHEMA: u32 = pg_sys::NamespaceRelationId.to_u32();
    /// pg_extension
    pub const EXTENSION: u32 = pg_sys::ExtensionRelationId.to_u32();
    /// pg_index
    pub const INDEX: u32 = pg_sys::IndexRelationId.to_u32();
    /// pg_type
    pub const TYPE: u32 = pg_sys::TypeRelationId.to_u32();
    /// pg_statistic_ext
    pub const STATISTICS: u32 = 3381;
    /// pg_publication_rel
    pub const PUBLISHED: u32 = 6106;
    /// pg_depend
    pub const DEPENDENCY: u32 = 2608;
    /// pg_attribute
    pub const COLUMN: u32 = 1249;
}

/// Indexes of catalogs; their oids never change.
mod index {
    pub const TRIGGER_OID: u32 = pgrx::pg_sys::TriggerOidIndexId;
    pub const POLICY_OID: u32 = 3257;
    pub const RULE_OID: u32 = 2692;
    pub const CONSTRAINT_OID: u32 = 2667;
    pub const DEFAULT_OID: u32 = 2657;
    pub const INDEX_OID: u32 = pgrx::pg_sys::IndexRelidIndexId;
    pub const STATISTICS_OID: u32 = 3380;
    pub const PUBLISHED_OID: u32 = 6112;
    pub const INHERITANCE_CHILD: u32 = 2680;
    pub const DEPENDENCY_REFERENCE: u32 = 2674;
    pub const COLUMN_NUMBER: u32 = 2659;
}

/// A guard, as far as DDL is concerned with it.
#[derive(Clone)]
pub struct Guard {
    /// Its own id.
    pub id: [u8; 16],
    /// The guarded table.
    pub root: pg_sys::Oid,
    /// The column that names each row's tenant.
    pub tenant_column: Option<String>,
    /// Writes need a cause.
    pub require_cause: bool,
}

/// Where an object belongs.
pub struct Place {
    /// The table it is, or stands on.
    pub relation: pg_sys::Oid,
    /// Its name, of a trigger or policy.
    pub name: Option<String>,
    /// A trigger that enforces a constraint.
    pub is_internal: bool,
    /// A trigger that calls a function of agd's.
    pub calls_own: bool,
}

/// The table an object is, or stands on. None: none, or no such object.
pub fn place_of(class_id: u32, object: pg_sys::Oid, at: At) -> Result<Option<Place>> {
    let (index, relation, name) = match class_id {
        class::RELATION | class::INHERITANCE => {
            let mut relation = object;
            if at != At::Now {
                // An index that is gone since.
                look_up(class::INDEX, index::INDEX_OID, object, at, |columns| {
                    relation = columns.get(1).map_or(relation, oid);
                    Ok(())
                })?;
            }
            return Ok(Some(Place { relation, name: None, is_internal: false, calls_own: false }));
        }
        class::TRIGGER => (index::TRIGGER_OID, c"tgrelid", Some(c"tgname")),
        class::POLICY => (index::POLICY_OID, c"polrelid", Some(c"polname")),
        class::RULE => (index::RULE_OID, c"ev_class", None),
        class::CONSTRAINT => (index::CONSTRAINT_OID, c"conrelid", None),
        class::DEFAULT => (index::DEFAULT_OID, c"adrelid", None),
        class::STATISTICS => (index::STATISTICS_OID, c"stxrelid", None),
        class::PUBLISHED => (index::PUBLISHED_OID, c"prrelid", None),
        _ => return Ok(None),
    };
    let mut found = None;
    let number = |name: &CStr| {
        // SAFETY: a catalog look-up of a system table's column.
        usize::try_from(unsafe { pg_sys::get_attnum(pg_sys::Oid::from(class_id), name.as_ptr()) } - 1).unwrap_or(0)
    };
    let (relation, name) = (number(relation), name.map(number));
    let internal = (class_id == class::TRIGGER).then(|| number(c"tgisinternal"));
    let function = (class_id == class::TRIGGER).then(|| number(c"tgfoid"));
    look_up(class_id, index, object, at, |columns| {
        found = columns.get(relation).map(|value| Place {
            relation: oid(value),
            // SAFETY: a column of type name.
            name: name
                .and_then(|name| columns.get(name))
                .map(|value| unsafe { CStr::from_ptr(value.cast_mut_ptr::<c_char>()).to_string_lossy().into_owned() }),
            is_internal: internal.and_then(|column| columns.get(column)).is_some_and(|value| value.value() & 0xff != 0),
            calls_own: function
                .and_then(|column| columns.get(column))
                .is_some_and(|function| is_own_by_itself(class::FUNCTION, oid(function))),
        });
        Ok(())
    })?;
    // Who publishes agd's own tables changes nothing of them.
    let harmless = |place: &Place| class_id == class::PUBLISHED && is_own(place.relation);
    Ok(found.filter(|place| place.relation != pg_sys::InvalidOid && !harmless(place)))
}

fn oid(value: pg_sys::Datum) -> pg_sys::Oid {
    pg_sys::Oid::from(value.value() as u32)
}

/// Every row of a catalog whose first indexed column is this oid.
fn look_up(
    table: u32,
    index: u32,
    object: pg_sys::Oid,
    at: At,
    mut row: impl FnMut(&Columns) -> Result<()>,
) -> Result<()> {
    let table = Relation::open(pg_sys::Oid::from(table), pg_sys::AccessShareLock);
    let index = pg_sys::Oid::from(index);
    // SAFETY: an open index tells which column of the table it is on.
    let attribute = unsafe {
        let index = pg_sys::index_open(index, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let attribute = (*(*index).rd_index).indkey.values.as_slice(1)[0];
        pg_sys::index_close(index, pg_sys::NoLock as pg_sys::LOCKMODE);
        attribute
    };
    let mut keys = [scan_key(attribute, pg_sys::BTEqualStrategyNumber, pg_sys::F_OIDEQ, pg_sys::Datum::from(object))];
    let mut columns = Columns::default();
    // The newest state needs no snapshot of ours: a scan of a catalog takes one of its own.
    let snapshot = if at == At::Now { std::ptr::null_mut() } else { at.snapshot() };
    scan(&table, Some(index), snapshot, &mut keys, |tuple| {
        columns.deform(tuple, table.descriptor());
        row(&columns)
    })?;
    if !snapshot.is_null() {
        // SAFETY: registered above.
        unsafe { pg_sys::UnregisterSnapshot(snapshot) };
    }
    Ok(())
}

/// The table that an index is on; anything else is itself.
pub fn table_of(relation: pg_sys::Oid) -> pg_sys::Oid {
    // SAFETY: catalog look-ups; an index that is gone has no table.
    unsafe {
        match pg_sys::get_rel_relkind(relation) as u8 {
            b'i' | b'I' => pg_sys::IndexGetRelation(relation, true),
            _ => relation,
        }
    }
}

/// The table that a foreign key points to. None: it is another constraint, or was made for a partition.
pub fn referenced_by(constraint: pg_sys::Oid) -> Result<Option<pg_sys::Oid>> {
    let number = |name: &CStr| {
        // SAFETY: a catalog look-up of a system table's column.
        usize::try_from(unsafe { pg_sys::get_attnum(pg_sys::Oid::from(class::CONSTRAINT), name.as_ptr()) } - 1)
            .unwrap_or(0)
    };
    let (referenced, parent) = (number(c"confrelid"), number(c"conparentid"));
    let mut found = None;
    look_up(class::CONSTRAINT, index::CONSTRAINT_OID, constraint, At::Now, |columns| {
        let is_inherited = columns.get(parent).is_some_and(|parent| oid(parent) != pg_sys::InvalidOid);
        found =
            columns.get(referenced).map(oid).filter(|referenced| !is_inherited && *referenced != pg_sys::InvalidOid);
        Ok(())
    })?;
    Ok(found)
}

/// The parent of a partition, or of a table that inherits.
pub fn parent_of(relation: pg_sys::Oid, at: At) -> Result<Option<pg_sys::Oid>> {
    let mut parent = None;
    look_up(class::INHERITANCE, index::INHERITANCE_CHILD, relation, at, |columns| {
        parent = parent.or(columns.get(1).map(oid));
        Ok(())
    })?;
    Ok(parent)
}

/// Every table that has a column of this type, or of one that is made of it: arrays, domains, ranges, composites.
pub fn tables_with(row_type: pg_sys::Oid) -> Result<BTreeSet<u32>> {
    let depends = Relation::open(pg_sys::Oid::from(class::DEPENDENCY), pg_sys::AccessShareLock);
    let (mut tables, mut seen, mut waiting) = (BTreeSet::new(), BTreeSet::new(), vec![row_type]);
    while let Some(next) = waiting.pop() {
        if next == pg_sys::InvalidOid || !seen.insert(next.to_u32()) {
            continue;
        }
        // refclassid, refobjid
        let mut keys = [(4, pg_sys::Datum::from(class::TYPE)), (5, pg_sys::Datum::from(next))]
            .map(|(column, value)| scan_key(column, pg_sys::BTEqualStrategyNumber, pg_sys::F_OIDEQ, value));
        let mut columns = Columns::default();
        let index = pg_sys::Oid::from(index::DEPENDENCY_REFERENCE);
        scan(&depends, Some(index), std::ptr::null_mut(), &mut keys, |tuple| {
            columns.deform(tuple, depends.descriptor());
            let (Some(class), Some(object), Some(part)) = (columns.get(0), columns.get(1), columns.get(2)) else {
                return Ok(());
            };
            match oid(class).to_u32() {
                class::TYPE => waiting.push(oid(object)),
                class::RELATION if part.value() as u32 != 0 => {
                    tables.insert(oid(object).to_u32());
                    // SAFETY: a catalog look-up.
                    waiting.push(unsafe { pg_sys::get_rel_type_id(oid(object)) });
                }
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(tables)
}

/// What a relation's row type is made of, as far as it tells how a value of that type reads: number, name, type and its
/// modifier of each column. Empty: there was no such relation.
pub fn shape_of(relation: pg_sys::Oid, at: At) -> Result<Vec<(i16, String, u32, i32)>> {
    let mut shape = Vec::new();
    let number = |name: &CStr| {
        // SAFETY: a catalog look-up of a system table's column.
        usize::try_from(unsafe { pg_sys::get_attnum(pg_sys::Oid::from(class::COLUMN), name.as_ptr()) } - 1).unwrap_or(0)
    };
    let [name, kind, attnum, modifier, dropped] =
        [c"attname", c"atttypid", c"attnum", c"atttypmod", c"attisdropped"].map(number);
    look_up(class::COLUMN, index::COLUMN_NUMBER, relation, at, |columns| {
        let value = |column: usize| columns.get(column).map_or(0, |value| value.value());
        if (value(attnum) as i16) > 0 && value(dropped) & 0xff == 0 {
            // SAFETY: a column of type name.
            let name = columns.get(name).map(|value| unsafe { CStr::from_ptr(value.cast_mut_ptr::<c_char>()) });
            let name = name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            shape.push((value(attnum) as i16, name, value(kind) as u32, value(modifier) as i32));
        }
        Ok(())
    })?;
    shape.sort_unstable();
    Ok(shape)
}

/// The guard that a table is behind, by itself or as a part of a guarded table. None too where agd is not installed.
pub fn guard_of(relation: pg_sys::Oid, at: At) -> Result<Option<Guard>> {
    let Ok(catalog) = catalog() else { return Ok(None) };
    let mut relation = relation;
    loop {
        let mut found = None;
        look_up(
            catalog.guarded_table.to_u32(),
            catalog.guarded_table_relation_key.to_u32(),
            relation,
            at,
            |columns| {
                // SAFETY: the column types of agd.guarded_table (sql/30_guard.sql).
                unsafe {
                    let mut id = [0; 16];
                    if let Some(value) = columns.get(0) {
                        std::ptr::copy_nonoverlapping(value.cast_mut_ptr::<u8>(), id.as_mut_ptr(), id.len());
                    }
                    let tenant_column = columns.get(2).map(|value| text(value).map(str::to_owned)).transpose()?;
                    let require_cause = columns.get(3).is_some_and(|value| value.value() & 0xff != 0);
                    found = Some(Guard { id, root: relation, tenant_column, require_cause });
                }
                Ok(())
            },
        )?;
        if found.is_some() {
            return Ok(found);
        }
        match parent_of(relation, at)? {
            Some(parent) => relation = parent,
            None => return Ok(None),
        }
    }
}

/// Calls `each` with every guarded table; with none where agd is not installed.
pub fn each_guarded(mut each: impl FnMut(pg_sys::Oid)) -> Result<()> {
    let Ok(catalog) = catalog() else { return Ok(()) };
    let table = Relation::open(catalog.guarded_table, pg_sys::AccessShareLock);
    let mut columns = Columns::default();
    scan(&table, None, std::ptr::null_mut(), &mut [], |tuple| {
        columns.deform(tuple, table.descriptor());
        if let Some(value) = columns.get(1) {
            each(oid(value));
        }
        Ok(())
    })
}

/// Is this one of agd's own tables, views or indexes?
pub fn is_own(relation: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up.
    is_own_schema(unsafe { pg_sys::get_rel_namespace(relation) })
}

fn is_own_schema(schema: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up.
    schema != pg_sys::InvalidOid
        && schema == unsafe { pg_sys::get_namespace_oid(c"agd".as_ptr(), true) }
        && extension() != pg_sys::InvalidOid
}

/// A function of agd's, its schema, the extension itself; and any event trigger, since those are few and one of agd's may
/// have another name by now.
pub fn is_own_by_itself(class: u32, object: pg_sys::Oid) -> bool {
    match class {
        // SAFETY: a catalog look-up; a function that is gone has no schema.
        class::FUNCTION => is_own_schema(unsafe { pg_sys::get_func_namespace(object) }),
        class::EVENT_TRIGGER => extension() != pg_sys::InvalidOid,
        class::SCHEMA => {
            // Where no schema has its name, any may be the one that had it.
            // SAFETY: a catalog look-up.
            let own = unsafe { pg_sys::get_namespace_oid(c"agd".as_ptr(), true) };
            (own == object || own == pg_sys::InvalidOid) && extension() != pg_sys::InvalidOid
        }
        class::EXTENSION => object == extension(),
        _ => false,
    }
}

/// The extension's oid; InvalidOid: not in this database.
pub fn extension() -> pg_sys::Oid {
    // SAFETY: a catalog look-up.
    unsafe { pg_sys::get_extension_oid(c"agd".as_ptr(), true) }
}

/// Is an object of this kind ever of interest to the protection of guards?
pub fn is_watched(class: pg_sys::Oid) -> bool {
    matches!(
        class.to_u32(),
        class::RELATION
            | class::TRIGGER
            | class::POLICY
            | class::RULE
            | class::CONSTRAINT
            | class::DEFAULT
            | class::INHERITANCE
            | class::FUNCTION
            | class::EVENT_TRIGGER
            | class::SCHEMA
            | class::EXTENSION
    )
}
