//! The core under a scheduler that may do anything: peers edit, drop and come back, the disk is slow, the
//! process dies between any two steps. Every case is a list of actions; a failing one is shrunk and printed.
//!
//! `TONK_RELAY_CASES=100000 cargo test --release simulation` runs it long.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use automerge::{
    ActorId, Automerge, AutomergeError, ROOT,
    sync::{Message, State, SyncDoc},
    transaction::Transactable,
};
use proptest::prelude::*;

use super::{
    event::{Effect, Event},
    exchange,
    state::Core,
};
use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    config::{Config, Size},
    document::{
        chunk::Key,
        gate::{Document, Rules},
        size::MaxDocument,
        sync_message::SyncMessage,
    },
};

const PEERS: usize = 4;
/// Rounds of what only shows when a Bloom filter hides a change: one in a hundred.
const ROUNDS: u64 = 6;
const DOCUMENT: DocumentId = DocumentId::from_bytes([7; 16]);

#[derive(Clone, Debug)]
enum Action {
    /// A peer edits and says so.
    Edit(usize),
    /// The relay hears the next message of a peer.
    Hear(usize),
    /// A peer hears the next message of the relay.
    Tell(usize),
    /// The core takes in what was heard.
    Step,
    /// The write under way becomes durable.
    Written,
    /// Chunks that were replaced are deleted.
    Delete,
    /// Nothing came for a while.
    Rest,
    /// A peer reads too slowly: there is no room for messages to it, or again there is.
    Full(usize, bool),
    /// The process dies, with the write under way done or not, and starts again.
    Crash {
        written: bool,
    },
    Drop(usize),
    /// A peer connects, and what it last knew of the relay is kept, as automerge-repo's storage does, or not.
    Connect {
        peer: usize,
        keeps_state: bool,
    },
    /// A peer takes no changes any more, and later takes them again.
    ReadOnly(usize, bool),
}

fn action() -> impl Strategy<Value = Action> {
    let peer = 0..PEERS;
    prop_oneof![
        4 => peer.clone().prop_map(Action::Edit),
        8 => peer.clone().prop_map(Action::Hear),
        8 => peer.clone().prop_map(Action::Tell),
        8 => Just(Action::Step),
        4 => Just(Action::Written),
        2 => Just(Action::Delete),
        1 => Just(Action::Rest),
        1 => any::<bool>().prop_map(|written| Action::Crash { written }),
        1 => peer.clone().prop_map(Action::Drop),
        2 => (peer.clone(), any::<bool>())
            .prop_map(|(peer, keeps_state)| Action::Connect { peer, keeps_state }),
        1 => (peer.clone(), any::<bool>()).prop_map(|(peer, on)| Action::ReadOnly(peer, on)),
        2 => (peer, any::<bool>()).prop_map(|(peer, on)| Action::Full(peer, on)),
    ]
}

struct Peer {
    doc: Automerge,
    actor: ActorId,
    state: State,
    link: Option<Link>,
}

/// A connection; it keeps the order of messages.
#[derive(Default)]
struct Link {
    session: u64,
    full: Arc<AtomicBool>,
    to_relay: VecDeque<Vec<u8>>,
    to_peer: VecDeque<Vec<u8>>,
}

impl Peer {
    fn new(n: usize) -> Self {
        let actor = ActorId::from([n as u8 + 1; 16]);
        let mut doc = Automerge::new();
        doc.set_actor(actor.clone());
        Self { doc, actor, state: State::new(), link: None }
    }

    fn say(&mut self) {
        let Some(link) = &mut self.link else { return };
        if let Some(message) = self.doc.generate_sync_message(&mut self.state) {
            link.to_relay.push_back(message.encode());
        }
    }

    fn hear(&mut self) {
        let Some(message) = self.link.as_mut().and_then(|link| link.to_peer.pop_front()) else {
            return;
        };
        let message = Message::decode(&message).expect("a message");
        self.doc.receive_sync_message(&mut self.state, message).expect("fits");
        self.say();
    }
}

struct World {
    core: Core,
    heard: Vec<Event>,
    peers: Vec<Peer>,
    sessions: u64,
    disk: BTreeMap<Key, Vec<u8>>,
    writing: Option<(Key, Vec<u8>)>,
    to_delete: Vec<Key>,
    edits: u64,
}

fn load(disk: &BTreeMap<Key, Vec<u8>>) -> Automerge {
    let bytes: Vec<u8> = disk.values().flatten().copied().collect();
    let mut doc = Automerge::load(&bytes).expect("what is stored parses and fits together");
    doc.set_actor(ActorId::from([0xff; 16]));
    doc
}

fn core(disk: &BTreeMap<Key, Vec<u8>>) -> Core {
    let bytes: Vec<u8> = disk.values().flatten().copied().collect();
    let doc = Document::read(&bytes, Rules::Stored).expect("what is stored is admitted");
    let stored = disk.iter().map(|(key, data)| (key.clone(), data.len()));
    Core::new(DOCUMENT, doc, MaxDocument::of(&Config::default()), 0, stored)
}

impl World {
    fn new() -> Self {
        let disk = BTreeMap::new();
        Self {
            core: core(&disk),
            heard: Vec::new(),
            peers: (0..PEERS).map(Peer::new).collect(),
            sessions: 0,
            disk,
            writing: None,
            to_delete: Vec::new(),
            edits: 0,
        }
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Edit(n) => {
                self.edits += 1;
                let (edits, peer) = (self.edits, &mut self.peers[n]);
                // Long enough that compaction is due now and then.
                let text = format!("{edits}").repeat(200);
                peer.doc
                    .transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, format!("k{n}"), text))
                    .expect("an edit");
                peer.say();
            }
            Action::Hear(n) => {
                let Some(link) = &mut self.peers[n].link else { return };
                if let Some(message) = link.to_relay.pop_front() {
                    let message =
                        SyncMessage::read(message.into(), Size::mib(256)).expect("a message");
                    let from = SessionId(link.session);
                    self.heard.push(Event::Message { from, message, ticket: None });
                }
            }
            Action::Tell(n) => self.peers[n].hear(),
            Action::Step => self.step(),
            Action::Written => {
                if let Some((key, data)) = self.writing.take() {
                    self.disk.insert(key, data);
                    self.heard.push(Event::Saved);
                }
            }
            Action::Delete => self.delete(),
            Action::Rest => self.core.rest(),
            Action::Full(n, on) => {
                if let Some(link) = &self.peers[n].link {
                    link.full.store(on, Ordering::Relaxed);
                    // Also when there is none: another session of the room may have been told.
                    self.heard.push(Event::Resume);
                }
            }
            Action::Crash { written } => {
                if let Some((key, data)) = self.writing.take().filter(|_| written) {
                    self.disk.insert(key, data);
                }
                self.to_delete.clear();
                self.heard.clear();
                self.core = core(&self.disk);
                (0..PEERS).for_each(|n| self.peers[n].link = None);
            }
            Action::Drop(n) => {
                if let Some(link) = self.peers[n].link.take() {
                    self.heard.push(Event::Leave(SessionId(link.session)));
                }
            }
            Action::Connect { peer: n, keeps_state } => self.connect(n, keeps_state),
            Action::ReadOnly(n, on) => {
                let peer = &mut self.peers[n];
                peer.state.set_read_only(on);
                peer.say();
            }
        }
    }

    fn connect(&mut self, n: usize, keeps_state: bool) {
        self.act(&Action::Drop(n));
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
        self.heard.push(Event::Join {
            id: SessionId(self.sessions),
            full: link.full.clone(),
            reads_only: false,
        });
        peer.link = Some(link);
        peer.say();
        self.act(&Action::Hear(n));
    }

    fn step(&mut self) {
        let heard = std::mem::take(&mut self.heard);
        for effect in self.core.step(heard) {
            match effect {
                Effect::Send { to, message } => self.send(to, message.to_vec()),
                Effect::Save { key, data } => {
                    assert!(self.writing.is_none(), "one write at a time");
                    self.writing = Some((key, data.to_vec()));
                }
                Effect::KeepBack { .. } | Effect::Applied { .. } => {}
                Effect::Remove(keys) => self.to_delete.extend(keys),
                Effect::Refuse { why, .. } => panic!("{why:?}"),
            }
        }
    }

    /// A peer hears nothing of a change of its own as ours unless that is durable.
    fn send(&mut self, to: SessionId, message: Vec<u8>) {
        let linked = |peer: &&mut Peer| peer.link.as_ref().is_some_and(|l| l.session == to.0);
        let Some(peer) = self.peers.iter_mut().find(linked) else { return };
        let is_full = peer.link.as_ref().is_some_and(|link| link.full.load(Ordering::Relaxed));
        assert!(!is_full, "there is no room for it");
        let heads = Message::decode(&message).expect("a message").heads;
        let known: Vec<_> = heads
            .into_iter()
            .filter(|head| peer.doc.get_change_meta_by_hash(head).is_some())
            .collect();
        if !known.is_empty() {
            let durable = load(&self.disk);
            let untold: Vec<_> =
                peer.doc.get_changes_meta(&known).iter().map(|change| change.hash).collect();
            for change in peer.doc.get_changes_meta(&[]) {
                let is_told = *change.actor == peer.actor && !untold.contains(&change.hash);
                assert!(
                    !is_told || durable.get_change_meta_by_hash(&change.hash).is_some(),
                    "told as saved, and not durable: {}",
                    change.hash
                );
            }
        }
        if let Some(link) = &mut peer.link {
            link.to_peer.push_back(message);
        }
    }

    /// Whatever is deleted, what was stored stays readable.
    fn delete(&mut self) {
        let before = load(&self.disk).get_heads();
        for key in std::mem::take(&mut self.to_delete) {
            self.disk.remove(&key);
        }
        assert_eq!(load(&self.disk).get_heads(), before);
    }

    /// No more faults: everything that was said arrives.
    fn settle(&mut self) {
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
        panic!("it does not come to rest");
    }

    /// Everything that was said arrives, and nothing is written.
    fn settle_unwritten(&mut self) {
        for _ in 0..500 {
            self.exchange();
            if self.is_quiet() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn exchange(&mut self) {
        for n in 0..PEERS {
            self.act(&Action::Tell(n));
            self.act(&Action::Hear(n));
        }
        self.act(&Action::Step);
    }

    fn is_quiet(&self) -> bool {
        let quiet = |link: &Link| link.to_relay.is_empty() && link.to_peer.is_empty();
        let mut links = self.peers.iter().filter_map(|peer| peer.link.as_ref());
        links.all(quiet) && self.heard.is_empty()
    }
}

/// automerge answers a peer that remembers what we do not have with the same message however often it is asked:
/// it must be asked once.
#[test]
fn a_peer_that_remembers_more_than_the_relay_is_answered_once_a_message() {
    let mut world = World::new();
    world.connect(0, false);
    world.act(&Action::Edit(0));
    world.act(&Action::Hear(0));
    for action in [Action::Step, Action::Tell(0), Action::Hear(0), Action::Step] {
        world.act(&action);
    }
    // All is lost before it was durable; the peer thinks that both have it.
    world.peers[0].state.shared_heads = world.peers[0].doc.get_heads();
    world.act(&Action::Crash { written: false });
    world.connect(0, true);
    world.act(&Action::Step);
    assert_eq!(world.peers[0].link.as_ref().expect("a link").to_peer.len(), 1);
    world.settle();
    assert_eq!(load(&world.disk).get_heads(), world.peers[0].doc.get_heads());
}

/// What a peer said that it has may come from somebody else: also then it is not told as saved before it is.
#[test]
fn what_a_peer_claimed_and_another_brought_is_told_when_it_is_durable() {
    let mut world = World::new();
    world.act(&Action::Edit(0));
    let written = world.peers[0].doc.clone();
    world.peers[1].doc.merge(&mut written.clone()).expect("merges");
    for n in [0, 1] {
        world.connect(n, false);
        world.act(&Action::Step);
    }
    // Sending to the first what it must not hear yet is asserted against in the world.
    for action in [Action::Tell(1), Action::Hear(1), Action::Step] {
        world.act(&action);
    }
    assert!(world.writing.is_some(), "the second has brought it");
    world.settle();
    assert_eq!(load(&world.disk).get_heads(), written.get_heads());
}

/// The author of a document that came as a whole connects again before that is durable, and names
/// its heads.
#[test]
fn a_whole_document_is_told_as_saved_when_it_is_durable() {
    let mut world = World::new();
    for _ in 0..5 {
        world.act(&Action::Edit(0));
    }
    world.connect(0, false);
    world.settle_unwritten();
    assert!(world.writing.is_some(), "it is here");
    // Sending it what it must not hear yet is asserted against in the world.
    world.connect(0, false);
    world.settle_unwritten();
    assert!(!world.core.is_durable());
    world.settle();
    assert_eq!(load(&world.disk).get_heads(), world.peers[0].doc.get_heads());
}

/// A disk that takes nothing is an ordinary state: whoever writes meanwhile, and however late a reader acknowledges,
/// everybody has all edits before anything is durable. In some of the rounds a Bloom filter hides a change.
#[test]
fn edits_reach_everybody_while_writes_fail_for_thirty_edits() {
    let (writer, other, reader) = (0, 1, 2);
    for round in 0..ROUNDS {
        let mut world = World::new();
        world.edits = round * 1_000;
        for n in [writer, other, reader] {
            world.connect(n, false);
        }
        world.act(&Action::Edit(writer));
        world.settle_unwritten();
        world.act(&Action::Written);
        world.settle_unwritten();
        for edit in 0..30 {
            let editor = if edit % 7 == 3 { other } else { writer };
            world.act(&Action::Edit(editor));
            world.act(&Action::Hear(editor));
            world.act(&Action::Step);
            for n in [writer, other, reader] {
                world.act(&Action::Tell(n));
            }
            if edit % 4 == 1 {
                // One of those that wait: the others stay late.
                world.act(&Action::Hear(reader));
            }
        }
        assert!(world.writing.is_some(), "nothing was written meanwhile");
        world.settle_unwritten();
        let heads = world.peers[writer].doc.get_heads();
        for n in [other, reader] {
            assert_eq!(world.peers[n].doc.get_heads(), heads, "peer {n} in round {round}");
        }
        assert!(world.writing.is_some() && !world.core.is_durable());
        world.settle();
        assert_eq!(load(&world.disk).get_heads(), heads);
    }
}

/// A reader in a crowd costs one look at what was worked out for the first of them.
#[test]
fn peers_in_equal_states_share_one() {
    let mut world = World::new();
    world.act(&Action::Edit(0));
    for n in 0..PEERS {
        world.connect(n, false);
    }
    for _ in 0..10 {
        for n in 0..PEERS {
            world.act(&Action::Tell(n));
            world.act(&Action::Hear(n));
        }
        world.act(&Action::Step);
        world.act(&Action::Written);
    }
    assert_eq!(world.core.distinct_states(), 2, "the writer's, and that of all readers");
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("TONK_RELAY_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(default), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn all_converge_and_what_was_told_as_saved_is_durable(
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let mut world = World::new();
        for n in 0..PEERS {
            world.connect(n, false);
        }
        for action in &actions {
            world.act(action);
        }
        world.settle();
        let heads = world.peers[0].doc.get_heads();
        for peer in &world.peers {
            prop_assert_eq!(&peer.doc.get_heads(), &heads);
        }
        prop_assert!(world.core.is_durable());
        prop_assert_eq!(world.core.durable(), heads.as_slice());
        prop_assert_eq!(load(&world.disk).get_heads(), heads);
    }

    /// Our `receive` against automerge's own, message by message.
    #[test]
    fn messages_do_to_a_state_what_automerge_does(
        actions in proptest::collection::vec((any::<bool>(), 0..4u8), 1..60),
    ) {
        let (mut theirs, mut ours) = (Peer::new(0), Automerge::new());
        ours.set_actor(ActorId::from([9; 16]));
        let mut state = State::new();
        for (n, (is_theirs, what)) in actions.into_iter().enumerate() {
            let edited = if is_theirs { &mut theirs.doc } else { &mut ours };
            if what != 0 {
                edited
                    .transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, format!("{what}"), n as u64))
                    .expect("an edit");
            }
            if let Some(message) = theirs.doc.generate_sync_message(&mut theirs.state) {
                let (mut expected_doc, mut expected) = (ours.clone(), state.clone());
                expected_doc.receive_sync_message(&mut expected, message.clone()).expect("fits");
                let before = ours.get_heads();
                let chunks: Vec<u8> = message.changes.iter().flatten().copied().collect();
                ours.load_incremental(&chunks).expect("fits");
                exchange::receive(&ours, &before, &mut state, message);
                prop_assert_eq!(&state, &expected);
                prop_assert_eq!(ours.get_heads(), expected_doc.get_heads());
            }
            // Now and then a message of ours is lost, and what was sent stays unseen.
            if let Some(message) = ours.generate_sync_message(&mut state)
                && what != 3
            {
                theirs.doc.receive_sync_message(&mut theirs.state, message).expect("fits");
            }
        }
    }
}
