//! Checks everything that is stored: parses every chunk, by itself and with the other chunks of its
//! document.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use automerge::ReadDoc;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::{
    StorageError,
    documents::{Assembled, SeedSnapshot, assemble},
    local::{
        MAX_FILE,
        journal::{Journal, count_rows},
        quarantine,
        walk::{self, Found},
    },
    open::OpenedStorage,
    records::Quarantined,
};
use crate::{
    base::{document_id::DocumentId, folder, hex::hex, text::Count},
    document::{
        chunk::{Key, StoredChunk},
        load::{self, Loaded},
    },
};

/// Progress is reported after this many documents.
const PROGRESS_INTERVAL: usize = 64;

/// What a check reports while it runs. The summary is last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// How many documents were checked, and how many there are.
    Checked(usize, usize),
    /// A damage, or something notable.
    Finding(Finding),
    /// The check is complete.
    Summary(Summary),
    /// The check failed.
    Problem(String),
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The kind of finding.
    pub kind: Kind,
    /// The chunk, document or file.
    #[serde(rename = "place")]
    pub location: String,
    /// What is wrong with it.
    pub fault: String,
    /// Whether it was repaired.
    pub repaired: bool,
}

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A chunk that does not parse, or with which the document cannot be read. It is repaired by
    /// moving the chunk to quarantine.
    Broken,
    /// A document that JavaScript clients may be unable to read because of the numbers of its
    /// operations. It is served, and does not count as damaged.
    Numbering,
    /// Bytes that cannot be read.
    Unreadable,
    /// Chunks of a deleted document. It is repaired by deleting them.
    Deleted,
    /// Changes whose dependencies are missing. They are kept until these arrive; no damage.
    Orphaned,
    /// A document of which nothing can be served, because all its changes miss dependencies.
    Lost,
    /// A file that neither the relay nor automerge-repo has written. No damage.
    Foreign,
    /// A file in quarantine. No further damage.
    Quarantined,
}

impl Kind {
    /// Whether it is a damage, which needs repair.
    pub fn is_damage(self) -> bool {
        matches!(self, Self::Broken | Self::Unreadable | Self::Deleted | Self::Lost)
    }
}

/// The totals of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Documents that were checked.
    pub documents: usize,
    /// Their chunks.
    pub chunks: usize,
    /// The size of the chunks in bytes.
    pub bytes: u64,
    /// Uploaded bundles that were checked.
    pub bundles: usize,
    /// Damages that were found.
    pub damages: usize,
    /// Damages that were repaired.
    pub repaired: usize,
    /// Findings that are not damages.
    pub notes: usize,
}

/// Receives the lines of a check. Returns false to end the check.
pub trait Listener: FnMut(Line) -> bool {}
impl<T: FnMut(Line) -> bool> Listener for T {}

/// A check that is running.
pub struct Check<T> {
    listener: T,
    /// The totals so far.
    pub summary: Summary,
    /// Whether the listener has not ended the check.
    is_wanted: bool,
}

impl<T: Listener> Check<T> {
    fn new(listener: T) -> Self {
        Self { listener, summary: Summary::default(), is_wanted: true }
    }

    /// Reports a finding and counts it.
    pub fn report(
        &mut self,
        kind: Kind,
        location: impl ToString,
        fault: impl ToString,
        repaired: bool,
    ) {
        match kind.is_damage() {
            true => self.summary.damages += 1,
            false => self.summary.notes += 1,
        }
        self.summary.repaired += usize::from(repaired);
        let (location, fault) = (location.to_string(), fault.to_string());
        let finding = Finding { kind, location, fault, repaired };
        self.is_wanted &= (self.listener)(Line::Finding(finding));
    }

    /// Checks the chunks of a document. Returns the broken ones with the reasons, and the snapshot
    /// that must be stored before they are moved to quarantine.
    fn check_chunks(
        &mut self,
        document: DocumentId,
        chunks: Vec<StoredChunk>,
    ) -> (Vec<(Key, String)>, Option<SeedSnapshot>) {
        self.summary.documents += 1;
        self.summary.chunks += chunks.len();
        self.summary.bytes += chunks.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
        let Assembled { mut opened, broken, rescue, .. } = assemble(document, chunks, None);
        let missing = opened.doc.automerge().get_missing_deps(&[]).len();
        if missing > 0 {
            let fault = format!("{} that others depend on", Count(missing, "missing change"));
            let kind = if opened.heads.is_empty() { Kind::Lost } else { Kind::Orphaned };
            self.report(kind, document, fault, false);
        }
        if let Err(fault) = opened.doc.check_numbering() {
            self.report(Kind::Numbering, document, format!("its changes {fault}"), false);
        }
        (broken, rescue)
    }

    /// Lists the documents in the folder `root`, and reports foreign files.
    fn documents_of(&mut self, root: &Path) -> Result<Vec<DocumentId>, StorageError> {
        let mut documents = Vec::new();
        walk::walk(root, |found| {
            match found {
                Found::Document(document) => documents.push(document),
                Found::Foreign(path) => {
                    let fault = "not a file of this relay or of automerge-repo";
                    self.report(Kind::Foreign, path.display(), fault, false);
                }
            }
            true
        })?;
        Ok(documents)
    }

    /// Reports progress from time to time. Returns whether the check should continue.
    fn report_progress(&mut self, n: usize, all: usize) -> bool {
        if n.is_multiple_of(PROGRESS_INTERVAL) {
            self.is_wanted &= (self.listener)(Line::Checked(n, all));
        }
        self.is_wanted
    }

    /// Reports what is in quarantine.
    fn report_quarantine(&mut self, entries: Vec<Quarantined>) {
        for entry in entries {
            self.report(Kind::Quarantined, entry.path, entry.reason, false);
        }
    }

    fn end(mut self, result: Result<(), StorageError>) {
        let last = match result {
            Ok(()) => Line::Summary(self.summary),
            Err(error) => Line::Problem(error.to_string()),
        };
        (self.listener)(last);
    }
}

/// Checks the documents of `storage`, and then calls `check_more`. Blocks, so it must be called on
/// a blocking thread of `runtime`.
pub fn check_storage<T: Listener>(
    storage: &OpenedStorage,
    runtime: &Handle,
    repair: bool,
    listener: T,
    check_more: impl FnOnce(&mut Check<T>) -> Result<(), StorageError>,
) {
    let mut check = Check::new(listener);
    let mut result = check_documents(&mut check, storage, runtime, repair);
    if result.is_ok() && check.is_wanted {
        result = check_more(&mut check);
    }
    check.end(result);
}

fn check_documents(
    check: &mut Check<impl Listener>,
    storage: &OpenedStorage,
    runtime: &Handle,
    repair: bool,
) -> Result<(), StorageError> {
    let (store, mut documents) = (&storage.store, Vec::new());
    if let Some(journal) = &storage.journal {
        for fault in journal.faults() {
            check.report(Kind::Broken, "journal", fault, false);
        }
        // The journal is listed first: a document that moves meanwhile is then found in the
        // folders.
        documents = journal.documents();
        documents.extend(check.documents_of(journal.root())?);
    } else {
        store.list(&mut |listed| {
            documents.push(listed.document);
            true
        })?;
    }
    documents.sort_unstable();
    documents.dedup();
    let all = documents.len();
    for (n, document) in documents.into_iter().enumerate() {
        if !check.report_progress(n, all) {
            return Ok(());
        }
        if store.is_deleted(document) {
            let delete = |journal: &Arc<Journal>| runtime.block_on(journal.delete_again(document));
            let repaired = repair && storage.journal.as_ref().is_some_and(|j| delete(j).is_ok());
            check.report(
                Kind::Deleted,
                document,
                "it was deleted, but its folder still exists",
                repaired,
            );
            continue;
        }
        match runtime.block_on(store.load_document(document)) {
            Err(error) => {
                check.summary.documents += 1;
                check.report(Kind::Unreadable, document, error, false);
            }
            Ok(loaded) => {
                let (broken, rescue) = check.check_chunks(document, loaded.chunks);
                let put =
                    |SeedSnapshot { key, data }| runtime.block_on(store.put(&key, data)).is_ok();
                let repair = repair && rescue.is_none_or(put);
                for (key, reason) in broken {
                    let quarantine = || runtime.block_on(store.quarantine(&key, &reason));
                    let repaired = repair && quarantine().is_ok();
                    check.report(Kind::Broken, &key, &reason, repaired);
                }
            }
        }
    }
    check.report_quarantine(runtime.block_on(store.quarantined())?);
    Ok(())
}

/// Checks a folder in automerge-repo's layout without changing it. Blocks.
pub fn check_folder(root: &Path, listener: impl Listener) {
    let mut check = Check::new(listener);
    let result = check_files(&mut check, root);
    check.end(result);
}

/// A file with a copy of a document.
pub struct Copy<'a> {
    /// The file.
    pub file: PathBuf,
    /// The SHA-256 of its bytes when it was written.
    pub sha256: &'a str,
}

/// Checks the files of a backup. Blocks.
pub fn check_copies<'a>(copies: impl ExactSizeIterator<Item = Copy<'a>>, listener: impl Listener) {
    let mut check = Check::new(listener);
    let all = copies.len();
    for (n, Copy { file, sha256 }) in copies.enumerate() {
        if !check.report_progress(n, all) {
            break;
        }
        let data = match folder::read(&file, MAX_FILE) {
            Ok(data) => data,
            Err(error) => {
                check.report(Kind::Unreadable, file.display(), error, false);
                continue;
            }
        };
        check.summary.documents += 1;
        check.summary.chunks += 1;
        check.summary.bytes += data.len() as u64;
        if hex(&Sha256::digest(&data)) != *sha256 {
            let fault = "its content does not match its checksum";
            check.report(Kind::Broken, file.display(), fault, false);
        } else {
            for fault in faults_in(&data) {
                check.report(Kind::Broken, file.display(), fault, false);
            }
        }
    }
    check.end(Ok(()));
}

/// The faults of a document that consists of one chunk.
fn faults_in(data: &[u8]) -> Vec<String> {
    let Loaded { bad, .. } = load::load(&[(Key::StorageId, data.to_vec())]);
    bad.into_iter().map(|(_, fault)| fault).collect()
}

fn check_files(check: &mut Check<impl Listener>, root: &Path) -> Result<(), StorageError> {
    let in_journal = match count_rows(root) {
        Ok(0) => None,
        Ok(rows) => {
            let chunks = Count(rows, "unchecked chunk");
            Some(format!("the journal of this folder has {chunks}"))
        }
        Err(StorageError::InUse(_)) => Some(
            "the journal of this folder is in use, or was not closed; it was not checked"
                .to_owned(),
        ),
        Err(error) => return Err(error),
    };
    if let Some(fault) = in_journal {
        let advice = "`tonk-relay checkpoint` with that relay's config moves them into the folders";
        check.report(Kind::Foreign, ".journal", format!("{fault}: {advice}"), false);
    }
    let documents = check.documents_of(root)?;
    let all = documents.len();
    for (n, document) in documents.into_iter().enumerate() {
        if !check.report_progress(n, all) {
            return Ok(());
        }
        let chunks = match walk::read_document(root, document) {
            Ok(chunks) => chunks,
            Err(error) => {
                check.report(Kind::Unreadable, document, error, false);
                continue;
            }
        };
        for (key, reason) in check.check_chunks(document, chunks).0 {
            check.report(Kind::Broken, key, reason, false);
        }
    }
    check.report_quarantine(quarantine::list(root)?);
    Ok(())
}
