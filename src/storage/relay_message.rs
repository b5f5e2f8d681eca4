//! What relays that share a store tell each other, and do not store: presence, and requests for
//! documents.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use minicbor::{Decode, Encode};
use tokio::{sync::mpsc, time::timeout};

use super::relay_report::SeenRelay;
use crate::{
    base::{document_id::DocumentId, hex::sha256, lock::lock},
    observe::metrics::StorageMetrics,
};

/// Messages that may wait to be sent.
const QUEUE: usize = 1024;
/// The most bytes of a message, and of those that are sent together. As base64 they fit into a
/// notification, whose text has at most 7,999 bytes (`NOTIFY_PAYLOAD_MAX_LENGTH` of PostgreSQL).
pub const MAX_MESSAGE: usize = 5_900;
/// Documents that others are asked for at once, of 16 bytes each in the question.
const MAX_LOCATED: usize = 300;
/// The highest rank of a relay for a document: others may not have the document at all.
const MAX_RANK: usize = 2;
/// Answers to one question.
const MAX_ANSWERS: usize = 128;
/// How long answers may take: a notification each way, and the pause between two of them.
const LOCATE_WITHIN: Duration = Duration::from_millis(500);

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
    Lacking(#[n(0)] Lacking),
    /// An operator asks who has documents in memory.
    #[n(3)]
    Locate(#[n(0)] Locate),
    /// The answer to it.
    #[n(4)]
    Located(#[n(0)] Located),
}

/// A question of who has documents in memory.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Locate {
    /// A random number, which the answers repeat.
    #[n(0)]
    pub question: u64,
    /// The bytes of the documents' ids, one after the other.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub documents: Vec<u8>,
}

/// Which documents a relay has in memory, of those that another one has asked for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Located {
    /// The number of the question.
    #[n(0)]
    pub question: u64,
    /// The relay's name.
    #[n(1)]
    pub relay: String,
    /// The places of the documents in the question, counted from 0, each with the number of its
    /// sessions.
    #[n(2)]
    pub found: Vec<(u32, u32)>,
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
    /// A random number, which the answers repeat.
    #[n(2)]
    pub question: u64,
}

/// The sender has nobody to ask for a document.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lacking {
    /// The bytes of the document's id.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub document: [u8; 16],
    /// The number of the question.
    #[n(1)]
    pub question: u64,
}

/// A random number for a question, which no other relay asks with.
pub fn question() -> u64 {
    let bytes = *DocumentId::random().as_bytes();
    u128::from_be_bytes(bytes) as u64
}

/// All relays, as they were last seen, and when.
type Seen = (Vec<SeenRelay>, Instant);

/// The way to the other relays.
#[derive(Clone)]
pub struct OtherRelays {
    /// What this relay is called.
    name: Arc<str>,
    messages: mpsc::Sender<RelayMessage>,
    count: Arc<AtomicUsize>,
    seen: Arc<Mutex<Option<Seen>>>,
    /// The questions of operators that wait for answers, by their numbers.
    questions: Arc<Mutex<HashMap<u64, mpsc::Sender<Located>>>>,
    metrics: StorageMetrics,
}

impl OtherRelays {
    /// The way from the relay `name` to no other one yet, and the messages that are to be sent.
    pub fn new(name: &str, metrics: StorageMetrics) -> (Self, mpsc::Receiver<RelayMessage>) {
        let (messages, receiver) = mpsc::channel(QUEUE);
        let (count, seen, questions) = (Arc::default(), Arc::default(), Arc::default());
        (Self { name: name.into(), messages, count, seen, questions, metrics }, receiver)
    }

    /// What this relay is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All relays that were seen within the last minute.
    pub fn seen(&self) -> Vec<SeenRelay> {
        let Some((mut relays, at)) = lock(&self.seen).clone() else { return Vec::new() };
        relays.iter_mut().for_each(|relay| relay.seen_seconds += at.elapsed().as_secs());
        relays.retain(|relay| relay.seen_seconds < 60);
        relays
    }

    /// Records all relays, as they were just seen.
    pub fn set_seen(&self, mut relays: Vec<SeenRelay>) {
        relays.sort_by(|one, other| one.name.cmp(&other.name));
        *lock(&self.seen) = Some((relays, Instant::now()));
    }

    /// Returns this relay's rank among all relays for a document, from 0 to 2: lower ranks compact
    /// it earlier. Each relay has the lowest rank for some documents.
    pub fn rank(&self, document: DocumentId) -> usize {
        let turn = |name: &str| sha256(&[name.as_bytes(), document.as_bytes()].concat());
        let own = turn(&self.name);
        let seen = lock(&self.seen);
        let relays = seen.iter().flat_map(|(relays, _)| relays);
        let earlier = relays.filter(|relay| *relay.name != *self.name && turn(&relay.name) < own);
        earlier.count().min(MAX_RANK)
    }

    /// Asks all others which of these documents they have in memory. Waits for their answers, but
    /// not for long: one may be lost, and relays of an older version do not answer.
    pub async fn locate(&self, documents: &[DocumentId]) -> Vec<Located> {
        let (others, mut answers) = (self.count(), Vec::new());
        if documents.is_empty() {
            return answers;
        }
        let ids = documents.iter().flat_map(|document| document.as_bytes()).copied();
        let documents: Vec<u8> = ids.take(MAX_LOCATED * 16).collect();
        let question = question();
        let (sender, mut receiver) = mpsc::channel(MAX_ANSWERS);
        {
            let mut questions = lock(&self.questions);
            // Of those who have not waited for the answers.
            questions.retain(|_, sender| !sender.is_closed());
            questions.insert(question, sender);
        }
        let asks = || RelayMessage::Locate(Locate { question, documents });
        if self.tell(0, asks) {
            let collecting = async {
                while answers.len() < others
                    && let Some(answer) = receiver.recv().await
                {
                    answers.push(answer);
                }
            };
            // The time may be over.
            let _ = timeout(LOCATE_WITHIN, collecting).await;
        }
        lock(&self.questions).remove(&question);
        answers
    }

    /// Hands an answer to the one who has asked, if it is one of this relay.
    pub fn located(&self, answer: Located) {
        if let Some(asked) = lock(&self.questions).get(&answer.question) {
            // More answers than relays are of no use.
            let _ = asked.try_send(answer);
        }
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
