//! Copies documents, uploaded bundles and tombstones from a relay into a backup folder.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    time::{Duration, Instant},
};

use automerge::ReadDoc;
use bytes::Bytes;
use hyper::Method;
use sha2::{Digest, Sha256};

use super::report::BackupReport;
use crate::{
    admin::{
        client::AdminError,
        storage::{bundles::ListedBundle, documents::DocumentListLine},
    },
    base::{document_id::DocumentId, folder, hex::hex},
    bundle::{Bundle, MaxInflated},
    cli::{
        backup_folder::{
            BackupIndex, CopiedDocument, bundle_file, snapshot_folder, tombstone_file,
            verify_bundle,
        },
        error::CliError,
        files::write_file,
        progress::Progress,
        relay::Relay,
    },
    document::{
        chunk::Key,
        gate::{Document, Rules},
        load,
        merge::Ancestry,
    },
    storage::{
        local::MAX_FILE,
        records::{Listed, Tombstone},
    },
};

/// How often a first backup writes its index, so that an interrupted one continues from there.
const WRITE_INDEX_EVERY: Duration = Duration::from_secs(5);

/// A backup that is being made.
pub(super) struct BackupRun<'a> {
    pub(super) relay: &'a mut Relay,
    pub(super) folder: &'a Path,
    pub(super) index: BackupIndex,
    pub(super) report: BackupReport,
}

impl BackupRun<'_> {
    /// Copies the documents that have changed since they were last copied. Returns those that the
    /// backup has and the relay does not list.
    pub(super) fn copy_documents(
        &mut self,
        is_first: bool,
    ) -> Result<BTreeSet<DocumentId>, CliError> {
        let listed = list_documents(self.relay)?;
        let progress = Progress::new("documents");
        let total = listed.len();
        let mut gone: BTreeSet<DocumentId> = self.index.documents.keys().copied().collect();
        let mut written_at = Instant::now();
        for (done, listed) in listed.into_iter().enumerate() {
            progress.set(done, total);
            if is_first && written_at.elapsed() > WRITE_INDEX_EVERY {
                self.index.write(self.folder)?;
                written_at = Instant::now();
            }
            let document = listed.document;
            gone.remove(&document);
            let known = self.index.documents.get(&document);
            let is_unchanged = known.is_some_and(|known| known.fingerprint == listed.fingerprint);
            if is_unchanged && self.check_copy(document) {
                self.report.unchanged += 1;
            } else if let Some(copied) = self.copy_document(&listed)? {
                self.report.copied += 1;
                self.report.bytes += copied.bytes;
                self.index.documents.insert(document, copied);
            }
        }
        progress.end();
        Ok(gone)
    }

    /// Checks the copies that are kept of documents which the relay no longer has.
    pub(super) fn check_kept(&mut self, gone: &BTreeSet<DocumentId>, tombstones: &[Tombstone]) {
        for document in gone {
            let is_deleted = tombstones.iter().any(|tombstone| tombstone.document == *document);
            if !is_deleted && !self.check_copy(*document) {
                let fault = "its copy is damaged, and the relay no longer has it";
                self.report.fail(document, fault);
            }
        }
    }

    /// Returns whether the copy of a document is as it was written. A damaged one is reported.
    fn check_copy(&mut self, document: DocumentId) -> bool {
        let damaged = self.index.damaged_copy(self.folder, document);
        self.report.damaged.extend(damaged.iter().map(|file| file.display().to_string()));
        damaged.is_none()
    }

    /// Copies a document. The new copy has all changes that are in the earlier copy, or the earlier
    /// one is kept.
    fn copy_document(&mut self, listed: &Listed) -> Result<Option<CopiedDocument>, CliError> {
        let document = listed.document;
        let content = match self.relay.content(document, false) {
            Ok(Some(content)) => content,
            Ok(None) => return Ok(None),
            Err(CliError::Admin(AdminError::Refused(reason))) => {
                self.report.fail(document, reason);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let is_whole = content.broken.is_empty();
        for chunk in content.broken {
            self.report.fail("a broken chunk", chunk);
        }
        let snapshots = snapshot_folder(self.folder, document);
        let earlier = self.index.documents.get(&document).and_then(|earlier| {
            let data = folder::read(&snapshots.join(&earlier.sha256), MAX_FILE).ok()?;
            (hex(&Sha256::digest(&data)) == earlier.sha256).then_some(data)
        });
        let data = match join_copies(&content.data, earlier.as_deref()) {
            Joined::New => content.data,
            Joined::Both(data) => {
                let fault = "the relay lacks changes that are in the earlier copy; keeping them";
                self.report.fail(document, fault);
                data
            }
            Joined::Unrelated => {
                let fault =
                    "it has no change in common with the earlier copy; keeping the earlier copy";
                self.report.fail(document, fault);
                return Ok(None);
            }
            Joined::Nothing => {
                self.report.fail(document, "nothing of it can be read");
                return Ok(None);
            }
        };
        let sha256 = hex(&Sha256::digest(&data));
        write_file(&snapshots.join(&sha256), &data)?;
        let fingerprint = if is_whole { listed.fingerprint.clone() } else { String::new() };
        Ok(Some(CopiedDocument { fingerprint, sha256, bytes: data.len() as u64 }))
    }

    /// Copies the uploaded bundles that are new, were uploaded again, or have a damaged copy.
    pub(super) fn copy_bundles(&mut self) -> Result<(), CliError> {
        let bundles: Vec<ListedBundle> = match self.relay.request(Method::GET, "/bundles") {
            Err(CliError::Admin(AdminError::Refused(reason))) => {
                self.report.fail("the uploaded bundles", reason);
                return Ok(());
            }
            bundles => bundles?,
        };
        let is_listed = |id: &DocumentId| bundles.iter().any(|listed| listed.id == *id);
        let kept = self.index.bundles.keys().filter(|id| !is_listed(id));
        self.report.kept_bundles.extend(kept);
        for bundle in bundles {
            self.copy_bundle(bundle)?;
        }
        Ok(())
    }

    fn copy_bundle(&mut self, ListedBundle { id, etag }: ListedBundle) -> Result<(), CliError> {
        let file = bundle_file(self.folder, id);
        if self.index.bundles.get(&id) == Some(&etag) {
            if verify_bundle(&file).is_ok() {
                return Ok(());
            }
            self.report.damaged.push(file.display().to_string());
        }
        let data = match self.relay.fetch(Method::GET, &format!("/bundles/{id}"), Bytes::new()) {
            Ok(data) => data,
            Err(error @ CliError::Admin(AdminError::Refused(_) | AdminError::Http(_))) => {
                self.report.fail(format!("bundle {id}"), error);
                return Ok(());
            }
            // Deleted since it was listed.
            Err(CliError::Admin(AdminError::Missing(_))) => return Ok(()),
            Err(error) => return Err(error),
        };
        let verified = Bundle::open(io::Cursor::new(data.clone()), MaxInflated::UNLIMITED)
            .and_then(|mut bundle| bundle.verify());
        if let Err(error) = verified {
            self.report.fail(format!("bundle {id}"), error);
            return Ok(());
        }
        write_file(&file, &data)?;
        self.index.bundles.insert(id, etag);
        Ok(())
    }

    /// Writes the tombstones, and takes the deleted documents and bundles out of the index.
    pub(super) fn write_tombstones(&mut self, tombstones: &[Tombstone]) -> Result<(), CliError> {
        for tombstone in tombstones {
            let path = tombstone_file(self.folder, tombstone.document);
            write_file(&path, &serde_json::to_vec(tombstone).unwrap_or_default())?;
            self.index.documents.remove(&tombstone.document);
            self.index.bundles.remove(&tombstone.document);
            self.index.deleted.insert(tombstone.document);
        }
        Ok(())
    }
}

fn list_documents(relay: &mut Relay) -> Result<Vec<Listed>, CliError> {
    let (mut listed, mut end) = (Vec::new(), Err("the relay's listing was cut off".to_owned()));
    relay.lines(Method::GET, "/documents", |entry: DocumentListLine<Listed>| match entry {
        DocumentListLine::Document(document) => listed.push(document),
        DocumentListLine::End => end = Ok(()),
        DocumentListLine::Problem(problem) => end = Err(problem),
    })?;
    end.map_err(CliError::NotListed)?;
    Ok(listed)
}

/// How a new copy of a document relates to an earlier one.
enum Joined {
    /// The new copy has all changes of the earlier one.
    New,
    /// It lacks some; this has the changes of both.
    Both(Vec<u8>),
    /// They have no change in common.
    Unrelated,
    /// The new copy has no changes.
    Nothing,
}

fn join_copies(new: &[u8], earlier: Option<&[u8]>) -> Joined {
    let load = |data: &[u8]| load::load(&[(Key::StorageId, data.to_vec())]).doc;
    let mut new = load(new);
    if new.heads().is_empty() && !new.has_orphans() {
        return Joined::Nothing;
    }
    let Some(mut earlier) = earlier.map(load) else { return Joined::New };
    match Ancestry::of(earlier.automerge(), new.automerge()) {
        Ancestry::Contained if !earlier.has_orphans() => Joined::New,
        Ancestry::Unrelated if !new.heads().is_empty() => Joined::Unrelated,
        Ancestry::Contained | Ancestry::Newer | Ancestry::Unrelated => {
            // Orphans of one copy may find the changes that they depend on in the other.
            let missing = |doc: &mut Document| doc.automerge().get_missing_deps(&[]);
            match earlier.admit(&new.automerge().save(), Rules::Stored) {
                Ok(_)
                    if earlier.heads() == new.heads()
                        && missing(&mut earlier) == missing(&mut new) =>
                {
                    Joined::New
                }
                Ok(_) => Joined::Both(earlier.automerge().save()),
                Err(_) => Joined::Unrelated,
            }
        }
    }
}
