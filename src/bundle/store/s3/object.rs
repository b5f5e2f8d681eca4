//! Reading an object.

use std::{fs::File, ops::RangeInclusive};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::{
    io::{AsyncSeekExt, AsyncWriteExt, BufWriter},
    time::timeout,
};

use super::{
    bucket::Bucket,
    error::{bad_answer, failed, unavailable},
};
use crate::{
    base::blocking::{self, DropOnBlockingThread},
    bundle::store::received::IncomingFolder,
    storage::StorageError,
};

/// Bytes of a download that are written to the local file at a time. Each write is done on a thread
/// that may block.
const WRITE_BUFFER: usize = 1 << 20;

/// What a failed read was to do.
const READ: &str = "read the bundle";

/// An object that can be read.
#[derive(Debug)]
pub(crate) struct Object {
    pub(super) bucket: Bucket,
    pub(super) key: String,
    pub(super) etag: String,
    pub(super) incoming: IncomingFolder,
}

impl Object {
    /// Streams the object, or the part of it that has `length` bytes.
    pub(crate) async fn read(
        self,
        part: Option<RangeInclusive<u64>>,
        length: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, StorageError>>, StorageError> {
        let get = self.bucket.client.get_object().bucket(&*self.bucket.name).key(&self.key);
        let range = part.map(|part| format!("bytes={}-{}", part.start(), part.end()));
        let get = get.if_match(&self.etag).set_range(range).send();
        let get = async { get.await.map_err(|error| failed(READ, &self.key, error)) };
        let body = self.bucket.with_timeout(READ, &self.key, get).await?.body;
        let (longest, key) = (self.bucket.timeout, self.key);
        let chunks =
            stream::try_unfold((body, key, length), move |(mut body, key, left)| async move {
                let next = timeout(longest, body.next()).await.map_err(|_| {
                    unavailable(READ, &key, format!("the store sent nothing for {longest:?}"))
                })?;
                match next {
                    Some(chunk) => {
                        let chunk: Bytes = chunk.map_err(|error| unavailable(READ, &key, error))?;
                        let left = left.checked_sub(chunk.len() as u64);
                        let left = left.ok_or_else(|| wrong_length(&key, "more"))?;
                        Ok(Some((chunk, (body, key, left))))
                    }
                    None if left > 0 => Err(wrong_length(&key, "less")),
                    None => Ok(None),
                }
            });
        Ok(chunks.boxed())
    }

    /// Copies the object into a local file that has no name.
    pub(crate) async fn download(self, size: u64) -> Result<File, StorageError> {
        let incoming = self.incoming.clone();
        let folder = incoming.path().to_owned();
        let not_written = |error| StorageError::io("copy a bundle into", folder.as_path(), error);
        let file = blocking::run(move || incoming.unnamed_file()).await?;
        let copy = file.try_clone().map_err(not_written)?;
        // Outlives `out`, so that the file of a failed download is closed on a thread that may
        // block.
        let _copy = DropOnBlockingThread::new(copy);
        let mut out = BufWriter::with_capacity(WRITE_BUFFER, tokio::fs::File::from_std(file));
        let mut chunks = self.read(None, size).await?;
        while let Some(chunk) = chunks.next().await {
            out.write_all(&chunk?).await.map_err(not_written)?;
        }
        out.flush().await.map_err(not_written)?;
        let mut file = out.into_inner();
        file.rewind().await.map_err(not_written)?;
        Ok(file.into_std().await)
    }
}

fn wrong_length(key: &str, difference: &str) -> StorageError {
    bad_answer(READ, key, &format!("the store sent {difference} than it announced"))
}
