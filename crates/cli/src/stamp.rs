//! RFC 3161 timestamps of published checkpoints.
//!
//! Owns when a timestamp is due, which TSA has made which one, and where it lies:
//! `<platform origin>/timestamps/<size, 20 digits>.<n>.tsr`. Promises that a reply is checked against the pinned CA before
//! it is written, as it came, under a name that is never used again; that a TSA is asked at most once in an interval for a
//! reply, and never again about a checkpoint that it has stamped; and that a run after a crash goes on from the store alone.
//!
//! A request's nonce is half random and half a fingerprint of the TSA's address. The TSA signs it with the rest, so that a
//! stored reply tells whom it was asked of, however often that TSA changes its certificates, and in whatever order the
//! addresses are given next time.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agd_core::note::MAX_NOTE_LEN;
use agd_core::{Checkpoint, Hash, SignedNote};
use agd_tsp::{Authorities, MAX_REPLY_LEN, Request, Timestamp};

use crate::publish::{Failure, Refusal, Round};
use crate::source::Source;
use crate::store::{self, Reader, StoreError, Writer};
use crate::tsa::Tsa;

/// The folder of a platform log's timestamps.
pub const TIMESTAMPS: &str = "timestamps";

/// The most replies for one checkpoint.
const MAX_REPLIES: u32 = 1_000;

/// How many replies a process looks back over, at its start, for the newest of each TSA.
const LOOK_BACK: usize = 64;

/// The pause after the first failure of a TSA; it doubles with each one that follows, up to the interval.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Whether publishing depends on timestamps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One that cannot be had is a warning.
    BestEffort,
    /// One that cannot be had is a failure, and the database is not told of what no timestamp covers.
    Required,
}

/// A timestamp that is in the store now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamped {
    /// The platform log.
    pub origin: String,
    /// The checkpoint's size.
    pub size: u64,
    /// The file, relative to the store.
    pub file: String,
    /// The TSA's address.
    pub tsa: String,
    /// The token's time, in microseconds since the Unix epoch.
    pub at: i64,
}

/// Where the n-th reply for the checkpoint of a size lies.
pub fn path(origin: &str, size: u64, n: u32) -> String {
    format!("{origin}/{TIMESTAMPS}/{size:020}.{n}.tsr")
}

/// The size and the number that a name below `timestamps/` stands for.
pub fn parse_name(name: &str) -> Option<(u64, u32)> {
    let (size, n) = name.strip_suffix(".tsr")?.split_once('.')?;
    let canonical = n == "0" || !n.starts_with('0');
    let digits = !n.is_empty() && n.len() <= 6 && n.bytes().all(|b| b.is_ascii_digit());
    let n = (canonical && digits).then(|| n.parse().ok()).flatten()?;
    Some((store::parse_checkpoint_name(size)?, n))
}

/// What is known of one TSA.
#[derive(Debug)]
struct Client {
    tsa: Tsa,
    fingerprint: u32,
    /// The largest checkpoint that it has stamped.
    stamped: Option<u64>,
    /// When it may be asked again.
    next: Option<Instant>,
    failures: u32,
    /// Why it could not be asked the last time.
    complaint: Option<String>,
}

/// Gets, checks and keeps timestamps.
#[derive(Debug)]
pub struct Stamper {
    clients: Vec<Client>,
    authorities: Authorities,
    mode: Mode,
    interval: Duration,
    /// The platform log whose state was taken up.
    origin: Option<String>,
    /// Timestamps that the database does not know yet.
    untold: Vec<(u64, Hash, i64)>,
}

impl Stamper {
    /// For some TSAs, each at most once in an interval.
    pub fn new(tsas: Vec<Tsa>, authorities: Authorities, mode: Mode, interval: Duration) -> Self {
        let mut seen = BTreeSet::new();
        let client = |tsa: Tsa| Client {
            fingerprint: fingerprint(tsa.url()),
            tsa,
            stamped: None,
            next: None,
            failures: 0,
            complaint: None,
        };
        // An address that is given twice is one TSA.
        let clients: Vec<Client> = tsas.into_iter().map(client).filter(|c| seen.insert(c.fingerprint)).collect();
        Self { clients, authorities, mode, interval, origin: None, untold: Vec::new() }
    }

    /// Whether the database is told only of what is timestamped.
    pub fn is_required(&self) -> bool {
        self.mode == Mode::Required
    }

    /// The size up to which every TSA has stamped this log.
    pub fn covered(&self, origin: &str) -> Option<u64> {
        let known = self.origin.as_deref() == Some(origin);
        let stamped = self.clients.iter().map(|client| client.stamped);
        // None, which is smaller than any size, where one of them has not.
        stamped.min().flatten().filter(|_| known)
    }

    /// Gets what is due for the checkpoint of this size, the newest of the log; with `last`, whatever is missing.
    pub fn run(
        &mut self,
        store: &mut Writer,
        source: &mut dyn Source,
        origin: &str,
        size: u64,
        last: bool,
        round: &mut Round,
    ) {
        let done = self.take_up(store.reader(), origin).and_then(|()| self.ask_all(store, origin, size, last, round));
        if let Err(error) = done {
            round.failures.push((Some(origin.to_owned()), Failure::Store(error)));
        }
        self.tell(source, origin, round);
    }

    /// Finds in the store what each TSA stamped last.
    fn take_up(&mut self, reader: &Reader, origin: &str) -> Result<(), StoreError> {
        if self.origin.as_deref() == Some(origin) {
            return Ok(());
        }
        for client in &mut self.clients {
            (client.stamped, client.next) = (None, None);
        }
        self.untold.clear();
        let names = reader.list(&format!("{origin}/{TIMESTAMPS}"))?.unwrap_or_default();
        let mut replies: Vec<(u64, u32)> = names.iter().filter_map(|listed| parse_name(&listed.name)).collect();
        replies.sort_unstable();
        for (size, n) in replies.into_iter().rev().take(LOOK_BACK) {
            if self.clients.iter().all(|client| client.stamped.is_some()) {
                break;
            }
            // What does not hold is no timestamp; agd verify names it.
            let Some((root, stamp)) = self.stored(reader, origin, size, n)? else { continue };
            let whose = stamp.nonce.map(|nonce| nonce as u32);
            let client = self.clients.iter_mut().find(|c| Some(c.fingerprint) == whose && c.stamped.is_none());
            if let Some(client) = client {
                client.stamped = Some(size);
                client.next = wait_after(stamp.gen_time, self.interval);
                self.untold.push((size, root, stamp.gen_time));
            }
        }
        self.origin = Some(origin.to_owned());
        Ok(())
    }

    /// A stored timestamp, and the root of the checkpoint that it is of.
    fn stored(
        &self,
        reader: &Reader,
        origin: &str,
        size: u64,
        n: u32,
    ) -> Result<Option<(Hash, Timestamp)>, StoreError> {
        let reply = match reader.read(&path(origin, size, n), MAX_REPLY_LEN as u64) {
            Ok(reply) => reply,
            Err(error) if error.is_unavailable() => return Err(error),
            Err(_) => None,
        };
        let checkpoint = read_checkpoint(reader, origin, size)?;
        let (Some(reply), Some((bytes, checkpoint))) = (reply, checkpoint) else { return Ok(None) };
        let stamp = agd_tsp::verify(&reply, &bytes, &self.authorities, None).ok();
        Ok(stamp.map(|stamp| (checkpoint.root, stamp)))
    }

    fn ask_all(
        &mut self,
        store: &mut Writer,
        origin: &str,
        size: u64,
        last: bool,
        round: &mut Round,
    ) -> Result<(), StoreError> {
        let now = Instant::now();
        let behind = |client: &Client| client.stamped.is_none_or(|stamped| stamped < size);
        let waits = |client: &Client| !last && client.next.is_some_and(|next| now < next);
        if !self.clients.iter().any(|client| behind(client) && (!waits(client) || client.complaint.is_some())) {
            return Ok(());
        }
        let Some((bytes, checkpoint)) = read_checkpoint(store.reader(), origin, size)? else {
            let path = store::checkpoint_path(origin, size);
            let reason = format!("{path} is not the checkpoint that was published");
            round.refusals.push(Refusal::Store { origin: origin.to_owned(), reason });
            return Ok(());
        };
        for client in self.clients.iter_mut().filter(|client| behind(client)) {
            if waits(client) {
                complain(client, self.mode, origin, round);
                continue;
            }
            match ask(client, &bytes, &self.authorities) {
                Ok((reply, at)) => {
                    let file = put(store, origin, size, &reply)?;
                    client.stamped = Some(size);
                    client.next = Some(now + self.interval);
                    client.failures = 0;
                    client.complaint = None;
                    self.untold.push((size, checkpoint.root, at));
                    let tsa = client.tsa.url().to_owned();
                    round.stamped.push(Stamped { origin: origin.to_owned(), size, file, tsa, at });
                }
                Err(reason) => {
                    let pause = FIRST_PAUSE.saturating_mul(1 << client.failures.min(16));
                    client.failures += 1;
                    client.next = Some(now + pause.min(self.interval));
                    client.complaint = Some(reason);
                    complain(client, self.mode, origin, round);
                }
            }
        }
        Ok(())
    }

    /// Tells the database; what it could not be told, again the next time.
    fn tell(&mut self, source: &mut dyn Source, origin: &str, round: &mut Round) {
        while let Some((size, root, at)) = self.untold.first().copied() {
            let tree_size = i64::try_from(size).unwrap_or(i64::MAX);
            if let Err(error) = source.record_timestamp(origin, tree_size, &root, at) {
                round.failures.push((Some(origin.to_owned()), error.into()));
                return;
            }
            self.untold.remove(0);
        }
    }
}

fn complain(client: &Client, mode: Mode, origin: &str, round: &mut Round) {
    let Some(complaint) = client.complaint.clone() else { return };
    match mode {
        Mode::Required => round.failures.push((Some(origin.to_owned()), Failure::Timestamp(complaint))),
        Mode::BestEffort => round.warnings.push((origin.to_owned(), complaint)),
    }
}

/// One reply that holds, and its time.
fn ask(client: &Client, bytes: &[u8], authorities: &Authorities) -> Result<(Vec<u8>, i64), String> {
    let mut random = [0; 4];
    getrandom::fill(&mut random).map_err(|error| format!("no randomness from the operating system: {error}"))?;
    let nonce = u64::from(u32::from_be_bytes(random)) << 32 | u64::from(client.fingerprint);
    let named = |error: agd_tsp::TspError| {
        let at = error.offset().map(|offset| format!("byte {offset} of the reply: ")).unwrap_or_default();
        format!("{}: {at}{error}", client.tsa.url())
    };
    let request = Request::new(bytes, nonce, None).map_err(named)?;
    let reply = client.tsa.ask(&request.to_der().map_err(named)?).map_err(|error| error.to_string())?;
    let stamp = agd_tsp::verify(&reply, bytes, authorities, Some(&request)).map_err(named)?;
    Ok((reply, stamp.gen_time))
}

/// Writes a reply under the first free name and returns it.
fn put(store: &mut Writer, origin: &str, size: u64, reply: &[u8]) -> Result<String, StoreError> {
    let mut n = 0;
    loop {
        let file = path(origin, size, n);
        n += 1;
        // A bucket says only when it is waited for whether there is such an object already.
        match store.put(&file, reply).and_then(|()| store.sync()) {
            Err(StoreError::Conflict { path } | StoreError::NotRegular { path }) if path == file && n < MAX_REPLIES => {
            }
            Err(error) => return Err(error),
            Ok(()) => return Ok(file),
        }
    }
}

/// The checkpoint of a size as it was published.
fn read_checkpoint(reader: &Reader, origin: &str, size: u64) -> Result<Option<(Vec<u8>, Checkpoint)>, StoreError> {
    let bytes = match reader.read(&store::checkpoint_path(origin, size), MAX_NOTE_LEN as u64) {
        Ok(bytes) => bytes,
        Err(error) if error.is_unavailable() => return Err(error),
        Err(_) => None,
    };
    let parse = |bytes: Vec<u8>| {
        let checkpoint = Checkpoint::parse(SignedNote::parse(&bytes).ok()?.text()).ok()?;
        (checkpoint.origin == origin && checkpoint.size == size).then_some((bytes, checkpoint))
    };
    Ok(bytes.and_then(parse))
}

/// When a TSA may be asked after a timestamp of this time. A time that is not of the last interval says nothing about when it
/// was asked: one of the two clocks is wrong, or it is long ago.
fn wait_after(gen_time: i64, interval: Duration) -> Option<Instant> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    let age = since.checked_sub(Duration::from_micros(u64::try_from(gen_time).ok()?))?;
    Instant::now().checked_add(interval.checked_sub(age)?)
}

/// Four bytes of a hash of the address.
fn fingerprint(url: &str) -> u32 {
    let digest = agd_core::leaf_hash(url.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(path("a", 256, 3), "a/timestamps/00000000000000000256.3.tsr");
        assert_eq!(parse_name("00000000000000000256.3.tsr"), Some((256, 3)));
        assert_eq!(parse_name("00000000000000000256.0.tsr"), Some((256, 0)));
        for bad in [
            "",
            ".tsr",
            "00000000000000000256.tsr",
            "00000000000000000256..tsr",
            "256.0.tsr",
            "00000000000000000256.00.tsr",
            "00000000000000000256.03.tsr",
            "00000000000000000256.+3.tsr",
            "00000000000000000256.0.tsr.tsr",
            "00000000000000000256.0.TSR",
            "00000000000000000256.1234567.tsr",
        ] {
            assert_eq!(parse_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_wait_is_at_most_the_interval() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
        let minute = Duration::from_secs(60);
        let wait = |at| wait_after(at, minute).map(|next| next.saturating_duration_since(Instant::now()));
        let just_now = wait(now - 1_000_000).unwrap();
        assert!(just_now <= minute && just_now > Duration::from_secs(50), "{just_now:?}");
        assert_eq!(wait(now - 61_000_000), None);
        assert_eq!(wait(now + 3_600_000_000), None, "the TSA's clock is ahead");
        assert_eq!(wait(-1), None);
    }

    #[test]
    fn addresses_have_their_own_fingerprints() {
        assert_ne!(fingerprint("http://a/"), fingerprint("http://b/"));
    }
}
