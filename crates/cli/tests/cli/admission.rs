//! What is refused before anything is signed: another database, a copy, an older or emptied store, an old server.

use std::path::{Path, PathBuf};

use crate::common::*;
use agd_cli::publish::{Failure, Refusal, Round};
use agd_core::{Checkpoint, Incarnation};

const PLACE: &str = "file:///worm";

fn ok(round: &Round) {
    assert!(round.refusals.is_empty(), "{:?}", round.refusals);
    assert!(round.failures.is_empty(), "{:?}", round.failures);
}

fn sample() -> FakeDatabase {
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    database.write(Some("acme"), 300);
    database.write(Some("beta"), 1);
    database
}

/// A store and the state beside a key.
struct Scene {
    dir: tempfile::TempDir,
    database: FakeDatabase,
}

impl Scene {
    fn new() -> Self {
        let mut scene = Self { dir: tempfile::tempdir().unwrap(), database: sample() };
        std::fs::create_dir(scene.store()).unwrap();
        ok(&scene.publish(|publisher| publisher));
        scene
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("log.key.state")
    }

    fn publish(&mut self, with: impl FnOnce(agd_cli::publish::Publisher) -> agd_cli::publish::Publisher) -> Round {
        let publisher = publisher_that_remembers(&self.store(), PLACE, vec![self.state()]);
        with(publisher).round(&mut self.database, &mut |_| {})
    }

    /// A round that is refused as `is` says; nothing is written, into the store or beside the key, and nothing told.
    #[track_caller]
    fn expect_refused(&mut self, is: impl Fn(&Refusal) -> bool) {
        let before = (files(&self.store()), std::fs::read(self.state()).ok());
        let receipts = self.database.logs.values().map(|log| log.published.len()).sum::<usize>();
        self.database.reported.clear();
        for _ in 0..2 {
            let round = self.publish(|publisher| publisher);
            assert!(matches!(&round.refusals[..], [refusal] if is(refusal)), "{round:?}");
            assert_eq!(round.exit_code(), 1);
            assert!(round.published.is_empty() && self.database.reported.is_empty());
            assert_eq!((files(&self.store()), std::fs::read(self.state()).ok()), before);
            assert_eq!(self.database.logs.values().map(|log| log.published.len()).sum::<usize>(), receipts);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let to = to.join(item.file_name());
        if item.path().is_dir() { copy(&item.path(), &to) } else { std::fs::copy(item.path(), to).map(drop).unwrap() }
    }
}

fn empty(store: &Path) {
    std::fs::remove_dir_all(store).unwrap();
    std::fs::create_dir(store).unwrap();
}

fn is_behind(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::StoreBehind { .. })
}

#[test]
fn an_emptied_store_is_refused_until_somebody_begins_a_new_one() {
    // By what stands beside the key, by the database's receipts, by either alone.
    for (state, receipts) in [(true, true), (true, false), (false, true)] {
        let mut scene = Scene::new();
        empty(&scene.store());
        if !state {
            std::fs::remove_file(scene.state()).unwrap();
        }
        if !receipts {
            scene.database.logs.values_mut().for_each(|log| log.published.clear());
        }
        scene.database.write(Some("acme"), 5);
        scene.expect_refused(is_behind);
        ok(&scene.publish(|publisher| publisher.beginning_a_new_store(true)));
        assert_eq!(verify(&scene.store()).exit_code(), 0);
        // Once: where a store is, none is begun.
        scene.database.write(Some("acme"), 5);
        let before = files(&scene.store());
        let round = scene.publish(|publisher| publisher.beginning_a_new_store(true));
        assert!(
            matches!(&round.failures[..], [(None, Failure::Option(said))] if said.contains("--new-store")),
            "{round:?}"
        );
        assert_eq!((round.exit_code(), files(&scene.store())), (2, before));
        ok(&scene.publish(|publisher| publisher));
        empty(&scene.store());
        scene.expect_refused(is_behind);
    }
}

#[test]
fn an_older_store_is_refused() {
    for state in [true, false] {
        let mut scene = Scene::new();
        let older = scene.dir.path().join("older");
        copy(&scene.store(), &older);
        scene.database.write(Some("acme"), 300);
        ok(&scene.publish(|publisher| publisher));
        let newer = scene.dir.path().join("newer");
        copy(&scene.store(), &newer);
        std::fs::remove_dir_all(scene.store()).unwrap();
        copy(&older, &scene.store());
        if !state {
            std::fs::remove_file(scene.state()).unwrap();
        }
        scene.database.write(Some("acme"), 5);
        let before = files(&scene.store());
        let round = scene.publish(|publisher| publisher);
        assert_eq!(round.exit_code(), 1);
        assert!(round.refusals.iter().all(is_behind) && round.refusals.len() == 2, "{round:?}");
        assert_eq!(files(&scene.store()), before);
        // A tenant's log alone, or some of its files.
        std::fs::remove_dir_all(scene.store()).unwrap();
        copy(&newer, &scene.store());
        let acme = scene.store().join(tenant_origin("acme"));
        std::fs::remove_dir_all(&acme).unwrap();
        copy(&older.join(tenant_origin("acme")), &acme);
        let before = files(&acme);
        let round = scene.publish(|publisher| publisher);
        assert!(
            matches!(&round.refusals[..], [Refusal::StoreBehind { origin, .. }] if *origin == tenant_origin("acme"))
        );
        assert_eq!(files(&acme), before);
        std::fs::remove_dir_all(&acme).unwrap();
        copy(&newer.join(tenant_origin("acme")), &acme);
        ok(&scene.publish(|publisher| publisher));
    }
}

#[test]
fn a_key_signs_for_one_database() {
    let mut scene = Scene::new();
    // Another database of the same log's name: with the same beginning, with a history of its own, with nothing.
    let production = scene.database.clone();
    let mut continued = production.clone();
    continued.write(Some("acme"), 10);
    let mut other = FakeDatabase::new();
    other.write(None, 700);
    for mut database in [continued, other, FakeDatabase::new()] {
        database.number = 1;
        scene.database = database;
        scene.expect_refused(|refusal| matches!(refusal, Refusal::AnotherDatabase { .. }));
        let text = scene.publish(|publisher| publisher).refusals[0].to_string();
        assert!(text.contains("7421/5") && text.contains("7421/6") && text.contains("--moved-here"), "{text}");
        // In an empty store, too.
        let fresh = tempfile::tempdir().unwrap();
        let mut publisher = publisher_that_remembers(fresh.path(), "file:///other", vec![scene.state()]);
        let round = publisher.round(&mut scene.database, &mut |_| {});
        assert!(matches!(&round.refusals[..], [Refusal::AnotherDatabase { .. }]));
        assert!(files(fresh.path()).is_empty());
    }
    scene.database = production;
    scene.database.write(Some("acme"), 1);
    ok(&scene.publish(|publisher| publisher));
    let round = scene.publish(|publisher| publisher.moved_here(true));
    assert!(matches!(&round.failures[..], [(None, Failure::Option(said))] if said.contains("--moved-here")));
    // It moves for good, once somebody says so.
    let mut moved = scene.database.clone();
    moved.number = 1;
    moved.write(Some("acme"), 10);
    let production = std::mem::replace(&mut scene.database, moved);
    ok(&scene.publish(|publisher| publisher.moved_here(true)));
    ok(&scene.publish(|publisher| publisher));
    scene.database = production;
    scene.expect_refused(|refusal| matches!(refusal, Refusal::AnotherDatabase { .. }));
    assert_eq!(verify(&scene.store()).exit_code(), 0);
}

/// A copy that moves the key to itself, but is no continuation, has not moved it.
#[test]
fn a_key_does_not_move_to_what_is_no_continuation() {
    let mut scene = Scene::new();
    let production = scene.database.clone();
    scene.database.number = 1;
    let log = scene.database.log(PLATFORM);
    log.entries[1] = entry(999_999, 1, None, "INSERT", None);
    log.reanchor();
    let before = (files(&scene.store()), std::fs::read(scene.state()).unwrap());
    let round = scene.publish(|publisher| publisher.moved_here(true));
    assert!(matches!(&round.refusals[..], [Refusal::NotAContinuation { .. }]), "{round:?}");
    assert_eq!((files(&scene.store()), std::fs::read(scene.state()).unwrap()), before);
    scene.database = production;
    scene.database.write(Some("acme"), 3);
    ok(&scene.publish(|publisher| publisher));
}

#[test]
fn a_copy_says_that_it_is_one() {
    let mut scene = Scene::new();
    scene.database.write(Some("acme"), 10);
    scene.database.copy = true;
    scene.expect_refused(|refusal| matches!(refusal, Refusal::Copy { .. }));
    assert_eq!(scene.publish(|publisher| publisher.moved_here(true)).exit_code(), 1);
    // Resumed, on a machine with the key and without its state: its receipts tell where they come from.
    scene.database.copy = false;
    scene.database.number = 1;
    scene.database.received_from = Some("7421/5".to_owned());
    std::fs::remove_file(scene.state()).unwrap();
    scene.expect_refused(
        |refusal| matches!(refusal, Refusal::AnotherDatabase { signs_for, .. } if signs_for == "7421/5"),
    );
    ok(&scene.publish(|publisher| publisher.moved_here(true)));
    ok(&scene.publish(|publisher| publisher));
}

#[test]
fn an_old_server_signs_nothing_after_a_later_incarnation() {
    for emptied in [false, true] {
        let mut scene = Scene::new();
        let mut old = scene.database.clone();
        let platform = scene.database.log(PLATFORM).clone();
        let size = platform.entries.len() as u64;
        let at = Checkpoint { origin: PLATFORM.to_owned(), size, root: platform.root_at(size) };
        let body = Incarnation { published: at.clone(), closed: at, reason: "why".to_owned() };
        let second = scene.database.begin_incarnation(&body);
        ok(&scene.publish(|publisher| publisher));
        let note = String::from_utf8(files(&scene.store())[&format!("{second}/checkpoint")].clone()).unwrap();
        // It goes on where it was, with thousands of entries.
        old.write(Some("acme"), 2000);
        old.write(Some("gamma"), 2000);
        old.write(None, 2000);
        scene.database = old;
        if emptied {
            std::fs::remove_dir_all(scene.store().join(&second)).unwrap();
        }
        let before = files(&scene.store());
        for _ in 0..2 {
            let round = scene.publish(|publisher| publisher);
            assert!(
                matches!(&round.refusals[..], [Refusal::Vanished { origin, .. }] if *origin == second),
                "{round:?}"
            );
            assert_eq!((round.exit_code(), files(&scene.store())), (1, before.clone()));
        }
        // And its database is told what was published, with the note.
        let told: Vec<_> = scene.database.reported.iter().map(|(origin, newest)| (origin, &newest.note)).collect();
        assert_eq!(told, if emptied { vec![] } else { vec![(&second, &note), (&second, &note)] });
    }
}

/// Where the platform log is no continuation, no tenant's log is signed either.
#[test]
fn nothing_is_signed_before_everything_was_compared() {
    let mut scene = Scene::new();
    scene.database.write(Some("acme"), 2000);
    scene.database.write(Some("zeta"), 2000);
    let log = scene.database.log(PLATFORM);
    log.entries[1] = entry(999_999, 1, None, "INSERT", None);
    log.reanchor();
    let before = files(&scene.store());
    let round = scene.publish(|publisher| publisher);
    assert!(
        matches!(&round.refusals[..], [Refusal::NotAContinuation { origin, .. }] if origin == PLATFORM),
        "{round:?}"
    );
    assert_eq!(files(&scene.store()), before);
    assert_eq!(scene.database.reported.len(), 1);
}

#[test]
fn one_key_signs_one_history_in_all_stores() {
    let mut scene = Scene::new();
    let second = tempfile::tempdir().unwrap();
    let state = scene.state();
    let publish = |database: &mut FakeDatabase, new_store: bool| {
        let publisher = publisher_that_remembers(second.path(), "file:///second", vec![state.clone()]);
        publisher.beginning_a_new_store(new_store).round(database, &mut |_| {})
    };
    let round = publish(&mut scene.database, false);
    assert!(matches!(&round.refusals[..], [refusal] if is_behind(refusal)), "{round:?}");
    // Another history for the second store.
    for (tenant, shorter) in [(Some("acme"), false), (None, false), (Some("acme"), true)] {
        let mut forked = scene.database.clone();
        let origin = tenant.map_or(PLATFORM.to_owned(), tenant_origin);
        let log = forked.log(&origin);
        if shorter {
            log.entries.truncate(256);
            log.anchors.retain(|size, _| *size <= 256);
        } else {
            log.entries[1] = entry(999_999, 1, tenant, "INSERT", None);
            log.reanchor();
        }
        let round = publish(&mut forked, true);
        assert_eq!(round.exit_code(), 1);
        assert!(round.refusals.iter().any(|refusal| refusal.origin() == origin), "{round:?}");
        assert!(!files(second.path()).keys().any(|name| name.starts_with(&format!("{origin}/checkpoint"))));
        empty(second.path());
    }
    ok(&publish(&mut scene.database, true));
    scene.database.write(Some("acme"), 10);
    ok(&publish(&mut scene.database, false));
    ok(&scene.publish(|publisher| publisher));
    assert_eq!((verify(&scene.store()).exit_code(), verify(second.path()).exit_code()), (0, 0));
}

#[test]
fn a_key_that_is_not_registered_signs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = sample();
    let key = agd_cli::key::LogKey::from_seed(PLATFORM, zeroize::Zeroizing::new([99; 32])).unwrap();
    let vkey = key.verifier().to_string();
    let store = agd_cli::store::Writer::open(dir.path(), fast_files(None).0).unwrap();
    let memory = no_memory(&key);
    let round =
        agd_cli::publish::Publisher::new(store, key, PLACE.to_owned(), memory).round(&mut database, &mut |_| {});
    assert!(matches!(&round.failures[..], [(None, Failure::Unregistered(named))] if *named == vkey), "{round:?}");
    assert_eq!(round.exit_code(), 2);
    assert!(round.failures[0].1.to_string().contains("agd.register_log_key"));
    assert!(files(dir.path()).is_empty());
}

/// A crash between the store and the state beside the key: the next run goes on.
#[test]
fn a_state_that_lags_behind_its_store_is_taken_up() {
    let mut scene = Scene::new();
    let before = std::fs::read(scene.state()).unwrap();
    scene.database.write(Some("acme"), 300);
    ok(&scene.publish(|publisher| publisher));
    std::fs::write(scene.state(), before).unwrap();
    scene.database.write(Some("acme"), 300);
    ok(&scene.publish(|publisher| publisher));
    // One that was changed is believed no more, and nothing is signed by it.
    let mut bytes = std::fs::read(scene.state()).unwrap();
    bytes[40] ^= 1;
    std::fs::write(scene.state(), bytes).unwrap();
    let loaded = agd_cli::publish::memory::Memory::load(&key(), vec![scene.state()]);
    assert!(loaded.is_err());
}
