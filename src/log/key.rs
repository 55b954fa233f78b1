//! The keys that sign this database's logs outside of it: whose signature under a checkpoint is believed.
//!
//! Owns agd.log_key. Promises that a publisher's word counts for nothing without a note over exactly that checkpoint, signed by
//! a key that the platform registered and did not revoke; that no key is trusted because it was seen first; and that a key
//! once revoked stays so. Holds public halves only, and never signs.
#![allow(unsafe_code)] // is called by the function manager as it is

use crate::error::{self, Error, Result};
use crate::event::MAX_CAUSE_BYTES;
use crate::fmgr::{argument, definer_function};
use crate::guard::own;
use crate::query::{self, At};
use crate::{denied, home};
use agd_core::note::KeyType;
use agd_core::{Checkpoint, SignedNote, VerifierKey, name};
use pgrx::prelude::*;

/// Keys that are in force at once: a note is held against each.
const MAX_KEYS: usize = 16;

/// The longest note that is read here: room for the log's signature and dozens of cosignatures.
pub const MAX_NOTE_BYTES: usize = 16 * 1024;

/// The vkeys in force now, whatever the transaction's snapshot: a key that was just revoked is believed no more.
pub fn in_force() -> Result<Vec<String>> {
    let rows = query::rows(At::Now, "SELECT k.vkey FROM agd.log_key k WHERE k.revoked_at IS NULL")?;
    Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
}

/// Whether a key of this name speaks for a log: that of the name, a later incarnation, or one of their tenants' logs.
fn speaks_for(key_name: &str, origin: &str) -> bool {
    let platform = platform_of(origin);
    platform == key_name || name::split_incarnation(platform).0 == key_name
}

/// The platform log that covers a log: itself, or the one whose tenant's it is.
pub fn platform_of(origin: &str) -> &str {
    origin.rsplit_once("/t/").map_or(origin, |(platform, _)| platform)
}

/// AG004 unless `note` is this checkpoint, signed by a registered key. Returns that key's vkey.
pub fn must_be_signed(note: Option<&str>, checkpoint: &Checkpoint) -> Result<String> {
    let refuse = |message: String, hint: String| {
        denied::attempted(denied::Attempt { action: Some("PUBLISH".into()), ..denied::Attempt::default() });
        Err(Error::SignatureRefused { message, hint })
    };
    let (origin, size) = (&checkpoint.origin, checkpoint.size);
    let file = || {
        format!(
            "The note is the file checkpoints/{size:020} of that log in the store, as agd publish wrote it: the text that \
             agd.anchors shows as checkpoint, signed as a C2SP signed-note."
        )
    };
    let Some(note) = note else {
        return refuse(format!("the signed checkpoint of {origin} at size {size} is missing"), file());
    };
    let parsed = SignedNote::parse(note).ok().filter(|_| note.len() <= MAX_NOTE_BYTES);
    let Some(parsed) = parsed.filter(|parsed| parsed.text() == checkpoint.to_string()) else {
        return refuse(
            format!("the note is not the signed checkpoint of {origin} at size {size} with this root"),
            file(),
        );
    };
    for vkey in in_force()? {
        let Ok(key) = VerifierKey::parse(&vkey) else { continue };
        if !speaks_for(key.name(), origin) {
            continue;
        }
        // Every log is signed with the one key under the log's own origin.
        if VerifierKey::new(origin, key.public_key()).is_ok_and(|key| parsed.verify(&[key]).is_ok()) {
            return Ok(vkey);
        }
    }
    refuse(
        format!("no registered key has signed the checkpoint of {origin} at size {size}"),
        "SELECT vkey, revoked_at FROM agd.log_key shows the keys. A member of agd_platform registers the one that agd keygen \
         printed: SELECT agd.register_log_key('the vkey')."
            .into(),
    )
}

definer_function!(agd_register_log_key, pg_finfo_agd_register_log_key, answer_register);

/// `agd.register_log_key(vkey)`
fn answer_register(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.register_log_key(vkey text).
    let vkey = unsafe { argument::<String>(call, 0) };
    register(vkey.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn register(vkey: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.register_log_key()");
    home::ensure()?;
    let log_name = home::audience()?;
    let hint =
        format!("agd keygen --name {log_name} --out log.key prints it: SELECT agd.register_log_key('{log_name}+…').");
    let bad = |message: String| Error::BadArgument { message, hint: hint.clone() };
    let vkey = vkey.ok_or_else(|| bad("a vkey must be given".into()))?.trim();
    let key = VerifierKey::parse(vkey).map_err(|problem| bad(format!("this is no log's vkey: {problem}")))?;
    if key.key_type() != KeyType::Ed25519 {
        return Err(bad("this is a witness's key, which signs no log".into()));
    }
    if name::split_incarnation(key.name()).0 != log_name {
        return Err(bad(format!("the key is for {}, and this database's log is {log_name}", key.name())));
    }
    // Whoever registers waits for whoever else does: the keys are counted.
    lock()?;
    if in_force()?.len() >= MAX_KEYS {
        return Err(Error::LimitExceeded {
            message: format!("{MAX_KEYS} log keys are registered already"),
            hint: "Revoke those that sign no more: SELECT agd.revoke_log_key('the vkey', 'why').".into(),
        });
    }
    let added = own::writing(|| {
        Spi::get_one_with_args::<bool>(
            "WITH made AS (INSERT INTO agd.log_key (vkey) VALUES ($1) ON CONFLICT DO NOTHING RETURNING true AS made)
             SELECT COALESCE((SELECT made FROM made), false)",
            &[vkey.into()],
        )
    })?;
    if added != Some(true) {
        return Err(Error::Exists {
            message: "this key was registered already".into(),
            hint: "SELECT * FROM agd.log_key shows it; one that was revoked is never registered again.".into(),
        });
    }
    Ok(())
}

fn lock() -> Result<()> {
    let table = crate::catalog::catalog()?.log_key;
    // SAFETY: a lock on a table that the extension has; let go of when the transaction ends. Readers do not wait for it.
    unsafe { pg_sys::LockRelationOid(table, pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE) };
    Ok(())
}

definer_function!(agd_revoke_log_key, pg_finfo_agd_revoke_log_key, answer_revoke);

/// `agd.revoke_log_key(vkey, reason)`
fn answer_revoke(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.revoke_log_key(vkey text, reason text).
    let (vkey, reason) = unsafe { (argument::<String>(call, 0), argument::<String>(call, 1)) };
    revoke(vkey.as_deref(), reason.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn revoke(vkey: Option<&str>, reason: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.revoke_log_key()");
    home::ensure()?;
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty());
    let (Some(vkey), Some(reason)) = (vkey.map(str::trim), reason) else {
        return Err(Error::BadArgument {
            message: "a vkey and a reason must be given".into(),
            hint: "The reason is recorded: SELECT agd.revoke_log_key('the vkey', 'the publisher''s machine was lost')."
                .into(),
        });
    };
    if reason.len() > MAX_CAUSE_BYTES {
        return Err(Error::BadArgument {
            message: format!("a reason of {} bytes is too long", reason.len()),
            hint: format!("At most {MAX_CAUSE_BYTES} bytes."),
        });
    }
    let revoked = own::writing(|| {
        Spi::get_one_with_args::<bool>(
            "WITH done AS (UPDATE agd.log_key SET revoked_at = pg_catalog.now(), revoke_reason = $2
                            WHERE vkey = $1 AND revoked_at IS NULL RETURNING true AS done)
             SELECT COALESCE((SELECT done FROM done), false)",
            &[vkey.into(), reason.into()],
        )
    })?;
    if revoked != Some(true) {
        return Err(Error::WrongState {
            message: "there is no such key, or it was revoked already".into(),
            hint: "SELECT * FROM agd.log_key shows each key and since when it is revoked.".into(),
        });
    }
    Ok(())
}
