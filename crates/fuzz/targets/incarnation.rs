//! Bodies of INCARNATION entries: what parses prints the same bytes.
#![no_main]

use agd_core::Incarnation;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(incarnation) = Incarnation::parse(text) {
        assert_eq!(incarnation.to_string(), text);
    }
});
