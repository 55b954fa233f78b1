//! Public keys of signers.
//!
//! Owns which 32 bytes are a signer's Ed25519 key and what its signatures prove. Promises that a key has one spelling, is
//! not of small order (such a key takes one signature for many messages), and that verification is the strict one of
//! RFC 8032 with canonical points: a signature that one implementation accepts, every strict one accepts. Never holds a
//! private key.

use std::fmt;

use ed25519_dalek::{Signature, VerifyingKey};
use thiserror::Error;

/// Why bytes are no signer's key, or no signature of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SignerError {
    /// A key has 32 bytes.
    #[error("an Ed25519 public key has 32 bytes")]
    KeyLength,
    /// Not a point of the curve, or not its canonical encoding.
    #[error("these 32 bytes are no Ed25519 public key")]
    Key,
    /// A point of small order.
    #[error("this Ed25519 public key is of small order: its signatures prove nothing")]
    WeakKey,
    /// A signature has 64 bytes.
    #[error("an Ed25519 signature has 64 bytes")]
    SignatureLength,
    /// Not a signature of these bytes by this key.
    #[error("the signature is not this key's over these bytes")]
    Signature,
}

/// An Ed25519 public key that may sign for fleets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// Reads the 32 bytes of RFC 8032.
    ///
    /// # Errors
    /// [`SignerError::KeyLength`], [`SignerError::Key`], [`SignerError::WeakKey`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignerError> {
        let bytes: &[u8; 32] = bytes.try_into().map_err(|_| SignerError::KeyLength)?;
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| SignerError::Key)?;
        if key.is_weak() {
            return Err(SignerError::WeakKey);
        }
        if key.to_edwards().compress().as_bytes() != bytes {
            return Err(SignerError::Key);
        }
        Ok(Self(key))
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Is this the key's signature over these bytes?
    ///
    /// # Errors
    /// [`SignerError::SignatureLength`], [`SignerError::Signature`].
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignerError> {
        let signature: &[u8; 64] = signature.try_into().map_err(|_| SignerError::SignatureLength)?;
        self.0.verify_strict(message, &Signature::from_bytes(signature)).map_err(|_| SignerError::Signature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", super::vector::hex(self.as_bytes()))
    }
}
