//! Documents that are merged with what is stored, one after the other, and what became of them.

use serde::Serialize;

use super::*;
use crate::{admin::client, storage::documents::Merged};

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
    pub(super) tombstones: usize,
    /// Where what was stored before is now.
    pub(super) replaced: Option<String>,
    pub(super) dry_run: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Refused {
    place: String,
    reason: String,
}

impl MergeAnswer {
    pub(super) fn refuse(&mut self, place: impl ToString, reason: impl ToString) {
        self.refused.push(Refused { place: place.to_string(), reason: reason.to_string() });
    }

    pub(super) fn merge(
        &mut self,
        relay: &mut Relay,
        document: DocumentId,
        data: Bytes,
    ) -> Result<(), CliError> {
        self.documents += 1;
        let path = format!("/documents/{document}/content?dry_run={}", self.dry_run);
        let answer = relay.fetch(Method::POST, &path, data)?;
        match client::parse(&answer)? {
            Merged::New => self.new += 1,
            Merged::Newer => self.newer += 1,
            Merged::Contained => self.contained += 1,
            Merged::Deleted => self.deleted += 1,
            Merged::Unrelated => self.refuse(
                document,
                "a document of this id with another history is stored here; that one stays",
            ),
            Merged::NoSpace => {
                self.refuse(document, "there is no room for new documents (storage.min_free)");
            }
            Merged::Broken(reason) => self.refuse(document, reason),
        }
        Ok(())
    }

    /// Print it; an error if something was refused.
    pub(super) fn end(&self, json: bool) -> Result<(), CliError> {
        show(json, self, || self.describe());
        if self.refused.is_empty() { Ok(()) } else { Err(CliError::Said(1)) }
    }

    fn describe(&self) -> String {
        let mut text = String::new();
        if let Some(replaced) = &self.replaced {
            text.push_str(&format!("what was stored before is in {replaced}\n"));
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
            self.tombstones,
            if self.storage_id { "taken over" } else { "this relay's own" },
        ));
        text
    }
}
