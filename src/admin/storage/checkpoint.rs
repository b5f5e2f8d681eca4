//! `POST /checkpoint`: moves all chunks from the journal into the documents' folders.

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::post,
};
use serde::{Deserialize, Serialize};

use super::state::Stored;
use crate::admin::error::Failed;

/// What a checkpoint did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Checkpoint {
    /// How many chunks moved from the journal into the folders.
    pub moved: usize,
}

pub(super) fn routes() -> Router<Stored> {
    Router::new().route("/checkpoint", post(checkpoint))
}

async fn checkpoint(State(stored): State<Stored>) -> Result<Response, Failed> {
    Ok(Json(Checkpoint { moved: stored.journal.checkpoint().await? }).into_response())
}
