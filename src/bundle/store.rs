//! Uploaded bundles.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use futures::{FutureExt, future::BoxFuture};
use tempfile::NamedTempFile;

use crate::document_id::DocumentId;

/// A stored bundle, open to be read.
#[derive(Debug)]
pub struct StoredBundle {
    /// Its bytes.
    pub file: File,
    /// How many there are.
    pub size: u64,
    /// Its ETag, with the quotes: another one after every upload.
    pub etag: String,
}

/// Where uploaded bundles are kept, by the id of their root document.
pub trait BundleStore: Send + Sync + 'static {
    /// A file to receive an upload in, on the store's own disk.
    ///
    /// # Errors
    /// The store cannot be written.
    fn receive(&self) -> io::Result<NamedTempFile>;

    /// Keep a verified bundle under `id`, instead of an earlier one. It is visible as a whole or not at
    /// all, and durable when this returns.
    fn put(&self, id: DocumentId, bundle: NamedTempFile) -> BoxFuture<'_, io::Result<()>>;

    /// The bundle of that id; none if there is none.
    fn get(&self, id: DocumentId) -> BoxFuture<'_, io::Result<Option<StoredBundle>>>;
}

/// Bundles as files of a folder: `bundles/<id>.tonk`.
pub struct FolderStore {
    folder: PathBuf,
}

impl FolderStore {
    /// Open the folder, which is made if it is not there. Uploads that an earlier process did not finish
    /// are removed.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let incoming = folder.join(INCOMING);
        fs::create_dir_all(&incoming)?;
        for left in fs::read_dir(&incoming)?.flatten() {
            fs::remove_file(left.path())?;
        }
        let store = Self { folder: folder.to_owned() };
        store.receive()?;
        Ok(store)
    }

    fn path(&self, id: DocumentId) -> PathBuf {
        self.folder.join(format!("{id}.tonk"))
    }
}

const INCOMING: &str = ".incoming";

impl BundleStore for FolderStore {
    fn receive(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.folder.join(INCOMING))
    }

    fn put(&self, id: DocumentId, bundle: NamedTempFile) -> BoxFuture<'_, io::Result<()>> {
        let (path, folder) = (self.path(id), self.folder.clone());
        async move {
            let work = move || {
                bundle.as_file().sync_all()?;
                bundle.persist(&path).map_err(|error| error.error)?;
                File::open(&folder)?.sync_all()
            };
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
        }
        .boxed()
    }

    fn get(&self, id: DocumentId) -> BoxFuture<'_, io::Result<Option<StoredBundle>>> {
        let path = self.path(id);
        async move {
            let work = move || {
                let file = match File::open(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    file => file?,
                };
                let found = file.metadata()?;
                let etag = format!(
                    "\"{:x}-{:x}-{:x}{:08x}\"",
                    found.ino(),
                    found.size(),
                    found.mtime(),
                    found.mtime_nsec()
                );
                Ok(Some(StoredBundle { file, size: found.size(), etag }))
            };
            tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
        }
        .boxed()
    }
}
