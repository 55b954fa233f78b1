//! The signer's certificate: which one it is, that the token is bound to it, and that it may sign timestamps.
//!
//! Owns RFC 3161 §2.3 (the one critical purpose timeStamping) and RFC 5816 (ESSCertID and ESSCertIDv2). Promises that the
//! certificate which the signature is checked with is the one that the signed attributes name.

use der::{Decode as _, Tag};
use ring::digest;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;
use x509_cert::Certificate;
use x509_cert::ext::pkix::{ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier};

use crate::authority::Authorities;
use crate::cms::{SignedData, SignerId, SignerInfo};
use crate::error::TspError;
use crate::tlv::{Element, Elements};
use crate::token::{algorithm, integer};
use crate::{oid, signature, time};

/// The certificate that the signer identifier means.
pub fn find<'a>(data: &SignedData<'a>) -> Result<Element<'a>, TspError> {
    for element in &data.certificates {
        let der = CertificateDer::from(element.bytes);
        let Ok(certificate) = EndEntityCert::try_from(&der) else { continue };
        let is_it = match data.signer.id {
            SignerId::IssuerAndSerial(issuer, serial) => {
                certificate.issuer() == issuer && certificate.serial() == serial
            }
            SignerId::KeyId(id) => key_id(element.bytes).as_deref() == Some(id),
        };
        if is_it {
            return Ok(*element);
        }
    }
    Err(TspError::False("the signer's certificate is not in the token, or cannot be read"))
}

fn key_id(certificate: &[u8]) -> Option<Vec<u8>> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let (_, id) = certificate.tbs_certificate().get_extension::<SubjectKeyIdentifier>().ok()??;
    Some(id.0.as_bytes().to_vec())
}

/// The signed attributes name this certificate: by its hash, and by issuer and serial number where these are given.
pub fn is_bound(signer: &SignerInfo<'_>, certificate: &Element<'_>) -> Result<(), TspError> {
    let bindings =
        [(signer.attribute(oid::SIGNING_CERTIFICATE), false), (signer.attribute(oid::SIGNING_CERTIFICATE_V2), true)];
    let mut bound = false;
    for (attribute, v2) in bindings {
        let Some(attribute) = attribute else { continue };
        if attribute.tag != Tag::Sequence {
            return Err(attribute.wrong("signingCertificate is not a SEQUENCE"));
        }
        let mut ids =
            attribute.elements()?.take(Tag::Sequence, "the certificates of signingCertificate")?.elements()?;
        // The first is the signer's; what follows may name its chain.
        let mut id = ids.take(Tag::Sequence, "ESSCertID")?.elements()?;
        let hash = match id.take_if(Tag::Sequence, "the hash algorithm of ESSCertIDv2")? {
            Some(named) if v2 => signature::hash("the hash of ESSCertIDv2", algorithm(&named)?)?,
            Some(named) => return Err(named.wrong("ESSCertID has no hash algorithm")),
            None if v2 => &digest::SHA256,
            None => &digest::SHA1_FOR_LEGACY_USE_ONLY,
        };
        let said = id.take(Tag::OctetString, "certHash")?.value;
        if digest::digest(hash, certificate.bytes).as_ref() != said {
            return Err(TspError::False("the signed attributes name another certificate than the signer's"));
        }
        if let Some(names) = id.take_if(Tag::Sequence, "issuerSerial")? {
            is_named(names.elements()?, certificate)?;
        }
        id.end("ESSCertID")?;
        bound = true;
    }
    if bound { Ok(()) } else { Err(TspError::False("the signed attributes do not name the signer's certificate")) }
}

fn is_named(mut names: Elements<'_>, certificate: &Element<'_>) -> Result<(), TspError> {
    let mut issuer = names.take(Tag::Sequence, "the issuer of issuerSerial")?.elements()?;
    // GeneralNames with one directoryName in it.
    let directory_name = issuer.explicit(4, Tag::Sequence, "the issuer of issuerSerial")?.value;
    issuer.end("the issuer of issuerSerial")?;
    let serial = integer(&mut names, "the serial number of issuerSerial")?;
    names.end("issuerSerial")?;
    let der = CertificateDer::from(certificate.bytes);
    let parsed = EndEntityCert::try_from(&der).map_err(|_| TspError::Signer("cannot be read"))?;
    if parsed.issuer() == directory_name && parsed.serial() == serial {
        return Ok(());
    }
    Err(TspError::False("the signed attributes name another issuer or serial number than the signer's"))
}

/// The certificate may sign timestamps and nothing else. Returns its subject, as RFC 4514 writes names.
pub fn may_stamp(certificate: &Element<'_>) -> Result<String, TspError> {
    let parsed = Certificate::from_der(certificate.bytes).map_err(|error| {
        let inner = error.position().and_then(|at| usize::try_from(at).ok()).unwrap_or_default();
        let what = format!("the signer's certificate: {}", error.kind());
        TspError::Malformed { offset: certificate.offset + inner, what }
    })?;
    let body = parsed.tbs_certificate();
    let purposes = body.get_extension::<ExtendedKeyUsage>();
    match purposes.map_err(|_| TspError::Signer("has an extended key usage that cannot be read"))? {
        None => return Err(TspError::Signer("has no extended key usage: it is no TSA's")),
        Some((_, ExtendedKeyUsage(purposes))) if !purposes.contains(&oid::TIME_STAMPING) => {
            return Err(TspError::Signer("is not for timestamps (extended key usage timeStamping)"));
        }
        Some((_, ExtendedKeyUsage(purposes))) if purposes.len() != 1 => {
            return Err(TspError::Signer("is for more than timestamps: timeStamping must be its only purpose"));
        }
        Some((false, _)) => return Err(TspError::Signer("has an extended key usage that is not critical")),
        Some((true, _)) => {}
    }
    let usage = body.get_extension::<KeyUsage>();
    if let Some((_, KeyUsage(usage))) = usage.map_err(|_| TspError::Signer("has a key usage that cannot be read"))? {
        let signs = KeyUsages::DigitalSignature | KeyUsages::NonRepudiation;
        if (usage & signs).is_empty() || !(usage & !signs).is_empty() {
            return Err(TspError::Signer("has a key usage other than signing"));
        }
    }
    Ok(body.subject().to_string())
}

/// A CA whose key usage is limited may sign certificates.
pub fn may_certify(certificate: &Certificate) -> bool {
    match certificate.tbs_certificate().get_extension::<KeyUsage>() {
        Ok(usage) => usage.is_none_or(|(_, usage)| usage.key_cert_sign()),
        Err(_) => false,
    }
}

/// The certificate's key made the signature.
pub fn has_signed(signer: &SignerInfo<'_>, certificate: &Element<'_>) -> Result<(), TspError> {
    let der = CertificateDer::from(certificate.bytes);
    let parsed = EndEntityCert::try_from(&der).map_err(|_| TspError::Signer("cannot be read"))?;
    let algorithms = signature::algorithms(&signer.signature_algorithm, signer.digest_algorithm)?;
    let holds = |algorithm| parsed.verify_signature(algorithm, &signer.signed_bytes, signer.signature).is_ok();
    if algorithms.into_iter().any(holds) { Ok(()) } else { Err(TspError::False("the TSA's signature does not hold")) }
}

/// A chain of certificates leads to a pinned CA, all of them valid at a time, in seconds since the Unix epoch.
pub fn is_trusted(
    data: &SignedData<'_>,
    certificate: &Element<'_>,
    authorities: &Authorities,
    seconds: u64,
) -> Result<(), TspError> {
    // id-kp-timeStamping: a CA of the chain that is limited to purposes must allow it; the signer's own limit is checked
    // in `may_stamp`.
    const PURPOSE: &[u8] = &[0x2B, 6, 1, 5, 5, 7, 3, 8];
    let wrong = |reason: String| TspError::Chain { at: time::rfc3339(seconds), reason };
    let der = CertificateDer::from(certificate.bytes);
    let parsed = EndEntityCert::try_from(&der).map_err(|error| wrong(error.to_string()))?;
    let anchors = authorities.at(seconds);
    if anchors.is_empty() {
        return Err(wrong("every pinned CA had expired, or was not valid yet".to_owned()));
    }
    let others: Vec<CertificateDer<'_>> = data
        .certificates
        .iter()
        .filter(|other| other.offset != certificate.offset)
        .map(|other| CertificateDer::from(other.bytes))
        .collect();
    let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let usage = webpki::KeyUsage::required_if_present(PURPOSE);
    // RFC 5280 §4.2.1.3, which webpki leaves to its callers.
    let certifies = |path: &webpki::VerifiedPath<'_>| {
        let mut between = path.intermediate_certificates();
        let all = between.all(|ca| Certificate::from_der(&ca.der()).is_ok_and(|ca| may_certify(&ca)));
        if all { Ok(()) } else { Err(webpki::Error::EndEntityUsedAsCa) }
    };
    let chain = parsed.verify_for_usage(&signature::ALL, &anchors, &others, at, usage, None, Some(&certifies));
    chain.map(|_| ()).map_err(|error| wrong(error.to_string()))
}
