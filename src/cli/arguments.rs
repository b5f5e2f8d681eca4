//! Values and parsers that the arguments of several commands share.

use std::{net::SocketAddr, time::Duration};

use crate::base::document_id::{BadDocumentId, DocumentId};

/// The config file that commands read unless `--config` names another.
pub(super) const CONFIG_FILE: &str = "/etc/tonk-relay.toml";

pub(super) fn document_id(text: &str) -> Result<DocumentId, BadDocumentId> {
    text.strip_prefix("automerge:").unwrap_or(text).parse()
}

/// Parses a duration. Any length is accepted.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a number with a unit, such as 15s, 12h or 90d".to_owned())
}

/// Parses an address with a port.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        "expected an IP address with a port, such as 127.0.0.1:8081 or [::1]:8081".to_owned()
    })
}
