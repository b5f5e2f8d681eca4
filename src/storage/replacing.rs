//! A restore that replaces all that is stored: from the moment in which it moves that away until all of the backup
//! is there, a file says so, and no relay starts with half of it.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    StorageError,
    nodefs::{REPLACED, REPLACING, failed, read, sync_folder, write_atomically},
};

const MOVED: &str = "moved";

/// What a restore that replaces all has done so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacing {
    /// The name of the folder, beside the documents, to which what was stored moves.
    pub name: String,
    /// Whether it was moved there. What is stored then is the backup's.
    pub is_moved: bool,
}

/// Begin, or go on with what was interrupted. Blocks.
///
/// # Errors
/// The file that says so cannot be written.
pub fn begin(root: &Path) -> Result<Replacing, StorageError> {
    if let Some(unfinished) = unfinished(root)? {
        return Ok(unfinished);
    }
    let now = humantime::format_rfc3339_seconds(SystemTime::now());
    let name = |n: u32| match n {
        0 => format!("{REPLACED}{now}"),
        n => format!("{REPLACED}{now}-{n}"),
    };
    let free = (0..).find(|n| !root.join(name(*n)).exists());
    let replacing = Replacing { name: name(free.unwrap_or_default()), is_moved: false };
    write(root, format!("{}\n", replacing.name))?;
    Ok(replacing)
}

/// What was stored is out of the way. Blocks.
///
/// # Errors
/// The file that says so cannot be written.
pub fn moved(root: &Path, name: &str) -> Result<(), StorageError> {
    write(root, format!("{name}\n{MOVED}\n"))
}

fn write(root: &Path, text: String) -> Result<(), StorageError> {
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
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines();
    let name = lines.next().unwrap_or_default().to_owned();
    Ok(Some(Replacing { name, is_moved: lines.next() == Some(MOVED) }))
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
