//! A document's chunks: those in storage, the one that is being written, and the next one.

use automerge::{Change, ChangeHash};

use crate::{
    config::Size,
    document::chunk::{ChunkKind, Key},
};

/// Increments up to this many bytes are kept next to a snapshot, however small it is.
const MIN_COMPACTION: usize = 4 << 10;
/// So are increments of this many bytes for each change of the document: a snapshot of it costs as
/// much as all of its past, and an edit should not. An edit takes about 150 bytes, so at most a
/// twentieth of the changes are in increments because of this.
const INCREMENTS_PER_CHANGE: usize = 8;
/// But not more than this part of what a document may have in storage.
const INCREMENTS_SHARE: u64 = 8;
/// So many increments are replaced by one, which opens faster. Random tests write little.
const MERGED: usize = if cfg!(test) { 3 } else { 32 };
/// Increments of more bytes together stay as they are.
const MAX_MERGED: usize = 64 << 10;
/// A document with so many chunks gets a snapshot. Increments of earlier times when the document
/// was in memory are not merged.
const MAX_CHUNKS: usize = 1000;
/// Changes of at least this many bytes that arrived together are written as a snapshot, unless the
/// stored one is larger.
const LARGE_BATCH: usize = 32 << 10;
/// A document without a snapshot gets one with its next write. More changes than this at once are
/// then not kept for an increment, which would be written only if the snapshot does not load.
const MAX_KEPT_BEFORE_SNAPSHOT: usize = 100;

/// The chunks in storage.
#[derive(Default)]
struct Stored {
    /// Their keys and sizes.
    chunks: Vec<(Key, usize)>,
    /// Bytes of all snapshots.
    snapshots: usize,
    /// Bytes of all increments.
    increments: usize,
}

/// The last chunks, if they are increments which another can replace.
#[derive(Default)]
struct Recent {
    count: usize,
    /// Their bytes.
    bytes: usize,
    /// The heads of the document without them.
    heads_before: Vec<ChangeHash>,
}

impl Stored {
    fn add(&mut self, key: Key, size: usize) {
        *self.total(&key) += size;
        self.chunks.push((key, size));
    }

    fn remove_last(&mut self, count: usize) {
        for (key, size) in self.chunks.split_off(self.chunks.len().saturating_sub(count)) {
            *self.total(&key) -= size;
        }
    }

    /// Bytes of all chunks of the key's kind.
    fn total(&mut self, key: &Key) -> &mut usize {
        if is_snapshot(key) { &mut self.snapshots } else { &mut self.increments }
    }

    /// Whether the next write has to be a snapshot, if there are this many bytes of changes to
    /// write, and `kept` bytes of increments are kept however small the snapshot is.
    ///
    /// As in automerge-repo (`StorageSubsystem.ts`, `#shouldCompact`) the sizes decide, so that all
    /// writes of a document together are O(its size). A snapshot is also smaller than many changes
    /// that arrived as one document.
    fn wants_snapshot(&self, unwritten: usize, kept: usize) -> bool {
        self.snapshots == 0
            || self.increments >= self.snapshots.max(kept)
            || self.chunks.len() >= MAX_CHUNKS
            || unwritten >= self.snapshots.max(LARGE_BATCH)
    }
}

/// Returns how many bytes of increments are kept of a document with this many changes, of which
/// `max_stored` may be stored.
pub(super) fn kept_increments(changes: u64, max_stored: Size) -> usize {
    let most = usize::try_from(max_stored.0 / INCREMENTS_SHARE).unwrap_or(usize::MAX);
    let changes = usize::try_from(changes).unwrap_or(usize::MAX);
    changes.saturating_mul(INCREMENTS_PER_CHANGE).min(most).max(MIN_COMPACTION)
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
    recent: Recent,
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
        let (recent, unwritten) = (Recent::default(), Some(Vec::new()));
        Self { stored: all, recent, under_way: None, unwritten }
    }

    /// Bytes of the document's chunks in storage.
    pub(super) fn stored_bytes(&self) -> usize {
        self.stored.snapshots + self.stored.increments
    }

    /// The keys of the document's chunks in storage.
    pub(super) fn stored_keys(&self) -> impl Iterator<Item = &Key> {
        self.stored.chunks.iter().map(|(key, _)| key)
    }

    /// Whether storage has some of the document.
    pub(super) fn is_stored(&self) -> bool {
        !self.stored.chunks.is_empty()
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

    /// Whether the next write has to be a snapshot, if there are this many bytes of changes to
    /// write, and [so many bytes](kept_increments) of increments are kept. `is_saved`: the write
    /// under way will be durable by then.
    pub(super) fn wants_snapshot(&self, is_saved: bool, unwritten: usize, kept: usize) -> bool {
        match &self.under_way {
            Some(write) if is_saved && is_snapshot(&write.key) => {
                let stored = Stored { snapshots: write.size, ..Stored::default() };
                stored.wants_snapshot(unwritten, kept)
            }
            _ => self.stored.wants_snapshot(unwritten, kept),
        }
    }

    /// How many increments the next one is to replace. 0 if it holds only new changes.
    pub(super) fn mergeable_count(&self) -> usize {
        Some(self.recent.count).filter(|count| *count >= MERGED).unwrap_or(0)
    }

    /// Returns the heads without the increments that the next one is to replace, and the keys of
    /// these, if there are any.
    pub(super) fn mergeable(&self) -> Option<(&[ChangeHash], Vec<Key>)> {
        let first = self.stored.chunks.len().checked_sub(self.mergeable_count())?;
        let keys: Vec<Key> =
            self.stored.chunks.iter().skip(first).map(|(key, _)| key.clone()).collect();
        (!keys.is_empty()).then_some((&self.recent.heads_before, keys))
    }

    /// Records a chunk that is durable now, and replaces `replaced` others: all, or the last ones.
    /// `heads_before` are the durable heads before it.
    pub(super) fn add_stored(
        &mut self,
        key: Key,
        size: usize,
        replaced: usize,
        heads_before: &[ChangeHash],
    ) {
        if is_snapshot(&key) {
            self.stored = Stored::default();
        }
        self.stored.remove_last(replaced);
        if is_snapshot(&key) || replaced > 0 || self.recent.bytes + size > MAX_MERGED {
            self.recent = Recent::default();
        } else {
            if self.recent.count == 0 {
                self.recent.heads_before = heads_before.to_vec();
            }
            self.recent.count += 1;
            self.recent.bytes += size;
        }
        self.stored.add(key, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::document_id::DocumentId;

    /// Writes increments of this size to a document with this many changes and a snapshot of so
    /// many bytes, until the next write has to be a snapshot. Returns how many it wrote, and how
    /// many chunks were stored then.
    fn increments_until_snapshot(size: usize, changes: u64, snapshot: usize) -> (usize, usize) {
        let key = |kind, name: usize| {
            let (document, name) = (DocumentId::from_bytes([7; 16]), name.to_string());
            Key::Chunk { document, kind, name }
        };
        let mut chunks = Chunks::new([(key(ChunkKind::Snapshot, 0), snapshot)]);
        let kept = kept_increments(changes, Size::mib(256));
        let mut written = 0;
        while !chunks.wants_snapshot(false, size, kept) {
            let (mut bytes, mut replaced) = (size, 0);
            if let Some((_, keys)) = chunks.mergeable() {
                (bytes, replaced) = (size * (keys.len() + 1), keys.len());
            }
            written += 1;
            chunks.add_stored(key(ChunkKind::Incremental, written), bytes, replaced, &[]);
            assert_eq!(chunks.stored_bytes(), snapshot + written * size);
        }
        (written, chunks.stored_keys().count())
    }

    #[test]
    fn an_edit_does_not_pay_for_the_past() {
        // 60,000 keystrokes take less than a byte each in a snapshot.
        let (written, stored) = increments_until_snapshot(150, 60_000, 20_000);
        assert_eq!(written, 3_200);
        assert!(stored <= written / MERGED + 1, "{stored}");
        // Where the past is short, sizes decide.
        assert_eq!(increments_until_snapshot(150, 100, 30_000).0, 200);
    }

    #[test]
    fn large_increments_are_not_merged() {
        assert_eq!(increments_until_snapshot(40_000, 100, 1_000_000), (25, 26));
    }

    #[test]
    fn increments_leave_most_of_a_small_limit_to_the_document() {
        assert_eq!(kept_increments(150_000, Size::mib(1)), 128 << 10);
        assert_eq!(kept_increments(10, Size::mib(1)), MIN_COMPACTION);
    }
}
