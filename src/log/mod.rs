//! The log: fractal transparency logs inside PostgreSQL.
//!
//! [`record`] reads events back and makes their entries; [`storage`] keeps the logs' trees; [`sequencer`] integrates what
//! became visible; [`read`] serves entries and positions; [`verify`] recomputes everything.

pub mod read;
pub mod record;
pub mod sequencer;
pub mod storage;
pub mod verify;
