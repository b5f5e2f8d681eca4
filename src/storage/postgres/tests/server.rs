//! A PostgreSQL server for all tests of this process.

use std::{
    io::{BufRead, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio_postgres::NoTls;

use crate::{
    base::lock::lock,
    config::{Database, DatabaseUrl},
};

/// The exit code of the script that starts the server, if PostgreSQL is not installed.
const NOT_INSTALLED: i32 = 77;

static SERVER: OnceLock<Option<Server>> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A running server. It ends with this process, which closes its standard input.
struct Server {
    folder: String,
    _process: Mutex<(Child, BufReader<ChildStdout>)>,
}

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
        format!("postgres://postgres@/{name}?host={}", self.folder)
    }

    /// The database as another role uses it.
    pub(super) fn used_by(&self, role: &str) -> Database {
        let url = format!("postgres://{role}@/{}?host={}", self.name, self.folder);
        DatabaseUrl::from(url.as_str()).read().expect("a URL").expect("is not empty")
    }

    /// The URL for another role, which owns the database from now on.
    pub(super) async fn url_as(&self, role: &str) -> DatabaseUrl {
        let statements =
            format!("create role {role} login; alter database {} owner to {role}", self.name);
        self.client().await.batch_execute(&statements).await.expect("makes a role");
        let url = format!("postgres://{role}@/{}?host={}", self.name, self.folder);
        url.as_str().into()
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
    let server = SERVER.get_or_init(start).as_ref()?;
    let name = format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let client = connect(&server.folder, "postgres", "postgres").await.expect("connects");
    client.batch_execute(&format!("create database {name}")).await.expect("creates");
    Some(TestDatabase { folder: &server.folder, name })
}

fn start() -> Option<Server> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/postgres-server");
    let mut process = Command::new(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the script runs");
    let mut output = BufReader::new(process.stdout.take().expect("it is piped"));
    let mut folder = String::new();
    output.read_line(&mut folder).expect("reads");
    if folder.is_empty() {
        let ended = process.wait().expect("it ends");
        assert_eq!(ended.code(), Some(NOT_INSTALLED), "the server has not started");
        let is_needed = std::env::var_os("TONK_RELAY_POSTGRES").is_some();
        assert!(!is_needed, "PostgreSQL is not installed, and TONK_RELAY_POSTGRES is set");
        return None;
    }
    let folder = folder.trim().to_owned();
    let server = Server { folder, _process: Mutex::new((process, output)) };
    drop(lock(&server._process));
    Some(server)
}

async fn connect(
    folder: &str,
    database: &str,
    role: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    let connecting = config.host_path(folder).user(role).dbname(database).connect(NoTls);
    let (client, connection) = connecting.await?;
    tokio::spawn(connection);
    Ok(client)
}
