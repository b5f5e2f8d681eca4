//! The relay's test of itself: it requests a document that does not exist over a connection of its
//! own.
//!
//! The request takes the same path as a client's: an HTTP upgrade, a session, a room and back. It
//! is subject to no limit, and uses no disk, store or network. Faults of these make the relay
//! unready, but a relay that waits for its disk must not be killed. Each answer feeds systemd's
//! watchdog.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::DuplexStream;
// tokio-tungstenite: the WebSocket crate that axum uses.
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message as Frame},
};
use tracing::error;

use crate::{
    base::document_id::DocumentId,
    config::{AuthMode, Config, Share, Size},
    http::listener::Connections,
    observe::{metrics::ProcessMetrics, systemd},
    sync::{
        room::shared::NOTHING,
        wire::{self, Body, Message},
    },
};

/// How often the relay tests itself if systemd's watchdog is not enabled.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(15);
/// The buffer of the connection, in bytes.
const BUFFER: usize = 16 << 10;

/// Tests whether the relay answers.
pub struct Watchdog {
    /// How connections are served.
    pub connections: Connections,
    /// The public router, without limits.
    pub router: Router,
    /// The document that it requests.
    pub document: DocumentId,
    /// Where results are recorded.
    pub metrics: ProcessMetrics,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ProbeError {
    #[error("the connection failed: {0}")]
    Socket(#[from] tungstenite::Error),
    #[error("the answer is not a sync message: {0}")]
    Wire(#[from] wire::WireError),
    #[error("the connection ended before a {0} arrived")]
    Missing(&'static str),
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// Returns `config` without limits and sign-in, for the test.
pub fn unlimited(config: &Config) -> Config {
    let mut config = config.clone();
    config.auth.mode = AuthMode::Open;
    config.limits.connections = usize::MAX;
    config.limits.processor_per_connection = Share::percent(u32::MAX);
    config.storage.max_unsaved = Size(u64::MAX);
    config
}

impl Watchdog {
    /// Tests the relay again and again. Runs forever.
    pub async fn run(self: Arc<Self>) {
        let wanted = systemd::watchdog();
        // If two tests fail, the third can still feed the watchdog in time.
        let every = wanted.map_or(DEFAULT_INTERVAL, |wanted| wanted / 4);
        loop {
            let start = Instant::now();
            match self.test(every).await {
                Ok(()) => {
                    self.metrics.probe_seconds.set(start.elapsed().as_secs_f64());
                    if wanted.is_some() {
                        systemd::alive();
                    }
                }
                Err(fault) => {
                    self.metrics.probe_failures.inc();
                    error!("the relay does not answer its own probe: {fault}");
                }
            }
            tokio::time::sleep(every.saturating_sub(start.elapsed())).await;
        }
    }

    /// Tests the relay once.
    ///
    /// # Errors
    /// The answer is wrong, or does not arrive within `limit`.
    pub async fn test(&self, limit: Duration) -> Result<(), ProbeError> {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        self.connections.spawn(theirs, self.router.clone(), None);
        let testing = tokio::time::timeout(limit, self.request(ours));
        testing.await.unwrap_or(Err(ProbeError::Late(limit)))
    }

    async fn request(&self, stream: DuplexStream) -> Result<(), ProbeError> {
        let (mut socket, _) = tokio_tungstenite::client_async("ws://probe/", stream).await?;
        // A peer id that no client can guess and take over.
        let us = &format!("probe-{}", DocumentId::random());
        socket.send(Frame::Binary(wire::join(us))).await?;
        let relay = loop {
            let frame = read(&mut socket, "peer message").await?;
            let message = Message::decode(&frame)?;
            if matches!(message.body, Body::Peer) {
                break message.sender.unwrap_or_default().into_owned();
            }
        };
        let nothing = NOTHING.as_ref().ok_or(ProbeError::Missing("question"))?;
        let question = wire::sync(true, us, &relay, self.document, &nothing.raw);
        socket.send(Frame::Binary(question)).await?;
        loop {
            let frame = read(&mut socket, "answer").await?;
            if matches!(Message::decode(&frame)?.body, Body::DocUnavailable { .. }) {
                break;
            }
        }
        Ok(socket.close(None).await?)
    }
}

async fn read(
    socket: &mut WebSocketStream<DuplexStream>,
    what: &'static str,
) -> Result<Bytes, ProbeError> {
    loop {
        match socket.next().await.ok_or(ProbeError::Missing(what))?? {
            Frame::Binary(frame) => return Ok(frame),
            Frame::Close(_) => return Err(ProbeError::Missing(what)),
            _ => {}
        }
    }
}
