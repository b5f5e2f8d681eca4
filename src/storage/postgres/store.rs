//! Listing, and what the operator and the relay record of documents.

use std::{collections::HashSet, sync::atomic::Ordering};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio_postgres::{Row, types::ToSql};

use super::{
    PostgresStore, change,
    connection::Group,
    error::QueryError,
    statements,
    writer::{MAX_BATCH, columns, kind_of},
};
use crate::{
    base::document_id::DocumentId,
    document::{chunk::Key, load::parses},
    storage::{
        ChunkStore, Failure, Location, StorageError,
        records::{Block, Deleted, Listed, Quarantined, Tombstone},
        store::Store,
    },
};

/// Chunks that are listed with one query. Tests have few.
const PAGE: i64 = if cfg!(test) { 7 } else { 10_000 };

/// The document of these bytes.
pub(super) fn document(bytes: &[u8]) -> Result<DocumentId, QueryError> {
    let bytes = bytes.try_into().map_err(|_| {
        QueryError::passing(format!("a document id has {} bytes; expected 16", bytes.len()))
    })?;
    Ok(DocumentId::from_bytes(bytes))
}

/// The chunk whose document, kind and name are in the first three columns.
fn key(row: &Row) -> Result<Key, QueryError> {
    let kind = kind_of(row.try_get(1)?);
    Ok(Key::Chunk { document: document(row.try_get(0)?)?, kind, name: row.try_get(2)? })
}

fn tombstone(row: &Row) -> Result<Tombstone, QueryError> {
    let document = document(row.try_get(0)?)?;
    Ok(Tombstone { document, deleted_at: row.try_get(1)?, reason: row.try_get(2)? })
}

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

impl PostgresStore {
    /// Makes a change whose first parameter is the name of the writer, and returns its row.
    pub(super) async fn change(
        &self,
        statement: &str,
        parameters: Parameters<'_>,
    ) -> Result<Row, StorageError> {
        self.link
            .read("write to", async |link, group| {
                let name = group.name.as_slice();
                let mut all: Vec<&(dyn ToSql + Sync)> = vec![&name];
                all.extend(parameters);
                let before = group.confirmed.load(Ordering::SeqCst);
                // Over the connection of the writer, so that it is made between two commits.
                let changing = group.writer.query_one(statement, &all);
                let changed = link.run_within(group, MAX_BATCH as u64, changing).await;
                let changed =
                    changed.and_then(|row| group.confirmed_by(&row, before, true).map(|()| row));
                if changed.is_ok() {
                    link.has_written();
                } else {
                    // It may have been made.
                    self.marked.is_unsure.store(true, Ordering::Relaxed);
                    group.broken.cancel();
                }
                changed
            })
            .await
    }

    /// Reads rows.
    pub(super) async fn rows(
        &self,
        statement: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, StorageError> {
        self.link
            .read("read from", async |link, group| {
                let reader = group.reader();
                let _turn = reader.turn.lock().await;
                link.run_within(group, 0, reader.client.query(statement, parameters)).await
            })
            .await
    }

    /// The error for an answer that cannot be read.
    pub(super) fn unexpected(&self) -> impl Fn(QueryError) -> StorageError {
        let database = self.link.database().to_owned();
        move |error| error.into_storage("read from", &database)
    }

    /// Reads which documents are deleted or blocked. Returns those for which that is news.
    pub(super) async fn load_marks(&self, group: &Group) -> Result<Vec<DocumentId>, QueryError> {
        let all = "select document, deleted_at is not null, blocked_at is not null \
                   from tonk_relay.document where deleted_at is not null or blocked_at is not null";
        let reading = group.looker.client.query(all, &[]);
        let rows = self.link.run_within(group, 0, reading).await?;
        let marked = self.marked.clone();
        // There may be as many as there ever were documents.
        let taking = tokio::task::spawn_blocking(move || {
            let (mut deleted, mut blocked) = (HashSet::new(), HashSet::new());
            for row in rows {
                let Ok(document) = document(row.try_get(0)?) else { continue };
                if row.try_get(1)? {
                    deleted.insert(document);
                }
                if row.try_get(2)? {
                    blocked.insert(document);
                }
            }
            let mut news = Vec::new();
            for (set, now) in [(&marked.deleted, deleted), (&marked.blocked, blocked)] {
                change(set, |set| {
                    news.extend(set.symmetric_difference(&now).copied());
                    *set = now;
                });
            }
            Ok::<_, tokio_postgres::Error>(news)
        });
        let news = taking.await.map_err(|panic| QueryError::passing(panic.to_string()))??;
        self.count_blocked();
        Ok(news)
    }

    /// Takes over the marks of a document. Returns whether they are news.
    pub(super) fn take_marks(
        &self,
        document: DocumentId,
        is_deleted: bool,
        is_blocked: bool,
    ) -> bool {
        let set = |all: &mut HashSet<DocumentId>, is_in| match is_in {
            true => all.insert(document),
            false => all.remove(&document),
        };
        let was_news = change(&self.marked.deleted, |all| set(all, is_deleted))
            | change(&self.marked.blocked, |all| set(all, is_blocked));
        self.count_blocked();
        was_news
    }

    pub(super) async fn store_id(&self, id: Bytes) -> Result<(), StorageError> {
        let id = String::from_utf8_lossy(&id).into_owned();
        self.change(statements::STORE_ID, &[&id]).await.map(drop)
    }

    pub(super) async fn set_quarantined(
        &self,
        key: &Key,
        reason: &str,
    ) -> Result<(), StorageError> {
        self.change_chunk(statements::QUARANTINE, key, &[&reason]).await
    }

    /// Changes one chunk, which must exist.
    async fn change_chunk(
        &self,
        statement: &str,
        key: &Key,
        more: Parameters<'_>,
    ) -> Result<(), StorageError> {
        let Some((document, kind, name)) = columns(key) else { return Err(self.no_chunk(key)) };
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&document, &kind, &name];
        parameters.extend(more);
        let row = self.change(statement, &parameters).await?;
        if self.has_changed(&row)? { Ok(()) } else { Err(self.no_chunk(key)) }
    }

    fn no_chunk(&self, what: impl std::fmt::Display) -> StorageError {
        let database = Location::Database(self.link.database().to_owned());
        StorageError::Refused(Failure::new("change", database, format!("it does not have {what}")))
    }

    /// Returns whether a change that says so in its third column has changed anything.
    fn has_changed(&self, row: &Row) -> Result<bool, StorageError> {
        row.try_get(2).map_err(QueryError::from).map_err(self.unexpected())
    }

    fn count_blocked(&self) {
        let count = change(&self.marked.blocked, |set| set.len())
            + change(&self.marked.unrecorded, |set| set.len());
        self.metrics.blocked.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Lists the chunks after one, with their sizes.
    async fn list_page(&self, after: Option<&Key>) -> Result<Vec<(Key, u64)>, StorageError> {
        // No document has an empty id.
        let (document, kind, name) = after.and_then(columns).unwrap_or((&[], 0, ""));
        let rows = self.rows(statements::LIST, &[&document, &kind, &name, &PAGE]).await?;
        let read = |row: &Row| {
            let size: i64 = row.try_get(3)?;
            Ok((key(row)?, u64::try_from(size).unwrap_or(0)))
        };
        rows.iter().map(read).collect::<Result<_, _>>().map_err(self.unexpected())
    }
}

impl Store for PostgresStore {
    fn list(&self, found: &mut dyn FnMut(Listed) -> bool) -> Result<(), StorageError> {
        let mut last: Option<Key> = None;
        // The chunks of the document whose end is not known yet.
        let mut open: Option<(DocumentId, Vec<(Key, u64)>)> = None;
        loop {
            let page = self.runtime.block_on(self.list_page(last.as_ref()))?;
            let is_last = page.is_empty();
            last = page.last().map(|(key, _)| key.clone());
            for (key, size) in page {
                let Key::Chunk { document, .. } = key else { continue };
                match &mut open {
                    Some((of, chunks)) if *of == document => chunks.push((key, size)),
                    _ => {
                        let done = open.replace((document, vec![(key, size)]));
                        if done.is_some_and(|(of, chunks)| !found(Listed::new(of, chunks))) {
                            return Ok(());
                        }
                    }
                }
            }
            if is_last {
                if let Some((document, chunks)) = open {
                    found(Listed::new(document, chunks));
                }
                return Ok(());
            }
        }
    }

    /// Everything is where it stays.
    fn checkpoint(&self) -> BoxFuture<'_, Result<usize, StorageError>> {
        std::future::ready(Ok(0)).boxed()
    }

    fn delete_document(
        &self,
        document: DocumentId,
        tombstone: Tombstone,
    ) -> BoxFuture<'_, Result<Deleted, StorageError>> {
        let deleting = async move {
            let _no_large_write = self.link.large.lock().await;
            let Tombstone { deleted_at, reason, .. } = &tombstone;
            let id = document.as_bytes().as_slice();
            // Before it is made: whatever its answer is, nothing may be stored any more and told
            // as saved.
            change(&self.marked.deleted, |set| set.insert(document));
            let row = self.change(statements::DELETE, &[&id, deleted_at, reason]).await?;
            // The marks may have been read since, without it.
            change(&self.marked.deleted, |set| set.insert(document));
            let read = || Ok((row.try_get::<_, i64>(2)?, row.try_get::<_, i64>(3)?));
            let (chunks, bytes) = read().map_err(self.unexpected())?;
            Ok(Deleted {
                chunks: usize::try_from(chunks).unwrap_or(0),
                bytes: u64::try_from(bytes).unwrap_or(0),
            })
        };
        deleting.boxed()
    }

    fn undelete(&self, document: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>> {
        let undeleting = async move {
            let _no_large_write = self.link.large.lock().await;
            let row = self.change(statements::UNDELETE, &[&document.as_bytes().as_slice()]).await?;
            change(&self.marked.deleted, |set| set.remove(&document));
            self.has_changed(&row)
        };
        undeleting.boxed()
    }

    fn import_tombstone(&self, tombstone: Tombstone) -> BoxFuture<'_, Result<bool, StorageError>> {
        let importing = async move {
            let _no_large_write = self.link.large.lock().await;
            let Tombstone { document, deleted_at, reason } = &tombstone;
            let id = document.as_bytes().as_slice();
            if !change(&self.marked.deleted, |set| set.insert(*document)) {
                return Ok(false);
            }
            let row = self.change(statements::IMPORT_TOMBSTONE, &[&id, deleted_at, reason]).await?;
            let is_new = self.has_changed(&row)?;
            // The marks may have been read since, without it.
            change(&self.marked.deleted, |set| match is_new {
                true => set.insert(*document),
                false => set.remove(document),
            });
            Ok(is_new)
        };
        importing.boxed()
    }

    fn tombstone(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Option<Tombstone>, StorageError>> {
        let reading = async move {
            if !self.is_deleted(document) {
                return Ok(None);
            }
            let id = document.as_bytes().as_slice();
            let rows = self.rows(statements::TOMBSTONE, &[&id]).await?;
            rows.first().map(tombstone).transpose().map_err(self.unexpected())
        };
        reading.boxed()
    }

    fn tombstones(&self) -> BoxFuture<'_, Result<Vec<Tombstone>, StorageError>> {
        let reading = async move {
            let rows = self.rows(statements::TOMBSTONES, &[]).await?;
            rows.iter().map(tombstone).collect::<Result<_, _>>().map_err(self.unexpected())
        };
        reading.boxed()
    }

    fn block_in_memory(&self, document: DocumentId) {
        change(&self.marked.unrecorded, |set| set.insert(document));
        self.count_blocked();
    }

    fn block(
        &self,
        document: DocumentId,
        reason: Option<String>,
    ) -> BoxFuture<'_, Result<Block, StorageError>> {
        let blocking = async move {
            let Block { blocked_at, .. } = Block::new(document, None);
            let id = document.as_bytes().as_slice();
            let row = self.change(statements::BLOCK, &[&id, &blocked_at, &reason]).await?;
            change(&self.marked.blocked, |set| set.insert(document));
            change(&self.marked.unrecorded, |set| set.remove(&document));
            self.count_blocked();
            let read =
                || Ok(Block { document, blocked_at: row.try_get(2)?, reason: row.try_get(3)? });
            read().map_err(self.unexpected())
        };
        blocking.boxed()
    }

    fn unblock(&self, document: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>> {
        let unblocking = async move {
            let row = self.change(statements::UNBLOCK, &[&document.as_bytes().as_slice()]).await?;
            let was_blocked = change(&self.marked.unrecorded, |set| set.remove(&document));
            change(&self.marked.blocked, |set| set.remove(&document));
            self.count_blocked();
            Ok(self.has_changed(&row)? || was_blocked)
        };
        unblocking.boxed()
    }

    fn blocks(&self) -> BoxFuture<'_, Result<Vec<Block>, StorageError>> {
        let reading = async move {
            let block = |row: &Row| {
                let document = document(row.try_get(0)?)?;
                Ok(Block { document, blocked_at: row.try_get(1)?, reason: row.try_get(2)? })
            };
            let rows = self.rows(statements::BLOCKS, &[]).await?;
            rows.iter().map(block).collect::<Result<_, _>>().map_err(self.unexpected())
        };
        reading.boxed()
    }

    fn quarantined(&self) -> BoxFuture<'_, Result<Vec<Quarantined>, StorageError>> {
        let reading = async move {
            let entry = |row: &Row| {
                Ok(Quarantined {
                    path: Quarantined::path_of(&key(row)?),
                    bytes: u64::try_from(row.try_get::<_, i64>(3)?).unwrap_or(0),
                    since: row.try_get(4)?,
                    reason: row.try_get(5)?,
                })
            };
            let rows = self.rows(statements::QUARANTINED, &[]).await?;
            let all: Result<Vec<Quarantined>, QueryError> = rows.iter().map(entry).collect();
            let mut all = all.map_err(self.unexpected())?;
            all.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            Ok(all)
        };
        reading.boxed()
    }

    fn release(&self, path: String) -> BoxFuture<'_, Result<Key, StorageError>> {
        let releasing = async move {
            let Some(key) = Quarantined::key_of(&path) else { return Err(self.no_chunk(path)) };
            let Some((document, kind, name)) = columns(&key) else {
                return Err(self.no_chunk(path));
            };
            let data = "select data from tonk_relay.chunk where document = $1 and kind = $2 and \
                        name = $3 and quarantined_at is not null";
            let rows = self.rows(data, &[&document, &kind, &name]).await?;
            let Some(row) = rows.first() else { return Err(self.no_chunk(path)) };
            let data: &[u8] =
                row.try_get(0).map_err(QueryError::from).map_err(self.unexpected())?;
            if let Err(reason) = parses(data) {
                let reason = format!("it does not parse: {reason}");
                return Err(StorageError::Refused(Failure::new(
                    "release",
                    Location::Object(path),
                    reason,
                )));
            }
            self.change_chunk(statements::RELEASE, &key, &[]).await?;
            Ok(key)
        };
        releasing.boxed()
    }

    fn purge(&self, path: String) -> BoxFuture<'_, Result<(), StorageError>> {
        let purging = async move {
            let Some(key) = Quarantined::key_of(&path) else { return Err(self.no_chunk(path)) };
            self.change_chunk(statements::PURGE, &key, &[]).await
        };
        purging.boxed()
    }

    fn imported(
        &self,
        bundle: DocumentId,
        etag: String,
    ) -> BoxFuture<'_, Result<Option<Vec<DocumentId>>, StorageError>> {
        let reading = async move {
            let statement =
                "select documents from tonk_relay.import where bundle = $1 and etag = $2";
            let rows = self.rows(statement, &[&bundle.as_bytes().as_slice(), &etag]).await?;
            let read = |row: &Row| {
                let ids: Vec<&[u8]> = row.try_get(0)?;
                ids.into_iter().map(document).collect()
            };
            rows.first().map(read).transpose().map_err(self.unexpected())
        };
        reading.boxed()
    }

    fn record_import(
        &self,
        bundle: DocumentId,
        etag: String,
        documents: Vec<DocumentId>,
    ) -> BoxFuture<'_, Result<(), StorageError>> {
        let recording = async move {
            let ids: Vec<&[u8]> = documents.iter().map(|id| id.as_bytes().as_slice()).collect();
            let bundle = bundle.as_bytes().as_slice();
            self.change(statements::RECORD_IMPORT, &[&bundle, &etag, &ids]).await.map(drop)
        };
        recording.boxed()
    }

    fn forget_imports(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        async move { self.change(statements::FORGET_IMPORTS, &[]).await.map(drop) }.boxed()
    }
}
