//! Uploads of bundles. They are received in a temporary file, verified, and only then stored.
//!
//! What an upload uses is reserved as it grows, and released if it fails for any reason: disk space
//! by [`Reservation`], quota by [`Charge`], turns and imports by permits. [`body`] receives it.

mod body;

use self::body::{Coding, Spool};
use super::{bundles::unpack, error::HttpError, grant::Grant, state::App};
use crate::{
    base::document_id::DocumentId,
    bundle::{
        Bundle, BundleError, MaxInflated,
        disk_budget::{NoRoom, Reservation, ReservedFile},
        import::{ImportError, ImportPermit, Imported},
        store::ReceivedFile,
    },
    config::StoreKind,
    limits::{Charge, turns::Payer},
    storage::StorageError,
};
use axum::{
    Extension, Json,
    body::{Body, BodyDataStream},
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use serde_json::json;
use std::{io::BufReader, sync::Arc, time::Duration};
use tokio::{
    task::{JoinError, JoinHandle},
    time::timeout,
};
use tracing::info;

/// How long one turn of unpacking takes before others have theirs.
const VERIFY_SLICE: Duration = Duration::from_millis(50);
/// The longest part of a wrong Content-Type that the answer names, in characters.
const MAX_SHOWN_TYPE: usize = 80;
/// How long the rest of a refused upload is read and dropped.
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);

/// `POST /api/bundles`
///
/// # Errors
/// The body is not a bundle, is too large or too slow, or cannot be stored.
pub async fn upload(
    State(app): State<App>,
    Extension(mut grant): Extension<Grant>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let mut body = body.into_data_stream();
    let result = receive(&app, &mut grant, &headers, &mut body).await;
    if result.is_err() {
        app.unfinished.spawn(linger(body));
    }
    let label = match &result {
        Ok(_) => "stored",
        Err(HttpError::Store(_)) => "store_failed",
        Err(HttpError::TooLarge(_)) => "too_large",
        Err(HttpError::Slow(_) | HttpError::Trickle(_)) => "slow",
        Err(HttpError::NoRoom(NoRoom::Disk)) => "no_space",
        Err(HttpError::NoRoom(_)) => "receiving",
        Err(_) => "refused",
    };
    app.metrics.bundles.uploads.with_label_values(&[label]).inc();
    let (id, imported) = result?;
    let answer = json!({
        "id": id.to_string(),
        "message": "Bundle uploaded successfully",
        // `None` while the import continues.
        "imported": imported,
    });
    Ok(Json(answer).into_response())
}

/// A received bundle, with what is reserved for it.
struct Upload {
    file: ReceivedFile,
    size: u64,
    reservation: Arc<Reservation>,
    charge: Charge,
}

impl Upload {
    async fn open(&self) -> Result<ReservedFile, StorageError> {
        Ok(ReservedFile::new(self.file.open().await?, &self.reservation))
    }
}

async fn receive(
    app: &App,
    grant: &mut Grant,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<(DocumentId, Option<Imported>), HttpError> {
    let config = app.config.borrow().clone();
    if config.bundles.store == StoreKind::None {
        return Err(HttpError::NoUploads);
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).map_or("none", str::trim);
    if !kind.eq_ignore_ascii_case("application/octet-stream") {
        return Err(HttpError::ContentType(kind.chars().take(MAX_SHOWN_TYPE).collect()));
    }
    let coding = Coding::of(headers)?;
    if app.documents.space().is_low() {
        return Err(NoRoom::Disk.into());
    }
    let max_upload = config.bundles.max_upload.0;
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let announced = announced.and_then(|length| length.parse::<u64>().ok());
    if coding == Coding::Identity && announced.is_some_and(|bytes| bytes > max_upload) {
        return Err(HttpError::TooLarge(max_upload));
    }
    let file = app.bundles.store.receive().await?;
    let address = grant.client().address;
    let reservation = app.bundles.receiving.begin(address);
    let charge = app.sync.quotas.charge(grant.access().account(address));
    let turns = (app.bundles.unpacking.clone(), grant.payer());
    let spool = Spool::create(&file, coding, turns, reservation, charge, &config).await?;
    let spooled = body::receive(body, spool, grant, &config).await?;
    let (size, charge) = (spooled.size, spooled.charge);
    if size == 0 {
        return Err(HttpError::EmptyBody);
    }
    let reservation = Arc::new(spooled.reservation);
    let mut upload = Upload { file, size, reservation, charge };
    let max_inflated = MaxInflated::of(&config);
    let reader = BufReader::new(upload.open().await?);
    let (id, documents) = verify(app, &grant.payer(), reader, max_inflated).await?;
    check_rights(grant, id, &documents)?;
    if app.documents.is_deleted(id) {
        return Err(HttpError::Deleted);
    }
    // All of them are charged until it is known which are new.
    if !upload.charge.documents(documents.len() as u64, &config.limits) {
        return Err(HttpError::NewDocuments);
    }
    let patience = config.bundles.timeout.0;
    let permit = timeout(patience, app.bundles.importer.permit(grant.payer()))
        .await
        .map_err(|_| HttpError::Busy)??;
    app.bundles.importer.check(&permit, id, upload.open().await?, max_inflated).await?;
    // Time has passed since the first check.
    check_rights(grant, id, &documents)?;
    // What is stored is charged and imported even if the client disconnects.
    let storing = app.unfinished.spawn(store(app.clone(), id, upload, permit, config.bundles.keep));
    let importing = storing.await.map_err(|panic| HttpError::Internal(panic.to_string()))??;
    match timeout(patience, importing).await {
        // The import continues, and a download of the bundle waits for it.
        Err(_) => Ok((id, None)),
        Ok(imported) => import_ended(imported).map(|imported| (id, Some(imported))),
    }
}

/// Reads all documents of a bundle, in several turns. Returns the bundle's id and those of its
/// documents.
async fn verify(
    app: &App,
    payer: &Payer,
    reader: BufReader<ReservedFile>,
    max_inflated: MaxInflated,
) -> Result<(DocumentId, Vec<DocumentId>), HttpError> {
    let open = move || Bundle::open(reader, max_inflated);
    let mut bundle = unpack(app, payer.clone(), open).await??;
    let (root, documents) = (bundle.manifest().root, bundle.documents());
    let mut left = documents.clone().into_iter();
    while !left.as_slice().is_empty() {
        let verify = move || -> Result<_, BundleError> {
            bundle.verify_some(&mut left, VERIFY_SLICE)?;
            Ok((bundle, left))
        };
        (bundle, left) = unpack(app, payer.clone(), verify).await??;
    }
    Ok((root, documents))
}

/// Checks that the client may still upload a bundle of these documents, and of its root, which may
/// be missing in it.
fn check_rights(
    grant: &mut Grant,
    root: DocumentId,
    documents: &[DocumentId],
) -> Result<(), HttpError> {
    let rights = &grant.renew()?.rights;
    let mut named = documents.iter().chain([&root]);
    match named.find(|document| !rights.may_write(**document)) {
        Some(document) => Err(HttpError::NoRight(*document)),
        None => Ok(()),
    }
}

/// The task that imports a stored bundle.
type Importing = JoinHandle<Result<Result<Imported, ImportError>, JoinError>>;

/// Stores a verified bundle and begins its import.
async fn store(
    app: App,
    id: DocumentId,
    upload: Upload,
    permit: ImportPermit,
    keep: usize,
) -> Result<Importing, HttpError> {
    let content = upload.open().await?;
    let Upload { file, size, mut charge, .. } = upload;
    let etag = app.bundles.store.put(id, file, keep).await?;
    if app.documents.is_deleted(id) {
        // Deleted while it was being stored.
        app.bundles.store.delete(id).await?;
        return Err(HttpError::Deleted);
    }
    charge.keep_bytes();
    info!(bundle = %id, bytes = size, "stored an uploaded bundle");
    let max_inflated = MaxInflated::of(&app.config.borrow());
    let importing = app.bundles.importer.import(permit, id, etag, content, max_inflated);
    Ok(app.unfinished.spawn(async move {
        let imported = importing.await;
        if let Ok(Ok(imported)) = &imported {
            charge.keep_documents(imported.new as u64);
        }
        imported
    }))
}

/// Returns the result of an import.
fn import_ended(
    ended: Result<Result<Result<Imported, ImportError>, JoinError>, JoinError>,
) -> Result<Imported, HttpError> {
    match ended.and_then(|ended| ended) {
        Ok(Ok(imported)) => Ok(imported),
        Ok(Err(ImportError::Broken(error))) => Err(HttpError::BrokenBundle(error.to_string())),
        Ok(Err(error)) => Err(error.into()),
        Err(panic) => Err(HttpError::Internal(panic.to_string())),
    }
}

/// Reads the rest of a refused upload for some time. A socket that is closed with unread bytes is
/// reset, and the client, or the proxy in front of it, might never read the reason.
async fn linger(mut rest: BodyDataStream) {
    let reading = async { while let Some(Ok(_)) = rest.next().await {} };
    // A client that sends for longer is cut off.
    let _ = timeout(LINGER_TIMEOUT, reading).await;
}
