//! Where a store is: a folder, or a bucket of an S3-compatible server.
//!
//! Owns how a location is spelled on the command line. Promises that what it does not understand is refused, and that one
//! location has one spelling when it is shown or told to the database. It never looks whether the place is there.

use std::fmt;
use std::path::{Path, PathBuf};

use super::StoreError;

/// The longest object name in S3 is 1,024 bytes; a log's own part of it takes at most some 300.
const MAX_PREFIX: usize = 512;

/// A store's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder of this machine.
    Folder(PathBuf),
    /// A bucket.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What the name of every object begins with: empty, or names with a slash between them.
        prefix: String,
    },
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Folder(path.to_owned())
    }
}

impl From<&PathBuf> for Location {
    fn from(path: &PathBuf) -> Self {
        Self::Folder(path.clone())
    }
}

impl From<&Location> for Location {
    fn from(location: &Location) -> Self {
        location.clone()
    }
}

/// Reads a store's location: `s3://bucket/prefix`, `file:///absolute/path` or a plain path.
///
/// # Errors
/// [`StoreError::Location`] for any other scheme, a host name in a file URL, a malformed escape, or a name that no bucket
/// or object can have.
pub fn parse_location(location: &str) -> Result<Location, StoreError> {
    let wrong = |reason| StoreError::Location { location: location.to_owned(), reason };
    let Some((scheme, rest)) = location.split_once("://") else {
        if location.is_empty() {
            return Err(wrong("an empty path"));
        }
        return Ok(Location::Folder(PathBuf::from(location)));
    };
    match scheme {
        "file" => {
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            if !path.starts_with('/') {
                return Err(wrong("a file URL is file:///absolute/path"));
            }
            let path = percent_decode(path).ok_or_else(|| wrong("a malformed percent escape"))?;
            Ok(Location::Folder(PathBuf::from(path)))
        }
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if !is_bucket(bucket) {
                return Err(wrong("a bucket's name is 3 to 63 characters of a-z, 0-9, dots and hyphens"));
            }
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            if !is_prefix(prefix) {
                return Err(wrong("a prefix is names of A-Z, a-z, 0-9, . _ and - with a slash between them"));
            }
            Ok(Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
        }
        _ => Err(wrong("only file:// and s3:// stores are known")),
    }
}

fn is_bucket(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = |byte: Option<&u8>| byte.is_some_and(|byte| plain(*byte));
    let bytes = name.as_bytes();
    (3..=63).contains(&bytes.len())
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| plain(*byte) || matches!(byte, b'.' | b'-'))
}

/// Only what every server, tool and policy language takes as it is: no two spellings of one name.
fn is_prefix(prefix: &str) -> bool {
    let name = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
            && name.bytes().any(|byte| byte != b'.')
    };
    prefix.is_empty() || (prefix.len() <= MAX_PREFIX && prefix.split('/').all(name))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|b| *b != 0)?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn locations() {
        let path = |location: &str| match parse_location(location) {
            Ok(Location::Folder(path)) => Some(path),
            _ => None,
        };
        assert_eq!(path("file:///a/b%20c"), Some(PathBuf::from("/a/b c")));
        assert_eq!(path("file://localhost/a"), Some(PathBuf::from("/a")));
        assert_eq!(path("a/b"), Some(PathBuf::from("a/b")));
        for bad in ["", "http://bucket", "file://host/a", "file:///%0", "file:///%+1", "file:///%00", "file://"] {
            assert!(parse_location(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn buckets_and_prefixes() {
        for (location, shown) in [
            ("s3://worm", "s3://worm"),
            ("s3://worm/", "s3://worm"),
            ("s3://my.worm-1/a/B_c", "s3://my.worm-1/a/B_c"),
            ("s3://worm/a/", "s3://worm/a"),
        ] {
            assert_eq!(parse_location(location).unwrap().to_string(), shown);
        }
        let long = format!("s3://worm/{}", "a".repeat(513));
        for bad in ["s3://", "s3:///a", "s3://ab", "s3://-ab", "s3://Worm", "s3://key:secret@worm", "s3://worm//a"] {
            assert!(parse_location(bad).is_err(), "{bad}");
        }
        for bad in ["s3://worm/a//", "s3://worm/../x", "s3://worm/a?b", "s3://worm/a b", "s3://worm/%41", &long] {
            assert!(parse_location(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_locations_never_panic_and_show_as_they_are_read(location in "((file|s3)://)?\\PC*") {
            if let Ok(place @ Location::S3 { .. }) = parse_location(&location) {
                prop_assert_eq!(parse_location(&place.to_string()).unwrap(), place);
            }
        }
    }
}
