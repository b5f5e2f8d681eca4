//! Who is in a room: entering, leaving, coming again, eviction, and members that read slowly.

use super::*;

fn native(config: Config) -> Fixture {
    fixture(config, |_| native::engine(Arc::new(Turns::new(2))))
}

/// The next events of a document, until `last`.
async fn events(following: &mut Following, last: impl Fn(&What) -> bool) -> Vec<What> {
    let mut found = Vec::new();
    let hearing = async {
        while !found.last().is_some_and(&last) {
            found.push(following.next().await.expect("an event").what);
        }
    };
    assert!(tokio::time::timeout(LIMIT, hearing).await.is_ok(), "these alone: {found:?}");
    found
}

fn count(events: &[What], what: &What) -> usize {
    events.iter().filter(|event| *event == what).count()
}

#[tokio::test]
async fn a_session_joins_once_and_leaves_once() {
    let fixture = native(config());
    let mut following = fixture.rooms.follow(id(1)).expect("a follower");
    let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
    alice.edit(id(1), "a").await;
    alice.until("stored", |alice| alice.in_sync(id(1))).await;
    bob.push(id(1), true).await;
    bob.until("the document", |bob| bob.has(id(1), "a")).await;
    alice.edit(id(1), "b").await;
    alice.leave();
    bob.until("the last edit", |bob| bob.has(id(1), "b")).await;
    bob.leave();
    let events = events(&mut following, |what| matches!(what, What::Unloaded { .. })).await;
    assert_eq!(count(&events, &What::Joined), 2, "{events:?}");
    assert_eq!(count(&events, &What::Left), 2, "{events:?}");
}

#[tokio::test]
async fn edits_sent_right_before_leaving_reach_the_others() {
    for fixture in both(&config()) {
        let mut bob = fixture.peer("bob");
        bob.push(id(1), true).await;
        let mut alice = fixture.peer("alice");
        // The room may be opening its document when she leaves, or looking for it.
        alice.edit(id(1), "a").await;
        // samod does not read what a session that has left has sent.
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
        alice.leave();
        bob.until("the document", |bob| bob.has(id(1), "a")).await;
    }
    let fixture = native(config());
    for n in 1..=20 {
        let mut alice = fixture.peer("alice");
        alice.edit(id(n), "first").await;
        alice.until("stored", |alice| alice.in_sync(id(n))).await;
        alice.edit(id(n), "a").await;
        alice.leave();
        let mut bob = fixture.peer("bob");
        bob.push(id(n), true).await;
        bob.until("the document", |bob| bob.has(id(n), "a")).await;
        bob.leave();
    }
    until("all rooms are gone", || fixture.rooms.count() == (0, 0)).await;
}

#[tokio::test]
async fn a_session_that_leaves_before_its_document_is_open_is_forgotten() {
    let fixture = native(config());
    for n in 1..=50 {
        let mut alice = fixture.peer("alice");
        alice.push(id(n), true).await;
        if n % 2 == 0 {
            tokio::task::yield_now().await;
        }
        alice.leave();
    }
    until("nobody is left", || fixture.rooms.count() == (0, 0)).await;
    assert_eq!(fixture.waiting(), 0);
}

#[tokio::test]
async fn sessions_may_come_back_while_their_room_unloads() {
    let mut config = config();
    config.sync.idle_unload = Time(Duration::ZERO);
    let fixture = native(config);
    let mut expected = Vec::new();
    for n in 0..100 {
        let mut alice = fixture.peer("alice");
        let key = format!("key {n}");
        alice.edit(id(1), &key).await;
        expected.push(key);
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
        alice.leave();
        for _ in 0..n % 7 {
            tokio::task::yield_now().await;
        }
    }
    let mut bob = fixture.peer("bob");
    bob.push(id(1), true).await;
    bob.until("all", |bob| expected.iter().all(|key| bob.has(id(1), key))).await;
}

#[tokio::test]
async fn only_rooms_without_sessions_are_evicted() {
    let mut config = config();
    config.sync.idle_unload = Time::secs(3600);
    let fixture = native(config);
    let evicted = fixture.metrics.rooms.unloaded.with_label_values(&["memory"]);
    let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
    for (peer, document) in [(&mut alice, id(1)), (&mut bob, id(2))] {
        peer.edit(document, "a").await;
        peer.until("stored", |peer| peer.in_sync(document)).await;
    }
    fixture.rooms.shared.evict_idle();
    alice.leave();
    let is_idle = || {
        fixture.rooms.shared.evict_idle();
        evicted.get() == 1
    };
    until("the room without sessions is evicted", is_idle).await;
    assert_eq!(fixture.rooms.count().0, 1, "the other one stays");
    // A room that was to be evicted stays for a session that enters it first.
    bob.edit(id(2), "b").await;
    bob.until("stored", |bob| bob.in_sync(id(2))).await;
    assert_eq!(evicted.get(), 1);
}

#[tokio::test]
async fn a_slow_member_gets_everything_and_delays_nobody() {
    let fixture = native(config());
    let mut alice = fixture.peer("alice");
    let mut slow = fixture.slow_peer("slow", 400);
    alice.edit(id(1), "first").await;
    alice.until("stored", |alice| alice.in_sync(id(1))).await;
    slow.push(id(1), true).await;
    slow.until("the document", |slow| slow.has(id(1), "first")).await;
    for n in 0..50 {
        alice.edit(id(1), &format!("key {n}")).await;
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
    }
    assert!(slow.session.outbound.unsent() < 4_000, "most of it is kept back");
    slow.until("all", |slow| (0..50).all(|n| slow.has(id(1), &format!("key {n}")))).await;
    assert!(slow.closed.is_none());
    // One that leaves while something is kept back for it is forgotten.
    for n in 50..60 {
        alice.edit(id(1), &format!("key {n}")).await;
        alice.until("stored", |alice| alice.in_sync(id(1))).await;
    }
    slow.leave();
    alice.leave();
    until("all rooms are gone", || fixture.rooms.count() == (0, 0)).await;
}
