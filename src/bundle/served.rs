//! The bundle at `/.manifest.tonk`, and what is computed from it once per load.

use std::{
    collections::HashMap,
    io::{self, Cursor, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{Bundle, BundleError, MaxInflated};
use crate::{
    base::{document_id::DocumentId, hex::sha256, regular_file},
    storage::underlay::Underlay,
};

/// The bundle that is served now; `None` if none is configured.
pub type Served = watch::Receiver<Option<Arc<ServedBundle>>>;

impl Underlay for Served {
    fn snapshot(&self, document: DocumentId) -> Option<Bytes> {
        self.borrow().as_ref().and_then(|bundle| bundle.documents.get(&document).cloned())
    }
}

/// A loaded bundle.
#[derive(Debug, Default)]
pub struct ServedBundle {
    /// The bytes of the file.
    pub file: Bytes,
    /// SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// The slim form, for `/.manifest.tonk`.
    pub slim: Bytes,
    /// The slim form's ETag, with its quotes.
    pub slim_etag: String,
    /// Every document as an automerge save.
    pub documents: HashMap<DocumentId, Bytes>,
    /// The servers with which the bundle tells clients to synchronise.
    pub network_uris: Vec<String>,
}

/// Why a bundle's file is not served.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ServeError {
    #[error("{}: not found", path.display())]
    NotFound { path: PathBuf },
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}: is larger than {limit} bytes (bundles.max_inflated)", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{}: {source}", path.display())]
    Broken { path: PathBuf, source: BundleError },
}

impl ServedBundle {
    /// Reads, verifies and prepares the bundle at `path`. Blocks.
    ///
    /// # Errors
    /// The file cannot be read, or is not a bundle.
    pub fn load(path: &Path, max_inflated: MaxInflated) -> Result<Self, ServeError> {
        let file = read_file(path, max_inflated.bundle)?;
        Self::parse(file, max_inflated)
            .map_err(|source| ServeError::Broken { path: path.to_owned(), source })
    }

    fn parse(file: Bytes, max_inflated: MaxInflated) -> Result<Self, BundleError> {
        let mut bundle = Bundle::open(Cursor::new(file.clone()), max_inflated)?;
        let slim = bundle.slim()?;
        let documents = bundle
            .documents()
            .into_iter()
            .map(|document| Ok((document, bundle.document(document)?)))
            .collect::<Result<_, BundleError>>()?;
        Ok(Self {
            sha256: sha256(&file),
            slim_etag: format!("\"{}\"", sha256(&slim)),
            slim,
            documents,
            network_uris: bundle.manifest().network_uris.clone(),
            file,
        })
    }

    /// A bundle that has only documents.
    #[cfg(test)]
    pub(crate) fn of_documents(documents: impl IntoIterator<Item = (DocumentId, Bytes)>) -> Self {
        Self { documents: documents.into_iter().collect(), ..Self::default() }
    }
}

/// Reads a whole regular file of at most `limit` bytes.
///
/// # Errors
/// The file cannot be read or is too large. Its content is not checked.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block, or in a command")]
pub fn read_file(path: &Path, limit: u64) -> Result<Bytes, ServeError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => ServeError::NotFound { path: path.to_owned() },
        _ => ServeError::Unreadable { path: path.to_owned(), source },
    };
    let mut data = Vec::new();
    let file = regular_file::open(path).map_err(failed)?;
    file.take(limit.saturating_add(1)).read_to_end(&mut data).map_err(failed)?;
    if data.len() as u64 > limit {
        return Err(ServeError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(data.into())
}
