//! A client that has joined a relay.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message as Frame};

use super::error::PingError;
use crate::{
    base::document_id::DocumentId,
    cli::output::printable,
    sync::wire::{self, Body, Message},
};

/// How long a step may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes a second that a slow line carries.
const SLOW: f64 = 64.0 * 1024.0;

pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A client.
pub(super) struct Client {
    pub(super) socket: WebSocketStream<Box<dyn Stream>>,
    pub(super) name: String,
    pub(super) relay: String,
    /// Pings of the relay's that came.
    pub(super) pings: u32,
}

impl Client {
    pub(super) async fn send(
        &mut self,
        step: &'static str,
        message: Bytes,
    ) -> Result<(), PingError> {
        let limit = patience(message.len());
        let sending = timeout(limit, self.socket.send(Frame::Binary(message))).await;
        let sent = sending.map_err(|_| PingError::Late { step, limit })?;
        sent.map_err(|source| PingError::Broke { step, source })
    }

    /// The next message, however long it takes.
    pub(super) async fn next(&mut self, step: &'static str) -> Result<Bytes, PingError> {
        loop {
            let frame = self.socket.next().await.ok_or(PingError::Ended { step })?;
            match frame.map_err(|source| PingError::Broke { step, source })? {
                Frame::Binary(frame) => return Ok(frame),
                Frame::Close(frame) => {
                    let Some(frame) = frame else { return Err(PingError::Ended { step }) };
                    let (code, reason) = (frame.code.into(), printable(&frame.reason, 128));
                    return Err(PingError::Closed { step, code, reason });
                }
                Frame::Ping(_) => {
                    self.pings += 1;
                    let flushed = self.socket.flush().await;
                    flushed.map_err(|source| PingError::Broke { step, source })?;
                }
                _ => {}
            }
        }
    }

    pub(super) async fn receive(&mut self, step: &'static str) -> Result<Bytes, PingError> {
        self.receive_within(PATIENCE, step).await
    }

    async fn receive_within(
        &mut self,
        limit: Duration,
        step: &'static str,
    ) -> Result<Bytes, PingError> {
        let receiving = timeout(limit, self.next(step)).await;
        receiving.map_err(|_| PingError::Late { step, limit })?
    }

    /// Send presence of so many bytes.
    pub(super) async fn present(
        &mut self,
        step: &'static str,
        document: DocumentId,
        count: u64,
        bytes: usize,
    ) -> Result<(), PingError> {
        let data = vec![0; bytes];
        let message = wire::ephemeral(&self.name, &self.relay, document, count, "ping", &data);
        self.send(step, message).await
    }

    /// Wait for presence of somebody else's.
    pub(super) async fn hear(
        &mut self,
        step: &'static str,
        count: u64,
        bytes: usize,
    ) -> Result<(), PingError> {
        loop {
            let frame = self.receive_within(2 * patience(bytes), step).await?;
            let message = Message::decode(&frame);
            let message = message.map_err(|source| PingError::Wire { step, source })?;
            if matches!(message.body, Body::Ephemeral { count: heard, .. } if heard == count) {
                return Ok(());
            }
        }
    }
}

/// How long a message of that size may be on its way: a slow line is no fault.
fn patience(bytes: usize) -> Duration {
    PATIENCE + Duration::from_secs_f64(bytes as f64 / SLOW)
}
