//! A document as an engine starts from it.

use std::{collections::HashSet, time::Duration};

use automerge::ChangeHash;
use bytes::Bytes;

use crate::{
    document::{
        chunk::{Key, StoredChunk},
        gate::Document,
        unpacked::Unpacked,
    },
    storage::Basis,
};

/// A document as an engine starts from it.
#[derive(Default)]
pub struct Opened {
    /// The document.
    pub doc: Document,
    /// The chunks that parse, with the seed snapshot if it adds something.
    pub chunks: Vec<StoredChunk>,
    /// The seed snapshot if storage does not have it yet. It must be stored before, or with, the
    /// first change that builds on it.
    pub unsaved_seed: Option<SeedSnapshot>,
    /// The document's heads; empty if there is no such document.
    pub heads: Vec<ChangeHash>,
    /// The heads of what is stored of it, sorted.
    pub stored_heads: Vec<ChangeHash>,
    /// What writes to it build on.
    pub basis: Basis,
    /// The hashes of its changes, if they are few.
    pub changes: HashSet<ChangeHash>,
    /// What its chunks unpack to.
    pub unpacked: Unpacked,
    /// Whether it was deleted. Clients must not be able to bring it back.
    pub is_deleted: bool,
    /// Whether an operator has blocked it.
    pub is_blocked: bool,
    /// The limit that it exceeds, if it is too large to be loaded.
    pub too_large: Option<String>,
    /// Processor time for assembling the document from its chunks.
    pub took: Duration,
}

/// A snapshot of the served bundle, under the key with which it is stored.
#[derive(Clone, Debug)]
pub struct SeedSnapshot {
    /// The key.
    pub key: Key,
    /// The snapshot, as an automerge save.
    pub data: Bytes,
}
