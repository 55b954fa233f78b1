//! `agd keygen`: a new key file, and the verifier key that goes into policies.
//!
//! Owns the command only; the file's format and its protection are in [`crate::key`].

use std::path::Path;

use crate::key::{KeyError, LogKey};

/// Makes a key named after the platform log's origin, writes it to `out` and returns the vkey line.
///
/// # Errors
/// What [`LogKey::generate`] and [`LogKey::save`] say.
pub fn run(out: &Path, name: &str) -> Result<String, KeyError> {
    let key = LogKey::generate(name)?;
    key.save(out)?;
    Ok(key.verifier().to_string())
}
