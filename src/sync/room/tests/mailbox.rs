//! What a room is sent: in order, bounded, and never in the way of a session that leaves.

use super::*;
use crate::sync::room::{
    directory::{Directory, Kept, RoomHandle},
    mailbox::{Inbox, Mailbox, mailbox},
    members::Members,
};

fn pair() -> (Mailbox, Inbox) {
    mailbox(64, Arc::default())
}

/// A message of a session.
fn message(session: &Arc<Session>) -> Box<Input> {
    Box::new(Input::Subscribe { from: session.clone() })
}

/// Sends messages until the mailbox is full. Returns how many.
fn fill(mailbox: &Mailbox, session: &Arc<Session>) -> usize {
    let sends = std::iter::from_fn(|| mailbox.send(message(session)).now_or_never());
    sends.take(10_000).count()
}

#[tokio::test]
async fn a_session_leaves_a_full_mailbox_without_waiting() {
    let fixture = fixture(config(), |_| native::engine(Arc::new(Turns::new(2))));
    let (alice, bob) = (fixture.peer("alice").session, fixture.peer("bob").session);
    let (mailbox, mut inbox) = pair();
    let sent = fill(&mailbox, &alice);
    assert!((1..10_000).contains(&sent), "{sent}");
    assert_eq!(mailbox.waiting(), sent);
    mailbox.leave(alice.id);
    mailbox.leave(bob.id);
    assert!(mailbox.send(message(&bob)).now_or_never().is_none(), "leaving takes no slot");
    for n in 0..sent {
        let input = inbox.try_recv().expect("a message");
        assert!(input.is_from(alice.id), "message {n}");
    }
    for session in [alice.id, bob.id] {
        assert!(!inbox.is_empty());
        let input = inbox.try_recv().expect("one that leaves");
        assert!(matches!(*input, Input::Leave { session: left } if left == session));
    }
    assert!(inbox.is_empty());
    assert!(inbox.try_recv().is_none());
}

#[tokio::test]
async fn a_room_that_waits_is_woken_by_a_session_that_leaves() {
    let session = SessionId(7);
    let (mailbox, mut inbox) = pair();
    let receiving = tokio::spawn(async move { inbox.recv().await });
    tokio::task::yield_now().await;
    mailbox.leave(session);
    let input = tokio::time::timeout(LIMIT, receiving).await.expect("woken").expect("no panic");
    assert!(matches!(*input.expect("an input"), Input::Leave { session: left } if left == session));
}

#[tokio::test]
async fn a_closed_mailbox_gives_what_it_has_and_lets_sessions_leave() {
    let fixture = fixture(config(), |_| native::engine(Arc::new(Turns::new(2))));
    let alice = fixture.peer("alice").session;
    let (mailbox, mut inbox) = pair();
    mailbox.send(message(&alice)).await.unwrap_or_else(|_| panic!("open"));
    inbox.close();
    assert!(mailbox.is_closed());
    assert!(mailbox.send(message(&alice)).await.is_err());
    assert!(inbox.recv().await.is_some_and(|input| input.is_from(alice.id)));
    assert!(inbox.recv().await.is_none());
    mailbox.leave(alice.id);
    assert!(inbox.try_recv().is_some_and(|input| matches!(*input, Input::Leave { .. })));
}

/// Many sessions on several threads send, wait for slots, and leave, while the room receives.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_session_leaves_once_after_all_that_it_has_sent() {
    const ROUNDS: usize = 20;
    const SESSIONS: usize = 50;
    let fixture = fixture(config(), |_| native::engine(Arc::new(Turns::new(2))));
    let sessions: Vec<_> = (0..SESSIONS).map(|n| fixture.peer(&n.to_string()).session).collect();
    for round in 0..ROUNDS {
        let (mailbox, mut inbox) = pair();
        for (n, session) in sessions.iter().enumerate() {
            let (mailbox, session) = (mailbox.clone(), session.clone());
            tokio::spawn(async move {
                for _ in 0..(n * 7 + round) % 40 {
                    assert!(mailbox.send(message(&session)).await.is_ok());
                }
                mailbox.leave(session.id);
            });
        }
        let mut missing: HashMap<SessionId, usize> = sessions
            .iter()
            .enumerate()
            .map(|(n, session)| (session.id, (n * 7 + round) % 40))
            .collect();
        let receiving = async {
            while !missing.is_empty() {
                match *inbox.recv().await.expect("an input") {
                    Input::Leave { session } => assert_eq!(missing.remove(&session), Some(0)),
                    Input::Subscribe { from } => {
                        *missing.get_mut(&from.id).expect("it has not left") -= 1;
                    }
                    _ => panic!("not sent"),
                }
            }
        };
        tokio::time::timeout(LIMIT, receiving).await.expect("all of it");
        assert!(inbox.is_empty());
    }
}

#[tokio::test]
async fn a_room_is_told_once_and_of_its_members_alone_that_they_leave() {
    let fixture = fixture(config(), |_| native::engine(Arc::new(Turns::new(2))));
    let (alice, stranger) = (fixture.peer("alice").session, fixture.peer("stranger").session);
    let members = Members::default();
    members.enter(&alice);
    let (handle, mut inbox) = RoomHandle::new(id(1), Kept::of(members), 64);
    let mut directory = Directory::default();
    directory.add(handle);
    // A document that a session may not read is open for the session, which is not in its room.
    directory.leave(id(1), stranger.id);
    assert!(inbox.is_empty());
    directory.leave(id(1), alice.id);
    directory.leave(id(1), alice.id);
    assert!(matches!(*inbox.recv().await.expect("an input"), Input::Leave { .. }));
    assert!(inbox.is_empty());
}
