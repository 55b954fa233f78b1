use agd_core::checkpoint::{Checkpoint, CheckpointError};
use agd_core::merkle::Hash;
use agd_core::note::{NoteError, SignedNote, SigningKey};
use agd_core::tlog_proof::{MAX_PATH, TlogProof, TlogProofError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

fn note(origin: &str, size: u64, root: Hash) -> SignedNote {
    let key = SigningKey::from_seed("log", &[7; 32]).unwrap();
    SignedNote::sign(&Checkpoint { origin: origin.to_owned(), size, root }.to_string(), &key).unwrap()
}

/// Two hashes, with extra data.
fn sample() -> String {
    let path = vec![[1; 32], [2; 32]];
    TlogProof::new(b"entry".to_vec(), 2, path, note("log", 3, [9; 32])).unwrap().to_string()
}

#[test]
fn the_parts_stand_where_the_specification_says() {
    let text = sample();
    let (one, two) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
    let head = format!("c2sp.org/tlog-proof@v1\nextra ZW50cnk=\nindex 2\n{one}\n{two}\n\nlog\n3\n");
    assert!(text.starts_with(&head), "{text}");
    assert!(text.ends_with(&note("log", 3, [9; 32]).to_string()));
    let bare = TlogProof::new(vec![], 0, vec![], note("log", 1, [9; 32])).unwrap().to_string();
    assert!(bare.starts_with("c2sp.org/tlog-proof@v1\nindex 0\n\nlog\n1\n"), "{bare}");
}

#[test]
fn malformed_proofs_are_refused() {
    let good = sample();
    assert!(TlogProof::parse(&good).is_ok());
    let (one, two) = (STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
    let body = format!("log\n3\n{}\n", STANDARD.encode([9; 32]));
    let path = |line| TlogProofError::Path { line };
    let replaced = |from: &str, to: &str| {
        let text = good.replacen(from, to, 1);
        assert_ne!(text, good, "{from:?} is not in it");
        text
    };
    for (text, error) in [
        (String::new(), TlogProofError::FirstLine),
        (format!("\n{good}"), TlogProofError::FirstLine),
        (format!("\u{feff}{good}"), TlogProofError::FirstLine),
        (replaced("@v1", "@v2"), TlogProofError::FirstLine),
        (replaced("@v1", "@v10"), TlogProofError::FirstLine),
        (replaced("@v1\n", "@v1 \n"), TlogProofError::FirstLine),
        (replaced("@v1\n", "@v1\r\n"), TlogProofError::FirstLine),
        ("c2sp.org/tlog-proof@v1".to_owned(), TlogProofError::FirstLine),
        ("c2sp.org/tlog-proof@v1\n".to_owned(), TlogProofError::NoCheckpoint),
        (good.split_once("\n\n").unwrap().0.to_owned(), TlogProofError::NoCheckpoint),
        (good.split_once("\n\n").unwrap().0.to_owned() + "\n", TlogProofError::NoCheckpoint),
        (replaced("extra ", "extra"), TlogProofError::Extra),
        (replaced("extra ZW50cnk=", "extra "), TlogProofError::Extra),
        (replaced("extra ZW50cnk=", "extra"), TlogProofError::Extra),
        (replaced("ZW50cnk=", "ZW50cnk"), TlogProofError::Extra),
        (replaced("ZW50cnk=", "ZW50cnl="), TlogProofError::Extra),
        (replaced("ZW50cnk=", "ZW50cnk= "), TlogProofError::Extra),
        (replaced("ZW50cnk=", "ZW50cnk=\r"), TlogProofError::Extra),
        (replaced("ZW50cnk=", "ZW5_cnk="), TlogProofError::Extra),
        (replaced("extra ZW50cnk=\n", "extra ZW50cnk=\nextra ZW50cnk=\n"), TlogProofError::Index),
        (replaced("extra ZW50cnk=\nindex 2\n", "index 2\nextra ZW50cnk=\n"), path(1)),
        (replaced("extra ZW50cnk=", "Extra ZW50cnk="), TlogProofError::Index),
        (replaced("index 2\n", ""), TlogProofError::Index),
        (replaced("index 2", "index"), TlogProofError::Index),
        (replaced("index 2", "index "), TlogProofError::Index),
        (replaced("index 2", "index  2"), TlogProofError::Index),
        (replaced("index 2", "index 02"), TlogProofError::Index),
        (replaced("index 2", "index +2"), TlogProofError::Index),
        (replaced("index 2", "index -2"), TlogProofError::Index),
        (replaced("index 2", "index 2 "), TlogProofError::Index),
        (replaced("index 2", "index 0x2"), TlogProofError::Index),
        (replaced("index 2", "index \u{0662}"), TlogProofError::Index),
        (replaced("index 2", "index 18446744073709551616"), TlogProofError::Index),
        (replaced("index 2\n", "index 2\r\n"), TlogProofError::Index),
        (replaced("index 2\n", "index 2\nindex 2\n"), path(1)),
        (replaced(&one, &one[..40]), path(1)),
        (replaced(&two, &STANDARD.encode([2; 31])), path(2)),
        (replaced(&two, &STANDARD.encode([2; 33])), path(2)),
        (replaced(&two, &two.replace("I=", "J=")), path(2)),
        (replaced(&two, &format!("{two}\r")), path(2)),
        (replaced(&one, &format!(" {one}")), path(1)),
        // An empty line too early: what follows is a note, but of no checkpoint.
        (replaced(&format!("{one}\n"), "\n"), TlogProofError::Checkpoint(CheckpointError::Size)),
        (replaced("\n\nlog", "\nlog"), path(3)),
        (replaced("\n\nlog", "\n\n\nlog"), TlogProofError::Checkpoint(CheckpointError::Origin)),
        (good.trim_end().to_owned(), TlogProofError::Note(NoteError::Layout)),
        (format!("{good}\n"), TlogProofError::Note(NoteError::Layout)),
        (good.split_once("\n\n").unwrap().0.to_owned() + "\n\n" + &body, TlogProofError::Note(NoteError::Layout)),
        (replaced("log\n3\n", "log\n03\n"), TlogProofError::Checkpoint(CheckpointError::Size)),
        (replaced("log\n3\n", "log\n3\n\n"), TlogProofError::Checkpoint(CheckpointError::Root)),
    ] {
        assert_eq!(TlogProof::parse(&text), Err(error), "{text:?}");
    }
}

#[test]
fn no_path_is_longer_than_that_of_the_largest_tree() {
    let note = note("log", 1 << 63, [9; 32]);
    let longest = TlogProof::new(vec![], 5, vec![[3; 32]; MAX_PATH], note.clone()).unwrap();
    assert_eq!(TlogProof::parse(&longest.to_string()), Ok(longest.clone()));
    let too_long = vec![[3; 32]; MAX_PATH + 1];
    assert_eq!(TlogProof::new(vec![], 5, too_long, note), Err(TlogProofError::PathLength));
    let line = STANDARD.encode([3; 32]) + "\n";
    let text = longest.to_string().replacen(&line, &line.repeat(2), 1);
    assert_eq!(TlogProof::parse(&text), Err(TlogProofError::PathLength));
}

#[test]
fn a_note_that_is_no_checkpoint_is_refused() {
    let key = SigningKey::from_seed("log", &[7; 32]).unwrap();
    let note = SignedNote::sign("not a checkpoint\n", &key).unwrap();
    assert_eq!(TlogProof::new(vec![], 0, vec![], note), Err(TlogProofError::Checkpoint(CheckpointError::Size)));
}

proptest! {
    #[test]
    fn what_is_made_is_read_back(
        extra in prop::collection::vec(any::<u8>(), 0..300),
        index in any::<u64>(), size in any::<u64>(), root in any::<Hash>(),
        path in prop::collection::vec(any::<Hash>(), 0..=MAX_PATH),
        origin in "[^\\x00-\\x1f\\x7f-\\x9f]{1,40}",
    ) {
        let note = note(&origin, size, root);
        let proof = TlogProof::new(extra.clone(), index, path.clone(), note.clone()).unwrap();
        let text = proof.to_string();
        let read: TlogProof = text.parse().unwrap();
        prop_assert_eq!(&read, &proof);
        prop_assert_eq!(read.to_string(), text);
        prop_assert_eq!((read.extra(), read.index(), read.path()), (extra.as_slice(), index, path.as_slice()));
        prop_assert_eq!(read.note(), &note);
        prop_assert_eq!(read.checkpoint(), &Checkpoint { origin, size, root });
    }

    #[test]
    fn what_parses_prints_again_and_nothing_panics(
        text in "\\PC{0,80}",
        pieces in "(c2sp.org/tlog-proof@v1|\n|\n\n|extra |index |0|17|AQ==|AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=|log|\u{2014} log AAAAAAA=){0,16}",
        at in any::<prop::sample::Index>(), with in "\\PC|\n|\r", keep in any::<bool>(),
    ) {
        let sample = sample();
        let places: Vec<usize> = sample.char_indices().map(|(at, _)| at).collect();
        let at = *at.get(&places);
        let after = if keep { at } else { at + sample[at..].chars().next().map_or(0, char::len_utf8) };
        let near = format!("{}{with}{}", &sample[..at], &sample[after..]);
        for text in [text, format!("c2sp.org/tlog-proof@v1\n{pieces}"), pieces, near] {
            if let Ok(proof) = TlogProof::parse(&text) {
                prop_assert_eq!(proof.to_string(), text);
            }
        }
    }
}
