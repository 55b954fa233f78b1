//! `agd sign`: an Ed25519 signature over exactly the bytes of a statement.
//!
//! Owns the command and one refusal: what would pass for a checkpoint, or a witness's word on one, is not signed here, for a
//! log's key must never vouch for a tree that `agd publish` did not compute.

use std::io::{self, Read as _};
use std::path::PathBuf;

use agd_core::Checkpoint;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use thiserror::Error;

use crate::key::KeyError;
use crate::passphrase::Source;
use crate::publish::memory;
use crate::secret::SecretKey;

/// The longest statement, in bytes.
const MAX_STATEMENT: u64 = 64 << 20;

/// Sign standard input: raw Ed25519 over exactly its bytes, 64 bytes to standard output.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The key file that `agd keygen` made; readable by its owner only
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The passphrase of an encrypted key is the first line of this file (or pipe, or /dev/fd/N)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print 128 hex digits and a line end
    #[arg(long, conflicts_with_all = ["base64", "json"])]
    hex: bool,
    /// Print base64 and a line end
    #[arg(long, conflicts_with = "json")]
    base64: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Why nothing was signed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SignError {
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Standard input.
    #[error("the statement on standard input: {0}")]
    Io(#[from] io::Error),
    /// Nothing came.
    #[error("there is no statement on standard input")]
    Empty,
    /// Longer than anything agd signs: the message names the limit.
    #[error("the statement is longer than {MAX_STATEMENT} bytes")]
    TooLong,
    /// It could be taken for a checkpoint.
    #[error("this statement is a log's checkpoint: agd publish signs those, after computing them")]
    Checkpoint,
    /// It could be taken for what a key has signed.
    #[error("this statement is the state of a publisher's key: agd publish signs those")]
    State,
}

/// Signs standard input and returns what to write.
///
/// # Errors
/// [`SignError`].
pub fn run(arguments: &Arguments) -> Result<Vec<u8>, SignError> {
    let mut statement = Vec::new();
    io::stdin().lock().take(MAX_STATEMENT + 1).read_to_end(&mut statement)?;
    let key = || SecretKey::load(&arguments.key, &Source::new(arguments.passphrase_file.as_deref()));
    let (key, signature) = sign(&statement, key)?;
    Ok(if arguments.hex {
        format!("{}\n", hex::encode(signature)).into_bytes()
    } else if arguments.base64 {
        format!("{}\n", STANDARD.encode(signature)).into_bytes()
    } else if arguments.json {
        let json = serde_json::json!({
            "signer": key.name(),
            "public_key": hex::encode(key.verifier().public_key()),
            "signature": hex::encode(signature),
        });
        format!("{json}\n").into_bytes()
    } else {
        signature.to_vec()
    })
}

/// The key is not asked for before it is known that it will be used.
fn sign(
    statement: &[u8],
    key: impl FnOnce() -> Result<SecretKey, KeyError>,
) -> Result<(SecretKey, [u8; 64]), SignError> {
    if statement.is_empty() {
        return Err(SignError::Empty);
    }
    if statement.len() as u64 > MAX_STATEMENT {
        return Err(SignError::TooLong);
    }
    let text = std::str::from_utf8(statement).unwrap_or_default();
    // With lines behind the third it would be one to other readers.
    let three = text.match_indices('\n').nth(2).and_then(|(end, _)| text.get(..=end)).unwrap_or_default();
    if text.starts_with("cosignature/v1\n") || Checkpoint::parse(three).is_ok() {
        return Err(SignError::Checkpoint);
    }
    if statement.starts_with(memory::FORMAT.as_bytes()) {
        return Err(SignError::State);
    }
    let key = key()?;
    let signature = key.signer(key.name())?.sign_bytes(statement);
    Ok((key, signature))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_would_pass_for_a_checkpoint_is_not_signed() {
        let key = || SecretKey::generate(Some("agd-1/app"));
        let checkpoint = Checkpoint { origin: "agd-1/app".to_owned(), size: 8, root: [7; 32] }.to_string();
        assert!(matches!(sign(checkpoint.as_bytes(), key), Err(SignError::Checkpoint)));
        let extended = format!("{checkpoint}more\n");
        assert!(matches!(sign(extended.as_bytes(), key), Err(SignError::Checkpoint)));
        let cosigned = format!("cosignature/v1\ntime 1\n{checkpoint}");
        assert!(matches!(sign(cosigned.as_bytes(), key), Err(SignError::Checkpoint)));
        let state = format!("{}\nkey x\n", memory::FORMAT);
        assert!(matches!(sign(state.as_bytes(), key), Err(SignError::State)));
        assert!(matches!(sign(b"", key), Err(SignError::Empty)));
        assert!(sign(b"agd-fleet-statement\n\xff\0", key).is_ok());
    }
}
