//! The state of the handlers.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;

use crate::{
    base::run_to_completion::RunToCompletion,
    bundle::{served::Served, store::BundleStore},
    config::Config,
    storage::{documents::Documents, open::OpenedStorage, store::Store},
    sync::rooms::Rooms,
};

/// The parts of a relay that requests about stored data need.
#[derive(Clone)]
pub struct StorageState {
    /// What the documents are kept in.
    pub storage: OpenedStorage,
    /// The documents.
    pub documents: Arc<Documents>,
    /// Uploaded bundles.
    pub uploads: Arc<dyn BundleStore>,
    /// The served bundle.
    pub served: Served,
    /// The rooms of live documents; none if the relay does not run.
    pub rooms: Option<Arc<Rooms>>,
    /// The config.
    pub config: watch::Receiver<Arc<Config>>,
    /// Work that requests have begun and that finishes even if their clients disconnect.
    pub unfinished: RunToCompletion,
}

impl StorageState {
    /// What the documents are kept in.
    pub fn store(&self) -> &dyn Store {
        &*self.storage.store
    }

    /// The folder at `storage.path`.
    pub fn folder(&self) -> PathBuf {
        self.config.borrow().storage.path.clone()
    }
}
