//! The core under a scheduler that may do anything: peers edit, disconnect and return, the disk is
//! slow, the process crashes between any two steps. Every case is a list of actions. A failing one
//! is shrunk and printed.
//!
//! `TONK_RELAY_CASES=100000 cargo test --release simulation` runs more cases.

mod several;
mod world;

use automerge::{
    ActorId, Automerge, AutomergeError, ROOT,
    sync::{State, SyncDoc},
    transaction::Transactable,
};
use proptest::prelude::*;

use self::world::{Action, PEERS, Peer, World, load};
use super::exchange;

/// Edits with which a test is repeated whose faults only show when a Bloom filter hides a change.
/// One filter in a hundred does; in rounds 9 and 19 one does with automerge 0.12.
const ROUNDS: [u64; 3] = [0, 9, 19];

fn action() -> impl Strategy<Value = Action> {
    let peer = 0..PEERS;
    prop_oneof![
        4 => peer.clone().prop_map(Action::Edit),
        8 => peer.clone().prop_map(Action::ToRelay),
        8 => peer.clone().prop_map(Action::ToPeer),
        8 => Just(Action::Step),
        4 => Just(Action::Written),
        2 => Just(Action::Delete),
        1 => Just(Action::Idle),
        1 => any::<bool>().prop_map(|written| Action::Crash { written }),
        1 => peer.clone().prop_map(Action::Disconnect),
        2 => (peer.clone(), any::<bool>())
            .prop_map(|(peer, keeps_state)| Action::Connect { peer, keeps_state }),
        1 => (peer.clone(), any::<bool>()).prop_map(|(peer, on)| Action::ReadOnly(peer, on)),
        2 => (peer, any::<bool>()).prop_map(|(peer, on)| Action::Full(peer, on)),
    ]
}

/// automerge generates a reset for a peer that remembers changes which the relay does not have,
/// each time that it is asked for a message: it must be asked once.
#[test]
fn a_peer_that_remembers_lost_changes_gets_one_answer_a_message() {
    let mut world = World::new();
    world.connect(0, false);
    world.act(&Action::Edit(0));
    world.act(&Action::ToRelay(0));
    for action in [Action::Step, Action::ToPeer(0), Action::ToRelay(0), Action::Step] {
        world.act(&action);
    }
    // The change is lost before it is durable, and the peer believes that both have it.
    world.peers[0].state.shared_heads = world.peers[0].doc.get_heads();
    world.act(&Action::Crash { written: false });
    world.connect(0, true);
    world.act(&Action::Step);
    assert_eq!(world.peers[0].link.as_ref().expect("a link").to_peer.len(), 1);
    world.settle();
    assert_eq!(load(&world.disk).get_heads(), world.peers[0].doc.get_heads());
}

/// A peer may name a change that another peer then sends. It must not be announced to the first one
/// as stored before it is durable.
#[test]
fn a_change_that_two_peers_have_is_announced_to_both_when_durable() {
    let mut world = World::new();
    world.act(&Action::Edit(0));
    let written = world.peers[0].doc.clone();
    world.peers[1].doc.merge(&mut written.clone()).expect("merges");
    for n in [0, 1] {
        world.connect(n, false);
        world.act(&Action::Step);
    }
    // The world checks that nothing is announced to the first one too early.
    for action in [Action::ToPeer(1), Action::ToRelay(1), Action::Step] {
        world.act(&action);
    }
    assert!(world.writing.is_some(), "the second peer sent it");
    world.settle();
    assert_eq!(load(&world.disk).get_heads(), written.get_heads());
}

/// The author of a document that arrived as a whole connects again before it is durable, and names
/// its heads.
#[test]
fn a_whole_document_is_announced_to_its_author_when_durable() {
    let mut world = World::new();
    for _ in 0..5 {
        world.act(&Action::Edit(0));
    }
    world.connect(0, false);
    world.settle_unwritten();
    assert!(world.writing.is_some(), "the document arrived");
    // The world checks that nothing is announced to it too early.
    world.connect(0, false);
    world.settle_unwritten();
    assert!(!world.core.is_durable());
    world.settle();
    assert_eq!(load(&world.disk).get_heads(), world.peers[0].doc.get_heads());
}

/// A peer may send changes and name no heads. These must not be announced to it as stored, either.
#[test]
fn a_change_is_announced_to_a_sender_that_named_no_heads_when_durable() {
    let mut world = World::new();
    world.connect(0, false);
    world.settle_unwritten();
    world.act(&Action::Edit(0));
    world.clear_heads(0);
    // The world checks that nothing is announced to it too early.
    world.settle_unwritten();
    assert!(world.writing.is_some(), "the change arrived");
    world.settle();
    assert_eq!(load(&world.disk).get_heads(), world.peers[0].doc.get_heads());
}

/// Heads are withheld from a peer only for its own changes, not for those that it was sent
/// meanwhile.
#[test]
fn a_peer_is_told_all_heads_once_its_own_changes_are_durable() {
    let (writer, other) = (0, 1);
    let mut world = World::new();
    for n in [writer, other] {
        world.connect(n, false);
    }
    world.act(&Action::Edit(writer));
    world.settle_unwritten();
    world.act(&Action::Written);
    world.settle_unwritten();
    world.act(&Action::Edit(other));
    world.settle_unwritten();
    // Not part of the write under way.
    world.act(&Action::Edit(writer));
    world.settle_unwritten();
    let heads = world.peers[writer].doc.get_heads();
    assert_eq!(world.peers[other].doc.get_heads(), heads);
    assert_ne!(world.peers[other].state.their_heads.as_ref(), Some(&heads));
    world.act(&Action::Written);
    world.settle_unwritten();
    assert!(!world.core.is_durable());
    assert_eq!(world.peers[other].state.their_heads.as_ref(), Some(&heads));
}

/// automerge may send a document without changes. The invariants are checked after each step.
#[test]
fn an_empty_document_leaves_nothing_to_save() {
    let mut world = World::new();
    (0..PEERS).for_each(|n| world.connect(n, false));
    let actions = [Action::Step, Action::ToPeer(0), Action::ReadOnly(0, true), Action::ToRelay(0)];
    actions.iter().for_each(|action| world.act(action));
    world.settle();
    assert!(world.disk.is_empty() && world.core.is_durable());
}

/// Increments are merged, and those that were replaced are deleted.
#[test]
fn merged_increments_hold_all_changes() {
    let mut world = World::new();
    for edit in 1..=20 {
        world.act(&Action::Edit(edit % PEERS));
        world.settle();
        assert_eq!(load(&world.disk).get_heads(), world.peers[0].doc.get_heads());
    }
    assert!(world.disk.len() < 10, "{} chunks", world.disk.len());
    world.act(&Action::Crash { written: true });
    world.settle();
    assert_eq!(world.core.heads(), load(&world.disk).get_heads());
}

/// While writes fail, every peer still gets every edit, even if a reader acknowledges late. The
/// heads of an edit are withheld only from its author, so a reader gets all heads.
#[test]
fn edits_reach_everybody_while_writes_fail_for_thirty_edits() {
    let (writer, other, reader) = (0, 1, 2);
    for round in ROUNDS {
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
            world.act(&Action::ToRelay(editor));
            world.act(&Action::Step);
            for n in [writer, other, reader] {
                world.act(&Action::ToPeer(n));
            }
            if edit % 4 == 1 {
                // The reader's oldest message. The others arrive late.
                world.act(&Action::ToRelay(reader));
            }
        }
        assert!(world.writing.is_some(), "the write is still under way");
        world.settle_unwritten();
        let heads = world.peers[writer].doc.get_heads();
        for n in [other, reader] {
            assert_eq!(world.peers[n].doc.get_heads(), heads, "peer {n} in round {round}");
        }
        assert!(world.writing.is_some() && !world.core.is_durable());
        let announced = world.peers[reader].state.their_heads.as_ref();
        assert_eq!(announced, Some(&heads), "heads are withheld from a reader in round {round}");
        world.settle();
        assert_eq!(load(&world.disk).get_heads(), heads);
    }
}

/// In a crowd, the exchange with one reader serves all of them.
#[test]
fn peers_in_equal_states_share_one_state() {
    let mut world = World::new();
    world.act(&Action::Edit(0));
    for n in 0..PEERS {
        world.connect(n, false);
    }
    for _ in 0..10 {
        for n in 0..PEERS {
            world.act(&Action::ToPeer(n));
            world.act(&Action::ToRelay(n));
        }
        world.act(&Action::Step);
        world.act(&Action::Written);
    }
    assert_eq!(world.core.distinct_states(), 2, "the writer's and the readers'");
}

/// The number of cases of a random test.
fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("TONK_RELAY_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: cases.unwrap_or(default), ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn all_peers_converge_and_announced_changes_are_durable(
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
        prop_assert_eq!(world.core.durable_heads(), heads.as_slice());
        prop_assert_eq!(load(&world.disk).get_heads(), heads);
    }

    /// Compares our `receive` with automerge's own, message by message.
    #[test]
    fn a_message_changes_a_state_as_automerge_changes_it(
        actions in proptest::collection::vec((any::<bool>(), 0..4u8), 1..60),
    ) {
        let (mut theirs, mut ours) = (Peer::new(0), Automerge::new());
        ours.set_actor(ActorId::from([9; 16]));
        let mut state = State::new();
        for (n, (is_theirs, what)) in actions.into_iter().enumerate() {
            let edited = if is_theirs { &mut theirs.doc } else { &mut ours };
            if what != 0 {
                let key = what.to_string();
                edited
                    .transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, key, n as u64))
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
            // Some of our messages are lost, so that what was sent stays unacknowledged.
            if let Some(message) = ours.generate_sync_message(&mut state)
                && what != 3
            {
                theirs.doc.receive_sync_message(&mut theirs.state, message).expect("fits");
            }
        }
    }
}
