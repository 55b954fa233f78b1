//! The store: a directory of tlog-tiles trees, one folder a log, named by the log's origin.
//!
//! Owns where an object lies, how it is read (regular files only, never beyond a size limit) and how it is written.
//! Promises that an immutable object is on disk before it has its name, that it is never overwritten, and that the
//! mutable `checkpoint` is replaced as a whole. It never deletes an object: partial tiles stay when the full one exists,
//! because a write-once store could not drop them either.
//!
//! The publisher's own files, its lock and its unfinished writes, are under [`CONTROL`], a name no log can have.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The folder of the publisher's lock and unfinished writes. Log names have no underscore.
pub const CONTROL: &str = ".agd_publish";

/// The newest checkpoint of a log, its one mutable object.
pub const CHECKPOINT: &str = "checkpoint";

/// The folder of a log's immutable checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// Mode of everything that is published: nobody writes it again.
const READ_ONLY: u32 = 0o444;

/// Why the store could not be read or written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Not a place this version can work with.
    #[error("{location}: {reason}")]
    Location {
        /// As it was given.
        location: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The system refused an operation.
    #[error("{path}: {source}")]
    Io {
        /// The object, relative to the store.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A link, folder, pipe or device where a file should be.
    #[error("{path} is not a regular file")]
    NotRegular {
        /// The object, relative to the store.
        path: String,
    },
    /// More bytes than an object of this kind can have.
    #[error("{path} has {size} bytes, at most {limit} are possible")]
    TooLarge {
        /// The object, relative to the store.
        path: String,
        /// Its size in bytes.
        size: u64,
        /// The largest possible size in bytes.
        limit: u64,
    },
    /// An immutable object exists with other bytes than the ones to be written.
    #[error("{path} exists with other content; a published object is never overwritten")]
    Conflict {
        /// The object, relative to the store.
        path: String,
    },
    /// Another publisher works on this store.
    #[error("another publisher holds the lock of {path}")]
    Locked {
        /// The store.
        path: String,
    },
}

/// Reads a store's location: `file:///absolute/path` or a plain path.
///
/// # Errors
/// [`StoreError::Location`] for any other scheme, a host name or a malformed escape.
pub fn parse_location(location: &str) -> Result<PathBuf, StoreError> {
    let wrong = |reason| StoreError::Location { location: location.to_owned(), reason };
    let Some((scheme, rest)) = location.split_once("://") else {
        if location.is_empty() {
            return Err(wrong("an empty path"));
        }
        return Ok(PathBuf::from(location));
    };
    if scheme != "file" {
        return Err(wrong("only file:// stores are supported by this version"));
    }
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(wrong("a file URL is file:///absolute/path"));
    }
    percent_decode(path).map(PathBuf::from).ok_or_else(|| wrong("a malformed percent escape"))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok().filter(|b| *b != 0)?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// Where the immutable checkpoint of a size lies: `<origin>/checkpoints/<size, 20 digits>`.
pub fn checkpoint_path(origin: &str, size: u64) -> String {
    format!("{origin}/{CHECKPOINTS}/{size:020}")
}

/// Where a log's newest checkpoint lies.
pub fn newest_path(origin: &str) -> String {
    format!("{origin}/{CHECKPOINT}")
}

/// The size that a name below `checkpoints/` stands for: 20 digits, nothing else.
pub fn parse_checkpoint_name(name: &str) -> Option<u64> {
    (name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok()).flatten()
}

/// A store's files, for reading.
#[derive(Debug, Clone)]
pub struct Reader {
    root: PathBuf,
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A link, pipe, socket or device: never followed or opened.
    Other,
}

/// One name in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The name; what is not UTF-8 is replaced.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

impl Reader {
    /// Opens the store at a path.
    ///
    /// # Errors
    /// [`StoreError::Io`] when it cannot be reached, [`StoreError::Location`] when it is not a folder.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let metadata =
            fs::metadata(root).map_err(|source| StoreError::Io { path: root.display().to_string(), source })?;
        if !metadata.is_dir() {
            return Err(StoreError::Location { location: root.display().to_string(), reason: "not a folder" });
        }
        Ok(Self { root: root.to_owned() })
    }

    /// The store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The bytes of an object, `None` when there is none of this name.
    ///
    /// # Errors
    /// [`StoreError::NotRegular`], [`StoreError::TooLarge`] above `limit` bytes, [`StoreError::Io`].
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
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
    pub fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.root.join(path)).is_ok_and(|metadata| metadata.is_file())
    }

    /// The names in a folder, sorted; `None` when there is no such folder.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn list(&self, path: &str) -> Result<Option<Vec<Listed>>, StoreError> {
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
pub struct Writer {
    reader: Reader,
    files: Box<dyn Files>,
    /// Folders with names that may not be on disk yet, relative to the store.
    unsynced: BTreeSet<PathBuf>,
    /// Folders known to exist, relative to the store.
    folders: HashSet<PathBuf>,
    temporary: u64,
    /// Held as long as the writer lives; the system releases it when the process ends, however it ends.
    _lock: File,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Writer({})", self.reader.root.display())
    }
}

impl Writer {
    /// Opens a store for writing, takes its lock and clears away what a crash left unfinished.
    ///
    /// The folder must exist: to make it would turn a store that is not mounted into an empty one.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another publisher is at work, [`StoreError::Location`], [`StoreError::Io`].
    pub fn open(root: &Path, files: Box<dyn Files>) -> Result<Self, StoreError> {
        let reader = Reader::open(root)?;
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
        Ok(Self { reader, files, unsynced: BTreeSet::new(), folders: HashSet::new(), temporary: 0, _lock: lock })
    }

    /// The same store, for reading.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Writes an immutable object. Its name is on disk after the next [`Writer::sync`].
    ///
    /// An object that is there with the same bytes is as good as written.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it is there with other bytes, [`StoreError::NotRegular`], [`StoreError::Io`].
    pub fn put(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        if !self.is_there(path, bytes)? {
            let temporary = self.write_temporary(path, bytes)?;
            let linked =
                self.files.link(&temporary, &self.reader.root.join(path)).or_else(|error| match error.kind() {
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
    pub fn replace(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.write_temporary(path, bytes)?;
        self.files.rename(&temporary, &self.reader.root.join(path)).map_err(|source| io_error(path, source))?;
        self.note_folder(path);
        self.sync()
    }

    /// Flushes every new name to disk.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn sync(&mut self) -> Result<(), StoreError> {
        while let Some(folder) = self.unsynced.first().cloned() {
            self.files
                .sync_dir(&self.reader.root.join(&folder))
                .map_err(|source| io_error(&folder.display().to_string(), source))?;
            self.unsynced.remove(&folder);
        }
        Ok(())
    }

    /// Whether the object is there with these bytes; an error when it is there with others.
    fn is_there(&self, path: &str, bytes: &[u8]) -> Result<bool, StoreError> {
        let conflict = || StoreError::Conflict { path: path.to_owned() };
        match self.reader.read(path, bytes.len() as u64) {
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
        let temporary = self.reader.root.join(CONTROL).join("tmp").join(name);
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
            .create_dir(&self.reader.root.join(folder))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn writer(root: &Path) -> Writer {
        Writer::open(root, Box::new(OsFiles)).unwrap()
    }

    #[test]
    fn locations() {
        let path = |location: &str| parse_location(location).ok();
        assert_eq!(path("file:///a/b%20c"), Some(PathBuf::from("/a/b c")));
        assert_eq!(path("file://localhost/a"), Some(PathBuf::from("/a")));
        assert_eq!(path("a/b"), Some(PathBuf::from("a/b")));
        for bad in ["", "s3://bucket", "file://host/a", "file:///%0", "file:///%+1", "file:///%00", "file://"] {
            assert!(parse_location(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_object_is_read_only_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = writer(dir.path());
        store.put("a/b/c", b"one").unwrap();
        store.sync().unwrap();
        let mode = fs::metadata(dir.path().join("a/b/c")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o444);
        store.put("a/b/c", b"one").unwrap();
        for other in [&b"two"[..], b"on", b"ones", b""] {
            assert!(matches!(store.put("a/b/c", other), Err(StoreError::Conflict { .. })));
        }
        assert_eq!(fs::read(dir.path().join("a/b/c")).unwrap(), b"one");
        assert!(fs::read_dir(dir.path().join(CONTROL).join("tmp")).unwrap().next().is_none());
    }

    #[test]
    fn the_mutable_object_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = writer(dir.path());
        store.replace("a/checkpoint", b"one").unwrap();
        store.replace("a/checkpoint", b"two").unwrap();
        assert_eq!(fs::read(dir.path().join("a/checkpoint")).unwrap(), b"two");
    }

    #[test]
    fn two_publishers_are_kept_apart() {
        let dir = tempfile::tempdir().unwrap();
        let first = writer(dir.path());
        let second = Writer::open(dir.path(), Box::new(OsFiles));
        assert!(matches!(second, Err(StoreError::Locked { .. })));
        drop(first);
        writer(dir.path());
    }

    #[test]
    fn a_store_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        assert!(matches!(Writer::open(&missing, Box::new(OsFiles)), Err(StoreError::Io { .. })));
        assert!(!missing.exists());
    }

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"four").unwrap();
        fs::create_dir(dir.path().join("folder")).unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();
        let reader = Reader::open(dir.path()).unwrap();
        assert_eq!(reader.read("file", 4).unwrap().as_deref(), Some(&b"four"[..]));
        assert!(matches!(reader.read("file", 3), Err(StoreError::TooLarge { size: 4, limit: 3, .. })));
        assert!(matches!(reader.read("folder", 9), Err(StoreError::NotRegular { .. })));
        assert!(matches!(reader.read("link", 9), Err(StoreError::NotRegular { .. })));
        assert!(reader.read("none", 9).unwrap().is_none());
        assert!(reader.read("file/below", 9).unwrap().is_none());
        assert!(!reader.has("link") && reader.has("file"));
    }

    #[test]
    fn checkpoint_names() {
        assert_eq!(checkpoint_path("a", 256), "a/checkpoints/00000000000000000256");
        assert_eq!(parse_checkpoint_name("00000000000000000256"), Some(256));
        assert_eq!(parse_checkpoint_name("18446744073709551615"), Some(u64::MAX));
        for bad in ["256", "", "18446744073709551616", "0000000000000000025x", "+0000000000000000256"] {
            assert_eq!(parse_checkpoint_name(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_locations_never_panic(location in "(file://)?\\PC*") {
            let _ = parse_location(&location);
        }
    }
}
