//! `/documents/{id}/block`, `/documents/{id}/unblock` and `/blocked`: keeps documents from everybody.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tracing::info;

use super::{reason::Reason, state::Stored};
use crate::{
    admin::{error::Failed, handler::blocking},
    base::document_id::DocumentId,
    storage::local::blocked::Block,
};

pub(super) fn routes() -> Router<Stored> {
    Router::new()
        .route("/documents/{id}/block", post(block))
        .route("/documents/{id}/unblock", post(unblock))
        .route("/blocked", get(blocked))
}

/// Keep a document from everybody. What is stored of it stays.
async fn block(
    State(stored): State<Stored>,
    Path(id): Path<String>,
    Json(Reason { reason }): Json<Reason>,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    // At once, also on a disk that is full or hangs.
    stored.journal.blocked().add_in_memory(document);
    info!(%document, reason, "an operator blocked a document");
    marks_changed(&stored, document);
    // In a task: who asked may go away, and what was begun is finished.
    let noting = tokio::task::spawn_blocking(move || {
        let blocked = stored.journal.blocked();
        let earlier = blocked.get(document).filter(|_| reason.is_none());
        let block = earlier.unwrap_or_else(|| Block::new(document, reason));
        let noted = blocked.add(document, &block);
        noted.map(|()| block)
    });
    match noting.await? {
        Ok(block) => Ok(Json(block).into_response()),
        Err(error) => {
            let text = format!("{document} is blocked until the relay stops: {error}");
            Err(Failed(StatusCode::INTERNAL_SERVER_ERROR, text))
        }
    }
}

async fn unblock(State(stored): State<Stored>, Path(id): Path<String>) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    // In a task, as above.
    let unblocking = tokio::spawn(async move {
        let journal = stored.journal.clone();
        if !blocking(move || Ok(journal.blocked().remove(document)?)).await? {
            return Err(Failed(StatusCode::NOT_FOUND, format!("{document} was not blocked")));
        }
        info!(%document, "an operator unblocked a document");
        marks_changed(&stored, document);
        Ok(Json(()).into_response())
    });
    unblocking.await?
}

fn marks_changed(stored: &Stored, document: DocumentId) {
    stored.journal.update_blocked_gauge();
    if let Some(rooms) = &stored.rooms {
        rooms.reopen(document);
    }
}

async fn blocked(State(stored): State<Stored>) -> Result<Response, Failed> {
    let list = move || {
        let blocked = stored.journal.blocked();
        let all = blocked.ids().into_iter().map(|document| Block::of(blocked, document));
        Ok(Json(all.collect::<Vec<_>>()).into_response())
    };
    blocking(list).await
}
