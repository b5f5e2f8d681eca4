//! Deleting documents, and tombstones.

use super::{super::chunk_store::LARGE_CHUNK, *};
use crate::storage::local::walk;

#[tokio::test]
async fn nothing_of_a_deleted_document_is_left_or_accepted() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Arc::new(open_at(folder.path()));
    journal.put(&increment(1, "moved"), Bytes::from_static(b"secret 1")).await.expect("puts");
    journal.checkpoint().await.expect("moves");
    journal.put(&increment(1, "here"), Bytes::from_static(b"secret 2")).await.expect("puts");
    journal.put(&increment(1, "large"), Bytes::from(vec![7; LARGE_CHUNK])).await.expect("puts");
    journal.quarantine(&increment(1, "moved"), "a test").await.expect("moves");
    journal.put(&increment(2, "other"), Bytes::from_static(b"stays")).await.expect("puts");
    // It is written concurrently.
    let writing = tokio::spawn({
        let journal = journal.clone();
        async move {
            for n in 0..100 {
                let size = if n % 2 == 0 { 10 } else { LARGE_CHUNK };
                let key = increment(1, &format!("late {n}"));
                journal.put(&key, Bytes::from(vec![9; size])).await.expect("puts");
            }
        }
    });
    let tombstone = Tombstone::new(document(1), None);
    let deleted = journal.delete_document(document(1), tombstone).await.expect("deletes");
    assert!(deleted.chunks >= 3 && deleted.bytes > LARGE_CHUNK as u64, "{deleted:?}");
    writing.await.expect("writes");
    assert!(names(&*journal, 1).await.is_empty());
    assert!(walk::read_document(folder.path(), document(1)).expect("reads").is_empty());
    assert!(journal.list(&mut |listed| listed.document == document(2)).is_ok());
    let file = fs::read(&journal.shared.path).expect("reads");
    assert!(!file.windows(6).any(|bytes| bytes == b"secret"), "SQLite keeps no bytes of it");
    assert!(!folder.path().join("quarantine").join(folder_of(1)).exists());

    // A deletion that was interrupted by a kill is completed at the next start.
    let left = tempfile::tempdir().expect("a folder");
    journal.shared.tombstones.remove(document(1)).expect("removes");
    journal.put(&increment(1, "again"), Bytes::from_static(b"secret 3")).await.expect("puts");
    copy(folder.path(), left.path());
    let tombstones = Tombstones::open(left.path()).expect("opens");
    tombstones.add(document(1), &Tombstone::new(document(1), None)).expect("adds");
    let files = left.path().join(folder_of(1)).join("snapshot");
    fs::create_dir_all(&files).expect("made");
    fs::write(files.join("abc"), b"secret 4").expect("written");
    let journal = open_at(left.path());
    assert!(!left.path().join(folder_of(1)).exists(), "its files are gone");
    let file = fs::read(&journal.shared.path).expect("reads");
    assert!(!file.windows(6).any(|bytes| bytes == b"secret"), "SQLite keeps no bytes of it");
    assert!(names(&journal, 1).await.is_empty());
    assert_eq!(names(&journal, 2).await, ["other"]);
    journal.checkpoint().await.expect("moves");
    assert!(walk::read_document(left.path(), document(1)).expect("reads").is_empty());
    drop(journal);
    let count = |root| count_rows(root);
    assert!(matches!(count(left.path()), Ok(0)), "the log is empty after a checkpoint");
    assert!(matches!(count(folder.path()), Err(StorageError::InUse(_))));
}

#[tokio::test]
async fn other_documents_are_moved_before_the_file_is_rewritten() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    journal.put(&increment(1, "a"), Bytes::from_static(b"stays")).await.expect("puts");
    journal.put(&increment(2, "a"), Bytes::from_static(b"is deleted")).await.expect("puts");
    journal.delete_document(document(2), Tombstone::new(document(2), None)).await.expect("deletes");
    assert_eq!(journal.documents(), []);
    assert_eq!(names(&journal.folders, 1).await, ["a"]);
}

#[tokio::test]
async fn a_tombstone_of_another_storage_applies_only_to_absent_documents() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    journal.put(&increment(1, "a"), Bytes::from_static(b"one")).await.expect("puts");
    assert!(!journal.import_tombstone(Tombstone::new(document(1), None)).await.expect("stays"));
    assert!(journal.import_tombstone(Tombstone::new(document(2), None)).await.expect("is taken"));
    assert_eq!(names(&journal, 1).await, ["a"]);
    assert!(journal.is_deleted(document(2)));
    // Files that a deletion has left do not reappear.
    let left = folder.path().join(folder_of(2)).join("incremental");
    fs::create_dir_all(&left).expect("made");
    fs::write(left.join("old"), b"old").expect("written");
    assert!(journal.undelete(document(2)).await.expect("lifts"));
    assert!(!journal.undelete(document(2)).await.expect("is not deleted"));
    assert!(names(&journal, 2).await.is_empty());
}
