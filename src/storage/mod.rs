//! Stored documents.
//!
//! | to find | look in |
//! |---|---|
//! | what a store must do | [`ChunkStore`] |
//! | loading, checking, merging and saving documents | [`documents`] |
//! | snapshots from which stored documents start | [`underlay`] |
//! | the store on local disks: folders, and the journal in front of them | [`local`] |
//! | what is stored of one document, for an operator | [`inspect`] |
//! | checks of everything that is stored | [`fsck`] |

pub mod documents;
pub mod fsck;
pub mod inspect;
pub mod local;
pub mod underlay;

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
