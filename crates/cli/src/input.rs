//! Small files that commands are given: policies, CA certificates, proofs, entries.
//!
//! Owns reading them. Promises that a file is named in every error, and that nothing longer than a file of its kind can be is
//! ever taken into memory. Never opens a pipe or a device unless that is what was asked for.

use std::fmt::Display;
use std::fs::{File, Metadata};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use agd_tsp::{Authorities, MAX_PEM_LEN};

use crate::policy::{MAX_POLICY, Policy};

/// Reads a file of at most `limit` bytes; `-` is standard input.
///
/// # Errors
/// A sentence that names the file.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, String> {
    let named = |error: &dyn Display| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(limit + 1).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
    }
    .map_err(|error| named(&error))?;
    if bytes.len() as u64 > limit {
        return Err(named(&format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

/// Opens a file without waiting for anybody, and looks at what was opened: what the name stood for a moment before may be
/// something else by now. `follow`: whether it may be a link. `None`: it is not a regular file.
///
/// # Errors
/// What the system says.
pub fn open_regular(path: &Path, follow: bool) -> io::Result<Option<(File, Metadata)>> {
    let no_link = if follow { 0 } else { libc::O_NOFOLLOW };
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK | no_link).open(path);
    let file = match opened {
        // A link that was not to be followed; a socket, a device that is not there.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ELOOP | libc::ENXIO)) && !follow => return Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    Ok(metadata.is_file().then_some((file, metadata)))
}

/// Reads a trust policy.
///
/// # Errors
/// A sentence that names the file, and the line if it is the policy that is wrong.
pub fn policy(path: &Path) -> Result<Policy, String> {
    let bytes = regular(path, MAX_POLICY, "not a policy file")?;
    Policy::parse(&bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// Reads the CA certificates that timestamp authorities lead to.
///
/// # Errors
/// A sentence that names the file.
pub fn authorities(path: &Path) -> Result<Authorities, String> {
    let pem = regular(path, MAX_PEM_LEN as u64, "not a PEM file of CA certificates")?;
    Authorities::from_pem(&pem).map_err(|error| format!("{}: {error}", path.display()))
}

/// A regular file of a limited size: a pipe would block the open.
fn regular(path: &Path, limit: u64, otherwise: &str) -> Result<Vec<u8>, String> {
    let named = |error: &dyn Display| format!("{}: {error}", path.display());
    let Some((file, metadata)) = open_regular(path, true).map_err(|error| named(&error))? else {
        return Err(named(&otherwise));
    };
    let mut bytes = Vec::new();
    if metadata.len() <= limit {
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| named(&error))?;
    }
    if metadata.len() > limit || bytes.len() as u64 > limit {
        return Err(named(&otherwise));
    }
    Ok(bytes)
}

/// Writes a new file, or standard output where no file is given.
///
/// # Errors
/// A sentence that names the file; it is never overwritten.
pub fn write(path: Option<&Path>, bytes: &[u8]) -> Result<(), String> {
    let Some(path) = path else {
        let mut out = io::stdout().lock();
        return out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| error.to_string());
    };
    let named = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => format!("{} exists already; it is not overwritten", path.display()),
        _ => format!("{}: {error}", path.display()),
    };
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(path).map_err(named)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(|error| {
        // Half a file would only be mistaken for a whole one. The first error is the one to tell.
        let _ = std::fs::remove_file(path);
        named(error)
    })
}
