//! Secret keys and their files.
//!
//! Owns two formats. In plain: the private key line of Go's note package, `PRIVATE+KEY+<name>+<key id>+<base64>`, where the
//! base64 holds the type byte (0x04 for a witness's key, 0x01 for every other) and the 32-byte Ed25519 seed. Under a passphrase:
//! a line with the public key, then PKCS#8 in PEM, encrypted with AES-256 under scrypt, which openssl reads too. Promises that a
//! file others can read is refused, that a file is never overwritten, that a witness's key is taken for no other and no other
//! for a witness's, and that the secret is wiped from memory and never printed.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use agd_core::name::NameError;
use agd_core::note::KeyType;
use agd_core::{CosigningKey, NoteError, SigningKey, VerifierKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pkcs8::pkcs5::{pbes2, scrypt};
use pkcs8::{EncryptedPrivateKeyInfoRef, LineEnding, ObjectIdentifier, PrivateKeyInfoRef, SecretDocument};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::input;
use crate::passphrase::{PassphraseError, Source};

/// The longest key file that is read, in bytes. A key line has at most about 200, an encrypted key about 600.
const MAX_KEY_FILE: u64 = 4096;

/// What a private key line begins with.
const PREFIX: &str = "PRIVATE+KEY+";

/// What an encrypted key's file begins with; the verifier key follows, and on the next line the PEM.
const ENCRYPTED: &str = "agd-key ";

/// The PEM label of an encrypted key.
const LABEL: &str = "ENCRYPTED PRIVATE KEY";

/// Ed25519's object identifier (RFC 8410).
const ED25519_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// What stands before the seed in the PKCS#8 of an Ed25519 key (RFC 8410, section 7).
const PKCS8_BEFORE_SEED: [u8; 16] =
    [0x30, 0x2E, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2B, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// scrypt's costs: N = 2^14, r = 8, p = 5, as strong as N = 2^17 with p = 1. openssl reads no key that needs more than 32 MB.
const SCRYPT: (u8, u32, u32) = (14, 8, 5);

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
    /// The file is not one private key.
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
    /// No passphrase.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The passphrase is another, or the file was changed.
    #[error("{0}: wrong passphrase")]
    WrongPassphrase(PathBuf),
    /// The key could not be encrypted.
    #[error("the key could not be encrypted: {0}")]
    Encryption(String),
}

/// Bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, KeyError> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|error| KeyError::Randomness(error.to_string()))?;
    Ok(bytes)
}

/// An Ed25519 key with a name: a log's origin, a signer's or a witness's name, or the id of a tenant's key.
pub struct SecretKey {
    seed: Zeroizing<[u8; 32]>,
    public: VerifierKey,
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretKey({}, secret not shown)", self.public)
    }
}

impl SecretKey {
    /// Draws a key from the operating system's randomness. Without a name, its key id becomes its name: the first 16 hex
    /// digits of the public key's SHA-256.
    ///
    /// # Errors
    /// [`KeyError::Note`], [`KeyError::Randomness`].
    pub fn generate(name: Option<&str>) -> Result<Self, KeyError> {
        Self::generate_as(KeyType::Ed25519, name)
    }

    pub(crate) fn generate_as(role: KeyType, name: Option<&str>) -> Result<Self, KeyError> {
        let seed = random()?;
        match name {
            Some(name) => Self::from_seed_as(role, name, seed),
            None => {
                let public = *Self::from_seed_as(role, "x", seed.clone())?.public.public_key();
                Self::from_seed_as(role, &hex::encode(&Sha256::digest(public)[..8]), seed)
            }
        }
    }

    /// The key of a given 32-byte Ed25519 seed.
    ///
    /// # Errors
    /// [`KeyError::Note`].
    pub fn from_seed(name: &str, seed: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        Self::from_seed_as(KeyType::Ed25519, name, seed)
    }

    pub(crate) fn from_seed_as(role: KeyType, name: &str, seed: Zeroizing<[u8; 32]>) -> Result<Self, KeyError> {
        let public = match role {
            KeyType::Ed25519 => SigningKey::from_seed(name, &seed).map(|key| key.verifier_key().clone()),
            KeyType::CosignatureV1 => CosigningKey::from_seed(name, &seed).map(|key| key.verifier_key().clone()),
        };
        let public = public.map_err(|source| KeyError::Note { name: name.to_owned(), source })?;
        Ok(Self { seed, public })
    }

    fn signing(name: &str, seed: &[u8; 32]) -> Result<SigningKey, KeyError> {
        SigningKey::from_seed(name, seed).map_err(|source| KeyError::Note { name: name.to_owned(), source })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.public.name()
    }

    /// The public half under this name.
    pub fn verifier(&self) -> &VerifierKey {
        &self.public
    }

    /// The key that signs under another name: the same secret.
    ///
    /// # Errors
    /// [`KeyError::Note`] when it is no key name.
    pub fn signer(&self, name: &str) -> Result<SigningKey, KeyError> {
        Self::signing(name, &self.seed)
    }

    /// The secret, for other formats than signed notes.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// Writes the key file: mode 0600, create-only, flushed to disk; encrypted if there is a passphrase.
    ///
    /// # Errors
    /// [`KeyError::Exists`], [`KeyError::Io`], [`KeyError::Encryption`].
    pub fn save(&self, path: &Path, passphrase: Option<&str>) -> Result<(), KeyError> {
        let text = match passphrase {
            Some(passphrase) => self.encrypted(passphrase)?,
            None => self.line(),
        };
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|source| {
            match source.kind() {
                io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
                _ => io(source),
            }
        })?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).and_then(|()| sync_parent(path));
        written.map_err(|source| {
            // Half a key helps nobody and would block the next attempt. The first error is the one to tell.
            let _ = std::fs::remove_file(path);
            io(source)
        })
    }

    /// Reads a key file, asking for the passphrase if it is encrypted. A witness's key is refused.
    ///
    /// # Errors
    /// [`KeyError::Io`], [`KeyError::Permissions`], [`KeyError::Format`], [`KeyError::Note`], [`KeyError::Passphrase`],
    /// [`KeyError::WrongPassphrase`].
    pub fn load(path: &Path, passphrase: &Source) -> Result<Self, KeyError> {
        Self::load_as(KeyType::Ed25519, path, passphrase)
    }

    pub(crate) fn load_as(role: KeyType, path: &Path, passphrase: &Source) -> Result<Self, KeyError> {
        let io = |source| KeyError::Io { path: path.to_owned(), source };
        let format = |reason: &str| KeyError::Format { path: path.to_owned(), reason: reason.to_owned() };
        // A named pipe would block the open; a link to a file is fine.
        let opened = input::open_regular(path, true).map_err(io)?;
        let (file, metadata) = opened.ok_or_else(|| format("not a regular file"))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Permissions { path: path.to_owned(), mode });
        }
        // The whole size at once: growing the buffer would leave copies of the secret behind.
        let mut text = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE as usize + 1));
        file.take(MAX_KEY_FILE + 1).read_to_end(&mut text).map_err(io)?;
        if text.len() as u64 > MAX_KEY_FILE {
            return Err(format("longer than a key"));
        }
        let text = std::str::from_utf8(&text).map_err(|_| format("not text"))?;
        let read = match text.strip_prefix(ENCRYPTED) {
            None => Self::parse_line(text, role),
            Some(rest) => Encrypted::parse(rest, role)
                .and_then(|key| key.open(&passphrase.get(path).map_err(LineError::Passphrase)?)),
        };
        read.map_err(|error| match error {
            LineError::Name(error) => error,
            LineError::Format(reason) => format(reason),
            LineError::Passphrase(error) => error.into(),
            LineError::WrongPassphrase => KeyError::WrongPassphrase(path.to_owned()),
        })
    }

    pub(crate) fn parse_line(text: &str, role: KeyType) -> Result<Self, LineError> {
        let line = text.strip_suffix('\n').unwrap_or(text);
        let rest = line.strip_prefix(PREFIX);
        let rest = rest.ok_or(LineError::Format("it begins with neither PRIVATE+KEY+ nor agd-key"))?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(id), Some(secret)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(LineError::Format("it is not <name>+<key id>+<base64>"));
        };
        let secret = STANDARD.decode(secret);
        let secret = Zeroizing::new(secret.map_err(|_| LineError::Format("not base64"))?);
        let seed = match secret.split_first() {
            Some((first, seed)) if *first == role as u8 => seed,
            Some((first, _)) => return Err(other_role(*first, role)),
            None => return Err(LineError::Format("not an Ed25519 key")),
        };
        let key = Self::from_seed_as(role, name, seed_of(seed)?).map_err(LineError::Name)?;
        if format!("{:08x}", key.public.id()) != id {
            return Err(LineError::Format("the key id is not the one of this name and key"));
        }
        Ok(key)
    }

    pub(crate) fn line(&self) -> Zeroizing<String> {
        let mut secret = Zeroizing::new([self.public.key_type() as u8; 33]);
        secret[1..].copy_from_slice(self.seed.as_slice());
        let secret = Zeroizing::new(STANDARD.encode(secret.as_slice()));
        let (name, id) = (self.name(), self.public.id());
        Zeroizing::new(format!("{PREFIX}{name}+{id:08x}+{}\n", secret.as_str()))
    }

    fn encrypted(&self, passphrase: &str) -> Result<Zeroizing<String>, KeyError> {
        let failed = |error: &dyn std::fmt::Display| KeyError::Encryption(error.to_string());
        let mut document = Zeroizing::new([0; 48]);
        document[..16].copy_from_slice(&PKCS8_BEFORE_SEED);
        document[16..].copy_from_slice(self.seed.as_slice());
        let (log_n, r, p) = SCRYPT;
        let costs = scrypt::Params::new(log_n, r, p).map_err(|error| failed(&error))?;
        let (salt, iv) = (random::<16>()?, random::<16>()?);
        let parameters = pbes2::Parameters::generate_scrypt_aes256cbc(costs, salt.as_slice(), *iv);
        let pem = PrivateKeyInfoRef::try_from(document.as_slice())
            .and_then(|key| key.encrypt_with_params(parameters.map_err(pkcs8::Error::from)?, passphrase))
            .map_err(|error| failed(&error))?
            .to_pem(LABEL, LineEnding::LF)
            .map_err(|error| failed(&error))?;
        Ok(Zeroizing::new(format!("{ENCRYPTED}{}\n{}", self.public, pem.as_str())))
    }
}

/// A key file that has not been decrypted.
struct Encrypted {
    public: VerifierKey,
    document: SecretDocument,
}

impl Encrypted {
    fn parse(text: &str, role: KeyType) -> Result<Self, LineError> {
        let (public, pem) = text.split_once('\n').ok_or(LineError::Format("there is nothing behind the first line"))?;
        let public = VerifierKey::parse(public).map_err(|_| LineError::Format("its first line is no verifier key"))?;
        if public.key_type() != role {
            return Err(other_role(public.key_type() as u8, role));
        }
        match SecretDocument::from_pem(pem) {
            Ok((LABEL, document)) => Ok(Self { public, document }),
            _ => Err(LineError::Format("it is no encrypted private key in PEM")),
        }
    }

    fn open(&self, passphrase: &str) -> Result<SecretKey, LineError> {
        let key = EncryptedPrivateKeyInfoRef::try_from(self.document.as_bytes())
            .map_err(|_| LineError::Format("it is no encrypted private key"))?;
        let opened = key.decrypt(passphrase).map_err(|_| LineError::WrongPassphrase)?;
        let info = PrivateKeyInfoRef::try_from(opened.as_bytes()).map_err(|_| LineError::WrongPassphrase)?;
        // RFC 8410: the key is an octet string in the octet string.
        let seed = info.private_key.as_bytes().strip_prefix(&[0x04, 0x20]);
        let seed = seed.filter(|_| info.algorithm.oid == ED25519_OID);
        let seed = seed.ok_or(LineError::Format("not an Ed25519 key"))?;
        let role = self.public.key_type();
        let key = SecretKey::from_seed_as(role, self.public.name(), seed_of(seed)?).map_err(LineError::Name)?;
        if key.public != self.public {
            return Err(LineError::Format("its first line is another key's"));
        }
        Ok(key)
    }
}

/// What a key of another type is called.
fn other_role(found: u8, wanted: KeyType) -> LineError {
    LineError::Format(match (found, wanted) {
        (0x01, KeyType::CosignatureV1) => "it is a log's key, not a witness's",
        (0x04, KeyType::Ed25519) => "it is a witness's key, not a log's",
        _ => "not an Ed25519 key",
    })
}

fn seed_of(bytes: &[u8]) -> Result<Zeroizing<[u8; 32]>, LineError> {
    let mut seed = Zeroizing::new([0; 32]);
    if bytes.len() != seed.len() {
        return Err(LineError::Format("an Ed25519 key has 32 bytes"));
    }
    seed.copy_from_slice(bytes);
    Ok(seed)
}

#[derive(Debug)]
pub(crate) enum LineError {
    Name(KeyError),
    Format(&'static str),
    Passphrase(PassphraseError),
    WrongPassphrase,
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

    fn key() -> SecretKey {
        SecretKey::from_seed("agd-1/app", Zeroizing::new([7; 32])).unwrap()
    }

    fn passphrase(folder: &Path, text: &str) -> Source {
        let path = folder.join(format!("passphrase of {} bytes", text.len()));
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        Source::File(path)
    }

    fn save_text(path: &Path, text: &str) {
        let _ = std::fs::remove_file(path);
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn a_saved_key_is_private_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let (right, wrong) = (passphrase(dir.path(), "correct horse"), passphrase(dir.path(), "battery"));
        for (name, encrypted) in [("plain.key", None), ("encrypted.key", Some("correct horse"))] {
            let path = dir.path().join(name);
            let key = SecretKey::generate(Some("agd-1/app")).unwrap();
            key.save(&path, encrypted).unwrap();
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let again = SecretKey::load(&path, &right).unwrap();
            assert_eq!((again.seed(), again.verifier()), (key.seed(), key.verifier()));
            assert!(matches!(key.save(&path, encrypted), Err(KeyError::Exists(_))));
            if encrypted.is_some() {
                assert!(matches!(SecretKey::load(&path, &wrong), Err(KeyError::WrongPassphrase(_))));
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(!text.contains(&*STANDARD.encode(key.seed())) && !text.contains(&hex::encode(key.seed())));
            }
            for mode in [0o640, 0o604, 0o620, 0o601, 0o644] {
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
                let error = SecretKey::load(&path, &right).unwrap_err();
                assert!(matches!(error, KeyError::Permissions { mode: m, .. } if m == mode));
            }
        }
    }

    /// Made by: openssl pkcs8 -topk8 -in key.pem -scrypt -scrypt_p 5 -passout pass:rabbit
    const BY_OPENSSL: &str = include_str!("../tests/openssl.key");

    #[test]
    fn a_key_that_openssl_encrypted_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        let file = format!("{ENCRYPTED}{}\n{BY_OPENSSL}", key().verifier());
        save_text(&path, &file);
        let read = SecretKey::load(&path, &passphrase(dir.path(), "rabbit")).unwrap();
        assert_eq!(read.seed(), key().seed());
        // The name is bound to the key by its id, and the key to the secret.
        for wrong in [
            file.replace("agd-1/app", "agd-1/other"),
            format!("{ENCRYPTED}{}\n{BY_OPENSSL}", SecretKey::generate(Some("agd-1/app")).unwrap().verifier()),
            file.replace("ENCRYPTED", "ENCRYPTET"),
            file.replace(BY_OPENSSL, ""),
        ] {
            save_text(&path, &wrong);
            let error = SecretKey::load(&path, &passphrase(dir.path(), "rabbit")).unwrap_err();
            assert!(matches!(error, KeyError::Format { .. }), "{error}");
        }
    }

    #[test]
    fn a_key_without_a_name_is_named_by_its_id() {
        let key = SecretKey::generate(None).unwrap();
        let digest = Sha256::digest(key.verifier().public_key());
        assert_eq!(key.name(), hex::encode(&digest[..8]));
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
        save_text(&path, &line.replace("agd-1/app", "agd-1/other"));
        let error = SecretKey::load(&path, &Source::Terminal).unwrap_err().to_string();
        assert!(error.contains("key id") && !error.contains(&secret));
    }

    proptest! {
        #[test]
        fn arbitrary_text_is_no_key_and_no_panic(text in "\\PC*") {
            for role in [KeyType::Ed25519, KeyType::CosignatureV1] {
                prop_assert!(SecretKey::parse_line(&text, role).is_err());
                let prefixed = format!("{PREFIX}{text}");
                prop_assert!(SecretKey::parse_line(&prefixed, role).is_err());
                prop_assert!(Encrypted::parse(&text, role).is_err());
            }
        }
    }
}
