//! `agd keygen`: a new key file, and what others need to know of the key.
//!
//! Owns the command only; the file's format and its protection are in [`crate::secret`].

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::key::{KeyError, LogKey, WitnessKey};
use crate::passphrase::Source;
use crate::secret::SecretKey;

/// Make an Ed25519 key file and print its verifier key (vkey).
#[derive(Debug, Args)]
pub struct Arguments {
    /// The key file to make; it is never overwritten
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The origin of the platform log (agd.log_name); its tenants' logs are signed with the same key
    #[arg(long, value_name = "ORIGIN", required_unless_present_any = ["tenant_key", "signer"])]
    name: Option<String>,
    /// A key that signs a tenant's tokens. The name is its key id, by default one that follows from the key
    #[arg(long, conflicts_with = "signer")]
    tenant_key: bool,
    /// A key that signs statements (agd sign), under this signer's name
    #[arg(long, value_name = "NAME", conflicts_with = "name")]
    signer: Option<String>,
    /// A witness's key, which cosigns (agd publish --witness-key). The name is the witness's own, as witness.example.com/w1
    #[arg(long, requires = "name", conflicts_with_all = ["tenant_key", "signer"])]
    witness: bool,
    /// Encrypt the key file; the passphrase is asked for
    #[arg(long)]
    passphrase: bool,
    /// Encrypt the key file with the first line of this file (or pipe, or /dev/fd/N)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes a key and returns what to print of it.
///
/// # Errors
/// What [`SecretKey::generate`] and [`SecretKey::save`] say; no passphrase.
pub fn run(arguments: &Arguments) -> Result<String, KeyError> {
    let of_log = !arguments.tenant_key && arguments.signer.is_none();
    let key = match arguments.name.as_deref().filter(|_| of_log) {
        Some(name) if arguments.witness => WitnessKey::generate(name)?.into_secret(),
        Some(name) => LogKey::generate(name)?.into_secret(),
        None => SecretKey::generate(arguments.name.as_deref().or(arguments.signer.as_deref()))?,
    };
    let encrypt = arguments.passphrase || arguments.passphrase_file.is_some();
    let source = Source::new(arguments.passphrase_file.as_deref());
    let passphrase = encrypt.then(|| source.get_new(&arguments.out)).transpose()?;
    key.save(&arguments.out, passphrase.as_ref().map(|passphrase| passphrase.as_str()))?;
    let public_key = hex::encode(key.verifier().public_key());
    Ok(if arguments.json {
        json!({
            "key_file": arguments.out.display().to_string(),
            "name": key.name(),
            "vkey": key.verifier().to_string(),
            "public_key": public_key,
            "encrypted": encrypt,
        })
        .to_string()
    } else if of_log {
        key.verifier().to_string()
    } else {
        let what = if arguments.tenant_key { "kid       " } else { "signer    " };
        format!("{}\n{what} {}\npublic key \\x{public_key}", key.verifier(), key.name())
    })
}
