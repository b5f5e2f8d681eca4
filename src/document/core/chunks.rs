//! A document's chunks: those in storage, the one that is being written, and the next one.

use std::collections::HashSet;

use automerge::{Change, ChangeHash};
use bytes::Bytes;

use crate::{config::Size, document::chunk::Key};

/// Increments up to this many bytes are kept next to a snapshot, however small it is.
const MIN_COMPACTION: usize = 4 << 10;
/// Bytes of increments that are kept for each change of the document. A snapshot costs as much as
/// all of the document's past, and an edit should not. An edit takes about 150 bytes, so this keeps
/// about a twentieth of the changes in increments.
const INCREMENTS_PER_CHANGE: usize = 8;
/// The largest part of `storage.max_document` that is kept because of that.
const INCREMENTS_SHARE: u64 = 8;
/// The number of increments that are replaced by one, which opens faster. Random tests write
/// little.
const MERGED: usize = if cfg!(test) { 3 } else { 32 };
/// The most bytes of increments that are merged. Larger increments stay as they are.
const MAX_MERGED: usize = 64 << 10;
/// The number of increments in storage when a document was loaded, from which on the next write is
/// a snapshot. These increments are not merged.
const MAX_LOADED: usize = 128;
/// That snapshot waits until the increments have this part of the last one's size.
const LOADED_SHARE: usize = 8;
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
    totals: Totals,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Totals {
    /// Bytes of all snapshots.
    snapshots: usize,
    /// Bytes of all increments.
    increments: usize,
    /// The number of increments that were stored when the document was loaded.
    loaded: usize,
}

/// The last chunks, if they are increments which another can replace.
#[derive(Default)]
struct Recent {
    count: usize,
    /// Their bytes.
    bytes: usize,
    /// The heads of the document without them.
    heads_before: Vec<ChangeHash>,
    /// What they hold, unless the room was idle since.
    data: Option<Vec<u8>>,
}

impl Stored {
    fn add(&mut self, key: Key, size: usize) {
        *self.totals.of(&key) += size;
        self.chunks.push((key, size));
    }

    /// Removes the chunks with these keys.
    fn remove(&mut self, keys: &HashSet<&Key>) {
        let Self { chunks, totals } = self;
        chunks.retain(|(key, size)| {
            let stays = !keys.contains(key);
            if !stays {
                *totals.of(key) -= size;
            }
            stays
        });
    }
}

impl Totals {
    /// Bytes of all chunks of the key's kind.
    fn of(&mut self, key: &Key) -> &mut usize {
        if key.is_snapshot() { &mut self.snapshots } else { &mut self.increments }
    }

    /// Whether the next write has to be a snapshot, if there are this many bytes of changes to
    /// write.
    ///
    /// As in automerge-repo (`StorageSubsystem.ts`, `#shouldCompact`) the sizes decide, so that all
    /// writes of a document together are O(its size). A snapshot is also smaller than many changes
    /// that arrived as one document.
    fn wants_snapshot(self, unwritten: usize, Compaction { kept, rank }: Compaction) -> bool {
        let Self { snapshots, increments, loaded } = self;
        let increments = increments.saturating_mul(2) / (2 + rank);
        snapshots == 0
            || increments >= snapshots.max(kept)
            || (loaded >= MAX_LOADED && increments >= snapshots / LOADED_SHARE)
            || unwritten >= snapshots.max(LARGE_BATCH)
    }
}

/// When increments are replaced by a snapshot.
#[derive(Clone, Copy)]
pub(super) struct Compaction {
    /// Bytes of increments that are kept however small the snapshot is, from [`kept_increments`].
    pub(super) kept: usize,
    /// The relay's rank for the document. Each step raises the threshold by half of it.
    pub(super) rank: usize,
}

/// Returns how many bytes of increments are kept of a document with this many changes, of which
/// `max_stored` may be stored.
pub(super) fn kept_increments(changes: u64, max_stored: Size) -> usize {
    let most = usize::try_from(max_stored.0 / INCREMENTS_SHARE).unwrap_or(usize::MAX);
    let changes = usize::try_from(changes).unwrap_or(usize::MAX);
    changes.saturating_mul(INCREMENTS_PER_CHANGE).min(most).max(MIN_COMPACTION)
}

/// Whether `count` increments of `bytes` together are merged with the next one, of `next` bytes.
fn merges(count: usize, bytes: usize, next: usize) -> bool {
    count >= MERGED || (count >= 2 && bytes + next > MAX_MERGED)
}

/// A write under way.
pub(super) struct Write {
    /// The document's heads with what is written.
    pub(super) heads: Vec<ChangeHash>,
    /// How many changes the document has with these heads.
    pub(super) changes: u64,
    pub(super) key: Key,
    pub(super) data: Bytes,
    /// The chunks that it replaces.
    pub(super) replaces: Vec<Key>,
    /// What these take.
    pub(super) replaced: Totals,
}

/// A document's chunks.
pub(super) struct Chunks {
    stored: Stored,
    recent: Recent,
    pub(super) under_way: Option<Write>,
    /// The increment with all changes that are not written; none if it has to be computed.
    unwritten: Option<Vec<u8>>,
    /// Bytes of a base that is not stored, or of what the store has lost, until the next write is
    /// durable.
    pub(super) unstored: usize,
}

impl Chunks {
    /// These chunks, with their sizes, hold all of the document but what would take `unstored`
    /// bytes.
    pub(super) fn new(stored: impl IntoIterator<Item = (Key, usize)>, unstored: usize) -> Self {
        let mut all = Stored::default();
        for (key, size) in stored {
            all.totals.loaded += usize::from(!key.is_snapshot());
            all.add(key, size);
        }
        let (recent, unwritten) = (Recent::default(), Some(Vec::new()));
        Self { stored: all, recent, under_way: None, unwritten, unstored }
    }

    /// Only these chunks are stored, and no write is under way.
    pub(super) fn begin_anew(&mut self, stored: Vec<(Key, usize)>) {
        let bytes = self.stored_bytes();
        *self = Self::new(stored, 0);
        self.unstored = bytes.saturating_sub(self.stored_bytes());
    }

    /// Bytes of the document's chunks in storage, and of what was not written yet of a base or after
    /// a loss.
    pub(super) fn stored_bytes(&self) -> usize {
        self.stored.totals.snapshots + self.stored.totals.increments + self.unstored
    }

    /// The keys of the document's chunks in storage.
    pub(super) fn stored_keys(&self) -> impl Iterator<Item = &Key> {
        self.stored.chunks.iter().map(|(key, _)| key)
    }

    /// Whether storage has some of the document.
    pub(super) fn is_stored(&self) -> bool {
        !self.stored.chunks.is_empty()
    }

    /// Whether a chunk is stored, or is being written.
    pub(super) fn has(&self, key: &Key) -> bool {
        self.stored_keys().any(|stored| stored == key)
            || self.under_way.as_ref().is_some_and(|write| write.key == *key)
    }

    /// Adds a chunk that another relay has stored.
    pub(super) fn add_of_another(&mut self, key: Key, size: usize) {
        self.stored.add(key, size);
        // The recent ones stay the last ones.
        let first_recent = self.stored.chunks.len().saturating_sub(self.recent.count + 1);
        if let Some(end) = self.stored.chunks.get_mut(first_recent..) {
            end.rotate_right(1);
        }
    }

    /// Chunks with these keys are no longer stored.
    pub(super) fn forget(&mut self, keys: &[Key]) {
        let keys: HashSet<&Key> = keys.iter().collect();
        let first_recent = self.stored.chunks.len().saturating_sub(self.recent.count);
        let mut recent = self.stored.chunks.iter().skip(first_recent);
        if recent.any(|(key, _)| keys.contains(key)) {
            self.recent = Recent::default();
        }
        self.stored.remove(&keys);
    }

    /// What the chunks with these keys take.
    pub(super) fn total_of(&self, keys: &[Key]) -> Totals {
        let keys: HashSet<&Key> = keys.iter().collect();
        let mut totals = Totals::default();
        for (key, size) in self.stored.chunks.iter().filter(|(key, _)| keys.contains(key)) {
            *totals.of(key) += size;
        }
        totals
    }

    /// Bytes of the changes that are kept for the next write.
    pub(super) fn unwritten_bytes(&self) -> usize {
        self.unwritten.as_ref().map_or(0, Vec::len)
    }

    /// Keeps new changes for the next write, unless that will be a snapshot anyway.
    pub(super) fn keep(&mut self, new: &[Change]) {
        match &mut self.unwritten {
            Some(unwritten)
                if self.stored.totals.snapshots > 0 || new.len() <= MAX_KEPT_BEFORE_SNAPSHOT =>
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

    /// Whether the next write has to be a snapshot. `unwritten` is the size of the changes to write
    /// in bytes. With `is_saved`, the write under way counts as durable.
    pub(super) fn wants_snapshot(
        &self,
        is_saved: bool,
        unwritten: usize,
        compaction: Compaction,
    ) -> bool {
        let now = self.stored.totals;
        let totals = match self.under_way.as_ref().filter(|_| is_saved) {
            None => now,
            Some(write) => {
                let mut then = Totals {
                    snapshots: now.snapshots.saturating_sub(write.replaced.snapshots),
                    increments: now.increments.saturating_sub(write.replaced.increments),
                    loaded: if write.key.is_snapshot() { 0 } else { now.loaded },
                };
                *then.of(&write.key) += write.data.len();
                then
            }
        };
        totals.wants_snapshot(unwritten, compaction)
    }

    /// Whether the next increment has to be computed from the document, which may read all of it.
    /// The arguments are those of [`Self::wants_snapshot`].
    pub(super) fn increment_needs_document(&self, is_saved: bool, unwritten: usize) -> bool {
        let Recent { count, bytes, data, .. } = &self.recent;
        let is_merged = match self.under_way.as_ref().filter(|_| is_saved) {
            None => merges(*count, *bytes, unwritten),
            Some(write) if self.ends_recent(write) => false,
            Some(write) => merges(count + 1, bytes + write.data.len(), unwritten),
        };
        self.unwritten.is_none() || (is_merged && *count > 0 && data.is_none())
    }

    /// Whether the increments before this write are not merged with those after it.
    fn ends_recent(&self, write: &Write) -> bool {
        write.key.is_snapshot()
            || !write.replaces.is_empty()
            || self.recent.bytes + write.data.len() > MAX_MERGED
    }

    /// Returns the next increment, and the keys of those that it replaces. `after` computes an
    /// increment with all changes after the given heads; `durable` are the durable heads.
    pub(super) fn take_increment(
        &mut self,
        durable: &[ChangeHash],
        after: impl Fn(&[ChangeHash]) -> Vec<u8>,
    ) -> (Vec<u8>, Vec<Key>) {
        let unwritten = self.unwritten.replace(Vec::new());
        let Recent { count, bytes, heads_before, data } = &self.recent;
        if !merges(*count, *bytes, unwritten.as_ref().map_or(0, Vec::len)) {
            return (unwritten.unwrap_or_else(|| after(durable)), Vec::new());
        }
        let first = self.stored.chunks.len().saturating_sub(*count);
        let keys = self.stored.chunks.iter().skip(first).map(|(key, _)| key.clone()).collect();
        match (data, unwritten) {
            (Some(data), Some(unwritten)) => ([data.as_slice(), &unwritten].concat(), keys),
            _ => (after(heads_before), keys),
        }
    }

    /// Collects the changes of the write after the next one, which is a snapshot.
    pub(super) fn begin_snapshot(&mut self) {
        self.unwritten = Some(Vec::new());
    }

    /// Records a write that is durable now. `heads_before` are the durable heads before it.
    pub(super) fn complete(&mut self, write: &Write, heads_before: &[ChangeHash]) {
        let Write { key, data, replaces, .. } = write;
        if self.ends_recent(write) {
            self.recent = Recent::default();
        } else {
            let recent = &mut self.recent;
            if recent.count == 0 {
                (recent.heads_before, recent.data) = (heads_before.to_vec(), Some(Vec::new()));
            }
            if let Some(all) = &mut recent.data {
                all.extend(data);
            }
            recent.count += 1;
            recent.bytes += data.len();
        }
        if key.is_snapshot() {
            self.stored.totals.loaded = 0;
        }
        self.unstored = 0;
        // A snapshot of the same heads is stored under the same key.
        self.stored.remove(&replaces.iter().chain([key]).collect());
        self.stored.add(key.clone(), data.len());
    }

    /// Keeps no changes in memory that are durable.
    pub(super) fn release_memory(&mut self) {
        self.recent.data = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{base::document_id::DocumentId, document::chunk::ChunkKind};

    /// No other relay has the document.
    fn alone(kept: usize) -> Compaction {
        Compaction { kept, rank: 0 }
    }

    /// Writes increments of this size to a document with this many changes and a snapshot of so
    /// many bytes, until the next write has to be a snapshot. Returns how many it wrote, and how
    /// many chunks were stored then.
    fn increments_until_snapshot(size: usize, changes: u64, snapshot: usize) -> (usize, usize) {
        let key = |kind, name: usize| {
            let (document, name) = (DocumentId::from_bytes([7; 16]), name.to_string());
            Key::Chunk { document, kind, name }
        };
        // As many heads as increments, to compute an increment from.
        let heads = |count| vec![ChangeHash([0; 32]); count];
        let mut chunks = Chunks::new([(key(ChunkKind::Snapshot, 0), snapshot)], 0);
        let compaction = alone(kept_increments(changes, Size::mib(256)));
        let mut written = 0;
        let mut all = Vec::new();
        while !chunks.wants_snapshot(false, size, compaction) {
            let new = vec![u8::try_from(written % 251).expect("small"); size];
            all.extend(new.clone());
            chunks.unwritten = Some(new);
            if written % 50 == 49 {
                chunks.release_memory();
            }
            // Without the data of the others, all that is new since some heads is computed.
            let (data, replaces) =
                chunks.take_increment(&heads(written), |heads| all[heads.len() * size..].to_vec());
            assert!(all.ends_with(&data), "it holds the last increments");
            assert_eq!(data.len(), (replaces.len() + 1) * size);
            let (key, data) = (key(ChunkKind::Incremental, written), data.into());
            let replaced = chunks.total_of(&replaces);
            let write = Write { heads: Vec::new(), changes: 0, key, data, replaces, replaced };
            chunks.complete(&write, &heads(written));
            written += 1;
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
    fn large_increments_are_merged_up_to_a_size() {
        assert_eq!(increments_until_snapshot(40_000, 100, 1_000_000), (25, 26));
        let (written, stored) = increments_until_snapshot(30_000, 100, 3_000_000);
        assert!(written == 100 && stored < 40, "{written}, {stored}");
    }

    #[test]
    fn what_follows_a_save_is_known_before_it() {
        let key = |kind, name: &str| {
            let (document, name) = (DocumentId::from_bytes([7; 16]), name.to_owned());
            Key::Chunk { document, kind, name }
        };
        let mut chunks = Chunks::new([(key(ChunkKind::Snapshot, "s"), 10_000)], 0);
        let write = |name, size| Write {
            heads: Vec::new(),
            changes: 0,
            key: key(ChunkKind::Incremental, name),
            data: vec![0; size].into(),
            replaces: Vec::new(),
            replaced: Totals::default(),
        };
        for name in ["1", "2"] {
            chunks.complete(&write(name, 100), &[]);
        }
        chunks.release_memory();
        // With the one under way there will be enough to merge.
        chunks.under_way = Some(write("3", 100));
        assert!(!chunks.increment_needs_document(false, 100));
        assert!(chunks.increment_needs_document(true, 100));
        assert!(!chunks.wants_snapshot(true, 100, alone(MIN_COMPACTION)));
        chunks.under_way = Some(write("3", 10_000));
        assert!(!chunks.wants_snapshot(false, 100, alone(MIN_COMPACTION)));
        assert!(chunks.wants_snapshot(true, 100, alone(MIN_COMPACTION)));
    }

    #[test]
    fn many_increments_of_earlier_times_are_replaced() {
        let increments = (0..MAX_LOADED).map(|n| (ChunkKind::Incremental, n, 150));
        let all = [(ChunkKind::Snapshot, 0, 20_000)].into_iter().chain(increments);
        let chunks = Chunks::new(
            all.map(|(kind, n, size)| {
                let (document, name) = (DocumentId::from_bytes([7; 16]), n.to_string());
                (Key::Chunk { document, kind, name }, size)
            }),
            0,
        );
        let kept = kept_increments(60_000, Size::mib(256));
        assert!(chunks.wants_snapshot(false, 150, alone(kept)));
    }

    /// Relays that share a document do not all write the same snapshot.
    #[test]
    fn relays_of_different_rank_compact_at_different_sizes() {
        let key = |kind, n: usize| Key::Chunk {
            document: DocumentId::from_bytes([7; 16]),
            kind,
            name: n.to_string(),
        };
        let compacts_at = |rank| {
            let mut chunks = Chunks::new([(key(ChunkKind::Snapshot, 0), 10_000)], 0);
            let mut count = 0;
            while !chunks.wants_snapshot(false, 100, Compaction { kept: 0, rank }) {
                count += 1;
                chunks.add_of_another(key(ChunkKind::Incremental, count), 100);
            }
            count
        };
        assert_eq!([0, 1, 2].map(compacts_at), [100, 150, 200]);
    }

    #[test]
    fn increments_leave_most_of_a_small_limit_to_the_document() {
        assert_eq!(kept_increments(150_000, Size::mib(1)), 128 << 10);
        assert_eq!(kept_increments(10, Size::mib(1)), MIN_COMPACTION);
    }
}
