//! The secret keys of a database's logs, and of a witness.
//!
//! Owns the rule that the key of a database's logs is named after its platform log and signs each log under that log's own
//! origin, and that a witness's key cosigns and does nothing else. The files and their protection, and that the key of one
//! role is never taken for one of the other, are in [`crate::secret`].

use std::path::Path;

use agd_core::note::KeyType;
use agd_core::{CosigningKey, SigningKey, VerifierKey, name};
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

/// The secret key of a witness.
#[derive(Debug)]
pub struct WitnessKey(SecretKey);

impl WitnessKey {
    /// Draws a key from the operating system's randomness. `name` is the witness's own name.
    ///
    /// # Errors
    /// [`KeyError::Note`] when the name cannot stand in a note, [`KeyError::Randomness`].
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        SecretKey::generate_as(KeyType::CosignatureV1, Some(name)).map(Self)
    }

    /// The key of a given 32-byte Ed25519 seed.
    ///
    /// # Errors
    /// [`KeyError::Note`].
    pub fn from_seed(name: &str, seed: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        SecretKey::from_seed_as(KeyType::CosignatureV1, name, seed).map(Self)
    }

    /// The key itself.
    pub fn into_secret(self) -> SecretKey {
        self.0
    }

    /// The witness's verifier key: the line that goes into policies.
    pub fn verifier(&self) -> &VerifierKey {
        self.0.verifier()
    }

    /// The key that cosigns.
    ///
    /// # Errors
    /// [`KeyError::Note`]: a name that was accepted is accepted again.
    pub fn cosigner(&self) -> Result<CosigningKey, KeyError> {
        let name = self.0.name();
        let key = CosigningKey::from_seed(name, self.0.seed());
        key.map_err(|source| KeyError::Note { name: name.to_owned(), source })
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
    /// Those of [`SecretKey::load`].
    pub fn load(path: &Path, passphrase: &Source) -> Result<Self, KeyError> {
        SecretKey::load_as(KeyType::CosignatureV1, path, passphrase).map(Self)
    }
}

fn check(name: &str) -> Result<(), KeyError> {
    name::validate_log_name(name).map_err(|source| KeyError::Name { name: name.to_owned(), source })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use std::os::unix::fs::PermissionsExt as _;

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

    #[test]
    fn a_witness_key_is_of_another_type_and_neither_is_taken_for_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let passphrase = dir.path().join("passphrase");
        std::fs::write(&passphrase, "correct horse").unwrap();
        std::fs::set_permissions(&passphrase, std::fs::Permissions::from_mode(0o600)).unwrap();
        for (encrypted, source) in [(None, Source::Terminal), (Some("correct horse"), Source::File(passphrase))] {
            let file = |name: &str| dir.path().join(format!("{name} {}", encrypted.is_some()));
            let (log, witness) = (file("log.key"), file("witness.key"));
            LogKey::generate("agd-1/app").unwrap().into_secret().save(&log, encrypted).unwrap();
            let made = WitnessKey::generate("witness.example/w1").unwrap();
            made.0.save(&witness, encrypted).unwrap();
            let again = WitnessKey::load(&witness, &source).unwrap();
            assert_eq!((again.verifier(), again.0.seed()), (made.verifier(), made.0.seed()));
            assert_eq!(again.verifier().key_type(), KeyType::CosignatureV1);
            assert_eq!(again.cosigner().unwrap().verifier_key(), made.verifier());
            let text = |error: KeyError| error.to_string();
            // Nobody is asked for the passphrase of a key that will not do.
            for source in [&source, &Source::Terminal] {
                assert!(text(LogKey::load(&witness, source).unwrap_err()).contains("a witness's key, not a log's"));
                assert!(text(SecretKey::load(&witness, source).unwrap_err()).contains("a witness's key, not a log's"));
                assert!(text(WitnessKey::load(&log, source).unwrap_err()).contains("a log's key, not a witness's"));
            }
            let shown = format!("{made:?}");
            assert!(!shown.contains(&STANDARD.encode(made.0.seed())) && !shown.contains(&hex::encode(made.0.seed())));
        }
        for bad in ["", "a b", "a+b", "a\u{3000}b"] {
            assert!(matches!(WitnessKey::generate(bad), Err(KeyError::Note { .. })), "{bad:?}");
        }
    }
}
