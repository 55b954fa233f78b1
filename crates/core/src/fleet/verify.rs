//! Whether a fleet is what its record says.
//!
//! Owns the checks that `agd.verify_fleet()` shows and that anybody can make offline, over plain values: cause, vector, id,
//! what the agents are told, both signatures, the signers, the times. Promises that a fleet passes only if its name follows from its cause and both
//! signatures stand under its own statement, given in time by two registered signers with different keys. Never trusts a
//! stored digest or statement: everything is recomputed.

use super::context::{Agent, context_digest};
use super::signer::PublicKey;
use super::statement::{Place, Statement};
use super::vector::{Vector, hex};
use crate::cause;
use crate::entry::time_text;
use crate::merkle::Hash;

/// A signer as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// Its name.
    pub name: String,
    /// `coordinator` or `countersigner`.
    pub duty: String,
    /// Its Ed25519 public key.
    pub key: Vec<u8>,
    /// When it was registered, microseconds since 1970-01-01 UTC.
    pub registered_at: i64,
    /// Since when its signatures are refused; None: they are not.
    pub revoked_at: Option<i64>,
}

/// A stored signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Who signed; None: that signer is not registered.
    pub signer: Option<Signer>,
    /// 64 bytes.
    pub signature: Vec<u8>,
    /// When it was taken.
    pub at: i64,
}

/// A fleet as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// The id under which it is known.
    pub fleet_id: String,
    /// The digest of its vector.
    pub digest: Vec<u8>,
    /// Whose it is.
    pub tenant: String,
    /// Its template, and the version of it.
    pub template: (String, u32),
    /// The cause it was minted for.
    pub cause: String,
    /// How many fleets of this vector there were, with it.
    pub generation: u32,
    /// See [`Statement::origin`].
    pub origin: String,
    /// When it was minted, microseconds since 1970-01-01 UTC.
    pub minted_at: i64,
    /// The end of its window.
    pub deadline: i64,
    /// Its agents, and what they are told.
    pub agents: Vec<Agent>,
    /// The digest of that, as stored.
    pub context_digest: Vec<u8>,
    /// pending, active, sealed or cancelled, as stored.
    pub state: String,
    /// The coordinator's signature.
    pub coordinator: Option<Signed>,
    /// The countersigner's signature, and the fleet's place in the batch that it is of.
    pub countersigner: Option<(Signed, Place)>,
}

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was checked.
    pub name: &'static str,
    /// Does it hold?
    pub ok: bool,
    /// What was found.
    pub detail: String,
}

impl Check {
    fn of(name: &'static str, outcome: Result<String, String>) -> Self {
        let ok = outcome.is_ok();
        let (Ok(detail) | Err(detail)) = outcome;
        Self { name, ok, detail }
    }
}

/// Makes every check, always the same ones in the same order.
pub fn verify(fleet: &Evidence) -> Vec<Check> {
    let vector = Vector::new(&fleet.tenant, &fleet.template.0, fleet.template.1, &fleet.cause, fleet.generation);
    let context = context_digest(&fleet.agents);
    let statement = vector.as_ref().ok().map(|vector| Statement {
        origin: fleet.origin.clone(),
        vector: vector.clone(),
        minted_at: fleet.minted_at,
        deadline: fleet.deadline,
        context,
    });
    let named = vector.map_err(|problem| problem.to_string());
    vec![
        Check::of("cause", check_cause(fleet)),
        Check::of("vector", named.clone().and_then(|vector| check_vector(fleet, &vector))),
        Check::of("fleet_id", named.and_then(|vector| check_id(fleet, &vector))),
        Check::of("context", check_context(fleet, &context)),
        Check::of("coordinator", check_coordinator(fleet, statement.as_ref())),
        Check::of("countersigner", check_countersigner(fleet, statement.as_ref())),
        Check::of("two_signers", check_two(fleet)),
    ]
}

fn check_cause(fleet: &Evidence) -> Result<String, String> {
    match cause::normalised(&fleet.cause) {
        Ok(normalised) if normalised == fleet.cause => Ok("the cause is in its normal form".into()),
        Ok(_) => Err("the stored cause is not in its normal form".into()),
        Err(problem) => Err(problem.to_string()),
    }
}

fn check_vector(fleet: &Evidence, vector: &Vector) -> Result<String, String> {
    if vector.digest()[..] == fleet.digest[..] {
        Ok(vector.to_string())
    } else {
        Err(format!("{vector} has the digest {}, not {}", hex(&vector.digest()), hex(&fleet.digest)))
    }
}

fn check_id(fleet: &Evidence, vector: &Vector) -> Result<String, String> {
    let id = vector.fleet_id();
    if id == fleet.fleet_id {
        Ok("the id begins the vector's digest".into())
    } else {
        Err(format!("the vector gives the id {id}"))
    }
}

fn check_context(fleet: &Evidence, context: &Hash) -> Result<String, String> {
    if context[..] == fleet.context_digest[..] {
        Ok(format!("what {} agents are told has the digest {}", fleet.agents.len(), hex(context)))
    } else {
        Err(format!("what its agents are told has the digest {}, not {}", hex(context), hex(&fleet.context_digest)))
    }
}

/// Was this fleet ever active, as its state says?
fn was_active(fleet: &Evidence) -> bool {
    matches!(fleet.state.as_str(), "active" | "sealed")
}

fn check_coordinator(fleet: &Evidence, statement: Option<&Statement>) -> Result<String, String> {
    let Some(signed) = &fleet.coordinator else {
        return if was_active(fleet) {
            Err(format!("the fleet is {}, and no coordinator has signed it", fleet.state))
        } else {
            Ok("not signed".into())
        };
    };
    let statement = statement.ok_or("there is no statement: the fleet's vector is false")?;
    check_signed(fleet, signed, "coordinator", &statement.to_string())
}

fn check_countersigner(fleet: &Evidence, statement: Option<&Statement>) -> Result<String, String> {
    let Some((signed, place)) = &fleet.countersigner else {
        return if was_active(fleet) {
            Err(format!("the fleet is {}, and no countersigner has signed it", fleet.state))
        } else {
            Ok("not countersigned".into())
        };
    };
    if !was_active(fleet) {
        return Err(format!("the fleet is {}, and was countersigned", fleet.state));
    }
    let statement = statement.ok_or("there is no statement: the fleet's vector is false")?;
    let batch = place.batch_statement(statement).ok_or("the stored place is in no batch")?;
    check_signed(fleet, signed, "countersigner", &batch)
}

fn check_signed(fleet: &Evidence, signed: &Signed, duty: &str, statement: &str) -> Result<String, String> {
    let signer = signed.signer.as_ref().ok_or("the signer is not registered")?;
    if signer.duty != duty {
        return Err(format!("\"{}\" is registered as {}", signer.name, signer.duty));
    }
    let key = PublicKey::from_bytes(&signer.key).map_err(|problem| problem.to_string())?;
    key.verify(statement.as_bytes(), &signed.signature)
        .map_err(|_| format!("the signature is not \"{}\"'s over this fleet's statement", signer.name))?;
    let at = time_text(signed.at);
    if signed.at < fleet.minted_at || signed.at >= fleet.deadline {
        return Err(format!("signed at {at}, outside of the fleet's window"));
    }
    if signed.at < signer.registered_at || signer.revoked_at.is_some_and(|revoked| signed.at >= revoked) {
        return Err(format!("signed at {at}, when \"{}\" was no signer", signer.name));
    }
    Ok(format!("signed by \"{}\" at {at}", signer.name))
}

fn check_two(fleet: &Evidence) -> Result<String, String> {
    let signer = |signed: &Signed| signed.signer.clone();
    let first = fleet.coordinator.as_ref().and_then(signer);
    let second = fleet.countersigner.as_ref().and_then(|(signed, _)| signer(signed));
    let (Some(first), Some(second)) = (first, second) else {
        return Ok("not signed by two".into());
    };
    if first.name == second.name || first.key == second.key {
        return Err("coordinator and countersigner are the same".into());
    }
    Ok(format!("\"{}\" and \"{}\" have different keys", first.name, second.name))
}
