//! `/top`, and below `/documents/{id}/`, `live`, `elsewhere` and `events`: the documents that are
//! in memory.

use std::{io, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};

use super::error::HandlerError;
use crate::{base::document_id::DocumentId, sync::rooms::Rooms};

/// The routes.
pub fn router(rooms: Arc<Rooms>) -> Router {
    Router::new()
        .route("/top", get(top))
        .route("/documents/{id}/live", get(live))
        .route("/documents/{id}/elsewhere", get(elsewhere))
        .route("/documents/{id}/events", get(events))
        .with_state(rooms)
}

async fn top(State(rooms): State<Arc<Rooms>>) -> Response {
    Json(rooms.top_everywhere().await).into_response()
}

async fn elsewhere(
    State(rooms): State<Arc<Rooms>>,
    Path(id): Path<String>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    let mut places = rooms.elsewhere(&[document]).await;
    Ok(Json(places.remove(&document).unwrap_or_default()).into_response())
}

async fn live(
    State(rooms): State<Arc<Rooms>>,
    Path(id): Path<String>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    match rooms.inspect(document).await {
        Some(found) => Ok(Json(found).into_response()),
        None => Err(HandlerError(
            StatusCode::NOT_FOUND,
            format!("{document}: the document is not in memory"),
        )),
    }
}

/// Answers with a line of JSON for each event of a document, until the client closes the
/// connection.
async fn events(
    State(rooms): State<Arc<Rooms>>,
    Path(id): Path<String>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    let Some(following) = rooms.follow(document) else {
        let text = "too many documents are being followed; stop one of the other `doc --follow` \
                    commands first"
            .to_owned();
        return Err(HandlerError(StatusCode::TOO_MANY_REQUESTS, text));
    };
    let lines = futures::stream::unfold(following, async |mut following| {
        let mut line = serde_json::to_string(&following.next().await?).unwrap_or_default();
        line.push('\n');
        Some((Ok::<_, io::Error>(line), following))
    });
    Ok(Body::from_stream(lines).into_response())
}
