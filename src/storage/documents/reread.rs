//! Reading a document again that is in memory: what other relays have stored of it, and what a store
//! has left of it after it has lost something.

use tracing::{error, warn};

use super::{
    Assembled, Documents, RETRY, assemble,
    found_again::{Remaining, Unread},
};
use crate::{
    base::{backoff::Backoff, document_id::DocumentId},
    document::{
        chunk::Key,
        core::event::{Remains, StoredByAnother},
    },
    limits::turns::Payer,
    storage::{Basis, Failure, StorageError},
};

impl Documents {
    /// Reads what the store has of a document after it has lost something, and retries until that
    /// succeeds. What is in memory was read at `earlier`.
    pub(crate) async fn remains(&self, document: DocumentId, earlier: Basis) -> Remaining {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.try_remains(document, earlier).await {
                Ok(remaining) => return remaining,
                Err(error) => wait(document, &error, &mut backoff).await,
            }
        }
    }

    async fn try_remains(
        &self,
        document: DocumentId,
        earlier: Basis,
    ) -> Result<Remaining, StorageError> {
        // Many rooms read at the same time, and each document is in memory twice.
        let _turn = self.reading.take(Payer::Document(document)).await;
        let losses = self.store.losses();
        let loaded = self.timed("load", self.store.load_document(document)).await?;
        if loaded.is_deleted || Some(loaded.generation) > earlier.generation {
            return Ok(Remaining::Deleted);
        }
        let basis = Basis { losses, generation: Some(loaded.generation) };
        let assemble = move || {
            let Assembled { mut opened, .. } = assemble(document, loaded.chunks, None);
            Remains {
                chunks: opened.chunks.into_iter().map(|(key, data)| (key, data.len())).collect(),
                has_orphans: opened.doc.has_orphans(),
                heads: opened.heads,
            }
        };
        Ok(Remaining::Stored(blocking(document, assemble).await?, basis))
    }

    /// Reads what is stored of a document besides the chunks that are `known`, and retries until
    /// that succeeds. What is in memory was read at `earlier`.
    pub(crate) async fn unread(
        &self,
        document: DocumentId,
        known: Vec<Key>,
        earlier: Basis,
    ) -> Unread {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            match self.try_unread(document, known.clone(), earlier).await {
                Ok(unread) => return unread,
                Err(error) => wait(document, &error, &mut backoff).await,
            }
        }
    }

    async fn try_unread(
        &self,
        document: DocumentId,
        known: Vec<Key>,
        earlier: Basis,
    ) -> Result<Unread, StorageError> {
        let _turn = self.reading.take(Payer::Document(document)).await;
        let unknown = self.timed("load", self.store.load_unknown(document, known)).await?;
        let (loaded, gone) = (unknown.loaded, unknown.gone);
        if loaded.is_deleted || Some(loaded.generation) > earlier.generation {
            return Ok(Unread::Outdated);
        }
        let (max, chunks) = (self.max(), loaded.chunks);
        let checked = blocking(document, move || (max.check_chunks(&chunks), chunks)).await?;
        Ok(match checked {
            (Ok(unpacked), chunks) => Unread::Stored(StoredByAnother { chunks, unpacked }, gone),
            (Err(limit), _) => {
                error!(%document, "what other relays have stored is too large: {limit}");
                Unread::Outdated
            }
        })
    }
}

async fn wait(document: DocumentId, error: &StorageError, backoff: &mut Backoff) {
    warn!(%document, "cannot read the document again; retrying: {error}");
    tokio::time::sleep(backoff.pause()).await;
}

/// Does what takes processor time.
async fn blocking<T: Send + 'static>(
    document: DocumentId,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StorageError> {
    let failed = |error| StorageError::Unavailable(Failure::new("load", document, error));
    tokio::task::spawn_blocking(work).await.map_err(failed)
}
