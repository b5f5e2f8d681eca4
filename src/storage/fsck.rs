//! Checks everything that is stored: every chunk is parsed, by itself and with the others of its document, and every
//! uploaded bundle is read.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::path::{Path, PathBuf};

use automerge::ReadDoc;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use super::{
    ChunkStore, StorageError,
    documents::{Checked, SeedSnapshot, check},
    local::{
        MAX_FILE,
        journal::{Journal, count_rows},
        quarantine,
        walk::{self, Found},
    },
};
use crate::{
    base::{document_id::DocumentId, folder, hex::hex},
    document::{
        chunk::{Key, StoredChunk},
        load::{self, Loaded},
    },
};

/// After so many documents it says how far it is.
const EVERY: usize = 64;

/// What a check tells while it goes on; the summary comes last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// So many documents are checked, of so many.
    Checked(usize, usize),
    /// Something is amiss, or notable.
    Finding(Finding),
    /// All is checked.
    Summary(Summary),
    /// The check could not go on.
    Problem(String),
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// The chunk, document or file.
    pub place: String,
    /// What is the matter with it.
    pub fault: String,
    /// Whether it was put right.
    pub repaired: bool,
}

/// What a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A chunk that does not parse, or with which the document cannot be read. Repaired by moving it to quarantine.
    Broken,
    /// A document that JavaScript clients may be unable to read, for how its operations are numbered. It is served: no damage.
    Numbering,
    /// Bytes that cannot be read.
    Unreadable,
    /// Chunks of a document that was deleted. Repaired by deleting them.
    Deleted,
    /// Changes that build on others which are not here. They wait for those: no damage.
    Orphaned,
    /// A document of which nothing can be served: all its changes wait for others.
    Lost,
    /// A file that is none of ours or automerge-repo's. No damage.
    Foreign,
    /// A file in quarantine. No further damage.
    Quarantined,
}

impl Kind {
    /// Whether it is a damage that wants repair.
    pub fn is_damage(self) -> bool {
        matches!(self, Self::Broken | Self::Unreadable | Self::Deleted | Self::Lost)
    }
}

/// The figures of a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Documents.
    pub documents: usize,
    /// Their chunks.
    pub chunks: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Uploaded bundles.
    pub bundles: usize,
    /// Damages found.
    pub damages: usize,
    /// Damages put right.
    pub repaired: usize,
    /// Findings that are no damage.
    pub notes: usize,
}

/// Where a check's lines go. False: nobody listens any more.
pub trait Tell: FnMut(Line) -> bool {}
impl<T: FnMut(Line) -> bool> Tell for T {}

/// A check under way.
pub struct Check<T> {
    tell: T,
    /// The figures so far.
    pub summary: Summary,
    goes_on: bool,
}

impl<T: Tell> Check<T> {
    fn new(tell: T) -> Self {
        Self { tell, summary: Summary::default(), goes_on: true }
    }

    /// Reports a finding and counts it.
    pub fn find(&mut self, kind: Kind, place: impl ToString, fault: impl ToString, repaired: bool) {
        match kind.is_damage() {
            true => self.summary.damages += 1,
            false => self.summary.notes += 1,
        }
        self.summary.repaired += usize::from(repaired);
        let (place, fault) = (place.to_string(), fault.to_string());
        let finding = Finding { kind, place, fault, repaired };
        self.goes_on &= (self.tell)(Line::Finding(finding));
    }

    /// Look at a document's chunks. Returns those that are broken, and why; and what has to be stored before they go.
    fn look(
        &mut self,
        document: DocumentId,
        chunks: Vec<StoredChunk>,
    ) -> (Vec<(Key, String)>, Option<SeedSnapshot>) {
        self.summary.documents += 1;
        self.summary.chunks += chunks.len();
        self.summary.bytes += chunks.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
        let Checked { mut opened, broken, rescue, .. } = check(document, chunks, None);
        let missing = opened.doc.automerge().get_missing_deps(&[]).len();
        if missing > 0 {
            let fault = format!("changes wait for {missing} others that are not here");
            let has_nothing_else = opened.heads.is_empty();
            let kind = if has_nothing_else { Kind::Lost } else { Kind::Orphaned };
            self.find(kind, document, fault, false);
        }
        if let Err(fault) = opened.doc.check_numbering() {
            self.find(Kind::Numbering, document, format!("its changes {fault}"), false);
        }
        (broken, rescue)
    }

    /// The documents below `root`; what is foreign there is noted.
    fn documents_of(&mut self, root: &Path) -> Result<Vec<DocumentId>, StorageError> {
        let mut documents = Vec::new();
        walk::walk(root, |found| {
            match found {
                Found::Document(document) => documents.push(document),
                Found::Foreign(path) => {
                    let fault = "not of this relay's, nor of automerge-repo's";
                    self.find(Kind::Foreign, path.display(), fault, false);
                }
            }
            true
        })?;
        Ok(documents)
    }

    /// Say now and then how far it is. False if nobody listens any more.
    fn is_at(&mut self, n: usize, all: usize) -> bool {
        if n.is_multiple_of(EVERY) {
            self.goes_on &= (self.tell)(Line::Checked(n, all));
        }
        self.goes_on
    }

    fn quarantine(&mut self, root: &Path) -> Result<(), StorageError> {
        for entry in quarantine::list(root)? {
            self.find(Kind::Quarantined, entry.path, entry.reason, false);
        }
        Ok(())
    }

    fn end(mut self, result: Result<(), StorageError>) {
        let last = match result {
            Ok(()) => Line::Summary(self.summary),
            Err(error) => Line::Problem(error.to_string()),
        };
        (self.tell)(last);
    }
}

/// Checks all that `journal` and its folders hold, and then what `check_more` checks. Blocks; to be
/// called on a thread of `runtime` that may.
pub fn check_storage<T: Tell>(
    journal: &Journal,
    runtime: &Handle,
    repair: bool,
    tell: T,
    check_more: impl FnOnce(&mut Check<T>) -> Result<(), StorageError>,
) {
    let mut check = Check::new(tell);
    let mut result = check_documents(&mut check, journal, runtime, repair);
    if result.is_ok() && check.goes_on {
        result = check_more(&mut check);
    }
    check.end(result);
}

fn check_documents(
    check: &mut Check<impl Tell>,
    journal: &Journal,
    runtime: &Handle,
    repair: bool,
) -> Result<(), StorageError> {
    for fault in journal.faults() {
        check.find(Kind::Broken, "journal", fault, false);
    }
    // Those of the journal first: one that moves meanwhile is found in the folders.
    let mut documents = journal.documents();
    documents.extend(check.documents_of(journal.root())?);
    documents.sort_unstable();
    documents.dedup();
    let all = documents.len();
    for (n, document) in documents.into_iter().enumerate() {
        if !check.is_at(n, all) {
            return Ok(());
        }
        if journal.is_deleted(document) {
            let again = || runtime.block_on(journal.delete_again(document));
            let repaired = repair && again().is_ok();
            check.find(Kind::Deleted, document, "it was deleted, and its folder is here", repaired);
            continue;
        }
        match runtime.block_on(journal.load_document(document)) {
            Err(error) => {
                check.summary.documents += 1;
                check.find(Kind::Unreadable, document, error, false);
            }
            Ok(chunks) => {
                let (broken, rescue) = check.look(document, chunks);
                let put =
                    |SeedSnapshot { key, data }| runtime.block_on(journal.put(&key, data)).is_ok();
                let repair = repair && rescue.is_none_or(put);
                for (key, reason) in broken {
                    let aside = || runtime.block_on(journal.quarantine(&key, &reason));
                    let repaired = repair && aside().is_ok();
                    check.find(Kind::Broken, &key, &reason, repaired);
                }
            }
        }
    }
    check.quarantine(journal.root())
}

/// Check a folder in automerge-repo's layout without changing it. Blocks.
pub fn check_folder(root: &Path, tell: impl Tell) {
    let mut check = Check::new(tell);
    let result = check_files(&mut check, root);
    check.end(result);
}

/// A file with a copy of a document.
pub struct Copy<'a> {
    /// The file.
    pub file: PathBuf,
    /// The SHA-256 of what was written into it.
    pub sha256: &'a str,
}

/// Check the files of a backup. Blocks.
pub fn check_copies<'a>(copies: impl ExactSizeIterator<Item = Copy<'a>>, tell: impl Tell) {
    let mut check = Check::new(tell);
    let all = copies.len();
    for (n, Copy { file, sha256 }) in copies.enumerate() {
        if !check.is_at(n, all) {
            break;
        }
        let data = match folder::read(&file, MAX_FILE) {
            Ok(data) => data,
            Err(error) => {
                check.find(Kind::Unreadable, file.display(), error, false);
                continue;
            }
        };
        check.summary.documents += 1;
        check.summary.chunks += 1;
        check.summary.bytes += data.len() as u64;
        if hex(&Sha256::digest(&data)) != *sha256 {
            let fault = "its bytes are not those that were written";
            check.find(Kind::Broken, file.display(), fault, false);
        } else {
            for fault in faults_in(&data) {
                check.find(Kind::Broken, file.display(), fault, false);
            }
        }
    }
    check.end(Ok(()));
}

/// What is wrong with a document that is one chunk.
fn faults_in(data: &[u8]) -> Vec<String> {
    let Loaded { bad, .. } = load::load(&[(Key::StorageId, data.to_vec())]);
    bad.into_iter().map(|(_, fault)| fault).collect()
}

fn check_files(check: &mut Check<impl Tell>, root: &Path) -> Result<(), StorageError> {
    let in_journal = match count_rows(root) {
        Ok(0) => None,
        Ok(rows) => {
            Some(format!("{rows} chunks are in the journal of this folder, and were not checked"))
        }
        Err(StorageError::InUse(_)) => Some(
            "the journal of this folder is in use, or was not closed; it was not checked"
                .to_owned(),
        ),
        Err(error) => return Err(error),
    };
    if let Some(fault) = in_journal {
        let advice = "`tonk-relay checkpoint` of its relay moves it into the folders";
        check.find(Kind::Foreign, ".journal", format!("{fault}: {advice}"), false);
    }
    let documents = check.documents_of(root)?;
    let all = documents.len();
    for (n, document) in documents.into_iter().enumerate() {
        if !check.is_at(n, all) {
            return Ok(());
        }
        let chunks = match walk::read_document(root, document) {
            Ok(chunks) => chunks,
            Err(error) => {
                check.find(Kind::Unreadable, document, error, false);
                continue;
            }
        };
        for (key, reason) in check.look(document, chunks).0 {
            check.find(Kind::Broken, key, reason, false);
        }
    }
    check.quarantine(root)
}
