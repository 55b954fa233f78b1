//! A folder for what the benchmark itself writes: scripts, a key, a published store. It goes when the benchmark does.

use crate::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Removed when dropped, and when a signal ends the benchmark. (The servers' folders are the harness's business.)
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new folder that only this user may enter.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("agd-bench-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGHUP, SIGTERM])?;
        let folder = path.clone();
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                remove(&folder);
                std::process::exit(128 + signal);
            }
        });
        Ok(Self(path))
    }

    /// The path of a file or folder in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file and returns its path as text, as programs take it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder) {
        eprintln!("{} could not be removed: {error}", folder.display());
    }
}
