//! Rounds of publishing, once or until told to stop.
//!
//! Owns the loop around [`crate::publish::Publisher`]: connecting again after a lost connection, waiting, signals, and
//! saying each complaint once as long as it stays the same. Promises to finish the round in hand when told to stop.

use std::collections::HashSet;
use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use agd_tsp::Authorities;
use postgres::Config;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use thiserror::Error;

use crate::database::Database;
use crate::key::{KeyError, LogKey, WitnessKey};
use crate::passphrase::Source;
use crate::publish::memory::{Memory, MemoryError};
use crate::publish::{Progress, Publisher, Round};
use crate::report::{PublishOutput, grouped};
use crate::source::{SourceError, Unreachable};
use crate::stamp::{Mode, Stamper};
use crate::store::{Location, ObjectLock, StoreError, Writer};
use crate::tsa::{TIMEOUT, Tsa, TsaError};
use crate::witness::{Witness, WitnessError};
use crate::{EXIT_FALSE, EXIT_UNCHECKED};

/// How often a sleeping publisher looks whether it was told to stop.
const TICK: Duration = Duration::from_millis(50);

/// What the publisher is to do.
#[derive(Debug)]
pub struct Options {
    /// The database.
    pub database: Config,
    /// The store.
    pub store: Location,
    /// Whether a place that does not lock what is written to it will not do.
    pub require_object_lock: bool,
    /// The key file.
    pub key: PathBuf,
    /// Where its passphrase comes from, if it is encrypted.
    pub passphrase: Source,
    /// Where it is kept what the key has signed; beside the key if nothing is said.
    pub state: Option<PathBuf>,
    /// A new store is begun.
    pub new_store: bool,
    /// The key signs for this database from now on.
    pub moved_here: bool,
    /// The witness's key file.
    pub witness_key: Option<PathBuf>,
    /// Where its passphrase comes from, if it is encrypted.
    pub witness_passphrase: Source,
    /// The TSAs that stamp the platform log's checkpoints.
    pub stamps: Option<Stamps>,
    /// One round only.
    pub once: bool,
    /// The pause between rounds.
    pub interval: Duration,
    /// JSON lines instead of text.
    pub json: bool,
}

/// How the platform log's checkpoints are timestamped.
#[derive(Debug)]
pub struct Stamps {
    /// The TSAs' addresses.
    pub tsas: Vec<String>,
    /// The CAs that say who is a TSA.
    pub authorities: Authorities,
    /// Whether publishing depends on it.
    pub mode: Mode,
    /// The least time between two timestamps of one TSA.
    pub interval: Duration,
}

/// Why publishing could not even begin.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The key file.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The witness.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// What the key has signed.
    #[error("the key's state: {0}")]
    Memory(#[from] MemoryError),
    /// A TSA.
    #[error(transparent)]
    Tsa(#[from] TsaError),
    /// The system.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The store does not lock what is written to it, and was to.
    #[error("{place}: {state}; --require-object-lock asks for a default retention")]
    NotLocked {
        /// The store.
        place: String,
        /// What it does instead.
        state: String,
    },
}

/// Publishes. Returns the exit code: 1 when any round refused a log, else that of the last round.
///
/// # Errors
/// [`ServeError`] when the key, the store or the signals could not be set up.
pub fn run(options: &Options) -> Result<u8, ServeError> {
    let key = LogKey::load(&options.key, &options.passphrase)?;
    let witness = match &options.witness_key {
        Some(path) => Some(Witness::new(&WitnessKey::load(path, &options.witness_passphrase)?, &key)?),
        None => None,
    };
    let stamper = match &options.stamps {
        Some(stamps) => Some(stamper(stamps)?),
        None => None,
    };
    let store = Writer::at(&options.store)?;
    let published_to = store.reader().place()?;
    let warning = unlocked(&store, &published_to, options.require_object_lock)?;
    let memory = Memory::load(&key, state_files(options))?;
    let mut publisher = Publisher::new(store, key, published_to, memory)
        .beginning_a_new_store(options.new_store)
        .moved_here(options.moved_here);
    if let Some(witness) = witness {
        publisher = publisher.with_witness(witness);
    }
    if let Some(stamper) = stamper {
        publisher = publisher.with_stamper(stamper);
    }
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The second signal ends the process at once: that is safe at any point. Registered first, it sees the flag as
        // it was before this signal.
        flag::register_conditional_shutdown(signal, i32::from(EXIT_UNCHECKED), Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    let mut output = Output::new(options.json);
    if let Some(warning) = warning {
        output.warning(&warning);
    }
    let mut database: Option<Database> = None;
    let mut refused = false;
    loop {
        let round = one_round(&mut publisher, &mut database, &options.database, options.once, &output);
        refused |= !round.refusals.is_empty();
        output.round(&round, options.once);
        if options.once || stop.load(Ordering::Relaxed) || !pause(options.interval, &stop) {
            let mut code = round.exit_code();
            if !options.once && options.stamps.is_some() {
                let end = last_stamps(&mut publisher, &mut database, &options.database);
                refused |= !end.refusals.is_empty();
                output.round(&end, false);
                code = code.max(end.exit_code());
            }
            return Ok(if refused { EXIT_FALSE } else { code });
        }
    }
}

/// Where it is kept what the key has signed: beside the key, and beside the witness's, which is worth most elsewhere.
fn state_files(options: &Options) -> Vec<PathBuf> {
    let beside = |key: &PathBuf| {
        let mut name = key.clone().into_os_string();
        name.push(".state");
        PathBuf::from(name)
    };
    let own = options.state.clone().unwrap_or_else(|| beside(&options.key));
    std::iter::once(own).chain(options.witness_key.as_ref().map(beside)).collect()
}

/// What to say of a store that does not lock what is written to it.
fn unlocked(store: &Writer, place: &str, required: bool) -> Result<Option<String>, ServeError> {
    let not_locked = |state: String| ServeError::NotLocked { place: place.to_owned(), state };
    match store.object_lock()? {
        None if required => Err(not_locked("a folder has no Object Lock".to_owned())),
        None | Some(ObjectLock::Default { .. }) => Ok(None),
        Some(state) if required => Err(not_locked(state.to_string())),
        Some(state) => {
            Ok(Some(format!("{place}: {state}; what is published there may be deleted (docs/cli.md, Object Lock)")))
        }
    }
}

fn stamper(stamps: &Stamps) -> Result<Stamper, TsaError> {
    let tsas = stamps.tsas.iter().map(|url| Tsa::new(url, TIMEOUT)).collect::<Result<_, _>>()?;
    Ok(Stamper::new(tsas, stamps.authorities.clone(), stamps.mode, stamps.interval))
}

fn one_round(
    publisher: &mut Publisher,
    database: &mut Option<Database>,
    config: &Config,
    last: bool,
    output: &Output,
) -> Round {
    let connected = match database.take() {
        Some(database) => Ok(database),
        None => Database::connect(config),
    };
    let mut connection = match connected {
        Ok(connection) => connection,
        Err(error) => return failed(error),
    };
    let mut round = publisher.round(&mut connection, &mut |progress| output.progress(progress));
    publisher.stamp(&mut connection, last, &mut round);
    // After any error a fresh connection is the simplest way back to a known state.
    if round.failures.is_empty() {
        *database = Some(connection);
    }
    round
}

/// The newest checkpoint does not stay without a timestamp when the publisher is told to stop.
fn last_stamps(publisher: &mut Publisher, database: &mut Option<Database>, config: &Config) -> Round {
    let connected = match database.take() {
        Some(database) => Ok(database),
        None => Database::connect(config),
    };
    let mut round = Round::default();
    match connected {
        Ok(mut connection) => publisher.stamp(&mut connection, true, &mut round),
        Err(error) => publisher.stamp(&mut Unreachable(error), true, &mut round),
    }
    round
}

fn failed(error: SourceError) -> Round {
    Round { failures: vec![(None, error.into())], ..Round::default() }
}

/// Waits. `false` when told to stop.
fn pause(interval: Duration, stop: &AtomicBool) -> bool {
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let left = interval.saturating_sub(start.elapsed());
        if left.is_zero() {
            return true;
        }
        std::thread::sleep(left.min(TICK));
    }
    false
}

struct Output {
    format: PublishOutput,
    progress: bool,
    /// The complaints of the last round.
    said: HashSet<String>,
}

impl Output {
    fn new(json: bool) -> Self {
        Self {
            format: PublishOutput { json, terminal: io::stdout().is_terminal() },
            progress: io::stderr().is_terminal(),
            said: HashSet::new(),
        }
    }

    fn warning(&self, text: &str) {
        let _ = match self.format.json {
            true => self.format.warning(&mut io::stdout().lock(), None, text),
            false => self.format.warning(&mut io::stderr().lock(), None, text),
        };
    }

    fn progress(&self, progress: Progress<'_>) {
        if self.progress && progress.size < progress.target {
            let (size, target) = (grouped(progress.size), grouped(progress.target));
            let _ = write!(io::stderr(), "\r{}: {size} of {target} …\x1b[K", progress.origin);
        }
    }

    /// Nobody may be listening (a closed pipe): that must not stop the publishing.
    fn round(&mut self, round: &Round, last: bool) {
        if self.progress {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
        let mut stdout = io::stdout().lock();
        let mut stderr = io::stderr().lock();
        for published in &round.published {
            let _ = self.format.published(&mut stdout, published);
        }
        for stamped in &round.stamped {
            let _ = self.format.stamped(&mut stdout, stamped);
        }
        let mut said = HashSet::new();
        let complaints: &mut dyn Write = if self.format.json { &mut stdout } else { &mut stderr };
        for refusal in &round.refusals {
            let text = refusal.to_string();
            if !self.said.contains(&text) {
                let _ = self.format.refused(complaints, refusal);
            }
            said.insert(text);
        }
        for (origin, warning) in &round.warnings {
            if !self.said.contains(warning) {
                let _ = self.format.warning(complaints, Some(origin), warning);
            }
            said.insert(warning.clone());
        }
        for (origin, failure) in &round.failures {
            let text = format!("{origin:?} {failure}");
            if !self.said.contains(&text) {
                let _ = self.format.failed(complaints, origin.as_deref(), failure);
            }
            said.insert(text);
        }
        self.said = said;
        if last {
            let _ = self.format.end(&mut stdout, round);
        }
        let _ = stdout.flush();
    }
}

/// Reads a duration: `2s`, `500ms`, `1m`, or a plain number of seconds.
///
/// # Errors
/// A sentence that says what is expected.
pub fn parse_interval(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let wrong = || format!("{text:?} is not a duration such as 2s, 500ms or 1m");
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60).ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    if duration.is_zero() {
        return Err("an interval is longer than nothing".to_owned());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        let seconds = |text| parse_interval(text).ok().map(|d: Duration| d.as_millis());
        assert_eq!(seconds("2s"), Some(2_000));
        assert_eq!(seconds("500ms"), Some(500));
        assert_eq!(seconds("1m"), Some(60_000));
        assert_eq!(seconds("3"), Some(3_000));
        for bad in ["", "s", "0s", "-1s", "1h", "1 s", "1.5s", "99999999999999999999s"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_stop_ends_the_pause() {
        let stop = AtomicBool::new(true);
        assert!(!pause(Duration::from_secs(3600), &stop));
        stop.store(false, Ordering::Relaxed);
        assert!(pause(Duration::from_millis(1), &stop));
    }
}
