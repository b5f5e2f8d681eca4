//! Loading, storing and deleting chunks.

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;
use tokio_postgres::{Row, types::ToSql};

use super::{
    PostgresStore, contains,
    error::QueryError,
    writer::{Change, Request, columns, kind_of, write},
};
use crate::{
    base::document_id::DocumentId,
    document::chunk::{Key, StoredChunk},
    storage::{ChunkStore, Failure, Location, StorageError},
};

/// Chunks of at least this many bytes are written by themselves, so that small ones do not wait for
/// them.
const LARGE_CHUNK: usize = 1 << 20;

/// The chunk in a row of `statements::LOAD`.
fn chunk(document: DocumentId, row: &Row) -> Result<StoredChunk, QueryError> {
    let kind = kind_of(row.try_get(0)?);
    Ok((Key::Chunk { document, kind, name: row.try_get(1)? }, row.try_get(2)?))
}

impl PostgresStore {
    async fn commit(&self, change: Change) -> Result<(), StorageError> {
        if change.put.as_ref().is_none_or(|(_, data)| data.len() < LARGE_CHUNK) {
            return self.request(change).await;
        }
        loop {
            let written = write(&self.link, true, &[&change]).await;
            let name =
                written.map_err(|error| error.into_storage("write to", self.link.database()))?;
            // Only small writes are counted, by which a loss is noticed. Over other connections it
            // would not show that the database still has the chunk.
            let counted = Change {
                put: None,
                delete: Vec::new(),
                losses: change.losses,
                only_over: Some(name),
            };
            match self.request(counted).await {
                Err(StorageError::Outdated(_)) => {}
                counted => return counted,
            }
        }
    }

    /// Has the writer make a small change with its next commit.
    async fn request(&self, change: Change) -> Result<(), StorageError> {
        let ended = || {
            let database = Location::Database(self.link.database().to_owned());
            StorageError::Unavailable(Failure::new("write to", database, "its writer has ended"))
        };
        let (done, result) = oneshot::channel();
        self.requests.send(Request { change, done }).await.map_err(|_| ended())?;
        result.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl ChunkStore for PostgresStore {
    fn load_storage_id(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>, StorageError>> {
        let reading = async move {
            let rows = self.rows("select storage_id from tonk_relay.meta", &[]).await?;
            let id = rows.first().map(|row| row.try_get::<_, Option<String>>(0)).transpose();
            let id = id.map_err(QueryError::from).map_err(self.unexpected())?;
            Ok(id.flatten().map(String::into_bytes))
        };
        reading.boxed()
    }

    fn load_document(
        &self,
        document: DocumentId,
    ) -> BoxFuture<'_, Result<Vec<StoredChunk>, StorageError>> {
        let reading = async move {
            let rows = self.link.read("read from", async |link, group| {
                let reader = group.reader();
                let _turn = reader.turn.lock().await;
                let id = document.as_bytes().as_slice();
                let parameters: [&(dyn ToSql + Sync); 1] = [&id];
                // How long the data may take is known from its size.
                let size = reader.client.query_one(&reader.size, &parameters);
                let size = link.run_within(group, 0, size).await?;
                let bytes = u64::try_from(size.try_get::<_, i64>(0)?).unwrap_or(0);
                let rows = reader.client.query(&reader.load, &parameters);
                Ok((link.run_within(group, bytes, rows).await?, bytes))
            });
            let (rows, bytes) = rows.await?;
            // Deleted while it was being read.
            if self.is_deleted(document) {
                return Ok(Vec::new());
            }
            let read = move || rows.into_iter().map(|row| chunk(document, &row)).collect();
            let chunks: Result<Vec<StoredChunk>, QueryError> = if bytes < LARGE_CHUNK as u64 {
                read()
            } else {
                // Copying it would block other tasks.
                let failed = |panic| QueryError::passing(format!("{panic}"));
                tokio::task::spawn_blocking(read).await.map_err(failed).flatten()
            };
            chunks.map_err(self.unexpected())
        };
        reading.boxed()
    }

    fn replace<'a>(
        &'a self,
        key: &'a Key,
        data: Bytes,
        replaced: &'a [Key],
        losses: u64,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        if columns(key).is_none() {
            return self.store_id(data).boxed();
        }
        self.commit(Change {
            put: Some((key.clone(), data)),
            delete: replaced.to_vec(),
            losses,
            only_over: None,
        })
        .boxed()
    }

    fn losses(&self) -> u64 {
        self.link.losses()
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), StorageError>> {
        self.commit(Change {
            put: None,
            delete: vec![key.clone()],
            losses: self.losses(),
            only_over: None,
        })
        .boxed()
    }

    fn is_deleted(&self, document: DocumentId) -> bool {
        contains(&self.marked.deleted, document)
    }

    fn is_blocked(&self, document: DocumentId) -> bool {
        contains(&self.marked.blocked, document) || contains(&self.marked.unrecorded, document)
    }

    fn quarantine<'a>(
        &'a self,
        key: &'a Key,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<(), StorageError>> {
        self.set_quarantined(key, reason).boxed()
    }
}
