//! Assertions. They panic, as assertions do, at the line of the test that called them.
#![allow(clippy::panic)]

use postgres::error::DbError;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Asserts that `result` is a server error with SQLSTATE `state` (five characters), and returns that error.
#[track_caller]
pub fn expect_sqlstate<T: Debug>(result: Result<T, postgres::Error>, state: &str) -> DbError {
    match result {
        Ok(value) => panic!("expected SQLSTATE {state}, but the call succeeded: {value:?}"),
        Err(error) => match error.as_db_error() {
            Some(db) if db.code().code() == state => db.clone(),
            Some(db) => panic!(
                "expected SQLSTATE {state}, got {}: {} (detail: {:?}, hint: {:?})",
                db.code().code(),
                db.message(),
                db.detail(),
                db.hint()
            ),
            None => {
                panic!("expected SQLSTATE {state}, got an error that is not the server's: {error}")
            }
        },
    }
}

/// Asserts that the error has a hint and that the hint contains `needle`.
#[track_caller]
pub fn expect_hint(error: &DbError, needle: &str) {
    match error.hint() {
        Some(hint) if hint.contains(needle) => {}
        other => {
            panic!("expected a hint with {needle:?} on {:?} ({}), got {other:?}", error.message(), error.code().code())
        }
    }
}

/// Asserts that `condition` becomes true within `limit`; asks again every 20 ms. For what a background worker does in its
/// own time, and for nothing else.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        if Instant::now() > deadline {
            panic!("still not so after {limit:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
