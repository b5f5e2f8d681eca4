//! The state of the handlers.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    base::run_to_completion::RunToCompletion,
    bundle::{served::Served, store::BundleStore},
    config::Config,
    storage::{documents::Documents, local::journal::Journal, store::Store},
    sync::rooms::Rooms,
};

/// The parts of a relay that requests about stored data need.
#[derive(Clone)]
pub struct StorageState {
    /// What the documents are kept in.
    pub store: Arc<dyn Store>,
    /// The same, for what only a local folder can do.
    pub journal: Arc<Journal>,
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
