//! The store in a PostgreSQL database.
//!
//! | to find | look in |
//! |---|---|
//! | the tables, and their versions | `schema` |
//! | making the database, its roles and rights | [`setup`] |
//! | what an operator should know of the server | [`report`] |
//! | connecting; what is checked of the server; TLS | `connection`, `checks`, `tls` |
//! | staying connected | `link` |
//! | the relays that share the database, and whether it has lost something | `nodes` |
//! | finding what other relays have written | `follow`, `position` |
//! | telling them that there is something | `hints` |
//! | ... and what is not stored: presence, requests for documents | `messages` |
//! | the task that commits: where changes become durable | `writer` |
//! | loading, storing and deleting chunks | `chunk_store` |
//! | tombstones, blocks, the quarantine and notes of imports | `store` |
//! | the tokens that all relays share | `tokens` |
//! | the statements | `statements` |
//! | errors of the database | `error` |
//!
//! # Several relays
//! Relays share a database. A change crosses from one to another once it is durable: a relay that
//! has a document in memory reads what others have stored of it. It looks for that when it is given
//! a hint, and once a second, so a lost hint costs time and nothing else.
//!
//! Each relay has a row in the table `node`, with the name of its connections, a new one each time
//! it connects, and every write checks that name. So what an earlier connection had sent, and was
//! thought lost, is not made later.
//!
//! No relay removes what another has written, unless a snapshot that it has just stored has all of
//! it.
//!
//! # When the database is away
//! Writes wait, and the relay is not ready. Nothing is reported as saved. Once the database is back
//! the same writes are made again, which is harmless for those that had been made.
//!
//! # When the database has lost something
//! The number of writes that it knows of a relay, when another one connects again, or when the relay
//! makes its next write, is then lower than it must be (`nodes`). From then on no write is made that
//! builds on what was read before: every room reads what there is, and stores the rest again. The
//! relay goes on under a new id, so that all others find the old one with too few writes.

mod checks;
mod chunk_store;
mod connection;
mod error;
mod follow;
mod hints;
mod link;
mod messages;
mod nodes;
mod position;
pub mod report;
mod schema;
pub mod setup;
mod statements;
mod store;
mod tls;
mod tokens;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock, atomic::AtomicBool},
};

use futures::FutureExt;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_postgres::{Notification, types::ToSql};
use tracing::info;

use self::{
    connection::Server,
    link::Link,
    position::Follower,
    report::Report,
    statements::LEFT,
    writer::{BATCH, Request, Writer},
};
pub use self::{connection::password, error::ConnectError};
use crate::{
    base::{document_id::DocumentId, run_to_completion::RunToCompletion},
    config::{self, Cluster, Database},
    observe::{health::Health, metrics::StorageMetrics},
    storage::{
        live::Live,
        relay_message::{OtherRelays, RelayMessage},
        relay_report::RelayReport,
    },
};

/// Checks whether a relay could use a database, without disturbing one that does. Blocks.
///
/// # Errors
/// Why it could not.
pub fn check(database: &Database, cluster: &Cluster) -> Result<(), ConnectError> {
    blocking(Server::of(database, cluster)?.check())?
}

/// Looks at a database, which a relay may be using. Blocks.
///
/// # Errors
/// It cannot be reached or read.
pub fn report(database: &Database, cluster: &Cluster) -> Result<Report, ConnectError> {
    blocking(Server::of(database, cluster)?.report(database.to_string()))?
}

/// Waits for what is asked of a server, where no tokio runtime is.
fn blocking<T>(asked: impl Future<Output = T>) -> Result<T, ConnectError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(asked))
}

/// The tokens, as they were read at one time.
#[derive(Clone, Debug)]
pub struct SharedTokens {
    /// Each as JSON, in no particular order.
    pub entries: Arc<Vec<String>>,
    /// When it was last known that this is all.
    pub as_of: Instant,
}

impl Default for SharedTokens {
    fn default() -> Self {
        Self { entries: Arc::default(), as_of: Instant::now() }
    }
}

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    link: Arc<Link>,
    requests: mpsc::Sender<Request>,
    marked: Arc<Marked>,
    follower: tokio::sync::Mutex<Follower>,
    tokens: watch::Sender<SharedTokens>,
    /// What the server notifies of.
    notifications: tokio::sync::Mutex<mpsc::Receiver<Notification>>,
    /// What the other relays are to be told.
    messages: tokio::sync::Mutex<mpsc::Receiver<RelayMessage>>,
    metrics: StorageMetrics,
    runtime: Handle,
    /// The task that commits. It ends after the last request.
    _writer: RunToCompletion,
}

/// The documents that were deleted, and those that are blocked.
#[derive(Default)]
struct Marked {
    deleted: RwLock<HashSet<DocumentId>>,
    blocked: RwLock<HashSet<DocumentId>>,
    /// Those that are blocked only until the relay stops.
    unrecorded: RwLock<HashSet<DocumentId>>,
    /// A change of them failed, and may have been made.
    is_unsure: AtomicBool,
}

/// Changes a set of documents.
fn change<T>(
    set: &RwLock<HashSet<DocumentId>>,
    change: impl FnOnce(&mut HashSet<DocumentId>) -> T,
) -> T {
    change(&mut set.write().unwrap_or_else(PoisonError::into_inner))
}

fn contains(set: &RwLock<HashSet<DocumentId>>, document: DocumentId) -> bool {
    set.read().unwrap_or_else(PoisonError::into_inner).contains(&document)
}

impl PostgresStore {
    /// Connects to a database, and creates the tables in an empty one. [`Self::run`] must run from
    /// then on. Spawns a task, so it must be called on a tokio runtime.
    ///
    /// # Errors
    /// The server cannot be reached or used.
    pub async fn open(
        database: Database,
        config: &config::Config,
        health: Arc<Health>,
        metrics: StorageMetrics,
    ) -> Result<Self, ConnectError> {
        let (others, messages) = OtherRelays::new(&config.sync.peer_id(), metrics.clone());
        let opened = Link::open(database, &config.cluster, others, health, metrics.clone()).await?;
        let (link, notifications) = (Arc::new(opened.0), opened.1);
        let marked = Arc::new(Marked::default());
        let (requests, receiver) = mpsc::channel(BATCH);
        let writer = Writer {
            link: link.clone(),
            interval: config.storage.commit_interval.0,
            metrics: metrics.clone(),
        };
        let committing = RunToCompletion::default();
        committing.spawn(writer.run(receiver));
        let runtime = Handle::current();
        let store = Self {
            link,
            requests,
            marked,
            follower: tokio::sync::Mutex::default(),
            tokens: watch::Sender::default(),
            notifications: tokio::sync::Mutex::new(notifications),
            messages: tokio::sync::Mutex::new(messages),
            metrics,
            runtime,
            _writer: committing,
        };
        let group = store.link.connected().await;
        // From here on everything is followed that was not read.
        let taken = store.take_position(&mut *store.follower.lock().await, &group).await;
        taken.map_err(|error| ConnectError::Unreadable(error.problem))?;
        info!(database = %store.link.database(), "documents are in PostgreSQL");
        Ok(store)
    }

    /// Connects again whenever the connection is lost, and follows what other relays write. `live`
    /// hears of it, and `describe` says what others are told of this relay, if anything. Returns only
    /// if one panics.
    pub async fn run(
        self: Arc<Self>,
        live: impl Live + Clone + 'static,
        describe: impl Fn() -> Option<RelayReport> + Send + Sync + 'static,
    ) {
        let mut tasks = JoinSet::new();
        let (store, rooms) = (self.clone(), live.clone());
        tasks.spawn(async move { store.stay_connected(&rooms).await });
        let (store, rooms) = (self.clone(), live.clone());
        tasks.spawn(async move { store.follow(&rooms, &describe).await });
        let store = self.clone();
        tasks.spawn(async move { store.listen(&live).await });
        let store = self.clone();
        tasks.spawn(async move { hints::send(&store.link).await });
        tasks.spawn(async move {
            let mut messages = self.messages.lock().await;
            messages::send(&self.link, &self.link.others, &mut messages).await;
        });
        // The others end with one that panics. The supervisor starts them again.
        tasks.join_next().await;
    }

    /// Tells those who look at the relays that this one has ended, if it is connected.
    pub async fn leave(&self) {
        let Some(group) = self.link.connected().now_or_never() else { return };
        let node = group.node.as_slice();
        let parameters: [&(dyn ToSql + Sync); 1] = [&node];
        let left = group.writer.execute(LEFT, &parameters);
        // Otherwise they find it out within a minute.
        let _ = self.link.run_within(&group, 0, left).await;
    }

    /// The way to the other relays.
    pub fn other_relays(&self) -> OtherRelays {
        self.link.others.clone()
    }

    async fn stay_connected(&self, live: &impl Live) {
        loop {
            self.link.disconnected().await;
            let group = self.link.reconnect().await;
            if self.link.publish(group) {
                live.lost();
            }
        }
    }
}
