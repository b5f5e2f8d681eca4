//! Stores the chunks of one document in the background.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

use crate::{
    document::chunk::Key,
    storage::documents::{Documents, SeedSnapshot},
};

/// Stores the chunks of one document.
pub(super) struct Writer {
    pub(super) documents: Arc<Documents>,
    /// The served bundle's snapshot, if it is not stored yet. It is stored before the first change
    /// that builds on it.
    seed: Option<SeedSnapshot>,
    /// All writes under way, one after the other; none if there are none.
    pub(super) write: Option<BoxFuture<'static, ()>>,
}

impl Writer {
    pub(super) fn new(documents: Arc<Documents>, seed: Option<SeedSnapshot>) -> Self {
        Self { documents, seed, write: None }
    }

    /// Begins to store the served bundle's snapshot: the bundle may be removed at any time, and
    /// changes that build on its snapshot must not be stored without it.
    pub(super) fn save_seed(&mut self) {
        if let Some(SeedSnapshot { key, data }) = self.seed.take() {
            self.save(key, data, Vec::new());
        }
    }

    /// Begins to store a chunk, after those that are being stored, and to delete those that it
    /// replaces.
    pub(super) fn save(&mut self, key: Key, data: Bytes, replaces: Vec<Key>) {
        let (documents, earlier) = (self.documents.clone(), self.write.take());
        let waiting = documents.unsaved_bytes(data.len());
        let write = async move {
            if let Some(earlier) = earlier {
                earlier.await;
            }
            drop(waiting);
            documents.replace(&key, data, &replaces).await;
        };
        self.write = Some(write.boxed());
    }
}
