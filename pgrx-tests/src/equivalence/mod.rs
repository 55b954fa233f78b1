//! A guarded table behaves as an unguarded one, and its record is exactly what was written: tried with programs made from
//! a seed.
//!
//! A program makes tables and runs transactions on them. It runs as the same text in two schemas of one database: the
//! tables of `g` are guarded by agd, those of `u` are watched by plain row triggers. After each statement the answers must
//! be the same, after each transaction the rows; at the end the events must be the writes ([`ledger`]). A program that
//! differs is shrunk and printed as a script for psql.
//!
//! Reading order: [`script`] (what a program is), [`schema`] and [`statement`] (how one is made), [`run`] (how it runs).

pub mod campaign;
mod ledger;
mod random;
mod run;
mod schema;
mod script;
mod shrink;
mod side;
mod statement;
mod trigger;
mod value;
mod write;

pub use campaign::{Campaign, Failure, Report};
pub use run::{Sabotage, Tally};
pub use script::Program;

use random::Random;

/// The program that belongs to a seed, on a major version of PostgreSQL.
#[must_use]
pub fn program(seed: u64, major: u32) -> Program {
    let mut random = Random::new(seed);
    let (setup, model) = schema::generate(&mut random, major);
    let transactions = statement::transactions(&mut random, &model);
    Program { seed, setup, transactions }
}
