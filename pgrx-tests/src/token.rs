//! Tokens for tests: what a tenant's own application would mint.
#![allow(clippy::panic)]

use crate::check::eventually;
use agd_core::token::{CLOCK_SKEW, Claims, TokenSigner};
use postgres::Client;
use std::time::{Duration, SystemTime};

/// One tenant's issuer of tokens for one database.
pub struct Issuer {
    signer: TokenSigner,
    audience: String,
    tenant: String,
}

impl Issuer {
    /// Makes a key, gives its public half to the database under `kid`, and waits until tokens can be accepted there: those
    /// from the first seconds of a server are refused. `client` is a superuser's.
    #[track_caller]
    pub fn new(client: &mut Client, tenant: &str, kid: &str) -> Self {
        Self::with_seed(client, tenant, kid, &std::array::from_fn(|_| fastrand::u8(..)))
    }

    /// The same with the key that a seed gives.
    #[track_caller]
    pub fn with_seed(client: &mut Client, tenant: &str, kid: &str, seed: &[u8; 32]) -> Self {
        let issuer = Self::unknown(client, tenant, kid, seed);
        let added =
            client.execute("SELECT agd.add_tenant_key($1, $2, $3)", &[&tenant, &kid, &&issuer.public_key()[..]]);
        if let Err(error) = added {
            panic!("adding the key {kid}: {error:?}");
        }
        issuer.audience(client)
    }

    /// An issuer whose key the database does not know.
    #[track_caller]
    pub fn unknown(client: &mut Client, tenant: &str, kid: &str, seed: &[u8; 32]) -> Self {
        let signer = TokenSigner::from_seed(kid, seed).unwrap_or_else(|error| panic!("{kid}: {error}"));
        Self { signer, audience: String::new(), tenant: tenant.to_owned() }.audience(client)
    }

    #[track_caller]
    fn audience(mut self, client: &mut Client) -> Self {
        wait_for_tokens(client);
        let row = client.query_one("SELECT coalesce(log_name, '') FROM agd.home", &[]);
        self.audience = row.unwrap_or_else(|error| panic!("the database's name: {error:?}")).get(0);
        self
    }

    /// The database's name in tokens.
    #[must_use]
    pub fn audience_name(&self) -> &str {
        &self.audience
    }

    /// The public half of its key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.signer.public_key()
    }

    /// What a token for a login role and a principal says. It lives a minute, and is dated as late as a clock that runs ahead
    /// may date it, so that tests need not wait longer for a new server.
    #[must_use]
    pub fn claims(&self, role: &str, principal: &str) -> Claims {
        Claims {
            audience: self.audience.clone(),
            tenant: self.tenant.clone(),
            principal: principal.to_owned(),
            role: role.to_owned(),
            scopes: None,
            fleet: None,
            issued_at: now() + CLOCK_SKEW,
            not_before: None,
            expires_at: now() + 60,
            token_id: format!("{:032x}", fastrand::u128(..)),
        }
    }

    /// Signs what is said.
    #[track_caller]
    #[must_use]
    pub fn sign(&self, claims: &Claims) -> String {
        claims.sign(&self.signer).unwrap_or_else(|error| panic!("{claims:?}: {error}"))
    }

    /// A token for a login role and a principal.
    #[track_caller]
    #[must_use]
    pub fn token(&self, role: &str, principal: &str) -> String {
        self.sign(&self.claims(role, principal))
    }

    /// `BEGIN` and `agd.bind` with such a token.
    #[track_caller]
    pub fn begin(&self, client: &mut Client, role: &str, principal: &str) {
        let token = self.token(role, principal);
        if let Err(error) = client.batch_execute(&format!("BEGIN; SELECT agd.bind('{token}')")) {
            panic!("binding {role} to {}: {error:?}", self.tenant);
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Waits until tokens that are minted now are newer than the server's memory of used ones: that begins with agd's launcher,
/// or on a standby with the server.
#[track_caller]
pub fn wait_for_tokens(client: &mut Client) {
    let mut since = None;
    eventually("agd's launcher has started", Duration::from_secs(20), || {
        let row = client.query_one(
            "SELECT extract(epoch FROM clock_timestamp() - CASE
                      WHEN pg_is_in_recovery() THEN pg_postmaster_start_time()
                      ELSE (SELECT max(backend_start) FROM pg_stat_activity WHERE backend_type = 'agd launcher')
                    END)::float8",
            &[],
        );
        since = row.unwrap_or_else(|error| panic!("the launcher's start: {error:?}")).get::<_, Option<f64>>(0);
        since.is_some()
    });
    std::thread::sleep(Duration::from_secs_f64((2.0 - since.unwrap_or_default()).max(0.0)));
}
