//! What a room needs of an engine, the part that synchronizes one document.
//!
//! The room (`super::task`) knows who is in it, passes on presence, looks for documents that nobody
//! has brought yet, and unloads. The engine holds the document and a sync state for each session.

use std::sync::Arc;

use automerge::ChangeHash;
use bytes::Bytes;
use futures::future::BoxFuture;

use super::{members::Members, pending::Pending, port::Port};
use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    document::{merge::Ancestry, sync_message::SyncMessage},
    limits::Charge,
    observe::usage::Usage,
    storage::{
        documents::{Documents, Opened},
        live::News,
    },
    sync::report::EngineReport,
};

/// Synchronizes one document with the sessions that joined it.
pub trait Engine: Send {
    /// Adds a session.
    fn join(&mut self, port: Port) -> BoxFuture<'_, ()>;

    /// Removes a session.
    fn leave(&mut self, session: SessionId);

    /// Refuses changes of a session from now on.
    fn reads_only(&mut self, session: SessionId) -> BoxFuture<'_, ()>;

    /// Handles a sync message of a session that has joined. `charge` is for its changes, and is
    /// kept when they are stored; none if the message has no changes that may be stored. Waits
    /// while too much is in progress.
    fn receive(
        &mut self,
        from: SessionId,
        request: bool,
        message: SyncMessage,
        charge: Option<Charge>,
    ) -> BoxFuture<'_, ()>;

    /// Answers the messages that were handled. Called after each batch of them.
    fn settle(&mut self) -> BoxFuture<'_, ()>;

    /// Tries messages again that were kept back, and looks whether the store has lost something.
    /// [`settle`](Self::settle) follows.
    fn resume(&mut self);

    /// Applies what other relays have stored of the document. [`settle`](Self::settle) follows.
    /// Returns false if the engine cannot, and the document has to be opened again.
    fn follow(&mut self, news: News) -> bool;

    /// Frees what memory it can: the room is quiet.
    fn rest(&mut self);

    /// Merges a snapshot of the same document. None if the engine has no document yet.
    fn merge(&mut self, snapshot: Bytes) -> BoxFuture<'_, Option<Ancestry>>;

    /// Waits for something that the engine has to do by itself, such as after a write, and does it.
    /// The wait may be cancelled at any time.
    ///
    /// # Errors
    /// The engine has failed and is to be dropped.
    fn work(&mut self) -> BoxFuture<'_, Result<(), EngineFailed>>;

    /// The document's heads, sorted, if the answer to an acknowledgement of these can wait. None if
    /// the engine does not know them now.
    fn heads(&self) -> Option<&[ChangeHash]>;

    /// The heads up to which everything is durable. None if the engine does not know them now.
    fn durable_heads(&self) -> Option<&[ChangeHash]>;

    /// Reports what an operator sees of the document.
    fn report(&mut self) -> BoxFuture<'_, EngineReport>;

    /// Whether nothing is lost if the engine is dropped now.
    fn is_durable(&self) -> bool;

    /// Makes everything durable, and ends.
    ///
    /// # Errors
    /// It has failed meanwhile, and leaves the rest in [`Pending`].
    fn close(self: Box<Self>) -> BoxFuture<'static, Result<(), EngineFailed>>;
}

/// A panic in an engine, or changes in its document that it cannot undo.
#[derive(Debug, Clone, Copy)]
pub struct EngineFailed {
    /// It was a panic.
    pub is_panic: bool,
    /// The session that caused it is known, and may only read the document from now on.
    pub is_attributed: bool,
}

/// What an engine starts from.
#[expect(missing_docs, reason = "the types say it")]
pub struct Start {
    pub documents: Arc<Documents>,
    pub document: DocumentId,
    pub opened: Opened,
    /// The room's members, with the way to each of them.
    pub members: Arc<Members>,
    /// Where work outside of the room's task is added to what the room costs.
    pub usage: Usage,
    pub pending: Arc<Pending>,
    /// The relay's rank for the document: lower ranks compact it earlier.
    pub rank: usize,
}

/// Starts an engine for a document.
pub type EngineStart = Arc<dyn Fn(Start) -> BoxFuture<'static, Box<dyn Engine>> + Send + Sync>;

/// Waits for the end of some work, or forever if there is none.
pub(super) async fn done<T>(work: &mut Option<BoxFuture<'static, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
