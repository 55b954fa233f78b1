//! Everything that must hold of a reply.

use ring::digest;

use crate::authority::Authorities;
use crate::cms::SignedData;
use crate::error::TspError;
use crate::request::Request;
use crate::token::{TstInfo, granted};
use crate::{oid, signature, signer};

/// A timestamp that holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timestamp {
    /// When the bytes existed at the latest, in microseconds since the Unix epoch, by the TSA's clock.
    pub gen_time: i64,
    /// The TSA's policy, as an object identifier with dots.
    pub policy: String,
    /// The token's number at its TSA, in hex.
    pub serial: String,
    /// Who signed: the subject of the certificate, as RFC 4514 writes names.
    pub signer: String,
    /// The nonce of the request, where there is one of up to 64 bits.
    pub nonce: Option<u64>,
}

/// Checks a TimeStampResp over `message`: granted, of these bytes, signed by a TSA that leads to a pinned CA at the time
/// it says. With the request at hand, the reply must answer that very one.
///
/// # Errors
/// [`TspError`] with the first thing that does not hold.
pub fn verify(
    reply: &[u8],
    message: &[u8],
    authorities: &Authorities,
    request: Option<&Request>,
) -> Result<Timestamp, TspError> {
    let data = SignedData::read(&granted(reply)?)?;
    let info = TstInfo::read(&data.content)?;

    // What was stamped.
    if info.imprint_algorithm != oid::SHA256 {
        return Err(TspError::Algorithm {
            what: "the hash of what was stamped",
            oid: info.imprint_algorithm.to_string(),
        });
    }
    if digest::digest(&digest::SHA256, message).as_ref() != info.imprint {
        return Err(TspError::Imprint);
    }
    let nonce = info.nonce.and_then(unsigned);
    if let Some(request) = request {
        if nonce != Some(request.nonce) {
            return Err(TspError::Nonce);
        }
        if request.imprint != info.imprint {
            return Err(TspError::Imprint);
        }
        if let Some(wanted) = request.policy.filter(|wanted| *wanted != info.policy) {
            return Err(TspError::Policy { found: info.policy.to_string(), wanted: wanted.to_string() });
        }
    }

    // What was signed.
    let signed = |id, missing| data.signer.attribute(id).ok_or(TspError::False(missing));
    if signed(oid::CONTENT_TYPE, "the signed attributes have no contentType")?.oid()? != oid::TST_INFO {
        return Err(TspError::False("the signed contentType is not that of a TSTInfo"));
    }
    let hash = signature::hash("the hash of the content", data.signer.digest_algorithm)?;
    let said = signed(oid::MESSAGE_DIGEST, "the signed attributes have no messageDigest")?;
    if said.tag != der::Tag::OctetString || digest::digest(hash, data.content.value).as_ref() != said.value {
        return Err(TspError::False("the signed messageDigest is not that of the TSTInfo"));
    }

    // Who signed.
    let certificate = signer::find(&data)?;
    signer::is_bound(&data.signer, &certificate)?;
    signer::has_signed(&data.signer, &certificate)?;
    let subject = signer::may_stamp(&certificate)?;
    let seconds = u64::try_from(info.gen_time.div_euclid(1_000_000)).unwrap_or_default();
    signer::is_trusted(&data, &certificate, authorities, seconds)?;
    Ok(Timestamp {
        gen_time: info.gen_time,
        policy: info.policy.to_string(),
        serial: info.serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        signer: subject,
        nonce,
    })
}

/// The bytes of an INTEGER as a number, if it is not negative and has at most 64 bits.
fn unsigned(bytes: &[u8]) -> Option<u64> {
    let (first, rest) = bytes.split_first()?;
    let digits = match first {
        0 => rest,
        0x80.. => return None,
        _ => bytes,
    };
    (digits.len() <= 8).then(|| digits.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}
