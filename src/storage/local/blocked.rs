//! Documents that an operator has blocked: [marks](super::marks) in `.blocked`. Their stored chunks
//! are kept.

use std::path::Path;

use super::marks::Marks;
use crate::{
    base::document_id::DocumentId,
    storage::{StorageError, records::Block},
};

/// Returns the record of a blocked document. If its file cannot be read, the document is blocked all
/// the same. Blocks.
pub fn read(all: &Marks<Block>, document: DocumentId) -> Block {
    let block = all.get(document).unwrap_or_else(|| Block::new(document, None));
    // The name of the file counts, not its content.
    Block { document, ..block }
}

/// Opens the marks of blocked documents in the storage folder `root`.
///
/// # Errors
/// They cannot be listed.
pub fn open(root: &Path) -> Result<Marks<Block>, StorageError> {
    Marks::open(root, ".blocked")
}
