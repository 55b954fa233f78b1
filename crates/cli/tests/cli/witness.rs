//! The witness: what it cosigns, what a crash leaves, and what a policy's quorum asks of the store.

use crate::common::*;
use agd_cli::policy::Policy;
use agd_cli::publish::{Publisher, Refusal, Round};
use agd_cli::store::{self, Writer};
use agd_cli::witness::{Witness, WitnessError};
use agd_core::SignedNote;
use std::path::Path;
use zeroize::Zeroizing;

const TIME: u64 = 1_795_300_000;

fn cosigned(root: &Path, database: &mut FakeDatabase, time: u64) -> Round {
    let round = publisher(root).with_witness(witness(2, time)).round(database, &mut |_| {});
    assert!(round.refusals.is_empty() && round.failures.is_empty(), "{round:?}");
    round
}

fn quorum(lines: &str) -> Policy {
    let [w2, w3] = [2, 3].map(|seed| witness_key(seed).verifier().to_string());
    let text = format!("log {}\nwitness two {w2}\nwitness three {w3}\n{lines}\n", key().verifier());
    Policy::parse(text.as_bytes()).unwrap()
}

fn sample() -> FakeDatabase {
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    database.write(Some("acme"), 300);
    database
}

#[test]
fn every_checkpoint_is_cosigned_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    cosigned(dir.path(), &mut database, TIME);
    let files = files(dir.path());
    for (origin, log) in &database.logs {
        for size in log.anchors.keys() {
            let bytes = &files[&store::checkpoint_path(origin, *size)];
            let note = SignedNote::parse(bytes).unwrap();
            let keys = [key().signer(origin).unwrap().verifier_key().clone(), witness_key(2).verifier().clone()];
            assert_eq!(note.verify(&keys).unwrap().len(), 2);
            assert_eq!(note.signatures()[1].cosignature_time(), Some(TIME));
            assert_eq!(log.notes[size].as_bytes(), bytes, "the database has the note with both lines");
        }
    }
    let good = verify_with(dir.path(), Some(&quorum("quorum two")));
    assert_eq!(good.exit_code(), 0, "{:?}", findings(&good));
    let platform = database.logs[PLATFORM].anchors.len() as u64;
    assert_eq!((good.logs[0].result.cosigned, good.logs[1].result.cosigned), (Some(platform), None));
    for (lines, code) in [
        ("quorum none", 0),
        ("quorum three", 1),
        ("group all-of all two three\nquorum all-of", 1),
        ("group one-of any two three\nquorum one-of", 0),
    ] {
        let report = verify_with(dir.path(), Some(&quorum(lines)));
        assert_eq!(report.exit_code(), code, "{lines}: {:?}", findings(&report));
        // Only the platform log is asked: it covers the tenants'.
        assert!(findings(&report).iter().all(|(file, text)| !file.contains("/t/") && text.contains("quorum")));
    }
}

#[test]
fn a_tenants_log_alone_has_its_own_cosignatures() {
    let dir = tempfile::tempdir().unwrap();
    cosigned(dir.path(), &mut sample(), TIME);
    for name in ["checkpoint", "checkpoints", "tile"] {
        let path = dir.path().join(PLATFORM).join(name);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    let acme = key().signer(&tenant_origin("acme")).unwrap().verifier_key().to_string();
    let [w2, w3] = [2, 3].map(|seed| witness_key(seed).verifier().to_string());
    for (witness, code) in [(w2, 0), (w3, 1)] {
        let policy = format!("log {acme}\nwitness w {witness}\nquorum w\n");
        let report = verify_with(dir.path(), Some(&Policy::parse(policy.as_bytes()).unwrap()));
        assert_eq!(report.exit_code(), code, "{:?}", findings(&report));
    }
}

#[test]
fn a_stripped_or_forged_cosignature_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    cosigned(dir.path(), &mut database, TIME);
    let name = store::checkpoint_path(PLATFORM, 3);
    let bytes = files(dir.path())[&name].clone();
    let text = String::from_utf8(bytes).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let stripped = format!("{}\n", lines[..lines.len() - 1].join("\n"));
    overwrite(dir.path(), &name, stripped.as_bytes());
    let report = verify_with(dir.path(), Some(&quorum("quorum two")));
    assert_eq!(report.exit_code(), 1);
    assert_eq!(findings(&report)[0].0, name);
    // Another checkpoint's cosignature.
    let other = files(dir.path())[&format!("{PLATFORM}/checkpoint")].clone();
    let other = String::from_utf8(other).unwrap();
    let forged = format!("{stripped}{}\n", other.lines().last().unwrap());
    overwrite(dir.path(), &name, forged.as_bytes());
    let report = verify_with(dir.path(), Some(&quorum("quorum two")));
    assert!(findings(&report)[0].1.contains("is false"), "{:?}", findings(&report));
    // The publisher takes nothing of the kind up either, where it needs it.
    let newest = store::newest_path(PLATFORM);
    let forged = other.replace(other.lines().last().unwrap(), lines.last().unwrap());
    overwrite(dir.path(), &newest, forged.as_bytes());
    let round = publisher(dir.path()).with_witness(witness(2, TIME)).round(&mut database, &mut |_| {});
    assert!(matches!(&round.refusals[..], [Refusal::Store { origin, .. }] if origin == PLATFORM), "{round:?}");
}

#[test]
fn the_time_never_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    cosigned(dir.path(), &mut database, TIME);
    let time = |database: &FakeDatabase| {
        let (_, note) = database.logs[PLATFORM].notes.last_key_value().unwrap();
        SignedNote::parse(note).unwrap().signatures()[1].cosignature_time().unwrap()
    };
    assert_eq!(time(&database), TIME);
    database.write(None, 2);
    cosigned(dir.path(), &mut database, TIME - 1_000);
    assert_eq!(time(&database), TIME);
    database.write(None, 2);
    cosigned(dir.path(), &mut database, TIME + 9);
    assert_eq!(time(&database), TIME + 9);
    assert_eq!(verify_with(dir.path(), Some(&quorum("quorum two"))).exit_code(), 0);
}

#[test]
fn a_late_smaller_anchor_is_signed_but_not_cosigned() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    let acme = tenant_origin("acme");
    let late = database.log(&acme).anchors.remove(&256).unwrap();
    cosigned(dir.path(), &mut database, TIME);
    database.log(&acme).anchors.insert(256, late);
    cosigned(dir.path(), &mut database, TIME + 5);
    let note = SignedNote::parse(&files(dir.path())[&store::checkpoint_path(&acme, 256)]).unwrap();
    assert_eq!(note.signatures().len(), 1, "the witness has seen 300 already");
}

#[test]
fn a_late_anchor_below_one_signed_before_a_crash_is_not_cosigned() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    let acme = tenant_origin("acme");
    cosigned(dir.path(), &mut database, TIME);
    let newest = store::newest_path(&acme);
    let before = files(dir.path())[&newest].clone();
    database.write(Some("acme"), 100);
    database.write(Some("acme"), 50);
    let late = database.log(&acme).anchors.remove(&400).unwrap();
    cosigned(dir.path(), &mut database, TIME);
    let signed = files(dir.path())[&store::checkpoint_path(&acme, 450)].clone();
    // As if the publisher had died before it replaced the newest checkpoint.
    overwrite(dir.path(), &newest, &before);
    database.log(&acme).anchors.insert(400, late);
    cosigned(dir.path(), &mut database, TIME + 5);
    let files = files(dir.path());
    assert_eq!(files[&store::checkpoint_path(&acme, 450)], signed);
    assert_eq!(files[&newest], signed);
    let note = SignedNote::parse(&files[&store::checkpoint_path(&acme, 400)]).unwrap();
    assert_eq!(note.signatures().len(), 1);
}

/// The publisher stops after k operations on files, for every k, and the clock goes on: what is there stays as it is.
#[test]
fn a_crash_never_makes_a_second_cosignature() {
    let mut sample = FakeDatabase::new();
    sample.write(Some("acme"), 258);
    let dir = tempfile::tempdir().unwrap();
    for k in 0.. {
        let root = dir.path().join(k.to_string());
        std::fs::create_dir(&root).unwrap();
        let mut database = sample.clone();
        let (files_left, done) = fast_files(Some(k));
        let crashed = match Writer::open(&root, files_left) {
            Ok(store) => {
                let mut publisher =
                    Publisher::new(store, key(), String::new(), no_memory(&key())).with_witness(witness(2, TIME));
                !publisher.round(&mut database, &mut |_| {}).failures.is_empty()
            }
            Err(_) => true,
        };
        let before = files(&root);
        cosigned(&root, &mut database, TIME + 60);
        let after = files(&root);
        for (name, bytes) in before {
            assert!(after[&name] == bytes || name.ends_with("/checkpoint"), "k = {k}: {name} was overwritten");
        }
        let report = verify_with(&root, Some(&quorum("quorum two")));
        assert_eq!(report.exit_code(), 0, "k = {k}: {:?}", findings(&report));
        for (origin, log) in &database.logs {
            for (size, note) in &log.notes {
                assert_eq!(note.as_bytes(), after[&store::checkpoint_path(origin, *size)], "k = {k}");
            }
        }
        std::fs::remove_dir_all(&root).unwrap();
        if !crashed {
            assert!(done.get() <= k);
            break;
        }
    }
}

#[test]
fn a_run_without_the_witness_takes_up_what_it_left() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    cosigned(dir.path(), &mut database, TIME);
    database.write(Some("acme"), 10);
    assert_eq!(publish(dir.path(), &mut database).exit_code(), 0);
    assert_eq!(verify(dir.path()).exit_code(), 0);
    // From then on the quorum is not reached, and the file is named.
    let report = verify_with(dir.path(), Some(&quorum("quorum two")));
    assert_eq!(report.exit_code(), 1);
}

#[test]
fn the_log_is_not_its_own_witness() {
    let same_key = agd_cli::key::WitnessKey::from_seed("other", Zeroizing::new([7; 32])).unwrap();
    assert!(matches!(Witness::new(&same_key, &key()), Err(WitnessError::SameAsLog("key"))));
    let same_name = agd_cli::key::WitnessKey::from_seed(PLATFORM, Zeroizing::new([8; 32])).unwrap();
    assert!(matches!(Witness::new(&same_name, &key()), Err(WitnessError::SameAsLog("name"))));
}
