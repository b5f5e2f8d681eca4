//! Commits: what is durable, and after which failures.

use super::*;

#[tokio::test]
async fn stored_chunks_survive_a_kill_without_becoming_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    journal.put(&increment(1, "a"), Bytes::from_static(b"one")).await.expect("puts");
    journal.put(&increment(1, "b"), Bytes::from_static(b"two")).await.expect("puts");
    journal.put(&increment(1, "b"), Bytes::from_static(b"two again")).await.expect("puts");
    journal.put(&increment(2, "c"), Bytes::from_static(b"three")).await.expect("puts");
    journal.delete(&increment(2, "c")).await.expect("deletes");
    let left = tempfile::tempdir().expect("a folder");
    copy(folder.path(), left.path());
    let again = open_at(left.path());
    let expected =
        [(increment(1, "a"), b"one".to_vec()), (increment(1, "b"), b"two again".to_vec())];
    for journal in [&journal, &again] {
        assert_eq!(journal.load_document(document(1)).await.expect("loads").chunks, expected);
        assert_eq!(journal.load_document(document(2)).await.expect("loads").chunks, []);
    }
    assert!(names(&journal.folders, 1).await.is_empty(), "no file");
}

#[tokio::test]
async fn concurrent_writes_share_a_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let metrics = metrics();
    let journal = Journal::open(&config(folder.path()), metrics.clone()).expect("opens");
    let puts = (0..200).map(|n| {
        let journal = &journal;
        async move {
            let key = increment(n, "a");
            journal.put(&key, Bytes::from_static(b"one")).await
        }
    });
    for put in futures::future::join_all(puts).await {
        put.expect("puts");
    }
    assert!(metrics.commits.get() <= 3, "{} commits", metrics.commits.get());
    assert_eq!(metrics.journal_chunks.get(), 200);
    assert_eq!(metrics.journal_bytes.get(), 600);
}

#[tokio::test]
async fn the_file_is_not_reopened_after_a_failed_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    let file = folder.path().join(".journal/journal.sqlite");
    let fail = "CREATE TRIGGER fail BEFORE INSERT ON chunk WHEN NEW.name = 'bad' BEGIN SELECT \
                RAISE(ABORT, 'no'); END";
    Connection::open(&file).expect("opens").execute_batch(fail).expect("made");
    journal.put(&increment(1, "bad"), Bytes::from_static(b"x")).await.expect_err("fails");
    // Opening the journal now would fail.
    fs::rename(&file, file.with_extension("moved")).expect("moved");
    fs::create_dir(&file).expect("made");
    journal.put(&increment(1, "good"), Bytes::from_static(b"x")).await.expect("goes on");
}

/// A power loss may leave the last write missing or torn.
#[tokio::test]
async fn a_torn_tail_loses_no_earlier_commit() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    let wal = folder.path().join(".journal/journal.sqlite-wal");
    let mut sizes = Vec::new();
    for n in 0..8 {
        journal.put(&increment(1, &n.to_string()), Bytes::from(vec![n; 3000])).await.expect("puts");
        sizes.push(fs::metadata(&wal).expect("is there").len());
    }
    let whole = fs::read(&wal).expect("reads");
    for cut in (0..whole.len()).step_by(1777) {
        for torn in [false, true] {
            let left = tempfile::tempdir().expect("a folder");
            copy(folder.path(), left.path());
            let mut bytes = whole[..cut].to_vec();
            if torn {
                bytes.resize(whole.len(), 0);
            }
            fs::write(left.path().join(".journal/journal.sqlite-wal"), bytes).expect("writes");
            let durable = sizes.iter().filter(|size| **size <= cut as u64).count();
            let found = names(&open_at(left.path()), 1).await.len();
            assert!(found >= durable, "{found} of {durable} are there when cut at {cut}");
        }
    }
}

#[tokio::test]
async fn a_folder_is_open_in_one_process_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    let error = Journal::open(&config(folder.path()), metrics()).err().expect("is refused");
    let expected =
        format!("another process uses this folder: tonk-relay, process {}", std::process::id());
    assert!(error.to_string().contains(&expected), "{error}");
    drop(journal);
    until("it is free", async || Journal::open(&config(folder.path()), metrics()).is_ok()).await;
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(".journal/journal.sqlite");
    fs::create_dir(path.parent().expect("a folder")).expect("makes");
    let connection = Connection::open(&path).expect("opens");
    connection.pragma_update(None, "user_version", 2).expect("sets");
    drop(connection);
    let error = Journal::open(&config(folder.path()), metrics()).err().expect("is refused");
    assert!(error.to_string().contains("format 2, and this tonk-relay supports 1"), "{error}");
}
