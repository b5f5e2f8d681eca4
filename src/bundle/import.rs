//! Uploaded bundles become documents: what a bundle holds is merged with what is stored, so that a client which boots
//! from its slim form finds every file by sync.
//!
//! A bundle is imported when it is uploaded, or when it is first fetched if it was in the store before. Which one was,
//! by its ETag, is noted in a small file of `.imported` beside the documents: an import that was cut off is made again,
//! and so is one whose documents were replaced by another storage.

use super::{
    Bundle, BundleError, MaxInflated,
    disk_budget::{DiskBudget, ReservedFile},
    store::BundleStore,
};
use crate::{
    base::{document_id::DocumentId, lock::lock, run_to_completion::RunToCompletion},
    document::compare::Merged,
    limits::turns::Payer,
    observe::metrics::BundleMetrics,
    storage::{
        documents::{Documents, MergeSource},
        local::imported,
    },
};
use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use std::{
    collections::HashMap,
    io::{self, BufReader},
    path::PathBuf,
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
};
use tracing::{info, warn};

/// Bundles that are imported or wait for it; each is a file on the local disk meanwhile.
const WAITING: usize = 32;
/// Documents that are read at a time, or fewer of this size together; they become durable together.
const TOGETHER: usize = 64;
const TOGETHER_BYTES: usize = 8 << 20;
/// An import that failed is not made again for so long, and so many are remembered; it is served without meanwhile.
const AGAIN: Duration = Duration::from_secs(60);
const REMEMBERED: usize = 1000;
/// Reads of notes at a time.
const READS: usize = 8;
/// Refusals that an answer names.
const NAMED: usize = 100;

/// What became of the documents of a bundle.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// How many the bundle has.
    pub documents: usize,
    /// Those that were not stored before.
    pub new: usize,
    /// Those that had changes which the stored ones lacked.
    pub newer: usize,
    /// Those that were stored already.
    pub contained: usize,
    /// Those that were not taken, and why; the first of them.
    pub refused: Vec<Refused>,
    /// All of the bundle was looked at, and nothing of it is left for later.
    #[serde(skip)]
    is_whole: bool,
    /// Its documents.
    #[serde(skip)]
    ids: Vec<DocumentId>,
}

/// A document that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Its id.
    pub document: DocumentId,
    /// Why.
    pub reason: &'static str,
}

/// Why a bundle was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The bundle in the store is none. It stays there.
    #[error(transparent)]
    Broken(#[from] BundleError),
    /// It cannot be read, or its documents cannot be stored, for now.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Imported {
    fn count(&mut self, document: DocumentId, merged: &Merged) {
        let reason = match merged {
            Merged::New => return self.new += 1,
            Merged::Newer => return self.newer += 1,
            Merged::Contained => return self.contained += 1,
            Merged::Unrelated => "a document of this id with another history is here",
            Merged::Deleted => "it was deleted here",
            Merged::Blocked => "it is blocked here",
            Merged::TooLarge => "it would be larger than a document may be",
            Merged::NoSpace => "there is no room for new documents",
            Merged::Refused(_) => "its changes may not become part of the document",
            Merged::Failed(_) => "what is stored of it cannot be read or written",
        };
        self.is_whole &= !matches!(merged, Merged::NoSpace | Merged::Failed(_));
        if self.refused.len() < NAMED {
            self.refused.push(Refused { document, reason });
        }
    }
}

type OnChange = Box<dyn Fn(DocumentId) + Send + Sync>;

/// Imports bundles, one at a time.
pub struct Importer {
    documents: Arc<Documents>,
    on_change: OnChange,
    store: Arc<dyn BundleStore>,
    receiving: Arc<DiskBudget>,
    /// The folder of documents.
    root: PathBuf,
    places: Arc<Semaphore>,
    one: Mutex<()>,
    unfinished: RunToCompletion,
    reads: Semaphore,
    failed: std::sync::Mutex<HashMap<DocumentId, Failed>>,
    metrics: BundleMetrics,
}

/// An import that failed of late.
#[derive(Clone, Debug)]
struct Failed {
    etag: String,
    at: Instant,
    problem: Problem,
}

/// Why a bundle's documents are not all here.
#[derive(Clone, Debug)]
pub enum Problem {
    /// It is no bundle, for that reason. What is in the store stays.
    Broken(String),
    /// Its documents cannot be stored for now, for that reason.
    Failed(String),
    /// Some of them cannot.
    Partly,
}

/// How a bundle in the store stands.
#[derive(Clone, Debug)]
pub enum Standing {
    /// Its documents are merged with what is stored.
    Imported,
    /// It is to be imported.
    New,
    /// That failed of late.
    Failed(Problem),
}

/// A place among the bundles that wait to be imported.
pub struct Place {
    _permit: OwnedSemaphorePermit,
    /// Who takes places for the import.
    payer: Payer,
}

impl Importer {
    /// An importer of what is in `store` into `documents`, which are in the folder `root`. It calls
    /// `on_change` for each document that it changes in storage.
    pub fn new(
        documents: Arc<Documents>,
        on_change: impl Fn(DocumentId) + Send + Sync + 'static,
        store: Arc<dyn BundleStore>,
        receiving: Arc<DiskBudget>,
        root: PathBuf,
        metrics: BundleMetrics,
    ) -> Self {
        let places = Arc::new(Semaphore::new(WAITING));
        let (one, reads) = (Mutex::new(()), Semaphore::new(READS));
        let failed = std::sync::Mutex::default();
        Self {
            documents,
            on_change: Box::new(on_change),
            store,
            receiving,
            root,
            places,
            one,
            unfinished: RunToCompletion::default(),
            reads,
            failed,
            metrics,
        }
    }

    /// Import nothing more; returns when what was going on has ended.
    pub async fn stop(&self) {
        self.places.close();
        self.unfinished.finish().await;
    }

    /// Wait for a place for an import that `payer` has caused.
    ///
    /// # Errors
    /// The relay is stopping.
    pub async fn place(&self, payer: Payer) -> io::Result<Place> {
        let permit = self.places.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok(Place { _permit: permit, payer })
    }

    /// Import `file`, an upload that is in the store with that ETag. It goes on when nobody waits for it any more.
    pub fn import(
        self: &Arc<Self>,
        place: Place,
        id: DocumentId,
        etag: String,
        file: ReservedFile,
        max_inflated: MaxInflated,
    ) -> JoinHandle<Result<Imported, ImportError>> {
        let importer = self.clone();
        self.unfinished.spawn(async move {
            let _one = importer.one.lock().await;
            importer.import_file(&place, id, etag, file, max_inflated).await
        })
    }

    /// Import what is in the store with that id, unless it is imported by then. It goes on when nobody waits for it
    /// any more. Only what the store does wrong is an error; [`Self::standing`] says how it ended.
    pub fn import_stored(
        self: &Arc<Self>,
        place: Place,
        id: DocumentId,
        max_inflated: MaxInflated,
    ) -> JoinHandle<io::Result<()>> {
        let importer = self.clone();
        self.unfinished.spawn(async move {
            let _one = importer.one.lock().await;
            let Some(stored) = importer.store.get(id).await? else { return Ok(()) };
            let etag = stored.etag.clone();
            if !matches!(importer.standing(id, &etag).await?, Standing::New) {
                return Ok(());
            }
            let file = importer.receiving.open(stored).await?;
            // What goes wrong is remembered.
            let _ = importer.import_file(&place, id, etag, file, max_inflated).await;
            Ok(())
        })
    }

    /// How the bundle of that id and ETag stands.
    ///
    /// # Errors
    /// That cannot be read.
    pub async fn standing(&self, id: DocumentId, etag: &str) -> io::Result<Standing> {
        if let Some(failed) = self.failed().get(&id)
            && failed.etag == etag
            && failed.at.elapsed() < AGAIN
        {
            return Ok(Standing::Failed(failed.problem.clone()));
        }
        let _read = self.reads.acquire().await;
        let (root, etag) = (self.root.clone(), etag.to_owned());
        let reading = tokio::task::spawn_blocking(move || imported::contains(&root, id, &etag));
        match reading.await?.map_err(io::Error::other)? {
            true => Ok(Standing::Imported),
            false => Ok(Standing::New),
        }
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<DocumentId, Failed>> {
        lock(&self.failed)
    }

    async fn import_file(
        &self,
        place: &Place,
        id: DocumentId,
        etag: String,
        file: ReservedFile,
        max_inflated: MaxInflated,
    ) -> Result<Imported, ImportError> {
        let result = self.merge_all(place, file, max_inflated, false).await;
        let (label, problem) = match &result {
            Ok(imported) if imported.is_whole => ("imported", None),
            Ok(_) => ("partly", Some(Problem::Partly)),
            Err(ImportError::Io(error)) => ("failed", Some(Problem::Failed(error.to_string()))),
            Err(ImportError::Broken(error)) => ("broken", Some(Problem::Broken(error.to_string()))),
        };
        self.metrics.imports.with_label_values(&[label]).inc();
        match &result {
            Ok(Imported { documents, new, newer, contained, refused, .. }) => info!(
                bundle = %id, documents, new, newer, contained, refused = refused.len(),
                "imported the documents of a bundle"
            ),
            Err(error) => warn!(bundle = %id, "a bundle's documents are not imported: {error}"),
        }
        let ids = result.as_ref().map_or_else(|_| Vec::new(), |imported| imported.ids.clone());
        if let Some(problem) = problem {
            let mut failed = self.failed();
            failed.retain(|_, failed| failed.at.elapsed() < AGAIN);
            if failed.len() < REMEMBERED {
                failed.insert(id, Failed { etag, at: Instant::now(), problem });
            }
        } else {
            self.failed().remove(&id);
            let root = self.root.clone();
            let writing =
                tokio::task::spawn_blocking(move || imported::add(&root, id, &etag, &ids));
            writing.await.map_err(io::Error::from)?.map_err(io::Error::other)?;
        }
        result
    }

    /// Whether all documents of an upload may become part of what is stored, which stays as it is. Of a bundle that is
    /// refused nothing is stored, not even the bundle.
    ///
    /// # Errors
    /// One of them may not, or cannot be read.
    pub async fn check(
        &self,
        place: &Place,
        file: ReservedFile,
        max_inflated: MaxInflated,
    ) -> Result<(), ImportError> {
        self.merge_all(place, file, max_inflated, true).await.map(drop)
    }

    async fn merge_all(
        &self,
        place: &Place,
        file: ReservedFile,
        max_inflated: MaxInflated,
        dry_run: bool,
    ) -> Result<Imported, ImportError> {
        let opening =
            tokio::task::spawn_blocking(move || Bundle::open(BufReader::new(file), max_inflated));
        let mut bundle = opening.await.map_err(io::Error::from)??;
        let ids = bundle.documents();
        let mut left = ids.clone().into_iter();
        let mut imported =
            Imported { documents: ids.len(), is_whole: true, ids, ..Imported::default() };
        loop {
            let reading = tokio::task::spawn_blocking(move || {
                let read = read_some(&mut bundle, &mut left);
                (bundle, left, read)
            });
            let read;
            (bundle, left, read) = reading.await.map_err(io::Error::from)?;
            let read = read?;
            if read.is_empty() {
                return Ok(imported);
            }
            if self.places.is_closed() {
                return Err(io::Error::other("the relay is stopping").into());
            }
            let (all, mut failures) = (read.len(), 0);
            let merging = read.into_iter().map(|(document, data)| async move {
                let (source, payer) = (MergeSource::Upload, place.payer.clone());
                (document, self.documents.merge(document, data, source, payer, dry_run).await)
            });
            let mut merging = futures::stream::iter(merging).buffer_unordered(TOGETHER);
            while let Some((document, merged)) = merging.next().await {
                let merged = match merged {
                    Ok(merged) => merged,
                    // One that cannot be read keeps none of the others away; when it is all of them, it is the disk.
                    Err(error) => {
                        failures += 1;
                        if failures == all {
                            return Err(io::Error::other(error).into());
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

/// The next documents of a bundle, as many as fit together.
fn read_some(
    bundle: &mut Bundle<BufReader<ReservedFile>>,
    left: &mut impl Iterator<Item = DocumentId>,
) -> Result<Vec<(DocumentId, Bytes)>, BundleError> {
    let (mut read, mut bytes) = (Vec::new(), 0);
    while read.len() < TOGETHER && bytes < TOGETHER_BYTES {
        let Some(document) = left.next() else { break };
        let data = bundle.document(document)?;
        bytes += data.len();
        read.push((document, data));
    }
    Ok(read)
}
