//! `/quarantine`: lists, releases and deletes chunks that do not parse.

use std::time::{Duration, SystemTime};

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::state::StorageState;
use crate::{admin::error::HandlerError, document::chunk::Key, storage::records::Quarantined};

/// The entries to release or delete.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct QuarantineSelection {
    /// These entries.
    pub paths: Vec<String>,
    /// Also all entries that are older than this, in seconds.
    pub older_than: Option<u64>,
}

/// What was released or deleted.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct QuarantineReport {
    /// Paths or keys of the entries for which this succeeded.
    pub done: Vec<String>,
    /// The errors of the others.
    pub failed: Vec<String>,
}

pub(super) fn routes() -> Router<StorageState> {
    Router::new()
        .route("/quarantine", get(list))
        .route("/quarantine/release", post(release))
        .route("/quarantine/purge", post(purge))
}

async fn list(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    Ok(Json(state.store().quarantined().await?).into_response())
}

async fn release(
    State(state): State<StorageState>,
    Json(selection): Json<QuarantineSelection>,
) -> Result<Response, HandlerError> {
    let mut answer = QuarantineReport::default();
    for path in selection.paths {
        match state.store().release(path).await {
            Ok(key) => {
                if let (Key::Chunk { document, .. }, Some(rooms)) = (&key, &state.rooms) {
                    rooms.reopen(*document);
                }
                info!(%key, "an operator released a chunk from quarantine");
                answer.done.push(key.to_string());
            }
            Err(error) => answer.failed.push(error.to_string()),
        }
    }
    Ok(Json(answer).into_response())
}

async fn purge(
    State(state): State<StorageState>,
    Json(selection): Json<QuarantineSelection>,
) -> Result<Response, HandlerError> {
    let mut paths = selection.paths;
    if let Some(seconds) = selection.older_than {
        let age = Duration::from_secs(seconds);
        let before = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        let is_old = |entry: &Quarantined| {
            humantime::parse_rfc3339(&entry.since).is_ok_and(|since| since <= before)
        };
        let all = state.store().quarantined().await?.into_iter();
        paths.extend(all.filter(is_old).map(|entry| entry.path));
    }
    let mut answer = QuarantineReport::default();
    for path in paths {
        match state.store().purge(path.clone()).await {
            Ok(()) => {
                info!(path, "an operator purged the quarantine");
                answer.done.push(path);
            }
            Err(error) => answer.failed.push(error.to_string()),
        }
    }
    Ok(Json(answer).into_response())
}
