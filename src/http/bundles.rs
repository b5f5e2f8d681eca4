//! Downloads of uploaded bundles.

use super::{
    content::{Answer, Content, is_known},
    error::HttpError,
    state::App,
};
use crate::{
    base::document_id::DocumentId,
    bundle::{
        Bundle, MaxInflated,
        import::{ImportState, Problem},
        store::StoredBundle,
    },
    http::grant::Grant,
    limits::turns::Payer,
    storage::{Failure, StorageError},
};
use axum::Extension;
use axum::{
    body::Body,
    extract::{Path, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use std::io::BufReader;
use tokio::time::timeout;

/// The `Cache-Control` of uploaded bundles, as in the TypeScript relay.
const CACHE_CONTROL: &str = "public, max-age=3600";

/// `GET /api/bundles/{id}`
///
/// # Errors
/// The bundle does not exist, or cannot be read.
pub async fn download(
    State(app): State<App>,
    Extension(grant): Extension<Grant>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    counted(&app, send(&app, grant.payer(), &id, &headers).await)
}

fn counted(app: &App, result: Result<Response, HttpError>) -> Result<Response, HttpError> {
    let label = match &result {
        Ok(_) => "sent",
        Err(HttpError::NoSuchBundle) => "not_found",
        Err(HttpError::Store(_)) => "store_failed",
        Err(_) => "refused",
    };
    app.metrics.bundles.downloads.with_label_values(&[label]).inc();
    result
}

/// Waits for a turn of `payer`, and unpacks a bundle on a thread that may block. Only a few run at
/// a time, so that storage has threads left.
///
/// # Errors
/// There is no turn within `http.body_idle_timeout`.
pub(super) async fn unpack<T: Send + 'static>(
    app: &App,
    payer: Payer,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HttpError> {
    let patience = app.config.borrow().http.body_idle_timeout.0;
    let turn =
        timeout(patience, app.bundles.unpacking.take(payer)).await.map_err(|_| HttpError::Busy)?;
    let (unpacked, _) =
        turn.run(work).await.map_err(|error| HttpError::Internal(error.to_string()))?;
    Ok(unpacked)
}

/// Finds a stored bundle. Imports its documents first, so that the client finds them by sync, or
/// returns why they are not imported.
async fn find(
    app: &App,
    id: &str,
    payer: Payer,
) -> Result<(DocumentId, StoredBundle, Option<Problem>), HttpError> {
    let id: DocumentId = id.parse()?;
    if app.documents.is_blocked(id) {
        return Err(HttpError::NoSuchBundle);
    }
    loop {
        let stored = app.bundles.store.get(id).await?.ok_or(HttpError::NoSuchBundle)?;
        match app.bundles.importer.state(id, &stored.etag).await? {
            ImportState::Imported => return Ok((id, stored, None)),
            ImportState::Failed(problem) => return Ok((id, stored, Some(problem))),
            // The documents that are stored can be synced.
            ImportState::New if app.documents.space().is_low() => return Ok((id, stored, None)),
            ImportState::New => {}
        }
        let bundles = app.config.borrow().bundles.clone();
        let max_inflated = MaxInflated::of(&app.config.borrow());
        let importing = async {
            let permit = app.bundles.importer.permit(payer.clone()).await?;
            let importing = app.bundles.importer.import_stored(permit, id, max_inflated);
            importing.await.map_err(|panic| HttpError::Internal(panic.to_string()))??;
            Ok::<_, HttpError>(())
        };
        // After the timeout the import continues.
        timeout(bundles.timeout.0, importing).await.map_err(|_| HttpError::Busy)??;
    }
}

async fn send(
    app: &App,
    payer: Payer,
    id: &str,
    headers: &HeaderMap,
) -> Result<Response, HttpError> {
    let (id, stored, _) = find(app, id, payer).await?;
    let content = Content {
        etag: stored.etag.clone(),
        kind: "application/octet-stream",
        file_name: Some(format!("{id}.tonk")),
        cache_control: CACHE_CONTROL,
        encoding: None,
        size: stored.size,
    };
    Ok(match content.answer(headers)? {
        Answer::Known(answer) => answer,
        Answer::Send(status, head, part) => {
            (status, head, Body::from_stream(stored.read(part).await?)).into_response()
        }
    })
}

/// `GET /api/bundles/{id}/manifest`: the slim form of an uploaded bundle.
///
/// # Errors
/// The bundle does not exist, or cannot be read.
pub async fn slim(
    State(app): State<App>,
    Extension(grant): Extension<Grant>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    counted(&app, send_slim(&app, grant.payer(), &id, &headers).await)
}

async fn send_slim(
    app: &App,
    payer: Payer,
    id: &str,
    headers: &HeaderMap,
) -> Result<Response, HttpError> {
    let (id, stored, problem) = find(app, id, payer.clone()).await?;
    match problem {
        None | Some(Problem::Partly) => {}
        Some(Problem::Broken(reason)) => return Err(HttpError::BrokenBundle(reason)),
        // The client could not find its files by sync.
        Some(Problem::Failed(reason)) => {
            let failure = Failure::new("import the bundle", id, reason);
            return Err(HttpError::Store(StorageError::Unavailable(failure)));
        }
    }
    let etag = stored.etag.replacen('"', "\"slim-", 1);
    let mut content = Content {
        etag: etag.clone(),
        kind: "application/zip",
        file_name: Some(format!("{id}.manifest.tonk")),
        cache_control: CACHE_CONTROL,
        encoding: None,
        size: 0,
    };
    if is_known(headers, &etag) {
        return content.send(headers, &Bytes::new());
    }
    let slim = match app.bundles.slim_cache.get(&etag) {
        Some(slim) => slim,
        None => {
            let max_inflated = MaxInflated::of(&app.config.borrow());
            let file = app.bundles.receiving.open(stored).await?;
            let make = move || Bundle::open(BufReader::new(file), max_inflated)?.slim();
            // It was verified when it was stored, so the store is to blame.
            let broken = |error| StorageError::Corrupt(Failure::new("read the bundle", id, error));
            let slim = unpack(app, payer, make).await?.map_err(broken)?;
            app.bundles.slim_cache.insert(etag, slim.clone());
            slim
        }
    };
    content.size = slim.len() as u64;
    content.send(headers, &slim)
}
