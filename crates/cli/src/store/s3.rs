//! A store in a bucket of an S3-compatible server, through the `object_store` crate.
//!
//! Owns the requests: which are made at once, which condition each carries, and what an answer means. Promises that an
//! immutable object is created only where there is none (`If-None-Match: *`), that a mutable one replaces only the very
//! object that was read last (`If-Match`), and that an error shows what the server said and never a credential. It never
//! deletes, never uses multipart uploads, and asks for no lock: conditions keep two publishers from undoing each other.
//!
//! Each object is sent with its SHA-256, which the server checks; Object Lock buckets ask for it.

use std::collections::{HashMap, VecDeque};
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::list::{PaginatedListOptions, PaginatedListStore as _};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, HeaderMap, HeaderValue, ObjectStore as _, ObjectStoreExt as _, PutMode,
    PutOptions, PutPayload, RetryConfig, UpdateVersion,
};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::object_lock::{self, ObjectLock};
use super::{CHECKPOINT, CONTROL, Kind, Listed, Location, StoreError};

/// Requests under way at once: a server far away answers each in some ten milliseconds.
pub(super) const PARALLEL: usize = 16;

/// Bytes that are being sent at most, unless a single object is larger.
const IN_FLIGHT: usize = 32 << 20;

/// How often a request is tried again that the server failed to answer (5xx, 429, a lost connection).
const RETRIES: usize = 6;

/// The largest object that [`BucketWriter::put`] compares with what it should be: no object of a log is larger.
const LARGEST: u64 = crate::tiles::MAX_BUNDLE;

/// A bucket, for reading.
pub(super) struct Bucket {
    store: AmazonS3,
    /// Drives the requests of every thread that waits for one.
    runtime: Runtime,
    builder: AmazonS3Builder,
    options: ClientOptions,
    bucket: String,
    prefix: String,
    /// The version of each mutable object as it was read last; none where there was no such object.
    read: Mutex<HashMap<String, Option<UpdateVersion>>>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bucket({})", self.location())
    }
}

impl Bucket {
    /// Makes ready to talk to the server that these settings name, and asks whether the bucket is there.
    ///
    /// # Errors
    /// [`StoreError::Remote`].
    pub(super) fn open(bucket: &str, prefix: &str, settings: &[(String, String)]) -> Result<Self, StoreError> {
        let place = Location::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() }.to_string();
        let failed = |error: &Error| remote(&place, error);
        // The process's choice for TLS; that it was made already is no matter.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (mut builder, mut options) = (AmazonS3Builder::new(), ClientOptions::new());
        options = options.with_connect_timeout(Duration::from_secs(5)).with_timeout(Duration::from_secs(60));
        for (name, value) in settings {
            match name.to_ascii_lowercase().parse() {
                Ok(AmazonS3ConfigKey::Client(key)) => options = options.with_config(key, value),
                Ok(key) => builder = builder.with_config(key, value),
                // Whatever else there is that other programs of the field know.
                Err(_) => {}
            }
        }
        let builder = builder
            .with_bucket_name(bucket)
            .with_retry(RetryConfig {
                backoff: BackoffConfig { max_backoff: Duration::from_secs(2), ..BackoffConfig::default() },
                max_retries: RETRIES,
                retry_timeout: Duration::from_secs(60),
            })
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_checksum_algorithm(Checksum::SHA256);
        let store = builder.clone().with_client_options(options.clone()).build().map_err(|error| failed(&error))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("agd-s3")
            .enable_all()
            .build()
            .map_err(|source| StoreError::Io { path: place.clone(), source })?;
        let opened = Self {
            store,
            runtime,
            builder,
            options,
            bucket: bucket.to_owned(),
            prefix: prefix.to_owned(),
            read: Mutex::default(),
        };
        let one = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        let listed = opened.runtime.block_on(opened.store.list_paginated(opened.folder("").as_deref(), one));
        listed.map_err(|error| failed(&error))?;
        Ok(opened)
    }

    pub(super) fn location(&self) -> Location {
        Location::S3 { bucket: self.bucket.clone(), prefix: self.prefix.clone() }
    }

    /// The object's whole name.
    fn key(&self, path: &str) -> Result<Path, StoreError> {
        let key = match self.prefix.as_str() {
            "" => Path::parse(path),
            prefix => Path::parse(format!("{prefix}/{path}")),
        };
        key.map_err(|error| StoreError::Remote { path: path.to_owned(), message: error.to_string() })
    }

    /// What the names of all objects in a folder begin with; none at the root of a bucket.
    fn folder(&self, path: &str) -> Option<String> {
        let names = [self.prefix.as_str(), path].into_iter().filter(|name| !name.is_empty());
        let folder: String = names.flat_map(|name| [name, "/"]).collect();
        (!folder.is_empty()).then_some(folder)
    }

    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::Remote`].
    pub(super) fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        self.runtime.block_on(self.get(path, limit))
    }

    async fn get(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let key = self.key(path)?;
        let found = match self.store.get(&key).await {
            Ok(found) => found,
            Err(error) if is_absent(&error) => {
                self.note(path, None);
                return Ok(None);
            }
            Err(error) => return Err(remote(path, &error)),
        };
        let size = found.meta.size;
        if size > limit {
            return Err(StoreError::TooLarge { path: path.to_owned(), size, limit });
        }
        let version = UpdateVersion { e_tag: found.meta.e_tag.clone(), version: found.meta.version.clone() };
        // Never more than the size that the answer's head said: the transfer ends there.
        let bytes = found.bytes().await.map_err(|error| remote(path, &error))?;
        if bytes.len() as u64 != size {
            let message = format!("the server sent {} of {size} bytes", bytes.len());
            return Err(StoreError::Remote { path: path.to_owned(), message });
        }
        self.note(path, Some(version));
        Ok(Some(bytes.into()))
    }

    /// Keeps in mind which version of a mutable object was read.
    fn note(&self, path: &str, version: Option<UpdateVersion>) {
        if path.rsplit('/').next() == Some(CHECKPOINT) {
            self.read.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned(), version);
        }
    }

    /// # Errors
    /// [`StoreError::Remote`].
    pub(super) fn has(&self, path: &str) -> Result<bool, StoreError> {
        let key = self.key(path)?;
        match self.runtime.block_on(self.store.head(&key)) {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(remote(path, &error)),
        }
    }

    /// The names in a folder that come after a name, sorted; `None` when there are none.
    ///
    /// # Errors
    /// [`StoreError::Remote`].
    pub(super) fn list(&self, path: &str, after: Option<&str>) -> Result<Option<Vec<Listed>>, StoreError> {
        let folder = self.folder(path);
        let prefix = folder.as_deref().unwrap_or_default();
        let mut options = PaginatedListOptions {
            delimiter: Some("/".into()),
            offset: after.map(|after| format!("{prefix}{after}")),
            ..PaginatedListOptions::default()
        };
        let mut names = Vec::new();
        loop {
            let page = self.runtime.block_on(self.store.list_paginated(folder.as_deref(), options.clone()));
            let page = page.map_err(|error| remote(path, &error))?;
            let mut add = |whole: &Path, kind| {
                let name = whole.as_ref().strip_prefix(prefix).unwrap_or_default();
                if !name.is_empty() && after.is_none_or(|after| name > after) {
                    names.push(Listed { name: name.to_owned(), kind });
                }
            };
            page.result.objects.iter().for_each(|object| add(&object.location, Kind::File));
            page.result.common_prefixes.iter().for_each(|folder| add(folder, Kind::Folder));
            options.page_token = page.page_token;
            if options.page_token.is_none() {
                break;
            }
        }
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok((!names.is_empty()).then_some(names))
    }

    /// Whether the bucket keeps every new object from being deleted.
    ///
    /// # Errors
    /// [`StoreError::Remote`].
    pub(super) fn object_lock(&self) -> Result<ObjectLock, StoreError> {
        let region = self.builder.get_config_value(&AmazonS3ConfigKey::Region);
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        let asked = object_lock::ask(&self.store, &self.options, &region);
        self.runtime.block_on(asked).map_err(|error| remote(&self.location().to_string(), &error))
    }
}

/// No such object: not the same as no such bucket, which the server answers with the same status.
fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) && code_of(&full_text(error)).is_none_or(|code| code != "NoSuchBucket")
}

fn remote(path: &str, error: &Error) -> StoreError {
    StoreError::Remote { path: path.to_owned(), message: explain(error) }
}

/// The error with all that caused it.
fn full_text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push('\n');
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

/// What went wrong, in few words: the server's own code and message, else what the connection says.
///
/// Nothing else of the answer is shown: it may repeat the request with the name of the key that signed it.
fn explain(error: &Error) -> String {
    let text = full_text(error);
    if let Some(code) = code_of(&text) {
        let message = element(&text, "Message").unwrap_or_default();
        return format!("the server says {code}: {}", short(message));
    }
    let last = text.lines().last().unwrap_or_default();
    let plain = last.split('<').next().unwrap_or_default();
    short(plain.trim_end_matches([' ', ':'])).to_owned()
}

fn code_of(text: &str) -> Option<&str> {
    element(text, "Code").filter(|code| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// The text of the first XML element of this name.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(text, _)| text)
}

fn short(text: &str) -> &str {
    text.char_indices().nth(300).map_or(text, |(end, _)| &text[..end])
}

/// One upload that is under way.
struct Upload {
    bytes: usize,
    task: JoinHandle<Result<(), StoreError>>,
}

/// A bucket that is being written.
pub(super) struct BucketWriter {
    bucket: Arc<Bucket>,
    /// As the bucket's, with what only writes carry.
    store: Arc<AmazonS3>,
    under_way: VecDeque<Upload>,
    in_flight: usize,
}

impl std::fmt::Debug for BucketWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BucketWriter({})", self.bucket.location())
    }
}

impl BucketWriter {
    /// Opens a bucket for writing and makes sure that the server keeps the condition everything rests on.
    ///
    /// # Errors
    /// [`StoreError::Remote`], also when the server overwrites what it was asked to create.
    pub(super) fn open(bucket: Arc<Bucket>) -> Result<Self, StoreError> {
        let mut headers = HeaderMap::new();
        // Some servers look here for what the checksum's own header says already.
        headers.insert("x-amz-sdk-checksum-algorithm", HeaderValue::from_static("SHA256"));
        let options = bucket.options.clone().with_default_headers(headers);
        let store = bucket.builder.clone().with_client_options(options).build();
        let place = bucket.location().to_string();
        let store = Arc::new(store.map_err(|error| remote(&place, &error))?);
        let writer = Self { bucket, store, under_way: VecDeque::new(), in_flight: 0 };
        writer.try_condition(&place)?;
        Ok(writer)
    }

    /// Creates an object, and creates it again: the second time must fail. It is there ever after, so that a start costs one
    /// request, and with it tells early who may not write.
    fn try_condition(&self, place: &str) -> Result<(), StoreError> {
        let path = format!("{CONTROL}/create-only");
        let key = self.bucket.key(&path)?;
        for attempt in ["first", "second"] {
            let text = format!("{attempt}: written to see that a second writer of this object is refused\n");
            match self.bucket.runtime.block_on(create(&self.store, &key, text.into_bytes().into())) {
                Ok(()) => {}
                Err(Error::AlreadyExists { .. }) => return Ok(()),
                Err(error) => return Err(remote(&path, &error)),
            }
        }
        let message = "the server ignores If-None-Match: it would overwrite what is published".to_owned();
        Err(StoreError::Remote { path: place.to_owned(), message })
    }

    pub(super) fn object_lock(&self) -> Result<ObjectLock, StoreError> {
        self.bucket.object_lock()
    }

    /// Begins to write an immutable object; waits only while too much is under way.
    ///
    /// # Errors
    /// That of an object before it; nothing is under way any more then, and this one was not begun.
    pub(super) fn put(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        while self.under_way.len() >= PARALLEL || (self.in_flight > 0 && self.in_flight + bytes.len() > IN_FLIGHT) {
            self.finish_one()?;
        }
        let (bucket, store) = (Arc::clone(&self.bucket), Arc::clone(&self.store));
        let (path, payload) = (path.to_owned(), bytes.to_vec());
        let task = self.bucket.runtime.spawn(async move { put_new(&bucket, &store, &path, payload).await });
        self.in_flight += bytes.len();
        self.under_way.push_back(Upload { bytes: bytes.len(), task });
        Ok(())
    }

    /// Waits for the oldest upload. After an error no other is under way.
    fn finish_one(&mut self) -> Result<(), StoreError> {
        let Some(Upload { bytes, task }) = self.under_way.pop_front() else {
            return Ok(());
        };
        self.in_flight -= bytes;
        let done = self.bucket.runtime.block_on(task).unwrap_or_else(|error| {
            let message = format!("the upload was stopped: {error}");
            Err(StoreError::Remote { path: self.bucket.location().to_string(), message })
        });
        if done.is_err() {
            // The first error is the one that is told; the others are as good as not begun.
            while !self.under_way.is_empty() {
                let _ = self.finish_one();
            }
        }
        done
    }

    /// # Errors
    /// That of the first object that could not be written.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        while !self.under_way.is_empty() {
            self.finish_one()?;
        }
        Ok(())
    }

    /// Replaces a mutable object, if it still is what was read last.
    ///
    /// # Errors
    /// [`StoreError::Stale`], [`StoreError::Remote`], and what [`BucketWriter::sync`] says of objects before it.
    pub(super) fn replace(&mut self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        // Whatever the caller says: nothing that others find by this object may come after it.
        self.sync()?;
        let bucket = Arc::clone(&self.bucket);
        bucket.runtime.block_on(self.replace_now(path, bytes))
    }

    async fn replace_now(&self, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let key = self.bucket.key(path)?;
        let known = |bucket: &Bucket| bucket.read.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        let version = match known(&self.bucket) {
            Some(version) => version,
            None => {
                self.bucket.get(path, LARGEST).await?;
                known(&self.bucket).flatten()
            }
        };
        let mode = version.map_or(PutMode::Create, PutMode::Update);
        let options = PutOptions { mode, ..PutOptions::default() };
        let payload = PutPayload::from(bytes.to_vec());
        match self.store.put_opts(&key, payload, options).await {
            Ok(result) => {
                self.bucket.note(path, Some(UpdateVersion { e_tag: result.e_tag, version: result.version }));
                Ok(())
            }
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => {
                // It is ours where an answer was lost and the request repeated.
                match self.bucket.get(path, LARGEST).await? {
                    Some(found) if found == bytes => Ok(()),
                    _ => Err(StoreError::Stale { path: path.to_owned() }),
                }
            }
            Err(error) => Err(remote(path, &error)),
        }
    }
}

impl Drop for BucketWriter {
    /// What was put without a sync is given up, as a crash would.
    fn drop(&mut self) {
        self.under_way.iter().for_each(|upload| upload.task.abort());
    }
}

async fn create(store: &AmazonS3, key: &Path, payload: PutPayload) -> Result<(), Error> {
    let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
    store.put_opts(key, payload, options).await.map(|_| ())
}

/// Creates an object, or finds that it is there with the same bytes.
async fn put_new(bucket: &Bucket, store: &AmazonS3, path: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
    let key = bucket.key(path)?;
    match create(store, &key, bytes.clone().into()).await {
        Ok(()) => Ok(()),
        Err(Error::AlreadyExists { .. }) => {
            let conflict = || StoreError::Conflict { path: path.to_owned() };
            match bucket.get(path, bytes.len() as u64).await {
                Ok(Some(found)) if found == bytes => Ok(()),
                Ok(Some(_)) | Err(StoreError::TooLarge { .. }) => Err(conflict()),
                // Taken away, or a server busy with another request for the same name: the next round settles it.
                Ok(None) => {
                    let message = "the server says that it exists and that it does not".to_owned();
                    Err(StoreError::Remote { path: path.to_owned(), message })
                }
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(remote(path, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(text: &'static str) -> Error {
        Error::Generic { store: "S3", source: text.into() }
    }

    #[test]
    fn an_error_shows_what_the_server_said_and_nothing_of_the_request() {
        let answer = "Server returned non-2xx status code: 403 Forbidden: <?xml version=\"1.0\"?>\n<Error><Code>\
                      SignatureDoesNotMatch</Code><Message>The signature does not match.</Message><AWSAccessKeyId>\
                      AKIASECRET</AWSAccessKeyId><StringToSign>AWS4 top secret</StringToSign></Error>";
        assert_eq!(explain(&failed(answer)), "the server says SignatureDoesNotMatch: The signature does not match.");
        let odd = explain(&failed("status 500: <html><Code>a b</Code><secret/></html>"));
        assert_eq!(odd, "status 500");
        assert_eq!(explain(&failed("Connection refused (os error 111)")), "Connection refused (os error 111)");
    }

    #[test]
    fn a_missing_bucket_is_not_a_missing_object() {
        let not_found = |text: &'static str| Error::NotFound { path: "a".to_owned(), source: text.into() };
        assert!(is_absent(&not_found("404")));
        assert!(is_absent(&not_found("<Error><Code>NoSuchKey</Code></Error>")));
        assert!(!is_absent(&not_found("<Error><Code>NoSuchBucket</Code></Error>")));
        assert!(!is_absent(&failed("<Error><Code>NoSuchKey</Code></Error>")));
    }
}
