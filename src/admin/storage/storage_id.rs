//! `/storage-id`: the id by which clients know this storage.

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::state::StorageState;
use crate::admin::error::HandlerError;

/// The storage id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StorageId {
    /// The id; none if the storage does not have one yet.
    pub storage_id: Option<String>,
}

pub(super) fn routes() -> Router<StorageState> {
    Router::new().route("/storage-id", get(read).put(adopt))
}

async fn load_storage_id(state: &StorageState) -> Result<Option<String>, HandlerError> {
    let id = state.store().load_storage_id().await?;
    Ok(id.and_then(|id| String::from_utf8(id).ok()).map(|id| id.trim().to_owned()))
}

async fn read(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    let storage_id = load_storage_id(&state).await?;
    Ok(Json(StorageId { storage_id }).into_response())
}

/// Adopts the given storage id, unless the storage has one. If none is given, it generates one.
/// Answers whether the given id was adopted.
async fn adopt(
    State(state): State<StorageState>,
    Json(new): Json<StorageId>,
) -> Result<Response, HandlerError> {
    let here = load_storage_id(&state).await?;
    let Some(new) = new.storage_id.filter(|_| here.is_none()) else {
        state.documents.storage_id().await?;
        return Ok(Json(false).into_response());
    };
    // Clients use it as a key in their own storage. Accept a UUID, or a word that is as harmless.
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if new.is_empty() || new.len() > 64 || !new.bytes().all(is_word) {
        let text = "the storage id is not a UUID; expected one such as \
                    6d7e0c5e-3f0c-4f6a-9d43-0f2a4c1b8e77"
            .to_owned();
        return Err(HandlerError(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    let stored = state.store().create_storage_id(new.clone()).await?;
    if stored == new {
        info!(storage_id = new, "adopted the storage id of a backup");
    }
    Ok(Json(stored == new).into_response())
}
