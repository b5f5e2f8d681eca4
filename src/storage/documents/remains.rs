//! What a store has left of a document after it has lost something.

use tracing::warn;

use super::{Assembled, Documents, RETRY, assemble};
use crate::{
    base::{backoff::Backoff, document_id::DocumentId},
    document::core::event::Remains,
    limits::turns::Payer,
    storage::{Failure, StorageError},
};

impl Documents {
    /// Reads what the store has of a document after it has lost something, and retries until that
    /// succeeds. Also returns how often it had lost something before.
    pub(crate) async fn remains(&self, document: DocumentId) -> (Remains, u64) {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            let losses = self.store.losses();
            match self.read_remains(document).await {
                Ok(remains) => return (remains, losses),
                Err(error) => {
                    warn!(%document, "cannot read what the store has left; retrying: {error}");
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn read_remains(&self, document: DocumentId) -> Result<Remains, StorageError> {
        // Many rooms read at the same time, and each document is in memory twice.
        let payer = Payer::Document(document);
        let _turn = self.reading.take(payer).await;
        let stored = self.timed("load", self.store.load_document(document)).await?;
        let assembling = tokio::task::spawn_blocking(move || {
            let Assembled { mut opened, .. } = assemble(document, stored, None);
            Remains {
                chunks: opened.chunks.into_iter().map(|(key, data)| (key, data.len())).collect(),
                has_orphans: opened.doc.has_orphans(),
                heads: opened.heads,
            }
        });
        assembling
            .await
            .map_err(|error| StorageError::Unavailable(Failure::new("load", document, error)))
    }
}
