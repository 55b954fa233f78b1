//! Signed notes: what parses prints the same bytes, and only the key that signed it verifies it.
#![no_main]

use agd_core::{SignedNote, SigningKey};
use std::sync::LazyLock;

static KEY: LazyLock<Option<SigningKey>> = LazyLock::new(|| SigningKey::from_seed("fuzz", &[7; 32]).ok());

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let (Ok(note), Some(key)) = (SignedNote::parse(data), &*KEY) {
        assert_eq!(note.to_string().as_bytes(), data);
        // Nobody here can sign with it.
        assert!(note.verify(std::slice::from_ref(key.verifier_key())).is_err());
    }
});
