//! What the core is told, and what it asks its caller to do.

use std::sync::{Arc, atomic::AtomicBool};

use automerge::ChangeHash;
use bytes::Bytes;

use crate::{
    base::session_id::SessionId,
    document::{
        chunk::{Key, StoredChunk},
        gate::Refusal,
        sync_message::SyncMessage,
        unpacked::Unpacked,
    },
};

/// Names one message whose changes are not durable yet. The core only passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What happened.
pub(crate) enum Event {
    /// A session joined.
    Join {
        id: SessionId,
        /// Set while the session's send queue has no room.
        queue_full: Arc<AtomicBool>,
        /// Its changes are ignored.
        reads_only: bool,
    },
    /// A session left.
    Leave(SessionId),
    /// A session's changes are ignored from now on.
    ReadsOnly(SessionId),
    /// A session sent a message.
    Message {
        from: SessionId,
        message: SyncMessage,
        /// Set where the message has changes that may become part of the document.
        ticket: Option<Ticket>,
    },
    /// A message whose changes an earlier core had not made durable.
    Retry { from: SessionId, message: SyncMessage, ticket: Ticket },
    /// Send queues that were full may have room.
    Resume,
    /// The chunk of the last [`Effect::Save`] is durable.
    Saved,
    /// The same, under this key: another relay had stored another chunk under its own.
    SavedAs(Key),
    /// Other relays have stored chunks of the document.
    Stored(StoredByAnother),
    /// These chunks are no longer stored: others have replaced them.
    Gone(Vec<Key>),
    /// What the store had confirmed may be gone, and the chunk of the last [`Effect::Save`] with
    /// it. [`Event::Restored`] follows, and until then nothing counts as durable.
    Lost,
    /// What the store still has after a loss.
    Restored(Remains),
}

/// Chunks that other relays have stored.
#[derive(Debug)]
pub struct StoredByAnother {
    /// They fit to each other in no particular order.
    pub chunks: Vec<StoredChunk>,
    /// What they unpack to.
    pub unpacked: Unpacked,
}

/// What the store has of a document.
#[derive(Debug)]
pub(crate) struct Remains {
    /// Its chunks, with their sizes.
    pub(crate) chunks: Vec<(Key, usize)>,
    /// The heads of the document that they make up, sorted.
    pub(crate) heads: Vec<ChangeHash>,
    /// Whether they also have changes that wait for others.
    pub(crate) has_orphans: bool,
}

/// What the caller has to do.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send a sync message.
    Send { to: SessionId, message: Bytes },
    /// Report [`Event::Resume`] when the session's send queue has room: there may be something to
    /// send to it, which is computed only then.
    AwaitRoom(SessionId),
    /// Make a chunk durable, and report [`Event::Saved`]. Only one is under way at a time.
    Save {
        key: Key,
        data: Bytes,
        /// Chunks whose changes are in this one, to be deleted once it is durable.
        replaces: Vec<Key>,
    },
    /// A session's changes are part of the document, or wait there for others.
    Applied {
        from: SessionId,
        ticket: Option<Ticket>,
        new_changes: u64,
        /// Some changes wait for others that are missing.
        has_orphans: bool,
    },
    /// A session sent changes that may not become part of the document. It may only read from now
    /// on.
    Refuse { from: SessionId, ticket: Option<Ticket>, why: Rejection },
    /// A chunk of another relay cannot become part of the document.
    Unreadable { key: Key, why: Refusal },
}

/// Why changes are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rejection {
    /// The gate does not admit them.
    Gate(Refusal),
    /// The document would exceed its size limit. The text says which.
    TooLarge(String),
}
