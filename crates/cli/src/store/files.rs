//! The operations that change a folder, one method each, and the operating system's way to do them.
//!
//! Owns what "on disk" means: a file is flushed through the descriptor it was written with, because only that one is sure to be
//! told of a write that failed. Promises that many files are flushed at once: each of them alone would wait for the disk as
//! long as all of them together. It never decides in which order things happen: that is the writer's matter.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Mode of everything that is published: nobody writes it again.
const READ_ONLY: u32 = 0o444;

/// Files flushed at the same time: a file system takes the flushes that wait for it together.
const FLUSHES: usize = 16;

/// The operations that change a store, one method each.
///
/// The tests stop the publisher before any one of them, as a crash would.
pub trait Files {
    /// Makes one folder.
    ///
    /// # Errors
    /// What the system says; `AlreadyExists` counts as done.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Writes a new file of mode 0444. It is on disk after [`Files::flush`].
    ///
    /// # Errors
    /// What the system says, `AlreadyExists` among it.
    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<File>;
    /// Flushes files to disk: those that [`Files::write_new`] gave.
    ///
    /// # Errors
    /// What the system says of one of them; of the others nothing is known then.
    fn flush(&self, files: &[&File]) -> io::Result<()>;
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

    fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
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
