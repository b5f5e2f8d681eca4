//! What the admin socket answers about what is stored. The same router serves the commands when the relay does
//! not run: `cli::relay` then starts one for itself.

pub mod answers;

use std::{io, path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tracing::info;

use self::answers::{
    Brought, Buried, Checkpoint, Done, Entry, ListedBundle, Problem, Reason, Receipt, Replaced,
    Selection, StorageId,
};
use crate::{
    base::document_id::{BadDocumentId, DocumentId},
    bundle::{
        self, Bundle, BundleError, MaxInflated,
        served::Served,
        store::{BundleStore, Received},
    },
    config::Config,
    document::{chunk::Key, compare::Merged},
    storage::{
        ChunkStore, StorageError,
        documents::{Documents, MergeSource},
        fsck,
        inspect::Inspection,
        local::{
            backups::{self, Backup},
            blocked::Block,
            imported,
            journal::Journal,
            quarantine,
            replacing::{self, Source},
            tombstones::Tombstone,
        },
    },
    sync::rooms::Rooms,
};

/// Lines that wait to be sent; who makes them waits for their place.
const LINES: usize = 64;
/// Documents that are merged at a time; what they write becomes durable together.
const MERGED_AT_ONCE: usize = 64;

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
pub(super) struct Failed(pub(super) StatusCode, pub(super) String);

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
        .route("/documents", get(documents).post(merge))
        .route("/documents/{id}", get(document))
        .route("/documents/{id}/delete", post(delete))
        .route("/documents/{id}/content", get(content))
        .route("/documents/{id}/undelete", post(undelete))
        .route("/documents/{id}/block", post(block))
        .route("/documents/{id}/unblock", post(unblock))
        .route("/blocked", get(blocked))
        .route("/deleted", get(deleted).post(import_tombstone))
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
        .route("/restored", post(restored))
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
    let content = answers::Content { data: found.data, broken };
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
    let merged =
        stored.documents.merge(document, data.into(), MergeSource::Operator, dry_run).await?;
    let has_changed = matches!(merged, Merged::New | Merged::Newer) && !dry_run;
    if let (true, Some(rooms)) = (has_changed, &stored.rooms) {
        rooms.reopen(document);
    }
    Ok(merged)
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
    let mut kept = replacing::replaced(root);
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
    blocking(move || Ok(imported::forget(&root)?)).await?;
    info!(%document, "an operator lets a deleted document be brought again");
    Ok(Json(()).into_response())
}

/// Keep a document from everybody. What is stored of it stays.
async fn block(
    State(stored): State<Stored>,
    Path(id): Path<String>,
    Json(Reason { reason }): Json<Reason>,
) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    // At once, also on a disk that is full or hangs.
    stored.journal.blocked().hold(document);
    info!(%document, reason, "an operator blocked a document");
    marks_changed(&stored, document);
    // In a task: who asked may go away, and what was begun is finished.
    let noting = tokio::task::spawn_blocking(move || {
        let blocked = stored.journal.blocked();
        let earlier = blocked.get(document).filter(|_| reason.is_none());
        let block = earlier.unwrap_or_else(|| Block::new(document, reason));
        let noted = blocked.add(document, &block);
        noted.map(|()| block)
    });
    match noting.await? {
        Ok(block) => Ok(Json(block).into_response()),
        Err(error) => {
            let text = format!("{document} is blocked until the relay stops: {error}");
            Err(Failed(StatusCode::INTERNAL_SERVER_ERROR, text))
        }
    }
}

async fn unblock(State(stored): State<Stored>, Path(id): Path<String>) -> Result<Response, Failed> {
    let document: DocumentId = id.parse()?;
    // In a task, as above.
    let unblocking = tokio::spawn(async move {
        let journal = stored.journal.clone();
        if !blocking(move || Ok(journal.blocked().remove(document)?)).await? {
            return Err(Failed(StatusCode::NOT_FOUND, format!("{document} was not blocked")));
        }
        info!(%document, "an operator unblocked a document");
        marks_changed(&stored, document);
        Ok(Json(()).into_response())
    });
    unblocking.await?
}

fn marks_changed(stored: &Stored, document: DocumentId) {
    stored.journal.update_blocked_gauge();
    if let Some(rooms) = &stored.rooms {
        rooms.reopen(document);
    }
}

async fn blocked(State(stored): State<Stored>) -> Result<Response, Failed> {
    let list = move || {
        let blocked = stored.journal.blocked();
        let all = blocked.ids().into_iter().map(|document| Block::of(blocked, document));
        Ok(Json(all.collect::<Vec<_>>()).into_response())
    };
    blocking(list).await
}

async fn deleted(State(stored): State<Stored>) -> Result<Response, Failed> {
    blocking(move || Ok(Json(stored.journal.tombstones().list()).into_response())).await
}

/// Take over a tombstone from a backup, unless the document is here, or a bundle of it.
async fn import_tombstone(
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

async fn check(State(stored): State<Stored>) -> Response {
    fsck(stored, false)
}

async fn check_and_repair(State(stored): State<Stored>) -> Response {
    fsck(stored, true)
}

fn fsck(stored: Stored, repair: bool) -> Response {
    let runtime = tokio::runtime::Handle::current();
    let max_inflated = MaxInflated::of(&stored.config.borrow());
    if repair {
        info!("an operator's check moves what is broken into quarantine");
    }
    lines(move |tell| {
        let (journal, uploads) = (&stored.journal, &*stored.uploads);
        fsck::check_storage(journal, &runtime, repair, tell, |check| {
            bundle::fsck::check_uploads(check, uploads, max_inflated, &runtime)
        });
    })
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
            paths.extend(quarantine::older(root, std::time::Duration::from_secs(seconds))?);
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
    let file = stored.uploads.receive().await?;
    let max_inflated = MaxInflated::of(&stored.config.borrow());
    let file = blocking(move || write_verified(file, id, data, max_inflated)).await?;
    let keep = stored.config.borrow().bundles.keep;
    stored.uploads.put(id, file, keep).await?;
    Ok(Json(true).into_response())
}

/// Write a bundle to the file that receives it, if it is the one of that id.
#[expect(clippy::disallowed_methods, reason = "runs on a thread that may block")]
fn write_verified(
    file: Received,
    id: DocumentId,
    data: Bytes,
    max_inflated: MaxInflated,
) -> Result<Received, Failed> {
    std::fs::write(file.path(), &data)?;
    let mut bundle = Bundle::open(io::Cursor::new(data), max_inflated)?;
    bundle.verify()?;
    if bundle.manifest().root != id {
        let text = format!("the bundle of {id} has another root: {}", bundle.manifest().root);
        return Err(Failed(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    Ok(file)
}

/// The manifest of the uploaded or the served bundle of that root.
async fn manifest(
    State(stored): State<Stored>,
    Path(id): Path<String>,
) -> Result<Response, Failed> {
    let id: DocumentId = id.parse()?;
    let max_inflated = MaxInflated::of(&stored.config.borrow());
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
    let id = stored.journal.load_storage_id().await?;
    Ok(id.and_then(|id| String::from_utf8(id).ok()).map(|id| id.trim().to_owned()))
}

async fn storage_id(State(stored): State<Stored>) -> Result<Response, Failed> {
    let storage_id = read_storage_id(&stored).await?;
    Ok(Json(StorageId { storage_id }).into_response())
}

/// Adopt a storage id, unless there is one; without one to adopt, a new one is made.
async fn put_storage_id(
    State(stored): State<Stored>,
    Json(new): Json<StorageId>,
) -> Result<Response, Failed> {
    let here = read_storage_id(&stored).await?;
    let Some(new) = new.storage_id.filter(|_| here.is_none()) else {
        stored.documents.storage_id().await?;
        return Ok(Json(false).into_response());
    };
    // Clients keep it as a text beside what they know of the relay: a UUID, or a word like one.
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if new.is_empty() || new.len() > 64 || !new.bytes().all(is_word) {
        let text = "the storage id is to be a UUID".to_owned();
        return Err(Failed(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    info!(storage_id = new, "a storage id is taken over");
    stored.journal.put(&Key::StorageId, new.into()).await?;
    Ok(Json(true).into_response())
}

async fn note_backup(
    State(stored): State<Stored>,
    Json(made): Json<Backup>,
) -> Result<Response, Failed> {
    let is_whole = made.whole_at.is_some();
    info!(folder = made.folder, is_whole, "an operator's backup");
    blocking(move || {
        backups::note(stored.journal.root(), made)?;
        Ok(Json(()).into_response())
    })
    .await
}

/// Make room for a backup that replaces all: what is here is moved aside.
async fn set_aside(
    State(stored): State<Stored>,
    Json(backup): Json<Source>,
) -> Result<Response, Failed> {
    if stored.rooms.is_some() {
        let text = "the relay runs: stop it, to replace what it stores".to_owned();
        return Err(Failed(StatusCode::CONFLICT, text));
    }
    let root = stored.journal.root().to_owned();
    let at = root.clone();
    let mut replacing = blocking(move || Ok(replacing::begin(&at, backup)?)).await?;
    let is_resumed = replacing.is_moved;
    if !is_resumed {
        stored.journal.move_aside(replacing.folder()).await?;
        stored.uploads.set_aside(replacing.folder()).await?;
        let at = root.clone();
        replacing = blocking(move || {
            replacing::moved(&at, &mut replacing)?;
            Ok(replacing)
        })
        .await?;
    }
    let bundles_path = stored.config.borrow().bundles.path.clone();
    let first = replacing.folders.first().cloned().unwrap_or_default();
    let bundles = bundles_path.join(&first);
    let is_there = tokio::fs::try_exists(&bundles).await.unwrap_or(false);
    let interrupted = replacing.folders.iter().skip(1).map(|name| root.join(name)).collect();
    Ok(Json(Replaced {
        documents: root.join(first),
        bundles: is_there.then_some(bundles),
        is_resumed,
        interrupted,
    })
    .into_response())
}

/// All of a backup that replaces what was stored is there.
async fn restored(State(stored): State<Stored>) -> Result<Response, Failed> {
    blocking(move || {
        replacing::end(stored.journal.root())?;
        Ok(Json(()).into_response())
    })
    .await
}
