//! What the relay keeps its documents in.

use futures::future::BoxFuture;

use super::{
    ChunkStore, StorageError,
    records::{Block, Deleted, Listed, Quarantined, Tombstone},
};
use crate::{base::document_id::DocumentId, document::chunk::Key};

/// A store of documents: their chunks, and what the relay and its operator have recorded of them.
///
/// [`Journal`](super::local::journal::Journal) keeps them in a folder. What only a folder can do is
/// not here.
pub trait Store: ChunkStore {
    /// Calls `found` for every stored document, until it returns false. Documents that are stored
    /// or deleted meanwhile may be listed or not. Blocks, so it must be called on a thread that
    /// may.
    ///
    /// # Errors
    /// The documents cannot be listed.
    fn list(&self, found: &mut dyn FnMut(Listed) -> bool) -> Result<(), StorageError>;

    /// Moves everything to where it is kept in the long run, if it is durable elsewhere first.
    /// Returns how many chunks were moved.
    ///
    /// # Errors
    /// A chunk could not be moved. It is still durable where it was.
    fn checkpoint(&self) -> BoxFuture<'_, Result<usize, StorageError>>;

    /// Deletes a document, and records this so that it does not come back.
    ///
    /// # Errors
    /// The tombstone cannot be written, or a chunk cannot be deleted. Once the tombstone is written
    /// the document is refused, and repeating the call deletes the rest.
    fn delete_document(
        &self,
        document: DocumentId,
        tombstone: Tombstone,
    ) -> BoxFuture<'_, Result<Deleted, StorageError>>;

    /// Removes a document's tombstone, so that clients can upload it again. Deleted data is not
    /// restored. Returns false if it has no tombstone.
    ///
    /// # Errors
    /// What is left of the document, or its tombstone, cannot be deleted.
    fn undelete(&self, document: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>>;

    /// Adds a tombstone of another storage. Returns false, and changes nothing, if the document has
    /// a tombstone already, or if anything is stored of it, even if it is not served.
    ///
    /// # Errors
    /// The document cannot be read, or the tombstone cannot be written.
    fn import_tombstone(&self, tombstone: Tombstone) -> BoxFuture<'_, Result<bool, StorageError>>;

    /// Returns the tombstone of a document, if it was deleted.
    ///
    /// # Errors
    /// The store cannot be read.
    fn tombstone(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Tombstone>, StorageError>>;

    /// Returns all tombstones, in the order of the document ids.
    ///
    /// # Errors
    /// The store cannot be read.
    fn tombstones(&self) -> BoxFuture<'_, Result<Vec<Tombstone>, StorageError>>;

    /// Blocks a document until the relay stops: at once, even if the store hangs.
    /// [`block`](Self::block) must follow.
    fn block_in_memory(&self, document: DocumentId);

    /// Blocks a document. If it is blocked already, the time and the reason stay unless there is a
    /// new reason.
    ///
    /// # Errors
    /// The block cannot be written.
    fn block(
        &self,
        document: DocumentId,
        reason: Option<String>,
    ) -> BoxFuture<'_, Result<Block, StorageError>>;

    /// Ends the block of a document. Returns false if there is none.
    ///
    /// # Errors
    /// The block cannot be removed.
    fn unblock(&self, document: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>>;

    /// Returns the blocked documents, in the order of their ids.
    ///
    /// # Errors
    /// The store cannot be read.
    fn blocks(&self) -> BoxFuture<'_, Result<Vec<Block>, StorageError>>;

    /// Returns what is in quarantine, in the order of the paths.
    ///
    /// # Errors
    /// The store cannot be read.
    fn quarantined(&self) -> BoxFuture<'_, Result<Vec<Quarantined>, StorageError>>;

    /// Puts a chunk in quarantine back into its document. Returns its key.
    ///
    /// # Errors
    /// There is no such entry, it is not a chunk, still does not parse, or cannot be moved.
    fn release(&self, path: String) -> BoxFuture<'_, Result<Key, StorageError>>;

    /// Deletes an entry of the quarantine.
    ///
    /// # Errors
    /// There is no such entry, or it cannot be deleted.
    fn purge(&self, path: String) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Returns the documents of the uploaded bundle of this id and ETag, or nothing if they were
    /// not merged into storage yet.
    ///
    /// # Errors
    /// The record cannot be read.
    fn imported(
        &self,
        bundle: DocumentId,
        etag: String,
    ) -> BoxFuture<'_, Result<Option<Vec<DocumentId>>, StorageError>>;

    /// Records that the documents of an uploaded bundle were merged into storage.
    ///
    /// # Errors
    /// The record cannot be written.
    fn record_import(
        &self,
        bundle: DocumentId,
        etag: String,
        documents: Vec<DocumentId>,
    ) -> BoxFuture<'_, Result<(), StorageError>>;

    /// Forgets which bundles were imported, so that each is imported again when it is next fetched.
    ///
    /// # Errors
    /// A record cannot be deleted.
    fn forget_imports(&self) -> BoxFuture<'_, Result<(), StorageError>>;
}
