//! The peers of a document, and which of them have to be answered.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    sync::{Arc, atomic::AtomicBool},
};

use automerge::{ChangeHash, sync::State};

use crate::base::session_id::SessionId;

/// From this many peers on, peers in equal states share what is computed. For fewer, remembering
/// costs more than it saves.
const CROWD: usize = 3;

/// One peer, as the core sees it.
#[derive(Default)]
pub(super) struct Peer {
    /// automerge's state of the exchange. A peer that may only read has a read-only state:
    /// automerge then ignores its changes.
    pub(super) state: Arc<State>,
    /// The document's heads are withheld from the peer until this many changes are durable.
    pub(super) withheld_until: u64,
    /// Heads were withheld when the peer was last answered.
    pub(super) is_withheld: bool,
    /// How many changes the document had when the peer was last sent its heads.
    pub(super) announced_changes: u64,
    /// These heads, until they are durable.
    pub(super) announced_heads: Arc<[ChangeHash]>,
    /// The peer has named heads that are not here: any change that was not announced to it may be
    /// its own.
    pub(super) has_unknown_heads: bool,
    /// The peer is in [`Peers::to_answer`] or in [`Peers::blocked`].
    pub(super) needs_answer: bool,
    /// The peer is in [`Peers::blocked`].
    pub(super) is_blocked: bool,
    /// Set by the session while its send queue has no room.
    pub(super) queue_full: Arc<AtomicBool>,
    /// How many of the document's changes the peer had for certain, by its last message.
    pub(super) known_changes: u64,
    /// How many Bloom filters that message had. Other changes are looked up in each.
    pub(super) bloom_filters: u64,
}

impl Peer {
    /// Withholds the document's heads until all of its `changes` are durable, if the peer may be
    /// the author of some that were not announced to it.
    pub(super) fn withhold_unannounced(&mut self, changes: u64) {
        if self.has_unknown_heads && changes > self.announced_changes {
            self.withheld_until = self.withheld_until.max(changes);
        }
    }
}

/// All peers, and which of them there may be something to send to.
#[derive(Default)]
pub(super) struct Peers {
    /// Ordered, so that equal inputs give equal outputs.
    by_id: BTreeMap<SessionId, Peer>,
    to_answer: Vec<SessionId>,
    answer_all: bool,
    /// Peers that could not be answered because their send queues were full.
    blocked: Vec<SessionId>,
    /// A peer has left, and may still be in the lists.
    has_stale_ids: bool,
}

impl Peers {
    pub(super) fn join(&mut self, id: SessionId, peer: Peer) {
        self.by_id.insert(id, peer);
    }

    pub(super) fn leave(&mut self, id: SessionId) {
        self.by_id.remove(&id);
        self.has_stale_ids = true;
    }

    /// Removes peers that have left from the lists. Once a step: each removal is a pass over both.
    pub(super) fn drop_stale_ids(&mut self) {
        if mem::take(&mut self.has_stale_ids) {
            self.to_answer.retain(|id| self.by_id.contains_key(id));
            self.blocked.retain(|id| self.by_id.contains_key(id));
        }
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Peer> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Peer> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether peers in equal states share what is computed.
    pub(super) fn is_crowd(&self) -> bool {
        self.len() >= CROWD
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Peer)> {
        self.by_id.iter().map(|(id, peer)| (*id, peer))
    }

    /// The peers that could not be answered.
    pub(super) fn blocked(&self) -> impl Iterator<Item = (SessionId, &Peer)> {
        self.blocked.iter().filter_map(|id| Some((*id, self.by_id.get(id)?)))
    }

    /// Queues an answer to a peer, and returns the peer.
    pub(super) fn queue_answer(&mut self, id: SessionId) -> Option<&mut Peer> {
        let peer = self.by_id.get_mut(&id)?;
        if !mem::replace(&mut peer.needs_answer, true) {
            self.to_answer.push(id);
        }
        Some(peer)
    }

    /// Queues an answer to every peer.
    pub(super) fn queue_answer_to_all(&mut self) {
        self.answer_all = true;
    }

    /// Queues an answer to every peer for which `is_due` returns true. It may change the peer.
    pub(super) fn queue_answers(&mut self, mut is_due: impl FnMut(&mut Peer) -> bool) {
        for (id, peer) in &mut self.by_id {
            if is_due(peer) && !mem::replace(&mut peer.needs_answer, true) {
                self.to_answer.push(*id);
            }
        }
    }

    /// Withholds the document's heads from all peers until this many changes are durable. They may
    /// only be told again what is.
    pub(super) fn withhold_from_all(&mut self, changes: u64) {
        for peer in self.by_id.values_mut() {
            peer.withheld_until = changes;
            (peer.announced_changes, peer.announced_heads) = (0, Arc::default());
        }
    }

    /// Queues answers to all peers whose send queues were full.
    pub(super) fn resume(&mut self) {
        for id in mem::take(&mut self.blocked) {
            if let Some(peer) = self.by_id.get_mut(&id) {
                peer.is_blocked = false;
                self.to_answer.push(id);
            }
        }
    }

    /// Returns the peers to answer and empties the queue of answers.
    pub(super) fn take_queued(&mut self) -> Vec<SessionId> {
        let queued = mem::take(&mut self.to_answer);
        if mem::take(&mut self.answer_all) { self.by_id.keys().copied().collect() } else { queued }
    }

    /// A peer's send queue is full: it is answered after the next [`Self::resume`].
    pub(super) fn block(&mut self, id: SessionId) {
        let Some(peer) = self.by_id.get_mut(&id) else { return };
        peer.needs_answer = true;
        if !mem::replace(&mut peer.is_blocked, true) {
            self.blocked.push(id);
        }
    }

    /// Panics in debug builds if a list has a peer that has left, or a peer that waits for an
    /// answer is in no list. Takes O(peers).
    pub(super) fn assert_consistent(&self) {
        let is_here = |id: &SessionId| self.by_id.contains_key(id);
        debug_assert!(
            self.to_answer.iter().all(is_here),
            "an answer is queued to a peer that has left"
        );
        debug_assert!(self.blocked.iter().all(is_here), "a blocked peer that has left");
        let queued: HashSet<_> = self.to_answer.iter().chain(&self.blocked).collect();
        for (id, peer) in &self.by_id {
            debug_assert!(
                !peer.needs_answer || self.answer_all || queued.contains(id),
                "{id} is never answered"
            );
            debug_assert!(
                !peer.is_blocked || peer.needs_answer,
                "{id} is blocked and waits for no answer"
            );
        }
    }
}
