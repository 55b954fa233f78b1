//! Signed notes: C2SP signed-note v1.0.0 with Ed25519 (type 0x01), and witnesses' timestamped cosignatures (C2SP
//! tlog-cosignature, cosignature/v1, Ed25519, type 0x04).
//!
//! Owns keys, signature lines and the note around them. Promises that what parses prints the same bytes again, that
//! Ed25519 is checked strictly (canonical encodings only, no key of small order), and that a secret key is wiped when it
//! is dropped and never printed. It never reads a clock: a cosignature's time is reported, not judged.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, VerifyingKey};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The longest note that is read, in bytes.
pub const MAX_NOTE_LEN: usize = 1_000_000;

/// The most signature lines that are read; the specification asks for at least 16.
pub const MAX_SIGNATURES: usize = 100;

/// Why a note or a key was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NoteError {
    /// A name that is empty, or holds a space, a plus or a control character.
    #[error("not a key name: {0:?}")]
    KeyName(String),
    /// A verifier key that is not `name+hex key id+base64 key`.
    #[error("malformed verifier key")]
    KeyFormat,
    /// A signature type other than Ed25519 and Ed25519 cosignatures.
    #[error("signature type {0:#04x} is not supported")]
    KeyType(u8),
    /// A verifier key whose id is not the one its name and key give.
    #[error("the verifier key of {0} carries a wrong key id")]
    KeyId(String),
    /// Bytes that are not an Ed25519 public key, or one of small order, which anybody can sign for.
    #[error("not an Ed25519 public key")]
    PublicKey,
    /// Two different trusted keys share a name and a key id.
    #[error("two trusted keys share the name and id {name}+{id:08x}")]
    AmbiguousKey {
        /// The name of both.
        name: String,
        /// The id of both.
        id: u32,
    },
    /// A note above [`MAX_NOTE_LEN`] bytes.
    #[error("the note is longer than {MAX_NOTE_LEN} bytes")]
    TooLong,
    /// A note that is not UTF-8, or holds a control character other than newline.
    #[error("the note is not plain UTF-8 text")]
    Text,
    /// A text that does not end with a newline, or a note without a blank line and signatures.
    #[error("the note has no signatures after a blank line")]
    Layout,
    /// A signature line that is not `— name base64`.
    #[error("malformed signature line {line}")]
    SignatureLine {
        /// Which line of the signature block, from 1.
        line: usize,
    },
    /// More than [`MAX_SIGNATURES`] signature lines.
    #[error("the note has more than {MAX_SIGNATURES} signatures")]
    TooManySignatures,
    /// A trusted key's signature does not hold: the note as a whole is refused.
    #[error("the signature of {name}+{id:08x} is false")]
    FalseSignature {
        /// The key's name.
        name: String,
        /// The key's id.
        id: u32,
    },
    /// A cosignature's time that is zero or above 2^63 − 1.
    #[error("{0} is not a time of a cosignature")]
    Time(u64),
    /// No trusted key has signed.
    #[error("no trusted key has signed the note")]
    NoTrustedSignature,
}

/// What a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum KeyType {
    /// The note's text: a log's own signature.
    Ed25519 = 0x01,
    /// `cosignature/v1`, a time and the note's text: a witness's cosignature.
    CosignatureV1 = 0x04,
}

/// A public key that a client trusts, under a name.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    id: u32,
    key_type: KeyType,
    key: VerifyingKey,
}

impl VerifierKey {
    /// A log's key (type 0x01) from its 32 bytes.
    ///
    /// # Errors
    /// [`NoteError::KeyName`], [`NoteError::PublicKey`].
    pub fn new(name: &str, public_key: &[u8; 32]) -> Result<Self, NoteError> {
        Self::with_type(name, KeyType::Ed25519, public_key)
    }

    /// A key of either type from its 32 bytes.
    ///
    /// # Errors
    /// [`NoteError::KeyName`], [`NoteError::PublicKey`].
    pub fn with_type(name: &str, key_type: KeyType, public_key: &[u8; 32]) -> Result<Self, NoteError> {
        check_name(name)?;
        let key = VerifyingKey::from_bytes(public_key).map_err(|_| NoteError::PublicKey)?;
        if key.is_weak() {
            return Err(NoteError::PublicKey);
        }
        Ok(Self { name: name.to_owned(), id: key_id(name, key_type, public_key), key_type, key })
    }

    /// Reads a vkey: `name+hex8(key id)+base64(type ‖ public key)`, in the one spelling that prints again.
    ///
    /// # Errors
    /// [`NoteError::KeyFormat`], [`NoteError::KeyName`], [`NoteError::KeyType`], [`NoteError::KeyId`],
    /// [`NoteError::PublicKey`].
    pub fn parse(vkey: &str) -> Result<Self, NoteError> {
        let mut parts = vkey.splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::KeyFormat);
        };
        let key = STANDARD.decode(key).map_err(|_| NoteError::KeyFormat)?;
        let (key_type, key) = match key.split_first() {
            Some((0x01, key)) => (KeyType::Ed25519, key),
            Some((0x04, key)) => (KeyType::CosignatureV1, key),
            Some((other, _)) => return Err(NoteError::KeyType(*other)),
            None => return Err(NoteError::KeyFormat),
        };
        let key = key.try_into().map_err(|_| NoteError::PublicKey)?;
        let key = Self::with_type(name, key_type, key)?;
        if format!("{:08x}", key.id) != id {
            return Err(NoteError::KeyId(key.name));
        }
        Ok(key)
    }

    /// The key's name; for a log, its origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first four bytes of SHA-256(name ‖ 0x0A ‖ type ‖ public key), big-endian.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// What it signs.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// The 32 bytes of the public key.
    pub fn public_key(&self) -> &[u8; 32] {
        self.key.as_bytes()
    }

    /// Whether `signature` (as it stands after the key id) is this key's over `text`.
    fn holds(&self, text: &str, signature: &[u8]) -> bool {
        match self.key_type {
            KeyType::Ed25519 => self.holds_over(text.as_bytes(), signature),
            KeyType::CosignatureV1 => {
                let Some((time, signature)) = signature.split_first_chunk::<8>() else {
                    return false;
                };
                let time = u64::from_be_bytes(*time);
                time <= MAX_COSIGNATURE_TIME && self.holds_over(cosigned(time, text).as_bytes(), signature)
            }
        }
    }

    fn holds_over(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

/// The vkey.
impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut key = vec![self.key_type as u8];
        key.extend_from_slice(self.key.as_bytes());
        write!(f, "{}+{:08x}+{}", self.name, self.id, STANDARD.encode(key))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifierKey({self})")
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(vkey: &str) -> Result<Self, Self::Err> {
        Self::parse(vkey)
    }
}

/// The latest time of a cosignature: the specification bounds it at 2^63 − 1.
const MAX_COSIGNATURE_TIME: u64 = i64::MAX as u64;

/// What a witness signs (tlog-cosignature, cosignature/v1).
fn cosigned(time: u64, text: &str) -> String {
    format!("cosignature/v1\ntime {time}\n{text}")
}

fn key_id(name: &str, key_type: KeyType, public_key: &[u8; 32]) -> u32 {
    let digest: [u8; 32] = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', key_type as u8])
        .chain_update(public_key)
        .finalize()
        .into();
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Key names are non-empty and hold no Unicode space and no plus (signed-note); control characters could not stand in a
/// note either.
fn check_name(name: &str) -> Result<(), NoteError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    if name.is_empty() || name.contains(bad) { Err(NoteError::KeyName(name.to_owned())) } else { Ok(()) }
}

/// A log's secret key. Its memory is wiped on drop; `Debug` shows the public half only.
pub struct SigningKey {
    verifier: VerifierKey,
    secret: ed25519_dalek::SigningKey,
}

// Only with its `zeroize` feature does ed25519-dalek wipe a key on drop, and only then is there anything to drop.
const _: () = assert!(std::mem::needs_drop::<ed25519_dalek::SigningKey>());

impl SigningKey {
    /// The key that this 32-byte Ed25519 seed (RFC 8032) gives, under `name`. The caller wipes its own copy of the seed.
    ///
    /// # Errors
    /// [`NoteError::KeyName`].
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let secret = ed25519_dalek::SigningKey::from_bytes(seed);
        Ok(Self { verifier: VerifierKey::new(name, secret.verifying_key().as_bytes())?, secret })
    }

    /// The public half.
    pub fn verifier_key(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Signs bytes that are no note: Ed25519 over exactly these, 64 bytes. The caller sees to it that they cannot be taken for
    /// something else that this key signs.
    pub fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        self.secret.sign(message).to_bytes()
    }

    /// Signs a note's text. The result prints as the signature line.
    ///
    /// # Errors
    /// [`NoteError::Text`] and [`NoteError::Layout`] when the text could not stand in a note.
    pub fn sign(&self, text: &str) -> Result<NoteSignature, NoteError> {
        check_text(text)?;
        Ok(NoteSignature {
            name: self.verifier.name.clone(),
            id: self.verifier.id,
            signature: self.secret.sign(text.as_bytes()).to_bytes().to_vec(),
        })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({}, secret not shown)", self.verifier)
    }
}

/// A witness's secret key (type 0x04). Its memory is wiped on drop; `Debug` shows the public half only.
pub struct CosigningKey {
    verifier: VerifierKey,
    secret: ed25519_dalek::SigningKey,
}

impl CosigningKey {
    /// The key that this 32-byte Ed25519 seed (RFC 8032) gives, under `name`. The caller wipes its own copy of the seed.
    ///
    /// # Errors
    /// [`NoteError::KeyName`].
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let secret = ed25519_dalek::SigningKey::from_bytes(seed);
        let public = *secret.verifying_key().as_bytes();
        Ok(Self { verifier: VerifierKey::with_type(name, KeyType::CosignatureV1, &public)?, secret })
    }

    /// The public half.
    pub fn verifier_key(&self) -> &VerifierKey {
        &self.verifier
    }

    /// Cosigns a checkpoint's body at a POSIX time in seconds: states that no larger tree of this log was observed until
    /// then. Whoever calls it must know that. The result prints as the signature line.
    ///
    /// # Errors
    /// [`NoteError::Text`] and [`NoteError::Layout`] when the text could not stand in a note, [`NoteError::Time`].
    pub fn cosign(&self, text: &str, time: u64) -> Result<NoteSignature, NoteError> {
        check_text(text)?;
        if time == 0 || time > MAX_COSIGNATURE_TIME {
            return Err(NoteError::Time(time));
        }
        let signature = self.secret.sign(cosigned(time, text).as_bytes()).to_bytes();
        let signature = [&time.to_be_bytes()[..], &signature].concat();
        Ok(NoteSignature { name: self.verifier.name.clone(), id: self.verifier.id, signature })
    }
}

impl fmt::Debug for CosigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CosigningKey({}, secret not shown)", self.verifier)
    }
}

/// One signature line of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    name: String,
    id: u32,
    signature: Vec<u8>,
}

impl NoteSignature {
    /// Reads one signature line, without its newline.
    ///
    /// # Errors
    /// [`NoteError::SignatureLine`] (line 1) for anything that does not print the same again.
    pub fn parse(line: &str) -> Result<Self, NoteError> {
        Self::parse_line(line).ok_or(NoteError::SignatureLine { line: 1 })
    }

    fn parse_line(line: &str) -> Option<Self> {
        let (name, base64) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        check_name(name).ok()?;
        let bytes = STANDARD.decode(base64).ok()?;
        let (id, signature) = bytes.split_first_chunk::<4>()?;
        if signature.is_empty() {
            return None;
        }
        Some(Self { name: name.to_owned(), id: u32::from_be_bytes(*id), signature: signature.to_vec() })
    }

    /// The signing key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The signing key's id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The signature as its type defines it, without the key id.
    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The POSIX time in seconds at the head of a cosignature/v1. It means something only once
    /// [`SignedNote::verify`] has returned the [`KeyType::CosignatureV1`] key with this name and id.
    pub fn cosignature_time(&self) -> Option<u64> {
        let (time, _) = self.signature.split_first_chunk::<8>()?;
        (self.signature.len() == 8 + ed25519_dalek::SIGNATURE_LENGTH).then(|| u64::from_be_bytes(*time))
    }

    fn is_by(&self, key: &VerifierKey) -> bool {
        self.id == key.id && self.name == key.name
    }
}

/// The signature line, without its newline.
impl fmt::Display for NoteSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = self.id.to_be_bytes().to_vec();
        bytes.extend_from_slice(&self.signature);
        write!(f, "\u{2014} {} {}", self.name, STANDARD.encode(bytes))
    }
}

/// A text with the signatures under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    text: String,
    signatures: Vec<NoteSignature>,
}

impl SignedNote {
    /// Puts signatures under a text, without checking them.
    ///
    /// # Errors
    /// [`NoteError::Text`] and [`NoteError::Layout`] for a text that cannot stand in a note or no signatures at all,
    /// [`NoteError::TooManySignatures`], [`NoteError::TooLong`].
    pub fn new(text: &str, signatures: Vec<NoteSignature>) -> Result<Self, NoteError> {
        check_text(text)?;
        if signatures.is_empty() {
            return Err(NoteError::Layout);
        }
        if signatures.len() > MAX_SIGNATURES {
            return Err(NoteError::TooManySignatures);
        }
        let note = Self { text: text.to_owned(), signatures };
        if note.to_string().len() > MAX_NOTE_LEN {
            return Err(NoteError::TooLong);
        }
        Ok(note)
    }

    /// Signs a text with one key.
    ///
    /// # Errors
    /// As [`SignedNote::new`].
    pub fn sign(text: &str, key: &SigningKey) -> Result<Self, NoteError> {
        Self::new(text, vec![key.sign(text)?])
    }

    /// Reads a note, as strictly as the specification allows: what parses prints the same bytes again.
    ///
    /// # Errors
    /// [`NoteError::TooLong`], [`NoteError::Text`], [`NoteError::Layout`], [`NoteError::SignatureLine`],
    /// [`NoteError::TooManySignatures`].
    pub fn parse(note: impl AsRef<[u8]>) -> Result<Self, NoteError> {
        let note = note.as_ref();
        if note.len() > MAX_NOTE_LEN {
            return Err(NoteError::TooLong);
        }
        let note = std::str::from_utf8(note).map_err(|_| NoteError::Text)?;
        check_characters(note)?;
        // The last blank line parts the text, which may hold blank lines, from the signatures.
        let blank = note.rfind("\n\n").ok_or(NoteError::Layout)?;
        let (text, block) = (&note[..=blank], &note[blank + 2..]);
        let block = block.strip_suffix('\n').ok_or(NoteError::Layout)?;
        let mut signatures = Vec::new();
        for (line, number) in block.split('\n').zip(1..) {
            if number > MAX_SIGNATURES {
                return Err(NoteError::TooManySignatures);
            }
            let signature = NoteSignature::parse_line(line);
            signatures.push(signature.ok_or(NoteError::SignatureLine { line: number })?);
        }
        Ok(Self { text: text.to_owned(), signatures })
    }

    /// The signed text, with its final newline: for a checkpoint, the body.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signature lines, in order.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Checks the note against the keys that the caller trusts, and returns those that have signed it, each once, in the
    /// order of `keys`.
    ///
    /// Lines of unknown keys are ignored. Every line of a known key must hold.
    ///
    /// # Errors
    /// [`NoteError::FalseSignature`], [`NoteError::NoTrustedSignature`], [`NoteError::AmbiguousKey`].
    pub fn verify<'k>(&self, keys: &'k [VerifierKey]) -> Result<Vec<&'k VerifierKey>, NoteError> {
        let mut verified = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            // A key that is listed twice counts once: a quorum is of keys.
            if keys[..i].contains(key) {
                continue;
            }
            if keys[..i].iter().any(|other| other.id == key.id && other.name == key.name) {
                return Err(NoteError::AmbiguousKey { name: key.name.clone(), id: key.id });
            }
            let mut signed = false;
            for line in self.signatures.iter().filter(|line| line.is_by(key)) {
                if !key.holds(&self.text, &line.signature) {
                    return Err(NoteError::FalseSignature { name: key.name.clone(), id: key.id });
                }
                signed = true;
            }
            if signed {
                verified.push(key);
            }
        }
        if verified.is_empty() {
            return Err(NoteError::NoTrustedSignature);
        }
        Ok(verified)
    }
}

/// The note: text, blank line, signature lines.
impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|signature| writeln!(f, "{signature}"))
    }
}

impl FromStr for SignedNote {
    type Err = NoteError;

    fn from_str(note: &str) -> Result<Self, Self::Err> {
        Self::parse(note)
    }
}

fn check_text(text: &str) -> Result<(), NoteError> {
    check_characters(text)?;
    if text.ends_with('\n') { Ok(()) } else { Err(NoteError::Layout) }
}

fn check_characters(text: &str) -> Result<(), NoteError> {
    if text.bytes().any(|byte| byte < 0x20 && byte != b'\n') { Err(NoteError::Text) } else { Ok(()) }
}
