//! A store with the folder layout of automerge-repo's nodefs adapter (`NodeFSStorageAdapter.ts`),
//! so that each program can read what the other wrote. The parts of a key are folders, and the
//! first part is split after two characters: `4C/SBjwx.../snapshot/<hash>`, `st/orage-adapter-id`.
//!
//! The relay's own files and folders (`layout`) are in the same folder, under names that the
//! adapter never uses.

#![allow(
    clippy::disallowed_methods,
    reason = "all work with the folder is done at the start or in `NodefsStore::run`"
)]

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::Semaphore;
use tracing::warn;

use super::{
    files::{failed, read, sync_folder, write_atomically},
    layout::{
        FORMAT_FILE, LOCK, OF_DOCUMENTS, OWN, QUARANTINE, REPLACED, TMP, reason_file, relative,
    },
    walk,
};
use crate::{
    base::{document_id::DocumentId, folder, regular_file},
    config::Durability,
    document::chunk::Key,
    storage::{Basis, ChunkStore, Failure, Loaded, Put, StorageError},
};

/// Disk operations at the same time, and so the most threads that a hung disk blocks; the process
/// has more (`cli::runtime`). Further operations would only queue in the kernel.
const MAX_OPERATIONS: usize = 32;

/// How long an open waits for the lock of the folder, and how often it tries to lock it.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// How often a folder is deleted, because another thread may create a file in it meanwhile.
const MAX_REMOVALS: usize = 10;

/// The version of the format of the relay's own files. The format of documents is that of
/// automerge-repo.
const FORMAT: u32 = 1;

/// A store of documents in a folder.
#[derive(Clone)]
pub struct NodefsStore {
    root: Arc<Path>,
    permits: Arc<Semaphore>,
    /// Whether writes must survive a power loss, and not only a crash of the process.
    syncs: bool,
    /// The lock of the folder. The kernel releases it when the process ends.
    _lock: Arc<File>,
}

impl NodefsStore {
    /// Opens the folder, creates it if it does not exist, and checks that it can be written. Only
    /// one process may have it open, because a relay keeps in memory what is stored.
    ///
    /// # Errors
    /// The folder cannot be created, another process has it open, or a file in it cannot be
    /// written, synchronised, renamed or deleted.
    pub fn open(root: &Path, durability: Durability) -> Result<Self, StorageError> {
        let tmp = root.join(TMP);
        fs::create_dir_all(&tmp).map_err(failed("create", &tmp))?;
        let lock = lock(&root.join(LOCK))?;
        check_format(root)?;
        // Incomplete writes of an earlier process. It has not reported them as durable.
        for left in fs::read_dir(&tmp).map_err(failed("list", &tmp))?.flatten() {
            fs::remove_file(left.path()).map_err(failed("delete", &left.path()))?;
        }
        let probe = root.join(TMP).join("probe-renamed");
        write_atomically(root, &[(probe.clone(), Bytes::from_static(b"probe"))], true)?;
        fs::remove_file(&probe).map_err(failed("delete", &probe))?;
        folder::check_case_sensitive(&tmp).map_err(failed("use", root))?;
        Ok(Self {
            root: root.into(),
            permits: Arc::new(Semaphore::new(MAX_OPERATIONS)),
            syncs: durability == Durability::Fsync,
            _lock: Arc::new(lock),
        })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Stores many values, which costs less than storing each by itself.
    ///
    /// # Errors
    /// A value cannot be written. Others may have been written.
    pub async fn put_all(&self, values: Vec<(Key, Bytes)>) -> Result<(), StorageError> {
        let syncs = self.syncs;
        self.run("write", move |root| {
            let files: Vec<(PathBuf, Bytes)> =
                values.into_iter().map(|(key, data)| (root.join(relative(&key)), data)).collect();
            write_atomically(root, &files, syncs)
        })
        .await
    }

    /// Moves everything that is stored, except the tombstones, into a subfolder of that name.
    pub(super) async fn move_aside(&self, name: &str) -> Result<PathBuf, StorageError> {
        let name = name.to_owned();
        self.run("move", move |root| {
            let aside = root.join(&name);
            // It exists if an earlier call was interrupted.
            fs::create_dir_all(&aside).map_err(failed("create", &aside))?;
            for entry in fs::read_dir(root).map_err(failed("list", root))?.flatten() {
                let text = entry.file_name().to_string_lossy().into_owned();
                let is_in = |names: &[&str]| names.contains(&text.as_str());
                let is_kept = is_in(&OWN) && !is_in(&OF_DOCUMENTS);
                if !is_kept && !text.starts_with(REPLACED) {
                    let to = aside.join(entry.file_name());
                    fs::rename(entry.path(), to).map_err(failed("move", &entry.path()))?;
                }
            }
            sync_folder(&aside)?;
            sync_folder(root)?;
            Ok(aside)
        })
        .await
    }

    /// Deletes all chunks of a document, also those in quarantine. Returns how many files these
    /// were, and their bytes.
    ///
    /// # Errors
    /// A file cannot be deleted.
    pub async fn delete_document(
        &self,
        document: DocumentId,
    ) -> Result<(usize, u64), StorageError> {
        self.run("delete", move |root| delete_files(root, document)).await
    }

    /// Runs `work` with the storage folder on a thread that may block.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Path) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await;
        let root = self.root.clone();
        match tokio::task::spawn_blocking(move || work(&root)).await {
            Ok(result) => result,
            Err(panic) => Err(StorageError::Unavailable(Failure::new(action, &*self.root, panic))),
        }
    }
}

/// See [`NodefsStore::delete_document`]. Blocks.
pub(super) fn delete_files(
    root: &Path,
    document: DocumentId,
) -> Result<(usize, u64), StorageError> {
    let (mut files, mut bytes) = (0, 0);
    for root in [root.to_owned(), root.join(QUARANTINE)] {
        let folder = root.join(document.folder());
        if !folder.exists() {
            continue;
        }
        for (_, size) in walk::sizes(&root, document)? {
            files += 1;
            bytes += size;
        }
        remove_all(&folder)?;
        sync_folder(folder.parent().unwrap_or(&root))?;
    }
    Ok((files, bytes))
}

/// Deletes a folder with its contents, even while another thread writes to it or deletes it.
fn remove_all(folder: &Path) -> Result<(), StorageError> {
    for _ in 0..MAX_REMOVALS {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            removed => return removed.map_err(failed("delete", folder)),
        }
        if !folder.exists() {
            return Ok(());
        }
    }
    Err(failed("delete", folder)(io::ErrorKind::DirectoryNotEmpty.into()))
}

/// Refuses a folder of a newer format. Records the format in a folder that has none.
fn check_format(root: &Path) -> Result<(), StorageError> {
    let path = root.join(FORMAT_FILE);
    let Some(text) = read(&path)? else {
        let text = format!("{FORMAT}\n");
        return write_atomically(root, &[(path, text.into())], true);
    };
    let text = String::from_utf8_lossy(&text);
    match text.trim().parse::<u32>() {
        Ok(format) if format <= FORMAT => Ok(()),
        _ => {
            let reason = format!(
                "the folder has format {}, and this tonk-relay supports {FORMAT}; run `tonk-relay \
                 checkpoint` of the version that wrote it, and import its documents into a new \
                 folder",
                text.trim()
            );
            Err(StorageError::Unsupported(Failure::new("open", root, reason)))
        }
    }
}

/// Locks the folder, and writes into the lock file which process has it. Waits for a moment,
/// because a process that was killed may still be ending.
fn lock(path: &Path) -> Result<File, StorageError> {
    let open = File::options().create(true).truncate(false).read(true).write(true).open(path);
    let mut file = open.and_then(regular_file::check).map_err(failed("open", path))?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_RETRY);
            }
            Err(TryLockError::WouldBlock) => {
                let holder = io::read_to_string((&file).take(100)).unwrap_or_default();
                let reason = format!("another process uses this folder: {}", holder.trim());
                return Err(StorageError::InUse(Failure::new("open", path, reason)));
            }
            Err(TryLockError::Error(error)) => return Err(failed("lock", path)(error)),
        }
    }
    let holder = format!("tonk-relay, process {}\n", std::process::id());
    let written = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
    written.map_err(failed("write", path))?;
    Ok(file)
}

impl ChunkStore for NodefsStore {
    fn load_storage_id(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StorageError>> {
        let path = relative(&Key::StorageId);
        self.run("read", move |root| read(&root.join(path))).boxed()
    }

    fn load_document(&self, document: DocumentId) -> BoxFuture<'_, Result<Loaded, StorageError>> {
        async move {
            let chunks = self.run("read", move |root| walk::read_document(root, document)).await?;
            Ok(Loaded { chunks, ..Loaded::default() })
        }
        .boxed()
    }

    fn replace<'a>(
        &'a self,
        key: &'a Key,
        data: Bytes,
        replaced: &'a [Key],
        _basis: Basis,
    ) -> BoxFuture<'a, Result<Put, StorageError>> {
        async move {
            self.put_all(vec![(key.clone(), data)]).await?;
            for key in replaced {
                if let Err(error) = self.delete(key).await {
                    warn!("could not delete a superseded chunk: {error}");
                }
            }
            Ok(Put::Made)
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), StorageError>> {
        let path = relative(key);
        self.run("delete", move |root| {
            let path = root.join(path);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failed("delete", &path)(error))
                }
                _ => Ok(()),
            }
        })
        .boxed()
    }

    fn quarantine<'a>(
        &'a self,
        key: &'a Key,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        let path = relative(key);
        let reason = format!("{reason}\n");
        self.run("move", move |root| {
            let (from, to) = (root.join(&path), root.join(QUARANTINE).join(&path));
            // The reason is written first, so that no chunk in quarantine is without one.
            write_atomically(root, &[(reason_file(&to), reason.into())], true)?;
            fs::rename(&from, &to).map_err(failed("move", &from))?;
            sync_folder(to.parent().unwrap_or(root))
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        document::chunk::ChunkKind,
        storage::conformance::{self, conformance_tests},
    };

    fn key(kind: ChunkKind, name: &str) -> Key {
        Key::Chunk {
            document: "2XehcERzGALTcjP7C7VxwFJdWoEW".parse().expect("an id"),
            kind,
            name: name.to_owned(),
        }
    }

    fn empty() -> (tempfile::TempDir, NodefsStore) {
        let folder = tempfile::tempdir().expect("a folder");
        let store = NodefsStore::open(folder.path(), Durability::Fsync).expect("opens");
        (folder, store)
    }

    conformance_tests!(async || Some(empty()));
    conformance_tests!(async || Some(empty()); a_put_replaces_the_earlier_value);

    #[tokio::test]
    async fn stored_values_are_there_after_reopening() {
        let (folder, store) = empty();
        let reopen = async |store: NodefsStore| {
            drop(store);
            NodefsStore::open(folder.path(), Durability::Fsync).expect("opens")
        };
        conformance::stored_values_are_there_after_reopening(store, reopen).await;
    }

    #[tokio::test]
    async fn values_are_stored_where_automerge_repo_expects_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = NodefsStore::open(folder.path(), Durability::Fsync).expect("opens");
        let chunk = key(ChunkKind::Snapshot, "abc");
        store.put(&chunk, Bytes::from_static(b"one")).await.expect("writes");
        store.put(&Key::StorageId, Bytes::from_static(b"id")).await.expect("writes");
        let path = folder.path().join("2X/ehcERzGALTcjP7C7VxwFJdWoEW/snapshot/abc");
        assert_eq!(fs::read(&path).expect("is there"), b"one");
        assert_eq!(fs::read(folder.path().join("st/orage-adapter-id")).expect("is there"), b"id");
        assert_eq!(store.load_storage_id().await.expect("reads"), Some(b"id".to_vec()));
        assert_eq!(
            fs::read_dir(folder.path().join(TMP)).expect("lists").count(),
            0,
            "no temporary file is left"
        );

        store.delete(&chunk).await.expect("deletes");
        store.delete(&chunk).await.expect("deleting again is no error");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn opening_waits_for_a_process_that_is_ending() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = NodefsStore::open(folder.path(), Durability::Fsync).expect("opens");
        let ending = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(store);
        });
        let other = NodefsStore::open(folder.path(), Durability::Fsync).expect("opens then");
        ending.join().expect("ends");
        let error = NodefsStore::open(folder.path(), Durability::Fsync).err().expect("is locked");
        let expected = "another process uses this folder: tonk-relay";
        assert!(error.to_string().contains(expected), "{error}");
        drop(other);
    }

    #[tokio::test]
    async fn a_newer_format_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        for _ in 0..2 {
            NodefsStore::open(folder.path(), Durability::Fsync).expect("opens");
        }
        fs::write(folder.path().join(FORMAT_FILE), "2\n").expect("written");
        let refused = NodefsStore::open(folder.path(), Durability::Fsync).err().expect("refused");
        assert!(refused.to_string().contains("format 2"), "{refused}");
    }

    #[tokio::test]
    async fn loading_a_document_returns_exactly_its_chunks() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = NodefsStore::open(folder.path(), Durability::Fsync).expect("opens");
        let chunks = [key(ChunkKind::Snapshot, "bundle_export"), key(ChunkKind::Incremental, "b")];
        for chunk in &chunks {
            store.put(chunk, Bytes::from(chunk.to_string())).await.expect("writes");
        }
        fs::create_dir(folder.path().join("2X/ehcERzGALTcjP7C7VxwFJdWoEW/snapshot/a-folder"))
            .expect("made");
        let Key::Chunk { document, .. } = chunks[0] else { panic!("a chunk") };
        let mut loaded = store.load_document(document).await.expect("loads").chunks;
        loaded.sort();
        let expected: Vec<_> =
            chunks.iter().map(|c| (c.clone(), c.to_string().into_bytes())).collect();
        assert_eq!(loaded, expected);
        let other = DocumentId::from_bytes([7; 16]);
        assert_eq!(store.load_document(other).await.expect("loads").chunks, []);
    }

    #[tokio::test]
    async fn an_error_names_the_action_and_the_path() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = NodefsStore::open(folder.path(), Durability::Fsync).expect("opens");
        fs::write(folder.path().join("2X"), b"a file where a folder must be").expect("written");
        let error =
            store.put(&key(ChunkKind::Snapshot, "abc"), Bytes::new()).await.expect_err("fails");
        assert!(error.to_string().starts_with("cannot create "), "{error}");
        assert!(error.to_string().contains("/2X/"), "{error}");
    }

    #[tokio::test]
    async fn quarantine_keeps_the_chunk_and_its_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = NodefsStore::open(folder.path(), Durability::Fsync).expect("opens");
        let chunk = key(ChunkKind::Incremental, "bad");
        store.put(&chunk, Bytes::from_static(b"garbage")).await.expect("writes");
        store.quarantine(&chunk, "does not parse").await.expect("moves");
        let at = folder.path().join("quarantine/2X/ehcERzGALTcjP7C7VxwFJdWoEW/incremental/bad");
        assert_eq!(fs::read(&at).expect("is there"), b"garbage");
        assert_eq!(
            fs::read_to_string(at.with_extension("reason")).expect("is there"),
            "does not parse\n"
        );
        let Key::Chunk { document, .. } = chunk else { panic!("a chunk") };
        assert_eq!(store.load_document(document).await.expect("loads").chunks, []);
    }
}
