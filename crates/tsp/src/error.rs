//! Why a reply, a CA file or a request was refused.

use thiserror::Error;

/// Why something is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TspError {
    /// The encoding breaks.
    #[error("{what}")]
    Malformed {
        /// The byte at which it does, from 0.
        offset: usize,
        /// What was expected there, or what is wrong with it.
        what: String,
    },
    /// More bytes than a reply can have.
    #[error("{len} bytes are no timestamp reply: at most {} are read", crate::MAX_REPLY_LEN)]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// The TSA did not grant a timestamp.
    #[error("the TSA granted no timestamp: status {status}{}{text}", if text.is_empty() { "" } else { ": " })]
    Refused {
        /// The PKIStatus.
        status: u64,
        /// What the TSA says, and its failure code.
        text: String,
    },
    /// It answers another request.
    #[error("the nonce is not the one of the request")]
    Nonce,
    /// Something else was stamped.
    #[error("it is a timestamp of other bytes")]
    Imprint,
    /// It was made under another policy than the one that was asked for.
    #[error("it was made under policy {found}, not {wanted}")]
    Policy {
        /// The policy of the token.
        found: String,
        /// The policy of the request.
        wanted: String,
    },
    /// A policy to ask for that is no object identifier.
    #[error("{0:?} is not a policy: an object identifier such as 1.2.3.4")]
    NoPolicy(String),
    /// A hash or signature algorithm that is not accepted.
    #[error("{what}: {oid} is not accepted")]
    Algorithm {
        /// Where.
        what: &'static str,
        /// The algorithm's object identifier.
        oid: String,
    },
    /// A signed or certified statement does not hold.
    #[error("{0}")]
    False(&'static str),
    /// The signer's certificate may not sign timestamps.
    #[error("the signer's certificate {0}")]
    Signer(&'static str),
    /// No chain of certificates leads from the signer to a pinned CA.
    #[error("no valid chain to a pinned CA at {at}: {reason}")]
    Chain {
        /// The token's time, in RFC 3339.
        at: String,
        /// What the chain check said.
        reason: String,
    },
    /// A file of CA certificates that cannot be used.
    #[error("{0}")]
    Authorities(String),
}

impl TspError {
    /// The byte at which the encoding breaks, when that is what is wrong.
    pub fn offset(&self) -> Option<usize> {
        match self {
            Self::Malformed { offset, .. } => Some(*offset),
            _ => None,
        }
    }
}
