//! Changes of sessions that have left are stored, whatever ends the engine or the room that
//! received them.

use super::{fragile::Fragile, *};
use crate::config::Rate;

/// A Bloom filter without bits, which sessions refuse: automerge divides by their number when it
/// answers.
const POISON: [u8; 10] = [0x42, 0, 0, 1, 0, 3, 1, 0, 1, 0];

impl Peer {
    /// Writes this many keys, sends them and leaves before the relay has answered.
    async fn edit_and_leave(mut self, document: DocumentId, keys: usize) {
        let (doc, _) = self.documents.entry(document).or_default();
        doc.transact::<_, _, AutomergeError>(|tx| {
            (0..keys).try_for_each(|n| tx.put(ROOT, format!("left {n}"), 1))
        })
        .expect("an edit");
        self.push(document, false).await;
        self.leave();
    }
}

/// A writer with a stored document.
async fn with_writer(fixture: &Fixture) -> Peer {
    let mut writer = fixture.peer("writer");
    writer.edit(id(1), "stored").await;
    writer.until("stored", |writer| writer.in_sync(id(1))).await;
    writer
}

async fn stored_keys(fixture: &Fixture) -> Vec<String> {
    let mut opened = fixture.rooms.shared.documents.open(id(1)).await.expect("reads");
    opened.doc.automerge().keys(ROOT).collect()
}

fn native(fixture_config: Config) -> Fixture {
    fixture(fixture_config, |_| native::engine(Arc::new(Turns::new(2))))
}

#[tokio::test]
async fn changes_of_a_session_that_left_survive_a_panic_in_the_engine() {
    // A short step runs on the room's task, and a long one on a thread that may block.
    for keys in [1, 400] {
        let fixture = native(config());
        let writer = with_writer(&fixture).await;
        let mallory = fixture.peer("mallory");
        mallory.send(id(1), false, POISON.to_vec()).await;
        writer.edit_and_leave(id(1), keys).await;
        until("the panic", || fixture.metrics.rooms.panics.get() == 1).await;
        let mut reader = fixture.peer("reader");
        reader.push(id(1), true).await;
        let last = format!("left {}", keys - 1);
        reader.until("the edit", |reader| reader.has(id(1), &last)).await;
        mallory.leave();
        reader.leave();
        until("no room", || fixture.rooms.count().0 == 0).await;
        assert_eq!(fixture.rooms.shared.documents.unsaved(), 0);
        assert_eq!(stored_keys(&fixture).await.len(), keys + 1);
    }
}

/// A relay that stops waits for the next engine, which stores what the one that panicked has left.
#[tokio::test]
async fn changes_survive_a_panic_in_the_engine_while_the_relay_stops() {
    // The room may handle the messages before or after it hears that the relay stops.
    for _ in 0..8 {
        let fixture = native(config());
        let writer = with_writer(&fixture).await;
        let mallory = fixture.peer("mallory");
        mallory.send(id(1), false, POISON.to_vec()).await;
        writer.edit_and_leave(id(1), 1).await;
        tokio::time::timeout(LIMIT, fixture.rooms.stop()).await.expect("stops");
        assert_eq!(fixture.metrics.rooms.panics.get(), 1);
        assert!(fixture.rooms.late().unsaved.is_empty());
        assert_eq!(fixture.rooms.shared.documents.unsaved(), 0);
        assert_eq!(stored_keys(&fixture).await, ["left 0", "stored"]);
    }
}

#[tokio::test]
async fn only_the_message_that_makes_a_second_engine_fail_is_dropped() {
    let fixture = native(config());
    let (documents, pending) = (&fixture.rooms.shared.documents, Pending::default());
    let nothing = NOTHING.clone().expect("a message");
    for n in 1..=3 {
        let charge = fixture.rooms.shared.quotas.charge(Account::at(None));
        pending.receive(SessionId(n), &nothing, charge, documents);
    }
    let bytes = nothing.raw.len();
    pending.begin_step();
    assert_eq!(pending.step_failed(Some(SessionId(1))), bytes, "the first is known to be at fault");
    assert!(pending.hand_over(documents));
    let retried = pending.retry().expect("the second");
    assert_eq!(retried.from, SessionId(2));
    assert_eq!(pending.step_failed(None), bytes, "it was alone in the step");
    assert!(pending.hand_over(documents));
    let retried = pending.retry().expect("the third");
    assert_eq!(retried.from, SessionId(3));
    pending.admitted(retried.ticket, true);
    pending.end_step(5, 4);
    assert!(!pending.is_empty() && pending.retry().is_none(), "it is applied, and not durable");
    assert_eq!(documents.unsaved(), bytes as u64);
    pending.write_begins();
    assert_eq!(documents.unsaved(), 0, "the write counts its own bytes");
    pending.end_step(5, 5);
    assert!(pending.is_empty());
}

#[tokio::test]
async fn changes_of_a_session_that_left_survive_a_panic_in_the_room() {
    let (starts, next) = (AtomicUsize::new(0), native::engine(Arc::new(Turns::new(2))));
    let fixture = fixture(config(), |_| {
        Arc::new(move |start: Start| {
            if starts.fetch_add(1, Ordering::SeqCst) > 0 {
                return next(start);
            }
            let keeps = Some((start.pending.clone(), start.documents.clone()));
            let failed = CancellationToken::new();
            let engine: Box<dyn Engine> =
                Box::new(Fragile { port: None, fails: false, failed, keeps });
            futures::future::ready(engine).boxed()
        })
    });
    let writer = fixture.peer("writer");
    let mut doc = Automerge::new();
    doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, "left", 1)).expect("an edit");
    let message = automerge::sync::Message {
        heads: doc.get_heads(),
        need: Vec::new(),
        have: Vec::new(),
        changes: vec![doc.save()].into(),
        flags: None,
        version: automerge::sync::MessageVersion::V1,
    };
    // So large a message brings its room down.
    let mut data = message.encode();
    data.resize(2000, 0);
    writer.send(id(1), false, data).await;
    writer.leave();
    until("the panic", || fixture.metrics.rooms.panics.get() == 1).await;
    assert!(fixture.rooms.shared.documents.unsaved() > 0, "it is counted");
    assert_eq!(fixture.rooms.late().unsaved, [id(1)], "a relay that stops now would name it");
    until("no room", || fixture.rooms.count().0 == 0).await;
    assert_eq!(fixture.rooms.shared.documents.unsaved(), 0);
    assert_eq!(stored_keys(&fixture).await, ["left"]);
}

/// What the gate refuses was not stored: it costs its sender nothing of a quota, and nothing of the
/// quota for new documents.
#[tokio::test]
async fn refused_changes_are_not_charged() {
    let mut config = config();
    config.limits.new_documents = Rate::per_hour(1);
    config.limits.stored_bytes = Size(5_000);
    for fixture in both(&config) {
        let ann = Account::named(&"token:ann".into());
        for n in 1..=3 {
            let refused = automerge::sync::Message {
                heads: vec![automerge::ChangeHash([7; 32])],
                need: Vec::new(),
                have: Vec::new(),
                changes: vec![vec![n; 4_000]].into(),
                flags: None,
                version: automerge::sync::MessageVersion::V1,
            };
            let mut peer = fixture.peer_of("ann", ann.clone());
            peer.send(id(n), false, refused.encode()).await;
            peer.until("the refusal", |peer| !peer.errors.is_empty()).await;
            assert!(peer.closed.is_none());
            peer.leave();
            until("no room", || fixture.rooms.count().0 == 0).await;
        }
        let mut peer = fixture.peer_of("ann", ann.clone());
        peer.edit(id(4), "stored").await;
        peer.until("stored", |peer| peer.in_sync(id(4))).await;
        peer.edit(id(5), "one too many").await;
        peer.until("the limit", |peer| peer.closed.is_some()).await;
        assert_eq!(peer.closed.as_ref().map(CloseReason::label), Some("new_documents"));
    }
}
