//! Reading an object.

use std::{fs::File, io, ops::RangeInclusive};

use bytes::Bytes;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::{
    io::{AsyncSeekExt, AsyncWriteExt, BufWriter},
    time::timeout,
};

use super::{bucket::Bucket, error::failed};
use crate::{
    base::blocking::{self, DropOnBlockingThread},
    bundle::store::received::IncomingFolder,
};

/// Bytes of a download that are written to the local file at a time. Each write is done on a thread
/// that may block.
const WRITE_BUFFER: usize = 1 << 20;

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
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let get = self.bucket.client.get_object().bucket(&*self.bucket.name).key(&self.key);
        let range = part.map(|part| format!("bytes={}-{}", part.start(), part.end()));
        let get = get.if_match(&self.etag).set_range(range).send();
        let get = async { get.await.map_err(|error| failed("read the bundle", error)) };
        let body = self.bucket.with_timeout("read the bundle", get).await?.body;
        let longest = self.bucket.timeout;
        let chunks = stream::try_unfold((body, length), move |(mut body, left)| async move {
            let next = timeout(longest, body.next()).await.map_err(|_| {
                let text = format!("the bundle store has sent nothing for {longest:?}");
                io::Error::new(io::ErrorKind::TimedOut, text)
            })?;
            match next {
                Some(chunk) => {
                    let chunk: Bytes = chunk.map_err(io::Error::other)?;
                    let left = left.checked_sub(chunk.len() as u64);
                    let left = left.ok_or_else(|| wrong_length("more"))?;
                    Ok(Some((chunk, (body, left))))
                }
                None if left > 0 => Err(wrong_length("less")),
                None => Ok(None),
            }
        });
        Ok(chunks.boxed())
    }

    /// Copies the object into a local file that has no name.
    pub(crate) async fn download(self, size: u64) -> io::Result<File> {
        let incoming = self.incoming.clone();
        let created = blocking::run(move || {
            let file = incoming.unnamed_file()?;
            Ok::<_, io::Error>((file.try_clone()?, file))
        });
        let (copy, file) = created.await?;
        // Outlives `out`, so that the file of a failed download is closed on a thread that may
        // block.
        let _copy = DropOnBlockingThread::new(copy);
        let mut out = BufWriter::with_capacity(WRITE_BUFFER, tokio::fs::File::from_std(file));
        let mut chunks = self.read(None, size).await?;
        while let Some(chunk) = chunks.next().await {
            out.write_all(&chunk?).await?;
        }
        out.flush().await?;
        let mut file = out.into_inner();
        file.rewind().await?;
        Ok(file.into_std().await)
    }
}

fn wrong_length(difference: &str) -> io::Error {
    let text = format!("the bundle store has sent {difference} than it announced");
    io::Error::new(io::ErrorKind::InvalidData, text)
}
