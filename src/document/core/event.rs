//! What the core is told, and what it asks for.

use std::sync::{Arc, atomic::AtomicBool};

use bytes::Bytes;

use crate::{
    base::session_id::SessionId,
    document::{chunk::Key, gate::Refusal, sync_message::SyncMessage},
};

/// Names one message whose changes are not durable yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What came.
pub(crate) enum Event {
    /// A session takes part.
    Join {
        id: SessionId,
        /// When there is no room for messages to it.
        full: Arc<AtomicBool>,
        /// Changes of it are not taken in.
        reads_only: bool,
    },
    /// A session does not any more.
    Leave(SessionId),
    /// Changes of a session are not taken in any more.
    ReadsOnly(SessionId),
    /// A session sent a message.
    Message {
        from: SessionId,
        message: SyncMessage,
        /// Names its changes, if it has any that may become part of the document.
        ticket: Option<Ticket>,
    },
    /// An earlier engine has left the changes of a message.
    Left { from: SessionId, message: SyncMessage, ticket: Ticket },
    /// There may be room for messages that were kept back.
    Resume,
    /// The write that was asked for last is durable.
    Saved,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Effect {
    /// Send a sync message.
    Send { to: SessionId, message: Bytes },
    /// There is something to say to a session, and no room for it: it is said when there is
    /// ([`Event::Resume`]), and is then what has come of it.
    KeepBack { from: SessionId },
    /// Make a chunk durable, and say so by [`Event::Saved`]. One at a time.
    Save { key: Key, data: Bytes },
    /// Delete chunks whose changes are in a durable snapshot.
    Remove(Vec<Key>),
    /// A peer's changes were taken in, so many of them new.
    Applied {
        from: SessionId,
        ticket: Option<Ticket>,
        new_changes: u64,
        /// There are changes that wait for others.
        has_orphans: bool,
    },
    /// A peer sent changes that may not become part of the document. From now on it may only read.
    Refuse { from: SessionId, ticket: Option<Ticket>, why: Refused },
}

/// Why changes are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// They are not admitted.
    Gate(Refusal),
    /// The document would be larger than one may be.
    TooLarge(String),
}
