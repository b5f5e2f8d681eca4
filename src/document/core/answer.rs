//! What is sent to whom, and from whom heads are withheld.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
};

use automerge::{
    Automerge, ChangeHash,
    sync::{BloomFilter, Have, State, SyncDoc},
};
use bytes::Bytes;

use super::{event::Effect, state::Core};
use crate::base::session_id::SessionId;

impl Core {
    /// Sends every peer whose answer is queued what there is to send.
    pub(super) fn answer(&mut self, effects: &mut Vec<Effect>) {
        self.peers.take_queued().into_iter().for_each(|id| self.answer_one(id, effects));
    }

    fn answer_one(&mut self, to: SessionId, effects: &mut Vec<Effect>) {
        let shared = self.peers.is_crowd();
        let Some(peer) = self.peers.get_mut(to) else { return };
        if peer.queue_full.load(Ordering::Relaxed) {
            self.peers.block(to);
            effects.push(Effect::AwaitRoom(to));
            return;
        }
        (peer.needs_answer, peer.is_blocked) = (false, false);
        let changes = self.doc.changes();
        peer.withhold_unannounced(changes);
        // The changes of a peer that may only read never become durable, so nothing is withheld.
        let is_withheld = peer.withheld_until > self.durable.changes && !peer.state.read_only;
        let was_withheld = std::mem::replace(&mut peer.is_withheld, is_withheld);
        if was_withheld && !is_withheld {
            // automerge does not announce heads to a peer that names the same ones itself
            // (`SyncDoc::receive_sync_message`); but this peer was not told that they are durable.
            Arc::make_mut(&mut peer.state).have_responded = false;
        }
        let message = if is_withheld {
            let is_announced = peer.announced_changes > self.durable.changes;
            let heads: &[ChangeHash] =
                if is_announced { &peer.announced_heads } else { &self.durable.heads };
            message_under(heads, self.doc.automerge(), &mut peer.state)
        } else {
            let doc = self.doc.automerge();
            let (state, message) = self.exchange.generate(doc, &peer.state, shared);
            peer.state = state;
            if message.is_some() && changes > self.durable.changes {
                peer.announced_changes = changes;
                peer.announced_heads = self.exchange.heads(self.doc.heads());
            }
            message
        };
        if let Some(message) = message {
            effects.push(Effect::Send { to, message });
        }
    }
}

/// Generates a message for a peer from which the document's heads are withheld: the changes of
/// others and what we need from it, under these `heads`, which it may be told. None if there is
/// neither, or if `heads` is empty: a message without heads says that we have lost the document.
fn message_under(heads: &[ChangeHash], doc: &Automerge, state: &mut Arc<State>) -> Option<Bytes> {
    if heads.is_empty() {
        return None;
    }
    let mut after = State::clone(state);
    // A peer asks for what it lacks of the heads that it is told. It is not told the document's
    // heads, so it would never ask for a change that its Bloom filter hides: it gets every change
    // that it is not known to have.
    let named = state.their_heads.iter().flatten();
    let named = named.filter(|head| doc.get_change_meta_by_hash(head).is_some());
    let known: HashSet<ChangeHash> = named.chain(&state.shared_heads).copied().collect();
    let have = Have { last_sync: known.into_iter().collect(), bloom: BloomFilter::default() };
    let their_have = after.their_have.replace(vec![have]);
    let mut message = doc.generate_sync_message(&mut after)?;
    if message.changes.is_empty() && message.need.is_empty() {
        return None;
    }
    message.heads = heads.to_vec();
    after.their_have = their_have;
    after.last_sent_heads = heads.to_vec();
    *state = Arc::new(after);
    Some(message.encode().into())
}
