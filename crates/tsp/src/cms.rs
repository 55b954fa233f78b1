//! CMS signed data (RFC 5652) as a timestamp token has it: one signer, signed attributes, the content inside.
//!
//! Owns the shape. Promises that what is signed is handed on as the bytes that were sent.

use der::Tag;
use der::asn1::ObjectIdentifier;

use crate::error::TspError;
use crate::oid;
use crate::tlv::{Element, Elements, context};
use crate::token::{algorithm, integer};

/// The most certificates of a token that are read. A chain has two or three.
const MAX_CERTIFICATES: usize = 32;

/// The most signed attributes that are read. A token has four or five.
const MAX_ATTRIBUTES: usize = 32;

/// The DER tag of a SET.
const SET: u8 = 0x31;

/// A token's envelope.
#[derive(Debug)]
pub struct SignedData<'a> {
    /// The OCTET STRING with the TSTInfo.
    pub content: Element<'a>,
    /// Every X.509 certificate that came along, in DER.
    pub certificates: Vec<Element<'a>>,
    /// The one signer.
    pub signer: SignerInfo<'a>,
}

/// Who signed.
#[derive(Debug)]
pub enum SignerId<'a> {
    /// The certificate of this issuer (the Name without its header) with this serial number (the bytes of the INTEGER).
    IssuerAndSerial(&'a [u8], &'a [u8]),
    /// The certificate with this subject key identifier.
    KeyId(&'a [u8]),
}

/// The signature, and what it is over.
#[derive(Debug)]
pub struct SignerInfo<'a> {
    /// Who.
    pub id: SignerId<'a>,
    /// The hash of the content.
    pub digest_algorithm: ObjectIdentifier,
    /// The signed attributes' own bytes with the tag that is signed in place of the one that is sent.
    pub signed_bytes: Vec<u8>,
    /// The signed attributes.
    pub attributes: Vec<Attribute<'a>>,
    /// The AlgorithmIdentifier of the signature.
    pub signature_algorithm: Element<'a>,
    /// The signature.
    pub signature: &'a [u8],
}

/// A signed attribute with one value.
#[derive(Debug)]
pub struct Attribute<'a> {
    /// What it is.
    pub id: ObjectIdentifier,
    /// Its value.
    pub value: Element<'a>,
}

impl<'a> SignedData<'a> {
    /// Reads a ContentInfo.
    pub fn read(token: &Element<'a>) -> Result<Self, TspError> {
        let mut parts = token.elements()?;
        let kind = parts.take(Tag::ObjectIdentifier, "the type of the token")?;
        if kind.oid()? != oid::SIGNED_DATA {
            return Err(kind.wrong("the token is not signed data"));
        }
        let data = parts.explicit(0, Tag::Sequence, "SignedData")?;
        parts.end("the timestamp token")?;

        let mut parts = data.elements()?;
        parts.take(Tag::Integer, "the version of SignedData")?;
        parts.take(Tag::Set, "digestAlgorithms")?;
        let mut inner = parts.take(Tag::Sequence, "encapContentInfo")?.elements()?;
        let kind = inner.take(Tag::ObjectIdentifier, "the type of the content")?;
        if kind.oid()? != oid::TST_INFO {
            return Err(kind.wrong("the content is not a TSTInfo"));
        }
        let content = inner.explicit(0, Tag::OctetString, "the content")?;
        inner.end("encapContentInfo")?;
        let certificates = match parts.take_if(context(0), "certificates")? {
            Some(set) => certificates(set.elements()?)?,
            None => Vec::new(),
        };
        parts.take_if(context(1), "crls")?;
        let mut signers = parts.take(Tag::Set, "signerInfos")?.elements()?;
        let signer = SignerInfo::read(&signers.take(Tag::Sequence, "SignerInfo")?)?;
        signers.end("signerInfos: a token has one signer")?;
        parts.end("SignedData")?;
        Ok(Self { content, certificates, signer })
    }
}

fn certificates(mut set: Elements<'_>) -> Result<Vec<Element<'_>>, TspError> {
    let mut found = Vec::new();
    while !set.is_empty() {
        let element = set.any("a certificate")?;
        // Attribute certificates and the like have context-specific tags.
        if element.tag == Tag::Sequence {
            found.push(element);
        }
        if found.len() > MAX_CERTIFICATES {
            return Err(element.wrong(format!("more than {MAX_CERTIFICATES} certificates")));
        }
    }
    Ok(found)
}

impl<'a> SignerInfo<'a> {
    fn read(info: &Element<'a>) -> Result<Self, TspError> {
        let mut parts = info.elements()?;
        parts.take(Tag::Integer, "the version of SignerInfo")?;
        let id = parts.any("the signer's identifier")?;
        let id = if id.tag == Tag::Sequence {
            let mut names = id.elements()?;
            let issuer = names.take(Tag::Sequence, "the issuer")?.value;
            let serial = integer(&mut names, "the serial number")?;
            names.end("the signer's identifier")?;
            SignerId::IssuerAndSerial(issuer, serial)
        } else if !id.tag.is_constructed() && id.tag.is_context_specific() && id.tag.number().0 == 0 {
            SignerId::KeyId(id.value)
        } else {
            return Err(id.wrong("the signer's identifier is neither issuer and serial number nor a key identifier"));
        };
        let digest_algorithm = algorithm(&parts.take(Tag::Sequence, "digestAlgorithm")?)?;
        let signed = parts.take(context(0), "signedAttrs")?;
        let mut signed_bytes = signed.bytes.to_vec();
        if let Some(tag) = signed_bytes.first_mut() {
            *tag = SET;
        }
        let attributes = attributes(signed.elements()?)?;
        let signature_algorithm = parts.take(Tag::Sequence, "signatureAlgorithm")?;
        let signature = parts.take(Tag::OctetString, "the signature")?.value;
        // Unsigned attributes say nothing that anybody signed.
        parts.take_if(context(1), "unsignedAttrs")?;
        parts.end("SignerInfo")?;
        Ok(Self { id, digest_algorithm, signed_bytes, attributes, signature_algorithm, signature })
    }

    /// The value of an attribute.
    pub fn attribute(&self, id: ObjectIdentifier) -> Option<&Element<'a>> {
        self.attributes.iter().find(|attribute| attribute.id == id).map(|attribute| &attribute.value)
    }
}

fn attributes(mut set: Elements<'_>) -> Result<Vec<Attribute<'_>>, TspError> {
    let mut found: Vec<Attribute<'_>> = Vec::new();
    while !set.is_empty() {
        let attribute = set.take(Tag::Sequence, "a signed attribute")?;
        let mut parts = attribute.elements()?;
        let id = parts.take(Tag::ObjectIdentifier, "the name of an attribute")?.oid()?;
        let mut values = parts.take(Tag::Set, "the values of an attribute")?.elements()?;
        let value = values.any("the value of an attribute")?;
        parts.end("a signed attribute")?;
        if found.len() >= MAX_ATTRIBUTES || found.iter().any(|other| other.id == id) {
            return Err(attribute.wrong(format!("a second attribute {id}, or more than {MAX_ATTRIBUTES} of them")));
        }
        // Those that are read here have one value.
        values.end("an attribute with one value")?;
        found.push(Attribute { id, value });
    }
    Ok(found)
}
