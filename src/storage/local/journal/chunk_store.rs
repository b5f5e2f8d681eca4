//! The journal and the folders as one [`ChunkStore`].

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tracing::warn;

use super::{
    Journal,
    shared::{Change, send},
};
use crate::{
    base::document_id::DocumentId,
    document::chunk::Key,
    storage::{Basis, ChunkStore, Failure, Loaded, Put, StorageError, store::Store},
};

/// Chunks of at least this many bytes are written to a file at once. Writing them twice would cost
/// more than a file.
pub(super) const LARGE_CHUNK: usize = 64 << 10;
/// How often a document is loaded, because a row may be replaced before it is read.
const MAX_ATTEMPTS: usize = 10;
/// The journal accepts nothing more when it has this many times its configured size, because its
/// chunks cannot be moved into the folders.
const MAX_GROWTH: usize = 4;

impl Journal {
    /// Has the writer commit a change.
    pub(super) async fn commit(&self, change: Change) -> Result<(), StorageError> {
        send(&self.requests, &self.shared, change).await
    }
}

impl ChunkStore for Journal {
    fn load_storage_id(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StorageError>> {
        self.folders.load_storage_id()
    }

    /// Reads the journal first, so that chunks that are moved meanwhile are found in the folders.
    fn load_document(&self, document: DocumentId) -> BoxFuture<'_, Result<Loaded, StorageError>> {
        async move {
            for _ in 0..MAX_ATTEMPTS {
                let rows = self.shared.index().rows_of(document).unwrap_or_default();
                let keys: Vec<Key> = rows.iter().map(|(key, _)| key.clone()).collect();
                let mut journal = Vec::new();
                if !rows.is_empty() {
                    journal = self.shared.read_rows(rows).await?;
                }
                let mut chunks = self.folders.load_document(document).await?.chunks;
                if self.is_deleted(document) {
                    return Ok(Loaded { is_deleted: true, ..Loaded::default() });
                }
                chunks
                    .retain(|(key, _)| !journal.iter().any(|(in_journal, _, _)| in_journal == key));
                chunks.extend(journal.into_iter().map(|(key, _, data)| (key, data)));
                // A row that was neither read nor moved was replaced by a row that is not in
                // `keys`.
                if keys.iter().all(|key| chunks.iter().any(|(found, _)| found == key)) {
                    chunks.sort_by(|(a, _), (b, _)| a.cmp(b));
                    return Ok(Loaded { chunks, ..Loaded::default() });
                }
            }
            let reason =
                format!("the chunks of {document} change faster than the relay can read them");
            let path = self.shared.path.as_path();
            Err(StorageError::Unavailable(Failure::new("read", path, reason)))
        }
        .boxed()
    }

    fn replace<'a>(
        &'a self,
        key: &'a Key,
        data: Bytes,
        replaced: &'a [Key],
        _basis: Basis,
    ) -> BoxFuture<'a, Result<Put, StorageError>> {
        // A row takes precedence over the file of the same key, so a row must be replaced by a row.
        let has_row = self.shared.index().get(key).is_some();
        let is_row = has_row || (matches!(key, Key::Chunk { .. }) && data.len() < LARGE_CHUNK);
        if is_row && self.shared.index().bytes > self.shared.max_size.saturating_mul(MAX_GROWTH) {
            let full = "it is full, because its chunks cannot be moved into the folders";
            let full = Failure::new("write", self.shared.path.as_path(), full);
            return std::future::ready(Err(StorageError::Full(full))).boxed();
        }
        async move {
            self.shared.cancel_delete(key).await;
            if is_row {
                let (key, replaced) = (key.clone(), replaced.to_vec());
                return self.commit(Change::Put { key, data, replaced }).await.map(|()| Put::Made);
            }
            let is_deleted = || match key {
                Key::Chunk { document, .. } if self.is_deleted(*document) => Some(*document),
                _ => None,
            };
            if is_deleted().is_some() {
                return Ok(Put::Made);
            }
            let written = self.folders.put(key, data).await;
            if written.is_ok()
                && !replaced.is_empty()
                && let Err(error) = self.commit(Change::Delete(replaced.to_vec())).await
            {
                warn!("could not delete superseded chunks: {error}");
            }
            match is_deleted() {
                // The document was deleted while its file was being written.
                Some(document) => {
                    // Waits for the deletion, which counts the files that it deletes.
                    let _lock = self.checkpoint_lock.lock().await;
                    self.folders.delete_document(document).await.map(|_| Put::Made)
                }
                None => written,
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), StorageError>> {
        self.commit(Change::Delete(vec![key.clone()])).boxed()
    }

    fn is_deleted(&self, document: DocumentId) -> bool {
        self.shared.tombstones.contains(document)
    }

    fn is_blocked(&self, document: DocumentId) -> bool {
        self.shared.blocked.contains(document)
    }

    fn quarantine<'a>(
        &'a self,
        key: &'a Key,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        async move {
            // A row must become a file before it can be moved.
            if self.shared.index().get(key).is_some() {
                self.checkpoint().await?;
            }
            self.folders.quarantine(key, reason).await
        }
        .boxed()
    }
}
