//! Loading, storing and deleting chunks.

use std::collections::HashSet;

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;
use tokio_postgres::{Row, types::ToSql};

use super::{
    PostgresStore, contains,
    error::QueryError,
    statements,
    writer::{Change, Outcome, Request, columns, kind_of, write},
};
use crate::{
    base::{document_id::DocumentId, hex::hex},
    document::chunk::{ChunkKind, Key},
    storage::{Basis, ChunkStore, Failure, Loaded, Location, Put, StorageError, Unknown},
};

/// Chunks of at least this many bytes are written by themselves, so that small ones do not wait for
/// them.
const LARGE_CHUNK: usize = 1 << 20;

/// Reads the rows of `statements::LOAD`. Those without data are known.
fn read(
    document: DocumentId,
    mut known: HashSet<Key>,
    rows: &[Row],
) -> Result<Unknown, QueryError> {
    let mut loaded = Loaded::default();
    for row in rows {
        (loaded.generation, loaded.is_deleted) = (row.try_get(0)?, row.try_get(1)?);
        let Some(kind) = row.try_get(2)? else { continue };
        let key = Key::Chunk { document, kind: kind_of(kind), name: row.try_get(3)? };
        match row.try_get::<_, Option<Vec<u8>>>(4)? {
            Some(data) => loaded.chunks.push((key, data)),
            None => _ = known.remove(&key),
        }
    }
    Ok(Unknown { loaded, gone: known.into_iter().collect() })
}

impl PostgresStore {
    async fn commit(&self, change: Change) -> Result<Outcome, StorageError> {
        if change.put.as_ref().is_none_or(|(_, data)| data.len() < LARGE_CHUNK) {
            return self.request(change).await;
        }
        loop {
            let failed = |error: QueryError| error.into_storage("write to", self.link.database());
            let mut written = write(&self.link, true, &[&change]).await.map_err(failed)?;
            let outcome = written.results.pop().unwrap_or(Ok(Outcome::Made)).map_err(failed)?;
            // Only small writes are counted, by which a loss is noticed. Over other connections it
            // would not show that the database still has the chunk.
            let counted = Change {
                put: None,
                delete: Vec::new(),
                basis: change.basis,
                only_over: Some(written.connection),
            };
            match self.request(counted).await {
                Err(StorageError::Outdated(_)) => {}
                counted => return counted.map(|_| outcome),
            }
        }
    }

    /// Has the writer make a small change with its next commit.
    async fn request(&self, change: Change) -> Result<Outcome, StorageError> {
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

    fn create_storage_id(&self, id: String) -> BoxFuture<'_, Result<String, StorageError>> {
        async move {
            let row = self.change(statements::CREATE_ID, &[&id]).await?;
            row.try_get(2).map_err(QueryError::from).map_err(self.unexpected())
        }
        .boxed()
    }

    fn load_document(&self, document: DocumentId) -> BoxFuture<'_, Result<Loaded, StorageError>> {
        async move { Ok(self.load_unknown(document, Vec::new()).await?.loaded) }.boxed()
    }

    fn load_unknown(
        &self,
        document: DocumentId,
        known: Vec<Key>,
    ) -> BoxFuture<'_, Result<Unknown, StorageError>> {
        let reading = async move {
            let (kinds, names): (Vec<i16>, Vec<&str>) =
                known.iter().filter_map(columns).map(|(_, kind, name)| (kind, name)).unzip();
            let rows = self.link.read("read from", async |link, group| {
                let reader = group.reader();
                let _turn = reader.turn.lock().await;
                let id = document.as_bytes().as_slice();
                // How long the data may take is known from its size.
                let parameters: [&(dyn ToSql + Sync); 1] = [&id];
                let size = reader.client.query_one(&reader.size, &parameters);
                let size = link.run_within(group, 0, size).await?;
                let bytes = u64::try_from(size.try_get::<_, i64>(0)?).unwrap_or(0);
                let parameters: [&(dyn ToSql + Sync); 3] = [&id, &kinds, &names];
                let rows = reader.client.query(&reader.load, &parameters);
                Ok((link.run_within(group, bytes, rows).await?, bytes))
            });
            let (rows, bytes) = rows.await?;
            let known = known.iter().cloned().collect();
            let read = move || read(document, known, &rows);
            let unknown = if bytes < LARGE_CHUNK as u64 {
                read()
            } else {
                // Copying it would block other tasks.
                let failed = |panic| QueryError::passing(format!("{panic}"));
                tokio::task::spawn_blocking(read).await.map_err(failed).flatten()
            };
            let mut unknown = unknown.map_err(self.unexpected())?;
            // Deleted while it was being read.
            if self.is_deleted(document) {
                unknown.loaded = Loaded { is_deleted: true, ..Loaded::default() };
            }
            Ok(unknown)
        };
        reading.boxed()
    }

    fn replace<'a>(
        &'a self,
        key: &'a Key,
        data: Bytes,
        replaced: &'a [Key],
        basis: Basis,
    ) -> BoxFuture<'a, Result<Put, StorageError>> {
        async move {
            let Key::Chunk { document, .. } = key else {
                return self.store_id(data).await.map(|()| Put::Made);
            };
            let store = |key: &Key| {
                let put = Some((key.clone(), data.clone()));
                self.commit(Change { put, delete: replaced.to_vec(), basis, only_over: None })
            };
            let stored = match store(key).await {
                Ok(Outcome::KeyTaken) => {
                    let name = hex(&Sha256::digest(&data));
                    let kind = ChunkKind::Snapshot;
                    let other = Key::Chunk { document: *document, kind, name };
                    // Where that is taken, too, it is by the same data.
                    store(&other).await.map(|_| Put::MadeAs(other))
                }
                stored => stored.map(|_| Put::Made),
            };
            match stored {
                // Those who have the document in memory hear of it.
                Err(StorageError::Deleted(_)) if self.is_deleted(*document) => Ok(Put::Made),
                stored => stored,
            }
        }
        .boxed()
    }

    fn losses(&self) -> u64 {
        self.link.losses()
    }

    fn delete<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<(), StorageError>> {
        let deleted = self.commit(Change {
            put: None,
            delete: vec![key.clone()],
            basis: Basis { losses: self.losses(), generation: None },
            only_over: None,
        });
        async move { deleted.await.map(drop) }.boxed()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn now(&self) -> u64 {
        self.link.now()
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
