//! Counts the operations of a document and the numbers that its changes skip, and limits both.

use std::{cell::LazyCell, collections::HashMap};

use automerge::{ActorId, Automerge};

use super::refusal::{MAX_LEAP, MAX_SKIPPED, Refusal};

/// Counts over all changes of a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) changes: u64,
    pub(super) operations: u64,
    /// The highest operation number.
    pub(super) highest: u64,
    /// Operation numbers that changes skip between their dependencies and themselves.
    pub(super) skipped: u64,
    /// A reader will number some operations differently, or confuse those of two changes of one
    /// actor.
    pub(super) is_ambiguous: bool,
}

impl Tally {
    /// Counts all changes of a document.
    pub(super) fn of(doc: &Automerge) -> Self {
        let changes = doc.get_changes_meta(&[]);
        // Built only when needed: most changes depend only on the one before them.
        let numbers = LazyCell::new(|| {
            changes.iter().map(|change| (change.hash, change.max_op)).collect::<HashMap<_, _>>()
        });
        // The last operation of each actor so far. The changes of one actor are in its order.
        let mut last: HashMap<&ActorId, u64> = HashMap::new();
        let mut tally = Self::default();
        for (n, change) in changes.iter().enumerate() {
            let previous = n.checked_sub(1).and_then(|n| changes.get(n));
            let before = match (change.deps.as_slice(), previous) {
                ([], _) => 0,
                ([only], Some(previous)) if *only == previous.hash => previous.max_op,
                (deps, _) => {
                    let before = deps.iter().filter_map(|dep| numbers.get(dep)).max();
                    before.copied().unwrap_or(0)
                }
            };
            let operations = (change.max_op + 1).saturating_sub(change.start_op);
            tally.add(change.start_op, operations, before);
            // A reader assigns all numbers after the dependencies to the change.
            let last = last.entry(&change.actor).or_default();
            tally.is_ambiguous |= before < *last;
            *last = change.max_op.max(*last);
        }
        tally
    }

    pub(super) fn add(&mut self, start: u64, operations: u64, before: u64) {
        self.changes += 1;
        self.operations = self.operations.saturating_add(operations);
        self.highest = self.highest.max(start.saturating_add(operations).saturating_sub(1));
        if operations > 0 {
            self.skipped = self.skipped.saturating_add(start.saturating_sub(before + 1));
        }
        self.is_ambiguous |= is_misnumbered(start, operations, before);
    }

    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.check_after(&Self::default())
    }

    /// Checks a document that was counted as `before` earlier: its old faults may stay, but may not
    /// get worse.
    pub(super) fn check_after(&self, before: &Self) -> Result<(), Refusal> {
        let Self { operations, highest, skipped, is_ambiguous, .. } = *self;
        if is_ambiguous && !before.is_ambiguous {
            return Err(Refusal::Unreadable);
        }
        if self.leap() > MAX_LEAP.max(before.leap()) {
            return Err(Refusal::Leap { highest, operations });
        }
        if skipped > MAX_SKIPPED.max(before.skipped) {
            return Err(Refusal::Skipped(skipped));
        }
        Ok(())
    }

    fn leap(&self) -> u64 {
        self.highest.saturating_sub(self.operations)
    }
}

/// Whether no reader can number a change as its author did. A reader derives the first number from
/// the last one and from the dependencies, whose highest is `before`. So nothing tells where the
/// numbers of an empty change begin.
pub(super) fn is_misnumbered(start: u64, operations: u64, before: u64) -> bool {
    start <= before || (operations == 0 && start != before + 1)
}
