//! What a backup is: a folder with `backup.json`, `documents` in automerge-repo's layout with one file a document, named
//! by the SHA-256 of what is in it, `bundles`, and `deleted` with the tombstones.

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
        folder::{self, Folder, Item},
        hex::hex,
    },
    bundle::{Bundle, BundleError, MaxInflated},
    storage::{
        fsck::{self, Finding, Kind, Line},
        local::{
            MAX_FILE,
            tombstones::Tombstone,
            walk::{self, Found},
        },
    },
};

/// The format of a backup, in its `backup.json`.
pub(super) const FORMAT: u32 = 1;
const INDEX: &str = "backup.json";
/// The largest index that is read: one of several million documents.
const MAX_INDEX: u64 = 1 << 30;
/// The largest bundle that is read as a whole.
pub(super) const MAX_BUNDLE: u64 = 4 << 30;
/// The largest tombstone.
const MAX_TOMBSTONE: u64 = 1 << 20;

/// What `backup.json` says.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct BackupIndex {
    pub(super) format: u32,
    /// The tonk-relay that made it.
    pub(super) version: String,
    pub(super) storage_id: Option<String>,
    /// When it was begun, in RFC 3339.
    pub(super) made_at: String,
    /// False while the first one is being made; a later one says it only when it is there.
    pub(super) is_complete: bool,
    pub(super) documents: BTreeMap<DocumentId, Copied>,
    /// ETags of the uploaded bundles, by id.
    pub(super) bundles: BTreeMap<DocumentId, String>,
    /// Documents that were deleted; their tombstones are files.
    #[serde(default)]
    pub(super) deleted: BTreeSet<DocumentId>,
}

/// A document in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Copied {
    /// What the relay's listing said of it when it was copied; nothing if not all of it could be.
    pub(super) fingerprint: String,
    pub(super) sha256: String,
    pub(super) bytes: u64,
}

/// Whether a text is a SHA-256, and so the name of a file and nothing else.
pub(super) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The folder of a document's snapshots in a backup.
pub(super) fn snapshots(backup: &Path, document: DocumentId) -> PathBuf {
    backup.join("documents").join(document.folder()).join("snapshot")
}

pub(super) fn bundle_file(backup: &Path, id: DocumentId) -> PathBuf {
    backup.join("bundles").join(format!("{id}.tonk"))
}

pub(super) fn tombstone_file(backup: &Path, document: DocumentId) -> PathBuf {
    backup.join("deleted").join(document.to_string())
}

impl BackupIndex {
    /// Read what `folder` says that it is; nothing if it is no backup.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, CliError> {
        Ok(Self::read_with_hash(folder)?.map(|(backup, _)| backup))
    }

    /// The same with the SHA-256 of the index.
    pub(super) fn read_with_hash(folder: &Path) -> Result<Option<(Self, String)>, CliError> {
        let path = folder.join(INDEX);
        let text = match folder::read(&path, MAX_INDEX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(io_error(&path))?,
        };
        // The format first: a newer one may not read as ours.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(&text).map_err(|e| path_error(&path, e))?;
        if format > FORMAT {
            let problem = format!(
                "is a backup of format {format}, and this tonk-relay knows {FORMAT}; use the version that made it, or a newer one"
            );
            return Err(path_error(folder, problem));
        }
        let backup = serde_json::from_slice(&text).map_err(|error| path_error(&path, error))?;
        Ok(Some((backup, hex(&Sha256::digest(&text)))))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), CliError> {
        write_file(&folder.join(INDEX), &serde_json::to_vec_pretty(self).unwrap_or_default())?;
        Folder::open(folder).and_then(|folder| folder.file().sync_all()).map_err(io_error(folder))
    }

    /// Returns the file of a document's copy if it is not as it was written. All of it is read: a disk may change bytes
    /// and report no error.
    pub(super) fn damaged_copy(&self, folder: &Path, document: DocumentId) -> Option<PathBuf> {
        let Copied { sha256, .. } = self.documents.get(&document)?;
        let file = snapshots(folder, document).join(sha256);
        let is_intact =
            folder::read(&file, MAX_FILE).is_ok_and(|data| hex(&Sha256::digest(&data)) == *sha256);
        (!is_intact).then_some(file)
    }

    /// Check every file of a backup.
    pub(super) fn check(&self, folder: &Path, tell: &mut dyn FnMut(Line) -> bool) {
        let mut faults: Vec<(String, String)> = Vec::new();
        if !self.is_complete {
            let fault = "the backup was not finished: run it again";
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
                let fault = "it was deleted, and the file that says so is not there";
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
        // Others may be there, of a later one that was interrupted.
        let copies = self.documents.iter().map(|(document, copied)| fsck::Copy {
            file: snapshots(folder, *document).join(&copied.sha256),
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
}

impl BackupIndex {
    /// Remove the files that this one does not name: former copies, and what is left of deleted documents.
    pub(super) fn remove_the_rest(&self, folder: &Path) -> Result<(), CliError> {
        let mut documents = Vec::new();
        walk::walk(&folder.join("documents"), |found| {
            if let Found::Document(document) = found {
                documents.push(document);
            }
            true
        })?;
        for document in documents {
            let snapshots = snapshots(folder, document);
            match self.documents.get(&document) {
                None => {
                    let all = snapshots.parent().unwrap_or(&snapshots);
                    let (above, name) = split(all);
                    let removed = Folder::open(above).and_then(|above| above.remove_folder(name));
                    removed.map_err(io_error(all))?;
                }
                Some(Copied { sha256, .. }) => {
                    let opened = Folder::open(&snapshots).map_err(io_error(&snapshots))?;
                    for Item { path, .. } in opened.entries().map_err(io_error(&snapshots))? {
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
        for tombstone in tombstones_of(folder)? {
            if !self.deleted.contains(&tombstone.document) {
                remove(&tombstone_file(folder, tombstone.document))?;
            }
        }
        Ok(())
    }
}

/// Check a bundle of a backup.
pub(super) fn verify_bundle(file: &Path) -> Result<(), BundleError> {
    let file = folder::open_file(file)?;
    Bundle::open(io::BufReader::new(file), MaxInflated::UNLIMITED)?.verify()
}

/// Whether the backup in `folder` holds a document; none if there is no backup to be read.
pub(super) fn holds(folder: &Path, document: DocumentId) -> Option<bool> {
    let backup = BackupIndex::read(folder).ok()??;
    let is_listed =
        backup.documents.contains_key(&document) || backup.bundles.contains_key(&document);
    Some(is_listed || snapshots(folder, document).exists())
}

pub(super) fn tombstones_of(folder: &Path) -> Result<Vec<Tombstone>, CliError> {
    let folder = folder.join("deleted");
    let opened = match Folder::open(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(io_error(&folder))?,
    };
    let mut tombstones = Vec::new();
    for Item { path, .. } in opened.entries().map_err(io_error(&folder))? {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_none_or(|name| name.parse::<DocumentId>().is_err()) {
            // What a backup that was interrupted was writing.
            continue;
        }
        let text = folder::read(&path, MAX_TOMBSTONE).map_err(io_error(&path))?;
        tombstones.push(serde_json::from_slice(&text).map_err(|error| path_error(&path, error))?);
    }
    Ok(tombstones)
}
