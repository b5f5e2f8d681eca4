//! Uploaded bundles in Amazon S3 or a compatible store: `<prefix>bundles/<id>.tonk`, as Tonk's
//! relay names them, and former generations in `<prefix>former/<id>/<sha256>.tonk`.
//!
//! An upload is received and verified in a local file and then sent to the store. Bundles that are
//! read are streamed. Every request waits at most `bundles.timeout` for the store.

mod bucket;
mod client;
mod error;
pub(super) mod object;
mod upload;

use std::{
    io,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{FutureExt, future::BoxFuture};
use tracing::{info, warn};

use self::{
    bucket::{Bucket, SHA256},
    error::{bad_answer, unavailable},
    object::Object,
    upload::{ABANDONED_AFTER, Condition, Written},
};
use super::{
    bundle_store::BundleStore,
    received::{IncomingFolder, ReceivedFile, sha256_of},
    stored::{Source, StoredBundle},
};
use crate::{
    base::{document_id::DocumentId, run_to_completion::RunToCompletion},
    config,
    observe::health::Health,
    storage::{Failure, StorageError},
};

/// How often the relay checks whether a store that failed answers again.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Locks for uploads. Bundles share them.
const UPLOAD_LOCKS: usize = 64;
/// How often an upload is tried because other uploads replaced the bundle meanwhile.
const MAX_ATTEMPTS: usize = 5;

/// A store of bundles in a bucket.
pub struct S3Store {
    bucket: Bucket,
    incoming: IncomingFolder,
    health: Arc<Health>,
    /// Serialise the uploads of one bundle. Only uploads by another relay, to the same bucket, can
    /// then come between.
    upload_locks: Vec<tokio::sync::Mutex<()>>,
    /// Whether the store honours conditional writes; not set until it was probed.
    honours_conditions: OnceLock<bool>,
    is_unavailable: AtomicBool,
}

impl S3Store {
    /// Creates the store that `config` names, without connecting to it.
    ///
    /// # Errors
    /// The local folder cannot be created or written.
    pub async fn open(config: &config::Bundles, health: Arc<Health>) -> io::Result<Self> {
        let bucket = Bucket {
            client: client::client(config).await,
            name: config.bucket.as_str().into(),
            prefix: config.prefix.as_str().into(),
            timeout: config.timeout.0,
            pending_aborts: Arc::default(),
            aborts: RunToCompletion::default(),
        };
        Ok(Self {
            bucket,
            incoming: IncomingFolder::open(&config.path)?,
            health,
            upload_locks: (0..UPLOAD_LOCKS).map(|_| tokio::sync::Mutex::default()).collect(),
            honours_conditions: OnceLock::new(),
            is_unavailable: AtomicBool::new(false),
        })
    }

    /// Probes the store, aborts abandoned uploads, and then keeps checking whether a store that
    /// failed is back.
    pub async fn run(&self) {
        while let Err(error) = self.record_health(self.prepare().await) {
            warn!("cannot reach the bundle store; retrying: {error}");
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        let mut last_abort = Instant::now();
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            if self.is_unavailable.load(Ordering::Relaxed) {
                if self.record_health(self.bucket.check_exists().await).is_err() {
                    continue;
                }
                info!("the bundle store answers again");
            }
            self.bucket.retry_pending_aborts().await;
            if last_abort.elapsed() >= ABANDONED_AFTER {
                last_abort = Instant::now();
                self.abort_abandoned().await;
            }
        }
    }

    async fn prepare(&self) -> Result<(), StorageError> {
        self.bucket.check_exists().await?;
        let honours = self.bucket.probe_conditional_writes().await?;
        if honours {
            info!(bucket = %self.bucket.name, "the bundle store supports conditional writes");
        } else {
            warn!(
                bucket = %self.bucket.name,
                "the bundle store ignores conditional writes; if one bundle is uploaded twice at \
                 the same time, the first of the two may not be kept as a former generation"
            );
        }
        let _ = self.honours_conditions.set(honours);
        self.abort_abandoned().await;
        Ok(())
    }

    async fn abort_abandoned(&self) {
        if let Err(error) = self.bucket.abort_abandoned().await {
            warn!("cannot remove abandoned uploads from the bundle store: {error}");
        }
    }

    /// Records in the health report whether the store can be used.
    fn record_health<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        match &result {
            Ok(_) => {
                if self.is_unavailable.swap(false, Ordering::Relaxed) {
                    self.health.set_degraded("bundles", None);
                }
            }
            Err(error @ StorageError::Unavailable(_)) => {
                self.is_unavailable.store(true, Ordering::Relaxed);
                self.health
                    .set_degraded("bundles", Some(format!("cannot reach the store: {error}")));
            }
            // The store can be reached.
            Err(_) => {}
        }
        result
    }

    /// The lock for uploads of this bundle.
    fn upload_lock(&self, id: DocumentId) -> Option<&tokio::sync::Mutex<()>> {
        let stripe = id.as_bytes().iter().fold(0u8, |all, byte| all ^ byte);
        self.upload_locks.get(usize::from(stripe) % self.upload_locks.len())
    }

    /// Stores a received bundle. Repeats this if another upload replaces the bundle meanwhile.
    async fn put_received(
        &self,
        id: DocumentId,
        bundle: ReceivedFile,
        keep: usize,
    ) -> Result<String, StorageError> {
        let (action, path) = ("read", bundle.path());
        let file = bundle.open().await?;
        let sha256 = match tokio::task::spawn_blocking(move || sha256_of(file)).await {
            Ok(hashed) => hashed.map_err(|error| StorageError::io(action, path, error))?,
            Err(panic) => return Err(StorageError::Unavailable(Failure::new(action, path, panic))),
        };
        let key = self.bucket.key(id);
        // Held for a bounded time: every step of an upload has a timeout.
        let _lock = match self.upload_lock(id) {
            Some(lock) => Some(lock.lock().await),
            None => None,
        };
        for attempt in 0..MAX_ATTEMPTS {
            let former = self.record_health(self.bucket.head(&key).await)?;
            let former_sha256 = former.as_ref().and_then(|head| head.metadata()?.get(SHA256));
            if attempt > 0 && former_sha256 == Some(&sha256) {
                // An earlier attempt succeeded, its response was lost, and the SDK retried it.
                return former.and_then(|head| head.e_tag).ok_or_else(|| missing_metadata(&key));
            }
            if let Some(head) = &former {
                self.record_health(self.bucket.keep_former(id, head, keep).await)?;
            }
            let honours = self.honours_conditions.get().is_some_and(|honours| *honours);
            let condition = match former.and_then(|head| head.e_tag) {
                _ if !honours => Condition::Unconditional,
                Some(etag) => Condition::Unchanged(etag),
                None => Condition::Absent,
            };
            let put = self.bucket.put(&key, bundle.path(), &sha256, condition).await;
            match self.record_health(put)? {
                Written::Stored(Some(etag)) => return Ok(etag),
                Written::Stored(None) => return Err(missing_metadata(&key)),
                Written::PreconditionFailed => {}
            }
        }
        let reason = "other uploads of this bundle keep interfering";
        Err(unavailable("store the bundle", &key, reason))
    }
}

impl BundleStore for S3Store {
    fn receive(&self) -> BoxFuture<'_, Result<ReceivedFile, StorageError>> {
        self.incoming.receive()
    }

    fn put(
        &self,
        id: DocumentId,
        bundle: ReceivedFile,
        keep: usize,
    ) -> BoxFuture<'_, Result<String, StorageError>> {
        self.put_received(id, bundle, keep).boxed()
    }

    fn get(&self, id: DocumentId) -> BoxFuture<'_, Result<Option<StoredBundle>, StorageError>> {
        async move {
            let key = self.bucket.key(id);
            let head = self.record_health(self.bucket.head(&key).await)?;
            let Some(head) = head else { return Ok(None) };
            let (Some(etag), Some(size)) =
                (head.e_tag, head.content_length.and_then(|size| u64::try_from(size).ok()))
            else {
                return Err(missing_metadata(&key));
            };
            let object = Object {
                bucket: self.bucket.clone(),
                key,
                etag: etag.clone(),
                incoming: self.incoming.clone(),
            };
            Ok(Some(StoredBundle { size, etag, source: Source::Object(object) }))
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<(DocumentId, String)>, StorageError>> {
        async move {
            let prefix = self.bucket.bundles_prefix();
            let listed = self.record_health(self.bucket.list(&prefix).await)?;
            let id = |key: &str| key.strip_prefix(&prefix)?.strip_suffix(".tonk")?.parse().ok();
            let bundles =
                listed.into_iter().filter_map(|object| Some((id(&object.key)?, object.etag)));
            Ok(bundles.collect())
        }
        .boxed()
    }

    fn delete(&self, id: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>> {
        async move {
            let key = self.bucket.key(id);
            let existed = self.record_health(self.bucket.head(&key).await)?.is_some();
            let former = self.bucket.list(&self.bucket.former_prefix(id)).await;
            for generation in self.record_health(former)? {
                self.record_health(self.bucket.delete(&generation.key).await)?;
            }
            self.record_health(self.bucket.delete(&key).await)?;
            Ok(existed)
        }
        .boxed()
    }

    /// Does nothing: a restore leaves the bundles that are in an object store.
    fn move_aside(&self, _name: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        std::future::ready(Ok(())).boxed()
    }
}

fn missing_metadata(key: &str) -> StorageError {
    bad_answer("find the bundle", key, "the store does not report its size and ETag")
}
