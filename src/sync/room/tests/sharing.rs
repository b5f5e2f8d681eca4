//! Sessions that share documents, what rooms may use, and when they end.

use super::*;

#[tokio::test]
async fn a_busy_room_holds_only_its_share_of_the_receive_queue() {
    let fixture = fixture(config(), |_| native::engine(Arc::new(Turns::new(2))));
    let (rooms, alice) = (&fixture.rooms, fixture.peer("alice"));
    let busy = alice.subscriptions.lock().await.mailbox(DocumentId::random()).await;
    let _all = busy.receive_permits(rooms.receive_share()).await.expect("a share");
    assert!(busy.receive_permits(1).now_or_never().is_none(), "its sender waits");
    let other = alice.subscriptions.lock().await.mailbox(DocumentId::random()).await;
    assert!(
        other.receive_permits(rooms.receive_share()).now_or_never().flatten().is_some(),
        "others do not"
    );
}

#[tokio::test]
async fn long_changes_through_samod_wait_for_a_permit() {
    let heavy = Arc::new(Turns::new(2));
    let fixture = fixture(config(), |metrics| samod::engine("s".into(), heavy.clone(), metrics));
    let mut alice = fixture.peer("alice");
    alice.edit(id(1), "a").await;
    alice.until("stored", |alice| alice.in_sync(id(1))).await;
    // Nobody has both: two others are at work.
    let [first, second] = [id(8), id(9)].map(|document| heavy.take(Payer::Document(document)));
    let permits = (first.await, second.await);
    alice.edit(id(1), "short").await;
    alice.until("stored without a permit", |alice| alice.in_sync(id(1))).await;
    alice.edit_much(id(1)).await;
    until("the long edit waits", || heavy.waiting() == 1).await;
    drop(permits);
    alice.until("stored", |alice| alice.in_sync(id(1))).await;
}

#[tokio::test]
async fn sessions_without_memory_for_their_documents_are_refused_at_the_same_time() {
    let mut config = config();
    config.sync.memory = MemoryLimit::Bytes(Size(1));
    let fixture = fixture(config, |_| native::engine(Arc::new(Turns::new(2))));
    // If some sessions waited for others, this many would take longer than the test waits.
    let mut peers: Vec<Peer> = (1..=250).map(|n| fixture.peer(&format!("peer-{n}"))).collect();
    assert!(FREED_WITHIN * (peers.len() / LOADING) as u32 > LIMIT);
    for (n, peer) in (1..).zip(&mut peers) {
        peer.push(id(n), true).await;
    }
    let refused = async {
        for peer in &mut peers {
            peer.until("refused", |peer| peer.closed.is_some()).await;
            assert_eq!(peer.closed, Some(CloseReason::Memory));
        }
    };
    tokio::time::timeout(LIMIT, refused).await.expect("all are refused in time");
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
async fn an_idle_room_ends_its_tasks_and_loses_nothing() {
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
async fn a_new_bundle_reaches_live_rooms_and_waiting_sessions() {
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
