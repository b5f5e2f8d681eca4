//! The engine on samod: the room is a `samod::Repo` of its own.
//!
//! Each session is a connection of that repo, under the session's id rather than the peer id it claims.
//! The repo runs on a runtime of ours: its tasks are counted, a panic in one ends the engine and nothing
//! else, and they are aborted when the room closes (`Repo::stop` leaves four). Its clock stands still: a
//! room dials nobody, and samod's 100 ms tick would cost thousands of rooms a core.
//!
//! samod applies whatever it is sent. So a second copy of the document is kept here that decides what is admitted, and the
//! repo is sent what was admitted and nothing else.

use super::{Engine, EngineFailed, EngineStart, Port, done, native::cost};
use crate::{
    base::{document_id::DocumentId, lock::lock, session_id::SessionId},
    document::{
        chunk::{ChunkKind, Key, StoredChunk},
        compare::Relation,
        gate::{Document, Refusal, Rules},
    },
    limits::{
        Charge,
        turns::{Payer, Turns},
    },
    observe::{
        metrics::{Metrics, RoomMetrics},
        usage::{Polled, Usage, thread_time},
    },
    storage::documents::{Documents, SeedSnapshot},
    sync::{
        look::EngineLook,
        room::{Start, pending::Pending},
        wire::{self, Body, Message, SyncMessage},
    },
};
use automerge::ChangeHash;
use bytes::Bytes;
use futures::{FutureExt, Sink, future::BoxFuture, stream};
use prometheus::Histogram;
use samod::{
    AcceptorHandle, ConcurrencyConfig, Repo, RepoEvent, RepoObserver, ShareConfig, Transport,
    runtime::RuntimeHandle,
    storage::{Storage, StorageKey},
};
use std::{
    collections::{HashMap, HashSet},
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    sync::{Notify, mpsc},
    task::{AbortHandle, JoinError},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

/// The repo's own name towards the sessions' connections; nobody else sees it.
const REPO: &str = "room";
/// Frames of one session on their way into the repo.
const FRAMES: usize = 16;
/// Bytes on their way through the repo, beyond which a room takes no more in; samod's own queues have
/// no bound.
const UNDER_WAY: usize = 16 << 20;
/// The longest a room waits for the next of them: samod does not report messages that it refuses.
const PATIENCE: Duration = Duration::from_secs(5);

/// A starter of samod engines, which take places of `heavy` for what takes long, but for the repos'
/// own work. `storage_id` is what a repo takes for its own.
pub fn engine(storage_id: String, heavy: Arc<Turns>, metrics: &Metrics) -> EngineStart {
    let metrics =
        (metrics.rooms.clone(), metrics.process.poll_seconds.with_label_values(&["engine"]));
    Arc::new(move |start: Start| {
        let (storage_id, metrics) = (storage_id.clone(), metrics.clone());
        let runtime = Runtime::new(start.document, metrics, start.usage.clone());
        let work = Work { heavy: heavy.clone(), usage: start.usage.clone() };
        SamodEngine::start(start, storage_id, runtime, work)
            .map(|engine| Box::new(engine) as Box<dyn Engine>)
            .boxed()
    })
}

struct SamodEngine {
    document: DocumentId,
    repo: Repo,
    acceptor: Option<AcceptorHandle>,
    runtime: Runtime,
    under_way: Arc<UnderWay>,
    sessions: HashMap<SessionId, Connection>,
    /// What the repo's document is to be.
    admitted: Document,
    /// Bytes of the values of its operations.
    values: u64,
    work: Work,
    /// It keeps what charges are for; of the repo it is not known what is durable.
    pending: Arc<Pending>,
    storage: RoomStorage,
    /// The bundle's snapshot is being stored.
    saving: Option<BoxFuture<'static, ()>>,
}

/// Runs work on documents on threads that may block.
struct Work {
    heavy: Arc<Turns>,
    usage: Usage,
}

impl Work {
    /// Runs `work`, which waits for a place of `payer` if it takes long. Returns its result and the
    /// processor time that it took.
    ///
    /// # Errors
    /// A panic in `work`, or the runtime is shutting down.
    async fn run<T: Send + 'static>(
        &self,
        payer: Payer,
        is_long: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<(T, Duration), JoinError> {
        let usage = self.usage.clone();
        let place = if is_long { Some(self.heavy.take(payer).await) } else { None };
        let working = tokio::task::spawn_blocking(move || {
            let _place = place;
            let began = thread_time();
            let done = usage.charge(work);
            (done, thread_time().saturating_sub(began))
        });
        working.await
    }
}

/// A session as a connection of the repo.
#[derive(Clone)]
struct Connection {
    /// Its name there.
    name: String,
    port: Port,
    frames: mpsc::Sender<Vec<u8>>,
}

/// What the names of sessions that may only read begin with.
const READER: &str = "reader-";

/// What the repo does for a connection of that name.
fn share(_: samod::DocumentId, peer: samod::PeerId) -> impl stream::Stream<Item = ShareConfig> {
    let config = if peer.as_str().starts_with(READER) {
        ShareConfig::read_only()
    } else {
        ShareConfig::read_write()
    };
    stream::iter([config.with_announce(false)])
}

impl SamodEngine {
    async fn start(start: Start, storage_id: String, runtime: Runtime, work: Work) -> Self {
        let Start { documents, document, opened, pending, .. } = start;
        let under_way = Arc::new(UnderWay::default());
        let (admitted, values) = (opened.doc, opened.unpacked.values);
        let storage = RoomStorage {
            documents,
            keeps_all: Arc::default(),
            storage_id,
            known: Arc::new(opened.chunks.iter().map(|(key, _)| key.clone()).collect()),
            changes: Arc::new(opened.changes),
            seed: Arc::new(tokio::sync::Mutex::new(opened.unsaved_seed)),
            chunks: Arc::new(Mutex::new(opened.chunks)),
        };
        let repo = Repo::builder(runtime.clone())
            .with_peer_id(samod::PeerId::from(REPO))
            .with_storage(storage.clone())
            // Threads of its own would park one a document.
            .with_concurrency(ConcurrencyConfig::AsyncRuntime)
            .with_share_policy(share)
            .with_observer(Observer(under_way.clone()))
            .load()
            .await;
        let acceptor =
            samod::Url::parse("room://sessions").ok().and_then(|url| repo.make_acceptor(url).ok());
        let sessions = HashMap::new();
        let saving = None;
        Self {
            document,
            repo,
            acceptor,
            runtime,
            under_way,
            sessions,
            admitted,
            values,
            work,
            pending,
            storage,
            saving,
        }
    }

    /// Connects a session to the repo, which takes no changes of it if it only reads.
    async fn connect(&mut self, port: Port, reads_only: bool) {
        let session = port.session();
        let (frames, mut receiver) = mpsc::channel::<Vec<u8>>(FRAMES);
        let reading = Reading(self.under_way.clone());
        let incoming = stream::poll_fn(move |cx| {
            let _ = &reading;
            receiver.poll_recv(cx).map(|frame| frame.map(Ok::<_, std::io::Error>))
        });
        let name = if reads_only { format!("{READER}{session}") } else { session.to_string() };
        let transport = Transport::new(incoming, PortSink(port.clone()));
        self.under_way.streams.fetch_add(1, Ordering::Relaxed);
        match self.acceptor.as_ref().map(|acceptor| acceptor.accept(transport)) {
            Some(Ok(_)) => {}
            _ => error!(document = %self.document, %session, "the repo takes no session"),
        }
        let join = wire::join(&name).to_vec();
        self.sessions.insert(session, Connection { name, port, frames: frames.clone() });
        let _ = frames.send(join).await;
    }

    /// Replaces a message's changes by those that are admitted.
    async fn admit(&mut self, message: SyncMessage, port: &Port) -> Result<SyncMessage, Refusal> {
        let changes = message.changes().into_owned();
        let (values, unpacked) = (self.values, message.unpacked);
        let has_orphans = self.admitted.has_orphans();
        let is_long = cost::is_long_to_admit(&self.admitted, values, has_orphans, &unpacked);
        let mut doc = std::mem::take(&mut self.admitted);
        let admitting = move || {
            let admitted = doc.admit(&changes, Rules::Admission);
            // The repo forgets what is on its way when a session ends: what is here may not be there.
            let admitted = admitted.and_then(|admitted| doc.to_be_passed_on(&changes, admitted));
            (doc, admitted)
        };
        let admitting = self.work.run(port.payer(), is_long, admitting);
        let Ok(((doc, admitted), took)) = admitting.await else {
            self.runtime.failed.cancel();
            return Err(Refusal::Unappliable("the relay fails on them".to_owned()));
        };
        port.charge(took, 1);
        if doc.is_damaged() {
            // It is read from storage again.
            self.runtime.failed.cancel();
        }
        self.admitted = doc;
        self.values = values.saturating_add(unpacked.values);
        Ok(message.with_changes(admitted?))
    }

    async fn take_in(
        &mut self,
        from: SessionId,
        request: bool,
        mut message: SyncMessage,
        charge: Option<Charge>,
    ) {
        let Some(Connection { name, port, .. }) = self.sessions.get(&from).cloned() else { return };
        if message.has_changes() && !name.starts_with(READER) {
            message = match self.admit(message.clone(), &port).await {
                Ok(admitted) => {
                    if let Some(mut charge) = charge {
                        charge.keep_bytes();
                        self.pending.keep_creation();
                    }
                    admitted
                }
                Err(why) => {
                    port.refuse(&format!("the changes to {} {why}", self.document), why.label());
                    self.connect(port, true).await;
                    message.with_changes(Vec::new())
                }
            };
        }
        let Some(Connection { name, frames, .. }) = self.sessions.get(&from).cloned() else {
            return;
        };
        let data = message.raw;
        let frame = wire::sync(request, &name, REPO, self.document, &data);
        if !request {
            self.under_way.bytes.fetch_add(data.len(), Ordering::Relaxed);
        }
        let _ = frames.send(frame.to_vec()).await;
        self.under_way.wait_for(|_, bytes| bytes <= UNDER_WAY).await;
    }
}

impl Engine for SamodEngine {
    fn join(&mut self, port: Port) -> BoxFuture<'_, ()> {
        let reads_only = port.reads_only();
        self.connect(port, reads_only).boxed()
    }

    fn leave(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    fn reads_only(&mut self, session: SessionId) -> BoxFuture<'_, ()> {
        async move {
            if let Some(Connection { name, port, .. }) = self.sessions.get(&session).cloned()
                && !name.starts_with(READER)
            {
                self.connect(port, true).await;
            }
        }
        .boxed()
    }

    fn receive(
        &mut self,
        from: SessionId,
        request: bool,
        message: SyncMessage,
        charge: Option<Charge>,
    ) -> BoxFuture<'_, ()> {
        self.take_in(from, request, message, charge).boxed()
    }

    fn settle(&mut self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn resume(&mut self) {}

    fn rest(&mut self) {}

    fn merge(&mut self, snapshot: Bytes) -> BoxFuture<'_, Option<Relation>> {
        let Ok(id) = self.document.to_string().parse::<samod::DocumentId>() else {
            return futures::future::ready(None).boxed();
        };
        let storage = self.storage.clone();
        self.saving = Some(async move { storage.save_seed().await }.boxed());
        async move {
            let mut doc = std::mem::take(&mut self.admitted);
            let data = snapshot.clone();
            let admitting = move || {
                let mut other = Document::read(&data, Rules::Admission).ok();
                let relation =
                    other.as_mut().map(|other| Relation::of(other.automerge(), doc.automerge()));
                let refused = relation == Some(Relation::Newer)
                    && doc.admit(&data, Rules::Admission).is_err();
                (doc, relation.filter(|_| !refused))
            };
            let payer = Payer::Document(self.document);
            let ((doc, relation), _) = self.work.run(payer, true, admitting).await.ok()?;
            self.admitted = doc;
            if relation? != Relation::Newer {
                return relation;
            }
            // A repo whose document is still on its way finds it only later; the next load merges then.
            let found = tokio::time::timeout(PATIENCE, self.repo.find(id)).await.ok()?;
            let handle = found.ok().flatten()?;
            let merging =
                handle.with_document_async(move |doc| doc.load_incremental(&snapshot).ok());
            merging.await.ok().flatten().and(relation)
        }
        .boxed()
    }

    fn work(&mut self) -> BoxFuture<'_, Result<(), EngineFailed>> {
        async move {
            tokio::select! {
                () = self.runtime.failed.cancelled() => {
                    Err(EngineFailed { is_panic: true, is_mended: false })
                }
                () = done(&mut self.saving) => {
                    self.saving = None;
                    Ok(())
                }
            }
        }
        .boxed()
    }

    /// samod does not tell.
    fn durable_heads(&self) -> Option<&[ChangeHash]> {
        None
    }

    /// samod tells the document alone, and that only after a search for it: its own commands are not asked for that.
    fn look(&mut self) -> BoxFuture<'_, EngineLook> {
        std::future::ready(EngineLook::default()).boxed()
    }

    /// Closing it is the only way to know.
    fn is_durable(&self) -> bool {
        true
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, ()> {
        async move {
            // The repo reads what is in the streams to their ends, and takes it into the document, before it
            // is told to stop; then it ends when all is durable.
            self.sessions.clear();
            self.under_way.wait_for(|streams, bytes| streams == 0 && bytes == 0).await;
            self.repo.stop().await;
            if let Some(saving) = self.saving.take() {
                saving.await;
            }
        }
        .boxed()
    }
}

impl Drop for SamodEngine {
    fn drop(&mut self) {
        self.runtime.abort();
        // The repo holds its acceptor and the acceptor the repo: neither would ever be freed. samod's locks are
        // poisoned where a task of it has panicked, and it panics on those.
        if let Some(acceptor) = self.acceptor.take() {
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| acceptor.close()));
        }
    }
}

/// What the repo has not taken in yet.
#[derive(Default)]
struct UnderWay {
    /// Of sync messages; samod does not report requests.
    bytes: AtomicUsize,
    /// Streams of sessions that it has not read to their ends.
    streams: AtomicUsize,
    less: Notify,
}

impl UnderWay {
    fn taken_in(&self, bytes: usize) {
        let _ = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            Some(now.saturating_sub(bytes))
        });
        self.less.notify_waiters();
    }

    /// Wait until there are few enough streams and bytes, or nothing has moved for long.
    async fn wait_for(&self, few: impl Fn(usize, usize) -> bool) {
        loop {
            let less = self.less.notified();
            if few(self.streams.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed)) {
                return;
            }
            if tokio::time::timeout(PATIENCE, less).await.is_err() {
                // Messages that samod refuses are never reported.
                self.bytes.store(0, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// A stream that the repo reads; dropped when it is at its end.
struct Reading(Arc<UnderWay>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.less.notify_waiters();
    }
}

struct Observer(Arc<UnderWay>);

impl RepoObserver for Observer {
    fn observe(&self, event: &RepoEvent) {
        if let RepoEvent::SyncMessageReceived { bytes, .. } = event {
            self.0.taken_in(*bytes);
        }
    }
}

/// What the repo sends to one session.
struct PortSink(Port);

impl Sink<Vec<u8>> for PortSink {
    type Error = std::io::Error;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn start_send(self: Pin<&mut Self>, frame: Vec<u8>) -> Result<(), Self::Error> {
        match Message::decode(&frame).map(|message| message.body) {
            Ok(Body::Sync { data, .. }) => self.0.sync(&data),
            // The room answers for documents that nobody has: it also knows who else was asked.
            Ok(Body::Peer | Body::DocUnavailable { .. }) => {}
            Ok(other) => debug!(kind = other.name(), "the repo sent what no session needs"),
            Err(error) => warn!("the repo sent what is no message: {error}"),
        }
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }
}

/// Runs a repo's tasks, and ends them.
#[derive(Clone)]
struct Runtime {
    document: DocumentId,
    metrics: RoomMetrics,
    polls: Histogram,
    usage: Usage,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
    failed: CancellationToken,
}

impl Runtime {
    fn new(document: DocumentId, (metrics, polls): (RoomMetrics, Histogram), usage: Usage) -> Self {
        let failed = CancellationToken::new();
        Self { document, metrics, polls, usage, tasks: Arc::default(), failed }
    }

    fn abort(&self) {
        let mut tasks = lock(&self.tasks);
        for task in tasks.drain(..) {
            task.abort();
        }
    }
}

/// Counts a task for as long as it lives.
struct Counted(RoomMetrics);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.engine_tasks.dec();
    }
}

impl RuntimeHandle for Runtime {
    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send + 'static>>) {
        let (failed, document) = (self.failed.clone(), self.document);
        let task = Polled::new(task, self.polls.clone()).charged_to(&self.usage);
        self.metrics.engine_tasks.inc();
        let counted = Counted(self.metrics.clone());
        let task = tokio::spawn(async move {
            let _counted = counted;
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                error!(%document, "a panic in the document's engine; it is started anew");
                failed.cancel();
            }
        });
        lock(&self.tasks).push(task.abort_handle());
    }

    fn sleep(&self, _: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
        Box::pin(std::future::pending())
    }
}

/// The store of one room, as samod wants it.
#[derive(Clone)]
struct RoomStorage {
    documents: Arc<Documents>,
    /// A snapshot was bad: nothing is deleted any more.
    keeps_all: Arc<AtomicBool>,
    storage_id: String,
    /// Keys that need not be written: they were loaded, or lie underneath.
    known: Arc<HashSet<Key>>,
    /// Changes that need not be written by themselves: a known chunk has them.
    changes: Arc<HashSet<ChangeHash>>,
    chunks: Arc<Mutex<Vec<StoredChunk>>>,
    /// The served bundle's snapshot, which is stored before the first change that builds on it.
    seed: Arc<tokio::sync::Mutex<Option<SeedSnapshot>>>,
}

/// Our key for one of samod's; none for what is no key of a document.
fn key(key: &StorageKey) -> Option<Key> {
    let mut parts = key.into_iter();
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(document), Some(kind), Some(name), None) => Some(Key::Chunk {
            document: document.parse().ok()?,
            kind: ChunkKind::from_name(kind)?,
            name: name.clone(),
        }),
        _ => None,
    }
}

impl RoomStorage {
    async fn save_seed(&self) {
        let mut seed = self.seed.lock().await;
        if let Some(SeedSnapshot { key, data }) = &*seed {
            self.documents.save(key, data.clone()).await;
            *seed = None;
        }
    }

    fn is_stored(&self, key: &Key) -> bool {
        match key {
            Key::Chunk { kind: ChunkKind::Incremental, name, .. } => {
                self.known.contains(key)
                    || name.parse().is_ok_and(|hash| self.changes.contains(&hash))
            }
            // Once samod thinks that it wrote a snapshot it deletes every other chunk, also those with
            // changes that the document lacks dependencies for. Written anew, it holds those as well.
            _ => self.known.len() == 1 && self.known.contains(key),
        }
    }
}

impl Storage for RoomStorage {
    async fn load(&self, key: StorageKey) -> Option<Vec<u8>> {
        (key == StorageKey::storage_id_path()).then(|| self.storage_id.clone().into_bytes())
    }

    /// The chunks that the room was opened with, once.
    async fn load_range(&self, prefix: StorageKey) -> HashMap<StorageKey, Vec<u8>> {
        let mut chunks = lock(&self.chunks);
        let (taken, left) = std::mem::take(&mut *chunks)
            .into_iter()
            .filter_map(|(key, data)| {
                let parts = key.to_string();
                Some((StorageKey::from_parts(parts.split('/')).ok()?, key, data))
            })
            .partition::<Vec<_>, _>(|(samod, _, _)| prefix.is_prefix_of(samod));
        *chunks = left.into_iter().map(|(_, key, data)| (key, data)).collect();
        taken.into_iter().map(|(samod, _, data)| (samod, data)).collect()
    }

    /// Returns when the bytes are durable, however long that takes: samod then deletes what they replace.
    async fn put(&self, samod: StorageKey, data: Vec<u8>) {
        let key = key(&samod);
        if !key.as_ref().is_some_and(|key| self.is_stored(key)) {
            self.save_seed().await;
        }
        match key {
            Some(key) if self.is_stored(&key) => {}
            Some(key @ Key::Chunk { kind: ChunkKind::Snapshot, .. }) => {
                let checking = tokio::task::spawn_blocking(move || {
                    let is_good = Document::read(&data, Rules::Stored).is_ok();
                    is_good.then_some(data)
                });
                match checking.await.ok().flatten() {
                    Some(data) => self.documents.save(&key, data.into()).await,
                    // What it would replace stays, and has all that it has.
                    None => {
                        error!(%key, "the repo's snapshot cannot be read again; it is not stored");
                        self.keeps_all.store(true, Ordering::Relaxed);
                    }
                }
            }
            Some(key) => self.documents.save(&key, data.into()).await,
            None => error!(key = %samod, "the repo stores what is no chunk; it is not stored"),
        }
    }

    async fn delete(&self, samod: StorageKey) {
        if let Some(key) = key(&samod).filter(|_| !self.keeps_all.load(Ordering::Relaxed)) {
            self.documents.remove(&key).await;
        }
    }
}
