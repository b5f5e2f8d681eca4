//! Tests of the journal.

mod broken;
mod checkpoints;
mod commits;
mod conformance;
mod deletions;
mod model;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::*;
use crate::{
    config::Time,
    document::chunk::{ChunkKind, Key},
    observe::metrics::Metrics,
    storage::{ChunkStore, records::Tombstone},
};

fn document(n: u8) -> DocumentId {
    DocumentId::from_bytes([n; 16])
}

fn key(n: u8, kind: ChunkKind, name: &str) -> Key {
    Key::Chunk { document: document(n), kind, name: name.to_owned() }
}

fn increment(n: u8, name: &str) -> Key {
    key(n, ChunkKind::Incremental, name)
}

fn config(folder: &Path) -> config::Storage {
    config::Storage {
        path: folder.to_owned(),
        commit_interval: Time(Duration::from_millis(5)),
        grace: Time(Duration::ZERO),
        ..config::Storage::default()
    }
}

fn metrics() -> StorageMetrics {
    Metrics::new().expect("good names").storage
}

fn open_at(folder: &Path) -> Journal {
    Journal::open(&config(folder), metrics()).expect("opens")
}

/// Copies a folder in the state in which a kill would leave it.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("lists") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir_all(&to).expect("makes");
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copies");
        }
    }
}

/// The names of the chunks of a document.
async fn names(store: &dyn ChunkStore, n: u8) -> Vec<String> {
    let chunks = store.load_document(document(n)).await.expect("loads").chunks;
    chunks
        .into_iter()
        .map(|(key, _)| key.to_string().split('/').nth(2).unwrap_or("").into())
        .collect()
}

/// Waits until `done` returns true.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(timeout(Duration::from_secs(10), waiting).await.is_ok(), "not in time: {what}");
}

/// The path of a document's folder in the storage folder.
fn folder_of(n: u8) -> PathBuf {
    document(n).folder().into()
}
