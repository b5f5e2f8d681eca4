//! The command line: its arguments, and which file does what they ask for.
//!
//! Every command has a file of its name. `backup`, `client`, `cluster`, `doc` and `ping` are
//! folders. Commands reach a relay, or the stored data when no relay runs, through `relay`;
//! `client` and `ping` connect as clients do, through `connect`.

#![allow(clippy::disallowed_methods, reason = "commands may block")]

mod arguments;
mod backup;
mod backup_folder;
mod checkpoint;
mod client;
mod cluster;
mod connect;
mod daemon;
mod demo;
mod doc;
mod error;
mod export;
mod files;
mod fsck;
mod import;
mod merge;
mod output;
mod ping;
mod progress;
mod quarantine;
mod relay;
mod reload;
mod restore;
mod runtime;
mod serve_storage;
mod status;
mod suggest;
mod token;
mod top;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{
    arguments::socket_address,
    backup::BackupArguments,
    client::ClientArguments,
    cluster::ClusterArguments,
    daemon::DaemonArguments,
    doc::DocArguments,
    error::CliError,
    export::ExportArguments,
    fsck::FsckArguments,
    import::ImportArguments,
    ping::PingArguments,
    quarantine::QuarantineCommand,
    relay::{RelayArguments, StorageArguments},
    restore::RestoreArguments,
    token::TokenArguments,
};

/// The sync relay for Tonk and automerge-repo apps.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    daemon: DaemonArguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a relay to try, with a small bundle of its own and everything in one folder
    Demo {
        /// Serve this bundle instead
        #[arg(long, value_name = "FILE")]
        bundle: Option<PathBuf>,
        /// Where documents, bundles and the admin socket go
        #[arg(long, value_name = "FOLDER", default_value = "tonk-relay-data")]
        folder: PathBuf,
        /// Where to listen
        #[arg(
            long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8081",
            value_parser = socket_address
        )]
        listen: SocketAddr,
    },
    /// Show the state of the running relay: readiness, clients, disk, memory, sign-in, certificate,
    /// last backup, quarantine. Exit code: 0 it is ready, 1 it is not ready or does not run, 78 the
    /// config names no socket
    Status {
        #[command(flatten)]
        relay: RelayArguments,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the documents and sessions that used the most resources of the running relay in the
    /// last minute
    Top {
        #[command(flatten)]
        relay: RelayArguments,
        /// Print once instead of refreshing the terminal
        #[arg(long)]
        once: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Connect to a relay as a client does, and check each step: address, TLS, upgrade through
    /// proxies, round trip, large messages, idle time
    Ping(PingArguments),
    /// Make or open a document on a relay or any other automerge-repo server, show it, and change
    /// it
    Client(ClientArguments),
    /// Have the running relay reload its config file, tokens and keys
    Reload {
        #[command(flatten)]
        relay: RelayArguments,
    },
    /// Add, list and remove the tokens that clients sign in with
    Token(TokenArguments),
    /// Move all chunks from the journal into the folders of the documents, whether or not the relay
    /// is running
    Checkpoint {
        #[command(flatten)]
        storage: StorageArguments,
    },
    /// Show, delete or block a document, whether or not the relay is running
    Doc(DocArguments),
    /// Make the database of a relay that keeps its documents in PostgreSQL, and show it
    Cluster(ClusterArguments),
    /// Check everything that is stored, whether or not the relay is running. Exit code: 0 no
    /// damage, 1 all damage repaired, 4 damage is left, 8 the check is incomplete
    Fsck(FsckArguments),
    /// List, release or delete stored chunks that do not parse and were moved to quarantine
    Quarantine {
        #[command(subcommand)]
        command: QuarantineCommand,
    },
    /// Back up everything that is stored to a folder, whether or not the relay is running. Later
    /// backups copy only what has changed
    Backup(BackupArguments),
    /// Restore a backup
    Restore(RestoreArguments),
    /// Import the documents of another relay's storage folder, which is not changed
    Import(ImportArguments),
    /// Write the current documents of an app into a .tonk bundle. Exit code: 0 the bundle is
    /// complete, 1 a referenced document is missing or damaged
    Export(ExportArguments),
    /// Serve the stored data to another command of this program
    #[command(hide = true)]
    ServeStorage {
        #[arg(long)]
        config: PathBuf,
        /// Create the folder if it does not exist, and move a broken journal aside
        #[arg(long)]
        repairs: bool,
    },
}

/// The definition of the command line, for the manual page and the shell completions.
pub fn command() -> clap::Command {
    <Arguments as clap::CommandFactory>::command()
}

/// Runs the command that the arguments name, and returns its exit code.
pub fn run() -> ExitCode {
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(error) = suggest::unknown_command(command(), &words) {
        error.exit();
    }
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Demo { bundle, folder, listen }) => demo::run(bundle, &folder, listen),
        Some(Command::Status { relay, json }) => status::run(&relay, json),
        Some(Command::Top { relay, once, json }) => top::run(&relay, once, json),
        Some(Command::Ping(arguments)) => ping::run(&arguments),
        Some(Command::Client(arguments)) => client::run(arguments),
        Some(Command::Reload { relay }) => reload::run(&relay),
        Some(Command::Token(arguments)) => token::run(arguments),
        Some(Command::Checkpoint { storage }) => checkpoint::run(&storage),
        Some(Command::Doc(arguments)) => doc::run(arguments),
        Some(Command::Cluster(arguments)) => cluster::run(arguments),
        Some(Command::Fsck(arguments)) => fsck::run(&arguments),
        Some(Command::Quarantine { command }) => quarantine::run(command),
        Some(Command::Backup(arguments)) => backup::run(&arguments),
        Some(Command::Restore(arguments)) => restore::run(&arguments),
        Some(Command::Import(arguments)) => import::run(&arguments),
        Some(Command::Export(arguments)) => export::run(&arguments),
        Some(Command::ServeStorage { config, repairs }) => serve_storage::run(&config, repairs),
        None => daemon::run(arguments.daemon),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !matches!(error, CliError::Reported(_)) {
                eprintln!("{error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn argument_definitions_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn positional_arguments_of_the_typescript_relay_are_accepted() {
        let arguments =
            Arguments::try_parse_from(["tonk-relay", "8081", "app.tonk"]).expect("parses");
        assert_eq!(arguments.daemon.port, Some(8081));
        assert_eq!(arguments.daemon.storage, Path::new("automerge-repo-data"));
        assert!(Arguments::try_parse_from(["tonk-relay", "8081"]).is_err(), "a bundle is missing");
        let reload = Arguments::try_parse_from(["tonk-relay", "reload"]).expect("parses");
        assert!(matches!(reload.command, Some(Command::Reload { .. })));
    }
}
