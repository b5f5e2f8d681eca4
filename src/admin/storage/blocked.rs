//! `/documents/{id}/block`, `/documents/{id}/unblock` and `/blocked`: blocks access to documents.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tracing::info;

use super::{reason::Reason, state::StorageState};
use crate::{admin::error::HandlerError, base::document_id::DocumentId};

pub(super) fn routes() -> Router<StorageState> {
    Router::new()
        .route("/documents/{id}/block", post(block))
        .route("/documents/{id}/unblock", post(unblock))
        .route("/blocked", get(list))
}

/// Blocks all access to a document. Its data is kept.
async fn block(
    State(state): State<StorageState>,
    Path(id): Path<String>,
    Json(Reason { reason }): Json<Reason>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    // Take effect immediately, even if the disk is full or hangs.
    state.store().block_in_memory(document);
    info!(%document, reason, "an operator blocked a document");
    reopen(&state, document);
    // Spawned, so that the work finishes even if the client closes the connection.
    let unfinished = state.unfinished.clone();
    let recording = unfinished.spawn(async move { state.store().block(document, reason).await });
    match recording.await? {
        Ok(block) => Ok(Json(block).into_response()),
        Err(error) => {
            let text = format!("{document} is blocked until the relay stops: {error}");
            Err(HandlerError(StatusCode::INTERNAL_SERVER_ERROR, text))
        }
    }
}

async fn unblock(
    State(state): State<StorageState>,
    Path(id): Path<String>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    let unblocking = state.unfinished.clone().spawn(async move {
        if !state.store().unblock(document).await? {
            return Err(HandlerError(StatusCode::NOT_FOUND, format!("{document} was not blocked")));
        }
        info!(%document, "an operator unblocked a document");
        reopen(&state, document);
        Ok(Json(()).into_response())
    });
    unblocking.await?
}

/// Opens the room again, which applies the change to its sessions.
fn reopen(state: &StorageState, document: DocumentId) {
    if let Some(rooms) = &state.rooms {
        rooms.reopen(document);
    }
}

async fn list(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    Ok(Json(state.store().blocks().await?).into_response())
}
