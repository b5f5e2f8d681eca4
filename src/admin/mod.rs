//! The admin listener: metrics, health, and the live commands.
//!
//! Every address of `[admin] listen` answers `GET /metrics`, `/livez` and `/readyz?verbose`, a loopback one also `/status`
//! ([`status`]).
//! The Unix socket, whose file lets root and the service's group in, also answers `POST /reload`, and what is in
//! [`storage`] and [`live`]; [`client`] is what the commands speak to it with.

pub mod client;
mod error;
mod handler;
pub mod live;
pub mod reload;
pub mod status;
pub mod storage;

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, middleware, routing::get};

use self::{reload::Reload, storage::state::Stored};
use crate::{
    http::{pages, require_host, state::App},
    sync::rooms::Rooms,
};

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
pub fn unix_router(app: App, rooms: Arc<Rooms>, reload: Reload, stored: Stored) -> Router {
    let status = Router::new().route("/status", get(status::whole)).with_state(app.clone());
    router(app)
        .merge(status)
        .merge(reload::routes(reload))
        .merge(live::router(rooms))
        .merge(storage::router(stored))
}
