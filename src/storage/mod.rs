//! Stored documents.
//!
//! | to find | look in |
//! |---|---|
//! | what a store must do | [`ChunkStore`] with chunks, [`store::Store`] with all the rest |
//! | what it tells of documents | [`records`] |
//! | loading, checking, saving and importing documents | [`documents`] |
//! | deleting one | `local::journal::mover`, `postgres::store` |
//! | what the live documents hear of other relays' changes | [`live`] |
//! | what relays tell each other besides | [`relay_message`] |
//! | what they say about themselves | [`relay_report`] |
//! | opening what the config names | [`open`] |
//! | snapshots from which stored documents start | [`underlay`] |
//! | the store on local disks: folders, and the journal in front of them | [`local`] |
//! | the store in a PostgreSQL database | [`postgres`] |
//! | where a change becomes durable, and its saver is notified | `local::journal::writer`, `postgres::writer` |
//! | ... a large chunk, which is written to a file at once | `local::journal::chunk_store` |
//! | notifying peers and subscribers of it | `document::core::answer`, `sync::room::answers` |
//! | when stored chunks are merged, or replaced by a snapshot | `document::core::chunks` |
//! | what is stored of one document, for an operator | [`inspect`] |
//! | checks of everything that is stored | [`fsck`] |

#[cfg(test)]
mod conformance;
pub mod documents;
mod error;
pub mod fsck;
pub mod inspect;
pub mod live;
pub mod local;
pub mod open;
pub mod postgres;
pub mod records;
pub mod relay_message;
pub mod relay_report;
pub mod store;
pub mod underlay;

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

pub use self::error::{Failure, Location, StorageError};
use crate::{
    base::document_id::DocumentId,
    document::chunk::{Key, StoredChunk},
};

/// What is stored of a document.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Its chunks: snapshots before incremental chunks, each key once, and within a kind in no
    /// particular order.
    pub chunks: Vec<StoredChunk>,
    /// How often it was deleted. Always 0 in a folder.
    pub generation: i64,
    /// Whether it is deleted.
    pub is_deleted: bool,
}

/// What is stored of a document besides chunks that are known.
#[derive(Debug, Default)]
pub struct Unknown {
    /// The others, with how often the document was deleted, and whether it is.
    pub loaded: Loaded,
    /// Those of the known ones that are no longer stored.
    pub gone: Vec<Key>,
}

/// How a chunk was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Put {
    /// Under its key.
    Made,
    /// Under this key. Another relay had stored another snapshot under its own, which stays: it may
    /// have changes that wait for others, or be broken.
    MadeAs(Key),
}

/// What a write builds on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// How often the store had lost something when the document was read.
    pub losses: u64,
    /// How often the document had been deleted then. None for a write that builds on nothing.
    pub generation: Option<i64>,
}

/// A store of chunks.
///
/// samod's own `Storage` has no way to report a failure; here every call does.
///
/// # Concurrency
/// All methods may be called at the same time, also for the same key. Calls that do not overlap
/// take effect in their order: after a put has returned, every later load of the document contains
/// the chunk. Of overlapping puts of one key one wins; the value is one of theirs as a whole.
///
/// # Cancellation
/// A future that is dropped leaves the store intact. What it was to do may have happened or not,
/// and may still happen later, but never in part.
///
/// The suite in `conformance` checks this contract on every store.
pub trait ChunkStore: Send + Sync + 'static {
    /// Returns the value of [`Key::StorageId`], or nothing if none was stored.
    fn load_storage_id(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StorageError>>;

    /// Returns all chunks of a document. A document that is not stored, or is deleted, has none.
    ///
    /// This is not a snapshot in time, but no content is missed: the result contains every chunk
    /// whose put returned before the call and whose deletion was requested after it. So if a chunk
    /// is put and only then another one deleted, every load contains at least one of the two. A
    /// chunk whose deletion was requested may still be in it.
    ///
    /// # Errors
    /// Bytes that are stored cannot be read. An error never means that there is no such document.
    fn load_document(&self, document: DocumentId) -> BoxFuture<'_, Result<Loaded, StorageError>>;

    /// Returns what is stored of a document besides the chunks that are `known`.
    ///
    /// # Errors
    /// As for [`load_document`](Self::load_document).
    fn load_unknown(
        &self,
        document: DocumentId,
        known: Vec<Key>,
    ) -> BoxFuture<'_, Result<Unknown, StorageError>> {
        async move {
            let mut loaded = self.load_document(document).await?;
            let is_there = |key: &Key| loaded.chunks.iter().any(|(there, _)| there == key);
            let gone = known.iter().filter(|key| !is_there(key)).cloned().collect();
            loaded.chunks.retain(|(key, _)| !known.contains(key));
            Ok(Unknown { loaded, gone })
        }
        .boxed()
    }

    /// Stores a value. When this returns, a value of the key survives what `storage.durability`
    /// names: a crash of the process, or a power loss as well. A put after a delete of the same key
    /// takes effect, even where that deletion is still pending.
    ///
    /// A value that the key has is replaced. Where several relays share the store it stays: an
    /// increment's name is made of all that it holds, and a snapshot is then stored under another
    /// key.
    ///
    /// # Errors
    /// The value is not durable. The earlier value of the key is unchanged, or the new one is there
    /// as a whole; the same call can be repeated.
    fn put<'a>(&'a self, key: &'a Key, data: Bytes) -> BoxFuture<'a, Result<Put, StorageError>> {
        self.replace(key, data, &[], Basis { losses: self.losses(), generation: None })
    }

    /// Stores a storage id if there is none. Returns the one that is stored.
    ///
    /// # Errors
    /// It cannot be stored.
    fn create_storage_id(&self, id: String) -> BoxFuture<'_, Result<String, StorageError>> {
        async move {
            let _made = self.put(&Key::StorageId, Bytes::from(id.clone())).await?;
            Ok(id)
        }
        .boxed()
    }

    /// How often the store has lost something that it had confirmed, since it was opened. What was
    /// read before a loss may not be stored any more. A folder loses nothing.
    fn losses(&self) -> u64 {
        0
    }

    /// Stores a value as [`put`](Self::put) does, and deletes the chunks that it replaces, as
    /// [`delete`](Self::delete) does. They are deleted only if the value is durable.
    ///
    /// # Errors
    /// The value is not durable, and nothing was deleted. If the `basis` is no longer true, the error
    /// is [`StorageError::Outdated`] after a loss and [`StorageError::Deleted`] after a deletion,
    /// and the call must not be repeated.
    fn replace<'a>(
        &'a self,
        key: &'a Key,
        data: Bytes,
        replaced: &'a [Key],
        basis: Basis,
    ) -> BoxFuture<'a, Result<Put, StorageError>>;

    /// Deletes a chunk, at once or some time later. Deleting a chunk that does not exist succeeds.
    /// After a crash a deleted chunk may be there again, so callers delete only what something
    /// durable has replaced.
    ///
    /// # Errors
    /// The chunk may still be there. The same call can be repeated.
    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), StorageError>>;

    /// Whether other relays may write to it, too. What they have stored is theirs, even if this one
    /// cannot read it.
    fn is_shared(&self) -> bool {
        false
    }

    /// The time in milliseconds since 1970: the same for all relays that share the store.
    fn now(&self) -> u64 {
        local_time()
    }

    /// Whether a document was deleted for good. While it is, [`load_document`](Self::load_document)
    /// returns nothing, and a put of one of its chunks succeeds without storing anything.
    fn is_deleted(&self, _document: DocumentId) -> bool {
        false
    }

    /// Whether an operator has blocked a document. The store still loads and stores it.
    fn is_blocked(&self, _document: DocumentId) -> bool {
        false
    }

    /// Moves a chunk that does not parse out of its document, and keeps it with the reason for the
    /// operator. When this returns, the move is durable and no load of the document contains the
    /// chunk.
    ///
    /// # Errors
    /// The chunk does not exist, or cannot be moved.
    fn quarantine<'a>(
        &'a self,
        key: &'a Key,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>>;
}

/// Milliseconds since 1970, by this machine's clock.
fn local_time() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(0)
}
