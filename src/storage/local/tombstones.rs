//! Deleted documents: [marks](super::marks) in `.deleted`. Changes to these documents are refused,
//! whether they come from a client, a bundle, an import or a restore.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::marks::Marks;
use crate::{
    base::document_id::DocumentId,
    storage::{StorageError, records::Tombstone},
};

const FOLDER: &str = ".deleted";
/// The name and the size of a file that is deleted if the disk is full, to make room for a
/// tombstone.
const RESERVE: (&str, usize) = (".reserve", 64 << 10);

/// All tombstones of a storage.
#[derive(Debug)]
pub struct Tombstones {
    root: PathBuf,
    marks: Marks<Tombstone>,
}

impl Tombstones {
    /// Opens the tombstones of the storage folder `root`, which must exist.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn open(root: &Path) -> Result<Self, StorageError> {
        let tombstones = Self { root: root.to_owned(), marks: Marks::open(root, FOLDER)? };
        tombstones.keep_reserve();
        Ok(tombstones)
    }

    /// Whether a document was deleted.
    pub fn contains(&self, document: DocumentId) -> bool {
        self.marks.contains(document)
    }

    /// Adds a tombstone. It takes effect and is durable when this returns. Blocks.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&self, document: DocumentId, tombstone: &Tombstone) -> Result<(), StorageError> {
        let mut written = self.marks.add(document, tombstone);
        if written.is_err() && fs::remove_file(self.root.join(RESERVE.0)).is_ok() {
            written = self.marks.add(document, tombstone);
        }
        self.keep_reserve();
        written
    }

    /// Removes a tombstone. Returns false if there is none. Blocks.
    ///
    /// # Errors
    /// Its file cannot be deleted.
    pub fn remove(&self, document: DocumentId) -> Result<bool, StorageError> {
        self.marks.remove(document)
    }

    /// Returns the tombstone of a document. If its file cannot be read, the document is deleted all
    /// the same. Blocks.
    pub fn get(&self, document: DocumentId) -> Option<Tombstone> {
        if !self.contains(document) {
            return None;
        }
        let tombstone = self.marks.get(document).unwrap_or_else(|| Tombstone::new(document, None));
        // The name of the file counts, not its content.
        Some(Tombstone { document, ..tombstone })
    }

    /// The deleted documents, in the order of their ids.
    pub fn ids(&self) -> Vec<DocumentId> {
        self.marks.ids()
    }

    /// All tombstones, in the order of the document ids. Blocks.
    pub fn list(&self) -> Vec<Tombstone> {
        self.ids().into_iter().filter_map(|document| self.get(document)).collect()
    }

    fn keep_reserve(&self) {
        let path = self.root.join(RESERVE.0);
        if !path.exists() && fs::write(&path, vec![0u8; RESERVE.1]).is_err() {
            // The disk is full. An incomplete file is useless.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_are_kept_until_they_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join(".tmp")).expect("made");
        let document = DocumentId::from_bytes([7; 16]);
        let tombstones = Tombstones::open(folder.path()).expect("opens");
        assert!(!tombstones.contains(document));
        let tombstone = Tombstone::new(document, Some("asked for".to_owned()));
        tombstones.add(document, &tombstone).expect("adds");
        let tombstones = Tombstones::open(folder.path()).expect("opens again");
        assert!(tombstones.contains(document));
        assert_eq!(tombstones.list(), [tombstone]);
        // A truncated file still counts.
        fs::write(folder.path().join(FOLDER).join(document.to_string()), "{").expect("written");
        assert_eq!(tombstones.list()[0].document, document);
        assert!(tombstones.remove(document).expect("removes"));
        assert!(!tombstones.remove(document).expect("there is none"));
        assert!(!Tombstones::open(folder.path()).expect("opens").contains(document));
    }
}
