//! The CAs that the caller trusts to say who is a TSA.
//!
//! Owns the reading of a PEM file. Promises that only CA certificates are pinned: a TSA's own certificate lasts a year or
//! two, and a file of timestamps must outlast it.

use der::Decode as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_cert::Certificate;
use x509_cert::ext::pkix::BasicConstraints;

use crate::error::TspError;
use crate::signer::may_certify;

/// The longest PEM file that is read, in bytes.
pub const MAX_PEM_LEN: usize = 1_000_000;

/// The most CAs of one file.
const MAX_AUTHORITIES: usize = 100;

/// Pinned CAs.
#[derive(Debug, Clone)]
pub struct Authorities {
    pinned: Vec<Pinned>,
}

#[derive(Debug, Clone)]
struct Pinned {
    anchor: TrustAnchor<'static>,
    /// Seconds since the Unix epoch, both included.
    valid: (u64, u64),
}

impl Authorities {
    /// Reads the CERTIFICATE blocks of a PEM file; text and other blocks between them are passed over.
    ///
    /// # Errors
    /// [`TspError::Authorities`] for a file without certificates, with one that cannot be read or with one that is no CA's.
    pub fn from_pem(pem: &[u8]) -> Result<Self, TspError> {
        let wrong = |text: String| Err(TspError::Authorities(text));
        if pem.len() > MAX_PEM_LEN {
            return wrong(format!("longer than {MAX_PEM_LEN} bytes"));
        }
        let mut pinned = Vec::new();
        for (certificate, number) in CertificateDer::pem_slice_iter(pem).zip(1..) {
            match certificate.map_err(|error| format!("{error:?}")).and_then(|der| pin(&der)) {
                Ok(authority) => pinned.push(authority),
                Err(reason) => return wrong(format!("certificate {number}: {reason}")),
            }
            if pinned.len() > MAX_AUTHORITIES {
                return wrong(format!("more than {MAX_AUTHORITIES} certificates"));
            }
        }
        if pinned.is_empty() {
            return wrong("no PEM certificate in it".to_owned());
        }
        Ok(Self { pinned })
    }

    /// Those that are valid at a time, in seconds since the Unix epoch.
    pub(crate) fn at(&self, seconds: u64) -> Vec<TrustAnchor<'_>> {
        let valid = self.pinned.iter().filter(|ca| (ca.valid.0..=ca.valid.1).contains(&seconds));
        valid.map(|ca| ca.anchor.clone()).collect()
    }
}

fn pin(der: &CertificateDer<'_>) -> Result<Pinned, String> {
    let anchor = webpki::anchor_from_trusted_cert(der).map_err(|error| error.to_string())?.to_owned();
    let certificate = Certificate::from_der(der).map_err(|error| error.to_string())?;
    let body = certificate.tbs_certificate();
    match body.get_extension::<BasicConstraints>() {
        Ok(Some((_, constraints))) if constraints.ca && may_certify(&certificate) => {}
        Ok(_) => {
            return Err(
                "it is not a CA's (basicConstraints CA:TRUE, keyUsage keyCertSign); pin the CA, not the TSA".to_owned()
            );
        }
        Err(error) => return Err(error.to_string()),
    }
    let seconds = |time: &x509_cert::time::Time| time.to_unix_duration().as_secs();
    Ok(Pinned { anchor, valid: (seconds(&body.validity().not_before), seconds(&body.validity().not_after)) })
}
