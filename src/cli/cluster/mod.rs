//! `tonk-relay cluster`: makes the database of `[cluster]` ready, and shows it.

mod init;
mod status;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use rustix::process::geteuid;

use super::{
    arguments::CONFIG_FILE,
    error::{CliError, io_error},
};
use crate::{
    app::service::Service,
    base::{folder, user::User},
    config::{Cluster, Config, Database, instance, load},
};

#[derive(Debug, Args)]
pub(super) struct ClusterArguments {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Make the database that the config names: its roles, their rights and the relay's tables.
    /// Shows first what it will do, does only what is missing, and refuses a database with tables of
    /// others
    Init(AdminArguments),
    /// Bring the relay's tables to the version of this program, before relays of this version start
    Migrate(AdminArguments),
    /// Show the database: the server, how safe it is, its size, and what is amiss. Exit code: 0
    /// nothing is amiss, 1 something is
    Status {
        #[command(flatten)]
        relay: ConfigArguments,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct ConfigArguments {
    /// The config file of the relay, which names the database
    #[arg(long, value_name = "FILE", default_value = CONFIG_FILE)]
    config: PathBuf,
}

/// How a command signs in that changes more than the relay may.
#[derive(Debug, Args)]
struct AdminArguments {
    #[command(flatten)]
    relay: ConfigArguments,
    /// Sign in to this database, as a role that may create others, such as
    /// postgres://postgres@db.example.org/postgres. Without this, at a Unix socket, as the user
    /// postgres
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// A file with the password of that role
    #[arg(long, value_name = "FILE", requires = "admin")]
    admin_password_file: Option<PathBuf>,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

/// A config, and the database that it names.
struct Configured {
    /// The config file.
    file: PathBuf,
    config: Config,
    database: Database,
}

pub(super) fn run(arguments: ClusterArguments) -> Result<(), CliError> {
    match arguments.command {
        ClusterCommand::Init(arguments) => init::run(&arguments, false),
        ClusterCommand::Migrate(arguments) => init::run(&arguments, true),
        ClusterCommand::Status { relay, json } => status::run(&relay, json),
    }
}

impl ConfigArguments {
    fn read(&self) -> Result<Configured, CliError> {
        let config = load::read_file(&self.config).map_err(CliError::Config)?.config;
        let named = config.cluster.database.read();
        let problem = match named {
            Ok(Some(database)) => {
                return Ok(Configured { file: self.config.clone(), config, database });
            }
            Ok(None) => "is not set, so documents are in storage.path and not in a database \
                         (postgresql.md in /usr/share/doc/tonk-relay shows how to use one)"
                .to_owned(),
            Err(problem) => problem,
        };
        Err(CliError::Problem(format!("{}: cluster.database {problem}", self.config.display())))
    }
}

impl Configured {
    fn cluster(&self) -> &Cluster {
        &self.config.cluster
    }

    /// Does something as the relay does it: root takes the rights of the owner of its folder, or of
    /// the service if the relay has never run, as which PostgreSQL recognises it at a Unix socket.
    fn as_relay<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, CliError> {
        let folder = &self.config.storage.path;
        let owner = folder::owner(folder).map_err(io_error(folder))?.0;
        if owner != 0 {
            return as_user(User::find(&owner.to_string()).as_ref(), folder, work);
        }
        match Service::find(&instance::unit(&self.file))
            .map_err(|fault| CliError::Config(vec![fault]))?
        {
            Some(service) => service.run(work).map_err(io_error(folder)),
            None => Ok(work()),
        }
    }
}

/// Does something with the rights of a user, if there is one and this process is root's.
fn as_user<T: Send>(
    user: Option<&User>,
    place: &Path,
    work: impl FnOnce() -> T + Send,
) -> Result<T, CliError> {
    match user {
        Some(user) if geteuid().is_root() => user.run(work).map_err(io_error(place)),
        _ => Ok(work()),
    }
}
