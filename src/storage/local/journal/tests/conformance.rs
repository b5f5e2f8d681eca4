//! The contract of `ChunkStore`.

use super::*;
use crate::storage::conformance::{self, conformance_tests, store_tests};

fn empty() -> (tempfile::TempDir, Journal) {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    (folder, journal)
}

store_tests!(async || Some(empty()));
conformance_tests!(async || Some(empty()); a_put_replaces_the_earlier_value);

#[tokio::test]
async fn stored_values_are_there_after_reopening() {
    let (folder, journal) = empty();
    let left = tempfile::tempdir().expect("a folder");
    let reopen = async |journal: Journal| {
        copy(folder.path(), left.path());
        drop(journal);
        open_at(left.path())
    };
    conformance::stored_values_are_there_after_reopening(journal, reopen).await;
}

#[tokio::test]
async fn a_deleted_document_stores_nothing() {
    let (_folder, journal) = empty();
    let delete = async |journal: &Journal, document| {
        let tombstone = Tombstone::new(document, None);
        journal.delete_document(document, tombstone).await.expect("deletes");
    };
    conformance::a_deleted_document_stores_nothing(journal, delete).await;
}
