use super::*;
use crate::openssl::{GOOD, Keys, OTHER_POLICY, POLICY, element, openssl, sequence};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[test]
fn openssl_reads_our_request() {
    let folder = tempfile::tempdir().unwrap();
    let request = Request::new(MESSAGE, NONCE, Some(OTHER_POLICY)).unwrap();
    std::fs::write(folder.path().join("q"), request.to_der().unwrap()).unwrap();
    let text = openssl(folder.path(), &["ts", "-query", "-in", "q", "-text"]);
    let text = String::from_utf8(text).unwrap();
    for part in
        ["Version: 1", "Hash Algorithm: sha256", "Policy OID: 1.2.3.4.5", "Nonce: 0x123456789ABCDEF0", "required: yes"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The same bytes as openssl's own, where nothing is random.
    std::fs::write(folder.path().join("data"), MESSAGE).unwrap();
    openssl(folder.path(), &["ts", "-query", "-data", "data", "-sha256", "-cert", "-out", "theirs"]);
    let theirs = std::fs::read(folder.path().join("theirs")).unwrap();
    let ours = request.to_der().unwrap();
    let imprint = |bytes: &[u8]| bytes[5..5 + 2 + 15 + 2 + 32].to_vec();
    assert_eq!(imprint(&ours), imprint(&theirs));
    assert!(Request::new(MESSAGE, 1, Some("not an oid")).is_err());
}

#[test]
fn nonces_of_every_length_come_back() {
    for nonce in [0, 1, 0x7F, 0x80, 0xFFFF, u64::MAX, 1 << 63, 1 << 31] {
        let request = Request::new(MESSAGE, nonce, None).unwrap();
        let reply = tsa().reply(&request.to_der().unwrap());
        let stamp = verify(&reply, MESSAGE, &pinned(tsa()), Some(&request)).unwrap();
        assert_eq!(stamp.nonce, Some(nonce));
    }
}

#[test]
fn every_kind_of_key_hash_and_chain() {
    let mut kinds = Vec::new();
    for (keys, digest) in
        [(Keys::Rsa, "sha256"), (Keys::P256, "sha384"), (Keys::P384, "sha384"), (Keys::P384, "sha256")]
    {
        kinds.push(Kind { keys, digest, ..Kind::default() });
    }
    kinds.push(Kind { keys: Keys::P256, digest: "sha512", intermediate: false, ..Kind::default() });
    kinds.push(Kind { keys: Keys::P384, digest: "sha512", binding: "sha384", ..Kind::default() });
    kinds.push(Kind { keys: Keys::Rsa, digest: "sha512", binding: "sha1", intermediate: false });
    kinds.push(Kind { keys: Keys::Rsa, digest: "sha384", binding: "sha512", intermediate: true });
    for kind in kinds {
        let (_folder, tsa) = another(kind);
        let reply = reply(&tsa);
        let stamp = check(&reply, &tsa).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
        assert_eq!((stamp.policy.as_str(), stamp.signer.as_str()), (POLICY, "CN=TSA,O=Test"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let at = Duration::from_micros(stamp.gen_time as u64);
        assert!(now.abs_diff(at) < Duration::from_secs(120), "{at:?}");
        // Whoever finds the reply later has no request.
        assert_eq!(verify(&reply, MESSAGE, &pinned(&tsa), None), Ok(stamp));
        assert_eq!(tsa.openssl_verifies(&reply, MESSAGE), Ok(()));
    }
}

#[test]
fn the_policy_that_was_asked_for() {
    let request = Request::new(MESSAGE, NONCE, Some(OTHER_POLICY)).unwrap();
    let reply = tsa().reply(&request.to_der().unwrap());
    let stamp = verify(&reply, MESSAGE, &pinned(tsa()), Some(&request)).unwrap();
    assert_eq!(stamp.policy, OTHER_POLICY);
}

#[test]
fn pss_and_a_signer_named_by_its_key() {
    let (_folder, tsa) = another(Kind { keys: Keys::Rsa, ..Kind::default() });
    let content = tsa.content(&reply(&tsa));
    for md in ["sha256", "sha384", "sha512"] {
        let pss = ["-cades", "-md", md, "-keyopt", "rsa_padding_mode:pss", "-keyopt", "rsa_pss_saltlen:digest"];
        let mgf = format!("rsa_mgf1_md:{md}");
        let signed = tsa.sign(&content, "tsa", &[&pss[..], &["-keyopt", &mgf]].concat());
        assert!(check(&signed, &tsa).is_ok(), "{md}: {:?}", check(&signed, &tsa));
    }
    let by_key = tsa.sign(&content, "tsa", &["-cades", "-md", "sha256", "-keyid"]);
    assert!(check(&by_key, &tsa).is_ok(), "{:?}", check(&by_key, &tsa));
}

/// A TSTInfo of our own making, for what openssl's TSA never says.
pub fn tst_info(gen_time: &[u8], tail: &[&[u8]]) -> Vec<u8> {
    let request = request().to_der().unwrap();
    let imprint = &request[5..5 + 2 + 15 + 2 + 32];
    let nonce = [&[2, 8], &NONCE.to_be_bytes()[..]].concat();
    let parts = [&[2, 1, 1][..], &[6, 3, 0x2A, 3, 4], imprint, &[2, 1, 7], &element(0x18, gen_time), &nonce];
    sequence(&[&parts[..], tail].concat())
}

#[test]
fn fractions_of_a_second_and_harmless_extensions() {
    // Its certificates are valid from when it was made.
    let tsa = tsa();
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let now = Command::new("date").args(["-u", "-d", &format!("@{seconds}"), "+%Y%m%d%H%M%S"]).output().unwrap();
    let now = String::from_utf8(now.stdout).unwrap();
    let now = now.trim();
    let content = tst_info(format!("{now}.1234567Z").as_bytes(), &[]);
    let signed = tsa.sign(&content, "tsa", &["-cades", "-md", "sha256"]);
    let stamp = check(&signed, tsa).unwrap();
    assert_eq!(stamp.gen_time, seconds as i64 * 1_000_000 + 123_456);
    assert_eq!((stamp.policy.as_str(), stamp.serial.as_str()), ("1.2.3.4", "07"));

    let extension = |critical: bool| {
        let flag: &[u8] = if critical { &[1, 1, 0xFF] } else { &[] };
        element(0xA1, &sequence(&[&[6, 3, 0x2A, 3, 4], flag, &[4, 1, 0]]))
    };
    let at = format!("{now}Z");
    for (critical, good) in [(false, true), (true, false)] {
        let content = tst_info(at.as_bytes(), &[&extension(critical)]);
        let signed = tsa.sign(&content, "tsa", &["-cades", "-md", "sha256"]);
        assert_eq!(check(&signed, tsa).is_ok(), good, "{:?}", check(&signed, tsa));
    }
}

#[test]
fn a_timestamp_outlives_the_certificates() {
    // All of them expired years ago; the TSA's a year before the others.
    let (_folder, tsa) = another(Kind::default());
    let ca = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";
    let valid = ("20180101000000Z", "20210101000000Z");
    tsa.certificate_for_period("root", "/O=Test/CN=Root", "root", ca, valid);
    tsa.certificate_for_period("between", "/O=Test/CN=Between", "root", ca, valid);
    tsa.certificate_for_period("tsa", "/O=Test/CN=TSA", "between", GOOD, ("20190101000000Z", "20200101000000Z"));
    std::fs::copy(tsa.folder.join("between.pem"), tsa.folder.join("chain.pem")).unwrap();
    let stamped = |at: &[u8]| check(&tsa.sign(&tst_info(at, &[]), "tsa", &["-cades", "-md", "sha256"]), &tsa);
    // What counts is the time that it tells.
    assert_eq!(stamped(b"20190701000000Z").map(|stamp| stamp.gen_time), Ok(1_561_939_200_000_000));
    assert!(stamped(b"20190101000000Z").is_ok() && stamped(b"20191231235959Z").is_ok());
    let outside = [
        (&b"20181231235959Z"[..], "no valid chain"),
        (b"20200101000001Z", "no valid chain"),
        (b"20210101000001Z", "had expired, or was not valid yet"),
    ];
    for (at, words) in outside {
        let error = stamped(at).expect_err("not valid at that time").to_string();
        assert!(error.contains(words), "{error}");
    }
}
