//! Checkpoints: what parses prints the same bytes.
#![no_main]

use agd_core::Checkpoint;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(checkpoint) = Checkpoint::parse(text) {
        assert_eq!(checkpoint.to_string(), text);
    }
});
