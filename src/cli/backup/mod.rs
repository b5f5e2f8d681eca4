//! `tonk-relay backup`

mod answer;
mod copy;

use std::{
    collections::BTreeSet,
    fs::TryLockError,
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use clap::Args;
use hyper::Method;

use self::{
    answer::{BackupAnswer, describe},
    copy::{copy, copy_bundles},
};
use super::{
    backup_folder::{BackupIndex, FORMAT, is_hash, tombstone_file},
    error::{CliError, io_error, path_error},
    files::{absolute, write_file},
    output::show,
    progress::Progress,
    relay::{Relay, StorageArguments},
};
use crate::{
    admin::storage::{documents::Entry, storage_id::StorageId},
    base::{document_id::DocumentId, folder::Folder},
    storage::local::{backups, tombstones::Tombstone, walk::Listed},
};

/// How often a first backup notes how far it is.
const NOTE_EVERY: Duration = Duration::from_secs(5);

/// `tonk-relay backup`
#[derive(Debug, Args)]
pub(super) struct BackupArguments {
    /// The folder of the backup: a new one, or an earlier backup, which is brought up to date
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(super) fn run(arguments: &BackupArguments) -> Result<(), CliError> {
    let folder = &absolute(&arguments.folder)?;
    for own in arguments.storage.relay.folders() {
        // The folder may not be there yet, and then what it will be in counts.
        let real = folder.ancestors().find_map(|folder| std::fs::canonicalize(folder).ok());
        if let (Some(real), Ok(own)) = (real, std::fs::canonicalize(own))
            && real.starts_with(own)
        {
            return Err(path_error(folder, "is in a folder of the relay's own"));
        }
    }
    let opened = Folder::create(folder).map_err(io_error(folder))?;
    match opened.file().try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(path_error(folder, "another backup goes there at this time"));
        }
        Err(TryLockError::Error(error)) => return Err(io_error(folder)(error)),
    }
    let earlier = BackupIndex::read(folder)?;
    if earlier.is_none() && !opened.entries().map_err(io_error(folder))?.is_empty() {
        return Err(path_error(folder, "is neither empty nor an earlier backup"));
    }
    let mut relay = arguments.storage.relay.stored()?;
    // One that has none yet is given one.
    let _: bool = relay.tell(Method::PUT, "/storage-id", &StorageId { storage_id: None })?;
    let StorageId { storage_id } = relay.ask(Method::GET, "/storage-id")?;
    let earlier = earlier.unwrap_or_else(|| BackupIndex {
        storage_id: storage_id.clone(),
        ..BackupIndex::default()
    });
    if earlier.storage_id != storage_id {
        let problem = format!(
            "is a backup of another storage, {}; this one is {}",
            earlier.storage_id.as_deref().unwrap_or("without an id"),
            storage_id.as_deref().unwrap_or("without an id")
        );
        return Err(path_error(folder, problem));
    }
    let mut made = BackupIndex {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        storage_id,
        made_at: now(),
        is_complete: false,
        documents: earlier.documents,
        bundles: earlier.bundles,
        deleted: BTreeSet::new(),
    };
    // They become paths here, perhaps root's.
    made.documents.retain(|_, copied| is_hash(&copied.sha256));
    let is_first = !earlier.is_complete;
    let documents = folder.join("documents");
    Folder::create(&documents).map_err(io_error(&documents))?;
    if is_first {
        made.write(folder)?;
    }
    let mut noted = backups::Backup {
        folder: folder.display().to_string(),
        at: made.made_at.clone(),
        whole_at: None,
    };
    let () = relay.tell(Method::POST, "/backups", &noted)?;

    let tombstones: Vec<Tombstone> = relay.ask(Method::GET, "/deleted")?;
    let mut answer = BackupAnswer { tombstones: tombstones.len(), ..BackupAnswer::default() };
    let listed = list(&mut relay)?;
    let progress = Progress::new("documents");
    let all = listed.len();
    let mut gone: BTreeSet<DocumentId> = made.documents.keys().copied().collect();
    let mut noted_at = Instant::now();
    for (n, document) in listed.into_iter().enumerate() {
        progress.is_at(n, all);
        if is_first && noted_at.elapsed() > NOTE_EVERY {
            // An interrupted one goes on from here.
            made.write(folder)?;
            noted_at = Instant::now();
        }
        gone.remove(&document.document);
        let known = made.documents.get(&document.document);
        let is_unchanged = known.is_some_and(|known| known.fingerprint == document.fingerprint);
        if is_unchanged && answer.check_copy(&made, folder, document.document) {
            answer.unchanged += 1;
        } else if let Some(copied) = copy(&mut relay, folder, &document, known, &mut answer)? {
            answer.copied += 1;
            answer.bytes += copied.bytes;
            made.documents.insert(document.document, copied);
        }
    }
    progress.end();
    for document in &gone {
        if !tombstones.iter().any(|tombstone| tombstone.document == *document)
            && !answer.check_copy(&made, folder, *document)
        {
            answer.fail(document, "its copy is damaged, and the relay does not have it any more");
        }
    }
    copy_bundles(&mut relay, folder, &mut made, &mut answer)?;
    for tombstone in &tombstones {
        let path = tombstone_file(folder, tombstone.document);
        write_file(&path, &serde_json::to_vec(tombstone).unwrap_or_default())?;
        made.documents.remove(&tombstone.document);
        made.bundles.remove(&tombstone.document);
        made.deleted.insert(tombstone.document);
    }
    answer.kept_bundles.retain(|bundle| !made.deleted.contains(bundle));
    answer.kept = gone.into_iter().filter(|document| !made.deleted.contains(document)).collect();
    answer.documents = made.documents.len();
    answer.bundles = made.bundles.len();
    // The files are on the disk, and then their folders, before it says that they are there; what it needs no more
    // goes after that, so that one backup is whole at every moment.
    rustix::fs::syncfs(opened.file()).map_err(|error| io_error(folder)(error.into()))?;
    made.is_complete = true;
    made.write(folder)?;
    made.remove_the_rest(folder)?;
    show(arguments.storage.json, &answer, || describe(&answer));
    let lacks = !answer.kept.is_empty() || !answer.kept_bundles.is_empty();
    if !answer.failed.is_empty() || lacks {
        return Err(CliError::Said(1));
    }
    noted.whole_at = Some(noted.at.clone());
    relay.tell(Method::POST, "/backups", &noted)
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn list(relay: &mut Relay) -> Result<Vec<Listed>, CliError> {
    let (mut listed, mut end) = (Vec::new(), Err("the listing was cut off".to_owned()));
    relay.lines(Method::GET, "/documents", |entry: Entry<Listed>| match entry {
        Entry::Document(document) => listed.push(document),
        Entry::End => end = Ok(()),
        Entry::Problem(problem) => end = Err(problem),
    })?;
    end.map_err(CliError::NotListed)?;
    Ok(listed)
}
