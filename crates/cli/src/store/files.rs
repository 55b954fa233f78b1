//! The operations that read and change a folder, one each, and the operating system's way to do them.
//!
//! Owns how a name is reached, and what "on disk" means. Whoever may write in a store may put a link where a folder was:
//! so each step of a path is opened by itself, from the store's own folder on, and none of them may be a link ([`Dir`]). A
//! file is flushed through the descriptor it was written with, because only that one is sure to be told of a write that
//! failed. Promises that nothing outside of the store is ever opened, made, moved or removed through a name in it, whatever
//! happens to that name meanwhile, and that many files are flushed at once: each of them alone would wait for the disk as
//! long as all of them together. It never decides in which order things happen: that is the writer's matter.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Mode of everything that is published: nobody writes it again.
const READ_ONLY: u32 = 0o444;

/// Files flushed at the same time: a file system takes the flushes that wait for it together.
const FLUSHES: usize = 16;

/// An open folder, reached from the store's own through folders alone.
#[derive(Debug, Clone)]
pub struct Dir {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

impl Dir {
    /// Opens a store's own folder. The way to it is whoever names it's own: links are followed.
    ///
    /// # Errors
    /// What the system says; `NotADirectory` for anything else.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd: Arc::new(fd), path: path.to_owned() })
    }

    /// Its path, as it was named: to be shown.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder in it.
    ///
    /// # Errors
    /// What the system says; `NotADirectory` for anything else, a link to a folder among it.
    pub fn folder(&self, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&self.fd, name, flags, Mode::empty()).map_err(|error| match error {
            // What Linux and what others say of a link.
            Errno::LOOP => io::Error::from(Errno::NOTDIR),
            other => other.into(),
        })?;
        Ok(Self { fd: Arc::new(fd), path: self.path.join(name) })
    }

    /// A name in it, whether something stands there or not.
    pub fn at(&self, name: &OsStr) -> At {
        At { folder: self.clone(), name: name.to_owned() }
    }

    /// Every name in it, with what stands there.
    ///
    /// # Errors
    /// What the system says.
    pub fn names(&self) -> io::Result<Vec<(OsString, FileType)>> {
        let mut names = Vec::new();
        for entry in fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Not every file system tells.
                FileType::Unknown => match self.at(name).kind()? {
                    Some(kind) => kind,
                    None => continue,
                },
                kind => kind,
            };
            names.push((name.to_owned(), kind));
        }
        Ok(names)
    }
}

/// A name in an open folder. What an operation does to it, it does to the name itself, never to what a link there names.
#[derive(Debug, Clone)]
pub struct At {
    folder: Dir,
    name: OsString,
}

impl At {
    /// Its path, as the store was named: to be shown.
    pub fn path(&self) -> PathBuf {
        self.folder.path.join(&self.name)
    }

    /// What stands there; a link is a link.
    ///
    /// # Errors
    /// What the system says.
    pub fn kind(&self) -> io::Result<Option<FileType>> {
        match fs::statat(&self.folder.fd, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode as _))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the regular file of this name for reading; `None` when anything else stands there.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&self) -> io::Result<Option<File>> {
        self.open_regular(OFlags::RDONLY, Mode::empty())
    }

    /// Opens the regular file of this name for writing, made if there is none; `None` when anything else stands there.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_or_make(&self) -> io::Result<Option<File>> {
        self.open_regular(OFlags::WRONLY | OFlags::CREATE, Mode::from_raw_mode(0o644))
    }

    /// Looked at before it is opened, because opening a device may do something, and after, because it may have been exchanged.
    fn open_regular(&self, flags: OFlags, mode: Mode) -> io::Result<Option<File>> {
        match self.kind()? {
            Some(FileType::RegularFile) => {}
            None if flags.contains(OFlags::CREATE) => {}
            None => return Err(Errno::NOENT.into()),
            Some(_) => return Ok(None),
        }
        // A pipe that somebody put there meanwhile does not block, and a terminal does not become ours.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match fs::openat(&self.folder.fd, &self.name, flags, mode) {
            Ok(fd) => File::from(fd),
            Err(Errno::LOOP | Errno::NXIO | Errno::ISDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(file.metadata()?.is_file().then_some(file))
    }
}

/// The operations that change a store, one method each.
///
/// The tests stop the publisher before any one of them, as a crash would.
pub trait Files {
    /// Makes one folder.
    ///
    /// # Errors
    /// What the system says; `AlreadyExists` counts as done.
    fn create_dir(&self, at: &At) -> io::Result<()>;
    /// Writes a new file of mode 0444. It is on disk after [`Files::flush`].
    ///
    /// # Errors
    /// What the system says, `AlreadyExists` among it.
    fn write_new(&self, at: &At, bytes: &[u8]) -> io::Result<File>;
    /// Flushes files to disk: those that [`Files::write_new`] gave.
    ///
    /// # Errors
    /// What the system says of one of them; of the others nothing is known then.
    fn flush(&self, files: &[&File]) -> io::Result<()>;
    /// Gives a file a second name, unless that name is taken.
    ///
    /// # Errors
    /// What the system says, `AlreadyExists` when the name is taken.
    fn link(&self, from: &At, to: &At) -> io::Result<()>;
    /// Moves a file to a name, in place of what was there.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &At, to: &At) -> io::Result<()>;
    /// Removes a name.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&self, at: &At) -> io::Result<()>;
    /// Flushes a folder's names to disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync_dir(&self, folder: &Dir) -> io::Result<()>;
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsFiles;

impl Files for OsFiles {
    fn create_dir(&self, at: &At) -> io::Result<()> {
        match fs::mkdirat(&at.folder.fd, &at.name, Mode::from_raw_mode(0o777)) {
            Err(Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_new(&self, at: &At, bytes: &[u8]) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(fs::openat(&at.folder.fd, &at.name, flags, Mode::from_raw_mode(0o666))?);
        file.write_all(bytes)?;
        file.set_permissions(Permissions::from_mode(READ_ONLY))?;
        Ok(file)
    }

    fn flush(&self, files: &[&File]) -> io::Result<()> {
        let next = AtomicUsize::new(0);
        let flush = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                file.sync_all()?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            // Where the system gives no more threads, those that are there do the work.
            let helpers = 1..FLUSHES.min(files.len());
            let helpers: Vec<_> =
                helpers.map_while(|_| thread::Builder::new().spawn_scoped(scope, flush).ok()).collect();
            helpers.into_iter().fold(flush(), |done, helper| {
                let other = helper.join().unwrap_or_else(|_| Err(io::Error::other("a flush ended early")));
                done.and(other)
            })
        })
    }

    fn link(&self, from: &At, to: &At) -> io::Result<()> {
        Ok(fs::linkat(&from.folder.fd, &from.name, &to.folder.fd, &to.name, AtFlags::empty())?)
    }

    fn rename(&self, from: &At, to: &At) -> io::Result<()> {
        Ok(fs::renameat(&from.folder.fd, &from.name, &to.folder.fd, &to.name)?)
    }

    fn remove(&self, at: &At) -> io::Result<()> {
        Ok(fs::unlinkat(&at.folder.fd, &at.name, AtFlags::empty())?)
    }

    fn sync_dir(&self, folder: &Dir) -> io::Result<()> {
        File::from(folder.fd.try_clone()?).sync_all()
    }
}
