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

use super::state::Stored;
use crate::{admin::error::Failed, document::chunk::Key, storage::ChunkStore};

/// The storage's id.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StorageId {
    /// The id; none if there is none yet.
    pub storage_id: Option<String>,
}

pub(super) fn routes() -> Router<Stored> {
    Router::new().route("/storage-id", get(storage_id).put(put_storage_id))
}

async fn read_storage_id(stored: &Stored) -> Result<Option<String>, Failed> {
    let id = stored.journal.load_storage_id().await?;
    Ok(id.and_then(|id| String::from_utf8(id).ok()).map(|id| id.trim().to_owned()))
}

async fn storage_id(State(stored): State<Stored>) -> Result<Response, Failed> {
    let storage_id = read_storage_id(&stored).await?;
    Ok(Json(StorageId { storage_id }).into_response())
}

/// Adopt a storage id, unless there is one; without one to adopt, a new one is made.
async fn put_storage_id(
    State(stored): State<Stored>,
    Json(new): Json<StorageId>,
) -> Result<Response, Failed> {
    let here = read_storage_id(&stored).await?;
    let Some(new) = new.storage_id.filter(|_| here.is_none()) else {
        stored.documents.storage_id().await?;
        return Ok(Json(false).into_response());
    };
    // Clients keep it as a text beside what they know of the relay: a UUID, or a word like one.
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if new.is_empty() || new.len() > 64 || !new.bytes().all(is_word) {
        let text = "the storage id is to be a UUID".to_owned();
        return Err(Failed(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    info!(storage_id = new, "a storage id is taken over");
    stored.journal.put(&Key::StorageId, new.into()).await?;
    Ok(Json(true).into_response())
}
