//! The state that handlers share.

use std::{ops::Deref, sync::Arc, time::Instant};

use tokio::sync::watch;

use super::assets::Asset;
use crate::{
    auth::Auth,
    base::run_to_completion::RunToCompletion,
    bundle::services::Bundles,
    config::Config,
    limits::{Addresses, Counter},
    observe::{health::Health, metrics::Metrics},
    storage::documents::Documents,
    sync::build::Sync,
};

/// The state that handlers share. axum clones it several times a request, so that a clone must cost
/// next to nothing.
#[derive(Clone)]
pub struct App(Arc<Services>);

impl Deref for App {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.0
    }
}

impl From<Services> for App {
    fn from(services: Services) -> Self {
        Self(Arc::new(services))
    }
}

/// The parts of the relay that answer requests.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types say it")]
pub struct Services {
    pub config: watch::Receiver<Arc<Config>>,
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub documents: Arc<Documents>,
    pub bundles: Bundles,
    pub assets: Arc<Assets>,
    pub auth: Arc<Auth>,
    pub addresses: Arc<Addresses>,
    /// Counts sessions up to `limits.connections`.
    pub connections: Arc<Counter>,
    pub sync: Sync,
    /// Work that requests have begun and that finishes even if their clients disconnect.
    pub unfinished: RunToCompletion,
    pub started: Instant,
}

/// The files of `[bundle]` that are served unchanged.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "named as their keys are")]
pub struct Assets {
    pub wasm: Asset,
    pub blank: Asset,
}
