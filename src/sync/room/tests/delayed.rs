//! Delayed acknowledgements wake nobody, and nothing depends on when they are handled.

use super::*;
use crate::sync::room::mailbox::{Inbox, Mailbox, mailbox};

fn native_fixture() -> Fixture {
    fixture(config(), |_| native::engine(Arc::new(Turns::new(2))))
}

/// How many sync messages have woken a room.
fn woken(fixture: &Fixture) -> u64 {
    fixture.metrics.rooms.message_seconds.get_sample_count()
}

/// Lets all tasks run that are not waiting.
async fn let_all_run() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// Alice edits a document that she shares with bob, and both have the edit.
async fn edit_together(alice: &mut Peer, bob: &mut Peer, document: DocumentId, key: &str) {
    alice.edit(document, key).await;
    bob.until("the edit", |bob| bob.has(document, key)).await;
    alice.until_with(bob, "stored", |alice| alice.in_sync(document)).await;
    let_all_run().await;
}

#[tokio::test]
async fn an_acknowledgement_wakes_no_room_and_is_seen_by_an_operator() {
    let fixture = native_fixture();
    let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
    alice.share_with(&mut bob, id(1)).await;
    edit_together(&mut alice, &mut bob, id(1), "first").await;
    let before = woken(&fixture);
    edit_together(&mut alice, &mut bob, id(1), "second").await;
    assert_eq!(woken(&fixture) - before, 1, "the edit");
    let report = fixture.rooms.inspect(id(1)).await.expect("a room");
    for session in &report.sessions {
        assert_eq!(session.heads, report.heads, "{}", session.peer);
    }
}

#[tokio::test]
async fn what_is_delayed_is_handled_when_the_room_is_quiet() {
    let fixture = native_fixture();
    let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
    alice.share_with(&mut bob, id(1)).await;
    edit_together(&mut alice, &mut bob, id(1), "first").await;
    edit_together(&mut alice, &mut bob, id(1), "second").await;
    let held = Arc::strong_count(&bob.session);
    until("handled", || Arc::strong_count(&bob.session) < held).await;
    // An acknowledgement that comes now wakes the room: nothing else would.
    let before = woken(&fixture);
    let (doc, state) = bob.documents.entry(id(1)).or_default();
    let mut again = State::clone(state);
    again.last_sent_heads.clear();
    again.in_flight = false;
    let message = doc.generate_sync_message(&mut again).expect("a message");
    bob.send(id(1), false, message.encode()).await;
    let_all_run().await;
    assert_eq!(woken(&fixture) - before, 1);
}

#[tokio::test]
async fn nothing_is_delayed_while_an_operator_follows() {
    let fixture = native_fixture();
    let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
    alice.share_with(&mut bob, id(1)).await;
    let _following = fixture.rooms.follow(id(1)).expect("a place");
    edit_together(&mut alice, &mut bob, id(1), "first").await;
    let before = woken(&fixture);
    edit_together(&mut alice, &mut bob, id(1), "second").await;
    assert_eq!(woken(&fixture) - before, 2, "the edit and the acknowledgement");
}

struct Announced {
    mailbox: Mailbox,
    inbox: Inbox,
    doc: Automerge,
    session: Arc<Session>,
}

impl Announced {
    /// A mailbox whose room has announced a document's heads.
    fn new(fixture: &Fixture) -> Self {
        let (mailbox, mut inbox) = mailbox(64, Arc::default());
        let mut doc = Automerge::new();
        doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, "a", 1)).expect("an edit");
        inbox.announce(&doc.get_heads());
        Self { mailbox, inbox, doc, session: fixture.peer("alice").session }
    }

    fn acknowledgement(&self) -> automerge::sync::Message {
        let message = self.doc.generate_sync_message(&mut State::new()).expect("a message");
        assert!(message.changes.is_empty() && message.need.is_empty());
        message
    }

    fn input(&self, message: automerge::sync::Message, request: bool) -> Box<Input> {
        let message = SyncMessage::read(message.encode().into(), Size::mib(1)).expect("a message");
        Box::new(Input::Sync { from: self.session.clone(), request, message, permit: permit() })
    }

    fn delays(&self, message: automerge::sync::Message) -> bool {
        self.mailbox.delay(self.input(message, false)).is_ok()
    }
}

#[tokio::test]
async fn only_an_acknowledgement_of_announced_heads_is_delayed() {
    let fixture = native_fixture();
    let mut room = Announced::new(&fixture);
    assert!(room.delays(room.acknowledgement()));
    assert!(room.mailbox.delay(room.input(room.acknowledgement(), true)).is_err(), "a request");
    let other = automerge::ChangeHash([7; 32]);
    let mut needs = room.acknowledgement();
    needs.need = room.doc.get_heads();
    let mut has_nothing = room.acknowledgement();
    has_nothing.heads.clear();
    let mut has_news = room.acknowledgement();
    has_news.heads = vec![other];
    let mut brings_changes = room.acknowledgement();
    brings_changes.changes = room
        .doc
        .get_changes(&[])
        .iter()
        .map(|change| change.raw_bytes().to_vec())
        .collect::<Vec<_>>()
        .into();
    for (what, message) in [
        ("needs a change", needs),
        ("has nothing", has_nothing),
        ("has news", has_news),
        ("brings changes", brings_changes),
    ] {
        assert!(!room.delays(message), "{what}");
    }
    for n in 0..3 {
        room.inbox.announce(&[automerge::ChangeHash([n; 32])]);
        assert!(room.delays(room.acknowledgement()), "an acknowledgement may be late");
    }
    room.inbox.announce(&[other]);
    assert!(!room.delays(room.acknowledgement()), "too late");
}

#[tokio::test]
async fn what_is_delayed_keeps_its_place() {
    let fixture = native_fixture();
    let mut room = Announced::new(&fixture);
    let presence = || Box::new(Input::Subscribe { from: room.session.clone() });
    assert!(room.delays(room.acknowledgement()));
    assert!(!room.inbox.is_empty());
    assert!(room.inbox.try_recv().is_none(), "it wakes nobody");
    room.mailbox.send(presence()).await.unwrap_or_else(|_| panic!("open"));
    assert!(!room.delays(room.acknowledgement()), "it would overtake the message that waits");
    let kinds = |inbox: &mut Inbox| {
        let mut kinds = Vec::new();
        while let Some(input) = inbox.try_recv() {
            kinds.push(match *input {
                Input::Sync { .. } => "sync",
                Input::Leave { .. } => "leave",
                _ => "other",
            });
        }
        kinds
    };
    assert_eq!(kinds(&mut room.inbox), ["sync", "other"]);
    assert!(room.delays(room.acknowledgement()));
    assert!(room.delays(room.acknowledgement()));
    room.mailbox.leave(room.session.id);
    assert_eq!(kinds(&mut room.inbox), ["sync", "sync", "leave"]);
    assert!(room.delays(room.acknowledgement()));
    assert_eq!(room.inbox.stop_delaying().len(), 1);
    assert!(!room.delays(room.acknowledgement()), "the room does not look at it soon");
    assert!(room.inbox.is_empty());
}

#[tokio::test]
async fn what_is_delayed_leaves_half_of_the_receive_queue() {
    let fixture = native_fixture();
    let room = Announced::new(&fixture);
    let _half = room.mailbox.receive_permits(32).await.expect("half of the share");
    assert!(room.delays(room.acknowledgement()));
    let _more = room.mailbox.receive_permits(1).await.expect("one more");
    assert!(!room.delays(room.acknowledgement()));
}

/// Has bob acknowledge a document's heads many times.
async fn acknowledge(bob: &Peer, document: DocumentId, times: usize) {
    let (doc, state) = &bob.documents[&document];
    for _ in 0..times {
        let mut again = State::clone(state);
        again.last_sent_heads.clear();
        again.in_flight = false;
        let message = doc.generate_sync_message(&mut again).expect("a message");
        bob.send(document, false, message.encode()).await;
    }
}

/// However many are delayed, what comes after them is handled: the room handles inputs in batches.
#[tokio::test]
async fn nothing_is_lost_behind_many_acknowledgements() {
    let fixture = native_fixture();
    let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
    alice.share_with(&mut bob, id(1)).await;
    for times in [62, 63, 64, 65, 128, 129, 500] {
        edit_together(&mut alice, &mut bob, id(1), &format!("before {times}")).await;
        let before = woken(&fixture);
        acknowledge(&bob, id(1), times).await;
        let_all_run().await;
        assert_eq!(woken(&fixture), before, "delayed");
        edit_together(&mut alice, &mut bob, id(1), &format!("after {times}")).await;
        acknowledge(&bob, id(1), times).await;
        assert!(fixture.rooms.inspect(id(1)).await.is_some(), "{times}");
    }
    acknowledge(&bob, id(1), 64).await;
    bob.leave();
    acknowledge(&alice, id(1), 64).await;
    alice.leave();
    until("unloaded", || fixture.rooms.count().0 == 0).await;
}

#[tokio::test]
async fn a_sessions_first_sync_message_is_answered_at_once() {
    let fixture = native_fixture();
    let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
    alice.share_with(&mut bob, id(1)).await;
    edit_together(&mut alice, &mut bob, id(1), "edit").await;
    let mut carol = fixture.peer("carol");
    carol.documents.insert(id(1), (bob.documents[&id(1)].0.clone(), State::new()));
    carol.say(id(1), 1, b"here").await;
    let_all_run().await;
    let before = woken(&fixture);
    carol.push(id(1), false).await;
    let_all_run().await;
    assert_eq!(woken(&fixture) - before, 1);
}

#[tokio::test]
async fn a_message_that_waits_for_permits_ends_the_delay() {
    let fixture = native_fixture();
    let mut room = Announced::new(&fixture);
    let permits = room.mailbox.receive_permits(1).await;
    let mut input = room.input(room.acknowledgement(), false);
    if let Input::Sync { permit, .. } = &mut *input {
        let unread = prometheus::IntGauge::new("unread", "unread").expect("a metric");
        *permit = ReceivePermit::new([permits, None], 1, unread);
    }
    assert!(room.mailbox.delay(input).is_ok());
    let mailbox = room.mailbox.clone();
    let waiting = tokio::spawn(async move { mailbox.receive_permits(64).await.is_some() });
    let received = tokio::time::timeout(LIMIT, room.inbox.recv()).await.expect("woken");
    drop(received);
    assert!(tokio::time::timeout(LIMIT, waiting).await.expect("permits").expect("no panic"));
}
