//! `/bundles`: the uploaded bundles, for backups, restores and exports.

use std::io;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::state::StorageState;
use crate::{
    admin::{error::HandlerError, handler::run_blocking},
    base::document_id::DocumentId,
    bundle::{Bundle, MaxInflated, store::ReceivedFile},
};

/// An uploaded bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListedBundle {
    /// The id of its root document.
    pub id: DocumentId,
    /// Changes with every upload.
    pub etag: String,
}

pub(super) fn routes() -> Router<StorageState> {
    Router::new()
        .route("/bundles", get(list))
        .route("/bundles/{id}", get(download).put(restore))
        .route("/bundles/{id}/manifest.json", get(manifest))
}

async fn list(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    let list = state.uploads.list().await?;
    let list = list.into_iter().map(|(id, etag)| ListedBundle { id, etag });
    Ok(Json(list.collect::<Vec<_>>()).into_response())
}

async fn download(
    State(state): State<StorageState>,
    Path(id): Path<String>,
) -> Result<Response, HandlerError> {
    let id: DocumentId = id.parse()?;
    let Some(bundle) = state.uploads.get(id).await? else {
        return Err(HandlerError(StatusCode::NOT_FOUND, format!("{id}: no such bundle")));
    };
    Ok(Body::from_stream(bundle.read(None).await?).into_response())
}

/// Stores a bundle of a backup, unless one with this root is stored. Answers whether it was stored.
async fn restore(
    State(state): State<StorageState>,
    Path(id): Path<String>,
    data: Bytes,
) -> Result<Response, HandlerError> {
    let id: DocumentId = id.parse()?;
    if state.documents.is_deleted(id) || state.uploads.get(id).await?.is_some() {
        return Ok(Json(false).into_response());
    }
    let file = state.uploads.receive().await?;
    let max_inflated = MaxInflated::of(&state.config.borrow());
    let file = run_blocking(move || write_verified(file, id, data, max_inflated)).await?;
    let keep = state.config.borrow().bundles.keep;
    state.uploads.put(id, file, keep).await?;
    Ok(Json(true).into_response())
}

/// Writes a bundle to the file that receives it. Fails if the bundle is damaged or has another
/// root.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn write_verified(
    file: ReceivedFile,
    id: DocumentId,
    data: Bytes,
    max_inflated: MaxInflated,
) -> Result<ReceivedFile, HandlerError> {
    std::fs::write(file.path(), &data)?;
    let mut bundle = Bundle::open(io::Cursor::new(data), max_inflated)?;
    bundle.verify()?;
    if bundle.manifest().root != id {
        let text = format!("the bundle {id} has another root document: {}", bundle.manifest().root);
        return Err(HandlerError(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    Ok(file)
}

/// Answers with the manifest of the uploaded or the served bundle with this root.
async fn manifest(
    State(state): State<StorageState>,
    Path(id): Path<String>,
) -> Result<Response, HandlerError> {
    let id: DocumentId = id.parse()?;
    let max_inflated = MaxInflated::of(&state.config.borrow());
    let uploaded = match state.uploads.get(id).await? {
        Some(uploaded) => Some(uploaded.into_file().await?),
        None => None,
    };
    let served = state.served.borrow().clone();
    run_blocking(move || {
        if let Some(uploaded) = uploaded {
            let bundle = Bundle::open(io::BufReader::new(uploaded), max_inflated)?;
            return Ok(bundle.manifest_json().to_vec().into_response());
        }
        if let Some(served) = served {
            let bundle = Bundle::open(io::Cursor::new(served.file.clone()), max_inflated)?;
            if bundle.manifest().root == id {
                return Ok(bundle.manifest_json().to_vec().into_response());
            }
        }
        Err(HandlerError(StatusCode::NOT_FOUND, format!("no bundle of {id} is stored")))
    })
    .await
}
