//! The estimate of a step, and who pays for it.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use automerge::sync::Capability;

use super::weight::{COPIED_HASH, MESSAGE, Nanos, SEND, Weight, needs_trial};
use crate::{
    base::session_id::SessionId,
    document::{
        core::{
            event::{Event, StoredByAnother},
            peers::Peer,
            state::Core,
        },
        sync_message::SyncMessage,
    },
};

/// What a step is estimated to take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// For the document itself, and for passing changes on: charged to nobody.
    pub(super) room: Nanos,
    /// For processing and answering what each sender sent.
    pub(super) senders: Vec<(SessionId, Nanos)>,
}

impl Estimate {
    pub(super) fn add(&mut self, sender: SessionId, nanos: Nanos) {
        match self.senders.iter_mut().find(|(id, _)| *id == sender) {
            Some((_, sum)) => *sum = sum.plus(nanos),
            None => self.senders.push((sender, nanos)),
        }
    }

    /// The whole step.
    pub(crate) fn total(&self) -> Nanos {
        Nanos::sum(self.senders.iter().map(|(_, nanos)| *nanos)).plus(self.room)
    }

    /// The sender with the largest part of it; none where the room's part is larger.
    pub(crate) fn payer(&self) -> Option<SessionId> {
        let most = self.senders.iter().max_by_key(|(_, nanos)| *nanos);
        most.filter(|(_, nanos)| *nanos >= self.room).map(|(sender, _)| *sender)
    }

    /// Each sender's share of the time that the step `took`.
    pub(crate) fn shares(&self, took: Duration) -> impl Iterator<Item = (SessionId, Duration)> {
        let total = self.total().0.max(1);
        let took = took.as_nanos();
        self.senders.iter().map(move |(sender, nanos)| {
            let share = took.saturating_mul(u128::from(nanos.0)) / u128::from(total);
            (*sender, Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX)))
        })
    }
}

impl Core {
    /// Estimates what a step with these events will take. Retries are not estimated.
    pub(crate) fn estimate(&self, events: &[Event]) -> Estimate {
        let weight = self.weight();
        let (mut estimate, mut computed) = (Estimate::default(), HashSet::new());
        let (mut answers, mut new_bytes) = (BTreeMap::new(), 0);
        let (mut has_changes, mut has_saved, mut stored) = (false, false, Nanos::ZERO);
        for event in events {
            match event {
                Event::Message { from, message, .. } => {
                    // None if it joins in this step.
                    let peer = self.peers.get(*from);
                    estimate.add(*from, self.receive_cost(&weight, peer, message));
                    // Several messages get one answer. In a crowd, equal messages of peers in one
                    // state get the same answer.
                    let state = peer.filter(|peer| peer.state.their_heads.is_some());
                    let state = state.map(|peer| Arc::as_ptr(&peer.state));
                    let is_shared = self.peers.is_crowd() && !message.has_changes();
                    let answer = if is_shared && !computed.insert((state, &message.raw)) {
                        SEND
                    } else {
                        self.answer_cost(&weight, message)
                    };
                    answers.insert(*from, answer);
                    let reads_only = peer.is_some_and(|peer| peer.state.read_only);
                    if message.has_changes() && !reads_only {
                        has_changes = true;
                        new_bytes += message.raw.len();
                    }
                }
                Event::Resume => {
                    let blocked = self.peers.blocked();
                    answers.extend(blocked.map(|(id, peer)| (id, self.update_cost(&weight, peer))));
                }
                Event::Saved | Event::SavedAs(_) => has_saved = true,
                Event::Stored(StoredByAnother { unpacked, .. }) => {
                    has_changes = true;
                    let needs_trial = needs_trial(&self.doc, self.orphans.bytes > 0, unpacked);
                    stored = stored.plus(weight.admit_cost(unpacked, needs_trial));
                    if !self.chunks.is_stored() {
                        // They are compared with the base.
                        stored = stored.plus(weight.admit_cost(unpacked, false));
                    }
                }
                Event::Restored(_) => {
                    stored = stored.plus(weight.save_cost()).plus(weight.load_cost());
                }
                Event::Retry { .. }
                | Event::Join { .. }
                | Event::Leave(_)
                | Event::ReadsOnly(_)
                | Event::Gone(_)
                | Event::Lost => {}
            }
        }
        if has_saved {
            // Heads were withheld from these peers until now.
            for (id, peer) in self.peers.iter().filter(|(_, peer)| peer.is_withheld) {
                answers.entry(id).or_insert_with(|| self.update_cost(&weight, peer));
            }
        }
        if has_changes {
            estimate.room = self.fan_out_cost(&weight, &answers);
        }
        estimate.room = estimate.room.plus(stored);
        answers.into_iter().for_each(|(id, nanos)| estimate.add(id, nanos));
        let can_save = self.chunks.under_way.is_none() || has_saved;
        let saved = self.chunks.under_way.as_ref().filter(|_| has_saved);
        let saved_heads = saved.map_or(&self.durable.heads, |write| &write.heads);
        if can_save && (has_changes || self.doc.heads() != saved_heads) {
            estimate.room = estimate.room.plus(self.write_cost(&weight, has_saved, new_bytes));
        }
        if self.doc.is_asleep() {
            let wakes = estimate.senders.first_mut().map_or(&mut estimate.room, |(_, nanos)| nanos);
            *wakes = wakes.plus(weight.load_cost());
        }
        estimate
    }

    /// Applying a message. `peer` is its sender, if that has joined.
    fn receive_cost(&self, weight: &Weight, peer: Option<&Peer>, message: &SyncMessage) -> Nanos {
        let heads = &message.message.heads;
        let mut nanos = MESSAGE.plus(Nanos::of(heads.len() as u64, 1_000));
        if message.has_changes() && !peer.is_some_and(|peer| peer.state.read_only) {
            let needs_trial = needs_trial(&self.doc, self.orphans.bytes > 0, &message.unpacked);
            nanos = nanos.plus(weight.admit_cost(&message.unpacked, needs_trial));
        }
        if peer.is_some_and(|peer| !peer.state.sent_hashes.is_empty()) && *heads != self.doc.heads()
        {
            let unknown = weight.changes.saturating_sub(self.versions.changes_below(heads));
            nanos = nanos.plus(weight.walk_cost(unknown));
        }
        // Where others may have the same state, it is copied.
        let sent = peer.map_or(0, |peer| peer.state.sent_hashes.len());
        nanos = nanos.plus(Nanos::of(sent as u64, COPIED_HASH));
        nanos
    }

    /// Answering a message, whatever heads it names.
    fn answer_cost(&self, weight: &Weight, message: &SyncMessage) -> Nanos {
        let (known, filters) = self.summary(message);
        let missing = weight.changes.saturating_sub(known);
        let compared = missing.saturating_add(message.unpacked.changes);
        // As `exchange::receive` reads it.
        let takes_whole = message.message.flags.is_some();
        weight.compare_cost(compared, filters).plus(weight.send_cost(missing, takes_whole))
    }

    /// Sending a peer what is new since its last message.
    fn update_cost(&self, weight: &Weight, peer: &Peer) -> Nanos {
        let missing = weight.changes.saturating_sub(peer.known_changes);
        if peer.state.their_have.is_none() {
            // It is sent only a filter of the document's changes.
            return weight.walk_cost(missing);
        }
        let capabilities = peer.state.their_capabilities.as_deref().unwrap_or_default();
        let takes_whole = capabilities.contains(&Capability::MessageV2);
        weight
            .compare_cost(missing, peer.bloom_filters)
            .plus(weight.send_cost(missing, takes_whole))
    }

    /// Passing new changes on to all peers. What peers in one state are sent is computed once, and
    /// what the peers in `answers` are sent is estimated there.
    fn fan_out_cost(&self, weight: &Weight, answers: &BTreeMap<SessionId, Nanos>) -> Nanos {
        let (mut nanos, mut states) = (Nanos::ZERO, HashSet::new());
        for (id, peer) in self.peers.iter() {
            nanos = nanos.plus(SEND);
            if !answers.contains_key(&id) && states.insert(Arc::as_ptr(&peer.state)) {
                nanos = nanos.plus(self.update_cost(weight, peer));
            }
        }
        nanos
    }

    /// Making the next write, with `new_bytes` of new changes. Changes that were kept cost nothing.
    fn write_cost(&self, weight: &Weight, is_saved: bool, new_bytes: usize) -> Nanos {
        let unwritten = self.chunks.unwritten_bytes() + new_bytes;
        if !self.chunks.wants_snapshot(is_saved, unwritten, self.compaction()) {
            let needs_document = self.chunks.increment_needs_document(is_saved, unwritten);
            return if needs_document { weight.save_cost() } else { Nanos::ZERO };
        }
        if !self.chunks.is_stored() {
            return weight.save_cost();
        }
        // It is loaded to check it.
        weight.save_cost().plus(weight.load_cost())
    }
}
