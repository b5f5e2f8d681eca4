//! automerge's sync protocol for many peers of one document.
//!
//! What a message does to a peer's [`State`], and what is sent next, are functions of the document
//! and that state alone. In a busy room most peers are in the same state, so the result for each
//! distinct state is computed once and shared.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use automerge::{
    Automerge, ChangeHash,
    sync::{BloomFilter, Capability, Have, Message, MessageFlags, State, SyncDoc},
};
use bytes::Bytes;

use crate::document::sync_message::SyncMessage;

/// How many results of each kind are cached for one version of the document. One more clears the
/// cache.
const MAX_CACHED: usize = 64;

/// A peer's state before a message, and the message.
type Received = (Arc<State>, Bytes);
/// A peer's next state, and the message to send to it.
type Generated = (Arc<State>, Option<Bytes>);

/// Results that hold for the present version of the document.
#[derive(Default)]
pub(super) struct Exchange {
    received: HashMap<Received, Arc<State>>,
    generated: HashMap<Arc<State>, Generated>,
    /// The document's heads.
    heads: Option<Arc<[ChangeHash]>>,
}

impl Exchange {
    /// Drops all results, and the memory for them, since the document has changed.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns the document's heads as one list that all peers share.
    pub(super) fn heads(&mut self, heads: &[ChangeHash]) -> Arc<[ChangeHash]> {
        self.heads.get_or_insert_with(|| heads.into()).clone()
    }

    /// Returns a peer's state after a message, whose admitted changes `doc` has already. `before`
    /// are the heads that it had without them.
    pub(super) fn receive(
        &mut self,
        doc: &Automerge,
        before: &[ChangeHash],
        state: Arc<State>,
        message: SyncMessage,
        shared: bool,
    ) -> Arc<State> {
        let after = |state: Arc<State>, message| {
            // A state is not copied that nobody else has: it may name every change.
            let mut after = Arc::unwrap_or_clone(state);
            receive(doc, before, &mut after, message);
            Arc::new(after)
        };
        if !shared || message.has_changes() {
            return after(state, message.message);
        }
        let key = (state, message.raw);
        if let Some(known) = self.received.get(&key) {
            return known.clone();
        }
        let after = after(key.0.clone(), message.message);
        if self.received.len() >= MAX_CACHED {
            self.received.clear();
        }
        self.received.insert(key, after.clone());
        after
    }

    /// Returns the next message to a peer, and the peer's state after it.
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
        let message = generate(doc, &mut after);
        let after = if after == **state { state.clone() } else { Arc::new(after) };
        let generated = (after, message.map(|message| Bytes::from(message.encode())));
        if shared {
            if self.generated.len() >= MAX_CACHED {
                self.generated.clear();
            }
            self.generated.insert(state.clone(), generated.clone());
        }
        generated
    }
}

/// Updates a peer's state by a message, as `SyncDoc::receive_sync_message` does. `doc` has the
/// message's admitted changes already; `before` are the heads that it had without them.
///
/// automerge 0.12 walks the whole history for every message, to find which of the sent changes the
/// peer has. This walks only the changes after the peer's heads.
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
        // The peer has lost the document: it is sent everything again.
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

/// Generates the next message to a peer, as `SyncDoc::generate_sync_message` does.
///
/// automerge 0.12 looks up every change since `last_sync` in the peer's Bloom filter, which is all
/// of them after a peer has sent its whole document. A peer has all changes up to the heads that it
/// names, so where these are known here, its filter says nothing more.
fn generate(doc: &Automerge, state: &mut State) -> Option<Message> {
    let have = state.their_have.as_deref().unwrap_or_default();
    let named = state.their_heads.as_deref().unwrap_or_default();
    let is_current = have.iter().all(|have| have.last_sync == named);
    // A peer whose last common heads are not here is told to start over.
    let begins_anew =
        || have.first().is_some_and(|have| have.last_sync.iter().any(|head| !has(doc, head)));
    if named.is_empty() || is_current || !named.iter().all(|head| has(doc, head)) || begins_anew() {
        return doc.generate_sync_message(state);
    }
    let known = Have { last_sync: named.to_vec(), bloom: BloomFilter::default() };
    let their_have = state.their_have.replace(vec![known]);
    let message = doc.generate_sync_message(state);
    state.their_have = their_have;
    message
}

fn has(doc: &Automerge, hash: &ChangeHash) -> bool {
    doc.get_change_meta_by_hash(hash).is_some()
}

/// Returns the heads that both have, after the peer's changes have moved the document's heads.
fn advanced(before: &[ChangeHash], after: &[ChangeHash], shared: &[ChangeHash]) -> Vec<ChangeHash> {
    // A document's heads are sorted.
    let new = after.iter().filter(|head| before.binary_search(head).is_err());
    let common = shared.iter().filter(|head| after.binary_search(head).is_ok());
    let mut heads: Vec<ChangeHash> = new.chain(common).copied().collect();
    heads.sort_unstable();
    heads.dedup();
    heads
}
