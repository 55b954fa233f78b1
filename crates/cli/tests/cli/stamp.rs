//! Timestamps: TSAs made with openssl, good and bad, what is stored, and what the verifier says of it.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::*;
use crate::openssl::server::{Answer, Server};
use crate::openssl::{Keys, Kind, Tsa};
use agd_cli::key::WitnessKey;
use agd_cli::passphrase::Source;
use agd_cli::publish::{Failure, Publisher, Round};
use agd_cli::report;
use agd_cli::stamp::{Mode, Stamper, path};
use agd_cli::store::{Reader, Writer, checkpoint_path};
use agd_cli::tsa::{Tsa as Client, TsaError};
use agd_cli::verify::{self, Report};
use agd_tsp::Authorities;

const HOUR: Duration = Duration::from_secs(3600);

/// One TSA for the tests that need some TSA. Nothing drops it, so that its folder is one of the build's.
fn tsa() -> Arc<Tsa> {
    static TSA: OnceLock<(tempfile::TempDir, Arc<Tsa>)> = OnceLock::new();
    let (_, tsa) = TSA.get_or_init(|| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let tsa = Tsa::new(folder.path(), Kind::default());
        (folder, Arc::new(tsa))
    });
    Arc::clone(tsa)
}

fn ca(tsa: &Tsa) -> Authorities {
    Authorities::from_pem(&tsa.pem()).unwrap()
}

fn stamper(servers: &[&Server], mode: Mode, interval: Duration) -> Stamper {
    let client = |server: &&Server| Client::new(&server.url(), Duration::from_secs(5)).unwrap();
    Stamper::new(servers.iter().map(client).collect(), ca(&tsa()), mode, interval)
}

fn with(root: &Path, servers: &[&Server], mode: Mode) -> Publisher {
    publisher(root).with_stamper(stamper(servers, mode, HOUR))
}

/// A round and the timestamps after it.
fn round(publisher: &mut Publisher, database: &mut FakeDatabase, last: bool) -> Round {
    let mut round = publisher.round(database, &mut |_| {});
    publisher.stamp(database, last, &mut round);
    assert!(round.refusals.is_empty(), "{:?}", round.refusals);
    round
}

/// One round by a fresh publisher, as `--once` does it.
fn once(root: &Path, database: &mut FakeDatabase, servers: &[&Server], mode: Mode) -> Round {
    round(&mut with(root, servers, mode), database, true)
}

fn check(root: &Path, authorities: Option<&Authorities>) -> Report {
    verify::run_with(&Reader::open(root).unwrap(), Some(&policy()), authorities, &AtomicU64::new(0)).unwrap()
}

fn check_ca(root: &Path) -> Report {
    check(root, Some(&ca(&tsa())))
}

fn sample() -> (tempfile::TempDir, FakeDatabase) {
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    database.write(Some("acme"), 300);
    (tempfile::tempdir().unwrap(), database)
}

fn size(database: &FakeDatabase) -> u64 {
    database.logs[PLATFORM].entries.len() as u64
}

fn tsr(root: &Path) -> Vec<String> {
    files(root).into_keys().filter(|name| name.ends_with(".tsr")).collect()
}

#[test]
fn the_newest_platform_checkpoint_is_stamped_and_openssl_agrees() {
    for keys in [Keys::Rsa, Keys::P256] {
        let folder = tempfile::tempdir().unwrap();
        let tsa = Arc::new(Tsa::new(folder.path(), Kind { keys, ..Kind::default() }));
        let server = Server::start(Arc::clone(&tsa));
        let (dir, mut database) = sample();
        let client = Client::new(&server.url(), Duration::from_secs(5)).unwrap();
        let stamper = Stamper::new(vec![client], ca(&tsa), Mode::Required, HOUR);
        let done = round(&mut publisher(dir.path()).with_stamper(stamper), &mut database, true);
        assert_eq!(done.exit_code(), 0, "{done:?}");
        let file = path(PLATFORM, size(&database), 0);
        assert_eq!(tsr(dir.path()), [file.as_str()]);
        let [stamped] = &done.stamped[..] else { panic!("{done:?}") };
        assert_eq!((stamped.size, &stamped.file, &stamped.tsa), (size(&database), &file, &server.url()));
        assert_eq!(database.logs[PLATFORM].stamps, [(stamped.size, stamped.at)]);

        let (reply, checkpoint) =
            (&files(dir.path())[&file], &files(dir.path())[&checkpoint_path(PLATFORM, stamped.size)]);
        assert_eq!(tsa.openssl_verifies(reply, checkpoint), Ok(()));
        let mut other = checkpoint.clone();
        other[0] ^= 1;
        assert!(tsa.openssl_verifies(reply, &other).is_err());

        let report = check(dir.path(), Some(&ca(&tsa)));
        assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
        let stamps = report.logs[0].timestamps.as_ref().unwrap();
        let [held] = &stamps.held[..] else { panic!("{stamps:?}") };
        assert_eq!((held.at, held.size, Some(held)), (stamped.at, stamped.size, stamps.newest()));
        assert!(stamps.signers[held.by].contains("CN=TSA"), "{stamps:?}");
        assert_eq!(report.logs[1].timestamps, None);
        let json = report::verify_json(&report, "store");
        assert_eq!(json["logs"][0]["timestamps"]["newest"]["size"], stamped.size);
        assert_eq!(json["logs"][0]["timestamps"]["newest"]["at"], report::time(stamped.at));
        let mut text = Vec::new();
        report::verify_text(&mut text, &report, false).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains(&format!("newest {} of size {}", report::time(stamped.at), stamped.size)), "{text}");
    }
}

#[test]
fn a_run_again_asks_nobody_and_changes_nothing() {
    let server = Server::start(tsa());
    let (dir, mut database) = sample();
    once(dir.path(), &mut database, &[&server], Mode::Required);
    let (before, told) = (files(dir.path()), database.logs[PLATFORM].stamps.clone());
    for _ in 0..3 {
        let again = once(dir.path(), &mut database, &[&server], Mode::Required);
        assert_eq!((again.exit_code(), again.stamped.len()), (0, 0));
    }
    assert_eq!((server.asked(), files(dir.path())), (1, before));
    assert_eq!(database.logs[PLATFORM].stamps, told, "told again, and the same");
    // A database that was never told is told from the store.
    database.log(PLATFORM).stamps.clear();
    once(dir.path(), &mut database, &[&server], Mode::Required);
    assert_eq!((server.asked(), &database.logs[PLATFORM].stamps), (1, &told));
}

#[test]
fn at_most_one_in_an_interval_and_one_in_the_end() {
    let server = Server::start(tsa());
    let (dir, mut database) = sample();
    let mut publisher = with(dir.path(), &[&server], Mode::BestEffort);
    for _ in 0..4 {
        round(&mut publisher, &mut database, false);
        database.write(None, 1);
    }
    assert_eq!(server.asked(), 1);
    round(&mut publisher, &mut database, false);
    drop(publisher);
    // Also when the publisher was started anew: the stored token tells when it was.
    let mut publisher = with(dir.path(), &[&server], Mode::BestEffort);
    round(&mut publisher, &mut database, false);
    assert_eq!((server.asked(), tsr(dir.path()).len()), (1, 1));
    round(&mut publisher, &mut database, true);
    assert_eq!((server.asked(), tsr(dir.path()).len()), (2, 2));
    assert_eq!(check_ca(dir.path()).logs[0].timestamps.as_ref().unwrap().newest().unwrap().size, size(&database));
    drop(publisher);
    // A short interval has passed: the next round that has something new asks.
    let mut publisher = crate::common::publisher(dir.path()).with_stamper(stamper(
        &[&server],
        Mode::BestEffort,
        Duration::from_millis(1),
    ));
    std::thread::sleep(Duration::from_millis(5));
    round(&mut publisher, &mut database, false);
    assert_eq!(server.asked(), 2, "nothing new");
    database.write(None, 1);
    round(&mut publisher, &mut database, false);
    assert_eq!(server.asked(), 3);
}

#[test]
fn two_tsas_of_which_one_was_down() {
    let (one, two) = (Server::start(tsa()), Server::start(tsa()));
    let (dir, mut database) = sample();
    two.set(Answer::Status(503, "x: y"));
    let done = once(dir.path(), &mut database, &[&one, &two], Mode::BestEffort);
    assert_eq!((done.exit_code(), done.stamped.len(), done.warnings.len()), (0, 1, 1));
    assert!(done.warnings[0].1.contains("HTTP status 503") && done.warnings[0].1.contains(&two.url()), "{done:?}");
    two.set(Answer::Good);
    // In the other order, by a new process, after both changed nothing of their addresses.
    let done = once(dir.path(), &mut database, &[&two, &one], Mode::BestEffort);
    assert_eq!((done.stamped.len(), one.asked(), two.asked()), (1, 1, 2));
    let at = size(&database);
    assert_eq!(tsr(dir.path()), [path(PLATFORM, at, 0), path(PLATFORM, at, 1)]);
    assert_eq!(check_ca(dir.path()).logs[0].timestamps.as_ref().unwrap().held.len(), 2);
    // The same address twice is one TSA.
    let done = once(dir.path(), &mut database, &[&two, &two, &one], Mode::Required);
    assert_eq!((done.exit_code(), done.stamped.len()), (0, 0));
}

#[test]
fn a_bad_answer_is_never_stored() {
    let server = Server::start(tsa());
    let (dir, mut database) = sample();
    let folder = tempfile::tempdir().unwrap();
    let stranger = Server::start(Arc::new(Tsa::new(folder.path(), Kind::default())));
    let mut fill = FakeDatabase::new();
    fill.write(None, 1);
    let other = tempfile::tempdir().unwrap();
    once(other.path(), &mut fill, &[&server], Mode::Required);

    let good = files(other.path())[&tsr(other.path())[0]].clone();
    let refused = [0x30, 0x14, 0x30, 0x12, 2, 1, 2, 0x30, 0x0D, 0x0C, 0x0B]
        .into_iter()
        .chain(*b"no thank yo")
        .collect::<Vec<u8>>();
    let cases = [
        (Answer::Old, "other bytes"),
        (Answer::Bytes(good[..good.len() - 1].to_vec()), "byte "),
        (Answer::Bytes(b"<html>no</html>".to_vec()), "byte 0"),
        (Answer::Bytes(Vec::new()), "byte 0"),
        (Answer::Bytes(refused), "status 2: no thank yo"),
        (Answer::Bytes(vec![0x30; 200_000]), "more than 65536 bytes"),
        (Answer::Status(500, "x: y"), "HTTP status 500"),
        (Answer::Status(404, "x: y"), "HTTP status 404"),
        (Answer::Status(302, "location: http://127.0.0.1:1/"), "302: a redirection is not followed"),
        (Answer::Status(307, "location: /elsewhere"), "307: a redirection is not followed"),
        (Answer::Closed, ""),
        (Answer::Endless, ""),
    ];
    for mode in [Mode::BestEffort, Mode::Required] {
        for (answer, words) in &cases {
            server.set(answer.clone());
            let done = once(dir.path(), &mut database, &[&server], mode);
            let said = match (mode, &done.failures[..], &done.warnings[..]) {
                (Mode::BestEffort, [], [(origin, text)]) if origin == PLATFORM => text.clone(),
                (Mode::Required, [(Some(origin), Failure::Timestamp(text))], []) if origin == PLATFORM => text.clone(),
                _ => panic!("{answer:?}: {done:?}"),
            };
            assert!(said.contains(words) && said.contains(&server.url()), "{answer:?}: {said}");
            assert_eq!(done.exit_code(), if mode == Mode::Required { 2 } else { 0 });
            assert!(tsr(dir.path()).is_empty(), "{answer:?}");
        }
    }
    let done = once(dir.path(), &mut database, &[&stranger], Mode::Required);
    assert!(
        matches!(&done.failures[..], [(_, Failure::Timestamp(text))] if text.contains("no valid chain")),
        "{done:?}"
    );
    // Nobody there at all.
    let nobody = stranger.url();
    drop(stranger);
    let gone = Client::new(&nobody, Duration::from_secs(5)).unwrap();
    let stamper = Stamper::new(vec![gone], ca(&tsa()), Mode::Required, HOUR);
    let done = round(&mut publisher(dir.path()).with_stamper(stamper), &mut database, true);
    assert_eq!(done.exit_code(), 2);
    assert!(tsr(dir.path()).is_empty());
    server.set(Answer::Good);
    assert_eq!(once(dir.path(), &mut database, &[&server], Mode::Required).exit_code(), 0);
    assert_eq!(tsr(dir.path()).len(), 1);
}

#[test]
fn a_slow_tsa_is_given_up() {
    let server = Server::start(tsa());
    server.set(Answer::Slow(Duration::from_secs(4)));
    let (dir, mut database) = sample();
    let client = Client::new(&server.url(), Duration::from_millis(300)).unwrap();
    let stamper = Stamper::new(vec![client], ca(&tsa()), Mode::BestEffort, HOUR);
    let start = std::time::Instant::now();
    let done = round(&mut publisher(dir.path()).with_stamper(stamper), &mut database, true);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(matches!(&done.warnings[..], [(_, text)] if text.contains("timeout")), "{done:?}");
    assert!(database.logs[PLATFORM].published.contains_key(&size(&database)), "publishing did not wait");
}

#[test]
fn where_timestamps_are_required_the_database_is_told_of_what_they_cover() {
    let server = Server::start(tsa());
    let (dir, mut database) = sample();
    server.set(Answer::Status(500, "x: y"));
    let mut publisher = with(dir.path(), &[&server], Mode::Required);
    let done = round(&mut publisher, &mut database, false);
    assert_eq!(done.exit_code(), 2);
    assert!(database.logs[PLATFORM].published.is_empty());
    assert!(!database.logs[&tenant_origin("acme")].published.is_empty(), "tenants' receipts wait for nothing");
    assert_eq!(verify(dir.path()).exit_code(), 0, "what is written is whole");
    // The next attempt is a second away; until then the round fails all the same, and nobody is asked.
    let done = round(&mut publisher, &mut database, false);
    assert_eq!((done.exit_code(), server.asked()), (2, 1));

    server.set(Answer::Good);
    std::thread::sleep(Duration::from_millis(1_100));
    let done = round(&mut publisher, &mut database, false);
    assert_eq!((done.exit_code(), server.asked()), (0, 2), "{done:?}");
    let stamped = size(&database);
    let platform = &database.logs[PLATFORM];
    assert!(platform.anchors.keys().eq(platform.published.keys()), "all up to the timestamp");

    // Newer ones wait for the next, through a restart as well.
    database.write(None, 2);
    database.write(None, 2);
    assert_eq!(round(&mut publisher, &mut database, false).exit_code(), 0, "none is due");
    drop(publisher);
    let mut publisher = with(dir.path(), &[&server], Mode::Required);
    round(&mut publisher, &mut database, false);
    assert_eq!(database.logs[PLATFORM].published.keys().max(), Some(&stamped));
    let done = round(&mut publisher, &mut database, true);
    assert_eq!(done.exit_code(), 0, "{done:?}");
    let platform = &database.logs[PLATFORM];
    assert!(platform.anchors.keys().eq(platform.published.keys()));
    for (size, note) in &platform.notes {
        assert_eq!(note.as_bytes(), files(dir.path())[&checkpoint_path(PLATFORM, *size)]);
    }
    assert_eq!(check_ca(dir.path()).exit_code(), 0);
}

#[test]
fn a_database_that_could_not_be_told_is_told_later() {
    let server = Server::start(tsa());
    let (dir, mut database) = sample();
    database.stamps_left = Some(0);
    let mut publisher = with(dir.path(), &[&server], Mode::Required);
    assert_eq!(round(&mut publisher, &mut database, false).exit_code(), 2);
    assert_eq!(tsr(dir.path()).len(), 1);
    database.stamps_left = None;
    assert_eq!(round(&mut publisher, &mut database, false).exit_code(), 0);
    assert_eq!((database.logs[PLATFORM].stamps.len(), server.asked()), (1, 1));
}

/// The process dies after k operations on files, for every k: the next run ends with one good timestamp of this TSA.
#[test]
fn a_crash_at_any_point_loses_nothing() {
    let server = Server::start(tsa());
    let (_, sample) = sample();
    let dir = tempfile::tempdir().unwrap();
    let mut crashes = 0;
    for k in 0.. {
        let root = dir.path().join(k.to_string());
        std::fs::create_dir(&root).unwrap();
        let mut database = sample.clone();
        assert_eq!(publish(&root, &mut database).exit_code(), 0);
        let (files_left, done) = fast_files(Some(k));
        let crashed = match Writer::open(&root, files_left) {
            Ok(store) => {
                let publisher = Publisher::new(store, key(), "file:///worm".to_owned(), no_memory(&key()));
                let mut publisher = publisher.with_stamper(stamper(&[&server], Mode::Required, HOUR));
                !round(&mut publisher, &mut database, true).failures.is_empty()
            }
            Err(_) => true,
        };
        let left = tsr(&root);
        let before = files(&root);
        let again = once(&root, &mut database, &[&server], Mode::Required);
        assert_eq!(again.exit_code(), 0, "k = {k}: {again:?}");
        assert_eq!(tsr(&root), [path(PLATFORM, size(&database), 0)], "k = {k}, left: {left:?}");
        before.iter().for_each(|(name, bytes)| assert_eq!(&files(&root)[name], bytes, "k = {k}: {name}"));
        assert_eq!(database.logs[PLATFORM].stamps.len(), 1);
        let report = check_ca(&root);
        assert_eq!(report.exit_code(), 0, "k = {k}: {:?}", findings(&report));
        std::fs::remove_dir_all(&root).unwrap();
        if !crashed {
            assert!(done.get() <= k);
            break;
        }
        crashes += 1;
    }
    assert!(crashes > 5, "the crash was injected at {crashes} points");
}

#[test]
fn the_verifier_names_a_wrong_timestamp() {
    let server = Server::start(tsa());
    let (dir, mut database) = sample();
    once(dir.path(), &mut database, &[&server], Mode::Required);
    let first = size(&database);
    database.write(None, 2);
    once(dir.path(), &mut database, &[&server], Mode::Required);
    let name = path(PLATFORM, first, 0);
    let good = files(dir.path())[&name].clone();
    let newer = files(dir.path())[&path(PLATFORM, size(&database), 0)].clone();
    assert_eq!(check_ca(dir.path()).exit_code(), 0);
    // Without a CA nobody says that they hold, and nobody asked.
    let report = check(dir.path(), None);
    assert_eq!((report.exit_code(), &report.logs[0].timestamps), (0, &None));
    assert!(report.logs[0].result.notes.iter().any(|note| note == "2 timestamps not checked (no --tsa-ca)"));

    let of = |offset: Option<u64>| {
        let report = check_ca(dir.path());
        assert_eq!(report.exit_code(), 1);
        let [finding] = report.logs[0].result.findings.list() else { panic!("{:?}", findings(&report)) };
        assert_eq!((&finding.file, finding.offset.is_some()), (&name, offset.is_some()), "{finding:?}");
        if let Some(offset) = offset.filter(|offset| *offset != u64::MAX) {
            assert_eq!(finding.offset, Some(offset));
        }
        finding.message.clone()
    };
    for (wrong, offset, words) in [
        (newer, None, "other bytes"),
        (good[..good.len() - 3].to_vec(), Some(0), "timestamp reply"),
        (b"garbage".to_vec(), Some(0), "timestamp reply"),
        (Vec::new(), Some(0), "timestamp reply"),
        ([&good[..], b"x"].concat(), Some(good.len() as u64), "more follows"),
        (vec![0x30; 100_000], None, "at most"),
    ] {
        overwrite(dir.path(), &name, &wrong);
        let message = of(offset);
        assert!(message.contains(words), "{message}");
    }
    for at in (0..good.len()).step_by(97) {
        let mut wrong = good.clone();
        wrong[at] ^= 0x40;
        overwrite(dir.path(), &name, &wrong);
        let report = check_ca(dir.path());
        if report.exit_code() == 1 {
            assert_eq!(findings(&report)[0].0, name);
        }
    }
    overwrite(dir.path(), &name, &good);

    // Another CA, no CA file for these, names that are none.
    let folder = tempfile::tempdir().unwrap();
    let other = Tsa::new(folder.path(), Kind::default());
    assert_eq!(check(dir.path(), Some(&ca(&other))).findings(), 2);
    let foreign = dir.path().join(PLATFORM).join("timestamps/readme.txt");
    std::fs::write(&foreign, "x").unwrap();
    let report = check_ca(dir.path());
    assert_eq!(report.exit_code(), 0);
    assert!(report.logs[0].result.notes.iter().any(|note| note.contains("no timestamps; ignored")));
    // A timestamp of a checkpoint that is not there.
    let stray = path(PLATFORM, 999, 0);
    overwrite(dir.path(), &stray, &good);
    let report = check_ca(dir.path());
    assert_eq!((report.exit_code(), findings(&report)[0].0.as_str()), (1, stray.as_str()));
}

#[test]
fn whoever_gives_a_ca_asks_for_timestamps() {
    let server = Server::start(tsa());
    let (dir, mut database) = sample();
    publish(dir.path(), &mut database);
    let report = check_ca(dir.path());
    assert_eq!((report.exit_code(), report.findings()), (2, 0));
    assert_eq!(report.logs[0].result.unchecked, ["its timestamps: there are none"]);
    once(dir.path(), &mut database, &[&server], Mode::Required);
    database.write(None, 2);
    publish(dir.path(), &mut database);
    let report = check_ca(dir.path());
    assert_eq!(report.exit_code(), 0);
    assert!(report.logs[0].result.notes[0].contains("no timestamp covers the entries from 5 on"), "{report:?}");
}

#[test]
fn a_timestamp_before_its_events_is_false() {
    let server = Server::start(tsa());
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let start = (START / 1_000_000) as u64;
    for (ahead, code) in [(60, 0), (7_200, 1)] {
        let (dir, mut database) = sample();
        once(dir.path(), &mut database, &[&server], Mode::Required);
        // The database's clock is ahead of the TSA's.
        database.xact = (seconds + ahead - start) * 1_000_000 / 1_000_003;
        database.write(None, 2);
        once(dir.path(), &mut database, &[&server], Mode::Required);
        let report = check_ca(dir.path());
        assert_eq!(report.exit_code(), code, "{:?}", findings(&report));
        if code == 1 {
            let (file, text) = findings(&report)[0].clone();
            assert_eq!(file, path(PLATFORM, size(&database), 0), "the older one covers older events only");
            assert!(text.contains("but covers an event of"), "{text}");
        }
    }
}

/// A port that speaks no TLS: the request does not go out in plain text, and nothing panics for want of a TLS provider.
#[test]
fn https_is_tls() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/tsr", listener.local_addr().unwrap());
    let client = match Client::new(&url, Duration::from_secs(2)) {
        Ok(client) => client,
        // A machine without CA certificates says so.
        Err(error) => return assert!(matches!(error, TsaError::Roots(_)), "{error}"),
    };
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let mut first = [0; 3];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        first
    });
    let error = client.ask(b"request").unwrap_err().to_string();
    assert!(error.contains(&url), "{error}");
    assert_eq!(server.join().unwrap(), [0x16, 3, 1], "a ClientHello");
}

#[test]
fn addresses_that_are_none() {
    for bad in ["", "tsa.example", "ftp://tsa.example/", "http://", "http:///x", "https://user:secret@tsa.example/"] {
        let error = Client::new(bad, HOUR).unwrap_err();
        assert!(matches!(error, TsaError::Url { .. }), "{bad}");
        assert!(!error.to_string().contains("secret"));
    }
}

fn agd(args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_agd"));
    let output = command.args(args).env_remove("AGD_DATABASE").env_remove("PGPASSWORD").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn the_program_checks_its_options_and_its_files() {
    let server = Server::start(tsa());
    let (dir, mut database) = sample();
    once(dir.path(), &mut database, &[&server], Mode::Required);
    let files = tempfile::tempdir().unwrap();
    let [log, witness, policy] = ["log.key", "witness.key", "policy.txt"].map(|name| files.path().join(name));
    key().save(&log).unwrap();
    std::fs::write(&policy, format!("log {}\nquorum none\n", key().verifier())).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (store, log, policy, root) = (text(dir.path()), text(&log), text(&policy), text(&tsa().root()));

    let (code, out, _) = agd(&["verify", &store, "--policy", &policy, "--tsa-ca", &root]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("timestamps   1            newest "), "{out}");
    let (code, out, _) = agd(&["verify", &store, "--policy", &policy]);
    assert!(code == Some(0) && out.contains("1 timestamp not checked (no --tsa-ca)"), "{out}");
    for wrong in [policy.as_str(), "/nonexistent-agd", &text(&tsa().folder.join("tsa.pem")), "/dev/zero"] {
        let (code, _, err) = agd(&["verify", &store, "--policy", &policy, "--tsa-ca", wrong]);
        assert!(code == Some(2) && err.contains(wrong), "{wrong}: {err}");
    }

    let page = files.path().join("report.html");
    let run = agd(&["report", &store, "--policy", &policy, "--tsa-ca", &root, "--out", &text(&page)]);
    assert_eq!(run.0, Some(0), "{run:?}");
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("1 RFC 3161 timestamp on checkpoints holds"), "{page}");
    assert_eq!(page.matches("class=\"stamp\"").count(), 1);
    assert!(page.contains(", by CN=TSA") && page.contains(&format!(" --tsa-ca {root}")), "{page}");

    let (code, vkey, _) = agd(&["keygen", "--witness", "--name", "witness.example/w1", "--out", &text(&witness)]);
    assert_eq!(code, Some(0));
    let made = WitnessKey::load(&witness, &Source::Terminal).unwrap();
    assert_eq!(vkey.trim(), made.verifier().to_string());
    let publish = ["publish", "--database", "host=/nonexistent-agd", "--store", &store, "--key", &log, "--once"];
    let url = server.url();
    for (more, words) in [
        (&["--tsa", &url][..], "--tsa-ca"),
        (&["--tsa-ca", &root], "--tsa"),
        (&["--tsa-mode", "required"], "--tsa"),
        (&["--tsa", &url, "--tsa-ca", &root, "--tsa-mode", "maybe"], "best-effort or required"),
        (&["--tsa", &url, "--tsa-ca", &root, "--tsa-interval", "0s"], "longer than nothing"),
        (&["--tsa", "tsa.example", "--tsa-ca", &root], "not the address of a TSA"),
        (&["--tsa", &url, "--tsa-ca", &policy], "no PEM certificate"),
        (&["--witness-key", &log], "a log's key, not a witness's"),
        (&["--witness-key", "/nonexistent-agd"], "/nonexistent-agd"),
        // All of it is in order, and the database is asked next.
        (&["--tsa", &url, "--tsa-ca", &root, "--witness-key", &text(&witness)], "connect to the database"),
    ] {
        let (code, _, err) = agd(&[&publish[..], more].concat());
        assert!(code == Some(2) && err.contains(words), "{more:?}: {err}");
    }
}
