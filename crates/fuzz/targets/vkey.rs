//! Verifier keys: what parses prints the same bytes.
#![no_main]

use agd_core::VerifierKey;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(key) = VerifierKey::parse(text) {
        assert_eq!(key.to_string(), text);
    }
});
