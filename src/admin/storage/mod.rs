//! What the admin socket answers about what is stored: a file for each subject, with its routes, their handlers, and what
//! they take and answer as JSON or CBOR. The same router serves the commands when the relay does not run:
//! `cli::serve_storage` then starts one.

pub mod backups;
pub mod blocked;
pub mod bundles;
pub mod checkpoint;
pub mod deleted;
pub mod documents;
pub mod fsck;
pub mod quarantine;
pub mod reason;
pub mod replace;
pub mod state;
pub mod storage_id;

use axum::{Router, extract::DefaultBodyLimit};

use self::state::Stored;

/// The routes.
pub fn router(stored: Stored) -> Router {
    Router::new()
        .merge(checkpoint::routes())
        .merge(documents::routes())
        .merge(deleted::routes())
        .merge(blocked::routes())
        .merge(fsck::routes())
        .merge(quarantine::routes())
        .merge(bundles::routes())
        .merge(storage_id::routes())
        .merge(backups::routes())
        .merge(replace::routes())
        // Only who may read and write the files anyway reaches this.
        .layer(DefaultBodyLimit::disable())
        .with_state(stored)
}
