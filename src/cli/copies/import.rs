//! `tonk-relay import`

use clap::Args;

use super::{backup::Backup, merge::MergeAnswer, *};
use crate::{
    admin::storage::answers::StorageId,
    storage::{
        documents,
        walk::{self, Found},
    },
};

/// `tonk-relay import`
#[derive(Debug, Args)]
pub(in crate::cli) struct ImportArguments {
    /// The storage folder of a TypeScript relay or an automerge-repo sync server, which must be stopped
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(in crate::cli) fn import(arguments: &ImportArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    if Backup::read(folder)?.is_some() {
        return Err(says(folder, "is a backup: use `tonk-relay restore`"));
    }
    if fs::metadata(folder.join(".journal/journal.sqlite-wal")).is_ok_and(|wal| wal.len() > 0) {
        let problem =
            "has a journal that is in use: stop that relay, and run its `tonk-relay checkpoint`";
        return Err(says(folder, problem));
    }
    let mut documents = Vec::new();
    let mut answer = MergeAnswer { dry_run: arguments.dry_run, ..MergeAnswer::default() };
    walk::walk(folder, |found| {
        match found {
            Found::Document(document) => documents.push(document),
            Found::Foreign(path) => {
                eprintln!("{}: none of automerge-repo's; it is left out", path.display());
            }
        }
        true
    })?;
    let mut relay = arguments.storage.relay.stored()?;
    let id_file = folder.join("st/orage-adapter-id");
    if !arguments.dry_run
        && let Ok(id) = fs::read_to_string(&id_file)
    {
        let id = StorageId { storage_id: Some(id.trim().to_owned()) };
        answer.storage_id = relay.tell(Method::PUT, "/storage-id", &id)?;
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
        let checked = documents::check(document, chunks, None);
        for (key, reason) in checked.broken {
            answer.refuse(key, reason);
        }
        if !checked.opened.heads.is_empty() {
            answer.merge(&mut relay, document, checked.opened.doc.save().into())?;
        }
    }
    progress.end();
    answer.end(arguments.storage.json)
}
