//! What is true after every step. Checked in debug builds.

use super::state::Core;

impl Core {
    /// Panics in debug builds if a step has left the core in a state that must not occur. Takes
    /// O(peers).
    pub(super) fn assert_invariants(&mut self) {
        if !cfg!(debug_assertions) {
            return;
        }
        self.assert_durable_is_covered();
        self.assert_write_covers_the_rest();
        self.peers.assert_consistent();
        let changes = self.doc.changes();
        for (id, peer) in self.peers.iter() {
            debug_assert!(peer.is_blocked == peer.needs_answer, "{id} waits for an answer");
            debug_assert!(
                peer.withheld_until <= changes,
                "heads are withheld from {id} until changes that do not exist"
            );
            debug_assert!(
                peer.announced_changes <= changes,
                "changes were announced to {id} that do not exist"
            );
        }
    }

    /// Heads are sorted and durable heads are changes of the document.
    fn assert_durable_is_covered(&mut self) {
        debug_assert!(self.doc.heads().is_sorted(), "the heads are not sorted");
        debug_assert!(self.durable.heads.is_sorted(), "the durable heads are not sorted");
        let is_all = self.durable.heads == self.doc.heads();
        debug_assert!(
            is_all || self.durable.heads.iter().all(|head| self.doc.has(head)),
            "a durable change is not in the document"
        );
        debug_assert!(
            self.durable.changes <= self.doc.changes(),
            "more changes are durable than the document has"
        );
        debug_assert!(
            !is_all
                || (self.durable.changes == self.doc.changes() && self.durable.has_no_unsaved()),
            "the durable heads are the document's, but not all changes are durable"
        );
    }

    /// A write is under way exactly where something is not durable, and holds more than is durable.
    fn assert_write_covers_the_rest(&mut self) {
        let is_all = self.durable.heads == self.doc.heads();
        debug_assert!(
            self.awaits_remains || self.chunks.under_way.is_some() != is_all,
            "a write is under way exactly where something is not durable"
        );
        let Some(write) = &self.chunks.under_way else { return };
        debug_assert!(
            write.changes > self.durable.changes && write.changes <= self.doc.changes(),
            "the write under way holds nothing new, or more than the document"
        );
        debug_assert!(
            write.heads.iter().all(|head| self.doc.has(head)),
            "the write under way holds a change that is not in the document"
        );
        debug_assert!(!self.is_durable(), "the core is durable while a write is under way");
    }
}
