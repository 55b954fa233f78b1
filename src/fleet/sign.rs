//! Statements and the signatures over them.
//!
//! Promises that a signature is stored only after it was verified over the statement made from the fleet's own row, in the
//! same transaction and under the row's lock; that a batch is countersigned whole or not at all, with the fleet that stands
//! in the way named; and that the number of rows each statement writes is what it must be.
#![allow(unsafe_code)] // is called by the function manager as it is

use super::mint::answer;
use super::signer::on_duty;
use super::{
    COLUMNS, Fleet, acting, is_fleet_id, missing, must_act_for, must_be, no_such_fleet, timestamp, told,
    told_of_reading, writing,
};
use crate::error::{self, Error, Result};
use crate::fmgr::{Rows, argument, definer_function, text};
use crate::query::{count_kept, kept, write_kept};
use crate::{denied, tenant};
use agd_core::fleet::lifecycle::Event;
use agd_core::fleet::{Batch, BatchError, Statement};
use pgrx::datum::IntoDatum;
use pgrx::pg_sys;
use pgrx::spi::SpiTupleTable;
use std::collections::BTreeSet;

/// Fleets of one batch, at most.
const MAX_BATCH: usize = 10_000;

/// The fleet as it is now, which nobody else changes before this transaction ends.
pub(super) fn lock(fleet_id: &str) -> Result<Fleet> {
    // Before anything is waited for: to wait would tell of another tenant's fleet that there is one. It keeps its tenant.
    match acting::find(fleet_id)? {
        Some((tenant, _)) => must_act_for(&tenant)?,
        None => return Err(no_such_fleet(fleet_id)),
    }
    let query = format!("SELECT {COLUMNS} FROM agd.tenant_agent_fleet f WHERE f.fleet_id = $1 FOR UPDATE");
    one(fleet_id, write_kept(&query, &[fleet_id.into()], read_all)?)
}

fn one(fleet_id: &str, mut found: Vec<Fleet>) -> Result<Fleet> {
    let fleet = found.pop().ok_or_else(|| no_such_fleet(fleet_id))?;
    must_act_for(&fleet.tenant)?;
    Ok(fleet)
}

fn read_all(rows: SpiTupleTable<'_>) -> Result<Vec<Fleet>> {
    rows.map(|row| Fleet::read(&row)).collect()
}

/// Reading statements and evidence is for auditors, too.
pub(super) fn find_to_read(fleet_id: &str) -> Result<Fleet> {
    let query = format!("SELECT {COLUMNS} FROM agd.tenant_agent_fleet f WHERE f.fleet_id = $1");
    let mut found = kept(&query, &[fleet_id.into()], read_all)?;
    match found.pop() {
        Some(fleet) if tenant::may_read(Some(&fleet.tenant)) => Ok(fleet),
        Some(fleet) => Err(must_act_for(&fleet.tenant).err().unwrap_or_else(|| no_such_fleet(fleet_id))),
        None => Err(no_such_fleet(fleet_id)),
    }
}

definer_function!(agd_fleet_statement, pg_finfo_agd_fleet_statement, answer_statement);

/// `agd.fleet_statement(fleet_id)`
fn answer_statement(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.fleet_statement(fleet_id text).
    let fleet_id = unsafe { argument::<String>(call, 0) };
    let statement = || {
        let fleet_id =
            fleet_id.ok_or_else(|| missing("a fleet_id", "agd.fleet_statement(fleet_id) FROM agd.fleets"))?;
        find_to_read(&fleet_id)?.statement()
    };
    let statement = told_of_reading("READ STATEMENT", statement())?;
    Ok(bytes(call, statement.to_string().into_bytes()))
}

fn bytes(call: pg_sys::FunctionCallInfo, value: Vec<u8>) -> pg_sys::Datum {
    value.into_datum().unwrap_or_else(|| answer(call, None))
}

definer_function!(agd_batch_statement, pg_finfo_agd_batch_statement, answer_batch);

/// `agd.batch_statement(fleet_ids)`
fn answer_batch(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.batch_statement(fleet_ids text[]).
    let fleet_ids = unsafe { argument::<Vec<Option<String>>>(call, 0) };
    let batch = || {
        let ids = checked_ids(fleet_ids)?;
        let query = format!("SELECT {COLUMNS} FROM agd.tenant_agent_fleet f WHERE f.fleet_id = ANY ($1)");
        let fleets = kept(&query, &[ids.clone().into()], read_all)?;
        all_there(&ids, &fleets)?;
        if let Some(fleet) = fleets.iter().find(|fleet| !tenant::may_read(Some(&fleet.tenant))) {
            must_act_for(&fleet.tenant)?;
        }
        batch_of(&fleets)
    };
    let batch = told_of_reading("READ STATEMENT", batch())?;
    Ok(bytes(call, batch.statement().into_bytes()))
}

/// The ids of a batch, in order. 22023 for none, too many, NULL, what is no id, and one that stands there twice.
fn checked_ids(ids: Option<Vec<Option<String>>>) -> Result<Vec<String>> {
    let bad = |message: String| Error::BadArgument {
        message,
        hint: format!(
            "1 to {MAX_BATCH} different fleet ids: ARRAY(SELECT fleet_id FROM agd.fleets WHERE state = 'pending')."
        ),
    };
    let ids = ids.ok_or_else(|| bad("fleet_ids must be given".into()))?;
    if ids.is_empty() || ids.len() > MAX_BATCH {
        return Err(bad(format!("a batch of {} fleets", ids.len())));
    }
    let mut sorted = BTreeSet::new();
    for id in ids {
        let id = id.ok_or_else(|| bad("one of fleet_ids is NULL".into()))?;
        if !is_fleet_id(&id) {
            return Err(bad("one of fleet_ids is no fleet's id".into()));
        }
        if let Some(twice) = sorted.replace(id) {
            return Err(bad(BatchError::Twice(twice).to_string()));
        }
    }
    Ok(sorted.into_iter().collect())
}

fn all_there(ids: &[String], fleets: &[Fleet]) -> Result<()> {
    if ids.len() == fleets.len() {
        return Ok(());
    }
    let found: BTreeSet<&str> = fleets.iter().map(|fleet| fleet.id.as_str()).collect();
    let missing = ids.iter().find(|id| !found.contains(id.as_str()));
    Err(missing.map_or_else(|| Error::Internal("agd: more fleets than ids".into()), |id| no_such_fleet(id)))
}

fn batch_of(fleets: &[Fleet]) -> Result<Batch> {
    let statements: Vec<Statement> = fleets.iter().map(Fleet::statement).collect::<Result<_>>()?;
    Batch::new(&statements).map_err(|problem| Error::Internal(format!("agd: {problem}")))
}

definer_function!(agd_sign_fleet, pg_finfo_agd_sign_fleet, answer_sign);

/// `agd.sign_fleet(fleet_id, signer, signature)`
fn answer_sign(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.sign_fleet(fleet_id text, signer text, signature bytea).
    let (fleet_id, signer, signature) =
        unsafe { (argument::<String>(call, 0), argument::<String>(call, 1), argument::<Vec<u8>>(call, 2)) };
    told("SIGN FLEET", sign(fleet_id, signer, signature))?;
    Ok(pg_sys::Datum::from(0))
}

fn sign(fleet_id: Option<String>, signer: Option<String>, signature: Option<Vec<u8>>) -> Result<()> {
    error::forbid_read_only(c"agd.sign_fleet()");
    let (Some(fleet_id), Some(signer), Some(signature)) = (fleet_id, signer, signature) else {
        return Err(missing("fleet_id, signer and signature", "agd.sign_fleet(fleet_id, 'Loom', signature)"));
    };
    let fleet = lock(&fleet_id)?;
    let concerning = |error| denied::concerning(Some(&fleet.tenant), error);
    let signer_row = on_duty(&signer, "coordinator").map_err(concerning)?;
    let now = fleet.now();
    fleet.step(Event::Sign, now)?;
    let statement = fleet.statement()?.to_string();
    signer_row.must_have_signed(&statement, &signature, "agd.fleet_statement(fleet_id)").map_err(concerning)?;
    let now = timestamp(now)?;
    writing(|| {
        let signed = count_kept(
            "UPDATE agd.tenant_agent_fleet SET signed_at = $2 WHERE fleet_id = $1 AND state = 'pending' AND signed_at IS NULL",
            &[fleet.id.as_str().into(), now.into()],
        )?;
        must_be("a fleet that is signed", 1, signed)?;
        let stored = count_kept(
            "INSERT INTO agd.fleet_signature (fleet_id, duty, tenant, signer, signature, signed_at)
             VALUES ($1, 'coordinator', $2, $3, $4, $5)",
            &[fleet.id.as_str().into(), fleet.tenant.as_str().into(), signer.into(), signature.into(), now.into()],
        )?;
        must_be("a coordinator's signature", 1, stored)
    })
}

definer_function!(agd_countersign_fleets, pg_finfo_agd_countersign_fleets, answer_countersign);

/// `agd.countersign_fleets(fleet_ids, signer, signature)`
fn answer_countersign(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.countersign_fleets(fleet_ids text[], signer text, signature bytea), which returns a table.
    let (fleet_ids, signer, signature, mut rows) = unsafe {
        (
            argument::<Vec<Option<String>>>(call, 0),
            argument::<String>(call, 1),
            argument::<Vec<u8>>(call, 2),
            Rows::begin(call)?,
        )
    };
    for (fleet_id, state) in told("COUNTERSIGN FLEETS", countersign(fleet_ids, signer, signature))? {
        rows.put(|| [text(&fleet_id), text(state)]);
    }
    Ok(answer(call, None))
}

fn countersign(
    fleet_ids: Option<Vec<Option<String>>>,
    signer: Option<String>,
    signature: Option<Vec<u8>>,
) -> Result<Vec<(String, &'static str)>> {
    error::forbid_read_only(c"agd.countersign_fleets()");
    let (Some(signer), Some(signature)) = (signer, signature) else {
        return Err(missing("signer and signature", "* FROM agd.countersign_fleets(fleet_ids, 'River', signature)"));
    };
    let ids = checked_ids(fleet_ids)?;
    // As in lock().
    for id in &ids {
        match acting::find(id)? {
            Some((tenant, _)) => must_act_for(&tenant)?,
            None => return Err(no_such_fleet(id)),
        }
    }
    let query = format!(
        "SELECT {COLUMNS} FROM agd.tenant_agent_fleet f WHERE f.fleet_id = ANY ($1) ORDER BY f.fleet_id FOR UPDATE"
    );
    let fleets = write_kept(&query, &[ids.clone().into()], read_all)?;
    all_there(&ids, &fleets)?;
    for fleet in &fleets {
        must_act_for(&fleet.tenant)?;
    }
    let signer_row = on_duty(&signer, "countersigner")?;
    // One instant for all of them.
    let now = fleets.iter().map(Fleet::now).max().unwrap_or_default();
    let mut states = Vec::with_capacity(fleets.len());
    for fleet in &fleets {
        let state = fleet.step(Event::Countersign, now).map_err(none_of_them(fleets.len()))?;
        states.push((fleet.id.clone(), state.name()));
    }
    let batch = batch_of(&fleets)?;
    signer_row.must_have_signed(&batch.statement(), &signature, "agd.batch_statement(fleet_ids)")?;
    let places = batch.places();
    let now = timestamp(now)?;
    writing(|| {
        let activated = count_kept(
            "UPDATE agd.tenant_agent_fleet SET state = 'active', activated_at = $2
              WHERE fleet_id = ANY ($1) AND state = 'pending' AND signed_at IS NOT NULL",
            &[ids.clone().into(), now.into()],
        )?;
        must_be("fleets that are countersigned", ids.len(), activated)?;
        let granted = count_kept(
            "UPDATE agd.countersign_request SET state = 'granted', closed_at = $2 WHERE fleet_id = ANY ($1) AND state = 'open'",
            &[ids.clone().into(), now.into()],
        )?;
        must_be("countersign requests that are granted", ids.len(), granted)?;
        let indexes: Vec<i64> = places.iter().map(|(_, place)| place.index as i64).collect();
        let paths: Vec<Vec<u8>> = places.iter().map(|(_, place)| place.path.as_flattened().to_vec()).collect();
        let tenants: Vec<String> = fleets.iter().map(|fleet| fleet.tenant.clone()).collect();
        let stored = count_kept(
            "INSERT INTO agd.fleet_signature (fleet_id, duty, tenant, signer, signature, signed_at, batch_size, batch_index, batch_path)
             SELECT m.id, 'countersigner', m.tenant, $5, $6, $7, pg_catalog.cardinality($1), m.place, m.path
               FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2), pg_catalog.unnest($3), pg_catalog.unnest($4))
                    AS m (id, tenant, place, path)",
            &[
                ids.clone().into(),
                tenants.into(),
                indexes.into(),
                paths.into(),
                signer.into(),
                signature.into(),
                now.into(),
            ],
        )?;
        must_be("countersignatures", ids.len(), stored)
    })?;
    Ok(states)
}

/// Of a batch nothing is done when one of it cannot be.
fn none_of_them(batch: usize) -> impl Fn(Error) -> Error {
    move |error| match error {
        Error::WrongState { message, hint } if batch > 1 => Error::WrongState {
            message: format!("{message}; none of the {batch} fleets was countersigned"),
            hint: format!("Leave it out, and sign agd.batch_statement() of the others. {hint}"),
        },
        other => other,
    }
}
