//! Who writes agd's own tables of tenants, roles and keys.
//!
//! Promises that they are written by agd's own functions, by a superuser's own hand, and by a restore; and by nobody else,
//! whatever privileges he was granted and whatever function of somebody else's he calls. All of it is recorded, like any write.
//! The tables of fleets have rules of their own ([`crate::fleet`]), so have the record's and the log's
//! ([`crate::log::storage`]).

use crate::catalog::catalog;
use crate::error::{Error, Result};
use crate::guard::relation::Guarded;
use crate::identity;
use std::cell::Cell;

thread_local! {
    static WRITING: Cell<bool> = const { Cell::new(false) };
}

/// Runs statements of agd's own on these tables.
pub fn writing<T>(body: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            WRITING.set(false);
        }
    }
    WRITING.set(true);
    let _reset = Reset;
    body()
}

/// A superuser acts, and it is a superuser who does it: not somebody else's function that runs in his session, nor his own
/// that somebody else calls.
pub fn is_by_hand() -> bool {
    identity::both(identity::is_superuser)
}

/// The gate asks of each row: AG002 unless it is one of agd's own functions that writes, or a superuser.
pub fn check_write(guard: &Guarded) -> Result<()> {
    let catalog = catalog()?;
    let ours = [catalog.tenant, catalog.role_map, catalog.tenant_key, catalog.log_key];
    if !ours.contains(&guard.root) || WRITING.get() || is_by_hand() {
        return Ok(());
    }
    Err(Error::TamperingRefused {
        message: format!("{} is written by agd's own functions alone", guard.name),
        hint: "agd.create_tenant(), agd.map_role(), agd.unmap_role(), agd.add_tenant_key(), agd.revoke_tenant_key(), \
               agd.register_log_key() and agd.revoke_log_key() do; members of agd_platform may call them. A superuser's own statement is recorded."
            .into(),
    })
}
