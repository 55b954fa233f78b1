//! What a fleet's agents are told: goals and memory scope of each, and the digest of all of it that the signers sign.
//!
//! Owns which bytes that digest is of. Promises that two fleets share a digest only if every agent has the same role, goals
//! and memory scope; since each memory scope names its fleet, no other fleet's will do. The texts are PostgreSQL's own of the
//! type jsonb: one value has one text there, and no line end outside of a string. Never reads them.

use sha2::{Digest as _, Sha256};

use crate::merkle::Hash;

/// The first line of what is hashed.
const FIRST: &str = "agd-fleet-context-v1\n";

/// One agent of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Agent {
    /// Its role, a name of the fleet's template.
    pub role: String,
    /// What it is to do: a jsonb value's text.
    pub goals: String,
    /// What it may remember, and where: a jsonb object's text.
    pub memory_scope: String,
}

/// SHA-256 of `agd-fleet-context-v1` and, for each agent in the order of their roles' bytes, role, goals and memory scope,
/// each a line that ends in 0x0A.
pub fn context_digest(agents: &[Agent]) -> Hash {
    let mut sorted: Vec<&Agent> = agents.iter().collect();
    sorted.sort_unstable_by(|a, b| a.role.cmp(&b.role));
    let mut hash = Sha256::new_with_prefix(FIRST);
    for Agent { role, goals, memory_scope } in sorted {
        for line in [role, goals, memory_scope] {
            hash.update(line);
            hash.update(b"\n");
        }
    }
    hash.finalize().into()
}
