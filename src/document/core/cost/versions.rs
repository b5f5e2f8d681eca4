//! The latest versions of a document.

use std::collections::VecDeque;

use automerge::ChangeHash;

/// How many versions are remembered.
const MAX_VERSIONS: usize = 32;

/// The latest versions of a document, newest first: the heads of each, and how many changes it has.
/// They tell how many of its changes a peer has that names some of its heads.
#[derive(Default)]
pub(in crate::document::core) struct Versions(VecDeque<(Vec<ChangeHash>, u64)>);

impl Versions {
    /// Adds the present version.
    pub(in crate::document::core) fn add(&mut self, heads: &[ChangeHash], changes: u64) {
        if self.0.len() >= MAX_VERSIONS {
            self.0.pop_back();
        }
        self.0.push_front((heads.to_vec(), changes));
    }

    pub(in crate::document::core) fn clear(&mut self) {
        *self = Self::default();
    }

    /// How many of the document's changes somebody has for certain who has these, which are sorted.
    pub(in crate::document::core) fn changes_below(&self, hashes: &[ChangeHash]) -> u64 {
        if hashes.is_empty() {
            return 0;
        }
        let has = |head: &ChangeHash| hashes.binary_search(head).is_ok();
        let known = self.0.iter().find(|(heads, _)| heads.iter().all(has));
        known.map_or(0, |(_, changes)| *changes)
    }
}
