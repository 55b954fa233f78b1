//! A store in a folder: read-only files, each on disk before it has its name.
//!
//! Owns the order of system calls that makes a file whole and durable under its name, the publisher's lock, and that
//! nothing but a regular file is ever opened. Promises that a published file is never overwritten and that a crash leaves
//! nothing but unfinished files under [`CONTROL`]. It never makes the store's own folder: a store that is not mounted must
//! not become an empty one.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{CONTROL, Kind, Listed, StoreError};

/// Mode of everything that is published: nobody writes it again.
const READ_ONLY: u32 = 0o444;

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
        let full = self.root.join(path);
        // Looked at before it is opened: opening a pipe would block.
        let metadata = match fs::symlink_metadata(&full) {
            Ok(metadata) => metadata,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        if !metadata.is_file() {
            return Err(StoreError::NotRegular { path: path.to_owned() });
        }
        let too_large = |size| StoreError::TooLarge { path: path.to_owned(), size, limit };
        if metadata.len() > limit {
            return Err(too_large(metadata.len()));
        }
        let mut bytes = Vec::with_capacity(metadata.len() as usize + 1);
        File::open(&full).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes)).map_err(io)?;
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

/// The operations that change a store, one method each.
///
/// The tests stop the publisher before any one of them, as a crash would.
pub trait Files {
    /// Makes one folder.
    ///
    /// # Errors
    /// What the system says; `AlreadyExists` counts as done.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Writes a new file of mode 0444 and flushes it to disk.
    ///
    /// # Errors
    /// What the system says, `AlreadyExists` among it.
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file a second name, unless that name is taken.
    ///
    /// # Errors
    /// What the system says, `AlreadyExists` when the name is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Moves a file to a name, in place of what was there.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Flushes a folder's names to disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

impl Files for OsFiles {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(READ_ONLY))?;
        file.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
}

/// A store that this process alone may write.
pub(super) struct FolderWriter {
    folder: Folder,
    files: Box<dyn Files>,
    /// Folders with names that may not be on disk yet, relative to the store.
    unsynced: BTreeSet<PathBuf>,
    /// Folders known to exist, relative to the store.
    folders: HashSet<PathBuf>,
    temporary: u64,
    /// Held as long as the writer lives; the system releases it when the process ends, however it ends.
    _lock: File,
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
        Ok(Self { folder, files, unsynced: BTreeSet::new(), folders: HashSet::new(), temporary: 0, _lock: lock })
    }

    /// The same folder, for reading.
    pub(super) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Writes an immutable object. Its name is on disk after the next [`FolderWriter::sync`].
    ///
    /// An object that is there with the same bytes is as good as written.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is there with other bytes, [`StoreError::NotRegular`], [`StoreError::Io`].
    pub(super) fn put(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        if !self.is_there(path, bytes)? {
            let temporary = self.write_temporary(path, bytes)?;
            let linked =
                self.files.link(&temporary, &self.folder.root.join(path)).or_else(|error| match error.kind() {
                    io::ErrorKind::AlreadyExists => Ok(()),
                    _ => Err(error),
                });
            linked.and_then(|()| self.files.remove(&temporary)).map_err(|source| io_error(path, source))?;
            // Settles the case that the name was taken in between, and reads back what was written.
            if !self.is_there(path, bytes)? {
                return Err(StoreError::Conflict { path: path.to_owned() });
            }
        }
        self.note_folder(path);
        Ok(())
    }

    /// Replaces a mutable object as a whole and flushes its name to disk.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn replace(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.write_temporary(path, bytes)?;
        self.files.rename(&temporary, &self.folder.root.join(path)).map_err(|source| io_error(path, source))?;
        self.note_folder(path);
        self.sync()
    }

    /// Flushes every new name to disk.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        while let Some(folder) = self.unsynced.first().cloned() {
            self.files
                .sync_dir(&self.folder.root.join(&folder))
                .map_err(|source| io_error(&folder.display().to_string(), source))?;
            self.unsynced.remove(&folder);
        }
        Ok(())
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

    fn write_temporary(&mut self, path: &str, bytes: &[u8]) -> Result<PathBuf, StoreError> {
        if let Some(folder) = Path::new(path).parent() {
            self.ensure_folder(folder)?;
        }
        self.temporary += 1;
        let name = format!("{}-{}", std::process::id(), self.temporary);
        let temporary = self.folder.root.join(CONTROL).join("tmp").join(name);
        self.files.write_new(&temporary, bytes).map_err(|source| io_error(path, source))?;
        Ok(temporary)
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
