//! What lies under stored documents.

use bytes::Bytes;

use crate::base::document_id::DocumentId;

/// A source of documents under those that are stored: a stored document starts from its snapshot
/// there.
pub trait Underlay: Send + Sync + 'static {
    /// The snapshot of a document, as an automerge save; none if this has none.
    fn snapshot(&self, document: DocumentId) -> Option<Bytes>;
}
