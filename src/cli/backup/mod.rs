//! `tonk-relay backup`: brings a backup folder up to date with what a relay stores.

mod copy;
mod report;

use std::{
    collections::BTreeSet,
    fs::TryLockError,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use clap::Args;
use hyper::Method;

use self::{
    copy::BackupRun,
    report::{BackupReport, describe},
};
use super::{
    backup_folder::{BackupIndex, FORMAT, is_sha256},
    error::{CliError, io_error, path_error},
    files::absolute,
    output::show,
    relay::{Relay, StorageArguments},
};
use crate::{
    admin::storage::storage_id::StorageId,
    base::folder::{self, Folder},
    storage::{local::backups, records::Tombstone},
};

/// `tonk-relay backup`
#[derive(Debug, Args)]
pub(super) struct BackupArguments {
    /// The folder for the backup: a new or empty folder, or an earlier backup to update
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(super) fn run(arguments: &BackupArguments) -> Result<(), CliError> {
    let folder = &absolute(&arguments.folder)?;
    let relay_folders = arguments.storage.relay.folders();
    refuse_relay_folders(folder, &relay_folders)?;
    if let Some(code) = run_as_service(folder, &relay_folders)? {
        return if code == 0 { Ok(()) } else { Err(CliError::Reported(code)) };
    }
    let opened = open_locked(folder)?;
    let earlier = BackupIndex::read(folder)?;
    if earlier.is_none() && !opened.entries().map_err(io_error(folder))?.is_empty() {
        return Err(path_error(
            folder,
            "is neither empty nor an earlier backup; name another folder",
        ));
    }
    let is_first = earlier.as_ref().is_none_or(|earlier| !earlier.is_complete);
    let mut relay = arguments.storage.relay.stored()?;
    let index = next_index(&mut relay, folder, earlier)?;
    let documents = folder.join("documents");
    Folder::create(&documents).map_err(io_error(&documents))?;
    if is_first {
        index.write(folder)?;
    }
    let mut record = backups::Backup {
        folder: folder.display().to_string(),
        at: index.made_at.clone(),
        whole_at: None,
    };
    let () = relay.send(Method::POST, "/backups", &record)?;

    let tombstones: Vec<Tombstone> = relay.request(Method::GET, "/deleted")?;
    let report = BackupReport { tombstones: tombstones.len(), ..BackupReport::default() };
    let mut run = BackupRun { relay: &mut relay, folder, index, report };
    let gone = run.copy_documents(is_first)?;
    run.check_kept(&gone, &tombstones);
    run.copy_bundles()?;
    run.write_tombstones(&tombstones)?;
    let BackupRun { mut index, mut report, .. } = run;
    report.kept_bundles.retain(|bundle| !index.deleted.contains(bundle));
    report.kept = gone.into_iter().filter(|document| !index.deleted.contains(document)).collect();
    report.documents = index.documents.len();
    report.bundles = index.bundles.len();
    // The copies and their folders are durable before the index names them, and what the index no
    // longer names is removed after that: there is a complete backup at every moment.
    rustix::fs::syncfs(opened.file()).map_err(|error| io_error(folder)(error.into()))?;
    index.is_complete = true;
    index.write(folder)?;
    index.remove_unlisted_files(folder)?;
    show(arguments.storage.json, &report, || describe(&report));
    if !report.is_whole() {
        return Err(CliError::Reported(1));
    }
    record.whole_at = Some(record.at.clone());
    relay.send(Method::POST, "/backups", &record)
}

/// Runs this command as the service's user if root runs it on a folder of that user, and returns
/// its exit code: the backup unit could not update files that root has written there.
fn run_as_service(folder: &Path, relay_folders: &[PathBuf]) -> Result<Option<u8>, CliError> {
    let Some(storage) = relay_folders.first() else { return Ok(None) };
    let (service, _) = folder::owner(storage).map_err(io_error(storage))?;
    let found = match std::fs::symlink_metadata(folder) {
        Ok(found) if found.is_dir() => found,
        _ => return Ok(None),
    };
    if !rustix::process::geteuid().is_root() || service == 0 || found.uid() != service {
        return Ok(None);
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).uid(found.uid()).gid(found.gid());
    let ended = command.status().map_err(io_error(folder))?;
    Ok(Some(ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Fails if `folder` is in one of the relay's own folders.
fn refuse_relay_folders(folder: &Path, relay_folders: &[PathBuf]) -> Result<(), CliError> {
    for own in relay_folders {
        // A folder that does not exist yet will be in its nearest ancestor that does.
        let real = folder.ancestors().find_map(|folder| std::fs::canonicalize(folder).ok());
        if let (Some(real), Ok(own)) = (real, std::fs::canonicalize(own))
            && real.starts_with(own)
        {
            return Err(path_error(
                folder,
                "is inside one of the relay's own folders; name a folder outside of them",
            ));
        }
    }
    Ok(())
}

/// Makes the folder, and locks it until what this returns is dropped.
fn open_locked(folder: &Path) -> Result<Folder, CliError> {
    let opened = Folder::create(folder).map_err(io_error(folder))?;
    match opened.file().try_lock() {
        Ok(()) => Ok(opened),
        Err(TryLockError::WouldBlock) => {
            Err(path_error(folder, "another backup is being written there"))
        }
        Err(TryLockError::Error(error)) => Err(io_error(folder)(error)),
    }
}

/// Returns the index of the new backup, with what the earlier one in the folder has. Fails if the
/// earlier one is of another storage.
fn next_index(
    relay: &mut Relay,
    folder: &Path,
    earlier: Option<BackupIndex>,
) -> Result<BackupIndex, CliError> {
    // A storage without an id is given one.
    let _: bool = relay.send(Method::PUT, "/storage-id", &StorageId { storage_id: None })?;
    let StorageId { storage_id } = relay.request(Method::GET, "/storage-id")?;
    let earlier = earlier.unwrap_or_else(|| BackupIndex {
        storage_id: storage_id.clone(),
        ..BackupIndex::default()
    });
    if earlier.storage_id != storage_id {
        let problem = format!(
            "is a backup of another relay, with the storage id {}; this relay's is {}",
            earlier.storage_id.as_deref().unwrap_or("without an id"),
            storage_id.as_deref().unwrap_or("without an id")
        );
        return Err(path_error(folder, problem));
    }
    let mut documents = earlier.documents;
    // Hashes become file names, which this process may open as root.
    documents.retain(|_, copied| is_sha256(&copied.sha256));
    Ok(BackupIndex {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        storage_id,
        made_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        is_complete: false,
        documents,
        bundles: earlier.bundles,
        deleted: BTreeSet::new(),
    })
}
