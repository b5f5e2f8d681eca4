//! Durable writes and reads of whole files in the storage folder.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::layout::TMP;
use crate::{
    base::folder::{self, Folder},
    storage::StorageError,
};

/// The largest file that is read, in bytes. No document is nearly as large.
pub(crate) const MAX_FILE: u64 = 1 << 30;

/// Wraps the error of an operation on `path`.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::io(action, path, source)
}

/// Writes files atomically: writes them into `.tmp`, synchronises them, renames them and
/// synchronises the folders. Each step is done for all files before the next, because a journalling
/// file system then combines the work.
pub(super) fn write_atomically(
    root: &Path,
    files: &[(PathBuf, Bytes)],
    syncs: bool,
) -> Result<(), StorageError> {
    let mut folders = BTreeSet::new();
    let mut written = Vec::with_capacity(files.len());
    for (path, data) in files {
        let folder = path.parent().unwrap_or(root);
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
            // A new folder is durable once its parent is synchronised. All parents are
            // synchronised, because another thread may just have created some of them.
            folders.extend(folder.ancestors().skip(1).take_while(|above| above.starts_with(root)));
        }
        folders.insert(folder);
        // Deleted on drop, unless it was renamed.
        let mut file =
            tempfile::NamedTempFile::new_in(root.join(TMP)).map_err(failed("write", path))?;
        file.write_all(data).map_err(failed("write", path))?;
        written.push((path, file));
    }
    if syncs {
        for (path, file) in &written {
            file.as_file().sync_data().map_err(failed("write", path))?;
        }
    }
    for (path, file) in written {
        file.persist(path).map_err(|e| failed("write", path)(e.error))?;
    }
    if syncs { folders.into_iter().try_for_each(sync_folder) } else { Ok(()) }
}

/// Makes the entries of a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    Folder::open(folder)
        .and_then(|folder| folder.file().sync_all())
        .map_err(failed("write", folder))
}

/// Reads a whole file, if it exists.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match folder::read(path, MAX_FILE) {
        Ok(data) => Ok(Some(data)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}
