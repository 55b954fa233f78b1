//! The little the harness needs from the operating system: whom to run as, and signals to known process ids.

use crate::{Error, Result};
use rustix::process::{Pid, Signal};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// The unprivileged user that servers run as when the tests run as root.
#[derive(Clone, Copy)]
pub(crate) struct RunAs {
    uid: u32,
    gid: u32,
}

impl RunAs {
    /// `None` when this process is not root: then servers run as the present user.
    pub(crate) fn detect() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").map_err(|e| Error::doing("reading /etc/passwd", e))?;
        ["postgres", "nobody"].iter().find_map(|name| Self::in_passwd(&passwd, name)).map(Some).ok_or_else(|| {
            Error::new("running as root, and there is neither a user postgres nor a user nobody to run the server as")
        })
    }

    fn in_passwd(passwd: &str, name: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            let mut numbers = fields.skip(1);
            Some(Self { uid: numbers.next()?.parse().ok()?, gid: numbers.next()?.parse().ok()? })
        })
    }

    pub(crate) fn own(self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid), Some(self.gid))
            .map_err(|e| Error::doing(&format!("chown {}", path.display()), e))
    }
}

/// A command that runs as `run_as`, in a process group of its own (so that Ctrl-C at a terminal does not reach it), with
/// no PostgreSQL settings from the environment and no Rust backtraces in what a server tells its clients.
pub(crate) fn command(program: &Path, run_as: Option<RunAs>) -> Command {
    let mut command = client_command(program);
    command.process_group(0);
    if let Some(user) = run_as {
        command.uid(user.uid).gid(user.gid);
    }
    command
}

/// A command that runs as the present user with no PostgreSQL settings from the environment.
pub(crate) fn client_command(program: &Path) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command.env_remove("RUST_BACKTRACE").env("LC_ALL", "C");
    command
}

/// Sends `signal` to `pid`. A process that is already gone is no error.
pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let target = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::new(format!("{pid} is not a process id")))?;
    match rustix::process::kill_process(target, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(Error::doing(&format!("signal to process {pid}"), e)),
    }
}

/// The direct children of `parent`, from `/proc` (empty where there is no `/proc`).
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| parent_of(*pid) == Some(parent))
        .collect()
}

/// Whether `pid` is a process that still runs (a zombie does not).
pub(crate) fn running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(after_name(&stat).next(), Some("Z" | "X")))
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    after_name(&stat).nth(1)?.parse().ok()
}

/// The fields of a `/proc/PID/stat` line after the command's name, which may itself hold spaces and brackets.
fn after_name(stat: &str) -> std::str::SplitAsciiWhitespace<'_> {
    stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace()
}
