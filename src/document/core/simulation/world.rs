//! Peers, a relay with a disk, and what may happen to them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use automerge::{
    ActorId, Automerge, AutomergeError, ChangeHash, ROOT,
    sync::{Message, State, SyncDoc},
    transaction::Transactable,
};

use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    config::{Config, Size},
    document::{
        chunk::Key,
        core::{
            event::{Effect, Event},
            state::Core,
        },
        gate::{Document, Rules},
        size::MaxDocument,
        sync_message::SyncMessage,
    },
};

pub(super) const PEERS: usize = 4;
pub(super) const DOCUMENT: DocumentId = DocumentId::from_bytes([7; 16]);

#[derive(Clone, Debug)]
pub(super) enum Action {
    /// A peer edits, and sends what it has to say.
    Edit(usize),
    /// The next message of a peer arrives at the relay.
    ToRelay(usize),
    /// The next message of the relay arrives at a peer.
    ToPeer(usize),
    /// The core processes everything that has arrived.
    Step,
    /// The write under way becomes durable.
    Written,
    /// Chunks that were replaced are deleted.
    Delete,
    /// The room is idle.
    Idle,
    /// A peer's send queue becomes full, or has room again.
    Full(usize, bool),
    /// The process crashes, with the write under way durable or not, and starts again.
    Crash { written: bool },
    /// A peer's connection breaks.
    Disconnect(usize),
    /// A peer connects. It keeps what it last knew of the relay, as automerge-repo's storage does,
    /// or it does not.
    Connect { peer: usize, keeps_state: bool },
    /// A peer stops taking changes, or takes them again.
    ReadOnly(usize, bool),
}

/// A client with its own copy of the document.
pub(super) struct Peer {
    pub(super) doc: Automerge,
    pub(super) actor: ActorId,
    pub(super) state: State,
    pub(super) link: Option<Link>,
}

/// A connection, with the messages that have not arrived yet.
#[derive(Default)]
pub(super) struct Link {
    pub(super) session: u64,
    pub(super) queue_full: Arc<AtomicBool>,
    pub(super) to_relay: VecDeque<Vec<u8>>,
    pub(super) to_peer: VecDeque<Vec<u8>>,
}

impl Peer {
    pub(super) fn new(n: usize) -> Self {
        let actor = ActorId::from([n as u8 + 1; 16]);
        let mut doc = Automerge::new();
        doc.set_actor(actor.clone());
        Self { doc, actor, state: State::new(), link: None }
    }

    /// Edits, and sends what it has to say.
    pub(super) fn edit(&mut self, key: &str, value: &str) {
        self.doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, key, value)).expect("an edit");
        self.send();
    }

    /// The peer's own changes that a message to it announces as stored.
    pub(super) fn announced(&self, message: &[u8]) -> Vec<ChangeHash> {
        let heads = Message::decode(message).expect("a message").heads;
        let is_known = |head: &ChangeHash| self.doc.get_change_meta_by_hash(head).is_some();
        let known: Vec<_> = heads.into_iter().filter(is_known).collect();
        if known.is_empty() {
            return Vec::new();
        }
        let after: BTreeSet<_> =
            self.doc.get_changes_meta(&known).iter().map(|change| change.hash).collect();
        let all = self.doc.get_changes_meta(&[]);
        let own = all.iter().filter(|change| *change.actor == self.actor);
        own.map(|change| change.hash).filter(|hash| !after.contains(hash)).collect()
    }

    pub(super) fn send(&mut self) {
        let Some(link) = &mut self.link else { return };
        if let Some(message) = self.doc.generate_sync_message(&mut self.state) {
            link.to_relay.push_back(message.encode());
        }
    }

    pub(super) fn receive(&mut self) {
        let Some(message) = self.link.as_mut().and_then(|link| link.to_peer.pop_front()) else {
            return;
        };
        let message = Message::decode(&message).expect("a message");
        self.doc.receive_sync_message(&mut self.state, message).expect("fits");
        self.send();
    }
}

/// A write under way.
pub(super) struct Writing {
    pub(super) key: Key,
    pub(super) data: Vec<u8>,
    /// What the disk may delete after it.
    replaces: Vec<Key>,
}

/// All peers, the relay, and its disk.
pub(super) struct World {
    pub(super) core: Core,
    /// What has arrived at the relay since the last step.
    arrived: Vec<Event>,
    pub(super) peers: Vec<Peer>,
    /// The number of the last session.
    sessions: u64,
    pub(super) disk: BTreeMap<Key, Vec<u8>>,
    /// The write under way.
    pub(super) writing: Option<Writing>,
    /// Replaced chunks that are still on the disk.
    to_delete: Vec<Key>,
    /// The number of the last edit, which decides its text.
    pub(super) edits: u64,
}

/// Loads what is stored, with automerge alone.
pub(super) fn load(disk: &BTreeMap<Key, Vec<u8>>) -> Automerge {
    let bytes: Vec<u8> = disk.values().flatten().copied().collect();
    let mut doc = Automerge::load(&bytes).expect("what is stored parses and fits together");
    doc.set_actor(ActorId::from([0xff; 16]));
    doc
}

/// Starts a core from what is stored.
fn core(disk: &BTreeMap<Key, Vec<u8>>) -> Core {
    let bytes: Vec<u8> = disk.values().flatten().copied().collect();
    let doc = Document::read(&bytes, Rules::Stored).expect("what is stored is admitted");
    let stored = disk.iter().map(|(key, data)| (key.clone(), data.len()));
    let durable = doc.heads().to_vec();
    Core::new(
        DOCUMENT,
        doc,
        MaxDocument::of(&Config::default()),
        0,
        (stored.collect(), 0),
        &durable,
    )
}

impl World {
    pub(super) fn new() -> Self {
        let disk = BTreeMap::new();
        Self {
            core: core(&disk),
            arrived: Vec::new(),
            peers: (0..PEERS).map(Peer::new).collect(),
            sessions: 0,
            disk,
            writing: None,
            to_delete: Vec::new(),
            edits: 0,
        }
    }

    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::Edit(n) => {
                self.edits += 1;
                // Long enough that compaction is due now and then.
                self.peers[n].edit(&format!("k{n}"), &format!("{}", self.edits).repeat(200));
            }
            Action::ToRelay(n) => {
                let Some(link) = &mut self.peers[n].link else { return };
                if let Some(message) = link.to_relay.pop_front() {
                    let message =
                        SyncMessage::read(message.into(), Size::mib(256)).expect("a message");
                    let from = SessionId(link.session);
                    self.arrived.push(Event::Message { from, message, ticket: None });
                }
            }
            Action::ToPeer(n) => self.peers[n].receive(),
            Action::Step => self.step(),
            Action::Written => {
                if let Some(Writing { key, data, replaces }) = self.writing.take() {
                    self.disk.insert(key, data);
                    self.to_delete.extend(replaces);
                    self.arrived.push(Event::Saved);
                }
            }
            Action::Delete => self.delete(),
            Action::Idle => self.core.release_memory(),
            Action::Full(n, on) => {
                if let Some(link) = &self.peers[n].link {
                    link.queue_full.store(on, Ordering::Relaxed);
                    // Also without room: the event may be for another session.
                    self.arrived.push(Event::Resume);
                }
            }
            Action::Crash { written } => {
                if let Some(writing) = self.writing.take().filter(|_| written) {
                    self.disk.insert(writing.key, writing.data);
                }
                self.to_delete.clear();
                self.arrived.clear();
                self.core = core(&self.disk);
                (0..PEERS).for_each(|n| self.peers[n].link = None);
            }
            Action::Disconnect(n) => {
                if let Some(link) = self.peers[n].link.take() {
                    self.arrived.push(Event::Leave(SessionId(link.session)));
                }
            }
            Action::Connect { peer: n, keeps_state } => self.connect(n, keeps_state),
            Action::ReadOnly(n, on) => {
                let peer = &mut self.peers[n];
                peer.state.set_read_only(on);
                peer.send();
            }
        }
    }

    pub(super) fn connect(&mut self, n: usize, keeps_state: bool) {
        self.act(&Action::Disconnect(n));
        self.sessions += 1;
        let peer = &mut self.peers[n];
        let read_only = peer.state.read_only;
        peer.state = if keeps_state {
            State::decode(&peer.state.encode()).expect("decodes")
        } else {
            State::new()
        };
        peer.state.read_only = read_only;
        let link = Link { session: self.sessions, ..Link::default() };
        self.arrived.push(Event::Join {
            id: SessionId(self.sessions),
            queue_full: link.queue_full.clone(),
            reads_only: false,
        });
        peer.link = Some(link);
        peer.send();
        self.act(&Action::ToRelay(n));
    }

    /// Removes the heads from the last message of a peer. automerge does so where it resumes taking
    /// changes from a peer that does not support resets.
    pub(super) fn clear_heads(&mut self, n: usize) {
        let link = self.peers[n].link.as_mut().expect("a link");
        let last = link.to_relay.back_mut().expect("a message");
        let mut message = Message::decode(last).expect("a message");
        message.heads.clear();
        *last = message.encode();
    }

    fn step(&mut self) {
        let arrived = std::mem::take(&mut self.arrived);
        for effect in self.core.step(arrived) {
            match effect {
                Effect::Send { to, message } => self.deliver(to, message.to_vec()),
                Effect::Save { key, data, replaces } => {
                    assert!(self.writing.is_none(), "one write at a time");
                    assert!(!replaces.contains(&key), "a chunk does not replace itself");
                    self.writing = Some(Writing { key, data: data.to_vec(), replaces });
                }
                Effect::AwaitRoom(_) | Effect::Applied { .. } => {}
                Effect::Refuse { why, .. } => panic!("{why:?}"),
                Effect::Unreadable { why, .. } => panic!("{why:?}"),
            }
        }
    }

    /// Delivers a message to a peer's connection. Checks that it does not announce a change of the
    /// peer's own as stored before that is durable.
    fn deliver(&mut self, to: SessionId, message: Vec<u8>) {
        let linked = |peer: &&mut Peer| peer.link.as_ref().is_some_and(|l| l.session == to.0);
        let Some(peer) = self.peers.iter_mut().find(linked) else { return };
        let is_full =
            peer.link.as_ref().is_some_and(|link| link.queue_full.load(Ordering::Relaxed));
        assert!(!is_full, "the send queue is full");
        let announced = peer.announced(&message);
        if !announced.is_empty() {
            let durable = load(&self.disk);
            for hash in announced {
                let is_durable = durable.get_change_meta_by_hash(&hash).is_some();
                assert!(is_durable, "announced as stored, and not durable: {hash}");
            }
        }
        if let Some(link) = &mut peer.link {
            link.to_peer.push_back(message);
        }
    }

    /// Deletes the replaced chunks. Nothing that was stored may be lost.
    fn delete(&mut self) {
        let before = load(&self.disk).get_heads();
        for key in std::mem::take(&mut self.to_delete) {
            self.disk.remove(&key);
        }
        assert_eq!(load(&self.disk).get_heads(), before);
    }

    /// Connects all peers, and delivers and writes everything until nothing is left to do.
    pub(super) fn settle(&mut self) {
        for n in 0..PEERS {
            self.peers[n].state.read_only = false;
            self.connect(n, false);
        }
        for _ in 0..500 {
            self.exchange();
            self.act(&Action::Written);
            self.act(&Action::Delete);
            if self.is_quiet() && self.writing.is_none() {
                return;
            }
        }
        panic!("the messages do not end");
    }

    /// Delivers everything until nothing is left to deliver, without writing anything.
    pub(super) fn settle_unwritten(&mut self) {
        for _ in 0..500 {
            self.exchange();
            if self.is_quiet() {
                return;
            }
        }
        panic!("the messages do not end");
    }

    /// Delivers one message in each direction of every connection, and processes them.
    fn exchange(&mut self) {
        for n in 0..PEERS {
            self.act(&Action::ToPeer(n));
            self.act(&Action::ToRelay(n));
        }
        self.act(&Action::Step);
    }

    fn is_quiet(&self) -> bool {
        let quiet = |link: &Link| link.to_relay.is_empty() && link.to_peer.is_empty();
        let mut links = self.peers.iter().filter_map(|peer| peer.link.as_ref());
        links.all(quiet) && self.arrived.is_empty()
    }
}
