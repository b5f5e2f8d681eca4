//! The admin listener: metrics, health, and the requests of the commands.
//!
//! Every address of `[admin] listen` answers `GET /metrics`, `/livez` and `/readyz?verbose`;
//! loopback addresses also answer `/status` ([`status`]). The Unix socket, which root and the
//! service's group may connect to, also answers `POST /reload` and the requests of [`storage`] and
//! [`live`]. [`client`] is the client that the commands use.

pub mod client;
mod error;
mod handler;
pub mod live;
pub mod reload;
pub mod status;
pub mod storage;

use std::{net::SocketAddr, sync::Arc};

use axum::{Router, middleware, routing::get};

use self::{reload::Reload, storage::state::StorageState};
use crate::{
    http::{pages, require_host, state::App},
    sync::rooms::Rooms,
};

/// Returns the router of a TCP address. Only loopback addresses have the status page.
pub fn tcp_router(app: App, address: SocketAddr) -> Router {
    let router = router(app.clone());
    let router = match address.ip().is_loopback() {
        true => {
            router.merge(Router::new().route("/status", get(status::masked_status)).with_state(app))
        }
        false => router,
    };
    router.layer(middleware::from_fn(require_host))
}

/// The routes that every address has.
fn router(app: App) -> Router {
    Router::new()
        .route("/metrics", get(pages::metrics))
        .route("/livez", get(pages::livez))
        .route("/readyz", get(pages::admin_readyz))
        .with_state(app)
}

/// Returns the router of the Unix socket.
pub fn unix_router(app: App, rooms: Arc<Rooms>, reload: Reload, storage: StorageState) -> Router {
    let status = Router::new().route("/status", get(status::full_status)).with_state(app.clone());
    router(app)
        .merge(status)
        .merge(reload::routes(reload))
        .merge(live::router(rooms))
        .merge(storage::router(storage))
}
