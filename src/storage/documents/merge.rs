//! Merging a whole document with the stored one.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{assemble::assemble, opened::SeedSnapshot};
use crate::{
    base::{document_id::DocumentId, hex::hex},
    document::{
        chunk::{ChunkKind, Key, StoredChunk, snapshot_key},
        merge::{self, Addition, Merged},
    },
};

/// The source of a document that is merged with the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeSource {
    /// The operator, by an import or a restore.
    Operator,
    /// An uploaded bundle. It is merged with the served bundle's snapshot, too.
    Upload,
}

/// Compares a document with the stored one. Returns the chunk that must be stored to merge it.
pub(super) fn compare(
    document: DocumentId,
    stored: Vec<StoredChunk>,
    seed: Option<Bytes>,
    data: &Bytes,
) -> (Merged, Option<SeedSnapshot>) {
    let name = hex(&Sha256::digest(data));
    let unchanged = Key::Chunk { document, kind: ChunkKind::Incremental, name };
    let is_kept = stored.iter().any(|(key, _)| *key == unchanged);
    let is_stored = !stored.is_empty();
    let mut doc = assemble(document, stored, seed).opened.doc;
    let (merged, addition) = merge::merge(&mut doc, data, is_stored, is_kept);
    let addition = addition.map(|addition| match addition {
        Addition::AsItCame => SeedSnapshot { key: unchanged, data: data.clone() },
        Addition::Snapshot { data, heads } => {
            SeedSnapshot { key: snapshot_key(document, &heads), data: data.into() }
        }
    });
    (merged, addition)
}
