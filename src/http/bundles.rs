//! Uploads and downloads of bundles.

use std::{
    io,
    ops::RangeInclusive,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Json,
    body::{Body, BodyDataStream},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use http_range_header::StartPosition;
use serde_json::json;
use tokio::{
    io::{AsyncWriteExt, BufWriter},
    task::JoinError,
    time::timeout,
};
use tracing::info;

use super::{App, error::HttpError, pages::is_known, sign_in::RequestClient};
use crate::{
    auth::{Access, scopes::Rights},
    bundle::{
        Bundle, BundleError, MaxInflated,
        import::{ImportError, Imported, Problem, Standing},
        store::{Received, StoredBundle},
    },
    config,
    document_id::DocumentId,
    limits::Account,
};

/// How long the rest of a refused upload is read.
const LINGER: Duration = Duration::from_secs(10);

/// `POST /api/bundles`: the body goes to a file aside, is verified as a whole, and only then is visible.
///
/// # Errors
/// It is no bundle, too large, too slow, or cannot be stored.
pub async fn upload(
    State(app): State<App>,
    Extension(uploader): Extension<Access>,
    Extension(RequestClient(client)): Extension<RequestClient>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let mut body = body.into_data_stream();
    let uploader = Uploader { account: uploader.account(client.address), rights: uploader.rights };
    let result = receive(&app, &uploader, &headers, &mut body).await;
    if result.is_err() {
        tokio::spawn(linger(body));
    }
    let label = match &result {
        Ok(_) => "stored",
        Err(HttpError::Store(_)) => "store_failed",
        Err(HttpError::TooLarge(_)) => "too_large",
        Err(HttpError::Slow(_) | HttpError::Trickle(_)) => "slow",
        Err(HttpError::NoSpace) => "no_space",
        Err(_) => "refused",
    };
    app.metrics.bundles.uploads.with_label_values(&[label]).inc();
    let (id, imported) = result?;
    let answer = json!({
        "id": id.to_string(),
        "message": "Bundle uploaded successfully",
        // None while it goes on.
        "imported": imported,
    });
    Ok(Json(answer).into_response())
}

/// Who uploads a bundle.
struct Uploader {
    account: Account,
    rights: Arc<Rights>,
}

async fn receive(
    app: &App,
    uploader: &Uploader,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<(DocumentId, Option<Imported>), HttpError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map(str::trim);
    if !kind.is_some_and(|kind| kind.eq_ignore_ascii_case("application/octet-stream")) {
        return Err(HttpError::BundleData);
    }
    if app.documents.space().is_low() {
        return Err(HttpError::NoSpace);
    }
    let config = app.config.borrow().clone();
    let max_upload = config.bundles.max_upload.0;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    if announced.and_then(|length| length.parse::<u64>().ok()).is_some_and(|n| n > max_upload) {
        return Err(HttpError::TooLarge(max_upload));
    }
    let file = app.store.receive().await?;
    let size = write(body, &file, max_upload, &config.http).await?;
    if size == 0 {
        return Err(HttpError::BundleData);
    }
    let max_inflated = MaxInflated::of(&config);
    let reader = io::BufReader::new(file.open().await?);
    let verify = move || -> Result<_, BundleError> {
        let mut bundle = Bundle::open(reader, max_inflated)?;
        bundle.verify()?;
        Ok((bundle.manifest().root, bundle.documents()))
    };
    let (id, documents) = unpack(app, verify).await??;
    // The root names the bundle, whether or not it is in it.
    let mut named = documents.iter().chain([&id]);
    if let Some(document) = named.find(|document| !uploader.rights.may_write(**document)) {
        return Err(HttpError::NoRight(*document));
    }
    let (account, limits) = (&uploader.account, &config.limits);
    if app.documents.is_deleted(id) {
        return Err(HttpError::Deleted);
    }
    // All of them, until it is known which were here before.
    let most = documents.len() as u64;
    if !app.principals.may_create(account, most, limits) {
        return Err(HttpError::NewDocuments);
    }
    if !app.principals.may_store(account, size, limits) {
        app.principals.were_known(account, most);
        return Err(HttpError::StoredBytes);
    }
    let patience = config.bundles.timeout.0;
    let place = timeout(patience, app.importer.place()).await.map_err(|_| HttpError::Busy)??;
    match app.importer.check(file.open().await?, max_inflated).await {
        Ok(()) => {}
        Err(ImportError::Broken(error)) => {
            app.principals.were_known(account, most);
            return Err(error.into());
        }
        Err(ImportError::Io(error)) => return Err(error.into()),
    }
    let content = file.open().await?;
    let etag = app.store.put(id, file, config.bundles.keep).await?;
    if app.documents.is_deleted(id) {
        // Deleted while it was being stored.
        app.store.delete(id).await?;
        return Err(HttpError::Deleted);
    }
    info!(bundle = %id, bytes = size, "stored an uploaded bundle");
    let importing = app.importer.import(place, id, etag, content, max_inflated);
    match timeout(patience, importing).await {
        // It goes on, and whoever fetches the bundle waits for it.
        Err(_) => Ok((id, None)),
        Ok(imported) => {
            let imported = import_ended(imported)?;
            app.principals.were_known(account, most.saturating_sub(imported.new as u64));
            Ok((id, Some(imported)))
        }
    }
}

/// Unpack a bundle on a thread that may block; few at a time, so that storage keeps its threads.
async fn unpack<T: Send + 'static>(
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

async fn write(
    chunks: &mut BodyDataStream,
    file: &Received,
    max_upload: u64,
    config: &config::Http,
) -> Result<u64, HttpError> {
    let (idle, began) = (config.body_idle_timeout.0, Instant::now());
    let file = tokio::fs::OpenOptions::new().write(true).open(file.path()).await?;
    let mut out = BufWriter::new(file);
    let mut size = 0;
    loop {
        let chunk = match timeout(idle, chunks.next()).await {
            Err(_) => return Err(HttpError::Slow(idle)),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(HttpError::Body(error.to_string())),
            Ok(Some(Ok(chunk))) => chunk,
        };
        size += chunk.len() as u64;
        if size > max_upload {
            return Err(HttpError::TooLarge(max_upload));
        }
        let lasted = began.elapsed();
        if lasted > idle && size < config.body_min_rate.0 * lasted.as_secs() {
            return Err(HttpError::Trickle(config.body_min_rate));
        }
        out.write_all(&chunk).await?;
    }
    out.flush().await?;
    Ok(size)
}

/// Read the rest of an upload that is refused, for a while: a socket that is closed with unread bytes is reset, and its
/// client, or the proxy before it, may then never read why.
async fn linger(mut rest: BodyDataStream) {
    let reading = async { while let Some(Ok(_)) = rest.next().await {} };
    // Who sends for longer than that is cut off.
    let _ = timeout(LINGER, reading).await;
}

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

/// What became of an import.
fn import_ended<T>(ended: Result<Result<T, ImportError>, JoinError>) -> Result<T, HttpError> {
    match ended {
        Ok(Ok(imported)) => Ok(imported),
        Ok(Err(ImportError::Broken(error))) => Err(HttpError::BrokenBundle(error.to_string())),
        Ok(Err(ImportError::Io(error))) => Err(HttpError::Store(error)),
        Err(panic) => Err(HttpError::Internal(panic.to_string())),
    }
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
            let file = stored.into_file().await?;
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
