//! Uploaded bundles in Amazon S3, or anything that speaks it: `<prefix>bundles/<id>.tonk` as Tonk's relay names them,
//! and former generations as `<prefix>former/<id>/<sha256>.tonk`.
//!
//! An upload is received and verified in a local file, and goes to the store from there, a large one in parts. What
//! is read is passed on as it comes. Nothing waits longer than `bundles.timeout` for the store to go on.

use super::{BundleStore, Content, Incoming, Received, Source, StoredBundle, sha256_of};
use crate::{
    base::{
        blocking::{self, DropOnBlockingThread},
        document_id::DocumentId,
        lock::lock,
        run_to_completion::RunToCompletion,
    },
    config::{self, credentials::credential},
    observe::health::Health,
};
use aws_config::{
    BehaviorVersion, Region, profile::ProfileFileCredentialsProvider,
    provider_config::ProviderConfig, timeout::TimeoutConfig,
};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_s3::{
    Client,
    config::{RequestChecksumCalculation, ResponseChecksumValidation, http::HttpResponse},
    error::{ProvideErrorMetadata, SdkError},
    operation::head_object::HeadObjectOutput,
    primitives::{ByteStream, Length},
    types::{CompletedMultipartUpload, CompletedPart},
};
use aws_smithy_http_client::tls;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use std::{
    fs::File,
    io,
    ops::RangeInclusive,
    path::Path,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    io::{AsyncSeekExt, AsyncWriteExt, BufWriter},
    time::timeout,
};
use tracing::{info, warn};

/// Uploads from this size on go in parts of this size; S3 takes none smaller than 5 MiB but the last.
const PART: u64 = 8 << 20;
/// Bytes of a download that are written to the local file at a time.
const WRITE: usize = 1 << 20;
/// How often a store that was away is asked whether it is back.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Uploads in parts that nobody ended for so long are nobody's any more, for none takes so long; they cost money until
/// they are aborted. So often they are looked for.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Uploads that are to be aborted when the store is back; further ones are found when they are [`ABANDONED`].
const UNENDED: usize = 1000;
/// Locks for uploads; bundles share them.
const WRITING: usize = 64;
/// How often an upload is tried again because another one came between.
const OVERTAKEN: usize = 5;
/// The systemd credential with access keys, in the format of `~/.aws/credentials`.
const CREDENTIAL: &str = "aws-credentials";
/// The SDK's variables for checksums; where they are not set, checksums are left out unless an operation requires them.
const REQUEST_CHECKSUMS: &str = "AWS_REQUEST_CHECKSUM_CALCULATION";
const RESPONSE_CHECKSUMS: &str = "AWS_RESPONSE_CHECKSUM_VALIDATION";
/// The key of an object's SHA-256 among its metadata.
const SHA256: &str = "sha256";

/// Bundles in a bucket.
pub struct S3Store {
    at: At,
    incoming: Incoming,
    health: Arc<Health>,
    /// Of one bundle's uploads one goes on at a time here, so that they overtake each other only where another relay
    /// has the same bucket.
    writing: Vec<tokio::sync::Mutex<()>>,
    /// Whether the store refuses a conditional write whose condition is not met; unknown until it was asked.
    honours_conditions: OnceLock<bool>,
    is_away: AtomicBool,
}

/// A bucket, and the patience with it.
#[derive(Clone, Debug)]
struct At {
    client: Client,
    bucket: Arc<str>,
    prefix: Arc<str>,
    patience: Duration,
    /// Uploads in parts, by key and upload id, that could not be aborted.
    unended: Arc<Mutex<Vec<(String, String)>>>,
    /// Requests that abort an upload in parts.
    aborts: RunToCompletion,
}

/// An object, to be read.
#[derive(Debug)]
pub(super) struct Object {
    at: At,
    key: String,
    etag: String,
    incoming: Incoming,
}

impl S3Store {
    /// The store that `config` names. It need not be there yet.
    ///
    /// # Errors
    /// The local folder cannot be made or written.
    pub async fn open(config: &config::Bundles, health: Arc<Health>) -> io::Result<Self> {
        let at = At {
            client: client(config).await,
            bucket: config.bucket.as_str().into(),
            prefix: config.prefix.as_str().into(),
            patience: config.timeout.0,
            unended: Arc::default(),
            aborts: RunToCompletion::default(),
        };
        Ok(Self {
            at,
            incoming: Incoming::open(&config.path)?,
            health,
            writing: (0..WRITING).map(|_| tokio::sync::Mutex::default()).collect(),
            honours_conditions: OnceLock::new(),
            is_away: AtomicBool::new(false),
        })
    }

    /// Find out what the store can do, abort what was abandoned there, and from then on ask whether it is back
    /// when it was away.
    pub async fn run(&self) {
        while let Err(error) = self.noted(self.prepare().await) {
            warn!("the bundle store is away; it is asked again: {error}");
            tokio::time::sleep(ASK_AGAIN).await;
        }
        let mut looked = Instant::now();
        loop {
            tokio::time::sleep(ASK_AGAIN).await;
            if self.is_away.load(Ordering::Relaxed) {
                if self.noted(self.at.is_there().await).is_err() {
                    continue;
                }
                info!("the bundle store is back");
            }
            self.at.abort_unended().await;
            if looked.elapsed() >= ABANDONED {
                looked = Instant::now();
                self.abort_abandoned().await;
            }
        }
    }

    async fn prepare(&self) -> io::Result<()> {
        self.at.is_there().await?;
        let honours = self.at.honours_conditions().await?;
        if honours {
            info!(bucket = %self.at.bucket, "the bundle store honours conditional writes");
        } else {
            warn!(
                bucket = %self.at.bucket,
                "the bundle store ignores conditional writes: of two uploads of one bundle at once, the former \
                 generation that is kept may be the one before both"
            );
        }
        let _ = self.honours_conditions.set(honours);
        self.abort_abandoned().await;
        Ok(())
    }

    async fn abort_abandoned(&self) {
        if let Err(error) = self.at.abort_abandoned().await {
            warn!("uploads that were abandoned stay in the bundle store: {error}");
        }
    }

    /// Show in the health whether the store answers.
    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        match &result {
            Ok(_) => {
                if self.is_away.swap(false, Ordering::Relaxed) {
                    self.health.set_degraded("bundles", None);
                }
            }
            // An answer that we do not like comes from a store that is there.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => {
                self.is_away.store(true, Ordering::Relaxed);
                self.health.set_degraded("bundles", Some(format!("the store is away: {error}")));
            }
        }
        result
    }
}

async fn client(config: &config::Bundles) -> Client {
    // ring: what rustls offers beside aws-lc, and builds with a C compiler alone.
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(config.timeout.0.min(Duration::from_secs(5)))
        .read_timeout(config.timeout.0)
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .timeout_config(timeouts)
        .retry_config(aws_config::retry::RetryConfig::standard().with_max_attempts(2));
    if !config.region.is_empty() {
        loader = loader.region(Region::new(config.region.clone()));
    } else if !config.endpoint_url.is_empty() {
        // Most other stores take any, and the SDK wants one.
        loader = loader.region(
            aws_config::meta::region::RegionProviderChain::default_provider().or_else("us-east-1"),
        );
    }
    if !config.endpoint_url.is_empty() {
        loader = loader.endpoint_url(&config.endpoint_url);
    }
    if let Some(file) = credential(CREDENTIAL) {
        let files =
            EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file).build();
        // With a client of HTTP: a profile may name a role, or the instance's own keys.
        let provider = ProfileFileCredentialsProvider::builder()
            .configure(&ProviderConfig::default().with_http_client(http))
            .profile_files(files)
            .build();
        loader = loader.credentials_provider(provider);
    }
    // The SDK would add CRC32 trailers to every upload, which Ceph, OVH and older MinIO refuse.
    if std::env::var_os(REQUEST_CHECKSUMS).is_none() {
        loader = loader.request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
    }
    if std::env::var_os(RESPONSE_CHECKSUMS).is_none() {
        loader = loader.response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    }
    let shared = loader.load().await;
    let own =
        aws_sdk_s3::config::Builder::from(&shared).force_path_style(config.path_style).build();
    Client::from_conf(own)
}

/// What the SDK says, without what it would repeat; it never names credentials.
fn failed<E>(action: &str, error: SdkError<E, HttpResponse>) -> io::Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let kind = match &error {
        SdkError::TimeoutError(_) => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    let said = error.as_service_error().and_then(|error| {
        Some(match (error.code(), error.message()) {
            (Some(code), Some(message)) => format!("{code}: {message}"),
            (Some(code), None) => code.to_owned(),
            (None, message) => message?.to_owned(),
        })
    });
    let text = match (status(&error), said) {
        // An answer to HEAD has no body, and so no code.
        (Some(status @ (401 | 403)), said) => {
            let said = said.map(|said| format!(": {said}")).unwrap_or_default();
            format!("the store refuses these access keys (HTTP {status}){said}")
        }
        (_, Some(said)) => said,
        (status, None) => {
            let causes =
                std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
            let causes = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            status.map_or(causes.clone(), |status| format!("HTTP {status}: {causes}"))
        }
    };
    io::Error::new(kind, format!("cannot {action}: {text}"))
}

/// The HTTP status of an answer that is an error.
fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Whether the store refused a condition.
fn is_overtaken<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> bool {
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    matches!(code, Some("PreconditionFailed" | "ConditionalRequestConflict" | "412"))
}

/// How an upload ended.
enum Put {
    /// With this ETag.
    Stored(Option<String>),
    /// Another upload came between.
    Overtaken,
}

impl Put {
    /// What the answer to a conditional write means.
    fn of<E>(
        action: &str,
        answer: Result<Option<String>, SdkError<E, HttpResponse>>,
    ) -> io::Result<Self>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        match answer {
            Ok(etag) => Ok(Self::Stored(etag)),
            Err(error) if is_overtaken(&error) => Ok(Self::Overtaken),
            Err(error) => Err(failed(action, error)),
        }
    }
}

impl At {
    fn key(&self, id: DocumentId) -> String {
        format!("{}bundles/{id}.tonk", self.prefix)
    }

    fn former(&self, id: DocumentId) -> String {
        format!("{}former/{id}/", self.prefix)
    }

    /// Wait for the store, but not for ever.
    async fn patient<T>(
        &self,
        action: &str,
        work: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        match timeout(self.patience, work).await {
            Ok(result) => result,
            Err(_) => {
                let text = format!("cannot {action}: no answer for {:?}", self.patience);
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
        }
    }

    async fn is_there(&self) -> io::Result<()> {
        let ask = self.client.head_bucket().bucket(&*self.bucket).send();
        let there = async { ask.await.map(drop).map_err(|e| failed("find the bucket", e)) };
        self.patient("find the bucket", there).await
    }

    async fn head(&self, key: &str) -> io::Result<Option<HeadObjectOutput>> {
        let ask = self.client.head_object().bucket(&*self.bucket).key(key).send();
        let head = async {
            match ask.await {
                Ok(head) => Ok(Some(head)),
                Err(error) if error.as_service_error().is_some_and(|e| e.is_not_found()) => {
                    Ok(None)
                }
                Err(error) => Err(failed("find the bundle", error)),
            }
        };
        self.patient("find the bundle", head).await
    }

    /// Write one object twice on the condition that it is not there.
    async fn honours_conditions(&self) -> io::Result<bool> {
        // Where bundles are: access keys may be good for these alone.
        let key = format!("{}bundles/.tonk-relay-probe-{:016x}", self.prefix, random());
        let write = async || {
            let put = self.client.put_object().bucket(&*self.bucket).key(&key);
            put.if_none_match("*").body(ByteStream::from_static(b"probe")).send().await
        };
        let probe = async {
            match write().await {
                Ok(_) => {}
                // Some stores say that they do not know it; one that is busy says nothing of it.
                Err(error) if status(&error).is_some_and(|s| s == 501 || (s < 500 && s != 429)) => {
                    let can_write = self.client.put_object().bucket(&*self.bucket).key(&key);
                    let body = ByteStream::from_static(b"probe");
                    can_write.body(body).send().await.map_err(|e| failed("write", e))?;
                    return Ok(false);
                }
                Err(error) => return Err(failed("write", error)),
            }
            match write().await {
                Ok(_) => Ok(false),
                Err(error) if is_overtaken(&error) => Ok(true),
                Err(error) => Err(failed("write", error)),
            }
        };
        let honours = self.patient("write", probe).await;
        self.delete(&key).await?;
        honours
    }

    async fn delete(&self, key: &str) -> io::Result<()> {
        let delete = self.client.delete_object().bucket(&*self.bucket).key(key).send();
        let delete = async { delete.await.map(drop).map_err(|e| failed("delete", e)) };
        self.patient("delete", delete).await
    }

    /// The keys that begin with `prefix`, without those in further folders, each with its ETag and its time.
    async fn list(&self, prefix: &str) -> io::Result<Vec<(String, String, i64)>> {
        let (mut listed, mut next) = (Vec::new(), None);
        loop {
            let page = self.client.list_objects_v2().bucket(&*self.bucket).prefix(prefix);
            let page = page.delimiter("/").set_continuation_token(next).send();
            let page = async { page.await.map_err(|error| failed("list", error)) };
            let page = self.patient("list", page).await?;
            for object in page.contents() {
                if let Some(key) = object.key() {
                    let etag = object.e_tag().unwrap_or_default().to_owned();
                    let time = object.last_modified().map_or(0, |time| time.secs());
                    listed.push((key.to_owned(), etag, time));
                }
            }
            next = page.next_continuation_token().map(str::to_owned);
            if next.is_none() {
                return Ok(listed);
            }
        }
    }

    async fn abort_abandoned(&self) -> io::Result<()> {
        let prefix = format!("{}bundles/", self.prefix);
        let list = self.client.list_multipart_uploads().bucket(&*self.bucket).prefix(prefix).send();
        let list = async { list.await.map_err(|error| failed("list uploads", error)) };
        let uploads = self.patient("list uploads", list).await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let before = now.saturating_sub(ABANDONED).as_secs();
        for upload in uploads.uploads() {
            let begun = upload.initiated().map_or(i64::MAX, |time| time.secs());
            if let (Some(key), Some(id), true) =
                (upload.key(), upload.upload_id(), u64::try_from(begun).is_ok_and(|b| b < before))
            {
                self.abort(key, id).await;
            }
        }
        Ok(())
    }

    async fn abort(&self, key: &str, upload: &str) {
        let abort = self.client.abort_multipart_upload().bucket(&*self.bucket).key(key);
        let abort = abort.upload_id(upload).send();
        let is_over = match timeout(self.patience, abort).await {
            // It is gone, or we may not; the store's own rules for what was abandoned hold then.
            Ok(Err(error)) => status(&error).is_some_and(|status| status < 500 && status != 429),
            Ok(Ok(_)) => true,
            Err(_) => false,
        };
        if is_over {
            return;
        }
        let mut unended = lock(&self.unended);
        let entry = (key.to_owned(), upload.to_owned());
        if unended.len() < UNENDED && !unended.contains(&entry) {
            warn!(key, "an upload that failed is to be aborted when the bundle store is back");
            unended.push(entry);
        }
    }

    async fn abort_unended(&self) {
        let unended = || lock(&self.unended);
        let mut left = unended().len();
        while left > 0 {
            let Some((key, upload)) = unended().pop() else { return };
            self.abort(&key, &upload).await;
            let now = unended().len();
            if now >= left {
                // Back in the list: another time.
                return;
            }
            left = now;
        }
    }

    /// Upload a file on the condition that the object is still the one of `former`, or is not there.
    async fn put(
        &self,
        key: &str,
        file: &Path,
        sha256: &str,
        condition: Option<Option<String>>,
    ) -> io::Result<Put> {
        let size = tokio::fs::metadata(file).await?.len();
        let (if_none, if_match) = match condition {
            None => (None, None),
            Some(None) => (Some("*".to_owned()), None),
            Some(etag) => (None, etag),
        };
        if size >= PART {
            return self.put_parts(key, file, size, sha256, if_none, if_match).await;
        }
        let body = ByteStream::read_from().path(file).build().await.map_err(io::Error::other)?;
        let put = self.client.put_object().bucket(&*self.bucket).key(key).body(body);
        let put = put
            .content_type("application/octet-stream")
            .metadata("uploadedAt", now())
            .metadata(SHA256, sha256)
            .set_if_none_match(if_none)
            .set_if_match(if_match)
            .send();
        let put = async { Put::of("store the bundle", put.await.map(|put| put.e_tag)) };
        self.patient("store the bundle", put).await
    }

    async fn put_parts(
        &self,
        key: &str,
        file: &Path,
        size: u64,
        sha256: &str,
        if_none: Option<String>,
        if_match: Option<String>,
    ) -> io::Result<Put> {
        let create = self.client.create_multipart_upload().bucket(&*self.bucket).key(key);
        let create = create
            .content_type("application/octet-stream")
            .metadata("uploadedAt", now())
            .metadata(SHA256, sha256)
            .send();
        let create = async { create.await.map_err(|error| failed("begin an upload", error)) };
        let created = self.patient("begin an upload", create).await?;
        let upload = created.upload_id().unwrap_or_default().to_owned();
        // Also when whoever waits for it goes away: an upload that is neither completed nor aborted costs money.
        let abort = AbortUpload { at: self, key, upload: &upload, is_over: false };
        let result = self.send_parts(key, file, size, &upload, if_none, if_match).await;
        abort.end(matches!(result, Ok(Put::Stored(_)))).await;
        result
    }

    async fn send_parts(
        &self,
        key: &str,
        file: &Path,
        size: u64,
        upload: &str,
        if_none: Option<String>,
        if_match: Option<String>,
    ) -> io::Result<Put> {
        let mut parts = Vec::new();
        for (number, start) in
            (1i32..).zip((0..size).step_by(usize::try_from(PART).unwrap_or(usize::MAX)))
        {
            let length = PART.min(size - start);
            let body = ByteStream::read_from().path(file).offset(start);
            let body =
                body.length(Length::Exact(length)).build().await.map_err(io::Error::other)?;
            let send = self.client.upload_part().bucket(&*self.bucket).key(key).upload_id(upload);
            let send = send.part_number(number).body(body).send();
            let send = async { send.await.map_err(|error| failed("store a part", error)) };
            let sent = self.patient("store a part", send).await?;
            let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag);
            parts.push(part.build());
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self.client.complete_multipart_upload().bucket(&*self.bucket).key(key);
        let complete = complete
            .upload_id(upload)
            .multipart_upload(parts)
            .set_if_none_match(if_none)
            .set_if_match(if_match)
            .send();
        let complete = async { Put::of("end an upload", complete.await.map(|ended| ended.e_tag)) };
        self.patient("end an upload", complete).await
    }

    /// Copy what is stored under its content hash, and let the oldest generations go.
    async fn keep_former(
        &self,
        id: DocumentId,
        head: &HeadObjectOutput,
        keep: usize,
    ) -> io::Result<()> {
        let prefix = self.former(id);
        if keep > 0 {
            // One that another program stored has no SHA-256 noted: its ETag is a hash as well.
            let hash = head.metadata().and_then(|metadata| metadata.get(SHA256)).cloned();
            let etag = || head.e_tag().unwrap_or_default().trim_matches('"').to_owned();
            let key = format!("{prefix}{}.tonk", hash.unwrap_or_else(etag));
            let copy = self.client.copy_object().bucket(&*self.bucket).key(key);
            let source = percent_encoded(&format!("{}/{}", self.bucket, self.key(id)));
            let copy = copy.copy_source(source).send();
            let copy =
                async { copy.await.map(drop).map_err(|e| failed("keep the former bundle", e)) };
            self.patient("keep the former bundle", copy).await?;
        }
        let mut generations = self.list(&prefix).await?;
        generations.sort_unstable_by_key(|(_, _, time)| *time);
        let too_many = generations.len().saturating_sub(keep);
        for (key, _, _) in generations.into_iter().take(too_many) {
            self.delete(&key).await?;
        }
        Ok(())
    }
}

/// An upload in parts, which is aborted unless it is completed.
struct AbortUpload<'a> {
    at: &'a At,
    key: &'a str,
    upload: &'a str,
    is_over: bool,
}

impl AbortUpload<'_> {
    async fn end(mut self, is_complete: bool) {
        if !is_complete {
            self.at.abort(self.key, self.upload).await;
        }
        self.is_over = true;
    }
}

impl Drop for AbortUpload<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            let (at, key, upload) = (self.at.clone(), self.key.to_owned(), self.upload.to_owned());
            let aborts = at.aborts.clone();
            aborts.spawn(async move { at.abort(&key, &upload).await });
        }
    }
}

/// A path as it is written in a URL: all but the unreserved characters (RFC 3986, 2.3) and slashes in percent-encoding.
fn percent_encoded(path: &str) -> String {
    path.bytes().fold(String::with_capacity(path.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// A number that another process does not draw.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// Now, as JavaScript's `toISOString` writes it.
fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

impl Object {
    pub(super) async fn read(
        self,
        part: Option<RangeInclusive<u64>>,
        length: u64,
    ) -> io::Result<Content> {
        let get = self.at.client.get_object().bucket(&*self.at.bucket).key(&self.key);
        let range = part.map(|part| format!("bytes={}-{}", part.start(), part.end()));
        let get = get.if_match(&self.etag).set_range(range).send();
        let get = async { get.await.map_err(|error| failed("read the bundle", error)) };
        let body = self.at.patient("read the bundle", get).await?.body;
        let patience = self.at.patience;
        let chunks = stream::try_unfold((body, length), move |(mut body, left)| async move {
            let next = timeout(patience, body.next()).await.map_err(|_| {
                let text = format!("the bundle store has sent nothing for {patience:?}");
                io::Error::new(io::ErrorKind::TimedOut, text)
            })?;
            match next {
                Some(chunk) => {
                    let chunk: Bytes = chunk.map_err(io::Error::other)?;
                    let left = left.checked_sub(chunk.len() as u64);
                    let left = left.ok_or_else(|| lies("more"))?;
                    Ok(Some((chunk, (body, left))))
                }
                None if left > 0 => Err(lies("less")),
                None => Ok(None),
            }
        });
        Ok(chunks.boxed())
    }

    /// All of it as a local file that has no name.
    pub(super) async fn download(self, size: u64) -> io::Result<File> {
        let folder = self.incoming.0.clone();
        #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
        let made = blocking::run(move || {
            let file = tempfile::tempfile_in(folder)?;
            Ok::<_, io::Error>((file.try_clone()?, file))
        });
        let (copy, file) = made.await?;
        // It outlives `out`, so that a download that fails is not closed here.
        let _copy = DropOnBlockingThread::new(copy);
        // Large writes: each goes to a thread that may block.
        let mut out = BufWriter::with_capacity(WRITE, tokio::fs::File::from_std(file));
        let mut chunks = self.read(None, size).await?;
        while let Some(chunk) = chunks.next().await {
            out.write_all(&chunk?).await?;
        }
        out.flush().await?;
        let mut file = out.into_inner();
        file.rewind().await?;
        Ok(file.into_std().await)
    }
}

fn unnamed() -> io::Error {
    let text = "the bundle store does not name a bundle's size and ETag";
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn lies(how: &str) -> io::Error {
    let text = format!("the bundle store has sent {how} than it announced");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

impl BundleStore for S3Store {
    fn receive(&self) -> BoxFuture<'_, io::Result<Received>> {
        self.incoming.receive()
    }

    fn put(
        &self,
        id: DocumentId,
        bundle: Received,
        keep: usize,
    ) -> BoxFuture<'_, io::Result<String>> {
        async move {
            let file = bundle.open().await?;
            let hashed = tokio::task::spawn_blocking(move || sha256_of(file)).await;
            let sha256 = hashed.unwrap_or_else(|panic| Err(io::Error::other(panic)))?;
            let key = self.at.key(id);
            let stripe = id.as_bytes().iter().fold(0u8, |all, byte| all ^ byte);
            let writing = self.writing.get(usize::from(stripe) % self.writing.len());
            // Whoever has it ends in bounded time: each step of an upload does.
            let _alone = match writing {
                Some(writing) => Some(writing.lock().await),
                None => None,
            };
            for attempt in 0..OVERTAKEN {
                let former = self.noted(self.at.head(&key).await)?;
                let of_former = former.as_ref().and_then(|head| head.metadata()?.get(SHA256));
                if attempt > 0 && of_former == Some(&sha256) {
                    // It was ours: its answer was lost, and the SDK tried again.
                    return former.and_then(|head| head.e_tag).ok_or_else(unnamed);
                }
                if let Some(head) = &former {
                    self.noted(self.at.keep_former(id, head, keep).await)?;
                }
                let honours = self.honours_conditions.get().is_some_and(|honours| *honours);
                let etag = former.and_then(|head| head.e_tag);
                let condition = honours.then_some(etag);
                let put = self.at.put(&key, bundle.path(), &sha256, condition).await;
                match self.noted(put)? {
                    Put::Stored(Some(etag)) => return Ok(etag),
                    Put::Stored(None) => return Err(unnamed()),
                    Put::Overtaken => {}
                }
            }
            Err(io::Error::other("other uploads of this bundle come between all the time"))
        }
        .boxed()
    }

    fn get(&self, id: DocumentId) -> BoxFuture<'_, io::Result<Option<StoredBundle>>> {
        async move {
            let key = self.at.key(id);
            let Some(head) = self.noted(self.at.head(&key).await)? else { return Ok(None) };
            let (Some(etag), Some(size)) =
                (head.e_tag, head.content_length.and_then(|size| u64::try_from(size).ok()))
            else {
                return Err(unnamed());
            };
            let object = Object {
                at: self.at.clone(),
                key,
                etag: etag.clone(),
                incoming: self.incoming.clone(),
            };
            Ok(Some(StoredBundle { size, etag, source: Source::Object(object) }))
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, io::Result<Vec<(DocumentId, String)>>> {
        async move {
            let prefix = format!("{}bundles/", self.at.prefix);
            let listed = self.noted(self.at.list(&prefix).await)?;
            let id = |key: &str| key.strip_prefix(&prefix)?.strip_suffix(".tonk")?.parse().ok();
            Ok(listed.into_iter().filter_map(|(key, etag, _)| Some((id(&key)?, etag))).collect())
        }
        .boxed()
    }

    fn delete(&self, id: DocumentId) -> BoxFuture<'_, io::Result<bool>> {
        async move {
            let key = self.at.key(id);
            let was_there = self.noted(self.at.head(&key).await)?.is_some();
            for (former, _, _) in self.noted(self.at.list(&self.at.former(id)).await)? {
                self.noted(self.at.delete(&former).await)?;
            }
            self.noted(self.at.delete(&key).await)?;
            Ok(was_there)
        }
        .boxed()
    }

    /// They stay where they are: a restore leaves bundles alone that are there.
    fn set_aside(&self, _name: &str) -> BoxFuture<'_, io::Result<()>> {
        std::future::ready(Ok(())).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::percent_encoded;

    #[test]
    fn a_copy_source_is_percent_encoded() {
        assert_eq!(percent_encoded("bundles/my app+1/ü.tonk"), "bundles/my%20app%2B1/%C3%BC.tonk");
        assert_eq!(percent_encoded("a-b_c.d~e/F9"), "a-b_c.d~e/F9");
    }
}
