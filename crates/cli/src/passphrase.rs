//! Passphrases: from the terminal, or from a file; never from an argument.
//!
//! Owns where a passphrase comes from and what one may be. Promises that it is never shown, that it is wiped from memory,
//! and that nobody is asked where nobody is: without a terminal there is an error that says what to do.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

/// The longest passphrase, in bytes.
const MAX_LEN: usize = 1024;

/// Why there is no passphrase.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PassphraseError {
    /// There is nobody to ask.
    #[error(
        "{0} is encrypted, and there is no terminal to ask for its passphrase: give it in a file (--passphrase-file; of a witness's key, --witness-passphrase-file)"
    )]
    NoTerminal(PathBuf),
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The passphrase's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody other than the owner can read it.
    #[error("{path} has mode {mode:04o}: others can read the passphrase; run chmod 600 on it")]
    Permissions {
        /// The passphrase's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Empty, too long, or not text.
    #[error("a passphrase is one line of 1 to {MAX_LEN} bytes of UTF-8")]
    Unfit,
    /// What was typed the second time is something else.
    #[error("the two passphrases differ; no key was made")]
    Differ,
}

/// Where a passphrase comes from.
#[derive(Debug, Clone, Default)]
pub enum Source {
    /// Whoever is at the terminal is asked.
    #[default]
    Terminal,
    /// The first line of a file, a pipe or `/dev/fd/<n>`.
    File(PathBuf),
}

impl Source {
    /// From the option `--passphrase-file`.
    pub fn new(file: Option<&Path>) -> Self {
        file.map_or(Self::Terminal, |file| Self::File(file.to_owned()))
    }

    /// The passphrase of a key that is there.
    ///
    /// # Errors
    /// [`PassphraseError`].
    pub fn get(&self, key: &Path) -> Result<Zeroizing<String>, PassphraseError> {
        match self {
            Self::File(path) => read(path),
            Self::Terminal => fit(ask(key, &format!("Passphrase of {}: ", key.display()))?),
        }
    }

    /// A new passphrase: asked for twice.
    ///
    /// # Errors
    /// [`PassphraseError`].
    pub fn get_new(&self, key: &Path) -> Result<Zeroizing<String>, PassphraseError> {
        let Self::Terminal = self else {
            return self.get(key);
        };
        let first = fit(ask(key, &format!("New passphrase of {}: ", key.display()))?)?;
        let second = ask(key, "The same again: ")?;
        if *first == *second { Ok(first) } else { Err(PassphraseError::Differ) }
    }
}

fn ask(key: &Path, prompt: &str) -> Result<Zeroizing<String>, PassphraseError> {
    let typed = rpassword::prompt_password(prompt);
    typed.map(Zeroizing::new).map_err(|_| PassphraseError::NoTerminal(key.to_owned()))
}

fn read(path: &Path) -> Result<Zeroizing<String>, PassphraseError> {
    let io = |source| PassphraseError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let mode = metadata.permissions().mode() & 0o7777;
    // Whoever holds the other end of a pipe knows it anyway.
    if metadata.is_file() && mode & 0o077 != 0 {
        return Err(PassphraseError::Permissions { path: path.to_owned(), mode });
    }
    // The whole size at once: growing the buffer would leave copies of the secret behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_LEN + 3));
    file.take(MAX_LEN as u64 + 2).read_to_end(&mut bytes).map_err(io)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = std::str::from_utf8(line).map_err(|_| PassphraseError::Unfit)?;
    let mut copy = Zeroizing::new(String::with_capacity(line.len()));
    copy.push_str(line);
    fit(copy)
}

fn fit(passphrase: Zeroizing<String>) -> Result<Zeroizing<String>, PassphraseError> {
    if (1..=MAX_LEN).contains(&passphrase.len()) { Ok(passphrase) } else { Err(PassphraseError::Unfit) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};

    fn file(bytes: &[u8]) -> Result<String, PassphraseError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        write(&path, bytes).unwrap();
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        Source::new(Some(&path)).get(Path::new("the.key")).map(|passphrase| passphrase.to_string())
    }

    #[test]
    fn the_first_line_of_a_file_counts() {
        for text in ["correct horse", "correct horse\n", "correct horse\r\nand more\n"] {
            assert_eq!(file(text.as_bytes()).unwrap(), "correct horse");
        }
        assert_eq!(file(&[b'x'; MAX_LEN]).unwrap().len(), MAX_LEN);
        for wrong in [&b""[..], b"\n", b"\xff\n", &[b'x'; MAX_LEN + 1]] {
            assert!(matches!(file(wrong), Err(PassphraseError::Unfit)));
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        write(&path, "secret").unwrap();
        set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let error = Source::new(Some(&path)).get(Path::new("the.key")).unwrap_err();
        assert!(matches!(error, PassphraseError::Permissions { mode: 0o640, .. }));
        assert!(!error.to_string().contains("secret"));
    }
}
