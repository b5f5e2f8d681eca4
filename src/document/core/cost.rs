//! What the steps of a room cost, estimated before they begin.
//!
//! The constants were measured with automerge 0.12 on one core of a small cloud machine (2026, release build), on texts that
//! were typed a letter at a time, lists, maps, byte strings and empty changes; each is what the dearest of these takes, rounded
//! up. A step that is estimated too high is taken to a thread of its own for nothing, which costs some 30 us.

use std::{collections::VecDeque, time::Duration};

use automerge::ChangeHash;

use crate::{
    base::session_id::SessionId,
    document::{gate::Document, unpacked::Unpacked},
};

/// A step that is estimated to take longer does not run on the threads that serve everybody.
pub(crate) const LONG: Nanos = Nanos(1_000_000);
/// What a shorter step took is not measured, for reading the clock would show: its estimate is charged.
pub(crate) const MEASURED: Nanos = Nanos(100_000);

/// Versions of a document that are remembered, to tell how far back a peer is.
const VERSIONS: usize = 32;

/// Processor time, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(pub u64);

impl Nanos {
    pub(crate) const ZERO: Self = Self(0);

    fn of(count: u64, each: u64) -> Self {
        Self(count.saturating_mul(each))
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    fn sum(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::ZERO, Self::plus)
    }
}

impl From<Nanos> for Duration {
    fn from(nanos: Nanos) -> Self {
        Self::from_nanos(nanos.0)
    }
}

/// Taking in a message that brings nothing and tells nothing.
pub(crate) const MESSAGE: Nanos = Nanos(5_000);

/// A document, as what working with it costs goes by.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weight {
    pub(crate) changes: u64,
    pub(crate) operations: u64,
    /// Bytes of its values.
    pub(crate) values: u64,
    pub(crate) heads: u64,
}

impl Weight {
    /// Reading it from what it is saved as.
    pub(crate) fn load(&self) -> Nanos {
        Nanos::sum([
            Nanos(90_000),
            Nanos::of(self.changes, 2_500),
            Nanos::of(self.operations, 2_000),
            Nanos::of(self.values, 3),
        ])
    }

    /// Saving it as a whole. Values that cannot be compressed take 40 ns a byte.
    pub(crate) fn save(&self) -> Nanos {
        Nanos::sum([
            Nanos(10_000),
            Nanos::of(self.changes, 180),
            Nanos::of(self.operations, 250),
            Nanos::of(self.values, 40),
        ])
    }

    /// Finding out which of the last `changes` a peer lacks, by its Bloom filters, and making a filter of them.
    pub(crate) fn compare(&self, changes: u64, filters: u64) -> Nanos {
        let heads = Nanos::of(self.heads, 1_000);
        heads.plus(Nanos::of(changes, 800_u64.saturating_add(60_u64.saturating_mul(filters))))
    }

    /// Sending the last `changes`: one by one, or to a peer that `takes_whole` documents as a whole, which automerge does from a
    /// third of the changes on (`sync.rs`).
    pub(crate) fn send(&self, changes: u64, takes_whole: bool) -> Nanos {
        if takes_whole && changes > self.changes / 3 {
            return self.save();
        }
        let all = self.changes.max(1);
        let share = |of: u64| {
            u64::try_from(u128::from(of) * u128::from(changes.min(all)) / u128::from(all))
        };
        Nanos::sum([
            Nanos::of(changes, 4_000),
            Nanos::of(share(self.operations).unwrap_or(u64::MAX), 1_300),
            Nanos::of(share(self.values).unwrap_or(u64::MAX), 2),
        ])
    }

    /// Walking over the last `changes`.
    pub(crate) fn walk(&self, changes: u64) -> Nanos {
        Nanos::of(self.heads, 1_000).plus(Nanos::of(changes, 350))
    }

    /// Trying changes on a copy of it, and reading what that is saved as.
    pub(crate) fn try_out(&self) -> Nanos {
        let copied = Nanos::of(self.changes.saturating_add(self.operations), 50);
        Nanos::sum([copied, self.save(), self.load()])
    }
}

/// Letting changes become part of a document: checked, applied, and compared with what they are written as.
fn admit(unpacked: &Unpacked) -> Nanos {
    Nanos::sum([
        Nanos::of(unpacked.changes, 9_000),
        Nanos::of(unpacked.operations, 5_500),
        Nanos::of(unpacked.values, 3),
    ])
}

/// Whether letting changes become part of `doc` is estimated to take long: `values` are the bytes
/// of its values, and `has_orphans` is whether changes in it wait for others.
pub(crate) fn is_long_to_admit(
    doc: &Document,
    values: u64,
    has_orphans: bool,
    unpacked: &Unpacked,
) -> bool {
    let weight = Weight {
        changes: doc.changes(),
        operations: doc.operations(),
        values,
        heads: doc.heads().len() as u64,
    };
    admit_to(&weight, is_unusual(doc, has_orphans, unpacked), unpacked) > LONG
}

/// Whether changes are tried on a copy of the document first.
pub(crate) fn is_unusual(doc: &Document, has_orphans: bool, unpacked: &Unpacked) -> bool {
    unpacked.marks > 0 || has_orphans || doc.check_numbering().is_err()
}

/// [`admit`], with what is unusual tried out first.
pub(crate) fn admit_to(weight: &Weight, is_unusual: bool, unpacked: &Unpacked) -> Nanos {
    let tried = if is_unusual { weight.try_out().plus(admit(unpacked)) } else { Nanos::ZERO };
    admit(unpacked).plus(tried)
}

/// The latest versions of a document. They tell how many of its changes a peer has that names some of its heads.
#[derive(Default)]
pub(crate) struct Versions(VecDeque<(Vec<ChangeHash>, u64)>);

impl Versions {
    /// Remember the present version: its heads, and how many changes it has.
    pub(crate) fn add(&mut self, heads: &[ChangeHash], changes: u64) {
        if self.0.len() >= VERSIONS {
            self.0.pop_back();
        }
        self.0.push_front((heads.to_vec(), changes));
    }

    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    /// How many of the document's changes are surely among those that `hashes` stand for, which are sorted.
    pub(crate) fn covered_by(&self, hashes: &[ChangeHash]) -> u64 {
        if hashes.is_empty() {
            return 0;
        }
        let has = |head: &ChangeHash| hashes.binary_search(head).is_ok();
        let known = self.0.iter().find(|(heads, _)| heads.iter().all(has));
        known.map_or(0, |(_, changes)| *changes)
    }
}

/// What a step is estimated to take.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Estimate {
    /// For the document itself, and for passing changes on: nobody's fault.
    pub(crate) room: Nanos,
    /// For taking in what each sender sent, and answering it.
    pub(crate) senders: Vec<(SessionId, Nanos)>,
}

impl Estimate {
    pub(crate) fn add(&mut self, sender: SessionId, nanos: Nanos) {
        match self.senders.iter_mut().find(|(id, _)| *id == sender) {
            Some((_, sum)) => *sum = sum.plus(nanos),
            None => self.senders.push((sender, nanos)),
        }
    }

    /// The step as a whole.
    pub(crate) fn total(&self) -> Nanos {
        Nanos::sum(self.senders.iter().map(|(_, nanos)| *nanos)).plus(self.room)
    }

    /// Who has the largest part of it; none where that is nobody's.
    pub(crate) fn payer(&self) -> Option<SessionId> {
        let most = self.senders.iter().max_by_key(|(_, nanos)| *nanos);
        most.filter(|(_, nanos)| *nanos >= self.room).map(|(sender, _)| *sender)
    }

    /// What each sender is to pay of what the step has taken.
    pub(crate) fn shares(&self, took: Duration) -> impl Iterator<Item = (SessionId, Duration)> {
        let total = self.total().0.max(1);
        let took = took.as_nanos();
        self.senders.iter().map(move |(sender, nanos)| {
            let share = took.saturating_mul(u128::from(nanos.0)) / u128::from(total);
            (*sender, Duration::from_nanos(u64::try_from(share).unwrap_or(u64::MAX)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(versions.covered_by(&[]), 0);
        assert_eq!(versions.covered_by(&[hash(99)]), 0, "not all heads of a version");
        assert_eq!(versions.covered_by(&[hash(99), hash(199)]), 99);
        assert_eq!(versions.covered_by(&[hash(98), hash(99), hash(198), hash(199)]), 99);
        assert_eq!(versions.covered_by(&[hash(1), hash(101)]), 0, "too long ago");
    }

    /// The documents of FAULTS A4 and A6: few stored bytes, and long to work with.
    #[test]
    fn what_is_small_on_the_disk_may_take_long() {
        let empty_changes = Weight { changes: 60_000, heads: 1, ..Weight::default() };
        assert!(empty_changes.compare(60_000, 16) > LONG && empty_changes.load() > LONG);
        let nulls = Weight { changes: 1, operations: 400_000, heads: 1, ..Weight::default() };
        assert!(nulls.load() > LONG && nulls.save() > LONG);
        let typed = Weight { changes: 200, operations: 200, heads: 1, ..Weight::default() };
        assert!(typed.send(200, true) < LONG && typed.send(200, false) > typed.send(200, true));
        let note = Weight { changes: 30, operations: 60, values: 4_000, heads: 1 };
        assert!(note.load() < LONG && note.compare(2, 1).plus(MESSAGE) < MEASURED);
    }
}
