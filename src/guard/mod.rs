//! The guard: no record, no write.
//!
//! [`define`] puts a table behind the gate and takes it out, after [`examine`] found it fit; [`baseline`] records what is in
//! it, [`partition`] sees to partitions that come later; [`trigger`] is the gate; [`relation`] is what the gate knows
//! of a table; [`image`] writes rows down, [`present`] those that are there now; `agd_core::intent` pairs each record with its write.

pub mod baseline;
pub mod define;
pub mod examine;
pub mod image;
pub mod partition;
pub mod present;
pub mod relation;
pub mod trigger;
