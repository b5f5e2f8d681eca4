//! The contracts of [`ChunkStore`] and of [`Store`](super::store::Store), as tests. Each function
//! takes a new, empty store; the macros make the tests of one store of them.

mod store;

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::{Basis, ChunkStore};
use crate::{
    base::document_id::DocumentId,
    document::chunk::{ChunkKind, Key, StoredChunk},
};

const DOCUMENT: DocumentId = DocumentId::from_bytes([1; 16]);
const OTHER: DocumentId = DocumentId::from_bytes([2; 16]);
/// A store may treat small and large values differently.
const SIZES: [usize; 4] = [0, 1, 5_000, 200_000];

fn snapshot(name: &str) -> Key {
    Key::Chunk { document: DOCUMENT, kind: ChunkKind::Snapshot, name: name.to_owned() }
}

fn increment(name: &str) -> Key {
    increment_of(DOCUMENT, name)
}

fn increment_of(document: DocumentId, name: &str) -> Key {
    Key::Chunk { document, kind: ChunkKind::Incremental, name: name.to_owned() }
}

async fn put(store: &impl ChunkStore, key: &Key, data: &[u8]) {
    store.put(key, Bytes::copy_from_slice(data)).await.expect("puts");
}

/// The chunks of a document, sorted by key.
async fn sorted(store: &impl ChunkStore, document: DocumentId) -> Vec<StoredChunk> {
    let mut chunks = store.load_document(document).await.expect("loads").chunks;
    chunks.sort();
    chunks
}

pub(super) async fn an_absent_document_has_no_chunks(store: impl ChunkStore) {
    assert_eq!(store.load_document(DOCUMENT).await.expect("loads").chunks, []);
    assert!(!store.is_deleted(DOCUMENT));
    assert!(!store.is_blocked(DOCUMENT));
}

pub(super) async fn the_storage_id_is_kept(store: impl ChunkStore) {
    assert_eq!(store.load_storage_id().await.expect("loads"), None);
    put(&store, &Key::StorageId, b"first").await;
    put(&store, &Key::StorageId, b"second").await;
    assert_eq!(store.load_storage_id().await.expect("loads"), Some(b"second".to_vec()));
}

pub(super) async fn values_of_every_size_are_loaded(store: impl ChunkStore) {
    let mut expected = Vec::new();
    for size in SIZES {
        let (key, data) = (increment(&size.to_string()), vec![7; size]);
        put(&store, &key, &data).await;
        expected.push((key, data));
    }
    expected.sort();
    assert!(sorted(&store, DOCUMENT).await == expected, "the values that were put");
}

pub(super) async fn documents_are_separate(store: impl ChunkStore) {
    put(&store, &increment_of(DOCUMENT, "a"), b"one").await;
    put(&store, &increment_of(OTHER, "a"), b"two").await;
    let one = (increment_of(DOCUMENT, "a"), b"one".to_vec());
    let two = (increment_of(OTHER, "a"), b"two".to_vec());
    assert_eq!(sorted(&store, DOCUMENT).await, [one]);
    assert_eq!(sorted(&store, OTHER).await, [two]);
}

pub(super) async fn snapshots_are_loaded_before_increments(store: impl ChunkStore) {
    for size in SIZES {
        put(&store, &increment(&format!("a{size}")), &vec![1; size]).await;
        put(&store, &snapshot(&format!("b{size}")), &vec![2; size]).await;
    }
    let chunks = store.load_document(DOCUMENT).await.expect("loads").chunks;
    assert_eq!(chunks.len(), 2 * SIZES.len());
    let kinds: Vec<ChunkKind> = chunks
        .iter()
        .filter_map(|(key, _)| match key {
            Key::Chunk { kind, .. } => Some(*kind),
            Key::StorageId => None,
        })
        .collect();
    assert!(kinds.is_sorted(), "{kinds:?}");
}

pub(super) async fn a_put_replaces_the_earlier_value(store: impl ChunkStore) {
    let key = increment("a");
    // From small to large and back: a store may keep the two in different places.
    for size in SIZES.into_iter().chain(SIZES.into_iter().rev()) {
        let data = vec![3; size];
        put(&store, &key, &data).await;
        assert!(sorted(&store, DOCUMENT).await == [(key.clone(), data)], "{size} bytes");
    }
}

pub(super) async fn a_deleted_chunk_disappears_and_may_be_deleted_again(store: impl ChunkStore) {
    store.delete(&increment("never there")).await.expect("deletes");
    for size in SIZES {
        let key = increment(&size.to_string());
        put(&store, &key, &vec![1; size]).await;
        store.delete(&key).await.expect("deletes");
        store.delete(&key).await.expect("deletes again");
    }
    let disappears = async {
        while !sorted(&store, DOCUMENT).await.is_empty() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(10), disappears).await.expect("the chunks disappear");
}

pub(super) async fn a_put_after_a_delete_stays(store: impl ChunkStore) {
    for size in SIZES {
        let (key, data) = (increment(&size.to_string()), vec![1; size]);
        put(&store, &key, &data).await;
        store.delete(&key).await.expect("deletes");
        put(&store, &key, &data).await;
    }
    // Longer than a deletion that is still pending takes here.
    sleep(Duration::from_millis(100)).await;
    assert_eq!(sorted(&store, DOCUMENT).await.len(), SIZES.len());
}

pub(super) async fn concurrent_puts_of_one_key_leave_one_whole_value(store: impl ChunkStore) {
    for size in [10, 5_000, 200_000] {
        let key = increment(&size.to_string());
        let puts = (0..16u8).map(|n| store.put(&key, Bytes::from(vec![n; size])));
        for put in futures::future::join_all(puts).await {
            put.expect("puts");
        }
        let mut chunks = sorted(&store, DOCUMENT).await;
        chunks.retain(|(found, _)| *found == key);
        let [(_, data)] = chunks.as_slice() else { panic!("{} chunks", chunks.len()) };
        assert_eq!(data.len(), size);
        assert!(data.iter().all(|byte| *byte == data[0]), "the value of one put");
    }
}

pub(super) async fn concurrent_puts_of_many_keys_are_all_stored(store: impl ChunkStore) {
    let keys: Vec<Key> = (0..64).map(|n| increment(&n.to_string())).collect();
    let puts = keys.iter().map(|key| store.put(key, Bytes::from(key.to_string())));
    for put in futures::future::join_all(puts).await {
        put.expect("puts");
    }
    let mut expected: Vec<StoredChunk> =
        keys.iter().map(|key| (key.clone(), key.to_string().into_bytes())).collect();
    expected.sort();
    assert_eq!(sorted(&store, DOCUMENT).await, expected);
}

pub(super) async fn replaced_chunks_disappear(store: impl ChunkStore) {
    for size in SIZES {
        let small = [increment(&format!("a{size}")), increment(&format!("b{size}"))];
        let large = increment(&format!("c{size}"));
        for key in &small {
            put(&store, key, b"small").await;
        }
        put(&store, &large, &vec![1; size]).await;
        let never_there = increment("never there");
        let replaced = [small.as_slice(), &[large, never_there]].concat();
        let data = Bytes::from(vec![2; size]);
        store
            .replace(&snapshot(&size.to_string()), data, &replaced, Basis::default())
            .await
            .expect("puts");
        put(&store, &small[0], b"again").await;
        let disappear = async {
            loop {
                let chunks = sorted(&store, DOCUMENT).await;
                let left = replaced.iter().filter(|old| chunks.iter().any(|(key, _)| key == *old));
                if left.eq([&small[0]]) {
                    break;
                }
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(10), disappear).await.expect("the chunks disappear");
    }
}

/// A compaction stores a snapshot and deletes what the snapshot replaces.
pub(super) async fn a_replacement_leaves_no_gap_for_concurrent_loads(store: impl ChunkStore) {
    put(&store, &snapshot("0"), b"content").await;
    let replacing = async {
        for n in 1..40 {
            let replaced = [snapshot(&(n - 1).to_string())];
            let data = Bytes::from_static(b"content");
            store
                .replace(&snapshot(&n.to_string()), data, &replaced, Basis::default())
                .await
                .expect("puts");
        }
    };
    let loading = async {
        loop {
            assert!(!sorted(&store, DOCUMENT).await.is_empty(), "the content is missing");
        }
    };
    tokio::select! {
        () = replacing => {}
        () = loading => {}
    }
}

pub(super) async fn a_dropped_put_stores_the_whole_value_or_nothing(store: impl ChunkStore) {
    let keys: Vec<Key> = (0..40).map(|n| increment(&n.to_string())).collect();
    for (n, key) in keys.iter().enumerate() {
        let size = if n % 2 == 0 { 10 } else { 200_000 };
        let wait = Duration::from_micros(20 * n as u64);
        let _ = timeout(wait, store.put(key, Bytes::from(vec![4; size]))).await;
    }
    put(&store, &increment("last"), b"stored").await;
    let chunks = sorted(&store, DOCUMENT).await;
    assert!(chunks.iter().any(|(key, _)| *key == increment("last")), "the store goes on");
    for (key, data) in chunks.iter().filter(|(key, _)| *key != increment("last")) {
        assert!([10, 200_000].contains(&data.len()), "{key} has {} bytes", data.len());
        assert!(data.iter().all(|byte| *byte == 4), "{key}");
    }
}

pub(super) async fn quarantine_removes_only_that_chunk(store: impl ChunkStore) {
    for size in SIZES {
        put(&store, &increment(&format!("good {size}")), &vec![1; size]).await;
        put(&store, &increment(&format!("bad {size}")), &vec![2; size]).await;
        let bad = increment(&format!("bad {size}"));
        store.quarantine(&bad, "does not parse").await.expect("moves");
        store.quarantine(&bad, "does not parse").await.expect_err("it is not there any more");
    }
    let left = sorted(&store, DOCUMENT).await;
    let left: HashSet<String> = left.into_iter().map(|(key, _)| key.to_string()).collect();
    let good = SIZES.map(|size| increment(&format!("good {size}")).to_string());
    assert_eq!(left, HashSet::from(good));
}

/// `reopen` ends the use of a store and opens what it has stored.
pub(super) async fn stored_values_are_there_after_reopening<S: ChunkStore>(
    store: S,
    reopen: impl AsyncFnOnce(S) -> S,
) {
    put(&store, &Key::StorageId, b"id").await;
    for size in SIZES {
        put(&store, &increment(&size.to_string()), &vec![1; size]).await;
        put(&store, &increment(&size.to_string()), &vec![5; size]).await;
    }
    let before = sorted(&store, DOCUMENT).await;
    assert_eq!(before.len(), SIZES.len());
    let store = reopen(store).await;
    assert!(sorted(&store, DOCUMENT).await == before, "the values that were put");
    assert_eq!(store.load_storage_id().await.expect("loads"), Some(b"id".to_vec()));
}

/// `delete` deletes a document for good.
pub(super) async fn a_deleted_document_stores_nothing<S: ChunkStore>(
    store: S,
    delete: impl AsyncFnOnce(&S, DocumentId),
) {
    put(&store, &increment("before"), b"content").await;
    put(&store, &increment_of(OTHER, "other"), b"content").await;
    delete(&store, DOCUMENT).await;
    assert!(store.is_deleted(DOCUMENT));
    assert!(!store.is_deleted(OTHER));
    assert_eq!(store.load_document(DOCUMENT).await.expect("loads").chunks, []);
    for size in SIZES {
        put(&store, &increment(&format!("after {size}")), &vec![1; size]).await;
    }
    assert_eq!(store.load_document(DOCUMENT).await.expect("loads").chunks, []);
    assert_eq!(sorted(&store, OTHER).await.len(), 1);
}

/// Makes the tests of one store. `$open` returns a guard, which the test keeps, and an empty store.
macro_rules! conformance_tests {
    ($open:expr) => {
        crate::storage::conformance::conformance_tests! {
            $open;
            an_absent_document_has_no_chunks,
            the_storage_id_is_kept,
            values_of_every_size_are_loaded,
            documents_are_separate,
            snapshots_are_loaded_before_increments,
            a_deleted_chunk_disappears_and_may_be_deleted_again,
            a_put_after_a_delete_stays,
            concurrent_puts_of_one_key_leave_one_whole_value,
            concurrent_puts_of_many_keys_are_all_stored,
            replaced_chunks_disappear,
            a_replacement_leaves_no_gap_for_concurrent_loads,
            a_dropped_put_stores_the_whole_value_or_nothing,
            quarantine_removes_only_that_chunk,
        }
    };
    ($open:expr; $($test:ident),* $(,)?) => {
        $(
            // Listing blocks its thread.
            #[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                // A store that cannot be had on this machine is not tested.
                let Some((_guard, store)) = ($open)().await else { return };
                crate::storage::conformance::$test(store).await;
            }
        )*
    };
}
pub(super) use conformance_tests;

/// Makes the tests of all that a [`Store`](super::store::Store) does. `$open` as above.
macro_rules! store_tests {
    ($open:expr) => {
        crate::storage::conformance::conformance_tests!($open);
        crate::storage::conformance::conformance_tests! {
            $open;
            every_document_is_listed_once,
            a_deletion_lasts_until_it_is_undone,
            a_tombstone_applies_only_to_absent_documents,
            blocks_last_until_they_are_removed,
            a_chunk_is_released_only_if_it_parses,
            imports_are_recorded_by_etag,
        }
    };
}
pub(super) use store::*;
pub(super) use store_tests;
