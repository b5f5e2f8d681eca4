//! kill -9 under load, again and again: what the relay told as saved is there afterwards.
//!
//! `TONK_RELAY_KILLS=1000 cargo test --release --test kill` runs it long.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed expectation is a failed test, and the figures are for whoever runs it"
)]

#[path = "common/client.rs"]
#[allow(dead_code, reason = "the benchmark uses more of it")]
mod client;
#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::{
    collections::HashMap,
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use automerge::{ROOT, ReadDoc, transaction::Transactable};
use client::Client;
use common::Relay;
use tonk_relay::document_id::DocumentId;

const CLIENTS: usize = 4;
const DOCUMENTS: u8 = 6;

/// The highest number that was told as saved, by document and by who wrote it.
type Saved = Arc<Mutex<HashMap<(DocumentId, String), u64>>>;

fn id(n: u8) -> DocumentId {
    DocumentId::from_bytes([n + 1; 16])
}

/// Number one document after the other under our name, and note what is told as saved, until the connection is lost.
async fn edit(url: String, name: String, saved: Saved) {
    let mut client = Client::connect(&url).await;
    for n in 0..DOCUMENTS {
        client.push(id(n), true).await;
    }
    let mut tick = tokio::time::interval(Duration::from_millis(2));
    for number in 1u64.. {
        let document = id((number % u64::from(DOCUMENTS)) as u8);
        tokio::select! {
            _ = tick.tick() => {
                let mut edit = client.document(document).transaction();
                edit.put(ROOT, &name, number).expect("an edit");
                // So that chunks are of many sizes, and documents are compacted now and then.
                let filler = "x".repeat((number * number % 700) as usize);
                edit.put(ROOT, "filler", filler).expect("an edit");
                edit.commit();
                client.push(document, false).await;
            }
            event = client.try_step() => if event.is_none() { return },
        }
        for document in (0..DOCUMENTS).map(id) {
            let told = client.told(document);
            let told = client.document(document).get_at(ROOT, &name, &told).expect("readable");
            if let Some(number) = told.and_then(|(value, _)| value.as_u64()) {
                let mut saved = saved.lock().expect("no panic");
                let highest = saved.entry((document, name.clone())).or_default();
                *highest = number.max(*highest);
            }
        }
    }
}

#[tokio::test]
async fn what_was_told_as_saved_is_there_after_every_kill() {
    let kills: u32 =
        std::env::var("TONK_RELAY_KILLS").map_or(100, |n| n.parse().expect("a number"));
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("tonk-relay.toml");
    let at = folder.path().display();
    // A journal so small that a kill often meets a checkpoint, and rooms that come and go.
    let text = format!(
        "[http]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = [\"unix:{at}/admin.sock\"]\n\
         [bundles]\npath = \"{at}/bundles\"\n\
         [storage]\npath = \"{at}/documents\"\njournal_size = \"32KiB\"\ngrace = \"20ms\"\n\
         commit_interval = \"5ms\"\n[sync]\nidle_unload = \"1ms\"\n"
    );
    fs::write(&config, text).expect("writes");
    let saved = Saved::default();
    let (mut checked, mut slowest) = (0, Duration::ZERO);
    for kill in 0..=kills {
        let start = Instant::now();
        let mut relay = Relay::start_with(&config);
        slowest = slowest.max(start.elapsed());
        let url = format!("ws://127.0.0.1:{}", relay.port);
        let expected = saved.lock().expect("no panic").clone();
        let mut reader = Client::connect(&url).await;
        let documents: std::collections::BTreeSet<DocumentId> =
            expected.keys().map(|(document, _)| *document).collect();
        reader.fetch(&documents.into_iter().collect::<Vec<_>>()).await;
        for ((document, name), number) in &expected {
            let found = client::get(reader.document(*document), name);
            assert!(found >= *number, "kill {kill}: {found} of {number} in {document} by {name}");
            checked += 1;
        }
        drop(reader);
        if kill == kills {
            break;
        }
        let editing: Vec<_> = (0..CLIENTS)
            .map(|n| tokio::spawn(edit(url.clone(), format!("{kill} {n}"), saved.clone())))
            .collect();
        // Any moment will do; these are spread over what a round goes through.
        tokio::time::sleep(Duration::from_millis(u64::from(kill * 37 % 150) + 10)).await;
        relay.child.kill().expect("is killed");
        relay.child.wait().expect("has ended");
        for edits in editing {
            edits.await.expect("no client fails");
        }
    }
    let quarantined = folder.path().join("documents/quarantine");
    assert!(!quarantined.exists(), "a chunk was torn");
    let edits: u64 = saved.lock().expect("no panic").values().sum();
    println!(
        "{kills} kills, {checked} comparisons, highest numbers sum up to {edits}, slowest start {slowest:?}"
    );
}
