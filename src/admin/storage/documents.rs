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

use super::state::Stored;
use crate::{
    admin::{
        error::Failed,
        handler::{blocking, lines},
    },
    base::document_id::DocumentId,
    document::compare::Merged,
    limits::turns::Payer,
    storage::{
        documents::MergeSource,
        inspect::Inspection,
        local::{blocked::Block, quarantine},
    },
};

/// Documents that are merged at a time; what they write becomes durable together.
const MERGED_AT_ONCE: usize = 64;

/// A line of a listing; one that was cut off has no end.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry<T> {
    /// One that is listed.
    Document(T),
    /// All were listed.
    End,
    /// They cannot be listed.
    Problem(String),
}

/// A document's content, as CBOR.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
pub struct Content {
    /// An automerge save.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub data: Vec<u8>,
    /// Chunks that are not in it, for they do not parse.
    #[n(1)]
    pub broken: Vec<String>,
}

/// A document that a restore or an import brings, as CBOR.
#[derive(Debug, minicbor::Encode, minicbor::Decode)]
pub struct Brought {
    /// Its id.
    #[n(0)]
    pub document: String,
    /// An automerge save.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub data: Vec<u8>,
}

pub(super) fn routes() -> Router<Stored> {
    Router::new()
        .route("/documents", get(documents).post(merge))
        .route("/documents/{id}", get(document))
        .route("/documents/{id}/content", get(content))
}

async fn documents(State(stored): State<Stored>) -> Response {
    lines(move |tell| {
        let result = stored.journal.list(|listed| tell(Entry::Document(listed)));
        tell(match result {
            Ok(()) => Entry::End,
            Err(error) => Entry::Problem(error.to_string()),
        });
    })
}

async fn document(
    State(stored): State<Stored>,
    Path(id): Path<String>,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    let journal = stored.journal;
    if let Some(tombstone) = blocking({
        let journal = journal.clone();
        move || Ok(journal.tombstones().get(document))
    })
    .await?
    {
        let reason = tombstone.reason.map_or_else(String::new, |reason| format!(": {reason}"));
        let text = format!("{document} was deleted at {}{reason}", tombstone.deleted_at);
        return Err(Failed(StatusCode::GONE, text));
    }
    let root = journal.root().to_owned();
    let mut quarantined = blocking(move || Ok(quarantine::list(&root)?)).await?;
    let folder = format!("{}/", document.folder());
    quarantined.retain(|entry| entry.path.starts_with(&folder));
    let marks = journal.clone();
    let blocked = blocking(move || {
        let blocked = marks.blocked();
        Ok(blocked.contains(document).then(|| Block::of(blocked, document)))
    });
    let blocked = blocked.await?;
    match Inspection::of(&*journal, quarantined, blocked, document).await? {
        Some(found) => Ok(Json(found).into_response()),
        None => Err(nothing_stored(document)),
    }
}

fn nothing_stored(document: DocumentId) -> Failed {
    Failed(StatusCode::NOT_FOUND, format!("{document}: nothing is stored of this document"))
}

#[derive(Deserialize)]
struct ContentQuery {
    #[serde(default)]
    with_bundle: bool,
}

/// All that can be read of a document.
async fn content(
    State(stored): State<Stored>,
    Path(id): Path<String>,
    Query(query): Query<ContentQuery>,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    let Some(found) = stored.documents.content(document, query.with_bundle).await? else {
        return Err(nothing_stored(document));
    };
    let broken = found.broken.iter().map(|(key, reason)| format!("{key}: {reason}")).collect();
    let content = Content { data: found.data, broken };
    Ok(minicbor::to_vec(content).map_err(io::Error::other)?.into_response())
}

#[derive(Deserialize)]
struct MergeQuery {
    #[serde(default)]
    dry_run: bool,
}

/// Merge documents, of which several become durable together. Answers what became of each, in their order.
async fn merge(
    State(stored): State<Stored>,
    Query(query): Query<MergeQuery>,
    data: Bytes,
) -> Result<Response, Failed> {
    let brought: Vec<Brought> = minicbor::decode(&data)
        .map_err(|error| Failed(StatusCode::BAD_REQUEST, error.to_string()))?;
    let merging = brought.into_iter().map(|Brought { document, data }| {
        let merging = merge_one(&stored, document, data, query.dry_run);
        async move { merging.await.unwrap_or_else(|Failed(_, reason)| Merged::Failed(reason)) }
    });
    let merged: Vec<Merged> =
        futures::stream::iter(merging).buffered(MERGED_AT_ONCE).collect().await;
    Ok(Json(merged).into_response())
}

async fn merge_one(
    stored: &Stored,
    id: String,
    data: Vec<u8>,
    dry_run: bool,
) -> Result<Merged, Failed> {
    let document: DocumentId = id.parse()?;
    let (source, payer) = (MergeSource::Operator, Payer::Document(document));
    let merged = stored.documents.merge(document, data.into(), source, payer, dry_run).await?;
    let has_changed = matches!(merged, Merged::New | Merged::Newer) && !dry_run;
    if let (true, Some(rooms)) = (has_changed, &stored.rooms) {
        rooms.reopen(document);
    }
    Ok(merged)
}
