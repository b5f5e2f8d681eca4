//! Records of the backups of this storage, in `.backups`. A deletion lists the backups that may
//! still hold the document, and an alert fires when the last backup is too old.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    collections::BTreeMap,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::files::{read, write_atomically};
use crate::storage::StorageError;

const FILE: &str = ".backups";

/// A backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// Its folder.
    pub folder: String,
    /// When it was last started, in RFC 3339.
    pub at: String,
    /// When it was last complete, in RFC 3339.
    #[serde(default)]
    pub whole_at: Option<String>,
}

/// The backups by their folders.
fn load(root: &Path) -> BTreeMap<String, Backup> {
    let text = read(&root.join(FILE)).ok().flatten().unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Lists the backups of the storage folder `root`. Blocks.
pub fn list(root: &Path) -> Vec<Backup> {
    load(root).into_values().collect()
}

/// Records that a backup was started, or is complete. Durable when this returns. Blocks.
///
/// # Errors
/// The file cannot be written.
pub fn record(root: &Path, backup: Backup) -> Result<(), StorageError> {
    let mut backups = load(root);
    let earlier = backups.get(&backup.folder).and_then(|earlier| earlier.whole_at.clone());
    let whole_at = backup.whole_at.clone().or(earlier);
    backups.insert(backup.folder.clone(), Backup { whole_at, ..backup });
    let text = serde_json::to_vec(&backups).unwrap_or_default();
    write_atomically(root, &[(root.join(FILE), text.into())], true)
}

/// When a backup was last complete, in seconds since 1970, if ever. Blocks.
pub fn last_complete(root: &Path) -> Option<f64> {
    let times = list(root).into_iter().filter_map(|backup| {
        let at: SystemTime = humantime::parse_rfc3339(&backup.whole_at?).ok()?;
        Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
    });
    times.reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complete_backup_counts_while_the_next_one_runs() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(".tmp")).expect("made");
        assert_eq!(last_complete(folder.path()), None);
        let backup = |folder: &str, at: &str, whole_at: Option<&str>| Backup {
            folder: folder.to_owned(),
            at: at.to_owned(),
            whole_at: whole_at.map(ToOwned::to_owned),
        };
        let (first, second) = ("1970-01-01T00:00:10Z", "1970-01-01T00:00:20Z");
        record(folder.path(), backup("/a", first, None)).expect("recorded");
        assert_eq!(last_complete(folder.path()), None);
        record(folder.path(), backup("/a", first, Some(first))).expect("recorded");
        record(folder.path(), backup("/a", second, None)).expect("recorded");
        record(folder.path(), backup("/b", second, None)).expect("recorded");
        assert_eq!(last_complete(folder.path()), Some(10.0));
        assert_eq!(list(folder.path())[0], backup("/a", second, Some(first)));
    }
}
