//! Whose identity counts: who asks, who writes, and with whose rights agd itself acts.
//!
//! Owns the question, for everything else in agd. Three users can be different: the *session* user (who authenticated), the
//! *outer* user (the session user, or whom SET ROLE chose), and the *current* user (whom a SECURITY DEFINER function, a
//! referential action or a maintenance command made it). Rules (each is tested: `pgrx-tests/tests/live/identity.rs`):
//!
//! 1. Where PostgreSQL runs what somebody put into an index, statistics or a materialized view, as a security-restricted
//!    operation or in an autovacuum worker, whoever acts is nobody ([`is_restricted`]): bound to no tenant, reads no record,
//!    acts for no tenant, writes no guarded row. The flag alone decides; that current and outer user are the same says
//!    nothing, since a SECURITY DEFINER function of a superuser's may lie between. Two exceptions: the apply worker's own
//!    writes ([`may_write`]), and the query of a materialized view that the outer user itself owns and makes or refreshes.
//! 2. To read the record and to act for a tenant, outer *and* current user must be allowed to ([`both`]).
//! 3. The wall's binding stays the session's inside SECURITY DEFINER functions, unless the current user is mapped to another
//!    tenant: then the session is nobody there (src/tenant/mod.rs).
//! 4. agd's own functions that need its owner's rights take them themselves ([`as_owner`]), so that they know who called
//!    them, as a SECURITY DEFINER function does not. Of calls within calls the innermost counts.
//!
//! Promises that the current user is always that of whoever called agd, never agd's owner; that agd's owner's rights and the
//! pinned settings end with the function that took them, whatever way it ends; and that no privilege is decided by a setting.
#![allow(unsafe_code)] // user ids, settings and parse nodes are the backend's

use crate::catalog::scan_key;
use crate::denied::{self, Attempt};
use crate::error::{Error, Result};
use crate::tenant::share;
use crate::{backend, nesting, replication};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::ffi::CStr;

/// Settings that change what SQL means or how values become text, as agd's own functions see them, whatever the session has.
/// The same list is on every SECURITY DEFINER function of agd that is written in SQL: sql/85_settings.sql. Left out is what
/// changes plans and not results, what only superusers set, and what makes a query fail instead of answer
/// (restrict_nonsystem_relation_kind).
const PINNED: [(&CStr, &CStr); 16] = [
    (c"search_path", c"pg_catalog, pg_temp"),
    (c"quote_all_identifiers", c"off"),
    (c"standard_conforming_strings", c"on"),
    (c"backslash_quote", c"safe_encoding"),
    (c"transform_null_equals", c"off"),
    (c"array_nulls", c"on"),
    (c"row_security", c"on"),
    (c"DateStyle", c"ISO, MDY"),
    (c"IntervalStyle", c"postgres"),
    (c"TimeZone", c"UTC"),
    (c"extra_float_digits", c"1"),
    (c"bytea_output", c"hex"),
    (c"xmlbinary", c"base64"),
    (c"xmloption", c"content"),
    (c"lc_monetary", c"C"),
    (c"lc_numeric", c"C"),
];

mod raw {
    use pgrx::pg_sys;

    unsafe extern "C" {
        pub fn GetUserId() -> pg_sys::Oid;
        pub fn InSecurityRestrictedOperation() -> bool;
    }
}

/// Somebody who called a function of agd's that runs with its owner's rights.
struct Caller {
    user: pg_sys::Oid,
    /// Whose rights the function took.
    owner: pg_sys::Oid,
}

thread_local! {
    static CALLERS: RefCell<Vec<Caller>> = const { RefCell::new(Vec::new()) };
    /// Utility statements that run, from the outermost one on whose query is its user's own: level, and is it so.
    static OWN_QUERIES: RefCell<Vec<(u32, bool)>> = const { RefCell::new(Vec::new()) };
    static IN_OWN_QUERY: Cell<bool> = const { Cell::new(false) };
}

// ------------------------------------------------------------------------------------------------------------ who asks

/// The current user of whoever called agd.
pub fn current_user() -> pg_sys::Oid {
    // SAFETY: reads a process global.
    let user = unsafe { raw::GetUserId() };
    CALLERS.with_borrow(|callers| match callers.last() {
        Some(caller) if caller.owner == user => caller.user,
        _ => user,
    })
}

/// Who acts, as it is recorded: the outer user, and the current one. (The apply worker takes the table owner's rights for what
/// it writes; that is nobody's function.)
pub fn acting() -> (pg_sys::Oid, pg_sys::Oid) {
    let (outer, current) = (backend::outer_user(), current_user());
    let applied = current != outer && nesting::level() == 0 && replication::is_applying();
    (outer, if applied { outer } else { current })
}

/// Is this a security-restricted operation that is nobody's own query? Then whoever acts is nobody.
pub fn is_restricted() -> bool {
    // SAFETY: reads process globals.
    let (flagged, vacuums) = unsafe {
        (raw::InSecurityRestrictedOperation(), pg_sys::MyBackendType == pg_sys::BackendType::B_AUTOVAC_WORKER)
    };
    vacuums || flagged && !is_own_query()
}

/// 42501 in a security-restricted operation, for what only somebody may do.
pub fn must_be_somebody(what: &str) -> Result<()> {
    if is_restricted() { Err(nobody(what)) } else { Ok(()) }
}

/// 42501 where no guarded row may be written. What the apply worker itself writes may: since PostgreSQL 16 it takes a
/// restricted identity for it. What its triggers run is a query, and deeper.
pub fn may_write(relation: impl FnOnce() -> String) -> Result<()> {
    if !is_restricted() || nesting::level() == 0 && replication::is_applying() {
        return Ok(());
    }
    Err(nobody(&format!("a write to {}", relation())))
}

fn nobody(what: &str) -> Error {
    Error::NotAllowed {
        message: format!("{what} is refused within a security-restricted operation, where whoever acts is nobody"),
        hint: "Maintenance (VACUUM, ANALYZE, REINDEX, CLUSTER, REFRESH) runs functions of indexes, statistics and views. Take \
               what reads or writes guarded data out of them."
            .into(),
    }
}

/// Are both allowed, the outer user and the current one? Nobody is.
pub fn both(allowed: impl Fn(pg_sys::Oid) -> bool) -> bool {
    let (outer, current) = (backend::outer_user(), current_user());
    !is_restricted() && allowed(outer) && (current == outer || allowed(current))
}

/// Is a user a superuser?
pub fn is_superuser(user: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up.
    unsafe { pg_sys::superuser_arg(user) }
}

/// Has a user the rights of a role? Superusers have those of every role that there is.
pub fn is_member(user: pg_sys::Oid, role: &CStr) -> bool {
    // SAFETY: catalog look-ups; an unknown role has no members.
    unsafe {
        let role = pg_sys::get_role_oid(role.as_ptr(), true);
        role != pg_sys::InvalidOid && pg_sys::has_privs_of_role(user, role)
    }
}

// ---------------------------------------------------------------------------------------- a user's own materialized view

/// In PostgreSQL's eyes the query of a materialized view is a restricted operation, also when its owner makes it. The
/// flag cannot tell; this does, for the statement and what is below it. Not for a utility statement within it, and not where
/// the current user has become another.
fn is_own_query() -> bool {
    let own = if crate::tenant::is_parallel_worker() { share::leader_runs_own_query() } else { IN_OWN_QUERY.get() };
    own && current_user() == backend::outer_user()
}

/// A utility statement begins at a nesting level.
///
/// # Safety
/// A utility statement's node.
pub unsafe fn utility_begins(node: *mut pg_sys::Node, level: u32) {
    // SAFETY: passed on from the caller.
    let own = unsafe { makes_own_view(node) };
    OWN_QUERIES.with_borrow_mut(|running| {
        if own || !running.is_empty() {
            running.push((level, own));
            show(running);
        }
    });
}

/// What runs now runs at this level.
pub fn return_to(level: u32) {
    OWN_QUERIES.with_borrow_mut(|running| {
        if running.last().is_some_and(|(of, _)| *of > level) {
            running.retain(|(of, _)| *of <= level);
            show(running);
        }
    });
}

fn show(running: &[(u32, bool)]) {
    let own = running.last().is_some_and(|(_, own)| *own);
    IN_OWN_QUERY.set(own);
    share::show_own_query(own);
}

/// CREATE or REFRESH MATERIALIZED VIEW by the outer user, whose the view is.
unsafe fn makes_own_view(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the tag tells the node's type; look-ups by name and oid.
    unsafe {
        let outer = backend::outer_user();
        match (*node).type_ {
            pg_sys::NodeTag::T_CreateTableAsStmt => {
                let statement = node.cast::<pg_sys::CreateTableAsStmt>();
                (*statement).objtype == pg_sys::ObjectType::OBJECT_MATVIEW && may_be_own(outer)
            }
            pg_sys::NodeTag::T_RefreshMatViewStmt => {
                let view = crate::guard::detach::named((*node.cast::<pg_sys::RefreshMatViewStmt>()).relation);
                may_be_own(outer) && backend::owner_of(view) == Some(outer)
            }
            _ => false,
        }
    }
}

/// Neither restricted yet, nor within somebody's SECURITY DEFINER function.
fn may_be_own(outer: pg_sys::Oid) -> bool {
    current_user() == outer && !is_restricted()
}

// --------------------------------------------------------------------------------------------- with agd's owner's rights

/// Runs a function that its caller asked for with the rights of agd's owner, under pinned settings. 42501, recorded, in a
/// security-restricted operation.
///
/// # Safety
/// The call is the one being answered.
pub unsafe fn as_owner<T>(call: pg_sys::FunctionCallInfo, body: impl FnOnce() -> Result<T>) -> Result<T> {
    if is_restricted() {
        // SAFETY: the call is valid; a catalog look-up that gives a C string, or NULL for what is gone.
        let name = unsafe {
            let name = pg_sys::get_func_name((*(*call).flinfo).fn_oid);
            if name.is_null() { "a function of agd".into() } else { CStr::from_ptr(name).to_string_lossy() }
        };
        denied::attempted(Attempt { action: Some("CALL".into()), ..Attempt::default() });
        return Err(nobody(&format!("agd.{name}()")));
    }
    always_as_owner(body)
}

/// The same for what agd does by itself, whoever acts: judging DDL, completing partitions.
pub fn always_as_owner<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    // Gone with the extension, in the middle of DROP EXTENSION: then there is nothing left that needs its rights.
    let Some(owner) = agds_owner() else { return body() };
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: reads process globals.
    unsafe { pg_sys::GetUserIdAndSecContext(&mut user, &mut context) };
    let _called = Called::by(Caller { user: current_user(), owner });
    // SAFETY: what the function manager does for SECURITY DEFINER functions and for their settings. An error puts both back
    // when its (sub)transaction is aborted.
    let level = unsafe {
        pg_sys::SetUserIdAndSecContext(owner, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
        pg_sys::NewGUCNestLevel()
    };
    pin();
    let result = body();
    // SAFETY: as above.
    unsafe {
        pg_sys::AtEOXact_GUC(true, level);
        pg_sys::SetUserIdAndSecContext(user, context);
    }
    result
}

/// Takes a caller back out however the function ends.
struct Called {
    depth: usize,
}

impl Called {
    fn by(caller: Caller) -> Self {
        CALLERS.with_borrow_mut(|callers| {
            callers.push(caller);
            Called { depth: callers.len() - 1 }
        })
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        CALLERS.with_borrow_mut(|callers| callers.truncate(self.depth));
    }
}

/// The transaction was rolled back, and nothing of it runs any more.
pub fn transaction_rolled_back() {
    CALLERS.with_borrow_mut(Vec::clear);
}

/// Who owns the extension, and with it all that is in it. Not the schema's owner, whom a statement that is being judged may
/// just have changed.
fn agds_owner() -> Option<pg_sys::Oid> {
    // SAFETY: a scan of pg_extension by its name's index; the tuple is read before it is let go of.
    unsafe {
        let relation = pg_sys::table_open(pg_sys::ExtensionRelationId, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let name = pg_sys::Datum::from(c"agd".as_ptr());
        let mut key =
            scan_key(pg_sys::Anum_pg_extension_extname as i16, pg_sys::BTEqualStrategyNumber, pg_sys::F_NAMEEQ, name);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::Oid::from(pg_sys::ExtensionNameIndexId),
            true,
            std::ptr::null_mut(),
            1,
            &mut key,
        );
        let tuple = pg_sys::systable_getnext(scan);
        let owner =
            (!tuple.is_null()).then(|| (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_extension>()).extowner);
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        owner
    }
}

/// Sets what is not so already; for the nest level that has just begun.
fn pin() {
    for (name, value) in PINNED {
        // SAFETY: the name and the value are C strings; what is found is one that is alive until the setting changes.
        unsafe {
            let present = pg_sys::GetConfigOption(name.as_ptr(), true, false);
            if !present.is_null() && CStr::from_ptr(present) == value {
                continue;
            }
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }
}
