//! `tonk-relay quarantine`: lists, releases and deletes chunks that do not parse.

use std::time::Duration;

use clap::{ArgGroup, Subcommand};
use hyper::Method;

use super::{
    arguments::duration,
    error::CliError,
    output::{show, show_list},
    relay::StorageArguments,
};
use crate::{
    admin::storage::quarantine::{QuarantineReport, QuarantineSelection},
    storage::records::Quarantined,
};

/// `tonk-relay quarantine`
#[derive(Debug, Subcommand)]
pub(super) enum QuarantineCommand {
    /// List the entries, with the reason for each
    List {
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Put chunks that parse back into their documents
    Release {
        /// Paths, as `quarantine list` prints them
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<String>,
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Delete entries permanently
    #[command(group = ArgGroup::new("entries").required(true).multiple(true))]
    Purge {
        /// Paths, as `quarantine list` prints them
        #[arg(value_name = "PATH", group = "entries")]
        paths: Vec<String>,
        /// Delete all entries that are older than this, such as 30d; 0s for all
        #[arg(long, value_name = "AGE", group = "entries", value_parser = duration)]
        older_than: Option<Duration>,
        #[command(flatten)]
        storage: StorageArguments,
    },
}

pub(super) fn run(command: QuarantineCommand) -> Result<(), CliError> {
    match command {
        QuarantineCommand::List { storage } => {
            let entries: Vec<Quarantined> =
                storage.relay.stored()?.request(Method::GET, "/quarantine")?;
            let line = |entry: &Quarantined| {
                format!("{}  {:>9}  {}  {}\n", entry.since, entry.bytes, entry.path, entry.reason)
            };
            show_list(storage.json, &entries, "the quarantine is empty", line);
            Ok(())
        }
        QuarantineCommand::Release { paths, storage } => {
            change("release", "released", QuarantineSelection { paths, older_than: None }, &storage)
        }
        QuarantineCommand::Purge { paths, older_than, storage } => {
            let older_than = older_than.map(|age| age.as_secs());
            change("purge", "deleted", QuarantineSelection { paths, older_than }, &storage)
        }
    }
}

/// Releases or deletes entries, and prints a line with the word `done` for each.
fn change(
    action: &str,
    done: &str,
    selection: QuarantineSelection,
    arguments: &StorageArguments,
) -> Result<(), CliError> {
    let path = format!("/quarantine/{action}");
    let answer: QuarantineReport =
        arguments.relay.stored()?.send(Method::POST, &path, &selection)?;
    if answer.done.is_empty() && answer.failed.is_empty() && !arguments.json {
        eprintln!("nothing in the quarantine matches; nothing was {done}");
    }
    show(arguments.json, &answer, || {
        let done = answer.done.iter().map(|path| format!("{done} {path}\n"));
        done.chain(answer.failed.iter().map(|reason| format!("{reason}\n"))).collect()
    });
    if answer.failed.is_empty() { Ok(()) } else { Err(CliError::Reported(1)) }
}
