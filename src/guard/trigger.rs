//! The gate itself: the three trigger functions of a guarded table.
//!
//! BEFORE … FOR EACH ROW records: no record, no write. AFTER … FOR EACH ROW confirms that the row written is the row
//! recorded. BEFORE TRUNCATE refuses, or records. Promises that a row passes only on an inserted event, and that a call
//! counts only from exactly the triggers that agd makes: whoever has TRIGGER on some table may attach these functions to it
//! as he likes, and would record what was not written, record it twice, or have a statement taken for a row. Never changes
//! the row.
#![allow(unsafe_code)] // trigger calls arrive as raw fmgr calls

use crate::catalog::{Columns, catalog};
use crate::denied::Attempt;
use crate::error::{Error, Result};
use crate::event::{self, Image, Record};
use crate::fmgr::c_function;
use crate::guard::own;
use crate::guard::place;
use crate::guard::relation::{Guarded, guarded, qualified_name};
use crate::guard::{define, touched};
use crate::log::storage;
use crate::{ceiling, denied, fleet, home, identity, replication, tenant, transaction};
use agd_core::intent::Operation;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::CStr;
use std::rc::Rc;

c_function!(agd_record_write, pg_finfo_agd_record_write, |call| fire(call, &[RECORD], record_write));
c_function!(agd_confirm_write, pg_finfo_agd_confirm_write, |call| fire(call, &[CONFIRM], confirm_write));
c_function!(agd_truncate, pg_finfo_agd_truncate, |call| fire(call, &[TRUNCATE], truncate));
c_function!(agd_refuse_write, pg_finfo_agd_refuse_write, |call| fire(call, &[REFUSE], refuse_write));
c_function!(agd_refuse_replicated, pg_finfo_agd_refuse_replicated, |call| {
    fire(call, &[REFUSE_REPLICATED, REFUSE_REPLICATED_ROW], refuse_replicated)
});

/// What to do instead.
pub const NOT_MADE_BY_AGD: &str = "SELECT agd.guard('schema.table') makes a guard's triggers. A trigger of your own needs a \
                                   function of your own: DROP TRIGGER this one.";

/// A trigger as agd makes it. (The same in SQL: agd.guard_problems, sql/30_guard.sql.)
struct Made {
    name: &'static CStr,
    /// pg_trigger.tgtype: row or statement, when, and for which writes.
    kind: i16,
    /// What of TriggerData.tg_event says how it was called: for each row, and when.
    called: u32,
    /// The argument is a guard's id. Else there may be any number of them, and they are words of agd's own.
    of_a_guard: bool,
}

const ROW: i16 = pg_sys::TRIGGER_TYPE_ROW as i16;
const BEFORE: i16 = pg_sys::TRIGGER_TYPE_BEFORE as i16;
const ANY_WRITE: i16 = (pg_sys::TRIGGER_TYPE_INSERT | pg_sys::TRIGGER_TYPE_UPDATE | pg_sys::TRIGGER_TYPE_DELETE) as i16;
const ANY_TRUNCATE: i16 = pg_sys::TRIGGER_TYPE_TRUNCATE as i16;
const CALLED_BEFORE_STATEMENT: u32 = pg_sys::TRIGGER_EVENT_BEFORE;
const CALLED_BEFORE_ROW: u32 = pg_sys::TRIGGER_EVENT_BEFORE | pg_sys::TRIGGER_EVENT_ROW;
const CALLED_AFTER_ROW: u32 = pg_sys::TRIGGER_EVENT_AFTER | pg_sys::TRIGGER_EVENT_ROW;
const HOW_CALLED: u32 = pg_sys::TRIGGER_EVENT_TIMINGMASK | pg_sys::TRIGGER_EVENT_ROW;

const RECORD: Made =
    Made { name: c"~agd_record", kind: ROW | BEFORE | ANY_WRITE, called: CALLED_BEFORE_ROW, of_a_guard: true };
const CONFIRM: Made = Made { name: c"~agd_confirm", kind: ROW | ANY_WRITE, called: CALLED_AFTER_ROW, of_a_guard: true };
const TRUNCATE: Made =
    Made { name: c"~agd_truncate", kind: BEFORE | ANY_TRUNCATE, called: CALLED_BEFORE_STATEMENT, of_a_guard: true };
const REFUSE: Made = Made {
    name: c"refuse_write",
    kind: BEFORE | ANY_WRITE | ANY_TRUNCATE,
    called: CALLED_BEFORE_STATEMENT,
    of_a_guard: false,
};
const REFUSE_REPLICATED: Made = Made { name: c"refuse_replicated", ..REFUSE };
const REFUSE_REPLICATED_ROW: Made = Made {
    name: c"refuse_replicated_row",
    kind: ROW | BEFORE | ANY_WRITE,
    called: CALLED_BEFORE_ROW,
    of_a_guard: false,
};

/// # Safety
/// `call` comes from the function manager.
unsafe fn fire(
    call: pg_sys::FunctionCallInfo,
    made: &[Made],
    body: impl FnOnce(&Call) -> Result<pg_sys::HeapTuple>,
) -> Result<pg_sys::Datum> {
    // SAFETY: passed on to the caller.
    let call = unsafe { Call::from(call) }?;
    // Before anything else is looked at: what is not said by the trigger's kind, a tuple's address say, may be anything.
    if !made.iter().any(|made| call.is_of(made)) {
        denied::attempted(call.attempt_of(None));
        return Err(call.not_made_by_agd());
    }
    body(&call).map(pg_sys::Datum::from).inspect_err(|_| {
        denied::attempted(call.attempt());
    })
}

/// One firing of a trigger.
struct Call {
    data: *mut pg_sys::TriggerData,
    /// The function that is called.
    function: pg_sys::Oid,
}

impl Call {
    /// # Safety
    /// `call` comes from the function manager.
    unsafe fn from(call: pg_sys::FunctionCallInfo) -> Result<Call> {
        // SAFETY: context is null or points to a node whose first field is its tag; the function manager says which function
        // it calls.
        unsafe {
            let context = (*call).context;
            if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData || (*call).flinfo.is_null() {
                return Err(Error::WrongState {
                    message: "this function works only as a trigger that agd.guard() made".into(),
                    hint: "Call agd.guard('schema.table').".into(),
                });
            }
            Ok(Call { data: context.cast(), function: (*(*call).flinfo).fn_oid })
        }
    }

    /// Is it a call of this trigger, on the rows that it is for? All that can be asked without a look-up.
    fn is_of(&self, made: &Made) -> bool {
        // SAFETY: TriggerData is valid for the call, and so is the Trigger of who fires; its name is a C string.
        unsafe {
            let data = &*self.data;
            let Some(trigger) = data.tg_trigger.as_ref() else { return false };
            let operation = data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK;
            let for_each_row = made.called & pg_sys::TRIGGER_EVENT_ROW != 0;
            trigger.tgtype == made.kind
                && trigger.tgenabled as u8 == b'A'
                && trigger.tgfoid == self.function
                && (trigger.tgnargs == 1 || !made.of_a_guard)
                && trigger.tgnattr == 0
                && trigger.tgqual.is_null()
                && trigger.tgconstraint == pg_sys::InvalidOid
                && !trigger.tgdeferrable
                && trigger.tgoldtable.is_null()
                && trigger.tgnewtable.is_null()
                && data.tg_event & HOW_CALLED == made.called
                && !data.tg_relation.is_null()
                && (!for_each_row
                    || !data.tg_trigtuple.is_null()
                        && operation != pg_sys::TRIGGER_EVENT_TRUNCATE
                        && (operation != pg_sys::TRIGGER_EVENT_UPDATE || !data.tg_newtuple.is_null()))
                && CStr::from_ptr(trigger.tgname) == made.name
        }
    }

    /// AG002: somebody else's trigger calls a function of agd's.
    fn not_made_by_agd(&self) -> Error {
        // SAFETY: TriggerData is valid for the call; its trigger's name is a C string.
        let (trigger, relation) = unsafe {
            let trigger = (*self.data).tg_trigger.as_ref();
            (
                trigger
                    .map_or_else(String::new, |trigger| CStr::from_ptr(trigger.tgname).to_string_lossy().into_owned()),
                (*self.data).tg_relation.as_ref().map_or_else(|| "a table".into(), |table| qualified_name(table.rd_id)),
            )
        };
        Error::TamperingRefused {
            message: format!("the trigger \"{trigger}\" of {relation} calls a function of agd's and is not agd's own"),
            hint: NOT_MADE_BY_AGD.into(),
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

    /// What this firing is about, for the log of refused attempts.
    fn attempt(&self) -> Attempt {
        // A trigger made by hand may name any guard: only one that serves this table counts.
        self.attempt_of(self.guard().ok())
    }

    fn attempt_of(&self, guard: Option<Rc<Guarded>>) -> Attempt {
        let action = match self.operation() {
            Some(Operation::Insert) => "INSERT",
            Some(Operation::Update) => "UPDATE",
            Some(Operation::Delete) => "DELETE",
            None => "TRUNCATE",
        };
        Attempt {
            action: Some(action.into()),
            relation: Some(guard.as_ref().map_or_else(|| qualified_name(self.oid()), |guard| guard.name.clone())),
            guard_id: guard.map(|guard| guard.guard_id),
            ..Attempt::default()
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

    /// What a BEFORE trigger that has no objection returns: the row, or nothing for a statement.
    fn row_to_go_on_with(&self) -> pg_sys::HeapTuple {
        // SAFETY: as above.
        let for_each_row = unsafe { (*self.data).tg_event } & pg_sys::TRIGGER_EVENT_ROW != 0;
        match self.operation() {
            Some(operation) if for_each_row => self.final_row(operation),
            _ => std::ptr::null_mut(),
        }
    }

    fn has_argument(&self, wanted: &CStr) -> bool {
        // SAFETY: tgargs holds tgnargs C strings.
        unsafe {
            let trigger = (*self.data).tg_trigger;
            (0..(*trigger).tgnargs as usize).any(|n| CStr::from_ptr(*(*trigger).tgargs.add(n)) == wanted)
        }
    }

    /// The guard that this trigger serves. AG002 where it is another one's, or another function's under an alias.
    fn guard(&self) -> Result<Rc<Guarded>> {
        // SAFETY: tgargs holds tgnargs C strings.
        let guard_id = unsafe {
            let trigger = (*self.data).tg_trigger;
            if (*trigger).tgnargs < 1 {
                return Err(Error::Internal("agd: a guard's trigger has no argument".into()));
            }
            CStr::from_ptr(*(*trigger).tgargs)
        };
        let guard = guarded(self.relation(), guard_id)?;
        if !guard.functions.contains(&self.function) || guard.guard_id_text.as_c_str() != guard_id {
            return Err(self.not_made_by_agd());
        }
        Ok(guard)
    }

    /// AG002 unless the trigger stands on one of agd's own tables and calls agd's own function.
    fn on_own_table(&self) -> Result<()> {
        // SAFETY: a catalog look-up; a function that is gone has no schema.
        let schema = unsafe { pg_sys::get_func_namespace(self.function) };
        // SAFETY: an open relation has its row of pg_class.
        let table_schema = unsafe { (*(*self.relation()).rd_rel).relnamespace };
        if schema == table_schema && place::is_own(self.oid()) { Ok(()) } else { Err(self.not_made_by_agd()) }
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
    // Whatever the table: nobody writes, and neither does a binding that does not stand any more.
    identity::may_write(|| guard.name.clone())?;
    tenant::check_binding()?;
    if guard.own {
        if is_loaded(operation)? {
            return Ok(call.final_row(operation));
        }
        // What sessions remember of this table is no longer true once this is committed. (Nobody remembers fleets.)
        if guard.tenant_column.is_none() {
            // SAFETY: queues a message for the end of the command and of the transaction.
            unsafe { pg_sys::CacheInvalidateRelcacheByRelid(call.oid()) };
        }
    }
    if touched::is_worked_on(guard.root) {
        return Err(Error::WrongState {
            message: format!(
                "a row of {} is written by a function that a statement on that very table calls",
                guard.name
            ),
            hint:
                "The row could be lost with the old copy of the table, and its record would stay. Write it before the \
                   statement, or after it."
                    .into(),
        });
    }
    // What agd itself decides (to revoke, to seal, to unmap, to guard) is needed most when something is wrong.
    if !guard.own {
        ceiling::check()?;
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
        // SAFETY: a trigger's tuple is valid for the call.
        let out_of_line = || unsafe { (*(*tuple).t_data).t_infomask } as u32 & pg_sys::HEAP_HASEXTERNAL != 0;
        if operation == Operation::Update && out_of_line() {
            rows.old.fetch_unchanged(&mut rows.new, call.descriptor());
        }
        if guard.own {
            if guard.root == catalog()?.guarded_table {
                define::check_write()?;
            }
            keep_names(&guard, operation, rows)?;
            fleet::check_write(&guard, operation, &rows.old, &rows.new)?;
            own::check_write(&guard)?;
        }
        let tenant = tenant_of(&guard, has_old.then_some(&rows.old), has_new.then_some(&rows.new))?;
        let refused = |error| denied::concerning(tenant.as_deref(), error);
        if guard.require_cause && !transaction::has_cause() {
            return Err(refused(Error::CauseRequired { relation: guard.name.clone() }));
        }
        // Who may write a tenant's rows of agd's own tables, the function that writes them has checked.
        if let Some(tenant) = tenant.as_ref().filter(|_| !guard.own) {
            tenant::check_row(tenant, guard.root, &guard.name).map_err(refused)?;
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
            row_key: Some(Image::Key(&guard.format, key_row)),
            old: has_old.then_some(Image::Row(&guard.format, &rows.old)),
            new: has_new.then_some(Image::Row(&guard.format, &rows.new)),
            body: None,
        })
        .map_err(refused)?;
        let fingerprint = guard.format.quick_fingerprint(tuple).unwrap_or_else(|| guard.format.fingerprint(final_row));
        transaction::expect_write(call.oid(), operation, fingerprint, place).map_err(refused)?;
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
        let error = Error::TenantRefused {
            message: format!("a row of {} cannot move from tenant \"{old}\" to tenant \"{new}\"", guard.name),
            hint: "Delete it as the one tenant and insert it as the other.".into(),
            recorded: format!("a row of {} cannot move to another tenant", guard.name),
        };
        return Err(denied::concerning(Some(old), error));
    }
    Ok(new.or(old))
}

/// A tenant once created stays, under its name: logs and records speak of it. So does a tenant's key, for its tenant, and
/// once revoked it stays revoked. AG002 otherwise.
fn keep_names(guard: &Guarded, operation: Operation, rows: &Rows) -> Result<()> {
    let catalog = catalog()?;
    let (what, name, kept, hint): (_, _, &[&str], _) = if guard.root == catalog.tenant {
        let hint = "Its log and its records stand under this name. display_name can be changed; roles can be mapped \
                    elsewhere.";
        ("tenant", "tenant", &["tenant"], hint)
    } else if guard.root == catalog.tenant_key {
        let hint = "A key id is never given again. SELECT agd.revoke_tenant_key('the_kid', 'why') ends what it signs.";
        ("tenant key", "kid", &["kid", "tenant", "public_key", "revoked_at"], hint)
    } else if guard.root == catalog.log_key {
        let hint = "What it has signed was believed. SELECT agd.revoke_log_key('the_vkey', 'why') ends that.";
        ("log key", "vkey", &["vkey", "revoked_at"], hint)
    } else {
        return Ok(());
    };
    let text = |row, column| guard.format.text_of(row, column);
    let stays = match operation {
        Operation::Insert => true,
        Operation::Update => kept.iter().all(|column| {
            let before = text(&rows.old, column);
            // What may be set once is null before.
            before == text(&rows.new, column) || before.is_none() && *column == "revoked_at"
        }),
        Operation::Delete => false,
    };
    if stays {
        return Ok(());
    }
    Err(Error::TamperingRefused {
        message: format!(
            "{what} \"{}\" cannot be removed, renamed or given to another",
            text(&rows.old, name).unwrap_or_default()
        ),
        hint: hint.into(),
    })
}

/// Is a row of agd's own put back by a restore? Its record is restored as well.
fn is_loaded(operation: Operation) -> Result<bool> {
    Ok(operation == Operation::Insert && home::may_load()?)
}

fn confirm_write(call: &Call) -> Result<pg_sys::HeapTuple> {
    let operation = call.operation().ok_or_else(|| Error::Internal("agd: a row trigger without a row".into()))?;
    let guard = call.guard()?;
    let tuple = call.final_row(operation);
    if guard.own && is_loaded(operation)? {
        return Ok(tuple);
    }
    let quick = guard.format.quick_fingerprint(tuple);
    if quick.is_some_and(|quick| transaction::confirm_first(call.oid(), operation, quick)) {
        return Ok(tuple);
    }
    with_rows(|rows| {
        // A row that was compressed in between was not recorded by its bytes.
        rows.new.deform(tuple, call.descriptor());
        let fingerprint = guard.format.fingerprint(&rows.new);
        if transaction::confirm_write(call.oid(), operation, [fingerprint, quick.unwrap_or(fingerprint)])? {
            return Ok(tuple);
        }
        let tenant = tenant_of(&guard, None, Some(&rows.new)).ok().flatten();
        Err(denied::concerning(tenant.as_deref(), Error::NotTheRecordedRow { relation: guard.name.clone() }))
    })
}

fn truncate(call: &Call) -> Result<pg_sys::HeapTuple> {
    let guard = call.guard()?;
    identity::may_write(|| guard.name.clone())?;
    tenant::check_binding()?;
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
    ceiling::check()?;
    event::insert(&Record { relation: Some(&guard.name), guard_id: Some(guard.guard_id), ..Record::of("TRUNCATE") })?;
    Ok(std::ptr::null_mut())
}

/// On the tables of record and log: nobody writes them through SQL but agd's own statements (where the trigger says
/// 'worker'), a restore (where it says 'load'), and a superuser who deletes (where it says 'erase').
fn refuse_write(call: &Call) -> Result<pg_sys::HeapTuple> {
    call.on_own_table()?;
    if call.has_argument(c"worker") && storage::may_write() {
        return Ok(std::ptr::null_mut());
    }
    if call.has_argument(c"load") && call.operation() == Some(Operation::Insert) && home::may_load()? {
        return Ok(std::ptr::null_mut());
    }
    if call.has_argument(c"erase") && call.operation() == Some(Operation::Delete) && own::is_by_hand() {
        return Ok(std::ptr::null_mut());
    }
    let name = qualified_name(call.oid());
    Err(Error::TamperingRefused {
        message: format!("{name} is written by agd alone"),
        hint: "The record is append-only: it follows from writes to guarded tables.".into(),
    })
}

/// On every table of ours, for rows and for statements: logical replication brings nothing into them.
fn refuse_replicated(call: &Call) -> Result<pg_sys::HeapTuple> {
    call.on_own_table()?;
    if !replication::is_applying() {
        return Ok(call.row_to_go_on_with());
    }
    Err(Error::TamperingRefused {
        message: format!("{} does not take rows from another server", qualified_name(call.oid())),
        hint: "Leave the schema agd out of the publication: name tables, or FOR TABLES IN SCHEMA.".into(),
    })
}
