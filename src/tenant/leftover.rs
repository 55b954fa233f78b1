//! What a session must not carry from one transaction into the next, where each transaction binds by itself.
//!
//! Owns two rules for login roles that are mapped 'token' or 'asserted', whose sessions serve one tenant after the other:
//! no cursor WITH HOLD, and whatever is temporary is dropped when the transaction commits, as if it were ON COMMIT DROP.
//! Promises that rows which one tenant could read are not found by the next in a held result or in a temporary table, and
//! that no temporary table stands in front of a real one. Settings, prepared statements and advisory locks are not its
//! business: they hold no rows, and a pooler resets them (docs/threat-model.md).
#![allow(unsafe_code)] // parse nodes, the transaction's flags, dropping what is temporary

use super::{Mode, mapping};
use crate::error::{Error, Result};
use crate::{backend, catalog};
use pgrx::pg_sys;

/// Is the session user one that binds each of its transactions?
fn binds_each_transaction() -> Result<bool> {
    if !catalog::is_installed() {
        return Ok(false);
    }
    Ok(mapping(backend::session_user())?.is_some_and(|mapping| mapping.mode != Mode::Role))
}

/// Before a utility statement runs. 0A000 for a cursor that would outlive the binding.
///
/// # Safety
/// A utility statement's node.
pub unsafe fn before_utility(node: *mut pg_sys::Node) -> Result<()> {
    // SAFETY: the tag tells the node's type.
    let held = unsafe {
        (*node).type_ == pg_sys::NodeTag::T_DeclareCursorStmt
            && (*node.cast::<pg_sys::DeclareCursorStmt>()).options as u32 & pg_sys::CURSOR_OPT_HOLD != 0
    };
    if !held || !binds_each_transaction()? {
        return Ok(());
    }
    Err(Error::Unsupported {
        message: "a cursor WITH HOLD would outlive the binding of this transaction".into(),
        hint: "This login role binds each transaction by itself. Fetch what you need before the transaction ends."
            .into(),
    })
}

/// Before the transaction commits: drops what is temporary.
pub fn before_commit() -> Result<()> {
    // SAFETY: the flags of the present transaction; they tell whether it had anything to do with temporary objects.
    if unsafe { pg_sys::MyXactFlags } as u32 & pg_sys::XACT_FLAGS_ACCESSEDTEMPNAMESPACE == 0
        || !binds_each_transaction()?
    {
        return Ok(());
    }
    // SAFETY: what DISCARD TEMP does, in a transaction that can still fail. PostgreSQL itself drops ON COMMIT DROP tables a
    // moment later, under a snapshot like this one.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        pg_sys::ResetTempTableNamespace();
        pg_sys::PopActiveSnapshot();
        pg_sys::CommandCounterIncrement();
    }
    Ok(())
}
