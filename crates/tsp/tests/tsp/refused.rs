use super::*;
use crate::accepted::tst_info;
use crate::openssl::{GOOD, Keys, OTHER_POLICY, element, openssl, sequence};

#[track_caller]
fn refused(result: Result<Timestamp, TspError>, words: &str) {
    let error = result.unwrap_err();
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn another_request() {
    let reply = reply(tsa());
    let ca = pinned(tsa());
    let other_nonce = Request::new(MESSAGE, NONCE + 1, None).unwrap();
    assert_eq!(verify(&reply, MESSAGE, &ca, Some(&other_nonce)), Err(TspError::Nonce));
    let other = Request::new(b"other", NONCE, None).unwrap();
    assert_eq!(verify(&reply, b"other", &ca, Some(&other)), Err(TspError::Imprint));
    assert_eq!(verify(&reply, b"other", &ca, None), Err(TspError::Imprint));
    assert_eq!(verify(&reply, MESSAGE, &ca, Some(&other)), Err(TspError::Imprint));
    let policy = Request::new(MESSAGE, NONCE, Some(OTHER_POLICY)).unwrap();
    assert!(matches!(verify(&reply, MESSAGE, &ca, Some(&policy)), Err(TspError::Policy { .. })));
    // A token without a nonce answers no request, and is a timestamp all the same.
    std::fs::write(tsa().folder.join("nonce-less.data"), MESSAGE).unwrap();
    let (_folder, own) = another(Kind::default());
    std::fs::write(own.folder.join("data"), MESSAGE).unwrap();
    openssl(&own.folder, &["ts", "-query", "-data", "data", "-sha256", "-cert", "-no_nonce", "-out", "q"]);
    let reply = own.reply(&std::fs::read(own.folder.join("q")).unwrap());
    assert_eq!(check(&reply, &own), Err(TspError::Nonce));
    assert!(verify(&reply, MESSAGE, &pinned(&own), None).is_ok());
}

#[test]
fn another_hash_of_the_same_bytes() {
    let (_folder, own) = another(Kind::default());
    std::fs::write(own.folder.join("data"), MESSAGE).unwrap();
    openssl(&own.folder, &["ts", "-query", "-data", "data", "-sha512", "-cert", "-out", "q"]);
    let reply = own.reply(&std::fs::read(own.folder.join("q")).unwrap());
    refused(verify(&reply, MESSAGE, &pinned(&own), None), "2.16.840.1.101.3.4.2.3 is not accepted");
}

#[test]
fn another_ca_with_the_same_name() {
    let (_folder, other) = another(Kind::default());
    assert!(matches!(check(&reply(tsa()), &other), Err(TspError::Chain { .. })));
    assert!(matches!(check(&reply(&other), tsa()), Err(TspError::Chain { .. })));
}

#[test]
fn no_certificate_and_no_intermediate() {
    let (_folder, own) = another(Kind::default());
    let content = own.content(&reply(&own));
    refused(check(&own.sign(&content, "tsa", &["-cades", "-md", "sha256", "-nocerts"]), &own), "not in the token");
    std::fs::copy(own.folder.join("root.pem"), own.folder.join("chain.pem")).unwrap();
    assert!(matches!(check(&reply(&own), &own), Err(TspError::Chain { .. })));
    // Both pinned: the chain is whole again.
    let both = [own.pem(), std::fs::read(own.folder.join("between.pem")).unwrap()].concat();
    let both = Authorities::from_pem(&both).unwrap();
    assert!(verify(&reply(&own), MESSAGE, &both, Some(&request())).is_ok());
}

#[test]
fn certificates_that_may_not_stamp() {
    let (_folder, own) = another(Kind::default());
    let content = own.content(&reply(&own));
    let with = |usage: &str| format!("basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\n{usage}\n");
    let cases = [
        (with(""), "has no extended key usage"),
        (with("extendedKeyUsage=timeStamping"), "not critical"),
        (with("extendedKeyUsage=critical,timeStamping,emailProtection"), "only purpose"),
        (with("extendedKeyUsage=critical,codeSigning"), "not for timestamps"),
        (
            "basicConstraints=CA:FALSE\nkeyUsage=critical,keyEncipherment\nextendedKeyUsage=critical,timeStamping\n"
                .into(),
            "key usage other than signing",
        ),
        (
            "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=critical,timeStamping\n".into(),
            "key usage other than signing",
        ),
    ];
    own.key("odd");
    for (extensions, words) in cases {
        own.certificate("odd", "/O=Test/CN=Odd", "between", &extensions, "30");
        let signed = own.sign(&content, "odd", &["-cades", "-md", "sha256"]);
        refused(check(&signed, &own), words);
        assert!(own.openssl_verifies(&signed, MESSAGE).is_err());
    }
    // The same way with a good certificate is accepted: nothing else was wrong.
    own.certificate("odd", "/O=Test/CN=Odd", "between", GOOD, "30");
    let content = own.content(&reply(&own));
    assert!(check(&own.sign(&content, "odd", &["-cades", "-md", "sha256"]), &own).is_ok());
    // Not valid at the token's time.
    own.certificate("odd", "/O=Test/CN=Odd", "between", GOOD, "-1");
    refused(check(&own.sign(&content, "odd", &["-cades", "-md", "sha256"]), &own), "no valid chain");
    let long_ago = tst_info(b"20200101000000Z", &[]);
    refused(
        check(&own.sign(&long_ago, "tsa", &["-cades", "-md", "sha256"]), &own),
        "had expired, or was not valid yet",
    );
}

#[test]
fn an_intermediate_that_is_no_ca_or_for_something_else() {
    let (_folder, own) = another(Kind::default());
    for extensions in [
        "basicConstraints=critical,CA:FALSE\n",
        "basicConstraints=critical,CA:TRUE\nextendedKeyUsage=serverAuth\n",
        "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,digitalSignature\n",
    ] {
        own.certificate("between", "/O=Test/CN=Between", "root", extensions, "30");
        std::fs::copy(own.folder.join("between.pem"), own.folder.join("chain.pem")).unwrap();
        assert!(matches!(check(&reply(&own), &own), Err(TspError::Chain { .. })), "{extensions}");
    }
}

#[test]
fn a_certificate_that_the_attributes_do_not_name() {
    let (_folder, own) = another(Kind::default());
    let content = own.content(&reply(&own));
    refused(check(&own.sign(&content, "tsa", &["-md", "sha256"]), &own), "do not name the signer's certificate");
    refused(check(&own.sign(&content, "tsa", &["-noattr", "-md", "sha256"]), &own), "signedAttrs");
    // A certificate made anew for the same key, issuer and serial number: another hash.
    let good = own.sign(&content, "tsa", &["-cades", "-md", "sha256"]);
    let der = |name: &str| {
        openssl(&own.folder, &["x509", "-in", name, "-outform", "DER", "-out", "out.der"]);
        std::fs::read(own.folder.join("out.der")).unwrap()
    };
    let before = der("tsa.pem");
    let serial = openssl(&own.folder, &["x509", "-in", "tsa.pem", "-noout", "-serial"]);
    let serial = String::from_utf8(serial).unwrap().trim().replace("serial=", "0x");
    let again = [
        "x509",
        "-req",
        "-in",
        "tsa.csr",
        "-CA",
        "between.pem",
        "-CAkey",
        "between.key",
        "-set_serial",
        &serial,
        "-out",
        "again.pem",
        "-days",
        "31",
        "-extfile",
        "tsa.ext",
    ];
    // A signature's length varies by a byte or two; the swap needs the same length.
    let after = (0..200).find_map(|_| {
        openssl(&own.folder, &again);
        Some(der("again.pem")).filter(|after| after.len() == before.len() && *after != before)
    });
    let after = after.expect("a certificate of the same length");
    let at = good.windows(before.len()).position(|window| window == before).unwrap();
    let mut swapped = good.clone();
    swapped[at..at + after.len()].copy_from_slice(&after);
    refused(check(&swapped, &own), "name another certificate");
}

#[test]
fn weak_hashes_and_other_content() {
    let (_folder, own) = another(Kind { keys: Keys::Rsa, ..Kind::default() });
    let content = own.content(&reply(&own));
    refused(check(&own.sign(&content, "tsa", &["-cades", "-md", "sha1"]), &own), "is not accepted");
    let signed = own.sign(&content, "tsa", &["-cades", "-md", "sha256"]);
    // The TSTInfo is changed after it was signed.
    let at = signed.windows(4).position(|window| window == [0x2A, 3, 4, 1]).unwrap();
    let mut wrong = signed.clone();
    wrong[at + 3] = 9;
    refused(check(&wrong, &own), "messageDigest");
    // Signed as something that is no TSTInfo.
    std::fs::write(own.folder.join("content.der"), &content).unwrap();
    let args = ["cms", "-sign", "-binary", "-nodetach", "-in", "content.der", "-outform", "DER", "-out", "data.der"];
    openssl(&own.folder, &[&args[..], &["-signer", "tsa.pem", "-inkey", "tsa.key", "-cades"]].concat());
    let token = std::fs::read(own.folder.join("data.der")).unwrap();
    refused(check(&sequence(&[&[0x30, 3, 2, 1, 0], &token]), &own), "not a TSTInfo");
}

#[test]
fn two_signers() {
    let (_folder, own) = another(Kind::default());
    own.key("second");
    own.certificate("second", "/O=Test/CN=Second", "between", GOOD, "30");
    let content = own.content(&reply(&own));
    let two = own.sign(&content, "tsa", &["-cades", "-md", "sha256", "-signer", "second.pem", "-inkey", "second.key"]);
    refused(check(&two, &own), "one signer");
}

#[test]
fn a_reply_that_grants_nothing() {
    let policy = Request::new(MESSAGE, NONCE, Some("1.9.9.9")).unwrap();
    let reply = tsa().reply(&policy.to_der().unwrap());
    let error = verify(&reply, MESSAGE, &pinned(tsa()), Some(&policy)).unwrap_err();
    let TspError::Refused { status: 2, text } = &error else { panic!("{error:?}") };
    assert!(text.contains("unacceptedPolicy"), "{text}");
    // Granted in words, but there is no token.
    refused(check(&[0x30, 5, 0x30, 3, 2, 1, 0], tsa()), "the timestamp token");
    // A token that comes with a refusal is none.
    let good = super::reply(tsa());
    let at = good.windows(5).position(|window| window == [0x30, 3, 2, 1, 0]).unwrap();
    let mut waiting = good.clone();
    waiting[at + 4] = 3;
    refused(check(&waiting, tsa()), "status 3");
    waiting[at + 4] = 1;
    assert!(check(&waiting, tsa()).is_ok(), "granted with modifications");
    // What a TSA says is shown, and not more than a line of it.
    let long = element(0x0C, "word ".repeat(20).as_bytes());
    let texts = sequence(&[&long, &long, &long]);
    let TspError::Refused { text, .. } = check(&sequence(&[&sequence(&[&[2, 1, 2], &texts])]), tsa()).unwrap_err()
    else {
        panic!("refused")
    };
    assert!(text.starts_with("word word") && text.len() <= 210, "{}", text.len());
}
