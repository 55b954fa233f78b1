//! A store in a bucket of a real S3 server: the same promises as in a folder, and what Object Lock adds.

use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::common::*;
use crate::s3_server::{S3Server, environment};
use agd_cli::publish::{Failure, Publisher, Refusal, Round};
use agd_cli::source::{Anchor, Identity, LogHead, Receipt, Source, SourceError};
use agd_cli::stamp::{self, Mode, Stamper};
use agd_cli::store::{ObjectLock, Reader, StoreError, Writer, checkpoint_path, parse_location};
use agd_cli::tsa::Tsa;
use agd_cli::verify::{self, Report};
use agd_tsp::Authorities;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

const PROBE: &str = ".agd_publish/create-only";

fn publisher_at(location: &str, settings: &[(String, String)]) -> Result<Publisher, StoreError> {
    let writer = Writer::at_with(&parse_location(location)?, settings)?;
    let place = writer.reader().place()?;
    Ok(Publisher::new(writer, key(), place, no_memory(&key())))
}

/// One round by a fresh publisher, as `--once` does it.
fn publish_to(server: &S3Server, location: &str, database: &mut FakeDatabase) -> Round {
    publisher_at(location, &server.environment()).unwrap().round(database, &mut |_| {})
}

#[track_caller]
fn ok(round: &Round) {
    assert!(round.refusals.is_empty(), "{:?}", round.refusals);
    assert!(round.failures.is_empty(), "{:?}", round.failures);
}

fn verify_at(server: &S3Server, location: &str) -> Report {
    let reader = Reader::open_with(&parse_location(location).unwrap(), &server.environment()).unwrap();
    verify::run(&reader, Some(&policy()), &AtomicU64::new(0)).unwrap()
}

#[track_caller]
fn holds(server: &S3Server, location: &str) {
    let report = verify_at(server, location);
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
}

/// Full and partial tiles, two tenants.
fn sample() -> FakeDatabase {
    let mut database = FakeDatabase::new();
    database.write(None, 3);
    database.write(Some("acme"), 300);
    database.write(Some("acme"), 400);
    database.write(Some("beta"), 1);
    database
}

fn agd(args: &[&str], environment: &[(String, String)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_agd"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    command.args(args).envs(environment.iter().cloned()).env_remove("AGD_DATABASE").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// What a folder store of the same database holds, in base64.
fn in_a_folder(databases: &mut [FakeDatabase]) -> BTreeMap<String, String> {
    let dir = tempfile::tempdir().unwrap();
    for database in databases {
        ok(&publish(dir.path(), database));
    }
    files(dir.path()).into_iter().map(|(name, bytes)| (name, BASE64_STANDARD.encode(bytes))).collect()
}

#[test]
fn a_bucket_holds_what_a_folder_would_and_every_object_is_locked() {
    let Some(server) = S3Server::start() else { return };
    server.locked_bucket("worm", "COMPLIANCE");
    let mut database = sample();
    let first = database.clone();
    ok(&publish_to(&server, "s3://worm/evidence/one", &mut database));
    assert_eq!(database.logs[PLATFORM].published.values().next().unwrap(), "s3://worm/evidence/one");
    holds(&server, "s3://worm/evidence/one");

    let mut objects = server.objects("worm");
    objects.remove(&format!("evidence/one/{PROBE}")).unwrap();
    let want = in_a_folder(&mut [first]);
    let named: BTreeMap<_, _> =
        want.iter().map(|(name, bytes)| (format!("evidence/one/{name}"), bytes.clone())).collect();
    assert_eq!(objects, named);

    // Again: nothing is written; later: only what is new is.
    server.requests();
    let round = publish_to(&server, "s3://worm/evidence/one", &mut database);
    ok(&round);
    assert!(round.published.is_empty());
    let puts: Vec<_> = server.requests().into_iter().filter(|request| request.starts_with("PUT")).collect();
    assert_eq!(puts, [format!("PUT /worm/evidence/one/{PROBE}")]);
    database.write(Some("acme"), 60);
    ok(&publish_to(&server, "s3://worm/evidence/one", &mut database));
    holds(&server, "s3://worm/evidence/one");

    // Each version of each object is locked, and stays.
    let acme = tenant_origin("acme");
    let newest = format!("evidence/one/{acme}/checkpoint");
    assert_eq!(server.versions("worm", &newest).len(), 2);
    for key in server.objects("worm").keys() {
        let versions = server.versions("worm", key);
        assert!(versions.len() == 1 || key.ends_with("/checkpoint"), "{key} was written again");
        for version in versions {
            let which = json!({ "Bucket": "worm", "Key": key, "VersionId": version });
            let head = server.call("head_object", which.clone()).unwrap();
            assert_eq!(head["ObjectLockMode"], "COMPLIANCE", "{key}");
            assert_eq!(server.call("delete_object", which), Err("AccessDenied".to_owned()), "{key}");
        }
    }

    // The verifier reads, and nothing else.
    server.requests();
    holds(&server, "s3://worm/evidence/one");
    let requests = server.requests();
    assert!(
        requests.len() > 10 && requests.iter().all(|r| r.starts_with("GET ") || r.starts_with("HEAD ")),
        "{requests:?}"
    );
}

#[test]
fn the_program_verifies_a_bucket() {
    let Some(server) = S3Server::start() else { return };
    server.bucket("worm");
    ok(&publish_to(&server, "s3://worm", &mut sample()));
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.txt");
    std::fs::write(&policy, format!("log {}\nquorum none\n", key().verifier())).unwrap();
    let policy = policy.to_str().unwrap();
    let args = ["verify", "s3://worm", "--policy", policy, "--json"];
    let good = agd(&args, &server.environment());
    assert_eq!(good.status.code(), Some(0), "{}", stderr(&good));
    let json: Value = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!((&json["store"], &json["logs"][1]["size"]), (&json!("s3://worm"), &json!(700)));

    // A changed object is named as in a folder.
    let key = format!("{}/tile/0/001", tenant_origin("acme"));
    server.call("put_object", json!({ "Bucket": "worm", "Key": key, "Body": "x".repeat(8192) })).unwrap();
    let bad = agd(&args, &server.environment());
    assert_eq!(bad.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!(json["logs"][1]["findings"][0]["file"], key);

    // A bucket that is not there, a prefix with nothing below, a server that is not there.
    for (location, environment, text) in [
        ("s3://nobucket", server.environment(), "NoSuchBucket"),
        ("s3://worm", environment("http://127.0.0.1:9", "test", "sesame"), "onnect"),
    ] {
        let output = agd(&["verify", location, "--policy", policy], &environment);
        assert_eq!(output.status.code(), Some(2), "{location}");
        assert!(stderr(&output).contains(text), "{}", stderr(&output));
        assert!(!stderr(&output).contains("sesame"), "{}", stderr(&output));
    }
    assert_eq!(agd(&["verify", "s3://worm/else", "--policy", policy], &server.environment()).status.code(), Some(2));
}

#[test]
fn an_object_of_other_content_or_size_is_never_overwritten_and_never_taken_in() {
    let Some(server) = S3Server::start() else { return };
    server.bucket("worm");
    let acme = tenant_origin("acme");
    let planted = format!("{acme}/tile/0/001");
    server.call("put_object", json!({ "Bucket": "worm", "Key": planted, "Body": "planted" })).unwrap();
    let mut database = sample();
    let round = publish_to(&server, "s3://worm", &mut database);
    let [Refusal::Store { origin, reason }] = &round.refusals[..] else { panic!("{round:?}") };
    assert!(*origin == acme && reason.contains(&planted), "{reason}");
    let objects = server.objects("worm");
    assert_eq!(objects[&planted], BASE64_STANDARD.encode("planted"));
    assert!(!objects.contains_key(&format!("{acme}/checkpoint")));
    assert!(objects.contains_key(&format!("{}/checkpoint", tenant_origin("beta"))), "the other logs go on");

    server.call("delete_object", json!({ "Bucket": "worm", "Key": planted })).unwrap();
    ok(&publish_to(&server, "s3://worm", &mut database));
    let huge = checkpoint_path(&acme, 256);
    server.call("put_object", json!({ "Bucket": "worm", "Key": huge, "Body": "x".repeat(3_000_000) })).unwrap();
    let report = verify_at(&server, "s3://worm");
    assert!(
        findings(&report).iter().any(|(file, text)| *file == huge && text.contains("3000000 bytes")),
        "{:?}",
        findings(&report)
    );
}

/// What was published is compared with the database when a process starts: a server far away is asked for many at once.
#[test]
fn old_checkpoints_are_read_many_at_once() {
    let Some(server) = S3Server::start() else { return };
    server.bucket("worm");
    let mut database = FakeDatabase::new();
    (0..120).for_each(|_| database.write(None, 1));
    ok(&publish_to(&server, "s3://worm", &mut database));
    server.requests();
    server.pause(0.02);
    server.together();
    let round = publish_to(&server, "s3://worm", &mut database);
    ok(&round);
    assert!(round.published.is_empty());
    let read = server.requests();
    let read = (1..=120).filter(|size| read.contains(&format!("GET /worm/{}", checkpoint_path(PLATFORM, *size))));
    assert_eq!(read.count(), 120);
    assert!(server.together() >= 4);

    // Of more than one that is wrong, the first is named.
    database.log(PLATFORM).anchors.extend([(40, [1; 32]), (90, [2; 32])]);
    let round = publish_to(&server, "s3://worm", &mut database);
    let [Refusal::NotAContinuation { size: 40, .. }] = &round.refusals[..] else { panic!("{round:?}") };
}

/// The server answers k writes and no more, for every k; the next run must end with the same objects.
#[test]
fn a_crash_at_any_point_changes_nothing() {
    let Some(server) = S3Server::start() else { return };
    let mut sample = FakeDatabase::new();
    sample.write(Some("acme"), 300);
    let mut grown = sample.clone();
    grown.write(Some("acme"), 230);
    let want = in_a_folder(&mut [sample.clone(), grown.clone()]);
    let mut crashes = 0;
    for k in 0.. {
        let bucket = format!("worm-{k}");
        let location = format!("s3://{bucket}");
        server.bucket(&bucket);
        let mut database = sample.clone();
        server.fault(&["PUT"], k, None, 403, false);
        let crashed = match publisher_at(&location, &server.environment()) {
            Ok(mut publisher) => {
                let round = publisher.round(&mut database, &mut |_| {});
                assert!(round.refusals.is_empty(), "{:?}", round.refusals);
                !round.failures.is_empty()
            }
            Err(StoreError::Remote { .. }) => true,
            Err(error) => panic!("{error}"),
        };
        server.no_fault();
        if server.objects(&bucket).contains_key(&format!("{PLATFORM}/checkpoint")) {
            holds(&server, &location);
        }
        ok(&publish_to(&server, &location, &mut database));
        holds(&server, &location);
        let mut next = grown.clone();
        for (origin, log) in &database.logs {
            next.log(origin).published = log.published.clone();
        }
        ok(&publish_to(&server, &location, &mut next));
        let mut objects = server.objects(&bucket);
        objects.remove(PROBE).unwrap();
        assert_eq!(objects, want, "k = {k}");
        if !crashed {
            break;
        }
        crashes += 1;
    }
    assert!(crashes >= 12, "the crash was injected at {crashes} points");
}

#[test]
fn errors_of_the_server_that_pass_are_waited_for() {
    let Some(server) = S3Server::start() else { return };
    for (number, done) in [false, true].into_iter().enumerate() {
        let location = format!("s3://worm-{number}");
        server.bucket(&location[5..]);
        let mut database = sample();
        let mut publisher = publisher_at(&location, &server.environment()).unwrap();
        // In the middle of the tiles, and of the checkpoints; before the request is done, and after.
        server.fault(&["PUT"], 5, Some(3), 503, done);
        ok(&publisher.round(&mut database, &mut |_| {}));
        database.write(Some("acme"), 1);
        server.fault(&["PUT"], 3, Some(2), 500, done);
        ok(&publisher.round(&mut database, &mut |_| {}));
        server.fault(&["GET"], 2, Some(2), 503, false);
        holds(&server, &location);
        server.no_fault();
        holds(&server, &location);
    }
}

#[test]
fn a_server_that_is_gone_is_no_refusal_and_leaves_no_half_of_a_checkpoint() {
    let Some(server) = S3Server::start() else { return };
    server.bucket("worm");
    let mut database = sample();
    let mut publisher = publisher_at("s3://worm", &server.environment()).unwrap();
    ok(&publisher.round(&mut database, &mut |_| {}));
    database.write(Some("acme"), 300);
    for (methods, spare) in [(&["PUT"][..], 2), (&["GET"], 0), (&["GET", "PUT"], 4)] {
        server.fault(methods, spare, None, 403, false);
        let round = publisher.round(&mut database, &mut |_| {});
        assert_eq!((round.exit_code(), round.refusals.len()), (2, 0), "{round:?}");
        let [(_, Failure::Store(error)), ..] = &round.failures[..] else { panic!("{round:?}") };
        assert!(error.to_string().contains("AccessDenied"), "{error}");
        server.no_fault();
        holds(&server, "s3://worm");
        assert_eq!(verify_at(&server, "s3://worm").logs[1].result.size, 700);
    }
    ok(&publisher.round(&mut database, &mut |_| {}));
    assert_eq!(verify_at(&server, "s3://worm").logs[1].result.size, 1000);
    // What cannot be asked is not called missing.
    server.fault(&["HEAD", "GET"], 9, None, 403, false);
    let report = verify_at(&server, "s3://worm");
    assert_eq!((report.exit_code(), report.findings()), (2, 0), "{:?}", findings(&report));
}

/// A database that does something the first time entries are fetched.
struct Meanwhile<'a, F: FnOnce()> {
    database: &'a mut FakeDatabase,
    then: Option<F>,
}

impl<F: FnOnce()> Source for Meanwhile<'_, F> {
    fn identity(&mut self) -> Result<Identity, SourceError> {
        self.database.identity()
    }
    fn logs(&mut self, place: Option<&str>) -> Result<Vec<LogHead>, SourceError> {
        self.database.logs(place)
    }
    fn anchors(&mut self, origin: &str, from: i64, limit: i64) -> Result<Vec<Anchor>, SourceError> {
        self.database.anchors(origin, from, limit)
    }
    fn entries(&mut self, origin: &str, first: i64, last: i64) -> Result<Vec<(i64, Vec<u8>)>, SourceError> {
        if let Some(then) = self.then.take() {
            then();
        }
        self.database.entries(origin, first, last)
    }
    fn record_publication(&mut self, origin: &str, published: &[Receipt], to: &str) -> Result<(), SourceError> {
        self.database.record_publication(origin, published, to)
    }
    fn record_timestamp(&mut self, origin: &str, size: i64, root: &agd_core::Hash, at: i64) -> Result<(), SourceError> {
        self.database.record_timestamp(origin, size, root, at)
    }

    fn report_divergence(&mut self, origin: &str, newest: &Receipt) -> Result<(), SourceError> {
        self.database.report_divergence(origin, newest)
    }
}

#[test]
fn of_two_publishers_the_one_that_is_behind_fails_and_undoes_nothing() {
    let Some(server) = S3Server::start() else { return };
    server.bucket("worm");
    let mut database = sample();
    ok(&publish_to(&server, "s3://worm", &mut database));
    database.write(Some("acme"), 10);
    let mut behind = database.clone();
    database.write(Some("acme"), 10);
    let mut slow = publisher_at("s3://worm", &server.environment()).unwrap();
    let then = || ok(&publish_to(&server, "s3://worm", &mut database));
    let round = slow.round(&mut Meanwhile { database: &mut behind, then: Some(then) }, &mut |_| {});
    assert_eq!((round.exit_code(), round.refusals.len()), (2, 0), "{round:?}");
    assert!(
        matches!(&round.failures[0].1, Failure::Store(StoreError::Stale { path }) if path.ends_with("/t/acme/checkpoint")),
        "{round:?}"
    );
    holds(&server, "s3://worm");
    assert_eq!(verify_at(&server, "s3://worm").logs[1].result.size, 720);
    // With what the other has published before its eyes, it goes on as if it had been its own.
    database.write(Some("acme"), 10);
    ok(&slow.round(&mut database, &mut |_| {}));
    assert_eq!(verify_at(&server, "s3://worm").logs[1].result.size, 730);
}

#[test]
fn a_server_that_keeps_no_conditions_is_refused() {
    let Some(server) = S3Server::start() else { return };
    server.bucket("worm");
    server.deaf(&["If-None-Match"]);
    let error = publisher_at("s3://worm", &server.environment()).unwrap_err().to_string();
    assert!(error.contains("ignores If-None-Match"), "{error}");
}

#[test]
fn what_is_not_locked_is_said_at_each_start() {
    let Some(server) = S3Server::start() else { return };
    server.bucket("plain");
    let place = json!({ "LocationConstraint": "eu-central-1" });
    let nodefault =
        json!({ "Bucket": "nodefault", "CreateBucketConfiguration": place, "ObjectLockEnabledForBucket": true });
    server.call("create_bucket", nodefault).unwrap();
    server.locked_bucket("locked", "COMPLIANCE");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("log.key");
    key().save(&file).unwrap();
    let run = |bucket: &str, more: &[&str]| {
        let location = format!("s3://{bucket}");
        let mut args = vec!["publish", "--database", "host=/nonexistent-agd user=x", "--store", &location];
        args.extend(["--key", file.to_str().unwrap(), "--once"]);
        args.extend(more);
        let output = agd(&args, &server.environment());
        assert_eq!(output.status.code(), Some(2));
        format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output))
    };
    for (bucket, text) in [("plain", "Object Lock is off"), ("nodefault", "without a default retention")] {
        let said = run(bucket, &[]);
        assert!(said.starts_with("warning: s3://") && said.contains(text), "{said}");
        assert!(said.contains("connect to the database"), "it goes on: {said}");
        let said = run(bucket, &["--require-object-lock"]);
        assert!(said.contains(text) && !said.contains("connect to the database"), "{said}");
        let line = run(bucket, &["--json"]);
        let warning: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
        assert_eq!(warning["event"], "warning");
    }
    let said = run("locked", &["--require-object-lock"]);
    assert!(said.starts_with("failed connect to the database"), "{said}");
    let writer = Writer::at_with(&parse_location("s3://locked").unwrap(), &server.environment()).unwrap();
    let locked = ObjectLock::Default { mode: "COMPLIANCE".to_owned(), period: "1 day".to_owned() };
    assert_eq!(writer.object_lock().unwrap(), Some(locked));
    // A folder has no such thing.
    let args = ["publish", "--database", "host=x", "--store", dir.path().to_str().unwrap(), "--key"];
    let output = agd(&[&args[..], &[file.to_str().unwrap(), "--once", "--require-object-lock"]].concat(), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("a folder has no Object Lock"), "{}", stderr(&output));
}

/// The policy of docs/cli.md, for a bucket of this name.
fn documented_policy(bucket: &str) -> Value {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md")).unwrap();
    let (_, rest) = text.split_once("cat > publisher-policy.json <<'END'\n").unwrap();
    let (policy, _) = rest.split_once("\nEND\n").unwrap();
    serde_json::from_str(&policy.replace("my-worm-bucket", bucket)).unwrap()
}

#[test]
fn the_documented_policy_is_enough_and_other_credentials_are_not() {
    let Some(server) = S3Server::start() else { return };
    server.locked_bucket("worm", "GOVERNANCE");
    let publisher = server.only(&documented_policy("worm"));
    let mut database = sample();
    for count in [0, 30] {
        if count > 0 {
            database.write(Some("acme"), count);
        }
        ok(&publisher_at("s3://worm", &publisher).unwrap().round(&mut database, &mut |_| {}));
    }
    let reader = Reader::open_with(&parse_location("s3://worm").unwrap(), &publisher).unwrap();
    let report = verify::run(&reader, Some(&policy()), &AtomicU64::new(0)).unwrap();
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));

    let with = |name: &str, value: &str| {
        let mut settings = publisher.clone();
        settings.iter_mut().filter(|(known, _)| known == name).for_each(|(_, old)| value.clone_into(old));
        settings
    };
    for (settings, code) in [
        (with("AWS_SECRET_ACCESS_KEY", "open-sesame"), "SignatureDoesNotMatch"),
        (with("AWS_ACCESS_KEY_ID", "AKIAOPENSESAME"), "InvalidAccessKeyId"),
    ] {
        let start = Instant::now();
        let error = publisher_at("s3://worm", &settings).unwrap_err();
        assert!(matches!(error, StoreError::Remote { .. }) && error.is_unavailable());
        let text = error.to_string();
        assert!(text.contains(code) && !text.to_lowercase().contains("sesame"), "{text}");
        assert!(start.elapsed() < Duration::from_secs(10), "it is not tried again and again");
        let output = agd(&["verify", "s3://worm"], &settings);
        assert_eq!(output.status.code(), Some(2));
        assert!(!stderr(&output).to_lowercase().contains("sesame"), "{}", stderr(&output));
    }
}

#[test]
fn timestamps_are_objects_that_are_created_and_never_overwritten() {
    let Some(server) = S3Server::start() else { return };
    server.locked_bucket("worm", "GOVERNANCE");
    let settings = server.only(&documented_policy("worm"));
    let folder = tempfile::tempdir().unwrap();
    let tsa = Arc::new(crate::openssl::Tsa::new(folder.path(), crate::openssl::Kind::default()));
    let authority = crate::openssl::server::Server::start(Arc::clone(&tsa));
    let ca = Authorities::from_pem(&tsa.pem()).unwrap();
    let mut database = sample();
    let publish = |database: &mut FakeDatabase| {
        let client = Tsa::new(&authority.url(), Duration::from_secs(5)).unwrap();
        let stamper = Stamper::new(vec![client], ca.clone(), Mode::Required, Duration::from_secs(3600));
        let mut publisher = publisher_at("s3://worm", &settings).unwrap().with_stamper(stamper);
        let mut round = publisher.round(database, &mut |_| {});
        publisher.stamp(database, true, &mut round);
        ok(&round);
        round.stamped
    };
    let check = || {
        let reader = Reader::open_with(&parse_location("s3://worm").unwrap(), &settings).unwrap();
        verify::run_with(&reader, Some(&policy()), Some(&ca), &AtomicU64::new(0)).unwrap()
    };
    let newest = |database: &FakeDatabase| *database.logs[PLATFORM].anchors.last_key_value().unwrap().0;
    let [first] = &publish(&mut database)[..] else { panic!("one TSA") };
    assert_eq!(first.file, stamp::path(PLATFORM, newest(&database), 0));
    assert!(publish(&mut database).is_empty(), "a run again goes on from the bucket alone");
    assert_eq!(authority.asked(), 1);
    let report = check();
    assert_eq!(report.exit_code(), 0, "{:?}", findings(&report));
    assert_eq!(report.logs[0].timestamps.as_ref().unwrap().newest().unwrap().at, first.at);

    // A name that is taken stays what it is, and the reply goes under the next one.
    database.write(Some("acme"), 5);
    let taken = stamp::path(PLATFORM, newest(&database), 0);
    server.call("put_object", json!({ "Bucket": "worm", "Key": taken, "Body": "planted" })).unwrap();
    let [second] = &publish(&mut database)[..] else { panic!("one TSA") };
    assert_eq!(second.file, stamp::path(PLATFORM, newest(&database), 1));
    assert_eq!(server.objects("worm")[&taken], BASE64_STANDARD.encode("planted"));
    let report = check();
    assert_eq!(findings(&report).iter().map(|(file, _)| file).collect::<Vec<_>>(), [&taken]);
    assert_eq!(report.logs[0].timestamps.as_ref().unwrap().held.len(), 2);
}
