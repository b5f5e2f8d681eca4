//! Documents that are merged with what is stored, one after the other, and what became of them.

use hyper::Method;
use serde::Serialize;

use super::{
    error::CliError,
    output::{Refused, show},
    relay::Relay,
};
use crate::{
    admin::{
        client::{self, AdminError},
        storage::documents::Brought,
    },
    base::document_id::DocumentId,
    document::compare::Merged,
};

/// What became of documents that were merged with what is stored.
#[derive(Debug, Default, Serialize)]
pub(super) struct MergeAnswer {
    pub(super) documents: usize,
    pub(super) new: usize,
    /// Those that brought changes which the stored ones lacked.
    pub(super) newer: usize,
    /// Those that were there already.
    pub(super) contained: usize,
    /// Those that are deleted here, and stay so.
    pub(super) deleted: usize,
    /// What could not be taken over, and why.
    pub(super) refused: Vec<Refused>,
    /// Whether the storage id was taken over.
    pub(super) storage_id: bool,
    pub(super) bundles: usize,
    /// Documents that are deleted here now, as in the backup.
    pub(super) tombstones: Vec<DocumentId>,
    /// Where what was stored before is now.
    pub(super) replaced: Option<String>,
    /// And the bundles.
    pub(super) replaced_bundles: Option<String>,
    pub(super) dry_run: bool,
    #[serde(skip)]
    waiting: Vec<(DocumentId, Vec<u8>)>,
    /// Their size.
    #[serde(skip)]
    bytes: usize,
}

/// So many documents are sent at a time, or fewer of this size together: they become durable together.
const TOGETHER: usize = 256;
const TOGETHER_BYTES: usize = 8 << 20;

impl MergeAnswer {
    pub(super) fn new(dry_run: bool) -> Self {
        Self { dry_run, ..Self::default() }
    }

    pub(super) fn refuse(&mut self, place: impl ToString, reason: impl ToString) {
        self.refused.push(Refused { place: place.to_string(), reason: reason.to_string() });
    }

    /// Merge a document, when there are enough of them to be sent together.
    pub(super) fn merge(
        &mut self,
        relay: &mut Relay,
        document: DocumentId,
        data: Vec<u8>,
    ) -> Result<(), CliError> {
        self.bytes += data.len();
        self.waiting.push((document, data));
        if self.waiting.len() >= TOGETHER || self.bytes >= TOGETHER_BYTES {
            self.merge_rest(relay)?;
        }
        Ok(())
    }

    /// Merge those that have not been sent yet.
    pub(super) fn merge_rest(&mut self, relay: &mut Relay) -> Result<(), CliError> {
        self.bytes = 0;
        let waiting = std::mem::take(&mut self.waiting);
        let documents: Vec<DocumentId> = waiting.iter().map(|(document, _)| *document).collect();
        let brought = waiting
            .into_iter()
            .map(|(document, data)| Brought { document: document.to_string(), data });
        let brought = minicbor::to_vec(brought.collect::<Vec<_>>()).unwrap_or_default();
        let path = format!("/documents?dry_run={}", self.dry_run);
        let answer = relay.fetch(Method::POST, &path, brought.into())?;
        let merged: Vec<Merged> = client::parse(&answer)?;
        if merged.len() != documents.len() {
            let problem = format!("{} answers for {} documents", merged.len(), documents.len());
            return Err(AdminError::Answer(problem).into());
        }
        for (document, merged) in documents.into_iter().zip(merged) {
            self.count(document, merged);
        }
        Ok(())
    }

    fn count(&mut self, document: DocumentId, merged: Merged) {
        self.documents += 1;
        match merged {
            Merged::New => self.new += 1,
            Merged::Newer => self.newer += 1,
            Merged::Contained => self.contained += 1,
            // An operator's import takes blocked ones as well; this is for uploads.
            Merged::Deleted | Merged::Blocked => self.deleted += 1,
            Merged::Unrelated => self.refuse(
                document,
                "a document of this id with another history is stored here; that one stays",
            ),
            Merged::TooLarge => {
                self.refuse(document, "it would be larger than storage.max_document allows")
            }
            Merged::NoSpace => {
                self.refuse(document, "there is no room for new documents (storage.min_free)");
            }
            Merged::Refused(reason) | Merged::Failed(reason) => self.refuse(document, reason),
        }
    }

    pub(super) fn is_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Print it; an error if something was refused.
    pub(super) fn end(&self, json: bool) -> Result<(), CliError> {
        show(json, self, || self.describe());
        if self.is_refused() { Err(CliError::Said(1)) } else { Ok(()) }
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        if let Some(replaced) = &self.replaced {
            text.push_str(&format!("what was stored before is in {replaced}\n"));
        }
        if let Some(bundles) = &self.replaced_bundles {
            text.push_str(&format!("the bundles of before are in {bundles}\n"));
        }
        for document in &self.tombstones {
            text.push_str(&format!("deleted here now, as in the backup: {document}\n"));
        }
        for Refused { place, reason } in &self.refused {
            text.push_str(&format!("refused: {place}: {reason}\n"));
        }
        let would = if self.dry_run { "this would be done: " } else { "" };
        text.push_str(&format!(
            "{would}{} documents: {} new, {} with new changes, {} there already, {} deleted here, {} refused; {} bundles, {} tombstones; the storage id is {}\n",
            self.documents,
            self.new,
            self.newer,
            self.contained,
            self.deleted,
            self.refused.len(),
            self.bundles,
            self.tombstones.len(),
            if self.storage_id { "taken over" } else { "this relay's own" },
        ));
        text
    }
}
