//! Whether a bucket keeps every new object from being deleted: Object Lock with a default retention.
//!
//! Owns the one request that `object_store` has no call for, GetObjectLockConfiguration, and what its answer means. Promises
//! that nothing is called locked unless the server said so. It never changes a bucket.

use std::fmt;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use object_store::aws::{AmazonS3, AwsAuthorizer};
use object_store::client::{HttpConnector as _, HttpRequestBody, ReqwestConnector};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{ClientOptions, Error};
use serde::Deserialize;

/// No answer to this request is longer.
const LONGEST: usize = 64 * 1024;

/// What a bucket does with the objects that are written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObjectLock {
    /// Each is locked for a time from when it is written.
    Default {
        /// `COMPLIANCE`: nobody can delete it before; `GOVERNANCE`: some can.
        mode: String,
        /// For how long: `10 years`.
        period: String,
    },
    /// Object Lock is on, but what is written without a date of its own is not locked.
    NoDefault,
    /// Objects can be deleted.
    Off,
    /// The server does not tell.
    Unknown(String),
}

impl fmt::Display for ObjectLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default { mode, period } => write!(f, "locked by default: {mode}, {period}"),
            Self::NoDefault => f.write_str("Object Lock is on, but without a default retention"),
            Self::Off => f.write_str("Object Lock is off"),
            Self::Unknown(why) => write!(f, "it could not be found out whether objects are locked: {why}"),
        }
    }
}

impl ObjectLock {
    /// Whether every new object is locked.
    pub fn is_default(&self) -> bool {
        matches!(self, Self::Default { .. })
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    object_lock_enabled: Option<String>,
    rule: Option<Rule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    default_retention: Option<Retention>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Retention {
    mode: Option<String>,
    days: Option<String>,
    years: Option<String>,
}

/// Asks the server.
///
/// # Errors
/// When the server cannot be reached; what it answers is an [`ObjectLock`], whatever it is.
pub(super) async fn ask(store: &AmazonS3, options: &ClientOptions, region: &str) -> Result<ObjectLock, Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Generic { store: "S3", source };
    // The URL of the bucket, which only this call tells: that of an object without the object and the signature.
    let mut url = store.signed_url(Method::GET, &Path::from("x"), Duration::from_secs(1)).await?;
    url.set_query(None);
    let text = url.as_str().strip_suffix("x").unwrap_or(url.as_str());
    let text = format!("{}?object-lock=", text.trim_end_matches('/'));
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(text)
        .body(HttpRequestBody::empty())
        .map_err(|error| failed(error.into()))?;
    let credential = store.credentials().get_credential().await?;
    AwsAuthorizer::new(&credential, "s3", region).try_authorize(&mut request, None)?;
    let client = ReqwestConnector::default().connect(options)?;
    let answer = client.execute(request).await.map_err(|error| failed(error.into()))?;
    let status = answer.status();
    let body = answer.into_body().bytes().await.map_err(|error| failed(error.into()))?;
    let body = String::from_utf8_lossy(body.get(..LONGEST).unwrap_or(&body));
    Ok(judge(status, &body))
}

/// What an answer means.
fn judge(status: StatusCode, body: &str) -> ObjectLock {
    if status == StatusCode::NOT_FOUND && body.contains("ObjectLockConfigurationNotFound") {
        return ObjectLock::Off;
    }
    if !status.is_success() {
        let why = match status {
            StatusCode::FORBIDDEN => "it takes the permission s3:GetBucketObjectLockConfiguration".to_owned(),
            _ => format!("the server answers {status}"),
        };
        return ObjectLock::Unknown(why);
    }
    let Ok(configuration) = quick_xml::de::from_str::<Configuration>(body) else {
        return ObjectLock::Unknown("the server's answer is no Object Lock configuration".to_owned());
    };
    if configuration.object_lock_enabled.as_deref() != Some("Enabled") {
        return ObjectLock::Off;
    }
    let Some(Retention { mode, days, years }) = configuration.rule.and_then(|rule| rule.default_retention) else {
        return ObjectLock::NoDefault;
    };
    let number =
        |text: Option<String>| text.and_then(|text| text.trim().parse::<u32>().ok()).filter(|number| *number > 0);
    let period = match (number(years), number(days)) {
        (Some(1), _) => "1 year".to_owned(),
        (Some(years), _) => format!("{years} years"),
        (None, Some(1)) => "1 day".to_owned(),
        (None, Some(days)) => format!("{days} days"),
        (None, None) => return ObjectLock::NoDefault,
    };
    match mode.as_deref() {
        Some(mode @ ("COMPLIANCE" | "GOVERNANCE")) => ObjectLock::Default { mode: mode.to_owned(), period },
        _ => ObjectLock::Unknown("the server names a mode of retention that is not known".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_default_retention_counts_as_locked() {
        let answer = |inner: &str| {
            format!("<?xml version=\"1.0\"?><ObjectLockConfiguration xmlns=\"x\">{inner}</ObjectLockConfiguration>")
        };
        let ok = |inner: &str| judge(StatusCode::OK, &answer(inner));
        let rule = |inner: &str| {
            ok(&format!(
                "<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>{inner}</DefaultRetention></Rule>"
            ))
        };
        let locked =
            |mode: &str, period: &str| ObjectLock::Default { mode: mode.to_owned(), period: period.to_owned() };
        assert_eq!(rule("<Mode>COMPLIANCE</Mode><Years>10</Years>"), locked("COMPLIANCE", "10 years"));
        assert_eq!(rule("<Mode>GOVERNANCE</Mode><Days>1</Days><Years></Years>"), locked("GOVERNANCE", "1 day"));
        assert_eq!(rule("<Mode>COMPLIANCE</Mode>"), ObjectLock::NoDefault);
        assert!(matches!(rule("<Mode>OPEN</Mode><Days>1</Days>"), ObjectLock::Unknown(_)));
        assert_eq!(ok("<ObjectLockEnabled>Enabled</ObjectLockEnabled>"), ObjectLock::NoDefault);
        assert_eq!(ok("<ObjectLockEnabled>Disabled</ObjectLockEnabled>"), ObjectLock::Off);
        assert_eq!(ok(""), ObjectLock::Off);
        assert_eq!(judge(StatusCode::NOT_FOUND, "<Code>ObjectLockConfigurationNotFoundError</Code>"), ObjectLock::Off);
        for (status, body) in [(403, ""), (404, ""), (500, "x"), (200, "x"), (200, "<a"), (200, "")] {
            let judged = judge(StatusCode::from_u16(status).unwrap_or_default(), body);
            assert!(!judged.is_default(), "{status} {body}: {judged}");
        }
    }
}
