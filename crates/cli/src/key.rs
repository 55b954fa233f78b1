//! The log's secret key and its file.
//!
//! Owns the key file's format, the private key line of Go's note package: `PRIVATE+KEY+<name>+<key id>+<base64>`, where
//! the base64 holds the type byte 0x01 and the 32-byte Ed25519 seed. The name is the platform log's origin. Promises that
//! a file others can read is refused, that a file is never overwritten, and that the secret is wiped from memory and
//! never printed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use agd_core::name::{self, NameError};
use agd_core::{NoteError, SigningKey, VerifierKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;
use zeroize::Zeroizing;

/// The longest key file that is read, in bytes. A key line has at most about 200.
const MAX_KEY_FILE: u64 = 4096;

/// What a private key line begins with.
const PREFIX: &str = "PRIVATE+KEY+";

/// The type byte of an Ed25519 key (signed-note).
const ED25519: u8 = 0x01;

/// Why a key could not be made or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is a file already: a key is never overwritten.
    #[error("{0} exists already; a key file is never overwritten")]
    Exists(PathBuf),
    /// Somebody other than the owner can read or write it.
    #[error("{path} has mode {mode:04o}: others can reach the key; run chmod 600 on it")]
    Permissions {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not one private key line.
    #[error("{path} is not a key file: {reason}")]
    Format {
        /// The key file.
        path: PathBuf,
        /// What is wrong. Never holds any part of the secret.
        reason: String,
    },
    /// The name cannot be a log's origin.
    #[error("{name:?} cannot name a log: {source}")]
    Name {
        /// The name that was given.
        name: String,
        /// The rule it breaks.
        source: NameError,
    },
    /// The operating system gave no randomness.
    #[error("no randomness from the operating system: {0}")]
    Randomness(String),
    /// The key cannot be used under a name.
    #[error("the key cannot sign for {name}: {source}")]
    Note {
        /// The origin.
        name: String,
        /// What is wrong.
        source: NoteError,
    },
}

/// The secret key of one database's logs.
pub struct LogKey {
    name: String,
    seed: Zeroizing<[u8; 32]>,
    public: VerifierKey,
}

impl std::fmt::Debug for LogKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LogKey({}, secret not shown)", self.public)
    }
}

impl LogKey {
    /// Draws a key from the operating system's randomness. `name` is the platform log's origin.
    ///
    /// # Errors
    /// [`KeyError::Name`], [`KeyError::Randomness`].
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|error| KeyError::Randomness(error.to_string()))?;
        Self::from_seed(name, seed)
    }

    /// The key of a given 32-byte Ed25519 seed.
    ///
    /// # Errors
    /// [`KeyError::Name`].
    pub fn from_seed(name: &str, seed: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        name::validate_log_name(name).map_err(|source| KeyError::Name { name: name.to_owned(), source })?;
        let public = SigningKey::from_seed(name, &seed)
            .map_err(|source| KeyError::Note { name: name.to_owned(), source })?
            .verifier_key()
            .clone();
        Ok(Self { name: name.to_owned(), seed, public })
    }

    /// The platform log's origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The platform log's verifier key: the line that goes into policies.
    pub fn verifier(&self) -> &VerifierKey {
        &self.public
    }

    /// The key that signs the log of this origin: the same secret under the origin as its name.
    ///
    /// # Errors
    /// [`KeyError::Note`] when the origin is no key name.
    pub fn signer(&self, origin: &str) -> Result<SigningKey, KeyError> {
        SigningKey::from_seed(origin, &self.seed).map_err(|source| KeyError::Note { name: origin.to_owned(), source })
    }

    /// Writes the key file: mode 0600, create-only, flushed to disk.
    ///
    /// # Errors
    /// [`KeyError::Exists`], [`KeyError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|source| {
            match source.kind() {
                io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
                _ => io(source),
            }
        })?;
        let written =
            file.write_all(self.line().as_bytes()).and_then(|()| file.sync_all()).and_then(|()| sync_parent(path));
        written.map_err(|source| {
            // Half a key helps nobody and would block the next attempt. The first error is the one to tell.
            let _ = std::fs::remove_file(path);
            io(source)
        })
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyError::Io`], [`KeyError::Permissions`], [`KeyError::Format`], [`KeyError::Name`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let format = |reason: &str| KeyError::Format { path: path.to_owned(), reason: reason.to_owned() };
        // A named pipe would block the open; a link to a file is fine.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(format("not a regular file"));
        }
        let file = File::open(path).map_err(io)?;
        let mode = file.metadata().map_err(io)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Permissions { path: path.to_owned(), mode });
        }
        // The whole size at once: growing the buffer would leave copies of the secret behind.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE as usize + 1));
        file.take(MAX_KEY_FILE + 1).read_to_end(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_KEY_FILE {
            return Err(format("longer than a key line"));
        }
        let text = std::str::from_utf8(&text).map_err(|_| format("not text"))?;
        match Self::parse_line(text) {
            Ok(key) => Ok(key),
            Err(LineError::Name(error)) => Err(error),
            Err(LineError::Format(reason)) => Err(format(reason)),
        }
    }

    fn parse_line(text: &str) -> Result<Self, LineError> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let rest = line.strip_prefix(PREFIX);
        let rest = rest.ok_or(LineError::Format("it does not begin with PRIVATE+KEY+"))?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(id), Some(secret)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(LineError::Format("it is not <name>+<key id>+<base64>"));
        };
        let secret = STANDARD.decode(secret);
        let secret = Zeroizing::new(secret.map_err(|_| LineError::Format("not base64"))?);
        let Some((&ED25519, seed)) = secret.split_first() else {
            return Err(LineError::Format("not an Ed25519 key"));
        };
        let mut copy = Zeroizing::new([0; 32]);
        if seed.len() != copy.len() {
            return Err(LineError::Format("an Ed25519 key has 32 bytes"));
        }
        copy.copy_from_slice(seed);
        let key = Self::from_seed(name, copy).map_err(LineError::Name)?;
        if format!("{:08x}", key.public.id()) != id {
            return Err(LineError::Format("the key id is not the one of this name and key"));
        }
        Ok(key)
    }

    fn line(&self) -> Zeroizing<String> {
        let mut secret = Zeroizing::new([ED25519; 33]);
        secret[1..].copy_from_slice(self.seed.as_slice());
        let secret = Zeroizing::new(STANDARD.encode(secret.as_slice()));
        let (name, id) = (&self.name, self.public.id());
        Zeroizing::new(format!("{PREFIX}{name}+{id:08x}+{}\n", secret.as_str()))
    }
}

enum LineError {
    Name(KeyError),
    Format(&'static str),
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> LogKey {
        LogKey::from_seed("agd-1/app", Zeroizing::new([7; 32])).unwrap()
    }

    #[test]
    fn a_saved_key_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        let key = LogKey::generate("agd-1/app").unwrap();
        key.save(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = LogKey::load(&path).unwrap();
        assert_eq!(again.seed, key.seed);
        assert_eq!(again.verifier(), key.verifier());
    }

    #[test]
    fn two_keys_differ() {
        let (a, b) = (LogKey::generate("a").unwrap(), LogKey::generate("a").unwrap());
        assert_ne!(a.seed, b.seed);
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(key().save(&path), Err(KeyError::Exists(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }

    #[test]
    fn a_key_that_others_can_reach_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        key().save(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601, 0o644] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = LogKey::load(&path).unwrap_err();
            assert!(matches!(error, KeyError::Permissions { mode: m, .. } if m == mode));
        }
    }

    #[test]
    fn the_line_is_the_one_of_gos_note_package() {
        let line = key().line();
        let id = key().verifier().id();
        // 0x01 and 32 times 0x07.
        let base64 = "AQcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH";
        assert_eq!(line.as_str(), format!("PRIVATE+KEY+agd-1/app+{id:08x}+{base64}\n"));
    }

    #[test]
    fn neither_debug_nor_errors_show_the_secret() {
        let line = key().line();
        let secret = line.trim_end().rsplit('+').next().unwrap().to_owned();
        assert!(!format!("{:?}", key()).contains(&secret));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        let broken = line.replace("agd-1/app", "agd-1/other");
        std::fs::write(&path, broken).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let error = LogKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("key id") && !error.contains(&secret));
    }

    #[test]
    fn a_tenants_key_is_the_same_public_key_under_another_name() {
        let key = key();
        let tenant = key.signer("agd-1/app/t/acme").unwrap();
        let tenant = tenant.verifier_key();
        assert_eq!(tenant.public_key(), key.verifier().public_key());
        assert_eq!(tenant.name(), "agd-1/app/t/acme");
        assert_ne!(tenant.id(), key.verifier().id());
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_no_key_and_no_panic(text in "\\PC*") {
            prop_assert!(LogKey::parse_line(&text).is_err());
            let prefixed = format!("{PREFIX}{text}");
            prop_assert!(LogKey::parse_line(&prefixed).is_err());
        }
    }
}
