//! One WebSocket: handshake, routing by document id, liveness, close.
//!
//! A refusal never happens at the upgrade, where an HTTP status throws inside automerge-repo's adapter and
//! ends a Node client: the upgrade is taken, then the peer gets an `error` message and a close frame.

use std::{
    collections::HashMap,
    net::SocketAddr,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::extract::ws::{CloseFrame, Message as Frame, WebSocket};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    outbound::{Closing, Next, Outbound, Push},
    peers::{Peers, Principal, SessionId},
    rooms::{Held, Input, Mailbox, Rooms},
    wire::{self, Body, Message, VERSION},
};
use crate::{
    config::Config, document_id::DocumentId, http::activity::Activity, log::Repeats,
    metrics::SessionMetrics, storage::documents::Documents,
};

/// How long a close may take: to get the close frame out, and then to hear the peer's.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Silence between the last message and the close frame: automerge-repo's adapter handles messages a little
/// after it has received them, and its handles break when the answer finds the socket closing.
const QUIET: Duration = Duration::from_millis(100);
/// The longest reason of a close frame (RFC 6455, 5.5: 125 bytes with the code).
const MAX_REASON: usize = 123;

/// What sessions need of the rest of the relay.
#[expect(missing_docs, reason = "the types say it")]
pub struct Sessions {
    pub config: watch::Receiver<Arc<Config>>,
    pub rooms: Arc<Rooms>,
    pub peers: Arc<Peers>,
    pub documents: Arc<Documents>,
    pub metrics: SessionMetrics,
    pub repeats: Arc<Repeats>,
    /// The peer id that clients see.
    pub us: Arc<str>,
    /// The storage id that clients see.
    pub storage_id: String,
    /// Places for received bytes, in KiB.
    pub receive_queue: Arc<Semaphore>,
    /// How many places there are.
    pub receive_places: u32,
    /// No session is taken any more.
    pub draining: CancellationToken,
}

/// One session, as the rest of the relay sees it.
pub struct Session {
    /// The connection's own id.
    pub id: SessionId,
    /// The peer id that it joined with.
    pub peer_id: Arc<str>,
    /// Who stands behind it.
    pub principal: Principal,
    us: Arc<str>,
    outbound: Outbound,
    metrics: SessionMetrics,
    /// The documents it mentioned, with the mailbox of each one's room; none where it waits for one that
    /// nobody has.
    documents: Mutex<HashMap<DocumentId, Option<Mailbox>>>,
    /// When it was asked for documents that others look for.
    asked: Mutex<HashMap<DocumentId, Instant>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    fn send(&self, kind: &'static str, frame: Bytes) {
        let size = frame.len() as u64;
        match self.outbound.push(frame) {
            Push::Queued => {
                self.metrics.messages.with_label_values(&["out", kind]).inc();
                self.metrics.message_bytes.with_label_values(&["out", kind]).inc_by(size);
            }
            Push::Overflow => {
                warn!(peer = %self.peer_id, connection = %self.id, "a slow reader is closed: its queue is full");
            }
            Push::Dropped | Push::Closed => {}
        }
    }

    /// Send an automerge sync message of a document.
    pub fn send_sync(&self, document: DocumentId, request: bool, data: &[u8]) {
        let frame = wire::sync(request, &self.us, &self.peer_id, document, data);
        self.send(if request { "request" } else { "sync" }, frame);
    }

    /// Say that nobody here has a document.
    pub fn send_unavailable(&self, document: DocumentId) {
        let frame = wire::doc_unavailable(&self.us, &self.peer_id, document);
        self.send("doc-unavailable", frame);
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
        let frame = wire::ephemeral(author, &self.peer_id, document, count, session, data);
        match self.outbound.push_presence(frame) {
            Push::Queued => self.metrics.ephemera.inc(),
            _ => self.metrics.dropped.with_label_values(&["presence_queue"]).inc(),
        }
    }

    /// Close the session.
    pub fn close(&self, code: u16, reason: &str, label: &'static str) {
        self.outbound.close(Closing { code, reason: reason.to_owned(), label });
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
    fn may_open(&self, document: DocumentId, limit: usize) -> bool {
        let documents = lock(&self.documents);
        documents.contains_key(&document) || documents.len() < limit
    }

    /// Put something into the mailbox of a document's room, which is made if there is none.
    pub(super) async fn deliver(&self, rooms: &Arc<Rooms>, document: DocumentId, input: Input) {
        let mut input = input;
        loop {
            let known = lock(&self.documents).get(&document).cloned().flatten();
            let room = match known {
                Some(room) => room,
                None => {
                    let room = rooms.enter(document, self).await;
                    lock(&self.documents).insert(document, Some(room.clone()));
                    room
                }
            };
            match room.send(input).await {
                Ok(()) => return,
                // The room ended meanwhile: the next round enters the one that comes after it.
                Err(returned) => {
                    input = returned.0;
                    self.wait_for(document);
                }
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn for_test(id: SessionId, peer_id: &str, principal: Principal) -> Self {
        let metrics = crate::metrics::Metrics::new().expect("metrics").sessions;
        Self {
            id,
            peer_id: peer_id.into(),
            principal,
            us: "relay".into(),
            outbound: Outbound::new(1 << 20, metrics.unsent.clone()),
            metrics,
            documents: Mutex::default(),
            asked: Mutex::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn outbound(&self) -> &Outbound {
        &self.outbound
    }
}

type Writer = SplitSink<WebSocket, Frame>;
type Reader = SplitStream<WebSocket>;

impl Sessions {
    /// Run one WebSocket from its upgrade to its end. `refuse` is why it may not live, if that is known.
    pub async fn run(
        self: Arc<Self>,
        socket: WebSocket,
        address: Option<SocketAddr>,
        activity: Arc<Activity>,
        refuse: Option<Closing>,
    ) {
        let id = self.peers.next_id();
        let open = Open::new(&self.metrics);
        let (mut writer, mut reader) = socket.split();
        let client =
            address.map_or_else(|| "unknown".to_owned(), |address| address.ip().to_string());
        let refuse = refuse.or_else(|| self.draining.is_cancelled().then(drain));
        let joined = match refuse {
            Some(closing) => Err(closing),
            None => {
                let handshake_timeout = self.config.borrow().sync.handshake_timeout.0;
                let joining = self.join(id, &mut reader);
                tokio::select! {
                    biased;
                    () = self.draining.cancelled() => Err(drain()),
                    joined = tokio::time::timeout(handshake_timeout, joining) => joined.unwrap_or_else(|_| {
                        Err(closing(1002, format!("no join message within {handshake_timeout:?}"), "handshake_timeout"))
                    }),
                }
            }
        };
        let session = match joined {
            Ok(session) => session,
            Err(closing) => {
                self.say_refused(id, &client, &closing);
                close(&mut writer, &mut reader, &self.us, "", id, &closing).await;
                return;
            }
        };
        let _joined = Joined { sessions: &self, session: &session };
        if let Some(older) = self.peers.join(&session) {
            older.close(1000, "the same peer has connected anew", "superseded");
        }
        if self.draining.is_cancelled() {
            // The drain may have looked at who is here before this one was.
            session.outbound.close(drain());
        }
        info!(peer = %session.peer_id, connection = %id, client, "connected");
        let welcome = wire::peer(&self.us, &session.peer_id, &self.storage_id);
        session.send("peer", welcome);

        let end = self.serve(&session, &mut writer, &mut reader, &activity).await;
        open.ended(end.label);
        info!(
            peer = %session.peer_id, connection = %id, client, close_code = end.code,
            close_reason = end.reason, "disconnected"
        );
    }

    fn say_refused(&self, id: SessionId, client: &str, closing: &Closing) {
        self.metrics.ended.with_label_values(&[closing.label]).inc();
        if closing.label == "peer" {
            return debug!(connection = %id, client, "gone before it joined");
        }
        self.metrics.refused.with_label_values(&[closing.label]).inc();
        if let Some(times) = self.repeats.pass(client, closing.label) {
            warn!(connection = %id, client, close_code = closing.code, close_reason = closing.reason, times, "refused");
        }
    }

    /// Read the join message.
    async fn join(&self, id: SessionId, reader: &mut Reader) -> Result<Arc<Session>, Closing> {
        let frame = loop {
            match self.read(reader).await? {
                ControlFlow::Break(frame) => break frame,
                ControlFlow::Continue(()) => {}
            }
        };
        let message = Message::decode(&frame).map_err(garbage)?;
        self.count_in(&message, frame.len());
        let Body::Join { versions } = &message.body else {
            let reason = format!("expected a join message first, got {}", message.body.name());
            return Err(closing(1002, reason, "no_join"));
        };
        if versions.as_ref().is_some_and(|versions| !versions.iter().any(|v| v == VERSION)) {
            return Err(closing(1002, "unsupported protocol version".to_owned(), "version"));
        }
        let Some(peer_id) = message.sender.as_deref().filter(|sender| !sender.is_empty()) else {
            return Err(garbage(wire::WireError::Missing("senderId")));
        };
        let send_queue = self.config.borrow().sync.send_queue.bytes();
        Ok(Arc::new(Session {
            id,
            peer_id: peer_id.into(),
            principal: Principal::anybody(),
            us: self.us.clone(),
            outbound: Outbound::new(send_queue, self.metrics.unsent.clone()),
            metrics: self.metrics.clone(),
            documents: Mutex::default(),
            asked: Mutex::default(),
        }))
    }

    /// Serve a session that has joined, and close its socket. Returns how it ended.
    async fn serve(
        &self,
        session: &Arc<Session>,
        writer: &mut Writer,
        reader: &mut Reader,
        activity: &Activity,
    ) -> Closing {
        let pings = tokio::sync::Notify::new();
        let busy = AtomicBool::new(false);
        let stuck = async {
            session.outbound.closed().await;
            tokio::time::sleep(CLOSE_GRACE).await;
        };
        let read_end = tokio::select! {
            end = self.read_all(session, reader, &busy) => Some(end),
            () = write_all(session, writer, &pings) => None,
            () = self.watch_liveness(session, activity, &busy, &pings) => None,
            () = stuck => None,
        };
        let end = match (session.outbound.closing(), read_end) {
            (Some(closing), _) => closing,
            (None, Some(closing)) => closing,
            (None, None) => closing(1006, "the connection broke".to_owned(), "broken"),
        };
        session.outbound.close(end.clone());
        if !matches!(end.label, "peer" | "left" | "superseded" | "drain" | "broken") {
            self.metrics.refused.with_label_values(&[end.label]).inc();
            if let Some(times) = self.repeats.pass(&session.peer_id, end.label) {
                warn!(
                    peer = %session.peer_id, connection = %session.id, close_code = end.code,
                    close_reason = end.reason, times, "closed"
                );
            }
        }
        close(writer, reader, &self.us, &session.peer_id, session.id, &end).await;
        end
    }

    /// End the session when nothing moves: silence is pinged, and unanswered until the next ping it is dead.
    async fn watch_liveness(
        &self,
        session: &Session,
        activity: &Activity,
        busy: &AtomicBool,
        pings: &tokio::sync::Notify,
    ) {
        let mut seen = activity.moved();
        let mut pinged = false;
        loop {
            let interval = self.config.borrow().sync.ping_interval.0;
            // Spread by a tenth, so that thousands of sessions do not ping in one beat.
            let spread =
                interval.mul_f64((session.id.0.wrapping_mul(0x9e37_79b9) % 1000) as f64 / 10_000.0);
            tokio::time::sleep(interval + spread).await;
            let moved = activity.moved();
            // Nothing is read while a message waits for its document: that silence is ours.
            if moved != seen || busy.load(Ordering::Relaxed) {
                (seen, pinged) = (moved, false);
            } else if pinged {
                return session.close(1006, "the peer does not answer pings", "dead");
            } else {
                pinged = true;
                pings.notify_one();
            }
        }
    }

    /// Read one binary frame; `Continue` for pings and the like.
    async fn read(&self, reader: &mut Reader) -> Result<ControlFlow<Bytes>, Closing> {
        match reader.next().await {
            Some(Ok(Frame::Binary(frame))) => Ok(ControlFlow::Break(frame)),
            Some(Ok(Frame::Ping(_) | Frame::Pong(_))) => Ok(ControlFlow::Continue(())),
            Some(Ok(Frame::Text(_))) => {
                Err(closing(1003, "text frames are not of this protocol".to_owned(), "text"))
            }
            Some(Ok(Frame::Close(frame))) => {
                let code = frame.map_or(1005, |frame| frame.code);
                Err(closing(code, "closed by the peer".to_owned(), "peer"))
            }
            Some(Err(error)) => {
                let text = error.into_inner().to_string();
                // axum hides tungstenite's error type; its texts are what remains to tell them apart.
                if text.contains("too long") {
                    let max_message = self.config.borrow().sync.max_message;
                    let reason =
                        format!("a message is larger than {max_message} (sync.max_message)");
                    Err(closing(1009, reason, "too_large"))
                } else if text.contains("protocol error") && !text.contains("Connection reset") {
                    Err(closing(1002, text, "protocol"))
                } else {
                    Err(closing(1006, text, "peer"))
                }
            }
            None => Err(closing(1006, "the connection ended".to_owned(), "peer")),
        }
    }

    async fn read_all(
        &self,
        session: &Arc<Session>,
        reader: &mut Reader,
        busy: &AtomicBool,
    ) -> Closing {
        loop {
            let frame = match self.read(reader).await {
                Ok(ControlFlow::Break(frame)) => frame,
                Ok(ControlFlow::Continue(())) => continue,
                Err(closing) => return closing,
            };
            busy.store(true, Ordering::Relaxed);
            if let Err(closing) = self.take_in(session, frame).await {
                return closing;
            }
            busy.store(false, Ordering::Relaxed);
        }
    }

    async fn take_in(&self, session: &Arc<Session>, frame: Bytes) -> Result<(), Closing> {
        let message = Message::decode(&frame).map_err(garbage)?;
        self.count_in(&message, frame.len());
        let is_ours = message.target.as_deref().is_none_or(|target| target == &*self.us);
        let is_theirs = match (&message.body, message.sender.as_deref()) {
            (_, None) => true,
            (_, Some(sender)) if sender == &*session.peer_id => true,
            // A shared worker gossips for its tabs; but nobody speaks for a peer that is here itself.
            (Body::Ephemeral { .. }, Some(author)) => {
                !self.peers.is_joined_elsewhere(author, session.id)
            }
            _ => false,
        };
        if !is_ours || !is_theirs {
            return self.dropped(session, if is_ours { "sender" } else { "target" });
        }
        let bytes = |data: std::borrow::Cow<'_, [u8]>| match data {
            std::borrow::Cow::Borrowed(data) => frame.slice_ref(data),
            std::borrow::Cow::Owned(data) => data.into(),
        };
        let sender = message.sender.unwrap_or_default();
        match message.body {
            Body::Sync { document, request, data } => {
                let heads = wire::heads_in(&data);
                let Some(heads) = heads else {
                    return Err(closing(
                        1007,
                        "data is no automerge sync message".to_owned(),
                        "garbage",
                    ));
                };
                if automerge::sync::Message::decode(&data).is_err() {
                    return Err(closing(
                        1007,
                        "data is no automerge sync message".to_owned(),
                        "garbage",
                    ));
                }
                if heads == 0 && self.rooms.lacks(document, session.id) {
                    return Ok(());
                }
                if self.documents.unsaved() > self.config.borrow().storage.max_unsaved.0 {
                    let reason = "changes wait to be stored; please come again".to_owned();
                    return Err(closing(1013, reason, "unsaved"));
                }
                let held = self.hold(frame.len()).await;
                let data = bytes(data);
                let input = Input::Sync { from: session.clone(), request, data, held };
                self.deliver(session, document, input).await
            }
            Body::Ephemeral { document, count, session: author_session, data } => {
                let held = self.hold(frame.len()).await;
                let input = Input::Ephemeral {
                    from: session.clone(),
                    author: sender.into_owned(),
                    session: author_session.into_owned(),
                    count,
                    data: bytes(data),
                    held,
                };
                self.deliver(session, document, input).await
            }
            Body::DocUnavailable { document } => {
                self.rooms.lacks(document, session.id);
                Ok(())
            }
            Body::Leave => Err(closing(1000, "the peer left".to_owned(), "left")),
            Body::Error { message } => {
                debug!(peer = %session.peer_id, connection = %session.id, %message, "the peer reports an error");
                Ok(())
            }
            Body::Join { .. } | Body::Peer => self.dropped(session, "second_handshake"),
            Body::RemoteSubscriptionChange | Body::RemoteHeadsChanged => Ok(()),
            Body::Unknown => self.dropped(session, "unknown_type"),
        }
    }

    /// Wait for a place in the receive queue.
    async fn hold(&self, bytes: usize) -> Held {
        let places = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let places = places.clamp(1, self.receive_places);
        loop {
            // The semaphore is never closed.
            if let Ok(permit) = self.receive_queue.clone().acquire_many_owned(places).await {
                return Held::new(permit, bytes, self.metrics.unread.clone());
            }
        }
    }

    async fn deliver(
        &self,
        session: &Arc<Session>,
        document: DocumentId,
        input: Input,
    ) -> Result<(), Closing> {
        let limit = self.config.borrow().limits.documents_per_connection;
        if !session.may_open(document, limit) {
            let reason = format!("more than {limit} documents (limits.documents_per_connection)");
            return Err(closing(4429, reason, "documents"));
        }
        session.deliver(&self.rooms, document, input).await;
        Ok(())
    }

    fn dropped(&self, session: &Session, reason: &'static str) -> Result<(), Closing> {
        self.metrics.dropped.with_label_values(&[reason]).inc();
        if let Some(times) = self.repeats.pass(&session.peer_id, reason) {
            warn!(peer = %session.peer_id, connection = %session.id, reason, times, "a message is dropped");
        }
        Ok(())
    }

    fn count_in(&self, message: &Message<'_>, bytes: usize) {
        let labels = ["in", message.body.name()];
        self.metrics.messages.with_label_values(&labels).inc();
        self.metrics.message_bytes.with_label_values(&labels).inc_by(bytes as u64);
    }
}

fn closing(code: u16, reason: String, label: &'static str) -> Closing {
    Closing { code, reason, label }
}

fn garbage(error: wire::WireError) -> Closing {
    closing(1007, format!("the message {error}"), "garbage")
}

/// The relay is stopping; the client is to come again.
fn drain() -> Closing {
    closing(1012, "the relay restarts".to_owned(), "drain")
}

/// Send what is queued, many frames to a flush, until the session is closed or its socket fails.
async fn write_all(session: &Session, writer: &mut Writer, pings: &tokio::sync::Notify) {
    loop {
        let next = tokio::select! {
            next = session.outbound.next() => next,
            () = pings.notified() => {
                if writer.send(Frame::Ping(Bytes::new())).await.is_err() {
                    return;
                }
                continue;
            }
        };
        let mut next = Some(next);
        while let Some(Next::Send(frame)) = next {
            if writer.feed(Frame::Binary(frame)).await.is_err() {
                return;
            }
            next = session.outbound.try_next();
        }
        if next.is_some() || writer.flush().await.is_err() {
            return;
        }
    }
}

/// Say why, close, and hear the peer's close out: a socket dropped with unread bytes is reset, and the
/// peer may then never read the reason.
async fn close(
    writer: &mut Writer,
    reader: &mut Reader,
    us: &str,
    peer_id: &str,
    id: SessionId,
    closing: &Closing,
) {
    let suffix = format!(" (connection {id})");
    let reason = format!("{}{suffix}", shortened(&closing.reason, MAX_REASON - suffix.len()));
    let may_close = !matches!(closing.label, "peer" | "broken" | "dead");
    let say = async {
        if may_close {
            if !matches!(closing.label, "superseded" | "left") {
                let _ = writer.feed(Frame::Binary(wire::error(us, peer_id, &reason))).await;
            }
            if !peer_id.is_empty() {
                let _ = writer.flush().await;
                tokio::time::sleep(QUIET).await;
            }
            let (code, reason) = (closing.code, reason.as_str().into());
            let _ = writer.send(Frame::Close(Some(CloseFrame { code, reason }))).await;
        }
        let _ = writer.close().await;
        if may_close {
            while let Some(Ok(_)) = reader.next().await {}
        }
    };
    let _ = tokio::time::timeout(CLOSE_GRACE, say).await;
}

/// The beginning of a text, at most so many bytes of it.
fn shortened(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// A session that is among the peers; whatever ends it, rooms do not keep one that nobody reads.
struct Joined<'a> {
    sessions: &'a Sessions,
    session: &'a Session,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.sessions.peers.leave(self.session);
        let documents = std::mem::take(&mut *lock(&self.session.documents));
        for document in documents.into_keys() {
            self.sessions.rooms.leave(document, self.session.id);
        }
    }
}

/// Counts an open WebSocket for as long as it lives.
struct Open<'a>(&'a SessionMetrics);

impl<'a> Open<'a> {
    fn new(metrics: &'a SessionMetrics) -> Self {
        metrics.open.inc();
        Self(metrics)
    }

    fn ended(&self, outcome: &str) {
        self.0.ended.with_label_values(&[outcome]).inc();
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.dec();
    }
}
