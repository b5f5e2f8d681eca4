//! The format of a backup: a folder with `backup.json`, `documents` in the layout of
//! automerge-repo, with one file for each document, whose name is the SHA-256 of its content,
//! `bundles`, and `deleted` with the tombstones.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    error::{CliError, io_error, path_error},
    files::{remove, split, write_file},
};
use crate::{
    base::{
        document_id::DocumentId,
        folder::{self, Entry, Folder},
        hex::hex,
    },
    bundle::{Bundle, BundleError, MaxInflated},
    storage::{
        fsck::{self, Finding, Kind, Line},
        local::{
            MAX_FILE,
            walk::{self, Found},
        },
        records::Tombstone,
    },
};

/// Version of the format, in `backup.json`.
pub(super) const FORMAT: u32 = 1;
const INDEX: &str = "backup.json";
/// The largest index that is read, in bytes: enough for several million documents.
const MAX_INDEX: u64 = 1 << 30;
/// The largest bundle that is read, in bytes.
pub(super) const MAX_BUNDLE: u64 = 4 << 30;
/// The largest tombstone that is read, in bytes.
const MAX_TOMBSTONE: u64 = 1 << 20;

/// The content of `backup.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct BackupIndex {
    pub(super) format: u32,
    /// Version of the tonk-relay that made the backup.
    pub(super) version: String,
    pub(super) storage_id: Option<String>,
    /// When the backup was started, in RFC 3339.
    pub(super) made_at: String,
    /// False while the first backup is being made. Later backups write the index only when they are
    /// complete.
    pub(super) is_complete: bool,
    pub(super) documents: BTreeMap<DocumentId, CopiedDocument>,
    /// ETags of the uploaded bundles, by id.
    pub(super) bundles: BTreeMap<DocumentId, String>,
    /// Documents that were deleted; their tombstones are files.
    #[serde(default)]
    pub(super) deleted: BTreeSet<DocumentId>,
}

/// A document in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CopiedDocument {
    /// Fingerprint in the relay's listing when the document was copied; empty if it could not be
    /// copied completely.
    pub(super) fingerprint: String,
    pub(super) sha256: String,
    pub(super) bytes: u64,
}

/// Whether a text is a SHA-256 in hexadecimal, and so cannot be a path to another file.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The folder of a document's copy in a backup.
pub(super) fn snapshot_folder(backup: &Path, document: DocumentId) -> PathBuf {
    backup.join("documents").join(document.folder()).join("snapshot")
}

pub(super) fn bundle_file(backup: &Path, id: DocumentId) -> PathBuf {
    backup.join("bundles").join(format!("{id}.tonk"))
}

pub(super) fn tombstone_file(backup: &Path, document: DocumentId) -> PathBuf {
    backup.join("deleted").join(document.to_string())
}

impl BackupIndex {
    /// Reads the index of a backup; none if `folder` is not a backup.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, CliError> {
        Ok(Self::read_with_hash(folder)?.map(|(backup, _)| backup))
    }

    /// Like `read`, and also returns the SHA-256 of the index.
    pub(super) fn read_with_hash(folder: &Path) -> Result<Option<(Self, String)>, CliError> {
        let path = folder.join(INDEX);
        let text = match folder::read(&path, MAX_INDEX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(io_error(&path))?,
        };
        // Only the version first: this version may not be able to parse a newer format.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(&text).map_err(|e| path_error(&path, e))?;
        if format > FORMAT {
            let problem = format!(
                "is a backup of format {format}, and this tonk-relay knows {FORMAT}; use the \
                 version that made it, or a newer one"
            );
            return Err(path_error(folder, problem));
        }
        let backup = serde_json::from_slice(&text).map_err(|error| path_error(&path, error))?;
        Ok(Some((backup, hex(&Sha256::digest(&text)))))
    }

    /// Writes the index durably.
    pub(super) fn write(&self, folder: &Path) -> Result<(), CliError> {
        write_file(&folder.join(INDEX), &serde_json::to_vec_pretty(self).unwrap_or_default())?;
        Folder::open(folder).and_then(|folder| folder.file().sync_all()).map_err(io_error(folder))
    }

    /// Returns the file of a document's copy if its content has changed. This reads the whole file:
    /// a disk may change bytes without an error.
    pub(super) fn damaged_copy(&self, folder: &Path, document: DocumentId) -> Option<PathBuf> {
        let CopiedDocument { sha256, .. } = self.documents.get(&document)?;
        let file = snapshot_folder(folder, document).join(sha256);
        let is_intact =
            folder::read(&file, MAX_FILE).is_ok_and(|data| hex(&Sha256::digest(&data)) == *sha256);
        (!is_intact).then_some(file)
    }

    /// Checks every file of a backup.
    pub(super) fn check(&self, folder: &Path, tell: &mut dyn FnMut(Line) -> bool) {
        let mut faults: Vec<(String, String)> = Vec::new();
        if !self.is_complete {
            let fault = "the backup is incomplete; run it again";
            faults.push((INDEX.to_owned(), fault.to_owned()));
        }
        for id in self.bundles.keys() {
            let file = bundle_file(folder, *id);
            if let Err(error) = verify_bundle(&file) {
                faults.push((file.display().to_string(), error.to_string()));
            }
        }
        for document in &self.deleted {
            if !tombstone_file(folder, *document).is_file() {
                let fault = "it was deleted, and the file with its tombstone is missing";
                faults.push((document.to_string(), fault.to_owned()));
            }
        }
        let damages = faults.len();
        for (place, fault) in faults {
            tell(Line::Finding(Finding {
                kind: Kind::Broken,
                location: place,
                fault,
                repaired: false,
            }));
        }
        // Only the listed copies: an interrupted later backup may have left others.
        let copies = self.documents.iter().map(|(document, copied)| fsck::Copy {
            file: snapshot_folder(folder, *document).join(&copied.sha256),
            sha256: &copied.sha256,
        });
        fsck::check_copies(copies, |line| match line {
            Line::Summary(mut summary) => {
                summary.damages += damages;
                summary.bundles = self.bundles.len();
                tell(Line::Summary(summary))
            }
            line => tell(line),
        });
    }

    /// Removes the files that the index does not list: earlier copies, and those of deleted
    /// documents.
    pub(super) fn remove_unlisted_files(&self, folder: &Path) -> Result<(), CliError> {
        let mut documents = Vec::new();
        walk::walk(&folder.join("documents"), |found| {
            if let Found::Document(document) = found {
                documents.push(document);
            }
            true
        })?;
        for document in documents {
            let snapshots = snapshot_folder(folder, document);
            match self.documents.get(&document) {
                None => {
                    let all = snapshots.parent().unwrap_or(&snapshots);
                    let (above, name) = split(all);
                    let removed = Folder::open(above).and_then(|above| above.remove_folder(name));
                    removed.map_err(io_error(all))?;
                }
                Some(CopiedDocument { sha256, .. }) => {
                    let opened = Folder::open(&snapshots).map_err(io_error(&snapshots))?;
                    for Entry { path, .. } in opened.entries().map_err(io_error(&snapshots))? {
                        if path.file_name().is_some_and(|name| name != sha256.as_str()) {
                            remove(&path)?;
                        }
                    }
                }
            }
        }
        for document in &self.deleted {
            remove(&bundle_file(folder, *document))?;
        }
        for tombstone in read_tombstones(folder)? {
            if !self.deleted.contains(&tombstone.document) {
                remove(&tombstone_file(folder, tombstone.document))?;
            }
        }
        Ok(())
    }
}

/// Checks a bundle of a backup.
pub(super) fn verify_bundle(file: &Path) -> Result<(), BundleError> {
    let file = folder::open_file(file)?;
    Bundle::open(io::BufReader::new(file), MaxInflated::UNLIMITED)?.verify()
}

/// Whether the backup in `folder` has a document; none if it cannot be read.
pub(super) fn contains(folder: &Path, document: DocumentId) -> Option<bool> {
    let backup = BackupIndex::read(folder).ok()??;
    let is_listed =
        backup.documents.contains_key(&document) || backup.bundles.contains_key(&document);
    Some(is_listed || snapshot_folder(folder, document).exists())
}

/// Reads the tombstones of a backup.
pub(super) fn read_tombstones(folder: &Path) -> Result<Vec<Tombstone>, CliError> {
    let folder = folder.join("deleted");
    let opened = match Folder::open(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(io_error(&folder))?,
    };
    let mut tombstones = Vec::new();
    for Entry { path, .. } in opened.entries().map_err(io_error(&folder))? {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_none_or(|name| name.parse::<DocumentId>().is_err()) {
            // A temporary file of an interrupted backup.
            continue;
        }
        let text = folder::read(&path, MAX_TOMBSTONE).map_err(io_error(&path))?;
        tombstones.push(serde_json::from_slice(&text).map_err(|error| path_error(&path, error))?);
    }
    Ok(tombstones)
}
