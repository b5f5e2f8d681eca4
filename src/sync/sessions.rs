//! Running sessions: handshake, routing by document id, and what ends them.
//!
//! A refusal never happens at the upgrade, where an HTTP status throws inside automerge-repo's adapter and
//! ends a Node client: the upgrade is taken, then the peer gets an `error` message and a close frame.

use super::{
    close_reason::CloseReason,
    flow::{Flow, Load},
    incoming::{InFlightBudget, Incoming, Received},
    peers::Peers,
    rooms::{Held, Input, Rooms},
    session::Session,
    socket::{self, CLOSE_GRACE, Progress, Writer},
    truncating::Socket,
    wire::{self, BadSyncMessage, Body, Message, SyncMessage, VERSION, WireError},
};
use crate::{
    auth::{Access, Auth, Client},
    base::{document_id::DocumentId, session_id::SessionId, text},
    config::Config,
    limits::{ConnectionSlot, turns::Turns},
    observe::{log::Repeats, metrics::SessionMetrics, usage::Polled},
    storage::documents::Documents,
    sync::activity::Activity,
};
use bytes::Bytes;
use futures::StreamExt;
use prometheus::{Histogram, IntGauge};
use std::{
    borrow::Cow,
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Bytes that a message unpacks to count as one that is received: 100 of them are an operation of a document, which is
/// about four received bytes in what people write.
const UNPACKED_WEIGHS: u64 = 4;

/// Larger messages may take longer than a millisecond to read: what they bring may unpack to a thousand times as much.
const READ_AT_ONCE: usize = 2 << 10;

/// WebSockets that are told why they are refused, at once; further ones are cut.
pub const REFUSED_AT_ONCE: usize = 200;

/// What sessions need of the rest of the relay.
#[expect(missing_docs, reason = "the types say it")]
pub struct Sessions {
    pub config: watch::Receiver<Arc<Config>>,
    pub rooms: Arc<Rooms>,
    pub peers: Arc<Peers>,
    pub documents: Arc<Documents>,
    pub auth: Arc<Auth>,
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
    /// What holds memory of messages that are on their way.
    pub arriving: InFlightBudget,
    /// Places for those that are told why they are refused.
    pub refused: Semaphore,
    /// Places for what takes a processor long.
    pub heavy: Arc<Turns>,
    /// Where it is noted how long their tasks hold a thread.
    pub polls: Histogram,
    /// These sessions are the relay's own, which ask whether it answers: the log does not name them.
    pub is_probe: bool,
    /// No session is taken any more.
    pub draining: CancellationToken,
}

impl Sessions {
    /// Run one WebSocket from its upgrade to its end, if it was admitted, and hold its place until then.
    pub async fn run(
        self: Arc<Self>,
        socket: Socket,
        from: Client,
        activity: Arc<Activity>,
        admitted: Result<Access, CloseReason>,
        place: Option<ConnectionSlot>,
    ) {
        let id = self.peers.next_id();
        let truncated = socket.get_ref().truncated();
        let (mut writer, reader) = socket.split();
        let (arriving, config) = (&self.arriving, self.config.clone());
        let mut incoming =
            Incoming::new(reader, truncated, &activity, arriving, place.as_ref(), config);
        let client =
            from.shown().map_or_else(|| "unknown".to_owned(), |address| address.to_string());
        let access = match admitted {
            Ok(_) if self.draining.is_cancelled() => Err(CloseReason::Draining),
            admitted => admitted,
        };
        let joined = match access {
            Err(reason) => Err(reason.into()),
            Ok(access) => {
                let open = Counted::new(&self.metrics.open);
                let handshake_timeout = self.config.borrow().sync.handshake_timeout.0;
                // What comes once is in a box: a session keeps no memory for it.
                let joining = Box::pin(self.join(id, access, from, &mut incoming));
                tokio::select! {
                    biased;
                    () = self.draining.cancelled() => Err(CloseReason::Draining.into()),
                    joined = tokio::time::timeout(handshake_timeout, joining) => joined.unwrap_or_else(|_| {
                        Err(CloseReason::HandshakeTimeout(handshake_timeout).into())
                    }),
                }
                .map(|session| (session, open))
            }
        };
        let (session, _open) = match joined {
            Ok(joined) => joined,
            Err(NotJoined { peer_id, reason }) => {
                self.say_refused(id, &client, &reason);
                // Who does not hear why may only hold few places for it.
                if let Ok(_place) = self.refused.try_acquire() {
                    let _counted = Counted::new(&self.metrics.closing);
                    let (us, incoming) = (&self.us, &mut incoming);
                    Box::pin(socket::close(&mut writer, incoming, us, &peer_id, id, &reason)).await;
                }
                return;
            }
        };
        incoming.set_joined();
        let _joined = Joined { sessions: &self, session: &session };
        if let Some(older) = self.peers.join(&session) {
            older.close(CloseReason::Superseded);
        }
        // What is in effect may have changed between its upgrade and now.
        self.ask_again(&session);
        if self.draining.is_cancelled() {
            // The drain may have looked at who is here before this one was.
            session.close(CloseReason::Draining);
        }
        if !self.is_probe {
            info!(peer = %session.peer_id, connection = %id, client, "connected");
        }
        let welcome = wire::peer(&self.us, &session.peer_id, &self.storage_id);
        session.send("peer", welcome);

        let serving = self.serve(&session, &mut writer, &mut incoming, &activity);
        let end = Polled::new(serving, self.polls.clone()).charged_to(&session.usage).await;
        self.metrics.ended.with_label_values(&[end.label()]).inc();
        if self.is_probe {
            return;
        }
        info!(
            peer = %session.peer_id, connection = %id, client, close_code = end.code(),
            "disconnected: {end}"
        );
    }

    fn say_refused(&self, id: SessionId, client: &str, reason: &CloseReason) {
        self.metrics.ended.with_label_values(&[reason.label()]).inc();
        if reason.label() == "peer" {
            return debug!(connection = %id, client, "gone before it joined");
        }
        self.metrics.refused.with_label_values(&[reason.label()]).inc();
        if let Some(times) = self.repeats.pass(client, reason.label()) {
            let close_code = reason.code();
            warn!(connection = %id, client, close_code, times, "refused: {reason}");
        }
    }

    /// Read the join message.
    async fn join(
        &self,
        id: SessionId,
        access: Access,
        client: Client,
        incoming: &mut Incoming<'_>,
    ) -> Result<Arc<Session>, NotJoined> {
        let frame = loop {
            match incoming.read().await? {
                ControlFlow::Break(Received { frame, truncation: None }) => break frame,
                ControlFlow::Break(_) => return Err(incoming.too_large().into()),
                ControlFlow::Continue(()) => {}
            }
        };
        let message = Message::decode(&frame).map_err(garbage)?;
        self.count_in(&message, frame.len());
        let Body::Join { versions } = &message.body else {
            return Err(CloseReason::NoJoin(message.body.name()).into());
        };
        if versions.as_ref().is_some_and(|versions| !versions.iter().any(|v| v == VERSION)) {
            let peer_id = message.sender.unwrap_or_default().into_owned();
            return Err(NotJoined { peer_id, reason: CloseReason::UnsupportedVersion });
        }
        let Some(peer_id) = message.sender.as_deref().filter(|sender| !sender.is_empty()) else {
            return Err(garbage(WireError::Missing("senderId")).into());
        };
        // It stands in lines of the log.
        if peer_id.contains(text::is_invisible) {
            let reason = "the peer id has control or format characters".to_owned();
            return Err(CloseReason::Malformed(reason).into());
        }
        if peer_id == &*self.us
            && let Some(times) = self.repeats.pass(peer_id, "own_peer_id")
        {
            warn!(
                connection = %id, times,
                "a peer has joined with this relay's own peer id, {peer_id}; if it is another relay, set sync.peer_id there"
            );
        }
        let (us, config, metrics) = (self.us.clone(), self.config.clone(), self.metrics.clone());
        Ok(Arc::new(Session::new(id, peer_id, access, client, us, config, metrics)))
    }

    /// Serve a session that has joined, and close its socket. Returns how it ended.
    async fn serve(
        &self,
        session: &Arc<Session>,
        writer: &mut Writer,
        incoming: &mut Incoming<'_>,
        activity: &Activity,
    ) -> CloseReason {
        let pings = tokio::sync::Notify::new();
        let progress = Progress::default();
        let stuck = async {
            session.outbound.closed().await;
            tokio::time::sleep(CLOSE_GRACE).await;
        };
        let read_end = tokio::select! {
            end = self.read_all(session, incoming, &progress) => Some(end),
            () = socket::write_all(session, writer, &progress, &pings) => None,
            () = socket::watch_liveness(session, activity, &progress, &pings, &self.config) => None,
            () = stuck => None,
        };
        let end = match (session.outbound.close_reason(), read_end) {
            (Some(reason), _) | (None, Some(reason)) => reason,
            (None, None) => CloseReason::ConnectionBroken,
        };
        session.close(end.clone());
        if !end.is_ordinary() {
            self.metrics.refused.with_label_values(&[end.label()]).inc();
            if let Some(times) = self.repeats.pass(&session.peer_id, end.label()) {
                warn!(
                    peer = %session.peer_id, connection = %session.id, close_code = end.code(), times,
                    "closed: {end}"
                );
            }
        }
        let (us, peer_id) = (&self.us, &session.peer_id);
        Box::pin(socket::close(writer, incoming, us, peer_id, session.id, &end)).await;
        end
    }

    async fn read_all(
        &self,
        session: &Arc<Session>,
        incoming: &mut Incoming<'_>,
        progress: &Progress,
    ) -> CloseReason {
        let mut flow = Flow::new();
        loop {
            let Received { frame, truncation } = match incoming.read().await {
                Ok(ControlFlow::Break(received)) => received,
                Ok(ControlFlow::Continue(())) => continue,
                Err(reason) => return reason,
            };
            if session.outbound.is_closing() {
                // What comes now is not its right any more; the writer still says what there is to say.
                return std::future::pending().await;
            }
            progress.is_busy.store(true, Ordering::Relaxed);
            let now = Instant::now();
            let missing = truncation.map_or(0, |truncation| truncation.missing);
            let mut load = Load { messages: 1, bytes: frame.len() as u64 + missing };
            let taken = match truncation {
                None => Box::pin(self.route(session, frame, &mut load)).await,
                Some(truncation) => match wire::Truncated::decode(&frame, truncation) {
                    Some(message) => self.refuse_truncated(session, &message),
                    None => Err(incoming.too_large()),
                },
            };
            if let Err(reason) = taken {
                return reason;
            }
            let spent = session.take_spent();
            let wait = flow.take(load, spent, &self.config.borrow().limits, now);
            if let Some((wait, limit)) = wait {
                Box::pin(self.throttle(session, wait, limit)).await;
            }
            progress.is_busy.store(false, Ordering::Relaxed);
        }
    }

    /// Read on later: what comes faster than it may is not lost.
    async fn throttle(&self, session: &Session, wait: Duration, limit: &'static str) {
        self.metrics.throttled.with_label_values(&[limit]).inc();
        if let Some(times) = self.repeats.pass(&session.peer_id, limit) {
            warn!(
                peer = %session.peer_id, connection = %session.id, times,
                "what it sends is more than limits.{limit} allows: it is read more slowly"
            );
        }
        tokio::time::sleep(wait).await;
    }

    /// Take in a message, and note what it counts as.
    async fn route(
        &self,
        session: &Arc<Session>,
        frame: Bytes,
        load: &mut Load,
    ) -> Result<(), CloseReason> {
        let message = Message::decode(&frame).map_err(garbage)?;
        self.count_in(&message, frame.len());
        session.usage.message(frame.len());
        let is_ours = message.target.as_deref().is_none_or(|target| target == &*self.us);
        let is_theirs = match (&message.body, message.sender.as_deref()) {
            (_, None) => true,
            (Body::Ephemeral { .. }, Some(author)) => self.peers.may_speak(session, author),
            (_, Some(sender)) => sender == &*session.peer_id,
        };
        if !is_ours {
            return self.dropped(session, "target");
        }
        if !is_theirs {
            if is_echo(session, &message) {
                self.metrics.dropped.with_label_values(&["echo"]).inc();
                return Ok(());
            }
            return self.dropped(session, "sender");
        }
        let bytes = |data: Cow<'_, [u8]>| match data {
            Cow::Borrowed(data) => frame.slice_ref(data),
            Cow::Owned(data) => data.into(),
        };
        let sender = message.sender.unwrap_or_default();
        match message.body {
            Body::Sync { document, data, .. } if !session.may_read(document) => {
                let asks = wire::heads_in(&data) == Some(0);
                self.deny(session, document, asks)
            }
            Body::Ephemeral { document, .. } if !session.may_read(document) => {
                self.deny(session, document, false)
            }
            Body::Sync { document, request, data } => {
                let Some(message) = self.read_sync(session, document, bytes(data)).await? else {
                    return Ok(());
                };
                // What it unpacks to counts too, for that is what it costs.
                load.bytes = load.bytes.max(message.unpacked.bytes / UNPACKED_WEIGHS);
                // It was asked for the document, and is told when somebody brings it; half of its places are left
                // to what it opens by itself.
                let places = self.config.borrow().limits.documents_per_connection / 2;
                if !message.has_heads()
                    && self.rooms.lacks(document, session.id)
                    && !session.may_open(document, places)
                {
                    return Ok(());
                }
                if self.documents.unsaved() > self.config.borrow().storage.max_unsaved.0 {
                    return Err(self.close_for(session, document, CloseReason::Unsaved));
                }
                let held = self.hold(session, document, frame.len()).await?;
                let input = Input::Sync { from: session.clone(), request, message, held };
                session.deliver(&self.rooms, document, input).await;
                Ok(())
            }
            Body::Ephemeral { document, .. }
                if !session.may_write(document) && !self.config.borrow().auth.readonly_presence =>
            {
                self.dropped(session, "readonly_presence")
            }
            Body::Ephemeral { document, count, session: author_session, data } => {
                let held = self.hold(session, document, frame.len()).await?;
                let input = Input::Ephemeral {
                    from: session.clone(),
                    author: sender.into_owned(),
                    session: author_session.into_owned(),
                    count,
                    data: bytes(data),
                    held,
                };
                session.deliver(&self.rooms, document, input).await;
                Ok(())
            }
            Body::DocUnavailable { document } => {
                self.rooms.lacks(document, session.id);
                Ok(())
            }
            Body::Leave => Err(CloseReason::Left),
            Body::Error { message } => {
                debug!(peer = %session.peer_id, connection = %session.id, %message, "the peer reports an error");
                Ok(())
            }
            Body::Join { .. } | Body::Peer => self.dropped(session, "second_handshake"),
            Body::RemoteSubscriptionChange { add, remove } => {
                // As many messages are the answer.
                load.messages += self.change_subscription(session, &add, &remove).await;
                Ok(())
            }
            Body::UnusableId { kind, id } => {
                self.refuse_id(session, kind, &id);
                Ok(())
            }
            // Of other storages' heads the relay knows nothing.
            Body::RemoteHeadsChanged => Ok(()),
            Body::Unknown => self.dropped(session, "unknown_type"),
        }
    }

    /// Reads a sync message. One that its document may not have is refused for that document alone. The changes of a peer that
    /// had something of the document refused before are dropped, and the rest of such a message still counts. Returns nothing
    /// where nothing is left of it.
    async fn read_sync(
        &self,
        session: &Session,
        document: DocumentId,
        data: Bytes,
    ) -> Result<Option<SyncMessage>, CloseReason> {
        let garbage = |why: BadSyncMessage| CloseReason::Malformed(format!("data {why}"));
        if !session.is_refused(document) {
            let max_inflated = self.config.borrow().sync.max_inflated;
            let copy = data.clone();
            let read = move || SyncMessage::read(copy, max_inflated);
            let why = match self.work(session, data.len(), read).await? {
                Ok(message) => return Ok(Some(message)),
                Err(why) => why,
            };
            let Some(label) = why.of_document() else { return Err(garbage(why)) };
            self.rooms.tell(document, session, &why.to_string());
            session.refuse_document(document, &format!("what was sent of {document} {why}"), label);
        }
        let (size, read) = (data.len(), move || SyncMessage::read_without_changes(data));
        match self.work(session, size, read).await? {
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

    /// Refuses a message that is too large for its document alone.
    fn refuse_truncated(
        &self,
        session: &Session,
        message: &wire::Truncated<'_>,
    ) -> Result<(), CloseReason> {
        let wire::Truncated { sender, target, kind, id, size } = message;
        let labels = ["in", *kind];
        self.metrics.messages.with_label_values(&labels).inc();
        self.metrics.message_bytes.with_label_values(&labels).inc_by(*size);
        session.usage.message(usize::try_from(*size).unwrap_or(usize::MAX));
        if target.as_deref().is_some_and(|target| target != &*self.us) {
            return self.dropped(session, "target");
        }
        let max_message = self.config.borrow().sync.max_message;
        let why = format!("is larger than {max_message} (sync.max_message)");
        if *kind == "ephemeral" {
            session.send_error(&format!("document {id}: presence {why}"));
            return self.dropped(session, "too_large");
        }
        if sender.as_deref().is_some_and(|sender| sender != &*session.peer_id) {
            return self.dropped(session, "sender");
        }
        let Ok(document) = id.parse::<DocumentId>() else {
            self.refuse_id(session, kind, id);
            return Ok(());
        };
        if !session.may_read(document) {
            return self.deny(session, document, false);
        }
        if !session.is_refused(document) {
            self.rooms.tell(document, session, &why);
            let reason = format!("what was sent of {document} {why}");
            session.refuse_document(document, &reason, "too_large");
        }
        session.refuse_changes(document);
        Ok(())
    }

    /// Reads a message of this size; a large one on a thread that may block.
    async fn work<T: Send + 'static>(
        &self,
        session: &Session,
        bytes: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, CloseReason> {
        if bytes <= READ_AT_ONCE {
            return Ok(work());
        }
        let worked = self.heavy.run(session.payer(), work).await;
        let (done, took) = worked.map_err(|_| CloseReason::MessagePanic)?;
        session.charge(took, 1);
        Ok(done)
    }

    /// A document that a peer may not read is to it one that does not exist: it waits for it as for those. What it hears is about
    /// its rights, and the same whether or not the document exists.
    fn deny(&self, session: &Session, document: DocumentId, asks: bool) -> Result<(), CloseReason> {
        self.may_open(session, document)?;
        if session.wait_in_vain(document) {
            session.deny_document(document, "your sign-in does not let you read it");
        } else if asks {
            session.send_unavailable(document);
        }
        self.dropped(session, "no_right")
    }

    /// A document whose id this relay cannot use does not exist here; the session's other documents go on.
    fn refuse_id(&self, session: &Session, kind: &str, id: &str) {
        self.metrics.dropped.with_label_values(&["document_id"]).inc();
        let asks = matches!(kind, "request" | "sync");
        if asks {
            session.deny_document(id, "its id is not base58check of 16 bytes");
        }
        if let Some(times) = self.repeats.pass(&session.peer_id, "document_id") {
            warn!(
                peer = %session.peer_id, connection = %session.id, times,
                "a {kind} message is dropped: its document id {id:?} is not base58check of 16 bytes"
            );
        }
    }

    /// Returns how many documents' durable heads the session is told because of it.
    async fn change_subscription(
        &self,
        session: &Arc<Session>,
        add: &[Cow<'_, str>],
        remove: &[Cow<'_, str>],
    ) -> u64 {
        if remove.iter().any(|id| *id == self.storage_id) {
            session.subscribe(false);
        }
        let mut told = 0;
        if add.iter().any(|id| *id == self.storage_id) && !session.subscribe(true) {
            for document in session.documents() {
                let input = Input::Subscribed { from: session.clone() };
                session.deliver(&self.rooms, document, input).await;
                told += 1;
            }
        }
        told
    }

    /// Wait for a place in the receive queue: in its document's share of it, then in all.
    async fn hold(
        &self,
        session: &Arc<Session>,
        document: DocumentId,
        bytes: usize,
    ) -> Result<Held, CloseReason> {
        self.may_open(session, document)?;
        let places = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let places = places.clamp(1, self.rooms.share().min(self.receive_places));
        let room = session.room(&self.rooms, document).await;
        let of_room = room.places(places).await;
        // The semaphore is never closed.
        let of_all = self.receive_queue.clone().acquire_many_owned(places).await.ok();
        Ok(Held::new([of_room, of_all], bytes, self.metrics.unread.clone()))
    }

    fn may_open(&self, session: &Session, document: DocumentId) -> Result<(), CloseReason> {
        let limit = self.config.borrow().limits.documents_per_connection;
        if session.may_open(document, limit) {
            return Ok(());
        }
        Err(self.close_for(session, document, CloseReason::Documents(limit)))
    }

    /// Returns why a session is closed because of a document, after saying so to who watches that document.
    fn close_for(
        &self,
        session: &Session,
        document: DocumentId,
        reason: CloseReason,
    ) -> CloseReason {
        self.rooms.tell(document, session, &reason.to_string());
        reason
    }

    fn dropped(&self, session: &Session, reason: &'static str) -> Result<(), CloseReason> {
        self.metrics.dropped.with_label_values(&[reason]).inc();
        if let Some(times) = self.repeats.pass(&session.peer_id, reason) {
            warn!(peer = %session.peer_id, connection = %session.id, times, "a message is dropped: {reason}");
        }
        Ok(())
    }

    fn count_in(&self, message: &Message<'_>, bytes: usize) {
        let labels = ["in", message.body.name()];
        self.metrics.messages.with_label_values(&labels).inc();
        self.metrics.message_bytes.with_label_values(&labels).inc_by(bytes as u64);
    }
}

/// Whether a message in somebody else's name is presence that the relay sent to the session before.
fn is_echo(session: &Session, message: &Message<'_>) -> bool {
    match (&message.body, message.sender.as_deref()) {
        (Body::Ephemeral { document, count, session: of, .. }, Some(author)) => {
            session.is_echo(*document, author, of, *count)
        }
        _ => false,
    }
}

/// Why a socket did not become a session.
struct NotJoined {
    /// The peer id of its join message; empty where there was none.
    peer_id: String,
    reason: CloseReason,
}

impl From<CloseReason> for NotJoined {
    fn from(reason: CloseReason) -> Self {
        Self { peer_id: String::new(), reason }
    }
}

fn garbage(error: WireError) -> CloseReason {
    match error {
        WireError::Subduction => CloseReason::Subduction,
        WireError::Cbor(_) | WireError::Missing(_) => {
            CloseReason::Malformed(format!("the message {error}"))
        }
    }
}

/// A session that is among the peers; whatever ends it, rooms do not keep one that nobody reads.
struct Joined<'a> {
    sessions: &'a Sessions,
    session: &'a Session,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        self.sessions.peers.leave(self.session);
        for document in self.session.take_documents() {
            self.sessions.rooms.leave(document, self.session.id);
        }
    }
}

/// Counts a WebSocket for as long as it lives.
struct Counted<'a>(&'a IntGauge);

impl<'a> Counted<'a> {
    fn new(gauge: &'a IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
