use super::*;
use proptest::prelude::*;

fn good() -> &'static [u8] {
    static REPLY: OnceLock<Vec<u8>> = OnceLock::new();
    REPLY.get_or_init(|| reply(tsa()))
}

fn ca() -> &'static Authorities {
    static CA: OnceLock<Authorities> = OnceLock::new();
    CA.get_or_init(|| pinned(tsa()))
}

fn holds(reply: &[u8]) -> Result<Timestamp, TspError> {
    verify(reply, MESSAGE, ca(), None)
}

#[test]
fn every_shorter_reply_is_refused_with_the_byte_where_it_breaks() {
    for len in 0..good().len() {
        let error = holds(&good()[..len]).unwrap_err();
        assert!(error.offset().is_some_and(|at| at <= len), "{len}: {error:?}");
    }
    let longer = [good(), &[0]].concat();
    assert_eq!(holds(&longer).unwrap_err().offset(), Some(good().len()));
    let huge = [good(), &vec![0; 70_000]].concat();
    assert!(matches!(holds(&huge), Err(TspError::TooLong { .. })));
}

/// Where nothing is signed: the signature itself and, in the certificates that are not needed, everything.
#[test]
fn every_changed_byte_that_matters_is_found() {
    let stamp = holds(good()).unwrap();
    for at in 0..good().len() {
        let mut wrong = good().to_vec();
        wrong[at] ^= 1;
        // PKIStatus 0 and 1 both grant; versions of CMS and certificates' unused ones say nothing. What is accepted must
        // say the very same.
        if let Ok(found) = holds(&wrong) {
            assert_eq!(found, stamp, "byte {at}");
        }
    }
}

#[test]
fn deep_nesting_and_great_lengths() {
    for tag in [0x30_u8, 0x31, 0xA0] {
        let deep = [tag, 0x80].repeat(30_000);
        assert!(holds(&deep).is_err());
        let mut nested = Vec::new();
        for _ in 0..10_000 {
            let len = nested.len();
            let header = [tag, 0x83, (len >> 16) as u8, (len >> 8) as u8, len as u8];
            nested = [&header[..], &nested].concat();
        }
        assert!(holds(&nested).is_err());
    }
    for length in
        [&[0x84, 0xFF, 0xFF, 0xFF, 0xFF][..], &[0x88, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], &[0x80]]
    {
        assert!(holds(&[&[0x30], length, &[0; 100]].concat()).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn changed_replies_never_say_anything_else(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut wrong = good().to_vec();
        for (at, byte) in changes {
            let at = at.index(wrong.len());
            wrong[at] = byte;
        }
        if let Ok(found) = holds(&wrong) {
            prop_assert_eq!(found, holds(good()).unwrap());
        }
    }

    #[test]
    fn spliced_replies_never_say_anything_else(
        from in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(), with in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let (a, b) = (from.index(good().len()), to.index(good().len()));
        let wrong = [&good()[..a.min(b)], &with, &good()[a.max(b)..]].concat();
        if let Ok(found) = holds(&wrong) {
            prop_assert_eq!(found, holds(good()).unwrap());
        }
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(holds(&bytes).is_err());
    }

    #[test]
    fn arbitrary_pem_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), text in "(-----BEGIN CERTIFICATE-----\n[A-Za-z0-9+/=\n]{0,80}\n-----END CERTIFICATE-----\n){0,3}") {
        prop_assert!(Authorities::from_pem(&bytes).is_err());
        prop_assert!(Authorities::from_pem(text.as_bytes()).is_err());
    }
}
