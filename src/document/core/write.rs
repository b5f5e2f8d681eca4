//! When and what is written of the document, and which stored chunks a write replaces.

use std::sync::Arc;

use automerge::ChangeHash;
use bytes::Bytes;

use super::{
    chunks::{Compaction, Write, kept_increments},
    event::Effect,
    state::Core,
};
use crate::document::{
    chunk::{Key, increment_key, snapshot_key},
    gate,
};

impl Core {
    /// Begins to write what is not durable, unless a write is under way: what is applied meanwhile
    /// belongs to the next one.
    pub(super) fn write(&mut self, effects: &mut Vec<Effect>) {
        let is_durable = self.doc.heads() == self.durable.heads;
        if is_durable || self.chunks.under_way.is_some() || self.awaits_remains {
            return;
        }
        let wants_snapshot =
            self.chunks.wants_snapshot(false, self.chunks.unwritten_bytes(), self.compaction());
        let heads = self.doc.heads().to_vec();
        let doc = self.doc.automerge();
        let snapshot = wants_snapshot.then(|| doc.save());
        // A snapshot that replaces stored chunks must load.
        let snapshot =
            snapshot.filter(|data| !self.chunks.is_stored() || gate::loads(data, &heads));
        let (key, data, replaces) = if let Some(data) = snapshot {
            self.chunks.begin_snapshot();
            let key = snapshot_key(self.id, &heads);
            let replaces = self.chunks.stored_keys().filter(|old| **old != key).cloned().collect();
            (key, data, replaces)
        } else {
            let after = |heads: &[ChangeHash]| doc.save_after(heads);
            let (data, replaces) = self.chunks.take_increment(&self.durable.heads, after);
            (increment_key(self.id, &data), data, replaces)
        };
        let data = Bytes::from(data);
        let changes = self.doc.changes();
        let save =
            Effect::Save { key: key.clone(), data: data.clone(), replaces: replaces.clone() };
        effects.push(save);
        let replaced = self.chunks.total_of(&replaces);
        self.chunks.under_way = Some(Write { heads, changes, key, data, replaces, replaced });
    }

    /// When increments are replaced by a snapshot.
    pub(super) fn compaction(&self) -> Compaction {
        let kept = kept_increments(self.doc.changes(), self.max.stored);
        Compaction { kept, rank: self.rank }
    }

    /// The write under way is durable, under another key if one is given. Peers from which heads were
    /// withheld because of it are answered.
    pub(super) fn complete_write(&mut self, key: Option<Key>) {
        let Some(mut write) = self.chunks.under_way.take() else { return };
        write.key = key.unwrap_or(write.key);
        self.chunks.complete(&write, &self.durable.heads);
        self.has_unsaved_base = false;
        self.durable_until(write.heads, write.changes);
        if self.durable.has_no_unsaved() {
            // The rest came from other relays, which had stored it.
            self.durable_until(self.doc.heads().to_vec(), self.doc.changes());
        }
    }

    /// The document's first `changes` changes are durable, up to these heads. Peers from which
    /// heads were withheld because of them are answered.
    pub(super) fn durable_until(&mut self, heads: Vec<ChangeHash>, changes: u64) {
        self.durable.advance(heads, changes);
        self.peers.queue_answers(|peer| {
            if peer.announced_changes <= changes {
                peer.announced_heads = Arc::default();
            }
            peer.is_withheld && peer.withheld_until <= changes
        });
    }
}
