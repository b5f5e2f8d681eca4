//! What a store of uploaded bundles must do.

use futures::future::BoxFuture;

use super::{received::ReceivedFile, stored::StoredBundle};
use crate::{base::document_id::DocumentId, storage::StorageError};

/// A store of uploaded bundles, by the id of their root document.
pub trait BundleStore: Send + Sync + 'static {
    /// Creates a file on a local disk in which an upload is received.
    ///
    /// # Errors
    /// The disk cannot be written.
    fn receive(&self) -> BoxFuture<'_, Result<ReceivedFile, StorageError>>;

    /// Stores a verified bundle under `id`, and replaces the one that is there. Keeps the newest
    /// `keep` of the bundles that were replaced. Readers see the whole bundle or none of it; it is
    /// durable when this returns. Returns its ETag.
    fn put(
        &self,
        id: DocumentId,
        bundle: ReceivedFile,
        keep: usize,
    ) -> BoxFuture<'_, Result<String, StorageError>>;

    /// Returns the bundle of that id, if there is one.
    fn get(&self, id: DocumentId) -> BoxFuture<'_, Result<Option<StoredBundle>, StorageError>>;

    /// Lists all bundles, each with its ETag.
    fn list(&self) -> BoxFuture<'_, Result<Vec<(DocumentId, String)>, StorageError>>;

    /// Deletes the bundle of that id with its former generations. Returns false if there is none.
    fn delete(&self, id: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>>;

    /// Moves all bundles into a subfolder `name`, if they are on a local disk.
    fn move_aside(&self, name: &str) -> BoxFuture<'_, Result<(), StorageError>>;
}
