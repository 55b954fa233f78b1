//! Rows that are there now, as the gate would record them: what `agd.verify_table()` compares with the record.
#![allow(unsafe_code)] // takes a composite value apart

use crate::catalog::{Columns, Relation, Scratch, Snapshot, scan, to_varlena};
use crate::error::{Error, Result};
use crate::fmgr::{Rows, answer, argument, c_function};
use crate::guard::image::RowFormat;
use crate::guard::relation::row_format;
use crate::query::{self, At};
use pgrx::pg_sys;
use std::cell::RefCell;

// Both are declared with one argument of type record, STRICT.
c_function!(agd_row_image, pg_finfo_agd_row_image, |call: pg_sys::FunctionCallInfo| with_row(
    (*call).args.as_slice(1)[0].value,
    RowFormat::write_image
));
c_function!(agd_row_key, pg_finfo_agd_row_key, |call: pg_sys::FunctionCallInfo| with_row(
    (*call).args.as_slice(1)[0].value,
    RowFormat::write_key
));

/// # Safety
/// `row` is a composite datum.
unsafe fn with_row(row: pg_sys::Datum, part: impl Fn(&RowFormat, &Columns, &mut Vec<u8>)) -> Result<pg_sys::Datum> {
    thread_local! {
        static COLUMNS: RefCell<Columns> = RefCell::new(Columns::default());
    }
    // SAFETY: a composite datum is a varlena with a tuple header, which carries its row type.
    unsafe {
        let header = pg_sys::pg_detoast_datum(row.cast_mut_ptr()).cast::<pg_sys::HeapTupleHeaderData>();
        let row_type = (*header).t_choice.t_datum.datum_typeid;
        let oid = pg_sys::get_typ_typrelid(row_type);
        if oid == pg_sys::InvalidOid {
            return Err(Error::BadArgument {
                message: "the row is of no table".into(),
                hint: "SELECT agd.row_image(t) FROM the_table t.".into(),
            });
        }
        let relation = Relation::open(oid, pg_sys::AccessShareLock);
        let format = row_format(relation.0)?;
        let mut tuple =
            pg_sys::HeapTupleData { t_len: pgrx::varsize(header.cast()) as u32, t_data: header, ..Default::default() };
        let mut columns = COLUMNS.take();
        columns.deform(&mut tuple, relation.descriptor());
        let mut json = Vec::new();
        part(&format, &columns, &mut json);
        COLUMNS.set(columns);
        Ok(to_varlena(&json))
    }
}

c_function!(agd_present_rows, pg_finfo_agd_present_rows, answer_present_rows);

/// `agd.present_rows(relation)`: each row of a table and of its partitions, as the asking query sees them, straight from the heap.
fn answer_present_rows(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.present_rows(relation regclass), which returns a table.
    let (relation, mut rows) = unsafe { (argument::<pg_sys::Oid>(call, 0), Rows::begin(call)?) };
    let snapshot = Snapshot::active();
    let mut columns = Columns::default();
    for member in relation.map_or(Ok(Vec::new()), tree)? {
        let relation = Relation::open(member, pg_sys::AccessShareLock);
        // SAFETY: an open relation.
        if unsafe { (*(*relation.0).rd_rel).relkind } as u8 == b'p' {
            continue;
        }
        let format = row_format(relation.0)?;
        let scratch = Scratch::new();
        scan(&relation, None, snapshot.raw(), &mut [], |tuple| {
            pgrx::check_for_interrupts!();
            columns.deform(tuple, relation.descriptor());
            scratch.with(|| {
                let (mut key, mut image) = (Vec::new(), Vec::new());
                format.write_key(&columns, &mut key);
                format.write_image(&columns, &mut image);
                rows.put(|| [Some(to_varlena(&key)), Some(to_varlena(&image))]);
            });
            Ok(())
        })?;
    }
    // SAFETY: the call is the one being answered.
    Ok(unsafe { answer(call, None) })
}

/// A table and its partitions.
fn tree(oid: pg_sys::Oid) -> Result<Vec<pg_sys::Oid>> {
    let rows = query::rows(
        At::Active,
        &format!(
            "WITH RECURSIVE tree (oid) AS (
               SELECT '{}'::pg_catalog.oid
               UNION ALL
               SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent OPERATOR(pg_catalog.=) t.oid
             )
             SELECT oid FROM tree",
            oid.to_u32()
        ),
    )?;
    Ok(query::oids(&rows, 0))
}
