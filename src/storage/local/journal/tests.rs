use std::{collections::BTreeMap, sync::PoisonError, time::Duration};

use proptest::prelude::*;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::{
    config::{Size, Time},
    document::chunk::ChunkKind,
    observe::metrics::Metrics,
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

mod conformance {
    use super::*;
    use crate::storage::conformance::{self, conformance_tests};

    fn empty() -> (tempfile::TempDir, Journal) {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = open_at(folder.path());
        (folder, journal)
    }

    conformance_tests!(empty);

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
}

/// Copy a folder as a kill would leave it, or open it when its owner is gone.
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

async fn names(store: &dyn ChunkStore, n: u8) -> Vec<String> {
    let chunks = store.load_document(document(n)).await.expect("loads");
    chunks
        .into_iter()
        .map(|(key, _)| key.to_string().split('/').nth(2).unwrap_or("").into())
        .collect()
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(10), waiting).await.is_ok(),
        "not in time: {what}"
    );
}

#[tokio::test]
async fn what_was_put_is_there_after_a_kill_and_makes_no_file() {
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
        assert_eq!(journal.load_document(document(1)).await.expect("loads"), expected);
        assert_eq!(journal.load_document(document(2)).await.expect("loads"), []);
    }
    assert!(names(&journal.folders, 1).await.is_empty(), "no file");
}

#[tokio::test]
async fn writes_of_many_become_durable_together() {
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
async fn a_checkpoint_leaves_everything_to_the_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    for n in 0..50 {
        journal.put(&increment(n, "a"), Bytes::from(vec![n; 9])).await.expect("puts");
    }
    let large = key(1, ChunkKind::Snapshot, "large");
    journal.put(&large, Bytes::from(vec![1; LARGE])).await.expect("puts");
    assert_eq!(names(&journal.folders, 1).await, ["large"], "it is a file at once");
    assert_eq!(journal.checkpoint().await.expect("moves"), 50);
    assert_eq!(journal.checkpoint().await.expect("moves"), 0);
    assert_eq!(names(&journal.folders, 1).await, ["large", "a"]);
    assert_eq!(names(&journal, 1).await, ["large", "a"]);
    assert_eq!(journal.shared.metrics.journal_chunks.get(), 0);
    // What the folders have leaves them when nobody can need it any more.
    journal.delete(&increment(7, "a")).await.expect("deletes");
    until("the file is gone", async || names(&journal.folders, 7).await.is_empty()).await;
}

#[tokio::test]
async fn a_replaced_chunk_stays_for_other_readers_until_its_grace_time_is_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let config =
        config::Storage { grace: Time(Duration::from_millis(300)), ..config(folder.path()) };
    let journal = Journal::open(&config, metrics()).expect("opens");
    journal.put(&increment(1, "a"), Bytes::from_static(b"one")).await.expect("puts");
    journal.checkpoint().await.expect("moves");
    let deleted = Instant::now();
    journal.delete(&increment(1, "a")).await.expect("deletes");
    assert_eq!(names(&journal.folders, 1).await, ["a"], "it is still there");
    until("it is gone", async || names(&journal.folders, 1).await.is_empty()).await;
    assert!(deleted.elapsed() >= Duration::from_millis(300), "{:?}", deleted.elapsed());
}

#[tokio::test]
async fn a_replaced_chunk_leaves_the_folders_after_what_replaced_it_came_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let config =
        config::Storage { grace: Time(Duration::from_millis(50)), ..config(folder.path()) };
    let journal = Journal::open(&config, metrics()).expect("opens");
    journal.put(&increment(1, "a"), Bytes::from_static(b"one")).await.expect("puts");
    journal.checkpoint().await.expect("moves");
    let snapshot = key(1, ChunkKind::Snapshot, "b");
    journal.put(&snapshot, Bytes::from_static(b"one in a snapshot")).await.expect("puts");
    journal.delete(&increment(1, "a")).await.expect("deletes");
    until("a is gone", async || {
        let names = names(&journal.folders, 1).await;
        assert!(!names.is_empty(), "nothing is in the folders");
        names == ["b"]
    })
    .await;
}

/// As when an operator's command is interrupted.
#[tokio::test]
async fn a_checkpoint_that_nobody_waits_for_any_more_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    for n in 0..40 {
        journal.put(&increment(n, "a"), Bytes::from_static(b"one")).await.expect("puts");
    }
    for _ in 0..200 {
        let asking = journal.checkpoint();
        let _ = tokio::time::timeout(Duration::from_micros(300), asking).await;
    }
    journal.checkpoint().await.expect("moves");
    // The grace time is none here: pending deletions happen soon.
    sleep(Duration::from_millis(100)).await;
    for n in 0..40 {
        assert_eq!(names(&journal, n).await, ["a"], "{n}");
    }
}

#[tokio::test]
async fn what_is_put_again_is_not_deleted_when_the_grace_time_of_its_like_is_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let config =
        config::Storage { grace: Time(Duration::from_millis(50)), ..config(folder.path()) };
    let journal = Journal::open(&config, metrics()).expect("opens");
    let large = key(1, ChunkKind::Snapshot, "large");
    for (key, data) in [(increment(1, "a"), vec![1]), (large, vec![1; LARGE])] {
        let data = Bytes::from(data);
        journal.put(&key, data.clone()).await.expect("puts");
        journal.checkpoint().await.expect("moves");
        journal.delete(&key).await.expect("deletes");
        journal.put(&key, data).await.expect("puts");
        journal.checkpoint().await.expect("moves");
    }
    journal.delete(&increment(1, "a")).await.expect("deletes");
    until("a is gone", async || names(&journal, 1).await == ["large"]).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_deleted_for_long_keeps_only_its_own_chunk_waiting() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Arc::new(open_at(folder.path()));
    let (old, other) = (increment(1, "a"), increment(2, "a"));
    journal.put(&old, Bytes::from_static(b"one")).await.expect("puts");
    journal.checkpoint().await.expect("moves");
    // All places for work on the disk are taken, as by loads that hang.
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let ended = Arc::new(Mutex::new(ended));
    let hanging: Vec<_> = (0..32)
        .map(|_| {
            let (folders, ended) = (journal.folders.clone(), ended.clone());
            tokio::spawn(async move {
                let wait = move |_: &Path| {
                    let _ = ended.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    Ok(())
                };
                folders.run("wait", wait).await
            })
        })
        .collect();
    journal.delete(&old).await.expect("deletes");
    until("it is being deleted", async || journal.shared.deleting.borrow().is_some()).await;
    let putting = journal.put(&other, Bytes::from_static(b"two"));
    timeout(Duration::from_secs(5), putting).await.expect("others do not wait").expect("puts");
    let again = tokio::spawn({
        let (journal, old) = (journal.clone(), old.clone());
        async move { journal.put(&old, Bytes::from_static(b"one")).await }
    });
    drop(end);
    for work in hanging {
        work.await.expect("ends").expect("ends");
    }
    again.await.expect("ends").expect("puts");
    journal.checkpoint().await.expect("moves");
    assert_eq!(names(&*journal, 1).await, ["a"], "it was stored after the deletion");
}

#[tokio::test]
async fn beyond_its_size_the_oldest_move_into_the_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config::Storage { journal_size: Size(100_000), ..config(folder.path()) };
    let journal = Journal::open(&config, metrics()).expect("opens");
    for n in 0..150 {
        journal.put(&increment(n, "a"), Bytes::from(vec![n; 1000])).await.expect("puts");
    }
    until("it is small", async || journal.shared.metrics.journal_bytes.get() <= 100_000).await;
    assert_eq!(names(&journal.folders, 0).await, ["a"], "the oldest moved");
    assert!(names(&journal.folders, 149).await.is_empty(), "the newest did not");
    for n in 0..150 {
        assert_eq!(names(&journal, n).await, ["a"]);
    }
}

#[tokio::test]
async fn when_it_is_quiet_all_moves_into_the_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let config =
        config::Storage { quiet: Time(Duration::from_millis(50)), ..config(folder.path()) };
    let journal = Journal::open(&config, metrics()).expect("opens");
    for n in 0..3 {
        journal.put(&increment(n, "a"), Bytes::from_static(b"a")).await.expect("puts");
    }
    until("it is empty", async || journal.shared.index().rows == 0).await;
    for n in 0..3 {
        assert_eq!(names(&journal.folders, n).await, ["a"]);
    }
}

#[tokio::test]
async fn of_a_deleted_document_nothing_is_left_and_nothing_is_taken() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Arc::new(open_at(folder.path()));
    journal.put(&increment(1, "moved"), Bytes::from_static(b"secret 1")).await.expect("puts");
    journal.checkpoint().await.expect("moves");
    journal.put(&increment(1, "here"), Bytes::from_static(b"secret 2")).await.expect("puts");
    journal.put(&increment(1, "large"), Bytes::from(vec![7; LARGE])).await.expect("puts");
    journal.quarantine(&increment(1, "moved"), "a test").await.expect("moves");
    journal.put(&increment(2, "other"), Bytes::from_static(b"stays")).await.expect("puts");
    // Others write it all the while.
    let writing = tokio::spawn({
        let journal = journal.clone();
        async move {
            for n in 0..100 {
                let size = if n % 2 == 0 { 10 } else { LARGE };
                let key = increment(1, &format!("late {n}"));
                journal.put(&key, Bytes::from(vec![9; size])).await.expect("puts");
            }
        }
    });
    let tombstone = Tombstone::new(document(1), None);
    let deleted = journal.delete_document(document(1), tombstone).await.expect("deletes");
    assert!(deleted.chunks >= 3 && deleted.bytes > LARGE as u64, "{deleted:?}");
    writing.await.expect("writes");
    assert!(names(&*journal, 1).await.is_empty());
    assert!(walk::read_document(folder.path(), document(1)).expect("reads").is_empty());
    assert!(journal.list(|listed| listed.document == document(2)).is_ok());
    let file = fs::read(&journal.shared.path).expect("reads");
    assert!(!file.windows(6).any(|bytes| bytes == b"secret"), "SQLite keeps none of it");
    assert!(!folder.path().join("quarantine").join(walk_folder(1)).exists());

    // Killed between its steps, a deletion is finished by the next start.
    let left = tempfile::tempdir().expect("a folder");
    journal.tombstones().remove(document(1)).expect("removes");
    journal.put(&increment(1, "again"), Bytes::from_static(b"secret 3")).await.expect("puts");
    copy(folder.path(), left.path());
    let tombstones = Tombstones::open(left.path()).expect("opens");
    tombstones.add(document(1), &Tombstone::new(document(1), None)).expect("adds");
    let files = left.path().join(walk_folder(1)).join("snapshot");
    fs::create_dir_all(&files).expect("made");
    fs::write(files.join("abc"), b"secret 4").expect("written");
    let journal = open_at(left.path());
    assert!(!left.path().join(walk_folder(1)).exists(), "its files are gone");
    let file = fs::read(&journal.shared.path).expect("reads");
    assert!(!file.windows(6).any(|bytes| bytes == b"secret"), "SQLite keeps none of it");
    assert!(names(&journal, 1).await.is_empty());
    assert_eq!(names(&journal, 2).await, ["other"]);
    journal.checkpoint().await.expect("moves");
    assert!(walk::read_document(left.path(), document(1)).expect("reads").is_empty());
    drop(journal);
    let count = |root| count_rows(root);
    assert!(matches!(count(left.path()), Ok(0)), "after a checkpoint the file alone says it");
    assert!(matches!(count(folder.path()), Err(StorageError::InUse(_))));
}

/// Where a document's chunks are below a folder.
fn walk_folder(n: u8) -> PathBuf {
    document(n).folder().into()
}

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
async fn what_else_is_in_the_journal_moves_before_its_file_is_written_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    journal.put(&increment(1, "a"), Bytes::from_static(b"stays")).await.expect("puts");
    journal.put(&increment(2, "a"), Bytes::from_static(b"goes")).await.expect("puts");
    journal.delete_document(document(2), Tombstone::new(document(2), None)).await.expect("deletes");
    assert_eq!(journal.documents(), []);
    assert_eq!(names(&journal.folders, 1).await, ["a"]);
}

#[tokio::test]
async fn a_commit_that_fails_does_not_open_the_file_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    let file = folder.path().join(".journal/journal.sqlite");
    let fail = "CREATE TRIGGER fail BEFORE INSERT ON chunk WHEN NEW.name = 'bad' BEGIN SELECT RAISE(ABORT, 'no'); END";
    Connection::open(&file).expect("opens").execute_batch(fail).expect("made");
    journal.put(&increment(1, "bad"), Bytes::from_static(b"x")).await.expect_err("fails");
    // Who opened it now would find this.
    fs::rename(&file, file.with_extension("moved")).expect("moved");
    fs::create_dir(&file).expect("made");
    journal.put(&increment(1, "good"), Bytes::from_static(b"x")).await.expect("goes on");
}

#[tokio::test]
async fn a_broken_journal_is_not_touched_by_who_only_looks_and_kept_whole_aside() {
    for break_at in [0, 4096] {
        let folder = tempfile::tempdir().expect("a folder");
        let left = tempfile::tempdir().expect("a folder");
        let journal = open_at(folder.path());
        let data = Bytes::from(vec![b'x'; 3000]);
        for n in 0..20 {
            journal.put(&increment(n, "a"), data.clone()).await.expect("puts");
        }
        journal.change(Change::TruncateWal).await.expect("folds");
        journal.put(&increment(1, "b"), Bytes::from_static(b"in the log")).await.expect("puts");
        copy(folder.path(), left.path());
        let path = left.path().join(".journal/journal.sqlite");
        let mut file = fs::read(&path).expect("reads");
        file[break_at..break_at + 3000].fill(0x5a);
        fs::write(&path, file).expect("writes");
        let before = files_of(left.path());
        let config = config(left.path());
        let error = Journal::open_as_it_is(&config, metrics()).err().expect("is refused");
        assert!(matches!(error, StorageError::Corrupt(_)), "{error}");
        assert_eq!(files_of(left.path()), before);
        let _again = open_at(left.path());
        let aside = left.path().join("quarantine/journal-0");
        for (name, data) in &before {
            assert!(fs::read(aside.join(name)).expect("is kept") == *data, "{name}");
        }
    }
}

/// A page in the middle that SQLite meets only when it reads that row.
#[tokio::test]
async fn what_can_be_read_of_a_broken_journal_is_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let left = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    for n in 0..20 {
        // Rows of several pages each.
        let data = Bytes::from(vec![n + 1; 20_000]);
        journal.put(&increment(n, "a"), data).await.expect("puts");
    }
    journal.change(Change::TruncateWal).await.expect("folds");
    copy(folder.path(), left.path());
    let path = left.path().join(".journal/journal.sqlite");
    let mut file = fs::read(&path).expect("reads");
    // An overflow page of document 9 begins with the number of the next one.
    let is_its = |page: &[u8]| page[4..].iter().all(|byte| *byte == 10) && page[..4] != [0; 4];
    let at = file.chunks(4096).position(is_its).expect("is there") * 4096;
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

#[tokio::test(flavor = "multi_thread")]
async fn who_lists_or_loads_sees_every_document_while_its_chunks_move_and_are_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Arc::new(open_at(folder.path()));
    for n in 0..8 {
        journal.put(&increment(n, "0"), Bytes::from_static(b"one")).await.expect("puts");
    }
    let goes_on = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let looking = (0..2).map(|n| {
        let (journal, goes_on) = (journal.clone(), goes_on.clone());
        tokio::spawn(async move {
            while goes_on.load(std::sync::atomic::Ordering::Relaxed) {
                if n == 0 {
                    let journal = journal.clone();
                    let listing = move || {
                        let mut listed = 0;
                        let count = |_| {
                            listed += 1;
                            true
                        };
                        journal.list(count).expect("lists");
                        listed
                    };
                    let listed = tokio::task::spawn_blocking(listing).await.expect("lists");
                    assert_eq!(listed, 8, "all of them are listed");
                }
                for n in 0..8 {
                    assert!(!names(&*journal, n).await.is_empty(), "{n} has chunks");
                }
            }
        })
    });
    let looking: Vec<_> = looking.collect();
    for round in 1..24 {
        for n in 0..8 {
            let next = increment(n, &round.to_string());
            journal.put(&next, Bytes::from_static(b"one")).await.expect("puts");
            journal.delete(&increment(n, &(round - 1).to_string())).await.expect("deletes");
        }
        if round % 3 == 0 {
            journal.checkpoint().await.expect("moves");
        }
    }
    goes_on.store(false, std::sync::atomic::Ordering::Relaxed);
    for looking in looking {
        looking.await.expect("sees all");
    }
}

#[tokio::test]
async fn a_tombstone_of_another_storage_buries_only_what_is_not_here() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    journal.put(&increment(1, "a"), Bytes::from_static(b"one")).await.expect("puts");
    assert!(!journal.import_tombstone(Tombstone::new(document(1), None)).await.expect("stays"));
    assert!(journal.import_tombstone(Tombstone::new(document(2), None)).await.expect("is taken"));
    assert_eq!(names(&journal, 1).await, ["a"]);
    assert!(journal.is_deleted(document(2)));
    // What a deletion left does not come back with what is undeleted.
    let left = folder.path().join(walk_folder(2)).join("incremental");
    fs::create_dir_all(&left).expect("made");
    fs::write(left.join("old"), b"old").expect("written");
    assert!(journal.undelete(document(2)).await.expect("lifts"));
    assert!(!journal.undelete(document(2)).await.expect("is not deleted"));
    assert!(names(&journal, 2).await.is_empty());
}

#[tokio::test]
async fn a_folder_has_one_owner() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    let error = Journal::open(&config(folder.path()), metrics()).err().expect("is refused");
    let expected =
        format!("another process has this folder: tonk-relay, process {}", std::process::id());
    assert!(error.to_string().contains(&expected), "{error}");
    drop(journal);
    until("it is free", async || Journal::open(&config(folder.path()), metrics()).is_ok()).await;
}

#[tokio::test]
async fn a_newer_format_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(".journal/journal.sqlite");
    fs::create_dir(path.parent().expect("a folder")).expect("makes");
    let connection = Connection::open(&path).expect("opens");
    connection.pragma_update(None, "user_version", 2).expect("sets");
    drop(connection);
    let error = Journal::open(&config(folder.path()), metrics()).err().expect("is refused");
    assert!(error.to_string().contains("format 2, and this tonk-relay knows 1"), "{error}");
}

#[tokio::test]
async fn a_broken_journal_is_kept_aside() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(".journal/journal.sqlite");
    fs::create_dir(path.parent().expect("a folder")).expect("makes");
    for n in 0..2 {
        let _ = fs::remove_file(path.with_file_name("journal.sqlite-wal"));
        fs::write(&path, b"garbage, and no journal, but long enough to be looked at".repeat(100))
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
        until("it is free", async || open_is_free(folder.path())).await;
    }
}

fn open_is_free(folder: &Path) -> bool {
    let lock = fs::File::open(folder.join(".lock")).expect("is there");
    lock.try_lock().is_ok()
}

/// A power loss may leave the end of the last write out, or torn.
#[tokio::test]
async fn a_torn_end_costs_nothing_that_was_durable_before_it() {
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

#[derive(Clone, Debug)]
enum Action {
    Put(u8, u8, u8),
    Delete(u8, u8),
    Checkpoint,
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0..3u8, 0..6u8, any::<u8>()).prop_map(|(d, name, value)| Action::Put(d, name, value)),
        3 => (0..3u8, 0..6u8).prop_map(|(d, name)| Action::Delete(d, name)),
        1 => Just(Action::Checkpoint),
        1 => Just(Action::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is done, all that was put and not deleted is there, as it was put last.
    #[test]
    fn nothing_is_lost_between_journal_and_folders(
        actions in proptest::collection::vec(action(), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut folder = tempfile::tempdir().expect("a folder");
            let mut config = config(folder.path());
            // Deleted files stay: what was put after them is then really seen to win.
            config.grace = Time(Duration::from_secs(60));
            config.commit_interval = Time(Duration::ZERO);
            let mut journal = Journal::open(&config, metrics()).expect("opens");
            let mut expected: BTreeMap<Key, u8> = BTreeMap::new();
            for action in actions {
                match action {
                    Action::Put(d, name, value) => {
                        let key = increment(d, &name.to_string());
                        journal.put(&key, Bytes::from(vec![value])).await.expect("puts");
                        expected.insert(key, value);
                    }
                    Action::Delete(d, name) => {
                        let key = increment(d, &name.to_string());
                        journal.delete(&key).await.expect("deletes");
                        expected.remove(&key);
                    }
                    Action::Checkpoint => _ = journal.checkpoint().await.expect("moves"),
                    Action::Reopen => {
                        let left = tempfile::tempdir().expect("a folder");
                        copy(folder.path(), left.path());
                        folder = left;
                        config.path = folder.path().to_owned();
                        journal = Journal::open(&config, metrics()).expect("opens");
                    }
                }
            }
            for d in 0..3 {
                let found = journal.load_document(document(d)).await.expect("loads");
                let found: BTreeMap<Key, Vec<u8>> = found.into_iter().collect();
                for (key, value) in expected.iter().filter(|(key, _)| matches!(key, Key::Chunk { document: id, .. } if *id == document(d))) {
                    assert_eq!(found.get(key), Some(&vec![*value]), "{key}");
                }
            }
        });
    }
}
