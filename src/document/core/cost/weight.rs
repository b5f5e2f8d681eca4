//! What operations on a document take in processor time.
//!
//! The constants were measured with automerge 0.12 on one core of a small cloud machine (2026,
//! release build), on texts that were typed a letter at a time, lists, maps, byte strings and empty
//! changes. Each is the highest value of these, rounded up. An overestimated step runs on a thread
//! of its own for nothing, which costs some 30 us.

use std::time::Duration;

use crate::document::{gate::Document, unpacked::Unpacked};

/// A step with a higher estimate does not run on the threads that serve all connections.
pub(crate) const LONG: Nanos = Nanos(1_000_000);
/// A step with a lower estimate is charged that instead of the time that it took: reading the clock
/// would cost a noticeable part of it.
pub(crate) const MEASURED: Nanos = Nanos(100_000);
/// Processing a message without changes from a peer that was sent nothing.
pub(crate) const MESSAGE: Nanos = Nanos(5_000);
/// Sending a peer a message that is computed already.
pub(super) const SEND: Nanos = Nanos(2_000);
/// Nanoseconds for copying a change's hash in a peer's state.
pub(super) const COPIED_HASH: u64 = 60;

/// Processor time, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Nanos(pub u64);

impl Nanos {
    pub(super) const ZERO: Self = Self(0);

    pub(super) fn of(count: u64, each: u64) -> Self {
        Self(count.saturating_mul(each))
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    pub(super) fn sum(parts: impl IntoIterator<Item = Self>) -> Self {
        parts.into_iter().fold(Self::ZERO, Self::plus)
    }
}

impl From<Nanos> for Duration {
    fn from(nanos: Nanos) -> Self {
        Self::from_nanos(nanos.0)
    }
}

/// What decides how expensive work with a document is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weight {
    pub(crate) changes: u64,
    pub(crate) operations: u64,
    /// Bytes of the values of its operations.
    pub(crate) values: u64,
    pub(crate) heads: u64,
}

impl Weight {
    /// Loading it from a save.
    pub(in crate::document::core) fn load_cost(&self) -> Nanos {
        Nanos::sum([
            Nanos(90_000),
            Nanos::of(self.changes, 2_500),
            Nanos::of(self.operations, 2_000),
            Nanos::of(self.values, 3),
        ])
    }

    /// Saving it as a whole. Incompressible values take 40 ns a byte.
    pub(in crate::document::core) fn save_cost(&self) -> Nanos {
        Nanos::sum([
            Nanos(10_000),
            Nanos::of(self.changes, 180),
            Nanos::of(self.operations, 250),
            Nanos::of(self.values, 40),
        ])
    }

    /// Finding which of the last `changes` a peer lacks by its Bloom filters, and building a filter
    /// of them.
    pub(super) fn compare_cost(&self, changes: u64, filters: u64) -> Nanos {
        let heads = Nanos::of(self.heads, 1_000);
        heads.plus(Nanos::of(changes, 800_u64.saturating_add(60_u64.saturating_mul(filters))))
    }

    /// Sending the last `changes`: one by one, or as a whole document to a peer that `takes_whole`
    /// ones, which automerge does from a third of the changes on (`sync.rs`).
    pub(super) fn send_cost(&self, changes: u64, takes_whole: bool) -> Nanos {
        if takes_whole && changes > self.changes / 3 {
            return self.save_cost();
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

    /// Walking the last `changes`.
    pub(super) fn walk_cost(&self, changes: u64) -> Nanos {
        Nanos::of(self.heads, 1_000).plus(Nanos::of(changes, 350))
    }

    /// Admitting changes to it. `needs_trial`: they are tried on a copy of it first, which is saved
    /// and loaded again.
    pub(super) fn admit_cost(&self, unpacked: &Unpacked, needs_trial: bool) -> Nanos {
        let admit = admit_cost(unpacked);
        if !needs_trial {
            return admit;
        }
        let copy = Nanos::of(self.changes.saturating_add(self.operations), 50);
        Nanos::sum([admit, admit, copy, self.save_cost(), self.load_cost()])
    }
}

/// Checking changes, applying them, and comparing them with what they will be written as.
fn admit_cost(unpacked: &Unpacked) -> Nanos {
    Nanos::sum([
        Nanos::of(unpacked.changes, 9_000),
        Nanos::of(unpacked.operations, 5_500),
        Nanos::of(unpacked.values, 3),
    ])
}

/// Whether changes have to be tried on a copy of `doc` before they are admitted. `has_orphans`:
/// some changes in it wait for others.
pub(super) fn needs_trial(doc: &Document, has_orphans: bool, unpacked: &Unpacked) -> bool {
    unpacked.marks > 0 || has_orphans || doc.check_numbering().is_err()
}

/// Whether admitting changes to `doc` is estimated to take long. `values` are the bytes of its
/// values, and `has_orphans` is whether changes in it wait for others.
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
    weight.admit_cost(unpacked, needs_trial(doc, has_orphans, unpacked)) > LONG
}
