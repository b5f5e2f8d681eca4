//! Which backups were made of this storage: noted in `.backups`, so that a deletion can say what may hold a document
//! still, and that an alert can say that the last one is long ago.

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
    /// The folder that it went to.
    pub folder: String,
    /// When it was last begun, in RFC 3339.
    pub at: String,
    /// When it was last whole.
    #[serde(default)]
    pub whole_at: Option<String>,
}

type Noted = BTreeMap<String, Backup>;

fn noted(root: &Path) -> Noted {
    let text = read(&root.join(FILE)).ok().flatten().unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Those of the storage folder `root`. Blocks.
pub fn list(root: &Path) -> Vec<Backup> {
    noted(root).into_values().collect()
}

/// Note that one was begun, or is whole; durable when this returns. Blocks.
///
/// # Errors
/// The file cannot be written.
pub fn note(root: &Path, made: Backup) -> Result<(), StorageError> {
    let mut noted = noted(root);
    let whole_before = noted.get(&made.folder).and_then(|earlier| earlier.whole_at.clone());
    let whole_at = made.whole_at.clone().or(whole_before);
    noted.insert(made.folder.clone(), Backup { whole_at, ..made });
    let text = serde_json::to_vec(&noted).unwrap_or_default();
    write_atomically(root, &[(root.join(FILE), text.into())], true)
}

/// When the last one was made that is whole, in seconds since 1970; none if none is known. Blocks.
pub fn last_whole(root: &Path) -> Option<f64> {
    let times = list(root).into_iter().filter_map(|made| {
        let at: SystemTime = humantime::parse_rfc3339(&made.whole_at?).ok()?;
        Some(at.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
    });
    times.reduce(f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_whole_stays_so_while_the_next_is_begun() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join(".tmp")).expect("made");
        assert_eq!(last_whole(folder.path()), None);
        let made = |folder: &str, at: &str, whole_at: Option<&str>| Backup {
            folder: folder.to_owned(),
            at: at.to_owned(),
            whole_at: whole_at.map(ToOwned::to_owned),
        };
        let (first, second) = ("1970-01-01T00:00:10Z", "1970-01-01T00:00:20Z");
        note(folder.path(), made("/a", first, None)).expect("noted");
        assert_eq!(last_whole(folder.path()), None);
        note(folder.path(), made("/a", first, Some(first))).expect("noted");
        note(folder.path(), made("/a", second, None)).expect("noted");
        note(folder.path(), made("/b", second, None)).expect("noted");
        assert_eq!(last_whole(folder.path()), Some(10.0));
        assert_eq!(list(folder.path())[0], made("/a", second, Some(first)));
    }
}
