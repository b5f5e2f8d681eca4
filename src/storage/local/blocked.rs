//! Documents that an operator keeps from everybody for a while: [marks](super::marks) in `.blocked`. What is stored
//! of them stays.

use std::{path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::marks::Marks;
use crate::{base::document_id::DocumentId, storage::StorageError};

/// What is remembered of a blocked document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// Its id.
    pub document: DocumentId,
    /// When it was blocked, in RFC 3339.
    pub blocked_at: String,
    /// Why, in the operator's words.
    pub reason: Option<String>,
}

impl Block {
    /// A block made now.
    pub fn new(document: DocumentId, reason: Option<String>) -> Self {
        let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        Self { document, blocked_at: now, reason }
    }

    /// What is remembered of one that is blocked. A file that does not read is a block all the same. Blocks.
    pub fn of(all: &Marks<Self>, document: DocumentId) -> Self {
        let block = all.get(document).unwrap_or_else(|| Self::new(document, None));
        // Its file's name is what holds.
        Self { document, ..block }
    }
}

/// All blocked documents of the storage folder `root`.
///
/// # Errors
/// They cannot be listed.
pub fn open(root: &Path) -> Result<Marks<Block>, StorageError> {
    Marks::open(root, ".blocked")
}
