//! The names of files and folders in the storage folder.

use std::path::{Path, PathBuf};

use crate::document::chunk::Key;

pub(crate) const TMP: &str = ".tmp";
pub(super) const LOCK: &str = ".lock";
pub(super) const FORMAT_FILE: &str = ".format";
/// Which uploaded bundles were imported.
pub(super) const IMPORTED: &str = ".imported";
pub(super) const QUARANTINE: &str = "quarantine";
/// What is the relay's own among the documents.
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

/// What a restore replaced begins with this.
pub(super) const REPLACED: &str = ".replaced-";
/// There from the moment in which a restore moves away what is stored until it has brought back
/// all: with half of a backup no relay starts.
pub(super) const REPLACING: &str = ".replacing";

/// The names of folders with broken journals begin with this.
pub(super) const BROKEN_JOURNAL: &str = "journal-";

pub(super) fn relative(key: &Key) -> PathBuf {
    match key {
        Key::StorageId => Path::new("st").join("orage-adapter-id"),
        Key::Chunk { document, kind, name } => {
            Path::new(&document.folder()).join(kind.name()).join(name)
        }
    }
}

/// The file with a chunk's own reason.
pub(super) fn own_reason(path: &Path) -> PathBuf {
    let mut own = path.as_os_str().to_owned();
    own.push(".reason");
    own.into()
}
