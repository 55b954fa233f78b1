//! Times as tokens and certificates have them.
//!
//! Owns GeneralizedTime with fractions of a second, which RFC 3161 allows and RFC 5280 does not, and RFC 3339 for messages.

use der::DateTime;

use crate::error::TspError;
use crate::tlv::Element;

/// Microseconds in a second.
const SECOND: i64 = 1_000_000;

/// `YYYYMMDDhhmmss[.s…]Z` as microseconds since the Unix epoch; what is finer than that is dropped.
pub fn generalized(element: &Element<'_>) -> Result<i64, TspError> {
    parse(element.value).ok_or_else(|| element.wrong("genTime is not a GeneralizedTime in UTC from 1970 to 9999"))
}

fn parse(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (whole, fraction) = text.split_once('.').map_or((text, None), |(whole, fraction)| (whole, Some(fraction)));
    if whole.len() != 14 || !whole.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let part = |from: usize, to: usize| whole.get(from..to)?.parse::<u8>().ok();
    let year = whole.get(..4)?.parse().ok()?;
    let date = DateTime::new(year, part(4, 6)?, part(6, 8)?, part(8, 10)?, part(10, 12)?, part(12, 14)?).ok()?;
    let seconds = i64::try_from(date.unix_duration().as_secs()).ok()?;
    Some(seconds * SECOND + fraction.map_or(Some(0), micros)?)
}

fn micros(fraction: &str) -> Option<i64> {
    if fraction.is_empty() || fraction.len() > 32 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    format!("{fraction:0<6}").get(..6)?.parse().ok()
}

/// Whole seconds since the Unix epoch as RFC 3339 in UTC.
pub fn rfc3339(seconds: u64) -> String {
    match DateTime::from_unix_duration(std::time::Duration::from_secs(seconds)) {
        Ok(date) => date.to_string(),
        Err(_) => format!("{seconds} seconds after 1970"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_with_and_without_fractions() {
        let at = |text: &str| parse(text.as_bytes());
        assert_eq!(at("19700101000000Z"), Some(0));
        assert_eq!(at("20261121213105Z"), Some(1_795_296_665_000_000));
        assert_eq!(at("20261121213105.5Z"), Some(1_795_296_665_500_000));
        assert_eq!(at("20261121213105.000001Z"), Some(1_795_296_665_000_001));
        assert_eq!(at("20261121213105.1234569Z"), Some(1_795_296_665_123_456));
        assert_eq!(at("20240229235959Z"), Some(1_709_251_199_000_000));
        for bad in [
            "",
            "Z",
            "20261121213105",
            "2026112121310Z",
            "20261121213105.Z",
            "20261121213105,5Z",
            "20261121213105+0100",
            "20261321213105Z",
            "20260230213105Z",
            "20261121253105Z",
            "20261121213105.5.5Z",
            "19691231235959Z",
            "2026112121310xZ",
            "+0261121213105Z",
        ] {
            assert_eq!(at(bad), None, "{bad}");
        }
    }

    #[test]
    fn messages_have_rfc_3339() {
        assert_eq!(rfc3339(1_795_296_665), "2026-11-21T21:31:05Z");
        assert!(rfc3339(u64::MAX).contains("seconds after 1970"));
    }

    proptest! {
        #[test]
        fn arbitrary_times_never_panic(text in "[0-9]{0,16}[.]?[0-9]{0,40}Z?", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(text.as_bytes());
            let _ = parse(&bytes);
        }
    }
}
