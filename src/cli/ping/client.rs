//! A sync client that has completed the handshake with a relay.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message as Frame};

use super::error::PingError;
use crate::{
    base::document_id::DocumentId,
    cli::{
        connect::{
            step::{STEP_TIMEOUT, Step, within},
            target::{Stream, Target},
        },
        output::{millis, printable},
    },
    sync::wire::{self, Body, Message},
};

/// Bytes per second of a slow line.
const SLOW_LINE: f64 = 64.0 * 1024.0;

/// A client that has completed the handshake.
pub(super) struct Client {
    pub(super) socket: WebSocketStream<Box<dyn Stream>>,
    /// Peer id of this client.
    pub(super) name: String,
    /// Peer id of the relay.
    pub(super) relay: String,
    /// WebSocket pings that the relay has sent.
    pub(super) pings: u32,
}

impl Client {
    /// Connects and joins as the peer `name`. Calls `report` after each step.
    pub(super) async fn join(
        target: &Target,
        name: &str,
        report: &impl Fn(Step),
    ) -> Result<Self, PingError> {
        let socket = target.open(report).await?;
        let (name, relay) = (name.to_owned(), String::new());
        let mut client = Self { socket, name, relay, pings: 0 };
        let start = Instant::now();
        client.send("join", wire::join(&client.name)).await?;
        client.relay = loop {
            let answer = client.receive("join").await?;
            let message = Message::decode(&answer);
            let message = message.map_err(|source| PingError::Wire { step: "join", source })?;
            // A relay that refuses sends an error message, and then closes with the reason.
            if matches!(message.body, Body::Peer) {
                break message.sender.unwrap_or_default().into_owned();
            }
        };
        let (relay, took) = (printable(&client.relay, 64), start.elapsed());
        report(Step::new("join", format!("relay {relay} in {}", millis(took)), Some(took)));
        Ok(client)
    }

    pub(super) async fn send(
        &mut self,
        step: &'static str,
        message: Bytes,
    ) -> Result<(), PingError> {
        let limit = message_timeout(message.len());
        let sent = within(limit, step, self.socket.send(Frame::Binary(message))).await?;
        sent.map_err(|source| PingError::Broke { step, source })
    }

    /// Receives the next message, without a time limit.
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

    /// Waits until the relay refuses a message, with an `error` message or by closing the
    /// connection. Skips all other messages.
    pub(super) async fn next_refusal(&mut self, step: &'static str) -> PingError {
        loop {
            let frame = match self.next(step).await {
                Ok(frame) => frame,
                Err(error) => return error,
            };
            if let Ok(Message { body: Body::Error { message }, .. }) = Message::decode(&frame) {
                return PingError::Refused { step, reason: printable(&message, 256) };
            }
        }
    }

    pub(super) async fn receive(&mut self, step: &'static str) -> Result<Bytes, PingError> {
        self.receive_within(STEP_TIMEOUT, step).await
    }

    async fn receive_within(
        &mut self,
        limit: Duration,
        step: &'static str,
    ) -> Result<Bytes, PingError> {
        within(limit, step, self.next(step)).await?
    }

    /// Sends an ephemeral message of `bytes` bytes.
    pub(super) async fn send_ephemeral(
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

    /// Waits for the ephemeral message with this count.
    pub(super) async fn receive_ephemeral(
        &mut self,
        step: &'static str,
        count: u64,
        bytes: usize,
    ) -> Result<(), PingError> {
        loop {
            let frame = self.receive_within(2 * message_timeout(bytes), step).await?;
            let message = Message::decode(&frame);
            let message = message.map_err(|source| PingError::Wire { step, source })?;
            if matches!(message.body, Body::Ephemeral { count: received, .. } if received == count)
            {
                return Ok(());
            }
        }
    }
}

/// Time limit for a message of that size, which allows for a slow line.
fn message_timeout(bytes: usize) -> Duration {
    STEP_TIMEOUT + Duration::from_secs_f64(bytes as f64 / SLOW_LINE)
}
