//! The order of work in a step: apply all events, then answer peers, then write.

use std::sync::Arc;

use automerge::sync::State;

use super::{
    event::{Effect, Event, StoredByAnother},
    peers::Peer,
    state::{Core, Orphans},
};
use crate::{
    config::Size,
    document::{
        gate::{Document, Rules},
        merge::Ancestry,
        unpacked::{self, Origin},
    },
};

impl Core {
    /// Applies events in their order, and returns what the caller has to do.
    ///
    /// The step stops early if it leaves the document [damaged](Self::is_damaged).
    pub(crate) fn step(&mut self, events: Vec<Event>) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.events.extend(events);
        while let Some(event) = self.events.pop_front() {
            match event {
                Event::Join { id, queue_full, reads_only } => {
                    let state = if reads_only { State::new_read_only() } else { State::default() };
                    let peer = Peer { state: Arc::new(state), queue_full, ..Peer::default() };
                    self.peers.join(id, peer);
                }
                Event::Resume => self.peers.resume(),
                Event::Leave(id) => self.peers.leave(id),
                Event::ReadsOnly(id) => {
                    if let Some(peer) = self.peers.get_mut(id) {
                        Arc::make_mut(&mut peer.state).set_read_only(true);
                    }
                }
                Event::Message { from, message, ticket } => {
                    self.apply_message(from, message, ticket, &mut effects);
                }
                Event::Retry { from, message, ticket } => {
                    self.apply_retry(from, &message, ticket, &mut effects);
                }
                Event::Saved => self.complete_write(None),
                Event::SavedAs(key) => self.complete_write(Some(key)),
                Event::Stored(StoredByAnother { chunks, unpacked }) => {
                    self.apply_stored(chunks, unpacked.values, &mut effects);
                }
                Event::Gone(keys) => self.chunks.forget(&keys),
                Event::Lost => self.apply_lost(),
                Event::Restored(remains) => self.apply_restored(remains),
            }
            if self.is_damaged() {
                return effects;
            }
        }
        self.finish_step(effects)
    }

    /// Restores the document as it was before changes that were refused, and continues the step
    /// that they interrupted. Takes as long as loading the document. None if it has to be read from
    /// storage.
    pub(crate) fn recover(&mut self) -> Option<Vec<Effect>> {
        if !self.doc.restore() {
            return None;
        }
        // The restored document has no orphans. Their senders are asked for them again.
        self.orphans = Orphans::default();
        Some(self.step(Vec::new()))
    }

    /// Merges a snapshot of the same document, unless it shares no change with it. Returns how it
    /// relates to the document; none if it may not become part of it.
    pub(crate) fn merge(&mut self, snapshot: &[u8]) -> (Option<Ancestry>, Vec<Effect>) {
        let Ok(mut other) = Document::read(snapshot, Rules::Admission) else {
            return (None, Vec::new());
        };
        // The bundle with the base may be gone soon.
        self.save_base();
        let ancestry = Ancestry::of(other.automerge(), self.doc.automerge());
        if ancestry == Ancestry::Newer {
            let Ok(admitted) = self.doc.admit(snapshot, Rules::Admission) else {
                if !self.doc.has_orphans() {
                    self.orphans = Orphans::default();
                }
                return (None, Vec::new());
            };
            self.durable.add_unsaved(&admitted, self.doc.changes());
            let unpacked = unpacked::of(snapshot, Origin::Storage, Size(u64::MAX));
            let values = unpacked.map_or(snapshot.len() as u64, |unpacked| unpacked.values);
            self.values = self.values.saturating_add(values);
        }
        self.chunks.keep_nothing();
        self.heads_changed();
        (Some(ancestry), self.finish_step(Vec::new()))
    }

    /// The heads have changed: there is something to send to every peer.
    pub(super) fn heads_changed(&mut self) {
        self.versions.add(self.doc.heads(), self.doc.changes());
        self.exchange.clear();
        self.peers.queue_answer_to_all();
    }

    fn finish_step(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        self.peers.drop_stale_ids();
        self.answer(&mut effects);
        self.write(&mut effects);
        self.assert_invariants();
        effects
    }
}
