//! What happens when published history is lost: the record closes, and its logs begin anew.
//!
//! Owns `agd.report_divergence()`, which `agd publish` calls, and `agd.new_incarnation()`. Promises that the record closes
//! only for a checkpoint that a registered key has signed and that it does not have, as far as its own trees can tell, and
//! not before the transaction that reports it commits; that each refusal to publish becomes a DENIED
//! event of the log concerned; that the first leaf of a new incarnation's
//! platform log commits to that checkpoint, to the platform log that was closed and to the reason; and that every leaf of
//! the closed logs stays where it is, under an anchor. Never writes an entry into a closed log, and never takes one out.
//!
//! Incarnations are numbered from 1. The logs of the newest are open, those of the others closed. Events that no log has yet
//! when one is closed go into its successor.
#![allow(unsafe_code)] // is called by the function manager as it is

use crate::error::{self, Error, Result};
use crate::event::{self, MAX_CAUSE_BYTES, Record};
use crate::fmgr::{argument, definer_function};
use crate::log::key;
use crate::log::prove::root_at;
use crate::log::reports::{self, Report};
use crate::log::storage::{self, corrupted};
use crate::log::stored::Stored;
use crate::{backend, denied, home};
use agd_core::{Checkpoint, Hash, Incarnation, entry, name};
use pgrx::pg_sys;

definer_function!(agd_report_divergence, pg_finfo_agd_report_divergence, answer_report);

/// `agd.report_divergence(origin, tree_size, root_hash, note)`
fn answer_report(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.report_divergence(origin text, tree_size bigint, root_hash bytea, note text).
    let (origin, size, root, note) = unsafe {
        (
            argument::<String>(call, 0),
            argument::<i64>(call, 1),
            argument::<Vec<u8>>(call, 2),
            argument::<String>(call, 3),
        )
    };
    report(origin, size, root, note.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn report(origin: Option<String>, size: Option<i64>, root: Option<Vec<u8>>, note: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.report_divergence()");
    let size = size.and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0);
    let root = root.and_then(|root| Hash::try_from(root).ok());
    let (Some(origin), Some(size), Some(root)) = (origin, size, root) else {
        return Err(Error::BadArgument {
            message: "origin, a tree_size above 0 and a root_hash of 32 bytes must be given".into(),
            hint: "agd publish calls this function, with the newest checkpoint in its store.".into(),
        });
    };
    let published = Checkpoint { origin, size, root };
    // Before anything is looked up: only who holds a key of the log is told what the record has.
    let vkey = key::must_be_signed(note, &published)?;
    home::must_be_here()?;
    examine(&published)?;
    reports::keep(Report::Diverged { checkpoint: published, vkey })
}

/// Whether the record does not have a checkpoint that was published, and the origin of the platform log that is open. 22023
/// when it does, or when it is none that these logs could go on from.
fn examine(published: &Checkpoint) -> Result<String> {
    let Checkpoint { origin, size, root } = published;
    let stored = Stored::latest()?;
    let platforms = stored.heads_of(None)?;
    let platform = platforms.first().ok_or_else(|| corrupted("the platform log is gone"))?;
    let head = stored.head_by_origin(origin)?;
    // Published by whoever went on in a later incarnation, which this record knows nothing of.
    let (base, incarnation) = name::split_incarnation(key::platform_of(origin));
    let (own, present) = name::split_incarnation(&platform.origin);
    let is_later = base == own && incarnation > present;
    let tenant = tenant_of(if is_later { key::platform_of(origin) } else { &platform.origin }, origin);
    let is_platform = is_later && key::platform_of(origin) == origin;
    // A tenant's log that is published may be lost from its first leaf on.
    if head.is_none() && tenant.is_none() && !is_platform {
        return Err(storage::no_such_log(origin));
    }
    if head.as_ref().is_some_and(|head| head.incarnation != platform.incarnation) {
        return Err(Error::BadArgument {
            message: format!("the log {origin} is closed: nothing continues it here"),
            hint:
                "Publish the logs of the newest incarnation: SELECT DISTINCT origin FROM agd.anchors WHERE NOT closed."
                    .into(),
        });
    }
    let present = head.filter(|head| *size <= head.size).map(|head| root_at(&stored, &head, *size)).transpose()?;
    // Whichever it is, somebody refused to publish: that is told.
    if present.as_ref() == Some(root) {
        // Then it was not for this checkpoint, but for what the log would go on with.
        denied::attempted(refused_publication(tenant));
        return Err(Error::BadArgument {
            message: format!("the log {origin} has this root at size {size}: nothing was lost"),
            hint: "Run agd publish again: the log continues what was published.".into(),
        });
    }
    Ok(platform.origin.clone())
}

fn refused_publication(tenant: Option<&str>) -> denied::Attempt {
    denied::Attempt {
        action: Some("PUBLISH".into()),
        tenant: tenant.map(str::to_owned),
        concerned_is_told: true,
        ..denied::Attempt::default()
    }
}

/// Closes the record, because this checkpoint was published and is not part of it. Called in the commit of who reported it.
pub fn close(published: &Checkpoint) -> Result<()> {
    let held = home::hold_alone()?;
    // The record may have gone on meanwhile, even in another incarnation.
    let platform = examine(published)?;
    match held.diverged()? {
        // What the platform log says covers the tenants' logs, and a larger size what a smaller one says.
        Some(known)
            if published.origin != platform || known.origin == published.origin && known.size >= published.size =>
        {
            Ok(())
        }
        _ => {
            held.close(published)?;
            // The event is written when the record goes on: until then nothing is.
            denied::attempted(refused_publication(tenant_of(key::platform_of(&published.origin), &published.origin)));
            denied::record(&home::closed(&published.to_string()));
            Ok(())
        }
    }
}

/// Whose log of this platform it is.
fn tenant_of<'a>(platform: &str, origin: &'a str) -> Option<&'a str> {
    let tenant = origin.strip_prefix(platform)?.strip_prefix("/t/")?;
    name::validate_tenant(tenant).is_ok().then_some(tenant)
}

definer_function!(agd_new_incarnation, pg_finfo_agd_new_incarnation, answer_begin);

/// `agd.new_incarnation(reason)`
fn answer_begin(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.new_incarnation(reason text).
    let reason = unsafe { argument::<String>(call, 0) };
    begin(reason.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn begin(reason: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.new_incarnation()");
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty()).ok_or_else(|| Error::BadArgument {
        message: "a reason must be given".into(),
        hint:
            "It is recorded for good: SELECT agd.new_incarnation('the disk of db1 was lost, last backup of Tuesday')."
                .into(),
    })?;
    if reason.len() > MAX_CAUSE_BYTES {
        return Err(Error::BadArgument {
            message: format!("a reason of {} bytes is too long", reason.len()),
            hint: format!("At most {MAX_CAUSE_BYTES} bytes."),
        });
    }
    let held = home::hold_alone()?;
    let published = held.diverged()?.ok_or_else(|| Error::WrongState {
        message: "the record is open: there is nothing that a new incarnation would be for".into(),
        hint: "It closes when agd publish finds that published history is not in it.".into(),
    })?;
    must_come_first()?;

    storage::lock_sequencer()?;
    let platform = storage::platform_log()?;
    let (log_name, _) = name::split_incarnation(&platform.origin);
    let incarnation = platform.incarnation + 1;
    let next = name::incarnation_origin(log_name, incarnation.cast_unsigned());
    let closed = Checkpoint { origin: platform.origin.clone(), size: platform.tree.size(), root: platform.tree.root() };
    // A log that was superseded, and not lost: what goes on elsewhere is not what this one goes on from. Its successor here
    // has a name that is taken, and is closed in its turn when it is published.
    let is_later = key::platform_of(&published.origin) != closed.origin;
    let published = if is_later { closed.clone() } else { published };
    let tails = anchor_tails()?;

    held.open(&next)?;
    storage::create_log(&next, None, incarnation, Some(held.base() + backend::transaction_id()))?;
    // The sequencer makes the first event of this transaction leaf 0.
    let body = Incarnation { published, closed, reason: reason.to_owned() }.to_string();
    event::insert(&Record { body: Some(&body), ..Record::of(entry::INCARNATION) })?;
    for checkpoint in tails {
        event::insert(&Record { body: Some(&checkpoint.to_string()), ..Record::of(entry::CHECKPOINT) })?;
    }
    Ok(())
}

/// Its event is the transaction's first, its number is above those of all passes before, and it sees what they left.
fn must_come_first() -> Result<()> {
    // SAFETY: reads the transaction's isolation level.
    let read_committed = unsafe { pg_sys::XactIsoLevel } == pg_sys::XACT_READ_COMMITTED as std::ffi::c_int;
    if read_committed && backend::transaction_id_if_any().is_none() {
        return Ok(());
    }
    Err(Error::WrongState {
        message: "agd.new_incarnation() must be the first of its transaction to write, and that READ COMMITTED".into(),
        hint: "Call it alone: SELECT agd.new_incarnation('why').".into(),
    })
}

/// Anchors the leaves that no anchor covers yet. Returns the tenants' checkpoints.
fn anchor_tails() -> Result<Vec<Checkpoint>> {
    let guard_state = storage::integrated()?.guard_state;
    let mut tails = Vec::new();
    for mut log in storage::open_logs()? {
        let guard_state =
            guard_state.as_deref().ok_or_else(|| corrupted("the sequencer's row has lost its guard state"))?;
        let root = log.anchor(guard_state, backend::now(), None)?;
        log.save()?;
        if log.tenant.is_some() {
            tails.push(Checkpoint { origin: log.origin.clone(), size: log.tree.size(), root });
        }
    }
    Ok(tails)
}
