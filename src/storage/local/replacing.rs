//! A restore that replaces all that is stored: from the moment in which it moves that away until all of the backup
//! is there, a file says so, and no relay starts with half of it.

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
pub struct Source {
    /// The folder of the backup.
    pub folder: PathBuf,
    /// The SHA-256 of its index: a backup that was brought up to date meanwhile is another one.
    pub sha256: String,
}

/// What a restore that replaces all has done so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replacing {
    /// The backup that is restored.
    pub backup: Source,
    /// The names of the folders, beside the documents, to which what was stored moved: what was stored before all of
    /// this, and after it what each interrupted restore of another backup had brought.
    pub folders: Vec<String>,
    /// Whether everything has moved to the last of them. What is stored then is the backup's.
    pub is_moved: bool,
}

impl Replacing {
    /// The name of the folder to which what is stored moves, or has moved.
    pub fn folder(&self) -> &str {
        self.folders.last().map_or(REPLACED, String::as_str)
    }
}

/// Begins a restore of `backup`, or resumes that one. Where the restore of another backup was interrupted, what it has
/// brought is to move aside like anything else that is stored, so that no part of one is mixed with the other. Blocks.
///
/// # Errors
/// The file that says so cannot be written.
pub fn begin(root: &Path, backup: Source) -> Result<Replacing, StorageError> {
    let mut replacing = match unfinished(root)? {
        Some(same) if same.backup == backup => return Ok(same),
        Some(other) => Replacing { backup, ..other },
        None => Replacing { backup, folders: Vec::new(), is_moved: true },
    };
    // Of a restore that has not moved everything nothing is stored yet: its folder takes the rest.
    if replacing.is_moved {
        replacing.folders.push(free_name(root));
        replacing.is_moved = false;
    }
    write(root, &replacing)?;
    Ok(replacing)
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

/// What was stored is out of the way. Blocks.
///
/// # Errors
/// The file that says so cannot be written.
pub fn moved(root: &Path, replacing: &mut Replacing) -> Result<(), StorageError> {
    replacing.is_moved = true;
    write(root, replacing)
}

fn write(root: &Path, replacing: &Replacing) -> Result<(), StorageError> {
    let text = serde_json::to_vec(replacing).unwrap_or_default();
    write_atomically(root, &[(root.join(REPLACING), text.into())], true)
}

/// All is there. Blocks.
///
/// # Errors
/// The file cannot be deleted.
pub fn end(root: &Path) -> Result<(), StorageError> {
    let path = root.join(REPLACING);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("delete", &path)(error))
        }
        _ => sync_folder(root),
    }
}

/// The restore that was not finished, if there is one. Blocks.
///
/// # Errors
/// That cannot be told.
pub fn unfinished(root: &Path) -> Result<Option<Replacing>, StorageError> {
    let Some(text) = read(&root.join(REPLACING))? else { return Ok(None) };
    let replacing = serde_json::from_slice(&text);
    replacing
        .map(Some)
        .map_err(|error| StorageError::Corrupt(Failure::new("read", root.join(REPLACING), error)))
}

/// The folders beside the documents with what restores have replaced. Blocks.
pub fn replaced(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(REPLACED))
    };
    entries.map(|entry| entry.path()).filter(is_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_backup_does_not_go_on_where_one_was_interrupted() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        std::fs::create_dir(root.join(".tmp")).expect("made");
        let backup = |name: &str| Source { folder: name.into(), sha256: name.to_owned() };
        let first = begin(root, backup("a")).expect("begins");
        assert_eq!((first.folders.len(), first.is_moved), (1, false));
        assert_eq!(begin(root, backup("a")).expect("resumes"), first);
        let mut other = begin(root, backup("b")).expect("takes over");
        assert_eq!(other.folders, first.folders, "nothing of the first is stored yet");
        std::fs::create_dir(root.join(other.folder())).expect("made");
        moved(root, &mut other).expect("noted");
        let third = begin(root, backup("c")).expect("takes over");
        assert_eq!((third.folders.len(), third.is_moved), (2, false));
        assert_eq!(third.folders[0], first.folders[0]);
        assert_ne!(third.folders[1], first.folders[0]);
        end(root).expect("ends");
        assert_eq!(unfinished(root).expect("reads"), None);
    }
}
