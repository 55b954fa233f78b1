//! Keys of all kinds, with and without a passphrase, and what is signed with them.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::*;
use agd_cli::passphrase::Source;
use agd_cli::secret::SecretKey;
use agd_core::{SignedNote, VerifierKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Runs `agd` without a terminal: in a session of its own.
fn agd(folder: &Path, args: &[&str], stdin: &[u8]) -> Output {
    let mut command = Command::new("setsid");
    command.arg("--wait").arg(env!("CARGO_BIN_EXE_agd")).args(args).current_dir(folder);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("setsid, of util-linux");
    // A command that reads nothing closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn private(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).unwrap();
    std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Whether this is the key's signature over these bytes: as a note, whose signature is over its text.
fn holds(vkey: &str, statement: &str, signature: &[u8]) -> bool {
    let key = VerifierKey::parse(vkey).unwrap();
    let line = [&key.id().to_be_bytes()[..], signature].concat();
    let note = format!("{statement}\n— {} {}\n", key.name(), STANDARD.encode(line));
    SignedNote::parse(&note).unwrap().verify(&[key]).is_ok()
}

#[test]
fn a_tenants_key_says_what_the_database_needs() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| agd(dir.path(), args, b"");
    let made = run(&["keygen", "--tenant-key", "--out", "acme.key"]);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    let key = SecretKey::load(&dir.path().join("acme.key"), &Source::Terminal).unwrap();
    let public = hex::encode(key.verifier().public_key());
    let expected = format!("{}\nkid        {}\npublic key \\x{public}\n", key.verifier(), key.name());
    assert_eq!(said(&made), expected);
    assert_eq!(key.name().len(), 16);
    let made = run(&["keygen", "--tenant-key", "--name", "acme-2026", "--out", "b.key", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((json["name"].as_str(), json["encrypted"].as_bool()), (Some("acme-2026"), Some(false)));
    assert_eq!(json["public_key"].as_str().unwrap().len(), 64);
    let made = run(&["keygen", "--signer", "Coordinator-1", "--out", "c.key"]);
    assert!(said(&made).contains("signer     Coordinator-1\n"), "{}", said(&made));
    for wrong in [&["keygen", "--out", "d.key"][..], &["keygen", "--signer", "a b", "--out", "d.key"]] {
        assert_eq!(run(wrong).status.code(), Some(2));
        assert!(!dir.path().join("d.key").exists());
    }
}

#[test]
fn exactly_the_bytes_are_signed() {
    let dir = tempfile::tempdir().unwrap();
    let made = agd(dir.path(), &["keygen", "--signer", "coordinator", "--out", "c.key", "--json"], b"");
    let vkey: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    let vkey = vkey["vkey"].as_str().unwrap();
    let statement = "agd-fleet-statement\nü\n";
    let sign = |form: &[&str], statement: &str| {
        agd(dir.path(), &[&["sign", "--key", "c.key"], form].concat(), statement.as_bytes())
    };
    let raw = sign(&[], statement);
    assert_eq!((raw.status.code(), raw.stdout.len()), (Some(0), 64), "{}", said(&raw));
    assert!(holds(vkey, statement, &raw.stdout));
    assert!(!holds(vkey, "agd-fleet-statement\nu\n", &raw.stdout));
    assert_eq!(said(&sign(&["--hex"], statement)), format!("{}\n", hex::encode(&raw.stdout)));
    assert_eq!(said(&sign(&["--base64"], statement)), format!("{}\n", STANDARD.encode(&raw.stdout)));
    let json: serde_json::Value = serde_json::from_slice(&sign(&["--json"], statement).stdout).unwrap();
    assert_eq!(
        (json["signature"].as_str(), json["signer"].as_str()),
        (Some(&hex::encode(&raw.stdout)[..]), Some("coordinator"))
    );
    // Whatever a log's key could be tricked into.
    let checkpoint = agd_core::Checkpoint { origin: "coordinator".to_owned(), size: 1, root: [0; 32] }.to_string();
    for refused in ["", &checkpoint] {
        let output = sign(&[], refused);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", said(&output));
    }
}

#[test]
fn an_encrypted_key_works_with_its_passphrase_only() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| agd(dir.path(), args, b"statement\n");
    private(dir.path(), "right", "correct horse\n");
    private(dir.path(), "wrong", "battery staple\n");
    let made = run(&["keygen", "--name", PLATFORM, "--out", "log.key", "--passphrase-file", "right"]);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    let file = std::fs::read_to_string(dir.path().join("log.key")).unwrap();
    assert!(file.starts_with(&format!("agd-key {}-----BEGIN ENCRYPTED PRIVATE KEY-----\n", said(&made))), "{file}");
    let mode = std::fs::metadata(dir.path().join("log.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let signed = run(&["sign", "--key", "log.key", "--passphrase-file", "right"]);
    assert!(holds(said(&made).trim_end(), "statement\n", &signed.stdout), "{}", said(&signed));
    let wrong = run(&["sign", "--key", "log.key", "--passphrase-file", "wrong"]);
    assert_eq!((wrong.status.code(), wrong.stdout.len()), (Some(2), 0));
    assert!(said(&wrong).contains("wrong passphrase"), "{}", said(&wrong));
    let nobody = run(&["sign", "--key", "log.key"]);
    assert_eq!(nobody.status.code(), Some(2));
    assert!(said(&nobody).contains("no terminal"), "{}", said(&nobody));
    let nobody = run(&["keygen", "--name", PLATFORM, "--out", "b.key", "--passphrase"]);
    assert_eq!((nobody.status.code(), dir.path().join("b.key").exists()), (Some(2), false));

    // The publisher too: what stops it here is that there is no database.
    std::fs::create_dir(dir.path().join("store")).unwrap();
    let publish = |more: &[&str]| {
        let args =
            ["publish", "--once", "--store", "store", "--key", "log.key", "--database", "host=/nonexistent-agd user=x"];
        said(&run(&[&args[..], more].concat()))
    };
    assert!(publish(&[]).contains("no terminal"));
    assert!(publish(&["--passphrase-file", "wrong"]).contains("wrong passphrase"));
    let right = publish(&["--passphrase-file", "right"]);
    assert!(right.contains("connect to the database"), "{right}");
    assert!(!right.contains("horse"));

    // A witness's key has a passphrase of its own.
    private(dir.path(), "other", "of the witness\n");
    let witness =
        ["keygen", "--witness", "--name", "witness.example/w1", "--out", "w.key", "--passphrase-file", "other"];
    let made = run(&witness);
    assert_eq!(made.status.code(), Some(0), "{}", said(&made));
    let file = std::fs::read_to_string(dir.path().join("w.key")).unwrap();
    assert!(file.starts_with(&format!("agd-key {}-----BEGIN ENCRYPTED", said(&made))), "{file}");
    let cosigned = |more: &[&str]| publish(&[&["--passphrase-file", "right", "--witness-key", "w.key"], more].concat());
    assert!(cosigned(&[]).contains("no terminal"));
    assert!(cosigned(&["--witness-passphrase-file", "right"]).contains("wrong passphrase"));
    let right = cosigned(&["--witness-passphrase-file", "other"]);
    assert!(right.contains("connect to the database"), "{right}");
    let signed = run(&["sign", "--key", "w.key", "--passphrase-file", "other"]);
    assert!(signed.stdout.is_empty() && said(&signed).contains("a witness's key, not a log's"), "{}", said(&signed));
    for mixed in [&["--tenant-key"][..], &["--signer", "x"]] {
        let both = run(&[&["keygen", "--witness", "--out", "x.key"], mixed].concat());
        assert_eq!((both.status.code(), dir.path().join("x.key").exists()), (Some(2), false), "{}", said(&both));
    }
}

/// Somebody at a terminal: `script` makes one.
#[test]
fn a_passphrase_is_asked_for_twice_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let at_terminal = |command: &str, typed: &[&str]| {
        let mut child = Command::new("script")
            .args(["-qec", command, "/dev/null"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script, of util-linux");
        let mut keyboard = child.stdin.take().unwrap();
        let mut screen = child.stdout.take().unwrap();
        let mut shown = String::new();
        for line in typed {
            // One line at a time, each after its question: what is typed before echo is off would be shown.
            while !shown.ends_with(": ") {
                let mut byte = [0];
                if std::io::Read::read(&mut screen, &mut byte).unwrap() == 0 {
                    break;
                }
                shown.push(char::from(byte[0]));
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
            let _ = keyboard.write_all(format!("{line}\n").as_bytes());
            shown.push('|');
        }
        std::io::Read::read_to_string(&mut screen, &mut shown).unwrap();
        (child.wait().unwrap().code(), shown)
    };
    let agd = env!("CARGO_BIN_EXE_agd");
    let keygen = format!("{agd} keygen --signer me --out me.key --passphrase");
    let (code, shown) = at_terminal(&keygen, &["correct horse", "correct mouse"]);
    assert_eq!((code, shown.contains("differ")), (Some(2), true), "{shown}");
    let (code, shown) = at_terminal(&keygen, &["correct horse", "correct horse"]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("New passphrase of me.key: ") && !shown.contains("horse"), "{shown}");
    private(dir.path(), "statement", "statement\n");
    let (code, shown) = at_terminal(&format!("{agd} sign --key me.key --hex < statement"), &["correct horse"]);
    assert_eq!(
        (code, shown.contains("Passphrase of me.key: "), shown.contains("horse")),
        (Some(0), true, false),
        "{shown}"
    );
    let (code, shown) = at_terminal(&format!("{agd} sign --key me.key --hex < statement"), &["correct mouse"]);
    assert_eq!((code, shown.contains("wrong passphrase")), (Some(2), true), "{shown}");
}
