//! Sessions: peers that have joined over one WebSocket each.
//!
//! [`Session`] is what the rest of the relay holds of one: who it is, what it may do, and its
//! outbound queue.
//!
//! | to find | look in |
//! |---|---|
//! | the session's own task: reading, closing, leaving | `actor` |
//! | the join message, and why a socket is refused | `handshake` |
//! | where each message goes | `route` |
//! | the documents that the session has open | `subscriptions` |
//! | how fast it may send | `rate_limit` |
//! | the processor time it is charged | `Session::charge`, called by `room::port` and [`shared`] |
//! | whether it may read or write a document | `Session::may_read` and `Session::may_write`, here |
//! | sign-ins that expire, and rights that change | `revalidate` |
//! | what all sessions share | [`shared`] |
//! | what they count in the metrics | [`counts`] |

mod actor;
pub mod counts;
mod handshake;
mod rate_limit;
mod revalidate;
mod route;
pub mod shared;
pub(crate) mod subscriptions;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use automerge::ChangeHash;
use bytes::Bytes;
use tokio::sync::watch;
use tracing::warn;

use self::counts::Counts;
#[cfg(test)]
use crate::base::principal::Principal;
use crate::{
    auth::{Access, Client},
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    config::Config,
    limits::{Account, Bucket, turns::Payer},
    observe::usage::Usage,
    sync::{
        close_reason::CloseReason,
        outbound::{Outbound, Push},
        wire,
    },
};

/// A peer that has joined over one WebSocket.
pub struct Session {
    /// The connection's own id.
    pub id: SessionId,
    /// The peer id that it joined with.
    pub peer_id: Arc<str>,
    /// Who it is, and what it may do.
    pub access: Access,
    /// Where it connects from.
    pub client: Client,
    /// The account that pays for what it has stored.
    pub account: Account,
    /// What it costs.
    pub usage: Usage,
    /// Its outbound queue.
    pub outbound: Outbound,
    relay: Relay,
    /// Nanoseconds of processor time that its messages took and that are not paid for yet.
    spent: AtomicI64,
    /// When its sign-in ends.
    expires: Mutex<Option<SystemTime>>,
    /// It subscribes to the heads of its documents that are durable here.
    is_subscribed: AtomicBool,
    record: Record,
}

/// What a session knows of the relay.
struct Relay {
    /// The peer id that clients see.
    peer_id: Arc<str>,
    config: watch::Receiver<Arc<Config>>,
    counts: Counts,
}

/// What the relay remembers of a session's requests and refusals.
#[derive(Default)]
struct Record {
    /// It was told that it may only read a document that it has sent changes of.
    was_told_read_only: AtomicBool,
    /// In a box, because nearly no session has it.
    rare: Mutex<Option<Box<Rare>>>,
}

/// What few sessions have.
#[derive(Default)]
struct Rare {
    /// Its requests for documents that nobody has.
    unknown: Option<Bucket>,
    /// Documents whose changes were refused, and that it may only read from then on. Bounded by
    /// the number of documents that it may have open.
    refused: HashSet<DocumentId>,
    /// When it was asked for documents that others look for.
    asked: HashMap<DocumentId, Instant>,
}

impl Session {
    /// Whose turn the session's long work takes: its account's, or its own if that is not known.
    pub fn payer(&self) -> Payer {
        if self.account.is_known() {
            Payer::Account(self.account.clone())
        } else {
            Payer::Session(self.id)
        }
    }

    /// A session that has just joined the relay with the peer id `us`.
    fn new(
        id: SessionId,
        peer_id: &str,
        access: Access,
        client: Client,
        us: Arc<str>,
        config: watch::Receiver<Arc<Config>>,
        counts: Counts,
    ) -> Self {
        let send_queue = config.borrow().sync.send_queue.bytes();
        Self {
            id,
            peer_id: peer_id.into(),
            account: access.account(client.address),
            expires: Mutex::new(access.expires),
            access,
            client,
            usage: Usage::default(),
            outbound: Outbound::new(send_queue, counts.unsent()),
            relay: Relay { peer_id: us, config, counts },
            spent: AtomicI64::new(0),
            is_subscribed: AtomicBool::new(false),
            record: Record::default(),
        }
    }

    /// Queues a frame of this kind. Closes the session if it does not fit.
    fn send(&self, kind: &'static str, frame: Bytes) {
        let size = frame.len();
        match self.outbound.push(frame) {
            Push::Queued => self.count_out(kind, size),
            Push::Overflow => {
                warn!(
                    peer = %self.peer_id, connection = %self.id,
                    "closing a slow reader: its send queue is full"
                );
            }
            Push::Dropped | Push::Closed => {}
        }
    }

    fn count_out(&self, kind: &'static str, size: usize) {
        self.usage.message(size);
        self.relay.counts.message("out", kind, size as u64);
    }

    /// Queues an automerge sync message that was made for this session while its queue was not
    /// full.
    pub fn send_granted(&self, document: DocumentId, data: &[u8]) {
        let frame = wire::sync(false, &self.relay.peer_id, &self.peer_id, document, data);
        let size = frame.len();
        if self.outbound.push_granted(frame) == Push::Queued {
            self.count_out("sync", size);
        }
    }

    /// Queues an automerge sync message of a document. Closes the session if it does not fit.
    pub fn send_sync(&self, document: DocumentId, request: bool, data: &[u8]) {
        let frame = wire::sync(request, &self.relay.peer_id, &self.peer_id, document, data);
        self.send(if request { "request" } else { "sync" }, frame);
    }

    /// Charges processor time that its messages took: it is read more slowly for it. A `sign` of -1
    /// returns what was charged by an estimate.
    pub fn charge(&self, time: Duration, sign: i64) {
        let nanos = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        // Not added to `usage` here: rooms would wait for each other.
        self.spent.fetch_add(nanos.saturating_mul(sign), Ordering::Relaxed);
    }

    /// Takes the processor time that is to be paid for now.
    fn take_spent(&self) -> Duration {
        let spent = self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent| {
            // A credit is kept.
            Some(spent.min(0))
        });
        let spent = spent.map_or(0, |spent| u64::try_from(spent).unwrap_or(0));
        let spent = Duration::from_nanos(spent);
        if !spent.is_zero() {
            self.usage.ran(spent);
        }
        spent
    }

    /// Whether it may receive a document.
    pub fn may_read(&self, document: DocumentId) -> bool {
        self.access.rights.may_read(document)
    }

    /// Whether it may change a document: it has the right, and none of its changes were refused.
    pub fn may_write(&self, document: DocumentId) -> bool {
        self.access.rights.may_write(document) && !self.is_refused(document)
    }

    /// Whether changes of a document that it sent were refused.
    pub fn is_refused(&self, document: DocumentId) -> bool {
        let rare = lock(&self.record.rare);
        rare.as_ref().is_some_and(|rare| rare.refused.contains(&document))
    }

    /// Refuses changes of a document. The peer is told so, and that the document is unavailable;
    /// from now on it may only read it. Its other documents are not affected.
    pub fn refuse_document(&self, document: DocumentId, reason: &str, label: &'static str) {
        self.relay.counts.refused_document(label);
        let limit = self.relay.config.borrow().limits.documents_per_connection;
        let is_new = {
            let mut rare = lock(&self.record.rare);
            let refused = &mut rare.get_or_insert_default().refused;
            let is_new = refused.insert(document);
            if refused.len() > limit {
                drop(rare);
                return self.close(CloseReason::RefusedDocuments(limit));
            }
            is_new
        };
        if is_new {
            warn!(
                peer = %self.peer_id, connection = %self.id, %document,
                "refused changes; the peer may now only read this document: {reason}"
            );
            self.send_error(reason);
            self.answer_unavailable(document);
        }
    }

    /// Drops changes that it may not make. Its peer is told once.
    pub fn refuse_changes(&self, document: DocumentId) {
        if self.is_refused(document) {
            // The peer knows.
            return self.relay.counts.dropped("refused");
        }
        self.relay.counts.dropped("read_only");
        if self.record.was_told_read_only.swap(true, Ordering::Relaxed) {
            return;
        }
        warn!(
            peer = %self.peer_id, connection = %self.id, %document,
            "rejected changes from a read-only peer"
        );
        self.send_error(&format!("changes of {document} were rejected: you may only read it"));
    }

    /// When its sign-in expires.
    pub fn expires(&self) -> Option<SystemTime> {
        *lock(&self.expires)
    }

    /// Changes when its sign-in expires.
    pub fn set_expires(&self, at: Option<SystemTime>) {
        *lock(&self.expires) = at;
    }

    /// Answers a request for a document that nobody has. Closes the session if there are too many
    /// such requests.
    pub fn send_unavailable(&self, document: DocumentId) {
        if self.count_unknown() {
            self.answer_unavailable(document);
        }
    }

    /// Tells the peer why it is not served a document, and that the document is unavailable. Counts
    /// as a request for an unknown document.
    pub fn deny_document(&self, document: impl fmt::Display, reason: &str) {
        if self.count_unknown() {
            self.send_error(&format!("document {document}: {reason}"));
            self.answer_unavailable(document);
        }
    }

    fn answer_unavailable(&self, document: impl fmt::Display) {
        let frame = wire::doc_unavailable(&self.relay.peer_id, &self.peer_id, document);
        self.send("doc-unavailable", frame);
    }

    /// Counts a request for an unknown document. Closes the session and returns false if there were
    /// too many.
    fn count_unknown(&self) -> bool {
        let rate = self.relay.config.borrow().limits.unknown_documents;
        let now = Instant::now();
        let mut rare = lock(&self.record.rare);
        let bucket = rare.get_or_insert_default().unknown.get_or_insert_with(|| Bucket::new(now));
        let is_allowed = bucket.try_take(1, rate, now);
        drop(rare);
        if !is_allowed {
            self.close(CloseReason::UnknownDocuments(rate));
            return false;
        }
        true
    }

    /// Sends an error message, which the peer logs.
    pub fn send_error(&self, message: &str) {
        self.send("error", wire::error(&self.relay.peer_id, &self.peer_id, message));
    }

    /// Queues presence with this many bytes of data, or drops it if the peer reads too slowly.
    pub fn send_ephemeral(&self, message: &wire::Ephemeral, size: usize) {
        // The frame is written only if there is room: a flood of presence to a stalled reader must
        // be cheap.
        match self.outbound.push_presence(size, || message.to(&self.peer_id)) {
            Push::Queued => {
                self.usage.message(size);
                self.relay.counts.presence();
            }
            _ => self.relay.counts.dropped("presence_queue"),
        }
    }

    /// Announces which heads of a document are durable in the relay's storage.
    pub fn send_durable(
        &self,
        document: DocumentId,
        storage_id: &str,
        heads: &[ChangeHash],
        timestamp: u64,
    ) {
        let (us, peer_id) = (&self.relay.peer_id, &self.peer_id);
        let frame = wire::remote_heads_changed(us, peer_id, document, storage_id, heads, timestamp);
        self.send("remote-heads-changed", frame);
    }

    /// Whether it subscribes to the heads that are durable in the relay's storage.
    pub fn is_subscribed(&self) -> bool {
        self.is_subscribed.load(Ordering::Relaxed)
    }

    /// Starts or ends that subscription. Returns whether it was subscribed before.
    pub fn subscribe(&self, on: bool) -> bool {
        self.is_subscribed.swap(on, Ordering::Relaxed)
    }

    /// Closes the session. If it is being closed already, the first reason stays.
    pub fn close(&self, reason: CloseReason) {
        self.outbound.close(reason);
    }

    /// Marks it as asked for a document. Returns false if it was asked within `again`, or if `most`
    /// documents are remembered already: then it must not be asked.
    pub fn try_mark_asked(&self, document: DocumentId, again: Duration, most: usize) -> bool {
        let mut rare = lock(&self.record.rare);
        let asked = &mut rare.get_or_insert_default().asked;
        if asked.get(&document).is_some_and(|at| at.elapsed() < again) {
            return false;
        }
        if asked.len() >= most {
            asked.retain(|_, at| at.elapsed() < again);
        }
        if asked.len() >= most {
            return false;
        }
        asked.insert(document, Instant::now());
        true
    }

    #[cfg(test)]
    pub(crate) fn for_test(id: SessionId, peer_id: &str, principal: Principal) -> Self {
        Self::with_queue(id, peer_id, principal, 1 << 20)
    }

    #[cfg(test)]
    pub(crate) fn with_queue(
        id: SessionId,
        peer_id: &str,
        principal: Principal,
        send_queue: u64,
    ) -> Self {
        let metrics = crate::observe::metrics::Metrics::new().expect("metrics");
        let access = Access::of(principal);
        let mut config = Config::default();
        config.sync.send_queue = crate::config::Size(send_queue);
        let config = watch::channel(Arc::new(config)).1;
        let counts = Counts::of_clients(metrics.sessions);
        Self::new(id, peer_id, access, Client::default(), "relay".into(), config, counts)
    }
}
