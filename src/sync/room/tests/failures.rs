//! Engines and rooms that fail.

use super::{fragile::fragile, *};

#[tokio::test]
async fn a_panic_affects_only_its_room() {
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
    assert!(bob.session.outbound.close_reason().is_none());
}

#[tokio::test]
async fn a_failed_engine_is_restarted_with_all_members() {
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
    assert!(alice.session.outbound.close_reason().is_none());
}

#[tokio::test]
async fn edits_lost_in_a_panic_are_requested_again() {
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
