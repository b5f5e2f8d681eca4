//! The same traffic through both engines, with sessions that leave, come back, are slow, and with
//! evictions: every peer ends with the same document, and so does storage. Outcomes are compared,
//! not messages.
//!
//! `TONK_RELAY_CASES=10000 cargo test --release differential` runs it long.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const PEERS: usize = 3;
const DOCUMENTS: u8 = 2;

#[derive(Clone, Debug)]
enum Action {
    Edit(usize, u8),
    /// Request a document, which perhaps nobody has yet.
    Request(usize, u8),
    /// Presence, in a document that the peer has.
    Say(usize, u8),
    /// Receive and answer what is queued.
    Hear(usize),
    /// Give the relay time.
    Pause,
    /// Leave and come back, with the sync states or without.
    Reconnect(usize, bool),
    /// Leave, with messages still unread on both sides. Edits go on offline.
    Leave(usize),
    /// Come back, if the peer has left.
    Return(usize),
    /// Memory is short: rooms without sessions unload at once.
    Evict,
}

fn action() -> impl Strategy<Value = Action> {
    let (peer, document) = (0..PEERS, 1..=DOCUMENTS);
    prop_oneof![
        4 => (peer.clone(), document.clone()).prop_map(|(p, d)| Action::Edit(p, d)),
        2 => (peer.clone(), document.clone()).prop_map(|(p, d)| Action::Request(p, d)),
        1 => (peer.clone(), document).prop_map(|(p, d)| Action::Say(p, d)),
        6 => peer.clone().prop_map(Action::Hear),
        4 => Just(Action::Pause),
        1 => (peer.clone(), any::<bool>())
            .prop_map(|(p, keeps_state)| Action::Reconnect(p, keeps_state)),
        1 => peer.clone().prop_map(Action::Leave),
        2 => peer.prop_map(Action::Return),
        1 => Just(Action::Evict),
    ]
}

impl Peer {
    /// Receives and answers what is queued.
    async fn hear(&mut self) {
        while let Some(next) = self.session.outbound.try_next() {
            self.take(next).await;
        }
    }

    /// Leaves, and comes back as `next` with the same documents.
    async fn reconnect(self, mut next: Self, keeps_state: bool) -> Self {
        let documents = self.documents.clone();
        self.leave();
        for (document, (doc, state)) in documents {
            let state = if keeps_state {
                State::decode(&state.encode()).expect("decodes")
            } else {
                State::new()
            };
            let request = doc.get_heads().is_empty();
            next.documents.insert(document, (doc, state));
            next.push(document, request).await;
        }
        next
    }

    fn keys(&self, document: DocumentId) -> BTreeSet<String> {
        self.documents.get(&document).map(|(doc, _)| doc.keys(ROOT).collect()).unwrap_or_default()
    }
}

/// The peers of one case. One may be slow, and some may be away.
struct Peers<'a> {
    fixture: &'a Fixture,
    /// This peer's queue is full after a message or two.
    slow: Option<usize>,
    peers: Vec<Peer>,
    is_away: [bool; PEERS],
}

/// Bytes of a slow peer's queue: a few messages.
const SLOW_QUEUE: u64 = 400;

impl<'a> Peers<'a> {
    fn new(fixture: &'a Fixture, slow: Option<usize>) -> Self {
        let mut peers = Self { fixture, slow, peers: Vec::new(), is_away: [false; PEERS] };
        peers.peers = (0..PEERS).map(|p| peers.new_peer(p)).collect();
        peers
    }

    fn new_peer(&self, p: usize) -> Peer {
        let name = format!("peer {p}");
        if self.slow == Some(p) {
            self.fixture.slow_peer(&name, SLOW_QUEUE)
        } else {
            self.fixture.peer(&name)
        }
    }

    async fn reconnect(&mut self, p: usize, keeps_state: bool) {
        let next = self.new_peer(p);
        let peer = self.peers.remove(p).reconnect(next, keeps_state).await;
        self.peers.insert(p, peer);
        self.is_away[p] = false;
    }

    async fn hear(&mut self, p: usize) {
        if self.is_away[p] {
            return;
        }
        self.peers[p].hear().await;
        if self.peers[p].closed.is_some() {
            assert_eq!(self.slow, Some(p), "{:?}", self.peers[p].closed);
            self.reconnect(p, false).await;
        }
    }

    /// Returns the key that was written, if the action is an edit.
    async fn act(&mut self, n: usize, action: &Action) -> Option<(u8, String)> {
        match *action {
            Action::Edit(p, d) => {
                // A key for each edit: what is in the end does not depend on who was first.
                let key = format!("{p} {n}");
                if self.is_away[p] {
                    self.peers[p].write(id(d), &key);
                } else {
                    self.peers[p].edit(id(d), &key).await;
                }
                return Some((d, key));
            }
            Action::Reconnect(p, keeps_state) => self.reconnect(p, keeps_state).await,
            Action::Return(p) if self.is_away[p] => self.reconnect(p, true).await,
            Action::Return(_) => {}
            Action::Leave(p) => {
                if !std::mem::replace(&mut self.is_away[p], true) {
                    self.peers[p].depart();
                }
            }
            Action::Evict => self.fixture.rooms.shared.evict_idle(),
            Action::Pause => tokio::time::sleep(Duration::from_millis(2)).await,
            Action::Hear(p) => self.hear(p).await,
            Action::Request(p, _) | Action::Say(p, _) if self.is_away[p] => {}
            Action::Request(p, d) => self.peers[p].push(id(d), true).await,
            Action::Say(p, d) if self.peers[p].keys(id(d)).is_empty() => {}
            Action::Say(p, d) => self.peers[p].say(id(d), n as u64, b"here").await,
        }
        None
    }

    /// Waits until every peer has all that was written of a document.
    async fn converge(&mut self, document: DocumentId, expected: &BTreeSet<String>) {
        for peer in &mut self.peers {
            peer.push(document, true).await;
        }
        let all = |peers: &[Peer]| peers.iter().all(|peer| peer.keys(document) == *expected);
        let converging = async {
            while !all(&self.peers) {
                for p in 0..PEERS {
                    self.hear(p).await;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let converged = tokio::time::timeout(Duration::from_secs(20), converging).await;
        let found: Vec<_> = self.peers.iter().map(|peer| peer.keys(document)).collect();
        assert!(
            converged.is_ok(),
            "{document} does not converge: {expected:?} were written, the peers have {found:?}"
        );
    }
}

/// Runs a case. Returns the keys of every document in the end.
async fn outcome(
    fixture: &Fixture,
    actions: &[Action],
    slow: Option<usize>,
) -> Vec<BTreeSet<String>> {
    let mut peers = Peers::new(fixture, slow);
    let mut expected = vec![BTreeSet::new(); usize::from(DOCUMENTS)];
    for (n, action) in actions.iter().enumerate() {
        if let Some((d, key)) = peers.act(n, action).await {
            expected[usize::from(d) - 1].insert(key);
        }
    }
    for p in 0..PEERS {
        if peers.is_away[p] {
            peers.reconnect(p, true).await;
        }
    }
    for (d, expected) in (1..=DOCUMENTS).zip(&expected) {
        if !expected.is_empty() {
            peers.converge(id(d), expected).await;
        }
    }
    peers.peers.into_iter().for_each(Peer::leave);
    until("all rooms are gone", || fixture.rooms.count() == (0, 0)).await;
    let mut stored = Vec::new();
    for d in 1..=DOCUMENTS {
        let mut opened = fixture.rooms.shared.documents.open(id(d)).await.expect("opens");
        stored.push(opened.doc.automerge().keys(ROOT).collect());
    }
    assert_eq!(stored, expected, "what is stored");
    stored
}

fn config_for_many() -> Config {
    let mut config = config();
    config.sync.forward_timeout = Time(Duration::from_millis(20));
    config
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn both_engines_end_with_the_same_documents(
        actions in proptest::collection::vec(action(), 1..60),
        slow in proptest::option::of(0..PEERS),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let [native, samod] = runtime.block_on(async {
            let [native, samod] = both(&config_for_many());
            // samod closes slow sessions: it cannot keep anything back.
            [outcome(&native, &actions, slow).await, outcome(&samod, &actions, None).await]
        });
        prop_assert_eq!(native, samod);
    }
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("TONK_RELAY_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = cases.unwrap_or(default);
    // A failure that shows as a timeout takes seconds to repeat.
    ProptestConfig { cases, max_shrink_time: 60_000, ..ProptestConfig::default() }
}
