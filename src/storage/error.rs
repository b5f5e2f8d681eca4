//! What a store could not do, on what, and why.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::base::document_id::DocumentId;

/// A failure of a store, by what a caller can do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// Stored bytes are damaged. Trying again does not help.
    #[error(transparent)]
    Corrupt(Failure),
    /// There is no room for more bytes. The same call succeeds once there is.
    #[error(transparent)]
    Full(Failure),
    /// Another process uses it.
    #[error(transparent)]
    InUse(Failure),
    /// It is in a format of a newer version.
    #[error(transparent)]
    Unsupported(Failure),
    /// The request is not valid for what is stored.
    #[error(transparent)]
    Refused(Failure),
    /// The store cannot answer at the moment, or a task of it has failed.
    #[error(transparent)]
    Unavailable(Failure),
    /// The store has lost something since the caller read what it builds on.
    #[error(transparent)]
    Outdated(Failure),
    /// The document was deleted since the caller read what it builds on.
    #[error(transparent)]
    Deleted(Failure),
    /// An object store answers, but not what it has to.
    #[error(transparent)]
    BadAnswer(Failure),
    /// The operating system or the database reports another error.
    #[error(transparent)]
    Io(Failure),
}

impl StorageError {
    /// The error of a file operation.
    pub fn io(action: &'static str, location: impl Into<Location>, source: io::Error) -> Self {
        let is_full =
            matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let failure = Failure::new(action, location, source);
        if is_full { Self::Full(failure) } else { Self::Io(failure) }
    }
}

/// What was tried, on what, and why it failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("cannot {action} {location}: {source}")]
pub struct Failure {
    /// What was tried: "write", "read", "list", "delete", "create".
    action: &'static str,
    location: Location,
    /// Why it failed. Shared, because one failed commit is the answer to many requests.
    source: Arc<dyn Error + Send + Sync>,
}

impl Failure {
    /// A failure of `action` on `location`.
    pub fn new(
        action: &'static str,
        location: impl Into<Location>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self { action, location: location.into(), source: Arc::from(source.into()) }
    }
}

/// What a failed operation was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A file or folder.
    Path(PathBuf),
    /// A document, or the bundle of this root document.
    Document(DocumentId),
    /// The key of an object in an object store, or the name of a bucket.
    Object(String),
    /// A database.
    Database(String),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Document(document) => document.fmt(f),
            Self::Object(key) => f.write_str(key),
            Self::Database(name) => write!(f, "the database {name}"),
        }
    }
}

impl From<&Path> for Location {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<PathBuf> for Location {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<DocumentId> for Location {
    fn from(document: DocumentId) -> Self {
        Self::Document(document)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_action_the_location_and_the_reason() {
        let gone = StorageError::io("read", Path::new("/a/b"), io::Error::other("it is gone"));
        assert!(matches!(gone, StorageError::Io(_)));
        assert_eq!(gone.to_string(), "cannot read /a/b: it is gone");
        let document = DocumentId::from_bytes([7; 16]);
        let failed = StorageError::Unavailable(Failure::new("load", document, "the task failed"));
        assert_eq!(failed.to_string(), format!("cannot load {document}: the task failed"));
    }

    #[test]
    fn a_full_disk_is_told_from_other_io_errors() {
        for full in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let full = StorageError::io("write", Path::new("/a"), full.into());
            assert!(matches!(full, StorageError::Full(_)), "{full:?}");
        }
    }
}
