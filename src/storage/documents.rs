//! Documents above a [`Store`].
//!
//! | to find | look in |
//! |---|---|
//! | loading a document, with the served bundle's snapshot as its seed | [`Documents`] |
//! | checking every chunk; what opening a document found | `assemble`; `opened` |
//! | repeating writes until they are durable | [`Documents`] |
//! | counting what is not durable yet | `unsaved` |
//! | what other relays have stored of a live document; what is left after a loss | `reread`; `found_again` |
//! | merging an imported or uploaded document into the stored one | `merge` |

mod assemble;
mod found_again;
mod merge;
mod opened;
mod reread;
mod unsaved;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::watch;
use tracing::{error, info, warn};

pub(crate) use self::found_again::{Remaining, Unread};
pub use self::{
    assemble::{Assembled, assemble},
    merge::MergeSource,
    opened::{Opened, SeedSnapshot},
    unsaved::Unsaved,
};
use self::{
    merge::compare,
    unsaved::{QueuedWrite, UnsavedBytes},
};
use super::{
    Basis, Failure, Put, StorageError, local::space::Space, store::Store, underlay::Underlay,
};
use crate::{
    base::{backoff::Backoff, document_id::DocumentId, hex::hex},
    config::Config,
    document::{
        chunk::{Key, snapshot_key},
        merge::Merged,
        size::MaxDocument,
    },
    limits::turns::{Payer, Turns},
    observe::{
        health::{Health, Unreadable},
        metrics::StorageMetrics,
        usage::thread_time,
    },
};

/// The first and the longest pause before a failed write is retried.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Documents that are merged at the same time. Each is in memory twice.
const MAX_MERGES: usize = 2;
/// Documents that are read again at the same time after the store has lost something.
const MAX_READS: usize = 2;

/// All documents of the relay.
pub struct Documents {
    store: Arc<dyn Store>,
    underlay: Box<dyn Underlay>,
    health: Arc<Health>,
    space: Arc<Space>,
    config: watch::Receiver<Arc<Config>>,
    /// Permits for merges.
    merging: Turns,
    /// Permits for reading documents again.
    reading: Turns,
    unsaved: Arc<UnsavedBytes>,
    metrics: StorageMetrics,
}

/// Why nothing can be stored that builds on what was read of a document.
#[derive(Clone, Copy, Debug)]
pub enum Outdated {
    /// The store has lost something since.
    Lost,
    /// The document was deleted since.
    Deleted,
}

/// What can be read of a document.
pub struct Content {
    /// An automerge save, with the changes whose dependencies are missing.
    pub data: Vec<u8>,
    /// Chunks that are not part of it because they do not parse or fit, with the reasons.
    pub broken: Vec<(Key, String)>,
}

impl Documents {
    /// Documents in `store`, whose seeds are in `underlay`.
    pub fn new(
        store: Arc<dyn Store>,
        underlay: impl Underlay,
        health: Arc<Health>,
        space: Arc<Space>,
        config: watch::Receiver<Arc<Config>>,
        metrics: StorageMetrics,
    ) -> Self {
        let (merging, reading) = (Turns::new(MAX_MERGES), Turns::new(MAX_READS));
        let unsaved = Arc::new(UnsavedBytes::new(metrics.unsaved_bytes.clone()));
        let underlay = Box::new(underlay);
        Self { store, underlay, health, space, config, merging, reading, unsaved, metrics }
    }

    /// If a document was deleted or is blocked, returns the result of opening it.
    pub fn refused(&self, document: DocumentId) -> Option<Opened> {
        if self.store.is_deleted(document) {
            return Some(Opened { is_deleted: true, ..Opened::default() });
        }
        let is_blocked = self.store.is_blocked(document);
        is_blocked.then(|| Opened { is_blocked: true, ..Opened::default() })
    }

    /// Whether an operator has blocked a document.
    pub fn is_blocked(&self, document: DocumentId) -> bool {
        self.store.is_blocked(document)
    }

    /// Whether a document was deleted.
    pub fn is_deleted(&self, document: DocumentId) -> bool {
        self.store.is_deleted(document)
    }

    /// Reports that a document cannot be read, until the returned guard is dropped.
    pub fn unreadable(&self, error: &StorageError) -> Unreadable {
        self.health.unreadable_document(&error.to_string())
    }

    /// The limits on the size of a document.
    pub fn max(&self) -> MaxDocument {
        MaxDocument::of(&self.config.borrow())
    }

    /// What the documents are kept in.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The free space on the disks.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// Returns the id of this storage. Creates and stores one at the first start.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn storage_id(&self) -> Result<String, StorageError> {
        let stored = self.timed("load", self.store.load_storage_id()).await?;
        match stored.map(String::from_utf8) {
            Some(Ok(id)) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
            Some(_) => warn!("the stored storage id is not valid UTF-8; creating a new one"),
            None => {}
        }
        // Another relay may be creating one, too.
        let id = self.timed("put", self.store.create_storage_id(new_storage_id())).await?;
        info!(storage_id = id, "created a new storage");
        Ok(id)
    }

    /// Loads a document, with the served bundle's snapshot as its seed. Chunks that do not parse
    /// are moved to quarantine, unless others may have stored them. A seed with another history is refused and reported.
    ///
    /// # Errors
    /// Stored bytes cannot be read. An error never means that there is no such document.
    pub async fn open(&self, document: DocumentId) -> Result<Opened, StorageError> {
        if let Some(refused) = self.refused(document) {
            return Ok(refused);
        }
        let losses = self.store.losses();
        let loaded = self.timed("load", self.store.load_document(document)).await?;
        if loaded.is_deleted {
            // Another relay has done that just now.
            return Ok(Opened { is_deleted: true, ..Opened::default() });
        }
        let (stored, basis) =
            (loaded.chunks, Basis { losses, generation: Some(loaded.generation) });
        let seed = self.seed(document);
        if stored.is_empty() && seed.is_none() {
            return Ok(Opened { basis, ..Opened::default() });
        }
        let max = self.max();
        let assembling = tokio::task::spawn_blocking(move || {
            let began = thread_time();
            let unpacked = max.check_chunks(&stored)?;
            let mut assembled = assemble(document, stored, seed);
            (assembled.opened.unpacked, assembled.opened.basis) = (unpacked, basis);
            assembled.opened.took = thread_time().saturating_sub(began);
            Ok::<_, String>(assembled)
        });
        let assembled = assembling
            .await
            .map_err(|error| StorageError::Unavailable(Failure::new("load", document, error)))?;
        let Assembled { mut opened, broken, rescue, newer_seed, is_seed_unrelated } =
            match assembled {
                Ok(assembled) => assembled,
                Err(limit) => {
                    return Ok(Opened { too_large: Some(limit), ..Opened::default() });
                }
            };
        if !broken.is_empty() {
            self.quarantine_broken(&mut opened, document, broken, rescue).await?;
        }
        if is_seed_unrelated {
            self.report_unrelated(document);
        }
        if let Some(seed) = newer_seed {
            let storing = self.store.replace(&seed.key, seed.data.clone(), &[], basis);
            if let Err(error) = self.timed("put", storing).await {
                // The engine stores it instead.
                warn!(%document, "cannot store the served bundle's snapshot yet; retrying: \
                                  {error}");
                opened.unsaved_seed = Some(seed.clone());
            } else {
                opened.stored_heads.clone_from(&opened.heads);
            }
            opened.chunks.push((seed.key, seed.data.to_vec()));
        }
        Ok(opened)
    }

    /// Moves broken chunks to quarantine, after `rescue` was stored. In a shared store they stay.
    async fn quarantine_broken(
        &self,
        opened: &mut Opened,
        document: DocumentId,
        broken: Vec<(Key, String)>,
        rescue: Option<SeedSnapshot>,
    ) -> Result<(), StorageError> {
        if let Some(SeedSnapshot { key, data }) = rescue {
            let storing = self.store.replace(&key, data.clone(), &[], opened.basis);
            self.timed("put", storing).await?;
            opened.chunks.push((key, data.to_vec()));
        }
        let chunks = broken.len();
        if self.store.is_shared() {
            for (key, reason) in broken {
                self.metrics.broken_chunks.inc();
                error!(
                    %document, %key,
                    "a stored chunk cannot be used, and the rest of the document is served: \
                     {reason}; a newer relay may have written it, otherwise `tonk-relay fsck \
                     --repair` moves it to quarantine"
                );
            }
            return Ok(());
        }
        for (key, reason) in broken {
            self.metrics.broken_chunks.inc();
            info!(%document, %key, reason, "a stored chunk is broken; moving it to quarantine");
            if let Err(error) = self.timed("quarantine", self.store.quarantine(&key, &reason)).await
            {
                error!(%document, "cannot move the chunk; it stays where it is: {error}");
            }
        }
        warn!(
            %document, chunks,
            "stored chunks do not parse, or make the document unreadable; they were moved to \
             quarantine, and the rest of the document is served: see `tonk-relay quarantine list`"
        );
        Ok(())
    }

    /// Merges a document with the stored one, when it is the turn of `payer`. The result is durable
    /// when this returns; the caller must notify a live room of it. With `dry_run` nothing is
    /// stored.
    ///
    /// # Errors
    /// Storage cannot be read or written.
    pub async fn merge(
        &self,
        document: DocumentId,
        data: Bytes,
        source: MergeSource,
        payer: Payer,
        dry_run: bool,
    ) -> Result<Merged, StorageError> {
        if self.store.is_deleted(document) {
            return Ok(Merged::Deleted);
        }
        if source == MergeSource::Upload && self.store.is_blocked(document) {
            return Ok(Merged::Blocked);
        }
        let losses = self.store.losses();
        let loaded = self.timed("load", self.store.load_document(document)).await?;
        if loaded.is_deleted {
            return Ok(Merged::Deleted);
        }
        let (stored, basis) =
            (loaded.chunks, Basis { losses, generation: Some(loaded.generation) });
        let seed = match source {
            MergeSource::Operator => None,
            MergeSource::Upload => self.seed(document),
        };
        let max = (source == MergeSource::Upload).then(|| self.max());
        let compare = move || {
            if let Some(max) = max {
                let mut together = stored.clone();
                together.push((snapshot_key(document, &[]), data.to_vec()));
                if let Err(limit) = max.check_chunks(&together) {
                    error!(%document, "not merging a document of an upload: it would be too large: \
                                       {limit}");
                    return (Merged::TooLarge, None);
                }
            }
            compare(document, stored, seed, &data)
        };
        let compared = self.merging.run(payer, compare).await;
        let ((merged, addition), _) = compared
            .map_err(|error| StorageError::Unavailable(Failure::new("merge", document, error)))?;
        if merged == Merged::New && self.space.is_low() {
            return Ok(Merged::NoSpace);
        }
        if let Some(addition) = addition.filter(|_| !dry_run) {
            let storing = self.store.replace(&addition.key, addition.data, &[], basis);
            self.timed("put", storing).await?;
        }
        Ok(merged)
    }

    /// Returns what can be read of a document, and the reasons for what cannot, or nothing if it is
    /// not stored. With `with_bundle` the served bundle's snapshot is included. Changes nothing.
    ///
    /// # Errors
    /// Stored bytes cannot be read.
    pub async fn content(
        &self,
        document: DocumentId,
        with_bundle: bool,
    ) -> Result<Option<Content>, StorageError> {
        let stored = self.timed("load", self.store.load_document(document)).await?.chunks;
        let seed = if with_bundle { self.seed(document) } else { None };
        if stored.is_empty() && seed.is_none() {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || {
            let Assembled { mut opened, broken, .. } = assemble(document, stored, seed);
            Content { data: opened.doc.automerge().save(), broken }
        });
        read.await
            .map(Some)
            .map_err(|error| StorageError::Unavailable(Failure::new("load", document, error)))
    }

    /// The served bundle's snapshot of a document, unless the document was deleted.
    pub fn seed(&self, document: DocumentId) -> Option<Bytes> {
        if self.store.is_deleted(document) {
            return None;
        }
        self.underlay.snapshot(document)
    }

    /// Reports that the served bundle's snapshot shares no change with the stored document of its
    /// id.
    pub fn report_unrelated(&self, document: DocumentId) {
        self.metrics.unrelated_snapshots.inc();
        error!(
            %document,
            "the served bundle has a document with this id and another history; keeping the stored \
             document"
        );
    }

    /// Stores a chunk, and retries until that succeeds. The chunk is durable when this returns.
    pub async fn save(&self, key: &Key, data: Bytes) {
        let basis = || Basis { losses: self.store.losses(), generation: None };
        // Nothing is stored of a deleted document.
        while let Err(Outdated::Lost) = self.replace(key, data.clone(), &[], basis()).await {}
    }

    /// Stores a chunk, and retries until that succeeds; then deletes the chunks that it replaces.
    /// The chunk is durable when this returns.
    ///
    /// # Errors
    /// The `basis` is no longer true. Nothing was stored.
    pub async fn replace(
        &self,
        key: &Key,
        data: Bytes,
        replaced: &[Key],
        basis: Basis,
    ) -> Result<Put, Outdated> {
        let _unsaved = self.unsaved_bytes(data.len());
        let _queued = QueuedWrite::new(&self.metrics);
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut failing = None;
        let put = loop {
            let storing = self.store.replace(key, data.clone(), replaced, basis);
            let error = match self.timed("put", storing).await {
                Ok(put) => break put,
                Err(StorageError::Outdated(_)) => return Err(Outdated::Lost),
                Err(StorageError::Deleted(_)) => return Err(Outdated::Deleted),
                Err(error) => error,
            };
            self.metrics.retries.inc();
            let pause = backoff.pause();
            if failing.is_none() {
                error!(%key, "cannot store a change; keeping it in memory and retrying: {error}");
            }
            failing = Some(self.health.failing_write(&error.to_string()));
            tokio::time::sleep(pause).await;
        };
        if failing.is_some() {
            info!(%key, "the change is stored after retries");
        }
        Ok(put)
    }

    /// Deletes a chunk that something durable has replaced. A failure is logged; the chunk that
    /// remains is redundant.
    pub async fn remove(&self, key: &Key) {
        if let Err(error) = self.timed("delete", self.store.delete(key)).await {
            warn!("could not delete a superseded chunk: {error}");
        }
    }

    /// Counts bytes as unsaved until the returned guard is dropped.
    pub fn unsaved_bytes(&self, bytes: usize) -> Unsaved {
        self.unsaved.add(bytes)
    }

    /// The number of bytes that are not durable yet.
    pub fn unsaved(&self) -> u64 {
        self.unsaved.get()
    }

    /// Measures an operation of the store.
    async fn timed<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let start = Instant::now();
        let result = work.await;
        let seconds = start.elapsed().as_secs_f64();
        self.metrics.seconds.with_label_values(&[operation]).observe(seconds);
        let is_outdated =
            |error| matches!(error, &StorageError::Outdated(_) | &StorageError::Deleted(_));
        if result.as_ref().is_err_and(|error| !is_outdated(error)) {
            self.metrics.failures.with_label_values(&[operation]).inc();
        }
        result
    }
}

/// A random UUID, version 4 (RFC 9562), like those of automerge-repo.
fn new_storage_id() -> String {
    let mut bytes = *DocumentId::random().as_bytes();
    let [.., _, _, _, _, _, _, version, _, variant, _, _, _, _, _, _, _] = &mut bytes;
    *version = (*version & 0x0f) | 0x40;
    *variant = (*variant & 0x3f) | 0x80;
    let text = hex(&bytes);
    let part = |range| text.get::<std::ops::Range<usize>>(range).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0..8), part(8..12), part(12..16), part(16..20), part(20..32))
}

#[cfg(test)]
mod tests;
