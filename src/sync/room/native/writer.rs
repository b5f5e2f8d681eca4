//! Stores the chunks of one document in the background, and reads them again if the store has lost
//! some.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

use crate::{
    base::document_id::DocumentId,
    document::{
        chunk::Key,
        core::event::{Event, Remains},
    },
    storage::documents::{Documents, Outdated},
};

/// Stores the chunks of one document.
pub(super) struct Writer {
    pub(super) documents: Arc<Documents>,
    document: DocumentId,
    /// How often the store had lost something when the document was read.
    losses: u64,
    /// A write under way, or reading what is stored; none if there is neither.
    pub(super) work: Option<BoxFuture<'static, Done>>,
    /// What is stored is being read.
    is_reading: bool,
}

/// How the work of a writer has ended.
pub(super) enum Done {
    /// The chunk is durable.
    Saved,
    /// The store has lost something. What it still has, and how many losses there were when that
    /// was read.
    Lost(Remains, u64),
}

impl Writer {
    /// Creates a writer. `losses` is how often the store had lost something when the document was
    /// read.
    pub(super) fn new(documents: Arc<Documents>, document: DocumentId, losses: u64) -> Self {
        Self { documents, document, losses, work: None, is_reading: false }
    }

    /// Begins to store a chunk, and to delete those that it replaces.
    pub(super) fn save(&mut self, key: Key, data: Bytes, replaces: Vec<Key>) {
        debug_assert!(!self.is_reading, "nothing is written before it is known what remains");
        let waiting = self.documents.unsaved_bytes(data.len());
        let (documents, document, losses) = (self.documents.clone(), self.document, self.losses);
        let write = async move {
            drop(waiting);
            let bytes = data.len();
            match documents.replace(&key, data, &replaces, losses).await {
                Ok(()) => Done::Saved,
                Err(Outdated) => {
                    let _waiting = documents.unsaved_bytes(bytes);
                    read(&documents, document).await
                }
            }
        };
        self.work = Some(write.boxed());
    }

    /// Whether the store has lost something since the document was read.
    pub(super) fn is_outdated(&self) -> bool {
        self.losses != self.documents.store().losses()
    }

    /// Begins to read what is stored if the store has lost something since. Returns whether it does,
    /// of which the core must be told.
    pub(super) fn read_if_outdated(&mut self) -> bool {
        if self.is_reading || !self.is_outdated() {
            return false;
        }
        self.is_reading = true;
        let (documents, document, earlier) =
            (self.documents.clone(), self.document, self.work.take());
        let read = async move {
            if let Some(earlier) = earlier
                && let lost @ Done::Lost(..) = earlier.await
            {
                return lost;
            }
            read(&documents, document).await
        };
        self.work = Some(read.boxed());
        true
    }

    /// Returns what the core has to know of work that has ended. A chunk that was stored before a
    /// loss may be gone: then what is stored is read first.
    pub(super) fn end(&mut self, done: Done) -> Option<Event> {
        (self.work, self.is_reading) = (None, false);
        match done {
            Done::Saved if self.is_outdated() => None,
            Done::Saved => Some(Event::Saved),
            Done::Lost(remains, losses) => {
                self.losses = losses;
                Some(Event::Restored(remains))
            }
        }
    }
}

async fn read(documents: &Documents, document: DocumentId) -> Done {
    let (remains, losses) = documents.remains(document).await;
    Done::Lost(remains, losses)
}
