//! The gate itself: the three trigger functions of a guarded table.
//!
//! BEFORE … FOR EACH ROW records: no record, no write. AFTER … FOR EACH ROW confirms that the row written is the row
//! recorded. BEFORE TRUNCATE refuses, or records. Promises that a row passes only on an inserted event. Never changes the
//! row.
#![allow(unsafe_code)] // trigger calls arrive as raw fmgr calls

use crate::catalog::Columns;
use crate::error::{Error, Result};
use crate::event::{self, Record};
use crate::fmgr::c_function;
use crate::guard::relation::{Guarded, guarded};
use crate::log::storage;
use crate::{tenant, transaction};
use agd_core::intent::Operation;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;

c_function!(agd_record_write, pg_finfo_agd_record_write, |call| fire(call, record_write));
c_function!(agd_confirm_write, pg_finfo_agd_confirm_write, |call| fire(call, confirm_write));
c_function!(agd_truncate, pg_finfo_agd_truncate, |call| fire(call, truncate));
c_function!(agd_refuse_write, pg_finfo_agd_refuse_write, |call| fire(call, refuse_write));

/// # Safety
/// `call` comes from the function manager.
unsafe fn fire(
    call: pg_sys::FunctionCallInfo,
    body: impl FnOnce(&Call) -> Result<pg_sys::HeapTuple>,
) -> Result<pg_sys::Datum> {
    // SAFETY: passed on to the caller.
    body(&unsafe { Call::from(call) }?).map(pg_sys::Datum::from)
}

/// One firing of a trigger.
struct Call {
    data: *mut pg_sys::TriggerData,
}

impl Call {
    /// # Safety
    /// `call` comes from the function manager.
    unsafe fn from(call: pg_sys::FunctionCallInfo) -> Result<Call> {
        // SAFETY: context is null or points to a node whose first field is its tag.
        unsafe {
            let context = (*call).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
                return Err(Error::WrongState {
                    message: "this function works only as a trigger that agd.guard() made".into(),
                    hint: "Call agd.guard('schema.table').".into(),
                });
            }
            Ok(Call { data: context.cast() })
        }
    }

    fn relation(&self) -> pg_sys::Relation {
        // SAFETY: TriggerData is valid for the call.
        unsafe { (*self.data).tg_relation }
    }

    fn oid(&self) -> pg_sys::Oid {
        // SAFETY: as above.
        unsafe { (*self.relation()).rd_id }
    }

    fn descriptor(&self) -> pg_sys::TupleDesc {
        // SAFETY: as above.
        unsafe { (*self.relation()).rd_att }
    }

    /// The operation; None: TRUNCATE.
    fn operation(&self) -> Option<Operation> {
        // SAFETY: as above.
        match unsafe { (*self.data).tg_event } & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_INSERT => Some(Operation::Insert),
            pg_sys::TRIGGER_EVENT_UPDATE => Some(Operation::Update),
            pg_sys::TRIGGER_EVENT_DELETE => Some(Operation::Delete),
            _ => None,
        }
    }

    /// The row of INSERT and DELETE, the old row of UPDATE.
    fn row(&self) -> pg_sys::HeapTuple {
        // SAFETY: as above.
        unsafe { (*self.data).tg_trigtuple }
    }

    /// The row as it will stand, or the row that goes away.
    fn final_row(&self, operation: Operation) -> pg_sys::HeapTuple {
        match operation {
            // SAFETY: as above; UPDATE has a new tuple.
            Operation::Update => unsafe { (*self.data).tg_newtuple },
            _ => self.row(),
        }
    }

    fn guard(&self) -> Result<Rc<Guarded>> {
        // SAFETY: tgargs holds tgnargs C strings.
        unsafe {
            let trigger = (*self.data).tg_trigger;
            if (*trigger).tgnargs < 1 {
                return Err(Error::Internal("agd: a guard's trigger has no argument".into()));
            }
            guarded(self.relation(), CStr::from_ptr(*(*trigger).tgargs))
        }
    }
}

/// Two rows' worth of column arrays, kept between firings.
#[derive(Default)]
struct Rows {
    old: Columns,
    new: Columns,
}

/// Lends the arrays. They are taken, not borrowed: an output function or a look-up may fire further triggers.
fn with_rows<T>(body: impl FnOnce(&mut Rows) -> T) -> T {
    thread_local! {
        static ROWS: RefCell<Rows> = RefCell::new(Rows::default());
    }
    let mut rows = ROWS.take();
    let result = body(&mut rows);
    ROWS.set(rows);
    result
}

fn record_write(call: &Call) -> Result<pg_sys::HeapTuple> {
    let operation = call.operation().ok_or_else(|| Error::Internal("agd: a row trigger without a row".into()))?;
    let guard = call.guard()?;
    if guard.require_cause && !transaction::has_cause() {
        return Err(Error::CauseRequired { relation: guard.name.clone() });
    }
    with_rows(|rows| {
        let tuple = call.final_row(operation);
        let has_old = operation != Operation::Insert;
        let has_new = operation != Operation::Delete;
        if has_old {
            rows.old.deform(call.row(), call.descriptor());
        }
        if has_new {
            rows.new.deform(tuple, call.descriptor());
        }
        let tenant = tenant_of(&guard, has_old.then_some(&rows.old), has_new.then_some(&rows.new))?;
        if let Some(tenant) = &tenant {
            tenant::check_row(tenant, guard.root, &guard.name)?;
        }
        let (key_row, final_row) = match operation {
            Operation::Insert => (&rows.new, &rows.new),
            Operation::Update => (&rows.old, &rows.new),
            Operation::Delete => (&rows.old, &rows.old),
        };
        let place = event::insert(&Record {
            action: match operation {
                Operation::Insert => "INSERT",
                Operation::Update => "UPDATE",
                Operation::Delete => "DELETE",
            },
            tenant: tenant.as_deref(),
            relation: Some(&guard.name),
            guard_id: Some(guard.guard_id),
            row_key: Some(guard.format.key(key_row)),
            old: has_old.then(|| guard.format.image(&rows.old)),
            new: has_new.then(|| guard.format.image(&rows.new)),
            body: None,
        })?;
        transaction::expect_write(call.oid(), operation, guard.format.fingerprint(final_row), place);
        Ok(tuple)
    })
}

/// The tenant a row belongs to. A row without one has no log to go to, and an UPDATE cannot carry a row to another
/// tenant: its old image would then stand in the other's log.
fn tenant_of(guard: &Guarded, old: Option<&Columns>, new: Option<&Columns>) -> Result<Option<String>> {
    let Some(column) = &guard.tenant_column else { return Ok(None) };
    let read = |row: &Columns| {
        guard.format.text_of(row, column).ok_or_else(|| Error::BadArgument {
            message: format!("a row of {} has no tenant: column \"{column}\" is null", guard.name),
            hint: "Every row of this table belongs to a tenant. Set the column.".into(),
        })
    };
    let old = old.map(read).transpose()?;
    let new = new.map(read).transpose()?;
    if let (Some(old), Some(new)) = (&old, &new)
        && old != new
    {
        return Err(Error::NotAllowed {
            message: format!("a row of {} cannot move from tenant \"{old}\" to tenant \"{new}\"", guard.name),
            hint: "Delete it as the one tenant and insert it as the other.".into(),
        });
    }
    Ok(new.or(old))
}

fn confirm_write(call: &Call) -> Result<pg_sys::HeapTuple> {
    let operation = call.operation().ok_or_else(|| Error::Internal("agd: a row trigger without a row".into()))?;
    let guard = call.guard()?;
    let tuple = call.final_row(operation);
    let fingerprint = with_rows(|rows| {
        rows.new.deform(tuple, call.descriptor());
        guard.format.fingerprint(&rows.new)
    });
    if !transaction::confirm_write(call.oid(), operation, fingerprint) {
        return Err(Error::NotTheRecordedRow { relation: guard.name.clone() });
    }
    Ok(tuple)
}

fn truncate(call: &Call) -> Result<pg_sys::HeapTuple> {
    let guard = call.guard()?;
    if !guard.record_truncate {
        return Err(Error::TamperingRefused {
            message: format!("TRUNCATE of the guarded table {} is refused", guard.name),
            hint: "TRUNCATE leaves no record of each row. DELETE the rows, or guard the table with \
                   on_truncate => 'record'."
                .into(),
        });
    }
    if guard.tenant_column.is_some() {
        return Err(Error::TamperingRefused {
            message: format!("TRUNCATE of {} would remove the rows of several tenants", guard.name),
            hint: "DELETE each tenant's rows.".into(),
        });
    }
    if guard.require_cause && !transaction::has_cause() {
        return Err(Error::CauseRequired { relation: guard.name.clone() });
    }
    event::insert(&Record {
        action: "TRUNCATE",
        tenant: None,
        relation: Some(&guard.name),
        guard_id: Some(guard.guard_id),
        row_key: None,
        old: None,
        new: None,
        body: None,
    })?;
    Ok(std::ptr::null_mut())
}

/// On the tables of record and log: nobody writes them through SQL but agd's own statements on the log.
fn refuse_write(call: &Call) -> Result<pg_sys::HeapTuple> {
    // SAFETY: a trigger call has its trigger.
    let is_log = unsafe { (*(*call.data).tg_trigger).tgnargs } > 0;
    if is_log && storage::may_write() {
        return Ok(std::ptr::null_mut());
    }
    let name = crate::guard::relation::qualified_name(call.oid());
    Err(Error::TamperingRefused {
        message: format!("{name} is written by agd alone"),
        hint: "The record is append-only: it follows from writes to guarded tables.".into(),
    })
}
