//! Errors of the database.

use std::error::Error;

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
}

impl QueryError {
    /// A statement that was not answered in time, or not in a way that can be used.
    pub(super) fn passing(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), kind: Kind::Passing }
    }

    /// Whether the same statement can succeed later, without anybody changing it.
    pub(super) fn is_passing(&self) -> bool {
        self.kind != Kind::Refused
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
