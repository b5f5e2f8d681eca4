//! The served bundle and the uploaded ones, as request handlers use them.

use std::sync::Arc;

use super::{
    disk_budget::DiskBudget, import::Importer, served::Served, slim_cache::SlimCache,
    store::BundleStore,
};
use crate::limits::turns::Turns;

/// Bundles that are unpacked at the same time.
const MAX_UNPACKING: usize = 2;

/// The served bundle and the uploaded ones.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types say it")]
pub struct Bundles {
    pub served: Served,
    pub store: Arc<dyn BundleStore>,
    pub slim_cache: Arc<SlimCache>,
    pub importer: Arc<Importer>,
    pub receiving: Arc<DiskBudget>,
    /// Permits for unpacking, which takes processor time and memory; in turns by principal.
    pub unpacking: Arc<Turns>,
}

impl Bundles {
    /// Starts with an empty cache of slim forms.
    pub fn new(
        served: Served,
        store: Arc<dyn BundleStore>,
        importer: Arc<Importer>,
        receiving: Arc<DiskBudget>,
    ) -> Self {
        let unpacking = Arc::new(Turns::new(MAX_UNPACKING));
        Self { served, store, slim_cache: Arc::default(), importer, receiving, unpacking }
    }
}
