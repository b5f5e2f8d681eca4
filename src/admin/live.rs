//! What the admin socket answers about live documents: which cost most, and what happens to one.

use std::{io, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};

use super::error::Failed;
use crate::{base::document_id::DocumentId, sync::rooms::Rooms};

/// The routes.
pub fn router(rooms: Arc<Rooms>) -> Router {
    Router::new()
        .route("/top", get(top))
        .route("/documents/{id}/live", get(live))
        .route("/documents/{id}/events", get(events))
        .with_state(rooms)
}

async fn top(State(rooms): State<Arc<Rooms>>) -> Response {
    Json(rooms.top().await).into_response()
}

async fn live(State(rooms): State<Arc<Rooms>>, Path(id): Path<String>) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    match rooms.inspect(document).await {
        Some(found) => Ok(Json(found).into_response()),
        None => Err(Failed(StatusCode::NOT_FOUND, format!("{document}: nobody follows it"))),
    }
}

/// A line of JSON for each thing that happens to a document, until the client goes.
async fn events(
    State(rooms): State<Arc<Rooms>>,
    Path(id): Path<String>,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    let Some(following) = rooms.follow(document) else {
        let text = "too many documents are followed; end one of the others first".to_owned();
        return Err(Failed(StatusCode::TOO_MANY_REQUESTS, text));
    };
    let lines = futures::stream::unfold(following, async |mut following| {
        let mut line = serde_json::to_string(&following.next().await?).unwrap_or_default();
        line.push('\n');
        Some((Ok::<_, io::Error>(line), following))
    });
    Ok(Body::from_stream(lines).into_response())
}
