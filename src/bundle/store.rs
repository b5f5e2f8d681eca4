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

    /// All bundles, each with its ETag.
    fn list(&self) -> BoxFuture<'_, io::Result<Vec<(DocumentId, String)>>>;

    /// Delete the bundle of that id. False if there is none.
    fn delete(&self, id: DocumentId) -> BoxFuture<'_, io::Result<bool>>;

    /// Move all bundles to where `name` stands for them, out of the way.
    fn set_aside(&self, name: &str) -> BoxFuture<'_, io::Result<()>>;
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

    /// Work with the folder on a thread that may block.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'_, io::Result<T>> {
        let folder = self.folder.clone();
        async move {
            let working = tokio::task::spawn_blocking(move || work(&folder));
            working.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
        }
        .boxed()
    }
}

/// The ids and paths of the bundles in a folder.
fn bundles_in(folder: &Path) -> io::Result<Vec<(DocumentId, PathBuf)>> {
    let mut bundles = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let id = name.and_then(|name| name.strip_suffix(".tonk")?.parse().ok());
        bundles.extend(id.map(|id| (id, path)));
    }
    Ok(bundles)
}

fn etag(found: &fs::Metadata) -> String {
    format!(
        "\"{:x}-{:x}-{:x}{:08x}\"",
        found.ino(),
        found.size(),
        found.mtime(),
        found.mtime_nsec()
    )
}

const INCOMING: &str = ".incoming";

impl BundleStore for FolderStore {
    fn receive(&self) -> io::Result<NamedTempFile> {
        NamedTempFile::new_in(self.folder.join(INCOMING))
    }

    fn put(&self, id: DocumentId, bundle: NamedTempFile) -> BoxFuture<'_, io::Result<()>> {
        let path = self.path(id);
        self.run(move |folder| {
            bundle.as_file().sync_all()?;
            bundle.persist(&path).map_err(|error| error.error)?;
            File::open(folder)?.sync_all()
        })
    }

    fn get(&self, id: DocumentId) -> BoxFuture<'_, io::Result<Option<StoredBundle>>> {
        let path = self.path(id);
        self.run(move |_| {
            let file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            let found = file.metadata()?;
            Ok(Some(StoredBundle { file, size: found.size(), etag: etag(&found) }))
        })
    }

    fn list(&self) -> BoxFuture<'_, io::Result<Vec<(DocumentId, String)>>> {
        self.run(|folder| {
            let bundles = bundles_in(folder)?;
            bundles.into_iter().map(|(id, path)| Ok((id, etag(&fs::metadata(path)?)))).collect()
        })
    }

    fn delete(&self, id: DocumentId) -> BoxFuture<'_, io::Result<bool>> {
        let path = self.path(id);
        self.run(move |folder| match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
            Ok(()) => File::open(folder)?.sync_all().map(|()| true),
        })
    }

    fn set_aside(&self, name: &str) -> BoxFuture<'_, io::Result<()>> {
        let name = name.to_owned();
        self.run(move |folder| {
            let aside = folder.join(name);
            fs::create_dir(&aside)?;
            for (id, path) in bundles_in(folder)? {
                fs::rename(path, aside.join(format!("{id}.tonk")))?;
            }
            Ok(())
        })
    }
}
