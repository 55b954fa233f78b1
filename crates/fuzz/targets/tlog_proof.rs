//! Proofs of one event: what parses prints the same bytes.
#![no_main]

use agd_core::TlogProof;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(proof) = TlogProof::parse(text) {
        assert_eq!(proof.to_string(), text);
    }
});
