//! Uploaded bundles: what a store of them must do. [`folder`] keeps them in a local folder, [`s3`] in an object store.

pub mod folder;
pub mod s3;

use std::{
    fs::{self, File},
    io::{self, Read, SeekFrom},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use crate::{
    base::{blocking, document_id::DocumentId, hex::hex},
    config::{self, StoreKind},
    observe::health::Health,
};

/// A part of a bundle, as it comes.
pub type Content = BoxStream<'static, io::Result<Bytes>>;

/// A stored bundle, to be read.
#[derive(Debug)]
pub struct StoredBundle {
    /// How many bytes it has.
    pub size: u64,
    /// Its ETag, with the quotes: another one after every upload.
    pub etag: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(File),
    Object(s3::Object),
}

impl StoredBundle {
    /// Read all of it, or a part. It is the bundle of this ETag that is read, or an error.
    ///
    /// # Errors
    /// It cannot be read; later bytes may fail in the stream.
    pub async fn read(self, part: Option<RangeInclusive<u64>>) -> io::Result<Content> {
        let (start, length) = match &part {
            Some(part) => (*part.start(), part.end() - part.start() + 1),
            None => (0, self.size),
        };
        match self.source {
            Source::File(file) => {
                let mut file = tokio::fs::File::from_std(file);
                file.seek(SeekFrom::Start(start)).await?;
                Ok(ReaderStream::new(file.take(length)).boxed())
            }
            Source::Object(object) => object.read(part, length).await,
        }
    }

    /// How many bytes [`Self::into_file`] writes to the local disk.
    pub fn copied_bytes(&self) -> u64 {
        match self.source {
            Source::File(_) => 0,
            Source::Object(_) => self.size,
        }
    }

    /// The whole of it as a file that can be read anywhere.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn into_file(self) -> io::Result<File> {
        match self.source {
            Source::File(file) => Ok(file),
            Source::Object(object) => object.download(self.size).await,
        }
    }
}

/// The local folder in which uploads are received.
#[derive(Clone, Debug)]
struct Incoming(PathBuf);

impl Incoming {
    /// The one in the folder `bundles`, which is made if it is not there. Uploads that an earlier process did not
    /// finish are removed.
    #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
    fn open(bundles: &Path) -> io::Result<Self> {
        let folder = bundles.join(".incoming");
        fs::create_dir_all(&folder)?;
        for left in fs::read_dir(&folder)?.flatten() {
            fs::remove_file(left.path())?;
        }
        crate::base::folder::check_case_sensitive(&folder)?;
        Ok(Self(folder))
    }

    fn receive(&self) -> BoxFuture<'static, io::Result<Received>> {
        let folder = self.0.clone();
        blocking::run(move || Received::create(&folder)).boxed()
    }
}

/// A file of its own on a local disk in which a bundle is received. It is deleted when this is dropped, unless it was
/// stored; on a thread that may block, because deleting a large file takes a while.
#[derive(Debug)]
pub struct Received {
    /// Empty once the file is elsewhere or deleted.
    path: PathBuf,
}

impl Received {
    /// Blocks.
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    fn create(folder: &Path) -> io::Result<Self> {
        let (_, path) = NamedTempFile::new_in(folder)?.keep().map_err(|error| error.error)?;
        Ok(Self { path })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Open the file for reading.
    ///
    /// # Errors
    /// It cannot be opened.
    pub async fn open(&self) -> io::Result<File> {
        Ok(tokio::fs::File::open(&self.path).await?.into_std().await)
    }

    /// Move the file to `target`, in the place of what is there. Blocks.
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    fn persist(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.path.clear();
        Ok(())
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        if path.as_os_str().is_empty() {
            return;
        }
        // What cannot be deleted, or is left because the relay ends before it is, is deleted at the next start.
        #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
        blocking::detach(move || drop(fs::remove_file(path)));
    }
}

/// The SHA-256 of a file, in hexadecimal digits. Blocks.
fn sha256_of(mut file: File) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        match buffer.get(..read) {
            Some(bytes) if read > 0 => hasher.update(bytes),
            _ => return Ok(hex(&hasher.finalize())),
        }
    }
}

/// Open the store that `config` names, and what has to run beside it, if there is something.
///
/// # Errors
/// The local folder cannot be made or written.
pub async fn open(config: &config::Bundles, health: Arc<Health>) -> io::Result<Opened> {
    Ok(match config.store {
        StoreKind::Folder => {
            Opened { store: Arc::new(folder::FolderStore::open(&config.path)?), s3: None }
        }
        StoreKind::S3 => {
            let store = Arc::new(s3::S3Store::open(config, health).await?);
            Opened { store: store.clone(), s3: Some(store) }
        }
    })
}

/// An opened store.
pub struct Opened {
    /// The store.
    pub store: Arc<dyn BundleStore>,
    /// The object store, whose [`s3::S3Store::run`] is to be kept running.
    pub s3: Option<Arc<s3::S3Store>>,
}

/// Where uploaded bundles are kept, by the id of their root document.
pub trait BundleStore: Send + Sync + 'static {
    /// A file to receive an upload in, on a local disk.
    ///
    /// # Errors
    /// That disk cannot be written.
    fn receive(&self) -> BoxFuture<'_, io::Result<Received>>;

    /// Keep a verified bundle under `id`, instead of an earlier one, of which `keep` former generations stay. It is
    /// visible as a whole or not at all, and durable when this returns. Returns its ETag.
    fn put(
        &self,
        id: DocumentId,
        bundle: Received,
        keep: usize,
    ) -> BoxFuture<'_, io::Result<String>>;

    /// The bundle of that id; none if there is none.
    fn get(&self, id: DocumentId) -> BoxFuture<'_, io::Result<Option<StoredBundle>>>;

    /// All bundles, each with its ETag.
    fn list(&self) -> BoxFuture<'_, io::Result<Vec<(DocumentId, String)>>>;

    /// Delete the bundle of that id and its former generations. False if there is none.
    fn delete(&self, id: DocumentId) -> BoxFuture<'_, io::Result<bool>>;

    /// Move all bundles out of the way, to where `name` stands for them, if they are on a local disk.
    fn set_aside(&self, name: &str) -> BoxFuture<'_, io::Result<()>>;
}
