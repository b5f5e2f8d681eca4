//! The commands about what is stored: `checkpoint`, `doc`, `fsck` and `quarantine`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hyper::Method;
use serde::Serialize;

use super::{
    CliError,
    copies::{self, backup},
    document_id, live, print,
    progress::Progress,
    relay::RelayArguments,
    show,
};
use crate::{
    admin::{
        client::AdminError,
        storage::answers::{Checkpoint, Done, Reason, Receipt, Selection},
    },
    base::document_id::DocumentId,
    storage::{
        fsck::{self, Finding, Line, Summary},
        inspect::Inspection,
        local::{backups::Backup, blocked::Block, quarantine::Entry},
    },
    sync::look::LiveDocument,
};

/// Whose storage, and how the answer looks.
#[derive(Debug, Args)]
pub(super) struct StorageArguments {
    #[command(flatten)]
    pub(super) relay: RelayArguments,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// `tonk-relay doc`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct DocArguments {
    /// Its id, or its automerge: URL
    #[arg(value_parser = document_id, required = true)]
    id: Option<DocumentId>,
    /// Say what happens to it from now on in the running relay: who sent what, and whether it was applied or refused
    /// and why; never what is in it
    #[arg(long)]
    follow: bool,
    #[command(flatten)]
    storage: StorageArguments,
    #[command(subcommand)]
    verb: Option<DocVerb>,
}

#[derive(Debug, Subcommand)]
enum DocVerb {
    /// Delete a document for good: nothing brings it back until it is undeleted
    Delete {
        /// Its id, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        /// Why; kept with the tombstone
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Let a deleted document be brought again; what was deleted does not come back by itself
    Undelete {
        /// Its id, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Keep a document from everybody, at once and until it is unblocked; what is stored of it stays
    Block {
        /// Its id, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        /// Why; kept with the block
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Say which documents are blocked, since when and why
    Blocked {
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Let everybody have a blocked document again
    Unblock {
        /// Its id, or its automerge: URL
        #[arg(value_parser = document_id)]
        id: DocumentId,
        #[command(flatten)]
        storage: StorageArguments,
    },
}

/// `tonk-relay fsck`
#[derive(Debug, Args)]
pub(super) struct FsckArguments {
    /// A backup, or a folder in automerge-repo's layout, to check instead of what the relay stores
    #[arg(value_name = "DIR", conflicts_with = "repair")]
    folder: Option<PathBuf>,
    /// Move what does not parse into quarantine, and delete what is left of deleted documents
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

/// `tonk-relay quarantine`
#[derive(Debug, Subcommand)]
pub(super) enum QuarantineVerb {
    /// Name what is there, and why
    List {
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Put chunks that parse back among the documents
    Release {
        /// Paths, as `quarantine list` names them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Delete entries for good
    Purge {
        /// Paths, as `quarantine list` names them
        #[arg(value_name = "PATH", required_unless_present = "older_than")]
        paths: Vec<String>,
        /// All that are older than this, such as 30d; 0s for all
        #[arg(long, value_name = "AGE")]
        older_than: Option<humantime::Duration>,
        #[command(flatten)]
        storage: StorageArguments,
    },
}

pub(super) fn checkpoint(arguments: &StorageArguments) -> Result<(), CliError> {
    let answer: Checkpoint = arguments.relay.stored()?.ask(Method::POST, "/checkpoint")?;
    show(arguments.json, &answer, || {
        format!("{} chunks moved; the folders hold everything\n", answer.moved)
    });
    Ok(())
}

pub(super) fn doc(arguments: DocArguments) -> Result<(), CliError> {
    match (arguments.verb, arguments.id) {
        (Some(DocVerb::Delete { id, reason, storage }), _) => delete(id, reason, &storage),
        (Some(DocVerb::Undelete { id, storage }), _) => {
            let path = format!("/documents/{id}/undelete");
            let () = storage.relay.stored()?.ask(Method::POST, &path)?;
            let answer = serde_json::json!({ "document": id, "deleted": false });
            show(storage.json, &answer, || format!("{id} may be brought again\n"));
            Ok(())
        }
        (Some(DocVerb::Block { id, reason, storage }), _) => {
            let path = format!("/documents/{id}/block");
            let block: Block =
                storage.relay.stored()?.tell(Method::POST, &path, &Reason { reason })?;
            show(storage.json, &block, || format!("{id} is kept from everybody\n"));
            Ok(())
        }
        (Some(DocVerb::Blocked { storage }), _) => {
            let all: Vec<Block> = storage.relay.stored()?.ask(Method::GET, "/blocked")?;
            let line = |Block { document, blocked_at, reason }: &Block| {
                format!("{document}  {blocked_at}  {}\n", reason.as_deref().unwrap_or_default())
            };
            show(storage.json, &all, || all.iter().map(line).collect());
            Ok(())
        }
        (Some(DocVerb::Unblock { id, storage }), _) => {
            let path = format!("/documents/{id}/unblock");
            let () = storage.relay.stored()?.ask(Method::POST, &path)?;
            let answer = serde_json::json!({ "document": id, "blocked": false });
            show(storage.json, &answer, || format!("{id} may be had again\n"));
            Ok(())
        }
        (None, Some(id)) if arguments.follow => live::follow(id, &arguments.storage),
        (None, Some(id)) => inspect(id, &arguments.storage),
        // clap asks for one of them.
        (None, None) => Ok(()),
    }
}

fn inspect(id: DocumentId, arguments: &StorageArguments) -> Result<(), CliError> {
    let path = format!("/documents/{id}");
    let mut relay = arguments.relay.stored()?;
    let stored = relay.ask::<Inspection>(Method::GET, &path);
    let live = live::look(&mut relay, id)?;
    let stored = match stored {
        // It may be here and not be durable yet.
        Err(CliError::Admin(AdminError::Missing(_))) if live.is_some() => None,
        stored => Some(stored?),
    };
    let known = Known { stored, live };
    show(arguments.json, &known, || {
        let stored = known.stored.as_ref().map(describe_document);
        let live = known.live.as_ref().map(live::describe);
        stored.unwrap_or_else(|| format!("document     {id}\nnothing of it is stored\n"))
            + &live.unwrap_or_default()
    });
    Ok(())
}

/// What is known of a document.
#[derive(Serialize)]
struct Known {
    #[serde(flatten)]
    stored: Option<Inspection>,
    /// What its room says, where it is live.
    live: Option<LiveDocument>,
}

fn describe_document(document: &Inspection) -> String {
    let mut text = format!(
        "document     {}\nheads        {}\nchanges      {} by {} actors, the last {}\nstored       {} bytes in {} chunks\n",
        document.document,
        document.heads.join(" "),
        document.changes,
        document.actors,
        document.last_change.as_deref().unwrap_or("at a time that nobody noted"),
        document.bytes,
        document.chunks.len(),
    );
    if let Some(Block { blocked_at, reason, .. }) = &document.blocked {
        let reason = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        text.push_str(&format!("blocked      since {blocked_at}{reason}\n"));
    }
    for chunk in &document.chunks {
        let fault = chunk.fault.as_ref().map(|fault| format!("  broken: {fault}"));
        let fault = fault.unwrap_or_default();
        text.push_str(&format!("  {:>9}  {}{fault}\n", chunk.bytes, chunk.key));
    }
    for entry in &document.quarantined {
        let Entry { path, bytes, reason, .. } = entry;
        text.push_str(&format!("  {bytes:>9}  in quarantine: {path}: {reason}\n"));
    }
    text
}

fn delete(
    id: DocumentId,
    reason: Option<String>,
    arguments: &StorageArguments,
) -> Result<(), CliError> {
    let path = format!("/documents/{id}/delete");
    let mut relay = arguments.relay.stored()?;
    let receipt: Receipt = relay.tell(Method::POST, &path, &Reason { reason })?;
    let backups = receipt.backups.iter().map(|made| HeldBackup {
        holds: copies::backup::holds(Path::new(&made.folder), id),
        made: made.clone(),
    });
    let shown = ShownReceipt {
        backups: backups.collect(),
        receipt: Receipt { backups: Vec::new(), ..receipt },
    };
    show(arguments.json, &shown, || describe_receipt(&shown));
    Ok(())
}

/// A receipt with what can be told of the backups here.
#[derive(Serialize)]
struct ShownReceipt {
    #[serde(flatten)]
    receipt: Receipt,
    backups: Vec<HeldBackup>,
}

#[derive(Serialize)]
struct HeldBackup {
    #[serde(flatten)]
    made: Backup,
    /// Whether it holds the document; none if it is not to be found from here.
    holds: Option<bool>,
}

fn describe_receipt(ShownReceipt { receipt, backups }: &ShownReceipt) -> String {
    let mut text = format!(
        "{} is deleted: {} chunks, {} bytes{}\n",
        receipt.tombstone.document,
        receipt.chunks,
        receipt.bytes,
        if receipt.bundle { ", and the uploaded bundle of this id" } else { "" },
    );
    for bundle in &receipt.held_by_bundles {
        text.push_str(&format!("a bundle still holds it: {bundle}\n"));
    }
    for HeldBackup { made: Backup { folder, at, .. }, holds } in backups {
        let holds = match holds {
            Some(false) => continue,
            Some(true) => "holds",
            None => "may hold (it cannot be read from here)",
        };
        text.push_str(&format!("a backup {holds} it until it is renewed: {folder} (of {at})\n"));
    }
    for kept in &receipt.kept {
        text.push_str(&format!("may hold it until you delete it: {}\n", kept.display()));
    }
    text
}

/// What a check found, as JSON.
#[derive(Serialize)]
struct Checked {
    findings: Vec<Finding>,
    summary: Summary,
}

pub(super) fn fsck(arguments: &FsckArguments) -> Result<(), CliError> {
    match check(arguments) {
        // All other ends are those of a check that was not made, or not to its end.
        Err(CliError::Said(code)) if code != 4 => Err(CliError::Said(8)),
        Err(error) if !matches!(error, CliError::Said(_) | CliError::BrokenJournal(_)) => {
            Err(CliError::NotChecked(error.to_string()))
        }
        Err(error) => Err(error),
        Ok(0) => Ok(()),
        Ok(code) => Err(CliError::Said(code)),
    }
}

/// Returns the exit code of a check that was made.
fn check(arguments: &FsckArguments) -> Result<u8, CliError> {
    let json = arguments.storage.json;
    let progress = Progress::new("documents");
    let (mut findings, mut summary) = (Vec::new(), Err("the check was cut off".to_owned()));
    let mut take = |line| match line {
        Line::Checked(done, all) => progress.is_at(done, all),
        Line::Finding(finding) => {
            if !json {
                progress.suspend(|| print(&describe(&finding)));
            }
            findings.push(finding);
        }
        Line::Summary(all) => summary = Ok(all),
        Line::Problem(text) => summary = Err(text),
    };
    match &arguments.folder {
        Some(folder) => check_folder(folder, &mut take)?,
        None => {
            let relay = &arguments.storage.relay;
            let (method, mut relay) = match arguments.repair {
                true => {
                    if let Some(folder) = relay.folders().first().filter(|folder| !folder.exists())
                    {
                        let problem = format!("{}: no such folder", folder.display());
                        return Err(CliError::Problem(problem));
                    }
                    (Method::POST, relay.stored_or_new()?)
                }
                false => (Method::GET, relay.stored()?),
            };
            relay.lines(method, "/fsck", &mut take)?;
        }
    }
    progress.end();
    let summary = summary.map_err(CliError::Problem)?;
    if let (Some(folder), 0) = (&arguments.folder, summary.documents + summary.damages) {
        let problem = format!("{}: no document is there", folder.display());
        return Err(CliError::Problem(problem));
    }
    let left = summary.damages - summary.repaired;
    let repaired = summary.repaired;
    show(json, &Checked { findings, summary }, || {
        format!(
            "{} documents in {} chunks, {} bytes; {} bundles: {left} damages{}, {} notes\n",
            summary.documents,
            summary.chunks,
            summary.bytes,
            summary.bundles,
            if repaired > 0 { format!(", {repaired} repaired") } else { String::new() },
            summary.notes,
        )
    });
    // As fsck(8) says it.
    Ok(match (left, repaired) {
        (0, 0) => 0,
        (0, _) => 1,
        _ => 4,
    })
}

fn describe(finding: &Finding) -> String {
    let kind = serde_json::to_value(finding.kind).unwrap_or_default();
    let kind = kind.as_str().unwrap_or_default();
    let repaired = if finding.repaired { " (repaired)" } else { "" };
    format!("{kind}: {}: {}{repaired}\n", finding.place, finding.fault)
}

fn check_folder(folder: &Path, mut take: impl FnMut(Line)) -> Result<(), CliError> {
    let mut tell = |line| {
        take(line);
        true
    };
    match backup::Backup::read(folder)? {
        Some(backup) => backup.check(folder, &mut tell),
        None => fsck::check_folder(folder, &mut tell),
    }
    Ok(())
}

pub(super) fn quarantine(verb: QuarantineVerb) -> Result<(), CliError> {
    match verb {
        QuarantineVerb::List { storage } => {
            let entries: Vec<Entry> = storage.relay.stored()?.ask(Method::GET, "/quarantine")?;
            let line = |entry: &Entry| {
                format!("{}  {:>9}  {}  {}\n", entry.since, entry.bytes, entry.path, entry.reason)
            };
            show(storage.json, &entries, || entries.iter().map(line).collect());
            Ok(())
        }
        QuarantineVerb::Release { paths, storage } => {
            change("release", "released", Selection { paths, older_than: None }, &storage)
        }
        QuarantineVerb::Purge { paths, older_than, storage } => {
            let older_than = older_than.map(|age| age.as_secs());
            change("purge", "deleted", Selection { paths, older_than }, &storage)
        }
    }
}

fn change(
    verb: &str,
    done: &str,
    selection: Selection,
    arguments: &StorageArguments,
) -> Result<(), CliError> {
    let path = format!("/quarantine/{verb}");
    let answer: Done = arguments.relay.stored()?.tell(Method::POST, &path, &selection)?;
    show(arguments.json, &answer, || {
        let done = answer.done.iter().map(|path| format!("{done} {path}\n"));
        done.chain(answer.failed.iter().map(|reason| format!("{reason}\n"))).collect()
    });
    if answer.failed.is_empty() { Ok(()) } else { Err(CliError::Said(1)) }
}
