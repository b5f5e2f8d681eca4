//! automerge's sync protocol for many peers of one document.
//!
//! What a message does to a peer's [`State`], and what is to be said next, are functions of the document
//! and that state alone. In a hot room most peers are in the same state: each distinct one is worked out
//! once, and peers in equal states share it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use automerge::{
    Automerge, ChangeHash,
    sync::{Capability, Message, MessageFlags, State, SyncDoc},
};
use bytes::Bytes;

use crate::document::sync_message::SyncMessage;

/// Distinct states remembered for one version of the document; past so many, all are forgotten.
const REMEMBERED: usize = 64;

/// A peer's state before, and the message that came.
type Received = (Arc<State>, Bytes);
/// A peer's state after, and the message to send.
type Generated = (Arc<State>, Option<Bytes>);

/// What was worked out for the document as it is now.
#[derive(Default)]
pub(super) struct Exchange {
    received: HashMap<Received, Arc<State>>,
    generated: HashMap<Arc<State>, Generated>,
}

impl Exchange {
    /// The document has changed: nothing of what was worked out holds any more.
    pub(super) fn forget(&mut self) {
        // A new map, not an empty one: a quiet room keeps no memory for what it does not remember.
        *self = Self::default();
    }

    /// The state of a peer after a message, whose changes the document has now; `before` are its heads without them.
    pub(super) fn receive(
        &mut self,
        doc: &Automerge,
        before: &[ChangeHash],
        state: &Arc<State>,
        message: SyncMessage,
        shared: bool,
    ) -> Arc<State> {
        let after = |message| {
            let mut after = State::clone(state);
            receive(doc, before, &mut after, message);
            Arc::new(after)
        };
        if !shared || message.has_changes() {
            return after(message.message);
        }
        let key = (state.clone(), message.raw);
        if let Some(known) = self.received.get(&key) {
            return known.clone();
        }
        let after = after(message.message);
        if self.received.len() >= REMEMBERED {
            self.received.clear();
        }
        self.received.insert(key, after.clone());
        after
    }

    /// What is to be said to a peer, and its state then.
    pub(super) fn generate(
        &mut self,
        doc: &Automerge,
        state: &Arc<State>,
        shared: bool,
    ) -> Generated {
        if let Some(generated) = self.generated.get(state) {
            return generated.clone();
        }
        let mut after = State::clone(state);
        let message = doc.generate_sync_message(&mut after);
        let after = if after == **state { state.clone() } else { Arc::new(after) };
        let generated = (after, message.map(|message| Bytes::from(message.encode())));
        if shared {
            if self.generated.len() >= REMEMBERED {
                self.generated.clear();
            }
            self.generated.insert(state.clone(), generated.clone());
        }
        generated
    }
}

/// What a message does to a peer's state, as in `SyncDoc::receive_sync_message`. `doc` has its changes already, if it is to
/// have them; `before` are its heads without.
///
/// automerge 0.12 walks the whole history for every message, to find which of the sent changes the peer
/// has; here the changes that came after its heads are looked at, and those alone.
pub(super) fn receive(doc: &Automerge, before: &[ChangeHash], state: &mut State, message: Message) {
    let Message { heads, need, have, changes, flags, .. } = message;
    state.in_flight = false;
    if let Some(flags) = flags {
        let mut capabilities = vec![Capability::MessageV2];
        if flags.contains(MessageFlags::SUPPORTS_SYNC_RESET) {
            capabilities.push(Capability::SyncReset);
        }
        state.their_capabilities = Some(capabilities);
        if flags.contains(MessageFlags::SYNC_RESET) {
            state.sent_hashes.clear();
        }
        state.peer_read_only = flags.contains(MessageFlags::READ_ONLY);
    }

    if !changes.is_empty() && !state.read_only {
        state.shared_heads = advanced(before, &doc.get_heads(), &state.shared_heads);
    }
    let known: Vec<ChangeHash> = heads.iter().filter(|head| has(doc, head)).copied().collect();
    if !state.sent_hashes.is_empty() {
        if known == doc.get_heads() {
            state.sent_hashes.clear();
        } else {
            let after = doc.get_changes_meta(&known);
            let unseen: HashSet<ChangeHash> = after.iter().map(|change| change.hash).collect();
            state.sent_hashes.retain(|hash| unseen.contains(hash));
        }
    }
    if changes.is_empty() && heads == before {
        state.last_sent_heads.clone_from(&heads);
    }
    if known.len() == heads.len() {
        state.shared_heads.clone_from(&heads);
        // The peer has lost all it had: it is told everything again.
        if heads.is_empty() {
            state.last_sent_heads.clear();
            state.sent_hashes.clear();
        }
    } else {
        state.shared_heads.extend(known);
        state.shared_heads.sort_unstable();
        state.shared_heads.dedup();
    }
    state.their_have = Some(have);
    state.their_heads = Some(heads);
    state.their_need = Some(need);
}

fn has(doc: &Automerge, hash: &ChangeHash) -> bool {
    doc.get_change_meta_by_hash(hash).is_some()
}

/// What both have, after changes of the peer's have moved the document's heads.
fn advanced(before: &[ChangeHash], after: &[ChangeHash], shared: &[ChangeHash]) -> Vec<ChangeHash> {
    // Heads of a document are sorted.
    let new = after.iter().filter(|head| before.binary_search(head).is_err());
    let common = shared.iter().filter(|head| after.binary_search(head).is_ok());
    let mut heads: Vec<ChangeHash> = new.chain(common).copied().collect();
    heads.sort_unstable();
    heads.dedup();
    heads
}
