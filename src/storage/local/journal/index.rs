//! Which chunks are in the journal, known in memory.

use std::collections::HashMap;

use crate::{
    base::document_id::DocumentId,
    document::chunk::{ChunkKind, Key},
};

/// Rows beyond which the oldest move into the folders: each is a file then, of which a clean stop can write
/// so many within its time.
pub(super) const ROWS: usize = 20_000;

/// Room for so many documents is kept when none is left.
const KEPT: usize = 256;

/// A chunk in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) size: usize,
}

/// Which chunks are in the journal.
#[derive(Default)]
pub(super) struct Index {
    pub(super) documents: HashMap<DocumentId, Vec<(ChunkKind, Box<str>, Row)>>,
    pub(super) rows: usize,
    pub(super) bytes: usize,
}

impl Index {
    pub(super) fn get(&self, key: &Key) -> Option<Row> {
        let Key::Chunk { document, kind, name } = key else { return None };
        let chunks = self.documents.get(document)?;
        chunks.iter().find(|(k, n, _)| k == kind && **n == **name).map(|(_, _, row)| *row)
    }

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
                // Most documents have one chunk here, and a vector begins with room for four.
                chunks.reserve_exact(1);
            }
            chunks.push((*kind, name.as_str().into(), row));
            self.rows += 1;
            self.bytes += row.size;
        } else if chunks.is_empty() {
            self.documents.remove(document);
            if self.documents.is_empty() && self.documents.capacity() > KEPT {
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

    pub(super) fn is_beyond(&self, size: usize) -> bool {
        self.bytes > size || self.rows > ROWS
    }
}
