//! What the journal and its tasks share: the index, the connection for reads, and the requests to
//! the writer.

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
    super::{marks::Marks, tombstones::Tombstones},
    index::{Index, Row},
    sqlite::failed,
};
use crate::{
    base::{document_id::DocumentId, lock::lock},
    config::Durability,
    document::chunk::Key,
    observe::metrics::StorageMetrics,
    storage::{Failure, StorageError, records::Block},
};

pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) durability: Durability,
    pub(super) index: Mutex<Index>,
    /// A connection for reads. It is opened when needed, and reopened after a failure.
    pub(super) reader: Mutex<Option<Connection>>,
    /// Wakes the task that moves chunks into the folders.
    pub(super) is_too_large: Notify,
    /// Chunks that are deleted from the folders when their grace time is over.
    pub(super) pending_deletes: Mutex<HashSet<Key>>,
    /// The chunk that is being deleted from the folders. It must not be stored again before that is
    /// done.
    pub(super) deleting: watch::Sender<Option<Key>>,
    /// The size in bytes from which chunks are moved into the folders.
    pub(super) max_size: usize,
    /// The number of commits since the journal was opened.
    pub(super) commits: AtomicU64,
    pub(super) tombstones: Tombstones,
    pub(super) blocked: Marks<Block>,
    pub(super) metrics: StorageMetrics,
}

/// A request to the writer, for its next commit.
pub(super) struct Request {
    pub(super) change: Change,
    pub(super) done: oneshot::Sender<Result<(), StorageError>>,
}

/// A change that the writer makes.
pub(super) enum Change {
    Put {
        key: Key,
        data: Bytes,
        /// These are deleted, as by `Delete`.
        replaced: Vec<Key>,
    },
    Delete(Vec<Key>),
    /// Empty the write-ahead log into the file, after the commit.
    TruncateWal,
    /// Delete rows whose chunks were written to the folders.
    Moved(Vec<(Key, Row)>),
    /// Delete all rows of a document.
    DeleteDocument(DocumentId),
    /// Remove the bytes of deleted rows from the file, after the commit.
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

    /// The error for a caller whose task has panicked.
    pub(super) fn panicked(&self, action: &'static str) -> impl FnOnce(JoinError) -> StorageError {
        let path = self.path.clone();
        move |panic| StorageError::Unavailable(Failure::new(action, path, panic))
    }

    pub(super) fn pending_deletes(&self) -> MutexGuard<'_, HashSet<Key>> {
        lock(&self.pending_deletes)
    }

    /// Cancels the pending deletion of a chunk that is about to be stored, or waits until it is
    /// done.
    pub(super) async fn cancel_delete(&self, key: &Key) {
        let mut deleting = {
            let mut pending_deletes = self.pending_deletes();
            pending_deletes.remove(key);
            self.deleting.subscribe()
        };
        // The sender exists as long as `self`.
        let _ = deleting.wait_for(|deleting| deleting.as_ref() != Some(key)).await;
    }

    /// Updates the index and the metrics after a commit.
    pub(super) fn record(&self, committed: HashMap<Key, Option<Row>>) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.metrics.commits.inc();
        let mut index = self.index();
        for (key, row) in committed {
            index.set(&key, row);
        }
        self.update_gauges(&index);
        if index.exceeds(self.max_size) {
            self.is_too_large.notify_one();
        }
    }

    /// The rows of the document that a chunk belongs to, if there are any.
    pub(super) fn rows_of_same_document(&self, key: &Key) -> Option<Vec<(Key, Row)>> {
        let Key::Chunk { document, .. } = key else { return None };
        self.index().rows_of(*document)
    }

    /// Updates the number of blocked documents in the metrics.
    pub(super) fn count_blocked(&self) {
        self.metrics.blocked.set(i64::try_from(self.blocked.len()).unwrap_or(i64::MAX));
    }

    pub(super) fn update_gauges(&self, index: &Index) {
        self.metrics.journal_bytes.set(i64::try_from(index.bytes).unwrap_or(i64::MAX));
        self.metrics.journal_chunks.set(i64::try_from(index.rows).unwrap_or(i64::MAX));
    }

    /// Reads rows on a thread that may block. Rows that no longer exist are left out.
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

    /// Reads rows with a connection of its own, so that the writer does not wait.
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
                // A missing row was moved into the folders, or replaced.
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

/// Sends a change to the writer, and waits until it is durable.
pub(super) async fn send(
    requests: &mpsc::Sender<Request>,
    shared: &Shared,
    change: Change,
) -> Result<(), StorageError> {
    let ended = || {
        let reason = "the journal's writer has ended";
        StorageError::Unavailable(Failure::new("write", shared.path.as_path(), reason))
    };
    let (done, result) = oneshot::channel();
    requests.send(Request { change, done }).await.map_err(|_| ended())?;
    result.await.unwrap_or_else(|_| Err(ended()))
}
