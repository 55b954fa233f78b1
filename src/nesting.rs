//! How deep the present statement is nested, and what happens when a statement ends.
//!
//! Owns the executor and utility hooks. Promises that [`level`] is the same number in a query's BEFORE and AFTER
//! triggers and larger in every query they run, and that intents which no AFTER trigger confirmed are voided when their
//! query ends. Never decides anything about a row, nor about DDL: [`crate::guard::protect`] is told when a statement
//! begins and ends.
//!
//! A statement trigger could not do this: with two data-modifying CTEs the AFTER STATEMENT trigger of one runs before
//! the AFTER ROW triggers of the other, and a partition-moving UPDATE confirms a DELETE and an INSERT.
//!
//! The hooks are plain C functions in all but language: an error passes through them as PostgreSQL's own jump, untouched.
//! Caught and raised again by pgrx it would lose its context, its constraint's name, and any SQLSTATE that pgrx does not
//! know. So nothing here may have anything to drop while PostgreSQL runs, and the level is put back where errors end: at
//! the abort of the (sub)transaction.
#![allow(unsafe_code)] // hooks are raw C function pointers

use crate::error;
use crate::worker::databases;
use crate::{event, identity, transaction};
use pgrx::pg_sys;
use std::ffi::c_char;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Of this backend; backends have one thread.
static LEVEL: AtomicU32 = AtomicU32::new(0);

/// The nesting level of the query or utility statement that runs now; 0 outside of any.
pub fn level() -> u32 {
    LEVEL.load(Relaxed)
}

/// One level deeper, where a query or utility statement begins.
fn enter(outer: u32) {
    LEVEL.store(outer + 1, Relaxed);
}

/// The statement is over, or an error was caught: what runs now runs at this level.
pub fn return_to(level: u32) {
    LEVEL.store(level, Relaxed);
    identity::return_to(level);
}

static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;

unsafe extern "C-unwind" {
    // Declared here and not taken from pgrx, which would catch errors on the way.
    #[cfg(not(feature = "pg18"))]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        once: bool,
    );
    #[cfg(feature = "pg18")]
    fn standard_ExecutorRun(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64);
    fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        query_string: *const c_char,
        read_only_tree: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        query_env: *mut pg_sys::QueryEnvironment,
        dest: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

/// Installs the hooks. Called once from `_PG_init`.
pub fn init() {
    // SAFETY: _PG_init runs single-threaded in the postmaster; previous hooks are kept and called.
    unsafe {
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(executor_run);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(executor_finish);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

#[cfg(not(feature = "pg18"))]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    let outer = level();
    enter(outer);
    // SAFETY: passes on exactly what PostgreSQL passed in.
    unsafe {
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count, once),
            None => standard_ExecutorRun(query, direction, count, once),
        }
    }
    return_to(outer);
}

#[cfg(feature = "pg18")]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
) {
    let outer = level();
    enter(outer);
    // SAFETY: passes on exactly what PostgreSQL passed in.
    unsafe {
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count),
            None => standard_ExecutorRun(query, direction, count),
        }
    }
    return_to(outer);
}

unsafe extern "C-unwind" fn executor_finish(query: *mut pg_sys::QueryDesc) {
    let outer = level();
    return_to(outer + 1);
    // SAFETY: passes on what PostgreSQL passed in; the estate lives until ExecutorEnd. This frame has nothing to drop.
    unsafe {
        match PREVIOUS_FINISH {
            Some(previous) => previous(query),
            None => standard_ExecutorFinish(query),
        }
        if crate::guard::touched::query_did_ddl(outer + 1) {
            error::entry(|| crate::guard::protect::after_utility(outer + 1));
        }
        // A referential action (ON DELETE CASCADE and its kin) runs as a query of its own, but its AFTER triggers are
        // queued with the statement that caused it: the intents go up with them.
        let triggers_belong_to_caller =
            ((*(*query).estate).es_top_eflags as u32 & pg_sys::EXEC_FLAG_SKIP_TRIGGERS) != 0;
        if transaction::must_end_query() {
            error::entry(|| transaction::query_ended(outer + 1, triggers_belong_to_caller));
        }
    }
    return_to(outer);
}

#[allow(clippy::too_many_arguments)] // PostgreSQL's signature
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query_string: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    query_env: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    let outer = level();
    enter(outer);
    // SAFETY: passes on exactly what PostgreSQL passed in. `statement` may be freed by COMMIT or ROLLBACK: what is
    // needed of it is read before. This frame has nothing to drop.
    unsafe {
        let node = (*statement).utilityStmt;
        let commits_prepared = (*node).type_ == pg_sys::NodeTag::T_TransactionStmt
            && (*node.cast::<pg_sys::TransactionStmt>()).kind
                == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED;
        // The statement may be DDL on the table of events, which nobody may have open then.
        if event::is_kept_open() {
            error::entry(|| {
                event::close();
                Ok(())
            });
        }
        let adds_a_partition = crate::guard::partition::adds_a_partition(node);
        let concerns_a_database = databases::concerned_by(node);
        if concerns_a_database {
            let top_level = context == pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL;
            error::entry(|| databases::before_utility(node, top_level));
        }
        error::entry(|| {
            identity::utility_begins(node, outer + 1);
            Ok(())
        });
        error::entry(|| crate::tenant::leftover::before_utility(node));
        error::entry(|| crate::guard::protect::before_utility(statement, query_string, context));
        match PREVIOUS_UTILITY {
            Some(previous) => {
                previous(statement, query_string, read_only_tree, context, params, query_env, dest, completion)
            }
            None => standard_ProcessUtility(
                statement,
                query_string,
                read_only_tree,
                context,
                params,
                query_env,
                dest,
                completion,
            ),
        }
        if concerns_a_database {
            error::entry(databases::after_utility);
        }
        if adds_a_partition {
            error::entry(crate::guard::partition::after_partition_added);
        }
        error::entry(|| crate::guard::protect::after_utility(outer + 1));
        // COPY FROM fires row triggers, and ATTACH records a baseline, without an executor query of their own.
        if transaction::must_end_query() {
            error::entry(|| transaction::query_ended(outer + 1, false));
        }
        // The prepared transaction's events became visible just now, and no callback of this backend told so.
        if commits_prepared {
            error::entry(|| {
                if let Some(database) = crate::shmem::this_database_if_any() {
                    database.add_waiting(1);
                }
                Ok(())
            });
        }
    }
    return_to(outer);
}
