//! `agd.verify_fleet()`: is a fleet what its rows say?
//!
//! Owns the reading of a fleet's evidence; [`agd_core::fleet::verify`] judges it, here as offline. Adds what only the database
//! can tell: whether request, signatures and agents agree with the fleet. Promises to report and not to raise.
#![allow(unsafe_code)] // is called by the function manager as it is

use super::sign::find_to_read;
use super::signer::evidence;
use super::{Fleet, context, missing, told_of_reading};
use crate::error::Result;
use crate::fmgr::{Rows, argument, definer_function, text};
use crate::log::record::EPOCH_DIFFERENCE;
use crate::log::storage::hashes;
use crate::query::kept;
use agd_core::fleet::verify::verify;
use agd_core::fleet::{Check, Evidence, Place, Signed};
use pgrx::datum::{IntoDatum, TimestampWithTimeZone};
use pgrx::pg_sys;

definer_function!(agd_verify_fleet, pg_finfo_agd_verify_fleet, answer_verify);

/// `agd.verify_fleet(fleet_id)`
fn answer_verify(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.verify_fleet(fleet_id text), which returns a table.
    let (fleet_id, mut rows) = unsafe { (argument::<String>(call, 0), Rows::begin(call)?) };
    let checks = || {
        let fleet_id = fleet_id.ok_or_else(|| missing("a fleet_id", "* FROM agd.verify_fleet(fleet_id)"))?;
        let fleet = find_to_read(&fleet_id)?;
        let mut checks = verify(&collect(&fleet)?);
        checks.push(check_rows(&fleet)?);
        Ok(checks)
    };
    for check in told_of_reading("VERIFY FLEET", checks())? {
        rows.put(|| [text(check.name), check.ok.into_datum(), text(&check.detail)]);
    }
    Ok(super::mint::answer(call, None))
}

fn collect(fleet: &Fleet) -> Result<Evidence> {
    let unix = |at: i64| at.saturating_add(EPOCH_DIFFERENCE);
    let (mut coordinator, mut countersigner) = (None, None);
    kept(
        "SELECT g.duty, g.signer, g.signature, g.signed_at, g.batch_size, g.batch_index, g.batch_path,
                s.duty, s.public_key, s.registered_at, s.revoked_at
           FROM agd.fleet_signature g LEFT JOIN agd.signer s USING (signer) WHERE g.fleet_id = $1",
        &[fleet.id.as_str().into()],
        |rows| {
            for row in rows {
                let time = |column: usize| -> Result<Option<i64>> {
                    Ok(row.get::<TimestampWithTimeZone>(column)?.map(TimestampWithTimeZone::into_inner))
                };
                let name: String = row.get(2)?.unwrap_or_default();
                let signed = Signed {
                    signer: evidence(name, row.get(8)?, row.get(9)?, time(10)?, time(11)?),
                    signature: row.get(3)?.unwrap_or_default(),
                    at: unix(time(4)?.unwrap_or_default()),
                };
                if row.get::<String>(1)?.as_deref() == Some("coordinator") {
                    coordinator = Some(signed);
                    continue;
                }
                let unsigned = |number: Option<i64>| number.unwrap_or_default().cast_unsigned();
                let place = Place {
                    size: unsigned(row.get(5)?),
                    index: unsigned(row.get(6)?),
                    path: hashes(&row.get::<Vec<u8>>(7)?.unwrap_or_default())?,
                };
                countersigner = Some((signed, place));
            }
            Ok(())
        },
    )?;
    Ok(Evidence {
        fleet_id: fleet.id.clone(),
        digest: fleet.digest.clone(),
        tenant: fleet.tenant.clone(),
        template: (fleet.template.clone(), fleet.version),
        cause: fleet.cause.clone(),
        generation: fleet.generation,
        origin: fleet.origin.clone(),
        minted_at: unix(fleet.minted_at),
        deadline: unix(fleet.deadline),
        agents: context::of(&fleet.id)?,
        context_digest: fleet.context_digest.clone(),
        state: fleet.state.name().to_owned(),
        coordinator,
        countersigner,
    })
}

/// Do the other tables' rows agree with the fleet's?
fn check_rows(fleet: &Fleet) -> Result<Check> {
    let problem = kept(
        "SELECT pg_catalog.concat_ws('; ',
           CASE WHEN (SELECT pg_catalog.count(*) FROM agd.fleet_agent a
                       WHERE a.fleet_id = f.fleet_id AND a.tenant = f.tenant
                         AND (a.archived_at IS NULL) = (f.state IN ('pending', 'active'))) <> f.agents
                  OR (SELECT pg_catalog.count(*) FROM agd.fleet_agent a WHERE a.fleet_id = f.fleet_id) <> f.agents
                THEN 'its agents are not those it was minted with, or not archived with it' END,
           CASE WHEN NOT EXISTS (
                  SELECT FROM agd.fleet_template t
                   WHERE t.template = f.template AND t.version = f.template_version
                     AND (SELECT pg_catalog.array_agg(k ORDER BY k COLLATE \"C\") FROM pg_catalog.jsonb_object_keys(t.roles) k)
                       = (SELECT pg_catalog.array_agg(a.role ORDER BY a.role) FROM agd.fleet_agent a WHERE a.fleet_id = f.fleet_id))
                THEN 'its agents are not the roles of its template' END,
           CASE WHEN NOT EXISTS (
                  SELECT FROM agd.countersign_request r
                   WHERE r.fleet_id = f.fleet_id AND r.tenant = f.tenant
                     AND r.requested_at = f.minted_at AND r.deadline = f.countersign_deadline
                     AND r.state = CASE f.state WHEN 'pending' THEN 'open' WHEN 'cancelled' THEN 'cancelled' ELSE 'granted' END)
                THEN 'its countersign request is not what its state says' END,
           CASE WHEN (SELECT g.signed_at FROM agd.fleet_signature g WHERE g.fleet_id = f.fleet_id AND g.duty = 'coordinator')
                       IS DISTINCT FROM f.signed_at
                  OR (SELECT g.signed_at FROM agd.fleet_signature g WHERE g.fleet_id = f.fleet_id AND g.duty = 'countersigner')
                       IS DISTINCT FROM f.activated_at
                THEN 'its signatures were not taken when its row says' END)
           FROM agd.tenant_agent_fleet f WHERE f.fleet_id = $1",
        &[fleet.id.as_str().into()],
        |rows| if rows.is_empty() { Ok(None) } else { Ok(rows.first().get_one::<String>()?) },
    )?;
    let problem = problem.unwrap_or_default();
    let ok = problem.is_empty();
    let detail =
        if ok { format!("{} agents, request and signatures agree with the fleet", fleet.agents) } else { problem };
    Ok(Check { name: "rows", ok, detail })
}
