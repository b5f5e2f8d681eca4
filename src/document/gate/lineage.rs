//! How changes descend from each other: whether a reader will number them as their authors did.

use std::collections::HashMap;

use automerge::{ActorId, Automerge, Change, ChangeHash};

use super::{refusal::Refusal, tally::is_misnumbered};

/// How many changes of one message are compared with the history one by one, and with how many changes of it, before the
/// whole document is checked instead.
const HISTORY_LOOKUPS: usize = 16;
const HISTORY_CHANGES: usize = 4_096;
/// How far it is looked among the changes of one message for one that another builds on.
const ANCESTRY_STEPS: usize = 256;

/// How changes descend from each other and from those of a document.
pub(super) struct Lineage<'a> {
    doc: &'a Automerge,
    /// The document's heads.
    heads: &'a [ChangeHash],
    /// The changes by their hashes, where there are several.
    new: HashMap<ChangeHash, &'a Change>,
    /// The same by their actors and numbers.
    made: HashMap<(&'a ActorId, u64), &'a Change>,
    lookups: usize,
}

impl<'a> Lineage<'a> {
    pub(super) fn new(doc: &'a Automerge, changes: &'a [Change], heads: &'a [ChangeHash]) -> Self {
        let several = if changes.len() > 1 { changes } else { &[] };
        let made = several.iter().map(|change| ((change.actor_id(), change.seq()), change));
        let made = made.collect();
        let new = several.iter().map(|change| (change.hash(), change)).collect();
        Self { doc, heads, new, made, lookups: 0 }
    }

    /// Whether a change is numbered as a reader will number it.
    ///
    /// # Errors
    /// It is such that no reader can.
    pub(super) fn is_usual(&mut self, change: &Change) -> Result<bool, Refusal> {
        let before = self.number_before(change);
        let (start, operations) = (change.start_op().get(), change.len() as u64);
        let highest = start.saturating_add(operations);
        if highest > u64::from(u32::MAX) {
            return Err(Refusal::Leap { highest, operations });
        }
        let waits = || change.deps().iter().any(|dep| !self.knows(dep));
        if start <= before || (is_misnumbered(start, operations, before) && !waits()) {
            return Err(Refusal::Unreadable);
        }
        Ok(self.builds_on_its_previous(change))
    }

    fn knows(&self, hash: &ChangeHash) -> bool {
        self.new.contains_key(hash) || self.doc.get_change_meta_by_hash(hash).is_some()
    }

    /// The highest operation number of a change's dependencies.
    pub(super) fn number_before(&self, change: &Change) -> u64 {
        let numbers = change.deps().iter().map(|dep| match self.new.get(dep) {
            Some(dep) => dep.max_op(),
            None => self.doc.get_change_meta_by_hash(dep).map_or(0, |dep| dep.max_op),
        });
        numbers.max().unwrap_or(0)
    }

    /// Whether one of the new changes builds on another, as far as a few steps tell.
    fn is_ancestor(&self, ancestor: &Change, change: &Change) -> bool {
        let target = ancestor.hash();
        let (mut next, mut steps) = (change.deps().to_vec(), 0);
        while let Some(hash) = next.pop() {
            if hash == target {
                return true;
            }
            steps += 1;
            if steps > ANCESTRY_STEPS {
                return false;
            }
            // What builds on it is numbered above it.
            if let Some(dep) = self.new.get(&hash).filter(|dep| dep.max_op() >= ancestor.max_op()) {
                next.extend(dep.deps());
            }
        }
        false
    }

    /// Whether the previous change of a change's actor is among its ancestors, as far as that can be told at little cost.
    fn builds_on_its_previous(&mut self, change: &Change) -> bool {
        let (actor, seq) = (change.actor_id(), change.seq());
        if seq == 1 {
            return true;
        }
        let is_previous = |other: &ActorId, other_seq: u64| other == actor && other_seq + 1 == seq;
        let is_dependency = change.deps().iter().any(|dep| match self.new.get(dep) {
            Some(dep) => is_previous(dep.actor_id(), dep.seq()),
            None => (self.doc.get_change_meta_by_hash(dep))
                .is_some_and(|dep| is_previous(&dep.actor, dep.seq)),
        });
        if is_dependency {
            return true;
        }
        if let Some(previous) = self.made.get(&(actor, seq - 1)) {
            return self.is_ancestor(previous, change);
        }
        // What builds on all that is here builds on every change that is not new.
        if change.deps() == self.heads {
            return true;
        }
        self.lookups += 1;
        if self.lookups > HISTORY_LOOKUPS {
            return false;
        }
        let elsewhere = self.doc.get_changes_meta(change.deps());
        if elsewhere.len() > HISTORY_CHANGES {
            self.lookups = HISTORY_LOOKUPS;
        }
        !elsewhere.iter().any(|other| *other.actor == *actor && other.seq < seq)
    }
}
