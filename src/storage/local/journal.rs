//! A write-ahead journal in front of the folders: the small writes of all rooms go into one SQLite
//! file, and become durable there in common commits. Large chunks go into the folders at once.
//!
//! Writing a file for each change would cost more processor time than everything else that the
//! relay does with an edit. In the journal changes are rows, which are committed at most every
//! `storage.commit_interval`. A snapshot, or an increment with many changes, replaces most of them
//! before they would be written to a file.
//!
//! When the journal is larger than `storage.journal_size`, its oldest chunks are moved into the
//! folders. All are moved when nothing was written for `storage.quiet`, and at a clean stop
//! ([`Store::checkpoint`]). A document consists of what the journal and the folders have of it,
//! so nothing has to be repeated after a crash.
//!
//! | to find | look in |
//! |---|---|
//! | loading, storing and deleting chunks; new large chunks become durable here | `chunk_store` |
//! | listing the documents | `list` |
//! | tombstones, blocks, the quarantine and notes of imports, for operators | `store` |
//! | opening the SQLite file, and salvaging a broken one | `sqlite` |
//! | the task that commits: where all other chunks become durable | `writer` |
//! | the tasks that move chunks into the folders, and delete documents | `mover` |
//! | the rows that the journal has, in memory | `index` |
//!
//! # Why SQLite
//! Rows of 250 bytes, with an fsync for each commit, on ext4 (processor time and bytes written, per
//! row):
//!
//! | rows a commit | SQLite | fjall 3.1 | redb 4.6 | a plain file |
//! |---|---|---|---|---|
//! | 1 | 74 us, 8.8 kB a row | 49 us, 4.4 kB | 116 us, 29 kB | 41 us, 4.4 kB |
//! | 20 | 6.1 us, 1.3 kB | 3.9 us, 0.5 kB | 16 us, 6.7 kB | 4.7 us, 0.5 kB |
//! | 100 | 1.9 us, 0.8 kB | 1.5 us, 0.3 kB | 10 us, 6.1 kB | 1.7 us, 0.3 kB |
//!
//! fjall is somewhat cheaper, but must be reopened after a failed write, has threads and memory
//! tables of its own, and no other program reads its files. SQLite rolls back a failed transaction
//! and goes on, drops a torn tail by its checksums, and an operator can open the file with
//! `sqlite3`.

mod chunk_store;
mod index;
mod list;
mod mover;
mod shared;
mod sqlite;
mod store;
mod writer;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use futures::{FutureExt, future::BoxFuture};
use rusqlite::{Connection, OpenFlags};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tracing::info;

pub use self::sqlite::count_rows;
use self::{
    mover::{Mover, delete_after_grace},
    shared::{Request, Shared},
    sqlite::{delete_files_with_tombstones, delete_rows_with_tombstones, open, quarantine_journal},
    writer::{BATCH, MAX_PENDING_DELETES, Writer},
};
use super::{
    blocked,
    files::{failed, sync_folder},
    nodefs::NodefsStore,
    tombstones::Tombstones,
};
use crate::{
    base::{document_id::DocumentId, run_to_completion::RunToCompletion},
    config,
    observe::metrics::StorageMetrics,
    storage::{StorageError, store::Store},
};

/// A store of chunks in folders, with a journal in front of them.
pub struct Journal {
    folders: NodefsStore,
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    /// Held while chunks are moved into the folders, or a document is deleted.
    checkpoint_lock: Arc<tokio::sync::Mutex<()>>,
    /// The writer, which ends after the last request, and the checkpoints and deletions that have
    /// begun.
    unfinished: RunToCompletion,
    /// The checkpoint loop and the delayed deletions, which end when the journal is dropped.
    loops: JoinSet<()>,
}

impl Journal {
    /// Opens the folders that `config` names and their journal, and creates what does not exist.
    /// Spawns tasks, so it must be called on a tokio runtime.
    ///
    /// # Errors
    /// The folders or the journal cannot be opened, or have a newer format.
    pub fn open(config: &config::Storage, metrics: StorageMetrics) -> Result<Self, StorageError> {
        Self::open_with(config, metrics, true)
    }

    /// Opens an existing storage folder without repairing anything, for commands that only read.
    ///
    /// # Errors
    /// As for [`Self::open`]; [`StorageError::Corrupt`] if the journal is broken.
    #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
    pub fn open_without_repair(
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
        let index = delete_rows_with_tombstones(&connection, index, &tombstones);
        if repairs {
            delete_files_with_tombstones(&config.path, &tombstones);
        }
        if index.rows > 0 {
            info!(chunks = index.rows, bytes = index.bytes, "the journal has chunks to checkpoint");
        }
        let shared = Arc::new(Shared {
            path,
            durability: config.durability,
            index: Mutex::default(),
            reader: Mutex::default(),
            is_too_large: Notify::new(),
            pending_deletes: Mutex::default(),
            deleting: watch::Sender::new(None),
            max_size: config.journal_size.bytes(),
            commits: AtomicU64::new(0),
            tombstones,
            blocked: blocked::open(&config.path)?,
            metrics,
        });
        shared.update_gauges(&index);
        *shared.index() = index;
        let (requests, receiver) = mpsc::channel(BATCH);
        let (pending_deletes, pending) = mpsc::channel(MAX_PENDING_DELETES);
        let requeue = pending_deletes.downgrade();
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
            checkpoint_lock: Arc::default(),
            unfinished: RunToCompletion::default(),
            loops: JoinSet::new(),
        };
        journal.unfinished.spawn(writer.run(receiver));
        let (mover, deleting) = (journal.mover(), journal.mover());
        journal.loops.spawn(mover.checkpoint_loop(config.quiet.0));
        journal.loops.spawn(delete_after_grace(deleting, config.grace.0, requeue, pending));
        Ok(journal)
    }

    /// The part that a background task needs. The task ends when the journal is dropped.
    fn mover(&self) -> Mover {
        Mover {
            folders: self.folders.clone(),
            requests: self.requests.downgrade(),
            shared: self.shared.clone(),
            checkpoint_lock: self.checkpoint_lock.clone(),
        }
    }

    /// The documents that have chunks in the journal.
    pub fn documents(&self) -> Vec<DocumentId> {
        self.shared.index().documents.keys().copied().collect()
    }

    /// The faults that SQLite finds in the journal's file. Blocks.
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

    /// Deletes what is left of a document that has a tombstone. Returns false if it has none.
    ///
    /// # Errors
    /// A chunk cannot be deleted.
    pub async fn delete_again(&self, document: DocumentId) -> Result<bool, StorageError> {
        let mover = self.mover();
        self.finish("delete", async move { mover.delete_again(document).await }).await
    }

    /// Runs `work` to its end, even if the caller no longer waits for it.
    fn finish<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl Future<Output = Result<T, StorageError>> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StorageError>> {
        let working = self.unfinished.spawn(work);
        async move { working.await.map_err(self.shared.panicked(action))? }.boxed()
    }

    /// Moves everything that is stored, also the quarantine, into a subfolder. The tombstones stay
    /// and remain in effect. Returns the subfolder. Nothing may be stored meanwhile.
    ///
    /// # Errors
    /// Something could not be moved.
    pub async fn move_aside(&self, name: &str) -> Result<PathBuf, StorageError> {
        self.checkpoint().await?;
        self.folders.move_aside(name).await
    }

    /// The storage folder.
    pub fn root(&self) -> &Path {
        self.folders.root()
    }
}

#[cfg(test)]
mod tests;
