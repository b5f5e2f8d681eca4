//! Local files in which uploads are received.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use futures::{FutureExt, future::BoxFuture};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{
    base::{blocking, folder::check_case_sensitive, hex::hex},
    storage::StorageError,
};

/// The local folder in which uploads are received.
#[derive(Clone, Debug)]
pub(super) struct IncomingFolder(PathBuf);

impl IncomingFolder {
    /// Opens the one in the folder `bundles`, and creates it if it does not exist. Deletes uploads
    /// that an earlier process did not finish.
    #[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
    pub(super) fn open(bundles: &Path) -> io::Result<Self> {
        let folder = bundles.join(".incoming");
        fs::create_dir_all(&folder)?;
        for left in fs::read_dir(&folder)?.flatten() {
            fs::remove_file(left.path())?;
        }
        check_case_sensitive(&folder)?;
        Ok(Self(folder))
    }

    pub(super) fn receive(&self) -> BoxFuture<'static, Result<ReceivedFile, StorageError>> {
        let folder = self.0.clone();
        blocking::run(move || {
            ReceivedFile::create(&folder).map_err(|error| not_created(&folder, error))
        })
        .boxed()
    }

    /// Creates a file that has no name. Blocks.
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    pub(super) fn unnamed_file(&self) -> Result<File, StorageError> {
        tempfile::tempfile_in(&self.0).map_err(|error| not_created(&self.0, error))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

fn not_created(folder: &Path, error: io::Error) -> StorageError {
    StorageError::io("create a file in", folder, error)
}

/// A local file in which a bundle is received. Dropping this deletes the file, unless it was
/// stored.
#[derive(Debug)]
pub struct ReceivedFile {
    /// Empty once the file was moved or deleted.
    path: PathBuf,
}

impl ReceivedFile {
    /// Blocks.
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    fn create(folder: &Path) -> io::Result<Self> {
        let (_, path) = NamedTempFile::new_in(folder)?.keep().map_err(|error| error.error)?;
        Ok(Self { path })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file for reading.
    ///
    /// # Errors
    /// It cannot be opened.
    pub async fn open(&self) -> Result<File, StorageError> {
        let opened = tokio::fs::File::open(&self.path).await;
        let file = opened.map_err(|error| StorageError::io("read", self.path.as_path(), error))?;
        Ok(file.into_std().await)
    }

    /// Moves the file to `target`, and replaces the file that is there. Blocks.
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    pub(super) fn persist(mut self, target: &Path) -> io::Result<()> {
        fs::rename(&self.path, target)?;
        self.path.clear();
        Ok(())
    }
}

impl Drop for ReceivedFile {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        if path.as_os_str().is_empty() {
            return;
        }
        // Deleting a large file takes a while, so it is done on a thread that may block. A file
        // that remains, also because the process ends first, is deleted at the next start.
        #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
        blocking::detach(move || drop(fs::remove_file(path)));
    }
}

/// The SHA-256 of a file, in hexadecimal digits. Blocks.
pub(super) fn sha256_of(mut file: File) -> io::Result<String> {
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
