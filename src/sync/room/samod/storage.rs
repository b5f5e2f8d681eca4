//! The store of one room, as samod wants it.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use automerge::ChangeHash;
use samod::storage::{Storage, StorageKey};
use tracing::error;

use crate::{
    base::lock::lock,
    document::{
        chunk::{ChunkKind, Key, StoredChunk},
        gate::{Document, Rules},
    },
    storage::documents::{Documents, SeedSnapshot},
};

/// The store of one room, as samod wants it.
#[derive(Clone)]
pub(super) struct RoomStorage {
    pub(super) documents: Arc<Documents>,
    /// A snapshot was not readable: from now on nothing is deleted.
    pub(super) keeps_all: Arc<AtomicBool>,
    pub(super) storage_id: String,
    /// Keys that need not be written: they were loaded.
    pub(super) known: Arc<HashSet<Key>>,
    /// Changes that need no chunk of their own: a known chunk has them.
    pub(super) changes: Arc<HashSet<ChangeHash>>,
    pub(super) chunks: Arc<Mutex<Vec<StoredChunk>>>,
    /// The served bundle's snapshot, which is stored before the first change that builds on it.
    pub(super) seed: Arc<tokio::sync::Mutex<Option<SeedSnapshot>>>,
}

/// The relay's key for one of samod's. None if it is not a key of a document.
fn key(key: &StorageKey) -> Option<Key> {
    let mut parts = key.into_iter();
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(document), Some(kind), Some(name), None) => Some(Key::Chunk {
            document: document.parse().ok()?,
            kind: ChunkKind::from_name(kind)?,
            name: name.clone(),
        }),
        _ => None,
    }
}

impl RoomStorage {
    /// Stores the served bundle's snapshot, unless it is stored.
    pub(super) async fn save_seed(&self) {
        let mut seed = self.seed.lock().await;
        if let Some(SeedSnapshot { key, data }) = &*seed {
            self.documents.save(key, data.clone()).await;
            *seed = None;
        }
    }

    fn is_stored(&self, key: &Key) -> bool {
        match key {
            Key::Chunk { kind: ChunkKind::Incremental, name, .. } => {
                self.known.contains(key)
                    || name.parse().is_ok_and(|hash| self.changes.contains(&hash))
            }
            // After samod has written a snapshot it deletes every other chunk, including those with
            // changes that the document lacks dependencies for. Written again, it has those as
            // well.
            _ => self.known.len() == 1 && self.known.contains(key),
        }
    }
}

impl Storage for RoomStorage {
    async fn load(&self, key: StorageKey) -> Option<Vec<u8>> {
        (key == StorageKey::storage_id_path()).then(|| self.storage_id.clone().into_bytes())
    }

    /// Returns the chunks that the room was opened with, once.
    async fn load_range(&self, prefix: StorageKey) -> HashMap<StorageKey, Vec<u8>> {
        let mut chunks = lock(&self.chunks);
        let (taken, left) = std::mem::take(&mut *chunks)
            .into_iter()
            .filter_map(|(key, data)| {
                let parts = key.to_string();
                Some((StorageKey::from_parts(parts.split('/')).ok()?, key, data))
            })
            .partition::<Vec<_>, _>(|(samod, _, _)| prefix.is_prefix_of(samod));
        *chunks = left.into_iter().map(|(_, key, data)| (key, data)).collect();
        taken.into_iter().map(|(samod, _, data)| (samod, data)).collect()
    }

    /// Returns when the bytes are durable, however long that takes: samod then deletes what they
    /// replace.
    async fn put(&self, samod: StorageKey, data: Vec<u8>) {
        let key = key(&samod);
        if !key.as_ref().is_some_and(|key| self.is_stored(key)) {
            self.save_seed().await;
        }
        match key {
            Some(key) if self.is_stored(&key) => {}
            Some(key @ Key::Chunk { kind: ChunkKind::Snapshot, .. }) => {
                let checking = tokio::task::spawn_blocking(move || {
                    let is_good = Document::read(&data, Rules::Stored).is_ok();
                    is_good.then_some(data)
                });
                match checking.await.ok().flatten() {
                    Some(data) => self.documents.save(&key, data.into()).await,
                    // The chunks that it would replace are kept, and have all that it has.
                    None => {
                        error!(%key, "cannot read the repo's snapshot again; not storing it");
                        self.keeps_all.store(true, Ordering::Relaxed);
                    }
                }
            }
            Some(key) => self.documents.save(&key, data.into()).await,
            None => {
                error!(key = %samod, "the repo stores something that is not a chunk; not storing \
                                      it")
            }
        }
    }

    async fn delete(&self, samod: StorageKey) {
        if let Some(key) = key(&samod).filter(|_| !self.keeps_all.load(Ordering::Relaxed)) {
            self.documents.remove(&key).await;
        }
    }
}
