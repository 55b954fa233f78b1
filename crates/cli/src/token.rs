//! `agd token`: a signed token for `agd.bind()`.
//!
//! Owns the command: what is asked for, the clock, the random token id. The format, and what no database would accept, are in
//! [`agd_core::token`]. Promises that a token is printed and nothing else, and that the key is never shown.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agd_core::token::{Claims, TokenError, TokenSigner};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use serde_json::json;
use thiserror::Error;

use crate::passphrase::Source;
use crate::secret::{self, KeyError, SecretKey};
use crate::serve::parse_interval;

/// Make a token with which a session binds itself to a tenant: SELECT agd.bind('…').
#[derive(Debug, Args)]
pub struct Arguments {
    /// The tenant's key file (agd keygen --tenant-key); readable by its owner only
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The passphrase of an encrypted key is the first line of this file (or pipe, or /dev/fd/N)
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The database's log name (agd.log_name), like agd-7421/app
    #[arg(long, visible_alias = "database-name", value_name = "LOG NAME")]
    audience: String,
    /// The tenant
    #[arg(long, value_name = "TENANT")]
    tenant: String,
    /// Who acts for the tenant
    #[arg(long, value_name = "NAME")]
    principal: String,
    /// The login role that may present the token
    #[arg(long, value_name = "ROLE")]
    role: String,
    /// How long it is good for, like 60s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_interval)]
    ttl: Duration,
    /// It is not good before so long from now
    #[arg(long, value_name = "TIME", value_parser = parse_interval)]
    not_before: Option<Duration>,
    /// A scope; may be repeated
    #[arg(long, value_name = "SCOPE")]
    scope: Vec<String>,
    /// The fleet that acts
    #[arg(long, value_name = "FLEET ID")]
    fleet: Option<String>,
    /// The id under which the database knows the key; by default the name in the key file
    #[arg(long, value_name = "KID")]
    kid: Option<String>,
    /// Print JSON: the token and its claims
    #[arg(long)]
    json: bool,
}

/// Why there is no token.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The claims.
    #[error("no database would accept this token: {0}")]
    Token(#[from] TokenError),
    /// The clock.
    #[error("this machine's clock is before 1970")]
    Clock,
}

/// Makes a token and returns what to print.
///
/// # Errors
/// [`Failure`].
pub fn run(arguments: &Arguments) -> Result<String, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(|_| Failure::Clock)?.as_secs();
    let claims = Claims {
        audience: arguments.audience.clone(),
        tenant: arguments.tenant.clone(),
        principal: arguments.principal.clone(),
        role: arguments.role.clone(),
        scopes: (!arguments.scope.is_empty()).then(|| arguments.scope.clone()),
        fleet: arguments.fleet.clone(),
        issued_at: now,
        not_before: arguments.not_before.map(|later| now.saturating_add(later.as_secs())),
        expires_at: now.saturating_add(arguments.ttl.as_secs()),
        token_id: URL_SAFE_NO_PAD.encode(secret::random::<16>()?.as_slice()),
    };
    let key = SecretKey::load(&arguments.key, &Source::new(arguments.passphrase_file.as_deref()))?;
    let signer = TokenSigner::from_seed(arguments.kid.as_deref().unwrap_or(key.name()), key.seed())?;
    let token = claims.sign(&signer)?;
    Ok(if arguments.json {
        json!({
            "token": token,
            "kid": arguments.kid.as_deref().unwrap_or(key.name()),
            "jti": claims.token_id,
            "expires_at": claims.expires_at,
        })
        .to_string()
    } else {
        token
    })
}
