//! Uploaded bundles in a local folder: `<id>.tonk`, and former generations in
//! `former/<id>/<sha256>.tonk`.

#![allow(
    clippy::disallowed_methods,
    reason = "all work with the folder is done in `FolderStore::run`"
)]

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use futures::{FutureExt, future::BoxFuture};
use tokio::sync::Semaphore;

use super::{
    bundle_store::BundleStore,
    received::{IncomingFolder, ReceivedFile, sha256_of},
    stored::{Source, StoredBundle},
};
use crate::{
    base::{document_id::DocumentId, lock::lock, regular_file},
    storage::{Failure, StorageError},
};

/// Operations at the same time, and so the most threads that a hung disk blocks.
const MAX_OPERATIONS: usize = 16;
/// The folder of former generations.
const FORMER: &str = "former";

/// A store of bundles as files in a folder.
pub struct FolderStore {
    folder: PathBuf,
    incoming: IncomingFolder,
    /// Held while bundles are replaced or deleted.
    write_lock: Arc<Mutex<()>>,
    permits: Semaphore,
}

impl FolderStore {
    /// Opens the folder, and creates it if it does not exist.
    ///
    /// # Errors
    /// The folder cannot be created or written.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let incoming = IncomingFolder::open(folder)?;
        let permits = Semaphore::new(MAX_OPERATIONS);
        Ok(Self { folder: folder.to_owned(), incoming, write_lock: Arc::default(), permits })
    }

    fn path(&self, id: DocumentId) -> PathBuf {
        self.folder.join(format!("{id}.tonk"))
    }

    /// Runs `work` with the folder on a thread that may block. `action` and `path` are for its
    /// error.
    fn run<T: Send + 'static>(
        &self,
        action: &'static str,
        path: PathBuf,
        work: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StorageError>> {
        let folder = self.folder.clone();
        async move {
            // The semaphore is never closed.
            let _permit = self.permits.acquire().await;
            match tokio::task::spawn_blocking(move || work(&folder)).await {
                Ok(worked) => worked.map_err(|error| StorageError::io(action, path, error)),
                Err(panic) => Err(StorageError::Unavailable(Failure::new(action, path, panic))),
            }
        }
        .boxed()
    }
}

/// Links the bundle at `path` into `former`, and deletes all but the newest `keep` bundles there.
fn keep_former(path: &Path, former: &Path, keep: usize) -> io::Result<()> {
    let file = match regular_file::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    if keep > 0 {
        let kept = former.join(format!("{}.tonk", sha256_of(file)?));
        fs::create_dir_all(former)?;
        if !kept.exists() {
            fs::hard_link(path, &kept)?;
        }
        File::open(former)?.sync_all()?;
    }
    let mut generations: Vec<(SystemTime, PathBuf)> = Vec::new();
    if former.is_dir() {
        for entry in fs::read_dir(former)? {
            let entry = entry?;
            generations.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    generations.sort_unstable();
    let excess = generations.len().saturating_sub(keep);
    generations.into_iter().take(excess).try_for_each(|(_, path)| fs::remove_file(path))
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

impl BundleStore for FolderStore {
    fn receive(&self) -> BoxFuture<'_, Result<ReceivedFile, StorageError>> {
        self.incoming.receive()
    }

    fn put(
        &self,
        id: DocumentId,
        bundle: ReceivedFile,
        keep: usize,
    ) -> BoxFuture<'_, Result<String, StorageError>> {
        let (path, write_lock) = (self.path(id), self.write_lock.clone());
        self.run("store", path.clone(), move |folder| {
            let file = File::open(bundle.path())?;
            file.sync_all()?;
            // Each upload keeps the bundle that the previous one stored.
            let _lock = lock(&write_lock);
            keep_former(&path, &folder.join(FORMER).join(id.to_string()), keep)?;
            let etag = etag(&file.metadata()?);
            bundle.persist(&path)?;
            File::open(folder)?.sync_all()?;
            Ok(etag)
        })
    }

    fn get(&self, id: DocumentId) -> BoxFuture<'_, Result<Option<StoredBundle>, StorageError>> {
        let path = self.path(id);
        self.run("read", path.clone(), move |_| {
            let file = match regular_file::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            let found = file.metadata()?;
            Ok(Some(StoredBundle {
                size: found.size(),
                etag: etag(&found),
                source: Source::File(file, path),
            }))
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<(DocumentId, String)>, StorageError>> {
        self.run("list", self.folder.clone(), |folder| {
            let bundles = bundles_in(folder)?;
            bundles.into_iter().map(|(id, path)| Ok((id, etag(&fs::metadata(path)?)))).collect()
        })
    }

    fn delete(&self, id: DocumentId) -> BoxFuture<'_, Result<bool, StorageError>> {
        let (path, write_lock) = (self.path(id), self.write_lock.clone());
        self.run("delete", path.clone(), move |folder| {
            // A concurrent upload would link this file, and create the folder that is deleted here.
            let _lock = lock(&write_lock);
            match fs::remove_dir_all(folder.join(FORMER).join(id.to_string())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
                Ok(()) => File::open(folder)?.sync_all().map(|()| true),
            }
        })
    }

    fn move_aside(&self, name: &str) -> BoxFuture<'_, Result<(), StorageError>> {
        let name = name.to_owned();
        self.run("move", self.folder.clone(), move |folder| {
            let aside = folder.join(name);
            fs::create_dir_all(&aside)?;
            for (id, path) in bundles_in(folder)? {
                fs::rename(path, aside.join(format!("{id}.tonk")))?;
            }
            match fs::rename(folder.join(FORMER), aside.join(FORMER)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => File::open(&aside)?.sync_all(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn uploads_and_deletions_of_one_bundle_may_overlap() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = FolderStore::open(folder.path()).expect("opens");
        let id = DocumentId::from_bytes([7; 16]);
        let put = async {
            for n in 0..200 {
                let file = store.receive().await.expect("a file");
                fs::write(file.path(), format!("bundle {n}")).expect("written");
                store.put(id, file, 2).await.expect("stored");
            }
        };
        let delete = async {
            for _ in 0..200 {
                store.delete(id).await.expect("deleted");
            }
        };
        tokio::join!(put, delete);
    }
}
