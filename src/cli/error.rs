//! Why a command ends with an error, and with which exit code.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    admin::client::AdminError,
    app::AppError,
    base::document_id::DocumentId,
    config::load::Fault,
    observe::log::LogError,
    storage::{StorageError, open::OpenError},
};

/// Exit code for an invalid config (`sysexits.h`).
const EX_CONFIG: u8 = 78;

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error("{}", join_lines(.0))]
    Config(Vec<Fault>),
    #[error("{0}")]
    Log(#[from] LogError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error("{}: {problem}", path.display())]
    Path { path: PathBuf, problem: String },
    #[error("{0} is not a valid automerge document: {1}")]
    Document(DocumentId, Box<automerge::AutomergeError>),
    #[error("the check is incomplete: {0}")]
    NotChecked(String),
    #[error(
        "{0}; `tonk-relay fsck --repair`, or the next start of the relay, moves the journal into \
         quarantine"
    )]
    BrokenJournal(StorageError),
    #[error(transparent)]
    Database(OpenError),
    #[error(
        "the database was restarted or replaced, and may have lost what was confirmed; run it again"
    )]
    LostDatabase,
    #[error("cannot list the documents: {0}")]
    NotListed(String),
    #[error("{0}")]
    Problem(String),
    /// The command has already printed what is wrong; this is the exit code.
    #[error("")]
    Reported(u8),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
    #[error("not reloaded:\n{}", .0.join("\n"))]
    NotReloaded(Vec<String>),
    #[error("{}: not found", .0.display())]
    NoBundle(PathBuf),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("HOST={0}: {1}")]
    Host(String, String),
    #[error("{0} names no Unix socket under admin.listen; name the relay's socket with --socket")]
    NoSocket(String),
    #[error("cannot start the async runtime: {0}")]
    Runtime(io::Error),
}

impl CliError {
    /// The exit code that the program ends with.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Log(LogError::Level(_)) => EX_CONFIG,
            Self::Reported(code) => *code,
            Self::App(AppError::OpenSocket { .. } | AppError::Auth { .. }) => EX_CONFIG,
            // The exit codes of fsck(8): errors left uncorrected, and operational error.
            Self::BrokenJournal(_) => 4,
            Self::NotChecked(_) => 8,
            _ => 1,
        }
    }
}

fn join_lines(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Returns a conversion that adds the path to an I/O error.
pub(super) fn io_error(path: &Path) -> impl Fn(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Io { path: path.clone(), source }
}

/// Returns an error about a file or folder.
pub(super) fn path_error(path: &Path, problem: impl ToString) -> CliError {
    CliError::Path { path: path.to_owned(), problem: problem.to_string() }
}
