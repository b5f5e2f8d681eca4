//! Moving chunks into the folders, and deleting replaced chunks there.

use std::sync::PoisonError;

use tokio::time::Instant;

use super::{super::chunk_store::LARGE_CHUNK, *};
use crate::config::Size;

#[tokio::test]
async fn a_checkpoint_moves_everything_into_the_folders() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = open_at(folder.path());
    for n in 0..50 {
        journal.put(&increment(n, "a"), Bytes::from(vec![n; 9])).await.expect("puts");
    }
    let large = key(1, ChunkKind::Snapshot, "large");
    journal.put(&large, Bytes::from(vec![1; LARGE_CHUNK])).await.expect("puts");
    assert_eq!(names(&journal.folders, 1).await, ["large"], "it is written to a file at once");
    assert_eq!(journal.checkpoint().await.expect("moves"), 50);
    assert_eq!(journal.checkpoint().await.expect("moves"), 0);
    assert_eq!(names(&journal.folders, 1).await, ["large", "a"]);
    assert_eq!(names(&journal, 1).await, ["large", "a"]);
    assert_eq!(journal.shared.metrics.journal_chunks.get(), 0);
    // A replaced chunk is deleted from the folders after its grace time.
    journal.delete(&increment(7, "a")).await.expect("deletes");
    until("the file is gone", async || names(&journal.folders, 7).await.is_empty()).await;
}

#[tokio::test]
async fn a_replaced_chunk_stays_in_the_folders_for_the_grace_time() {
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
async fn a_replaced_chunk_is_deleted_only_after_its_replacement_was_moved() {
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

/// For example when an operator's command is interrupted.
#[tokio::test]
async fn cancelled_checkpoints_lose_nothing() {
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
    // The grace time is zero here, so pending deletions happen soon.
    sleep(Duration::from_millis(100)).await;
    for n in 0..40 {
        assert_eq!(names(&journal, n).await, ["a"], "{n}");
    }
}

#[tokio::test]
async fn a_chunk_that_is_stored_again_is_not_deleted_after_the_grace_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let config =
        config::Storage { grace: Time(Duration::from_millis(50)), ..config(folder.path()) };
    let journal = Journal::open(&config, metrics()).expect("opens");
    let large = key(1, ChunkKind::Snapshot, "large");
    for (key, data) in [(increment(1, "a"), vec![1]), (large, vec![1; LARGE_CHUNK])] {
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
async fn a_deletion_that_hangs_delays_only_writes_of_the_same_chunk() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Arc::new(open_at(folder.path()));
    let (old, other) = (increment(1, "a"), increment(2, "a"));
    journal.put(&old, Bytes::from_static(b"one")).await.expect("puts");
    journal.checkpoint().await.expect("moves");
    // All permits for disk operations are in use, as if loads were hanging.
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
async fn the_oldest_chunks_are_moved_when_the_journal_is_too_large() {
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
async fn all_chunks_are_moved_when_nothing_is_written() {
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

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_loads_are_complete_while_chunks_are_moved_and_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let journal = Arc::new(open_at(folder.path()));
    for n in 0..8 {
        journal.put(&increment(n, "0"), Bytes::from_static(b"one")).await.expect("puts");
    }
    let continues = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let readers = (0..2).map(|n| {
        let (journal, continues) = (journal.clone(), continues.clone());
        tokio::spawn(async move {
            while continues.load(std::sync::atomic::Ordering::Relaxed) {
                if n == 0 {
                    let journal = journal.clone();
                    let listing = move || {
                        let mut listed = 0;
                        let mut count = |_| {
                            listed += 1;
                            true
                        };
                        journal.list(&mut count).expect("lists");
                        listed
                    };
                    let listed = tokio::task::spawn_blocking(listing).await.expect("lists");
                    assert_eq!(listed, 8, "every document is listed");
                }
                for n in 0..8 {
                    assert!(!names(&*journal, n).await.is_empty(), "{n} has chunks");
                }
            }
        })
    });
    let readers: Vec<_> = readers.collect();
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
    continues.store(false, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        reader.await.expect("finds every document");
    }
}
