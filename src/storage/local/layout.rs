//! The names of files and folders in the storage folder.

use std::path::{Path, PathBuf};

use crate::document::chunk::Key;

pub(crate) const TMP: &str = ".tmp";
pub(super) const LOCK: &str = ".lock";
pub(super) const FORMAT_FILE: &str = ".format";
/// The folder with the records of imported bundles.
pub(super) const IMPORTED: &str = ".imported";
pub(super) const QUARANTINE: &str = "quarantine";
/// The relay's own files and folders among the documents.
pub(super) const OWN: [&str; 12] = [
    TMP,
    LOCK,
    FORMAT_FILE,
    QUARANTINE,
    ".journal",
    ".deleted",
    ".blocked",
    ".reserve",
    ".backups",
    REPLACING,
    IMPORTED,
    crate::auth::last_use::FILE,
];

/// Those of [`OWN`] that belong to the documents: they move aside with them.
pub(super) const OF_DOCUMENTS: [&str; 3] = [QUARANTINE, IMPORTED, crate::auth::last_use::FILE];

/// The names of folders with documents that a restore replaced begin with this.
pub(super) const REPLACED: &str = ".replaced-";
/// The marker of a restore that replaces everything and is not complete.
pub(super) const REPLACING: &str = ".replacing";

/// The names of folders with broken journals begin with this.
pub(super) const BROKEN_JOURNAL: &str = "journal-";

/// The path of a key's file in the storage folder.
pub(super) fn relative(key: &Key) -> PathBuf {
    match key {
        Key::StorageId => Path::new("st").join("orage-adapter-id"),
        Key::Chunk { document, kind, name } => {
            Path::new(&document.folder()).join(kind.name()).join(name)
        }
    }
}

/// The file with the reason why a chunk is in quarantine.
pub(super) fn reason_file(path: &Path) -> PathBuf {
    let mut own = path.as_os_str().to_owned();
    own.push(".reason");
    own.into()
}
