//! Downloads of uploaded bundles.

use std::{io, ops::RangeInclusive};

use axum::{
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use http_range_header::StartPosition;
use tokio::time::timeout;

use super::{App, error::HttpError, pages::is_known};
use crate::{
    bundle::{
        Bundle, MaxInflated,
        import::{Problem, Standing},
        store::StoredBundle,
    },
    document_id::DocumentId,
};

/// `GET /api/bundles/{id}`
///
/// # Errors
/// There is no such bundle, or it cannot be read.
pub async fn download(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    counted(&app, send(&app, &id, &headers).await)
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

/// Unpack a bundle on a thread that may block; few at a time, so that storage keeps its threads.
pub(super) async fn unpack<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HttpError> {
    let patience = app.config.borrow().http.body_idle_timeout.0;
    let place = timeout(patience, app.unpacking.clone().acquire_owned()).await;
    let place = place.map_err(|_| HttpError::Busy)?;
    let working = tokio::task::spawn_blocking(move || {
        // Kept until the work is done, also when nobody waits for it any more.
        let _place = place;
        work()
    });
    working.await.map_err(|error| HttpError::Internal(error.to_string()))
}

/// A stored bundle whose documents are imported, so that who fetches it finds them by sync; or why they are not.
async fn find(
    app: &App,
    id: &str,
) -> Result<(DocumentId, StoredBundle, Option<Problem>), HttpError> {
    let id: DocumentId = id.parse()?;
    if app.documents.is_blocked(id) {
        return Err(HttpError::NoSuchBundle);
    }
    loop {
        let stored = app.store.get(id).await?.ok_or(HttpError::NoSuchBundle)?;
        match app.importer.standing(id, &stored.etag).await? {
            Standing::Imported => return Ok((id, stored, None)),
            Standing::Failed(problem) => return Ok((id, stored, Some(problem))),
            // What is here is served.
            Standing::New if app.documents.space().is_low() => return Ok((id, stored, None)),
            Standing::New => {}
        }
        let bundles = app.config.borrow().bundles.clone();
        let max_inflated = MaxInflated::of(&app.config.borrow());
        let importing = async {
            let place = app.importer.place().await?;
            app.importer.import_stored(place, id, max_inflated).await?
        };
        // It goes on meanwhile.
        timeout(bundles.timeout.0, importing).await.map_err(|_| HttpError::Busy)??;
    }
}

async fn send(app: &App, id: &str, headers: &HeaderMap) -> Result<Response, HttpError> {
    let (id, stored, _) = find(app, id).await?;
    let mut answer = HeaderMap::new();
    let mut set = |name, value: String| {
        // Ids, ETags and numbers are always good header values.
        if let Ok(value) = value.parse() {
            answer.insert(name, value);
        }
    };
    set(header::ETAG, stored.etag.clone());
    set(header::CACHE_CONTROL, "public, max-age=3600".to_owned());
    set(header::ACCEPT_RANGES, "bytes".to_owned());
    if is_known(headers, &stored.etag) {
        return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
    }
    set(header::CONTENT_TYPE, "application/octet-stream".to_owned());
    set(header::CONTENT_DISPOSITION, format!("attachment; filename=\"{id}.tonk\""));
    let part = range(headers, &stored.etag, stored.size)?;
    let (status, length) = match &part {
        None => (StatusCode::OK, stored.size),
        Some(part) => {
            let shown = format!("bytes {}-{}/{}", part.start(), part.end(), stored.size);
            set(header::CONTENT_RANGE, shown);
            (StatusCode::PARTIAL_CONTENT, part.end() - part.start() + 1)
        }
    };
    set(header::CONTENT_LENGTH, length.to_string());
    let body = Body::from_stream(stored.read(part).await?);
    Ok((status, answer, body).into_response())
}

/// The part that is asked for; none for the whole. Several parts at once are answered with the whole,
/// as RFC 9110 (14.2) lets a server do.
fn range(
    headers: &HeaderMap,
    etag: &str,
    size: u64,
) -> Result<Option<RangeInclusive<u64>>, HttpError> {
    let Some(range) = headers.get(header::RANGE).and_then(|range| range.to_str().ok()) else {
        return Ok(None);
    };
    if headers.get(header::IF_RANGE).is_some_and(|known| known.as_bytes() != etag.as_bytes()) {
        return Ok(None);
    }
    if range.contains(',') {
        // The crate's check whether they overlap takes the square of their number.
        return Ok(None);
    }
    let Ok(parsed) = http_range_header::parse_range_header(range) else {
        return Ok(None);
    };
    let is_beyond = parsed.ranges.iter().all(|range| match range.start {
        StartPosition::Index(start) => start >= size,
        StartPosition::FromLast(last) => last == 0,
    });
    match parsed.validate(size) {
        Ok(mut parts) if parts.len() == 1 => Ok(parts.pop()),
        Err(_) if is_beyond => Err(HttpError::Range(size)),
        _ => Ok(None),
    }
}

/// `GET /api/bundles/{id}/manifest`: the slim form of an uploaded bundle.
///
/// # Errors
/// There is no such bundle, or it cannot be read.
pub async fn slim(
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    counted(&app, send_slim(&app, &id, &headers).await)
}

async fn send_slim(app: &App, id: &str, headers: &HeaderMap) -> Result<Response, HttpError> {
    let (id, stored, problem) = find(app, id).await?;
    match problem {
        None | Some(Problem::Partly) => {}
        Some(Problem::Broken(reason)) => return Err(HttpError::BrokenBundle(reason)),
        // Its files would not be found.
        Some(Problem::Failed(reason)) => return Err(HttpError::Store(io::Error::other(reason))),
    }
    let etag = stored.etag.replacen('"', "\"slim-", 1);
    let common =
        [(header::ETAG, etag.clone()), (header::CACHE_CONTROL, "public, max-age=3600".to_owned())];
    if is_known(headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, common).into_response());
    }
    let slim = match app.slims.get(&etag) {
        Some(slim) => slim,
        None => {
            let max_inflated = MaxInflated::of(&app.config.borrow());
            let file = app.receiving.open(stored).await?;
            let make = move || Bundle::open(io::BufReader::new(file), max_inflated)?.slim();
            // It was whole when it was stored.
            let broken = |error| HttpError::Store(io::Error::other(format!("{id}: {error}")));
            let slim = unpack(app, make).await?.map_err(broken)?;
            app.slims.keep(etag, slim.clone());
            slim
        }
    };
    let own = [
        (header::CONTENT_TYPE, "application/zip".to_owned()),
        (header::CONTENT_DISPOSITION, format!("attachment; filename=\"{id}.manifest.tonk\"")),
    ];
    Ok((common, own, slim).into_response())
}
