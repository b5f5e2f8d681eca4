//! What a room's engine is: the part that synchronises one document.
//!
//! The room around it (`super::rooms`) knows who is in it, passes on ephemera, looks for documents that
//! nobody has brought yet, and unloads; the engine holds the document and a sync state for each session.

pub mod native;
pub mod pending;
pub mod samod;

use super::{
    follow::{Followers, What},
    look::EngineLook,
    session::Session,
    wire::{self, SyncMessage},
};
use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    document::compare::Ancestry,
    limits::{Charge, turns::Payer},
    observe::usage::Usage,
    storage::documents::{Documents, Opened},
    sync::room::pending::Pending,
};
use automerge::ChangeHash;
use bytes::Bytes;
use futures::future::BoxFuture;
use prometheus::IntCounter;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;

/// Where an engine sends what it has for one session.
#[derive(Clone)]
pub struct Port {
    session: Arc<Session>,
    document: DocumentId,
    answered: Arc<AtomicBool>,
    news: Arc<Notify>,
    watched: Watched,
}

/// Where what happens in a room is noted.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types say it")]
pub struct Watched {
    pub usage: Usage,
    pub followers: Arc<Followers>,
    /// Counts changes that were new.
    pub applied: IntCounter,
}

impl Port {
    /// The port of `session` in the room of `document`, which listens to `news`.
    pub fn new(
        session: Arc<Session>,
        document: DocumentId,
        news: Arc<Notify>,
        watched: Watched,
    ) -> Self {
        Self { session, document, answered: Arc::default(), news, watched }
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session.id
    }

    /// Send an automerge sync message; if there is no room for it the session is closed.
    pub fn sync(&self, data: &[u8]) {
        self.note_answer(data);
        self.session.send_sync(self.document, false, data);
    }

    /// Send an automerge sync message that was made while the session's queue was not [`full`](Self::full).
    pub fn sync_granted(&self, data: &[u8]) {
        self.note_answer(data);
        self.session.send_granted(self.document, data);
    }

    fn note_answer(&self, data: &[u8]) {
        if wire::heads_in(data).is_some_and(|heads| heads > 0) {
            self.answered.store(true, Ordering::Relaxed);
        }
        self.watched.usage.message(data.len());
        self.tell(|| What::Sent { kind: "sync".to_owned(), bytes: data.len() });
    }

    fn tell(&self, what: impl FnOnce() -> What) {
        self.watched.followers.tell(self.document, Some(&self.session), what);
    }

    /// Changes that the session sent were taken in, so many of them new.
    pub fn applied(&self, new_changes: u64) {
        self.watched.applied.inc_by(new_changes);
        self.tell(|| What::Applied { new_changes });
    }

    /// Whether the session may only read: what it sends of changes is not taken in.
    pub fn reads_only(&self) -> bool {
        !self.session.may_write(self.document)
    }

    /// Whether there is no room for messages to the session: what can wait is made later.
    pub fn full(&self) -> Arc<AtomicBool> {
        self.session.outbound.full().clone()
    }

    /// Have the engine [resumed](Engine::resume) when there is room.
    pub fn when_room(&self) {
        self.tell(|| What::KeptBack);
        self.session.outbound.notify_when_room(&self.news);
    }

    /// Who pays for what the session does.
    pub fn payer(&self) -> Payer {
        self.session.payer()
    }

    /// Have the session pay for processor time that its messages took, or pay it back where `sign` is -1.
    pub fn charge(&self, time: Duration, sign: i64) {
        self.session.charge(time, sign);
    }

    /// Refuse changes that the session sent: its peer is told, and may only read the document from now on.
    pub fn refuse(&self, reason: &str, label: &'static str) {
        self.tell(|| What::Refused { reason: reason.to_owned() });
        self.session.refuse_document(self.document, reason, label);
    }

    /// Whether the session was sent something of the document.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}

/// Synchronises one document with the sessions that joined it.
pub trait Engine: Send {
    /// Take in a session.
    fn join(&mut self, port: Port) -> BoxFuture<'_, ()>;

    /// Forget a session.
    fn leave(&mut self, session: SessionId);

    /// Take no changes of a session any more.
    fn reads_only(&mut self, session: SessionId) -> BoxFuture<'_, ()>;

    /// Take in a sync message of a session that has joined. `charge` is for its changes, and is
    /// kept when they are stored; none if it has none that may be. Waits while too much is under
    /// way.
    fn receive(
        &mut self,
        from: SessionId,
        request: bool,
        message: SyncMessage,
        charge: Option<Charge>,
    ) -> BoxFuture<'_, ()>;

    /// Answer what was taken in: called after all that came at once.
    fn settle(&mut self) -> BoxFuture<'_, ()>;

    /// There may be room for messages that were kept back; [`settle`](Self::settle) follows.
    fn resume(&mut self);

    /// Nothing has come for a while: keep as little memory as can be.
    fn rest(&mut self);

    /// Merge a snapshot of the same document; none if the engine has no document yet.
    fn merge(&mut self, snapshot: Bytes) -> BoxFuture<'_, Option<Ancestry>>;

    /// Wait for something that the engine has to do by itself, such as after a write, and do it. The wait may
    /// be given up at any time.
    ///
    /// # Errors
    /// The engine has failed: it answers nothing any more, and is to be dropped.
    fn work(&mut self) -> BoxFuture<'_, Result<(), EngineFailed>>;

    /// The heads up to which all is durable; none where the engine cannot tell, or not now.
    fn durable_heads(&self) -> Option<&[ChangeHash]>;

    /// What an operator sees of the document.
    fn look(&mut self) -> BoxFuture<'_, EngineLook>;

    /// Whether nothing is lost if the engine is dropped now.
    fn is_durable(&self) -> bool;

    /// Make all of it durable, and end. An engine that fails meanwhile leaves the rest in
    /// [`Pending`].
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}

/// A panic in an engine, or changes in it that cannot stay.
#[derive(Debug, Clone, Copy)]
pub struct EngineFailed {
    /// It was a panic.
    pub is_panic: bool,
    /// It is known who did it, and that session is closed.
    pub is_mended: bool,
}

/// What an engine starts from.
#[expect(missing_docs, reason = "the types say it")]
pub struct Start {
    pub documents: Arc<Documents>,
    pub document: DocumentId,
    pub opened: Opened,
    /// Where work beside the room's task is added to what the room costs.
    pub usage: Usage,
    pub pending: Arc<Pending>,
}

/// Starts an engine for a document.
pub type EngineStart = Arc<dyn Fn(Start) -> BoxFuture<'static, Box<dyn Engine>> + Send + Sync>;

/// Waits for the end of some work; for ever where there is none.
async fn done(work: &mut Option<BoxFuture<'static, ()>>) {
    match work {
        Some(work) => work.await,
        None => std::future::pending().await,
    }
}
