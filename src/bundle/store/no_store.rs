//! The store of a relay that accepts no bundles.

use futures::future::BoxFuture;

use super::{bundle_store::BundleStore, received::ReceivedFile, stored::StoredBundle};
use crate::{
    base::document_id::DocumentId,
    storage::{Failure, Location, StorageError},
};

/// Has no bundles, and refuses to store one.
pub(super) struct NoStore;

fn refused<'a, T: Send + 'a>() -> BoxFuture<'a, Result<T, StorageError>> {
    let bundles = Location::Object("bundles".to_owned());
    let failure = Failure::new("store", bundles, "bundles.store is \"none\"");
    Box::pin(async { Err(StorageError::Refused(failure)) })
}

impl BundleStore for NoStore {
    fn receive(&self) -> BoxFuture<'_, Result<ReceivedFile, StorageError>> {
        refused()
    }

    fn put(
        &self,
        _id: DocumentId,
        _bundle: ReceivedFile,
        _keep: usize,
    ) -> BoxFuture<'_, Result<String, StorageError>> {
        refused()
    }

    fn get(&self, _id: DocumentId) -> BoxFuture<'_, Result<Option<StoredBundle>, StorageError>> {
        Box::pin(async { Ok(None) })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<(DocumentId, String)>, StorageError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn delete(&self, _id: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>> {
        Box::pin(async { Ok(false) })
    }

    fn move_aside(&self, _name: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async { Ok(()) })
    }
}
