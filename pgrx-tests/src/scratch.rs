//! Scratch directories that are gone when the test is, however it ends.

use crate::os::{self, RunAs};
use crate::{Error, Result};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What the reaper does once its standard input closes: stop the server that may still run here, remove everything.
const REAPER: &str = r#"
cat >/dev/null
[ -f "$1/data/postmaster.pid" ] && "$2/pg_ctl" stop -s -m immediate -t 30 -D "$1/data"
rm -rf "$1"
"#;

/// A directory of its own directly under `/tmp`: a unix socket's path may be 107 bytes long and no more.
pub(crate) struct Scratch {
    path: PathBuf,
    reaper: Child,
}

impl Scratch {
    pub(crate) fn new(bin: &Path, run_as: Option<RunAs>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = PathBuf::from(format!("/tmp/agd-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::doing(&format!("creating {}", path.display()), e))?;
        if let Some(user) = run_as {
            user.own(&path)?;
        }
        // The reaper holds the read end of a pipe whose write end only this process has. The kernel closes that end
        // whatever becomes of this process, which neither Drop (statics, abort) nor a signal handler (SIGKILL) can promise.
        let reaper = os::command(Path::new("/bin/sh"), run_as)
            .args(["-c", REAPER, "reaper"])
            .arg(&path)
            .arg(bin)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| Error::doing("starting the reaper", e))?;
        Ok(Self { path, reaper })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.reaper.stdin.take());
        // Nothing to be done about a failure here: the directory's name says whose it was.
        let _ = self.reaper.wait();
    }
}
