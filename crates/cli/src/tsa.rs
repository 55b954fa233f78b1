//! A timestamp authority over HTTP (RFC 3161 §3.4).
//!
//! Owns one connection's worth of rules: how long it may take, how much may come back, that a redirection is not followed.
//! Promises nothing about what comes back: whoever asked checks it. HTTPS trusts the CAs of the operating system.

use std::sync::Arc;
use std::time::Duration;

use agd_tsp::MAX_REPLY_LEN;
use thiserror::Error;
use ureq::Agent;
use ureq::http::Uri;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// How long one answer may take, from the name's resolution to the last byte.
pub const TIMEOUT: Duration = Duration::from_secs(15);

const QUERY: &str = "application/timestamp-query";

/// Why there is no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TsaError {
    /// Not an address of a TSA.
    #[error("{url:?} is not the address of a TSA: {reason}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The operating system's CA certificates, which HTTPS needs.
    #[error("cannot read the operating system's CA certificates: {0}")]
    Roots(String),
    /// The TSA could not be asked, or did not answer.
    #[error("{url}: {reason}")]
    Http {
        /// The TSA.
        url: String,
        /// What happened.
        reason: String,
    },
}

/// Asks one TSA.
#[derive(Debug)]
pub struct Tsa {
    url: String,
    agent: Agent,
}

impl Tsa {
    /// For `http://…` or `https://…`, without user or password: the address appears in messages.
    ///
    /// # Errors
    /// [`TsaError::Url`], [`TsaError::Roots`].
    pub fn new(url: &str, timeout: Duration) -> Result<Self, TsaError> {
        let wrong = |reason| TsaError::Url { url: url.to_owned(), reason };
        if url.contains('@') {
            return Err(TsaError::Url {
                url: "(not shown)".to_owned(),
                reason: "user and password cannot be part of it",
            });
        }
        let parsed: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        if parsed.host().is_none_or(str::is_empty) {
            return Err(wrong("it names no host"));
        }
        let mut config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .max_idle_connections(0)
            .user_agent(concat!("agd/", env!("CARGO_PKG_VERSION")));
        match parsed.scheme_str() {
            Some("http") => {}
            Some("https") => config = config.tls_config(tls()?),
            _ => return Err(wrong("it begins neither with http:// nor with https://")),
        }
        Ok(Self { url: url.to_owned(), agent: config.build().new_agent() })
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a request and returns the body of the answer.
    ///
    /// # Errors
    /// [`TsaError::Http`]: no connection, no answer in time, a status other than 200, or more than a reply can have.
    pub fn ask(&self, request: &[u8]) -> Result<Vec<u8>, TsaError> {
        let failed = |reason: String| TsaError::Http { url: self.url.clone(), reason };
        let sent = self.agent.post(&self.url).content_type(QUERY).send(request);
        let mut answer = sent.map_err(|error| failed(error.to_string()))?;
        if answer.status().is_redirection() {
            return Err(failed(format!("HTTP status {}: a redirection is not followed", answer.status().as_u16())));
        }
        if answer.status().as_u16() != 200 {
            return Err(failed(format!("HTTP status {}", answer.status().as_u16())));
        }
        // One byte more than is read: a longer answer is an error here, not a shorter reply.
        let body = answer.body_mut().with_config().limit(MAX_REPLY_LEN as u64 + 1).read_to_vec();
        match body {
            Ok(body) if body.len() <= MAX_REPLY_LEN => Ok(body),
            Ok(_) | Err(ureq::Error::BodyExceedsLimit(_)) => {
                Err(failed(format!("more than {MAX_REPLY_LEN} bytes came back")))
            }
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

fn tls() -> Result<TlsConfig, TsaError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason = found.errors.first().map_or("there are none".to_owned(), ToString::to_string);
        return Err(TsaError::Roots(reason));
    }
    let roots: Vec<Certificate<'static>> =
        found.certs.iter().map(|certificate| Certificate::from_der(certificate.as_ref()).to_owned()).collect();
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build())
}
