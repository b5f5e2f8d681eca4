//! `tonk-relay restore`: merges a backup with what is stored, or replaces it.

use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;
use sha2::{Digest, Sha256};

use super::{
    backup_folder::{BackupIndex, MAX_BUNDLE, bundle_file, read_tombstones, snapshot_folder},
    error::{CliError, path_error},
    files::absolute,
    merge::{MergeReport, Merger},
    progress::Progress,
    relay::{Relay, StorageArguments},
};
use crate::{
    admin::{
        client::{self, AdminError},
        storage::{deleted::TombstoneImport, replace::MovedAside, storage_id::StorageId},
    },
    base::{folder, hex::hex, text::Count},
    storage::{
        fsck::Line,
        local::{MAX_FILE, restore_marker::BackupSource},
        records::Tombstone,
    },
};

const NOT_A_BACKUP: &str =
    "is not a backup: it does not exist, or `tonk-relay backup` did not make it";

/// `tonk-relay restore`
#[derive(Debug, Args)]
pub(super) struct RestoreArguments {
    /// The folder of the backup
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Move the stored data aside first, with the relay stopped. Without this, the backup is merged
    /// with the stored data
    #[arg(long)]
    replace: bool,
    /// Do not adopt the backup's storage id, for a copy of a relay that stays in use
    #[arg(long)]
    new_identity: bool,
    /// Restore what an incomplete backup has
    #[arg(long)]
    unfinished: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(super) fn run(arguments: &RestoreArguments) -> Result<(), CliError> {
    let folder = &absolute(&arguments.folder)?;
    let (backup, sha256) =
        BackupIndex::read_with_hash(folder)?.ok_or_else(|| path_error(folder, NOT_A_BACKUP))?;
    if !backup.is_complete && !arguments.unfinished {
        let problem = "is an incomplete backup that may lack documents; finish it, or restore what \
                       it has with --unfinished";
        return Err(path_error(folder, problem));
    }
    let tombstones = read_tombstones(folder)?;
    if arguments.replace {
        refuse_damaged(&backup, folder)?;
    }
    let mut relay = arguments.storage.relay.stored_or_new()?;
    let mut merger = Merger::new(false);
    if arguments.replace {
        let source = BackupSource { folder: folder.clone(), sha256 };
        move_stored_aside(&mut relay, &source, &mut merger.report)?;
    }
    let storage_id = backup.storage_id.clone().filter(|_| !arguments.new_identity);
    merger.report.storage_id = relay.send(Method::PUT, "/storage-id", &StorageId { storage_id })?;
    restore_documents(&mut relay, folder, &backup, &mut merger)?;
    let mut report = merger.report;
    restore_bundles(&mut relay, folder, &backup, &mut report)?;
    let is_incomplete = arguments.replace && report.has_refusals();
    // Only now, and only if nothing is missing: the next attempt of a restore with --replace must
    // not find tombstones.
    if !is_incomplete {
        restore_tombstones(&mut relay, &backup, &tombstones, arguments.replace, &mut report)?;
    }
    // A tombstone that was refused counts as well.
    if arguments.replace && report.has_refusals() {
        eprintln!(
            "the restore is incomplete, so the relay will not start. Correct the problems named \
             above and run this again, or delete the file .replacing in the storage folder to \
             continue without the rest"
        );
    } else if arguments.replace {
        let () = relay.request(Method::POST, "/restored")?;
    }
    report.finish(arguments.storage.json)
}

/// Fails if a file of the backup is damaged: a damaged backup must not replace anything.
fn refuse_damaged(backup: &BackupIndex, folder: &Path) -> Result<(), CliError> {
    let mut damages = 0;
    let mut problem = None;
    backup.check(folder, &mut |line| {
        match line {
            Line::Summary(summary) => damages = summary.damages,
            Line::Problem(text) => problem = Some(text),
            Line::Checked(..) | Line::Finding(_) => {}
        }
        true
    });
    let problem = problem.or_else(|| {
        // The check counts an unfinished backup as damaged. Here the operator has accepted that.
        let accepted = usize::from(!backup.is_complete);
        (damages > accepted).then(|| format!("has {}", Count(damages - accepted, "damage")))
    });
    let Some(problem) = problem else { return Ok(()) };
    let advice =
        "`tonk-relay fsck DIR` lists them, and a restore without --replace merges what is intact";
    Err(path_error(folder, format!("{problem}; nothing was replaced: {advice}")))
}

/// Has the relay move all that is stored aside, unless an interrupted restore of this backup did so
/// already.
fn move_stored_aside(
    relay: &mut Relay,
    source: &BackupSource,
    report: &mut MergeReport,
) -> Result<(), CliError> {
    let MovedAside { documents, bundles, is_resumed, interrupted } =
        relay.send(Method::POST, "/set-aside", source)?;
    if is_resumed {
        eprintln!("resuming the interrupted restore of this backup");
    }
    for interrupted in interrupted {
        eprintln!(
            "the restore of another backup was interrupted; its files were moved to {}",
            interrupted.display()
        );
    }
    report.replaced = Some(documents.display().to_string());
    report.replaced_bundles = bundles.map(|bundles| bundles.display().to_string());
    Ok(())
}

fn restore_documents(
    relay: &mut Relay,
    folder: &Path,
    backup: &BackupIndex,
    merger: &mut Merger,
) -> Result<(), CliError> {
    let progress = Progress::new("documents");
    let total = backup.documents.len();
    for (done, (document, copied)) in backup.documents.iter().enumerate() {
        progress.set(done, total);
        let file = snapshot_folder(folder, *document).join(&copied.sha256);
        match folder::read(&file, MAX_FILE) {
            Ok(data) if hex(&Sha256::digest(&data)) == copied.sha256 => {
                merger.merge(relay, *document, data)?;
            }
            Ok(_) => {
                let reason = "its content does not match its checksum";
                merger.report.refuse(file.display(), reason);
            }
            Err(error) => merger.report.refuse(file.display(), error),
        }
    }
    merger.flush(relay)?;
    progress.end();
    Ok(())
}

fn restore_bundles(
    relay: &mut Relay,
    folder: &Path,
    backup: &BackupIndex,
    report: &mut MergeReport,
) -> Result<(), CliError> {
    for id in backup.bundles.keys() {
        let file = bundle_file(folder, *id);
        let data = match folder::read(&file, MAX_BUNDLE) {
            Ok(data) => data,
            Err(error) => {
                report.refuse(file.display(), error);
                continue;
            }
        };
        match relay.fetch(Method::PUT, &format!("/bundles/{id}"), data.into()) {
            Ok(taken) => report.bundles += usize::from(client::parse::<bool>(&taken)?),
            Err(CliError::Admin(AdminError::Refused(reason))) => {
                report.refuse(file.display(), reason);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Deletes the documents that are deleted in the backup.
fn restore_tombstones(
    relay: &mut Relay,
    backup: &BackupIndex,
    tombstones: &[Tombstone],
    replaces: bool,
    report: &mut MergeReport,
) -> Result<(), CliError> {
    for tombstone in tombstones {
        if backup.documents.contains_key(&tombstone.document) {
            // The file is left from an earlier backup; the document was undeleted since.
            continue;
        }
        match relay.send(Method::POST, "/deleted", tombstone)? {
            TombstoneImport::Imported => report.tombstones.push(tombstone.document),
            TombstoneImport::AlreadyDeleted => {}
            // It is among what was moved aside, which must stay usable for going back.
            TombstoneImport::DocumentExists if replaces => {}
            TombstoneImport::DocumentExists => report.refuse(
                tombstone.document,
                "it is deleted in the backup but stored here; keeping it",
            ),
        }
    }
    Ok(())
}
