//! Merges documents with what is stored, for `restore` and `import`, and reports what became of
//! them.

use hyper::Method;
use serde::Serialize;

use super::{
    error::CliError,
    output::{Failure, show},
    relay::Relay,
};
use crate::{
    admin::{
        client::{self, AdminError},
        storage::documents::DocumentToMerge,
    },
    base::{document_id::DocumentId, text::Count},
    document::merge::Merged,
};

/// Documents in a batch. Those of one batch become durable together.
const BATCH_DOCUMENTS: usize = 256;
/// Bytes after which a batch is sent, even with fewer documents.
const BATCH_BYTES: usize = 8 << 20;

/// What became of documents that were merged with the stored ones.
#[derive(Debug, Default, Serialize)]
pub(super) struct MergeReport {
    pub(super) documents: usize,
    pub(super) new: usize,
    /// Those that brought changes which the stored ones lacked.
    pub(super) newer: usize,
    /// Those whose changes were all stored already.
    pub(super) contained: usize,
    /// Those that are deleted in this storage; they stay deleted.
    pub(super) deleted: usize,
    /// What could not be taken over, and why.
    pub(super) refused: Vec<Failure>,
    /// Whether the storage id was taken over.
    pub(super) storage_id: bool,
    pub(super) bundles: usize,
    /// Documents that were deleted, because they are deleted in the backup.
    pub(super) tombstones: Vec<DocumentId>,
    /// Where the documents that were stored before are now.
    pub(super) replaced: Option<String>,
    /// Where the bundles that were stored before are now.
    pub(super) replaced_bundles: Option<String>,
    pub(super) dry_run: bool,
}

impl MergeReport {
    pub(super) fn refuse(&mut self, place: impl ToString, reason: impl ToString) {
        self.refused.push(Failure::new(place, reason));
    }

    pub(super) fn has_refusals(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Prints the report, and fails if something was refused.
    pub(super) fn finish(&self, json: bool) -> Result<(), CliError> {
        show(json, self, || self.describe());
        if self.has_refusals() { Err(CliError::Reported(1)) } else { Ok(()) }
    }

    fn count(&mut self, document: DocumentId, merged: Merged) {
        self.documents += 1;
        match merged {
            Merged::New => self.new += 1,
            Merged::Newer => self.newer += 1,
            Merged::Contained => self.contained += 1,
            // Only uploads are refused for a block; an operator's import is merged with blocked
            // documents.
            Merged::Deleted | Merged::Blocked => self.deleted += 1,
            Merged::Unrelated => self.refuse(
                document,
                "a document with this id and another history is stored; keeping the stored one",
            ),
            Merged::TooLarge => {
                self.refuse(document, "it would be larger than storage.max_document allows")
            }
            Merged::NoSpace => {
                self.refuse(document, "less than storage.min_free is free");
            }
            Merged::Refused(reason) | Merged::Failed(reason) => self.refuse(document, reason),
        }
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        if let Some(replaced) = &self.replaced {
            text.push_str(&format!("the previously stored documents are in {replaced}\n"));
        }
        if let Some(bundles) = &self.replaced_bundles {
            text.push_str(&format!("the previous bundles are in {bundles}\n"));
        }
        for document in &self.tombstones {
            text.push_str(&format!("deleted, as in the backup: {document}\n"));
        }
        for Failure { place, reason } in &self.refused {
            text.push_str(&format!("refused: {place}: {reason}\n"));
        }
        let would = if self.dry_run { "dry run, nothing is changed: " } else { "" };
        text.push_str(&format!(
            "{would}{}: {} new, {} with new changes, {} already stored, {} deleted here, \
             {} refused; {}, {}; the storage id is {}\n",
            Count(self.documents, "document"),
            self.new,
            self.newer,
            self.contained,
            self.deleted,
            self.refused.len(),
            Count(self.bundles, "bundle"),
            Count(self.tombstones.len(), "tombstone"),
            if self.storage_id { "taken over" } else { "this relay's own" },
        ));
        text
    }
}

/// Sends documents to the relay in batches.
pub(super) struct Merger {
    pub(super) report: MergeReport,
    batch: Vec<(DocumentId, Vec<u8>)>,
    batch_bytes: usize,
}

impl Merger {
    pub(super) fn new(dry_run: bool) -> Self {
        let report = MergeReport { dry_run, ..MergeReport::default() };
        Self { report, batch: Vec::new(), batch_bytes: 0 }
    }

    /// Adds a document to the batch, and sends the batch if it is full.
    pub(super) fn merge(
        &mut self,
        relay: &mut Relay,
        document: DocumentId,
        data: Vec<u8>,
    ) -> Result<(), CliError> {
        self.batch_bytes += data.len();
        self.batch.push((document, data));
        if self.batch.len() >= BATCH_DOCUMENTS || self.batch_bytes >= BATCH_BYTES {
            self.flush(relay)?;
        }
        Ok(())
    }

    /// Sends the documents that are still in the batch.
    pub(super) fn flush(&mut self, relay: &mut Relay) -> Result<(), CliError> {
        self.batch_bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        let documents: Vec<DocumentId> = batch.iter().map(|(document, _)| *document).collect();
        let batch = batch
            .into_iter()
            .map(|(document, data)| DocumentToMerge { document: document.to_string(), data });
        let batch = minicbor::to_vec(batch.collect::<Vec<_>>()).unwrap_or_default();
        let path = format!("/documents?dry_run={}", self.report.dry_run);
        let answer = relay.fetch(Method::POST, &path, batch.into())?;
        let merged: Vec<Merged> = client::parse(&answer)?;
        if merged.len() != documents.len() {
            let problem = format!(
                "{} for {}",
                Count(merged.len(), "answer"),
                Count(documents.len(), "document")
            );
            return Err(AdminError::Answer(problem).into());
        }
        for (document, merged) in documents.into_iter().zip(merged) {
            self.report.count(document, merged);
        }
        Ok(())
    }
}
