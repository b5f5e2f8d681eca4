//! Listing the stored documents.

use std::collections::HashSet;

use super::{
    super::walk::{self, Found},
    Journal,
};
use crate::{
    base::document_id::DocumentId,
    document::chunk::Key,
    storage::{StorageError, records::Listed},
};

impl Journal {
    /// Calls `found` for every stored document, until it returns false. Blocks.
    ///
    /// # Errors
    /// The folders cannot be listed.
    pub(super) fn list_documents(
        &self,
        found: &mut dyn FnMut(Listed) -> bool,
    ) -> Result<(), StorageError> {
        let root = self.folders.root();
        let mut in_journal: HashSet<DocumentId> =
            self.shared.index().documents.keys().copied().collect();
        // The rows are read first, so that chunks that are moved meanwhile are found in the folder.
        let sizes_of = |document| -> Result<Vec<(Key, u64)>, StorageError> {
            let rows = self.shared.index().rows_of(document).unwrap_or_default();
            let mut chunks = walk::sizes(root, document)?;
            for (key, row) in rows {
                chunks.retain(|(in_folder, _)| *in_folder != key);
                chunks.push((key, row.size as u64));
            }
            Ok(chunks)
        };
        let (mut continues, mut failed) = (true, None);
        walk::walk(root, |entry| {
            let Found::Document(document) = entry else { return true };
            in_journal.remove(&document);
            match sizes_of(document) {
                Ok(chunks) => {
                    continues = chunks.is_empty() || found(Listed::new(document, chunks));
                }
                Err(error) => {
                    failed = Some(error);
                    continues = false;
                }
            }
            continues
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        for document in in_journal {
            let chunks = sizes_of(document)?;
            continues = continues && (chunks.is_empty() || found(Listed::new(document, chunks)));
        }
        Ok(())
    }
}
