//! What a [`Store`] does besides storing chunks.

use automerge::{Automerge, AutomergeError, ROOT, transaction::Transactable};

use super::{DOCUMENT, OTHER, increment, increment_of, put, snapshot, sorted};
use crate::{
    base::document_id::DocumentId,
    storage::{
        records::{Listed, Quarantined, Tombstone},
        store::Store,
    },
};

/// Lists all documents, on a thread that may block.
fn list(store: &impl Store) -> Vec<Listed> {
    let mut all = Vec::new();
    let mut add = |listed| {
        all.push(listed);
        true
    };
    tokio::task::block_in_place(|| store.list(&mut add)).expect("lists");
    all.sort_by_key(|listed| listed.document);
    all
}

pub(in crate::storage) async fn every_document_is_listed_once(store: impl Store) {
    assert_eq!(list(&store), []);
    for n in 0..120u8 {
        let document = DocumentId::from_bytes([n; 16]);
        put(&store, &increment_of(document, "a"), b"small").await;
        if n % 40 == 0 {
            put(&store, &increment_of(document, "b"), &[1; 100_000]).await;
        }
    }
    store.checkpoint().await.expect("moves");
    put(&store, &increment_of(DOCUMENT, "c"), b"later").await;
    let listed = list(&store);
    let ids: Vec<DocumentId> = listed.iter().map(|listed| listed.document).collect();
    assert_eq!(ids, (0..120).map(|n| DocumentId::from_bytes([n; 16])).collect::<Vec<_>>());
    assert_eq!((listed[0].chunks, listed[0].bytes), (2, 100_005));
    assert_eq!((listed[1].chunks, listed[1].bytes), (2, 10));
    let before = listed[1].fingerprint.clone();
    put(&store, &increment_of(DOCUMENT, "d"), b"more").await;
    assert_ne!(list(&store)[1].fingerprint, before);
    let mut count = 0;
    let mut stop = |_| {
        count += 1;
        count < 3
    };
    tokio::task::block_in_place(|| store.list(&mut stop)).expect("lists");
    assert_eq!(count, 3, "it ends when it is told");
}

pub(in crate::storage) async fn a_deletion_lasts_until_it_is_undone(store: impl Store) {
    put(&store, &increment("a"), b"small").await;
    put(&store, &snapshot("b"), &[1; 100_000]).await;
    put(&store, &increment_of(OTHER, "a"), b"stays").await;
    let first = Tombstone::new(DOCUMENT, Some("asked for".to_owned()));
    let deleted = store.delete_document(DOCUMENT, first.clone()).await.expect("deletes");
    assert_eq!((deleted.chunks, deleted.bytes), (2, 100_005));
    assert!(store.is_deleted(DOCUMENT) && !store.is_deleted(OTHER));
    put(&store, &increment("c"), b"too late").await;
    put(&store, &snapshot("d"), &[1; 2_000_000]).await;
    assert_eq!(sorted(&store, DOCUMENT).await, []);
    assert_eq!(store.tombstone(DOCUMENT).await.expect("reads"), Some(first.clone()));
    assert_eq!(store.tombstone(OTHER).await.expect("reads"), None);
    assert_eq!(store.tombstones().await.expect("reads"), [first]);

    assert!(store.undelete(DOCUMENT).await.expect("undeletes"));
    assert!(!store.undelete(DOCUMENT).await.expect("there is no tombstone"));
    assert!(!store.is_deleted(DOCUMENT));
    assert_eq!(sorted(&store, DOCUMENT).await, [], "deleted data is gone");
    put(&store, &increment("c"), b"again").await;
    assert_eq!(sorted(&store, DOCUMENT).await.len(), 1);
    assert_eq!(sorted(&store, OTHER).await.len(), 1);
}

pub(in crate::storage) async fn a_tombstone_applies_only_to_absent_documents(store: impl Store) {
    put(&store, &increment("bad"), b"does not parse").await;
    let here = Tombstone::new(DOCUMENT, None);
    assert!(!store.import_tombstone(here.clone()).await.expect("is refused"));
    store.quarantine(&increment("bad"), "a test").await.expect("moves");
    assert!(!store.import_tombstone(here).await.expect("is refused: some of it is in quarantine"));
    let absent = Tombstone::new(OTHER, Some("elsewhere".to_owned()));
    assert!(store.import_tombstone(absent.clone()).await.expect("is new"));
    assert!(!store.import_tombstone(absent.clone()).await.expect("is there already"));
    assert!(!store.is_deleted(DOCUMENT) && store.is_deleted(OTHER));
    assert_eq!(store.tombstones().await.expect("reads"), [absent]);
}

pub(in crate::storage) async fn blocks_last_until_they_are_removed(store: impl Store) {
    put(&store, &increment("a"), b"stays").await;
    store.block_in_memory(DOCUMENT);
    assert!(store.is_blocked(DOCUMENT));
    let first = store.block(DOCUMENT, Some("spam".to_owned())).await.expect("blocks");
    assert_eq!(first.reason.as_deref(), Some("spam"));
    humantime::parse_rfc3339(&first.blocked_at).expect("a time");
    let again = store.block(DOCUMENT, None).await.expect("blocks again");
    assert_eq!(again, first, "without a new reason the first stays");
    let changed = store.block(DOCUMENT, Some("abuse".to_owned())).await.expect("blocks again");
    assert_eq!(store.blocks().await.expect("reads"), [changed]);
    assert_eq!(sorted(&store, DOCUMENT).await.len(), 1, "a blocked document is stored");
    assert!(store.unblock(DOCUMENT).await.expect("unblocks"));
    assert!(!store.unblock(DOCUMENT).await.expect("is not blocked"));
    assert!(!store.is_blocked(DOCUMENT));
    assert_eq!(store.blocks().await.expect("reads"), []);
}

pub(in crate::storage) async fn a_chunk_is_released_only_if_it_parses(store: impl Store) {
    let mut doc = Automerge::new();
    doc.transact::<_, _, AutomergeError>(|tx| tx.put(ROOT, "a", 1)).expect("an edit");
    let (good, bad) = (increment("good"), increment("bad"));
    put(&store, &good, &doc.save()).await;
    put(&store, &bad, b"garbage").await;
    for key in [&good, &bad] {
        store.quarantine(key, "a test").await.expect("moves");
    }
    assert_eq!(sorted(&store, DOCUMENT).await, []);
    assert!(list(&store).is_empty(), "nothing of it is stored");
    let entries = store.quarantined().await.expect("lists");
    let paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    let [bad_path, good_path] = [&bad, &good].map(Quarantined::path_of);
    assert_eq!(paths, [&bad_path, &good_path]);
    assert_eq!((entries[0].bytes, entries[0].reason.as_str()), (7, "a test"));
    humantime::parse_rfc3339(&entries[0].since).expect("a time");

    store.release(bad_path.clone()).await.expect_err("does not parse");
    store.release("../../etc/passwd".to_owned()).await.expect_err("is not there");
    assert_eq!(store.release(good_path.clone()).await.expect("parses"), good);
    store.release(good_path).await.expect_err("is not there any more");
    assert_eq!(sorted(&store, DOCUMENT).await, [(good, doc.save())]);
    store.purge(bad_path.clone()).await.expect("deletes");
    store.purge(bad_path).await.expect_err("is not there any more");
    assert!(store.quarantined().await.expect("lists").is_empty());
}

pub(in crate::storage) async fn imports_are_recorded_by_etag(store: impl Store) {
    let imported =
        async |etag: &str| store.imported(DOCUMENT, etag.to_owned()).await.expect("reads");
    assert_eq!(imported("one").await, None);
    let documents = vec![OTHER, DOCUMENT];
    store.record_import(DOCUMENT, "one".to_owned(), documents.clone()).await.expect("records");
    assert_eq!(imported("one").await, Some(documents));
    assert_eq!(imported("two").await, None);
    store.record_import(DOCUMENT, "two".to_owned(), Vec::new()).await.expect("records");
    assert_eq!(imported("two").await, Some(Vec::new()));
    assert_eq!(imported("one").await, None, "only the last is known");
    store.forget_imports().await.expect("forgets");
    assert_eq!(imported("two").await, None);
}
