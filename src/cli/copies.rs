//! Copies of what is stored: `backup` and `restore`, `import` from other relays, `export` as a bundle.
//!
//! A backup is a folder: `backup.json`, `documents` in automerge-repo's layout with one file a document, named
//! by the SHA-256 of what is in it, `bundles`, and `deleted` with the tombstones.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use automerge::{Automerge, ObjId, ObjType, ROOT, ReadDoc, ScalarValueRef, ValueRef};
use bytes::Bytes;
use clap::Args;
use hyper::Method;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    CliError, document_id, print,
    progress::Progress,
    relay::Relay,
    storage::{StorageArguments, print_json},
};
use crate::{
    admin::{
        client::{self, AdminError},
        storage::{Entry, ListedBundle, MadeBackup, StorageId},
    },
    bundle::{self, Bundle},
    document_id::DocumentId,
    storage::{
        documents::{self, Merged, hex},
        fsck::{self, Finding, Kind, Line},
        tombstones::Tombstone,
        walk::{self, Found, Listed},
    },
};

/// The format of a backup, in its `backup.json`.
const FORMAT: u32 = 1;
const INDEX: &str = "backup.json";

/// `tonk-relay backup`
#[derive(Debug, Args)]
pub(super) struct BackupArguments {
    /// The folder of the backup: a new one, or an earlier backup, which is brought up to date
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    storage: StorageArguments,
}

/// `tonk-relay restore`
#[derive(Debug, Args)]
pub(super) struct RestoreArguments {
    /// The folder of the backup
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Move what is stored now aside first, with the relay stopped; without this, the backup is merged with it
    #[arg(long)]
    replace: bool,
    /// Leave out the backup's storage id: for a copy, beside a relay that goes on
    #[arg(long)]
    new_identity: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

/// `tonk-relay import`
#[derive(Debug, Args)]
pub(super) struct ImportArguments {
    /// The storage folder of a TypeScript relay or an automerge-repo sync server, which must be stopped
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

/// `tonk-relay export`
#[derive(Debug, Args)]
pub(super) struct ExportArguments {
    /// The app's root document
    #[arg(value_name = "ROOT_ID", value_parser = document_id)]
    root: DocumentId,
    /// The bundle to write
    #[arg(value_name = "FILE.tonk")]
    file: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    storage: StorageArguments,
}

/// What `backup.json` says.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Backup {
    format: u32,
    /// The tonk-relay that made it.
    version: String,
    storage_id: Option<String>,
    /// When it was begun, in RFC 3339.
    made_at: String,
    /// False while it is being made.
    is_complete: bool,
    documents: BTreeMap<String, Copied>,
    /// ETags of the uploaded bundles, by id.
    bundles: BTreeMap<String, String>,
}

/// A document in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Copied {
    /// What the relay's listing said of it when it was copied.
    fingerprint: String,
    sha256: String,
    bytes: u64,
}

fn at(path: &Path) -> impl Fn(io::Error) -> CliError {
    let path = path.to_owned();
    move |source| CliError::Io { path: path.clone(), source }
}

fn says(path: &Path, problem: impl ToString) -> CliError {
    CliError::Copy { path: path.to_owned(), problem: problem.to_string() }
}

/// Write a file as a whole or not at all.
fn write_file(path: &Path, data: &[u8]) -> Result<(), CliError> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(at(folder))?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(at(path))?;
    file.write_all(data).map_err(at(path))?;
    file.as_file().sync_data().map_err(at(path))?;
    file.persist(path).map_err(|error| at(path)(error.error))?;
    Ok(())
}

fn remove(path: &Path) -> Result<(), CliError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// The folder of a document's snapshots in a backup.
fn snapshots(backup: &Path, document: &str) -> PathBuf {
    let (first, rest) = document.split_at_checked(2).unwrap_or((document, ""));
    backup.join("documents").join(first).join(rest).join("snapshot")
}

fn bundle_file(backup: &Path, id: &str) -> PathBuf {
    backup.join("bundles").join(format!("{id}.tonk"))
}

impl Backup {
    /// Read what `folder` says that it is; nothing if it is no backup.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, CliError> {
        let path = folder.join(INDEX);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(at(&path))?,
        };
        // The format first: a newer one may not read as ours.
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(&text).map_err(|e| says(&path, e))?;
        if format > FORMAT {
            let problem = format!(
                "is a backup of format {format}, and this tonk-relay knows {FORMAT}; use the version that made it, or a newer one"
            );
            return Err(says(folder, problem));
        }
        serde_json::from_slice(&text).map(Some).map_err(|error| says(&path, error))
    }

    fn write(&self, folder: &Path) -> Result<(), CliError> {
        write_file(&folder.join(INDEX), &serde_json::to_vec_pretty(self).unwrap_or_default())
    }

    fn file(&self, folder: &Path, document: &str) -> Option<PathBuf> {
        let copied = self.documents.get(document)?;
        Some(snapshots(folder, document).join(&copied.sha256))
    }

    /// Check every file of a backup.
    pub(super) fn check(&self, folder: &Path, tell: &mut dyn FnMut(Line) -> bool) {
        let mut missing: Vec<(String, &str)> = Vec::new();
        if !self.is_complete {
            missing.push((INDEX.to_owned(), "the backup was not finished: run it again"));
        }
        for document in self.documents.keys() {
            if self.file(folder, document).is_none_or(|file| !file.is_file()) {
                missing.push((document.clone(), "the backup lists it, and its file is not there"));
            }
        }
        for id in self.bundles.keys() {
            let file = bundle_file(folder, id);
            let verified = File::open(&file).map_err(bundle::BundleError::from).and_then(|file| {
                Bundle::open(io::BufReader::new(file), u64::MAX).and_then(|mut b| b.verify())
            });
            if let Err(error) = verified {
                let (place, fault) = (file.display().to_string(), error.to_string());
                tell(finding(place, fault));
                missing.push((String::new(), ""));
            }
        }
        let mut damages = 0;
        for (place, fault) in missing {
            damages += 1;
            if !place.is_empty() {
                tell(finding(place, fault.to_owned()));
            }
        }
        fsck::check_folder(&folder.join("documents"), true, |line| match line {
            Line::Summary(mut summary) => {
                summary.damages += damages;
                tell(Line::Summary(summary))
            }
            line => tell(line),
        });
    }
}

fn finding(place: String, fault: String) -> Line {
    Line::Finding(Finding { kind: Kind::Broken, place, fault, repaired: false })
}

/// What a backup did.
#[derive(Debug, Default, Serialize)]
struct BackupAnswer {
    documents: usize,
    copied: usize,
    unchanged: usize,
    bytes: u64,
    bundles: usize,
    tombstones: usize,
    /// Documents of an earlier backup that the relay does not have any more, although nobody deleted them there.
    kept: Vec<String>,
}

pub(super) fn backup(arguments: &BackupArguments) -> Result<(), CliError> {
    let folder = &std::path::absolute(&arguments.folder).map_err(at(&arguments.folder))?;
    fs::create_dir_all(folder).map_err(at(folder))?;
    let earlier = Backup::read(folder)?;
    if earlier.is_none() && fs::read_dir(folder).map_err(at(folder))?.next().is_some() {
        return Err(says(folder, "is neither empty nor an earlier backup"));
    }
    let mut relay = arguments.storage.relay.stored()?;
    let StorageId { storage_id } = relay.ask(Method::GET, "/storage-id")?;
    let earlier =
        earlier.unwrap_or_else(|| Backup { storage_id: storage_id.clone(), ..Backup::default() });
    if earlier.storage_id != storage_id {
        let problem = format!(
            "is a backup of another storage, {}; this one is {}",
            earlier.storage_id.as_deref().unwrap_or("without an id"),
            storage_id.as_deref().unwrap_or("without an id")
        );
        return Err(says(folder, problem));
    }
    let mut made = Backup {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        storage_id,
        made_at: now(),
        is_complete: false,
        documents: earlier.documents.clone(),
        bundles: earlier.bundles.clone(),
    };
    made.write(folder)?;

    let tombstones: Vec<Tombstone> = relay.ask(Method::GET, "/deleted")?;
    let mut answer = BackupAnswer { tombstones: tombstones.len(), ..BackupAnswer::default() };
    let listed = list(&mut relay)?;
    let progress = Progress::new("documents");
    let all = listed.len();
    let mut gone: BTreeSet<String> = made.documents.keys().cloned().collect();
    for (n, document) in listed.into_iter().enumerate() {
        progress.is_at(n, all);
        gone.remove(&document.document);
        let known = made.documents.get(&document.document);
        let is_known = known.is_some_and(|known| known.fingerprint == document.fingerprint)
            && made.file(folder, &document.document).is_some_and(|file| file.is_file());
        if is_known {
            answer.unchanged += 1;
        } else if let Some(copied) = copy(&mut relay, folder, &document)? {
            answer.copied += 1;
            answer.bytes += copied.bytes;
            made.documents.insert(document.document, copied);
        }
    }
    progress.end();
    copy_bundles(&mut relay, folder, &mut made)?;
    let deleted: BTreeSet<&String> = tombstones.iter().map(|t| &t.document).collect();
    for tombstone in &tombstones {
        let path = folder.join("deleted").join(&tombstone.document);
        write_file(&path, &serde_json::to_vec(tombstone).unwrap_or_default())?;
        made.documents.remove(&tombstone.document);
        made.bundles.remove(&tombstone.document);
        remove(&bundle_file(folder, &tombstone.document))?;
        let snapshots = snapshots(folder, &tombstone.document);
        if let Some(document) = snapshots.parent().filter(|document| document.exists()) {
            fs::remove_dir_all(document).map_err(at(document))?;
        }
    }
    for tombstone in tombstones_of(folder)? {
        if !deleted.contains(&tombstone.document) {
            remove(&folder.join("deleted").join(&tombstone.document))?;
        }
    }
    answer.kept = gone.into_iter().filter(|document| !deleted.contains(document)).collect();
    answer.documents = made.documents.len();
    answer.bundles = made.bundles.len();
    // The files are on the disk, and then their folders, before it says that it is complete.
    let disk = File::open(folder).map_err(at(folder))?;
    rustix::fs::syncfs(&disk).map_err(|error| at(folder)(error.into()))?;
    made.is_complete = true;
    made.write(folder)?;
    let noted = MadeBackup { folder: folder.display().to_string(), at: made.made_at.clone() };
    let () = relay.tell(Method::POST, "/backups", &noted)?;
    if arguments.storage.json {
        print_json(&answer);
        return Ok(());
    }
    let mut text = format!(
        "{} documents: {} copied ({} bytes), {} unchanged; {} bundles, {} tombstones\n",
        answer.documents,
        answer.copied,
        answer.bytes,
        answer.unchanged,
        answer.bundles,
        answer.tombstones
    );
    for document in &answer.kept {
        text.push_str(&format!("kept, although the relay has it no more: {document}\n"));
    }
    print(&text);
    Ok(())
}

fn list(relay: &mut Relay) -> Result<Vec<Listed>, CliError> {
    let (mut listed, mut end) = (Vec::new(), Err("the listing was cut off".to_owned()));
    relay.lines(Method::GET, "/documents", |entry: Entry<Listed>| match entry {
        Entry::Document(document) => listed.push(document),
        Entry::End => end = Ok(()),
        Entry::Problem(problem) => end = Err(problem),
    })?;
    end.map_err(CliError::NotListed)?;
    Ok(listed)
}

/// A document's content; nothing if it is not there any more.
fn content(relay: &mut Relay, document: &str) -> Result<Option<Bytes>, CliError> {
    let path = format!("/documents/{document}/content");
    match relay.fetch(Method::GET, &path, Bytes::new()) {
        Ok(content) => Ok(Some(content)),
        Err(CliError::Admin(AdminError::Refused(text))) if text.contains("nothing is stored") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn copy(relay: &mut Relay, folder: &Path, listed: &Listed) -> Result<Option<Copied>, CliError> {
    let Some(data) = content(relay, &listed.document)? else { return Ok(None) };
    let sha256 = hex(&Sha256::digest(&data));
    let snapshots = snapshots(folder, &listed.document);
    write_file(&snapshots.join(&sha256), &data)?;
    for old in fs::read_dir(&snapshots).map_err(at(&snapshots))?.flatten() {
        if old.file_name() != sha256.as_str() {
            remove(&old.path())?;
        }
    }
    let fingerprint = listed.fingerprint.clone();
    Ok(Some(Copied { fingerprint, sha256, bytes: data.len() as u64 }))
}

fn copy_bundles(relay: &mut Relay, folder: &Path, made: &mut Backup) -> Result<(), CliError> {
    let bundles: Vec<ListedBundle> = relay.ask(Method::GET, "/bundles")?;
    for ListedBundle { id, etag } in bundles {
        let file = bundle_file(folder, &id);
        if made.bundles.get(&id) != Some(&etag) || !file.is_file() {
            let data = relay.fetch(Method::GET, &format!("/bundles/{id}"), Bytes::new())?;
            write_file(&file, &data)?;
            made.bundles.insert(id, etag);
        }
    }
    Ok(())
}

fn tombstones_of(folder: &Path) -> Result<Vec<Tombstone>, CliError> {
    let folder = folder.join("deleted");
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut tombstones = Vec::new();
    for entry in fs::read_dir(&folder).map_err(at(&folder))? {
        let path = entry.map_err(at(&folder))?.path();
        let text = fs::read(&path).map_err(at(&path))?;
        tombstones.push(serde_json::from_slice(&text).map_err(|error| says(&path, error))?);
    }
    Ok(tombstones)
}

/// What became of documents that were merged with what is stored.
#[derive(Debug, Default, Serialize)]
struct MergeAnswer {
    documents: usize,
    new: usize,
    /// Those that brought changes which the stored ones lacked.
    newer: usize,
    /// Those that were there already.
    contained: usize,
    /// Those that are deleted here, and stay so.
    deleted: usize,
    /// What could not be taken over, and why.
    refused: Vec<Refused>,
    /// Whether the storage id was taken over.
    storage_id: bool,
    bundles: usize,
    tombstones: usize,
    /// Where what was stored before is now.
    replaced: Option<String>,
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Refused {
    place: String,
    reason: String,
}

impl MergeAnswer {
    fn refuse(&mut self, place: impl ToString, reason: impl ToString) {
        self.refused.push(Refused { place: place.to_string(), reason: reason.to_string() });
    }

    fn merge(&mut self, relay: &mut Relay, document: &str, data: Bytes) -> Result<(), CliError> {
        self.documents += 1;
        let path = format!("/documents/{document}/content?dry_run={}", self.dry_run);
        let answer = relay.fetch(Method::POST, &path, data)?;
        match client::parse(&answer)? {
            Merged::New => self.new += 1,
            Merged::Newer => self.newer += 1,
            Merged::Contained => self.contained += 1,
            Merged::Deleted => self.deleted += 1,
            Merged::Unrelated => self.refuse(
                document,
                "a document of this id with another history is stored here; that one stays",
            ),
            Merged::NoSpace => {
                self.refuse(document, "there is no room for new documents (storage.min_free)");
            }
            Merged::Broken(reason) => self.refuse(document, reason),
        }
        Ok(())
    }

    fn show(&self, json: bool) -> Result<(), CliError> {
        if json {
            print_json(self);
        } else {
            let mut text = String::new();
            if let Some(replaced) = &self.replaced {
                text.push_str(&format!("what was stored before is in {replaced}\n"));
            }
            for Refused { place, reason } in &self.refused {
                text.push_str(&format!("refused: {place}: {reason}\n"));
            }
            let would = if self.dry_run { "this would be done: " } else { "" };
            text.push_str(&format!(
                "{would}{} documents: {} new, {} with new changes, {} there already, {} deleted here, {} refused; {} bundles, {} tombstones; the storage id is {}\n",
                self.documents,
                self.new,
                self.newer,
                self.contained,
                self.deleted,
                self.refused.len(),
                self.bundles,
                self.tombstones,
                if self.storage_id { "taken over" } else { "this relay's own" },
            ));
            print(&text);
        }
        if self.refused.is_empty() { Ok(()) } else { Err(CliError::Said(1)) }
    }
}

pub(super) fn restore(arguments: &RestoreArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    let backup = Backup::read(folder)?.ok_or_else(|| says(folder, "is no backup"))?;
    if !backup.is_complete {
        return Err(says(folder, "is a backup that was not finished: it may lack documents"));
    }
    let tombstones = tombstones_of(folder)?;
    let mut relay = arguments.storage.relay.stored()?;
    let mut answer = MergeAnswer::default();
    if arguments.replace {
        answer.replaced = Some(relay.ask(Method::POST, "/set-aside")?);
    }
    if !arguments.new_identity {
        let id = StorageId { storage_id: backup.storage_id.clone() };
        answer.storage_id = relay.tell(Method::PUT, "/storage-id", &id)?;
    }
    for tombstone in &tombstones {
        let is_taken: bool = relay.tell(Method::POST, "/deleted", tombstone)?;
        if is_taken {
            answer.tombstones += 1;
        } else {
            answer
                .refuse(&tombstone.document, "it was deleted in the backup, and is here; it stays");
        }
    }
    let progress = Progress::new("documents");
    let all = backup.documents.len();
    for (n, (document, copied)) in backup.documents.iter().enumerate() {
        progress.is_at(n, all);
        let file = snapshots(folder, document).join(&copied.sha256);
        match fs::read(&file) {
            Ok(data) if hex(&Sha256::digest(&data)) == copied.sha256 => {
                answer.merge(&mut relay, document, data.into())?;
            }
            Ok(_) => answer.refuse(file.display(), "its bytes are not those that were written"),
            Err(error) => answer.refuse(file.display(), error),
        }
    }
    progress.end();
    for id in backup.bundles.keys() {
        let file = bundle_file(folder, id);
        let data = match fs::read(&file) {
            Ok(data) => data,
            Err(error) => {
                answer.refuse(file.display(), error);
                continue;
            }
        };
        match relay.fetch(Method::PUT, &format!("/bundles/{id}"), data.into()) {
            Ok(taken) => answer.bundles += usize::from(client::parse::<bool>(&taken)?),
            Err(CliError::Admin(AdminError::Refused(reason))) => {
                answer.refuse(file.display(), reason);
            }
            Err(error) => return Err(error),
        }
    }
    answer.show(arguments.storage.json)
}

pub(super) fn import(arguments: &ImportArguments) -> Result<(), CliError> {
    let folder = &arguments.folder;
    if Backup::read(folder)?.is_some() {
        return Err(says(folder, "is a backup: use `tonk-relay restore`"));
    }
    if fs::metadata(folder.join(".journal/journal.sqlite-wal")).is_ok_and(|wal| wal.len() > 0) {
        let problem =
            "has a journal that is in use: stop that relay, and run its `tonk-relay checkpoint`";
        return Err(says(folder, problem));
    }
    let mut documents = Vec::new();
    let mut answer = MergeAnswer { dry_run: arguments.dry_run, ..MergeAnswer::default() };
    walk::walk(folder, |found| {
        match found {
            Found::Document(document) => documents.push(document),
            Found::Foreign(path) => {
                eprintln!("{}: none of automerge-repo's; it is left out", path.display());
            }
        }
        true
    })?;
    let mut relay = arguments.storage.relay.stored()?;
    let id_file = folder.join("st/orage-adapter-id");
    if !arguments.dry_run
        && let Ok(id) = fs::read_to_string(&id_file)
    {
        let id = StorageId { storage_id: Some(id.trim().to_owned()) };
        answer.storage_id = relay.tell(Method::PUT, "/storage-id", &id)?;
    }
    let progress = Progress::new("documents");
    let all = documents.len();
    for (n, document) in documents.into_iter().enumerate() {
        progress.is_at(n, all);
        let chunks = match walk::read_document(folder, document) {
            Ok(chunks) if chunks.is_empty() => continue,
            Ok(chunks) => chunks,
            Err(error) => {
                answer.refuse(document, error);
                continue;
            }
        };
        let checked = documents::check(document, chunks, None);
        for (key, reason) in checked.broken {
            answer.refuse(key, reason);
        }
        if !checked.opened.heads.is_empty() {
            answer.merge(&mut relay, &document.to_string(), checked.opened.doc.save().into())?;
        }
    }
    progress.end();
    answer.show(arguments.storage.json)
}

/// What an export wrote.
#[derive(Debug, Serialize)]
struct ExportAnswer {
    root: String,
    documents: usize,
    bytes: u64,
    /// Documents that are mentioned, and not stored here.
    missing: Vec<String>,
}

pub(super) fn export(arguments: &ExportArguments) -> Result<(), CliError> {
    let (root, file) = (arguments.root, &arguments.file);
    if !arguments.force && file.exists() {
        return Err(says(file, "is there already; --force writes over it"));
    }
    let mut relay = arguments.storage.relay.stored()?;
    let manifest =
        relay.fetch(Method::GET, &format!("/bundles/{root}/manifest.json"), Bytes::new());
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(CliError::Admin(AdminError::Refused(_))) => bundle::minimal_manifest(root).into(),
        Err(error) => return Err(error),
    };
    let (mut documents, mut missing) = (BTreeMap::new(), Vec::new());
    let mut seen = BTreeSet::from([root]);
    let mut to_look_at = VecDeque::from([root]);
    let progress = Progress::new("documents");
    while let Some(document) = to_look_at.pop_front() {
        progress.is_at(documents.len(), seen.len());
        let Some(data) = content(&mut relay, &document.to_string())? else {
            missing.push(document.to_string());
            continue;
        };
        let doc =
            Automerge::load(&data).map_err(|error| CliError::Document(document, error.into()))?;
        for mentioned in mentioned_in(&doc) {
            if seen.insert(mentioned) {
                to_look_at.push_back(mentioned);
            }
        }
        documents.insert(document, doc.save());
    }
    progress.end();
    if !documents.contains_key(&root) {
        return Err(says(file, format!("nothing is stored of the root document {root}")));
    }
    let out = bundle::pack(&manifest, &documents).map_err(|error| says(file, error))?;
    write_file(&std::path::absolute(file).map_err(at(file))?, &out)?;
    let answer = ExportAnswer {
        root: root.to_string(),
        documents: documents.len(),
        bytes: out.len() as u64,
        missing,
    };
    if arguments.storage.json {
        print_json(&answer);
        return Ok(());
    }
    let mut text =
        format!("{}: {} documents, {} bytes\n", file.display(), answer.documents, answer.bytes);
    for document in &answer.missing {
        text.push_str(&format!("mentioned, and not stored here: {document}\n"));
    }
    print(&text);
    Ok(())
}

/// The documents that a document mentions: texts that are an id or an automerge: URL, wherever they stand.
fn mentioned_in(doc: &Automerge) -> Vec<DocumentId> {
    /// The longest text that is looked at: an automerge: URL.
    const LONGEST: usize = 64;
    let mut mentioned = Vec::new();
    let mut objects: Vec<(ObjId, ObjType)> = vec![(ROOT, ObjType::Map)];
    while let Some((object, kind)) = objects.pop() {
        let mut texts = Vec::new();
        let mut look = |value: ValueRef<'_>, id: ObjId| match value {
            ValueRef::Object(kind) => objects.push((id, kind)),
            ValueRef::Scalar(ScalarValueRef::Str(text)) => texts.push(text.into_owned()),
            ValueRef::Scalar(_) => {}
        };
        match kind {
            ObjType::Text if doc.length(&object) <= LONGEST => texts.extend(doc.text(&object)),
            ObjType::Text => {}
            ObjType::List => {
                for item in doc.list_range(&object, ..) {
                    let id = item.id();
                    look(item.value, id);
                }
            }
            ObjType::Map | ObjType::Table => {
                for item in doc.map_range(&object, ..) {
                    let id = item.id();
                    look(item.value, id);
                }
            }
        }
        mentioned.extend(texts.iter().filter_map(|text| document_id(text).ok()));
    }
    mentioned
}

#[cfg(test)]
mod tests {
    use automerge::{AutomergeError, transaction::Transactable};

    use super::*;

    #[test]
    fn mentioned_documents_are_found_wherever_they_stand() {
        let ids: Vec<DocumentId> = (1..=3).map(|n| DocumentId::from_bytes([n; 16])).collect();
        let mut doc = Automerge::new();
        doc.transact::<_, _, AutomergeError>(|edit| {
            edit.put(ROOT, "a scalar", ids[0].to_string())?;
            let list = edit.put_object(ROOT, "children", ObjType::List)?;
            let child = edit.insert_object(&list, 0, ObjType::Map)?;
            let text = edit.put_object(&child, "pointer", ObjType::Text)?;
            edit.splice_text(&text, 0, 0, &format!("automerge:{}", ids[1]))?;
            edit.insert(&list, 1, ids[2].to_string())?;
            edit.put(ROOT, "no id", "2XehcERzGALTcjP7C7VxwFJdWoEX")?;
            Ok(())
        })
        .expect("an edit");
        let mut found = mentioned_in(&doc);
        found.sort_unstable();
        assert_eq!(found, ids);
    }
}
