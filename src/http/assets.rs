//! The files of `[bundle]` that are served unchanged. They are kept in memory, and read again when
//! they change.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tracing::warn;

use crate::{
    base::{blocking, hex::sha256, lock::lock},
    bundle::served::read_file,
};

/// A file that the config names.
#[derive(Debug, Default)]
pub struct Asset {
    kept: Mutex<Option<Arc<Loaded>>>,
    loading: tokio::sync::Mutex<()>,
}

/// The content of a file when it was last read.
#[derive(Debug)]
pub struct Loaded {
    version: Version,
    /// The file.
    pub data: Bytes,
    /// The file as gzip, if that was requested and is smaller.
    pub gzip: Option<Bytes>,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
}

/// Identifies the content of a file by its path and metadata.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    path: PathBuf,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Version {
    #[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
    fn of(path: PathBuf) -> io::Result<Self> {
        let found = fs::metadata(&path)?;
        let modified = (found.mtime(), found.mtime_nsec());
        Ok(Self { path, inode: found.ino(), size: found.size(), modified })
    }
}

impl Asset {
    /// Returns the file at `path`, of at most `limit` bytes, with its gzip form if `compresses`.
    /// Returns `None` and logs the reason if it cannot be read.
    pub async fn get(&self, path: &Path, limit: u64, compresses: bool) -> Option<Arc<Loaded>> {
        self.read(path, limit, compresses)
            .await
            .inspect_err(|error| warn!("cannot serve a configured file: {error}"))
            .ok()
    }

    async fn read(&self, path: &Path, limit: u64, compresses: bool) -> Result<Arc<Loaded>, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let owned = path.to_owned();
        let version = blocking::run(move || Version::of(owned)).await.map_err(failed)?;
        if let Some(kept) = self.kept(&version) {
            return Ok(kept);
        }
        // Concurrent requests wait here, so that the file is read and compressed once.
        let _one = self.loading.lock().await;
        if let Some(kept) = self.kept(&version) {
            return Ok(kept);
        }
        let loaded = blocking::run(move || Loaded::read(version, limit, compresses)).await?;
        let loaded = Arc::new(loaded);
        *lock(&self.kept) = Some(loaded.clone());
        Ok(loaded)
    }

    fn kept(&self, version: &Version) -> Option<Arc<Loaded>> {
        lock(&self.kept).as_ref().filter(|kept| kept.version == *version).cloned()
    }
}

impl Loaded {
    /// Blocks.
    fn read(version: Version, limit: u64, compresses: bool) -> Result<Self, String> {
        let data = read_file(&version.path, limit).map_err(|error| error.to_string())?;
        let gzip = compresses.then(|| gzip(&data)).filter(|gzip| gzip.len() < data.len());
        Ok(Self { version, sha256: sha256(&data), data, gzip })
    }
}

fn gzip(data: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    // Writing to memory does not fail.
    let _ = encoder.write_all(data);
    encoder.finish().unwrap_or_default().into()
}
