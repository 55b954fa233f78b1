//! Timestamp replies: any bytes are a named error, or say nothing else than the one that the TSA signed.
//!
//! `dev/fuzz.py` makes the TSA, and puts its CA, its reply and what it stamped into the present folder.
#![no_main]
#![allow(clippy::unwrap_used)] // a target that cannot set itself up must stop

use agd_tsp::{Authorities, Timestamp, verify};
use std::fs;
use std::sync::LazyLock;

struct Tsa {
    message: Vec<u8>,
    authorities: Authorities,
    signed: Timestamp,
}

static TSA: LazyLock<Tsa> = LazyLock::new(|| {
    let message = fs::read("message").unwrap();
    let authorities = Authorities::from_pem(&fs::read("ca.pem").unwrap()).unwrap();
    let signed = verify(&fs::read("reply.tsr").unwrap(), &message, &authorities, None).unwrap();
    Tsa { message, authorities, signed }
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match verify(data, &TSA.message, &TSA.authorities, None) {
        Ok(stamp) => assert_eq!(stamp, TSA.signed),
        Err(error) => assert!(!error.to_string().is_empty() && error.offset().is_none_or(|at| at <= data.len())),
    }
});
