//! The `agd` command line: publish a database's logs as signed tile trees, verify such trees from files alone, and hand out
//! evidence: dumps of events, proofs, signatures.
//!
//! Owns everything outside PostgreSQL: key files, the store's layout and its durable writes, the rule that only a
//! continuation of what was published is ever signed, and the offline verifier. Hashing, tiles, notes and entries come
//! from `agd-core`. It never trusts the database about what was published before, and the verifier opens no network
//! connection but to the store, where that is a bucket.
#![forbid(unsafe_code)]

pub mod database;
pub mod export;
pub mod html;
pub mod input;
pub mod key;
pub mod keygen;
pub mod origin;
pub mod passphrase;
mod pipeline;
pub mod policy;
pub mod prove;
pub mod publish;
pub mod report;
pub mod secret;
pub mod serve;
pub mod sign;
pub mod source;
pub mod stamp;
pub mod store;
pub mod succession;
pub mod tiles;
pub mod token;
pub mod tsa;
pub mod verify;
pub mod verify_proof;
pub mod witness;

/// Exit code: everything that was asked holds.
pub const EXIT_OK: u8 = 0;
/// Exit code: something is false, and the output says what.
pub const EXIT_FALSE: u8 = 1;
/// Exit code: it could not be checked, or could not be done.
pub const EXIT_UNCHECKED: u8 = 2;
