//! Peers, relays that share a database, and what may happen to them.

use std::sync::atomic::Ordering;

use automerge::{ActorId, Automerge, AutomergeError, ROOT, sync::State, transaction::Transactable};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::database::{Database, Writing};
use crate::{
    base::{hex::hex, session_id::SessionId},
    config::{Config, Size},
    document::{
        chunk::{ChunkKind, Key},
        core::{
            event::{Effect, Event, StoredByAnother},
            simulation::world::{DOCUMENT, Link, Peer},
            state::Core,
        },
        gate::{Document, Rules},
        size::MaxDocument,
        sync_message::SyncMessage,
        unpacked::Unpacked,
    },
};

pub(super) const RELAYS: usize = 3;
pub(super) const PEERS: usize = 5;

#[derive(Clone, Debug)]
pub(super) enum Action {
    /// A peer edits, and sends what it has to say.
    Edit(usize),
    /// The next message of a peer arrives at its relay.
    ToRelay(usize),
    /// The next message of a relay arrives at a peer.
    ToPeer(usize),
    /// The core of a relay processes everything that has arrived.
    Step(usize),
    /// The database carries out the write of a relay. Without an answer the relay repeats it.
    Commit { relay: usize, is_answered: bool },
    /// The database carries out a write of a relay that has crashed since.
    Late(usize),
    /// A relay reads what others have stored. Some of it may have been read before.
    Look { relay: usize, again: u8 },
    /// A relay that has noticed a loss reads what there is.
    Read(usize),
    /// A relay reads what it does not have, as after it has missed rows.
    ReadUnknown(usize),
    /// The room is idle.
    Idle(usize),
    /// A peer's send queue becomes full, or has room again.
    Full(usize, bool),
    /// A relay crashes, and starts again.
    Crash(usize),
    /// A room that nobody is in unloads the document, and loads it again.
    Reopen(usize),
    /// The database loses its last commits.
    Lose(usize),
    /// A peer's connection breaks.
    Disconnect(usize),
    /// A peer connects. It keeps what it last knew, or it does not.
    Connect { peer: usize, relay: usize, keeps_state: bool },
}

/// A fault of what is around the cores. The checks must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A write is confirmed before it is made, and never made.
    ConfirmedTooEarly,
    /// A relay does not read what was committed while it looked.
    MissedRows,
    /// A relay is not told that the database has lost commits.
    LossNotNoticed,
    /// A write that builds on lost commits is confirmed.
    LossNotNoticedByWrites,
    /// A snapshot replaces chunks that it does not contain.
    ReplacesUnread,
    /// A snapshot is not stored, because another relay had stored one under the same key.
    TakenForOwn,
}

pub(super) struct Relay {
    pub(super) core: Core,
    /// What has arrived since the last step.
    arrived: Vec<Event>,
    pub(super) writing: Option<Writing>,
    /// The last commit that it has read.
    seen: u64,
    /// How many losses it has noticed.
    losses: usize,
    /// It has noticed one, and has not read what there is.
    is_reading: bool,
}

/// All peers, the relays, and their database.
pub(super) struct World {
    pub(super) relays: Vec<Relay>,
    pub(super) peers: Vec<Peer>,
    /// The relay of each peer.
    relay_of: Vec<usize>,
    pub(super) database: Database,
    /// The writes of relays that have crashed.
    late: Vec<Writing>,
    /// The served bundle's document of each relay.
    bases: Vec<Vec<u8>>,
    sessions: u64,
    pub(super) edits: u64,
    pub(super) fault: Option<Fault>,
}

/// A document of a bundle. A later bundle has more changes.
fn base(changes: usize) -> Vec<u8> {
    let mut doc = Automerge::new();
    doc.set_actor(ActorId::from([0xee; 16]));
    for n in 0..changes {
        doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, "base", n as u64)).expect("an edit");
    }
    doc.save()
}

fn open(database: &Database, base: &[u8]) -> Relay {
    let bytes: Vec<u8> = database.rows.values().flat_map(|row| row.data.to_vec()).collect();
    let mut doc = Document::read(&bytes, Rules::Stored).expect("what is stored is admitted");
    let durable = doc.heads().to_vec();
    doc.admit(base, Rules::Admission).expect("the base is admitted");
    let stored = database.rows.iter().map(|(key, row)| (key.clone(), row.data.len()));
    let max = MaxDocument::of(&Config::default());
    Relay {
        core: Core::new(DOCUMENT, doc, max, 0, (stored.collect(), 0), &durable),
        arrived: Vec::new(),
        writing: None,
        seen: database.commits,
        losses: database.lost.len(),
        is_reading: false,
    }
}

impl World {
    /// Creates the relays. `bases` says how many changes of the document each one's bundle has.
    pub(super) fn new(bases: [usize; RELAYS]) -> Self {
        let database = Database::default();
        let bases: Vec<_> = bases.into_iter().map(base).collect();
        Self {
            relays: bases.iter().map(|base| open(&database, base)).collect(),
            peers: (0..PEERS).map(Peer::new).collect(),
            relay_of: vec![0; PEERS],
            database,
            late: Vec::new(),
            bases,
            sessions: 0,
            edits: 0,
            fault: None,
        }
    }

    pub(super) fn act(&mut self, action: &Action) {
        match *action {
            Action::Edit(n) => {
                self.edits += 1;
                let length = if self.edits.is_multiple_of(3) { 900 } else { 20 };
                self.peers[n].edit(&format!("k{n}"), &format!("{}", self.edits).repeat(length));
            }
            Action::ToRelay(n) => {
                let Some(link) = &mut self.peers[n].link else { return };
                let (from, next) = (SessionId(link.session), link.to_relay.pop_front());
                let Some(message) = next else { return };
                let message = SyncMessage::read(message.into(), Size::mib(256)).expect("a message");
                let event = Event::Message { from, message, ticket: None };
                self.relays[self.relay_of[n]].arrived.push(event);
            }
            Action::ToPeer(n) => self.peers[n].receive(),
            Action::Step(n) => self.step(n),
            Action::Commit { relay, is_answered } => self.commit(relay, is_answered),
            Action::Late(n) if n < self.late.len() => {
                let write = self.late.remove(n);
                let _was_there = self.database.commit(&write);
            }
            Action::Late(_) => {}
            Action::Look { relay, again } => self.look(relay, again),
            Action::Read(n) => self.read(n),
            Action::ReadUnknown(n) => self.read_unknown(n),
            Action::Idle(n) => self.relays[n].core.release_memory(),
            Action::Full(n, on) => {
                if let Some(link) = &self.peers[n].link {
                    link.queue_full.store(on, Ordering::Relaxed);
                    self.relays[self.relay_of[n]].arrived.push(Event::Resume);
                }
            }
            Action::Crash(n) => {
                self.late.extend(self.relays[n].writing.take());
                self.late.retain(|write| write.losses == self.database.lost.len());
                self.relays[n] = open(&self.database, &self.bases[n]);
                for (peer, relay) in self.peers.iter_mut().zip(&self.relay_of) {
                    peer.link = peer.link.take().filter(|_| *relay != n);
                }
            }
            Action::Reopen(n) => {
                let mut links = self.peers.iter().zip(&self.relay_of);
                let is_used = links.any(|(peer, relay)| *relay == n && peer.link.is_some());
                let relay = &self.relays[n];
                if !is_used && relay.core.is_durable() && relay.arrived.is_empty() {
                    self.relays[n] = open(&self.database, &self.bases[n]);
                }
            }
            Action::Lose(commits) => {
                self.database.lose(commits);
                self.late.clear();
            }
            Action::Disconnect(n) => {
                if let Some(link) = self.peers[n].link.take() {
                    let left = Event::Leave(SessionId(link.session));
                    self.relays[self.relay_of[n]].arrived.push(left);
                }
            }
            Action::Connect { peer, relay, keeps_state } => self.connect(peer, relay, keeps_state),
        }
    }

    fn commit(&mut self, n: usize, is_answered: bool) {
        let losses = self.database.lost.len();
        let Some(write) = &self.relays[n].writing else { return };
        let is_refused = write.losses != losses;
        if is_refused && self.fault != Some(Fault::LossNotNoticedByWrites) {
            // It builds on what the database may have lost.
            self.relays[n].writing = None;
            self.notice_loss(n);
            return;
        }
        let mut stored_as = None;
        if self.fault != Some(Fault::ConfirmedTooEarly) {
            // An increment is the same if its key is.
            let was_there = self.database.commit(write) && write.key.is_snapshot();
            if was_there && self.fault != Some(Fault::TakenForOwn) {
                let key = Key::Chunk {
                    document: DOCUMENT,
                    kind: ChunkKind::Snapshot,
                    name: hex(&Sha256::digest(&write.data)),
                };
                let (data, replaces) = (write.data.clone(), write.replaces.clone());
                let write = Writing { key: key.clone(), data, replaces, losses: write.losses };
                let _was_there = self.database.commit(&write);
                stored_as = Some(key);
            }
        }
        if is_answered {
            let relay = &mut self.relays[n];
            relay.writing = None;
            relay.arrived.push(stored_as.map_or(Event::Saved, Event::SavedAs));
        }
    }

    /// A relay reads the chunks that its core does not have.
    fn read_unknown(&mut self, n: usize) {
        let relay = &self.relays[n];
        if relay.is_reading || relay.losses != self.database.lost.len() {
            return;
        }
        let known = relay.core.stored_keys();
        let rows = &self.database.rows;
        let unknown = rows.iter().filter(|(key, _)| !known.contains(key));
        let chunks = unknown.map(|(key, row)| (key.clone(), row.data.to_vec())).collect();
        let gone = known.iter().filter(|key| !rows.contains_key(key)).cloned().collect();
        let stored = StoredByAnother { chunks, unpacked: Unpacked::default() };
        let relay = &mut self.relays[n];
        relay.arrived.extend([Event::Stored(stored), Event::Gone(gone)]);
    }

    fn look(&mut self, n: usize, again: u8) {
        let (losses, commits) = (self.database.lost.len(), self.database.commits);
        let relay = &self.relays[n];
        // A write under way is refused, which tells the relay the same.
        if relay.losses != losses && self.fault != Some(Fault::LossNotNoticed) {
            if relay.writing.is_none() {
                self.notice_loss(n);
            }
            return;
        }
        if relay.is_reading {
            return;
        }
        let seen = relay.seen.saturating_sub(u64::from(again));
        let mut chunks = Vec::new();
        for (key, row) in self.database.rows.iter().filter(|(_, row)| row.commit > seen) {
            chunks.push((key.clone(), row.data.to_vec()));
        }
        if self.fault == Some(Fault::MissedRows) && chunks.len() > 1 {
            chunks.pop();
        }
        let relay = &mut self.relays[n];
        relay.seen = commits;
        if !chunks.is_empty() {
            let stored = StoredByAnother { chunks, unpacked: Unpacked::default() };
            relay.arrived.push(Event::Stored(stored));
        }
    }

    /// A relay notices that the database has lost commits.
    fn notice_loss(&mut self, n: usize) {
        let relay = &mut self.relays[n];
        (relay.losses, relay.is_reading) = (self.database.lost.len(), true);
        relay.arrived.push(Event::Lost);
        self.step(n);
    }

    fn read(&mut self, n: usize) {
        let remains = self.database.remains();
        let relay = &mut self.relays[n];
        if relay.is_reading {
            (relay.losses, relay.is_reading, relay.seen) = (self.database.lost.len(), false, 0);
            relay.arrived.push(Event::Restored(remains));
            self.step(n);
        }
    }

    pub(super) fn connect(&mut self, n: usize, relay: usize, keeps_state: bool) {
        self.act(&Action::Disconnect(n));
        self.sessions += 1;
        let peer = &mut self.peers[n];
        peer.state = if keeps_state {
            State::decode(&peer.state.encode()).expect("decodes")
        } else {
            State::new()
        };
        let link = Link { session: self.sessions, ..Link::default() };
        self.relays[relay].arrived.push(Event::Join {
            id: SessionId(self.sessions),
            queue_full: link.queue_full.clone(),
            reads_only: false,
        });
        (peer.link, self.relay_of[n]) = (Some(link), relay);
        peer.send();
        self.act(&Action::ToRelay(n));
    }

    fn step(&mut self, n: usize) {
        let arrived = std::mem::take(&mut self.relays[n].arrived);
        let relay = &mut self.relays[n];
        let _ = relay.core.estimate(&arrived);
        for effect in self.relays[n].core.step(arrived) {
            match effect {
                Effect::Send { to, message } => self.deliver(n, to, message.to_vec()),
                Effect::Save { key, data, mut replaces } => {
                    let relay = &mut self.relays[n];
                    assert!(relay.writing.is_none(), "one write at a time");
                    if self.fault == Some(Fault::ReplacesUnread) && !replaces.is_empty() {
                        replaces = self.database.rows.keys().cloned().collect();
                        replaces.retain(|replaced| *replaced != key);
                    }
                    relay.writing = Some(Writing { key, data, replaces, losses: relay.losses });
                }
                Effect::AwaitRoom(_) | Effect::Applied { .. } => {}
                Effect::Refuse { why, .. } => panic!("{why:?}"),
                Effect::Unreadable { why, .. } => panic!("{why:?}"),
            }
        }
        assert!(!self.relays[n].core.is_damaged());
    }

    /// Delivers a message to a peer's connection. Checks that it does not announce a change of the
    /// peer's own that the shared store lacks, as far as the relay can know.
    fn deliver(&mut self, relay: usize, to: SessionId, message: Vec<u8>) {
        let linked = |peer: &&mut Peer| peer.link.as_ref().is_some_and(|l| l.session == to.0);
        let Some(peer) = self.peers.iter_mut().find(linked) else { return };
        let announced = peer.announced(&message);
        if !announced.is_empty() {
            let durable = self.database.changes_after(self.relays[relay].losses);
            for hash in announced {
                assert!(durable.contains(&hash), "announced as stored, and not durable: {hash}");
            }
        }
        if let Some(link) = &mut peer.link {
            link.to_peer.push_back(message);
        }
    }

    /// Has every peer edit, and delivers, writes and reads everything until nothing is left to do.
    /// Peers that are connected stay so: they must be told that all is saved without coming again.
    pub(super) fn settle(&mut self) {
        for n in 0..PEERS {
            if self.peers[n].link.is_none() {
                self.connect(n, n % RELAYS, false);
            }
            self.act(&Action::Full(n, false));
            self.act(&Action::Edit(n));
        }
        for _ in 0..800 {
            for n in 0..PEERS {
                self.act(&Action::ToPeer(n));
                self.act(&Action::ToRelay(n));
            }
            for relay in 0..RELAYS {
                self.act(&Action::Step(relay));
                self.act(&Action::Commit { relay, is_answered: true });
                self.act(&Action::Look { relay, again: 0 });
                self.act(&Action::Read(relay));
            }
            if self.is_quiet() {
                return;
            }
        }
        panic!("the messages do not end");
    }

    fn is_quiet(&self) -> bool {
        let quiet = |link: &Link| link.to_relay.is_empty() && link.to_peer.is_empty();
        let mut links = self.peers.iter().filter_map(|peer| peer.link.as_ref());
        let commits = self.database.commits;
        let is_idle = |relay: &Relay| {
            let has_read = relay.seen == commits && !relay.is_reading;
            relay.arrived.is_empty() && relay.writing.is_none() && has_read
        };
        links.all(quiet) && self.relays.iter().all(is_idle)
    }

    /// Checks that everybody has everything, and was told that it is stored.
    pub(super) fn check(&mut self) -> Result<(), TestCaseError> {
        let heads = self.peers[0].doc.get_heads();
        for peer in &self.peers {
            prop_assert_eq!(&peer.doc.get_heads(), &heads);
            prop_assert_eq!(peer.state.their_heads.as_ref(), Some(&heads), "not told");
        }
        for relay in &self.relays {
            prop_assert!(relay.core.is_durable());
            prop_assert_eq!(relay.core.heads(), heads.as_slice());
            prop_assert_eq!(relay.core.durable_heads(), heads.as_slice());
        }
        prop_assert_eq!(self.database.doc().get_heads(), heads);
        // What a crashed relay had sent may still be carried out, and deletes nothing.
        let all = self.database.changes();
        for late in std::mem::take(&mut self.late) {
            let _was_there = self.database.commit(&late);
        }
        prop_assert_eq!(self.database.changes(), all);
        Ok(())
    }
}
