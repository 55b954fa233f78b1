//! One checkpoint file: is it a checkpoint of this log, signed by somebody who may, and cosigned by who must?
//!
//! Owns the checks on the file alone; whether its root is true, the entries tell. It writes down what is wrong instead of
//! reporting it, so that many can be read at once.

use agd_core::{Checkpoint, SignedNote, note};

use super::findings::{Finding, Findings};
use super::log::Job;
use crate::store::{Reader, StoreError};

/// What was found out about a file.
#[derive(Debug, Default)]
pub struct Noted {
    /// What is false.
    pub findings: Vec<Finding>,
    /// What could not be checked.
    pub unchecked: Vec<String>,
}

impl Noted {
    /// Writes down something that is false about a file as a whole.
    pub fn file(&mut self, file: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding { file: file.into(), index: None, offset: None, message: message.into() });
    }

    /// What cannot be the object it should be is false; what the system does not give could not be checked.
    pub fn unreadable(&mut self, error: &StoreError) {
        match error {
            StoreError::NotRegular { path } | StoreError::TooLarge { path, .. } => {
                self.file(path.clone(), error.to_string());
            }
            _ => self.unchecked.push(error.to_string()),
        }
    }

    /// Reports all of it.
    pub fn tell(self, findings: &mut Findings, unchecked: &mut Vec<String>) {
        self.findings.into_iter().for_each(|finding| findings.add(finding));
        unchecked.extend(self.unchecked);
    }
}

/// A checkpoint of this log, with the file's bytes.
#[derive(Debug)]
pub struct Signed {
    /// What it says.
    pub checkpoint: Checkpoint,
    /// The whole file.
    pub bytes: Vec<u8>,
    /// Whether a key of the policy signed it; false also where there is none.
    pub signed: bool,
    /// Whether it reaches the quorum of witnesses; false also where nobody asks for one.
    pub cosigned: bool,
}

/// Reads and checks one checkpoint file, but its size.
pub fn read(reader: &Reader, job: &Job<'_>, path: &str, noted: &mut Noted) -> Option<Signed> {
    let bytes = match reader.read(path, note::MAX_NOTE_LEN as u64) {
        Ok(bytes) => bytes?,
        Err(error) => {
            noted.unreadable(&error);
            return None;
        }
    };
    let note = match SignedNote::parse(&bytes) {
        Ok(note) => note,
        Err(error) => {
            noted.file(path, error.to_string());
            return None;
        }
    };
    let checkpoint = match Checkpoint::parse(note.text()) {
        Ok(checkpoint) => checkpoint,
        Err(error) => {
            noted.file(path, error.to_string());
            return None;
        }
    };
    if checkpoint.origin != job.origin {
        noted.file(path, format!("is of another log: {}", checkpoint.origin));
        return None;
    }
    let mut signed = false;
    if let Some(keys) = job.keys.as_deref().filter(|keys| !keys.is_empty()) {
        match note.verify(keys) {
            Ok(_) => signed = true,
            Err(error) => noted.file(path, error.to_string()),
        }
    }
    let mut cosigned = false;
    if let Some(policy) = job.quorum {
        match policy.check_quorum(&note) {
            Ok(()) => cosigned = true,
            Err(text) => noted.file(path, text),
        }
    }
    Some(Signed { checkpoint, bytes, signed, cosigned })
}
