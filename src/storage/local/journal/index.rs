//! The index of the rows in the journal, in memory.

use std::collections::HashMap;

use crate::{
    base::document_id::DocumentId,
    document::chunk::{ChunkKind, Key},
};

/// The most rows before the oldest are moved into the folders. A clean stop writes a file for each
/// row, and must have time for it.
pub(super) const MAX_ROWS: usize = 20_000;

/// The largest capacity that an empty index keeps, in documents.
const KEPT_CAPACITY: usize = 256;

/// A row of the journal, which holds one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: i64,
    /// The size of the chunk in bytes.
    pub(super) size: usize,
}

/// The rows of the journal by document.
#[derive(Default)]
pub(super) struct Index {
    pub(super) documents: HashMap<DocumentId, Vec<(ChunkKind, Box<str>, Row)>>,
    pub(super) rows: usize,
    /// The size of all chunks in bytes.
    pub(super) bytes: usize,
}

impl Index {
    pub(super) fn get(&self, key: &Key) -> Option<Row> {
        let Key::Chunk { document, kind, name } = key else { return None };
        let chunks = self.documents.get(document)?;
        chunks.iter().find(|(k, n, _)| k == kind && **n == **name).map(|(_, _, row)| *row)
    }

    /// Sets or removes the row of a chunk.
    pub(super) fn set(&mut self, key: &Key, row: Option<Row>) {
        let Key::Chunk { document, kind, name } = key else { return };
        let chunks = self.documents.entry(*document).or_default();
        if let Some(at) = chunks.iter().position(|(k, n, _)| k == kind && **n == **name) {
            let (_, _, old) = chunks.swap_remove(at);
            self.rows -= 1;
            self.bytes = self.bytes.saturating_sub(old.size);
        }
        if let Some(row) = row {
            if chunks.capacity() == 0 {
                // Most documents have one chunk, and a vector would start with room for four.
                chunks.reserve_exact(1);
            }
            chunks.push((*kind, name.as_str().into(), row));
            self.rows += 1;
            self.bytes += row.size;
        } else if chunks.is_empty() {
            self.documents.remove(document);
            if self.documents.is_empty() && self.documents.capacity() > KEPT_CAPACITY {
                self.documents = HashMap::new();
            }
        }
    }

    pub(super) fn rows_of(&self, document: DocumentId) -> Option<Vec<(Key, Row)>> {
        let chunks = self.documents.get(&document)?;
        let key = |kind: &ChunkKind, name: &str| Key::Chunk {
            document,
            kind: *kind,
            name: name.to_owned(),
        };
        Some(chunks.iter().map(|(kind, name, row)| (key(kind, name), *row)).collect())
    }

    /// Whether the journal has more bytes than `size`, or too many rows.
    pub(super) fn exceeds(&self, size: usize) -> bool {
        self.bytes > size || self.rows > MAX_ROWS
    }
}
