//! The program itself: arguments, exit codes, what it prints.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use crate::common::*;

fn agd(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agd"));
    command.args(args).env_remove("AGD_DATABASE").env_remove("PGPASSWORD");
    command.output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn keygen_prints_the_vkey_and_never_the_secret() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.key");
    let output = agd(&["keygen", "--out", text(&file), "--name", PLATFORM]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let vkey = stdout(&output);
    let key = agd_cli::key::LogKey::load(&file, &agd_cli::passphrase::Source::Terminal).unwrap();
    assert_eq!(vkey, format!("{}\n", key.verifier()));
    assert!(agd_cli::policy::Policy::parse(format!("log {vkey}quorum none\n").as_bytes()).is_ok());
    assert!(stderr(&output).is_empty());

    let again = agd(&["keygen", "--out", text(&file), "--name", PLATFORM]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("never overwritten"));
    let wrong = agd(&["keygen", "--out", text(&dir.path().join("b.key")), "--name", "No Such Name"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(!dir.path().join("b.key").exists());
}

#[test]
fn publish_says_why_it_could_not_begin() {
    let dir = tempfile::tempdir().unwrap();
    let (file, store) = (dir.path().join("log.key"), dir.path().join("store"));
    key().save(&file).unwrap();
    let run = |database: &str, location: &str| {
        let output = agd(&["publish", "--database", database, "--store", location, "--key", text(&file), "--once"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        stderr(&output)
    };
    let nowhere = "host=/nonexistent-agd user=x password=hunter2";
    assert!(run(nowhere, text(&store)).contains("No such file"));
    assert!(run(nowhere, "ftp://bucket/x").contains("only file:// and s3://"));
    std::fs::create_dir(&store).unwrap();
    let message = run(nowhere, &format!("file://{}", text(&store)));
    assert!(message.contains("connect to the database"), "{message}");
    assert!(!message.contains("hunter2"));
    assert!(run("host=db sslmode=require", text(&store)).contains("TLS"));
    let held = agd_cli::store::Writer::open(&store, fast_files(None).0).unwrap();
    assert!(run(nowhere, text(&store)).contains("another publisher"));
    drop(held);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(run(nowhere, text(&store)).contains("chmod 600"));
}

#[test]
fn publish_tells_programs_in_json() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.key");
    key().save(&file).unwrap();
    let store = dir.path();
    let args = [
        "publish",
        "--database",
        "host=/nonexistent-agd user=x",
        "--store",
        text(store),
        "--key",
        text(&file),
        "--once",
        "--json",
    ];
    let output = agd(&args);
    assert_eq!(output.status.code(), Some(2));
    let lines: Vec<serde_json::Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["event"], "failed");
    assert_eq!(lines[1]["event"], "end");
    assert_eq!(lines[1]["exit_code"], 2);
}

#[test]
fn publish_goes_on_until_it_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.key");
    key().save(&file).unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    for signal in ["-TERM", "-INT"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_agd"))
            .args([
                "publish",
                "--database",
                "host=/nonexistent-agd user=x",
                "--store",
                text(&store),
                "--key",
                text(&file),
            ])
            .args(["--interval", "1m"])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The first complaint comes after the signals were set up.
        let mut line = String::new();
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        std::io::BufRead::read_line(&mut stderr, &mut line).unwrap();
        assert!(line.starts_with("failed connect to the database"), "{line}");
        assert!(child.try_wait().unwrap().is_none());
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(2));
    }
}

#[test]
fn verify_exits_with_its_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let (store, policy) = (dir.path().join("a store"), dir.path().join("policy.txt"));
    std::fs::create_dir(&store).unwrap();
    let mut database = FakeDatabase::new();
    database.write(Some("acme"), 300);
    publish(&store, &mut database);
    std::fs::write(&policy, format!("# ours\nlog {}\nquorum none\n", key().verifier())).unwrap();
    let url = format!("file://{}", text(&store).replace(' ', "%20"));

    let good = agd(&["verify", &url, "--policy", text(&policy)]);
    assert_eq!(good.status.code(), Some(0), "{}", stderr(&good));
    assert!(
        stdout(&good).lines().last().unwrap().starts_with("OK: 2 logs, 302 entries, 3 checkpoints"),
        "{}",
        stdout(&good)
    );
    assert!(!stdout(&good).contains('\u{1b}'), "no colours in a pipe");
    let unsigned = agd(&["verify", text(&store)]);
    assert_eq!(unsigned.status.code(), Some(2));

    let tile = format!("{}/tile/0/000", tenant_origin("acme"));
    overwrite(&store, &tile, &[0; 8192]);
    let wrong = agd(&["verify", text(&store), "--policy", text(&policy), "--json"]);
    assert_eq!(wrong.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_str(&stdout(&wrong)).unwrap();
    assert_eq!(json["exit_code"], 1);
    assert_eq!(json["logs"][1]["findings"][0]["file"], tile);

    for args in [
        ["verify", "/nonexistent-agd", "--policy", text(&policy)],
        ["verify", "s3://x", "--policy", text(&policy)],
        ["verify", text(&store), "--policy", "/nonexistent-agd"],
        ["verify", text(&store), "--polcy", text(&policy)],
    ] {
        let output = agd(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
    std::fs::write(&policy, "quorum X\n").unwrap();
    let output = agd(&["verify", text(&store), "--policy", text(&policy)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("line 1"), "{}", stderr(&output));
}
