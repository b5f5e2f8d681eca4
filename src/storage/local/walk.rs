//! Reading a folder of documents: the relay's own, a backup's, or one of automerge-repo.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    files::{MAX_FILE, failed},
    layout::{OWN, REPLACED},
};
use crate::{
    base::{
        document_id::DocumentId,
        folder::{Entry, Folder},
    },
    document::chunk::{ChunkKind, Key, StoredChunk},
    storage::{Failure, StorageError},
};

/// How often a document is listed, because a listed chunk may have been deleted before it is read:
/// another process may compact the same folder.
const MAX_ATTEMPTS: usize = 10;

/// Something in a folder of documents.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A document's folder.
    Document(DocumentId),
    /// A file or folder that neither automerge-repo nor this relay has written.
    Foreign(PathBuf),
}

/// Calls `found` for everything in the folder `root`, until it returns false. Blocks.
///
/// # Errors
/// A folder cannot be listed.
pub fn walk(root: &Path, mut found: impl FnMut(Found) -> bool) -> Result<(), StorageError> {
    for Entry { path: first, is_folder, .. } in list(root)? {
        let Some(prefix) = first.file_name().and_then(|name| name.to_str()) else {
            if !found(Found::Foreign(first)) {
                return Ok(());
            }
            continue;
        };
        if OWN.contains(&prefix) || prefix.starts_with(REPLACED) {
            continue;
        }
        if prefix.len() != 2 || !is_folder {
            if !found(Found::Foreign(first)) {
                return Ok(());
            }
            continue;
        }
        for Entry { path: rest, is_folder, .. } in list(&first)? {
            let name = rest.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let text = format!("{prefix}{name}");
            let continues = match text.parse() {
                Ok(document) if is_folder => found(Found::Document(document)),
                _ if text == "storage-adapter-id" => true,
                _ => found(Found::Foreign(rest)),
            };
            if !continues {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The entries of a folder, in the order of their names.
fn list(folder: &Path) -> Result<Vec<Entry>, StorageError> {
    Folder::open(folder).and_then(|folder| folder.entries()).map_err(failed("list", folder))
}

/// Reads all chunks of a document in the folder `root`. Blocks.
///
/// # Errors
/// A chunk cannot be read, or the chunks change too fast.
pub fn read_document(root: &Path, document: DocumentId) -> Result<Vec<StoredChunk>, StorageError> {
    for _ in 0..MAX_ATTEMPTS {
        if let Some(chunks) = read_chunks(root, document)? {
            return Ok(chunks);
        }
    }
    let reason = "its chunks change faster than the relay can read them";
    Err(StorageError::Unavailable(Failure::new("read", root.join(document.folder()), reason)))
}

/// Reads the chunks of a document, or returns `None` if one was deleted before it was read.
fn read_chunks(
    root: &Path,
    document: DocumentId,
) -> Result<Option<Vec<StoredChunk>>, StorageError> {
    let mut chunks = Vec::new();
    // Increments first. A snapshot is written before the increments in it are deleted, so changes
    // that are no longer found as increments are in a snapshot. An increment that replaces others is
    // written `storage.grace` before they are deleted.
    for kind in ChunkKind::ALL.into_iter().rev() {
        let folder = root.join(document.folder()).join(kind.name());
        let opened = match Folder::open(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(failed("list", &folder))?,
        };
        for Entry { path, is_file, .. } in opened.entries().map_err(failed("list", &folder))? {
            // Chunks of automerge-repo are files, and their names are UTF-8.
            let (Some(name), true) = (path.file_name().and_then(OsStr::to_str), is_file) else {
                continue;
            };
            match opened.read(name, MAX_FILE) {
                Ok(data) => {
                    chunks.push((Key::Chunk { document, kind, name: name.to_owned() }, data));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("read", &path)(error)),
            }
        }
    }
    chunks.reverse();
    Ok(Some(chunks))
}

/// Lists the chunks of a document in the folder `root`, with their sizes. Blocks.
///
/// # Errors
/// A folder cannot be listed.
pub fn sizes(root: &Path, document: DocumentId) -> Result<Vec<(Key, u64)>, StorageError> {
    let mut sizes = Vec::new();
    for kind in ChunkKind::ALL {
        let folder = root.join(document.folder()).join(kind.name());
        let entries = match Folder::open(&folder).and_then(|folder| folder.entries()) {
            Err(error) if is_not_a_folder(&error) => continue,
            entries => entries.map_err(failed("list", &folder))?,
        };
        for Entry { path, is_file, .. } in entries {
            let name = path.file_name().and_then(|name| name.to_str());
            if let (Some(name), true, Ok(found)) = (name, is_file, fs::symlink_metadata(&path)) {
                sizes.push((Key::Chunk { document, kind, name: name.to_owned() }, found.len()));
            }
        }
    }
    Ok(sizes)
}

fn is_not_a_folder(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_finds_documents_and_foreign_files() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let document = DocumentId::from_bytes([7; 16]);
        fs::create_dir_all(root.join(document.folder()).join("snapshot")).expect("made");
        fs::write(root.join(document.folder()).join("snapshot/abc"), "abc").expect("made");
        for own in OWN {
            fs::create_dir(root.join(own)).expect("made");
        }
        fs::create_dir(root.join("st")).expect("made");
        fs::write(root.join("st/orage-adapter-id"), "id").expect("written");
        fs::create_dir(root.join("lost+found")).expect("made");
        fs::create_dir(root.join("ab")).expect("made");
        fs::write(root.join("ab/file"), "").expect("written");
        let mut all = Vec::new();
        walk(root, |found| {
            all.push(found);
            true
        })
        .expect("walks");
        let foreign = |name: &str| Found::Foreign(root.join(name));
        all.retain(|found| *found != Found::Document(document));
        assert_eq!(all, [foreign("ab/file"), foreign("lost+found")]);

        let key = Key::Chunk { document, kind: ChunkKind::Snapshot, name: "abc".to_owned() };
        let found = sizes(root, document).expect("lists");
        assert_eq!(found, [(key.clone(), 3)]);
        assert_eq!(read_document(root, document).expect("reads"), [(key, b"abc".to_vec())]);
    }
}
