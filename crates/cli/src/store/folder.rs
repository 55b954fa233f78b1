//! A store in a folder: read-only files, each on disk before it has its name.
//!
//! Owns the order of system calls that makes files whole and durable under their names, the publisher's lock, and that
//! nothing but a regular file is ever opened. Files are written aside, many of them are flushed at once, then each gets its
//! name by a link that fails where the name is taken, and in the end the folders' names are flushed. Promises that a
//! published file is never overwritten and that a crash leaves nothing but unfinished files under [`CONTROL`]. It never makes
//! the store's own folder: a store that is not mounted must not become an empty one.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::files::Files;
use super::{CONTROL, Kind, Listed, StoreError};
use crate::input;

/// Files that wait to be flushed at most: each is open until then.
const WAITING: usize = 256;

/// Their bytes at most, unless a single file is larger: what the system is to write at once.
const WAITING_BYTES: usize = 32 << 20;

/// A folder's files, for reading.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Opens the store at a path.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be reached, [`StoreError::Location`] when it is not a folder.
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let metadata =
            fs::metadata(root).map_err(|source| StoreError::Io { path: root.display().to_string(), source })?;
        if !metadata.is_dir() {
            return Err(StoreError::Location { location: root.display().to_string(), reason: "not a folder" });
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Its absolute path.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn absolute(&self) -> Result<PathBuf, StoreError> {
        self.root.canonicalize().map_err(|source| io_error(&self.root.display().to_string(), source))
    }

    /// The bytes of an object, `None` when there is none of this name.
    ///
    /// # Errors
    /// [`StoreError::NotRegular`], [`StoreError::TooLarge`] above `limit` bytes, [`StoreError::Io`].
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        let (file, metadata) = match input::open_regular(&self.root.join(path), false) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Err(StoreError::NotRegular { path: path.to_owned() }),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let too_large = |size| StoreError::TooLarge { path: path.to_owned(), size, limit };
        if metadata.len() > limit {
            return Err(too_large(metadata.len()));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > limit {
            return Err(too_large(bytes.len() as u64));
        }
        Ok(Some(bytes))
    }

    /// Whether a regular file has this name.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn has(&self, path: &str) -> Result<bool, StoreError> {
        match fs::symlink_metadata(self.root.join(path)) {
            Ok(metadata) => Ok(metadata.is_file()),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(io_error(path, error)),
        }
    }

    /// The names in a folder, sorted; `None` when there is no such folder.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn list(&self, path: &str) -> Result<Option<Vec<Listed>>, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        let entries = match fs::read_dir(self.root.join(path)) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io)?;
            let file_type = entry.file_type().map_err(io)?;
            let kind = if file_type.is_file() {
                Kind::File
            } else if file_type.is_dir() {
                Kind::Folder
            } else {
                Kind::Other
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            names.push(Listed { name, kind });
        }
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(names))
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A store that this process alone may write.
pub(super) struct FolderWriter {
    folder: Folder,
    files: Box<dyn Files>,
    /// Folders with names that may not be on disk yet, relative to the store.
    unsynced: BTreeSet<PathBuf>,
    /// Folders known to exist, relative to the store.
    folders: HashSet<PathBuf>,
    /// What was put and has no name yet.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    temporary: u64,
    /// Held as long as the writer lives; the system releases it when the process ends, however it ends.
    _lock: File,
}

/// A file that is written, and neither flushed nor named.
struct Waiting {
    /// Its name to be, relative to the store.
    path: String,
    /// Where it is.
    temporary: PathBuf,
    file: File,
}

impl std::fmt::Debug for FolderWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FolderWriter({})", self.folder.root.display())
    }
}

impl FolderWriter {
    /// Opens a store for writing, takes its lock and clears away what a crash left unfinished.
    ///
    /// The folder must exist: to make it would turn a store that is not mounted into an empty one.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another publisher is at work, [`StoreError::Location`], [`StoreError::Io`].
    pub(super) fn open(root: &Path, files: Box<dyn Files>) -> Result<Self, StoreError> {
        let folder = Folder::open(root)?;
        let io = |source| StoreError::Io { path: CONTROL.to_owned(), source };
        let control = root.join(CONTROL);
        let temporary = control.join("tmp");
        files.create_dir(&control).map_err(io)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(control.join("lock")).map_err(io)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Locked { path: root.display().to_string() },
            TryLockError::Error(source) => io(source),
        })?;
        files.create_dir(&temporary).map_err(io)?;
        for left in fs::read_dir(&temporary).map_err(io)? {
            files.remove(&left.map_err(io)?.path()).map_err(io)?;
        }
        Ok(Self {
            folder,
            files,
            unsynced: BTreeSet::new(),
            folders: HashSet::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            temporary: 0,
            _lock: lock,
        })
    }

    /// The same folder, for reading.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Writes an immutable object. It has its name, on disk, after the next [`FolderWriter::sync`].
    ///
    /// An object that is there with the same bytes is as good as written.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is there with other bytes, [`StoreError::NotRegular`], [`StoreError::Io`]; nothing
    /// waits any more then.
    pub(super) fn put(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let done = self.put_aside(path, bytes);
        if done.is_err() {
            self.give_up();
        }
        done
    }

    fn put_aside(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        if self.is_there(path, bytes)? {
            self.note_folder(path);
            return Ok(());
        }
        let full = self.waiting.len() >= WAITING || self.waiting_bytes + bytes.len() > WAITING_BYTES;
        if full && !self.waiting.is_empty() {
            self.name_waiting()?;
        }
        let waiting = self.write_temporary(path, bytes)?;
        self.waiting.push_back(waiting);
        self.waiting_bytes += bytes.len();
        Ok(())
    }

    /// Replaces a mutable object as a whole and flushes its name to disk.
    ///
    /// # Errors
    /// [`StoreError::Io`], and what [`FolderWriter::sync`] says of objects before it.
    pub(super) fn replace(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        // Whatever the caller says: nothing that others find by this object may come after it.
        self.sync()?;
        let Waiting { temporary, file, .. } = self.write_temporary(path, bytes)?;
        self.files
            .flush(&[&file])
            .and_then(|()| self.files.rename(&temporary, &self.folder.root.join(path)))
            .map_err(|source| io_error(path, source))?;
        self.note_folder(path);
        self.sync()
    }

    /// Flushes every object that was put, gives it its name, and flushes every new name to disk.
    ///
    /// # Errors
    /// What [`FolderWriter::put`] says of one of them; nothing waits any more then.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        let named = self.name_waiting();
        if named.is_err() {
            self.give_up();
            return named;
        }
        while let Some(folder) = self.unsynced.first().cloned() {
            self.files
                .sync_dir(&self.folder.root.join(&folder))
                .map_err(|source| io_error(&folder.display().to_string(), source))?;
            self.unsynced.remove(&folder);
        }
        Ok(())
    }

    /// Flushes what waits, and only then gives it its names.
    fn name_waiting(&mut self) -> Result<(), StoreError> {
        if let Some(first) = self.waiting.front() {
            let files: Vec<&File> = self.waiting.iter().map(|waiting| &waiting.file).collect();
            self.files.flush(&files).map_err(|source| io_error(&first.path, source))?;
        }
        self.waiting_bytes = 0;
        while let Some(waiting) = self.waiting.pop_front() {
            if let Err(error) = self.name(&waiting) {
                self.waiting.push_front(waiting);
                return Err(error);
            }
        }
        Ok(())
    }

    fn name(&mut self, Waiting { path, temporary, .. }: &Waiting) -> Result<(), StoreError> {
        match self.files.link(temporary, &self.folder.root.join(path)) {
            Ok(()) => {}
            // Taken in between: by the same bytes, or by others.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let bytes = fs::read(temporary).map_err(|source| io_error(path, source))?;
                if !self.is_there(path, &bytes)? {
                    return Err(StoreError::Conflict { path: path.clone() });
                }
            }
            Err(source) => return Err(io_error(path, source)),
        }
        self.note_folder(path);
        self.files.remove(temporary).map_err(|source| io_error(path, source))
    }

    /// Takes away what waits: whoever put it was told that it was not written. What cannot be removed is cleared away when
    /// the store is opened the next time.
    fn give_up(&mut self) {
        self.waiting_bytes = 0;
        for Waiting { temporary, .. } in self.waiting.drain(..) {
            let _ = self.files.remove(&temporary);
        }
    }

    /// Whether the object is there with these bytes; an error when it is there with others.
    fn is_there(&self, path: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        let conflict = || StoreError::Conflict { path: path.to_owned() };
        match self.folder.read(path, bytes.len() as u64) {
            Ok(None) => Ok(false),
            Ok(Some(found)) if found == bytes => Ok(true),
            Ok(Some(_)) | Err(StoreError::TooLarge { .. }) => Err(conflict()),
            Err(error) => Err(error),
        }
    }

    fn write_temporary(&mut self, path: &str, bytes: &[u8]) -> Result<Waiting, StoreError> {
        if let Some(folder) = Path::new(path).parent() {
            self.ensure_folder(folder)?;
        }
        self.temporary += 1;
        let name = format!("{}-{}", std::process::id(), self.temporary);
        let temporary = self.folder.root.join(CONTROL).join("tmp").join(name);
        let file = self.files.write_new(&temporary, bytes).map_err(|source| io_error(path, source))?;
        Ok(Waiting { path: path.to_owned(), temporary, file })
    }

    fn ensure_folder(&mut self, folder: &Path) -> Result<(), StoreError> {
        if folder.as_os_str().is_empty() || self.folders.contains(folder) {
            return Ok(());
        }
        let parent = folder.parent().unwrap_or(Path::new(""));
        self.ensure_folder(parent)?;
        self.files
            .create_dir(&self.folder.root.join(folder))
            .map_err(|source| io_error(&folder.display().to_string(), source))?;
        // Also when it was there: the process that made it may have died before its name was on disk.
        self.unsynced.insert(parent.to_owned());
        self.folders.insert(folder.to_owned());
        Ok(())
    }

    fn note_folder(&mut self, path: &str) {
        let mut folder = Path::new(path).parent();
        if let Some(folder) = folder {
            self.unsynced.insert(folder.to_owned());
        }
        // An object that was there already was not passed through `ensure_folder`; its folders' names matter as well.
        while let Some(known) = folder.filter(|f| !f.as_os_str().is_empty()) {
            if !self.folders.insert(known.to_owned()) {
                break;
            }
            folder = known.parent();
            self.unsynced.insert(folder.unwrap_or(Path::new("")).to_owned());
        }
    }
}

fn io_error(path: &str, source: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), source }
}
