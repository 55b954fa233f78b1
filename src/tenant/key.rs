//! The keys that sign tenants' tokens.
//!
//! Owns agd.tenant_key. Promises that a key id belongs to one tenant for good: it is never given again, not after its key
//! was revoked either, and what stands in the table of it (tenant, key, revocation) never changes back. Keys that anybody
//! could sign for are refused. Holds public halves only.
#![allow(unsafe_code)] // reads index entries

use crate::catalog::{Columns, Relation, catalog, scan, scan_key, text, to_varlena, varlena};
use crate::error::{self, Error, Result};
use crate::event;
use crate::fmgr::{argument, definer_function};
use crate::guard::own;
use crate::home;
use agd_core::token::{TokenVerifier, validate_kid};
use pgrx::prelude::*;

/// What is known of a key.
pub struct Key {
    /// Whose it is.
    pub tenant: String,
    /// None: what is stored is no key, so somebody changed it outside of agd.
    pub public: Option<[u8; 32]>,
    /// It signs no token any more.
    pub revoked: bool,
}

/// A key by its id, by the latest committed state and what this transaction did.
pub fn find(kid: &str) -> Result<Option<Key>> {
    let catalog = catalog()?;
    let relation = Relation::open(catalog.tenant_key, pg_sys::AccessShareLock);
    let mut keys = [scan_key(1, pg_sys::BTEqualStrategyNumber, pg_sys::F_TEXTEQ, to_varlena(kid.as_bytes()))];
    keys[0].sk_collation = pg_sys::C_COLLATION_OID;
    let mut columns = Columns::default();
    let mut found = None;
    scan(&relation, Some(catalog.tenant_key_pkey), std::ptr::null_mut(), &mut keys, |tuple| {
        columns.deform(tuple, relation.descriptor());
        // SAFETY: the column types of agd.tenant_key (sql/10_tenant.sql).
        unsafe {
            found = Some(Key {
                tenant: columns.get(1).map(|value| text(value)).transpose()?.unwrap_or_default().to_owned(),
                public: columns.get(2).and_then(|value| varlena(value).try_into().ok()),
                revoked: columns.get(4).is_some(),
            });
        }
        Ok(())
    })?;
    Ok(found)
}

definer_function!(agd_add_tenant_key, pg_finfo_agd_add_tenant_key, answer_add);

/// `agd.add_tenant_key(tenant, kid, public_key)`
fn answer_add(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.add_tenant_key(tenant text, kid text, public_key bytea).
    let (tenant, kid, key) =
        unsafe { (argument::<String>(call, 0), argument::<String>(call, 1), argument::<Vec<u8>>(call, 2)) };
    add(tenant.as_deref(), kid.as_deref(), key.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn add(tenant: Option<&str>, kid: Option<&str>, key: Option<&[u8]>) -> Result<()> {
    error::forbid_read_only(c"agd.add_tenant_key()");
    home::ensure()?;
    let (Some(tenant), Some(kid), Some(key)) = (tenant, kid, key) else {
        return Err(Error::BadArgument {
            message: "tenant, kid and public key must be given".into(),
            hint: "SELECT agd.add_tenant_key('acme', 'acme-2026', '\\x…'), 32 bytes.".into(),
        });
    };
    validate_kid(kid).map_err(|_| Error::BadArgument {
        message: "a key id has 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'".into(),
        hint: "Tokens name their key by it: 'acme-2026-11', for example.".into(),
    })?;
    let public: &[u8; 32] = key.try_into().map_err(|_| Error::BadArgument {
        message: format!("a public key of {} bytes is no Ed25519 key", key.len()),
        hint: "The raw 32 bytes of RFC 8032, not PEM or DER: the last 32 bytes of a DER public key are they.".into(),
    })?;
    TokenVerifier::new(public).map_err(|_| Error::BadArgument {
        message: "these 32 bytes are no Ed25519 public key, or one that anybody can sign for".into(),
        hint: "Make the key with a library or with agd keygen, and give its public half as it is.".into(),
    })?;
    if !super::exists(tenant)? {
        return Err(Error::BadArgument {
            message: format!("there is no tenant \"{tenant}\""),
            hint: format!("Create it first: SELECT agd.create_tenant('{tenant}')."),
        });
    }
    let added = own::writing(|| {
        Spi::get_one_with_args::<bool>(
            "WITH made AS (INSERT INTO agd.tenant_key (kid, tenant, public_key) VALUES ($1, $2, $3)
                       ON CONFLICT DO NOTHING RETURNING true AS made)
         SELECT COALESCE((SELECT made FROM made), false)",
            &[kid.into(), tenant.into(), key.into()],
        )
    })?;
    if added != Some(true) {
        return Err(Error::Exists {
            message: format!("the key id \"{kid}\" or this very key was given already"),
            hint: "An id and a key belong to one tenant for good, revoked or not. SELECT * FROM agd.tenant_key shows them."
                .into(),
        });
    }
    Ok(())
}

definer_function!(agd_revoke_tenant_key, pg_finfo_agd_revoke_tenant_key, answer_revoke);

/// `agd.revoke_tenant_key(kid, reason)`
fn answer_revoke(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.revoke_tenant_key(kid text, reason text).
    let (kid, reason) = unsafe { (argument::<String>(call, 0), argument::<String>(call, 1)) };
    revoke(kid.as_deref(), reason.as_deref()).map(|()| pg_sys::Datum::from(0))
}

fn revoke(kid: Option<&str>, reason: Option<&str>) -> Result<()> {
    error::forbid_read_only(c"agd.revoke_tenant_key()");
    home::ensure()?;
    let reason = reason.map(str::trim).filter(|reason| !reason.is_empty());
    let (Some(kid), Some(reason)) = (kid, reason) else {
        return Err(Error::BadArgument {
            message: "a key id and a reason must be given".into(),
            hint: "The reason is recorded: SELECT agd.revoke_tenant_key('acme-2025', 'a laptop was lost').".into(),
        });
    };
    if reason.len() > event::MAX_CAUSE_BYTES {
        return Err(Error::BadArgument {
            message: format!("a reason of {} bytes is too long", reason.len()),
            hint: format!("At most {} bytes.", event::MAX_CAUSE_BYTES),
        });
    }
    let revoked = own::writing(|| {
        Spi::get_one_with_args::<bool>(
            "WITH done AS (UPDATE agd.tenant_key SET revoked_at = pg_catalog.now(), revoke_reason = $2
                        WHERE kid = $1 AND revoked_at IS NULL RETURNING true AS done)
         SELECT COALESCE((SELECT done FROM done), false)",
            &[kid.into(), reason.into()],
        )
    })?;
    if revoked != Some(true) {
        return Err(Error::WrongState {
            message: "there is no such key, or it was revoked already".into(),
            hint: "SELECT * FROM agd.tenant_key shows each key and since when it is revoked.".into(),
        });
    }
    Ok(())
}
