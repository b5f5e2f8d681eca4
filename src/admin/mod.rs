//! The admin listener: metrics, health, and the live commands.
//!
//! Every address of `[admin] listen` answers `GET /metrics`, `/livez` and `/readyz?verbose`, a loopback one also `/status`
//! ([`status`]).
//! The Unix socket, whose file lets root and the service's group in, also answers `POST /reload`, and what is in
//! [`storage`] and [`live`]; [`client`] is what the commands speak to it with.

pub mod client;
pub mod live;
pub mod status;
pub mod storage;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{
    http::{pages, require_host, state::App},
    sync::rooms::Rooms,
};

/// What `POST /reload` answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// Whether the config is in effect.
    pub applied: bool,
    /// The keys that changed.
    pub changed: Vec<String>,
    /// Why it is not in effect, a line each.
    pub problems: Vec<String>,
}

/// Reloads the config and returns what became of it.
pub type Reload = Arc<dyn Fn() -> BoxFuture<'static, ReloadAnswer> + Send + Sync>;

/// The router of a TCP address. Only a loopback one has the status page.
pub fn tcp_router(app: App, address: SocketAddr) -> Router {
    let router = router(app.clone());
    let router = match address.ip().is_loopback() {
        true => router.merge(Router::new().route("/status", get(status::masked)).with_state(app)),
        false => router,
    };
    router.layer(middleware::from_fn(require_host))
}

/// What every address answers.
fn router(app: App) -> Router {
    Router::new()
        .route("/metrics", get(pages::metrics))
        .route("/livez", get(pages::livez))
        .route("/readyz", get(pages::admin_readyz))
        .with_state(app)
}

/// The router of the Unix socket.
pub fn unix_router(app: App, rooms: Arc<Rooms>, reload: Reload, stored: storage::Stored) -> Router {
    let reload = Router::new().route("/reload", post(answer_reload)).with_state(reload);
    let status = Router::new().route("/status", get(status::whole)).with_state(app.clone());
    router(app)
        .merge(status)
        .merge(reload)
        .merge(live::router(rooms))
        .merge(storage::router(stored))
}

async fn answer_reload(State(reload): State<Reload>) -> Response {
    let answer = reload().await;
    let status = if answer.applied { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    (status, Json(answer)).into_response()
}
