//! Copies of what is stored: `backup` makes one, `restore` brings it back, `import` takes another relay's folder,
//! and `export` makes a bundle of one app.

pub(super) mod backup;
pub(super) mod export;
pub(super) mod import;
pub(super) mod merge;
pub(super) mod restore;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use hyper::Method;

use super::{CliError, progress::Progress, relay::Relay, show, storage::StorageArguments};
use crate::{
    admin::{client::AdminError, storage::answers::Content},
    document_id::DocumentId,
};

fn at(path: &Path) -> impl Fn(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Io { path: path.clone(), source }
}

fn says(path: &Path, problem: impl ToString) -> CliError {
    CliError::Copy { path: path.to_owned(), problem: problem.to_string() }
}

/// Write a file as a whole or not at all. What it is about is nobody else's.
fn write_file(path: &Path, data: &[u8]) -> Result<(), CliError> {
    write_file_with(path, data, fs::Permissions::from_mode(0o600))
}

/// The same with other permissions, as far as the umask lets them.
fn write_file_with(path: &Path, data: &[u8], mode: fs::Permissions) -> Result<(), CliError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(at(folder))?;
    let mut file =
        tempfile::Builder::new().permissions(mode).tempfile_in(folder).map_err(at(path))?;
    file.write_all(data).map_err(at(path))?;
    file.as_file().sync_data().map_err(at(path))?;
    file.persist(path).map_err(|error| at(path)(error.error))?;
    Ok(())
}

fn remove(path: &Path) -> Result<(), CliError> {
    match fs::remove_file(path) {
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
