//! `agd verify-proof`: a tlog-proof checked from itself and a policy alone, and its event in words.
//!
//! Owns the checks (path, signature, entry, images of a dumped event) and what a person reads of them. Promises that nothing
//! is called good that was not checked: without a policy, or without the entry, the verdict is "could not check". Opens no
//! database and no network connection.

use std::fmt::Write as _;
use std::path::PathBuf;

use agd_core::bundle::MAX_ENTRY_LEN;
use agd_core::dump::{self, DumpedEvent, Image};
use agd_core::note::MAX_NOTE_LEN;
use agd_core::{Hash, OwnedEntry, TlogProof, entry, leaf_hash, proof};
use clap::Args;
use serde_json::{Value, json};

use crate::policy::Policy;
use crate::publish::hex;
use crate::report::{grouped, plain, time};
use crate::{EXIT_FALSE, EXIT_OK, EXIT_UNCHECKED, input};

/// The longest proof that is read, in bytes: an entry in base64, 63 hashes, a note.
const MAX_PROOF: u64 = (MAX_ENTRY_LEN as u64) * 2 + 63 * 45 + MAX_NOTE_LEN as u64;

/// The longest file with an event, in bytes.
const MAX_EVENT: u64 = 4 << 30;

/// Check the proof of one event: no database, no network.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The .tlog-proof file; `-`: standard input
    proof: PathBuf,
    /// The entry's bytes, where the proof is one without them
    #[arg(long, value_name = "FILE")]
    entry: Option<PathBuf>,
    /// Trusted keys in the C2SP tlog-policy format; without it signatures are not checked and the exit code is 2 at best
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The event as `agd export` wrote it: its line, or a dump that has it. Its row images are checked and shown
    #[arg(long, value_name = "FILE")]
    event: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was checked.
#[derive(Debug, Default)]
pub struct Checked {
    /// The log, the leaf and the size of the tree.
    pub origin: String,
    /// The leaf, from 0.
    pub index: u64,
    /// Leaves under the checkpoint.
    pub size: u64,
    /// The checkpoint's root.
    pub root: Hash,
    /// Hashes on the path.
    pub path: usize,
    /// The vkeys of logs that signed the checkpoint, of those in the policy.
    pub signed_by: Vec<String>,
    /// What the log says of the event.
    pub entry: Option<OwnedEntry>,
    /// The event's row images, each with the name that the dump gives it; `None`: erased.
    pub images: Vec<(&'static str, Option<String>)>,
    /// What is false.
    pub findings: Vec<String>,
    /// What could not be checked.
    pub unchecked: Vec<String>,
}

/// Runs the command. Returns what to print, and the exit code.
///
/// # Errors
/// A sentence that says what could not be read.
pub fn run(arguments: &Arguments) -> Result<(String, u8), String> {
    let text = input::read(&arguments.proof, MAX_PROOF)?;
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", arguments.proof.display());
    let text = std::str::from_utf8(&text).map_err(|error| named(&error))?;
    let proof = TlogProof::parse(text).map_err(|error| named(&format!("not a tlog-proof: {error}")))?;
    let given = arguments.entry.as_ref().map(|path| input::read(path, MAX_ENTRY_LEN as u64)).transpose()?;
    let policy = arguments.policy.as_ref().map(|path| input::policy(path)).transpose()?;
    let event = arguments.event.as_ref().map(|path| input::read(path, MAX_EVENT)).transpose()?;
    let checked = check(&proof, given.as_deref(), policy.as_ref(), event.as_deref());
    let code = checked.exit_code();
    Ok((if arguments.json { format!("{}\n", checked.json()) } else { checked.text() }, code))
}

/// Checks a proof.
pub fn check(proof: &TlogProof, given: Option<&[u8]>, policy: Option<&Policy>, event: Option<&[u8]>) -> Checked {
    let checkpoint = proof.checkpoint();
    let mut checked = Checked {
        origin: checkpoint.origin.clone(),
        index: proof.index(),
        size: checkpoint.size,
        root: checkpoint.root,
        path: proof.path().len(),
        ..Checked::default()
    };
    checked.signature(proof, policy);
    let bytes = given.or(Some(proof.extra())).filter(|bytes| !bytes.is_empty());
    let Some(bytes) = bytes else {
        checked.unchecked.push("the path: the proof has no entry in it, give one with --entry".to_owned());
        return checked;
    };
    if given.is_some_and(|given| !proof.extra().is_empty() && given != proof.extra()) {
        checked.findings.push("the entry that was given is another than the one in the proof".to_owned());
    }
    let Checked { index, size, root, .. } = checked;
    if let Err(error) = proof::verify_inclusion(&leaf_hash(bytes), index, size, proof.path(), &root) {
        checked.findings.push(format!("the path does not lead from the entry to the checkpoint: {error}"));
    }
    match entry::parse(bytes) {
        Ok(entry) => {
            if let Some(event) = event {
                checked.event(event, bytes, &entry);
            }
            checked.entry = Some(entry);
        }
        Err(error) => checked.findings.push(format!("the entry is none of agd's: {error}")),
    }
    checked
}

impl Checked {
    /// 1 when something is false, else 2 when something was not checked, else 0.
    pub fn exit_code(&self) -> u8 {
        match (self.findings.is_empty(), self.unchecked.is_empty()) {
            (false, _) => EXIT_FALSE,
            (true, false) => EXIT_UNCHECKED,
            (true, true) => EXIT_OK,
        }
    }

    fn signature(&mut self, proof: &TlogProof, policy: Option<&Policy>) {
        let Some(policy) = policy else {
            let text = "the checkpoint's signature: without --policy nobody knows who signed";
            return self.unchecked.push(text.to_owned());
        };
        let keys = policy.keys_for(&self.origin);
        if keys.is_empty() {
            let text = format!("the checkpoint's signature: the policy lists no key for {}", self.origin);
            return self.unchecked.push(text);
        }
        match proof.note().verify(&keys) {
            Ok(signers) => self.signed_by = signers.into_iter().map(ToString::to_string).collect(),
            Err(error) => self.findings.push(format!("the checkpoint: {error}")),
        }
        // A proof stands alone: its own checkpoint is asked, whichever log it is of.
        if let Err(error) = policy.check_quorum(proof.note()) {
            self.findings.push(format!("the checkpoint: {error}"));
        }
    }

    /// The event's line in a dump, or alone.
    fn event(&mut self, file: &[u8], bytes: &[u8], entry: &OwnedEntry) {
        let mut lines = file.split(|byte| *byte == b'\n').peekable();
        let header = lines.next_if(|line| line.starts_with(b"{\"agd_export\":"));
        let ranges = header.map(|line| dump::parse_header(line).unwrap_or_default());
        let mine = lines.filter_map(|line| DumpedEvent::parse(line).ok()).find(|event| *event.entry == *bytes);
        let Some(event) = mine else {
            return self.findings.push("the file with the event does not have this entry".to_owned());
        };
        if event.origin != self.origin || event.index != self.index {
            let text = format!("the event is said to be entry {} of {}", event.index, event.origin);
            self.findings.push(text);
        }
        // A line alone has images if it has one.
        let has_images = match &ranges {
            Some(ranges) => ranges.iter().any(|log| log.origin == event.origin && log.images),
            None => dump::KINDS.iter().any(|kind| *event.image(*kind) != Image::None),
        };
        for (kind, problem) in event.check_images(entry, has_images) {
            self.findings.push(format!("the event's image \"{}\" {problem}", kind.name()));
        }
        for kind in dump::KINDS {
            match event.image(kind) {
                Image::None => {}
                Image::Erased => self.images.push((kind.name(), None)),
                Image::Text(text) => self.images.push((kind.name(), Some(text.to_string()))),
            }
        }
    }

    fn verdict(&self) -> &'static str {
        match self.exit_code() {
            EXIT_OK => "OK: the event is in the log, under a checkpoint signed by a key of the policy",
            EXIT_FALSE => "FALSE: this is no proof",
            _ => "NOT CHECKED: nothing is false, but not all could be checked",
        }
    }

    /// For a person.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: &str| {
            let _ = writeln!(text, "{name:<12} {}", plain(value.trim_end()));
        };
        if let Some(entry) = &self.entry {
            entry_rows(entry, &mut row);
        }
        for (name, image) in &self.images {
            row(name, image.as_deref().unwrap_or("(erased)"));
        }
        row("log", &format!("{}, entry {} of {}", self.origin, grouped(self.index), grouped(self.size)));
        row("path", &format!("hashes: {}, to root {}", self.path, hex(&self.root)));
        self.signed_by.iter().for_each(|key| row("signed by", key));
        self.unchecked.iter().for_each(|what| row("not checked", what));
        self.findings.iter().for_each(|what| row("FALSE", what));
        text.push_str(self.verdict());
        text.push('\n');
        text
    }

    /// For a program.
    pub fn json(&self) -> Value {
        let images = self.images.iter().map(|(name, image)| ((*name).to_owned(), json!(image)));
        json!({
            "exit_code": self.exit_code(),
            "verdict": self.verdict(),
            "origin": self.origin,
            "index": self.index,
            "size": self.size,
            "root": hex(&self.root),
            "signed_by": self.signed_by,
            "entry": self.entry.as_ref().map(entry_json),
            "images": images.collect::<serde_json::Map<_, _>>(),
            "findings": self.findings,
            "unchecked": self.unchecked,
        })
    }
}

/// Who did what, when and why.
fn entry_rows(entry: &OwnedEntry, row: &mut dyn FnMut(&str, &str)) {
    let mut optional = |name: &str, value: &Option<String>| {
        if let Some(value) = value {
            row(name, value);
        }
    };
    let what = match &entry.relation {
        Some(relation) => format!("{} {relation}", entry.action),
        None => entry.action.clone(),
    };
    optional("event", &Some(entry.event_id.to_string()));
    optional("what", &Some(what));
    optional("who", &Some(entry.session_user_name.clone()));
    if entry.role_name != entry.session_user_name {
        optional("as role", &Some(entry.role_name.clone()));
    }
    optional("principal", &entry.principal);
    optional("tenant", &entry.tenant);
    optional("fleet", &entry.fleet_id);
    optional("binding", &Some(entry.binding.clone()));
    optional("recorded", &Some(time(entry.at)));
    optional("committed", &Some(time(entry.committed_at)));
    optional("why", &entry.cause);
    optional("application", &entry.application_name);
    optional("client", &entry.client_addr);
    optional("body", &entry.body);
    let digests = [("key digest", entry.row_key), ("old digest", entry.old), ("new digest", entry.new)];
    for (name, digest) in digests {
        optional(name, &digest.map(|digest| format!("sha256:{}", hex(&digest))));
    }
}

/// The entry as it stands in the log: it is JSON.
fn entry_json(entry: &OwnedEntry) -> Value {
    let mut bytes = Vec::new();
    entry.as_entry().encode_into(&mut bytes);
    serde_json::from_slice(&bytes).unwrap_or(Value::Null)
}
