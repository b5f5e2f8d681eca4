//! `tonk-relay restore`

use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;
use sha2::{Digest, Sha256};

use super::{
    backup_folder::{BackupIndex, MAX_BUNDLE, bundle_file, snapshots, tombstones_of},
    error::{CliError, path_error},
    files::absolute,
    merge::MergeAnswer,
    progress::Progress,
    relay::{Relay, StorageArguments},
};
use crate::{
    admin::{
        client::{self, AdminError},
        storage::{deleted::Buried, replace::Replaced, storage_id::StorageId},
    },
    base::{folder, hex::hex},
    storage::{
        fsck::Line,
        local::{MAX_FILE, restore_marker::BackupSource, tombstones::Tombstone},
    },
};

/// `tonk-relay restore`
#[derive(Debug, Args)]
pub(super) struct RestoreArguments {
    /// The folder of the backup
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Move what is stored now aside first, with the relay stopped; without this, the backup is merged with it
    #[arg(long)]
    replace: bool,
    /// Leave out the backup's storage id: for a copy, beside a relay that goes on
    #[arg(long)]
    new_identity: bool,
    /// Take what is there of a backup that was not finished
    #[arg(long)]
    unfinished: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(super) fn run(arguments: &RestoreArguments) -> Result<(), CliError> {
    let folder = &absolute(&arguments.folder)?;
    let (backup, sha256) = BackupIndex::read_with_hash(folder)?
        .ok_or_else(|| path_error(folder, "is not a backup"))?;
    if !backup.is_complete && !arguments.unfinished {
        let problem = "is a backup that was not finished: it may lack documents; finish it, or take what is there with \
                       --unfinished";
        return Err(path_error(folder, problem));
    }
    let tombstones = tombstones_of(folder)?;
    if arguments.replace {
        check_first(&backup, folder)?;
    }
    let mut relay = arguments.storage.relay.stored_or_new()?;
    let mut answer = MergeAnswer::new(false);
    if arguments.replace {
        let source = BackupSource { folder: folder.clone(), sha256 };
        let Replaced { documents, bundles, is_resumed, interrupted } =
            relay.tell(Method::POST, "/set-aside", &source)?;
        if is_resumed {
            eprintln!("resuming the restore of this backup, which was interrupted");
        }
        for interrupted in interrupted {
            eprintln!(
                "the restore of another backup was interrupted; what it had brought is in {}",
                interrupted.display()
            );
        }
        answer.replaced = Some(documents.display().to_string());
        answer.replaced_bundles = bundles.map(|bundles| bundles.display().to_string());
    }
    let storage_id = backup.storage_id.clone().filter(|_| !arguments.new_identity);
    answer.storage_id = relay.tell(Method::PUT, "/storage-id", &StorageId { storage_id })?;
    let progress = Progress::new("documents");
    let all = backup.documents.len();
    for (n, (document, copied)) in backup.documents.iter().enumerate() {
        progress.is_at(n, all);
        let file = snapshots(folder, *document).join(&copied.sha256);
        match folder::read(&file, MAX_FILE) {
            Ok(data) if hex(&Sha256::digest(&data)) == copied.sha256 => {
                answer.merge(&mut relay, *document, data)?;
            }
            Ok(_) => answer.refuse(file.display(), "its bytes are not those that were written"),
            Err(error) => answer.refuse(file.display(), error),
        }
    }
    answer.merge_rest(&mut relay)?;
    progress.end();
    for id in backup.bundles.keys() {
        let file = bundle_file(folder, *id);
        let data = match folder::read(&file, MAX_BUNDLE) {
            Ok(data) => data,
            Err(error) => {
                answer.refuse(file.display(), error);
                continue;
            }
        };
        match relay.fetch(Method::PUT, &format!("/bundles/{id}"), data.into()) {
            Ok(taken) => answer.bundles += usize::from(client::parse::<bool>(&taken)?),
            Err(CliError::Admin(AdminError::Refused(reason))) => {
                answer.refuse(file.display(), reason);
            }
            Err(error) => return Err(error),
        }
    }
    // Last, so that a restore with --replace that does not come to its end leaves none for the next one.
    if !(arguments.replace && answer.is_refused()) {
        restore_tombstones(&mut relay, &backup, &tombstones, arguments.replace, &mut answer)?;
    }
    if arguments.replace && answer.is_refused() {
        eprintln!(
            "not all could be restored, and so the relay does not start: put right what is named, and run this again; or \
             delete the file .replacing in its storage folder, to go on without"
        );
    } else if arguments.replace {
        let () = relay.ask(Method::POST, "/restored")?;
    }
    answer.end(arguments.storage.json)
}

/// Delete here what the backup says was deleted.
fn restore_tombstones(
    relay: &mut Relay,
    backup: &BackupIndex,
    tombstones: &[Tombstone],
    replaces: bool,
    answer: &mut MergeAnswer,
) -> Result<(), CliError> {
    for tombstone in tombstones {
        if backup.documents.contains_key(&tombstone.document) {
            // Left from an earlier one: it was undeleted since.
            continue;
        }
        match relay.tell(Method::POST, "/deleted", tombstone)? {
            Buried::New => answer.tombstones.push(tombstone.document),
            Buried::Already => {}
            // Among what was moved away, which is to be good for going back.
            Buried::IsHere if replaces => {}
            Buried::IsHere => answer
                .refuse(tombstone.document, "it was deleted in the backup, and is here; it stays"),
        }
    }
    Ok(())
}

/// A damaged backup must not replace anything.
fn check_first(backup: &BackupIndex, folder: &Path) -> Result<(), CliError> {
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
        // That it was not finished is no damage where that was asked for.
        let known = usize::from(!backup.is_complete);
        (damages > known).then(|| format!("has {} damages", damages - known))
    });
    let Some(problem) = problem else { return Ok(()) };
    let advice = "`tonk-relay fsck DIR` names what is wrong, and a restore without --replace merges what is whole";
    Err(path_error(folder, format!("{problem}; nothing was replaced: {advice}")))
}
