//! Broken journals.

use std::collections::BTreeMap;

use super::{super::shared::Change, *};

/// The names and bytes of the journal's files.
fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder.join(".journal")).expect("lists");
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("an entry");
        (entry.file_name().into_string().expect("a text"), fs::read(entry.path()).expect("reads"))
    };
    let mut files: BTreeMap<_, _> = entries.map(file).collect();
    files.remove("journal.sqlite-shm");
    files
}

#[tokio::test]
async fn a_broken_journal_is_moved_to_quarantine_unchanged_unless_opened_without_repair() {
    for break_at in [0, 4096] {
        let folder = tempfile::tempdir().expect("a folder");
        let left = tempfile::tempdir().expect("a folder");
        let journal = open_at(folder.path());
        let data = Bytes::from(vec![b'x'; 3000]);
        for n in 0..20 {
            journal.put(&increment(n, "a"), data.clone()).await.expect("puts");
        }
        journal.commit(Change::TruncateWal).await.expect("truncates");
        journal.put(&increment(1, "b"), Bytes::from_static(b"in the log")).await.expect("puts");
        copy(folder.path(), left.path());
        let path = left.path().join(".journal/journal.sqlite");
        let mut file = fs::read(&path).expect("reads");
        file[break_at..break_at + 3000].fill(0x5a);
        fs::write(&path, file).expect("writes");
        let before = files_of(left.path());
        let config = config(left.path());
        let error = Journal::open_without_repair(&config, metrics()).err().expect("is refused");
        assert!(matches!(error, StorageError::Corrupt(_)), "{error}");
        assert_eq!(files_of(left.path()), before);
        let _again = open_at(left.path());
        let aside = left.path().join("quarantine/journal-0");
        for (name, data) in &before {
            assert!(fs::read(aside.join(name)).expect("is kept") == *data, "{name}");
        }
    }
}

/// SQLite finds the broken page only when it reads that row.
#[tokio::test]
async fn readable_rows_of_a_broken_journal_are_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let left = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    for n in 0..20 {
        // Rows of several pages each.
        let data = Bytes::from(vec![n + 1; 20_000]);
        journal.put(&increment(n, "a"), data).await.expect("puts");
    }
    journal.commit(Change::TruncateWal).await.expect("truncates");
    copy(folder.path(), left.path());
    let path = left.path().join(".journal/journal.sqlite");
    let mut file = fs::read(&path).expect("reads");
    // An overflow page of document 9 begins with the number of the next one.
    let is_of_document =
        |page: &[u8]| page[4..].iter().all(|byte| *byte == 10) && page[..4] != [0; 4];
    let at = file.chunks(4096).position(is_of_document).expect("is there") * 4096;
    file[at..at + 4].copy_from_slice(&[0x7f; 4]);
    fs::write(&path, file).expect("writes");
    let journal = open_at(left.path());
    for n in 0..20 {
        let expected: &[&str] = if n == 9 { &[] } else { &["a"] };
        assert_eq!(names(&journal, n).await, expected, "{n}");
    }
    assert!(left.path().join("quarantine/journal-0/journal.sqlite").exists());
    journal.put(&increment(9, "b"), Bytes::from_static(b"goes on")).await.expect("puts");
    journal.checkpoint().await.expect("moves");
}

#[tokio::test]
async fn broken_journals_are_kept_in_separate_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(".journal/journal.sqlite");
    fs::create_dir(path.parent().expect("a folder")).expect("makes");
    for n in 0..2 {
        let _ = fs::remove_file(path.with_file_name("journal.sqlite-wal"));
        fs::write(&path, b"garbage, and not a journal, but long enough to be read".repeat(100))
            .expect("writes");
        let metrics = metrics();
        let journal = Journal::open(&config(folder.path()), metrics.clone()).expect("opens");
        assert_eq!(metrics.broken_chunks.get(), 1);
        journal.put(&increment(1, "a"), Bytes::from_static(b"one")).await.expect("puts");
        journal.checkpoint().await.expect("moves");
        let aside = folder.path().join(format!("quarantine/journal-{n}"));
        assert!(fs::read(aside.join("journal.sqlite")).expect("is kept").starts_with(b"garbage"));
        assert!(
            fs::read_to_string(aside.join("reason")).expect("says why").contains("not a database")
        );
        drop(journal);
        until("it is free", async || is_unlocked(folder.path())).await;
    }
}

fn is_unlocked(folder: &Path) -> bool {
    let lock = fs::File::open(folder.join(".lock")).expect("is there");
    lock.try_lock().is_ok()
}
