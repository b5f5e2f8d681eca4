//! Assembling a document from its chunks and its seed.

use std::collections::HashSet;

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tracing::error;

use super::opened::{Opened, SeedSnapshot};
use crate::{
    base::{document_id::DocumentId, hex::hex},
    document::{
        chunk::{ChunkKind, Key, StoredChunk, snapshot_key},
        gate::{Document, Refusal, Rules},
        load::{self, Loaded},
        merge::Ancestry,
    },
};

/// The most changes of a document whose hashes are listed in [`Opened`].
const MAX_LISTED_CHANGES: u64 = 64;

/// A document that was assembled from its chunks and its seed.
pub struct Assembled {
    /// The document, made of all valid chunks.
    pub opened: Opened,
    /// Chunks that are not part of it, with the reasons.
    pub broken: Vec<(Key, String)>,
    /// A snapshot with the valid changes of broken chunks. It must be stored before these are moved
    /// to quarantine.
    pub rescue: Option<SeedSnapshot>,
    /// The seed, if it has changes that storage lacks.
    pub(super) newer_seed: Option<SeedSnapshot>,
    /// Whether the seed has another history than the stored document.
    pub(super) is_seed_unrelated: bool,
}

/// Assembles a document from its chunks and its seed. Takes processor time.
pub fn assemble(document: DocumentId, stored: Vec<StoredChunk>, seed: Option<Bytes>) -> Assembled {
    let Loaded { mut doc, bad: broken, is_to_be_saved } = load::load(&stored);
    let mut chunks = stored;
    chunks.retain(|(key, _)| !broken.iter().any(|(bad, _)| bad == key));
    let rescue = is_to_be_saved.then(|| {
        let data = doc.automerge().save();
        let mut key = snapshot_key(document, doc.heads());
        if broken.iter().any(|(bad, _)| *bad == key) {
            let name = hex(&Sha256::digest(&data));
            key = Key::Chunk { document, kind: ChunkKind::Incremental, name };
        }
        SeedSnapshot { key, data: data.into() }
    });
    let stored_heads = doc.heads().to_vec();
    let (mut unsaved_seed, mut newer_seed, mut is_seed_unrelated) = (None, None, false);
    if let Some(data) = seed {
        match apply_seed(document, &mut doc, data) {
            Seeding::Contained => {}
            Seeding::Only(seed) => {
                chunks.push((seed.key.clone(), seed.data.to_vec()));
                unsaved_seed = Some(seed);
            }
            Seeding::Newer(seed) => newer_seed = Some(seed),
            Seeding::Unrelated => is_seed_unrelated = true,
            Seeding::Refused(refusal) => {
                error!(%document, "the served bundle's changes {refusal}; keeping the stored \
                                   document");
                if doc.is_damaged() {
                    doc = load::load(&chunks).doc;
                }
            }
        }
    }
    let changes = if doc.changes() <= MAX_LISTED_CHANGES {
        doc.automerge().get_changes_meta(&[]).iter().map(|change| change.hash).collect()
    } else {
        HashSet::new()
    };
    let heads = doc.heads().to_vec();
    let opened =
        Opened { doc, heads, stored_heads, changes, chunks, unsaved_seed, ..Opened::default() };
    Assembled { opened, broken, rescue, newer_seed, is_seed_unrelated }
}

/// What a seed added to a document.
enum Seeding {
    /// The stored document has all of its changes.
    Contained,
    /// Nothing is stored, so the seed is the whole document.
    Only(SeedSnapshot),
    /// It has changes that the stored document lacks.
    Newer(SeedSnapshot),
    /// It has another history. Nothing of it was added.
    Unrelated,
    /// Its changes may not be admitted.
    Refused(Refusal),
}

fn apply_seed(document: DocumentId, doc: &mut Document, data: Bytes) -> Seeding {
    let mut snapshot = match Document::read(&data, Rules::Admission) {
        Ok(snapshot) => snapshot,
        Err(refusal) => return Seeding::Refused(refusal),
    };
    let is_stored = !doc.heads().is_empty();
    if is_stored {
        match Ancestry::of(snapshot.automerge(), doc.automerge()) {
            Ancestry::Contained => return Seeding::Contained,
            Ancestry::Newer => {}
            Ancestry::Unrelated => return Seeding::Unrelated,
        }
    }
    let seed = SeedSnapshot { key: snapshot_key(document, snapshot.heads()), data };
    match doc.admit(&seed.data, Rules::Admission) {
        Err(refusal) => Seeding::Refused(refusal),
        Ok(_) if is_stored => Seeding::Newer(seed),
        Ok(_) => Seeding::Only(seed),
    }
}
