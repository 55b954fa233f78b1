//! Trust policies: any bytes are a policy or a named error.
#![no_main]

use agd_cli::policy::Policy;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match Policy::parse(data) {
        Ok(policy) => assert!(!policy.logs().is_empty()),
        Err(error) => assert!(!error.reason.is_empty()),
    }
});
