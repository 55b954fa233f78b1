//! TimeStampResp and TSTInfo (RFC 3161 §2.4.2): what the TSA answers, and what it says in a token.

use der::Tag;
use der::asn1::{ObjectIdentifier, Utf8StringRef};

use crate::error::TspError;
use crate::tlv::{Element, Elements, context, only};
use crate::{MAX_REPLY_LEN, time};

/// `granted` and `grantedWithMods`.
const GRANTED: [u64; 2] = [0, 1];

/// A TSA explains itself in so many characters at most; the rest is dropped.
const MAX_TEXT: usize = 200;

/// Reads a reply up to its token: the ContentInfo.
pub fn granted(reply: &[u8]) -> Result<Element<'_>, TspError> {
    if reply.len() > MAX_REPLY_LEN {
        return Err(TspError::TooLong { len: reply.len() });
    }
    let mut parts = only(reply, 0, Tag::Sequence, "a timestamp reply")?.elements()?;
    let mut info = parts.take(Tag::Sequence, "PKIStatusInfo")?.elements()?;
    let status = info.take(Tag::Integer, "PKIStatus")?.number()?;
    let mut text = String::new();
    if let Some(strings) = info.take_if(Tag::Sequence, "statusString")? {
        let mut strings = strings.elements()?;
        while !strings.is_empty() {
            let string: Utf8StringRef<'_> = strings.take(Tag::Utf8String, "statusString")?.decode("statusString")?;
            say(&mut text, string.as_str());
        }
    }
    if let Some(failure) = info.take_if(Tag::BitString, "failInfo")? {
        say(&mut text, &fail_info(failure.value));
    }
    info.end("PKIStatusInfo")?;
    if !GRANTED.contains(&status) {
        return Err(TspError::Refused { status, text });
    }
    let token = parts.take(Tag::Sequence, "the timestamp token")?;
    parts.end("a timestamp reply")?;
    Ok(token)
}

fn say(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push_str("; ");
    }
    text.extend(more.chars().take(MAX_TEXT.saturating_sub(text.chars().count())));
}

/// The names of PKIFailureInfo's bits that RFC 3161 defines.
fn fail_info(bits: &[u8]) -> String {
    const NAMES: [(usize, &str); 8] = [
        (0, "badAlg"),
        (2, "badRequest"),
        (5, "badDataFormat"),
        (14, "timeNotAvailable"),
        (15, "unacceptedPolicy"),
        (16, "unacceptedExtension"),
        (17, "addInfoNotAvailable"),
        (25, "systemFailure"),
    ];
    // The first byte counts the unused bits of the last one.
    let is_set = |bit: usize| bits.get(1 + bit / 8).is_some_and(|byte| byte & (0x80 >> (bit % 8)) != 0);
    let set: Vec<&str> = NAMES.iter().filter(|(bit, _)| is_set(*bit)).map(|(_, name)| *name).collect();
    set.join(", ")
}

/// What a token says.
#[derive(Debug)]
pub struct TstInfo<'a> {
    /// The policy that it was made under.
    pub policy: ObjectIdentifier,
    /// The hash algorithm of what was stamped.
    pub imprint_algorithm: ObjectIdentifier,
    /// The hash of what was stamped.
    pub imprint: &'a [u8],
    /// The token's number at its TSA, as the bytes of an INTEGER.
    pub serial: &'a [u8],
    /// When, in microseconds since the Unix epoch.
    pub gen_time: i64,
    /// The request's nonce, as the bytes of an INTEGER.
    pub nonce: Option<&'a [u8]>,
}

impl<'a> TstInfo<'a> {
    /// Reads the content of a token.
    pub fn read(content: &Element<'a>) -> Result<Self, TspError> {
        let base = content.offset + content.bytes.len() - content.value.len();
        let mut parts = only(content.value, base, Tag::Sequence, "TSTInfo")?.elements()?;
        let version = parts.take(Tag::Integer, "the version of TSTInfo")?;
        if version.number()? != 1 {
            return Err(version.wrong("TSTInfo is not of version 1"));
        }
        let policy = parts.take(Tag::ObjectIdentifier, "the TSA's policy")?.oid()?;
        let mut imprint = parts.take(Tag::Sequence, "messageImprint")?.elements()?;
        let imprint_algorithm = algorithm(&imprint.take(Tag::Sequence, "the hash algorithm of messageImprint")?)?;
        let hash = imprint.take(Tag::OctetString, "hashedMessage")?.value;
        imprint.end("messageImprint")?;
        let serial = integer(&mut parts, "the serial number of the token")?;
        let gen_time = time::generalized(&parts.take(Tag::GeneralizedTime, "genTime")?)?;
        // How exact it is does not matter to anything that is checked; nor in which order the TSA makes its tokens.
        parts.take_if(Tag::Sequence, "accuracy")?;
        parts.take_if(Tag::Boolean, "ordering")?;
        let nonce = parts.take_if(Tag::Integer, "nonce")?.map(|nonce| nonce.value);
        parts.take_if(context(0), "tsa")?;
        if let Some(extensions) = parts.take_if(context(1), "extensions")? {
            none_critical(&extensions)?;
        }
        parts.end("TSTInfo")?;
        Ok(Self { policy, imprint_algorithm, imprint: hash, serial, gen_time, nonce })
    }
}

/// No extension of a token is known here: one that must be understood makes it unusable.
fn none_critical(extensions: &Element<'_>) -> Result<(), TspError> {
    let mut extensions = extensions.elements()?;
    while !extensions.is_empty() {
        let mut extension = extensions.take(Tag::Sequence, "an extension")?.elements()?;
        let id = extension.take(Tag::ObjectIdentifier, "the name of an extension")?.oid()?;
        if let Some(critical) = extension.take_if(Tag::Boolean, "critical")?
            && critical.decode::<bool>("critical")?
        {
            return Err(critical.wrong(format!("the extension {id} is critical and not known")));
        }
    }
    Ok(())
}

/// The bytes of an INTEGER.
pub fn integer<'a>(parts: &mut Elements<'a>, what: &str) -> Result<&'a [u8], TspError> {
    let number = parts.take(Tag::Integer, what)?;
    match number.value {
        [] => Err(number.wrong(format!("{what} is empty"))),
        value => Ok(value),
    }
}

/// The object identifier of an AlgorithmIdentifier whose parameters are NULL or not there.
pub fn algorithm(element: &Element<'_>) -> Result<ObjectIdentifier, TspError> {
    let mut parts = element.elements()?;
    let oid = parts.take(Tag::ObjectIdentifier, "the name of an algorithm")?.oid()?;
    if let Some(null) = parts.take_if(Tag::Null, "the parameters of an algorithm")?
        && !null.value.is_empty()
    {
        return Err(null.wrong("NULL has a value"));
    }
    parts.end("a hash algorithm")?;
    Ok(oid)
}
