//! What a backup did, as its command prints it.

use serde::Serialize;

use crate::{
    base::{document_id::DocumentId, text::Count},
    cli::output::Failure,
};

/// What a backup did.
#[derive(Debug, Default, Serialize)]
pub(super) struct BackupReport {
    pub(super) documents: usize,
    pub(super) copied: usize,
    pub(super) unchanged: usize,
    /// Size of the copied documents.
    pub(super) bytes: u64,
    pub(super) bundles: usize,
    pub(super) tombstones: usize,
    /// Documents of an earlier backup that the relay no longer has, although they were not deleted
    /// there.
    pub(super) kept: Vec<DocumentId>,
    /// The same for bundles.
    pub(super) kept_bundles: Vec<DocumentId>,
    /// What could not be copied, or not completely. Its earlier copy is kept.
    pub(super) failed: Vec<Failure>,
    /// Files of the earlier backup whose content has changed. What the relay still has is copied
    /// again.
    pub(super) damaged: Vec<String>,
}

impl BackupReport {
    /// Records that something could not be copied, or not completely.
    pub(super) fn fail(&mut self, place: impl ToString, reason: impl ToString) {
        self.failed.push(Failure::new(place, reason));
    }

    /// Whether everything was copied, and the relay still has all that earlier backups had.
    pub(super) fn is_whole(&self) -> bool {
        self.failed.is_empty() && self.kept.is_empty() && self.kept_bundles.is_empty()
    }
}

pub(super) fn describe(report: &BackupReport) -> String {
    let mut text = format!(
        "{}: {} copied ({}), {} unchanged; {}, {}\n",
        Count(report.documents, "document"),
        report.copied,
        Count(report.bytes, "byte"),
        report.unchanged,
        Count(report.bundles, "bundle"),
        Count(report.tombstones, "tombstone"),
    );
    for document in &report.kept {
        text.push_str(&format!("kept, although the relay no longer has it: {document}\n"));
    }
    for bundle in &report.kept_bundles {
        text.push_str(&format!("kept, although the relay no longer has it: bundle {bundle}\n"));
    }
    for file in &report.damaged {
        text.push_str(&format!("an earlier copy has changed on the disk: {file}\n"));
    }
    for Failure { place, reason } in &report.failed {
        text.push_str(&format!("not copied: {place}: {reason}\n"));
    }
    text
}
