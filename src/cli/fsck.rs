//! `tonk-relay fsck`

use std::path::{Path, PathBuf};

use clap::Args;
use hyper::Method;
use serde::Serialize;

use super::{
    backup_folder::BackupIndex,
    error::CliError,
    output::{print, show},
    progress::Progress,
    relay::StorageArguments,
};
use crate::storage::fsck::{self, Finding, Line, Summary};

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

/// What a check found, as JSON.
#[derive(Serialize)]
struct Checked {
    findings: Vec<Finding>,
    summary: Summary,
}

pub(super) fn run(arguments: &FsckArguments) -> Result<(), CliError> {
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
    format!("{kind}: {}: {}{repaired}\n", finding.location, finding.fault)
}

fn check_folder(folder: &Path, mut take: impl FnMut(Line)) -> Result<(), CliError> {
    let mut tell = |line| {
        take(line);
        true
    };
    match BackupIndex::read(folder)? {
        Some(backup) => backup.check(folder, &mut tell),
        None => fsck::check_folder(folder, &mut tell),
    }
    Ok(())
}
