//! Altered changes through both engines: no change that the gate refuses reaches anybody. Every
//! change that it admits reaches everybody and is stored, and so is an honest edit of the same
//! document.
//!
//! `TONK_RELAY_SEED=7 TONK_RELAY_CASES=1000000 cargo test --release altered_changes` runs other
//! cases, and more of them.

use std::panic;

use automerge::{ActorId, ChangeHash};
use futures::FutureExt;
use proptest::{
    prelude::Rng,
    test_runner::{RngAlgorithm, TestRng},
};

use super::*;
use crate::document::{
    gate::{Document, Rules, loads},
    unpacked::{self, NotUnpacked, Origin},
};

#[path = "../../../../tests/changes/mod.rs"]
mod changes;

use changes::Case;

const CASES: usize = 20_000;
/// Cases at a time through the native engine, each on a document of its own.
const TOGETHER: usize = 500;
/// Cases at a time through samod. It does not report what it refuses: each room waits seconds for
/// that, and all rooms wait at the same time.
const TOGETHER_IN_SAMOD: usize = 2_000;

/// A sync message that brings these bytes, under a head that nobody has.
fn bringing(chunks: &[u8]) -> Vec<u8> {
    let message = automerge::sync::Message {
        heads: vec![ChangeHash([7; 32])],
        need: Vec::new(),
        have: Vec::new(),
        changes: vec![chunks.to_vec()].into(),
        flags: None,
        version: automerge::sync::MessageVersion::V1,
    };
    message.encode()
}

/// How many changes the document has when the gate has decided about a case.
fn judge(case: &Case) -> u64 {
    let mut doc = Document::read(&case.base.save(), Rules::Admission).expect("honest");
    for message in &case.messages {
        if doc.admit(message, Rules::Admission).is_err() {
            break;
        }
    }
    doc.changes()
}

/// Sends a case. Returns the document as its honest owner has it in the end.
async fn send(fixture: &Fixture, case: &Case, document: DocumentId) -> Result<Automerge, String> {
    let mut owner = fixture.peer("owner");
    // An actor id that no other case uses.
    let base = case.base.clone().with_actor(ActorId::from([0x77; 16]));
    owner.documents.insert(document, (base, State::new()));
    owner.push(document, false).await;
    owner.until("the document is here", |owner| owner.in_sync(document)).await;
    let evil = fixture.peer("evil");
    for message in &case.messages {
        evil.send(document, false, bringing(message)).await;
    }
    owner.edit(document, "honest").await;
    owner.until("the honest edit is here", |owner| owner.in_sync(document)).await;
    let (doc, _) = owner.documents.remove(&document).ok_or("it has no document")?;
    evil.leave();
    owner.leave();
    Ok(doc)
}

/// Runs cases and compares what is stored with what the gate admits. samod may read the altered
/// changes after the owner has left, or not at all once their sender has left.
async fn check(fixture: &Fixture, cases: &[Case], is_samod: bool) -> Result<(), String> {
    let documents: Vec<DocumentId> = cases.iter().map(|_| DocumentId::random()).collect();
    let sending = cases.iter().zip(&documents).map(|(case, id)| async {
        let sent = panic::AssertUnwindSafe(send(fixture, case, *id)).catch_unwind().await;
        sent.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(ToString::to_string);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("at the owner: {}", text.unwrap_or_default()))
        })
    });
    let sent = futures::future::join_all(sending).await;
    let mut at_owners = Vec::new();
    for (case, sent) in cases.iter().zip(sent) {
        at_owners.push(sent.map_err(|why| format!("{why}\n{}", case.describe()))?);
    }
    until("all rooms are gone", || fixture.rooms.count().0 == 0).await;
    for ((case, id), at_owner) in cases.iter().zip(documents).zip(at_owners) {
        let mut opened =
            fixture.rooms.shared.documents.open(id).await.map_err(|e| e.to_string())?;
        let saved = opened.doc.automerge().save();
        let admitted = judge(case) + 1;
        let honest = at_owner.get_last_local_change().map(|change| change.hash());
        let is_there = honest.is_some_and(|honest| opened.doc.has(&honest));
        let fault = if !is_there || (!is_samod && opened.heads != at_owner.get_heads()) {
            "what is stored is not what the owner has"
        } else if !loads(&saved, &opened.heads) {
            "what is stored does not load again"
        } else if opened.doc.changes() > admitted || (!is_samod && opened.doc.changes() != admitted)
        {
            "the engine and the gate do not agree"
        } else {
            continue;
        };
        let (stored, owner) = (opened.heads, at_owner.get_heads());
        let chunks: Vec<String> = opened.chunks.iter().map(|(key, _)| key.to_string()).collect();
        return Err(format!(
            "{fault}\nstored: {stored:?} in {chunks:?}\nthe owner's: {owner:?}\n{}",
            case.describe()
        ));
    }
    Ok(())
}

#[test]
fn altered_changes_harm_neither_engine() {
    let cases = std::env::var("TONK_RELAY_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = cases.unwrap_or(CASES);
    let seed = std::env::var("TONK_RELAY_SEED").ok().and_then(|seed| seed.parse().ok());
    // The same cases every time, unless another seed is asked for.
    let seed: u64 = seed.unwrap_or(1);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runs");
    // automerge panics over many of these; the gate catches that.
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let checking = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        runtime.block_on(async {
            let fixtures = both(&config());
            for _ in 0..cases.div_ceil(TOGETHER_IN_SAMOD) {
                let cases: Vec<Case> = (0..TOGETHER_IN_SAMOD)
                    .map(|_| {
                        let mut bytes = vec![0; 1 + random.next_u32() as usize % 96];
                        random.fill_bytes(&mut bytes);
                        Case::draw(&bytes)
                    })
                    // What is too large by itself does not get to a room.
                    .filter(|case| {
                        let is_bomb = |message: &Vec<u8>| {
                            let unpacked = unpacked::of(message, Origin::Peer, Size::mib(64));
                            matches!(unpacked, Err(NotUnpacked::TooMuch { .. }))
                        };
                        !case.messages.iter().any(is_bomb)
                    })
                    .collect();
                for (fixture, is_samod) in fixtures.iter().zip([false, true]) {
                    let together = if is_samod { TOGETHER_IN_SAMOD } else { TOGETHER };
                    for cases in cases.chunks(together) {
                        let checked = check(fixture, cases, is_samod).await;
                        checked.map_err(|why| format!("samod: {is_samod}: {why}"))?;
                    }
                }
            }
            Ok::<(), String>(())
        })
    }));
    panic::set_hook(hook);
    match checking {
        Ok(Ok(())) => {}
        Ok(Err(why)) => panic!("TONK_RELAY_SEED={seed} finds it again: {why}"),
        Err(_) => panic!("TONK_RELAY_SEED={seed} finds it again: rooms are left"),
    }
}
