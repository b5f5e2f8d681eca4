//! Connecting to the database.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use tokio::{task::JoinSet, time::timeout};
// Written for tokio, sends statements without waiting for earlier answers, and is complete without
// a C library.
use tokio_postgres::{Client, Config, NoTls, Row, Statement, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::{
    error::{ConnectError, QueryError},
    schema,
    statements::{LOAD, SIZE, WRITE, WRITE_LARGE},
    tls,
};
use crate::{
    base::{document_id::DocumentId, regular_file},
    config::{Cluster, Database, DatabaseHost, DatabaseTls},
};

/// The oldest supported version of PostgreSQL, as in `server_version_num`.
pub(super) const OLDEST: i32 = 150_000;
/// The largest file with a password that is read, in bytes.
const MAX_PASSWORD_FILE: u64 = 4 << 10;
/// Connections that only read.
const READERS: usize = 4;
/// All connections of a relay.
const CONNECTIONS: usize = READERS + 2;
/// Settings of every connection. A server that has lost the relay must not keep its locks.
const OPTIONS: &str = "-c lock_timeout=2s -c idle_in_transaction_session_timeout=10s \
                       -c statement_timeout=0 -c idle_session_timeout=0 \
                       -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 \
                       -c tcp_keepalives_count=3 -c search_path=";
/// One of them, as PostgreSQL shows it.
const LOCK_TIMEOUT: &str = "2s";
/// The advisory lock of the relay that uses the database: "tonk" in ASCII.
const LOCK: i64 = 0x746f_6e6b;

/// How to connect.
pub(super) struct Server {
    /// The longest time to wait for an answer.
    pub(super) timeout: Duration,
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// The name of this relay, as long as it runs.
    instance: [u8; 16],
    /// How often it has begun to connect.
    groups: AtomicU64,
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
    /// The name with which this group writes: the relay's own name, and the number of the group.
    pub(super) name: Vec<u8>,
    /// At least one.
    readers: (Reader, Vec<Reader>),
    next_reader: AtomicUsize,
    /// The number of the last write that is known to be made: at first that with which the server
    /// began, then of those that it has confirmed to this group.
    pub(super) confirmed: Arc<AtomicI64>,
    /// How often the database had lost something before.
    pub(super) losses: u64,
    /// Cancelled when one of them has failed.
    pub(super) broken: CancellationToken,
    _connections: JoinSet<()>,
}

/// A connection that only reads.
pub(super) struct Reader {
    pub(super) client: Client,
    /// Held by one query after the other, so that none pays for the time of another.
    pub(super) turn: tokio::sync::Mutex<()>,
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

    /// Looks at the answer to a write, whose first columns are those of `statements::WRITE`.
    /// `before` was the number of the last confirmed write when it was sent. All writes but large
    /// ones are counted.
    pub(super) fn confirmed_by(
        &self,
        row: &Row,
        before: i64,
        is_counted: bool,
    ) -> Result<(), QueryError> {
        let Some(writes) = row.try_get::<_, Option<i64>>(0)? else {
            // Connecting again tells who writes now.
            self.broken.cancel();
            return Err(QueryError::passing("another connection writes now"));
        };
        if writes < before.saturating_add(i64::from(is_counted)) {
            // Connecting again counts the loss.
            self.confirmed.fetch_max(writes.saturating_add(1), Ordering::SeqCst);
            self.broken.cancel();
            return Err(QueryError::passing("an older state of it was brought back"));
        }
        if !row.try_get::<_, bool>(1)? {
            return Err(QueryError::passing(
                "synchronous_commit is off, with which a crash loses what was reported as saved",
            ));
        }
        self.confirmed.fetch_max(writes, Ordering::SeqCst);
        // The next connection may have looked at the number before.
        if self.broken.is_cancelled() {
            return Err(QueryError::passing("the connection was lost"));
        }
        Ok(())
    }
}

impl Server {
    /// The server of a relay's config.
    pub(super) fn of(database: &Database, cluster: &Cluster) -> Result<Self, ConnectError> {
        let password = password(&cluster.password_file())?;
        Self::new(database, password.as_deref(), cluster.timeout.0)
    }

    /// A server at which `database` signs in with a password, if there is one.
    pub(super) fn new(
        database: &Database,
        password: Option<&str>,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
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
            .tcp_user_timeout(timeout)
            .keepalives_idle(Duration::from_secs(5))
            .keepalives_interval(Duration::from_secs(2))
            .keepalives_retries(3);
        if let Some(password) = password {
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
        let instance = *DocumentId::random().as_bytes();
        Ok(Self { timeout, config, tls, instance, groups: AtomicU64::new(0) })
    }

    /// Connects, checks the server, and takes over the writing. `earlier` is how many writes the
    /// database has confirmed to this relay, and no other may have written since; none at the
    /// start.
    pub(super) async fn connect(&self, earlier: Option<i64>) -> Result<Group, ConnectError> {
        // There are several answers to wait for.
        let limit = 3 * self.timeout;
        let connecting = timeout(limit, self.connect_group(earlier));
        connecting.await.unwrap_or(Err(ConnectError::Timeout(limit)))
    }

    /// Connects, and checks what can be checked while another relay uses the database.
    pub(super) async fn check(&self) -> Result<(), ConnectError> {
        self.with_one(async |client| {
            check(client).await?;
            has_connections(client).await?;
            schema::check(client).await
        })
        .await
    }

    /// Does something over one connection, within the longest time to wait for an answer.
    pub(super) async fn with_one<T>(
        &self,
        act: impl AsyncFnOnce(&Client) -> Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let acting = async {
            let (mut connections, broken) = (JoinSet::new(), CancellationToken::new());
            let client = self.connect_one(&mut connections, &broken).await?;
            act(&client).await
        };
        timeout(self.timeout, acting).await.unwrap_or(Err(ConnectError::Timeout(self.timeout)))
    }

    async fn connect_group(&self, earlier: Option<i64>) -> Result<Group, ConnectError> {
        let broken = CancellationToken::new();
        let mut connections = JoinSet::new();
        let writer = self.connect_one(&mut connections, &broken).await?;
        check(&writer).await?;
        match lock(&writer).await {
            // Perhaps by an earlier connection of this relay.
            Err(error @ ConnectError::InUse { .. }) => {
                if let Some(confirmed) = earlier {
                    self.is_ours(&writer, confirmed).await?;
                }
                return Err(error);
            }
            locked => locked?,
        }
        schema::prepare(&writer).await?;
        let number = self.groups.fetch_add(1, Ordering::Relaxed);
        let name = [self.instance.as_slice(), &number.to_be_bytes()].concat();
        let writes = self.take_over(&writer, &name, earlier).await?;
        let write = writer.prepare(WRITE).await?;
        let large = self.connect_one(&mut connections, &broken).await?;
        is_same_server(&large, &name).await?;
        let write_large = large.prepare(WRITE_LARGE).await?;
        let first = self.connect_reader(&mut connections, &broken, &name).await?;
        let mut others = Vec::new();
        for _ in 1..READERS {
            others.push(self.connect_reader(&mut connections, &broken, &name).await?);
        }
        Ok(Group {
            writer,
            write,
            large,
            write_large,
            name,
            readers: (first, others),
            next_reader: AtomicUsize::new(0),
            confirmed: Arc::new(AtomicI64::new(writes)),
            losses: 0,
            broken,
            _connections: connections,
        })
    }

    /// Writes down that this relay writes from now on, as `name`. Waits for a write of an earlier
    /// connection that is still being made. Returns how many writes there were.
    async fn take_over(
        &self,
        client: &Client,
        name: &[u8],
        earlier: Option<i64>,
    ) -> Result<i64, ConnectError> {
        if let Some(confirmed) = earlier {
            self.is_ours(client, confirmed).await?;
        }
        let take = "update tonk_relay.writer set name = $1 returning writes";
        Ok(client.query_one(take, &[&name]).await?.try_get(0)?)
    }

    /// Checks that no other relay has written since this one began. A database with fewer writes
    /// than were confirmed to this relay has gone back to an earlier state, whichever relay wrote
    /// last.
    async fn is_ours(&self, client: &Client, confirmed: i64) -> Result<(), ConnectError> {
        let statement = "select substr(name, 1, $1), writes from tonk_relay.writer";
        let length = i32::try_from(self.instance.len()).unwrap_or(i32::MAX);
        let row = client.query_one(statement, &[&length]).await?;
        let is_ours = row.try_get::<_, &[u8]>(0)? == self.instance;
        let is_older = row.try_get::<_, i64>(1)? < confirmed;
        if is_ours || is_older { Ok(()) } else { Err(ConnectError::TakenOver) }
    }

    async fn connect_reader(
        &self,
        connections: &mut JoinSet<()>,
        broken: &CancellationToken,
        name: &[u8],
    ) -> Result<Reader, ConnectError> {
        let client = self.connect_one(connections, broken).await?;
        is_same_server(&client, name).await?;
        let (size, load) = (client.prepare(SIZE).await?, client.prepare(LOAD).await?);
        Ok(Reader { client, turn: tokio::sync::Mutex::default(), size, load })
    }

    /// Makes one connection, which ends with `connections`.
    pub(super) async fn connect_one(
        &self,
        connections: &mut JoinSet<()>,
        broken: &CancellationToken,
    ) -> Result<Client, ConnectError> {
        let guard = broken.clone().drop_guard();
        // Those who wait for an answer get the error of a connection.
        match self.tls.clone() {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                connections.spawn(connection.map(|_| drop(guard)));
                Ok(client)
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls).await?;
                connections.spawn(connection.map(|_| drop(guard)));
                Ok(client)
            }
        }
    }
}

/// The password in a file, if one is named.
///
/// # Errors
/// It cannot be read.
#[expect(clippy::disallowed_methods, reason = "nothing is served yet")]
pub fn password(file: &Path) -> Result<Option<String>, ConnectError> {
    if file.as_os_str().is_empty() {
        return Ok(None);
    }
    let read = regular_file::read_text(file, MAX_PASSWORD_FILE);
    let path = file.to_owned();
    let text = read.map_err(|source| ConnectError::Password { path, source })?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// Checks that what the server confirms is durable, and that statements reach it as they are sent.
pub(super) async fn check(client: &Client) -> Result<(), ConnectError> {
    let settings = "select current_setting('server_version_num')::int, \
                    current_setting('server_version'), current_setting('fsync'), \
                    current_setting('synchronous_commit'), current_setting('lock_timeout'), \
                    current_setting('server_encoding'), \
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
    let encoding: String = row.try_get(5)?;
    if encoding != "UTF8" {
        return Err(ConnectError::Encoding(encoding));
    }
    if row.try_get(6)? {
        return Err(ConnectError::ReadOnly);
    }
    Ok(())
}

/// Checks that the server has room for the connections of a relay.
pub(super) async fn has_connections(client: &Client) -> Result<(), ConnectError> {
    let limits = "select rolconnlimit, 'the role ' || rolname from pg_roles \
                  where rolname = current_user union all \
                  select datconnlimit, 'the database ' || datname from pg_database \
                  where datname = current_database() union all \
                  select current_setting('max_connections')::int \
                      - current_setting('superuser_reserved_connections')::int, \
                      'max_connections, less those for superusers'";
    let needed = i32::try_from(CONNECTIONS).unwrap_or(i32::MAX);
    for row in client.query(limits, &[]).await? {
        let allowed: i32 = row.try_get(0)?;
        // A negative one is none.
        if (0..needed).contains(&allowed) {
            return Err(ConnectError::FewConnections { allowed, by: row.try_get(1)?, needed });
        }
    }
    Ok(())
}

/// Takes the lock of the relay that uses the database. It is released with the connection.
async fn lock(client: &Client) -> Result<(), ConnectError> {
    let locked = client.query_one("select pg_try_advisory_lock($1)", &[&LOCK]).await?;
    if locked.try_get(0)? {
        return Ok(());
    }
    let holder = lock_holder(client).await?;
    Err(ConnectError::InUse { from: holder.unwrap_or_else(|| "unknown".to_owned()) })
}

/// The connection that holds the lock of the relay that uses the database, if one does.
pub(super) async fn lock_holder(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    // Its address is empty at a Unix socket.
    // All of it is hidden for a connection of another role.
    let holder = "select coalesce(coalesce(host(client_addr), 'this machine') || ', since ' || \
                  to_char(backend_start at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') || \
                  ', server process ' || pid, 'another role') from pg_locks join pg_stat_activity using (pid) \
                  where locktype = 'advisory' and granted and objsubid = 1 \
                  and (classid::bigint << 32 | objid::bigint) = $1 \
                  and pg_locks.database = (select oid from pg_database \
                      where datname = current_database())";
    let row = client.query_opt(holder, &[&LOCK]).await?;
    row.map(|row| row.try_get(0)).transpose().map(Option::flatten)
}

/// Checks that a connection is to the server on which this relay writes as `name`, and not to a
/// standby of it, or to another server of the same host name.
async fn is_same_server(client: &Client, name: &[u8]) -> Result<(), ConnectError> {
    let statement = "select not pg_is_in_recovery() and name = $1 from tonk_relay.writer";
    let row = client.query_one(statement, &[&name]).await?;
    if row.try_get(0)? { Ok(()) } else { Err(ConnectError::OtherServer) }
}
