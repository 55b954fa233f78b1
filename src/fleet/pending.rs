//! What a transaction that has to do with fleets settles when it commits, and not before.
//!
//! Owns the list of it. Promises that a transaction that is merely open holds no lock that another's seal or revocation would
//! wait for: what a fleet depends on beyond its own row is looked at once more, under a lock, on the way into the commit; so
//! only commits under way are waited for. A transaction that could be left lying, prepared, is refused. Never settles what was
//! rolled back to a savepoint.
//!
//! Locks are taken in one order, so that no two commits wait for each other: the fleet that acts, signers, templates, tenants, each by
//! name.

use super::{acting, last, signer, template};
use crate::error::{Error, Result};
use crate::{backend, tenant};
use std::cell::RefCell;
use std::collections::BTreeMap;

#[derive(Default)]
struct Pending {
    /// The first subtransaction that stands in which a fleet, a signer or a template was written.
    written: Option<u32>,
    /// Signers whose signatures were taken, and the first subtransaction that stands in which one was.
    signers: BTreeMap<String, u32>,
    /// The standard template is not there yet, and a fleet was minted from it.
    template: Option<u32>,
    /// Tenants for whom a fleet was minted.
    minted: BTreeMap<String, u32>,
    /// Tenants of whom a fleet was ended, each with what was ended: subtransaction, fleet.
    ended: BTreeMap<String, Vec<(u32, String)>>,
}

thread_local! {
    static PENDING: RefCell<Pending> = RefCell::default();
}

fn with<T>(body: impl FnOnce(&mut Pending) -> T) -> T {
    PENDING.with_borrow_mut(body)
}

/// A table of fleets is written.
pub(super) fn written() {
    let current = backend::subtransaction();
    with(|pending| _ = pending.written.get_or_insert(current));
}

/// A signature of this signer was taken.
pub(super) fn signed_by(signer: &str) {
    let current = backend::subtransaction();
    with(|pending| {
        if !pending.signers.contains_key(signer) {
            pending.signers.insert(signer.to_owned(), current);
        }
    });
}

/// A fleet was minted from the standard template, which nobody has recorded yet.
pub(super) fn template_is_missing() {
    let current = backend::subtransaction();
    with(|pending| _ = pending.template.get_or_insert(current));
}

/// A fleet of this tenant was minted.
pub(super) fn minted(tenant: &str) {
    let current = backend::subtransaction();
    with(|pending| {
        if !pending.minted.contains_key(tenant) {
            pending.minted.insert(tenant.to_owned(), current);
        }
    });
}

/// A fleet of this tenant was ended by somebody's word.
pub(super) fn ended(tenant: &str, fleet_id: &str) {
    let current = backend::subtransaction();
    with(|pending| {
        let ended = pending.ended.entry(tenant.to_owned()).or_default();
        // The last of each subtransaction is all that is asked for.
        ended.retain(|(subtransaction, _)| *subtransaction != current);
        ended.push((current, fleet_id.to_owned()));
    });
}

/// A subtransaction was rolled back, with all that carries its number or a larger one.
pub fn subtransaction_rolled_back(subtransaction: u32) {
    with(|pending| {
        for first in [&mut pending.written, &mut pending.template] {
            *first = first.filter(|first| *first < subtransaction);
        }
        for kept in [&mut pending.signers, &mut pending.minted] {
            kept.retain(|_, first| *first < subtransaction);
        }
        pending.ended.retain(|_, ended| {
            ended.retain(|(of, _)| *of < subtransaction);
            !ended.is_empty()
        });
    });
}

/// The transaction is over.
pub fn transaction_ended() {
    with(|pending| *pending = Pending::default());
}

/// Settles it. AG004 when a signer was revoked, or the fleet that acts sealed, since this transaction relied on it.
pub fn before_commit() -> Result<()> {
    let (has_any, template) = with(|pending| {
        let has_any = pending.written.is_some() || !pending.signers.is_empty();
        (has_any, pending.template.is_some())
    });
    if !has_any {
        return Ok(());
    }
    if let Some(acting) = tenant::acting_fleet()? {
        acting::hold(&acting.id, &acting.tenant)?;
    }
    let pending = with(std::mem::take);
    for name in pending.signers.keys() {
        signer::must_still_sign(name)?;
    }
    if template {
        template::record_standard()?;
    }
    for (tenant, alone) in last::in_order(pending.minted.keys(), pending.ended.keys()) {
        last::lock(&tenant, alone)?;
    }
    for (tenant, ended) in &pending.ended {
        if let Some((_, fleet_id)) = ended.last() {
            last::close_if_over(tenant, fleet_id)?;
        }
    }
    Ok(())
}

/// 0A000 for a transaction that would keep, prepared, what only a commit under way may keep.
pub fn before_prepare() -> Result<()> {
    let what = if with(|pending| pending.written.is_some() || !pending.signers.is_empty()) {
        "has changed fleets or signers"
    } else if tenant::acting_fleet()?.is_some() {
        "acts for a fleet"
    } else {
        return Ok(());
    };
    Err(Error::Unsupported {
        message: format!("a transaction that {what} cannot be prepared"),
        hint: "Prepared, it would keep the fleet from being sealed for as long as somebody likes. COMMIT it.".into(),
    })
}
