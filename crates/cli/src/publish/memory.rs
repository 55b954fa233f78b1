//! What a key has signed, kept beside it.
//!
//! Owns the state file: the one server and database that the key signs for, and for each store the size and root of the
//! newest checkpoint of each log that it signed there. Promises that a key signs for one database until somebody says
//! otherwise, that a store which has less than was signed is found out, and that the file is replaced as a whole, on disk
//! before it has its name, and believed only with this key's own signature. What it says is a lower bound: it is written after
//! the store, and a store may have more. It never says what to sign: that is for the store and the entries.
//!
//! The signature is over a text that no checkpoint, token or statement can be: its first line is `FORMAT`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use agd_core::fleet::PublicKey;
use agd_core::{Hash, SigningKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use thiserror::Error;

use super::outcome::hex;
use crate::key::{KeyError, LogKey};

/// The first line of a state file. A checkpoint's first line is an origin, and its second a number.
pub(crate) const FORMAT: &str = "agd-publish-state/v1";

/// The longest state file that is read: some hundred thousand logs.
const MAX_BYTES: u64 = 64 << 20;

/// Why the state could not be read or kept.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The system refused an operation.
    #[error("{path}: {source}")]
    Io {
        /// The state file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A link, pipe or device, or more than a state file can be.
    #[error("{0} is not a state file: a regular file of at most {MAX_BYTES} bytes")]
    NotRegular(PathBuf),
    /// It was changed, or is another key's.
    #[error("{path} does not say what this key has signed: {reason}. Put back the file that belongs to the key")]
    False {
        /// The state file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two state files, or one and what this process knows, contradict each other.
    #[error("{path} says otherwise than this process, or than the file beside the witness's key: {what}")]
    Contradiction {
        /// The state file.
        path: PathBuf,
        /// What of it.
        what: String,
    },
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A server and one of its databases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// The server's system identifier.
    pub system_identifier: String,
    /// The database's oid.
    pub database: u32,
}

impl std::fmt::Display for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.system_identifier, self.database)
    }
}

/// Size and root of a signed checkpoint.
pub(super) type Newest = (u64, Hash);

/// What is known of one store, by origin.
type Logs = BTreeMap<String, Newest>;

/// What a key has signed.
pub struct Memory {
    files: Vec<PathBuf>,
    signer: SigningKey,
    vkey: String,
    home: Option<Home>,
    stores: BTreeMap<String, Logs>,
    changed: bool,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Memory({:?}, {} stores)", self.files, self.stores.len())
    }
}

/// What a file says: the database that the key signs for, and what was signed, by place.
type Read = (Option<Home>, BTreeMap<String, Logs>);

impl Memory {
    /// The state in these files, which hold the same: one beside the log's key, and one beside the witness's if there is one.
    /// A file that is not there yet is made when there is something to keep; without any, nothing outlives the process.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn load(key: &LogKey, files: Vec<PathBuf>) -> Result<Self, MemoryError> {
        // Under a name that no log has: nobody's policy trusts it.
        let signer = key.signer("agd-publish-state")?;
        let vkey = key.verifier().to_string();
        let mut memory = Self { files, signer, vkey, home: None, stores: BTreeMap::new(), changed: false };
        let mut missing = false;
        for path in memory.files.clone() {
            match memory.read(&path)? {
                None => missing = true,
                Some((home, stores)) => memory.merge(&path, home, stores, None)?,
            }
        }
        // What only one of them has is written to the other.
        memory.changed = missing && (memory.home.is_some() || !memory.stores.is_empty());
        Ok(memory)
    }

    /// The database that the key signs for.
    pub(super) fn home(&self) -> Option<&Home> {
        self.home.as_ref()
    }

    /// From now on it signs for this one.
    pub(super) fn bind(&mut self, home: Home) {
        if self.home.as_ref() != Some(&home) {
            self.home = Some(home);
            self.changed = true;
        }
    }

    /// The newest checkpoint of a log that was signed in a store.
    pub(super) fn newest(&self, place: &str, origin: &str) -> Option<Newest> {
        self.stores.get(place)?.get(origin).copied()
    }

    /// The newest checkpoints of a log that were signed in other stores.
    pub(super) fn elsewhere(&self, place: &str, origin: &str) -> Vec<Newest> {
        let others = self.stores.iter().filter(|(other, _)| other.as_str() != place);
        others.filter_map(|(_, logs)| logs.get(origin).copied()).collect()
    }

    /// Whether anything was signed in this store, and whether in any.
    pub(super) fn knows(&self, place: &str) -> (bool, bool) {
        (self.stores.contains_key(place), !self.stores.is_empty())
    }

    /// Every log that the key has signed anywhere.
    pub(super) fn origins(&self) -> impl Iterator<Item = (&str, Newest)> {
        self.stores.values().flat_map(|logs| logs.iter().map(|(origin, newest)| (origin.as_str(), *newest)))
    }

    /// A log was signed up to here.
    pub(super) fn signed(&mut self, place: &str, origin: &str, newest: Newest) {
        let logs = self.stores.entry(place.to_owned()).or_default();
        if logs.get(origin).is_none_or(|known| known.0 < newest.0) {
            logs.insert(origin.to_owned(), newest);
            self.changed = true;
        }
    }

    /// The store is begun anew, as somebody asked for.
    pub(super) fn begin(&mut self, place: &str) {
        self.changed |= self.stores.remove(place).is_some();
    }

    /// Writes the files, if there is anything new. Of other stores it keeps what another publisher has written meanwhile.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub(super) fn save(&mut self, place: &str) -> Result<(), MemoryError> {
        if !self.changed {
            return Ok(());
        }
        for path in self.files.clone() {
            if let Some((_, stores)) = self.read(&path)? {
                // Which database it signs for was decided when it was loaded, or since then, by whoever started this process.
                self.merge(&path, None, stores, Some(place))?;
            }
        }
        let text = self.text();
        for path in &self.files {
            replace(path, text.as_bytes()).map_err(|source| MemoryError::Io { path: path.clone(), source })?;
        }
        self.changed = false;
        Ok(())
    }

    /// Takes up what a file says; of the store `own` this process knows better.
    fn merge(
        &mut self,
        path: &Path,
        home: Option<Home>,
        stores: BTreeMap<String, Logs>,
        own: Option<&str>,
    ) -> Result<(), MemoryError> {
        let contradiction = |what: String| MemoryError::Contradiction { path: path.to_owned(), what };
        if let Some(home) = home {
            match &self.home {
                Some(known) if *known != home => {
                    return Err(contradiction(format!("the key signs for the database {home}, not {known}")));
                }
                _ => self.home = Some(home),
            }
        }
        for (place, logs) in stores {
            if own == Some(place.as_str()) {
                continue;
            }
            let known = self.stores.entry(place.clone()).or_default();
            for (origin, newest) in logs {
                match known.get(&origin) {
                    Some(known) if known.0 == newest.0 && known.1 != newest.1 => {
                        return Err(contradiction(format!(
                            "{origin} has another root at size {} in {place}",
                            newest.0
                        )));
                    }
                    Some(known) if known.0 >= newest.0 => {}
                    _ => {
                        known.insert(origin, newest);
                    }
                }
            }
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = format!("{FORMAT}\nkey {}\n", self.vkey);
        if let Some(Home { system_identifier, database }) = &self.home {
            let _ = writeln!(text, "home {system_identifier} {database}");
        }
        for (place, logs) in &self.stores {
            // A place may be any path.
            let _ = writeln!(text, "store {}", serde_json::Value::from(place.as_str()));
            for (origin, (size, root)) in logs {
                let _ = writeln!(text, "log {origin} {size} {}", hex(root));
            }
        }
        let signature = STANDARD.encode(self.signer.sign_bytes(text.as_bytes()));
        let _ = writeln!(text, "signature {signature}");
        text
    }

    fn read(&self, path: &Path) -> Result<Option<Read>, MemoryError> {
        let io = |source| MemoryError::Io { path: path.to_owned(), source };
        let metadata = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(MemoryError::NotRegular(path.to_owned()));
        }
        let mut text = String::new();
        File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)).map_err(io)?;
        let wrong = |reason| MemoryError::False { path: path.to_owned(), reason };
        let signed = text.strip_suffix('\n').and_then(|text| text.rsplit_once("\nsignature "));
        let (body, signature) = signed.ok_or_else(|| wrong("it has no signature"))?;
        let body = &text[..body.len() + 1];
        let signature = STANDARD.decode(signature).map_err(|_| wrong("it has no signature"))?;
        let public = PublicKey::from_bytes(self.signer.verifier_key().public_key());
        let holds = public.is_ok_and(|public| public.verify(body.as_bytes(), &signature).is_ok());
        if !holds {
            return Err(wrong("its signature is not this key's"));
        }
        parse(body, &self.vkey).map(Some).ok_or_else(|| wrong("it cannot be read by this version"))
    }
}

fn parse(text: &str, vkey: &str) -> Option<Read> {
    let mut lines = text.lines();
    if lines.next()? != FORMAT || lines.next()?.strip_prefix("key ")? != vkey {
        return None;
    }
    let (mut home, mut stores, mut present) = (None, BTreeMap::<String, Logs>::new(), None::<String>);
    for line in lines {
        let (what, rest) = line.split_once(' ')?;
        match what {
            "home" => {
                let (system_identifier, database) = rest.split_once(' ')?;
                let system_identifier = system_identifier.to_owned();
                home = Some(Home { system_identifier, database: database.parse().ok()? });
            }
            "store" => {
                let place: String = serde_json::from_str(rest).ok()?;
                stores.entry(place.clone()).or_default();
                present = Some(place);
            }
            "log" => {
                let mut parts = rest.split(' ');
                let (origin, size, root) = (parts.next()?, parts.next()?.parse().ok()?, parts.next()?);
                let root = Hash::try_from(hex::decode(root).ok()?).ok()?;
                stores.get_mut(present.as_deref()?)?.insert(origin.to_owned(), (size, root));
            }
            _ => return None,
        }
    }
    Some((home, stores))
}

/// Replaces a file as a whole: it is on disk before it has its name, and its name is after.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let temporary = path.with_file_name(name);
    // What a crash of a process of this number left.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn key(seed: u8) -> LogKey {
        LogKey::from_seed("agd-1/app", Zeroizing::new([seed; 32])).unwrap()
    }

    fn home(database: u32) -> Home {
        Home { system_identifier: "7421".to_owned(), database }
    }

    #[test]
    fn what_was_signed_is_read_back_and_nothing_else_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key.state");
        let load = |seed| Memory::load(&key(seed), vec![path.clone()]);
        let mut memory = load(7).unwrap();
        memory.save("x").unwrap();
        assert!(!path.exists(), "nothing to keep");
        memory.bind(home(5));
        memory.signed("file:///a b\n\"c", "agd-1/app", (3, [1; 32]));
        memory.signed("file:///a b\n\"c", "agd-1/app/t/x", (9, [2; 32]));
        memory.signed("s3://b", "agd-1/app", (2, [3; 32]));
        // It never goes back.
        memory.signed("s3://b", "agd-1/app", (1, [4; 32]));
        memory.save("s3://b").unwrap();
        let again = load(7).unwrap();
        assert_eq!((again.home(), &again.stores), (Some(&home(5)), &memory.stores));
        assert_eq!(again.elsewhere("s3://b", "agd-1/app"), [(3, [1; 32])]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // Every byte is signed, and by this key.
        assert!(matches!(load(8), Err(MemoryError::False { .. })));
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            fs::write(&path, wrong).unwrap();
            assert!(load(7).is_err(), "byte {at}");
        }
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(load(7), Err(MemoryError::False { .. })));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(load(7), Err(MemoryError::NotRegular(_))));
    }

    #[test]
    fn two_files_know_what_either_does() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let load = |files: &[&PathBuf]| Memory::load(&key(7), files.iter().map(|path| (*path).clone()).collect());
        let mut memory = load(&[&one, &two]).unwrap();
        memory.bind(home(5));
        memory.signed("a", "agd-1/app", (3, [1; 32]));
        memory.save("a").unwrap();
        // One was put back to an earlier state, or lost.
        let earlier = fs::read(&one).unwrap();
        memory.signed("a", "agd-1/app", (5, [2; 32]));
        memory.save("a").unwrap();
        fs::write(&one, earlier).unwrap();
        assert_eq!(load(&[&one, &two]).unwrap().newest("a", "agd-1/app"), Some((5, [2; 32])));
        fs::remove_file(&one).unwrap();
        let mut memory = load(&[&one, &two]).unwrap();
        memory.save("a").unwrap();
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        // They contradict each other.
        let mut other = load(&[]).unwrap();
        other.files = vec![one.clone()];
        other.stores.entry("a".to_owned()).or_default().insert("agd-1/app".to_owned(), (5, [9; 32]));
        other.changed = true;
        fs::remove_file(&one).unwrap();
        other.save("a").unwrap();
        assert!(matches!(load(&[&one, &two]), Err(MemoryError::Contradiction { .. })));
    }

    #[test]
    fn publishers_of_two_stores_keep_what_the_other_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let load = || Memory::load(&key(7), vec![path.clone()]).unwrap();
        let (mut a, mut b) = (load(), load());
        a.signed("a", "agd-1/app", (3, [1; 32]));
        a.save("a").unwrap();
        b.signed("b", "agd-1/app", (4, [2; 32]));
        b.save("b").unwrap();
        a.signed("a", "agd-1/app", (5, [3; 32]));
        a.save("a").unwrap();
        let both = load();
        assert_eq!(both.newest("a", "agd-1/app"), Some((5, [3; 32])));
        assert_eq!(both.newest("b", "agd-1/app"), Some((4, [2; 32])));
        a.begin("a");
        a.save("a").unwrap();
        assert_eq!(load().newest("a", "agd-1/app"), None);
    }
}
