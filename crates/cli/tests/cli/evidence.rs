//! Proofs from a store, and their check: what holds holds, and nothing else does.

use std::path::Path;
use std::process::{Command, Output};

use crate::common::*;
use agd_cli::verify_proof::check;
use agd_core::dump::write_header;
use agd_core::{DumpedEvent, Image, LogRange, TlogProof, entry};

fn agd(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agd"));
    command.args(args).env_remove("AGD_DATABASE").env_remove("PGPASSWORD").output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn sample() -> (tempfile::TempDir, FakeDatabase) {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    database.write(Some("acme"), 300);
    assert_eq!(publish(&store, &mut database).exit_code(), 0);
    std::fs::write(dir.path().join("policy.txt"), format!("log {}\nquorum none\n", key().verifier())).unwrap();
    (dir, database)
}

#[test]
fn a_proof_from_the_store_alone_holds() {
    let (dir, database) = sample();
    let (store, policy) = (dir.path().join("store"), dir.path().join("policy.txt"));
    let origin = tenant_origin("acme");
    for index in [0_usize, 1, 255, 256, 299] {
        let bytes = &database.logs[&origin].entries[index];
        let event_id = entry::parse(bytes).unwrap().event_id.to_string();
        let file = dir.path().join(format!("{index}.tlog-proof"));
        let made = agd(&["prove", &event_id, "--store", text(&store), "--out", text(&file)]);
        assert_eq!((made.status.code(), &made.stdout[..]), (Some(0), &b""[..]), "{made:?}");
        let checked = agd(&["verify-proof", text(&file), "--policy", text(&policy)]);
        assert_eq!(checked.status.code(), Some(0), "{checked:?}");
        let told = stdout(&checked);
        assert!(told.contains(&format!("event        {event_id}\n")), "{told}");
        assert!(told.contains("what         INSERT public.orders\n"), "{told}");
        assert!(told.contains("why          a cause with \"quotes\" and ü\n"), "{told}");
        assert!(told.lines().last().unwrap().starts_with("OK: "), "{told}");
        let json = agd(&["verify-proof", text(&file), "--policy", text(&policy), "--json"]);
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!((json["index"].as_u64(), json["exit_code"].as_u64()), (Some(index as u64), Some(0)));
        assert_eq!(json["entry"]["event_id"], event_id);
        // It is never overwritten, and without a policy it is nobody's word.
        assert_eq!(agd(&["prove", &event_id, "--store", text(&store), "--out", text(&file)]).status.code(), Some(2));
        assert_eq!(agd(&["verify-proof", text(&file)]).status.code(), Some(2));
    }
    for nowhere in [
        &["prove", "99999-1", "--store", text(&store)][..],
        &["prove", "1-1", "--store", text(&store), "--tenant", "acme"],
    ] {
        let output = agd(nowhere);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no published log"), "{output:?}");
    }
    assert_eq!(agd(&["prove", "no-id", "--store", text(&store)]).status.code(), Some(2));
    assert_eq!(agd(&["prove", "1-1"]).status.code(), Some(2));
}

#[test]
fn a_store_that_was_changed_gives_no_proof() {
    let (dir, database) = sample();
    let store = dir.path().join("store");
    let origin = tenant_origin("acme");
    let event_id = entry::parse(&database.logs[&origin].entries[7]).unwrap().event_id.to_string();
    for path in [format!("{origin}/tile/0/000"), format!("{origin}/tile/0/001.p/44")] {
        let whole = std::fs::read(store.join(&path)).unwrap();
        let mut wrong = whole.clone();
        wrong[32 * 6] ^= 1;
        overwrite(&store, &path, &wrong);
        let output = agd(&["prove", &event_id, "--store", text(&store)]);
        assert_eq!(output.status.code(), Some(1), "{path}: {output:?}");
        assert!(output.stdout.is_empty());
        overwrite(&store, &path, &whole);
    }
}

/// The proof of the tenant's entry 7, its entry, and its text.
fn proof(dir: &Path, database: &FakeDatabase) -> (TlogProof, Vec<u8>, String) {
    let bytes = database.logs[&tenant_origin("acme")].entries[7].clone();
    let event_id = entry::parse(&bytes).unwrap().event_id.to_string();
    let text = stdout(&agd(&["prove", &event_id, "--store", text(&dir.join("store"))]));
    (TlogProof::parse(&text).unwrap(), bytes, text)
}

#[test]
fn whatever_is_changed_in_a_proof_is_found() {
    let (dir, database) = sample();
    let (good, _, text) = proof(dir.path(), &database);
    assert_eq!(check(&good, None, Some(&policy()), None).exit_code(), 0);
    let mut refused = 0;
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        let Some(other) = std::str::from_utf8(&bytes).ok().and_then(|text| TlogProof::parse(text).ok()) else {
            refused += 1;
            continue;
        };
        assert_ne!(check(&other, None, Some(&policy()), None).exit_code(), 0, "byte {at}");
    }
    assert!(refused > 0 && refused < text.len());
}

#[test]
fn another_entry_and_a_missing_one() {
    let (dir, database) = sample();
    let (good, bytes, _) = proof(dir.path(), &database);
    let other = &database.logs[&tenant_origin("acme")].entries[8];
    assert_eq!(check(&good, Some(&bytes), Some(&policy()), None).exit_code(), 0);
    assert_eq!(check(&good, Some(other), Some(&policy()), None).findings.len(), 2);
    let bare = TlogProof::new(Vec::new(), good.index(), good.path().to_vec(), good.note().clone()).unwrap();
    assert_eq!(check(&bare, None, Some(&policy()), None).exit_code(), 2);
    assert_eq!(check(&bare, Some(&bytes), Some(&policy()), None).exit_code(), 0);
    assert_eq!(check(&bare, Some(other), Some(&policy()), None).exit_code(), 1);
    // A key for another log says nothing; another key for this one says that it is false.
    let key_of = |name: &str| {
        let key = agd_cli::key::LogKey::from_seed(name, zeroize::Zeroizing::new([9; 32])).unwrap();
        agd_cli::policy::Policy::parse(format!("log {}\nquorum none\n", key.verifier()).as_bytes()).unwrap()
    };
    assert_eq!(check(&good, None, Some(&key_of("agd-2/other")), None).exit_code(), 2);
    assert_eq!(check(&good, None, Some(&key_of(PLATFORM)), None).exit_code(), 1);
}

#[test]
fn the_event_of_a_dump_is_checked_and_shown() {
    let (dir, database) = sample();
    let (good, bytes, _) = proof(dir.path(), &database);
    let id = entry::parse(&bytes).unwrap().event_id;
    let event = DumpedEvent {
        origin: tenant_origin("acme").into(),
        index: 7,
        entry: (&bytes).into(),
        salt: Some([id.xact_id as u8; 16]),
        key: Image::Text(id.xact_id.to_string().into()),
        new: Image::Text("2".into()),
        old: Image::None,
    };
    let line = |event: &DumpedEvent<'_>| {
        let mut line = Vec::new();
        event.encode_into(&mut line);
        line.push(b'\n');
        line
    };
    let with = |file: &[u8]| check(&good, None, Some(&policy()), Some(file));
    let alone = with(&line(&event));
    assert_eq!((alone.exit_code(), alone.images.len()), (0, 2), "{:?}", alone.findings);
    assert!(alone.text().contains("new          2\n"), "{}", alone.text());
    let mut dump = Vec::new();
    let range = LogRange { origin: tenant_origin("acme"), first: 0, last: 300, images: true };
    write_header(&[range], &mut dump);
    dump.push(b'\n');
    assert_eq!(with(&[&dump[..], &line(&event)].concat()).exit_code(), 0);
    assert_eq!(with(&dump).exit_code(), 1);
    let erased = with(&line(&DumpedEvent { new: Image::Erased, ..event.clone() }));
    assert_eq!((erased.exit_code(), erased.images[1].clone()), (0, ("new", None)));
    for wrong in [
        DumpedEvent { new: Image::Text("3".into()), ..event.clone() },
        DumpedEvent { index: 8, ..event.clone() },
        DumpedEvent { origin: PLATFORM.into(), ..event.clone() },
        DumpedEvent { new: Image::None, ..event.clone() },
    ] {
        assert_eq!(with(&line(&wrong)).exit_code(), 1, "{wrong:?}");
    }
}

#[test]
fn a_proof_is_asked_for_the_policys_quorum() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let mut database = FakeDatabase::new();
    database.write(Some("acme"), 3);
    let round = publisher(&store).with_witness(witness(2, 1_795_300_000)).round(&mut database, &mut |_| {});
    assert_eq!(round.exit_code(), 0, "{round:?}");
    let event_id = entry::parse(&database.logs[&tenant_origin("acme")].entries[1]).unwrap().event_id.to_string();
    let (file, policy) = (dir.path().join("a.tlog-proof"), dir.path().join("policy.txt"));
    let made = agd(&["prove", &event_id, "--store", text(&store), "--out", text(&file)]);
    assert_eq!(made.status.code(), Some(0), "{made:?}");
    let log = key().verifier().to_string();
    for (seed, code, words) in [(2, 0, "OK: "), (3, 1, "the quorum of witnesses is not reached")] {
        let cosigner = witness_key(seed).verifier().to_string();
        std::fs::write(&policy, format!("log {log}\nwitness w {cosigner}\nquorum w\n")).unwrap();
        let checked = agd(&["verify-proof", text(&file), "--policy", text(&policy)]);
        assert_eq!(checked.status.code(), Some(code), "{checked:?}");
        assert!(stdout(&checked).contains(words), "{checked:?}");
    }
}
