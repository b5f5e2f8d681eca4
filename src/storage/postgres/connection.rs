//! Connecting to the database.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{task::JoinSet, time::timeout};
// Written for tokio, sends statements without waiting for earlier answers, and is complete without
// a C library.
use tokio_postgres::{Client, Config, NoTls, Statement, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::{
    chunk_store::{LOAD, SIZE},
    error::{QueryError, explain},
    schema, tls,
    writer::WRITE,
};
use crate::config::{Database, DatabaseHost, DatabaseTls};

/// The oldest supported version of PostgreSQL, as in `server_version_num`.
const OLDEST: i32 = 150_000;
/// Connections that only read.
const READERS: usize = 4;
/// Settings of every connection. A server that has lost the relay must not keep its locks.
const OPTIONS: &str = "-c lock_timeout=2s -c idle_in_transaction_session_timeout=10s \
                       -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 \
                       -c tcp_keepalives_count=3 -c search_path=";
/// One of them, as PostgreSQL shows it.
const LOCK_TIMEOUT: &str = "2s";
/// The advisory lock of the relay that uses the database: "tonk" in ASCII.
const LOCK: i64 = 0x746f_6e6b;

/// Why a database cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ConnectError {
    #[error("{}", explain(.0))]
    Postgres(#[from] tokio_postgres::Error),
    #[error("the server did not answer within {0:?}")]
    Timeout(Duration),
    #[error("cannot read {}: {source}; expected certificates (PEM)", path.display())]
    Roots { path: PathBuf, source: io::Error },
    #[error(
        "there is no certificate of an authority {}; set sslrootcert in the URL",
        .0.as_ref().map_or_else(|| "on this machine".to_owned(), |path| format!("in {}", path.display()))
    )]
    NoRoots(Option<PathBuf>),
    #[error("cannot set up TLS: {0}")]
    Tls(String),
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
    #[error("another relay uses the database; stop it first: only one can use it")]
    InUse,
    #[error("another relay has taken over the database")]
    TakenOver,
    #[error(
        "the database has lost writes that it had confirmed, as after the promotion of a standby \
         or a restore"
    )]
    LostWrites,
    #[error("cannot create the relay's tables: {}", explain(.0))]
    NoTables(#[source] tokio_postgres::Error),
    #[error(
        "the role {0} may not create the relay's tables; make it the owner of the database: alter \
         database NAME owner to {0}"
    )]
    MayNotCreate(String),
    #[error("the role {role} lacks rights on the table {table}; grant it all of them")]
    NoRights { role: String, table: String },
    #[error(
        "the relay's tables have version {found}, and this program knows {known}; install the \
         version of tonk-relay that wrote them"
    )]
    NewerFormat { found: i32, known: i32 },
}

impl ConnectError {
    /// Whether another attempt can succeed, without anybody changing the config or the database.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Postgres(error) => QueryError::is_passing_error(error),
            Self::Timeout(_) | Self::ReadOnly | Self::InUse => true,
            _ => false,
        }
    }
}

impl From<ConnectError> for QueryError {
    fn from(error: ConnectError) -> Self {
        Self::passing(error.to_string())
    }
}

/// How to connect.
pub(super) struct Server {
    /// The longest time to wait for an answer.
    pub(super) timeout: Duration,
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

/// Connections that were made together, and end together: what is known from one is not true of
/// another server.
pub(super) struct Group {
    /// Writes small rows, and holds the lock.
    pub(super) writer: Client,
    pub(super) write: Statement,
    /// Writes large rows.
    pub(super) large: Client,
    pub(super) write_large: Statement,
    /// The name with which this group writes.
    pub(super) instance: [u8; 16],
    /// At least one.
    readers: (Reader, Vec<Reader>),
    next_reader: AtomicUsize,
    /// Cancelled when one of them has failed.
    pub(super) broken: CancellationToken,
    _connections: JoinSet<()>,
}

/// A connection that only reads.
pub(super) struct Reader {
    pub(super) client: Client,
    /// The statement [`SIZE`].
    pub(super) size: Statement,
    /// The statement [`LOAD`].
    pub(super) load: Statement,
}

impl Group {
    /// The connections take turns.
    pub(super) fn reader(&self) -> &Reader {
        let next = self.next_reader.fetch_add(1, Ordering::Relaxed);
        let (first, others) = &self.readers;
        next.checked_rem(READERS).and_then(|n| others.get(n)).unwrap_or(first)
    }
}

impl Server {
    pub(super) fn new(database: &Database, timeout: Duration) -> Result<Self, ConnectError> {
        let mut config = Config::new();
        match &database.host {
            DatabaseHost::Name(name) => config.host(name.trim_matches(['[', ']'])),
            DatabaseHost::Socket(folder) => config.host_path(folder),
        };
        config
            .port(database.port)
            .user(&database.user)
            .dbname(&database.name)
            .application_name("tonk-relay")
            .options(OPTIONS)
            .connect_timeout(timeout)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        if let Some(password) = &database.password {
            config.password(password);
        }
        let tls = match &database.tls {
            DatabaseTls::Off => {
                config.ssl_mode(SslMode::Disable);
                None
            }
            DatabaseTls::Verified(roots) => {
                config.ssl_mode(SslMode::Require);
                Some(tls::connector(roots.as_deref())?)
            }
        };
        Ok(Self { timeout, config, tls })
    }

    /// Connects, checks the server, and takes over the writing. `earlier` is the name with which
    /// this relay wrote last, and how many writes were confirmed by then; none at the start.
    pub(super) async fn connect(
        &self,
        earlier: Option<([u8; 16], i64)>,
    ) -> Result<Group, ConnectError> {
        let connecting = timeout(self.timeout, self.connect_group(earlier));
        connecting.await.unwrap_or(Err(ConnectError::Timeout(self.timeout)))
    }

    /// Connects, and checks what can be checked while another relay uses the database.
    pub(super) async fn check(&self) -> Result<(), ConnectError> {
        let checking = async {
            let (mut connections, broken) = (JoinSet::new(), CancellationToken::new());
            let client = self.connect_one(&mut connections, &broken).await?;
            check(&client).await?;
            schema::check(&client).await
        };
        timeout(self.timeout, checking).await.unwrap_or(Err(ConnectError::Timeout(self.timeout)))
    }

    async fn connect_group(&self, earlier: Option<([u8; 16], i64)>) -> Result<Group, ConnectError> {
        let broken = CancellationToken::new();
        let mut connections = JoinSet::new();
        let writer = self.connect_one(&mut connections, &broken).await?;
        check(&writer).await?;
        lock(&writer).await?;
        schema::prepare(&writer).await?;
        let instance = *crate::base::document_id::DocumentId::random().as_bytes();
        take_over(&writer, instance, earlier).await?;
        let write = writer.prepare(WRITE).await?;
        let large = self.connect_one(&mut connections, &broken).await?;
        let write_large = large.prepare(WRITE).await?;
        let first = self.connect_reader(&mut connections, &broken).await?;
        let mut others = Vec::new();
        for _ in 1..READERS {
            others.push(self.connect_reader(&mut connections, &broken).await?);
        }
        Ok(Group {
            writer,
            write,
            large,
            write_large,
            instance,
            readers: (first, others),
            next_reader: AtomicUsize::new(0),
            broken,
            _connections: connections,
        })
    }

    async fn connect_reader(
        &self,
        connections: &mut JoinSet<()>,
        broken: &CancellationToken,
    ) -> Result<Reader, ConnectError> {
        let client = self.connect_one(connections, broken).await?;
        let (size, load) = (client.prepare(SIZE).await?, client.prepare(LOAD).await?);
        Ok(Reader { client, size, load })
    }

    async fn connect_one(
        &self,
        connections: &mut JoinSet<()>,
        broken: &CancellationToken,
    ) -> Result<Client, ConnectError> {
        let guard = broken.clone().drop_guard();
        match self.tls.clone() {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                connections.spawn(async move {
                    let _broken_at_the_end = guard;
                    // Whoever waits for an answer gets the error.
                    let _ = connection.await;
                });
                Ok(client)
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls).await?;
                connections.spawn(async move {
                    let _broken_at_the_end = guard;
                    let _ = connection.await;
                });
                Ok(client)
            }
        }
    }
}

/// Checks that what the server confirms is durable, and that statements reach it as they are sent.
async fn check(client: &Client) -> Result<(), ConnectError> {
    let settings = "select current_setting('server_version_num')::int, \
                    current_setting('server_version'), current_setting('fsync'), \
                    current_setting('synchronous_commit'), current_setting('lock_timeout'), \
                    pg_is_in_recovery() or current_setting('transaction_read_only')::bool";
    let row = client.query_one(settings, &[]).await?;
    if row.try_get::<_, i32>(0)? < OLDEST {
        return Err(ConnectError::TooOld(row.try_get(1)?));
    }
    if row.try_get::<_, &str>(4)? != LOCK_TIMEOUT {
        return Err(ConnectError::Pooled);
    }
    for (column, setting) in [(2, "fsync"), (3, "synchronous_commit")] {
        let found: &str = row.try_get(column)?;
        if found == "off" {
            return Err(ConnectError::NotDurable { setting, found: found.to_owned() });
        }
    }
    if row.try_get(5)? {
        return Err(ConnectError::ReadOnly);
    }
    Ok(())
}

/// Takes the lock of the relay that uses the database. It is released with the connection.
async fn lock(client: &Client) -> Result<(), ConnectError> {
    let locked = client.query_one("select pg_try_advisory_lock($1)", &[&LOCK]).await?;
    if locked.try_get(0)? { Ok(()) } else { Err(ConnectError::InUse) }
}

/// Writes down that `instance` writes from now on. Waits for a write of the earlier one that is
/// still being made.
async fn take_over(
    client: &Client,
    instance: [u8; 16],
    earlier: Option<([u8; 16], i64)>,
) -> Result<(), ConnectError> {
    let take = "update tonk_relay.writer set instance = $1 where $2::bytea is null or instance = $2 \
                returning writes";
    let name = earlier.as_ref().map(|(name, _)| name.as_slice());
    let Some(row) = client.query_opt(take, &[&instance.as_slice(), &name]).await? else {
        return Err(ConnectError::TakenOver);
    };
    let writes: i64 = row.try_get(0)?;
    if earlier.is_some_and(|(_, confirmed)| writes < confirmed) {
        return Err(ConnectError::LostWrites);
    }
    Ok(())
}
