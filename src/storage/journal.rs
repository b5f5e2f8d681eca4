//! A journal before the folders: what all rooms write goes into one SQLite file, and becomes durable there
//! together.
//!
//! A file for each change costs the relay more processor time than all else that it does with an edit. Here
//! changes are rows, committed at most every `storage.commit_interval`; most are replaced by a snapshot before
//! they would ever have become a file. From `storage.journal_size` on, and at a clean stop, the oldest move
//! into the folders, which are the format of record ([`Journal::checkpoint`]). After a crash nothing is to be
//! repeated: the rows are there, and a document is what the journal and the folders have of it. Which rows
//! there are is known in memory; what is larger than [`LARGE`] goes to a file at once.
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

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
// rusqlite: the binding to SQLite with the most users, and it brings SQLite's source along.
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    task::JoinError,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tracing::{error, info, warn};

use super::{
    ChunkKind, ChunkStore, Key, StorageError, StoredChunk,
    nodefs::NodefsStore,
    tombstones::{Tombstone, Tombstones},
    walk::{self, Found, Listed},
};
use crate::{
    backoff::Backoff,
    config::{self, Durability},
    document_id::DocumentId,
    metrics::StorageMetrics,
};

/// Chunks from so many bytes on go to a file at once: written twice, they would cost more than a file does.
const LARGE: usize = 64 << 10;
/// Writes in one commit, and writes that wait for the next.
const BATCH: usize = 1024;
/// Chunks that move into the folders at a time.
const MOVED: usize = 256;
/// Rows beyond which the oldest move into the folders: each is a file then, of which a clean stop can write
/// so many within its time.
const ROWS: usize = 20_000;
/// How many times its size the journal may grow to when nothing can be moved out of it; it then takes nothing.
const TOO_LARGE: usize = 4;
/// Replaced chunks that wait for the end of their grace time; further ones stay until their document is
/// next compacted after a load.
const DOOMED: usize = 16_384;
/// Pause before a checkpoint that failed is tried again: the first, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The journal's own format, in SQLite's `user_version`; and what says in `application_id` that it is ours
/// ("tonk").
const FORMAT: i64 = 1;
const APPLICATION: i64 = 0x746f_6e6b;

/// Chunks in folders, with a journal before them.
pub struct Journal {
    folders: NodefsStore,
    requests: mpsc::Sender<Request>,
    shared: Arc<Shared>,
    /// One checkpoint at a time.
    checkpoint: Arc<tokio::sync::Mutex<()>>,
}

struct Shared {
    path: PathBuf,
    durability: Durability,
    index: Mutex<Index>,
    /// For reads; opened when it is first needed, and again after a failure.
    reader: Mutex<Option<Connection>>,
    is_full: Notify,
    /// Chunks that leave the folders when their grace time is over; locked for as long as one is deleted.
    doomed: tokio::sync::Mutex<HashSet<Key>>,
    size: usize,
    tombstones: Tombstones,
    metrics: StorageMetrics,
}

/// What is to be done in the next commit.
struct Request {
    change: Change,
    done: oneshot::Sender<Result<(), StorageError>>,
}

enum Change {
    Put(Key, Bytes),
    Delete(Key),
    /// Rows whose chunks stand in the folders.
    Moved(Vec<(Key, Row)>),
    /// All rows of a document, without a trace.
    DeleteDocument(DocumentId),
}

/// What a deletion found of a document.
#[derive(Debug, Default)]
pub struct Deleted {
    /// Chunks in the journal and the folders, quarantine included.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// A chunk in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    id: i64,
    size: usize,
}

/// Which chunks are in the journal.
#[derive(Default)]
struct Index {
    documents: HashMap<DocumentId, Vec<(ChunkKind, String, Row)>>,
    rows: usize,
    bytes: usize,
}

impl Index {
    fn get(&self, key: &Key) -> Option<Row> {
        let Key::Chunk { document, kind, name } = key else { return None };
        let chunks = self.documents.get(document)?;
        chunks.iter().find(|(k, n, _)| k == kind && n == name).map(|(_, _, row)| *row)
    }

    fn set(&mut self, key: &Key, row: Option<Row>) {
        let Key::Chunk { document, kind, name } = key else { return };
        let chunks = self.documents.entry(*document).or_default();
        if let Some(at) = chunks.iter().position(|(k, n, _)| k == kind && n == name) {
            let (_, _, old) = chunks.swap_remove(at);
            self.rows -= 1;
            self.bytes = self.bytes.saturating_sub(old.size);
        }
        if let Some(row) = row {
            chunks.push((*kind, name.clone(), row));
            self.rows += 1;
            self.bytes += row.size;
        } else if chunks.is_empty() {
            self.documents.remove(document);
        }
    }

    fn rows_of(&self, document: DocumentId) -> Option<Vec<(Key, Row)>> {
        let chunks = self.documents.get(&document)?;
        let key = |kind: &ChunkKind, name: &String| Key::Chunk {
            document,
            kind: *kind,
            name: name.clone(),
        };
        Some(chunks.iter().map(|(kind, name, row)| (key(kind, name), *row)).collect())
    }

    fn is_beyond(&self, size: usize) -> bool {
        self.bytes > size || self.rows > ROWS
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, action: &'static str) -> impl Fn(rusqlite::Error) -> StorageError {
        let path = self.path.clone();
        move |error| failed(action, &path, error)
    }

    /// What a panic in a task of the journal's is to whoever waits for it.
    fn panicked(&self, action: &'static str) -> impl FnOnce(JoinError) -> StorageError {
        let path = self.path.clone();
        move |panic| StorageError { action, path, source: io::Error::other(panic) }
    }

    /// Take over what a commit did.
    fn note(&self, committed: HashMap<Key, Option<Row>>) {
        self.metrics.commits.inc();
        let mut index = self.index();
        for (key, row) in committed {
            index.set(&key, row);
        }
        self.show(&index);
        if index.is_beyond(self.size) {
            self.is_full.notify_one();
        }
    }

    /// The rows of a chunk's document, if there are any.
    fn rows_beside(&self, key: &Key) -> Option<Vec<(Key, Row)>> {
        let Key::Chunk { document, .. } = key else { return None };
        self.index().rows_of(*document)
    }

    fn show(&self, index: &Index) {
        self.metrics.journal_bytes.set(i64::try_from(index.bytes).unwrap_or(i64::MAX));
        self.metrics.journal_chunks.set(i64::try_from(index.rows).unwrap_or(i64::MAX));
    }

    /// Read rows on a thread that may block.
    async fn read_rows(
        self: &Arc<Self>,
        rows: Vec<(Key, Row)>,
    ) -> Result<Vec<(Key, Row, Vec<u8>)>, StorageError> {
        let shared = self.clone();
        let read = tokio::task::spawn_blocking(move || shared.read(&rows)).await;
        read.map_err(self.panicked("read"))?
    }

    /// Read rows with a connection that does not hold up the writer.
    fn read(&self, rows: &[(Key, Row)]) -> Result<Vec<(Key, Row, Vec<u8>)>, StorageError> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = match reader.take() {
            Some(connection) => connection,
            None => Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY)
                .map_err(self.failed("open"))?,
        };
        let mut found = Vec::with_capacity(rows.len());
        {
            let mut query = connection
                .prepare_cached("SELECT data FROM chunk WHERE id = ?1")
                .map_err(self.failed("read"))?;
            for (key, row) in rows {
                // One that is gone stands in the folders by now, or was replaced.
                let data = query.query_row([row.id], |found| found.get(0)).optional();
                if let Some(data) = data.map_err(self.failed("read"))? {
                    found.push((key.clone(), *row, data));
                }
            }
        }
        *reader = Some(connection);
        Ok(found)
    }
}

fn failed(action: &'static str, path: &Path, error: rusqlite::Error) -> StorageError {
    let kind = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => io::ErrorKind::StorageFull,
        Some(rusqlite::ErrorCode::ReadOnly) => io::ErrorKind::ReadOnlyFilesystem,
        Some(rusqlite::ErrorCode::PermissionDenied) => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    StorageError { action, path: path.to_owned(), source: io::Error::new(kind, error) }
}

impl Journal {
    /// Open the folders of `config` and their journal, which is made if it is not there. To be called on
    /// tokio's runtime; what is written is written by a task there.
    ///
    /// # Errors
    /// The folders or the journal cannot be opened, or the journal is of a newer format.
    pub fn open(config: &config::Storage, metrics: StorageMetrics) -> Result<Self, StorageError> {
        let folders = NodefsStore::open(&config.path, config.durability)?;
        let folder = config.path.join(".journal");
        fs::create_dir_all(&folder)
            .and_then(|()| fs::File::open(&config.path)?.sync_all())
            .map_err(|source| StorageError { action: "create", path: folder.clone(), source })?;
        let path = folder.join("journal.sqlite");
        let (connection, index) = match open(&path, config.durability) {
            Err(error) if is_broken(&error) => {
                set_aside(&config.path, &path, &error, &metrics)?;
                open(&path, config.durability)?
            }
            opened => opened?,
        };
        let tombstones = Tombstones::open(&config.path)?;
        let index = forget_deleted(&connection, index, &tombstones);
        if index.rows > 0 {
            info!(chunks = index.rows, bytes = index.bytes, "the journal holds what was not moved");
        }
        let shared = Arc::new(Shared {
            path,
            durability: config.durability,
            index: Mutex::default(),
            reader: Mutex::default(),
            is_full: Notify::new(),
            doomed: tokio::sync::Mutex::default(),
            size: config.journal_size.bytes(),
            tombstones,
            metrics,
        });
        shared.show(&index);
        *shared.index() = index;
        let (requests, receiver) = mpsc::channel(BATCH);
        let (doomed, condemned) = mpsc::channel(DOOMED);
        let again = doomed.downgrade();
        let writer = Writer {
            shared: shared.clone(),
            connection: Some(connection),
            interval: config.commit_interval.0,
            grace: config.grace.0,
            doomed,
        };
        tokio::spawn(writer.run(receiver));
        let journal = Self { folders, requests, shared, checkpoint: Arc::default() };
        tokio::spawn(journal.for_a_task().keep_small());
        let grace = config.grace.0;
        tokio::spawn(delete_after_grace(journal.for_a_task(), grace, again, condemned));
        Ok(journal)
    }

    /// For a task of the journal's own, which ends when the last journal is dropped.
    fn for_a_task(&self) -> Mover {
        Mover {
            folders: self.folders.clone(),
            requests: self.requests.downgrade(),
            shared: self.shared.clone(),
            checkpoint: self.checkpoint.clone(),
        }
    }

    /// Move everything into the folders, which then hold all that was durable when this was called.
    /// Returns how many chunks were moved.
    ///
    /// # Errors
    /// A chunk cannot be read or written: it and all later ones stay in the journal.
    pub async fn checkpoint(&self) -> Result<usize, StorageError> {
        let mover = self.for_a_task();
        // In a task: whoever asked may go away, and what was begun must be finished.
        let moving = tokio::spawn(async move { mover.checkpoint(0).await });
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
        let sizes_of = |document, mut chunks: Vec<(Key, u64)>| {
            for (key, row) in self.shared.index().rows_of(document).unwrap_or_default() {
                chunks.retain(|(in_folder, _)| *in_folder != key);
                chunks.push((key, row.size as u64));
            }
            chunks
        };
        let (mut goes_on, mut failed) = (true, None);
        walk::walk(root, |entry| {
            let Found::Document(document) = entry else { return true };
            in_journal.remove(&document);
            match walk::sizes(root, document) {
                Ok(chunks) => {
                    let chunks = sizes_of(document, chunks);
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
            let chunks = sizes_of(document, Vec::new());
            goes_on = goes_on && (chunks.is_empty() || found(Listed::new(document, chunks)));
        }
        Ok(())
    }

    /// The documents of which the journal holds chunks.
    pub fn documents(&self) -> Vec<DocumentId> {
        self.shared.index().documents.keys().copied().collect()
    }

    /// What SQLite finds amiss in the journal's file. Blocks.
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

    /// Delete what is left of a document whose tombstone stands.
    ///
    /// # Errors
    /// Something of it cannot be deleted.
    pub async fn delete_again(&self, document: DocumentId) -> Result<(), StorageError> {
        self.change(Change::DeleteDocument(document)).await?;
        self.folders.delete_document(document).await.map(drop)
    }

    /// Move all that is stored, tombstones and quarantine too, into a folder beside it. Returns that folder.
    /// Nothing may be stored meanwhile.
    ///
    /// # Errors
    /// Not all could be moved.
    pub async fn set_aside(&self, name: &str) -> Result<PathBuf, StorageError> {
        self.checkpoint().await?;
        let aside = self.folders.set_aside(name).await?;
        self.shared.tombstones.forget();
        Ok(aside)
    }

    /// The folder of documents.
    pub fn root(&self) -> &Path {
        self.folders.root()
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
        let mover = self.for_a_task();
        let deleting =
            tokio::spawn(async move { mover.delete_document(document, tombstone).await });
        deleting.await.map_err(self.shared.panicked("delete"))?
    }

    async fn change(&self, change: Change) -> Result<(), StorageError> {
        send(&self.requests, &self.shared, change).await
    }
}

async fn send(
    requests: &mpsc::Sender<Request>,
    shared: &Shared,
    change: Change,
) -> Result<(), StorageError> {
    let gone = || StorageError {
        action: "write",
        path: shared.path.clone(),
        source: io::Error::other("the journal's writer has ended"),
    };
    let (done, result) = oneshot::channel();
    requests.send(Request { change, done }).await.map_err(|_| gone())?;
    result.await.unwrap_or_else(|_| Err(gone()))
}

/// Open the journal's file, and list what is in it.
fn open(path: &Path, durability: Durability) -> Result<(Connection, Index), StorageError> {
    let failed = |error| failed("open", path, error);
    let connection = Connection::open(path).map_err(failed)?;
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, format) =
        (number("application_id").map_err(failed)?, number("user_version").map_err(failed)?);
    if format > FORMAT || ![0, APPLICATION].contains(&application) {
        let reason = format!(
            "it is of format {format}, and this tonk-relay knows {FORMAT}; let the one that wrote it move it into \
             the folders by `tonk-relay checkpoint`"
        );
        return Err(StorageError {
            action: "open",
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::Unsupported, reason),
        });
    }
    // FULL: a commit returns when it is on the disk. NORMAL: the kernel has it.
    let synchronous = if durability == Durability::Fsync { "FULL" } else { "NORMAL" };
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; PRAGMA cache_size = -1024;
             PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};
             CREATE TABLE IF NOT EXISTS chunk (
                 id INTEGER PRIMARY KEY, document BLOB NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
                 data BLOB NOT NULL
             ) STRICT;"
        ))
        .map_err(failed)?;
    let mut index = Index::default();
    {
        let mut query = connection
            .prepare("SELECT id, document, kind, name, length(data) FROM chunk ORDER BY id")
            .map_err(failed)?;
        let mut rows = query.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let document: [u8; 16] = row.get(1).map_err(failed)?;
            let kind: String = row.get(2).map_err(failed)?;
            let Some(kind) = ChunkKind::from_name(&kind) else { continue };
            let key = Key::Chunk {
                document: DocumentId::from_bytes(document),
                kind,
                name: row.get(3).map_err(failed)?,
            };
            let (id, size) = (row.get(0).map_err(failed)?, row.get::<_, i64>(4).map_err(failed)?);
            index.set(&key, Some(Row { id, size: usize::try_from(size).unwrap_or(0) }));
        }
    }
    Ok((connection, index))
}

/// A deletion that did not come to its end is finished.
fn forget_deleted(connection: &Connection, mut index: Index, tombstones: &Tombstones) -> Index {
    let documents: Vec<DocumentId> = index.documents.keys().copied().collect();
    for document in documents.into_iter().filter(|document| tombstones.contains(*document)) {
        let delete = "DELETE FROM chunk WHERE document = ?1";
        if let Err(error) = connection.execute(delete, [document.as_bytes()]) {
            warn!(%document, %error, "the journal keeps chunks of a deleted document for now");
        }
        for (key, _) in index.rows_of(document).unwrap_or_default() {
            index.set(&key, None);
        }
    }
    index
}

fn is_broken(error: &StorageError) -> bool {
    let source = error.source.get_ref().and_then(|source| source.downcast_ref::<rusqlite::Error>());
    let code = source.and_then(rusqlite::Error::sqlite_error_code);
    matches!(code, Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}

/// Move a journal that SQLite does not read into quarantine. Clients that have what was in it give it back.
fn set_aside(
    root: &Path,
    path: &Path,
    reason: &StorageError,
    metrics: &StorageMetrics,
) -> Result<(), StorageError> {
    let failed = |source| StorageError { action: "move", path: path.to_owned(), source };
    let number = (0..).find(|n| !root.join(format!("quarantine/journal-{n}")).exists());
    let to = root.join(format!("quarantine/journal-{}", number.unwrap_or_default()));
    fs::create_dir_all(&to).map_err(failed)?;
    fs::write(to.join("reason"), format!("{reason}\n")).map_err(failed)?;
    for name in ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"] {
        match fs::rename(path.with_file_name(name), to.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    metrics.broken_chunks.inc();
    error!(
        %reason,
        moved_to = %to.display(),
        "the journal is broken: changes since the last checkpoint are missing until clients bring them again"
    );
    Ok(())
}

/// Commits what is asked for.
struct Writer {
    shared: Arc<Shared>,
    /// None after a failure: it is opened anew, for what the failure left behind is then looked at.
    connection: Option<Connection>,
    interval: Duration,
    grace: Duration,
    doomed: mpsc::Sender<Doomed>,
}

/// A chunk in the folders that is not needed any more.
struct Doomed {
    key: Key,
    /// When it may go.
    at: Instant,
    /// What replaced it stands in the folders.
    is_replaced: bool,
}

/// What a commit did to the index, and chunks that are to leave the folders.
#[derive(Default)]
struct Committed {
    index: HashMap<Key, Option<Row>>,
    doomed: Vec<Key>,
}

impl Writer {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::new();
        let mut next = Instant::now();
        while requests.recv_many(&mut batch, BATCH).await > 0 {
            // The first after a pause does not wait; the others come together.
            while batch.len() < BATCH {
                let places = BATCH - batch.len();
                let more = requests.recv_many(&mut batch, places);
                if timeout_at(next, more).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            next = Instant::now() + self.interval;
            self.commit(std::mem::take(&mut batch)).await;
        }
        // So that the mover sees that there is nobody any more.
        self.shared.is_full.notify_one();
    }

    /// Let chunks leave the folders later.
    async fn doom(&mut self, keys: Vec<Key>) {
        let at = Instant::now() + self.grace;
        let mut doomed = self.shared.doomed.lock().await;
        for key in keys {
            if doomed.len() < DOOMED
                && self.doomed.try_send(Doomed { key: key.clone(), at, is_replaced: false }).is_ok()
            {
                doomed.insert(key);
            }
        }
    }

    async fn commit(&mut self, batch: Vec<Request>) {
        let (shared, connection) = (self.shared.clone(), self.connection.take());
        let (changes, answers): (Vec<Change>, Vec<_>) =
            batch.into_iter().map(|request| (request.change, request.done)).unzip();
        let write = tokio::task::spawn_blocking(move || {
            let mut connection = match connection {
                Some(connection) => connection,
                None => {
                    let (connection, index) = open(&shared.path, shared.durability)?;
                    *shared.index() = index;
                    connection
                }
            };
            let committed = write(&mut connection, &shared, &changes)?;
            if changes.iter().any(|change| matches!(change, Change::DeleteDocument(_))) {
                leave_no_trace(&connection);
            }
            Ok((connection, committed))
        });
        let written = write.await.unwrap_or_else(|panic| Err(self.shared.panicked("write")(panic)));
        match written {
            Ok((connection, committed)) => {
                self.connection = Some(connection);
                self.shared.note(committed.index);
                if !committed.doomed.is_empty() {
                    self.doom(committed.doomed).await;
                }
                for done in answers {
                    let _ = done.send(Ok(()));
                }
            }
            Err(error) => {
                for done in answers {
                    let source = io::Error::new(error.source.kind(), error.source.to_string());
                    let (action, path) = (error.action, error.path.clone());
                    let _ = done.send(Err(StorageError { action, path, source }));
                }
            }
        }
    }
}

/// Make all of `changes` durable, or none.
fn write(
    connection: &mut Connection,
    shared: &Shared,
    changes: &[Change],
) -> Result<Committed, StorageError> {
    let failed = shared.failed("write");
    let mut committed = Committed::default();
    let transaction = connection.transaction().map_err(&failed)?;
    {
        let mut insert = transaction
            .prepare_cached(
                "INSERT INTO chunk (document, kind, name, data) VALUES (?1, ?2, ?3, ?4)",
            )
            .map_err(&failed)?;
        let mut delete =
            transaction.prepare_cached("DELETE FROM chunk WHERE id = ?1").map_err(&failed)?;
        let now = |committed: &Committed, key: &Key| match committed.index.get(key) {
            Some(row) => *row,
            None => shared.index().get(key),
        };
        for change in changes {
            match change {
                Change::Put(key, data) => {
                    let Key::Chunk { document, kind, name } = key else { continue };
                    if shared.tombstones.contains(*document) {
                        continue;
                    }
                    if let Some(old) = now(&committed, key) {
                        delete.execute([old.id]).map_err(&failed)?;
                    }
                    let id = insert
                        .insert(params![document.as_bytes(), kind.name(), name, &data[..]])
                        .map_err(&failed)?;
                    committed.index.insert(key.clone(), Some(Row { id, size: data.len() }));
                }
                Change::Delete(key) => match now(&committed, key) {
                    Some(row) => {
                        delete.execute([row.id]).map_err(&failed)?;
                        committed.index.insert(key.clone(), None);
                    }
                    None => committed.doomed.push(key.clone()),
                },
                Change::DeleteDocument(document) => {
                    transaction
                        .execute("DELETE FROM chunk WHERE document = ?1", [document.as_bytes()])
                        .map_err(&failed)?;
                    let rows = shared.index().rows_of(*document).unwrap_or_default();
                    committed.index.extend(rows.into_iter().map(|(key, _)| (key, None)));
                    for (key, row) in &mut committed.index {
                        if matches!(key, Key::Chunk { document: of, .. } if of == document) {
                            *row = None;
                        }
                    }
                }
                Change::Moved(rows) => {
                    for (key, row) in rows {
                        match now(&committed, key) {
                            Some(now) if now == *row => {
                                delete.execute([row.id]).map_err(&failed)?;
                                committed.index.insert(key.clone(), None);
                            }
                            // Written anew meanwhile: it is moved again.
                            Some(_) => {}
                            // Deleted while its file was being written.
                            None => committed.doomed.push(key.clone()),
                        }
                    }
                }
            }
        }
    }
    transaction.commit().map_err(&failed)?;
    Ok(committed)
}

/// SQLite keeps what was deleted in pages that it will use again: write the file anew without them.
fn leave_no_trace(connection: &Connection) {
    if let Err(error) = connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);") {
        warn!(%error, "bytes of a deleted document stay in the journal's file until they are written over");
    }
}

/// Delete replaced chunks from the folders when their time has come: a grace time after what replaced them stands
/// there too, for others read the folders alone.
async fn delete_after_grace(
    mover: Mover,
    grace: Duration,
    again: mpsc::WeakSender<Doomed>,
    mut condemned: mpsc::Receiver<Doomed>,
) {
    while let Some(Doomed { key, at, is_replaced }) = condemned.recv().await {
        sleep_until(at).await;
        if !is_replaced && mover.shared.rows_beside(&key).is_some() {
            let moved = mover.move_beside(&key).await;
            if let Err(error) = &moved {
                warn!(%error, "a chunk that is not needed any more stays");
            }
            let doomed = Doomed { key: key.clone(), at: Instant::now() + grace, is_replaced: true };
            let waits =
                moved.is_ok() && again.upgrade().is_some_and(|a| a.try_send(doomed).is_ok());
            if !waits {
                mover.shared.doomed.lock().await.remove(&key);
            }
            continue;
        }
        let mut doomed = mover.shared.doomed.lock().await;
        // One that was put again meanwhile stays.
        if !doomed.remove(&key) {
            continue;
        }
        if let Err(error) = mover.folders.delete(&key).await {
            warn!(%error, "a chunk that is not needed any more stays");
        }
    }
}

/// Moves chunks from the journal into the folders.
struct Mover {
    folders: NodefsStore,
    requests: mpsc::WeakSender<Request>,
    shared: Arc<Shared>,
    checkpoint: Arc<tokio::sync::Mutex<()>>,
}

impl Mover {
    /// Move the oldest chunks whenever the journal has become too large.
    async fn keep_small(self) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            self.shared.is_full.notified().await;
            if self.requests.strong_count() == 0 {
                return;
            }
            while let Err(error) = self.checkpoint(self.shared.size / 2).await {
                warn!(%error, "the journal cannot be moved into the folders; it is tried again");
                sleep(backoff.pause()).await;
            }
            backoff.reset();
        }
    }

    /// Move the oldest chunks until `size` bytes, or that share of the most rows, are left.
    async fn checkpoint(&self, size: usize) -> Result<usize, StorageError> {
        let _alone = self.checkpoint.lock().await;
        let to_move = {
            let index = self.shared.index();
            let rows = if size == 0 { 0 } else { ROWS / 2 };
            let mut all: Vec<(Key, Row)> = Vec::with_capacity(index.rows);
            for document in index.documents.keys() {
                all.extend(index.rows_of(*document).unwrap_or_default());
            }
            all.sort_unstable_by_key(|(_, row)| row.id);
            let (mut left, mut bytes) = (index.rows, index.bytes);
            let wanted = all.iter().take_while(|(_, row)| {
                let is_wanted = left > rows || bytes > size;
                (left, bytes) = (left.saturating_sub(1), bytes.saturating_sub(row.size));
                is_wanted
            });
            let wanted = wanted.count();
            all.truncate(wanted);
            VecDeque::from(all)
        };
        self.move_all(to_move).await
    }

    /// Move what the journal has of a chunk's document.
    async fn move_beside(&self, key: &Key) -> Result<usize, StorageError> {
        let _alone = self.checkpoint.lock().await;
        self.move_all(self.shared.rows_beside(key).unwrap_or_default().into()).await
    }

    async fn delete_document(
        &self,
        document: DocumentId,
        tombstone: Tombstone,
    ) -> Result<Deleted, StorageError> {
        let _alone = self.checkpoint.lock().await;
        let mut deleted = Deleted::default();
        let count = |deleted: &mut Deleted, (files, bytes)| {
            deleted.chunks += files;
            deleted.bytes += bytes;
        };
        let add = async || {
            let (shared, tombstone) = (self.shared.clone(), tombstone.clone());
            let adding = move || shared.tombstones.add(document, &tombstone);
            tokio::task::spawn_blocking(adding).await.map_err(self.shared.panicked("delete"))?
        };
        match add().await {
            Err(error) if error.source.kind() == io::ErrorKind::StorageFull => {
                // What is deleted makes room for what says so.
                count(&mut deleted, self.folders.delete_document(document).await?);
                add().await?;
            }
            added => added?,
        }
        let rows = self.shared.index().rows_of(document).unwrap_or_default();
        if let Some(requests) = self.requests.upgrade() {
            send(&requests, &self.shared, Change::DeleteDocument(document)).await?;
        }
        count(&mut deleted, (rows.len(), rows.iter().map(|(_, row)| row.size as u64).sum()));
        count(&mut deleted, self.folders.delete_document(document).await?);
        Ok(deleted)
    }

    /// Move these rows. One at a time, and to its end: a row that is not there any more when it has been moved
    /// counts as deleted meanwhile, and its file goes.
    async fn move_all(&self, mut to_move: VecDeque<(Key, Row)>) -> Result<usize, StorageError> {
        let mut moved = 0;
        while !to_move.is_empty() {
            let rows: Vec<(Key, Row)> = to_move.drain(..MOVED.min(to_move.len())).collect();
            let read = self.shared.read_rows(rows).await?;
            let mut rows = Vec::with_capacity(read.len());
            let mut files = Vec::with_capacity(read.len());
            for (key, row, data) in read {
                rows.push((key.clone(), row));
                files.push((key, data.into()));
            }
            self.folders.put_all(files).await?;
            moved += rows.len();
            let Some(requests) = self.requests.upgrade() else { break };
            send(&requests, &self.shared, Change::Moved(rows)).await?;
        }
        if moved > 0 {
            self.shared.metrics.moved.inc_by(moved as u64);
        }
        Ok(moved)
    }
}

impl ChunkStore for Journal {
    fn load<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Option<Vec<u8>>, StorageError>> {
        self.folders.load(key)
    }

    /// The journal first: what moves into the folders meanwhile is found there then.
    fn load_document(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Vec<StoredChunk>, StorageError>> {
        async move {
            let rows = self.shared.index().rows_of(document).unwrap_or_default();
            let mut journal = Vec::new();
            if !rows.is_empty() {
                journal = self.shared.read_rows(rows).await?;
            }
            let mut chunks = self.folders.load_document(document).await?;
            if self.is_deleted(document) {
                return Ok(Vec::new());
            }
            chunks.retain(|(key, _)| !journal.iter().any(|(in_journal, _, _)| in_journal == key));
            chunks.extend(journal.into_iter().map(|(key, _, data)| (key, data)));
            chunks.sort_by(|(a, _), (b, _)| a.cmp(b));
            Ok(chunks)
        }
        .boxed()
    }

    fn put<'a>(&'a self, key: &'a Key, data: Bytes) -> BoxFuture<'a, Result<(), StorageError>> {
        let is_small = matches!(key, Key::Chunk { .. }) && data.len() < LARGE;
        if is_small && self.shared.index().bytes > self.shared.size.saturating_mul(TOO_LARGE) {
            let full = "it is full, for its chunks cannot be moved into the folders";
            let (path, source) = (self.shared.path.clone(), io::Error::other(full));
            return std::future::ready(Err(StorageError { action: "write", path, source })).boxed();
        }
        async move {
            self.shared.doomed.lock().await.remove(key);
            if is_small {
                return self.change(Change::Put(key.clone(), data)).await;
            }
            self.folders.put(key, data).await?;
            match key {
                // It was deleted while its file was being written.
                Key::Chunk { document, .. } if self.is_deleted(*document) => {
                    self.folders.delete(key).await
                }
                _ => Ok(()),
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
