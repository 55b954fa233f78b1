//! A database in memory, a disk that fails on demand, and short ways to use them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;

use agd_cli::key::{LogKey, WitnessKey};
use agd_cli::policy::Policy;
use agd_cli::publish::memory::{Home, Memory};
use agd_cli::publish::{Publisher, Round};
use agd_cli::source::{Anchor, AtHome, Identity, LogHead, Receipt, Source, SourceError};
use agd_cli::store::{self, At, Dir, Files, OsFiles, Reader, StoreError, Writer};
use agd_cli::verify::{self, Report};
use agd_cli::witness::Witness;
use agd_core::{Checkpoint, CompactRange, Entry, EventId, Hash, image_digest, leaf_hash};
use zeroize::Zeroizing;

pub const PLATFORM: &str = "agd-1/app";
/// A while ago by any clock: 2025-01-01.
pub const START: i64 = 1_735_689_600_000_000;

pub fn tenant_origin(tenant: &str) -> String {
    format!("{PLATFORM}/t/{tenant}")
}

#[derive(Clone, Default)]
pub struct FakeLog {
    pub tenant: Option<String>,
    pub entries: Vec<Vec<u8>>,
    pub anchors: BTreeMap<u64, Hash>,
    pub published: BTreeMap<u64, String>,
    /// The notes that came with the receipts.
    pub notes: BTreeMap<u64, String>,
    /// What was told of timestamps: size and time.
    pub stamps: Vec<(u64, i64)>,
}

impl FakeLog {
    pub fn root_at(&self, size: u64) -> Hash {
        let mut range = CompactRange::new();
        for entry in &self.entries[..size as usize] {
            range.push(leaf_hash(entry));
        }
        range.root()
    }

    /// Computes every anchor again from the entries: what somebody who rewrites the history would do.
    pub fn reanchor(&mut self) {
        let sizes: Vec<u64> = self.anchors.keys().copied().collect();
        for size in sizes {
            let root = self.root_at(size);
            self.anchors.insert(size, root);
        }
    }
}

/// A database whose logs are in memory.
#[derive(Clone, Default)]
pub struct FakeDatabase {
    pub logs: BTreeMap<String, FakeLog>,
    pub xact: u64,
    /// Calls of `entries` and `record_publication` that still work; `None`: all.
    pub entries_left: Option<u64>,
    pub records_left: Option<u64>,
    pub reports_left: Option<u64>,
    pub stamps_left: Option<u64>,
    /// What was told to be published and not continued.
    pub reported: Vec<(String, Receipt)>,
    pub entry_calls: u64,
    /// Which database of its server this is; the first, and the one at home here, if nothing is said.
    pub number: u32,
    pub copy: bool,
    /// Which one made the receipts.
    pub received_from: Option<String>,
}

pub fn entry(xact_id: u64, n: u32, tenant: Option<&str>, action: &str, body: Option<&str>) -> Vec<u8> {
    let at = START + xact_id as i64 * 1_000_003;
    let digest = |kind, text: &str| Some(image_digest(kind, &[xact_id as u8; 16], text));
    let image = body.is_none();
    let entry = Entry {
        event_id: EventId { xact_id, n },
        action,
        at,
        committed_at: at + 7,
        tenant,
        relation: image.then_some("public.orders"),
        guard_id: image.then_some("0b9d6a52-7a39-4a56-8b0e-0f6f6d3f3c11"),
        row_key: if image { digest(agd_core::ImageKind::Key, &xact_id.to_string()) } else { None },
        old: None,
        new: if image { digest(agd_core::ImageKind::New, "2") } else { None },
        body,
        session_user_name: "app",
        role_name: "app",
        principal: Some("writer-1"),
        fleet_id: None,
        cause: Some("a cause with \"quotes\" and ü"),
        binding: "role",
        application_name: Some("tests"),
        client_addr: None,
    };
    let mut bytes = Vec::new();
    entry.encode_into(&mut bytes);
    bytes
}

impl FakeDatabase {
    pub fn new() -> Self {
        let mut database = Self::default();
        database.logs.insert(PLATFORM.to_owned(), FakeLog::default());
        database
    }

    /// Appends `count` events of a tenant (or of none) and anchors what is there.
    pub fn write(&mut self, tenant: Option<&str>, count: u64) {
        let origin = tenant.map_or(PLATFORM.to_owned(), tenant_origin);
        let log = self.logs.entry(origin.clone()).or_default();
        log.tenant = tenant.map(str::to_owned);
        for _ in 0..count {
            self.xact += 1;
            log.entries.push(entry(self.xact, 1, tenant, "INSERT", None));
        }
        self.anchor(&origin);
    }

    /// Anchors at every multiple of 256 and at the tail; a tenant's new anchors become entries of the platform log.
    pub fn anchor(&mut self, origin: &str) {
        let log = self.logs.get_mut(origin).unwrap();
        let from = log.anchors.last_key_value().map_or(0, |(size, _)| *size);
        let size = log.entries.len() as u64;
        let mut range = CompactRange::new();
        let mut texts = Vec::new();
        for entry in &log.entries {
            range.push(leaf_hash(entry));
            let at = range.size();
            if at > from && (at.is_multiple_of(256) || at == size) {
                log.anchors.insert(at, range.root());
                let origin = origin.to_owned();
                texts.push(Checkpoint { origin, size: at, root: range.root() }.to_string());
            }
        }
        if origin != PLATFORM {
            let platform = self.logs.get_mut(PLATFORM).unwrap();
            for text in texts {
                self.xact += 1;
                platform.entries.push(entry(self.xact, 1, None, "CHECKPOINT", Some(&text)));
            }
            self.anchor(PLATFORM);
        }
    }

    /// Begins a new incarnation with this body in its first entry; returns the new platform log's origin. It has two
    /// entries more: one that speaks of a closed tenant's log, and one of its own.
    pub fn begin_incarnation(&mut self, body: &agd_core::Incarnation) -> String {
        let (log_name, incarnation) = agd_core::name::split_incarnation(&body.closed.origin);
        let origin = agd_core::name::incarnation_origin(log_name, incarnation + 1);
        let tail = Checkpoint { origin: format!("{}/t/acme", body.closed.origin), size: 99_999, root: [9; 32] };
        let entries =
            [("INCARNATION", Some(body.to_string())), ("CHECKPOINT", Some(tail.to_string())), ("INSERT", None)];
        for (action, body) in entries {
            self.xact += 1;
            let bytes = entry(self.xact, 1, None, action, body.as_deref());
            self.logs.entry(origin.clone()).or_default().entries.push(bytes);
        }
        self.anchor_alone(&origin);
        origin
    }

    /// Anchors a log's tail.
    pub fn anchor_alone(&mut self, origin: &str) {
        let log = self.log(origin);
        let size = log.entries.len() as u64;
        let root = log.root_at(size);
        log.anchors.insert(size, root);
    }

    pub fn log(&mut self, origin: &str) -> &mut FakeLog {
        self.logs.get_mut(origin).unwrap()
    }
}

fn spend(left: &mut Option<u64>, what: &'static str) -> Result<(), SourceError> {
    if let Some(left) = left {
        if *left == 0 {
            return Err(SourceError { what, message: "connection lost".to_owned(), hint: None });
        }
        *left -= 1;
    }
    Ok(())
}

impl Source for FakeDatabase {
    fn identity(&mut self) -> Result<Identity, SourceError> {
        let home = Home { system_identifier: "7421".to_owned(), database: 5 + self.number };
        let at_home = match (self.copy, self.logs.values().all(|log| log.anchors.is_empty())) {
            (true, _) => AtHome::Copy,
            (_, true) => AtHome::New,
            _ => AtHome::Here,
        };
        // The keys of all tests are registered.
        let keys = (0..32).map(|seed| LogKey::from_seed(PLATFORM, Zeroizing::new([seed; 32])).unwrap());
        let keys = keys.map(|key| key.verifier().to_string()).collect();
        Ok(Identity { home, at_home, received_from: self.received_from.clone(), keys })
    }

    fn logs(&mut self, place: Option<&str>) -> Result<Vec<LogHead>, SourceError> {
        let newest = self.logs.keys().map(|origin| incarnation_of(origin)).max().unwrap_or(1);
        let heads = self.logs.iter().filter_map(|(origin, log)| {
            Some(LogHead {
                origin: origin.clone(),
                tenant: log.tenant.clone(),
                tree_size: *log.anchors.last_key_value()?.0 as i64,
                closed: incarnation_of(origin) < newest,
                received: log.published.keys().next_back().map(|size| *size as i64).filter(|_| place.is_some()),
                received_here: {
                    let here = log.published.iter().filter(|(_, published)| Some(published.as_str()) == place);
                    here.map(|(size, _)| *size as i64).max()
                },
            })
        });
        Ok(heads.collect())
    }

    fn anchors(&mut self, origin: &str, from: i64, limit: i64) -> Result<Vec<Anchor>, SourceError> {
        let log = &self.logs[origin];
        let anchors = log.anchors.range(from as u64..).take(limit as usize);
        Ok(anchors
            .map(|(size, root)| Anchor {
                tree_size: *size as i64,
                root_hash: root.to_vec(),
                checkpoint: Checkpoint { origin: origin.to_owned(), size: *size, root: *root }.to_string(),
                published_to: log.published.get(size).cloned(),
            })
            .collect())
    }

    fn entries(&mut self, origin: &str, first: i64, last: i64) -> Result<Vec<(i64, Vec<u8>)>, SourceError> {
        spend(&mut self.entries_left, "read entries")?;
        self.entry_calls += 1;
        let entries = &self.logs[origin].entries;
        let last = (last as usize).min(entries.len());
        let range = (first as usize).min(last)..last;
        Ok(range.map(|i| (i as i64, entries[i].clone())).collect())
    }

    fn record_publication(&mut self, origin: &str, published: &[Receipt], to: &str) -> Result<(), SourceError> {
        if published.is_empty() {
            return Ok(());
        }
        spend(&mut self.records_left, "record the publication")?;
        let log = self.logs.get_mut(origin).unwrap();
        for Receipt { tree_size, root, note } in published {
            let size = *tree_size as u64;
            assert_eq!(log.anchors.get(&size), Some(root), "only what was anchored is recorded");
            log.published.insert(size, to.to_owned());
            log.notes.insert(size, note.clone());
        }
        Ok(())
    }

    fn record_timestamp(&mut self, origin: &str, tree_size: i64, root: &Hash, at: i64) -> Result<(), SourceError> {
        spend(&mut self.stamps_left, "record the timestamp")?;
        let log = self.logs.get_mut(origin).unwrap();
        assert_eq!(log.anchors.get(&(tree_size as u64)), Some(root), "only what was anchored is stamped");
        let stamp = (tree_size as u64, at);
        if !log.stamps.contains(&stamp) {
            log.stamps.push(stamp);
        }
        Ok(())
    }

    fn report_divergence(&mut self, origin: &str, newest: &Receipt) -> Result<(), SourceError> {
        self.reported.push((origin.to_owned(), newest.clone()));
        spend(&mut self.reports_left, "report what was published")
    }
}

/// Which incarnation of its database's logs a log belongs to.
fn incarnation_of(origin: &str) -> u32 {
    let platform = origin.split_once("/t/").map_or(origin, |(platform, _)| platform);
    agd_core::name::split_incarnation(platform).1
}

/// What a crash leaves of that which was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// Everything: the process died and the machine did not.
    Process,
    /// Half of every file, with every name: the machine went down.
    Contents,
    /// Half of every file, and no name, no folder and no replacement since its folder was flushed.
    Names,
    /// As `Names`, but of the tiles alone: names of one folder may be on disk long before those of another.
    Tiles,
    /// As `Names`, but what was replaced stays so.
    Immutable,
}

/// A disk on which only so many operations succeed. The one that fails may have been done by half, and is a crash.
pub struct FailingFiles {
    pub left: Rc<Cell<Option<u64>>>,
    pub done: Rc<Cell<u64>>,
    crash: Crash,
    /// What is written and not flushed, by inode.
    unflushed: RefCell<HashMap<u64, File>>,
    /// What was done in folders that are not flushed, in order.
    unnamed: RefCell<Vec<(PathBuf, Undo)>>,
}

/// How a change of a folder is taken back.
enum Undo {
    Folder(PathBuf),
    Name(PathBuf),
    Replaced(PathBuf, Option<Vec<u8>>),
}

impl FailingFiles {
    fn new(left: Option<u64>, crash: Crash) -> (Self, Rc<Cell<u64>>) {
        let done = Rc::new(Cell::new(0));
        let files = Self {
            left: Rc::new(Cell::new(left)),
            done: Rc::clone(&done),
            crash,
            unflushed: RefCell::default(),
            unnamed: RefCell::default(),
        };
        (files, done)
    }

    fn step(&self) -> io::Result<()> {
        self.done.set(self.done.get() + 1);
        match self.left.get() {
            Some(0) => {
                self.lose();
                Err(io::Error::other("the disk is gone"))
            }
            Some(left) => {
                self.left.set(Some(left - 1));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The crash, once.
    fn lose(&self) {
        let unflushed = std::mem::take(&mut *self.unflushed.borrow_mut());
        let unnamed = std::mem::take(&mut *self.unnamed.borrow_mut());
        if self.crash == Crash::Process {
            return;
        }
        for file in unflushed.into_values() {
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }
        if self.crash == Crash::Contents {
            return;
        }
        for (folder, undo) in unnamed.into_iter().rev() {
            if self.crash == Crash::Tiles && !folder.components().any(|part| part.as_os_str() == "tile") {
                continue;
            }
            match undo {
                Undo::Replaced(..) if self.crash == Crash::Immutable => {}
                // A folder with something in it that stays is there as well.
                Undo::Folder(path) if self.crash == Crash::Immutable => {
                    let _ = std::fs::remove_dir(path);
                }
                Undo::Folder(path) => std::fs::remove_dir_all(path).unwrap(),
                Undo::Name(path) => std::fs::remove_file(path).unwrap(),
                Undo::Replaced(path, before) => {
                    std::fs::remove_file(&path).unwrap();
                    before.into_iter().for_each(|bytes| std::fs::write(&path, bytes).unwrap());
                }
            }
        }
    }

    fn changed(&self, path: &Path, undo: Undo) {
        // Only what another folder holds is needed when this one is lost: nothing is, of the unfinished files.
        let folder = path.parent().unwrap().to_owned();
        if !folder.ends_with("tmp") {
            self.unnamed.borrow_mut().push((folder, undo));
        }
    }
}

impl Files for FailingFiles {
    fn create_dir(&self, at: &At) -> io::Result<()> {
        self.step()?;
        let path = at.path();
        let new = !path.exists();
        OsFiles.create_dir(at)?;
        if new && !path.components().any(|part| part.as_os_str() == store::CONTROL) {
            self.changed(&path, Undo::Folder(path.clone()));
        }
        Ok(())
    }
    fn write_new(&self, at: &At, bytes: &[u8]) -> io::Result<File> {
        if let Err(error) = self.step() {
            let _ = std::fs::write(at.path(), &bytes[..bytes.len() / 2]);
            return Err(error);
        }
        let file = OsFiles.write_new(at, bytes)?;
        self.unflushed.borrow_mut().insert(file.metadata()?.ino(), file.try_clone()?);
        Ok(file)
    }
    fn flush(&self, files: &[&File]) -> io::Result<()> {
        for file in files {
            self.step()?;
            self.unflushed.borrow_mut().remove(&file.metadata()?.ino()).expect("flushed once, after it was written");
        }
        Ok(())
    }
    fn link(&self, from: &At, to: &At) -> io::Result<()> {
        self.step()?;
        OsFiles.link(from, to)?;
        self.changed(&to.path(), Undo::Name(to.path()));
        Ok(())
    }
    fn rename(&self, from: &At, to: &At) -> io::Result<()> {
        self.step()?;
        let before = std::fs::read(to.path()).ok();
        OsFiles.rename(from, to)?;
        self.changed(&to.path(), Undo::Replaced(to.path(), before));
        Ok(())
    }
    fn remove(&self, at: &At) -> io::Result<()> {
        self.step()?;
        OsFiles.remove(at)
    }
    fn sync_dir(&self, folder: &Dir) -> io::Result<()> {
        self.step()?;
        self.unnamed.borrow_mut().retain(|(changed, _)| changed != folder.path());
        Ok(())
    }
}

/// A disk without the flushes, for tests that write much.
pub fn fast_files(left: Option<u64>) -> (Box<dyn Files>, Rc<Cell<u64>>) {
    crashing_files(left, Crash::Process)
}

/// As [`fast_files`], with what the crash takes away.
pub fn crashing_files(left: Option<u64>, crash: Crash) -> (Box<dyn Files>, Rc<Cell<u64>>) {
    let (files, done) = FailingFiles::new(left, crash);
    (Box::new(files), done)
}

pub fn key() -> LogKey {
    LogKey::from_seed(PLATFORM, Zeroizing::new([7; 32])).unwrap()
}

/// A publisher that remembers nothing of what the key has signed before.
pub fn publisher(root: &Path) -> Publisher {
    publisher_that_remembers(root, "file:///worm", Vec::new())
}

/// A publisher whose key's state is in these files.
pub fn publisher_that_remembers(root: &Path, place: &str, state: Vec<PathBuf>) -> Publisher {
    Publisher::new(open_store(root), key(), place.to_owned(), Memory::load(&key(), state).unwrap())
}

/// For a publisher that keeps nothing beside its key.
pub fn no_memory(key: &LogKey) -> Memory {
    Memory::load(key, Vec::new()).unwrap()
}

/// Opens a store. Another test that starts a program holds every open file of this process, a lock just given back among
/// them, from its fork to its exec: wait for that.
fn open_store(root: &Path) -> Writer {
    for _ in 0..500 {
        match Writer::open(root, fast_files(None).0) {
            Err(StoreError::Locked { .. }) => std::thread::sleep(std::time::Duration::from_millis(10)),
            opened => return opened.unwrap(),
        }
    }
    panic!("{} stays locked", root.display());
}

/// One round by a fresh publisher, as `--once` does it.
pub fn publish(root: &Path, database: &mut FakeDatabase) -> Round {
    publisher(root).round(database, &mut |_| {})
}

pub fn witness_key(seed: u8) -> WitnessKey {
    WitnessKey::from_seed(&format!("witness.example/w{seed}"), Zeroizing::new([seed; 32])).unwrap()
}

/// A witness whose clock stands still, so that the same work gives the same bytes.
pub fn witness(seed: u8, time: u64) -> Witness {
    Witness::with_clock(&witness_key(seed), &key(), Box::new(move || time)).unwrap()
}

pub fn policy() -> Policy {
    Policy::parse(format!("log {}\nquorum none\n", key().verifier()).as_bytes()).unwrap()
}

pub fn verify(root: &Path) -> Report {
    verify_with(root, Some(&policy()))
}

pub fn verify_with(root: &Path, policy: Option<&Policy>) -> Report {
    verify::run(&Reader::open(root).unwrap(), policy, &AtomicU64::new(0)).unwrap()
}

/// Every file below a folder with its bytes, but the publisher's own.
pub fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut waiting: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            if name == ".agd_publish" {
                continue;
            }
            if path.is_dir() {
                waiting.push(path);
            } else {
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Replaces a published file, read-only as it is.
pub fn overwrite(root: &Path, name: &str, bytes: &[u8]) {
    let path = root.join(name);
    let _ = std::fs::remove_file(&path);
    std::fs::write(path, bytes).unwrap();
}

/// All findings as text: file, then message.
pub fn findings(report: &Report) -> Vec<(String, String)> {
    let all = report.logs.iter().flat_map(|log| log.result.findings.list());
    all.map(|f| (f.file.clone(), f.message.clone())).collect()
}
