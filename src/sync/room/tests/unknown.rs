//! Documents that nobody has: who is asked for them, who is answered, and when.

use super::*;

#[tokio::test]
async fn a_document_that_is_brought_right_after_a_request_is_found() {
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
async fn the_grace_before_the_first_answer_is_bounded_and_does_not_apply_to_the_probe() {
    let fixture = fixture(config(), |_| native::engine(Arc::new(Turns::new(2))));
    let in_grace = fixture.rooms.shared.in_grace.clone();
    let mut bob = fixture.peer("bob");
    let began = Instant::now();
    bob.push(id(1), true).await;
    until("it waits", || in_grace.available_permits() == IN_GRACE - 1).await;
    bob.until("the answer", |bob| bob.unavailable == [id(1)]).await;
    assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    until("its permit is free", || in_grace.available_permits() == IN_GRACE).await;

    // There is no grace without a permit, nor for the relay's own request.
    let _all = in_grace.clone().acquire_many_owned(IN_GRACE as u32).await.expect("permits");
    bob.push(id(2), true).await;
    bob.until("the answer", |bob| bob.unavailable.contains(&id(2))).await;
    let probe = fixture.rooms.shared.probe;
    drop(_all);
    let taken = in_grace.clone();
    bob.push(probe, true).await;
    bob.until("the answer", |bob| {
        assert_eq!(taken.available_permits(), IN_GRACE, "the probe takes no permit");
        bob.unavailable.contains(&probe)
    })
    .await;
}

#[tokio::test]
async fn an_unknown_document_is_unavailable_until_somebody_brings_it() {
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
async fn a_document_that_is_requested_and_brought_at_once_reaches_everybody() {
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
async fn a_request_is_passed_on_once_to_a_few_peers_that_share_a_document() {
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
            while let Some(Next::Send(frame)) = friend.session.outbound.try_next() {
                let message = wire::Message::decode(&frame).expect("a message");
                let Body::Sync { request: true, document, .. } = message.body else { continue };
                if document == id(2) {
                    assert!(fixture.rooms.record_lacking(id(2), friend.session.id));
                    answered += 1;
                }
            }
        }
        assert_eq!(answered, 3);
        // All have answered: no need to wait for the minute to pass.
        bob.until("the answer", |bob| bob.unavailable == [id(2)]).await;
        assert!(stranger.session.outbound.try_next().is_none(), "a stranger hears of nothing");
        assert!(!fixture.rooms.record_lacking(id(2), stranger.session.id));
        assert_eq!(asked.get(), 3);
    }
}

#[tokio::test]
async fn a_forwarded_request_brings_the_document() {
    for fixture in both(&config()) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        alice.share_with(&mut bob, id(1)).await;

        bob.push(id(2), true).await;
        alice.until("the question", |alice| alice.asked_for == [id(2)]).await;
        alice.edit(id(2), "found").await;
        bob.until_with(&mut alice, "the document", |bob| bob.has(id(2), "found")).await;
        assert!(bob.unavailable.is_empty());
    }
}

/// automerge-repo does not ask again for what it was asked for and did not have.
#[tokio::test]
async fn a_peer_that_lacked_a_document_gets_it_when_somebody_brings_it() {
    for fixture in both(&config()) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        alice.share_with(&mut bob, id(1)).await;

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
async fn others_are_asked_for_a_document_whose_source_left_before_sending_it() {
    for fixture in both(&config()) {
        let (mut alice, mut bob) = (fixture.peer("alice"), fixture.peer("bob"));
        alice.share_with(&mut bob, id(1)).await;
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
