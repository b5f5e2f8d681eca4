//! Staying connected.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::timeout,
};
use tokio_postgres::{Notification, types::ToSql};
use tracing::{error, info, warn};

use super::{
    connection::{Group, Server},
    error::{ConnectError, QueryError},
    nodes::Nodes,
};
use crate::{
    base::{backoff::Backoff, lock::lock},
    config::{Cluster, Database},
    observe::{
        health::{FailingWrite, Health},
        metrics::StorageMetrics,
    },
    storage::{StorageError, local_time, relay_message::OtherRelays},
};

/// The first and the longest pause before another attempt to connect, or to write.
pub(super) const RETRY: (Duration, Duration) =
    (Duration::from_millis(50), Duration::from_millis(500));
/// How long a start waits for a database that is away, or for a relay that has just ended and whose
/// connection the server has not given up yet. systemd gives up a unit that fails more often.
const START_WAIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 15 });
/// A server that sends or accepts less than this many bytes a second is given up.
const MIN_RATE: u64 = 1 << 20;

/// The connections to the database, which are replaced when one fails.
pub(super) struct Link {
    server: Server,
    /// The database, as errors name it.
    name: String,
    group: watch::Sender<Option<Arc<Group>>>,
    /// Held by a large write, and by a deletion: what the one stores of a document the other does
    /// not miss.
    pub(super) large: tokio::sync::Mutex<()>,
    /// The fault that `/readyz` shows while the relay is not connected.
    away: Mutex<Option<FailingWrite>>,
    /// That of the last group.
    confirmed: Mutex<Arc<AtomicI64>>,
    /// The relays, as they were when what others had written was last looked for.
    pub(super) seen: Mutex<Nodes>,
    /// How often the database has lost something that was confirmed or read.
    losses: AtomicU64,
    /// Notified when something was written that others are to hear of.
    pub(super) written: Notify,
    /// The way to the other relays.
    pub(super) others: OtherRelays,
    /// When the oldest hint was sent that was not followed yet, in milliseconds since 1970; 0 if
    /// there is none.
    hinted_at: AtomicU64,
    /// Notified when there is a hint.
    pub(super) hinted: Notify,
    /// By how many milliseconds the server's clock is ahead of this machine's.
    ahead: AtomicI64,
    health: Arc<Health>,
    pub(super) metrics: StorageMetrics,
}

impl Link {
    /// Connects. Also returns what the server notifies of.
    pub(super) async fn open(
        database: Database,
        cluster: &Cluster,
        others: OtherRelays,
        health: Arc<Health>,
        metrics: StorageMetrics,
    ) -> Result<(Self, mpsc::Receiver<Notification>), ConnectError> {
        let name = database.to_string();
        let (server, notifications) = Server::notifying(&database, cluster, others.name())?;
        let started = tokio::time::Instant::now();
        let mut is_told = false;
        let group = loop {
            match server.connect().await {
                Err(error) if error.is_passing() && started.elapsed() < START_WAIT => {
                    if !std::mem::replace(&mut is_told, true) {
                        warn!("cannot use the database {name} yet; waiting for it: {error}");
                    }
                    tokio::time::sleep(RETRY.1).await;
                }
                connected => break connected?,
            }
        };
        let confirmed = Mutex::new(group.confirmed.clone());
        let link = Self {
            server,
            name,
            group: watch::Sender::new(Some(Arc::new(group))),
            large: tokio::sync::Mutex::default(),
            away: Mutex::default(),
            confirmed,
            seen: Mutex::new(Nodes::none()),
            losses: AtomicU64::new(0),
            written: Notify::new(),
            others,
            hinted_at: AtomicU64::new(0),
            hinted: Notify::new(),
            ahead: AtomicI64::new(0),
            health,
            metrics,
        };
        Ok((link, notifications))
    }

    /// The database, as errors name it.
    pub(super) fn database(&self) -> &str {
        &self.name
    }

    /// How often the database has lost something that it had confirmed.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Waits until a connection has failed.
    pub(super) async fn disconnected(&self) {
        let group = self.group.borrow().clone();
        if let Some(group) = group {
            group.broken.cancelled().await;
        }
        // At once: to connect again may take as long as the longest wait for an answer, and a
        // balancer has to tell one relay that is cut off from all of them.
        let lost = format!("cannot use the database {}: the connection was lost", self.name);
        *lock(&self.away) = Some(self.health.failing_write(&lost));
        self.metrics.database_away.set(1);
        self.others.set_count(0);
        self.group.send_replace(None);
    }

    /// Uses new connections from now on. Returns whether what was read before may be gone.
    pub(super) fn publish(&self, group: Group) -> bool {
        self.metrics.database_away.set(0);
        self.metrics.reconnects.inc();
        *lock(&self.away) = None;
        let has_lost = group.losses > self.losses.swap(group.losses, Ordering::SeqCst);
        if has_lost {
            self.metrics.losses.inc();
        }
        *lock(&self.confirmed) = group.confirmed.clone();
        self.group.send_replace(Some(Arc::new(group)));
        info!(database = self.name, "connected to the database again");
        has_lost
    }

    /// Connects again, which may take as long as the database is away.
    pub(super) async fn reconnect(&self) -> Group {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut last = String::new();
        let mut losses = self.losses.load(Ordering::Relaxed);
        loop {
            let connected = async {
                let group = self.server.connect().await?;
                let nodes = group.looker.read_nodes(&group.node);
                let nodes = self.run_within(&group, 0, nodes).await;
                let nodes = nodes.map_err(|error| ConnectError::Unreadable(error.problem))?;
                Ok::<_, ConnectError>((group, nodes))
            };
            match connected.await {
                Ok((mut group, nodes)) => {
                    if !self.finds_loss(&group, &nodes) {
                        group.losses = losses;
                        group.same_timeline = lock(&self.seen).is_same_server(&nodes);
                        return group;
                    }
                    losses = self.losses.load(Ordering::Relaxed) + 1;
                    self.server.renew_node();
                    continue;
                }
                Err(error) => {
                    let text = format!("cannot use the database {}: {error}", self.name);
                    if text != last {
                        warn!("{text}; live sync goes on, and changes wait to be saved");
                        // The new fault is reported before the old one ends.
                        let reported = self.health.failing_write(&text);
                        *lock(&self.away) = Some(reported);
                        last = text;
                    }
                }
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    /// Whether the database lacks something that it had confirmed to this relay, or that this one
    /// may have read. It is found once.
    fn finds_loss(&self, group: &Group, nodes: &Nodes) -> bool {
        // Read now: an answer of the broken connection may have been handled late.
        let confirmed = lock(&self.confirmed).load(Ordering::SeqCst);
        let commits = confirmed.saturating_sub(group.confirmed.load(Ordering::SeqCst));
        let mut seen = lock(&self.seen);
        if commits > 0 {
            error!(
                database = self.name,
                commits,
                "the database has lost commits that it had confirmed, as after the promotion of a \
                 standby or a restore; storing again what is in memory"
            );
        } else if seen.has_lost(nodes) {
            warn!(
                database = self.name,
                "the database was restarted or replaced, and may have lost what other relays had \
                 stored; reading again what it has of the live documents"
            );
        } else {
            return false;
        }
        *seen = Nodes::none();
        *lock(&self.confirmed) = Arc::default();
        true
    }

    /// Others are to hear of what was written.
    pub(super) fn has_written(&self) {
        self.written.notify_one();
    }

    /// A hint was sent at this time, in milliseconds since 1970.
    pub(super) fn hint(&self, at: u64) {
        let older = |known| Some(if known == 0 { at } else { at.min(known) });
        let _ = self.hinted_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, older);
        self.hinted.notify_one();
    }

    /// When the oldest hint was sent since the last call, if there was one.
    pub(super) fn take_hint(&self) -> Option<u64> {
        Some(self.hinted_at.swap(0, Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// The server's time in milliseconds since 1970, which is the same for all relays.
    pub(super) fn now(&self) -> u64 {
        local_time().saturating_add_signed(self.ahead.load(Ordering::Relaxed))
    }

    /// Takes over the server's time.
    pub(super) fn set_time(&self, now: i64) {
        self.ahead.store(now.saturating_sub_unsigned(local_time()), Ordering::Relaxed);
    }

    /// The connections, once there are some.
    pub(super) async fn connected(&self) -> Arc<Group> {
        let mut groups = self.group.subscribe();
        loop {
            if let Some(group) = &*groups.borrow_and_update()
                && !group.broken.is_cancelled()
            {
                return group.clone();
            }
            if groups.changed().await.is_err() {
                // The sender exists as long as `self`.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs a statement that transfers this many bytes. If it takes too long, all connections of the
    /// group are closed.
    pub(super) async fn run_within<T>(
        &self,
        group: &Group,
        bytes: u64,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        let limit = self.server.timeout + Duration::from_secs(bytes / MIN_RATE);
        tokio::select! {
            // An error says more than that the connection is lost.
            biased;
            result = timeout(limit, statement) => match result {
                Ok(result) => Ok(result?),
                Err(_) => {
                    group.broken.cancel();
                    Err(QueryError::passing(format!("it did not answer within {limit:?}")))
                }
            },
            () = group.broken.cancelled() => {
                Err(QueryError::passing("the connection was lost"))
            }
        }
    }

    /// Reads with a deadline, also for getting connected. `action` is what an error says was tried.
    pub(super) async fn read<T>(
        &self,
        action: &'static str,
        statement: impl AsyncFnOnce(&Link, &Group) -> Result<T, QueryError>,
    ) -> Result<T, StorageError> {
        let reading = async {
            let away = || QueryError::passing("it is away");
            let group = timeout(self.server.timeout, self.connected()).await.map_err(|_| away())?;
            statement(self, &group).await
        };
        reading.await.map_err(|error| error.into_storage(action, &self.name))
    }

    /// Notifies all relays, in a transaction of its own that waits for no disk: inside the
    /// transaction that writes, a notification would hold a lock of the whole server until the disk
    /// has the commit.
    pub(super) async fn notify(
        &self,
        group: &Group,
        channel: &str,
        text: &str,
    ) -> Result<(), QueryError> {
        let parameters: [&(dyn ToSql + Sync); 2] = [&channel, &text];
        let sending = group.notifier.query(&group.notify, &parameters);
        self.run_within(group, 0, sending).await.map(drop)
    }

    /// Reports that writes fail until the result is dropped.
    pub(super) fn failing(&self, error: &QueryError) -> FailingWrite {
        self.health.failing_write(&format!(
            "cannot write to the database {}: {}",
            self.name, error.problem
        ))
    }
}
