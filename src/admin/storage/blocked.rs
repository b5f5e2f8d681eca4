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
use crate::{
    admin::{error::HandlerError, handler::run_blocking},
    base::document_id::DocumentId,
    storage::local::blocked::Block,
};

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
    state.journal.blocked().add_in_memory(document);
    info!(%document, reason, "an operator blocked a document");
    apply_change(&state, document);
    // Spawned, so that the work finishes even if the client closes the connection.
    let recording = tokio::task::spawn_blocking(move || {
        let blocked = state.journal.blocked();
        let earlier = blocked.get(document).filter(|_| reason.is_none());
        let block = earlier.unwrap_or_else(|| Block::new(document, reason));
        let added = blocked.add(document, &block);
        added.map(|()| block)
    });
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
        let journal = state.journal.clone();
        if !run_blocking(move || Ok(journal.blocked().remove(document)?)).await? {
            return Err(HandlerError(StatusCode::NOT_FOUND, format!("{document} was not blocked")));
        }
        info!(%document, "an operator unblocked a document");
        apply_change(&state, document);
        Ok(Json(()).into_response())
    });
    unblocking.await?
}

/// Updates the metric, and opens the room again, which applies the change to its sessions.
fn apply_change(state: &StorageState, document: DocumentId) {
    state.journal.update_blocked_gauge();
    if let Some(rooms) = &state.rooms {
        rooms.reopen(document);
    }
}

async fn list(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    let read = move || {
        let blocked = state.journal.blocked();
        let all = blocked.ids().into_iter().map(|document| Block::of(blocked, document));
        Ok(Json(all.collect::<Vec<_>>()).into_response())
    };
    run_blocking(read).await
}
