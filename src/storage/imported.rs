//! Which uploaded bundles are imported: a small file each, in `.imported` beside the documents, by the id of their root.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    StorageError,
    nodefs::{self, failed, write_atomically},
};
use crate::document_id::DocumentId;

pub(super) const FOLDER: &str = ".imported";

fn path(root: &Path, id: DocumentId) -> PathBuf {
    root.join(FOLDER).join(id.to_string())
}

/// Whether the bundle of that id and ETag is imported. Blocks.
///
/// # Errors
/// The file cannot be read.
pub fn contains(root: &Path, id: DocumentId, etag: &str) -> Result<bool, StorageError> {
    let noted = nodefs::read(&path(root, id))?;
    Ok(noted.is_some_and(|noted| String::from_utf8_lossy(&noted).trim_end() == etag))
}

/// The bundle of that id and ETag is imported; durable when this returns. Blocks.
///
/// # Errors
/// The file cannot be written.
pub fn add(root: &Path, id: DocumentId, etag: &str) -> Result<(), StorageError> {
    write_atomically(root, &[(path(root, id), format!("{etag}\n").into())], true)
}

/// All bundles are to be imported again when they are fetched. Blocks.
///
/// # Errors
/// The files cannot be deleted.
pub fn forget(root: &Path) -> Result<(), StorageError> {
    let folder = root.join(FOLDER);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("delete", &folder)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_of_one_etag() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(".tmp")).expect("made");
        let (root, id) = (folder.path(), DocumentId::from_bytes([7; 16]));
        assert!(!contains(root, id, "\"a\"").expect("reads"));
        add(root, id, "\"a\"").expect("writes");
        assert!(contains(root, id, "\"a\"").expect("reads"));
        assert!(!contains(root, id, "\"b\"").expect("reads"));
        forget(root).expect("deletes");
        forget(root).expect("there is nothing");
        assert!(!contains(root, id, "\"a\"").expect("reads"));
    }
}
