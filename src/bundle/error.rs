//! What is wrong with a bundle.

use zip::result::ZipError;

use crate::{
    base::document_id::{BadDocumentId, DocumentId},
    document::gate::Refusal,
};

/// What is wrong with a bundle. Clients get these texts in answers to uploads.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum BundleError {
    #[error("not a ZIP archive: {0}")]
    NotZip(String),
    #[error("manifest.json not found")]
    NoManifest,
    #[error("manifest.json is not valid: {0}")]
    BadManifest(String),
    #[error("manifestVersion {0} is not supported, expected 1")]
    ManifestVersion(String),
    #[error("rootId not found in manifest")]
    NoRootId,
    #[error("rootId {0}")]
    BadRootId(#[from] BadDocumentId),
    #[error("entry {name:?}: {problem}")]
    Entry { name: String, problem: String },
    #[error("document {document}: its changes {refusal}")]
    Refused { document: DocumentId, refusal: Refusal },
    #[error("document {document}: {reason}")]
    Unfit { document: DocumentId, reason: String },
    #[error("more than {limit} entries")]
    TooManyEntries { limit: usize },
    #[error("unpacks to more than {limit} bytes (max_inflated)")]
    TooLarge { limit: u64 },
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
}

impl BundleError {
    pub(super) fn entry(name: &str, problem: &str) -> Self {
        Self::Entry { name: name.to_owned(), problem: problem.to_owned() }
    }
}

impl From<ZipError> for BundleError {
    fn from(error: ZipError) -> Self {
        Self::NotZip(error.to_string())
    }
}
