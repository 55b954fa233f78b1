//! DER, element by element: what stands where in the reply.
//!
//! Owns the walk over the elements of one SEQUENCE or SET at a time, on `der`'s reader. Promises that every error names the
//! byte of the whole reply, and that an element keeps its own bytes, so that what is signed is never encoded anew. It never
//! recurses: who reads an inner element asks for its elements.

use der::asn1::ObjectIdentifier;
use der::{Decode, Header, Reader as _, SliceReader, Tag, TagNumber};

use crate::error::TspError;

/// One element.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    /// What it is.
    pub tag: Tag,
    /// Its bytes, tag and length included.
    pub bytes: &'a [u8],
    /// Its bytes without tag and length.
    pub value: &'a [u8],
    /// Where it begins in the whole input.
    pub offset: usize,
}

impl<'a> Element<'a> {
    /// An error about this element.
    pub fn wrong(&self, what: impl Into<String>) -> TspError {
        TspError::Malformed { offset: self.offset, what: what.into() }
    }

    /// Its elements.
    pub fn elements(&self) -> Result<Elements<'a>, TspError> {
        let header = self.bytes.len() - self.value.len();
        Elements::new(self.value, self.offset + header)
    }

    /// Its bytes as another type, which checks their encoding.
    pub fn decode<T>(&self, what: &str) -> Result<T, TspError>
    where
        T: Decode<'a, Error = der::Error>,
    {
        T::from_der(self.bytes).map_err(|error| {
            let inner = error.position().and_then(|at| usize::try_from(at).ok()).unwrap_or_default();
            TspError::Malformed { offset: self.offset + inner, what: format!("{what}: {}", error.kind()) }
        })
    }

    /// As an object identifier.
    pub fn oid(&self) -> Result<ObjectIdentifier, TspError> {
        self.decode("an object identifier")
    }

    /// As an unsigned number of up to 64 bits.
    pub fn number(&self) -> Result<u64, TspError> {
        self.decode("a number")
    }
}

/// The elements of one SEQUENCE or SET, in order.
#[derive(Debug)]
pub struct Elements<'a> {
    bytes: &'a [u8],
    reader: SliceReader<'a>,
    base: usize,
}

impl<'a> Elements<'a> {
    /// Over some bytes, which begin at byte `base` of the whole input.
    pub fn new(bytes: &'a [u8], base: usize) -> Result<Self, TspError> {
        let reader = SliceReader::new(bytes)
            .map_err(|error| TspError::Malformed { offset: base, what: error.kind().to_string() })?;
        Ok(Self { bytes, reader, base })
    }

    fn position(&self) -> usize {
        // What is read is far below 4 GiB.
        usize::try_from(self.reader.position()).unwrap_or(usize::MAX)
    }

    /// Where the next element begins.
    pub fn offset(&self) -> usize {
        self.base.saturating_add(self.position())
    }

    /// Whether all were read.
    pub fn is_empty(&self) -> bool {
        self.reader.is_finished()
    }

    /// The tag of the next element.
    fn peek(&self) -> Option<Tag> {
        Tag::peek(&self.reader).ok()
    }

    /// The next element, whatever it is.
    pub fn any(&mut self, what: &str) -> Result<Element<'a>, TspError> {
        let (offset, start) = (self.offset(), self.position());
        let wrong = |error: der::Error| TspError::Malformed { offset, what: format!("{what}: {}", error.kind()) };
        let header = Header::decode(&mut self.reader).map_err(wrong)?;
        let value = self.reader.read_slice(header.length()).map_err(wrong)?;
        let bytes = self.bytes.get(start..self.position()).unwrap_or_default();
        Ok(Element { tag: header.tag(), bytes, value, offset })
    }

    /// The next element, which must have this tag.
    pub fn take(&mut self, tag: Tag, what: &str) -> Result<Element<'a>, TspError> {
        let element = self.any(what)?;
        if element.tag == tag {
            return Ok(element);
        }
        Err(element.wrong(format!("{what}: {} where {tag} should be", element.tag)))
    }

    /// The next element, if it has this tag.
    pub fn take_if(&mut self, tag: Tag, what: &str) -> Result<Option<Element<'a>>, TspError> {
        if self.peek() == Some(tag) { self.any(what).map(Some) } else { Ok(None) }
    }

    /// What stands in the next element, an explicit tag around it.
    pub fn explicit(&mut self, number: u8, tag: Tag, what: &str) -> Result<Element<'a>, TspError> {
        let mut inner = self.take(context(number), what)?.elements()?;
        let element = inner.take(tag, what)?;
        inner.end(what)?;
        Ok(element)
    }

    /// Nothing may follow.
    pub fn end(self, what: &str) -> Result<(), TspError> {
        if self.is_empty() {
            return Ok(());
        }
        let offset = self.offset();
        Err(TspError::Malformed { offset, what: format!("{what}: more follows than belongs there") })
    }
}

/// A constructed context-specific tag.
pub const fn context(number: u8) -> Tag {
    Tag::ContextSpecific { constructed: true, number: TagNumber(number as u32) }
}

/// The one element that some bytes are.
pub fn only<'a>(bytes: &'a [u8], base: usize, tag: Tag, what: &str) -> Result<Element<'a>, TspError> {
    let mut elements = Elements::new(bytes, base)?;
    let element = elements.take(tag, what)?;
    elements.end(what)?;
    Ok(element)
}
