//! Signers: who may sign and countersign.
//!
//! Owns agd.signer. Promises that a key has one name and one duty for good, so that a countersigner is another than the
//! coordinator; and that a revoked signer's signatures are refused from that moment on, while what it signed before stays
//! signed. A transaction that is merely open keeps no signer from being revoked. Never sees a private key.
#![allow(unsafe_code)] // is called by the function manager as it is, reads index entries

use super::{missing, pending, timestamp, told, writing};
use crate::catalog::{Columns, Relation, column, lock_number, named, scan, scan_key, to_varlena};
use crate::error::{self, Error, Result};
use crate::event::MAX_CAUSE_BYTES;
use crate::fmgr::{argument, definer_function};
use crate::log::record::EPOCH_DIFFERENCE;
use crate::query::{count_kept, write_kept};
use crate::{backend, home};
use agd_core::fleet::PublicKey;
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use sha2::{Digest as _, Sha256};

/// A registered signer whose signatures are taken.
pub struct Signer {
    name: String,
    key: PublicKey,
}

/// The signer, for this duty. Nobody is kept from revoking it: [`must_still_sign`] asks again. AG004 for anybody else.
pub fn on_duty(name: &str, duty: &str) -> Result<Signer> {
    let refuse = |message: String| Error::SignatureRefused {
        message,
        hint: "SELECT signer, duty, revoked_at FROM agd.signer shows who signs and who countersigns.".into(),
    };
    let found = write_kept(
        "SELECT s.duty, s.public_key, s.revoked_at FROM agd.signer s WHERE s.signer = $1",
        &[name.into()],
        |rows| {
            if rows.is_empty() {
                Ok(None)
            } else {
                Ok(Some(rows.first().get_three::<String, Vec<u8>, TimestampWithTimeZone>()?))
            }
        },
    )?;
    let Some((registered, key, revoked_at)) = found else {
        return Err(refuse("there is no such signer".into()));
    };
    if revoked_at.is_some() {
        return Err(refuse(format!("signer \"{name}\" is revoked")));
    }
    let registered = registered.unwrap_or_default();
    if registered != duty {
        return Err(refuse(format!("\"{name}\" is a {registered}, not a {duty}: these are two people with two keys")));
    }
    let key = PublicKey::from_bytes(&key.unwrap_or_default())
        .map_err(|problem| crate::log::storage::corrupted(format!("signer \"{name}\": {problem}")))?;
    pending::signed_by(name);
    Ok(Signer { name: name.to_owned(), key })
}

/// On the way into the commit of what a signer has signed: waits for whoever is revoking it, keeps it from being revoked until
/// the commit is done, and looks once more. AG004 when it was revoked meanwhile, but by this very transaction, which signed
/// before it.
pub(super) fn must_still_sign(name: &str) -> Result<()> {
    lock(name, pg_sys::ShareLock)?;
    let table = named(c"signer")?;
    let relation = Relation::open(table, pg_sys::AccessShareLock);
    let mut keys = [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ, to_varlena(name.as_bytes()))];
    keys[0].sk_collation = pg_sys::C_COLLATION_OID;
    let revoked_at = column(table, c"revoked_at")?;
    let mut columns = Columns::default();
    let mut signs = false;
    scan(&relation, Some(named(c"signer_pkey")?), std::ptr::null_mut(), &mut keys, |tuple| {
        columns.deform(tuple, relation.descriptor());
        // SAFETY: a tuple of a scan has a header.
        let own = unsafe { pg_sys::TransactionIdIsCurrentTransactionId((*(*tuple).t_data).t_choice.t_heap.t_xmin) };
        signs = own || columns.get(revoked_at).is_none();
        Ok(())
    })?;
    if signs {
        return Ok(());
    }
    Err(Error::SignatureRefused {
        message: format!("signer \"{name}\" was revoked while this transaction was open"),
        hint: "What it signed here is not taken. SELECT signer, duty, revoked_at FROM agd.signer shows who signs."
            .into(),
    })
}

fn lock(name: &str, mode: u32) -> Result<()> {
    let [a, b, c, d, e, f, ..]: [u8; 32] = Sha256::digest(name).into();
    lock_number(named(c"signer")?, u64::from_be_bytes([0, 0, a, b, c, d, e, f]), mode);
    Ok(())
}

impl Signer {
    /// AG004 unless this is the signer's signature over the statement that `shown_by` returns.
    pub fn must_have_signed(&self, statement: &str, signature: &[u8], shown_by: &str) -> Result<()> {
        self.key.verify(statement.as_bytes(), signature).map_err(|problem| Error::SignatureRefused {
            message: format!("this does not prove that \"{}\" has signed: {problem}", self.name),
            hint: format!("Sign exactly the bytes of {shown_by}, with the key that is registered."),
        })
    }
}

definer_function!(agd_register_signer, pg_finfo_agd_register_signer, answer_register);

/// `agd.register_signer(signer, duty, public_key)`
fn answer_register(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.register_signer(signer text, duty text, public_key bytea).
    let (signer, duty, key) =
        unsafe { (argument::<String>(call, 0), argument::<String>(call, 1), argument::<Vec<u8>>(call, 2)) };
    told("REGISTER SIGNER", register(signer.as_deref(), duty.as_deref(), key.as_deref()))?;
    Ok(pg_sys::Datum::from(0))
}

fn is_signer_name(name: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'@' | b'-');
    let bytes = name.as_bytes();
    bytes.len() <= 63 && edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(inner)
}

fn register(signer: Option<&str>, duty: Option<&str>, key: Option<&[u8]>) -> Result<()> {
    error::forbid_read_only(c"agd.register_signer()");
    let (Some(signer), Some(duty), Some(key)) = (signer, duty, key) else {
        return Err(missing("signer, duty and public_key", "agd.register_signer('River', 'countersigner', '\\x…')"));
    };
    let bad = |message: &str, hint: &str| Error::BadArgument { message: message.into(), hint: hint.into() };
    if !is_signer_name(signer) {
        return Err(bad(
            "that is no name for a signer",
            "1 to 63 characters of a-z, A-Z, 0-9, _, ., @ and -, beginning and ending with a letter or digit.",
        ));
    }
    if !matches!(duty, "coordinator" | "countersigner") {
        return Err(bad(
            "a duty is coordinator or countersigner",
            "A coordinator signs each fleet, a countersigner batches of them.",
        ));
    }
    let key = PublicKey::from_bytes(key).map_err(|problem| {
        bad(&problem.to_string(), "agd keygen makes a key; the 32 bytes are its public half, as of RFC 8032.")
    })?;
    home::ensure()?;
    let now = timestamp(backend::now())?;
    let inserted = writing(|| {
        count_kept(
            "INSERT INTO agd.signer (signer, duty, public_key, registered_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT DO NOTHING",
            &[signer.into(), duty.into(), key.as_bytes().to_vec().into(), now.into()],
        )
    })?;
    if inserted == 1 {
        return Ok(());
    }
    Err(Error::Exists {
        message: "this signer or this key is registered already".into(),
        hint: "A key has one name and one duty, and a name one key, for good: SELECT * FROM agd.signer. Register a new key \
               under a new name."
            .into(),
    })
}

definer_function!(agd_revoke_signer, pg_finfo_agd_revoke_signer, answer_revoke);

/// `agd.revoke_signer(signer, reason)`
fn answer_revoke(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.revoke_signer(signer text, reason text).
    let (signer, reason) = unsafe { (argument::<String>(call, 0), argument::<String>(call, 1)) };
    told("REVOKE SIGNER", revoke(signer.as_deref(), reason.as_deref()))?;
    Ok(pg_sys::Datum::from(0))
}

/// A reason that can be recorded. 22023 for none, or one that is too long.
pub fn checked_reason(reason: Option<&str>) -> Result<&str> {
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty());
    let reason = reason.ok_or_else(|| Error::BadArgument {
        message: "a reason must be given".into(),
        hint: "It is recorded for good.".into(),
    })?;
    if reason.len() > MAX_CAUSE_BYTES {
        return Err(Error::BadArgument {
            message: format!("a reason of {} bytes is too long", reason.len()),
            hint: format!("At most {MAX_CAUSE_BYTES} bytes."),
        });
    }
    Ok(reason)
}

fn revoke(signer: Option<&str>, reason: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.revoke_signer()");
    let signer = signer.ok_or_else(|| missing("a signer", "agd.revoke_signer('River', 'key lost')"))?;
    let reason = checked_reason(reason)?;
    home::ensure()?;
    // Waits for commits under way of what it has signed; those to come find it revoked.
    lock(signer, pg_sys::ExclusiveLock)?;
    let found = write_kept(
        "SELECT s.revoked_at,
                GREATEST(s.registered_at, (SELECT pg_catalog.max(g.signed_at) FROM agd.fleet_signature g WHERE g.signer = s.signer))
           FROM agd.signer s WHERE s.signer = $1 FOR UPDATE",
        &[signer.into()],
        |rows| {
            if rows.is_empty() { Ok(None) } else { Ok(Some(rows.first().get_two::<TimestampWithTimeZone, TimestampWithTimeZone>()?)) }
        },
    )?;
    let Some((revoked_at, latest)) = found else {
        return Err(Error::BadArgument {
            message: "there is no such signer".into(),
            hint: "SELECT signer FROM agd.signer shows them all.".into(),
        });
    };
    if revoked_at.is_some() {
        return Err(Error::WrongState {
            message: format!("signer \"{signer}\" is revoked already"),
            hint: "SELECT * FROM agd.signer shows since when, and why.".into(),
        });
    }
    // After all that it has signed, whatever the clock says.
    let now = backend::now().max(latest.map_or(0, TimestampWithTimeZone::into_inner) + 1);
    let revoked = writing(|| {
        count_kept(
            "UPDATE agd.signer SET revoked_at = $2, revoked_reason = $3 WHERE signer = $1 AND revoked_at IS NULL",
            &[signer.into(), timestamp(now)?.into(), reason.into()],
        )
    })?;
    super::must_be("a signer that is revoked", 1, revoked)
}

/// A registered signer as its evidence tells of it.
pub fn evidence(
    name: String,
    duty: Option<String>,
    key: Option<Vec<u8>>,
    registered_at: Option<i64>,
    revoked_at: Option<i64>,
) -> Option<agd_core::fleet::Signer> {
    let unix = |at: i64| at.saturating_add(EPOCH_DIFFERENCE);
    Some(agd_core::fleet::Signer {
        name,
        duty: duty?,
        key: key?,
        registered_at: unix(registered_at?),
        revoked_at: revoked_at.map(unix),
    })
}
