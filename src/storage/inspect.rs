//! What is stored of one document, for the operator.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{
    Failure, StorageError,
    documents::assemble,
    records::{Block, Quarantined},
    store::Store,
};
use crate::{base::document_id::DocumentId, document::chunk::Key};

/// What is stored of a document.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// The document's id.
    pub document: String,
    /// Its heads, as hexadecimal hashes.
    pub heads: Vec<String>,
    /// How many changes it has.
    pub changes: usize,
    /// How many actors made them.
    pub actors: usize,
    /// When the last change was made by its author's clock, in RFC 3339, if any change has a time.
    pub last_change: Option<String>,
    /// The size of its chunks, in bytes.
    pub bytes: usize,
    /// Its chunks.
    pub chunks: Vec<Chunk>,
    /// Its chunks in quarantine.
    pub quarantined: Vec<Quarantined>,
    /// The block, if an operator has blocked it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub blocked: Option<Block>,
}

/// One stored chunk.
#[derive(Debug, Serialize, Deserialize)]
pub struct Chunk {
    /// Its key: document, kind and name, as in the folders.
    pub key: String,
    /// Its size in bytes.
    pub bytes: usize,
    /// Why it does not parse or fit, if so.
    pub fault: Option<String>,
}

impl Inspection {
    /// Inspects a document in `store`. Returns nothing if there is nothing of it. Changes nothing.
    ///
    /// # Errors
    /// Stored bytes cannot be read.
    pub async fn of(store: &dyn Store, document: DocumentId) -> Result<Option<Self>, StorageError> {
        let folder = format!("{}/", document.folder());
        let mut quarantined = store.quarantined().await?;
        quarantined.retain(|entry| entry.path.starts_with(&folder));
        let mut blocked = None;
        if store.is_blocked(document) {
            blocked = store.blocks().await?.into_iter().find(|block| block.document == document);
        }
        let stored = store.load_document(document).await?.chunks;
        if stored.is_empty() && quarantined.is_empty() && blocked.is_none() {
            return Ok(None);
        }
        let inspected = tokio::task::spawn_blocking(move || {
            Self::from_chunks(document, stored, quarantined, blocked)
        });
        let failed = |error| StorageError::Unavailable(Failure::new("load", document, error));
        inspected.await.map(Some).map_err(failed)
    }

    fn from_chunks(
        document: DocumentId,
        stored: Vec<(Key, Vec<u8>)>,
        quarantined: Vec<Quarantined>,
        blocked: Option<Block>,
    ) -> Self {
        let sizes: Vec<(Key, usize)> =
            stored.iter().map(|(key, data)| (key.clone(), data.len())).collect();
        let mut assembled = assemble(document, stored, None);
        let changes = assembled.opened.doc.automerge().get_changes_meta(&[]);
        let actors: std::collections::HashSet<_> =
            changes.iter().map(|change| change.actor.clone()).collect();
        let last = changes.iter().map(|change| change.timestamp).max().filter(|last| *last > 0);
        let chunks = sizes.iter().map(|(key, bytes)| {
            let fault = assembled.broken.iter().find(|(broken, _)| broken == key);
            let fault = fault.map(|(_, reason)| reason.clone());
            Chunk { key: key.to_string(), bytes: *bytes, fault }
        });
        Self {
            document: document.to_string(),
            heads: assembled.opened.heads.iter().map(ToString::to_string).collect(),
            changes: changes.len(),
            actors: actors.len(),
            last_change: last.and_then(rfc3339),
            bytes: sizes.iter().map(|(_, bytes)| bytes).sum(),
            chunks: chunks.collect(),
            quarantined,
            blocked,
        }
    }
}

/// Formats seconds since 1970, if the time is between 1970 and 9999.
fn rfc3339(seconds: i64) -> Option<String> {
    /// The end of the year 9999, the last that humantime formats.
    const LATEST: u64 = 253_402_300_799;
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds <= LATEST)?;
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?;
    Some(humantime::format_rfc3339_seconds(time).to_string())
}

#[cfg(test)]
mod tests {
    use automerge::{Automerge, ROOT, transaction::Transactable};

    use super::*;
    use crate::{
        config::{self, Config},
        document::chunk::ChunkKind,
        observe::metrics::Metrics,
        storage::{ChunkStore, local::journal::Journal},
    };

    #[tokio::test]
    async fn an_inspection_lists_the_chunks_and_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let config =
            config::Storage { path: folder.path().to_owned(), ..Config::default().storage };
        let metrics = Metrics::new().expect("metrics").storage;
        let store = Journal::open(&config, metrics).expect("opens");
        let document = DocumentId::from_bytes([7; 16]);
        let nothing = Inspection::of(&store, document).await.expect("reads");
        assert!(nothing.is_none());

        let mut doc = Automerge::new();
        for time in [1_700_000_000, 1_600_000_000] {
            let mut edit = doc.transaction();
            edit.put(ROOT, "time", time).expect("an edit");
            edit.commit_with(automerge::transaction::CommitOptions::default().with_time(time));
        }
        let key = |name: &str| Key::Chunk {
            document,
            kind: ChunkKind::Incremental,
            name: name.to_owned(),
        };
        store.put(&key("good"), doc.save().into()).await.expect("puts");
        store.put(&key("garbage"), "garbage".into()).await.expect("puts");
        for _ in 0..2 {
            let found = Inspection::of(&store, document).await.expect("reads").expect("is there");
            assert_eq!(found.heads, [doc.get_heads()[0].to_string()]);
            assert_eq!((found.changes, found.actors), (2, 1));
            assert_eq!(found.last_change.as_deref(), Some("2023-11-14T22:13:20Z"));
            assert_eq!(found.bytes, doc.save().len() + 7);
            let faults = found.chunks.iter().filter(|chunk| chunk.fault.is_some());
            let faults: Vec<&String> = faults.map(|chunk| &chunk.key).collect();
            assert_eq!(faults, [&key("garbage").to_string()]);
        }
    }

    #[test]
    fn times_outside_the_calendar_are_left_out() {
        assert_eq!(rfc3339(0).as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(rfc3339(-1), None);
        assert_eq!(rfc3339(i64::MAX), None);
    }
}
