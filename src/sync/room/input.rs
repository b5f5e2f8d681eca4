//! What a room is sent.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    document::sync_message::SyncMessage,
    sync::{report::LiveDocument, session::Session},
};

/// What a room is sent. The messages of one session and its leaving arrive in their order.
///
/// All but [`Leave`](Self::Leave) are messages, which wait for a slot of the mailbox.
pub enum Input {
    /// An automerge sync message.
    Sync {
        /// The session that sent it.
        from: Arc<Session>,
        /// Whether the peer does not hold the document.
        request: bool,
        /// The message.
        message: SyncMessage,
        /// Its share of the receive queue.
        permit: ReceivePermit,
    },
    /// Presence and the like.
    Ephemeral {
        /// The session that brought it.
        from: Arc<Session>,
        /// Its author's peer id.
        author: String,
        /// Its author's session, as automerge-repo names it: new each time the author starts.
        author_session: String,
        /// The author's count of such messages.
        count: u64,
        /// The payload.
        data: Bytes,
        /// Its share of the receive queue.
        permit: ReceivePermit,
    },
    /// A session subscribes to the heads that are durable.
    Subscribe {
        /// The session.
        from: Arc<Session>,
    },
    /// A session has left the room. It sends nothing after this.
    Leave {
        /// The session.
        session: SessionId,
    },
    /// An operator inspects the document.
    Inspect {
        /// Where the report goes.
        reply: oneshot::Sender<LiveDocument>,
    },
}

impl Input {
    /// The session that sent a sync message.
    pub(super) fn sync_sender(&self) -> Option<SessionId> {
        match self {
            Self::Sync { from, .. } => Some(from.id),
            _ => None,
        }
    }

    /// When a sync message was received that was not delayed.
    pub(super) fn received_at(&self) -> Option<Instant> {
        match self {
            Self::Sync { permit, .. } if !permit.is_delayed => Some(permit.since),
            _ => None,
        }
    }

    /// Whether it is a message of `session`.
    pub(super) fn is_from(&self, session: SessionId) -> bool {
        match self {
            Self::Sync { from, .. } | Self::Ephemeral { from, .. } | Self::Subscribe { from } => {
                from.id == session
            }
            Self::Leave { .. } | Self::Inspect { .. } => false,
        }
    }

    /// Whether it names heads of the document, from a session that may write it.
    pub(super) fn brings_heads(&self, document: DocumentId) -> bool {
        match self {
            Self::Sync { from, message, .. } => message.has_heads() && from.may_write(document),
            _ => false,
        }
    }

    /// Whether it is a sync message with changes.
    pub(super) fn has_changes(&self) -> bool {
        matches!(self, Self::Sync { message, .. } if message.has_changes())
    }
}

/// A message's share of the receive queue, returned when the message has been handled.
pub struct ReceivePermit {
    _permits: [Option<OwnedSemaphorePermit>; 2],
    bytes: i64,
    since: Instant,
    /// Nobody waits for what the message does.
    is_delayed: bool,
    unread: IntGauge,
}

impl ReceivePermit {
    /// The share of a message of this many bytes: `permits` of its room and of all rooms together.
    pub fn new(permits: [Option<OwnedSemaphorePermit>; 2], bytes: usize, unread: IntGauge) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        unread.add(bytes);
        Self { _permits: permits, bytes, since: Instant::now(), is_delayed: false, unread }
    }

    /// When the message was received.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// The message is delayed.
    pub(super) fn set_delayed(&mut self) {
        self.is_delayed = true;
    }
}

impl Drop for ReceivePermit {
    fn drop(&mut self) {
        self.unread.sub(self.bytes);
    }
}
