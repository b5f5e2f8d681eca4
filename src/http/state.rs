//! What handlers need of the rest of the relay.

use std::{sync::Arc, time::Instant};

use tokio::sync::watch;

use super::assets::Asset;
use crate::{
    auth::Auth,
    bundle::services::Bundles,
    config::Config,
    limits::{Addresses, Counter},
    observe::{health::Health, metrics::Metrics},
    storage::documents::Documents,
    sync::build::Sync,
};

/// What handlers need of the rest of the relay.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types say it")]
pub struct App {
    pub config: watch::Receiver<Arc<Config>>,
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub documents: Arc<Documents>,
    pub bundles: Bundles,
    pub assets: Arc<Assets>,
    pub auth: Arc<Auth>,
    pub addresses: Arc<Addresses>,
    /// The sessions that `limits.connections` bounds.
    pub connections: Arc<Counter>,
    pub sync: Sync,
    pub started: Instant,
}

/// The files of `[bundle]` that are served as they are.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "named as their keys are")]
pub struct Assets {
    pub wasm: Asset,
    pub blank: Asset,
}
