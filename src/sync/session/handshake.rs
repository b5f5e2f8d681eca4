//! From an upgraded WebSocket to a session: the join message, and why there is no session.

use std::{ops::ControlFlow, sync::Arc};

use prometheus::IntGauge;
use tracing::{debug, warn};

use super::{handle::Session, shared::Sessions};
use crate::{
    auth::{Access, Client},
    base::{closing::Closing, session_id::SessionId, text},
    sync::{
        incoming::Incoming,
        wire::{Body, Message, VERSION, WireError},
    },
};

/// Why a socket did not become a session.
pub(super) struct NotJoined {
    /// The peer id of its join message; empty if there was none.
    pub(super) peer_id: String,
    pub(super) closing: Closing,
}

impl From<Closing> for NotJoined {
    fn from(closing: Closing) -> Self {
        Self { peer_id: String::new(), closing }
    }
}

/// How to close a session whose message cannot be decoded.
pub(super) fn garbage(error: WireError) -> Closing {
    let label = match error {
        WireError::Subduction => "subduction",
        WireError::Cbor(_) | WireError::Missing(_) => "garbage",
    };
    Closing::new(1007, format!("the message {error}"), label)
}

/// How to close a session while the relay stops: the client is to come again.
pub(super) fn drain() -> Closing {
    Closing::new(1012, "the relay restarts".to_owned(), "drain")
}

/// Counts a WebSocket for as long as it lives.
pub(super) struct Counted(IntGauge);

impl Counted {
    pub(super) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Sessions {
    /// Waits for the join message of a WebSocket that was admitted.
    ///
    /// # Errors
    /// It was not admitted, the message is not acceptable or not there in time, or the relay stops.
    pub(super) async fn handshake(
        &self,
        id: SessionId,
        admitted: Result<Access, Closing>,
        from: Client,
        incoming: &mut Incoming<'_>,
    ) -> Result<(Arc<Session>, Counted), NotJoined> {
        let access = admitted?;
        if self.draining.is_cancelled() {
            return Err(drain().into());
        }
        let open = Counted::new(&self.observed.metrics.open);
        let timeout = self.config.borrow().sync.handshake_timeout.0;
        let joining = self.join(id, access, from, incoming);
        let joined = tokio::select! {
            biased;
            () = self.draining.cancelled() => return Err(drain().into()),
            joined = tokio::time::timeout(timeout, joining) => joined,
        };
        let session = joined.unwrap_or_else(|_| {
            let reason = format!("no join message within {timeout:?}");
            Err(Closing::new(1002, reason, "handshake_timeout").into())
        })?;
        Ok((session, open))
    }

    /// Reads the join message.
    async fn join(
        &self,
        id: SessionId,
        access: Access,
        client: Client,
        incoming: &mut Incoming<'_>,
    ) -> Result<Arc<Session>, NotJoined> {
        let frame = loop {
            match incoming.read().await? {
                ControlFlow::Break(frame) => break frame,
                ControlFlow::Continue(()) => {}
            }
        };
        let message = Message::decode(&frame).map_err(garbage)?;
        self.count_received(&message, frame.len());
        let Body::Join { versions } = &message.body else {
            let reason = format!("expected a join message first, got {}", message.body.name());
            return Err(Closing::new(1002, reason, "no_join").into());
        };
        if versions.as_ref().is_some_and(|versions| !versions.iter().any(|v| v == VERSION)) {
            let closing = Closing::new(1002, "unsupported protocol version".to_owned(), "version");
            let peer_id = message.sender.unwrap_or_default().into_owned();
            return Err(NotJoined { peer_id, closing });
        }
        let Some(peer_id) = message.sender.as_deref().filter(|sender| !sender.is_empty()) else {
            return Err(garbage(WireError::Missing("senderId")).into());
        };
        // The log contains it.
        if peer_id.contains(text::is_invisible) {
            let reason = "the peer id has control or format characters".to_owned();
            return Err(Closing::new(1007, reason, "garbage").into());
        }
        if peer_id == &*self.names.peer_id
            && let Some(times) = self.observed.repeats.pass(peer_id, "own_peer_id")
        {
            warn!(
                connection = %id, times,
                "a peer has joined with this relay's own peer id, {peer_id}; if it is another relay, set sync.peer_id there"
            );
        }
        let (us, config) = (self.names.peer_id.clone(), self.config.clone());
        let metrics = self.observed.metrics.clone();
        Ok(Arc::new(Session::new(id, peer_id, access, client, us, config, metrics)))
    }

    /// Counts and logs a WebSocket that did not become a session.
    pub(super) fn report_refused(&self, id: SessionId, client: &str, closing: &Closing) {
        let metrics = &self.observed.metrics;
        metrics.ended.with_label_values(&[closing.label]).inc();
        if closing.label == "peer" {
            return debug!(connection = %id, client, "gone before it joined");
        }
        metrics.refused.with_label_values(&[closing.label]).inc();
        if let Some(times) = self.observed.repeats.pass(client, closing.label) {
            let reason = &closing.reason;
            warn!(connection = %id, client, close_code = closing.code, times, "refused: {reason}");
        }
    }
}
