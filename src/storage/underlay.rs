//! The snapshots from which stored documents start.

use bytes::Bytes;

use crate::base::document_id::DocumentId;

/// A source of seed snapshots. A stored document starts from its seed, if it has one.
pub trait Underlay: Send + Sync + 'static {
    /// Returns the seed snapshot of a document as an automerge save, if there is one.
    fn snapshot(&self, document: DocumentId) -> Option<Bytes>;
}
