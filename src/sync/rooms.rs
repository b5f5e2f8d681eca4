//! The live documents.
//!
//! A document has a room from a session's first mention of it until a while after the last session left.
//! The directory here knows each room; `Room` (in `live`) is the task that runs it. A document that nobody
//! has is no room but an entry with the ids of the sessions that wait for it.

mod live;

use super::{
    ephemera::Seen,
    follow::{Followers, Following, What},
    look::LiveDocument,
    memory::Budget,
    peers::Peers,
    room::EngineStart,
    session::Session,
    wire::SyncMessage,
};
use crate::{
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    config::{Config, Size},
    limits::{
        Principals,
        turns::{Payer, Turn, Turns},
    },
    observe::{
        metrics::Metrics,
        usage::{Polled, Usage},
    },
    storage::documents::Documents,
    sync::close_reason::CloseReason,
    sync::room::pending::Pending,
};
use automerge::{
    Automerge,
    sync::{State, SyncDoc},
};
use bytes::Bytes;
use futures::FutureExt;
use std::{
    collections::{HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    time::Instant as Deadline,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::error;

/// One room may hold so large a part of `sync.receive_queue`.
const ROOM_SHARE: u32 = 4;
/// Messages that wait for one room; what is in them is bounded by `sync.receive_queue`.
const MAILBOX: usize = 64;
/// A peer is asked for one document at most once in this time.
const ASK_AGAIN: Duration = Duration::from_secs(3600);
/// Documents remembered as asked, for each session.
const ASKED: usize = 4096;

/// Documents that are loaded at a time: what they will take is known only then, and goes beyond `sync.memory`.
const LOADING: usize = 8;
/// Unknown documents for which requests are held back at a time, in the hope that somebody brings them; each has a room and a
/// timer meanwhile. Requests for further ones are answered at once.
const IN_GRACE: usize = 2_000;
/// When memory is short, a session that wants a further document waits so long for idle rooms to leave; the
/// allocator gives memory back within a second.
const FREED_WITHIN: Duration = Duration::from_secs(3);
/// How many sessions and documents are looked at, at most, to find peers that can be asked for a document.
const LOOKED_AT: usize = 1_000;
/// How often it is looked whether they have, for all that wait together.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a peer without a document says first: an automerge sync message without heads.
pub(crate) static NOTHING: LazyLock<Option<SyncMessage>> = LazyLock::new(|| {
    let message = Automerge::new().generate_sync_message(&mut State::new())?;
    SyncMessage::read(message.encode().into(), Size::mib(1)).ok()
});

/// There is no memory for a further document.
struct NoMemory;

/// What a room takes in.
pub enum Input {
    /// An automerge sync message.
    Sync {
        /// Who sent it.
        from: Arc<Session>,
        /// Whether the peer does not hold the document.
        request: bool,
        /// The message.
        message: SyncMessage,
        /// Its place in the receive queue.
        held: Held,
    },
    /// Presence and the like.
    Ephemeral {
        /// Who brought it.
        from: Arc<Session>,
        /// Its author's peer id.
        author: String,
        /// Its author's session.
        session: String,
        /// The author's count of such messages.
        count: u64,
        /// The payload.
        data: Bytes,
        /// Its place in the receive queue.
        held: Held,
    },
    /// A session wants to hear which heads are durable.
    Subscribed {
        /// Which one.
        from: Arc<Session>,
    },
    /// An operator wants to see the document.
    Look {
        /// Where what is seen goes.
        reply: oneshot::Sender<LiveDocument>,
    },
}

/// A place in the receive queue, given back when the message has been taken in.
pub struct Held {
    _permits: [Option<OwnedSemaphorePermit>; 2],
    bytes: i64,
    since: Instant,
    unread: prometheus::IntGauge,
}

impl Held {
    /// A place for `bytes`, which `permits` stand for: the room's, and that of all.
    pub fn new(
        permits: [Option<OwnedSemaphorePermit>; 2],
        bytes: usize,
        unread: prometheus::IntGauge,
    ) -> Self {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        unread.add(bytes);
        Self { _permits: permits, bytes, since: Instant::now(), unread }
    }

    /// When it came.
    pub(super) fn since(&self) -> Instant {
        self.since
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.unread.sub(self.bytes);
    }
}

/// The way into a room.
#[derive(Clone)]
pub struct Mailbox {
    /// In boxes: the channel keeps memory for 32 of them, used or not.
    inputs: mpsc::Sender<Box<Input>>,
    /// The room's share of places for received bytes, in KiB: a room that takes long keeps no place from others.
    places: Arc<Semaphore>,
    /// The presence that the room has passed on.
    seen: Arc<Mutex<Seen>>,
}

impl Mailbox {
    /// Put something in.
    ///
    /// # Errors
    /// The room has ended; with what was to be put in.
    pub async fn send(&self, input: Box<Input>) -> Result<(), Box<Input>> {
        self.inputs.send(input).await.map_err(|returned| returned.0)
    }

    /// Wait for places of its share.
    pub async fn places(&self, places: u32) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        self.places.clone().acquire_many_owned(places).await.ok()
    }

    /// Whether the room has passed on an ephemeral message of this author, author session and count.
    pub(super) fn has_passed_on(&self, author: &str, session: &str, count: u64) -> bool {
        lock(&self.seen).has_passed_on(author, session, count)
    }

    fn is_closed(&self) -> bool {
        self.inputs.is_closed()
    }

    /// How many inputs wait.
    pub(super) fn waiting(&self) -> usize {
        self.inputs.max_capacity() - self.inputs.capacity()
    }
}

/// The directory of rooms.
pub struct Rooms {
    /// What rooms need of the rest.
    pub(super) shared: Shared,
    pub(super) directory: Mutex<HashMap<DocumentId, Entry>>,
    /// How many places for received bytes, in KiB, one room has.
    share: u32,
    /// Operators who follow a document.
    pub(super) followers: Arc<Followers>,
    /// When durable heads were last told, in milliseconds since 1970.
    told_at: AtomicU64,
    /// Places for documents that are being loaded.
    loading: Turns,
    /// Places for unknown documents for which requests are held back.
    in_grace: Arc<Semaphore>,
    memory: Budget,
    /// When it was last looked whether memory is short, and whether it was.
    last_look: Mutex<Option<(Deadline, bool)>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// Documents whose rooms have not ended.
#[derive(Debug, Default)]
pub struct Late {
    /// They may have changes that are not durable.
    pub unsaved: Vec<DocumentId>,
    /// They are not in memory: nothing of them can be lost.
    pub loading: Vec<DocumentId>,
}

/// What rooms need of the rest of the relay.
#[expect(missing_docs, reason = "the types say it")]
pub struct Shared {
    pub config: watch::Receiver<Arc<Config>>,
    pub documents: Arc<Documents>,
    pub peers: Arc<Peers>,
    pub principals: Arc<Principals>,
    pub engine: EngineStart,
    /// The storage id that clients see.
    pub storage_id: Arc<str>,
    /// A document that the relay asks itself for, to see that it answers: in memory alone, and without limits.
    pub probe: DocumentId,
    pub metrics: Metrics,
}

pub(super) enum Entry {
    Live(Arc<Handle>),
    /// Nobody has the document, or nobody may have it; these sessions are told when that changes.
    Waiting(Vec<Waiting>),
}

/// A session that waits without a room.
#[derive(Clone, Copy)]
pub(super) struct Waiting {
    session: SessionId,
    /// Something that it sent was not taken: it is to send it again.
    lost: bool,
}

/// What the directory and a room's task share.
pub(super) struct Handle {
    pub(super) document: DocumentId,
    pub(super) mailbox: Mailbox,
    /// Sessions that mentioned the document.
    pub(super) members: Mutex<HashSet<SessionId>>,
    /// What it costs.
    pub(super) usage: Usage,
    /// What was received of it and is not durable.
    pending: Arc<Pending>,
    /// Nobody has brought the document yet.
    unknown: AtomicBool,
    /// The document is in memory, perhaps with changes that are not durable.
    has_engine: AtomicBool,
    /// The peers that were asked for it, and whether they have answered that they lack it.
    asked: Mutex<HashMap<SessionId, bool>>,
    answer: Notify,
    /// Sessions that have ended.
    gone: Mutex<Vec<SessionId>>,
    /// The served bundle has changed.
    bundle_changed: AtomicBool,
    /// What is stored has changed beside the room.
    reopen: AtomicBool,
    /// Memory is short: unload as soon as nobody is here.
    sent_away: AtomicBool,
    /// There is something in `gone`, the bundle or what is stored has changed, the room is sent away, or a
    /// session can be told what was kept back.
    news: Arc<Notify>,
    /// The task has ended: whoever finds the mailbox closed looks in the directory again.
    retired: CancellationToken,
}

impl Rooms {
    /// No room yet.
    pub fn new(shared: Shared) -> Arc<Self> {
        let share = (shared.config.borrow().sync.receive_permits() / ROOM_SHARE).max(1);
        Arc::new(Self {
            shared,
            directory: Mutex::default(),
            share,
            followers: Arc::default(),
            told_at: AtomicU64::new(0),
            loading: Turns::new(LOADING),
            in_grace: Arc::new(Semaphore::new(IN_GRACE)),
            memory: Budget::default(),
            last_look: Mutex::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        })
    }

    /// Waits for a place among the documents that are being loaded, once there is memory for one more. Whoever waits for
    /// memory holds no place, so that all of them are refused after the same time.
    async fn find_place(&self, payer: &Payer) -> Result<Turn, NoMemory> {
        loop {
            let since = Deadline::now();
            while self.is_memory_short(LOOK_AGAIN) {
                if since.elapsed() >= FREED_WITHIN {
                    return Err(NoMemory);
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let place = self.loading.take(payer.clone()).await;
            // Others were loaded during the wait.
            if !self.is_memory_short(Duration::ZERO) {
                return Ok(place);
            }
        }
    }

    /// Whether memory is short, by a look that is no older than `age`. If it is, idle rooms are sent away.
    fn is_memory_short(&self, age: Duration) -> bool {
        let mut last_look = lock(&self.last_look);
        if let Some((at, is_short)) = *last_look
            && at.elapsed() < age
        {
            return is_short;
        }
        let is_short = self.memory.is_exceeded(self.shared.config.borrow().sync.memory);
        *last_look = Some((Deadline::now(), is_short));
        drop(last_look);
        if is_short {
            self.send_idle_away();
        }
        is_short
    }

    /// Have all rooms unload that no session is in.
    fn send_idle_away(&self) {
        for entry in lock(&self.directory).values() {
            if let Entry::Live(handle) = entry
                && lock(&handle.members).is_empty()
            {
                handle.sent_away.store(true, Ordering::Relaxed);
                handle.news.notify_one();
            }
        }
    }

    /// How many places for received bytes, in KiB, one room has.
    pub fn share(&self) -> u32 {
        self.share
    }

    /// The mailbox of a document's room for a session that mentions it; the room is made if there is none.
    pub async fn enter(self: &Arc<Self>, document: DocumentId, session: &Session) -> Mailbox {
        loop {
            let retired = {
                let mut directory = lock(&self.directory);
                let waiting = match directory.get(&document) {
                    Some(Entry::Live(handle)) if handle.mailbox.is_closed() => {
                        Some(handle.retired.clone())
                    }
                    Some(Entry::Live(handle)) => {
                        lock(&handle.members).insert(session.id);
                        handle.sent_away.store(false, Ordering::Relaxed);
                        return handle.mailbox.clone();
                    }
                    Some(Entry::Waiting(_)) | None => None,
                };
                match waiting {
                    Some(retired) => retired,
                    None => return self.open(&mut directory, document, Some(session.id)),
                }
            };
            retired.cancelled().await;
        }
    }

    /// Start the room of a document that has none.
    fn open(
        self: &Arc<Self>,
        directory: &mut HashMap<DocumentId, Entry>,
        document: DocumentId,
        first: Option<SessionId>,
    ) -> Mailbox {
        let waiting = match directory.remove(&document) {
            Some(Entry::Waiting(waiting)) => waiting,
            _ => Vec::new(),
        };
        self.shared.metrics.rooms.waiting.sub(i64::from(!waiting.is_empty()));
        let (handle, receiver) = Handle::new(document, Kept::default(), self.share());
        lock(&handle.members).extend(waiting.iter().map(|waiting| waiting.session).chain(first));
        self.start(directory, handle, receiver, &waiting)
    }

    /// Start a room's task.
    fn start(
        self: &Arc<Self>,
        directory: &mut HashMap<DocumentId, Entry>,
        handle: Arc<Handle>,
        receiver: mpsc::Receiver<Box<Input>>,
        waiting: &[Waiting],
    ) -> Mailbox {
        let (document, usage) = (handle.document, handle.usage.clone());
        directory.insert(document, Entry::Live(handle.clone()));
        let mailbox = handle.mailbox.clone();
        let room = live::Room::new(self.clone(), handle, receiver, waiting);
        let rooms = self.clone();
        let polls = self.shared.metrics.process.poll_seconds.with_label_values(&["room"]);
        let polled = Polled::new(room.run(), polls).charged_to(&usage);
        self.tasks.spawn(async move {
            if AssertUnwindSafe(polled).catch_unwind().await.is_err() {
                error!(%document, "a panic in the document's room; its sessions are closed");
                rooms.abandon(document);
            }
        });
        mailbox
    }

    /// Tell a document's room that a session has ended.
    pub fn leave(&self, document: DocumentId, session: SessionId) {
        let mut directory = lock(&self.directory);
        match directory.get_mut(&document) {
            Some(Entry::Live(handle)) => {
                lock(&handle.members).remove(&session);
                lock(&handle.gone).push(session);
                handle.news.notify_one();
            }
            Some(Entry::Waiting(waiting)) => {
                waiting.retain(|waiting| waiting.session != session);
                if waiting.is_empty() {
                    directory.remove(&document);
                    self.shared.metrics.rooms.waiting.dec();
                }
            }
            None => {}
        }
    }

    /// A peer says that it lacks a document. True if it was asked for it.
    pub fn lacks(&self, document: DocumentId, session: SessionId) -> bool {
        let directory = lock(&self.directory);
        let Some(Entry::Live(handle)) = directory.get(&document) else {
            return false;
        };
        let mut asked = lock(&handle.asked);
        let Some(answered) = asked.get_mut(&session) else {
            return false;
        };
        *answered = true;
        handle.answer.notify_one();
        true
    }

    /// Sessions that share a document with `requester`, at most `most` and none of `but`, that may write `document` and were not
    /// asked for it of late. They are noted as asked.
    fn to_be_asked(
        &self,
        document: DocumentId,
        requester: &Session,
        most: usize,
        but: impl Fn(SessionId) -> bool,
    ) -> Vec<Arc<Session>> {
        let (mut found, mut seen) = (Vec::new(), HashSet::from([requester.id]));
        let mut left = LOOKED_AT;
        for shared in requester.documents() {
            let members = self.some_members(shared, left);
            left = left.saturating_sub(1 + members.len());
            for id in members.into_iter().filter(|id| !but(*id)) {
                if found.len() >= most {
                    return found;
                }
                if seen.insert(id)
                    && let Some(peer) = self.shared.peers.get(id)
                    && peer.may_write(document)
                    && peer.may_be_asked(document, ASK_AGAIN, ASKED)
                {
                    found.push(peer);
                }
            }
            if left == 0 {
                break;
            }
        }
        found
    }

    /// Some of the sessions that have a live document open, at most `most`.
    fn some_members(&self, document: DocumentId, most: usize) -> Vec<SessionId> {
        let handle = match lock(&self.directory).get(&document) {
            Some(Entry::Live(handle)) => handle.clone(),
            Some(Entry::Waiting(_)) | None => return Vec::new(),
        };
        if handle.unknown.load(Ordering::Relaxed) {
            return Vec::new();
        }
        lock(&handle.members).iter().take(most).copied().collect()
    }

    /// The served bundle has changed: live rooms merge it, and documents that were waited for may be there.
    pub fn bundle_changed(self: &Arc<Self>) {
        let mut directory = lock(&self.directory);
        let documents: Vec<DocumentId> = directory.keys().copied().collect();
        for document in documents {
            if self.shared.documents.seed(document).is_none() {
                continue;
            }
            match directory.get(&document) {
                Some(Entry::Live(handle)) => {
                    handle.bundle_changed.store(true, Ordering::Relaxed);
                    handle.news.notify_one();
                }
                _ => _ = self.open(&mut directory, document, None),
            }
        }
    }

    /// What is stored of a document has changed beside its room: by an import, or because it was deleted or blocked.
    pub fn reopen(self: &Arc<Self>, document: DocumentId) {
        let mut directory = lock(&self.directory);
        match directory.get(&document) {
            Some(Entry::Live(handle)) => {
                handle.reopen.store(true, Ordering::Relaxed);
                handle.news.notify_one();
            }
            Some(Entry::Waiting(_)) => _ = self.open(&mut directory, document, None),
            None => {}
        }
    }

    /// Follow what happens to a document; none if too many are followed.
    pub fn follow(&self, document: DocumentId) -> Option<Following> {
        self.followers.follow(document)
    }

    /// Tell whoever follows a document that a session may not have it.
    pub(super) fn tell(&self, document: DocumentId, session: &Session, reason: &str) {
        let what = || What::Refused { reason: reason.to_owned() };
        self.followers.tell(document, Some(session), what);
    }

    /// How many documents are live, and how many are waited for.
    pub fn count(&self) -> (usize, usize) {
        let directory = lock(&self.directory);
        let live = directory.values().filter(|entry| matches!(entry, Entry::Live(_))).count();
        (live, directory.len() - live)
    }

    /// The time in milliseconds since 1970, for what is durable now: strictly rising, whatever the clock does,
    /// for clients take nothing that is not newer than what they have.
    fn timestamp(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = u64::try_from(now).unwrap_or(0);
        let next = |last: u64| Some(now.max(last + 1));
        let last = self.told_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        now.max(last.map_or(0, |last| last + 1))
    }

    /// Make all rooms durable and end them. [`Self::late`] names those that have not ended.
    pub async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The documents whose rooms have not ended.
    pub fn late(&self) -> Late {
        let mut late = Late::default();
        for (document, entry) in lock(&self.directory).iter() {
            if let Entry::Live(handle) = entry {
                let has_unsaved =
                    handle.has_engine.load(Ordering::Relaxed) || !handle.pending.is_empty();
                (if has_unsaved { &mut late.unsaved } else { &mut late.loading }).push(*document);
            }
        }
        late
    }

    /// A room's task is gone without having put its things in order. What it has left unsaved goes
    /// to the document's next room.
    fn abandon(self: &Arc<Self>, document: DocumentId) {
        self.shared.metrics.rooms.panics.inc();
        let mut directory = lock(&self.directory);
        let Some(Entry::Live(handle)) = directory.remove(&document) else {
            return;
        };
        for id in lock(&handle.members).drain() {
            if let Some(session) = self.shared.peers.get(id) {
                session.close(CloseReason::RoomPanic);
            }
        }
        if handle.pending.hand_over(&self.shared.documents) {
            let (next, receiver) = Handle::new(document, handle.kept(), self.share());
            self.start(&mut directory, next, receiver, &[]);
        }
        handle.retired.cancel();
    }
}

/// What a document's next room takes over.
#[derive(Default)]
struct Kept {
    usage: Usage,
    seen: Arc<Mutex<Seen>>,
    pending: Arc<Pending>,
}

impl Handle {
    fn new(
        document: DocumentId,
        kept: Kept,
        places: u32,
    ) -> (Arc<Self>, mpsc::Receiver<Box<Input>>) {
        let Kept { usage, seen, pending } = kept;
        let (inputs, receiver) = mpsc::channel(MAILBOX);
        let places = Arc::new(Semaphore::new(places as usize));
        let handle = Self {
            document,
            mailbox: Mailbox { inputs, places, seen },
            members: Mutex::default(),
            usage,
            pending,
            unknown: AtomicBool::new(false),
            has_engine: AtomicBool::new(false),
            asked: Mutex::default(),
            answer: Notify::new(),
            gone: Mutex::default(),
            bundle_changed: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            sent_away: AtomicBool::new(false),
            news: Arc::default(),
            retired: CancellationToken::new(),
        };
        (Arc::new(handle), receiver)
    }

    fn kept(&self) -> Kept {
        let (usage, seen) = (self.usage.clone(), self.mailbox.seen.clone());
        Kept { usage, seen, pending: self.pending.clone() }
    }
}

/// Seconds since `start`, for a histogram.
fn seconds_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests;
