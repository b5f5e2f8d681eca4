//! The store in a PostgreSQL database.
//!
//! | to find | look in |
//! |---|---|
//! | the tables, and their versions | `schema` |
//! | making the database, its roles and rights | [`setup`] |
//! | what an operator should know of the server | [`report`] |
//! | connecting, and what is checked of the server; TLS | `connection`, `tls` |
//! | staying connected; whether this relay may write | `link` |
//! | the task that commits: where changes become durable | `writer` |
//! | loading, storing and deleting chunks | `chunk_store` |
//! | tombstones, blocks, the quarantine and notes of imports | `store` |
//! | the statements | `statements` |
//! | errors of the database | `error` |
//!
//! # One writer
//! A relay keeps in memory what is stored, so only one may use the database. It holds an advisory
//! lock, so that a second one does not start. It also writes its name into the table `writer`, a new
//! one each time it connects, and every write checks that name. So what an earlier connection had
//! sent, and was thought lost, is not made later, and a relay that another has replaced writes
//! nothing more.
//!
//! # When the database is away
//! Writes wait, and the relay is not ready. Nothing is reported as saved. Once the database is back
//! the same writes are made again, which is harmless for those that had been made.
//!
//! # When the database has lost something
//! The number of writes that it knows, when the relay connects again or makes the next write, is
//! then lower than it must be. From then on no write is made that builds on what was read before:
//! every room reads what there is, and stores the rest again.

mod chunk_store;
mod connection;
mod error;
mod link;
pub mod report;
mod schema;
pub mod setup;
mod statements;
mod store;
mod tls;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::HashSet,
    sync::{Arc, PoisonError, RwLock},
};

use tokio::{runtime::Handle, sync::mpsc, time::sleep};
use tracing::{error, info, warn};

use self::{
    connection::Server,
    link::{Link, RETRY},
    report::Report,
    writer::{BATCH, Request, Writer},
};
pub use self::{connection::password, error::ConnectError};
use crate::{
    base::{document_id::DocumentId, run_to_completion::RunToCompletion},
    config::{self, Cluster, Database},
    observe::{health::Health, metrics::StorageMetrics},
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

/// A store in a PostgreSQL database.
pub struct PostgresStore {
    link: Arc<Link>,
    requests: mpsc::Sender<Request>,
    marked: Arc<Marked>,
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
    /// Connects to a database, and creates the tables in an empty one. [`Self::stay_connected`]
    /// must run from then on. Spawns a task, so it must be called on a tokio runtime.
    ///
    /// # Errors
    /// The server cannot be reached or used, or another relay uses the database.
    pub async fn open(
        database: Database,
        config: &config::Config,
        health: Arc<Health>,
        metrics: StorageMetrics,
    ) -> Result<Self, ConnectError> {
        let link = Arc::new(Link::open(database, &config.cluster, health, metrics.clone()).await?);
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
        let store = Self { link, requests, marked, metrics, runtime, _writer: committing };
        let group = store.link.connected().await;
        store.load_marks(&group).await.map_err(|error| ConnectError::Marks(error.problem))?;
        info!(database = %store.link.database(), "documents are in PostgreSQL");
        Ok(store)
    }

    /// Connects again whenever the connection is lost. Calls `lost` if the database has then lost
    /// something that it had confirmed. Returns when this relay must stop, because another one has
    /// written.
    pub async fn stay_connected(&self, lost: impl Fn()) {
        loop {
            self.link.disconnected().await;
            let group = match self.link.reconnect().await {
                Ok(group) => group,
                Err(error) => {
                    error!(database = self.link.database(), "cannot go on: {error}");
                    return;
                }
            };
            // A mark may have been made although its statement was not answered.
            match self.load_marks(&group).await {
                Ok(()) => {
                    if self.link.publish(group) {
                        lost();
                    }
                }
                Err(error) => {
                    warn!("cannot read which documents are deleted or blocked: {}", error.problem);
                    sleep(RETRY.1).await;
                }
            }
        }
    }
}
