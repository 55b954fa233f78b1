//! The store: a tree of tlog-tiles trees, one a log, named by the log's origin, in a folder or in an S3 bucket.
//!
//! Owns where an object lies, how it is read (never beyond a size limit) and how it is written. Promises, in both kinds of
//! place, that an immutable object is never overwritten, that it is durable after [`Writer::sync`], that the mutable
//! `checkpoint` is replaced as a whole, and that of two publishers at work on one store no one undoes what the other has
//! written: a folder has a lock, and in a bucket the one that is behind fails. It never deletes an object: partial tiles stay
//! when the full one exists, because a write-once store could not drop them either.
//!
//! The publisher's own files, its lock and its unfinished writes, are under [`CONTROL`], a name no log can have.

mod files;
mod folder;
mod location;
mod object_lock;
mod s3;

use std::io;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

pub use files::{At, Dir, Files, OsFiles};
pub use location::{Location, parse_location};
pub use object_lock::ObjectLock;

/// The folder of the publisher's lock and unfinished writes. Log names have no underscore.
pub const CONTROL: &str = ".agd_publish";

/// The newest checkpoint of a log, its one mutable object.
pub const CHECKPOINT: &str = "checkpoint";

/// The folder of a log's immutable checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

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
    /// The server refused a request, or did not answer.
    #[error("{path}: {message}")]
    Remote {
        /// The object, relative to the store; the store itself for a request about the bucket.
        path: String,
        /// What the server or the connection said. Never holds credentials.
        message: String,
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
    /// Somebody replaced a mutable object since it was read: another publisher works on this store.
    #[error("{path} was replaced by another publisher since it was read; run one publisher for a store")]
    Stale {
        /// The object, relative to the store.
        path: String,
    },
}

impl StoreError {
    /// Whether the store could not be asked or told, as against holding what it should not.
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::Location { .. }
            | Self::Io { .. }
            | Self::Remote { .. }
            | Self::Locked { .. }
            | Self::Stale { .. } => true,
            Self::NotRegular { .. } | Self::TooLarge { .. } | Self::Conflict { .. } => false,
        }
    }
}

/// Where the immutable checkpoint of a size lies: `<origin>/checkpoints/<size, 20 digits>`.
pub fn checkpoint_path(origin: &str, size: u64) -> String {
    format!("{origin}/{CHECKPOINTS}/{}", checkpoint_name(size))
}

/// The name of a checkpoint in its folder. Sizes and names sort alike.
pub fn checkpoint_name(size: u64) -> String {
    format!("{size:020}")
}

/// Where a log's newest checkpoint lies.
pub fn newest_path(origin: &str) -> String {
    format!("{origin}/{CHECKPOINT}")
}

/// The size that a name below `checkpoints/` stands for: 20 digits, nothing else.
pub fn parse_checkpoint_name(name: &str) -> Option<u64> {
    (name.len() == 20 && name.bytes().all(|b| b.is_ascii_digit())).then(|| name.parse().ok()).flatten()
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, or an object.
    File,
    /// A folder, or the common beginning of objects' names.
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

/// The settings of S3 clients in the environment: where the server is, and who asks it.
fn environment() -> Vec<(String, String)> {
    let settings =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    settings.filter(|(name, _)| name.starts_with("AWS_")).collect()
}

/// A store's objects, for reading.
#[derive(Debug, Clone)]
pub struct Reader {
    objects: Objects,
}

#[derive(Debug, Clone)]
enum Objects {
    Folder(folder::Folder),
    Bucket(Arc<s3::Bucket>),
}

impl Reader {
    /// Opens the store at a place. A folder opens no connection; what a bucket takes comes from the environment.
    ///
    /// # Errors
    /// [`StoreError::Io`] and [`StoreError::Remote`] when it cannot be reached, [`StoreError::Location`] when it is not a
    /// folder.
    pub fn open<P: ?Sized>(place: &P) -> Result<Self, StoreError>
    where
        Location: for<'a> From<&'a P>,
    {
        Self::open_with(place, &environment())
    }

    /// As [`Reader::open`], with these settings in place of the environment's.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn open_with<P: ?Sized>(place: &P, settings: &[(String, String)]) -> Result<Self, StoreError>
    where
        Location: for<'a> From<&'a P>,
    {
        let objects = match Location::from(place) {
            Location::Folder(root) => Objects::Folder(folder::Folder::open(&root)?),
            Location::S3 { bucket, prefix } => Objects::Bucket(Arc::new(s3::Bucket::open(&bucket, &prefix, settings)?)),
        };
        Ok(Self { objects })
    }

    /// Where it is, in the one spelling that is told to the database: `file:///absolute/path` or `s3://bucket/prefix`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn place(&self) -> Result<String, StoreError> {
        match &self.objects {
            Objects::Folder(folder) => Ok(Location::Folder(folder.absolute()?).to_string()),
            Objects::Bucket(bucket) => Ok(bucket.location().to_string()),
        }
    }

    /// How many objects are worth asking for at once: what one disk or one server gives in parallel.
    pub fn parallel(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        match &self.objects {
            Objects::Folder(_) => cores,
            Objects::Bucket(_) => cores.max(s3::PARALLEL),
        }
    }

    /// The bytes of an object, `None` when there is none of this name.
    ///
    /// # Errors
    /// [`StoreError::NotRegular`], [`StoreError::TooLarge`] above `limit` bytes, [`StoreError::Io`], [`StoreError::Remote`].
    pub fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match &self.objects {
            Objects::Folder(folder) => folder.read(path, limit),
            Objects::Bucket(bucket) => bucket.read(path, limit),
        }
    }

    /// Whether a regular file or an object has this name.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Remote`].
    pub fn has(&self, path: &str) -> Result<bool, StoreError> {
        match &self.objects {
            Objects::Folder(folder) => folder.has(path),
            Objects::Bucket(bucket) => bucket.has(path),
        }
    }

    /// The names in a folder, sorted; `None` when there is no such folder.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Remote`].
    pub fn list(&self, path: &str) -> Result<Option<Vec<Listed>>, StoreError> {
        match &self.objects {
            Objects::Folder(folder) => folder.list(path),
            Objects::Bucket(bucket) => bucket.list(path, None),
        }
    }

    /// The names in a folder that sort after a name. A server is not asked for those before.
    ///
    /// # Errors
    /// [`StoreError::Io`], [`StoreError::Remote`].
    pub fn list_after(&self, path: &str, after: &str) -> Result<Vec<Listed>, StoreError> {
        let listed = match &self.objects {
            Objects::Folder(folder) => folder.list(path)?,
            Objects::Bucket(bucket) => bucket.list(path, Some(after))?,
        };
        let mut names = listed.unwrap_or_default();
        names.retain(|listed| listed.name.as_str() > after);
        Ok(names)
    }
}

/// A store that is being written.
#[derive(Debug)]
pub struct Writer {
    reader: Reader,
    backend: Backend,
}

#[derive(Debug)]
enum Backend {
    Folder(Box<folder::FolderWriter>),
    Bucket(s3::BucketWriter),
}

impl Writer {
    /// Opens a folder for writing, takes its lock and clears away what a crash left unfinished.
    ///
    /// The folder must exist: to make it would turn a store that is not mounted into an empty one.
    ///
    /// # Errors
    /// [`StoreError::Locked`] when another publisher is at work, [`StoreError::Location`], [`StoreError::Io`].
    pub fn open(root: &Path, files: Box<dyn Files>) -> Result<Self, StoreError> {
        let writer = folder::FolderWriter::open(root, files)?;
        let reader = Reader { objects: Objects::Folder(writer.folder().clone()) };
        Ok(Self { reader, backend: Backend::Folder(Box::new(writer)) })
    }

    /// Opens the store at a place for writing.
    ///
    /// A bucket has no lock: every write is conditional on what is there, so that a publisher that is behind fails. A
    /// server that does not keep such conditions is refused.
    ///
    /// # Errors
    /// As [`Writer::open`], and [`StoreError::Remote`].
    pub fn at(place: &Location) -> Result<Self, StoreError> {
        Self::at_with(place, &environment())
    }

    /// As [`Writer::at`], with these settings in place of the environment's.
    ///
    /// # Errors
    /// As [`Writer::at`].
    pub fn at_with(place: &Location, settings: &[(String, String)]) -> Result<Self, StoreError> {
        match place {
            Location::Folder(root) => Self::open(root, Box::new(OsFiles)),
            Location::S3 { bucket, prefix } => {
                let bucket = Arc::new(s3::Bucket::open(bucket, prefix, settings)?);
                let writer = s3::BucketWriter::open(Arc::clone(&bucket))?;
                Ok(Self { reader: Reader { objects: Objects::Bucket(bucket) }, backend: Backend::Bucket(writer) })
            }
        }
    }

    /// The same store, for reading.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Whether the place itself keeps objects from being deleted; `None` for a folder, whose system decides that.
    ///
    /// # Errors
    /// [`StoreError::Remote`].
    pub fn object_lock(&self) -> Result<Option<ObjectLock>, StoreError> {
        match &self.backend {
            Backend::Folder(_) => Ok(None),
            Backend::Bucket(writer) => writer.object_lock().map(Some),
        }
    }

    /// Writes an immutable object. It is durable under its name after the next [`Writer::sync`], which also tells of
    /// objects before this one that could not be written.
    ///
    /// An object that is there with the same bytes is as good as written.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it, or one before it, is there with other bytes, [`StoreError::NotRegular`],
    /// [`StoreError::Io`], [`StoreError::Remote`].
    pub fn put(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        match &mut self.backend {
            Backend::Folder(writer) => writer.put(path, bytes),
            Backend::Bucket(writer) => writer.put(path, bytes),
        }
    }

    /// Replaces a mutable object as a whole; it is durable then.
    ///
    /// # Errors
    /// [`StoreError::Stale`] when somebody replaced it since it was read last, [`StoreError::Io`], [`StoreError::Remote`].
    pub fn replace(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        match &mut self.backend {
            Backend::Folder(writer) => writer.replace(path, bytes),
            Backend::Bucket(writer) => writer.replace(path, bytes),
        }
    }

    /// Waits until every object that was put is durable under its name.
    ///
    /// # Errors
    /// What kept one from being so; nothing is under way any more then.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        match &mut self.backend {
            Backend::Folder(writer) => writer.sync(),
            Backend::Bucket(writer) => writer.sync(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn writer(root: &Path) -> Writer {
        Writer::open(root, Box::new(OsFiles)).unwrap()
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
        assert!(!reader.has("link").unwrap() && reader.has("file").unwrap());
        assert!(!reader.has("none").unwrap() && !reader.has("folder").unwrap());
    }

    /// Links where folders, files, and the publisher's own files should be; pipes, too, which must not block.
    #[test]
    fn no_link_in_a_store_is_followed() {
        use std::os::unix::fs::symlink;
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("log")).unwrap();
        fs::write(outside.path().join("log/secret"), b"four").unwrap();
        let not_regular = |result: Result<(), StoreError>, what: &str| {
            assert!(matches!(result, Err(StoreError::NotRegular { .. })), "{what}: {result:?}");
        };
        let whole = || -> Vec<String> {
            let listed =
                |path: &Path| fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            listed(outside.path()).chain(listed(&outside.path().join("log"))).collect()
        };
        let before = whole();
        // In the place of a folder: absolute, relative, of each depth.
        for (link, target) in [
            ("a", outside.path().join("log")),
            ("a/b", outside.path().join("log")),
            ("a/b/c", Path::new("../../elsewhere").to_owned()),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("elsewhere")).unwrap();
            fs::write(dir.path().join("elsewhere/secret"), b"four").unwrap();
            fs::create_dir_all(dir.path().join(link).parent().unwrap()).unwrap();
            symlink(&target, dir.path().join(link)).unwrap();
            let reader = Reader::open(dir.path()).unwrap();
            not_regular(reader.read(&format!("{link}/secret"), 9).map(drop), link);
            not_regular(reader.has(&format!("{link}/secret")).map(drop), link);
            not_regular(reader.list(link).map(drop), link);
            not_regular(reader.list(&format!("{link}/log")).map(drop), link);
            let mut store = writer(dir.path());
            not_regular(store.put(&format!("{link}/new"), b"x").and_then(|()| store.sync()), link);
            not_regular(store.put(&format!("{link}/deep/new"), b"x").and_then(|()| store.sync()), link);
            not_regular(store.put(&format!("{link}/secret"), b"four").and_then(|()| store.sync()), link);
            not_regular(store.replace(&format!("{link}/checkpoint"), b"x"), link);
            let parent = Path::new(link).parent().unwrap().to_str().unwrap();
            let listed = reader.list(parent).unwrap().unwrap();
            let name = Path::new(link).file_name().unwrap().to_str().unwrap();
            assert!(listed.contains(&Listed { name: name.to_owned(), kind: Kind::Other }));
            assert_eq!(fs::read_dir(dir.path().join("elsewhere")).unwrap().count(), 1);
        }
        // In the place of a file.
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        symlink(outside.path().join("log/secret"), dir.path().join("a/link")).unwrap();
        symlink(outside.path().join("log/new"), dir.path().join("a/dangling")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(dir.path().join("a/pipe")).status().unwrap();
        assert!(pipe.success());
        let mut store = writer(dir.path());
        for name in ["a/link", "a/dangling", "a/pipe"] {
            not_regular(store.reader().read(name, 9).map(drop), name);
            assert!(!store.reader().has(name).unwrap());
            not_regular(store.put(name, b"four").and_then(|()| store.sync()), name);
        }
        // What is replaced is the link, never what it names.
        store.replace("a/link", b"mine").unwrap();
        assert_eq!(store.reader().read("a/link", 9).unwrap().as_deref(), Some(&b"mine"[..]));
        drop(store);
        // The publisher's own: its folder, its lock, its unfinished files.
        for (name, target) in [(CONTROL, "log"), (".agd_publish/lock", "log/secret"), (".agd_publish/tmp", "log")] {
            let dir = tempfile::tempdir().unwrap();
            if name != CONTROL {
                fs::create_dir(dir.path().join(CONTROL)).unwrap();
            }
            symlink(outside.path().join(target), dir.path().join(name)).unwrap();
            not_regular(Writer::open(dir.path(), Box::new(OsFiles)).map(drop), name);
        }
        assert_eq!(whole(), before);
        assert_eq!(fs::read(outside.path().join("log/secret")).unwrap(), b"four");
        // The store itself may be named by a link, and no name leads out of it.
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("store")).unwrap();
        let reader = Reader::open(&dir.path().join("store")).unwrap();
        assert!(reader.read("log/secret", 9).unwrap().is_some());
        for name in ["../x", "log/../log/secret", "/etc/passwd"] {
            not_regular(reader.read(name, 9).map(drop), name);
        }
    }

    /// A folder that becomes a link between two writes of one publisher.
    #[test]
    fn a_folder_that_is_exchanged_for_a_link_takes_nothing_elsewhere() {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut store = writer(dir.path());
        store.put("a/b/one", b"one").unwrap();
        store.sync().unwrap();
        store.put("a/b/two", b"two").unwrap();
        fs::rename(dir.path().join("a/b"), dir.path().join("a/moved")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("a/b")).unwrap();
        assert!(matches!(store.sync(), Err(StoreError::NotRegular { .. })));
        assert!(matches!(store.replace("a/b/checkpoint", b"x"), Err(StoreError::NotRegular { .. })));
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
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
}
