//! Whether anything moves on a connection.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that show that the peer is alive: those that it sent, and those that it accepted after the
/// socket was full. Bytes that the kernel buffers at once show nothing: it buffers them for a dead
/// peer too.
#[derive(Debug, Default)]
pub struct Activity {
    moved: AtomicU64,
    taken: AtomicU64,
    unfinished: AtomicU64,
    is_upgraded: AtomicBool,
}

impl Activity {
    /// How many such bytes there were.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// How many of them the peer accepted.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// How many bytes the peer sent.
    pub fn received(&self) -> u64 {
        self.moved().saturating_sub(self.taken())
    }

    /// The large message that is partially received, by how many bytes were received before it.
    pub fn unfinished(&self) -> Option<u64> {
        self.unfinished.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Sets or clears the large message that is partially received.
    pub fn set_unfinished(&self, after: Option<u64>) {
        self.unfinished.store(after.map_or(0, |after| after.saturating_add(1)), Ordering::Relaxed);
    }

    /// Whether the connection has become a WebSocket.
    pub fn is_upgraded(&self) -> bool {
        self.is_upgraded.load(Ordering::Relaxed)
    }

    /// Marks the connection as a WebSocket.
    pub fn set_upgraded(&self) {
        self.is_upgraded.store(true, Ordering::Relaxed);
    }

    fn sent(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn took(&self, bytes: usize) {
        self.sent(bytes);
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// A stream that records its activity.
#[derive(Debug)]
pub struct Metered<S> {
    stream: S,
    activity: Arc<Activity>,
    had_to_wait: bool,
    /// Bytes read since the task last yielded.
    in_a_row: usize,
}

/// Bytes read before the task yields. Tiny frames without a message take about a millisecond then.
const TURN: usize = 8 << 10;

impl<S> Metered<S> {
    /// Records in `activity` what moves on `stream`.
    pub fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, had_to_wait: false, in_a_row: 0 }
    }

    fn written(&mut self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &result {
            Poll::Pending => self.had_to_wait = true,
            Poll::Ready(Ok(bytes)) if std::mem::take(&mut self.had_to_wait) => {
                self.activity.took(*bytes);
            }
            Poll::Ready(_) => {}
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.in_a_row >= TURN {
            self.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let Poll::Ready(result) = Pin::new(&mut self.stream).poll_read(cx, buffer) else {
            self.in_a_row = 0;
            return Poll::Pending;
        };
        let read = buffer.filled().len() - before;
        self.in_a_row += read;
        self.activity.sent(read);
        Poll::Ready(result)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, data);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, data);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn only_bytes_that_show_a_live_peer_count() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let activity = Arc::new(Activity::default());
        let mut metered = Metered::new(ours, activity.clone());
        metered.write_all(b"12345678").await.expect("fits");
        assert_eq!(activity.moved(), 0, "the buffer took it");
        let (written, read) = tokio::join!(metered.write_all(b"9"), async {
            let mut buffer = [0; 8];
            theirs.read_exact(&mut buffer).await
        });
        written.expect("written");
        read.expect("read");
        assert_eq!(activity.moved(), 1, "the peer made room for it");
        theirs.write_all(b"abc").await.expect("written");
        let mut buffer = [0; 3];
        metered.read_exact(&mut buffer).await.expect("read");
        assert_eq!(activity.moved(), 4);
    }
}
