//! Uploaded bundles in a local folder: `<id>.tonk`, and former generations in `former/<id>/<sha256>.tonk`.

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

use super::{BundleStore, Incoming, Received, Source, StoredBundle, sha256_of};
use crate::base::{document_id::DocumentId, lock::lock, regular_file};

/// Operations at a time: a disk that hangs holds so many threads.
const PARALLEL: usize = 16;
const FORMER: &str = "former";

/// Bundles as files of a folder: `bundles/<id>.tonk`.
pub struct FolderStore {
    folder: PathBuf,
    incoming: Incoming,
    writing: Arc<Mutex<()>>,
    places: Semaphore,
}

impl FolderStore {
    /// Open the folder, which is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let incoming = Incoming::open(folder)?;
        let places = Semaphore::new(PARALLEL);
        Ok(Self { folder: folder.to_owned(), incoming, writing: Arc::default(), places })
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
            // The semaphore is never closed.
            let _place = self.places.acquire().await;
            let working = tokio::task::spawn_blocking(move || work(&folder));
            working.await.unwrap_or_else(|panic| Err(io::Error::other(panic)))
        }
        .boxed()
    }
}

/// Keep the bundle at `path` among the former generations, of which the newest `keep` stay.
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
    let too_many = generations.len().saturating_sub(keep);
    generations.into_iter().take(too_many).try_for_each(|(_, path)| fs::remove_file(path))
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
    fn receive(&self) -> BoxFuture<'_, io::Result<Received>> {
        self.incoming.receive()
    }

    fn put(
        &self,
        id: DocumentId,
        bundle: Received,
        keep: usize,
    ) -> BoxFuture<'_, io::Result<String>> {
        let (path, writing) = (self.path(id), self.writing.clone());
        self.run(move |folder| {
            let file = File::open(bundle.path())?;
            file.sync_all()?;
            // One at a time: each keeps what the last one stored.
            let _alone = lock(&writing);
            keep_former(&path, &folder.join(FORMER).join(id.to_string()), keep)?;
            let etag = etag(&file.metadata()?);
            bundle.persist(&path)?;
            File::open(folder)?.sync_all()?;
            Ok(etag)
        })
    }

    fn get(&self, id: DocumentId) -> BoxFuture<'_, io::Result<Option<StoredBundle>>> {
        let path = self.path(id);
        self.run(move |_| {
            let file = match regular_file::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file?,
            };
            let found = file.metadata()?;
            Ok(Some(StoredBundle {
                size: found.size(),
                etag: etag(&found),
                source: Source::File(file),
            }))
        })
    }

    fn list(&self) -> BoxFuture<'_, io::Result<Vec<(DocumentId, String)>>> {
        self.run(|folder| {
            let bundles = bundles_in(folder)?;
            bundles.into_iter().map(|(id, path)| Ok((id, etag(&fs::metadata(path)?)))).collect()
        })
    }

    fn delete(&self, id: DocumentId) -> BoxFuture<'_, io::Result<bool>> {
        let (path, writing) = (self.path(id), self.writing.clone());
        self.run(move |folder| {
            // An upload of the same bundle links this file, and makes the folder of its former generations.
            let _alone = lock(&writing);
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

    fn set_aside(&self, name: &str) -> BoxFuture<'_, io::Result<()>> {
        let name = name.to_owned();
        self.run(move |folder| {
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
    async fn a_bundle_is_stored_while_it_is_deleted() {
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
