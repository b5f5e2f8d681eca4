//! What a room is sent, and the way into it.

use std::{
    sync::{Arc, Mutex, Weak},
    time::Instant,
};

use bytes::Bytes;
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::seen::Seen;
use crate::{
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    document::sync_message::SyncMessage,
    sync::{report::LiveDocument, session::Session},
};

/// Messages that may wait for one room. Their bytes are bounded by `sync.receive_queue`.
const SLOTS: usize = 64;

/// What a room is sent. The messages of one session and its leaving arrive in their order.
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

    /// When a sync message was received.
    pub(super) fn received_at(&self) -> Option<Instant> {
        match self {
            Self::Sync { permit, .. } => Some(permit.since()),
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

    /// Whether it took a slot of the mailbox. Leaving takes none: it must never wait.
    fn has_slot(&self) -> bool {
        !matches!(self, Self::Leave { .. })
    }
}

/// A message's share of the receive queue, returned when the message has been handled.
pub struct ReceivePermit {
    _permits: [Option<OwnedSemaphorePermit>; 2],
    bytes: i64,
    since: Instant,
    unread: IntGauge,
}

impl ReceivePermit {
    /// The share of a message of this many bytes: `permits` of its room and of all rooms together.
    pub fn new(permits: [Option<OwnedSemaphorePermit>; 2], bytes: usize, unread: IntGauge) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        unread.add(bytes);
        Self { _permits: permits, bytes, since: Instant::now(), unread }
    }

    /// When the message was received.
    pub(super) fn since(&self) -> Instant {
        self.since
    }
}

impl Drop for ReceivePermit {
    fn drop(&mut self) {
        self.unread.sub(self.bytes);
    }
}

/// The way into a room.
#[derive(Clone)]
pub struct Mailbox(Arc<Shared>);

struct Shared {
    /// Unbounded, because leaving must not wait. It holds at most `SLOTS` messages, and one `Leave`
    /// for each session that has ended and had the document open. In boxes, because the channel
    /// keeps memory for 32 inputs, used or not.
    inputs: mpsc::UnboundedSender<Box<Input>>,
    /// One permit for each message that may still be sent. The receiver returns them.
    slots: Semaphore,
    /// The room's share of the receive queue, in KiB, so that a slow room takes none from others.
    receive_share: Arc<Semaphore>,
    /// The presence that the room has passed on.
    seen: Arc<Mutex<Seen>>,
}

/// The way into a room for as long as the room exists.
#[derive(Clone, Default)]
pub struct WeakMailbox(Weak<Shared>);

/// The receiving end of a mailbox.
pub struct Inbox {
    inputs: mpsc::UnboundedReceiver<Box<Input>>,
    mailbox: Mailbox,
}

/// A new mailbox, with this share of the receive queue in KiB.
pub(crate) fn mailbox(receive_share: u32, seen: Arc<Mutex<Seen>>) -> (Mailbox, Inbox) {
    let (inputs, receiver) = mpsc::unbounded_channel();
    let mailbox = Mailbox(Arc::new(Shared {
        inputs,
        slots: Semaphore::new(SLOTS),
        receive_share: Arc::new(Semaphore::new(receive_share as usize)),
        seen,
    }));
    (mailbox.clone(), Inbox { inputs: receiver, mailbox })
}

impl Mailbox {
    /// Sends an input, as soon as there is a slot for it.
    ///
    /// # Errors
    /// Returns the input if the room has closed its mailbox.
    pub async fn send(&self, input: Box<Input>) -> Result<(), Box<Input>> {
        match self.0.slots.acquire().await {
            Ok(slot) => slot.forget(),
            Err(_closed) => return Err(input),
        }
        self.0.inputs.send(input).map_err(|returned| returned.0)
    }

    /// Tells the room that a session has left. Never waits.
    pub(super) fn leave(&self, session: SessionId) {
        // A room whose task has panicked has no members.
        let _ = self.0.inputs.send(Box::new(Input::Leave { session }));
    }

    /// Waits for permits of the room's share of the receive queue.
    pub async fn receive_permits(&self, permits: u32) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        self.0.receive_share.clone().acquire_many_owned(permits).await.ok()
    }

    /// Whether the room accepts no further messages.
    pub fn is_closed(&self) -> bool {
        self.0.slots.is_closed() || self.0.inputs.is_closed()
    }

    /// How many messages wait.
    pub fn waiting(&self) -> usize {
        SLOTS.saturating_sub(self.0.slots.available_permits())
    }

    /// A reference that does not keep the mailbox of a room that has ended in memory.
    pub fn downgrade(&self) -> WeakMailbox {
        WeakMailbox(Arc::downgrade(&self.0))
    }

    pub(super) fn seen(&self) -> &Arc<Mutex<Seen>> {
        &self.0.seen
    }
}

impl WeakMailbox {
    /// The mailbox, unless its room has ended.
    pub fn upgrade(&self) -> Option<Mailbox> {
        self.0.upgrade().map(Mailbox)
    }

    /// Whether the room has passed on an ephemeral message of this author, author session and
    /// count.
    pub fn has_passed_on(&self, author: &str, session: &str, count: u64) -> bool {
        let shared = self.0.upgrade();
        shared.is_some_and(|shared| lock(&shared.seen).has_passed_on(author, session, count))
    }
}

impl Inbox {
    /// Waits for the next input.
    pub(super) async fn recv(&mut self) -> Option<Box<Input>> {
        let input = self.inputs.recv().await;
        self.free_slot(input)
    }

    /// The next input, if there is one.
    pub(super) fn try_recv(&mut self) -> Option<Box<Input>> {
        let input = self.inputs.try_recv().ok();
        self.free_slot(input)
    }

    fn free_slot(&self, input: Option<Box<Input>>) -> Option<Box<Input>> {
        if input.as_ref().is_some_and(|input| input.has_slot()) {
            self.mailbox.0.slots.add_permits(1);
        }
        input
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Accepts no further messages. Sessions may still leave.
    pub(super) fn close(&self) {
        self.mailbox.0.slots.close();
    }

    /// The next input after [`close`](Self::close), until every message that had a slot was
    /// received.
    pub(super) async fn drain(&mut self) -> Option<Box<Input>> {
        loop {
            if let Some(input) = self.try_recv() {
                return Some(input);
            }
            if self.mailbox.waiting() == 0 {
                return None;
            }
            // A sender has a slot, and is about to use it or to return it.
            tokio::task::yield_now().await;
        }
    }
}
