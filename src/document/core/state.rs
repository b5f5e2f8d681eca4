//! What the core keeps of a document between steps.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::AtomicU64},
};

use automerge::ChangeHash;

use super::{
    chunks::Chunks,
    cost::{
        versions::Versions,
        weight::{LONG, Weight},
    },
    durability::Durability,
    event::Event,
    exchange::Exchange,
    peers::{Peer, Peers},
};
use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    document::{chunk::Key, gate::Document, size::MaxDocument, unpacked::Unpacked},
};

/// One document and its peers.
pub(crate) struct Core {
    pub(super) id: DocumentId,
    /// How large the document may be.
    pub(super) max: MaxDocument,
    /// The relay's rank for the document: lower ranks compact it earlier.
    pub(super) rank: usize,
    pub(super) doc: Document,
    /// Bytes of the values of the document's operations.
    pub(super) values: u64,
    pub(super) orphans: Orphans,
    /// Events that are not processed yet. A step stops where the document has to be restored.
    pub(super) events: VecDeque<Event>,
    pub(super) peers: Peers,
    pub(super) exchange: Exchange,
    pub(super) versions: Versions,
    pub(super) durable: Durability,
    /// What the document was when it was loaded is from the served bundle and not stored. It counts
    /// as durable: peers have it from the bundle.
    pub(super) has_unsaved_base: bool,
    /// The store has lost something, and what it still has is not known yet. Nothing is written.
    pub(super) awaits_remains: bool,
    pub(super) chunks: Chunks,
    /// The session whose changes are being applied, or 0. The caller reads it after a panic.
    pub(super) applying: Arc<AtomicU64>,
    /// The session that sent the changes because of which the document has to be restored.
    pub(super) damaged_by: Option<SessionId>,
}

/// Changes that wait for others which nobody has sent.
#[derive(Clone, Copy, Default)]
pub(super) struct Orphans {
    /// Bytes of the messages that brought them.
    pub(super) bytes: usize,
    /// What these unpack to.
    pub(super) unpacked: Unpacked,
}

impl Core {
    /// A document with these bytes of `values`, without peers. It is stored in these chunks up to
    /// the `durable` heads. If nothing is stored, the document is its base, from the served bundle:
    /// that is written with the first change, unless the bundle changes before. What is not stored
    /// would take `unstored` bytes.
    pub(crate) fn new(
        id: DocumentId,
        doc: Document,
        max: MaxDocument,
        values: u64,
        (stored, unstored): (Vec<(Key, usize)>, usize),
        durable: &[ChangeHash],
    ) -> Self {
        let mut versions = Versions::default();
        versions.add(doc.heads(), doc.changes());
        let mut core = Self {
            id,
            max,
            values,
            orphans: Orphans::default(),
            events: VecDeque::new(),
            peers: Peers::default(),
            exchange: Exchange::default(),
            rank: 0,
            versions,
            durable: Durability::new(doc.heads().to_vec(), doc.changes()),
            has_unsaved_base: false,
            awaits_remains: false,
            chunks: Chunks::new(stored, unstored),
            applying: Arc::default(),
            damaged_by: None,
            doc,
        };
        if !core.chunks.is_stored() {
            core.has_unsaved_base = !core.doc.heads().is_empty();
        } else if durable != core.doc.heads() {
            core.lose(durable.to_vec());
        }
        core
    }

    /// Changes how large the document may be.
    pub(crate) fn set_max(&mut self, max: MaxDocument) {
        self.max = max;
    }

    /// Sets the relay's rank for the document: lower ranks compact it earlier.
    pub(crate) fn set_rank(&mut self, rank: usize) {
        self.rank = rank;
    }

    /// The session whose changes are being applied, or 0.
    pub(crate) fn applying(&self) -> Arc<AtomicU64> {
        self.applying.clone()
    }

    /// Whether changes were applied and then refused. The step has stopped; [`Self::recover`]
    /// continues it.
    pub(crate) fn is_damaged(&self) -> bool {
        self.doc.is_damaged()
    }

    /// The session that sent the changes because of which the document has to be restored.
    pub(crate) fn damaged_by(&self) -> Option<SessionId> {
        self.damaged_by
    }

    /// The document's heads, sorted.
    pub(crate) fn heads(&self) -> &[ChangeHash] {
        self.doc.heads()
    }

    /// The heads up to which everything is durable, sorted.
    pub(crate) fn durable_heads(&self) -> &[ChangeHash] {
        &self.durable.heads
    }

    /// Whether everything that the core was told is durable.
    pub(crate) fn is_durable(&self) -> bool {
        self.doc.heads() == self.durable.heads
            && self.chunks.under_way.is_none()
            && self.events.is_empty()
    }

    /// How many changes the document has, and how many of them are durable.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.doc.changes(), self.durable.changes)
    }

    /// Bytes of the document's chunks in storage, and of what was not written yet of a base or after
    /// a loss.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.chunks.stored_bytes()
    }

    /// The keys of the document's chunks in storage.
    pub(crate) fn stored_keys(&self) -> Vec<Key> {
        self.chunks.stored_keys().cloned().collect()
    }

    /// The heads that each peer named last.
    pub(crate) fn peer_heads(&self) -> Vec<(SessionId, Vec<ChangeHash>)> {
        let named = |(id, peer): (SessionId, &Peer)| Some((id, peer.state.their_heads.clone()?));
        self.peers.iter().filter_map(named).collect()
    }

    /// Keeps as little in memory as possible, while the room is idle.
    pub(crate) fn release_memory(&mut self) {
        self.events.shrink_to_fit();
        self.exchange.clear();
        self.versions.clear();
        self.versions.add(self.doc.heads(), self.doc.changes());
        self.chunks.release_memory();
        let weight = self.weight();
        // automerge takes at least 14 KiB for a document.
        if self.is_durable() && weight.load_cost().max(weight.save_cost()) <= LONG {
            self.doc.sleep();
        }
    }

    pub(super) fn weight(&self) -> Weight {
        Weight {
            changes: self.doc.changes(),
            operations: self.doc.operations(),
            values: self.values,
            heads: self.doc.heads().len() as u64,
        }
    }

    /// How many different exchange states the peers are in.
    #[cfg(test)]
    pub(super) fn distinct_states(&self) -> usize {
        let states = self.peers.iter().map(|(_, peer)| Arc::as_ptr(&peer.state));
        states.collect::<std::collections::BTreeSet<_>>().len()
    }
}
