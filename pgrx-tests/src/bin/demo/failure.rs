//! Why a step did not do what it says.

use std::fmt::Display;

/// The result of everything in the demo.
pub type Result<T> = std::result::Result<T, Failure>;

/// What a step expected, and what it saw instead.
#[derive(Debug)]
pub struct Failure {
    /// In words, as the rest of "expected …".
    pub expected: String,
    /// In words, or what a program printed.
    pub saw: String,
}

impl Failure {
    /// A failure from its two halves.
    pub fn new(expected: impl Into<String>, saw: impl Into<String>) -> Self {
        Self { expected: expected.into(), saw: saw.into() }
    }
}

impl From<agd_live_tests::Error> for Failure {
    fn from(error: agd_live_tests::Error) -> Self {
        Self::new("a throw-away PostgreSQL that starts, stops and takes connections", error.to_string())
    }
}

/// Fails unless `seen` is `wanted`. `what` says what was counted or read.
pub fn expect_equal<T: PartialEq + Display>(what: &str, wanted: T, seen: T) -> Result<()> {
    if wanted == seen { Ok(()) } else { Err(Failure::new(format!("{what}: {wanted}"), seen.to_string())) }
}

/// Fails unless `holds`; `seen` is what was there.
pub fn expect(what: &str, holds: bool, seen: impl Display) -> Result<()> {
    if holds { Ok(()) } else { Err(Failure::new(what, seen.to_string())) }
}

/// A server's error as psql shows it at `\set VERBOSITY verbose`: with its SQLSTATE.
pub fn server_message(error: &postgres::Error) -> String {
    let Some(db) = error.as_db_error() else {
        return error.to_string();
    };
    let mut text = format!("{}:  {}: {}", db.severity(), db.code().code(), db.message());
    for (name, part) in [("DETAIL", db.detail()), ("HINT", db.hint())] {
        if let Some(part) = part {
            text.push_str(&format!("\n{name}:  {part}"));
        }
    }
    text
}
