//! Trust policies in the C2SP tlog-policy format.
//!
//! Owns the file's syntax: `log <vkey> [<url>]`, `witness <name> <vkey> [<url>]`, `group <name> all|any|<k> <name>…`,
//! `quorum <name>|none`, comments and blank lines; and whether a note's cosignatures reach the quorum. Promises that a
//! policy it accepts is enforced as a whole, and that no policy makes it recurse.
//!
//! One rule is ours: a `log` line for a platform log also covers its tenants' logs. They are signed with the same key,
//! each under its own origin as the key's name, and the format allows a public key only once.

use std::collections::{HashMap, HashSet};

use agd_core::note::KeyType;
use agd_core::{NoteError, SignedNote, VerifierKey};
use thiserror::Error;

use crate::origin::speaks_for;

/// The longest policy that is read, in bytes.
pub const MAX_POLICY: u64 = 1_000_000;

/// The most logs, witnesses or groups, each; the specification asks for at least 32.
const MAX_LINES: usize = 1000;

/// Why a policy was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("line {line}: {reason}")]
pub struct PolicyError {
    /// Which line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong.
    pub reason: String,
}

/// Which keys to trust for which logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    logs: Vec<VerifierKey>,
    witnesses: Vec<VerifierKey>,
    /// Witnesses and groups, a group after its members.
    voters: Vec<Voter>,
    /// Which of the voters must agree; none: nobody has to.
    quorum: Option<usize>,
}

/// Who can be a member of a group, or the quorum.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Voter {
    /// The witness of this number.
    Witness(usize),
    /// So many of these voters.
    Group { threshold: usize, members: Vec<usize> },
}

impl Policy {
    /// Reads a policy.
    ///
    /// # Errors
    /// [`PolicyError`] with the first line that is wrong or not supported.
    pub fn parse(text: &[u8]) -> Result<Self, PolicyError> {
        let mut parser = Parser::default();
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            parser.line(line).map_err(|reason| PolicyError { line: number, reason })?;
        }
        let whole = |reason: &str| PolicyError { line: 0, reason: reason.to_owned() };
        let Some(quorum) = parser.quorum else {
            return Err(whole("the policy has no quorum line"));
        };
        if parser.logs.is_empty() {
            return Err(whole("the policy lists no log"));
        }
        if parser.logs.iter().any(|log| parser.witnesses.iter().any(|w| w.public_key() == log.public_key())) {
            return Err(whole("a log's key is a witness's too: a log cannot be its own witness"));
        }
        Ok(Self { logs: parser.logs, witnesses: parser.witnesses, voters: parser.voters, quorum })
    }

    /// Whether it asks for witnesses at all.
    pub fn has_quorum(&self) -> bool {
        self.quorum.is_some()
    }

    /// Whether a note's cosignatures reach the quorum.
    ///
    /// # Errors
    /// A sentence that says what is missing, or which witness's signature is false.
    pub fn check_quorum(&self, note: &SignedNote) -> Result<(), String> {
        let Some(quorum) = self.quorum else { return Ok(()) };
        let cosigned = match note.verify(&self.witnesses) {
            Ok(keys) => keys,
            Err(NoteError::NoTrustedSignature) => Vec::new(),
            Err(error) => return Err(error.to_string()),
        };
        // Members come before their groups: one pass decides all.
        let mut agrees: Vec<bool> = Vec::with_capacity(self.voters.len());
        for voter in &self.voters {
            let yes = match voter {
                Voter::Witness(number) => self.witnesses.get(*number).is_some_and(|key| cosigned.contains(&key)),
                Voter::Group { threshold, members } => {
                    let count = members.iter().filter(|member| agrees.get(**member) == Some(&true)).count();
                    count >= *threshold
                }
            };
            agrees.push(yes);
        }
        if agrees.get(quorum) == Some(&true) {
            return Ok(());
        }
        let names: Vec<&str> = cosigned.iter().map(|key| key.name()).collect();
        let who = if names.is_empty() { "no witness of the policy".to_owned() } else { names.join(", ") };
        Err(format!("the quorum of witnesses is not reached: cosigned by {who}"))
    }

    /// The logs it lists.
    pub fn logs(&self) -> &[VerifierKey] {
        &self.logs
    }

    /// The keys that must have signed a checkpoint of this log: any one of them suffices.
    pub fn keys_for(&self, origin: &str) -> Vec<VerifierKey> {
        self.logs
            .iter()
            .filter(|log| speaks_for(log.name(), origin))
            // The origin is a valid one, hence a valid key name, and the key was valid under another name.
            .filter_map(|log| VerifierKey::new(origin, log.public_key()).ok())
            .collect()
    }
}

#[derive(Default)]
struct Parser<'a> {
    logs: Vec<VerifierKey>,
    witnesses: Vec<VerifierKey>,
    voters: Vec<Voter>,
    /// Names of voters, with their numbers.
    names: HashMap<&'a [u8], usize>,
    members: HashSet<&'a [u8]>,
    quorum: Option<Option<usize>>,
}

impl<'a> Parser<'a> {
    fn line(&mut self, line: &'a [u8]) -> Result<(), String> {
        if let Some(byte) = line.iter().find(|b| (**b < 0x20 && **b != b'\t') || **b == 0x7F) {
            return Err(format!("control character {byte:#04x}"));
        }
        let items: Vec<&[u8]> =
            line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|item| !item.is_empty()).collect();
        match items.as_slice() {
            [] => Ok(()),
            [first, ..] if first.starts_with(b"#") => Ok(()),
            [b"log", vkey] | [b"log", vkey, _] => self.log(vkey),
            [b"witness", name, vkey] | [b"witness", name, vkey, _] => self.witness(name, vkey),
            [b"group", name, threshold, members @ ..] => self.group(name, threshold, members),
            [b"quorum", name] => self.set_quorum(name),
            [first, ..] => Err(format!("not a line of a policy: {:?}", String::from_utf8_lossy(first))),
        }
    }

    fn log(&mut self, vkey: &[u8]) -> Result<(), String> {
        let key = parse_key(vkey, KeyType::Ed25519)?;
        if self.logs.iter().any(|log| log.public_key() == key.public_key()) {
            return Err("this public key is listed already; a platform log's line covers its tenants' logs".to_owned());
        }
        if self.logs.len() >= MAX_LINES {
            return Err(format!("more than {MAX_LINES} logs"));
        }
        self.logs.push(key);
        Ok(())
    }

    fn witness(&mut self, name: &'a [u8], vkey: &[u8]) -> Result<(), String> {
        let key = parse_key(vkey, KeyType::CosignatureV1)?;
        if self.witnesses.iter().any(|witness| witness.public_key() == key.public_key()) {
            return Err("this witness's public key is listed already".to_owned());
        }
        if self.witnesses.iter().any(|witness| witness.name() == key.name() && witness.id() == key.id()) {
            return Err("another witness has this key's name and id".to_owned());
        }
        self.witnesses.push(key);
        self.define(name, Voter::Witness(self.witnesses.len() - 1))
    }

    fn group(&mut self, name: &'a [u8], threshold: &[u8], members: &[&'a [u8]]) -> Result<(), String> {
        let digits = std::str::from_utf8(threshold).unwrap_or_default();
        let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        let threshold = match threshold {
            b"all" => Some(members.len()),
            b"any" => Some(1),
            _ => digits.parse().ok().filter(|_| plain),
        };
        let Some(threshold) = threshold.filter(|threshold| (1..=members.len()).contains(threshold)) else {
            return Err("a group is all, any or a number of its members, and has members".to_owned());
        };
        let mut numbers = Vec::with_capacity(members.len());
        for member in members {
            numbers.push(self.defined(member)?);
            if !self.members.insert(member) {
                let member = String::from_utf8_lossy(member);
                return Err(format!("{member:?} is a member already"));
            }
        }
        self.define(name, Voter::Group { threshold, members: numbers })
    }

    fn set_quorum(&mut self, name: &[u8]) -> Result<(), String> {
        if self.quorum.is_some() {
            return Err("a second quorum line".to_owned());
        }
        self.quorum = Some(if name == b"none" { None } else { Some(self.defined(name)?) });
        Ok(())
    }

    fn defined(&self, name: &[u8]) -> Result<usize, String> {
        self.names.get(name).copied().ok_or_else(|| {
            let name = String::from_utf8_lossy(name);
            format!("{name:?} is not defined on a line before")
        })
    }

    fn define(&mut self, name: &'a [u8], voter: Voter) -> Result<(), String> {
        if name == b"none" || self.names.insert(name, self.voters.len()).is_some() {
            let name = String::from_utf8_lossy(name);
            return Err(format!("the name {name:?} is taken"));
        }
        self.voters.push(voter);
        if self.voters.len() > 2 * MAX_LINES {
            return Err("too many witnesses and groups".to_owned());
        }
        Ok(())
    }
}

fn parse_key(vkey: &[u8], needed: KeyType) -> Result<VerifierKey, String> {
    let vkey = std::str::from_utf8(vkey).map_err(|_| NoteError::KeyFormat.to_string())?;
    let key = VerifierKey::parse(vkey).map_err(|error| error.to_string())?;
    if key.key_type() == needed {
        return Ok(key);
    }
    Err(match needed {
        KeyType::Ed25519 => "a log's key is an Ed25519 key (type 0x01)",
        KeyType::CosignatureV1 => "a witness's key is an Ed25519 cosignature key (type 0x04)",
    }
    .to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::key::{LogKey, WitnessKey};
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    fn key(seed: u8, name: &str) -> VerifierKey {
        let key = LogKey::from_seed(name, Zeroizing::new([seed; 32])).unwrap();
        key.verifier().clone()
    }

    fn witness_key(seed: u8) -> WitnessKey {
        WitnessKey::from_seed("w", Zeroizing::new([seed; 32])).unwrap()
    }

    fn witness(seed: u8) -> VerifierKey {
        witness_key(seed).verifier().clone()
    }

    /// A note of log `a` cosigned by these witnesses.
    fn note(witnesses: &[u8]) -> SignedNote {
        let log = LogKey::from_seed("a", Zeroizing::new([1; 32])).unwrap();
        let mut lines = vec![log.signer("a").unwrap().sign("text\n").unwrap()];
        for seed in witnesses {
            lines.push(witness_key(*seed).cosigner().unwrap().cosign("text\n", 1_700_000_000).unwrap());
        }
        SignedNote::new("text\n", lines).unwrap()
    }

    fn reached(policy: &str, witnesses: &[u8]) -> bool {
        Policy::parse(policy.as_bytes()).unwrap().check_quorum(&note(witnesses)).is_ok()
    }

    fn fails(text: &str, line: usize, reason: &str) {
        let error = Policy::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.line, line, "{error}");
        assert!(error.reason.contains(reason), "{error}");
    }

    #[test]
    fn logs_comments_and_blanks() {
        let (a, b) = (key(1, "a"), key(2, "b"));
        let text = format!("# ours\n\n \t log {a}\n\tlog\t{b} https://b.example/ \nquorum none");
        let policy = Policy::parse(text.as_bytes()).unwrap();
        assert_eq!(policy.logs(), [a, b]);
    }

    #[test]
    fn a_platform_log_covers_its_tenants_and_nobody_elses() {
        let a = key(1, "a");
        let policy = Policy::parse(format!("log {a}\nquorum none\n").as_bytes()).unwrap();
        assert_eq!(policy.keys_for("a"), std::slice::from_ref(&a));
        let [tenant] = &policy.keys_for("a/t/x")[..] else {
            panic!("one key");
        };
        assert_eq!((tenant.name(), tenant.public_key()), ("a/t/x", a.public_key()));
        assert!(policy.keys_for("b/t/x").is_empty());
        assert_eq!(policy.keys_for("a/i2").len(), policy.keys_for("a").len());
        assert!(policy.keys_for("a/i1").is_empty());
    }

    #[test]
    fn a_quorum_is_reached_or_it_is_not() {
        let head = format!(
            "log {}\nwitness X {}\nwitness Y {}\nwitness Z {}\n",
            key(1, "a"),
            witness(2),
            witness(3),
            witness(4)
        );
        let with = |tail: &str| format!("{head}{tail}\n");
        assert!(reached(&with("quorum none"), &[]));
        for (tail, yes, no) in [
            ("quorum X", &[&[2][..], &[2, 3], &[3, 2]][..], &[&[][..], &[3], &[3, 4]][..]),
            ("group G any X Y\nquorum G", &[&[2], &[3], &[2, 3]], &[&[], &[4]]),
            ("group G all X Y\nquorum G", &[&[2, 3], &[4, 3, 2]], &[&[2], &[3], &[3, 4], &[2, 2]]),
            ("group G 2 X Y Z\nquorum G", &[&[2, 3], &[3, 4], &[2, 4], &[2, 3, 4]], &[&[2], &[4], &[2, 2, 2], &[]]),
            ("group G all X Y\ngroup H any G Z\nquorum H", &[&[4], &[2, 3]], &[&[2], &[3], &[]]),
            ("group G any X Y\ngroup H 2 G Z\nquorum H", &[&[4, 2], &[3, 4]], &[&[4], &[2, 3]]),
        ] {
            yes.iter().for_each(|witnesses| assert!(reached(&with(tail), witnesses), "{tail} {witnesses:?}"));
            no.iter().for_each(|witnesses| assert!(!reached(&with(tail), witnesses), "{tail} {witnesses:?}"));
        }
        // A false line of a witness that the quorum would not need.
        let policy = Policy::parse(with("group G any X Y\nquorum G").as_bytes()).unwrap();
        let mut lines = note(&[2]).signatures().to_vec();
        lines.push(witness_key(3).cosigner().unwrap().cosign("other\n", 1_700_000_000).unwrap());
        let error = policy.check_quorum(&SignedNote::new("text\n", lines).unwrap()).unwrap_err();
        assert!(error.contains("is false"), "{error}");
        assert!(policy.check_quorum(&note(&[])).unwrap_err().contains("no witness of the policy"));
        fails(&format!("{head}quorum Q\n"), 5, "not defined");
        fails(&format!("log {}\nwitness X {}\nquorum X\n", key(2, "a"), witness(2)), 0, "its own witness");
    }

    #[test]
    fn a_long_chain_of_groups_is_no_deep_recursion() {
        let mut text = format!("log {}\nwitness W0 {}\n", key(1, "a"), witness(2));
        for n in 1..1_500 {
            text.push_str(&format!("group W{n} all W{}\n", n - 1));
        }
        text.push_str("quorum W1499\n");
        assert!(reached(&text, &[2]));
        assert!(!reached(&text, &[3]));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let (a, w) = (key(1, "a"), witness(2));
        fails("", 0, "no quorum");
        fails("quorum none\n", 0, "no log");
        fails(&format!("log {a}\n"), 0, "no quorum");
        fails(&format!("log {a}\nquorum none\nquorum none\n"), 3, "second quorum");
        fails(&format!("log {a}\nlog {a}\n"), 2, "listed already");
        fails(&format!("log {}\n", w), 1, "type 0x01");
        fails(&format!("witness W {a}\n"), 1, "type 0x04");
        fails(&format!("witness none {w}\n"), 1, "taken");
        fails("log\n", 1, "not a line");
        fails("logs x\n", 1, "not a line");
        fails("log x\r\n", 1, "control character");
        fails("log a+00000000+AAAA\n", 1, "");
        let two = format!("witness X {w}\nwitness Y {}\n", witness(3));
        for group in ["0 X", "3 X Y", "all", "any", "02 X Y", "+1 X", "many X", "1 X X", "1 Z"] {
            fails(&format!("{two}group G {group}\n"), 3, "");
        }
        fails(&format!("{two}group G any X\ngroup H any X\n"), 4, "a member already");
        fails(&format!("{two}group X any Y\n"), 3, "taken");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Policy::parse(&text);
        }

        #[test]
        fn arbitrary_items_never_panic(text in "((log|witness|group|quorum|none|all|any|1|a)[ \n])*") {
            let _ = Policy::parse(text.as_bytes());
        }
    }
}
