use agd_core::note::{
    CosigningKey, KeyType, MAX_NOTE_LEN, NoteError, NoteSignature, SignedNote, SigningKey, VerifierKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::Signer as _;
use proptest::prelude::*;
use signed_note::{Note, StandardSigner, StandardVerifier, VerifierList};

/// The keys and the note that the documentation of Go's `sumdb/note` publishes.
const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const PETER_SECRET: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const TEXT: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n";
const PETER_LINE: &str = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=";
const ENOCH_LINE: &str =
    "\u{2014} EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=";

fn vkey(text: &str) -> VerifierKey {
    VerifierKey::parse(text).unwrap()
}

fn published() -> String {
    format!("{TEXT}\n{PETER_LINE}\n{ENOCH_LINE}\n")
}

fn key(name: &str, seed: u8) -> SigningKey {
    SigningKey::from_seed(name, &[seed; 32]).unwrap()
}

#[test]
fn the_published_verifier_key() {
    let text = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    let key = vkey(text);
    assert_eq!((key.name(), key.id(), key.key_type()), ("example.com/foo", 0x530d_903a, KeyType::Ed25519));
    assert_eq!(key.to_string(), text);
    assert_eq!(text.parse(), Ok(key.clone()));
    assert_eq!(VerifierKey::new("example.com/foo", key.public_key()), Ok(key));
}

#[test]
fn the_published_note() {
    let note = SignedNote::parse(published()).unwrap();
    assert_eq!(note.text(), TEXT);
    assert_eq!(note.to_string(), published());
    let keys = [vkey(ENOCH), vkey(PETER)];
    assert_eq!(note.verify(&keys).unwrap(), [&keys[0], &keys[1]]);
    assert_eq!(note.verify(&keys[1..]).unwrap(), [&keys[1]]);

    let seed = STANDARD.decode(PETER_SECRET.splitn(5, '+').nth(4).unwrap()).unwrap();
    let signer = SigningKey::from_seed("PeterNeumann", seed[1..].try_into().unwrap()).unwrap();
    assert_eq!(signer.verifier_key().to_string(), PETER);
    assert_eq!(signer.sign(TEXT).unwrap().to_string(), PETER_LINE);
}

#[test]
fn other_verifier_keys_are_refused() {
    let body = "AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
    let id = |name: &str| NoteError::KeyId(name.to_owned());
    let name = |name: &str| NoteError::KeyName(name.to_owned());
    let typed = |first: u8, len: usize| STANDARD.encode([&[first], vec![9; len].as_slice()].concat());
    for (text, error) in [
        (String::new(), NoteError::KeyFormat),
        ("example.com/foo".to_owned(), NoteError::KeyFormat),
        ("example.com/foo+530d903a".to_owned(), NoteError::KeyFormat),
        ("example.com/foo+530d903a+".to_owned(), NoteError::KeyFormat),
        (format!("example.com/foo+530d903a+{body}="), NoteError::KeyFormat),
        (format!("example.com/foo+530d903a+{body}+"), NoteError::KeyFormat),
        (format!("example.com/foo+530d903b+{body}"), id("example.com/foo")),
        (format!("example.com/foo+530D903A+{body}"), id("example.com/foo")),
        (format!("example.com/foo+0530d903a+{body}"), id("example.com/foo")),
        (format!("example.com/fo+530d903a+{body}"), id("example.com/fo")),
        (format!("+530d903a+{body}"), name("")),
        (format!("a b+530d903a+{body}"), name("a b")),
        (format!("a\u{3000}b+530d903a+{body}"), name("a\u{3000}b")),
        (format!("a\nb+530d903a+{body}"), name("a\nb")),
        (format!("a\u{7f}+530d903a+{body}"), name("a\u{7f}")),
        (format!("a+530d903a+{}", typed(2, 32)), NoteError::KeyType(2)),
        (format!("a+530d903a+{}", typed(6, 1312)), NoteError::KeyType(6)),
        (format!("a+530d903a+{}", typed(1, 31)), NoteError::PublicKey),
        (format!("a+530d903a+{}", typed(4, 33)), NoteError::PublicKey),
    ] {
        assert_eq!(VerifierKey::parse(&text), Err(error), "{text:?}");
    }
    // The neutral element, for which anybody can make a signature.
    let mut weak = [0; 32];
    weak[0] = 1;
    assert_eq!(VerifierKey::new("a", &weak), Err(NoteError::PublicKey));
    assert_eq!(SigningKey::from_seed("a+b", &[1; 32]).map(|_| ()), Err(name("a+b")));
}

#[test]
fn a_false_signature_of_a_known_key_rejects_the_note() {
    let (log, other) = (key("log", 1), key("other", 2));
    let keys = [log.verifier_key().clone(), other.verifier_key().clone()];
    let refused = |name: &str, id: u32| Err(NoteError::FalseSignature { name: name.to_owned(), id });
    let (good, false_line) = (log.sign("text\n").unwrap(), other.sign("other text\n").unwrap());

    let note = SignedNote::new("text\n", vec![good.clone(), false_line.clone()]).unwrap();
    assert_eq!(note.verify(&keys), refused("other", keys[1].id()));
    assert_eq!(note.verify(&keys[..1]).unwrap(), [&keys[0]], "unknown keys are ignored");

    // A second, false line of a key that has signed well.
    let other_text = log.sign("other text\n").unwrap();
    for lines in [[good.clone(), other_text.clone()], [other_text, good.clone()]] {
        let note = SignedNote::new("text\n", lines.to_vec()).unwrap();
        assert_eq!(note.verify(&keys), refused("log", keys[0].id()));
    }

    let note = SignedNote::new("text\n", vec![false_line]).unwrap();
    assert_eq!(note.verify(&keys[..1]), Err(NoteError::NoTrustedSignature));
    let note = SignedNote::sign("text\n", &log).unwrap();
    assert_eq!(note.verify(&[]), Err(NoteError::NoTrustedSignature));

    // Only both together name a key: the same name with another key, the same key with another name.
    for stranger in [key("log", 3), key("log2", 1)] {
        let keys = [stranger.verifier_key().clone()];
        assert_eq!(note.verify(&keys), Err(NoteError::NoTrustedSignature));
    }
}

#[test]
fn a_key_counts_once() {
    let log = key("log", 1);
    let line = log.sign("text\n").unwrap();
    let note = SignedNote::new("text\n", vec![line.clone(), line]).unwrap();
    let keys = [log.verifier_key().clone(), log.verifier_key().clone()];
    assert_eq!(note.verify(&keys).unwrap(), [&keys[0]]);
}

#[test]
fn a_signature_in_another_encoding_is_false() {
    // S + L verifies the same equation; strict Ed25519 refuses it, or a signature could be changed by anybody.
    let log = key("log", 1);
    let mut signature = log.sign("text\n").unwrap().signature().to_vec();
    let order = hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap();
    let mut carry = 0;
    for (byte, add) in signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
    assert_eq!(carry, 0);
    let line = |bytes: &[u8]| {
        let id = log.verifier_key().id().to_be_bytes();
        NoteSignature::parse(&format!("\u{2014} log {}", STANDARD.encode([&id, bytes].concat()))).unwrap()
    };
    let keys = [log.verifier_key().clone()];
    for bytes in [signature.as_slice(), &signature[..63], &[signature.as_slice(), &[0]].concat()] {
        let note = SignedNote::new("text\n", vec![line(bytes)]).unwrap();
        assert!(matches!(note.verify(&keys), Err(NoteError::FalseSignature { .. })));
    }
}

#[test]
fn cosignatures() {
    let secret = ed25519_dalek::SigningKey::from_bytes(&[5; 32]);
    let public = secret.verifying_key().to_bytes();
    let witness = VerifierKey::with_type("witness.example/w1", KeyType::CosignatureV1, &public).unwrap();
    assert_eq!(vkey(&witness.to_string()), witness);
    let log_type = VerifierKey::new("witness.example/w1", &public).unwrap();
    assert_ne!(log_type.id(), witness.id(), "the type is part of the id");

    let body = "log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n";
    let line = |time: u64, message: &str| {
        let signature = secret.sign(message.as_bytes()).to_bytes();
        let bytes = [&witness.id().to_be_bytes(), time.to_be_bytes().as_slice(), &signature].concat();
        let line = format!("\u{2014} witness.example/w1 {}", STANDARD.encode(bytes));
        NoteSignature::parse(&line).unwrap()
    };
    let log = key("log", 1);
    let keys = [log.verifier_key().clone(), witness.clone()];
    let verdict = |line: NoteSignature| {
        let note = SignedNote::new(body, vec![log.sign(body).unwrap(), line]).unwrap();
        note.verify(&keys).map(|keys| keys.len())
    };
    let time = 1_679_315_147;
    let good = line(time, &format!("cosignature/v1\ntime {time}\n{body}"));
    assert_eq!(good.cosignature_time(), Some(time));
    assert_eq!(verdict(good), Ok(2));

    let refused = Err(NoteError::FalseSignature { name: witness.name().to_owned(), id: witness.id() });
    assert_eq!(verdict(line(time + 1, &format!("cosignature/v1\ntime {time}\n{body}"))), refused);
    assert_eq!(verdict(line(time, body)), refused);
    let beyond = 1 << 63;
    assert_eq!(verdict(line(beyond, &format!("cosignature/v1\ntime {beyond}\n{body}"))), refused);
    assert_eq!(log.sign(body).unwrap().cosignature_time(), None);

    let cosigner = CosigningKey::from_seed("witness.example/w1", &[5; 32]).unwrap();
    assert_eq!(cosigner.verifier_key(), &witness);
    assert_eq!(cosigner.cosign(body, time).unwrap(), line(time, &format!("cosignature/v1\ntime {time}\n{body}")));
    assert_eq!(verdict(cosigner.cosign(body, i64::MAX as u64).unwrap()), Ok(2));
    assert_eq!(cosigner.cosign(body, beyond), Err(NoteError::Time(beyond)));
    assert_eq!(cosigner.cosign(body, 0), Err(NoteError::Time(0)));
    assert_eq!(cosigner.cosign("no newline", time), Err(NoteError::Layout));
    assert_eq!(cosigner.cosign("a\rb\n", time), Err(NoteError::Text));
    assert!(format!("{cosigner:?}").contains("not shown"));
    assert_eq!(CosigningKey::from_seed("a b", &[5; 32]).map(|_| ()), Err(NoteError::KeyName("a b".to_owned())));
}

/// The example of the specification (tlog-cosignature): its line reads and prints the same, and has the time it shows.
#[test]
fn the_published_cosignature() {
    let note = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
        \u{2014} example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
        \u{2014} witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";
    let parsed = SignedNote::parse(note).unwrap();
    assert_eq!(parsed.to_string(), note);
    assert_eq!(parsed.signatures()[1].cosignature_time(), Some(1_679_315_147));
}

#[test]
fn two_keys_of_one_name_and_id_are_refused() {
    // Some 2^16 keys hold such a pair; these two seeds were found by counting up.
    let keys = [seed_key(COLLIDING[0]), seed_key(COLLIDING[1])];
    assert_eq!(keys[0].id(), keys[1].id());
    assert_ne!(keys[0], keys[1]);
    let note = SignedNote::sign("text\n", &key("other", 1)).unwrap();
    let error = NoteError::AmbiguousKey { name: "log".to_owned(), id: keys[0].id() };
    assert_eq!(note.verify(&keys), Err(error));
}

const COLLIDING: [u64; 2] = [54995, 102411];

fn seed_key(number: u64) -> VerifierKey {
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    SigningKey::from_seed("log", &seed).unwrap().verifier_key().clone()
}

#[test]
fn secrets_are_not_printed() {
    let seed = *b"0123456789abcdef0123456789abcdef";
    let key = SigningKey::from_seed("log", &seed).unwrap();
    let shown = format!("{key:?} {key:#?}").to_lowercase();
    assert!(shown.contains(&key.verifier_key().to_string().to_lowercase()));
    let lists = [format!("{:?}", &seed[..4]), format!("{:?}", &seed[28..])];
    for secret in [hex::encode(seed), STANDARD.encode(seed).to_lowercase(), "01234567".to_owned()].iter().chain(&lists)
    {
        assert!(!shown.contains(secret.trim_matches(['[', ']'])), "{secret}");
    }
}

#[test]
fn malformed_notes_are_refused() {
    let line = PETER_LINE;
    let bad_line = |line| NoteError::SignatureLine { line };
    for (note, error) in [
        (String::new(), NoteError::Layout),
        ("text\n".to_owned(), NoteError::Layout),
        (format!("text\n{line}\n"), NoteError::Layout),
        (format!("text\n\n{line}"), NoteError::Layout),
        (format!("{line}\n"), NoteError::Layout),
        (format!("\n{line}\n"), NoteError::Layout),
        ("text\n\n".to_owned(), NoteError::Layout),
        ("text\n\n\n".to_owned(), NoteError::Layout),
        (format!("te\rxt\n\n{line}\n"), NoteError::Text),
        (format!("te\txt\n\n{line}\n"), NoteError::Text),
        (format!("te\0xt\n\n{line}\n"), NoteError::Text),
        (format!("text\n\n{line}\r\n"), NoteError::Text),
        (format!("text\n\n{line}\n{}\n", &line[3..]), bad_line(2)),
        (format!("text\n\n- PeterNeumann {}\n", &line[17..]), bad_line(1)),
        (format!("text\n\n{line} \n"), bad_line(1)),
        (format!("text\n\n{}\n", line.replace("Peter", "Peter ")), bad_line(1)),
        (format!("text\n\n{}\n", line.replace("Peter", "Peter+")), bad_line(1)),
        (format!("text\n\n{}\n", line.replace("Peter", "Peter\u{2003}")), bad_line(1)),
        (format!("text\n\n{}\n", line.replace("PeterNeumann", "")), bad_line(1)),
        // Bits after the last byte are set; the padding is missing; a key id alone; less than a key id.
        (format!("text\n\n{}\n", line.replace("AM=", "AN=")), bad_line(1)),
        (format!("text\n\n{}\n", line.replace("AM=", "AM")), bad_line(1)),
        ("text\n\n\u{2014} a AAAAAA==\n".to_owned(), bad_line(1)),
        ("text\n\n\u{2014} a AAAA\n".to_owned(), bad_line(1)),
        ("text\n\n\u{2014} a \n".to_owned(), bad_line(1)),
        ("text\n\n\u{2014} a\n".to_owned(), bad_line(1)),
    ] {
        assert_eq!(SignedNote::parse(&note), Err(error), "{note:?}");
    }
    assert_eq!(SignedNote::parse(b"te\xffxt\n\n"), Err(NoteError::Text));
}

#[test]
fn texts_that_cannot_stand_in_a_note_are_not_signed() {
    let key = key("log", 1);
    assert_eq!(key.sign("no newline"), Err(NoteError::Layout));
    assert_eq!(key.sign(""), Err(NoteError::Layout));
    assert_eq!(key.sign("tab\t\n"), Err(NoteError::Text));
    assert_eq!(SignedNote::new("text\n", vec![]), Err(NoteError::Layout));
    let long = "x".repeat(MAX_NOTE_LEN) + "\n";
    assert_eq!(SignedNote::sign(&long, &key), Err(NoteError::TooLong));
    assert_eq!(SignedNote::parse(&long), Err(NoteError::TooLong));
}

#[test]
fn blank_lines_belong_to_the_text() {
    let key = key("log", 1);
    let keys = [key.verifier_key().clone()];
    for text in ["\n", "\n\n", "a\n\nb\n", "a\n\n", "\u{2014} log AAAAAAA=\n\n\u{2014} log AAAAAAA=\n"] {
        let note = SignedNote::sign(text, &key).unwrap();
        let parsed = SignedNote::parse(note.to_string()).unwrap();
        assert_eq!(parsed.text(), text);
        assert_eq!(parsed.verify(&keys).unwrap(), [&keys[0]]);
    }
}

#[test]
fn as_many_signatures_as_the_specification_asks_for_and_a_limit() {
    let keys: Vec<_> = (0..101).map(|i| key(&format!("key{i}"), i)).collect();
    let lines: Vec<_> = keys.iter().map(|key| key.sign("text\n").unwrap()).collect();
    let trusted: Vec<_> = keys.iter().map(|key| key.verifier_key().clone()).collect();
    for count in [16, 100] {
        let note = SignedNote::new("text\n", lines[..count].to_vec()).unwrap();
        let parsed: SignedNote = note.to_string().parse().unwrap();
        assert_eq!(parsed.signatures().len(), count);
        assert_eq!(parsed.verify(&trusted).unwrap().len(), count);
    }
    assert_eq!(SignedNote::new("text\n", lines.clone()), Err(NoteError::TooManySignatures));
    let block: String = lines.iter().map(|line| format!("{line}\n")).collect();
    assert_eq!(SignedNote::parse(format!("text\n\n{block}")), Err(NoteError::TooManySignatures));
}

fn their_signer(name: &str, seed: &[u8; 32]) -> (StandardSigner, StandardVerifier) {
    let vkey = SigningKey::from_seed(name, seed).unwrap().verifier_key().to_string();
    let id = &vkey[name.len() + 1..name.len() + 9];
    let secret = STANDARD.encode([&[1], seed.as_slice()].concat());
    let signer = StandardSigner::new(&format!("PRIVATE+KEY+{name}+{id}+{secret}")).unwrap();
    (signer, StandardVerifier::new(&vkey).unwrap())
}

proptest! {
    #[test]
    fn signed_note_makes_and_accepts_the_same_notes(
        name in "[a-z0-9./-]{1,30}", seed in any::<[u8; 32]>(), text in "[^\\x00-\\x1f]{0,40}(\n\\PC{0,20}){0,4}"
    ) {
        let text = text + "\n";
        let ours = SigningKey::from_seed(&name, &seed).unwrap();
        let (signer, verifier) = their_signer(&name, &seed);
        let mut theirs = Note::new(text.as_bytes(), &[]).unwrap();
        theirs.add_sigs(&[&signer]).unwrap();
        let note = SignedNote::sign(&text, &ours).unwrap().to_string();
        prop_assert_eq!(&theirs.to_bytes(), note.as_bytes());
        let known = VerifierList::new(vec![Box::new(verifier)]);
        prop_assert!(Note::from_bytes(note.as_bytes()).unwrap().verify(&known).is_ok());
    }

    #[test]
    fn what_parses_prints_again_and_signed_note_parses_it_too(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        pieces in "(text|\n|\n\n|\u{2014} |a|peter|AAAAAAA=|AAAAAAAA| |\\+){0,14}",
        at in 0..420_usize, byte in any::<u8>()
    ) {
        let mut near = published().into_bytes();
        let at = at % near.len();
        near[at] = byte;
        let keys = [vkey(PETER), vkey(ENOCH)];
        let unchanged = near == published().as_bytes();
        prop_assert!(unchanged || SignedNote::parse(&near).and_then(|n| n.verify(&keys).map(|k| k.len())) != Ok(2));
        for bytes in [bytes, pieces.into_bytes(), near] {
            if let Ok(note) = SignedNote::parse(&bytes) {
                prop_assert_eq!(note.to_string().into_bytes(), bytes.clone());
                let theirs = Note::from_bytes(&bytes).unwrap();
                prop_assert_eq!(theirs.text(), note.text().as_bytes());
            }
        }
    }

    #[test]
    fn no_verifier_key_panics(text in "\\PC{0,80}", near in "[a-z]{0,3}\\+[0-9a-f]{8}\\+A[A-Za-z0-9+/]{43}", key in any::<[u8; 32]>()) {
        for text in [text, near] {
            if let Ok(key) = VerifierKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text);
            }
        }
        if let Ok(key) = VerifierKey::new("log", &key) {
            prop_assert_eq!(VerifierKey::parse(&key.to_string()), Ok(key));
        }
    }
}
