//! Marks on documents: one small file for each, named by the document. The set of marked documents
//! is kept in memory; the content of a mark is read when it is needed.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    collections::HashSet,
    fs, io,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use serde::{Serialize, de::DeserializeOwned};

use super::files::{failed, read, sync_folder, write_atomically};
use crate::{base::document_id::DocumentId, storage::StorageError};

/// The marks of one kind. Each file holds an `M` as JSON.
#[derive(Debug)]
pub struct Marks<M> {
    root: PathBuf,
    folder: &'static str,
    all: RwLock<HashSet<DocumentId>>,
    kind: PhantomData<fn() -> M>,
}

impl<M: Serialize + DeserializeOwned> Marks<M> {
    /// Opens the marks in the subfolder `folder` of the storage folder `root`, which must exist.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn open(root: &Path, folder: &'static str) -> Result<Self, StorageError> {
        let path = root.join(folder);
        let mut all = HashSet::new();
        match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            entries => {
                for entry in entries.map_err(failed("list", &path))? {
                    let entry = entry.map_err(failed("list", &path))?;
                    let name = entry.file_name();
                    all.extend(name.to_str().and_then(|name| name.parse::<DocumentId>().ok()));
                }
            }
        }
        Ok(Self { root: root.to_owned(), folder, all: RwLock::new(all), kind: PhantomData })
    }

    fn all(&self) -> RwLockReadGuard<'_, HashSet<DocumentId>> {
        self.all.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_mut(&self) -> RwLockWriteGuard<'_, HashSet<DocumentId>> {
        self.all.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, document: DocumentId) -> PathBuf {
        self.root.join(self.folder).join(document.to_string())
    }

    /// Whether a document is marked.
    pub fn contains(&self, document: DocumentId) -> bool {
        self.all().contains(&document)
    }

    /// How many documents are marked.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether no document is marked.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Marks a document only in memory. [`add`](Self::add) must follow.
    pub fn add_in_memory(&self, document: DocumentId) {
        self.all_mut().insert(document);
    }

    /// Marks a document. The mark takes effect and is durable when this returns. Blocks.
    ///
    /// # Errors
    /// The mark cannot be written.
    pub fn add(&self, document: DocumentId, mark: &M) -> Result<(), StorageError> {
        let text = serde_json::to_vec(mark).unwrap_or_default();
        let files = [(self.path(document), text.into())];
        let written = write_atomically(&self.root, &files, true);
        // A mark that was written but not synchronised may exist after the next start.
        if written.is_ok() || self.path(document).exists() {
            self.all_mut().insert(document);
        }
        written
    }

    /// Removes a mark. Returns false if there is none. Blocks.
    ///
    /// # Errors
    /// Its file cannot be deleted.
    pub fn remove(&self, document: DocumentId) -> Result<bool, StorageError> {
        let path = self.path(document);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("delete", &path)(error));
            }
            Ok(()) => sync_folder(&self.root.join(self.folder))?,
            Err(_) => {}
        }
        Ok(self.all_mut().remove(&document))
    }

    /// Returns the content of a document's mark, or nothing if there is no mark or its file cannot
    /// be read. Blocks.
    pub fn get(&self, document: DocumentId) -> Option<M> {
        if !self.contains(document) {
            return None;
        }
        let text = read(&self.path(document)).ok()??;
        serde_json::from_slice(&text).ok()
    }

    /// The marked documents, in the order of their ids.
    pub fn ids(&self) -> Vec<DocumentId> {
        let mut all: Vec<DocumentId> = self.all().iter().copied().collect();
        all.sort_unstable();
        all
    }
}
