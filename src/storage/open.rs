//! Opens what the config names for the documents: a folder, or a database.

use std::sync::Arc;

use tracing::warn;

use super::{
    StorageError,
    local::{
        journal::Journal,
        nodefs::NodefsStore,
        walk::{self, Found},
    },
    postgres::{ConnectError, PostgresStore},
    store::Store,
};
use crate::{
    config::Config,
    observe::{health::Health, metrics::StorageMetrics},
};

/// What the documents are kept in.
#[derive(Clone)]
pub struct OpenedStorage {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The same, for what only a folder can do, if it is in a folder.
    pub journal: Option<Arc<Journal>>,
    /// The same, if it is in a database.
    pub database: Option<Arc<PostgresStore>>,
    /// The locked folder for local files, if documents are in a database.
    _folder: Option<NodefsStore>,
}

/// Why storage cannot be opened.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum OpenError {
    #[error("storage.path: {0}")]
    Folder(StorageError),
    #[error("cluster.database: cannot use {name}: {source}")]
    Database { name: String, source: ConnectError },
    #[error("cluster.database: {0}")]
    Url(String),
}

/// Opens the storage that `config` names. Creates what does not exist, and repairs a broken journal
/// if it `repairs`.
///
/// # Errors
/// The folder or the database cannot be used.
pub async fn open(
    config: &Config,
    repairs: bool,
    health: Arc<Health>,
    metrics: StorageMetrics,
) -> Result<OpenedStorage, OpenError> {
    let Some(database) = config.cluster.database.read().map_err(OpenError::Url)? else {
        let opened = match repairs {
            true => Journal::open(&config.storage, metrics),
            false => Journal::open_without_repair(&config.storage, metrics),
        };
        let journal = Arc::new(opened.map_err(OpenError::Folder)?);
        let store = journal.clone();
        return Ok(OpenedStorage { store, journal: Some(journal), database: None, _folder: None });
    };
    let path = &config.storage.path;
    let folder = NodefsStore::open(path, config.storage.durability).map_err(OpenError::Folder)?;
    let name = database.to_string();
    let opened = PostgresStore::open(database, config, health, metrics).await;
    let store = Arc::new(opened.map_err(|source| OpenError::Database { name, source })?);
    warn_of_documents(path);
    let database = Some(store.clone());
    Ok(OpenedStorage { store, journal: None, database, _folder: Some(folder) })
}

/// Warns of documents in the folder, which are not served.
fn warn_of_documents(path: &std::path::Path) {
    let mut has_documents = false;
    let walked = walk::walk(path, |found| {
        has_documents = matches!(found, Found::Document(_));
        !has_documents
    });
    if walked.is_ok() && has_documents {
        warn!(
            "storage.path, {}, has documents, which are not served: documents are in the database. \
             postgresql.md in /usr/share/doc/tonk-relay shows how to bring them along",
            path.display()
        );
    }
}
