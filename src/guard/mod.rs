//! The guard: no record, no write.
//!
//! [`define`] puts a table behind the gate and takes it out, after [`examine`] found it fit; [`baseline`] records what is in
//! it, [`partition`] sees to partitions that come later; [`trigger`] is the gate; [`relation`] is what the gate knows
//! of a table; [`image`] writes rows down ([`scalar`] the commonest types, of [`json`] what can be read back), [`redact`]
//! what must not be told of them, [`present`] those that are there now, [`reconcile`] whether they are what the record says; `agd_core::intent` pairs each record with its write.
//! [`protect`] judges DDL by what it [`touched`]: a hole is refused, what is permitted is recorded ([`ddl_event`]), and
//! [`detach`] records the rows that leave with a partition. [`policy`] knows the wall's own policy when it sees it,
//! and [`farewell`] what goes when the extension is dropped.

pub mod baseline;
pub mod ddl_event;
pub mod define;
pub mod detach;
pub mod examine;
pub mod farewell;
pub mod image;
mod json;
pub mod own;
pub mod partition;
pub mod place;
pub mod policy;
pub mod present;
pub mod protect;
pub mod reconcile;
pub mod redact;
pub mod relation;
mod scalar;
pub mod touched;
pub mod trigger;

pub use scalar::write_string;
