//! Which uploaded bundles are imported, and what documents they hold: a small file each, in `.imported` beside the
//! documents, by the id of their root. It has a line with the bundle's ETag, and one for each document.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    files::{failed, read, write_atomically},
    layout::IMPORTED,
};
use crate::{base::document_id::DocumentId, storage::StorageError};

fn path(root: &Path, id: DocumentId) -> PathBuf {
    root.join(IMPORTED).join(id.to_string())
}

/// Whether the bundle of that id and ETag is imported. Blocks.
///
/// # Errors
/// The file cannot be read.
pub fn contains(root: &Path, id: DocumentId, etag: &str) -> Result<bool, StorageError> {
    let noted = read(&path(root, id))?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&noted).lines().next() == Some(etag))
}

/// The documents of the bundle of that id and ETag; nothing if it is not imported, and they are not known. Blocks.
///
/// # Errors
/// The file cannot be read.
pub fn documents(
    root: &Path,
    id: DocumentId,
    etag: &str,
) -> Result<Option<Vec<DocumentId>>, StorageError> {
    let noted = read(&path(root, id))?.unwrap_or_default();
    let noted = String::from_utf8_lossy(&noted);
    let mut lines = noted.lines();
    if lines.next() != Some(etag) {
        return Ok(None);
    }
    // A bundle has documents: without them it was noted by an earlier version.
    let documents: Vec<DocumentId> = lines.filter_map(|line| line.parse().ok()).collect();
    Ok(Some(documents).filter(|documents| !documents.is_empty()))
}

/// The bundle of that id and ETag is imported, and holds these documents; durable when this returns. Blocks.
///
/// # Errors
/// The file cannot be written.
pub fn add(
    root: &Path,
    id: DocumentId,
    etag: &str,
    documents: &[DocumentId],
) -> Result<(), StorageError> {
    let mut text = format!("{etag}\n");
    for document in documents {
        text.push_str(&format!("{document}\n"));
    }
    write_atomically(root, &[(path(root, id), text.into())], true)
}

/// All bundles are to be imported again when they are fetched. Blocks.
///
/// # Errors
/// The files cannot be deleted.
pub fn forget(root: &Path) -> Result<(), StorageError> {
    let folder = root.join(IMPORTED);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("list", &folder))?,
    };
    // The folder itself stays: an import may be about to write into it.
    for entry in entries {
        let path = entry.map_err(failed("list", &folder))?.path();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("delete", &path)(error));
            }
            _ => {}
        }
    }
    Ok(())
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
        assert_eq!(documents(root, id, "\"a\"").expect("reads"), None);
        add(root, id, "\"a\"", &[id]).expect("writes");
        assert_eq!(documents(root, id, "\"a\"").expect("reads"), Some(vec![id]));
        assert_eq!(documents(root, id, "\"b\"").expect("reads"), None);
        assert!(contains(root, id, "\"a\"").expect("reads"));
        assert!(!contains(root, id, "\"b\"").expect("reads"));
        forget(root).expect("deletes");
        forget(root).expect("there is nothing");
        assert!(root.join(IMPORTED).is_dir(), "for an import that is about to write its note");
        assert!(!contains(root, id, "\"a\"").expect("reads"));
    }
}
