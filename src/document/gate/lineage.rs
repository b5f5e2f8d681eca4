//! How changes descend from each other, and whether a reader will number them as their authors did.

use std::collections::HashMap;

use automerge::{ActorId, Automerge, Change, ChangeHash};

use super::{refusal::Refusal, tally::is_misnumbered};

/// How many changes of one message are looked up in the history. For more, the whole document is
/// checked instead.
const HISTORY_LOOKUPS: usize = 16;
/// How many changes of the history one lookup may examine. After a longer one, the whole document
/// is checked instead.
const HISTORY_CHANGES: usize = 4_096;
/// How many steps a search for an ancestor among the changes of one message may take.
const ANCESTRY_STEPS: usize = 256;

/// How changes descend from each other and from those of a document.
pub(super) struct Lineage<'a> {
    doc: &'a Automerge,
    /// The document's heads.
    heads: &'a [ChangeHash],
    /// The new changes by their hashes, if there are several.
    new: HashMap<ChangeHash, &'a Change>,
    /// The same by their actors and sequence numbers.
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

    /// Checks how a change is numbered. Returns whether it is proven that every reader will number
    /// it in the same way.
    ///
    /// # Errors
    /// No reader can number it so.
    pub(super) fn check(&mut self, change: &Change) -> Result<bool, Refusal> {
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
        Ok(self.finds_previous(change))
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

    /// Whether a new change builds on another new one, as far as a few steps tell.
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
            // Changes that build on the ancestor have higher numbers.
            if let Some(dep) = self.new.get(&hash).filter(|dep| dep.max_op() >= ancestor.max_op()) {
                next.extend(dep.deps());
            }
        }
        false
    }

    /// Searches a change's ancestors for its actor's previous change. Returns false also where that
    /// would take too long.
    fn finds_previous(&mut self, change: &Change) -> bool {
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
        // A change that builds on the document's heads builds on every change that is not new.
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
