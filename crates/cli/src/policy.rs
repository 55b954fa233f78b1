//! Trust policies in the C2SP tlog-policy format.
//!
//! Owns the file's syntax: `log <vkey> [<url>]`, `witness <name> <vkey> [<url>]`, `group <name> all|any|<k> <name>…`,
//! `quorum <name>|none`, comments and blank lines. Promises that a policy it accepts is enforced as a whole: a quorum of
//! witnesses, which this version cannot check, is refused in words and never passed over.
//!
//! One rule is ours: a `log` line for a platform log also covers its tenants' logs. They are signed with the same key,
//! each under its own origin as the key's name, and the format allows a public key only once.

use std::collections::HashSet;

use agd_core::note::KeyType;
use agd_core::{NoteError, VerifierKey};
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
        if !parser.quorum {
            return Err(whole("the policy has no quorum line"));
        }
        if parser.logs.is_empty() {
            return Err(whole("the policy lists no log"));
        }
        Ok(Self { logs: parser.logs })
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
    witnesses: Vec<[u8; 32]>,
    names: HashSet<&'a [u8]>,
    members: HashSet<&'a [u8]>,
    quorum: bool,
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
        let key = *parse_key(vkey, KeyType::CosignatureV1)?.public_key();
        if self.witnesses.contains(&key) {
            return Err("this witness's public key is listed already".to_owned());
        }
        self.witnesses.push(key);
        self.define(name)
    }

    fn group(&mut self, name: &'a [u8], threshold: &[u8], members: &[&'a [u8]]) -> Result<(), String> {
        let digits = std::str::from_utf8(threshold).unwrap_or_default();
        let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        let valid = match threshold {
            b"all" | b"any" => !members.is_empty(),
            _ => plain && digits.parse().is_ok_and(|k: usize| (1..=members.len()).contains(&k)),
        };
        if !valid {
            return Err("a group is all, any or a number of its members, and has members".to_owned());
        }
        for member in members {
            self.defined(member)?;
            if !self.members.insert(member) {
                let member = String::from_utf8_lossy(member);
                return Err(format!("{member:?} is a member already"));
            }
        }
        self.define(name)
    }

    fn set_quorum(&mut self, name: &[u8]) -> Result<(), String> {
        if self.quorum {
            return Err("a second quorum line".to_owned());
        }
        if name != b"none" {
            self.defined(name)?;
            return Err(format!(
                "quorum {}: witnesses' cosignatures cannot be checked by this version, only `quorum none`",
                String::from_utf8_lossy(name)
            ));
        }
        self.quorum = true;
        Ok(())
    }

    fn defined(&self, name: &[u8]) -> Result<(), String> {
        if self.names.contains(name) {
            return Ok(());
        }
        let name = String::from_utf8_lossy(name);
        Err(format!("{name:?} is not defined on a line before"))
    }

    fn define(&mut self, name: &'a [u8]) -> Result<(), String> {
        if name == b"none" || !self.names.insert(name) {
            let name = String::from_utf8_lossy(name);
            return Err(format!("the name {name:?} is taken"));
        }
        if self.names.len() > 2 * MAX_LINES {
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
    use crate::key::LogKey;
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    fn key(seed: u8, name: &str) -> VerifierKey {
        let key = LogKey::from_seed(name, Zeroizing::new([seed; 32])).unwrap();
        key.verifier().clone()
    }

    fn witness(seed: u8) -> VerifierKey {
        let public = *key(seed, "w").public_key();
        VerifierKey::with_type("w", KeyType::CosignatureV1, &public).unwrap()
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
    fn a_quorum_of_witnesses_is_refused_in_words() {
        let (a, w1, w2) = (key(1, "a"), witness(2), witness(3));
        let text = format!("log {a}\nwitness X {w1}\nwitness Y {w2}\ngroup G 2 X Y\n");
        assert!(Policy::parse(format!("{text}quorum none\n").as_bytes()).is_ok());
        fails(&format!("{text}quorum G\n"), 5, "cannot be checked by this version");
        fails(&format!("{text}quorum X\n"), 5, "cannot be checked by this version");
        fails(&format!("{text}quorum Z\n"), 5, "not defined");
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
