//! The engine on samod: the room is a `samod::Repo` of its own.
//!
//! Each session is a connection of that repo, under the session's id rather than the peer id that
//! it claims. The repo's tasks run in `runtime`: they are counted, a panic in one ends only the
//! engine, and they are aborted when the room closes (`Repo::stop` leaves four). Its clock does not
//! advance: a room dials nobody, and samod's 100 ms tick would cost thousands of rooms a core.
//! `storage` is the store that it sees, `streams` what passes between it and the sessions.
//!
//! samod applies everything that it is sent. So the engine has a second copy of the document that
//! decides what is admitted, and sends the repo only what was admitted.

mod runtime;
mod storage;
mod streams;

use self::{
    runtime::{Runtime, Work},
    storage::RoomStorage,
    streams::{Observer, PATIENCE, PortSink, Reading, UnderWay},
};
use super::{
    engine::{Engine, EngineFailed, EngineStart, Start, done},
    pending::Pending,
    port::Port,
};
use crate::{
    base::{document_id::DocumentId, session_id::SessionId},
    document::{
        core::cost::weight::is_long_to_admit,
        gate::{Document, Refusal, Rules},
        merge::Ancestry,
        sync_message::SyncMessage,
    },
    limits::{
        Charge,
        turns::{Payer, Turns},
    },
    observe::metrics::Metrics,
    storage::live::News,
    sync::{report::EngineReport, wire},
};
use automerge::ChangeHash;
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture, stream};
use samod::{AcceptorHandle, ConcurrencyConfig, Repo, ShareConfig, Transport};
use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, atomic::Ordering},
};
use tokio::sync::mpsc;
use tracing::error;

/// The repo's peer id on the sessions' connections. Nobody else sees it.
const REPO: &str = "room";
/// How many frames of one session may wait for the repo.
const FRAMES: usize = 16;
/// How many bytes the repo may have received and not handled before the room waits for it. samod's
/// own queues have no bound.
const UNDER_WAY: usize = 16 << 20;
/// Returns a starter of samod engines, which take permits of `heavy` for long work other than the
/// repos' own. `storage_id` is what a repo takes for its own.
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
    /// What the repo's document has been sent.
    admitted: Document,
    /// Bytes of the values of its operations.
    values: u64,
    work: Work,
    /// The charge for a new document. What else is durable, the repo does not report.
    pending: Arc<Pending>,
    storage: RoomStorage,
    /// The bundle's snapshot is being stored.
    saving: Option<BoxFuture<'static, ()>>,
}

/// A session as a connection of the repo.
#[derive(Clone)]
struct Connection {
    /// Its peer id there.
    name: String,
    port: Port,
    frames: mpsc::Sender<Vec<u8>>,
}

/// The prefix of the peer ids of sessions that may only read.
const READER: &str = "reader-";

/// What the repo may do for a connection with this peer id.
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

    /// Connects a session to the repo, which refuses its changes if `reads_only`.
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
            _ => error!(document = %self.document, %session, "the repo accepts no session"),
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
        let is_long = is_long_to_admit(&self.admitted, values, has_orphans, &unpacked);
        let mut doc = std::mem::take(&mut self.admitted);
        let admitting = move || {
            let admitted = doc.admit(&changes, Rules::Admission);
            // The repo drops what it has not handled when a session ends: what is here may not be
            // there.
            let admitted = admitted.and_then(|admitted| doc.changes_to_forward(&changes, admitted));
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

    async fn handle(
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
        self.handle(from, request, message, charge).boxed()
    }

    fn settle(&mut self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }

    fn resume(&mut self) {}

    /// A `samod::Repo` reads its storage once.
    fn follow(&mut self, _news: News) -> bool {
        false
    }

    fn rest(&mut self) {}

    fn merge(&mut self, snapshot: Bytes) -> BoxFuture<'_, Option<Ancestry>> {
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
                let ancestry =
                    other.as_mut().map(|other| Ancestry::of(other.automerge(), doc.automerge()));
                let refused = ancestry == Some(Ancestry::Newer)
                    && doc.admit(&data, Rules::Admission).is_err();
                (doc, ancestry.filter(|_| !refused))
            };
            let payer = Payer::Document(self.document);
            let ((doc, ancestry), _) = self.work.run(payer, true, admitting).await.ok()?;
            self.admitted = doc;
            if ancestry? != Ancestry::Newer {
                return ancestry;
            }
            // A repo that is still loading the document finds it later: the next load merges it
            // then.
            let found = tokio::time::timeout(PATIENCE, self.repo.find(id)).await.ok()?;
            let handle = found.ok().flatten()?;
            let merging =
                handle.with_document_async(move |doc| doc.load_incremental(&snapshot).ok());
            merging.await.ok().flatten().and(ancestry)
        }
        .boxed()
    }

    fn work(&mut self) -> BoxFuture<'_, Result<(), EngineFailed>> {
        async move {
            tokio::select! {
                () = self.runtime.failed.cancelled() => {
                    Err(EngineFailed { is_panic: true, is_attributed: false })
                }
                () = done(&mut self.saving) => {
                    self.saving = None;
                    Ok(())
                }
            }
        }
        .boxed()
    }

    /// samod does not report them.
    fn heads(&self) -> Option<&[ChangeHash]> {
        None
    }

    /// samod does not report them.
    fn durable_heads(&self) -> Option<&[ChangeHash]> {
        None
    }

    /// samod returns only the document, and only after a search for it, which an operator is not
    /// worth.
    fn report(&mut self) -> BoxFuture<'_, EngineReport> {
        std::future::ready(EngineReport::default()).boxed()
    }

    /// Closing it is the only way to know.
    fn is_durable(&self) -> bool {
        true
    }

    fn close(mut self: Box<Self>) -> BoxFuture<'static, Result<(), EngineFailed>> {
        async move {
            // The repo reads the streams to their ends and applies what is in them before it is
            // told to stop. Then it ends when everything is durable.
            self.sessions.clear();
            self.under_way.wait_for(|streams, bytes| streams == 0 && bytes == 0).await;
            self.repo.stop().await;
            if let Some(saving) = self.saving.take() {
                saving.await;
            }
            Ok(())
        }
        .boxed()
    }
}

impl Drop for SamodEngine {
    fn drop(&mut self) {
        self.runtime.abort();
        // The repo and its acceptor refer to each other, so neither would be freed. After a panic
        // in one of its tasks samod's locks are poisoned, and it panics on those.
        if let Some(acceptor) = self.acceptor.take() {
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| acceptor.close()));
        }
    }
}
