//! Staying connected.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tracing::{error, info, warn};

use super::{
    connection::{Group, Server},
    error::{ConnectError, QueryError},
};
use crate::{
    base::{backoff::Backoff, lock::lock},
    config::{Cluster, Database},
    observe::{
        health::{FailingWrite, Health},
        metrics::StorageMetrics,
    },
    storage::StorageError,
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
    /// How often the database has lost some that were confirmed.
    losses: AtomicU64,
    health: Arc<Health>,
    metrics: StorageMetrics,
}

impl Link {
    pub(super) async fn open(
        database: Database,
        cluster: &Cluster,
        health: Arc<Health>,
        metrics: StorageMetrics,
    ) -> Result<Self, ConnectError> {
        let name = database.to_string();
        let server = Server::of(&database, cluster)?;
        let started = tokio::time::Instant::now();
        let mut is_told = false;
        let group = loop {
            match server.connect(None).await {
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
        Ok(Self {
            server,
            name,
            group: watch::Sender::new(Some(Arc::new(group))),
            large: tokio::sync::Mutex::default(),
            away: Mutex::default(),
            confirmed,
            losses: AtomicU64::new(0),
            health,
            metrics,
        })
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
        self.group.send_replace(None);
    }

    /// Uses new connections from now on. Returns whether the database has lost something that it
    /// had confirmed.
    pub(super) fn publish(&self, group: Group) -> bool {
        self.metrics.reconnects.inc();
        *lock(&self.away) = None;
        let has_lost = group.losses > self.losses.swap(group.losses, Ordering::SeqCst);
        let earlier = std::mem::replace(&mut *lock(&self.confirmed), group.confirmed.clone());
        if has_lost {
            self.metrics.losses.inc();
            error!(
                database = self.name,
                commits = earlier
                    .load(Ordering::SeqCst)
                    .saturating_sub(group.confirmed.load(Ordering::SeqCst)),
                "the database has lost commits that it had confirmed, as after the promotion of a \
                 standby or a restore; storing again what is in memory"
            );
        }
        self.group.send_replace(Some(Arc::new(group)));
        info!(database = self.name, "connected to the database again");
        has_lost
    }

    /// Connects again, which may take as long as the database is away.
    ///
    /// # Errors
    /// Another relay has written since, so this one does not know what is stored.
    pub(super) async fn reconnect(&self) -> Result<Group, ConnectError> {
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut last = String::new();
        loop {
            let confirmed = lock(&self.confirmed).clone();
            match self.server.connect(Some(confirmed.load(Ordering::SeqCst))).await {
                Ok(mut group) => {
                    let losses = self.losses.load(Ordering::Relaxed);
                    // Read now: an answer of the broken connection may have been handled late.
                    let is_older =
                        group.confirmed.load(Ordering::SeqCst) < confirmed.load(Ordering::SeqCst);
                    group.losses = losses + u64::from(is_older);
                    return Ok(group);
                }
                Err(error @ ConnectError::TakenOver) => return Err(error),
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

    /// Reports that writes fail until the result is dropped.
    pub(super) fn failing(&self, error: &QueryError) -> FailingWrite {
        self.health.failing_write(&format!(
            "cannot write to the database {}: {}",
            self.name, error.problem
        ))
    }
}
