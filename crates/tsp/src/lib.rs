//! RFC 3161 timestamps: the request for one, and everything that must hold of a reply before it is called a proof.
//!
//! Owns the bytes of a TimeStampReq, and the whole check of a TimeStampResp: status, what was stamped, the CMS signature
//! over the original bytes, the signer's certificate and its chain to a CA that the caller pinned, at the time that the
//! token says. Promises that no input makes it panic, recurse or allocate without bound, and that a reply which is refused
//! comes with the reason, and the byte where its encoding breaks. It never opens a file or a connection, never reads a
//! clock and never draws randomness; revocation, which needs all of these, is not asked about.
//!
//! `der` reads the encoding, `x509-cert` the certificates, `rustls-webpki` builds and checks the chain, `ring` (and for
//! ECDSA with SHA-512, which `ring` has not, `p256` and `p384`) checks signatures. The few structures of RFC 3161 and CMS
//! are read here: a signature is over the bytes that were sent, so these must never be encoded anew.
#![forbid(unsafe_code)]

mod authority;
mod cms;
mod error;
mod oid;
mod request;
mod signature;
mod signer;
mod time;
mod tlv;
mod token;
mod verify;

pub use authority::{Authorities, MAX_PEM_LEN};
pub use error::TspError;
pub use request::Request;
pub use verify::{Timestamp, verify};

/// The longest reply that is read, in bytes. A token with a chain of RSA certificates has about 7,000.
pub const MAX_REPLY_LEN: usize = 65_536;
