//! Where each message of a session goes: to a document's room, by its document id, or nowhere.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;
use tracing::{debug, warn};

use super::{
    Session, handshake::garbage, rate_limit::Load, shared::Sessions, subscriptions::Subscriptions,
};
use crate::{
    base::document_id::DocumentId,
    document::sync_message::{BadSyncMessage, SyncMessage, heads_in},
    sync::{
        close_reason::CloseReason,
        room::input::{Input, ReceivePermit},
        wire::{Body, Message, Truncated},
    },
};

/// Unpacked bytes that count as one received byte. An operation of a document is 100 unpacked
/// bytes, and about four received bytes of what people write.
const UNPACKED_WEIGHS: u64 = 4;

/// Routes the messages of one session.
pub(super) struct Router<'a> {
    sessions: &'a Sessions,
    session: Arc<Session>,
    subscriptions: Subscriptions,
}

impl<'a> Router<'a> {
    pub(super) fn new(sessions: &'a Sessions, session: Arc<Session>) -> Self {
        let subscriptions = Subscriptions::new(sessions.rooms.clone(), session.clone());
        Self { sessions, session, subscriptions }
    }

    /// Leaves all rooms.
    pub(super) fn leave_all(&mut self) {
        self.subscriptions.leave_all();
    }

    /// Handles a message, and adds to `load` what it counts as.
    ///
    /// # Errors
    /// The session is to be closed for it.
    pub(super) async fn route(&mut self, frame: Bytes, load: &mut Load) -> Result<(), CloseReason> {
        let message = Message::decode(&frame).map_err(garbage)?;
        self.sessions.count_received(&message, frame.len());
        self.session.usage.message(frame.len());
        if !self.is_acceptable(&message) {
            return Ok(());
        }
        let bytes = |data: Cow<'_, [u8]>| match data {
            Cow::Borrowed(data) => frame.slice_ref(data),
            Cow::Owned(data) => data.into(),
        };
        match message.body {
            Body::Sync { document, data, .. } if !self.session.may_read(document) => {
                self.deny(document, heads_in(&data) == Some(0))
            }
            Body::Ephemeral { document, .. } if !self.session.may_read(document) => {
                self.deny(document, false)
            }
            Body::Sync { document, request, data } => {
                self.route_sync(document, request, bytes(data), frame.len(), load).await
            }
            Body::Ephemeral { document, .. } if !self.may_send_presence(document) => {
                self.dropped("readonly_presence")
            }
            Body::Ephemeral { document, count, session: author_session, data } => {
                let permit = self.receive_permit(document, frame.len()).await?;
                let input = Input::Ephemeral {
                    from: self.session.clone(),
                    author: message.sender.unwrap_or_default().into_owned(),
                    author_session: author_session.into_owned(),
                    count,
                    data: bytes(data),
                    permit,
                };
                self.subscriptions.deliver(document, Box::new(input)).await;
                Ok(())
            }
            Body::DocUnavailable { document } => {
                self.sessions.rooms.record_lacking(document, self.session.id);
                Ok(())
            }
            Body::Leave => Err(CloseReason::Left),
            Body::Error { message } => {
                debug!(
                    peer = %self.session.peer_id, connection = %self.session.id, %message,
                    "the peer reports an error"
                );
                Ok(())
            }
            Body::Join { .. } | Body::Peer => self.dropped("second_handshake"),
            Body::RemoteSubscriptionChange { add, remove } => {
                // As many messages are the answer.
                load.messages += self.change_subscription(&add, &remove).await;
                Ok(())
            }
            Body::UnusableId { kind, id } => {
                self.refuse_id(kind, &id);
                Ok(())
            }
            // The relay does not track the heads of other storages.
            Body::RemoteHeadsChanged => Ok(()),
            Body::Unknown => self.dropped("unknown_type"),
        }
    }

    /// Whether a message is addressed to the relay, by a sender that the session may speak for.
    /// Counts one that is not.
    fn is_acceptable(&self, message: &Message<'_>) -> bool {
        let (sessions, session) = (self.sessions, &self.session);
        let us = &sessions.names.peer_id;
        if message.target.as_deref().is_some_and(|target| target != &**us) {
            sessions.dropped(session, "target");
            return false;
        }
        let is_theirs = match (&message.body, message.sender.as_deref()) {
            (_, None) => true,
            (Body::Ephemeral { .. }, Some(author)) => sessions.peers.claim_author(session, author),
            (_, Some(sender)) => sender == &*session.peer_id,
        };
        if is_theirs {
            return true;
        }
        if self.is_echo(message) {
            sessions.observed.counts.dropped("echo");
        } else {
            sessions.dropped(session, "sender");
        }
        false
    }

    /// Whether a message under another peer's name is presence that the relay sent to the session
    /// before.
    fn is_echo(&self, message: &Message<'_>) -> bool {
        match (&message.body, message.sender.as_deref()) {
            (Body::Ephemeral { document, count, session: of, .. }, Some(author)) => {
                self.subscriptions.is_echo(*document, author, of, *count)
            }
            _ => false,
        }
    }

    fn may_send_presence(&self, document: DocumentId) -> bool {
        self.session.may_write(document) || self.sessions.config.borrow().auth.readonly_presence
    }

    async fn route_sync(
        &mut self,
        document: DocumentId,
        request: bool,
        data: Bytes,
        frame_len: usize,
        load: &mut Load,
    ) -> Result<(), CloseReason> {
        let (sessions, session) = (self.sessions, &self.session);
        let Some(message) = self.read_sync(document, data).await? else {
            return Ok(());
        };
        // What it unpacks to counts too: that is what it costs.
        load.bytes = load.bytes.max(message.unpacked.bytes / UNPACKED_WEIGHS);
        // A session that lacks a document that it was asked for is told when somebody brings it.
        // Half of the documents that it may have open are reserved for those that it opens itself.
        let limit = sessions.config.borrow().limits.documents_per_connection / 2;
        if !message.has_heads()
            && sessions.rooms.record_lacking(document, session.id)
            && !self.subscriptions.may_open(document, limit)
        {
            return Ok(());
        }
        if sessions.documents.unsaved() > sessions.config.borrow().storage.max_unsaved.0 {
            return Err(self.close_for(document, CloseReason::Unsaved));
        }
        let permit = self.receive_permit(document, frame_len).await?;
        let from = self.session.clone();
        let mut input = Box::new(Input::Sync { from, request, message, permit });
        if sessions.receiving.is_half_free() {
            input = match self.subscriptions.delay(document, input) {
                Ok(()) => return Ok(()),
                Err(input) => input,
            };
        }
        self.subscriptions.deliver(document, input).await;
        Ok(())
    }

    /// Reads a sync message. A message that its document may not have is refused for that document
    /// alone. The changes of a peer that had some of the document's refused before are dropped; the
    /// rest of such a message still counts. Returns none if nothing is left of it.
    async fn read_sync(
        &self,
        document: DocumentId,
        data: Bytes,
    ) -> Result<Option<SyncMessage>, CloseReason> {
        let (sessions, session) = (self.sessions, &self.session);
        let garbage = |why: BadSyncMessage| CloseReason::Malformed(format!("data {why}"));
        if !session.is_refused(document) {
            let max_inflated = sessions.config.borrow().sync.max_inflated;
            let copy = data.clone();
            let read = move || SyncMessage::read(copy, max_inflated);
            let why = match sessions.read(session, data.len(), read).await? {
                Ok(message) => return Ok(Some(message)),
                Err(why) => why,
            };
            let Some(label) = why.of_document() else { return Err(garbage(why)) };
            sessions.rooms.report_refused(document, session, &why.to_string());
            session.refuse_document(
                document,
                &format!("the message about {document} {why}"),
                label,
            );
        }
        let (size, read) = (data.len(), move || SyncMessage::read_without_changes(data));
        match sessions.read(session, size, read).await? {
            Ok((message, had_changes)) => {
                if had_changes {
                    session.refuse_changes(document);
                }
                Ok(Some(message))
            }
            Err(why) if why.of_document().is_some() => {
                session.refuse_changes(document);
                Ok(None)
            }
            Err(why) => Err(garbage(why)),
        }
    }

    /// Refuses a message that is too large, for its document alone.
    ///
    /// # Errors
    /// The session is to be closed for it.
    pub(super) fn refuse_truncated(&mut self, message: &Truncated<'_>) -> Result<(), CloseReason> {
        let (sessions, session) = (self.sessions, self.session.clone());
        let Truncated { sender, target, kind, id, size } = message;
        sessions.count_bytes(kind, *size);
        session.usage.message(usize::try_from(*size).unwrap_or(usize::MAX));
        if target.as_deref().is_some_and(|target| target != &*sessions.names.peer_id) {
            return self.dropped("target");
        }
        let max_message = sessions.config.borrow().sync.max_message;
        let why = format!("is larger than {max_message} (sync.max_message)");
        if *kind == "ephemeral" {
            session.send_error(&format!("document {id}: presence {why}"));
            return self.dropped("too_large");
        }
        if sender.as_deref().is_some_and(|sender| sender != &*session.peer_id) {
            return self.dropped("sender");
        }
        let Ok(document) = id.parse::<DocumentId>() else {
            self.refuse_id(kind, id);
            return Ok(());
        };
        if !session.may_read(document) {
            return self.deny(document, false);
        }
        if !session.is_refused(document) {
            sessions.rooms.report_refused(document, &session, &why);
            let reason = format!("the message about {document} {why}");
            session.refuse_document(document, &reason, "too_large");
        }
        session.refuse_changes(document);
        Ok(())
    }

    /// Treats a document that the peer may not read as one that does not exist: the peer waits for
    /// it. The answer is about its rights, and the same whether or not the document exists.
    fn deny(&mut self, document: DocumentId, is_request: bool) -> Result<(), CloseReason> {
        self.check_may_open(document)?;
        if self.subscriptions.open_denied(document) {
            self.session.deny_document(document, "your token does not let you read it");
        } else if is_request {
            self.session.send_unavailable(document);
        }
        self.dropped("no_right")
    }

    /// Drops a message with a document id that this relay cannot use. The session's other documents
    /// are not affected.
    fn refuse_id(&self, kind: &str, id: &str) {
        let (observed, session) = (&self.sessions.observed, &self.session);
        observed.counts.dropped("document_id");
        if matches!(kind, "request" | "sync") {
            session.deny_document(id, "its id is not base58check of 16 bytes");
        }
        if let Some(times) = observed.repeats.pass(&session.peer_id, "document_id") {
            warn!(
                peer = %session.peer_id, connection = %session.id, times,
                "dropped a {kind} message: its document id {id:?} is not base58check of 16 bytes"
            );
        }
    }

    /// Subscribes to the durable heads of the relay's storage, or ends that. Returns the heads of
    /// how many documents are sent because of it.
    async fn change_subscription(&mut self, add: &[Cow<'_, str>], remove: &[Cow<'_, str>]) -> u64 {
        let is_ours = |id: &Cow<'_, str>| **id == *self.sessions.names.storage_id;
        if remove.iter().any(is_ours) {
            self.session.subscribe(false);
        }
        if add.iter().any(is_ours) && !self.session.subscribe(true) {
            return self.subscriptions.subscribe_to_durable().await;
        }
        0
    }

    /// Waits for a message's share of the receive queue: of its room's part, then of all.
    async fn receive_permit(
        &mut self,
        document: DocumentId,
        bytes: usize,
    ) -> Result<ReceivePermit, CloseReason> {
        self.check_may_open(document)?;
        let receiving = &self.sessions.receiving;
        let permits = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let permits = permits.clamp(1, self.sessions.rooms.receive_share().min(receiving.permits));
        let room = self.subscriptions.mailbox(document).await;
        let of_room = room.receive_permits(permits).await;
        // The semaphore is never closed.
        let of_all = receiving.queue.clone().acquire_many_owned(permits).await.ok();
        let unread = self.sessions.observed.counts.unread();
        Ok(ReceivePermit::new([of_room, of_all], bytes, unread))
    }

    /// Checks that the session may have a document open.
    fn check_may_open(&self, document: DocumentId) -> Result<(), CloseReason> {
        let limit = self.sessions.config.borrow().limits.documents_per_connection;
        if self.subscriptions.may_open(document, limit) {
            return Ok(());
        }
        Err(self.close_for(document, CloseReason::Documents(limit)))
    }

    /// Returns why the session is to be closed because of a document, after reporting it to those
    /// who follow the document.
    fn close_for(&self, document: DocumentId, reason: CloseReason) -> CloseReason {
        self.sessions.rooms.report_refused(document, &self.session, &reason.to_string());
        reason
    }

    fn dropped(&self, reason: &'static str) -> Result<(), CloseReason> {
        self.sessions.dropped(&self.session, reason);
        Ok(())
    }
}
