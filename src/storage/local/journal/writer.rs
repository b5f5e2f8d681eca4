//! The task that commits changes to the journal, and then notifies their savers. Large chunks that
//! replace no row bypass it: `chunk_store` writes them into the folders.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rusqlite::{Connection, Statement, params};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    index::Row,
    shared::{Change, Request, Shared},
    sqlite::{delete_rows_with_tombstones, open, vacuum},
};
use crate::{document::chunk::Key, storage::StorageError};

/// The most changes of a commit, and the most that wait for the next one.
pub(super) const BATCH: usize = 1024;
/// The most replaced chunks that wait for the end of their grace time. Further ones remain until
/// their document is compacted after its next load.
pub(super) const MAX_PENDING_DELETES: usize = 16_384;

/// Commits changes in batches.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    /// `None` after a failure that may have damaged the file or could not be rolled back. The file
    /// is then reopened and checked.
    pub(super) connection: Option<Connection>,
    /// The shortest time between commits.
    pub(super) interval: Duration,
    /// How long replaced chunks stay in the folders.
    pub(super) grace: Duration,
    pub(super) pending_deletes: mpsc::Sender<PendingDelete>,
}

/// A chunk in the folders that was replaced.
pub(super) struct PendingDelete {
    pub(super) key: Key,
    /// When it may be deleted.
    pub(super) at: Instant,
    /// Whether the chunk that replaced it is in the folders.
    pub(super) is_replacement_moved: bool,
}

/// The result of a commit.
#[derive(Default)]
struct Committed {
    /// The rows that were added, and `None` for those that were deleted.
    index: HashMap<Key, Option<Row>>,
    /// Chunks to be deleted from the folders.
    to_delete: Vec<Key>,
}

impl Committed {
    /// Deletes a chunk: its row with `statement`, or what the folders have of it later.
    fn delete(
        &mut self,
        key: &Key,
        row: Option<Row>,
        statement: &mut Statement<'_>,
    ) -> rusqlite::Result<()> {
        match row {
            Some(row) => {
                statement.execute([row.id])?;
                self.index.insert(key.clone(), None);
            }
            None => self.to_delete.push(key.clone()),
        }
        Ok(())
    }
}

impl Writer {
    pub(super) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut batch = Vec::new();
        let mut next = Instant::now();
        while requests.recv_many(&mut batch, BATCH).await > 0 {
            // The first change after a pause is committed at once. Later ones are collected for an
            // interval.
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                let more = requests.recv_many(&mut batch, room);
                if timeout_at(next, more).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            next = Instant::now() + self.interval;
            self.commit(std::mem::take(&mut batch)).await;
        }
        // Wakes the mover, which ends because the journal was dropped.
        self.shared.is_too_large.notify_one();
    }

    /// Schedules chunks to be deleted from the folders after the grace time.
    fn schedule_deletes(&mut self, keys: Vec<Key>) {
        let at = Instant::now() + self.grace;
        let mut pending_deletes = self.shared.pending_deletes();
        for key in keys {
            if pending_deletes.len() < MAX_PENDING_DELETES
                && self
                    .pending_deletes
                    .try_send(PendingDelete { key: key.clone(), at, is_replacement_moved: false })
                    .is_ok()
            {
                pending_deletes.insert(key);
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
                None => match open(&shared.path, shared.durability) {
                    Err(error) => return (None, Err(error)),
                    Ok((connection, index)) => {
                        *shared.index() =
                            delete_rows_with_tombstones(&connection, index, &shared.tombstones);
                        connection
                    }
                },
            };
            let written = commit(&mut connection, &shared, &changes);
            // After some failures, such as a full disk, the connection can still be used.
            let is_usable = match &written {
                Ok(_) => true,
                Err(error) => {
                    !matches!(error, StorageError::Corrupt(_)) && connection.is_autocommit()
                }
            };
            (is_usable.then_some(connection), written)
        });
        let (connection, written) = match write.await {
            Ok(ended) => ended,
            Err(panic) => (None, Err(self.shared.panicked("write")(panic))),
        };
        self.connection = connection;
        match written {
            Ok(to_delete) => {
                if !to_delete.is_empty() {
                    self.schedule_deletes(to_delete);
                }
                for done in answers {
                    let _ = done.send(Ok(()));
                }
            }
            Err(error) => {
                for done in answers {
                    let _ = done.send(Err(error.clone()));
                }
            }
        }
    }
}

/// Makes `changes` durable, and then truncates the log or vacuums if requested. Returns the chunks
/// to be deleted from the folders.
fn commit(
    connection: &mut Connection,
    shared: &Shared,
    changes: &[Change],
) -> Result<Vec<Key>, StorageError> {
    let committed = write(connection, shared, changes)?;
    // The index is updated before the slow operations, so that loads do not look for deleted rows.
    shared.record(committed.index);
    if changes.iter().any(|change| matches!(change, Change::Vacuum)) {
        vacuum(connection);
    }
    if changes.iter().any(|change| matches!(change, Change::TruncateWal)) {
        let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
        connection.execute_batch(truncate).map_err(shared.failed("write"))?;
    }
    if changes.iter().all(|change| matches!(change, Change::Moved(_))) {
        // Nothing else is written, so the cached pages are not needed.
        let _ = connection.execute_batch("PRAGMA shrink_memory");
    }
    Ok(committed.to_delete)
}

/// Makes all of `changes` durable, or none.
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
        let current = |committed: &Committed, key: &Key| match committed.index.get(key) {
            Some(row) => *row,
            None => shared.index().get(key),
        };
        for change in changes {
            match change {
                Change::Put { key, data, replaced } => {
                    let Key::Chunk { document, kind, name } = key else { continue };
                    if shared.tombstones.contains(*document) {
                        continue;
                    }
                    if let Some(old) = current(&committed, key) {
                        delete.execute([old.id]).map_err(&failed)?;
                    }
                    let id = insert
                        .insert(params![document.as_bytes(), kind.name(), name, &data[..]])
                        .map_err(&failed)?;
                    committed.index.insert(key.clone(), Some(Row { id, size: data.len() }));
                    for key in replaced {
                        let row = current(&committed, key);
                        committed.delete(key, row, &mut delete).map_err(&failed)?;
                    }
                }
                Change::TruncateWal | Change::Vacuum => {}
                Change::Delete(keys) => {
                    for key in keys {
                        let row = current(&committed, key);
                        committed.delete(key, row, &mut delete).map_err(&failed)?;
                    }
                }
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
                        match current(&committed, key) {
                            Some(current) if current == *row => {
                                delete.execute([row.id]).map_err(&failed)?;
                                committed.index.insert(key.clone(), None);
                            }
                            // It was replaced meanwhile, and will be moved again.
                            Some(_) => {}
                            // Deleted while its file was being written.
                            None => committed.to_delete.push(key.clone()),
                        }
                    }
                }
            }
        }
    }
    transaction.commit().map_err(&failed)?;
    Ok(committed)
}
