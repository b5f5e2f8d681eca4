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

use super::state::Stored;
use crate::{
    admin::{error::Failed, handler::blocking},
    document::chunk::Key,
    storage::local::quarantine,
};

/// What is to be released or deleted of the quarantine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Selection {
    /// These entries.
    pub paths: Vec<String>,
    /// Or all that are older than so many seconds.
    pub older_than: Option<u64>,
}

/// What became of paths of the quarantine.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// What was done, by path or key.
    pub done: Vec<String>,
    /// Why it could not be done for others.
    pub failed: Vec<String>,
}

pub(super) fn routes() -> Router<Stored> {
    Router::new()
        .route("/quarantine", get(quarantined))
        .route("/quarantine/release", post(release))
        .route("/quarantine/purge", post(purge))
}

async fn quarantined(State(stored): State<Stored>) -> Result<Response, Failed> {
    blocking(move || Ok(Json(quarantine::list(stored.journal.root())?).into_response())).await
}

async fn release(
    State(stored): State<Stored>,
    Json(selection): Json<Selection>,
) -> Result<Response, Failed> {
    let rooms = stored.rooms.clone();
    let releasing = blocking(move || {
        let root = stored.journal.root();
        Ok(selection.paths.iter().map(|path| quarantine::release(root, path)).collect::<Vec<_>>())
    });
    let mut answer = Done::default();
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
    State(stored): State<Stored>,
    Json(selection): Json<Selection>,
) -> Result<Response, Failed> {
    blocking(move || {
        let root = stored.journal.root();
        let mut paths = selection.paths;
        if let Some(seconds) = selection.older_than {
            paths.extend(quarantine::older_than(root, Duration::from_secs(seconds))?);
        }
        let mut answer = Done::default();
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
