//! Fleets: a tenant's harness of agents, from its mint to its seal.
//!
//! Owns what a fleet is named by ([`Vector`]), the states that it passes through ([`lifecycle`]), the bytes that its
//! signers sign ([`statement`]), and how all of that is checked from plain values ([`verify`]). Promises that the same cause,
//! tenant, template and generation give the same id on every machine, and that no signature over one fleet's statement is
//! good for another fleet, generation, window or database. Never reads a clock and never signs: time enters as a value,
//! keys are public.

mod context;
mod history;
pub mod lifecycle;
pub mod signer;
pub mod statement;
mod vector;
pub mod verify;

pub use context::{Agent, context_digest};
pub use history::{FleetFinding, History, JudgedFleet, Judgement};
pub use lifecycle::{Denied, Event, State};
pub use signer::{PublicKey, SignerError};
pub use statement::{Batch, BatchError, Place, Statement};
pub use vector::{Vector, VectorError};
pub use verify::{Check, Evidence, Signed, Signer};

/// The body of an entry that closes a tenant's log: which fleet's end it was.
///
/// ```
/// use agd_core::fleet::{close_body, closed_by};
/// assert_eq!(closed_by(&close_body("9f86d081884c7d65")), Some("9f86d081884c7d65"));
/// ```
pub fn close_body(fleet_id: &str) -> String {
    format!("{{\"fleet_id\":\"{fleet_id}\"}}")
}

/// Reads what [`close_body`] writes.
pub fn closed_by(body: &str) -> Option<&str> {
    body.strip_prefix("{\"fleet_id\":\"")?.strip_suffix("\"}")
}
