//! The served bundle and the uploaded ones, as request handlers use them.

use std::sync::Arc;

use super::{
    disk_budget::DiskBudget, import::Importer, served::Served, slims::Slims, store::BundleStore,
};
use crate::limits::turns::Turns;

/// Bundles unpacked at a time.
const UNPACKING: usize = 2;

/// The served bundle and the uploaded ones.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types say it")]
pub struct Bundles {
    pub served: Served,
    pub store: Arc<dyn BundleStore>,
    pub slims: Arc<Slims>,
    pub importer: Arc<Importer>,
    pub receiving: Arc<DiskBudget>,
    /// Permits for unpacking, in turns by principal; it takes processor time and memory.
    pub unpacking: Arc<Turns>,
}

impl Bundles {
    /// Puts them together; no slim form is known yet.
    pub fn new(
        served: Served,
        store: Arc<dyn BundleStore>,
        importer: Arc<Importer>,
        receiving: Arc<DiskBudget>,
    ) -> Self {
        let unpacking = Arc::new(Turns::new(UNPACKING));
        Self { served, store, slims: Arc::default(), importer, receiving, unpacking }
    }
}
