//! The log: fractal transparency logs inside PostgreSQL.
//!
//! [`record`] reads events back and makes their entries, [`events`] finds them by their keys; [`storage`] keeps the logs' trees, and [`stored`] reads them;
//! [`sequencer`] integrates what became visible; [`position`] finds an event's leaf, [`prove`] proves it; [`read`] serves
//! entries, [`export`] with their images; [`key`] says whose signature is believed,
//! [`timestamp`] what publishers may tell of timestamps, and [`reports`] keeps what they tell until they commit; [`verify`] recomputes
//! everything.

mod events;
mod export;
pub mod key;
mod position;
pub mod prove;
pub mod read;
pub mod record;
pub mod reports;
pub mod sequencer;
pub mod storage;
pub mod stored;
pub mod timestamp;
pub mod verify;
