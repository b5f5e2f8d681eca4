//! The journal's SQLite file: opening it, and salvaging a broken one.

#![allow(clippy::disallowed_methods, reason = "all of it blocks, and runs on threads that may")]

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use tracing::{error, warn};

use super::{
    super::{
        files::{MAX_FILE, write_atomically},
        layout::{BROKEN_JOURNAL, QUARANTINE, relative},
        nodefs::delete_files,
        tombstones::Tombstones,
    },
    index::{Index, Row},
};
use crate::{
    base::{document_id::DocumentId, folder},
    config::Durability,
    document::chunk::{ChunkKind, Key},
    observe::metrics::StorageMetrics,
    storage::{Failure, StorageError},
};

/// The version of the journal's format, in SQLite's `user_version`.
const FORMAT: i64 = 1;
/// The `application_id` of the relay's journals: "tonk" in ASCII.
const APPLICATION: i64 = 0x746f_6e6b;

/// Opens the journal's file, creates it if it does not exist, and lists its rows.
pub(super) fn open(
    path: &Path,
    durability: Durability,
) -> Result<(Connection, Index), StorageError> {
    check_header(path)?;
    let failed = |error| failed("open", path, error);
    let connection = Connection::open(path).map_err(failed)?;
    // Closing a broken file must not checkpoint the log into it and delete the log.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, format) =
        (number("application_id").map_err(failed)?, number("user_version").map_err(failed)?);
    if format > FORMAT || ![0, APPLICATION].contains(&application) {
        let reason = format!(
            "it has format {format}, and this tonk-relay supports {FORMAT}; run `tonk-relay \
             checkpoint` of the version that wrote it, which moves it into the folders"
        );
        return Err(StorageError::Unsupported(Failure::new("open", path, reason)));
    }
    // With FULL a commit returns when it is on the disk; with NORMAL when the kernel has it.
    let synchronous = if durability == Durability::Fsync { "FULL" } else { "NORMAL" };
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; PRAGMA cache_size = \
             -1024;"
        ))
        .map_err(failed)?;
    if application == 0 {
        connection
            .execute_batch(&format!(
                "BEGIN; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};
             CREATE TABLE IF NOT EXISTS chunk (
                 id INTEGER PRIMARY KEY, document BLOB NOT NULL, kind TEXT NOT NULL,
                 name TEXT NOT NULL, data BLOB NOT NULL
             ) STRICT; COMMIT;"
            ))
            .map_err(failed)?;
    }
    let mut index = Index::default();
    {
        let mut query = connection
            .prepare("SELECT id, document, kind, name, length(data) FROM chunk ORDER BY id")
            .map_err(failed)?;
        let mut rows = query.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let document: [u8; 16] = row.get(1).map_err(failed)?;
            let kind: String = row.get(2).map_err(failed)?;
            let Some(kind) = ChunkKind::from_name(&kind) else { continue };
            let key = Key::Chunk {
                document: DocumentId::from_bytes(document),
                kind,
                name: row.get(3).map_err(failed)?,
            };
            let (id, size) = (row.get(0).map_err(failed)?, row.get::<_, i64>(4).map_err(failed)?);
            index.set(&key, Some(Row { id, size: usize::try_from(size).unwrap_or(0) }));
        }
    }
    // Usually the journal is empty when it is opened, so this is fast.
    let check = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match check.map_err(failed)?.as_str() {
        "ok" => Ok((connection, index)),
        fault => Err(StorageError::Corrupt(Failure::new("open", path, fault))),
    }
}

/// Writes the readable rows of a broken journal into the folders. Returns how many there were.
fn salvage(root: &Path, path: &Path) -> usize {
    let read_rows = || -> rusqlite::Result<Vec<(PathBuf, Bytes)>> {
        // Read-only, because the broken file must be kept unchanged.
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let mut list =
            connection.prepare("SELECT id, document, kind, name FROM chunk ORDER BY id")?;
        let mut read = connection.prepare("SELECT data FROM chunk WHERE id = ?1")?;
        let (mut rows, mut files) = (list.query([])?, Vec::new());
        // Rows behind an unreadable page are not found, and remain only in quarantine.
        while let Ok(Some(row)) = rows.next() {
            let (id, document): (i64, [u8; 16]) = (row.get(0)?, row.get(1)?);
            let (kind, name): (String, String) = (row.get(2)?, row.get(3)?);
            let data: rusqlite::Result<Vec<u8>> = read.query_row([id], |row| row.get(0));
            if let (Some(kind), Ok(data)) = (ChunkKind::from_name(&kind), data) {
                let key = Key::Chunk { document: DocumentId::from_bytes(document), kind, name };
                files.push((root.join(relative(&key)), data.into()));
            }
        }
        Ok(files)
    };
    if check_header(path).is_err() {
        return 0;
    }
    let files = read_rows().unwrap_or_default();
    match write_atomically(root, &files, true) {
        Ok(()) => files.len(),
        Err(error) => {
            error!("cannot save the readable part of the broken journal into the folders: {error}");
            0
        }
    }
}

/// Deletes the rows of documents that have a tombstone, which an interrupted deletion left.
pub(super) fn delete_rows_with_tombstones(
    connection: &Connection,
    mut index: Index,
    tombstones: &Tombstones,
) -> Index {
    let mut has_deleted = false;
    let documents: Vec<DocumentId> = index.documents.keys().copied().collect();
    for document in documents.into_iter().filter(|document| tombstones.contains(*document)) {
        let delete = "DELETE FROM chunk WHERE document = ?1";
        match connection.execute(delete, [document.as_bytes()]) {
            Ok(_) => has_deleted = true,
            Err(error) => {
                warn!(%document, "cannot remove a deleted document from the journal yet; retrying: \
                                  {error}");
            }
        }
        for (key, _) in index.rows_of(document).unwrap_or_default() {
            index.set(&key, None);
        }
    }
    if has_deleted {
        vacuum(connection);
    }
    index
}

/// Rewrites the file without the bytes of deleted rows, which SQLite keeps in free pages.
pub(super) fn vacuum(connection: &Connection) {
    if let Err(error) = connection.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE);") {
        warn!(
            "bytes of a deleted document stay in the journal's file until they are overwritten: \
             {error}"
        );
    }
}

/// Counts the chunks in the journal of a storage folder that no process has open, without changing
/// it.
///
/// # Errors
/// It cannot be read. [`StorageError::InUse`] if it has a write-ahead log: the number is then known
/// only to the process that has it open, or by opening it.
pub fn count_rows(root: &Path) -> Result<u64, StorageError> {
    let path = root.join(".journal/journal.sqlite");
    let log = path.with_file_name("journal.sqlite-wal");
    if fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
        let busy = io::Error::from(io::ErrorKind::ResourceBusy);
        return Err(StorageError::InUse(Failure::new("read", log, busy)));
    }
    if !path.exists() {
        return Ok(0);
    }
    check_header(&path)?;
    let read = folder::read(&path, MAX_FILE);
    let mut data = read.map_err(|source| StorageError::io("read", path.as_path(), source))?;
    // SQLite gets the bytes and not the path, which may lead elsewhere by then. A database in
    // memory cannot have a write-ahead log, so the file's versions are set to the legacy format
    // (fileformat2.html, 1.3).
    if let Some(versions) = data.get_mut(18..20) {
        versions.fill(1);
    }
    let count = || -> rusqlite::Result<i64> {
        let mut connection = Connection::open_in_memory()?;
        connection.deserialize_read_exact("main", &data[..], data.len(), true)?;
        connection.query_row("SELECT count(*) FROM chunk", [], |row| row.get(0))
    };
    count().map(i64::unsigned_abs).map_err(|error| failed("read", &path, error))
}

/// Checks the header of the file. SQLite would delete the log of a file with another header.
fn check_header(path: &Path) -> Result<(), StorageError> {
    /// <https://www.sqlite.org/fileformat.html>, 1.3
    const HEADER: &[u8; 16] = b"SQLite format 3\0";
    let broken = |reason: &str| Err(StorageError::Corrupt(Failure::new("open", path, reason)));
    let mut header = [0; 16];
    let read = folder::open_file(path).and_then(|mut file| file.read_exact(&mut header));
    let has_log =
        || fs::metadata(path.with_file_name("journal.sqlite-wal")).is_ok_and(|log| log.len() > 0);
    match read {
        Ok(()) if header == *HEADER => Ok(()),
        Ok(()) => broken("file is not a database"),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !has_log() => Ok(()),
        // SQLite leaves an empty file before the first commit.
        Err(error)
            if error.kind() == io::ErrorKind::UnexpectedEof
                && fs::metadata(path).is_ok_and(|found| found.len() == 0)
                && !has_log() =>
        {
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            broken("it is missing, but its write-ahead log exists")
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => broken("it is truncated"),
        Err(source) => Err(StorageError::io("open", path, source)),
    }
}

/// Deletes the files of documents that have a tombstone, which an interrupted deletion left.
pub(super) fn delete_files_with_tombstones(root: &Path, tombstones: &Tombstones) {
    for document in tombstones.ids() {
        if let Err(error) = delete_files(root, document) {
            warn!(%document, "cannot remove the files of a deleted document yet; retrying: \
                              {error}");
        }
    }
}

/// Moves a journal that SQLite cannot read into quarantine. Clients that still have the changes
/// send them again.
pub(super) fn quarantine_journal(
    root: &Path,
    path: &Path,
    reason: &StorageError,
    metrics: &StorageMetrics,
) -> Result<(), StorageError> {
    let failed = |source| StorageError::io("move", path, source);
    let salvaged = salvage(root, path);
    let folder = |n: u32| root.join(format!("{QUARANTINE}/{BROKEN_JOURNAL}{n}"));
    let to = folder((0..).find(|n| !folder(*n).exists()).unwrap_or_default());
    fs::create_dir_all(&to).map_err(failed)?;
    fs::write(to.join("reason"), format!("{reason}\n")).map_err(failed)?;
    for name in ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"] {
        match fs::rename(path.with_file_name(name), to.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
    }
    metrics.broken_chunks.inc();
    error!(
        %reason,
        salvaged,
        moved_to = %to.display(),
        "the journal is broken; what could be read of it is in the folders, and other changes \
         since the last checkpoint are missing until clients send them again"
    );
    Ok(())
}

/// Classifies an error of SQLite by its code.
pub(super) fn failed(action: &'static str, path: &Path, error: rusqlite::Error) -> StorageError {
    let code = error.sqlite_error_code();
    let failure = Failure::new(action, path, error);
    match code {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StorageError::Corrupt(failure)
        }
        Some(ErrorCode::DiskFull) => StorageError::Full(failure),
        _ => StorageError::Io(failure),
    }
}
