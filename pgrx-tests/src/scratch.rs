//! Scratch directories that are gone when the test is, however it ends.

use crate::os::{self, RunAs};
use crate::{Error, Result};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What ends with this process. Once its standard input closes, the first stops the server that may still run here, as the
/// server's user; once that one has ended, the second removes everything, as the user who may.
const STOPPER: &str = r#"
cat >/dev/null
[ -f "$1/data/postmaster.pid" ] && exec "$2/pg_ctl" stop -s -m immediate -t 30 -D "$1/data"
"#;
const SWEEPER: &str = r#"cat >/dev/null; rm -rf "$1""#;

/// A directory of its own directly under `AGD_SCRATCH`, or `/tmp`: a unix socket's path may be 107 bytes long and no more.
pub(crate) struct Scratch {
    path: PathBuf,
    stopper: Child,
    sweeper: Child,
}

impl Scratch {
    pub(crate) fn new(bin: &Path, run_as: Option<RunAs>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let parent = std::env::var_os("AGD_SCRATCH").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        let path = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("agd-{}-{number}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => break path,
                // Of a process that had the same number, and was killed together with its sweeper.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::doing(&format!("creating {}", path.display()), error)),
            }
        };
        if let Some(user) = run_as {
            user.own(&path)?;
        }
        // The stopper holds the read end of a pipe whose write end only this process has. The kernel closes that end
        // whatever becomes of this process, which neither Drop (statics, abort) nor a signal handler (SIGKILL) can promise.
        let shell = |script, run_as, input: Stdio, output: Stdio| {
            os::command(Path::new("/bin/sh"), run_as)
                .args(["-c", script, "reaper"])
                .arg(&path)
                .arg(bin)
                .current_dir("/")
                .stdin(input)
                .stdout(output)
                .stderr(Stdio::null())
                .spawn()
                .map_err(|e| Error::doing("starting what cleans up", e))
        };
        let mut stopper = shell(STOPPER, run_as, Stdio::piped(), Stdio::piped())?;
        let stopped = stopper.stdout.take().map_or_else(Stdio::null, Stdio::from);
        let sweeper = shell(SWEEPER, None, stopped, Stdio::null())?;
        Ok(Self { path, stopper, sweeper })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.stopper.stdin.take());
        // Nothing to be done about a failure here: the directory's name says whose it was.
        let _ = self.stopper.wait();
        let _ = self.sweeper.wait();
    }
}
