//! `/quarantine`: lists, releases and deletes chunks that do not parse.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::state::StorageState;
use crate::{
    admin::{error::HandlerError, handler::run_blocking},
    document::chunk::Key,
    storage::local::quarantine,
};

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
    run_blocking(move || Ok(Json(quarantine::list(state.journal.root())?).into_response())).await
}

async fn release(
    State(state): State<StorageState>,
    Json(selection): Json<QuarantineSelection>,
) -> Result<Response, HandlerError> {
    let rooms = state.rooms.clone();
    let releasing = run_blocking(move || {
        let root = state.journal.root();
        Ok(selection.paths.iter().map(|path| quarantine::release(root, path)).collect::<Vec<_>>())
    });
    let mut answer = QuarantineReport::default();
    for released in releasing.await? {
        match released {
            Ok(key) => {
                if let (Key::Chunk { document, .. }, Some(rooms)) = (&key, &rooms) {
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
    run_blocking(move || {
        let root = state.journal.root();
        let mut paths = selection.paths;
        if let Some(seconds) = selection.older_than {
            paths.extend(quarantine::older_than(root, Duration::from_secs(seconds))?);
        }
        let mut answer = QuarantineReport::default();
        for path in paths {
            match quarantine::purge(root, &path) {
                Ok(()) => {
                    info!(path, "an operator purged the quarantine");
                    answer.done.push(path);
                }
                Err(error) => answer.failed.push(error.to_string()),
            }
        }
        Ok(Json(answer).into_response())
    })
    .await
}
