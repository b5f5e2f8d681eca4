//! `/documents/{id}/delete`, `/documents/{id}/undelete` and `/deleted`: deletes documents and keeps their tombstones.

use std::{io, path::PathBuf};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use tracing::info;

use super::{reason::Reason, state::Stored};
use crate::{
    admin::{error::Failed, handler::blocking},
    base::document_id::DocumentId,
    bundle::{Bundle, BundleError, MaxInflated},
    storage::local::{
        backups::{self, Backup},
        imported, quarantine, restore_marker,
        tombstones::Tombstone,
    },
};

/// What `doc delete` did.
#[derive(Debug, Serialize, Deserialize)]
pub struct Receipt {
    /// The tombstone.
    #[serde(flatten)]
    pub tombstone: Tombstone,
    /// Chunks deleted, in the journal, the folders and quarantine.
    pub chunks: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Whether an uploaded bundle with this root was deleted.
    pub bundle: bool,
    /// Other bundles that hold the document; nobody gets it from them by sync.
    pub held_by_bundles: Vec<String>,
    /// Backups that were made of this storage, which may hold it until they are renewed.
    pub backups: Vec<Backup>,
    /// Folders on the relay's disk that may hold it: what restores have replaced, and broken journals. They go when
    /// the operator deletes them.
    pub kept: Vec<PathBuf>,
}

/// What became of a tombstone that a restore brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Buried {
    /// The document is deleted here now.
    New,
    /// It was deleted here before.
    Already,
    /// The document is here, or a bundle of it, and stays.
    IsHere,
}

pub(super) fn routes() -> Router<Stored> {
    Router::new()
        .route("/documents/{id}/delete", post(delete))
        .route("/documents/{id}/undelete", post(undelete))
        .route("/deleted", get(deleted).post(bury))
}

async fn delete(
    State(stored): State<Stored>,
    Path(id): Path<String>,
    Json(Reason { reason }): Json<Reason>,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    // In a task: who asked may go away, and what was begun is finished.
    let deleting = tokio::spawn(delete_document(stored, document, reason));
    Ok(Json(deleting.await??).into_response())
}

async fn delete_document(
    stored: Stored,
    document: DocumentId,
    reason: Option<String>,
) -> Result<Receipt, Failed> {
    let journal = stored.journal.clone();
    let earlier = blocking(move || Ok(journal.tombstones().get(document))).await?;
    // Deleted again, it keeps the time and the reason of the first time, unless there is a new reason.
    let tombstone = match earlier {
        Some(earlier) if reason.is_none() => earlier,
        _ => Tombstone::new(document, reason),
    };
    let deleted = stored.journal.delete_document(document, tombstone.clone()).await;
    // Also where not all could be deleted: the tombstone may stand, and the bundle is to go.
    if let Some(rooms) = &stored.rooms {
        rooms.reopen(document);
    }
    let bundle = stored.uploads.delete(document).await;
    let (deleted, bundle) = (deleted?, bundle?);
    info!(%document, reason = tombstone.reason, "an operator deleted a document");
    let held_by_bundles = holders(&stored, document).await?;
    let root = stored.journal.root().to_owned();
    let (backups, kept) =
        blocking(move || Ok((backups::list(&root), kept(&root, document)?))).await?;
    Ok(Receipt {
        tombstone,
        chunks: deleted.chunks,
        bytes: deleted.bytes,
        bundle,
        held_by_bundles,
        backups,
        kept,
    })
}

/// Folders of the relay's own that hold a document still, or may.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn kept(root: &std::path::Path, document: DocumentId) -> Result<Vec<PathBuf>, Failed> {
    let mut kept = restore_marker::replaced_folders(root);
    kept.retain(|replaced| replaced.join(document.folder()).exists());
    let broken = quarantine::broken_journals(root)?;
    kept.extend(broken);
    Ok(kept)
}

/// The bundles that hold a document. One that cannot be read is named with the reason.
async fn holders(stored: &Stored, document: DocumentId) -> Result<Vec<String>, Failed> {
    let mut holders = Vec::new();
    let served = stored.served.borrow().clone();
    if served.is_some_and(|bundle| bundle.documents.contains_key(&document)) {
        holders.push(format!("{} (served)", stored.config.borrow().bundle.path.display()));
    }
    let max_inflated = MaxInflated::of(&stored.config.borrow());
    for (id, etag) in stored.uploads.list().await? {
        // What was noted when it was imported spares a download.
        let root = stored.journal.root().to_owned();
        let noted = blocking(move || Ok(imported::documents(&root, id, &etag)?)).await?;
        if let Some(documents) = noted {
            if documents.contains(&document) {
                holders.push(id.to_string());
            }
            continue;
        }
        let Some(bundle) = stored.uploads.get(id).await? else { continue };
        let file = bundle.into_file().await?;
        let look = move || -> Result<bool, BundleError> {
            let bundle = Bundle::open(io::BufReader::new(file), max_inflated)?;
            Ok(bundle.documents().contains(&document))
        };
        match tokio::task::spawn_blocking(look).await? {
            Ok(false) => {}
            Ok(true) => holders.push(id.to_string()),
            Err(error) => holders.push(format!("{id} cannot be read: {error}")),
        }
    }
    Ok(holders)
}

async fn undelete(
    State(stored): State<Stored>,
    Path(id): Path<String>,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    if !stored.journal.undelete(document).await? {
        return Err(Failed(StatusCode::NOT_FOUND, format!("{document} was not deleted")));
    }
    if let Some(rooms) = &stored.rooms {
        rooms.reopen(document);
    }
    // What a bundle has of it comes back when that is fetched.
    let root = stored.journal.root().to_owned();
    blocking(move || Ok(imported::clear(&root)?)).await?;
    info!(%document, "an operator lets a deleted document be brought again");
    Ok(Json(()).into_response())
}

async fn deleted(State(stored): State<Stored>) -> Result<Response, Failed> {
    blocking(move || Ok(Json(stored.journal.tombstones().list()).into_response())).await
}

/// Take over a tombstone from a backup, unless the document is here, or a bundle of it.
async fn bury(
    State(stored): State<Stored>,
    Json(tombstone): Json<Tombstone>,
) -> Result<Response, Failed> {
    let document = tombstone.document;
    if stored.documents.is_deleted(document) {
        return Ok(Json(Buried::Already).into_response());
    }
    if stored.uploads.get(document).await?.is_some()
        || !stored.journal.import_tombstone(tombstone).await?
    {
        return Ok(Json(Buried::IsHere).into_response());
    }
    if let Some(rooms) = &stored.rooms {
        rooms.reopen(document);
    }
    info!(%document, "a restore brought the deletion of a document");
    Ok(Json(Buried::New).into_response())
}
