//! `tonk-relay doc delete`: deletes a document, and names the places that may still have it.

use std::path::Path;

use hyper::Method;
use serde::Serialize;

use crate::{
    admin::storage::{deleted::DeletionReceipt, reason::Reason},
    base::{document_id::DocumentId, text::Count},
    cli::{backup_folder, error::CliError, output::show, relay::StorageArguments},
    storage::local::backups::Backup,
};

pub(super) fn run(
    id: DocumentId,
    reason: Option<String>,
    arguments: &StorageArguments,
) -> Result<(), CliError> {
    let path = format!("/documents/{id}/delete");
    let mut relay = arguments.relay.stored()?;
    let receipt: DeletionReceipt = relay.send(Method::POST, &path, &Reason { reason })?;
    let backups = receipt.backups.iter().map(|made| ListedBackup {
        holds: backup_folder::contains(Path::new(&made.folder), id),
        made: made.clone(),
    });
    let shown = ShownReceipt {
        backups: backups.collect(),
        receipt: DeletionReceipt { backups: Vec::new(), ..receipt },
    };
    show(arguments.json, &shown, || describe_receipt(&shown));
    Ok(())
}

/// A receipt, with what this machine knows about the backups.
#[derive(Serialize)]
struct ShownReceipt {
    #[serde(flatten)]
    receipt: DeletionReceipt,
    backups: Vec<ListedBackup>,
}

#[derive(Serialize)]
struct ListedBackup {
    #[serde(flatten)]
    made: Backup,
    /// Whether it has the document; none if it cannot be read from this machine.
    holds: Option<bool>,
}

fn describe_receipt(ShownReceipt { receipt, backups }: &ShownReceipt) -> String {
    let mut text = format!(
        "{} is deleted: {}, {}{}\n",
        receipt.tombstone.document,
        Count(receipt.chunks, "chunk"),
        Count(receipt.bytes, "byte"),
        if receipt.bundle { ", and the uploaded bundle of this id" } else { "" },
    );
    for bundle in &receipt.held_by_bundles {
        text.push_str(&format!("a bundle still contains it: {bundle}\n"));
    }
    for ListedBackup { made: Backup { folder, at, .. }, holds } in backups {
        let holds = match holds {
            Some(false) => continue,
            Some(true) => "holds",
            None => "may contain (it cannot be read here)",
        };
        text.push_str(&format!(
            "a backup {holds} it until the next backup to that folder: {folder} (of {at})\n"
        ));
    }
    for kept in &receipt.kept {
        text.push_str(&format!("may contain it until you delete the file: {}\n", kept.display()));
    }
    text
}
