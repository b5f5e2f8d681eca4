//! Moving chunks from the journal into the folders, deleting replaced chunks from the folders, and
//! deleting documents.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::warn;

use super::{
    super::nodefs::NodefsStore,
    index::{MAX_ROWS, Row},
    shared::{Change, Request, Shared, send},
    writer::PendingDelete,
};
use crate::{
    base::{backoff::Backoff, document_id::DocumentId},
    document::chunk::Key,
    storage::{
        ChunkStore, StorageError,
        records::{Deleted, Tombstone},
    },
};

/// Chunks that are moved into the folders at a time.
const MOVE_BATCH: usize = 256;
/// The first and the longest pause before a failed checkpoint is retried.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Deletes replaced chunks from the folders, a grace time after the chunks that replaced them were
/// moved there. Other programs read only the folders.
pub(super) async fn delete_after_grace(
    mover: Mover,
    grace: Duration,
    requeue: mpsc::WeakSender<PendingDelete>,
    mut pending: mpsc::Receiver<PendingDelete>,
) {
    while let Some(PendingDelete { key, at, is_replacement_moved }) = pending.recv().await {
        sleep_until(at).await;
        if !is_replacement_moved && mover.shared.rows_of_same_document(&key).is_some() {
            let moved = mover.move_same_document(&key).await;
            if let Err(error) = &moved {
                warn!("could not delete a superseded chunk: {error}");
            }
            let delete = PendingDelete {
                key: key.clone(),
                at: Instant::now() + grace,
                is_replacement_moved: true,
            };
            let is_queued = moved.is_ok()
                && requeue.upgrade().is_some_and(|requeue| requeue.try_send(delete).is_ok());
            if !is_queued {
                mover.shared.pending_deletes().remove(&key);
            }
            continue;
        }
        {
            let mut pending_deletes = mover.shared.pending_deletes();
            // A chunk that was stored again meanwhile is kept.
            if !pending_deletes.remove(&key) {
                continue;
            }
            mover.shared.deleting.send_replace(Some(key.clone()));
        }
        if let Err(error) = mover.folders.delete(&key).await {
            warn!("could not delete a superseded chunk: {error}");
        }
        mover.shared.deleting.send_replace(None);
    }
}

/// Moves chunks from the journal into the folders.
pub(super) struct Mover {
    pub(super) folders: NodefsStore,
    pub(super) requests: mpsc::WeakSender<Request>,
    pub(super) shared: Arc<Shared>,
    pub(super) checkpoint_lock: Arc<tokio::sync::Mutex<()>>,
}

impl Mover {
    /// Moves the oldest chunks whenever the journal is too large, and all chunks when nothing was
    /// written for `quiet`.
    pub(super) async fn checkpoint_loop(self, quiet: Duration) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let commits = self.shared.commits.load(Ordering::Relaxed);
            let is_too_large = timeout(quiet, self.shared.is_too_large.notified()).await.is_ok();
            if self.requests.strong_count() == 0 {
                return;
            }
            let is_quiet = !is_too_large && commits == self.shared.commits.load(Ordering::Relaxed);
            if !is_too_large && (!is_quiet || self.shared.index().rows == 0) {
                continue;
            }
            let left = if is_too_large { self.shared.max_size / 2 } else { 0 };
            while let Err(error) = self.checkpoint(left).await {
                warn!("cannot checkpoint the journal into the folders; retrying: {error}");
                sleep(backoff.pause()).await;
            }
            backoff.reset();
            if is_quiet {
                // The connection caches pages in memory.
                self.shared.close_reader();
            }
        }
    }

    /// Moves the oldest chunks until at most `size` bytes are left, and at most half of the most
    /// rows; all chunks if `size` is 0. Returns how many were moved.
    pub(super) async fn checkpoint(&self, size: usize) -> Result<usize, StorageError> {
        let _lock = self.checkpoint_lock.lock().await;
        self.move_oldest(size).await
    }

    /// See [`Self::checkpoint`]. The caller holds the lock.
    async fn move_oldest(&self, size: usize) -> Result<usize, StorageError> {
        let to_move = {
            let index = self.shared.index();
            let max_rows = if size == 0 { 0 } else { MAX_ROWS / 2 };
            let mut all: Vec<(Key, Row)> = Vec::with_capacity(index.rows);
            for document in index.documents.keys() {
                all.extend(index.rows_of(*document).unwrap_or_default());
            }
            all.sort_unstable_by_key(|(_, row)| row.id);
            let (mut left, mut bytes) = (index.rows, index.bytes);
            let oldest = all.iter().take_while(|(_, row)| {
                let is_moved = left > max_rows || bytes > size;
                (left, bytes) = (left.saturating_sub(1), bytes.saturating_sub(row.size));
                is_moved
            });
            let oldest = oldest.count();
            all.truncate(oldest);
            VecDeque::from(all)
        };
        self.move_all(to_move).await
    }

    /// Moves all rows of the document that a chunk belongs to.
    async fn move_same_document(&self, key: &Key) -> Result<usize, StorageError> {
        let _lock = self.checkpoint_lock.lock().await;
        self.move_all(self.shared.rows_of_same_document(key).unwrap_or_default().into()).await
    }

    /// See [`Store::delete_document`](crate::storage::store::Store::delete_document).
    pub(super) async fn delete_document(
        &self,
        document: DocumentId,
        tombstone: Tombstone,
    ) -> Result<Deleted, StorageError> {
        let _lock = self.checkpoint_lock.lock().await;
        let mut deleted = Deleted::default();
        let count = |deleted: &mut Deleted, (files, bytes)| {
            deleted.chunks += files;
            deleted.bytes += bytes;
        };
        let add = async || {
            let (shared, tombstone) = (self.shared.clone(), tombstone.clone());
            let adding = move || shared.tombstones.add(document, &tombstone);
            tokio::task::spawn_blocking(adding).await.map_err(self.shared.panicked("delete"))?
        };
        match add().await {
            Err(StorageError::Full(_)) => {
                // Deleting the files makes room for the tombstone.
                count(&mut deleted, self.folders.delete_document(document).await?);
                add().await?;
            }
            added => added?,
        }
        let rows = self.shared.index().rows_of(document).unwrap_or_default();
        self.delete_rows(document).await?;
        count(&mut deleted, (rows.len(), rows.iter().map(|(_, row)| row.size as u64).sum()));
        count(&mut deleted, self.folders.delete_document(document).await?);
        Ok(deleted)
    }

    /// See [`Journal::delete_again`](super::Journal::delete_again).
    pub(super) async fn delete_again(&self, document: DocumentId) -> Result<bool, StorageError> {
        let _lock = self.checkpoint_lock.lock().await;
        self.delete_rest(document).await
    }

    /// See [`Store::undelete`](crate::storage::store::Store::undelete).
    pub(super) async fn undelete(&self, document: DocumentId) -> Result<bool, StorageError> {
        let _lock = self.checkpoint_lock.lock().await;
        if !self.delete_rest(document).await? {
            return Ok(false);
        }
        let shared = self.shared.clone();
        let removing = tokio::task::spawn_blocking(move || shared.tombstones.remove(document));
        removing.await.map_err(self.shared.panicked("delete"))?
    }

    async fn delete_rest(&self, document: DocumentId) -> Result<bool, StorageError> {
        if !self.shared.tombstones.contains(document) {
            return Ok(false);
        }
        self.delete_rows(document).await?;
        self.folders.delete_document(document).await?;
        Ok(true)
    }

    /// Deletes the rows of a document, and their bytes from the file. Nothing can be committed
    /// while SQLite rewrites its file, so all other chunks are moved into the folders first.
    async fn delete_rows(&self, document: DocumentId) -> Result<(), StorageError> {
        let Some(requests) = self.requests.upgrade() else { return Ok(()) };
        send(&requests, &self.shared, Change::DeleteDocument(document)).await?;
        if let Err(error) = self.move_oldest(0).await {
            warn!("cannot checkpoint the journal into the folders before it is recreated: {error}");
        }
        send(&requests, &self.shared, Change::Vacuum).await
    }

    /// Empties the write-ahead log of the journal's file.
    pub(super) async fn truncate_wal(&self) -> Result<(), StorageError> {
        match self.requests.upgrade() {
            Some(requests) => send(&requests, &self.shared, Change::TruncateWal).await,
            None => Ok(()),
        }
    }

    /// Moves these rows. The caller holds the lock, and must not be cancelled: the file of a row
    /// that no longer exists after it was written is deleted, because the chunk was deleted
    /// meanwhile.
    async fn move_all(&self, mut to_move: VecDeque<(Key, Row)>) -> Result<usize, StorageError> {
        let mut moved = 0;
        while !to_move.is_empty() {
            let rows: Vec<(Key, Row)> = to_move.drain(..MOVE_BATCH.min(to_move.len())).collect();
            let read = self.shared.read_rows(rows).await?;
            let mut rows = Vec::with_capacity(read.len());
            let mut files = Vec::with_capacity(read.len());
            for (key, row, data) in read {
                rows.push((key.clone(), row));
                files.push((key, data.into()));
            }
            self.folders.put_all(files).await?;
            moved += rows.len();
            let Some(requests) = self.requests.upgrade() else { break };
            send(&requests, &self.shared, Change::Moved(rows)).await?;
        }
        if moved > 0 {
            self.shared.metrics.moved.inc_by(moved as u64);
        }
        Ok(moved)
    }
}
