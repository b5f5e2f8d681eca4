//! What is found when a document is read again that is in memory.

use crate::{
    document::{
        chunk::Key,
        core::event::{Remains, StoredByAnother},
    },
    storage::Basis,
};

/// What a store has of a document after it has lost something.
pub(crate) enum Remaining {
    /// These chunks. What is written from now on builds on `basis`.
    Stored(Remains, Basis),
    /// The document was deleted meanwhile.
    Deleted,
}

/// What other relays have done to a document.
pub(crate) enum Unread {
    /// They have stored these chunks, and those that are gone are replaced.
    Stored(StoredByAnother, Vec<Key>),
    /// The document was deleted, or has become too large.
    Outdated,
}
