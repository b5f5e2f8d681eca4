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

use super::state::Stored;
use crate::{
    admin::{error::Failed, handler::blocking},
    base::document_id::DocumentId,
    bundle::{Bundle, MaxInflated, store::ReceivedFile},
};

/// An uploaded bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListedBundle {
    /// Its root document.
    pub id: DocumentId,
    /// Another one after every upload.
    pub etag: String,
}

pub(super) fn routes() -> Router<Stored> {
    Router::new()
        .route("/bundles", get(bundles))
        .route("/bundles/{id}", get(bundle).put(put_bundle))
        .route("/bundles/{id}/manifest.json", get(manifest))
}

async fn bundles(State(stored): State<Stored>) -> Result<Response, Failed> {
    let list = stored.uploads.list().await?;
    let list = list.into_iter().map(|(id, etag)| ListedBundle { id, etag });
    Ok(Json(list.collect::<Vec<_>>()).into_response())
}

async fn bundle(State(stored): State<Stored>, Path(id): Path<String>) -> Result<Response, Failed> {
    let id: DocumentId = id.parse()?;
    let Some(bundle) = stored.uploads.get(id).await? else {
        return Err(Failed(StatusCode::NOT_FOUND, format!("{id}: no such bundle")));
    };
    Ok(Body::from_stream(bundle.read(None).await?).into_response())
}

/// Take a bundle from a backup, unless there is one of its id.
async fn put_bundle(
    State(stored): State<Stored>,
    Path(id): Path<String>,
    data: Bytes,
) -> Result<Response, Failed> {
    let id: DocumentId = id.parse()?;
    if stored.documents.is_deleted(id) || stored.uploads.get(id).await?.is_some() {
        return Ok(Json(false).into_response());
    }
    let file = stored.uploads.receive().await?;
    let max_inflated = MaxInflated::of(&stored.config.borrow());
    let file = blocking(move || write_verified(file, id, data, max_inflated)).await?;
    let keep = stored.config.borrow().bundles.keep;
    stored.uploads.put(id, file, keep).await?;
    Ok(Json(true).into_response())
}

/// Write a bundle to the file that receives it, if it is the one of that id.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn write_verified(
    file: ReceivedFile,
    id: DocumentId,
    data: Bytes,
    max_inflated: MaxInflated,
) -> Result<ReceivedFile, Failed> {
    std::fs::write(file.path(), &data)?;
    let mut bundle = Bundle::open(io::Cursor::new(data), max_inflated)?;
    bundle.verify()?;
    if bundle.manifest().root != id {
        let text = format!("the bundle of {id} has another root: {}", bundle.manifest().root);
        return Err(Failed(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    Ok(file)
}

/// The manifest of the uploaded or the served bundle of that root.
async fn manifest(
    State(stored): State<Stored>,
    Path(id): Path<String>,
) -> Result<Response, Failed> {
    let id: DocumentId = id.parse()?;
    let max_inflated = MaxInflated::of(&stored.config.borrow());
    let uploaded = match stored.uploads.get(id).await? {
        Some(uploaded) => Some(uploaded.into_file().await?),
        None => None,
    };
    let served = stored.served.borrow().clone();
    blocking(move || {
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
        Err(Failed(StatusCode::NOT_FOUND, format!("no bundle of {id} is here")))
    })
    .await
}
