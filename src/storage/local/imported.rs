//! Records of the uploaded bundles that were imported: one small file for each in `.imported`,
//! named by the bundle's id. Its first line is the bundle's ETag; the others are the bundle's
//! documents.

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

/// The documents of the bundle of this id and ETag, or nothing if it was not imported. Blocks.
///
/// # Errors
/// The record cannot be read.
pub fn documents(
    root: &Path,
    id: DocumentId,
    etag: &str,
) -> Result<Option<Vec<DocumentId>>, StorageError> {
    let record = read(&path(root, id))?.unwrap_or_default();
    let record = String::from_utf8_lossy(&record);
    let mut lines = record.lines();
    if lines.next() != Some(etag) {
        return Ok(None);
    }
    Ok(Some(lines.filter_map(|line| line.parse().ok()).collect()))
}

/// Records that the bundle of this id and ETag, with these documents, was imported. Durable when
/// this returns. Blocks.
///
/// # Errors
/// The record cannot be written.
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

/// Deletes all records, so that every bundle is imported again when it is next fetched. Blocks.
///
/// # Errors
/// A record cannot be deleted.
pub fn clear(root: &Path) -> Result<(), StorageError> {
    let folder = root.join(IMPORTED);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("list", &folder))?,
    };
    // The folder is kept, because an import may be about to write into it.
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
    fn a_record_applies_to_one_etag() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(".tmp")).expect("made");
        let (root, id) = (folder.path(), DocumentId::from_bytes([7; 16]));
        assert_eq!(documents(root, id, "\"a\"").expect("reads"), None);
        add(root, id, "\"a\"", &[id]).expect("writes");
        assert_eq!(documents(root, id, "\"a\"").expect("reads"), Some(vec![id]));
        assert_eq!(documents(root, id, "\"b\"").expect("reads"), None);
        clear(root).expect("deletes");
        clear(root).expect("there is nothing to delete");
        assert!(root.join(IMPORTED).is_dir(), "for an import that is about to write its record");
        assert_eq!(documents(root, id, "\"a\"").expect("reads"), None);
    }
}
