//! The end of a fleet: sealed by whoever may, or cancelled because nobody countersigned it in time.
//!
//! Promises that fleet, countersign request and agents end together or not at all, and that the number of rows of each is
//! what it must be; a fleet that was active has no open request, one that was pending has exactly one.
#![allow(unsafe_code)] // is called by the function manager as it is

use super::sign::lock;
use super::signer::checked_reason;
use super::{Fleet, acting, last, missing, must_be, timestamp, told, way, writing};
use crate::error::{self, Error, Result};
use crate::fmgr::{argument, definer_function};
use crate::query::{count_kept, write_kept};
use crate::{denied, tenant};
use agd_core::fleet::lifecycle::{self, Event, State};
use pgrx::pg_sys;

/// Why a fleet is cancelled that nobody seals. The same words: agd.fleets, sql/70_fleet.sql.
const MISSED: &str = "the countersign window was missed";

definer_function!(agd_seal_tenant_fleet, pg_finfo_agd_seal_tenant_fleet, answer_seal);

/// `agd.seal_tenant_fleet(fleet_id, reason)`
fn answer_seal(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.seal_tenant_fleet(fleet_id text, reason text).
    let (fleet_id, reason) = unsafe { (argument::<String>(call, 0), argument::<String>(call, 1)) };
    told("SEAL FLEET", seal(fleet_id.as_deref(), reason.as_deref()))?;
    Ok(pg_sys::Datum::from(0))
}

fn seal(fleet_id: Option<&str>, reason: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.seal_tenant_fleet()");
    let fleet_id = fleet_id.ok_or_else(|| missing("a fleet_id", "agd.seal_tenant_fleet(fleet_id, 'acme has left')"))?;
    let reason = checked_reason(reason)?;
    way::clear(fleet_id)?;
    let fleet = lock(fleet_id)?;
    if tenant::bound_fleet()?.as_deref() == Some(fleet.id.as_str()) {
        let error = Error::WrongState {
            message: format!(
                "this transaction acts for fleet {}, and could not be committed once it is sealed",
                fleet.id
            ),
            hint:
                "Seal it in a transaction that is bound to its tenant alone: with a token without the claim \"fleet\"."
                    .into(),
        };
        return Err(denied::concerning(Some(&fleet.tenant), error));
    }
    acting::exclude(&fleet.id)?;
    let now = fleet.now();
    let state = fleet.step(Event::Seal, now)?;
    let fleets = [fleet];
    end(&fleets, state, now, reason)?;
    fleets.iter().for_each(last::ended);
    Ok(())
}

/// Ends fleets whose rows this transaction has locked and that are all in one state.
fn end(fleets: &[Fleet], state: State, now: i64, reason: &str) -> Result<()> {
    let ids: Vec<String> = fleets.iter().map(|fleet| fleet.id.clone()).collect();
    let was_active = state == State::Sealed;
    let now = timestamp(now)?;
    writing(|| {
        let ended = count_kept(
            if was_active {
                "UPDATE agd.tenant_agent_fleet SET state = 'sealed', sealed_at = $2, reason = $3
                  WHERE fleet_id = ANY ($1) AND state = 'active'"
            } else {
                "UPDATE agd.tenant_agent_fleet SET state = 'cancelled', cancelled_at = LEAST($2, countersign_deadline), reason = $3
                  WHERE fleet_id = ANY ($1) AND state = 'pending'"
            },
            &[ids.clone().into(), now.into(), reason.into()],
        )?;
        must_be("fleets that end", ids.len(), ended)?;
        if was_active {
            acting::sealed()?;
        }
        let cancelled = count_kept(
            "UPDATE agd.countersign_request SET state = 'cancelled', closed_at = LEAST($2, deadline)
              WHERE fleet_id = ANY ($1) AND state = 'open'",
            &[ids.clone().into(), now.into()],
        )?;
        must_be("countersign requests that are cancelled", if was_active { 0 } else { ids.len() }, cancelled)?;
        let archived = count_kept(
            "UPDATE agd.fleet_agent SET archived_at = $2 WHERE fleet_id = ANY ($1) AND archived_at IS NULL",
            &[ids.clone().into(), now.into()],
        )?;
        must_be("agents that are archived", fleets.iter().map(|fleet| fleet.agents).sum(), archived)
    })
}

/// Writes down that a fleet has missed its window, if it is still to be written down.
pub(super) fn cancel_missed(fleet_id: &str) -> Result<()> {
    cancel_all(
        "SELECT {} FROM agd.tenant_agent_fleet f WHERE f.fleet_id = $1 AND f.state = 'pending' FOR UPDATE",
        fleet_id,
    )
    .map(drop)
}

/// The same for all of them that nobody else is at, up to some number. How many there were.
pub(super) fn cancel_all_missed(limit: usize) -> Result<usize> {
    cancel_all(
        "SELECT {} FROM agd.tenant_agent_fleet f
          WHERE f.state = 'pending' AND f.countersign_deadline <= pg_catalog.clock_timestamp()
          ORDER BY f.fleet_id LIMIT $1::int FOR UPDATE SKIP LOCKED",
        &limit.to_string(),
    )
}

fn cancel_all(query: &str, argument: &str) -> Result<usize> {
    let query = query.replacen("{}", super::COLUMNS, 1);
    let mut fleets: Vec<Fleet> =
        write_kept(&query, &[argument.into()], |rows| rows.map(|row| Fleet::read(&row)).collect())?;
    fleets.retain(|fleet| lifecycle::step(fleet.state, Event::Expire, fleet.now()).is_ok());
    let Some(now) = fleets.iter().map(Fleet::now).max() else { return Ok(0) };
    end(&fleets, State::Cancelled, now, MISSED)?;
    Ok(fleets.len())
}
