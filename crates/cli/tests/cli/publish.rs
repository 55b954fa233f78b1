//! The publisher: what it writes, what it refuses, and what a crash leaves.

use crate::common::*;
use agd_cli::publish::{CHUNK, Publisher, Refusal};
use agd_cli::store::{self, Writer};
use agd_core::{SignedNote, tile};

fn ok(round: &agd_cli::publish::Round) {
    assert!(round.refusals.is_empty(), "{:?}", round.refusals);
    assert!(round.failures.is_empty(), "{:?}", round.failures);
}

/// A database with tails, full tiles and a tenant of one event.
fn sample() -> FakeDatabase {
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    database.write(Some("acme"), 300);
    database.write(Some("acme"), 400);
    database.write(Some("beta"), 1);
    database
}

#[test]
fn a_store_is_the_tlog_tiles_tree_of_each_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    let round = publish(dir.path(), &mut database);
    ok(&round);
    let logs: Vec<_> = round.published.iter().map(|p| (p.tenant.as_deref(), p.from, p.to, p.anchors)).collect();
    let platform = database.logs[PLATFORM].entries.len() as u64;
    let anchors = database.logs[PLATFORM].anchors.len() as u64;
    assert_eq!(logs, [(Some("acme"), 0, 700, 4), (Some("beta"), 0, 1, 1), (None, 0, platform, anchors)]);

    let files = files(dir.path());
    for (origin, log) in &database.logs {
        let size = log.entries.len() as u64;
        for coord in tile::tiles_for_size(size) {
            assert!(files.contains_key(&format!("{origin}/{}", coord.path())), "{coord:?}");
            if coord.level == 0 {
                let bundle = &files[&format!("{origin}/{}", coord.entries_path())];
                let first = (coord.index * 256) as usize;
                let entries = agd_core::bundle::parse(bundle, coord.width).unwrap();
                assert_eq!(entries, log.entries[first..first + usize::from(coord.width)]);
            }
        }
        let newest = &files[&store::newest_path(origin)];
        assert_eq!(newest, &files[&store::checkpoint_path(origin, size)]);
        for (size, root) in &log.anchors {
            let note = SignedNote::parse(&files[&store::checkpoint_path(origin, *size)]).unwrap();
            let key = key().signer(origin).unwrap();
            note.verify(std::slice::from_ref(key.verifier_key())).unwrap();
            let body = agd_core::Checkpoint::parse(note.text()).unwrap();
            assert_eq!((&body.origin, body.size, body.root), (origin, *size, *root));
            assert_eq!(log.notes[size], note.to_string(), "the database has the note that is in the store");
        }
        assert!(log.anchors.keys().eq(log.published.keys()), "everything is recorded");
        assert_eq!(log.published[&size], "file:///worm");
    }
    assert_eq!(verify(dir.path()).exit_code(), 0);
}

#[test]
fn a_second_round_has_nothing_to_do_and_a_later_one_continues() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    ok(&publish(dir.path(), &mut database));
    let before = files(dir.path());
    let calls = database.entry_calls;
    let round = publish(dir.path(), &mut database);
    ok(&round);
    assert!(round.published.is_empty());
    assert_eq!(database.entry_calls, calls);
    assert_eq!(files(dir.path()), before);

    for count in [1, 55, 12, 256, 600] {
        database.write(Some("acme"), count);
        let round = publish(dir.path(), &mut database);
        ok(&round);
        assert_eq!(round.published.len(), 2);
        assert_eq!(verify(dir.path()).exit_code(), 0);
    }
    let after = files(dir.path());
    let immutable = before.iter().filter(|(name, _)| !name.ends_with("/checkpoint"));
    for (name, bytes) in immutable {
        assert_eq!(after.get(name), Some(bytes), "{name} stays as it was");
    }
}

#[test]
fn rounds_of_one_process_go_on_where_they_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    let mut publisher = publisher(dir.path());
    for count in [0, 5, 251, 256, 1] {
        if count > 0 {
            database.write(Some("acme"), count);
        }
        ok(&publisher.round(&mut database, &mut |_| {}));
    }
    let round = publisher.round(&mut database, &mut |_| {});
    assert!(round.published.is_empty());
    drop(publisher);
    assert_eq!(verify(dir.path()).exit_code(), 0);
}

#[test]
fn many_chunks_give_the_same_store_as_any_other_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = FakeDatabase::new();
    database.write(None, 2 * CHUNK + 300);
    ok(&publish(dir.path(), &mut database));
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
    assert_eq!(report.logs[0].result.entries, 2 * CHUNK + 300);
    // One upper level and both its partial widths.
    assert!(dir.path().join(PLATFORM).join("tile/1/000.p/128").exists());
    assert!(dir.path().join(PLATFORM).join("tile/1/000.p/129").exists());
}

#[test]
fn an_empty_log_is_published_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = FakeDatabase::new();
    database.log(PLATFORM).anchors.insert(0, agd_core::empty_root());
    let round = publish(dir.path(), &mut database);
    ok(&round);
    assert_eq!(round.published.len(), 1);
    assert!(publish(dir.path(), &mut database).published.is_empty());
    assert_eq!(verify(dir.path()).exit_code(), 0);
    database.write(None, 10);
    ok(&publish(dir.path(), &mut database));
    assert_eq!(verify(dir.path()).exit_code(), 0);
}

/// Publishes, lets `tamper` change the database, publishes again: refused with exit code 1, that log's files as before.
fn refused(tamper: impl FnOnce(&mut FakeDatabase)) -> Refusal {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    ok(&publish(dir.path(), &mut database));
    let before = files(dir.path());
    tamper(&mut database);
    let round = publish(dir.path(), &mut database);
    assert_eq!(round.exit_code(), 1);
    let [refusal] = &round.refusals[..] else {
        panic!("one refusal: {:?}", round.refusals);
    };
    let of = |files: std::collections::BTreeMap<String, Vec<u8>>| -> Vec<_> {
        let prefix = format!("{}/", refusal.origin());
        files
            .into_iter()
            .filter(|(name, _)| name.starts_with(&prefix) && !name[prefix.len()..].starts_with("t/"))
            .collect()
    };
    assert_eq!(of(files(dir.path())), of(before), "nothing was written for this log");
    // Where its log is not what was published, the database is told, once a round, and the newest checkpoint alone.
    let diverged =
        matches!(refusal, Refusal::NotAContinuation { .. } | Refusal::Shrunk { .. } | Refusal::Vanished { .. });
    let told: Vec<_> = std::mem::take(&mut database.reported);
    assert_eq!(told.len(), usize::from(diverged));
    for (origin, newest) in told {
        assert_eq!(origin, refusal.origin());
        let published = String::from_utf8(files(dir.path())[&store::newest_path(&origin)].clone()).unwrap();
        assert_eq!(newest.note, published);
        let checkpoint = agd_core::Checkpoint::parse(SignedNote::parse(&published).unwrap().text()).unwrap();
        assert_eq!((newest.tree_size as u64, newest.root), (checkpoint.size, checkpoint.root));
    }
    // A second attempt is refused as well, whether the database can be told or not.
    database.reports_left = Some(0);
    let second = publish(dir.path(), &mut database);
    assert_eq!((second.exit_code(), second.failures.len()), (1, usize::from(diverged)));
    assert_eq!(second.refusals, round.refusals);
    database.reports_left = None;
    assert_eq!(publish(dir.path(), &mut database).refusals, round.refusals);
    refusal.clone()
}

#[test]
fn a_rewritten_history_is_refused() {
    let acme = tenant_origin("acme");
    let refusal = refused(|database| {
        let log = database.log(&tenant_origin("acme"));
        log.entries[10] = entry(999_999, 1, Some("acme"), "INSERT", None);
        log.reanchor();
    });
    let text = refusal.to_string();
    let Refusal::NotAContinuation { origin, size, database, ours } = refusal else {
        panic!("{refusal:?}");
    };
    assert_eq!((origin, size), (acme.clone(), 256));
    assert_ne!(database, ours);
    for part in [acme, "256".to_owned(), database, ours] {
        assert!(text.contains(&part), "{text}");
    }
}

#[test]
fn a_fork_below_the_published_size_shows_even_without_the_old_anchors() {
    let refusal = refused(|database| {
        database.write(Some("acme"), 324);
        let log = database.log(&tenant_origin("acme"));
        log.entries[650] = entry(999_999, 1, Some("acme"), "INSERT", None);
        log.reanchor();
        log.anchors.retain(|size, _| *size == 1024);
    });
    assert!(matches!(refusal, Refusal::NotAContinuation { size: 1024, .. }), "{refusal:?}");
}

#[test]
fn an_anchor_that_its_entries_do_not_give_is_refused() {
    let refusal = refused(|database| {
        database.write(Some("acme"), 10);
        *database.log(&tenant_origin("acme")).anchors.get_mut(&710).unwrap() = [1; 32];
    });
    assert!(matches!(refusal, Refusal::NotAContinuation { size: 710, .. }), "{refusal:?}");
}

#[test]
fn an_old_anchor_with_another_root_is_refused() {
    for size in [256, 300, 700] {
        let refusal = refused(|database| {
            *database.log(&tenant_origin("acme")).anchors.get_mut(&size).unwrap() = [1; 32];
        });
        assert!(matches!(refusal, Refusal::NotAContinuation { size: s, .. } if s == size), "{refusal:?}");
    }
}

#[test]
fn a_shrunk_log_is_refused() {
    let refusal = refused(|database| {
        let log = database.log(&tenant_origin("acme"));
        log.entries.truncate(512);
        log.anchors.retain(|size, _| *size <= 512);
    });
    assert!(matches!(refusal, Refusal::Shrunk { published: 700, database: 512, .. }), "{refusal:?}");
}

#[test]
fn a_log_that_vanished_is_refused() {
    let refusal = refused(|database| {
        database.logs.remove(&tenant_origin("beta"));
    });
    assert_eq!(refusal, Refusal::Vanished { origin: tenant_origin("beta"), published: 1 });
    let refusal = refused(|database| {
        database.logs.remove(PLATFORM);
    });
    assert!(matches!(refusal, Refusal::Vanished { published, .. } if published > 0));
}

#[test]
fn a_missing_entry_and_nonsense_are_refused() {
    for tamper in [
        |database: &mut FakeDatabase| {
            database.write(Some("acme"), 10);
            database.log(&tenant_origin("acme")).entries.pop();
        },
        |database: &mut FakeDatabase| {
            database.log(&tenant_origin("acme")).entries.push(vec![b'x'; 65_536]);
            database.anchor(&tenant_origin("acme"));
        },
        |database: &mut FakeDatabase| database.log(&tenant_origin("acme")).tenant = Some("beta".to_owned()),
        |database: &mut FakeDatabase| database.log(&tenant_origin("acme")).tenant = None,
    ] {
        let refusal = refused(tamper);
        assert!(matches!(refusal, Refusal::Malformed { .. }), "{refusal:?}");
    }
}

#[test]
fn another_databases_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    let log = database.logs.remove(PLATFORM).unwrap();
    for origin in ["agd-2/app", "agd-2/app/i2", "agd-1/app/i1", "agd-1/app/t/a/b", "../x"] {
        database.logs.clear();
        database.logs.insert(origin.to_owned(), log.clone());
        let round = publish(dir.path(), &mut database);
        assert!(matches!(round.refusals[..], [Refusal::ForeignOrigin { .. }]), "{origin}");
    }
    assert!(files(dir.path()).is_empty());
}

#[test]
fn one_refused_log_does_not_hold_up_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    ok(&publish(dir.path(), &mut database));
    database.log(&tenant_origin("acme")).anchors.insert(700, [1; 32]);
    database.write(Some("beta"), 5);
    let round = publish(dir.path(), &mut database);
    assert_eq!(round.exit_code(), 1);
    let published: Vec<_> = round.published.iter().map(|p| p.tenant.as_deref()).collect();
    assert_eq!(published, [Some("beta"), None]);
}

#[test]
fn a_store_that_was_tampered_with_is_refused() {
    let acme = tenant_origin("acme");
    let file = |name: &str| format!("{acme}/{name}");
    for name in [
        file("checkpoint"),
        file("checkpoints/00000000000000000700"),
        file("checkpoints/00000000000000000256"),
        file("tile/0/002.p/188"),
        file("tile/1/000.p/2"),
        file("tile/entries/002.p/188"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut database = sample();
        ok(&publish(dir.path(), &mut database));
        database.write(Some("acme"), 1);
        let bytes = files(dir.path())[&name].clone();
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            overwrite(dir.path(), &name, &wrong);
            let round = publish(dir.path(), &mut database);
            assert!(
                matches!(&round.refusals[..], [Refusal::Store { origin, .. }] if *origin == acme),
                "{name} byte {at}: {:?}",
                round.refusals
            );
        }
    }
}

#[test]
fn a_key_that_did_not_sign_the_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    ok(&publish(dir.path(), &mut database));
    database.write(Some("acme"), 1);
    let before = files(dir.path());
    let key = agd_cli::key::LogKey::from_seed(PLATFORM, zeroize::Zeroizing::new([8; 32])).unwrap();
    let store = Writer::open(dir.path(), fast_files(None).0).unwrap();
    let memory = no_memory(&key);
    let round = Publisher::new(store, key, String::new(), memory).round(&mut database, &mut |_| {});
    assert_eq!(round.refusals.len(), 3);
    assert_eq!(files(dir.path()), before);
}

#[test]
fn a_tile_with_other_content_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    let name = format!("{}/tile/0/001", tenant_origin("acme"));
    std::fs::create_dir_all(dir.path().join(&name).parent().unwrap()).unwrap();
    std::fs::write(dir.path().join(&name), b"planted").unwrap();
    let round = publish(dir.path(), &mut database);
    let [Refusal::Store { reason, .. }] = &round.refusals[..] else {
        panic!("{:?}", round.refusals);
    };
    assert!(reason.contains(&name));
    assert_eq!(std::fs::read(dir.path().join(&name)).unwrap(), b"planted");
    assert!(!dir.path().join(tenant_origin("acme")).join("checkpoint").exists());
}

#[test]
fn a_lost_database_is_no_refusal_and_the_platform_log_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    database.entries_left = Some(1);
    let round = publish(dir.path(), &mut database);
    assert_eq!(round.exit_code(), 2);
    assert!(!dir.path().join(PLATFORM).join("checkpoint").exists());
    database.entries_left = None;
    ok(&publish(dir.path(), &mut database));
    assert_eq!(verify(dir.path()).exit_code(), 0);
}

#[test]
fn what_was_not_recorded_is_recorded_later() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    database.records_left = Some(0);
    assert_eq!(publish(dir.path(), &mut database).exit_code(), 2);
    database.records_left = None;
    ok(&publish(dir.path(), &mut database));
    let files = files(dir.path());
    for (origin, log) in &database.logs {
        assert!(log.anchors.keys().eq(log.published.keys()));
        for (size, note) in &log.notes {
            assert_eq!(note.as_bytes(), files[&store::checkpoint_path(origin, *size)]);
        }
        assert!(log.anchors.keys().eq(log.notes.keys()));
    }
}

/// The publisher stops after k operations on files, for every k; the next run must end with the same store.
#[test]
fn a_crash_at_any_point_changes_nothing() {
    crash_at_any_point(Crash::Process);
}

/// The same, and the disk forgets half of each file that was not flushed, with or without the names that were not.
#[test]
fn a_power_failure_at_any_point_changes_nothing() {
    crash_at_any_point(Crash::Contents);
    crash_at_any_point(Crash::Names);
}

/// The same, and the disk forgets the names of some folders and not those of others.
#[test]
fn a_power_failure_that_takes_some_names_changes_nothing() {
    crash_at_any_point(Crash::Tiles);
    crash_at_any_point(Crash::Immutable);
}

fn crash_at_any_point(crash: Crash) {
    let mut sample = FakeDatabase::new();
    sample.write(Some("acme"), 300);
    let mut grown = sample.clone();
    grown.write(Some("acme"), 230);
    let (dir, want_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    ok(&publish(want_dir.path(), &mut sample.clone()));
    ok(&publish(want_dir.path(), &mut grown.clone()));
    let want = files(want_dir.path());

    let mut crashes = 0;
    for k in 0.. {
        let root = dir.path().join(k.to_string());
        std::fs::create_dir(&root).unwrap();
        let (files_left, done) = crashing_files(Some(k), crash);
        let mut database = sample.clone();
        let crashed = match Writer::open(&root, files_left) {
            Ok(store) => {
                let mut publisher = Publisher::new(store, key(), String::new(), no_memory(&key()));
                let first = publisher.round(&mut database, &mut |_| {});
                // The process would be gone: nothing is recorded that was not before.
                let second = publisher.round(&mut database.clone(), &mut |_| {});
                assert!(second.refusals.is_empty(), "{:?}", second.refusals);
                !first.failures.is_empty()
            }
            Err(_) => true,
        };
        // Whatever is there can be verified: only what the crash kept from being written is missing.
        if root.join(PLATFORM).join("checkpoint").exists() {
            let report = verify(&root);
            assert_eq!(report.exit_code(), 0, "{crash:?} {k}: {:?}", findings(&report));
        }
        ok(&publish(&root, &mut database));
        let report = verify(&root);
        assert_eq!(report.exit_code(), 0, "{crash:?} {k}: {:?}", findings(&report));
        // The same database goes on growing.
        let mut next = grown.clone();
        for (origin, log) in &database.logs {
            next.log(origin).published = log.published.clone();
        }
        ok(&publish(&root, &mut next));
        assert_eq!(files(&root), want, "{crash:?} {k}");
        std::fs::remove_dir_all(&root).unwrap();
        if !crashed {
            assert!(done.get() <= k);
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 50, "the crash was injected at {crashes} points");
}

/// After a crash between a signed checkpoint and `checkpoint`, the signed one binds the publisher.
#[test]
fn a_checkpoint_signed_just_before_a_crash_still_binds() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = FakeDatabase::new();
    database.write(Some("acme"), 256);
    ok(&publish(dir.path(), &mut database));
    let acme = tenant_origin("acme");
    let newest = dir.path().join(&acme).join("checkpoint");
    let before = std::fs::read(&newest).unwrap();
    let mut grown = database.clone();
    grown.write(Some("acme"), 44);
    ok(&publish(dir.path(), &mut grown));
    std::fs::remove_file(&newest).unwrap();
    std::fs::write(&newest, before).unwrap();

    // The database comes back from a backup and takes another way.
    let mut fork = database.clone();
    fork.xact += 100;
    fork.write(Some("acme"), 20);
    let round = publish(dir.path(), &mut fork);
    assert!(matches!(round.refusals[0], Refusal::Shrunk { published: 300, database: 276, .. }), "{:?}", round.refusals);
    fork.write(Some("acme"), 300);
    // A platform log that is another one would keep all from being signed.
    fork.logs.insert(PLATFORM.to_owned(), grown.logs[PLATFORM].clone());
    let round = publish(dir.path(), &mut fork);
    assert!(matches!(round.refusals[0], Refusal::NotAContinuation { size: 300, .. }), "{:?}", round.refusals);
    assert!(!dir.path().join(store::checkpoint_path(&acme, 276)).exists());
    // The true continuation is published.
    ok(&publish(dir.path(), &mut grown));
    assert_eq!(verify(dir.path()).exit_code(), 0);
}

#[test]
fn an_anchor_found_late_is_signed_when_it_fits() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    let acme = tenant_origin("acme");
    let late = database.log(&acme).anchors.remove(&512).unwrap();
    ok(&publish(dir.path(), &mut database));
    database.log(&acme).anchors.insert(512, late);
    ok(&publish(dir.path(), &mut database));
    assert!(dir.path().join(store::checkpoint_path(&acme, 512)).exists());
    assert_eq!(verify(dir.path()).exit_code(), 0);
}
