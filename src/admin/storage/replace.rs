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

use super::state::Stored;
use crate::{
    admin::{error::Failed, handler::blocking},
    storage::local::restore_marker::{self, BackupSource},
};

/// What a restore that replaces all moved away.
#[derive(Debug, Serialize, Deserialize)]
pub struct Replaced {
    /// Where the documents are now.
    pub documents: PathBuf,
    /// Where the bundles are now, if they are on a local disk.
    pub bundles: Option<PathBuf>,
    /// Whether an earlier restore of the same backup moved it, and was interrupted.
    pub is_resumed: bool,
    /// Where the documents are now that interrupted restores of other backups had brought.
    pub interrupted: Vec<PathBuf>,
}

pub(super) fn routes() -> Router<Stored> {
    Router::new().route("/set-aside", post(set_aside)).route("/restored", post(restored))
}

/// Make room for a backup that replaces all: what is here is moved aside.
async fn set_aside(
    State(stored): State<Stored>,
    Json(backup): Json<BackupSource>,
) -> Result<Response, Failed> {
    if stored.rooms.is_some() {
        let text = "the relay runs: stop it, to replace what it stores".to_owned();
        return Err(Failed(StatusCode::CONFLICT, text));
    }
    let root = stored.journal.root().to_owned();
    let at = root.clone();
    let mut replacing = blocking(move || Ok(restore_marker::begin(&at, backup)?)).await?;
    let is_resumed = replacing.is_moved;
    if !is_resumed {
        stored.journal.move_aside(replacing.folder()).await?;
        stored.uploads.move_aside(replacing.folder()).await?;
        let at = root.clone();
        replacing = blocking(move || {
            restore_marker::record_moved(&at, &mut replacing)?;
            Ok(replacing)
        })
        .await?;
    }
    let bundles_path = stored.config.borrow().bundles.path.clone();
    let first = replacing.folders.first().cloned().unwrap_or_default();
    let bundles = bundles_path.join(&first);
    let is_there = tokio::fs::try_exists(&bundles).await.unwrap_or(false);
    let interrupted = replacing.folders.iter().skip(1).map(|name| root.join(name)).collect();
    Ok(Json(Replaced {
        documents: root.join(first),
        bundles: is_there.then_some(bundles),
        is_resumed,
        interrupted,
    })
    .into_response())
}

/// All of a backup that replaces what was stored is there.
async fn restored(State(stored): State<Stored>) -> Result<Response, Failed> {
    blocking(move || {
        restore_marker::end(stored.journal.root())?;
        Ok(Json(()).into_response())
    })
    .await
}
