//! The socket of a client. It is counted while it is open, and reset when the client stops reading.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use prometheus::IntCounterVec;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tracing::debug;

use crate::{limits::Permit, sync::activity::Activity};

/// An accepted TCP connection.
///
/// A write that waits for the client longer than `http.response_idle_timeout` fails, which ends the
/// connection. WebSockets are exempt, since they have their own limits. This is below TLS, where
/// every byte that the client takes is seen.
#[derive(Debug)]
pub struct ClientStream {
    socket: TcpStream,
    client: SocketAddr,
    activity: Arc<Activity>,
    patience: Duration,
    /// The timeout, while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
    refused: IntCounterVec,
    _permit: Permit,
}

impl ClientStream {
    /// Returns the stream of an accepted connection, which keeps `permit`.
    pub fn new(
        socket: TcpStream,
        client: SocketAddr,
        patience: Duration,
        refused: IntCounterVec,
        permit: Permit,
    ) -> Self {
        let activity = Arc::default();
        Self { socket, client, activity, patience, stalled: None, refused, _permit: permit }
    }

    /// Returns the record of its reads and writes.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Makes the kernel reset the connection when it is closed, and counts the reason.
    pub fn reset(&self, reason: &'static str) {
        reset(&self.socket, self.client, reason, &self.refused);
    }

    /// Fails a write that has waited too long.
    fn limit_wait(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if result.is_ready() || self.activity.is_upgraded() {
            self.stalled = None;
            return result;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        // The kernel drops what the client has not taken.
        self.reset("response_idle");
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Makes the kernel reset a connection when it is closed, which costs less than an answer.
pub fn reset(
    socket: &TcpStream,
    client: SocketAddr,
    reason: &'static str,
    refused: &IntCounterVec,
) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
    refused.with_label_values(&[reason]).inc();
    debug!(%client, reason, "a connection is cut off");
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write(cx, data);
        self.limit_wait(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.socket).poll_write_vectored(cx, data);
        self.limit_wait(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
