//! Whether the relay still answers: it asks itself, over a connection of its own, for a document that is nobody's.
//!
//! The question takes the way of every client's: an HTTP upgrade, a session, a room and back. It meets no limit, and no
//! disk, store or network, whose faults are the readiness's matter: a relay that waits for its disk is not to be killed.
//! systemd's watchdog is fed by each answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::Router;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::DuplexStream;
// tokio-tungstenite: what axum itself speaks WebSocket with.
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

/// How often it asks where systemd does not say.
const EVERY: Duration = Duration::from_secs(15);
/// Bytes on their way between the two ends of the connection.
const BUFFER: usize = 16 << 10;

/// Asks the relay whether it answers.
pub struct Watchdog {
    /// How connections are served.
    pub connections: Connections,
    /// What serves them: the public router, without limits.
    pub router: Router,
    /// The document that it asks for.
    pub document: DocumentId,
    /// Where the answers are noted.
    pub metrics: ProcessMetrics,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ProbeError {
    #[error("the connection failed: {0}")]
    Socket(#[from] tungstenite::Error),
    #[error("the answer is not understood: {0}")]
    Wire(#[from] wire::WireError),
    #[error("no {0} came before the connection ended")]
    Missing(&'static str),
    #[error("no answer within {0:?}")]
    Late(Duration),
}

/// The config under which the relay asks itself: no limit holds, and no sign-in.
pub fn unlimited(config: &Config) -> Config {
    let mut config = config.clone();
    config.auth.mode = AuthMode::Open;
    config.limits.connections = usize::MAX;
    config.limits.processor_per_connection = Share::percent(u32::MAX);
    config.storage.max_unsaved = Size(u64::MAX);
    config
}

impl Watchdog {
    /// Ask again and again.
    pub async fn run(self: Arc<Self>) {
        let wanted = systemd::watchdog();
        // Two questions may fail, and the third is still in time.
        let every = wanted.map_or(EVERY, |wanted| wanted / 4);
        loop {
            let start = Instant::now();
            match self.ask(every).await {
                Ok(()) => {
                    self.metrics.probe_seconds.set(start.elapsed().as_secs_f64());
                    if wanted.is_some() {
                        systemd::alive();
                    }
                }
                Err(fault) => {
                    self.metrics.probe_failures.inc();
                    error!("the relay does not answer itself: {fault}");
                }
            }
            tokio::time::sleep(every.saturating_sub(start.elapsed())).await;
        }
    }

    /// Ask once.
    ///
    /// # Errors
    /// There is no answer within `limit`.
    pub async fn ask(&self, limit: Duration) -> Result<(), ProbeError> {
        let (ours, theirs) = tokio::io::duplex(BUFFER);
        self.connections.spawn(theirs, self.router.clone(), None);
        let asking = tokio::time::timeout(limit, self.talk(ours));
        asking.await.unwrap_or(Err(ProbeError::Late(limit)))
    }

    async fn talk(&self, stream: DuplexStream) -> Result<(), ProbeError> {
        let (mut socket, _) = tokio_tungstenite::client_async("ws://probe/", stream).await?;
        // A name that nobody can guess, and so nobody can take over.
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
