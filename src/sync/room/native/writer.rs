//! Stores and deletes the chunks of one document in the background.

use std::sync::Arc;

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};

use crate::{
    document::chunk::Key,
    storage::documents::{Documents, SeedSnapshot},
};

/// Work that is under way; none if there is none.
pub(super) type Work = Option<BoxFuture<'static, ()>>;

/// Stores and deletes the chunks of one document.
pub(super) struct Writer {
    pub(super) documents: Arc<Documents>,
    /// The served bundle's snapshot, if it is not stored yet. It is stored before the first change
    /// that builds on it.
    seed: Option<SeedSnapshot>,
    /// All writes under way, one after the other.
    pub(super) write: Work,
    /// All deletions under way, one after the other.
    pub(super) removal: Work,
}

impl Writer {
    pub(super) fn new(documents: Arc<Documents>, seed: Option<SeedSnapshot>) -> Self {
        Self { documents, seed, write: None, removal: None }
    }

    /// Begins to store the served bundle's snapshot: the bundle may be removed at any time, and
    /// changes that build on its snapshot must not be stored without it.
    pub(super) fn save_seed(&mut self) {
        if let Some(SeedSnapshot { key, data }) = self.seed.take() {
            self.save(key, data);
        }
    }

    /// Begins to store a chunk, after those that are being stored.
    pub(super) fn save(&mut self, key: Key, data: Bytes) {
        let (documents, earlier) = (self.documents.clone(), self.write.take());
        let waiting = documents.unsaved_bytes(data.len());
        let write = async move {
            if let Some(earlier) = earlier {
                earlier.await;
            }
            drop(waiting);
            documents.save(&key, data).await;
        };
        self.write = Some(write.boxed());
    }

    /// Begins to delete chunks, after those that are being deleted.
    pub(super) fn remove(&mut self, keys: Vec<Key>) {
        let (documents, earlier) = (self.documents.clone(), self.removal.take());
        let removal = async move {
            if let Some(earlier) = earlier {
                earlier.await;
            }
            // All at once: each alone would wait for a commit of its own.
            join_all(keys.iter().map(|key| documents.remove(key))).await;
        };
        self.removal = Some(removal.boxed());
    }
}
