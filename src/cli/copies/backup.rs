//! `tonk-relay backup`, and what a backup is: a folder with `backup.json`, `documents` in automerge-repo's layout
//! with one file a document, named by the SHA-256 of what is in it, `bundles`, and `deleted` with the tombstones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::TryLockError,
    time::{Duration, Instant, SystemTime},
};

use automerge::ReadDoc;
use clap::Args;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{merge::Refused, *};
use crate::{
    admin::storage::answers::{Entry, ListedBundle, StorageId},
    base::{
        folder::{self, Item},
        hex::hex,
    },
    bundle::{Bundle, BundleError, MaxInflated},
    document::{
        chunk::Key,
        compare::Relation,
        gate::{Document, Rules},
        load,
    },
    storage::{
        fsck::{self, Finding, Kind, Line},
        local::{
            MAX_FILE, backups,
            tombstones::Tombstone,
            walk::{self, Found, Listed},
        },
    },
};

/// The format of a backup, in its `backup.json`.
const FORMAT: u32 = 1;
const INDEX: &str = "backup.json";
/// The largest index that is read: one of several million documents.
const MAX_INDEX: u64 = 1 << 30;
/// The largest bundle that is read as a whole.
pub(super) const MAX_BUNDLE: u64 = 4 << 30;
/// The largest tombstone.
const MAX_TOMBSTONE: u64 = 1 << 20;
/// How often a first backup notes how far it is.
const NOTE_EVERY: Duration = Duration::from_secs(5);

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
    /// False while the first one is being made; a later one says it only when it is there.
    pub(super) is_complete: bool,
    pub(super) documents: BTreeMap<DocumentId, Copied>,
    /// ETags of the uploaded bundles, by id.
    pub(super) bundles: BTreeMap<DocumentId, String>,
    /// Documents that were deleted; their tombstones are files.
    #[serde(default)]
    deleted: BTreeSet<DocumentId>,
}

/// A document in a backup.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Copied {
    /// What the relay's listing said of it when it was copied; nothing if not all of it could be.
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
        Ok(Self::read_with_hash(folder)?.map(|(backup, _)| backup))
    }

    /// The same with the SHA-256 of the index.
    pub(super) fn read_with_hash(folder: &Path) -> Result<Option<(Self, String)>, CliError> {
        let path = folder.join(INDEX);
        let text = match folder::read(&path, MAX_INDEX) {
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
        let backup = serde_json::from_slice(&text).map_err(|error| says(&path, error))?;
        Ok(Some((backup, hex(&Sha256::digest(&text)))))
    }

    fn write(&self, folder: &Path) -> Result<(), CliError> {
        write_file(&folder.join(INDEX), &serde_json::to_vec_pretty(self).unwrap_or_default())?;
        Folder::open(folder).and_then(|folder| folder.file().sync_all()).map_err(at(folder))
    }

    /// Whether the copy of a document is as it was written. All of it is read: a disk may change bytes and say nothing.
    fn is_intact(&self, folder: &Path, document: DocumentId, answer: &mut BackupAnswer) -> bool {
        let Some(Copied { sha256, .. }) = self.documents.get(&document) else { return false };
        let file = snapshots(folder, document).join(sha256);
        let is_intact =
            folder::read(&file, MAX_FILE).is_ok_and(|data| hex(&Sha256::digest(&data)) == *sha256);
        if !is_intact {
            answer.damaged.push(file.display().to_string());
        }
        is_intact
    }

    /// Check every file of a backup.
    pub(in crate::cli) fn check(&self, folder: &Path, tell: &mut dyn FnMut(Line) -> bool) {
        let mut faults: Vec<(String, String)> = Vec::new();
        if !self.is_complete {
            let fault = "the backup was not finished: run it again";
            faults.push((INDEX.to_owned(), fault.to_owned()));
        }
        for id in self.bundles.keys() {
            let file = bundle_file(folder, *id);
            if let Err(error) = verify_bundle(&file) {
                faults.push((file.display().to_string(), error.to_string()));
            }
        }
        for document in &self.deleted {
            if !tombstone_file(folder, *document).is_file() {
                let fault = "it was deleted, and the file that says so is not there";
                faults.push((document.to_string(), fault.to_owned()));
            }
        }
        let damages = faults.len();
        for (place, fault) in faults {
            tell(Line::Finding(Finding { kind: Kind::Broken, place, fault, repaired: false }));
        }
        // Others may be there, of a later one that was interrupted.
        let copies = self.documents.iter().map(|(document, copied)| fsck::Copy {
            file: snapshots(folder, *document).join(&copied.sha256),
            sha256: &copied.sha256,
        });
        fsck::check_copies(copies, |line| match line {
            Line::Summary(mut summary) => {
                summary.damages += damages;
                summary.bundles = self.bundles.len();
                tell(Line::Summary(summary))
            }
            line => tell(line),
        });
    }
}

/// Check a bundle of a backup.
fn verify_bundle(file: &Path) -> Result<(), BundleError> {
    let file = folder::open_file(file)?;
    Bundle::open(io::BufReader::new(file), MaxInflated::ANY)?.verify()
}

/// Whether the backup in `folder` holds a document; none if there is no backup to be read.
pub(in crate::cli) fn holds(folder: &Path, document: DocumentId) -> Option<bool> {
    let backup = Backup::read(folder).ok()??;
    let is_listed =
        backup.documents.contains_key(&document) || backup.bundles.contains_key(&document);
    Some(is_listed || snapshots(folder, document).exists())
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
    /// And bundles.
    kept_bundles: Vec<DocumentId>,
    /// What could not be copied as it is, and why. An earlier copy of it stays.
    failed: Vec<Refused>,
    /// Files of the earlier backup whose bytes are not those that were written. What the relay still has is copied
    /// again.
    damaged: Vec<String>,
}

impl BackupAnswer {
    fn fail(&mut self, place: impl ToString, reason: impl ToString) {
        self.failed.push(Refused { place: place.to_string(), reason: reason.to_string() });
    }
}

pub(in crate::cli) fn backup(arguments: &BackupArguments) -> Result<(), CliError> {
    let folder = &std::path::absolute(&arguments.folder).map_err(at(&arguments.folder))?;
    for own in arguments.storage.relay.folders() {
        // The folder may not be there yet, and then what it will be in counts.
        let real = folder.ancestors().find_map(|folder| std::fs::canonicalize(folder).ok());
        if let (Some(real), Ok(own)) = (real, std::fs::canonicalize(own))
            && real.starts_with(own)
        {
            return Err(says(folder, "is in a folder of the relay's own"));
        }
    }
    let opened = Folder::create(folder).map_err(at(folder))?;
    match opened.file().try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(says(folder, "another backup goes there at this time"));
        }
        Err(TryLockError::Error(error)) => return Err(at(folder)(error)),
    }
    let earlier = Backup::read(folder)?;
    if earlier.is_none() && !opened.entries().map_err(at(folder))?.is_empty() {
        return Err(says(folder, "is neither empty nor an earlier backup"));
    }
    let mut relay = arguments.storage.relay.stored()?;
    // One that has none yet is given one.
    let _: bool = relay.tell(Method::PUT, "/storage-id", &StorageId { storage_id: None })?;
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
        documents: earlier.documents,
        bundles: earlier.bundles,
        deleted: BTreeSet::new(),
    };
    // They become paths here, perhaps root's.
    made.documents.retain(|_, copied| is_hash(&copied.sha256));
    let is_first = !earlier.is_complete;
    let documents = folder.join("documents");
    Folder::create(&documents).map_err(at(&documents))?;
    if is_first {
        made.write(folder)?;
    }
    let mut noted = backups::Backup {
        folder: folder.display().to_string(),
        at: made.made_at.clone(),
        whole_at: None,
    };
    let () = relay.tell(Method::POST, "/backups", &noted)?;

    let tombstones: Vec<Tombstone> = relay.ask(Method::GET, "/deleted")?;
    let mut answer = BackupAnswer { tombstones: tombstones.len(), ..BackupAnswer::default() };
    let listed = list(&mut relay)?;
    let progress = Progress::new("documents");
    let all = listed.len();
    let mut gone: BTreeSet<DocumentId> = made.documents.keys().copied().collect();
    let mut noted_at = Instant::now();
    for (n, document) in listed.into_iter().enumerate() {
        progress.is_at(n, all);
        if is_first && noted_at.elapsed() > NOTE_EVERY {
            // An interrupted one goes on from here.
            made.write(folder)?;
            noted_at = Instant::now();
        }
        gone.remove(&document.document);
        let known = made.documents.get(&document.document);
        let is_unchanged = known.is_some_and(|known| known.fingerprint == document.fingerprint);
        if is_unchanged && made.is_intact(folder, document.document, &mut answer) {
            answer.unchanged += 1;
        } else if let Some(copied) = copy(&mut relay, folder, &document, known, &mut answer)? {
            answer.copied += 1;
            answer.bytes += copied.bytes;
            made.documents.insert(document.document, copied);
        }
    }
    progress.end();
    for document in &gone {
        if !tombstones.iter().any(|tombstone| tombstone.document == *document)
            && !made.is_intact(folder, *document, &mut answer)
        {
            answer.fail(document, "its copy is damaged, and the relay does not have it any more");
        }
    }
    copy_bundles(&mut relay, folder, &mut made, &mut answer)?;
    for tombstone in &tombstones {
        let path = tombstone_file(folder, tombstone.document);
        write_file(&path, &serde_json::to_vec(tombstone).unwrap_or_default())?;
        made.documents.remove(&tombstone.document);
        made.bundles.remove(&tombstone.document);
        made.deleted.insert(tombstone.document);
    }
    answer.kept_bundles.retain(|bundle| !made.deleted.contains(bundle));
    answer.kept = gone.into_iter().filter(|document| !made.deleted.contains(document)).collect();
    answer.documents = made.documents.len();
    answer.bundles = made.bundles.len();
    // The files are on the disk, and then their folders, before it says that they are there; what it needs no more
    // goes after that, so that one backup is whole at every moment.
    rustix::fs::syncfs(opened.file()).map_err(|error| at(folder)(error.into()))?;
    made.is_complete = true;
    made.write(folder)?;
    made.remove_the_rest(folder)?;
    show(arguments.storage.json, &answer, || describe(&answer));
    let lacks = !answer.kept.is_empty() || !answer.kept_bundles.is_empty();
    if !answer.failed.is_empty() || lacks {
        return Err(CliError::Said(1));
    }
    noted.whole_at = Some(noted.at.clone());
    relay.tell(Method::POST, "/backups", &noted)
}

impl Backup {
    /// Remove the files that this one does not name: former copies, and what is left of deleted documents.
    fn remove_the_rest(&self, folder: &Path) -> Result<(), CliError> {
        let mut documents = Vec::new();
        walk::walk(&folder.join("documents"), |found| {
            if let Found::Document(document) = found {
                documents.push(document);
            }
            true
        })?;
        for document in documents {
            let snapshots = snapshots(folder, document);
            match self.documents.get(&document) {
                None => {
                    let all = snapshots.parent().unwrap_or(&snapshots);
                    let (above, name) = split(all);
                    let removed = Folder::open(above).and_then(|above| above.remove_folder(name));
                    removed.map_err(at(all))?;
                }
                Some(Copied { sha256, .. }) => {
                    let opened = Folder::open(&snapshots).map_err(at(&snapshots))?;
                    for Item { path, .. } in opened.entries().map_err(at(&snapshots))? {
                        if path.file_name().is_some_and(|name| name != sha256.as_str()) {
                            remove(&path)?;
                        }
                    }
                }
            }
        }
        for document in &self.deleted {
            remove(&bundle_file(folder, *document))?;
        }
        for tombstone in tombstones_of(folder)? {
            if !self.deleted.contains(&tombstone.document) {
                remove(&tombstone_file(folder, tombstone.document))?;
            }
        }
        Ok(())
    }
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
    for bundle in &answer.kept_bundles {
        text.push_str(&format!("kept, although the relay has it no more: bundle {bundle}\n"));
    }
    for file in &answer.damaged {
        text.push_str(&format!("an earlier copy is not as it was written: {file}\n"));
    }
    for Refused { place, reason } in &answer.failed {
        text.push_str(&format!("not copied: {place}: {reason}\n"));
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

/// Copy a document. What an earlier copy has of it is in the new one too, or the earlier one stays.
fn copy(
    relay: &mut Relay,
    folder: &Path,
    listed: &Listed,
    earlier: Option<&Copied>,
    answer: &mut BackupAnswer,
) -> Result<Option<Copied>, CliError> {
    let document = listed.document;
    let content = match content(relay, document, false) {
        Ok(Some(content)) => content,
        Ok(None) => return Ok(None),
        Err(CliError::Admin(AdminError::Refused(reason))) => {
            answer.fail(document, reason);
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let is_whole = content.broken.is_empty();
    for chunk in content.broken {
        answer.fail("a broken chunk", chunk);
    }
    let snapshots = snapshots(folder, document);
    let earlier = earlier.and_then(|earlier| {
        let data = folder::read(&snapshots.join(&earlier.sha256), MAX_FILE).ok()?;
        (hex(&Sha256::digest(&data)) == earlier.sha256).then_some(data)
    });
    let data = match joined(&content.data, earlier.as_deref()) {
        Joined::New => content.data,
        Joined::Both(data) => {
            let fault = "the relay lacks changes that are in the earlier copy; they are kept";
            answer.fail(document, fault);
            data
        }
        Joined::Unrelated => {
            let fault = "it has no change in common with the earlier copy, which stays";
            answer.fail(document, fault);
            return Ok(None);
        }
        Joined::Nothing => {
            answer.fail(document, "nothing of it can be read");
            return Ok(None);
        }
    };
    let sha256 = hex(&Sha256::digest(&data));
    write_file(&snapshots.join(&sha256), &data)?;
    let fingerprint = if is_whole { listed.fingerprint.clone() } else { String::new() };
    Ok(Some(Copied { fingerprint, sha256, bytes: data.len() as u64 }))
}

/// What a new copy of a document is with an earlier one.
enum Joined {
    /// The new one has all of the earlier one.
    New,
    /// It does not: both together.
    Both(Vec<u8>),
    /// They are two documents.
    Unrelated,
    /// There is nothing in the new one.
    Nothing,
}

fn joined(new: &[u8], earlier: Option<&[u8]>) -> Joined {
    let load = |data: &[u8]| load::load(&[(Key::StorageId, data.to_vec())]).doc;
    let mut new = load(new);
    if new.heads().is_empty() && !new.has_orphans() {
        return Joined::Nothing;
    }
    let Some(mut earlier) = earlier.map(load) else { return Joined::New };
    match Relation::of(earlier.automerge(), new.automerge()) {
        Relation::Contained if !earlier.has_orphans() => Joined::New,
        Relation::Unrelated if !new.heads().is_empty() => Joined::Unrelated,
        Relation::Contained | Relation::Newer | Relation::Unrelated => {
            // Its changes that wait for others may find them here.
            let missing = |doc: &mut Document| doc.automerge().get_missing_deps(&[]);
            match earlier.admit(&new.automerge().save(), Rules::Stored) {
                Ok(_)
                    if earlier.heads() == new.heads()
                        && missing(&mut earlier) == missing(&mut new) =>
                {
                    Joined::New
                }
                Ok(_) => Joined::Both(earlier.automerge().save()),
                Err(_) => Joined::Unrelated,
            }
        }
    }
}

fn copy_bundles(
    relay: &mut Relay,
    folder: &Path,
    made: &mut Backup,
    answer: &mut BackupAnswer,
) -> Result<(), CliError> {
    let bundles: Vec<ListedBundle> = match relay.ask(Method::GET, "/bundles") {
        Err(CliError::Admin(AdminError::Refused(reason))) => {
            answer.fail("the uploaded bundles", reason);
            return Ok(());
        }
        bundles => bundles?,
    };
    for id in made.bundles.keys().filter(|id| !bundles.iter().any(|listed| listed.id == **id)) {
        answer.kept_bundles.push(*id);
    }
    for ListedBundle { id, etag } in bundles {
        let file = bundle_file(folder, id);
        if made.bundles.get(&id) == Some(&etag) {
            if verify_bundle(&file).is_ok() {
                continue;
            }
            answer.damaged.push(file.display().to_string());
        }
        let data = match relay.fetch(Method::GET, &format!("/bundles/{id}"), Bytes::new()) {
            Ok(data) => data,
            Err(error @ CliError::Admin(AdminError::Refused(_) | AdminError::Http(_))) => {
                answer.fail(format!("bundle {id}"), error);
                continue;
            }
            // Deleted since it was listed.
            Err(CliError::Admin(AdminError::Missing(_))) => continue,
            Err(error) => return Err(error),
        };
        let verified = Bundle::open(io::Cursor::new(data.clone()), MaxInflated::ANY)
            .and_then(|mut bundle| bundle.verify());
        if let Err(error) = verified {
            answer.fail(format!("bundle {id}"), error);
            continue;
        }
        write_file(&file, &data)?;
        made.bundles.insert(id, etag);
    }
    Ok(())
}

pub(super) fn tombstones_of(folder: &Path) -> Result<Vec<Tombstone>, CliError> {
    let folder = folder.join("deleted");
    let opened = match Folder::open(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened.map_err(at(&folder))?,
    };
    let mut tombstones = Vec::new();
    for Item { path, .. } in opened.entries().map_err(at(&folder))? {
        let name = path.file_name().and_then(|name| name.to_str());
        if name.is_none_or(|name| name.parse::<DocumentId>().is_err()) {
            // What a backup that was interrupted was writing.
            continue;
        }
        let text = folder::read(&path, MAX_TOMBSTONE).map_err(at(&path))?;
        tombstones.push(serde_json::from_slice(&text).map_err(|error| says(&path, error))?);
    }
    Ok(tombstones)
}
