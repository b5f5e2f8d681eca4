//! What a backup did.

use std::path::Path;

use serde::Serialize;

use crate::{
    base::document_id::DocumentId,
    cli::{backup_folder::BackupIndex, output::Refused},
};

/// What a backup did.
#[derive(Debug, Default, Serialize)]
pub(super) struct BackupAnswer {
    pub(super) documents: usize,
    pub(super) copied: usize,
    pub(super) unchanged: usize,
    pub(super) bytes: u64,
    pub(super) bundles: usize,
    pub(super) tombstones: usize,
    /// Documents of an earlier backup that the relay does not have any more, although nobody deleted them there.
    pub(super) kept: Vec<DocumentId>,
    /// And bundles.
    pub(super) kept_bundles: Vec<DocumentId>,
    /// What could not be copied as it is, and why. An earlier copy of it stays.
    pub(super) failed: Vec<Refused>,
    /// Files of the earlier backup whose bytes are not those that were written. What the relay still has is copied
    /// again.
    pub(super) damaged: Vec<String>,
}

impl BackupAnswer {
    /// Returns whether the copy of a document is as it was written, and records it if it is damaged.
    pub(super) fn check_copy(
        &mut self,
        backup: &BackupIndex,
        folder: &Path,
        document: DocumentId,
    ) -> bool {
        let damaged = backup.damaged_copy(folder, document);
        self.damaged.extend(damaged.iter().map(|file| file.display().to_string()));
        damaged.is_none()
    }

    pub(super) fn fail(&mut self, place: impl ToString, reason: impl ToString) {
        self.failed.push(Refused { place: place.to_string(), reason: reason.to_string() });
    }
}

pub(super) fn describe(answer: &BackupAnswer) -> String {
    let mut text = format!(
        "{} documents: {} copied ({} bytes), {} unchanged; {} bundles, {} tombstones\n",
        answer.documents,
        answer.copied,
        answer.bytes,
        answer.unchanged,
        answer.bundles,
        answer.tombstones
    );
    for document in &answer.kept {
        text.push_str(&format!("kept, although the relay has it no more: {document}\n"));
    }
    for bundle in &answer.kept_bundles {
        text.push_str(&format!("kept, although the relay has it no more: bundle {bundle}\n"));
    }
    for file in &answer.damaged {
        text.push_str(&format!("an earlier copy is not as it was written: {file}\n"));
    }
    for Refused { place, reason } in &answer.failed {
        text.push_str(&format!("not copied: {place}: {reason}\n"));
    }
    text
}
