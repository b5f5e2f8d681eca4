//! `tonk-relay import`

use std::{
    io,
    path::{Path, PathBuf},
};

use clap::Args;
use hyper::Method;

use super::{
    backup_folder::BackupIndex,
    error::{CliError, io_error, path_error},
    merge::MergeAnswer,
    progress::Progress,
    relay::StorageArguments,
};
use crate::{
    admin::{client::AdminError, storage::storage_id::StorageId},
    base::folder,
    storage::{
        StorageError, documents,
        local::{
            journal::count_rows,
            walk::{self, Found},
        },
    },
};

/// The largest file with a storage id that is read.
const MAX_ID: u64 = 4096;

/// `tonk-relay import`
#[derive(Debug, Args)]
pub(super) struct ImportArguments {
    /// The storage folder of a TypeScript relay or an automerge-repo sync server, which must be stopped
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave out the folder's storage id: for a copy, beside a relay that goes on
    #[arg(long)]
    new_identity: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(super) fn run(arguments: &ImportArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    if BackupIndex::read(folder)?.is_some() {
        return Err(path_error(folder, "is a backup: use `tonk-relay restore`"));
    }
    let own = arguments.storage.relay.folders();
    if own.iter().any(|own| is_same(own, folder)) {
        return Err(path_error(folder, "is this relay's own folder"));
    }
    match count_rows(folder) {
        Ok(0) => {}
        Ok(_) | Err(StorageError::InUse(_)) => {
            let problem = "has a journal with changes that are not in the folders: stop that relay, and run its \
                           `tonk-relay checkpoint`";
            return Err(path_error(folder, problem));
        }
        Err(error) => return Err(error.into()),
    }
    let mut documents = Vec::new();
    let mut answer = MergeAnswer::new(arguments.dry_run);
    walk::walk(folder, |found| {
        match found {
            Found::Document(document) => documents.push(document),
            Found::Foreign(path) => {
                eprintln!("{}: none of automerge-repo's; it is left out", path.display());
            }
        }
        true
    })?;
    let mut relay = arguments.storage.relay.stored_or_new()?;
    let id_file = folder.join("st/orage-adapter-id");
    if !arguments.new_identity
        && let Some(id) = read_id(&id_file)?
    {
        let id = StorageId { storage_id: Some(id.trim().to_owned()) };
        answer.storage_id = if arguments.dry_run {
            let here: StorageId = relay.ask(Method::GET, "/storage-id")?;
            here.storage_id.is_none()
        } else {
            match relay.tell(Method::PUT, "/storage-id", &id) {
                Err(CliError::Admin(AdminError::Refused(reason))) => {
                    answer.refuse(id_file.display(), reason);
                    false
                }
                is_taken => is_taken?,
            }
        };
    }
    let progress = Progress::new("documents");
    let all = documents.len();
    for (n, document) in documents.into_iter().enumerate() {
        progress.is_at(n, all);
        let chunks = match walk::read_document(folder, document) {
            Ok(chunks) if chunks.is_empty() => continue,
            Ok(chunks) => chunks,
            Err(error) => {
                answer.refuse(document, error);
                continue;
            }
        };
        let mut assembled = documents::assemble(document, chunks, None);
        for (key, reason) in assembled.broken {
            answer.refuse(key, reason);
        }
        let waits = assembled.opened.doc.has_orphans();
        if !assembled.opened.heads.is_empty() || waits {
            answer.merge(&mut relay, document, assembled.opened.doc.automerge().save())?;
        }
    }
    answer.merge_rest(&mut relay)?;
    progress.end();
    answer.end(arguments.storage.json)
}

/// The storage id of the folder; nothing if it has none.
fn read_id(file: &Path) -> Result<Option<String>, CliError> {
    match folder::read(file, MAX_ID) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(String::from_utf8_lossy(&read.map_err(io_error(file))?).into_owned())),
    }
}

fn is_same(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    real(a).is_some() && real(a) == real(b)
}
