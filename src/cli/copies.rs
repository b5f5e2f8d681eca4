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
    path::{Path, PathBuf},
};

use bytes::Bytes;
use hyper::Method;

use super::{CliError, progress::Progress, relay::Relay, show, storage::StorageArguments};
use crate::{admin::client::AdminError, document_id::DocumentId};

fn at(path: &Path) -> impl Fn(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Io { path: path.clone(), source }
}

fn says(path: &Path, problem: impl ToString) -> CliError {
    CliError::Copy { path: path.to_owned(), problem: problem.to_string() }
}

/// Write a file as a whole or not at all.
fn write_file(path: &Path, data: &[u8]) -> Result<(), CliError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(at(folder))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(at(path))?;
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

/// A document's content; nothing if it is not there any more.
fn content(relay: &mut Relay, document: DocumentId) -> Result<Option<Bytes>, CliError> {
    let path = format!("/documents/{document}/content");
    match relay.fetch(Method::GET, &path, Bytes::new()) {
        Ok(content) => Ok(Some(content)),
        Err(CliError::Admin(AdminError::Missing(_))) => Ok(None),
        Err(error) => Err(error),
    }
}
