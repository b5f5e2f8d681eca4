//! Connecting to the database.

use std::{
    future::poll_fn,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
// Written for tokio, sends statements without waiting for earlier answers, and is complete without
// a C library.
use tokio_postgres::{
    AsyncMessage, Client, Config, Connection, NoTls, Notification, Row, Statement, config::SslMode,
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

use super::{
    checks::{READERS, check, has_connections, is_same_server, share_lock},
    error::{ConnectError, QueryError},
    nodes::{NodeId, Nodes},
    schema,
    statements::{FETCH, LEFT, LOAD, LOOK, NODES, SIZE, WRITE, WRITE_LARGE},
    tls,
};
use crate::{
    base::{document_id::DocumentId, lock::lock, regular_file},
    config::{Cluster, Database, DatabaseHost, DatabaseTls},
};

/// The channel of hints.
pub(super) const HINTS: &str = "tonk_relay_hints";
/// The channel of other messages between relays.
pub(super) const MESSAGES: &str = "tonk_relay_messages";
/// Notifications that may wait until they are read.
const MAX_NOTIFICATIONS: usize = 1024;
/// How long it may take to make or change the tables, at the first start of a version.
const TABLES_WITHIN: Duration = Duration::from_secs(600);
/// The largest file with a password that is read, in bytes.
const MAX_PASSWORD_FILE: u64 = 4 << 10;
/// Settings of every connection, of which `checks` looks at one. A server that has lost the relay
/// must not keep its locks. To plan a statement costs more than to execute it, so prepared ones are
/// planned once, and use indexes whatever the server estimates then.
pub(super) const OPTIONS: &str = "-c lock_timeout=2s -c idle_in_transaction_session_timeout=10s \
                       -c plan_cache_mode=force_generic_plan -c enable_seqscan=off \
                       -c statement_timeout=0 -c idle_session_timeout=0 \
                       -c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 \
                       -c tcp_keepalives_count=3 -c jit=off -c search_path=";

/// How to connect.
pub(super) struct Server {
    /// The longest time to wait for an answer.
    pub(super) timeout: Duration,
    config: Config,
    tls: Option<MakeRustlsConnect>,
    /// The name by which others know this relay, or a command that works in its place.
    relay: String,
    /// The id of this relay, until it ends or the database loses something, and the one before.
    node: Mutex<(NodeId, Option<NodeId>)>,
    /// How often it has begun to connect.
    groups: AtomicU64,
    /// Where notifications go. What does not fit is dropped: they are only hints.
    notifications: mpsc::Sender<Notification>,
}

/// Connections that were made together, and end together: what is known from one is not true of
/// another server.
pub(super) struct Group {
    /// Writes small rows, and shares the lock.
    pub(super) writer: Client,
    pub(super) write: Statement,
    /// Writes large rows.
    pub(super) large: Client,
    pub(super) write_large: Statement,
    /// Looks for what others have written.
    pub(super) looker: Looker,
    /// Sends notifications, and receives them.
    pub(super) notifier: Client,
    pub(super) notify: Statement,
    /// The relay's id.
    pub(super) node: NodeId,
    /// The name with which this group writes: the relay's id, and the number of the group.
    pub(super) name: Vec<u8>,
    /// At least one.
    readers: (Reader, Vec<Reader>),
    next_reader: AtomicUsize,
    /// The number of the last write that is known to be made: at first that with which the server
    /// began, then of those that it has confirmed to this group.
    pub(super) confirmed: Arc<AtomicI64>,
    /// How often the database had lost something before.
    pub(super) losses: u64,
    /// Whether the server's transactions continue those that an earlier group has seen.
    pub(super) same_timeline: bool,
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

/// The connection that looks for what others have written.
pub(super) struct Looker {
    pub(super) client: Client,
    /// The statement [`LOOK`].
    pub(super) look: Statement,
    /// The statement [`FETCH`].
    pub(super) fetch: Statement,
    /// The statement [`NODES`].
    pub(super) nodes: Statement,
}

impl Looker {
    /// Reads what is known of the relays, of which this one has the id `own`.
    pub(super) async fn read_nodes(&self, own: &NodeId) -> Result<Nodes, tokio_postgres::Error> {
        Nodes::read(&self.client, &self.nodes, own).await
    }
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

    /// The same for a relay of this name, and what the server notifies of.
    pub(super) fn notifying(
        database: &Database,
        cluster: &Cluster,
        relay: &str,
    ) -> Result<(Self, mpsc::Receiver<Notification>), ConnectError> {
        let (notifications, receiver) = mpsc::channel(MAX_NOTIFICATIONS);
        let relay = relay.to_owned();
        Ok((Self { notifications, relay, ..Self::of(database, cluster)? }, receiver))
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
        let node = Mutex::new((new_node(), None));
        let (groups, (notifications, _)) = (AtomicU64::new(0), mpsc::channel(1));
        let relay = String::new();
        Ok(Self { timeout, config, tls, relay, node, groups, notifications })
    }

    /// Connects, checks the server, and has the relay write over these connections from now on.
    pub(super) async fn connect(&self) -> Result<Group, ConnectError> {
        let (mut connections, broken) = (JoinSet::new(), CancellationToken::new());
        // There are several answers to wait for.
        let limit = 3 * self.timeout;
        let beginning = async {
            let writer = self.connect_one(&mut connections, &broken).await?;
            check(&writer).await?;
            share_lock(&writer).await?;
            let is_missing = schema::is_missing(&writer).await?;
            Ok((writer, is_missing))
        };
        let (writer, is_missing) = within(limit, beginning).await?;
        if is_missing {
            within(TABLES_WITHIN, schema::make(&writer)).await?;
        }
        within(limit, self.connect_group(writer, connections, broken)).await
    }

    /// Gives the relay a new id. The other relays find the old one with fewer writes than it had,
    /// and so notice what the database has lost.
    pub(super) fn renew_node(&self) {
        let mut node = lock(&self.node);
        *node = (new_node(), Some(node.0));
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

    /// Makes the other connections of a group, and has the relay write over them.
    async fn connect_group(
        &self,
        writer: Client,
        mut connections: JoinSet<()>,
        broken: CancellationToken,
    ) -> Result<Group, ConnectError> {
        adopt_rows(&writer).await?;
        let number = self.groups.fetch_add(1, Ordering::Relaxed);
        let (node, former) = *lock(&self.node);
        let name = [node.as_slice(), &number.to_be_bytes()].concat();
        let writes = take_over(&writer, &node, &name, &self.relay).await?;
        if let Some(former) = former {
            writer.execute(LEFT, &[&former.as_slice()]).await?;
        }
        let write = writer.prepare(WRITE).await?;
        let large = self.connect_one(&mut connections, &broken).await?;
        is_same_server(&large, &name).await?;
        let write_large = large.prepare(WRITE_LARGE).await?;
        let first = self.connect_reader(&mut connections, &broken, &name).await?;
        let mut others = Vec::new();
        for _ in 1..READERS {
            others.push(self.connect_reader(&mut connections, &broken, &name).await?);
        }
        let client = self.connect_one(&mut connections, &broken).await?;
        is_same_server(&client, &name).await?;
        let (look, fetch) = (client.prepare(LOOK).await?, client.prepare(FETCH).await?);
        let nodes = client.prepare(NODES).await?;
        let notifier = self.connect_one(&mut connections, &broken).await?;
        is_same_server(&notifier, &name).await?;
        // Nothing of it has to survive a crash.
        let listen = format!("listen {HINTS}; listen {MESSAGES}; set synchronous_commit = off");
        notifier.batch_execute(&listen).await?;
        let notify = notifier.prepare("select pg_notify($1, $2)").await?;
        Ok(Group {
            writer,
            write,
            large,
            write_large,
            looker: Looker { client, look, fetch, nodes },
            notifier,
            notify,
            node,
            name,
            readers: (first, others),
            next_reader: AtomicUsize::new(0),
            confirmed: Arc::new(AtomicI64::new(writes)),
            losses: 0,
            same_timeline: false,
            broken,
            _connections: connections,
        })
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
        let notifications = self.notifications.clone();
        match self.tls.clone() {
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                connections.spawn(carry(connection, notifications).map(|()| drop(guard)));
                Ok(client)
            }
            Some(tls) => {
                let (client, connection) = self.config.connect(tls).await?;
                connections.spawn(carry(connection, notifications).map(|()| drop(guard)));
                Ok(client)
            }
        }
    }
}

async fn within<T>(
    limit: Duration,
    connecting: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    timeout(limit, connecting).await.unwrap_or(Err(ConnectError::Timeout(limit)))
}

/// Carries statements and answers until the connection ends. Those who wait for an answer get the
/// error.
async fn carry(
    mut connection: Connection<
        impl AsyncRead + AsyncWrite + Unpin,
        impl AsyncRead + AsyncWrite + Unpin,
    >,
    notifications: mpsc::Sender<Notification>,
) {
    while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
        if let AsyncMessage::Notification(notification) = message {
            // A hint that is lost is noticed.
            let _ = notifications.try_send(notification);
        }
    }
}

fn new_node() -> NodeId {
    *DocumentId::random().as_bytes()
}

/// Writes down that a relay writes as `name` from now on. Waits for a write of an earlier
/// connection of it that is still being made. Returns how often it has written.
async fn take_over(
    client: &Client,
    node: &[u8],
    name: &[u8],
    relay: &str,
) -> Result<i64, ConnectError> {
    let take = "insert into tonk_relay.node (id, connection, host, version, name) \
                values ($1, $2, $3, $4, $5) on conflict (id) do update \
                set connection = excluded.connection, seen = now() returning writes";
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let version = env!("CARGO_PKG_VERSION");
    Ok(client.query_one(take, &[&node, &name, &host, &version, &relay]).await?.try_get(0)?)
}

/// Has rows that come from another server count as written now: their transactions have numbers
/// that this one will use again. Makes the row of `incarnation` if there is none.
async fn adopt_rows(client: &Client) -> Result<(), ConnectError> {
    client
        .batch_execute(
            "insert into tonk_relay.incarnation (id) values (gen_random_uuid()) on conflict do nothing;
            update tonk_relay.chunk set xid = pg_current_xact_id() \
                where xid >= pg_snapshot_xmax(pg_current_snapshot());
            update tonk_relay.document set xid = pg_current_xact_id() \
                where xid >= pg_snapshot_xmax(pg_current_snapshot());
            update tonk_relay.token set xid = pg_current_xact_id() \
                where xid >= pg_snapshot_xmax(pg_current_snapshot());",
        )
        .await?;
    Ok(())
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
