//! The public port: HTTP pages, bundles, and WebSockets.
//!
//! | to find | look in |
//! |---|---|
//! | accepting and serving connections | [`listener`], [`client_stream`], [`tls`] |
//! | the handlers of requests | [`pages`], [`session`], [`bundles`], [`uploads`] |
//! | files that are served, from a cache; conditional requests and ranges | [`assets`]; `content` |
//! | uploads and downloads of bundles | [`uploads`]; [`bundles`] |
//! | the size of an upload, against `bundles.max_upload` and quotas | [`uploads`], `uploads::body` |
//! | ... and what it unpacks to | `bundle::archive`, `bundle::directory` |
//! | WebSocket upgrades, and why one is refused | `upgrade` |
//! | the client's address from `X-Forwarded-For` | [`client`] |
//! | ... and from the PROXY protocol | [`proxy_protocol`] |
//! | the sign-in of a request, and the rights it needs | [`sign_in`], [`grant`] |
//! | how a request fails | [`error`] |
//! | the state that handlers share | [`state`] |

pub mod assets;
pub mod bundles;
pub mod client;
pub mod client_stream;
mod content;
pub mod error;
pub mod grant;
pub mod listener;
pub mod pages;
pub mod proxy_protocol;
pub mod session;
pub mod sign_in;
pub mod state;
pub mod tls;
mod upgrade;
pub mod uploads;

use self::{
    error::json_error,
    grant::Need,
    sign_in::{record_client, require},
    state::App,
    upgrade::{is_allowed, is_websocket, upgrade},
};
use crate::config::Config;
use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, request::Parts,
        uri::Authority,
    },
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tower::ServiceBuilder;
// tower-http: from the project on which axum builds.
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};

/// Headers that pages of other origins may send.
const ALLOWED_HEADERS: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::AUTHORIZATION, header::IF_NONE_MATCH, header::RANGE];
/// Headers of answers that pages of other origins may read.
const EXPOSED_HEADERS: [HeaderName; 4] =
    [header::ETAG, header::CONTENT_RANGE, header::CONTENT_DISPOSITION, header::RETRY_AFTER];
/// How long a browser may cache the answer to a preflight request. Chromium caps it at this.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 3600);

/// Returns the router of the public port, with `more` routes. Its requests are counted unless they
/// are the relay's own, to test itself.
pub fn router(app: App, more: Router<App>, is_counted: bool) -> Router {
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
        .merge(needs(Need::Admission, Router::new().route("/api/session", get(session::session))))
        .merge(more)
        .merge(needs(Need::Download, downloads))
        .merge(needs(Need::Upload, Router::new().route("/api/bundles", post(uploads::upload))))
        .merge(needs(Need::Admin, Router::new().route("/metrics", get(pages::public_metrics))));
    let respond = move |state, request, next| respond(is_counted, state, request, next);
    // One stack, whose first layer is the outermost: axum boxes the service for each `layer`.
    let layers = ServiceBuilder::new()
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(app.clone(), respond))
        // Again, so that `respond` counts what panics in a handler.
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors(app.config.clone()));
    router.fallback(|| async { StatusCode::NOT_FOUND }).layer(layers).with_state(app)
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    json_error(StatusCode::INTERNAL_SERVER_ERROR, "Internal error")
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
        .max_age(PREFLIGHT_MAX_AGE)
        .vary([header::ORIGIN])
}

/// Refuses a request that does not name exactly one host (RFC 9112, 3.2), since a proxy may choose
/// another one than the relay.
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
        // The header is empty if the URL has no authority.
        (Some(host), None) => {
            let is_authority = |host| Authority::try_from(host).is_ok();
            host.is_empty() || (is_authority(host.as_bytes()) && !host.as_bytes().contains(&b'@'))
        }
        (Some(_), Some(_)) => false,
    }
}

/// Responds to a request: records its client, upgrades WebSockets on any path, gives errors and
/// preflight responses their form, and counts the request.
async fn respond(
    is_counted: bool,
    State(app): State<App>,
    mut request: Request,
    next: Next,
) -> Response {
    let start = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let is_preflight = request.method() == Method::OPTIONS;
    let is_upgrade = is_websocket(request.headers());
    record_client(&app, &mut request);
    let mut response = match is_upgrade && names_one_host(request.version(), request.headers()) {
        true => upgrade(&app, request),
        false => require_host(request, next).await,
    };

    // The spelling and status of the TypeScript relay. tower-http writes lower case and answers
    // with 200.
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
    if !is_counted {
        return response;
    }
    let route = match &route {
        _ if is_upgrade => "websocket",
        Some(path) => path.as_str(),
        None => "other",
    };
    let metrics = &app.metrics.http;
    metrics.requests.with_label_values(&[route, status.as_str()]).inc();
    metrics.seconds.with_label_values(&[route]).observe(start.elapsed().as_secs_f64());
    response
}
