//! `/documents`: lists, inspects, reads and merges documents.

use std::io;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::state::StorageState;
use crate::{
    admin::{error::HandlerError, handler::json_lines},
    base::document_id::DocumentId,
    document::merge::Merged,
    limits::turns::Payer,
    storage::{documents::MergeSource, inspect::Inspection},
};

/// Documents that are merged concurrently. Their changes become durable together.
const MERGED_AT_ONCE: usize = 64;

/// A line of the listing. A listing without `End` was cut off.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentListLine<T> {
    /// A document.
    Document(T),
    /// The listing is complete.
    End,
    /// The listing failed.
    Problem(String),
}

/// The content of a document, as CBOR.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
pub struct DocumentContent {
    /// An automerge save.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub data: Vec<u8>,
    /// Chunks that are left out because they do not parse, with the reason.
    #[n(1)]
    pub broken: Vec<String>,
}

/// A document of a restore or an import, as CBOR.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
pub struct DocumentToMerge {
    /// Its id.
    #[n(0)]
    pub document: String,
    /// An automerge save.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub data: Vec<u8>,
}

pub(super) fn routes() -> Router<StorageState> {
    Router::new()
        .route("/documents", get(list).post(merge))
        .route("/documents/{id}", get(inspect))
        .route("/documents/{id}/content", get(content))
}

async fn list(State(state): State<StorageState>) -> Response {
    json_lines(move |tell| {
        let mut found = |listed| tell(DocumentListLine::Document(listed));
        let result = state.store().list(&mut found);
        tell(match result {
            Ok(()) => DocumentListLine::End,
            Err(error) => DocumentListLine::Problem(error.to_string()),
        });
    })
}

async fn inspect(
    State(state): State<StorageState>,
    Path(id): Path<String>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    if let Some(tombstone) = state.store().tombstone(document).await? {
        let reason = tombstone.reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let text = format!("{document} was deleted at {}{reason}", tombstone.deleted_at);
        return Err(HandlerError(StatusCode::GONE, text));
    }
    match Inspection::of(state.store(), document).await? {
        Some(found) => Ok(Json(found).into_response()),
        None => Err(nothing_stored(document)),
    }
}

fn nothing_stored(document: DocumentId) -> HandlerError {
    HandlerError(StatusCode::NOT_FOUND, format!("{document}: nothing is stored of this document"))
}

#[derive(Deserialize)]
struct ContentQuery {
    #[serde(default)]
    with_bundle: bool,
}

/// Answers with all that can be read of a document.
async fn content(
    State(state): State<StorageState>,
    Path(id): Path<String>,
    Query(query): Query<ContentQuery>,
) -> Result<Response, HandlerError> {
    let document: DocumentId = id.parse()?;
    let Some(found) = state.documents.content(document, query.with_bundle).await? else {
        return Err(nothing_stored(document));
    };
    let broken = found.broken.iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
    let content = DocumentContent { data: found.data, broken };
    Ok(minicbor::to_vec(content).map_err(io::Error::other)?.into_response())
}

#[derive(Deserialize)]
struct MergeQuery {
    #[serde(default)]
    dry_run: bool,
}

/// Merges documents with the stored ones. Answers with the results in the same order.
async fn merge(
    State(state): State<StorageState>,
    Query(query): Query<MergeQuery>,
    data: Bytes,
) -> Result<Response, HandlerError> {
    let documents: Vec<DocumentToMerge> = minicbor::decode(&data)
        .map_err(|error| HandlerError(StatusCode::BAD_REQUEST, error.to_string()))?;
    let merging = documents.into_iter().map(|DocumentToMerge { document, data }| {
        let merging = merge_one(&state, document, data, query.dry_run);
        let failed = |HandlerError(_, reason)| Merged::Failed(reason);
        async move { merging.await.unwrap_or_else(failed) }
    });
    let merged: Vec<Merged> =
        futures::stream::iter(merging).buffered(MERGED_AT_ONCE).collect().await;
    Ok(Json(merged).into_response())
}

async fn merge_one(
    state: &StorageState,
    id: String,
    data: Vec<u8>,
    dry_run: bool,
) -> Result<Merged, HandlerError> {
    let document: DocumentId = id.parse()?;
    let (source, payer) = (MergeSource::Operator, Payer::Document(document));
    let merged = state.documents.merge(document, data.into(), source, payer, dry_run).await?;
    let has_changed = matches!(merged, Merged::New | Merged::Newer) && !dry_run;
    if let (true, Some(rooms)) = (has_changed, &state.rooms) {
        rooms.reopen(document);
    }
    Ok(merged)
}
