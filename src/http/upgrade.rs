//! WebSocket upgrades, on any path, to sync sessions.

use std::sync::Arc;

use axum::{
    Extension,
    extract::{FromRequestParts, Request, State, WebSocketUpgrade},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    sign_in::{self, PROTOCOL, RequestClient},
    state::App,
};
use crate::{
    auth::{Access, Client},
    base::closing::Closing,
    config::Config,
    limits::{AddressLimit, ConnectionSlot, SlotKind},
    sync::activity::Activity,
};

/// The read buffer of a WebSocket, in bytes. An idle socket keeps it, so axum's 128 KiB are too
/// many.
const READ_BUFFER: usize = 2 << 10;
/// The write buffer of a WebSocket, in bytes: frames up to this size together are written at once.
const WRITE_BUFFER: usize = 8 << 10;

/// Whether pages of `origin` may use this relay.
pub(super) fn is_allowed(origin: &HeaderValue, config: &Config) -> bool {
    let allowed = &config.http.allowed_origins;
    allowed.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
}

/// Whether a request asks for a WebSocket.
pub(super) fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The middleware that upgrades WebSockets on any path.
pub(super) async fn upgrade(State(app): State<App>, request: Request, next: Next) -> Response {
    if !is_websocket(request.headers()) {
        return next.run(request).await;
    }
    let (mut parts, _) = request.into_parts();
    let socket = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(socket) => socket,
        Err(rejection) => return rejection.into_response(),
    };
    let socket = socket.protocols([PROTOCOL]);
    let client = parts.extensions.get::<RequestClient>().map(|client| client.0).unwrap_or_default();
    let Extension(activity) =
        Extension::<Arc<Activity>>::from_request_parts(&mut parts, &()).await.unwrap_or_default();
    let config = app.config.borrow().clone();
    activity.set_upgraded();
    let permit = app.connections.try_acquire(config.limits.connections);
    let (admitted, slot) = admit(&app, &config, client, &parts, permit.is_some());
    // `sync::sessions` limits sessions that are being refused.
    let permit = permit.filter(|_| admitted.is_ok());
    let max_message = config.sync.max_message.bytes();
    let (sessions, running) = (app.sync.sessions, app.sync.running);
    socket
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(max_message)
        .max_frame_size(max_message)
        .on_upgrade(move |socket| {
            let panics = sessions.metrics.panics.clone();
            // Boxed, because the future around it would otherwise have space for it twice.
            let session = sessions.run(socket, client, activity, admitted, slot);
            let session = Box::pin(running.track_future(session));
            async move {
                let _permit = permit;
                let session = std::panic::AssertUnwindSafe(session);
                if futures::FutureExt::catch_unwind(session).await.is_err() {
                    panics.inc();
                }
            }
        })
}

/// Admits a WebSocket, or returns how it is closed. Also returns its slot among those of its
/// address.
fn admit(
    app: &App,
    config: &Config,
    client: Client,
    parts: &Parts,
    has_room: bool,
) -> (Result<Access, Closing>, Option<ConnectionSlot>) {
    let refused = |code, reason: String, label| (Err(Closing { code, reason, label }), None);
    let origin = parts.headers.get(header::ORIGIN);
    if origin.is_some_and(|origin| !is_allowed(origin, config)) {
        let reason = "this Origin is not among http.allowed_origins".to_owned();
        return refused(4403, reason, "origin");
    }
    if !has_room {
        return refused(1013, "the relay is full; please come again".to_owned(), "connections");
    }
    let limits = &config.limits;
    let (most, rate) = (limits.connections_per_address, limits.handshakes_per_address);
    let acquire = |address| app.addresses.acquire(address, SlotKind::Session, most, Some(rate));
    let slot = match client.address.map(acquire).transpose() {
        Ok(slot) => slot,
        Err(AddressLimit::Connections) => {
            let reason = format!(
                "more than {most} connections of one address (limits.connections_per_address)"
            );
            return refused(4429, reason, "connections_per_address");
        }
        Err(AddressLimit::Handshakes) => {
            let reason = format!(
                "more than {rate} new connections of one address (limits.handshakes_per_address)"
            );
            return refused(4429, reason, "handshakes_per_address");
        }
    };
    let access = match sign_in::admit(app, client, &parts.headers, &parts.uri) {
        Ok(access) if !access.rights.may_sync() => Err(Closing {
            code: 4403,
            reason: "the token has no scope for sync".to_owned(),
            label: "no_scope",
        }),
        admitted => admitted.map_err(|refusal| refusal.closing()),
    };
    (access, slot)
}
