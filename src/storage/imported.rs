//! Which uploaded bundles are imported: a small file each, in `.imported` beside the documents, by the id of their root.

use std::path::{Path, PathBuf};

use super::{
    StorageError,
    nodefs::{self, write_atomically},
};
use crate::document_id::DocumentId;

pub(super) const FOLDER: &str = ".imported";

/// What is known of a bundle in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// Its documents are merged with what is stored.
    Imported,
    /// It is no bundle, for that reason.
    Broken(String),
}

fn path(root: &Path, id: DocumentId) -> PathBuf {
    root.join(FOLDER).join(id.to_string())
}

/// What is noted of the bundle of that id and ETag. Blocks.
///
/// # Errors
/// The file cannot be read.
pub fn read(root: &Path, id: DocumentId, etag: &str) -> Result<Option<Note>, StorageError> {
    let Some(text) = nodefs::read(&path(root, id))? else { return Ok(None) };
    let text = String::from_utf8_lossy(&text);
    let (noted, reason) = text.split_once('\n').unwrap_or((&text, ""));
    Ok((noted == etag).then(|| match reason.trim_end() {
        "" => Note::Imported,
        reason => Note::Broken(reason.to_owned()),
    }))
}

/// Note something of the bundle of that id and ETag; durable when this returns. Blocks.
///
/// # Errors
/// The file cannot be written.
pub fn write(root: &Path, id: DocumentId, etag: &str, note: &Note) -> Result<(), StorageError> {
    let text = match note {
        Note::Imported => format!("{etag}\n"),
        Note::Broken(reason) => format!("{etag}\n{reason}\n"),
    };
    write_atomically(root, &[(path(root, id), text.into())], true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_of_one_etag() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(".tmp")).expect("made");
        let (root, id) = (folder.path(), DocumentId::from_bytes([7; 16]));
        assert_eq!(read(root, id, "\"a\"").expect("reads"), None);
        write(root, id, "\"a\"", &Note::Imported).expect("writes");
        assert_eq!(read(root, id, "\"a\"").expect("reads"), Some(Note::Imported));
        assert_eq!(read(root, id, "\"b\"").expect("reads"), None);
        let broken = Note::Broken("not a ZIP archive".to_owned());
        write(root, id, "\"b\"", &broken).expect("writes");
        assert_eq!(read(root, id, "\"b\"").expect("reads"), Some(broken));
    }
}
