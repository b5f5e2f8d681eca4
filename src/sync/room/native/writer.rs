//! Stores the chunks of one document in the background, and reads what others have stored of it, and
//! what is left of it if the store has lost something.

use std::sync::Arc;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};

use crate::{
    base::document_id::DocumentId,
    document::{
        chunk::Key,
        core::event::{Event, Remains},
    },
    storage::{
        Basis, Put,
        documents::{Documents, Outdated, Remaining, Unread},
    },
    sync::room::engine::done,
};

/// Stores and reads the chunks of one document.
pub(super) struct Writer {
    pub(super) documents: Arc<Documents>,
    document: DocumentId,
    /// What writes build on.
    basis: Basis,
    /// A write under way, or reading what is left; none if there is neither.
    work: Option<BoxFuture<'static, Done>>,
    /// What is left is being read.
    is_reading: bool,
    /// Others have stored something that was not read.
    pub(super) has_unread: bool,
    /// What others have stored is being read.
    unread: Option<BoxFuture<'static, Unread>>,
}

/// How a write, or reading what is left, has ended.
enum Done {
    /// The chunk is durable.
    Saved(Put),
    /// The store has lost something. What it still has.
    Lost(Remains, Basis),
    /// The document was deleted since it was read.
    Deleted,
}

/// The document was deleted since it was read, or cannot be kept as it is. It has to be opened
/// again.
pub(super) struct Ended;

impl Writer {
    /// Creates a writer. `basis` is what was read of the document.
    pub(super) fn new(documents: Arc<Documents>, document: DocumentId, basis: Basis) -> Self {
        let (work, unread) = (None, None);
        Self { documents, document, basis, work, is_reading: false, has_unread: false, unread }
    }

    /// Begins to store a chunk, and to delete those that it replaces.
    pub(super) fn save(&mut self, key: Key, data: Bytes, replaces: Vec<Key>) {
        debug_assert!(!self.is_reading, "nothing is written before it is known what remains");
        let waiting = self.documents.unsaved_bytes(data.len());
        let (documents, document, basis) = (self.documents.clone(), self.document, self.basis);
        let write = async move {
            drop(waiting);
            let bytes = data.len();
            match documents.replace(&key, data, &replaces, basis).await {
                Ok(put) => Done::Saved(put),
                Err(Outdated::Deleted) => Done::Deleted,
                Err(Outdated::Lost) => {
                    let _waiting = documents.unsaved_bytes(bytes);
                    read(&documents, document, basis).await
                }
            }
        };
        self.work = Some(write.boxed());
    }

    /// Whether nothing is being written or read.
    pub(super) fn is_idle(&self) -> bool {
        self.work.is_none()
    }

    /// Whether the store has lost something since the document was read.
    pub(super) fn is_outdated(&self) -> bool {
        self.basis.losses != self.documents.store().losses()
    }

    /// Begins to read what is stored if the store has lost something since. Returns whether it does,
    /// of which the core must be told.
    pub(super) fn read_if_outdated(&mut self) -> bool {
        if self.is_reading || !self.is_outdated() {
            return false;
        }
        self.is_reading = true;
        let (documents, document, basis) = (self.documents.clone(), self.document, self.basis);
        let earlier = self.work.take();
        let read = async move {
            if let Some(earlier) = earlier
                && let ended @ (Done::Lost(..) | Done::Deleted) = earlier.await
            {
                return ended;
            }
            read(&documents, document, basis).await
        };
        self.work = Some(read.boxed());
        true
    }

    /// Begins to read what others have stored, if there is something. `known` returns the chunks
    /// that need not be read.
    pub(super) fn read_unread(&mut self, known: impl FnOnce() -> Vec<Key>) {
        if !self.has_unread || self.unread.is_some() {
            return;
        }
        self.has_unread = false;
        let (documents, document, basis) = (self.documents.clone(), self.document, self.basis);
        let known = known();
        let read = async move { documents.unread(document, known, basis).await };
        self.unread = Some(read.boxed());
    }

    /// Waits until something ends, and returns what the core has to know of it. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Vec<Event>, Ended> {
        tokio::select! {
            ended = done(&mut self.work) => self.end(ended),
            unread = done(&mut self.unread) => {
                self.unread = None;
                match unread {
                    Unread::Stored(stored, gone) => {
                        Ok(vec![Event::Stored(stored), Event::Gone(gone)])
                    }
                    Unread::Outdated => Err(Ended),
                }
            }
        }
    }

    /// A chunk that was stored before a loss may be gone: then what is stored is read first.
    fn end(&mut self, done: Done) -> Result<Vec<Event>, Ended> {
        (self.work, self.is_reading) = (None, false);
        match done {
            Done::Saved(_) if self.is_outdated() => Ok(Vec::new()),
            Done::Saved(Put::Made) => Ok(vec![Event::Saved]),
            Done::Saved(Put::MadeAs(key)) => Ok(vec![Event::SavedAs(key)]),
            Done::Lost(remains, basis) => {
                self.basis = basis;
                // There may be more than what is in memory.
                self.has_unread = true;
                Ok(vec![Event::Restored(remains)])
            }
            Done::Deleted => Err(Ended),
        }
    }
}

async fn read(documents: &Documents, document: DocumentId, basis: Basis) -> Done {
    match documents.remains(document, basis).await {
        Remaining::Stored(remains, basis) => Done::Lost(remains, basis),
        Remaining::Deleted => Done::Deleted,
    }
}
