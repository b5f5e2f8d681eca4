//! `tonk-relay fsck`: checks what a relay stores, a backup, or another folder of documents.

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
use crate::{
    base::text::Count,
    storage::fsck::{self, Finding, Line, Summary},
};

/// `tonk-relay fsck`
#[derive(Debug, Args)]
pub(super) struct FsckArguments {
    /// A backup, or a folder in automerge-repo's layout, to check instead of the relay's stored
    /// data
    #[arg(value_name = "DIR", conflicts_with = "repair")]
    folder: Option<PathBuf>,
    /// Move chunks that do not parse to quarantine, and delete what is left of deleted documents
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

/// Exit codes of fsck(8).
const CORRECTED: u8 = 1;
const LEFT_UNCORRECTED: u8 = 4;
const OPERATIONAL_ERROR: u8 = 8;

/// What a check found, as JSON.
#[derive(Serialize)]
struct CheckReport {
    findings: Vec<Finding>,
    summary: Summary,
}

pub(super) fn run(arguments: &FsckArguments) -> Result<(), CliError> {
    match check(arguments) {
        // Every other code means that the check could not be made or finished.
        Err(CliError::Reported(code)) if code != LEFT_UNCORRECTED => {
            Err(CliError::Reported(OPERATIONAL_ERROR))
        }
        Err(error) if !matches!(error, CliError::Reported(_) | CliError::BrokenJournal(_)) => {
            Err(CliError::NotChecked(error.to_string()))
        }
        Err(error) => Err(error),
        Ok(0) => Ok(()),
        Ok(code) => Err(CliError::Reported(code)),
    }
}

/// Checks, prints what it finds, and returns the exit code.
fn check(arguments: &FsckArguments) -> Result<u8, CliError> {
    let json = arguments.storage.json;
    let progress = Progress::new("documents");
    let (mut findings, mut summary) = (Vec::new(), Err("the check was cut off".to_owned()));
    let mut take = |line| match line {
        Line::Checked(done, total) => progress.set(done, total),
        Line::Finding(finding) => {
            if !json {
                progress.suspend(|| print(&describe(&finding)));
            }
            findings.push(finding);
        }
        Line::Summary(counts) => summary = Ok(counts),
        Line::Problem(text) => summary = Err(text),
    };
    let may_be_empty = match &arguments.folder {
        Some(folder) => check_folder(folder, &mut take)?,
        None => check_relay(arguments, &mut take).map(|()| true)?,
    };
    progress.end();
    let summary = summary.map_err(CliError::Problem)?;
    if let Some(folder) = &arguments.folder
        && !may_be_empty
        && summary.documents + summary.damages == 0
    {
        let problem = format!("{}: no document found", folder.display());
        return Err(CliError::Problem(problem));
    }
    let repaired = summary.repaired;
    let left = summary.damages - repaired;
    show(json, &CheckReport { findings, summary }, || describe_summary(&summary));
    Ok(match (left, repaired) {
        (0, 0) => 0,
        (0, _) => CORRECTED,
        _ => LEFT_UNCORRECTED,
    })
}

/// Checks what a relay stores.
fn check_relay(arguments: &FsckArguments, take: impl FnMut(Line)) -> Result<(), CliError> {
    let relay = &arguments.storage.relay;
    let (method, mut relay) = match arguments.repair {
        true => {
            if let Some(folder) = relay.folders().first().filter(|folder| !folder.exists()) {
                let problem = format!("{}: no such folder", folder.display());
                return Err(CliError::Problem(problem));
            }
            (Method::POST, relay.stored_or_new()?)
        }
        false => (Method::GET, relay.stored()?),
    };
    relay.lines(method, "/fsck", take)
}

fn describe_summary(summary: &Summary) -> String {
    let repaired = summary.repaired;
    format!(
        "{} in {}, {}; {}: {}{}, {}\n",
        Count(summary.documents, "document"),
        Count(summary.chunks, "chunk"),
        Count(summary.bytes, "byte"),
        Count(summary.bundles, "bundle"),
        Count(summary.damages - repaired, "damage"),
        if repaired > 0 { format!(", {repaired} repaired") } else { String::new() },
        Count(summary.notes, "note"),
    )
}

fn describe(finding: &Finding) -> String {
    let kind = serde_json::to_value(finding.kind).unwrap_or_default();
    let kind = kind.as_str().unwrap_or_default();
    let repaired = if finding.repaired { " (repaired)" } else { "" };
    format!("{kind}: {}: {}{repaired}\n", finding.location, finding.fault)
}

/// Checks a backup, or a folder in the layout of automerge-repo. Returns whether it is a backup: an
/// empty folder of the other kind is probably not the one that was meant.
fn check_folder(folder: &Path, mut take: impl FnMut(Line)) -> Result<bool, CliError> {
    let mut tell = |line| {
        take(line);
        true
    };
    let backup = BackupIndex::read(folder)?;
    match &backup {
        Some(backup) => backup.check(folder, &mut tell),
        None => fsck::check_folder(folder, &mut tell),
    }
    Ok(backup.is_some())
}
