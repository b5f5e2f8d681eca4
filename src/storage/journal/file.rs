//! The journal's SQLite file: opened, listed, or put aside where it is broken.

use super::{
    index::{Index, Row},
    *,
};

/// The journal's own format, in SQLite's `user_version`; and what says in `application_id` that it is ours
/// ("tonk").
const FORMAT: i64 = 1;
const APPLICATION: i64 = 0x746f_6e6b;

/// Open the journal's file, and list what is in it.
pub(super) fn open(
    path: &Path,
    durability: Durability,
) -> Result<(Connection, Index), StorageError> {
    let failed = |error| failed("open", path, error);
    let connection = Connection::open(path).map_err(failed)?;
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, format) =
        (number("application_id").map_err(failed)?, number("user_version").map_err(failed)?);
    if format > FORMAT || ![0, APPLICATION].contains(&application) {
        let reason = format!(
            "it is of format {format}, and this tonk-relay knows {FORMAT}; let the one that wrote it move it into \
             the folders by `tonk-relay checkpoint`"
        );
        return Err(StorageError {
            action: "open",
            path: path.to_owned(),
            source: io::Error::new(io::ErrorKind::Unsupported, reason),
        });
    }
    // FULL: a commit returns when it is on the disk. NORMAL: the kernel has it.
    let synchronous = if durability == Durability::Fsync { "FULL" } else { "NORMAL" };
    connection
        .execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}; PRAGMA cache_size = -1024;
             PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};
             CREATE TABLE IF NOT EXISTS chunk (
                 id INTEGER PRIMARY KEY, document BLOB NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
                 data BLOB NOT NULL
             ) STRICT;"
        ))
        .map_err(failed)?;
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
    Ok((connection, index))
}

/// A deletion that did not come to its end is finished.
pub(super) fn forget_deleted(
    connection: &Connection,
    mut index: Index,
    tombstones: &Tombstones,
) -> Index {
    let documents: Vec<DocumentId> = index.documents.keys().copied().collect();
    for document in documents.into_iter().filter(|document| tombstones.contains(*document)) {
        let delete = "DELETE FROM chunk WHERE document = ?1";
        if let Err(error) = connection.execute(delete, [document.as_bytes()]) {
            warn!(%document, %error, "the journal keeps chunks of a deleted document for now");
        }
        for (key, _) in index.rows_of(document).unwrap_or_default() {
            index.set(&key, None);
        }
    }
    index
}

pub(super) fn is_broken(error: &StorageError) -> bool {
    let source = error.source.get_ref().and_then(|source| source.downcast_ref::<rusqlite::Error>());
    let code = source.and_then(rusqlite::Error::sqlite_error_code);
    matches!(code, Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase))
}

/// Move a journal that SQLite does not read into quarantine. Clients that have what was in it give it back.
pub(super) fn set_aside(
    root: &Path,
    path: &Path,
    reason: &StorageError,
    metrics: &StorageMetrics,
) -> Result<(), StorageError> {
    let failed = |source| StorageError { action: "move", path: path.to_owned(), source };
    let number = (0..).find(|n| !root.join(format!("quarantine/journal-{n}")).exists());
    let to = root.join(format!("quarantine/journal-{}", number.unwrap_or_default()));
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
        moved_to = %to.display(),
        "the journal is broken: changes since the last checkpoint are missing until clients bring them again"
    );
    Ok(())
}

pub(super) fn failed(action: &'static str, path: &Path, error: rusqlite::Error) -> StorageError {
    let kind = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => io::ErrorKind::StorageFull,
        Some(rusqlite::ErrorCode::ReadOnly) => io::ErrorKind::ReadOnlyFilesystem,
        Some(rusqlite::ErrorCode::PermissionDenied) => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    StorageError { action, path: path.to_owned(), source: io::Error::new(kind, error) }
}
