//! The documents that a session has open, and the way into their rooms. Only the session's own task
//! knows this.

use std::{collections::HashMap, sync::Arc};

use super::Session;
use crate::{
    base::document_id::DocumentId,
    sync::{
        room::mailbox::{Input, Mailbox, WeakMailbox},
        rooms::Rooms,
    },
};

/// The documents that one session has open.
pub(crate) struct Subscriptions {
    rooms: Arc<Rooms>,
    session: Arc<Session>,
    /// The mailbox of each document's room. A document that the session may not read has none, and
    /// the mailbox of a document that nobody has is gone.
    mailboxes: HashMap<DocumentId, WeakMailbox>,
}

impl Subscriptions {
    /// A session that has no document open.
    pub(crate) fn new(rooms: Arc<Rooms>, session: Arc<Session>) -> Self {
        Self { rooms, session, mailboxes: HashMap::new() }
    }

    /// Whether the session has `document` open, or fewer documents than `limit`.
    pub(crate) fn may_open(&self, document: DocumentId, limit: usize) -> bool {
        self.mailboxes.contains_key(&document) || self.mailboxes.len() < limit
    }

    /// Counts a document as open that the session may not read. Returns whether the session
    /// mentions it for the first time.
    pub(crate) fn open_denied(&mut self, document: DocumentId) -> bool {
        let is_first = !self.mailboxes.contains_key(&document);
        self.mailboxes.entry(document).or_default();
        is_first
    }

    /// The mailbox of a document's room. The session enters the room if it is not in it.
    pub(crate) async fn mailbox(&mut self, document: DocumentId) -> Mailbox {
        let known = self.mailboxes.get(&document).and_then(WeakMailbox::upgrade);
        match known {
            Some(mailbox) => mailbox,
            None => self.enter(document).await,
        }
    }

    async fn enter(&mut self, document: DocumentId) -> Mailbox {
        let mailbox = self.rooms.enter(document, &self.session).await;
        self.mailboxes.insert(document, mailbox.downgrade());
        mailbox
    }

    /// Sends an input to a document's room.
    pub(crate) async fn deliver(&mut self, document: DocumentId, input: Input) {
        let mut mailbox = self.mailbox(document).await;
        let mut input = Box::new(input);
        while let Err(returned) = mailbox.send(input).await {
            // That room has ended.
            input = returned;
            mailbox = self.enter(document).await;
        }
    }

    /// Subscribes to the durable heads of all documents that have a room. Returns how many these
    /// are.
    pub(crate) async fn subscribe_to_durable(&mut self) -> u64 {
        let documents: Vec<DocumentId> = self.mailboxes.keys().copied().collect();
        let mut count = 0;
        for document in documents {
            let mailbox = self.mailboxes.get(&document).and_then(WeakMailbox::upgrade);
            let is_open = mailbox.is_some_and(|mailbox| !mailbox.is_closed());
            // A room that was about to unload may go on with another mailbox.
            if is_open || self.rooms.is_member(document, self.session.id) {
                let from = self.session.clone();
                self.deliver(document, Input::Subscribe { from }).await;
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
        let mailbox = self.mailboxes.get(&document);
        mailbox.is_some_and(|mailbox| mailbox.has_passed_on(author, author_session, count))
    }

    /// Leaves all rooms. The session sends nothing after this.
    pub(crate) fn leave_all(&mut self) {
        for document in std::mem::take(&mut self.mailboxes).into_keys() {
            self.rooms.leave(document, self.session.id);
        }
    }
}
