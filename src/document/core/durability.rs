//! How much of a document is durable, and in which order the rest was applied.

use std::collections::HashMap;

use automerge::ChangeHash;

use crate::document::gate::Admitted;

/// Counts changes in the order in which they were applied: a prefix of them is durable.
pub(super) struct Durability {
    /// The heads up to which everything is durable, sorted.
    pub(super) heads: Vec<ChangeHash>,
    /// How many changes that is.
    pub(super) changes: u64,
    /// All other changes, each with the number of changes that the document had once it was
    /// applied.
    unsaved: HashMap<ChangeHash, u64>,
    /// The same number for all changes of a document that came as a whole. These are not in
    /// `unsaved`.
    unsaved_document: Option<u64>,
}

impl Durability {
    /// Everything is durable: `changes` changes up to these heads.
    pub(super) fn new(heads: Vec<ChangeHash>, changes: u64) -> Self {
        Self { heads, changes, unsaved: HashMap::new(), unsaved_document: None }
    }

    /// Records what was just admitted to a document, which has this many changes now.
    pub(super) fn add_unsaved(&mut self, admitted: &Admitted, changes: u64) {
        match admitted {
            Admitted::Nothing => {}
            Admitted::Changes(new) => {
                self.unsaved.extend(new.iter().map(|change| (change.hash(), changes)));
            }
            // The document was empty, so nothing else is unsaved. It may still be: automerge also
            // sends documents without changes.
            Admitted::Whole => {
                self.unsaved_document = Some(changes).filter(|changes| *changes > self.changes);
            }
        }
    }

    /// Records that the document's first `changes` changes are durable, up to these heads.
    pub(super) fn advance(&mut self, heads: Vec<ChangeHash>, changes: u64) {
        (self.heads, self.changes) = (heads, changes);
        self.unsaved.retain(|_, number| *number > changes);
        self.unsaved_document = self.unsaved_document.filter(|number| *number > changes);
        if self.unsaved.is_empty() {
            // An idle room must not keep the map's memory.
            self.unsaved = HashMap::new();
        }
    }

    /// Records that only what is before these heads is sure to be durable. The document has this
    /// many changes, and all of them have to be written before any counts as durable.
    pub(super) fn lose(&mut self, heads: Vec<ChangeHash>, changes: u64) {
        (self.heads, self.changes) = (heads, 0);
        self.unsaved = HashMap::new();
        self.unsaved_document = Some(changes).filter(|changes| *changes > 0);
    }

    /// How many changes must become durable until `change` is; none if it is durable, or unknown.
    /// `is_in_document` tells whether the document has it.
    pub(super) fn durable_at(
        &self,
        change: &ChangeHash,
        is_in_document: impl FnOnce() -> bool,
    ) -> Option<u64> {
        let as_document = || self.unsaved_document.filter(|_| is_in_document());
        self.unsaved.get(change).copied().or_else(as_document)
    }

    /// Whether no change is recorded as unsaved.
    pub(super) fn has_no_unsaved(&self) -> bool {
        self.unsaved.is_empty() && self.unsaved_document.is_none()
    }
}
