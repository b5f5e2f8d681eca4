//! Errors of the database.

use std::{error::Error, io, path::PathBuf, time::Duration};

use rustls::CertificateError;
use tokio_postgres::error::SqlState;

use crate::storage::{Failure, Location, StorageError};

/// What a statement failed with.
#[derive(Clone, Debug)]
pub(super) struct QueryError {
    pub(super) problem: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The same statement can succeed later.
    Passing,
    /// As `Passing`; the database has no room.
    Full,
    /// The database does not accept the statement.
    Refused,
    /// The database has lost something that the statement builds on.
    Outdated,
    /// The document was deleted since it was read.
    Deleted,
}

impl QueryError {
    /// A statement that was not answered in time, or not in a way that can be used.
    pub(super) fn passing(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), kind: Kind::Passing }
    }

    /// A statement that builds on what the database has lost.
    pub(super) fn outdated() -> Self {
        let problem = "it has lost something since the document was read".to_owned();
        Self { problem, kind: Kind::Outdated }
    }

    /// A chunk of a document that was deleted since it was read.
    pub(super) fn deleted() -> Self {
        let problem = "the document was deleted since it was read".to_owned();
        Self { problem, kind: Kind::Deleted }
    }

    /// Whether the statement builds on what the database has lost.
    pub(super) fn is_outdated(&self) -> bool {
        self.kind == Kind::Outdated
    }

    /// Whether the same statement can succeed later, without anybody changing it.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self.kind, Kind::Passing | Kind::Full)
    }

    /// Whether what failed with this error can succeed later.
    pub(super) fn is_passing_error(error: &tokio_postgres::Error) -> bool {
        Kind::of(error) != Kind::Refused
    }

    /// What the relay reports.
    pub(super) fn into_storage(self, action: &'static str, database: &str) -> StorageError {
        let location = Location::Database(database.to_owned());
        let failure = Failure::new(action, location, self.problem);
        match self.kind {
            Kind::Passing => StorageError::Unavailable(failure),
            Kind::Full => StorageError::Full(failure),
            Kind::Refused => StorageError::Io(failure),
            Kind::Outdated => StorageError::Outdated(failure),
            Kind::Deleted => StorageError::Deleted(failure),
        }
    }
}

impl From<tokio_postgres::Error> for QueryError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self { problem: explain(&error), kind: Kind::of(&error) }
    }
}

impl Kind {
    fn of(error: &tokio_postgres::Error) -> Self {
        match error.code() {
            // The connection has failed.
            None => Self::Passing,
            Some(code) if *code == SqlState::DISK_FULL => Self::Full,
            // Connection, resources, operator intervention; and a deadlock or a lock that was not
            // available (appendix A of PostgreSQL's manual).
            Some(code)
                if ["08", "40", "53", "55", "57"].contains(&class(code))
                    || *code == SqlState::READ_ONLY_SQL_TRANSACTION =>
            {
                Self::Passing
            }
            Some(_) => Self::Refused,
        }
    }
}

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ConnectError {
    #[error("{}", explain(.0))]
    Postgres(#[source] tokio_postgres::Error),
    #[error("the server did not answer within {0:?}")]
    Timeout(Duration),
    #[error("cannot read {}: {source}; expected certificates (PEM)", path.display())]
    Roots { path: PathBuf, source: io::Error },
    #[error(
        "no certificate authority is known {}; set sslrootcert in the URL",
        .0.as_ref().map_or_else(|| "on this machine".to_owned(), |path| format!("in {}", path.display()))
    )]
    NoRoots(Option<PathBuf>),
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    #[error("the server's certificate cannot be trusted: {0}")]
    Certificate(String),
    #[error("cannot start what connects to it: {0}")]
    Runtime(#[from] io::Error),
    #[error("it is PostgreSQL {0}; expected version 15 or later")]
    TooOld(String),
    #[error(
        "the setting {setting} is {found}, with which a crash loses what was reported as saved; \
         expected on"
    )]
    NotDurable { setting: &'static str, found: String },
    #[error("it is a standby, or read-only; expected a server that can be written")]
    ReadOnly,
    #[error(
        "the settings of the connection have no effect, so there is a connection pooler such as \
         PgBouncer in between; expected the server itself, or a pooler in session mode that passes \
         on the startup parameter \"options\""
    )]
    Pooled,
    #[error(
        "{0}; if the role or the database does not exist, `tonk-relay cluster init` creates it"
    )]
    Missing(String),
    #[error("cannot read the relay's tables: {0}")]
    Unreadable(String),
    #[error(
        "an older version of the relay uses the database (connected from {from}), and must be \
         alone; stop it first"
    )]
    InUse { from: String },
    #[error("connections reach different servers; expected a host name with one of them")]
    OtherServer,
    #[error("cannot read {}: {source}; expected a file with the password", path.display())]
    Password { path: PathBuf, source: io::Error },
    #[error("cannot create the relay's tables: {}", explain(.0))]
    NoTables(#[source] tokio_postgres::Error),
    #[error(
        "the role {role} may not create the relay's tables; `tonk-relay cluster init` makes them, \
         with its rights"
    )]
    MayNotCreate { role: String },
    #[error(
        "the role {role} lacks rights on the table {table}; `tonk-relay cluster init` grants them"
    )]
    NoRights { role: String, table: String },
    #[error(
        "it allows {allowed} connections ({by}), and the relay needs {needed}; raise the limit"
    )]
    FewConnections { allowed: i32, by: String, needed: i32 },
    #[error("its encoding is {0}; expected UTF8: create database NAME encoding 'UTF8'")]
    Encoding(String),
    #[error(
        "the relay's tables have version {found}, and this program knows {known}; install the \
         version of tonk-relay that wrote them"
    )]
    NewerFormat { found: i32, known: i32 },
    #[error(
        "the relay's tables have version {found}, and this program needs {needed}; \
         `tonk-relay cluster migrate` brings them there"
    )]
    OlderFormat { found: i32, needed: i32 },
}

impl ConnectError {
    /// Whether another attempt can succeed, without anybody changing the config or the database.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Postgres(error) => QueryError::is_passing_error(error),
            Self::Timeout(_) | Self::ReadOnly | Self::InUse { .. } | Self::OtherServer => true,
            _ => false,
        }
    }
}

impl From<tokio_postgres::Error> for ConnectError {
    fn from(error: tokio_postgres::Error) -> Self {
        // The answer of PgBouncer 1.18 to the settings of a connection.
        let is_pooled = error.as_db_error().is_some_and(|error| {
            error.code().code() == "08P01" && error.message().contains("startup parameter")
        });
        if is_pooled {
            return Self::Pooled;
        }
        // PostgreSQL tells of a role that does not exist only where its own user signs in without a
        // password.
        let is_missing = error.code().is_some_and(|code| {
            *code == SqlState::UNDEFINED_DATABASE
                || *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION
        });
        if is_missing {
            return Self::Missing(explain(&error));
        }
        match refused_certificate(&error) {
            Some(problem) => Self::Certificate(problem),
            None => Self::Postgres(error),
        }
    }
}

/// Why the certificate of the server was refused, if it was.
fn refused_certificate(error: &tokio_postgres::Error) -> Option<String> {
    let source = error.source()?.downcast_ref::<io::Error>()?;
    let rustls::Error::InvalidCertificate(problem) = source.get_ref()?.downcast_ref()? else {
        return None;
    };
    let text = problem.to_string();
    Some(match problem {
        CertificateError::UnknownIssuer => {
            "this machine does not know its authority; name the authority's file with \
             ?sslrootcert=FILE in the URL"
                .to_owned()
        }
        // The name of webpki's error, whose type rustls hides.
        _ if text.contains("CaUsedAsEndEntity") => {
            "it is its own authority, as `openssl req -x509` makes it; make an authority, and a \
             certificate of it that names the host in its subjectAltName"
                .to_owned()
        }
        _ => text,
    })
}

impl From<ConnectError> for QueryError {
    fn from(error: ConnectError) -> Self {
        Self::passing(error.to_string())
    }
}

fn class(code: &SqlState) -> &str {
    code.code().get(..2).unwrap_or_default()
}

/// Says what an error is, with the server's own words. Its details are left out: they may contain
/// values.
pub(super) fn explain(error: &tokio_postgres::Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", error.message(), error.code().code());
    }
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
