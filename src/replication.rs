//! Writes that come from another server by logical replication.
//!
//! Owns the answer to "where does this write come from". The apply worker and the initial copy of a table run as the
//! subscription's owner, with no client and no statement of their own: what the record can truly say is the subscription.
//! Promises that a replicated transaction is marked as such, and that no replicated row reaches agd's own tables: the
//! record of one database is not data for another's.
#![allow(unsafe_code)] // reads the backend's replication state

use pgrx::pg_sys;
use std::ffi::{CStr, c_char};

/// Does this process apply what another server sends?
pub fn is_applying() -> bool {
    // SAFETY: both read globals of this process.
    unsafe { origin_id().is_some() || pg_sys::IsLogicalWorker() }
}

/// Called when a transaction that recorded nothing has committed: was it a replicated COMMIT PREPARED? The apply worker
/// runs it as no statement, in a transaction without a number of its own. Such a one may also have done nothing.
pub fn may_have_committed_prepared() -> bool {
    // SAFETY: both read the state of this process.
    unsafe { pg_sys::IsLogicalWorker() && pg_sys::GetTopTransactionIdIfAny() == pg_sys::InvalidTransactionId }
}

/// # Safety
/// Reads a global of this process.
unsafe fn origin_id() -> Option<pg_sys::RepOriginId> {
    // SAFETY: set by the apply worker, or by pg_replication_origin_session_setup().
    let id = unsafe { pg_sys::replorigin_session_origin };
    (u32::from(id) != pg_sys::InvalidRepOriginId && u32::from(id) != pg_sys::DoNotReplicateId).then_some(id)
}

/// Where this transaction comes from: the subscription's name, or that of a replication origin that something other than
/// a subscription set up. None: it is this server's own.
pub fn origin() -> Option<String> {
    unsafe extern "C-unwind" {
        fn get_subscription_name(subscription: pg_sys::Oid, missing_ok: bool) -> *mut c_char;
    }
    // SAFETY: catalog look-ups inside a transaction; both give NULL for what is gone.
    unsafe {
        let id = origin_id()?;
        let mut name: *mut c_char = std::ptr::null_mut();
        if !pg_sys::replorigin_by_oid(id, true, &mut name) || name.is_null() {
            return Some(format!("(dropped replication origin {id})"));
        }
        let name = CStr::from_ptr(name).to_string_lossy().into_owned();
        let Some(subscription) = subscription_of(&name) else { return Some(name) };
        let found = pg_sys::submodules::ffi::pg_guard_ffi_boundary(|| get_subscription_name(subscription, true));
        Some(if found.is_null() { name } else { CStr::from_ptr(found).to_string_lossy().into_owned() })
    }
}

/// PostgreSQL names a subscription's origin `pg_<its oid>`, and `pg_<its oid>_<the table's oid>` during the initial copy.
fn subscription_of(origin: &str) -> Option<pg_sys::Oid> {
    let number = origin.strip_prefix("pg_")?;
    let number = number.split_once('_').map_or(number, |(subscription, _table)| subscription);
    number.parse::<u32>().ok().map(pg_sys::Oid::from)
}
