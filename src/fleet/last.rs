//! A tenant's last fleet: when it has ended, the tenant's log is closed by a final checkpoint.
//!
//! Owns the event LOG.CLOSE and the question whether a tenant has a fleet that is not over. Promises that whoever seals or
//! cancels a tenant's last one records that event behind it, in the same transaction, once: seals of one tenant come one
//! after the other, and none of them together with a mint. The worker anchors the log just behind that event
//! (src/log/sequencer.rs). What the tenant writes later opens the log again. Never says that a log is closed by itself: the
//! event says it, and is the last leaf under the final checkpoint.

use super::Fleet;
use crate::catalog::{catalog, lock_number};
use crate::error::Result;
use crate::event::{self, Record};
use crate::query::{self, At};
use crate::transaction;
use agd_core::entry;
use agd_core::fleet::close_body;
use pgrx::pg_sys;
use sha2::{Digest as _, Sha256};

/// A fleet was minted: until this is committed, no log is closed over it.
pub fn minted(tenant: &str) -> Result<()> {
    lock(tenant, pg_sys::ShareLock)
}

/// A fleet was ended by somebody's word: if it was its tenant's last, the tenant's log is closed.
pub fn ended(fleet: &Fleet) -> Result<()> {
    lock(&fleet.tenant, pg_sys::ExclusiveLock)?;
    // What others have committed meanwhile counts, whatever this transaction's snapshot shows. The name is of a-z, 0-9, _, -.
    let live = format!(
        "SELECT 1 FROM agd.tenant_agent_fleet f
          WHERE f.tenant = '{}' AND (f.state = 'active'
             OR f.state = 'pending' AND f.countersign_deadline > pg_catalog.clock_timestamp()) LIMIT 1",
        fleet.tenant
    );
    if !query::rows(At::Now, &live)?.is_empty() {
        return Ok(());
    }
    let body = close_body(&fleet.id);
    event::insert(&Record { tenant: Some(&fleet.tenant), body: Some(&body), ..Record::of(entry::LOG_CLOSE) })?;
    transaction::note_log_closed();
    Ok(())
}

fn lock(tenant: &str, mode: u32) -> Result<()> {
    let [a, b, c, d, e, f, ..]: [u8; 32] = Sha256::digest(tenant).into();
    lock_number(catalog()?.tenant, u64::from_be_bytes([0, 0, a, b, c, d, e, f]), mode);
    Ok(())
}
