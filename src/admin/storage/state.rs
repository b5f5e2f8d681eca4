//! What the handlers work on.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    base::run_to_completion::RunToCompletion,
    bundle::{served::Served, store::BundleStore},
    config::Config,
    storage::{documents::Documents, local::journal::Journal},
    sync::rooms::Rooms,
};

/// What is stored, for the operator's commands.
#[derive(Clone)]
pub struct Stored {
    /// Chunks.
    pub journal: Arc<Journal>,
    /// Documents.
    pub documents: Arc<Documents>,
    /// Uploaded bundles.
    pub uploads: Arc<dyn BundleStore>,
    /// The served bundle.
    pub served: Served,
    /// The live documents; none if the relay does not run.
    pub rooms: Option<Arc<Rooms>>,
    /// The config.
    pub config: watch::Receiver<Arc<Config>>,
    /// Work that requests have begun and that finishes even if their clients disconnect.
    pub unfinished: RunToCompletion,
}
