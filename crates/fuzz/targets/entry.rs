//! Entries: only the canonical bytes parse.
#![no_main]

use agd_core::entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(parsed) = entry::parse(data) {
        let mut again = Vec::new();
        assert!(parsed.as_entry().try_encode_into(&mut again).is_ok());
        assert_eq!(again, data);
    }
});
