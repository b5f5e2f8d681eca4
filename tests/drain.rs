//! A graceful shutdown with thousands of connections: it ends within `drain_timeout`, and
//! everything that was reported as saved is kept.
//!
//! `TONK_RELAY_IDLE=15000 TONK_RELAY_EDITING=200 TONK_RELAY_DRAIN_SECONDS=30 cargo test --release
//! --test drain` uses as many connections as one relay accepts by default.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed expectation is a failed test, and the figures are for whoever runs it"
)]

#[path = "common/client.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod client;
#[allow(dead_code, reason = "other tests use more of it")]
mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use tokio::sync::mpsc;
use tonk_relay::base::document_id::DocumentId;

use client::Client;
use common::Relay;

/// Clients that never answer a close frame.
const UNRESPONSIVE: usize = 20;
/// How much longer systemd waits than `drain_timeout`, as the relay tells it.
const SYSTEMD_WAITS_LONGER: Duration = Duration::from_secs(5);
/// Open files of a process other than its connections.
const OTHER_FILES: usize = 100;

fn variable(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

/// Raises the limit of open files, which the relay inherits. Returns how many connections it
/// allows.
fn raise_open_files() -> usize {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, limit).expect("the limit is raised");
    let files = maximum.map_or(usize::MAX, |files| usize::try_from(files).expect("a number"));
    files.saturating_sub(OTHER_FILES)
}

fn configure(folder: &Path, seconds: usize) -> PathBuf {
    let config = folder.join("tonk-relay.toml");
    let at = folder.display();
    let text = format!(
        "drain_timeout = \"{seconds}s\"\n[http]\nlisten = [\"127.0.0.1:0\"]\n\
         [admin]\nlisten = [\"unix:{at}/admin.sock\"]\n[bundles]\npath = \"{at}/bundles\"\n\
         [storage]\npath = \"{at}/documents\"\nmin_free = \"1B\"\n[limits]\nconnections = 20_000\n\
         [sync]\nping_interval = \"60s\"\n"
    );
    fs::write(&config, text).expect("writes");
    config
}

/// Opens no document, and answers pings and the close frame.
async fn idle(mut client: Client) {
    while client.try_step().await.is_some() {}
}

/// Counts up in a document until the connection is lost, whenever the last number was reported as
/// saved. Signals the first one that was, and returns the last.
async fn edit(mut client: Client, id: DocumentId, first_saved: mpsc::Sender<()>) -> u64 {
    for number in 1.. {
        client::put(client.document(id), number);
        client.push(id, false).await;
        while !client.in_sync(id) {
            if client.try_step().await.is_none() {
                return number - 1;
            }
        }
        if number == 1 {
            first_saved.send(()).await.expect("is awaited");
        }
    }
    0
}

/// Connects `count` clients, and has `go_on` use each one at once.
async fn connect<T>(url: &str, count: usize, go_on: impl Fn(Client) -> T) -> Vec<T> {
    let connecting = (0..count).map(async |_| go_on(Client::connect(url).await));
    stream::iter(connecting).buffer_unordered(64).collect().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_in_time_and_loses_nothing() {
    let editors = variable("TONK_RELAY_EDITING", 50);
    let most = raise_open_files().saturating_sub(editors + UNRESPONSIVE);
    let idlers = variable("TONK_RELAY_IDLE", 2_000).min(most);
    // A shortest timer pause, 1 to 2 ms, after each connection would take longer.
    let seconds = variable("TONK_RELAY_DRAIN_SECONDS", 3);
    let folder = tempfile::tempdir().expect("a folder");
    let config = configure(folder.path(), seconds);
    let relay = Relay::start_with(&config);
    let url = format!("ws://127.0.0.1:{}", relay.port);

    connect(&url, idlers, |client| tokio::spawn(idle(client))).await;
    let (first_saved, mut saving) = mpsc::channel(editors);
    let editing = connect(&url, editors, |client| {
        let id = client::random_id();
        (id, tokio::spawn(edit(client, id, first_saved.clone())))
    });
    let editing = editing.await;
    let unresponsive = connect(&url, UNRESPONSIVE, |client| client).await;
    drop(first_saved);
    for _ in 0..editors {
        saving.recv().await.expect("an edit of each is told as saved");
    }

    let start = Instant::now();
    kill_process(Pid::from_child(&relay.child), Signal::TERM).expect("it runs");
    let (status, log) = relay.end();
    let took = start.elapsed();
    let log: Vec<&String> = log.iter().filter(|line| !line.contains("connected")).collect();
    assert_eq!(status.code(), Some(0), "after {took:?}: {log:#?}");
    // The status says that the drain ended in time. The process must end before systemd kills it.
    let killed_after = Duration::from_secs(seconds as u64) + SYSTEMD_WAITS_LONGER;
    assert!(took < killed_after, "after {took:?}: {log:#?}");
    let has = |text: &str| log.iter().any(|line| line.contains(text));
    assert!(has(&format!("draining: {} connections", idlers + editors + UNRESPONSIVE)), "{log:#?}");
    assert!(has("all documents are durable"), "{log:#?}");
    assert!(!has("may not be durable") && !has("still being loaded"), "{log:#?}");
    drop(unresponsive);

    let relay = Relay::start_with(&config);
    let mut reader = Client::connect(&format!("ws://127.0.0.1:{}", relay.port)).await;
    let mut edits = 0;
    for (id, editing) in editing {
        let saved = editing.await.expect("no client fails");
        reader.fetch(&[id]).await;
        let found = client::get(reader.document(id), "n");
        assert!(found >= saved, "{found} of {saved} edits of {id}");
        edits += saved;
    }
    println!("{idlers} idle, {editors} editing: a drain of {took:?}, {edits} saved edits");
}
