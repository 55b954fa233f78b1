//! Lines of a dump: what parses prints the same bytes, and an image that gives its digest is text under a salt.
#![no_main]

use agd_core::{DumpedEvent, Image, dump, entry};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut again = Vec::new();
    if let Ok(logs) = dump::parse_header(data) {
        dump::write_header(&logs, &mut again);
        assert_eq!(again, data);
    } else if let Ok(event) = DumpedEvent::parse(data) {
        event.encode_into(&mut again);
        assert_eq!(again, data);
        let images = dump::KINDS.iter().any(|kind| matches!(event.image(*kind), Image::Text(_)));
        assert_eq!(images, event.salt.is_some());
        if let Ok(entry) = entry::parse(&event.entry) {
            let problems = event.check_images(&entry, true);
            // Neither an image that the log knows nothing of nor one that is left out passes.
            for (kind, digest) in dump::KINDS.into_iter().zip([entry.row_key, entry.new, entry.old]) {
                let agree = (*event.image(kind) == Image::None) == digest.is_none();
                assert!(agree || problems.iter().any(|(wrong, _)| *wrong == kind));
            }
        }
    }
});
