//! The documents that a session has open, and the way into their rooms. Only the session's own task
//! knows this.

use std::{collections::HashMap, sync::Arc};

use super::Session;
use crate::{
    base::document_id::DocumentId,
    sync::{
        room::{
            input::Input,
            mailbox::{Mailbox, WeakMailbox},
        },
        rooms::Rooms,
    },
};

/// The documents that one session has open.
pub(crate) struct Subscriptions {
    rooms: Arc<Rooms>,
    session: Arc<Session>,
    /// A document that the session may not read has no mailbox, and the mailbox of a document that
    /// nobody has is gone.
    open: HashMap<DocumentId, Open>,
}

/// A document that is open.
#[derive(Default)]
struct Open {
    /// The mailbox of its room.
    mailbox: WeakMailbox,
    /// The room was sent a sync message of the session.
    has_synced: bool,
}

impl Subscriptions {
    /// A session that has no document open.
    pub(crate) fn new(rooms: Arc<Rooms>, session: Arc<Session>) -> Self {
        Self { rooms, session, open: HashMap::new() }
    }

    /// Whether the session has `document` open, or fewer documents than `limit`.
    pub(crate) fn may_open(&self, document: DocumentId, limit: usize) -> bool {
        self.open.contains_key(&document) || self.open.len() < limit
    }

    /// Counts a document as open that the session may not read. Returns whether the session
    /// mentions it for the first time.
    pub(crate) fn open_denied(&mut self, document: DocumentId) -> bool {
        let is_first = !self.open.contains_key(&document);
        self.open.entry(document).or_default();
        is_first
    }

    /// The mailbox of a document's room. The session enters the room if it is not in it.
    pub(crate) async fn mailbox(&mut self, document: DocumentId) -> Mailbox {
        match self.known_mailbox(document) {
            Some(mailbox) => mailbox,
            None => self.enter(document).await,
        }
    }

    fn known_mailbox(&self, document: DocumentId) -> Option<Mailbox> {
        self.open.get(&document)?.mailbox.upgrade()
    }

    async fn enter(&mut self, document: DocumentId) -> Mailbox {
        let mailbox = self.rooms.enter(document, &self.session).await;
        self.open.insert(document, Open { mailbox: mailbox.downgrade(), has_synced: false });
        mailbox
    }

    /// [Delays](Mailbox::delay) a sync message in the mailbox of a document's room.
    ///
    /// # Errors
    /// Returns the message if it is to be delivered: its answer cannot wait, it is the session's
    /// first one, or somebody follows what happens.
    pub(crate) fn delay(
        &self,
        document: DocumentId,
        message: Box<Input>,
    ) -> Result<(), Box<Input>> {
        let open = self.open.get(&document).filter(|open| open.has_synced);
        let mailbox = open.and_then(|open| open.mailbox.upgrade());
        match mailbox.filter(|_| !self.rooms.is_any_followed()) {
            Some(mailbox) => mailbox.delay(message),
            None => Err(message),
        }
    }

    /// Sends an input to a document's room.
    pub(crate) async fn deliver(&mut self, document: DocumentId, mut input: Box<Input>) {
        let is_sync = matches!(*input, Input::Sync { .. });
        let mut mailbox = self.mailbox(document).await;
        while let Err(returned) = mailbox.send(input).await {
            // That room has ended.
            input = returned;
            mailbox = self.enter(document).await;
        }
        if let Some(open) = self.open.get_mut(&document) {
            open.has_synced |= is_sync;
        }
    }

    /// Subscribes to the durable heads of all documents that have a room. Returns how many these
    /// are.
    pub(crate) async fn subscribe_to_durable(&mut self) -> u64 {
        let documents: Vec<DocumentId> = self.open.keys().copied().collect();
        let mut count = 0;
        for document in documents {
            let mailbox = self.known_mailbox(document);
            let is_open = mailbox.is_some_and(|mailbox| !mailbox.is_closed());
            // A room that was about to unload may go on with another mailbox.
            if is_open || self.rooms.is_member(document, self.session.id) {
                let from = self.session.clone();
                self.deliver(document, Box::new(Input::Subscribe { from })).await;
                count += 1;
            }
        }
        count
    }

    /// Whether an ephemeral message is one that the relay sent to this session: automerge-repo
    /// sends what it hears to all of its peers but the author.
    pub(crate) fn is_echo(
        &self,
        document: DocumentId,
        author: &str,
        author_session: &str,
        count: u64,
    ) -> bool {
        let open = self.open.get(&document);
        open.is_some_and(|open| open.mailbox.has_passed_on(author, author_session, count))
    }

    /// Leaves all rooms. The session sends nothing after this.
    pub(crate) fn leave_all(&mut self) {
        for document in std::mem::take(&mut self.open).into_keys() {
            self.rooms.leave(document, self.session.id);
        }
    }
}
