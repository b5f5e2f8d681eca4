//! Files that commands write and remove.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use super::error::{CliError, io_error};
use crate::base::folder::Folder;

pub(super) fn absolute(path: &Path) -> Result<PathBuf, CliError> {
    std::path::absolute(path).map_err(io_error(path))
}

/// The folder of a path, and its name there.
pub(super) fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(path), path.file_name().unwrap_or_default())
}

/// Write a file as a whole or not at all. What it is about is nobody else's.
pub(super) fn write_file(path: &Path, data: &[u8]) -> Result<(), CliError> {
    let (folder, name) = split(path);
    let written = Folder::create(folder).and_then(|folder| folder.write(name, data, 0o600, None));
    written.map_err(io_error(path))
}

pub(super) fn remove(path: &Path) -> Result<(), CliError> {
    let (folder, name) = split(path);
    match Folder::open(folder).and_then(|folder| folder.remove(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}
