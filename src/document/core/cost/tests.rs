use std::time::Duration;

use automerge::ChangeHash;

use super::{
    estimate::Estimate,
    versions::Versions,
    weight::{LONG, MEASURED, MESSAGE, Nanos, Weight},
};
use crate::base::session_id::SessionId;

fn hash(n: u8) -> ChangeHash {
    ChangeHash([n; 32])
}

#[test]
fn a_step_is_paid_for_by_its_senders_and_the_room() {
    let (ann, bob) = (SessionId(1), SessionId(2));
    let mut estimate = Estimate { room: Nanos(100), ..Estimate::default() };
    estimate.add(ann, Nanos(100));
    estimate.add(bob, Nanos(150));
    estimate.add(ann, Nanos(50));
    assert_eq!(estimate.total(), Nanos(400));
    let shares: Vec<_> = estimate.shares(Duration::from_micros(8)).collect();
    let micros = Duration::from_micros;
    assert_eq!(shares, [(ann, micros(3)), (bob, micros(3))]);
    assert!(estimate.payer().is_some());
    estimate.room = Nanos(200);
    assert_eq!(estimate.payer(), None);
}

#[test]
fn a_peer_is_as_far_back_as_the_newest_version_that_it_names() {
    let mut versions = Versions::default();
    for n in 1..=100 {
        versions.add(&[hash(n), hash(n + 100)], u64::from(n));
    }
    assert_eq!(versions.changes_below(&[]), 0);
    assert_eq!(versions.changes_below(&[hash(99)]), 0, "not all heads of a version");
    assert_eq!(versions.changes_below(&[hash(99), hash(199)]), 99);
    assert_eq!(versions.changes_below(&[hash(98), hash(99), hash(198), hash(199)]), 99);
    assert_eq!(versions.changes_below(&[hash(1), hash(101)]), 0, "too long ago");
}

/// Few stored bytes, and expensive to work with.
#[test]
fn a_small_stored_document_may_take_long() {
    let empty_changes = Weight { changes: 60_000, heads: 1, ..Weight::default() };
    assert!(empty_changes.compare_cost(60_000, 16) > LONG && empty_changes.load_cost() > LONG);
    let nulls = Weight { changes: 1, operations: 400_000, heads: 1, ..Weight::default() };
    assert!(nulls.load_cost() > LONG && nulls.save_cost() > LONG);
    let typed = Weight { changes: 200, operations: 200, heads: 1, ..Weight::default() };
    assert!(
        typed.send_cost(200, true) < LONG
            && typed.send_cost(200, false) > typed.send_cost(200, true)
    );
    let note = Weight { changes: 30, operations: 60, values: 4_000, heads: 1 };
    assert!(note.load_cost() < LONG && note.compare_cost(2, 1).plus(MESSAGE) < MEASURED);
}
