use agd_core::checkpoint::{Checkpoint, CheckpointError};
use proptest::prelude::*;

const BODY: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";

#[test]
fn the_example_of_the_specification() {
    let checkpoint = Checkpoint::parse(BODY).unwrap();
    assert_eq!(checkpoint.origin, "example.com/behind-the-sofa");
    assert_eq!(checkpoint.size, 20_852_163);
    assert_eq!(hex::encode(&checkpoint.root[..4]), "0ac5186a");
    assert_eq!(checkpoint.to_string(), BODY);
}

#[test]
fn each_wrong_line_is_named() {
    let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
    let cases = [
        (String::new(), CheckpointError::Origin),
        ("origin".to_owned(), CheckpointError::Origin),
        (format!("\n1\n{root}\n"), CheckpointError::Origin),
        (format!("a\rb\n1\n{root}\n"), CheckpointError::Origin),
        (format!("a\u{7f}b\n1\n{root}\n"), CheckpointError::Origin),
        (format!("log\n\n{root}\n"), CheckpointError::Size),
        (format!("log\n01\n{root}\n"), CheckpointError::Size),
        (format!("log\n00\n{root}\n"), CheckpointError::Size),
        (format!("log\n+1\n{root}\n"), CheckpointError::Size),
        (format!("log\n-0\n{root}\n"), CheckpointError::Size),
        (format!("log\n1 \n{root}\n"), CheckpointError::Size),
        (format!("log\n\u{661}\n{root}\n"), CheckpointError::Size),
        (format!("log\n18446744073709551616\n{root}\n"), CheckpointError::Size),
        ("log\n1".to_owned(), CheckpointError::Size),
        ("log\n1\n".to_owned(), CheckpointError::Root),
        (format!("log\n1\n{root}"), CheckpointError::Root),
        (format!("log\n1\n{}\n", &root[..43]), CheckpointError::Root),
        (format!("log\n1\n {root}\n"), CheckpointError::Root),
        (format!("log\n1\n{root}\r\n"), CheckpointError::Root),
        // Not canonical: bits after the last byte are set.
        (format!("log\n1\n{}\n", root.replace("I=", "J=")), CheckpointError::Root),
        (format!("log\n1\n{}\n", root.replace('/', "_")), CheckpointError::Root),
        ("log\n1\nAAAA\n".to_owned(), CheckpointError::Root),
        (format!("log\n1\n{root}\nmore\n"), CheckpointError::Extension),
        (format!("log\n1\n{root}\n\n"), CheckpointError::Extension),
        (format!("log\n1\n{root}\nx"), CheckpointError::Extension),
    ];
    for (body, error) in cases {
        assert_eq!(Checkpoint::parse(&body), Err(error), "{body:?}");
    }
}

proptest! {
    #[test]
    fn round_trip_and_agreement_with_tlog_tiles(
        origin in "[a-z0-9./_-]{1,80}", size in any::<u64>(), root in any::<[u8; 32]>()
    ) {
        let ours = Checkpoint { origin: origin.clone(), size, root };
        let body = ours.to_string();
        let theirs = tlog_tiles::Checkpoint::new(&origin, size, tlog_tiles::Hash(root), "").unwrap();
        prop_assert_eq!(theirs.to_bytes(), body.as_bytes());
        prop_assert_eq!(tlog_tiles::Checkpoint::from_bytes(body.as_bytes()).unwrap(), theirs);
        prop_assert_eq!(Checkpoint::parse(&body), Ok(ours.clone()));
        prop_assert_eq!(body.parse(), Ok(ours));
    }

    #[test]
    fn what_parses_prints_again(
        body in "\\PC{0,90}", lines in "(log|0|1|9|\n|A{42}4=|A{43}=|é){0,9}", cut in 0..BODY.len(), byte in 0_u8..128
    ) {
        let mut near = BODY.as_bytes().to_vec();
        near[cut] = byte;
        for body in [body, lines, String::from_utf8(near).unwrap()] {
            if let Ok(checkpoint) = Checkpoint::parse(&body) {
                prop_assert_eq!(checkpoint.to_string(), body.clone());
                prop_assert!(tlog_tiles::Checkpoint::from_bytes(body.as_bytes()).is_ok());
            }
        }
    }
}
