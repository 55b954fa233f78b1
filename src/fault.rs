//! Points at which a test can stop the worker dead, or make it fail.
//!
//! Owns the order in a file that `AGD_FAULT` names: "kill 7" or "error 7", at the 7th point that a process passes. Promises
//! that the order is carried out once: the file is gone before it is. A release build has no such points.

/// A point between two writes.
#[cfg(not(debug_assertions))]
pub fn point() -> crate::error::Result<()> {
    Ok(())
}

#[cfg(debug_assertions)]
pub use development::point;

#[cfg(debug_assertions)]
mod development {
    #![allow(unsafe_code)] // ends the process
    use crate::error::{Error, Result};
    use std::cell::Cell;
    use std::path::PathBuf;

    thread_local! {
        static ORDER: Option<PathBuf> = std::env::var_os("AGD_FAULT").map(PathBuf::from);
        static PASSED: Cell<u64> = const { Cell::new(0) };
    }

    /// A point between two writes.
    pub fn point() -> Result<()> {
        let Some(file) = ORDER.with(Clone::clone) else { return Ok(()) };
        // The count begins when there is an order.
        let Ok(order) = std::fs::read_to_string(&file) else {
            PASSED.set(0);
            return Ok(());
        };
        let passed = PASSED.get() + 1;
        PASSED.set(passed);
        let mut words = order.split_whitespace();
        let (what, at) = (words.next(), words.next().and_then(|at| at.parse::<u64>().ok()));
        // Who removes the file carries out the order.
        if at != Some(passed) || std::fs::remove_file(&file).is_err() {
            return Ok(());
        }
        if what == Some("kill") {
            unsafe extern "C" {
                fn raise(signal: std::ffi::c_int) -> std::ffi::c_int;
            }
            // SAFETY: ends this process as `kill -9` would.
            unsafe { raise(9) };
        }
        Err(Error::Internal(format!("agd: failed at point {passed}, as the order in AGD_FAULT says")))
    }
}
