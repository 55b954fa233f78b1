//! A tenant's last fleet: when it has ended, the tenant's log is closed by a final checkpoint.
//!
//! Owns the event LOG.CLOSE and the question whether a tenant has a fleet that is not over. Promises that whoever seals or
//! cancels a tenant's last one records that event behind it, in the same transaction, once: that is decided on the way into the
//! commit, where those who end fleets of one tenant come one after the other, and none of them together with one who minted.
//! So a transaction that is merely open, having sealed or minted, is in nobody's way. The worker anchors the log just behind
//! that event (src/log/sequencer.rs). What the tenant writes later opens the log again. Never says that a log is closed by
//! itself: the event says it, and is the last leaf under the final checkpoint.
#![allow(unsafe_code)] // index entries

use super::{Fleet, pending};
use crate::catalog::{Columns, Relation, catalog, column, lock_number, named, scan, scan_key, text, to_varlena};
use crate::error::Result;
use crate::event::{self, Record};
use crate::{backend, transaction};
use agd_core::entry;
use agd_core::fleet::close_body;
use pgrx::pg_sys;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// A fleet was minted: when this is committed, no log is closed over it.
pub fn minted(tenant: &str) {
    pending::minted(tenant);
}

/// A fleet was ended by somebody's word: if it turns out to be its tenant's last, the tenant's log is closed.
pub fn ended(fleet: &Fleet) {
    pending::ended(&fleet.tenant, &fleet.id);
}

/// The tenants to be locked, by name, and whether nobody else may be at them.
pub(super) fn in_order<'a>(
    minted: impl Iterator<Item = &'a String>,
    ended: impl Iterator<Item = &'a String>,
) -> BTreeMap<String, bool> {
    let mut order: BTreeMap<String, bool> = minted.map(|tenant| (tenant.clone(), false)).collect();
    order.extend(ended.map(|tenant| (tenant.clone(), true)));
    order
}

/// Records that a tenant's log is closed, if no fleet of the tenant is pending or active any more. Whatever this
/// transaction's snapshot shows: what others have committed meanwhile counts.
pub(super) fn close_if_over(tenant: &str, fleet_id: &str) -> Result<()> {
    if has_live_fleet(tenant)? {
        return Ok(());
    }
    let body = close_body(fleet_id);
    event::insert(&Record { tenant: Some(tenant), body: Some(&body), ..Record::of(entry::LOG_CLOSE) })?;
    transaction::note_log_closed();
    Ok(())
}

fn has_live_fleet(tenant: &str) -> Result<bool> {
    let table = catalog()?.tenant_agent_fleet;
    let relation = Relation::open(table, pg_sys::AccessShareLock);
    let (state, deadline) = (column(table, c"state")?, column(table, c"countersign_deadline")?);
    // The number of the table's column, which the index begins with.
    let of_tenant = column(table, c"tenant")? as i16 + 1;
    let mut keys =
        [scan_key(of_tenant, pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ, to_varlena(tenant.as_bytes()))];
    keys[0].sk_collation = pg_sys::C_COLLATION_OID;
    let mut columns = Columns::default();
    let (mut found, now) = (false, backend::now());
    scan(&relation, Some(named(c"fleet_live")?), std::ptr::null_mut(), &mut keys, |tuple| {
        columns.deform(tuple, relation.descriptor());
        // SAFETY: state of agd.tenant_agent_fleet is text.
        let state = columns.get(state).map(|value| unsafe { text(value) }).transpose()?.unwrap_or_default();
        let deadline = columns.get(deadline).map_or(0, |value| value.value() as i64);
        found |= state == "active" || state == "pending" && deadline > now;
        Ok(())
    })?;
    Ok(found)
}

/// Whoever minted waits for those who end fleets of the same tenant, and these (`alone`) for everybody.
pub(super) fn lock(tenant: &str, alone: bool) -> Result<()> {
    let [a, b, c, d, e, f, ..]: [u8; 32] = Sha256::digest(tenant).into();
    let mode = if alone { pg_sys::ExclusiveLock } else { pg_sys::ShareLock };
    lock_number(catalog()?.tenant, u64::from_be_bytes([0, 0, a, b, c, d, e, f]), mode);
    Ok(())
}
