//! The way from a room's engine to one of its members.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use prometheus::IntCounter;
use tokio::sync::Notify;

use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    document::sync_message::heads_in,
    limits::turns::Payer,
    observe::usage::Usage,
    sync::{
        events::{Followers, What},
        session::Session,
    },
};

/// The way from an engine to one member.
#[derive(Clone)]
pub struct Port {
    session: Arc<Session>,
    answered: Arc<AtomicBool>,
    room: Arc<PortRoom>,
}

/// What the ports of one room have in common. Most of a large relay's memory is for members that do
/// nothing, so a port has no copy of it.
#[expect(missing_docs, reason = "the types say it")]
pub struct PortRoom {
    pub document: DocumentId,
    /// Notified when a send queue has room again.
    pub news: Arc<Notify>,
    pub usage: Usage,
    pub followers: Arc<Followers>,
    /// Counts changes that were new.
    pub applied: IntCounter,
}

impl Port {
    /// The port of `session` in a room.
    pub fn new(session: Arc<Session>, room: Arc<PortRoom>) -> Self {
        Self { session, answered: Arc::default(), room }
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.session.id
    }

    /// Queues an automerge sync message. Closes the session if it does not fit.
    pub fn sync(&self, data: &[u8]) {
        self.record_sent(data);
        self.session.send_sync(self.room.document, false, data);
    }

    /// Queues an automerge sync message that was made while the session's queue was not
    /// [`full`](Self::full).
    pub fn sync_granted(&self, data: &[u8]) {
        self.record_sent(data);
        self.session.send_granted(self.room.document, data);
    }

    fn record_sent(&self, data: &[u8]) {
        if heads_in(data).is_some_and(|heads| heads > 0) {
            self.answered.store(true, Ordering::Relaxed);
        }
        self.room.usage.message(data.len());
        self.report(|| What::Sent { kind: "sync".to_owned(), bytes: data.len() });
    }

    fn report(&self, what: impl FnOnce() -> What) {
        self.room.followers.report(self.room.document, Some(&self.session), what);
    }

    /// Records that changes of the session were applied, and how many of them were new.
    pub fn applied(&self, new_changes: u64) {
        self.room.applied.inc_by(new_changes);
        self.report(|| What::Applied { new_changes });
    }

    /// Whether the session may only read the document: its changes are refused.
    pub fn reads_only(&self) -> bool {
        !self.session.may_write(self.room.document)
    }

    /// Whether the session's queue is full: messages that can wait are made later.
    pub fn full(&self) -> Arc<AtomicBool> {
        self.session.outbound.full().clone()
    }

    /// Has the room resume its engine when the queue is no longer full.
    pub fn when_room(&self) {
        self.report(|| What::KeptBack);
        self.session.outbound.notify_when_room(&self.room.news);
    }

    /// The payer of long work for the session.
    pub fn payer(&self) -> Payer {
        self.session.payer()
    }

    /// Charges the session for processor time that its messages took, or refunds it if `sign` is
    /// -1.
    pub fn charge(&self, time: Duration, sign: i64) {
        self.session.charge(time, sign);
    }

    /// Refuses changes of the session. Its peer is told so, and may only read the document from now
    /// on.
    pub fn refuse(&self, reason: &str, label: &'static str) {
        self.report(|| What::Refused { reason: reason.to_owned() });
        self.session.refuse_document(self.room.document, reason, label);
    }

    /// Whether the session was sent a message with heads of the document.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}
