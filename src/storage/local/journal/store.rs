//! The journal and the folders as a [`Store`].

#![allow(clippy::disallowed_methods, reason = "what blocks runs on threads that may")]

use std::path::Path;

use futures::{FutureExt, future::BoxFuture};

use super::Journal;
use crate::{
    base::document_id::DocumentId,
    document::chunk::Key,
    storage::{
        ChunkStore, StorageError,
        local::{blocked, imported, layout::QUARANTINE, quarantine, restore_marker},
        records::{Block, Deleted, Listed, Quarantined, Tombstone},
        store::Store,
    },
};

impl Journal {
    /// Runs `work` with the storage folder on a thread that may block.
    fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Path) -> Result<T, StorageError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StorageError>> {
        self.folders.run(action, work).boxed()
    }
}

impl Store for Journal {
    fn list(&self, found: &mut dyn FnMut(Listed) -> bool) -> Result<(), StorageError> {
        self.list_documents(found)
    }

    fn checkpoint(&self) -> BoxFuture<'_, Result<usize, StorageError>> {
        // Afterwards the journal's file is complete without its write-ahead log.
        let mover = self.mover();
        self.finish("move", async move {
            let moved = mover.checkpoint(0).await?;
            mover.truncate_wal().await?;
            Ok(moved)
        })
    }

    fn delete_document(
        &self,
        document: DocumentId,
        tombstone: Tombstone,
    ) -> BoxFuture<'_, Result<Deleted, StorageError>> {
        let mover = self.mover();
        self.finish("delete", async move { mover.delete_document(document, tombstone).await })
    }

    fn undelete(&self, document: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>> {
        let mover = self.mover();
        self.finish("delete", async move { mover.undelete(document).await })
    }

    fn import_tombstone(&self, tombstone: Tombstone) -> BoxFuture<'_, Result<bool, StorageError>> {
        let document = tombstone.document;
        let adding = async move {
            let _lock = self.checkpoint_lock.lock().await;
            if self.is_deleted(document) || !self.load_document(document).await?.chunks.is_empty() {
                return Ok(false);
            }
            let shared = self.shared.clone();
            let add = move |root: &Path| {
                let mut kept = restore_marker::replaced_folders(root);
                kept.push(root.join(QUARANTINE));
                if kept.iter().any(|folder| folder.join(document.folder()).exists()) {
                    return Ok(false);
                }
                shared.tombstones.add(document, &tombstone).map(|()| true)
            };
            self.run("write", add).await
        };
        adding.boxed()
    }

    fn tombstone(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Tombstone>, StorageError>> {
        let shared = self.shared.clone();
        self.run("read", move |_| Ok(shared.tombstones.get(document)))
    }

    fn tombstones(&self) -> BoxFuture<'_, Result<Vec<Tombstone>, StorageError>> {
        let shared = self.shared.clone();
        self.run("read", move |_| Ok(shared.tombstones.list()))
    }

    fn block_in_memory(&self, document: DocumentId) {
        self.shared.blocked.add_in_memory(document);
        self.shared.count_blocked();
    }

    fn block(
        &self,
        document: DocumentId,
        reason: Option<String>,
    ) -> BoxFuture<'_, Result<Block, StorageError>> {
        let shared = self.shared.clone();
        self.run("write", move |_| {
            let earlier = shared.blocked.get(document).filter(|_| reason.is_none());
            let block = earlier.unwrap_or_else(|| Block::new(document, reason));
            shared.blocked.add(document, &block)?;
            shared.count_blocked();
            Ok(block)
        })
    }

    fn unblock(&self, document: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>> {
        let shared = self.shared.clone();
        self.run("delete", move |_| {
            let was_blocked = shared.blocked.remove(document)?;
            shared.count_blocked();
            Ok(was_blocked)
        })
    }

    fn blocks(&self) -> BoxFuture<'_, Result<Vec<Block>, StorageError>> {
        let shared = self.shared.clone();
        self.run("read", move |_| {
            let all = shared.blocked.ids().into_iter();
            Ok(all.map(|document| blocked::read(&shared.blocked, document)).collect())
        })
    }

    fn quarantined(&self) -> BoxFuture<'_, Result<Vec<Quarantined>, StorageError>> {
        self.run("list", quarantine::list)
    }

    fn release(&self, path: String) -> BoxFuture<'_, Result<Key, StorageError>> {
        self.run("move", move |root| quarantine::release(root, &path))
    }

    fn purge(&self, path: String) -> BoxFuture<'_, Result<(), StorageError>> {
        self.run("delete", move |root| quarantine::purge(root, &path))
    }

    fn imported(
        &self,
        bundle: DocumentId,
        etag: String,
    ) -> BoxFuture<'_, Result<Option<Vec<DocumentId>>, StorageError>> {
        self.run("read", move |root| imported::documents(root, bundle, &etag))
    }

    fn record_import(
        &self,
        bundle: DocumentId,
        etag: String,
        documents: Vec<DocumentId>,
    ) -> BoxFuture<'_, Result<(), StorageError>> {
        self.run("write", move |root| imported::add(root, bundle, &etag, &documents))
    }

    fn forget_imports(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        self.run("delete", imported::clear)
    }
}
