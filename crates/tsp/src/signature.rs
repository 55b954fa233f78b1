//! Hashes and signature algorithms that are accepted: SHA-256, SHA-384 and SHA-512; RSA of 2,048 bits or more, PKCS #1 v1.5
//! and PSS; ECDSA on P-256 and P-384.

use der::Tag;
use der::asn1::ObjectIdentifier;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use ring::digest;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

use crate::error::TspError;
use crate::oid;
use crate::tlv::Element;

/// Everything that a certificate or a token may be signed with.
pub static ALL: [&dyn SignatureVerificationAlgorithm; 15] = [
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256_ABSENT_PARAMS,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384_ABSENT_PARAMS,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512_ABSENT_PARAMS,
    webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    &EcdsaP256Sha512,
    &EcdsaP384Sha512,
];

/// ECDSA on P-256 with SHA-512, which ring does not have.
#[derive(Debug)]
struct EcdsaP256Sha512;

/// ECDSA on P-384 with SHA-512, which ring does not have.
#[derive(Debug)]
struct EcdsaP384Sha512;

impl SignatureVerificationAlgorithm for EcdsaP256Sha512 {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P256
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA512
    }

    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        use p256::ecdsa::{Signature, VerifyingKey};
        verify_sha512(VerifyingKey::from_sec1_bytes(key), Signature::from_der(signature), message)
    }
}

impl SignatureVerificationAlgorithm for EcdsaP384Sha512 {
    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P384
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA512
    }

    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        use p384::ecdsa::{Signature, VerifyingKey};
        verify_sha512(VerifyingKey::from_sec1_bytes(key), Signature::from_der(signature), message)
    }
}

fn verify_sha512<K: PrehashVerifier<S>, S, E>(
    key: Result<K, E>,
    signature: Result<S, E>,
    message: &[u8],
) -> Result<(), InvalidSignature> {
    let (Ok(key), Ok(signature)) = (key, signature) else { return Err(InvalidSignature) };
    let hash = digest::digest(&digest::SHA512, message);
    key.verify_prehash(hash.as_ref(), &signature).map_err(|_| InvalidSignature)
}

/// The hash that an object identifier names.
pub fn hash(what: &'static str, algorithm: ObjectIdentifier) -> Result<&'static digest::Algorithm, TspError> {
    let known = [(oid::SHA256, &digest::SHA256), (oid::SHA384, &digest::SHA384), (oid::SHA512, &digest::SHA512)];
    let found = known.into_iter().find(|(id, _)| *id == algorithm).map(|(_, hash)| hash);
    found.ok_or_else(|| TspError::Algorithm { what, oid: algorithm.to_string() })
}

/// The algorithms that a signer may mean: several where the AlgorithmIdentifier leaves the curve open. They use the hash
/// that the signer names for the content, or are none.
pub fn algorithms(
    signature_algorithm: &Element<'_>,
    digest_algorithm: ObjectIdentifier,
) -> Result<Vec<&'static dyn SignatureVerificationAlgorithm>, TspError> {
    let named = signature_algorithm.elements()?.take(Tag::ObjectIdentifier, "the signature's algorithm")?.oid()?;
    // CMS lets a signer say rsaEncryption, and takes the hash from digestAlgorithm.
    let (rsa, rsa_pss, ecdsa) = if digest_algorithm == oid::SHA256 {
        (alg_id::RSA_PKCS1_SHA256, alg_id::RSA_PSS_SHA256, alg_id::ECDSA_SHA256)
    } else if digest_algorithm == oid::SHA384 {
        (alg_id::RSA_PKCS1_SHA384, alg_id::RSA_PSS_SHA384, alg_id::ECDSA_SHA384)
    } else {
        (alg_id::RSA_PKCS1_SHA512, alg_id::RSA_PSS_SHA512, alg_id::ECDSA_SHA512)
    };
    let wanted: &[u8] = if named == oid::RSA_ENCRYPTION { rsa.as_ref() } else { signature_algorithm.value };
    let allowed = |id: AlgorithmIdentifier| {
        let id = id.as_ref();
        // Without the NULL that some leave out.
        let bare = rsa.as_ref().get(..rsa.as_ref().len().saturating_sub(2)).unwrap_or_default();
        id == wanted && (id == rsa.as_ref() || id == bare || id == rsa_pss.as_ref() || id == ecdsa.as_ref())
    };
    let found: Vec<_> = ALL.into_iter().filter(|algorithm| allowed(algorithm.signature_alg_id())).collect();
    if found.is_empty() {
        return Err(TspError::Algorithm { what: "the signature's algorithm", oid: named.to_string() });
    }
    Ok(found)
}
