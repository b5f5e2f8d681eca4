//! `/fsck`: checks all stored data, and repairs it.

use axum::{Router, extract::State, response::Response, routing::get};
use tracing::info;

use super::state::StorageState;
use crate::{
    admin::handler::json_lines,
    bundle::{self, MaxInflated},
    storage::fsck,
};

pub(super) fn routes() -> Router<StorageState> {
    Router::new().route("/fsck", get(check).post(check_and_repair))
}

async fn check(State(state): State<StorageState>) -> Response {
    fsck(state, false)
}

async fn check_and_repair(State(state): State<StorageState>) -> Response {
    fsck(state, true)
}

fn fsck(state: StorageState, repair: bool) -> Response {
    let runtime = tokio::runtime::Handle::current();
    let max_inflated = MaxInflated::of(&state.config.borrow());
    if repair {
        info!("an operator's check moves broken chunks into quarantine");
    }
    json_lines(move |tell| {
        let (storage, uploads) = (&state.storage, &*state.uploads);
        fsck::check_storage(storage, &runtime, repair, tell, |check| {
            bundle::fsck::check_uploads(check, uploads, max_inflated, &runtime)
        });
    })
}
