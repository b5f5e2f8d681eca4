//! What the admin socket answers about what is stored. The same router serves the commands when the relay does
//! not run: `cli::relay` then starts one for itself.

pub mod answers;

use std::{collections::BTreeMap, io, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tokio::sync::{mpsc, watch};

use self::answers::{
    Checkpoint, Deletion, Entry, ListedBundle, MadeBackup, Problem, Receipt, Selection, StorageId,
};
use crate::{
    bundle::{Bundle, BundleError, served::Served, store::BundleStore},
    config::Config,
    document_id::{BadDocumentId, DocumentId},
    storage::{
        ChunkStore, Key, StorageError,
        documents::{Documents, Merged},
        fsck,
        inspect::Inspection,
        journal::Journal,
        quarantine,
        tombstones::Tombstone,
    },
    sync::rooms::Rooms,
};

/// Lines that wait to be sent; who makes them waits for their place.
const LINES: usize = 64;

/// What is stored, for the operator's commands.
#[derive(Clone)]
pub struct Stored {
    /// Chunks.
    pub journal: Arc<Journal>,
    /// Documents.
    pub documents: Arc<Documents>,
    /// Uploaded bundles.
    pub uploads: Arc<dyn BundleStore>,
    /// The served bundle.
    pub served: Served,
    /// The live documents; none if the relay does not run.
    pub rooms: Option<Arc<Rooms>>,
    /// The config.
    pub config: watch::Receiver<Arc<Config>>,
}

/// A refusal, or a failure.
struct Failed(StatusCode, String);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { problem: self.1 })).into_response()
    }
}

impl From<StorageError> for Failed {
    fn from(error: StorageError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

impl From<BundleError> for Failed {
    fn from(error: BundleError) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }
}

impl From<BadDocumentId> for Failed {
    fn from(error: BadDocumentId) -> Self {
        Self(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<tokio::task::JoinError> for Failed {
    fn from(error: tokio::task::JoinError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

/// The routes.
pub fn router(stored: Stored) -> Router {
    Router::new()
        .route("/checkpoint", post(checkpoint))
        .route("/documents", get(documents))
        .route("/documents/{id}", get(document))
        .route("/documents/{id}/delete", post(delete))
        .route("/documents/{id}/content", get(content).post(merge))
        .route("/documents/{id}/undelete", post(undelete))
        .route("/deleted", get(deleted).post(bury))
        .route("/fsck", get(check).post(check_and_repair))
        .route("/quarantine", get(quarantined))
        .route("/quarantine/release", post(release))
        .route("/quarantine/purge", post(purge))
        .route("/bundles", get(bundles))
        .route("/bundles/{id}", get(bundle).put(put_bundle))
        .route("/bundles/{id}/manifest.json", get(manifest))
        .route("/storage-id", get(storage_id).put(put_storage_id))
        .route("/backups", post(note_backup))
        .route("/set-aside", post(set_aside))
        // Only who may read and write the files anyway reaches this.
        .layer(DefaultBodyLimit::disable())
        .with_state(stored)
}

/// Answer with a line of JSON for each thing that `work` tells, on a thread that may block.
fn lines<T: Serialize + Send + 'static>(
    work: impl FnOnce(&mut dyn FnMut(T) -> bool) + Send + 'static,
) -> Response {
    let (sender, receiver) = mpsc::channel::<String>(LINES);
    tokio::task::spawn_blocking(move || {
        work(&mut |line| {
            let mut text = serde_json::to_string(&line).unwrap_or_default();
            text.push('\n');
            sender.blocking_send(text).is_ok()
        });
    });
    let lines = futures::stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|line| (Ok::<_, io::Error>(line), receiver))
    });
    Body::from_stream(lines).into_response()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    tokio::task::spawn_blocking(work).await?
}

async fn checkpoint(State(stored): State<Stored>) -> Result<Response, Failed> {
    Ok(Json(Checkpoint { moved: stored.journal.checkpoint().await? }).into_response())
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
    match Inspection::of(&*journal, document).await? {
        Some(found) => Ok(Json(found).into_response()),
        None => Err(nothing_stored(document)),
    }
}

fn nothing_stored(document: DocumentId) -> Failed {
    Failed(StatusCode::NOT_FOUND, format!("{document}: nothing is stored of this document"))
}

/// A document's chunks, one after the other: an automerge save.
async fn content(State(stored): State<Stored>, Path(id): Path<String>) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    let chunks = stored.journal.load_document(document).await?;
    if chunks.is_empty() {
        return Err(nothing_stored(document));
    }
    let content: Vec<u8> = chunks.into_iter().flat_map(|(_, data)| data).collect();
    Ok(content.into_response())
}

#[derive(Deserialize)]
struct MergeQuery {
    #[serde(default)]
    dry_run: bool,
}

async fn merge(
    State(stored): State<Stored>,
    Path(id): Path<String>,
    Query(query): Query<MergeQuery>,
    data: Bytes,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    let merged = stored.documents.merge(document, data, query.dry_run).await?;
    let has_changed = matches!(merged, Merged::New | Merged::Newer) && !query.dry_run;
    if let (true, Some(rooms)) = (has_changed, &stored.rooms) {
        rooms.reopen(document);
    }
    Ok(Json(merged).into_response())
}

async fn delete(
    State(stored): State<Stored>,
    Path(id): Path<String>,
    Json(deletion): Json<Deletion>,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    // In a task: who asked may go away, and what was begun is finished.
    let deleting = tokio::spawn(delete_document(stored, document, deletion.reason));
    Ok(Json(deleting.await??).into_response())
}

async fn delete_document(
    stored: Stored,
    document: DocumentId,
    reason: Option<String>,
) -> Result<Receipt, Failed> {
    let tombstone = Tombstone::new(document, reason);
    let deleted = stored.journal.delete_document(document, tombstone.clone()).await;
    // Also where not all could be deleted: the tombstone may stand.
    if let Some(rooms) = &stored.rooms {
        rooms.reopen(document);
    }
    let deleted = deleted?;
    let bundle = stored.uploads.delete(document).await?;
    let held_by_bundles = holders(&stored, document).await?;
    let root = stored.journal.root().to_owned();
    let backups = blocking(move || Ok(backups(&root))).await?;
    Ok(Receipt {
        tombstone,
        chunks: deleted.chunks,
        bytes: deleted.bytes,
        bundle,
        held_by_bundles,
        backups,
    })
}

/// The bundles that hold a document. One that cannot be read is named with the reason.
async fn holders(stored: &Stored, document: DocumentId) -> Result<Vec<String>, Failed> {
    let mut holders = Vec::new();
    let served = stored.served.borrow().clone();
    if served.is_some_and(|bundle| bundle.documents.contains_key(&document)) {
        holders.push(format!("{} (served)", stored.config.borrow().bundle.path.display()));
    }
    let max_inflated = stored.config.borrow().bundles.max_inflated.0;
    for (id, _) in stored.uploads.list().await? {
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
    let journal = stored.journal.clone();
    if !blocking(move || Ok(journal.tombstones().remove(document)?)).await? {
        return Err(Failed(StatusCode::NOT_FOUND, format!("{document} was not deleted")));
    }
    if let Some(rooms) = &stored.rooms {
        rooms.reopen(document);
    }
    Ok(Json(()).into_response())
}

async fn deleted(State(stored): State<Stored>) -> Result<Response, Failed> {
    blocking(move || Ok(Json(stored.journal.tombstones().list()).into_response())).await
}

/// Take over a tombstone from a backup, unless the document is here.
async fn bury(
    State(stored): State<Stored>,
    Json(tombstone): Json<Tombstone>,
) -> Result<Response, Failed> {
    let document = tombstone.document;
    if !stored.journal.load_document(document).await?.is_empty() {
        return Ok(Json(false).into_response());
    }
    let journal = stored.journal.clone();
    blocking(move || Ok(journal.tombstones().add(document, &tombstone)?)).await?;
    if let Some(rooms) = &stored.rooms {
        rooms.reopen(document);
    }
    Ok(Json(true).into_response())
}

async fn check(State(stored): State<Stored>) -> Response {
    fsck(stored, false)
}

async fn check_and_repair(State(stored): State<Stored>) -> Response {
    fsck(stored, true)
}

fn fsck(stored: Stored, repair: bool) -> Response {
    let runtime = tokio::runtime::Handle::current();
    lines(move |tell| fsck::check_storage(&stored.journal, &runtime, repair, tell))
}

async fn quarantined(State(stored): State<Stored>) -> Result<Response, Failed> {
    blocking(move || Ok(Json(quarantine::list(stored.journal.root())?).into_response())).await
}

async fn release(
    State(stored): State<Stored>,
    Json(selection): Json<Selection>,
) -> Result<Response, Failed> {
    let rooms = stored.rooms.clone();
    let released = blocking(move || {
        let root = stored.journal.root();
        let release = |path: &String| quarantine::release(root, path);
        Ok(selection.paths.iter().map(release).collect::<Result<Vec<Key>, _>>()?)
    });
    let released = released.await?;
    for key in &released {
        if let (Key::Chunk { document, .. }, Some(rooms)) = (key, &rooms) {
            rooms.reopen(*document);
        }
    }
    Ok(Json(released.iter().map(ToString::to_string).collect::<Vec<_>>()).into_response())
}

async fn purge(
    State(stored): State<Stored>,
    Json(selection): Json<Selection>,
) -> Result<Response, Failed> {
    blocking(move || {
        let root = stored.journal.root();
        let mut purged = selection.paths;
        for path in &purged {
            quarantine::purge(root, path)?;
        }
        if let Some(seconds) = selection.older_than {
            let older = quarantine::purge_older(root, std::time::Duration::from_secs(seconds))?;
            purged.extend(older.into_iter().map(|entry| entry.path));
        }
        Ok(Json(purged).into_response())
    })
    .await
}

async fn bundles(State(stored): State<Stored>) -> Result<Response, Failed> {
    let list = stored.uploads.list().await?;
    let list = list.into_iter().map(|(id, etag)| ListedBundle { id, etag });
    Ok(Json(list.collect::<Vec<_>>()).into_response())
}

async fn bundle(State(stored): State<Stored>, Path(id): Path<String>) -> Result<Response, Failed> {
    let id: DocumentId = id.parse()?;
    let Some(bundle) = stored.uploads.get(id).await? else {
        return Err(Failed(StatusCode::NOT_FOUND, format!("{id}: no such bundle")));
    };
    Ok(Body::from_stream(bundle.read(None).await?).into_response())
}

/// Take a bundle from a backup, unless there is one of its id.
async fn put_bundle(
    State(stored): State<Stored>,
    Path(id): Path<String>,
    data: Bytes,
) -> Result<Response, Failed> {
    let id: DocumentId = id.parse()?;
    if stored.documents.is_deleted(id) || stored.uploads.get(id).await?.is_some() {
        return Ok(Json(false).into_response());
    }
    let file = stored.uploads.receive()?;
    let max_inflated = stored.config.borrow().bundles.max_inflated.0;
    let write = move || -> Result<NamedTempFile, Failed> {
        std::fs::write(file.path(), &data)?;
        let mut bundle = Bundle::open(io::Cursor::new(data), max_inflated)?;
        bundle.verify()?;
        if bundle.manifest().root != id {
            let text = format!("the bundle of {id} has another root: {}", bundle.manifest().root);
            return Err(Failed(StatusCode::UNPROCESSABLE_ENTITY, text));
        }
        Ok(file)
    };
    let file = blocking(write).await?;
    let keep = stored.config.borrow().bundles.keep;
    stored.uploads.put(id, file, keep).await?;
    Ok(Json(true).into_response())
}

/// The manifest of the uploaded or the served bundle of that root.
async fn manifest(
    State(stored): State<Stored>,
    Path(id): Path<String>,
) -> Result<Response, Failed> {
    let id: DocumentId = id.parse()?;
    let max_inflated = stored.config.borrow().bundles.max_inflated.0;
    let uploaded = match stored.uploads.get(id).await? {
        Some(uploaded) => Some(uploaded.into_file().await?),
        None => None,
    };
    let served = stored.served.borrow().clone();
    blocking(move || {
        if let Some(uploaded) = uploaded {
            let bundle = Bundle::open(io::BufReader::new(uploaded), max_inflated)?;
            return Ok(bundle.manifest_json().to_vec().into_response());
        }
        if let Some(served) = served {
            let bundle = Bundle::open(io::Cursor::new(served.file.clone()), max_inflated)?;
            if bundle.manifest().root == id {
                return Ok(bundle.manifest_json().to_vec().into_response());
            }
        }
        Err(Failed(StatusCode::NOT_FOUND, format!("no bundle of {id} is here")))
    })
    .await
}

async fn read_storage_id(stored: &Stored) -> Result<Option<String>, Failed> {
    let id = stored.journal.load(&Key::StorageId).await?;
    Ok(id.and_then(|id| String::from_utf8(id).ok()).map(|id| id.trim().to_owned()))
}

async fn storage_id(State(stored): State<Stored>) -> Result<Response, Failed> {
    let storage_id = read_storage_id(&stored).await?;
    Ok(Json(StorageId { storage_id }).into_response())
}

/// Adopt a storage id, unless there is one.
async fn put_storage_id(
    State(stored): State<Stored>,
    Json(new): Json<StorageId>,
) -> Result<Response, Failed> {
    let here = read_storage_id(&stored).await?;
    let Some(new) = new.storage_id.filter(|_| here.is_none()) else {
        return Ok(Json(false).into_response());
    };
    stored.journal.put(&Key::StorageId, new.into()).await?;
    Ok(Json(true).into_response())
}

const BACKUPS: &str = ".backups";

/// The folders that backups went to.
fn backups(root: &std::path::Path) -> Vec<String> {
    let noted = std::fs::read(root.join(BACKUPS)).unwrap_or_default();
    let noted: BTreeMap<String, String> = serde_json::from_slice(&noted).unwrap_or_default();
    noted.into_iter().map(|(folder, at)| format!("{folder} (of {at})")).collect()
}

async fn note_backup(
    State(stored): State<Stored>,
    Json(made): Json<MadeBackup>,
) -> Result<Response, Failed> {
    blocking(move || {
        let path = stored.journal.root().join(BACKUPS);
        let noted = std::fs::read(&path).unwrap_or_default();
        let mut noted: BTreeMap<String, String> =
            serde_json::from_slice(&noted).unwrap_or_default();
        noted.insert(made.folder, made.at);
        std::fs::write(&path, serde_json::to_vec(&noted).unwrap_or_default())?;
        Ok(Json(()).into_response())
    })
    .await
}

/// Make room for a backup that replaces all: what is here is moved aside.
async fn set_aside(State(stored): State<Stored>) -> Result<Response, Failed> {
    if stored.rooms.is_some() {
        let text = "the relay runs: stop it, to replace what it stores".to_owned();
        return Err(Failed(StatusCode::CONFLICT, text));
    }
    let name =
        format!(".replaced-{}", humantime::format_rfc3339_seconds(std::time::SystemTime::now()));
    let aside = stored.journal.set_aside(&name).await?;
    stored.uploads.set_aside(&name).await?;
    Ok(Json(aside.display().to_string()).into_response())
}
