//! What relays that share a store tell each other, and do not store: presence, and requests for
//! documents.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use minicbor::{Decode, Encode};
use tokio::sync::mpsc;

use crate::observe::metrics::StorageMetrics;

/// Messages that may wait to be sent.
const QUEUE: usize = 1024;
/// The most bytes of a message, and of those that are sent together. As base64 they fit into a
/// notification, whose text has at most 7,999 bytes (`NOTIFY_PAYLOAD_MAX_LENGTH` of PostgreSQL).
pub const MAX_MESSAGE: usize = 5_900;

/// A message to all other relays.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum RelayMessage {
    /// Presence of a client of the sender.
    #[n(0)]
    Presence(#[n(0)] Presence),
    /// A client of the sender requests a document that the relays do not have.
    #[n(1)]
    Wanted(#[n(0)] Wanted),
    /// The sender has nobody to ask for a document that another relay wanted.
    #[n(2)]
    Lacking(#[cbor(n(0), with = "minicbor::bytes")] [u8; 16]),
}

/// An ephemeral message of a client.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Presence {
    /// The bytes of the document's id.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub document: [u8; 16],
    /// Its author's peer id.
    #[n(1)]
    pub author: String,
    /// Its author's session, as automerge-repo names it.
    #[n(2)]
    pub author_session: String,
    /// Its author's count of such messages.
    #[n(3)]
    pub count: u64,
    /// Who has sent it, by the sign-in.
    #[n(4)]
    pub principal: String,
    /// The payload.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub data: Vec<u8>,
}

/// A request for a document.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Wanted {
    /// The bytes of the document's id.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub document: [u8; 16],
    /// The bytes of the ids of documents that the client has open, one after the other.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub common: Vec<u8>,
}

/// The way to the other relays.
#[derive(Clone)]
pub struct OtherRelays {
    messages: mpsc::Sender<RelayMessage>,
    count: Arc<AtomicUsize>,
    metrics: StorageMetrics,
}

impl OtherRelays {
    /// The way to no relay yet, and the messages that are to be sent.
    pub fn new(metrics: StorageMetrics) -> (Self, mpsc::Receiver<RelayMessage>) {
        let (messages, receiver) = mpsc::channel(QUEUE);
        (Self { messages, count: Arc::default(), metrics }, receiver)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Sets how many there are.
    pub fn set_count(&self, count: usize) {
        self.count.store(count, Ordering::Relaxed);
    }

    /// Sends a message to all of them, if there are any. It has about this many bytes. Returns
    /// whether it is on its way; it may still be lost.
    pub fn tell(&self, bytes: usize, message: impl FnOnce() -> RelayMessage) -> bool {
        if self.count() == 0 {
            return false;
        }
        if bytes > MAX_MESSAGE {
            self.dropped(1);
            return false;
        }
        let is_queued = self.messages.try_send(message()).is_ok();
        if !is_queued {
            self.dropped(1);
        }
        is_queued
    }

    /// Counts messages that are not sent because there are too many, or because they are too large.
    pub fn dropped(&self, messages: u64) {
        self.metrics.relay_messages.with_label_values(&["dropped"]).inc_by(messages);
    }
}
