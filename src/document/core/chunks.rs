//! A document's chunks: those in storage, the one that is being written, and the next one.

use automerge::{Change, ChangeHash};

use crate::document::chunk::{ChunkKind, Key};

/// Increments up to this many bytes are kept next to a snapshot, however small it is.
const MIN_COMPACTION: usize = 4 << 10;
/// Changes of at least this many bytes that arrived together are written as a snapshot, unless the
/// stored one is larger.
const LARGE_BATCH: usize = 32 << 10;
/// A document without a snapshot gets one with its next write. More changes than this at once are
/// then not kept for an increment, which would be written only if the snapshot does not load.
const MAX_KEPT_BEFORE_SNAPSHOT: usize = 100;

/// The chunks in storage.
#[derive(Default)]
struct Stored {
    keys: Vec<Key>,
    /// Bytes of all snapshots.
    snapshots: usize,
    /// Bytes of all increments.
    increments: usize,
}

impl Stored {
    fn add(&mut self, key: Key, size: usize) {
        *(if is_snapshot(&key) { &mut self.snapshots } else { &mut self.increments }) += size;
        self.keys.push(key);
    }

    /// Whether the next write has to be a snapshot, with this many bytes of changes to write.
    ///
    /// As in automerge-repo (`StorageSubsystem.ts`, `#shouldCompact`) the sizes decide, so that all
    /// writes of a document together are O(its size). A snapshot is also smaller than many changes
    /// that arrived as one document.
    fn wants_snapshot(&self, unwritten: usize) -> bool {
        self.snapshots == 0
            || self.increments >= self.snapshots.max(MIN_COMPACTION)
            || unwritten >= self.snapshots.max(LARGE_BATCH)
    }
}

/// A write under way.
pub(super) struct Write {
    /// The document's heads with what is written.
    pub(super) heads: Vec<ChangeHash>,
    /// How many changes the document has with these heads.
    pub(super) changes: u64,
    pub(super) key: Key,
    pub(super) size: usize,
    /// The chunks that it replaces.
    pub(super) replaces: Vec<Key>,
}

fn is_snapshot(key: &Key) -> bool {
    matches!(key, Key::Chunk { kind: ChunkKind::Snapshot, .. })
}

/// A document's chunks.
pub(super) struct Chunks {
    stored: Stored,
    pub(super) under_way: Option<Write>,
    /// The increment with all changes that are not written; none if it has to be computed.
    unwritten: Option<Vec<u8>>,
}

impl Chunks {
    /// These chunks, with their sizes, hold all of the document.
    pub(super) fn new(stored: impl IntoIterator<Item = (Key, usize)>) -> Self {
        let mut all = Stored::default();
        for (key, size) in stored {
            all.add(key, size);
        }
        Self { stored: all, under_way: None, unwritten: Some(Vec::new()) }
    }

    /// Bytes of the document's chunks in storage.
    pub(super) fn stored_bytes(&self) -> usize {
        self.stored.snapshots + self.stored.increments
    }

    /// The keys of the document's chunks in storage.
    pub(super) fn stored_keys(&self) -> &[Key] {
        &self.stored.keys
    }

    /// Bytes of the changes that are kept for the next write.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.unwritten.as_ref().map_or(0, Vec::len)
    }

    /// Keeps new changes for the next write, unless that will be a snapshot anyway.
    pub(super) fn keep(&mut self, new: &[Change]) {
        match &mut self.unwritten {
            Some(unwritten)
                if self.stored.snapshots > 0 || new.len() <= MAX_KEPT_BEFORE_SNAPSHOT =>
            {
                new.iter().for_each(|change| unwritten.extend(change.raw_bytes()));
            }
            _ => self.unwritten = None,
        }
    }

    /// The next increment has to be computed from the document.
    pub(super) fn keep_nothing(&mut self) {
        self.unwritten = None;
    }

    /// Returns the next increment if it is known, and begins to collect the one after it.
    pub(super) fn take_unwritten(&mut self) -> Option<Vec<u8>> {
        self.unwritten.replace(Vec::new())
    }

    /// Whether the next write has to be a snapshot, with this many bytes of changes to write.
    /// `is_saved`: the write under way will be durable by then.
    pub(super) fn wants_snapshot(&self, is_saved: bool, unwritten: usize) -> bool {
        match &self.under_way {
            Some(write) if is_saved && is_snapshot(&write.key) => {
                Stored { snapshots: write.size, ..Stored::default() }.wants_snapshot(unwritten)
            }
            _ => self.stored.wants_snapshot(unwritten),
        }
    }

    /// Records a chunk that is durable now. A snapshot replaces all others.
    pub(super) fn add_stored(&mut self, key: Key, size: usize) {
        if is_snapshot(&key) {
            self.stored = Stored::default();
        }
        self.stored.add(key, size);
    }
}
