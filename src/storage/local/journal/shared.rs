//! What the journal and its tasks share: the index, the reader, and the requests to the writer.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinError,
};

use super::{
    super::{blocked::Block, marks::Marks, tombstones::Tombstones},
    file::failed,
    index::{Index, Row},
};
use crate::{
    base::{document_id::DocumentId, lock::lock},
    config::Durability,
    document::chunk::Key,
    observe::metrics::StorageMetrics,
    storage::{Failure, StorageError},
};

pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) durability: Durability,
    pub(super) index: Mutex<Index>,
    /// For reads; opened when it is first needed, and again after a failure.
    pub(super) reader: Mutex<Option<Connection>>,
    pub(super) is_full: Notify,
    /// Chunks that leave the folders when their grace time is over.
    pub(super) pending_deletes: Mutex<HashSet<Key>>,
    /// The chunk that is being deleted from the folders: it may be stored again only afterwards.
    pub(super) deleting: watch::Sender<Option<Key>>,
    pub(super) size: usize,
    /// The commits since the journal was opened.
    pub(super) commits: AtomicU64,
    pub(super) tombstones: Tombstones,
    pub(super) blocked: Marks<Block>,
    pub(super) metrics: StorageMetrics,
}

/// What is to be done in the next commit.
pub(super) struct Request {
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<(), StorageError>>,
}

pub(super) enum Change {
    Put(Key, Bytes),
    Delete(Key),
    /// Let the file be as small as what is in it, with nothing in its write-ahead log.
    TruncateWal,
    /// Rows whose chunks stand in the folders.
    Moved(Vec<(Key, Row)>),
    /// All rows of a document.
    DeleteDocument(DocumentId),
    /// Let no bytes of deleted rows stay in the file.
    Vacuum,
}

impl Shared {
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.index)
    }

    pub(super) fn failed(&self, action: &'static str) -> impl Fn(rusqlite::Error) -> StorageError {
        let path = self.path.clone();
        move |error| failed(action, &path, error)
    }

    /// What a panic in a task of the journal's is to whoever waits for it.
    pub(super) fn panicked(&self, action: &'static str) -> impl FnOnce(JoinError) -> StorageError {
        let path = self.path.clone();
        move |panic| StorageError::Unavailable(Failure::new(action, path, panic))
    }

    pub(super) fn pending_deletes(&self) -> MutexGuard<'_, HashSet<Key>> {
        lock(&self.pending_deletes)
    }

    /// Sees that a chunk which is about to be stored is not deleted from the folders any more.
    pub(super) async fn cancel_delete(&self, key: &Key) {
        let mut deleting = {
            let mut pending_deletes = self.pending_deletes();
            pending_deletes.remove(key);
            self.deleting.subscribe()
        };
        // The sender is as old as this.
        let _ = deleting.wait_for(|deleting| deleting.as_ref() != Some(key)).await;
    }

    /// Take over what a commit did.
    pub(super) fn record(&self, committed: HashMap<Key, Option<Row>>) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.metrics.commits.inc();
        let mut index = self.index();
        for (key, row) in committed {
            index.set(&key, row);
        }
        self.update_gauges(&index);
        if index.is_beyond(self.size) {
            self.is_full.notify_one();
        }
    }

    /// The rows of a chunk's document, if there are any.
    pub(super) fn rows_of_same_document(&self, key: &Key) -> Option<Vec<(Key, Row)>> {
        let Key::Chunk { document, .. } = key else { return None };
        self.index().rows_of(*document)
    }

    pub(super) fn update_gauges(&self, index: &Index) {
        self.metrics.journal_bytes.set(i64::try_from(index.bytes).unwrap_or(i64::MAX));
        self.metrics.journal_chunks.set(i64::try_from(index.rows).unwrap_or(i64::MAX));
    }

    /// Read rows on a thread that may block.
    pub(super) async fn read_rows(
        self: &Arc<Self>,
        rows: Vec<(Key, Row)>,
    ) -> Result<Vec<(Key, Row, Vec<u8>)>, StorageError> {
        let shared = self.clone();
        let read = tokio::task::spawn_blocking(move || shared.read(&rows)).await;
        read.map_err(self.panicked("read"))?
    }

    pub(super) fn close_reader(&self) {
        *lock(&self.reader) = None;
    }

    /// Read rows with a connection that does not hold up the writer.
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    fn read(&self, rows: &[(Key, Row)]) -> Result<Vec<(Key, Row, Vec<u8>)>, StorageError> {
        let mut reader = lock(&self.reader);
        let connection = match reader.take() {
            Some(connection) => connection,
            None => Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)
                .map_err(self.failed("open"))?,
        };
        let mut found = Vec::with_capacity(rows.len());
        {
            let mut query = connection
                .prepare_cached("SELECT data FROM chunk WHERE id = ?1")
                .map_err(self.failed("read"))?;
            for (key, row) in rows {
                // One that is gone stands in the folders by now, or was replaced.
                let data = query.query_row([row.id], |found| found.get(0)).optional();
                if let Some(data) = data.map_err(self.failed("read"))? {
                    found.push((key.clone(), *row, data));
                }
            }
        }
        *reader = Some(connection);
        Ok(found)
    }
}

pub(super) async fn send(
    requests: &mpsc::Sender<Request>,
    shared: &Shared,
    change: Change,
) -> Result<(), StorageError> {
    let gone = || {
        let reason = "the journal's writer has ended";
        StorageError::Unavailable(Failure::new("write", shared.path.as_path(), reason))
    };
    let (done, result) = oneshot::channel();
    requests.send(Request { change, done }).await.map_err(|_| gone())?;
    result.await.unwrap_or_else(|_| Err(gone()))
}
