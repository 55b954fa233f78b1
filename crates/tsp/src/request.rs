//! The request: a TimeStampReq over the SHA-256 of some bytes.

use der::asn1::{Null, ObjectIdentifier, OctetString};
use der::{Encode as _, Sequence};
use ring::digest;
use x509_cert::spki::AlgorithmIdentifier;

use crate::error::TspError;
use crate::oid;

/// A request for one timestamp, kept to check the reply against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub(crate) imprint: Vec<u8>,
    pub(crate) nonce: u64,
    pub(crate) policy: Option<ObjectIdentifier>,
}

#[derive(Sequence)]
struct MessageImprint {
    hash_algorithm: AlgorithmIdentifier<Null>,
    hashed_message: OctetString,
}

#[derive(Sequence)]
struct TimeStampReq {
    version: u8,
    message_imprint: MessageImprint,
    req_policy: Option<ObjectIdentifier>,
    nonce: u64,
    cert_req: bool,
}

impl Request {
    /// For a timestamp of `message`. The caller draws the nonce, which the reply must bring back; `policy` is the TSA's
    /// policy to ask for, as an object identifier with dots.
    ///
    /// # Errors
    /// [`TspError::NoPolicy`] when the policy is not an object identifier.
    pub fn new(message: &[u8], nonce: u64, policy: Option<&str>) -> Result<Self, TspError> {
        let oid = |text: &str| ObjectIdentifier::new(text).map_err(|_| TspError::NoPolicy(text.to_owned()));
        let policy = policy.map(oid).transpose()?;
        let imprint = digest::digest(&digest::SHA256, message).as_ref().to_vec();
        Ok(Self { imprint, nonce, policy })
    }

    /// The TimeStampReq in DER: version 1, SHA-256, the nonce, certReq TRUE.
    ///
    /// # Errors
    /// [`TspError::Malformed`]: nothing that [`Request::new`] makes is too long to be encoded.
    pub fn to_der(&self) -> Result<Vec<u8>, TspError> {
        let encode = || {
            TimeStampReq {
                version: 1,
                message_imprint: MessageImprint {
                    hash_algorithm: AlgorithmIdentifier { oid: oid::SHA256, parameters: Some(Null) },
                    hashed_message: OctetString::new(self.imprint.as_slice())?,
                },
                req_policy: self.policy,
                nonce: self.nonce,
                cert_req: true,
            }
            .to_der()
        };
        encode().map_err(|error: der::Error| TspError::Malformed { offset: 0, what: error.kind().to_string() })
    }
}
