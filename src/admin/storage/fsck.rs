//! `/fsck`: checks all that is stored, and repairs it.

use axum::{Router, extract::State, response::Response, routing::get};
use tracing::info;

use super::state::Stored;
use crate::{
    admin::handler::lines,
    bundle::{self, MaxInflated},
    storage::fsck,
};

pub(super) fn routes() -> Router<Stored> {
    Router::new().route("/fsck", get(check).post(check_and_repair))
}

async fn check(State(stored): State<Stored>) -> Response {
    fsck(stored, false)
}

async fn check_and_repair(State(stored): State<Stored>) -> Response {
    fsck(stored, true)
}

fn fsck(stored: Stored, repair: bool) -> Response {
    let runtime = tokio::runtime::Handle::current();
    let max_inflated = MaxInflated::of(&stored.config.borrow());
    if repair {
        info!("an operator's check moves what is broken into quarantine");
    }
    lines(move |tell| {
        let (journal, uploads) = (&stored.journal, &*stored.uploads);
        fsck::check_storage(journal, &runtime, repair, tell, |check| {
            bundle::fsck::check_uploads(check, uploads, max_inflated, &runtime)
        });
    })
}
