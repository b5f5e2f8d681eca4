//! Documents above a [`ChunkStore`]: loads them with the served bundle's snapshot as their seed,
//! checks every chunk, and repeats writes until they are durable.

use super::{ChunkStore, StorageError};
use crate::{
    base::{backoff::Backoff, document_id::DocumentId, hex::hex},
    config::Config,
    document::{
        chunk::{ChunkKind, Key, StoredChunk, snapshot_key},
        compare::{self, Addition, Ancestry, Merged},
        gate::{Document, Refusal, Rules},
        load::{self, Loaded},
        size::MaxDocument,
        unpacked::Unpacked,
    },
    limits::turns::{Payer, Turns},
    observe::{
        health::{Health, Unreadable},
        metrics::StorageMetrics,
        usage::thread_time,
    },
    storage::{Failure, local::space::Space, underlay::Underlay},
};
use automerge::ChangeHash;
use bytes::Bytes;
use prometheus::IntGauge;
use sha2::{Digest, Sha256};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tracing::{error, info, warn};

/// Pause before a failed operation is tried again: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// Documents that are compared with what is stored at a time: each is in memory as a whole, twice.
const COMPARING: usize = 2;
/// Up to so many changes a document's change hashes are listed in [`Opened`].
const FEW: u64 = 64;

/// All documents of the relay.
pub struct Documents {
    store: Arc<dyn ChunkStore>,
    underlay: Box<dyn Underlay>,
    health: Arc<Health>,
    space: Arc<Space>,
    config: watch::Receiver<Arc<Config>>,
    comparing: Turns,
    unsaved: Arc<UnsavedBytes>,
    metrics: StorageMetrics,
}

/// A document as an engine starts from it.
#[derive(Default)]
pub struct Opened {
    /// The document.
    pub doc: Document,
    /// The chunks that parse, the bundle's snapshot among them where it adds something.
    pub chunks: Vec<StoredChunk>,
    /// The bundle's snapshot where storage has nothing: it must be stored before the first change that builds on
    /// it is.
    pub base: Option<SeedSnapshot>,
    /// The document's heads; none if there is no such document.
    pub heads: Vec<ChangeHash>,
    /// The hashes of its changes where they are few.
    pub changes: HashSet<ChangeHash>,
    /// What its chunks unpack to.
    pub unpacked: Unpacked,
    /// It was deleted: it is to stay unknown, whoever brings it.
    pub is_deleted: bool,
    /// An operator keeps it from everybody.
    pub is_blocked: bool,
    /// It is larger than a document may be, and what limit says so: nothing of it is in memory.
    pub too_large: Option<String>,
    /// Processor time that making a document of its chunks took.
    pub took: Duration,
}

/// A snapshot that is not in storage yet.
#[derive(Clone, Debug)]
pub struct SeedSnapshot {
    /// Where it belongs.
    pub key: Key,
    /// The snapshot.
    pub data: Bytes,
}

/// Where a document comes from that is merged with what is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeSource {
    /// The operator, by an import or a restore.
    Operator,
    /// An uploaded bundle: what the served bundle has of that id counts as stored, too.
    Upload,
}

/// What can be read of a document.
pub struct Content {
    /// An automerge save of it, with the changes that wait for others.
    pub data: Vec<u8>,
    /// Chunks that are not in it, for they do not parse or fit, and why.
    pub broken: Vec<(Key, String)>,
}

impl Documents {
    /// Documents in `store`, above those of the served bundle.
    pub fn new(
        store: Arc<dyn ChunkStore>,
        underlay: impl Underlay,
        health: Arc<Health>,
        space: Arc<Space>,
        config: watch::Receiver<Arc<Config>>,
        metrics: StorageMetrics,
    ) -> Self {
        let comparing = Turns::new(COMPARING);
        let shown = metrics.unsaved_bytes.clone();
        let unsaved = Arc::new(UnsavedBytes { bytes: AtomicU64::new(0), shown });
        let underlay = Box::new(underlay);
        Self { store, underlay, health, space, config, comparing, unsaved, metrics }
    }

    /// What stands for a document that is not taken; none if it may be.
    pub fn refused(&self, document: DocumentId) -> Option<Opened> {
        if self.store.is_deleted(document) {
            return Some(Opened { is_deleted: true, ..Opened::default() });
        }
        let is_blocked = self.store.is_blocked(document);
        is_blocked.then(|| Opened { is_blocked: true, ..Opened::default() })
    }

    /// Whether an operator keeps a document from everybody.
    pub fn is_blocked(&self, document: DocumentId) -> bool {
        self.store.is_blocked(document)
    }

    /// Whether a document was deleted.
    pub fn is_deleted(&self, document: DocumentId) -> bool {
        self.store.is_deleted(document)
    }

    /// A document cannot be read, for as long as what this returns is kept.
    pub fn unreadable(&self, error: &StorageError) -> Unreadable {
        self.health.unreadable_document(&error.to_string())
    }

    /// How large a document may be.
    pub fn max(&self) -> MaxDocument {
        MaxDocument::of(&self.config.borrow())
    }

    /// How much room there is.
    pub fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// The id of this storage; made and stored at the first start.
    ///
    /// # Errors
    /// The store cannot be read or written.
    pub async fn storage_id(&self) -> Result<String, StorageError> {
        let stored = self.timed("load", self.store.load_storage_id()).await?;
        match stored.map(String::from_utf8) {
            Some(Ok(id)) if !id.trim().is_empty() => return Ok(id.trim().to_owned()),
            Some(_) => warn!("the storage id is not a text: a new one is made"),
            None => {}
        }
        let id = new_storage_id();
        self.timed("put", self.store.put(&Key::StorageId, Bytes::from(id.clone()))).await?;
        info!(storage_id = id, "a new storage");
        Ok(id)
    }

    /// Load a document, with the served bundle's snapshot as its seed. Chunks that do not parse are
    /// moved to quarantine; a snapshot of unrelated history is refused and reported.
    ///
    /// # Errors
    /// Bytes that are there cannot be read. That is not "no document".
    pub async fn open(&self, document: DocumentId) -> Result<Opened, StorageError> {
        if let Some(refused) = self.refused(document) {
            return Ok(refused);
        }
        let stored = self.timed("load", self.store.load_document(document)).await?;
        let seed = self.seed(document);
        if stored.is_empty() && seed.is_none() {
            return Ok(Opened::default());
        }
        let max = self.max();
        let checked = tokio::task::spawn_blocking(move || {
            let began = thread_time();
            let unpacked = max.check_chunks(&stored)?;
            let mut checked = check(document, stored, seed);
            checked.opened.unpacked = unpacked;
            checked.opened.took = thread_time().saturating_sub(began);
            Ok::<_, String>(checked)
        });
        let checked = checked
            .await
            .map_err(|error| StorageError::Unavailable(Failure::new("load", document, error)))?;
        let Checked { mut opened, broken, rescue, newer, unrelated } = match checked {
            Ok(checked) => checked,
            Err(limit) => {
                return Ok(Opened { too_large: Some(limit), ..Opened::default() });
            }
        };
        if !broken.is_empty() {
            self.quarantine_broken(&mut opened, document, broken, rescue).await?;
        }
        if unrelated {
            self.report_unrelated(document);
        }
        if let Some(base) = newer {
            if let Err(error) =
                self.timed("put", self.store.put(&base.key, base.data.clone())).await
            {
                // It waits in memory, as for a document that is the bundle's alone.
                warn!(%document, "the served bundle's snapshot cannot be stored yet: {error}");
                opened.base = Some(base.clone());
            }
            opened.chunks.push((base.key, base.data.to_vec()));
        }
        Ok(opened)
    }

    /// Move chunks that are not in a document to quarantine, once what is good of them is stored in another.
    async fn quarantine_broken(
        &self,
        opened: &mut Opened,
        document: DocumentId,
        broken: Vec<(Key, String)>,
        rescue: Option<SeedSnapshot>,
    ) -> Result<(), StorageError> {
        if let Some(SeedSnapshot { key, data }) = rescue {
            self.timed("put", self.store.put(&key, data.clone())).await?;
            opened.chunks.push((key, data.to_vec()));
        }
        let chunks = broken.len();
        for (key, reason) in broken {
            self.metrics.broken_chunks.inc();
            info!(%document, %key, reason, "moving a stored chunk to quarantine");
            if let Err(error) = self.timed("quarantine", self.store.quarantine(&key, &reason)).await
            {
                error!(%document, "the chunk stays where it is: {error}");
            }
        }
        warn!(
            %document, chunks,
            "stored chunks do not parse, or the document cannot be read with them; they are in quarantine, and the rest \
             of the document is served: see `tonk-relay quarantine list`"
        );
        Ok(())
    }

    /// Merge a document that an import, a restore or an upload brings with what is stored of it,
    /// when it is the turn of `payer`. It is durable when this returns; a live room has to be told.
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
        let stored = self.timed("load", self.store.load_document(document)).await?;
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
                    error!(%document, "an upload's document is not merged: it would be too large: {limit}");
                    return (Merged::TooLarge, None);
                }
            }
            compare(document, stored, seed, &data)
        };
        let compared = self.comparing.run(payer, compare).await;
        let ((merged, add), _) = compared
            .map_err(|error| StorageError::Unavailable(Failure::new("merge", document, error)))?;
        if merged == Merged::New && self.space.is_low() {
            return Ok(Merged::NoSpace);
        }
        if let Some(add) = add.filter(|_| !dry_run) {
            self.timed("put", self.store.put(&add.key, add.data)).await?;
        }
        Ok(merged)
    }

    /// All that can be read of a document, and what cannot; nothing if there is nothing. `with_bundle`: also what the
    /// served bundle has of it. Changes nothing in storage.
    ///
    /// # Errors
    /// Bytes that are there cannot be read.
    pub async fn content(
        &self,
        document: DocumentId,
        with_bundle: bool,
    ) -> Result<Option<Content>, StorageError> {
        let stored = self.timed("load", self.store.load_document(document)).await?;
        let seed = if with_bundle { self.seed(document) } else { None };
        if stored.is_empty() && seed.is_none() {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || {
            let Checked { mut opened, broken, .. } = check(document, stored, seed);
            Content { data: opened.doc.automerge().save(), broken }
        });
        read.await
            .map(Some)
            .map_err(|error| StorageError::Unavailable(Failure::new("load", document, error)))
    }

    /// The served bundle's snapshot of a document.
    pub fn seed(&self, document: DocumentId) -> Option<Bytes> {
        if self.store.is_deleted(document) {
            return None;
        }
        self.underlay.snapshot(document)
    }

    /// Say that a bundle's snapshot shares no change with the stored document of its id.
    pub fn report_unrelated(&self, document: DocumentId) {
        self.metrics.unrelated_snapshots.inc();
        error!(
            %document,
            "the served bundle has a document of this id with another history; the stored one stays as it is"
        );
    }

    /// Store a chunk, however often it takes; returns when it is durable.
    pub async fn save(&self, key: &Key, data: Bytes) {
        let _unsaved = self.unsaved_bytes(data.len());
        let _queued = Queued::new(&self.metrics);
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut failing = None;
        while let Err(error) = self.timed("put", self.store.put(key, data.clone())).await {
            self.metrics.retries.inc();
            let pause = backoff.pause();
            if failing.is_none() {
                error!(%key, "a change cannot be stored; it is kept in memory and tried again: {error}");
            }
            failing = Some(self.health.failing_write(&error.to_string()));
            tokio::time::sleep(pause).await;
        }
        if failing.is_some() {
            info!(%key, "the change is stored now");
        }
    }

    /// Delete a chunk that something durable replaced. A failure leaves a chunk too many: no harm.
    pub async fn remove(&self, key: &Key) {
        if let Err(error) = self.timed("delete", self.store.delete(key)).await {
            warn!("a chunk that is not needed any more stays: {error}");
        }
    }

    /// Count bytes as unsaved for as long as what this returns is kept.
    pub fn unsaved_bytes(&self, bytes: usize) -> Unsaved {
        let bytes = bytes as u64;
        self.unsaved.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.unsaved.shown.add(bytes.cast_signed());
        Unsaved { bytes, total: self.unsaved.clone() }
    }

    /// Bytes that wait to be durable.
    pub fn unsaved(&self) -> u64 {
        self.unsaved.bytes.load(Ordering::Relaxed)
    }

    async fn timed<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let start = Instant::now();
        let result = work.await;
        let seconds = start.elapsed().as_secs_f64();
        self.metrics.seconds.with_label_values(&[operation]).observe(seconds);
        if result.is_err() {
            self.metrics.failures.with_label_values(&[operation]).inc();
        }
        result
    }
}

/// All bytes that wait to be durable; the metric follows.
struct UnsavedBytes {
    bytes: AtomicU64,
    shown: IntGauge,
}

/// Bytes counted as unsaved for as long as this lives.
pub struct Unsaved {
    bytes: u64,
    total: Arc<UnsavedBytes>,
}

impl Drop for Unsaved {
    fn drop(&mut self) {
        self.total.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.total.shown.sub(self.bytes.cast_signed());
    }
}

/// A write that is not durable yet.
struct Queued<'a>(&'a StorageMetrics);

impl<'a> Queued<'a> {
    fn new(metrics: &'a StorageMetrics) -> Self {
        metrics.queue.inc();
        Self(metrics)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queue.dec();
    }
}

/// A document as its chunks make it, with its seed.
pub struct Checked {
    /// The document, of all chunks that are good.
    pub opened: Opened,
    /// Chunks that are not in it, and why.
    pub broken: Vec<(Key, String)>,
    /// What has to be stored before these may be moved away, for they have good changes too.
    pub rescue: Option<SeedSnapshot>,
    newer: Option<SeedSnapshot>,
    unrelated: bool,
}

/// Make a document of its chunks, with its seed. Takes processor time.
pub fn check(document: DocumentId, stored: Vec<StoredChunk>, seed: Option<Bytes>) -> Checked {
    let Loaded { mut doc, bad: broken, is_to_be_saved } = load::load(&stored);
    let mut chunks = stored;
    chunks.retain(|(key, _)| !broken.iter().any(|(bad, _)| bad == key));
    let rescue = is_to_be_saved.then(|| {
        let data = doc.automerge().save();
        let mut key = snapshot_key(document, doc.heads());
        if broken.iter().any(|(bad, _)| *bad == key) {
            let name = hex(&Sha256::digest(&data));
            key = Key::Chunk { document, kind: ChunkKind::Incremental, name };
        }
        SeedSnapshot { key, data: data.into() }
    });
    let (mut base, mut newer, mut unrelated) = (None, None, false);
    if let Some(data) = seed {
        match seed_from(document, &mut doc, data) {
            Seeding::Nothing => {}
            Seeding::All(add) => {
                chunks.push((add.key.clone(), add.data.to_vec()));
                base = Some(add);
            }
            Seeding::Newer(add) => newer = Some(add),
            Seeding::Unrelated => unrelated = true,
            Seeding::Refused(refusal) => {
                error!(%document, "the served bundle's changes {refusal}; the stored document stays as it is");
                if doc.is_damaged() {
                    doc = load::load(&chunks).doc;
                }
            }
        }
    }
    let changes = if doc.changes() <= FEW {
        doc.automerge().get_changes_meta(&[]).iter().map(|change| change.hash).collect()
    } else {
        HashSet::new()
    };
    let heads = doc.heads().to_vec();
    let opened = Opened { doc, heads, changes, chunks, base, ..Opened::default() };
    Checked { opened, broken, rescue, newer, unrelated }
}

/// What the served bundle's snapshot adds to a document, which has it then.
enum Seeding {
    Nothing,
    /// All of it: storage has nothing.
    All(SeedSnapshot),
    /// Something that the stored document lacks.
    Newer(SeedSnapshot),
    /// It is another document of the same id.
    Unrelated,
    Refused(Refusal),
}

fn seed_from(document: DocumentId, doc: &mut Document, data: Bytes) -> Seeding {
    let mut snapshot = match Document::read(&data, Rules::Admission) {
        Ok(snapshot) => snapshot,
        Err(refusal) => return Seeding::Refused(refusal),
    };
    let is_stored = !doc.heads().is_empty();
    if is_stored {
        match Ancestry::of(snapshot.automerge(), doc.automerge()) {
            Ancestry::Contained => return Seeding::Nothing,
            Ancestry::Newer => {}
            Ancestry::Unrelated => return Seeding::Unrelated,
        }
    }
    let add = SeedSnapshot { key: snapshot_key(document, snapshot.heads()), data };
    match doc.admit(&add.data, Rules::Admission) {
        Err(refusal) => Seeding::Refused(refusal),
        Ok(_) if is_stored => Seeding::Newer(add),
        Ok(_) => Seeding::All(add),
    }
}

/// How a document that somebody brings stands to what is stored, and the snapshot that is to be added.
fn compare(
    document: DocumentId,
    stored: Vec<StoredChunk>,
    seed: Option<Bytes>,
    data: &Bytes,
) -> (Merged, Option<SeedSnapshot>) {
    let name = hex(&Sha256::digest(data));
    let as_it_is = Key::Chunk { document, kind: ChunkKind::Incremental, name };
    let is_kept = stored.iter().any(|(key, _)| *key == as_it_is);
    let is_stored = !stored.is_empty();
    let mut here = check(document, stored, seed).opened.doc;
    let (merged, addition) = compare::compare(&mut here, data, is_stored, is_kept);
    let add = addition.map(|addition| match addition {
        Addition::AsItCame => SeedSnapshot { key: as_it_is, data: data.clone() },
        Addition::Snapshot { data, heads } => {
            SeedSnapshot { key: snapshot_key(document, &heads), data: data.into() }
        }
    });
    (merged, add)
}

/// A random UUID, version 4 (RFC 9562), as automerge-repo makes them.
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
