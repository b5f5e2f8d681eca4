//! Uploading a file to a bucket: small ones in one request, large ones in parts.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
    primitives::{ByteStream, ByteStreamError, Length},
    types::{CompletedMultipartUpload, CompletedPart},
};
use tokio::time::timeout;
use tracing::warn;

use super::{
    bucket::{Bucket, SHA256},
    error::{failed, is_precondition_failed, status},
};
use crate::{
    base::lock::lock,
    storage::{Failure, StorageError},
};

/// The size of a part, in bytes. Smaller files are uploaded in one request. S3 accepts no part
/// smaller than 5 MiB, except the last.
const PART: u64 = 8 << 20;
/// The age from which a multipart upload counts as abandoned: none takes that long. Abandoned
/// uploads cost money until they are aborted, so they are looked for at this interval.
pub(super) const ABANDONED_AFTER: Duration = Duration::from_secs(3600);
/// The most uploads that are remembered to be aborted when the store is back. Further ones are
/// aborted once they count as abandoned.
const MAX_PENDING_ABORTS: usize = 1000;

/// The result of a conditional write.
pub(super) enum Written {
    /// The object was stored, and has this ETag.
    Stored(Option<String>),
    /// Another upload replaced the object meanwhile, so nothing was stored.
    PreconditionFailed,
}

impl Written {
    fn from_response<E>(
        action: &'static str,
        key: &str,
        response: Result<Option<String>, SdkError<E, HttpResponse>>,
    ) -> Result<Self, StorageError>
    where
        E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
    {
        match response {
            Ok(etag) => Ok(Self::Stored(etag)),
            Err(error) if is_precondition_failed(&error) => Ok(Self::PreconditionFailed),
            Err(error) => Err(failed(action, key, error)),
        }
    }
}

/// The object that must be at a key for a write to succeed.
pub(super) enum Condition {
    /// Any object, or none.
    Unconditional,
    /// No object.
    Absent,
    /// The object with this ETag.
    Unchanged(String),
}

impl Condition {
    /// The values of the headers `If-None-Match` and `If-Match`.
    fn headers(self) -> (Option<String>, Option<String>) {
        match self {
            Self::Unconditional => (None, None),
            Self::Absent => (Some("*".to_owned()), None),
            Self::Unchanged(etag) => (None, Some(etag)),
        }
    }
}

/// A file that is uploaded.
struct Upload<'a> {
    key: &'a str,
    file: &'a Path,
    size: u64,
    sha256: &'a str,
    if_none_match: Option<String>,
    if_match: Option<String>,
}

impl Bucket {
    /// Uploads a file if the condition is met.
    pub(super) async fn put(
        &self,
        key: &str,
        file: &Path,
        sha256: &str,
        condition: Condition,
    ) -> Result<Written, StorageError> {
        let found = tokio::fs::metadata(file).await;
        let size = found.map_err(|error| StorageError::io("read", file, error))?.len();
        let (if_none_match, if_match) = condition.headers();
        let upload = Upload { key, file, size, sha256, if_none_match, if_match };
        if size >= PART { self.put_parts(upload).await } else { self.put_whole(upload).await }
    }

    async fn put_whole(&self, upload: Upload<'_>) -> Result<Written, StorageError> {
        let (action, key) = ("store the bundle", upload.key);
        let body = ByteStream::read_from().path(upload.file);
        let body = body.build().await.map_err(|error| not_read(upload.file, error))?;
        let put = self.client.put_object().bucket(&*self.name).key(key).body(body);
        let put = put
            .content_type("application/octet-stream")
            .metadata("uploadedAt", now())
            .metadata(SHA256, upload.sha256)
            .set_if_none_match(upload.if_none_match)
            .set_if_match(upload.if_match)
            .send();
        let put = async { Written::from_response(action, key, put.await.map(|put| put.e_tag)) };
        self.with_timeout(action, key, put).await
    }

    async fn put_parts(&self, upload: Upload<'_>) -> Result<Written, StorageError> {
        let (action, key) = ("begin an upload of", upload.key);
        let create = self.client.create_multipart_upload().bucket(&*self.name).key(key);
        let create = create
            .content_type("application/octet-stream")
            .metadata("uploadedAt", now())
            .metadata(SHA256, upload.sha256)
            .send();
        let create = async { create.await.map_err(|error| failed(action, key, error)) };
        let created = self.with_timeout(action, key, create).await?;
        let id = created.upload_id().unwrap_or_default().to_owned();
        let guard = AbortGuard { bucket: self, key, upload: &id, has_ended: false };
        let result = self.send_parts(upload, &id).await;
        guard.end(matches!(result, Ok(Written::Stored(_)))).await;
        result
    }

    async fn send_parts(&self, upload: Upload<'_>, id: &str) -> Result<Written, StorageError> {
        let Upload { key, file, size, if_none_match, if_match, .. } = upload;
        let (sending, ending) = ("store a part of", "end an upload of");
        let mut parts = Vec::new();
        for (number, start) in
            (1i32..).zip((0..size).step_by(usize::try_from(PART).unwrap_or(usize::MAX)))
        {
            let length = PART.min(size - start);
            let body = ByteStream::read_from().path(file).offset(start);
            let body = body.length(Length::Exact(length)).build().await;
            let body = body.map_err(|error| not_read(file, error))?;
            let send = self.client.upload_part().bucket(&*self.name).key(key).upload_id(id);
            let send = send.part_number(number).body(body).send();
            let send = async { send.await.map_err(|error| failed(sending, key, error)) };
            let sent = self.with_timeout(sending, key, send).await?;
            let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag);
            parts.push(part.build());
        }
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self.client.complete_multipart_upload().bucket(&*self.name).key(key);
        let complete = complete
            .upload_id(id)
            .multipart_upload(parts)
            .set_if_none_match(if_none_match)
            .set_if_match(if_match)
            .send();
        let complete =
            async { Written::from_response(ending, key, complete.await.map(|ended| ended.e_tag)) };
        self.with_timeout(ending, key, complete).await
    }

    /// Aborts uploads that have been incomplete for [`ABANDONED_AFTER`].
    pub(super) async fn abort_abandoned(&self) -> Result<(), StorageError> {
        let (action, prefix) = ("list uploads to", self.bundles_prefix());
        let list = self.client.list_multipart_uploads().bucket(&*self.name);
        let list = list.prefix(&prefix).send();
        let list = async { list.await.map_err(|error| failed(action, &prefix, error)) };
        let uploads = self.with_timeout(action, &prefix, list).await?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let before = now.saturating_sub(ABANDONED_AFTER).as_secs();
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

    /// Aborts an upload now, or remembers it if the store cannot be reached.
    async fn abort(&self, key: &str, upload: &str) {
        let abort = self.client.abort_multipart_upload().bucket(&*self.name).key(key);
        let abort = abort.upload_id(upload).send();
        let has_ended = match timeout(self.timeout, abort).await {
            // Either the upload no longer exists, or the relay may not abort it. In the second case
            // the store's own lifecycle rules apply.
            Ok(Err(error)) => status(&error).is_some_and(|status| status < 500 && status != 429),
            Ok(Ok(_)) => true,
            Err(_) => false,
        };
        if has_ended {
            return;
        }
        let mut pending = lock(&self.pending_aborts);
        let entry = (key.to_owned(), upload.to_owned());
        if pending.len() < MAX_PENDING_ABORTS && !pending.contains(&entry) {
            warn!(
                key,
                "cannot abort a failed upload; retrying when the bundle store answers again"
            );
            pending.push(entry);
        }
    }

    /// Aborts the uploads that could not be aborted before.
    pub(super) async fn retry_pending_aborts(&self) {
        let pending = || lock(&self.pending_aborts);
        let mut left = pending().len();
        while left > 0 {
            let Some((key, upload)) = pending().pop() else { return };
            self.abort(&key, &upload).await;
            let now = pending().len();
            if now >= left {
                // It failed again, and is in the list again.
                return;
            }
            left = now;
        }
    }
}

/// The error of a local file that cannot be read.
fn not_read(file: &Path, error: ByteStreamError) -> StorageError {
    StorageError::Io(Failure::new("read", file, error))
}

/// Aborts a multipart upload that is not completed, even if the caller is cancelled. An upload that
/// is neither completed nor aborted costs money.
struct AbortGuard<'a> {
    bucket: &'a Bucket,
    key: &'a str,
    upload: &'a str,
    has_ended: bool,
}

impl AbortGuard<'_> {
    async fn end(mut self, is_complete: bool) {
        if !is_complete {
            self.bucket.abort(self.key, self.upload).await;
        }
        self.has_ended = true;
    }
}

impl Drop for AbortGuard<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let (key, upload) = (self.key.to_owned(), self.upload.to_owned());
            let bucket = self.bucket.clone();
            let aborts = bucket.aborts.clone();
            aborts.spawn(async move { bucket.abort(&key, &upload).await });
        }
    }
}

/// The current time, as JavaScript's `toISOString` writes it.
fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
