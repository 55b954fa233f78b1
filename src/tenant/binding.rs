//! What the present transaction is bound to, where its login role alone does not say it.
//!
//! Owns the backend's binding: tenant, principal and strength, made by [`super::bind`] from a token or by assertion.
//! Promises that a binding is for one top-level transaction, that it cannot be changed once it stands, that a token's end
//! the revocation of its key and the seal of its fleet end it, and that a transaction in which it was rolled back answers every later question
//! with an error: nobody writes on as somebody else, or as nobody, after ROLLBACK TO. Nothing that SQL can set is looked at.
#![allow(unsafe_code)] // asks whether this process is a parallel worker

use super::{key, share, used};
use crate::backend;
use crate::error::{Error, Result};
use crate::fleet::acting;
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};

/// How the transaction came by its tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// By a token that a tenant's key signed.
    Token,
    /// By the word of a login role that is trusted to give it.
    Asserted,
}

/// A token that was accepted.
pub struct Proof {
    /// SHA-256 of the token as it was presented.
    pub digest: [u8; 32],
    /// The key it is signed with.
    pub kid: String,
    /// Microseconds since 2000-01-01: it is not valid any more.
    pub expires_at: i64,
    /// What the application's own policies may ask for.
    pub scopes: Option<Vec<String>>,
    /// The fleet that acts, if the token names one.
    pub fleet: Option<String>,
}

/// A binding that stands.
pub struct Binding {
    /// Who logged in when it was made.
    pub session_user: pg_sys::Oid,
    /// For whom.
    pub tenant: String,
    /// Who acts.
    pub principal: String,
    /// None: it was asserted.
    pub proof: Option<Proof>,
}

impl Binding {
    /// How it came about.
    pub fn strength(&self) -> Strength {
        if self.proof.is_some() { Strength::Token } else { Strength::Asserted }
    }

    /// The fleet that acts: a token names it, or nothing does.
    pub fn fleet(&self) -> Option<&str> {
        self.proof.as_ref()?.fleet.as_deref()
    }
}

struct Standing {
    binding: Binding,
    /// The subtransaction that made it.
    subtransaction: u32,
    /// What was known of keys and fleets when these were last found valid.
    seen: Cell<u64>,
}

enum State {
    /// Nothing but the login role speaks.
    Unbound,
    Bound(Standing),
    /// The subtransaction that bound was rolled back.
    Lost {
        tenant: String,
    },
}

thread_local! {
    static STATE: RefCell<State> = const { RefCell::new(State::Unbound) };
}

/// What a process that is not the one that bound knows of it, or the one that did.
pub struct Present {
    /// For whom.
    pub tenant: String,
    /// Who acts.
    pub principal: String,
}

/// Asked for every row that is written: is there anything that would refuse? Cheap where nothing is bound.
pub fn check() -> Result<()> {
    with(|_| ()).map(drop)
}

/// The tenant; None: nothing but the login role speaks.
pub fn tenant() -> Result<Option<String>> {
    if is_worker() {
        return Ok(share::leaders()?.map(|present| present.tenant));
    }
    with(|binding| binding.tenant.clone())
}

/// Tenant and principal; None: as above.
pub fn present() -> Result<Option<Present>> {
    if is_worker() {
        return share::leaders();
    }
    with(|binding| Present { tenant: binding.tenant.clone(), principal: binding.principal.clone() })
}

/// Is the row's tenant the bound one? None: as above. Without a copy of the name, since every row asks.
pub fn is_bound_to(tenant: &str) -> Result<Option<bool>> {
    if is_worker() {
        return Ok(share::leaders()?.map(|present| present.tenant == tenant));
    }
    with(|binding| binding.tenant == tenant)
}

/// Reads the binding of this process, once it was found to stand still.
pub fn with<T>(read: impl FnOnce(&Binding) -> T) -> Result<Option<T>> {
    STATE.with_borrow(|state| match state {
        State::Unbound => Ok(None),
        State::Bound(standing) => standing.check().map(|()| Some(read(&standing.binding))),
        State::Lost { .. } => Err(lost()),
    })
}

/// For the transaction's record, which tells of what was done under the binding while it stood: an expired token is no
/// reason to leave that out. An error where the binding was rolled back.
pub fn for_the_record<T>(read: impl FnOnce(&Binding) -> T) -> Result<Option<T>> {
    STATE.with_borrow(|state| match state {
        State::Unbound => Ok(None),
        State::Bound(standing) => Ok(Some(read(&standing.binding))),
        State::Lost { .. } => Err(lost()),
    })
}

/// The tenant it stood for, whatever became of it: for the record of refused attempts.
pub fn last_tenant() -> Option<String> {
    STATE.with_borrow(|state| match state {
        State::Unbound => None,
        State::Bound(standing) => Some(standing.binding.tenant.clone()),
        State::Lost { tenant } => Some(tenant.clone()),
    })
}

impl Standing {
    fn check(&self) -> Result<()> {
        if self.binding.session_user != backend::session_user() {
            return Err(another_session_user());
        }
        let Some(proof) = &self.binding.proof else { return Ok(()) };
        if used::now() >= proof.expires_at {
            return Err(expired());
        }
        // Whenever something about keys or fleets has changed since.
        let generation = super::generation();
        if self.seen.get() != generation {
            let valid = key::find(&proof.kid)?.is_some_and(|key| !key.revoked && key.tenant == self.binding.tenant);
            if !valid {
                return Err(refused(
                    "the key of the token that this transaction is bound by was revoked",
                    "Roll back. The tenant's other keys, if it has any, still sign tokens.",
                ));
            }
            if let Some(fleet) = &proof.fleet {
                acting::must_be_active(fleet, &self.binding.tenant)?;
            }
            self.seen.set(generation);
        }
        Ok(())
    }
}

/// Binds the transaction, for as long as it lasts. To be called when [`must_be_free`] found nothing against it.
pub fn make(binding: Binding) {
    share::publish(&binding);
    let (subtransaction, seen) = (backend::subtransaction(), Cell::new(super::generation()));
    STATE.set(State::Bound(Standing { binding, subtransaction, seen }));
}

/// Is the transaction bound by just this already? Then that is the answer, and nothing is to be done. An error when it is
/// bound to anything else.
pub fn repeated(same: impl FnOnce(&Binding) -> bool) -> Result<Option<String>> {
    let Some((tenant, same)) = with(|binding| (binding.tenant.clone(), same(binding)))? else { return Ok(None) };
    if same {
        return Ok(Some(tenant));
    }
    Err(Error::TenantRefused {
        message: format!("this transaction is bound to tenant \"{tenant}\" already"),
        hint: "A binding stands until the transaction ends. COMMIT or ROLLBACK first.".into(),
        recorded: format!("this transaction is bound to tenant \"{tenant}\" already"),
    })
}

/// The transaction is over, committed, prepared or rolled back.
pub fn transaction_ended() {
    // Most transactions are not bound: nothing to be dropped then.
    if !STATE.with_borrow(|state| matches!(state, State::Unbound)) {
        share::clear();
        STATE.set(State::Unbound);
    }
}

/// A subtransaction was rolled back, with all that carries its number or a larger one.
pub fn subtransaction_rolled_back(subtransaction: u32) {
    STATE.with_borrow_mut(|state| {
        if let State::Bound(standing) = state
            && standing.subtransaction >= subtransaction
        {
            share::lose();
            *state = State::Lost { tenant: std::mem::take(&mut standing.binding.tenant) };
        }
    });
}

/// Is this process a worker of a parallel query, which has no binding of its own?
pub fn is_worker() -> bool {
    // SAFETY: reads a process global.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// AG004, as it is shown and as it is recorded.
pub fn refused(message: &str, hint: &str) -> Error {
    Error::TokenRefused { message: message.into(), hint: hint.into(), recorded: message.into() }
}

/// The token's time is over.
pub fn expired() -> Error {
    refused(
        "the token that this transaction is bound by has expired",
        "Roll back, and bind the next transaction with a new token that lives longer.",
    )
}

/// 55000: the binding was rolled back.
pub fn lost() -> Error {
    Error::WrongState {
        message: "the binding of this transaction was rolled back with a savepoint".into(),
        hint:
            "Nothing tenants own is read or written in this transaction any more. ROLLBACK, and bind before the first \
               SAVEPOINT."
                .into(),
    }
}

/// 55000: SET SESSION AUTHORIZATION came after the binding.
pub fn another_session_user() -> Error {
    Error::WrongState {
        message: "this transaction was bound under another session user".into(),
        hint: "A binding is for one session user. Commit before SET SESSION AUTHORIZATION.".into(),
    }
}
