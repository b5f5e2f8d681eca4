//! `POST /checkpoint`: moves all chunks from the journal into the documents' folders.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde::{Deserialize, Serialize};

use super::state::StorageState;
use crate::admin::error::HandlerError;

/// The answer to a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub struct CheckpointReport {
    /// Chunks that were moved from the journal into the folders.
    pub moved: usize,
}

pub(super) fn routes() -> Router<StorageState> {
    Router::new().route("/checkpoint", post(checkpoint))
}

async fn checkpoint(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    if state.storage.journal.is_none() {
        let text =
            "documents are in a database; there are no folders to move anything to".to_owned();
        return Err(HandlerError(StatusCode::CONFLICT, text));
    }
    Ok(Json(CheckpointReport { moved: state.store().checkpoint().await? }).into_response())
}
