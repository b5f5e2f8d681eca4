//! The native room's core: a pure step from what came to what is to be done. No I/O, no clock.
//!
//! "Saved" means saved: automerge-repo takes the heads in our sync messages as what our storage has. So a
//! peer that has something which is not durable here, and was not told of it by us, hears the durable heads
//! until it is; everybody else gets a change at once.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use automerge::{
    Automerge, ChangeHash, ReadDoc,
    sync::{State, SyncDoc},
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    exchange::{self, Exchange},
    sound::{self, Look},
};
use crate::{
    document_id::DocumentId,
    storage::{
        ChunkKind, Key,
        documents::{Relation, hex, snapshot_key},
        max_document::MaxDocument,
    },
    sync::{look::EngineLook, peers::SessionId, wire::SyncMessage},
    unpacked::Unpacked,
};

/// Increments up to so many bytes are kept beside a snapshot, however small that is.
const SMALL: usize = 4 << 10;
/// Peers from which on equal states are looked for: below, remembering costs more than it saves.
const CROWD: usize = 3;
/// Bytes of a message, or of a document that is to be read or written as a whole, from which on a step is
/// long enough (about 1 ms) to hold up what else waits for the thread.
const HEAVY: usize = 32 << 10;
/// Bytes that a message unpacks to, likewise: some 300 operations.
const UNPACKS_HEAVY: u64 = 160 << 10;

/// Heads and changes of a document weigh so many bytes: a message is compared with the one, and who is new is told the other.
const HEAD_WEIGHS: usize = 64;
const CHANGE_WEIGHS: u64 = 4;
/// So many changes of a document that has no snapshot are not kept for the next write: that will be one.
const FEW: usize = 100;
/// More heads than any document has whose peers see each other's changes; each costs time with every message.
const MAX_HEADS: usize = 4_096;

/// Documents up to so many stored bytes are kept as such while their rooms are quiet: automerge takes at
/// least 14 KiB for a document, and reads one of this size in about 100 us.
const SLEEPS: usize = 16 << 10;

/// What came.
pub(super) enum Event {
    /// A session takes part.
    Join {
        id: SessionId,
        /// When there is no room for messages to it.
        full: Arc<AtomicBool>,
        /// Changes of it are not taken in.
        reads_only: bool,
    },
    /// A session does not any more.
    Leave(SessionId),
    /// A session sent a message.
    Message(SessionId, SyncMessage),
    /// There may be room for messages that were kept back.
    Resume,
    /// The write that was asked for last is durable.
    Saved,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Effect {
    /// Send a sync message.
    Send { to: SessionId, message: Bytes },
    /// There is something to say to a session, and no room for it: it is said when there is
    /// ([`Event::Resume`]), and is then what has come of it.
    KeepBack { from: SessionId },
    /// Make a chunk durable, and say so by [`Event::Saved`]. One at a time.
    Save { key: Key, data: Bytes },
    /// Delete chunks whose changes are in a durable snapshot.
    Remove(Vec<Key>),
    /// A peer's changes were taken in, so many of them new.
    Applied { from: SessionId, new_changes: u64 },
    /// A peer sent changes that cannot be taken.
    Refuse { from: SessionId, why: Refused },
}

/// Why changes are not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    /// They do not parse, or do not fit the document.
    Misfit(String),
    /// The document would be larger than one may be.
    TooLarge(String),
}

/// One document and its peers.
pub(super) struct Core {
    document: DocumentId,
    /// How large it may be.
    max: MaxDocument,
    doc: Doc,
    /// The document's heads.
    heads: Vec<ChangeHash>,
    /// How many changes it has.
    changes: u64,
    /// What its chunks unpack to, and the messages since: at least what it will when it is next loaded.
    unpacked: u64,
    /// Changes that wait for others which nobody has brought: bytes of their messages, and how many.
    orphans: (usize, u64),
    /// The heads up to which all is durable.
    durable: Vec<ChangeHash>,
    /// In the order of their ids, so that equal inputs give equal outputs.
    peers: BTreeMap<SessionId, Peer>,
    /// The peers to which there may be something to say, or all.
    due: Vec<SessionId>,
    all_due: bool,
    /// Those of them for whom there was no room.
    kept_back: Vec<SessionId>,
    exchange: Exchange,
    chunks: Chunks,
    /// Writes begun so far.
    writes: u64,
    writing: Option<Write>,
    /// The changes that the next write is to hold, as it holds them; none where that is to be found out.
    fresh: Option<Vec<u8>>,
    /// The number of the document's last operation.
    last_op: u64,
    /// The session whose changes are being taken in, or 0: for when that ends in a panic.
    taking_in: Arc<AtomicU64>,
    /// Changes were taken in that cannot stay: of this core nothing may be sent or stored any more.
    is_spoilt: bool,
}

#[derive(Default)]
struct Peer {
    state: Arc<State>,
    /// The write after which it may hear all heads, if it may not yet.
    held_until: Option<u64>,
    /// It has said that it has something which was not here.
    has_more: bool,
    /// It is among those to which there may be something to say.
    is_due: bool,
    /// There was no room for it.
    is_kept_back: bool,
    full: Arc<AtomicBool>,
}

/// The document, or what it was saved as.
enum Doc {
    Awake(Box<Automerge>),
    Asleep(Vec<u8>),
}

impl Doc {
    fn awake(&mut self) -> &mut Automerge {
        if let Self::Asleep(saved) = self {
            match Automerge::load(saved) {
                Ok(doc) => *self = Self::Awake(Box::new(doc)),
                #[expect(clippy::panic, reason = "the engine is then started anew, from storage")]
                Err(error) => panic!("a document that was saved does not load: {error}"),
            }
        }
        match self {
            Self::Awake(doc) => doc,
            Self::Asleep(_) => unreachable!("it was just read"),
        }
    }
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
    key: Key,
    size: usize,
    /// The chunks that it replaces.
    replaces: Vec<Key>,
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
            || fresh >= self.snapshot.max(HEAVY)
    }
}

impl Core {
    /// A document as it stands in storage, without peers.
    pub(super) fn new(
        document: DocumentId,
        doc: Box<Automerge>,
        max: MaxDocument,
        unpacked: u64,
        stored: impl IntoIterator<Item = (Key, usize)>,
    ) -> Self {
        let (heads, last_op) = (doc.get_heads(), sound::last_op(&doc));
        let mut chunks = Chunks::default();
        for (key, size) in stored {
            chunks.add(key, size);
        }
        Self {
            document,
            max,
            changes: doc.stats().num_changes,
            unpacked,
            orphans: (0, 0),
            doc: Doc::Awake(doc),
            durable: heads.clone(),
            heads,
            peers: BTreeMap::new(),
            due: Vec::new(),
            all_due: false,
            kept_back: Vec::new(),
            exchange: Exchange::default(),
            chunks,
            writes: 0,
            writing: None,
            fresh: Some(Vec::new()),
            last_op,
            taking_in: Arc::default(),
            is_spoilt: false,
        }
    }

    /// The session whose changes are being taken in, or 0.
    pub(super) fn taking_in(&self) -> Arc<AtomicU64> {
        self.taking_in.clone()
    }

    /// Whether changes were taken in that cannot stay: the document is to be read from storage again.
    pub(super) fn is_spoilt(&self) -> bool {
        self.is_spoilt
    }

    fn fresh_bytes(&self) -> usize {
        self.fresh.as_ref().map_or(0, Vec::len)
    }

    #[cfg(test)]
    pub(super) fn distinct_states(&self) -> usize {
        let states = self.peers.values().map(|peer| Arc::as_ptr(&peer.state));
        states.collect::<std::collections::BTreeSet<_>>().len()
    }

    /// The heads up to which all is durable.
    pub(super) fn durable(&self) -> &[ChangeHash] {
        &self.durable
    }

    /// Whether all of the document is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.heads == self.durable && self.writing.is_none()
    }

    /// What an operator sees.
    pub(super) fn look(&self) -> EngineLook {
        let theirs = self.peers.iter().filter_map(|(id, peer)| {
            let heads = peer.state.their_heads.clone()?;
            Some((*id, heads))
        });
        EngineLook {
            heads: Some(self.heads.clone()),
            changes: Some(self.changes),
            bytes: Some(self.size() as u64),
            theirs: theirs.collect(),
        }
    }

    fn size(&self) -> usize {
        self.chunks.snapshot + self.chunks.increments
    }

    /// The room is quiet: keep as little as can be.
    pub(super) fn rest(&mut self) {
        self.exchange.forget();
        if self.is_durable()
            && self.size() <= SLEEPS
            && let Doc::Awake(doc) = &self.doc
        {
            let mut saved = doc.save();
            saved.shrink_to_fit();
            self.doc = Doc::Asleep(saved);
        }
    }

    /// Whether a step with these events takes long.
    pub(super) fn is_heavy(&self, events: &[Event]) -> bool {
        let size = self.size()
            + usize::try_from(self.changes.saturating_mul(CHANGE_WEIGHS)).unwrap_or(usize::MAX);
        let fresh = self.fresh_bytes();
        let (mut bytes, mut unpacked) = (0, 0);
        for event in events {
            if let Event::Message(from, message) = event {
                bytes += message.raw.len() + self.heads.len() * HEAD_WEIGHS;
                unpacked += message.unpacked.bytes;
                let peer = self.peers.get(from);
                let is_new = peer.is_none_or(|peer| peer.state.their_heads.is_none());
                let has_marks = message.unpacked.marks > 0;
                let is_to_be_saved = self.chunks.wants_snapshot(fresh) || has_marks;
                // Whoever is elsewhere is told what it lacks, which is looked for among all changes.
                let is_elsewhere = !message.has_changes() && message.message.heads != self.heads;
                if is_new || is_elsewhere || (message.has_changes() && is_to_be_saved) {
                    bytes += size;
                }
            }
        }
        bytes > HEAVY || unpacked > UNPACKS_HEAVY
    }

    /// Take in what came, in order, and say what is to be done.
    pub(super) fn step(&mut self, events: Vec<Event>) -> Vec<Effect> {
        let mut effects = Vec::new();
        for event in events {
            match event {
                Event::Join { id, full, reads_only } => {
                    // automerge's own word for what it is to us: our state takes nothing.
                    let state = if reads_only { State::new_read_only() } else { State::default() };
                    self.peers.insert(id, Peer { state: Arc::new(state), full, ..Peer::default() });
                }
                Event::Resume => self.resume(),
                Event::Leave(id) => _ = self.peers.remove(&id),
                Event::Message(from, message) => {
                    let before = message.has_changes().then_some(self.changes);
                    let received = self.receive(from, message);
                    self.taking_in.store(0, Ordering::Relaxed);
                    match (received, before) {
                        (Err(why), _) => {
                            effects.push(Effect::Refuse { from, why });
                            if self.is_spoilt {
                                return effects;
                            }
                        }
                        (Ok(()), Some(before)) => {
                            let new_changes = self.changes.saturating_sub(before);
                            effects.push(Effect::Applied { from, new_changes });
                        }
                        (Ok(()), None) => {}
                    }
                }
                Event::Saved => self.saved(&mut effects),
            }
        }
        self.finish(effects)
    }

    /// Merge a snapshot of the same document, unless it shares no change with what is here.
    pub(super) fn merge(&mut self, snapshot: &[u8]) -> (Option<Relation>, Vec<Effect>) {
        let Ok(other) = Automerge::load(snapshot) else { return (None, Vec::new()) };
        let doc = self.doc.awake();
        let relation = Relation::of(&other, doc);
        if relation == Relation::Newer && doc.load_incremental(snapshot).is_err() {
            return (None, Vec::new());
        }
        self.fresh = None;
        self.last_op = sound::last_op(doc);
        self.note_heads();
        (Some(relation), self.finish(Vec::new()))
    }

    fn finish(&mut self, mut effects: Vec<Effect>) -> Vec<Effect> {
        self.answer(&mut effects);
        self.write(&mut effects);
        effects
    }

    /// Take another limit of the document's size.
    pub(super) fn set_max(&mut self, max: MaxDocument) {
        self.max = max;
    }

    /// Whether there is room for a message's changes, if there are any that are new.
    fn has_room_for(&mut self, message: &SyncMessage) -> Result<(), Refused> {
        let size = self.size() + message.raw.len() + self.orphans.0;
        let changes = self.changes + message.unpacked.changes + self.orphans.1;
        let bytes = self.unpacked.saturating_add(message.unpacked.bytes);
        let unpacked = Unpacked { bytes, changes, marks: 0 };
        let Err(limit) = self.max.check(size, unpacked) else { return Ok(()) };
        let doc = self.doc.awake();
        let is_here = |head: &ChangeHash| doc.get_change_meta_by_hash(head).is_some();
        if message.message.heads.iter().all(is_here) {
            return Ok(());
        }
        Err(Refused::TooLarge(format!("{} would be too large: {limit}", self.document)))
    }

    fn receive(&mut self, from: SessionId, message: SyncMessage) -> Result<(), Refused> {
        let reads_only = self.peers.get(&from).is_some_and(|peer| peer.state.read_only);
        if message.has_changes() && !reads_only {
            self.has_room_for(&message)?;
        }
        let shared = self.peers.len() >= CROWD;
        let Some(peer) = self.peers.get_mut(&from) else { return Ok(()) };
        if !std::mem::replace(&mut peer.is_due, true) {
            self.due.push(from);
        }
        let told = peer.state.clone();
        let claims = message.message.heads.clone();
        let has_changes = message.has_changes();
        if has_changes {
            let mut after = State::clone(&peer.state);
            let (bytes, unpacked) = (message.raw.len(), message.unpacked);
            self.taking_in.store(from.0, Ordering::Relaxed);
            exchange::receive(self.doc.awake(), &mut after, message.message).map_err(|error| {
                Refused::Misfit(format!("the changes do not fit the document: {error}"))
            })?;
            peer.state = Arc::new(after);
            let before = self.heads.clone();
            let has_changed = self.note_heads();
            if has_changed && !reads_only {
                self.check(&before, unpacked.marks > 0)?;
            }
            // What was here already waits for nothing, and takes nothing.
            let has_orphans = (!has_changed || self.orphans.0 > 0)
                && !self.doc.awake().get_missing_deps(&[]).is_empty();
            if has_changed || has_orphans {
                self.unpacked = self.unpacked.saturating_add(unpacked.bytes);
            }
            self.orphans = match (has_orphans, has_changed) {
                (false, _) => (0, 0),
                (true, true) => self.orphans,
                (true, false) => (self.orphans.0 + bytes, self.orphans.1 + unpacked.changes),
            };
        } else {
            peer.state = self
                .exchange
                .receive(self.doc.awake(), &peer.state, message, shared)
                .map_err(|error| Refused::Misfit(error.to_string()))?;
        }
        let known: HashSet<&ChangeHash> =
            told.last_sent_heads.iter().chain(&self.durable).collect();
        let all_told = claims.iter().all(|head| known.contains(head));
        let doc = &mut self.doc;
        let mut is_here = |head| {
            self.heads.binary_search(head).is_ok()
                || doc.awake().get_change_meta_by_hash(head).is_some()
        };
        let has_more = !all_told && !claims.iter().all(&mut is_here);
        // Of one that only reads nothing will ever be durable.
        let hold = self.heads != self.durable && (has_changes || !all_told) && !reads_only;
        let until = self.covering_write();
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.has_more = has_more && !reads_only;
            if hold {
                peer.held_until = Some(until);
            }
        }
        Ok(())
    }

    /// See that the changes since some heads are such that the document can be stored and told to others, and keep them for
    /// the next write.
    fn check(&mut self, before: &[ChangeHash], has_marks: bool) -> Result<(), Refused> {
        let document = self.document;
        let spoilt = |why: &str| Err(Refused::Misfit(format!("the changes to {document} {why}")));
        if self.heads.len() > MAX_HEADS && self.heads.len() > before.len() {
            self.is_spoilt = true;
            return spoilt(&format!("leave more than {MAX_HEADS} heads"));
        }
        let doc = self.doc.awake();
        let new = doc.get_changes(before);
        let is_sound = match sound::look(doc, &new, &self.heads, &mut self.last_op) {
            Look::Sound if !has_marks => true,
            Look::Sound | Look::Odd => sound::loads(&doc.save(), &self.heads),
            Look::Bad => false,
        };
        if !is_sound {
            self.is_spoilt = true;
            return spoilt(
                "are not as automerge writes them: a document with them cannot be loaded",
            );
        }
        if self.chunks.snapshot == 0 && new.len() > FEW {
            self.fresh = None;
        } else if let Some(fresh) = &mut self.fresh {
            new.iter().for_each(|change| fresh.extend(change.raw_bytes()));
        }
        Ok(())
    }

    /// The write that makes all that is here durable.
    fn covering_write(&self) -> u64 {
        let is_being_written = self.writing.as_ref().is_some_and(|w| w.heads == self.heads);
        if is_being_written { self.writes } else { self.writes + 1 }
    }

    fn resume(&mut self) {
        for id in std::mem::take(&mut self.kept_back) {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.is_kept_back = false;
                self.due.push(id);
            }
        }
    }

    /// The document may have changed: then there is something to say to everybody. Returns whether it has.
    fn note_heads(&mut self) -> bool {
        let heads = self.doc.awake().get_heads();
        let has_changed = heads != self.heads;
        if has_changed {
            self.heads = heads;
            self.changes = self.doc.awake().stats().num_changes;
            self.exchange.forget();
            self.all_due = true;
        }
        has_changed
    }

    fn saved(&mut self, effects: &mut Vec<Effect>) {
        let Some(write) = self.writing.take() else { return };
        self.durable = write.heads;
        if matches!(write.key, Key::Chunk { kind: ChunkKind::Snapshot, .. }) {
            self.chunks = Chunks::default();
            if !write.replaces.is_empty() {
                effects.push(Effect::Remove(write.replaces));
            }
        }
        self.chunks.add(write.key, write.size);
        for (id, peer) in &mut self.peers {
            if peer.held_until.is_some_and(|until| until <= self.writes) {
                peer.held_until = None;
                if !std::mem::replace(&mut peer.is_due, true) {
                    self.due.push(*id);
                }
                // A peer that names our heads itself is not told them again (`SyncDoc::receive_sync_message`);
                // but this one has not heard that they are here.
                Arc::make_mut(&mut peer.state).have_responded = false;
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
        let until = self.covering_write();
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
        // What it has and we had not may have come from somebody else by now.
        if peer.has_more && peer.held_until.is_none() && self.heads != self.durable {
            peer.held_until = Some(until);
        }
        let doc = self.doc.awake();
        let message = if peer.held_until.is_none() {
            let (state, message) = self.exchange.generate(doc, &peer.state, shared);
            peer.state = state;
            message
        } else {
            held_message(doc, &self.durable, &mut peer.state)
        };
        if let Some(message) = message {
            effects.push(Effect::Send { to, message });
        }
    }

    /// Begin to write what is not durable, unless a write is under way: what comes meanwhile goes with the
    /// next one.
    fn write(&mut self, effects: &mut Vec<Effect>) {
        if self.writing.is_some() || self.heads == self.durable {
            return;
        }
        let wants_snapshot = self.chunks.wants_snapshot(self.fresh_bytes());
        let fresh = self.fresh.replace(Vec::new());
        let doc = self.doc.awake();
        let snapshot = wants_snapshot.then(|| doc.save());
        // What replaces everything else is to be good.
        let snapshot =
            snapshot.filter(|data| self.chunks.keys.is_empty() || sound::loads(data, &self.heads));
        let (key, data, replaces) = if let Some(data) = snapshot {
            let key = snapshot_key(self.document, &self.heads);
            let mut replaces = self.chunks.keys.clone();
            replaces.retain(|old| *old != key);
            (key, data, replaces)
        } else {
            let data = fresh.unwrap_or_else(|| doc.save_after(&self.durable));
            let name = hex(&Sha256::digest(&data));
            let kind = ChunkKind::Incremental;
            (Key::Chunk { document: self.document, kind, name }, data, Vec::new())
        };
        self.writes += 1;
        let (heads, size) = (self.heads.clone(), data.len());
        self.writing = Some(Write { heads, key: key.clone(), size, replaces });
        effects.push(Effect::Save { key, data: data.into() });
    }
}

/// What a peer may hear that has something which is not durable: changes of others and questions, at once,
/// but of our heads the durable ones alone. A message without heads would say that all is lost.
fn held_message(doc: &Automerge, durable: &[ChangeHash], state: &mut Arc<State>) -> Option<Bytes> {
    if durable.is_empty() {
        return None;
    }
    let mut after = State::clone(state);
    let mut message = doc.generate_sync_message(&mut after)?;
    if message.changes.is_empty() && message.need.is_empty() {
        return None;
    }
    message.heads = durable.to_vec();
    after.last_sent_heads = durable.to_vec();
    *state = Arc::new(after);
    Some(message.encode().into())
}
