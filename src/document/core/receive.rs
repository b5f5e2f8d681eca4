//! What a peer's message does to the document and to the peer.

use std::sync::atomic::Ordering;

use automerge::ChangeHash;

use super::{
    durability::Durability,
    event::{Effect, Event, Rejection, Ticket},
    peers::Peer,
    state::{Core, Orphans},
};
use crate::{
    base::session_id::SessionId,
    document::{
        gate::{Admitted, Document, Rules},
        sync_message::SyncMessage,
        unpacked::Unpacked,
    },
};

impl Core {
    /// Applies a peer's message, and reports what became of its changes.
    pub(super) fn apply_message(
        &mut self,
        from: SessionId,
        message: SyncMessage,
        ticket: Option<Ticket>,
        effects: &mut Vec<Effect>,
    ) {
        let before = self.doc.changes();
        let has_changes = message.has_changes();
        let raw = message.raw.clone();
        let received = self.receive(from, message);
        let is_refused = received.is_err();
        if is_refused || has_changes {
            effects.push(self.outcome(from, ticket, before, received));
        }
        self.applying.store(0, Ordering::Relaxed);
        if is_refused {
            // The peer may only read from now on, and what else the message says still counts.
            if let Ok((rest, _)) = SyncMessage::read_without_changes(raw) {
                self.events.push_front(Event::Message { from, message: rest, ticket: None });
            }
            self.events.push_front(Event::ReadsOnly(from));
        }
    }

    /// Applies only the changes of a message, whose sender may have left.
    pub(super) fn apply_retry(
        &mut self,
        from: SessionId,
        message: &SyncMessage,
        ticket: Ticket,
        effects: &mut Vec<Effect>,
    ) {
        let before = self.doc.changes();
        self.applying.store(from.0, Ordering::Relaxed);
        let admitted = self.check_size(message).and_then(|()| self.admit(message));
        effects.push(self.outcome(from, Some(ticket), before, admitted));
        self.applying.store(0, Ordering::Relaxed);
    }

    /// Reports what became of a message's changes; `before` is how many the document had.
    fn outcome(
        &mut self,
        from: SessionId,
        ticket: Option<Ticket>,
        before: u64,
        received: Result<(), Rejection>,
    ) -> Effect {
        match received {
            Ok(()) => {
                let new_changes = self.doc.changes().saturating_sub(before);
                let has_orphans = self.orphans.bytes > 0;
                Effect::Applied { from, ticket, new_changes, has_orphans }
            }
            Err(why) => {
                self.damaged_by = self.is_damaged().then_some(from);
                Effect::Refuse { from, ticket, why }
            }
        }
    }

    /// Checks that the document may hold a message's changes as well, if any of them are new.
    fn check_size(&mut self, message: &SyncMessage) -> Result<(), Rejection> {
        let size = self.stored_bytes() + message.raw.len() + self.orphans.bytes;
        // The document counts as what it takes in memory now, not as what applying its changes
        // took.
        let (operations, changes) = (self.doc.operations(), self.doc.changes());
        let document = Unpacked { operations, changes, values: self.values, ..Unpacked::default() };
        let together = document.plus(&self.orphans.unpacked).plus(&message.unpacked);
        let Err(limit) = self.max.check_resident(size, &together) else { return Ok(()) };
        if message.message.heads.iter().all(|head| self.doc.has(head)) {
            return Ok(());
        }
        Err(Rejection::TooLarge(format!("{} would be too large: {limit}", self.id)))
    }

    /// Applies a message to the document and to its sender's state.
    fn receive(&mut self, from: SessionId, message: SyncMessage) -> Result<(), Rejection> {
        let reads_only = self.peers.get(from).is_some_and(|peer| peer.state.read_only);
        let is_admitted = message.has_changes() && !reads_only;
        if is_admitted {
            self.check_size(&message)?;
        }
        let shared = self.peers.is_crowd();
        let Some(peer) = self.peers.queue_answer(from) else { return Ok(()) };
        let claimed = claimed(peer, &message.message.heads);
        let (known_changes, bloom_filters) = self.summary(&message);
        let named = message.message.heads.clone();
        let (heads, changes) = (self.doc.heads().to_vec(), self.doc.changes());
        if is_admitted {
            self.applying.store(from.0, Ordering::Relaxed);
            self.admit(&message)?;
        }
        let doc = self.doc.automerge();
        let Some(peer) = self.peers.get_mut(from) else { return Ok(()) };
        let previous = std::mem::take(&mut peer.state);
        let state = self.exchange.receive(doc, &heads, previous, message, shared);
        if let Some(peer) = self.peers.get_mut(from) {
            peer.state = state;
            (peer.known_changes, peer.bloom_filters) = (known_changes, bloom_filters);
            withhold(peer, &mut self.doc, &self.durable, (&named, &claimed), changes);
        }
        Ok(())
    }

    /// Makes a message's changes part of the document, if the gate admits them.
    fn admit(&mut self, message: &SyncMessage) -> Result<(), Rejection> {
        let (bytes, unpacked) = (message.raw.len(), message.unpacked);
        let admitted = self.doc.try_admit(&message.changes(), Rules::Admission);
        // A refusal may drop the orphans.
        if admitted.is_err() && self.orphans.bytes > 0 && !self.doc.has_orphans() {
            self.orphans = Orphans::default();
        }
        let admitted = admitted.map_err(Rejection::Gate)?;
        let has_changed = !matches!(admitted, Admitted::Nothing);
        if has_changed {
            self.values = self.values.saturating_add(unpacked.values);
            self.durable.add_unsaved(&admitted, self.doc.changes());
            match admitted {
                Admitted::Changes(new) => self.chunks.keep(&new),
                Admitted::Whole | Admitted::Nothing => self.chunks.keep_nothing(),
            }
            self.heads_changed();
        }
        // Changes that the document had already are not orphans.
        let has_orphans = (!has_changed || self.orphans.bytes > 0) && self.doc.has_orphans();
        self.orphans = match (has_orphans, has_changed) {
            (false, _) => Orphans::default(),
            (true, true) => self.orphans,
            (true, false) => Orphans {
                bytes: self.orphans.bytes + bytes,
                unpacked: self.orphans.unpacked.plus(&unpacked),
            },
        };
        Ok(())
    }

    /// How many of the document's changes a message's sender has for certain, and by how many Bloom
    /// filters the others are looked up.
    pub(super) fn summary(&self, message: &SyncMessage) -> (u64, u64) {
        let have = &message.message.have;
        let known = match have.as_slice() {
            [] => self.doc.changes(),
            [only] => self.versions.changes_below(&only.last_sync),
            several => {
                let mut all: Vec<ChangeHash> =
                    several.iter().flat_map(|have| &have.last_sync).copied().collect();
                all.sort_unstable();
                self.versions.changes_below(&all)
            }
        };
        (known, have.len() as u64)
    }
}

/// The heads that a peer's message names and that may be its own. Those that we sent to it are not.
/// Those that it named before were judged then, unless some of them were unknown.
fn claimed(peer: &Peer, named: &[ChangeHash]) -> Vec<ChangeHash> {
    let judged = peer.state.their_heads.as_ref().filter(|_| !peer.has_unknown_heads);
    let is_claimed = |head: &&ChangeHash| {
        let is_judged = judged.is_some_and(|judged| judged.contains(*head));
        !is_judged && !peer.state.sent_hashes.contains(*head)
    };
    named.iter().filter(is_claimed).copied().collect()
}

/// Decides until when heads are withheld from a peer whose message named heads, some of which it
/// `claimed`. The document had this many `changes` before the message.
fn withhold(
    peer: &mut Peer,
    doc: &mut Document,
    durable: &Durability,
    (named, claimed): (&[ChangeHash], &[ChangeHash]),
    changes: u64,
) {
    let has_unknown_heads = !named.iter().all(|head| doc.has(head));
    let now = doc.changes();
    peer.withhold_unannounced(now);
    let claimed = claimed.iter().filter_map(|head| durable.durable_at(head, || doc.has(head)));
    let claimed = claimed.filter(|number| *number > peer.announced_changes).max().unwrap_or(0);
    let brought = if now > changes { now } else { 0 };
    peer.withheld_until = peer.withheld_until.max(claimed).max(brought);
    peer.has_unknown_heads = has_unknown_heads;
}
