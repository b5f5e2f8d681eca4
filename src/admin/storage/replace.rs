//! `/set-aside` and `/restored`: how a restore replaces all that is stored.

use std::path::PathBuf;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use serde::{Deserialize, Serialize};

use super::state::StorageState;
use crate::{
    admin::{error::HandlerError, handler::run_blocking},
    storage::local::restore_marker::{self, BackupSource},
};

/// Where the data is that a restore replaces.
#[derive(Debug, Serialize, Deserialize)]
pub struct MovedAside {
    /// Folder of the documents.
    pub documents: PathBuf,
    /// Folder of the bundles, if they are on a local disk.
    pub bundles: Option<PathBuf>,
    /// Whether an interrupted restore of the same backup moved it.
    pub is_resumed: bool,
    /// Folders of the documents that interrupted restores of other backups had restored.
    pub interrupted: Vec<PathBuf>,
}

pub(super) fn routes() -> Router<StorageState> {
    Router::new().route("/set-aside", post(move_aside)).route("/restored", post(finish))
}

/// Moves all documents and bundles aside, for a backup that replaces them.
async fn move_aside(
    State(state): State<StorageState>,
    Json(backup): Json<BackupSource>,
) -> Result<Response, HandlerError> {
    if state.rooms.is_some() {
        let text = "the relay is running; stop it before you replace what it stores".to_owned();
        return Err(HandlerError(StatusCode::CONFLICT, text));
    }
    let Some(journal) = &state.storage.journal else {
        let text =
            "documents are in a database; to replace them, restore into a new database, and \
                    set cluster.database to it"
                .to_owned();
        return Err(HandlerError(StatusCode::CONFLICT, text));
    };
    let root = state.folder();
    let at = root.clone();
    let mut replacing = run_blocking(move || Ok(restore_marker::begin(&at, backup)?)).await?;
    let is_resumed = replacing.is_moved;
    if !is_resumed {
        journal.move_aside(replacing.folder()).await?;
        state.uploads.move_aside(replacing.folder()).await?;
        let at = root.clone();
        replacing = run_blocking(move || {
            restore_marker::record_moved(&at, &mut replacing)?;
            Ok(replacing)
        })
        .await?;
    }
    let bundles_path = state.config.borrow().bundles.path.clone();
    let first = replacing.folders.first().cloned().unwrap_or_default();
    let bundles = bundles_path.join(&first);
    let is_there = tokio::fs::try_exists(&bundles).await.unwrap_or(false);
    let interrupted = replacing.folders.iter().skip(1).map(|name| root.join(name)).collect();
    Ok(Json(MovedAside {
        documents: root.join(first),
        bundles: is_there.then_some(bundles),
        is_resumed,
        interrupted,
    })
    .into_response())
}

/// Marks the restore as finished, so that a relay can start.
async fn finish(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    run_blocking(move || {
        restore_marker::end(&state.folder())?;
        Ok(Json(()).into_response())
    })
    .await
}
