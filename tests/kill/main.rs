//! The relay is repeatedly ended under load by kill -9 or a power loss, and so is its database: what
//! it reported as saved is kept.
//!
//! `TONK_RELAY_KILLS=1000 TONK_RELAY_DATABASE_KILLS=1000 cargo test --release --test kill` runs
//! longer.
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a failed expectation is a failed test, and the figures are for whoever runs it"
)]

#[path = "../common/client.rs"]
#[allow(dead_code, reason = "the benchmark uses more of it")]
mod client;
#[allow(dead_code, reason = "other tests use more of it")]
#[path = "../common/mod.rs"]
mod common;
mod disk;
#[path = "../common/postgres.rs"]
mod postgres;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use automerge::{ROOT, ReadDoc, transaction::Transactable};
use client::Client;
use common::Relay;
use disk::Disk;
use postgres::Server;
use tonk_relay::base::document_id::DocumentId;

const CLIENTS: usize = 4;
const DOCUMENTS: u8 = 6;

/// The highest number that was reported as saved, by document and client.
type Saved = Arc<Mutex<HashMap<(DocumentId, String), u64>>>;

/// After this many kills the clients use new documents, before the old ones become slow to read.
const GENERATION: u32 = 50;

fn id(round: u32, n: u8) -> DocumentId {
    let [_, _, high, low] = (round / GENERATION).to_be_bytes();
    let mut id = [n + 1; 16];
    (id[0], id[1]) = (high, low);
    DocumentId::from_bytes(id)
}

/// Counts up in one document after the other under our name, and records what is reported as saved,
/// until the connection is lost.
async fn edit(mut client: Client, round: u32, name: String, saved: Saved) {
    let id = |n| id(round, n);
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
                // Chunks get many sizes, and documents are compacted from time to time.
                let filler = "x".repeat((number * number % 700) as usize);
                edit.put(ROOT, "filler", filler).expect("an edit");
                edit.commit();
                client.push(document, false).await;
            }
            event = client.try_step() => if event.is_none() { return },
        }
        for document in (0..DOCUMENTS).map(id) {
            let told = client.reported_heads(document);
            let told = client.document(document).get_at(ROOT, &name, &told).expect("readable");
            if let Some(number) = told.and_then(|(value, _)| value.as_u64()) {
                let mut saved = saved.lock().expect("no panic");
                let highest = saved.entry((document, name.clone())).or_default();
                *highest = number.max(*highest);
            }
        }
    }
}

/// Writes a config with such a small journal that a kill often interrupts a checkpoint, and rooms
/// that are unloaded soon.
fn configure(folder: &Path) -> std::path::PathBuf {
    let config = folder.join("tonk-relay.toml");
    let at = folder.display();
    let text = format!(
        "[http]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = [\"unix:{at}/admin.sock\"]\n\
         [bundles]\npath = \"{at}/bundles\"\n\
         [storage]\npath = \"{at}/documents\"\njournal_size = \"32KiB\"\ngrace = \"20ms\"\n\
         commit_interval = \"5ms\"\n[sync]\nidle_unload = \"1ms\"\n"
    );
    fs::write(&config, text).expect("writes");
    config
}

/// Compares the documents with what was reported as saved: those that were edited last, or all.
/// Returns how many numbers were compared.
async fn check(url: &str, saved: &Saved, round: u32, all: bool) -> usize {
    let mut expected = saved.lock().expect("no panic").clone();
    let last: Vec<DocumentId> = (0..DOCUMENTS).map(|n| id(round.saturating_sub(1), n)).collect();
    expected.retain(|(document, _), _| all || last.contains(document));
    let documents: BTreeSet<DocumentId> = expected.keys().map(|(document, _)| *document).collect();
    let mut reader = Client::connect(url).await;
    reader.fetch(&documents.into_iter().collect::<Vec<_>>()).await;
    for ((document, name), number) in &expected {
        let found = client::get(reader.document(*document), name);
        assert!(found >= *number, "end {round}: {found} of {number} in {document} by {name}");
    }
    expected.len()
}

/// Has clients edit until the relay, which `end` ends, is gone.
async fn edit_until(url: &str, saved: &Saved, round: u32, end: impl FnOnce()) {
    let mut editing = Vec::new();
    for n in 0..CLIENTS {
        let client = Client::connect(url).await;
        editing.push(tokio::spawn(edit(client, round, format!("{round} {n}"), saved.clone())));
    }
    // These moments are spread over the phases of a round.
    tokio::time::sleep(Duration::from_millis(u64::from(round * 37 % 150) + 10)).await;
    end();
    for edits in editing {
        edits.await.expect("no client fails");
    }
}

fn rounds(variable: &str, default: u32) -> u32 {
    std::env::var(variable).map_or(default, |n| n.parse().expect("a number"))
}

#[tokio::test]
async fn saved_changes_survive_every_kill() {
    let kills = rounds("TONK_RELAY_KILLS", 100);
    let folder = tempfile::tempdir().expect("a folder");
    let config = configure(folder.path());
    let saved = Saved::default();
    let (mut checked, mut slowest) = (0, Duration::ZERO);
    for kill in 0..=kills {
        let start = Instant::now();
        let mut relay = Relay::start_with(&config);
        slowest = slowest.max(start.elapsed());
        let url = format!("ws://127.0.0.1:{}", relay.port);
        checked += check(&url, &saved, kill, kill == kills).await;
        if kill < kills {
            let end = || relay.child.kill().expect("is killed");
            edit_until(&url, &saved, kill, end).await;
            relay.child.wait().expect("has ended");
        }
    }
    assert!(!folder.path().join("documents/quarantine").exists(), "a chunk was torn");
    println!("{kills} kills, {checked} comparisons, slowest start {slowest:?}");
}

/// Every second time the server is killed, too, before or after the relay.
#[tokio::test]
async fn saved_changes_survive_every_kill_of_relay_and_database() {
    let kills = rounds("TONK_RELAY_DATABASE_KILLS", 40);
    let Some(mut server) = Server::start() else { return println!("skipped: no PostgreSQL") };
    let folder = tempfile::tempdir().expect("a folder");
    let config = configure(folder.path());
    let text = fs::read_to_string(&config).expect("reads");
    let text = text.replace("[bundles]", "[bundles]\nstore = \"s3\"\nbucket = \"none\"");
    let database = format!("postgres://postgres@/postgres?host={}", server.folder);
    let cluster = format!("[cluster]\ndatabase = \"{database}\"\ntimeout = \"2s\"\n");
    fs::write(&config, text + &cluster).expect("writes");
    let saved = Saved::default();
    let mut checked = 0;
    for kill in 0..=kills {
        let mut relay = Relay::start_with(&config);
        let url = format!("ws://127.0.0.1:{}", relay.port);
        checked += check(&url, &saved, kill, kill == kills).await;
        if kill < kills {
            let end = || {
                if kill % 4 == 1 {
                    server.crash();
                }
                relay.child.kill().expect("is killed");
                if kill % 4 == 3 {
                    server.crash();
                }
            };
            edit_until(&url, &saved, kill, end).await;
            relay.child.wait().expect("has ended");
        }
    }
    let torn = "select count(*) from tonk_relay.chunk where quarantined_at is not null";
    assert_eq!(server.query(torn), "0", "a chunk was torn");
    println!("{kills} kills, {checked} comparisons");
}

#[tokio::test]
async fn saved_changes_survive_every_power_loss() {
    let losses = rounds("TONK_RELAY_POWER_LOSSES", 10);
    if Command::new("strace").arg("-V").stdout(Stdio::null()).status().is_err() {
        assert!(std::env::var_os("CI").is_none(), "strace is missing");
        return println!("skipped: it needs strace");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().canonicalize().expect("a path");
    let (config, documents) = (configure(&folder), folder.join("documents"));
    let log = folder.join("strace");
    fs::create_dir(&documents).expect("is made");
    let saved = Saved::default();
    let (mut checked, mut lost) = (0, 0);
    for loss in 0..=losses {
        let mut disk = Disk::of(&documents);
        let mut command = Command::new("strace");
        command.args(disk::STRACE).arg("-o").arg(&log);
        command.arg(env!("CARGO_BIN_EXE_tonk-relay")).arg("--config").arg(&config);
        let mut relay = Relay::spawn(command, None);
        let url = format!("ws://127.0.0.1:{}", relay.port);
        checked += check(&url, &saved, loss, loss == losses).await;
        let strace = relay.child.id();
        let children = fs::read_to_string(format!("/proc/{strace}/task/{strace}/children"));
        let pid = children.expect("strace runs").trim().to_owned();
        let end = || {
            let killed = Command::new("kill").args(["-KILL", &pid]).status();
            assert!(killed.expect("is killed").success());
        };
        if loss < losses {
            edit_until(&url, &saved, loss, end).await;
            relay.child.wait().expect("has ended");
            disk.play(&fs::read_to_string(&log).expect("is written"));
            lost += disk.lose_power();
        } else {
            end();
        }
    }
    assert!(lost > 0, "nothing was lost that was not synchronised: the disk is no simulation");
    assert!(!documents.join("quarantine").exists(), "a chunk was torn");
    println!("{losses} power losses, {lost} files were other than seen, {checked} comparisons");
}
