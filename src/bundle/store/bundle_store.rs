//! What a store of uploaded bundles must do.

use std::io;

use futures::future::BoxFuture;

use super::{received::ReceivedFile, stored::StoredBundle};
use crate::base::document_id::DocumentId;

/// A store of uploaded bundles, by the id of their root document.
pub trait BundleStore: Send + Sync + 'static {
    /// Creates a file on a local disk in which an upload is received.
    ///
    /// # Errors
    /// The disk cannot be written.
    fn receive(&self) -> BoxFuture<'_, io::Result<ReceivedFile>>;

    /// Stores a verified bundle under `id`, and replaces the one that is there. Keeps the newest
    /// `keep` of the bundles that were replaced. Readers see the whole bundle or none of it; it is
    /// durable when this returns. Returns its ETag.
    fn put(
        &self,
        id: DocumentId,
        bundle: ReceivedFile,
        keep: usize,
    ) -> BoxFuture<'_, io::Result<String>>;

    /// Returns the bundle of that id, if there is one.
    fn get(&self, id: DocumentId) -> BoxFuture<'_, io::Result<Option<StoredBundle>>>;

    /// Lists all bundles, each with its ETag.
    fn list(&self) -> BoxFuture<'_, io::Result<Vec<(DocumentId, String)>>>;

    /// Deletes the bundle of that id with its former generations. Returns false if there is none.
    fn delete(&self, id: DocumentId) -> BoxFuture<'_, io::Result<bool>>;

    /// Moves all bundles into a subfolder `name`, if they are on a local disk.
    fn move_aside(&self, name: &str) -> BoxFuture<'_, io::Result<()>>;
}
