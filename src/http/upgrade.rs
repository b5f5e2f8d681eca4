//! WebSocket upgrades, on any path, to sync sessions.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::Response,
};
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::{self, error::ProtocolError, handshake::server};

use super::{
    error::json_error,
    sign_in::{self, PROTOCOL, RequestClient},
    state::App,
};
use crate::{
    auth::{Access, Client},
    config::Config,
    limits::{AddressLimit, ConnectionSlot, SlotKind},
    sync::{activity::Activity, close_reason::CloseReason, truncating},
};

/// Whether pages of `origin` may use this relay.
pub(super) fn is_allowed(origin: &HeaderValue, config: &Config) -> bool {
    config.http.allowed_origins.iter().any(|allowed| allowed.includes(origin.as_bytes()))
}

/// Whether a request asks for a WebSocket.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Upgrades a WebSocket.
pub(super) fn upgrade(app: &App, request: Request) -> Response {
    let mut response = match server::create_response_with_body(&request, Body::empty) {
        Ok(response) => response,
        Err(error) => return not_upgraded(&error),
    };
    let (mut parts, _) = request.into_parts();
    let Some(on_upgrade) = parts.extensions.remove::<OnUpgrade>() else {
        return json_error(StatusCode::UPGRADE_REQUIRED, "the connection cannot be upgraded");
    };
    if sign_in::protocols(&parts.headers).any(|offered| offered == PROTOCOL) {
        let protocol = HeaderValue::from_static(PROTOCOL);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    let client = parts.extensions.get::<RequestClient>().map(|client| client.0).unwrap_or_default();
    let activity = parts.extensions.remove::<Arc<Activity>>().unwrap_or_default();
    let config = app.config.borrow().clone();
    activity.set_upgraded();
    let permit = app.connections.try_acquire(config.limits.connections);
    let (admitted, slot) = admit(app, &config, client, &parts, permit.is_some());
    // `sync::session` limits sessions that are being refused.
    let permit = permit.filter(|_| admitted.is_ok());
    let max_message = config.sync.max_message.bytes();
    let (sessions, running) = (app.sync.sessions.clone(), app.sync.running.clone());
    let counts = sessions.observed.counts.clone();
    // What happens once is in a box, and so is the session: otherwise the task would keep space for
    // both, and for the session twice.
    let begin = Box::pin(async move {
        // The client disconnected before it had the response.
        let upgraded = on_upgrade.await.ok()?;
        let socket = truncating::accept(upgraded, max_message).await;
        Some(Box::pin(sessions.run(socket, client, activity, admitted, slot)))
    });
    running.spawn(async move {
        let _permit = permit;
        let Some(session) = begin.await else { return };
        let session = std::panic::AssertUnwindSafe(session);
        if futures::FutureExt::catch_unwind(session).await.is_err() {
            counts.panicked();
        }
    });
    response
}

/// Answers a request that cannot become a WebSocket.
fn not_upgraded(error: &tungstenite::Error) -> Response {
    let status = match error {
        tungstenite::Error::Protocol(ProtocolError::WrongHttpMethod) => {
            StatusCode::METHOD_NOT_ALLOWED
        }
        _ => StatusCode::BAD_REQUEST,
    };
    json_error(status, &error.to_string())
}

/// Admits a WebSocket, or returns how it is closed. Also returns its slot among those of its
/// address.
fn admit(
    app: &App,
    config: &Config,
    client: Client,
    parts: &Parts,
    has_room: bool,
) -> (Result<Access, CloseReason>, Option<ConnectionSlot>) {
    let origin = parts.headers.get(header::ORIGIN);
    if origin.is_some_and(|origin| !is_allowed(origin, config)) {
        return (Err(CloseReason::Origin), None);
    }
    if !has_room {
        return (Err(CloseReason::Connections), None);
    }
    let limits = &config.limits;
    let (most, rate) = (limits.connections_per_address, limits.handshakes_per_address);
    let acquire = |address| app.addresses.acquire(address, SlotKind::Session, most, Some(rate));
    let slot = match client.address.map(acquire).transpose() {
        Ok(slot) => slot,
        Err(AddressLimit::Connections) => {
            return (Err(CloseReason::ConnectionsPerAddress(most)), None);
        }
        Err(AddressLimit::Handshakes) => {
            return (Err(CloseReason::HandshakesPerAddress(rate)), None);
        }
    };
    let access = match sign_in::admit(app, client, &parts.headers, &parts.uri) {
        Ok(access) if !access.rights.may_sync() => Err(CloseReason::NoSyncScope),
        admitted => admitted.map_err(CloseReason::from),
    };
    (access, slot)
}
