//! Files of the storage folder: durable writes, and reads of whole files. All of it blocks.

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

/// The largest file that is read as a whole: no document comes near it, and an endless one ends
/// here.
pub(crate) const MAX_FILE: u64 = 1 << 30;

/// Wraps the error of an operation on `path`.
pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    move |source| StorageError::io(action, path, source)
}

/// Write files, each with its content: aside, synchronised, renamed into place, and the folders
/// synchronised. All of each step before the next, for a journalling file system then does it at
/// once.
pub(super) fn write_atomically(
    root: &Path,
    files: &[(PathBuf, Bytes)],
    syncs: bool,
) -> Result<(), StorageError> {
    let mut folders = BTreeSet::new();
    let mut aside = Vec::with_capacity(files.len());
    for (path, data) in files {
        let folder = path.parent().unwrap_or(root);
        if !folder.is_dir() {
            fs::create_dir_all(folder).map_err(failed("create", folder))?;
            // Folders that were made are durable in those above them. All of them, for another
            // thread may just have made some.
            folders.extend(folder.ancestors().skip(1).take_while(|above| above.starts_with(root)));
        }
        folders.insert(folder);
        // tempfile: removes the file again on every way out but the rename.
        let mut file =
            tempfile::NamedTempFile::new_in(root.join(TMP)).map_err(failed("write", path))?;
        file.write_all(data).map_err(failed("write", path))?;
        aside.push((path, file));
    }
    if syncs {
        for (path, file) in &aside {
            file.as_file().sync_data().map_err(failed("write", path))?;
        }
    }
    for (path, file) in aside {
        file.persist(path).map_err(|e| failed("write", path)(e.error))?;
    }
    if syncs { folders.into_iter().try_for_each(sync_folder) } else { Ok(()) }
}

pub(super) fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    Folder::open(folder)
        .and_then(|folder| folder.file().sync_all())
        .map_err(failed("write", folder))
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match folder::read(path, MAX_FILE) {
        Ok(data) => Ok(Some(data)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}
