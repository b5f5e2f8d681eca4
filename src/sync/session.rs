//! One session, as the rest of the relay sees it: who it is, what it follows, and its outbound queue.

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

use super::{
    outbound::{Outbound, Push},
    rooms::{Input, Mailbox, Rooms},
    wire,
};
#[cfg(test)]
use crate::base::principal::Principal;
use crate::{
    auth::{Access, Client},
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    config::Config,
    limits::{Account, Bucket, turns::Payer},
    observe::{metrics::SessionMetrics, usage::Usage},
    sync::close_reason::CloseReason,
};

/// A peer that has joined over one WebSocket.
pub struct Session {
    /// The connection's own id.
    pub id: SessionId,
    /// The peer id that it joined with.
    pub peer_id: Arc<str>,
    /// Who stands behind it, and what they may do.
    pub access: Access,
    /// Where it comes from.
    pub client: Client,
    /// Who pays for what it has stored.
    pub account: Account,
    /// What it costs.
    pub usage: Usage,
    /// Nanoseconds of processor time that its messages took and that are not paid for yet.
    spent: AtomicI64,
    us: Arc<str>,
    pub(super) outbound: Outbound,
    metrics: SessionMetrics,
    config: watch::Receiver<Arc<Config>>,
    /// Its requests for documents that nobody has.
    unknown: Mutex<Bucket>,
    /// When its sign-in ends, where a reload has changed that.
    expires: Mutex<Option<SystemTime>>,
    /// It has sent changes of documents that it may not write.
    wrote: AtomicBool,
    /// Documents of which changes were refused: it may only read these. As many as it may have open, and no more.
    refused: Mutex<HashSet<DocumentId>>,
    /// The documents it mentioned, with the mailbox of each one's room; none where it waits for one that
    /// nobody has.
    documents: Mutex<HashMap<DocumentId, Option<Mailbox>>>,
    /// It wants to hear what of its documents is durable here.
    subscribed: AtomicBool,
    /// When it was asked for documents that others look for.
    asked: Mutex<HashMap<DocumentId, Instant>>,
}

impl Session {
    /// Whose turn the session's long work takes: its account's, or its own where that is not known.
    pub fn payer(&self) -> Payer {
        if self.account.is_known() {
            Payer::Account(self.account.clone())
        } else {
            Payer::Session(self.id)
        }
    }

    /// A session that has just joined.
    pub(super) fn new(
        id: SessionId,
        peer_id: &str,
        access: Access,
        client: Client,
        us: Arc<str>,
        config: watch::Receiver<Arc<Config>>,
        metrics: SessionMetrics,
    ) -> Self {
        let send_queue = config.borrow().sync.send_queue.bytes();
        let outbound = Outbound::new(send_queue, metrics.unsent.clone());
        Self {
            id,
            peer_id: peer_id.into(),
            account: access.account(client.address),
            expires: Mutex::new(access.expires),
            access,
            client,
            config,
            unknown: Mutex::new(Bucket::new(Instant::now())),
            wrote: AtomicBool::new(false),
            refused: Mutex::default(),
            usage: Usage::default(),
            spent: AtomicI64::new(0),
            us,
            outbound,
            metrics,
            documents: Mutex::default(),
            subscribed: AtomicBool::new(false),
            asked: Mutex::default(),
        }
    }

    /// Forget the documents that it mentioned, and return them.
    pub(super) fn take_documents(&self) -> Vec<DocumentId> {
        std::mem::take(&mut *lock(&self.documents)).into_keys().collect()
    }

    pub(super) fn send(&self, kind: &'static str, frame: Bytes) {
        let size = frame.len();
        match self.outbound.push(frame) {
            Push::Queued => self.count_out(kind, size),
            Push::Overflow => {
                warn!(peer = %self.peer_id, connection = %self.id, "a slow reader is closed: its queue is full");
            }
            Push::Dropped | Push::Closed => {}
        }
    }

    fn count_out(&self, kind: &'static str, size: usize) {
        self.usage.message(size);
        self.metrics.messages.with_label_values(&["out", kind]).inc();
        self.metrics.message_bytes.with_label_values(&["out", kind]).inc_by(size as u64);
    }

    /// Send an automerge sync message of a document that was made for this session while its queue was not
    /// full.
    pub fn send_granted(&self, document: DocumentId, data: &[u8]) {
        let frame = wire::sync(false, &self.us, &self.peer_id, document, data);
        let size = frame.len();
        if self.outbound.push_granted(frame) == Push::Queued {
            self.count_out("sync", size);
        }
    }

    /// Send an automerge sync message of a document.
    pub fn send_sync(&self, document: DocumentId, request: bool, data: &[u8]) {
        let frame = wire::sync(request, &self.us, &self.peer_id, document, data);
        self.send(if request { "request" } else { "sync" }, frame);
    }

    /// Its messages took processor time, which it pays for by being read more slowly; where `sign` is -1 they did not, although
    /// that had been estimated.
    pub fn charge(&self, time: Duration, sign: i64) {
        let nanos = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        // Rooms do not touch its usage: that would have them wait for each other.
        self.spent.fetch_add(nanos.saturating_mul(sign), Ordering::Relaxed);
    }

    /// What is to be paid for now.
    pub(super) fn take_spent(&self) -> Duration {
        let spent = self.spent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |spent| {
            // What was paid too much stays.
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

    /// Whether it may change a document: it has the right, and sent no changes of it that were refused.
    pub fn may_write(&self, document: DocumentId) -> bool {
        self.access.rights.may_write(document) && !self.is_refused(document)
    }

    /// Whether it sent changes of a document that were refused.
    pub fn is_refused(&self, document: DocumentId) -> bool {
        lock(&self.refused).contains(&document)
    }

    /// Changes of a document may not become part of it: the peer is told so, and that the document is not available, and
    /// may only read it from now on. Its other documents go on.
    pub fn refuse_document(&self, document: DocumentId, reason: &str, label: &'static str) {
        self.metrics.refused_documents.with_label_values(&[label]).inc();
        let limit = self.config.borrow().limits.documents_per_connection;
        let is_new = {
            let mut refused = lock(&self.refused);
            let is_new = refused.insert(document);
            if refused.len() > limit {
                drop(refused);
                return self.close(CloseReason::RefusedDocuments(limit));
            }
            is_new
        };
        if is_new {
            warn!(
                peer = %self.peer_id, connection = %self.id, %document,
                "changes refused, and the peer may only read this document now: {reason}"
            );
            self.send_error(reason);
            self.answer_unavailable(document);
        }
    }

    /// It has sent changes that it may not make: they are dropped. Its peer is told once.
    pub fn refuse_changes(&self, document: DocumentId) {
        if self.is_refused(document) {
            // It was told so.
            return self.metrics.dropped.with_label_values(&["refused"]).inc();
        }
        self.metrics.dropped.with_label_values(&["read_only"]).inc();
        if self.wrote.swap(true, Ordering::Relaxed) {
            return;
        }
        warn!(peer = %self.peer_id, connection = %self.id, %document, "changes of a peer that may only read are not taken");
        self.send_error(&format!("changes of {document} are not taken: you may only read it"));
    }

    /// When its sign-in ends.
    pub fn expires(&self) -> Option<SystemTime> {
        *lock(&self.expires)
    }

    /// Its sign-in ends at another time.
    pub fn set_expires(&self, at: Option<SystemTime>) {
        *lock(&self.expires) = at;
    }

    /// Say that nobody here has a document; if it asks for too many of these it is closed.
    pub fn send_unavailable(&self, document: DocumentId) {
        if self.may_ask_for_unknown() {
            self.answer_unavailable(document);
        }
    }

    /// Say why a document cannot be served to this session, and that it is unavailable. Counts as a request for an unknown
    /// document.
    pub fn deny_document(&self, document: impl fmt::Display, reason: &str) {
        if self.may_ask_for_unknown() {
            self.send_error(&format!("document {document}: {reason}"));
            self.answer_unavailable(document);
        }
    }

    fn answer_unavailable(&self, document: impl fmt::Display) {
        let frame = wire::doc_unavailable(&self.us, &self.peer_id, document);
        self.send("doc-unavailable", frame);
    }

    /// Count a request for an unknown document; the session is closed for too many.
    fn may_ask_for_unknown(&self) -> bool {
        let rate = self.config.borrow().limits.unknown_documents;
        if !lock(&self.unknown).try_take(1, rate, Instant::now()) {
            self.close(CloseReason::UnknownDocuments(rate));
            return false;
        }
        true
    }

    /// Tell the peer's log that something of its is failing here.
    pub fn send_error(&self, message: &str) {
        self.send("error", wire::error(&self.us, &self.peer_id, message));
    }

    /// Pass on presence; it is dropped if the peer reads too slowly.
    pub fn send_ephemeral(
        &self,
        author: &str,
        document: DocumentId,
        count: u64,
        session: &str,
        data: &[u8],
    ) {
        // Looked at first: to write a frame for a reader that has stalled costs what a flood of presence is after.
        let push = if self.outbound.has_room_for_presence(data.len()) {
            let frame = wire::ephemeral(author, &self.peer_id, document, count, session, data);
            self.outbound.push_presence(frame)
        } else {
            Push::Dropped
        };
        match push {
            Push::Queued => {
                self.usage.message(data.len());
                self.metrics.ephemera.inc();
            }
            _ => self.metrics.dropped.with_label_values(&["presence_queue"]).inc(),
        }
    }

    /// Say which heads of a document are durable in our storage.
    pub fn send_durable(
        &self,
        document: DocumentId,
        storage_id: &str,
        heads: &[ChangeHash],
        timestamp: u64,
    ) {
        let (us, peer_id) = (&self.us, &self.peer_id);
        let frame = wire::remote_heads_changed(us, peer_id, document, storage_id, heads, timestamp);
        self.send("remote-heads-changed", frame);
    }

    /// Whether it wants to hear which heads are durable in our storage.
    pub fn is_subscribed(&self) -> bool {
        self.subscribed.load(Ordering::Relaxed)
    }

    /// It wants to hear that from now on, or not any more. Returns whether it did before.
    pub fn subscribe(&self, on: bool) -> bool {
        self.subscribed.swap(on, Ordering::Relaxed)
    }

    /// Closes the session. If it is being closed already, the first reason stays.
    pub fn close(&self, reason: CloseReason) {
        self.outbound.close(reason);
    }

    /// The documents it has mentioned and that somebody has.
    pub fn documents(&self) -> Vec<DocumentId> {
        let documents = lock(&self.documents);
        documents.iter().filter(|(_, room)| room.is_some()).map(|(id, _)| *id).collect()
    }

    /// Nobody has a document: the session waits for it without a room.
    pub fn wait_for(&self, document: DocumentId) {
        if let Some(room) = lock(&self.documents).get_mut(&document) {
            *room = None;
        }
    }

    /// It waits for a document that it will not get: a place that it takes. Returns whether it mentions the document for the
    /// first time.
    pub(super) fn wait_in_vain(&self, document: DocumentId) -> bool {
        let mut documents = lock(&self.documents);
        let is_first = !documents.contains_key(&document);
        documents.entry(document).or_default();
        is_first
    }

    /// Whether it may be asked for a document now; notes that it is. At most once in `again` a document,
    /// with `most` documents remembered.
    pub fn may_be_asked(&self, document: DocumentId, again: Duration, most: usize) -> bool {
        let mut asked = lock(&self.asked);
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

    /// Whether it has `document` open, or fewer than `limit`.
    pub(super) fn may_open(&self, document: DocumentId, limit: usize) -> bool {
        let documents = lock(&self.documents);
        documents.contains_key(&document) || documents.len() < limit
    }

    /// The mailbox of a document's room, which is made if there is none.
    pub(super) async fn room(&self, rooms: &Arc<Rooms>, document: DocumentId) -> Mailbox {
        let known = lock(&self.documents).get(&document).cloned().flatten();
        match known {
            Some(room) => room,
            None => {
                let room = rooms.enter(document, self).await;
                lock(&self.documents).insert(document, Some(room.clone()));
                room
            }
        }
    }

    /// Whether an ephemeral message is one that the relay sent to this session: automerge-repo sends what it hears to all of
    /// its peers but the author.
    pub(super) fn is_echo(&self, document: DocumentId, author: &str, of: &str, count: u64) -> bool {
        let documents = lock(&self.documents);
        let room = documents.get(&document).and_then(Option::as_ref);
        room.is_some_and(|room| room.has_passed_on(author, of, count))
    }

    /// Put something into the mailbox of a document's room.
    pub(super) async fn deliver(&self, rooms: &Arc<Rooms>, document: DocumentId, input: Input) {
        let mut input = Box::new(input);
        loop {
            match self.room(rooms, document).await.send(input).await {
                Ok(()) => return,
                // The room ended meanwhile: the next round enters the one that comes after it.
                Err(returned) => {
                    input = returned;
                    self.wait_for(document);
                }
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn for_test(id: SessionId, peer_id: &str, principal: Principal) -> Self {
        let metrics = crate::observe::metrics::Metrics::new().expect("metrics").sessions;
        let access = Access::of(principal);
        let mut config = Config::default();
        config.sync.send_queue = crate::config::Size::mib(1);
        let config = watch::channel(Arc::new(config)).1;
        Self::new(id, peer_id, access, Client::default(), "relay".into(), config, metrics)
    }

    #[cfg(test)]
    pub(crate) fn outbound(&self) -> &Outbound {
        &self.outbound
    }
}
