//! Helpers for the paths and files of commands.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use super::error::{CliError, io_error};
use crate::base::folder::Folder;

/// Makes a path absolute, without following symbolic links.
pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(io_error(path))
}

/// Splits a path into its folder and its name there.
pub(super) fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(path), path.file_name().unwrap_or_default())
}

/// Writes a file atomically, readable by its owner alone.
pub(super) fn write_file(path: &Path, data: &[u8]) -> Result<(), CliError> {
    let (folder, name) = split(path);
    let written = Folder::create(folder).and_then(|folder| folder.write(name, data, 0o600, None));
    written.map_err(io_error(path))
}

/// Removes a file. It is not an error if it does not exist.
pub(super) fn remove(path: &Path) -> Result<(), CliError> {
    let (folder, name) = split(path);
    match Folder::open(folder).and_then(|folder| folder.remove(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}
