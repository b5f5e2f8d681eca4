//! What the admin socket takes and answers about what is stored, as JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    base::document_id::DocumentId,
    storage::local::{backups::Backup, tombstones::Tombstone},
};

/// Why a command cannot be done, as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Problem {
    /// The reason.
    pub problem: String,
}

/// What a checkpoint did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// How many chunks moved from the journal into the folders.
    pub moved: usize,
}

/// What `doc delete` did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// The tombstone.
    #[serde(flatten)]
    pub tombstone: Tombstone,
    /// Chunks deleted, in the journal, the folders and quarantine.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Whether an uploaded bundle with this root was deleted.
    pub bundle: bool,
    /// Other bundles that hold the document; nobody gets it from them by sync.
    pub held_by_bundles: Vec<String>,
    /// Backups that were made of this storage, which may hold it until they are renewed.
    pub backups: Vec<Backup>,
    /// Folders on the relay's disk that may hold it: what restores have replaced, and broken journals. They go when
    /// the operator deletes them.
    pub kept: Vec<PathBuf>,
}

/// An uploaded bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListedBundle {
    /// Its root document.
    pub id: DocumentId,
    /// Another one after every upload.
    pub etag: String,
}

/// The storage's id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StorageId {
    /// The id; none if there is none yet.
    pub storage_id: Option<String>,
}

/// What is to be released or deleted of the quarantine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Selection {
    /// These entries.
    pub paths: Vec<String>,
    /// Or all that are older than so many seconds.
    pub older_than: Option<u64>,
}

/// A line of a listing; one that was cut off has no end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry<T> {
    /// One that is listed.
    Document(T),
    /// All were listed.
    End,
    /// They cannot be listed.
    Problem(String),
}

/// Why a document is to be deleted or blocked.
#[derive(Debug, Serialize, Deserialize)]
pub struct Reason {
    /// In the operator's words.
    pub reason: Option<String>,
}

/// What became of a tombstone that a restore brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Buried {
    /// The document is deleted here now.
    New,
    /// It was deleted here before.
    Already,
    /// The document is here, or a bundle of it, and stays.
    IsHere,
}

/// A document's content, as CBOR.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
pub struct Content {
    /// An automerge save.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub data: Vec<u8>,
    /// Chunks that are not in it, for they do not parse.
    #[n(1)]
    pub broken: Vec<String>,
}

/// A document that a restore or an import brings, as CBOR.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
pub struct Brought {
    /// Its id.
    #[n(0)]
    pub document: String,
    /// An automerge save.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub data: Vec<u8>,
}

/// What became of paths of the quarantine.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// What was done, by path or key.
    pub done: Vec<String>,
    /// Why it could not be done for others.
    pub failed: Vec<String>,
}

/// What a restore that replaces all moved away.
#[derive(Debug, Serialize, Deserialize)]
pub struct Replaced {
    /// Where the documents are now.
    pub documents: PathBuf,
    /// Where the bundles are now, if they are on a local disk.
    pub bundles: Option<PathBuf>,
    /// Whether an earlier restore of the same backup moved it, and was interrupted.
    pub is_resumed: bool,
    /// Where the documents are now that interrupted restores of other backups had brought.
    pub interrupted: Vec<PathBuf>,
}
