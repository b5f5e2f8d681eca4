//! Merging the documents of uploaded bundles into storage, so that a client that boots from a slim
//! form finds every file by sync.
//!
//! A bundle is imported when it is uploaded, or when it is first fetched if it was already in the
//! store. The ETags of imported bundles are recorded in the storage folder ([`imported`]). An
//! import that was interrupted is therefore repeated, and so is every import after a restore
//! replaced the documents.

use super::{
    Bundle, BundleError, MaxInflated,
    disk_budget::{DiskBudget, OpenError, ReservedFile},
    store::BundleStore,
};
use crate::{
    base::{document_id::DocumentId, lock::lock, run_to_completion::RunToCompletion},
    document::merge::Merged,
    limits::turns::Payer,
    observe::metrics::BundleMetrics,
    storage::{
        Failure, StorageError,
        documents::{Documents, MergeSource},
    },
};
use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use std::{
    collections::HashMap,
    io::BufReader,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    task::{JoinError, JoinHandle},
};
use tracing::{info, warn};

/// Bundles that are being imported or wait for it. Each is a file on the local disk.
const MAX_WAITING: usize = 32;
/// Documents that are read and stored at a time: at most this many, and until they have this many
/// bytes.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 8 << 20;
/// How long an import that failed is not repeated. The bundle is served meanwhile.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// Failed imports that are remembered.
const MAX_FAILURES: usize = 1000;
/// Records of imported bundles that are read at the same time.
const MAX_READS: usize = 8;
/// Refused documents that a response lists.
const MAX_LISTED: usize = 100;

/// The result of importing a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// How many documents the bundle has.
    pub documents: usize,
    /// How many of them were not stored before.
    pub new: usize,
    /// How many had changes that the stored document lacked.
    pub newer: usize,
    /// How many were stored already.
    pub contained: usize,
    /// The first documents that were refused, with the reasons.
    pub refused: Vec<Refused>,
    /// Whether no document is left to be merged later.
    #[serde(skip)]
    is_complete: bool,
    /// The documents of the bundle.
    #[serde(skip)]
    ids: Vec<DocumentId>,
}

/// A document that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// The document.
    pub document: DocumentId,
    /// Why it was refused.
    pub reason: &'static str,
}

/// Why a bundle was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file in the store is not a bundle. It is kept there.
    #[error(transparent)]
    Broken(#[from] BundleError),
    /// The bundle cannot be read, or its documents cannot be stored, at the moment.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The relay is stopping.
    #[error(transparent)]
    Stopping(#[from] Stopping),
}

/// The relay is stopping, so no import begins or goes on.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the relay is stopping")]
pub struct Stopping;

impl Imported {
    fn count(&mut self, document: DocumentId, merged: &Merged) {
        let reason = match merged {
            Merged::New => return self.new += 1,
            Merged::Newer => return self.newer += 1,
            Merged::Contained => return self.contained += 1,
            Merged::Unrelated => "a document with this id and another history is stored",
            Merged::Deleted => "it was deleted",
            Merged::Blocked => "it is blocked",
            Merged::TooLarge => "it would be larger than a document may be",
            Merged::NoSpace => "less than storage.min_free is free",
            Merged::Refused(_) => "its changes would damage the document",
            Merged::Failed(_) => "the stored document cannot be read or written",
        };
        self.is_complete &= !matches!(merged, Merged::NoSpace | Merged::Failed(_));
        if self.refused.len() < MAX_LISTED {
            self.refused.push(Refused { document, reason });
        }
    }
}

/// Called for each document that an import changes in storage.
type OnChange = Box<dyn Fn(DocumentId) + Send + Sync>;

/// Imports bundles, one at a time.
pub struct Importer {
    documents: Arc<Documents>,
    on_change: OnChange,
    store: Arc<dyn BundleStore>,
    receiving: Arc<DiskBudget>,
    permits: Arc<Semaphore>,
    /// Held by the import that is running.
    running: Mutex<()>,
    /// Imports that run or wait for their turn.
    unfinished: RunToCompletion,
    reads: Semaphore,
    failed: std::sync::Mutex<HashMap<DocumentId, Failed>>,
    metrics: BundleMetrics,
}

/// An import that failed recently.
#[derive(Clone, Debug)]
struct Failed {
    etag: String,
    at: Instant,
    problem: Problem,
}

/// Why documents of a bundle are not in storage.
#[derive(Clone, Debug)]
pub enum Problem {
    /// It is not a valid bundle, for this reason.
    Broken(String),
    /// Its documents cannot be stored at the moment, for this reason.
    Failed(String),
    /// Some of its documents cannot be stored at the moment.
    Partly,
}

/// Whether a bundle was imported.
#[derive(Clone, Debug)]
pub enum ImportState {
    /// Its documents were merged into storage.
    Imported,
    /// It has not been imported yet.
    New,
    /// Its import failed recently.
    Failed(Problem),
}

/// A permit for one import.
pub struct ImportPermit {
    _permit: OwnedSemaphorePermit,
    /// The principal whose turn is used.
    payer: Payer,
}

impl Importer {
    /// Creates an importer from `store` into `documents`. It calls `on_change` for each document that it changes in storage.
    pub fn new(
        documents: Arc<Documents>,
        on_change: impl Fn(DocumentId) + Send + Sync + 'static,
        store: Arc<dyn BundleStore>,
        receiving: Arc<DiskBudget>,
        metrics: BundleMetrics,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(MAX_WAITING));
        let (running, reads) = (Mutex::new(()), Semaphore::new(MAX_READS));
        let failed = std::sync::Mutex::default();
        Self {
            documents,
            on_change: Box::new(on_change),
            store,
            receiving,
            permits,
            running,
            unfinished: RunToCompletion::default(),
            reads,
            failed,
            metrics,
        }
    }

    /// Stops importing. Returns when the imports that have begun have ended.
    pub async fn stop(&self) {
        self.permits.close();
        self.unfinished.finish().await;
    }

    /// Waits for a permit for an import that `payer` has caused.
    ///
    /// # Errors
    /// The relay is stopping.
    pub async fn permit(&self, payer: Payer) -> Result<ImportPermit, Stopping> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| Stopping)?;
        Ok(ImportPermit { _permit: permit, payer })
    }

    /// Imports `file`, an upload that was stored with this ETag. The import continues even if the
    /// returned handle is dropped.
    pub fn import(
        self: &Arc<Self>,
        permit: ImportPermit,
        id: DocumentId,
        etag: String,
        file: ReservedFile,
        max_inflated: MaxInflated,
    ) -> JoinHandle<Result<Imported, ImportError>> {
        let importer = self.clone();
        self.unfinished.spawn(async move {
            let _running = importer.running.lock().await;
            importer.import_file(&permit, id, etag, file, max_inflated).await
        })
    }

    /// Imports the stored bundle of this id, unless it was imported meanwhile. The import continues
    /// even if the returned handle is dropped. The result is an error only if the store fails;
    /// [`Self::state`] returns how the import ended.
    pub fn import_stored(
        self: &Arc<Self>,
        permit: ImportPermit,
        id: DocumentId,
        max_inflated: MaxInflated,
    ) -> JoinHandle<Result<(), OpenError>> {
        let importer = self.clone();
        self.unfinished.spawn(async move {
            let _running = importer.running.lock().await;
            let Some(stored) = importer.store.get(id).await? else { return Ok(()) };
            let etag = stored.etag.clone();
            if !matches!(importer.state(id, &etag).await?, ImportState::New) {
                return Ok(());
            }
            let file = importer.receiving.open(stored).await?;
            // A failure is remembered in `failed`.
            let _ = importer.import_file(&permit, id, etag, file, max_inflated).await;
            Ok(())
        })
    }

    /// Returns whether the bundle of this id and ETag was imported.
    ///
    /// # Errors
    /// The record cannot be read.
    pub async fn state(&self, id: DocumentId, etag: &str) -> Result<ImportState, StorageError> {
        if let Some(failed) = self.failed().get(&id)
            && failed.etag == etag
            && failed.at.elapsed() < RETRY_AFTER
        {
            return Ok(ImportState::Failed(failed.problem.clone()));
        }
        let _read = self.reads.acquire().await;
        match self.documents.store().imported(id, etag.to_owned()).await? {
            Some(_) => Ok(ImportState::Imported),
            None => Ok(ImportState::New),
        }
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<DocumentId, Failed>> {
        lock(&self.failed)
    }

    async fn import_file(
        &self,
        permit: &ImportPermit,
        id: DocumentId,
        etag: String,
        file: ReservedFile,
        max_inflated: MaxInflated,
    ) -> Result<Imported, ImportError> {
        let result = self.merge_all(permit, id, file, max_inflated, false).await;
        let (label, problem) = match &result {
            Ok(imported) if imported.is_complete => ("imported", None),
            Ok(_) => ("partly", Some(Problem::Partly)),
            Err(ImportError::Broken(error)) => ("broken", Some(Problem::Broken(error.to_string()))),
            Err(error) => ("failed", Some(Problem::Failed(error.to_string()))),
        };
        self.metrics.imports.with_label_values(&[label]).inc();
        match &result {
            Ok(Imported { documents, new, newer, contained, refused, .. }) => info!(
                bundle = %id, documents, new, newer, contained, refused = refused.len(),
                "imported the documents of a bundle"
            ),
            Err(error) => warn!(bundle = %id, "cannot import the documents of a bundle: {error}"),
        }
        let ids = result.as_ref().map_or_else(|_| Vec::new(), |imported| imported.ids.clone());
        if let Some(problem) = problem {
            let mut failed = self.failed();
            failed.retain(|_, failed| failed.at.elapsed() < RETRY_AFTER);
            if failed.len() < MAX_FAILURES {
                failed.insert(id, Failed { etag, at: Instant::now(), problem });
            }
        } else {
            self.failed().remove(&id);
            self.documents.store().record_import(id, etag, ids).await?;
        }
        result
    }

    /// Checks that all documents of an upload may be merged into storage, without storing anything.
    /// If one may not, neither the bundle nor any of its documents is stored.
    ///
    /// # Errors
    /// A document may not be merged, or cannot be read.
    pub async fn check(
        &self,
        permit: &ImportPermit,
        id: DocumentId,
        file: ReservedFile,
        max_inflated: MaxInflated,
    ) -> Result<(), ImportError> {
        self.merge_all(permit, id, file, max_inflated, true).await.map(drop)
    }

    async fn merge_all(
        &self,
        permit: &ImportPermit,
        id: DocumentId,
        file: ReservedFile,
        max_inflated: MaxInflated,
        dry_run: bool,
    ) -> Result<Imported, ImportError> {
        let opening =
            tokio::task::spawn_blocking(move || Bundle::open(BufReader::new(file), max_inflated));
        let mut bundle = opening.await.map_err(panicked(id))??;
        let ids = bundle.documents();
        let mut left = ids.clone().into_iter();
        let mut imported =
            Imported { documents: ids.len(), is_complete: true, ids, ..Imported::default() };
        loop {
            let reading = tokio::task::spawn_blocking(move || {
                let read = read_batch(&mut bundle, &mut left);
                (bundle, left, read)
            });
            let read;
            (bundle, left, read) = reading.await.map_err(panicked(id))?;
            let read = read?;
            if read.is_empty() {
                return Ok(imported);
            }
            if self.permits.is_closed() {
                return Err(Stopping.into());
            }
            let (all, mut failures) = (read.len(), 0);
            let merging = read.into_iter().map(|(document, data)| async move {
                let (source, payer) = (MergeSource::Upload, permit.payer.clone());
                (document, self.documents.merge(document, data, source, payer, dry_run).await)
            });
            let mut merging = futures::stream::iter(merging).buffer_unordered(BATCH);
            while let Some((document, merged)) = merging.next().await {
                let merged = match merged {
                    Ok(merged) => merged,
                    // One document that cannot be read does not stop the import. If all of a batch
                    // fail, the disk has failed.
                    Err(error) => {
                        failures += 1;
                        if failures == all {
                            return Err(error.into());
                        }
                        Merged::Failed(error.to_string())
                    }
                };
                match &merged {
                    Merged::Refused(reason) if dry_run => {
                        let reason = reason.clone();
                        return Err(BundleError::Unfit { document, reason }.into());
                    }
                    Merged::New | Merged::Newer if !dry_run => (self.on_change)(document),
                    _ => {}
                }
                imported.count(document, &merged);
            }
        }
    }
}

/// The error of a task that was to import a bundle.
fn panicked(id: DocumentId) -> impl FnOnce(JoinError) -> StorageError {
    move |panic| StorageError::Unavailable(Failure::new("import the bundle", id, panic))
}

/// Reads the next batch of documents.
fn read_batch(
    bundle: &mut Bundle<BufReader<ReservedFile>>,
    left: &mut impl Iterator<Item = DocumentId>,
) -> Result<Vec<(DocumentId, Bytes)>, BundleError> {
    let (mut read, mut bytes) = (Vec::new(), 0);
    while read.len() < BATCH && bytes < BATCH_BYTES {
        let Some(document) = left.next() else { break };
        let data = bundle.document(document)?;
        bytes += data.len();
        read.push((document, data));
    }
    Ok(read)
}
