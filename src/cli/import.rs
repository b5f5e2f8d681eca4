//! `tonk-relay import`: merges the documents of another relay's folder with what is stored.

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;
use hyper::Method;

use super::{
    backup_folder::BackupIndex,
    error::{CliError, io_error, path_error},
    merge::{MergeReport, Merger},
    progress::Progress,
    relay::{Relay, StorageArguments},
};
use crate::{
    admin::{client::AdminError, storage::storage_id::StorageId},
    base::{document_id::DocumentId, folder},
    storage::{
        StorageError, documents,
        local::{
            journal::count_rows,
            walk::{self, Found},
        },
    },
};

/// The largest storage id file that is read, in bytes.
const MAX_STORAGE_ID: u64 = 4096;

/// `tonk-relay import`
#[derive(Debug, Args)]
pub(super) struct ImportArguments {
    /// The storage folder of a TypeScript relay or an automerge-repo sync server, which must be
    /// stopped
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not adopt the folder's storage id, for a copy of a relay that stays in use
    #[arg(long)]
    new_identity: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(super) fn run(arguments: &ImportArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    refuse_unfit_folder(arguments)?;
    let documents = list_documents(folder)?;
    let mut relay = arguments.storage.relay.stored_or_new()?;
    let mut merger = Merger::new(arguments.dry_run);
    if !arguments.new_identity {
        import_storage_id(&mut relay, folder, &mut merger.report)?;
    }
    let progress = Progress::new("documents");
    let total = documents.len();
    for (done, document) in documents.into_iter().enumerate() {
        progress.set(done, total);
        import_document(&mut relay, folder, document, &mut merger)?;
    }
    merger.flush(&mut relay)?;
    progress.end();
    merger.report.finish(arguments.storage.json)
}

/// Fails if the folder is a backup, this relay's own folder, or has changes in a journal, which an
/// import would not see.
fn refuse_unfit_folder(arguments: &ImportArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    if BackupIndex::read(folder)?.is_some() {
        return Err(path_error(folder, "is a backup: use `tonk-relay restore`"));
    }
    let own = arguments.storage.relay.folders();
    if own.iter().any(|own| is_same(own, folder)) {
        return Err(path_error(folder, "is this relay's own folder"));
    }
    match count_rows(folder) {
        Ok(0) => Ok(()),
        Ok(_) | Err(StorageError::InUse(_)) => {
            let problem = "has a journal with changes that are not in the folders; stop that relay \
                           and run its `tonk-relay checkpoint` first";
            Err(path_error(folder, problem))
        }
        Err(error) => Err(error.into()),
    }
}

fn list_documents(folder: &Path) -> Result<Vec<DocumentId>, CliError> {
    let mut documents = Vec::new();
    walk::walk(folder, |found| {
        match found {
            Found::Document(document) => documents.push(document),
            Found::Foreign(path) => {
                eprintln!("{}: not a file of automerge-repo; ignored", path.display());
            }
        }
        true
    })?;
    Ok(documents)
}

/// Takes over the folder's storage id, unless this storage has an id already.
fn import_storage_id(
    relay: &mut Relay,
    folder: &Path,
    report: &mut MergeReport,
) -> Result<(), CliError> {
    let file = folder.join("st/orage-adapter-id");
    let Some(id) = read_storage_id(&file)? else { return Ok(()) };
    if report.dry_run {
        let here: StorageId = relay.request(Method::GET, "/storage-id")?;
        report.storage_id = here.storage_id.is_none();
        return Ok(());
    }
    let id = StorageId { storage_id: Some(id.trim().to_owned()) };
    match relay.send(Method::PUT, "/storage-id", &id) {
        Err(CliError::Admin(AdminError::Refused(reason))) => report.refuse(file.display(), reason),
        is_taken => report.storage_id = is_taken?,
    }
    Ok(())
}

/// Reads a storage id; none if the file does not exist.
fn read_storage_id(file: &Path) -> Result<Option<String>, CliError> {
    match folder::read(file, MAX_STORAGE_ID) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(String::from_utf8_lossy(&read.map_err(io_error(file))?).into_owned())),
    }
}

fn import_document(
    relay: &mut Relay,
    folder: &Path,
    document: DocumentId,
    merger: &mut Merger,
) -> Result<(), CliError> {
    let chunks = match walk::read_document(folder, document) {
        Ok(chunks) if chunks.is_empty() => return Ok(()),
        Ok(chunks) => chunks,
        Err(error) => {
            merger.report.refuse(document, error);
            return Ok(());
        }
    };
    let mut assembled = documents::assemble(document, chunks, None);
    for (key, reason) in assembled.broken {
        merger.report.refuse(key, reason);
    }
    if !assembled.opened.heads.is_empty() || assembled.opened.doc.has_orphans() {
        merger.merge(relay, document, assembled.opened.doc.automerge().save())?;
    }
    Ok(())
}

fn is_same(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    real(a).is_some() && real(a) == real(b)
}
