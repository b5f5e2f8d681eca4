//! Copies of what is stored: `backup` makes one, `restore` brings it back, `import` takes another relay's folder,
//! and `export` makes a bundle of one app.

pub(super) mod backup;
pub(super) mod export;
pub(super) mod import;
pub(super) mod merge;
pub(super) mod restore;

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use hyper::Method;

use super::{CliError, progress::Progress, relay::Relay, show, storage::StorageArguments};
use crate::{
    admin::{client::AdminError, storage::answers::Content},
    base::{document_id::DocumentId, folder::Folder},
};

fn at(path: &Path) -> impl Fn(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Io { path: path.clone(), source }
}

fn says(path: &Path, problem: impl ToString) -> CliError {
    CliError::Copy { path: path.to_owned(), problem: problem.to_string() }
}

/// The folder of a path, and its name there.
fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(path), path.file_name().unwrap_or_default())
}

/// Write a file as a whole or not at all. What it is about is nobody else's.
fn write_file(path: &Path, data: &[u8]) -> Result<(), CliError> {
    let (folder, name) = split(path);
    let written = Folder::create(folder).and_then(|folder| folder.write(name, data, 0o600, None));
    written.map_err(at(path))
}

fn remove(path: &Path) -> Result<(), CliError> {
    let (folder, name) = split(path);
    match Folder::open(folder).and_then(|folder| folder.remove(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// All that can be read of a document; nothing if it is not there any more. `with_bundle`: also what the served
/// bundle has of it.
fn content(
    relay: &mut Relay,
    document: DocumentId,
    with_bundle: bool,
) -> Result<Option<Content>, CliError> {
    let path = format!("/documents/{document}/content?with_bundle={with_bundle}");
    match relay.fetch(Method::GET, &path, Bytes::new()) {
        Ok(content) => {
            let content = minicbor::decode(&content);
            Ok(Some(content.map_err(|error| AdminError::Answer(error.to_string()))?))
        }
        Err(CliError::Admin(AdminError::Missing(_))) => Ok(None),
        Err(error) => Err(error),
    }
}
