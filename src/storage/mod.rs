//! Documents on disk.
//!
//! [`ChunkStore`] is what a store must do. [`nodefs`] is automerge-repo's folder layout, [`journal`] a journal
//! before it, in which the changes of all documents become durable together. [`documents`] stands above them:
//! it loads a document with what the [`underlay`] has of it, checks every chunk, retries what fails, and
//! knows how much waits to be written. [`tombstones`] are the documents that were deleted, [`blocked`] those that an
//! operator keeps from everybody; both are [`marks`]. [`space`] is how much room there is. For the operator,
//! [`inspect`] says what is stored of one document, [`walk`] lists a folder, [`fsck`] checks one, and
//! [`quarantine`] is what was put aside, [`backups`] are those that were made; [`replacing`] guards a restore that replaces all, and
//! [`imported`] notes which uploaded bundles are among the documents.

pub mod backups;
pub mod blocked;
pub mod documents;
pub mod fsck;
pub mod imported;
pub mod inspect;
pub mod journal;
pub mod marks;
pub mod nodefs;
pub mod quarantine;
pub mod replacing;
pub mod space;
pub mod tombstones;
pub mod underlay;
pub mod walk;

use std::{io, path::PathBuf};

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::base::document_id::DocumentId;
use crate::document::chunk::{Key, StoredChunk};

/// What a store could not do, to which file, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct StorageError {
    /// What was tried: "write", "read", "list", "delete", "create".
    pub action: &'static str,
    /// The file or folder.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// A place for chunks. Every call says whether it worked: samod's own `Storage` cannot.
pub trait ChunkStore: Send + Sync + 'static {
    /// The value of `key`, if there is one.
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>, StorageError>>;

    /// All chunks of a document.
    fn load_document(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Vec<StoredChunk>, StorageError>>;

    /// Store a value. Once this returns, the value survives what `storage.durability` says.
    fn put<'a>(&'a self, key: &'a Key, data: Bytes) -> BoxFuture<'a, Result<(), StorageError>>;

    /// Delete a value, or let it be deleted later; deleting what is not there is no error.
    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), StorageError>>;

    /// Whether a document was deleted: nothing is stored of it then, and nothing will be.
    fn is_deleted(&self, _document: DocumentId) -> bool {
        false
    }

    /// Whether an operator keeps a document from everybody.
    fn is_blocked(&self, _document: DocumentId) -> bool {
        false
    }

    /// Move a chunk that does not parse out of the documents, and keep it.
    fn quarantine<'a>(
        &'a self,
        key: &'a Key,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>>;
}
