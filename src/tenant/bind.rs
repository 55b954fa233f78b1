//! Binding a transaction to a tenant: `agd.bind(token)` and `agd.enter(tenant, principal)`.
//!
//! Owns the decision who may bind to whom. Promises that only a login role that was mapped for it binds at all, within the
//! tenant it was mapped to if there is one; that a transaction binds before it records anything, so that nothing is ever
//! told under a name that came later; that every refusal leaves a DENIED event, for the platform, or for the tenant whose key a
//! token names; and that no part of a token goes into a message, the log or the record. What it tells the caller does not show
//! whether a key exists.

use super::binding::{self, Binding, Proof};
use super::{Mapping, Mode, exists, key, mapping, used};
use crate::denied::{self, Attempt};
use crate::error::{Error, Result};
use crate::fleet::acting;
use crate::fmgr::{argument, c_function, text};
use crate::{backend, home, identity, settings, transaction};
use agd_core::token::{Claims, Expected, TokenError, TokenVerifier, Unverified, validate_principal};
use pgrx::pg_sys;
use sha2::{Digest as _, Sha256};

c_function!(agd_bind, pg_finfo_agd_bind, answer_bind);

/// `agd.bind(token)`
fn answer_bind(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.bind(token text).
    #[allow(unsafe_code)]
    let token = unsafe { argument::<String>(call, 0) };
    let token = token.ok_or_else(|| Error::BadArgument {
        message: "no token given".into(),
        hint: "SELECT agd.bind($1) with a token that a tenant's key signed.".into(),
    })?;
    forbid_parallel("agd.bind()")?;
    let (mut concerned, mut is_told) = (None, false);
    let bound = bind(&token, &mut concerned, &mut is_told).inspect_err(|_| {
        denied::attempted(Attempt {
            action: Some("BIND".into()),
            tenant: concerned.take(),
            concerned_is_told: is_told,
            ..Attempt::default()
        });
    })?;
    Ok(text(&bound).unwrap_or(pg_sys::Datum::from(0)))
}

c_function!(agd_enter, pg_finfo_agd_enter, answer_enter);

/// `agd.enter(tenant, principal)`
fn answer_enter(call: pg_sys::FunctionCallInfo) -> Result<pg_sys::Datum> {
    // SAFETY: this is the call; agd.enter(tenant text, principal text).
    #[allow(unsafe_code)]
    let (tenant, principal) = unsafe { (argument::<String>(call, 0), argument::<String>(call, 1)) };
    let tenant = tenant.ok_or_else(|| Error::BadArgument {
        message: "no tenant given".into(),
        hint: "SELECT agd.enter('acme', 'who acts').".into(),
    })?;
    forbid_parallel("agd.enter()")?;
    let bound = enter(&tenant, principal).inspect_err(|_| {
        denied::attempted(Attempt { action: Some("ENTER".into()), tenant: Some(tenant.clone()), ..Attempt::default() });
    })?;
    Ok(text(&bound).unwrap_or(pg_sys::Datum::from(0)))
}

/// What workers see of a binding is settled before a parallel query begins.
#[allow(unsafe_code)] // reads the transaction's state
fn forbid_parallel(function: &str) -> Result<()> {
    // SAFETY: reads the transaction's state.
    if !unsafe { pg_sys::IsInParallelMode() } {
        return Ok(());
    }
    Err(Error::WrongState {
        message: format!("{function} cannot be called during a parallel operation"),
        hint: "Call it by itself, at the beginning of the transaction.".into(),
    })
}

/// The caller's mapping, if it is for this way of binding. 42501 otherwise.
fn mapped_for(mode: Mode, function: &str) -> Result<Mapping> {
    let refused = |message: String, hint: &str| {
        Err(Error::TenantRefused { recorded: message.clone(), message, hint: hint.into() })
    };
    identity::must_be_somebody(function)?;
    let role = transaction::session_user_name();
    match mapping(backend::session_user())? {
        Some(mapping) if mapping.mode == mode => Ok(mapping),
        Some(Mapping { mode: Mode::Role, .. }) => refused(
            format!("the login role \"{role}\" belongs to a tenant and cannot bind to any"),
            "Its transactions are bound already. Use a login role that is mapped for it.",
        ),
        Some(mapping) => refused(
            format!("{function} is not how the login role \"{role}\" binds: its mode is '{}'", mapping.mode.name()),
            "SELECT * FROM agd.role_map shows how each role is mapped.",
        ),
        None => refused(
            format!("the login role \"{role}\" is not mapped to bind to tenants"),
            "Map it first: SELECT agd.map_role('the_role', NULL, 'token'), or 'asserted' if its word is enough.",
        ),
    }
}

/// A transaction binds before it does anything that is told under the binding.
fn must_come_first(function: &str) -> Result<()> {
    if !transaction::has_events() {
        return Ok(());
    }
    Err(Error::WrongState {
        message: format!("{function} comes too late: this transaction has recorded events"),
        hint: "Bind at the beginning of the transaction: what was written before was written by nobody's order.".into(),
    })
}

/// The role may be mapped to one tenant of those that could be bound.
fn check_limit(mapping: &Mapping, tenant: &str) -> Result<()> {
    match &mapping.tenant {
        Some(limit) if limit != tenant => Err(Error::TenantRefused {
            message: format!("this login role binds to tenant \"{limit}\" only"),
            hint: "SELECT * FROM agd.role_map shows how each role is mapped.".into(),
            recorded: format!("this login role binds to tenant \"{limit}\" only"),
        }),
        _ => Ok(()),
    }
}

/// `concerned` is the tenant whose key the token names, once that is known; it is told of the attempt where this role may bind
/// to it.
fn bind(token: &str, concerned: &mut Option<String>, is_told: &mut bool) -> Result<String> {
    let digest: [u8; 32] = Sha256::digest(token).into();
    // An application that asks twice means the same.
    if let Some(tenant) =
        binding::repeated(|binding| binding.proof.as_ref().is_some_and(|proof| proof.digest == digest))?
    {
        return Ok(tenant);
    }
    let mapping = mapped_for(Mode::Token, "agd.bind()")?;
    let parsed = Unverified::parse(token).map_err(|problem| refused(problem, None))?;
    let verified = verified(&parsed, concerned);
    *is_told = mapping.tenant.is_none() || mapping.tenant == *concerned;
    let claims = verified?;
    check_limit(&mapping, &claims.tenant)?;
    let now = used::now();
    let role = transaction::session_user_name();
    claims
        .expect(&Expected {
            audience: &home::audience()?,
            role: &role,
            now: used::unix_seconds(now),
            issued_after: used::issued_after()?,
            max_lifetime: settings::token_max_lifetime(),
        })
        .map_err(|problem| refused(problem, None))?;
    if let Some(fleet) = &claims.fleet {
        acting::must_be_active(fleet, &claims.tenant)?;
    }
    must_come_first("agd.bind()")?;
    let Claims { tenant, principal, scopes, fleet, expires_at, token_id, .. } = claims;
    if !used::remember(&tenant, parsed.kid(), &token_id, expires_at)? {
        return Err(binding::refused(
            "the token was used already",
            "A token binds one transaction. Issue another one, with another jti.",
        ));
    }
    let expires_at =
        i64::try_from(expires_at).unwrap_or(i64::MAX).saturating_mul(1_000_000) - crate::log::record::EPOCH_DIFFERENCE;
    let proof = Proof { digest, kid: parsed.kid().to_owned(), expires_at, scopes, fleet };
    binding::make(Binding {
        session_user: backend::session_user(),
        tenant: tenant.clone(),
        principal,
        proof: Some(proof),
    });
    Ok(tenant)
}

/// The claims, once the signature of a key that may sign for their tenant was found to hold.
///
/// A key that is not known, one that was revoked and a signature that is false are one answer to whoever asks, after the
/// same work; the record tells them apart.
fn verified(parsed: &Unverified<'_>, concerned: &mut Option<String>) -> Result<Claims> {
    /// What stands in for a key that is not known, so that the answer takes as long: the base point of the curve. Whatever
    /// it verifies is refused.
    const NOBODYS: [u8; 32] = {
        let mut key = [0x66; 32];
        key[0] = 0x58;
        key
    };
    let key = key::find(parsed.kid())?;
    let public = key.as_ref().and_then(|key| key.public).unwrap_or(NOBODYS);
    let verifier = TokenVerifier::new(&public).map_err(|problem| refused(problem, None))?;
    let outcome = parsed.verify(&verifier);
    let Some(key) = key else {
        return Err(refused(TokenError::Signature, Some("no key has the id that the token names")));
    };
    *concerned = Some(key.tenant.clone());
    if key.revoked {
        return Err(refused(TokenError::Signature, Some("the token is signed with a key that was revoked")));
    }
    let claims = outcome.map_err(|problem| refused(problem, None))?;
    if claims.tenant != key.tenant {
        return Err(binding::refused(
            "the token is for another tenant than the one whose key signed it",
            "A key signs for one tenant: the one that agd.add_tenant_key() was told.",
        ));
    }
    Ok(claims)
}

/// AG004. `recorded`: what the record says instead of what the caller is told.
fn refused(problem: TokenError, recorded: Option<&str>) -> Error {
    let hint = match problem {
        TokenError::Signature => {
            "Is it signed with the key whose public half the database has under this kid, and is that key not revoked?"
        }
        TokenError::Audience => {
            "aud is the name of the database's platform log: SELECT origin FROM agd.anchors WHERE tenant IS NULL; without \
             /i2 and the like at its end."
        }
        TokenError::Role => "role is the login role: SELECT session_user.",
        TokenError::Lifetime => "exp is at most agd.token_max_lifetime after iat, and never more than an hour.",
        TokenError::NotYetValid | TokenError::Expired => "Compare the issuer's clock with the server's.",
        TokenError::IssuedTooEarly => {
            "Tokens from before the server's start may have been used: issue a new one, a few seconds after the start."
        }
        _ => "The format of tokens is described in docs/formats.md.",
    };
    let message = format!("the token is refused: {problem}");
    let recorded = recorded.map_or_else(|| message.clone(), |recorded| format!("the token is refused: {recorded}"));
    Error::TokenRefused { message, hint: hint.into(), recorded }
}

fn enter(tenant: &str, principal: Option<String>) -> Result<String> {
    let principal = principal.unwrap_or_else(transaction::session_user_name);
    if let Some(bound) = binding::repeated(|binding| {
        binding.proof.is_none() && binding.tenant == tenant && binding.principal == principal
    })? {
        return Ok(bound);
    }
    let mapping = mapped_for(Mode::Asserted, "agd.enter()")?;
    validate_principal(&principal).map_err(|_| Error::BadArgument {
        message: "a principal has 1 to 128 characters, and each is seen as what it is".into(),
        hint: "It is recorded with every event, and people read it: no controls, nothing invisible, nothing that turns the \
               direction of text, no code point that Unicode does not assign."
            .into(),
    })?;
    check_limit(&mapping, tenant)?;
    if !exists(tenant)? {
        return Err(Error::TenantRefused {
            message: format!("there is no tenant \"{tenant}\""),
            hint: "SELECT agd.create_tenant('the_tenant') makes one.".into(),
            recorded: "there is no such tenant".into(),
        });
    }
    must_come_first("agd.enter()")?;
    binding::make(Binding { session_user: backend::session_user(), tenant: tenant.to_owned(), principal, proof: None });
    Ok(tenant.to_owned())
}
