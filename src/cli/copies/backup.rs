//! `tonk-relay backup`, and what a backup is: a folder with `backup.json`, `documents` in automerge-repo's layout
//! with one file a document, named by the SHA-256 of what is in it, `bundles`, and `deleted` with the tombstones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    time::SystemTime,
};

use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::*;
use crate::{
    admin::storage::answers::{Entry, ListedBundle, MadeBackup, StorageId},
    bundle::{self, Bundle},
    storage::{
        documents::hex,
        fsck::{self, Finding, Kind, Line},
        tombstones::Tombstone,
        walk::Listed,
    },
};

/// The format of a backup, in its `backup.json`.
const FORMAT: u32 = 1;
const INDEX: &str = "backup.json";

/// `tonk-relay backup`
#[derive(Debug, Args)]
pub(in crate::cli) struct BackupArguments {
    /// The folder of the backup: a new one, or an earlier backup, which is brought up to date
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    storage: StorageArguments,
}

/// What `backup.json` says.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::cli) struct Backup {
    format: u32,
    /// The tonk-relay that made it.
    version: String,
    pub(super) storage_id: Option<String>,
    /// When it was begun, in RFC 3339.
    made_at: String,
    /// False while it is being made.
    pub(super) is_complete: bool,
    pub(super) documents: BTreeMap<DocumentId, Copied>,
    /// ETags of the uploaded bundles, by id.
    pub(super) bundles: BTreeMap<DocumentId, String>,
}

/// A document in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Copied {
    /// What the relay's listing said of it when it was copied.
    fingerprint: String,
    pub(super) sha256: String,
    bytes: u64,
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// Whether a text is a SHA-256, and so the name of a file and nothing else.
fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The folder of a document's snapshots in a backup.
pub(super) fn snapshots(backup: &Path, document: DocumentId) -> PathBuf {
    backup.join("documents").join(document.folder()).join("snapshot")
}

pub(super) fn bundle_file(backup: &Path, id: DocumentId) -> PathBuf {
    backup.join("bundles").join(format!("{id}.tonk"))
}

fn tombstone_file(backup: &Path, document: DocumentId) -> PathBuf {
    backup.join("deleted").join(document.to_string())
}

impl Backup {
    /// Read what `folder` says that it is; nothing if it is no backup.
    pub(in crate::cli) fn read(folder: &Path) -> Result<Option<Self>, CliError> {
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

    fn file(&self, folder: &Path, document: DocumentId) -> Option<PathBuf> {
        let copied = self.documents.get(&document)?;
        Some(snapshots(folder, document).join(&copied.sha256))
    }

    /// Check every file of a backup.
    pub(in crate::cli) fn check(&self, folder: &Path, tell: &mut dyn FnMut(Line) -> bool) {
        let mut faults: Vec<(String, String)> = Vec::new();
        if !self.is_complete {
            let fault = "the backup was not finished: run it again";
            faults.push((INDEX.to_owned(), fault.to_owned()));
        }
        for document in self.documents.keys() {
            if self.file(folder, *document).is_none_or(|file| !file.is_file()) {
                let fault = "the backup lists it, and its file is not there";
                faults.push((document.to_string(), fault.to_owned()));
            }
        }
        for id in self.bundles.keys() {
            let file = bundle_file(folder, *id);
            let verified = File::open(&file).map_err(bundle::BundleError::from).and_then(|file| {
                Bundle::open(io::BufReader::new(file), u64::MAX).and_then(|mut b| b.verify())
            });
            if let Err(error) = verified {
                faults.push((file.display().to_string(), error.to_string()));
            }
        }
        let damages = faults.len();
        for (place, fault) in faults {
            tell(Line::Finding(Finding { kind: Kind::Broken, place, fault, repaired: false }));
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
    kept: Vec<DocumentId>,
}

pub(in crate::cli) fn backup(arguments: &BackupArguments) -> Result<(), CliError> {
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
    let documents = folder.join("documents");
    fs::create_dir_all(&documents).map_err(at(&documents))?;

    // It becomes a path here, perhaps root's.
    made.documents.retain(|_, copied| is_hash(&copied.sha256));
    let tombstones: Vec<Tombstone> = relay.ask(Method::GET, "/deleted")?;
    let mut answer = BackupAnswer { tombstones: tombstones.len(), ..BackupAnswer::default() };
    let listed = list(&mut relay)?;
    let progress = Progress::new("documents");
    let all = listed.len();
    let mut gone: BTreeSet<DocumentId> = made.documents.keys().copied().collect();
    for (n, document) in listed.into_iter().enumerate() {
        progress.is_at(n, all);
        gone.remove(&document.document);
        let known = made.documents.get(&document.document);
        let is_known = known.is_some_and(|known| known.fingerprint == document.fingerprint)
            && made.file(folder, document.document).is_some_and(|file| file.is_file());
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
    let deleted: BTreeSet<DocumentId> = tombstones.iter().map(|t| t.document).collect();
    for tombstone in &tombstones {
        let path = tombstone_file(folder, tombstone.document);
        write_file(&path, &serde_json::to_vec(tombstone).unwrap_or_default())?;
        made.documents.remove(&tombstone.document);
        made.bundles.remove(&tombstone.document);
        remove(&bundle_file(folder, tombstone.document))?;
        let snapshots = snapshots(folder, tombstone.document);
        if let Some(document) = snapshots.parent().filter(|document| document.exists()) {
            fs::remove_dir_all(document).map_err(at(document))?;
        }
    }
    for tombstone in tombstones_of(folder)? {
        if !deleted.contains(&tombstone.document) {
            remove(&tombstone_file(folder, tombstone.document))?;
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
    show(arguments.storage.json, &answer, || describe(&answer));
    Ok(())
}

fn describe(answer: &BackupAnswer) -> String {
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
    text
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

fn copy(relay: &mut Relay, folder: &Path, listed: &Listed) -> Result<Option<Copied>, CliError> {
    let Some(data) = content(relay, listed.document)? else { return Ok(None) };
    let sha256 = hex(&Sha256::digest(&data));
    let snapshots = snapshots(folder, listed.document);
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
        let file = bundle_file(folder, id);
        if made.bundles.get(&id) != Some(&etag) || !file.is_file() {
            let data = relay.fetch(Method::GET, &format!("/bundles/{id}"), Bytes::new())?;
            write_file(&file, &data)?;
            made.bundles.insert(id, etag);
        }
    }
    Ok(())
}

pub(super) fn tombstones_of(folder: &Path) -> Result<Vec<Tombstone>, CliError> {
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
