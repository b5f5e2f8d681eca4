//! The store of uploaded bundles.
//!
//! | to find | look in |
//! |---|---|
//! | what a store must do | [`BundleStore`] |
//! | a bundle that is stored, and reading it | [`StoredBundle`] |
//! | the local file in which an upload is received | [`ReceivedFile`] |
//! | the store in a local folder | [`folder`] |
//! | the store in an S3 bucket | [`s3`] |
//! | the store of a relay that accepts no bundles | `no_store` |

mod bundle_store;
pub mod folder;
mod no_store;
mod received;
pub mod s3;
mod stored;

use std::{io, sync::Arc};

use crate::{
    config::{self, StoreKind},
    observe::health::Health,
};

pub use self::{bundle_store::BundleStore, received::ReceivedFile, stored::StoredBundle};
use self::{folder::FolderStore, no_store::NoStore, s3::S3Store};

/// Opens the store that `config` names.
///
/// # Errors
/// The local folder cannot be created or written.
pub async fn open(config: &config::Bundles, health: Arc<Health>) -> io::Result<OpenedStore> {
    Ok(match config.store {
        StoreKind::Folder => {
            OpenedStore { store: Arc::new(FolderStore::open(&config.path)?), s3: None }
        }
        StoreKind::S3 => {
            let store = Arc::new(S3Store::open(config, health).await?);
            OpenedStore { store: store.clone(), s3: Some(store) }
        }
        StoreKind::None => OpenedStore { store: Arc::new(NoStore), s3: None },
    })
}

/// An opened store.
pub struct OpenedStore {
    /// The store.
    pub store: Arc<dyn BundleStore>,
    /// The same store if it is an S3 store, whose [`S3Store::run`] must be kept running.
    pub s3: Option<Arc<S3Store>>,
}
