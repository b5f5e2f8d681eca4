//! Requests about stored data. Each file has the routes and handlers of one subject, and the types
//! of their bodies, which the commands share. When the relay does not run, `cli::serve_storage`
//! serves the same router.

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
pub mod tokens;

use axum::{Router, extract::DefaultBodyLimit};

use self::state::StorageState;

/// Returns the router of all requests about stored data.
pub fn router(state: StorageState) -> Router {
    Router::new()
        .merge(checkpoint::routes())
        .merge(documents::routes())
        .merge(deleted::routes())
        .merge(blocked::routes())
        .merge(fsck::routes())
        .merge(quarantine::routes())
        .merge(bundles::routes())
        .merge(storage_id::routes())
        .merge(tokens::routes())
        .merge(backups::routes())
        .merge(replace::routes())
        // Clients of the socket could read and write the files anyway.
        .layer(DefaultBodyLimit::disable())
        .with_state(state)
}
