mod admission;
mod differential;
mod unsaved;

use super::*;
use crate::{
    base::principal::Principal,
    bundle::served::ServedBundle,
    config::{Durability, EngineKind, MemoryLimit, Time},
    document::{compare::Ancestry, unpacked::Unpacked},
    limits::{Account, Charge, turns::Turns},
    observe::health::Health,
    storage::local::{nodefs::NodefsStore, space::Space},
    sync::close_reason::CloseReason,
    sync::{
        look::EngineLook,
        outbound::Next,
        room::{Engine, EngineFailed, Port, native, samod},
        wire::{self, Body},
    },
};
use automerge::{
    Automerge, AutomergeError, ROOT, ReadDoc,
    sync::{State, SyncDoc},
    transaction::{Transactable, Transaction},
};
use futures::future::BoxFuture;
use std::{collections::HashMap, sync::atomic::AtomicUsize};

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
    let store = Arc::new(NodefsStore::open(folder.path(), Durability::Fsync).expect("opens"));
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
    let rooms = Rooms::new(Shared {
        config,
        documents: Arc::new(documents),
        peers: Arc::new(Peers::default()),
        principals: Arc::default(),
        engine: engine(&metrics),
        storage_id: "storage".into(),
        probe: DocumentId::random(),
        metrics: metrics.clone(),
    });
    Fixture { _folder: folder, rooms, metrics, served }
}

/// A peer as the relay's sessions see it, with documents of its own.
struct Peer {
    session: Arc<Session>,
    rooms: Arc<Rooms>,
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
        let peers = &self.rooms.shared.peers;
        let mut session = Session::for_test(peers.next_id(), name, Principal::anybody());
        session.account = account;
        let session = Arc::new(session);
        peers.join(&session);
        Peer {
            session,
            rooms: self.rooms.clone(),
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

fn held() -> Held {
    let permits = Arc::new(tokio::sync::Semaphore::new(1));
    let permit = permits.try_acquire_owned().expect("a place");
    Held::new(
        [Some(permit), None],
        1,
        prometheus::IntGauge::new("unread", "unread").expect("a metric"),
    )
}

impl Peer {
    async fn deliver(&self, document: DocumentId, input: Input) {
        self.session.deliver(&self.rooms, document, input).await;
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
        self.deliver(document, Input::Sync { from, request, message, held: held() }).await;
    }

    async fn edit(&mut self, document: DocumentId, key: &str) {
        let (doc, _) = self.documents.entry(document).or_default();
        doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, key, 1)).expect("an edit");
        self.push(document, false).await;
    }

    /// Send an edit that takes longer than a millisecond to admit, as the relay reads it.
    async fn edit_much(&mut self, document: DocumentId) {
        let (doc, state) = self.documents.entry(document).or_default();
        let put = |tx: &mut Transaction<'_>| (0..1_000).try_for_each(|n| tx.put(ROOT, "n", n));
        doc.transact::<_, _, AutomergeError>(put).expect("an edit");
        let message = doc.generate_sync_message(state).expect("a message").encode();
        let message = SyncMessage::read(message.into(), Size::mib(256)).expect("a sync message");
        let from = self.session.clone();
        let input = Input::Sync { from, request: false, message, held: held() };
        self.deliver(document, input).await;
    }

    async fn say(&self, document: DocumentId, count: u64, data: &'static [u8]) {
        let (from, author) = (self.session.clone(), self.session.peer_id.to_string());
        let data = Bytes::from_static(data);
        let input =
            Input::Ephemeral { from, author, session: "s".into(), count, data, held: held() };
        self.deliver(document, input).await;
    }

    /// Take in one frame and answer it.
    async fn step(&mut self) {
        let next = self.session.outbound().next().await;
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
        self.rooms.shared.peers.leave(&self.session);
        for document in self.session.take_documents() {
            self.rooms.leave(document, self.session.id);
        }
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

#[tokio::test]
async fn a_room_that_takes_long_has_its_share_of_the_receive_queue_and_no_more() {
    use futures::FutureExt;
    let fixture = fixture(config(), |_| native::engine(Arc::new(Turns::new(2))));
    let (rooms, alice) = (&fixture.rooms, fixture.peer("alice"));
    let busy = alice.session.room(rooms, DocumentId::random()).await;
    let _all = busy.places(rooms.share()).await.expect("a share");
    assert!(busy.places(1).now_or_never().is_none(), "its sender waits");
    let other = alice.session.room(rooms, DocumentId::random()).await;
    assert!(other.places(rooms.share()).now_or_never().flatten().is_some(), "others do not");
}

#[tokio::test]
async fn long_changes_that_samod_admits_wait_for_a_heavy_place() {
    let heavy = Arc::new(Turns::new(2));
    let fixture = fixture(config(), |metrics| samod::engine("s".into(), heavy.clone(), metrics));
    let mut alice = fixture.peer("alice");
    alice.edit(id(1), "a").await;
    alice.until("stored", |alice| alice.in_sync(id(1))).await;
    // Nobody has both: two others are at work.
    let [first, second] = [id(8), id(9)].map(|document| heavy.take(Payer::Document(document)));
    let places = (first.await, second.await);
    alice.edit(id(1), "short").await;
    alice.until("stored without a place", |alice| alice.in_sync(id(1))).await;
    alice.edit_much(id(1)).await;
    until("the long edit waits", || heavy.waiting() == 1).await;
    drop(places);
    alice.until("stored", |alice| alice.in_sync(id(1))).await;
}

#[tokio::test(start_paused = true)]
async fn all_for_whom_there_is_no_memory_are_refused_together() {
    let mut config = config();
    config.sync.memory = MemoryLimit::Bytes(Size(1));
    let fixture = fixture(config, |_| native::engine(Arc::new(Turns::new(2))));
    let start = tokio::time::Instant::now();
    let mut peers: Vec<Peer> = (1..=100).map(|n| fixture.peer(&format!("peer-{n}"))).collect();
    for (n, peer) in (1..).zip(&mut peers) {
        peer.push(id(n), true).await;
    }
    for peer in &mut peers {
        peer.until("refused", |peer| peer.closed.is_some()).await;
        assert_eq!(peer.closed, Some(CloseReason::Memory));
    }
    assert!(start.elapsed() < 2 * FREED_WITHIN, "the last one after {:?}", start.elapsed());
}

#[tokio::test]
async fn two_peers_share_a_document_and_its_presence() {
    for fixture in both(&config()) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        alice.edit(id(1), "a").await;
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
        bob.push(id(1), true).await;
        bob.until("the document", |bob| bob.has(id(1), "a")).await;
        bob.edit(id(1), "b").await;
        alice.until("bob's edit", |alice| alice.has(id(1), "b")).await;
        for count in [1, 2, 2, 1, 3] {
            alice.say(id(1), count, b"hello").await;
        }
        bob.until("presence", |bob| bob.presence.len() == 3).await;
        assert!(alice.presence.is_empty(), "nobody hears himself");
    }
}

#[tokio::test]
async fn an_idle_room_gives_its_tasks_back_and_loses_nothing() {
    for fixture in both(&config()) {
        let mut alice = fixture.peer("alice");
        for n in 1..=20 {
            alice.edit(id(n), "a").await;
            alice.until("stored", |alice| alice.in_sync(id(n))).await;
        }
        assert_eq!(fixture.rooms.count().0, 20);
        alice.leave();
        let rooms = &fixture.metrics.rooms;
        until("rooms unload", || rooms.unloaded.with_label_values(&["idle"]).get() == 20).await;
        until("tasks end", || rooms.engine_tasks.get() == 0).await;
        assert_eq!(fixture.rooms.count(), (0, 0));
        let mut bob = fixture.peer("bob");
        bob.push(id(7), true).await;
        bob.until("the document", |bob| bob.has(id(7), "a")).await;
    }
}

#[tokio::test]
async fn a_document_that_is_brought_right_after_it_was_asked_for_is_found() {
    for fixture in both(&config()) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        for n in 1..=10 {
            bob.push(id(n), true).await;
            alice.edit(id(n), "a").await;
            bob.until_with(&mut alice, "the document", |bob| bob.has(id(n), "a")).await;
        }
        assert!(bob.unavailable.is_empty(), "{:?}", bob.unavailable);
    }
}

#[tokio::test]
async fn the_grace_before_the_first_answer_is_bounded_and_not_for_the_probe() {
    let fixture = fixture(config(), |_| native::engine(Arc::new(Turns::new(2))));
    let in_grace = fixture.rooms.in_grace.clone();
    let mut bob = fixture.peer("bob");
    let began = Instant::now();
    bob.push(id(1), true).await;
    until("it waits", || in_grace.available_permits() == IN_GRACE - 1).await;
    bob.until("the answer", |bob| bob.unavailable == [id(1)]).await;
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    until("its place is free", || in_grace.available_permits() == IN_GRACE).await;

    // Without a place left, and for the relay's own question, there is none: nothing gives the places back.
    let _all = in_grace.clone().acquire_many_owned(IN_GRACE as u32).await.expect("places");
    bob.push(id(2), true).await;
    bob.until("the answer", |bob| bob.unavailable.contains(&id(2))).await;
    let probe = fixture.rooms.shared.probe;
    drop(_all);
    let taken = in_grace.clone();
    bob.push(probe, true).await;
    bob.until("the answer", |bob| {
        assert_eq!(taken.available_permits(), IN_GRACE, "the probe takes no place");
        bob.unavailable.contains(&probe)
    })
    .await;
}

#[tokio::test]
async fn an_unknown_document_is_unavailable_and_later_arrives() {
    for fixture in both(&config()) {
        let mut bob = fixture.peer("bob");
        for n in 1..=50 {
            bob.push(id(n), true).await;
        }
        bob.until("the answers", |bob| bob.unavailable.len() == 50).await;
        until("no room is left", || fixture.rooms.count() == (0, 50)).await;
        assert_eq!(fixture.waiting(), 50);
        assert_eq!(fixture.metrics.rooms.engine_tasks.get(), 0);

        let mut alice = fixture.peer("alice");
        alice.edit(id(3), "a").await;
        alice.until("stored", |alice| alice.in_sync(id(3))).await;
        bob.until("the document", |bob| bob.has(id(3), "a")).await;
        assert_eq!(fixture.waiting(), 49);
        bob.leave();
        until("nobody waits", || fixture.waiting() == 0).await;
    }
}

/// The engine may need longer for its first answer than those who ask have left.
#[tokio::test]
async fn a_document_that_is_asked_for_and_brought_at_once_reaches_everybody() {
    let mut config = config();
    config.sync.forward_timeout = Time(Duration::from_millis(1));
    for fixture in both(&config) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        let (doc, _) = alice.documents.entry(id(1)).or_default();
        doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, "a", 1)).expect("an edit");
        bob.push(id(1), true).await;
        alice.push(id(1), true).await;
        bob.until_with(&mut alice, "the document", |bob| bob.has(id(1), "a")).await;
    }
}

#[tokio::test]
async fn a_request_is_passed_on_to_those_who_share_a_document_once_and_within_bounds() {
    let mut config = config();
    config.sync.forward_peers = 3;
    config.sync.forward_timeout = Time::secs(60);
    for fixture in both(&config) {
        let mut bob = fixture.peer("bob");
        bob.edit(id(1), "shared").await;
        bob.until("stored", |bob| bob.in_sync(id(1))).await;
        let mut friends: Vec<Peer> = (0..5).map(|n| fixture.peer(&format!("friend {n}"))).collect();
        for friend in &mut friends {
            friend.push(id(1), true).await;
            friend.until("the shared document", |friend| friend.has(id(1), "shared")).await;
        }
        let mut stranger = fixture.peer("stranger");
        stranger.edit(id(9), "elsewhere").await;
        stranger.until("stored", |stranger| stranger.in_sync(id(9))).await;

        bob.push(id(2), true).await;
        let asked = fixture.metrics.rooms.requests.with_label_values(&["passed_on"]);
        until("peers are asked", || asked.get() == 3).await;
        let mut answered = 0;
        for friend in &mut friends {
            while let Some(Next::Send(frame)) = friend.session.outbound().try_next() {
                let message = wire::Message::decode(&frame).expect("a message");
                if matches!(message.body, Body::Sync { request: true, document, .. } if document == id(2))
                {
                    assert!(fixture.rooms.lacks(id(2), friend.session.id));
                    answered += 1;
                }
            }
        }
        assert_eq!(answered, 3);
        // All have answered: no need to wait for the minute to pass.
        bob.until("the answer", |bob| bob.unavailable == [id(2)]).await;
        assert!(stranger.session.outbound().try_next().is_none(), "a stranger hears of nothing");
        assert!(!fixture.rooms.lacks(id(2), stranger.session.id));
        assert_eq!(asked.get(), 3);
    }
}

#[tokio::test]
async fn a_forwarded_request_brings_the_document() {
    for fixture in both(&config()) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        alice.edit(id(1), "shared").await;
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
        bob.push(id(1), true).await;
        bob.until("the shared document", |bob| bob.has(id(1), "shared")).await;

        bob.push(id(2), true).await;
        alice.until("the question", |alice| alice.asked_for == [id(2)]).await;
        alice.edit(id(2), "found").await;
        bob.until_with(&mut alice, "the document", |bob| bob.has(id(2), "found")).await;
        assert!(bob.unavailable.is_empty());
    }
}

/// automerge-repo does not ask again for what it was asked for and did not have.
#[tokio::test]
async fn who_was_asked_in_vain_gets_the_document_when_somebody_brings_it() {
    for fixture in both(&config()) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        alice.edit(id(1), "shared").await;
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
        bob.push(id(1), true).await;
        bob.until("the shared document", |bob| bob.has(id(1), "shared")).await;

        bob.push(id(2), true).await;
        alice.until("the question", |alice| alice.asked_for == [id(2)]).await;
        alice.push(id(2), false).await;
        bob.until("the answer", |bob| bob.unavailable == [id(2)]).await;
        assert!(alice.unavailable.is_empty(), "it has not asked");
        let mut carol = fixture.peer("carol");
        carol.edit(id(2), "late").await;
        alice.until_with(&mut carol, "the document", |alice| alice.has(id(2), "late")).await;
        bob.until_with(&mut carol, "the document", |bob| bob.has(id(2), "late")).await;
    }
}

#[tokio::test]
async fn a_new_bundle_reaches_live_rooms_and_those_who_wait() {
    for fixture in both(&config()) {
        let mut doc = Automerge::new();
        let mut put = |key: &str| {
            doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, key, 1)).expect("an edit");
            Bytes::from(doc.save())
        };
        let (one, two) = (put("one"), put("two"));
        let serve = |documents: Vec<(DocumentId, Bytes)>| {
            fixture.served.send_replace(Some(Arc::new(ServedBundle::of_documents(documents))));
            fixture.rooms.bundle_changed();
        };
        serve(vec![(id(1), one)]);
        let mut alice = fixture.peer("alice");
        alice.push(id(1), true).await;
        alice.until("the bundle's document", |alice| alice.has(id(1), "one")).await;
        alice.push(id(2), true).await;
        alice.until("the answer", |alice| alice.unavailable == [id(2)]).await;
        serve(vec![(id(1), two.clone()), (id(2), two)]);
        alice
            .until("the new snapshots", |alice| alice.has(id(1), "two") && alice.has(id(2), "two"))
            .await;
    }
}

/// An engine that panics, or fails, when it is told to.
struct Fragile {
    port: Option<Port>,
    fails: bool,
    failed: CancellationToken,
    /// Where it keeps the messages with changes that it receives.
    keeps: Option<(Arc<Pending>, Arc<Documents>)>,
}

impl Engine for Fragile {
    fn join(&mut self, port: Port) -> BoxFuture<'_, ()> {
        self.port = Some(port);
        futures::future::ready(()).boxed()
    }

    fn leave(&mut self, _: SessionId) {}

    fn reads_only(&mut self, _: SessionId) -> BoxFuture<'_, ()> {
        futures::future::ready(()).boxed()
    }

    fn receive(
        &mut self,
        from: SessionId,
        request: bool,
        sent: SyncMessage,
        charge: Option<Charge>,
    ) -> BoxFuture<'_, ()> {
        if let (Some((pending, documents)), Some(charge)) = (&self.keeps, charge) {
            pending.receive(from, &sent, charge, documents);
        }
        if request {
            // Say something that has heads, so that the peer sees the engine at work.
            let mut doc = Automerge::new();
            doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, "a", 1)).expect("an edit");
            let message = doc.generate_sync_message(&mut State::new()).expect("a message");
            if let Some(port) = &self.port {
                port.sync(&message.encode());
            }
        } else if sent.raw.len() > 1000 {
            panic!("killed on purpose");
        } else if self.fails {
            self.failed.cancel();
        }
        futures::future::ready(()).boxed()
    }

    fn settle(&mut self) -> BoxFuture<'_, ()> {
        futures::future::ready(()).boxed()
    }

    fn resume(&mut self) {}

    fn rest(&mut self) {}

    fn look(&mut self) -> BoxFuture<'_, EngineLook> {
        futures::future::ready(EngineLook::default()).boxed()
    }

    fn merge(&mut self, _: Bytes) -> BoxFuture<'_, Option<Ancestry>> {
        futures::future::ready(None).boxed()
    }

    fn work(&mut self) -> BoxFuture<'_, Result<(), EngineFailed>> {
        self.failed
            .cancelled()
            .map(|()| Err(EngineFailed { is_panic: true, is_mended: false }))
            .boxed()
    }

    fn durable_heads(&self) -> Option<&[automerge::ChangeHash]> {
        None
    }

    fn is_durable(&self) -> bool {
        true
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        futures::future::ready(()).boxed()
    }
}

/// Engines of which the first `failing` fail at the first sync message.
fn fragile(starts: Arc<AtomicUsize>, failing: usize) -> EngineStart {
    Arc::new(move |_| {
        let fails = starts.fetch_add(1, Ordering::SeqCst) < failing;
        let failed = CancellationToken::new();
        let engine: Box<dyn Engine> = Box::new(Fragile { port: None, fails, failed, keeps: None });
        futures::future::ready(engine).boxed()
    })
}

#[tokio::test]
async fn a_panic_hurts_one_room() {
    let starts = Arc::new(AtomicUsize::new(0));
    let fixture = fixture(config(), |_| fragile(starts, 0));
    let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
    bob.edit(id(2), "b").await;
    let (doc, _) = alice.documents.entry(id(1)).or_default();
    for n in 0..200 {
        doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, format!("key {n}"), n))
            .expect("an edit");
    }
    let mut data = alice.documents[&id(1)]
        .0
        .generate_sync_message(&mut State::new())
        .expect("a message")
        .encode();
    data.resize(2000, 0);
    alice.send(id(1), false, data).await;
    alice.until("the close", |alice| alice.closed.is_some()).await;
    assert_eq!(alice.closed, Some(CloseReason::RoomPanic));
    assert_eq!(fixture.metrics.rooms.panics.get(), 1);
    assert_eq!(fixture.rooms.count().0, 1, "the other room lives");
    assert!(bob.session.outbound().close_reason().is_none());
}

#[tokio::test]
async fn an_engine_that_fails_is_started_anew_with_everybody() {
    let starts = Arc::new(AtomicUsize::new(0));
    let fixture = fixture(config(), |_| fragile(starts.clone(), 2));
    let mut alice = fixture.peer("alice");
    alice.edit(id(1), "a").await;
    alice
        .until("a word from the new engine", |alice| {
            alice.has(id(1), "a") && {
                let (_, state) = &alice.documents[&id(1)];
                state.their_heads.is_some()
            }
        })
        .await;
    assert!(starts.load(Ordering::SeqCst) >= 2);
    assert!(fixture.metrics.rooms.panics.get() >= 1);
    assert!(alice.session.outbound().close_reason().is_none());
}

#[tokio::test]
async fn edits_that_a_panic_took_are_asked_for_again() {
    for fixture in both(&config()) {
        let (mut alice, mallory) = (fixture.peer("alice"), fixture.peer("mallory"));
        alice.edit(id(1), "stored").await;
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
        // A Bloom filter without bits, which sessions refuse: automerge divides by their number.
        mallory.send(id(1), false, vec![0x42, 0, 0, 1, 0, 3, 1, 0, 1, 0]).await;
        for key in ["while it panics", "right after"] {
            alice.edit(id(1), key).await;
        }
        until("the panic", || fixture.metrics.rooms.panics.get() == 1).await;
        alice.edit(id(1), "while it pauses").await;
        let mut bob = fixture.peer("bob");
        bob.push(id(1), true).await;
        let keys = ["stored", "while it panics", "right after", "while it pauses"];
        bob.until_with(&mut alice, "every edit", |bob| keys.iter().all(|key| bob.has(id(1), key)))
            .await;
        alice.until("stored again", |alice| alice.in_sync(id(1))).await;
    }
}

#[tokio::test]
async fn a_document_whose_bringer_left_is_asked_for_elsewhere() {
    for fixture in both(&config()) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        alice.edit(id(1), "shared").await;
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
        bob.push(id(1), true).await;
        bob.until("the shared document", |bob| bob.has(id(1), "shared")).await;
        // Carol names heads of a document, and is gone before its changes are.
        let mut carol = fixture.peer("carol");
        carol.edit(id(2), "never sent").await;
        until("a live room", || fixture.rooms.count().0 == 2).await;
        carol.leave();
        bob.push(id(2), true).await;
        alice.until("the question", |alice| alice.asked_for == [id(2)]).await;
        alice.edit(id(2), "found").await;
        bob.until_with(&mut alice, "the document", |bob| bob.has(id(2), "found")).await;
    }
}
