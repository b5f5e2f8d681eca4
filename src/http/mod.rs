//! The public port: HTTP pages, bundles, and the way into sync.
//!
//! [`listener`] binds and accepts, [`client_stream`] is a connection and [`activity`] whether it lives; [`pages`], [`bundles`]
//! and [`uploads`] answer requests, with [`assets`] and what [`content`] says of them, [`error`] is how they fail. [`client`] makes out who asks, [`sign_in`] what they may, and [`grant`] asks for
//! that again while something lasts. A WebSocket upgrade on any path is a sync session.

pub mod activity;
pub mod assets;
pub mod bundles;
pub mod client;
pub mod client_stream;
mod content;
pub mod error;
pub mod grant;
pub mod listener;
pub mod pages;
pub mod proxied;
pub mod sign_in;
pub mod tls;
pub mod uploads;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    extract::{FromRequestParts, MatchedPath, Request, State, WebSocketUpgrade},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, request::Parts,
        uri::Authority,
    },
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
// tower-http: the project that axum itself builds on.
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};

use self::{
    activity::Activity,
    assets::Asset,
    error::json_error,
    sign_in::{Need, PROTOCOL, RequestClient, note_client, require},
};
use crate::{
    auth::{Access, Auth, Client},
    bundle::{
        disk_budget::DiskBudget, import::Importer, served::Served, slims::Slims, store::BundleStore,
    },
    config::Config,
    health::Health,
    limits::{AddressLimit, Addresses, Counter, Kind, Place, Principals},
    metrics::Metrics,
    storage::documents::Documents,
    sync::{outbound::Closing, peers::Peers, sessions::Sessions, turns::Turns},
};

/// The WebSocket read buffer of a connection: axum's default of 128 KiB is memory for each idle socket.
const READ_BUFFER: usize = 2 << 10;
/// Frames up to this size together are written at once.
const WRITE_BUFFER: usize = 8 << 10;

/// Headers that pages of other origins may send.
const ALLOWED_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::AUTHORIZATION, header::IF_NONE_MATCH, header::RANGE];
/// Headers of answers that pages of other origins may read.
const EXPOSED_HEADERS: [HeaderName; 4] =
    [header::ETAG, header::CONTENT_RANGE, header::CONTENT_DISPOSITION, header::RETRY_AFTER];
/// How long a browser need not ask again what it may send: the longest that Chromium remembers it.
const PREFLIGHT_LASTS: Duration = Duration::from_secs(2 * 3600);

/// What handlers need of the rest of the relay.
#[derive(Clone)]
#[expect(missing_docs, reason = "the types say it")]
pub struct App {
    pub config: watch::Receiver<Arc<Config>>,
    pub served: Served,
    pub store: Arc<dyn BundleStore>,
    pub slims: Arc<Slims>,
    pub assets: Arc<Assets>,
    pub importer: Arc<Importer>,
    pub receiving: Arc<DiskBudget>,
    pub health: Arc<Health>,
    pub metrics: Metrics,
    pub documents: Arc<Documents>,
    pub auth: Arc<Auth>,
    pub addresses: Arc<Addresses>,
    pub principals: Arc<Principals>,
    /// The sessions that `limits.connections` bounds.
    pub connections: Arc<Counter>,
    pub sessions: Arc<Sessions>,
    pub peers: Arc<Peers>,
    /// Where sessions are counted until they end.
    pub sessions_running: TaskTracker,
    /// Places for unpacking bundles, which takes processor time and memory.
    pub unpacking: Arc<Turns>,
    pub started: Instant,
}

/// The files of `[bundle]` that are served as they are.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "named as their keys are")]
pub struct Assets {
    pub wasm: Asset,
    pub blank: Asset,
}

/// The public router.
pub fn router(app: App) -> Router {
    let needs = |need, routes: Router<App>| {
        let check = move |state, client, request, next| require(need, state, client, request, next);
        routes.route_layer(middleware::from_fn_with_state(app.clone(), check))
    };
    let downloads = Router::new()
        .route("/.manifest.tonk", get(pages::manifest))
        .route("/api/blank-tonk", get(pages::blank))
        .route("/api/bundles/{id}", get(bundles::download))
        .route("/api/bundles/{id}/manifest", get(bundles::slim));
    let router = Router::new()
        .route("/", get(pages::home))
        .route("/tonk_core_bg.wasm", get(pages::wasm))
        .route("/livez", get(pages::livez))
        .route("/readyz", get(pages::readyz))
        .merge(needs(Need::Download, downloads))
        .merge(needs(Need::Upload, Router::new().route("/api/bundles", post(uploads::upload))))
        .merge(needs(Need::Admin, Router::new().route("/metrics", get(pages::public_metrics))));
    router
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(middleware::from_fn_with_state(app.clone(), upgrade))
        .layer(middleware::from_fn_with_state(app.clone(), note_client))
        .layer(cors(app.config.clone()))
        .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
            json_error(StatusCode::INTERNAL_SERVER_ERROR, "Internal error")
        }))
        .layer(middleware::from_fn(require_host))
        .layer(middleware::from_fn_with_state(app.metrics.clone(), finish))
        .with_state(app)
}

/// Whether a browser at `origin` may use this relay.
fn is_allowed(origin: &HeaderValue, config: &Config) -> bool {
    let allowed = &config.http.allowed_origins;
    allowed.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
}

fn cors(config: watch::Receiver<Arc<Config>>) -> CorsLayer {
    CorsLayer::new()
        .allow_credentials(true)
        .allow_origin(AllowOrigin::predicate(move |origin, _: &Parts| {
            is_allowed(origin, &config.borrow())
        }))
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS])
        .allow_headers(ALLOWED_HEADERS)
        .expose_headers(EXPOSED_HEADERS)
        .max_age(PREFLIGHT_LASTS)
        .vary([header::ORIGIN])
}

/// Refuses a request that does not name one host (RFC 9112, 3.2): proxies before the relay may believe another one than it does.
pub async fn require_host(request: Request, next: Next) -> Response {
    match names_one_host(request.version(), request.headers()) {
        true => next.run(request).await,
        false => json_error(StatusCode::BAD_REQUEST, "Expected one valid Host header"),
    }
}

fn names_one_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => version < Version::HTTP_11,
        // It is empty where the URL has no authority.
        (Some(host), None) => {
            let is_authority = |host| Authority::try_from(host).is_ok();
            host.is_empty() || (is_authority(host.as_bytes()) && !host.as_bytes().contains(&b'@'))
        }
        (Some(_), Some(_)) => false,
    }
}

/// Count the request, and give every error and preflight its form.
async fn finish(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let start = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let is_preflight = request.method() == Method::OPTIONS;
    let is_upgrade = is_websocket(request.headers());
    let mut response = next.run(request).await;

    // The spelling of the TypeScript relay, which tower-http writes in lower case and answers with 200.
    let headers = response.headers_mut();
    let is_negotiated = headers.get_all(header::VARY).iter().any(|by| by == "Accept-Encoding");
    let vary = if is_negotiated { "Origin, Accept-Encoding" } else { "Origin" };
    headers.insert(header::VARY, HeaderValue::from_static(vary));
    if is_preflight && headers.contains_key(header::ACCESS_CONTROL_ALLOW_METHODS) {
        let allowed = HeaderValue::from_static("Content-Type,Authorization,If-None-Match,Range");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, allowed);
        headers.remove(header::ALLOW);
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    let status = response.status();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    if (status.is_client_error() || status.is_server_error()) && !is_json {
        let text = match status {
            StatusCode::NOT_FOUND => "Not found",
            other => other.canonical_reason().unwrap_or("Error"),
        };
        let (_, body) = json_error(status, text).into_parts();
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response = Response::from_parts(parts, body);
    }
    let route = match &route {
        _ if is_upgrade => "websocket",
        Some(path) => path.as_str(),
        None => "other",
    };
    metrics.http.requests.with_label_values(&[route, status.as_str()]).inc();
    metrics.http.seconds.with_label_values(&[route]).observe(start.elapsed().as_secs_f64());
    response
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers
        .get(header::UPGRADE)
        .is_some_and(|upgrade| upgrade.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Take a WebSocket upgrade on whatever path it comes.
async fn upgrade(State(app): State<App>, request: Request, next: Next) -> Response {
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
    let permit = app.connections.enter(config.limits.connections);
    let (admitted, place) = admit(&app, &config, client, &parts, permit.is_some());
    // Those that are being refused have places of their own.
    let permit = permit.filter(|_| admitted.is_ok());
    let max_message = config.sync.max_message.bytes();
    let (sessions, running) = (app.sessions, app.sessions_running);
    socket
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        .max_message_size(max_message)
        .max_frame_size(max_message)
        .on_upgrade(move |socket| {
            let panics = sessions.metrics.panics.clone();
            // In a box: the future around it would have room for it twice.
            let session = sessions.run(socket, client, activity, admitted, place);
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

/// Let a WebSocket in, or say why it may not live; with its place among those of its address.
fn admit(
    app: &App,
    config: &Config,
    client: Client,
    parts: &Parts,
    has_room: bool,
) -> (Result<Access, Closing>, Option<Place>) {
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
    let enter = |address| app.addresses.enter(address, Kind::Session, most, Some(rate));
    let place = match client.address.map(enter).transpose() {
        Ok(place) => place,
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
    (access, place)
}
