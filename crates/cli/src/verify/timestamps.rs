//! The RFC 3161 timestamps of a platform log: each over the bytes of the checkpoint that its name says.
//!
//! Owns which files are timestamps, and what must hold of one beside what `agd-tsp` checks: its checkpoint is there, and it is
//! not older than an event that it covers. Promises that a timestamp which nobody gave a CA for is never called good.

use std::ops::ControlFlow;

use agd_core::Hash;
use agd_core::note::MAX_NOTE_LEN;
use agd_tsp::{Authorities, MAX_REPLY_LEN, Timestamp};
use sha2::{Digest as _, Sha256};

use super::findings::Finding;
use super::log::LogResult;
use super::note::Noted;
use super::{Held, Timestamps};
use crate::pipeline::{Threads, ordered};
use crate::report::{counted, grouped, time};
use crate::stamp::{TIMESTAMPS, parse_name, path};
use crate::store::{self, Reader};

/// How far the clocks of a TSA and of the database may be apart, in microseconds: five minutes.
pub const CLOCK_TOLERANCE: i64 = 5 * 60 * 1_000_000;

/// The timestamp files of one log.
#[derive(Debug, Default)]
pub struct Stamps {
    /// Size and number, ascending.
    files: Vec<(u64, u32)>,
    /// The sizes, ascending, each once.
    pub sizes: Vec<u64>,
    foreign: u64,
    unreadable: Option<String>,
}

impl Stamps {
    /// Lists them.
    pub fn find(reader: &Reader, origin: &str) -> Self {
        let names = match reader.list(&format!("{origin}/{TIMESTAMPS}")) {
            Ok(names) => names.unwrap_or_default(),
            Err(error) => return Self { unreadable: Some(error.to_string()), ..Self::default() },
        };
        let mut files: Vec<(u64, u32)> = names.iter().filter_map(|listed| parse_name(&listed.name)).collect();
        let foreign = (names.len() - files.len()) as u64;
        files.sort_unstable();
        let mut sizes: Vec<u64> = files.iter().map(|(size, _)| *size).collect();
        sizes.dedup();
        Self { files, sizes, foreign, unreadable: None }
    }

    /// Checks each, and adds what is wrong to the log's findings.
    pub fn check(
        &self,
        reader: &Reader,
        origin: &str,
        authorities: Option<&Authorities>,
        result: &mut LogResult,
    ) -> Option<Timestamps> {
        result.unchecked.extend(self.unreadable.clone());
        if self.foreign > 0 {
            let text = format!("{} in {TIMESTAMPS}/ that are no timestamps; ignored", counted(self.foreign, "file"));
            result.notes.push(text);
        }
        let Some(authorities) = authorities else {
            if !self.files.is_empty() {
                let count = counted(self.files.len() as u64, "timestamp");
                result.notes.push(format!("{count} not checked (no --tsa-ca)"));
            }
            return None;
        };
        let mut found = Timestamps::default();
        let threads = Threads::new(reader.parallel().saturating_sub(1));
        let (latest_at, verified) = (std::mem::take(&mut result.latest_at), std::mem::take(&mut result.stamped));
        let look = |number: u64| {
            let (size, n) = usize::try_from(number).ok().and_then(|number| self.files.get(number)).copied()?;
            let known = (latest_at.get(&size).copied(), verified.get(&size));
            Some((size, one(reader, origin, (size, n), authorities, known)))
        };
        ordered(&threads, 0..self.files.len() as u64, look, |_, seen| {
            if let Some((size, (noted, stamp))) = seen {
                noted.tell(&mut result.findings, &mut result.unchecked);
                if let Some(Timestamp { gen_time: at, signer, .. }) = stamp {
                    let by = found.signers.iter().position(|known| *known == signer).unwrap_or_else(|| {
                        found.signers.push(signer);
                        found.signers.len() - 1
                    });
                    found.held.push(Held { size, at, by });
                }
            }
            ControlFlow::Continue(())
        });
        (result.latest_at, result.stamped) = (latest_at, verified);
        match found.held.last().map(|held| held.size) {
            // Whoever gives a CA asks for timestamps.
            None if self.files.is_empty() => result.unchecked.push("its timestamps: there are none".to_owned()),
            Some(covered) if covered < result.size => {
                let text = format!("no timestamp covers the entries from {} on yet", grouped(covered));
                result.notes.push(text);
            }
            _ => {}
        }
        Some(found)
    }
}

/// One timestamp, if it holds. `known`: the latest commit time of the events below its checkpoint, and the SHA-256 of the
/// file that was verified as this checkpoint.
fn one(
    reader: &Reader,
    origin: &str,
    (size, n): (u64, u32),
    authorities: &Authorities,
    (latest, verified): (Option<i64>, Option<&Hash>),
) -> (Noted, Option<Timestamp>) {
    let mut noted = Noted::default();
    let file = path(origin, size, n);
    let mut read = |path: &str, limit: usize| match reader.read(path, limit as u64) {
        Ok(Some(bytes)) => Some(bytes),
        Ok(None) => {
            noted.file(&file, format!("{path} is missing"));
            None
        }
        Err(error) => {
            noted.unreadable(&error);
            None
        }
    };
    let reply = read(&file, MAX_REPLY_LEN);
    let checkpoint = reply.is_some().then(|| read(&store::checkpoint_path(origin, size), MAX_NOTE_LEN));
    let (Some(reply), Some(checkpoint)) = (reply, checkpoint.flatten()) else { return (noted, None) };
    // What a timestamp is of is what was verified, not what lies there by now.
    if verified.is_some_and(|verified| *verified != Hash::from(Sha256::digest(&checkpoint))) {
        noted.file(store::checkpoint_path(origin, size), "changed while it was read".to_owned());
        return (noted, None);
    }
    let stamp = match agd_tsp::verify(&reply, &checkpoint, authorities, None) {
        Ok(stamp) => stamp,
        Err(error) => {
            let offset = error.offset().map(|offset| offset as u64);
            noted.findings.push(Finding { file, index: None, offset, message: error.to_string() });
            return (noted, None);
        }
    };
    if let Some(latest) = latest.filter(|latest| stamp.gen_time.saturating_add(CLOCK_TOLERANCE) < *latest) {
        let (at, latest) = (time(stamp.gen_time), time(latest));
        noted.file(file, format!("is of {at}, but covers an event of {latest}"));
        return (noted, None);
    }
    (noted, Some(stamp))
}
