//! The folder `quarantine`: chunks that do not parse and journals that cannot be read, each with
//! the reason in a file next to it. Lists, releases and purges them.
//!
//! `document::load` decides which chunks are bad; `NodefsStore::quarantine` and `journal::sqlite`
//! move them here.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use crate::{
    document::{chunk::Key, load::parses},
    storage::{Failure, StorageError, records::Quarantined},
};

use super::{
    files::{failed, read, write_atomically},
    layout::{BROKEN_JOURNAL, QUARANTINE, reason_file},
};

/// Lists the quarantine of the storage folder `root`. Blocks.
///
/// # Errors
/// It cannot be listed.
pub fn list(root: &Path) -> Result<Vec<Quarantined>, StorageError> {
    let top = root.join(QUARANTINE);
    let (mut entries, mut folders) = (Vec::new(), vec![top.clone()]);
    while let Some(folder) = folders.pop() {
        let listed = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            listed => listed.map_err(failed("list", &folder))?,
        };
        for entry in listed {
            let path = entry.map_err(failed("list", &folder))?.path();
            let found = fs::symlink_metadata(&path).map_err(failed("read", &path))?;
            if found.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|extension| extension != "reason")
                && path.file_name().is_some_and(|name| name != "reason")
            {
                let reason_path = reason_path(&path);
                let reason = read(&reason_path).ok().flatten();
                // Moving a file does not change its time. The reason was written at that moment.
                let moved = fs::metadata(&reason_path).unwrap_or_else(|_| found.clone());
                let since = moved.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                entries.push(Quarantined {
                    path: path.strip_prefix(&top).unwrap_or(&path).display().to_string(),
                    bytes: found.len(),
                    since: humantime::format_rfc3339_seconds(since).to_string(),
                    reason: reason.map_or_else(
                        || "unknown".to_owned(),
                        |reason| String::from_utf8_lossy(&reason).trim().to_owned(),
                    ),
                });
            }
        }
    }
    entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(entries)
}

/// The file with the reason. A chunk has its own; the files of a journal share one.
fn reason_path(path: &Path) -> PathBuf {
    let own = reason_file(path);
    if own.exists() { own } else { path.with_file_name("reason") }
}

/// The path of an entry, if it exists.
fn file(root: &Path, entry: &str) -> Result<PathBuf, StorageError> {
    let path = Path::new(entry);
    let is_plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let file = root.join(QUARANTINE).join(path);
    if !is_plain || !file.is_file() {
        let missing = Failure::new("find", file, "it is not in quarantine");
        return Err(StorageError::Refused(missing));
    }
    Ok(file)
}

/// Moves a chunk back into its document. Returns its key. Blocks.
///
/// # Errors
/// The entry does not exist, is not a chunk, still does not parse, or cannot be moved.
pub fn release(root: &Path, entry: &str) -> Result<Key, StorageError> {
    let file = file(root, entry)?;
    let refused = |why: &str| StorageError::Refused(Failure::new("release", file.as_path(), why));
    let Some(key) = Quarantined::key_of(entry) else {
        return Err(refused("it is not a chunk of a document"));
    };
    let Some(data) = read(&file)? else {
        return Err(refused("its document was deleted in the meantime"));
    };
    parses(&data).map_err(|reason| refused(&format!("it does not parse: {reason}")))?;
    write_atomically(root, &[(root.join(entry), data.into())], true)?;
    delete(&file)?;
    Ok(key)
}

/// Deletes an entry. Blocks.
///
/// # Errors
/// The entry does not exist, or cannot be deleted.
pub fn purge(root: &Path, entry: &str) -> Result<(), StorageError> {
    delete(&file(root, entry)?)
}

/// Lists the folders with broken journals. Blocks.
///
/// # Errors
/// The quarantine cannot be listed.
pub fn broken_journals(root: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let top = root.join(QUARANTINE);
    let names = list(root)?.into_iter().filter_map(|entry| {
        entry
            .path
            .split('/')
            .next()
            .filter(|name| name.starts_with(BROKEN_JOURNAL))
            .map(str::to_owned)
    });
    let names: BTreeSet<String> = names.collect();
    Ok(names.into_iter().map(|name| top.join(name)).collect())
}

/// Deletes a file with its reason, and folders that are empty afterwards.
fn delete(file: &Path) -> Result<(), StorageError> {
    fs::remove_file(file).map_err(failed("delete", file))?;
    let _ = fs::remove_file(reason_file(file));
    let folder = file.parent().unwrap_or(file);
    let left = fs::read_dir(folder).map_err(failed("list", folder))?.flatten();
    if left.map(|entry| entry.file_name()).all(|name| name == "reason") {
        let _ = fs::remove_file(folder.join("reason"));
    }
    for folder in folder.ancestors().take(3) {
        if folder.ends_with(QUARANTINE) || fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use automerge::{Automerge, ROOT, transaction::Transactable};

    use super::*;
    use crate::{
        base::document_id::DocumentId,
        config::Durability,
        document::chunk::ChunkKind,
        storage::{ChunkStore, local::nodefs::NodefsStore},
    };

    #[tokio::test]
    async fn entries_can_be_listed_released_and_purged() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        let store = NodefsStore::open(root, Durability::Fsync).expect("opens");
        let document = DocumentId::from_bytes([7; 16]);
        let key = |name: &str| Key::Chunk {
            document,
            kind: ChunkKind::Incremental,
            name: name.to_owned(),
        };
        let mut doc = Automerge::new();
        doc.transact::<_, _, automerge::AutomergeError>(|edit| edit.put(ROOT, "n", 1))
            .expect("an edit");
        for (name, data) in [("good", doc.save()), ("bad", b"garbage".to_vec())] {
            store.put(&key(name), data.into()).await.expect("puts");
            store.quarantine(&key(name), "a test").await.expect("moves");
        }
        let aside = root.join("quarantine/journal-0");
        fs::create_dir_all(&aside).expect("made");
        fs::write(aside.join("reason"), "cut off\n").expect("written");
        fs::write(aside.join("journal.sqlite"), "x").expect("written");

        let entries = list(root).expect("lists");
        let reasons: Vec<&str> = entries.iter().map(|entry| entry.reason.as_str()).collect();
        assert_eq!(reasons, ["a test", "a test", "cut off"], "{entries:?}");
        let [bad, good, journal] = entries.as_slice() else { panic!("three") };
        assert!(bad.path.ends_with("incremental/bad"), "{bad:?}");

        release(root, &bad.path).expect_err("it does not parse");
        release(root, &journal.path).expect_err("it is no chunk");
        release(root, "../../etc/passwd").expect_err("it is not there");
        assert_eq!(release(root, &good.path).expect("parses"), key("good"));
        assert_eq!(
            store.load_document(document).await.expect("loads").chunks,
            [(key("good"), doc.save())]
        );

        purge(root, &bad.path).expect("deletes");
        purge(root, &bad.path).expect_err("it is gone");
        for entry in list(root).expect("lists") {
            purge(root, &entry.path).expect("deletes");
        }
        assert_eq!(list(root).expect("lists"), []);
        assert_eq!(fs::read_dir(root.join("quarantine")).expect("lists").count(), 0);
    }
}
