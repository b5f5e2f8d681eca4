//! A journal before the folders: what all rooms write goes into one SQLite file, and becomes durable there
//! together.
//!
//! A file for each change costs the relay more processor time than all else that it does with an edit. Here
//! changes are rows, committed at most every `storage.commit_interval`; most are replaced by a snapshot before
//! they would ever have become a file. From `storage.journal_size` on the oldest move into the folders, which are
//! the format of record; when nothing was written for `storage.quiet`, and at a clean stop, all of them do
//! ([`Journal::checkpoint`]). After a crash nothing is to be
//! repeated: the rows are there, and a document is what the journal and the folders have of it. Which rows
//! there are is known in memory (`index`); what is larger than [`LARGE`] goes to a file at once. `file` opens
//! the SQLite file, `writer` is the task that commits, and `mover` those that take chunks out of it.
//!
//! # Why SQLite
//! Rows of 250 bytes, committed with an fsync each time, on ext4 (processor time, and bytes to the disk):
//!
//! | rows a commit | SQLite | fjall 3.1 | redb 4.6 | a plain file |
//! |---|---|---|---|---|
//! | 1 | 74 us, 8.8 kB a row | 49 us, 4.4 kB | 116 us, 29 kB | 41 us, 4.4 kB |
//! | 20 | 6.1 us, 1.3 kB | 3.9 us, 0.5 kB | 16 us, 6.7 kB | 4.7 us, 0.5 kB |
//! | 100 | 1.9 us, 0.8 kB | 1.5 us, 0.3 kB | 10 us, 6.1 kB | 1.7 us, 0.3 kB |
//!
//! fjall is somewhat cheaper, but must be opened anew after a failed write, keeps threads and memory tables
//! of its own, and its files are read by nothing else. SQLite rolls a failed transaction back and goes on,
//! cuts a torn tail by its checksums, and an operator can open the file with `sqlite3`.

mod file;
mod index;
mod mover;
mod shared;
mod writer;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
// rusqlite: the binding to SQLite with the most users, and it brings SQLite's source along.
use rusqlite::{Connection, OpenFlags};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tracing::info;

pub use self::{file::count_rows, mover::Deleted};
use self::{
    file::{finish_deletions, forget_deleted, open, quarantine_journal},
    mover::{Mover, delete_after_grace},
    shared::{Change, Request, Shared, send},
    writer::{BATCH, MAX_PENDING_DELETES, Writer},
};
use super::{
    blocked::{self, Block},
    files::{failed, sync_folder},
    layout::QUARANTINE,
    marks::Marks,
    nodefs::NodefsStore,
    replacing,
    tombstones::{Tombstone, Tombstones},
    walk::{self, Found, Listed},
};
use crate::{
    base::{document_id::DocumentId, run_to_completion::RunToCompletion},
    config,
    document::chunk::{Key, StoredChunk},
    observe::metrics::StorageMetrics,
    storage::{ChunkStore, Failure, StorageError},
};

/// Chunks from so many bytes on go to a file at once: written twice, they would cost more than a file does.
const LARGE: usize = 64 << 10;
/// How often a document is listed again because a row was replaced when it was to be read.
const LISTINGS: usize = 10;
/// How many times its size the journal may grow to when nothing can be moved out of it; it then takes nothing.
const TOO_LARGE: usize = 4;

/// Chunks in folders, with a journal before them.
pub struct Journal {
    folders: NodefsStore,
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    /// One checkpoint at a time.
    checkpoint: Arc<tokio::sync::Mutex<()>>,
    /// The writer, which ends after the last request, and checkpoints and deletions that have
    /// begun.
    unfinished: RunToCompletion,
    /// The checkpoint loop and delayed deletions, which end when the journal is dropped.
    loops: JoinSet<()>,
}

impl Journal {
    /// Open the folders of `config` and their journal, which is made if it is not there. To be called on
    /// tokio's runtime; what is written is written by a task there.
    ///
    /// # Errors
    /// The folders or the journal cannot be opened, or the journal is of a newer format.
    pub fn open(config: &config::Storage, metrics: StorageMetrics) -> Result<Self, StorageError> {
        Self::open_with(config, metrics, true)
    }

    /// The same for a command that only looks: a broken journal stays where it is and is an error,
    /// [`StorageError::Corrupt`], and the folders must be there.
    ///
    /// # Errors
    /// As for [`Self::open`].
    #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
    pub fn open_as_it_is(
        config: &config::Storage,
        metrics: StorageMetrics,
    ) -> Result<Self, StorageError> {
        fs::metadata(&config.path).map_err(failed("open", &config.path))?;
        Self::open_with(config, metrics, false)
    }

    #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
    fn open_with(
        config: &config::Storage,
        metrics: StorageMetrics,
        repairs: bool,
    ) -> Result<Self, StorageError> {
        let folders = NodefsStore::open(&config.path, config.durability)?;
        let folder = config.path.join(".journal");
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        sync_folder(&config.path)?;
        let path = folder.join("journal.sqlite");
        let (connection, index) = match open(&path, config.durability) {
            Err(error) if repairs && matches!(error, StorageError::Corrupt(_)) => {
                quarantine_journal(&config.path, &path, &error, &metrics)?;
                open(&path, config.durability)?
            }
            opened => opened?,
        };
        let tombstones = Tombstones::open(&config.path)?;
        let index = forget_deleted(&connection, index, &tombstones);
        if repairs {
            finish_deletions(&config.path, &tombstones);
        }
        if index.rows > 0 {
            info!(chunks = index.rows, bytes = index.bytes, "the journal holds what was not moved");
        }
        let shared = Arc::new(Shared {
            path,
            durability: config.durability,
            index: Mutex::default(),
            reader: Mutex::default(),
            is_full: Notify::new(),
            pending_deletes: Mutex::default(),
            deleting: watch::Sender::new(None),
            size: config.journal_size.bytes(),
            commits: AtomicU64::new(0),
            tombstones,
            blocked: blocked::open(&config.path)?,
            metrics,
        });
        shared.update_gauges(&index);
        *shared.index() = index;
        let (requests, receiver) = mpsc::channel(BATCH);
        let (pending_deletes, pending) = mpsc::channel(MAX_PENDING_DELETES);
        let again = pending_deletes.downgrade();
        let writer = Writer {
            shared: shared.clone(),
            connection: Some(connection),
            interval: config.commit_interval.0,
            grace: config.grace.0,
            pending_deletes,
        };
        let mut journal = Self {
            folders,
            requests,
            shared,
            checkpoint: Arc::default(),
            unfinished: RunToCompletion::default(),
            loops: JoinSet::new(),
        };
        journal.unfinished.spawn(writer.run(receiver));
        let (mover, deleting) = (journal.mover(), journal.mover());
        journal.loops.spawn(mover.checkpoint_loop(config.quiet.0));
        journal.loops.spawn(delete_after_grace(deleting, config.grace.0, again, pending));
        Ok(journal)
    }

    /// For a task of the journal's own, which ends when the last journal is dropped.
    fn mover(&self) -> Mover {
        Mover {
            folders: self.folders.clone(),
            requests: self.requests.downgrade(),
            shared: self.shared.clone(),
            checkpoint: self.checkpoint.clone(),
        }
    }

    /// Move everything into the folders, which then hold all that was durable when this was called.
    /// Returns how many chunks were moved. The journal's file alone, without its write-ahead log, is whole then.
    ///
    /// # Errors
    /// A chunk cannot be read or written: it and all later ones stay in the journal.
    pub async fn checkpoint(&self) -> Result<usize, StorageError> {
        let mover = self.mover();
        let moving = self.unfinished.spawn(async move {
            let moved = mover.checkpoint(0).await?;
            mover.truncate_wal().await?;
            Ok(moved)
        });
        moving.await.map_err(self.shared.panicked("move"))?
    }

    /// Call `found` for every stored document, until it returns false. Blocks.
    ///
    /// # Errors
    /// The folders cannot be listed.
    pub fn list(&self, mut found: impl FnMut(Listed) -> bool) -> Result<(), StorageError> {
        let root = self.folders.root();
        let mut in_journal: HashSet<DocumentId> =
            self.shared.index().documents.keys().copied().collect();
        // The rows first: what moves meanwhile is found in the folder then.
        let sizes_of = |document| -> Result<Vec<(Key, u64)>, StorageError> {
            let rows = self.shared.index().rows_of(document).unwrap_or_default();
            let mut chunks = walk::sizes(root, document)?;
            for (key, row) in rows {
                chunks.retain(|(in_folder, _)| *in_folder != key);
                chunks.push((key, row.size as u64));
            }
            Ok(chunks)
        };
        let (mut goes_on, mut failed) = (true, None);
        walk::walk(root, |entry| {
            let Found::Document(document) = entry else { return true };
            in_journal.remove(&document);
            match sizes_of(document) {
                Ok(chunks) => {
                    goes_on = chunks.is_empty() || found(Listed::new(document, chunks));
                }
                Err(error) => {
                    failed = Some(error);
                    goes_on = false;
                }
            }
            goes_on
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        for document in in_journal {
            let chunks = sizes_of(document)?;
            goes_on = goes_on && (chunks.is_empty() || found(Listed::new(document, chunks)));
        }
        Ok(())
    }

    /// The documents of which the journal holds chunks.
    pub fn documents(&self) -> Vec<DocumentId> {
        self.shared.index().documents.keys().copied().collect()
    }

    /// What SQLite finds amiss in the journal's file. Blocks.
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    pub fn faults(&self) -> Vec<String> {
        let check = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
            let connection = Connection::open_with_flags(&self.shared.path, flags)?;
            let mut query = connection.prepare("PRAGMA quick_check")?;
            let lines = query.query_map([], |row| row.get(0))?;
            lines.collect::<rusqlite::Result<Vec<String>>>()
        };
        let mut faults = check().unwrap_or_else(|error| vec![error.to_string()]);
        faults.retain(|line| line != "ok");
        faults
    }

    /// Delete what is left of a document whose tombstone stands. False if there is no tombstone.
    ///
    /// # Errors
    /// Something of it cannot be deleted.
    pub async fn delete_again(&self, document: DocumentId) -> Result<bool, StorageError> {
        let mover = self.mover();
        let deleting = self.unfinished.spawn(async move { mover.delete_again(document).await });
        deleting.await.map_err(self.shared.panicked("delete"))?
    }

    /// Let a deleted document be brought again. False if it was not deleted.
    ///
    /// # Errors
    /// What is left of it cannot be deleted, or its tombstone.
    pub async fn undelete(&self, document: DocumentId) -> Result<bool, StorageError> {
        let mover = self.mover();
        let lifting = self.unfinished.spawn(async move { mover.undelete(document).await });
        lifting.await.map_err(self.shared.panicked("delete"))?
    }

    /// Put up another storage's tombstone. False if the document is here, in quarantine or in what a restore has
    /// replaced too, and stays, or if it has one.
    ///
    /// # Errors
    /// The document cannot be read, or the tombstone cannot be written.
    pub async fn import_tombstone(&self, tombstone: Tombstone) -> Result<bool, StorageError> {
        let document = tombstone.document;
        let _alone = self.checkpoint.lock().await;
        if self.is_deleted(document) || !self.load_document(document).await?.is_empty() {
            return Ok(false);
        }
        let (shared, root) = (self.shared.clone(), self.root().to_owned());
        #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
        let adding = tokio::task::spawn_blocking(move || {
            let mut aside = replacing::replaced(&root);
            aside.push(root.join(QUARANTINE));
            if aside.iter().any(|aside| aside.join(document.folder()).exists()) {
                return Ok(false);
            }
            shared.tombstones.add(document, &tombstone).map(|()| true)
        });
        adding.await.map_err(self.shared.panicked("write"))?
    }

    /// Move all that is stored, quarantine too, into a folder beside it: all but the tombstones, which go on to
    /// hold. Returns that folder. Nothing may be stored meanwhile.
    ///
    /// # Errors
    /// Not all could be moved.
    pub async fn move_aside(&self, name: &str) -> Result<PathBuf, StorageError> {
        self.checkpoint().await?;
        self.folders.move_aside(name).await
    }

    /// The folder of documents.
    pub fn root(&self) -> &Path {
        self.folders.root()
    }

    /// The documents that an operator keeps from everybody.
    pub fn blocked(&self) -> &Marks<Block> {
        &self.shared.blocked
    }

    /// Show how many of them there are.
    pub fn update_blocked_gauge(&self) {
        let blocked = i64::try_from(self.blocked().len()).unwrap_or(i64::MAX);
        self.shared.metrics.blocked.set(blocked);
    }

    /// The documents that were deleted.
    pub fn tombstones(&self) -> &Tombstones {
        &self.shared.tombstones
    }

    /// Delete a document, and see that nothing brings it back.
    ///
    /// # Errors
    /// Nothing was deleted, or not all: it says what. A tombstone that stands by then refuses the document,
    /// and the same call deletes the rest.
    pub async fn delete_document(
        &self,
        document: DocumentId,
        tombstone: Tombstone,
    ) -> Result<Deleted, StorageError> {
        let mover = self.mover();
        let deleting =
            self.unfinished.spawn(async move { mover.delete_document(document, tombstone).await });
        deleting.await.map_err(self.shared.panicked("delete"))?
    }

    async fn change(&self, change: Change) -> Result<(), StorageError> {
        send(&self.requests, &self.shared, change).await
    }
}

impl ChunkStore for Journal {
    fn load_storage_id(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StorageError>> {
        self.folders.load_storage_id()
    }

    /// The journal first: what moves into the folders meanwhile is found there then.
    fn load_document(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Vec<StoredChunk>, StorageError>> {
        async move {
            for _ in 0..LISTINGS {
                let rows = self.shared.index().rows_of(document).unwrap_or_default();
                let keys: Vec<Key> = rows.iter().map(|(key, _)| key.clone()).collect();
                let mut journal = Vec::new();
                if !rows.is_empty() {
                    journal = self.shared.read_rows(rows).await?;
                }
                let mut chunks = self.folders.load_document(document).await?;
                if self.is_deleted(document) {
                    return Ok(Vec::new());
                }
                chunks
                    .retain(|(key, _)| !journal.iter().any(|(in_journal, _, _)| in_journal == key));
                chunks.extend(journal.into_iter().map(|(key, _, data)| (key, data)));
                // A row that was neither read nor moved was replaced, by one that was not listed yet.
                if keys.iter().all(|key| chunks.iter().any(|(found, _)| found == key)) {
                    chunks.sort_by(|(a, _), (b, _)| a.cmp(b));
                    return Ok(chunks);
                }
            }
            let reason = format!("the chunks of {document} change faster than they can be read");
            let path = self.shared.path.as_path();
            Err(StorageError::Unavailable(Failure::new("read", path, reason)))
        }
        .boxed()
    }

    fn put<'a>(&'a self, key: &'a Key, data: Bytes) -> BoxFuture<'a, Result<(), StorageError>> {
        // A row is newer than the file of its key: what replaces a row must be a row.
        let has_row = self.shared.index().get(key).is_some();
        let is_row = has_row || (matches!(key, Key::Chunk { .. }) && data.len() < LARGE);
        if is_row && self.shared.index().bytes > self.shared.size.saturating_mul(TOO_LARGE) {
            let full = "it is full, for its chunks cannot be moved into the folders";
            let full = Failure::new("write", self.shared.path.as_path(), full);
            return std::future::ready(Err(StorageError::Full(full))).boxed();
        }
        async move {
            self.shared.cancel_delete(key).await;
            if is_row {
                return self.change(Change::Put(key.clone(), data)).await;
            }
            let is_deleted = || match key {
                Key::Chunk { document, .. } if self.is_deleted(*document) => Some(*document),
                _ => None,
            };
            if is_deleted().is_some() {
                return Ok(());
            }
            let written = self.folders.put(key, data).await;
            match is_deleted() {
                // It was deleted while its file was being written, or its folder under it.
                Some(document) => {
                    // The deletion counts what it finds, and comes first.
                    let _after = self.checkpoint.lock().await;
                    self.folders.delete_document(document).await.map(drop)
                }
                None => written,
            }
        }
        .boxed()
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), StorageError>> {
        self.change(Change::Delete(key.clone())).boxed()
    }

    fn is_deleted(&self, document: DocumentId) -> bool {
        self.shared.tombstones.contains(document)
    }

    fn is_blocked(&self, document: DocumentId) -> bool {
        self.shared.blocked.contains(document)
    }

    fn quarantine<'a>(
        &'a self,
        key: &'a Key,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        async move {
            // It becomes a file first, and is then moved as one.
            if self.shared.index().get(key).is_some() {
                self.checkpoint().await?;
            }
            self.folders.quarantine(key, reason).await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
