//! A stored bundle, and reading it.

use std::{fs::File, io::SeekFrom, ops::RangeInclusive, path::PathBuf};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::s3::object::Object;
use crate::storage::StorageError;

/// A stored bundle.
#[derive(Debug)]
pub struct StoredBundle {
    /// Its size in bytes.
    pub size: u64,
    /// Its ETag, with the quotes. Every upload gets another one.
    pub etag: String,
    pub(super) source: Source,
}

/// Where the bytes of a bundle are.
#[derive(Debug)]
pub(super) enum Source {
    File(File, PathBuf),
    Object(Object),
}

impl StoredBundle {
    /// Streams the whole bundle, or a part of it.
    ///
    /// # Errors
    /// It cannot be read, or another bundle replaced it. Errors may also occur later, in the
    /// stream.
    pub async fn read(
        self,
        part: Option<RangeInclusive<u64>>,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        let (start, length) = match &part {
            Some(part) => (*part.start(), part.end() - part.start() + 1),
            None => (0, self.size),
        };
        match self.source {
            Source::File(file, path) => {
                let failed = move |error| StorageError::io("read", path.as_path(), error);
                let mut file = tokio::fs::File::from_std(file);
                file.seek(SeekFrom::Start(start)).await.map_err(&failed)?;
                Ok(ReaderStream::new(file.take(length)).map_err(failed).boxed())
            }
            Source::Object(object) => object.read(part, length).await,
        }
    }

    /// How many bytes [`Self::into_file`] writes to the local disk.
    pub fn copied_bytes(&self) -> u64 {
        match self.source {
            Source::File(..) => 0,
            Source::Object(_) => self.size,
        }
    }

    /// Returns the bundle as a file, in which a reader can seek.
    ///
    /// # Errors
    /// It cannot be read, or not be copied to the local disk.
    pub async fn into_file(self) -> Result<File, StorageError> {
        match self.source {
            Source::File(file, _) => Ok(file),
            Source::Object(object) => object.download(self.size).await,
        }
    }
}
