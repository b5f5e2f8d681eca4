//! Rooms with both engines, as sessions use them.

mod admission;
mod delayed;
mod differential;
mod failures;
mod fragile;
mod mailbox;
mod membership;
mod sharing;
mod unknown;
mod unsaved;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use automerge::{
    Automerge, AutomergeError, ROOT, ReadDoc,
    sync::{State, SyncDoc},
    transaction::{Transactable, Transaction},
};
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    engine::{Engine, EngineFailed, EngineStart, Start},
    input::{Input, ReceivePermit},
    native,
    pending::Pending,
    port::Port,
    samod,
    shared::{FREED_WITHIN, IN_GRACE, LOADING, NOTHING, Needs},
};
use crate::{
    base::{document_id::DocumentId, principal::Principal, session_id::SessionId},
    bundle::served::ServedBundle,
    config::{self, Config, Durability, EngineKind, MemoryLimit, Size, Time},
    document::{merge::Ancestry, sync_message::SyncMessage, unpacked::Unpacked},
    limits::{
        Account, Charge,
        turns::{Payer, Turns},
    },
    observe::{health::Health, metrics::Metrics},
    storage::{
        documents::Documents,
        local::{journal::Journal, space::Space},
    },
    sync::{
        close_reason::CloseReason,
        events::{Following, What},
        outbound::Next,
        peers::Peers,
        report::EngineReport,
        rooms::Rooms,
        session::{Session, subscriptions::Subscriptions},
        wire::{self, Body},
    },
};

/// How long a test waits: thousands of rooms at once take a while on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

struct Fixture {
    _folder: tempfile::TempDir,
    rooms: Arc<Rooms>,
    metrics: Metrics,
    served: watch::Sender<Option<Arc<ServedBundle>>>,
}

fn config() -> Config {
    let mut config = Config::default();
    config.sync.idle_unload = Time(Duration::from_millis(50));
    config.sync.forward_timeout = Time(Duration::from_millis(200));
    config
}

/// A fixture for each engine.
fn both(config: &Config) -> [Fixture; 2] {
    [EngineKind::Native, EngineKind::Samod].map(|engine| {
        fixture(config.clone(), |metrics| match engine {
            EngineKind::Native => native::engine(Arc::new(Turns::new(2))),
            EngineKind::Samod => samod::engine("storage".into(), Arc::new(Turns::new(2)), metrics),
        })
    })
}

fn fixture(config: Config, engine: impl FnOnce(&Metrics) -> EngineStart) -> Fixture {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = Metrics::new().expect("metrics");
    // No power fails here, and the tests with thousands of rooms would only wait for the disk.
    let stored = config::Storage {
        path: folder.path().to_owned(),
        durability: Durability::Relaxed,
        commit_interval: Time(Duration::ZERO),
        ..config.storage.clone()
    };
    let store = Journal::open(&stored, metrics.storage.clone()).expect("opens");
    let store = Arc::new(store);
    let (served, receiver) = watch::channel(None);
    let (sender, config) = watch::channel(Arc::new(config));
    let health = Arc::new(Health::default());
    let space = Space::new(config.clone(), health.clone(), metrics.storage.clone());
    let documents = Documents::new(
        store,
        receiver,
        health,
        Arc::new(space),
        config.clone(),
        metrics.storage.clone(),
    );
    std::mem::forget(sender);
    let rooms = Rooms::new(Needs {
        config,
        documents: Arc::new(documents),
        peers: Arc::new(Peers::default()),
        quotas: Arc::default(),
        engine: engine(&metrics),
        storage_id: "storage".into(),
        others: None,
        probe: DocumentId::random(),
        metrics: metrics.clone(),
    });
    Fixture { _folder: folder, rooms, metrics, served }
}

/// A peer as the relay's sessions see it, with documents of its own.
struct Peer {
    session: Arc<Session>,
    rooms: Arc<Rooms>,
    subscriptions: tokio::sync::Mutex<Subscriptions>,
    documents: HashMap<DocumentId, (Automerge, State)>,
    unavailable: Vec<DocumentId>,
    asked_for: Vec<DocumentId>,
    presence: Vec<Vec<u8>>,
    errors: Vec<String>,
    closed: Option<CloseReason>,
}

impl Fixture {
    fn peer(&self, name: &str) -> Peer {
        self.peer_of(name, Account::at(None))
    }

    fn peer_of(&self, name: &str, account: Account) -> Peer {
        let id = self.rooms.shared.peers.next_id();
        let mut session = Session::for_test(id, name, Principal::anybody());
        session.account = account;
        self.peer_with(session)
    }

    /// A peer whose queue is full at `send_queue` bytes.
    fn slow_peer(&self, name: &str, send_queue: u64) -> Peer {
        let id = self.rooms.shared.peers.next_id();
        self.peer_with(Session::with_queue(id, name, Principal::anybody(), send_queue))
    }

    fn peer_with(&self, session: Session) -> Peer {
        let peers = &self.rooms.shared.peers;
        let session = Arc::new(session);
        peers.join(&session);
        let subscriptions = Subscriptions::new(self.rooms.clone(), session.clone());
        Peer {
            session,
            rooms: self.rooms.clone(),
            subscriptions: tokio::sync::Mutex::new(subscriptions),
            documents: HashMap::new(),
            unavailable: Vec::new(),
            asked_for: Vec::new(),
            presence: Vec::new(),
            errors: Vec::new(),
            closed: None,
        }
    }

    fn waiting(&self) -> i64 {
        self.metrics.rooms.waiting.get()
    }
}

fn permit() -> ReceivePermit {
    let permits = Arc::new(tokio::sync::Semaphore::new(1));
    let permit = permits.try_acquire_owned().expect("a permit");
    let unread = prometheus::IntGauge::new("unread", "unread").expect("a metric");
    ReceivePermit::new([Some(permit), None], 1, unread)
}

impl Peer {
    async fn deliver(&self, document: DocumentId, input: Input) {
        let mut subscriptions = self.subscriptions.lock().await;
        if let Err(input) = subscriptions.delay(document, Box::new(input)) {
            subscriptions.deliver(document, input).await;
        }
    }

    async fn push(&mut self, document: DocumentId, request: bool) {
        let (doc, state) = self.documents.entry(document).or_default();
        if let Some(message) = doc.generate_sync_message(state) {
            self.send(document, request, message.encode()).await;
        }
    }

    async fn send(&self, document: DocumentId, request: bool, data: Vec<u8>) {
        // Unchecked: some of it is to bring automerge down.
        let message = SyncMessage {
            message: automerge::sync::Message::decode(&data).expect("a sync message"),
            raw: data.into(),
            unpacked: Unpacked::default(),
        };
        let from = self.session.clone();
        self.deliver(document, Input::Sync { from, request, message, permit: permit() }).await;
    }

    /// Edits a document without sending the edit.
    fn write(&mut self, document: DocumentId, key: &str) {
        let (doc, _) = self.documents.entry(document).or_default();
        doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, key, 1)).expect("an edit");
    }

    async fn edit(&mut self, document: DocumentId, key: &str) {
        self.write(document, key);
        self.push(document, false).await;
    }

    /// Stores a document, which `other` then requests and gets.
    async fn share_with(&mut self, other: &mut Self, document: DocumentId) {
        self.edit(document, "shared").await;
        self.until("stored", |peer| peer.in_sync(document)).await;
        other.push(document, true).await;
        other.until("the shared document", |other| other.has(document, "shared")).await;
    }

    /// Send an edit that takes longer than a millisecond to admit, as the relay reads it.
    async fn edit_much(&mut self, document: DocumentId) {
        let (doc, state) = self.documents.entry(document).or_default();
        let put = |tx: &mut Transaction<'_>| (0..1_000).try_for_each(|n| tx.put(ROOT, "n", n));
        doc.transact::<_, _, AutomergeError>(put).expect("an edit");
        let message = doc.generate_sync_message(state).expect("a message").encode();
        let message = SyncMessage::read(message.into(), Size::mib(256)).expect("a sync message");
        let from = self.session.clone();
        let input = Input::Sync { from, request: false, message, permit: permit() };
        self.deliver(document, input).await;
    }

    async fn say(&self, document: DocumentId, count: u64, data: &'static [u8]) {
        let (from, author) = (self.session.clone(), self.session.peer_id.to_string());
        let data = Bytes::from_static(data);
        let input = Input::Ephemeral {
            from,
            author,
            author_session: "s".into(),
            count,
            data,
            permit: permit(),
        };
        self.deliver(document, input).await;
    }

    /// Take in one frame and answer it.
    async fn step(&mut self) {
        let next = self.session.outbound.next().await;
        self.take(next).await;
    }

    async fn take(&mut self, next: Next) {
        let frame = match next {
            Next::Send(frame) => frame,
            Next::Close(reason) => {
                self.closed = Some(reason);
                return;
            }
        };
        match wire::Message::decode(&frame).expect("a message").body {
            Body::Sync { document, request: true, .. } => {
                self.asked_for.push(document);
                if let Some((_, state)) = self.documents.get_mut(&document) {
                    *state = State::new();
                    self.push(document, false).await;
                }
            }
            Body::Sync { document, data, .. } => {
                let (doc, state) = self.documents.entry(document).or_default();
                let message = automerge::sync::Message::decode(&data).expect("a sync message");
                doc.receive_sync_message(state, message).expect("applies");
                self.push(document, false).await;
            }
            Body::DocUnavailable { document } => self.unavailable.push(document),
            Body::Ephemeral { data, .. } => self.presence.push(data.to_vec()),
            Body::Error { message } => self.errors.push(message.into_owned()),
            other => panic!("{other:?}"),
        }
    }

    /// Answer until `done`.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let stepping = async {
            while !done(self) {
                self.step().await;
            }
        };
        let result = tokio::time::timeout(LIMIT, stepping).await;
        assert!(result.is_ok(), "not in time: {what}");
    }

    /// Answer until `done`, while `other` answers too.
    async fn until_with(&mut self, other: &mut Peer, what: &str, done: impl Fn(&Self) -> bool) {
        let serving = async {
            loop {
                other.step().await;
            }
        };
        tokio::select! {
            () = self.until(what, done) => {}
            () = serving => {}
        }
    }

    fn has(&self, document: DocumentId, key: &str) -> bool {
        let doc = self.documents.get(&document).map(|(doc, _)| doc);
        doc.is_some_and(|doc| doc.get(ROOT, key).is_ok_and(|value| value.is_some()))
    }

    /// What the relay says it has is what this peer has.
    fn in_sync(&self, document: DocumentId) -> bool {
        let (doc, state) = &self.documents[&document];
        let mut theirs = state.their_heads.clone().unwrap_or_default();
        theirs.sort();
        theirs == doc.get_heads()
    }

    fn leave(self) {
        self.depart();
    }

    /// Ends the session. The peer keeps its documents.
    fn depart(&self) {
        self.rooms.shared.peers.leave(&self.session);
        self.subscriptions.try_lock().expect("nothing is being delivered").leave_all();
    }
}

fn id(n: u8) -> DocumentId {
    DocumentId::from_bytes([n; 16])
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, waiting).await.is_ok(), "not in time: {what}");
}
