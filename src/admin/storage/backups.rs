//! `POST /backups`: records that a backup was made.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use tracing::info;

use super::state::StorageState;
use crate::{
    admin::{error::HandlerError, handler::run_blocking},
    storage::local::backups::{self, Backup},
};

pub(super) fn routes() -> Router<StorageState> {
    Router::new().route("/backups", post(record))
}

async fn record(
    State(state): State<StorageState>,
    Json(made): Json<Backup>,
) -> Result<Response, HandlerError> {
    let is_whole = made.whole_at.is_some();
    info!(folder = made.folder, is_whole, "an operator's backup was recorded");
    run_blocking(move || {
        backups::record(&state.folder(), made)?;
        Ok(Json(()).into_response())
    })
    .await
}
