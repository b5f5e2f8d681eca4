//! From an upgraded WebSocket to a session: the join message, and why there is no session.

use std::{ops::ControlFlow, sync::Arc};

use tracing::{debug, warn};

use super::{Session, counts::Counted, shared::Sessions};
use crate::{
    auth::{Access, Client},
    base::{session_id::SessionId, text},
    sync::{
        close_reason::CloseReason,
        incoming::{Incoming, Received},
        wire::{Body, Message, VERSION, WireError},
    },
};

/// Why a socket did not become a session.
pub(super) struct NotJoined {
    /// The peer id of its join message; empty if there was none.
    pub(super) peer_id: String,
    pub(super) reason: CloseReason,
}

impl From<CloseReason> for NotJoined {
    fn from(reason: CloseReason) -> Self {
        Self { peer_id: String::new(), reason }
    }
}

/// How to close a session whose message cannot be decoded.
pub(super) fn garbage(error: WireError) -> CloseReason {
    match error {
        WireError::Subduction => CloseReason::Subduction,
        WireError::Cbor(_) | WireError::Missing(_) => {
            CloseReason::Malformed(format!("the message {error}"))
        }
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
        admitted: Result<Access, CloseReason>,
        from: Client,
        incoming: &mut Incoming<'_>,
    ) -> Result<(Arc<Session>, Counted), NotJoined> {
        let access = admitted?;
        if self.draining.is_cancelled() {
            return Err(CloseReason::Draining.into());
        }
        let open = self.observed.counts.open();
        let timeout = self.config.borrow().sync.handshake_timeout.0;
        let joining = self.join(id, access, from, incoming);
        let joined = tokio::select! {
            biased;
            () = self.draining.cancelled() => return Err(CloseReason::Draining.into()),
            joined = tokio::time::timeout(timeout, joining) => joined,
        };
        let session =
            joined.unwrap_or_else(|_| Err(CloseReason::HandshakeTimeout(timeout).into()))?;
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
                ControlFlow::Break(Received { frame, truncation: None }) => break frame,
                ControlFlow::Break(_) => return Err(incoming.too_large().into()),
                ControlFlow::Continue(()) => {}
            }
        };
        let message = Message::decode(&frame).map_err(garbage)?;
        self.count_received(&message, frame.len());
        let Body::Join { versions } = &message.body else {
            return Err(CloseReason::NoJoin(message.body.name()).into());
        };
        if versions.as_ref().is_some_and(|versions| !versions.iter().any(|v| v == VERSION)) {
            let peer_id = message.sender.unwrap_or_default().into_owned();
            return Err(NotJoined { peer_id, reason: CloseReason::UnsupportedVersion });
        }
        let Some(peer_id) = message.sender.as_deref().filter(|sender| !sender.is_empty()) else {
            return Err(garbage(WireError::Missing("senderId")).into());
        };
        // The log contains it.
        if peer_id.contains(text::is_invisible) {
            let reason = "the peer id contains control or format characters".to_owned();
            return Err(CloseReason::Malformed(reason).into());
        }
        if peer_id == &*self.names.peer_id
            && let Some(times) = self.observed.repeats.pass(peer_id, "own_peer_id")
        {
            warn!(
                connection = %id, times,
                "a peer has joined with this relay's own peer id, {peer_id}; if it is another \
                 relay, set sync.peer_id there"
            );
        }
        let (us, config) = (self.names.peer_id.clone(), self.config.clone());
        let counts = self.observed.counts.clone();
        Ok(Arc::new(Session::new(id, peer_id, access, client, us, config, counts)))
    }

    /// Counts and logs a WebSocket that did not become a session.
    pub(super) fn report_refused(&self, id: SessionId, client: &str, reason: &CloseReason) {
        let counts = &self.observed.counts;
        counts.ended(reason.label());
        if reason.label() == "peer" {
            return debug!(connection = %id, client, "the client left before it joined");
        }
        counts.refused(reason.label());
        if let Some(times) = self.observed.repeats.pass(client, reason.label()) {
            let close_code = reason.code();
            warn!(connection = %id, client, close_code, times, "refused: {reason}");
        }
    }
}
