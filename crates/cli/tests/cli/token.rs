//! `agd token`: what it prints is what `agd.bind()` accepts, and nothing else is ever printed.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use agd_cli::passphrase::Source;
use agd_cli::secret::SecretKey;
use agd_core::token::{Claims, Expected, TokenVerifier, Unverified};

fn agd(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_agd")).args(args).current_dir(folder).output().unwrap()
}

const ASKED: [&str; 11] = [
    "token",
    "--key",
    "acme.key",
    "--tenant",
    "acme",
    "--principal",
    "writer-1",
    "--role",
    "pool",
    "--audience",
    "agd-7/app",
];

fn sample() -> (tempfile::TempDir, SecretKey) {
    let dir = tempfile::tempdir().unwrap();
    let made = agd(dir.path(), &["keygen", "--tenant-key", "--out", "acme.key"]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let key = SecretKey::load(&dir.path().join("acme.key"), &Source::Terminal).unwrap();
    (dir, key)
}

fn token(folder: &Path, more: &[&str]) -> String {
    let output = agd(folder, &[&ASKED[..], more].concat());
    assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn claims(key: &SecretKey, token: &str) -> Claims {
    let verifier = TokenVerifier::new(key.verifier().public_key()).unwrap();
    Unverified::parse(token).unwrap().verify(&verifier).unwrap()
}

#[test]
fn a_token_is_what_the_database_accepts() {
    let (dir, key) = sample();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let first = token(dir.path(), &[]);
    assert_eq!(Unverified::parse(&first).unwrap().kid(), key.name());
    let said = claims(&key, &first);
    let expected =
        Expected { audience: "agd-7/app", role: "pool", now: now + 1, issued_after: now - 1, max_lifetime: 60 };
    said.expect(&expected).unwrap();
    assert_eq!((said.tenant.as_str(), said.principal.as_str()), ("acme", "writer-1"));
    assert_eq!((said.expires_at - said.issued_at, said.scopes.as_deref(), said.token_id.len()), (60, None, 22));
    assert_ne!(claims(&key, &token(dir.path(), &[])).token_id, said.token_id);

    let more =
        ["--ttl", "5m", "--scope", "read", "--scope", "write", "--fleet", "0123456789abcdef", "--not-before", "2s"];
    let said = claims(&key, &token(dir.path(), &more));
    assert_eq!(said.scopes, Some(vec!["read".to_owned(), "write".to_owned()]));
    assert_eq!((said.expires_at - said.issued_at, said.fleet.as_deref()), (300, Some("0123456789abcdef")));
    assert_eq!(said.not_before, Some(said.issued_at + 2));
    assert_eq!(Unverified::parse(&token(dir.path(), &["--kid", "k-2"])).unwrap().kid(), "k-2");
    let json: serde_json::Value = serde_json::from_str(&token(dir.path(), &["--json"])).unwrap();
    assert_eq!(json["jti"], claims(&key, json["token"].as_str().unwrap()).token_id);
}

#[test]
fn what_no_database_would_accept_is_not_made() {
    let (dir, _) = sample();
    for wrong in
        [&["--ttl", "2h"][..], &["--scope", "a b"], &["--kid", "no spaces"], &["--fleet", ""], &["--ttl", "500ms"]]
    {
        let output = agd(dir.path(), &[&ASKED[..], wrong].concat());
        assert_eq!((output.status.code(), &output.stdout[..]), (Some(2), &b""[..]), "{wrong:?}");
    }
}
