//! `/documents/{id}/delete`, `/documents/{id}/undelete` and `/deleted`: deletes documents, and
//! manages their tombstones.

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

use super::{reason::Reason, state::StorageState};
use crate::{
    admin::{error::HandlerError, handler::run_blocking},
    base::document_id::DocumentId,
    bundle::{Bundle, BundleError, MaxInflated},
    storage::{
        local::{
            backups::{self, Backup},
            quarantine, restore_marker,
        },
        records::{Deleted, Tombstone},
    },
};

/// The answer to a deletion.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeletionReceipt {
    /// The tombstone.
    #[serde(flatten)]
    pub tombstone: Tombstone,
    /// Chunks deleted, in the journal, the folders and quarantine.
    pub chunks: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Whether an uploaded bundle with this root was deleted.
    pub bundle: bool,
    /// Other bundles that have the document. It cannot be synced from them.
    pub held_by_bundles: Vec<String>,
    /// Backups of this storage, which may have the document until they are made again.
    pub backups: Vec<Backup>,
    /// Folders on the relay's disk that may have it until the operator deletes them: data that
    /// restores have replaced, and broken journals.
    pub kept: Vec<PathBuf>,
}

/// The answer to the tombstone of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TombstoneImport {
    /// The document is now deleted.
    #[serde(rename = "new")]
    Imported,
    /// It was deleted before.
    #[serde(rename = "already")]
    AlreadyDeleted,
    /// The document, or a bundle with this root, is stored and was kept.
    #[serde(rename = "is_here")]
    DocumentExists,
}

pub(super) fn routes() -> Router<StorageState> {
    Router::new()
        .route("/documents/{id}/delete", post(delete))
        .route("/documents/{id}/undelete", post(undelete))
        .route("/deleted", get(list).post(import_tombstone))
}

async fn delete(
    State(state): State<StorageState>,
    Path(id): Path<String>,
    Json(Reason { reason }): Json<Reason>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    let deleting = state.unfinished.clone().spawn(delete_document(state, document, reason));
    Ok(Json(deleting.await??).into_response())
}

async fn delete_document(
    state: StorageState,
    document: DocumentId,
    reason: Option<String>,
) -> Result<DeletionReceipt, HandlerError> {
    let earlier = state.store().tombstone(document).await?;
    // A second deletion keeps the first time and reason, unless it has a reason of its own.
    let tombstone = match earlier {
        Some(earlier) if reason.is_none() => earlier,
        _ => Tombstone::new(document, reason),
    };
    let deleted = state.store().delete_document(document, tombstone.clone()).await;
    // Even if the deletion failed: the tombstone may exist by now, and the bundle must still be
    // deleted.
    if let Some(rooms) = &state.rooms {
        rooms.reopen(document);
    }
    let bundle = state.uploads.delete(document).await;
    let (Deleted { chunks, bytes }, bundle) = (deleted?, bundle?);
    info!(%document, reason = tombstone.reason, "an operator deleted a document");
    let held_by_bundles = bundles_with(&state, document).await?;
    let root = state.folder();
    let (backups, kept) =
        run_blocking(move || Ok((backups::list(&root), folders_with(&root, document)?))).await?;
    Ok(DeletionReceipt { tombstone, chunks, bytes, bundle, held_by_bundles, backups, kept })
}

/// Returns the folders of the relay that still have a document, or may have it.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn folders_with(
    root: &std::path::Path,
    document: DocumentId,
) -> Result<Vec<PathBuf>, HandlerError> {
    let mut kept = restore_marker::replaced_folders(root);
    kept.retain(|replaced| replaced.join(document.folder()).exists());
    let broken = quarantine::broken_journals(root)?;
    kept.extend(broken);
    Ok(kept)
}

/// Returns the bundles that have a document. A bundle that cannot be read is listed with the
/// reason.
async fn bundles_with(
    state: &StorageState,
    document: DocumentId,
) -> Result<Vec<String>, HandlerError> {
    let mut found = Vec::new();
    let served = state.served.borrow().clone();
    if served.is_some_and(|bundle| bundle.documents.contains_key(&document)) {
        found.push(format!("{} (served)", state.config.borrow().bundle.path.display()));
    }
    let max_inflated = MaxInflated::of(&state.config.borrow());
    for (id, etag) in state.uploads.list().await? {
        // The record of its import makes a download unnecessary.
        // One without documents was written by an earlier version.
        let recorded = state.store().imported(id, etag).await?;
        if let Some(documents) = recorded.filter(|documents| !documents.is_empty()) {
            if documents.contains(&document) {
                found.push(id.to_string());
            }
            continue;
        }
        let Some(bundle) = state.uploads.get(id).await? else { continue };
        let file = bundle.into_file().await?;
        let is_in_bundle = move || -> Result<bool, BundleError> {
            let bundle = Bundle::open(io::BufReader::new(file), max_inflated)?;
            Ok(bundle.documents().contains(&document))
        };
        match tokio::task::spawn_blocking(is_in_bundle).await? {
            Ok(false) => {}
            Ok(true) => found.push(id.to_string()),
            Err(error) => found.push(format!("{id} cannot be read: {error}")),
        }
    }
    Ok(found)
}

async fn undelete(
    State(state): State<StorageState>,
    Path(id): Path<String>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    let undeleting = state.unfinished.clone().spawn(undelete_document(state, document));
    undeleting.await??;
    Ok(Json(()).into_response())
}

async fn undelete_document(state: StorageState, document: DocumentId) -> Result<(), HandlerError> {
    if !state.store().undelete(document).await? {
        return Err(HandlerError(StatusCode::NOT_FOUND, format!("{document} was not deleted")));
    }
    if let Some(rooms) = &state.rooms {
        rooms.reopen(document);
    }
    // Forget which bundles were imported, so that they are imported again and bring back what they
    // have of the document.
    state.store().forget_imports().await?;
    info!(%document, "an operator undeleted a document; clients can upload it again");
    Ok(())
}

async fn list(State(state): State<StorageState>) -> Result<Response, HandlerError> {
    Ok(Json(state.store().tombstones().await?).into_response())
}

/// Imports a tombstone from a backup, unless the document or a bundle with this root is stored.
async fn import_tombstone(
    State(state): State<StorageState>,
    Json(tombstone): Json<Tombstone>,
) -> Result<Response, HandlerError> {
    let document = tombstone.document;
    if state.documents.is_deleted(document) {
        return Ok(Json(TombstoneImport::AlreadyDeleted).into_response());
    }
    if state.uploads.get(document).await?.is_some() {
        return Ok(Json(TombstoneImport::DocumentExists).into_response());
    }
    let storage = state.storage.store.clone();
    let importing =
        state.unfinished.spawn(async move { storage.import_tombstone(tombstone).await });
    if !importing.await?? {
        return Ok(Json(TombstoneImport::DocumentExists).into_response());
    }
    if let Some(rooms) = &state.rooms {
        rooms.reopen(document);
    }
    info!(%document, "a restore deleted a document, as in the backup");
    Ok(Json(TombstoneImport::Imported).into_response())
}
