//! Documents that were deleted: [marks](super::marks) in `.deleted`, by which whatever a
//! client, a bundle, an import or a restore brings of them is refused.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::marks::Marks;
use crate::{base::document_id::DocumentId, storage::StorageError};

const FOLDER: &str = ".deleted";
/// A file that is there to be given up: on a full disk a deletion has its room.
const RESERVE: (&str, usize) = (".reserve", 64 << 10);

/// What is remembered of a deleted document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Its id.
    pub document: DocumentId,
    /// When it was deleted, in RFC 3339.
    pub deleted_at: String,
    /// Why, in the operator's words.
    pub reason: Option<String>,
}

impl Tombstone {
    /// A tombstone made now.
    pub fn new(document: DocumentId, reason: Option<String>) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { document, deleted_at: now, reason }
    }
}

/// All tombstones of a storage.
#[derive(Debug)]
pub struct Tombstones {
    root: PathBuf,
    marks: Marks<Tombstone>,
}

impl Tombstones {
    /// Those of the storage folder `root`, which must be there.
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

    /// Add a tombstone; durable when this returns, and holds only then. Blocks.
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

    /// Take a tombstone away. False if there is none. Blocks.
    ///
    /// # Errors
    /// Its file cannot be deleted.
    pub fn remove(&self, document: DocumentId) -> Result<bool, StorageError> {
        self.marks.remove(document)
    }

    /// One of them. A file that does not read is one all the same. Blocks.
    pub fn get(&self, document: DocumentId) -> Option<Tombstone> {
        if !self.contains(document) {
            return None;
        }
        let tombstone = self.marks.get(document).unwrap_or_else(|| Tombstone::new(document, None));
        // Its file's name is what holds.
        Some(Tombstone { document, ..tombstone })
    }

    /// The documents, in the order of their ids.
    pub fn ids(&self) -> Vec<DocumentId> {
        self.marks.ids()
    }

    /// All of them, in the order of their ids. Blocks.
    pub fn list(&self) -> Vec<Tombstone> {
        self.ids().into_iter().filter_map(|document| self.get(document)).collect()
    }

    fn keep_reserve(&self) {
        let path = self.root.join(RESERVE.0);
        if !path.exists() && fs::write(&path, vec![0u8; RESERVE.1]).is_err() {
            // No room for it now; what is half there is of no use.
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tombstones_stay_until_they_are_taken_away() {
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
        // A file that was cut off is one all the same.
        fs::write(folder.path().join(FOLDER).join(document.to_string()), "{").expect("written");
        assert_eq!(tombstones.list()[0].document, document);
        assert!(tombstones.remove(document).expect("removes"));
        assert!(!tombstones.remove(document).expect("there is none"));
        assert!(!Tombstones::open(folder.path()).expect("opens").contains(document));
    }
}
