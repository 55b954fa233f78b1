//! The verifier: a good store holds, and whatever is changed in it is found and named.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::common::*;
use agd_cli::key::LogKey;
use agd_cli::policy::Policy;
use agd_cli::publish::Refusal;
use agd_cli::report;
use agd_cli::store::{Writer, checkpoint_path};
use agd_core::{Checkpoint, Incarnation, SignedNote, bundle, leaf_hash};
use proptest::prelude::*;
use zeroize::Zeroizing;

/// A store with full and partial tiles at two levels, older partial tiles, and two tenants.
fn sample() -> (tempfile::TempDir, FakeDatabase) {
    sample_in(tempfile::tempdir().unwrap())
}

fn sample_in(dir: tempfile::TempDir) -> (tempfile::TempDir, FakeDatabase) {
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    for (tenant, count) in [("acme", 300), ("acme", 20), ("beta", 1), ("acme", 280)] {
        database.write(Some(tenant), count);
        assert_eq!(publish(dir.path(), &mut database).exit_code(), 0);
    }
    (dir, database)
}

/// The verdict is "false", and a finding names this file.
#[track_caller]
fn names(root: &Path, file: &str) {
    let report = verify(root);
    let findings = findings(&report);
    assert_eq!(report.exit_code(), 1, "{file}: {findings:?}");
    assert!(findings.iter().any(|(f, _)| f == file), "{file}: {findings:?}");
}

/// Older partial tiles: a store may have dropped them.
fn is_droppable(name: &str) -> bool {
    let current = ["acme/tile/0/002.p/88", "acme/tile/entries/002.p/88", "acme/tile/1/000.p/2"];
    name.contains("/t/acme/tile/") && name.contains(".p/") && !current.iter().any(|c| name.ends_with(c))
        || name.starts_with("agd-1/app/tile/") && name.contains(".p/") && !name.ends_with(".p/9")
}

#[test]
fn a_good_store_holds() {
    let (dir, database) = sample();
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
    let origins: Vec<_> = report.logs.iter().map(|log| log.origin.as_str()).collect();
    assert_eq!(origins, [PLATFORM, &tenant_origin("acme"), &tenant_origin("beta")]);
    for log in &report.logs {
        let there = &database.logs[&log.origin];
        let size = there.entries.len() as u64;
        assert_eq!((log.result.size, log.result.entries), (size, size));
        assert_eq!(log.result.root, Some(there.root_at(size)));
        assert_eq!(log.result.published.len(), there.anchors.len());
        assert_eq!(log.result.signed, there.anchors.len() as u64);
    }
    let acme = report.logs[1].coverage.as_ref().unwrap();
    assert_eq!((acme.size, acme.newer), (600, 0));
    let (first, last) = report.logs[1].result.times.unwrap();
    assert!(first > START && last > first);
}

#[test]
fn without_a_policy_nothing_is_called_good() {
    let (dir, _) = sample();
    let report = verify_with(dir.path(), None);
    assert_eq!((report.exit_code(), report.findings()), (2, 0));
    let mut text = Vec::new();
    report::verify_text(&mut text, &report, false).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(text.matches("not checked (no --policy)").count(), 3);
    assert!(text.lines().last().unwrap().starts_with("NOT CHECKED"));
}

#[test]
fn the_report_reads_well_and_its_json_says_the_same() {
    let (dir, _) = sample();
    let report = verify(dir.path());
    let mut text = Vec::new();
    report::verify_text(&mut text, &report, false).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("agd-1/app/t/acme (tenant acme)"), "{text}");
    assert!(text.contains("by entry 8 of the platform log"), "{text}");
    assert_eq!(text.lines().last().unwrap(), "OK: 3 logs, 610 entries, 11 checkpoints: all holds");
    assert!(text.lines().all(|line| !line.ends_with(' ')), "{text}");
    let json = report::verify_json(&report, "store");
    assert_eq!(json["exit_code"], 0);
    assert_eq!(json["logs"][1]["tenant"], "acme");
    assert_eq!(json["logs"][1]["size"], 600);
    assert_eq!(json["logs"][1]["covered"]["size"], 600);
}

#[test]
fn a_changed_byte_in_any_file_is_found_and_the_file_named() {
    let (dir, _) = sample();
    for (name, bytes) in files(dir.path()) {
        let len = bytes.len();
        for at in [0, 1, 2, len / 3, len / 2, len - 2, len - 1] {
            let mut wrong = bytes.clone();
            wrong[at] ^= 0x01;
            overwrite(dir.path(), &name, &wrong);
            names(dir.path(), &name);
        }
        overwrite(dir.path(), &name, &bytes);
    }
    assert_eq!(verify(dir.path()).exit_code(), 0);
}

#[test]
fn a_shorter_or_longer_file_is_found_and_named() {
    let (dir, _) = sample();
    for (name, bytes) in files(dir.path()) {
        let longer = [&bytes[..], b"x"].concat();
        let huge = [&bytes[..], &vec![0; 20_000_000][..]].concat();
        for wrong in [&bytes[..0], &bytes[..1], &bytes[..bytes.len() - 1], &longer, &huge] {
            overwrite(dir.path(), &name, wrong);
            names(dir.path(), &name);
        }
        overwrite(dir.path(), &name, &bytes);
    }
}

#[test]
fn a_missing_file_is_named() {
    let (dir, database) = sample();
    for (name, bytes) in files(dir.path()) {
        std::fs::remove_file(dir.path().join(&name)).unwrap();
        // Nothing in the store tells that the platform log had a checkpoint at a size below 256 and below its newest.
        let tail = name.starts_with("agd-1/app/checkpoints/")
            && !name.ends_with(&format!("{:020}", database.logs[PLATFORM].entries.len()));
        if is_droppable(&name) || tail {
            assert_eq!(verify(dir.path()).exit_code(), 0, "{name}");
        } else {
            names(dir.path(), &name);
        }
        std::fs::write(dir.path().join(&name), bytes).unwrap();
    }
}

#[test]
fn something_else_in_a_files_place_is_named_and_never_opened() {
    let (dir, _) = sample();
    let bundle = format!("{}/tile/entries/001", tenant_origin("acme"));
    for name in [bundle, format!("{PLATFORM}/checkpoint"), checkpoint_path(PLATFORM, 3)] {
        let path = dir.path().join(&name);
        let aside = dir.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        names(dir.path(), &name);
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        names(dir.path(), &name);
        std::fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        names(dir.path(), &name);
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
    }
}

#[test]
fn swapped_files_are_found() {
    let (dir, _) = sample();
    let acme = tenant_origin("acme");
    let beta = tenant_origin("beta");
    let swaps = [
        (format!("{acme}/tile/0/000"), format!("{acme}/tile/0/001")),
        (format!("{acme}/tile/entries/000"), format!("{acme}/tile/entries/001")),
        (checkpoint_path(&acme, 256), checkpoint_path(&acme, 512)),
        (checkpoint_path(&acme, 300), checkpoint_path(&beta, 1)),
        (format!("{acme}/checkpoint"), format!("{beta}/checkpoint")),
        (format!("{acme}/checkpoint"), format!("{PLATFORM}/checkpoint")),
    ];
    for (a, b) in swaps {
        let all = files(dir.path());
        overwrite(dir.path(), &a, &all[&b]);
        overwrite(dir.path(), &b, &all[&a]);
        names(dir.path(), &a);
        names(dir.path(), &b);
        overwrite(dir.path(), &a, &all[&a]);
        overwrite(dir.path(), &b, &all[&b]);
    }
    assert_eq!(verify(dir.path()).exit_code(), 0);
}

#[test]
fn the_changed_entry_is_named_with_its_index_and_byte() {
    let (dir, database) = sample();
    let acme = tenant_origin("acme");
    let name = format!("{acme}/tile/entries/001");
    let mut entries: Vec<Vec<u8>> = database.logs[&acme].entries[256..512].to_vec();
    entries[3] = entry(4_444, 1, Some("acme"), "INSERT", None);
    entries.swap(100, 200);
    overwrite(dir.path(), &name, &bundle::encode(&entries).unwrap());
    let report = verify(dir.path());
    let found = report.logs[1].result.findings.list();
    let indexes: Vec<_> = found.iter().map(|f| (f.file.as_str(), f.index.unwrap())).collect();
    assert_eq!(indexes, [(name.as_str(), 259), (&name, 356), (&name, 456)]);
    let offset = entries[..3].iter().map(|e| e.len() as u64 + 2).sum::<u64>() + 2;
    assert_eq!(found[0].offset, Some(offset));

    // A wrong hash in the tile, with good entries, is the tile's fault.
    let entries = &database.logs[&acme].entries[256..512];
    overwrite(dir.path(), &name, &bundle::encode(entries).unwrap());
    let tile = format!("{acme}/tile/0/001");
    let mut bytes = files(dir.path())[&tile].clone();
    bytes[7 * 32] ^= 1;
    overwrite(dir.path(), &tile, &bytes);
    let report = verify(dir.path());
    let [finding] = report.logs[1].result.findings.list() else {
        panic!("{:?}", findings(&report));
    };
    assert_eq!((finding.file.as_str(), finding.index, finding.offset), (tile.as_str(), Some(263), Some(224)));
}

#[test]
fn a_removed_and_an_added_entry_are_found() {
    let (dir, database) = sample();
    let acme = tenant_origin("acme");
    let name = format!("{acme}/tile/entries/000");
    let mut entries: Vec<Vec<u8>> = database.logs[&acme].entries[..256].to_vec();
    entries.remove(9);
    overwrite(dir.path(), &name, &bundle::encode(&entries).unwrap());
    names(dir.path(), &name);
    entries.push(database.logs[&acme].entries[256].clone());
    overwrite(dir.path(), &name, &bundle::encode(&entries).unwrap());
    names(dir.path(), &name);
}

/// Replaces a log's folder by one in which the whole history was rewritten and signed by whoever holds `key`.
fn rewrite(root: &Path, database: &FakeDatabase, tenant: &str, key: LogKey) {
    let origin = tenant_origin(tenant);
    let mut forged = database.clone();
    let log = forged.log(&origin);
    log.entries[0] = entry(777_777, 1, Some(tenant), "INSERT", None);
    log.reanchor();
    let other = tempfile::tempdir().unwrap();
    let store = Writer::open(other.path(), fast_files(None).0).unwrap();
    let memory = no_memory(&key);
    let publisher = agd_cli::publish::Publisher::new(store, key, String::new(), memory);
    let mut publisher = publisher.beginning_a_new_store(true);
    let _ = publisher.round(&mut forged, &mut |_| {});
    for (name, bytes) in files(other.path()) {
        if name.starts_with(&format!("{origin}/")) {
            overwrite(root, &name, &bytes);
        }
    }
}

#[test]
fn a_rewritten_tenant_log_contradicts_the_platform_log_even_with_the_right_key() {
    let (dir, database) = sample();
    rewrite(dir.path(), &database, "beta", key());
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 1);
    let findings = findings(&report);
    let beta = checkpoint_path(&tenant_origin("beta"), 1);
    assert!(findings.iter().any(|(file, text)| *file == beta && text.contains("platform log says")), "{findings:?}");
}

#[test]
fn a_rewritten_tenant_log_with_another_key_is_not_signed() {
    let (dir, database) = sample();
    let other = LogKey::from_seed(PLATFORM, Zeroizing::new([9; 32])).unwrap();
    rewrite(dir.path(), &database, "beta", other);
    let report = verify(dir.path());
    let beta = checkpoint_path(&tenant_origin("beta"), 1);
    let findings = findings(&report);
    assert!(findings.iter().any(|(file, text)| *file == beta && text.contains("no trusted key")), "{findings:?}");
}

#[test]
fn a_tenant_log_that_was_put_back_or_taken_away_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = FakeDatabase::new();
    database.write(Some("acme"), 300);
    publish(dir.path(), &mut database);
    let acme = tenant_origin("acme");
    let old: BTreeMap<_, _> = files(dir.path()).into_iter().filter(|(name, _)| name.starts_with(&acme)).collect();
    database.write(Some("acme"), 100);
    publish(dir.path(), &mut database);
    std::fs::remove_dir_all(dir.path().join(&acme)).unwrap();
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 1);
    assert!(findings(&report).iter().any(|(file, text)| *file == acme && text.contains("the log is missing")));
    for (name, bytes) in old {
        let path = dir.path().join(&name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    names(dir.path(), &format!("{acme}/checkpoint"));
    // Only its tiles are left.
    std::fs::remove_file(dir.path().join(&acme).join("checkpoint")).unwrap();
    std::fs::remove_dir_all(dir.path().join(&acme).join("checkpoints")).unwrap();
    names(dir.path(), &format!("{acme}/checkpoint"));
}

#[test]
fn a_checkpoint_the_platform_log_should_have_is_missed() {
    let (dir, database) = sample();
    let mut other = database.clone();
    // The platform log of another database, in which acme's 300 was never anchored.
    let platform = other.log(PLATFORM);
    let text = agd_core::Checkpoint {
        origin: tenant_origin("acme"),
        size: 300,
        root: database.logs[&tenant_origin("acme")].root_at(300),
    }
    .to_string();
    platform.entries.retain(|bytes| agd_core::entry::parse(bytes).unwrap().body.as_deref() != Some(&text));
    let size = platform.entries.len() as u64;
    platform.anchors.retain(|at, _| *at <= size);
    let root = platform.root_at(size);
    platform.anchors.insert(size, root);
    platform.reanchor();
    other.logs.values_mut().for_each(|log| log.published.clear());
    let fresh = tempfile::tempdir().unwrap();
    assert_eq!(publish(fresh.path(), &mut other).exit_code(), 0);
    names(fresh.path(), &checkpoint_path(&tenant_origin("acme"), 300));
    drop(dir);
}

#[test]
fn newer_tenant_checkpoints_are_counted_and_no_fault() {
    let (dir, mut database) = sample();
    let platform = database.logs[PLATFORM].clone();
    database.write(Some("acme"), 300);
    database.logs.insert(PLATFORM.to_owned(), platform);
    assert_eq!(publish(dir.path(), &mut database).exit_code(), 0);
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
    let acme = report.logs[1].coverage.as_ref().unwrap();
    assert_eq!((acme.size, acme.newer), (600, 2));
}

/// Publishes these entries as a tenant's log and expects one finding about entry `index`.
fn entry_finding(entries: Vec<Vec<u8>>, index: u64, message: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut database = FakeDatabase::new();
    let acme = tenant_origin("acme");
    database.logs.insert(acme.clone(), FakeLog { tenant: Some("acme".to_owned()), entries, ..FakeLog::default() });
    database.anchor(&acme);
    assert_eq!(publish(dir.path(), &mut database).exit_code(), 0);
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 1);
    let [finding] = report.logs[1].result.findings.list() else {
        panic!("{:?}", findings(&report));
    };
    assert_eq!(finding.index, Some(index));
    assert!(finding.message.contains(message), "{}", finding.message);
    assert!(finding.file.contains("/tile/entries/"));
}

#[test]
fn what_the_entries_say_is_checked_too() {
    let acme = |xact, n| entry(xact, n, Some("acme"), "INSERT", None);
    let many = |at: usize, strange: Vec<u8>| {
        let mut entries: Vec<_> = (0..400).map(|i| acme(i, 1)).collect();
        entries[at] = strange;
        entries
    };
    entry_finding(many(300, entry(300, 1, Some("beta"), "INSERT", None)), 300, "is of beta");
    entry_finding(many(5, entry(5, 1, None, "INSERT", None)), 5, "is of no tenant");
    entry_finding(many(5, b"{}".to_vec()), 5, "not a canonical");
    entry_finding(many(399, Vec::new()), 399, "not a canonical");
    entry_finding(many(0, vec![0xFF; 10]), 0, "not UTF-8");
    // The same event twice, far apart, next to each other, and in a transaction that is not in one piece.
    entry_finding(many(300, acme(7, 1)), 300, "event 7-1 is entry 7 and entry 300");
    entry_finding(many(8, acme(7, 1)), 8, "event 7-1 is entry 7 and entry 8");
    let mut pieces = many(20, acme(7, 2));
    pieces[30] = acme(7, 3);
    pieces[40] = acme(7, 2);
    entry_finding(pieces, 40, "event 7-2 is entry 20 and entry 40");
}

#[test]
fn a_transaction_in_pieces_is_no_duplicate() {
    let dir = tempfile::tempdir().unwrap();
    let mut database = FakeDatabase::new();
    for (xact, n) in [(1, 1), (1, 2), (2, 1), (1, 3), (2, 0)] {
        database.log(PLATFORM).entries.push(entry(xact, n, None, "INSERT", None));
    }
    database.anchor(PLATFORM);
    publish(dir.path(), &mut database);
    assert_eq!(verify(dir.path()).exit_code(), 0);
}

#[test]
fn strange_checkpoint_entries_of_the_platform_log_are_found() {
    let of = |origin: &str| agd_core::Checkpoint { origin: origin.to_owned(), size: 5, root: [1; 32] }.to_string();
    let bodies = [
        (Some("nonsense".to_owned()), "not a tenant's checkpoint"),
        (None, "not a tenant's checkpoint"),
        (Some(of("agd-2/other/t/acme")), "no tenant's log of this one"),
        (Some(of(PLATFORM)), "no tenant's log of this one"),
        (Some(of(&tenant_origin("gone"))), "the log is missing"),
    ];
    for (body, message) in bodies {
        let dir = tempfile::tempdir().unwrap();
        let mut database = FakeDatabase::new();
        database.log(PLATFORM).entries.push(entry(1, 1, None, "CHECKPOINT", body.as_deref()));
        database.anchor(PLATFORM);
        publish(dir.path(), &mut database);
        let report = verify(dir.path());
        assert_eq!(report.exit_code(), 1);
        assert!(findings(&report).iter().any(|(_, text)| text.contains(message)), "{:?}", findings(&report));
    }
}

#[test]
fn the_policy_decides_whose_signature_counts() {
    let (dir, _) = sample();
    let parse = |text: String| Policy::parse(text.as_bytes()).unwrap();
    let other = |name: &str| {
        let key = LogKey::from_seed(name, Zeroizing::new([9; 32])).unwrap();
        key.verifier().to_string()
    };
    let ours = key().verifier().to_string();
    let code = |policy: Policy| verify_with(dir.path(), Some(&policy)).exit_code();
    // Another key under the same name: false. Another log's key: nothing is known about these logs.
    assert_eq!(code(parse(format!("log {}\nquorum none\n", other(PLATFORM)))), 1);
    assert_eq!(code(parse(format!("log {}\nquorum none\n", other("else")))), 2);
    // A log of the policy that the store does not have.
    assert_eq!(code(parse(format!("log {ours}\nlog {}\nquorum none\n", other("else")))), 2);
    assert_eq!(code(parse(format!("log {ours}\nquorum none\n"))), 0);
}

#[test]
fn a_tenants_log_stands_alone() {
    let (dir, _) = sample();
    let alone = tempfile::tempdir().unwrap();
    let acme = tenant_origin("acme");
    for (name, bytes) in files(dir.path()) {
        if name.starts_with(&format!("{acme}/")) {
            std::fs::create_dir_all(alone.path().join(&name).parent().unwrap()).unwrap();
            std::fs::write(alone.path().join(name), bytes).unwrap();
        }
    }
    let vkey = key().signer(&acme).unwrap().verifier_key().to_string();
    let policy = Policy::parse(format!("log {vkey}\nquorum none\n").as_bytes()).unwrap();
    let report = verify_with(alone.path(), Some(&policy));
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
    assert!(report.logs[0].result.notes[0].contains("is not in this store"));
    // Who asks for the platform log as well is told that it is not there.
    assert_eq!(verify(alone.path()).exit_code(), 2);
}

#[test]
fn an_empty_store_is_not_called_good() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(verify(dir.path()).exit_code(), 2);
    assert_eq!(verify_with(dir.path(), None).exit_code(), 2);
}

#[test]
fn tiles_without_a_checkpoint_are_not_called_good() {
    let (dir, _) = sample();
    let folder = dir.path().join(tenant_origin("new")).join("tile/0/000.p");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("1"), [0; 32]).unwrap();
    let report = verify(dir.path());
    assert_eq!((report.exit_code(), report.findings()), (2, 0));
}

#[test]
fn an_origin_that_nothing_writes_is_not_called_good() {
    let (dir, _) = sample();
    let folder = dir.path().join(PLATFORM).join("i1");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("checkpoint"), "x").unwrap();
    assert_eq!(verify(dir.path()).exit_code(), 2);
}

#[test]
fn files_that_are_no_part_of_a_log_are_noted_and_harm_nothing() {
    let (dir, _) = sample();
    let acme = dir.path().join(tenant_origin("acme"));
    std::fs::write(acme.join("README"), "x").unwrap();
    std::fs::write(acme.join("tile/0/note.txt"), "x").unwrap();
    std::fs::write(acme.join("tile/0/003"), "x").unwrap();
    std::fs::write(acme.join("checkpoints/12"), "x").unwrap();
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
    assert_eq!(report.logs[1].result.notes.len(), 3, "{:?}", report.logs[1].result.notes);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever bytes take the place of a file: no panic, and never "all holds".
    #[test]
    fn arbitrary_bytes_in_any_file_are_found(
        which in any::<prop::sample::Index>(),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        keep_rest in any::<bool>(),
    ) {
        let dir = shared();
        let all = files(dir);
        let (name, bytes) = all.iter().nth(which.index(all.len())).unwrap();
        let at = at.index(bytes.len());
        let mut wrong = bytes[..at].to_vec();
        wrong.extend(&noise);
        if keep_rest {
            wrong.extend(bytes.get(at + noise.len()..).unwrap_or_default());
        }
        prop_assume!(wrong != *bytes);
        overwrite(dir, name, &wrong);
        let report = verify(dir);
        let without = verify_with(dir, None);
        overwrite(dir, name, bytes);
        prop_assert_eq!(report.exit_code(), 1, "{}", name);
        prop_assert_ne!(without.exit_code(), 0);
        prop_assert!(findings(&report).iter().any(|(file, _)| file == name), "{} {:?}", name, findings(&report));
    }
}

/// One store for all the cases above; each puts back what it changed. Nothing drops it, so that its folder is one of the
/// build's.
fn shared() -> &'static Path {
    static STORE: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    STORE.get_or_init(|| sample_in(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()).0).path()
}

/// The newest checkpoint of a log in a store.
fn newest(root: &Path, origin: &str) -> Checkpoint {
    let note = SignedNote::parse(std::fs::read(root.join(origin).join("checkpoint")).unwrap().as_slice()).unwrap();
    Checkpoint::parse(note.text()).unwrap()
}

/// What a database says that was put back before everything in the store, and had gone on a little.
fn lost(root: &Path, origin: &str) -> Incarnation {
    let closed = Checkpoint { origin: PLATFORM.to_owned(), size: 2, root: [2; 32] };
    Incarnation { published: newest(root, origin), closed, reason: "the disk was lost".to_owned() }
}

#[test]
fn a_later_incarnation_continues_what_is_published() {
    let (dir, mut database) = sample();
    let before = files(dir.path());
    // The closed logs are no matter any more: they may have become anything.
    for log in database.logs.values_mut() {
        log.entries.truncate(2);
        log.anchors = BTreeMap::from([(1, [1; 32]), (2, [2; 32])]);
    }
    let second = database.begin_incarnation(&lost(dir.path(), PLATFORM));
    assert_eq!(second, "agd-1/app/i2");
    let round = publish(dir.path(), &mut database);
    assert_eq!((round.exit_code(), &round.refusals[..]), (0, &[][..]));
    let mut after = files(dir.path());
    after.retain(|name, _| !name.starts_with("agd-1/app/i2/"));
    assert_eq!(after, before, "what was published stays as it is");
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
    assert_eq!(report.logs.iter().filter(|log| log.origin == second).count(), 1);

    // A third, after the second.
    let continued = newest(dir.path(), &second);
    let closed = Checkpoint { origin: second.clone(), size: 1, root: [3; 32] };
    let third = database.begin_incarnation(&Incarnation { published: continued, closed, reason: "again".to_owned() });
    assert_eq!(publish(dir.path(), &mut database).exit_code(), 0);
    let report = verify(dir.path());
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
    // Who does not have the second cannot tell what the third continues; nothing contradicts it.
    std::fs::remove_dir_all(dir.path().join(&second)).unwrap();
    cannot_tell(dir.path(), &third);
}

/// The verdict is that it is not known what a log continues.
fn cannot_tell(root: &Path, origin: &str) {
    let report = verify(root);
    assert_eq!(report.exit_code(), 2, "{:?}", findings(&report));
    let log = report.logs.iter().find(|log| log.origin == origin).unwrap();
    assert!(
        log.result.unchecked.iter().any(|text| text.starts_with("entry 0 continues")),
        "{:?}",
        log.result.unchecked
    );
}

/// What another publisher would write of a small log, one that asks nothing.
fn put_log(root: &Path, database: &FakeDatabase, origin: &str) {
    let entries = &database.logs[origin].entries;
    let leaves: Vec<_> = entries.iter().map(|entry| leaf_hash(entry)).collect();
    let (size, root_hash) = (entries.len() as u64, database.logs[origin].root_at(entries.len() as u64));
    let text = Checkpoint { origin: origin.to_owned(), size, root: root_hash }.to_string();
    let note = SignedNote::sign(&text, &key().signer(origin).unwrap()).unwrap().to_string().into_bytes();
    for (name, bytes) in [
        (format!("{origin}/tile/entries/000.p/{size}"), bundle::encode(entries).unwrap()),
        (format!("{origin}/tile/0/000.p/{size}"), leaves.concat()),
        (checkpoint_path(origin, size), note.clone()),
        (format!("{origin}/checkpoint"), note),
    ] {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_store_that_lagged_behind_cannot_tell_what_an_incarnation_continues() {
    let (dir, mut database) = sample();
    let mut body = lost(dir.path(), PLATFORM);
    body.published.size += 1;
    let second = database.begin_incarnation(&body);
    assert_eq!(publish(dir.path(), &mut database).exit_code(), 0);
    cannot_tell(dir.path(), &second);
}

#[test]
fn an_incarnation_that_continues_something_else_is_false() {
    let acme = tenant_origin("acme");
    type Change = fn(&mut Incarnation);
    let changes: [(&str, Change); 7] = [
        (PLATFORM, |body| body.published.size -= 1),
        (PLATFORM, |body| body.published.root = [5; 32]),
        (PLATFORM, |body| (body.published.origin, body.published.size) = ("agd-1/app/t/beta".to_owned(), 1)),
        (&acme, |body| body.published.size -= 1),
        (&acme, |body| body.published.root = [5; 32]),
        // The platform log was not lost, and yet shorter than what is published of it, or another.
        (&acme, |_| {}),
        (&acme, |body| body.closed.size = u64::MAX),
    ];
    for (number, (origin, change)) in changes.iter().enumerate() {
        let (dir, mut database) = sample();
        let mut body = lost(dir.path(), origin);
        change(&mut body);
        let second = database.begin_incarnation(&body);
        let before = files(dir.path());
        let round = publish(dir.path(), &mut database);
        if body.closed.size == u64::MAX {
            assert_eq!(round.exit_code(), 0);
            let report = verify(dir.path());
            assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
        } else {
            // The publisher sees it before it signs; where another one did sign, the verifier does.
            assert!(
                matches!(&round.refusals[..], [Refusal::Succession { origin, .. }] if *origin == second),
                "{number}"
            );
            assert_eq!(files(dir.path()), before);
            put_log(dir.path(), &database, &second);
            let report = verify(dir.path());
            let findings = findings(&report);
            assert_eq!(report.exit_code(), 1, "{number}");
            assert!(findings.iter().all(|(file, _)| *file == format!("{second}/checkpoint")), "{number}: {findings:?}");
            assert!(findings.iter().any(|(_, text)| text.contains("entry 0")), "{number}: {findings:?}");
        }
    }
}

#[test]
fn what_begins_an_incarnation_is_its_first_entry_and_stands_nowhere_else() {
    let change = |change: &dyn Fn(&mut FakeLog, Vec<u8>)| {
        let (dir, mut database) = sample();
        let body = lost(dir.path(), PLATFORM);
        let second = database.begin_incarnation(&body);
        let beginning = entry(88_888, 1, None, "INCARNATION", Some(&body.to_string()));
        let first = database.log(&second).entries[0].clone();
        change(database.log(&second), beginning);
        database.log(&second).anchors.clear();
        database.anchor_alone(&second);
        // The publisher refuses what begins wrongly; what comes later is the verifier's to find.
        let refused = publish(dir.path(), &mut database).exit_code() == 1;
        assert_eq!(refused, database.log(&second).entries[0] != first);
        if refused {
            put_log(dir.path(), &database, &second);
        }
        let report = verify(dir.path());
        assert_eq!(report.exit_code(), 1);
        findings(&report).into_iter().map(|(_, text)| text).collect::<Vec<_>>().join("\n")
    };
    let first = change(&|log, _| drop(log.entries.remove(0)));
    assert!(first.contains("entry 0: is CHECKPOINT"), "{first}");
    let unreadable = change(&|log, _| log.entries[0] = entry(77_777, 1, None, "INCARNATION", Some("x")));
    assert!(unreadable.contains("entry 0: does not say what the log continues"), "{unreadable}");
    let twice = change(&|log, beginning| log.entries.push(beginning));
    assert!(twice.contains("entry 3: begins an incarnation where none begins"), "{twice}");

    // In the first incarnation there is none at all.
    let (dir, mut database) = sample();
    let body = lost(dir.path(), PLATFORM).to_string();
    database.log(PLATFORM).entries.push(entry(88_888, 1, None, "INCARNATION", Some(&body)));
    database.anchor(PLATFORM);
    assert_eq!(publish(dir.path(), &mut database).exit_code(), 0);
    let report = verify(dir.path());
    assert!(findings(&report).iter().any(|(_, text)| text.contains("begins an incarnation where none begins")));
}
