//! What storage tells of documents: those that are stored, deleted, blocked or in quarantine.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    base::{document_id::DocumentId, hex::hex},
    document::chunk::{ChunkKind, Key},
};

/// The record of a deleted document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The document.
    pub document: DocumentId,
    /// When it was deleted, in RFC 3339.
    pub deleted_at: String,
    /// The reason, as the operator gave it.
    pub reason: Option<String>,
}

impl Tombstone {
    /// Creates a tombstone with the current time.
    pub fn new(document: DocumentId, reason: Option<String>) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { document, deleted_at: now, reason }
    }
}

/// The record of a blocked document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The document.
    pub document: DocumentId,
    /// When it was blocked, in RFC 3339.
    pub blocked_at: String,
    /// The reason, as the operator gave it.
    pub reason: Option<String>,
}

impl Block {
    /// Creates a block with the current time.
    pub fn new(document: DocumentId, reason: Option<String>) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { document, blocked_at: now, reason }
    }
}

/// What a listing says of a stored document, without reading its chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its id.
    pub document: DocumentId,
    /// How many chunks it has.
    pub chunks: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// A text that changes when the set of chunks changes.
    pub fingerprint: String,
}

impl Listed {
    /// The listing of a document with chunks of these sizes.
    pub fn new(document: DocumentId, mut chunks: Vec<(Key, u64)>) -> Self {
        Self {
            document,
            chunks: chunks.len(),
            bytes: chunks.iter().map(|(_, size)| size).sum(),
            fingerprint: fingerprint(&mut chunks),
        }
    }
}

/// A text that changes when the set of chunks changes. It is made of their names, which are nearly
/// always hashes of their contents.
fn fingerprint(chunks: &mut [(Key, u64)]) -> String {
    chunks.sort_unstable();
    let mut hasher = Sha256::new();
    for (key, size) in chunks {
        hasher.update(format!("{key} {size}\n"));
    }
    hex(&hasher.finalize())
}

/// A chunk, or the file of a journal, in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Its path below `quarantine`.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was moved there, in RFC 3339.
    pub since: String,
    /// The reason.
    pub reason: String,
}

impl Quarantined {
    /// The path of a chunk in quarantine: that of its file in automerge-repo's layout.
    pub fn path_of(key: &Key) -> String {
        match key {
            Key::Chunk { document, kind, name } => {
                format!("{}/{}/{name}", document.folder(), kind.name())
            }
            Key::StorageId => String::new(),
        }
    }

    /// The chunk with this path, if it is one of a chunk.
    pub fn key_of(path: &str) -> Option<Key> {
        let parts: Vec<&str> = path.split('/').collect();
        let &[first, rest, kind, name] = parts.as_slice() else { return None };
        let document = format!("{first}{rest}").parse().ok()?;
        Some(Key::Chunk { document, kind: ChunkKind::from_name(kind)?, name: name.to_owned() })
    }
}

/// What a deletion has deleted.
#[derive(Debug, Default)]
pub struct Deleted {
    /// Chunks, quarantine included.
    pub chunks: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_the_chunks() {
        let document = DocumentId::from_bytes([7; 16]);
        let key = Key::Chunk { document, kind: ChunkKind::Snapshot, name: "abc".to_owned() };
        let listed = |size| Listed::new(document, vec![(key.clone(), size)]);
        assert_eq!(listed(3), listed(3));
        assert_ne!(listed(3).fingerprint, listed(4).fingerprint);
    }
}
