//! A PostgreSQL server for all tests of this process.

#[path = "../../../../tests/common/postgres.rs"]
#[allow(dead_code, reason = "other tests use more of it")]
mod process;

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use tokio_postgres::NoTls;

use self::process::Server;
use crate::{
    config::{Database, DatabaseUrl},
    storage::postgres::connection::OPTIONS,
};

/// It ends with this process, which closes its standard input.
static SERVER: OnceLock<Option<Server>> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// An empty database.
pub(super) struct TestDatabase {
    folder: &'static str,
    name: String,
}

impl TestDatabase {
    pub(super) fn url(&self) -> DatabaseUrl {
        self.url_of(&self.name).as_str().into()
    }

    /// The URL of another database of the same server.
    pub(super) fn url_of(&self, name: &str) -> String {
        self.url_for("postgres", name)
    }

    fn url_for(&self, role: &str, name: &str) -> String {
        format!("postgres://{role}@/{name}?host={}", self.folder)
    }

    /// The database as another role uses it.
    pub(super) fn used_by(&self, role: &str) -> Database {
        DatabaseUrl::from(self.url_for(role, &self.name).as_str())
            .read()
            .expect("a URL")
            .expect("is not empty")
    }

    /// The URL for another role, which owns the database from now on.
    pub(super) async fn url_as(&self, role: &str) -> DatabaseUrl {
        let statements =
            format!("create role {role} login; alter database {} owner to {role}", self.name);
        self.client().await.batch_execute(&statements).await.expect("makes a role");
        self.url_for(role, &self.name).as_str().into()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A connection beside the relay's.
    pub(super) async fn client(&self) -> tokio_postgres::Client {
        self.client_as("postgres").await.expect("connects")
    }

    /// A connection as another role.
    pub(super) async fn client_as(
        &self,
        role: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        connect(self.folder, &self.name, role).await
    }

    /// Drops the database.
    pub(super) async fn drop(&self) {
        let server = connect(self.folder, "postgres", "postgres").await.expect("connects");
        let drop = format!("drop database {} with (force)", self.name);
        server.batch_execute(&drop).await.expect("drops");
    }
}

/// Makes an empty database, or returns nothing if PostgreSQL is not installed.
pub(super) async fn test_database() -> Option<TestDatabase> {
    let server = SERVER.get_or_init(Server::start).as_ref()?;
    let name = format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let client = connect(&server.folder, "postgres", "postgres").await.expect("connects");
    client.batch_execute(&format!("create database {name}")).await.expect("creates");
    Some(TestDatabase { folder: &server.folder, name })
}

async fn connect(
    folder: &str,
    database: &str,
    role: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(folder).user(role).dbname(database).options(OPTIONS);
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
