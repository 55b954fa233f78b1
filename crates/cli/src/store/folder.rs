//! A store in a folder: read-only files, each on disk before it has its name.
//!
//! Owns the order of system calls that makes files whole and durable under their names, the publisher's lock, and that
//! nothing but a regular file is ever opened, and no link followed, neither in the place of a file nor of a folder. Files are written aside, many of them are flushed at once, then each gets its
//! name by a link that fails where the name is taken, and in the end the folders' names are flushed. Promises that a
//! published file is never overwritten and that a crash leaves nothing but unfinished files under [`CONTROL`]. It never makes
//! the store's own folder: a store that is not mounted must not become an empty one.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::FileType;

use super::files::{At, Dir, Files};
use super::{CONTROL, Kind, Listed, StoreError};

/// Files that wait to be flushed at most: each is open until then.
const WAITING: usize = 256;

/// Their bytes at most, unless a single file is larger: what the system is to write at once.
const WAITING_BYTES: usize = 32 << 20;

/// A folder's files, for reading.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    root: Dir,
}

impl Folder {
    /// Opens the store at a path.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be reached, [`StoreError::Location`] when it is not a folder.
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let dir = Dir::open(root).map_err(|source| match source.kind() {
            io::ErrorKind::NotADirectory => {
                StoreError::Location { location: root.display().to_string(), reason: "not a folder" }
            }
            _ => StoreError::Io { path: root.display().to_string(), source },
        })?;
        Ok(Self { root: dir })
    }

    /// Its absolute path.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn absolute(&self) -> Result<PathBuf, StoreError> {
        let root = self.root.path();
        root.canonicalize().map_err(|source| io_error(&root.display().to_string(), source))
    }

    /// A folder in the store; `None` when there is none.
    ///
    /// # Errors
    /// [`StoreError::NotRegular`] where a link stands in the place of a folder on the way, [`StoreError::Io`].
    fn folder(&self, path: &Path) -> Result<Option<Dir>, StoreError> {
        let mut folder = self.root.clone();
        for component in path.components() {
            let name = plain(component, path)?;
            let next = match folder.folder(name) {
                Ok(next) => next,
                Err(error) if is_absent(&error) => {
                    let at = folder.at(name);
                    let shown = at.path();
                    let shown = shown.strip_prefix(self.root.path()).unwrap_or(&shown).display().to_string();
                    return match at.kind().map_err(|source| io_error(&shown, source))? {
                        // A file is no folder, and has nothing below it.
                        None | Some(FileType::RegularFile) => Ok(None),
                        Some(_) => Err(StoreError::NotRegular { path: shown }),
                    };
                }
                Err(error) => return Err(io_error(&path.display().to_string(), error)),
            };
            folder = next;
        }
        Ok(Some(folder))
    }

    /// A name in the store; `None` when its folder is not there.
    fn at(&self, path: &Path) -> Result<Option<At>, StoreError> {
        let (Some(parent), Some(name)) = (path.parent(), path.components().next_back()) else {
            return Ok(None);
        };
        let name = plain(name, path)?;
        Ok(self.folder(parent)?.map(|folder| folder.at(name)))
    }

    /// The same for a name that is about to be written: its folder was made.
    fn at_made(&self, path: &Path) -> Result<At, StoreError> {
        let gone = || io_error(&path.display().to_string(), io::ErrorKind::NotFound.into());
        self.at(path)?.ok_or_else(gone)
    }

    /// The bytes of an object, `None` when there is none of this name.
    ///
    /// # Errors
    /// [`StoreError::NotRegular`], [`StoreError::TooLarge`] above `limit` bytes, [`StoreError::Io`].
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        let Some(at) = self.at(Path::new(path))? else { return Ok(None) };
        let file = match at.read() {
            Ok(Some(file)) => file,
            Ok(None) => return Err(StoreError::NotRegular { path: path.to_owned() }),
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let size = file.metadata().map_err(io)?.len();
        let too_large = |size| StoreError::TooLarge { path: path.to_owned(), size, limit };
        if size > limit {
            return Err(too_large(size));
        }
        let mut bytes = Vec::with_capacity(size as usize + 1);
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() as u64 > limit {
            return Err(too_large(bytes.len() as u64));
        }
        Ok(Some(bytes))
    }

    /// Whether a regular file has this name.
    ///
    /// # Errors
    /// [`StoreError::NotRegular`] where a link stands in the place of a folder on the way, [`StoreError::Io`].
    pub(super) fn has(&self, path: &str) -> Result<bool, StoreError> {
        let Some(at) = self.at(Path::new(path))? else { return Ok(false) };
        let kind = at.kind().map_err(|error| io_error(path, error))?;
        Ok(kind == Some(FileType::RegularFile))
    }

    /// The names in a folder, sorted; `None` when there is no such folder.
    ///
    /// # Errors
    /// [`StoreError::NotRegular`] where a link stands in the place of a folder on the way, [`StoreError::Io`].
    pub(super) fn list(&self, path: &str) -> Result<Option<Vec<Listed>>, StoreError> {
        let Some(folder) = self.folder(Path::new(path))? else { return Ok(None) };
        let names = folder.names().map_err(|error| io_error(path, error))?;
        let listed = names.into_iter().map(|(name, kind)| Listed {
            name: name.to_string_lossy().into_owned(),
            kind: match kind {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Folder,
                _ => Kind::Other,
            },
        });
        let mut names: Vec<Listed> = listed.collect();
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(names))
    }
}

/// A step of an object's path: a name, and nothing that leads elsewhere.
fn plain<'a>(component: Component<'a>, path: &Path) -> Result<&'a OsStr, StoreError> {
    match component {
        Component::Normal(name) => Ok(name),
        _ => Err(StoreError::NotRegular { path: path.display().to_string() }),
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
    temporary: At,
    file: File,
}

impl std::fmt::Debug for FolderWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FolderWriter({})", self.folder.root.path().display())
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
        let (control, temporary) = (Path::new(CONTROL), Path::new(CONTROL).join("tmp"));
        let (lock_path, not_regular) =
            (control.join("lock"), |path: &Path| StoreError::NotRegular { path: path.display().to_string() });
        files.create_dir(&folder.at_made(control)?).map_err(io)?;
        let lock = folder.at_made(&lock_path)?.write_or_make().map_err(io)?;
        let lock = lock.ok_or_else(|| not_regular(&lock_path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Locked { path: root.display().to_string() },
            TryLockError::Error(source) => io(source),
        })?;
        files.create_dir(&folder.at_made(&temporary)?).map_err(io)?;
        let unfinished = folder.folder(&temporary)?.ok_or_else(|| not_regular(&temporary))?;
        for (left, _) in unfinished.names().map_err(io)? {
            files.remove(&unfinished.at(&left)).map_err(io)?;
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
        let to = self.folder.at_made(Path::new(path))?;
        self.files
            .flush(&[&file])
            .and_then(|()| self.files.rename(&temporary, &to))
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
            let shown = || folder.display().to_string();
            let open = self.folder.folder(&folder)?;
            let open = open.ok_or_else(|| io_error(&shown(), io::ErrorKind::NotFound.into()))?;
            self.files.sync_dir(&open).map_err(|source| io_error(&shown(), source))?;
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
        match self.files.link(temporary, &self.folder.at_made(Path::new(path))?) {
            Ok(()) => {}
            // Taken in between: by the same bytes, or by others.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut bytes = Vec::new();
                let written = temporary.read().map_err(|source| io_error(path, source))?;
                let written = written.ok_or_else(|| StoreError::NotRegular { path: path.clone() })?;
                (&written).read_to_end(&mut bytes).map_err(|source| io_error(path, source))?;
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
        let temporary = self.folder.at_made(&Path::new(CONTROL).join("tmp").join(name))?;
        let file = self.files.write_new(&temporary, bytes).map_err(|source| io_error(path, source))?;
        Ok(Waiting { path: path.to_owned(), temporary, file })
    }

    fn ensure_folder(&mut self, folder: &Path) -> Result<(), StoreError> {
        if folder.as_os_str().is_empty() || self.folders.contains(folder) {
            return Ok(());
        }
        let parent = folder.parent().unwrap_or(Path::new(""));
        self.ensure_folder(parent)?;
        let at = self.folder.at_made(folder)?;
        self.files.create_dir(&at).map_err(|source| io_error(&folder.display().to_string(), source))?;
        if at.kind().map_err(|source| io_error(&folder.display().to_string(), source))? != Some(FileType::Directory) {
            return Err(StoreError::NotRegular { path: folder.display().to_string() });
        }
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
