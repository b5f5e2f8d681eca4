//! What leaves the journal: chunks that move into the folders, those that leave the folders, deleted documents.

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
    super::{nodefs::NodefsStore, tombstones::Tombstone},
    index::{ROWS, Row},
    shared::{Change, Request, Shared, send},
    writer::PendingDelete,
};
use crate::{
    base::{backoff::Backoff, document_id::DocumentId},
    document::chunk::Key,
    storage::{ChunkStore, StorageError},
};

/// Chunks that move into the folders at a time.
const MOVED: usize = 256;
/// Pause before a checkpoint that failed is tried again: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Delete replaced chunks from the folders when their time has come: a grace time after what replaced them stands
/// there too, for others read the folders alone.
pub(super) async fn delete_after_grace(
    mover: Mover,
    grace: Duration,
    again: mpsc::WeakSender<PendingDelete>,
    mut pending: mpsc::Receiver<PendingDelete>,
) {
    while let Some(PendingDelete { key, at, is_replacement_moved }) = pending.recv().await {
        sleep_until(at).await;
        if !is_replacement_moved && mover.shared.rows_of_same_document(&key).is_some() {
            let moved = mover.move_same_document(&key).await;
            if let Err(error) = &moved {
                warn!("a chunk that is not needed any more stays: {error}");
            }
            let delete = PendingDelete {
                key: key.clone(),
                at: Instant::now() + grace,
                is_replacement_moved: true,
            };
            let waits =
                moved.is_ok() && again.upgrade().is_some_and(|a| a.try_send(delete).is_ok());
            if !waits {
                mover.shared.pending_deletes().remove(&key);
            }
            continue;
        }
        {
            let mut pending_deletes = mover.shared.pending_deletes();
            // One that was put again meanwhile stays.
            if !pending_deletes.remove(&key) {
                continue;
            }
            mover.shared.deleting.send_replace(Some(key.clone()));
        }
        if let Err(error) = mover.folders.delete(&key).await {
            warn!("a chunk that is not needed any more stays: {error}");
        }
        mover.shared.deleting.send_replace(None);
    }
}

/// What a deletion found of a document.
#[derive(Debug, Default)]
pub struct Deleted {
    /// Chunks in the journal and the folders, quarantine included.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Moves chunks from the journal into the folders.
pub(super) struct Mover {
    pub(super) folders: NodefsStore,
    pub(super) requests: mpsc::WeakSender<Request>,
    pub(super) shared: Arc<Shared>,
    pub(super) checkpoint: Arc<tokio::sync::Mutex<()>>,
}

impl Mover {
    /// Move the oldest chunks whenever the journal has become too large, and all of them when nothing has been
    /// written for `quiet`.
    pub(super) async fn checkpoint_loop(self, quiet: Duration) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let commits = self.shared.commits.load(Ordering::Relaxed);
            let is_full = timeout(quiet, self.shared.is_full.notified()).await.is_ok();
            if self.requests.strong_count() == 0 {
                return;
            }
            let is_quiet = !is_full && commits == self.shared.commits.load(Ordering::Relaxed);
            if !is_full && (!is_quiet || self.shared.index().rows == 0) {
                continue;
            }
            let left = if is_full { self.shared.size / 2 } else { 0 };
            while let Err(error) = self.checkpoint(left).await {
                warn!("the journal cannot be moved into the folders; it is tried again: {error}");
                sleep(backoff.pause()).await;
            }
            backoff.reset();
            if is_quiet {
                // The connection keeps pages in memory.
                self.shared.close_reader();
            }
        }
    }

    /// Move the oldest chunks until `size` bytes, or that share of the most rows, are left.
    pub(super) async fn checkpoint(&self, size: usize) -> Result<usize, StorageError> {
        let _alone = self.checkpoint.lock().await;
        self.move_oldest(size).await
    }

    /// The same, with the checkpoint's lock held.
    async fn move_oldest(&self, size: usize) -> Result<usize, StorageError> {
        let to_move = {
            let index = self.shared.index();
            let rows = if size == 0 { 0 } else { ROWS / 2 };
            let mut all: Vec<(Key, Row)> = Vec::with_capacity(index.rows);
            for document in index.documents.keys() {
                all.extend(index.rows_of(*document).unwrap_or_default());
            }
            all.sort_unstable_by_key(|(_, row)| row.id);
            let (mut left, mut bytes) = (index.rows, index.bytes);
            let wanted = all.iter().take_while(|(_, row)| {
                let is_wanted = left > rows || bytes > size;
                (left, bytes) = (left.saturating_sub(1), bytes.saturating_sub(row.size));
                is_wanted
            });
            let wanted = wanted.count();
            all.truncate(wanted);
            VecDeque::from(all)
        };
        self.move_all(to_move).await
    }

    /// Move what the journal has of a chunk's document.
    async fn move_same_document(&self, key: &Key) -> Result<usize, StorageError> {
        let _alone = self.checkpoint.lock().await;
        self.move_all(self.shared.rows_of_same_document(key).unwrap_or_default().into()).await
    }

    pub(super) async fn delete_document(
        &self,
        document: DocumentId,
        tombstone: Tombstone,
    ) -> Result<Deleted, StorageError> {
        let _alone = self.checkpoint.lock().await;
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
                // What is deleted makes room for what says so.
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

    /// As [`Journal::delete_again`].
    pub(super) async fn delete_again(&self, document: DocumentId) -> Result<bool, StorageError> {
        let _alone = self.checkpoint.lock().await;
        self.delete_rest(document).await
    }

    /// As [`Journal::undelete`].
    pub(super) async fn undelete(&self, document: DocumentId) -> Result<bool, StorageError> {
        let _alone = self.checkpoint.lock().await;
        if !self.delete_rest(document).await? {
            return Ok(false);
        }
        let shared = self.shared.clone();
        let lifting = tokio::task::spawn_blocking(move || shared.tombstones.remove(document));
        lifting.await.map_err(self.shared.panicked("delete"))?
    }

    async fn delete_rest(&self, document: DocumentId) -> Result<bool, StorageError> {
        if !self.shared.tombstones.contains(document) {
            return Ok(false);
        }
        self.delete_rows(document).await?;
        self.folders.delete_document(document).await?;
        Ok(true)
    }

    /// Delete a document's rows without a trace. What else is in the journal moves out of it first: nothing is committed
    /// while SQLite writes its file anew, which takes as long as what is in it is large.
    async fn delete_rows(&self, document: DocumentId) -> Result<(), StorageError> {
        let Some(requests) = self.requests.upgrade() else { return Ok(()) };
        send(&requests, &self.shared, Change::DeleteDocument(document)).await?;
        if let Err(error) = self.move_oldest(0).await {
            warn!(
                "the journal cannot be moved into the folders before it is written anew: {error}"
            );
        }
        send(&requests, &self.shared, Change::Vacuum).await
    }

    /// Leave nothing in the write-ahead log of the journal's file.
    pub(super) async fn truncate_wal(&self) -> Result<(), StorageError> {
        match self.requests.upgrade() {
            Some(requests) => send(&requests, &self.shared, Change::TruncateWal).await,
            None => Ok(()),
        }
    }

    /// Move these rows. One at a time, and to its end: a row that is not there any more when it has been moved
    /// counts as deleted meanwhile, and its file goes.
    async fn move_all(&self, mut to_move: VecDeque<(Key, Row)>) -> Result<usize, StorageError> {
        let mut moved = 0;
        while !to_move.is_empty() {
            let rows: Vec<(Key, Row)> = to_move.drain(..MOVED.min(to_move.len())).collect();
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
