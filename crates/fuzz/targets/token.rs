//! Tokens: what parses names a key in its one spelling, and nothing holds that its key did not sign.
#![no_main]

use agd_core::token::{TokenSigner, TokenVerifier, Unverified, validate_kid};
use std::sync::LazyLock;

static KEY: LazyLock<Option<TokenVerifier>> = LazyLock::new(|| {
    let signer = TokenSigner::from_seed("fuzz", &[7; 32]).ok()?;
    TokenVerifier::new(&signer.public_key()).ok()
});

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let (Ok(token), Some(key)) = (Unverified::parse(text), &*KEY) {
        assert!(validate_kid(token.kid()).is_ok());
        // Nobody here can sign with it.
        assert!(token.verify(key).is_err());
    }
});
