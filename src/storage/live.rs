//! What the live documents hear of changes that other relays have stored.

use super::relay_message::RelayMessage;
use crate::{base::document_id::DocumentId, document::core::event::StoredByAnother};

/// What others have stored of one document.
#[derive(Debug)]
pub enum News {
    /// These chunks.
    Chunks(StoredByAnother),
    /// It has to be read: it is much, or it is not known.
    Unread,
}

impl News {
    /// Bytes of chunks that are kept for a room. More is read when the room comes to it.
    const MAX_KEPT: usize = 1 << 20;

    /// All of both.
    pub(crate) fn and(self, later: Self) -> Self {
        let (Self::Chunks(mut all), Self::Chunks(later)) = (self, later) else {
            return Self::Unread;
        };
        all.unpacked = all.unpacked.plus(&later.unpacked);
        all.chunks.extend(later.chunks);
        let bytes: usize = all.chunks.iter().map(|(_, data)| data.len()).sum();
        if bytes > Self::MAX_KEPT { Self::Unread } else { Self::Chunks(all) }
    }
}

/// The live documents.
pub trait Live: Send + Sync {
    /// Whether somebody wants to hear of a document.
    fn wants(&self, document: DocumentId) -> bool;
    /// Others have stored something of a document.
    fn stored(&self, document: DocumentId, news: News);
    /// A document was deleted, undeleted, blocked or unblocked.
    fn marked(&self, document: DocumentId);
    /// Others may have stored or marked anything: all that is live is to be read again.
    fn resync(&self);
    /// What was read before may be gone.
    fn lost(&self);
    /// Another relay has sent a message.
    fn heard(&self, message: RelayMessage);
}
