//! A log's secret key.
//!
//! Owns the rule that the key of a database's logs is named after its platform log and signs each log under that log's own
//! origin. The file and its protection are in [`crate::secret`].

use std::path::Path;

use agd_core::{SigningKey, VerifierKey, name};
use zeroize::Zeroizing;

use crate::passphrase::Source;
pub use crate::secret::KeyError;
use crate::secret::SecretKey;

/// The secret key of one database's logs.
#[derive(Debug)]
pub struct LogKey(SecretKey);

impl LogKey {
    /// Draws a key from the operating system's randomness. `name` is the platform log's origin.
    ///
    /// # Errors
    /// [`KeyError::Name`], [`KeyError::Randomness`].
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        // Before anything is drawn: a wrong name is the likelier error.
        check(name)?;
        Self::new(SecretKey::generate(Some(name))?)
    }

    /// The key of a given 32-byte Ed25519 seed.
    ///
    /// # Errors
    /// [`KeyError::Name`].
    pub fn from_seed(name: &str, seed: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        check(name)?;
        Self::new(SecretKey::from_seed(name, seed)?)
    }

    fn new(key: SecretKey) -> Result<Self, KeyError> {
        check(key.name())?;
        Ok(Self(key))
    }

    /// The key itself.
    pub fn into_secret(self) -> SecretKey {
        self.0
    }

    /// The platform log's origin.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The platform log's verifier key: the line that goes into policies.
    pub fn verifier(&self) -> &VerifierKey {
        self.0.verifier()
    }

    /// The key that signs the log of this origin: the same secret under the origin as its name.
    ///
    /// # Errors
    /// [`KeyError::Note`] when the origin is no key name.
    pub fn signer(&self, origin: &str) -> Result<SigningKey, KeyError> {
        self.0.signer(origin)
    }

    /// Writes the key file in plain; see [`SecretKey::save`].
    ///
    /// # Errors
    /// [`KeyError::Exists`], [`KeyError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        self.0.save(path, None)
    }

    /// Reads a key file; see [`SecretKey::load`].
    ///
    /// # Errors
    /// Those of [`SecretKey::load`], and [`KeyError::Name`].
    pub fn load(path: &Path, passphrase: &Source) -> Result<Self, KeyError> {
        Self::new(SecretKey::load(path, passphrase)?)
    }
}

fn check(name: &str) -> Result<(), KeyError> {
    name::validate_log_name(name).map_err(|source| KeyError::Name { name: name.to_owned(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_key_is_the_same_public_key_under_another_name() {
        let key = LogKey::from_seed("agd-1/app", Zeroizing::new([7; 32])).unwrap();
        let tenant = key.signer("agd-1/app/t/acme").unwrap();
        let tenant = tenant.verifier_key();
        assert_eq!(tenant.public_key(), key.verifier().public_key());
        assert_eq!(tenant.name(), "agd-1/app/t/acme");
        assert_ne!(tenant.id(), key.verifier().id());
    }

    #[test]
    fn two_keys_differ() {
        let (a, b) = (LogKey::generate("a").unwrap(), LogKey::generate("a").unwrap());
        assert_ne!(a.verifier(), b.verifier());
    }

    #[test]
    fn only_a_log_name_names_a_logs_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        assert!(matches!(LogKey::generate("Not A Log"), Err(KeyError::Name { .. })));
        SecretKey::generate(Some("Coordinator-1")).unwrap().save(&path, None).unwrap();
        assert!(matches!(LogKey::load(&path, &Source::Terminal), Err(KeyError::Name { .. })));
    }
}
