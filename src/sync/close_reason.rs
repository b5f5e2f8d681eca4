//! Why a session ends: the WebSocket close code, the metric label and the text of each reason.

use std::time::Duration;

use super::wire::WireError;
use crate::{
    auth::Refusal,
    config::{Rate, Size},
};

/// Why a session ends, or why a socket did not become one.
///
/// Its text is what the peer reads in the `error` message and in the close frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum CloseReason {
    // The peer, or its network.
    #[error("the peer left")]
    Left,
    #[error("closed by the peer")]
    ClosedByPeer { code: u16 },
    #[error("{0}")]
    ConnectionLost(String),
    #[error("the peer does not answer pings")]
    Unresponsive,
    #[error("the same peer has connected again")]
    Superseded,

    // The protocol.
    #[error("no join message within {0:?}")]
    HandshakeTimeout(Duration),
    #[error("expected a join message first, got {0}")]
    NoJoin(&'static str),
    #[error("unsupported protocol version")]
    UnsupportedVersion,
    #[error("text frames are not part of this protocol")]
    TextFrame,
    #[error("{0}")]
    WebSocketProtocol(String),
    #[error("{0}")]
    Malformed(String),
    #[error("the message {}", WireError::Subduction)]
    Subduction,
    #[error("a message is larger than {0} (sync.max_message)")]
    TooLarge(Size),
    #[error("a large message arrives more slowly than {0} a second (sync.message_min_rate)")]
    SlowMessage(Size),

    // Who may come in.
    #[error(transparent)]
    SignIn(#[from] Refusal),
    #[error("the token has no scope for sync")]
    NoSyncScope,
    #[error("your access rights have changed; please reconnect")]
    RightsChanged,
    #[error("this Origin is not in http.allowed_origins")]
    Origin,

    // Limits of one client.
    #[error("more than {0} connections from one address (limits.connections_per_address)")]
    ConnectionsPerAddress(usize),
    #[error("more than {0} new connections from one address (limits.handshakes_per_address)")]
    HandshakesPerAddress(Rate),
    #[error("more than {0} documents (limits.documents_per_connection)")]
    Documents(usize),
    #[error("changes of more than {0} documents were refused (limits.documents_per_connection)")]
    RefusedDocuments(usize),
    #[error("more than {0} requests for unknown documents (limits.unknown_documents)")]
    UnknownDocuments(Rate),
    #[error("more than {0} new documents (limits.new_documents)")]
    NewDocuments(Rate),
    #[error("more than {0} stored within 30 days (limits.stored_bytes)")]
    StoredBytes(Size),
    #[error("send queue overflow: more than {0} bytes (sync.send_queue) are unsent")]
    SendQueueFull(usize),
    #[error(
        "send queue is full: {0} bytes (sync.send_queue) are unsent, and the client is not reading"
    )]
    SendQueueStalled(usize),
    #[error("partially received messages from this address use its whole share of sync.arriving")]
    InFlightOfAddress,

    // What the relay cannot do now.
    #[error("the relay has reached limits.connections; please reconnect later")]
    Connections,
    #[error("partially received messages use all of {0} (sync.arriving)")]
    InFlight(Size),
    #[error("the relay has no memory for another document (sync.memory); please reconnect later")]
    Memory,
    #[error(
        "the relay cannot store changes fast enough (storage.max_unsaved); please reconnect later"
    )]
    Unsaved,
    #[error("the relay is shutting down; please reconnect")]
    Draining,
    #[error("a message made the relay fail")]
    MessagePanic,
    #[error("a document of this session made the relay fail; please reconnect")]
    RoomPanic,
}

impl CloseReason {
    /// The WebSocket close code: of RFC 6455, section 7.4, or one of the relay's own from 4400 on,
    /// which are the HTTP statuses 401, 403 and 429.
    pub fn code(&self) -> u16 {
        match self {
            Self::Left | Self::Superseded => 1000,
            Self::HandshakeTimeout(_)
            | Self::NoJoin(_)
            | Self::UnsupportedVersion
            | Self::WebSocketProtocol(_) => 1002,
            Self::TextFrame => 1003,
            Self::ConnectionLost(_) | Self::Unresponsive => 1006,
            Self::Malformed(_) | Self::Subduction => 1007,
            Self::SlowMessage(_) => 1008,
            Self::TooLarge(_) => 1009,
            Self::MessagePanic | Self::RoomPanic => 1011,
            Self::Draining => 1012,
            Self::SendQueueFull(_)
            | Self::SendQueueStalled(_)
            | Self::InFlightOfAddress
            | Self::Connections
            | Self::InFlight(_)
            | Self::Memory
            | Self::Unsaved => 1013,
            Self::SignIn(_) => 4401,
            Self::NoSyncScope | Self::RightsChanged | Self::Origin => 4403,
            Self::ConnectionsPerAddress(_)
            | Self::HandshakesPerAddress(_)
            | Self::Documents(_)
            | Self::RefusedDocuments(_)
            | Self::UnknownDocuments(_)
            | Self::NewDocuments(_)
            | Self::StoredBytes(_) => 4429,
            Self::ClosedByPeer { code } => *code,
        }
    }

    /// Its name in metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::ClosedByPeer { .. } | Self::ConnectionLost(_) => "peer",
            Self::Unresponsive => "dead",
            Self::Superseded => "superseded",
            Self::HandshakeTimeout(_) => "handshake_timeout",
            Self::NoJoin(_) => "no_join",
            Self::UnsupportedVersion => "version",
            Self::TextFrame => "text",
            Self::WebSocketProtocol(_) => "protocol",
            Self::Malformed(_) => "garbage",
            Self::Subduction => "subduction",
            Self::TooLarge(_) => "too_large",
            Self::SlowMessage(_) => "slow_message",
            Self::SignIn(refusal) => refusal.label(),
            Self::NoSyncScope => "no_scope",
            Self::RightsChanged => "rights_changed",
            Self::Origin => "origin",
            Self::ConnectionsPerAddress(_) => "connections_per_address",
            Self::HandshakesPerAddress(_) => "handshakes_per_address",
            Self::Documents(_) | Self::RefusedDocuments(_) => "documents",
            Self::UnknownDocuments(_) => "unknown_documents",
            Self::NewDocuments(_) => "new_documents",
            Self::StoredBytes(_) => "stored_bytes",
            Self::SendQueueFull(_) | Self::SendQueueStalled(_) => "send_queue",
            Self::InFlightOfAddress => "arriving_of_address",
            Self::Connections => "connections",
            Self::InFlight(_) => "arriving",
            Self::Memory => "memory",
            Self::Unsaved => "unsaved",
            Self::Draining => "drain",
            Self::MessagePanic => "panic",
            Self::RoomPanic => "room_panic",
        }
    }

    /// Whether sessions end like this all the time. The others are counted as refused and logged.
    pub fn is_ordinary(&self) -> bool {
        matches!(
            self,
            Self::Left
                | Self::ClosedByPeer { .. }
                | Self::ConnectionLost(_)
                | Self::Superseded
                | Self::Draining
        )
    }

    /// Whether the peer is gone, so that nothing can be sent to it.
    pub fn is_peer_gone(&self) -> bool {
        matches!(self, Self::ClosedByPeer { .. } | Self::ConnectionLost(_) | Self::Unresponsive)
    }

    /// Whether the same client can be served when it connects again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Left
            | Self::ClosedByPeer { .. }
            | Self::ConnectionLost(_)
            | Self::Unresponsive
            | Self::HandshakeTimeout(_)
            | Self::WebSocketProtocol(_)
            | Self::SlowMessage(_)
            | Self::RightsChanged
            | Self::SendQueueFull(_)
            | Self::SendQueueStalled(_)
            | Self::InFlightOfAddress
            | Self::Connections
            | Self::InFlight(_)
            | Self::Memory
            | Self::Unsaved
            | Self::Draining
            | Self::RoomPanic => Retry::Yes,
            Self::ConnectionsPerAddress(_)
            | Self::HandshakesPerAddress(_)
            | Self::UnknownDocuments(_)
            | Self::NewDocuments(_)
            | Self::StoredBytes(_) => Retry::Later,
            Self::SignIn(Refusal::Remote) => Retry::No,
            Self::SignIn(_) | Self::NoSyncScope => Retry::WithAnotherToken,
            Self::Superseded
            | Self::NoJoin(_)
            | Self::UnsupportedVersion
            | Self::TextFrame
            | Self::Malformed(_)
            | Self::Subduction
            | Self::TooLarge(_)
            | Self::Origin
            | Self::Documents(_)
            | Self::RefusedDocuments(_)
            | Self::MessagePanic => Retry::No,
        }
    }
}

/// Whether a client whose session has ended can be served when it connects again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Retry {
    Yes,
    /// When the rate limit has room again, or connections of its address have ended.
    Later,
    WithAnotherToken,
    /// Not before the client, or the relay's config, has changed.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;

    /// One of each.
    fn all() -> Vec<CloseReason> {
        use CloseReason::*;
        let limits = Limits::default();
        let malformed = WireError::Missing("type");
        let sign_in = [
            Refusal::NoToken,
            Refusal::Unknown,
            Refusal::Expired,
            Refusal::Invalid("it has no subject".to_owned()),
            Refusal::Remote,
        ];
        let mut all = vec![
            Left,
            ClosedByPeer { code: 1001 },
            ConnectionLost("the connection ended".to_owned()),
            Unresponsive,
            Superseded,
            HandshakeTimeout(Duration::from_secs(10)),
            NoJoin("sync"),
            UnsupportedVersion,
            TextFrame,
            WebSocketProtocol("WebSocket protocol error: reserved bits are non-zero".to_owned()),
            Malformed(format!("the message {malformed}")),
            Subduction,
            TooLarge(Size::mib(100)),
            SlowMessage(Size(4 << 10)),
            NoSyncScope,
            RightsChanged,
            Origin,
            ConnectionsPerAddress(limits.connections_per_address),
            HandshakesPerAddress(limits.handshakes_per_address),
            Documents(limits.documents_per_connection),
            RefusedDocuments(limits.documents_per_connection),
            UnknownDocuments(limits.unknown_documents),
            NewDocuments(limits.new_documents),
            StoredBytes(limits.stored_bytes),
            SendQueueFull(8 << 20),
            SendQueueStalled(8 << 20),
            InFlightOfAddress,
            Connections,
            InFlight(Size::mib(400)),
            Memory,
            Unsaved,
            Draining,
            MessagePanic,
            RoomPanic,
        ];
        all.extend(sign_in.map(SignIn));
        all
    }

    /// Whether `text` has the parts of `pattern` between its ellipses, in this order.
    fn matches(text: &str, pattern: &str) -> bool {
        let mut rest = text;
        pattern.split("...").all(|part| match rest.split_once(part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }

    /// The texts between backticks.
    fn quoted(cell: &str) -> Vec<&str> {
        cell.split('`').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_table_of_close_codes_is_true_and_complete() {
        let document = include_str!("../../packaging/doc/protocol.md");
        let is_row = |line: &&str| line.starts_with("| 1") || line.starts_with("| 4");
        let cells = |line: &'static str| line.split('|').map(str::trim).collect::<Vec<_>>();
        let mut rows: Vec<_> =
            document.lines().filter(is_row).map(|line| (cells(line), false)).collect();
        // A peer that is gone is told nothing.
        for reason in all().into_iter().filter(|reason| reason.label() != "peer") {
            let retry = match reason.retry() {
                Retry::Yes => "yes",
                Retry::Later => "later",
                Retry::WithAnotherToken => "with another token",
                Retry::No => "no",
            };
            let (code, label, text) =
                (reason.code().to_string(), reason.label(), reason.to_string());
            let row =
                rows.iter_mut().find(|(cells, _)| cells[1] == code && quoted(cells[2]) == [label]);
            let (cells, is_used) =
                row.unwrap_or_else(|| panic!("no row for {code} `{label}`: {text}"));
            *is_used = true;
            let texts = quoted(cells[3]);
            let is_quoted = texts.iter().any(|pattern| matches(&text, pattern));
            assert!(texts.is_empty() || is_quoted, "{label}: {text} is not among {texts:?}");
            assert_eq!(cells[4], retry, "{label}");
        }
        let unused: Vec<_> = rows.iter().filter(|(_, is_used)| !is_used).collect();
        assert!(unused.is_empty(), "rows without a reason: {unused:?}");
    }
}
