//! Entry bundles: what parses is split at every byte and encodes to the same bytes.
#![no_main]

use agd_core::bundle;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let entries: Result<Vec<&[u8]>, _> = bundle::entries(data).collect();
    if let Ok(entries) = entries {
        assert_eq!(bundle::encode(&entries).as_deref(), Ok(data));
        assert_eq!(bundle::parse(data, entries.len() as u16).as_deref(), Ok(&entries[..]));
    }
});
