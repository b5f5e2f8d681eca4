//! `tonk-relay restore`

use clap::Args;
use sha2::{Digest, Sha256};

use super::{
    backup::{Backup, bundle_file, snapshots, tombstones_of},
    merge::MergeAnswer,
    *,
};
use crate::{
    admin::{client, storage::answers::StorageId},
    storage::documents::hex,
};

/// `tonk-relay restore`
#[derive(Debug, Args)]
pub(in crate::cli) struct RestoreArguments {
    /// The folder of the backup
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Move what is stored now aside first, with the relay stopped; without this, the backup is merged with it
    #[arg(long)]
    replace: bool,
    /// Leave out the backup's storage id: for a copy, beside a relay that goes on
    #[arg(long)]
    new_identity: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

pub(in crate::cli) fn restore(arguments: &RestoreArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    let backup = Backup::read(folder)?.ok_or_else(|| says(folder, "is no backup"))?;
    if !backup.is_complete {
        return Err(says(folder, "is a backup that was not finished: it may lack documents"));
    }
    let tombstones = tombstones_of(folder)?;
    let mut relay = arguments.storage.relay.stored()?;
    let mut answer = MergeAnswer::default();
    if arguments.replace {
        answer.replaced = Some(relay.ask(Method::POST, "/set-aside")?);
    }
    if !arguments.new_identity {
        let id = StorageId { storage_id: backup.storage_id.clone() };
        answer.storage_id = relay.tell(Method::PUT, "/storage-id", &id)?;
    }
    for tombstone in &tombstones {
        let is_taken: bool = relay.tell(Method::POST, "/deleted", tombstone)?;
        if is_taken {
            answer.tombstones += 1;
        } else {
            answer
                .refuse(tombstone.document, "it was deleted in the backup, and is here; it stays");
        }
    }
    let progress = Progress::new("documents");
    let all = backup.documents.len();
    for (n, (document, copied)) in backup.documents.iter().enumerate() {
        progress.is_at(n, all);
        let file = snapshots(folder, *document).join(&copied.sha256);
        match fs::read(&file) {
            Ok(data) if hex(&Sha256::digest(&data)) == copied.sha256 => {
                answer.merge(&mut relay, *document, data.into())?;
            }
            Ok(_) => answer.refuse(file.display(), "its bytes are not those that were written"),
            Err(error) => answer.refuse(file.display(), error),
        }
    }
    progress.end();
    for id in backup.bundles.keys() {
        let file = bundle_file(folder, *id);
        let data = match fs::read(&file) {
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
    answer.end(arguments.storage.json)
}
