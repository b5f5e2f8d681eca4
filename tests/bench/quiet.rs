//! What connections and documents take while nothing happens.

use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::sync::{mpsc, watch};

use crate::{
    CONNECT, CONNECTION, Figures,
    client::Client,
    micros,
    server::{Server, Usage},
    share_small,
};

/// The time after which the relay has given back what idle connections and documents do not need.
const REST: Duration = Duration::from_secs(3);

/// Connections that have a document each and do nothing.
pub(crate) async fn idle(server: &Server, connections: usize) -> Figures {
    let before = server.usage();
    let clients: Vec<Client> = stream::iter(0..connections)
        .map(|_| async {
            let mut client = Client::connect(&server.url).await;
            share_small(&mut client).await;
            client
        })
        .buffer_unordered(16)
        .collect()
        .await;
    let after = server.usage();
    tokio::time::sleep(REST).await;
    let rested = server.usage();
    drop(clients);
    let each = |usage: Usage| (usage.resident_kib - before.resident_kib) / connections as f64;
    Figures::from([
        (CONNECTION, each(after)),
        ("the same, after 3 s of rest", each(rested)),
        (CONNECT, micros(before, after, connections as f64)),
    ])
}

/// Readers of the same documents, which nobody edits: what one more document takes for one of them.
/// A hundredth of what a document's room takes for its first reader is part of it.
pub(crate) async fn links(server: &Server) -> Figures {
    const READERS: usize = 100;
    const DOCUMENTS: usize = 200;
    const FIRST: usize = 10;
    let mut writer = Client::connect(&server.url).await;
    let mut ids = Vec::new();
    for _ in 0..DOCUMENTS {
        ids.push(share_small(&mut writer).await);
    }
    let (joined, mut joins) = mpsc::channel(READERS);
    let (go, _) = watch::channel(false);
    // All clients read continuously, because those that do not answer pings are disconnected.
    let mut tasks = vec![tokio::spawn(async move {
        loop {
            writer.step().await;
        }
    })];
    for _ in 0..READERS {
        let mut reader = Client::connect(&server.url).await;
        let (ids, joined, mut go) = (ids.clone(), joined.clone(), go.subscribe());
        tasks.push(tokio::spawn(async move {
            let (first, others) = ids.split_at(FIRST);
            reader.fetch(first).await;
            joined.send(()).await.expect("somebody waits");
            loop {
                tokio::select! {
                    _ = go.wait_for(|go| *go) => break,
                    _ = reader.step() => {}
                }
            }
            reader.fetch(others).await;
            joined.send(()).await.expect("somebody waits");
            loop {
                reader.step().await;
            }
        }));
    }
    let mut all_join = async || {
        for _ in 0..READERS {
            joins.recv().await.expect("everybody joins");
        }
    };
    all_join().await;
    tokio::time::sleep(REST).await;
    let before = server.usage();
    go.send_replace(true);
    all_join().await;
    let in_use = server.usage();
    tokio::time::sleep(REST).await;
    let rested = server.usage();
    assert!(tasks.iter().all(|task| !task.is_finished()), "a client was disconnected");
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    let links = (READERS * (DOCUMENTS - FIRST)) as f64;
    let each = |usage: Usage| (usage.resident_kib - before.resident_kib) * 1024.0 / links;
    Figures::from([
        ("bytes a reader and document, in use", each(in_use)),
        ("the same, after 3 s of rest", each(rested)),
    ])
}

/// Many documents without clients.
pub(crate) async fn documents(server: &Server) -> Figures {
    const CONNECTIONS: usize = 100;
    const EACH: usize = 100;
    const SECONDS: u64 = 20;
    let before = server.usage();
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = Client::connect(&server.url).await;
        for _ in 0..EACH {
            share_small(&mut client).await;
        }
        // One connection has to answer pings.
        clients.push(tokio::spawn(async move {
            loop {
                client.step().await;
            }
        }));
    }
    tokio::time::sleep(REST).await;
    let start = server.usage();
    tokio::time::sleep(Duration::from_secs(SECONDS)).await;
    let end = server.usage();
    clients.iter().for_each(tokio::task::JoinHandle::abort);
    let documents = (CONNECTIONS * EACH) as f64;
    Figures::from([
        (
            "% of a core for 10,000 documents at rest",
            (end.cpu_seconds - start.cpu_seconds) / SECONDS as f64 * 100.0,
        ),
        ("KiB a document at rest", (start.resident_kib - before.resident_kib) / documents),
    ])
}
