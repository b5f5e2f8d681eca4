//! Marks on documents: one small file each, named by the document, in a folder beside the documents. All of them are
//! known in memory; what each says is read when it is asked for.

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

/// The marks of one kind; a file holds an `M` as JSON.
#[derive(Debug)]
pub struct Marks<M> {
    root: PathBuf,
    folder: &'static str,
    all: RwLock<HashSet<DocumentId>>,
    kind: PhantomData<fn() -> M>,
}

impl<M: Serialize + DeserializeOwned> Marks<M> {
    /// Those in `folder` of the storage folder `root`, which must be there.
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

    /// How many are.
    pub fn len(&self) -> usize {
        self.all().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }

    /// Mark a document in memory alone; [`add`](Self::add) follows.
    pub fn hold(&self, document: DocumentId) {
        self.all_mut().insert(document);
    }

    /// Mark a document; durable when this returns. The mark holds only then: whatever is refused by it was not taken
    /// in vain. Blocks.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&self, document: DocumentId, mark: &M) -> Result<(), StorageError> {
        let text = serde_json::to_vec(mark).unwrap_or_default();
        let files = [(self.path(document), text.into())];
        let written = write_atomically(&self.root, &files, true);
        // One that was written, but not synchronised, is there at the next start.
        if written.is_ok() || self.path(document).exists() {
            self.all_mut().insert(document);
        }
        written
    }

    /// Take a mark away. False if there is none. Blocks.
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

    /// What a document's mark says; none if there is no mark, or its file does not read. Blocks.
    pub fn get(&self, document: DocumentId) -> Option<M> {
        if !self.contains(document) {
            return None;
        }
        let text = read(&self.path(document)).ok()??;
        serde_json::from_slice(&text).ok()
    }

    /// The documents, in the order of their ids.
    pub fn ids(&self) -> Vec<DocumentId> {
        let mut all: Vec<DocumentId> = self.all().iter().copied().collect();
        all.sort_unstable();
        all
    }
}
