//! The marker of a restore that replaces everything: a file that exists from before the stored
//! documents are moved away until the whole backup is in their place. While it exists the relay
//! refuses to start.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    files::{failed, read, sync_folder, write_atomically},
    layout::{REPLACED, REPLACING},
};
use crate::storage::{Failure, StorageError};

/// A backup, as `.replacing` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSource {
    /// The folder of the backup.
    pub folder: PathBuf,
    /// The SHA-256 of its index. A backup that was updated meanwhile counts as another one.
    pub sha256: String,
}

/// The progress of a restore that replaces everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreMarker {
    /// The backup that is restored.
    pub backup: BackupSource,
    /// The names of the folders to which stored documents were moved. The first has those that were
    /// stored before; each further one has those of an interrupted restore of another backup.
    pub folders: Vec<String>,
    /// Whether everything was moved to the last of these folders. All stored documents are then
    /// from the backup.
    pub is_moved: bool,
}

impl RestoreMarker {
    /// The name of the folder to which the stored documents are moved.
    pub fn folder(&self) -> &str {
        self.folders.last().map_or(REPLACED, String::as_str)
    }
}

/// Begins a restore of `backup`, or resumes it. If the restore of another backup was interrupted,
/// the documents that it restored must be moved aside too, so that the backups are not mixed.
/// Blocks.
///
/// # Errors
/// The marker cannot be written.
pub fn begin(root: &Path, backup: BackupSource) -> Result<RestoreMarker, StorageError> {
    let mut marker = match unfinished(root)? {
        Some(same) if same.backup == backup => return Ok(same),
        Some(other) => RestoreMarker { backup, ..other },
        None => RestoreMarker { backup, folders: Vec::new(), is_moved: true },
    };
    // A restore that has not moved everything has restored nothing, so its folder is used again.
    if marker.is_moved {
        marker.folders.push(free_name(root));
        marker.is_moved = false;
    }
    write(root, &marker)?;
    Ok(marker)
}

fn free_name(root: &Path) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    let name = |n: u32| match n {
        0 => format!("{REPLACED}{now}"),
        n => format!("{REPLACED}{now}-{n}"),
    };
    let free = (0..).find(|n| !root.join(name(*n)).exists());
    name(free.unwrap_or_default())
}

/// Records that everything was moved aside. Blocks.
///
/// # Errors
/// The marker cannot be written.
pub fn record_moved(root: &Path, marker: &mut RestoreMarker) -> Result<(), StorageError> {
    marker.is_moved = true;
    write(root, marker)
}

fn write(root: &Path, marker: &RestoreMarker) -> Result<(), StorageError> {
    let text = serde_json::to_vec(marker).unwrap_or_default();
    write_atomically(root, &[(root.join(REPLACING), text.into())], true)
}

/// Deletes the marker, because the restore is complete. Blocks.
///
/// # Errors
/// The marker cannot be deleted.
pub fn end(root: &Path) -> Result<(), StorageError> {
    let path = root.join(REPLACING);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("delete", &path)(error))
        }
        _ => sync_folder(root),
    }
}

/// The marker of a restore that is not complete, if there is one. Blocks.
///
/// # Errors
/// The marker cannot be read.
pub fn unfinished(root: &Path) -> Result<Option<RestoreMarker>, StorageError> {
    let Some(text) = read(&root.join(REPLACING))? else { return Ok(None) };
    let marker = serde_json::from_slice(&text);
    marker
        .map(Some)
        .map_err(|error| StorageError::Corrupt(Failure::new("read", root.join(REPLACING), error)))
}

/// The folders with the documents that restores have replaced. Blocks.
pub fn replaced_folders(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let is_replaced = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(REPLACED))
    };
    entries.map(|entry| entry.path()).filter(is_replaced).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_restore_of_another_backup_does_not_resume_an_interrupted_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        std::fs::create_dir(root.join(".tmp")).expect("made");
        let backup = |name: &str| BackupSource { folder: name.into(), sha256: name.to_owned() };
        let first = begin(root, backup("a")).expect("begins");
        assert_eq!((first.folders.len(), first.is_moved), (1, false));
        assert_eq!(begin(root, backup("a")).expect("resumes"), first);
        let mut other = begin(root, backup("b")).expect("takes over");
        assert_eq!(other.folders, first.folders, "nothing of the first is stored yet");
        std::fs::create_dir(root.join(other.folder())).expect("made");
        record_moved(root, &mut other).expect("recorded");
        let third = begin(root, backup("c")).expect("takes over");
        assert_eq!((third.folders.len(), third.is_moved), (2, false));
        assert_eq!(third.folders[0], first.folders[0]);
        assert_ne!(third.folders[1], first.folders[0]);
        end(root).expect("ends");
        assert_eq!(unfinished(root).expect("reads"), None);
    }
}
