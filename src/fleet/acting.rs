//! A fleet as the one that acts: transactions that are bound to it by a token (src/tenant/bind.rs).
//!
//! Owns the question whether a fleet may act, and the lock between its transactions and its seal. Promises that in its
//! tenant's log nothing of a fleet stands before it became active or after it was sealed: whoever commits under it holds it
//! from before the commit stamp is drawn until the commit is done, and a seal waits for those and keeps out those to come.
//! Before that a transaction holds nothing, so no transaction that is merely open keeps a fleet from being sealed. Never
//! tells of another tenant's fleet.
#![allow(unsafe_code)] // index entries, invalidation messages

use super::is_fleet_id;
use crate::catalog::{
    Columns, Relation, catalog, column, lock_number, scan, scan_key, text, to_varlena, unlock_number,
};
use crate::error::{Error, Result};
use pgrx::pg_sys;

/// AG004 unless the fleet is this tenant's and active now, by the latest committed state and what this transaction did.
///
/// Active is a state that no deadline ends: of the clock nothing more is to be asked.
pub fn must_be_active(fleet_id: &str, tenant: &str) -> Result<()> {
    let refuse = |message: &str, hint: &str| {
        Err(Error::TokenRefused { message: message.into(), hint: hint.into(), recorded: message.into() })
    };
    // The same for what is no id, for no fleet and for another tenant's.
    match find(fleet_id)? {
        Some((owner, state)) if owner == tenant => match state.as_str() {
            "active" => Ok(()),
            "sealed" => refuse(
                &format!("fleet {fleet_id} is sealed: nothing is done in its name any more"),
                "Roll back. Mint another fleet: SELECT agd.mint_tenant_fleet(tenant, cause).",
            ),
            _ => refuse(
                &format!("fleet {fleet_id} is not active"),
                "A fleet acts once it is signed and countersigned: SELECT fleet_id, state FROM agd.fleets.",
            ),
        },
        _ => refuse(
            "the token names no fleet of its tenant",
            "The claim \"fleet\" is one of the tenant's: SELECT fleet_id, state FROM agd.fleets. A token may be without.",
        ),
    }
}

/// A fleet's tenant and its stored state.
pub(super) fn find(fleet_id: &str) -> Result<Option<(String, String)>> {
    if !is_fleet_id(fleet_id) {
        return Ok(None);
    }
    let catalog = catalog()?;
    let relation = Relation::open(catalog.tenant_agent_fleet, pg_sys::AccessShareLock);
    let mut keys = [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ, to_varlena(fleet_id.as_bytes()))];
    keys[0].sk_collation = pg_sys::C_COLLATION_OID;
    let (tenant, state) =
        (column(catalog.tenant_agent_fleet, c"tenant")?, column(catalog.tenant_agent_fleet, c"state")?);
    let mut columns = Columns::default();
    let mut found = None;
    scan(&relation, Some(catalog.tenant_agent_fleet_pkey), std::ptr::null_mut(), &mut keys, |tuple| {
        columns.deform(tuple, relation.descriptor());
        let read = |column: usize| -> Result<String> {
            // SAFETY: tenant and state of agd.tenant_agent_fleet are text.
            let value = columns.get(column).map(|value| unsafe { text(value) }).transpose()?;
            Ok(value.unwrap_or_default().to_owned())
        };
        found = Some((read(tenant)?, read(state)?));
        Ok(())
    })?;
    Ok(found)
}

/// Before a transaction that is bound to a fleet draws its stamp: waits for whoever is sealing it, keeps it from being sealed
/// until the commit is done, and looks once more. AG004 when it is not active any more.
pub fn hold(fleet_id: &str, tenant: &str) -> Result<()> {
    lock(fleet_id, pg_sys::ShareLock)?;
    must_be_active(fleet_id, tenant)
}

/// Before a fleet is sealed: waits for those who are committing under it, and keeps out those to come.
pub fn exclude(fleet_id: &str) -> Result<()> {
    lock(fleet_id, pg_sys::ExclusiveLock)
}

/// Waits for whoever is sealing the fleet, and holds nothing then: nobody is kept from sealing it.
pub(super) fn wait_for_seal(fleet_id: &str) -> Result<()> {
    lock(fleet_id, pg_sys::ShareLock)?;
    unlock_number(catalog()?.tenant_agent_fleet, number(fleet_id)?, pg_sys::ShareLock);
    Ok(())
}

fn lock(fleet_id: &str, mode: u32) -> Result<()> {
    lock_number(catalog()?.tenant_agent_fleet, number(fleet_id)?, mode);
    Ok(())
}

fn number(fleet_id: &str) -> Result<u64> {
    u64::from_str_radix(fleet_id, 16).map_err(|_| Error::Internal("agd: a lock on what is no fleet's id".into()))
}

/// Fleets were sealed: once that is committed, whoever is bound to one of them looks again with the next row or statement.
pub fn sealed() -> Result<()> {
    let table = catalog()?.tenant_agent_fleet;
    // SAFETY: queues a message for the end of the command and of the transaction.
    unsafe { pg_sys::CacheInvalidateRelcacheByRelid(table) };
    Ok(())
}
