//! The same traffic through both engines: every peer ends with the same document, and so does storage.
//! Outcomes are compared, not messages.
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
    /// Ask for a document, which nobody may have yet.
    Request(usize, u8),
    /// Presence, in a document that the peer has.
    Say(usize, u8),
    /// Hear and answer what has come.
    Hear(usize),
    /// Let the relay work.
    Pause,
    /// Leave and come again, with what was known of the relay or without.
    Reconnect(usize, bool),
}

fn action() -> impl Strategy<Value = Action> {
    let (peer, document) = (0..PEERS, 1..=DOCUMENTS);
    prop_oneof![
        4 => (peer.clone(), document.clone()).prop_map(|(p, d)| Action::Edit(p, d)),
        2 => (peer.clone(), document.clone()).prop_map(|(p, d)| Action::Request(p, d)),
        1 => (peer.clone(), document).prop_map(|(p, d)| Action::Say(p, d)),
        6 => peer.clone().prop_map(Action::Hear),
        4 => Just(Action::Pause),
        1 => (peer, any::<bool>()).prop_map(|(p, keeps_state)| Action::Reconnect(p, keeps_state)),
    ]
}

impl Peer {
    /// Hear and answer what has come.
    async fn hear(&mut self) {
        while let Some(next) = self.session.outbound().try_next() {
            self.take(next).await;
        }
    }

    /// Leave, and come again with the same documents.
    async fn reconnect(self, fixture: &Fixture, name: &str, keeps_state: bool) -> Self {
        let mut anew = fixture.peer(name);
        let documents = self.documents.clone();
        self.leave();
        for (document, (doc, state)) in documents {
            let state = if keeps_state {
                State::decode(&state.encode()).expect("decodes")
            } else {
                State::new()
            };
            let request = doc.get_heads().is_empty();
            anew.documents.insert(document, (doc, state));
            anew.push(document, request).await;
        }
        anew
    }

    fn keys(&self, document: DocumentId) -> BTreeSet<String> {
        self.documents.get(&document).map(|(doc, _)| doc.keys(ROOT).collect()).unwrap_or_default()
    }
}

/// What every document holds in the end.
async fn outcome(fixture: &Fixture, actions: &[Action]) -> Vec<BTreeSet<String>> {
    let mut peers: Vec<Peer> = (0..PEERS).map(|n| fixture.peer(&format!("peer {n}"))).collect();
    let mut expected = vec![BTreeSet::new(); usize::from(DOCUMENTS)];
    for (n, action) in actions.iter().enumerate() {
        match *action {
            Action::Edit(p, d) => {
                // A key for each edit: what is in the end does not depend on who was first.
                let key = format!("{p} {n}");
                peers[p].edit(id(d), &key).await;
                expected[usize::from(d) - 1].insert(key);
            }
            Action::Request(p, d) => peers[p].push(id(d), true).await,
            Action::Say(p, d) if peers[p].keys(id(d)).is_empty() => {}
            Action::Say(p, d) => peers[p].say(id(d), n as u64, b"here").await,
            Action::Hear(p) => peers[p].hear().await,
            Action::Pause => tokio::time::sleep(Duration::from_millis(2)).await,
            Action::Reconnect(p, keeps_state) => {
                let peer = peers.remove(p);
                let peer = peer.reconnect(fixture, &format!("peer {p}"), keeps_state).await;
                peers.insert(p, peer);
            }
        }
    }
    for (d, expected) in (1..=DOCUMENTS).zip(&expected) {
        if expected.is_empty() {
            continue;
        }
        for peer in &mut peers {
            peer.push(id(d), true).await;
        }
        let all = |peers: &[Peer]| peers.iter().all(|peer| peer.keys(id(d)) == *expected);
        let converging = async {
            while !all(&peers) {
                for peer in &mut peers {
                    peer.hear().await;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let converged = tokio::time::timeout(Duration::from_secs(20), converging).await;
        let found: Vec<_> = peers.iter().map(|peer| peer.keys(id(d))).collect();
        assert!(
            converged.is_ok(),
            "document {d} does not converge: {expected:?} were written, the peers have {found:?}"
        );
    }
    peers.into_iter().for_each(Peer::leave);
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
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let [native, samod] = runtime.block_on(async {
            let [native, samod] = both(&config_for_many());
            [outcome(&native, &actions).await, outcome(&samod, &actions).await]
        });
        prop_assert_eq!(native, samod);
    }
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("TONK_RELAY_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = cases.unwrap_or(default);
    // A failure that shows as waiting in vain takes seconds to repeat.
    ProptestConfig { cases, max_shrink_time: 60_000, ..ProptestConfig::default() }
}
