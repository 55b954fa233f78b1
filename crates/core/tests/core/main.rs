//! Tests of agd-core against its specifications, the golden vectors and independent implementations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
mod bundle;
mod cause;
mod chain;
mod checkpoint;
mod dump;
mod entry;
mod fleet;
mod golden;
mod guard_state;
mod incarnation;
mod intent;
mod merkle;
mod name;
mod note;
mod proof;
mod tile;
mod tlog_proof;
mod token;

use agd_core::merkle::{Hash, leaf_hash};

/// The hash of the leaf whose entry is the decimal number `i`.
fn leaf(i: u64) -> Hash {
    leaf_hash(i.to_string().as_bytes())
}

/// The first `size` such leaves.
fn leaves(size: u64) -> Vec<Hash> {
    (0..size).map(leaf).collect()
}
