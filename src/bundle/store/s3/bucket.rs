//! Requests to one bucket.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use aws_sdk_s3::{Client, operation::head_object::HeadObjectOutput, primitives::ByteStream};
use tokio::time::timeout;

use super::error::{failed, is_precondition_failed, status, unavailable};
use crate::{
    base::{document_id::DocumentId, run_to_completion::RunToCompletion},
    storage::StorageError,
};

/// The metadata key of an object's SHA-256.
pub(super) const SHA256: &str = "sha256";

/// A bucket, and the bundles in it.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) client: Client,
    pub(super) name: Arc<str>,
    pub(super) prefix: Arc<str>,
    /// The longest time without a response.
    pub(super) timeout: Duration,
    /// Multipart uploads that could not be aborted yet, by key and upload id.
    pub(super) pending_aborts: Arc<Mutex<Vec<(String, String)>>>,
    /// Aborts of uploads whose callers were cancelled.
    pub(super) aborts: RunToCompletion,
}

/// An object in a listing.
pub(super) struct ListedObject {
    pub(super) key: String,
    pub(super) etag: String,
    /// When it was last modified, in seconds since 1970.
    pub(super) modified: i64,
}

impl Bucket {
    /// The key of a bundle.
    pub(super) fn key(&self, id: DocumentId) -> String {
        format!("{}{id}.tonk", self.bundles_prefix())
    }

    /// The prefix of all bundles.
    pub(super) fn bundles_prefix(&self) -> String {
        format!("{}bundles/", self.prefix)
    }

    /// The prefix of a bundle's former generations.
    pub(super) fn former_prefix(&self, id: DocumentId) -> String {
        format!("{}former/{id}/", self.prefix)
    }

    /// Waits for a response for at most the timeout. `action` and `object` are for the error.
    pub(super) async fn with_timeout<T>(
        &self,
        action: &'static str,
        object: &str,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let late = || unavailable(action, object, format!("no answer for {:?}", self.timeout));
        timeout(self.timeout, work).await.unwrap_or_else(|_| Err(late()))
    }

    /// Checks that the bucket exists and can be reached.
    pub(super) async fn check_exists(&self) -> Result<(), StorageError> {
        let (action, bucket) = ("find the bucket", &*self.name);
        let head = self.client.head_bucket().bucket(bucket).send();
        let head = async { head.await.map(drop).map_err(|e| failed(action, bucket, e)) };
        self.with_timeout(action, bucket, head).await
    }

    /// Returns the metadata of an object, if it exists.
    pub(super) async fn head(&self, key: &str) -> Result<Option<HeadObjectOutput>, StorageError> {
        let action = "find the bundle";
        let head = self.client.head_object().bucket(&*self.name).key(key).send();
        let head = async {
            match head.await {
                Ok(head) => Ok(Some(head)),
                Err(error) if error.as_service_error().is_some_and(|e| e.is_not_found()) => {
                    Ok(None)
                }
                Err(error) => Err(failed(action, key, error)),
            }
        };
        self.with_timeout(action, key, head).await
    }

    /// Finds out whether the store honours conditional writes: writes an object twice, on the
    /// condition that it does not exist.
    pub(super) async fn probe_conditional_writes(&self) -> Result<bool, StorageError> {
        // Under the prefix of bundles, because access keys may be limited to it.
        let key = format!("{}.tonk-relay-probe-{:016x}", self.bundles_prefix(), random());
        let write = async || {
            let put = self.client.put_object().bucket(&*self.name).key(&key);
            put.if_none_match("*").body(ByteStream::from_static(b"probe")).send().await
        };
        let probe = async {
            match write().await {
                Ok(_) => {}
                // Some stores reject a condition that they do not implement. The status of a store
                // that is overloaded says nothing about conditions.
                Err(error) if status(&error).is_some_and(|s| s == 501 || (s < 500 && s != 429)) => {
                    let can_write = self.client.put_object().bucket(&*self.name).key(&key);
                    let body = ByteStream::from_static(b"probe");
                    can_write.body(body).send().await.map_err(|e| failed("write", &key, e))?;
                    return Ok(false);
                }
                Err(error) => return Err(failed("write", &key, error)),
            }
            match write().await {
                Ok(_) => Ok(false),
                Err(error) if is_precondition_failed(&error) => Ok(true),
                Err(error) => Err(failed("write", &key, error)),
            }
        };
        let honours = self.with_timeout("write", &key, probe).await;
        self.delete(&key).await?;
        honours
    }

    /// Deletes an object. Deleting an object that does not exist succeeds.
    pub(super) async fn delete(&self, key: &str) -> Result<(), StorageError> {
        let delete = self.client.delete_object().bucket(&*self.name).key(key).send();
        let delete = async { delete.await.map(drop).map_err(|e| failed("delete", key, e)) };
        self.with_timeout("delete", key, delete).await
    }

    /// Lists the objects whose keys begin with `prefix`, without those in subfolders.
    pub(super) async fn list(&self, prefix: &str) -> Result<Vec<ListedObject>, StorageError> {
        let (mut listed, mut next) = (Vec::new(), None);
        loop {
            let page = self.client.list_objects_v2().bucket(&*self.name).prefix(prefix);
            let page = page.delimiter("/").set_continuation_token(next).send();
            let page = async { page.await.map_err(|error| failed("list", prefix, error)) };
            let page = self.with_timeout("list", prefix, page).await?;
            for object in page.contents() {
                if let Some(key) = object.key() {
                    listed.push(ListedObject {
                        key: key.to_owned(),
                        etag: object.e_tag().unwrap_or_default().to_owned(),
                        modified: object.last_modified().map_or(0, |time| time.secs()),
                    });
                }
            }
            next = page.next_continuation_token().map(str::to_owned);
            if next.is_none() {
                return Ok(listed);
            }
        }
    }

    /// Copies the stored bundle to its former generations, and deletes all but the newest `keep`.
    pub(super) async fn keep_former(
        &self,
        id: DocumentId,
        head: &HeadObjectOutput,
        keep: usize,
    ) -> Result<(), StorageError> {
        let prefix = self.former_prefix(id);
        if keep > 0 {
            // A bundle that another program stored has no SHA-256 in its metadata. Its ETag is a
            // hash as well.
            let hash = head.metadata().and_then(|metadata| metadata.get(SHA256)).cloned();
            let etag = || head.e_tag().unwrap_or_default().trim_matches('"').to_owned();
            let key = format!("{prefix}{}.tonk", hash.unwrap_or_else(etag));
            let action = "keep the former bundle as";
            let copy = self.client.copy_object().bucket(&*self.name).key(&key);
            let source = percent_encoded(&format!("{}/{}", self.name, self.key(id)));
            let copy = copy.copy_source(source).send();
            let copy = async { copy.await.map(drop).map_err(|e| failed(action, &key, e)) };
            self.with_timeout(action, &key, copy).await?;
        }
        let mut generations = self.list(&prefix).await?;
        generations.sort_unstable_by_key(|generation| generation.modified);
        let excess = generations.len().saturating_sub(keep);
        for generation in generations.into_iter().take(excess) {
            self.delete(&generation.key).await?;
        }
        Ok(())
    }
}

/// Encodes a path for a URL: all bytes but unreserved characters (RFC 3986, 2.3) and slashes.
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

/// A random number, which another process does not draw.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
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
