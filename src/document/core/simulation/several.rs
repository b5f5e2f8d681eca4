//! Cores of one document on relays that share a store, which is the only way between them. Relays
//! crash, commits are confirmed late or never, the database goes back to an earlier state, and
//! peers move from one relay to another.

mod database;
mod world;

use automerge::{
    ChangeHash,
    sync::{Message, MessageVersion},
};
use proptest::{
    prelude::*,
    test_runner::{TestCaseResult, TestRng, TestRunner},
};

use self::world::{Action, Fault, PEERS, RELAYS, World};
use super::cases;

fn action() -> impl Strategy<Value = Action> {
    let (peer, relay) = (0..PEERS, 0..RELAYS);
    let usually = proptest::bool::weighted(0.8);
    prop_oneof![
        5 => peer.clone().prop_map(Action::Edit),
        8 => peer.clone().prop_map(Action::ToRelay),
        8 => peer.clone().prop_map(Action::ToPeer),
        8 => relay.clone().prop_map(Action::Step),
        6 => (relay.clone(), usually)
            .prop_map(|(relay, is_answered)| Action::Commit { relay, is_answered }),
        1 => (0..8usize).prop_map(Action::Late),
        5 => (relay.clone(), 0..4u8).prop_map(|(relay, again)| Action::Look { relay, again }),
        3 => relay.clone().prop_map(Action::Read),
        2 => relay.clone().prop_map(Action::ReadUnknown),
        1 => relay.clone().prop_map(Action::Idle),
        1 => (peer.clone(), any::<bool>()).prop_map(|(peer, on)| Action::Full(peer, on)),
        1 => relay.clone().prop_map(Action::Crash),
        1 => relay.clone().prop_map(Action::Reopen),
        1 => (0..6usize).prop_map(Action::Lose),
        1 => peer.clone().prop_map(Action::Disconnect),
        3 => (peer, relay, any::<bool>())
            .prop_map(|(peer, relay, keeps_state)| Action::Connect { peer, relay, keeps_state }),
    ]
}

fn run(bases: [usize; RELAYS], actions: &[Action], fault: Option<Fault>) -> TestCaseResult {
    let mut world = World::new(bases);
    world.fault = fault;
    (0..PEERS).for_each(|n| world.connect(n, n % RELAYS, false));
    actions.iter().for_each(|action| world.act(action));
    world.settle();
    world.check()
}

/// While a write is under way, another relay stores a change, and the peer acknowledges it. No
/// further write follows, so the peer has to be told that everything is stored when this one ends.
#[test]
fn a_peer_is_told_all_heads_though_another_relay_stored_the_last_change() {
    let mut world = World::new([0; RELAYS]);
    let exchange = |world: &mut World, n: usize| {
        for _ in 0..6 {
            let actions = [Action::ToRelay(n), Action::Step(n), Action::ToPeer(n)];
            actions.iter().for_each(|action| world.act(action));
        }
    };
    for n in [0, 1] {
        world.connect(n, n, false);
        exchange(&mut world, n);
    }
    for n in [0, 1] {
        world.act(&Action::Edit(n));
        exchange(&mut world, n);
    }
    assert!(world.relays[0].writing.is_some());
    world.act(&Action::Commit { relay: 1, is_answered: true });
    world.act(&Action::Look { relay: 0, again: 0 });
    exchange(&mut world, 0);
    world.act(&Action::Commit { relay: 0, is_answered: true });
    exchange(&mut world, 0);
    assert!(world.relays[0].writing.is_none() && world.relays[0].core.is_durable());
    let heads = world.peers[0].doc.get_heads();
    assert_eq!(heads.len(), 2);
    assert_eq!(world.peers[0].state.their_heads.as_ref(), Some(&heads));
}

/// What the database has lost is written again, and nobody has to connect again for it.
#[test]
fn what_a_database_has_lost_is_written_again() {
    for commits in 1..=4 {
        let mut world = World::new([0; RELAYS]);
        (0..PEERS).for_each(|n| world.connect(n, n % RELAYS, false));
        world.settle();
        world.act(&Action::Lose(commits));
        let edits = world.edits;
        world.settle();
        assert_eq!(world.edits, edits + PEERS as u64);
        world.check().expect("everything is there");
    }
}

/// A change that waits for one that another relay stores is written by the relay that has it.
#[test]
fn a_change_that_another_relay_frees_is_written() {
    let mut world = World::new([0; RELAYS]);
    world.connect(0, 0, false);
    world.act(&Action::Edit(0));
    for _ in 0..3 {
        [Action::Step(0), Action::ToPeer(0), Action::ToRelay(0)].iter().for_each(|a| world.act(a));
    }
    world.act(&Action::Commit { relay: 0, is_answered: true });
    // It moves to a relay that has not read its first change, and sends only the second one.
    world.connect(0, 1, false);
    world.act(&Action::Edit(0));
    let change = send_only_last(&mut world, 0);
    world.act(&Action::Step(1));
    assert!(world.relays[1].core.heads().is_empty() && world.relays[1].writing.is_none());
    world.act(&Action::Look { relay: 1, again: 0 });
    world.act(&Action::Step(1));
    assert_eq!(world.relays[1].core.heads(), [change]);
    assert!(!world.relays[1].core.is_durable());
    world.act(&Action::Commit { relay: 1, is_answered: true });
    assert!(world.database.changes().contains(&change));
    world.settle();
    world.check().expect("everything is there");
}

/// Sends the last change of a peer, without those that it depends on.
fn send_only_last(world: &mut World, n: usize) -> ChangeHash {
    let peer = &mut world.peers[n];
    let change = peer.doc.get_changes(&[]).pop().expect("a change");
    let message = Message {
        heads: vec![change.hash()],
        need: Vec::new(),
        have: Vec::new(),
        changes: vec![change.raw_bytes().to_vec()].into(),
        flags: None,
        version: MessageVersion::V1,
    };
    let link = peer.link.as_mut().expect("a link");
    link.to_relay = [message.encode()].into();
    world.act(&Action::ToRelay(n));
    change.hash()
}

/// Two relays store snapshots of the same heads, and one of them has a change that waits.
#[test]
fn a_snapshot_of_another_relay_is_not_taken_for_our_own() {
    for fault in [None, Some(Fault::TakenForOwn)] {
        let mut world = World::new([0; RELAYS]);
        world.fault = fault;
        let exchange = |world: &mut World, n: usize, relay: usize| {
            for _ in 0..4 {
                let actions = [Action::ToRelay(n), Action::Step(relay), Action::ToPeer(n)];
                actions.iter().for_each(|action| world.act(action));
            }
        };
        world.connect(1, 1, false);
        (0..2).for_each(|_| world.act(&Action::Edit(1)));
        let _waits = send_only_last(&mut world, 1);
        world.act(&Action::Step(1));
        world.act(&Action::Disconnect(1));
        for relay in [0, 1] {
            world.connect(0, relay, false);
            if relay == 0 {
                world.act(&Action::Edit(0));
            }
            exchange(&mut world, 0, relay);
        }
        let key =
            |relay: usize| world.relays[relay].writing.as_ref().map(|write| write.key.clone());
        assert!(key(0).is_some() && key(0) == key(1));
        let rest = move || {
            for relay in [1, 0] {
                world.act(&Action::Commit { relay, is_answered: true });
            }
            world.connect(0, 0, false);
            for _ in 0..40 {
                world.act(&Action::Edit(0));
                exchange(&mut world, 0, 0);
                world.act(&Action::Commit { relay: 0, is_answered: true });
            }
        };
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(rest));
        assert_eq!(ended.is_err(), fault.is_some(), "{fault:?}");
    }
}

/// A base is stored with the first change, and not before.
#[test]
fn a_base_is_stored_with_the_first_change() {
    let mut world = World::new([2, 2, 2]);
    world.connect(0, 0, false);
    for _ in 0..6 {
        let actions = [Action::ToRelay(0), Action::Step(0), Action::ToPeer(0)];
        actions.iter().for_each(|action| world.act(action));
    }
    assert!(!world.peers[0].doc.get_heads().is_empty(), "the peer has the base");
    assert!(world.relays[0].writing.is_none() && world.relays[0].core.is_durable());
    world.settle();
    assert!(world.database.changes().len() > PEERS, "the base is stored");
}

fn bases() -> impl Strategy<Value = [usize; RELAYS]> {
    prop_oneof![Just([0; RELAYS]), Just([2; RELAYS]), Just([2, 3, 2])]
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    proptest::collection::vec(action(), 1..200)
}

/// Each fault is found within 500 random cases.
#[test]
fn faults_of_a_store_are_found() {
    for fault in [
        Fault::ConfirmedTooEarly,
        Fault::MissedRows,
        Fault::LossNotNoticed,
        Fault::LossNotNoticedByWrites,
        Fault::ReplacesUnread,
    ] {
        let config =
            ProptestConfig { max_shrink_iters: 0, failure_persistence: None, ..cases(500) };
        let rng = TestRng::deterministic_rng(config.rng_algorithm);
        let found = TestRunner::new_with_rng(config, rng)
            .run(&(bases(), actions()), |(bases, actions)| run(bases, &actions, Some(fault)));
        assert!(found.is_err(), "{fault:?} is not found");
    }
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn relays_on_one_store_act_as_one(bases in bases(), actions in actions()) {
        run(bases, &actions, None)?;
    }
}
