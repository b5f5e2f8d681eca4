//! The native room's core: a pure step from what came to what is to be done. No I/O, no clock.
//!
//! "Saved" means saved: automerge-repo takes the heads in our sync messages as what our storage has. So heads are
//! withheld from a peer while something is not durable that it brought, or that it has from somebody else. It gets the
//! changes of others at once all the same, under heads that it may hear. Everybody else gets changes with their heads.

use super::{
    cost::{self, Estimate, Nanos, Versions, Weight},
    event::{Effect, Event, Refused, Ticket},
    exchange::Exchange,
};
use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    config::Size,
    document::{
        chunk::{ChunkKind, Key, increment_key, snapshot_key},
        compare::Ancestry,
        gate::{self, Admitted, Document, Rules},
        size::MaxDocument,
        sync_message::SyncMessage,
        unpacked::{self, Origin, Unpacked},
    },
};
use automerge::{
    Automerge, ChangeHash,
    sync::{BloomFilter, Capability, Have, State, SyncDoc},
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Increments up to so many bytes are kept beside a snapshot, however small that is.
const SMALL: usize = 4 << 10;
/// Peers from which on equal states are looked for: below, remembering costs more than it saves.
const CROWD: usize = 3;
/// Changes of this many bytes or more that came together are written as a snapshot, unless the stored one is larger.
const MANY: usize = 32 << 10;
/// Telling one peer what was worked out.
const TELL: Nanos = Nanos(2_000);
/// So many changes of a document that has no snapshot are not kept for the next write: that will be one.
const FEW: usize = 100;
/// One document and its peers.
pub(crate) struct Core {
    document: DocumentId,
    /// How large it may be.
    max: MaxDocument,
    doc: Document,
    /// Bytes of the values of its operations.
    values: u64,
    /// Changes that wait for others which nobody has brought: bytes of their messages, and what they unpack to.
    orphans: (usize, Unpacked),
    /// Events that are to be taken in when the document is restored.
    interrupted: VecDeque<Event>,
    /// The heads up to which all is durable, and how many changes that is: those that were applied first.
    durable: Vec<ChangeHash>,
    durable_changes: u64,
    /// All other changes, each with the number of changes that were here once it was applied, but
    /// for those that came as a whole document: these have `unsaved_whole`.
    unsaved: HashMap<ChangeHash, u64>,
    unsaved_whole: Option<u64>,
    /// The heads, as peers are told them: one list for all. None where nobody was told these.
    told_heads: Option<Arc<[ChangeHash]>>,
    /// In the order of their ids, so that equal inputs give equal outputs.
    peers: BTreeMap<SessionId, Peer>,
    /// The peers to which there may be something to say, or all.
    due: Vec<SessionId>,
    all_due: bool,
    /// Those of them for whom there was no room.
    kept_back: Vec<SessionId>,
    exchange: Exchange,
    chunks: Chunks,
    writing: Option<Write>,
    /// The changes that the next write is to hold, as it holds them; none where that is to be found out.
    fresh: Option<Vec<u8>>,
    /// The session whose changes are being taken in, or 0: for when that ends in a panic.
    taking_in: Arc<AtomicU64>,
    /// Who sent the changes because of which the document is to be restored.
    damaged_by: Option<SessionId>,
    versions: Versions,
}

#[derive(Default)]
struct Peer {
    state: Arc<State>,
    /// It hears all heads only when this many changes are durable.
    withheld_until: u64,
    /// It was withheld from when it was last answered.
    is_withheld: bool,
    /// How many changes were here when it last heard all heads; and these heads, until they are durable.
    told: u64,
    told_heads: Arc<[ChangeHash]>,
    /// It has named heads that are not here: anything that it was not told of may be its own.
    has_more: bool,
    /// It is among those to which there may be something to say.
    is_due: bool,
    /// There was no room for it.
    is_kept_back: bool,
    full: Arc<AtomicBool>,
    /// How many of the document's changes it surely had when it last said what it has, and by how many Bloom filters others are
    /// looked for.
    has: u64,
    filters: u64,
}

/// What stands in storage.
#[derive(Default)]
struct Chunks {
    keys: Vec<Key>,
    snapshot: usize,
    increments: usize,
}

/// A write under way.
struct Write {
    heads: Vec<ChangeHash>,
    /// How many changes are here with these heads.
    changes: u64,
    key: Key,
    size: usize,
    /// The chunks that it replaces.
    replaces: Vec<Key>,
}

impl Write {
    fn is_snapshot(&self) -> bool {
        matches!(self.key, Key::Chunk { kind: ChunkKind::Snapshot, .. })
    }
}

impl Chunks {
    fn add(&mut self, key: Key, size: usize) {
        let is_snapshot = matches!(key, Key::Chunk { kind: ChunkKind::Snapshot, .. });
        *(if is_snapshot { &mut self.snapshot } else { &mut self.increments }) += size;
        self.keys.push(key);
    }

    /// Whether the next write is to be a snapshot: by size, as automerge-repo does it
    /// (`StorageSubsystem.ts`, `#shouldCompact`), so that a document's writes cost O(its size) in all. Many changes that came
    /// as one document are smaller as one, too.
    fn wants_snapshot(&self, fresh: usize) -> bool {
        self.snapshot == 0
            || self.increments >= self.snapshot.max(SMALL)
            || fresh >= self.snapshot.max(MANY)
    }
}

impl Core {
    /// A document as it stands in storage, without peers.
    pub(crate) fn new(
        document: DocumentId,
        doc: Document,
        max: MaxDocument,
        values: u64,
        stored: impl IntoIterator<Item = (Key, usize)>,
    ) -> Self {
        let mut chunks = Chunks::default();
        for (key, size) in stored {
            chunks.add(key, size);
        }
        let mut versions = Versions::default();
        versions.add(doc.heads(), doc.changes());
        Self {
            document,
            max,
            values,
            orphans: (0, Unpacked::default()),
            interrupted: VecDeque::new(),
            durable: doc.heads().to_vec(),
            durable_changes: doc.changes(),
            unsaved: HashMap::new(),
            unsaved_whole: None,
            told_heads: None,
            doc,
            peers: BTreeMap::new(),
            due: Vec::new(),
            all_due: false,
            kept_back: Vec::new(),
            exchange: Exchange::default(),
            chunks,
            writing: None,
            fresh: Some(Vec::new()),
            taking_in: Arc::default(),
            damaged_by: None,
            versions,
        }
    }

    /// The session whose changes are being taken in, or 0.
    pub(crate) fn taking_in(&self) -> Arc<AtomicU64> {
        self.taking_in.clone()
    }

    /// Whether changes were applied that were then refused: the step has stopped, and goes on with [`Self::recover`].
    pub(crate) fn is_damaged(&self) -> bool {
        self.doc.is_damaged()
    }

    /// Who sent the changes because of which it is to be restored.
    pub(crate) fn damaged_by(&self) -> Option<SessionId> {
        self.damaged_by
    }

    /// Restores the document to what it was before changes that were refused, and goes on with the step that they
    /// interrupted. Takes as long as loading the document. None if it has to be read from storage.
    pub(crate) fn recover(&mut self) -> Option<Vec<Effect>> {
        if !self.doc.restore() {
            return None;
        }
        // Changes that waited for others are gone. Their senders are asked for them again.
        self.orphans = (0, Unpacked::default());
        Some(self.step(Vec::new()))
    }

    fn fresh_bytes(&self) -> usize {
        self.fresh.as_ref().map_or(0, Vec::len)
    }

    #[cfg(test)]
    pub(crate) fn distinct_states(&self) -> usize {
        let states = self.peers.values().map(|peer| Arc::as_ptr(&peer.state));
        states.collect::<std::collections::BTreeSet<_>>().len()
    }

    /// The heads up to which all is durable.
    pub(crate) fn durable(&self) -> &[ChangeHash] {
        &self.durable
    }

    /// Whether all of the document is durable.
    pub(crate) fn is_durable(&self) -> bool {
        self.doc.heads() == self.durable && self.writing.is_none() && self.interrupted.is_empty()
    }

    /// The document's heads, sorted.
    pub(crate) fn heads(&self) -> &[ChangeHash] {
        self.doc.heads()
    }

    /// The heads that each peer named last.
    pub(crate) fn peer_heads(&self) -> Vec<(SessionId, Vec<ChangeHash>)> {
        let named = |(id, peer): (&SessionId, &Peer)| Some((*id, peer.state.their_heads.clone()?));
        self.peers.iter().filter_map(named).collect()
    }

    /// How many changes the document has, and how many of them are durable.
    pub(crate) fn progress(&self) -> (u64, u64) {
        (self.doc.changes(), self.durable_changes)
    }

    /// Bytes of the document's chunks in storage.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.chunks.snapshot + self.chunks.increments
    }

    /// The room is quiet: keep as little as can be.
    pub(crate) fn rest(&mut self) {
        self.exchange.forget();
        self.told_heads = None;
        self.versions.forget();
        self.versions.add(self.doc.heads(), self.doc.changes());
        let weight = self.weight();
        // automerge takes at least 14 KiB for a document.
        if self.is_durable() && weight.load().max(weight.save()) <= cost::LONG {
            self.doc.sleep();
        }
    }

    fn weight(&self) -> Weight {
        Weight {
            changes: self.doc.changes(),
            operations: self.doc.operations(),
            values: self.values,
            heads: self.doc.heads().len() as u64,
        }
    }

    /// What a step with these events will take.
    pub(crate) fn estimate(&self, events: &[Event]) -> Estimate {
        let weight = self.weight();
        let (mut estimate, mut worked_out) = (Estimate::default(), HashSet::new());
        let (mut answers, mut fresh, mut brings, mut has_saved) =
            (BTreeMap::new(), 0, false, false);
        for event in events {
            match event {
                Event::Message { from, message, .. } => {
                    // None if it joins in this step.
                    let peer = self.peers.get(from);
                    estimate.add(*from, self.taking_in_costs(&weight, peer, message));
                    // Several messages have one answer, and in a crowd so have equal messages of peers in one state.
                    let state = peer.filter(|peer| peer.state.their_heads.is_some());
                    let state = state.map(|peer| Arc::as_ptr(&peer.state));
                    let is_shared = self.peers.len() >= CROWD && !message.has_changes();
                    let answer = if is_shared && !worked_out.insert((state, &message.raw)) {
                        TELL
                    } else {
                        self.answering_costs(&weight, message)
                    };
                    answers.insert(*from, answer);
                    let is_taken = !peer.is_some_and(|peer| peer.state.read_only);
                    if message.has_changes() && is_taken {
                        brings = true;
                        fresh += message.raw.len();
                    }
                }
                Event::Resume => {
                    let kept_back =
                        self.kept_back.iter().filter_map(|id| self.peers.get_key_value(id));
                    answers.extend(
                        kept_back.map(|(id, peer)| (*id, self.telling_costs(&weight, peer))),
                    );
                }
                Event::Saved => has_saved = true,
                // A step with what was left is not estimated.
                Event::Left { .. } | Event::Join { .. } | Event::Leave(_) | Event::ReadsOnly(_) => {
                }
            }
        }
        if has_saved {
            // They have waited for this.
            for (id, peer) in self.peers.iter().filter(|(_, peer)| peer.is_withheld) {
                answers.entry(*id).or_insert_with(|| self.telling_costs(&weight, peer));
            }
        }
        if brings {
            // Everybody is told; peers in one state share what is worked out.
            let mut states = HashSet::new();
            for (id, peer) in &self.peers {
                estimate.room = estimate.room.plus(TELL);
                if !answers.contains_key(id) && states.insert(Arc::as_ptr(&peer.state)) {
                    estimate.room = estimate.room.plus(self.telling_costs(&weight, peer));
                }
            }
        }
        answers.into_iter().for_each(|(id, nanos)| estimate.add(id, nanos));
        let writes =
            (self.writing.is_none() || has_saved) && (brings || self.doc.heads() != self.durable);
        if writes && self.wants_snapshot(has_saved, self.fresh_bytes() + fresh) {
            estimate.room = estimate.room.plus(weight.save());
            if !self.chunks.keys.is_empty() {
                estimate.room = estimate.room.plus(weight.load());
            }
        }
        if self.doc.is_asleep() {
            let wakes = estimate.senders.first_mut().map_or(&mut estimate.room, |(_, nanos)| nanos);
            *wakes = wakes.plus(weight.load());
        }
        estimate
    }

    /// Whether the next write is to be a snapshot, after the one under way if that has been `saved`.
    fn wants_snapshot(&self, saved: bool, fresh: usize) -> bool {
        match &self.writing {
            Some(write) if saved && write.is_snapshot() => {
                Chunks { snapshot: write.size, ..Chunks::default() }.wants_snapshot(fresh)
            }
            _ => self.chunks.wants_snapshot(fresh),
        }
    }

    fn taking_in_costs(
        &self,
        weight: &Weight,
        peer: Option<&Peer>,
        message: &SyncMessage,
    ) -> Nanos {
        let heads = &message.message.heads;
        let mut nanos = cost::MESSAGE.plus(Nanos(heads.len() as u64 * 1_000));
        if message.has_changes() && !peer.is_some_and(|peer| peer.state.read_only) {
            let is_unusual = cost::is_unusual(&self.doc, self.orphans.0 > 0, &message.unpacked);
            nanos = nanos.plus(cost::admit_to(weight, is_unusual, &message.unpacked));
        }
        if peer.is_some_and(|peer| !peer.state.sent_hashes.is_empty()) && *heads != self.doc.heads()
        {
            nanos = nanos
                .plus(weight.walk(weight.changes.saturating_sub(self.versions.covered_by(heads))));
        }
        nanos
    }

    /// What its answer will take, whatever heads the message names.
    fn answering_costs(&self, weight: &Weight, message: &SyncMessage) -> Nanos {
        let (has, filters) = self.has(message);
        let lacks = weight.changes.saturating_sub(has);
        let compared = lacks.saturating_add(message.unpacked.changes);
        // As `exchange::receive` takes it.
        let takes_whole = message.message.flags.is_some();
        weight.compare(compared, filters).plus(weight.send(lacks, takes_whole))
    }

    /// What it will take to tell a peer what has come since it last said what it has.
    fn telling_costs(&self, weight: &Weight, peer: &Peer) -> Nanos {
        let lacks = weight.changes.saturating_sub(peer.has);
        if peer.state.their_have.is_none() {
            // Nothing but a filter of what is here.
            return weight.walk(lacks);
        }
        let capabilities = peer.state.their_capabilities.as_deref().unwrap_or_default();
        let takes_whole = capabilities.contains(&Capability::MessageV2);
        weight.compare(lacks, peer.filters).plus(weight.send(lacks, takes_whole))
    }

    /// How many changes a message's sender surely has, and by how many filters others are to be looked for.
    fn has(&self, message: &SyncMessage) -> (u64, u64) {
        let have = &message.message.have;
        let covered = match have.as_slice() {
            [] => self.doc.changes(),
            [only] => self.versions.covered_by(&only.last_sync),
            several => {
                let mut all: Vec<ChangeHash> =
                    several.iter().flat_map(|have| &have.last_sync).copied().collect();
                all.sort_unstable();
                self.versions.covered_by(&all)
            }
        };
        (covered, have.len() as u64)
    }

    /// Take in what came, in order, and say what is to be done.
    pub(crate) fn step(&mut self, events: Vec<Event>) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.interrupted.extend(events);
        while let Some(event) = self.interrupted.pop_front() {
            match event {
                Event::Join { id, full, reads_only } => {
                    // automerge's own word for what it is to us: our state takes nothing.
                    let state = if reads_only { State::new_read_only() } else { State::default() };
                    self.peers.insert(id, Peer { state: Arc::new(state), full, ..Peer::default() });
                }
                Event::Resume => self.resume(),
                Event::Leave(id) => _ = self.peers.remove(&id),
                Event::ReadsOnly(id) => {
                    if let Some(peer) = self.peers.get_mut(&id) {
                        Arc::make_mut(&mut peer.state).set_read_only(true);
                    }
                }
                Event::Message { from, message, ticket } => {
                    self.take_in(from, message, ticket, &mut effects);
                }
                Event::Left { from, message, ticket } => {
                    self.take_in_left(from, &message, ticket, &mut effects);
                }
                Event::Saved => self.saved(&mut effects),
            }
            if self.is_damaged() {
                return effects;
            }
        }
        self.finish(effects)
    }

    /// Take in a message, and say what became of its changes.
    fn take_in(
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
        self.taking_in.store(0, Ordering::Relaxed);
        if is_refused {
            // From now on it only reads, and what else the message says counts.
            if let Ok((rest, _)) = SyncMessage::read_without_changes(raw) {
                self.interrupted.push_front(Event::Message { from, message: rest, ticket: None });
            }
            self.interrupted.push_front(Event::ReadsOnly(from));
        }
    }

    /// Take in changes that an earlier engine has left. They have been charged, and their sender
    /// may have gone.
    fn take_in_left(
        &mut self,
        from: SessionId,
        message: &SyncMessage,
        ticket: Ticket,
        effects: &mut Vec<Effect>,
    ) {
        let before = self.doc.changes();
        self.taking_in.store(from.0, Ordering::Relaxed);
        let admitted = self.has_room_for(message).and_then(|()| self.admit(message));
        effects.push(self.outcome(from, Some(ticket), before, admitted));
        self.taking_in.store(0, Ordering::Relaxed);
    }

    /// What became of a message's changes, where the document had so many `before`.
    fn outcome(
        &mut self,
        from: SessionId,
        ticket: Option<Ticket>,
        before: u64,
        received: Result<(), Refused>,
    ) -> Effect {
        match received {
            Ok(()) => {
                let new_changes = self.doc.changes().saturating_sub(before);
                Effect::Applied { from, ticket, new_changes, has_orphans: self.orphans.0 > 0 }
            }
            Err(why) => {
                self.damaged_by = self.is_damaged().then_some(from);
                Effect::Refuse { from, ticket, why }
            }
        }
    }

    /// Merge a snapshot of the same document, unless it shares no change with what is here.
    pub(crate) fn merge(&mut self, snapshot: &[u8]) -> (Option<Ancestry>, Vec<Effect>) {
        let Ok(mut other) = Document::read(snapshot, Rules::Admission) else {
            return (None, Vec::new());
        };
        let ancestry = Ancestry::of(other.automerge(), self.doc.automerge());
        if ancestry == Ancestry::Newer {
            let Ok(admitted) = self.doc.admit(snapshot, Rules::Admission) else {
                if !self.doc.has_orphans() {
                    self.orphans = (0, Unpacked::default());
                }
                return (None, Vec::new());
            };
            self.number(&admitted);
            let unpacked = unpacked::of(snapshot, Origin::Storage, Size(u64::MAX));
            let values = unpacked.map_or(snapshot.len() as u64, |unpacked| unpacked.values);
            self.values = self.values.saturating_add(values);
        }
        self.fresh = None;
        self.heads_changed();
        (Some(ancestry), self.finish(Vec::new()))
    }

    fn finish(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        self.answer(&mut effects);
        self.write(&mut effects);
        effects
    }

    /// Take another limit of the document's size.
    pub(crate) fn set_max(&mut self, max: MaxDocument) {
        self.max = max;
    }

    /// Whether there is room for a message's changes, if there are any that are new.
    fn has_room_for(&mut self, message: &SyncMessage) -> Result<(), Refused> {
        let (orphans, waiting) = &self.orphans;
        let size = self.stored_bytes() + message.raw.len() + orphans;
        // What a document takes is what it really is, and not what applying its changes took.
        let (operations, changes) = (self.doc.operations(), self.doc.changes());
        let here = Unpacked { operations, changes, values: self.values, ..Unpacked::default() };
        let together = here.plus(waiting).plus(&message.unpacked);
        let Err(limit) = self.max.check_resident(size, &together) else { return Ok(()) };
        if message.message.heads.iter().all(|head| self.doc.has(head)) {
            return Ok(());
        }
        Err(Refused::TooLarge(format!("{} would be too large: {limit}", self.document)))
    }

    fn receive(&mut self, from: SessionId, message: SyncMessage) -> Result<(), Refused> {
        let reads_only = self.peers.get(&from).is_some_and(|peer| peer.state.read_only);
        let has_changes = message.has_changes();
        if has_changes && !reads_only {
            self.has_room_for(&message)?;
        }
        let shared = self.peers.len() >= CROWD;
        let Some(peer) = self.peers.get_mut(&from) else { return Ok(()) };
        if !std::mem::replace(&mut peer.is_due, true) {
            self.due.push(from);
        }
        let told = peer.state.clone();
        let (has, filters) = self.has(&message);
        let named = message.message.heads.clone();
        let (before, changes) = (self.doc.heads().to_vec(), self.doc.changes());
        if has_changes && !reads_only {
            self.taking_in.store(from.0, Ordering::Relaxed);
            self.admit(&message)?;
        }
        let doc = self.doc.automerge();
        let state = self.exchange.receive(doc, &before, &told, message, shared);
        let has_more = !named.iter().all(|head| self.doc.has(head));
        let here = self.doc.changes();
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.state = state;
            (peer.has, peer.filters) = (has, filters);
            peer.withhold_what_it_may_have(here);
            let is_looked_at = |head: &ChangeHash| {
                let before = told.their_heads.as_ref().filter(|_| !peer.has_more);
                told.sent_hashes.contains(head) || before.is_some_and(|named| named.contains(head))
            };
            // What it was sent by us is no claim of its own.
            let claims = named.iter().filter(|head| !is_looked_at(head));
            let claims = claims.filter_map(|head| {
                let whole = || self.unsaved_whole.filter(|_| self.doc.has(head));
                self.unsaved.get(head).copied().or_else(whole)
            });
            let claimed = claims.filter(|number| *number > peer.told).max().unwrap_or(0);
            let brought = if here > changes { here } else { 0 };
            peer.withheld_until = peer.withheld_until.max(claimed).max(brought);
            peer.has_more = has_more;
        }
        Ok(())
    }

    /// Let a message's changes become part of the document, if they may.
    fn admit(&mut self, message: &SyncMessage) -> Result<(), Refused> {
        let (bytes, unpacked) = (message.raw.len(), message.unpacked);
        let admitted = self.doc.try_admit(&message.changes(), Rules::Admission);
        // A refusal may cost those that waited.
        if admitted.is_err() && self.orphans.0 > 0 && !self.doc.has_orphans() {
            self.orphans = (0, Unpacked::default());
        }
        let admitted = admitted.map_err(Refused::Gate)?;
        let has_changed = !matches!(admitted, Admitted::Nothing);
        if has_changed {
            self.values = self.values.saturating_add(unpacked.values);
            self.number(&admitted);
            self.keep(admitted);
            self.heads_changed();
        }
        // What was here already waits for nothing, and takes nothing.
        let has_orphans = (!has_changed || self.orphans.0 > 0) && self.doc.has_orphans();
        self.orphans = match (has_orphans, has_changed) {
            (false, _) => (0, Unpacked::default()),
            (true, true) => self.orphans,
            (true, false) => (self.orphans.0 + bytes, self.orphans.1.plus(&unpacked)),
        };
        Ok(())
    }

    /// Keep admitted changes for the next write, unless that will be a snapshot anyway.
    fn keep(&mut self, admitted: Admitted) {
        match (&mut self.fresh, admitted) {
            (Some(fresh), Admitted::Changes(new))
                if self.chunks.snapshot > 0 || new.len() <= FEW =>
            {
                new.iter().for_each(|change| fresh.extend(change.raw_bytes()));
            }
            _ => self.fresh = None,
        }
    }

    /// Note the number of changes that were just admitted.
    fn number(&mut self, admitted: &Admitted) {
        let here = self.doc.changes();
        match admitted {
            Admitted::Nothing => {}
            Admitted::Changes(new) => {
                self.unsaved.extend(new.iter().map(|change| (change.hash(), here)));
            }
            // The document was empty: nothing else is unsaved.
            Admitted::Whole => self.unsaved_whole = Some(here),
        }
    }

    fn resume(&mut self) {
        for id in std::mem::take(&mut self.kept_back) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.is_kept_back = false;
                self.due.push(id);
            }
        }
    }

    /// There is something to say to everybody.
    fn heads_changed(&mut self) {
        self.told_heads = None;
        self.versions.add(self.doc.heads(), self.doc.changes());
        self.exchange.forget();
        self.all_due = true;
    }

    fn saved(&mut self, effects: &mut Vec<Effect>) {
        let Some(write) = self.writing.take() else { return };
        if write.is_snapshot() {
            self.chunks = Chunks::default();
            if !write.replaces.is_empty() {
                effects.push(Effect::Remove(write.replaces));
            }
        }
        (self.durable, self.durable_changes) = (write.heads, write.changes);
        self.unsaved.retain(|_, number| *number > write.changes);
        self.unsaved_whole = self.unsaved_whole.filter(|number| *number > write.changes);
        if self.unsaved.is_empty() {
            // A quiet room keeps no memory for it.
            self.unsaved = HashMap::new();
        }
        self.chunks.add(write.key, write.size);
        for (id, peer) in &mut self.peers {
            if peer.told <= write.changes {
                peer.told_heads = Arc::default();
            }
            let is_released = peer.is_withheld && peer.withheld_until <= write.changes;
            if is_released && !std::mem::replace(&mut peer.is_due, true) {
                self.due.push(*id);
            }
        }
    }

    fn answer(&mut self, effects: &mut Vec<Effect>) {
        let due = std::mem::take(&mut self.due);
        let due = if std::mem::take(&mut self.all_due) {
            self.peers.keys().copied().collect()
        } else {
            due
        };
        due.into_iter().for_each(|id| self.answer_one(id, effects));
    }

    fn answer_one(&mut self, to: SessionId, effects: &mut Vec<Effect>) {
        let shared = self.peers.len() >= CROWD;
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if peer.full.load(Ordering::Relaxed) {
            peer.is_due = true;
            if !std::mem::replace(&mut peer.is_kept_back, true) {
                self.kept_back.push(to);
            }
            effects.push(Effect::KeepBack { from: to });
            return;
        }
        (peer.is_due, peer.is_kept_back) = (false, false);
        let here = self.doc.changes();
        peer.withhold_what_it_may_have(here);
        // Of one that only reads nothing will ever be durable.
        let is_withheld = peer.withheld_until > self.durable_changes && !peer.state.read_only;
        let was_withheld = std::mem::replace(&mut peer.is_withheld, is_withheld);
        if was_withheld && !is_withheld {
            // A peer that names our heads itself is not told them again (`SyncDoc::receive_sync_message`);
            // but this one has not heard that they are here.
            Arc::make_mut(&mut peer.state).have_responded = false;
        }
        let message = if is_withheld {
            let is_told = peer.told > self.durable_changes;
            let heads: &[ChangeHash] = if is_told { &peer.told_heads } else { &self.durable };
            withheld_message(self.doc.automerge(), heads, &mut peer.state)
        } else {
            let (state, message) =
                self.exchange.generate(self.doc.automerge(), &peer.state, shared);
            peer.state = state;
            if message.is_some() && here > self.durable_changes {
                let heads = self.told_heads.get_or_insert_with(|| self.doc.heads().into());
                (peer.told, peer.told_heads) = (here, heads.clone());
            }
            message
        };
        if let Some(message) = message {
            effects.push(Effect::Send { to, message });
        }
    }

    /// Begin to write what is not durable, unless a write is under way: what comes meanwhile goes with the
    /// next one.
    fn write(&mut self, effects: &mut Vec<Effect>) {
        if self.writing.is_some() || self.doc.heads() == self.durable {
            return;
        }
        let wants_snapshot = self.wants_snapshot(false, self.fresh_bytes());
        let fresh = self.fresh.replace(Vec::new());
        let heads = self.doc.heads().to_vec();
        let doc = self.doc.automerge();
        let snapshot = wants_snapshot.then(|| doc.save());
        // What replaces everything else has to be good.
        let snapshot =
            snapshot.filter(|data| self.chunks.keys.is_empty() || gate::loads(data, &heads));
        let (key, data, replaces) = if let Some(data) = snapshot {
            let key = snapshot_key(self.document, &heads);
            let mut replaces = self.chunks.keys.clone();
            replaces.retain(|old| *old != key);
            (key, data, replaces)
        } else {
            let data = fresh.unwrap_or_else(|| doc.save_after(&self.durable));
            (increment_key(self.document, &data), data, Vec::new())
        };
        let (size, changes) = (data.len(), self.doc.changes());
        self.writing = Some(Write { heads, changes, key: key.clone(), size, replaces });
        effects.push(Effect::Save { key, data: data.into() });
    }
}

impl Peer {
    fn withhold_what_it_may_have(&mut self, here: u64) {
        if self.has_more && here > self.told {
            self.withheld_until = self.withheld_until.max(here);
        }
    }
}

/// What a peer may hear from which heads are withheld: changes of others and questions, at once, under `heads` that it
/// may hear. A message without heads would say that all is lost.
fn withheld_message(
    doc: &Automerge,
    heads: &[ChangeHash],
    state: &mut Arc<State>,
) -> Option<Bytes> {
    if heads.is_empty() {
        return None;
    }
    let mut after = State::clone(state);
    // A peer asks for what it misses of the heads that it hears. It does not hear these, and never asks for a change that
    // a Bloom filter has hidden: so it gets all that it is not known to have.
    let theirs = state.their_heads.iter().flatten();
    let theirs = theirs.filter(|head| doc.get_change_meta_by_hash(head).is_some());
    let known: HashSet<ChangeHash> = theirs.chain(&state.shared_heads).copied().collect();
    let have = Have { last_sync: known.into_iter().collect(), bloom: BloomFilter::default() };
    let said = after.their_have.replace(vec![have]);
    let mut message = doc.generate_sync_message(&mut after)?;
    if message.changes.is_empty() && message.need.is_empty() {
        return None;
    }
    message.heads = heads.to_vec();
    after.their_have = said;
    after.last_sent_heads = heads.to_vec();
    *state = Arc::new(after);
    Some(message.encode().into())
}
