//! Stored chunks, and the keys that automerge-repo gives them.

use std::fmt;

use automerge::ChangeHash;
use sha2::{Digest, Sha256};

use crate::base::{document_id::DocumentId, hex::hex};

/// A snapshot of a whole document, or changes that build on one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChunkKind {
    /// The whole document at some heads.
    Snapshot,
    /// One or more changes.
    Incremental,
}

impl ChunkKind {
    /// Both kinds, in the order in which a document is loaded.
    pub const ALL: [Self; 2] = [Self::Snapshot, Self::Incremental];

    /// The kind's name in keys, as in automerge-repo (`StorageSubsystem.ts`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Incremental => "incremental",
        }
    }

    /// Returns the kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The key of a stored value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The id of this storage, which clients see in the handshake.
    StorageId,
    /// A chunk of a document.
    Chunk {
        /// The document.
        document: DocumentId,
        /// What the chunk holds.
        kind: ChunkKind,
        /// The chunk's name: a hash, or the name that another program gave it. One component of a
        /// path.
        name: String,
    },
}

/// Returns the key of a snapshot at `heads`, named by SHA-256 over them, as samod names its own.
pub fn snapshot_key(document: DocumentId, heads: &[ChangeHash]) -> Key {
    let mut hasher = Sha256::new();
    for head in heads {
        hasher.update(head.0);
    }
    Key::Chunk { document, kind: ChunkKind::Snapshot, name: hex(&hasher.finalize()) }
}

/// Returns the key of an increment, named by SHA-256 over its bytes, as automerge-repo names its
/// own.
pub fn increment_key(document: DocumentId, data: &[u8]) -> Key {
    let name = hex(&Sha256::digest(data));
    Key::Chunk { document, kind: ChunkKind::Incremental, name }
}

impl Key {
    /// Whether it is the key of a snapshot.
    pub fn is_snapshot(&self) -> bool {
        matches!(self, Self::Chunk { kind: ChunkKind::Snapshot, .. })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StorageId => f.write_str("storage-adapter-id"),
            Self::Chunk { document, kind, name } => {
                write!(f, "{document}/{}/{name}", kind.name())
            }
        }
    }
}

/// A stored chunk: its key and its bytes.
pub type StoredChunk = (Key, Vec<u8>);
