//! Requests that openssl understands, and replies of openssl: good ones of every kind, and everything that may be wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../openssl/mod.rs"]
mod openssl;

mod accepted;
mod authorities;
mod hostile;
mod refused;

use std::sync::OnceLock;

use agd_tsp::{Authorities, Request, Timestamp, TspError, verify};
use openssl::{Kind, Tsa};

const MESSAGE: &[u8] = b"agd-1/app\n5\nroot\n\nsignature\n";
const NONCE: u64 = 0x1234_5678_9abc_def0;

/// One TSA for the tests that only need some TSA. Nothing drops it, so that its folder is one of the build's.
fn tsa() -> &'static Tsa {
    static TSA: OnceLock<(tempfile::TempDir, Tsa)> = OnceLock::new();
    let (_, tsa) = TSA.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let tsa = Tsa::new(folder.path(), Kind::default());
        (folder, tsa)
    });
    tsa
}

/// A TSA of its own.
fn another(kind: Kind) -> (tempfile::TempDir, Tsa) {
    let folder = tempfile::tempdir().unwrap();
    let tsa = Tsa::new(folder.path(), kind);
    (folder, tsa)
}

fn pinned(tsa: &Tsa) -> Authorities {
    Authorities::from_pem(&tsa.pem()).unwrap()
}

fn request() -> Request {
    Request::new(MESSAGE, NONCE, None).unwrap()
}

fn reply(tsa: &Tsa) -> Vec<u8> {
    tsa.reply(&request().to_der().unwrap())
}

fn check(reply: &[u8], tsa: &Tsa) -> Result<Timestamp, TspError> {
    verify(reply, MESSAGE, &pinned(tsa), Some(&request()))
}
