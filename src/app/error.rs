//! Why the relay did not start, or did not end well.

use std::{net::SocketAddr, path::PathBuf};

use crate::{
    app::supervisor::TaskEnded,
    auth::AuthError,
    bundle::served::ServeError,
    config::AdminAddress,
    http::tls::TlsError,
    storage::{StorageError, open::OpenError},
};

/// Why the relay did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum AppError {
    #[error("{}: http.listen: cannot listen on {address}: {source}", location(file))]
    Listen { file: Option<PathBuf>, address: SocketAddr, source: std::io::Error },
    #[error("cannot use the sockets that systemd passed: {0}")]
    Inherited(std::io::Error),
    #[error(
        "tonk-relay.socket: {address} is not a loopback address; set auth.mode in {}, such as \
         \"token\", or \"open\" to admit everybody",
        location(file)
    )]
    OpenSocket { file: Option<PathBuf>, address: SocketAddr },
    #[error("{}: admin.listen: cannot listen on {address}: {source}", location(file))]
    AdminListen { file: Option<PathBuf>, address: AdminAddress, source: std::io::Error },
    #[error("{}: {source}", location(file))]
    Open { file: Option<PathBuf>, source: OpenError },
    #[error("{}: cannot read the storage id: {source}", location(file))]
    Storage { file: Option<PathBuf>, source: StorageError },
    #[error(
        "{}: storage.path: {}: `tonk-relay restore --replace {}` was not finished. Run it again. \
         To go back instead, move everything in {name} one folder up, replacing what is there, and \
         delete .replacing",
        location(file), path.display(), backup.display()
    )]
    Replacing { file: Option<PathBuf>, path: PathBuf, backup: PathBuf, name: String },
    #[error("{}: bundles.path: {}: {source}", location(file), path.display())]
    Bundles { file: Option<PathBuf>, path: PathBuf, source: std::io::Error },
    #[error("{}: bundle.path: {source}", location(file))]
    Bundle { file: Option<PathBuf>, source: ServeError },
    #[error("{}: {}: {source}", location(file), source.key())]
    Tls { file: Option<PathBuf>, source: TlsError },
    #[error("{}: {}: {source}", location(file), source.key())]
    Auth { file: Option<PathBuf>, source: AuthError },
    #[error("cannot install signal handlers: {0}")]
    Signals(std::io::Error),
    #[error("cannot create the metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error(transparent)]
    Task(#[from] TaskEnded),
    #[error("the shutdown was not finished within drain_timeout ({timeout}): {late}")]
    Late { timeout: crate::config::Time, late: String },
    #[error("stopped at once by a second signal; {0}")]
    Quit(String),
}

fn location(file: &Option<PathBuf>) -> String {
    file.as_ref().map_or_else(|| "tonk-relay".to_owned(), |file| file.display().to_string())
}
