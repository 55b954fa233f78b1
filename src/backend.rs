//! What the backend knows of the present session and transaction: who, when, and under which number.
//!
//! Owns nothing. Promises that what it only reads raises nothing and assigns nothing; so those functions are called without
//! pgrx's guard, which costs several times as much as they do, and the gate asks them for every row.
#![allow(unsafe_code)] // the backend's own functions

use pgrx::pg_sys;

mod raw {
    use pgrx::pg_sys;

    unsafe extern "C" {
        pub fn GetSessionUserId() -> pg_sys::Oid;
        pub fn GetOuterUserId() -> pg_sys::Oid;
        pub fn GetCurrentTimestamp() -> i64;
        pub fn GetCurrentSubTransactionId() -> u32;
        pub fn GetTopFullTransactionIdIfAny() -> pg_sys::FullTransactionId;
        pub fn GetCurrentStatementStartTimestamp() -> i64;
        pub fn ActiveSnapshotSet() -> bool;
        pub fn GetActiveSnapshot() -> pg_sys::Snapshot;
    }
}

/// Who authenticated, or whom SET SESSION AUTHORIZATION chose.
pub fn session_user() -> pg_sys::Oid {
    // SAFETY: reads a process global.
    unsafe { raw::GetSessionUserId() }
}

/// Who acts: the session user, or what SET ROLE chose. SECURITY DEFINER functions and referential actions change neither; so
/// this alone decides nothing (src/identity.rs).
pub fn outer_user() -> pg_sys::Oid {
    // SAFETY: reads a process global.
    unsafe { raw::GetOuterUserId() }
}

/// The system clock: microseconds since 2000-01-01.
pub fn now() -> i64 {
    // SAFETY: reads the clock.
    unsafe { raw::GetCurrentTimestamp() }
}

/// The number of the present subtransaction.
pub fn subtransaction() -> u32 {
    // SAFETY: reads the transaction's state.
    unsafe { raw::GetCurrentSubTransactionId() }
}

/// The full id of the present transaction; None: it has none yet.
pub fn transaction_id_if_any() -> Option<u64> {
    // SAFETY: reads the transaction's state.
    Some(unsafe { raw::GetTopFullTransactionIdIfAny() }.value).filter(|id| *id != 0)
}

/// The full id of the present transaction, assigned if it has none. Raises on a standby.
pub fn transaction_id() -> u64 {
    // SAFETY: guarded by pgrx, since it can raise.
    unsafe { pg_sys::GetTopFullTransactionId() }.value
}

/// What a query sees: equal for two calls under one snapshot of one statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    statement: i64,
    xmin: u32,
    xmax: u32,
    in_progress: (u32, i32),
    command: u32,
}

/// What the present query sees; None: no snapshot is active.
pub fn view() -> Option<View> {
    // SAFETY: an active snapshot is alive. Its horizon tells it: of the transactions below xmax that it holds to be in
    // progress, a later one with the same xmax can only have fewer.
    unsafe {
        if !raw::ActiveSnapshotSet() {
            return None;
        }
        let snapshot = &*raw::GetActiveSnapshot();
        Some(View {
            statement: raw::GetCurrentStatementStartTimestamp(),
            xmin: snapshot.xmin.into_inner(),
            xmax: snapshot.xmax.into_inner(),
            in_progress: (snapshot.xcnt, snapshot.subxcnt),
            command: snapshot.curcid,
        })
    }
}

/// Who owns a table, view or index; None: there is no such relation.
pub fn owner_of(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up; the tuple is read before it is let go of.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, relation.into());
        if tuple.is_null() {
            return None;
        }
        let owner = (*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>()).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}

/// May this user have a table vacuumed, analysed, clustered or indexed anew?
pub fn may_maintain(user: pg_sys::Oid, table: pg_sys::Oid) -> bool {
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    // SAFETY: catalog look-ups by oid.
    unsafe {
        pg_sys::pg_class_aclcheck(table, user, pg_sys::ACL_MAINTAIN.into()) == pg_sys::AclResult::ACLCHECK_OK
    }
    #[cfg(not(any(feature = "pg17", feature = "pg18")))]
    owns(user, pg_sys::RelationRelationId, table)
}

/// Is an object of this catalog a user's own, by itself or through membership?
pub fn owns(user: pg_sys::Oid, catalog: pg_sys::Oid, object: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups by oid.
    unsafe {
        #[cfg(feature = "pg15")]
        {
            if catalog == pg_sys::DatabaseRelationId {
                pg_sys::pg_database_ownercheck(object, user)
            } else if catalog == pg_sys::ExtensionRelationId {
                pg_sys::pg_extension_ownercheck(object, user)
            } else {
                pg_sys::pg_class_ownercheck(object, user)
            }
        }
        #[cfg(not(feature = "pg15"))]
        {
            pg_sys::object_ownercheck(catalog, object, user)
        }
    }
}
