//! The live documents.
//!
//! A document has a room from a session's first mention of it until some time after the last
//! session left. A document that nobody has is only an entry of the directory, with the sessions
//! that wait for it.
//!
//! When a room's task panics, its sessions are closed, and what it left unsaved goes to the
//! document's next room (`abandon`).

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Weak, atomic::Ordering},
};

use futures::FutureExt;
use tokio_util::task::TaskTracker;
use tracing::error;

use super::{
    close_reason::CloseReason,
    events::{Following, What},
    room::{
        directory::{Directory, Found, Kept, RoomHandle},
        mailbox::{Inbox, Mailbox},
        members::{Members, WithoutRoom},
        shared::{Needs, Shared},
        state::Room,
    },
    session::Session,
};
use crate::{
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    observe::usage::Polled,
};

/// All rooms. They end when this is dropped.
pub struct Rooms {
    /// What they share.
    pub(crate) shared: Arc<Shared>,
    tasks: TaskTracker,
}

/// Documents whose rooms have not ended.
#[derive(Debug, Default)]
pub struct Late {
    /// They may have changes that are not durable.
    pub unsaved: Vec<DocumentId>,
    /// They are not in memory: nothing of them can be lost.
    pub loading: Vec<DocumentId>,
}

impl Rooms {
    /// No room yet.
    pub fn new(needs: Needs) -> Arc<Self> {
        Arc::new(Self { shared: Arc::new(Shared::new(needs)), tasks: TaskTracker::new() })
    }

    /// One room's share of the receive queue, in KiB.
    pub fn receive_share(&self) -> u32 {
        self.shared.receive_share()
    }

    /// Whether an operator follows what happens to any document.
    pub(super) fn is_any_followed(&self) -> bool {
        self.shared.followers.is_any_followed()
    }

    /// The mailbox of a document's room, for a session that mentions the document. Makes the room
    /// if there is none.
    pub async fn enter(self: &Arc<Self>, document: DocumentId, session: &Arc<Session>) -> Mailbox {
        loop {
            let retired = {
                let mut directory = self.shared.directory();
                match directory.enter(document, session) {
                    Found::Room(mailbox) => return mailbox,
                    Found::Retiring(retired) => retired,
                    Found::Nothing => return self.open(&mut directory, document, Some(session)),
                }
            };
            retired.cancelled().await;
        }
    }

    /// Starts the room of a document that has none.
    pub(super) fn open(
        self: &Arc<Self>,
        directory: &mut Directory,
        document: DocumentId,
        first: Option<&Arc<Session>>,
    ) -> Mailbox {
        let waiting: Vec<WithoutRoom> = directory.take_waiting(document);
        self.shared.metrics.rooms.waiting.sub(i64::from(!waiting.is_empty()));
        let members = Members::of_waiting(&waiting, &self.shared.peers);
        if let Some(session) = first {
            members.enter(session);
        }
        let share = self.shared.receive_share();
        let (handle, inbox) = RoomHandle::new(document, Kept::of(members), share);
        self.start(directory, handle, inbox)
    }

    /// Starts a room's task.
    fn start(
        self: &Arc<Self>,
        directory: &mut Directory,
        handle: Arc<RoomHandle>,
        inbox: Inbox,
    ) -> Mailbox {
        let (document, usage) = (handle.document, handle.usage.clone());
        directory.add(handle.clone());
        let mailbox = handle.mailbox.clone();
        let room = Room::new(self.shared.clone(), handle, inbox);
        let rooms: Weak<Self> = Arc::downgrade(self);
        let polls = self.shared.metrics.process.poll_seconds.with_label_values(&["room"]);
        let polled = Polled::new(room.run(), polls).charged_to(&usage);
        self.tasks.spawn(async move {
            if AssertUnwindSafe(polled).catch_unwind().await.is_err() {
                error!(%document, "the document's room panicked; closing its sessions");
                if let Some(rooms) = rooms.upgrade() {
                    rooms.abandon(document);
                }
            }
        });
        mailbox
    }

    /// Begins work that ends with the rooms.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.shared.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    /// Tells a document's room that a session has left it.
    pub fn leave(&self, document: DocumentId, session: SessionId) {
        if self.shared.directory().leave(document, session) {
            self.shared.metrics.rooms.waiting.dec();
        }
    }

    /// Records the answer of a peer that lacks a document. Returns whether it was asked for it.
    pub fn record_lacking(&self, document: DocumentId, session: SessionId) -> bool {
        let directory = self.shared.directory();
        let Some(handle) = directory.room(document) else { return false };
        let mut asked = lock(&handle.asked);
        let Some(answered) = asked.get_mut(&session) else { return false };
        *answered = true;
        handle.answer.notify_one();
        true
    }

    /// Tells every room of a document of the served bundle that the bundle has changed, and opens
    /// those that sessions wait for.
    pub fn bundle_changed(self: &Arc<Self>) {
        let mut directory = self.shared.directory();
        for document in directory.documents() {
            if self.shared.documents.seed(document).is_none() {
                continue;
            }
            match directory.room(document) {
                Some(handle) => handle.bundle_changed(),
                None => _ = self.open(&mut directory, document, None),
            }
        }
    }

    /// Opens a document again whose stored chunks were changed by something other than its room: an
    /// import, or because it was deleted or blocked.
    pub fn reopen(self: &Arc<Self>, document: DocumentId) {
        let mut directory = self.shared.directory();
        match directory.room(document) {
            Some(handle) => handle.storage_changed(),
            None if directory.is_awaited(document) => {
                self.open(&mut directory, document, None);
            }
            None => {}
        }
    }

    /// Whether a session is in the room of a document.
    pub(crate) fn is_member(&self, document: DocumentId, session: SessionId) -> bool {
        self.shared.directory().is_in(document, session)
    }

    /// Follows what happens to a document. None if too many documents are followed.
    pub fn follow(&self, document: DocumentId) -> Option<Following> {
        self.shared.followers.follow(document)
    }

    /// Reports to followers that a session was refused a document.
    pub(crate) fn report_refused(&self, document: DocumentId, session: &Session, reason: &str) {
        let what = || What::Refused { reason: reason.to_owned() };
        self.shared.followers.report(document, Some(session), what);
    }

    /// How many documents have a room, and how many are waited for without one.
    pub fn count(&self) -> (usize, usize) {
        self.shared.directory().count()
    }

    /// Makes all documents durable and ends all rooms. [`Self::late`] names those that have not
    /// ended.
    pub async fn stop(&self) {
        self.shared.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The documents whose rooms have not ended.
    pub fn late(&self) -> Late {
        let mut late = Late::default();
        for handle in self.shared.directory().rooms() {
            let has_unsaved =
                handle.has_engine.load(Ordering::Relaxed) || !handle.pending.is_empty();
            let documents = if has_unsaved { &mut late.unsaved } else { &mut late.loading };
            documents.push(handle.document);
        }
        late
    }

    /// Cleans up after a room's task that has panicked. What it left unsaved is for the document's
    /// next room.
    fn abandon(self: &Arc<Self>, document: DocumentId) {
        self.shared.metrics.rooms.panics.inc();
        let mut directory = self.shared.directory();
        let Some(handle) = directory.room(document).cloned() else { return };
        directory.retire(&handle, Vec::new());
        for session in handle.members.sessions() {
            session.close(CloseReason::RoomPanic);
        }
        if handle.pending.hand_over(&self.shared.documents) {
            let share = self.shared.receive_share();
            let (next, inbox) = RoomHandle::new(document, handle.kept_without_members(), share);
            self.start(&mut directory, next, inbox);
        }
        handle.retired.cancel();
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
    }
}
