//! `POST /backups`: records that a backup was made.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use tracing::info;

use super::state::Stored;
use crate::{
    admin::{error::Failed, handler::blocking},
    storage::local::backups::{self, Backup},
};

pub(super) fn routes() -> Router<Stored> {
    Router::new().route("/backups", post(note_backup))
}

async fn note_backup(
    State(stored): State<Stored>,
    Json(made): Json<Backup>,
) -> Result<Response, Failed> {
    let is_whole = made.whole_at.is_some();
    info!(folder = made.folder, is_whole, "an operator's backup");
    blocking(move || {
        backups::record(stored.journal.root(), made)?;
        Ok(Json(()).into_response())
    })
    .await
}
