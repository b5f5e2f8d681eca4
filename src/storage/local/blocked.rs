//! Documents that an operator has blocked: [marks](super::marks) in `.blocked`. Their stored chunks
//! are kept.

use std::{path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::marks::Marks;
use crate::{base::document_id::DocumentId, storage::StorageError};

/// The record of a blocked document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The document.
    pub document: DocumentId,
    /// When it was blocked, in RFC 3339.
    pub blocked_at: String,
    /// The reason, as the operator gave it.
    pub reason: Option<String>,
}

impl Block {
    /// Creates a block with the current time.
    pub fn new(document: DocumentId, reason: Option<String>) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { document, blocked_at: now, reason }
    }

    /// Returns the record of a blocked document. If its file cannot be read, the document is
    /// blocked all the same. Blocks.
    pub fn of(all: &Marks<Self>, document: DocumentId) -> Self {
        let block = all.get(document).unwrap_or_else(|| Self::new(document, None));
        // The name of the file counts, not its content.
        Self { document, ..block }
    }
}

/// Opens the marks of blocked documents in the storage folder `root`.
///
/// # Errors
/// They cannot be listed.
pub fn open(root: &Path) -> Result<Marks<Block>, StorageError> {
    Marks::open(root, ".blocked")
}
