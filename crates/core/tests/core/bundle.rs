use agd_core::bundle::{BundleError, MAX_ENTRY_LEN, encode, entries, parse};
use proptest::prelude::*;

#[test]
fn lengths_are_big_endian() {
    let long = vec![b'x'; 258];
    let bundle = encode([b"ab".as_slice(), b"", &long]).unwrap();
    assert_eq!(bundle[..8], [0, 2, b'a', b'b', 0, 0, 1, 2]);
    assert_eq!(parse(&bundle, 3), Ok(vec![b"ab".as_slice(), b"", &long]));
    assert_eq!(encode(Vec::<&[u8]>::new()), Ok(vec![]));
}

#[test]
fn what_does_not_fit_is_refused() {
    let longest = vec![0; MAX_ENTRY_LEN];
    assert_eq!(encode([&longest]).map(|bundle| bundle.len()), Ok(2 + MAX_ENTRY_LEN));
    let too_long = vec![0; MAX_ENTRY_LEN + 1];
    let refused = Err(BundleError::EntryTooLong { position: 1, len: MAX_ENTRY_LEN + 1 });
    assert_eq!(encode([&longest, &too_long]), refused);

    let full = encode([b"x"; 256]).unwrap();
    assert_eq!(parse(&full, 256).map(|entries| entries.len()), Ok(256));
    assert_eq!(encode([b"x"; 257]), Err(BundleError::TooManyEntries { offset: 768 }));
    let over = [full.as_slice(), &[0, 0]].concat();
    assert_eq!(parse(&over, 256), Err(BundleError::TooManyEntries { offset: 768 }));
}

#[test]
fn errors_say_where() {
    let bundle = encode(["abc", "defgh"]).unwrap();
    let cut = |len: usize| entries(&bundle[..len]).last().unwrap();
    assert_eq!(cut(6), Err(BundleError::Truncated { offset: 5, need: 2, have: 1 }));
    assert_eq!(cut(11), Err(BundleError::Truncated { offset: 5, need: 7, have: 6 }));
    assert_eq!(cut(4), Err(BundleError::Truncated { offset: 0, need: 5, have: 4 }));
    assert_eq!(cut(5), Ok(b"abc".as_slice()));
    assert_eq!(parse(&bundle, 3), Err(BundleError::WrongCount { expected: 3, got: 2 }));
    assert_eq!(entries(&bundle[..6]).count(), 2, "nothing follows an error");
}

proptest! {
    #[test]
    fn round_trip(written in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..=256)) {
        let bundle = encode(&written).unwrap();
        let read = parse(&bundle, written.len() as u16).unwrap();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn arbitrary_bytes_do_not_panic_and_parse_one_way(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        if let Ok(read) = entries(&bytes).collect::<Result<Vec<_>, _>>() {
            prop_assert_eq!(encode(read).unwrap(), bytes);
        }
    }

    #[test]
    fn small_lengths_parse_one_way(bytes in prop::collection::vec(0_u8..3, 0..900)) {
        match entries(&bytes).collect::<Result<Vec<_>, _>>() {
            Ok(read) => prop_assert_eq!(encode(read).unwrap(), bytes),
            Err(BundleError::Truncated { offset, need, have }) => {
                prop_assert!(need > have && offset + have == bytes.len());
            }
            Err(error) => {
                let too_many = matches!(error, BundleError::TooManyEntries { .. });
                prop_assert!(too_many, "{error}");
            }
        }
    }
}
